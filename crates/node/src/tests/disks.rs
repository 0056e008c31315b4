//! A node with one bad disk serves the others, says which one is out and why, and says of its shards that they are unknown,
//! never that they are absent (D2); and disks come and go while it runs.

use super::*;
use crate::{DataNodeError, DiskCondition};
use ashlar_host::{Disk as _, Fault, FaultyDisk, Operation, RealDisk, Trouble};
use std::io;
use std::path::Path;

/// A node with disks of which one may go bad.
struct Several {
    root: tempfile::TempDir,
    faulty: FaultyDisk,
    host: Host,
    dirs: Vec<PathBuf>,
}

impl Drop for Several {
    /// Lest a test that fails waits for what hangs.
    fn drop(&mut self) {
        self.faulty.heal();
    }
}

impl Several {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let dirs: Vec<PathBuf> = ["a", "b", "c"].map(|name| root.path().join(name)).into();
        for dir in &dirs {
            RealDisk.create_dir_all(dir).unwrap();
        }
        let faulty = FaultyDisk::new(Arc::new(RealDisk));
        let host = Host::real().with_disk(Arc::new(faulty.clone()));
        Self { root, faulty, host, dirs }
    }

    async fn start(&self) -> Arc<DataNode> {
        self.start_with(config(self.dirs.clone())).await.unwrap()
    }

    async fn start_with(&self, config: DataConfig) -> Result<Arc<DataNode>, DataNodeError> {
        let node = DataNode::start(self.host.clone(), config).await?;
        node.set_map(some_map());
        Ok(node)
    }

    /// Which disk is in which directory.
    fn known(node: &DataNode) -> BTreeMap<PathBuf, DiskId> {
        let reports = node.disk_reports().into_iter();
        reports.filter_map(|report| Some((report.dir, report.disk?))).collect()
    }
}

fn at(disk: DiskId, counter: u64) -> ShardPath {
    ShardPath { disk, extent: ExtentId { session: SessionId(5), counter }, slot: Slot(2) }
}

async fn send(node: &Arc<DataNode>, request: Request<Body>) -> Response<Body> {
    node.router().oneshot(request).await.unwrap()
}

async fn put(node: &Arc<DataNode>, path: &ShardPath, length: usize) -> Response<Body> {
    let request = Request::put(format!("{path}?{}", facts(length)));
    send(node, request.body(Body::from(bytes(length))).unwrap()).await
}

async fn get(node: &Arc<DataNode>, path: &ShardPath) -> Response<Body> {
    send(node, Request::get(path.to_string()).body(Body::empty()).unwrap()).await
}

fn condition(node: &DataNode, dir: &Path) -> DiskCondition {
    let reports = node.disk_reports().into_iter();
    reports.filter(|report| report.dir == dir).map(|report| report.condition).next().unwrap()
}

#[tokio::test]
async fn a_disk_that_cannot_be_opened_is_out_and_the_others_are_served() {
    let several = Several::new();
    let node = several.start().await;
    let known = Several::known(&node);
    let bad = known[&several.dirs[1]];
    let good = known[&several.dirs[0]];
    assert_eq!(put(&node, &at(bad, 1), 10).await.status(), StatusCode::OK);
    node.stop().await;
    let error = Trouble::Error(io::ErrorKind::Other);
    several.faulty.add(Fault::always(Operation::Read, error).on("/b/"));
    let config = DataConfig { known, ..config(several.dirs.clone()) };
    let node = several.start_with(config).await.unwrap();
    assert_eq!(node.stores().len(), 2);
    let DiskCondition::Out(why) = condition(&node, &several.dirs[1]) else { panic!("it is out") };
    assert!(why.contains("/b/ashlar.super"), "{why}");

    // what it has is unknown: neither absent, nor a disk that this node does not have
    let read = get(&node, &at(bad, 1)).await;
    assert_eq!(refusal(&read), Some(ShardRefusal::Io));
    assert_eq!(refusal(&put(&node, &at(bad, 2), 10).await), Some(ShardRefusal::Io));
    let never = get(&node, &at(DiskId(9), 1)).await;
    assert_eq!(refusal(&never), Some(ShardRefusal::UnknownDisk));
    let extent = at(bad, 1).extent;
    let judge = Queue(Some(vec![extent]));
    let name = ShardName { disk: bad, extent, slot: Slot(2) };
    let request = CollectShards { at: KeyPoint::new(BucketId(42), []), shards: vec![name] };
    assert_eq!(node.collect(&judge, &request).await.unwrap(), [CollectOutcome::Failed]);

    // the cluster is not told that it is gone, and gateways are told to write nothing to it
    assert!(node.disks().iter().all(|disk| disk.id != bad));
    let service = crate::DataService::new(node.clone(), Arc::new(Queue(None)));
    let ping =
        service.ping(tonic::Request::new(PingRequest::default())).await.unwrap().into_inner();
    let told = ping.disks.iter().find(|disk| disk.disk == bad.0.to_be_bytes()[..]).unwrap();
    assert!(!told.writable && ping.disks.len() == 3);
    assert_eq!(put(&node, &at(good, 3), 10).await.status(), StatusCode::OK);
    assert_eq!(get(&node, &at(good, 3)).await.status(), StatusCode::OK);
    node.stop().await;
}

