//! What this client believes of nodes and disks: who answers, who takes writes, how fast.
//!
//! A belief is advice for choosing and for hedging, never a fact of correctness: a node that is believed dead wrongly
//! costs a slower way, one that is believed alive wrongly costs a wait. Nodes are pinged; a connection that cannot be
//! made tells it earlier.

use crate::Client;
use crate::inner::Inner;
use ashlar_host::Monotonic;
use ashlar_types::{ClusterMap, DiskId, Epoch, Node, NodeId, Role};
use ashlar_wire::Class;
use ashlar_wire::proto::data_client::DataClient;
use ashlar_wire::proto::{PingReply, PingRequest};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, Weak};
use std::time::Duration;

/// So many pings in a row must fail: a single late one may be our own slowness.
const PINGS_LOST_MAX: u32 = 2;
/// A ping that takes longer counts as lost.
const PING_PATIENCE: Duration = Duration::from_secs(1);
/// Durations that are kept of each disk.
const SAMPLES: usize = 128;
/// Fewer samples say nothing about a percentile.
const SAMPLES_MIN: usize = 16;
/// A disk is slow when its reads take so many times what is usual, and this much longer.
const SLOW_TIMES: u32 = 3;
const SLOW_BY: Duration = Duration::from_millis(20);
/// After so many pings a slow disk gets another chance.
const SLOW_LOOKS_MAX: u32 = 20;

/// Beliefs.
#[derive(Debug, Default)]
pub(crate) struct Health(Mutex<Beliefs>);

/// Counts reads and hedges, so that hedges stay a small share.
#[derive(Debug, Default)]
pub(crate) struct Hedges {
    reads: AtomicU64,
    hedges: AtomicU64,
}

/// So many hedges are allowed before there is a share to speak of.
const HEDGES_FREE: u64 = 16;

impl Hedges {
    /// A shard is read.
    pub(crate) fn read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether one more hedge keeps them within `percent` of the reads; then it is counted.
    pub(crate) fn allow(&self, percent: u32) -> bool {
        let (reads, hedges) =
            (self.reads.load(Ordering::Relaxed), self.hedges.load(Ordering::Relaxed));
        let allowed = hedges < HEDGES_FREE + reads / 100 * u64::from(percent);
        if allowed {
            self.hedges.fetch_add(1, Ordering::Relaxed);
        }
        allowed
    }
}

#[derive(Debug, Default)]
struct Beliefs {
    nodes: BTreeMap<NodeId, NodeBelief>,
    disks: BTreeMap<DiskId, DiskBelief>,
    /// The median over the disks of the 95th percentile of their reads.
    usual_read: Duration,
}

#[derive(Debug, Default)]
struct NodeBelief {
    pings_lost: u32,
    /// No connection could be made since the last answered ping.
    refused: bool,
}

#[derive(Debug, Default)]
struct DiskBelief {
    /// When its node has last said that it has it, and that it is not out of service.
    seen: Option<Monotonic>,
    out: bool,
    /// `false` once its node has said so.
    unwritable: bool,
    full: bool,
    /// How much is used of it, of a thousand; nothing is, until its node has said.
    used_per_mille: u16,
    /// For so many looks it has been much slower than the others.
    slow_looks: u32,
    reads: Samples,
    writes: Samples,
}

/// The last durations of something, in microseconds.
#[derive(Debug, Default)]
struct Samples {
    ring: Vec<u32>,
    next: usize,
}

impl Samples {
    fn add(&mut self, took: Duration) {
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        if self.ring.len() < SAMPLES {
            self.ring.push(micros);
        } else {
            self.ring[self.next % SAMPLES] = micros;
        }
        self.next += 1;
    }

    fn percentile(&self, percent: usize) -> Option<Duration> {
        if self.ring.len() < SAMPLES_MIN {
            return None;
        }
        let mut sorted = self.ring.clone();
        let at = (sorted.len() * percent / 100).min(sorted.len() - 1);
        let (_, value, _) = sorted.select_nth_unstable(at);
        Some(Duration::from_micros(u64::from(*value)))
    }
}

