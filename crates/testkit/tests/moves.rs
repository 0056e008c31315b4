//! Data moves by itself (D2, D4, L1): from a disk that is gone, to a node that is new, from one that is drained; whoever
//! is killed meanwhile, all of it is readable, and in the end every shard is where the map says, and nowhere else.

#![expect(clippy::unwrap_used, reason = "helpers of tests: where they fail, the test fails")]

mod common;

use ashlar::disk_change::{ChangeDisks, DiskStep, DisksChange};
use ashlar_host::CutStyle;
use ashlar_load::{Client as S3, Content};
use ashlar_testkit::{NewNode, TestCluster, TestNode};
use ashlar_types::{
    ClusterMap, DiskId, DiskState, Epoch, ExtentId, PgId, PlacementGroup, Role, RootOp, Slot,
};
use common::{BUCKET, Ledger, Load, client_of, member};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Some hundred slots move, one entry of the root at their beginning and one at their end; two cores for all.
const MOVED_WITHIN: Duration = Duration::from_secs(240);
const LOOK_EVERY: Duration = Duration::from_millis(200);

fn running(cluster: &TestCluster) -> &ashlar_client::Client {
    let mut nodes = cluster.nodes().iter().filter_map(TestNode::running);
    nodes.next().unwrap().client()
}

async fn map_of(cluster: &TestCluster) -> ClusterMap {
    running(cluster).map_now().await.unwrap()
}

