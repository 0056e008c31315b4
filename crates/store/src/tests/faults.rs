//! What the contract's table of faults says of one disk: a wrong byte is never served (C1, D5); after a failed write or sync
//! nothing more is written, nothing is retried as success, and reads go on; what was acknowledged before is there
//! afterwards. Lost and misdirected writes cannot be known when they happen: they are damage, or an absence that only an
//! audit finds, of the shards whose bytes they were, and of no other.

use super::sim::{DIR, Known, assert_knows, new_disk, note_delete, note_put};
use super::{content, key, meta, put};
use crate::{Owner, ShardKey, Store, StoreConfig, StoreError};
use ashlar_host::{CutStyle, Disk, Fault, FaultyDisk, Host, Operation, SimDisk, Trouble};
use ashlar_types::{ClusterId, DiskId, NodeId};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const LARGE: usize = 70_000;
const FAILS: Trouble = Trouble::Error(io::ErrorKind::Other);

fn config() -> StoreConfig {
    StoreConfig {
        dir: DIR.into(),
        small_segment_bytes: 256 * 1024,
        large_segment_bytes: 400_000,
        reserve_bytes: 0,
        expects: None,
        direct_io: false,
    }
}

/// A simulated disk behind one that fails.
fn faulty(sim: &SimDisk) -> FaultyDisk {
    FaultyDisk::new(Arc::new(sim.boot()))
}

async fn open(disk: &FaultyDisk) -> Result<Store, StoreError> {
    open_with(disk, config()).await
}

async fn open_with(disk: &FaultyDisk, config: StoreConfig) -> Result<Store, StoreError> {
    let host = Host::real().with_disk(Arc::new(disk.clone()));
    Store::open(&host, config, Owner { cluster: ClusterId(1), node: NodeId(1) })
}

/// Puts, deletes, replaces nothing; `false`: something was refused.
async fn work(store: &Store, known: &mut BTreeMap<u64, Known>, rounds: u64) -> bool {
    for round in 0..rounds {
        let first = 10 * round;
        let is_done = note_put(store, known, first, 500).await
            && note_put(store, known, first + 1, LARGE).await
            && note_put(store, known, first + 2, 9_000).await
            && note_delete(store, known, &[first]).await
            && note_put(store, known, first + 3, LARGE).await
            && note_delete(store, known, &[first + 1]).await;
        if !is_done {
            return false;
        }
    }
    true
}

/// All that was acknowledged reads, whatever else the disk refuses.
async fn assert_reads_on(store: &Store, known: &BTreeMap<u64, Known>, when: &str) {
    for (&counter, known) in known {
        if let Known::There(length) = *known {
            let read = store.read(key(counter), 0, length as u64).await;
            assert_eq!(read, Ok(content(counter, length)), "{when}: {counter}");
        }
    }
}

async fn assert_takes_no_more(store: &Store, when: &str) {
    assert!(!store.usage().writable && store.why_suspect().is_some(), "{when}");
    for (counter, length) in [(9_000, 10), (9_001, LARGE)] {
        assert_eq!(put(store, counter, length).await, Err(StoreError::NotWritable), "{when}");
    }
}

#[tokio::test]
async fn a_failed_sync_at_each_of_the_first_200_loses_nothing_and_is_never_retried() {
    let mut told = 0;
    for nth in 0..200 {
        let when = format!("sync {nth}");
        let sim = new_disk();
        let disk = faulty(&sim);
        disk.add(Fault::once(Operation::Sync, FAILS, nth));
        let mut known = BTreeMap::new();
        if let Ok(store) = open(&disk).await {
            let is_done = work(&store, &mut known, 40).await;
            // a sync of the helper fails beside what is asked, and is known when the helper has noted it
            while disk.asked(Operation::Sync) > nth && store.why_suspect().is_none() {
                store.core.host.clock.sleep(Duration::from_millis(1)).await;
            }
            let is_suspect = store.why_suspect().is_some();
            assert!(is_done || is_suspect, "{when}: refused, and nobody knows why");
            if is_suspect {
                told += 1;
                assert_takes_no_more(&store, &when).await;
            }
            assert_reads_on(&store, &known, &when).await;
        }
        // what the kernel threw away with the failed sync is gone
        sim.cut(if nth % 2 == 0 { CutStyle::DropAll } else { CutStyle::Torn { seed: nth } });
        let store = open(&faulty(&sim)).await.expect("a disk that works again opens");
        assert_knows(&store, &known, &when).await;
        put(&store, 9_002, 10).await.expect("and takes more");
    }
    assert!(told > 150, "{told}");
}

