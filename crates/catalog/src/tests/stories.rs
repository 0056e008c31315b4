//! What a range promises, one story a promise.

use super::support::*;
use crate::key::family;
use ashlar_types::*;

fn refused(refusal: Refusal) -> Outcome {
    Outcome::Refused(refusal)
}

fn is_written(outcome: &Outcome, mark: u8) -> bool {
    matches!(outcome, Outcome::Applied(Applied::Written { etag, .. }) if *etag == etag_of(mark))
}

fn etag_of(mark: u8) -> Etag {
    etag(mark)
}

fn with(mut op: Put, condition: WriteCondition, token: Option<RequestToken>) -> RangeOp {
    op.condition = condition;
    op.token = token;
    RangeOp::Put(Box::new(op))
}

#[test]
fn an_overwrite_frees_what_it_replaced_and_usage_stays_exact() {
    let mut range = Replicas::with_bucket();
    range.send(put_op("k", 1, extents(0..70, 10)));
    assert_eq!((range.usage(), range.count(family::EXTENTS)), ((1, 700), 1));
    range.send(put_op("k", 2, inline("hello")));
    assert_eq!(range.usage(), (1, 5));
    assert_eq!((range.garbage().len(), range.count(family::EXTENTS)), (70, 0));
    assert_eq!(
        range.send(delete("k", WriteCondition::Always)),
        Outcome::Applied(Applied::Deleted { existed: true })
    );
    assert_eq!((range.usage(), range.rows_of_objects()), ((0, 0), 0));
    assert_eq!(
        range.send(delete("k", WriteCondition::Always)),
        Outcome::Applied(Applied::Deleted { existed: false })
    );
    let extents =
        range.garbage().into_iter().map(|counter| ExtentId { session: SESSION, counter }).collect();
    range.duty(RangeOp::CollectDone { extents });
    assert_eq!(range.garbage(), [0_u64; 0]);
}

#[test]
fn c3_of_two_racers_one_wins_and_the_loser_leaves_garbage() {
    let mut range = Replicas::with_bucket();
    let absent = || WriteCondition::Absent;
    assert!(is_written(&range.send(with(put("k", 1, extents(0..1, 1)), absent(), token(1))), 1));
    let loser = range.send(with(put("k", 2, extents(1..2, 1)), absent(), token(2)));
    assert_eq!((loser, range.garbage()), (refused(Refusal::ConditionFailed), vec![1]));
    let matches = |mark| WriteCondition::Matches(vec![etag(mark)]);
    assert_eq!(
        range.send(with(put("k", 3, inline("x")), matches(9), None)),
        refused(Refusal::ConditionFailed)
    );
    assert_eq!(
        range.send(with(put("none", 3, inline("x")), matches(9), None)),
        refused(Refusal::NoSuchKey)
    );
    assert_eq!(range.send(delete("none", matches(1))), refused(Refusal::NoSuchKey));
    assert!(is_written(&range.send(with(put("k", 3, inline("x")), matches(1), None)), 3));
}

#[test]
fn c7_a_clients_own_retry_gets_the_success_again() {
    let mut range = Replicas::with_bucket();
    let first = range.send(with(put("k", 1, extents(0..1, 1)), WriteCondition::Absent, token(1)));
    let mut retry = put("k", 1, extents(1..2, 1));
    retry.object = ObjectId(77);
    let again = range.send(with(retry.clone(), WriteCondition::Absent, token(1)));
    assert_eq!(again, first);
    assert_eq!(range.garbage(), [1], "the retry's bytes are not the object's");
    retry.etag = etag(2);
    retry.content = inline("");
    let other_content = range.send(with(retry, WriteCondition::Absent, token(1)));
    assert_eq!(other_content, refused(Refusal::ConditionFailed));
}

