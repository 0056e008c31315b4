//! Data moves by itself: the node that leads the root declares disks dead that have been away for long, and lets slots
//! begin to move, the most urgent first. The copying is done by the nodes to which slots move
//! (`ashlar_node`), and each of them tells the root when a slot has arrived.
//!
//! Nothing is kept here: what has begun stands in the map, and what is to begin is computed from it
//! (`ashlar_placement::schedule`). Two nodes that both believe that they lead do no harm: the root judges each step by
//! the epoch from which it was decided.
//!
//! A disk is away when its node does not say that it has it. Never is more than one zone (where there is one zone: one
//! node) declared dead by itself, and never all of a zone: what looks like that is a network, or a room without power,
//! and comes back; an operator may know better, and say so.

use crate::leading::Leading;
use ashlar_client::{Client, Failure};
use ashlar_host::{Host, Monotonic};
use ashlar_placement::{MoveLimits, schedule};
use ashlar_types::{ClusterMap, Disk, DiskId, DiskState, RootOp, SlotMove};
use futures::future::join_all;
use std::collections::BTreeSet;
use std::time::Duration;

const ROUND_EVERY: Duration = Duration::from_millis(500);
/// While slots move: each that has arrived makes room for another one.
const BUSY_ROUND_EVERY: Duration = Duration::from_millis(100);
/// Moves that begin in one round: each is an entry of the root.
const BEGUN_AT_ONCE: usize = 64;

/// Lets data move, where this node leads the root.
pub(crate) struct Mover {
    pub(crate) host: Host,
    pub(crate) client: Client,
    pub(crate) leading: Leading,
    pub(crate) limits: MoveLimits,
    /// A disk that has been away for so long is dead.
    pub(crate) dead_after: Duration,
}

impl Mover {
    /// Goes on until it is dropped.
    pub(crate) async fn run(self) {
        // what was away before this node led is not known here: its time begins anew
        let mut leads_since: Option<Monotonic> = None;
        let mut pause = ROUND_EVERY;
        loop {
            self.host.clock.sleep(pause).await;
            if !self.leading.root() {
                leads_since = None;
                continue;
            }
            let since = *leads_since.get_or_insert_with(|| self.host.clock.now());
            self.declare_dead(since).await;
            pause = if self.begin_moves().await > 0 { BUSY_ROUND_EVERY } else { ROUND_EVERY };
        }
    }

    async fn declare_dead(&self, since: Monotonic) {
        let (map, now) = (self.client.map(), self.host.clock.now());
        let is_away = |disk: &&Disk| {
            let seen = self.client.disk_seen(disk.id).map_or(since, |seen| seen.max(since));
            disk.state.is_read() && now - seen >= self.dead_after
        };
        let away: BTreeSet<DiskId> =
            map.disks.values().filter(is_away).map(|disk| disk.id).collect();
        let disks = losable(&map, &away);
        if disks.is_empty() {
            return;
        }
        match self.client.root(RootOp::LoseDisks { base: map.epoch, disks: disks.clone() }).await {
            Ok(_) => {
                metrics::counter!("ashlar_disks_declared_dead_total").increment(disks.len() as u64);
                tracing::error!(
                    ?disks,
                    "disks were away for too long and are dead: their shards are rebuilt elsewhere"
                );
                self.client.want_map();
            }
            Err(failure) => tracing::debug!(%failure, "disks could not be declared dead now"),
        }
    }

    /// Begins what may begin; tells how many slots were moving before.
    async fn begin_moves(&self) -> usize {
        let map = self.client.map();
        let moving = map.groups.values().filter(|group| group.moving.is_some()).count();
        metrics::gauge!("ashlar_moves_running")
            .set(f64::from(u32::try_from(moving).unwrap_or(u32::MAX)));
        let mut steps = schedule(&map, self.limits, &|disk| self.client.is_readable(disk));
        steps.truncate(BEGUN_AT_ONCE);
        let begun = join_all(steps.iter().map(|step| self.begin(*step))).await;
        if begun.into_iter().any(|begun| begun) {
            self.client.map_after(map.epoch, ROUND_EVERY).await;
            self.client.tell_epoch().await;
        } else if moving > 0 {
            self.client.want_map();
        }
        moving
    }

