//! The sending side of Raft: one client a group and peer, all over one HTTP/2 connection a peer.
//!
//! Appends go through a bidirectional stream, so that several are under way. Every exchange has a deadline; an append
//! stream has one for each answer.

use crate::agreement::Witness;
use crate::boots::Boots;
use crate::codec::{
    Envelope, Message, RefillAnswer, WrongBoot, message_bytes, read_append_result,
    read_refill_answer, read_vote, read_vote_response, read_witness, read_wrong_boot,
};
use crate::raft::{
    AppendEntriesRequest, AppendEntriesResponse, BoxFuture, BoxStream, NetworkError, OptionalSend,
    RPCError, RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2, ReplicationClosed, Snapshot,
    SnapshotResponse, StreamAppendResult, StreamingError, Timeout, TransferLeaderRequest,
    TransferLeaderResponse, Types, Unreachable, Vote, VoteRequest, VoteResponse,
};
use crate::snapshot::SnapshotFile;
use ashlar_host::{Clock, Host, Monotonic};
use ashlar_types::{ClusterId, NodeId, RangeId};
use ashlar_wire::proto::Frame;
use ashlar_wire::proto::raft_client::RaftClient;
use ashlar_wire::{Class, Dialer};
use bytes::{BufMut, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use metrics::Counter;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// The largest frame: an append has a little more than 4 MiB at most (see `log`).
pub(crate) const FRAME_BYTES_MAX: usize = 16 << 20;
/// Bytes of a snapshot in one frame.
const SNAPSHOT_FRAME_BYTES: usize = 256 * 1024;

/// Finds where a node is reached.
pub type Addresses = Arc<dyn Fn(NodeId) -> Option<String> + Send + Sync>;

/// What all groups of a node send with.
#[derive(Clone)]
pub(crate) struct Sender {
    pub(crate) host: Host,
    pub(crate) dialer: Dialer,
    pub(crate) addresses: Addresses,
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) boots: Arc<Boots>,
    /// How long an append may wait for its answer.
    pub(crate) patience: Duration,
}

/// Makes the clients of one group.
pub(crate) struct Peers {
    pub(crate) sender: Sender,
    pub(crate) range: RangeId,
}

impl RaftNetworkFactory<Types> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _: &crate::raft::PeerNode) -> Peer {
        self.peer(target)
    }
}

impl Peers {
    /// The client of one peer.
    pub(crate) fn peer(&self, target: u64) -> Peer {
        let count = |service: &'static str| metrics::counter!("ashlar_rpc_sent_total", "peer" => target.to_string(), "service" => service);
        Peer {
            sender: self.sender.clone(),
            range: self.range,
            target,
            appends: count("raft append"),
            votes: count("raft vote"),
            snapshots: count("raft snapshot"),
        }
    }
}

/// One peer of one group.
pub(crate) struct Peer {
    sender: Sender,
    range: RangeId,
    target: u64,
    appends: Counter,
    votes: Counter,
    snapshots: Counter,
}

fn unreachable(error: &impl std::fmt::Display) -> Unreachable<Types> {
    Unreachable::from_string(error.to_string())
}

impl Peer {
    fn clock(&self) -> &(dyn Clock + 'static) {
        &*self.sender.host.clock
    }

    fn client(&self) -> Result<RaftClient<Channel>, Unreachable<Types>> {
        if let Some(why) = self.sender.boots.outdated() {
            return Err(unreachable(&why));
        }
        let address = (self.sender.addresses)(NodeId(self.target));
        let address = address
            .ok_or_else(|| unreachable(&format!("node-{} has no known address", self.target)))?;
        let channel = self.sender.dialer.channel(&address, Class::Raft);
        Ok(RaftClient::new(channel)
            .max_decoding_message_size(FRAME_BYTES_MAX)
            .max_encoding_message_size(FRAME_BYTES_MAX))
    }

