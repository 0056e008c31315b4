//! Data moves by itself: the node that leads the root declares disks dead that have been away for long, and lets slots
//! begin to move, the most urgent first. The copying is done by the nodes to which slots move
//! (`ashlar_node`), and each of them tells the root when a slot has arrived.
//!
//! Nothing is kept here: what has begun stands in the map, and what is to begin is computed from it
//! (`ashlar_placement::schedule`). Two nodes that both believe that they lead do no harm: the root judges each step by
//! the epoch from which it was decided.
//!
//! A disk is away when its node does not say that it has it. Never is more than one zone (where there is one zone: one
//! node) declared dead by itself, never all of it, and never so much that a group could not be read any more: what
//! looks like that is a network, or a room without power, and comes back. A dead disk does not.

use crate::audit::Auditor;
use crate::leading::Leading;
use crate::suspicion::{Judged, Writes};
use crate::watch::Watch;
use ashlar_client::{Client, Failure};
use ashlar_host::{Host, Monotonic};
use ashlar_placement::{MoveLimits, Reach, schedule};
use ashlar_types::{ClusterMap, Disk, DiskId, PlacementGroup, RootOp, SlotMove};
use futures::future::join_all;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const ROUND_EVERY: Duration = Duration::from_millis(500);
/// While slots move: each that has arrived makes room for another one.
const BUSY_ROUND_EVERY: Duration = Duration::from_millis(100);
/// Moves that begin in one round: each is an entry of the root.
const BEGUN_AT_ONCE: usize = 64;

/// What nodes have last said of their disks.
struct Known<'a>(&'a Client);

impl Reach for Known<'_> {
    fn is_there(&self, disk: DiskId) -> bool {
        self.0.is_readable(disk)
    }

    fn takes(&self, disk: DiskId) -> bool {
        self.0.takes_moves(disk)
    }
}

/// Lets data move, where this node leads the root.
pub(crate) struct Mover {
    pub(crate) host: Host,
    pub(crate) client: Client,
    pub(crate) leading: Leading,
    pub(crate) auditor: Arc<Auditor>,
    pub(crate) limits: MoveLimits,
    /// A disk that has taken no writes for so long is suspect.
    pub(crate) suspect_after: Duration,
    /// A disk that has been away for so long is dead.
    pub(crate) dead_after: Duration,
}

impl Mover {
    /// Goes on until it is dropped.
    pub(crate) async fn run(self) {
        let mut watch = Watch::begin(self.host.clock.now());
        let (mut pause, mut writes) = (ROUND_EVERY, Writes::default());
        loop {
            self.host.clock.sleep(pause).await;
            // one look at the clock for all that follows: a standstill behind it makes nothing look older
            let now = self.host.clock.now();
            let Some(since) = watch.look(now, self.leading.root()) else {
                writes = Writes::default();
                continue;
            };
            self.declare_dead(since, now).await;
            self.judge_writes(&mut writes, now).await;
            pause = if self.begin_moves().await > 0 { BUSY_ROUND_EVERY } else { ROUND_EVERY };
        }
    }

    /// Disks that take no writes become suspect, and those that do again are used again.
    async fn judge_writes(&self, writes: &mut Writes, now: Monotonic) {
        let map = self.client.map();
        let said = |disk| self.client.takes_writes(disk);
        for judged in writes.due(&map, &said, now, self.suspect_after) {
            let Judged { disk, from, to, .. } = judged;
            match self.client.root(RootOp::JudgeDisk { disk, from, to }).await {
                Ok(_) => {
                    judged.tell(&map, now, self.host.clock.wall_ms());
                    self.client.want_map();
                }
                Err(failure) => tracing::debug!(%disk, %failure, "a disk could not be judged now"),
            }
        }
    }

