//! What operators ask of a member, and how a command reaches one.
//!
//! Any member answers for the whole cluster: it asks the root and the other nodes. Who may ask proves it by the
//! certificate of a member, which only those can read who may read that member's directory.

use crate::audit::{AuditReport, Auditor};
use crate::config::NodeConfig;
use crate::disk_change::{ChangeDisks, DisksChange, OfNode, change_disks};
use crate::identity::NodeDir;
use crate::meta_check::{self, RangeReport, VersionsReport};
use crate::replica_change::{ChangeReplicas, change_replicas};
use anyhow::{Context, Result, anyhow, bail};
use ashlar_client::{Client, Failure};
use ashlar_host::Host;
use ashlar_types::{
    BucketName, ClusterMap, DiskId, KeyPoint, NodeId, ObjectKey, RangeId, ReplicaDirectory,
    RootAnswer, RootQuery, SPLIT_APPLY_VERSION, SplitState, Versioned, decode, encode,
};
use ashlar_wire::proto::operator_client::OperatorClient;
use ashlar_wire::proto::operator_server::Operator;
use ashlar_wire::proto::{
    ApplyVersionsReply, ApplyVersionsRequest, AuditReply, AuditRequest, ChangeDisksReply,
    ChangeDisksRequest, ChangeReplicasReply, ChangeReplicasRequest, OverviewReply, OverviewRequest,
    PingReply, ReplicasReply, ReplicasRequest, SplitRangeReply, SplitRangeRequest,
    VerifyRangeReply, VerifyRangeRequest,
};
use ashlar_wire::{Class, Dialer, Security};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

/// How long a member may take to answer a question.
const ANSWER_PATIENCE: Duration = Duration::from_secs(15);
/// Each disk is an entry of the root, and all nodes are asked before and after.
const CHANGE_PATIENCE: Duration = Duration::from_secs(60);
/// An audit walks over everything.
const AUDIT_PATIENCE: Duration = Duration::from_secs(3600);
/// A map of very many groups is larger than what a message may be by default.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Answers operators. Runs on every node.
pub(crate) struct OperatorService {
    pub(crate) client: Client,
    pub(crate) auditor: Arc<Auditor>,
}

#[tonic::async_trait]
impl Operator for OperatorService {
    async fn overview(
        &self,
        _: Request<OverviewRequest>,
    ) -> Result<Response<OverviewReply>, Status> {
        let map = self.client.map_now().await.map_err(|failure| not_answered(&failure))?;
        let nodes = self.client.ping_nodes(&map).await;
        Ok(Response::new(OverviewReply { map: encode(&map).into(), nodes }))
    }

    async fn audit(&self, request: Request<AuditRequest>) -> Result<Response<AuditReply>, Status> {
        let AuditRequest { age_ms_max, own } = request.into_inner();
        let report = if own {
            self.auditor.report()
        } else {
            let recent = self.auditor.recent(Duration::from_millis(age_ms_max)).await;
            Some(recent.map_err(|error| Status::unavailable(format!("{error:#}")))?)
        };
        let report = report.map(|report| encode(&report).into()).unwrap_or_default();
        Ok(Response::new(AuditReply { report }))
    }

    async fn replicas(
        &self,
        _: Request<ReplicasRequest>,
    ) -> Result<Response<ReplicasReply>, Status> {
        let replicas =
            self.client.replicas_now().await.map_err(|failure| not_answered(&failure))?;
        Ok(Response::new(ReplicasReply { answer: encode(&RootAnswer::Replicas(replicas)).into() }))
    }

    async fn change_replicas(
        &self,
        request: Request<ChangeReplicasRequest>,
    ) -> Result<Response<ChangeReplicasReply>, Status> {
        let asked: ChangeReplicas = decode(&request.into_inner().body)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let changed = change_replicas(&self.client, &asked).await;
        changed.map_err(|failure| not_answered(&failure))?;
        tracing::info!(?asked, "an operator has changed who holds what");
        Ok(Response::new(ChangeReplicasReply {}))
    }

    async fn verify_range(
        &self,
        request: Request<VerifyRangeRequest>,
    ) -> Result<Response<VerifyRangeReply>, Status> {
        let range = RangeId(request.into_inner().range);
        let report = meta_check::verify_range(&self.client, range).await;
        let report = report.map_err(|failure| not_answered(&failure))?;
        let unknown = || Status::not_found(format!("there is no {range}: see range ls"));
        let report = report.ok_or_else(unknown)?;
        Ok(Response::new(VerifyRangeReply { body: encode(&report).into() }))
    }

