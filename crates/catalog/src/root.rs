//! The root range: the cluster map, the buckets' and the ranges' directories, join tokens, gateway sessions, cluster time.
//!
//! It is small, so all of it is in memory beside its rows; a row is written for each thing that changed. The answer of
//! every command is remembered under its nonce, so that a resend is answered the same: the last 4096 of them.

use crate::key::{self, family};
use crate::range::export_intervals;
use crate::txn::{Txn, row_hash};
use crate::{CatalogError, KNOWN_VERSIONS, KeySpan, View, Writes};
use ashlar_types::{
    Applied, ApplyVersions, Bucket, BucketId, BucketName, BucketRow, BucketState, ClusterId,
    ClusterMap, Disk, DiskId, DiskState, Epoch, Interval, KeyPoint, LivingSession, Node, NodeId,
    PAGE_ENTRIES_MAX, PlacementDiff, PlacementGroup, Profile, RangeDescriptor, RangeId,
    ReplicaMove, Role, RootAnswer, RootBatch, RootCommand, RootOp, RootOutcome, RootQuery,
    RootRefusal, SessionId, SplitDone, Versioned, Versioning, decode, encode,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

mod replicas;

/// How many answers are remembered: minutes of the root's traffic.
const ANSWERS_KEPT: usize = 4096;
/// Ids of an entry's commands: index x this + position.
const IDS_PER_ENTRY: u64 = 4096;

mod field {
    pub(super) const HEAD: u8 = 0;
    pub(super) const NODE: u8 = 1;
    pub(super) const DISK: u8 = 2;
    pub(super) const GROUP: u8 = 3;
    pub(super) const BUCKET: u8 = 4;
    pub(super) const RANGE: u8 = 5;
    pub(super) const SESSION: u8 = 6;
    pub(super) const TOKEN: u8 = 7;
    pub(super) const ANSWER: u8 = 8;
    pub(super) const SESSION_FLOOR: u8 = 9;
    pub(super) const REPLICA_MOVE: u8 = 10;
    pub(super) const ROOT_VOTERS: u8 = 11;
    pub(super) const DRAINED: u8 = 12;
    pub(super) const APPLY_VERSIONS: u8 = 13;
    pub(super) const HASH: u8 = 255;
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct RootHead {
    cluster: Option<ClusterId>,
    region: String,
    map_epoch: Epoch,
    wide: Option<Profile>,
    time_ms: u64,
    next_answer: u64,
}

/// A gateway's term of office.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    node: NodeId,
    incarnation: u64,
}

/// A remembered answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    nonce: u128,
    outcome: RootOutcome,
}

#[derive(Serialize, Deserialize)]
struct NodeRow(Node);
#[derive(Serialize, Deserialize)]
struct DiskRow(Disk);
#[derive(Serialize, Deserialize)]
struct GroupRow(PlacementGroup);
#[derive(Serialize, Deserialize)]
struct TokenRow(u64);
#[derive(Serialize, Deserialize)]
struct SessionFloorRow(SessionId);
#[derive(Serialize, Deserialize)]
struct RootVotersRow(Vec<NodeId>);
#[derive(Serialize, Deserialize)]
struct DrainedRow(NodeId);
#[derive(Serialize, Deserialize)]
struct ApplyVersionsRow(ApplyVersions);
#[derive(Serialize, Deserialize)]
struct RootHash(u128);

macro_rules! rows {
    ($($type:ty: $name:literal),* $(,)?) => {
        $(impl Versioned for $type {
            const NAME: &'static str = $name;
            const VERSION: u8 = 1;
        })*
    };
}

rows! {
    RootHead: "root head row",
    Session: "session row",
    Answer: "root answer row",
    NodeRow: "node row",
    DiskRow: "disk row",
    GroupRow: "placement group row",
    TokenRow: "join token row",
    SessionFloorRow: "root session floor row",
    RootVotersRow: "root voters row",
    DrainedRow: "drained node row",
    ApplyVersionsRow: "apply versions row",
    RootHash: "root hash row",
}

/// The root range's state and its pure apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    head: RootHead,
    map: Arc<ClusterMap>,
    buckets: BTreeMap<String, Bucket>,
    bucket_ids: BTreeSet<BucketId>,
    ranges: BTreeMap<RangeId, RangeDescriptor>,
    /// Replicas that move, by range: one of each.
    moves: BTreeMap<RangeId, ReplicaMove>,
    /// `None`: nothing has moved yet, and they are those of every range.
    root_voters: Option<Vec<NodeId>>,
    /// Nodes that are to hold no replicas.
    drained: BTreeSet<NodeId>,
    sessions: BTreeMap<SessionId, Session>,
    /// Every session that was opened lies below it.
    session_floor: SessionId,
    tokens: BTreeMap<[u8; 32], u64>,
    /// Answers in the order in which they were given, and where each nonce's is.
    answers: BTreeMap<u64, Answer>,
    nonces: BTreeMap<u128, u64>,
    /// By which the cluster applies.
    versions: ApplyVersions,
    /// The newest version of the root's apply that is known here.
    known: u32,
    hash: u128,
}

