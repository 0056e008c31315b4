//! What was overwritten or deleted gives its room back (D3), and no sooner than the reads that may need it have ended
//! (C1, C5); what is named stays (D2).

#![expect(clippy::unwrap_used, reason = "helpers of tests: where they fail, the test fails")]

mod common;

use ashlar_client::{Client, ContentName};
use ashlar_load::Content;
use ashlar_testkit::TestCluster;
use ashlar_types::{BucketName, KeyPoint, RangeAnswer, RangeQuery, Role, Span};
use bytes::Bytes;
use common::{BUCKET, Ledger, client_of};
use futures::StreamExt;
use std::time::Duration;

/// How long garbage may lie: a round a second, and two cores for all.
const COLLECTED_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Longer than a round of collecting takes: what is kept for that long is kept by something.
const SEVERAL_ROUNDS: Duration = Duration::from_secs(4);

/// All shards on all disks.
fn shards(cluster: &TestCluster) -> u64 {
    let nodes = cluster.nodes().iter().filter_map(|node| node.running()?.data());
    let count = |store: &ashlar_store::Store| store.usage().shards;
    nodes.map(|data| data.stores().values().map(count).sum::<u64>()).sum()
}

async fn wait_for_shards(cluster: &TestCluster, wanted: u64) {
    let waiting = async {
        while shards(cluster) != wanted {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let waited = tokio::time::timeout(COLLECTED_WITHIN, waiting).await;
    assert!(waited.is_ok(), "{} shards are there, not {wanted}", shards(cluster));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_and_overwritten_objects_give_their_room_back() {
    let cluster = TestCluster::demo().await.unwrap();
    let client = client_of(&cluster);
    client.create_bucket(BUCKET).await.unwrap();
    let mut ledger = Ledger::default();
    // one extent in three shards; one in six; two of six and one of three
    for (key, len) in [("small", 40 << 10), ("wide", 300 << 10), ("long", (128 << 20) + (40 << 10))]
    {
        for fate in ["kept", "overwritten", "deleted"] {
            let key = format!("{key}/{fate}");
            ledger.put(&client, 0, &key, Content::of_key(&key, 0, len)).await;
        }
    }
    let of_one_each = 3 + 6 + 15;
    assert_eq!(shards(&cluster), 3 * of_one_each);
    for key in ["small", "wide", "long"] {
        let overwritten = format!("{key}/overwritten");
        ledger.put(&client, 1, &overwritten, Content::of_key(&overwritten, 1, 100)).await;
        ledger.delete(&client, 1, &format!("{key}/deleted")).await;
    }
    wait_for_shards(&cluster, of_one_each).await;
    assert_eq!(ledger.losses(&client).await, Vec::<String>::new());
}

/// Reads an object as a gateway does.
async fn open(client: &Client, key: &str) -> impl futures::Stream<Item = Bytes> + Unpin + use<> {
    let read = client.open_read();
    let name = BucketName::parse(BUCKET).unwrap();
    let bucket = client.bucket(&name).await.unwrap().unwrap();
    let at = KeyPoint::new(bucket.row.bucket, key.as_bytes());
    let query =
        RangeQuery::Object { at: at.clone(), bucket_epoch: bucket.row.epoch, span: Span::All };
    let answer = client.query(&at, query).await.unwrap();
    let RangeAnswer::Object { record, from, to, pieces } = answer else { panic!("{answer:?}") };
    let content = ContentName { at, object: record.object, version: None };
    client.reader(read, content, pieces, from, to).map(Result::unwrap).boxed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_open_read_needs_is_kept_until_it_ends() {
    let cluster = TestCluster::demo().await.unwrap();
    let client = client_of(&cluster);
    client.create_bucket(BUCKET).await.unwrap();
    let mut ledger = Ledger::default();
    let content = Content::of_key("read", 0, 24 << 20);
    ledger.put(&client, 0, "read", content).await;
    let gateway = cluster.nodes().iter().find(|node| node.has(Role::Gateway)).unwrap();
    let mut stream = open(gateway.running().unwrap().client(), "read").await;
    let first = stream.next().await.unwrap();

    ledger.delete(&client, 0, "read").await;
    tokio::time::sleep(SEVERAL_ROUNDS).await;
    assert_eq!(shards(&cluster), 6, "the read is still open");
    let rest: Vec<Bytes> = stream.collect().await;
    let read: Vec<u8> = std::iter::once(first).chain(rest).flatten().collect();
    assert!(read == content.bytes(), "the read ends as it began");
    wait_for_shards(&cluster, 0).await;
    assert_eq!(ledger.losses(&client).await, Vec::<String>::new());
}
