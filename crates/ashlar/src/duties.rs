//! What a node does for the cluster besides serving: it follows the map, registers its boot and its disks, places new
//! disks into groups, and says when it is ready.
//!
//! Every duty is idempotent and goes through the log: it may run on several nodes at once, late, or twice.

use crate::identity::{Identity, NodeDir};
use crate::node::{AddressBook, addresses_of};
use ashlar_admin::Readiness;
use ashlar_client::{Client, Failure};
use ashlar_host::Host;
use ashlar_node::DataNode;
use ashlar_placement::Settings;
use ashlar_types::{
    ClusterMap, DiskId, Epoch, NodeId, Profile, RangeQuery, Role, RootAnswer, RootCommand, RootOp,
    RootQuery, RootRefusal,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const POLL_EVERY: Duration = Duration::from_millis(25);
const PLACE_EVERY: Duration = Duration::from_millis(50);
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The duties of one node.
#[derive(Clone)]
pub(crate) struct Duties {
    pub(crate) host: Host,
    pub(crate) client: Client,
    pub(crate) data: Option<Arc<DataNode>>,
    pub(crate) book: AddressBook,
    pub(crate) dir: Arc<NodeDir>,
    pub(crate) readiness: Readiness,
    pub(crate) profile: Option<Profile>,
    pub(crate) founders: Vec<NodeId>,
}

impl Duties {
    /// Hands each new map to those who need it.
    pub(crate) async fn follow_map(self) {
        self.readiness.set("cluster", false, "the cluster map is not known yet");
        let mut seen = None;
        while self.waits(POLL_EVERY).await {
            if self.data.as_ref().is_some_and(|data| data.wants_map()) {
                self.client.want_map();
            }
            let map = self.client.map();
            if seen == Some(map.epoch) || map.epoch == Epoch(0) {
                continue;
            }
            seen = Some(map.epoch);
            self.keep_members(addresses_of(&map));
            if let Some(data) = &self.data {
                data.set_map(map.clone());
            }
            let placed = map.wide.is_some();
            self.readiness.set(
                "cluster",
                placed,
                "the disks of the founders are not all placed yet",
            );
        }
    }

    /// Before they are used: after a power cut of all they must find each other without the map.
    fn keep_members(&self, members: BTreeMap<NodeId, String>) {
        if **self.book.load() == members {
            return;
        }
        if let Err(error) = self.dir.set_members(&members) {
            tracing::warn!(%error, "the list of members could not be kept");
        }
        self.book.store(Arc::new(members));
    }

    /// Says to the root that this node has booted, and which disks it has, until the root has heard it; then checks
    /// from time to time that a command would be taken.
    pub(crate) async fn register(self, identity: Identity, address: String) {
        self.readiness.set("registered", false, "the root has not heard of this boot yet");
        // sent again as the same command while its outcome is not known: told twice, it would look like a clone's
        let mut told: Option<RootCommand> = None;
        while self.waits(POLL_EVERY).await {
            let boot = told.take().unwrap_or_else(|| self.boot(&identity, &address));
            match self.client.send_root(&boot).await {
                // an old image, or a clone: the node's other disks are as good as before
                Err(Failure::Root(refusal @ RootRefusal::StaleDisk(disk))) if self.has(disk) => {
                    self.put_out(disk, &refusal.to_string()).await;
                }
                Err(Failure::Root(refusal)) => {
                    tracing::error!(%refusal, "the cluster refuses this node");
                    let reason = format!("the cluster refuses this node: {refusal}");
                    self.readiness.set("registered", false, &reason);
                    self.host.clock.sleep(CHECK_EVERY).await;
                }
                Err(failure) => {
                    tracing::debug!(%failure, "the root could not be told of this boot yet");
                    told = Some(boot);
                }
                Ok(_) => break,
            }
        }
        self.readiness.set("registered", true, "");
        self.watch_ranges().await;
    }

    fn boot(&self, identity: &Identity, address: &str) -> RootCommand {
        self.client.root_command(RootOp::Boot {
            node: identity.node(),
            incarnation: identity.incarnation,
            address: address.to_owned(),
            disks: self.data.as_ref().map_or_else(Vec::new, |data| data.disks()),
        })
    }

    fn has(&self, disk: DiskId) -> bool {
        self.data.as_ref().is_some_and(|data| data.store(disk).is_some())
    }

    async fn put_out(&self, disk: DiskId, why: &str) {
        if let Some(data) = &self.data {
            data.put_out(disk, why).await;
        }
    }

    async fn watch_ranges(&self) {
        self.readiness.set("metadata", false, "not every range has a leader that answers yet");
        let mut pause = POLL_EVERY;
        while self.waits(pause).await {
            let answers = self.ranges_answer().await;
            self.readiness.set("metadata", answers, "not every range has a leader that answers");
            pause = if answers { CHECK_EVERY } else { POLL_EVERY };
        }
    }

    /// Whether every range has a leader that answers a read.
    async fn ranges_answer(&self) -> bool {
        let Ok(RootAnswer::Ranges(ranges)) = self.client.root_query(RootQuery::Ranges).await else {
            return false;
        };
        let reads = ranges.into_iter().map(|range| async move {
            let bucket = range.interval.start.bucket;
            self.client.query(&range.interval.start, RangeQuery::Usage { bucket }).await.is_ok()
        });
        futures::future::join_all(reads).await.into_iter().all(|answered| answered)
    }

    /// Puts disks that no group names into new groups. The difference is judged by the root, so a second proposer does
    /// no harm.
    pub(crate) async fn place(self) {
        while self.waits(PLACE_EVERY).await {
            let map = self.client.map();
            if !self.founders_have_booted(&map) {
                continue;
            }
            let settings = Settings { wide: self.profile, ..Settings::default() };
            let Some(diff) = ashlar_placement::extend(&map, &settings) else { continue };
            // groups that were only appended would give new disks nothing of what is there: first it moves
            let only_appends = diff.wide.is_none() && diff.closed.is_empty();
            if only_appends && ashlar_placement::are_moves_left(&map) {
                continue;
            }
            match self.client.root(RootOp::Place(diff)).await {
                Ok(_) => tracing::info!("new disks were placed"),
                Err(failure) => tracing::debug!(%failure, "a placement was not taken"),
            }
        }
    }

    /// The first placement waits for all founders: a table over half of the disks would have to be moved at once.
    fn founders_have_booted(&self, map: &ClusterMap) -> bool {
        let booted = |id: &NodeId| {
            map.nodes.get(id).is_some_and(|node| {
                let has_disk = || map.disks.values().any(|disk| disk.node == *id);
                node.incarnation > 0 && (!node.roles.contains(&Role::Data) || has_disk())
            })
        };
        map.epoch > Epoch(0) && (!map.groups.is_empty() || self.founders.iter().all(booted))
    }

    /// `false`: the node stops.
    async fn waits(&self, span: Duration) -> bool {
        tokio::select! {
            biased;
            () = self.host.shutdown.requested() => false,
            () = self.host.clock.sleep(span) => true,
        }
    }
}
