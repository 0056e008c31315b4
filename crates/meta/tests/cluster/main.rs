//! Nodes in one process, over real loopback connections.

mod agreement;
mod replicas;
mod split;

use ashlar_host::{Host, OpenMode, Shutdown, TaskHandle, TaskKind};
use ashlar_map::Engine;
use ashlar_meta::{
    Beginning, DamagedRange, Formation, GroupStatus, MetaConfig, MetaError, MetaNode, NotDone,
    Timing, Versions,
};
use ashlar_types::*;
use ashlar_wire::{Dialer, Security};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

/// The root and the first data ranges.
const RANGES: usize = 9;
const RANGE: RangeId = RangeId(1);
const EPOCH: Epoch = Epoch(1);
const BUCKET: BucketId = BucketId(5);
const PATIENCE: Duration = Duration::from_secs(15);

/// Short, so that tests are; long enough for two loaded cores.
fn timing() -> Timing {
    Timing {
        heartbeat: Duration::from_millis(80),
        election_min: Duration::from_millis(300),
        election_max: Duration::from_millis(600),
    }
}

struct Running {
    meta: Arc<MetaNode>,
    shutdown: Shutdown,
    serving: TaskHandle,
}

struct Cluster {
    host: Host,
    directory: TempDir,
    addresses: Arc<Mutex<BTreeMap<NodeId, String>>>,
    voters: Vec<NodeId>,
    nodes: BTreeMap<NodeId, Running>,
    boots: u64,
    snapshot_log_bytes: u64,
    /// For which release a node stands that is booted next.
    versions: Versions,
}

impl Cluster {
    async fn start(count: u64) -> Self {
        Self::start_with(count, 64 << 20).await
    }

    async fn start_with(count: u64, snapshot_log_bytes: u64) -> Self {
        Self::start_as(count, snapshot_log_bytes, Versions::default()).await
    }

    async fn start_as(count: u64, snapshot_log_bytes: u64, versions: Versions) -> Self {
        let mut cluster = Self {
            host: Host::real(),
            directory: tempfile::tempdir().expect("a directory"),
            addresses: Arc::default(),
            voters: (1..=count).map(NodeId).collect(),
            nodes: BTreeMap::new(),
            boots: 0,
            snapshot_log_bytes,
            versions,
        };
        for node in cluster.voters.clone() {
            cluster.boot(node).await;
        }
        cluster
    }

    fn dir(&self, node: NodeId) -> PathBuf {
        self.directory.path().join(node.to_string())
    }

    fn formation(&self) -> Formation {
        let node = |&id: &NodeId| Node {
            id,
            name: id.to_string(),
            zone: "z".to_owned(),
            address: String::new(),
            roles: vec![Role::Meta],
            incarnation: 0,
        };
        Formation {
            cluster: ClusterId(77),
            nodes: self.voters.iter().map(node).collect(),
            voters: self.voters.clone(),
            region: "eu".to_owned(),
            ranges: 8,
        }
    }

    async fn boot(&mut self, node: NodeId) {
        self.boots += 1;
        self.boot_as(node, self.boots).await;
    }

    async fn boot_as(&mut self, node: NodeId, incarnation: u64) {
        self.try_boot(node, incarnation).await.expect("the node starts");
    }

