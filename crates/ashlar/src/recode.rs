//! Gives extents the code that new content gets: what was written as copies while too few homes lived, and what was
//! written when the cluster was smaller (data.md calls it narrower and wider).
//!
//! The node that leads a range walks over what the range names, and writes what has another code again, one extent at a
//! time: readers go on reading the old one, and the range takes the copy only where nothing has changed meanwhile. A
//! walk that is cut off loses nothing but its place.

use crate::leading::Leading;
use ashlar_client::{Client, Failure};
use ashlar_host::Host;
use ashlar_types::{Extent, ExtentOwner, HeldContent, InventoryEntry, RangeDescriptor};
use std::time::Duration;

/// Extents of one page.
const PAGE_EXTENTS: u32 = 500;
/// So many copies in a row that cannot be made now end a walk: their homes are away, and the next walk comes.
const FAILURES_MAX: u32 = 3;

/// Recodes in the ranges that this node leads.
pub(crate) struct Recoder {
    pub(crate) host: Host,
    pub(crate) client: Client,
    pub(crate) leading: Leading,
    /// Between two walks.
    pub(crate) every: Duration,
}

/// What the walks over all led ranges have come to.
#[derive(Debug, Default)]
struct Walk {
    /// Extents that have another code than they should.
    waiting: u32,
    failures: u32,
}

impl Recoder {
    /// Goes on until it is dropped.
    pub(crate) async fn run(self) {
        loop {
            self.host.clock.sleep(self.every).await;
            match self.walk_all().await {
                Ok(walk) => {
                    metrics::gauge!("ashlar_recode_waiting_extents").set(f64::from(walk.waiting));
                }
                Err(failure) => tracing::debug!(%failure, "a walk over the codes was cut off"),
            }
        }
    }

    async fn walk_all(&self) -> Result<Walk, Failure> {
        let mut walk = Walk::default();
        for range in self.leading.ranges().await? {
            self.walk(&range, &mut walk).await?;
        }
        Ok(walk)
    }

    /// Objects come first, then parts, which name whatever objects of several parts have; then garbage, which stays as
    /// it is.
    async fn walk(&self, range: &RangeDescriptor, walk: &mut Walk) -> Result<(), Failure> {
        let mut after = None;
        loop {
            let at = &range.interval.start;
            let page = self.client.inventory(at, after, PAGE_EXTENTS).await?;
            for entry in page.entries {
                match entry {
                    InventoryEntry::Plain { content, .. }
                    | InventoryEntry::Part { content, .. } => {
                        self.look_at(content, walk).await;
                    }
                    InventoryEntry::Composite { .. } => {}
                    InventoryEntry::Garbage(_) => return Ok(()),
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    async fn look_at(&self, content: HeldContent, walk: &mut Walk) {
        for extent in content.extents {
            let wanted = self.client.wanted_profile(extent.length);
            let Some(wanted) = wanted.filter(|wanted| *wanted != extent.profile) else { continue };
            walk.waiting = walk.waiting.saturating_add(1);
            if walk.failures < FAILURES_MAX {
                let owner = content.owner.clone();
                self.recode(owner, extent, wanted, walk).await;
            }
        }
    }

    async fn recode(
        &self,
        owner: ExtentOwner,
        extent: Extent,
        wanted: ashlar_types::Profile,
        walk: &mut Walk,
    ) {
        let (id, bytes) = (extent.id, extent.length);
        match self.client.recode(owner, extent, wanted).await {
            Ok(changed) => {
                walk.waiting -= 1;
                walk.failures = 0;
                if changed {
                    metrics::counter!("ashlar_recode_extents_total").increment(1);
                    metrics::counter!("ashlar_recode_bytes_total").increment(bytes);
                    tracing::info!(extent = %id, profile = %wanted, "an extent was written again under the code of new content");
                }
            }
            Err(failure) => {
                walk.failures += 1;
                metrics::counter!("ashlar_recode_failed_total").increment(1);
                tracing::debug!(extent = %id, %failure, "an extent cannot be written again now");
            }
        }
    }
}
