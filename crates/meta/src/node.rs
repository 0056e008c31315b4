//! The groups of a node: opened from what is stored, or founded; served; stopped.

mod turnover;

use crate::agreement;
use crate::birth::{
    Birth, Births, Born, Created, FoundingList, Nursery, Origin, descendants, first_ranges,
    parents_first,
};
use crate::boots::{Boot, Boots};
use crate::codec::{read_log_id, read_vote};
use crate::directory::Directory;
use crate::group::{Group, NotDone};
use crate::keeper;
use crate::ledger::{CommandResult, Proposal, Reader, Unanswered, Versions};
use crate::log::LogStore;
use crate::machine::{Machine, State, forget_rows, read_applied};
use crate::members;
use crate::network::{Addresses, Peers, Sender};
use crate::raft::{Raft, Timing, WatchReceiver, library_config, peer_node};
use crate::refill::{self, Damaged, DamagedRange, Reason, Removal};
use crate::service;
use crate::snapshot::{SnapshotError, Snapshots};
use ashlar_catalog::{CatalogError, OrderedMap, Recount};
use ashlar_host::{Host, Monotonic, Shutdown, TaskKind};
use ashlar_map::Engine;
use ashlar_types::{
    ApplyVersions, ClusterId, Command, CommandReply, Epoch, Interval, Node, NodeId, NodeVersions,
    RangeAnswer, RangeDescriptor, RangeId, RangeOp, RangeQuery, RangeReplicas, ReplicaMove,
    ReplicaReport, RootAnswer, RootCommand, RootOp, RootOutcome, RootQuery, RootRefusal, bug,
    encode,
};
use ashlar_wal::{GroupHealth, Wal, WalConfig};
use ashlar_wire::Dialer;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

/// How long a leader waits for another one when it stops.
const TRANSFER_PATIENCE: Duration = Duration::from_millis(1500);
/// How long one that was asked to lead may take before it is asked again.
const TRANSFER_RETRY: Duration = Duration::from_millis(200);
/// How long tasks of a stopped group may take to let go of the map.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// How often a founder asks for an election until its group has its first leader.
const FOUNDING_PERIOD: Duration = Duration::from_millis(50);
const FOUNDING_PERIOD_MAX: Duration = Duration::from_secs(1);
/// What to do when the log has failed.
const LOG_ADVICE: &str = "Look at the disk of the node's directory: has it room, are there errors in the system's log? Then start the node again, or let its supervisor do so";
/// Says that the map was synced and closed: it may be trusted under every engine.
const CLEAN_MARK: &str = "map.clean";

/// What a node's metadata role is started with.
#[derive(Debug, Clone)]
pub struct MetaConfig {
    /// This node.
    pub node: NodeId,
    /// Raised by every boot.
    pub incarnation: u64,
    /// Where WAL, map and snapshots lie.
    pub dir: PathBuf,
    /// The engine of the map.
    pub engine: Engine,
    /// The size of a WAL file.
    pub wal_file_bytes: u64,
    /// Whether a leader answers reads by its lease, without asking a quorum: only where clocks count suspend.
    pub lease_reads: bool,
    /// Heartbeats and elections.
    pub timing: Timing,
    /// A snapshot is taken when the log since the last one has grown beyond the range's size, and beyond this.
    pub snapshot_log_bytes: u64,
    /// How often replicas are compared that have applied something since.
    pub compare_every: Duration,
    /// By which versions it applies.
    pub versions: Versions,
}

impl Default for MetaConfig {
    fn default() -> Self {
        Self {
            node: NodeId(1),
            incarnation: 1,
            dir: PathBuf::from("meta"),
            engine: Engine::default(),
            wal_file_bytes: 128 << 20,
            lease_reads: false,
            timing: Timing::default(),
            // half a minute of small PUTs on two cores, and a small part of the WAL's 10 GiB for each of nine ranges
            snapshot_log_bytes: 64 << 20,
            // two small questions a range, only while it is written to
            compare_every: Duration::from_secs(5),
            versions: Versions::default(),
        }
    }
}

/// The first members of a cluster.
#[derive(Debug, Clone)]
pub struct Formation {
    /// A random id.
    pub cluster: ClusterId,
    /// All first nodes.
    pub nodes: Vec<Node>,
    /// Those that hold the metadata: one, three or five.
    pub voters: Vec<NodeId>,
    /// The bucket region's name.
    pub region: String,
    /// Into how many data ranges the keys are split at first; at least one.
    pub ranges: u64,
}

/// How a node came into its cluster.
#[derive(Debug, Clone)]
pub enum Beginning {
    /// It is one of the first.
    Founder(Formation),
    /// It has joined a cluster that was there: it holds what the root's directory gives it.
    Joined(ClusterId),
}

impl Beginning {
    fn cluster(&self) -> ClusterId {
        match self {
            Self::Founder(formation) => formation.cluster,
            Self::Joined(cluster) => *cluster,
        }
    }

    fn formation(&self) -> Option<&Formation> {
        match self {
            Self::Founder(formation) => Some(formation),
            Self::Joined(_) => None,
        }
    }
}

/// Why the metadata role does not start.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// The file system refused.
    #[error("cannot use the metadata directory {0}: {1}")]
    Directory(PathBuf, std::io::Error),
    /// The WAL refused.
    #[error("the metadata log cannot be opened: {0}")]
    Wal(#[from] ashlar_wal::WalError),
    /// The map refused, even when it was empty.
    #[error("the metadata map cannot be opened: {0}")]
    Map(String),
    /// A snapshot cannot be read; nothing is known to be damaged.
    #[error("{0}, and the log below it is gone: mend what the reason names, then start again")]
    Snapshot(String),
    /// A snapshot is not whole.
    #[error("{0}, and the log below it is gone")]
    DamagedSnapshot(String),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
    /// Stored bytes are not understood.
    #[error("the metadata of {0} is not understood: {1}")]
    Stored(RangeId, String),
    /// Another cluster's directory.
    #[error(
        "the metadata directory belongs to cluster {found}, not to {wanted}: use another directory"
    )]
    OtherCluster {
        /// What is stored.
        found: ClusterId,
        /// What was asked for.
        wanted: ClusterId,
    },
    /// The settings contradict each other.
    #[error("the settings of the metadata role do not fit together: {0}")]
    Settings(String),
    /// What a range was before its first entry is not here.
    #[error("{0} cannot be opened: what it was before its first entry is not here")]
    NoBeginning(RangeId),
    /// A group's stored state is not one that it can have.
    #[error("{0} cannot be opened: {1}")]
    Group(RangeId, String),
    /// The cluster applies by a version that this binary does not know.
    #[error(
        "this release is too old for the cluster ({0}: {1}). Install the release that the others run"
    )]
    OldRelease(RangeId, String),
}

