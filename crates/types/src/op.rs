//! The operations of a range: what a command asks, and what it came to.
//!
//! A command ends in one of three ways: applied, refused (surely not applied), or unknown. Only the first two are
//! values here; unknown is what a caller is left with when no answer arrives (C7).

use crate::{
    BucketId, Checksum, Content, Description, Epoch, Etag, Extent, ExtentId, ExtentOwner,
    Generation, Interval, KeyPoint, MarkLost, NodeId, ObjectId, Orphan, PartSummary, RangeId,
    RequestToken, SessionId, SlotSet, SplitAt, UploadId, UploadRecord, VersionName, Versioned,
};
use serde::{Deserialize, Serialize};

/// Who sends a command, and what makes it happen at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The gateway session.
    pub session: SessionId,
    /// Counts the commands of that session, to all ranges together.
    pub seq: u64,
    /// Every answer below this seq has arrived: the range may forget those results.
    pub answered_below: u64,
    /// The range's applied index as the caller knew it before the first send of this command; 0: not known.
    pub base_index: u64,
}

/// One command to a range. What must be the same on every replica (time, ids) is in it (R9).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Who sends it. `None` for the cluster's own duties, which are idempotent by what they say.
    pub caller: Option<Caller>,
    /// What it asks.
    pub op: RangeOp,
}

/// What a range is asked to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RangeOp {
    /// Makes an object the current one of its key.
    Put(Box<Put>),
    /// Removes the current object of a key.
    Delete(Delete),
    /// Opens a multipart upload.
    CreateUpload(CreateUpload),
    /// Adds or replaces a part of an open upload.
    PutPart(Box<PutPart>),
    /// Makes the parts of an upload the current object of its key.
    CompleteUpload(Box<CompleteUpload>),
    /// Ends an upload without an object.
    AbortUpload(AbortUpload),
    /// Replaces description and time of the current object, keeping its content: a self-copy with REPLACE.
    Redescribe(Box<Redescribe>),
    /// The command that the caller numbered `seq` was given up before it was proposed: if the log has not seen it, it
    /// never happens, and its extents go to the gc queue.
    Abandon(Abandon),
    /// Installs what apply judges about a bucket, if it is newer.
    SetBucket(BucketRow),
    /// "Empty? Then refuse this bucket from now on."
    FenceBucket {
        /// The bucket.
        bucket: BucketId,
        /// The epoch of the bucket's row from then on.
        epoch: Epoch,
    },
    /// Takes the fence back: the deletion was rolled back.
    UnfenceBucket {
        /// The bucket.
        bucket: BucketId,
        /// The epoch of the bucket's row from then on.
        epoch: Epoch,
    },
    /// Refuses every session below this one that is not listed as living.
    RaiseSessionFloor {
        /// Sessions below are refused.
        floor: SessionId,
        /// But these still live.
        living: Vec<SessionId>,
    },
    /// These extents have been deleted on every home that answered.
    CollectDone {
        /// The extents.
        extents: Vec<ExtentId>,
    },
    /// Raises the version of apply: every holder supports it.
    RaiseApplyVersion {
        /// To this.
        version: u32,
    },
    /// Without an effect: an entry at which the states of replicas can be compared.
    ReportHash,
    /// Shards that were missing are on stable storage now.
    Repaired {
        /// The extent as the repairer saw it: where it is named otherwise by now, nothing is changed.
        extent: Extent,
        /// The slots that are no longer missing.
        slots: SlotSet,
    },
    /// Shards of an extent are gone from their homes, although the record names them.
    MarkLost(Box<MarkLost>),
    /// Extents that nothing names: to the gc queue with them. Only of sessions that this range refuses.
    QueueOrphans {
        /// The extents.
        orphans: Vec<Orphan>,
    },
    /// The content of an extent, written again under another code, takes its place.
    Recode(Box<Recode>),
    /// The range is to be split: from now on every entry keeps up what its right side will need.
    PrepareSplit(SplitAt),
    /// Some more rows of the right side are counted or copied; after a split, some that are not this range's any more
    /// are removed.
    StepSplit,
    /// The right side of a prepared split is a range of its own from this entry on.
    Split(SplitAt),
    /// The root's directory has both sides of the split that made `child`.
    SplitTold {
        /// The right side.
        child: RangeId,
    },
    /// Removes one version of a key, or one delete marker, for good.
    DeleteVersion(DeleteVersion),
}

