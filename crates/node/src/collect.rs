//! Deleting shards that nothing names any more. A caller's word is not enough: the range that has the extents in its gc
//! queue is asked, here, for every request (D2). An extent that is in the queue is never named again, so the answer
//! cannot grow old, and a request that comes late, twice or from a caller that is no leader any more deletes nothing
//! that is named.

use crate::DataNode;
use ashlar_client::Client;
use ashlar_store::{ShardKey, StoreError};
use ashlar_types::{
    COLLECT_SHARDS_MAX, CollectOutcome, CollectShards, DiskId, ExtentId, KeyPoint, ShardName,
};
use async_trait::async_trait;
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};

/// Says which extents a range has in its gc queue.
#[async_trait]
pub trait GarbageJudge: Send + Sync + 'static {
    /// One answer for each extent. The error says why the range could not be asked.
    async fn are_collectable(
        &self,
        at: &KeyPoint,
        extents: Vec<ExtentId>,
    ) -> Result<Vec<bool>, String>;
}

#[async_trait]
impl GarbageJudge for Client {
    async fn are_collectable(
        &self,
        at: &KeyPoint,
        extents: Vec<ExtentId>,
    ) -> Result<Vec<bool>, String> {
        Self::are_collectable(self, at, extents).await.map_err(|failure| failure.to_string())
    }
}

/// Why nothing of a request was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CollectError {
    #[error("a request names at most {COLLECT_SHARDS_MAX} shards, not {0}")]
    TooMany(usize),
    #[error("the range could not be asked whether the extents may go: {0}")]
    NotJudged(String),
}

impl DataNode {
    /// Deletes those of the shards that the range lets go; all of a disk's share one group commit.
    pub(crate) async fn collect(
        &self,
        judge: &dyn GarbageJudge,
        request: &CollectShards,
    ) -> Result<Vec<CollectOutcome>, CollectError> {
        if request.shards.len() > COLLECT_SHARDS_MAX {
            return Err(CollectError::TooMany(request.shards.len()));
        }
        let may_go = collectable(judge, request).await?;
        let mut outcomes = vec![CollectOutcome::NotCollectable; request.shards.len()];
        let mut by_disk: BTreeMap<DiskId, Vec<usize>> = BTreeMap::new();
        for (number, shard) in request.shards.iter().enumerate() {
            if may_go.contains(&shard.extent) {
                by_disk.entry(shard.disk).or_default().push(number);
            }
        }
        let deletes = by_disk.into_iter().map(|(disk, numbers)| async move {
            let shards: Vec<&ShardName> =
                numbers.iter().map(|&number| &request.shards[number]).collect();
            (self.delete(disk, &shards).await, numbers)
        });
        for (deleted, numbers) in join_all(deletes).await {
            numbers
                .into_iter()
                .zip(deleted)
                .for_each(|(number, outcome)| outcomes[number] = outcome);
        }
        outcomes.iter().for_each(|outcome| count(*outcome));
        Ok(outcomes)
    }

    async fn delete(&self, disk: DiskId, shards: &[&ShardName]) -> Vec<CollectOutcome> {
        let Some(store) = self.store(disk) else {
            // of a disk that is out nothing is known to be gone
            let is_out = self.why_out(disk).is_some();
            let outcome = if is_out { CollectOutcome::Failed } else { CollectOutcome::UnknownDisk };
            return vec![outcome; shards.len()];
        };
        let key = |shard: &&ShardName| ShardKey { extent: shard.extent, slot: shard.slot };
        let keys: Vec<ShardKey> = shards.iter().map(key).collect();
        // before they are deleted: a copy that is on its way here sees it afterwards
        self.incoming.deleted(&store, &keys);
        let outcome = |deleted: Result<bool, StoreError>| match deleted {
            Ok(_) => CollectOutcome::Gone,
            Err(error) => {
                tracing::warn!(%disk, %error, "a shard could not be deleted");
                CollectOutcome::Failed
            }
        };
        store.delete_many(&keys).await.into_iter().map(outcome).collect()
    }
}

async fn collectable(
    judge: &dyn GarbageJudge,
    request: &CollectShards,
) -> Result<BTreeSet<ExtentId>, CollectError> {
    let extents: BTreeSet<ExtentId> = request.shards.iter().map(|shard| shard.extent).collect();
    let extents: Vec<ExtentId> = extents.into_iter().collect();
    let answers = judge.are_collectable(&request.at, extents.clone()).await;
    let answers = answers.map_err(CollectError::NotJudged)?;
    let answers: BTreeMap<ExtentId, bool> = extents.into_iter().zip(answers).collect();
    Ok(answers.into_iter().filter_map(|(extent, may_go)| may_go.then_some(extent)).collect())
}

fn count(outcome: CollectOutcome) {
    let outcome = match outcome {
        CollectOutcome::Gone => "gone",
        CollectOutcome::NotCollectable => "not-collectable",
        CollectOutcome::UnknownDisk => "unknown-disk",
        CollectOutcome::Failed => "failed",
    };
    metrics::counter!("ashlar_shard_collected_total", "outcome" => outcome).increment(1);
}
