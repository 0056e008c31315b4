//! The cluster map that tests of disks begin with.

use ashlar_types::{ClusterMap, Disk, DiskId, DiskState, Node, NodeId, Role};

/// Nodes of two disks each, by their zones: node n has the disks 10n and 10n + 1. There are no groups yet.
pub(crate) fn two_disk_nodes(zones: &[&str]) -> ClusterMap {
    let mut map = ClusterMap::default();
    for (id, zone) in (1..).zip(zones) {
        let node = Node {
            id: NodeId(id),
            name: id.to_string(),
            zone: (*zone).to_owned(),
            address: String::new(),
            roles: vec![Role::Data],
            incarnation: 1,
        };
        map.nodes.insert(node.id, node);
        for disk in [10 * id, 10 * id + 1] {
            let disk = Disk {
                id: DiskId(disk.into()),
                node: NodeId(id),
                capacity_bytes: 1 << 40,
                incarnation: 1,
                state: DiskState::Healthy,
            };
            map.disks.insert(disk.id, disk);
        }
    }
    map
}

/// Puts a disk into a state.
pub(crate) fn set(map: &mut ClusterMap, disk: u128, state: DiskState) {
    map.disks.get_mut(&DiskId(disk)).expect("known").state = state;
}
