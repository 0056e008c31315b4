//! Collecting what nothing names any more: what a range's leader asks of the data nodes.

use crate::{DiskId, ExtentId, KeyPoint, Slot, Versioned};
use serde::{Deserialize, Serialize};

/// The most shards that one [`CollectShards`] names.
pub const COLLECT_SHARDS_MAX: usize = 4096;

/// One shard on one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ShardName {
    /// The disk.
    pub disk: DiskId,
    /// The extent.
    pub extent: ExtentId,
    /// The column of the extent.
    pub slot: Slot,
}

/// Asks a data node to delete shards of extents that wait in a range's gc queue. The node believes the range, not the
/// caller: it asks whether they do (D2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectShards {
    /// A point of the range in whose queue the extents are.
    pub at: KeyPoint,
    /// At most [`COLLECT_SHARDS_MAX`].
    pub shards: Vec<ShardName>,
}

/// What became of one shard of a [`CollectShards`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CollectOutcome {
    /// Its deletion is durable, or the disk had no such shard.
    Gone,
    /// The range does not have the extent in its queue: nothing was deleted.
    NotCollectable,
    /// This node has no such disk: the caller's map is old.
    UnknownDisk,
    /// The disk failed: ask again later.
    Failed,
}

/// The answer to a [`CollectShards`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardsCollected {
    /// One for each shard, in the order of the request.
    pub outcomes: Vec<CollectOutcome>,
}

impl Versioned for CollectShards {
    const NAME: &'static str = "collect shards";
    const VERSION: u8 = 1;
}

impl Versioned for ShardsCollected {
    const NAME: &'static str = "shards collected";
    const VERSION: u8 = 1;
}
