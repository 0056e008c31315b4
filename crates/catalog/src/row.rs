//! What rows hold: the values of the ordered map, each with its version byte (`ashlar_types::encode`).
//!
//! A current object's row begins with what a list shows, so that a list decodes no more than that. Contents are kept
//! apart from records: their first extents in the row, more of them in extent rows, the inline tail in a row of its own.

use crate::CatalogError;
use crate::key::{self, family};
use ashlar_types::{
    BucketId, Checksum, DecodeError, Description, Etag, Extent, ExtentOwner, Generation, ObjectId,
    ObjectRecord, Outcome, PartRecord, PartSummary, RangeDescriptor, RequestToken, SessionId,
    SplitAt, SplitDone, Summary, UploadId, UploadRecord, VersionId, VersionName, Versioned, decode,
    encode,
};
use serde::{Deserialize, Serialize};

/// How many extents a record names itself, and how many one extent row names: a row stays around 3 KiB.
pub(crate) const EXTENTS_PER_ROW: usize = 64;

/// Where the bytes of a plain object or a part lie.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct StoredContent {
    /// The first [`EXTENTS_PER_ROW`] extents; the others are in extent rows.
    pub(crate) extents: Vec<Extent>,
    /// How many extents are in extent rows.
    pub(crate) extents_apart: u32,
    /// The length of the tail in the inline row; 0: there is none.
    pub(crate) tail_bytes: u32,
}

/// Where the bytes of an object lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ObjectContent {
    /// One content, under the object's id.
    Plain(StoredContent),
    /// The parts of this upload, where they have been since they were uploaded; the manifest row lists them.
    Parts(UploadId),
}

/// `c`: the current object of a key; in `v`, an older version. The fields of [`SummaryRow`] come first.
///
/// Format 1 is the version `null`, format 2 one that has an id: their fields are the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ObjectRow {
    pub(crate) size: u64,
    pub(crate) modified_ms: u64,
    pub(crate) etag: Etag,
    pub(crate) checksums: Vec<Checksum>,
    pub(crate) object: ObjectId,
    pub(crate) generation: Generation,
    pub(crate) token: Option<RequestToken>,
    pub(crate) description: Description,
    pub(crate) content: ObjectContent,
    /// Whether it has a version id: the format says it.
    #[serde(skip, default = "written_by_format_2")]
    pub(crate) has_id: bool,
}

fn written_by_format_2() -> bool {
    true
}

impl Versioned for ObjectRow {
    const NAME: &'static str = "object row";
    const VERSION: u8 = 2;

    fn version(&self) -> u8 {
        if self.has_id { 2 } else { 1 }
    }

    fn decode_old(version: u8, body: &[u8]) -> Option<Result<Self, DecodeError>> {
        let malformed =
            |detail: String| DecodeError::Malformed { name: Self::NAME, version, detail };
        (version == 1).then(|| match postcard::take_from_bytes::<Self>(body) {
            Ok((row, [])) => Ok(Self { has_id: false, ..row }),
            Ok((_, rest)) => Err(malformed(format!("{} bytes too many", rest.len()))),
            Err(error) => Err(malformed(error.to_string())),
        })
    }
}

impl Completed {
    /// Which version of its key the object is.
    pub(crate) fn name(&self, has_id: bool) -> VersionName {
        name_of(has_id, self.object.generation, self.object.object)
    }
}

fn name_of(has_id: bool, generation: Generation, object: ObjectId) -> VersionName {
    match has_id {
        true => VersionName::Id(VersionId::of_object(generation, object)),
        false => VersionName::Null,
    }
}

impl ObjectRow {
    /// What a list shows of it.
    pub(crate) fn summary(self) -> Summary {
        let Self { size, modified_ms, etag, checksums, .. } = self;
        SummaryRow { size, modified_ms, etag, checksums }.shown()
    }

    /// Which version of its key it is.
    pub(crate) fn name(&self) -> VersionName {
        name_of(self.has_id, self.generation, self.object)
    }

