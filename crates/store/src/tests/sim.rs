//! A store on a simulated disk, what is known of its shards, and waiting for its figures.

use super::{content, key};
use crate::{Owner, ShardKey, Space, Store, StoreConfig, StoreError};
use ashlar_host::{CutStyle, Disk, Host, SimDisk};
use ashlar_types::{ClusterId, NodeId};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(super) const DIR: &str = "/disk";
pub(super) const LARGE: usize = 300_000;

pub(super) fn new_disk() -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new(DIR)).unwrap();
    disk
}

pub(super) async fn open(disk: &SimDisk) -> Store {
    open_with(disk, 0).await
}

pub(super) async fn open_with(disk: &SimDisk, reserve_bytes: u64) -> Store {
    let host = Host::real().with_disk(Arc::new(disk.boot()));
    let config = StoreConfig {
        dir: DIR.into(),
        small_segment_bytes: 256 * 1024,
        large_segment_bytes: 2 << 20,
        reserve_bytes,
        expects: None,
        direct_io: false,
    };
    let owner = Owner { cluster: ClusterId(1), node: NodeId(1) };
    let tasks = host.tasks.clone();
    let opened = tasks.run_blocking(move || Store::open(&host, config, owner)).await;
    opened.expect("the disk opens")
}

pub(super) async fn put(store: &Store, counter: u64, length: usize) -> Result<(), StoreError> {
    super::put(store, counter, length).await
}

pub(super) async fn delete(store: &Store, counters: impl IntoIterator<Item = u64>) {
    let keys: Vec<ShardKey> = counters.into_iter().map(key).collect();
    assert_eq!(store.delete_many(&keys).await, vec![Ok(true); keys.len()]);
}

/// Waits until the figures are as wanted.
pub(super) async fn until(store: &Store, what: &str, wanted: impl Fn(&Space) -> bool) -> Space {
    for _ in 0..2_000 {
        let space = store.space();
        if wanted(&space) {
            return space;
        }
        store.core.host.clock.sleep(Duration::from_millis(5)).await;
    }
    panic!("{what}: {:?}", store.space());
}

/// Another disk with the same files: what a process that dies now leaves.
pub(super) fn copy_of(disk: &SimDisk) -> SimDisk {
    let copy = new_disk();
    let (from, to): (&dyn Disk, &dyn Disk) = (disk, &copy);
    for dir in ["", "seg", "free", "idx"] {
        let dir = Path::new(DIR).join(dir);
        to.create_dir_all(&dir).unwrap();
        for path in from.list(&dir).unwrap() {
            if let Ok(bytes) = from.read(&path) {
                to.replace(&path, &bytes).unwrap();
            }
        }
    }
    copy
}

pub(super) fn used(disk: &SimDisk) -> u64 {
    let usage = disk.usage(Path::new(DIR)).unwrap();
    usage.total_bytes - usage.free_bytes
}

pub(super) fn segments(disk: &SimDisk, class: &str) -> Vec<PathBuf> {
    let is_class = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(class);
    disk.list(&Path::new(DIR).join("seg")).unwrap().into_iter().filter(is_class).collect()
}

pub(super) fn lose_checkpoints(disk: &SimDisk) {
    for path in disk.list(&Path::new(DIR).join("idx")).unwrap() {
        disk.remove_file(&path).unwrap();
    }
    disk.sync_dir(&Path::new(DIR).join("idx")).unwrap();
}

/// What a client knows of a shard after a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    There(usize),
    Gone,
    /// Being written or deleted when the power went: there as a whole, or not at all.
    Either(usize),
}

pub(super) async fn assert_knows(store: &Store, known: &BTreeMap<u64, Known>, when: &str) {
    assert_eq!(store.recovered().damaged, 0, "{when}");
    for (&counter, &known) in known {
        let length = store.meta(key(counter)).map(|meta| meta.length);
        let read = store.read(key(counter), 0, length.unwrap_or_default()).await;
        match known {
            Known::There(length) => {
                assert_eq!(read, Ok(content(counter, length)), "{when}: {counter} is there");
            }
            Known::Gone => {
                assert_eq!(read, Err(StoreError::NotFound), "{when}: {counter} is deleted");
            }
            Known::Either(length) if read != Err(StoreError::NotFound) => {
                assert_eq!(read, Ok(content(counter, length)), "{when}: {counter} may be there");
            }
            Known::Either(_) => {}
        }
    }
}

/// Puts, or deletes, and notes what is known then. `false`: the power went.
pub(super) async fn note_put(
    store: &Store,
    known: &mut BTreeMap<u64, Known>,
    counter: u64,
    length: usize,
) -> bool {
    known.insert(counter, Known::Either(length));
    let is_done = put(store, counter, length).await.is_ok();
    if is_done {
        known.insert(counter, Known::There(length));
    }
    is_done
}

pub(super) async fn note_delete(
    store: &Store,
    known: &mut BTreeMap<u64, Known>,
    counters: &[u64],
) -> bool {
    for counter in counters {
        if let Some(Known::There(length)) = known.get(counter).copied() {
            known.insert(*counter, Known::Either(length));
        }
    }
    let keys: Vec<ShardKey> = counters.iter().copied().map(key).collect();
    let is_done = store.delete_many(&keys).await.iter().all(Result::is_ok);
    if is_done {
        known.extend(counters.iter().map(|&counter| (counter, Known::Gone)));
    }
    is_done
}

/// Waits until all that can be given back is; `false`: the power went.
pub(super) async fn wait_for_room(store: &Store) -> bool {
    for counter in 1_000.. {
        let space = store.space();
        if space.dead_records == 0 && space.waiting_bytes == 0 {
            return true;
        }
        // this fails when the power has gone
        if put(store, counter, 1).await.is_err() || store.delete(key(counter)).await.is_err() {
            return false;
        }
        store.core.host.clock.sleep(Duration::from_millis(1)).await;
        if counter > 1_500 {
            return true;
        }
    }
    false
}

pub(super) fn style(step: u64) -> CutStyle {
    match step % 4 {
        0 => CutStyle::DropAll,
        1 => CutStyle::KeepAll,
        _ => CutStyle::Torn { seed: step },
    }
}
