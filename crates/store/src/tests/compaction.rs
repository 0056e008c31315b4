//! What compaction promises: room comes back from small segments that are mostly garbage; it costs less than three tenths
//! of what is put; whatever it moves stays what it was, for readers, for racing puts and deletions, and through a cut at
//! any step; and nothing that was deleted comes back (C1, C6, D5, D9).

use super::sim::*;
use super::{assert_reads, content, key, meta};
use crate::committer::Act;
use crate::compaction::{Resident, judge};
use crate::format::small_span;
use crate::graves::Graves;
use crate::readers::Reading;
use crate::{Space, Store, StoreError};
use ashlar_host::{CutStyle, Random, SeededRandom};
use std::collections::{BTreeMap, BTreeSet};

const SMALL: usize = 3_000;

async fn fill(store: &Store, counters: impl IntoIterator<Item = u64>) {
    let counters: Vec<u64> = counters.into_iter().collect();
    for some in counters.chunks(16) {
        let all = super::futures_join(some.iter().map(|&counter| put(store, counter, SMALL))).await;
        all.into_iter().for_each(|result| result.unwrap());
    }
}

fn generation(store: &Store, counter: u64) -> u64 {
    store.core.index.read().unwrap()[&key(counter)].segment.header.generation
}

/// Waits until no segment but those that are there for a reason has much garbage.
async fn until_compact(store: &Store, segments: u64) -> Space {
    until(store, "it is compacted", |space| space.small_segments <= segments).await
}

#[tokio::test]
async fn what_lives_in_a_segment_of_garbage_is_moved_and_its_room_comes_back() {
    let disk = new_disk();
    let store = open(&disk).await;
    fill(&store, 0..400).await;
    let before = store.space();
    assert!(before.small_segments >= 5, "{before:?}");
    let home = generation(&store, 0);
    let sequence = store.core.index.read().unwrap()[&key(0)].sequence;
    delete(&store, (0..400).filter(|counter| counter % 10 != 0)).await;
    let space = until_compact(&store, 2).await;
    assert!(space.moved_bytes >= 30 * small_span(SMALL as u64), "{space:?}");
    assert_ne!(generation(&store, 0), home);
    assert_eq!(
        store.core.index.read().unwrap()[&key(0)].sequence,
        sequence,
        "it is the same record"
    );
    // emptied segments are used again, under another generation
    assert!(space.recycled_bytes > 0);
    fill(&store, 500..900).await;
    let files = segments(&disk, "s-").len() as u64;
    assert!(files <= before.small_segments + 2, "{files}");
    for with_checkpoint in [true, false] {
        disk.cut(CutStyle::DropAll);
        if !with_checkpoint {
            lose_checkpoints(&disk);
        }
        let store = open(&disk).await;
        let listed: Vec<u64> =
            store.list(None, 1_000).iter().map(|meta| meta.key.extent.counter).collect();
        let expected: Vec<u64> = (0..400).step_by(10).chain(500..900).collect();
        assert_eq!(listed, expected);
        for counter in (0..400).step_by(10).chain((500..900).step_by(50)) {
            assert_reads(&store, counter, SMALL).await;
        }
    }
}

#[tokio::test]
async fn moves_cost_less_than_three_tenths_of_what_is_put_where_room_is_plenty() {
    let disk = new_disk();
    let store = open(&disk).await;
    let random = SeededRandom::new(7);
    let mut live: Vec<u64> = (0..800).collect();
    fill(&store, 0..800).await;
    let mut next = 800;
    // five times over, whatever lives is as likely as any other to be deleted
    while next < 4_800 {
        let mut gone = BTreeSet::new();
        while gone.len() < 32 {
            gone.insert(usize::try_from(random.next_u64() % 800).unwrap());
        }
        delete(&store, gone.iter().map(|&place| live[place])).await;
        for place in gone {
            live[place] = next;
            next += 1;
        }
        fill(&store, next - 32..next).await;
    }
    let space = store.space();
    let put_bytes = next * small_span(SMALL as u64);
    assert!(space.moved_bytes * 10 <= put_bytes * 3, "{} of {put_bytes} moved", space.moved_bytes);
    assert!(space.moved_bytes > 0, "it did something");
    let in_use = space.small_bytes;
    assert!(in_use < 3 * space.small_live_bytes, "and room comes back: {space:?}");
    for counter in live {
        assert_reads(&store, counter, SMALL).await;
    }
}

