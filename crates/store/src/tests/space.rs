//! Room comes back: of deleted shards, of writers that gave up, of segments in which nothing lives; not before the
//! tombstone is durable and the last reader has left; and a cut at any step loses nothing and brings nothing back
//! (C1, C6, D9).

use super::sim::*;
use super::{assert_reads, content, key, meta};
use crate::readers::Reading;
use crate::{Space, Store, StoreError};
use ashlar_host::CutStyle;
use std::collections::BTreeMap;

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
            assert_reads(&store, counter, LARGE).await;
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
    assert_reads(&store, 3, 100_000).await;
    // a cut before that leaves it to the next open
    let mut cut_off = store.begin(meta(4, 500_000)).await.unwrap();
    cut_off.write(content(4, 400_000)).await.unwrap();
    put(&store, 5, LARGE).await.unwrap();
    disk.cut(CutStyle::KeepAll);
    let store = open(&disk).await;
    until(&store, "what was cut off", |space| space.reclaimed_bytes > 500_000).await;
    for (counter, length) in [(1, LARGE), (3, 100_000), (5, LARGE)] {
        assert_reads(&store, counter, length).await;
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
    assert_reads(&store, 20, 1_900_000).await;
}

#[tokio::test]
async fn a_disk_without_a_free_byte_opens_after_a_cut() {
    let disk = new_disk();
    let store = open(&disk).await;
    for counter in 0..20 {
        put(&store, counter, 5_000).await.unwrap();
    }
    put(&store, 20, LARGE).await.unwrap();
    disk.cut(CutStyle::KeepAll);
    disk.set_capacity(Some(used(&disk)));
    let store = open(&disk).await;
    assert!(store.recovered().records > 20 && store.list(None, 30).len() == 21);
    assert_reads(&store, 20, LARGE).await;
    // what was deleted without room for a tombstone is surely not
    assert_eq!(store.delete(key(20)).await, Err(StoreError::Full));
    assert_reads(&store, 20, LARGE).await;
    disk.set_capacity(None);
    delete(&store, 0..21).await;
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
