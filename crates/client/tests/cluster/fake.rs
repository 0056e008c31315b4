//! A cluster of fakes on loopback: six data nodes of one disk each, and two nodes that play the root and one range.
//!
//! The wire is the real one; what is faked is the state behind it, and each fault is switched by hand.

use ashlar_client::{Client, ClientConfig};
use ashlar_host::{Host, TaskKind};
use ashlar_types::*;
use ashlar_wire::proto::data_server::{Data, DataServer};
use ashlar_wire::proto::metadata_reply::Result as Reply;
use ashlar_wire::proto::metadata_server::{Metadata, MetadataServer};
use ashlar_wire::proto::{
    Busy, CollectReply, CollectRequest, DiskStatus, InventoryReply, InventoryRequest,
    ListShardsReply, ListShardsRequest, MetadataReply, MetadataRequest, PingReply, PingRequest,
    VerifyReply, VerifyRequest, VersionsReply, VersionsRequest,
};
use ashlar_wire::shard::{
    CRC_HEADER, ERROR_HEADER, SHARD_ROUTE, ShardFacts, ShardPath, format_crc,
};
use ashlar_wire::{Dialer, Security, serve};
use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use http_body_util::BodyExt;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tonic::Status;

/// How a fake disk misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// Takes the head of a PUT, then nothing.
    StallsWrites,
    /// Refuses every PUT.
    RefusesWrites,
    /// Says that what it read is damaged.
    SaysCorrupt,
    /// Serves wrong bytes and does not notice.
    LiesQuietly,
    /// Answers no GET.
    StallsReads,
    /// Stores something else than was sent, and says so truthfully.
    StoresOtherBytes,
    /// Stores less than was sent, and says so truthfully.
    StoresLess,
    /// Answers everything with an error, pings too.
    Dead,
    /// Answers nothing but pings, and these with an error.
    Silent,
}

/// What the range does with the next command, instead of just doing it.
#[derive(Debug, Clone)]
pub(crate) enum Trick {
    Redirect(u64),
    Busy,
    /// It is applied, but the answer says that nobody knows.
    LosesAnswer,
    Refuses(Refusal),
    /// Nothing is ever answered.
    Hangs,
}

#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) map: ClusterMap,
    pub(crate) ranges: Vec<RangeDescriptor>,
    pub(crate) bucket: Option<Bucket>,
    pub(crate) shards: BTreeMap<(DiskId, ExtentId, Slot), Bytes>,
    pub(crate) faults: BTreeSet<(DiskId, Fault)>,
    pub(crate) tricks: VecDeque<Trick>,
    /// Every command as it arrived, and at which node.
    pub(crate) arrived: Vec<(u64, Command)>,
    pub(crate) ended: BTreeSet<SessionId>,
    pub(crate) applied: BTreeMap<(SessionId, u64), Outcome>,
    pub(crate) sessions: u64,
    pub(crate) gets: u64,
    /// Meta nodes that take everything and answer nothing.
    pub(crate) stopped: BTreeSet<u64>,
    /// Who leads the ranges, where that matters.
    pub(crate) leader: Option<u64>,
    /// How often the others have named it.
    pub(crate) named_leader: u64,
    /// So many more bytes of shards a disk receives, then it gets this fault.
    pub(crate) fails_after: BTreeMap<DiskId, (usize, Fault)>,
    /// The extents of which a shard was sent.
    pub(crate) begun: BTreeSet<ExtentId>,
    pub(crate) keys: BTreeSet<Vec<u8>>,
    pub(crate) more_pieces: Vec<Piece>,
}

pub(crate) struct FakeCluster {
    pub(crate) shared: Arc<Mutex<Shared>>,
    pub(crate) client: Client,
    pub(crate) host: Host,
}

pub(crate) const BUCKET: BucketId = BucketId(77);

impl FakeCluster {
    /// Six data nodes (1 to 6, disks 101 to 106) and two meta nodes (11, 12). The nodes in `dead` listen nowhere.
    pub(crate) async fn start(dead: &[u64]) -> Self {
        Self::start_with(dead, Duration::from_secs(3600)).await
    }

    /// The same, with sessions that are replaced at this age.
    pub(crate) async fn start_with(dead: &[u64], session_age_max: Duration) -> Self {
        let change = |config: &mut ClientConfig| config.session_age_max = session_age_max;
        Self::start_as(dead, change).await
    }