type Judged = Result<RootOutcome, RootRefusal>;

impl Root {
    /// A root before its bootstrap, and the rows that make it.
    pub fn create() -> (Self, Writes) {
        let mut root = Self::empty();
        let (row, value) = (row_key(field::HEAD, &[]), encode(&root.head));
        root.hash = row_hash(&row, &value);
        let mut writes = Writes::default();
        writes.put(row, value);
        writes.put(row_key(field::HASH, &[]), encode(&RootHash(root.hash)));
        (root, writes)
    }

    /// The root as its rows in `view` say; `None`: it has none there.
    pub fn load(view: &dyn View) -> Result<Option<Self>, CatalogError> {
        Self::load_knowing(view, KNOWN_VERSIONS.root)
    }

    /// As `load`, by a binary that knows versions up to `known`.
    pub fn load_knowing(view: &dyn View, known: u32) -> Result<Option<Self>, CatalogError> {
        let txn = Txn::new(view);
        let mut root = Self::empty();
        let Some(head) = txn.get(&row_key(field::HEAD, &[]))? else { return Ok(None) };
        root.head = head;
        let (from, to) = interval();
        for (row, value) in txn.rows(&from, to.as_deref(), usize::MAX)? {
            root.load_row(&row, &value)?;
        }
        let map = Arc::make_mut(&mut root.map);
        map.cluster = root.head.cluster.unwrap_or_default();
        map.epoch = root.head.map_epoch;
        map.wide = root.head.wide;
        root.knowing(known).map(Some)
    }

    /// The same, applied by a binary that knows versions up to `known`.
    pub fn knowing(mut self, known: u32) -> Result<Self, CatalogError> {
        self.known = known;
        self.check_known().map(|()| self)
    }

    fn check_known(&self) -> Result<(), CatalogError> {
        match self.versions.root {
            found if found > self.known => {
                Err(CatalogError::ApplyVersion { found, known: self.known })
            }
            _ => Ok(()),
        }
    }

    /// Applies one entry: an outcome for each command, and the rows to write, in one batch with whatever the caller keeps
    /// under [`crate::system_key`]. After an error this value is to be dropped.
    pub fn apply(
        &mut self,
        view: &dyn View,
        index: u64,
        batch: &RootBatch,
    ) -> Result<(Vec<RootOutcome>, Writes), CatalogError> {
        let mut txn = Txn::new(view);
        let mut outcomes = Vec::with_capacity(batch.commands.len());
        for (position, command) in (0_u64..).zip(&batch.commands) {
            // An id that is never used twice: the caller proposes far fewer commands an entry than this.
            let id = index.saturating_mul(IDS_PER_ENTRY).saturating_add(position);
            let outcome = if position < IDS_PER_ENTRY {
                self.command(&mut txn, id, command)
            } else {
                RootOutcome::Refused(RootRefusal::NoSuchRange)
            };
            outcomes.push(outcome);
            self.check_known()?;
        }
        self.head.map_epoch = self.map.epoch;
        self.head.wide = self.map.wide;
        txn.put(row_key(field::HEAD, &[]), &self.head);
        let (mut writes, hash) = txn.finish(self.hash)?;
        self.hash = hash;
        writes.put(row_key(field::HASH, &[]), encode(&RootHash(hash)));
        Ok((outcomes, writes))
    }

