//! What an audit tells a range, and what the range makes of it.

use super::support::*;
use ashlar_types::*;

/// A session before that of the other commands.
const EARLIER: SessionId = SessionId(50);

fn refused(refusal: Refusal) -> Outcome {
    Outcome::Refused(refusal)
}

const DONE: Outcome = Outcome::Applied(Applied::Done);

fn orphan(session: SessionId, counter: u64) -> Orphan {
    Orphan { id: ExtentId { session, counter }, pg: PgId(1), profile: Profile::RS_4_2 }
}

fn fence(range: &mut Replicas, floor: u64, living: &[SessionId]) {
    let op = RangeOp::RaiseSessionFloor { floor: SessionId(floor), living: living.to_vec() };
    assert_eq!(range.duty(op), DONE);
}

fn queue(range: &mut Replicas, orphans: Vec<Orphan>) -> Outcome {
    range.duty(RangeOp::QueueOrphans { orphans })
}

fn owner(key: &str, mark: u8) -> ExtentOwner {
    ExtentOwner::Object { at: at(key), object: ObjectId(u128::from(mark)) }
}

fn mark_lost(owner: ExtentOwner, extent: Extent, slots: &[u8]) -> RangeOp {
    let slots = slots.iter().map(|&slot| Slot(slot)).collect();
    RangeOp::MarkLost(Box::new(MarkLost { owner, extent, slots }))
}

#[test]
fn d2_an_orphan_is_queued_only_when_its_session_is_refused_here() {
    let mut range = Replicas::with_bucket();
    assert_eq!(queue(&mut range, vec![orphan(EARLIER, 1)]), refused(Refusal::SessionLives));
    fence(&mut range, 90, &[EARLIER]);
    assert_eq!(queue(&mut range, vec![orphan(EARLIER, 1)]), refused(Refusal::SessionLives));
    fence(&mut range, 90, &[]);
    let both = vec![orphan(EARLIER, 1), orphan(SESSION, 2)];
    assert_eq!(queue(&mut range, both), refused(Refusal::SessionLives), "all or nothing");
    assert!(range.garbage().is_empty());
    assert_eq!(queue(&mut range, vec![orphan(EARLIER, 1), orphan(EARLIER, 2)]), DONE);
    assert_eq!(queue(&mut range, vec![orphan(EARLIER, 2)]), DONE, "a second telling does no harm");
    assert_eq!(range.garbage(), [1, 2]);
    let asked = [1, 2, 3].map(|counter| ExtentId { session: EARLIER, counter });
    assert_eq!(
        range.query(&RangeQuery::AreCollectable { extents: asked.to_vec() }),
        RangeAnswer::AreCollectable(vec![true, true, false])
    );
}

#[test]
fn a_gateway_that_slept_through_the_fence_neither_commits_nor_abandons() {
    let mut range = Replicas::with_bucket();
    let caller = range.caller();
    fence(&mut range, 101, &[]);
    assert_eq!(queue(&mut range, vec![orphan(SESSION, 1)]), DONE);
    let late = put_op("key", 1, extents(1..2, 5));
    assert_eq!(range.send_as(caller, late), refused(Refusal::SessionFenced));
    let abandon =
        RangeOp::Abandon(Abandon { at: at("key"), seq: caller.seq, content: extents(1..2, 5) });
    assert_eq!(range.send_as(caller, abandon), refused(Refusal::SessionFenced));
    assert_eq!(range.garbage(), [1]);
    assert_eq!(range.usage(), (0, 0));
    range.duty(RangeOp::CollectDone { extents: vec![ExtentId { session: SESSION, counter: 1 }] });
    let late = put_op("key", 1, extents(1..2, 5));
    assert_eq!(range.send_as(caller, late), refused(Refusal::SessionFenced), "for ever");
}

#[test]
fn what_waits_for_repair_is_named_and_so_is_no_orphan() {
    let mut range = Replicas::with_bucket();
    let content = Content { extents: vec![extent(1, 5, &[2])], ..Content::default() };
    range.send(put_op("key", 1, content));
    fence(&mut range, 101, &[]);
    assert_eq!(queue(&mut range, vec![orphan(SESSION, 1)]), refused(Refusal::ExtentNamed));
    assert!(range.garbage().is_empty());
}