/// The condition of a write, judged where the write is ordered (C3).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum WriteCondition {
    /// None.
    #[default]
    Always,
    /// `If-None-Match: *`
    Absent,
    /// `If-Match: *`
    Present,
    /// `If-Match: <etag>[, …]`
    Matches(Vec<Etag>),
    /// A comparison with an etag that no object can have (not an MD5): never met, but an absent key is still 404.
    MatchesNothing,
}

/// See [`RangeOp::Put`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// Where.
    pub at: KeyPoint,
    /// The bucket's configuration epoch as the gateway knows it.
    pub bucket_epoch: Epoch,
    /// Only if.
    pub condition: WriteCondition,
    /// A fresh random id.
    pub object: ObjectId,
    /// The proposer's wall clock, in milliseconds since 1970.
    pub modified_ms: u64,
    /// MD5 of the content.
    pub etag: Etag,
    /// Its checksums.
    pub checksums: Vec<Checksum>,
    /// What the client said of it.
    pub description: Description,
    /// Where its bytes lie.
    pub content: Content,
    /// The request.
    pub token: Option<RequestToken>,
}

/// See [`RangeOp::Delete`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delete {
    /// Where.
    pub at: KeyPoint,
    /// The bucket's configuration epoch as the gateway knows it.
    pub bucket_epoch: Epoch,
    /// Only if.
    pub condition: WriteCondition,
    /// The proposer's wall clock, in milliseconds since 1970.
    pub deleted_ms: u64,
    /// The request.
    pub token: Option<RequestToken>,
}

/// See [`RangeOp::DeleteVersion`]. Done where there is no such version, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteVersion {
    /// Where.
    pub at: KeyPoint,
    /// The bucket's configuration epoch as the gateway knows it.
    pub bucket_epoch: Epoch,
    /// Which.
    pub version: VersionName,
}

/// See [`RangeOp::CreateUpload`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateUpload {
    /// Where.
    pub at: KeyPoint,
    /// The bucket's configuration epoch as the gateway knows it.
    pub bucket_epoch: Epoch,
    /// A fresh random id.
    pub upload: UploadId,
    /// What it is; the range gives it its generation.
    pub record: UploadRecord,
}

/// See [`RangeOp::PutPart`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutPart {
    /// Where.
    pub at: KeyPoint,
    /// The bucket's configuration epoch as the gateway knows it.
    pub bucket_epoch: Epoch,
    /// The upload.
    pub upload: UploadId,
    /// 1 to 10,000.
    pub number: u16,
    /// A fresh random id.
    pub object: ObjectId,
    /// The proposer's wall clock, in milliseconds since 1970.
    pub modified_ms: u64,
    /// MD5 of the content.
    pub etag: Etag,
    /// Its checksums.
    pub checksums: Vec<Checksum>,
    /// Where its bytes lie.
    pub content: Content,
}

/// See [`RangeOp::CompleteUpload`]. The gateway has read the parts, checked the client's list against them and computed
/// etag and checksums; apply judges that they are still the same parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompleteUpload {
    /// Where.
    pub at: KeyPoint,
    /// The bucket's configuration epoch as the gateway knows it.
    pub bucket_epoch: Epoch,
    /// The upload.
    pub upload: UploadId,
    /// Only if.
    pub condition: WriteCondition,
    /// A fresh random id.
    pub object: ObjectId,
    /// The proposer's wall clock, in milliseconds since 1970.
    pub modified_ms: u64,
    /// The chosen parts in ascending order, each with the content id that the gateway saw.
    pub parts: Vec<(PartSummary, ObjectId)>,
    /// The object's entity tag.
    pub etag: Etag,
    /// The object's checksums.
    pub checksums: Vec<Checksum>,
    /// The request.
    pub token: Option<RequestToken>,
}

