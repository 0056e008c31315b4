//! Inventory: what the ranges name and what the disks hold, said so that the two can be compared.
//!
//! A range is walked in the direction in which names move: current objects, then parts, then the gc queue. An extent
//! that is named when the walk begins, and still is when it ends, is met by it, wherever it went meanwhile.
//!
//! Both sides can be summed up by *cell*: the shards of one slot of one placement group whose extents were numbered
//! near each other. Cells with equal sums hold the same shards; only what lies in the others is compared one by one.

use crate::{
    BucketId, DiskId, Epoch, Extent, ExtentId, ExtentOwner, Generation, KeyPoint, ObjectId, PgId,
    Profile, SessionId, Slot, SlotSet, UploadId, Versioned,
};
use serde::{Deserialize, Serialize};

/// Where a walk over what a range names stands: behind this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum InventoryPosition {
    /// The current object of a key.
    Object(KeyPoint),
    /// A part of the current object of a key; if it is another object by now, it is given from its first part.
    ObjectPart {
        /// The key.
        at: KeyPoint,
        /// The object.
        object: ObjectId,
        /// The part's number.
        number: u16,
    },
    /// All current objects.
    Objects,
    /// A part.
    Part {
        /// The key of its upload.
        at: KeyPoint,
        /// The upload.
        upload: UploadId,
        /// The part's number.
        number: u16,
    },
    /// All parts.
    Parts,
    /// An extent of the gc queue.
    Garbage(ExtentId),
    /// An older version of a key.
    Version {
        /// The key.
        at: KeyPoint,
        /// The version's generation.
        generation: Generation,
    },
    /// A part of an older version of a key.
    VersionPart {
        /// The key.
        at: KeyPoint,
        /// The version's generation.
        generation: Generation,
        /// The version's content: a description that is replaced gives it a later generation.
        object: ObjectId,
        /// The part's number.
        number: u16,
    },
}

/// A content, and the extents that it names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldContent {
    /// Who names them.
    pub owner: ExtentOwner,
    /// All of its extents, in order.
    pub extents: Vec<Extent>,
}

/// What a walk over a range meets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum InventoryEntry {
    /// An object of one content.
    Plain {
        /// Its length.
        size: u64,
        /// Its content.
        content: HeldContent,
    },
    /// Parts of an object that was uploaded in parts, in order. [`InventoryEntry::Part`] names each of them again: a
    /// part of an open upload may become one of an object behind the walk's back.
    Composite {
        /// Its key.
        at: KeyPoint,
        /// The object.
        object: ObjectId,
        /// Its length.
        size: u64,
        /// Some of its parts.
        parts: Vec<HeldContent>,
        /// Whether they are the last.
        last: bool,
    },
    /// A part, of an open upload or of an object.
    Part {
        /// Its length.
        size: u64,
        /// Its content.
        content: HeldContent,
        /// Whether its upload is open.
        open: bool,
    },
    /// An extent that waits to be deleted.
    Garbage(Extent),
}

/// A shard was lost behind the metadata's back: its extent misses it from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkLost {
    /// Who names the extent.
    pub owner: ExtentOwner,
    /// The extent as it was seen: where it is named otherwise by now, nothing is changed.
    pub extent: Extent,
    /// The slots whose homes surely have nothing.
    pub slots: SlotSet,
}

/// An extent of which shards exist and that nothing names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphan {
    /// The extent: its session has been fenced.
    pub id: ExtentId,
    /// The placement group that its shards say.
    pub pg: PgId,
    /// The code that they say.
    pub profile: Profile,
}

/// The unit of comparison: see the head of this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardCell {
    /// The placement group.
    pub pg: PgId,
    /// The slot.
    pub slot: Slot,
    /// The session of the extents.
    pub session: SessionId,
    /// Their counters, without their lowest bits.
    pub block: u64,
}

impl ShardCell {
    /// The cell of a shard, where the lowest `shift` bits of counters are left out.
    pub fn of(pg: PgId, slot: Slot, extent: ExtentId, shift: u8) -> Self {
        let block = extent.counter.checked_shr(u32::from(shift)).unwrap_or(0);
        Self { pg, slot, session: extent.session, block }
    }
}

