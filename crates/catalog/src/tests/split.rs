//! What a split keeps, refuses and leaves behind. That both sides go on as one range would have is in `model`.

use super::support::*;
use crate::key::{self, family};
use crate::{Range, owned_intervals, removable_intervals};
use ashlar_types::*;

const CHILD: RangeId = RangeId(2);
const PARENT: RangeId = RangeId(1);

fn split_at(key: &str) -> SplitAt {
    SplitAt { child: CHILD, at: at(key) }
}

fn entry(range: &mut Replicas, op: RangeOp) -> Outcome {
    range.apply_to(PARENT, false, vec![Command { caller: None, op }]).remove(0)
}

fn done() -> Outcome {
    Outcome::Applied(Applied::Done)
}

fn refused(refusal: Refusal) -> Outcome {
    Outcome::Refused(refusal)
}

/// Steps until none is left; how many it took.
fn walk_through(range: &mut Replicas) -> usize {
    for steps in 1..1000 {
        match entry(range, RangeOp::StepSplit) {
            Outcome::Applied(Applied::Stepped { more: true }) => {}
            Outcome::Applied(Applied::Stepped { more: false }) => return steps,
            other => panic!("{other:?}"),
        }
    }
    panic!("the steps do not end")
}

fn state_of(range: &Replicas, id: RangeId) -> SplitState {
    match range.query_of(id, &RangeQuery::SplitState) {
        RangeAnswer::SplitState(state) => state,
        other => panic!("{other:?}"),
    }
}

/// Objects `a0` to `a9` and `z0` to `z9`.
fn with_objects() -> Replicas {
    let mut range = Replicas::with_bucket();
    for letter in ["a", "z"] {
        for number in 0..10_u8 {
            let key = format!("{letter}{number}");
            let content = extents(u64::from(number) * 2..u64::from(number) * 2 + 1, 5);
            let mut op = put(&key, number, content);
            // every key has its own extent
            op.content.extents[0].id.counter += if letter == "z" { 100 } else { 0 };
            range.send(RangeOp::Put(Box::new(op)));
        }
    }
    range
}

fn split(range: &mut Replicas, key: &str) {
    assert_eq!(entry(range, RangeOp::PrepareSplit(split_at(key))), done());
    walk_through(range);
    assert_eq!(entry(range, RangeOp::Split(split_at(key))), done());
}

#[test]
fn the_entry_of_the_split_writes_a_handful_of_rows_and_moves_no_object() {
    let mut range = with_objects();
    assert_eq!(entry(&mut range, RangeOp::PrepareSplit(split_at("m"))), done());
    assert!(walk_through(&mut range) > 5, "few rows at a time");
    let before = range.rows.clone();
    assert_eq!(entry(&mut range, RangeOp::Split(split_at("m"))), done());
    let changed = |(row, value): &(&Vec<u8>, &Vec<u8>)| before.0.get(*row) != Some(*value);
    let written: Vec<_> = range.rows.0.iter().filter(changed).map(|(row, _)| row[0]).collect();
    // both heads, and the usage that the left side gave away
    assert!(written.iter().all(|row| [family::STATE, family::USAGE].contains(row)), "{written:?}");
    assert!(written.len() <= 9, "{written:?}");
    assert_eq!(range.usage(), (20, 100));
    let usage = |id| range.query_of(id, &RangeQuery::Usage { bucket: BUCKET });
    assert_eq!(usage(PARENT), RangeAnswer::Usage { objects: 10, bytes: 50 });
    assert_eq!(usage(CHILD), RangeAnswer::Usage { objects: 10, bytes: 50 });
}

#[test]
fn a_resend_finds_its_result_on_the_side_where_its_key_is_now() {
    let mut range = with_objects();
    let (left, right) = (range.caller(), range.caller());
    let (a, z) = (put_op("a0", 50, inline("new")), put_op("z0", 51, inline("new")));
    let answers = [range.send_as(left, a.clone()), range.send_as(right, z.clone())];
    assert_eq!(entry(&mut range, RangeOp::PrepareSplit(split_at("m"))), done());
    range.apply_to(PARENT, false, vec![Command { caller: None, op: RangeOp::StepSplit }]);
    // while it is prepared, too
    let late = range.caller();
    let op = put_op("z1", 52, inline("late"));
    let answer = range.send_as(late, op.clone());
    walk_through(&mut range);
    assert_eq!(entry(&mut range, RangeOp::Split(split_at("m"))), done());
    assert_eq!([range.send_as(left, a), range.send_as(right, z)], answers);
    assert_eq!(range.send_as(late, op), answer);
    let generations = [range.range.generation(), range.children[0].generation()];
    assert_eq!(generations[0], generations[1], "a child inherits the generation");
}

