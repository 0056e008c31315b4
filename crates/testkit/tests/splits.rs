//! Ranges split while they are used (C1-C4, D2, R1-R8): no request fails, nothing is lost, also where all nodes lose
//! power in the middle of it.

#![expect(clippy::unwrap_used, reason = "helpers of tests: where they fail, the test fails")]

mod common;

use ashlar::operator::SplitRange;
use ashlar_host::CutStyle;
use ashlar_load::Content;
use ashlar_testkit::{TestCluster, TestNode};
use ashlar_types::{BucketName, KeyPoint, RangeDescriptor};
use common::{BUCKET, Ledger, audit_finds_nothing, client_of, member, small_objects};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const FOUNDED: usize = 8;

async fn ranges(cluster: &TestCluster) -> Vec<RangeDescriptor> {
    let mut nodes = cluster.nodes().iter().filter_map(TestNode::running);
    nodes.next().unwrap().client().ranges_now().await.unwrap()
}

async fn until_ranges(cluster: &TestCluster, count: usize) {
    let growing = async {
        while ranges(cluster).await.len() < count {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    if tokio::time::timeout(PATIENCE, growing).await.is_err() {
        panic!("{count} ranges are wanted: {:#?}", ranges(cluster).await);
    }
}

/// The ranges follow each other without a gap, and no two share a key.
fn cover_all(ranges: &[RangeDescriptor]) {
    let mut next = Some(KeyPoint::least());
    for range in ranges {
        assert_eq!(Some(&range.interval.start), next.as_ref(), "{ranges:#?}");
        next.clone_from(&range.interval.end);
    }
    assert_eq!(next, None);
}

/// Begins a split as an operator does, as soon as the range has done with its last one.
async fn split_before(cluster: &TestCluster, key: &str) {
    let bucket = BucketName::parse(BUCKET).unwrap();
    let split = SplitRange::Before { bucket, key: key.to_owned() };
    let asking = async {
        while let Err(refused) = member(cluster).split_range(&split).await {
            let why = format!("{refused:#}");
            assert!(why.contains("has not done with its last split yet"), "{why}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_split_while_they_are_used_and_no_request_fails() {
    let mut cluster =
        TestCluster::demo_with(|config| config.meta.range_objects_max = 60).await.unwrap();
    client_of(&cluster).create_bucket(BUCKET).await.unwrap();
    let load = small_objects(&cluster, "before");
    until_ranges(&cluster, FOUNDED + 6).await;
    let mut ledger = load.end().await;
    cover_all(&ranges(&cluster).await);
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());
    audit_finds_nothing(&cluster).await;

    // all at once, with whatever is being split
    split_before(&cluster, "50/asked for").await;
    cluster.power_off(CutStyle::DropAll).await.unwrap();
    let before = FOUNDED + 6;
    cluster.start_all().await.unwrap();
    cover_all(&ranges(&cluster).await);
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());
    until_ranges(&cluster, before + 1).await;

    let load = small_objects(&cluster, "behind");
    until_ranges(&cluster, before + 4).await;
    ledger.join(load.end().await);
    cover_all(&ranges(&cluster).await);
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());
    audit_finds_nothing(&cluster).await;
    println!("{} objects in {} ranges", ledger.acknowledged(), ranges(&cluster).await.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_splits_a_range_and_is_told_why_not() {
    let cluster = TestCluster::demo().await.unwrap();
    let client = client_of(&cluster);
    client.create_bucket(BUCKET).await.unwrap();
    let mut ledger = Ledger::default();
    for letter in ["a", "m", "z"] {
        ledger.put(&client, 0, letter, Content::of_key(letter, 0, 100)).await;
    }
    let bucket = || BucketName::parse(BUCKET).unwrap();
    let before = |key: &str| SplitRange::Before { bucket: bucket(), key: key.to_owned() };
    let member = member(&cluster);
    let child = member.split_range(&before("m")).await.unwrap();
    until_ranges(&cluster, FOUNDED + 1).await;
    let of_child = ranges(&cluster).await.into_iter().find(|range| range.id == child).unwrap();
    assert_eq!(of_child.interval.start.key, b"m");

    let why = |split| {
        let member = &member;
        async move { format!("{:#}", member.split_range(&split).await.unwrap_err()) }
    };
    let there = why(before("m")).await;
    assert!(there.contains("cannot be split there"), "{there}");
    let nowhere = why(before("")).await;
    assert!(nowhere.contains("the key is empty"), "{nowhere}");
    let too_long = why(before(&"k".repeat(1025))).await;
    assert!(too_long.contains("the key has 1025 bytes, 1024 are allowed"), "{too_long}");
    let no_range = why(SplitRange::Middle(ashlar_types::RangeId(77))).await;
    assert!(no_range.contains("there is no range-77"), "{no_range}");
    let other =
        SplitRange::Before { bucket: BucketName::parse("nobodys").unwrap(), key: "k".into() };
    let no_bucket = why(other).await;
    assert!(no_bucket.contains("there is no bucket nobodys"), "{no_bucket}");
    let middle = member.split_range(&SplitRange::Middle(child)).await.unwrap();
    until_ranges(&cluster, FOUNDED + 2).await;
    let of_middle = ranges(&cluster).await.into_iter().find(|range| range.id == middle).unwrap();
    assert_eq!(of_middle.interval.start.key, b"z");
    let empty = why(SplitRange::Middle(middle)).await;
    assert!(empty.contains("fewer than two objects"), "{empty}");
    assert_eq!(ledger.losses(&client).await, Vec::<String>::new());
}
