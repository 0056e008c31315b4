//! How a verb of the client fails. The variant says what is known about the effect (C7): only [`Failure::Unknown`] may
//! have happened; everything else has surely not been applied.

use ashlar_types::{Bucket, DecodeError, Extent, QueryRefusal, Refusal, RootRefusal};

/// Why a verb did not succeed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// The range's apply refused it: not applied, and trying again as it is gives the same.
    #[error(transparent)]
    Refused(Refusal),
    /// The range could not do the read: it says why.
    #[error(transparent)]
    Query(QueryRefusal),
    /// The root refused it: not applied.
    #[error(transparent)]
    Root(RootRefusal),
    /// The name is taken by this bucket.
    #[error("the bucket exists")]
    BucketExists(Box<Bucket>),
    /// Surely not applied: try again later (503).
    #[error("unavailable, and surely not applied: {reason}")]
    Unavailable {
        /// What was in the way.
        reason: String,
    },
    /// It was sent, and no answer came before the deadline: it happened once or not at all (504).
    #[error("the outcome is not known: {reason}")]
    Unknown {
        /// What was in the way.
        reason: String,
    },
    /// No open placement group has room (507).
    #[error("no disk has room for this write")]
    NoSpace,
    /// Fewer than k shards of an extent can be read.
    #[error(
        "extent {} of {} cannot be read: only {readable} of the {} shards that are needed answer",
        extent.id, extent.pg, extent.profile.data
    )]
    Lost {
        /// The extent.
        extent: Box<Extent>,
        /// How many shards answered.
        readable: u8,
    },
    /// What was read is not what was written: nothing wrong was handed out.
    #[error("extent {} does not have the checksum that its record names", extent.id)]
    Corrupt {
        /// The extent.
        extent: Box<Extent>,
    },
    /// Content must come with its length: a shard's space is reserved when its stream opens (411).
    #[error("the length of the content must be known before it is written")]
    LengthRequired,
    /// The content was longer or shorter than was said: nothing was stored.
    #[error("the content was announced with {announced} bytes, {found} came")]
    LengthDiffers {
        /// What was said.
        announced: u64,
        /// What came.
        found: u64,
    },
    /// A peer answered what this binary cannot read. Where the effect of a command is in doubt, it is
    /// [`Failure::Unknown`] instead.
    #[error("a peer's answer cannot be read: {detail}")]
    Protocol {
        /// What was wrong.
        detail: String,
    },
}

impl Failure {
    pub(crate) fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into() }
    }

    pub(crate) fn unknown(reason: impl Into<String>) -> Self {
        Self::Unknown { reason: reason.into() }
    }

    pub(crate) fn protocol(detail: impl Into<String>) -> Self {
        Self::Protocol { detail: detail.into() }
    }

    /// An answer of another kind than the question has.
    pub(crate) fn other_answer(asked: &str) -> Self {
        Self::protocol(format!("{asked} was answered by something else"))
    }

    /// Whether it may have been applied.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Self {
        Self::protocol(error.to_string())
    }
}