#[tokio::test]
async fn a_failed_or_short_write_at_each_of_the_first_100_loses_nothing() {
    for nth in 0..100 {
        let trouble = if nth % 2 == 0 { FAILS } else { Trouble::Short };
        let when = format!("write {nth}, {trouble:?}");
        let sim = new_disk();
        let disk = faulty(&sim);
        disk.add(Fault::once(Operation::Write, trouble, nth));
        let mut known = BTreeMap::new();
        if let Ok(store) = open(&disk).await {
            if !work(&store, &mut known, 20).await {
                assert_takes_no_more(&store, &when).await;
            }
            assert_reads_on(&store, &known, &when).await;
        }
        sim.cut(if nth % 3 == 0 { CutStyle::DropAll } else { CutStyle::KeepAll });
        let store = open(&faulty(&sim)).await.expect("a disk that works again opens");
        assert_knows(&store, &known, &when).await;
    }
}

/// What is asked of an image on which a write was lost or went elsewhere: right bytes, damage, or nothing there.
async fn harmed(store: &Store, known: &BTreeMap<u64, Known>, when: &str) -> usize {
    let mut harmed = 0;
    for (&counter, known) in known {
        let length = store.meta(key(counter)).map(|meta| meta.length).unwrap_or_default();
        match (store.read(key(counter), 0, length).await, *known) {
            (Ok(bytes), Known::There(length) | Known::Either(length)) => {
                assert_eq!(bytes, content(counter, length), "{when}: {counter}");
            }
            // a deletion that was lost: an orphan, which the audit finds
            (Ok(_), Known::Gone) => harmed += 1,
            (Err(StoreError::NotFound), Known::Gone | Known::Either(_)) => {}
            (Err(StoreError::NotFound | StoreError::Corrupt), _) => harmed += 1,
            (Err(error), _) => panic!("{when}: {counter}: {error}"),
        }
    }
    harmed
}

#[tokio::test]
async fn a_lost_or_misdirected_write_never_gives_a_wrong_byte_and_harms_few() {
    let mut harms = 0;
    for nth in 0..120 {
        let trouble = if nth % 2 == 0 { Trouble::Lost } else { Trouble::Misdirected(4096) };
        let when = format!("write {nth}, {trouble:?}");
        let sim = new_disk();
        let disk = faulty(&sim);
        disk.add(Fault::once(Operation::Write, trouble, nth));
        let mut known = BTreeMap::new();
        let opened = open(&disk).await;
        if let Ok(store) = &opened {
            work(store, &mut known, 8).await;
            let found = harmed(store, &known, &when).await;
            assert!(found <= 3, "{when}: {found} while it runs");
        }
        drop(opened);
        sim.cut(CutStyle::KeepAll);
        match open(&faulty(&sim)).await {
            Ok(store) => {
                let found = harmed(&store, &known, &when).await;
                assert!(found <= known.len() / 2, "{when}: {found} of {}", known.len());
                harms += found;
                put(&store, 9_002, 10).await.expect("the disk goes on");
                put(&store, 9_003, LARGE).await.expect("the disk goes on");
            }
            Err(error) => {
                // the superblock was never written: then nothing was
                assert!(known.is_empty() || nth < 8, "{when}: {error}");
            }
        }
    }
    assert!(harms > 0, "some of them hit something");
}