    async fn begin(&self, step: SlotMove) -> bool {
        let SlotMove { group, slot, to, .. } = step;
        match self.client.root(RootOp::BeginMove(step)).await {
            Ok(_) => {
                tracing::info!(%group, slot = slot.0, disk = %to, "a slot begins to move");
                true
            }
            Err(Failure::Root(refusal)) => {
                tracing::debug!(%group, %refusal, "a slot does not begin to move");
                self.client.want_map();
                false
            }
            Err(failure) => {
                tracing::debug!(%group, %failure, "a slot could not begin to move now");
                false
            }
        }
    }
}

/// Those of the disks that are away that may be declared dead without an operator.
fn losable(map: &ClusterMap, away: &BTreeSet<DiskId>) -> Vec<DiskId> {
    let is_named = |disk: &Disk| map.groups.values().any(|group| group.names(disk.id));
    let is_hurt =
        |disk: &&Disk| away.contains(&disk.id) || (disk.state == DiskState::Dead && is_named(disk));
    let hurt: Vec<&Disk> = map.disks.values().filter(is_hurt).collect();
    let zone = |disk: &Disk| map.nodes.get(&disk.node).map(|node| node.zone.as_str());
    let zones: BTreeSet<_> = map.disks.values().map(zone).collect();
    let is_one_domain = if zones.len() > 1 {
        let hurt_zones: BTreeSet<_> = hurt.iter().map(|disk| zone(disk)).collect();
        let in_zone = |disk: &&Disk| hurt_zones.contains(&zone(disk));
        let counts = |disk: &&Disk| disk.state != DiskState::Removed;
        let all = map.disks.values().filter(in_zone).filter(counts).count();
        hurt_zones.len() == 1 && hurt.len() < all
    } else {
        hurt.iter().map(|disk| disk.node).collect::<BTreeSet<_>>().len() == 1
    };
    if is_one_domain { away.iter().copied().collect() } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_types::{Node, NodeId, Role};

    /// Nodes of two disks each, by their zones: node n has the disks 10n and 10n + 1.
    fn cluster(zones: &[&str]) -> ClusterMap {
        let mut map = ClusterMap::default();
        for (id, zone) in (1..).zip(zones) {
            let node = Node {
                id: NodeId(id),
                name: String::new(),
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
                    capacity_bytes: 1,
                    incarnation: 1,
                    state: DiskState::Healthy,
                };
                map.disks.insert(disk.id, disk);
            }
        }
        map
    }

    fn lost(map: &ClusterMap, away: &[u128]) -> Vec<u128> {
        let away = away.iter().map(|&id| DiskId(id)).collect();
        losable(map, &away).into_iter().map(|id| id.0).collect()
    }

    #[test]
    fn one_domain_is_declared_dead_by_itself_and_never_a_zone() {
        let map = cluster(&["a", "a", "b", "b", "c", "c"]);
        assert_eq!(lost(&map, &[10]), [10]);
        assert_eq!(lost(&map, &[10, 11]), [10, 11], "a node");
        assert_eq!(lost(&map, &[10, 11, 20]), [10, 11, 20], "most of a zone");
        assert_eq!(lost(&map, &[10, 11, 20, 21]), [0_u128; 0], "a zone");
        assert_eq!(lost(&map, &[10, 30]), [0_u128; 0], "two zones");
    }

    #[test]
    fn where_all_is_one_zone_the_domain_is_a_node() {
        let map = cluster(&["a", "a", "a"]);
        assert_eq!(lost(&map, &[10, 11]), [10, 11]);
        assert_eq!(lost(&map, &[10, 20]), [0_u128; 0], "two nodes");
    }

    #[test]
    fn what_is_dead_and_not_rebuilt_yet_counts() {
        let mut map = cluster(&["a", "a", "b", "b"]);
        map.disks.get_mut(&DiskId(10)).expect("known").state = DiskState::Dead;
        assert_eq!(lost(&map, &[30]), [30], "nothing is left on the dead one");
        let group = ashlar_types::PlacementGroup {
            id: ashlar_types::PgId(1),
            profile: ashlar_types::Profile::RS_1_1,
            epoch: ashlar_types::Epoch(1),
            homes: vec![DiskId(10), DiskId(40)],
            moving: None,
            open: true,
        };
        map.groups.insert(group.id, group);
        assert_eq!(lost(&map, &[30]), [0_u128; 0], "its shards are still missing");
        assert_eq!(lost(&map, &[20]), [20], "the same zone");
    }
}