    async fn try_boot(&mut self, node: NodeId, incarnation: u64) -> Result<(), MetaError> {
        let host = self.host.clone().with_own_shutdown();
        let book = self.addresses.clone();
        let addresses = Arc::new(move |id: NodeId| book.lock().expect("whole").get(&id).cloned());
        let config = MetaConfig {
            node,
            incarnation,
            dir: self.dir(node),
            engine: Engine::Fjall,
            wal_file_bytes: 4 << 20,
            timing: timing(),
            snapshot_log_bytes: self.snapshot_log_bytes,
            compare_every: Duration::from_millis(100),
            versions: self.versions,
            ..MetaConfig::default()
        };
        let dialer = Dialer::new(host.clone(), &Security::Plain);
        let formation = self.formation();
        let beginning = match self.voters.contains(&node) {
            true => Beginning::Founder(formation),
            false => Beginning::Joined(formation.cluster),
        };
        let listener = host.network.listen("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        self.addresses.lock().expect("whole").insert(node, address);
        let meta = MetaNode::start(host.clone(), dialer, config, addresses, beginning).await?;
        let router = meta.routes().into_axum_router();
        let serve = Box::pin(ashlar_wire::serve(host.clone(), listener, Security::Plain, router));
        let serving = host.tasks.spawn(TaskKind::Background("port"), serve);
        self.nodes.insert(node, Running { meta, shutdown: host.shutdown, serving });
        Ok(())
    }

    /// As if the process were killed: nothing is handed over, nothing is flushed.
    async fn kill(&mut self, node: NodeId) {
        let running = self.nodes.remove(&node).expect("it runs");
        self.addresses.lock().expect("whole").remove(&node);
        running.serving.abort();
        running.shutdown.request();
        running.meta.abandon().await;
    }

    async fn stop(&mut self, node: NodeId) {
        let running = self.nodes.remove(&node).expect("it runs");
        running.meta.stop().await;
        running.shutdown.request();
        running.serving.join().await;
    }

    fn status(&self, node: NodeId, range: RangeId) -> GroupStatus {
        let all = self.nodes[&node].meta.status();
        all.into_iter().find(|status| status.range == range).expect("the range is there")
    }

    fn leader(&self, range: RangeId) -> Option<NodeId> {
        let leads = |node: &NodeId| {
            let all = self.nodes[node].meta.status();
            all.iter().any(|status| status.range == range && status.leader == Some(*node))
        };
        self.nodes.keys().copied().find(leads)
    }

    fn damaged(&self, node: NodeId) -> Vec<DamagedRange> {
        self.nodes[&node].meta.damaged()
    }

    /// Every range runs on every node, with all voters.
    fn is_whole(&self) -> bool {
        self.nodes.values().all(|running| {
            let status = running.meta.status();
            let full = |status: &GroupStatus| status.voters == self.voters;
            status.len() == RANGES && status.iter().all(full) && running.meta.damaged().is_empty()
        })
    }

    /// Damages what a stopped node had synced: every batch of its newest log file but the last, which shows that those
    /// before it were synced.
    fn damage_log(&self, node: NodeId) {
        let disk = &self.host.disk;
        let used = |path: &PathBuf| {
            let bytes = disk.read(path).expect("a file of the log");
            let is_batch = |at: &usize| bytes[*at..].starts_with(b"ashwal");
            let batches: Vec<usize> = (0..bytes.len()).step_by(512).filter(is_batch).collect();
            // the generation, by which the newest file is known
            (!batches.is_empty()).then(|| (bytes[16], bytes, batches))
        };
        let files = disk.list(&self.dir(node).join("wal")).expect("the log's directory");
        let newest = files.iter().filter_map(|path| used(path).map(|used| (used, path)));
        let ((_, mut bytes, batches), path) =
            newest.max_by_key(|((age, ..), _)| *age).expect("a log");
        let (_, damaged) = batches.split_last().expect("a batch");
        assert!(damaged.len() > 3, "there is something to lose");
        damaged.iter().for_each(|at| bytes[at + 80] ^= 0xff);
        let file = disk.open(path, OpenMode::ReadWrite).expect("a file");
        file.write_at(&bytes, 0).expect("damaged");
    }

    /// The directory of a stopped node, kept aside, or put back.
    fn copy_dir(&self, from: &Path, to: &Path) {
        let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
        assert!(copied.expect("cp runs").success());
    }

    /// Asks every node in turn until one does it; what may have happened is not asked again.
    async fn execute(&self, op: RangeOp) -> Result<CommandReply, NotDone> {
        let command = Command { caller: None, op };
        self.until(|meta| {
            let command = command.clone();
            async move { meta.execute(RANGE, EPOCH, command).await }
        })
        .await
    }

    async fn until<T, F>(&self, ask: impl Fn(Arc<MetaNode>) -> F) -> Result<T, NotDone>
    where
        F: Future<Output = Result<T, NotDone>>,
    {
        let began = self.host.clock.now();
        loop {
            for running in self.nodes.values() {
                match ask(running.meta.clone()).await {
                    // one that has it not says so, too
                    Err(NotDone::Leader(_) | NotDone::Busy { .. } | NotDone::Epoch(None)) => {}
                    done => return done,
                }
            }
            assert!(
                self.host.clock.now() - began < PATIENCE,
                "no node did it: {:?}",
                self.nodes.values().map(|n| n.meta.status()).collect::<Vec<_>>()
            );
            self.host.clock.sleep(Duration::from_millis(10)).await;
        }
    }

    async fn open_bucket(&self) {
        let row = BucketRow {
            bucket: BUCKET,
            epoch: Epoch(1),
            state: BucketState::Open,
            versioning: Versioning::Off,
        };
        self.execute(RangeOp::SetBucket(row)).await.expect("the bucket row is installed");
    }

    async fn put(&self, key: &str, number: u64) -> CommandReply {
        let reply = self.execute(put(key, number)).await.expect("the put is done");
        assert!(matches!(reply.outcome, Outcome::Applied(Applied::Written { .. })), "{reply:?}");
        reply
    }

    async fn get(&self, key: &str) -> Option<u64> {
        let query = RangeQuery::Object { at: at(key), bucket_epoch: Epoch(1), span: Span::Nothing };
        let answer = self.until(|meta| {
            let query = query.clone();
            async move { meta.query(RANGE, EPOCH, query).await }
        });
        match answer.await.expect("the read is done") {
            RangeAnswer::Object { record, .. } => Some(number_of(record.etag)),
            RangeAnswer::Refused(QueryRefusal::NoSuchKey) => None,
            other => panic!("{other:?}"),
        }
    }

    async fn wait(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let began = self.host.clock.now();
        while !holds(self) {
            assert!(
                self.host.clock.now() - began < PATIENCE,
                "not in time: {what}: {:#?}",
                self.nodes
                    .values()
                    .map(|n| (n.meta.status(), n.meta.damaged()))
                    .collect::<Vec<_>>()
            );
            self.host.clock.sleep(Duration::from_millis(5)).await;
        }
    }

    /// All replicas have applied the same, and came to the same state (R4).
    async fn converge(&self) {
        self.converge_on(RANGE).await;
    }

    async fn converge_on(&self, range: RangeId) {
        self.wait("all replicas are equal", |cluster| {
            let mut states = cluster.nodes.values().map(|running| {
                let status = running.meta.status().into_iter().find(|group| group.range == range);
                status.map(|status| (status.applied, status.state_hash))
            });
            let first = states.next().expect("a node");
            first.is_some_and(|(applied, _)| applied.is_some())
                && states.all(|state| state == first)
        })
        .await;
    }

    async fn stop_all(&mut self) {
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.stop(node).await;
        }
    }
}

