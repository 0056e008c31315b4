//! Which nodes hold each range, and the moves of their replicas (`docs/adr/0021`).
//!
//! The directory says who is to hold a range; its leader makes the members so, and only then the directory takes the
//! new ones for its voters. One move a range at a time, each judged by the voters from which it was decided.

use super::{DrainedRow, Judged, Root, RootVotersRow, done, field, row_key};
use crate::txn::Txn;
use ashlar_types::{
    Disk, DiskState, NodeId, RangeDescriptor, RangeId, RangeReplicas, ReplicaDirectory,
    ReplicaMove, Role, RootRefusal,
};
use std::collections::BTreeSet;

/// More replicas would make every write wait for more nodes, and survive no fault that these do not.
const VOTERS_MAX: usize = 7;

impl Root {
    pub(super) fn replicas(&self) -> ReplicaDirectory {
        let mut ranges: Vec<_> = self.ranges.values().cloned().collect();
        ranges.sort_by(|left, right| left.interval.start.cmp(&right.interval.start));
        let all = std::iter::once(RangeDescriptor::root(self.root_voters())).chain(ranges);
        let moving = |range: &RangeDescriptor| self.moves.get(&range.id).cloned();
        let ranges = all.map(|range| RangeReplicas { moving: moving(&range), range }).collect();
        ReplicaDirectory { ranges, drained: self.drained.iter().copied().collect() }
    }

    /// Those of all ranges, until the first move begins.
    fn root_voters(&self) -> Vec<NodeId> {
        let first = || self.ranges.values().next().map(|range| range.voters.clone());
        self.root_voters.clone().or_else(first).unwrap_or_default()
    }

    fn voters(&self, range: RangeId) -> Result<Vec<NodeId>, RootRefusal> {
        if range == RangeId::ROOT {
            return Ok(self.root_voters());
        }
        let known = self.ranges.get(&range).ok_or(RootRefusal::NoSuchRange)?;
        Ok(known.voters.clone())
    }

    fn put_voters(&mut self, txn: &mut Txn<'_>, range: RangeId, voters: Vec<NodeId>) {
        if range == RangeId::ROOT {
            txn.put(row_key(field::ROOT_VOTERS, &[]), &RootVotersRow(voters.clone()));
            self.root_voters = Some(voters);
        } else if let Some(known) = self.ranges.get(&range) {
            self.put_range(txn, RangeDescriptor { voters, ..known.clone() });
        }
    }

    pub(super) fn begin_replica_move(
        &mut self,
        txn: &mut Txn<'_>,
        voters: &[NodeId],
        step: &ReplicaMove,
    ) -> Judged {
        let known = self.voters(step.range)?;
        match self.moves.get(&step.range) {
            // told twice
            Some(moving) if moving == step && known == voters => return Ok(done()),
            None if known == voters => {}
            _ => return Err(self.stale(step.range)),
        }
        self.check(step, &known)?;
        // from here on the ranges may differ
        if self.root_voters.is_none() {
            let voters = self.root_voters();
            self.put_voters(txn, RangeId::ROOT, voters);
        }
        self.put_move(txn, step.clone());
        Ok(done())
    }

    fn check(&self, step: &ReplicaMove, voters: &[NodeId]) -> Result<(), RootRefusal> {
        let bad = |why: String| Err(RootRefusal::BadReplicas { range: step.range, why });
        let is_twice = |nodes: &[NodeId]| nodes.iter().collect::<BTreeSet<_>>().len() < nodes.len();
        if is_twice(&step.from) || is_twice(&step.to) {
            return bad("a node was named twice".to_owned());
        }
        if let Some(from) = step.from.iter().find(|from| !voters.contains(from)) {
            return bad(format!("{from} holds none of it"));
        }
        for &to in &step.to {
            let node = self.map.nodes.get(&to).ok_or(RootRefusal::NoSuchNode(to))?;
            if !node.roles.contains(&Role::Meta) {
                return bad(format!("{to} has not the role meta"));
            }
            if self.drained.contains(&to) {
                return bad(format!("{to} is being drained"));
            }
            if voters.contains(&to) {
                return bad(format!("{to} holds it already"));
            }
        }
        match step.done_to(voters).len() {
            _ if step.from.is_empty() && step.to.is_empty() => {
                bad("nothing was to move".to_owned())
            }
            0 => bad("none would be left".to_owned()),
            1..=VOTERS_MAX => Ok(()),
            count => bad(format!("{count} are more than {VOTERS_MAX}")),
        }
    }

    /// Told twice, it changes nothing.
    pub(super) fn end_replica_move(&mut self, txn: &mut Txn<'_>, step: &ReplicaMove) -> Judged {
        let known = self.voters(step.range)?;
        let wanted = step.done_to(&known);
        match self.moves.get(&step.range) {
            Some(moving) if moving == step => {
                self.put_voters(txn, step.range, wanted);
                self.remove_move(txn, step.range);
                Ok(done())
            }
            None if wanted == known => Ok(done()),
            _ => Err(self.stale(step.range)),
        }
    }

    pub(super) fn cancel_replica_move(&mut self, txn: &mut Txn<'_>, step: &ReplicaMove) -> Judged {
        if self.moves.get(&step.range) != Some(step) {
            return Err(self.stale(step.range));
        }
        self.remove_move(txn, step.range);
        Ok(done())
    }

    pub(super) fn drain_replicas(
        &mut self,
        txn: &mut Txn<'_>,
        node: NodeId,
        drain: bool,
    ) -> Judged {
        if !self.map.nodes.contains_key(&node) {
            return Err(RootRefusal::NoSuchNode(node));
        }
        let row = row_key(field::DRAINED, &node.0.to_be_bytes());
        if drain && self.drained.insert(node) {
            txn.put(row, &DrainedRow(node));
        } else if !drain && self.drained.remove(&node) {
            txn.remove(row);
        }
        Ok(done())
    }

    /// It never comes back as itself: its id is never given again, and a boot of it is refused.
    pub(super) fn remove_node(&mut self, txn: &mut Txn<'_>, node: NodeId) -> Judged {
        if !self.map.nodes.contains_key(&node) {
            return Err(RootRefusal::NoSuchNode(node));
        }
        let in_use = |what: String| Err(RootRefusal::NodeInUse { node, what });
        let has = |one: &RangeReplicas| one.names(node);
        if let Some(one) = self.replicas().ranges.iter().find(|one| has(one)) {
            return in_use(format!("a replica of {}", one.range.id));
        }
        let is_there = |disk: &&Disk| disk.node == node && disk.state != DiskState::Removed;
        if let Some(disk) = self.map.disks.values().find(is_there) {
            return in_use(format!("the disk {}", disk.id));
        }
        self.drain_replicas(txn, node, false)?;
        self.end_earlier_sessions(txn, node, u64::MAX);
        txn.remove(row_key(field::NODE, &node.0.to_be_bytes()));
        self.change_map().nodes.remove(&node);
        Ok(done())
    }

    fn stale(&self, range: RangeId) -> RootRefusal {
        let voters = self.voters(range).unwrap_or_default();
        RootRefusal::StaleReplicaMove { range, voters, moving: self.moves.get(&range).cloned() }
    }
}
