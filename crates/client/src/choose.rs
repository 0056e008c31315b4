//! Which placement group takes a new extent: by the order of the ring, the first whose homes all live; else the first
//! with enough of them; else a group of another profile. No write is refused while any safe way is left.

use crate::Failure;
use crate::inner::Inner;
use ashlar_types::{ClusterMap, ExtentId, PgId, PlacementGroup, Profile, SMALL_EXTENT_BYTES_MAX};
use std::collections::BTreeSet;

/// The profiles for an extent of `length` bytes, the wanted one first.
fn profiles(map: &ClusterMap, length: u64) -> Vec<Profile> {
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
        let map = self.map.load_full();
        let mut saw_full = false;
        for profile in profiles(&map, length) {
            let mut short = None;
            for group in ordered(&map, profile, id).filter(|group| !tried.contains(&group.id)) {
                let live = self.live_homes(&map, group);
                if live == usize::from(profile.width()) {
                    return Ok(group.clone());
                }
                if live >= usize::from(profile.acks_min()) && short.is_none() {
                    short = Some(group);
                }
                saw_full |= group.homes.iter().any(|&disk| self.health.is_full(disk));
            }
            if let Some(group) = short {
                return Ok(group.clone());
            }
        }
        if saw_full {
            return Err(Failure::NoSpace);
        }
        Err(Failure::unavailable("no placement group has enough live homes"))
    }

    fn live_homes(&self, map: &ClusterMap, group: &PlacementGroup) -> usize {
        group.homes.iter().filter(|&&disk| self.health.is_writable(map, disk)).count()
    }
}

/// The open groups of a profile, beginning at one that the id chooses, so that load spreads evenly.
fn ordered(
    map: &ClusterMap,
    profile: Profile,
    id: ExtentId,
) -> impl Iterator<Item = &PlacementGroup> {
    let open = || map.groups_of(profile).filter(|group| group.open);
    let hash = usize::try_from(crc32c::crc32c(&id.to_bytes())).unwrap_or(0);
    let first = hash % open().count().max(1);
    open().skip(first).chain(open().take(first))
}