/// See [`RangeOp::AbortUpload`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbortUpload {
    /// Where.
    pub at: KeyPoint,
    /// The bucket's configuration epoch as the gateway knows it.
    pub bucket_epoch: Epoch,
    /// The upload.
    pub upload: UploadId,
}

/// See [`RangeOp::Redescribe`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redescribe {
    /// Where.
    pub at: KeyPoint,
    /// The bucket's configuration epoch as the gateway knows it.
    pub bucket_epoch: Epoch,
    /// Only if.
    pub condition: WriteCondition,
    /// Only if the current object still has this generation.
    pub generation: Generation,
    /// The proposer's wall clock, in milliseconds since 1970.
    pub modified_ms: u64,
    /// What the client says of it now.
    pub description: Description,
    /// Its checksums from now on.
    pub checksums: Vec<Checksum>,
    /// The request.
    pub token: Option<RequestToken>,
}

/// See [`RangeOp::Abandon`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abandon {
    /// Where the abandoned command would have gone.
    pub at: KeyPoint,
    /// The seq under which it would have been sent. The abandoning command is sent under this seq itself.
    pub seq: u64,
    /// What it would have named.
    pub content: Content,
}

/// See [`RangeOp::Recode`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recode {
    /// Who names the extent.
    pub owner: ExtentOwner,
    /// The extent as it was seen: where it is named otherwise by now, nothing is changed.
    pub extent: Extent,
    /// The copy: one extent of the same length and checksum.
    pub content: Content,
}

/// What apply judges about a bucket, as a range knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketRow {
    /// The bucket.
    pub bucket: BucketId,
    /// Grows with every change of what is judged.
    pub epoch: Epoch,
    /// Whether it takes operations.
    pub state: BucketState,
    /// Whether versions are kept.
    pub versioning: Versioning,
}

/// Whether a bucket takes operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BucketState {
    /// It does.
    Open,
    /// It is being deleted: every operation is refused.
    Fenced,
}

/// Whether a bucket keeps versions. A range applies others than `Off` from version 3 of apply on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Versioning {
    /// It never did.
    Off,
    /// It does.
    On,
    /// It did.
    Suspended,
}

/// What a command came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was applied.
    Applied(Applied),
    /// It was not applied, and the log knows why.
    Refused(Refusal),
}

/// What an applied command gives back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// Nothing but that it was done.
    Done,
    /// An object is the current one of its key.
    Written {
        /// Its generation.
        generation: Generation,
        /// Its entity tag: of a retry, that of the first success.
        etag: Etag,
        /// Its time: of a retry, that of the first success.
        modified_ms: u64,
        /// Its checksums.
        checksums: Vec<Checksum>,
    },
    /// The key has no current object now.
    Deleted {
        /// Whether it had one.
        existed: bool,
    },
    /// A bucket row was fenced; the interval of the range for which that holds.
    Fenced(Interval),
    /// A step of a split was done.
    Stepped {
        /// Whether more are left.
        more: bool,
    },
    /// As `Written`, where the bucket keeps versions, or did.
    WrittenVersion {
        /// Its generation.
        generation: Generation,
        /// Its entity tag: of a retry, that of the first success.
        etag: Etag,
        /// Its time: of a retry, that of the first success.
        modified_ms: u64,
        /// Its checksums.
        checksums: Vec<Checksum>,
        /// Which version it is.
        version: VersionName,
    },
    /// The newest version of the key is a delete marker now.
    Marked {
        /// Which version that is.
        version: VersionName,
    },
    /// There is no such version (any more).
    VersionDeleted {
        /// Whether it was a delete marker that was removed.
        marker: bool,
    },
}

