//! A day on which everything happens to the metadata plane at once, under writes (C1-C4, R1-R8, L1): ranges split, their
//! leaders are killed, voters come, go and are lost, and in the middle of it all power fails. No request fails while a quorum
//! lives, nothing acknowledged is lost, and in the end all replicas have the same state, row by row.

use crate::common::{BUCKET, Ledger, Load, audit_finds_nothing, client_of, member, small_objects};
use ashlar::operator::SplitRange;
use ashlar::replica_change::ChangeReplicas;
use ashlar_host::CutStyle;
use ashlar_load::{Client, Content};
use ashlar_testkit::{NewNode, TestCluster, TestNode};
use ashlar_types::{Agreement, BucketName, NodeId, RangeId, RangeReplicas, Role};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const SPLITS: usize = 20;
const KILLS: usize = 10;
/// The root, and what a cluster is founded with.
const FOUNDED: usize = 9;

async fn replicas(cluster: &TestCluster) -> Vec<RangeReplicas> {
    member(cluster).replicas().await.unwrap().ranges
}

/// Waits until nothing moves, and all ranges are held so.
async fn settled(cluster: &TestCluster, holds: impl Fn(&[NodeId]) -> bool) {
    let settling = async {
        loop {
            let all = replicas(cluster).await;
            if all.iter().all(|one| one.moving.is_none() && holds(&one.range.voters)) {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    if tokio::time::timeout(PATIENCE, settling).await.is_err() {
        panic!("it does not come to rest: {:#?}", replicas(cluster).await);
    }
}

/// Splits before a key, as soon as its range has done with its last split; waits until the directory has it.
async fn split(cluster: &TestCluster, key: &str) -> RangeId {
    let split =
        SplitRange::Before { bucket: BucketName::parse(BUCKET).unwrap(), key: key.to_owned() };
    let splitting = async {
        let child = loop {
            match member(cluster).split_range(&split).await {
                Ok(child) => break child,
                // a leader is just being elected, or the range has not done with its last split
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        };
        while !replicas(cluster).await.iter().any(|one| one.range.id == child) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        child
    };
    tokio::time::timeout(PATIENCE, splitting).await.unwrap()
}

/// Who leads a range: the index of the node.
async fn leader_of(cluster: &TestCluster, range: RangeId) -> usize {
    let leads = |node: &TestNode| {
        let running = node.running()?;
        let here = running.meta()?.status().into_iter().find(|here| here.range == range)?;
        (here.leader == Some(running.node())).then_some(())
    };
    let looking = async {
        loop {
            if let Some(index) = cluster.nodes().iter().position(|node| leads(node).is_some()) {
                return index;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap()
}

fn id(cluster: &TestCluster, index: usize) -> NodeId {
    cluster.nodes()[index].running().unwrap().node()
}

async fn add(cluster: &mut TestCluster, name: &str, zone: &str) -> usize {
    let (name, zone, roles) = (name.to_owned(), zone.to_owned(), vec![Role::Meta]);
    cluster.add_node(&NewNode { name, zone, disks: 1, roles }).await.unwrap()
}

async fn drain(cluster: &TestCluster, node: NodeId, drain: bool) {
    member(cluster).change_replicas(&ChangeReplicas::Drain { node, drain }).await.unwrap();
}

/// One write after the other, each of which must succeed; remembers the longest.
async fn write_on(client: Client, longest_ms: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> Ledger {
    let mut ledger = Ledger::default();
    for number in 0..usize::MAX {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("{:02}/gap/{number:06}", number * 37 % 100);
        let began = Instant::now();
        ledger.put(&client, number % 2, &key, Content::of_key(&key, 0, 100)).await;
        let took = u64::try_from(began.elapsed().as_millis()).unwrap();
        longest_ms.fetch_max(took, Ordering::Relaxed);
    }
    ledger
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_of_splits_kills_moves_and_a_power_cut_loses_nothing_and_all_replicas_agree() {
    let mut cluster =
        TestCluster::demo_with(|config| config.meta.node_lost_after_seconds = 8).await.unwrap();
    client_of(&cluster).create_bucket(BUCKET).await.unwrap();
    let load = small_objects(&cluster, "splits");
    let longest_ms = Arc::<AtomicU64>::default();
    let gap = longest_ms.clone();
    let writer = Load::start(1, |_, stop| write_on(client_of(&cluster), gap.clone(), stop));
    for number in 0..SPLITS {
        let child = split(&cluster, &format!("{:02}/", (number + 1) * 37 % 100)).await;
        if number % (SPLITS / KILLS) == 1 {
            let leader = leader_of(&cluster, child).await;
            cluster.power_off_one(leader, CutStyle::DropAll).await.unwrap();
            cluster.start_all().await.unwrap();
        }
    }
    println!(
        "{SPLITS} splits, {KILLS} kills: longest write {} ms",
        longest_ms.swap(0, Ordering::Relaxed)
    );

    let first: Vec<NodeId> = replicas(&cluster).await[0].range.voters.clone();
    add(&mut cluster, "fourth", "zone-1").await;
    let fifth = add(&mut cluster, "fifth", "zone-2").await;
    let fifth_id = id(&cluster, fifth);
    drain(&cluster, first[0], true).await;
    drain(&cluster, first[1], true).await;
    settled(&cluster, |voters| !voters.contains(&first[0]) && !voters.contains(&first[1])).await;
    println!("two come, two go: longest write {} ms", longest_ms.swap(0, Ordering::Relaxed));
    // one of them comes back in the place of one that is lost
    drain(&cluster, first[0], false).await;
    cluster.power_off_one(fifth, CutStyle::DropAll).await.unwrap();
    settled(&cluster, |voters| !voters.contains(&fifth_id) && voters.len() == 3).await;
    println!("one is replaced: longest write {} ms", longest_ms.load(Ordering::Relaxed));
    let mut ledger = load.end().await;
    ledger.join(writer.end().await);

    // all power fails while the lost one comes back, and others are emptied
    cluster.start_all().await.unwrap();
    let load = small_objects(&cluster, "moves");
    drain(&cluster, first[1], false).await;
    drain(&cluster, first[2], true).await;
    let begun = async {
        while !replicas(&cluster).await.iter().any(|one| one.moving.is_some()) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(PATIENCE, begun).await.unwrap();
    ledger.join(load.end().await);
    cluster.cut_all(CutStyle::DropAll).await.unwrap();
    settled(&cluster, |voters| !voters.contains(&first[2]) && voters.len() == 3).await;
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());
    audit_finds_nothing(&cluster).await;
    let all = replicas(&cluster).await;
    assert_eq!(all.len(), FOUNDED + SPLITS);
    for range in all.into_iter().map(|one| one.range.id) {
        let report = member(&cluster).verify_range(range).await.unwrap();
        assert!(report.is_right(), "{report:#?}");
        let agreement = |(_, said): &(NodeId, Result<_, String>)| {
            said.as_ref().map(|said: &ashlar_types::ReplicaReport| said.agreement).ok()
        };
        let found: Vec<_> = report.replicas.iter().map(agreement).collect();
        assert_eq!(found, [Some(Agreement::All); 3], "{range}");
    }
}
