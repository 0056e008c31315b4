//! How many more failures each object survives, counted from shards that are there (contract, section 5).
//!
//! The margin of an extent by a domain (disk, node, zone) is the greatest number of these that may fail, whichever they
//! are, and leave k of its shards: so the domains with the most shards are taken to fail first. That of an object is the
//! least of its extents', and of its range's: a range of 2f+1 voters survives the loss of f of them and no more,
//! whatever the shards allow. A shard on a node that does not answer is not there now.

use ashlar_types::{ClusterMap, DiskId, NodeId, RangeDescriptor};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What fails as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Domain {
    /// A disk.
    Disk,
    /// A node.
    Node,
    /// A zone.
    Zone,
}

/// All domains.
pub const DOMAINS: [Domain; 3] = [Domain::Disk, Domain::Node, Domain::Zone];

/// How many failures are survived, for each domain; −1: it cannot be read now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Margins {
    /// Of nodes. The first field: the worst are sorted by it.
    pub node: i16,
    /// Of zones.
    pub zone: i16,
    /// Of disks.
    pub disk: i16,
}

impl Margins {
    const BOUNDLESS: Self = Self { node: i16::MAX, zone: i16::MAX, disk: i16::MAX };

    /// That of a domain.
    pub fn of(&self, domain: Domain) -> i16 {
        match domain {
            Domain::Disk => self.disk,
            Domain::Node => self.node,
            Domain::Zone => self.zone,
        }
    }

    fn least(self, other: Self) -> Self {
        Self {
            node: self.node.min(other.node),
            zone: self.zone.min(other.zone),
            disk: self.disk.min(other.disk),
        }
    }
}

/// Objects and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Count {
    /// How many.
    pub objects: u64,
    /// How long all of them are together.
    pub bytes: u64,
}

impl Count {
    pub(super) fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

/// By margin: how much has exactly that one.
pub type Histogram = BTreeMap<i16, Count>;

/// Where a domain's members are: which node a disk is in, and which zone a node.
pub(super) struct Places<'a> {
    map: &'a ClusterMap,
}

impl<'a> Places<'a> {
    pub(super) fn new(map: &'a ClusterMap) -> Self {
        Self { map }
    }

    fn node(&self, disk: DiskId) -> Option<NodeId> {
        self.map.disks.get(&disk).map(|disk| disk.node)
    }

    fn zone(&self, node: NodeId) -> &str {
        self.map.nodes.get(&node).map_or("", |node| node.zone.as_str())
    }

    /// The margins where `present` disks have a shard each, and `needed` of them are enough.
    fn margins(&self, present: &[DiskId], needed: usize) -> Margins {
        let nodes: Vec<Option<NodeId>> = present.iter().map(|&disk| self.node(disk)).collect();
        let zones = nodes.iter().map(|node| node.map_or("", |node| self.zone(node)));
        Margins {
            disk: margin(present.iter().copied(), needed),
            zone: margin(zones, needed),
            node: margin(nodes.iter().copied(), needed),
        }
    }

    /// The margins of what only the voters of a range hold, where these answer.
    fn voters(&self, voters: usize, alive: &[NodeId]) -> Margins {
        let quorum = voters / 2 + 1;
        let node = margin(alive.iter().copied(), quorum);
        // the log of a voter lies on one disk of it
        Margins {
            node,
            disk: node,
            zone: margin(alive.iter().map(|&node| self.zone(node)), quorum),
        }
    }
}

/// How many of the domains in which these lie may fail, whichever they are, until fewer than `needed` are left.
fn margin<T: Ord>(lie_in: impl Iterator<Item = T>, needed: usize) -> i16 {
    let mut shares: BTreeMap<T, usize> = BTreeMap::new();
    lie_in.for_each(|domain| *shares.entry(domain).or_default() += 1);
    let present: usize = shares.values().sum();
    let Some(mut spare) = present.checked_sub(needed) else { return -1 };
    let mut shares: Vec<usize> = shares.into_values().collect();
    shares.sort_unstable_by(|left, right| right.cmp(left));
    let mut failures = 0;
    for share in shares {
        if share > spare {
            break;
        }
        spare -= share;
        failures += 1;
    }
    failures
}

/// What the metadata of a range survives, now and with each of its voters stopped.
pub(super) struct RangeMargins {
    now: Margins,
    without: BTreeMap<NodeId, Margins>,
}