/// What a cell holds, summed up so that order does not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CellSum {
    /// How many shards.
    pub shards: u64,
    /// The sum of a hash of each, modulo 2^64.
    pub hash: u64,
}

impl CellSum {
    /// Adds a shard of this extent.
    pub fn add(&mut self, extent: ExtentId) {
        self.shards += 1;
        self.hash = self.hash.wrapping_add(mixed(mixed(extent.session.0) ^ extent.counter));
    }
}

/// The finaliser of splitmix64: neighbouring numbers have nothing in common afterwards.
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// What an audit asks of a data node about one of its disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskQuery {
    /// The sums of all its cells.
    Cells {
        /// The disk.
        disk: DiskId,
        /// How many of the lowest bits of counters a cell leaves out.
        shift: u8,
    },
    /// The shards in some cells, one by one.
    Shards {
        /// The disk.
        disk: DiskId,
        /// As in [`DiskQuery::Cells`].
        shift: u8,
        /// The cells.
        cells: Vec<ShardCell>,
    },
    /// Whether it holds some shards of a placement group.
    Holds {
        /// The disk.
        disk: DiskId,
        /// The group.
        pg: PgId,
        /// Its epoch as the audit has it: a node that knows another one does not answer.
        pg_epoch: Epoch,
        /// The shards.
        shards: Vec<(ExtentId, Slot)>,
    },
}

impl DiskQuery {
    /// The disk.
    pub fn disk(&self) -> DiskId {
        match self {
            Self::Cells { disk, .. } | Self::Shards { disk, .. } | Self::Holds { disk, .. } => {
                *disk
            }
        }
    }
}

/// A shard on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldShard {
    /// Its extent.
    pub extent: ExtentId,
    /// Its column.
    pub slot: Slot,
    /// The placement group of its extent.
    pub pg: PgId,
    /// The code of its extent.
    pub profile: Profile,
    /// The bucket for which it was written.
    pub bucket: BucketId,
    /// Whether the disk knows that it cannot be read.
    pub damaged: bool,
}

/// How a data node answers a [`DiskQuery`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskAnswer {
    /// The sums of the cells that hold something, in order. What is damaged is not counted.
    Cells(Vec<(ShardCell, CellSum)>),
    /// Shards, in the order of extent and slot.
    Shards(Vec<HeldShard>),
    /// For each shard of the question, whether it is there. `false` is certain.
    Holds(Vec<bool>),
    /// The node has no such disk.
    UnknownDisk,
    /// The node knows the group by another epoch.
    OtherEpoch,
}

macro_rules! versioned {
    ($($type:ty: $name:literal),* $(,)?) => {
        $(impl Versioned for $type {
            const NAME: &'static str = $name;
            const VERSION: u8 = 1;
        })*
    };
}

versioned! {
    DiskQuery: "disk query",
    DiskAnswer: "disk answer",
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(session: u64, counter: u64) -> ExtentId {
        ExtentId { session: SessionId(session), counter }
    }

    #[test]
    fn sums_do_not_depend_on_order_and_tell_neighbours_apart() {
        let sum = |extents: &[ExtentId]| {
            let mut sum = CellSum::default();
            extents.iter().for_each(|&extent| sum.add(extent));
            sum
        };
        let [a, b, c] = [extent(1, 1), extent(1, 2), extent(2, 1)];
        assert_eq!(sum(&[a, b, c]), sum(&[c, a, b]));
        assert_ne!(sum(&[a, b]), sum(&[a, c]));
        assert_ne!(sum(&[extent(1, 0), extent(1, 3)]), sum(&[extent(1, 1), extent(1, 2)]));
        assert_eq!(sum(&[a]).hash, 0xe9fd_6049_d65a_f21e, "both ends compute the same for ever");
    }

    #[test]
    fn a_cell_holds_neighbours() {
        let cell = |counter, shift| ShardCell::of(PgId(1), Slot(0), extent(1, counter), shift);
        assert_eq!(cell(0, 4), cell(15, 4));
        assert_ne!(cell(15, 4), cell(16, 4));
        assert_eq!(cell(u64::MAX, 64), cell(0, 64), "all of a session");
    }
}
