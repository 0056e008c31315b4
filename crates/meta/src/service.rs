//! What other nodes and gateways ask of this one: Raft of all groups, commands and reads.

use crate::agreement::{ASKED_MAX, Witness};
use crate::boots::{Boot, BootRefused};
use crate::codec::{
    BadBytes, Envelope, Message, WrongBoot, append_result_bytes, read_message, refill_answer_bytes,
    vote_bytes, vote_response_bytes, witness_bytes, wrong_boot_bytes,
};
use crate::group::{Group, NotDone};
use crate::members;
use crate::network::FRAME_BYTES_MAX;
use crate::node::Inner;
use crate::raft::{
    AppendEntriesRequest, BoxStream, Snapshot, SnapshotMeta, StreamAppendResult, Types,
};
use crate::snapshot::SnapshotError;
use ashlar_types::{Epoch, NodeId, RangeId, Versioned, decode, encode};
use ashlar_wire::proto::metadata_reply::Result as ReplyResult;
use ashlar_wire::proto::{
    Busy, Frame, MetadataReply, MetadataRequest, VerifyReply, VerifyRequest, VersionsReply,
    VersionsRequest,
};
use ashlar_wire::proto::{metadata_server, raft_server};
use bytes::{Buf, Bytes};
use futures::StreamExt;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tonic::{Code, Request, Response, Status, Streaming};

/// A snapshot larger than this is a damaged length: a range is split at 128 MiB.
const SNAPSHOT_BYTES_MAX: u64 = 1 << 40;

/// How long the next frame of a snapshot may take.
const FRAME_PATIENCE: Duration = Duration::from_secs(30);

fn malformed(error: &BadBytes) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Raft of all groups of a node.
pub(crate) struct RaftService(pub(crate) Arc<Inner>);

impl RaftService {
    /// The message of a frame, if it is meant for this node, and its group.
    async fn open(&self, frame: Frame) -> Result<(Arc<Group>, Envelope, Message), Status> {
        let (envelope, message) = read_message(frame.body).map_err(|error| malformed(&error))?;
        self.check(&envelope).await?;
        let group = self.0.group(RangeId(frame.range));
        let group = group.ok_or_else(|| {
            Status::not_found(format!("range-{} is not on this node", frame.range))
        })?;
        Ok((group, envelope, message))
    }

    async fn check(&self, envelope: &Envelope) -> Result<(), Status> {
        let here = &self.0;
        if envelope.cluster != here.cluster {
            return Err(Status::failed_precondition(format!(
                "this node belongs to cluster {}",
                here.cluster
            )));
        }
        if envelope.to != here.node.0 {
            return Err(Status::failed_precondition(format!(
                "this is {}, not node-{}",
                here.node, envelope.to
            )));
        }
        if envelope.from == here.node.0 {
            here.boots.told_of_self(envelope.from, envelope.boot);
            return Err(Status::failed_precondition(format!(
                "this is {}, and the sender says that it is {} too",
                here.node, here.node
            )));
        }
        let accepted = here.boots.accept(envelope.from, envelope.boot).await;
        accepted.map_err(|refused| boot_refused(&refused))?;
        let own = here.boots.own();
        if envelope.to_boot != own {
            // whoever knows a newer start of this node says that this one is an old image
            here.boots.told_of_self(envelope.from, envelope.to_boot);
            return Err(other_boot(here.node, envelope.to_boot, own));
        }
        match here.boots.outdated() {
            Some(why) => Err(Status::unavailable(why)),
            None => Ok(()),
        }
    }
}

fn boot_refused(refused: &BootRefused) -> Status {
    let told = refused.to_string();
    match refused {
        BootRefused::Outdated { known, .. } => {
            tracing::error!(told, "a message was refused");
            let details = wrong_boot_bytes(WrongBoot::Sender(*known));
            Status::with_details(Code::FailedPrecondition, told, details)
        }
        BootRefused::NotKept(_) => Status::unavailable(told),
    }
}

fn other_boot(node: NodeId, meant: Boot, own: Boot) -> Status {
    let told = format!("the message is meant for {meant} of {node}, and this is {own}");
    let details = wrong_boot_bytes(WrongBoot::Addressee(own));
    Status::with_details(Code::FailedPrecondition, told, details)
}

#[tonic::async_trait]
impl raft_server::Raft for RaftService {
    type AppendStream = BoxStream<'static, Result<Frame, Status>>;

