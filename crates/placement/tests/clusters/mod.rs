//! Clusters for tests, and the changes that a root would make to them.

use ashlar_placement::{Settings, extend, validate};
use ashlar_types::{
    ClusterId, ClusterMap, Disk, DiskId, DiskState, Epoch, Node, NodeId, PlacementDiff, Role,
};

pub(crate) const TB: u64 = 1_000_000_000_000;

/// A cluster: zones of nodes of disks, each disk by its terabytes.
pub(crate) fn cluster(zones: &[Vec<Vec<u64>>]) -> ClusterMap {
    let mut map = ClusterMap { cluster: ClusterId(1), epoch: Epoch(1), ..ClusterMap::default() };
    for (zone, nodes) in zones.iter().enumerate() {
        for disks in nodes {
            let id = NodeId(u64::try_from(map.nodes.len()).expect("few") + 1);
            add_node(&mut map, id, &format!("zone {zone}"));
            for &terabytes in disks {
                add_disk(&mut map, id, terabytes);
            }
        }
    }
    map
}

pub(crate) fn add_node(map: &mut ClusterMap, id: NodeId, zone: &str) {
    let node = Node {
        id,
        name: id.to_string(),
        zone: zone.to_owned(),
        address: String::new(),
        roles: vec![Role::Data],
        incarnation: 1,
    };
    map.nodes.insert(id, node);
}

pub(crate) fn add_disk(map: &mut ClusterMap, node: NodeId, terabytes: u64) -> DiskId {
    let id = DiskId(0x5eed_0000 + u128::try_from(map.disks.len()).expect("few"));
    let disk = Disk {
        id,
        node,
        capacity_bytes: terabytes * TB,
        incarnation: 1,
        state: DiskState::Healthy,
    };
    map.disks.insert(id, disk);
    id
}

pub(crate) fn apply(map: &mut ClusterMap, diff: &PlacementDiff) {
    assert_eq!(diff.base, map.epoch);
    for group in &diff.added {
        assert!(map.groups.insert(group.id, group.clone()).is_none(), "{} is not new", group.id);
    }
    for &(id, slot, disk) in &diff.moved {
        map.groups.get_mut(&id).expect("known").homes[usize::from(slot.0)] = disk;
    }
    diff.closed.iter().for_each(|id| map.groups.get_mut(id).expect("known").open = false);
    map.wide = diff.wide.or(map.wide);
    map.epoch = map.epoch.next();
    assert_eq!(validate(map), Ok(()));
}

pub(crate) fn planned(mut map: ClusterMap) -> ClusterMap {
    let diff = extend(&map, &Settings::default()).expect("there are disks without groups");
    apply(&mut map, &diff);
    map
}

pub(crate) fn demo() -> ClusterMap {
    planned(cluster(&[
        vec![vec![4, 4], vec![4, 4]],
        vec![vec![4, 4], vec![4, 4]],
        vec![vec![4, 4], vec![4, 4]],
    ]))
}
