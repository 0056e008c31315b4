//! What was written as copies, because too few wide homes lived, gets the wide code when they are back: nothing that a
//! client sees changes, the room of the copies comes back, and what the wide code survives is survived (C1, D4).

#![expect(clippy::unwrap_used, reason = "helpers of tests: where they fail, the test fails")]

mod common;

use ashlar_host::CutStyle;
use ashlar_load::Content;
use ashlar_testkit::{TestCluster, TestNode};
use ashlar_types::{Extent, InventoryEntry, Profile, Role};
use common::{BUCKET, Ledger, client_of};
use std::time::Duration;

/// A walk comes every second (`layout::shrink`); two cores for all.
const RECODED_WITHIN: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(100);

fn running(cluster: &TestCluster) -> &ashlar_client::Client {
    let mut nodes = cluster.nodes().iter().filter_map(TestNode::running);
    nodes.next().unwrap().client()
}

/// All extents that objects and parts name, as the ranges say.
async fn named(cluster: &TestCluster) -> Vec<Extent> {
    let client = running(cluster);
    let mut all = Vec::new();
    for range in client.ranges_now().await.unwrap() {
        let mut after = None;
        loop {
            let page = client.inventory(&range.interval.start, after, 1000).await.unwrap();
            for entry in page.entries {
                if let InventoryEntry::Plain { content, .. }
                | InventoryEntry::Part { content, .. } = entry
                {
                    all.extend(content.extents);
                }
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
    }
    all
}

fn of_profile(extents: &[Extent], profile: Profile) -> usize {
    extents.iter().filter(|extent| extent.profile == profile).count()
}

/// Two nodes, of which neither is a voter nor the only gateway, or at most one is.
fn pair(cluster: &TestCluster) -> [usize; 2] {
    let nodes = cluster.nodes();
    let count = |pair: &[usize; 2], role| pair.iter().filter(|&&at| nodes[at].has(role)).count();
    let mut pairs = (0..nodes.len()).flat_map(|a| (a + 1..nodes.len()).map(move |b| [a, b]));
    pairs.find(|pair| count(pair, Role::Meta) <= 1 && count(pair, Role::Gateway) <= 1).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_of_a_bad_day_get_the_wide_code() {
    let mut cluster = TestCluster::demo().await.unwrap();
    client_of(&cluster).create_bucket(BUCKET).await.unwrap();
    let pair = pair(&cluster);
    for node in pair {
        cluster.power_off_one(node, CutStyle::DropAll).await.unwrap();
    }
    let client = client_of(&cluster);
    let mut ledger = Ledger::default();
    for (key, len) in [("one", 300 << 10), ("two", (3 << 20) + 1), ("small", 40 << 10)] {
        ledger.put(&client, 0, key, Content::of_key(key, 0, len)).await;
    }
    let parts = Content::of_key("parts", 0, 11 << 20);
    ledger.multipart(&client, "parts", parts, &[5 << 20, 10 << 20]).await;
    let extents = named(&cluster).await;
    let copies = of_profile(&extents, Profile::RS_1_2);
    assert!(copies >= 5, "with two of six nodes away no wide group has five homes: {extents:?}");

    cluster.start_all().await.unwrap();
    let recoded = async {
        while of_profile(&named(&cluster).await, Profile::RS_1_2) > 1 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let recoded = tokio::time::timeout(RECODED_WITHIN, recoded).await;
    let extents = named(&cluster).await;
    assert!(recoded.is_ok(), "still copies: {extents:?}");
    let wide: Vec<_> = extents.iter().filter(|extent| extent.profile == Profile::RS_4_2).collect();
    assert!(wide.iter().all(|extent| extent.missing.is_empty()), "{wide:?}");
    assert_eq!(wide.len(), extents.len() - 1, "what is small stays copies");
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());

    for node in pair {
        cluster.power_off_one(node, CutStyle::DropAll).await.unwrap();
    }
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());
}
