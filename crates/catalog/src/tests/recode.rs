//! A copy under another code takes the place of an extent, or comes too late.

use super::support::*;
use ashlar_types::*;

const DONE: Outcome = Outcome::Applied(Applied::Done);

fn object(key: &str, mark: u8) -> ExtentOwner {
    ExtentOwner::Object { at: at(key), object: ObjectId(u128::from(mark)) }
}

/// The counters of the extents that a read is told of.
fn read(range: &Replicas, key: &str) -> Vec<u64> {
    let RangeAnswer::Object { pieces, .. } = range.object(key, Span::All) else {
        panic!("no object")
    };
    let counter = |piece: &Piece| match piece {
        Piece::Extent { extent, .. } => Some(extent.id.counter),
        Piece::Inline { .. } => None,
    };
    pieces.iter().filter_map(counter).collect()
}

#[test]
fn c1_d4_the_copy_takes_the_place_and_the_old_one_waits_for_its_readers() {
    let mut range = Replicas::with_bucket();
    range.send(put_op("key", 1, extents(1..4, 5)));
    let (seen, before) = (extent(2, 5, &[]), range.range.clone());
    let op = recode(object("key", 1), seen.clone(), recoded(&seen, 20, &[]));
    assert_eq!(range.send(op), DONE);
    assert_eq!(read(&range, "key"), [1, 20, 3], "in its place");
    assert_eq!(range.garbage(), [2]);
    assert_eq!(range.usage(), (1, 15), "nothing that a client sees has changed");
    assert_ne!(range.range, before);
    let RangeAnswer::Garbage { extents, generation, .. } =
        range.query(&RangeQuery::Collectable { after: None, limit: 10 })
    else {
        panic!("no page of the gc queue")
    };
    assert_eq!(extents[0].1, generation, "later than whatever a read before has seen");
}

#[test]
fn what_was_overwritten_deleted_or_recoded_meanwhile_keeps_what_it_has() {
    let mut range = Replicas::with_bucket();
    range.send(put_op("key", 1, extents(1..2, 5)));
    range.send(put_op("key", 2, extents(2..3, 5)));
    let changed = Outcome::Refused(Refusal::ExtentChanged);
    let late = |counter, mark, seen: &Extent| {
        recode(object("key", mark), seen.clone(), recoded(seen, counter, &[]))
    };
    assert_eq!(range.send(late(20, 1, &extent(1, 5, &[]))), changed, "another object by now");
    assert_eq!(range.send(late(21, 2, &extent(1, 5, &[]))), changed, "another extent by now");
    assert_eq!(range.send(late(22, 2, &extent(2, 5, &[3]))), changed, "a slot was repaired");
    range.send(delete("key", WriteCondition::Always));
    assert_eq!(range.send(late(23, 2, &extent(2, 5, &[]))), changed);
    assert_eq!(range.garbage(), [1, 2, 20, 21, 22, 23], "D3: late copies are garbage");
}

#[test]
fn what_is_no_copy_is_refused() {
    let mut range = Replicas::with_bucket();
    range.send(put_op("key", 1, extents(1..2, 5)));
    let seen = extent(1, 5, &[]);
    let shorter = Extent { length: 4, ..recoded(&seen, 20, &[]) };
    let other = Extent { crc64: 99, ..recoded(&seen, 21, &[]) };
    for copy in [shorter, other] {
        let op = recode(object("key", 1), seen.clone(), copy);
        assert_eq!(range.send(op), Outcome::Refused(Refusal::Unsupported));
    }
    let foreign =
        Extent { id: ExtentId { session: SessionId(50), counter: 1 }, ..recoded(&seen, 22, &[]) };
    let op = recode(object("key", 1), seen.clone(), foreign);
    assert_eq!(range.send(op), Outcome::Refused(Refusal::ForeignExtent));
    assert_eq!(
        range.duty(recode(object("key", 1), seen.clone(), recoded(&seen, 23, &[]))),
        Outcome::Refused(Refusal::ForeignExtent),
        "without a session nothing new is named"
    );
    assert_eq!(read(&range, "key"), [1]);
}

#[test]
fn the_repair_index_follows_the_copy() {
    let mut range = Replicas::with_bucket();
    let content = Content { extents: vec![extent(1, 5, &[2])], ..Content::default() };
    range.send(put_op("key", 1, content));
    let seen = extent(1, 5, &[2]);
    let op = recode(object("key", 1), seen.clone(), recoded(&seen, 20, &[1]));
    assert_eq!(range.send(op), DONE);
    assert_eq!(range.missing(), [20]);
    let seen = recoded(&seen, 20, &[1]);
    let op = recode(object("key", 1), seen.clone(), recoded(&seen, 21, &[]));
    assert_eq!(range.send(op), DONE);
    assert!(range.missing().is_empty());
}

#[test]
fn parts_and_far_extents_are_recoded_in_open_uploads_and_in_objects() {
    let mut range = Replicas::with_bucket();
    range.send(create_upload("key", 7));
    range.send(put_part("key", 7, 1, 71, extents(1..100, 5)));
    let part =
        ExtentOwner::Part { at: at("key"), upload: UploadId(7), number: 1, object: ObjectId(71) };
    let mut send = |seen: Extent, counter| {
        let copy = recoded(&seen, counter, &[]);
        assert_eq!(range.send(recode(part.clone(), seen, copy)), DONE);
    };
    send(extent(90, 5, &[]), 200);
    let done = complete("key", 7, 8, &[(1, 99 * 5, 71)]);
    assert!(matches!(range.send(RangeOp::CompleteUpload(Box::new(done))), Outcome::Applied(_)));
    let seen = extent(3, 5, &[]);
    let copy = recoded(&seen, 201, &[]);
    assert_eq!(range.send(recode(part, seen, copy)), DONE);
    let read = read(&range, "key");
    assert_eq!((read[2], read[89], read.len()), (201, 200, 99));
}
