//! The scrub finds what is damaged, wherever that is, at the pace of its caller; it goes on where it was after a restart,
//! and what it found stays listed until it is replaced or deleted (D5).

use super::sim::*;
use super::{assert_reads, key};
use crate::format::{PAGE, trailer_offset};
use crate::{Damage, ShardKey, Store, StoreError};
use ashlar_host::{CutStyle, SimDisk};

const LARGE: usize = 700_000;

/// Steps of a pass until it ends, and all that they found.
async fn scrub(store: &Store, budget_bytes: u64) -> (u64, Vec<(ShardKey, Damage)>) {
    let (mut steps, mut found) = (0, Vec::new());
    loop {
        let step = store.scrub_step(budget_bytes).await;
        assert!(step.verified_bytes < budget_bytes.saturating_add(300_000), "{step:?}");
        steps += 1;
        found.extend(step.found);
        if step.is_pass_end {
            return (steps, found);
        }
    }
}

/// Turns a byte of a shard, `at` bytes behind its header.
fn rot(disk: &SimDisk, store: &Store, counter: u64, at: u64) {
    let entry = store.core.entry(key(counter)).unwrap();
    disk.flip(&entry.segment.path, entry.offset + at).unwrap();
}

#[tokio::test]
async fn every_byte_that_can_rot_is_found() {
    let disk = new_disk();
    let store = open(&disk).await;
    assert_eq!(scrub(&store, 1).await, (1, vec![]), "an empty disk");
    for counter in 0..8 {
        put(&store, counter, if counter < 4 { 5_000 } else { LARGE }).await.unwrap();
    }
    assert_eq!(scrub(&store, u64::MAX).await.1, []);
    assert_eq!(store.scrub_progress().passes, 2);
    rot(&disk, &store, 1, 128 + 4_999);
    rot(&disk, &store, 2, 127);
    rot(&disk, &store, 4, PAGE + LARGE as u64 - 1);
    rot(&disk, &store, 5, 3);
    let trailer = trailer_offset(0, LARGE as u64);
    rot(&disk, &store, 6, trailer + 20);
    rot(&disk, &store, 7, trailer + 64);
    let expected = [
        (key(1), Damage::Content),
        (key(2), Damage::Header),
        (key(4), Damage::Content),
        (key(5), Damage::Header),
        (key(6), Damage::Trailer),
        // a wrong CRC says of no byte that it is right
        (key(7), Damage::Content),
    ];
    assert_eq!(scrub(&store, 100_000).await.1, expected);
    assert_eq!(scrub(&store, 100_000).await.1, [], "what is listed is not told again");
    assert_eq!(store.damaged_shards(), expected);
    for counter in [1, 4, 7] {
        assert_eq!(store.read(key(counter), 0, 5_000).await.is_err(), counter != 4, "{counter}");
        let last = store.meta(key(counter)).unwrap().length - 1;
        let read = store.read(key(counter), last, 1).await;
        assert_eq!(read.is_err(), counter != 7, "the block that is damaged, and no other");
    }
    // what is damaged can be put again, and then is not: also what can still be read
    for counter in [1, 2] {
        put(&store, counter, 5_000).await.unwrap();
    }
    for counter in [4, 5, 6] {
        put(&store, counter, LARGE).await.unwrap();
        assert_reads(&store, counter, LARGE).await;
    }
    assert_eq!(store.delete(key(7)).await, Ok(true));
    assert_eq!((store.damaged_shards(), scrub(&store, u64::MAX).await.1), (vec![], vec![]));
    disk.cut(CutStyle::DropAll);
    lose_checkpoints(&disk);
    let store = open(&disk).await;
    assert_eq!((store.list(None, 10).len(), scrub(&store, u64::MAX).await.1), (7, vec![]));
}

#[tokio::test]
async fn the_pace_is_the_callers_and_a_restart_goes_on_where_it_was() {
    let disk = new_disk();
    let mut store = open(&disk).await;
    for counter in 0..40 {
        put(&store, counter, if counter == 20 { LARGE } else { 5_000 }).await.unwrap();
    }
    let mut verified = 0;
    let mut shards = 0;
    for steps in 0.. {
        let step = store.scrub_step(20_000).await;
        (verified, shards) = (verified + step.verified_bytes, shards + step.verified_shards);
        assert_eq!(store.scrub_progress().pass_bytes, if step.is_pass_end { 0 } else { verified });
        if step.is_pass_end {
            assert!(steps >= 10, "{steps}");
            break;
        }
        store.close().await;
        store = open(&disk).await;
    }
    let all = 39 * 5_000 + LARGE as u64 + 40 * 128;
    assert_eq!((verified, shards), (all, 40), "each byte once");
    assert_eq!(store.scrub_progress().passes, 1);
}

#[tokio::test]
async fn what_a_reader_was_told_is_known_after_a_power_cut() {
    let disk = new_disk();
    let store = open(&disk).await;
    for counter in 0..2 {
        put(&store, counter, LARGE).await.unwrap();
    }
    store.close().await;
    let store = open(&disk).await;
    rot(&disk, &store, 1, PAGE + 70_000);
    assert_eq!(store.read(key(1), 65_536, 1).await, Err(StoreError::Corrupt));
    disk.cut(CutStyle::DropAll);
    let store = open(&disk).await;
    assert_eq!(store.damaged_shards(), [(key(1), Damage::Content)]);
}

#[tokio::test]
async fn what_was_found_is_known_after_a_power_cut() {
    let disk = new_disk();
    let store = open(&disk).await;
    for counter in 0..4 {
        put(&store, counter, 5_000).await.unwrap();
    }
    rot(&disk, &store, 2, 200);
    assert_eq!(store.read(key(2), 0, 1).await, Err(StoreError::Corrupt));
    assert_eq!(store.damaged_shards(), [(key(2), Damage::Content)], "a reader tells of it too");
    rot(&disk, &store, 1, 200);
    assert_eq!(scrub(&store, u64::MAX).await.1, [(key(1), Damage::Content)]);
    disk.cut(CutStyle::DropAll);
    let store = open(&disk).await;
    let expected = [(key(1), Damage::Content), (key(2), Damage::Content)];
    assert_eq!(store.damaged_shards(), expected);
    assert_eq!(store.scrub_progress().damaged, 2);
    // moved shards are the same shards
    for counter in 10..500 {
        put(&store, counter, 3_000).await.unwrap();
    }
    delete(&store, (0..1).chain(3..4).chain(10..490)).await;
    until(&store, "they are moved", |space| space.moved_bytes > 2 * 5_000).await;
    assert_eq!(store.damaged_shards(), expected);
}