    /// The same, with a client that is set up otherwise.
    pub(crate) async fn start_as(dead: &[u64], change: impl FnOnce(&mut ClientConfig)) -> Self {
        let host = Host::real().with_own_shutdown();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let mut map =
            ClusterMap { epoch: Epoch(5), wide: Some(Profile::RS_4_2), ..ClusterMap::default() };
        for id in (1..=6).chain([11, 12]) {
            let listener = host.network.listen("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let roles = if id < 10 { vec![Role::Data] } else { vec![Role::Meta] };
            let name = format!("n{id}");
            let node =
                Node { id: NodeId(id), name, zone: "z".into(), address, roles, incarnation: 1 };
            map.nodes.insert(node.id, node);
            if id < 10 {
                let disk = Disk {
                    id: disk(id),
                    node: NodeId(id),
                    capacity_bytes: 1 << 40,
                    incarnation: 1,
                    state: DiskState::Healthy,
                };
                map.disks.insert(disk.id, disk);
            }
            if !dead.contains(&id) {
                let router = router(FakeNode { id, shared: shared.clone() });
                let serving = serve(host.clone(), listener, Security::Plain, router);
                drop(host.tasks.spawn(TaskKind::Background("fake"), Box::pin(serving)));
            }
        }
        let group = |id, profile: Profile, first: u64| PlacementGroup {
            id: PgId(id),
            profile,
            epoch: Epoch(1),
            homes: (0..u64::from(profile.width()))
                .map(|slot| disk((first + slot) % 6 + 1))
                .collect(),
            moving: None,
            open: true,
        };
        let groups = [
            group(1, Profile::RS_4_2, 0),
            group(2, Profile::RS_1_2, 0),
            group(3, Profile::RS_1_2, 3),
        ];
        map.groups = groups.into_iter().map(|group| (group.id, group)).collect();
        let seeds = vec![map.nodes[&NodeId(11)].address.clone()];
        let middle = KeyPoint::new(BUCKET, *b"m");
        let range = |id, start, end| RangeDescriptor {
            id: RangeId(id),
            epoch: Epoch(1),
            interval: Interval { start, end },
            voters: vec![NodeId(11), NodeId(12)],
        };
        {
            let mut shared = shared.lock().unwrap();
            shared.ranges =
                vec![range(1, KeyPoint::least(), Some(middle.clone())), range(2, middle, None)];
            shared.map = map;
        }
        let mut config = ClientConfig::new(seeds, NodeId(99), 1);
        config.patience = Duration::from_secs(4);
        config.ping_every = Duration::from_millis(50);
        change(&mut config);
        let dialer = Dialer::new(host.clone(), &Security::Plain);
        let client = Client::start(host.clone(), dialer, config).await;
        while client.map().groups.is_empty() {
            host.clock.sleep(Duration::from_millis(5)).await;
        }
        Self { shared, client, host }
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Shared) -> T) -> T {
        look(&mut self.shared.lock().unwrap())
    }

    pub(crate) fn fault(&self, node: u64, fault: Fault) {
        self.with(|shared| shared.faults.insert((disk(node), fault)));
    }

    pub(crate) fn trick(&self, tricks: impl IntoIterator<Item = Trick>) {
        self.with(|shared| shared.tricks.extend(tricks));
    }

    /// The `(session, seq)` of the commands that have arrived.
    pub(crate) fn callers(&self) -> Vec<(u64, u64)> {
        self.with(|shared| {
            let callers = shared.arrived.iter().filter_map(|(_, command)| command.caller);
            callers.map(|caller| (caller.session.0, caller.seq)).collect()
        })
    }

