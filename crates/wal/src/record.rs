//! The words of the log: what is submitted to it, and what it knows of a group.

use bytes::Bytes;
use std::path::PathBuf;

/// Where the log lies and how large its files are.
#[derive(Debug, Clone)]
pub struct WalConfig {
    /// Its directory; made if it is not there.
    pub dir: PathBuf,
    /// Size of a file. 128 MiB: a switch of files every few seconds at full load; the demo takes 8 MiB.
    pub file_bytes: u64,
    /// How many zeroed or recycled files lie ready.
    pub spare_files: usize,
}

impl WalConfig {
    /// Production sizes.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, file_bytes: 128 << 20, spare_files: 2 }
    }
}

/// One entry of a group's Raft log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its index: one more than the entry before it.
    pub index: u64,
    /// The term under which it was proposed.
    pub term: u64,
    /// What it says; opaque here.
    pub payload: Bytes,
}

/// What is submitted for a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Entries that follow on the last one.
    Append(Vec<Entry>),
    /// Term and vote (R7).
    Vote(Bytes),
    /// Drops the tail that conflicts with the leader's.
    Truncate {
        /// The last index to keep; `None` keeps nothing.
        after: Option<u64>,
    },
    /// Drops the head that a snapshot covers (R8). One below an earlier purge changes nothing.
    Purge {
        /// The last index to drop. May lie beyond the last entry: a snapshot was installed.
        upto: u64,
        /// The encoded log id of that entry.
        id: Bytes,
    },
    /// The encoded committed log id.
    Committed(Bytes),
    /// The group exists on this node; a dropped one begins anew.
    Created {
        /// What the group begins with; opaque here.
        first: Bytes,
    },
    /// The group is gone from this node: its entries and votes are forgotten, that it was here is not.
    Dropped,
    /// A snapshot is being put into the shared map; opaque here.
    Installing(Bytes),
    /// It is in.
    Installed,
    /// A leader has caught the group up: its health is `Sound` again.
    CaughtUp,
}

/// What the node itself notes under a key; opaque here. Notes outlive every file, and the last one of a key counts.
pub type Note = [u8; 16];

/// Whether all that a group had acknowledged is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupHealth {
    /// All is here.
    #[default]
    Sound,
    /// A torn tail was cut. It may have held a vote: do not vote until a leader has caught the group up.
    TornTail,
    /// Something below the last known synced position is damaged: reopen as a learner and refill.
    Corrupt,
}

/// What the log knows of a group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupState {
    /// The last vote.
    pub vote: Option<Bytes>,
    /// The last committed log id.
    pub committed: Option<Bytes>,
    /// The last purged index and its log id.
    pub purged: Option<(u64, Bytes)>,
    /// The first entry that is here; `None`: there is none.
    pub first_index: Option<u64>,
    /// Index and term of the last entry that is here.
    pub last: Option<(u64, u64)>,
    /// What the group began with.
    pub created: Option<Bytes>,
    /// The snapshot whose installation was begun and not ended.
    pub installing: Option<Bytes>,
    /// Whether all that was acknowledged is here.
    pub health: GroupHealth,
    /// The group was here and was dropped.
    pub dropped: bool,
}
