//! One group on this node: what proposes to its log, what confirms reads, and who may vote.
//!
//! The proposal batcher collects while the proposal before is in flight; no timer. Confirmations of reads are batched
//! the same way: a round that begins after a read arrived serves it. A proposal ends in one of four ways, and they are
//! never folded into each other (C7): done, surely not made (busy, leader, epoch), unknown.

use crate::codec::batch_operation;
use crate::ledger::{CommandResult, Proposal, batch_bytes, split};
use crate::machine::State;
use crate::raft::{
    ClientWriteError, ForwardReason, LinearizableReadError, Raft, RaftError, ReadPolicy, Types,
    WatchReceiver,
};
use ashlar_host::{Host, Monotonic, Shutdown, TaskKind};
use ashlar_types::{Epoch, NodeId, RangeDescriptor, RangeId};
use ashlar_wal::{GroupHealth, Record};
use metrics::{Counter, Histogram};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// The most commands of one entry.
const BATCH_COMMANDS_MAX: usize = 256;
/// A batch takes no more commands once it has so many bytes.
const BATCH_BYTES_MAX: usize = 512 * 1024;
/// Commands that may wait for the batcher: sixteen batches, some tens of milliseconds of work.
const QUEUE_COMMANDS_MAX: usize = 4096;
/// Reads that may wait for a confirmation.
const QUEUE_READS_MAX: usize = 8192;
/// How long a command may take before its end is called unknown: longer than an election.
const COMMAND_PATIENCE: Duration = Duration::from_secs(10);
/// How long a read may wait: nothing is lost when it is asked again.
const READ_PATIENCE: Duration = Duration::from_secs(5);
/// A fresh leader is not sure of itself for some milliseconds.
const RETRY_SOON_MS: u32 = 5;
const RETRY_LATER_MS: u32 = 50;
/// Replicas are compared every few seconds.
const RETRY_DISPUTED_MS: u32 = 1000;

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
    /// Surely not done: ask the leader.
    #[error("not done: the leader is {0:?}")]
    Leader(Option<NodeId>),
    /// Surely not done: the range is at this epoch (`None`: it is not here).
    #[error("not done: the range is at {0:?} here")]
    Epoch(Option<Epoch>),
    /// Surely not done: try again after so many milliseconds.
    #[error("not done: {reason}; try again in {retry_after_ms} ms")]
    Busy {
        /// When.
        retry_after_ms: u32,
        /// Why.
        reason: String,
    },
    /// Proposed, and its end is not known. Never to be taken for success or failure.
    #[error("the outcome is not known: {0}")]
    Unknown(String),
}

fn busy(retry_after_ms: u32, reason: impl Into<String>) -> NotDone {
    NotDone::Busy { retry_after_ms, reason: reason.into() }
}

/// A command's way: whoever gives up first decides whether it was proposed.
const QUEUED: u8 = 0;
const PROPOSED: u8 = 1;
const WITHDRAWN: u8 = 2;

struct Queued {
    /// The epoch of the range that its caller knows.
    epoch: Epoch,
    proposal: Proposal,
    bytes: usize,
    way: Arc<AtomicU8>,
    done: oneshot::Sender<Result<Done, NotDone>>,
}

/// The index at which a command was applied, and its own result.
pub(crate) type Done = (u64, CommandResult);

/// The index that a read has to see.
type ReadDone = oneshot::Sender<Result<u64, NotDone>>;

/// A group.
pub(crate) struct Group {
    pub(crate) range: RangeId,
    pub(crate) raft: Raft,
    pub(crate) state: Arc<State>,
    pub(crate) health: GroupHealth,
    /// It has begun at nothing, where the range had begun before.
    is_anew: bool,
    /// False after a tail was cut, until a leader has caught this node up: the tail may have held a vote.
    may_vote: AtomicBool,
    /// When a leader's append last arrived; before the first one, when the group was opened.
    heard: Mutex<Monotonic>,
    /// Why no write is taken: replicas differ, and it is not known which are right (R4).
    disputed: Mutex<Option<String>>,
    commands: mpsc::Sender<Queued>,
    reads: mpsc::Sender<ReadDone>,
    host: Host,
    /// It was ended while the node runs: no stream holds it any longer.
    pub(crate) closed: Shutdown,
    /// One snapshot is received at a time.
    pub(crate) receiving: tokio::sync::Mutex<()>,
    /// The members are changed one change at a time.
    pub(crate) changing: Arc<tokio::sync::Mutex<()>>,
}