#[tokio::test]
async fn a_lost_write_of_the_superblock_leads_to_no_number_that_is_used_twice() {
    let sim = new_disk();
    let store = open(&faulty(&sim)).await.expect("opens");
    put(&store, 1, 500).await.expect("puts");
    drop(store);
    sim.cut(CutStyle::KeepAll);
    // the second open says that it has raised the incarnation, and has not
    let disk = faulty(&sim);
    disk.add(Fault::always(Operation::Write, Trouble::Lost).on("ashlar.super"));
    let store = open(&disk).await.expect("opens");
    let second = store.incarnation();
    put(&store, 2, 500).await.expect("puts");
    put(&store, 3, LARGE).await.expect("puts");
    drop(store);
    sim.cut(CutStyle::KeepAll);
    let store = open(&faulty(&sim)).await.expect("opens");
    assert!(store.incarnation() > second, "{} after {second}", store.incarnation());
    put(&store, 4, 500).await.expect("a new segment has a name of its own");
    put(&store, 5, LARGE).await.expect("a new segment has a name of its own");
    for (counter, length) in [(1, 500), (2, 500), (3, LARGE), (4, 500), (5, LARGE)] {
        super::assert_reads(&store, counter, length).await;
    }
}

#[tokio::test]
async fn a_bad_read_is_listed_for_repair_and_kills_no_disk() {
    let sim = new_disk();
    let disk = faulty(&sim);
    let store = open(&disk).await.expect("opens");
    put(&store, 1, 500).await.expect("puts");
    put(&store, 2, LARGE).await.expect("puts");
    for (counter, length) in [(1, 500), (2, LARGE)] {
        disk.add(Fault::once(Operation::Read, FAILS, 0));
        let read = store.read(key(counter), 0, length as u64).await;
        assert!(matches!(read, Err(StoreError::Io(_))), "{read:?}");
        assert_eq!(store.damaged_shards().len(), 1, "it is to be healed");
        put(&store, counter, length).await.expect("putting it again replaces it");
        assert_eq!(store.damaged_shards(), []);
        super::assert_reads(&store, counter, length).await;
    }
    assert!(store.usage().writable);
}

#[tokio::test]
async fn a_disk_that_is_removed_says_that_it_failed_and_never_that_a_shard_is_absent() {
    let sim = new_disk();
    let disk = faulty(&sim);
    let store = open(&disk).await.expect("opens");
    put(&store, 1, 500).await.expect("puts");
    put(&store, 2, LARGE).await.expect("puts");
    disk.remove();
    for (counter, length) in [(1, 500), (2, LARGE)] {
        let read = store.read(key(counter), 0, length as u64).await;
        assert!(matches!(read, Err(StoreError::Io(_))), "{read:?}");
        assert!(store.contains(key(counter)), "it is not called absent");
        // the same again is no success: nobody can read it
        let again = put(&store, counter, length).await;
        assert!(matches!(again, Err(StoreError::Io(_) | StoreError::NotWritable)), "{again:?}");
    }
    assert_takes_no_more(&store, "removed").await;
    let deleted = store.delete(key(1)).await;
    assert_eq!(deleted, Err(StoreError::NotWritable), "nor is it deleted");
    store.close().await;
    let refused = open(&disk).await.expect_err("it is not there");
    assert!(matches!(refused, StoreError::Missing(_) | StoreError::Io(_)), "{refused}");
}

#[tokio::test]
async fn a_disk_that_becomes_read_only_is_read_and_says_so_when_it_is_opened() {
    let sim = new_disk();
    let disk = faulty(&sim);
    let store = open(&disk).await.expect("opens");
    put(&store, 1, 500).await.expect("puts");
    put(&store, 2, LARGE).await.expect("puts");
    disk.remount_read_only();
    let refused = put(&store, 3, 500).await;
    assert!(matches!(refused, Err(StoreError::Io(_))), "{refused:?}");
    assert_takes_no_more(&store, "read-only").await;
    super::assert_reads(&store, 1, 500).await;
    super::assert_reads(&store, 2, LARGE).await;
    store.close().await;
    assert_eq!(open(&disk).await.expect_err("cannot be written"), StoreError::ReadOnly(DIR.into()));
}

