//! Collecting garbage: what was overwritten, deleted or abandoned gives its room back (D3).
//!
//! The node that leads a range works off the range's gc queue, in rounds:
//! 1. read the head of the queue, and with it the range's generation;
//! 2. ask every gateway which number its next read will have, and wait until no read below it is open: whatever begins
//!    later sees a range that names these extents no more;
//! 3. ask the homes of each extent that was freed up to that generation to delete its shards; each data node asks the
//!    range itself whether it may (D2);
//! 4. once every home has answered, tell the range to forget the extent.
//!
//! Every step may be repeated, done by two nodes at once, or late. An extent whose home does not answer stays in the
//! queue, so that a node which returns after long brings nothing back for good. A gateway that cannot be reached is
//! waited for; after [`SILENT_MAX`] no longer: a read that it then still has is cut, never mixed (C5), because no
//! extent id is used twice (D8).

use crate::leading::Leading;
use ashlar_client::{Client, GarbagePage, GatewayReads};
use ashlar_host::{Host, Monotonic};
use ashlar_types::{
    COLLECT_SHARDS_MAX, ClusterMap, CollectOutcome, DiskId, Extent, ExtentId, Generation, KeyPoint,
    NodeId, RangeId, Role, ShardName, Slot,
};
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Between two rounds. It doubles up to [`ROUND_EVERY_MAX`] while something is left.
const ROUND_EVERY: Duration = Duration::from_secs(1);
const ROUND_EVERY_MAX: Duration = Duration::from_secs(60);
/// Between two looks at the reads of the gateways.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A gateway that has not answered for so long is not waited for.
const SILENT_MAX: Duration = Duration::from_secs(600);
/// Extents of one page: what a range forgets by one entry.
const PAGE_EXTENTS: u32 = 500;

/// Works off the gc queues of the ranges that this node leads.
pub(crate) struct Collector {
    host: Host,
    client: Client,
    leading: Leading,
    /// Since when a gateway has not answered.
    silent: BTreeMap<NodeId, Monotonic>,
}

/// A queue that is not empty, and up to which generation it is worked off.
struct Queue {
    at: KeyPoint,
    range: RangeId,
    upto: Generation,
}

/// A gateway whose reads are waited for.
struct Awaited {
    node: NodeId,
    address: String,
    /// What it said first: its reads below that number are waited for. `None`: it has not answered yet.
    mark: Option<GatewayReads>,
}

impl Awaited {
    /// Whether none of the reads that were open at its mark is open any more.
    fn is_over(&mut self, now: GatewayReads) -> bool {
        let mark = *self.mark.get_or_insert(now);
        now.incarnation != mark.incarnation || now.numbers.oldest >= mark.numbers.next
    }
}

impl Collector {
    /// One that has not looked yet.
    pub(crate) fn new(host: &Host, client: &Client, leading: &Leading) -> Self {
        let (host, client) = (host.clone(), client.clone());
        Self { host, client, leading: leading.clone(), silent: BTreeMap::new() }
    }

