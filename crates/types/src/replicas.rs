//! Which nodes hold a range, and how that changes (`docs/adr/0021`).

use crate::{Interval, KeyPoint, NodeId, RangeDescriptor, RangeId, Epoch, Versioned};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A change of the nodes that hold a range: one comes, one goes, or one takes the place of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaMove {
    /// The range.
    pub range: RangeId,
    /// A voter that is not to be one any more.
    pub from: Option<NodeId>,
    /// A node that is to be a voter.
    pub to: Option<NodeId>,
}

impl ReplicaMove {
    /// The voters when it is done.
    pub fn done_to(&self, voters: &[NodeId]) -> Vec<NodeId> {
        let stay = voters.iter().copied().filter(|&voter| Some(voter) != self.from);
        let mut voters: Vec<NodeId> = stay.chain(self.to).collect();
        voters.sort_unstable();
        voters.dedup();
        voters
    }
}

impl fmt::Display for ReplicaMove {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.from, self.to) {
            (Some(from), Some(to)) => write!(f, "{}: from {from} to {to}", self.range),
            (None, Some(to)) => write!(f, "{}: {to} is added", self.range),
            (Some(from), None) => write!(f, "{}: {from} is taken out", self.range),
            (None, None) => write!(f, "{}: nothing", self.range),
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
            || self.moving.is_some_and(|step| step.to == Some(node))
    }
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

    fn step(from: Option<u64>, to: Option<u64>) -> ReplicaMove {
        ReplicaMove { range: RangeId(1), from: from.map(NodeId), to: to.map(NodeId) }
    }

    #[test]
    fn what_a_move_makes_of_the_voters() {
        let voters = [1, 2, 3].map(NodeId);
        let done = |from, to| step(from, to).done_to(&voters).into_iter().map(|id| id.0).collect::<Vec<_>>();
        assert_eq!(done(Some(2), Some(9)), [1, 3, 9]);
        assert_eq!(done(Some(2), Some(0)), [0, 1, 3], "in the order of ids");
        assert_eq!(done(None, Some(4)), [1, 2, 3, 4]);
        assert_eq!(done(Some(3), None), [1, 2]);
        assert_eq!(done(Some(7), Some(3)), [1, 2, 3], "done already");
    }
}