    /// The record, with the parts that the manifest lists.
    pub(crate) fn into_record(self, parts: Vec<PartSummary>) -> ObjectRecord {
        ObjectRecord {
            object: self.object,
            generation: self.generation,
            size: self.size,
            modified_ms: self.modified_ms,
            etag: self.etag,
            checksums: self.checksums,
            description: self.description,
            parts,
            token: self.token,
        }
    }
}

#[derive(Deserialize)]
struct SummaryRow {
    size: u64,
    modified_ms: u64,
    etag: Etag,
    checksums: Vec<Checksum>,
}

impl SummaryRow {
    fn shown(self) -> Summary {
        let checksums = self.checksums.iter().map(|sum| (sum.algorithm, sum.kind)).collect();
        Summary { size: self.size, modified_ms: self.modified_ms, etag: self.etag, checksums }
    }
}

/// What a list shows, from the start of a current row.
pub(crate) fn summary(row: &[u8]) -> Result<Summary, CatalogError> {
    let malformed = |detail: String| {
        CatalogError::Row(DecodeError::Malformed {
            name: ObjectRow::NAME,
            version: row.first().copied().unwrap_or_default(),
            detail,
        })
    };
    let [1 | 2, body @ ..] = row else {
        return Err(malformed("neither format 1 nor 2".to_owned()));
    };
    let (row, _rest) = postcard::take_from_bytes::<SummaryRow>(body)
        .map_err(|error| malformed(error.to_string()))?;
    Ok(row.shown())
}

/// `v`: an older version of a key, or a delete marker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VersionRow {
    /// The row that it had in `c`.
    Object(ObjectRow),
    /// Nothing since then.
    Marker(MarkerRow),
}

/// A delete marker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MarkerRow {
    pub(crate) generation: Generation,
    pub(crate) modified_ms: u64,
    pub(crate) version: VersionName,
}

/// `v`, the last row of a key: at which generation its version `null` is, where that lies in `v`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NullRow(pub(crate) Generation);

/// The first byte of a value in `v`.
const OLDER_OBJECT: u8 = 1;
const MARKER: u8 = 2;

impl VersionRow {
    pub(crate) fn read(value: &[u8]) -> Result<Self, CatalogError> {
        match value {
            [OLDER_OBJECT, row @ ..] => Ok(Self::Object(decode(row)?)),
            [MARKER, row @ ..] => Ok(Self::Marker(decode(row)?)),
            _ => Err(CatalogError::Inconsistent("the kind of a version's row")),
        }
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        let (kind, row) = match self {
            Self::Object(row) => (OLDER_OBJECT, encode(row)),
            Self::Marker(row) => (MARKER, encode(row)),
        };
        [&[kind], &row[..]].concat()
    }

    pub(crate) fn name(&self) -> VersionName {
        match self {
            Self::Object(row) => row.name(),
            Self::Marker(row) => row.version,
        }
    }

    pub(crate) fn generation(&self) -> Generation {
        match self {
            Self::Object(row) => row.generation,
            Self::Marker(row) => row.generation,
        }
    }
}

/// The bytes that usage counts for a row of an object family: `None`: it is no version of an object.
pub(crate) fn counted_bytes(row: &[u8], value: &[u8]) -> Result<Option<u64>, CatalogError> {
    match (row.first(), value) {
        (Some(&family::CURRENT), _) => Ok(Some(summary(value)?.size)),
        (Some(&family::VERSION), _) if key::is_null_pointer(row) => Ok(None),
        (Some(&family::VERSION), [OLDER_OBJECT, older @ ..]) => Ok(Some(summary(older)?.size)),
        (Some(&family::VERSION), _) => Ok(Some(0)),
        _ => Ok(None),
    }
}

/// `x`: extents of one content that follow each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExtentsRow {
    /// Where in the content the first of them begins.
    pub(crate) offset: u64,
    pub(crate) extents: Vec<Extent>,
}

/// `m`: the parts of a completed object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ManifestRow {
    pub(crate) parts: Vec<PartSummary>,
}

/// `p`: a part, of an open upload or of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartRow {
    pub(crate) record: PartRecord,
    pub(crate) content: StoredContent,
}

