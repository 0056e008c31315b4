//! Which replicas of ranges are to move: pure, from who is there and who holds what.
//!
//! In this order: what is on a lost or drained node moves to another one; a range with fewer voters than there are to be
//! gets them; two voters of one zone part where there is a third zone; a node that holds much gives to one that holds
//! little. The last two go one at a time, and only while all voters answer, so that they hold up and endanger nothing.

use ashlar_types::{NodeId, RangeId, RangeReplicas, ReplicaMove};
use std::collections::{BTreeMap, BTreeSet};

/// Moves that are under way at once: each costs its nodes a copy of a range.
const MOVES_MAX: usize = 4;

/// How a node stands that may hold replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaNodeState {
    /// It answers, and may get replicas.
    Well,
    /// It does not answer now: what it has stays.
    Silent,
    /// It has not answered for so long that others are to hold what it had.
    Lost,
    /// It is to hold none.
    Drained,
}

impl ReplicaNodeState {
    fn is_left(self) -> bool {
        matches!(self, Self::Lost | Self::Drained)
    }
}

/// A node that may hold replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaNode {
    /// Where it stands: what fails together.
    pub zone: String,
    /// How it stands.
    pub state: ReplicaNodeState,
}

/// What is to be asked of the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaStep {
    /// Begins, decided from these voters.
    Begin(Vec<NodeId>, ReplicaMove),
    /// Is given up: a node that was to come is lost or drained.
    Cancel(ReplicaMove),
}

/// The steps that are due. `count`: how many voters a range is to have, where there are nodes enough; those that have more
/// keep them.
pub fn plan_replicas(
    nodes: &BTreeMap<NodeId, ReplicaNode>,
    ranges: &[RangeReplicas],
    count: usize,
) -> Vec<ReplicaStep> {
    let mut plan = Plan { nodes, load: BTreeMap::new() };
    for node in ranges.iter().flat_map(RangeReplicas::wanted) {
        plan.add(node);
    }
    let moving: Vec<&ReplicaMove> = ranges.iter().filter_map(|one| one.moving.as_ref()).collect();
    let is_left = |node: &NodeId| plan.is_left(*node);
    let hopeless = moving.iter().filter(|step| step.to.iter().any(is_left));
    let mut steps: Vec<_> = hopeless.map(|&step| ReplicaStep::Cancel(step.clone())).collect();
    let resting = || ranges.iter().filter(|one| one.moving.is_none());
    let room = MOVES_MAX.saturating_sub(moving.len());
    for one in resting() {
        if steps.len() >= room {
            break;
        }
        let (range, voters) = (one.range.id, &one.range.voters);
        let step = plan.replace(range, voters).or_else(|| plan.grow(range, voters, count));
        if let Some(step) = step {
            step.to.iter().for_each(|&to| plan.add(to));
            steps.push(ReplicaStep::Begin(voters.clone(), step));
        }
    }
    let mut voters = ranges.iter().flat_map(|one| &one.range.voters);
    if steps.is_empty() && moving.is_empty() && voters.all(|&voter| plan.is_well(voter)) {
        let better = || resting().find_map(|one| plan.spread(one.range.id, &one.range.voters));
        let lighter = || resting().find_map(|one| plan.even(one.range.id, &one.range.voters));
        let voters = |range| {
            let of = ranges.iter().find(|one| one.range.id == range);
            of.map(|one| one.range.voters.clone()).unwrap_or_default()
        };
        let step = better().or_else(lighter);
        steps.extend(step.map(|step| ReplicaStep::Begin(voters(step.range), step)));
    }
    steps
}

struct Plan<'a> {
    nodes: &'a BTreeMap<NodeId, ReplicaNode>,
    /// How many ranges each is to hold.
    load: BTreeMap<NodeId, usize>,
}