#[test]
fn a_resend_is_answered_without_being_applied_again() {
    let mut range = Replicas::with_bucket();
    let caller = range.caller();
    let first = range.send_as(caller, put_op("k", 1, extents(0..1, 1)));
    range.send(delete("k", WriteCondition::Always));
    assert_eq!(range.send_as(caller, put_op("k", 1, extents(0..1, 1))), first);
    assert_eq!(range.usage(), (0, 0), "it has not come back (C6)");
    let later = Caller { answered_below: 3, ..range.caller() };
    range.send_as(later, put_op("l", 2, inline("x")));
    assert_eq!(range.count(family::RESULT), 1);
    assert_eq!(
        range.send_as(caller, put_op("k", 1, extents(0..1, 1))),
        refused(Refusal::Forgotten)
    );
    assert_eq!(range.garbage(), [0], "a resend whose outcome is unknown frees nothing more");
}

#[test]
fn of_a_command_and_its_abandonment_the_log_keeps_the_first() {
    let mut range = Replicas::with_bucket();
    let abandon = |caller: Caller, counter| {
        RangeOp::Abandon(Abandon {
            at: at("k"),
            seq: caller.seq,
            content: extents(counter..counter + 1, 1),
        })
    };
    let caller = range.caller();
    assert_eq!(range.send_as(caller, abandon(caller, 0)), Outcome::Applied(Applied::Done));
    assert_eq!(range.send_as(caller, abandon(caller, 0)), Outcome::Applied(Applied::Done));
    assert_eq!(
        range.send_as(caller, put_op("k", 1, extents(0..1, 1))),
        refused(Refusal::Abandoned)
    );
    assert_eq!((range.usage(), range.garbage()), ((0, 0), vec![0]));
    let caller = range.caller();
    let written = range.send_as(caller, put_op("k", 2, extents(1..2, 1)));
    assert_eq!(range.send_as(caller, abandon(caller, 1)), written);
    assert_eq!((range.usage(), range.garbage()), ((1, 1), vec![0]));
}

#[test]
fn fenced_sessions_and_foreign_extents_are_refused() {
    let mut range = Replicas::with_bucket();
    let foreign = Caller { session: SessionId(101), seq: 1, answered_below: 0, base_index: 0 };
    assert_eq!(
        range.send_as(foreign, put_op("k", 1, extents(0..1, 1))),
        refused(Refusal::ForeignExtent)
    );
    assert_eq!(range.duty(put_op("k", 1, extents(0..1, 1))), refused(Refusal::ForeignExtent));
    range.send(put_op("k", 1, extents(0..1, 1)));
    range.duty(RangeOp::RaiseSessionFloor { floor: SessionId(102), living: vec![SessionId(101)] });
    assert_eq!(range.send(put_op("k", 2, extents(1..2, 1))), refused(Refusal::SessionFenced));
    assert_eq!((range.garbage(), range.count(family::RESULT)), (vec![], 1));
    let second = Caller { seq: 2, ..foreign };
    assert!(is_written(&range.send_as(second, put_op("k", 3, inline("x"))), 3));
    range.duty(RangeOp::RaiseSessionFloor { floor: SessionId(103), living: vec![SESSION] });
    assert_eq!(
        range.send(put_op("k", 2, inline("x"))),
        refused(Refusal::SessionFenced),
        "no resurrection"
    );
}

#[test]
fn a_bucket_is_judged_by_its_epoch_and_the_same_seq_may_come_again() {
    let mut range = Replicas::with_bucket();
    let caller = range.caller();
    let mut op = put("k", 1, extents(0..1, 1));
    op.bucket_epoch = Epoch(2);
    let op = RangeOp::Put(Box::new(op));
    assert_eq!(
        range.send_as(caller, op.clone()),
        refused(Refusal::BucketEpoch { known: Some(Epoch(1)) })
    );
    assert_eq!(range.garbage(), [0_u64; 0], "the resend names them again");
    range.duty(RangeOp::SetBucket(bucket_row(Epoch(2))));
    range.duty(RangeOp::SetBucket(bucket_row(Epoch(1))));
    assert!(is_written(&range.send_as(caller, op), 1));
    assert_eq!(
        range.send(put_op("k", 2, inline(""))),
        refused(Refusal::BucketEpoch { known: Some(Epoch(2)) })
    );
    let outside = KeyPoint::new(BucketId(9), *b"k");
    let mut op = put("k", 2, inline(""));
    op.at = outside;
    assert_eq!(range.send(RangeOp::Put(Box::new(op))), refused(Refusal::OutsideRange));
}