#[tokio::test]
async fn a_node_of_which_no_disk_can_be_served_says_why() {
    let several = Several::new();
    let missing = vec![several.root.path().join("nowhere")];
    let error = several.start_with(config(missing)).await.unwrap_err();
    assert!(error.to_string().contains("nowhere does not exist"), "{error}");
    let doubled = vec![several.dirs[0].clone(), several.dirs[0].clone()];
    let error = several.start_with(config(doubled)).await.unwrap_err();
    assert_eq!(error, DataNodeError::Twice(several.dirs[0].clone()));
}

#[tokio::test]
async fn a_copied_disk_is_out_with_its_copy_and_the_others_are_served() {
    let several = Several::new();
    let node = several.start().await;
    let known = Several::known(&node);
    node.stop().await;
    let disk: &dyn ashlar_host::Disk = &several.faulty;
    let superblock = disk.read(&several.dirs[0].join("ashlar.super")).unwrap();
    disk.replace(&several.dirs[1].join("ashlar.super"), &superblock).unwrap();
    let node = several.start().await;
    let served: Vec<DiskId> = node.stores().keys().copied().collect();
    assert_eq!(served, [known[&several.dirs[2]]]);
    for dir in &several.dirs[..2] {
        let DiskCondition::Out(why) = condition(&node, dir) else { panic!("it is out") };
        assert!(why.contains("are the same disk"), "{why}");
    }
    let unknown = get(&node, &at(known[&several.dirs[0]], 1)).await;
    assert_eq!(refusal(&unknown), Some(ShardRefusal::Io));
    node.stop().await;
    let node = several.start_with(config(several.dirs[..1].to_vec())).await.unwrap();
    assert_eq!(node.disks().len(), 1, "without the copy it is a disk again");
    // a copy that is added to it later is refused, and changes nothing
    let error = node.add_disk(&several.dirs[1]).await.unwrap_err();
    assert!(error.to_string().contains("are the same disk"), "{error}");
    assert_eq!((node.disks().len(), node.disk_reports().len()), (1, 1));
    node.stop().await;
}

#[tokio::test]
async fn a_directory_whose_disk_is_not_mounted_is_not_formatted() {
    let several = Several::new();
    let node = several.start().await;
    let known = Several::known(&node);
    node.stop().await;
    // the mount point that is left when the file system of the second disk does not come up
    RealDisk.rename(&several.dirs[1], &several.root.path().join("unmounted")).unwrap();
    RealDisk.create_dir_all(&several.dirs[1]).unwrap();
    let config = DataConfig { known: known.clone(), ..config(several.dirs.clone()) };
    let node = several.start_with(config.clone()).await.unwrap();
    let DiskCondition::Out(why) = condition(&node, &several.dirs[1]) else { panic!("it is out") };
    assert!(why.contains("mount it"), "{why}");
    assert_eq!(node.why_out(known[&several.dirs[1]]), Some(why));
    assert_eq!(RealDisk.list(&several.dirs[1]).unwrap().len(), 1, "the lock alone");
    node.stop().await;
    // disks that have changed places are what their superblocks say
    RealDisk.remove_dir_all(&several.dirs[1]).unwrap();
    RealDisk.rename(&several.dirs[0], &several.dirs[1]).unwrap();
    RealDisk.rename(&several.root.path().join("unmounted"), &several.dirs[0]).unwrap();
    let node = several.start_with(config).await.unwrap();
    assert_eq!(node.stores().len(), 3);
    assert_eq!(Several::known(&node)[&several.dirs[0]], known[&several.dirs[1]]);
    node.stop().await;
}

