//! Which slots may begin to move now, of all that must: the most urgent first, one of a group at a time, and few on one
//! disk.
//!
//! It is computed anew from each map, as if all moves that have begun had ended. So it needs no memory: who takes over
//! in the middle goes on where another one stopped.

use crate::plan::{MOVE_FROM_SLOTS, moves};
use ashlar_types::{ClusterMap, DiskId, PgId, PlacementGroup, Slot, SlotMove};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Slots that a disk is behind its share before data moves for it. New tables of small clusters are further off than a
/// whole slot or two, and that is no reason to copy; once something moves, all is evened out.
const UNEVEN_SLOTS: f64 = 6.0;

/// How many slots one disk gives and takes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoveLimits {
    /// Slots that move to a disk.
    pub to_a_disk: usize,
    /// Slots that move from a disk.
    pub from_a_disk: usize,
}

impl Default for MoveLimits {
    fn default() -> Self {
        Self { to_a_disk: 2, from_a_disk: 2 }
    }
}

/// What is known of disks now, beside the map.
pub trait Reach {
    /// Whether shards of a disk can be asked for.
    fn is_there(&self, disk: DiskId) -> bool;
    /// Whether a disk takes new shards and has room for more than a few.
    fn takes(&self, disk: DiskId) -> bool;
}

/// The map as it will be when all moves that have begun have ended. A move to a lost disk ends where it began, unless
/// the slot has to leave its home.
pub fn settled(map: &ClusterMap) -> ClusterMap {
    let mut settled = map.clone();
    for group in settled.groups.values_mut() {
        let Some((slot, to)) = group.moving.take() else { continue };
        let home = &mut group.homes[usize::from(slot.0)];
        if map.is_read(to) || !is_home(map, *home) {
            *home = to;
        }
    }
    settled
}

/// Moves that are taken back: their target is lost, and the slot may stay where it is.
fn taken_back(map: &ClusterMap) -> impl Iterator<Item = SlotMove> {
    map.groups.values().filter_map(|group| {
        let (slot, to) = group.moving?;
        let home = *group.homes.get(usize::from(slot.0))?;
        let is_back = !map.is_read(to) && is_home(map, home);
        is_back.then_some(SlotMove { group: group.id, epoch: group.epoch, slot, to: home })
    })
}

/// Whether slots move, or have to and can: what only a dead disk has is waited for by nobody.
pub fn are_moves_left(map: &ClusterMap) -> bool {
    let is_possible = |(id, slot, _): &(PgId, Slot, DiskId)| {
        let group = map.groups.get(id);
        group.is_some_and(|group| can_be_copied(map, group, *slot, &|_| true))
    };
    let wanted = wanted(map, &|_| true);
    map.groups.values().any(|group| group.moving.is_some()) || wanted.iter().any(is_possible)
}

/// The moves that may begin now, behind those that are taken back: such a one names the home as its target.
pub fn schedule(map: &ClusterMap, limits: MoveLimits, reach: &dyn Reach) -> Vec<SlotMove> {
    let (is_there, takes) = (|disk| reach.is_there(disk), |disk| reach.takes(disk));
    let mut wanted = wanted(map, &takes);
    wanted.sort_by_key(|&(id, slot, _)| urgency(map, id, slot));
    let mut begun: Vec<SlotMove> = taken_back(map).collect();
    let mut touched: BTreeSet<PgId> = begun.iter().map(|step| step.group).collect();
    let mut books = Books::of(map);
    for (id, slot, to) in wanted {
        let Some(group) = map.groups.get(&id) else { continue };
        let home = living_home(map, group, slot);
        let is_possible = is_there(to) && can_be_copied(map, group, slot, &is_there);
        if may_begin(map, group, slot)
            && is_possible
            && books.have_room(to, home, limits)
            && touched.insert(id)
        {
            books.note(to, home);
            begun.push(SlotMove { group: id, epoch: group.epoch, slot, to });
        }
    }
    begun
}

