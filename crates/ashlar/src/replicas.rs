//! Replicas of ranges move by themselves: to other nodes from one that is lost or drained, to new nodes where a range has too
//! few, to other zones and to nodes that hold little (`docs/adr/0021`).
//!
//! Each node of the metadata plane follows the root's directory, and tells the root of moves that are done in ranges
//! that it leads. What is to begin is decided by the node that leads the root, from who answers it; nothing of that is
//! kept. Two that both believe that they lead do no harm: the root judges each step by the voters that it was decided from.

use crate::leading::Leading;
use crate::watch::Watch;
use ashlar_client::{Client, Failure};
use ashlar_host::{Host, Monotonic};
use ashlar_placement::{ReplicaNode, ReplicaNodeState, ReplicaStep, plan_replicas};
use ashlar_types::{
    ClusterMap, Node, NodeId, RangeId, RangeReplicas, ReplicaDirectory, ReplicaMove, Role, RootOp,
};
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const FOLLOW_EVERY: Duration = Duration::from_millis(500);
const PLAN_EVERY: Duration = Duration::from_secs(1);
/// A move that takes longer is given up, and nothing goes to its target for as long. A range is split at some hundred MiB,
/// which take a minute on a slow link.
const MOVE_PATIENCE: Duration = Duration::from_secs(600);

/// Follows the directory, and decides what of it is to change.
pub(crate) struct Replicator {
    pub(crate) host: Host,
    pub(crate) client: Client,
    pub(crate) leading: Leading,
    /// How many voters a range is to have.
    pub(crate) count: usize,
    /// A node that has not answered for so long is lost.
    pub(crate) lost_after: Duration,
}

impl Replicator {
    /// Goes on until it is dropped.
    pub(crate) async fn run(self) {
        tokio::join!(self.follow(), self.tell(), self.plan());
    }

    async fn follow(&self) {
        loop {
            self.host.clock.sleep(FOLLOW_EVERY).await;
            match self.client.replicas_now().await {
                Ok(directory) => {
                    self.look_for_unknown(&directory);
                    self.leading.meta.note_directory(&directory.ranges);
                }
                Err(failure) => {
                    tracing::debug!(%failure, "the root does not say who holds which range");
                }
            }
        }
    }

    /// Apart from following: a range without a quorum takes its time to say so.
    async fn tell(&self) {
        loop {
            self.host.clock.sleep(FOLLOW_EVERY).await;
            for step in self.leading.meta.settled_moves().await {
                match self.client.root(RootOp::EndReplicaMove(step.clone())).await {
                    Ok(_) => {
                        metrics::counter!("ashlar_replica_moves_total").increment(1);
                        tracing::info!(%step, "replicas have moved");
                    }
                    Err(failure) => tracing::debug!(%step, %failure, "a move could not be ended"),
                }
            }
        }
    }

    /// Whoever is to hold a range with this node must be found by it, also after a power cut of all.
    fn look_for_unknown(&self, directory: &ReplicaDirectory) {
        let map = self.client.map();
        let mut wanted = directory.ranges.iter().flat_map(RangeReplicas::wanted);
        if wanted.any(|node| !map.nodes.contains_key(&node)) {
            self.client.want_map();
        }
    }

    async fn plan(&self) {
        let mut watch = Watch::begin(self.host.clock.now());
        let mut seen = Seen::default();
        loop {
            self.host.clock.sleep(PLAN_EVERY).await;
            let now = self.host.clock.now();
            let Some(since) = watch.look(now, self.leading.root()) else {
                seen = Seen::default();
                continue;
            };
            if let Err(failure) = self.plan_once(&mut seen, since, now).await {
                tracing::debug!(%failure, "where replicas are to be could not be decided now");
            }
        }
    }

    async fn plan_once(
        &self,
        seen: &mut Seen,
        since: Monotonic,
        now: Monotonic,
    ) -> Result<(), Failure> {
        let directory = self.client.replicas_now().await?;
        let map = self.client.map();
        for node in self.answering(&map).await {
            seen.answered.insert(node, now);
        }
        for step in seen.too_long(&directory, now) {
            tracing::warn!(%step, "replicas have not moved for long: the move is given up");
            self.take(ReplicaStep::Cancel(step)).await;
        }
        let drained = directory.drained.iter().copied().collect();
        let silence = |node| now - seen.answered.get(&node).map_or(since, |&seen| seen.max(since));
        let mut nodes = standing(&map, &drained, &silence, self.lost_after);
        seen.shun(&mut nodes, now);
        let moving = directory.ranges.iter().filter(|one| one.moving.is_some()).count();
        metrics::gauge!("ashlar_replica_moves_running")
            .set(f64::from(u32::try_from(moving).unwrap_or(u32::MAX)));
        for step in plan_replicas(&nodes, &directory.ranges, self.count) {
            self.take(step).await;
        }
        Ok(())
    }

    async fn answering(&self, map: &ClusterMap) -> Vec<NodeId> {
        let asked = map
            .nodes
            .values()
            .filter(|node| holds_metadata(node))
            .map(|node| async { self.client.meta_answers(node.id).await.then_some(node.id) });
        join_all(asked).await.into_iter().flatten().collect()
    }

    async fn take(&self, step: ReplicaStep) {
        let (taken, what) = match step {
            ReplicaStep::Begin(voters, step) => {
                (self.client.begin_replica_move(voters, step.clone()).await, step)
            }
            ReplicaStep::Cancel(step) => {
                let taken = self.client.root(RootOp::CancelReplicaMove(step.clone())).await;
                (taken.map(|_| ()), step)
            }
        };
        match taken {
            Ok(()) => tracing::info!(step = %what, "replicas are to move, or not any more"),
            Err(failure) => tracing::debug!(step = %what, %failure, "replicas do not move now"),
        }
    }
}

