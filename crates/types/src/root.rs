//! The operations of the root range: the map, the buckets, the range directory, the sessions.

use crate::{
    Applied, ApplyVersions, BucketId, BucketName, BucketRow, BucketState, ClusterId, ClusterMap,
    Disk, DiskId, DiskState, Epoch, Node, NodeId, PgId, PlacementDiff, RangeDescriptor, RangeId,
    ReplicaDirectory, ReplicaMove, Role, SessionId, SlotMove, SplitDone, Versioned, Versioning,
};
use serde::{Deserialize, Serialize};

/// What the root range is asked to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootOp {
    /// The first entry of all: the cluster, its first nodes and ranges. A second one is refused.
    Bootstrap {
        /// A random id.
        cluster: ClusterId,
        /// The nodes that are known from the start.
        nodes: Vec<Node>,
        /// The ranges: disjoint, and covering all.
        ranges: Vec<RangeDescriptor>,
        /// The bucket region's name.
        region: String,
    },
    /// Issues a one-time token (its hash only) with which a node may join.
    IssueToken {
        /// SHA-256 of the token.
        hash: [u8; 32],
        /// Cluster time after which it is void, in milliseconds since 1970.
        expires_ms: u64,
    },
    /// A new node, admitted by a token. Its id is the log index of this entry.
    Join {
        /// SHA-256 of the token.
        token: [u8; 32],
        /// The proposer's wall clock, in milliseconds since 1970.
        now_ms: u64,
        /// What people call it.
        name: String,
        /// Where it stands.
        zone: String,
        /// Where it is reached.
        address: String,
        /// What it does.
        roles: Vec<Role>,
    },
    /// A node has booted: its incarnation (which must grow), its address and zone now.
    Boot {
        /// The node.
        node: NodeId,
        /// Greater than any before.
        incarnation: u64,
        /// Where it is reached now.
        address: String,
        /// Its disks as they were found: new ones are added, known ones must have grown in incarnation.
        disks: Vec<Disk>,
    },
    /// A disk is suspected, dead, or well again.
    SetDiskState {
        /// The disk.
        disk: DiskId,
        /// From now on.
        state: DiskState,
    },
    /// A change of the placement groups.
    Place(PlacementDiff),
    /// A new bucket.
    CreateBucket {
        /// Its name.
        name: BucketName,
        /// A random id: never used before.
        bucket: BucketId,
        /// Who owns it.
        owner: String,
        /// The proposer's wall clock, in milliseconds since 1970.
        created_ms: u64,
    },
    /// Starts the deletion of a bucket: while it lasts, its operations are refused by 409.
    DeleteBucketBegin {
        /// Its name.
        name: BucketName,
        /// The bucket under that name.
        bucket: BucketId,
    },
    /// The fenced intervals cover the bucket: it is gone.
    DeleteBucketDone {
        /// Its name.
        name: BucketName,
        /// The bucket under that name.
        bucket: BucketId,
        /// The epoch that this deletion's begin gave: another deletion's end is refused.
        epoch: Epoch,
    },
    /// A range was not empty: the bucket lives on, under a later epoch.
    DeleteBucketRollBack {
        /// Its name.
        name: BucketName,
        /// The bucket under that name.
        bucket: BucketId,
        /// The epoch that this deletion's begin gave: another deletion's end is refused.
        epoch: Epoch,
    },
    /// A gateway's term of office. The session's id is the log index of this entry.
    OpenSession {
        /// The gateway's node.
        node: NodeId,
        /// Its incarnation.
        incarnation: u64,
    },
    /// A session has ended, by itself or by its lease. Fencing it in the ranges follows.
    EndSession {
        /// The session.
        session: SessionId,
    },
    /// Cluster time: never backwards.
    AdvanceTime {
        /// In milliseconds since 1970.
        now_ms: u64,
    },
    /// The voters of a range have changed.
    SetVoters {
        /// The range as it is now: same id and interval, next epoch.
        range: RangeDescriptor,
    },
    /// A slot begins to move; or, where the disk that it was moving to is lost, to move elsewhere. New shards of it go
    /// to the target from now on, and its home keeps what it has.
    BeginMove(SlotMove),
    /// The target has all that counts: it is the slot's home from now on.
    Switch(SlotMove),
    /// Disks are declared dead together, as decided from the map at this epoch.
    LoseDisks {
        /// The map's epoch: another one refuses it.
        base: Epoch,
        /// The disks.
        disks: Vec<DiskId>,
    },
    /// What the cluster itself has found of a disk, whether it is suspect or well again: refused where somebody has put
    /// it into another state since, whose word counts more.
    JudgeDisk {
        /// The disk.
        disk: DiskId,
        /// In which it was when it was judged.
        from: DiskState,
        /// From now on.
        to: DiskState,
    },
    /// An id for a range, never used before.
    ReserveRange,
    /// A range has split: both sides take its place. What is known already changes nothing.
    Split(SplitDone),
    /// A replica of a range begins to move. Refused unless these are the range's voters, and none of its replicas moves.
    BeginReplicaMove {
        /// The voters from which it was decided.
        voters: Vec<NodeId>,
        /// What moves.
        step: ReplicaMove,
    },
    /// The range's members are as the move wants them: they are its voters from now on.
    EndReplicaMove(ReplicaMove),
    /// The move is given up: the voters remain what they were.
    CancelReplicaMove(ReplicaMove),
    /// From now on a node is to hold no replicas; or it may again.
    DrainReplicas {
        /// The node.
        node: NodeId,
        /// Whether they are to leave it.
        drain: bool,
    },
    /// A node is struck off for good. Refused while it has disks or replicas.
    RemoveNode(NodeId),
    /// The root applies by this version from the next entry on, and ranges may be raised to theirs: every node that may
    /// hold a replica knows them. Refused unless the cluster map is at the epoch at which all were asked: a node that
    /// has joined or booted since may know less.
    RaiseApplyVersions {
        /// The map's epoch then.
        base: Epoch,
        /// To these. Never back.
        to: ApplyVersions,
    },
    /// From now on a bucket keeps versions, or keeps none of what is written from now on. It has a later epoch; the ranges
    /// are told by whoever asks this.
    SetVersioning {
        /// Its name.
        name: BucketName,
        /// The bucket under that name.
        bucket: BucketId,
        /// Never back to `Off`.
        versioning: Versioning,
    },
}