#[test]
fn what_comes_behind_the_split_in_its_own_entry_is_refused_and_may_be_sent_again() {
    let mut range = with_objects();
    assert_eq!(entry(&mut range, RangeOp::PrepareSplit(split_at("m"))), done());
    walk_through(&mut range);
    let (before, behind) = (range.caller(), range.caller());
    let put =
        |caller, key, mark| Command { caller: Some(caller), op: put_op(key, mark, inline("x")) };
    let split = Command { caller: None, op: RangeOp::Split(split_at("m")) };
    let outcomes =
        range.apply_to(PARENT, false, vec![put(before, "z5", 60), split, put(behind, "z6", 61)]);
    assert!(matches!(outcomes[0], Outcome::Applied(_)));
    assert_eq!(outcomes[1..], [done(), refused(Refusal::OutsideRange)]);
    assert!(
        matches!(range.object("z5", Span::All), RangeAnswer::Object { record, .. } if record.size == 1)
    );
    assert!(matches!(range.send_as(behind, put_op("z6", 61, inline("x"))), Outcome::Applied(_)));
}

#[test]
fn c11_both_sides_inherit_fences_and_refused_sessions() {
    let mut range = Replicas::with_bucket();
    let other = BucketRow { bucket: BucketId(8), ..bucket_row(EPOCH) };
    range.duty(RangeOp::SetBucket(other));
    range.duty(RangeOp::FenceBucket { bucket: BUCKET, epoch: Epoch(2) });
    range.duty(RangeOp::RaiseSessionFloor { floor: SessionId(200), living: vec![SESSION] });
    split(&mut range, "m");
    for key in ["a", "z"] {
        assert_eq!(range.send(put_op(key, 1, inline("x"))), refused(Refusal::BucketFenced));
        let fenced = Caller { session: SessionId(150), ..range.caller() };
        let outcome = range.send_as(fenced, put_op(key, 1, inline("x")));
        assert_eq!(outcome, refused(Refusal::SessionFenced));
    }
    // a late row of the deleted bucket opens it on neither side
    range.duty(RangeOp::SetBucket(bucket_row(Epoch(1))));
    assert_eq!(range.send(put_op("z", 1, inline("x"))), refused(Refusal::BucketFenced));
    let mut op = put("k", 1, inline("x"));
    op.at = KeyPoint::new(BucketId(8), *b"k");
    assert!(matches!(range.send(RangeOp::Put(Box::new(op))), Outcome::Applied(_)));
}

#[test]
fn one_split_at_a_time_prepared_inside_and_with_settled_members() {
    let mut range = with_objects();
    for bad in [descriptor().interval.start, KeyPoint::new(BucketId(9), *b"k")] {
        let op = RangeOp::PrepareSplit(SplitAt { child: CHILD, at: bad });
        assert_eq!(entry(&mut range, op), refused(Refusal::BadSplitPoint));
    }
    let own = RangeOp::PrepareSplit(SplitAt { child: PARENT, at: at("m") });
    assert_eq!(entry(&mut range, own), refused(Refusal::BadSplitPoint));
    let of = |key| RangeOp::Split(split_at(key));
    assert_eq!(entry(&mut range, of("m")), refused(Refusal::NotPrepared));
    assert_eq!(entry(&mut range, RangeOp::PrepareSplit(split_at("m"))), done());
    assert_eq!(entry(&mut range, RangeOp::PrepareSplit(split_at("m"))), done(), "told twice");
    assert_eq!(
        entry(&mut range, RangeOp::PrepareSplit(split_at("n"))),
        refused(Refusal::Splitting)
    );
    assert_eq!(entry(&mut range, of("m")), refused(Refusal::NotPrepared), "steps are left");
    walk_through(&mut range);
    assert_eq!(entry(&mut range, of("n")), refused(Refusal::NotPrepared));
    let command = Command { caller: None, op: of("m") };
    let changing = range.apply_to(PARENT, true, vec![command]);
    assert_eq!(changing, [refused(Refusal::MembersChanging)]);
    assert_eq!(entry(&mut range, of("m")), done());
    assert_eq!(entry(&mut range, of("m")), refused(Refusal::NotPrepared), "a second one");
    let next = RangeOp::PrepareSplit(SplitAt { child: RangeId(3), at: at("b") });
    assert_eq!(entry(&mut range, next.clone()), refused(Refusal::Splitting), "rows are left");
    walk_through(&mut range);
    assert_eq!(entry(&mut range, next), done());
}

