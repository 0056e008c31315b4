//! The cluster map: nodes, disks, placement groups. It lives in the root range; every node and gateway caches it by
//! its epoch.

use crate::{ClusterId, DiskId, Epoch, NodeId, PgId, Profile, Slot, Versioned};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a process does for the cluster; one may do all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Holds replicas of ranges.
    Meta,
    /// Holds shards.
    Data,
    /// Speaks S3.
    Gateway,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// What people call it.
    pub name: String,
    /// Where it stands: what fails together.
    pub zone: String,
    /// Where its internal port is reached: host:port.
    pub address: String,
    /// What it does.
    pub roles: Vec<Role>,
    /// Raised by every boot (R10, R12); 0: never booted.
    pub incarnation: u64,
}

/// Whether a disk may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskState {
    /// Read and written.
    Healthy,
    /// Read and counted, not written.
    Suspect,
    /// Lost: its shards are rebuilt elsewhere. It never comes back as itself.
    Dead,
    /// Read, counted and written as before, while its slots leave it one after the other.
    Draining,
    /// Gone from the cluster; no group names it. It never comes back as itself.
    Removed,
}

impl DiskState {
    /// Whether what lies on it counts.
    pub fn is_read(self) -> bool {
        match self {
            Self::Healthy | Self::Suspect | Self::Draining => true,
            Self::Dead | Self::Removed => false,
        }
    }

    /// Whether new shards of the slots that it has go to it.
    pub fn is_written(self) -> bool {
        match self {
            Self::Healthy | Self::Draining => true,
            Self::Suspect | Self::Dead | Self::Removed => false,
        }
    }
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its id.
    pub id: DiskId,
    /// The node in which it is.
    pub node: NodeId,
    /// Its size, which weighs it.
    pub capacity_bytes: u64,
    /// Raised whenever it is opened.
    pub incarnation: u64,
    /// Whether it may be used.
    pub state: DiskState,
}

/// A placement group: the homes of the k+m slots, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementGroup {
    /// Its id: unique over all profiles.
    pub id: PgId,
    /// Its code.
    pub profile: Profile,
    /// Grows with every change of homes.
    pub epoch: Epoch,
    /// One disk a slot.
    pub homes: Vec<DiskId>,
    /// The slot that moves, and where to. At most one at a time.
    pub moving: Option<(Slot, DiskId)>,
    /// Whether new extents may come.
    pub open: bool,
}

impl PlacementGroup {
    /// Where new shards of a slot go: to its home, or to where it moves.
    pub fn written(&self, slot: Slot) -> Option<DiskId> {
        self.target(slot).or_else(|| self.homes.get(usize::from(slot.0)).copied())
    }

    /// Where a shard of a slot may be, the likeliest first.
    pub fn places(&self, slot: Slot) -> impl Iterator<Item = DiskId> + use<> {
        let home = self.homes.get(usize::from(slot.0)).copied();
        self.target(slot).into_iter().chain(home)
    }

    /// Where a slot moves.
    pub fn target(&self, slot: Slot) -> Option<DiskId> {
        self.moving.filter(|(moving, _)| *moving == slot).map(|(_, disk)| disk)
    }

    /// Whether a disk is one of its homes, or about to be one.
    pub fn names(&self, disk: DiskId) -> bool {
        self.homes.contains(&disk) || self.moving.is_some_and(|(_, to)| to == disk)
    }
}

/// The cluster map.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClusterMap {
    /// The cluster.
    pub cluster: ClusterId,
    /// Grows with every change.
    pub epoch: Epoch,
    /// The profile of extents that are not small, where nothing else was asked for; `None` until there are disks.
    pub wide: Option<Profile>,
    /// Nodes by id.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Disks by id.
    pub disks: BTreeMap<DiskId, Disk>,
    /// Placement groups by id.
    pub groups: BTreeMap<PgId, PlacementGroup>,
}

impl ClusterMap {
    /// The node in which a disk is.
    pub fn node_of(&self, disk: DiskId) -> Option<&Node> {
        self.disks.get(&disk).and_then(|disk| self.nodes.get(&disk.node))
    }

    /// Whether what lies on a disk counts: it is known, and neither dead nor removed.
    pub fn is_read(&self, disk: DiskId) -> bool {
        self.disks.get(&disk).is_some_and(|disk| disk.state.is_read())
    }

    /// The groups of a profile, in order of their ids.
    pub fn groups_of(&self, profile: Profile) -> impl Iterator<Item = &PlacementGroup> {
        self.groups.values().filter(move |group| group.profile == profile)
    }
}

impl Versioned for ClusterMap {
    const NAME: &'static str = "cluster map";
    const VERSION: u8 = 1;
}

/// A committed change of the placement groups: what differs, never the whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlacementDiff {
    /// The map's epoch that it was computed from: another one refuses it.
    pub base: Epoch,
    /// The profile for extents that are not small, from now on.
    pub wide: Option<Profile>,
    /// Groups that are new.
    pub added: Vec<PlacementGroup>,
    /// Slots of existing groups that begin to move to another home.
    pub moved: Vec<(PgId, Slot, DiskId)>,
    /// Groups that take no new extents from now on.
    pub closed: Vec<PgId>,
}

/// One step of a slot's move, judged by the epoch of its group: whatever was decided from an older one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlotMove {
    /// The group.
    pub group: PgId,
    /// The group's epoch that it was decided from.
    pub epoch: Epoch,
    /// The slot that moves.
    pub slot: Slot,
    /// Where it moves.
    pub to: DiskId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c6_what_lies_on_a_dead_or_unknown_disk_does_not_count() {
        use DiskState::{Dead, Draining, Healthy, Removed, Suspect};
        let mut map = ClusterMap::default();
        for (id, state) in (0..).zip([Healthy, Suspect, Draining, Dead, Removed]) {
            let (id, node) = (DiskId(id), NodeId(1));
            map.disks.insert(id, Disk { id, node, capacity_bytes: 1, incarnation: 1, state });
        }
        let read: Vec<DiskId> = (0..=5).map(DiskId).filter(|&disk| map.is_read(disk)).collect();
        assert_eq!(read, [0, 1, 2].map(DiskId));
    }
}
