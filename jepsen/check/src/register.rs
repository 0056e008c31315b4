//! Is each key a linearizable register? (C1, C2, C5, C6, C8)
//!
//! Every value is written once, so a write and the reads that saw it form a cluster. A cluster has a zone: from the
//! first end in it to the last invocation in it, if that is forward in time, the value was surely there all that
//! while; otherwise the cluster fits into any one moment of the (backward) zone. The history of a key is
//! linearizable if and only if no read precedes its write, no two forward zones overlap, and no forward zone contains
//! a backward one. Source: Gibbons and Korach, "Testing Shared Memories", 1997, section 4.
//!
//! A failed write is no write. A write of unknown outcome that somebody read happened; one that nobody read may be
//! left out. An acknowledged delete is a write that nobody can read by name. Reads that found nothing cannot name
//! their delete; for them two necessary conditions are judged: no value surely stood all the while, and each write
//! that surely preceded has a delete that may lie between.

use crate::history::{Action, Kind, Operation};
use std::collections::BTreeMap;

/// A value and all who saw it.
#[derive(Clone, Debug)]
struct Cluster {
    /// The value; none for a delete.
    value: Option<u64>,
    /// Earliest end.
    first_end: u64,
    /// Latest invocation.
    last_invoke: u64,
    write_invoked: u64,
}

impl Cluster {
    fn is_forward(&self) -> bool {
        self.first_end < self.last_invoke
    }

    fn low(&self) -> u64 {
        self.first_end.min(self.last_invoke)
    }

    fn high(&self) -> u64 {
        self.first_end.max(self.last_invoke)
    }

    fn name(&self) -> String {
        self.value.map_or_else(|| "a delete".to_owned(), |value| format!("value {value}"))
    }
}

/// The operations of one key.
#[derive(Default)]
struct Register<'a> {
    writes: Vec<&'a Operation>,
    deletes: Vec<&'a Operation>,
    reads: Vec<&'a Operation>,
}

/// The violations of all keys.
pub fn check(operations: &[Operation]) -> Vec<String> {
    let mut registers: BTreeMap<&str, Register<'_>> = BTreeMap::new();
    for operation in operations {
        match &operation.action {
            Action::Put { key, .. } | Action::Create { key, .. } => {
                registers.entry(key).or_default().writes.push(operation);
            }
            Action::Delete { key } => registers.entry(key).or_default().deletes.push(operation),
            Action::Get { key, .. } if operation.end == Kind::Ok => {
                registers.entry(key).or_default().reads.push(operation);
            }
            Action::Get { .. } | Action::List { .. } => {}
        }
    }
    registers
        .iter()
        .flat_map(|(key, register)| {
            register.violations().into_iter().map(move |v| format!("{key}: {v}"))
        })
        .collect()
}

impl Register<'_> {
    fn violations(&self) -> Vec<String> {
        let mut violations = Vec::new();
        let clusters = self.clusters(&mut violations);
        violations.extend(zones(&clusters));
        for read in self.reads.iter().filter(|read| seen(read).is_none()) {
            violations.extend(self.judge_absence(read, &clusters));
        }
        violations
    }

    /// The clusters of the writes that happened; reads that fit to none are violations.
    fn clusters(&self, violations: &mut Vec<String>) -> Vec<Cluster> {
        let mut by_value: BTreeMap<u64, (Cluster, Kind)> = BTreeMap::new();
        for write in &self.writes {
            let Some(value) = written(write) else { continue };
            let cluster = Cluster {
                value: Some(value),
                first_end: write.ended_us,
                last_invoke: write.invoked_us,
                write_invoked: write.invoked_us,
            };
            by_value.insert(value, (cluster, write.end));
        }
        let mut seen_values = Vec::new();
        for read in &self.reads {
            let Some(value) = seen(read) else { continue };
            match by_value.get_mut(&value) {
                None => violations
                    .push(format!("read {} saw value {value}, which nobody wrote", read.number)),
                Some((_, Kind::Fail)) => {
                    violations.push(format!(
                        "read {} saw value {value}, whose write was refused",
                        read.number
                    ));
                }
                Some((cluster, _)) if read.ended_us < cluster.write_invoked => {
                    violations.push(format!(
                        "read {} saw value {value} before it was written",
                        read.number
                    ));
                }
                Some((cluster, _)) => {
                    cluster.first_end = cluster.first_end.min(read.ended_us);
                    cluster.last_invoke = cluster.last_invoke.max(read.invoked_us);
                    seen_values.push(value);
                }
            }
        }
        let happened = by_value.into_values().filter(|(cluster, end)| {
            *end == Kind::Ok
                || (*end != Kind::Fail
                    && cluster.value.is_some_and(|value| seen_values.contains(&value)))
        });
        let deletes =
            self.deletes.iter().filter(|delete| delete.end == Kind::Ok).map(|delete| Cluster {
                value: None,
                first_end: delete.ended_us,
                last_invoke: delete.invoked_us,
                write_invoked: delete.invoked_us,
            });
        happened.map(|(cluster, _)| cluster).chain(deletes).collect()
    }

    fn judge_absence(&self, read: &Operation, clusters: &[Cluster]) -> Option<String> {
        let stood = clusters.iter().find(|value| {
            value.value.is_some()
                && value.is_forward()
                && value.low() < read.invoked_us
                && read.ended_us < value.high()
        });
        if let Some(value) = stood {
            return Some(format!(
                "read {} found nothing while {} stood",
                read.number,
                value.name()
            ));
        }
        let lost = clusters.iter().find(|value| {
            value.value.is_some()
                && value.first_end < read.invoked_us
                && !self.may_be_deleted(value, read)
        })?;
        Some(format!(
            "read {} found nothing after {} was there and nobody deleted it",
            read.number,
            lost.name()
        ))
    }

    /// Whether some delete may lie after the write and before the read.
    fn may_be_deleted(&self, value: &Cluster, read: &Operation) -> bool {
        self.deletes.iter().any(|delete| {
            delete.end != Kind::Fail
                && delete.invoked_us < read.ended_us
                && delete.ended_us > value.write_invoked
        })
    }
}

