//! Which group an extent gets: spread by id, by live homes, by free space; and little changes when groups are appended.

use ashlar_placement::Chooser;
use ashlar_types::{ClusterMap, DiskId, Epoch, ExtentId, PgId, PlacementGroup, Profile, SessionId};
use std::collections::BTreeMap;

/// Groups of 2+1, each on three disks of its own.
fn map_of(groups: u32) -> ClusterMap {
    let mut map = ClusterMap::default();
    for id in 0..groups {
        let homes = (0..3).map(|slot| DiskId(u128::from(id) * 10 + slot)).collect();
        let group = PlacementGroup {
            id: PgId(id),
            profile: Profile::RS_2_1,
            epoch: Epoch(1),
            homes,
            moving: None,
            open: true,
        };
        map.groups.insert(PgId(id), group);
    }
    map
}

fn extent(counter: u64) -> ExtentId {
    ExtentId { session: SessionId(7), counter }
}

fn group_of(disk: DiskId) -> u128 {
    disk.0 / 10
}

#[test]
fn extents_spread_over_the_groups() {
    let chooser = Chooser::new(&map_of(16));
    let mut counts: BTreeMap<PgId, u32> = BTreeMap::new();
    for at in 0..16_000 {
        let group =
            chooser.choose(extent(at), Profile::RS_2_1, &|_| true, &|_| 1000).expect("all live");
        *counts.entry(group.id).or_default() += 1;
    }
    assert_eq!(counts.len(), 16);
    assert!(counts.values().all(|count| (300..3000).contains(count)), "{counts:?}");
}

#[test]
fn live_groups_come_first_then_those_with_enough_then_none() {
    let chooser = Chooser::new(&map_of(4));
    let choose = |live: &dyn Fn(DiskId) -> bool| {
        chooser.choose(extent(1), Profile::RS_2_1, live, &|_| 1000).map(|group| group.id)
    };
    assert_eq!(choose(&|disk| group_of(disk) == 2), Some(PgId(2)));
    assert_eq!(
        choose(&|disk| group_of(disk) == 2 && disk.0 % 10 != 0),
        None,
        "2 of 3 live, k+1 are 3"
    );
    assert_eq!(chooser.choose(extent(1), Profile::RS_4_2, &|_| true, &|_| 1000), None);
    let copies = |mut map: ClusterMap| {
        map.groups.values_mut().for_each(|group| group.profile = Profile::RS_1_2);
        Chooser::new(&map)
    };
    let chooser = copies(map_of(4));
    let short = chooser.choose(
        extent(1),
        Profile::RS_1_2,
        &|disk| group_of(disk) == 3 && disk.0 % 10 != 0,
        &|_| 1000,
    );
    assert_eq!(
        short.map(|group| group.id),
        Some(PgId(3)),
        "two copies of three are enough to write"
    );
}

#[test]
fn full_and_closed_groups_take_nothing_and_fuller_ones_take_less() {
    let mut map = map_of(4);
    map.groups.get_mut(&PgId(3)).expect("there").open = false;
    let chooser = Chooser::new(&map);
    let free = |disk: DiskId| match group_of(disk) {
        0 => 0,
        1 => 100,
        _ => 900,
    };
    let mut counts = [0_u32; 4];
    for at in 0..4000 {
        let group =
            chooser.choose(extent(at), Profile::RS_2_1, &|_| true, &free).expect("two have room");
        counts[usize::try_from(group.id.0).expect("small")] += 1;
    }
    assert_eq!((counts[0], counts[3]), (0, 0));
    assert!(counts[1] > 100 && counts[1] * 3 < counts[2], "{counts:?}");
}

#[test]
fn appended_groups_take_their_part_from_all_and_nothing_else_changes() {
    let (old, new) = (Chooser::new(&map_of(16)), Chooser::new(&map_of(20)));
    let choose = |chooser: &Chooser, at| {
        chooser.choose(extent(at), Profile::RS_2_1, &|_| true, &|_| 1000).expect("all live").id
    };
    let changed: Vec<PgId> = (0..4000)
        .filter(|&at| choose(&old, at) != choose(&new, at))
        .map(|at| choose(&new, at))
        .collect();
    assert!(changed.iter().all(|id| id.0 >= 16), "an extent only ever goes to a new group instead");
    assert!(
        (300..1700).contains(&changed.len()),
        "{} of 4000 changed, a fifth is expected",
        changed.len()
    );
}

#[test]
fn the_order_of_the_ring_is_frozen() {
    let order: Vec<u32> = Chooser::new(&map_of(6))
        .preference(extent(1), Profile::RS_2_1)
        .map(|group| group.id.0)
        .collect();
    assert_eq!(order, [3, 4, 0, 5, 1, 2]);
}
