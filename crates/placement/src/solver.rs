//! Fills groups with homes: by the order of the ring among those that are not over their share.
//!
//! Zone, then node, then disk; at each level the bounds of a group hold, whoever is far behind its share comes first,
//! and otherwise the ring decides among those that are not ahead. So loads stay within a few slots of the share, and
//! groups mix disks as a random choice would: a dead disk is rebuilt from many.

use crate::domains::{Bounds, Domains, count};
use crate::ring::{Fixed, Ring};
use ashlar_types::{DiskId, PgId, PlacementGroup, Profile};
use std::collections::BTreeMap;

/// Slots behind its share at which a member no longer waits for the ring.
const HUNGRY_SLOTS: f64 = 1.5;

/// The state of a plan for one profile.
pub(crate) struct Solver<'a> {
    domains: &'a Domains,
    profile: Profile,
    bounds: Bounds,
    shares: Vec<f64>,
    /// Slots that each disk has.
    slots: Vec<usize>,
    groups: usize,
    ring: Ring<usize>,
    at: BTreeMap<DiskId, usize>,
    /// Whether a disk takes slots now: one without room keeps what it has, and gets nothing more.
    takes: Vec<bool>,
}

/// One member of a level: what it has room for is judged before.
struct Candidate {
    member: usize,
    share: f64,
    behind: f64,
    rank: usize,
}

