//! What an operator is told of the metadata plane: whether the replicas of a range have what they say, and by which versions
//! the cluster applies.

use crate::raise::{Told, ask_all};
use ashlar_client::{Client, Failure};
use ashlar_types::{
    ApplyVersions, NodeId, NodeVersions, RangeDescriptor, RangeId, ReplicaReport, Versioned,
};
use futures::StreamExt;
use serde::{Deserialize, Serialize};

/// How many ranges are asked at once.
const ASKED_AT_ONCE: usize = 8;

/// What the replicas of a range have found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeReport {
    /// The range.
    pub range: RangeId,
    /// Its replicas, by node; an error says why one has no answer.
    pub replicas: Vec<(NodeId, Result<ReplicaReport, String>)>,
}

impl RangeReport {
    /// Whether every replica has answered, and none has found anything.
    pub fn is_right(&self) -> bool {
        let is_right = |report: &Result<ReplicaReport, String>| {
            report.as_ref().is_ok_and(ReplicaReport::is_right)
        };
        self.replicas.iter().all(|(_, report)| is_right(report))
    }
}

impl Versioned for RangeReport {
    const NAME: &'static str = "report of a range";
    const VERSION: u8 = 1;
}

/// By which versions the cluster applies, and who knows which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionsReport {
    /// The root's, and those to which ranges may be raised.
    pub used: ApplyVersions,
    /// What the nodes know that may hold replicas; an error says why one has no answer.
    pub nodes: Vec<(NodeId, Result<NodeVersions, String>)>,
    /// The ranges that apply by an earlier version than they may; an error says why it is not known.
    pub behind: Vec<(RangeId, Result<u32, String>)>,
}

impl Versioned for VersionsReport {
    const NAME: &'static str = "report of versions";
    const VERSION: u8 = 1;
}

/// Has every replica of a range visit its rows, one after the other: a range is served meanwhile, and one node at a time has
/// the work. `None`: there is no such range.
pub(crate) async fn verify_range(
    client: &Client,
    range: RangeId,
) -> Result<Option<RangeReport>, Failure> {
    let directory = client.replicas_now().await?;
    let Some(known) = directory.ranges.into_iter().find(|one| one.range.id == range) else {
        return Ok(None);
    };
    let mut replicas = Vec::new();
    for node in known.range.voters {
        replicas.push((node, client.verify_replica(node, range).await));
    }
    Ok(Some(RangeReport { range, replicas }))
}

/// What the cluster uses, and what its nodes know.
pub(crate) async fn versions(client: &Client) -> Result<VersionsReport, Failure> {
    let map = client.map_now().await?;
    let told = ask_all(client, &map).await;
    // nothing was raised while one of them does not know how; as the root's leader, it would not know the question
    let is_of_before = |(_, said): &Told<'_>| said.as_ref().is_ok_and(NodeVersions::is_of_before);
    let used = match told.iter().any(is_of_before) {
        true => ApplyVersions::FIRST,
        false => client.apply_versions().await?,
    };
    let nodes = told.into_iter().map(|(node, said)| (node.id, said)).collect();
    let ranges = client.ranges_now().await?;
    let asked = ranges.into_iter().map(|range| behind(client, range, used.ranges));
    let behind: Vec<_> = futures::stream::iter(asked).buffered(ASKED_AT_ONCE).collect().await;
    Ok(VersionsReport { used, nodes, behind: behind.into_iter().flatten().collect() })
}

async fn behind(
    client: &Client,
    range: RangeDescriptor,
    used: u32,
) -> Option<(RangeId, Result<u32, String>)> {
    let state = client.split_state(&range.interval.start).await;
    let version = state.map(|state| state.apply_version).map_err(|failure| failure.to_string());
    let is_there = version.as_ref().is_ok_and(|version| *version >= used);
    (!is_there).then_some((range.id, version))
}