/// How a group stands on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// The range.
    pub range: RangeId,
    /// Who leads, as far as this node knows.
    pub leader: Option<NodeId>,
    /// The term.
    pub term: u64,
    /// The last index of the log.
    pub last: Option<u64>,
    /// The last index that was applied.
    pub applied: Option<u64>,
    /// The last index that is known as committed.
    pub committed: Option<u64>,
    /// What the newest snapshot holds.
    pub snapshot: Option<u64>,
    /// What the log no longer holds.
    pub purged: Option<u64>,
    /// Who votes.
    pub voters: Vec<NodeId>,
    /// Whether this node may vote: not while a torn tail is being mended.
    pub may_vote: bool,
    /// The index applied last, and the state hash there: equal on all replicas at the same index (R4).
    pub state_hash: Option<(u64, u128)>,
}

/// The metadata role of a node.
pub struct MetaNode(Arc<Inner>);

impl std::fmt::Debug for MetaNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MetaNode({})", self.0.node)
    }
}

/// What the services and the keeper share.
pub(crate) struct Inner {
    pub(crate) host: Host,
    pub(crate) node: NodeId,
    pub(crate) cluster: ClusterId,
    pub(crate) boots: Arc<Boots>,
    pub(crate) sender: Sender,
    pub(crate) snapshot_log_bytes: u64,
    /// What the root's directory says.
    pub(crate) directory: Directory,
    /// What opens groups.
    opening: Arc<Opening>,
    /// Replicas that are not opened until they are refilled.
    damaged: Mutex<BTreeMap<RangeId, Damaged>>,
    /// Replicas that are not opened until what they were a part of has passed the split.
    waiting: Mutex<BTreeMap<RangeId, Waiting>>,
    /// Held while those that need wait no longer are opened.
    pub(crate) opening_due: tokio::sync::Mutex<()>,
    /// Taken when the node stops: it closes with its last user.
    map: Mutex<Option<Arc<dyn OrderedMap>>>,
    wal: Wal,
    dir: PathBuf,
    groups: RwLock<BTreeMap<RangeId, Arc<Group>>>,
    /// Groups that were ended while the node runs, and whose last users may not have let go of them.
    ending: Mutex<BTreeMap<RangeId, Weak<State>>>,
    /// How many replicas were found since the start whose state was not that of the others.
    distrusted: AtomicU64,
    /// Why this release is too old.
    outgrown: OnceLock<String>,
    /// It is too old.
    outgrowing: Shutdown,
    /// Nothing new is begun.
    stopping: Shutdown,
    /// The groups end: their streams shall not hold up the port.
    pub(crate) closed: Shutdown,
}

/// A replica that was a part of a range which is behind the split here: its rows would be under the entries that the
/// other has still to apply.
#[derive(Clone)]
struct Waiting {
    created: Created,
    state: Arc<State>,
    /// When it was tried to no avail.
    tried: Option<Monotonic>,
}

/// The replicas of a node while they are opened.
#[derive(Default)]
struct Replicas {
    groups: BTreeMap<RangeId, Arc<Group>>,
    waiting: BTreeMap<RangeId, Waiting>,
    damaged: BTreeMap<RangeId, Damaged>,
}

/// The groups of a node when it starts.
struct Founded {
    stored: Vec<Created>,
    /// They were founded, and are not stored any more.
    lost: Vec<RangeDescriptor>,
}

impl MetaNode {
    /// Opens what is stored; where nothing is, and this node is a founder, what it founds. Groups elect in the background.
    pub async fn start(
        host: Host,
        dialer: Dialer,
        config: MetaConfig,
        addresses: Addresses,
        beginning: Beginning,
    ) -> Result<Arc<Self>, MetaError> {
        let nursery = Arc::<Nursery>::default();
        let opening = Opening::open(host, config, nursery.clone())?;
        let founded = opening.found(beginning.formation()).await?;
        let cluster = opening.check_cluster(&founded, &beginning)?;
        let every = opening.config.compare_every;
        let inner = opening.start_groups(dialer, addresses, cluster, founded).await?;
        let tasks = &inner.host.tasks;
        let weak = Arc::downgrade(&inner);
        let keeper = Box::pin(keeper::run(weak.clone()));
        let _keeper = tasks.spawn(TaskKind::Background("keep ranges"), keeper);
        let opening = Box::pin(open_born(weak.clone(), nursery, inner.stopping.clone()));
        let _opening = tasks.spawn(TaskKind::Background("open split ranges"), opening);
        let refilling = Box::pin(refill::run(weak.clone()));
        let _refilling = tasks.spawn(TaskKind::Background("refill ranges"), refilling);
        let comparing = Box::pin(agreement::run(weak.clone(), every));
        let _comparing = tasks.spawn(TaskKind::Background("compare replicas"), comparing);
        let leaving = Box::pin(leave_when_outdated(
            weak,
            inner.boots.clone(),
            inner.stopping.clone(),
            inner.host.shutdown.clone(),
        ));
        let _leaving = tasks.spawn(TaskKind::Background("leave when outdated"), leaving);
        inner.elect_first_leaders();
        if let Beginning::Founder(formation) = beginning {
            let bootstrap = Box::pin(inner.clone().bootstrap(formation));
            let _bootstrap = inner.host.tasks.spawn(TaskKind::Background("bootstrap"), bootstrap);
        }
        Ok(Arc::new(Self(inner)))
    }

    /// Adds this role's services to those of the internal port.
    pub fn add_routes(&self, routes: tonic::service::Routes) -> tonic::service::Routes {
        service::add_routes(&self.0, routes)
    }

    /// This role's services alone.
    pub fn routes(&self) -> tonic::service::Routes {
        self.add_routes(tonic::service::Routes::default())
    }

    /// Sends a command to a range.
    pub async fn execute(
        &self,
        range: RangeId,
        epoch: Epoch,
        command: Command,
    ) -> Result<CommandReply, NotDone> {
        let bytes = encode(&command).len();
        self.0.execute(range, epoch, command, bytes).await
    }

    /// Reads from a range.
    pub async fn query(
        &self,
        range: RangeId,
        epoch: Epoch,
        query: RangeQuery,
    ) -> Result<RangeAnswer, NotDone> {
        self.0.query(range, epoch, query).await
    }

    /// Sends a command to the root.
    pub async fn root_execute(&self, command: RootCommand) -> Result<RootOutcome, NotDone> {
        let bytes = encode(&command).len();
        self.0.root_execute(command, bytes).await
    }

    /// Reads from the root.
    pub async fn root_query(&self, query: RootQuery) -> Result<RootAnswer, NotDone> {
        self.0.root_query(query).await
    }

    /// Epoch and interval of a range that runs here, as far as it is applied.
    pub fn descriptor(&self, range: RangeId) -> Option<Arc<RangeDescriptor>> {
        self.0.group(range).map(|group| group.descriptor())
    }