impl<'a> Solver<'a> {
    /// A solver that knows of the groups that exist. `None`: there are too few disks.
    pub(crate) fn new<'g>(
        domains: &'a Domains,
        profile: Profile,
        groups: impl Iterator<Item = &'g PlacementGroup>,
    ) -> Option<Self> {
        let bounds = domains.bounds(profile)?;
        let numbered = || domains.homes.iter().enumerate();
        let mut solver = Self {
            domains,
            profile,
            bounds,
            shares: domains.shares(profile, bounds),
            slots: vec![0; domains.homes.len()],
            groups: 0,
            ring: Ring::new(numbered().map(|(at, home)| (Fixed(home.disk.0.to_be_bytes()), at))),
            at: numbered().map(|(at, home)| (home.disk, at)).collect(),
            takes: vec![true; domains.homes.len()],
        };
        for group in groups {
            solver.groups += 1;
            group
                .homes
                .iter()
                .filter_map(|disk| solver.at.get(disk))
                .for_each(|&at| solver.slots[at] += 1);
        }
        Some(solver)
    }

    /// Only these disks take slots from now on.
    pub(crate) fn only_to(&mut self, takes: &dyn Fn(DiskId) -> bool) {
        self.takes = self.domains.homes.iter().map(|home| takes(home.disk)).collect();
    }

    /// Whether a disk takes slots.
    pub(crate) fn takes(&self, at: usize) -> bool {
        self.takes[at]
    }

    /// Slots that a disk lacks of its share of all groups so far; negative: it has more.
    pub(crate) fn behind(&self, at: usize) -> f64 {
        self.shares[at] * count(self.groups) - count(self.slots[at])
    }

    pub(crate) fn disks(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn share(&self, at: usize) -> f64 {
        self.shares[at]
    }

    pub(crate) fn slots(&self, at: usize) -> usize {
        self.slots[at]
    }

    pub(crate) fn groups(&self) -> usize {
        self.groups
    }

    pub(crate) fn disk(&self, at: usize) -> DiskId {
        self.domains.homes[at].disk
    }

    pub(crate) fn index_of(&self, disk: DiskId) -> Option<usize> {
        self.at.get(&disk).copied()
    }

    /// Makes the homes of a new group.
    pub(crate) fn fill(&mut self, id: PgId) -> Vec<DiskId> {
        self.groups += 1;
        let ranks = self.ranks(id);
        let mut chosen: Vec<usize> = Vec::with_capacity(usize::from(self.profile.width()));
        for _ in 0..self.profile.width() {
            let at = self.pick(&chosen, &ranks).expect("the bounds leave room for every slot");
            self.slots[at] += 1;
            chosen.push(at);
        }
        // picked in the order of need: the ring's order keeps data slots from favouring the hungry
        chosen.sort_by_key(|&at| ranks[at]);
        chosen.into_iter().map(|at| self.domains.homes[at].disk).collect()
    }

    /// A new home for one slot of a group whose other homes stay, and its books are kept.
    pub(crate) fn replace(&mut self, id: PgId, others: &[usize]) -> Option<usize> {
        let at = self.pick(others, &self.ranks(id))?;
        self.slots[at] += 1;
        Some(at)
    }

    /// Takes a slot from a disk's books.
    pub(crate) fn give_up(&mut self, at: usize) {
        self.slots[at] -= 1;
    }

    /// Writes a slot into a disk's books.
    pub(crate) fn take(&mut self, at: usize) {
        self.slots[at] += 1;
    }

    /// Whether a group of `others` may take this disk too.
    pub(crate) fn may_join(&self, at: usize, others: &[usize]) -> bool {
        let home = &self.domains.homes[at];
        self.takes[at]
            && !others.contains(&at)
            && self.zone_has_room(home.zone, others)
            && self.node_has_room(home.node, others)
    }

    fn ranks(&self, id: PgId) -> Vec<usize> {
        let mut ranks = vec![usize::MAX; self.domains.homes.len()];
        let order = self.ring.preference(Fixed(u128::from(id.0).to_be_bytes()));
        order.enumerate().for_each(|(rank, &at)| ranks[at] = rank);
        ranks
    }

    fn pick(&self, chosen: &[usize], ranks: &[usize]) -> Option<usize> {
        let zones = (0..self.domains.zones.len()).filter(|&zone| self.zone_has_room(zone, chosen));
        let zone = prefer(zones.map(|zone| self.candidate(zone, self.disks_of_zone(zone), ranks)))?;
        let nodes = self.domains.zones[zone].iter().copied();
        let nodes = nodes.filter(|&node| self.node_has_room(node, chosen));
        let node = prefer(nodes.map(|node| self.candidate(node, self.disks_of(node), ranks)))?;
        let disks = self.disks_of(node).filter(|at| !chosen.contains(at));
        prefer(disks.map(|at| self.candidate(at, std::iter::once(at), ranks)))
    }

    fn candidate(
        &self,
        member: usize,
        disks: impl Iterator<Item = usize>,
        ranks: &[usize],
    ) -> Candidate {
        let start = Candidate { member, share: 0.0, behind: 0.0, rank: usize::MAX };
        disks.fold(start, |sum, at| Candidate {
            share: sum.share + self.shares[at],
            behind: sum.behind + self.behind(at),
            rank: sum.rank.min(ranks[at]),
            ..sum
        })
    }

    fn disks_of_zone(&self, zone: usize) -> impl Iterator<Item = usize> {
        self.domains.zones[zone].iter().flat_map(|&node| self.disks_of(node))
    }

    /// The disks of a node that take slots.
    fn disks_of(&self, node: usize) -> impl Iterator<Item = usize> {
        self.domains.nodes[node].iter().copied().filter(|&at| self.takes[at])
    }

    fn zone_has_room(&self, zone: usize, chosen: &[usize]) -> bool {
        let here = chosen.iter().filter(|&&at| self.domains.homes[at].zone == zone).count();
        let nodes = || self.domains.zones[zone].iter();
        here < self.bounds.in_zone && nodes().any(|&node| self.node_has_room(node, chosen))
    }

    fn node_has_room(&self, node: usize, chosen: &[usize]) -> bool {
        let here = chosen.iter().filter(|&&at| self.domains.homes[at].node == node).count();
        here < self.bounds.in_node && self.disks_of(node).any(|at| !chosen.contains(&at))
    }
}

/// The hungriest, if one is hungry; else the first of the ring that is not ahead of its share; else the one that is least
/// ahead for its share: what others have no room for is spread by weight too.
fn prefer(candidates: impl Iterator<Item = Candidate>) -> Option<usize> {
    let key = |one: &Candidate| {
        let (class, need) = match one.behind {
            behind if behind >= HUNGRY_SLOTS => (0, -behind),
            behind if behind > 0.0 => (1, 0.0),
            behind => (2, -behind / one.share.max(f64::MIN_POSITIVE)),
        };
        (class, need, one.rank)
    };
    let before = |a: &Candidate, b: &Candidate| {
        let ((a_class, a_need, a_rank), (b_class, b_need, b_rank)) = (key(a), key(b));
        a_class.cmp(&b_class).then(a_need.total_cmp(&b_need)).then(a_rank.cmp(&b_rank))
    };
    candidates.min_by(before).map(|one| one.member)
}