    async fn declare_dead(&self, since: Monotonic, now: Monotonic) {
        let map = self.client.map();
        let seen = |disk| self.client.disk_seen(disk).map_or(since, |seen| seen.max(since));
        let away = away(&map, &seen, now, self.dead_after);
        if away.is_empty() {
            return;
        }
        // of this node: who leads the root does the audits
        let report = self.auditor.report();
        let disks = losable(&map, &away, &|group| report.as_ref()?.left_in(group));
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
        let mut steps = schedule(&map, self.limits, &Known(&self.client));
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

/// The disks whose nodes have not said for so long that they have them.
fn away(
    map: &ClusterMap,
    seen: &dyn Fn(DiskId) -> Monotonic,
    now: Monotonic,
    dead_after: Duration,
) -> BTreeSet<DiskId> {
    let is_away = |disk: &&Disk| disk.state.is_read() && now - seen(disk.id) >= dead_after;
    map.disks.values().filter(is_away).map(|disk| disk.id).collect()
}

/// Those of the disks that are away that may be declared dead without an operator.
fn losable(
    map: &ClusterMap,
    away: &BTreeSet<DiskId>,
    left: &dyn Fn(&PlacementGroup) -> Option<u64>,
) -> Vec<DiskId> {
    if is_one_domain(map, away) && broken_group(map, away, left).is_none() {
        away.iter().copied().collect()
    } else {
        Vec::new()
    }
}

/// Whether all that is hurt lies in one zone, or node where all is one zone, and something else of it is well.
pub(crate) fn is_one_domain(map: &ClusterMap, away: &BTreeSet<DiskId>) -> bool {
    let is_named = |disk: &Disk| map.groups.values().any(|group| group.names(disk.id));
    // a dead disk that nothing is left on is as good as removed
    let counted: Vec<&Disk> =
        map.disks.values().filter(|disk| disk.state.is_read() || is_named(disk)).collect();
    let is_hurt = |disk: &&Disk| away.contains(&disk.id) || !disk.state.is_read();
    let zone = |disk: &Disk| map.nodes.get(&disk.node).map(|node| node.zone.as_str());
    let zones: BTreeSet<_> = counted.iter().map(|disk| zone(disk)).collect();
    let domain = |disk: &&Disk| match zones.len() {
        0 | 1 => (None, Some(disk.node)),
        _ => (zone(disk), None),
    };
    let hurt: BTreeSet<_> = counted.iter().copied().filter(is_hurt).map(|d| domain(&d)).collect();
    let is_elsewhere = |disk: &&Disk| !hurt.contains(&domain(disk));
    let is_well_in_it = |disk: &&Disk| hurt.contains(&domain(disk)) && !is_hurt(disk);
    let is_a_node = zones.len() <= 1;
    let others = counted.iter().copied().any(|disk| is_elsewhere(&disk));
    let rest = counted.iter().copied().any(|disk| is_well_in_it(&disk));
    hurt.len() == 1 && (rest || (is_a_node && others))
}

/// A group that can be read now, if the disks that are away come back, and could not be read without them. One without
/// parity to which nothing new is written stands back once nothing is `left` in it: of a cluster that has grown such
/// groups are the remains, and what they have is written again elsewhere, but not at once.
pub(crate) fn broken_group<'a>(
    map: &'a ClusterMap,
    away: &BTreeSet<DiskId>,
    left: &dyn Fn(&PlacementGroup) -> Option<u64>,
) -> Option<&'a PlacementGroup> {
    let is_emptied = |group: &PlacementGroup| {
        is_remains(group) && left(group).is_some_and(|extents| extents == 0)
    };
    map.groups.values().filter(|group| !is_emptied(group)).find(|group| {
        let read = || group.homes.iter().filter(|disk| map.is_read(**disk));
        let (readable, rest) = (read().count(), read().filter(|disk| !away.contains(disk)).count());
        let needed = usize::from(group.profile.data);
        rest < needed && readable >= needed
    })
}

