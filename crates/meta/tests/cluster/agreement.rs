//! Replicas that come to another state than the others, and releases that apply by other versions (`docs/adr/0022`).

use super::split::{CHILD, GRANDCHILD, LATER};
use super::*;

/// The row of the current object of a key.
fn row(key: &str) -> Vec<u8> {
    [&b"c"[..], &BUCKET.0.to_be_bytes(), key.as_bytes(), &[0, 0]].concat()
}

impl Cluster {
    /// A replica loses what was written, and shows it: the next write of the key replaces something elsewhere, and nothing
    /// there.
    async fn part_from_the_others(&self, node: NodeId, key: &str) {
        self.converge().await;
        self.nodes[&node].meta.spoil(row(key)).expect("lost");
        self.put(key, 1000).await;
    }

    /// The replica was found out, has begun anew, and has what the others have.
    async fn begins_anew(&self, node: NodeId) {
        self.wait("it is found out", |cluster| cluster.nodes[&node].meta.distrusted() > 0).await;
        self.wait("everything runs everywhere", Self::is_whole).await;
        self.put("last", 1).await;
        self.converge().await;
        self.sums_are_those_of_the_rows();
        let others = self.nodes.iter().filter(|(other, _)| **other != node);
        others.for_each(|(other, running)| {
            assert_eq!(running.meta.distrusted(), 0, "{other} is right");
        });
    }

    async fn follower(&self) -> NodeId {
        self.wait("somebody leads", |cluster| cluster.leader(RANGE).is_some()).await;
        let leader = self.leader(RANGE);
        self.voters.iter().copied().find(|node| Some(*node) != leader).expect("three voters")
    }
}

