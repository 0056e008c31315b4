//! Replicas that move to other nodes (`docs/adr/0021`).

use super::split::{CHILD, LATER};
use super::*;

impl Cluster {
    async fn root(&self, op: RootOp) -> RootOutcome {
        let command = RootCommand { nonce: u128::from(self.host.random.next_u64()), op };
        let done = self.until(|meta| {
            let command = command.clone();
            async move { meta.root_execute(command).await }
        });
        done.await.expect("the root has done it")
    }

    /// Admits a node and starts it.
    async fn join(&mut self) -> NodeId {
        let node = self.admit().await;
        self.boot(node).await;
        node
    }

    async fn admit(&self) -> NodeId {
        self.is_founded().await;
        let token = [7; 32];
        self.root(RootOp::IssueToken { hash: token, expires_ms: u64::MAX }).await;
        let (name, zone, address) = ("new".into(), "z".into(), "a:1".into());
        let join = RootOp::Join { token, now_ms: 0, name, zone, address, roles: vec![Role::Meta] };
        let RootOutcome::Joined(node) = self.root(join).await else { panic!("not admitted") };
        node
    }

    async fn is_founded(&self) {
        let founded = self.until(|meta| async move {
            match meta.root_query(RootQuery::Map { newer_than: None }).await {
                Ok(RootAnswer::NotBootstrapped) => Err(NotDone::Leader(None)),
                other => other,
            }
        });
        founded.await.expect("founded");
    }

    async fn replicas(&self) -> Vec<RangeReplicas> {
        let asked = |meta: Arc<MetaNode>| async move { meta.root_query(RootQuery::Replicas).await };
        match self.until(asked).await {
            Ok(RootAnswer::Replicas(replicas)) => replicas.ranges,
            other => panic!("{other:?}"),
        }
    }

    async fn voters_of(&self, range: RangeId) -> Vec<NodeId> {
        let all = self.replicas().await;
        all.into_iter().find(|one| one.range.id == range).expect("it is there").range.voters
    }

    async fn begin(&self, range: RangeId, from: &[NodeId], to: &[NodeId]) -> ReplicaMove {
        let step = ReplicaMove { range, from: from.to_vec(), to: to.to_vec() };
        let voters = self.voters_of(range).await;
        let begun = self.root(RootOp::BeginReplicaMove { voters, step: step.clone() }).await;
        assert_eq!(begun, RootOutcome::Applied(Applied::Done));
        step
    }

    /// One round of what the nodes' duties do.
    async fn tend(&self) {
        let replicas = self.replicas().await;
        for running in self.nodes.values() {
            running.meta.note_directory(&replicas);
            for step in running.meta.settled_moves().await {
                // told late it is refused, which is as well
                self.root(RootOp::EndReplicaMove(step)).await;
            }
        }
    }

    async fn tend_until(&self, what: &str, holds: impl AsyncFn(&Self) -> bool) {
        let began = self.host.clock.now();
        while !holds(self).await {
            self.tend().await;
            assert!(
                self.host.clock.now() - began < PATIENCE,
                "not in time: {what}: {:#?} {:#?}",
                self.replicas().await,
                self.nodes
                    .values()
                    .map(|n| (n.meta.status(), n.meta.damaged()))
                    .collect::<Vec<_>>()
            );
            self.host.clock.sleep(Duration::from_millis(20)).await;
        }
    }

    /// The directory says so, no move is left, and every range runs on those that it names, with those voters, and nowhere else.
    async fn settle(&self) {
        self.tend_until("everything is where it is to be", async |cluster| {
            let replicas = cluster.replicas().await;
            let rests = |one: &RangeReplicas| {
                one.moving.is_none() && cluster.is_as(one) && cluster.agrees_on(one.range.id)
            };
            replicas.iter().all(rests)
        })
        .await;
        for (node, running) in &self.nodes {
            for (range, recount) in running.meta.recount().expect("read") {
                assert!(recount.is_right(), "{range} on {node}: {recount:?}");
            }
        }
    }