#[tokio::test]
async fn a_full_disk_takes_as_much_again_as_was_deleted() {
    let disk = new_disk();
    let store = open_with(&disk, 1 << 20).await;
    disk.set_capacity(Some(10 << 20));
    let mut count = 0;
    while put(&store, count, SMALL).await.is_ok() {
        count += 1;
    }
    assert!(count > 1_800, "{count}");
    // every second one: no segment is nearly all garbage, so that room comes back only because it is short
    delete(&store, (0..count).step_by(2)).await;
    let mut again = 10_000;
    let mut refused = 0;
    while again < 10_000 + count / 3 {
        match put(&store, again, SMALL).await {
            Ok(()) => again += 1,
            Err(error) => {
                assert_eq!(error, StoreError::Full);
                refused += 1;
                assert!(refused < 5_000, "{again} {:?}", store.space());
                store.core.host.clock.sleep(std::time::Duration::from_millis(1)).await;
            }
        }
    }
    for counter in (1..count).step_by(2).chain(10_000..again) {
        assert_reads(&store, counter, SMALL).await;
    }
    // and the rest can still be deleted
    delete(&store, (1..count).step_by(2).chain(10_000..again)).await;
    assert_eq!(store.list(None, 1), []);
}

#[tokio::test]
async fn a_tombstone_stays_while_an_older_record_of_its_key_lies_anywhere() {
    let disk = new_disk();
    let store = open(&disk).await;
    // the first segment stays as it is: nearly all of it lives
    fill(&store, 0..60).await;
    let home = generation(&store, 0);
    fill(&store, 100..200).await;
    delete(&store, [0, 1, 2]).await;
    fill(&store, 200..500).await;
    assert_eq!(generation(&store, 59), home);
    // those in which the tombstones lie are moved, again and again
    for round in 0..3 {
        let first = 500 + 300 * round;
        delete(&store, (first - 300)..first - 10).await;
        fill(&store, first..first + 300).await;
        until(&store, "it moves", |space| space.small_segments < 14).await;
    }
    delete(&store, 100..200).await;
    let space = until(&store, "all is moved", |space| space.small_segments < 10).await;
    assert!(space.tombstones >= 3 && generation(&store, 59) == home, "{space:?}");
    disk.cut(CutStyle::KeepAll);
    lose_checkpoints(&disk);
    let store = open(&disk).await;
    for counter in [0, 1, 2] {
        assert_eq!(store.read(key(counter), 0, 1).await, Err(StoreError::NotFound), "{counter}");
    }
    assert_reads(&store, 3, SMALL).await;
    // when the record is gone, so is the need
    delete(&store, 3..60).await;
    until(&store, "the first segment goes", |_| {
        !segments(&disk, "s-")
            .iter()
            .any(|path| path.to_str().unwrap().contains(&format!("{home:016x}")))
    })
    .await;
}

#[tokio::test]
async fn a_tombstone_stays_while_the_checkpoint_still_shows_the_shard() {
    let disk = new_disk();
    let store = open(&disk).await;
    put(&store, 1_000, 300_000).await.unwrap();
    put(&store, 1_001, SMALL).await.unwrap();
    store.close().await;
    // the checkpoint of the close shows both, and stays the newest one
    let store = open(&disk).await;
    delete(&store, [1_000, 1_001]).await;
    let home = store.core.segments.lock().unwrap().keys().next_back().copied().unwrap();
    fill(&store, 0..300).await;
    delete(&store, 0..300).await;
    fill(&store, 300..400).await;
    until(&store, "the records are gone, and the segment of the tombstones", |space| {
        let is_there = store.core.segments.lock().unwrap().contains_key(&home);
        !is_there && space.waiting_bytes == 0
    })
    .await;
    disk.cut(CutStyle::KeepAll);
    let store = open(&disk).await;
    assert_eq!(store.recovered().damaged, 0);
    for counter in [1_000, 1_001] {
        assert_eq!(store.read(key(counter), 0, 1).await, Err(StoreError::NotFound), "{counter}");
    }
    assert_eq!(store.list(None, 1_000).len(), 100);
}

