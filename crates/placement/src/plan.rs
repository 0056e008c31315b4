//! What to change in the tables of placement groups.
//!
//! [`extend`] appends groups for disks that have too few and moves nothing: what runs whenever disks join.
//! [`rebalance`] also moves slots, from disks that are gone or over-full to those that are behind: as few bytes as the
//! balance needs. Both are computed by one node and committed as a difference; nobody recomputes them.

use crate::domains::{Domains, count};
use crate::solver::Solver;
use ashlar_types::{ClusterMap, DiskId, Epoch, PgId, PlacementDiff, PlacementGroup, Profile, Slot};
use std::collections::{BTreeMap, BTreeSet};

/// What an operator may ask of placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The profile for extents that are not small. `None`: by the size of the cluster. As long as it does not fit, the
    /// choice by size holds.
    pub wide: Option<Profile>,
    /// Slots of one profile on an average disk.
    pub groups_per_disk: u32,
}

impl Default for Settings {
    /// 64 slots a disk: a slot is 1.6 % of it, so weights are met within 5 %, and the table stays small.
    fn default() -> Self {
        Self { wide: None, groups_per_disk: 64 }
    }
}

/// A table grows by appending at most to this many times its first size; beyond that, slots must move.
const GROWTH_MAX: usize = 4;
/// Slots over or under its share at which a disk gives or takes: less is the rounding of whole slots.
pub(crate) const MOVE_FROM_SLOTS: f64 = 1.0;

/// The profiles that this cluster should have groups of, the wide one first. Empty: there is no healthy disk.
pub fn profiles(map: &ClusterMap, settings: &Settings) -> Vec<Profile> {
    let domains = Domains::of(map);
    let fits = |profile: &Profile| domains.bounds(*profile).is_some();
    let small = [Profile::RS_1_2, Profile::RS_1_1, Profile::RS_1_0].into_iter().find(fits);
    let wide = settings.wide.filter(fits).or_else(|| wide_by_size(&domains));
    let mut both: Vec<Profile> = [wide, small].into_iter().flatten().collect();
    both.dedup();
    both
}

/// The widest profile whose full width survives the loss of a node: six nodes are enough for 4+2, however few zones.
fn wide_by_size(domains: &Domains) -> Option<Profile> {
    match (domains.nodes.len(), domains.homes.len()) {
        (6.., _) => Some(Profile::RS_4_2),
        (3.., _) => Some(Profile::RS_2_1),
        (_, 2..) => Some(Profile::RS_1_1),
        (_, 1) => Some(Profile::RS_1_0),
        _ => None,
    }
}

/// Appends groups for disks that have fewer slots than they should. `None`: nothing is to be done.
pub fn extend(map: &ClusterMap, settings: &Settings) -> Option<PlacementDiff> {
    let domains = Domains::of(map);
    let tables = Tables::wanted(map, settings);
    let mut next = map.groups.last_key_value().map_or(0, |(id, _)| id.0 + 1);
    let mut added = Vec::new();
    for profile in tables.profiles() {
        let Some(mut solver) = Solver::new(&domains, profile, open_groups(map, profile)) else {
            continue;
        };
        append(&mut solver, profile, settings, &domains, &mut next, &mut added);
    }
    let is_old = |group: &&PlacementGroup| group.open && !tables.uses(group.profile);
    let closed: Vec<PgId> = map.groups.values().filter(is_old).map(|group| group.id).collect();
    let wide = tables.wide.filter(|_| tables.wide != map.wide);
    let idle = added.is_empty() && closed.is_empty() && wide.is_none();
    (!idle).then_some(PlacementDiff { base: map.epoch, wide, added, moved: Vec::new(), closed })
}

fn open_groups(map: &ClusterMap, profile: Profile) -> impl Iterator<Item = &PlacementGroup> {
    map.groups_of(profile).filter(|group| group.open)
}

/// The profiles of which there shall be open groups. Chosen by size they only ever grow wider: disks that are away for
/// a moment are no reason to weaken new extents.
struct Tables {
    wide: Option<Profile>,
    small: Option<Profile>,
}

impl Tables {
    fn wanted(map: &ClusterMap, settings: &Settings) -> Self {
        let by_size = profiles(map, settings);
        let (wide, small) = (by_size.first().copied(), by_size.last().copied());
        let is_asked_for = |wide: &Profile| settings.wide == Some(*wide);
        let wider = |new: &Profile| map.wide.is_none_or(|now| new.width() > now.width());
        let small_now = map.groups.values().filter(|group| group.open && group.profile.data == 1);
        Self {
            wide: wide.filter(|wide| is_asked_for(wide) || wider(wide)).or(map.wide),
            small: small.max(small_now.map(|group| group.profile).max()),
        }
    }

    fn profiles(&self) -> impl Iterator<Item = Profile> {
        let small = self.small.filter(|_| self.small != self.wide);
        self.wide.into_iter().chain(small)
    }

    fn uses(&self, profile: Profile) -> bool {
        self.wide == Some(profile) || self.small == Some(profile)
    }
}

/// Appends groups until the average disk has its slots, and each disk at least those of the first table.
fn append(
    solver: &mut Solver<'_>,
    profile: Profile,
    settings: &Settings,
    domains: &Domains,
    next: &mut u32,
    added: &mut Vec<PlacementGroup>,
) {
    let (width, disks) = (usize::from(profile.width()), domains.homes.len());
    let slots_a_disk = usize::try_from(settings.groups_per_disk.max(1)).unwrap_or(usize::MAX);
    let base = slots_a_disk.saturating_mul(disks).div_ceil(width);
    let most = base.saturating_mul(GROWTH_MAX);
    while solver.groups() < base
        || (solver.groups() < most && someone_is_behind(solver, disks, base))
    {
        let (id, homes) = (PgId(*next), solver.fill(PgId(*next)));
        *next += 1;
        added.push(PlacementGroup {
            id,
            profile,
            epoch: Epoch(1),
            homes,
            moving: None,
            open: true,
        });
    }
}