impl Plan<'_> {
    fn add(&mut self, node: NodeId) {
        *self.load.entry(node).or_default() += 1;
    }

    fn load(&self, node: NodeId) -> usize {
        self.load.get(&node).copied().unwrap_or(0)
    }

    fn is_left(&self, node: NodeId) -> bool {
        // one that is no member any more
        self.nodes.get(&node).is_none_or(|node| node.state.is_left())
    }

    fn is_well(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.state == ReplicaNodeState::Well)
    }

    fn zones(&self, voters: &[NodeId]) -> usize {
        let zone = |voter: &NodeId| self.nodes.get(voter).map(|node| &node.zone);
        voters.iter().filter_map(zone).collect::<BTreeSet<_>>().len()
    }

    /// Who comes best beside these: in a zone of its own, and with little to hold.
    fn best_beside(&self, stay: &[NodeId], voters: &[NodeId]) -> Option<NodeId> {
        let free = self.nodes.keys().filter(|node| self.is_well(**node) && !voters.contains(node));
        let merit = |node: &&NodeId| {
            let beside: Vec<NodeId> = stay.iter().copied().chain([**node]).collect();
            (self.zones(&beside), std::cmp::Reverse((self.load(**node), **node)))
        };
        free.max_by_key(merit).copied()
    }

    /// Another node for one that is lost or to be emptied. Those that are lost go first: they are missing already. Not where
    /// a majority is away: nothing can be changed there.
    fn replace(&self, range: RangeId, voters: &[NodeId]) -> Option<ReplicaMove> {
        let is_lost = |node: &NodeId| {
            self.nodes.get(node).is_none_or(|node| node.state == ReplicaNodeState::Lost)
        };
        let there = voters.iter().filter(|voter| !is_lost(voter)).count();
        let left = voters.iter().filter(|voter| self.is_left(**voter));
        let from = *left.max_by_key(|voter| is_lost(voter))?;
        if there * 2 <= voters.len() {
            return None;
        }
        let stay: Vec<NodeId> = voters.iter().copied().filter(|&voter| voter != from).collect();
        let to = self.best_beside(&stay, voters)?;
        Some(ReplicaMove { range, from: vec![from], to: vec![to] })
    }

    /// All at once, so that there is never an even number.
    fn grow(&self, range: RangeId, voters: &[NodeId], count: usize) -> Option<ReplicaMove> {
        let (mut to, mut beside) = (Vec::new(), voters.to_vec());
        while beside.len() < count {
            let Some(next) = self.best_beside(&beside, &beside) else { break };
            to.push(next);
            beside.push(next);
        }
        if beside.len() % 2 == 0 {
            to.pop();
        }
        (!to.is_empty()).then_some(ReplicaMove { range, from: Vec::new(), to })
    }

    /// One of two in the same zone goes to another zone.
    fn spread(&self, range: RangeId, voters: &[NodeId]) -> Option<ReplicaMove> {
        let now = self.zones(voters);
        voters.iter().find_map(|&from| {
            let stay: Vec<NodeId> = voters.iter().copied().filter(|&voter| voter != from).collect();
            let to = self.best_beside(&stay, voters)?;
            let then: Vec<NodeId> = stay.into_iter().chain([to]).collect();
            let gains = self.is_well(from) && self.zones(&then) > now;
            gains.then(|| ReplicaMove { range, from: vec![from], to: vec![to] })
        })
    }

    /// From a node that holds two ranges more than another; no zone is lost by it.
    fn even(&self, range: RangeId, voters: &[NodeId]) -> Option<ReplicaMove> {
        let now = self.zones(voters);
        let heaviest_first = {
            let mut from = voters.to_vec();
            from.sort_by_key(|&voter| std::cmp::Reverse(self.load(voter)));
            from
        };
        heaviest_first.into_iter().filter(|&from| self.is_well(from)).find_map(|from| {
            let stay: Vec<NodeId> = voters.iter().copied().filter(|&voter| voter != from).collect();
            let gains = |to: NodeId| {
                let then: Vec<NodeId> = stay.iter().copied().chain([to]).collect();
                self.load(from) >= self.load(to) + 2 && self.zones(&then) >= now
            };
            let free = self.nodes.keys().copied();
            let free = free.filter(|&to| self.is_well(to) && !voters.contains(&to) && gains(to));
            let to = free.min_by_key(|&to| self.load(to))?;
            Some(ReplicaMove { range, from: vec![from], to: vec![to] })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ReplicaNodeState::{Drained, Lost, Silent, Well};
    use ashlar_types::RangeDescriptor;
    use proptest::prelude::*;

    fn nodes(zones: &[&str]) -> BTreeMap<NodeId, ReplicaNode> {
        let node = |zone: &&str| ReplicaNode { zone: (*zone).to_owned(), state: Well };
        (1..).map(NodeId).zip(zones.iter().map(node)).collect()
    }

    fn ids(ids: &[u64]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn range(id: u64, voters: &[u64]) -> RangeReplicas {
        let range = RangeDescriptor { id: RangeId(id), ..RangeDescriptor::root(ids(voters)) };
        RangeReplicas { range, moving: None }
    }

    fn begun(steps: &[ReplicaStep]) -> Vec<(u64, Vec<NodeId>, Vec<NodeId>)> {
        let begun = steps.iter().map(|step| match step {
            ReplicaStep::Begin(_, step) => (step.range.0, step.from.clone(), step.to.clone()),
            ReplicaStep::Cancel(step) => panic!("given up: {step}"),
        });
        begun.collect()
    }

    #[test]
    fn a_cluster_whose_voters_are_all_there_is_left_alone() {
        let nodes = nodes(&["a", "b", "c"]);
        assert_eq!(plan_replicas(&nodes, &[range(0, &[1, 2, 3]), range(1, &[1, 2, 3])], 3), []);
    }

    #[test]
    fn what_a_lost_node_had_goes_to_the_zone_that_has_none_and_then_to_who_has_least() {
        let mut nodes = nodes(&["a", "b", "c", "b", "c", "c"]);
        nodes.get_mut(&NodeId(3)).expect("there").state = Lost;
        let ranges = [range(0, &[1, 2, 3]), range(1, &[1, 2, 3]), range(2, &[1, 4, 5])];
        let expected = [(0, ids(&[3]), ids(&[6])), (1, ids(&[3]), ids(&[5]))];
        assert_eq!(begun(&plan_replicas(&nodes, &ranges, 3)), expected);
        nodes.get_mut(&NodeId(3)).expect("there").state = Silent;
        assert_eq!(plan_replicas(&nodes, &ranges, 3), [], "it may come back at any moment");
        nodes.get_mut(&NodeId(3)).expect("there").state = Well;
        assert_eq!(begun(&plan_replicas(&nodes, &ranges, 3)).len(), 1, "one at a time");
    }

    #[test]
    fn a_range_without_a_majority_is_left_alone_and_one_without_a_spare_node_too() {
        let mut nodes = nodes(&["a", "b", "c", "d"]);
        for lost in [2, 3] {
            nodes.get_mut(&NodeId(lost)).expect("there").state = Lost;
        }
        assert_eq!(plan_replicas(&nodes, &[range(0, &[1, 2, 3])], 3), []);
        nodes.remove(&NodeId(4));
        nodes.get_mut(&NodeId(2)).expect("there").state = Well;
        assert_eq!(plan_replicas(&nodes, &[range(0, &[1, 2, 3])], 3), []);
    }

    #[test]
    fn one_becomes_three_at_once_and_never_two() {
        let two = nodes(&["a", "b"]);
        assert_eq!(plan_replicas(&two, &[range(0, &[1])], 3), []);
        let four = nodes(&["a", "a", "b", "c"]);
        let steps = plan_replicas(&four, &[range(0, &[1])], 5);
        assert_eq!(begun(&steps), [(0, vec![], ids(&[3, 4]))], "an odd number, each its zone");
        assert_eq!(plan_replicas(&four, &[range(0, &[1, 2, 3, 4])], 3), [], "what is there stays");
    }

    #[test]
    fn a_drained_node_is_emptied_and_a_move_to_a_lost_one_is_given_up() {
        let mut nodes = nodes(&["a", "b", "c", "d"]);
        nodes.get_mut(&NodeId(1)).expect("there").state = Drained;
        let steps = plan_replicas(&nodes, &[range(0, &[1, 2, 3])], 3);
        assert_eq!(begun(&steps), [(0, ids(&[1]), ids(&[4]))]);
        nodes.get_mut(&NodeId(4)).expect("there").state = Lost;
        let mut one = range(0, &[1, 2, 3]);
        let step = ReplicaMove { range: RangeId(0), from: ids(&[1]), to: ids(&[4]) };
        one.moving = Some(step.clone());
        assert_eq!(plan_replicas(&nodes, &[one], 3), [ReplicaStep::Cancel(step)]);
    }

    #[test]
    fn two_of_one_zone_part_when_there_is_a_third_zone() {
        let nodes = nodes(&["a", "b", "b", "c"]);
        let steps = plan_replicas(&nodes, &[range(0, &[1, 2, 3])], 3);
        assert_eq!(begun(&steps), [(0, ids(&[2]), ids(&[4]))]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        /// Steps that are carried out lead to rest: all on nodes that are well, as spread as may be, and about even.
        #[test]
        fn steps_end_and_leave_ranges_spread_over_zones_and_nodes(
            zones in prop::collection::vec(0_u8..4, 3..9),
            states in prop::collection::vec(0_u8..10, 9),
            held in prop::collection::vec((0_u64..100, 0_u64..100, 0_u64..100), 1..12),
        ) {
            let names: Vec<String> = zones.iter().map(|zone| format!("zone-{zone}")).collect();
            let mut nodes = nodes(&names.iter().map(String::as_str).collect::<Vec<_>>());
            let count = nodes.len() as u64;
            let mut ranges: Vec<_> = (0..).zip(held).map(|(id, (one, two, three))| {
                let mut voters = vec![one % count + 1];
                for next in [two, three] {
                    let free: Vec<u64> = (1..=count).filter(|id| !voters.contains(id)).collect();
                    voters.push(free[usize::try_from(next).expect("small") % free.len()]);
                }
                range(id, &voters)
            }).collect();
            // at most one is lost, so that every range has its majority
            for (node, state) in nodes.values_mut().zip(&states) {
                if *state == 0 {
                    node.state = Drained;
                }
            }
            if let Some(node) = nodes.values_mut().find(|node| node.state == Well) {
                node.state = Lost;
            }
            let well: Vec<&ReplicaNode> = nodes.values().filter(|n| n.state == Well).collect();
            let all_zones: BTreeSet<&String> = well.iter().map(|node| &node.zone).collect();
            let mut rounds = 0;
            loop {
                let steps = plan_replicas(&nodes, &ranges, 3);
                if steps.is_empty() {
                    break;
                }
                prop_assert!(steps.len() <= MOVES_MAX);
                for step in steps {
                    let ReplicaStep::Begin(voters, step) = step else { panic!("nothing moves") };
                    let one = ranges.iter_mut().find(|one| one.range.id == step.range);
                    let one = one.expect("a range that is there");
                    prop_assert_eq!(&voters, &one.range.voters);
                    prop_assert!(step.to.iter().all(|to| nodes[to].state == Well));
                    one.range.voters = step.done_to(&voters);
                    prop_assert_eq!(one.range.voters.len(), 3);
                }
                rounds += 1;
                prop_assert!(rounds < 200, "it never ends");
            }
            if well.len() >= 3 {
                let plan = Plan { nodes: &nodes, load: BTreeMap::new() };
                for one in &ranges {
                    prop_assert!(one.range.voters.iter().all(|voter| nodes[voter].state == Well));
                    prop_assert_eq!(plan.zones(&one.range.voters), all_zones.len().min(3));
                }
            }
        }
    }
}
