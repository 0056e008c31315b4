//! Who is to hold which range: what the root's directory says, as this node has last heard it.
//!
//! A wish, and no truth: who votes, each group's own log says. So what is old here delays a change of the members, or
//! makes one that is taken back; it never makes two majorities.

use ashlar_host::Monotonic;
use ashlar_types::{NodeId, RangeId, RangeReplicas};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Nobody is taken out of the members by a directory that was heard longer ago.
const FRESH: Duration = Duration::from_secs(5);

/// The directory.
#[derive(Default)]
pub(crate) struct Directory(Mutex<Option<Heard>>);

struct Heard {
    ranges: BTreeMap<RangeId, RangeReplicas>,
    when: Monotonic,
}

impl Directory {
    /// What the root says now.
    pub(crate) fn note(&self, ranges: &[RangeReplicas], now: Monotonic) {
        let ranges = ranges.iter().map(|one| (one.range.id, one.clone())).collect();
        let heard = Heard { ranges, when: now };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(heard);
    }

    /// A range; `None`: it is not known, for instance because it was only just made.
    pub(crate) fn find(&self, range: RangeId) -> Option<RangeReplicas> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.as_ref()?.ranges.get(&range).cloned()
    }

    /// Who is to vote.
    pub(crate) fn wanted(&self, range: RangeId) -> Option<Vec<NodeId>> {
        self.find(range).map(|one| one.wanted())
    }

    /// Who is to vote, where that was heard so lately that others may be taken out.
    pub(crate) fn wanted_now(&self, range: RangeId, now: Monotonic) -> Option<Vec<NodeId>> {
        let when = self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.when;
        self.wanted(range).filter(|_| now - when <= FRESH)
    }

    /// Whether a node has a replica, or is to have one; `None`: the range is not known.
    pub(crate) fn names(&self, range: RangeId, node: NodeId) -> Option<bool> {
        self.find(range).map(|one| one.names(node))
    }

    /// Who may lead a range.
    pub(crate) fn holders(&self, range: RangeId) -> Option<Vec<NodeId>> {
        let one = self.find(range)?;
        let to = one.moving.map_or_else(Vec::new, |step| step.to);
        Some(one.range.voters.into_iter().chain(to).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_types::{RangeDescriptor, ReplicaMove};

    #[test]
    fn what_was_heard_long_ago_takes_nobody_out() {
        let at = |seconds| Monotonic(Duration::from_secs(seconds));
        let directory = Directory::default();
        assert_eq!(directory.wanted(RangeId::ROOT), None);
        let (range, voters) = (RangeId::ROOT, vec![NodeId(1), NodeId(2)]);
        let moving = Some(ReplicaMove { range, from: vec![NodeId(1)], to: vec![NodeId(3)] });
        let one = RangeReplicas { range: RangeDescriptor::root(voters), moving };
        directory.note(&[one], at(10));
        let wanted = Some(vec![NodeId(2), NodeId(3)]);
        assert_eq!(directory.wanted_now(range, at(15)), wanted);
        assert_eq!(directory.wanted_now(range, at(16)), None);
        assert_eq!(directory.wanted(range), wanted);
        let names = |node| directory.names(range, NodeId(node));
        assert_eq!([1, 2, 3, 4].map(names), [true, true, true, false].map(Some));
        assert_eq!(directory.names(RangeId(9), NodeId(1)), None, "not known: it may be a new one");
        assert_eq!(directory.holders(range), Some(vec![NodeId(1), NodeId(2), NodeId(3)]));
    }
}