/// Why a command was not applied. The same on every replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The condition was not met: 412.
    #[error("the condition of the write is not met")]
    ConditionFailed,
    /// `If-Match` on a key without an object: 404.
    #[error("there is no object under this key")]
    NoSuchKey,
    /// The upload is not open: 404.
    #[error("there is no such upload")]
    NoSuchUpload,
    /// A part is not the one that the gateway read: read the parts again.
    #[error("the parts of the upload have changed meanwhile")]
    PartsChanged,
    /// The object is not the one that the gateway read: read it again.
    #[error("the object has changed meanwhile")]
    ObjectChanged,
    /// The bucket is being deleted, or is gone: ask the root.
    #[error("the bucket is being deleted")]
    BucketFenced,
    /// The range has never heard of the bucket, or knows it by a later epoch: fetch the row from the root.
    #[error("the bucket's configuration is {known:?} here")]
    BucketEpoch {
        /// The epoch that the range knows; `None`: it has no row yet.
        known: Option<Epoch>,
    },
    /// The bucket has objects: it is not fenced.
    #[error("the bucket is not empty")]
    BucketNotEmpty,
    /// The session has been fenced: open another. A resend's outcome is unknown.
    #[error("the gateway session has ended")]
    SessionFenced,
    /// The result of this seq was dropped: a resend's outcome is unknown.
    #[error("the outcome of this command is no longer known")]
    Forgotten,
    /// The command was abandoned before it came.
    #[error("the command was abandoned")]
    Abandoned,
    /// The command names extents of another session.
    #[error("a command may only name extents of its own session")]
    ForeignExtent,
    /// The key lies outside the range's interval: refresh the range directory.
    #[error("the key does not lie in this range")]
    OutsideRange,
    /// The op is not known to this apply version.
    #[error("this operation is not known to the range's version of apply")]
    Unsupported,
    /// The extent is not named so any more, or does not miss these slots.
    #[error("the extent is gone, or does not miss these slots any more")]
    NotMissing,
    /// The extent is not named as the caller saw it.
    #[error("the extent is gone, or is named otherwise by now")]
    ExtentChanged,
    /// With these slots the extent would miss more than it can.
    #[error("fewer shards would be left than the extent can be read from")]
    TooFewLeft,
    /// The session of an orphan is not refused here, so that it may still be named.
    #[error("the session of the extent has not been fenced here")]
    SessionLives,
    /// What was called an orphan is named here.
    #[error("the extent is named here")]
    ExtentNamed,
    /// One split at a time, and its rows are removed before the next.
    #[error("the range is being split, or has not done with its last split yet: wait for it")]
    Splitting,
    /// No such split is prepared, or steps are left.
    #[error("this split is not prepared")]
    NotPrepared,
    /// One side would be empty.
    #[error("the range cannot be split there: the key is not inside of it")]
    BadSplitPoint,
    /// Both sides begin with the members of the range: they have to be settled.
    #[error("the members of the range are being changed: try again")]
    MembersChanging,
}

/// One entry of a range's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The range's epoch under which the batch was proposed.
    pub epoch: Epoch,
    /// The proposer's wall clock, in milliseconds since 1970.
    pub proposed_ms: u64,
    /// The commands: each is judged by itself.
    pub commands: Vec<Command>,
}

impl Versioned for Batch {
    const NAME: &'static str = "batch";
    const VERSION: u8 = 1;
}

impl Versioned for Command {
    const NAME: &'static str = "command";
    const VERSION: u8 = 1;
}

/// What a sent command is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandReply {
    /// The log index at which it was applied: the caller's next `base_index`.
    pub index: u64,
    /// What it came to.
    pub outcome: Outcome,
}

impl Versioned for CommandReply {
    const NAME: &'static str = "command reply";
    const VERSION: u8 = 1;
}

/// A range as the root's directory names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeDescriptor {
    /// Its id.
    pub id: RangeId,
    /// Its epoch: grows with every change of interval.
    pub epoch: Epoch,
    /// Its slice of the key space.
    pub interval: Interval,
    /// The nodes that hold it.
    pub voters: Vec<NodeId>,
}

impl Versioned for RangeDescriptor {
    const NAME: &'static str = "range descriptor";
    const VERSION: u8 = 1;
}