#[tokio::test]
async fn what_was_deleted_or_put_again_since_the_survey_is_not_moved() {
    let disk = new_disk();
    let store = open(&disk).await;
    put(&store, 1, SMALL).await.unwrap();
    let entry = store.core.entry(key(1)).unwrap();
    let generation = entry.segment.header.generation;
    let resident = Resident { generation, offset: Some(entry.offset), key: key(1) };
    let judged = || judge(&store.core, &Graves::default(), resident).unwrap();
    assert!(matches!(judged(), Some(Act::Move { bytes, .. }) if bytes == content(1, SMALL)));
    delete(&store, [1]).await;
    assert!(judged().is_none());
    put(&store, 1, SMALL).await.unwrap();
    assert!(judged().is_none(), "it lives, but elsewhere");
    delete(&store, [1]).await;
    put(&store, 1, 100_000).await.unwrap();
    assert!(judged().is_none(), "it is a large shard now");
}

#[tokio::test]
async fn a_reader_of_a_moved_shard_reads_on_where_it_was() {
    let disk = new_disk();
    let store = open(&disk).await;
    fill(&store, 0..300).await;
    let reading = Reading::enter(&store.core);
    let entry = store.core.index.read().unwrap()[&key(0)].clone();
    let home = entry.segment.header.generation;
    delete(&store, 1..300).await;
    until(&store, "it is moved", |_| generation(&store, 0) != home).await;
    // the segments would be used again by these
    fill(&store, 300..600).await;
    assert_eq!(entry.read(&store.core.pool, 0, SMALL as u64), Ok(content(0, SMALL)));
    assert_reads(&store, 0, SMALL).await;
    let waiting = store.space().small_segments;
    drop(reading);
    until(&store, "they go", |space| space.small_segments < waiting).await;
}

#[tokio::test]
async fn a_damaged_shard_is_moved_as_damaged_and_can_be_replaced_meanwhile() {
    let disk = new_disk();
    let store = open(&disk).await;
    fill(&store, 0..300).await;
    let entry = store.core.index.read().unwrap()[&key(0)].clone();
    disk.flip(&entry.segment.path, entry.offset + 128 + 5).unwrap();
    let large = meta(0, 100_000);
    let mut writer = store.begin(large).await.unwrap();
    writer.write(content(0, 100_000)).await.unwrap();
    delete(&store, 1..300).await;
    until(&store, "it is moved", |_| generation(&store, 0) != entry.segment.header.generation)
        .await;
    assert_eq!(store.read(key(0), 0, 1).await, Err(StoreError::Corrupt));
    for with_checkpoint in [true, false] {
        let image = copy_of(&disk);
        if !with_checkpoint {
            lose_checkpoints(&image);
        }
        let store = open(&image).await;
        assert_eq!(store.read(key(0), 0, 1).await, Err(StoreError::Corrupt), "{with_checkpoint}");
    }
    writer.commit().await.unwrap();
    assert_reads(&store, 0, 100_000).await;
}

/// Puts and deletes while segments are moved; `false`: the power went.
async fn churn(store: &Store, known: &mut BTreeMap<u64, Known>) -> bool {
    for round in 0..4u64 {
        for counter in 100 * round..100 * round + 90 {
            if !note_put(store, known, counter, SMALL).await {
                return false;
            }
        }
        let most: Vec<u64> = (100 * round..100 * round + 90).filter(|n| n % 10 != 0).collect();
        if !note_delete(store, known, &most).await {
            return false;
        }
        let (gone, again) = (100 * round, 100 * round + 1);
        if !note_delete(store, known, &[gone]).await || !note_put(store, known, again, 500).await {
            return false;
        }
    }
    for counter in 5_000..5_200 {
        if store.space().small_segments <= 2 {
            return true;
        }
        // this fails when the power has gone
        if put(store, counter, 1).await.is_err() {
            return false;
        }
        store.core.host.clock.sleep(std::time::Duration::from_millis(1)).await;
    }
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_at_any_step_of_compaction_loses_nothing_and_brings_nothing_back() {
    // a stride that shares no factor with the styles
    for step in (0..).step_by(7) {
        let disk = new_disk();
        let store = open(&disk).await;
        disk.cut_after(step, style(step));
        let mut known = BTreeMap::new();
        let is_done = churn(&store, &mut known).await;
        disk.cut(style(step));
        if step % 3 == 0 {
            lose_checkpoints(&disk);
        }
        for again in 0..3 {
            let store = open(&disk).await;
            assert_knows(&store, &known, &format!("cut at step {step}, open {again}")).await;
            until_compact(&store, 3).await;
            assert_knows(&store, &known, &format!("cut at step {step}, compacted {again}")).await;
            disk.cut(style(step + 1));
            if again == 1 {
                lose_checkpoints(&disk);
            }
        }
        if is_done {
            assert!(step > 500, "there are steps to cut at, not {step}");
            return;
        }
    }
}