#[test]
fn c11_a_fence_needs_an_empty_bucket_refuses_all_and_can_be_taken_back() {
    let mut range = Replicas::with_bucket();
    range.send(put_op("k", 1, inline("x")));
    let fence = |epoch| RangeOp::FenceBucket { bucket: BUCKET, epoch: Epoch(epoch) };
    assert_eq!(range.duty(fence(2)), refused(Refusal::BucketNotEmpty));
    range.send(delete("k", WriteCondition::Always));
    for upload in 0..40 {
        range.send(create_upload("u", upload));
        range.send(put_part(
            "u",
            upload,
            1,
            1000 + upload,
            extents(u64::try_from(upload).unwrap()..u64::try_from(upload).unwrap() + 1, 1),
        ));
    }
    let fenced = Outcome::Applied(Applied::Fenced(descriptor().interval));
    assert_eq!(range.duty(fence(2)), fenced);
    assert_eq!(range.count(family::UPLOAD), 8, "the sweep is bounded");
    assert_eq!(range.duty(fence(2)), fenced);
    assert_eq!((range.rows_of_objects(), range.garbage().len()), (0, 40));
    assert_eq!(range.send(put_op("k", 2, inline("x"))), refused(Refusal::BucketFenced));
    assert_eq!(range.object("k", Span::All), RangeAnswer::Refused(QueryRefusal::BucketFenced));
    range.duty(RangeOp::UnfenceBucket { bucket: BUCKET, epoch: Epoch(3) });
    assert_eq!(range.duty(fence(2)), refused(Refusal::BucketEpoch { known: Some(Epoch(3)) }));
    let mut op = put("k", 3, inline("x"));
    op.bucket_epoch = Epoch(3);
    assert!(is_written(&range.send(RangeOp::Put(Box::new(op))), 3));
}

#[test]
fn c10_an_upload_appears_whole_and_a_repeated_complete_answers_the_same() {
    let mut range = Replicas::with_bucket();
    range.send(put_op("k", 1, extents(90..91, 3)));
    range.send(create_upload("k", 1));
    range.send(put_part("k", 1, 1, 11, extents(0..2, 10)));
    range.send(put_part("k", 1, 1, 12, extents(2..4, 10)));
    range.send(put_part("k", 1, 2, 13, extents(4..70, 10)));
    range.send(put_part("k", 1, 5, 14, inline("tail")));
    range.send(put_part("k", 1, 6, 15, extents(80..81, 1)));
    assert_eq!(range.usage(), (1, 3), "nothing shows of parts");
    let stale = complete("k", 1, 20, &[(1, 20, 11), (2, 660, 13)]);
    assert_eq!(
        range.send(RangeOp::CompleteUpload(Box::new(stale))),
        refused(Refusal::PartsChanged)
    );
    let chosen = complete("k", 1, 20, &[(1, 20, 12), (2, 660, 13), (5, 4, 14)]);
    let first = range.send(RangeOp::CompleteUpload(Box::new(chosen.clone())));
    assert!(matches!(first, Outcome::Applied(Applied::Written { .. })));
    assert_eq!((range.usage(), range.garbage()), ((1, 684), vec![0, 1, 80, 90]));
    assert_eq!(range.send(RangeOp::CompleteUpload(Box::new(chosen.clone()))), first);
    let other = complete("k", 1, 21, &[(1, 20, 12)]);
    assert_eq!(
        range.send(RangeOp::CompleteUpload(Box::new(other))),
        refused(Refusal::NoSuchUpload)
    );
    assert_eq!(range.send(abort("k", 1)), refused(Refusal::NoSuchUpload));

    let RangeAnswer::Object { record, from, to, pieces } =
        range.object("k", Span::Between { first: 675, last: 10_000 })
    else {
        panic!("the object is there")
    };
    assert_eq!((record.parts.len(), from, to), (3, 675, 684));
    let spans: Vec<_> = pieces.iter().map(|piece| (piece.offset(), piece.length())).collect();
    assert_eq!(spans, [(670, 10), (680, 4)], "the last extent, from its extent row, and the tail");
    let RangeAnswer::Object { from, to, .. } = range.object("k", Span::Part(2)) else { panic!() };
    assert_eq!((from, to), (20, 680));
    assert_eq!(range.object("k", Span::Part(3)), RangeAnswer::Refused(QueryRefusal::NoSuchPart));

    range.send(delete("k", WriteCondition::Always));
    assert_eq!(range.garbage().len(), 72);
    assert_eq!(range.rows_of_objects(), 1, "only what became of the upload");
    range.now_ms += 8 * 24 * 3600 * 1000;
    range.duty(RangeOp::ReportHash);
    assert_eq!(range.rows_of_objects(), 0);
    assert_eq!(
        range.send(RangeOp::CompleteUpload(Box::new(chosen))),
        refused(Refusal::NoSuchUpload)
    );
}

