//! Which nodes hold which range, as the root has it, and whether a node of the metadata plane answers.

use crate::call::Verb;
use crate::{Client, Failure};
use ashlar_types::{
    Epoch, NodeId, RangeId, ReplicaDirectory, ReplicaMove, RootAnswer, RootOp, RootQuery, encode,
};
use ashlar_wire::proto::MetadataRequest;
use std::time::Duration;

/// A node that answers nothing for so long does not answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

impl Client {
    /// Where the replicas of all ranges are, and which of them move, as the root has it now.
    pub async fn replicas_now(&self) -> Result<ReplicaDirectory, Failure> {
        match self.root_query(RootQuery::Replicas).await? {
            RootAnswer::Replicas(directory) => Ok(directory),
            _ => Err(Failure::other_answer("where the replicas are")),
        }
    }

    /// A replica begins to move, decided from these voters. The range's leader sees to it.
    pub async fn begin_replica_move(
        &self,
        voters: Vec<NodeId>,
        step: ReplicaMove,
    ) -> Result<(), Failure> {
        self.root(RootOp::BeginReplicaMove { voters, step }).await.map(|_| ())
    }

    /// Whether the metadata role of a node answers now, whatever it says: it need not hold the root.
    pub async fn meta_answers(&self, node: NodeId) -> bool {
        let Some(address) = self.map().nodes.get(&node).map(|node| node.address.clone()) else {
            return false;
        };
        // one that holds it says that it is not newer
        let body = encode(&RootQuery::Map { newer_than: Some(Epoch(u64::MAX)) }).into();
        let request = MetadataRequest { range: RangeId::ROOT.0, epoch: 0, body };
        let asked = self.0.send(&address, Verb::Query, request);
        matches!(self.0.host.clock.timeout(ANSWER_PATIENCE, asked).await, Ok(Ok(_)))
    }
}
