//! Whether a node can be stopped: what would be unreadable or unwritable meanwhile, and which margins would fall.
//!
//! What is readable comes from the last audit; who answers now, from now.

use super::durability::{Count, Histogram};
use super::report::AuditReport;
use ashlar_types::{ClusterMap, DiskState, NodeId, PlacementGroup, Role};
use serde::Serialize;
use std::collections::BTreeSet;

/// What stopping a node would mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CanStop {
    /// The node.
    pub node: NodeId,
    /// Why not; empty: it can be stopped.
    pub refusals: Vec<String>,
    /// What to know before.
    pub remarks: Vec<String>,
}

impl CanStop {
    /// Judges by a report, and by the nodes that answer now.
    pub fn judge(
        report: &AuditReport,
        map: &ClusterMap,
        answering: &BTreeSet<NodeId>,
        node: NodeId,
    ) -> Self {
        let left: BTreeSet<NodeId> = answering.iter().copied().filter(|&id| id != node).collect();
        let mut refusals = Vec::new();
        let unreadable = report.durability.unreadable_without(node);
        if unreadable.objects > 0 {
            refusals.push(format!(
                "{} objects ({} bytes) would be unreadable while it is down",
                unreadable.objects, unreadable.bytes
            ));
        }
        if report.without_majority.contains(&node) {
            refusals.push(
                "metadata would have no majority: nothing could be read or written".to_owned(),
            );
        }
        if !is_writable(map, &left) && is_writable(map, answering) {
            refusals.push("no placement group would take writes".to_owned());
        }
        let has = |nodes: &BTreeSet<NodeId>, role| {
            let with_role = |id| map.nodes.get(id).is_some_and(|node| node.roles.contains(&role));
            nodes.iter().any(with_role)
        };
        if has(answering, Role::Gateway) && !has(&left, Role::Gateway) {
            refusals.push("no gateway would be left".to_owned());
        }
        if report.shards.unknown > 0 && refusals.is_empty() {
            refusals.extend(unknown(report, map, node));
        }
        Self { node, refusals, remarks: remarks(report, node) }
    }

    /// Whether nothing speaks against it.
    pub fn can(&self) -> bool {
        self.refusals.is_empty()
    }
}

/// Shards of which nobody knows are counted as absent already; they are worth a word only where their node is meant.
fn unknown(report: &AuditReport, map: &ClusterMap, node: NodeId) -> Option<String> {
    let silent = report.silent.iter().any(|silent| silent.node == node);
    let known = map.nodes.contains_key(&node) && !silent;
    (!known).then(|| "it has disks that did not answer the last audit".to_owned())
}

fn remarks(report: &AuditReport, node: NodeId) -> Vec<String> {
    let none = Histogram::new();
    let with = report.durability.with_stopped.get(&node).unwrap_or(&none);
    let before = report.durability.before_stop.get(&node).unwrap_or(&none);
    let at = |margins: &Histogram, margin: i16| margins.get(&margin).copied().unwrap_or_default();
    let (risky, risky_before): (Count, Count) = (at(with, 0), at(before, 0));
    let touched: u64 = with.values().map(|count| count.objects).sum();
    let mut remarks = vec![format!(
        "{touched} of {} objects have something on it",
        report.durability.all.objects
    )];
    if risky.objects > 0 {
        remarks.push(format!(
            "{} of them would not survive the failure of one more node while it is down ({} do not now)",
            risky.objects, risky_before.objects
        ));
    }
    remarks
}

/// Whether some group of some profile has homes enough on these nodes for a write to be acknowledged.
fn is_writable(map: &ClusterMap, nodes: &BTreeSet<NodeId>) -> bool {
    let takes = |group: &PlacementGroup| {
        let live = group.homes.iter().filter_map(|disk| map.disks.get(disk));
        let live = live.filter(|disk| disk.state == DiskState::Healthy);
        let live = live.filter(|disk| nodes.contains(&disk.node)).count();
        group.open && live >= usize::from(group.profile.acks_min())
    };
    map.groups.values().any(takes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_types::{Disk, DiskId, Epoch, Node, PgId, Profile};

    fn cluster(nodes: u64, width: usize, profile: Profile) -> ClusterMap {
        let mut map = ClusterMap::default();
        for id in 1..=nodes {
            let roles = if id == 1 { vec![Role::Gateway] } else { vec![] };
            let node = Node {
                id: NodeId(id),
                name: id.to_string(),
                zone: "z".to_owned(),
                address: String::new(),
                roles,
                incarnation: 1,
            };
            map.nodes.insert(node.id, node);
            let disk = Disk {
                id: DiskId(u128::from(id)),
                node: NodeId(id),
                capacity_bytes: 1,
                incarnation: 1,
                state: DiskState::Healthy,
            };
            map.disks.insert(disk.id, disk);
        }
        let group = PlacementGroup {
            id: PgId(1),
            profile,
            epoch: Epoch(1),
            homes: map.disks.keys().copied().take(width).collect(),
            moving: None,
            open: true,
        };
        map.groups.insert(group.id, group);
        map
    }

    fn report() -> AuditReport {
        AuditReport::default()
    }

    #[test]
    fn nothing_speaks_against_a_node_without_which_all_goes_on() {
        let map = cluster(4, 3, Profile::RS_1_2);
        let all: BTreeSet<NodeId> = (1..=4).map(NodeId).collect();
        let verdict = CanStop::judge(&report(), &map, &all, NodeId(2));
        assert!(verdict.can(), "{verdict:?}");
        let gateway = CanStop::judge(&report(), &map, &all, NodeId(1));
        assert_eq!(gateway.refusals, ["no gateway would be left"]);
    }

    #[test]
    fn what_would_be_unreadable_or_unwritable_is_said() {
        let map = cluster(3, 3, Profile::RS_1_2);
        let two: BTreeSet<NodeId> = [1, 2].map(NodeId).into();
        let mut report = report();
        report.without_majority.push(NodeId(2));
        let node = NodeId(2);
        let count = Count { objects: 3, bytes: 9 };
        report.durability.with_stopped.entry(node).or_default().insert(-1, count);
        let verdict = CanStop::judge(&report, &map, &two, node);
        assert_eq!(verdict.refusals.len(), 3, "{verdict:?}");
        assert!(verdict.refusals[0].starts_with("3 objects (9 bytes)"));
    }
}