/// One command to the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootCommand {
    /// Makes a resend recognisable: random, chosen once for a command.
    pub nonce: u128,
    /// What it asks.
    pub op: RootOp,
}

/// What a root command came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootOutcome {
    /// It was applied.
    Applied(Applied),
    /// A node joined under this id.
    Joined(NodeId),
    /// A session was opened.
    Session(SessionId),
    /// The bucket as it is now.
    Bucket(Bucket),
    /// It was not applied.
    Refused(RootRefusal),
    /// The id of a range to be.
    Range(RangeId),
}

/// Why a root command was not applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum RootRefusal {
    /// The cluster exists already.
    #[error("the cluster has been bootstrapped before")]
    Bootstrapped,
    /// There is no cluster yet.
    #[error("the cluster has not been bootstrapped yet")]
    NotBootstrapped,
    /// The token is unknown, used or expired.
    #[error("the join token is unknown, used up or expired: ask a member for a new one")]
    BadToken,
    /// No such node.
    #[error("{0} is not a member of this cluster")]
    NoSuchNode(NodeId),
    /// The incarnation has not grown: an old image or a clone.
    #[error(
        "{node} came with incarnation {found}, but {known} is known: this is an old image or a copy of it"
    )]
    StaleIncarnation {
        /// The node.
        node: NodeId,
        /// What it said.
        found: u64,
        /// What is known.
        known: u64,
    },
    /// A disk's incarnation has not grown, or it is in two places: an old image or a clone.
    #[error("disk {0} is an old image or a copy of one that is known")]
    StaleDisk(DiskId),
    /// No such disk.
    #[error("there is no disk {0}")]
    NoSuchDisk(DiskId),
    /// The map has changed since the difference was computed.
    #[error("the cluster map is at {known}")]
    StaleMap {
        /// Its epoch.
        known: Epoch,
    },
    /// A difference that breaks an invariant of placement.
    #[error("the placement is not valid: {0}")]
    BadPlacement(String),
    /// The name is taken.
    #[error("the bucket exists")]
    BucketExists(Box<Bucket>),
    /// The bucket is being deleted: 409.
    #[error("the bucket is being deleted")]
    BucketBusy,
    /// No such bucket.
    #[error("there is no such bucket")]
    NoSuchBucket,
    /// The range directory does not know it, or by another epoch.
    #[error("the range is not known so")]
    NoSuchRange,
    /// The group has changed since the step was decided, or there is none.
    #[error("{group} is not at the epoch from which this was decided, but at {known:?}")]
    StaleGroup {
        /// The group.
        group: PgId,
        /// Its epoch; `None`: there is no such group.
        known: Option<Epoch>,
    },
    /// Another slot of the group moves, or this one moves elsewhere.
    #[error("{0} is moving a slot: one at a time")]
    AlreadyMoving(PgId),
    /// A disk goes from this state to that one never.
    #[error("disk {disk} is {from:?} and cannot become {to:?}")]
    BadDiskState {
        /// The disk.
        disk: DiskId,
        /// What it is.
        from: DiskState,
        /// What it was to be.
        to: DiskState,
    },
    /// Groups have slots on the disk, or are moving one there.
    #[error("disk {0} still has slots: drain it first")]
    DiskInUse(DiskId),
    /// Another replica of the range moves, its voters have changed since the step was decided, or it is over already.
    #[error("{}: this was decided from something else", held(*range, voters, moving.as_ref()))]
    StaleReplicaMove {
        /// The range.
        range: RangeId,
        /// Its voters.
        voters: Vec<NodeId>,
        /// What moves.
        moving: Option<ReplicaMove>,
    },
    /// The node has something that others would miss.
    #[error("{node} still has {what}: drain it, and remove its disks, first")]
    NodeInUse {
        /// The node.
        node: NodeId,
        /// What it has.
        what: String,
    },
    /// The members would not be ones that a range can have.
    #[error("{range} cannot have these replicas: {why}")]
    BadReplicas {
        /// The range.
        range: RangeId,
        /// Why.
        why: String,
    },
}