    /// Takes note of the range directory as the root has it. What it gives this node, and is not here, is asked for; what is
    /// here and others hold goes; the members of ranges that this node leads are made to be what it says.
    pub fn note_directory(&self, ranges: &[RangeReplicas]) {
        self.0.directory.note(ranges, self.0.host.clock.now());
        let node = self.0.node;
        ranges.iter().filter(|one| one.names(node)).for_each(|one| self.0.note_lacking(one));
    }

    /// The moves of replicas that are done, as a quorum has confirmed, in ranges that this node leads: the root may be told.
    pub async fn settled_moves(&self) -> Vec<ReplicaMove> {
        members::settled(&self.0).await
    }

    /// Counts every range that runs here anew, by a visit of each of its rows: long, for tests and for doubts.
    pub fn recount(&self) -> Result<Vec<(RangeId, Recount)>, CatalogError> {
        let mut counted = Vec::new();
        for group in self.0.groups() {
            counted.extend(group.state.recount()?.map(|(_, found)| (group.range, found)));
        }
        Ok(counted)
    }

    /// How the groups of this node stand.
    pub fn status(&self) -> Vec<GroupStatus> {
        self.0.groups().iter().map(|group| status(group)).collect()
    }

    /// The replicas of this node that take no part until they are filled.
    pub fn damaged(&self) -> Vec<DamagedRange> {
        let told = |Damaged { descriptor, why, standing, .. }| DamagedRange {
            range: descriptor.id,
            why,
            standing,
        };
        let here = self.0.damaged().into_iter();
        here.filter(|replica| replica.reason != Reason::Leaves).map(told).collect()
    }

    /// The newest versions that this binary can apply by.
    pub fn known_versions(&self) -> ApplyVersions {
        self.0.known()
    }

    /// Raises the version by which a range applies that this node leads. Done already is done.
    pub async fn raise_apply_version(&self, range: RangeId, version: u32) -> Result<(), NotDone> {
        let epoch = self.descriptor(range).ok_or(NotDone::Epoch(None))?.epoch;
        let command = Command { caller: None, op: RangeOp::RaiseApplyVersion { version } };
        self.execute(range, epoch, command).await.map(|_| ())
    }

    /// What the cluster applies by, as the root says. Where that is beyond what this binary knows, the node must be ended.
    pub fn note_versions(&self, used: ApplyVersions) {
        let known = self.known_versions();
        if !known.include(&used) {
            let why = format!("it applies by {used}, this binary knows {known}");
            self.0.note_outgrown(RangeId::ROOT, &why);
        }
    }

    /// By which version a range that runs here applies, as far as it is applied.
    pub fn apply_version(&self, range: RangeId) -> Option<u32> {
        self.0.group(range).map(|group| group.state.apply_version())
    }

    /// Visits every row of a replica, and compares it with the others: long.
    pub async fn verify(&self, range: RangeId) -> Result<ReplicaReport, NotDone> {
        self.0.verify(range).await
    }

    /// How many replicas of this node were found since its start to have another state than the others (R4).
    pub fn distrusted(&self) -> u64 {
        self.0.distrusted.load(Ordering::Relaxed)
    }

    /// Loses a row past the log, as no entry does: for tests of what finds that.
    #[doc(hidden)]
    pub fn spoil(&self, key: Vec<u8>) -> Result<(), String> {
        let map = self.0.map.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut writes = ashlar_catalog::Writes::default();
        writes.remove(key);
        map.ok_or("the node is stopping")?.write(writes).map_err(|error| error.to_string())
    }

    /// Waits until a peer says that this node is an old image of one that has booted since, or a copy; gives that as a
    /// sentence. From then on the node takes no part in any group.
    pub async fn until_outdated(&self) -> String {
        self.0.boots.until_outdated().await
    }

    /// Why this node must be ended, and only stands in the way of its groups until then: its write-ahead log takes nothing
    /// more, or a range has been raised beyond what this release knows.
    pub fn failure(&self) -> Option<String> {
        let failed = self.0.wal.failure().map(|error| format!("{error}. {LOG_ADVICE}"));
        failed.or_else(|| self.0.outgrown.get().cloned())
    }

    /// Waits until the node must be ended; says why.
    pub async fn until_failed(&self) -> String {
        tokio::select! {
            _ = self.0.wal.until_failed() => {}
            () = self.0.outgrowing.requested() => {}
        }
        self.failure().unwrap_or_default()
    }

    /// Hands leadership over, flushes and closes everything.
    pub async fn stop(&self) {
        self.0.stop().await;
    }

    /// Ends without handing anything over or flushing: what a crash leaves of a process that goes on, for tests.
    #[doc(hidden)]
    pub async fn abandon(&self) {
        self.0.stopping.request();
        let groups = self.0.take_groups();
        self.0.close_groups(groups).await;
        drop(self.0.last_map().await);
        self.0.wal.close().await;
    }
}

fn status(group: &Group) -> GroupStatus {
    let metrics = group.raft.metrics().borrow_watched().clone();
    GroupStatus {
        range: group.range,
        leader: metrics.current_leader.map(NodeId),
        term: metrics.current_term,
        last: metrics.last_log_index,
        applied: metrics.last_applied.map(|id| id.index),
        committed: metrics.local_committed.map(|id| id.index),
        snapshot: metrics.snapshot.map(|id| id.index),
        purged: metrics.purged.map(|id| id.index),
        voters: metrics.membership_config.voter_ids().map(NodeId).collect(),
        may_vote: group.may_vote(),
        state_hash: group.state.hash(),
    }
}

/// Why a group does not open: its state may have been raised beyond what this binary knows.
fn unopened(state: &State, error: &dyn std::error::Error) -> MetaError {
    match state.outgrown() {
        Some(why) => MetaError::OldRelease(state.range, why.to_owned()),
        None => MetaError::Group(state.range, error.to_string()),
    }
}

async fn shut(group: &Group) {
    if let Err(error) = group.raft.shutdown().await {
        tracing::warn!(range = %group.range, %error, "the range did not end cleanly");
    }
}

/// A node's stores, before its groups run.
struct Opening {
    host: Host,
    config: MetaConfig,
    wal: Wal,
    nursery: Arc<Nursery>,
}

impl Opening {
    fn open(host: Host, config: MetaConfig, nursery: Arc<Nursery>) -> Result<Self, MetaError> {
        let snapshots = config.dir.join("snapshots");
        host.disk
            .create_dir_all(&snapshots)
            .map_err(|error| MetaError::Directory(snapshots, error))?;
        let wal = WalConfig {
            file_bytes: config.wal_file_bytes,
            ..WalConfig::new(config.dir.join("wal"))
        };
        let wal = Wal::open(&host, wal)?;
        Ok(Self { host, config, wal, nursery })
    }