    async fn append(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let mut frames = request.into_inner();
        let Some(first) = frames.message().await? else {
            return Ok(Response::new(Box::pin(futures::stream::empty())));
        };
        let range = first.range;
        let (group, _, message) = self.open(first).await?;
        let commits = Arc::new(Mutex::new(VecDeque::new()));
        let inbound = Inbound {
            service: Self(self.0.clone()),
            group: group.clone(),
            range,
            first: Some(message),
            frames,
            commits: commits.clone(),
        };
        let appends = futures::stream::unfold(inbound, |mut inbound| async move {
            inbound.next().await.map(|append| (append, inbound))
        });
        let (watched, closed) = (group.clone(), group.closed.requested());
        let answers = group.raft.stream_append(appends).map(move |answer| {
            let result = answer.map_err(|fatal| Status::unavailable(fatal.to_string()))?;
            let commit =
                commits.lock().unwrap_or_else(PoisonError::into_inner).pop_front().flatten();
            watch_recovery(&watched, &result, commit);
            Ok(Frame { range, body: append_result_bytes(&result), last: false })
        });
        // an idle stream must not hold up the port when the node stops, nor the group when that is ended
        let answers = answers.take_until(self.0.closed.requested()).take_until(closed);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn vote(&self, request: Request<Frame>) -> Result<Response<Frame>, Status> {
        let frame = request.into_inner();
        let range = frame.range;
        let (group, _, message) = self.open(frame).await?;
        let Message::Vote { pre, request } = message else {
            return Err(Status::invalid_argument("a vote was expected"));
        };
        if !group.may_vote() {
            return Err(Status::unavailable(
                "the log's tail was torn: no vote until a leader has caught this node up",
            ));
        }
        let voted =
            if pre { group.raft.pre_vote(request).await } else { group.raft.vote(request).await };
        let response = voted.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(Frame { range, body: vote_response_bytes(&response), last: false }))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Frame>, Status> {
        let mut frames = request.into_inner();
        let first =
            frames.message().await?.ok_or_else(|| Status::invalid_argument("no frame came"))?;
        let range = first.range;
        let (group, _, message) = self.open(first).await?;
        let Message::Snapshot { vote, last, membership, length } = message else {
            return Err(Status::invalid_argument("a snapshot was expected"));
        };
        if length > SNAPSHOT_BYTES_MAX {
            return Err(Status::invalid_argument("the length of the snapshot is not possible"));
        }
        let Ok(_one) = group.receiving.try_lock() else {
            return Err(Status::unavailable("another snapshot of this range is being received"));
        };
        let file = receive(&group, frames, length).await?;
        if (file.contents.last, &file.contents.membership) != (last, &membership) {
            return Err(Status::data_loss("the snapshot is not the one that was announced"));
        }
        let meta = SnapshotMeta { last_log_id: last, last_membership: membership };
        let snapshot = Snapshot { meta, snapshot: Arc::new(file) };
        let installed = group.raft.install_full_snapshot(vote, snapshot).await;
        let response = installed.map_err(|fatal| Status::unavailable(fatal.to_string()))?;
        Ok(Response::new(Frame { range, body: vote_bytes(&response.vote), last: true }))
    }

    async fn transfer_leader(&self, request: Request<Frame>) -> Result<Response<Frame>, Status> {
        let frame = request.into_inner();
        let range = frame.range;
        let (group, _, message) = self.open(frame).await?;
        let Message::Transfer(request) = message else {
            return Err(Status::invalid_argument("a transfer was expected"));
        };
        let taken = group.raft.handle_transfer_leader(request).await;
        let taken = taken.map_err(|error| Status::unavailable(error.to_string()))?;
        taken.map_err(|refused| Status::failed_precondition(refused.to_string()))?;
        Ok(Response::new(Frame { range, body: Bytes::new(), last: true }))
    }

    async fn refill(&self, request: Request<Frame>) -> Result<Response<Frame>, Status> {
        let frame = request.into_inner();
        let range = frame.range;
        let (group, envelope, message) = self.open(frame).await?;
        let Message::Refill { emptied } = message else {
            return Err(Status::invalid_argument("a wish to be refilled was expected"));
        };
        let answer = members::answer(&self.0, &group, NodeId(envelope.from), emptied).await;
        Ok(Response::new(Frame { range, body: refill_answer_bytes(&answer), last: true }))
    }

    async fn hashes(&self, request: Request<Frame>) -> Result<Response<Frame>, Status> {
        let frame = request.into_inner();
        let range = frame.range;
        let (group, _, message) = self.open(frame).await?;
        let Message::Hashes(indices) = message else {
            return Err(Status::invalid_argument("a question for state hashes was expected"));
        };
        if indices.len() > ASKED_MAX {
            return Err(Status::invalid_argument("too many state hashes are asked for at once"));
        }
        let (marks, is_copy) = (group.state.hashes_at(&indices), group.state.is_copy());
        let body = witness_bytes(&Witness { marks, is_copy });
        Ok(Response::new(Frame { range, body, last: true }))
    }
}

/// The requests of an append stream.
struct Inbound {
    service: RaftService,
    group: Arc<Group>,
    range: u64,
    first: Option<Message>,
    frames: Streaming<Frame>,
    /// What the leader had committed, for each request that is not answered yet.
    commits: Arc<Mutex<VecDeque<Option<u64>>>>,
}

impl Inbound {
    /// The next append. A stream that breaks, or says anything else, ends: the sender begins another one.
    async fn next(&mut self) -> Option<AppendEntriesRequest<Types>> {
        let message = match self.first.take() {
            Some(message) => message,
            None => {
                let frame = self.frames.message().await.ok()??;
                if frame.range != self.range {
                    return None;
                }
                self.service.open(frame).await.ok()?.2
            }
        };
        let Message::Append(append) = message else { return None };
        if append.prev_log_id.is_none()
            && !append.entries.is_empty()
            && self.group.begins_with_snapshot()
        {
            tracing::debug!(range = %self.group.range, "a replica that begins anew waits for a snapshot");
            return None;
        }
        self.group.note_append();
        let commit = append.leader_commit.map(|id| id.index);
        self.commits.lock().unwrap_or_else(PoisonError::into_inner).push_back(commit);
        Some(append)
    }
}

/// A torn tail is mended once this node has everything that its leader had committed.
fn watch_recovery(group: &Group, result: &StreamAppendResult<Types>, leader_commit: Option<u64>) {
    if group.may_vote() {
        return;
    }
    let has = result.as_ref().ok().and_then(|matching| matching.map(|id| id.index));
    if has.zip(leader_commit).is_some_and(|(has, committed)| has >= committed) {
        group.allow_votes();
    }
}

/// Takes the bytes of a snapshot, in order, each frame checked; then verifies the whole file.
async fn receive(
    group: &Group,
    mut frames: Streaming<Frame>,
    length: u64,
) -> Result<crate::snapshot::SnapshotFile, Status> {
    let disk = |error: SnapshotError| Status::internal(error.to_string());
    let incoming = group.state.snapshots.incoming().map_err(disk)?;
    let tasks = group.state.host.tasks.clone();
    let mut at = 0;
    while at < length {
        let frame = next_frame(group, &mut frames).await?;
        let frame = frame.ok_or_else(|| Status::cancelled("the snapshot ended before its end"))?;
        let bytes = snapshot_bytes(frame.body, at)?;
        at += bytes.len() as u64;
        let to = incoming.file.clone();
        let offset = at - bytes.len() as u64;
        tasks
            .run_blocking(move || to.write_at(&bytes, offset))
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
    }
    let state = group.state.clone();
    tasks
        .run_blocking(move || {
            let received = state.snapshots.received(incoming).map_err(|error| match error {
                error @ SnapshotError::Disk(..) => disk(error),
                damaged => Status::data_loss(damaged.to_string()),
            })?;
            if !received.is_right {
                tracing::error!(range = %state.range, "a snapshot came whose rows are not those of its state hash");
                return Err(Status::data_loss(
                    "the rows of the snapshot are not those of its state hash",
                ));
            }
            // the leader builds a newer one, and sends that
            match state.refusal_of(&received) {
                Some(refusal) => Err(Status::failed_precondition(refusal)),
                None => Ok(received),
            }
        })
        .await
}

/// A sender that has lost its power says nothing of it; and a group that is ended shall not be held by what it receives.
async fn next_frame(group: &Group, frames: &mut Streaming<Frame>) -> Result<Option<Frame>, Status> {
    let clock = group.state.host.clock.clone();
    tokio::select! {
        biased;
        () = group.closed.requested() => Err(Status::cancelled("the replica is ended")),
        frame = clock.timeout(FRAME_PATIENCE, frames.message()) => {
            frame.map_err(|_| Status::cancelled("the snapshot does not go on"))?
        }
    }
}

fn snapshot_bytes(mut body: Bytes, at: u64) -> Result<Bytes, Status> {
    if body.len() <= 12 {
        return Err(Status::invalid_argument("a snapshot frame without bytes"));
    }
    let (offset, sum) = (body.get_u64_le(), body.get_u32_le());
    if offset != at || crc32c::crc32c(&body) != sum {
        return Err(Status::data_loss("a snapshot frame is damaged or out of order"));
    }
    Ok(body)
}

/// Commands and reads.
pub(crate) struct MetadataService(pub(crate) Arc<Inner>);

impl MetadataService {
    fn reply(&self, result: Result<Bytes, NotDone>) -> Response<MetadataReply> {
        let mut leader_address = String::new();
        let result = match result {
            Ok(body) => ReplyResult::Body(body),
            Err(NotDone::Leader(node)) => {
                let address = node.and_then(|node| (self.0.sender.addresses)(node));
                leader_address = address.unwrap_or_default();
                ReplyResult::Leader(node.map_or(0, |node| node.0))
            }
            Err(NotDone::Epoch(epoch)) => ReplyResult::Epoch(epoch.map_or(0, |epoch| epoch.0)),
            Err(NotDone::Busy { retry_after_ms, reason }) => {
                ReplyResult::Busy(Busy { retry_after_ms, reason })
            }
            Err(NotDone::Unknown(why)) => ReplyResult::Unknown(why),
        };
        Response::new(MetadataReply { result: Some(result), leader_address })
    }
}

fn read_body<T: Versioned>(body: &[u8]) -> Result<T, Status> {
    decode(body).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn write_body<T: Versioned>(value: &T) -> Bytes {
    Bytes::from(encode(value))
}

#[tonic::async_trait]
impl metadata_server::Metadata for MetadataService {
    async fn execute(
        &self,
        request: Request<MetadataRequest>,
    ) -> Result<Response<MetadataReply>, Status> {
        let MetadataRequest { range, epoch, body } = request.into_inner();
        let bytes = body.len();
        let result = if RangeId(range) == RangeId::ROOT {
            self.0.root_execute(read_body(&body)?, bytes).await.map(|outcome| write_body(&outcome))
        } else {
            self.0
                .execute(RangeId(range), Epoch(epoch), read_body(&body)?, bytes)
                .await
                .map(|outcome| write_body(&outcome))
        };
        Ok(self.reply(result))
    }

    async fn query(
        &self,
        request: Request<MetadataRequest>,
    ) -> Result<Response<MetadataReply>, Status> {
        let MetadataRequest { range, epoch, body } = request.into_inner();
        let result = if RangeId(range) == RangeId::ROOT {
            self.0.root_query(read_body(&body)?).await.map(|answer| write_body(&answer))
        } else {
            self.0
                .query(RangeId(range), Epoch(epoch), read_body(&body)?)
                .await
                .map(|answer| write_body(&answer))
        };
        Ok(self.reply(result))
    }

    async fn versions(
        &self,
        _: Request<VersionsRequest>,
    ) -> Result<Response<VersionsReply>, Status> {
        Ok(Response::new(VersionsReply { body: write_body(&self.0.versions()) }))
    }

    async fn verify(
        &self,
        request: Request<VerifyRequest>,
    ) -> Result<Response<VerifyReply>, Status> {
        let range = RangeId(request.into_inner().range);
        let report = self.0.verify(range).await;
        let report = report.map_err(|why| Status::unavailable(why.to_string()))?;
        Ok(Response::new(VerifyReply { body: write_body(&report) }))
    }
}

/// The two services, with their limits.
pub(crate) fn add_routes(
    inner: &Arc<Inner>,
    routes: tonic::service::Routes,
) -> tonic::service::Routes {
    let raft = raft_server::RaftServer::new(RaftService(inner.clone()))
        .max_decoding_message_size(FRAME_BYTES_MAX)
        .max_encoding_message_size(FRAME_BYTES_MAX);
    let metadata = metadata_server::MetadataServer::new(MetadataService(inner.clone()));
    routes.add_service(raft).add_service(metadata)
}