impl RangeMargins {
    pub(super) fn new(
        places: &Places<'_>,
        range: &RangeDescriptor,
        alive: &BTreeSet<NodeId>,
    ) -> Self {
        let living: Vec<NodeId> =
            range.voters.iter().copied().filter(|node| alive.contains(node)).collect();
        let of = |without: Option<NodeId>| {
            let left: Vec<NodeId> =
                living.iter().copied().filter(|&node| Some(node) != without).collect();
            places.voters(range.voters.len(), &left)
        };
        let without = living.iter().map(|&node| (node, of(Some(node)))).collect();
        Self { now: of(None), without }
    }

    /// The voters without which there is no majority.
    pub(super) fn needed(&self) -> Vec<NodeId> {
        let lack = self.without.iter().filter(|(_, margins)| margins.node < 0);
        lack.map(|(&node, _)| node).collect()
    }
}

/// An object whose extents come one after another.
pub(super) struct ObjectMargins {
    now: Margins,
    /// With a node stopped that holds something of it: the least of the extents that it holds something of.
    without: BTreeMap<NodeId, i16>,
    /// An extent of it is gone for good: with all that may still turn up fewer than k shards.
    lost: bool,
}

/// The shards of an extent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Shards {
    /// Where those are that are there.
    pub(super) present: Vec<DiskId>,
    /// How many may be there: their homes do not answer, or are being changed.
    pub(super) unknown: usize,
    /// How many are enough.
    pub(super) needed: usize,
}

impl ObjectMargins {
    pub(super) fn new() -> Self {
        Self { now: Margins::BOUNDLESS, without: BTreeMap::new(), lost: false }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    pub(super) fn add(&mut self, places: &Places<'_>, shards: &Shards) {
        self.now = self.now.least(places.margins(&shards.present, shards.needed));
        self.lost |= shards.present.len() + shards.unknown < shards.needed;
        let nodes: BTreeSet<NodeId> =
            shards.present.iter().filter_map(|&disk| places.node(disk)).collect();
        for node in nodes {
            let left = shards
                .present
                .iter()
                .filter_map(|&disk| places.node(disk))
                .filter(|&at| at != node);
            let margin = margin(left, shards.needed);
            let least = self.without.entry(node).or_insert(margin);
            *least = (*least).min(margin);
        }
    }
}

/// What all objects survive.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Durability {
    /// All objects.
    pub all: Count,
    /// For each domain, by margin. −1: unreadable now, the lost ones among them.
    pub by_margin: BTreeMap<Domain, Histogram>,
    /// Gone for good.
    pub lost: Count,
    /// For each node that holds something: of the objects that it holds something of, or whose metadata it votes on, how
    /// many further nodes each survives while it is stopped.
    pub with_stopped: BTreeMap<NodeId, Histogram>,
    /// The same objects, by what they survive now.
    pub before_stop: BTreeMap<NodeId, Histogram>,
}

impl Durability {
    /// Counts an object; gives what it survives, and whether it is lost.
    pub(super) fn count(
        &mut self,
        range: &RangeMargins,
        object: &ObjectMargins,
        bytes: u64,
    ) -> (Margins, bool) {
        let now = object.now.least(range.now);
        self.all.add(bytes);
        for domain in DOMAINS {
            let margins = self.by_margin.entry(domain).or_default();
            margins.entry(now.of(domain)).or_default().add(bytes);
        }
        if object.lost {
            self.lost.add(bytes);
        }
        let touched: BTreeSet<NodeId> =
            object.without.keys().chain(range.without.keys()).copied().collect();
        for node in touched {
            let data = object.without.get(&node).copied().unwrap_or(i16::MAX).min(object.now.node);
            let range = range.without.get(&node).map_or(range.now.node, |margins| margins.node);
            let margins = self.with_stopped.entry(node).or_default();
            margins.entry(data.min(range)).or_default().add(bytes);
            self.before_stop.entry(node).or_default().entry(now.node).or_default().add(bytes);
        }
        (now, object.lost)
    }

