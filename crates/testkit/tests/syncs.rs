//! What a write costs in syncs, on a quiet cluster: RS(4+2) over six nodes, three voters.
//!
//! | write | log | shards |
//! |---|---|---|
//! | 4 KiB, inline | 1 a voter for its entry; the note of an earlier commit lies in the same batch. Measured: 36 for 12 puts, and 8 a voter where its spare files are zeroed meanwhile | none |
//! | 1 MiB, one extent | the same | 1 a shard, six shards; 1 more for the first large shard of a disk, which begins a segment |
//!
//! R5: two of three voters have synced before the answer. D1: the homes have, before the answer: all six, or the five
//! that a stalled home leaves. What a later change adds to the cost is seen here before it is seen in a benchmark.

#![expect(clippy::unwrap_used, reason = "helpers of tests: where they fail, the test fails")]

mod common;

use ashlar_load::{Client, Content};
use ashlar_testkit::{Syncs, TestCluster};
use ashlar_types::Role;
use common::{BUCKET, Ledger, client_of};
use std::time::Duration;

const PUTS: u64 = 12;
/// Opens sessions, files and connections, which cost syncs once.
const WARM_UP: u64 = 6;
/// The third voter's sync, and the last home's, may come after the answer.
const SETTLE: Duration = Duration::from_millis(300);
/// The puts of a test take less.
const IDLE: Duration = Duration::from_secs(1);
/// A voter makes its spare files ready once a quarter of its first one is used: two of 4 MiB, synced MiB by MiB.
const SPARES_SYNCS: u64 = 8;
const SHARDS: u64 = 6;
const DISKS: u64 = 12;

/// The syncs of each node since then.
fn since(cluster: &TestCluster, before: &[Syncs]) -> Vec<Syncs> {
    cluster.syncs().iter().zip(before).map(|(now, before)| now.since(*before)).collect()
}

/// A cluster that has done its first writes; its syncs in a second in which nothing is asked of it.
async fn quiet_cluster() -> (TestCluster, Client, u64) {
    let cluster = TestCluster::demo().await.unwrap();
    let client = client_of(&cluster);
    client.create_bucket(BUCKET).await.unwrap();
    let mut ledger = Ledger::default();
    for (gateway, number) in (0..).zip(0..WARM_UP) {
        let key = format!("warm/{number}");
        ledger.put(&client, gateway, &key, Content::of_key(&key, 0, 100)).await;
    }
    tokio::time::sleep(SETTLE).await;
    let before = cluster.syncs();
    tokio::time::sleep(IDLE).await;
    let idle = total(&since(&cluster, &before), |node| node.log + node.shards + node.other);
    (cluster, client, idle)
}

/// What was synced by each node for all puts, and what each put had before its answer.
async fn put_all(
    cluster: &TestCluster,
    client: &Client,
    len: u64,
) -> (Vec<Syncs>, Vec<Vec<Syncs>>) {
    let (mut ledger, mut before_answers) = (Ledger::default(), Vec::new());
    let before_all = cluster.syncs();
    for (gateway, number) in (0..).zip(0..PUTS) {
        let (key, before) = (format!("{len}/{number}"), cluster.syncs());
        ledger.put(client, gateway, &key, Content::of_key(&key, 0, len)).await;
        before_answers.push(since(cluster, &before));
        // so that the next one counts nothing of this one
        tokio::time::sleep(SETTLE / 10).await;
    }
    tokio::time::sleep(SETTLE).await;
    (since(cluster, &before_all), before_answers)
}

fn total(nodes: &[Syncs], of: impl Fn(&Syncs) -> u64) -> u64 {
    nodes.iter().map(of).sum()
}

/// The log's part is the same for every write.
fn check_log(cluster: &TestCluster, all: &[Syncs], before_answers: &[Vec<Syncs>], idle: u64) {
    for (number, put) in before_answers.iter().enumerate() {
        let voters = put.iter().filter(|node| node.log > 0).count();
        assert!(
            voters >= 2,
            "put {number} was answered after the sync of {voters} voters: {put:?}"
        );
    }
    for (node, syncs) in cluster.nodes().iter().zip(all) {
        assert!(node.has(Role::Meta) || syncs.log == 0, "{node:?} is no voter: {syncs:?}");
    }
    for syncs in all.iter().filter(|syncs| syncs.log > 0) {
        // one sync an entry and voter, beside the making of spare files, where it falls into these puts
        let more = syncs.log.saturating_sub(PUTS);
        let is_zeroing = (SPARES_SYNCS..=SPARES_SYNCS + idle).contains(&more);
        assert!(more <= idle || is_zeroing, "{more} syncs more than {PUTS} puts: {all:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inline_put_syncs_the_logs_of_the_voters_and_no_shard() {
    let (cluster, client, idle) = quiet_cluster().await;
    let (all, before_answers) = put_all(&cluster, &client, 4 << 10).await;
    println!("4 KiB: {} of logs for {PUTS} puts; idle {idle}", total(&all, |node| node.log));
    check_log(&cluster, &all, &before_answers, idle);
    assert_eq!(total(&all, |node| node.shards), 0, "it lies in the log alone: {all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extent_syncs_each_of_its_shards_once() {
    let (cluster, client, idle) = quiet_cluster().await;
    let (all, before_answers) = put_all(&cluster, &client, 1 << 20).await;
    let shards = total(&all, |node| node.shards);
    println!(
        "1 MiB: {} of logs, {shards} of shards for {PUTS} puts; idle {idle}",
        total(&all, |node| node.log)
    );
    check_log(&cluster, &all, &before_answers, idle);
    for (number, put) in before_answers.iter().enumerate() {
        let homes = put.iter().filter(|node| node.shards > 0).count();
        assert!(homes >= 5, "put {number} was answered after the sync of {homes} homes: {put:?}");
    }
    let most = SHARDS * PUTS + DISKS + idle;
    assert!(shards <= most, "{shards} syncs of shards for {PUTS} puts: {all:?}");
}