    /// Answers a read.
    pub fn query(&self, query: &RootQuery) -> RootAnswer {
        if self.head.cluster.is_none() {
            return RootAnswer::NotBootstrapped;
        }
        match query {
            RootQuery::Map { newer_than } => {
                let newer = newer_than.is_none_or(|known| known < self.map.epoch);
                RootAnswer::Map(newer.then(|| Box::new(ClusterMap::clone(&self.map))))
            }
            RootQuery::Ranges => {
                let mut ranges: Vec<_> = self.ranges.values().cloned().collect();
                ranges.sort_by(|left, right| left.interval.start.cmp(&right.interval.start));
                RootAnswer::Ranges(ranges)
            }
            RootQuery::Bucket(name) => RootAnswer::Bucket(self.buckets.get(name.as_str()).cloned()),
            RootQuery::Buckets { after, limit } => {
                let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
                let limit = (*limit).min(PAGE_ENTRIES_MAX) as usize;
                let found = self.buckets.range::<str, _>((from, Bound::Unbounded));
                RootAnswer::Buckets(found.take(limit).map(|(_, bucket)| bucket.clone()).collect())
            }
            RootQuery::BucketsBeingDeleted => {
                let begun = self.buckets.values().filter(|bucket| !bucket.is_open());
                RootAnswer::Buckets(begun.cloned().collect())
            }
            RootQuery::Sessions => RootAnswer::Sessions(
                self.sessions.iter().map(|(&id, session)| (id, session.node)).collect(),
            ),
            RootQuery::LivingSessions => {
                let living = |(&id, &Session { node, incarnation }): (&SessionId, &Session)| {
                    LivingSession { id, node, incarnation }
                };
                let sessions = self.sessions.iter().map(living).collect();
                RootAnswer::LivingSessions { floor: self.session_floor, sessions }
            }
            RootQuery::Replicas => RootAnswer::Replicas(self.replicas()),
            RootQuery::ApplyVersions => RootAnswer::ApplyVersions(self.versions),
        }
    }

    /// The cluster map now.
    pub fn map(&self) -> &Arc<ClusterMap> {
        &self.map
    }

    /// Cluster time, in milliseconds since 1970: never backwards.
    pub fn time_ms(&self) -> u64 {
        self.head.time_ms
    }

    /// By which versions the cluster applies.
    pub fn apply_versions(&self) -> ApplyVersions {
        self.versions
    }

    /// The region that buckets are said to be in.
    pub fn region(&self) -> &str {
        &self.head.region
    }

    /// The sum over all rows of the state: equal on every replica at the same applied index (R4).
    pub fn state_hash(&self) -> u128 {
        self.hash
    }

    fn empty() -> Self {
        Self {
            head: RootHead::default(),
            map: Arc::default(),
            buckets: BTreeMap::new(),
            bucket_ids: BTreeSet::new(),
            ranges: BTreeMap::new(),
            moves: BTreeMap::new(),
            root_voters: None,
            drained: BTreeSet::new(),
            sessions: BTreeMap::new(),
            session_floor: SessionId(0),
            tokens: BTreeMap::new(),
            answers: BTreeMap::new(),
            nonces: BTreeMap::new(),
            versions: ApplyVersions::FIRST,
            known: KNOWN_VERSIONS.root,
            hash: 0,
        }
    }

    fn load_row(&mut self, row: &[u8], value: &[u8]) -> Result<(), CatalogError> {
        let malformed = || CatalogError::Inconsistent("a root row's key");
        let [_, field, id @ ..] = row else { return Err(malformed()) };
        let short = || key::read_u64(id).ok_or_else(malformed);
        let map = Arc::make_mut(&mut self.map);
        match *field {
            field::HEAD => {}
            field::HASH => self.hash = decode::<RootHash>(value)?.0,
            field::NODE => {
                let NodeRow(node) = decode(value)?;
                map.nodes.insert(node.id, node);
            }
            field::DISK => {
                let DiskRow(disk) = decode(value)?;
                map.disks.insert(disk.id, disk);
            }
            field::GROUP => {
                let GroupRow(group) = decode(value)?;
                map.groups.insert(group.id, group);
            }
            field::BUCKET => {
                let bucket: Bucket = decode(value)?;
                self.bucket_ids.insert(bucket.row.bucket);
                self.buckets.insert(bucket.name.as_str().to_owned(), bucket);
            }
            field::RANGE => {
                let range: RangeDescriptor = decode(value)?;
                self.ranges.insert(range.id, range);
            }
            field::SESSION => {
                self.sessions.insert(SessionId(short()?), decode(value)?);
            }
            field::REPLICA_MOVE => {
                let step: ReplicaMove = decode(value)?;
                self.moves.insert(step.range, step);
            }
            field::DRAINED => {
                self.drained.insert(decode::<DrainedRow>(value)?.0);
            }
            field::APPLY_VERSIONS => self.versions = decode::<ApplyVersionsRow>(value)?.0,
            field::ROOT_VOTERS => self.root_voters = Some(decode::<RootVotersRow>(value)?.0),
            field::SESSION_FLOOR => self.session_floor = decode::<SessionFloorRow>(value)?.0,
            field::TOKEN => {
                let hash = id.try_into().map_err(|_| malformed())?;
                self.tokens.insert(hash, decode::<TokenRow>(value)?.0);
            }
            field::ANSWER => {
                let answer: Answer = decode(value)?;
                self.nonces.insert(answer.nonce, short()?);
                self.answers.insert(short()?, answer);
            }
            _ => return Err(CatalogError::Inconsistent("a root row of an unknown kind")),
        }
        Ok(())
    }