    async fn apply_versions(
        &self,
        _: Request<ApplyVersionsRequest>,
    ) -> Result<Response<ApplyVersionsReply>, Status> {
        let report = meta_check::versions(&self.client).await;
        let report = report.map_err(|failure| not_answered(&failure))?;
        Ok(Response::new(ApplyVersionsReply { body: encode(&report).into() }))
    }

    async fn split_range(
        &self,
        request: Request<SplitRangeRequest>,
    ) -> Result<Response<SplitRangeReply>, Status> {
        let asked: SplitRange = decode(&request.into_inner().body)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let at = self.split_point(asked).await?;
        // before an id is reserved
        let state = self.client.split_state(&at).await.map_err(|failure| not_answered(&failure))?;
        can_split(&state)?;
        let child = match self.client.begin_split(&at).await {
            Ok(child) => child,
            Err(Failure::Refused(refusal)) => {
                return Err(Status::failed_precondition(refusal.to_string()));
            }
            Err(failure) => return Err(not_answered(&failure)),
        };
        tracing::info!(%child, bucket = %at.bucket, "an operator splits a range");
        Ok(Response::new(SplitRangeReply { child: child.0 }))
    }

    async fn change_disks(
        &self,
        request: Request<ChangeDisksRequest>,
    ) -> Result<Response<ChangeDisksReply>, Status> {
        let asked: ChangeDisks = decode(&request.into_inner().body)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let cluster = OfNode { client: &self.client, auditor: &self.auditor };
        let change = change_disks(&cluster, &asked).await;
        // not as unavailable: that is also what a connection says that breaks, when nobody knows what was done
        let change = change.map_err(|failure| Status::failed_precondition(failure.to_string()))?;
        if change.done || !change.changed.is_empty() || !change.unknown.is_empty() {
            let DisksChange { done, changed, unknown, .. } = &change;
            tracing::info!(step = ?asked.step, disks = ?asked.disks, done, ?changed, ?unknown, "an operator has changed disks");
        }
        Ok(Response::new(ChangeDisksReply { body: encode(&change).into() }))
    }
}

/// Where an operator wants a range to be split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SplitRange {
    /// In the middle of its objects.
    Middle(RangeId),
    /// Before this key of a bucket, whichever range has it.
    Before {
        /// The bucket.
        bucket: BucketName,
        /// The key.
        key: String,
    },
}

impl Versioned for SplitRange {
    const NAME: &'static str = "request for a split";
    const VERSION: u8 = 1;
}

impl OperatorService {
    async fn split_point(&self, asked: SplitRange) -> Result<KeyPoint, Status> {
        let unavailable = |failure: Failure| not_answered(&failure);
        match asked {
            SplitRange::Middle(id) => {
                let ranges = self.client.ranges_now().await.map_err(unavailable)?;
                let range = ranges.into_iter().find(|range| range.id == id);
                let range = range
                    .ok_or_else(|| Status::not_found(format!("there is no {id}: see range ls")))?;
                let middle = self.client.middle_of_range(&range.interval.start).await;
                let few =
                    || Status::failed_precondition(format!("{id} has fewer than two objects"));
                middle.map_err(unavailable)?.ok_or_else(few)
            }
            SplitRange::Before { bucket, key } => {
                let key = ObjectKey::parse(&key)
                    .map_err(|error| Status::invalid_argument(error.to_string()))?;
                let query = RootQuery::Bucket(bucket.clone());
                match self.client.root_query(query).await.map_err(unavailable)? {
                    RootAnswer::Bucket(Some(found)) => {
                        Ok(KeyPoint::new(found.row.bucket, key.as_str()))
                    }
                    _ => Err(Status::not_found(format!("there is no bucket {bucket}"))),
                }
            }
        }
    }
}

/// A range knows splits when it applies by a version that has them: until then it would refuse, without a reason.
fn can_split(state: &SplitState) -> Result<(), Status> {
    if state.is_supported() {
        return Ok(());
    }
    let found = state.apply_version;
    Err(Status::failed_precondition(format!(
        "the range applies by version {found}, splits need {SPLIT_APPLY_VERSION}: upgrade all nodes first"
    )))
}

/// Whether a member has surely done nothing; whatever else comes instead of an answer leaves that open.
fn is_refusal(code: Code) -> bool {
    use Code::{
        FailedPrecondition, InvalidArgument, PermissionDenied, Unauthenticated, Unimplemented,
    };
    matches!(
        code,
        FailedPrecondition | InvalidArgument | PermissionDenied | Unauthenticated | Unimplemented
    )
}