impl Group {
    /// A group, with the tasks that batch its proposals and its reads.
    pub(crate) fn start(
        host: &Host,
        raft: Raft,
        state: Arc<State>,
        (health, is_anew): (GroupHealth, bool),
        lease_reads: bool,
    ) -> Arc<Self> {
        let (commands, queued) = mpsc::channel(QUEUE_COMMANDS_MAX);
        let (reads, waiting) = mpsc::channel(QUEUE_READS_MAX);
        let may_vote = health != GroupHealth::TornTail;
        let group = Arc::new(Self {
            range: state.range,
            raft: raft.clone(),
            state,
            health,
            is_anew,
            may_vote: AtomicBool::new(may_vote),
            heard: Mutex::new(host.clock.now()),
            disputed: Mutex::default(),
            commands,
            reads,
            host: host.clone(),
            closed: Shutdown::default(),
            receiving: tokio::sync::Mutex::new(()),
            changing: Arc::default(),
        });
        if !may_vote {
            tracing::warn!(range = %group.range, "the log's tail was torn: no vote until a leader has caught this node up");
            raft.runtime_config().elect(false);
        }
        let batcher = Batcher::new(host, &group, queued);
        let policy = if lease_reads { ReadPolicy::LeaseRead } else { ReadPolicy::ReadIndex };
        // both end when the group is dropped, which closes their queues
        let _batcher = host.tasks.spawn(TaskKind::Background("propose"), Box::pin(batcher.run()));
        let _confirmer = host.tasks.spawn(
            TaskKind::Background("confirm reads"),
            Box::pin(confirm_reads(raft, waiting, policy)),
        );
        group
    }

    /// The range as far as it is applied here: its epoch and its interval are the ledger's.
    pub(crate) fn descriptor(&self) -> Arc<RangeDescriptor> {
        self.state.descriptor()
    }

    /// Proposes a command that is meant for `epoch` of the range, and waits for its result.
    pub(crate) async fn propose(
        &self,
        epoch: Epoch,
        proposal: Proposal,
        bytes: usize,
    ) -> Result<Done, NotDone> {
        if let Some(why) = self.disputed() {
            return Err(busy(RETRY_DISPUTED_MS, why));
        }
        let (done, end) = oneshot::channel();
        let way = Arc::new(AtomicU8::new(QUEUED));
        let queued = Queued { epoch, proposal, bytes, way: way.clone(), done };
        self.commands
            .try_send(queued)
            .map_err(|_| busy(RETRY_LATER_MS, "too many commands wait for this range"))?;
        match self.host.clock.timeout(COMMAND_PATIENCE, end).await {
            Ok(Ok(result)) => result,
            _ if withdraw(&way) => {
                Err(busy(RETRY_LATER_MS, "the command was not proposed in time"))
            }
            Ok(Err(_)) => Err(NotDone::Unknown("this node is stopping".to_owned())),
            Err(_) => Err(NotDone::Unknown("no quorum answered in time".to_owned())),
        }
    }

    /// Waits until everything that was acknowledged before the call is applied here (R11): up to the index it gives
    /// back, which the reader's view has to hold.
    pub(crate) async fn confirm_read(&self) -> Result<u64, NotDone> {
        let (done, confirmed) = oneshot::channel();
        self.reads
            .try_send(done)
            .map_err(|_| busy(RETRY_LATER_MS, "too many reads wait for this range"))?;
        match self.host.clock.timeout(READ_PATIENCE, confirmed).await {
            Ok(Ok(result)) => result,
            _ => Err(busy(RETRY_LATER_MS, "the read was not confirmed in time")),
        }
    }

    /// Whether this node may vote in this group now.
    pub(crate) fn may_vote(&self) -> bool {
        self.may_vote.load(Ordering::Relaxed)
    }

    /// A leader's entries were taken up to what it had committed, or nobody leads for so long that all tails must have
    /// been torn together: then nobody has a tail that was synced, and waiting would wait for ever.
    pub(crate) fn allow_votes(&self) {
        if !self.may_vote.swap(true, Ordering::Relaxed) {
            self.raft.runtime_config().elect(true);
            self.note_mended();
            tracing::info!(range = %self.range, "may vote again");
        }
    }

