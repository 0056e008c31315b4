//! What can go wrong, as sentences that say what to do next.

use ashlar_types::RangeId;
use std::path::PathBuf;

/// Why the log refuses, or has failed. The same error may go to many waiting callers, so it can be cloned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// The directory cannot be used: mend what the reason names, then start again.
    #[error("the write-ahead log in {} cannot be opened: {reason}", path.display())]
    Open {
        /// The directory or file.
        path: PathBuf,
        /// What the disk said.
        reason: String,
    },
    /// Another process holds the log: stop it first.
    #[error("the write-ahead log in {} is in use by another process ({reason}): stop that one first", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// What the disk said.
        reason: String,
    },
    /// Written by a newer binary: upgrade this one, nothing was changed.
    #[error("{} is of write-ahead log format {found}, this binary reads up to {known}: upgrade it", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The format or record kind found.
        found: u16,
        /// The newest one known.
        known: u16,
    },
    /// An append did not follow on the last entry; nothing was written. A fault of the caller.
    #[error(
        "{group}: an append at index {found} does not follow on the log, which goes on at {expected}"
    )]
    Gap {
        /// The group.
        group: RangeId,
        /// The index that may come next.
        expected: u64,
        /// The index that came.
        found: u64,
    },
    /// The group was dropped from this node; only `Created` may follow.
    #[error("{group} was dropped from this node: it takes no record before it is created again")]
    Dropped {
        /// The group.
        group: RangeId,
    },
    /// Entries that are not in the log: purged, truncated, or never appended.
    #[error("{group}: entries {from}..{to} are not all in the log")]
    Missing {
        /// The group.
        group: RangeId,
        /// First index asked for.
        from: u64,
        /// Index after the last asked for.
        to: u64,
    },
    /// An entry on disk fails its checksum: the group must be refilled from its leader.
    #[error(
        "{group}: entry {index} cannot be read back ({reason}): refill the group from its leader"
    )]
    Unreadable {
        /// The group.
        group: RangeId,
        /// The entry.
        index: u64,
        /// What was wrong.
        reason: String,
    },
    /// One record larger than the format holds.
    #[error("{group}: a record of {bytes} bytes is larger than the log takes ({max})")]
    TooLarge {
        /// The group.
        group: RangeId,
        /// Its size.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// A write or sync failed: the log takes nothing more, the node must stop. Whether the record is on disk is unknown.
    #[error("the write-ahead log has failed and takes no more ({reason}): stop the node")]
    Failed {
        /// What the disk said.
        reason: String,
    },
    /// The log was closed. The record was not written.
    #[error("the write-ahead log is closed")]
    Closed,
}
