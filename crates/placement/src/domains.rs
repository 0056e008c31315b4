//! Zones, nodes and disks as a solver needs them: how many slots of a group each may have, and which share is its own.
//!
//! A group keeps to two bounds: `in_zone` slots a zone, `in_node` slots a node. They are the smallest that the cluster
//! allows, preferring those under which the loss of any zone costs at most m slots. Shares follow capacity, capped by
//! what the bounds leave: 4+2 on three zones gives each zone a third, whatever it weighs.

use ashlar_types::{ClusterMap, DiskId, DiskState, NodeId, Profile};
use std::collections::BTreeMap;

/// A disk that takes shards.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    pub(crate) disk: DiskId,
    /// Index of its node.
    pub(crate) node: usize,
    /// Index of its zone.
    pub(crate) zone: usize,
    pub(crate) weight: f64,
}

/// The disks that take shards, with their nodes and zones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Domains {
    pub(crate) homes: Vec<Home>,
    /// The disks of each node.
    pub(crate) nodes: Vec<Vec<usize>>,
    /// The nodes of each zone.
    pub(crate) zones: Vec<Vec<usize>>,
}

/// How many slots of one group a zone and a node may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) in_zone: usize,
    pub(crate) in_node: usize,
}

impl Domains {
    /// The healthy disks of a map.
    pub(crate) fn of(map: &ClusterMap) -> Self {
        let mut domains = Self::default();
        let mut zones: BTreeMap<&str, usize> = BTreeMap::new();
        let mut nodes: BTreeMap<NodeId, usize> = BTreeMap::new();
        for disk in map.disks.values().filter(|disk| disk.state == DiskState::Healthy) {
            let Some(node) = map.nodes.get(&disk.node) else { continue };
            let zone = *zones.entry(&node.zone).or_insert_with(|| {
                domains.zones.push(Vec::new());
                domains.zones.len() - 1
            });
            let at = *nodes.entry(node.id).or_insert_with(|| {
                domains.nodes.push(Vec::new());
                domains.zones[zone].push(domains.nodes.len() - 1);
                domains.nodes.len() - 1
            });
            domains.nodes[at].push(domains.homes.len());
            // a capacity of 0 is a disk that could not say: it weighs next to nothing, but not nothing
            let weight = to_f64(disk.capacity_bytes.max(1));
            domains.homes.push(Home { disk: disk.id, node: at, zone, weight });
        }
        domains
    }

    /// How many slots a zone has room for when each node takes `in_node`.
    fn zone_room(&self, zone: usize, in_node: usize) -> usize {
        self.zones[zone].iter().map(|&node| self.nodes[node].len().min(in_node)).sum()
    }

    fn room(&self, bounds: Bounds) -> usize {
        (0..self.zones.len())
            .map(|zone| self.zone_room(zone, bounds.in_node).min(bounds.in_zone))
            .sum()
    }

    /// The tightest bounds under which a group finds its homes. `None`: there are too few disks.
    pub(crate) fn bounds(&self, profile: Profile) -> Option<Bounds> {
        let width = usize::from(profile.width());
        let even = width.div_ceil(self.zones.len().max(1));
        let tightest = |in_node: usize| {
            let fits = |&in_zone: &usize| self.room(Bounds { in_zone, in_node }) >= width;
            (even..=width).find(fits).map(|in_zone| Bounds { in_zone, in_node })
        };
        let all: Vec<Bounds> = (1..=width).filter_map(tightest).collect();
        let survives = |bounds: &&Bounds| bounds.in_zone <= usize::from(profile.parity);
        // one node a slot comes first, unless only sharing nodes lets a zone be lost
        all.iter().find(survives).or_else(|| all.first()).copied()
    }

    /// Slots of an average group that each disk takes: they sum up to the width.
    pub(crate) fn shares(&self, profile: Profile, bounds: Bounds) -> Vec<f64> {
        let weight_of_node =
            |&node: &usize| self.nodes[node].iter().map(|&at| self.homes[at].weight).sum::<f64>();
        let zones: Vec<(f64, f64)> = (0..self.zones.len())
            .map(|zone| {
                let room = self.zone_room(zone, bounds.in_node).min(bounds.in_zone);
                (self.zones[zone].iter().map(weight_of_node).sum(), count(room))
            })
            .collect();
        let mut shares = vec![0.0; self.homes.len()];
        for (zone, of_zone) in
            capped_shares(f64::from(profile.width()), &zones).into_iter().enumerate()
        {
            let nodes: Vec<(f64, f64)> = self.zones[zone]
                .iter()
                .map(|node| {
                    (weight_of_node(node), count(self.nodes[*node].len().min(bounds.in_node)))
                })
                .collect();
            for (&node, of_node) in self.zones[zone].iter().zip(capped_shares(of_zone, &nodes)) {
                let disks: Vec<(f64, f64)> =
                    self.nodes[node].iter().map(|&at| (self.homes[at].weight, 1.0)).collect();
                for (&at, of_disk) in self.nodes[node].iter().zip(capped_shares(of_node, &disks)) {
                    shares[at] = of_disk;
                }
            }
        }
        shares
    }
}

/// Splits `total` by weight, none above its cap: what a capped one cannot take goes to the others.
fn capped_shares(total: f64, members: &[(f64, f64)]) -> Vec<f64> {
    let mut shares = vec![None; members.len()];
    loop {
        let fixed: f64 = shares.iter().flatten().sum();
        let free = || members.iter().zip(&shares).filter(|(_, share)| share.is_none());
        let weights: f64 = free().map(|(&(weight, _), _)| weight).sum();
        let part = |weight: f64| (total - fixed) * weight / weights;
        let over: Vec<usize> = (0..members.len())
            .filter(|&at| shares[at].is_none() && part(members[at].0) >= members[at].1)
            .collect();
        if over.is_empty() {
            let rest = |(&(weight, _), share): (&(f64, f64), &Option<f64>)| {
                share.unwrap_or_else(|| part(weight))
            };
            return members.iter().zip(&shares).map(rest).collect();
        }
        over.into_iter().for_each(|at| shares[at] = Some(members[at].1));
    }
}

/// A count of slots or groups as a share is computed: far below 2^52, so it is exact.
pub(crate) fn count(slots: usize) -> f64 {
    to_f64(u64::try_from(slots).unwrap_or(u64::MAX))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a weight is a ratio: its 53 leading bits are more than it is known by"
)]
fn to_f64(weight: u64) -> f64 {
    weight as f64
}
