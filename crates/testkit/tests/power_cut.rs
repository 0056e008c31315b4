//! The power of all nodes fails at once, while they are being written to; nothing that was acknowledged is lost.
//!
//! C1: an acknowledged write is readable byte for byte, with its ETag. C6: what was deleted stays away. C10: an upload
//! appears whole. R5: committed means durable on a quorum of voters. D1: acknowledged means that the shards are durable.
//! D9: the index that a store rebuilds has all that was acknowledged. And the table of faults: all nodes serve again
//! within 10 s of an all-node cut.
//!
//! The last tests prove that these could fail: disks whose syncs are lies must make the same comparison find losses.

#![expect(clippy::unwrap_used, reason = "helpers of tests: where they fail, the test fails")]

mod common;

use ashlar_host::CutStyle;
use ashlar_load::{Client, Content};
use ashlar_testkit::{Lie, TestCluster};
use common::{BUCKET, Ledger, client_of};
use std::time::Duration;

/// Around each limit: nothing, inline, one small shard each, large shards, several stripes.
const LENGTHS: [u64; 6] = [0, 1, 4 << 10, 40 << 10, 300 << 10, 3 << 20];
const OBJECTS_A_ROUND: usize = 60;
/// Writers that are caught by the cut.
const WRITERS: usize = 4;
/// Long enough that each of them has had answers.
const LIVE_WRITES: Duration = Duration::from_millis(500);
/// The contract: from the last boot of all to serving.
const SERVING_WITHIN: Duration = Duration::from_secs(10);

/// Objects of all lengths through both gateways, some overwritten, some deleted, one in parts.
async fn write_round(client: &Client, ledger: &mut Ledger, round: u64) {
    for (number, len) in LENGTHS.into_iter().cycle().take(OBJECTS_A_ROUND).enumerate() {
        let key = format!("round-{round}/{number:02}");
        ledger.put(client, number, &key, Content::of_key(&key, round, len)).await;
    }
    for number in 0..LENGTHS.len() {
        // through the other gateway, and of the next length
        let key = format!("round-{round}/{number:02}");
        let content = Content::of_key(&key, round + 100, LENGTHS[(number + 1) % LENGTHS.len()]);
        ledger.put(client, number + 1, &key, content).await;
    }
    for number in 6..6 + 2 * LENGTHS.len() {
        ledger.delete(client, number / 2, &format!("round-{round}/{number:02}")).await;
    }
    let key = format!("round-{round}/parts");
    let content = Content::of_key(&key, round, (5 << 20) + 70_001);
    ledger.multipart(client, &key, content, &[5 << 20]).await;
}

/// The power fails while writers write; gives back what they know.
async fn cut_under_load(cluster: &mut TestCluster, style: CutStyle, round: u64) -> Ledger {
    let client = client_of(cluster);
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let prefix = format!("live-{round}/{writer}");
            let lengths = vec![1000, 40 << 10, 300 << 10];
            tokio::spawn(Ledger::put_until_the_end(client.clone(), prefix, lengths))
        })
        .collect();
    tokio::time::sleep(LIVE_WRITES).await;
    cluster.power_off(style).await.unwrap();
    let mut known = Ledger::default();
    for writer in writers {
        known.join(writer.await.unwrap());
    }
    known
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_the_power_cut_of_all_nodes() {
    let mut cluster = TestCluster::demo().await.unwrap();
    let mut ledger = Ledger::default();
    client_of(&cluster).create_bucket(BUCKET).await.unwrap();
    let styles = [CutStyle::DropAll, CutStyle::Torn { seed: 7 }, CutStyle::KeepAll];
    for (round, style) in (0..).zip(styles) {
        write_round(&client_of(&cluster), &mut ledger, round).await;
        let live = cut_under_load(&mut cluster, style, round).await;
        assert!(live.acknowledged() > WRITERS, "the cut has caught writers that were at work");
        ledger.join(live);
        let serving = cluster.start_all().await.unwrap();
        let losses = ledger.losses(&client_of(&cluster)).await;
        assert!(losses.is_empty(), "after {style:?}: {losses:#?}");
        assert!(serving <= SERVING_WITHIN, "served {serving:?} after {style:?}");
        println!("{style:?}: {} objects, serving after {serving:?}", ledger.acknowledged());
    }
}

/// Writes objects while a lie is on, cuts, and gives back the losses that are found.
async fn losses_with(lie: Lie) -> Vec<String> {
    let mut cluster = TestCluster::demo().await.unwrap();
    let client = client_of(&cluster);
    client.create_bucket(BUCKET).await.unwrap();
    let mut ledger = Ledger::default();
    ledger.put(&client, 0, "before", Content::of_key("before", 0, 300 << 10)).await;
    cluster.lie_about(lie);
    ledger.put(&client, 0, "inline", Content::of_key("inline", 0, 4 << 10)).await;
    ledger.put(&client, 1, "extent", Content::of_key("extent", 0, 300 << 10)).await;
    ledger.delete(&client, 1, "before").await;
    cluster.cut_all(CutStyle::DropAll).await.unwrap();
    ledger.losses(&client_of(&cluster)).await
}

fn names(losses: &[String], key: &str) -> bool {
    losses.iter().any(|loss| loss.starts_with(&format!("{key}: ")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_does_not_sync_is_found() {
    let losses = losses_with(Lie::Log).await;
    for key in ["inline", "extent", "before"] {
        assert!(names(&losses, key), "the loss of '{key}' is found: {losses:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_that_do_not_sync_are_found() {
    let losses = losses_with(Lie::Shards).await;
    assert!(names(&losses, "extent"), "its shards are gone: {losses:#?}");
    assert!(!names(&losses, "inline"), "it lies in the log, which is honest: {losses:#?}");
    assert!(!names(&losses, "before"), "its deletion lies in the log: {losses:#?}");
}
