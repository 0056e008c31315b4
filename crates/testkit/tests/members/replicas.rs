//! Replicas of ranges move by themselves while they are used (C1-C4, L1): from a node that is lost, to nodes that are new,
//! away from one that is drained. No request fails, nothing is lost, also where all nodes lose power in the middle of it.

use crate::common::{BUCKET, audit_finds_nothing, client_of, member, small_objects};
use ashlar::replica_change::ChangeReplicas;
use ashlar_host::CutStyle;
use ashlar_testkit::{NewNode, TestCluster, TestNode};
use ashlar_types::{NodeId, RangeReplicas, Role};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);

async fn replicas(cluster: &TestCluster) -> Vec<RangeReplicas> {
    member(cluster).replicas().await.unwrap().ranges
}

/// Waits until nothing moves, all ranges are held so, and what a node that has power does not hold is not there either.
async fn settled(cluster: &TestCluster, holds: impl Fn(&[NodeId]) -> bool) {
    let is_as = |one: &RangeReplicas, node: &TestNode| {
        let running = node.running().map(|running| (running.node(), running.meta()));
        let Some((id, Some(meta))) = running else { return true };
        let here = meta.status().into_iter().find(|status| status.range == one.range.id);
        match one.names(id) {
            true => here.is_some_and(|here| here.voters == one.range.voters),
            false => here.is_none(),
        }
    };
    let settling = async {
        loop {
            let all = replicas(cluster).await;
            let rests = |one: &RangeReplicas| {
                one.moving.is_none()
                    && holds(&one.range.voters)
                    && cluster.nodes().iter().all(|node| is_as(one, node))
            };
            if all.iter().all(rests) {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    if tokio::time::timeout(PATIENCE, settling).await.is_err() {
        let held = |node: &TestNode| {
            let (id, meta) = (node.running()?.node(), node.running()?.meta()?);
            let status = meta.status().into_iter();
            let here = status.map(|here| (here.range, here.voters, here.leader));
            Some((id, here.collect::<Vec<_>>(), meta.damaged()))
        };
        let held: Vec<_> = cluster.nodes().iter().filter_map(held).collect();
        let moving: Vec<_> = replicas(cluster).await.into_iter().map(|one| one.moving).collect();
        panic!("it does not come to rest: {moving:?} {held:#?}");
    }
}

fn id(cluster: &TestCluster, index: usize) -> NodeId {
    cluster.nodes()[index].running().unwrap().node()
}

async fn add(cluster: &mut TestCluster, name: &str, zone: &str, roles: &[Role]) -> usize {
    let (name, zone, roles) = (name.to_owned(), zone.to_owned(), roles.to_vec());
    cluster.add_node(&NewNode { name, zone, disks: 1, roles }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_voter_is_replaced_under_load_and_gets_its_share_when_it_is_back() {
    let mut cluster =
        TestCluster::demo_with(|config| config.meta.node_lost_after_seconds = 4).await.unwrap();
    let spare = add(&mut cluster, "spare", "zone-1", &[Role::Meta, Role::Data]).await;
    client_of(&cluster).create_bucket(BUCKET).await.unwrap();
    let (lost, other) = (0, 2);
    let (lost_id, spare_id) = (id(&cluster, lost), id(&cluster, spare));
    let load = small_objects(&cluster, "used");
    cluster.power_off_one(lost, CutStyle::DropAll).await.unwrap();
    settled(&cluster, |voters| !voters.contains(&lost_id) && voters.len() == 3).await;
    // half of the majority is the spare node now, which also the gateways have to find
    cluster.power_off_one(other, CutStyle::DropAll).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.start_all().await.unwrap();
    let mut ledger = load.end().await;
    // what it had is held by others: it has left it, and gets its share anew
    settled(&cluster, |voters| voters.len() == 3).await;
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());

    // what it holds goes to the others, with all nodes without power in the middle of it
    let load = small_objects(&cluster, "drained");
    let drain = ChangeReplicas::Drain { node: spare_id, drain: true };
    member(&cluster).change_replicas(&drain).await.unwrap();
    let begun = async {
        while !replicas(&cluster).await.iter().any(|one| one.moving.is_some()) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(PATIENCE, begun).await.unwrap();
    ledger.join(load.end().await);
    cluster.cut_all(CutStyle::DropAll).await.unwrap();
    settled(&cluster, |voters| !voters.contains(&spare_id) && voters.len() == 3).await;
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());
    audit_finds_nothing(&cluster).await;
    let why = member(&cluster).change_replicas(&ChangeReplicas::RemoveNode(spare_id)).await;
    let why = format!("{:#}", why.unwrap_err());
    assert!(why.contains("still has the disk"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_began_with_one_node_outlives_that_node() {
    let mut cluster = TestCluster::single(3).await.unwrap();
    client_of(&cluster).create_bucket(BUCKET).await.unwrap();
    let founder = id(&cluster, 0);
    let load = small_objects(&cluster, "alone");
    let all = [Role::Meta, Role::Data, Role::Gateway];
    add(&mut cluster, "second", "zone-2", &all).await;
    assert!(replicas(&cluster).await.iter().all(|one| one.range.voters == [founder]));
    add(&mut cluster, "third", "zone-3", &all).await;
    settled(&cluster, |voters| voters.len() == 3).await;
    let ledger = load.end().await;
    cluster.cut_all(CutStyle::DropAll).await.unwrap();
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());
    cluster.power_off_one(0, CutStyle::DropAll).await.unwrap();
    // its shards are not the question here: buckets are all metadata
    client_of(&cluster).create_bucket("without-the-first").await.unwrap();
    cluster.start_all().await.unwrap();
    settled(&cluster, |voters| voters.len() == 3).await;
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());
}