/// Whether nothing new comes to a group, and each of its disks is needed for what it has.
pub(crate) fn is_remains(group: &PlacementGroup) -> bool {
    !group.open && group.profile.parity == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{set, two_disk_nodes as cluster};
    use ashlar_types::{DiskState, Epoch, PgId, Profile};

    const NONE: [u128; 0] = [];

    fn put_group(map: &mut ClusterMap, profile: Profile, homes: &[u128]) {
        let (id, epoch, moving, open) = (PgId(1), Epoch(1), None, true);
        let homes = homes.iter().copied().map(DiskId).collect();
        map.groups.insert(id, PlacementGroup { id, profile, epoch, homes, moving, open });
    }

    fn lost(map: &ClusterMap, away: &[u128]) -> Vec<u128> {
        lost_with(map, away, None)
    }

    /// Where so many extents were counted in each group, if any were.
    fn lost_with(map: &ClusterMap, away: &[u128], left: Option<u64>) -> Vec<u128> {
        let away = away.iter().map(|&id| DiskId(id)).collect();
        losable(map, &away, &|_| left).into_iter().map(|id| id.0).collect()
    }

    fn at(seconds: u64) -> Monotonic {
        Monotonic(Duration::from_secs(seconds))
    }

    const DEAD_AFTER: Duration = Duration::from_secs(60);

    /// What a leader finds away that looks now, and whose pings were answered last at this time.
    fn found(watch: &mut Watch, answered: u64, now: u64) -> usize {
        let map = cluster(&["a", "a", "b", "b"]);
        let Some(since) = watch.look(at(now), true) else { return 0 };
        away(&map, &|_| at(answered).max(since), at(now), DEAD_AFTER).len()
    }

    #[test]
    fn d2_a_leader_that_has_stood_still_itself_declares_nobody_dead() {
        let mut watch = Watch::begin(at(0));
        for now in 1..=100 {
            assert_eq!(found(&mut watch, now, now), 0, "all answer");
        }
        // it goes on behind an hour: the last answers that it has seen are as old, and no ping was sent since
        for now in 3700..3760 {
            assert_eq!(found(&mut watch, 100, now), 0, "at {now}");
        }
        assert_eq!(found(&mut watch, 100, 3761), 8, "now it has watched them being away");
    }

    #[test]
    fn what_was_away_before_a_node_led_is_not_known_to_it() {
        let mut watch = Watch::begin(at(0));
        for now in 1..=200 {
            assert_eq!(watch.look(at(now), false), None);
        }
        for now in 201..261 {
            assert_eq!(found(&mut watch, 100, now), 0, "at {now}");
        }
        assert_eq!(found(&mut watch, 100, 261), 8);
    }

    #[test]
    fn one_domain_is_declared_dead_by_itself_and_never_a_zone() {
        let map = cluster(&["a", "a", "b", "b", "c", "c"]);
        assert_eq!(lost(&map, &[10]), [10]);
        assert_eq!(lost(&map, &[10, 11]), [10, 11], "a node");
        assert_eq!(lost(&map, &[10, 11, 20]), [10, 11, 20], "most of a zone");
        assert_eq!(lost(&map, &[10, 11, 20, 21]), NONE, "a zone");
        assert_eq!(lost(&map, &[10, 30]), NONE, "two zones");
    }

    #[test]
    fn where_all_is_one_zone_the_domain_is_a_node() {
        let map = cluster(&["a", "a", "a"]);
        assert_eq!(lost(&map, &[10, 11]), [10, 11]);
        assert_eq!(lost(&map, &[10, 20]), NONE, "two nodes");
        let alone = cluster(&["a"]);
        assert_eq!(lost(&alone, &[10]), [10]);
        assert_eq!(lost(&alone, &[10, 11]), NONE, "all that there is");
    }

    #[test]
    fn what_is_dead_and_not_rebuilt_yet_counts() {
        let mut map = cluster(&["a", "a", "b", "b"]);
        set(&mut map, 10, DiskState::Dead);
        assert_eq!(lost(&map, &[30]), [30], "nothing is left on the dead one");
        put_group(&mut map, Profile::RS_1_1, &[10, 40]);
        assert_eq!(lost(&map, &[30]), NONE, "its shards are still missing");
        assert_eq!(lost(&map, &[20]), [20], "the same zone");
    }

    #[test]
    fn what_nothing_is_left_on_does_not_stand_for_the_rest_of_its_zone() {
        let mut map = cluster(&["a", "a", "b", "b"]);
        set(&mut map, 10, DiskState::Dead);
        assert_eq!(lost(&map, &[11, 20, 21]), NONE, "all of the zone that is used");
        for removed in [30, 31, 40, 41] {
            set(&mut map, removed, DiskState::Removed);
        }
        assert_eq!(lost(&map, &[11, 20]), NONE, "there is one zone now: these are two nodes");
    }

    #[test]
    fn d2_nothing_is_declared_dead_without_which_a_group_cannot_be_read() {
        let mut map = cluster(&["a", "a", "a", "a", "b", "b", "b", "b"]);
        put_group(&mut map, Profile::RS_4_2, &[10, 20, 30, 50, 60, 70]);
        assert_eq!(lost(&map, &[10, 11, 20, 21]), [10, 11, 20, 21]);
        assert_eq!(lost(&map, &[10, 20, 30]), NONE, "three of six");
        set(&mut map, 70, DiskState::Removed);
        set(&mut map, 60, DiskState::Removed);
        set(&mut map, 50, DiskState::Removed);
        assert_eq!(lost(&map, &[11]), NONE, "what is lost already counts as hurt elsewhere");
    }

    #[test]
    fn d2_the_remains_of_a_smaller_cluster_hold_up_nothing_once_they_are_empty() {
        let mut map = cluster(&["a", "a", "a"]);
        put_group(&mut map, Profile::RS_1_0, &[10]);
        assert_eq!(lost_with(&map, &[10], Some(0)), NONE, "it is written to");
        map.groups.values_mut().for_each(|group| group.open = false);
        assert_eq!(lost_with(&map, &[10], None), NONE, "nobody knows what is left in it");
        assert_eq!(lost_with(&map, &[10], Some(1)), NONE);
        assert_eq!(lost_with(&map, &[10], Some(0)), [10]);
    }
}
