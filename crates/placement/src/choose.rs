//! Which group takes a new extent.
//!
//! The ring orders the open groups of a profile by the extent's id; the first that may take it, takes it. Free space
//! bounds the load: a group is passed by the more often the fuller its fullest disk is. Built once an epoch of the map.

use crate::ring::{Fixed, Ring, score};
use ashlar_types::{ClusterMap, DiskId, ExtentId, PlacementGroup, Profile};
use std::collections::BTreeMap;

/// How much of a disk is free: 1000 is all of it, 0 takes no new extents.
pub type PerMille = u16;

/// Free space from which a disk counts as empty: what is free beyond it makes no difference to who is chosen.
const ROOMY: PerMille = 500;

/// The open groups of a map on rings, one a profile.
pub struct Chooser(BTreeMap<Profile, Ring<PlacementGroup>>);

impl std::fmt::Debug for Chooser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Chooser").field(&self.0.keys().collect::<Vec<_>>()).finish()
    }
}

fn key_of(group: &PlacementGroup) -> Fixed {
    Fixed(u128::from(group.id.0).to_be_bytes())
}

impl Chooser {
    /// The rings of a map.
    pub fn new(map: &ClusterMap) -> Self {
        let mut open: BTreeMap<Profile, Vec<&PlacementGroup>> = BTreeMap::new();
        for group in map.groups.values().filter(|group| group.open) {
            open.entry(group.profile).or_default().push(group);
        }
        let ring = |groups: Vec<&PlacementGroup>| {
            Ring::new(groups.into_iter().map(|group| (key_of(group), group.clone())))
        };
        Self(open.into_iter().map(|(profile, groups)| (profile, ring(groups))).collect())
    }

    /// The profiles that have open groups.
    pub fn profiles(&self) -> impl Iterator<Item = Profile> {
        self.0.keys().copied()
    }

    /// The open groups of a profile in the order in which they are preferred for an extent.
    pub fn preference(
        &self,
        extent: ExtentId,
        profile: Profile,
    ) -> impl Iterator<Item = &PlacementGroup> {
        let item = Fixed(extent.to_bytes());
        self.0.get(&profile).into_iter().flat_map(move |ring| ring.preference(item))
    }

    /// The group for a new extent: one whose homes all live, else one with enough live homes that a write may succeed.
    /// `None`: there is no such group of this profile.
    pub fn choose(
        &self,
        extent: ExtentId,
        profile: Profile,
        live: &dyn Fn(DiskId) -> bool,
        free: &dyn Fn(DiskId) -> PerMille,
    ) -> Option<&PlacementGroup> {
        let mut second: Option<(usize, PerMille, &PlacementGroup)> = None;
        for group in self.preference(extent, profile) {
            let written = || group.profile.slots().filter_map(|slot| group.written(slot));
            let lives = || written().filter(|&disk| live(disk));
            let (count, room) = (lives().count(), lives().map(free).min().unwrap_or(0));
            if room == 0 || count < usize::from(profile.acks_min()) {
                continue;
            }
            if count == group.homes.len() && takes(extent, group, room) {
                return Some(group);
            }
            if second.is_none_or(|(most, roomiest, _)| (count, room) > (most, roomiest)) {
                second = Some((count, room, group));
            }
        }
        second.map(|(_, _, group)| group)
    }
}

/// Whether a group with so much room takes this extent: always where there is plenty, else in proportion.
fn takes(extent: ExtentId, group: &PlacementGroup, room: PerMille) -> bool {
    score(Fixed(extent.to_bytes()), key_of(group)) % u64::from(ROOMY) < u64::from(room)
}
