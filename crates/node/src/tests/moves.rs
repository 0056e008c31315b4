//! How a slot moves, as stories: what a write, a deletion, a restart or a loss in the middle comes to.

use super::fleet::{Fleet, PG, extent};
use crate::copy::{CopyError, Round};
use crate::gate::SlotPlace;
use ashlar_store::{ShardKey, ShardMeta};
use ashlar_types::*;
use ashlar_wire::shard::{CRC_HEADER, format_crc};
use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use http::{Request, StatusCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tower::ServiceExt;

const SLOT: Slot = Slot(0);
/// A short one, and one of the large class that takes several reads.
const LENGTHS: [usize; 2] = [100, 600_000];

/// Who has the moving slot's shards of these extents.
async fn assert_has(fleet: &Fleet, node: usize, counters: impl IntoIterator<Item = u64>) {
    for counter in counters {
        assert!(fleet.has(fleet.disks[node], counter, SLOT).await, "node {node} lacks {counter}");
    }
}

fn key(counter: u64) -> ShardKey {
    ShardKey { extent: extent(counter), slot: SLOT }
}

fn meta(counter: u64, group: PgId, length: usize) -> ShardMeta {
    ShardMeta {
        key: key(counter),
        profile: Profile::RS_2_1,
        pg: group,
        pg_epoch: Epoch(1),
        bucket: BucketId(42),
        length: length as u64,
        created_ms: 1,
    }
}

fn count(fleet: &Fleet, node: usize) -> usize {
    fleet.store(fleet.disks[node]).list(None, usize::MAX).len()
}

#[tokio::test]
async fn d4_a_slot_is_copied_then_switched_then_dropped() {
    let fleet = Fleet::start(Profile::RS_2_1, 4).await;
    for (counter, length) in (1..).zip(LENGTHS) {
        fleet.put_extent(counter, length).await;
    }
    let step = fleet.begin_move(SLOT, 3);
    fleet.all_learn();
    assert!(fleet.give_up(0, SLOT).await, "it is still the home");
    assert_has(&fleet, 0, [1, 2]).await;
    fleet.copy(step).await.unwrap();
    assert_eq!(fleet.group().homes[0], fleet.disks[3]);
    assert_has(&fleet, 3, [1, 2]).await;
    assert!(fleet.give_up(0, SLOT).await, "it does not know of the switch yet, and drops nothing");
    assert_has(&fleet, 0, [1, 2]).await;
    fleet.all_learn();
    assert!(fleet.give_up(0, SLOT).await);
    assert_eq!(count(&fleet, 0), 0);
    let late = fleet.copy(step).await.unwrap();
    assert_eq!(late, Round::Overtaken, "nothing is done twice");
    fleet.stop().await;
}

#[tokio::test]
async fn d2_a_write_under_the_old_epoch_whose_id_the_copier_has_passed_is_refused() {
    let fleet = Fleet::start(Profile::RS_2_1, 4).await;
    let old = fleet.group();
    for counter in [10, 20] {
        fleet.put_extent(counter, 100).await;
    }
    let step = fleet.begin_move(SLOT, 3);
    // everybody has heard of it but the home
    (1..4).for_each(|node| fleet.learns(node));
    let unheard = fleet.copy(step).await.unwrap_err();
    assert!(matches!(unheard, CopyError::NotListed(_)), "{unheard}");
    assert_eq!(
        fleet.put(&old, 5, SLOT, 100).await,
        StatusCode::OK,
        "the home does not know better"
    );
    fleet.learns(0);
    assert_eq!(fleet.put(&old, 6, SLOT, 100).await, StatusCode::CONFLICT, "now it does");
    assert_eq!(
        fleet.put(&fleet.group(), 7, SLOT, 100).await,
        StatusCode::OK,
        "this one goes to the target"
    );
    fleet.copy(step).await.unwrap();
    assert_has(&fleet, 3, [5, 7, 10, 20]).await;
    assert_eq!(fleet.put(&old, 1, SLOT, 100).await, StatusCode::CONFLICT, "an id that was passed");
    fleet.stop().await;
}

#[tokio::test]
async fn the_lists_wait_for_a_write_that_is_open_under_the_old_epoch() {
    let fleet = Fleet::start(Profile::RS_2_1, 4).await;
    let old = fleet.group();
    let (length, counter) = (300_000, 3);
    let content = Fleet::cells(old.profile, counter, length).remove(0);
    let (go_on, held) = tokio::sync::oneshot::channel::<()>();
    let halves = [content.slice(..150_000), content.slice(150_000..)];
    let first = futures::stream::iter([Ok::<Bytes, std::io::Error>(halves[0].clone())]);
    let second = futures::stream::once(async move {
        held.await.unwrap();
        Ok(halves[1].clone())
    });
    let (_, uri) = fleet.request(&old, counter, SLOT, length);
    let request = Request::put(uri)
        .header("content-length", length)
        .header(CRC_HEADER, format_crc(crc32c::crc32c(&content)))
        .body(Body::from_stream(first.chain(second)))
        .unwrap();
    let gate = &fleet.nodes[0].gate;
    let opened = async {
        while gate.is_idle() {
            tokio::task::yield_now().await;
        }
        let step = fleet.begin_move(SLOT, 3);
        fleet.all_learn();
        step
    };
    let copied = async {
        let step = opened.await;
        let mut copying = std::pin::pin!(fleet.copy(step));
        // the write goes on only when the copier has waited for it
        let waited = fleet.nodes[0].host.clock.timeout(Duration::from_millis(50), &mut copying);
        assert!(waited.await.is_err(), "the home has not acknowledged: a write is open");
        go_on.send(()).unwrap();
        copying.await.unwrap()
    };
    let (written, copied) = futures::join!(fleet.nodes[0].router().oneshot(request), copied);
    assert_eq!(written.unwrap().status(), StatusCode::OK);
    assert_eq!(copied, Round::Switched);
    assert_has(&fleet, 3, [counter]).await;
    fleet.stop().await;
}

#[tokio::test]
async fn what_a_lost_home_had_is_computed_from_others() {
    let fleet = Fleet::start(Profile::RS_2_1, 4).await;
    for (counter, length) in (1..).zip(LENGTHS) {
        fleet.put_extent(counter, length).await;
    }
    let old = fleet.group();
    fleet.lose(0);
    fleet.away.lock().unwrap().insert(0);
    let step = fleet.begin_move(SLOT, 3);
    fleet.learns(3);
    let unheard = fleet.copy(step).await.unwrap_err();
    assert!(matches!(unheard, CopyError::NotListed(_)), "one other must acknowledge: {unheard}");
    fleet.learns(1);
    // a gateway that reaches the lost disk, with an old map: one home refuses it, so it has too few shards
    assert_eq!(fleet.put(&old, 9, Slot(1), 100).await, StatusCode::CONFLICT);
    fleet.away.lock().unwrap().insert(2);
    let away = fleet.copy(step).await.unwrap_err();
    assert!(
        matches!(away, CopyError::NotCopied { left: 2, .. }),
        "too few can be read now: {away}"
    );
    fleet.away.lock().unwrap().remove(&2);
    fleet.copy(step).await.unwrap();
    assert_has(&fleet, 3, [1, 2]).await;
    fleet.all_learn();
    assert!(fleet.give_up(0, SLOT).await);
    assert_eq!(count(&fleet, 0), 2, "a lost disk is left as it is");
    fleet.stop().await;
}

#[tokio::test]
async fn what_nobody_can_bring_stops_a_move_only_while_somebody_may_come_back() {
    let fleet = Fleet::start(Profile::RS_2_1, 4).await;
    fleet.put_extent(1, 100).await;
    // given up by its writer: one shard of three
    assert_eq!(fleet.put(&fleet.group(), 2, Slot(1), 100).await, StatusCode::OK);
    fleet.lose(0);
    let step = fleet.begin_move(SLOT, 3);
    (1..4).filter(|node| *node != 2).for_each(|node| fleet.learns(node));
    let open = fleet.copy(step).await.unwrap_err();
    assert!(
        matches!(open, CopyError::NotCopied { left: 1, .. }),
        "a write may be open at node 2: {open}"
    );
    fleet.learns(2);
    fleet.copy(step).await.unwrap();
    assert_has(&fleet, 3, [1]).await;
    assert_eq!(count(&fleet, 3), 1);
    fleet.stop().await;
}

#[tokio::test]
async fn c6_what_was_collected_while_it_moved_is_not_left_behind() {
    let fleet = Fleet::start(Profile::RS_2_1, 4).await;
    for counter in [1, 2] {
        fleet.put_extent(counter, 100).await;
    }
    let step = fleet.begin_move(SLOT, 3);
    fleet.all_learn();
    let target = &fleet.nodes[3];
    target.incoming.begin(step);
    // the collector asks the target first: it has no such shard yet, and says so
    let store = fleet.store(fleet.disks[3]);
    target.incoming.deleted(&store, &[key(2)]);
    assert!(!store.delete(key(2)).await.unwrap());
    target.copy_once(step, &fleet).await.unwrap();
    target.incoming.end(step);
    assert_eq!(fleet.group().homes[0], fleet.disks[3]);
    assert_eq!(count(&fleet, 3), 1, "only what was not collected");
    fleet.stop().await;
}

#[tokio::test]
async fn c6_what_was_collected_between_its_reading_and_its_writing_is_not_left_behind() {
    for length in LENGTHS {
        let fleet = Fleet::start(Profile::RS_2_1, 4).await;
        for counter in [1, 2] {
            fleet.put_extent(counter, length).await;
        }
        let step = fleet.begin_move(SLOT, 3);
        fleet.all_learn();
        let (target, store) = (fleet.nodes[3].clone(), fleet.store(fleet.disks[3]));
        fleet.on_read(move |read| {
            if read == extent(2) {
                target.incoming.deleted(&store, &[key(2)]);
            }
        });
        fleet.copy(step).await.unwrap();
        assert_has(&fleet, 3, [1]).await;
        assert_eq!(count(&fleet, 3), 1, "only what was not collected");
        fleet.stop().await;
    }
}

#[tokio::test]
async fn only_deletions_that_may_concern_a_move_are_noted_and_not_for_ever() {
    let fleet = Fleet::start(Profile::RS_2_1, 4).await;
    fleet.put_extent(1, 100).await;
    let step = fleet.begin_move(SLOT, 3);
    let (target, store) = (&fleet.nodes[3], fleet.store(fleet.disks[3]));
    store.put_small(meta(7, PgId(2), 10), Bytes::from_static(&[7; 10])).await.unwrap();
    target.incoming.begin(step);
    target.incoming.deleted(&store, &[key(7)]);
    assert_eq!(target.incoming.noted(step), 0, "it is of another group");
    target.incoming.deleted(&store, &[key(1), key(8)]);
    assert_eq!(target.incoming.noted(step), 2, "of whatever group these are");
    fleet.all_learn();
    target.copy_once(step, &fleet).await.unwrap();
    assert_eq!(target.incoming.noted(step), 1, "no list names the other one");
    assert_eq!(count(&fleet, 3), 1, "that of the other group");
    target.incoming.end(step);
    fleet.stop().await;
}

#[tokio::test]
async fn d5_a_copy_that_is_known_to_be_damaged_is_brought_again() {
    for length in LENGTHS {
        let fleet = Fleet::start(Profile::RS_2_1, 4).await;
        fleet.put_extent(1, length).await;
        let step = fleet.begin_move(SLOT, 3);
        fleet.all_learn();
        assert_eq!(fleet.put(&fleet.group(), 1, SLOT, length).await, StatusCode::OK);
        fleet.rot(3, 1, SLOT, length / 2).await;
        fleet.copy(step).await.unwrap();
        assert_has(&fleet, 3, [1]).await;
        fleet.stop().await;
    }
}

#[tokio::test]
async fn d2_a_damaged_shard_that_the_slot_has_moved_without_is_not_dropped() {
    let fleet = Fleet::start(Profile::RS_2_1, 4).await;
    for (counter, length) in (1..).zip(LENGTHS) {
        fleet.put_extent(counter, length).await;
    }
    fleet.lose(2);
    fleet.all_learn();
    // nobody can compute it now: one other is left
    fleet.rot(0, 2, SLOT, 70_000).await;
    let step = fleet.begin_move(SLOT, 3);
    fleet.all_learn();
    fleet.copy(step).await.unwrap();
    assert_has(&fleet, 3, [1]).await;
    assert_eq!(count(&fleet, 3), 1);
    fleet.all_learn();
    assert!(fleet.give_up(0, SLOT).await);
    assert_eq!(count(&fleet, 0), 1);
    let rest = fleet.store(fleet.disks[0]).read(key(2), 0, 65_536).await;
    assert!(rest.is_ok(), "all but one block can still be read: {rest:?}");
    fleet.stop().await;
}

#[tokio::test]
async fn a_disk_that_takes_no_writes_is_neither_filled_nor_asked_to_delete() {
    let fleet = Fleet::start(Profile::RS_2_1, 4).await;
    for counter in 1..=12 {
        fleet.put_extent(counter, 100).await;
    }
    let step = fleet.begin_move(SLOT, 3);
    fleet.all_learn();
    fleet.store(fleet.disks[3]).close().await;
    let reads = Arc::new(AtomicUsize::new(0));
    let seen = reads.clone();
    fleet.on_read(move |_| _ = seen.fetch_add(1, Ordering::Relaxed));
    let refused = fleet.copy(step).await.unwrap_err();
    assert!(matches!(refused, CopyError::NotCopied { left: 12, .. }), "{refused}");
    assert!(reads.load(Ordering::Relaxed) <= 4, "nothing more is read for nothing");
    fleet.stop().await;

    let fleet = Fleet::start(Profile::RS_2_1, 4).await;
    fleet.put_extent(1, 100).await;
    let step = fleet.begin_move(SLOT, 3);
    fleet.all_learn();
    fleet.copy(step).await.unwrap();
    fleet.all_learn();
    fleet.store(fleet.disks[0]).close().await;
    assert!(!fleet.give_up(0, SLOT).await, "later");
    assert_eq!(count(&fleet, 0), 1);
    fleet.stop().await;
}

#[tokio::test]
async fn d4_a_slot_of_many_shards_is_dropped_a_part_at_a_time() {
    let fleet = Fleet::start(Profile::RS_2_1, 4).await;
    let step = fleet.begin_move(SLOT, 3);
    fleet.all_learn();
    fleet.copy(step).await.unwrap();
    let store = fleet.store(fleet.disks[0]);
    let put = |counter, group| {
        let bytes = Bytes::from_static(&[1; 10]);
        store.put_small(meta(counter, group, 10), bytes)
    };
    let puts = (0..2_100).map(|counter| put(counter, if counter == 1_500 { PgId(2) } else { PG }));
    for put in futures::future::join_all(puts).await {
        put.unwrap();
    }
    fleet.all_learn();
    assert!(fleet.give_up(0, SLOT).await);
    assert_eq!(count(&fleet, 0), 1, "that of the other group");
    fleet.stop().await;
}

#[tokio::test]
async fn a_map_that_is_here_already_is_not_asked_for_again() {
    let fleet = Fleet::start(Profile::RS_2_1, 4).await;
    fleet.put_extent(1, 100).await;
    fleet.begin_move(SLOT, 3);
    fleet.all_learn();
    fleet.hears_switches.store(true, Ordering::Relaxed);
    let target = &fleet.nodes[3];
    let moved = async {
        while fleet.group().moving.is_some() || !target.incoming_moves().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        () = target.take_in(&fleet) => unreachable!("it goes on"),
        () = moved => {}
    }
    assert!(!target.wants_map());
    fleet.stop().await;
}

#[tokio::test]
async fn d2_a_slot_that_has_come_back_is_not_dropped_by_an_old_map() {
    let fleet = Fleet::start(Profile::RS_2_1, 4).await;
    fleet.put_extent(1, 100).await;
    let away = fleet.begin_move(SLOT, 3);
    fleet.all_learn();
    fleet.copy(away).await.unwrap();
    // this is what node 0 knows from now on: the slot is gone
    fleet.learns(0);
    fleet.begin_move(SLOT, 0);
    let back = fleet.group();
    assert_eq!(fleet.put(&back, 2, SLOT, 100).await, StatusCode::OK);
    assert!(!fleet.give_up(0, SLOT).await, "somebody knows more");
    assert_has(&fleet, 0, [1, 2]).await;
    fleet.stop().await;
}

#[tokio::test]
async fn d2_a_slot_that_comes_back_waits_until_the_last_of_it_has_been_dropped() {
    let fleet = Fleet::start(Profile::RS_2_1, 4).await;
    fleet.put_extent(1, 100).await;
    let away = fleet.begin_move(SLOT, 3);
    fleet.all_learn();
    fleet.copy(away).await.unwrap();
    fleet.all_learn();
    let at = SlotPlace { disk: fleet.disks[0], group: PG, slot: SLOT };
    let dropping = fleet.nodes[0].gate.close(at, fleet.group().epoch).unwrap();
    let back = fleet.begin_move(SLOT, 0);
    fleet.all_learn();
    let mut copying = Box::pin(fleet.copy(back));
    for _ in 0..1000 {
        assert!(futures::poll!(&mut copying).is_pending(), "what it finds here may go at once");
        tokio::task::yield_now().await;
    }
    assert!(fleet.store(fleet.disks[0]).delete(key(1)).await.unwrap());
    drop(dropping);
    copying.await.unwrap();
    assert_has(&fleet, 0, [1]).await;
    assert!(fleet.nodes[0].gate.close(at, away.epoch).is_none(), "it knows that the slot is back");
    fleet.stop().await;
}

#[tokio::test]
async fn r12_a_node_that_has_started_anew_takes_no_write_before_it_knows_the_map() {
    let fleet = Fleet::start(Profile::RS_2_1, 4).await;
    let map = fleet.nodes[0].map();
    fleet.nodes[0].forget_map();
    assert_eq!(fleet.put(&fleet.group(), 1, SLOT, 100).await, StatusCode::CONFLICT);
    fleet.nodes[0].set_map(map);
    assert_eq!(fleet.put(&fleet.group(), 1, SLOT, 100).await, StatusCode::OK);
    assert_eq!(fleet.group().id, PG);
    fleet.stop().await;
}
