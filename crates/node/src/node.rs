//! A data node: its disks, and the cluster map by which it judges epochs.

use crate::copy::IncomingMoves;
use crate::disks::Disks;
use crate::gate::Gate;
use crate::pace::Pace;
use crate::service::DataService;
use crate::{DiskReport, GarbageJudge, Stores, shards};
use ashlar_host::{Host, TaskKind};
use ashlar_store::{Owner, Store, StoreConfig};
use ashlar_types::{ClusterId, ClusterMap, Disk, DiskId, DiskState, Epoch, NodeId, PgId};
use ashlar_wire::proto::data_server::DataServer;
use futures::future::join_all;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// So long a start waits for its disks: twice what the largest one may take after a crash. Those that take longer come
/// when they are open.
const OPEN_PATIENCE: Duration = Duration::from_secs(60);
/// So long a disk may take to close: one that does not answer is recovered by the next start.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
/// How often the disks are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a data node is started with.
#[derive(Debug, Clone)]
pub struct DataConfig {
    /// This node.
    pub node: NodeId,
    /// Its incarnation: what its ping answers.
    pub incarnation: u64,
    /// Its cluster.
    pub cluster: ClusterId,
    /// One directory a disk. They must exist.
    pub disks: Vec<PathBuf>,
    /// Which disk was in a directory when it was last open, for those of which that is known.
    pub known: BTreeMap<PathBuf, DiskId>,
    /// See [`StoreConfig`].
    pub small_segment_bytes: u64,
    /// See [`StoreConfig`].
    pub large_segment_bytes: u64,
    /// See [`StoreConfig`].
    pub reserve_bytes: u64,
    /// See [`StoreConfig`].
    pub direct_io: bool,
    /// Within this time every block of a disk is verified.
    pub scrub_cycle: Duration,
    /// What moves comes to each disk no faster; 0: as fast as it goes.
    pub move_bytes_per_second: u64,
}

/// Why a data node does not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataNodeError {
    /// None of its disks can be served; this is what the first one says.
    #[error("{0}")]
    NoDisk(String),
    /// A directory that is in use by this node already.
    #[error("{0} is a disk of this node already: name each directory once")]
    Twice(PathBuf),
    /// A disk that is to be added cannot be served.
    #[error("{0}")]
    NotAdded(String),
    /// No disk of this node.
    #[error("disk {0} is not in this node")]
    NoSuchDisk(DiskId),
}

/// A running data node.
pub struct DataNode {
    pub(crate) host: Host,
    pub(crate) config: DataConfig,
    disks: Arc<Disks>,
    map: watch::Sender<Arc<ClusterMap>>,
    /// The newest epoch of the map that it has heard of.
    heard: watch::Sender<Epoch>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) incoming: IncomingMoves,
    pub(crate) pace: Pace,
}

impl std::fmt::Debug for DataNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DataNode({})", self.config.node)
    }
}

impl DataNode {
    /// Opens all disks, at the same time. Those that cannot be opened are out, and the others are served; it fails only
    /// where none is.
    pub async fn start(host: Host, config: DataConfig) -> Result<Arc<Self>, DataNodeError> {
        let disks = Arc::new(Disks::default());
        let pace = Pace::new(config.move_bytes_per_second);
        let node = Self {
            host,
            config,
            disks: disks.clone(),
            map: watch::Sender::default(),
            heard: watch::Sender::default(),
            gate: Arc::default(),
            incoming: IncomingMoves::default(),
            pace,
        };
        for dir in &node.config.disks {
            disks.announce(dir, node.config.known.get(dir).copied())?;
        }
        for dir in &node.config.disks {
            node.open(dir, node.config.known.get(dir).copied());
        }
        let patience = node.host.clock.timeout(OPEN_PATIENCE, disks.all_settled()).await;
        if patience.is_err() {
            tracing::warn!("some disks take very long to open: the others are served meanwhile");
        }
        disks.start_ended();
        if patience.is_ok() && disks.served().is_empty() {
            let reports = disks.report();
            let why = reports.first().and_then(|report| report.condition.reason());
            return Err(DataNodeError::NoDisk(why.unwrap_or("no disk is named").to_owned()));
        }
        Ok(Arc::new(node))
    }

