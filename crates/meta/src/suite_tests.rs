//! The consensus library's own suite over our log and state machine.

use crate::birth::Births;
use crate::ledger::Versions;
use crate::log::LogStore;
use crate::machine::{Machine, State};
use crate::raft::Types;
use crate::snapshot::Snapshots;
use ashlar_host::Host;
use ashlar_map::MemMap;
use ashlar_types::{
    BucketId, ClusterId, Epoch, Interval, KeyPoint, NodeId, RangeDescriptor, RangeId,
};
use ashlar_wal::{Record, Wal, WalConfig};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tempfile::TempDir;

/// One WAL for all stores of the suite: each is a group of its own, as in a node.
struct Stores {
    host: Host,
    directory: TempDir,
    wal: Wal,
    groups: AtomicU64,
}

impl StoreBuilder<Types, LogStore, Machine, ()> for Stores {
    async fn build(&self) -> Result<((), LogStore, Machine), StorageError<Types>> {
        let id = self.groups.fetch_add(1, Ordering::Relaxed);
        let descriptor = RangeDescriptor {
            id: RangeId(id),
            epoch: Epoch(1),
            interval: Interval {
                start: KeyPoint::least(),
                end: Some(KeyPoint::new(BucketId(9), [])),
            },
            voters: Vec::new(),
        };
        let record = Record::Created { first: Vec::new().into() };
        self.wal.submit_durable(RangeId(id), record).await.expect("created");
        let log = LogStore::new(self.wal.clone(), RangeId(id), None, self.host.clock.clone());
        let snapshots =
            Snapshots::new(self.host.disk.clone(), self.directory.path().to_owned(), id);
        let map = Arc::new(MemMap::default());
        let state = State::open(
            &self.host,
            map,
            descriptor,
            snapshots,
            self.wal.clone(),
            Versions::default(),
        );
        let (cluster, node) = (ClusterId(1), NodeId(1));
        let births = Births { cluster, node, nursery: Arc::default() };
        let state = Arc::new(state.expect("no snapshot yet"));
        let machine = Machine::new(state, births, None).expect("empty");
        Ok(((), log, machine))
    }
}

#[tokio::test]
async fn the_librarys_own_storage_suite_passes() {
    let directory = tempfile::tempdir().expect("a directory");
    let host = Host::real();
    let config = WalConfig { file_bytes: 4 << 20, ..WalConfig::new(directory.path().join("wal")) };
    let wal = Wal::open(&host, config).expect("an empty WAL");
    let stores = Stores { host, directory, wal: wal.clone(), groups: AtomicU64::new(1) };
    Suite::test_all(stores).await.expect("the suite passes");
    wal.close().await;
}
