//! What was lost unnoticed is noticed and rebuilt (D1, D4); what nothing names goes (D3), and nothing else does (D2);
//! what is said to survive is what a hand counts.

#![expect(clippy::unwrap_used, reason = "helpers of tests: where they fail, the test fails")]

mod common;

use ashlar::audit::{AuditReport, Domain};
use ashlar::disk_change::{ChangeDisks, DiskStep};
use ashlar::operator::Member;
use ashlar_client::{Client, Failure, Ticket};
use ashlar_host::{CutStyle, Host};
use ashlar_load::Content as Bytes;
use ashlar_store::ShardKey;
use ashlar_testkit::{NewNode, TestCluster, TestNode};
use ashlar_types::{
    BucketName, Content, Description, Etag, KeyPoint, ObjectId, PlacementGroup, Put, RangeOp, Role,
    WriteCondition,
};
use ashlar_wire::Security;
use common::{BUCKET, Begun, Ledger, client_of};
use std::collections::BTreeSet;
use std::time::Duration;

/// A round of repair or collection comes at least every minute; two cores for all.
const DONE_WITHIN: Duration = Duration::from_secs(150);
const LOOK_EVERY: Duration = Duration::from_millis(50);

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    assert!(tokio::time::timeout(DONE_WITHIN, waiting).await.is_ok(), "never: {what}");
}

fn running(cluster: &TestCluster) -> impl Iterator<Item = &ashlar::node::RunningNode> {
    cluster.nodes().iter().filter_map(TestNode::running)
}

async fn audit(cluster: &TestCluster) -> AuditReport {
    running(cluster).next().unwrap().auditor().pass().await.unwrap()
}

/// All shards on all disks.
fn shards(cluster: &TestCluster) -> BTreeSet<ShardKey> {
    let stores = running(cluster).filter_map(|node| node.data()).map(|data| data.stores());
    let keys = stores.flat_map(|stores| {
        let all = stores.values().flat_map(|store| store.list(None, usize::MAX));
        all.map(|shard| shard.key).collect::<Vec<ShardKey>>()
    });
    keys.collect()
}

/// Takes a shard of a wide extent away from the disk that has it, behind everybody's back.
async fn take_a_shard(cluster: &TestCluster) -> ShardKey {
    for data in running(cluster).filter_map(|node| node.data()) {
        for store in data.stores().values() {
            let all = store.list(None, usize::MAX);
            if let Some(shard) = all.iter().find(|shard| shard.profile.data > 1) {
                assert!(store.delete(shard.key).await.unwrap());
                return shard.key;
            }
        }
    }
    panic!("there is no shard of a wide extent");
}

async fn fill(cluster: &TestCluster) -> Ledger {
    let client = client_of(cluster);
    client.create_bucket(BUCKET).await.unwrap();
    let mut ledger = Ledger::default();
    for (key, len) in [("inline", 100), ("small", 40 << 10), ("wide", 300 << 10)] {
        ledger.put(&client, 0, key, Bytes::of_key(key, 0, len)).await;
    }
    let parts = Bytes::of_key("parts", 0, 11 << 20);
    ledger.multipart(&client, "parts", parts, &[5 << 20, 10 << 20]).await;
    ledger
}

/// Shards of what [`fill`] writes: three copies, and four wide extents.
const FILLED_SHARDS: u64 = 3 + 4 * 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d4_a_shard_that_a_disk_lost_is_noticed_and_rebuilt() {
    let cluster = TestCluster::demo().await.unwrap();
    let ledger = fill(&cluster).await;
    let whole = audit(&cluster).await;
    assert_eq!((whole.shards.found, whole.shards.lost), (FILLED_SHARDS, 0), "{whole:?}");
    let lost = take_a_shard(&cluster).await;
    assert!(!shards(&cluster).contains(&lost));

    let noticed = audit(&cluster).await;
    assert_eq!((noticed.shards.found, noticed.shards.lost), (FILLED_SHARDS - 1, 1));
    let rebuilt = async || shards(&cluster).contains(&lost);
    until("the shard is rebuilt", rebuilt).await;
    // it is done when it was counted again
    until("the record misses nothing", async || audit(&cluster).await.shards.missing == 0).await;
    let counted = audit(&cluster).await;
    assert_eq!((counted.shards.found, counted.shards.lost), (FILLED_SHARDS, 0));
    assert_eq!((counted.orphans, counted.unnamed, counted.strays), (0, 0, 0));
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());
}

