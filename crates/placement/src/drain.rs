//! What it would mean that disks are emptied: which slots go where, what cannot go anywhere, and how many more nodes and
//! zones each group survives before and after. Pure: whoever asks says so to an operator before anything is changed.

use crate::plan::moves;
use crate::schedule::settled;
use ashlar_types::{ClusterMap, DiskId, DiskState, NodeId, PgId, PlacementGroup, Slot};
use std::collections::{BTreeMap, BTreeSet};

/// How many groups survive the loss of how many domains, whichever they are.
pub type Survival = BTreeMap<usize, usize>;

/// What emptying disks would mean.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DrainForecast {
    /// Slots that leave, and the disks to which they go.
    pub leaving: Vec<(PgId, Slot, DiskId)>,
    /// Slots for which no disk is left that keeps to the rules of placement.
    pub stuck: Vec<(PgId, Slot)>,
    /// Groups by the nodes whose loss they survive, before and after.
    pub nodes: [Survival; 2],
    /// Groups by the zones whose loss they survive, before and after.
    pub zones: [Survival; 2],
    /// Groups that survive the loss of any node now, and would not.
    pub node_risks: usize,
    /// Groups that survive the loss of any zone now, and would not.
    pub zone_risks: usize,
}

/// Computes it for disks that are to be emptied together, to those that take slots.
pub fn drain_forecast(
    map: &ClusterMap,
    disks: &BTreeSet<DiskId>,
    takes: &dyn Fn(DiskId) -> bool,
) -> DrainForecast {
    let before = settled(map);
    let mut after = before.clone();
    for disk in after.disks.values_mut().filter(|disk| disks.contains(&disk.id)) {
        if disk.state.is_read() {
            disk.state = DiskState::Draining;
        }
    }
    let mut forecast = DrainForecast::default();
    // only what must leave: nothing is evened out
    for (id, slot, to) in moves(&after, f64::INFINITY, takes) {
        let Some(group) = after.groups.get_mut(&id) else { continue };
        let home = &mut group.homes[usize::from(slot.0)];
        if disks.contains(home) {
            forecast.leaving.push((id, slot, to));
        }
        *home = to;
    }
    for group in after.groups.values() {
        let places = group.profile.slots().zip(&group.homes);
        let stays = places.filter(|(_, home)| disks.contains(home));
        forecast.stuck.extend(stays.map(|(slot, _)| (group.id, slot)));
    }
    let groups = before.groups.values().zip(after.groups.values());
    for (old, new) in groups {
        let nodes = [old, new].map(|group| survives(map, group, node_of));
        let zones = [old, new].map(|group| survives(map, group, zone_of));
        for at in 0..2 {
            *forecast.nodes[at].entry(nodes[at]).or_default() += 1;
            *forecast.zones[at].entry(zones[at]).or_default() += 1;
        }
        forecast.node_risks += usize::from(nodes[0] > 0 && nodes[1] == 0);
        forecast.zone_risks += usize::from(zones[0] > 0 && zones[1] == 0);
    }
    forecast
}

fn node_of(map: &ClusterMap, disk: DiskId) -> Option<NodeId> {
    map.disks.get(&disk).map(|disk| disk.node)
}

fn zone_of(map: &ClusterMap, disk: DiskId) -> Option<&str> {
    map.nodes.get(&node_of(map, disk)?).map(|node| node.zone.as_str())
}

/// How many domains may be lost, those first that have most slots. What lies on dead disks is lost already.
fn survives<'a, D: Ord>(
    map: &'a ClusterMap,
    group: &PlacementGroup,
    domain_of: impl Fn(&'a ClusterMap, DiskId) -> Option<D>,
) -> usize {
    let mut slots: BTreeMap<D, usize> = BTreeMap::new();
    let mut dead = 0;
    for &home in &group.homes {
        match domain_of(map, home).filter(|_| map.is_read(home)) {
            Some(domain) => *slots.entry(domain).or_default() += 1,
            None => dead += 1,
        }
    }
    let mut spare = usize::from(group.profile.parity).checked_sub(dead);
    let mut by_size: Vec<usize> = slots.into_values().collect();
    by_size.sort_unstable_by(|a, b| b.cmp(a));
    let lost = by_size.into_iter().take_while(|&slots| {
        spare = spare.and_then(|spare| spare.checked_sub(slots));
        spare.is_some()
    });
    lost.count()
}