    fn command(&mut self, txn: &mut Txn<'_>, id: u64, command: &RootCommand) -> RootOutcome {
        let known = self.nonces.get(&command.nonce).and_then(|order| self.answers.get(order));
        if let Some(answer) = known {
            return answer.outcome.clone();
        }
        let bootstrap = matches!(command.op, RootOp::Bootstrap { .. });
        let judged = if self.head.cluster.is_none() && !bootstrap {
            Err(RootRefusal::NotBootstrapped)
        } else {
            self.operation(txn, id, &command.op)
        };
        let outcome = judged.unwrap_or_else(RootOutcome::Refused);
        self.remember(txn, command.nonce, &outcome);
        outcome
    }

    fn remember(&mut self, txn: &mut Txn<'_>, nonce: u128, outcome: &RootOutcome) {
        if self.answers.len() >= ANSWERS_KEPT
            && let Some((order, oldest)) = self.answers.pop_first()
        {
            self.nonces.remove(&oldest.nonce);
            txn.remove(row_key(field::ANSWER, &order.to_be_bytes()));
        }
        let order = self.head.next_answer;
        self.head.next_answer += 1;
        let answer = Answer { nonce, outcome: outcome.clone() };
        txn.put(row_key(field::ANSWER, &order.to_be_bytes()), &answer);
        self.nonces.insert(nonce, order);
        self.answers.insert(order, answer);
    }

    fn operation(&mut self, txn: &mut Txn<'_>, id: u64, op: &RootOp) -> Judged {
        match op {
            RootOp::Bootstrap { cluster, nodes, ranges, region } => {
                self.bootstrap(txn, *cluster, nodes, ranges, region)
            }
            RootOp::IssueToken { hash, expires_ms } => self.issue_token(txn, *hash, *expires_ms),
            RootOp::Join { token, now_ms, name, zone, address, roles } => {
                self.take_token(txn, token, *now_ms)?;
                Ok(self.join(txn, NodeId(id), name, zone, address, roles))
            }
            RootOp::Boot { node, incarnation, address, disks } => {
                self.boot(txn, *node, *incarnation, address, disks)
            }
            RootOp::SetDiskState { disk, state } => self.set_disk_state(txn, *disk, *state),
            RootOp::Place(diff) => self.place(txn, diff),
            RootOp::CreateBucket { name, bucket, owner, created_ms } => {
                self.create_bucket(txn, name, *bucket, owner, *created_ms)
            }
            RootOp::DeleteBucketBegin { name, bucket } => self.delete_begin(txn, name, *bucket),
            RootOp::DeleteBucketDone { name, bucket, epoch } => {
                self.delete_done(txn, name, *bucket, *epoch)
            }
            RootOp::DeleteBucketRollBack { name, bucket, epoch } => {
                self.delete_roll_back(txn, name, *bucket, *epoch)
            }
            RootOp::OpenSession { node, incarnation } => {
                self.open_session(txn, SessionId(id), *node, *incarnation)
            }
            RootOp::EndSession { session } => {
                self.end_session(txn, *session);
                Ok(done())
            }
            RootOp::AdvanceTime { now_ms } => {
                self.head.time_ms = self.head.time_ms.max(*now_ms);
                Ok(done())
            }
            // nothing has ever proposed it: voters change by moves
            RootOp::SetVoters { .. } => Err(RootRefusal::NoSuchRange),
            RootOp::BeginMove(step) => {
                self.change_group(txn, |map| crate::placed::begin_move(map, step))
            }
            RootOp::Switch(step) => self.change_group(txn, |map| crate::placed::switch(map, step)),
            RootOp::LoseDisks { base, disks } => self.lose_disks(txn, *base, disks),
            RootOp::JudgeDisk { disk, from, to } => self.judge_disk(txn, *disk, *from, *to),
            // as that of a node: the log's own number of this entry, which no other has
            RootOp::ReserveRange => Ok(RootOutcome::Range(RangeId(id))),
            RootOp::Split(done) => self.split(txn, done),
            RootOp::BeginReplicaMove { voters, step } => self.begin_replica_move(txn, voters, step),
            RootOp::EndReplicaMove(step) => self.end_replica_move(txn, step),
            RootOp::CancelReplicaMove(step) => self.cancel_replica_move(txn, step),
            RootOp::DrainReplicas { node, drain } => self.drain_replicas(txn, *node, *drain),
            RootOp::RemoveNode(node) => self.remove_node(txn, *node),
            RootOp::RaiseApplyVersions { base, to } => self.raise_apply_versions(txn, *base, *to),
            RootOp::SetVersioning { name, bucket, versioning } => {
                self.set_versioning(txn, name, *bucket, *versioning)
            }
        }
    }

