//! The log against a tiny model, on a disk that forgets what was not synced.

mod crash;
mod crash_states;
mod damage;
mod group_commit;

use crate::limits::Limits;
use crate::{Entry, GroupState, Record, Wal, WalConfig, WalError};
use ashlar_host::{Clock, Host, RealClock, RealNetwork, RealTasks, SeededRandom, SimDisk};
use ashlar_types::RangeId;
use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

pub(crate) const DIR: &str = "/wal";

/// A host of one life on `disk`.
pub(crate) fn host(disk: &SimDisk) -> Host {
    let clock: Arc<dyn Clock> = Arc::new(RealClock::default());
    Host {
        clock,
        random: Arc::new(SeededRandom::new(7)),
        disk: Arc::new(disk.boot()),
        network: Arc::new(RealNetwork),
        tasks: Arc::new(RealTasks),
        shutdown: ashlar_host::Shutdown::default(),
    }
}

pub(crate) fn config(file_bytes: u64) -> WalConfig {
    WalConfig { dir: PathBuf::from(DIR), file_bytes, spare_files: 1 }
}

/// Small enough that files switch, payloads leave memory and cold entries move within a few records.
pub(crate) const SMALL: Limits =
    Limits { queue_bytes: 64 << 10, cache_bytes: 512, pinned_files: 2, move_bytes: 1024 };

pub(crate) fn open(disk: &SimDisk) -> Wal {
    Wal::open_with(&host(disk), config(8192), SMALL).unwrap()
}

/// Submits, and waits for the answer.
pub(crate) fn put(wal: &Wal, group: u64, record: Record) -> Result<(), WalError> {
    let (sender, receiver) = mpsc::sync_channel(1);
    wal.submit(RangeId(group), record, Box::new(move |result| sender.send(result).unwrap()))?;
    receiver.recv().unwrap()
}

/// Waits until both threads have ended.
pub(crate) fn close(wal: &Wal) {
    futures_block(wal.close());
}

fn futures_block(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work);
}

pub(crate) fn entry(index: u64, term: u64, bytes: usize) -> Entry {
    let fill = u8::try_from((index * 31 + term) % 251).unwrap();
    Entry { index, term, payload: Bytes::from(vec![fill; bytes]) }
}

pub(crate) fn entries(wal: &Wal, group: u64) -> Vec<Entry> {
    let state = wal.state(RangeId(group));
    match (state.first_index, state.last) {
        (Some(first), Some((last, _))) => wal.read(RangeId(group), first, last + 1).unwrap(),
        _ => Vec::new(),
    }
}

pub(crate) fn state(wal: &Wal, group: u64) -> GroupState {
    wal.state(RangeId(group))
}

pub(crate) fn files(disk: &SimDisk) -> Vec<PathBuf> {
    let disk: &dyn ashlar_host::Disk = disk;
    let paths = disk.list(Path::new(DIR)).unwrap();
    paths.into_iter().filter(|path| crate::files::number(path).is_some()).collect()
}