    /// What could not be read while a node is stopped and can be read now.
    pub fn unreadable_without(&self, node: NodeId) -> Count {
        let of = |histograms: &BTreeMap<NodeId, Histogram>| {
            histograms.get(&node).and_then(|margins| margins.get(&-1)).copied().unwrap_or_default()
        };
        let (with, before) = (of(&self.with_stopped), of(&self.before_stop));
        Count { objects: with.objects - before.objects, bytes: with.bytes - before.bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::two_disk_nodes;
    use ashlar_types::{Epoch, Interval, KeyPoint, RangeId};

    /// Six nodes of two disks each in three zones.
    fn map() -> ClusterMap {
        two_disk_nodes(&["a", "a", "b", "b", "c", "c"])
    }

    fn shards(disks: &[u128], needed: usize) -> Shards {
        Shards { present: disks.iter().copied().map(DiskId).collect(), unknown: 0, needed }
    }

    fn range(voters: &[u64]) -> RangeDescriptor {
        RangeDescriptor {
            id: RangeId(1),
            epoch: Epoch(1),
            interval: Interval { start: KeyPoint::least(), end: None },
            voters: voters.iter().copied().map(NodeId).collect(),
        }
    }

    fn margins_of(disks: &[u128], needed: usize) -> (i16, i16, i16) {
        let map = map();
        let mut object = ObjectMargins::new();
        object.add(&Places::new(&map), &shards(disks, needed));
        (object.now.disk, object.now.node, object.now.zone)
    }

    #[test]
    fn the_fullest_domains_are_taken_to_fail_first() {
        assert_eq!(margins_of(&[11, 21, 31, 41, 51, 61], 4), (2, 2, 1), "4+2 over three zones");
        assert_eq!(margins_of(&[11, 21, 31, 41, 51], 4), (1, 1, 0), "one short");
        assert_eq!(margins_of(&[11, 21, 31, 41], 4), (0, 0, 0));
        assert_eq!(margins_of(&[11, 21, 31], 4), (-1, -1, -1));
        assert_eq!(margins_of(&[10, 11, 30, 31, 50, 51], 4), (2, 1, 1), "two on each node");
        assert_eq!(margins_of(&[11, 31, 51], 1), (2, 2, 2), "three copies");
    }

    #[test]
    fn three_voters_never_give_more_than_one_node() {
        let map = map();
        let places = Places::new(&map);
        let alive: BTreeSet<NodeId> = (1..=6).map(NodeId).collect();
        let mut object = ObjectMargins::new();
        object.add(&places, &shards(&[11, 21, 31, 41, 51, 61], 4));
        let mut durability = Durability::default();
        let margins = RangeMargins::new(&places, &range(&[1, 3, 5]), &alive);
        let (now, lost) = durability.count(&margins, &object, 10);
        assert_eq!((now.disk, now.node, now.zone, lost), (1, 1, 1, false));
        let together = RangeMargins::new(&places, &range(&[1, 2, 3]), &alive);
        assert_eq!(durability.count(&together, &object, 10).0.zone, 0, "two voters in one zone");
        let down = alive.iter().copied().filter(|node| node.0 != 5).collect();
        let down = RangeMargins::new(&places, &range(&[1, 3, 5]), &down);
        assert_eq!(durability.count(&down, &object, 10).0.node, 0);
        let inline = ObjectMargins::new();
        assert_eq!(durability.count(&margins, &inline, 10).0.node, 1, "no shards at all");
        assert_eq!(durability.all, Count { objects: 4, bytes: 40 });
    }

    #[test]
    fn a_stopped_node_takes_its_shards_and_its_vote() {
        let map = map();
        let places = Places::new(&map);
        let alive: BTreeSet<NodeId> = (1..=6).map(NodeId).collect();
        let margins = RangeMargins::new(&places, &range(&[1, 3, 5]), &alive);
        let mut durability = Durability::default();
        let mut short = ObjectMargins::new();
        short.add(&places, &shards(&[11, 21, 31, 41], 4));
        durability.count(&margins, &short, 5);
        let mut whole = ObjectMargins::new();
        whole.add(&places, &shards(&[11, 21, 31, 41, 51, 61], 4));
        durability.count(&margins, &whole, 7);
        let none = Count::default();
        assert_eq!(durability.unreadable_without(NodeId(2)), Count { objects: 1, bytes: 5 });
        assert_eq!(durability.unreadable_without(NodeId(6)), none);
        let with = |node| &durability.with_stopped[&NodeId(node)];
        assert_eq!(with(6), &[(1, Count { objects: 1, bytes: 7 })].into(), "only the whole one");
        assert_eq!(with(5)[&0], Count { objects: 2, bytes: 12 }, "a voter: all of the range");
        assert_eq!(durability.lost, none);
    }

    #[test]
    fn what_may_turn_up_again_is_not_lost() {
        let map = map();
        let places = Places::new(&map);
        let mut object = ObjectMargins::new();
        object.add(&places, &Shards { unknown: 1, ..shards(&[11, 21, 31], 4) });
        assert_eq!((object.now.node, object.lost), (-1, false));
        object.add(&places, &shards(&[11, 21, 31], 4));
        assert!(object.lost);
    }
}