    /// Whoever asks again is given what is there already: its ranges may not all have been told.
    fn set_versioning(
        &mut self,
        txn: &mut Txn<'_>,
        name: &BucketName,
        id: BucketId,
        versioning: Versioning,
    ) -> Judged {
        let mut bucket = self.bucket(name, id)?;
        if !bucket.is_open() {
            return Err(RootRefusal::BucketBusy);
        }
        if versioning == Versioning::Off || bucket.row.versioning == versioning {
            return Ok(RootOutcome::Bucket(bucket));
        }
        bucket.row.versioning = versioning;
        Ok(self.turn_bucket(txn, bucket, BucketState::Open))
    }

    /// Whoever has joined or booted since all were asked may know less: each of that is a new epoch of the map.
    fn raise_apply_versions(
        &mut self,
        txn: &mut Txn<'_>,
        base: Epoch,
        to: ApplyVersions,
    ) -> Judged {
        if self.versions.include(&to) {
            return Ok(done());
        }
        if base != self.map.epoch {
            return Err(RootRefusal::StaleMap { known: self.map.epoch });
        }
        let ApplyVersions { root, ranges } = self.versions;
        self.versions = ApplyVersions { root: root.max(to.root), ranges: ranges.max(to.ranges) };
        txn.put(row_key(field::APPLY_VERSIONS, &[]), &ApplyVersionsRow(self.versions));
        Ok(done())
    }

    fn bootstrap(
        &mut self,
        txn: &mut Txn<'_>,
        cluster: ClusterId,
        nodes: &[Node],
        ranges: &[RangeDescriptor],
        region: &str,
    ) -> Judged {
        if self.head.cluster.is_some() {
            return Err(RootRefusal::Bootstrapped);
        }
        if !cover_all(ranges) {
            return Err(RootRefusal::NoSuchRange);
        }
        if let Some(node) = nodes.iter().find(|node| node.id.0 >= IDS_PER_ENTRY) {
            // Ids from there on are given by the log.
            return Err(RootRefusal::NoSuchNode(node.id));
        }
        self.head.cluster = Some(cluster);
        region.clone_into(&mut self.head.region);
        let map = self.change_map();
        map.cluster = cluster;
        for node in nodes {
            map.nodes.insert(node.id, node.clone());
            put_node(txn, node);
        }
        ranges.iter().for_each(|range| self.put_range(txn, range.clone()));
        Ok(done())
    }

    fn issue_token(&mut self, txn: &mut Txn<'_>, hash: [u8; 32], expires_ms: u64) -> Judged {
        let now_ms = self.head.time_ms;
        self.tokens.retain(|hash, &mut expires_ms| {
            let void = expires_ms < now_ms;
            if void {
                txn.remove(row_key(field::TOKEN, hash));
            }
            !void
        });
        self.tokens.insert(hash, expires_ms);
        txn.put(row_key(field::TOKEN, &hash), &TokenRow(expires_ms));
        Ok(done())
    }

    /// A token admits once.
    fn take_token(
        &mut self,
        txn: &mut Txn<'_>,
        token: &[u8; 32],
        now_ms: u64,
    ) -> Result<(), RootRefusal> {
        let now_ms = now_ms.max(self.head.time_ms);
        match self.tokens.get(token) {
            Some(&expires_ms) if now_ms <= expires_ms => {
                self.tokens.remove(token);
                txn.remove(row_key(field::TOKEN, token));
                Ok(())
            }
            Some(_) | None => Err(RootRefusal::BadToken),
        }
    }

    fn join(
        &mut self,
        txn: &mut Txn<'_>,
        id: NodeId,
        name: &str,
        zone: &str,
        address: &str,
        roles: &[Role],
    ) -> RootOutcome {
        let node = Node {
            id,
            name: name.to_owned(),
            zone: zone.to_owned(),
            address: address.to_owned(),
            roles: roles.to_vec(),
            incarnation: 0,
        };
        put_node(txn, &node);
        self.change_map().nodes.insert(id, node);
        RootOutcome::Joined(id)
    }