/// A failure in words that an operator can act on.
pub(crate) fn not_answered(failure: &Failure) -> Status {
    match failure {
        Failure::Root(refusal) => Status::failed_precondition(refusal.to_string()),
        other => Status::unavailable(other.to_string()),
    }
}

/// A member that is asked.
#[derive(Debug)]
pub struct Member {
    host: Host,
    address: String,
    channel: Channel,
}

/// Where the member is dialled whose configuration file, or first directory, `place` is, and what opens its door.
pub fn door(host: &Host, place: &Path) -> Result<(String, Security)> {
    let config = if place.is_dir() {
        NodeConfig::on_disks(place, &[place.to_owned()])
    } else {
        NodeConfig::load(&host.disk, place)?
    };
    let security = NodeDir::security_of(host, &config.dir, config.internal.tls)?;
    let address = NodeDir::address_of(host, &config.dir)?.unwrap_or_else(|| config.address());
    Ok((address, security))
}

/// What there is, and how it is now.
#[derive(Debug)]
pub struct Overview {
    /// Nodes, disks, groups.
    pub map: ClusterMap,
    /// What the nodes with disks have answered; one that is not here has not.
    pub nodes: Vec<PingReply>,
}

impl Overview {
    /// What has been copied to all disks because slots move, since their nodes started.
    pub fn copied_bytes(&self) -> u64 {
        self.nodes.iter().flat_map(|node| &node.disks).map(|disk| disk.copied_bytes).sum()
    }

    /// The disks that lie in this directory of whichever node.
    pub fn disks_in(&self, directory: &str) -> Vec<DiskId> {
        let disks = self.nodes.iter().flat_map(|node| &node.disks);
        let there = disks.filter(|disk| disk.directory == directory);
        let id = |disk: &[u8]| Some(DiskId(u128::from_be_bytes(disk.try_into().ok()?)));
        there.filter_map(|disk| id(&disk.disk)).collect()
    }

    /// What a node has answered; `None`: nothing, or it has no disks to be asked for.
    pub fn answer_of(&self, node: NodeId) -> Option<&PingReply> {
        self.nodes.iter().find(|answer| answer.node == node.0)
    }
}

impl Member {
    /// The member whose configuration file, or first directory, this is.
    pub fn of(host: &Host, place: &Path) -> Result<Self> {
        let (address, security) = door(host, place)?;
        Ok(Self::at(host, &address, &security))
    }

    /// The member at an address.
    pub fn at(host: &Host, address: &str, security: &Security) -> Self {
        let channel = Dialer::new(host.clone(), security).channel(address, Class::Metadata);
        Self { host: host.clone(), address: address.to_owned(), channel }
    }

    /// What there is.
    pub async fn overview(&self) -> Result<Overview> {
        let mut member = self.client();
        let reply = self.answer(member.overview(OverviewRequest {})).await?;
        let map = decode(&reply.map).context("the member's answer is not understood")?;
        Ok(Overview { map, nodes: reply.nodes })
    }

    /// What an audit has found that ended no longer ago than this, or that is done now.
    pub async fn audit(&self, age_max: Duration) -> Result<AuditReport> {
        let mut member = self.client();
        let age_ms_max = u64::try_from(age_max.as_millis()).unwrap_or(u64::MAX);
        let call = member.audit(AuditRequest { age_ms_max, own: false });
        let reply = self.answer_within(AUDIT_PATIENCE, call).await?;
        decode(&reply.report).context("the member's answer is not understood")
    }

    /// Which nodes hold which range: the root, then the others in the order of keys.
    pub async fn replicas(&self) -> Result<ReplicaDirectory> {
        let mut member = self.client();
        let reply = self.answer(member.replicas(ReplicasRequest {})).await?;
        match decode(&reply.answer).context("the member's answer is not understood")? {
            RootAnswer::Replicas(replicas) => Ok(replicas),
            _ => bail!("the member at {} answered something else than ranges", self.address),
        }
    }

    /// Moves replicas, or strikes a node off. An error says whether it may have been done (C7).
    pub async fn change_replicas(&self, change: &ChangeReplicas) -> Result<()> {
        let mut member = self.client();
        let call = member.change_replicas(ChangeReplicasRequest { body: encode(change).into() });
        self.change(ANSWER_PATIENCE, call).await.map(|_| ())
    }