async fn with_keys() -> Cluster {
    let cluster = Cluster::start(3).await;
    cluster.open_bucket().await;
    for number in 0..20 {
        cluster.put(&format!("a-{number}"), number).await;
        cluster.put(&format!("z-{number}"), 100 + number).await;
    }
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r4_a_follower_with_another_state_is_found_out_and_begins_anew() {
    let mut cluster = with_keys().await;
    let follower = cluster.follower().await;
    cluster.part_from_the_others(follower, "a-3").await;
    cluster.begins_anew(follower).await;
    assert_eq!(cluster.get("a-3").await, Some(1000));
    assert_eq!(cluster.get("a-4").await, Some(4));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r4_a_leader_with_another_state_hands_over_and_begins_anew() {
    let mut cluster = with_keys().await;
    cluster.wait("somebody leads", |cluster| cluster.leader(RANGE).is_some()).await;
    let leader = cluster.leader(RANGE).expect("it does");
    cluster.part_from_the_others(leader, "a-3").await;
    cluster.begins_anew(leader).await;
    assert_eq!(cluster.get("a-3").await, Some(1000));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r4_what_has_changed_past_the_log_is_found_by_a_visit_of_all_rows() {
    let mut cluster = with_keys().await;
    cluster.converge().await;
    for running in cluster.nodes.values() {
        let report = running.meta.verify(RANGE).await.expect("counted");
        assert!(report.is_right() && !report.begins_anew, "{report:?}");
        assert_eq!(report.agreement, Agreement::All);
        assert!(report.rows > 40);
        let root = running.meta.verify(RangeId::ROOT).await.expect("counted");
        assert!(root.is_right() && root.rows > 10, "{root:?}");
    }
    let follower = cluster.follower().await;
    let meta = cluster.nodes[&follower].meta.clone();
    meta.spoil(row("a-3")).expect("lost");
    let report = meta.verify(RANGE).await.expect("counted");
    assert_ne!(report.hash, report.counted);
    assert!(report.begins_anew && !report.is_right(), "{report:?}");
    cluster.begins_anew(follower).await;
    assert_eq!(cluster.get("a-3").await, Some(3));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r4_a_replica_that_the_others_cannot_do_without_stays_and_says_what_it_has() {
    let mut cluster = with_keys().await;
    cluster.converge().await;
    let follower = cluster.follower().await;
    let away = cluster
        .voters
        .iter()
        .copied()
        .find(|node| *node != follower && Some(*node) != cluster.leader(RANGE));
    cluster.kill(away.expect("the third one")).await;
    let meta = cluster.nodes[&follower].meta.clone();
    meta.spoil(row("a-3")).expect("lost");
    let report = meta.verify(RANGE).await.expect("counted");
    assert!(!report.is_right() && !report.begins_anew, "{report:?}");
    assert_eq!(report.agreement, Agreement::Majority);
    cluster.put("a-5", 5).await;
    cluster.boot(away.expect("the third one")).await;
    cluster
        .wait("three answer", |cluster| {
            cluster.nodes.keys().all(|node| cluster.status(*node, RANGE).state_hash.is_some())
        })
        .await;
    cluster.put("a-6", 6).await;
    cluster.converge().await;
    let report = meta.verify(RANGE).await.expect("counted");
    assert!(report.begins_anew, "now they can: {report:?}");
    cluster.begins_anew(follower).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r4_two_that_differ_take_no_writes_until_the_third_says_who_is_right() {
    let mut cluster = with_keys().await;
    let follower = cluster.follower().await;
    let leader = cluster.leader(RANGE).expect("it leads");
    let third = cluster.voters.iter().copied().find(|&node| node != follower && node != leader);
    let third = third.expect("three voters");
    cluster.kill(third).await;
    cluster.part_from_the_others(follower, "a-3").await;
    let began = cluster.host.clock.now();
    let why = loop {
        let command = Command { caller: None, op: put("a-7", 7) };
        let asked = cluster.nodes[&leader].meta.execute(RANGE, EPOCH, command).await;
        match asked {
            Err(NotDone::Busy { reason, .. }) if reason.contains("different states") => {
                break reason;
            }
            _ if cluster.host.clock.now() - began > PATIENCE => panic!("writes go on: {asked:?}"),
            _ => cluster.host.clock.sleep(Duration::from_millis(10)).await,
        }
    };
    assert!(why.contains("start the voters that are away"), "{why}");
    assert_eq!(cluster.get("a-4").await, Some(4), "reads go on");
    assert!(cluster.nodes.values().all(|running| running.meta.distrusted() == 0));
    cluster.boot(third).await;
    cluster.begins_anew(follower).await;
    assert_eq!(cluster.get("a-3").await, Some(1000));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r4_a_replica_that_is_not_to_be_trusted_is_not_after_a_crash_either() {
    let mut cluster = with_keys().await;
    cluster.converge().await;
    let follower = cluster.follower().await;
    cluster.kill(follower).await;
    let mark = cluster.dir(follower).join(format!("distrusted-{}", RANGE.0));
    cluster.host.disk.replace(&mark, b"for a test").expect("written");
    cluster.boot(follower).await;
    let damaged = cluster.damaged(follower);
    assert!(damaged.iter().any(|one| one.range == RANGE && one.why == "for a test"), "{damaged:?}");
    cluster.wait("it has begun anew", Cluster::is_whole).await;
    assert!(!cluster.host.disk.exists(&mark), "it is trusted again");
    cluster.put("last", 1).await;
    cluster.converge().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r8_what_was_a_part_of_a_range_that_begins_anew_goes_on_and_keeps_its_rows() {
    let mut cluster = with_keys().await;
    let follower = cluster.follower().await;
    cluster.split("m").await;
    cluster
        .wait("the child runs on every node", |cluster| {
            let runs = |running: &Running| running.meta.descriptor(CHILD).is_some();
            cluster.nodes.values().all(runs)
        })
        .await;
    cluster.converge().await;
    cluster.nodes[&follower].meta.spoil(row("a-3")).expect("lost");
    let written = cluster.execute_at(RANGE, LATER, put("a-3", 1000)).await;
    assert!(matches!(written, Outcome::Applied(Applied::Written { .. })), "{written:?}");
    cluster.wait("it is found out", |cluster| cluster.nodes[&follower].meta.distrusted() > 0).await;
    cluster
        .wait("both sides run everywhere", |cluster| {
            cluster.nodes.values().all(|running| {
                let status = running.meta.status();
                let full = |status: &GroupStatus| status.voters == cluster.voters;
                status.len() == RANGES + 1 && status.iter().all(full)
            })
        })
        .await;
    for (range, key) in [(RANGE, "b"), (CHILD, "y")] {
        let written = cluster.execute_at(range, LATER, put(key, 1)).await;
        assert!(matches!(written, Outcome::Applied(Applied::Written { .. })), "{written:?}");
        cluster.converge_on(range).await;
    }
    cluster.sums_are_those_of_the_rows();
    // what it has of the child outlives its map
    cluster.kill(follower).await;
    cluster.lose_map(follower);
    cluster.boot(follower).await;
    assert_eq!(
        cluster.damaged(follower),
        [],
        "at once, and not because the others have refilled it"
    );
    cluster.execute_at(CHILD, LATER, put("x", 1)).await;
    cluster.converge_on(CHILD).await;
    assert_eq!(cluster.get_of(CHILD, "z-3").await, Some(103));
    cluster.sums_are_those_of_the_rows();
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r5_a_snapshot_of_before_the_split_writes_nothing_over_what_was_a_part() {
    let mut cluster = Cluster::start_with(3, 32 << 10).await;
    cluster.open_bucket().await;
    let mut number = 0;
    let is_purged = |cluster: &Cluster| {
        let nodes = cluster.nodes.keys();
        nodes.into_iter().all(|node| cluster.status(*node, RANGE).purged.is_some())
    };
    while !is_purged(&cluster) {
        cluster.put(&format!("a-{}", number % 20), number).await;
        cluster.put(&format!("z-{}", number % 20), number).await;
        number += 1;
    }
    let follower = cluster.follower().await;
    let before = cluster.status(follower, RANGE).applied;
    cluster.split("m").await;
    cluster
        .wait("the child runs on every node", |cluster| {
            let runs = |running: &Running| running.meta.descriptor(CHILD).is_some();
            cluster.nodes.values().all(runs)
        })
        .await;
    for key in 0..20 {
        cluster.execute_at(CHILD, LATER, put(&format!("z-{key}"), 5000 + key)).await;
    }
    cluster.converge().await;
    cluster.nodes[&follower].meta.spoil(row("a-3")).expect("lost");
    cluster.execute_at(RANGE, LATER, put("a-3", 1000)).await;
    let is_of_before = |cluster: &Cluster| {
        let leader = cluster.leader(RANGE).expect("it leads");
        cluster.status(leader, RANGE).snapshot < before
    };
    assert!(is_of_before(&cluster), "what the leader would send is of before the split");
    cluster.wait("it is found out", |cluster| cluster.nodes[&follower].meta.distrusted() > 0).await;
    cluster
        .wait("it has come back", |cluster| {
            let status = cluster.nodes.values().flat_map(|running| running.meta.status());
            status.filter(|status| status.range == RANGE && status.voters == cluster.voters).count()
                == 3
        })
        .await;
    cluster.execute_at(RANGE, LATER, put("b", 1)).await;
    cluster.converge_on(RANGE).await;
    cluster.execute_at(CHILD, LATER, put("y", 1)).await;
    cluster.converge_on(CHILD).await;
    cluster.sums_are_those_of_the_rows();
    for key in 0..20 {
        assert_eq!(cluster.get_of(CHILD, &format!("z-{key}")).await, Some(5000 + key));
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r5_a_range_begins_anew_beside_its_part_and_a_part_of_that_of_later_epochs() {
    const LATEST: Epoch = Epoch(3);
    let mut cluster = with_keys().await;
    let follower = cluster.follower().await;
    cluster.split("m").await;
    let at = SplitAt { child: GRANDCHILD, at: at("z-3") };
    cluster.execute_at(CHILD, LATER, RangeOp::PrepareSplit(at.clone())).await;
    while cluster.execute_at(CHILD, LATER, RangeOp::StepSplit).await
        != Outcome::Applied(Applied::Stepped { more: false })
    {}
    let parted = cluster.execute_at(CHILD, LATER, RangeOp::Split(at)).await;
    assert_eq!(parted, Outcome::Applied(Applied::Done));
    let runs_everywhere = |cluster: &Cluster, count| {
        cluster.nodes.values().all(|running| {
            let status = running.meta.status();
            let full = |status: &GroupStatus| status.voters == cluster.voters;
            status.len() == count && status.iter().all(full)
        })
    };
    cluster.wait("all run on every node", |it| runs_everywhere(it, RANGES + 2)).await;
    cluster.converge().await;
    // the range in the middle is of epoch 3, the first one of 2
    for (range, epoch, key) in [(RANGE, LATER, "a-3"), (CHILD, LATEST, "z-2")] {
        let found = cluster.nodes[&follower].meta.distrusted();
        cluster.converge_on(range).await;
        cluster.nodes[&follower].meta.spoil(row(key)).expect("lost");
        cluster.execute_at(range, epoch, put(key, 1000)).await;
        cluster.wait("it is found out", |it| it.nodes[&follower].meta.distrusted() > found).await;
        cluster.wait("all run on every node", |it| runs_everywhere(it, RANGES + 2)).await;
        cluster.execute_at(range, epoch, put(key, 1001)).await;
        cluster.converge_on(range).await;
    }
    cluster.execute_at(GRANDCHILD, LATEST, put("z-4", 1002)).await;
    cluster.converge_on(GRANDCHILD).await;
    cluster.sums_are_those_of_the_rows();
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r4_a_leader_whose_snapshot_shows_that_a_row_is_lost_begins_anew() {
    let mut cluster = Cluster::start_with(3, 32 << 10).await;
    cluster.open_bucket().await;
    cluster.put("a", 1).await;
    cluster.converge().await;
    let leader = cluster.leader(RANGE).expect("it leads");
    cluster.nodes[&leader].meta.spoil(row("a")).expect("lost");
    let mut number = 0;
    while cluster.nodes[&leader].meta.distrusted() == 0 {
        cluster.put(&format!("b-{}", number % 20), number).await;
        number += 1;
        assert!(number < 10_000, "a snapshot shows it");
    }
    cluster.begins_anew(leader).await;
    assert_eq!(cluster.get("a").await, Some(1));
    cluster.stop_all().await;
}

/// A release that knows no splits, in a cluster that was founded by it.
fn of_before() -> Versions {
    Versions { known: ApplyVersions { root: 1, ranges: 1 }, first_of_ranges: 1 }
}

/// A release that knows them, in that cluster.
fn of_now() -> Versions {
    Versions { first_of_ranges: 1, ..Versions::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r4_what_not_all_releases_know_gets_into_no_log_until_the_range_is_raised() {
    let mut cluster = Cluster::start_as(3, 64 << 20, of_before()).await;
    cluster.open_bucket().await;
    cluster.put("a", 1).await;
    cluster.versions = of_now();
    for node in [NodeId(1), NodeId(2)] {
        cluster.stop(node).await;
        cluster.boot(node).await;
        cluster.put(&format!("while {node} is new"), 2).await;
    }
    cluster.converge().await;
    let split = || RangeOp::PrepareSplit(SplitAt { child: CHILD, at: at("m") });
    cluster.wait("somebody leads", |cluster| cluster.leader(RANGE).is_some()).await;
    let leader = cluster.leader(RANGE).expect("it leads");
    let applied = cluster.status(leader, RANGE).applied;
    let asked =
        cluster.nodes[&leader].meta.execute(RANGE, EPOCH, Command { caller: None, op: split() });
    let refused = asked.await.expect_err("the third node could not read it");
    assert!(matches!(refused, NotDone::Busy { .. }), "{refused:?}");
    assert!(
        refused.to_string().contains("when all nodes have a release that knows it"),
        "{refused}"
    );
    assert_eq!(cluster.status(leader, RANGE).applied, applied, "it was not proposed");

    cluster.stop(NodeId(3)).await;
    cluster.boot(NodeId(3)).await;
    let raised = cluster.until(|meta| async move { meta.raise_apply_version(RANGE, 2).await });
    raised.await.expect("raised");
    cluster.split("m").await;
    cluster.execute_at(RANGE, LATER, put("b", 1)).await;
    cluster.converge().await;
    assert_eq!(cluster.nodes[&NodeId(3)].meta.apply_version(RANGE), Some(2));
    cluster.sums_are_those_of_the_rows();
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r4_an_older_release_does_not_open_what_was_raised_beyond_it() {
    let mut cluster = Cluster::start_as(3, 64 << 20, of_now()).await;
    cluster.open_bucket().await;
    cluster.put("a", 1).await;
    let raised = cluster.until(|meta| async move { meta.raise_apply_version(RANGE, 2).await });
    raised.await.expect("raised");
    cluster.converge().await;
    cluster.stop(NodeId(3)).await;
    cluster.versions = of_before();
    cluster.boots += 1;
    let refused = cluster.try_boot(NodeId(3), cluster.boots).await.expect_err("it is too old");
    let told = refused.to_string();
    assert!(told.contains("this release is too old"), "{told}");
    assert!(told.contains("applied by version 2, this binary knows 1: upgrade it"), "{told}");
    cluster.versions = of_now();
    cluster.boot(NodeId(3)).await;
    cluster.put("b", 2).await;
    cluster.converge().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r4_a_replica_of_an_older_release_stops_when_the_range_is_raised() {
    let mut cluster = Cluster::start_as(3, 64 << 20, of_now()).await;
    cluster.open_bucket().await;
    cluster.put("a", 1).await;
    cluster.stop(NodeId(3)).await;
    cluster.versions = of_before();
    cluster.boot(NodeId(3)).await;
    cluster.put("b", 2).await;
    cluster.converge().await;
    let before = cluster.status(NodeId(3), RANGE).state_hash;
    let raised = cluster.until(|meta| async move { meta.raise_apply_version(RANGE, 2).await });
    raised.await.expect("raised");
    cluster.put("c", 3).await;
    assert_eq!(cluster.status(NodeId(3), RANGE).state_hash, before, "it applies no further");
    cluster.wait("it says why", |cluster| cluster.nodes[&NodeId(3)].meta.failure().is_some()).await;
    let why = cluster.nodes[&NodeId(3)].meta.until_failed().await;
    assert!(why.contains("this release is too old for the cluster"), "{why}");
    cluster.kill(NodeId(3)).await;
    cluster.versions = of_now();
    cluster.boot(NodeId(3)).await;
    cluster.put("d", 4).await;
    cluster.converge().await;
    cluster.stop_all().await;
}

impl Cluster {
    fn lose_map(&self, node: NodeId) {
        self.host.disk.remove_dir_all(&self.dir(node).join("map")).expect("a map");
    }

    async fn says_that_it_is_too_old(&mut self, node: NodeId) {
        self.versions = of_before();
        self.boots += 1;
        // what it finds at once keeps it from starting; what it finds later, or in its ranges alone, ends it
        let why = match self.try_boot(node, self.boots).await {
            Err(refused) => refused.to_string(),
            Ok(()) => {
                self.wait("it says why", |it| it.nodes[&node].meta.failure().is_some()).await;
                let why = self.nodes[&node].meta.until_failed().await;
                self.kill(node).await;
                why
            }
        };
        assert!(why.contains("this release is too old for the cluster"), "{why}");
        self.versions = of_now();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r4_an_older_release_says_so_wherever_it_meets_what_it_does_not_know() {
    let mut cluster = Cluster::start_as(3, 64 << 10, of_now()).await;
    cluster.open_bucket().await;
    cluster.put("a", 1).await;
    let raised = cluster.until(|meta| async move { meta.raise_apply_version(RANGE, 2).await });
    raised.await.expect("raised");
    cluster.put("b", 2).await;
    cluster.converge().await;
    // in the log
    cluster.kill(NodeId(3)).await;
    cluster.lose_map(NodeId(3));
    cluster.says_that_it_is_too_old(NodeId(3)).await;
    // in a snapshot of its own
    cluster.boot(NodeId(3)).await;
    let mut number = 3;
    while cluster.status(NodeId(3), RANGE).snapshot.is_none() {
        cluster.put(&format!("key {number}"), number).await;
        number += 1;
    }
    cluster.converge().await;
    cluster.kill(NodeId(3)).await;
    cluster.lose_map(NodeId(3));
    cluster.says_that_it_is_too_old(NodeId(3)).await;
    // in a snapshot that it is sent
    cluster.host.disk.remove_dir_all(&cluster.dir(NodeId(3))).expect("wiped");
    cluster.says_that_it_is_too_old(NodeId(3)).await;
    cluster.boot(NodeId(3)).await;
    cluster.wait("it has everything", Cluster::is_whole).await;
    cluster.put("last", 1).await;
    cluster.converge().await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_raises_a_version_beyond_what_he_knows_himself() {
    let mut cluster = Cluster::start(1).await;
    cluster.open_bucket().await;
    let meta = cluster.nodes[&NodeId(1)].meta.clone();
    let refused = meta.raise_apply_version(RANGE, 99).await.expect_err("nobody could apply it");
    let newest = meta.known_versions();
    let told = format!("no later version than {}", newest.ranges);
    assert!(refused.to_string().contains(&told), "{refused}");
    let to = ApplyVersions { root: 99, ..newest };
    let op = RootOp::RaiseApplyVersions { base: Epoch(1), to };
    let refused = meta.root_execute(RootCommand { nonce: 1, op }).await.expect_err("nor this");
    assert!(matches!(refused, NotDone::Busy { .. }), "{refused:?}");
    meta.note_versions(ApplyVersions { ranges: newest.ranges + 1, ..newest });
    let why = meta.until_failed().await;
    assert!(why.contains("Install the release that the others run"), "{why}");
    cluster.stop_all().await;
}