#[test]
fn a_preparation_that_arrives_again_behind_its_split_finds_it_done() {
    let mut range = with_objects();
    split(&mut range, "m");
    let prepare = |range: &mut Replicas, id, split| {
        range.apply_to(id, false, vec![Command { caller: None, op: RangeOp::PrepareSplit(split) }])
    };
    assert_eq!(prepare(&mut range, CHILD, split_at("m")), [done()]);
    // also where that one splits further
    let further = SplitAt { child: RangeId(3), at: at("z5") };
    assert_eq!(prepare(&mut range, CHILD, further), [done()]);
    assert_eq!(prepare(&mut range, CHILD, split_at("m")), [done()]);
    let other = SplitAt { child: RangeId(4), at: at("m") };
    assert_eq!(prepare(&mut range, CHILD, other), [refused(Refusal::Splitting)], "another split");
    assert_eq!(state_of(&range, CHILD).prepared.unwrap().at, at("z5"));
}

#[test]
fn an_apply_version_without_splits_refuses_them() {
    let mut range = Replicas::with_bucket();
    assert!(state_of(&range, PARENT).is_supported());
    range.range.head.apply_version = 1;
    let row = key::state(PARENT, 1);
    range.rows.0.insert(row, encode(&range.range.head));
    let batch = Batch {
        epoch: Epoch(1),
        proposed_ms: 0,
        commands: vec![Command { caller: None, op: RangeOp::PrepareSplit(split_at("m")) }],
    };
    let mut old = Range::load(&range.rows, PARENT).unwrap().unwrap();
    let outcomes = old.apply(&range.rows, 90, false, &batch).unwrap().outcomes;
    assert_eq!(outcomes, [refused(Refusal::Unsupported)]);
    let state = state_of(&range, PARENT);
    assert_eq!((state.apply_version, state.is_supported()), (1, false), "it says so beforehand");
}

#[test]
fn what_expires_expires_once_and_where_it_is_now() {
    let mut range = Replicas::with_bucket();
    for key in ["a", "z"] {
        let upload = u128::from(key.as_bytes()[0]);
        range.send(create_upload(key, upload));
        range.send(put_part(key, upload, 1, upload + 1000, extents(0..0, 1)));
        let op = complete(key, upload, upload + 2000, &[(1, 0, upload + 1000)]);
        assert!(matches!(range.send(RangeOp::CompleteUpload(Box::new(op))), Outcome::Applied(_)));
    }
    split(&mut range, "m");
    assert_eq!(range.count(family::UPLOAD_STATE), 2);
    range.now_ms += 8 * 24 * 3600 * 1000;
    // the parent has a copy of the other's row still: it removes nothing but that
    entry(&mut range, RangeOp::ReportHash);
    assert_eq!(range.count(family::UPLOAD_STATE), 1);
    let command = Command { caller: None, op: RangeOp::ReportHash };
    range.apply_to(CHILD, false, vec![command]);
    assert_eq!((range.count(family::UPLOAD_STATE), range.count(family::EXPIRY)), (0, 0));
}

#[test]
fn what_is_kept_for_the_right_side_is_the_ranges_own_until_the_split() {
    let mut range = with_objects();
    let unborn = (key::bucket(CHILD, BUCKET), key::usage(CHILD, BUCKET));
    let has = |spans: &[crate::KeySpan], row: &Vec<u8>| {
        spans.iter().any(|(from, to)| row >= from && to.as_ref().is_none_or(|to| row < to))
    };
    assert_eq!(entry(&mut range, RangeOp::PrepareSplit(split_at("m"))), done());
    walk_through(&mut range);
    for row in [&unborn.0, &unborn.1] {
        assert!(range.rows.0.contains_key(row));
        assert!(has(&owned_intervals(&range.rows, &descriptor()).unwrap(), row));
        assert!(has(&removable_intervals(&range.rows, &descriptor()).unwrap(), row));
    }
    assert_eq!(entry(&mut range, RangeOp::Split(split_at("m"))), done());
    let left = range.range.descriptor().clone();
    for row in [&unborn.0, &unborn.1] {
        assert!(!has(&owned_intervals(&range.rows, &left).unwrap(), row));
        assert!(!has(&removable_intervals(&range.rows, &left).unwrap(), row));
    }
}

