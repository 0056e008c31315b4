//! Scrub and heal: every block of every disk is verified within a cycle, at a pace that the disk hardly feels, and what
//! is damaged is computed anew from other shards of its extent and written again. Damage that a reader met is healed at
//! the next step too.
//!
//! Nothing here asks the metadata: what a disk has to hold stands in its own index. A shard that cannot be healed now
//! stays listed, is never served (D5), and is tried again.

use crate::DataNode;
use ashlar_client::{Client, Column, Failure};
use ashlar_store::{SMALL_SHARD_BYTES_END, ShardKey, ShardMeta, Store, StoreError};
use ashlar_types::DiskId;
use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt};
use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

/// Verified at once.
const STEP_BYTES: u64 = 4 << 20;
/// Between two steps: no more often than the first, and no more seldom than the second, so that what readers found does
/// not wait.
const STEP_EVERY_MIN: Duration = Duration::from_millis(20);
const STEP_EVERY_MAX: Duration = Duration::from_secs(30);
/// Shards healed after one step.
const HEALED_AT_ONCE: usize = 16;
/// Of a long shard so much is computed at once.
const BAND_BYTES: u64 = 512 << 10;

/// Gives bytes of a shard that are lost here, from other shards of its extent.
#[async_trait]
pub trait ColumnSource: Send + Sync + 'static {
    /// The bytes at these offsets.
    async fn column(&self, column: Column, span: Range<u64>) -> Result<Bytes, Failure>;
}

#[async_trait]
impl ColumnSource for Client {
    async fn column(&self, column: Column, span: Range<u64>) -> Result<Bytes, Failure> {
        Ok(Self::column(self, column, span).await?)
    }
}

/// Why a shard was not healed.
#[derive(Debug, thiserror::Error)]
enum HealError {
    #[error("{0}")]
    Source(#[from] Failure),
    #[error("{0}")]
    Store(#[from] StoreError),
}

impl DataNode {
    /// Verifies all disks again and again, each within the configured cycle, also those that come later. It goes on until
    /// it is dropped.
    pub async fn scrub(&self, source: &dyn ColumnSource) {
        let mut followed = self.follow_stores();
        let (mut running, mut scrubbed) = (FuturesUnordered::new(), BTreeSet::new());
        loop {
            let stores = followed.borrow_and_update().clone();
            for (&disk, store) in stores.iter() {
                if scrubbed.insert(disk) {
                    running.push(self.scrub_disk(store.clone(), source));
                }
            }
            tokio::select! {
                Some(gone) = running.next() => {
                    scrubbed.remove(&gone);
                }
                changed = followed.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Goes through all disks once, without a pause, from where each of them is.
    pub async fn scrub_once(&self, source: &dyn ColumnSource) {
        let stores = self.stores();
        let passes = stores
            .values()
            .map(|store| async move { while !self.scrub_step(store, source).await {} });
        join_all(passes).await;
    }

    /// Until the disk is served no more; which it was.
    async fn scrub_disk(&self, store: Store, source: &dyn ColumnSource) -> DiskId {
        let disk = store.disk_id();
        while self.store(disk).is_some_and(|served| served.incarnation() == store.incarnation()) {
            let usage = store.usage();
            let used = usage.capacity.saturating_sub(usage.free);
            self.host.clock.sleep(pause(self.config.scrub_cycle, used)).await;
            self.scrub_step(&store, source).await;
        }
        disk
    }

    /// `true`: it was the last one of a pass.
    async fn scrub_step(&self, store: &Store, source: &dyn ColumnSource) -> bool {
        let disk = store.disk_id().to_string();
        let step = store.scrub_step(STEP_BYTES).await;
        let verified = metrics::counter!("ashlar_scrub_bytes_total", "disk" => disk.clone());
        verified.increment(step.verified_bytes);
        for (key, damage) in &step.found {
            tracing::error!(%disk, extent = %key.extent, slot = key.slot.0, ?damage, "the scrub found damage");
        }
        if store.usage().writable {
            self.heal_disk(store, source).await;
        }
        #[expect(clippy::cast_precision_loss, reason = "a gauge is for people")]
        let damaged = store.scrub_progress().damaged as f64;
        metrics::gauge!("ashlar_scrub_damaged_shards", "disk" => disk).set(damaged);
        step.is_pass_end
    }

    async fn heal_disk(&self, store: &Store, source: &dyn ColumnSource) {
        for (key, _) in store.damaged_shards().into_iter().take(HEALED_AT_ONCE) {
            let Some(meta) = store.meta(key) else { continue };
            match heal(store, meta, source).await {
                Ok(()) => {
                    metrics::counter!("ashlar_scrub_healed_total").increment(1);
                    tracing::info!(disk = %store.disk_id(), extent = %key.extent, slot = key.slot.0, "a damaged shard was healed");
                }
                Err(error) => {
                    tracing::warn!(disk = %store.disk_id(), extent = %key.extent, slot = key.slot.0, %error, "a damaged shard cannot be healed now");
                }
            }
        }
    }
}

/// So long that all of `used` is verified within the cycle.
fn pause(cycle: Duration, used: u64) -> Duration {
    let steps = u32::try_from(used.div_ceil(STEP_BYTES)).unwrap_or(u32::MAX).max(1);
    (cycle / steps).clamp(STEP_EVERY_MIN, STEP_EVERY_MAX)
}

/// Puts the shard again: the store replaces what is damaged, and compares what is not.
async fn heal(store: &Store, meta: ShardMeta, source: &dyn ColumnSource) -> Result<(), HealError> {
    let ShardKey { extent, slot } = meta.key;
    let column = Column { extent, slot, pg: meta.pg, profile: meta.profile };
    if meta.length < SMALL_SHARD_BYTES_END {
        let bytes = source.column(column, 0..meta.length).await?;
        return Ok(store.put_small(meta, bytes).await?);
    }
    let mut writer = store.begin(meta).await?;
    let mut from = 0;
    while from < meta.length {
        let to = (from + BAND_BYTES).min(meta.length);
        writer.write(source.column(column, from..to).await?).await?;
        from = to;
    }
    writer.commit().await?;
    Ok(())
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "days and bytes")]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_has_a_step_for_all_that_is_used() {
        let day = Duration::from_secs(24 * 3600);
        let ten_tib = 10 << 40;
        let steps = (14 * day).as_secs_f64() / pause(14 * day, ten_tib).as_secs_f64();
        assert!(steps * STEP_BYTES as f64 >= ten_tib as f64);
        assert_eq!(pause(14 * day, 0), STEP_EVERY_MAX);
        assert_eq!(pause(Duration::ZERO, 1 << 30), STEP_EVERY_MIN);
    }
}