/// Writes content through the client of a gateway, and leaves it there: named by nothing.
async fn write_only(client: &Client, length: u64) -> (KeyPoint, Content, Ticket) {
    let name = BucketName::parse(BUCKET).unwrap();
    let bucket = client.bucket(&name).await.unwrap().unwrap();
    let mut writer = client.writer(bucket.row.bucket, Some(length)).await.unwrap();
    writer.write(vec![7; usize::try_from(length).unwrap()].into()).await.unwrap();
    let (content, ticket) = writer.finish().await.unwrap();
    (KeyPoint::new(bucket.row.bucket, *b"late"), content, ticket)
}

fn gateway(cluster: &TestCluster) -> usize {
    cluster.nodes().iter().position(|node| node.has(Role::Gateway)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d3_what_a_killed_gateway_had_written_and_not_committed_goes() {
    let mut cluster = TestCluster::demo().await.unwrap();
    let ledger = fill(&cluster).await;
    let filled = shards(&cluster);
    let dying = gateway(&cluster);
    let client = cluster.nodes()[dying].running().unwrap().client().clone();
    let (_, content, ticket) = write_only(&client, 300 << 10).await;
    let orphan = content.extents[0].id;
    // the process ends before it proposes anything; it abandons nothing
    std::mem::forget(ticket);
    assert!(shards(&cluster).iter().any(|shard| shard.extent == orphan));

    let alive = audit(&cluster).await;
    assert_eq!((alive.orphans, alive.unnamed), (0, 1), "its session is open");
    drop(client);
    cluster.power_off_one(dying, CutStyle::DropAll).await.unwrap();
    cluster.start_all().await.unwrap();
    let after = audit(&cluster).await;
    assert_eq!((after.orphans, after.unnamed), (1, 0), "its node has booted again");
    let collected = async || !shards(&cluster).iter().any(|shard| shard.extent == orphan);
    until("the orphan is gone", collected).await;
    assert_eq!(shards(&cluster), filled);
    assert_eq!(audit(&cluster).await.orphans, 0);
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d2_a_gateway_that_slept_through_the_fence_commits_nothing() {
    let cluster = TestCluster::demo().await.unwrap();
    let ledger = fill(&cluster).await;
    let filled = shards(&cluster);
    let client = cluster.nodes()[gateway(&cluster)].running().unwrap().client().clone();
    let (at, content, ticket) = write_only(&client, 300 << 10).await;
    let orphan = content.extents[0].id;
    // it was silent for longer than its lease
    client.end_session(orphan.session).await.unwrap();
    assert_eq!(audit(&cluster).await.orphans, 1);
    let collected = async || !shards(&cluster).iter().any(|shard| shard.extent == orphan);
    until("the orphan is gone", collected).await;

    let name = BucketName::parse(BUCKET).unwrap();
    let bucket = client.bucket(&name).await.unwrap().unwrap();
    let put = Put {
        at: at.clone(),
        bucket_epoch: bucket.row.epoch,
        condition: WriteCondition::Always,
        object: ObjectId(1),
        modified_ms: 1,
        etag: Etag { md5: [1; 16], parts: 0 },
        checksums: Vec::new(),
        description: Description::default(),
        content,
        token: None,
    };
    let woken = client.execute(Some(ticket), &at, RangeOp::Put(Box::new(put))).await;
    assert!(matches!(woken, Err(Failure::Unavailable { .. })), "surely not applied: {woken:?}");
    // it goes on under another session
    let mut later = Ledger::default();
    later.put(&client_of(&cluster), 0, "later", Bytes::of_key("later", 0, 300 << 10)).await;
    later.put(&client_of(&cluster), 1, "later/1", Bytes::of_key("later/1", 0, 300 << 10)).await;
    assert_eq!(later.losses_of_reads(&client_of(&cluster)).await, Vec::<String>::new());
    assert_eq!(ledger.losses_of_reads(&client_of(&cluster)).await, Vec::<String>::new());
    assert_eq!(shards(&cluster).len(), filled.len() + 12);
    assert_eq!(audit(&cluster).await.orphans, 0);
}

/// The objects by margin: the margin, and how many have it.
fn by(report: &AuditReport, domain: Domain) -> Vec<(i16, u64)> {
    let margins = report.durability.by_margin[&domain].iter();
    margins.map(|(&margin, count)| (margin, count.objects)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_to_survive_is_what_a_hand_counts() {
    let mut cluster = TestCluster::demo().await.unwrap();
    let ledger = fill(&cluster).await;
    let nodes = cluster.nodes();
    let plain = |node: &TestNode| !node.has(Role::Meta) && !node.has(Role::Gateway);
    let (quiet, voter) = (
        nodes.iter().position(plain).unwrap(),
        nodes.iter().position(|node| node.has(Role::Meta)).unwrap(),
    );
    let zone = nodes[voter].config().zone.clone();
    let of_zone: Vec<usize> =
        (0..nodes.len()).filter(|&node| nodes[node].config().zone == zone).collect();

    // six shards over three zones survive two nodes, or a zone; three voters survive one of them, and no more
    let whole = audit(&cluster).await;
    assert_eq!(whole.durability.all.objects, 4);
    for domain in [Domain::Disk, Domain::Node, Domain::Zone] {
        assert_eq!(by(&whole, domain), [(1, 4)], "{domain:?}");
    }

    // five of six survive one node, and no zone: one of the two objects with wide extents
    take_a_shard(&cluster).await;
    let short = audit(&cluster).await;
    assert_eq!(by(&short, Domain::Zone), [(0, 1), (1, 3)]);
    assert_eq!(by(&short, Domain::Node), [(1, 4)]);
    assert_eq!(short.worst[0].margins.of(Domain::Zone), 0);
    until("the shard is counted again", async || audit(&cluster).await.shards.missing == 0).await;

    // a node without a vote: both wide objects have something on it, as each extent has a shard on every node
    cluster.power_off_one(quiet, CutStyle::DropAll).await.unwrap();
    let down = audit(&cluster).await;
    assert_eq!(by(&down, Domain::Zone), [(0, 2), (1, 2)]);
    assert_eq!(by(&down, Domain::Node), [(1, 4)]);
    assert!(down.shards.unknown >= 4, "{:?}", down.shards);
    assert_eq!(down.silent.len(), 2, "two disks");
    cluster.start_all().await.unwrap();

    // a voter: no metadata survives another one
    cluster.power_off_one(voter, CutStyle::DropAll).await.unwrap();
    let down = audit(&cluster).await;
    assert_eq!(by(&down, Domain::Node), [(0, 4)]);
    assert_eq!(by(&down, Domain::Disk), [(0, 4)]);
    assert_eq!(down.durability.lost.objects, 0);

    // its zone
    for node in of_zone.iter().copied().filter(|&node| node != voter) {
        cluster.power_off_one(node, CutStyle::DropAll).await.unwrap();
    }
    let down = audit(&cluster).await;
    for domain in [Domain::Disk, Domain::Node, Domain::Zone] {
        assert_eq!(by(&down, domain), [(0, 4)], "{domain:?}");
    }
    assert_eq!((down.durability.lost.objects, down.shards.lost), (0, 0), "unknown is not lost");
    cluster.start_all().await.unwrap();
    let back = audit(&cluster).await;
    assert_eq!((back.shards.found, back.shards.unknown), (FILLED_SHARDS, 0));
    assert_eq!(by(&back, Domain::Zone), [(1, 4)]);
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_beyond_repair_is_said_by_name_and_nothing_more_is_called_missing() {
    let cluster = TestCluster::demo().await.unwrap();
    let client = client_of(&cluster);
    client.create_bucket(BUCKET).await.unwrap();
    let mut ledger = Ledger::default();
    for key in ["lost", "kept"] {
        ledger.put(&client, 0, key, Bytes::of_key(key, 0, 300 << 10)).await;
    }
    let first = take_a_shard(&cluster).await;
    let mut taken = 1;
    for data in running(&cluster).filter_map(|node| node.data()) {
        for store in data.stores().values() {
            let all = store.list(None, usize::MAX);
            let others = all.iter().filter(|shard| shard.key.extent == first.extent);
            for shard in others.take(3 - taken) {
                assert!(store.delete(shard.key).await.unwrap());
                taken += 1;
            }
        }
    }
    assert_eq!(taken, 3);
    for _ in 0..2 {
        let report = audit(&cluster).await;
        assert_eq!((report.durability.lost.objects, report.lost.len()), (1, 1));
        assert_eq!((report.shards.lost, report.shards.missing), (3, 0), "all are still asked for");
        let lost = &report.lost[0];
        assert!(lost.bucket == BUCKET && ["lost", "kept"].contains(&lost.key.as_str()), "{lost:?}");
        assert_eq!(by(&report, Domain::Node), [(-1, 1), (1, 1)]);
    }
}

/// Every gateway's session ends, and all ranges refuse it: whatever was written so far can be audited.
async fn begin_anew(cluster: &TestCluster, client: &ashlar_load::Client) {
    let any = running(cluster).next().unwrap().client();
    for session in any.living_sessions().await.unwrap().sessions {
        any.end_session(session.id).await.unwrap();
    }
    audit(cluster).await;
    for gateway in 0..2 {
        let content = Bytes::of_key("warm", 0, 40 << 10);
        let written = async || {
            let call = ashlar_load::Call::new(http::Method::PUT, BUCKET, "warm")
                .payload(ashlar_load::Payload::Content(content))
                .through(gateway);
            client.send(call).await.is_ok_and(|answer| answer.status.is_success())
        };
        until("the gateway has another session", written).await;
    }
}

/// What one client does with the objects of an earlier session, and with new ones.
async fn churn(cluster: &TestCluster, mut ledger: Ledger, begun: Vec<Begun>, own: usize) -> Ledger {
    let client = client_of(cluster);
    let mut begun = begun.into_iter();
    for round in 0..ROUNDS {
        let key = |what: &str| format!("{own}/{what}/{round}");
        ledger.delete(&client, round, &key("deleted")).await;
        let content = Bytes::of_key(&key("overwritten"), 1, 200 << 10);
        ledger.put(&client, round + 1, &key("overwritten"), content).await;
        if let Some(upload) = begun.next() {
            ledger.complete(&client, upload).await;
        }
        ledger.put(&client, round, &key("new"), Bytes::of_key(&key("new"), 0, 100 << 10)).await;
        if round % 2 == 0 {
            ledger.delete(&client, round, &key("new")).await;
        }
    }
    ledger
}

const CLIENTS: usize = 3;
const ROUNDS: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d2_audits_under_load_delete_nothing_that_is_named() {
    let cluster = TestCluster::demo().await.unwrap();
    let client = client_of(&cluster);
    client.create_bucket(BUCKET).await.unwrap();
    let mut shares = Vec::new();
    for own in 0..CLIENTS {
        let (mut ledger, mut begun) = (Ledger::default(), Vec::new());
        for round in 0..ROUNDS {
            for (what, len) in
                [("deleted", 90 << 10), ("overwritten", 150 << 10), ("kept", 80 << 10)]
            {
                let key = format!("{own}/{what}/{round}");
                ledger.put(&client, round, &key, Bytes::of_key(&key, 0, len)).await;
            }
            if round % 4 == 0 {
                let key = format!("{own}/parts/{round}");
                let content = Bytes::of_key(&key, 0, (5 << 20) + (100 << 10));
                begun.push(Ledger::begin(&client, &key, content, &[5 << 20]).await);
            }
        }
        shares.push((ledger, begun));
    }
    begin_anew(&cluster, &client).await;

    let (cluster, stop) = (&cluster, std::sync::atomic::AtomicBool::new(false));
    let audits = async {
        let mut passes = 0;
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            for node in running(cluster) {
                let report = node.auditor().pass().await.unwrap();
                assert_eq!(report.shards.lost, 0, "{report:?}");
                assert_eq!(report.durability.lost.objects, 0, "{report:?}");
                passes += 1;
            }
        }
        passes
    };
    let load = async {
        let shares = shares.into_iter().enumerate();
        let churns = shares.map(|(own, (ledger, begun))| churn(cluster, ledger, begun, own));
        let ledgers = futures::future::join_all(churns).await;
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        ledgers
    };
    let (passes, ledgers) = futures::join!(audits, load);
    assert!(passes >= 6, "{passes}");
    let mut all = Ledger::default();
    ledgers.into_iter().for_each(|ledger| all.join(ledger));
    assert_eq!(all.losses_of_reads(&client).await, Vec::<String>::new());

    // and in the end there is what is named, and nothing else
    let settled = async || {
        let report = audit(cluster).await;
        let held = shards(cluster).len() as u64;
        report.garbage == 0 && report.unnamed == 0 && report.shards.found == held
    };
    until("all garbage is gone", settled).await;
    assert_eq!(all.losses_of_reads(&client).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d2_what_is_left_in_groups_without_parity_is_counted_before_their_disk_is_given_up() {
    let never = |config: &mut ashlar::config::NodeConfig| config.data.recode_cycle_seconds = 3600;
    let mut cluster = TestCluster::single_with(1, never).await.unwrap();
    let client = client_of(&cluster);
    client.create_bucket(BUCKET).await.unwrap();
    let mut ledger = Ledger::default();
    for (key, len) in [("small", 40 << 10), ("one", 300 << 10), ("two", 600 << 10)] {
        ledger.put(&client, 0, key, Bytes::of_key(key, 0, len)).await;
    }
    for name in ["second", "third"] {
        let wish = NewNode {
            name: name.to_owned(),
            zone: name.to_owned(),
            disks: 1,
            roles: vec![Role::Data],
        };
        cluster.add_node(&wish).await.unwrap();
    }
    let map_now = async || running(&cluster).next().unwrap().client().map_now().await.unwrap();
    let is_remains = |group: &&PlacementGroup| !group.open && group.profile.parity == 0;
    until("the first groups are closed", async || {
        map_now().await.groups.values().any(|group| is_remains(&group))
    })
    .await;
    let map = map_now().await;
    let remains: Vec<_> = map.groups.values().filter(is_remains).collect();
    let left = |report: &AuditReport| -> u64 {
        remains.iter().map(|group| report.left_in(group).unwrap()).sum()
    };
    assert!(left(&audit(&cluster).await) >= 3, "at least one extent of each");

    let lose = async || {
        let address = cluster.nodes()[0].config().address();
        let member = Member::at(&Host::real(), &address, &Security::Plain);
        let disks = remains[0].homes.clone();
        let ask = ChangeDisks { disks, step: DiskStep::Lose, dry_run: true };
        member.change_disks(&ask).await.unwrap().refusals.join("; ")
    };
    let why = lose().await;
    assert!(why.contains("alone, which has no parity"), "{why}");
    for key in ["small", "one", "two"] {
        ledger.delete(&client, 0, key).await;
    }
    assert_eq!(left(&audit(&cluster).await), 0, "what is garbage is no loss");
    let why = lose().await;
    assert!(!why.contains("no parity") && why.contains("drain it instead"), "{why}");
}