    /// The WAL shall not tell of the torn tail again.
    fn note_mended(&self) {
        if let Err(error) = self.state.wal.submit(self.range, Record::CaughtUp, Box::new(drop)) {
            tracing::debug!(%error, "the mended tail was not noted");
        }
    }

    /// Whether this replica has nothing yet, and may not begin with the first entries of the log: what the range was before
    /// them, its epoch and its interval, is not what this node was told of it, and what they write may be a child's here.
    pub(crate) fn begins_with_snapshot(&self) -> bool {
        let has_nothing =
            || self.state.newest().is_none() && matches!(self.state.applied(), Ok(None) | Err(_));
        self.is_anew && has_nothing()
    }

    /// Why this replica, while it leads, takes no writes.
    pub(crate) fn disputed(&self) -> Option<String> {
        self.disputed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it is disputed which replicas are right.
    pub(crate) fn note_disputed(&self, why: Option<String>) {
        *self.disputed.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// A leader's append has arrived.
    pub(crate) fn note_append(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = self.host.clock.now();
    }

    /// For how long no leader has been heard in this boot.
    pub(crate) fn silence(&self) -> Duration {
        self.host.clock.now() - *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who leads, as far as this node knows: a hint. It names whoever led when this node stopped, too, until there is
    /// another vote: it says nothing about anybody being there.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        self.raft.server_metrics().borrow_watched().current_leader.map(NodeId)
    }
}

fn withdraw(way: &AtomicU8) -> bool {
    way.compare_exchange(QUEUED, WITHDRAWN, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

struct Batcher {
    host: Host,
    raft: Raft,
    node: NodeId,
    waiting: Waiting,
    proposals: Counter,
    batch_commands: Histogram,
}

impl Batcher {
    fn new(host: &Host, group: &Group, queue: mpsc::Receiver<Queued>) -> Self {
        Self {
            host: host.clone(),
            raft: group.raft.clone(),
            node: NodeId(*group.raft.node_id()),
            waiting: Waiting { queue, next: None },
            proposals: metrics::counter!("ashlar_raft_proposals_total"),
            batch_commands: metrics::histogram!("ashlar_raft_batch_commands"),
        }
    }

    async fn run(mut self) {
        while let Some((epoch, batch)) = self.waiting.collect().await {
            self.propose(epoch, batch).await;
        }
    }

    async fn propose(&self, epoch: Epoch, batch: Vec<Queued>) {
        if batch.is_empty() {
            return;
        }
        self.proposals.increment(1);
        self.batch_commands.record(u32::try_from(batch.len()).unwrap_or(u32::MAX));
        let (proposals, waiting): (Vec<Proposal>, Vec<_>) =
            batch.into_iter().map(|queued| (queued.proposal, queued.done)).unzip();
        let bytes = batch_bytes(epoch, self.host.clock.wall_ms(), proposals);
        let written = self.raft.client_write(batch_operation(&bytes)).await;
        // a receiver that is gone has given up, and called the outcome unknown
        match written {
            Ok(response) => {
                let index = response.log_id.index;
                let mut results = split(response.data).into_iter();
                for done in waiting {
                    let lost =
                        || NotDone::Unknown("the entry could not be applied as a batch".to_owned());
                    drop(done.send(results.next().map(|result| (index, result)).ok_or_else(lost)));
                }
            }
            Err(error) => {
                let why = self.not_done(error);
                waiting.into_iter().for_each(|done| drop(done.send(Err(why.clone()))));
            }
        }
    }

    fn not_done(&self, error: RaftError<Types, ClientWriteError<Types>>) -> NotDone {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
                forward(self.node, to.leader_id, to.reason)
            }
            RaftError::APIError(other) => NotDone::Unknown(other.to_string()),
            RaftError::Fatal(fatal) => NotDone::Unknown(fatal.to_string()),
        }
    }
}

/// The commands that wait for a batch.
struct Waiting {
    queue: mpsc::Receiver<Queued>,
    /// Taken from the queue, and not for the batch before: that would be too large, or is of another epoch.
    next: Option<Queued>,
}

impl Waiting {
    /// Everything that waits for one epoch, up to the limits; `None`: the group has ended.
    ///
    /// The epoch is the callers', not the one that the range has reached meanwhile: apply refuses a batch of an older
    /// one, so that nobody takes what was done in a part of the interval for done in all of it.
    async fn collect(&mut self) -> Option<(Epoch, Vec<Queued>)> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let first = match self.next.take() {
            Some(first) => first,
            None => self.queue.recv().await?,
        };
        let epoch = first.epoch;
        let mut candidate = Some(first);
        while let Some(queued) = candidate {
            let is_full = bytes > 0 && bytes + queued.bytes > BATCH_BYTES_MAX;
            let is_apart = queued.proposal.is_alone() && !batch.is_empty();
            if queued.epoch != epoch || is_full || is_apart {
                self.next = Some(queued);
                break;
            }
            let is_alone = queued.proposal.is_alone();
            bytes += queued.bytes;
            // from here on its caller can no longer withdraw it
            let claimed =
                queued.way.compare_exchange(QUEUED, PROPOSED, Ordering::AcqRel, Ordering::Acquire);
            if claimed.is_ok() {
                batch.push(queued);
            }
            let is_over = is_alone || batch.len() >= BATCH_COMMANDS_MAX;
            candidate = if is_over { None } else { self.queue.try_recv().ok() };
        }
        Some((epoch, batch))
    }
}

/// The library refused before it did anything.
fn forward(node: NodeId, leader: Option<u64>, reason: ForwardReason) -> NotDone {
    match (leader.map(NodeId), reason) {
        (_, ForwardReason::LeaseExpired) => {
            busy(RETRY_SOON_MS, "the leader is not sure of a quorum yet")
        }
        (Some(leader), _) if leader == node => busy(RETRY_SOON_MS, "leadership is changing"),
        (Some(leader), _) => NotDone::Leader(Some(leader)),
        (None, _) => busy(RETRY_LATER_MS, "the range has no leader at the moment"),
    }
}

/// Confirms leadership once for all reads that wait.
async fn confirm_reads(raft: Raft, mut queue: mpsc::Receiver<ReadDone>, policy: ReadPolicy) {
    let node = NodeId(*raft.node_id());
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, QUEUE_READS_MAX).await > 0 {
        let result = confirm(&raft, node, policy.clone()).await;
        for done in waiting.drain(..) {
            // a reader that is gone wants no answer
            drop(done.send(result.clone()));
        }
    }
}