    /// Waits until the range has seen `count` abandoned extents.
    pub(crate) async fn abandoned(&self, count: usize) -> Vec<ExtentId> {
        loop {
            let found: Vec<ExtentId> = self.with(|shared| {
                let contents = shared.arrived.iter().filter_map(|(_, command)| match &command.op {
                    RangeOp::Abandon(abandon) => Some(&abandon.content),
                    _ => None,
                });
                contents
                    .flat_map(|content| content.extents.iter().map(|extent| extent.id))
                    .collect()
            });
            if found.len() >= count {
                return found;
            }
            self.host.clock.sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for FakeCluster {
    fn drop(&mut self) {
        self.host.shutdown.request();
    }
}

pub(crate) fn disk(node: u64) -> DiskId {
    DiskId(u128::from(100 + node))
}

#[derive(Clone)]
struct FakeNode {
    id: u64,
    shared: Arc<Mutex<Shared>>,
}

fn router(node: FakeNode) -> Router {
    let shards =
        Router::new().route(SHARD_ROUTE, axum::routing::any(shard)).with_state(node.clone());
    let rpc = tonic::service::Routes::new(MetadataServer::new(node.clone()))
        .add_service(DataServer::new(node))
        .into_axum_router();
    shards.merge(rpc)
}

fn refusal(status: u16, word: &str) -> Response {
    Response::builder().status(status).header(ERROR_HEADER, word).body(Body::empty()).unwrap()
}

async fn put(node: FakeNode, path: ShardPath, request: Request) -> Response {
    let is = |fault| node.shared.lock().unwrap().faults.contains(&(path.disk, fault));
    node.shared.lock().unwrap().begun.insert(path.extent);
    if is(Fault::StallsWrites) {
        return std::future::pending().await;
    }
    if is(Fault::RefusesWrites) {
        return refusal(503, "not-writable");
    }
    let facts: ShardFacts = request.uri().query().unwrap().parse().unwrap();
    let in_head = request.headers().contains_key("content-length");
    let (mut bytes, mut body, mut trailer) = (Vec::new(), request.into_body(), None);
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return refusal(400, "bad-body");
        };
        match frame.into_data() {
            Ok(data) => match node.receives(path.disk, data.len()) {
                None => bytes.extend_from_slice(&data),
                Some(Fault::Silent) => return std::future::pending().await,
                Some(Fault::RefusesWrites) => return refusal(503, "not-writable"),
                Some(_) => return refusal(500, ""),
            },
            Err(frame) => trailer = frame.into_trailers().unwrap().remove(CRC_HEADER),
        }
    }
    let crc = format_crc(crc32c::crc32c(&bytes));
    if in_head {
        assert_eq!(bytes.len() as u64, facts.length);
    } else {
        assert_eq!(trailer.unwrap(), crc);
        assert!(bytes.len() as u64 <= facts.length);
    }
    if is(Fault::StoresOtherBytes) {
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
    }
    if is(Fault::StoresLess) {
        bytes.pop();
    }
    let crc = format_crc(crc32c::crc32c(&bytes));
    let key = (path.disk, path.extent, path.slot);
    node.shared.lock().unwrap().shards.insert(key, bytes.into());
    Response::builder().header(CRC_HEADER, crc).body(Body::empty()).unwrap()
}

async fn shard(State(node): State<FakeNode>, request: Request) -> Response {
    let path: ShardPath = request.uri().path().parse().unwrap();
    let is = |fault| node.shared.lock().unwrap().faults.contains(&(path.disk, fault));
    let key = (path.disk, path.extent, path.slot);
    if is(Fault::Silent) {
        return std::future::pending().await;
    }
    if is(Fault::Dead) {
        return refusal(500, "");
    }
    if request.method() == http::Method::PUT {
        return put(node, path, request).await;
    }
    if is(Fault::StallsReads) {
        return std::future::pending().await;
    }
    if is(Fault::SaysCorrupt) {
        return refusal(422, "corrupt");
    }
    let range =
        request.headers()["range"].to_str().unwrap().strip_prefix("bytes=").unwrap().to_owned();
    let (first, last) = range.split_once('-').unwrap();
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    node.shared.lock().unwrap().gets += 1;
    let Some(bytes) = node.shared.lock().unwrap().shards.get(&key).cloned() else {
        return refusal(404, "not-found");
    };
    let mut bytes = bytes.slice(first..=last);
    if is(Fault::LiesQuietly) {
        bytes = bytes.iter().map(|byte| !byte).collect();
    }
    Response::builder().status(206).body(Body::from(bytes)).unwrap()
}

#[async_trait]
impl Data for FakeNode {
    async fn ping(
        &self,
        _: tonic::Request<PingRequest>,
    ) -> Result<tonic::Response<PingReply>, Status> {
        let shared = self.shared.lock().unwrap();
        let is = |fault| shared.faults.contains(&(disk(self.id), fault));
        if is(Fault::Dead) || is(Fault::Silent) {
            return Err(Status::unavailable("a dead node"));
        }
        let status = DiskStatus {
            disk: disk(self.id).0.to_be_bytes().to_vec().into(),
            writable: true,
            ..DiskStatus::default()
        };
        let map_epoch = shared.map.epoch.0;
        Ok(tonic::Response::new(PingReply {
            node: self.id,
            incarnation: 1,
            map_epoch,
            disks: vec![status],
        }))
    }

    async fn inventory(
        &self,
        _: tonic::Request<InventoryRequest>,
    ) -> Result<tonic::Response<InventoryReply>, Status> {
        Err(Status::unimplemented("nobody audits here"))
    }