    /// Opens a directory that was announced, in the background.
    fn open(&self, dir: &Path, expects: Option<DiskId>) {
        let owner = Owner { cluster: self.config.cluster, node: self.config.node };
        let (host, disks, dir) = (self.host.clone(), self.disks.clone(), dir.to_owned());
        let config = StoreConfig { expects, ..store_config(&self.config, &dir) };
        let opening = async move {
            let opener = host.clone();
            let opened = host.tasks.run_blocking(move || Store::open(&opener, config, owner)).await;
            let unwanted = disks.settle(&dir, opened);
            disks.look();
            join_all(unwanted.iter().map(|store| close(&host, store))).await;
        };
        drop(self.host.tasks.spawn(TaskKind::Background("open a disk"), Box::pin(opening)));
    }

    /// Opens a further directory while the node runs; formats it, if it is empty. Where that fails nothing has changed.
    /// The cluster has to be told of the disk by the caller.
    pub async fn add_disk(&self, dir: &Path) -> Result<Disk, DataNodeError> {
        self.disks.announce(dir, None)?;
        self.open(dir, None);
        let mut served = self.disks.follow_served();
        loop {
            let stores = served.borrow_and_update().clone();
            if let Some(store) = stores.values().find(|store| store.dir() == dir) {
                return Ok(self.describe(store));
            }
            if let Some(why) = self.disks.forget(dir) {
                return Err(DataNodeError::NotAdded(why));
            }
            if served.changed().await.is_err() {
                return Err(DataNodeError::NotAdded("the node stops".to_owned()));
            }
        }
    }

    /// Closes a disk, or forgets one that is out, while the node runs; where it was. Nothing is moved away from it first:
    /// that it may go is for the caller to know.
    pub async fn close_disk(&self, disk: DiskId) -> Result<PathBuf, DataNodeError> {
        let (dir, store) = self.disks.take(disk).ok_or(DataNodeError::NoSuchDisk(disk))?;
        self.disks.look();
        if let Some(store) = store {
            close(&self.host, &store).await;
        }
        Ok(dir)
    }

    /// Takes a disk out of service that must not be served, and says why: as an old image, or a clone.
    pub async fn put_out(&self, disk: DiskId, why: &str) {
        let store = self.disks.put_out(disk, why);
        self.disks.look();
        if let Some(store) = store {
            close(&self.host, &store).await;
        }
    }

    /// Its disks, as it tells them the cluster when it boots.
    pub fn disks(&self) -> Vec<Disk> {
        self.stores().values().map(|store| self.describe(store)).collect()
    }

    fn describe(&self, store: &Store) -> Disk {
        let usage = store.usage();
        Disk {
            id: store.disk_id(),
            node: self.config.node,
            capacity_bytes: usage.capacity,
            incarnation: store.incarnation(),
            state: if usage.writable { DiskState::Healthy } else { DiskState::Suspect },
        }
    }

    /// The disks that are served now: they come and go.
    pub fn stores(&self) -> Stores {
        self.disks.served()
    }

    /// The store of a disk that is served.
    pub fn store(&self, disk: DiskId) -> Option<Store> {
        self.stores().get(&disk).cloned()
    }

    /// Follows which disks are served.
    pub fn follow_stores(&self) -> watch::Receiver<Stores> {
        self.disks.follow_served()
    }

    /// Why a disk of this node is not served: then what it has is unknown. `None`: it is served, or not of this node.
    pub fn why_out(&self, disk: DiskId) -> Option<String> {
        self.disks.why_out(disk)
    }

    /// How its disks are, by directory; also those that are not served.
    pub fn disk_reports(&self) -> Vec<DiskReport> {
        self.disks.report()
    }

    /// Follows how its disks are: the value changes with each disk that comes, goes, is suspect or out.
    pub fn follow_disks(&self) -> watch::Receiver<Vec<DiskReport>> {
        self.disks.follow()
    }

    /// Looks at the disks again and again: how full they are, and whether they answer. It goes on until it is dropped.
    pub async fn watch_disks(&self) {
        loop {
            self.look_at_disks().await;
            self.host.clock.sleep(LOOK_EVERY).await;
        }
    }