    fn births(&self, cluster: ClusterId) -> Births {
        Births { cluster, node: self.config.node, nursery: self.nursery.clone() }
    }

    /// The groups that are stored. Where nothing was ever founded here, those of the formation, made durable.
    async fn found(&self, formation: Option<&Formation>) -> Result<Founded, MetaError> {
        let mut stored = self.stored()?;
        let lacking =
            formation.map(|formation| FoundingList::lacking(formation, self.config.node, &stored));
        if lacking.as_ref().is_none_or(FoundingList::is_empty) {
            return Ok(Founded { stored, lost: Vec::new() });
        }
        let mark = self.founded_mark();
        // a crash may have left some of them; the root comes last, so that with it all were there
        let has_root = stored.iter().any(|created| created.range() == RangeId::ROOT);
        if self.host.disk.exists(&mark) || has_root {
            self.mark_founded(&mark)?;
            let mut lost = lacking.map_or_else(Vec::new, FoundingList::into_lost);
            // what has left says so in the log
            lost.retain(|range| !self.wal.state(range.id).dropped);
            return Ok(Founded { stored, lost });
        }
        for birth in lacking.into_iter().flat_map(FoundingList::births) {
            stored.push(birth.write(&self.wal).await?);
        }
        // before any of them runs: what votes was founded once, and is never founded again
        self.mark_founded(&mark)?;
        Ok(Founded { stored, lost: Vec::new() })
    }

    /// Says, outside of the directory, that the groups were founded: without them, it was wiped.
    fn founded_mark(&self) -> PathBuf {
        let mut name = self.config.dir.file_name().unwrap_or_default().to_owned();
        name.push(".founded");
        self.config.dir.with_file_name(name)
    }

    fn mark_founded(&self, mark: &std::path::Path) -> Result<(), MetaError> {
        if self.host.disk.exists(mark) {
            return Ok(());
        }
        let marked = self.host.disk.replace(mark, b"");
        marked.map_err(|error| MetaError::Directory(mark.to_owned(), error))
    }

    fn stored(&self) -> Result<Vec<Created>, MetaError> {
        let mut stored = Vec::new();
        for group in self.wal.groups() {
            let created = Created::stored(&self.wal, group);
            stored.extend(created.map_err(|why| MetaError::Stored(group, why.to_string()))?);
        }
        Ok(stored)
    }

    fn check_cluster(
        &self,
        founded: &Founded,
        beginning: &Beginning,
    ) -> Result<ClusterId, MetaError> {
        let wanted = beginning.cluster();
        match founded.stored.first().map(Created::cluster) {
            Some(found) if found != wanted => Err(MetaError::OtherCluster { found, wanted }),
            _ => Ok(wanted),
        }
    }

    async fn start_groups(
        self,
        dialer: Dialer,
        addresses: Addresses,
        cluster: ClusterId,
        founded: Founded,
    ) -> Result<Arc<Inner>, MetaError> {
        let Founded { stored, lost } = founded;
        let map = self.open_map(&stored)?;
        let config = &self.config;
        let own = Boot { incarnation: config.incarnation, nonce: self.host.random.next_u64() };
        let boots = Arc::new(Boots::load(self.wal.clone(), config.node.0, own));
        let sender = Sender {
            host: self.host.clone(),
            dialer,
            addresses,
            cluster,
            node: config.node,
            boots: boots.clone(),
            patience: config.timing.election_min,
        };
        let mut here = Replicas::default();
        for descriptor in lost {
            let lost = "its log is gone, although the range was founded here";
            here.damaged.insert(descriptor.id, Damaged::lost(descriptor, lost));
        }
        for created in parents_first(stored) {
            let range = created.range();
            if self.wal.state(range).health == GroupHealth::Corrupt
                && !bug!("damaged-replica-votes")
            {
                let corrupt = "its log is damaged below what was synced";
                here.damaged.insert(range, Damaged::stored(&created, corrupt));
                continue;
            }
            if let Some(why) = self.distrusted(range) {
                here.damaged.insert(range, Damaged::stored(&created, why));
                continue;
            }
            match self.open_replica(&map, &sender, &created, &mut here).await {
                Ok(()) => {}
                // they are the same for all groups
                Err(error @ (MetaError::Settings(_) | MetaError::OldRelease(..))) => {
                    futures::future::join_all(here.groups.values().map(|group| shut(group))).await;
                    return Err(error);
                }
                Err(MetaError::DamagedSnapshot(why)) => {
                    here.damaged.insert(range, Damaged::stored(&created, why));
                }
                Err(error @ MetaError::NoBeginning(_)) => {
                    here.damaged.insert(range, Damaged::stored(&created, error.to_string()));
                }
                Err(error) => {
                    tracing::error!(%range, %error, "the range does not open: it is not served here");
                }
            }
        }
        let Replicas { groups, waiting, damaged } = here;
        Ok(Arc::new(Inner {
            host: self.host.clone(),
            node: config.node,
            cluster,
            boots,
            sender,
            snapshot_log_bytes: config.snapshot_log_bytes,
            map: Mutex::new(Some(map)),
            wal: self.wal.clone(),
            dir: config.dir.clone(),
            directory: Directory::default(),
            opening: Arc::new(self),
            damaged: Mutex::new(damaged),
            waiting: Mutex::new(waiting),
            opening_due: tokio::sync::Mutex::default(),
            groups: RwLock::new(groups),
            ending: Mutex::default(),
            distrusted: AtomicU64::new(0),
            outgrown: OnceLock::new(),
            outgrowing: Shutdown::default(),
            stopping: Shutdown::default(),
            closed: Shutdown::default(),
        }))
    }

    /// Opens a replica whose parent, if it is here, was looked at before: its group runs, or it waits.
    async fn open_replica(
        &self,
        map: &Arc<dyn OrderedMap>,
        sender: &Sender,
        created: &Created,
        here: &mut Replicas,
    ) -> Result<(), MetaError> {
        let state = Arc::new(self.open_state(map, created.descriptor())?);
        let parent = created.origin().map(|origin| origin.parent);
        let runs = |id: RangeId| here.groups.get(&id).map(|group| group.state.clone());
        let waits = |id: RangeId| here.waiting.get(&id).map(|parent| parent.state.clone());
        if let Some(parent) = parent.and_then(|id| runs(id).or_else(|| waits(id))) {
            parent.adopt(&state);
        }
        let is_lost = parent.is_some_and(|id| here.damaged.contains_key(&id));
        let (range, waiting) =
            (created.range(), Waiting { created: created.clone(), state, tried: None });
        if is_lost || !self.may_open(created.origin(), runs) {
            here.waiting.insert(range, waiting);
            return Ok(());
        }
        let runs = |id: RangeId| here.groups.contains_key(&id);
        match self.start_group(sender, created, waiting.state.clone(), &runs).await {
            Ok(group) => drop(here.groups.insert(range, group)),
            Err(
                error @ (MetaError::Settings(_)
                | MetaError::NoBeginning(_)
                | MetaError::OldRelease(..)),
            ) => return Err(error),
            // a full disk, or one that fails for a moment: it is tried again
            Err(error) => {
                tracing::error!(%range, %error, "the range does not open yet: it is not served here");
                here.waiting.insert(range, waiting);
            }
        }
        Ok(())
    }