/// Overlaps of zones that no order allows. Forward zones are sorted; each is compared with its neighbours only.
fn zones(clusters: &[Cluster]) -> Vec<String> {
    let mut forward: Vec<&Cluster> =
        clusters.iter().filter(|cluster| cluster.is_forward()).collect();
    forward.sort_by_key(|cluster| cluster.low());
    let mut violations: Vec<String> = forward
        .windows(2)
        .filter(|pair| pair[1].low() < pair[0].high())
        .map(|pair| {
            format!(
                "{} and {} were both seen on both sides of each other: a stale read",
                pair[0].name(),
                pair[1].name()
            )
        })
        .collect();
    for inner in clusters.iter().filter(|cluster| !cluster.is_forward()) {
        let after = forward.partition_point(|outer| outer.low() < inner.low());
        let around = forward[..after].last().filter(|outer| inner.high() < outer.high());
        violations.extend(around.map(|outer| {
            format!(
                "{} was seen again after {} had replaced it: a stale read",
                outer.name(),
                inner.name()
            )
        }));
    }
    violations
}

fn written(operation: &Operation) -> Option<u64> {
    match operation.action {
        Action::Put { value, .. } | Action::Create { value, .. } => Some(value),
        Action::Delete { .. } | Action::Get { .. } | Action::List { .. } => None,
    }
}

fn seen(operation: &Operation) -> Option<u64> {
    match operation.action {
        Action::Get { value, .. } => value,
        Action::Put { .. }
        | Action::Create { .. }
        | Action::Delete { .. }
        | Action::List { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::tests_support::{delete, get, put, story};

    #[test]
    fn a_plain_story_is_allowed() {
        let story = story(&[
            put("a", 1, 0, 10, Kind::Ok),
            get("a", Some(1), 11, 12),
            put("a", 2, 13, 20, Kind::Ok),
            get("a", Some(1), 14, 15),
            get("a", Some(2), 16, 30),
            delete("a", 31, 35, Kind::Ok),
            get("a", None, 36, 37),
            put("b", 3, 0, 9, Kind::Fail),
            get("b", None, 10, 11),
        ]);
        assert_eq!(check(&story), Vec::<String>::new());
    }

    #[test]
    fn an_unknown_write_may_have_happened_or_not_or_late() {
        let silent = story(&[
            put("a", 1, 0, 5, Kind::Ok),
            put("a", 2, 6, 0, Kind::Info),
            get("a", Some(1), 50, 51),
        ]);
        assert_eq!(check(&silent), Vec::<String>::new());
        let late = story(&[
            put("a", 1, 0, 5, Kind::Ok),
            put("a", 2, 6, 0, Kind::Info),
            get("a", Some(1), 50, 51),
            get("a", Some(2), 60, 61),
        ]);
        assert_eq!(check(&late), Vec::<String>::new());
        let both = story(&[
            put("a", 1, 0, 5, Kind::Ok),
            put("a", 2, 6, 0, Kind::Info),
            get("a", Some(2), 50, 51),
            get("a", Some(1), 60, 61),
        ]);
        assert_eq!(check(&both).len(), 1, "it happened and was undone");
    }

    #[test]
    fn planted_a_lost_write() {
        let lost = story(&[put("a", 1, 0, 5, Kind::Ok), get("a", None, 6, 7)]);
        assert!(check(&lost)[0].contains("nobody deleted it"));
        let old = story(&[
            put("a", 1, 0, 5, Kind::Ok),
            put("a", 2, 6, 9, Kind::Ok),
            get("a", Some(1), 10, 11),
        ]);
        assert!(check(&old)[0].contains("stale"));
    }

    #[test]
    fn planted_reads_that_go_back_in_time() {
        let back = story(&[
            put("a", 1, 0, 5, Kind::Ok),
            put("a", 2, 6, 100, Kind::Ok),
            get("a", Some(2), 20, 21),
            get("a", Some(1), 30, 31),
        ]);
        assert!(check(&back)[0].contains("stale"));
    }

    #[test]
    fn planted_a_phantom_a_refused_and_a_future_value() {
        assert!(check(&story(&[get("a", Some(9), 0, 1)]))[0].contains("nobody wrote"));
        let refused = story(&[put("a", 1, 0, 5, Kind::Fail), get("a", Some(1), 6, 7)]);
        assert!(check(&refused)[0].contains("refused"));
        let future = story(&[get("a", Some(1), 0, 1), put("a", 1, 5, 6, Kind::Ok)]);
        assert!(check(&future)[0].contains("before it was written"));
    }

    #[test]
    fn planted_a_resurrected_object() {
        let risen = story(&[
            put("a", 1, 0, 5, Kind::Ok),
            delete("a", 6, 9, Kind::Ok),
            get("a", None, 10, 11),
            get("a", Some(1), 12, 13),
        ]);
        assert!(!check(&risen).is_empty());
    }

    #[test]
    fn planted_an_object_that_vanishes_for_a_while() {
        let gap = story(&[
            put("a", 1, 0, 5, Kind::Ok),
            delete("a", 100, 110, Kind::Ok),
            get("a", None, 20, 21),
            get("a", Some(1), 30, 31),
        ]);
        assert!(!check(&gap).is_empty());
    }
}