#[tokio::test]
async fn a_disk_that_is_removed_while_it_runs_is_suspect_and_keeps_nobody_waiting() {
    let several = Several::new();
    let node = several.start().await;
    let known = Several::known(&node);
    let [good, bad] = [0, 2].map(|at| known[&several.dirs[at]]);
    for disk in [good, bad] {
        assert_eq!(put(&node, &at(disk, 1), 100_000).await.status(), StatusCode::OK);
    }
    let mut followed = node.follow_disks();
    for operation in [Operation::Read, Operation::Write, Operation::Sync, Operation::Name] {
        several.faulty.add(Fault::always(operation, Trouble::Error(io::ErrorKind::Other)).on("/c"));
    }
    assert_eq!(refusal(&put(&node, &at(bad, 2), 10).await), Some(ShardRefusal::Io));
    assert_eq!(refusal(&put(&node, &at(bad, 3), 10).await), Some(ShardRefusal::NotWritable));
    let read = get(&node, &at(bad, 1)).await;
    assert_eq!(refusal(&read), Some(ShardRefusal::Io), "it is there, and cannot be read");
    node.look_at_disks().await;
    followed.wait_for(|all| all.iter().any(|r| r.condition.word() == "suspect")).await.unwrap();
    assert!(matches!(condition(&node, &several.dirs[2]), DiskCondition::Suspect(_)));
    assert_eq!(put(&node, &at(good, 2), 10).await.status(), StatusCode::OK);
    assert_eq!(get(&node, &at(good, 1)).await.status(), StatusCode::OK);
    node.stop().await;
    several.faulty.heal();
    let node = several.start().await;
    assert_eq!(get(&node, &at(bad, 1)).await.status(), StatusCode::OK);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_hangs_holds_up_neither_the_others_nor_the_stop() {
    let several = Several::new();
    let node = several.start().await;
    let known = Several::known(&node);
    let [good, bad] = [0, 1].map(|at| known[&several.dirs[at]]);
    for counter in 1..4 {
        assert_eq!(put(&node, &at(bad, counter), 100_000).await.status(), StatusCode::OK);
    }
    for operation in [Operation::Read, Operation::Write, Operation::Sync] {
        several.faulty.add(Fault::always(operation, Trouble::Hang).on("/b/"));
    }
    // more reads than the disk may have at once, and a write
    let hanging: Vec<_> = (0..200_u64).map(|n| spawn_get(&node, at(bad, 1 + n % 3))).collect();
    let writing = spawn_put(&node, at(bad, 10));
    while several.faulty.hanging() < 60 {
        several.host.clock.sleep(Duration::from_millis(5)).await;
    }
    for counter in 1..20 {
        assert_eq!(put(&node, &at(good, counter), 70_000).await.status(), StatusCode::OK);
        assert_eq!(get(&node, &at(good, counter)).await.status(), StatusCode::OK);
    }
    assert_eq!(node.disks().len(), 3, "what is asked about all disks waits for none");
    // after some seconds it is known that it does not answer, and nothing is sent there any more
    while !matches!(condition(&node, &several.dirs[1]), DiskCondition::Suspect(_)) {
        several.host.clock.sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(refusal(&put(&node, &at(bad, 11), 10).await), Some(ShardRefusal::NotWritable));
    node.stop().await;
    several.faulty.heal();
    for task in hanging {
        task.await.unwrap();
    }
    writing.await.unwrap();
}

#[expect(clippy::disallowed_methods, reason = "a test has many requests under way")]
fn spawn_get(node: &Arc<DataNode>, path: ShardPath) -> tokio::task::JoinHandle<StatusCode> {
    let node = node.clone();
    tokio::spawn(async move { get(&node, &path).await.status() })
}

#[expect(clippy::disallowed_methods, reason = "a test has many requests under way")]
fn spawn_put(node: &Arc<DataNode>, path: ShardPath) -> tokio::task::JoinHandle<StatusCode> {
    let node = node.clone();
    tokio::spawn(async move { put(&node, &path, 10).await.status() })
}

#[tokio::test]
async fn disks_come_and_go_while_the_node_runs() {
    let several = Several::new();
    let node = several.start_with(config(several.dirs[..1].to_vec())).await.unwrap();
    let added = node.add_disk(&several.dirs[1]).await.unwrap();
    assert_eq!((node.disks().len(), added.node), (2, NodeId(3)));
    assert_eq!(put(&node, &at(added.id, 1), 100_000).await.status(), StatusCode::OK);
    let twice = node.add_disk(&several.dirs[1]).await.unwrap_err();
    assert_eq!(twice, DataNodeError::Twice(several.dirs[1].clone()));
    let missing = node.add_disk(&several.root.path().join("nowhere")).await.unwrap_err();
    assert!(matches!(missing, DataNodeError::NotAdded(_)), "{missing}");
    assert_eq!(node.disk_reports().len(), 2, "what could not be added leaves nothing");

    assert_eq!(node.close_disk(added.id).await.unwrap(), several.dirs[1]);
    assert_eq!(node.close_disk(added.id).await, Err(DataNodeError::NoSuchDisk(added.id)));
    let gone = get(&node, &at(added.id, 1)).await;
    assert_eq!(refusal(&gone), Some(ShardRefusal::UnknownDisk));
    let again = node.add_disk(&several.dirs[1]).await.unwrap();
    assert_eq!((again.id, again.incarnation), (added.id, added.incarnation + 1));
    assert_eq!(get(&node, &at(added.id, 1)).await.status(), StatusCode::OK);

    node.put_out(added.id, "it is an old image").await;
    assert_eq!(refusal(&get(&node, &at(added.id, 1)).await), Some(ShardRefusal::Io));
    assert_eq!(node.disks().len(), 1);
    node.stop().await;
}
