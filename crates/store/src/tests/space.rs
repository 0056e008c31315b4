//! Room comes back: of deleted shards, of writers that gave up, of segments in which nothing lives; not before the
//! tombstone is durable and the last reader has left; and a cut at any step loses nothing and brings nothing back
//! (C1, C6, D9).

use super::{content, key, meta};
use crate::readers::Reading;
use crate::{Owner, ShardKey, Space, Store, StoreConfig, StoreError};
use ashlar_host::{CutStyle, Disk, Host, SimDisk};
use ashlar_types::{ClusterId, NodeId};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const DIR: &str = "/disk";
const LARGE: usize = 300_000;

fn new_disk() -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new(DIR)).unwrap();
    disk
}

async fn try_open(disk: &SimDisk) -> Result<Store, StoreError> {
    let host = Host::real().with_disk(Arc::new(disk.boot()));
    let config = StoreConfig {
        dir: DIR.into(),
        small_segment_bytes: 256 * 1024,
        large_segment_bytes: 2 << 20,
        reserve_bytes: 0,
        direct_io: false,
    };
    let owner = Owner { cluster: ClusterId(1), node: NodeId(1) };
    let tasks = host.tasks.clone();
    tasks.run_blocking(move || Store::open(&host, config, owner)).await
}

async fn open(disk: &SimDisk) -> Store {
    try_open(disk).await.expect("the disk opens")
}

async fn put(store: &Store, counter: u64, length: usize) -> Result<(), StoreError> {
    super::put(store, counter, length).await
}

async fn delete(store: &Store, counters: impl IntoIterator<Item = u64>) {
    let keys: Vec<ShardKey> = counters.into_iter().map(key).collect();
    assert_eq!(store.delete_many(&keys).await, vec![Ok(true); keys.len()]);
}

/// Waits until the figures are as wanted.
async fn until(store: &Store, what: &str, wanted: impl Fn(&Space) -> bool) -> Space {
    for _ in 0..2_000 {
        let space = store.space();
        if wanted(&space) {
            return space;
        }
        store.core.host.clock.sleep(Duration::from_millis(5)).await;
    }
    panic!("{what}: {:?}", store.space());
}

fn used(disk: &SimDisk) -> u64 {
    let usage = disk.usage(Path::new(DIR)).unwrap();
    usage.total_bytes - usage.free_bytes
}

fn segments(disk: &SimDisk, class: &str) -> Vec<PathBuf> {
    let is_class = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(class);
    disk.list(&Path::new(DIR).join("seg")).unwrap().into_iter().filter(is_class).collect()
}

fn lose_checkpoints(disk: &SimDisk) {
    for path in disk.list(&Path::new(DIR).join("idx")).unwrap() {
        disk.remove_file(&path).unwrap();
    }
    disk.sync_dir(&Path::new(DIR).join("idx")).unwrap();
}

#[tokio::test]
async fn a_deleted_large_shard_gives_its_room_back_for_good() {
    let disk = new_disk();
    let store = open(&disk).await;
    for counter in 0..6 {
        put(&store, counter, LARGE).await.unwrap();
    }
    put(&store, 10, 10).await.unwrap();
    until(&store, "the small segment is prefilled", |space| space.small_bytes == 262_144).await;
    let before = used(&disk);
    delete(&store, 1..4).await;
    let span = crate::format::large_span(LARGE as u64);
    let is_done = |space: &Space| space.reclaimed_bytes == 3 * span && space.dead_records == 0;
    assert_eq!(until(&store, "three are punched", is_done).await.waiting_bytes, 0);
    assert!(before - used(&disk) > 3 * span - 8192, "{before} {}", used(&disk));
    disk.cut(CutStyle::DropAll);
    assert!(before - used(&disk) > 3 * span - 8192, "the holes are durable");
    for with_checkpoint in [true, false] {
        if !with_checkpoint {
            lose_checkpoints(&disk);
        }
        let store = open(&disk).await;
        assert_eq!(store.recovered().damaged, 0);
        let left: Vec<_> = store.list(None, 10).iter().map(|m| m.key.extent.counter).collect();
        assert_eq!(left, [0, 4, 5, 10], "the scan goes on behind a hole");
        for counter in [0, 4, 5] {
            super::assert_reads(&store, counter, LARGE).await;
        }
        disk.cut(CutStyle::DropAll);
    }
}

#[tokio::test]
async fn room_is_given_back_when_the_last_reader_has_left_and_not_before() {
    let disk = new_disk();
    let store = open(&disk).await;
    put(&store, 1, LARGE).await.unwrap();
    let reading = Reading::enter(&store.core);
    let entry = store.core.index.read().unwrap().get(&key(1)).cloned().unwrap();
    delete(&store, [1]).await;
    assert_eq!(store.read(key(1), 0, 1).await, Err(StoreError::NotFound));
    // the committer has had its chance when it has answered again
    put(&store, 2, 10).await.unwrap();
    put(&store, 3, 10).await.unwrap();
    let space = store.space();
    assert!(space.waiting_bytes > LARGE as u64 && space.reclaimed_bytes == 0, "{space:?}");
    assert_eq!(entry.read(&store.core.pool, 0, LARGE as u64), Ok(content(1, LARGE)));
    drop(reading);
    until(&store, "it is punched", |space| space.waiting_bytes == 0 && space.dead_records == 0)
        .await;
    let verdict = entry.read(&store.core.pool, 0, LARGE as u64);
    assert_eq!(verdict, Err(StoreError::Corrupt), "the bytes are gone");
}

