//! A data node: its disks, and the cluster map by which it judges epochs.

use crate::service::DataService;
use crate::{GarbageJudge, shards};
use ashlar_host::Host;
use ashlar_store::{Owner, Store, StoreConfig, StoreError};
use ashlar_types::{ClusterId, ClusterMap, Disk, DiskId, DiskState, Epoch, NodeId, PgId};
use ashlar_wire::proto::data_server::DataServer;
use futures::future::join_all;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

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
}

/// Why a data node does not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataNodeError {
    /// A disk cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Two directories hold the same disk: one is a copy of the other.
    #[error("{first} and {second} are the same disk, {disk}: one is a copy; start without it")]
    SameDisk {
        /// The disk.
        disk: DiskId,
        /// A directory.
        first: String,
        /// Another one.
        second: String,
    },
}

/// A running data node.
pub struct DataNode {
    pub(crate) host: Host,
    pub(crate) config: DataConfig,
    stores: BTreeMap<DiskId, Store>,
    map: RwLock<Arc<ClusterMap>>,
}

impl std::fmt::Debug for DataNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DataNode({})", self.config.node)
    }
}

impl DataNode {
    /// Opens all disks, at the same time. If one cannot be opened, the others are closed again.
    pub async fn start(host: Host, config: DataConfig) -> Result<Arc<Self>, DataNodeError> {
        let owner = Owner { cluster: config.cluster, node: config.node };
        let opening = config.disks.iter().map(|dir| {
            let (host, store) = (host.clone(), store_config(&config, dir));
            let tasks = host.tasks.clone();
            async move { tasks.run_blocking(move || Store::open(&host, store, owner)).await }
        });
        let opened = join_all(opening).await;
        let failure = opened.iter().find_map(|result| result.as_ref().err().cloned());
        let stores: Vec<Store> = opened.into_iter().flatten().collect();
        let failure = failure.map(DataNodeError::Store).or_else(|| same_disk(&stores));
        if let Some(failure) = failure {
            join_all(stores.iter().map(Store::close)).await;
            return Err(failure);
        }
        let stores = stores.into_iter().map(|store| (store.disk_id(), store)).collect();
        Ok(Arc::new(Self { host, config, stores, map: RwLock::default() }))
    }

    /// Its disks, as it tells them the cluster when it boots.
    pub fn disks(&self) -> Vec<Disk> {
        let disk = |store: &Store| {
            let usage = store.usage();
            Disk {
                id: store.disk_id(),
                node: self.config.node,
                capacity_bytes: usage.capacity,
                incarnation: store.incarnation(),
                state: if usage.writable { DiskState::Healthy } else { DiskState::Suspect },
            }
        };
        self.stores.values().map(disk).collect()
    }

    /// The stores, by disk.
    pub fn stores(&self) -> &BTreeMap<DiskId, Store> {
        &self.stores
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
        let mut known = self.map.write().unwrap_or_else(PoisonError::into_inner);
        if map.epoch >= known.epoch {
            *known = map;
        }
    }

    /// The epoch of the map that it has.
    pub fn map_epoch(&self) -> Epoch {
        self.map.read().unwrap_or_else(PoisonError::into_inner).epoch
    }

    /// The epoch of a placement group; `None`: the map that this node has does not know it.
    pub(crate) fn pg_epoch(&self, pg: PgId) -> Option<Epoch> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        map.groups.get(&pg).map(|group| group.epoch)
    }

    /// Closes all disks cleanly. Writes that come later are refused.
    pub async fn stop(&self) {
        join_all(self.stores.values().map(Store::close)).await;
    }
}

fn store_config(config: &DataConfig, dir: &std::path::Path) -> StoreConfig {
    StoreConfig {
        dir: dir.to_owned(),
        small_segment_bytes: config.small_segment_bytes,
        large_segment_bytes: config.large_segment_bytes,
        reserve_bytes: config.reserve_bytes,
        direct_io: config.direct_io,
    }
}

fn same_disk(stores: &[Store]) -> Option<DataNodeError> {
    let mut seen: BTreeMap<DiskId, &Store> = BTreeMap::new();
    for store in stores {
        if let Some(first) = seen.insert(store.disk_id(), store) {
            let show = |store: &Store| store.dir().display().to_string();
            let (first, second) = (show(first), show(store));
            return Some(DataNodeError::SameDisk { disk: store.disk_id(), first, second });
        }
    }
    None
}