/// Whether a disk has less than the first table would have given it, by more than the rounding.
fn someone_is_behind(solver: &Solver<'_>, disks: usize, base: usize) -> bool {
    (0..disks).any(|at| count(solver.slots(at)) + 2.0 < solver.share(at) * count(base))
}

/// The difference that balances the tables: [`extend`], and the slots that must move. `None`: nothing is to be done.
///
/// Slots that move are data that is copied, which is the migration's work; and a group moves one slot at a time, so a
/// large difference is worked off in several rounds.
pub fn rebalance(map: &ClusterMap, settings: &Settings) -> Option<PlacementDiff> {
    let moved = moves(map, MOVE_FROM_SLOTS, &|_| true);
    let idle = moved.is_empty();
    let diff = PlacementDiff { base: map.epoch, moved, ..PlacementDiff::default() };
    if idle { extend(map, settings) } else { Some(diff) }
}

/// The slots that must move, because their disk is no home any more, or because a disk is `behind_slots` or more behind
/// its share; then all are evened out. Only disks that take slots get some.
pub(crate) fn moves(
    map: &ClusterMap,
    behind_slots: f64,
    takes: &dyn Fn(DiskId) -> bool,
) -> Vec<(PgId, Slot, DiskId)> {
    let domains = Domains::of(map);
    let used: BTreeSet<Profile> = map.groups.values().map(|group| group.profile).collect();
    let mut moved = Vec::new();
    for profile in used {
        let Some(mut solver) = Solver::new(&domains, profile, map.groups_of(profile)) else {
            continue;
        };
        solver.only_to(takes);
        let mut table = Table::of(map, profile, &solver);
        let mut moves = BTreeMap::new();
        table.leave_the_lost(&mut solver, &mut moves);
        let is_far_behind = |at: usize| solver.takes(at) && solver.behind(at) >= behind_slots;
        if (0..solver.disks()).any(is_far_behind) {
            table.even_out(&mut solver, &mut moves);
        }
        let disk = |at: usize| solver.disk(at);
        moved.extend(moves.into_iter().map(|((id, slot), at)| (id, slot_of(slot), disk(at))));
    }
    moved
}

/// Where slots go, by group and slot: a slot goes once, wherever it was first meant to go.
type Moves = BTreeMap<(PgId, usize), usize>;

/// The homes of the groups of a profile, by the solver's indices. `None`: that disk is gone.
struct Table(BTreeMap<PgId, Vec<Option<usize>>>);

impl Table {
    fn of(map: &ClusterMap, profile: Profile, solver: &Solver<'_>) -> Self {
        let homes = |group: &PlacementGroup| {
            group.homes.iter().map(|&disk| solver.index_of(disk)).collect()
        };
        Self(map.groups_of(profile).map(|group| (group.id, homes(group))).collect())
    }

    /// Slots of disks that are gone get a new home.
    fn leave_the_lost(&mut self, solver: &mut Solver<'_>, moves: &mut Moves) {
        for (&id, homes) in &mut self.0 {
            for slot in 0..homes.len() {
                if homes[slot].is_some() {
                    continue;
                }
                let others: Vec<usize> = homes.iter().flatten().copied().collect();
                let Some(at) = solver.replace(id, &others) else { continue };
                homes[slot] = Some(at);
                moves.insert((id, slot), at);
            }
        }
    }

    /// Slots go from the over-full to those that are a whole slot behind, the hungriest first.
    fn even_out(&mut self, solver: &mut Solver<'_>, moves: &mut Moves) {
        let mut hopeless = BTreeSet::new();
        loop {
            let may_take = |at: usize| solver.takes(at) && !hopeless.contains(&at);
            let is_hungry = |at: &usize| may_take(*at) && solver.behind(*at) >= MOVE_FROM_SLOTS;
            let hungry = (0..solver.disks()).filter(is_hungry);
            let hungriest = hungry.max_by(|&a, &b| solver.behind(a).total_cmp(&solver.behind(b)));
            let Some(taker) = hungriest else { return };
            let Some((id, slot, giver)) = self.best_move(taker, solver) else {
                hopeless.insert(taker);
                continue;
            };
            solver.give_up(giver);
            solver.take(taker);
            self.0.get_mut(&id).expect("the move was found in it")[slot] = Some(taker);
            moves.insert((id, slot), taker);
        }
    }

    /// The slot of the most over-full disk that may go to `taker`.
    fn best_move(&self, taker: usize, solver: &Solver<'_>) -> Option<(PgId, usize, usize)> {
        let legal = |homes: &[Option<usize>], giver: usize| {
            let others: Vec<usize> =
                homes.iter().flatten().copied().filter(|&at| at != giver).collect();
            solver.may_join(taker, &others)
        };
        let mut best: Option<(PgId, usize, usize)> = None;
        for (&id, homes) in &self.0 {
            for (slot, giver) in
                homes.iter().enumerate().filter_map(|(slot, home)| Some((slot, (*home)?)))
            {
                let least = best.map_or(0.0, |(_, _, other)| solver.behind(other));
                if solver.behind(giver) < least && legal(homes, giver) {
                    best = Some((id, slot, giver));
                }
            }
        }
        best
    }
}

fn slot_of(index: usize) -> Slot {
    Slot(u8::try_from(index).expect("a group has at most 32 slots"))
}
