//! Which ranges this node leads now: a hint that decides who does a duty. Two nodes may both believe it, so duties go
//! through the log and may be done twice.

use ashlar_client::{Client, Failure};
use ashlar_meta::MetaNode;
use ashlar_types::{NodeId, RangeDescriptor, RangeId};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What duties of a leader ask first.
#[derive(Clone)]
pub(crate) struct Leading {
    pub(crate) client: Client,
    pub(crate) meta: Arc<MetaNode>,
    pub(crate) node: NodeId,
}

impl Leading {
    fn led(&self) -> BTreeSet<RangeId> {
        let groups = self.meta.status().into_iter();
        groups.filter(|group| group.leader == Some(self.node)).map(|group| group.range).collect()
    }

    /// Whether this node leads the root.
    pub(crate) fn root(&self) -> bool {
        self.led().contains(&RangeId::ROOT)
    }

    /// The ranges of data that it leads, also such as the root's directory does not know yet.
    pub(crate) fn data_ranges(&self) -> BTreeSet<RangeId> {
        let mut led = self.led();
        led.remove(&RangeId::ROOT);
        led
    }

    /// The ranges of data that it leads, as the root has them.
    pub(crate) async fn ranges(&self) -> Result<Vec<RangeDescriptor>, Failure> {
        let led = self.data_ranges();
        if led.is_empty() {
            return Ok(Vec::new());
        }
        let mut ranges = self.client.ranges_now().await?;
        ranges.retain(|range| led.contains(&range.id));
        Ok(ranges)
    }
}
