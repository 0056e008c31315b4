//! By which versions the cluster applies what is in its logs, which of them a node knows, and whether a replica of a range
//! has what it says.

use crate::{Client, Failure};
use ashlar_types::{
    ApplyVersions, Epoch, Node, NodeId, NodeVersions, RangeId, ReplicaReport, RootAnswer, RootOp,
    RootQuery, Versioned, decode,
};
use ashlar_wire::Class;
use ashlar_wire::proto::metadata_client::MetadataClient;
use ashlar_wire::proto::{VerifyRequest, VersionsRequest};
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// How long a node may take to say what it knows.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);
/// A visit of every row of a range takes a second or so for each 500,000 objects, on a disk that has them cached.
const VERIFY_PATIENCE: Duration = Duration::from_secs(600);

impl Client {
    /// By which versions the cluster applies, as the root has it now.
    pub async fn apply_versions(&self) -> Result<ApplyVersions, Failure> {
        match self.root_query(RootQuery::ApplyVersions).await? {
            RootAnswer::ApplyVersions(versions) => Ok(versions),
            _ => Err(Failure::other_answer("a question for the versions of apply")),
        }
    }

    /// The cluster applies by these from now on, decided from the map of this epoch.
    pub async fn raise_apply_versions(
        &self,
        base: Epoch,
        to: ApplyVersions,
    ) -> Result<(), Failure> {
        self.root(RootOp::RaiseApplyVersions { base, to }).await.map(|_| ())
    }

    /// What the binary of a node knows; an error says why it does not answer.
    pub async fn versions_of(&self, node: &Node) -> Result<NodeVersions, String> {
        let mut member = self.metadata_at(&node.address);
        let asked = member.versions(VersionsRequest {});
        let said: NodeVersions = match self.0.host.clock.timeout(ANSWER_PATIENCE, asked).await {
            Ok(Ok(reply)) => read(&reply.into_inner().body)?,
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                NodeVersions::of_before(node.id)
            }
            Ok(Err(status)) => return Err(why_not(&status)),
            Err(_) => return Err("it does not answer".to_owned()),
        };
        // another node may have got its address
        if said.node != node.id {
            return Err(format!("{} answers at its address", said.node));
        }
        Ok(said)
    }

    /// Has a node visit every row of its replica of a range.
    pub async fn verify_replica(
        &self,
        node: NodeId,
        range: RangeId,
    ) -> Result<ReplicaReport, String> {
        let address = self.map().nodes.get(&node).map(|node| node.address.clone());
        let address =
            address.ok_or_else(|| format!("where {node} is reached is not known here"))?;
        let mut member = self.metadata_at(&address);
        let asked = member.verify(VerifyRequest { range: range.0 });
        match self.0.host.clock.timeout(VERIFY_PATIENCE, asked).await {
            Ok(Ok(reply)) => read(&reply.into_inner().body),
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                Err("its release does not know how: upgrade it".to_owned())
            }
            Ok(Err(status)) => Err(why_not(&status)),
            Err(_) => Err("it does not answer".to_owned()),
        }
    }

    fn metadata_at(&self, address: &str) -> MetadataClient<Channel> {
        MetadataClient::new(self.0.dialer.channel(address, Class::Metadata))
    }
}

fn read<T: Versioned>(body: &[u8]) -> Result<T, String> {
    decode(body).map_err(|error| error.to_string())
}

fn why_not(status: &Status) -> String {
    status.message().to_owned()
}
