//! Which nodes hold a range, and how that changes (`docs/adr/0021`).

use crate::{Epoch, Interval, KeyPoint, NodeId, RangeDescriptor, RangeId, Versioned};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A change of the nodes that hold a range: some come, some go, or some take the place of others. It is made as one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaMove {
    /// The range.
    pub range: RangeId,
    /// Voters that are not to be any more.
    pub from: Vec<NodeId>,
    /// Nodes that are to be voters.
    pub to: Vec<NodeId>,
}

impl ReplicaMove {
    /// The voters when it is done.
    pub fn done_to(&self, voters: &[NodeId]) -> Vec<NodeId> {
        let stay = voters.iter().filter(|voter| !self.from.contains(voter));
        let mut voters: Vec<NodeId> = stay.chain(&self.to).copied().collect();
        voters.sort_unstable();
        voters.dedup();
        voters
    }
}

impl fmt::Display for ReplicaMove {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |nodes: &[NodeId]| {
            nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
        };
        match (list(&self.from), list(&self.to)) {
            (from, to) if from.is_empty() => write!(f, "{}: {to} come", self.range),
            (from, to) if to.is_empty() => write!(f, "{}: {from} go", self.range),
            (from, to) => write!(f, "{}: from {from} to {to}", self.range),
        }
    }
}

/// A range, as the root's directory has it, and what is changing of its voters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeReplicas {
    /// The range. Of the root itself only id and voters say something.
    pub range: RangeDescriptor,
    /// The move that has begun.
    pub moving: Option<ReplicaMove>,
}

impl RangeReplicas {
    /// The voters that the range is to have: when the move is done, where one has begun.
    pub fn wanted(&self) -> Vec<NodeId> {
        match &self.moving {
            Some(step) => step.done_to(&self.range.voters),
            None => self.range.voters.clone(),
        }
    }

    /// Whether a node has a replica, or is to have one.
    pub fn names(&self, node: NodeId) -> bool {
        self.range.voters.contains(&node)
            || self.moving.as_ref().is_some_and(|step| step.to.contains(&node))
    }
}

/// Where replicas are, and are to be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReplicaDirectory {
    /// The root, then the ranges of data by interval.
    pub ranges: Vec<RangeReplicas>,
    /// Nodes that are to hold none.
    pub drained: Vec<NodeId>,
}

impl RangeDescriptor {
    /// The root's own group: its interval says nothing, no key of an object lies in it.
    pub fn root(voters: Vec<NodeId>) -> Self {
        let interval = Interval { start: KeyPoint::least(), end: Some(KeyPoint::least()) };
        Self { id: RangeId::ROOT, epoch: Epoch(0), interval, voters }
    }
}

impl Versioned for ReplicaMove {
    const NAME: &'static str = "move of a replica";
    const VERSION: u8 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_move_makes_of_the_voters() {
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
        let step = |from: &[u64], to: &[u64]| ReplicaMove {
            range: RangeId(1),
            from: ids(from),
            to: ids(to),
        };
        let done = |from: &[u64], to: &[u64]| step(from, to).done_to(&ids(&[1, 2, 3]));
        assert_eq!(done(&[2], &[9]), ids(&[1, 3, 9]));
        assert_eq!(done(&[2], &[0]), ids(&[0, 1, 3]), "in the order of ids");
        assert_eq!(done(&[], &[5, 4]), ids(&[1, 2, 3, 4, 5]));
        assert_eq!(done(&[3, 1], &[]), ids(&[2]));
        assert_eq!(done(&[7], &[3]), ids(&[1, 2, 3]), "done already");
        assert_eq!(step(&[1], &[2]).to_string(), "range-1: from node-1 to node-2");
        assert_eq!(step(&[], &[2, 3]).to_string(), "range-1: node-2 and node-3 come");
    }
}
