//! What was acknowledged while a node was down gets its missing shards when the node is back (D1, D4, L1): afterwards it
//! survives what it would not have survived before.

#![expect(clippy::unwrap_used, reason = "helpers of tests: where they fail, the test fails")]

mod common;

use ashlar_host::CutStyle;
use ashlar_load::Content;
use ashlar_testkit::{TestCluster, TestNode};
use ashlar_types::{MissingExtent, Role};
use common::{BUCKET, Ledger, client_of};
use std::time::Duration;

/// A round comes at least every 16 seconds; two cores for all.
const REPAIRED_WITHIN: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(100);

fn running(cluster: &TestCluster) -> &ashlar_client::Client {
    let mut nodes = cluster.nodes().iter().filter_map(TestNode::running);
    nodes.next().unwrap().client()
}

/// All that misses a slot, as the ranges say.
async fn missing(cluster: &TestCluster) -> Vec<MissingExtent> {
    let client = running(cluster);
    let mut all = Vec::new();
    for range in client.ranges_now().await.unwrap() {
        let (entries, more) = client.missing(&range.interval.start, None, 1000).await.unwrap();
        assert!(!more);
        all.extend(entries);
    }
    all
}

/// The node that is neither voter nor gateway, and two others of which at most one is each.
fn roles(cluster: &TestCluster) -> (usize, [usize; 2]) {
    let nodes = cluster.nodes();
    let is = |index: usize, role| nodes[index].has(role);
    let plain = (0..nodes.len()).find(|&n| !is(n, Role::Meta) && !is(n, Role::Gateway)).unwrap();
    let pairs = (0..nodes.len()).flat_map(|a| (a + 1..nodes.len()).map(move |b| [a, b]));
    let at_most_one = |pair: &[usize; 2], role| !(is(pair[0], role) && is(pair[1], role));
    let mut others = pairs.filter(|pair| !pair.contains(&plain));
    let pair =
        others.find(|pair| at_most_one(pair, Role::Meta) && at_most_one(pair, Role::Gateway));
    (plain, pair.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_what_was_acknowledged_short_is_made_whole() {
    let mut cluster = TestCluster::demo().await.unwrap();
    let (down, others) = roles(&cluster);
    client_of(&cluster).create_bucket(BUCKET).await.unwrap();
    cluster.power_off_one(down, CutStyle::DropAll).await.unwrap();
    let mut ledger = Ledger::default();
    let client = client_of(&cluster);
    // one stripe, its tail not full; several extents, the last one short; parts, of which one is overwritten by none
    for (key, len) in [("one", 300 << 10), ("two", (64 << 20) + (3 << 20) + 1)] {
        ledger.put(&client, 0, key, Content::of_key(key, 0, len)).await;
    }
    let parts = Content::of_key("parts", 0, 12 << 20);
    ledger.multipart(&client, "parts", parts, &[5 << 20, 10 << 20]).await;
    let short = missing(&cluster).await;
    assert_eq!(short.len(), 6, "every wide group has a home on the node that is down: {short:?}");

    cluster.start_all().await.unwrap();
    let repaired = async {
        while !missing(&cluster).await.is_empty() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let repaired = tokio::time::timeout(REPAIRED_WITHIN, repaired).await;
    assert!(repaired.is_ok(), "still missing: {:?}", missing(&cluster).await);
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());

    // of six shards two are out of reach now: what has four left has all, what had three would be lost
    for other in others {
        cluster.power_off_one(other, CutStyle::DropAll).await.unwrap();
    }
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());
}
