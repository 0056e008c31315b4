//! How shard requests are written on the wire, for both ends: paths, queries, headers, and the words of refusals.
//!
//! ```text
//! PUT    /shard/v1/{disk}/{extent}/{slot}?pg=7&pg_epoch=3&profile=4+2&bucket=42&length=1048576     the body is the shard
//! GET    /shard/v1/{disk}/{extent}/{slot}                                              with or without Range: bytes=a-b
//! ```
//! A body comes with `Content-Length` equal to `length`, or in chunks. The sender may put the CRC-32C of the whole body
//! into [`CRC_HEADER`], in the head or (in chunks) in the trailer: then it is checked before the shard is committed. A
//! body in chunks whose trailer has the CRC may be shorter than `length`: so ends an extent that is sealed early. The
//! answer to a PUT always carries the CRC of what was received under the same name, and a sender counts the shard only
//! if that is what it sent. The query is not percent-encoded: all of it is plain.

use ashlar_types::{BucketId, DiskId, Epoch, ExtentId, PgId, Profile, Slot};
use http::StatusCode;
use std::fmt;
use std::str::FromStr;

/// Where shards are served.
pub const SHARD_PREFIX: &str = "/shard/v1";
/// The route of a shard, for a router with `{name}` captures.
pub const SHARD_ROUTE: &str = "/shard/v1/{disk}/{extent}/{slot}";
/// CRC-32C of a shard's whole body, as [`format_crc`] writes it.
pub const CRC_HEADER: &str = "x-ashlar-crc";
/// Why a request was refused: one word, see [`ShardRefusal`].
pub const ERROR_HEADER: &str = "x-ashlar-error";
/// The length of the whole shard, on the answer to a GET.
pub const LENGTH_HEADER: &str = "x-ashlar-length";

/// Text that is not what its name says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} of a shard request is missing or malformed")]
pub struct BadShardRequest {
    /// The part that cannot be read.
    pub what: &'static str,
}

/// Which shard on which disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ShardPath {
    /// The disk.
    pub disk: DiskId,
    /// The extent.
    pub extent: ExtentId,
    /// The column of the extent.
    pub slot: Slot,
}

impl fmt::Display for ShardPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SHARD_PREFIX}/{}/{}/{}", self.disk, self.extent, self.slot.0)
    }
}

impl FromStr for ShardPath {
    type Err = BadShardRequest;
    fn from_str(path: &str) -> Result<Self, BadShardRequest> {
        let bad = |what| move || BadShardRequest { what };
        let rest = path.strip_prefix(SHARD_PREFIX).and_then(|rest| rest.strip_prefix('/'));
        let mut parts = rest.ok_or_else(bad("the path"))?.split('/');
        let mut next = |what| parts.next().ok_or_else(bad(what));
        let read = Self {
            disk: next("the disk")?.parse().map_err(|_| bad("the disk")())?,
            extent: next("the extent")?.parse().map_err(|_| bad("the extent")())?,
            slot: Slot(next("the slot")?.parse().map_err(|_| bad("the slot")())?),
        };
        if parts.next().is_some() || read.slot.0 >= 32 {
            return Err(bad("the slot")());
        }
        Ok(read)
    }
}

/// What a PUT says of its shard, in the query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardFacts {
    /// The placement group of the extent.
    pub pg: PgId,
    /// The epoch of that group as the sender knows it.
    pub pg_epoch: Epoch,
    /// The code of the extent.
    pub profile: Profile,
    /// The bucket for which it is written.
    pub bucket: BucketId,
    /// The length of the body, or, where that comes in chunks, the most that it may have.
    pub length: u64,
}

impl fmt::Display for ShardFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pg, pg_epoch, profile, bucket, length } = self;
        write!(
            f,
            "pg={}&pg_epoch={}&profile={profile}&bucket={}&length={length}",
            pg.0, pg_epoch.0, bucket.0
        )
    }
}

impl FromStr for ShardFacts {
    type Err = BadShardRequest;
    fn from_str(query: &str) -> Result<Self, BadShardRequest> {
        let field = |what: &'static str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs
                .find_map(|(name, value)| (name == what).then_some(value))
                .ok_or(BadShardRequest { what })
        };
        fn number<T: FromStr>(what: &'static str, text: &str) -> Result<T, BadShardRequest> {
            text.parse().map_err(|_| BadShardRequest { what })
        }
        Ok(Self {
            pg: PgId(number("pg", field("pg")?)?),
            pg_epoch: Epoch(number("pg_epoch", field("pg_epoch")?)?),
            profile: number("profile", field("profile")?)?,
            bucket: BucketId(number("bucket", field("bucket")?)?),
            length: number("length", field("length")?)?,
        })
    }
}

