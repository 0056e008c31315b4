//! What a collector of garbage asks of the others: the gc queue of a range, the reads that are open at the gateways,
//! data nodes to delete, and the range to forget.
//!
//! Nothing here decides that a shard may go: the range does (D2), and each data node asks it again.

use crate::open_reads::{OpenRead, OpenReadNumbers};
use crate::{Client, Failure};
use ashlar_types::{
    ClusterMap, CollectOutcome, CollectShards, Extent, ExtentId, Generation, KeyPoint, NodeId,
    RangeAnswer, RangeDescriptor, RangeOp, RangeQuery, RootAnswer, RootQuery, ShardName,
    ShardsCollected, decode, encode,
};
use ashlar_wire::Class;
use ashlar_wire::proto::data_client::DataClient;
use ashlar_wire::proto::gateway_client::GatewayClient;
use ashlar_wire::proto::{CollectRequest, OpenReadsRequest};
use std::time::Duration;

/// How long a gateway may take to say what it reads.
const OPEN_READS_PATIENCE: Duration = Duration::from_secs(2);
/// How long a data node may take for one request: it asks the range, then commits a batch of tombstones.
const COLLECT_PATIENCE: Duration = Duration::from_secs(30);

/// A page of a gc queue.
#[derive(Debug, Clone)]
pub struct GarbagePage {
    /// The extents, each with the range's generation when it was freed.
    pub extents: Vec<(Extent, Generation)>,
    /// The range's generation at the moment of this read: whatever is freed later, and was readable, has a greater one.
    pub generation: Generation,
    /// Whether there are more.
    pub more: bool,
}

/// What a gateway says of its reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatewayReads {
    /// The incarnation of the node: a later one has none of the reads of an earlier one.
    pub incarnation: u64,
    /// The reads.
    pub numbers: OpenReadNumbers,
}

impl Client {
    /// Begins a read: before the range is asked where its bytes lie.
    pub fn open_read(&self) -> OpenRead {
        self.0.reads.open(self.0.host.clock.now())
    }

    /// The reads that are open at this client.
    pub fn open_reads(&self) -> OpenReadNumbers {
        self.0.reads.which()
    }

    /// The cluster map as the root has it now, not as it is remembered here.
    pub async fn map_now(&self) -> Result<ClusterMap, Failure> {
        match self.root_query(RootQuery::Map { newer_than: None }).await? {
            RootAnswer::Map(Some(map)) => Ok(*map),
            _ => Err(Failure::other_answer("the cluster map")),
        }
    }

    /// The range directory as the root has it now.
    pub async fn ranges_now(&self) -> Result<Vec<RangeDescriptor>, Failure> {
        match self.root_query(RootQuery::Ranges).await? {
            RootAnswer::Ranges(ranges) => Ok(ranges),
            _ => Err(Failure::other_answer("the range directory")),
        }
    }

    /// A page of the gc queue of the range that holds `at`.
    pub async fn garbage(
        &self,
        at: &KeyPoint,
        after: Option<ExtentId>,
        limit: u32,
    ) -> Result<GarbagePage, Failure> {
        match self.query(at, RangeQuery::Collectable { after, limit }).await? {
            RangeAnswer::Garbage { extents, generation, more } => {
                Ok(GarbagePage { extents, generation, more })
            }
            _ => Err(Failure::other_answer("a page of the gc queue")),
        }
    }

    /// For each extent, whether the range that holds `at` has it in its gc queue.
    pub async fn are_collectable(
        &self,
        at: &KeyPoint,
        extents: Vec<ExtentId>,
    ) -> Result<Vec<bool>, Failure> {
        let count = extents.len();
        match self.query(at, RangeQuery::AreCollectable { extents }).await? {
            RangeAnswer::AreCollectable(answers) if answers.len() == count => Ok(answers),
            _ => Err(Failure::other_answer("a question for the gc queue")),
        }
    }

    /// What a gateway reads. The error says why it is not known.
    pub async fn reads_of(&self, address: &str) -> Result<GatewayReads, String> {
        let mut gateway = GatewayClient::new(self.0.dialer.channel(address, Class::Metadata));
        let asked = gateway.open_reads(OpenReadsRequest {});
        let answer = self.0.host.clock.timeout(OPEN_READS_PATIENCE, asked).await;
        let reply =
            answer.map_err(|late| late.to_string())?.map_err(|status| status.to_string())?;
        let reply = reply.into_inner();
        let numbers = OpenReadNumbers { oldest: reply.oldest, next: reply.next };
        Ok(GatewayReads { incarnation: reply.incarnation, numbers })
    }

    /// Asks a data node to delete shards of extents that are in the gc queue of the range that holds `at`. The error
    /// says why nothing is known of any of them; asking again does no harm.
    pub async fn collect_shards(
        &self,
        node: NodeId,
        at: &KeyPoint,
        shards: Vec<ShardName>,
    ) -> Result<Vec<CollectOutcome>, String> {
        let map = self.map();
        let address = map.nodes.get(&node).map(|node| node.address.clone());
        let address = address.ok_or_else(|| format!("{node} is not in the cluster map"))?;
        let count = shards.len();
        let body = encode(&CollectShards { at: at.clone(), shards }).into();
        let mut data = DataClient::new(self.0.dialer.channel(&address, Class::Bulk));
        let asked = data.collect(CollectRequest { body });
        let answer = self.0.host.clock.timeout(COLLECT_PATIENCE, asked).await;
        let reply =
            answer.map_err(|late| late.to_string())?.map_err(|status| status.to_string())?;
        let collected: ShardsCollected =
            decode(&reply.into_inner().body).map_err(|error| error.to_string())?;
        if collected.outcomes.len() != count {
            return Err(format!(
                "{node} answered for {} of {count} shards",
                collected.outcomes.len()
            ));
        }
        Ok(collected.outcomes)
    }

    /// Tells the range that holds `at` that nothing is left of these extents: it forgets them.
    pub async fn collected(&self, at: &KeyPoint, extents: Vec<ExtentId>) -> Result<(), Failure> {
        self.0.execute_duty(at, RangeOp::CollectDone { extents }).await.map(drop)
    }
}