    fn envelope(&self) -> Envelope {
        let Sender { cluster, node, ref boots, .. } = self.sender;
        let to = self.target;
        Envelope { cluster, from: node.0, boot: boots.own(), to, to_boot: boots.known(to) }
    }

    fn frame(&self, message: &Message) -> Frame {
        Frame { range: self.range.0, body: message_bytes(&self.envelope(), message), last: false }
    }

    fn late(&self, action: RPCTypes, timeout: Duration) -> Timeout<Types> {
        Timeout { action, id: self.sender.node.0, target: self.target, timeout }
    }

    fn refused(&self, status: &Status, action: RPCTypes, timeout: Duration) -> RPCError<Types> {
        match status.code() {
            Code::DeadlineExceeded => self.late(action, timeout).into(),
            _ => unreachable(status).into(),
        }
    }

    /// Takes in what a refusal says of boots. Whether the message may be sent again: the addressee has booted since.
    async fn learn(&self, status: &Status) -> bool {
        let details = Bytes::copy_from_slice(status.details());
        match read_wrong_boot(details) {
            Ok(WrongBoot::Sender(known)) => {
                self.sender.boots.told_of_self(self.target, known);
                false
            }
            Ok(WrongBoot::Addressee(boot)) => {
                let accepted = self.sender.boots.accept(self.target, boot).await;
                if let Err(refused) = &accepted {
                    tracing::error!(peer = self.target, %refused, "a peer is not heard");
                }
                accepted.is_ok()
            }
            Err(_) => false,
        }
    }

    /// One message, one answer, before the deadline.
    async fn ask(
        &self,
        message: &Message,
        action: RPCTypes,
        span: Duration,
    ) -> Result<Bytes, RPCError<Types>> {
        self.votes.increment(1);
        let asked = async {
            match self.send(message).await? {
                Err(status) if self.learn(&status).await => self.send(message).await,
                answered => Ok(answered),
            }
        };
        match self.clock().timeout(span, asked).await {
            Ok(Ok(Ok(body))) => Ok(body),
            Ok(Ok(Err(status))) => Err(self.refused(&status, action, span)),
            Ok(Err(unreachable)) => Err(unreachable.into()),
            Err(_) => Err(self.late(action, span).into()),
        }
    }

    async fn send(&self, message: &Message) -> Result<Result<Bytes, Status>, Unreachable<Types>> {
        let (mut client, frame) = (self.client()?, self.frame(message));
        let answered = match message {
            Message::Transfer(_) => client.transfer_leader(frame).await,
            Message::Refill { .. } => client.refill(frame).await,
            Message::Hashes(_) => client.hashes(frame).await,
            Message::Vote { .. } | Message::Append(_) | Message::Snapshot { .. } => {
                client.vote(frame).await
            }
        };
        Ok(answered.map(|response| response.into_inner().body))
    }