fn wanted(map: &ClusterMap, takes: &dyn Fn(DiskId) -> bool) -> Vec<(PgId, Slot, DiskId)> {
    // what has begun to even out goes on until it is even
    let is_evening = |group: &PlacementGroup| {
        let home = group.moving.and_then(|(slot, _)| group.homes.get(usize::from(slot.0)));
        home.is_some_and(|home| is_home(map, *home))
    };
    let uneven = if map.groups.values().any(is_evening) { MOVE_FROM_SLOTS } else { UNEVEN_SLOTS };
    moves(&settled(map), uneven, takes)
}

fn living_home(map: &ClusterMap, group: &PlacementGroup, slot: Slot) -> Option<DiskId> {
    group.homes.get(usize::from(slot.0)).copied().filter(|&home| map.is_read(home))
}

fn is_home(map: &ClusterMap, disk: DiskId) -> bool {
    use ashlar_types::DiskState::Healthy;
    map.disks.get(&disk).is_some_and(|disk| disk.state == Healthy)
}

/// Groups that have lost most come first, then those that leave a disk, then the rest.
fn urgency(map: &ClusterMap, id: PgId, slot: Slot) -> (Reverse<usize>, bool, PgId) {
    let Some(group) = map.groups.get(&id) else { return (Reverse(0), true, id) };
    let lost = group.homes.iter().filter(|&&home| !map.is_read(home)).count();
    let parity = usize::from(group.profile.parity);
    let margin = parity.saturating_sub(lost);
    let home = group.homes.get(usize::from(slot.0)).copied();
    let is_mere_balance = home.is_some_and(|home| is_home(map, home));
    let urgency = if lost > 0 { usize::MAX - margin } else { 0 };
    (Reverse(urgency), is_mere_balance, id)
}

/// A group moves one slot at a time; where the target is lost, that slot goes elsewhere.
fn may_begin(map: &ClusterMap, group: &PlacementGroup, slot: Slot) -> bool {
    group.moving.is_none_or(|(moving, to)| moving == slot && !map.is_read(to))
}

/// Whether all that a copy needs can be reached: the home's list, those of m others, or of all that are left if they are
/// fewer; and k others where the home is lost. Where not even so many are left, the group keeps its home, which alone can
/// bring back what it had.
fn can_be_copied(
    map: &ClusterMap,
    group: &PlacementGroup,
    slot: Slot,
    is_there: &dyn Fn(DiskId) -> bool,
) -> bool {
    let others = group.profile.slots().zip(&group.homes).filter(|(other, _)| *other != slot);
    let left: Vec<DiskId> =
        others.map(|(_, disk)| *disk).filter(|disk| map.is_read(*disk)).collect();
    let there = left.iter().filter(|disk| is_there(**disk)).count();
    let lists = usize::from(group.profile.parity).min(left.len());
    match living_home(map, group, slot) {
        Some(home) => is_there(home) && there >= lists,
        None => there >= lists.max(usize::from(group.profile.data)),
    }
}

/// What each disk gives and takes.
struct Books {
    to: BTreeMap<DiskId, usize>,
    from: BTreeMap<DiskId, usize>,
}

impl Books {
    fn of(map: &ClusterMap) -> Self {
        let mut books = Self { to: BTreeMap::new(), from: BTreeMap::new() };
        for group in map.groups.values() {
            let Some((slot, to)) = group.moving.filter(|(_, to)| map.is_read(*to)) else {
                continue;
            };
            let home = group.homes.get(usize::from(slot.0)).copied();
            books.note(to, home.filter(|&home| map.is_read(home)));
        }
        books
    }

    fn have_room(&self, to: DiskId, home: Option<DiskId>, limits: MoveLimits) -> bool {
        let count = |of: &BTreeMap<DiskId, usize>, disk| of.get(&disk).copied().unwrap_or(0);
        count(&self.to, to) < limits.to_a_disk
            && home.is_none_or(|home| count(&self.from, home) < limits.from_a_disk)
    }

    fn note(&mut self, to: DiskId, home: Option<DiskId>) {
        *self.to.entry(to).or_default() += 1;
        if let Some(home) = home {
            *self.from.entry(home).or_default() += 1;
        }
    }
}
