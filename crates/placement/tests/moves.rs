//! Which moves begin, and in which order: the most urgent first, few on one disk, none that cannot be copied, none to a
//! disk without room; and that all of them end where every slot has a home.

mod clusters;

use ashlar_placement::{MoveLimits, Reach, are_moves_left, schedule, validate};
use ashlar_types::{ClusterMap, DiskId, DiskState, PlacementGroup, Profile, SlotMove};
use clusters::{add_disk, add_node, cluster, demo, planned};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Disks that are away, and disks that have no room.
#[derive(Default)]
struct Known {
    away: BTreeSet<DiskId>,
    full: BTreeSet<DiskId>,
}

impl Reach for Known {
    fn is_there(&self, disk: DiskId) -> bool {
        !self.away.contains(&disk)
    }

    fn takes(&self, disk: DiskId) -> bool {
        !self.away.contains(&disk) && !self.full.contains(&disk)
    }
}

fn all_there() -> Known {
    Known::default()
}

fn set(map: &mut ClusterMap, disk: DiskId, state: DiskState) {
    map.disks.get_mut(&disk).expect("known").state = state;
}

fn begin(map: &mut ClusterMap, step: SlotMove) {
    let group = map.groups.get_mut(&step.group).expect("known");
    assert_eq!(group.epoch, step.epoch);
    (group.moving, group.epoch) = (Some((step.slot, step.to)), group.epoch.next());
}

/// As when the copy is done.
fn switch(group: &mut PlacementGroup) {
    let Some((slot, to)) = group.moving.take() else { return };
    group.homes[usize::from(slot.0)] = to;
    group.epoch = group.epoch.next();
}

/// Begins and ends moves until none is left; tells how many there were.
fn work_off(map: &mut ClusterMap, known: &Known) -> usize {
    let mut moved = 0;
    loop {
        let steps = schedule(map, MoveLimits::default(), known);
        if steps.is_empty() {
            return moved;
        }
        moved += steps.len();
        assert!(moved < 100_000, "moves do not end");
        steps.into_iter().for_each(|step| begin(map, step));
        map.groups.values_mut().for_each(switch);
        assert_eq!(validate(map), Ok(()));
    }
}

fn homes_on(map: &ClusterMap, disk: DiskId) -> usize {
    map.groups.values().filter(|group| group.homes.contains(&disk)).count()
}

fn some_disk(map: &ClusterMap) -> DiskId {
    *map.disks.keys().next().expect("there are disks")
}

#[test]
fn where_all_have_their_share_nothing_moves() {
    let map = demo();
    assert_eq!(schedule(&map, MoveLimits::default(), &all_there()), []);
    assert!(!are_moves_left(&map));
}

#[test]
fn a_disk_that_drains_is_emptied_and_few_slots_leave_it_at_once() {
    let mut map = demo();
    let disk = some_disk(&map);
    let before = homes_on(&map, disk);
    set(&mut map, disk, DiskState::Draining);
    let steps = schedule(&map, MoveLimits::default(), &all_there());
    assert_eq!(steps.len(), MoveLimits::default().from_a_disk);
    steps.into_iter().for_each(|step| begin(&mut map, step));
    assert_eq!(schedule(&map, MoveLimits::default(), &all_there()), [], "what moves counts");
    map.groups.values_mut().for_each(switch);
    let moved = 2 + work_off(&mut map, &all_there());
    assert_eq!((homes_on(&map, disk), moved), (0, before), "and nothing else moves");
    assert!(!are_moves_left(&map));
}

#[test]
fn what_is_lost_comes_before_what_is_drained() {
    let mut map = demo();
    let disks: Vec<DiskId> = map.disks.keys().copied().collect();
    set(&mut map, disks[0], DiskState::Draining);
    set(&mut map, disks[5], DiskState::Dead);
    let one = MoveLimits { to_a_disk: 1, from_a_disk: 1 };
    let steps = schedule(&map, one, &all_there());
    let leaves = |step: &SlotMove| map.groups[&step.group].homes[usize::from(step.slot.0)];
    assert_eq!(leaves(&steps[0]), disks[5]);
    let mut targets = BTreeMap::new();
    steps.iter().for_each(|step| *targets.entry(step.to).or_insert(0) += 1);
    assert!(targets.values().all(|&count| count == 1), "{targets:?}");
}

#[test]
fn a_disk_without_room_gets_nothing_and_others_take_its_part() {
    let mut map = demo();
    let disks: Vec<DiskId> = map.disks.keys().copied().collect();
    set(&mut map, disks[0], DiskState::Dead);
    // all of one node but the lost one, and one of each other node
    let known = Known { full: [disks[2], disks[5], disks[7]].into(), ..Known::default() };
    let before: Vec<usize> = disks.iter().map(|&disk| homes_on(&map, disk)).collect();
    work_off(&mut map, &known);
    assert_eq!(homes_on(&map, disks[0]), 0);
    for at in [2, 5, 7] {
        assert_eq!(homes_on(&map, disks[at]), before[at], "it keeps what it has");
    }
}