#[tokio::test]
async fn what_a_writer_reserved_and_did_not_fill_comes_back() {
    let disk = new_disk();
    let store = open(&disk).await;
    put(&store, 1, LARGE).await.unwrap();
    put(&store, 10, 10).await.unwrap();
    until(&store, "the small segment is prefilled", |space| space.small_bytes == 262_144).await;
    let before = used(&disk);
    let mut given_up = store.begin(meta(2, 500_000)).await.unwrap();
    given_up.write(content(2, 400_000)).await.unwrap();
    drop(given_up);
    let space = until(&store, "all of one", |space| space.reclaimed_bytes > 500_000).await;
    let mut short = store.begin(meta(3, 500_000)).await.unwrap();
    short.write(content(3, 100_000)).await.unwrap();
    short.commit().await.unwrap();
    let first = space.reclaimed_bytes;
    until(&store, "the end of the other", |s| s.reclaimed_bytes > first + 390_000).await;
    assert!(before - used(&disk) > 890_000, "{before} {}", used(&disk));
    super::assert_reads(&store, 3, 100_000).await;
    // a cut before that leaves it to the next open
    let mut cut_off = store.begin(meta(4, 500_000)).await.unwrap();
    cut_off.write(content(4, 400_000)).await.unwrap();
    put(&store, 5, LARGE).await.unwrap();
    disk.cut(CutStyle::KeepAll);
    let store = open(&disk).await;
    until(&store, "what was cut off", |space| space.reclaimed_bytes > 500_000).await;
    for (counter, length) in [(1, LARGE), (3, 100_000), (5, LARGE)] {
        super::assert_reads(&store, counter, length).await;
    }
}

#[tokio::test]
async fn a_large_segment_in_which_nothing_lives_is_removed() {
    let disk = new_disk();
    let store = open(&disk).await;
    for counter in 0..14 {
        put(&store, counter, LARGE).await.unwrap();
    }
    assert_eq!(segments(&disk, "l-").len(), 3);
    delete(&store, 0..6).await;
    until(&store, "the first one goes", |space| space.large_segments == 2).await;
    let left = segments(&disk, "l-");
    assert_eq!(left.len(), 2);
    until(&store, "what lay in it is forgotten", |space| space.dead_records == 0).await;
    // the one that is being filled stays, and is left when the next one is begun
    delete(&store, 6..14).await;
    until(&store, "the second one goes", |space| space.large_segments == 1).await;
    put(&store, 20, 1_900_000).await.unwrap();
    until(&store, "the third one goes", |_| !segments(&disk, "l-").contains(&left[1])).await;
    disk.cut(CutStyle::DropAll);
    let store = open(&disk).await;
    assert_eq!((store.list(None, 30).len(), store.recovered().damaged), (1, 0));
    super::assert_reads(&store, 20, 1_900_000).await;
}

/// What a client knows of a shard after a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    There(usize),
    Gone,
    /// Being written or deleted when the power went: there as a whole, or not at all.
    Either(usize),
}

async fn assert_knows(store: &Store, known: &BTreeMap<u64, Known>, when: &str) {
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
async fn note_put(
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

async fn note_delete(store: &Store, known: &mut BTreeMap<u64, Known>, counters: &[u64]) -> bool {
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

/// Deletes large shards, and the room comes back; `false` where the power went before the end.
async fn delete_large(store: &Store, known: &mut BTreeMap<u64, Known>) -> bool {
    for counter in 0..8 {
        if !note_put(store, known, counter, LARGE).await {
            return false;
        }
    }
    if !note_delete(store, known, &[0, 2, 3]).await
        || !note_delete(store, known, &[1, 4, 5, 6]).await
    {
        return false;
    }
    for counter in 20..23 {
        if !note_put(store, known, counter, LARGE).await {
            return false;
        }
    }
    note_delete(store, known, &[20]).await && wait_for_room(store).await
}

/// Waits until all that can be given back is; `false`: the power went.
async fn wait_for_room(store: &Store) -> bool {
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

fn style(step: u64) -> CutStyle {
    match step % 4 {
        0 => CutStyle::DropAll,
        1 => CutStyle::KeepAll,
        _ => CutStyle::Torn { seed: step },
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_at_any_step_of_punching_loses_nothing_and_brings_nothing_back() {
    for step in 0.. {
        let disk = new_disk();
        let store = open(&disk).await;
        disk.cut_after(step, style(step));
        let mut known = BTreeMap::new();
        let is_done = delete_large(&store, &mut known).await;
        disk.cut(style(step));
        if step % 3 == 0 {
            lose_checkpoints(&disk);
        }
        let store = open(&disk).await;
        assert_knows(&store, &known, &format!("cut at step {step}")).await;
        until(&store, "the room comes back", |space| space.waiting_bytes == 0).await;
        disk.cut(CutStyle::DropAll);
        let store = open(&disk).await;
        assert_knows(&store, &known, &format!("cut at step {step}, opened again")).await;
        if is_done {
            assert!(step > 60, "there are steps to cut at, not {step}");
            return;
        }
    }
}