fn at(key: &str) -> KeyPoint {
    KeyPoint::new(BUCKET, key.as_bytes())
}

fn number_of(etag: Etag) -> u64 {
    u64::from_le_bytes(etag.md5[..8].try_into().expect("eight bytes"))
}

fn put(key: &str, number: u64) -> RangeOp {
    let mut md5 = [0; 16];
    md5[..8].copy_from_slice(&number.to_le_bytes());
    RangeOp::Put(Box::new(Put {
        at: at(key),
        bucket_epoch: Epoch(1),
        condition: WriteCondition::Always,
        object: ObjectId(u128::from(number)),
        modified_ms: number,
        etag: Etag { md5, parts: 0 },
        checksums: Vec::new(),
        description: Description::default(),
        content: Content::default(),
        token: None,
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_serves_and_finds_everything_again() {
    let mut cluster = Cluster::start(1).await;
    cluster.open_bucket().await;
    let first = cluster.put("a", 1).await;
    assert!(cluster.put("b", 2).await.index > first.index);
    assert_eq!((cluster.get("a").await, cluster.get("x").await), (Some(1), None));
    cluster.kill(NodeId(1)).await;
    cluster.boot(NodeId(1)).await;
    assert_eq!((cluster.get("a").await, cluster.get("b").await), (Some(1), Some(2)));
    cluster.stop_all().await;
    cluster.boot(NodeId(1)).await;
    assert_eq!(cluster.get("b").await, Some(2));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_of_one_range_leaves_the_others_served() {
    let mut cluster = Cluster::start(1).await;
    cluster.open_bucket().await;
    cluster.put("a", 1).await;
    cluster.stop_all().await;
    let snapshot = cluster.dir(NodeId(1)).join("snapshots").join("range-5.snapshot");
    cluster.host.disk.replace(&snapshot, b"no snapshot").expect("written");
    cluster.boot(NodeId(1)).await;
    assert_eq!(cluster.get("a").await, Some(1));
    let served = cluster.nodes[&NodeId(1)].meta.status();
    assert!(served.iter().all(|status| status.range != RangeId(5)));
    assert_eq!(served.len(), 8);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_and_all_restart_with_everything() {
    let mut cluster = Cluster::start(3).await;
    cluster.open_bucket().await;
    for number in 0..20 {
        cluster.put(&format!("key-{number}"), number).await;
    }
    cluster.wait("a leader", |cluster| cluster.leader(RANGE).is_some()).await;
    let first = cluster.leader(RANGE).expect("just seen");
    cluster.kill(first).await;
    cluster.put("after", 99).await;
    assert_eq!((cluster.get("key-7").await, cluster.get("after").await), (Some(7), Some(99)));
    cluster.boot(first).await;
    cluster.converge().await;
    for node in cluster.voters.clone() {
        cluster.kill(node).await;
    }
    for node in cluster.voters.clone() {
        cluster.boot(node).await;
    }
    for number in 0..20 {
        assert_eq!(cluster.get(&format!("key-{number}")).await, Some(number));
    }
    assert_eq!(cluster.get("after").await, Some(99));
    cluster.converge().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_stop_hands_leadership_over_and_the_root_knows_the_cluster() {
    let mut cluster = Cluster::start(3).await;
    let answer = cluster.until(|meta| async move {
        match meta.root_query(RootQuery::Map { newer_than: None }).await {
            Ok(RootAnswer::NotBootstrapped) => Err(NotDone::Leader(None)),
            other => other,
        }
    });
    assert!(matches!(answer.await, Ok(RootAnswer::Map(Some(_)))));
    cluster.open_bucket().await;
    let first = cluster.leader(RANGE).expect("it has just answered");
    let leaving = cluster.nodes.remove(&first).expect("it runs");
    let began = cluster.host.clock.now();
    leaving.meta.stop().await;
    cluster.put("k", 1).await;
    let gap = cluster.host.clock.now() - began;
    leaving.shutdown.request();
    leaving.serving.join().await;
    // without the hand-over the followers would wait for lease and election time-out, and the stop for its patience
    assert!(gap < Duration::from_millis(900), "{gap:?}");
    assert_ne!(cluster.leader(RANGE), Some(first));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_follower_gets_a_snapshot_and_a_lost_map_is_rebuilt() {
    let mut cluster = Cluster::start_with(3, 4096).await;
    cluster.open_bucket().await;
    cluster.wait("a leader", |cluster| cluster.leader(RANGE).is_some()).await;
    let leader = cluster.leader(RANGE).expect("just seen");
    let lagging = cluster.voters.iter().copied().find(|&node| node != leader).expect("three");
    cluster.kill(lagging).await;
    // until what the lagging follower lacks is gone from the log, however the snapshots fall
    let mut count = 0;
    while cluster.nodes.keys().any(|&node| cluster.status(node, RANGE).purged <= Some(64)) {
        for number in count..count + 50 {
            cluster.put(&format!("key-{number}"), number).await;
        }
        count += 50;
        assert!(count < 5000, "the log is never purged");
    }
    for &node in cluster.nodes.keys() {
        let status = cluster.status(node, RANGE);
        assert!(
            status.purged <= status.snapshot && status.snapshot <= status.applied,
            "R8: {status:?}"
        );
    }
    cluster.boot(lagging).await;
    cluster
        .wait("the snapshot arrives", |cluster| cluster.status(lagging, RANGE).snapshot.is_some())
        .await;
    cluster.put("last", 1000).await;
    cluster.converge().await;

    cluster.stop(lagging).await;
    let map = cluster.dir(lagging).join("map");
    cluster.host.disk.remove_dir_all(&map).expect("the view is gone");
    cluster.boot(lagging).await;
    cluster.put("later", 1001).await;
    cluster.converge().await;
    let newest = format!("key-{}", count - 1);
    assert_eq!(
        (cluster.get("key-0").await, cluster.get(&newest).await),
        (Some(0), Some(count - 1))
    );
    assert_eq!((cluster.get("last").await, cluster.get("later").await), (Some(1000), Some(1001)));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_commands_share_entries_and_a_wrong_epoch_is_told() {
    let mut cluster = Cluster::start(3).await;
    cluster.open_bucket().await;
    let leader = cluster.leader(RANGE).expect("it has just answered");
    let meta = cluster.nodes[&leader].meta.clone();
    let before = cluster.status(leader, RANGE).last.expect("entries");
    let puts = (0..500).map(|number| {
        let command = Command { caller: None, op: put(&format!("k{number}"), number) };
        meta.execute(RANGE, EPOCH, command)
    });
    let replies = futures::future::join_all(puts).await;
    assert!(
        replies
            .iter()
            .all(|reply| matches!(reply, Ok(CommandReply { outcome: Outcome::Applied(_), .. })))
    );
    let entries = cluster.status(leader, RANGE).last.expect("entries") - before;
    assert!(entries < 50, "{entries} entries for 500 commands");

    let command = Command { caller: None, op: put("k", 1) };
    let epoch = meta.execute(RANGE, Epoch(0), command.clone()).await;
    assert_eq!(epoch, Err(NotDone::Epoch(Some(EPOCH))));
    assert_eq!(meta.execute(RangeId(77), EPOCH, command.clone()).await, Err(NotDone::Epoch(None)));
    let follower = cluster.voters.iter().copied().find(|&node| node != leader).expect("three");
    cluster
        .wait("the follower knows", |cluster| {
            cluster.status(follower, RANGE).leader == Some(leader)
        })
        .await;
    let asked = cluster.nodes[&follower].meta.execute(RANGE, EPOCH, command).await;
    assert_eq!(asked, Err(NotDone::Leader(Some(leader))));
    cluster.stop_all().await;
}

/// The row that says what a range is, on a stopped node: as if the range had lost the keys from `end` on.
fn narrow(cluster: &Cluster, node: NodeId, end: &str) -> Epoch {
    let map = ashlar_map::open(Engine::Fjall, &cluster.dir(node).join("map")).expect("a map");
    let founded = ashlar_catalog::descriptor_in(&*map.view(), RANGE).expect("read");
    let founded = founded.expect("the range is there");
    let interval = Interval { start: founded.interval.start, end: Some(at(end)) };
    let narrow = RangeDescriptor { epoch: Epoch(founded.epoch.0 + 1), interval, ..founded };
    let (_, mut rows) = ashlar_catalog::Range::create(&narrow);
    let descriptor = [&b"s"[..], &RANGE.0.to_be_bytes(), &[0]].concat();
    rows.0.retain(|key, _| *key == descriptor);
    assert_eq!(rows.0.len(), 1);
    map.write(rows).expect("written");
    map.sync().expect("synced");
    narrow.epoch
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn epoch_and_interval_are_the_ledgers_and_not_those_that_a_range_was_founded_with() {
    let mut cluster = Cluster::start(1).await;
    cluster.open_bucket().await;
    cluster.put("a", 1).await;
    cluster.put("z", 2).await;
    cluster.stop_all().await;
    let epoch = narrow(&cluster, NodeId(1), "m");
    cluster.boot(NodeId(1)).await;

    let write = |epoch, key| {
        let command = Command { caller: None, op: put(key, 3) };
        cluster.until(move |meta| {
            let command = command.clone();
            async move { meta.execute(RANGE, epoch, command).await }
        })
    };
    let written = write(epoch, "a").await.expect("written").outcome;
    assert!(matches!(written, Outcome::Applied(Applied::Written { .. })), "{written:?}");
    let outside = write(epoch, "z").await.expect("answered").outcome;
    assert_eq!(outside, Outcome::Refused(Refusal::OutsideRange));
    assert_eq!(write(EPOCH, "a").await, Err(NotDone::Epoch(Some(epoch))));

    let read = |epoch, key| {
        let query = RangeQuery::Object { at: at(key), bucket_epoch: Epoch(1), span: Span::Nothing };
        cluster.until(move |meta| {
            let query = query.clone();
            async move { meta.query(RANGE, epoch, query).await }
        })
    };
    assert!(matches!(read(epoch, "a").await, Ok(RangeAnswer::Object { .. })));
    let outside = read(epoch, "z").await;
    assert_eq!(outside, Ok(RangeAnswer::Refused(QueryRefusal::OutsideRange)));
    assert_eq!(read(EPOCH, "a").await, Err(NotDone::Epoch(Some(epoch))));
    cluster.stop_all().await;
}

/// The range that was a part of `RANGE`, from the key `m` on.
const CHILD: RangeId = RangeId(99);
const CHILD_EPOCH: Epoch = Epoch(2);

async fn get_from_child(cluster: &Cluster) -> Option<u64> {
    let query = RangeQuery::Object { at: at("n"), bucket_epoch: Epoch(1), span: Span::Nothing };
    let answer = cluster.until(|meta| {
        let query = query.clone();
        async move { meta.query(CHILD, CHILD_EPOCH, query).await }
    });
    match answer.await {
        Ok(RangeAnswer::Object { record, .. }) => Some(number_of(record.etag)),
        _ => None,
    }
}

/// The log of a stopped node.
fn open_log(cluster: &Cluster, node: NodeId) -> ashlar_wal::Wal {
    let config = ashlar_wal::WalConfig {
        file_bytes: 4 << 20,
        ..ashlar_wal::WalConfig::new(cluster.dir(node).join("wal"))
    };
    ashlar_wal::Wal::open(&cluster.host, config).expect("the log")
}

/// Gives a stopped single node the record and the rows of `CHILD`, as a split that lies `ahead` entries in front of it would.
async fn split_ahead(cluster: &Cluster, node: NodeId, ahead: u64) -> u64 {
    let dir = cluster.dir(node);
    let wal = open_log(cluster, node);
    let (last, term) = wal.state(RANGE).last.expect("entries");
    // the next start leads in the next term
    let (split, term) = (last + ahead, term + 1);
    let log_id = [term.to_le_bytes(), split.to_le_bytes()].concat();
    // version 1, no log id, one configuration of the one node, the members
    let one = [&[1, 0, 0, 0], &node.0.to_le_bytes()[..]].concat();
    let membership = [&[1, 0, 1, 0, 0, 0], &one[..], &one[..]].concat();
    let map = ashlar_map::open(Engine::Fjall, &dir.join("map")).expect("a map");
    let parent = ashlar_catalog::descriptor_in(&*map.view(), RANGE).expect("read");
    let parent = parent.expect("the range is there");
    let child = RangeDescriptor {
        id: CHILD,
        epoch: CHILD_EPOCH,
        interval: Interval { start: at("m"), end: parent.interval.end },
        voters: parent.voters,
    };
    let created = [
        &77_u128.to_le_bytes()[..],
        &[0, 2, 1],
        &RANGE.0.to_le_bytes(),
        &log_id,
        &u32::try_from(membership.len()).expect("small").to_le_bytes(),
        &membership,
        &encode(&child),
    ]
    .concat();
    let vote = [&[1][..], &term.to_le_bytes(), &node.0.to_le_bytes(), &[0]].concat();
    let records = vec![
        ashlar_wal::Record::Created { first: created.into() },
        ashlar_wal::Record::Vote(vote.into()),
    ];
    wal.submit_all_durable(CHILD, records).await.expect("written");
    wal.close().await;
    let (_, mut rows) = ashlar_catalog::Range::create(&child);
    rows.put(ashlar_catalog::system_key(CHILD, b'a'), [&[1][..], &log_id, &membership].concat());
    map.write(rows).expect("written");
    map.sync().expect("synced");
    split
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_a_part_of_a_range_opens_when_that_is_past_the_split_also_after_the_map_is_lost() {
    let mut cluster = Cluster::start_with(1, 1).await;
    cluster.open_bucket().await;
    cluster.put("a", 1).await;
    cluster.stop_all().await;
    let node = NodeId(1);
    let split = split_ahead(&cluster, node, 9).await;
    cluster.boot(node).await;

    let meta = cluster.nodes[&node].meta.clone();
    let runs = |cluster: &Cluster| {
        let all = cluster.nodes[&node].meta.status();
        all.iter().any(|status| status.range == CHILD && status.leader == Some(node))
    };
    let write = |op| meta.execute(CHILD, CHILD_EPOCH, Command { caller: None, op });
    let mut applied = cluster.put("b", 2).await.index;
    assert!(applied + 1 < split, "the split is still ahead");
    // four periods of what would open it
    cluster.host.clock.sleep(Duration::from_secs(1)).await;
    assert!(!runs(&cluster), "it would overlap");
    assert_eq!(write(put("n", 3)).await, Err(NotDone::Leader(None)), "it is here, and waits");
    while applied < split {
        applied = cluster.put("b", applied).await.index;
    }
    cluster.wait("the child leads itself", runs).await;
    let row = BucketRow {
        bucket: BUCKET,
        epoch: Epoch(1),
        state: BucketState::Open,
        versioning: Versioning::Off,
    };
    write(RangeOp::SetBucket(row)).await.expect("the bucket row is installed");
    let written = write(put("n", 3)).await.expect("written");
    assert!(matches!(written.outcome, Outcome::Applied(Applied::Written { .. })), "{written:?}");
    assert!(written.index > split, "its indices go on from the split");

    // both get snapshots behind the split, the child first
    let mut number = 0;
    let secured = |cluster: &Cluster| {
        let parent = cluster.status(node, RANGE).snapshot.is_some_and(|index| index >= split);
        parent && cluster.dir(node).join("snapshots").join("range-99.snapshot").exists()
    };
    while !secured(&cluster) {
        number += 1;
        cluster.put("c", number).await;
    }
    drop(meta);
    cluster.stop_all().await;
    cluster.host.disk.remove_dir_all(&cluster.dir(node).join("map")).expect("removed");
    cluster.boot(node).await;
    cluster.wait("the child leads itself again", runs).await;
    assert_eq!((cluster.get("c").await, get_from_child(&cluster).await), (Some(number), Some(3)));
    cluster.stop_all().await;

    // an installation was cut short: what the map has of the child goes before the parent begins from nothing
    let stray = [&b"c"[..], &BUCKET.0.to_be_bytes(), b"y\0\0"].concat();
    let mut rows = ashlar_catalog::Writes::default();
    rows.put(stray.clone(), b"of nobody".to_vec());
    let changed = ashlar_map::open(Engine::Fjall, &cluster.dir(node).join("map")).expect("a map");
    changed.write(rows).expect("written");
    changed.sync().expect("synced");
    drop(changed);
    let wal = open_log(&cluster, node);
    let mark = ashlar_wal::Record::Installing(Vec::new().into());
    wal.submit_durable(RANGE, mark).await.expect("written");
    wal.close().await;
    drop(wal);
    cluster.boot(node).await;
    cluster.wait("the child leads itself once more", runs).await;
    assert_eq!((cluster.get("c").await, get_from_child(&cluster).await), (Some(number), Some(3)));
    cluster.stop_all().await;
    let map = ashlar_map::open(Engine::Fjall, &cluster.dir(node).join("map")).expect("a map");
    assert_eq!(map.view().get(&stray).expect("read"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_acknowledges_nothing_and_reads_nothing() {
    let mut cluster = Cluster::start(3).await;
    cluster.open_bucket().await;
    let leader = cluster.leader(RANGE).expect("it has just answered");
    for node in cluster.voters.clone().into_iter().filter(|&node| node != leader) {
        cluster.kill(node).await;
    }
    let meta = cluster.nodes[&leader].meta.clone();
    let query = RangeQuery::Object { at: at("k"), bucket_epoch: Epoch(1), span: Span::Nothing };
    let read = meta.query(RANGE, EPOCH, query).await;
    assert!(matches!(read, Err(NotDone::Busy { .. } | NotDone::Leader(_))), "{read:?}");
    let command = Command { caller: None, op: put("k", 1) };
    let write = meta.execute(RANGE, EPOCH, command).await;
    // the lease has ended by now: refused without a proposal; had it been proposed, its end were unknown
    assert!(!matches!(write, Ok(_) | Err(NotDone::Epoch(_))), "{write:?}");
    cluster.stop_all().await;
}

/// Three nodes with some keys, of which the third has stopped.
async fn with_a_stopped_node(snapshot_log_bytes: u64) -> Cluster {
    let mut cluster = Cluster::start_with(3, snapshot_log_bytes).await;
    cluster.open_bucket().await;
    for number in 0..40 {
        cluster.put(&format!("key-{number}"), number).await;
    }
    cluster.wait("all members are known", Cluster::is_whole).await;
    cluster.kill(NodeId(3)).await;
    cluster
}

async fn has_all_keys(cluster: &Cluster) {
    for number in 0..40 {
        assert_eq!(cluster.get(&format!("key-{number}")).await, Some(number));
    }
}

/// All is refilled, nothing that was acknowledged is lost, and the refilled node counts: it stands in for another one.
async fn is_refilled(mut cluster: Cluster) {
    cluster.wait("every range has all its voters again", Cluster::is_whole).await;
    cluster.put("later", 1000).await;
    cluster.converge().await;
    cluster.kill(NodeId(1)).await;
    has_all_keys(&cluster).await;
    cluster.put("without the first", 1001).await;
    cluster.boot(NodeId(1)).await;
    cluster.kill(NodeId(3)).await;
    cluster.boot(NodeId(3)).await;
    assert_eq!(cluster.damaged(NodeId(3)), [], "it is durable");
    assert_eq!(cluster.get("without the first").await, Some(1001));
    cluster.put("last", 1002).await;
    cluster.converge().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_damaged_below_what_was_synced_is_refilled_and_votes_again() {
    let mut cluster = with_a_stopped_node(64 << 20).await;
    cluster.damage_log(NodeId(3));
    cluster.boot(NodeId(3)).await;
    is_refilled(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_replica_whose_log_is_purged_elsewhere_is_refilled_by_a_snapshot() {
    let mut cluster = with_a_stopped_node(4096).await;
    cluster.wait("a leader", |cluster| cluster.leader(RANGE).is_some()).await;
    let mut count = 0;
    while cluster.nodes.keys().any(|&node| cluster.status(node, RANGE).purged <= Some(64)) {
        for number in 0..50 {
            cluster.put(&format!("more-{number}"), number).await;
        }
        count += 50;
        assert!(count < 5000, "the log is never purged");
    }
    cluster.damage_log(NodeId(3));
    cluster.boot(NodeId(3)).await;
    is_refilled(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_metadata_directory_was_wiped_never_founds_its_ranges_anew_and_is_refilled() {
    let mut cluster = with_a_stopped_node(64 << 20).await;
    cluster.host.disk.remove_dir_all(&cluster.dir(NodeId(3))).expect("wiped");
    // without the others it knows nothing and does nothing: it was a voter, and has forgotten its votes
    for node in [NodeId(1), NodeId(2)] {
        cluster.kill(node).await;
    }
    cluster.boot(NodeId(3)).await;
    assert_eq!(cluster.damaged(NodeId(3)).len(), RANGES);
    assert_eq!(cluster.nodes[&NodeId(3)].meta.status(), []);
    // one of the others is no quorum without it
    cluster.boot(NodeId(1)).await;
    let told = |cluster: &Cluster| {
        let damaged = cluster.damaged(NodeId(3));
        damaged.iter().all(|replica| replica.standing.contains("node-1 does not lead it"))
    };
    cluster.wait("it says what it waits for", told).await;
    cluster.boot(NodeId(2)).await;
    is_refilled(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_replaced_from_the_leader() {
    let mut cluster = with_a_stopped_node(64 << 20).await;
    let snapshot = cluster.dir(NodeId(3)).join("snapshots").join("range-1.snapshot");
    cluster.host.disk.replace(&snapshot, b"no snapshot").expect("written");
    cluster.boot(NodeId(3)).await;
    is_refilled(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_killed_in_the_middle_of_a_refill_leaves_it_to_the_next() {
    let mut cluster = with_a_stopped_node(64 << 20).await;
    let leader_of_two = |cluster: &Cluster| {
        let leader = cluster.leader(RANGE)?;
        (cluster.status(leader, RANGE).voters.len() == 2).then_some(leader)
    };
    for with_the_replica in [false, true] {
        cluster.damage_log(NodeId(3));
        cluster.boot(NodeId(3)).await;
        cluster.wait("it is taken out", |cluster| leader_of_two(cluster).is_some()).await;
        // where it has come in again between the two looks, others of the nine ranges are in the middle
        let leader = leader_of_two(&cluster).unwrap_or(NodeId(1));
        cluster.kill(leader).await;
        if with_the_replica {
            cluster.kill(NodeId(3)).await;
            cluster.boot(NodeId(3)).await;
        }
        cluster.boot(leader).await;
        cluster.wait("it is whole", Cluster::is_whole).await;
        has_all_keys(&cluster).await;
        cluster.kill(NodeId(3)).await;
    }
    cluster.boot(NodeId(3)).await;
    is_refilled(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_damaged_replicas_of_three_stay_refused_and_say_so() {
    let mut cluster = with_a_stopped_node(64 << 20).await;
    cluster.kill(NodeId(2)).await;
    for node in [NodeId(2), NodeId(3)] {
        cluster.damage_log(node);
        cluster.boot(node).await;
    }
    let told = |cluster: &Cluster| {
        [NodeId(2), NodeId(3)]
            .into_iter()
            .flat_map(|node| cluster.damaged(node))
            .all(|replica| replica.standing.contains("quorum"))
    };
    cluster.wait("both say what they wait for", told).await;
    let query = RangeQuery::Object { at: at("key-1"), bucket_epoch: Epoch(1), span: Span::Nothing };
    for node in cluster.voters.clone() {
        let meta = cluster.nodes[&node].meta.clone();
        assert!(meta.query(RANGE, EPOCH, query.clone()).await.is_err(), "nothing is invented");
    }
    for node in [NodeId(2), NodeId(3)] {
        assert_eq!(cluster.damaged(node).len(), RANGES);
        assert_eq!(cluster.nodes[&node].meta.status(), []);
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r10_an_old_image_of_a_node_is_refused_also_by_peers_that_have_restarted() {
    let mut cluster = with_a_stopped_node(64 << 20).await;
    let (dir, image) = (cluster.dir(NodeId(3)), cluster.directory.path().join("image"));
    cluster.copy_dir(&dir, &image);
    cluster.boot(NodeId(3)).await;
    let booted = cluster.boots;
    cluster.put("later", 1000).await;
    cluster.converge().await;
    for node in cluster.voters.clone() {
        cluster.kill(node).await;
    }
    for node in [NodeId(1), NodeId(2)] {
        cluster.boot(node).await;
    }
    // one start earlier, and another start of the same number
    for incarnation in [booted - 1, booted] {
        cluster.host.disk.remove_dir_all(&dir).expect("the disk is lost");
        cluster.copy_dir(&image, &dir);
        cluster.boot_as(NodeId(3), incarnation).await;
        let old = cluster.nodes[&NodeId(3)].meta.clone();
        let told = cluster.host.clock.timeout(PATIENCE, old.until_outdated()).await;
        assert!(told.expect("a peer says so").contains("old image"));
        cluster
            .wait("it has left its groups", |cluster| {
                cluster.nodes[&NodeId(3)].meta.status().is_empty()
            })
            .await;
        assert_eq!(cluster.get("later").await, Some(1000));
        cluster.put("without it", incarnation).await;
        cluster.kill(NodeId(3)).await;
    }
    cluster.stop_all().await;
}
