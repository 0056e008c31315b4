//! A data node through its router, as a client sees it.

mod disks;
mod fleet;
mod moves;
mod moves_model;

use crate::{DataConfig, DataNode, GarbageJudge};
use ashlar_host::Host;
use ashlar_types::{
    BucketId, COLLECT_SHARDS_MAX, CellSum, ClusterId, ClusterMap, CollectOutcome, CollectShards,
    DiskAnswer, DiskId, DiskQuery, Epoch, ExtentId, KeyPoint, NodeId, PgId, PlacementGroup,
    Profile, SessionId, ShardCell, ShardName, ShardsCollected, Slot, decode, encode,
};
use ashlar_wire::proto::data_server::Data;
use ashlar_wire::proto::{CollectRequest, PingRequest};
use ashlar_wire::shard::{
    CRC_HEADER, ERROR_HEADER, LENGTH_HEADER, ShardFacts, ShardPath, ShardRefusal, format_crc,
};
use async_trait::async_trait;
use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt;

fn config(disks: Vec<PathBuf>) -> DataConfig {
    DataConfig {
        node: NodeId(3),
        incarnation: 6,
        cluster: ClusterId(7),
        disks,
        known: BTreeMap::new(),
        small_segment_bytes: 1 << 20,
        large_segment_bytes: 8 << 20,
        reserve_bytes: 1 << 20,
        direct_io: true,
        scrub_cycle: Duration::from_secs(3600),
        move_bytes_per_second: 0,
    }
}

struct Fixture {
    node: Arc<DataNode>,
    disk: DiskId,
    dir: tempfile::TempDir,
}

/// A map that knows no group: no epoch is refused.
fn some_map() -> Arc<ClusterMap> {
    Arc::new(ClusterMap { epoch: Epoch(1), ..ClusterMap::default() })
}

async fn start() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let node = DataNode::start(Host::real(), config(vec![dir.path().to_owned()])).await.unwrap();
    let disk = node.disks()[0].id;
    node.set_map(some_map());
    Fixture { node, disk, dir }
}

fn bytes(length: usize) -> Bytes {
    (0..length).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

fn facts(length: usize) -> ShardFacts {
    ShardFacts {
        pg: PgId(1),
        pg_epoch: Epoch(5),
        profile: Profile::RS_4_2,
        bucket: BucketId(42),
        length: length as u64,
    }
}

fn group_at(epoch: Epoch) -> PlacementGroup {
    PlacementGroup {
        id: PgId(1),
        profile: Profile::RS_4_2,
        epoch,
        homes: Vec::new(),
        moving: None,
        open: true,
    }
}

impl Fixture {
    fn path(&self, counter: u64) -> ShardPath {
        let extent = ExtentId { session: SessionId(5), counter };
        ShardPath { disk: self.disk, extent, slot: Slot(2) }
    }

    async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.node.router().oneshot(request).await.unwrap()
    }

    async fn put(&self, counter: u64, content: Bytes) -> Response<Body> {
        let uri = format!("{}?{}", self.path(counter), facts(content.len()));
        let request = Request::put(uri)
            .header("content-length", content.len())
            .header(CRC_HEADER, format_crc(crc32c::crc32c(&content)));
        self.send(request.body(Body::from(content)).unwrap()).await
    }

    /// A body in chunks, with `crc` in its trailer, that was announced to be `shorter` bytes longer.
    async fn put_in_chunks(
        &self,
        counter: u64,
        content: &Bytes,
        shorter: usize,
        crc: u32,
    ) -> Response<Body> {
        let mut trailer = HeaderMap::new();
        trailer.insert(CRC_HEADER, HeaderValue::try_from(format_crc(crc)).unwrap());
        let frames = [
            Ok::<_, std::io::Error>(http_body::Frame::data(content.clone())),
            Ok(http_body::Frame::trailers(trailer)),
        ];
        let body = Body::new(StreamBody::new(stream::iter(frames)));
        let uri = format!("{}?{}", self.path(counter), facts(content.len() + shorter));
        self.send(Request::put(uri).body(body).unwrap()).await
    }

    async fn get(&self, counter: u64, range: Option<&str>) -> (StatusCode, HeaderMap, Bytes) {
        let mut request = Request::get(self.path(counter).to_string());
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let response = self.send(request.body(Body::empty()).unwrap()).await;
        let (head, body) = response.into_parts();
        (head.status, head.headers, body.collect().await.unwrap().to_bytes())
    }
}

