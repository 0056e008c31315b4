//! The consensus library, named here and nowhere else: the rest of the crate takes its types from this file.
//!
//! A bump of its version begins here. What is stored or sent is never the library's own serialisation: `codec` lays
//! out entries, votes and messages in bytes of ours.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use openraft::async_runtime::{Instant, WatchReceiver};
pub(crate) use openraft::base::{BoxFuture, BoxStream};
pub(crate) use openraft::entry::RaftEntry;
pub(crate) use openraft::errors::{
    ClientWriteError, ForwardReason, LinearizableReadError, NetworkError, RPCError, RaftError,
    ReplicationClosed, StreamingError, Timeout, Unreachable,
};
pub(crate) use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory};
pub(crate) use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
pub(crate) use openraft::storage::{
    ApplyResponder, EntryResponder, IOFlushed, LogState, RaftLogReader, RaftLogStorage,
    RaftSnapshotBuilder, RaftStateMachine,
};
pub(crate) use openraft::{EntryPayload, OptionalSend, RaftNetworkV2, ReadPolicy};

use crate::machine::Machine;
use crate::runtime::Runtime;

/// What a runtime of the library must be, and the one that it brings.
pub(crate) mod rt {
    #[cfg(test)]
    pub(crate) use openraft::rt::testing::Suite;
    pub(crate) use openraft::rt::{AsyncRuntime, OptionalSend};
    pub(crate) use openraft_tokio::{TokioInstant, TokioRuntime};
}

/// What the log carries for us: the bytes of a batch, with their kind in front (see `codec`).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Operation(pub(crate) Bytes);

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Operation({} bytes)", self.0.len())
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying an entry came to: one result a command.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum Results {
    /// An entry of the library's own, or one that could not be read.
    #[default]
    None,
    /// Of a data range.
    Range(Vec<ashlar_types::Outcome>),
    /// Of the root.
    Root(Vec<ashlar_types::RootOutcome>),
}

openraft::declare_raft_types!(
    /// The types of a group.
    pub(crate) Types:
        D = Operation,
        R = Results,
        NodeId = u64,
        Node = openraft::EmptyNode,
        Term = u64,
        // one leader a term (R1); the library's default allows several
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = Runtime,
);

pub(crate) type Raft = openraft::Raft<Types, Machine>;
pub(crate) type LogId = openraft::alias::LogIdOf<Types>;
pub(crate) type Vote = openraft::alias::VoteOf<Types>;
pub(crate) type Entry = openraft::alias::EntryOf<Types>;
pub(crate) type Membership = openraft::Membership<u64, openraft::EmptyNode>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<Types>;
pub(crate) type Snapshot<D> = openraft::alias::SnapshotOf<Types, D>;
pub(crate) type PeerNode = openraft::EmptyNode;
pub(crate) type ChangeMembers = openraft::ChangeMembers<u64, PeerNode>;

/// The id of an entry.
pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(term.into(), index)
}

/// The library's name of a member, which carries no address: addresses are the cluster map's business.
pub(crate) fn peer_node() -> PeerNode {
    openraft::EmptyNode::new()
}

/// How often and how long a group waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// A leader is heard at least this often.
    pub heartbeat: Duration,
    /// A follower that heard nothing for a random span between this …
    pub election_min: Duration,
    /// … and this stands for election. Also the leader's lease.
    pub election_max: Duration,
}

impl Default for Timing {
    /// A follower stands for election when the leader's lease (`election_max`) and then its own random span have passed
    /// without a word: a killed leader is followed after 1.2 to 1.5 s. A stall of half a second, as a loaded disk of a
    /// small machine has them, deposes nobody.
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(450),
            election_max: Duration::from_millis(750),
        }
    }
}

/// Entries that are kept below a snapshot, for followers that are only a little behind.
const LOG_KEPT: u64 = 64;
/// The most entries of one append: `log` also bounds its bytes.
pub(crate) const APPEND_ENTRIES_MAX: u64 = 64;
/// How long a snapshot may take on its way and in its installation.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(600);

/// The library's configuration of a group, or why it is refused.
pub(crate) fn library_config(
    name: String,
    timing: Timing,
) -> Result<Arc<openraft::Config>, String> {
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let config = openraft::Config {
        cluster_name: name,
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(timing.election_min),
        election_timeout_max: millis(timing.election_max),
        install_snapshot_timeout: millis(SNAPSHOT_PATIENCE),
        max_payload_entries: APPEND_ENTRIES_MAX,
        // a follower gets a snapshot only where the log it needs is gone
        replication_lag_threshold: u64::MAX / 2,
        // by bytes, not by entries: see `keeper`
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: LOG_KEPT,
        purge_batch_size: 1,
        enable_pre_vote: Some(true),
        // a restarted leader's view may be older than what it had served
        enable_leader_restore: Some(false),
        backoff: "50ms 100ms 200ms ...500ms".to_owned(),
        ..openraft::Config::default()
    };
    config.validate().map(Arc::new).map_err(|error| error.to_string())
}
