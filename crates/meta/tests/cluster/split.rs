//! A range becomes two, on replicas that write, lag, crash and lose their view.

use super::*;

pub(super) const CHILD: RangeId = RangeId(50);
/// Of both sides, behind the first split.
pub(super) const LATER: Epoch = Epoch(2);

fn split_at(key: &str) -> SplitAt {
    SplitAt { child: CHILD, at: at(key) }
}

impl Cluster {
    pub(super) async fn execute_at(&self, range: RangeId, epoch: Epoch, op: RangeOp) -> Outcome {
        let command = Command { caller: None, op };
        let done = self.until(|meta| {
            let command = command.clone();
            async move { meta.execute(range, epoch, command).await }
        });
        done.await.expect("it is judged").outcome
    }

    async fn prepare(&self, key: &str) {
        let prepared = self.execute_at(RANGE, EPOCH, RangeOp::PrepareSplit(split_at(key))).await;
        assert_eq!(prepared, Outcome::Applied(Applied::Done));
        while self.execute_at(RANGE, EPOCH, RangeOp::StepSplit).await
            != Outcome::Applied(Applied::Stepped { more: false })
        {}
    }

    pub(super) async fn split(&self, key: &str) {
        self.prepare(key).await;
        let parted = self.execute_at(RANGE, EPOCH, RangeOp::Split(split_at(key))).await;
        assert_eq!(parted, Outcome::Applied(Applied::Done));
    }

    async fn put_into(&self, range: RangeId, key: &str, number: u64) {
        let outcome = self.execute_at(range, LATER, put(key, number)).await;
        assert!(matches!(outcome, Outcome::Applied(Applied::Written { .. })), "{outcome:?}");
    }

    pub(super) async fn get_of(&self, range: RangeId, key: &str) -> Option<u64> {
        let query = RangeQuery::Object { at: at(key), bucket_epoch: Epoch(1), span: Span::Nothing };
        let answer = self.until(|meta| {
            let query = query.clone();
            async move { meta.query(range, LATER, query).await }
        });
        match answer.await.expect("the read is done") {
            RangeAnswer::Object { record, .. } => Some(number_of(record.etag)),
            RangeAnswer::Refused(QueryRefusal::NoSuchKey) => None,
            other => panic!("{other:?}"),
        }
    }

    async fn child_runs_everywhere(&self) {
        self.wait("the child runs on every node, with all voters", |cluster| {
            cluster.nodes.values().all(|running| {
                let status = running.meta.status();
                let mut child = status.iter().filter(|status| status.range == CHILD);
                child.any(|status| status.voters == cluster.voters && status.leader.is_some())
            })
        })
        .await;
    }

    /// No row has changed past apply: what the sums are kept up by would not show it.
    pub(super) fn sums_are_those_of_the_rows(&self) {
        for (node, running) in &self.nodes {
            for (range, recount) in running.meta.recount().expect("read") {
                assert!(recount.is_right(), "{range} on {node}: {recount:?}");
            }
        }
    }

    async fn both_sides_converge(&self) {
        // a replica that has applied nothing since its start tells no hash
        self.put_into(RANGE, "b", 2000).await;
        self.put_into(CHILD, "y", 2000).await;
        self.converge_on(RANGE).await;
        self.converge_on(CHILD).await;
        self.sums_are_those_of_the_rows();
    }

    /// What the root's directory says of these: what their leaders know.
    fn directory(&self, ranges: &[RangeId]) -> Vec<RangeReplicas> {
        let of = |range: &RangeId| {
            let known = self.nodes.values().filter_map(|node| node.meta.descriptor(*range));
            known.max_by_key(|descriptor| descriptor.epoch).expect("it runs")
        };
        let told = |range| RangeReplicas { range: (*of(range)).clone(), moving: None };
        ranges.iter().map(told).collect()
    }

    /// Tells a node of the directory, as its duty does, again and again, until it has all of these and none is damaged.
    async fn takes_in(&self, node: NodeId, ranges: &[RangeId]) {
        self.wait("each of them runs somewhere", |cluster| {
            let runs = |range: &RangeId| {
                cluster.nodes.values().any(|running| running.meta.descriptor(*range).is_some())
            };
            ranges.iter().all(runs)
        })
        .await;
        let began = self.host.clock.now();
        let directory = self.directory(ranges);
        let meta = &self.nodes[&node].meta;
        while ranges.iter().any(|range| meta.descriptor(*range).is_none())
            || !meta.damaged().is_empty()
        {
            meta.note_directory(&directory);
            self.host.clock.sleep(Duration::from_millis(20)).await;
            assert!(
                self.host.clock.now() - began < PATIENCE,
                "what it lacks does not come: {:?} {:?}",
                meta.status(),
                meta.damaged()
            );
        }
    }

