//! Bucket deletions whose driver has died are brought to their end: until then the bucket's name answers 409.
//!
//! The root's leader looks for buckets that are being deleted. One that is found again under the same epoch has had time
//! enough: its deletion is gone on with. Each step may be repeated, and may be done by a driver that lives after all.

use crate::leading::Leading;
use ashlar_client::Client;
use ashlar_host::Host;
use ashlar_types::{BucketId, Epoch};
use std::collections::BTreeSet;
use std::time::Duration;

/// Between two looks: longer than a deletion takes whose driver lives.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Ends what others have begun.
pub(crate) struct Deletions {
    pub(crate) host: Host,
    pub(crate) client: Client,
    pub(crate) leading: Leading,
}

impl Deletions {
    /// Goes on until it is dropped.
    pub(crate) async fn run(self) {
        let mut seen = BTreeSet::new();
        loop {
            self.host.clock.sleep(LOOK_EVERY).await;
            seen = if self.leading.root() { self.look(&seen).await } else { BTreeSet::new() };
        }
    }

    /// Goes on with the deletions that were under way at the last look too; gives those that are.
    async fn look(&self, seen: &BTreeSet<(BucketId, Epoch)>) -> BTreeSet<(BucketId, Epoch)> {
        let buckets = match self.client.buckets_being_deleted().await {
            Ok(buckets) => buckets,
            Err(failure) => {
                tracing::debug!(%failure, "the buckets that are being deleted are not known now");
                return BTreeSet::new();
            }
        };
        for bucket in &buckets {
            if !seen.contains(&(bucket.row.bucket, bucket.row.epoch)) {
                continue;
            }
            match self.client.finish_deletion(bucket).await {
                Ok(()) => {
                    tracing::info!(bucket = %bucket.name, "a deletion that was cut off was ended");
                }
                Err(failure) => {
                    tracing::warn!(bucket = %bucket.name, %failure, "a deletion cannot be ended yet");
                }
            }
        }
        buckets.iter().map(|bucket| (bucket.row.bucket, bucket.row.epoch)).collect()
    }
}