/// What the node that leads the root has seen since it leads it.
#[derive(Debug, Default)]
struct Seen {
    /// When a node answered last.
    answered: BTreeMap<NodeId, Monotonic>,
    /// Since when each move is under way.
    moving: BTreeMap<RangeId, (ReplicaMove, Monotonic)>,
    /// Nodes that a range did not come to, and when that was given up.
    failed: BTreeMap<NodeId, Monotonic>,
}

impl Seen {
    /// The moves that have been under way for too long. A target that answers may all the same be unable to take a range: its
    /// disk is full, or what comes before it there does not come.
    fn too_long(&mut self, directory: &ReplicaDirectory, now: Monotonic) -> Vec<ReplicaMove> {
        let moving = directory.ranges.iter().filter_map(|one| one.moving.clone());
        let before = std::mem::take(&mut self.moving);
        for step in moving {
            let known = before.get(&step.range).filter(|(known, _)| *known == step);
            let since = known.map_or(now, |(_, since)| *since);
            self.moving.insert(step.range, (step, since));
        }
        let is_late = |(step, since): &(ReplicaMove, Monotonic)| {
            (now - *since >= MOVE_PATIENCE).then(|| step.clone())
        };
        let late: Vec<ReplicaMove> = self.moving.values().filter_map(is_late).collect();
        self.failed.extend(late.iter().flat_map(|step| &step.to).map(|&node| (node, now)));
        late
    }

    /// For a while nothing more goes to those.
    fn shun(&self, nodes: &mut BTreeMap<NodeId, ReplicaNode>, now: Monotonic) {
        for (node, when) in &self.failed {
            if let Some(node) = nodes.get_mut(node)
                && node.state == ReplicaNodeState::Well
                && now - *when < MOVE_PATIENCE
            {
                node.state = ReplicaNodeState::Silent;
            }
        }
    }
}

fn holds_metadata(node: &Node) -> bool {
    node.roles.contains(&Role::Meta)
}

/// How the nodes of the metadata plane stand. One that answered in this very round is well; for how long the others have not is
/// `silence`.
fn standing(
    map: &ClusterMap,
    drained: &BTreeSet<NodeId>,
    silence: &dyn Fn(NodeId) -> Duration,
    lost_after: Duration,
) -> BTreeMap<NodeId, ReplicaNode> {
    let state = |node: &Node| match silence(node.id) {
        silent if silent >= lost_after => ReplicaNodeState::Lost,
        _ if drained.contains(&node.id) => ReplicaNodeState::Drained,
        silent if silent > Duration::ZERO => ReplicaNodeState::Silent,
        _ => ReplicaNodeState::Well,
    };
    let nodes = map.nodes.values().filter(|node| holds_metadata(node));
    nodes
        .map(|node| (node.id, ReplicaNode { zone: node.zone.clone(), state: state(node) }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_types::RangeDescriptor;

    #[test]
    fn a_move_that_takes_too_long_is_given_up_and_its_target_left_alone_for_a_while() {
        let at = |seconds| Monotonic(Duration::from_secs(seconds));
        let (one, two) = (NodeId(1), NodeId(2));
        let step = |to| ReplicaMove { range: RangeId::ROOT, from: vec![one], to: vec![to] };
        let directory = |step| ReplicaDirectory {
            ranges: vec![RangeReplicas { range: RangeDescriptor::root(vec![one]), moving: step }],
            drained: Vec::new(),
        };
        let mut seen = Seen::default();
        assert_eq!(seen.too_long(&directory(Some(step(two))), at(0)), []);
        assert_eq!(seen.too_long(&directory(Some(step(NodeId(3)))), at(599)), [], "another one");
        assert_eq!(seen.too_long(&directory(Some(step(two))), at(600)), []);
        assert_eq!(seen.too_long(&directory(Some(step(two))), at(1_200)), [step(two)]);
        assert_eq!(seen.too_long(&directory(None), at(1_201)), []);
        let well =
            |zone: &str| ReplicaNode { zone: zone.to_owned(), state: ReplicaNodeState::Well };
        let mut nodes = BTreeMap::from([(one, well("a")), (two, well("b"))]);
        seen.shun(&mut nodes, at(1_800));
        assert!(nodes.values().all(|node| node.state == ReplicaNodeState::Well));
        seen.shun(&mut nodes, at(1_799));
        assert_eq!(nodes[&two].state, ReplicaNodeState::Silent);
        assert_eq!(nodes[&one].state, ReplicaNodeState::Well);
    }

    #[test]
    fn a_node_is_lost_after_a_while_and_before_that_it_only_gets_nothing() {
        let mut map = ClusterMap::default();
        for id in (1..=5).map(NodeId) {
            let role = if id == NodeId(5) { Role::Data } else { Role::Meta };
            let (name, zone, address) = (String::new(), format!("zone-{id}"), String::new());
            let node = Node { id, name, zone, address, roles: vec![role], incarnation: 1 };
            map.nodes.insert(id, node);
        }
        let silence = |node: NodeId| match node.0 {
            1 => Duration::ZERO,
            2 => Duration::from_secs(9),
            _ => Duration::from_secs(10),
        };
        let drained = BTreeSet::from([NodeId(1), NodeId(3)]);
        let nodes = standing(&map, &drained, &silence, Duration::from_secs(10));
        use ReplicaNodeState::{Drained, Lost, Silent};
        let states: Vec<_> = nodes.values().map(|node| node.state).collect();
        assert_eq!(
            states,
            [Drained, Silent, Lost, Lost],
            "what is lost is missing, drained or not"
        );
    }
}