    async fn collect(
        &self,
        _: tonic::Request<CollectRequest>,
    ) -> Result<tonic::Response<CollectReply>, Status> {
        Err(Status::unimplemented("the fakes keep what they have"))
    }

    async fn list_shards(
        &self,
        _: tonic::Request<ListShardsRequest>,
    ) -> Result<tonic::Response<ListShardsReply>, Status> {
        Err(Status::unimplemented("nothing moves among the fakes"))
    }
}

type Rpc = Result<tonic::Response<MetadataReply>, Status>;

fn reply(result: Reply) -> Rpc {
    Ok(tonic::Response::new(MetadataReply { result: Some(result), ..MetadataReply::default() }))
}

fn body<T: Versioned>(value: &T) -> Rpc {
    reply(Reply::Body(encode(value).into()))
}

#[async_trait]
impl Metadata for FakeNode {
    /// As a release that does not know the question.
    async fn versions(
        &self,
        _: tonic::Request<VersionsRequest>,
    ) -> Result<tonic::Response<VersionsReply>, Status> {
        Err(Status::unimplemented("no such method"))
    }

    async fn verify(
        &self,
        _: tonic::Request<VerifyRequest>,
    ) -> Result<tonic::Response<VerifyReply>, Status> {
        Err(Status::unimplemented("no such method"))
    }

    async fn execute(&self, request: tonic::Request<MetadataRequest>) -> Rpc {
        let request = request.into_inner();
        if request.range == 0 {
            self.unless_stopped().await;
            return body(&self.root(decode::<RootCommand>(&request.body).unwrap().op));
        }
        let command: Command = decode(&request.body).unwrap();
        self.shared.lock().unwrap().arrived.push((self.id, command.clone()));
        self.unless_stopped().await;
        let trick = {
            let mut shared = self.shared.lock().unwrap();
            if let Some(leader) = shared.leader.filter(|&leader| leader != self.id) {
                shared.named_leader += 1;
                return reply(Reply::Leader(leader));
            }
            if command.caller.is_some() { shared.tricks.pop_front() } else { None }
        };
        match trick {
            None => body(&CommandReply { index: 7, outcome: self.apply(&command) }),
            Some(Trick::Redirect(node)) => reply(Reply::Leader(node)),
            Some(Trick::Busy) => {
                reply(Reply::Busy(Busy { retry_after_ms: 1, reason: "full".into() }))
            }
            Some(Trick::LosesAnswer) => {
                self.apply(&command);
                reply(Reply::Unknown("the leader has changed".into()))
            }
            Some(Trick::Refuses(refusal)) => {
                body(&CommandReply { index: 7, outcome: Outcome::Refused(refusal) })
            }
            Some(Trick::Hangs) => std::future::pending().await,
        }
    }

    async fn query(&self, request: tonic::Request<MetadataRequest>) -> Rpc {
        let request = request.into_inner();
        self.unless_stopped().await;
        let shared = self.shared.lock().unwrap();
        if request.range == 0 {
            return body(&match decode::<RootQuery>(&request.body).unwrap() {
                RootQuery::Map { newer_than } => {
                    let newer = newer_than.is_none_or(|than| shared.map.epoch > than);
                    RootAnswer::Map(newer.then(|| Box::new(shared.map.clone())))
                }
                RootQuery::Ranges => RootAnswer::Ranges(shared.ranges.clone()),
                RootQuery::Bucket(_) => RootAnswer::Bucket(shared.bucket.clone()),
                RootQuery::Buckets { after: None, .. } => {
                    RootAnswer::Buckets(shared.bucket.clone().into_iter().collect())
                }
                RootQuery::Buckets { after: Some(_), .. } => RootAnswer::Buckets(vec![]),
                RootQuery::BucketsBeingDeleted => {
                    let bucket = shared.bucket.iter().filter(|bucket| !bucket.is_open());
                    RootAnswer::Buckets(bucket.cloned().collect())
                }
                RootQuery::Replicas => {
                    let still = |range: &RangeDescriptor| {
                        let range = range.clone();
                        RangeReplicas { range, moving: None }
                    };
                    let ranges = shared.ranges.iter().map(still).collect();
                    RootAnswer::Replicas(ReplicaDirectory { ranges, drained: vec![] })
                }
                RootQuery::ApplyVersions => RootAnswer::ApplyVersions(ApplyVersions::FIRST),
                RootQuery::Sessions => RootAnswer::Sessions(vec![]),
                RootQuery::LivingSessions => {
                    RootAnswer::LivingSessions { floor: SessionId(0), sessions: vec![] }
                }
            });
        }
        let range = shared.ranges.iter().find(|range| range.id.0 == request.range).unwrap();
        if range.epoch.0 != request.epoch {
            return reply(Reply::Epoch(range.epoch.0));
        }
        match decode::<RangeQuery>(&request.body).unwrap() {
            RangeQuery::List(list) => {
                let inside = |key: &&Vec<u8>| {
                    range.interval.contains(&KeyPoint::new(BUCKET, key.as_slice()))
                        && **key > list.after
                        && key.starts_with(&list.prefix)
                };
                let found: Vec<&Vec<u8>> = shared.keys.iter().filter(inside).collect();
                let limit = list.limit as usize;
                let entries = found
                    .iter()
                    .take(limit)
                    .map(|key| ListEntry::CommonPrefix(key.to_vec()))
                    .collect();
                body(&RangeAnswer::Page(Page { entries, more: found.len() > limit }))
            }
            RangeQuery::Pieces { .. } => body(&RangeAnswer::Pieces(shared.more_pieces.clone())),
            _ => body(&RangeAnswer::Refused(QueryRefusal::NoSuchKey)),
        }
    }
}

impl FakeNode {
    /// Counts bytes of a shard: the fault that they bring about.
    fn receives(&self, disk: DiskId, bytes: usize) -> Option<Fault> {
        let mut shared = self.shared.lock().unwrap();
        if let Some((left, fault)) = shared.fails_after.get_mut(&disk) {
            *left = left.saturating_sub(bytes);
            if *left == 0 {
                let fault = *fault;
                shared.fails_after.remove(&disk);
                shared.faults.insert((disk, fault));
            }
        }
        let has = |fault: &Fault| shared.faults.contains(&(disk, *fault));
        [Fault::Dead, Fault::Silent, Fault::RefusesWrites].into_iter().find(has)
    }