fn held(range: RangeId, voters: &[NodeId], moving: Option<&ReplicaMove>) -> String {
    let voters: Vec<String> = voters.iter().map(ToString::to_string).collect();
    let moving = moving.map_or_else(
        || "nothing of it moves".to_owned(),
        |step| format!("replicas of it move ({step})"),
    );
    format!("{range} is held by {}, and {moving}", voters.join(", "))
}

/// A bucket as the root's directory knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Its name.
    pub name: BucketName,
    /// Who owns it.
    pub owner: String,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: u64,
    /// What the ranges judge by. `Fenced`: its deletion is under way.
    pub row: BucketRow,
}

impl Bucket {
    /// Whether it takes operations.
    pub fn is_open(&self) -> bool {
        self.row.state == BucketState::Open
    }
}

/// One entry of the root's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootBatch {
    /// The proposer's wall clock, in milliseconds since 1970.
    pub proposed_ms: u64,
    /// The commands.
    pub commands: Vec<RootCommand>,
}

/// A read of the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootQuery {
    /// The cluster map, if it is newer than this.
    Map {
        /// The epoch that the caller has.
        newer_than: Option<Epoch>,
    },
    /// The range directory.
    Ranges,
    /// A bucket.
    Bucket(BucketName),
    /// All buckets, by name.
    Buckets {
        /// Behind this name.
        after: Option<String>,
        /// At most so many.
        limit: u32,
    },
    /// Open sessions.
    Sessions,
    /// Buckets whose deletion has begun and not ended, by name.
    BucketsBeingDeleted,
    /// Open sessions, whose they are, and the floor below which there are no others.
    LivingSessions,
    /// Where the replicas of all ranges are, the root's among them, and which of them move.
    Replicas,
    /// By which versions the cluster applies.
    ApplyVersions,
}

/// How the root answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootAnswer {
    /// The map; `None`: it is not newer.
    Map(Option<Box<ClusterMap>>),
    /// The directory, by interval.
    Ranges(Vec<RangeDescriptor>),
    /// The bucket; `None`: there is none.
    Bucket(Option<Bucket>),
    /// Buckets by name.
    Buckets(Vec<Bucket>),
    /// Open sessions and their nodes.
    Sessions(Vec<(SessionId, NodeId)>),
    /// There is no cluster yet.
    NotBootstrapped,
    /// Open sessions.
    LivingSessions {
        /// Every session that was opened lies below it, every later one will not.
        floor: SessionId,
        /// Those that are open, by id.
        sessions: Vec<LivingSession>,
    },
    /// Where replicas are.
    Replicas(ReplicaDirectory),
    /// The versions of apply: the root's, and those to which the ranges may be raised.
    ApplyVersions(ApplyVersions),
}

/// A session that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LivingSession {
    /// Its id.
    pub id: SessionId,
    /// The gateway's node.
    pub node: NodeId,
    /// The node's incarnation when it was opened.
    pub incarnation: u64,
}

macro_rules! versioned {
    ($($type:ty: $name:literal),* $(,)?) => {
        $(impl Versioned for $type {
            const NAME: &'static str = $name;
            const VERSION: u8 = 1;
        })*
    };
}

versioned! {
    RootCommand: "root command",
    RootOutcome: "root outcome",
    RootBatch: "root batch",
    RootQuery: "root query",
    RootAnswer: "root answer",
    Bucket: "bucket",
    BucketRow: "bucket row",
}