#[test]
fn a_lost_shard_is_missing_from_then_on_and_is_repaired() {
    let mut range = Replicas::with_bucket();
    range.send(put_op("key", 1, extents(1..3, 5)));
    let seen = extent(1, 5, &[]);
    assert_eq!(range.duty(mark_lost(owner("key", 1), seen.clone(), &[4])), DONE);
    assert_eq!(range.missing(), [1]);
    let marked = extent(1, 5, &[4]);
    assert_eq!(
        range.duty(mark_lost(owner("key", 1), seen, &[4])),
        refused(Refusal::ExtentChanged),
        "told twice"
    );
    assert_eq!(range.duty(mark_lost(owner("key", 1), marked, &[0])), DONE);
    let marked = extent(1, 5, &[0, 4]);
    assert_eq!(
        range.duty(mark_lost(owner("key", 1), marked.clone(), &[1])),
        refused(Refusal::TooFewLeft),
        "the last k are asked for, whatever was not found"
    );
    let slots = [Slot(0), Slot(4)].into_iter().collect();
    assert_eq!(range.duty(RangeOp::Repaired { extent: marked, slots }), DONE);
    assert!(range.missing().is_empty());
}

#[test]
fn what_was_overwritten_or_deleted_meanwhile_is_not_marked() {
    let mut range = Replicas::with_bucket();
    range.send(put_op("key", 1, extents(1..2, 5)));
    range.send(put_op("key", 2, extents(2..3, 5)));
    let stale = mark_lost(owner("key", 1), extent(1, 5, &[]), &[0]);
    assert_eq!(range.duty(stale.clone()), refused(Refusal::ExtentChanged));
    let foreign = mark_lost(owner("key", 2), extent(1, 5, &[]), &[0]);
    assert_eq!(range.duty(foreign), refused(Refusal::ExtentChanged));
    range.send(delete("key", WriteCondition::Always));
    assert_eq!(range.duty(stale), refused(Refusal::ExtentChanged));
    assert!(range.missing().is_empty());
}

#[test]
fn lost_shards_are_found_in_parts_and_far_extents_too() {
    let mut range = Replicas::with_bucket();
    range.send(create_upload("key", 7));
    range.send(put_part("key", 7, 1, 71, extents(1..100, 5)));
    let part =
        ExtentOwner::Part { at: at("key"), upload: UploadId(7), number: 1, object: ObjectId(71) };
    assert_eq!(range.duty(mark_lost(part.clone(), extent(90, 5, &[]), &[1])), DONE);
    let whole = complete("key", 7, 8, &[(1, 99 * 5, 71)]);
    range.send(RangeOp::CompleteUpload(Box::new(whole)));
    assert_eq!(range.duty(mark_lost(part, extent(91, 5, &[]), &[1])), DONE, "as an object's too");
    assert_eq!(range.missing(), [90, 91]);
}

#[test]
fn a_large_object_is_met_in_runs_of_its_parts() {
    let mut range = Replicas::with_bucket();
    range.send(create_upload("key", 7));
    for number in 1..=3_u16 {
        let first = u64::from(number) * 10;
        range.send(put_part("key", 7, number, u128::from(number), extents(first..first + 2, 5)));
    }
    let parts: Vec<_> = (1..=3_u16).map(|number| (number, 10, u128::from(number))).collect();
    range.send(RangeOp::CompleteUpload(Box::new(complete("key", 7, 9, &parts))));
    let (mut after, mut runs) = (None, Vec::new());
    loop {
        let (entries, next) = range.inventory(after, 3);
        for entry in entries {
            if let InventoryEntry::Composite { size, parts, last, .. } = entry {
                assert_eq!(size, 30);
                runs.push((parts.len(), last));
            }
        }
        let Some(next) = next else { break };
        after = Some(next);
    }
    assert_eq!(runs, [(1, false), (1, false), (1, true)]);
}