#[test]
fn d7_r4_a_row_that_changes_past_apply_shows_when_all_are_counted() {
    let mut range = with_objects();
    split(&mut range, "m");
    let counted = |range: &Replicas, id| crate::recount(&range.rows, id).unwrap().unwrap();
    assert!(counted(&range, PARENT).is_right() && counted(&range, CHILD).is_right());
    let (row, value) = range.rows.of(family::CURRENT).next_back().unwrap();
    let (row, value) = (row.clone(), value.clone());
    range.rows.0.remove(&row);
    let child = counted(&range, CHILD);
    assert!(
        child.told != child.counted && counted(&range, PARENT).is_right(),
        "it was the child's"
    );
    let wrong = |told, counted| [WrongUsage { bucket: BUCKET, told, counted }];
    assert_eq!(child.usage, wrong((10, 50), (9, 45)));
    range.rows.0.insert(row.clone(), value);
    let usage = key::usage(CHILD, BUCKET);
    range.rows.0.remove(&usage);
    assert_eq!(counted(&range, CHILD).usage, wrong((0, 0), (10, 50)));
    assert_eq!(crate::recount(&range.rows, RangeId(9)), Ok(None));
}

#[test]
fn of_the_middle_half_of_the_objects_lie_before() {
    let mut range = with_objects();
    let middle = |range: &Replicas, id| match range.query_of(id, &RangeQuery::Middle) {
        RangeAnswer::Middle(at) => at,
        other => panic!("{other:?}"),
    };
    assert_eq!(middle(&range, PARENT), Some(at("z0")));
    split(&mut range, "z0");
    assert_eq!(middle(&range, PARENT), Some(at("a5")), "the other's are not counted");
    assert_eq!(middle(&range, CHILD), Some(at("z5")));
    assert_eq!(middle(&Replicas::with_bucket(), PARENT), None);
}

#[test]
fn the_split_is_told_until_the_root_has_it() {
    let mut range = with_objects();
    split(&mut range, "m");
    let untold = |range: &Replicas| state_of(range, PARENT).untold;
    let [left, right] = &range.ranges()[..] else { panic!("two ranges") };
    assert_eq!(untold(&range), [SplitDone { left: left.clone(), right: right.clone() }]);
    entry(&mut range, RangeOp::SplitTold { child: RangeId(7) });
    assert_eq!(untold(&range).len(), 1);
    entry(&mut range, RangeOp::SplitTold { child: CHILD });
    assert!(untold(&range).is_empty());
    walk_through(&mut range);
    assert!(!range.rows.0.contains_key(&key::state(PARENT, 4)), "nothing is under way");
}

/// Extents that miss a slot, of keys `z0`, `z1`, ..., the worst; then two of `a` and `b`.
fn with_missing() -> Replicas {
    let mut range = Replicas::with_bucket();
    let short = |counter, missing: &[u8]| Content {
        extents: vec![extent(counter, 9, missing)],
        ..Content::default()
    };
    for number in 0..7_u8 {
        range.send(put_op(&format!("z{number}"), number, short(u64::from(number), &[0, 1])));
    }
    range.send(put_op("a", 20, short(20, &[5])));
    range.send(put_op("b", 21, short(21, &[5])));
    range
}

#[test]
fn l1_a_page_of_what_is_missing_passes_over_what_lies_behind_the_split() {
    let mut range = with_missing();
    split(&mut range, "m");
    let page = |range: &Replicas, id, after| {
        let answer = range.query_of(id, &RangeQuery::Missing { after, limit: 1 });
        let RangeAnswer::Missing { entries, more } = answer else { panic!("{answer:?}") };
        (entries.iter().map(|entry| entry.extent.id.counter).collect::<Vec<_>>(), more)
    };
    assert_eq!(range.count(family::REPAIR), 16, "nothing is removed yet");
    let behind = |counter| Some(ExtentId { session: SESSION, counter });
    assert_eq!(page(&range, PARENT, None), (vec![20], true), "the first page has entries");
    assert_eq!(page(&range, PARENT, behind(20)), (vec![21], false));
    assert_eq!(page(&range, CHILD, None), (vec![0], true));
    assert_eq!(page(&range, CHILD, behind(6)), (vec![], false));
}

#[test]
fn a_repair_is_told_to_the_side_that_has_the_owners_key() {
    let mut range = with_missing();
    split(&mut range, "m");
    let seen = extent(3, 9, &[0, 1]);
    let repaired = || {
        let slots = seen.missing;
        vec![Command { caller: None, op: RangeOp::Repaired { extent: seen.clone(), slots } }]
    };
    // its row is in the parent still: what is sent there comes to nothing
    assert_eq!(range.apply_to(PARENT, false, repaired()), [refused(Refusal::OutsideRange)]);
    assert_eq!(range.apply_to(CHILD, false, repaired()), [done()]);
    assert!(!range.missing().contains(&3));
}