impl Health {
    fn with<T>(&self, look: impl FnOnce(&mut Beliefs) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a shard on `disk` may be asked for.
    pub(crate) fn is_readable(&self, map: &ClusterMap, disk: DiskId) -> bool {
        let Some(known) = map.disks.get(&disk) else {
            return false;
        };
        known.state.is_read() && self.with(|beliefs| beliefs.is_up(known.node))
    }

    /// Whether a new shard may be sent to `disk`.
    pub(crate) fn is_writable(&self, map: &ClusterMap, disk: DiskId) -> bool {
        let Some(known) = map.disks.get(&disk) else {
            return false;
        };
        let takes = |beliefs: &mut Beliefs| {
            let disk = beliefs.disks.get(&disk);
            beliefs.is_up(known.node) && disk.is_none_or(|disk| !disk.unwritable && !disk.full)
        };
        known.state.is_written() && self.with(takes)
    }

    /// Whether it is known that `disk` has no room.
    pub(crate) fn is_full(&self, disk: DiskId) -> bool {
        self.with(|beliefs| beliefs.disks.get(&disk).is_some_and(|disk| disk.full))
    }

    /// How much of a disk is free, of a thousand; 0: it takes no new extents.
    pub(crate) fn free_per_mille(&self, disk: DiskId) -> u16 {
        self.with(|beliefs| {
            let belief = beliefs.disks.get(&disk);
            belief.map_or(1000, |disk| if disk.full { 0 } else { 1000 - disk.used_per_mille })
        })
    }

    /// No connection to the node could be made: nothing is tried there until a ping is answered.
    pub(crate) fn refused(&self, node: NodeId) {
        self.with(|beliefs| beliefs.nodes.entry(node).or_default().refused = true);
    }

    /// The disk has refused a write for want of room, until a ping says otherwise.
    pub(crate) fn filled(&self, disk: DiskId) {
        self.with(|beliefs| beliefs.disks.entry(disk).or_default().full = true);
    }

    /// The disk takes no writes, until a ping says otherwise.
    pub(crate) fn unwritable(&self, disk: DiskId) {
        self.with(|beliefs| beliefs.disks.entry(disk).or_default().unwritable = true);
    }

    pub(crate) fn read_took(&self, disk: DiskId, took: Duration) {
        self.with(|beliefs| beliefs.disks.entry(disk).or_default().reads.add(took));
    }

    pub(crate) fn write_took(&self, disk: DiskId, took: Duration) {
        self.with(|beliefs| beliefs.disks.entry(disk).or_default().writes.add(took));
    }

    /// The 95th percentile of reads of a disk that is like most.
    pub(crate) fn usual_read_p95(&self) -> Duration {
        self.with(|beliefs| beliefs.usual_read)
    }

    /// Whether a disk reads much slower than the others.
    pub(crate) fn is_slow(&self, disk: DiskId) -> bool {
        self.with(|beliefs| beliefs.disks.get(&disk).is_some_and(|disk| disk.slow_looks > 0))
    }

    /// Compares the disks with each other.
    fn compare_disks(&self) {
        self.with(|beliefs| {
            let p95 = |disk: &DiskBelief| disk.reads.percentile(95);
            let mut all: Vec<Duration> = beliefs.disks.values().filter_map(p95).collect();
            all.sort_unstable();
            let Some(&usual) = all.get(all.len() / 2) else {
                return;
            };
            beliefs.usual_read = usual;
            for disk in beliefs.disks.values_mut() {
                let slow = p95(disk).is_some_and(|its| its > usual * SLOW_TIMES + SLOW_BY);
                disk.slow_looks = if slow { disk.slow_looks + 1 } else { 0 };
                if disk.slow_looks >= SLOW_LOOKS_MAX {
                    // nobody asks it any more, so that only forgetting shows whether it has recovered
                    (disk.slow_looks, disk.reads) = (0, Samples::default());
                }
            }
        });
    }

    /// The 99th percentile of the time that a disk takes to acknowledge a shard, if enough were seen.
    pub(crate) fn write_p99(&self, disk: DiskId) -> Option<Duration> {
        self.with(|beliefs| beliefs.disks.get(&disk)?.writes.percentile(99))
    }

    /// Whether the node of a disk has said that it serves it.
    pub(crate) fn is_served(&self, disk: DiskId) -> bool {
        self.with(|beliefs| {
            beliefs.disks.get(&disk).is_some_and(|disk| disk.seen.is_some() && !disk.out)
        })
    }

    /// Whether the node of a disk says that it takes writes; `None`: it says nothing now.
    pub(crate) fn takes_writes(&self, map: &ClusterMap, disk: DiskId) -> Option<bool> {
        let node = map.disks.get(&disk)?.node;
        self.with(|beliefs| {
            let belief =
                beliefs.disks.get(&disk).filter(|disk| disk.seen.is_some() && !disk.out)?;
            let writable = !belief.unwritable;
            beliefs.is_up(node).then_some(writable)
        })
    }

    /// When the node of a disk has last said that it has it.
    pub(crate) fn seen(&self, disk: DiskId) -> Option<Monotonic> {
        self.with(|beliefs| beliefs.disks.get(&disk)?.seen)
    }

    fn pinged(&self, node: NodeId, answer: Option<PingReply>, now: Monotonic) {
        self.with(|beliefs| {
            let belief = beliefs.nodes.entry(node).or_default();
            let Some(answer) = answer else {
                belief.pings_lost = belief.pings_lost.saturating_add(1);
                return;
            };
            *belief = NodeBelief::default();
            for status in answer.disks {
                let Ok(id) = <[u8; 16]>::try_from(&status.disk[..]) else {
                    continue;
                };
                let disk = beliefs.disks.entry(DiskId(u128::from_be_bytes(id))).or_default();
                disk.out = status.out;
                if !status.out {
                    disk.seen = Some(now);
                }
                disk.unwritable = !status.writable;
                disk.full = false;
                disk.used_per_mille = used_per_mille(status.capacity_bytes, status.free_bytes);
            }
        });
    }
}

/// Never all of it: that a disk is full is for its node to say, by refusing.
fn used_per_mille(capacity: u64, free: u64) -> u16 {
    let used = u128::from(capacity.saturating_sub(free)) * 1000 / u128::from(capacity.max(1));
    u16::try_from(used).unwrap_or(999).min(999)
}

impl Beliefs {
    fn is_up(&self, node: NodeId) -> bool {
        let belief = self.nodes.get(&node);
        belief.is_none_or(|belief| !belief.refused && belief.pings_lost < PINGS_LOST_MAX)
    }
}

/// Pings all data nodes, again and again.
pub(crate) async fn keep_pinging(client: Weak<Inner>) {
    while let Some(inner) = client.upgrade() {
        ping_all(&inner).await;
        inner.host.clock.sleep(inner.config.ping_every).await;
    }
}

impl Client {
    /// What each node with disks in `map` answers now. One that does not answer is not among them.
    pub async fn ping_nodes(&self, map: &ClusterMap) -> Vec<PingReply> {
        let answers = pings(&self.0, map).collect::<Vec<_>>().await;
        let mut answers: Vec<_> = answers.into_iter().filter_map(|(_, answer)| answer).collect();
        answers.sort_by_key(|answer| answer.node);
        answers
    }
}

/// Tells all data nodes the epoch of the map. Who does not answer is no less up for it: the regular pings judge that.
pub(crate) async fn tell_all(inner: &Inner) {
    ping_each(inner, Silent::Untold).await;
}

/// All data nodes of the map, asked at the same time.
fn pings(
    inner: &Inner,
    map: &ClusterMap,
) -> FuturesUnordered<impl Future<Output = (NodeId, Option<PingReply>)>> {
    let data_nodes = map.nodes.values().filter(|node| node.roles.contains(&Role::Data));
    data_nodes.cloned().map(|node| ping(inner, node, map.epoch)).collect()
}

/// Asks all data nodes how they are, and tells them the epoch of the map.
async fn ping_all(inner: &Inner) {
    ping_each(inner, Silent::Lost).await;
    inner.health.compare_disks();
}

/// What it says of a node that it does not answer a ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silent {
    /// One more ping is lost.
    Lost,
    /// Nothing.
    Untold,
}