#[test]
fn a_new_disk_gets_its_share_once_it_takes_shards() {
    let mut map = planned(cluster(&[vec![vec![4], vec![4], vec![4], vec![4]]]));
    add_node(&mut map, ashlar_types::NodeId(9), "zone 0");
    let new = add_disk(&mut map, ashlar_types::NodeId(9), 4);
    let full = Known { full: [new].into(), ..Known::default() };
    assert_eq!(schedule(&map, MoveLimits::default(), &full), []);
    work_off(&mut map, &all_there());
    let groups = map.groups_of(Profile::RS_2_1).count();
    let share = groups * 3 / 5;
    let has = map.groups_of(Profile::RS_2_1).filter(|group| group.homes.contains(&new)).count();
    // moves that all end at once leave it what alone would not make data move
    assert!(has.abs_diff(share) <= 6, "{has} of {share}");
}

#[test]
fn a_move_begins_only_if_enough_lists_and_sources_can_be_reached() {
    let mut map = planned(cluster(&[vec![vec![4], vec![4], vec![4], vec![4], vec![4]]]));
    let disks: Vec<DiskId> = map.disks.keys().copied().collect();
    set(&mut map, disks[0], DiskState::Dead);
    let known = Known { away: [disks[1]].into(), ..Known::default() };
    for step in schedule(&map, MoveLimits { to_a_disk: 999, from_a_disk: 999 }, &known) {
        let group = &map.groups[&step.group];
        let others = group.homes.iter().filter(|&&home| home != disks[0]);
        let there = others.filter(|&&home| home != disks[1]).count();
        assert!(there >= usize::from(group.profile.data.max(group.profile.parity)), "{group:?}");
        assert_ne!(step.to, disks[1]);
    }
    // what only the dead disk has: nothing can be computed, and nobody waits for it
    let mut alone = planned(cluster(&[vec![vec![4]]]));
    add_node(&mut alone, ashlar_types::NodeId(9), "zone 0");
    add_disk(&mut alone, ashlar_types::NodeId(9), 4);
    let first = some_disk(&alone);
    set(&mut alone, first, DiskState::Dead);
    assert_eq!(schedule(&alone, MoveLimits::default(), &all_there()), []);
    assert!(!are_moves_left(&alone));
}

#[test]
fn where_the_target_is_lost_the_slot_goes_elsewhere() {
    let mut map = demo();
    let disk = some_disk(&map);
    set(&mut map, disk, DiskState::Draining);
    let step = schedule(&map, MoveLimits::default(), &all_there())[0];
    begin(&mut map, step);
    set(&mut map, step.to, DiskState::Dead);
    let again = schedule(&map, MoveLimits { to_a_disk: 999, from_a_disk: 999 }, &all_there());
    let other = again.iter().find(|other| other.group == step.group).expect("it goes on");
    assert_eq!(other.slot, step.slot);
    assert_ne!(other.to, step.to);
}

#[test]
fn where_the_slot_need_not_leave_a_move_to_a_lost_disk_is_taken_back() {
    let mut map = planned(cluster(&[vec![vec![4], vec![4], vec![4]]]));
    let node = ashlar_types::NodeId(1);
    let new = add_disk(&mut map, node, 4);
    let step = schedule(&map, MoveLimits::default(), &all_there())[0];
    assert_eq!(step.to, new);
    let home = map.groups[&step.group].homes[usize::from(step.slot.0)];
    begin(&mut map, step);
    set(&mut map, new, DiskState::Dead);
    assert!(are_moves_left(&map));
    let back = schedule(&map, MoveLimits::default(), &all_there());
    let epoch = step.epoch.next();
    assert_eq!(back, [SlotMove { to: home, epoch, ..step }], "there is no other place for it");
}

proptest! {
    /// Whatever dies, drains, joins and has no room: moves end, and what is left where it should not be has no other
    /// place.
    #[test]
    fn moves_end(
        sizes in prop::collection::vec(1_u64..9, 4..9),
        states in prop::collection::vec(0_u8..6, 4..9),
        joining in 0_usize..3,
    ) {
        let mut map = planned(cluster(&[sizes.iter().map(|&size| vec![size]).collect()]));
        for at in 0..joining {
            let id = ashlar_types::NodeId(100 + u64::try_from(at).expect("few"));
            add_node(&mut map, id, "zone 0");
            add_disk(&mut map, id, 8);
        }
        let disks: Vec<DiskId> = map.disks.keys().copied().collect();
        let mut known = Known::default();
        for (&disk, state) in disks.iter().zip(states) {
            match state {
                0 => set(&mut map, disk, DiskState::Dead),
                1 => set(&mut map, disk, DiskState::Draining),
                2 => drop(known.full.insert(disk)),
                _ => {}
            }
        }
        let before: BTreeMap<DiskId, usize> =
            disks.iter().map(|&disk| (disk, homes_on(&map, disk))).collect();
        work_off(&mut map, &known);
        for disk in &known.full {
            prop_assert!(homes_on(&map, *disk) <= before[disk], "it takes nothing");
        }
        prop_assert!(map.groups.values().all(|group| group.moving.is_none()));
        prop_assert!(!known.full.is_empty() || !are_moves_left(&map), "what can move has moved");
    }
}