    fn boot(
        &mut self,
        txn: &mut Txn<'_>,
        id: NodeId,
        incarnation: u64,
        address: &str,
        disks: &[Disk],
    ) -> Judged {
        let known = self.map.nodes.get(&id).ok_or(RootRefusal::NoSuchNode(id))?;
        if incarnation <= known.incarnation {
            let known = known.incarnation;
            return Err(RootRefusal::StaleIncarnation { node: id, found: incarnation, known });
        }
        let mut seen = BTreeSet::new();
        for disk in disks {
            let grown = self
                .map
                .disks
                .get(&disk.id)
                .is_none_or(|known| known.node == id && known.incarnation < disk.incarnation);
            if disk.node != id || !grown || !seen.insert(disk.id) {
                return Err(RootRefusal::StaleDisk(disk.id));
            }
        }
        let node = Node { incarnation, address: address.to_owned(), ..known.clone() };
        put_node(txn, &node);
        self.end_earlier_sessions(txn, id, incarnation);
        let map = self.change_map();
        map.nodes.insert(id, node);
        for disk in disks {
            // What the cluster knows of a disk's health outlives a boot: a dead disk stays dead (C6).
            let state = map.disks.get(&disk.id).map_or(DiskState::Healthy, |known| known.state);
            let disk = Disk { state, ..disk.clone() };
            put_disk(txn, &disk);
            map.disks.insert(disk.id, disk);
        }
        Ok(done())
    }

    /// What was dead or removed never comes back as itself: its slots have moved on without it (C6).
    fn set_disk_state(&mut self, txn: &mut Txn<'_>, id: DiskId, state: DiskState) -> Judged {
        let known = self.map.disks.get(&id).ok_or(RootRefusal::NoSuchDisk(id))?;
        let from = known.state;
        if from == state {
            return Ok(done());
        }
        if !from.is_read() && state != DiskState::Removed {
            return Err(RootRefusal::BadDiskState { disk: id, from, to: state });
        }
        let is_named = || self.map.groups.values().any(|group| group.names(id));
        if state == DiskState::Removed && is_named() {
            return Err(RootRefusal::DiskInUse(id));
        }
        let disk = Disk { state, ..known.clone() };
        put_disk(txn, &disk);
        self.change_map().disks.insert(id, disk);
        Ok(done())
    }

    /// A judgement may come late: what it was judged from must still be so.
    fn judge_disk(
        &mut self,
        txn: &mut Txn<'_>,
        id: DiskId,
        from: DiskState,
        to: DiskState,
    ) -> Judged {
        let known = self.map.disks.get(&id).ok_or(RootRefusal::NoSuchDisk(id))?.state;
        if known != from {
            return Err(RootRefusal::BadDiskState { disk: id, from: known, to });
        }
        self.set_disk_state(txn, id, to)
    }

    /// All of them or none: who decided it saw how many would be lost at once.
    fn lose_disks(&mut self, txn: &mut Txn<'_>, base: Epoch, disks: &[DiskId]) -> Judged {
        if base != self.map.epoch {
            return Err(RootRefusal::StaleMap { known: self.map.epoch });
        }
        for id in disks {
            let known = self.map.disks.get(id).ok_or(RootRefusal::NoSuchDisk(*id))?;
            if known.state == DiskState::Removed {
                let (disk, from, to) = (*id, known.state, DiskState::Dead);
                return Err(RootRefusal::BadDiskState { disk, from, to });
            }
        }
        for id in disks {
            self.set_disk_state(txn, *id, DiskState::Dead)?;
        }
        Ok(done())
    }

    fn change_group(
        &mut self,
        txn: &mut Txn<'_>,
        change: impl FnOnce(&mut ClusterMap) -> Result<PlacementGroup, RootRefusal>,
    ) -> Judged {
        let mut map = ClusterMap::clone(&self.map);
        let group = change(&mut map)?;
        ashlar_placement::validate_group(&map, &group)
            .map_err(|bad| RootRefusal::BadPlacement(bad.to_string()))?;
        txn.put(row_key(field::GROUP, &group.id.0.to_be_bytes()), &GroupRow(group));
        map.epoch = map.epoch.next();
        self.map = Arc::new(map);
        Ok(done())
    }

    fn place(&mut self, txn: &mut Txn<'_>, diff: &PlacementDiff) -> Judged {
        if diff.base != self.map.epoch {
            return Err(RootRefusal::StaleMap { known: self.map.epoch });
        }
        let mut map = ClusterMap::clone(&self.map);
        let changed = crate::placed::place(&mut map, diff).map_err(RootRefusal::BadPlacement)?;
        for group in changed {
            txn.put(row_key(field::GROUP, &group.id.0.to_be_bytes()), &GroupRow(group));
        }
        map.epoch = map.epoch.next();
        self.map = Arc::new(map);
        Ok(done())
    }

