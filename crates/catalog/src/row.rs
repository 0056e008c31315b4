//! What rows hold: the values of the ordered map, each with its version byte (`ashlar_types::encode`).
//!
//! A current object's row begins with what a list shows, so that a list decodes no more than that. Contents are kept
//! apart from records: their first extents in the row, more of them in extent rows, the inline tail in a row of its own.

use crate::CatalogError;
use ashlar_types::{
    BucketId, Checksum, DecodeError, Description, Etag, Extent, ExtentOwner, Generation, ObjectId,
    ObjectRecord, Outcome, PartRecord, PartSummary, RangeDescriptor, RequestToken, SessionId,
    SplitAt, SplitDone, Summary, UploadId, UploadRecord, Versioned,
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

/// `c`: the current object of a key. The fields of [`SummaryRow`] come first.
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
}

impl ObjectRow {
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

/// What a list shows, from the start of a current row.
pub(crate) fn summary(row: &[u8]) -> Result<Summary, CatalogError> {
    let malformed = |detail: String| {
        CatalogError::Row(DecodeError::Malformed {
            name: ObjectRow::NAME,
            version: row.first().copied().unwrap_or_default(),
            detail,
        })
    };
    let [1, body @ ..] = row else {
        return Err(malformed("not format 1".to_owned()));
    };
    let (row, _rest) = postcard::take_from_bytes::<SummaryRow>(body)
        .map_err(|error| malformed(error.to_string()))?;
    let checksums = row.checksums.iter().map(|sum| (sum.algorithm, sum.kind)).collect();
    Ok(Summary { size: row.size, modified_ms: row.modified_ms, etag: row.etag, checksums })
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
    /// It became an object.
    Completed(Box<Completed>),
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
    ObjectRow: "object row",
    ExtentsRow: "extents row",
    ManifestRow: "manifest row",
    PartRow: "part row",
    UploadRow: "upload row",
    UploadStateRow: "upload state row",
    ExtentRow: "extent row",
    MissingRow: "missing row",
    UsageRow: "usage row",
    ResultRow: "result row",
    HeadRow: "range head row",
    FloorRow: "session floor row",
    HashRow: "state hash row",
    DescriptorRow: "range descriptor row",
    SplitRow: "split row",
}