    /// Those that have applied something since their start have applied the same, and came to the same state (R4).
    fn agrees_on(&self, range: RangeId) -> bool {
        let status = self.nodes.values().flat_map(|running| running.meta.status());
        let states = status.filter(|status| status.range == range);
        let hashes: Vec<_> = states.filter_map(|status| status.state_hash).collect();
        for (at, hash) in &hashes {
            let same = |(other, theirs): &(u64, u128)| other != at || theirs == hash;
            assert!(hashes.iter().all(same), "{range} at {at}: {hashes:?}");
        }
        hashes.windows(2).all(|pair| pair[0].0 == pair[1].0)
    }

    fn is_as(&self, one: &RangeReplicas) -> bool {
        self.nodes.iter().all(|(node, running)| {
            let status = running.meta.status();
            let here = status.iter().find(|status| status.range == one.range.id);
            match one.names(*node) {
                true => here.is_some_and(|here| here.voters == one.range.voters),
                false => here.is_none(),
            }
        })
    }

    async fn move_replica(&self, range: RangeId, from: NodeId, to: NodeId) {
        self.begin(range, &[from], &[to]).await;
        self.settle().await;
    }

    /// Asks whoever serves, whichever range id holds it.
    async fn has(&self, count: u64) {
        for number in 0..count {
            assert_eq!(self.get(&format!("key-{number}")).await, Some(number));
        }
    }

    /// The founders of a cluster of three: who leads the range, and the others.
    fn leader_first(&self) -> [NodeId; 3] {
        let leader = self.leader(RANGE).expect("it has answered");
        let mut voters = self.voters.clone();
        voters.sort_by_key(|&voter| voter != leader);
        voters.try_into().expect("three founders")
    }

    async fn fill(&self, numbers: std::ops::Range<u64>) {
        for number in numbers {
            self.put(&format!("key-{number}"), number).await;
        }
    }

    async fn tell_split(&self) {
        let asked = |meta: Arc<MetaNode>| async move {
            meta.query(RANGE, LATER, RangeQuery::SplitState).await
        };
        let Ok(RangeAnswer::SplitState(state)) = self.until(asked).await else { panic!("none") };
        for done in state.untold {
            assert_eq!(self.root(RootOp::Split(done)).await, RootOutcome::Applied(Applied::Done));
        }
    }