    fn create_bucket(
        &mut self,
        txn: &mut Txn<'_>,
        name: &BucketName,
        id: BucketId,
        owner: &str,
        created_ms: u64,
    ) -> Judged {
        if let Some(known) = self.buckets.get(name.as_str()) {
            return Err(match known.is_open() {
                true => RootRefusal::BucketExists(Box::new(known.clone())),
                false => RootRefusal::BucketBusy,
            });
        }
        if self.bucket_ids.contains(&id) {
            return Err(RootRefusal::BucketBusy);
        }
        let row = BucketRow {
            bucket: id,
            epoch: Epoch(1),
            state: BucketState::Open,
            versioning: Versioning::Off,
        };
        let bucket = Bucket { name: name.clone(), owner: owner.to_owned(), created_ms, row };
        Ok(self.put_bucket(txn, bucket))
    }

    /// A second begin is told to wait; its gateway may go on with the first one's epoch. A resend is known by its nonce.
    fn delete_begin(&mut self, txn: &mut Txn<'_>, name: &BucketName, id: BucketId) -> Judged {
        let bucket = self.bucket(name, id)?;
        if !bucket.is_open() {
            return Err(RootRefusal::BucketBusy);
        }
        Ok(self.turn_bucket(txn, bucket, BucketState::Fenced))
    }

    fn delete_done(
        &mut self,
        txn: &mut Txn<'_>,
        name: &BucketName,
        id: BucketId,
        epoch: Epoch,
    ) -> Judged {
        let bucket = self.bucket(name, id)?;
        if bucket.is_open() {
            return Err(RootRefusal::BucketExists(Box::new(bucket)));
        }
        if bucket.row.epoch != epoch {
            return Err(RootRefusal::BucketBusy);
        }
        self.buckets.remove(name.as_str());
        self.bucket_ids.remove(&id);
        txn.remove(row_key(field::BUCKET, name.as_str().as_bytes()));
        Ok(done())
    }

    fn delete_roll_back(
        &mut self,
        txn: &mut Txn<'_>,
        name: &BucketName,
        id: BucketId,
        epoch: Epoch,
    ) -> Judged {
        let bucket = self.bucket(name, id)?;
        if bucket.is_open() {
            return Ok(RootOutcome::Bucket(bucket));
        }
        if bucket.row.epoch != epoch {
            return Err(RootRefusal::BucketBusy);
        }
        Ok(self.turn_bucket(txn, bucket, BucketState::Open))
    }

    fn bucket(&self, name: &BucketName, id: BucketId) -> Result<Bucket, RootRefusal> {
        let known = self.buckets.get(name.as_str()).filter(|known| known.row.bucket == id);
        known.cloned().ok_or(RootRefusal::NoSuchBucket)
    }

    fn turn_bucket(
        &mut self,
        txn: &mut Txn<'_>,
        mut bucket: Bucket,
        state: BucketState,
    ) -> RootOutcome {
        bucket.row.state = state;
        bucket.row.epoch = bucket.row.epoch.next();
        self.put_bucket(txn, bucket)
    }

    fn put_bucket(&mut self, txn: &mut Txn<'_>, bucket: Bucket) -> RootOutcome {
        txn.put(row_key(field::BUCKET, bucket.name.as_str().as_bytes()), &bucket);
        self.bucket_ids.insert(bucket.row.bucket);
        self.buckets.insert(bucket.name.as_str().to_owned(), bucket.clone());
        RootOutcome::Bucket(bucket)
    }

    fn open_session(
        &mut self,
        txn: &mut Txn<'_>,
        id: SessionId,
        node: NodeId,
        incarnation: u64,
    ) -> Judged {
        let known = self.map.nodes.get(&node).ok_or(RootRefusal::NoSuchNode(node))?.incarnation;
        if incarnation != known {
            return Err(RootRefusal::StaleIncarnation { node, found: incarnation, known });
        }
        let session = Session { node, incarnation };
        self.sessions.insert(id, session);
        txn.put(row_key(field::SESSION, &id.0.to_be_bytes()), &session);
        self.session_floor = SessionId(id.0.saturating_add(1));
        txn.put(row_key(field::SESSION_FLOOR, &[]), &SessionFloorRow(self.session_floor));
        Ok(RootOutcome::Session(id))
    }

    fn end_session(&mut self, txn: &mut Txn<'_>, session: SessionId) {
        if self.sessions.remove(&session).is_some() {
            txn.remove(row_key(field::SESSION, &session.0.to_be_bytes()));
        }
    }

    /// A node that has booted again has none of the sessions of its earlier lives: nobody else would end them.
    fn end_earlier_sessions(&mut self, txn: &mut Txn<'_>, node: NodeId, incarnation: u64) {
        let earlier = |session: &Session| session.node == node && session.incarnation < incarnation;
        let ended: Vec<SessionId> = self
            .sessions
            .iter()
            .filter_map(|(&id, session)| earlier(session).then_some(id))
            .collect();
        ended.into_iter().for_each(|session| self.end_session(txn, session));
    }