/// A CRC as [`CRC_HEADER`] carries it: eight hexadecimal digits.
pub fn format_crc(crc: u32) -> String {
    format!("{crc:08x}")
}

/// The inverse of [`format_crc`].
pub fn parse_crc(text: &str) -> Result<u32, BadShardRequest> {
    let bad = BadShardRequest { what: CRC_HEADER };
    if text.len() != 8 {
        return Err(bad);
    }
    u32::from_str_radix(text, 16).map_err(|_| bad)
}

/// Why a shard request was refused: what [`ERROR_HEADER`] says, for machines; the body says it for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ShardRefusal {
    /// The request cannot be read.
    Malformed,
    /// This node has no such disk: the map is old.
    UnknownDisk,
    /// The disk's index has no such shard, and that is certain.
    NotFound,
    /// The sender's epoch of the placement group is older than this node's: fetch the map.
    StaleEpoch,
    /// Another content is stored under this extent and slot.
    Conflict,
    /// The body is not what its CRC or its length says: nothing was stored.
    BadBody,
    /// The wanted bytes are damaged: read another shard.
    Corrupt,
    /// The range lies outside the shard.
    BadRange,
    /// The disk has no room left for shards.
    Full,
    /// The disk takes no writes since one has failed, or is being closed.
    NotWritable,
    /// The disk failed this request.
    Io,
}

impl ShardRefusal {
    const ALL: [Self; 11] = [
        Self::Malformed,
        Self::UnknownDisk,
        Self::NotFound,
        Self::StaleEpoch,
        Self::Conflict,
        Self::BadBody,
        Self::Corrupt,
        Self::BadRange,
        Self::Full,
        Self::NotWritable,
        Self::Io,
    ];

    /// The word in the header.
    pub fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownDisk => "unknown-disk",
            Self::NotFound => "not-found",
            Self::StaleEpoch => "stale-epoch",
            Self::Conflict => "conflict",
            Self::BadBody => "bad-body",
            Self::Corrupt => "corrupt",
            Self::BadRange => "bad-range",
            Self::Full => "full",
            Self::NotWritable => "not-writable",
            Self::Io => "io",
        }
    }

    /// The status with which it is answered.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed | Self::BadBody => StatusCode::BAD_REQUEST,
            Self::UnknownDisk | Self::NotFound => StatusCode::NOT_FOUND,
            Self::StaleEpoch | Self::Conflict => StatusCode::CONFLICT,
            Self::Corrupt => StatusCode::UNPROCESSABLE_ENTITY,
            Self::BadRange => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Full => StatusCode::INSUFFICIENT_STORAGE,
            Self::NotWritable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Io => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl FromStr for ShardRefusal {
    type Err = BadShardRequest;
    fn from_str(word: &str) -> Result<Self, BadShardRequest> {
        let known = Self::ALL.into_iter().find(|refusal| refusal.word() == word);
        known.ok_or(BadShardRequest { what: ERROR_HEADER })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_types::SessionId;

    const PATH: ShardPath = ShardPath {
        disk: DiskId(0xabc),
        extent: ExtentId { session: SessionId(0x12), counter: 0xff },
        slot: Slot(5),
    };

    #[test]
    fn paths_print_and_parse() {
        let text = "/shard/v1/00000000000000000000000000000abc/12.ff/5";
        assert_eq!(PATH.to_string(), text);
        assert_eq!(text.parse(), Ok(PATH));
        for bad in ["/shard/v1/abc/12.ff/5", "/shard/v2", &format!("{text}/1"), &format!("{text}0")]
        {
            assert!(bad.parse::<ShardPath>().is_err(), "{bad}");
        }
    }

    #[test]
    fn facts_print_and_parse() {
        let facts = ShardFacts {
            pg: PgId(7),
            pg_epoch: Epoch(3),
            profile: Profile::RS_4_2,
            bucket: BucketId(42),
            length: 1 << 20,
        };
        let text = "pg=7&pg_epoch=3&profile=4+2&bucket=42&length=1048576";
        assert_eq!(facts.to_string(), text);
        assert_eq!(text.parse(), Ok(facts));
        let missing = "pg=7&profile=4+2&bucket=42&length=1".parse::<ShardFacts>();
        assert_eq!(missing, Err(BadShardRequest { what: "pg_epoch" }));
    }

    #[test]
    fn refusals_and_checksums_read_back() {
        for refusal in ShardRefusal::ALL {
            assert_eq!(refusal.word().parse(), Ok(refusal));
        }
        assert!("weather".parse::<ShardRefusal>().is_err());
        assert_eq!(parse_crc(&format_crc(0xbeef)), Ok(0xbeef));
        assert!(parse_crc("beef").is_err());
    }
}