    /// Goes on until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut pause = ROUND_EVERY;
        loop {
            self.host.clock.sleep(pause).await;
            pause = match self.round().await {
                Ok(true) => ROUND_EVERY,
                Ok(false) => (pause * 2).min(ROUND_EVERY_MAX),
                Err(reason) => {
                    tracing::debug!(reason, "garbage could not be collected now");
                    (pause * 2).min(ROUND_EVERY_MAX)
                }
            };
        }
    }

    /// One round over all ranges that this node leads. `false`: something is left that has to wait.
    async fn round(&mut self) -> Result<bool, String> {
        let queues = self.queues().await?;
        if queues.is_empty() {
            return Ok(true);
        }
        // after the queues were read: a gateway that joins later reads ranges that name their extents no more
        let map = self.client.map_now().await.map_err(|failure| failure.to_string())?;
        self.wait_for_reads(&map).await;
        let mut all = true;
        for queue in &queues {
            all &= self.work_off(queue, &map).await?;
        }
        Ok(all)
    }

    async fn queues(&self) -> Result<Vec<Queue>, String> {
        let ranges = self.leading.ranges().await.map_err(|failure| failure.to_string())?;
        let mut queues = Vec::new();
        for range in ranges {
            let at = range.interval.start;
            let head = self.page(&at, None, 1).await?;
            if !head.extents.is_empty() {
                queues.push(Queue { at, range: range.id, upto: head.generation });
            }
        }
        Ok(queues)
    }

    async fn page(
        &self,
        at: &KeyPoint,
        after: Option<ExtentId>,
        limit: u32,
    ) -> Result<GarbagePage, String> {
        self.client.garbage(at, after, limit).await.map_err(|failure| failure.to_string())
    }

    /// Waits until no read is open that has begun before this call.
    async fn wait_for_reads(&mut self, map: &ClusterMap) {
        let gateways = map.nodes.values().filter(|node| node.roles.contains(&Role::Gateway));
        let mut awaited: Vec<Awaited> = gateways
            .map(|node| Awaited { node: node.id, address: node.address.clone(), mark: None })
            .collect();
        loop {
            let asked = awaited.iter().map(|gateway| self.client.reads_of(&gateway.address));
            let answers = join_all(asked).await;
            let now = self.host.clock.now();
            let silent = &mut self.silent;
            let mut answers = answers.into_iter();
            awaited.retain_mut(|gateway| match answers.next() {
                Some(Ok(reads)) => {
                    silent.remove(&gateway.node);
                    !gateway.is_over(reads)
                }
                Some(Err(_)) | None => {
                    now - *silent.entry(gateway.node).or_insert(now) < SILENT_MAX
                }
            });
            if awaited.is_empty() {
                return;
            }
            self.host.clock.sleep(LOOK_EVERY).await;
            let map = self.client.map();
            awaited.retain_mut(|gateway| match map.nodes.get(&gateway.node) {
                Some(node) => {
                    gateway.address.clone_from(&node.address);
                    true
                }
                None => false,
            });
        }
    }

    /// `false`: extents are left whose homes have not all answered.
    async fn work_off(&self, queue: &Queue, map: &ClusterMap) -> Result<bool, String> {
        let (mut after, mut all) = (None, true);
        loop {
            let page = self.page(&queue.at, after, PAGE_EXTENTS).await?;
            after = page.extents.last().map(|(extent, _)| extent.id);
            let freed = page.extents.iter().filter(|(_, freed)| *freed <= queue.upto);
            let freed: Vec<&Extent> = freed.map(|(extent, _)| extent).collect();
            let gone = self.delete(queue, map, &freed).await;
            let gone = self.of_same_groups(map, &freed, gone).await?;
            all &= gone.len() == freed.len();
            if !gone.is_empty() {
                let count = gone.len() as u64;
                let told = self.client.collected(&queue.at, gone).await;
                told.map_err(|failure| failure.to_string())?;
                metrics::counter!("ashlar_gc_extents_total").increment(count);
                tracing::debug!(range = %queue.range, extents = count, "garbage was collected");
            }
            if !page.more {
                return Ok(all);
            }
        }
    }

    /// Those of the extents whose group is now what it was when their homes were asked. Where a slot has begun to move
    /// meanwhile, its shards may have been copied from a home before that was asked: they wait for the next round.
    async fn of_same_groups(
        &self,
        map: &ClusterMap,
        freed: &[&Extent],
        gone: Vec<ExtentId>,
    ) -> Result<Vec<ExtentId>, String> {
        if gone.is_empty() {
            return Ok(gone);
        }
        let now = self.client.map_now().await.map_err(|failure| failure.to_string())?;
        let epoch = |map: &ClusterMap, extent: &Extent| map.groups.get(&extent.pg).map(|g| g.epoch);
        let is_same = |extent: &&&Extent| epoch(map, extent) == epoch(&now, extent);
        let same: BTreeSet<ExtentId> =
            freed.iter().filter(is_same).map(|extent| extent.id).collect();
        Ok(gone.into_iter().filter(|id| same.contains(id)).collect())
    }

    /// Deletes the shards of extents; gives those of which no home has anything any more.
    async fn delete(&self, queue: &Queue, map: &ClusterMap, freed: &[&Extent]) -> Vec<ExtentId> {
        let mut left: BTreeSet<ExtentId> = BTreeSet::new();
        let (mut at_homes, mut at_targets) = (ShardsByNode::new(), ShardsByNode::new());
        for extent in freed {
            let Some(group) = map.groups.get(&extent.pg) else {
                tracing::warn!(extent = %extent.id, pg = %extent.pg,
                    "the cluster map does not have the placement group of an extent that is to be collected");
                left.insert(extent.id);
                continue;
            };
            let homes = extent.profile.slots().zip(group.homes.iter().copied());
            note(&mut at_homes, map, extent.id, homes);
            note(&mut at_targets, map, extent.id, group.moving);
        }
        left.extend(self.ask_all(queue, at_homes).await);
        // Last: whatever a target copies, it has begun to copy by now, and takes note that it must not keep it. If it
        // were asked first, it could still find the shard at a home afterwards.
        left.extend(self.ask_all(queue, at_targets).await);
        freed.iter().map(|extent| extent.id).filter(|id| !left.contains(id)).collect()
    }

    /// Asks all of these nodes; gives the extents of which they may still have something.
    async fn ask_all(&self, queue: &Queue, shards: ShardsByNode) -> Vec<ExtentId> {
        let asked = shards.iter().flat_map(|(&node, shards)| {
            shards.chunks(COLLECT_SHARDS_MAX).map(move |chunk| self.ask(node, &queue.at, chunk))
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Asks one node; gives the extents of which it may still have something.
    async fn ask(&self, node: NodeId, at: &KeyPoint, shards: &[ShardName]) -> Vec<ExtentId> {
        match self.client.collect_shards(node, at, shards.to_vec()).await {
            Ok(ends) => {
                let left = shards.iter().zip(ends).filter(|(_, end)| *end != CollectOutcome::Gone);
                left.map(|(shard, _)| shard.extent).collect()
            }
            Err(reason) => {
                tracing::debug!(%node, reason, "a data node did not collect");
                shards.iter().map(|shard| shard.extent).collect()
            }
        }
    }
}

type ShardsByNode = BTreeMap<NodeId, Vec<ShardName>>;

/// Notes shards at the nodes that have these disks. A dead one is asked for nothing.
fn note(
    shards: &mut ShardsByNode,
    map: &ClusterMap,
    extent: ExtentId,
    places: impl IntoIterator<Item = (Slot, DiskId)>,
) {
    for (slot, disk) in places {
        if let Some(home) = map.disks.get(&disk).filter(|disk| disk.state.is_read()) {
            shards.entry(home.node).or_default().push(ShardName { disk, extent, slot });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_client::OpenReadNumbers;

    fn reads(incarnation: u64, oldest: u64, next: u64) -> GatewayReads {
        GatewayReads { incarnation, numbers: OpenReadNumbers { oldest, next } }
    }

    fn awaited() -> Awaited {
        Awaited { node: NodeId(1), address: String::new(), mark: None }
    }

    #[test]
    fn a_gateway_is_waited_for_until_its_reads_of_then_are_over() {
        let mut gateway = awaited();
        assert!(!gateway.is_over(reads(1, 3, 7)), "3 to 6 may be open");
        assert!(!gateway.is_over(reads(1, 6, 9)), "6 is open");
        assert!(gateway.is_over(reads(1, 7, 9)), "what is open began later");
        assert!(awaited().is_over(reads(1, 7, 7)), "nothing is open");
    }

    #[test]
    fn a_gateway_that_has_booted_again_has_none_of_its_reads() {
        let mut gateway = awaited();
        assert!(!gateway.is_over(reads(1, 3, 7)));
        assert!(gateway.is_over(reads(2, 0, 5)));
    }
}