    /// Whether what a range was a part of is past the split here, or is not here: until then they would overlap. `runs`:
    /// the state of a range whose group runs.
    fn may_open(
        &self,
        origin: Option<&Origin>,
        runs: impl Fn(RangeId) -> Option<Arc<State>>,
    ) -> bool {
        let Some(Origin { parent, split, .. }) = origin else { return true };
        match runs(*parent) {
            Some(state) => {
                let applied = state.applied().ok().flatten();
                applied.is_some_and(|applied| applied.index >= split.index)
            }
            None => self.wal.state(*parent).created.is_none(),
        }
    }

    /// A range that begins from nothing applies what it had before its splits once more, and may meet no rows of those
    /// who have them now. They wait meanwhile, and begin again from their own snapshots and logs. One that runs was here when
    /// the range had left: what comes back begins with a snapshot of behind their split, and applies nothing of before.
    fn forget_descendants(
        &self,
        map: &dyn OrderedMap,
        range: RangeId,
        of: &Interval,
        runs: &(dyn Fn(RangeId) -> bool + Sync),
    ) -> Result<(), MetaError> {
        let is_under = |child: &&Created| {
            let theirs = &child.descriptor().interval;
            theirs.without(of) != [theirs.clone()] && !runs(child.range())
        };
        for child in descendants(self.stored()?, range).iter().filter(is_under) {
            let forgotten = forget_rows(map, child.descriptor());
            forgotten.map_err(|error| MetaError::Group(range, error.to_string()))?;
        }
        Ok(())
    }

    async fn start_group(
        &self,
        sender: &Sender,
        created: &Created,
        state: Arc<State>,
        runs: &(dyn Fn(RangeId) -> bool + Sync),
    ) -> Result<Arc<Group>, MetaError> {
        let range = created.range();
        let refused = |why: String| MetaError::Group(range, why);
        let stored = self.wal.state(range);
        if stored.installing.is_some() {
            state.forget_applied().map_err(|error| refused(error.to_string()))?;
        }
        if state.applied().map_err(|error| refused(error.to_string()))?.is_none() {
            let of = &created.descriptor().interval;
            self.forget_descendants(&*state.map, range, of, runs)?;
        }
        self.check_beginning(created, &state)?;
        let library =
            library_config(range.to_string(), self.config.timing).map_err(MetaError::Settings)?;
        let clock = self.host.clock.clone();
        let log = LogStore::new(self.wal.clone(), range, created.first(), clock);
        let births = self.births(created.cluster());
        let machine = Machine::new(state.clone(), births, created.anew_at());
        let machine = machine.map_err(|error| unopened(&state, &error))?;
        let peers = Peers { sender: sender.clone(), range };
        let raft = Raft::build(self.config.node.0, library, peers, log, machine).await;
        // it installs and applies what is stored
        let raft = raft.map_err(|error| unopened(&state, &error))?;
        let lease_reads = self.config.lease_reads;
        let is_anew = created.anew_at().is_some() && !bug!("anew-from-the-first-entry");
        let group = Group::start(&self.host, raft, state, (stored.health, is_anew), lease_reads);
        group.raft.run();
        Ok(group)
    }

    /// What its log goes on from is here. A range that began with its parent's state has that, or a snapshot of later, and a
    /// vote no older than the entry that made it; one whose log was purged has a snapshot: without it, it was on its way out
    /// when this node stopped.
    fn check_beginning(&self, created: &Created, state: &State) -> Result<(), MetaError> {
        let range = created.range();
        let refused = |why: String| MetaError::Group(range, why);
        let stored = self.wal.state(range);
        let purged = stored.purged.and_then(|(_, id)| read_log_id(id).ok());
        let Some(first) = purged.max(created.first()) else { return Ok(()) };
        if !state.reaches(first).map_err(|error| refused(error.to_string()))? {
            return Err(MetaError::NoBeginning(range));
        }
        let Some(first) = created.first() else { return Ok(()) };
        let vote = stored.vote.and_then(|bytes| read_vote(bytes).ok());
        if vote.is_none_or(|vote| vote.leader_id.term < first.leader_id.term) {
            return Err(refused("its vote is older than the entry that made it".to_owned()));
        }
        Ok(())
    }

    fn open_state(
        &self,
        map: &Arc<dyn OrderedMap>,
        descriptor: &RangeDescriptor,
    ) -> Result<State, MetaError> {
        let range = descriptor.id;
        let snapshots = self.snapshots(range);
        let opened = State::open(
            &self.host,
            map.clone(),
            descriptor.clone(),
            snapshots,
            self.wal.clone(),
            self.config.versions,
        );
        opened.map_err(|error| match error {
            SnapshotError::Damaged(..) | SnapshotError::Foreign(..) => {
                MetaError::DamagedSnapshot(error.to_string())
            }
            SnapshotError::Newer(..) | SnapshotError::Disk(..) => {
                MetaError::Snapshot(error.to_string())
            }
        })
    }

    /// Says, in the directory of the role, that a replica is not to be trusted, and why: also after a crash it takes no part
    /// until it has begun anew.
    fn distrust_mark(&self, range: RangeId) -> PathBuf {
        self.config.dir.join(format!("distrusted-{}", range.0))
    }

    fn distrusted(&self, range: RangeId) -> Option<String> {
        let mark = self.distrust_mark(range);
        if !self.host.disk.exists(&mark) {
            return None;
        }
        let unread = "it was found to differ from the others, and why cannot be read";
        let why = self.host.disk.read(&mark).map(|why| String::from_utf8_lossy(&why).into_owned());
        Some(why.unwrap_or_else(|_| unread.to_owned()))
    }

    fn distrust(&self, range: RangeId, why: &str) -> Result<(), MetaError> {
        let mark = self.distrust_mark(range);
        let marked = self.host.disk.replace(&mark, why.as_bytes());
        marked.map_err(|error| MetaError::Directory(mark, error))
    }

    /// The replica has begun anew, or is gone.
    fn end_distrust(&self, range: RangeId) -> Result<(), MetaError> {
        let (mark, disk) = (self.distrust_mark(range), &self.host.disk);
        if !disk.exists(&mark) {
            return Ok(());
        }
        let removed = disk.remove_file(&mark).and_then(|()| disk.sync_dir(&self.config.dir));
        removed.map_err(|error| MetaError::Directory(mark, error))
    }