/// Pings all data nodes of the map, and notes what they answer as it comes.
async fn ping_each(inner: &Inner, silent: Silent) {
    let map = inner.map.load_full();
    let mut pings = pings(inner, &map);
    while let Some((node, answer)) = pings.next().await {
        if answer.as_ref().is_some_and(|answer| answer.map_epoch > map.epoch.0) {
            inner.want_map();
        }
        if answer.is_some() || silent == Silent::Lost {
            inner.health.pinged(node, answer, inner.host.clock.now());
        }
    }
}

async fn ping(inner: &Inner, node: Node, epoch: Epoch) -> (NodeId, Option<PingReply>) {
    let peer = node.id.0.to_string();
    metrics::counter!("ashlar_rpc_sent_total", "peer" => peer, "service" => "data").increment(1);
    let mut client = DataClient::new(inner.dialer.channel(&node.address, Class::Bulk));
    let answer = inner
        .host
        .clock
        .timeout(PING_PATIENCE, client.ping(PingRequest { map_epoch: epoch.0 }))
        .await;
    let answer = answer.ok().and_then(Result::ok).map(tonic::Response::into_inner);
    // another node at this address is not this node
    (node.id, answer.filter(|answer| answer.node == node.id.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lost_ping_is_no_death_but_a_refused_connection_is() {
        let (health, node) = (Health::default(), NodeId(1));
        let is_up = || health.with(|beliefs| beliefs.is_up(node));
        assert!(is_up(), "nothing is known of it yet");
        health.pinged(node, None, Monotonic::default());
        assert!(is_up());
        health.pinged(node, None, Monotonic::default());
        assert!(!is_up());
        health.pinged(node, Some(PingReply::default()), Monotonic::default());
        assert!(is_up());
        health.refused(node);
        assert!(!is_up());
    }

    #[test]
    fn percentiles_need_samples_and_forget_old_ones() {
        let mut samples = Samples::default();
        samples.add(Duration::from_secs(9));
        assert_eq!(samples.percentile(99), None);
        for _ in 0..SAMPLES {
            samples.add(Duration::from_millis(2));
        }
        assert_eq!(samples.percentile(99), Some(Duration::from_millis(2)));
    }
}