    /// Compare-and-set on the epoch of the range that was split: its sides come in the order of their epochs, whoever
    /// tells of them, and however often.
    fn split(&mut self, txn: &mut Txn<'_>, done: &SplitDone) -> Judged {
        let SplitDone { left, right } = done;
        let known = self.ranges.get(&left.id).ok_or(RootRefusal::NoSuchRange)?;
        if known.epoch >= left.epoch {
            return Ok(self::done());
        }
        let whole =
            Interval { start: left.interval.start.clone(), end: right.interval.end.clone() };
        let is_next = known.epoch.next() == left.epoch
            && right.epoch == left.epoch
            && known.interval == whole
            && left.interval.end.as_ref() == Some(&right.interval.start)
            && whole.start < right.interval.start
            && whole.contains(&right.interval.start);
        if !is_next || right.id == RangeId::ROOT || self.ranges.contains_key(&right.id) {
            return Err(RootRefusal::NoSuchRange);
        }
        // who holds it is said here and not there: the range does not know of what has moved since it began
        let voters = known.voters.clone();
        for side in [left, right] {
            self.put_range(txn, RangeDescriptor { voters: voters.clone(), ..side.clone() });
        }
        // whether the members of the right side are those of before the move or behind it, its leader finds out
        if let Some(step) = self.moves.get(&left.id).cloned() {
            self.put_move(txn, ReplicaMove { range: right.id, ..step });
        }
        Ok(self::done())
    }

    fn put_range(&mut self, txn: &mut Txn<'_>, range: RangeDescriptor) {
        txn.put(row_key(field::RANGE, &range.id.0.to_be_bytes()), &range);
        self.ranges.insert(range.id, range);
    }

    fn put_move(&mut self, txn: &mut Txn<'_>, step: ReplicaMove) {
        txn.put(row_key(field::REPLICA_MOVE, &step.range.0.to_be_bytes()), &step);
        self.moves.insert(step.range, step);
    }

    fn remove_move(&mut self, txn: &mut Txn<'_>, range: RangeId) {
        txn.remove(row_key(field::REPLICA_MOVE, &range.0.to_be_bytes()));
        self.moves.remove(&range);
    }

    /// The map, under its next epoch.
    fn change_map(&mut self) -> &mut ClusterMap {
        let map = Arc::make_mut(&mut self.map);
        map.epoch = map.epoch.next();
        map
    }
}

fn done() -> RootOutcome {
    RootOutcome::Applied(Applied::Done)
}

fn row_key(field: u8, id: &[u8]) -> Vec<u8> {
    let mut row = vec![family::ROOT, field];
    row.extend_from_slice(id);
    row
}

fn put_node(txn: &mut Txn<'_>, node: &Node) {
    txn.put(row_key(field::NODE, &node.id.0.to_be_bytes()), &NodeRow(node.clone()));
}

fn put_disk(txn: &mut Txn<'_>, disk: &Disk) {
    txn.put(row_key(field::DISK, &disk.id.0.to_be_bytes()), &DiskRow(disk.clone()));
}

/// Whether the ranges are disjoint and leave no gap.
fn cover_all(ranges: &[RangeDescriptor]) -> bool {
    let mut sorted: Vec<_> = ranges.iter().collect();
    sorted.sort_by(|left, right| left.interval.start.cmp(&right.interval.start));
    let ids: BTreeSet<_> = ranges.iter().map(|range| range.id).collect();
    let mut next = Some(KeyPoint::least());
    for range in sorted {
        let grows = range.interval.end.as_ref().is_none_or(|end| *end > range.interval.start);
        if next.as_ref() != Some(&range.interval.start) || !grows {
            return false;
        }
        next.clone_from(&range.interval.end);
    }
    next.is_none() && ids.len() == ranges.len() && !ids.contains(&RangeId::ROOT)
}

fn interval() -> (Vec<u8>, Option<Vec<u8>>) {
    (vec![family::ROOT], key::successor(&[family::ROOT]))
}

/// The key of the row that has the root's state hash.
pub(crate) fn root_hash_key() -> Vec<u8> {
    row_key(field::HASH, &[])
}

/// The intervals of the node-wide map that the root range owns: see [`crate::owned_intervals`].
pub fn root_owned_intervals() -> Vec<KeySpan> {
    vec![interval()]
}

/// Visits every row of the root in key order: what a snapshot file holds.
pub fn root_export(
    view: &dyn View,
    visit: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<(), CatalogError> {
    export_intervals(view, &root_owned_intervals(), visit)
}