    fn snapshots(&self, range: RangeId) -> Snapshots {
        let directory = self.config.dir.join("snapshots");
        Snapshots::new(self.host.disk.clone(), directory, range.0)
    }

    /// Forgets all of a range but its log: snapshots and rows.
    fn forget(&self, map: &dyn OrderedMap, descriptor: &RangeDescriptor) -> Result<(), MetaError> {
        let range = descriptor.id;
        let snapshots = self.snapshots(range).remove_all();
        snapshots.map_err(|error| MetaError::Snapshot(error.to_string()))?;
        let rows = forget_rows(map, descriptor);
        rows.map_err(|error| MetaError::Group(range, error.to_string()))?;
        // so that a crash does not cost the other ranges their rows: without it the map would lie ahead of this log
        map.sync().map_err(|error| MetaError::Map(error.to_string()))
    }

    /// The group begins anew in the log, in one batch.
    async fn drop_log(&self, cluster: ClusterId, removal: Removal) -> Result<Created, MetaError> {
        let range = removal.descriptor().id;
        let own = self.wal.state(range).vote.and_then(|bytes| read_vote(bytes).ok());
        Ok(Birth::refilled(cluster, removal, own).write(&self.wal).await?)
    }

    /// The map, if it may be trusted; otherwise an empty one, which snapshots and logs fill again.
    fn open_map(&self, stored: &[Created]) -> Result<Arc<dyn OrderedMap>, MetaError> {
        let dir = self.config.dir.join("map");
        let mark = self.config.dir.join(CLEAN_MARK);
        let disk = &self.host.disk;
        let at = |error| MetaError::Directory(dir.clone(), error);
        let clean = disk.exists(&mark);
        if clean {
            disk.remove_file(&mark).map_err(at)?;
            disk.sync_dir(&self.config.dir).map_err(at)?;
        }
        if !clean && self.config.engine.must_be_clean() && disk.exists(&dir) {
            tracing::info!("the map was not closed: it is rebuilt from snapshots and logs");
            disk.remove_dir_all(&dir).map_err(at)?;
        }
        disk.create_dir_all(&dir).map_err(at)?;
        match ashlar_map::open(self.config.engine, &dir) {
            Ok(map) if self.fits(&*map, stored) => return Ok(map),
            Ok(map) => drop(map),
            Err(error) => tracing::warn!(%error, "the map does not open"),
        }
        tracing::warn!("the map is rebuilt from snapshots and logs");
        disk.remove_dir_all(&dir).map_err(at)?;
        disk.create_dir_all(&dir).map_err(at)?;
        ashlar_map::open(self.config.engine, &dir)
            .map_err(|error| MetaError::Map(error.to_string()))
    }

    /// Whether the map lies nowhere ahead of its log: what is not in the log is not known to be committed.
    fn fits(&self, map: &dyn OrderedMap, stored: &[Created]) -> bool {
        let view = map.view();
        stored.iter().all(|created| {
            let state = self.wal.state(created.range());
            if state.health == GroupHealth::Corrupt {
                // it begins anew, and so do its rows
                return true;
            }
            let purged = state.purged.and_then(|(_, id)| read_log_id(id).ok());
            let before = purged.max(created.first()).map(|id| id.index);
            let last = state.last.map(|(index, _)| index).max(before);
            match read_applied(&*view, created.range()) {
                Ok((applied, _)) => applied.map(|id| id.index) <= last,
                Err(_) => false,
            }
        })
    }
}