/// `u`: an open upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UploadRow {
    pub(crate) upload: UploadId,
    pub(crate) record: UploadRecord,
}

/// `w`: what became of an upload id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum UploadStateRow {
    /// It is open; its row lies under this generation.
    Open(Generation),
    /// It became an object, of the version `null`.
    Completed(Box<Completed>),
    /// It became an object that has a version id.
    CompletedVersion(Box<Completed>),
}

/// What completing an upload came to: kept a while, so that a repeated Complete answers the same (C10).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Completed {
    pub(crate) upload: UploadRecord,
    /// The object as it was then; its list of parts is left out.
    pub(crate) object: ObjectRecord,
    /// Hash of the chosen parts' numbers and content ids.
    pub(crate) parts: u128,
}

/// `g`: an extent that waits to be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExtentRow {
    pub(crate) extent: Extent,
    /// The range's generation when it came here. Of an extent that could be read it is greater than any that a read
    /// before has seen: a collector goes by that.
    pub(crate) generation: Generation,
}

/// `r`: an extent that misses a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MissingRow {
    pub(crate) extent: Extent,
    pub(crate) owner: ExtentOwner,
}

/// `n`: what a bucket has in this range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct UsageRow {
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
}

/// `t`: what a command came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResultRow {
    /// Where it was applied.
    pub(crate) index: u64,
    /// The session's `answered_below` and floor as they were then: the greatest of the session's rows is the present one.
    pub(crate) answered_below: u64,
    pub(crate) floor: u64,
    pub(crate) outcome: Outcome,
}

/// `s 1`: what changes with nearly every entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeadRow {
    pub(crate) generation: Generation,
    pub(crate) apply_version: u32,
    /// The latest proposer's clock seen: never backwards.
    pub(crate) time_ms: u64,
    /// When the first row expires; `u64::MAX`: none does.
    pub(crate) next_expiry_ms: u64,
    /// Fenced buckets whose open uploads are still being aborted.
    pub(crate) sweeping: Vec<BucketId>,
}

/// `s 2`: which sessions are refused.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct FloorRow {
    /// Sessions below are refused,
    pub(crate) floor: SessionId,
    /// except these, in order.
    pub(crate) living: Vec<SessionId>,
}

/// `s 3`: the state hash. The only row of the state that is not under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HashRow(pub(crate) u128);

/// `s 0`: the range as it is: its epoch and its interval are judged by, in the view that is read or applied to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DescriptorRow(pub(crate) RangeDescriptor);

/// `s 4`: splits that are under way. There is no row where none is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct SplitRow {
    pub(crate) prepared: Option<Prepared>,
    /// Splits of which the root may not know yet, the oldest first.
    pub(crate) untold: Vec<SplitDone>,
    /// Rows that are not this range's any more have been removed up to this key; `None`: there are none.
    pub(crate) trimmed: Option<Vec<u8>>,
}

/// A split to be: what its right side will need is kept up by every entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Prepared {
    pub(crate) split: SplitAt,
    /// The rows before this key have been counted or copied; `None`: all have.
    pub(crate) cursor: Option<Vec<u8>>,
    /// The sum over the rows that were, and over the copies: the right side's state hash, but for its head.
    pub(crate) hash: u128,
}

macro_rules! rows {
    ($($type:ty: $name:literal),* $(,)?) => {
        $(impl Versioned for $type {
            const NAME: &'static str = $name;
            const VERSION: u8 = 1;
        })*
    };
}

rows! {
    ExtentsRow: "extents row",
    ManifestRow: "manifest row",
    PartRow: "part row",
    UploadRow: "upload row",
    UploadStateRow: "upload state row",
    ExtentRow: "extent row",
    MissingRow: "missing row",
    UsageRow: "usage row",
    ResultRow: "result row",
    MarkerRow: "delete marker row",
    NullRow: "null version row",
    HeadRow: "range head row",
    FloorRow: "session floor row",
    HashRow: "state hash row",
    DescriptorRow: "range descriptor row",
    SplitRow: "split row",
}