    /// Asks for the state hashes behind entries: those that the peer remembers.
    pub(crate) async fn ask_hashes(
        &self,
        indices: Vec<u64>,
        patience: Duration,
    ) -> Result<Witness, String> {
        // as with a wish to be refilled
        let asked = self.ask(&Message::Hashes(indices), RPCTypes::TransferLeader, patience).await;
        read_witness(asked.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
    }

    /// Asks to be taken out of the group, or into it.
    pub(crate) async fn ask_refill(
        &self,
        emptied: bool,
        patience: Duration,
    ) -> Result<RefillAnswer, String> {
        let message = Message::Refill { emptied };
        // the library has no name for it: the word is only for its errors
        let body = self.ask(&message, RPCTypes::TransferLeader, patience).await;
        let body = body.map_err(|error| error.to_string())?;
        read_refill_answer(body).map_err(|error| error.to_string())
    }

    async fn ask_vote(
        &self,
        pre: bool,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let message = Message::Vote { pre, request };
        let body = self.ask(&message, RPCTypes::Vote, option.soft_ttl()).await?;
        read_vote_response(body).map_err(|error| NetworkError::new(&error).into())
    }

    async fn open_append<S>(&self, mut input: S) -> Result<AppendAnswers, RPCError<Types>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        // the library sleeps its back-off inside the request stream: connecting before the first request would retry
        // a dead peer without a pause
        let Some(first) = input.next().await else { return Ok(AppendAnswers::none(self)) };
        let (stop, stopped) = oneshot::channel::<()>();
        let waiting = Arc::new(Waiting::new(self.sender.host.clock.clone()));
        let (asked, envelope, range, sent) =
            (waiting.clone(), self.envelope(), self.range.0, self.appends.clone());
        let frames = futures::stream::once(async { first }).chain(input).take_until(stopped).map(
            move |request| {
                asked.asked();
                sent.increment(1);
                Frame {
                    range,
                    body: message_bytes(&envelope, &Message::Append(request)),
                    last: false,
                }
            },
        );
        let mut client = self.client()?;
        let span = self.sender.patience;
        match self.clock().timeout(span, client.append(frames)).await {
            Ok(Ok(response)) => Ok(AppendAnswers {
                inbound: Some(response.into_inner()),
                _stop: stop,
                waiting,
                patience: span,
                late: self.late(RPCTypes::AppendEntries, span),
            }),
            Ok(Err(status)) => {
                // the library begins the stream again
                self.learn(&status).await;
                Err(self.refused(&status, RPCTypes::AppendEntries, span))
            }
            Err(_) => Err(self.late(RPCTypes::AppendEntries, span).into()),
        }
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot<Arc<SnapshotFile>>,
    ) -> Result<SnapshotResponse<Types>, RPCError<Types>> {
        let message = Message::Snapshot {
            vote,
            last: snapshot.meta.last_log_id,
            membership: snapshot.meta.last_membership,
            length: snapshot.snapshot.length,
        };
        let header = futures::stream::once(futures::future::ready(self.frame(&message)));
        let (broken, broke) = oneshot::channel();
        let frames = header.chain(snapshot_frames(self, snapshot.snapshot, broken));
        let mut client = self.client()?;
        let answered = client.install_snapshot(frames).await;
        if let Ok(error) = {
            let mut broke = broke;
            broke.try_recv()
        } {
            return Err(NetworkError::new(&error).into());
        }
        let body = match answered {
            Ok(answer) => answer.into_inner().body,
            Err(status) => {
                self.learn(&status).await;
                return Err(unreachable(&status).into());
            }
        };
        let vote = read_vote(body).map_err(|error| NetworkError::new(&error))?;
        Ok(SnapshotResponse::new(vote))
    }
}

/// The frames of a snapshot's bytes; a file that cannot be read ends them without the last one, and says so.
fn snapshot_frames(
    peer: &Peer,
    file: Arc<SnapshotFile>,
    broken: oneshot::Sender<std::io::Error>,
) -> impl Stream<Item = Frame> + Send + 'static + use<> {
    let (tasks, range, sent) =
        (peer.sender.host.tasks.clone(), peer.range.0, peer.snapshots.clone());
    futures::stream::unfold(Some((file, 0_u64, broken)), move |state| {
        let (tasks, sent) = (tasks.clone(), sent.clone());
        async move {
            let (file, at, broken) = state?;
            let reading = file.clone();
            match tasks.run_blocking(move || snapshot_chunk(&reading, at)).await {
                Ok((body, next)) => {
                    sent.increment(1);
                    let last = next == file.length;
                    let frame = Frame { range, body, last };
                    Some((frame, (!last).then_some((file, next, broken))))
                }
                Err(error) => {
                    // whoever sends sees the error unless it has gone, and then nobody wants it
                    drop(broken.send(error));
                    None
                }
            }
        }
    })
}

/// One frame: offset, checksum, bytes.
fn snapshot_chunk(file: &SnapshotFile, at: u64) -> std::io::Result<(Bytes, u64)> {
    let rest = usize::try_from(file.length - at).unwrap_or(usize::MAX);
    let mut bytes = vec![0; rest.min(SNAPSHOT_FRAME_BYTES)];
    file.file.read_exact_at(&mut bytes, at)?;
    let mut body = BytesMut::with_capacity(12 + bytes.len());
    body.put_u64_le(at);
    body.put_u32_le(crc32c::crc32c(&bytes));
    body.put_slice(&bytes);
    Ok((body.freeze(), at + bytes.len() as u64))
}