impl Inner {
    pub(crate) fn group(&self, range: RangeId) -> Option<Arc<Group>> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner).get(&range).cloned()
    }

    pub(crate) fn groups(&self) -> Vec<Arc<Group>> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn take_groups(&self) -> Vec<Arc<Group>> {
        // they hold the map
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.opening.nursery.forget();
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *groups).into_values().collect()
    }

    pub(crate) async fn until_stopping(&self) {
        self.stopping.requested().await;
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.is_requested()
    }

    /// Whether the node's duties are over.
    pub(crate) fn has_ended(&self) -> bool {
        self.is_stopping() || self.host.shutdown.is_requested() || self.boots.outdated().is_some()
    }

    /// The replicas that are not opened until they are refilled.
    pub(crate) fn damaged(&self) -> Vec<Damaged> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// A range has been raised beyond what this release knows.
    pub(crate) fn note_outgrown(&self, range: RangeId, why: &str) {
        let error = MetaError::OldRelease(range, why.to_owned());
        if self.outgrown.set(error.to_string()).is_ok() {
            tracing::error!(%error, "the node must be upgraded");
            self.outgrowing.request();
        }
    }

    /// What a damaged replica waits for.
    pub(crate) fn note_standing(&self, range: RangeId, standing: String) {
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(replica) = damaged.get_mut(&range) else { return };
        if replica.standing != standing {
            match replica.reason {
                Reason::Damaged => {
                    tracing::error!(%range, why = replica.why, standing, "the replica is damaged, and not refilled yet");
                }
                Reason::Comes => tracing::info!(%range, standing, "the replica has not come yet"),
                Reason::Leaves => tracing::info!(%range, standing, "the replica has not left yet"),
            }
            replica.standing = standing;
        }
    }

    fn group_at(&self, range: RangeId, epoch: Epoch) -> Result<Arc<Group>, NotDone> {
        let group = self.group(range).ok_or_else(|| self.not_here(range))?;
        let known = group.descriptor().epoch;
        if range == RangeId::ROOT || known == epoch || bug!("read-behind-the-split") {
            return Ok(group);
        }
        if known > epoch {
            return Err(NotDone::Epoch(Some(known)));
        }
        // this replica is behind what the caller knows: to say its own epoch would send the caller back
        Err(match group.leader() {
            Some(leader) if leader == self.node => opening(),
            leader => NotDone::Leader(leader),
        })
    }

    /// Why a range does not run here: another node serves it, or none knows it.
    fn not_here(&self, range: RangeId) -> NotDone {
        let is_waiting =
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&range);
        let damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        let is_here = damaged.get(&range).is_some_and(|replica| replica.reason != Reason::Leaves);
        if is_waiting || is_here || self.boots.outdated().is_some() {
            NotDone::Leader(None)
        } else {
            NotDone::Epoch(None)
        }
    }

    pub(crate) async fn execute(
        &self,
        range: RangeId,
        epoch: Epoch,
        command: Command,
        bytes: usize,
    ) -> Result<CommandReply, NotDone> {
        let group = self.group_at(range, epoch)?;
        check_version(&command.op, group.state.apply_version(), self.known().ranges)?;
        match group.propose(epoch, Proposal::Range(Box::new(command)), bytes).await? {
            (index, CommandResult::Range(outcome)) => Ok(CommandReply { index, outcome }),
            (_, CommandResult::Root(_)) => {
                Err(NotDone::Unknown("a range answered as the root".to_owned()))
            }
        }
    }

    pub(crate) async fn root_execute(
        &self,
        command: RootCommand,
        bytes: usize,
    ) -> Result<RootOutcome, NotDone> {
        if let RootOp::RaiseApplyVersions { to, .. } = &command.op
            && !self.known().include(to)
        {
            return Err(unknown_here(self.known().root));
        }
        let group = self.group_at(RangeId::ROOT, Epoch(0))?;
        check_known(command.op.apply_version(), group.state.apply_version(), "the root")?;
        match group.propose(Epoch(0), Proposal::Root(Box::new(command)), bytes).await? {
            (_, CommandResult::Root(outcome)) => Ok(*outcome),
            (_, CommandResult::Range(_)) => {
                Err(NotDone::Unknown("the root answered as a range".to_owned()))
            }
        }
    }

    pub(crate) async fn query(
        &self,
        range: RangeId,
        epoch: Epoch,
        query: RangeQuery,
    ) -> Result<RangeAnswer, NotDone> {
        let group = self.group_at(range, epoch)?;
        let confirmed = if bug!("read-unconfirmed") { 0 } else { group.confirm_read().await? };
        let state = group.state.clone();
        let reader = reader_of(&group)?;
        let blocks = is_long(&query);
        let read = move || {
            // a snapshot may have begun to replace the rows since the confirmation
            let view = state.view_at(confirmed).map_err(|error| view_failed(&error))?;
            let answered = reader.range(&*view.ok_or_else(opening)?, epoch, &query);
            answered.map_err(|why| match why {
                Unanswered::Epoch(known) => NotDone::Epoch(Some(known)),
                Unanswered::Failed(error) => view_failed(&error),
            })
        };
        if blocks { self.host.tasks.run_blocking(read).await } else { read() }
    }

    pub(crate) async fn verify(self: &Arc<Self>, range: RangeId) -> Result<ReplicaReport, NotDone> {
        let group = self.group(range).ok_or_else(|| self.not_here(range))?;
        agreement::verify(self, &group).await
    }

    fn known(&self) -> ApplyVersions {
        self.opening.config.versions.known
    }

    /// What this node says of its binary.
    pub(crate) fn versions(&self) -> NodeVersions {
        NodeVersions {
            node: self.node,
            incarnation: self.boots.own().incarnation,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            known: self.known(),
        }
    }

    pub(crate) async fn root_query(&self, query: RootQuery) -> Result<RootAnswer, NotDone> {
        let group = self.group_at(RangeId::ROOT, Epoch(0))?;
        group.confirm_read().await?;
        reader_of(&group)?.root(&query).map_err(|error| view_failed(&error))
    }

    /// Each range's founder among its voters asks for an election until there is a first leader. The ranges have
    /// different founders, so that their leaders are spread.
    fn elect_first_leaders(self: &Arc<Self>) {
        self.groups().into_iter().for_each(|group| self.elect_first_leader_of(group));
    }

    fn elect_first_leader_of(self: &Arc<Self>, group: Arc<Group>) {
        let descriptor = group.descriptor();
        let voters = &descriptor.voters;
        let turn = usize::try_from(group.range.0).unwrap_or(0) % voters.len().max(1);
        let task = Box::pin(elect_first_leader(self.clone(), group, voters.get(turn).copied()));
        let _electing = self.host.tasks.spawn(TaskKind::Background("first election"), task);
    }

    /// Whoever leads what the range was a part of has applied the split first: it is the one to lead.
    fn elect_after_split(self: &Arc<Self>, group: Arc<Group>, origin: Option<&Origin>) {
        let parent = origin.and_then(|origin| self.group(origin.parent));
        if parent.is_some_and(|parent| parent.leader() == Some(self.node)) {
            let asks_first = !members::is_alone(&group, self.node);
            let task = Box::pin(elect_until_led(self.clone(), group, asks_first));
            let _electing = self.host.tasks.spawn(TaskKind::Background("first election"), task);
        } else {
            self.elect_first_leader_of(group);
        }
    }

    /// Proposes the first entry of the root, once, on whichever founder leads it.
    async fn bootstrap(self: Arc<Self>, formation: Formation) {
        let ranges = first_ranges(&formation);
        let command = RootCommand {
            nonce: self.host.random.next_u128(),
            op: RootOp::Bootstrap {
                cluster: formation.cluster,
                nodes: formation.nodes,
                ranges,
                region: formation.region,
            },
        };
        while !self.is_stopping() && !self.host.shutdown.is_requested() {
            if self.is_bootstrapped(&command).await {
                return;
            }
            self.host.clock.sleep(FOUNDING_PERIOD).await;
        }
    }

    /// Whether the cluster exists. On the root's leader, makes it.
    async fn is_bootstrapped(&self, command: &RootCommand) -> bool {
        let Some(root) = self.group(RangeId::ROOT) else { return true };
        if root.leader() != Some(self.node) {
            // the leader does it; this node only watches that somebody leads it, and applied an entry of ours
            let known =
                root.state.reader().map(|reader| reader.root(&RootQuery::Map { newer_than: None }));
            return matches!(known, Some(Ok(answer)) if answer != RootAnswer::NotBootstrapped);
        }
        match self.root_query(RootQuery::Map { newer_than: None }).await {
            Ok(RootAnswer::NotBootstrapped) => {}
            Ok(_) => return true,
            Err(_) => return false,
        }
        match self.root_execute(command.clone(), 0).await {
            Ok(RootOutcome::Refused(RootRefusal::Bootstrapped)) => true,
            Ok(RootOutcome::Refused(why)) => {
                tracing::error!(%why, "the cluster cannot be founded");
                true
            }
            Ok(_) => {
                tracing::info!("the cluster is founded");
                true
            }
            Err(_) => false,
        }
    }

    async fn stop(&self) {
        if self.stopping.is_requested() {
            return;
        }
        self.stopping.request();
        // they still answer meanwhile: the heirs need this node's vote, and it has to hear of its successors
        let groups = self.groups();
        futures::future::join_all(groups.iter().map(|group| self.hand_over(group))).await;
        drop(groups);
        self.close_groups(self.take_groups()).await;
        match self.last_map().await.map(|map| map.sync()) {
            Some(Ok(())) => self.mark_clean(),
            Some(Err(error)) => {
                tracing::warn!(%error, "the map was not synced: it will be checked or rebuilt");
            }
            None => tracing::warn!("somebody still uses the map: it will be checked or rebuilt"),
        }
        self.wal.close().await;
    }

    async fn close_groups(&self, groups: Vec<Arc<Group>>) {
        self.closed.request();
        for group in groups {
            shut(&group).await;
        }
    }

    /// The map, once nobody else uses it; `None`: somebody still does.
    async fn last_map(&self) -> Option<Arc<dyn OrderedMap>> {
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let alone = async {
            while Arc::strong_count(&map) > 1 {
                self.host.clock.sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = self.host.clock.timeout(CLOSE_PATIENCE, alone).await;
        waited.is_ok().then_some(map)
    }

    fn mark_clean(&self) {
        if let Err(error) = self.host.disk.replace(&self.dir.join(CLEAN_MARK), b"") {
            tracing::warn!(%error, "the map is not marked as clean: it will be checked or rebuilt");
        }
    }

    /// Leadership goes to the voter that has most of the log; one that lacks the newest entry refuses, and is asked again.
    pub(crate) async fn hand_over(&self, group: &Group) {
        let began = self.host.clock.now();
        let mut metrics = group.raft.metrics();
        while let Some(heir) = self.heir(group) {
            if self.host.clock.now() - began > TRANSFER_PATIENCE {
                tracing::warn!(range = %group.range, "nobody took over leadership in time");
                return;
            }
            if group.raft.trigger().transfer_leader(heir).await.is_err() {
                return;
            }
            let handed = async {
                while metrics.borrow_watched().current_leader == Some(self.node.0)
                    && metrics.changed().await.is_ok()
                {}
            };
            if self.host.clock.timeout(TRANSFER_RETRY, handed).await.is_err() {
                tracing::debug!(range = %group.range, heir, "asked again to lead");
            }
        }
    }

    /// Who should lead after this node; `None`: it leads no more, or is alone.
    fn heir(&self, group: &Group) -> Option<u64> {
        let metrics = group.raft.metrics();
        let now = metrics.borrow_watched();
        let progress =
            now.replication.as_ref().filter(|_| now.current_leader == Some(self.node.0))?;
        let others = now.membership_config.voter_ids().filter(|&id| id != self.node.0);
        others.max_by_key(|id| progress.get(id).copied().flatten())
    }
}

/// Whether a read visits many rows: those run where they may block, a point read costs less than the way there.
fn is_long(query: &RangeQuery) -> bool {
    match query {
        RangeQuery::Object { .. }
        | RangeQuery::Pieces { .. }
        | RangeQuery::Version { .. }
        | RangeQuery::VersionPieces { .. }
        | RangeQuery::Usage { .. } => false,
        RangeQuery::List(_)
        | RangeQuery::ListUploads { .. }
        | RangeQuery::Upload { .. }
        | RangeQuery::Collectable { .. }
        | RangeQuery::AreCollectable { .. }
        | RangeQuery::Missing { .. }
        | RangeQuery::SplitState
        | RangeQuery::Middle
        | RangeQuery::ListVersions(_)
        | RangeQuery::Inventory { .. } => true,
    }
}

/// What a range cannot apply by its version must not get into its log (R4): replicas of an earlier release could not read
/// it. No more must what this binary cannot apply itself: nobody would be left who can.
fn check_version(op: &RangeOp, applies_by: u32, known: u32) -> Result<(), NotDone> {
    match op {
        RangeOp::RaiseApplyVersion { version } if *version > known => Err(unknown_here(known)),
        op => check_known(op.apply_version(), applies_by, "the range"),
    }
}

fn check_known(needed: u32, applies_by: u32, what: &str) -> Result<(), NotDone> {
    if needed <= applies_by {
        return Ok(());
    }
    Err(too_early(format!(
        "{what} applies by version {applies_by}, and this needs {needed}: it is raised by itself when all nodes have a release that knows it"
    )))
}

fn unknown_here(known: u32) -> NotDone {
    too_early(format!("this release knows no later version than {known}: ask one that does"))
}

fn too_early(reason: String) -> NotDone {
    NotDone::Busy { retry_after_ms: 1000, reason }
}

fn reader_of(group: &Group) -> Result<Reader, NotDone> {
    group.state.reader().ok_or_else(opening)
}

fn opening() -> NotDone {
    NotDone::Busy { retry_after_ms: 50, reason: "the range catches up with its log".to_owned() }
}

fn view_failed(error: &dyn std::error::Error) -> NotDone {
    NotDone::Busy { retry_after_ms: 1000, reason: error.to_string() }
}

/// An old image of a node, or a copy, takes no part: its groups end as soon as a peer has said so.
async fn leave_when_outdated(
    node: Weak<Inner>,
    boots: Arc<Boots>,
    stopping: Shutdown,
    shutdown: Shutdown,
) {
    tokio::select! {
        biased;
        () = stopping.requested() => {}
        () = shutdown.requested() => {}
        _ = boots.until_outdated() => {
            let Some(inner) = node.upgrade() else { return };
            let groups = inner.take_groups();
            for group in &groups {
                keeper::show_leader(group, false);
            }
            inner.close_groups(groups).await;
        }
    }
}

/// Opens the ranges that applied splits have made here.
async fn open_born(node: Weak<Inner>, nursery: Arc<Nursery>, stopping: Shutdown) {
    loop {
        let born = tokio::select! {
            biased;
            () = stopping.requested() => return,
            born = nursery.take() => born,
        };
        let Some(inner) = node.upgrade() else { return };
        for Born { created, state } in born {
            let waiting = Waiting { created, state, tried: None };
            let range = waiting.created.range();
            inner.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(range, waiting);
        }
        inner.open_due().await;
    }
}

async fn elect_first_leader(node: Arc<Inner>, group: Arc<Group>, founder: Option<NodeId>) {
    let raft = &group.raft;
    // one that begins anew has a vote, and is founded by nobody
    let fresh = !matches!(raft.is_initialized().await, Ok(true))
        && group.state.wal.state(group.range).vote.is_none();
    let founds = fresh && founder == Some(node.node);
    if founds {
        let members: BTreeMap<u64, _> =
            group.descriptor().voters.iter().map(|id| (id.0, peer_node())).collect();
        if let Err(error) = raft.initialize(members).await {
            tracing::warn!(range = %group.range, %error, "the range was not founded here");
        }
    }
    // a single voter need not wait for anybody, at no start
    let alone = match raft.is_initialized().await {
        Ok(true) => members::is_alone(&group, node.node),
        _ => group.descriptor().voters.len() == 1,
    };
    if alone || founds {
        elect_until_led(node, group, !alone).await;
    }
}

/// Asks for an election until somebody leads. `asks_first`: whether the others are asked before the term is raised.
async fn elect_until_led(node: Arc<Inner>, group: Arc<Group>, asks_first: bool) {
    // the other voters may still be starting; on a slow disk an election takes longer than the first pauses
    let mut pause = FOUNDING_PERIOD;
    while group.leader().is_none() && !node.is_stopping() && !node.host.shutdown.is_requested() {
        if group.raft.trigger().elect(asks_first).await.is_err() {
            return;
        }
        node.host.clock.sleep(pause).await;
        pause = (pause * 2).min(FOUNDING_PERIOD_MAX);
    }
}