#[tokio::test]
async fn a_failed_write_of_what_works_behind_the_requests_ends_the_writes_too() {
    // of a hole, of the position of the scrub, of a checkpoint
    for path in ["/seg/l-", "ashlar.new", "/idx/ckpt"] {
        let sim = new_disk();
        let disk = faulty(&sim);
        let store = open(&disk).await.expect("opens");
        put(&store, 1, LARGE).await.expect("puts");
        put(&store, 2, 500).await.expect("puts");
        disk.add(Fault::always(Operation::Sync, FAILS).on(path));
        match path {
            "/seg/l-" => assert_eq!(store.delete(key(1)).await, Ok(true)),
            "ashlar.new" => drop(store.scrub_step(u64::MAX).await),
            _ => store.close().await,
        }
        let clock = store.core.host.clock.clone();
        while store.why_suspect().is_none() {
            clock.sleep(Duration::from_millis(1)).await;
        }
        assert!(!store.usage().writable, "{path}");
        drop(store);
        sim.cut(CutStyle::DropAll);
        let store = open(&faulty(&sim)).await.expect("opens");
        assert!(!store.recovered().clean);
        super::assert_reads(&store, 2, 500).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hangs_is_answered_when_the_disk_answers_again() {
    let sim = new_disk();
    let disk = faulty(&sim);
    let store = open(&disk).await.expect("opens");
    put(&store, 1, 500).await.expect("puts");
    put(&store, 3, LARGE).await.expect("puts");
    disk.add(Fault::always(Operation::Sync, Trouble::Hang).on("/s-"));
    let writing = spawn_put(&store, 2);
    while disk.hanging() == 0 {
        store.core.host.clock.sleep(Duration::from_millis(1)).await;
    }
    // what has to do with neither goes on, and what is not durable is not seen
    super::assert_reads(&store, 1, 500).await;
    super::assert_reads(&store, 3, LARGE).await;
    assert!(!store.contains(key(2)));
    assert_eq!(store.usage().shards, 2, "nor does this wait");
    disk.heal();
    writing.await.expect("ends").expect("is durable");
    super::assert_reads(&store, 2, 500).await;
}

#[expect(clippy::disallowed_methods, reason = "a test writes while it looks")]
fn spawn_put(store: &Store, counter: u64) -> tokio::task::JoinHandle<Result<(), StoreError>> {
    let store = store.clone();
    tokio::spawn(async move { put(&store, counter, 500).await })
}

#[tokio::test]
async fn a_segment_of_another_disk_is_passed_over_and_a_missing_disk_is_not_made_anew() {
    let (sim, other) = (new_disk(), new_disk());
    let (store, foreign) =
        (open(&faulty(&sim)).await.expect("opens"), open(&faulty(&other)).await.expect("opens"));
    put(&store, 1, 500).await.expect("puts");
    put(&foreign, 2, 500).await.expect("puts");
    put(&foreign, 3, LARGE).await.expect("puts");
    let expected = store.disk_id();
    store.close().await;
    let (from, to): (&dyn Disk, &dyn Disk) = (&other, &sim);
    for path in from.list(&Path::new(DIR).join("seg")).expect("lists") {
        let name = format!(
            "seg/foreign-{}",
            path.file_name().and_then(|n| n.to_str()).expect("is a name")
        );
        to.replace(&Path::new(DIR).join(name), &from.read(&path).expect("reads")).expect("writes");
    }
    let config = |expects| StoreConfig { expects: Some(expects), ..config() };
    let store = open_with(&faulty(&sim), config(expected)).await.expect("opens");
    let listed: Vec<ShardKey> = store.list(None, 10).iter().map(|meta| meta.key).collect();
    assert_eq!(listed, [key(1)]);
    assert_eq!(store.meta(key(1)).map(|found| found.length), Some(meta(1, 500).length));
    let empty = faulty(&new_disk());
    let refused = open_with(&empty, config(DiskId(9))).await.expect_err("is not mounted");
    assert_eq!(refused, StoreError::NotMounted { dir: DIR.into(), disk: DiskId(9) });
}
