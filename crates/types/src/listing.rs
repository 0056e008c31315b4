//! Listing the shards that a disk has of one slot: what a move begins with.

use crate::{BucketId, DiskId, Epoch, ExtentId, PgId, Profile, Slot, Versioned};
use serde::{Deserialize, Serialize};

/// The most shards of one page.
pub const LISTED_SHARDS_MAX: u32 = 4096;

/// Asks a data node for the shards of one slot of a group on one of its disks, in the order of their extents.
///
/// The answer is also an acknowledgement: from it on the node refuses writes to the group under an epoch older than this
/// one, and none that had begun is still open. So whatever such a write has stored there is in the list, or was before
/// the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListShards {
    /// The disk.
    pub disk: DiskId,
    /// The group.
    pub group: PgId,
    /// The slot.
    pub slot: Slot,
    /// The group's epoch that is to be acknowledged.
    pub epoch: Epoch,
    /// Behind this extent.
    pub after: Option<ExtentId>,
    /// At most so many, and at most [`LISTED_SHARDS_MAX`].
    pub limit: u32,
}

/// A shard in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedShard {
    /// Its extent.
    pub extent: ExtentId,
    /// The code of the extent.
    pub profile: Profile,
    /// The bucket for which it was written.
    pub bucket: BucketId,
    /// Its length.
    pub length: u64,
    /// CRC-32C of its content.
    pub crc: u32,
}

/// The answer to [`ListShards`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShardsListed {
    /// A page.
    Page {
        /// Shards by extent.
        shards: Vec<ListedShard>,
        /// Where the next page begins; `None`: that was the last one.
        next: Option<ExtentId>,
    },
    /// The node does not know the epoch yet, or a write under an older one is still open: ask again.
    NotYet,
    /// This node has no such disk.
    UnknownDisk,
}

impl Versioned for ListShards {
    const NAME: &'static str = "list shards";
    const VERSION: u8 = 1;
}

impl Versioned for ShardsListed {
    const NAME: &'static str = "shards listed";
    const VERSION: u8 = 1;
}
