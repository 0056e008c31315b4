//! Epoch and interval are those of the rows: of the view that is read, of the state that an entry is applied to.

use super::support::*;
use crate::row::DescriptorRow;
use crate::{Range, RangeReader, key, owned_intervals, removable_intervals};
use ashlar_types::*;

/// The keys before `m`.
fn narrow() -> RangeDescriptor {
    let wide = descriptor();
    let interval = Interval { start: wide.interval.start, end: Some(at("m")) };
    RangeDescriptor { epoch: Epoch(2), interval, ..wide }
}

/// The keys from `m` on.
fn neighbour() -> RangeDescriptor {
    let wide = descriptor();
    let interval = Interval { start: at("m"), end: wide.interval.end };
    RangeDescriptor { id: RangeId(2), epoch: Epoch(2), interval, ..wide }
}

/// A range with objects on both sides of `m`, as its rows say after it has lost those behind.
fn narrowed() -> Replicas {
    let mut range = Replicas::with_bucket();
    for key in ["a", "l", "m", "z"] {
        assert!(matches!(range.send(put_op(key, 1, inline("text"))), Outcome::Applied(_)));
    }
    range.rows.0.insert(key::state(RangeId(1), 0), encode(&DescriptorRow(narrow())));
    range
}

#[test]
fn r11_a_read_is_judged_by_the_interval_that_its_view_has() {
    let range = narrowed();
    assert!(matches!(range.object("l", Span::All), RangeAnswer::Object { .. }));
    assert_eq!(range.object("m", Span::All), RangeAnswer::Refused(QueryRefusal::OutsideRange));
    assert_eq!(range.list("", "/", "", 10), (vec!["a".to_owned(), "l".to_owned()], false));
    assert_eq!(range.inventory(None, 100).0.len(), 2);
    let reader = RangeReader::open(&range.rows, RangeId(1)).unwrap().unwrap();
    assert_eq!(reader.descriptor(), &narrow());
    assert!(RangeReader::open(&range.rows, RangeId(2)).unwrap().is_none());
}

#[test]
fn a_command_of_an_older_epoch_or_outside_of_the_interval_is_refused_and_may_be_sent_again() {
    let range = narrowed();
    let mut applied = Range::load(&range.rows, RangeId(1)).unwrap().unwrap();
    assert_eq!(applied.descriptor(), &narrow());
    let caller = Caller { session: SESSION, seq: 90, answered_below: 0, base_index: 0 };
    let mut send = |epoch: u64, key: &str| {
        let command = Command { caller: Some(caller), op: put_op(key, 2, inline("new")) };
        let batch = Batch { epoch: Epoch(epoch), proposed_ms: 2_000, commands: vec![command] };
        applied.apply(&range.rows, 50, false, &batch).unwrap().outcomes.remove(0)
    };
    assert_eq!(send(1, "a"), Outcome::Refused(Refusal::OutsideRange));
    assert_eq!(send(2, "m"), Outcome::Refused(Refusal::OutsideRange));
    assert!(matches!(send(2, "a"), Outcome::Applied(_)));
}

#[test]
fn what_is_removed_of_a_range_are_all_its_rows_and_none_of_its_childs() {
    let mut range = Replicas::with_bucket();
    range.send(put_op("a", 1, inline("text")));
    range.send(put_op("z", 1, extents(0..70, 9)));
    range.send(delete("z", WriteCondition::Always));
    range.send(create_upload("b", 5));
    range.send(put_part("b", 5, 1, 6, extents(80..81, 9)));
    let mut whole = removable_intervals(&range.rows, &descriptor()).unwrap();
    whole.sort();
    assert_eq!(whole, owned_intervals(&range.rows, &descriptor()).unwrap(), "nobody else is there");

    // its child is here already, and it does not know: what it removes stops at the child's first key
    let own = range.rows.clone();
    range.rows.write(&Range::create(&neighbour()).1);
    range.rows.0.insert(key::current(&at("m")), b"the child's".to_vec());
    range.rows.0.insert(key::inline(&at("y"), ObjectId(1)), b"the child's".to_vec());
    let childs: Vec<_> = range.rows.0.iter().filter(|(key, _)| !own.0.contains_key(*key)).collect();
    let removed = removable_intervals(&range.rows, &descriptor()).unwrap();
    let is_removed = |key: &Vec<u8>| {
        removed.iter().any(|(from, to)| from <= key && to.as_ref().is_none_or(|to| key < to))
    };
    assert_eq!(childs.len(), 6);
    assert!(childs.iter().all(|(key, _)| !is_removed(key)));
    assert!(own.0.keys().all(is_removed));
    assert_eq!(removed.last(), Some(&key::range_interval(key::family::STATE, RangeId(1))));

    // the other way round nothing is held back: what the parent has there is older
    let mut removed = removable_intervals(&range.rows, &neighbour()).unwrap();
    removed.sort();
    assert_eq!(removed, owned_intervals(&range.rows, &neighbour()).unwrap());
}
