//! Lists: in byte order, without repetition, complete and without ghosts (C4).
//!
//! A key must be in a list when a write of it was acknowledged before the list began and no delete was invoked before
//! the list ended; it must not be when nobody had begun to write it, or when its delete was acknowledged before the
//! list began and every write of it that may have happened had ended before that delete began.

use crate::history::{Action, Kind, Operation};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
struct Writers<'a> {
    writes: Vec<&'a Operation>,
    deletes: Vec<&'a Operation>,
}

/// The violations of all lists.
pub fn check(operations: &[Operation]) -> Vec<String> {
    let mut keys: BTreeMap<&str, Writers<'_>> = BTreeMap::new();
    for operation in operations.iter().filter(|operation| operation.end != Kind::Fail) {
        match &operation.action {
            Action::Put { key, .. } | Action::Create { key, .. } => {
                keys.entry(key).or_default().writes.push(operation);
            }
            Action::Delete { key } => keys.entry(key).or_default().deletes.push(operation),
            Action::Get { .. } | Action::List { .. } => {}
        }
    }
    operations
        .iter()
        .filter(|operation| operation.end == Kind::Ok)
        .flat_map(|list| judge(list, &keys))
        .collect()
}

fn judge(list: &Operation, known: &BTreeMap<&str, Writers<'_>>) -> Vec<String> {
    let Action::List { prefix, keys } = &list.action else { return Vec::new() };
    let number = list.number;
    let mut violations = Vec::new();
    if let Some(pair) = keys.windows(2).find(|pair| pair[0].as_bytes() >= pair[1].as_bytes()) {
        violations.push(format!("list {number}: {:?} comes before {:?}", pair[0], pair[1]));
    }
    let listed: BTreeSet<&str> = keys.iter().map(String::as_str).collect();
    for (key, writers) in known.iter().filter(|(key, _)| key.starts_with(prefix.as_str())) {
        if writers.surely_there(list) && !listed.contains(key) {
            violations.push(format!("list {number}: {key:?} is missing"));
        }
    }
    for key in &listed {
        if known.get(key).is_none_or(|writers| writers.surely_gone(list)) {
            violations.push(format!("list {number}: {key:?} should not be there"));
        }
    }
    violations
}

impl Writers<'_> {
    fn surely_there(&self, list: &Operation) -> bool {
        let last_write = self
            .writes
            .iter()
            .filter(|write| write.ended_us < list.invoked_us)
            .map(|write| write.invoked_us)
            .max();
        let Some(written) = last_write else { return false };
        !self
            .deletes
            .iter()
            .any(|delete| delete.invoked_us < list.ended_us && delete.ended_us > written)
    }

    fn surely_gone(&self, list: &Operation) -> bool {
        let begun: Vec<_> =
            self.writes.iter().filter(|write| write.invoked_us < list.ended_us).collect();
        if begun.is_empty() {
            return true;
        }
        let gone = |delete: &&&Operation| {
            delete.ended_us < list.invoked_us
                && begun.iter().all(|write| write.ended_us < delete.invoked_us)
        };
        self.deletes.iter().any(|delete| gone(&delete))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::tests_support::{delete, list, put, story};

    #[test]
    fn what_overlaps_may_be_there_or_not() {
        let story = story(&[
            put("a", 1, 0, 5, Kind::Ok),
            put("b", 2, 0, 50, Kind::Ok),
            put("c", 3, 0, 5, Kind::Ok),
            delete("c", 6, 0, Kind::Info),
            list("", &["a", "c"], 10, 20),
            list("", &["a", "b"], 10, 20),
        ]);
        assert_eq!(check(&story), Vec::<String>::new());
    }

    #[test]
    fn planted_a_missing_key_a_ghost_a_phantom_and_disorder() {
        let base =
            [put("a", 1, 0, 5, Kind::Ok), put("b", 2, 0, 5, Kind::Ok), delete("b", 6, 8, Kind::Ok)];
        let with = |keys: &[&str]| check(&story(&[&base[..], &[list("", keys, 10, 20)]].concat()));
        assert_eq!(with(&["a"]), Vec::<String>::new());
        assert!(with(&[])[0].contains("missing"));
        assert!(with(&["a", "b"])[0].contains("should not be there"));
        assert!(with(&["a", "x"])[0].contains("should not be there"));
        assert!(with(&["a", "a"])[0].contains("comes before"));
    }
}