#[test]
fn an_aborted_upload_leaves_nothing_but_garbage() {
    let mut range = Replicas::with_bucket();
    range.send(create_upload("k", 1));
    range.send(put_part("k", 1, 1, 11, extents(0..70, 10)));
    assert_eq!(range.send(abort("k", 1)), Outcome::Applied(Applied::Done));
    assert_eq!((range.rows_of_objects(), range.garbage().len()), (0, 70));
    let late = range.send(put_part("k", 1, 2, 12, extents(99..100, 1)));
    assert_eq!((late, range.garbage().len()), (refused(Refusal::NoSuchUpload), 71));
}

#[test]
fn what_misses_a_slot_waits_for_repair_the_worst_first() {
    let mut range = Replicas::with_bucket();
    let short = |counter, missing: &[u8]| Content {
        extents: vec![extent(counter, 9, missing)],
        ..Content::default()
    };
    range.send(put_op("a", 1, short(1, &[5])));
    range.send(put_op("b", 2, short(2, &[0, 1])));
    range.send(put_op("c", 3, short(3, &[])));
    assert_eq!(range.missing(), [2, 1]);
    let after = Some(ExtentId { session: SESSION, counter: 2 });
    let rest = range.query(&RangeQuery::Missing { after, limit: 10 });
    assert!(matches!(rest, RangeAnswer::Missing { entries, more: false } if entries.len() == 1));
    range.send(delete("b", WriteCondition::Always));
    assert_eq!((range.missing(), range.garbage()), (vec![1], vec![2]));
}

#[test]
fn what_is_freed_has_a_later_generation_than_reads_before_have_seen() {
    let mut range = Replicas::with_bucket();
    let collectable =
        |range: &Replicas| match range.query(&RangeQuery::Collectable { after: None, limit: 10 }) {
            RangeAnswer::Garbage { extents, generation, .. } => (extents, generation),
            other => panic!("{other:?}"),
        };
    range.send(put_op("overwritten", 1, extents(0..1, 4)));
    range.send(put_op("deleted", 2, extents(1..2, 4)));
    for (end, freed) in [
        (put_op("overwritten", 3, extents(2..3, 4)), 0),
        (delete("deleted", WriteCondition::Always), 1),
    ] {
        let (_, seen) = collectable(&range);
        range.send(end);
        let (queue, now) = collectable(&range);
        let (.., generation) =
            queue.into_iter().find(|(extent, ..)| extent.id.counter == freed).unwrap();
        assert!(seen < generation && generation <= now, "{seen:?} {generation:?} {now:?}");
    }
    let id = |counter| ExtentId { session: SESSION, counter };
    let asked = range.query(&RangeQuery::AreCollectable { extents: vec![id(0), id(2), id(1)] });
    assert_eq!(asked, RangeAnswer::AreCollectable(vec![true, false, true]));
}