    /// The rows of objects that a stopped node's map has from a key on, by their families and keys.
    fn objects_from(&self, node: NodeId, key: &str) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let map = ashlar_map::open(Engine::Fjall, &self.dir(node).join("map")).expect("a map");
        let from = [&b"c"[..], &BUCKET.0.to_be_bytes(), key.as_bytes()].concat();
        let mut rows = BTreeMap::new();
        let scanned = map.view().scan(&from, Some(b"d"), &mut |row, value| {
            rows.insert(row.to_vec(), value.to_vec());
            std::ops::ControlFlow::Continue(())
        });
        scanned.expect("read");
        rows
    }
}

/// Keys on both sides of `m`.
async fn with_keys(snapshot_log_bytes: u64) -> Cluster {
    let cluster = Cluster::start_with(3, snapshot_log_bytes).await;
    cluster.open_bucket().await;
    for number in 0..20 {
        cluster.put(&format!("a-{number}"), number).await;
        cluster.put(&format!("z-{number}"), 100 + number).await;
    }
    cluster
}

async fn has_all_keys_on_their_sides(cluster: &Cluster) {
    for number in 0..20 {
        assert_eq!(cluster.get_of(RANGE, &format!("a-{number}")).await, Some(number));
        assert_eq!(cluster.get_of(CHILD, &format!("z-{number}")).await, Some(100 + number));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_splits_on_all_replicas_and_both_sides_survive_the_loss_of_every_view() {
    let mut cluster = with_keys(64 << 20).await;
    cluster.split("m").await;
    cluster.child_runs_everywhere().await;
    cluster.put_into(RANGE, "c", 1000).await;
    cluster.put_into(CHILD, "w", 1001).await;
    has_all_keys_on_their_sides(&cluster).await;
    let outside = cluster.execute_at(RANGE, LATER, put("y", 1)).await;
    assert_eq!(outside, Outcome::Refused(Refusal::OutsideRange));
    let late = cluster.nodes[&NodeId(1)].meta.clone();
    let command = Command { caller: None, op: put("y", 1) };
    assert_eq!(late.execute(RANGE, EPOCH, command).await, Err(NotDone::Epoch(Some(LATER))));
    drop(late);
    cluster.both_sides_converge().await;

    // all at once, without their views: what neither has in a snapshot is in the parent's log
    for node in cluster.voters.clone() {
        cluster.kill(node).await;
        cluster.host.disk.remove_dir_all(&cluster.dir(node).join("map")).expect("removed");
    }
    for node in cluster.voters.clone() {
        cluster.boot(node).await;
    }
    cluster.child_runs_everywhere().await;
    has_all_keys_on_their_sides(&cluster).await;
    let new = [cluster.get_of(RANGE, "c").await, cluster.get_of(CHILD, "w").await];
    assert_eq!(new, [Some(1000), Some(1001)]);
    cluster.put_into(CHILD, "x", 1002).await;
    cluster.both_sides_converge().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_that_is_replayed_over_a_reverted_view_leaves_the_childs_log_alone() {
    let mut cluster = with_keys(64 << 20).await;
    cluster.stop(NodeId(3)).await;
    let (map, kept) = (cluster.dir(NodeId(3)).join("map"), cluster.directory.path().join("kept"));
    cluster.copy_dir(&map, &kept);
    cluster.boot(NodeId(3)).await;
    cluster.split("m").await;
    cluster.child_runs_everywhere().await;
    for number in 0..20 {
        cluster.put_into(CHILD, &format!("y-{number}"), number).await;
    }
    cluster.both_sides_converge().await;
    let last = cluster.status(NodeId(3), CHILD).last;

    cluster.kill(NodeId(3)).await;
    cluster.host.disk.remove_dir_all(&map).expect("removed");
    cluster.copy_dir(&kept, &map);
    // the others stop too: what it votes and has is needed
    cluster.kill(NodeId(1)).await;
    cluster.boot(NodeId(3)).await;
    cluster
        .wait("the child is opened with its entries", |cluster| {
            let is_opened = cluster.nodes[&NodeId(3)].meta.descriptor(CHILD).is_some();
            is_opened && cluster.status(NodeId(3), CHILD).last >= last
        })
        .await;
    for number in 0..20 {
        assert_eq!(cluster.get_of(CHILD, &format!("y-{number}")).await, Some(number));
    }
    cluster.put_into(CHILD, "x", 1).await;
    cluster.boot(NodeId(1)).await;
    cluster.child_runs_everywhere().await;
    cluster.both_sides_converge().await;
    has_all_keys_on_their_sides(&cluster).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_away_applies_the_split_from_the_log_or_gets_the_child_behind_it() {
    for snapshot_log_bytes in [64 << 20, 4096] {
        let mut cluster = with_keys(snapshot_log_bytes).await;
        cluster.converge().await;
        cluster.kill(NodeId(3)).await;
        cluster.prepare("m").await;
        let parted = cluster.execute_at(RANGE, EPOCH, RangeOp::Split(split_at("m"))).await;
        assert_eq!(parted, Outcome::Applied(Applied::Done));
        let split = cluster.nodes.keys().filter_map(|&node| cluster.status(node, RANGE).applied);
        let split = split.max().expect("applied");
        let is_purged = |cluster: &Cluster| {
            cluster.nodes.keys().all(|&node| cluster.status(node, RANGE).purged > Some(split))
        };
        let mut count = 0;
        while snapshot_log_bytes == 4096 && !is_purged(&cluster) {
            cluster.put_into(RANGE, "b", count).await;
            cluster.put_into(CHILD, "y", count).await;
            count += 1;
            assert!(count < 20_000, "the log is never purged");
        }
        cluster.boot(NodeId(3)).await;
        cluster.takes_in(NodeId(3), &[RANGE, CHILD]).await;
        cluster.child_runs_everywhere().await;
        cluster.put_into(CHILD, "x", 7).await;
        cluster.both_sides_converge().await;
        assert_eq!(cluster.damaged(NodeId(3)), []);
        // it counts: it stands in for another, and finds everything again
        cluster.kill(NodeId(1)).await;
        has_all_keys_on_their_sides(&cluster).await;
        cluster.put_into(CHILD, "w", 8).await;
        cluster.kill(NodeId(3)).await;
        cluster.host.disk.remove_dir_all(&cluster.dir(NodeId(3)).join("map")).expect("removed");
        cluster.boot(NodeId(3)).await;
        assert_eq!(cluster.get_of(CHILD, "w").await, Some(8));
        has_all_keys_on_their_sides(&cluster).await;
        cluster.boot(NodeId(1)).await;
        cluster.child_runs_everywhere().await;
        cluster.both_sides_converge().await;
        cluster.stop_all().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_killed_around_the_split_and_the_next_one_goes_on() {
    let mut cluster = with_keys(64 << 20).await;
    cluster.prepare("m").await;
    let first = cluster.leader(RANGE).expect("it has just answered");
    cluster.kill(first).await;
    // the steps stay done: nobody counts anew
    let parted = cluster.execute_at(RANGE, EPOCH, RangeOp::Split(split_at("m"))).await;
    assert_eq!(parted, Outcome::Applied(Applied::Done));
    let second = cluster.leader(RANGE).expect("it has just answered");
    cluster.kill(second).await;
    cluster.boot(first).await;
    cluster.put_into(CHILD, "x", 1).await;
    cluster.boot(second).await;
    cluster.child_runs_everywhere().await;
    cluster.both_sides_converge().await;
    has_all_keys_on_their_sides(&cluster).await;
    assert_eq!(cluster.get_of(CHILD, "x").await, Some(1));
    cluster.stop_all().await;
}

/// Whether a node is among the voters of the child, as the others know them.
fn is_voter_of_child(cluster: &Cluster, node: NodeId) -> bool {
    let others = cluster.nodes.iter().filter(|(other, _)| **other != node);
    others
        .flat_map(|(_, running)| running.meta.status())
        .any(|status| status.range == CHILD && status.voters.contains(&node))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r7_a_wiped_node_that_replays_a_split_makes_no_child_whose_votes_it_has_forgotten() {
    let mut cluster = with_keys(64 << 20).await;
    cluster.split("m").await;
    cluster.child_runs_everywhere().await;
    cluster.put_into(CHILD, "y", 1).await;
    cluster.converge_on(CHILD).await;
    cluster.kill(NodeId(3)).await;
    cluster.host.disk.remove_dir_all(&cluster.dir(NodeId(3))).expect("wiped");
    cluster.boot(NodeId(3)).await;
    // the parent comes by its log, the entry of the split among it
    cluster
        .wait("the parent is past the split here", |cluster| {
            let here = cluster.nodes[&NodeId(3)].meta.descriptor(RANGE);
            here.is_some_and(|here| here.epoch == LATER)
        })
        .await;
    cluster.host.clock.sleep(Duration::from_millis(500)).await;
    assert!(cluster.nodes[&NodeId(3)].meta.descriptor(CHILD).is_none(), "it has forgotten it");
    assert!(is_voter_of_child(&cluster, NodeId(3)), "the others count on it still");
    cluster.takes_in(NodeId(3), &[RANGE, CHILD]).await;
    cluster.child_runs_everywhere().await;
    cluster.put_into(CHILD, "x", 2).await;
    cluster.both_sides_converge().await;
    // it counts again, and what it makes of later splits is its own
    cluster.kill(NodeId(1)).await;
    has_all_keys_on_their_sides(&cluster).await;
    cluster.put_into(CHILD, "w", 3).await;
    cluster.boot(NodeId(1)).await;
    cluster.both_sides_converge().await;
    cluster.stop_all().await;
}

/// What was a part of the child.
pub(super) const GRANDCHILD: RangeId = RangeId(51);
const LATEST: Epoch = Epoch(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_generations_of_splits_come_to_a_node_that_was_away_and_none_overlaps() {
    let mut cluster = with_keys(4096).await;
    cluster.converge().await;
    cluster.kill(NodeId(3)).await;
    cluster.split("m").await;
    for number in 0..20 {
        cluster.put_into(CHILD, &format!("y-{number}"), number).await;
    }
    let split = SplitAt { child: GRANDCHILD, at: at("y") };
    for op in [RangeOp::PrepareSplit(split.clone()), RangeOp::StepSplit, RangeOp::Split(split)] {
        let outcome = cluster.execute_at(CHILD, LATER, op).await;
        assert!(matches!(outcome, Outcome::Applied(_)), "{outcome:?}");
    }
    // newer than what any snapshot of the child has of them
    for number in 0..20 {
        let op = if number % 2 == 0 {
            put(&format!("y-{number}"), 500 + number)
        } else {
            RangeOp::Delete(Delete {
                at: at(&format!("y-{number}")),
                bucket_epoch: Epoch(1),
                condition: WriteCondition::Always,
                deleted_ms: 1,
                token: None,
            })
        };
        let outcome = cluster.execute_at(GRANDCHILD, LATEST, op).await;
        assert!(matches!(outcome, Outcome::Applied(_)), "{outcome:?}");
    }
    let applied = cluster.nodes.keys().filter_map(|&node| cluster.status(node, RANGE).applied);
    let applied = applied.max().expect("applied");
    let mut count = 0;
    while cluster.nodes.keys().any(|&node| cluster.status(node, RANGE).purged <= Some(applied)) {
        cluster.put_into(RANGE, "b", count).await;
        count += 1;
        assert!(count < 20_000, "the log is never purged");
    }
    cluster.boot(NodeId(3)).await;
    let all = [RANGE, CHILD, GRANDCHILD];
    cluster.takes_in(NodeId(3), &all).await;
    for range in all {
        cluster
            .wait("all are members again", |cluster| {
                cluster.nodes.values().all(|running| {
                    let status = running.meta.status();
                    status
                        .iter()
                        .any(|group| group.range == range && group.voters == cluster.voters)
                })
            })
            .await;
    }
    // twice: as they came, and rebuilt from what each has stored of itself
    for _ in 0..2 {
        for (range, epoch, key) in
            [(RANGE, LATER, "c"), (CHILD, LATEST, "n"), (GRANDCHILD, LATEST, "zz")]
        {
            let outcome = cluster.execute_at(range, epoch, put(key, 9)).await;
            assert!(matches!(outcome, Outcome::Applied(_)), "{outcome:?}");
            cluster.converge_on(range).await;
        }
        cluster.sums_are_those_of_the_rows();
        cluster.stop_all().await;
        // the sums that replicas tell are kept up by difference: what lies there is compared row by row
        let [first, .., last] = &cluster.voters[..] else { panic!("three") };
        let rows = cluster.objects_from(*first, "");
        assert_eq!(rows.len(), 20 + 20 + 10 + 1 + 1 + 1 + 1, "and those of this test");
        assert!(rows == cluster.objects_from(*last, ""), "the node that was away has other rows");
        let map = cluster.dir(NodeId(3)).join("map");
        cluster.host.disk.remove_dir_all(&map).expect("removed");
        for node in cluster.voters.clone() {
            cluster.boot(node).await;
        }
    }
    cluster.stop_all().await;
}
