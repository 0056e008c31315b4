//! Repair of what was acknowledged short: the node that leads a range rebuilds the slots that its extents miss, the
//! worst first, as soon as their homes take writes again.
//!
//! Each extent is one job of its own: read, encode, write, commit by compare-and-set. Whoever is killed in the middle
//! leaves the entry in the repair index, and the next leader begins it anew; two that repair the same write the same
//! bytes, and the range takes one (D4).

use crate::leading::Leading;
use ashlar_client::{Client, Failure};
use ashlar_host::Host;
use ashlar_types::{ExtentId, KeyPoint, MissingExtent};
use futures::StreamExt;
use std::time::Duration;

/// Between two rounds. It doubles up to [`ROUND_EVERY_MAX`] while nothing can be done.
const ROUND_EVERY: Duration = Duration::from_secs(1);
const ROUND_EVERY_MAX: Duration = Duration::from_secs(16);
/// Extents of one page.
const PAGE_EXTENTS: u32 = 200;
/// Extents that one node rebuilds at once: repair is slower than service on purpose.
const REBUILDS_AT_ONCE: usize = 2;

/// Repairs in the ranges that this node leads.
pub(crate) struct Repairer {
    pub(crate) host: Host,
    pub(crate) client: Client,
    pub(crate) leading: Leading,
}

/// What a round has found.
#[derive(Debug, Default)]
struct Round {
    mended: u64,
    waiting: u32,
}

impl Repairer {
    /// Goes on until it is dropped.
    pub(crate) async fn run(self) {
        let mut pause = ROUND_EVERY;
        loop {
            self.host.clock.sleep(pause).await;
            let round = match self.round().await {
                Ok(round) => round,
                Err(failure) => {
                    tracing::debug!(%failure, "the repair index could not be worked off now");
                    pause = (pause * 2).min(ROUND_EVERY_MAX);
                    continue;
                }
            };
            metrics::gauge!("ashlar_repair_waiting_extents").set(f64::from(round.waiting));
            let idle = round.mended == 0 && round.waiting > 0;
            pause = if idle { (pause * 2).min(ROUND_EVERY_MAX) } else { ROUND_EVERY };
        }
    }

    async fn round(&self) -> Result<Round, Failure> {
        let mut round = Round::default();
        for range in self.leading.ranges().await? {
            self.work_off(&range.interval.start, &mut round).await?;
        }
        Ok(round)
    }

    async fn work_off(&self, at: &KeyPoint, round: &mut Round) -> Result<(), Failure> {
        let mut after: Option<ExtentId> = None;
        loop {
            let (entries, more) = self.client.missing(at, after, PAGE_EXTENTS).await?;
            after = entries.last().map(|entry| entry.extent.id);
            let repairs = entries.into_iter().map(|entry| self.repair(entry));
            let mut repairs = futures::stream::iter(repairs).buffer_unordered(REBUILDS_AT_ONCE);
            while let Some(whole) = repairs.next().await {
                if whole {
                    round.mended += 1;
                } else {
                    round.waiting = round.waiting.saturating_add(1);
                }
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// `true`: the extent misses nothing any more, or has ended.
    async fn repair(&self, missing: MissingExtent) -> bool {
        let (id, short) = (missing.extent.id, missing.extent.missing.count());
        let rebuilt = match self.client.rebuild(&missing).await {
            Ok(rebuilt) => rebuilt,
            Err(failure) => {
                metrics::counter!("ashlar_repair_failed_total").increment(1);
                tracing::warn!(extent = %id, %failure, "an extent that misses shards cannot be repaired now");
                return false;
            }
        };
        if rebuilt.is_empty() {
            return false;
        }
        let count = rebuilt.count();
        match self.client.repaired(missing, rebuilt).await {
            Ok(true) => {
                metrics::counter!("ashlar_repair_shards_total").increment(u64::from(count));
                tracing::info!(extent = %id, shards = count, "missing shards were rebuilt");
                count == short
            }
            Ok(false) => true,
            Err(failure) => {
                tracing::debug!(extent = %id, %failure, "a repair could not be committed now");
                false
            }
        }
    }
}
