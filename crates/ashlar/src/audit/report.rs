//! What a pass of the audit has found.

use super::durability::{Count, Durability, Margins};
use ashlar_types::{
    DecodeError, Epoch, NodeId, PgId, PlacementGroup, SessionId, Versioned, decode,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What one pass over everything has found. It is knowledge of a moment: its age is said with it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AuditReport {
    /// The node that has done the pass.
    pub by: NodeId,
    /// How long ago it ended, when this was answered.
    pub age_ms: u64,
    /// How long it took.
    pub took_ms: u64,
    /// The cluster map that it went by.
    pub map_epoch: Epoch,
    /// Sessions below are refused by every range since before the pass, but for those that were open.
    pub floor: SessionId,
    /// Ranges that were walked: all.
    pub ranges: u64,
    /// Extents that objects and parts name.
    pub extents: u64,
    /// Extents that wait for their deletion.
    pub garbage: u64,
    /// Parts of open uploads, and their bytes.
    pub open_parts: Count,
    /// Of those, the ones that are gone for good.
    pub lost_parts: Count,
    /// The shards of the extents that are named.
    pub shards: ShardCounts,
    /// Extents that nothing names and whose sessions are over: they were queued for deletion.
    pub orphans: u64,
    /// Extents that nothing has named while the pass went on, of sessions that are open: writes under way, or orphans of
    /// the future.
    pub unnamed: u64,
    /// Shards on disks that are not their home.
    pub strays: u64,
    /// Disks of which nothing is known.
    pub silent: Vec<SilentDisk>,
    /// Nodes that have answered.
    pub answered: Vec<NodeId>,
    /// Nodes without which some range has no majority.
    pub without_majority: Vec<NodeId>,
    /// Cells that differ and were left to the next pass, because there were too many.
    pub cells_left: u64,
    /// What survives what.
    pub durability: Durability,
    /// Objects that are gone for good: the first of them.
    pub lost: Vec<ObjectStanding>,
    /// Those that survive least.
    pub worst: Vec<ObjectStanding>,
    /// Groups that take nothing new, and how many extents objects and parts name in each: they are written again
    /// elsewhere, and it never grows.
    pub closed: BTreeMap<PgId, u64>,
}

impl AuditReport {
    /// The extents that were named in a group that takes nothing new; `None`: it was open then, or is not known.
    pub fn left_in(&self, group: &PlacementGroup) -> Option<u64> {
        self.closed.get(&group.id).copied().filter(|_| !group.open)
    }
}

/// A map without entries, as it is encoded.
const NO_ENTRIES: [u8; 1] = [0];

impl Versioned for AuditReport {
    const NAME: &'static str = "audit report";
    const VERSION: u8 = 2;

    fn decode_old(version: u8, body: &[u8]) -> Option<Result<Self, DecodeError>> {
        // format 1 ends before `closed`: of no group was it known how much is left in it
        (version == 1).then(|| decode(&[&[Self::VERSION], body, &NO_ENTRIES].concat()))
    }
}

/// The shards that the metadata names, each counted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ShardCounts {
    /// Where they belong.
    pub found: u64,
    /// Missing, as their records say: they wait for repair.
    pub missing: u64,
    /// Surely gone, although their records named them: from now on these call them missing.
    pub lost: u64,
    /// There, and known to be damaged: they wait to be healed.
    pub damaged: u64,
    /// Nobody answers for them.
    pub unknown: u64,
}

/// A disk of which nothing is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SilentDisk {
    /// The disk's id.
    pub disk: String,
    /// Its node.
    pub node: NodeId,
    /// Why.
    pub reason: String,
}

/// An object, and what it survives. Sorts by what it survives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectStanding {
    /// What it survives.
    pub margins: Margins,
    /// The bucket's name, or its id where it has none any more.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// Its length.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_types::encode;

    /// What a node of format 1 says that has found nothing.
    const EMPTY_1: [u8; 34] = {
        let mut bytes = [0; 34];
        (bytes[0], bytes[1], bytes[2]) = (1, 7, 9);
        bytes
    };

    #[test]
    fn reports_of_format_1_stay_readable() {
        let report = AuditReport { by: NodeId(7), age_ms: 9, ..AuditReport::default() };
        assert_eq!(decode(&EMPTY_1), Ok(report.clone()));
        let report = AuditReport { closed: [(PgId(1), 2)].into(), ..report };
        assert_eq!(decode(&encode(&report)), Ok(report));
    }
}