fn refusal<B>(response: &Response<B>) -> Option<ShardRefusal> {
    let refusal = response.headers().get(ERROR_HEADER)?.to_str().unwrap().parse().unwrap();
    assert_eq!(ShardRefusal::status(refusal), response.status());
    Some(refusal)
}

#[tokio::test]
async fn shards_are_put_and_read_in_ranges() {
    let fixture = start().await;
    for (counter, length) in [(1, 10), (2, 65_536), (3, 1_000_000)] {
        let content = bytes(length);
        let put = fixture.put(counter, content.clone()).await;
        assert_eq!((put.status(), refusal(&put)), (StatusCode::OK, None));
        assert_eq!(put.headers()[CRC_HEADER], format_crc(crc32c::crc32c(&content)));
        let (status, headers, all) = fixture.get(counter, None).await;
        assert_eq!((status, &all), (StatusCode::OK, &content));
        assert_eq!(headers[LENGTH_HEADER], length.to_string());
        assert_eq!(headers["content-length"], length.to_string());
        let (status, headers, part) = fixture.get(counter, Some("bytes=3-600000")).await;
        let end = length.min(600_001);
        assert_eq!((status, part), (StatusCode::PARTIAL_CONTENT, content.slice(3..end)));
        assert_eq!(headers["content-range"], format!("bytes 3-{}/{length}", end - 1));
        let (status, _, _) = fixture.get(counter, Some("bytes=1000000-")).await;
        assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE);
    }
}

/// A range that has these extents in its gc queue; `None`: it cannot be asked.
struct Queue(Option<Vec<ExtentId>>);

#[async_trait]
impl GarbageJudge for Queue {
    async fn are_collectable(
        &self,
        _: &KeyPoint,
        extents: Vec<ExtentId>,
    ) -> Result<Vec<bool>, String> {
        let queue = self.0.as_ref().ok_or("nobody leads the range")?;
        Ok(extents.iter().map(|extent| queue.contains(extent)).collect())
    }
}

#[tokio::test]
async fn d2_only_what_the_range_has_in_its_queue_is_deleted() {
    let fixture = start().await;
    for (counter, length) in [(1, 10), (2, 10), (3, 1_000_000), (4, 1_000_000)] {
        fixture.put(counter, bytes(length)).await;
    }
    let extent = |counter| fixture.path(counter).extent;
    let name = |counter| ShardName { disk: fixture.disk, extent: extent(counter), slot: Slot(2) };
    let collect = |queue: Option<Vec<u64>>, shards: Vec<ShardName>| {
        let queue = Queue(queue.map(|queue| queue.into_iter().map(extent).collect()));
        let service = crate::DataService::new(fixture.node.clone(), Arc::new(queue));
        let request = CollectShards { at: KeyPoint::new(BucketId(42), []), shards };
        async move {
            let body = encode(&request).into();
            let reply = service.collect(tonic::Request::new(CollectRequest { body })).await?;
            let collected: ShardsCollected = decode(&reply.into_inner().body).unwrap();
            Ok::<_, tonic::Status>(collected.outcomes)
        }
    };
    let refused = collect(None, vec![name(1)]).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    let refused = collect(Some(vec![]), vec![name(1); COLLECT_SHARDS_MAX + 1]).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);

    let elsewhere = ShardName { disk: DiskId(1), ..name(1) };
    let shards = vec![name(1), name(2), name(3), name(4), name(9), elsewhere];
    let ends = collect(Some(vec![1, 3, 9]), shards).await.unwrap();
    let (gone, kept) = (CollectOutcome::Gone, CollectOutcome::NotCollectable);
    assert_eq!(ends, [gone, kept, gone, kept, gone, CollectOutcome::UnknownDisk]);
    for (counter, status) in [
        (1, StatusCode::NOT_FOUND),
        (2, StatusCode::OK),
        (3, StatusCode::NOT_FOUND),
        (4, StatusCode::OK),
    ] {
        assert_eq!(fixture.get(counter, None).await.0, status, "{counter}");
    }
    assert_eq!(collect(Some(vec![1]), vec![name(1)]).await.unwrap(), [gone], "asked again");
    fixture.node.stop().await;
    assert_eq!(collect(Some(vec![2]), vec![name(2)]).await.unwrap(), [CollectOutcome::Failed]);
}