/// Waits until the map is as it should be and nothing moves any more.
async fn settled(cluster: &TestCluster, wanted: impl Fn(&ClusterMap) -> bool) -> ClusterMap {
    let settling = async {
        loop {
            let map = map_of(cluster).await;
            if wanted(&map) && !ashlar_placement::are_moves_left(&map) {
                return map;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    match tokio::time::timeout(MOVED_WITHIN, settling).await {
        Ok(map) => map,
        Err(_) => panic!("it does not come to rest: {:?}", moving(&map_of(cluster).await)),
    }
}

fn moving(map: &ClusterMap) -> Vec<(PgId, Slot, DiskId)> {
    let moving =
        |(&id, group): (&PgId, &PlacementGroup)| group.moving.map(|(slot, to)| (id, slot, to));
    map.groups.iter().filter_map(moving).collect()
}

fn is_empty(map: &ClusterMap, disk: DiskId) -> bool {
    !map.groups.values().any(|group| group.names(disk))
}

/// Shards by their group, extent and slot: on which disks they are.
type Found = BTreeMap<(PgId, ExtentId, Slot), BTreeSet<DiskId>>;

fn shards(cluster: &TestCluster) -> Found {
    let mut found = Found::new();
    for data in cluster.nodes().iter().filter_map(TestNode::running).filter_map(|node| node.data())
    {
        for (&disk, store) in &*data.stores() {
            for meta in store.list(None, usize::MAX) {
                let key = (meta.pg, meta.key.extent, meta.key.slot);
                found.entry(key).or_default().insert(disk);
            }
        }
    }
    found
}

/// What is not where it should be, of all extents that have as many shards as make them readable.
fn out_of_place(cluster: &TestCluster, map: &ClusterMap) -> Vec<String> {
    let found = shards(cluster);
    // a suspect disk cannot delete what has left it
    let is_there = |disk: &DiskId| map.disks[disk].state.is_written();
    let extents: BTreeSet<(PgId, ExtentId)> = found.keys().map(|(pg, id, _)| (*pg, *id)).collect();
    let mut wrong = Vec::new();
    for (pg, extent) in extents {
        let group = &map.groups[&pg];
        for (slot, home) in group.profile.slots().zip(&group.homes) {
            let at = found.get(&(pg, extent, slot)).into_iter().flatten().copied();
            let at: BTreeSet<DiskId> = at.filter(is_there).collect();
            if at != BTreeSet::from([*home]) {
                wrong.push(format!("{extent} {slot} of {pg} is on {at:?}, not on {home}"));
            }
        }
    }
    wrong
}

/// Waits until every shard is where the map says and nowhere else: nothing missing, nothing left behind.
async fn all_in_place(cluster: &TestCluster, map: &ClusterMap) {
    let placing = async {
        while !out_of_place(cluster, map).is_empty() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(90), placing).await.is_err() {
        panic!("{:#?}", out_of_place(cluster, map));
    }
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

/// Objects of all kinds: three copies, one stripe, several.
async fn fill(cluster: &TestCluster) -> Ledger {
    let (client, mut ledger) = (client_of(cluster), Ledger::default());
    client.create_bucket(BUCKET).await.unwrap();
    for number in 0..60 {
        let len = [20 << 10, 60 << 10, 300 << 10, (1 << 20) + 17][number % 4];
        let key = format!("filled/{number:03}");
        ledger.put(&client, 0, &key, Content::of_key(&key, 0, len)).await;
    }
    let key = "filled/large";
    ledger.put(&client, 1, key, Content::of_key(key, 0, (5 << 20) + 3)).await;
    ledger
}

/// Writes, deletes and reads until it is told to stop. Every request must succeed.
async fn use_it(client: S3, prefix: String, stop: Arc<AtomicBool>) -> Ledger {
    let mut ledger = Ledger::default();
    for number in 0..usize::MAX {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let gateway = number % 2;
        let key = format!("{prefix}/{number:05}");
        let len = [30 << 10, 200 << 10, 2 << 20][number % 3];
        ledger.put(&client, gateway, &key, Content::of_key(&key, 0, len)).await;
        if number % 5 == 4 {
            let key = format!("{prefix}/{:05}", number - 2);
            ledger.delete(&client, gateway, &key).await;
        }
        if number % 16 == 15 {
            assert_eq!(ledger.losses_of(&client, 4).await, Vec::<String>::new());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ledger
}

fn load(cluster: &TestCluster) -> Load {
    Load::start(2, |number, stop| use_it(client_of(cluster), format!("u{number}"), stop))
}

fn moved_slots(before: &ClusterMap, after: &ClusterMap) -> usize {
    let changed = before.groups.iter().map(|(id, group)| {
        let homes = group.homes.iter().zip(&after.groups[id].homes);
        homes.filter(|(old, new)| old != new).count()
    });
    changed.sum()
}

fn data_bytes(cluster: &TestCluster, disk: DiskId) -> u64 {
    let datas = cluster.nodes().iter().filter_map(TestNode::running).filter_map(|node| node.data());
    let stores = datas.filter_map(|data| data.store(disk));
    let bytes = |store: ashlar_store::Store| -> u64 {
        store.list(None, usize::MAX).iter().map(|meta| meta.length).sum()
    };
    stores.map(bytes).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d4_a_disk_that_is_gone_is_rebuilt_elsewhere() {
    let mut cluster =
        TestCluster::demo_with(|config| config.meta.disk_dead_after_seconds = 8).await.unwrap();
    let ledger = fill(&cluster).await;
    let (node, others) = roles(&cluster);
    let gone =
        *cluster.nodes()[node].running().unwrap().data().unwrap().stores().keys().next().unwrap();
    let dir =
        cluster.nodes()[node].running().unwrap().data().unwrap().stores()[&gone].dir().to_owned();
    let number = cluster.nodes()[node].config().data.disks.iter().position(|d| *d == dir).unwrap();
    cluster.power_off_one(node, CutStyle::DropAll).await.unwrap();
    cluster.wipe_disk(node, number).unwrap();
    cluster.start_all().await.unwrap();

    let map = settled(&cluster, |map| is_empty(map, gone)).await;
    assert_eq!(map.disks[&gone].state, DiskState::Dead);
    all_in_place(&cluster, &map).await;
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());
    // what has all of its six shards survives two more nodes
    for other in others {
        cluster.power_off_one(other, CutStyle::DropAll).await.unwrap();
    }
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_moves_to_a_new_node_while_it_is_used() {
    let mut cluster = TestCluster::demo().await.unwrap();
    let mut ledger = fill(&cluster).await;
    let zone = cluster.nodes()[0].config().zone.clone();
    let before = map_of(&cluster).await;
    let load = load(&cluster);
    let wish = NewNode { name: "new".to_owned(), zone, disks: 2, roles: vec![Role::Data] };
    let new = cluster.add_node(&wish).await.unwrap();
    let disks: Vec<DiskId> =
        cluster.nodes()[new].running().unwrap().data().unwrap().stores().keys().copied().collect();
    let map = settled(&cluster, |map| disks.iter().all(|disk| !is_empty(map, *disk))).await;
    ledger.join(load.end().await);
    let changed = moved_slots(&before, &map);
    let taken = before
        .groups
        .keys()
        .map(|id| map.groups[id].homes.iter().filter(|home| disks.contains(home)).count());
    let taken: usize = taken.sum();
    let held: Vec<u64> = disks.iter().map(|&disk| data_bytes(&cluster, disk)).collect();
    println!(
        "slots that moved: {changed}, of which the new disks took {taken}; they hold {held:?} bytes"
    );
    assert!(taken > 60, "the new node took {taken} slots");
    assert!(changed * 100 <= taken * 105, "{changed} slots moved to give {taken}");
    assert!(held.iter().all(|bytes| *bytes > 0));
    all_in_place(&cluster, &map).await;
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d4_what_a_disk_that_takes_no_writes_has_moves_elsewhere() {
    let mut cluster =
        TestCluster::demo_with(|config| config.meta.disk_suspect_after_seconds = 3).await.unwrap();
    let mut ledger = fill(&cluster).await;
    let (node, _) = roles(&cluster);
    let bad = disks_of(&cluster, node)[0];
    let dir =
        cluster.nodes()[node].running().unwrap().data().unwrap().stores()[&bad].dir().to_owned();
    let load = load(&cluster);
    cluster.nodes()[node].disk().fail_syncs(Some(&dir));
    let map = settled(&cluster, |map| is_empty(map, bad)).await;
    assert_eq!(map.disks[&bad].state, DiskState::Suspect);
    ledger.join(load.end().await);
    all_in_place(&cluster, &map).await;
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());

    // mended, and its node started again: it is used again
    cluster.nodes()[node].disk().fail_syncs(None);
    cluster.power_off_one(node, CutStyle::DropAll).await.unwrap();
    cluster.start_all().await.unwrap();
    let healthy = async {
        while map_of(&cluster).await.disks[&bad].state != DiskState::Healthy {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), healthy).await.unwrap();
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_is_added_to_a_node_is_a_new_disk_at_its_next_start() {
    let mut cluster = TestCluster::demo().await.unwrap();
    let ledger = fill(&cluster).await;
    let before = map_of(&cluster).await;
    let (node, _) = roles(&cluster);
    let old = disks_of(&cluster, node);
    let id = before.disks[&old[0]].node;
    cluster.power_off_one(node, CutStyle::DropAll).await.unwrap();
    cluster.buy_disk(node).unwrap();
    cluster.start_all().await.unwrap();

    let served: Vec<DiskId> = disks_of(&cluster, node);
    let new: Vec<DiskId> = served.iter().copied().filter(|disk| !old.contains(disk)).collect();
    assert_eq!((served.len(), new.len()), (old.len() + 1, 1), "the others are as they were");
    let map = settled(&cluster, |map| !is_empty(map, new[0])).await;
    let disk = &map.disks[&new[0]];
    assert_eq!((disk.node, disk.state, disk.incarnation), (id, DiskState::Healthy, 1));
    assert_eq!(map.disks.len(), before.disks.len() + 1);
    assert_eq!(map.nodes.len(), before.nodes.len(), "it is the same node");
    all_in_place(&cluster, &map).await;
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());

    // it is remembered: the next start finds the same disks
    cluster.power_off_one(node, CutStyle::DropAll).await.unwrap();
    cluster.start_all().await.unwrap();
    assert_eq!(disks_of(&cluster, node), served);
    assert_eq!(map_of(&cluster).await.disks.len(), before.disks.len() + 1);
}

/// A member that an operator asks.
async fn change(cluster: &TestCluster, disks: &[DiskId], step: DiskStep) -> DisksChange {
    let change = ChangeDisks { disks: disks.to_vec(), step, dry_run: false };
    member(cluster).change_disks(&change).await.unwrap()
}

fn disks_of(cluster: &TestCluster, node: usize) -> Vec<DiskId> {
    cluster.nodes()[node].running().unwrap().data().unwrap().stores().keys().copied().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_break_a_promise_is_not_drained() {
    let cluster = TestCluster::demo().await.unwrap();
    let zone = |node: usize| cluster.nodes()[node].config().zone.clone();
    let in_zone = (0..cluster.nodes().len()).filter(|&node| zone(node) == zone(0));
    let disks: Vec<DiskId> = in_zone.flat_map(|node| disks_of(&cluster, node)).collect();
    let before = map_of(&cluster).await;
    let refused = change(&cluster, &disks, DiskStep::Drain).await;
    assert!(!refused.done && !refused.refusals.is_empty(), "a whole zone: {refused:?}");
    let one = ChangeDisks { disks: vec![disks[0]], step: DiskStep::Drain, dry_run: true };
    let planned = member(&cluster).change_disks(&one).await.unwrap();
    assert!(!planned.done && planned.refusals.is_empty() && planned.slots > 0, "{planned:?}");
    let used = change(&cluster, &disks[..1], DiskStep::Remove).await;
    assert!(!used.done && used.refusals[0].contains("drain it first"), "{used:?}");
    assert_eq!(map_of(&cluster).await.disks, before.disks, "nothing was changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_drained_to_empty_under_load() {
    let mut cluster = TestCluster::demo().await.unwrap();
    let mut ledger = fill(&cluster).await;
    let (node, _) = roles(&cluster);
    let disks = disks_of(&cluster, node);
    let before = map_of(&cluster).await;
    let is_first = |group: &PlacementGroup| group.epoch == Epoch(1);
    assert!(before.groups.values().all(is_first), "an ordinary cluster moves nothing by itself");
    let ideal: u64 = disks.iter().map(|&disk| data_bytes(&cluster, disk)).sum();
    let load = load(&cluster);
    let drained = change(&cluster, &disks, DiskStep::Drain).await;
    assert!(drained.done, "{drained:?}");
    let map = settled(&cluster, |map| disks.iter().all(|disk| is_empty(map, *disk))).await;
    ledger.join(load.end().await);
    let moved = moved_slots(&before, &map);
    let copied = member(&cluster).overview().await.unwrap().copied_bytes();
    println!(
        "slots that had to move: {}, that moved: {moved}; bytes on the node in the beginning: {ideal}, copied in all: {copied}",
        drained.slots
    );
    assert!(moved as u64 * 100 <= drained.slots * 105, "{moved} slots moved");
    all_in_place(&cluster, &map).await;
    for &disk in &disks {
        assert_eq!(data_bytes(&cluster, disk), 0, "nothing is left behind");
    }
    let removed = change(&cluster, &disks, DiskStep::Remove).await;
    assert!(removed.done, "{removed:?}");
    cluster.power_off_one(node, CutStyle::DropAll).await.unwrap();
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_killed_meanwhile_the_slots_arrive() {
    let mut cluster = TestCluster::demo().await.unwrap();
    let ledger = fill(&cluster).await;
    let (node, _) = roles(&cluster);
    let disk =
        *cluster.nodes()[node].running().unwrap().data().unwrap().stores().keys().next().unwrap();
    let op = RootOp::SetDiskState { disk, state: DiskState::Draining };
    running(&cluster).root(op).await.unwrap();
    // each voter once, so that the one that leads the root is among them, and the nodes to which slots move
    for victim in (0..cluster.nodes().len()).filter(|&victim| victim != node) {
        let under_way = async {
            while moving(&map_of(&cluster).await).is_empty() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        // all may have moved already
        drop(tokio::time::timeout(Duration::from_secs(20), under_way).await);
        cluster.power_off_one(victim, CutStyle::Torn { seed: 7 }).await.unwrap();
        cluster.start_all().await.unwrap();
    }
    let map = settled(&cluster, |map| is_empty(map, disk)).await;
    all_in_place(&cluster, &map).await;
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());
}
