//! Ids: each is a type of its own and prints with its kind (`node-3`, `epoch-41`).

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($int:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "-{}"), self.0)
            }
        }
    };
}

id!(
    /// A node of the cluster. Never used twice (R10).
    NodeId(u64), "node"
);
id!(
    /// A range of the catalog; 0 is the root range.
    RangeId(u64), "range"
);
id!(
    /// An epoch: of the cluster map, a range, a placement group, a bucket's configuration. Only grows (R12).
    Epoch(u64), "epoch"
);
id!(
    /// A gateway session: the root log index that opened it.
    SessionId(u64), "session"
);
id!(
    /// A bucket: random, never used twice.
    BucketId(u64), "bucket"
);
id!(
    /// Orders the operations of a range, and so the versions of a key (C9).
    Generation(u64), "generation"
);
id!(
    /// A placement group.
    PgId(u32), "pg"
);
id!(
    /// A column of an extent: 0 .. k+m.
    Slot(u8), "slot"
);

macro_rules! wide_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl std::str::FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                if text.len() != 32 {
                    return Err(BadId);
                }
                u128::from_str_radix(text, 16).map(Self).map_err(|_| BadId)
            }
        }
    };
}

wide_id!(
    /// A cluster: random, given at bootstrap.
    ClusterId
);
wide_id!(
    /// A disk: random, written into its superblock when it is first used.
    DiskId
);
wide_id!(
    /// One incarnation of an object's content: random, given by the gateway.
    ObjectId
);
wide_id!(
    /// A multipart upload: random, given by the gateway.
    UploadId
);

/// Text that is not an id: 32 hexadecimal digits were expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id: 32 hexadecimal digits are expected")]
pub struct BadId;

/// An extent: the session that wrote it and a counter of that session. Never used twice (D8).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct ExtentId {
    /// The gateway session that wrote it.
    pub session: SessionId,
    /// Counts the extents of that session.
    pub counter: u64,
}

impl ExtentId {
    /// Sixteen bytes, big endian: what formats and the ring use.
    pub fn to_bytes(self) -> [u8; 16] {
        ((u128::from(self.session.0) << 64) | u128::from(self.counter)).to_be_bytes()
    }

    /// The inverse of [`ExtentId::to_bytes`].
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let (session, counter) = bytes.split_at(8);
        let read = |half: &[u8]| {
            u64::from_be_bytes(half.try_into().expect("half of sixteen bytes is eight"))
        };
        Self { session: SessionId(read(session)), counter: read(counter) }
    }
}

impl fmt::Display for ExtentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{:x}", self.session.0, self.counter)
    }
}

impl std::str::FromStr for ExtentId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let (session, counter) = text.split_once('.').ok_or(BadId)?;
        let hex = |part| u64::from_str_radix(part, 16).map_err(|_| BadId);
        Ok(Self { session: SessionId(hex(session)?), counter: hex(counter)? })
    }
}

impl RangeId {
    /// The range that holds what all share.
    pub const ROOT: Self = Self(0);
}

impl Epoch {
    /// The next epoch.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What makes a retry recognisable: a hash over principal, the SDK's invocation id and the operation (C7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RequestToken(pub [u8; 16]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_with_their_kind_and_read_back() {
        assert_eq!(NodeId(3).to_string(), "node-3");
        let extent = ExtentId { session: SessionId(0x12), counter: 0xff };
        assert_eq!(extent.to_string(), "12.ff");
        assert_eq!("12.ff".parse(), Ok(extent));
        assert_eq!(ExtentId::from_bytes(extent.to_bytes()), extent);
        let disk = DiskId(42);
        assert_eq!(disk.to_string().parse(), Ok(disk));
        assert_eq!("2a".parse::<DiskId>(), Err(BadId));
    }
}