#[tokio::test]
async fn a_body_that_is_not_what_it_says_is_not_stored() {
    let fixture = start().await;
    for length in [1_000, 100_000] {
        let content = bytes(length);
        let uri = format!("{}?{}", fixture.path(1), facts(length));
        let send = |crc: Option<u32>, body: Bytes| {
            let mut request = Request::put(uri.clone());
            if let Some(crc) = crc {
                request = request.header(CRC_HEADER, format_crc(crc));
            }
            fixture.send(request.body(Body::from(body)).unwrap())
        };
        let crc = crc32c::crc32c(&content);
        let wrong = send(Some(crc ^ 1), content.clone()).await;
        assert_eq!(refusal(&wrong), Some(ShardRefusal::BadBody));
        let short = send(Some(crc32c::crc32c(&content[1..])), content.slice(1..)).await;
        assert_eq!(refusal(&short), Some(ShardRefusal::BadBody));
        let long = send(None, bytes(length + 1)).await;
        assert_eq!(refusal(&long), Some(ShardRefusal::BadBody));
        assert_eq!(fixture.get(1, None).await.0, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn a_checksum_in_the_trailer_is_judged_and_may_end_a_body_early() {
    let fixture = start().await;
    for (counter, length) in [(1, 1_000), (2, 200_000)] {
        let content = bytes(length);
        let wrong = fixture.put_in_chunks(counter, &content, 5_000, 7).await;
        assert_eq!(refusal(&wrong), Some(ShardRefusal::BadBody));
        let crc = crc32c::crc32c(&content);
        let put = fixture.put_in_chunks(counter, &content, 5_000, crc).await;
        assert_eq!(put.status(), StatusCode::OK);
        assert_eq!(fixture.get(counter, None).await.2, content);
    }
}

#[tokio::test]
async fn a_shard_that_ended_early_has_its_true_length_after_a_restart_too() {
    let mut fixture = start().await;
    // less than a large shard has, where one was announced: it stays of the class that it was announced for
    for (counter, length, announced) in
        [(1, 500, 60_000), (2, 1_000, 900_000), (3, 524_288, 4 << 20)]
    {
        let content = bytes(length);
        let crc = crc32c::crc32c(&content);
        let put = fixture.put_in_chunks(counter, &content, announced - length, crc).await;
        assert_eq!(put.status(), StatusCode::OK);
        assert_eq!(put.headers()[CRC_HEADER], format_crc(crc));
    }
    for is_restarted in [false, true] {
        if is_restarted {
            fixture.node.stop().await;
            let disks = vec![fixture.dir.path().to_owned()];
            fixture.node = DataNode::start(Host::real(), config(disks)).await.unwrap();
            fixture.node.set_map(some_map());
        }
        for (counter, length) in [(1, 500), (2, 1_000), (3, 524_288)] {
            let (status, headers, all) = fixture.get(counter, None).await;
            assert_eq!((status, &all), (StatusCode::OK, &bytes(length)));
            assert_eq!(headers[LENGTH_HEADER], length.to_string());
            let last = format!("bytes={}-{}", length - 1, length + 5);
            assert_eq!(fixture.get(counter, Some(&last)).await.2.len(), 1);
            let behind = fixture.get(counter, Some(&format!("bytes={length}-"))).await;
            assert_eq!(behind.0, StatusCode::RANGE_NOT_SATISFIABLE);
            // repair will send it as long as it is: the same shard again
            let again = fixture.put(counter, bytes(length)).await;
            assert_eq!(refusal(&again), None);
        }
    }
}

#[tokio::test]
async fn refusals_have_their_word() {
    let fixture = start().await;
    fixture.put(1, bytes(10)).await;
    let other = fixture.put(1, bytes(11)).await;
    assert_eq!(refusal(&other), Some(ShardRefusal::Conflict));

    let unknown = ShardPath { disk: DiskId(1), ..fixture.path(1) };
    let request = Request::get(unknown.to_string()).body(Body::empty()).unwrap();
    assert_eq!(refusal(&fixture.send(request).await), Some(ShardRefusal::UnknownDisk));

    let request = Request::put(fixture.path(9).to_string()).body(Body::empty()).unwrap();
    assert_eq!(refusal(&fixture.send(request).await), Some(ShardRefusal::Malformed));

    let mut map = ClusterMap { epoch: Epoch(9), ..ClusterMap::default() };
    map.groups.insert(PgId(1), group_at(Epoch(6)));
    fixture.node.set_map(Arc::new(map));
    fixture.node.set_map(Arc::new(ClusterMap::default()));
    let stale = fixture.put(2, bytes(10)).await;
    assert_eq!(refusal(&stale), Some(ShardRefusal::StaleEpoch));

    fixture.node.stop().await;
    let facts = ShardFacts { pg: PgId(2), ..facts(10) };
    let request = Request::put(format!("{}?{facts}", fixture.path(3)));
    let closed = fixture.send(request.body(Body::from(bytes(10))).unwrap()).await;
    assert_eq!(refusal(&closed), Some(ShardRefusal::NotWritable));
}

#[tokio::test]
async fn a_ping_says_how_the_disks_are() {
    let fixture = start().await;
    fixture.put(1, bytes(10)).await;
    let service = crate::DataService::new(fixture.node.clone(), Arc::new(Queue(None)));
    let reply =
        service.ping(tonic::Request::new(PingRequest::default())).await.unwrap().into_inner();
    assert_eq!((reply.node, reply.incarnation, reply.disks.len()), (3, 6, 1));
    assert!(reply.disks[0].writable && reply.disks[0].free_bytes > 0);
    assert_eq!(reply.disks[0].shards, 1);
    assert_eq!(reply.disks[0].disk, fixture.disk.0.to_be_bytes()[..]);
}

#[tokio::test]
async fn an_audit_is_told_what_a_disk_holds_and_what_it_surely_does_not() {
    let fixture = start().await;
    for counter in [1, 2, 40] {
        assert_eq!(fixture.put(counter, bytes(10)).await.status(), StatusCode::OK);
    }
    let (disk, pg, slot) = (fixture.disk, PgId(1), Slot(2));
    let extent = |counter| ExtentId { session: SessionId(5), counter };
    let sum = |counters: &[u64]| {
        let mut sum = CellSum::default();
        counters.iter().for_each(|&counter| sum.add(extent(counter)));
        sum
    };
    let cell = |counter| ShardCell::of(pg, slot, extent(counter), 4);
    assert_eq!(
        fixture.node.inventory(&DiskQuery::Cells { disk, shift: 4 }),
        DiskAnswer::Cells(vec![(cell(1), sum(&[1, 2])), (cell(40), sum(&[40]))])
    );
    let asked = DiskQuery::Shards { disk, shift: 4, cells: vec![cell(15), cell(60)] };
    let DiskAnswer::Shards(shards) = fixture.node.inventory(&asked) else { panic!() };
    let found: Vec<_> = shards.iter().map(|shard| (shard.extent, shard.bucket)).collect();
    assert_eq!(found, [(extent(1), BucketId(42)), (extent(2), BucketId(42))]);

    let holds = |pg_epoch| {
        let shards = vec![(extent(2), slot), (extent(3), slot), (extent(2), Slot(0))];
        fixture.node.inventory(&DiskQuery::Holds { disk, pg, pg_epoch, shards })
    };
    assert_eq!(holds(Epoch(6)), DiskAnswer::OtherEpoch, "it knows no map yet");
    let mut map = ClusterMap { epoch: Epoch(9), ..ClusterMap::default() };
    map.groups.insert(pg, group_at(Epoch(6)));
    fixture.node.set_map(Arc::new(map));
    assert_eq!(holds(Epoch(6)), DiskAnswer::Holds(vec![true, false, false]));
    assert_eq!(holds(Epoch(7)), DiskAnswer::OtherEpoch, "nothing is certain across a move");
    let other = DiskQuery::Cells { disk: DiskId(1), shift: 4 };
    assert_eq!(fixture.node.inventory(&other), DiskAnswer::UnknownDisk);
}
