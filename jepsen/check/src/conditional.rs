//! Races of conditional puts: of all that try to create a key, exactly one wins (C3).
//!
//! Judged are keys on which nothing but `Create` wrote and nobody deleted. More than one success is a violation;
//! so is a race in which all were refused, because each refusal claims that an object was there.

use crate::history::{Action, Kind, Operation};
use std::collections::BTreeMap;

#[derive(Default)]
struct Race {
    won: usize,
    refused: usize,
    unknown: usize,
    other_writers: bool,
}

/// The violations of all races.
pub fn check(operations: &[Operation]) -> Vec<String> {
    let mut races: BTreeMap<&str, Race> = BTreeMap::new();
    for operation in operations {
        match &operation.action {
            Action::Create { key, .. } => races.entry(key).or_default().count(operation.end),
            Action::Put { key, .. } | Action::Delete { key } => {
                races.entry(key).or_default().other_writers = true;
            }
            Action::Get { .. } | Action::List { .. } => {}
        }
    }
    races
        .iter()
        .filter_map(|(key, race)| race.violation().map(|violation| format!("{key}: {violation}")))
        .collect()
}

impl Race {
    fn count(&mut self, end: Kind) {
        match end {
            Kind::Ok => self.won += 1,
            Kind::Fail => self.refused += 1,
            Kind::Info | Kind::Invoke => self.unknown += 1,
        }
    }

    fn violation(&self) -> Option<String> {
        if self.other_writers {
            return None;
        }
        if self.won > 1 {
            return Some(format!("{} creators won the same race", self.won));
        }
        let nobody = self.won == 0 && self.unknown == 0 && self.refused > 0;
        nobody.then(|| {
            format!("all {} creators were refused, though nothing was there", self.refused)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::tests_support::{create, delete, story};

    #[test]
    fn one_winner_is_allowed_and_an_unknown_one_may_be_it() {
        assert!(
            check(&story(&[create("a", 1, 0, 5, Kind::Ok), create("a", 2, 0, 6, Kind::Fail)]))
                .is_empty()
        );
        assert!(
            check(&story(&[create("a", 1, 0, 0, Kind::Info), create("a", 2, 0, 6, Kind::Fail)]))
                .is_empty()
        );
    }

    #[test]
    fn planted_two_winners_and_none() {
        let two = story(&[create("a", 1, 0, 5, Kind::Ok), create("a", 2, 0, 6, Kind::Ok)]);
        assert!(check(&two)[0].contains("2 creators won"));
        let none = story(&[create("a", 1, 0, 5, Kind::Fail), create("a", 2, 0, 6, Kind::Fail)]);
        assert!(check(&none)[0].contains("all 2 creators were refused"));
    }

    #[test]
    fn keys_that_were_deleted_are_left_to_the_register() {
        let again = story(&[
            create("a", 1, 0, 5, Kind::Ok),
            delete("a", 6, 7, Kind::Ok),
            create("a", 2, 8, 9, Kind::Ok),
        ]);
        assert!(check(&again).is_empty());
    }
}
