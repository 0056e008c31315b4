//! R4 (contract §2): the same applied index, the same state hash on every replica. And one leader, whom all know (L1).
//!
//! The nodes compare themselves, too, and mend what differs: that one of them had to is found while they run.

use crate::options::Options;
use crate::record::Recorder;
use crate::world::World;
use ashlar::node::RunningNode;
use ashlar_types::RangeId;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a follower may lag once nobody writes, and how long replicas may still be on their way.
const LAG_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What a replica says: the index it has applied, and the hash there.
type Said = (usize, Option<(u64, u128)>);

/// Finds nodes that have found a replica of theirs to differ, until the safety phase is over.
pub(crate) async fn watch(world: World, recorder: Recorder) {
    while !world.is_safety_over() {
        tokio::time::sleep(LOOK_EVERY).await;
        look_for_distrusted(&world, &recorder);
    }
}

fn look_for_distrusted(world: &World, recorder: &Recorder) {
    for index in 0..world.count() {
        let distrusted = |node: &RunningNode| node.meta().map(|meta| meta.distrusted());
        let found = world.look(index, |machine| machine.node().and_then(distrusted)).flatten();
        if found.is_some_and(|found| found > 0) {
            let what =
                format!("node-{} found that its state was not that of the others", index + 1);
            recorder.find("R4", what);
        }
    }
}

/// Compares whenever two replicas are at the same index; waits until all of them are, on every voter.
pub(crate) async fn check(world: &World, recorder: &Recorder, options: &Options) {
    let mut lag = String::new();
    for _ in 0..LAG_MAX.as_millis() / LOOK_EVERY.as_millis() {
        look_for_distrusted(world, recorder);
        let ranges = said(world);
        for (range, replicas) in &ranges {
            compare(recorder, *range, replicas);
        }
        match behind(&ranges, options.voters.into()) {
            None => return recorder.note(&format!("replicas agree: {ranges:?}")),
            Some(who) => lag = who,
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    recorder.find("R4", format!("not at one index {LAG_MAX:?} after the last write: {lag}"));
}

fn said(world: &World) -> BTreeMap<RangeId, Vec<Said>> {
    let mut ranges: BTreeMap<RangeId, Vec<Said>> = BTreeMap::new();
    for index in 0..world.count() {
        let status = |node: &RunningNode| node.meta().map(|meta| meta.status());
        let status = world.look(index, |machine| machine.node().and_then(status)).flatten();
        for group in status.unwrap_or_default() {
            ranges.entry(group.range).or_default().push((index + 1, group.state_hash));
        }
    }
    ranges
}

fn compare(recorder: &Recorder, range: RangeId, replicas: &[Said]) {
    let mut hashes: BTreeMap<u64, (usize, u128)> = BTreeMap::new();
    for (node, said) in replicas {
        let Some((applied, hash)) = said else { continue };
        let (first, other) = *hashes.entry(*applied).or_insert((*node, *hash));
        if other != *hash {
            let what = format!("{range} at {applied}: node-{first} and node-{node} differ");
            recorder.find("R4", what);
        }
    }
}

/// Who is not where the others are, or not there.
fn behind(ranges: &BTreeMap<RangeId, Vec<Said>>, voters: usize) -> Option<String> {
    let differ = |replicas: &[Said]| {
        if replicas.len() != voters {
            return true;
        }
        let mut applied = replicas.iter().map(|(_, said)| said.map(|(applied, _)| applied));
        let first = applied.next().flatten();
        first.is_none() || applied.any(|other| other != first)
    };
    let (range, replicas) = ranges.iter().find(|(_, replicas)| differ(replicas))?;
    Some(format!("{range}: {replicas:?}"))
}
