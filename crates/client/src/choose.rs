//! Which placement group takes a new extent: by the order of the ring, the first whose homes all live; else the first
//! with enough of them; else a group of another profile. No write is refused while any safe way is left.

use crate::Failure;
use crate::inner::Inner;
use ashlar_types::{
    ClusterMap, DiskId, ExtentId, PgId, PlacementGroup, Profile, SMALL_EXTENT_BYTES_MAX,
};
use std::collections::BTreeSet;

/// The profiles for an extent of `length` bytes, the wanted one first.
pub(crate) fn profiles(map: &ClusterMap, length: u64) -> Vec<Profile> {
    let small = small_profile(map);
    let order =
        if length <= SMALL_EXTENT_BYTES_MAX { [small, map.wide] } else { [map.wide, small] };
    let mut wanted: Vec<Profile> = order.into_iter().flatten().collect();
    wanted.dedup();
    wanted
}

/// The profile of copies with the most of them that has groups.
fn small_profile(map: &ClusterMap) -> Option<Profile> {
    let copies = map.groups.values().map(|group| group.profile).filter(|profile| profile.data == 1);
    copies.max()
}

impl Inner {
    /// A group of this very profile all of whose homes take writes now: for copies, which can wait.
    pub(crate) fn whole_group(&self, id: ExtentId, profile: Profile) -> Option<PlacementGroup> {
        let (map, chooser) = (self.map.load_full(), self.chooser.load_full());
        let live = |disk| self.health.is_writable(&map, disk);
        let chosen =
            chooser.choose(id, profile, &live, &|disk| self.health.free_per_mille(disk))?;
        chosen.homes.iter().all(|&disk| live(disk)).then(|| chosen.clone())
    }

    /// The group for a new extent. `tried`: groups that have failed this very content.
    pub(crate) async fn choose_group(
        &self,
        id: ExtentId,
        length: u64,
        tried: &BTreeSet<PgId>,
    ) -> Result<PlacementGroup, Failure> {
        if self.map.load().groups.is_empty() {
            let there = self.map_where(self.config.patience, |map| !map.groups.is_empty()).await;
            if !there {
                return Err(Failure::unavailable("there are no placement groups yet"));
            }
        }
        let (map, chooser) = (self.map.load_full(), self.chooser.load_full());
        let live = |disk| self.health.is_writable(&map, disk);
        let free = |disk| self.health.free_per_mille(disk);
        for profile in profiles(&map, length) {
            let chosen = if tried.is_empty() {
                chooser.choose(id, profile, &live, &free)
            } else {
                let untried =
                    chooser.preference(id, profile).filter(|group| !tried.contains(&group.id));
                liveliest(untried, &live)
            };
            if let Some(group) = chosen {
                return Ok(group.clone());
            }
        }
        if map.disks.keys().any(|&disk| self.health.is_full(disk)) {
            return Err(Failure::NoSpace);
        }
        Err(Failure::unavailable("no placement group has enough live homes"))
    }
}

/// After a group has failed: the first whose homes all live, else the first with enough of them.
fn liveliest<'a>(
    groups: impl Iterator<Item = &'a PlacementGroup>,
    live: &dyn Fn(DiskId) -> bool,
) -> Option<&'a PlacementGroup> {
    let mut short = None;
    for group in groups {
        let count = group
            .profile
            .slots()
            .filter_map(|slot| group.written(slot))
            .filter(|&disk| live(disk))
            .count();
        if count == usize::from(group.profile.width()) {
            return Some(group);
        }
        if count >= usize::from(group.profile.acks_min()) && short.is_none() {
            short = Some(group);
        }
    }
    short
}