#[test]
fn redescribe_keeps_the_content_and_wants_the_generation_it_read() {
    let mut range = Replicas::with_bucket();
    range.send(put_op("k", 1, extents(0..1, 4)));
    let redescribe = |generation| {
        RangeOp::Redescribe(Box::new(Redescribe {
            at: at("k"),
            bucket_epoch: EPOCH,
            condition: WriteCondition::Always,
            generation: Generation(generation),
            modified_ms: 50,
            description: Description {
                headers: Vec::new(),
                metadata: vec![("a".into(), "b".into())],
            },
            checksums: Vec::new(),
            token: token(4),
        }))
    };
    let first = range.send(redescribe(1));
    assert!(is_written(&first, 1));
    assert_eq!(range.send(redescribe(1)), first, "its own retry");
    range.send(put_op("k", 2, inline("x")));
    assert_eq!(range.send(redescribe(1)), refused(Refusal::ObjectChanged));
    assert_eq!(range.garbage(), [0]);
}

#[test]
fn a_list_rolls_up_and_continues_behind_a_common_prefix() {
    let mut range = Replicas::with_bucket();
    for (mark, key) in (1..).zip(["a", "a/1", "a/2", "a0", "b/1", "b/2/3", "c"]) {
        range.send(put_op(key, mark, inline("")));
    }
    let list = |prefix, delimiter, after, limit| range.list(prefix, delimiter, after, limit);
    assert_eq!(
        list("", "/", "", 1000),
        (vec!["a".into(), "a/*".into(), "a0".into(), "b/*".into(), "c".into()], false)
    );
    assert_eq!(list("", "/", "", 2), (vec!["a".into(), "a/*".into()], true));
    assert_eq!(list("", "/", "a/", 2), (vec!["a0".into(), "b/*".into()], true));
    assert_eq!(list("", "/", "a/1", 2), (vec!["a0".into(), "b/*".into()], true));
    assert_eq!(list("b/", "/", "", 10), (vec!["b/1".into(), "b/2/*".into()], false));
    assert_eq!(list("b/", "", "b/1", 10), (vec!["b/2/3".into()], false));
    assert_eq!(list("", "/", "c", 10), (vec![], false));
    assert_eq!(list("", "/", "", 0), (vec![], false));
}

#[test]
fn uploads_are_listed_by_key_then_by_age() {
    let mut range = Replicas::with_bucket();
    for (key, upload) in [("b", 9), ("a", 8), ("b", 1), ("c/d", 3)] {
        range.send(create_upload(key, upload));
    }
    let list = |after_key: &str, after_upload: Option<u128>, limit| {
        let query = RangeQuery::ListUploads {
            bucket: BUCKET,
            bucket_epoch: EPOCH,
            prefix: Vec::new(),
            delimiter: Some(b"/".to_vec()),
            after_key: after_key.into(),
            after_upload: after_upload.map(UploadId),
            limit,
        };
        match range.query(&query) {
            RangeAnswer::Uploads(page) => page
                .entries
                .into_iter()
                .map(|entry| match entry {
                    UploadEntry::Upload { upload, .. } => upload.0,
                    UploadEntry::CommonPrefix(_) => 1000,
                })
                .collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(list("", None, 10), [8, 9, 1, 1000]);
    assert_eq!(list("b", Some(9), 1), [1]);
    assert_eq!(list("b", None, 10), [1000]);
    assert_eq!(list("c/d", Some(3), 10), [0_u128; 0]);
}

#[test]
fn a_newer_apply_version_stops_this_binary() {
    let range = Replicas::with_bucket();
    let op = RangeOp::RaiseApplyVersion { version: crate::KNOWN_VERSIONS.ranges + 1 };
    let batch =
        Batch { epoch: Epoch(1), proposed_ms: 0, commands: vec![Command { caller: None, op }] };
    let error = range.range.clone().apply(&range.rows, 9, false, &batch).unwrap_err();
    assert_eq!(
        error,
        crate::CatalogError::ApplyVersion {
            found: crate::KNOWN_VERSIONS.ranges + 1,
            known: crate::KNOWN_VERSIONS.ranges,
        }
    );
}
