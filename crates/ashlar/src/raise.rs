//! The versions of apply are raised when every node that may hold a replica knows them (`docs/adr/0022`).
//!
//! The node that leads the root asks all, and raises the cluster's versions by an entry that is refused if a node has joined
//! or booted since. The leader of each range then raises that, by an entry of its own. Nothing of it is kept: whoever leads
//! next looks again.

use crate::leading::Leading;
use ashlar_client::{Client, Failure};
use ashlar_host::Host;
use ashlar_types::{ApplyVersions, ClusterMap, Node, NodeId, NodeVersions, Role, RootRefusal};
use futures::future::join_all;
use std::time::Duration;

const PERIOD: Duration = Duration::from_secs(5);
/// How often the raise is tried with a newer epoch of the map, until all are asked again.
const RAISES_MAX: u32 = 3;

/// Raises what may be raised.
pub(crate) struct Raiser {
    pub(crate) host: Host,
    pub(crate) client: Client,
    pub(crate) leading: Leading,
}

impl Raiser {
    /// Goes on until it is dropped.
    pub(crate) async fn run(self) {
        loop {
            self.host.clock.sleep(PERIOD).await;
            if let Err(failure) = self.look().await {
                tracing::debug!(%failure, "whether versions of apply may be raised is not known now");
            }
        }
    }

    async fn look(&self) -> Result<(), Failure> {
        let used = self.client.apply_versions().await?;
        // also where it holds no replica that would say so
        self.leading.meta.note_versions(used);
        if self.leading.root() && !used.include(&self.leading.meta.known_versions()) {
            self.raise_cluster(used).await?;
        }
        self.raise_ranges(used).await;
        Ok(())
    }

    async fn raise_cluster(&self, used: ApplyVersions) -> Result<(), Failure> {
        let asked = self.client.map_now().await?;
        let told = ask_all(&self.client, &asked).await;
        let to = match common(&told) {
            Ok(to) if used.include(&to) => {
                tracing::debug!(?told, "not all nodes know later versions of apply");
                return Ok(());
            }
            Ok(to) => to,
            Err(who) => {
                tracing::debug!(who, "the versions of apply stay as they are");
                return Ok(());
            }
        };
        let mut base = asked.epoch;
        for _ in 0..RAISES_MAX {
            match self.client.raise_apply_versions(base, to).await {
                Ok(()) => {
                    tracing::info!(%to, "all nodes know them: the cluster applies by later versions now");
                    return Ok(());
                }
                // slots move, for instance: whoever was asked may still be all that there are
                Err(Failure::Root(RootRefusal::StaleMap { .. })) => {
                    let now = self.client.map_now().await?;
                    if starts(&now) != starts(&asked) {
                        return Ok(());
                    }
                    base = now.epoch;
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    async fn raise_ranges(&self, used: ApplyVersions) {
        let meta = &self.leading.meta;
        let to = used.ranges.min(meta.known_versions().ranges);
        for range in self.leading.data_ranges() {
            if meta.apply_version(range).is_none_or(|version| version >= to) {
                continue;
            }
            match meta.raise_apply_version(range, to).await {
                Ok(()) => tracing::info!(%range, to, "the range applies by a later version now"),
                Err(why) => tracing::debug!(%range, %why, "the range was not raised"),
            }
        }
    }
}

/// The nodes that may hold replicas, and which start of each the root knows.
fn starts(map: &ClusterMap) -> Vec<(NodeId, u64)> {
    holders(map).map(|node| (node.id, node.incarnation)).collect()
}

fn holders(map: &ClusterMap) -> impl Iterator<Item = &Node> {
    map.nodes.values().filter(|node| node.roles.contains(&Role::Meta))
}

/// A node that may hold replicas, and what it says of its binary.
pub(crate) type Told<'a> = (&'a Node, Result<NodeVersions, String>);

/// Asks every node that may hold replicas.
pub(crate) async fn ask_all<'a>(client: &Client, map: &'a ClusterMap) -> Vec<Told<'a>> {
    join_all(holders(map).map(|node| async move { (node, client.versions_of(node).await) })).await
}

/// What all of them know; an error says who has not said so. Only the start of a node that the root knows counts: another
/// one may be of another release.
fn common(told: &[Told<'_>]) -> Result<ApplyVersions, String> {
    let mut all: Option<ApplyVersions> = None;
    for (node, said) in told {
        let said = said.as_ref().map_err(|why| silent(node.id, why))?;
        let is_present = said.incarnation == node.incarnation;
        // one of before does not say which start it is, and can do no more than the first
        if !is_present && said.known != ApplyVersions::FIRST {
            return Err(silent(node.id, "the root has not heard of its start"));
        }
        all = Some(all.map_or(said.known, |all| all.common(&said.known)));
    }
    all.ok_or_else(|| "there are no nodes".to_owned())
}

fn silent(node: NodeId, why: &str) -> String {
    format!("{node}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64, incarnation: u64) -> Node {
        Node {
            id: NodeId(id),
            name: String::new(),
            zone: String::new(),
            address: String::new(),
            roles: vec![Role::Meta],
            incarnation,
        }
    }

    fn knows(incarnation: u64, root: u32, ranges: u32) -> Result<NodeVersions, String> {
        let known = ApplyVersions { root, ranges };
        Ok(NodeVersions { node: NodeId(1), incarnation, release: "1".to_owned(), known })
    }

    #[test]
    fn a_version_is_common_when_every_node_in_its_present_start_knows_it() {
        let (one, two) = (node(1, 7), node(2, 9));
        let both = [(&one, knows(7, 3, 4)), (&two, knows(9, 2, 5))];
        assert_eq!(common(&both), Ok(ApplyVersions { root: 2, ranges: 4 }));
        let silent = [(&one, knows(7, 3, 4)), (&two, Err("it does not answer".to_owned()))];
        assert_eq!(common(&silent), Err("node-2: it does not answer".to_owned()));
        let other_start = [(&one, knows(8, 3, 4)), (&two, knows(9, 2, 5))];
        assert!(common(&other_start).is_err());
        let of_before = [(&one, knows(0, 1, 2)), (&two, knows(9, 2, 5))];
        assert_eq!(common(&of_before), Ok(ApplyVersions::FIRST));
        assert!(common(&[]).is_err());
    }
}