    /// Looks at the disks once. One that does not answer keeps the look waiting for no longer than a second.
    pub async fn look_at_disks(&self) {
        let stores = self.stores();
        let measures = stores.values().map(|store| async move {
            match self.host.clock.timeout(LOOK_EVERY, store.measure()).await {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(error)) => {
                    tracing::warn!(disk = %store.disk_id(), %error, "a disk could not be measured");
                }
            }
        });
        join_all(measures).await;
        self.disks.look();
        count(&self.disks.report());
    }

    /// Serves shards: to be mounted on the internal port.
    pub fn router(self: &Arc<Self>) -> axum::Router {
        shards::router(self.clone())
    }

    /// Serves the rest: to be mounted beside it. `judge` says what may be deleted.
    pub fn data_service(self: &Arc<Self>, judge: Arc<dyn GarbageJudge>) -> DataServer<DataService> {
        DataServer::new(DataService::new(self.clone(), judge))
    }

    /// From now on epochs are judged by this map. An older one than is known changes nothing.
    pub fn set_map(&self, map: Arc<ClusterMap>) {
        self.map.send_if_modified(|known| {
            let is_newer = map.epoch > known.epoch;
            if is_newer {
                *known = map;
            }
            is_newer
        });
    }

    /// As after a start.
    #[cfg(test)]
    pub(crate) fn forget_map(&self) {
        self.map.send_replace(Arc::default());
    }

    /// The map that it has.
    pub(crate) fn map(&self) -> Arc<ClusterMap> {
        self.map.borrow().clone()
    }

    /// The epoch of the map that it has.
    pub fn map_epoch(&self) -> Epoch {
        self.map.borrow().epoch
    }

    /// Somebody has a map of this epoch.
    pub(crate) fn heard_of(&self, epoch: Epoch) {
        self.heard.send_if_modified(|known| {
            let is_newer = epoch > *known;
            *known = epoch.max(*known);
            is_newer
        });
    }

    /// Whether it has heard of a newer map than it has.
    pub fn wants_map(&self) -> bool {
        *self.heard.borrow() > self.map_epoch()
    }

    /// Waits until its map has changed since `seen`.
    pub(crate) async fn map_changed(&self, seen: Epoch) {
        let mut maps = self.map.subscribe();
        drop(maps.wait_for(|map| map.epoch > seen).await);
    }

    /// Waits until its map has a group at this epoch or a later one.
    pub(crate) async fn until_epoch(&self, pg: PgId, epoch: Epoch) {
        let known =
            |map: &ClusterMap| map.groups.get(&pg).is_some_and(|group| group.epoch >= epoch);
        let map = self.map();
        if !known(&map) {
            // a group never gets ahead of the map
            self.heard_of(map.epoch.next());
        }
        let mut maps = self.map.subscribe();
        drop(maps.wait_for(|map| known(map)).await);
    }

    /// The epoch of a placement group; `None`: the map that this node has does not know it.
    pub(crate) fn pg_epoch(&self, pg: PgId) -> Option<Epoch> {
        self.map.borrow().groups.get(&pg).map(|group| group.epoch)
    }

    /// Closes all disks cleanly. Writes that come later are refused. A disk that does not answer is not waited for.
    pub async fn stop(&self) {
        let stores = self.disks.take_all();
        join_all(stores.iter().map(|store| close(&self.host, store))).await;
    }
}

async fn close(host: &Host, store: &Store) {
    if host.clock.timeout(CLOSE_PATIENCE, store.close()).await.is_err() {
        tracing::warn!(disk = %store.disk_id(), "a disk does not answer and is left as it is: the next start recovers it");
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge of a few disks")]
fn count(reports: &[DiskReport]) {
    for word in ["opening", "serving", "suspect", "out"] {
        let count = reports.iter().filter(|report| report.condition.word() == word).count();
        metrics::gauge!("ashlar_data_disks", "condition" => word).set(count as f64);
    }
}

fn store_config(config: &DataConfig, dir: &Path) -> StoreConfig {
    StoreConfig {
        dir: dir.to_owned(),
        small_segment_bytes: config.small_segment_bytes,
        large_segment_bytes: config.large_segment_bytes,
        reserve_bytes: config.reserve_bytes,
        expects: None,
        direct_io: config.direct_io,
    }
}