async fn confirm(raft: &Raft, node: NodeId, policy: ReadPolicy) -> Result<u64, NotDone> {
    match raft.ensure_linearizable(policy).await {
        Ok(read) => Ok(read.log_id().index),
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => {
            Err(forward(node, to.leader_id, to.reason))
        }
        Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
            Err(busy(RETRY_LATER_MS, "no quorum answers"))
        }
        // a read does nothing: its end is never unknown
        Err(RaftError::Fatal(_)) => Err(busy(RETRY_LATER_MS, "the range is stopped on this node")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_types::{Command, RangeOp};

    fn queued(epoch: u64, bytes: usize) -> Queued {
        let command = Command { caller: None, op: RangeOp::ReportHash };
        Queued {
            epoch: Epoch(epoch),
            proposal: Proposal::Range(Box::new(command)),
            bytes,
            way: Arc::new(AtomicU8::new(QUEUED)),
            done: oneshot::channel().0,
        }
    }

    #[tokio::test]
    async fn a_batch_has_the_commands_of_one_epoch_in_order_and_up_to_its_limits() {
        let (commands, queue) = mpsc::channel(QUEUE_COMMANDS_MAX);
        let mut waiting = Waiting { queue, next: None };
        for (epoch, bytes) in [(1, 10), (1, 10), (2, 10), (1, 10), (1, BATCH_BYTES_MAX)] {
            commands.try_send(queued(epoch, bytes)).expect("there is room");
        }
        let raise = Command { caller: None, op: RangeOp::RaiseApplyVersion { version: 3 } };
        let raise = Queued { proposal: Proposal::Range(Box::new(raise)), ..queued(1, 10) };
        commands.try_send(raise).expect("there is room");
        commands.try_send(queued(1, 10)).expect("there is room");
        let withdrawn = queued(1, 10);
        assert!(withdraw(&withdrawn.way));
        commands.try_send(withdrawn).expect("there is room");
        drop(commands);
        let mut batches = Vec::new();
        while let Some((epoch, batch)) = waiting.collect().await {
            assert!(batch.iter().all(|queued| queued.epoch == epoch));
            batches.push((epoch.0, batch.len()));
        }
        // a raise is alone: whoever does not know it may read nothing else of its entry
        assert_eq!(batches, [(1, 2), (2, 1), (1, 1), (1, 1), (1, 1), (1, 1)]);
    }
}