    async fn kill_all_and_boot(&mut self) {
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        for &node in &nodes {
            self.kill(node).await;
        }
        for node in nodes {
            self.boot(node).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_and_the_root_move_to_a_new_node_and_everything_is_found_again() {
    let mut cluster = Cluster::start(3).await;
    cluster.open_bucket().await;
    cluster.fill(0..20).await;
    let new = cluster.join().await;
    assert!(cluster.nodes[&new].meta.status().is_empty(), "it holds what it is given, and no more");
    let [_, other, third] = cluster.leader_first();
    cluster.move_replica(RANGE, other, new).await;
    cluster.fill(20..40).await;
    cluster.move_replica(RangeId::ROOT, other, new).await;
    // without the new one there is no majority
    cluster.kill(third).await;
    cluster.has(40).await;
    cluster.fill(40..50).await;
    cluster.boot(third).await;
    cluster.settle().await;
    cluster.kill_all_and_boot().await;
    cluster.has(50).await;
    cluster.settle().await;
    let not_held = cluster.nodes[&other].meta.status().len();
    assert_eq!(not_held, RANGES - 2, "what has left stays away");
    assert_eq!(cluster.damaged(other), [], "a founder does not miss what has left it");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_has_left_may_come_back() {
    let mut cluster = Cluster::start(3).await;
    cluster.open_bucket().await;
    cluster.fill(0..10).await;
    let new = cluster.join().await;
    let first = cluster.voters[0];
    for range in [RANGE, RangeId::ROOT] {
        cluster.move_replica(range, first, new).await;
        cluster.move_replica(range, new, first).await;
    }
    cluster.kill_all_and_boot().await;
    cluster.move_replica(RANGE, first, new).await;
    cluster.has(10).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_to_go_lets_another_one_lead_before() {
    let mut cluster = Cluster::start(3).await;
    cluster.open_bucket().await;
    let new = cluster.join().await;
    for range in [RANGE, RangeId::ROOT] {
        let leader = cluster.leader(range).expect("it has answered");
        let term = cluster.status(leader, range).term;
        cluster.move_replica(range, leader, new).await;
        let heir = cluster.leader(range).expect("somebody leads");
        assert_ne!(heir, leader);
        assert_eq!(cluster.status(heir, range).term, term + 1, "asked, and not in vain");
    }
    cluster.put("after", 1).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r7_a_lost_voter_is_replaced_and_takes_no_part_when_it_comes_back() {
    let mut cluster = Cluster::start_with(3, 4096).await;
    cluster.open_bucket().await;
    cluster.fill(0..10).await;
    let new = cluster.join().await;
    let [leader, lost, _] = cluster.leader_first();
    cluster.kill(lost).await;
    // the new one cannot have all of it from the log
    cluster.fill(10..200).await;
    cluster.move_replica(RANGE, lost, new).await;
    cluster.fill(200..220).await;
    let term = cluster.status(leader, RANGE).term;
    cluster.boot(lost).await;
    cluster.settle().await;
    assert_eq!(cluster.status(leader, RANGE).term, term, "it has deposed nobody");
    // what the new one has counts: with the first leader away it is half of the majority
    cluster.kill(leader).await;
    cluster.has(220).await;
    cluster.fill(220..230).await;
    cluster.boot(leader).await;
    cluster.settle().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_to_a_node_that_never_comes_takes_nothing_away_and_is_given_up() {
    let mut cluster = Cluster::start(3).await;
    cluster.open_bucket().await;
    let away = cluster.admit().await;
    let new = cluster.join().await;
    let [leader, other, _] = cluster.leader_first();
    let step = cluster.begin(RANGE, &[other], &[away]).await;
    for number in 0..20 {
        cluster.tend().await;
        cluster.put(&format!("key-{number}"), number).await;
    }
    assert_eq!(cluster.status(leader, RANGE).voters, cluster.voters);
    assert_eq!(
        cluster.root(RootOp::CancelReplicaMove(step)).await,
        RootOutcome::Applied(Applied::Done)
    );
    cluster.settle().await;
    cluster.move_replica(RANGE, other, new).await;
    cluster.has(20).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_is_given_up_late_is_taken_back() {
    let mut cluster = Cluster::start(3).await;
    cluster.open_bucket().await;
    cluster.fill(0..10).await;
    let new = cluster.join().await;
    let [leader, other, _] = cluster.leader_first();
    let step = cluster.begin(RANGE, &[other], &[new]).await;
    // the members have changed, and the root has not heard of it
    let began = cluster.host.clock.now();
    while !cluster.status(leader, RANGE).voters.contains(&new) {
        let replicas = cluster.replicas().await;
        cluster.nodes.values().for_each(|running| running.meta.note_directory(&replicas));
        cluster.host.clock.sleep(Duration::from_millis(20)).await;
        assert!(cluster.host.clock.now() - began < PATIENCE);
    }
    assert_eq!(
        cluster.root(RootOp::CancelReplicaMove(step)).await,
        RootOutcome::Applied(Applied::Done)
    );
    cluster.settle().await;
    assert_eq!(cluster.voters_of(RANGE).await, cluster.voters);
    cluster.has(10).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_node_that_dies_or_is_wiped_on_the_way_gets_its_replicas_all_the_same() {
    let mut cluster = Cluster::start(3).await;
    cluster.open_bucket().await;
    cluster.fill(0..30).await;
    let new = cluster.join().await;
    let [_, other, _] = cluster.leader_first();
    cluster.begin(RANGE, &[other], &[new]).await;
    let is_there = async |cluster: &Cluster| cluster.nodes[&new].meta.descriptor(RANGE).is_some();
    cluster.tend_until("it has begun", is_there).await;
    cluster.kill(new).await;
    cluster.boot(new).await;
    cluster.tend_until("it has begun again", is_there).await;
    cluster.kill(new).await;
    cluster.host.disk.remove_dir_all(&cluster.dir(new)).expect("wiped");
    cluster.boot(new).await;
    cluster.settle().await;
    // and as a voter: what it had voted is forgotten, so it is out first
    cluster.kill(new).await;
    cluster.host.disk.remove_dir_all(&cluster.dir(new)).expect("wiped");
    cluster.boot(new).await;
    cluster.tend_until("it is refilled", is_there).await;
    cluster.settle().await;
    cluster.has(30).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_becomes_one_of_three_and_survives_the_loss_of_the_first() {
    let mut cluster = Cluster::start(1).await;
    cluster.open_bucket().await;
    cluster.fill(0..10).await;
    let (second, third) = (cluster.join().await, cluster.join().await);
    for range in (0..RANGES as u64).map(RangeId) {
        cluster.begin(range, &[], &[second, third]).await;
    }
    cluster.settle().await;
    cluster.kill_all_and_boot().await;
    cluster.settle().await;
    cluster.kill(NodeId(1)).await;
    cluster.has(10).await;
    cluster.put("after", 1).await;
    cluster.boot(NodeId(1)).await;
    cluster.settle().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r8_what_was_a_part_of_a_range_outlives_its_leaving_and_a_lost_map() {
    let mut cluster = Cluster::start(3).await;
    cluster.open_bucket().await;
    cluster.fill(0..20).await;
    let new = cluster.join().await;
    cluster.split("key-5").await;
    cluster.tell_split().await;
    let leaver = cluster.voters[0];
    cluster.move_replica(RANGE, leaver, new).await;
    assert!(cluster.nodes[&leaver].meta.descriptor(CHILD).is_some());
    // the other way round: the part first, then what it was a part of, whose first entries were of both
    cluster.move_replica(CHILD, cluster.voters[1], new).await;
    cluster.move_replica(RANGE, new, leaver).await;
    cluster.move_replica(RANGE, cluster.voters[2], new).await;
    let nodes: Vec<NodeId> = cluster.nodes.keys().copied().collect();
    for &node in &nodes {
        cluster.kill(node).await;
        let map = cluster.dir(node).join("map");
        cluster.host.disk.remove_dir_all(&map).expect("the map is lost");
    }
    for node in nodes {
        cluster.boot(node).await;
    }
    cluster.settle().await;
    for number in 0..20 {
        let key = format!("key-{number}");
        let range = if key.as_str() < "key-5" { RANGE } else { CHILD };
        assert_eq!(cluster.get_of(range, &key).await, Some(number), "{key}");
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r7_what_has_left_is_not_born_again_by_a_split_that_is_replayed() {
    let mut cluster = Cluster::start(3).await;
    cluster.open_bucket().await;
    cluster.fill(0..20).await;
    let new = cluster.join().await;
    cluster.split("key-5").await;
    cluster.tell_split().await;
    let leaver = cluster.voters[0];
    cluster.move_replica(CHILD, leaver, new).await;
    cluster.kill(leaver).await;
    cluster.host.disk.remove_dir_all(&cluster.dir(leaver).join("map")).expect("the map is lost");
    cluster.boot(leaver).await;
    // it applies all of the parent's log again, and is told of no directory meanwhile
    let has_caught_up = |cluster: &Cluster| {
        let applied = |node: NodeId| {
            let all = cluster.nodes[&node].meta.status();
            all.into_iter().find(|status| status.range == RANGE).and_then(|status| status.applied)
        };
        applied(leaver).is_some() && applied(leaver) == applied(cluster.voters[1])
    };
    cluster.wait("the parent is there again", has_caught_up).await;
    assert!(cluster.nodes[&leaver].meta.descriptor(CHILD).is_none(), "its vote is forgotten");
    cluster.settle().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_of_which_a_crash_has_left_the_log_alone_goes_all_the_same_and_may_come_back() {
    let mut cluster = Cluster::start_with(3, 4096).await;
    cluster.open_bucket().await;
    let new = cluster.join().await;
    let leaver = cluster.voters[0];
    let mut count = 0;
    while cluster.status(leaver, RANGE).purged <= Some(64) {
        cluster.fill(count..count + 50).await;
        count += 50;
    }
    cluster.kill(leaver).await;
    cluster.move_replica(RANGE, leaver, new).await;
    // rows and snapshot go before the log does
    let dir = cluster.dir(leaver);
    cluster.host.disk.remove_dir_all(&dir.join("map")).expect("the rows are gone");
    let snapshot = dir.join("snapshots").join("range-1.snapshot");
    cluster.host.disk.remove_file(&snapshot).expect("the snapshot is gone");
    cluster.boot(leaver).await;
    cluster.settle().await;
    cluster.move_replica(RANGE, new, leaver).await;
    cluster.has(count).await;
    cluster.stop_all().await;
}
