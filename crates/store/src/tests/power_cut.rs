//! Power cuts: whatever the disk forgets or tears of what was not synced, each acknowledged shard is there and right,
//! each acknowledged deletion stays, and nothing is served that was never written (C1, C6, D9).

use super::{content, key, meta};
use crate::{Owner, Store, StoreConfig, StoreError};
use ashlar_host::{CutStyle, Host, SimDisk};
use ashlar_types::{ClusterId, NodeId};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const DIR: &str = "/disk";

/// What a client knows of a shard after a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Acknowledged.
    There(usize),
    /// Its deletion was acknowledged.
    Gone,
    /// Written, but not answered.
    Unknown(usize),
}

async fn open(disk: &SimDisk) -> Store {
    let host = Host::real().with_disk(Arc::new(disk.boot()));
    let config = StoreConfig {
        dir: DIR.into(),
        small_segment_bytes: 512 * 1024,
        large_segment_bytes: 2 << 20,
        reserve_bytes: 0,
        expects: None,
        direct_io: false,
    };
    let owner = Owner { cluster: ClusterId(1), node: NodeId(1) };
    let tasks = host.tasks.clone();
    tasks.run_blocking(move || Store::open(&host, config, owner)).await.expect("the disk opens")
}

async fn write(store: &Store, counter: u64, length: usize) -> Result<(), StoreError> {
    let bytes = content(counter, length);
    if length < 64 * 1024 {
        return store.put_small(meta(counter, length), bytes).await;
    }
    let mut writer = store.begin(meta(counter, length)).await?;
    writer.write(bytes).await?;
    writer.commit().await.map(drop)
}

async fn assert_knows(store: &Store, known: &BTreeMap<u64, Known>) {
    for (&counter, &known) in known {
        let length = store.meta(key(counter)).map(|meta| meta.length);
        let read = store.read(key(counter), 0, length.unwrap_or_default()).await;
        match known {
            Known::There(length) => {
                assert_eq!(read, Ok(content(counter, length)), "acknowledged shard {counter}");
            }
            Known::Gone => assert_eq!(read, Err(StoreError::NotFound), "deleted shard {counter}"),
            Known::Unknown(length) => match read {
                Ok(bytes) => assert_eq!(bytes, content(counter, length), "unknown {counter}"),
                Err(error) => assert_eq!(error, StoreError::NotFound, "unknown {counter}"),
            },
        }
    }
}

/// Writes, deletes, and is cut in the middle of more writes; several times on one disk.
async fn live_through_cuts(style: impl Fn(u64) -> CutStyle) {
    let disk = SimDisk::new();
    ashlar_host::Disk::create_dir_all(&disk, Path::new(DIR)).unwrap();
    let mut known = BTreeMap::new();
    for round in 0..6 {
        let store = open(&disk).await;
        assert_knows(&store, &known).await;
        assert_eq!(store.recovered().damaged, 0, "round {round}");
        let first = round * 100;
        for counter in first..first + 10 {
            let length = if counter % 3 == 0 { 150_000 } else { 700 };
            write(&store, counter, length).await.unwrap();
            known.insert(counter, Known::There(length));
        }
        for counter in first..first + 4 {
            assert_eq!(store.delete(key(counter)).await, Ok(true));
            known.insert(counter, Known::Gone);
        }
        // an open reservation lies before shards that are acknowledged
        let mut open_end = store.begin(meta(first + 90, 300_000)).await.unwrap();
        open_end.write(content(first + 90, 270_000)).await.unwrap();
        write(&store, first + 20, 100_000).await.unwrap();
        known.insert(first + 20, Known::There(100_000));
        let racing: Vec<u64> = (first + 30..first + 60).collect();
        let tasks: Vec<_> = racing.iter().map(|&counter| racer(&store, counter)).collect();
        // the cut comes at another moment of the batch each time
        Host::real().clock.sleep(Duration::from_micros(150 * round)).await;
        disk.cut(style(round));
        for (counter, task) in racing.into_iter().zip(tasks) {
            let (length, result) = task.await.unwrap();
            let is_known = result.is_ok();
            known.insert(
                counter,
                if is_known { Known::There(length) } else { Known::Unknown(length) },
            );
        }
        known.insert(first + 90, Known::Gone);
    }
    assert_knows(&open(&disk).await, &known).await;
}

#[expect(clippy::disallowed_methods, reason = "a test races writers against the cut")]
fn racer(store: &Store, counter: u64) -> tokio::task::JoinHandle<(usize, Result<(), StoreError>)> {
    let store = store.clone();
    let length = if counter.is_multiple_of(4) { 80_000 } else { 900 };
    tokio::spawn(async move { (length, write(&store, counter, length).await) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_when_all_else_is_dropped() {
    live_through_cuts(|_| CutStyle::DropAll).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_when_all_else_is_kept() {
    live_through_cuts(|_| CutStyle::KeepAll).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_when_all_else_is_torn() {
    for seed in 0..4 {
        live_through_cuts(|round| CutStyle::Torn { seed: 10 * seed + round }).await;
    }
}