    /// Has every replica of a range visit its rows, and compare them with the others'.
    pub async fn verify_range(&self, range: RangeId) -> Result<RangeReport> {
        let mut member = self.client();
        let call = member.verify_range(VerifyRangeRequest { range: range.0 });
        let reply = self.answer_within(AUDIT_PATIENCE, call).await?;
        decode(&reply.body).context("the member's answer is not understood")
    }

    /// By which versions the cluster applies.
    pub async fn apply_versions(&self) -> Result<VersionsReport> {
        let mut member = self.client();
        // a range without a leader is waited for
        let call = member.apply_versions(ApplyVersionsRequest {});
        let reply = self.answer_within(CHANGE_PATIENCE, call).await?;
        decode(&reply.body).context("the member's answer is not understood")
    }

    /// Begins to split a range; gives what the right side will be called.
    pub async fn split_range(&self, split: &SplitRange) -> Result<RangeId> {
        let mut member = self.client();
        let call = member.split_range(SplitRangeRequest { body: encode(split).into() });
        Ok(RangeId(self.answer(call).await?.child))
    }

    /// Takes disks out of use, or back; or says what that would mean. An error says whether it may have been done (C7).
    pub async fn change_disks(&self, change: &ChangeDisks) -> Result<DisksChange> {
        let mut member = self.client();
        let call = member.change_disks(ChangeDisksRequest { body: encode(change).into() });
        if change.dry_run {
            let reply = self.answer_within(CHANGE_PATIENCE, call).await?;
            return decode(&reply.body).context("the member's answer is not understood");
        }
        let reply = self.change(CHANGE_PATIENCE, call).await?;
        decode(&reply.body)
            .map_err(|error| self.unknown(&format!("its answer is not understood: {error}")))
    }

    /// Waits for the answer to something that changes the cluster. An error says whether it may have been done (C7).
    async fn change<T>(
        &self,
        patience: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T> {
        match self.host.clock.timeout(patience, call).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) if is_refusal(status.code()) => {
                bail!("the member at {}: nothing was changed: {}", self.address, status.message())
            }
            Ok(Err(status)) => Err(self.unknown(status.message())),
            Err(_) => Err(self.unknown("it did not answer: does it run?")),
        }
    }

    fn unknown(&self, why: &str) -> anyhow::Error {
        anyhow!(
            "whether it was done is not known: say the same again, what was done is not done twice (the member at {}: {why})",
            self.address
        )
    }

    fn client(&self) -> OperatorClient<Channel> {
        OperatorClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// Waits for an answer, and says whose fault it is that there is none.
    async fn answer<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T> {
        self.answer_within(ANSWER_PATIENCE, call).await
    }

    async fn answer_within<T>(
        &self,
        patience: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T> {
        match self.host.clock.timeout(patience, call).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => bail!("the member at {}: {}", self.address, status.message()),
            Err(_) => bail!("the member at {} did not answer: does it run?", self.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk_change::DiskStep;
    use ashlar_host::MemoryNetwork;
    use tokio::io::AsyncReadExt as _;

    #[test]
    fn a_range_that_applies_by_a_version_without_splits_is_not_split() {
        let state = |apply_version| SplitState { apply_version, ..SplitState::default() };
        assert!(can_split(&state(SPLIT_APPLY_VERSION)).is_ok());
        let status = can_split(&state(1)).expect_err("an old range");
        assert!(is_refusal(status.code()));
        assert_eq!(
            status.message(),
            "the range applies by version 1, splits need 2: upgrade all nodes first"
        );
    }

    /// Meets a member that breaks its connection off once something was sent to it.
    async fn met_with_a_break(change: &ChangeDisks) -> String {
        let host = Host::real().with_network(Arc::new(MemoryNetwork::new(1 << 16)));
        let listener = host.network.listen("member").await.expect("listens");
        let member = Member::at(&host, "member", &Security::Plain);
        let breaking = async {
            let (mut connection, _) = listener.accept().await.expect("a connection");
            connection.read_u8().await.expect("a byte");
        };
        let (answer, ()) = tokio::join!(member.change_disks(change), breaking);
        answer.expect_err("no answer").to_string()
    }

    #[tokio::test]
    async fn c7_a_member_that_breaks_off_may_have_changed_disks() {
        let ask = |dry_run| ChangeDisks { disks: vec![DiskId(1)], step: DiskStep::Drain, dry_run };
        let error = met_with_a_break(&ask(false)).await;
        assert!(error.contains("is not known: say the same again"), "{error}");
        let error = met_with_a_break(&ask(true)).await;
        assert!(!error.contains("is not known"), "{error}");
    }
}