/// How many appends of a stream wait for their answer, and since when nothing came.
struct Waiting {
    clock: Arc<dyn Clock>,
    state: Mutex<(u64, Monotonic)>,
}

impl Waiting {
    fn new(clock: Arc<dyn Clock>) -> Self {
        let now = clock.now();
        Self { clock, state: Mutex::new((0, now)) }
    }

    fn asked(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 == 0 {
            state.1 = self.clock.now();
        }
        state.0 += 1;
    }

    fn answered(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = (state.0.saturating_sub(1), self.clock.now());
    }

    /// Whether an append has waited for `patience`.
    fn is_late(&self, patience: Duration) -> bool {
        let (count, since) = *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        count > 0 && self.clock.now() - since >= patience
    }
}

/// The answers of an append stream, in order. Dropping it ends the requests.
struct AppendAnswers {
    inbound: Option<tonic::Streaming<Frame>>,
    _stop: oneshot::Sender<()>,
    waiting: Arc<Waiting>,
    patience: Duration,
    late: Timeout<Types>,
}

type AppendAnswer = Result<StreamAppendResult<Types>, RPCError<Types>>;

impl AppendAnswers {
    fn none(peer: &Peer) -> Self {
        let span = peer.sender.patience;
        Self {
            inbound: None,
            _stop: oneshot::channel().0,
            waiting: Arc::new(Waiting::new(peer.sender.host.clock.clone())),
            patience: span,
            late: peer.late(RPCTypes::AppendEntries, span),
        }
    }

    async fn next(&mut self) -> Option<AppendAnswer> {
        let inbound = self.inbound.as_mut()?;
        let answer = loop {
            let patience = self.waiting.clock.sleep(self.patience);
            tokio::select! {
                biased;
                answer = inbound.message() => break answer,
                () = patience => if self.waiting.is_late(self.patience) {
                    self.inbound = None;
                    return Some(Err(self.late.clone().into()));
                },
            }
        };
        self.waiting.answered();
        let result = match answer.transpose()? {
            Ok(frame) => {
                read_append_result(frame.body).map_err(|error| NetworkError::new(&error).into())
            }
            Err(status) => Err(unreachable(&status).into()),
        };
        if !matches!(result, Ok(Ok(_))) {
            // nothing follows a refusal: the library begins another stream
            self.inbound = None;
        }
        Some(result)
    }

    fn into_stream(self) -> BoxStream<'static, AppendAnswer> {
        Box::pin(futures::stream::unfold(self, |mut answers| async move {
            answers.next().await.map(|answer| (answer, answers))
        }))
    }
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = Arc<SnapshotFile>;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let once = Box::pin(futures::stream::once(async { request }));
        let mut answers = self.open_append(once).await?;
        match answers.next().await {
            Some(answer) => Ok(answer?.into()),
            None => Err(unreachable(&"the stream ended without an answer").into()),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, AppendAnswer>, RPCError<Types>>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let answers = self.open_append(input).await?;
            Ok(answers.into_stream() as BoxStream<'s, AppendAnswer>)
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_vote(false, request, option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_vote(true, request, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<Arc<SnapshotFile>>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let span = option.soft_ttl();
        let sending = self.clock().timeout(span, self.send_snapshot(vote, snapshot));
        tokio::select! {
            biased;
            sent = sending => match sent {
                Ok(sent) => Ok(sent?),
                Err(_) => Err(RPCError::from(self.late(RPCTypes::InstallSnapshot, span)).into()),
            },
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let message = Message::Transfer(request);
        self.ask(&message, RPCTypes::TransferLeader, option.soft_ttl()).await.map(|_| Ok(()))
    }
}
