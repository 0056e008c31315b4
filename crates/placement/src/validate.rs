//! What holds for every table of placement groups, whenever and by whatever release it was made.
//!
//! The root's apply judges by this, so it is frozen: a stricter rule would make replicas of two releases differ. How
//! well a group is spread over nodes and zones is the plan's business, and its tests'.

use ashlar_types::{ClusterMap, DiskId, PgId, PlacementGroup};
use std::collections::BTreeSet;

/// A table that breaks an invariant. The same on every replica.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPlacement {
    /// k is 0, or there are more than 32 slots.
    #[error("{0} has a profile that cannot be: at least one data slot and at most 32 in all")]
    Profile(PgId),
    /// The number of homes is not k+m.
    #[error("{group} needs {expected} homes and has {found}")]
    Width {
        /// The group.
        group: PgId,
        /// k+m.
        expected: usize,
        /// How many it has.
        found: usize,
    },
    /// Two slots lie on one disk.
    #[error("{group} has two slots on disk {disk}")]
    SameDisk {
        /// The group.
        group: PgId,
        /// The disk.
        disk: DiskId,
    },
    /// A home is no disk of the cluster.
    #[error("{group} has a slot on disk {disk}, which is not known")]
    UnknownDisk {
        /// The group.
        group: PgId,
        /// The disk.
        disk: DiskId,
    },
    /// A slot moves that the group has not.
    #[error("{0} moves a slot that it has not")]
    NoSuchSlot(PgId),
    /// New extents would be of a profile of which no group is open.
    #[error("no group of the wide profile is open")]
    NoWideGroup,
}

/// Judges the map as it would be after a change.
pub fn validate(map: &ClusterMap) -> Result<(), BadPlacement> {
    map.groups.values().try_for_each(|group| validate_group(map, group))?;
    match map.wide {
        Some(wide) if !map.groups_of(wide).any(|group| group.open) => {
            Err(BadPlacement::NoWideGroup)
        }
        Some(_) | None => Ok(()),
    }
}

/// Judges one group.
pub fn validate_group(map: &ClusterMap, group: &PlacementGroup) -> Result<(), BadPlacement> {
    let id = group.id;
    let expected = usize::from(group.profile.data) + usize::from(group.profile.parity);
    if group.profile.data == 0 || expected > 32 {
        return Err(BadPlacement::Profile(id));
    }
    if group.homes.len() != expected {
        return Err(BadPlacement::Width { group: id, expected, found: group.homes.len() });
    }
    if group.moving.is_some_and(|(slot, _)| usize::from(slot.0) >= expected) {
        return Err(BadPlacement::NoSuchSlot(id));
    }
    let mut seen = BTreeSet::new();
    for disk in group.homes.iter().copied().chain(group.moving.map(|(_, to)| to)) {
        if !map.disks.contains_key(&disk) {
            return Err(BadPlacement::UnknownDisk { group: id, disk });
        }
        if !seen.insert(disk) {
            return Err(BadPlacement::SameDisk { group: id, disk });
        }
    }
    Ok(())
}