    async fn unless_stopped(&self) {
        let is_stopped = self.shared.lock().unwrap().stopped.contains(&self.id);
        if is_stopped {
            std::future::pending::<()>().await;
        }
    }

    fn root(&self, op: RootOp) -> RootOutcome {
        let mut shared = self.shared.lock().unwrap();
        match op {
            RootOp::OpenSession { .. } => {
                shared.sessions += 1;
                RootOutcome::Session(SessionId(shared.sessions))
            }
            RootOp::EndSession { session } => {
                shared.ended.insert(session);
                RootOutcome::Applied(Applied::Done)
            }
            RootOp::CreateBucket { name, bucket, owner, created_ms } => {
                if let Some(known) = &shared.bucket {
                    return RootOutcome::Refused(RootRefusal::BucketExists(Box::new(
                        known.clone(),
                    )));
                }
                let row = BucketRow {
                    bucket,
                    epoch: Epoch(1),
                    state: BucketState::Open,
                    versioning: Versioning::Off,
                };
                let made = Bucket { name, owner, created_ms, row };
                shared.bucket = Some(made.clone());
                RootOutcome::Bucket(made)
            }
            RootOp::DeleteBucketBegin { .. } | RootOp::DeleteBucketRollBack { .. } => {
                let fenced = matches!(op, RootOp::DeleteBucketBegin { .. });
                let bucket = shared.bucket.as_mut().unwrap();
                bucket.row.epoch = bucket.row.epoch.next();
                bucket.row.state = if fenced { BucketState::Fenced } else { BucketState::Open };
                RootOutcome::Bucket(bucket.clone())
            }
            RootOp::DeleteBucketDone { .. } => {
                shared.bucket = None;
                RootOutcome::Applied(Applied::Done)
            }
            _ => RootOutcome::Applied(Applied::Done),
        }
    }

    /// Exactly once: a resend is answered what the first send came to.
    fn apply(&self, command: &Command) -> Outcome {
        let mut shared = self.shared.lock().unwrap();
        let outcome = match &command.op {
            RangeOp::Put(put) => Outcome::Applied(Applied::Written {
                generation: Generation(1),
                etag: put.etag,
                modified_ms: put.modified_ms,
                checksums: vec![],
            }),
            RangeOp::FenceBucket { .. } if !shared.keys.is_empty() => {
                Outcome::Refused(Refusal::BucketNotEmpty)
            }
            RangeOp::FenceBucket { .. } => {
                Outcome::Applied(Applied::Fenced(Interval { start: KeyPoint::least(), end: None }))
            }
            _ => Outcome::Applied(Applied::Done),
        };
        let Some(caller) = command.caller else {
            return outcome;
        };
        shared.applied.entry((caller.session, caller.seq)).or_insert(outcome).clone()
    }
}
