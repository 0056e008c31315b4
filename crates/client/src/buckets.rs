//! Buckets: the root's directory of them, and the walk over the ranges that deletes one.
//!
//! A bucket that exists is remembered for a second at most; absence is never remembered. That is advice for speed
//! only: each range judges by the epoch of its own row of the bucket.

use crate::inner::Inner;
use crate::{Client, Failure};
use ashlar_host::Monotonic;
use ashlar_types::{
    Applied, Bucket, BucketId, BucketName, BucketState, Epoch, Interval, KeyPoint, RangeOp,
    Refusal, RootAnswer, RootOp, RootOutcome, RootQuery, RootRefusal, Versioning,
};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a bucket is remembered.
const REMEMBERED_FOR: Duration = Duration::from_secs(1);
/// At most so many are remembered; then all are forgotten.
const REMEMBERED_MAX: usize = 10_000;
/// Buckets asked for at once.
const PAGE_BUCKETS: u32 = 1000;

/// Buckets that were seen lately.
#[derive(Debug, Default)]
pub(crate) struct BucketCache {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    by_name: BTreeMap<BucketName, (Bucket, Monotonic)>,
    names: BTreeMap<BucketId, BucketName>,
}

impl BucketCache {
    fn recall(&self, name: &BucketName, now: Monotonic) -> Option<Bucket> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (bucket, when) = seen.by_name.get(name)?;
        (now - *when < REMEMBERED_FOR).then(|| bucket.clone())
    }

    fn remember(&self, bucket: &Bucket, asked: Monotonic) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.by_name.len() >= REMEMBERED_MAX || seen.names.len() >= REMEMBERED_MAX {
            *seen = Seen::default();
        }
        let is_newer = |(known, _): &(Bucket, Monotonic)| {
            known.row.bucket == bucket.row.bucket && known.row.epoch > bucket.row.epoch
        };
        // this answer was overtaken by a later one
        if seen.by_name.get(&bucket.name).is_some_and(is_newer) {
            return;
        }
        seen.names.insert(bucket.row.bucket, bucket.name.clone());
        seen.by_name.insert(bucket.name.clone(), (bucket.clone(), asked));
    }

    pub(crate) fn forget(&self, name: &BucketName) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.by_name.remove(name);
    }

    fn name_of(&self, bucket: BucketId) -> Option<BucketName> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.names.get(&bucket).cloned()
    }
}

impl Inner {
    /// The bucket as the root knows it now.
    async fn fetch_bucket(&self, name: &BucketName) -> Result<Option<Bucket>, Failure> {
        let asked = self.host.clock.now();
        let RootAnswer::Bucket(bucket) = self.root_query(RootQuery::Bucket(name.clone())).await?
        else {
            return Err(Failure::other_answer("a bucket"));
        };
        match &bucket {
            Some(bucket) => self.buckets.remember(bucket, asked),
            None => self.buckets.forget(name),
        }
        Ok(bucket)
    }

    /// The bucket of an id, as the root knows it now.
    async fn fetch_bucket_by_id(&self, id: BucketId) -> Result<Option<Bucket>, Failure> {
        if let Some(name) = self.buckets.name_of(id) {
            let bucket = self.fetch_bucket(&name).await?;
            if bucket.as_ref().is_some_and(|bucket| bucket.row.bucket == id) {
                return Ok(bucket);
            }
        }
        let mut after = None;
        loop {
            let page = self.bucket_page(after).await?;
            if let Some(bucket) = page.iter().find(|bucket| bucket.row.bucket == id) {
                return Ok(Some(bucket.clone()));
            }
            let Some(last) = page.last() else {
                return Ok(None);
            };
            after = Some(last.name.as_str().to_owned());
        }
    }

    async fn bucket_page(&self, after: Option<String>) -> Result<Vec<Bucket>, Failure> {
        let query = RootQuery::Buckets { after, limit: PAGE_BUCKETS };
        match self.root_query(query).await? {
            RootAnswer::Buckets(page) => Ok(page),
            _ => Err(Failure::other_answer("a page of buckets")),
        }
    }

    /// Brings a range and this client to the same row of a bucket, after the range named another epoch. Gives back
    /// the epoch to go on with; `None`: the bucket is being deleted or is gone.
    pub(crate) async fn agree_on_bucket(
        &self,
        at: &KeyPoint,
        known: Option<Epoch>,
    ) -> Result<Option<Epoch>, Failure> {
        let Some(bucket) = self.fetch_bucket_by_id(at.bucket).await? else {
            return Ok(None);
        };
        if bucket.row.state == BucketState::Fenced {
            return Ok(None);
        }
        let epoch = bucket.row.epoch;
        if known.is_none_or(|known| known < epoch) {
            self.execute_duty(at, RangeOp::SetBucket(bucket.row)).await?;
        }
        Ok(Some(epoch))
    }
}

impl Client {
    /// Makes a bucket. [`Failure::BucketExists`] names the one that has the name already.
    pub async fn create_bucket(&self, name: &BucketName, owner: &str) -> Result<Bucket, Failure> {
        let op = RootOp::CreateBucket {
            name: name.clone(),
            bucket: BucketId(self.0.host.random.next_u64()),
            owner: owner.to_owned(),
            created_ms: self.0.host.clock.wall_ms(),
        };
        let asked = self.0.host.clock.now();
        match self.0.root(op).await {
            Ok(RootOutcome::Bucket(bucket)) => {
                self.0.buckets.remember(&bucket, asked);
                Ok(bucket)
            }
            Ok(_) => Err(Failure::other_answer("creating a bucket")),
            Err(Failure::Root(RootRefusal::BucketExists(bucket))) => {
                Err(Failure::BucketExists(bucket))
            }
            Err(failure) => Err(failure),
        }
    }

    /// The bucket of a name: at most a second old where it exists, and never remembered as absent.
    pub async fn bucket(&self, name: &BucketName) -> Result<Option<Bucket>, Failure> {
        match self.0.buckets.recall(name, self.0.host.clock.now()) {
            Some(bucket) => Ok(Some(bucket)),
            None => self.0.fetch_bucket(name).await,
        }
    }

    /// The bucket of a name as the root knows it now: for who was told that the remembered one is gone.
    pub async fn bucket_now(&self, name: &BucketName) -> Result<Option<Bucket>, Failure> {
        self.0.fetch_bucket(name).await
    }

    /// All buckets, by name.
    pub async fn buckets(&self) -> Result<Vec<Bucket>, Failure> {
        let mut all: Vec<Bucket> = Vec::new();
        loop {
            let after = all.last().map(|bucket| bucket.name.as_str().to_owned());
            let mut page = self.0.bucket_page(after).await?;
            if page.is_empty() {
                return Ok(all);
            }
            all.append(&mut page);
        }
    }

    /// Lets a bucket keep versions from now on, or no more. When this returns every range of it goes by that: a write that
    /// begins later is kept, through whichever gateway (C9).
    pub async fn set_versioning(
        &self,
        name: &BucketName,
        versioning: Versioning,
    ) -> Result<Bucket, Failure> {
        let Some(found) = self.0.fetch_bucket(name).await? else {
            return Err(Failure::Root(RootRefusal::NoSuchBucket));
        };
        self.0.buckets.forget(name);
        let op = RootOp::SetVersioning { name: name.clone(), bucket: found.row.bucket, versioning };
        let RootOutcome::Bucket(bucket) = self.0.root(op).await? else {
            return Err(Failure::other_answer("the versioning of a bucket"));
        };
        let set = RangeOp::SetBucket(bucket.row.clone());
        let told = self.for_every_range_of(bucket.row.bucket, &set).await;
        // whoever asks again goes on where this was; a range is told by the next command, too
        let half = |failure| Failure::unknown(format!("not every range knows it yet: {failure}"));
        told.map_err(half).map(|()| bucket)
    }

    /// Deletes an empty bucket: the root announces it, every range that may have keys of it checks and refuses it from
    /// then on, the root confirms. If a range has keys, all is taken back: `Refused(BucketNotEmpty)`.
    pub async fn delete_bucket(&self, name: &BucketName) -> Result<(), Failure> {
        let Some(found) = self.0.fetch_bucket(name).await? else {
            return Err(Failure::Root(RootRefusal::NoSuchBucket));
        };
        self.0.buckets.forget(name);
        let bucket = found.row.bucket;
        let fenced = match found.row.state {
            // another gateway has begun and perhaps died: every step may be repeated, so go on where it was
            BucketState::Fenced => found,
            BucketState::Open => {
                match self.0.root(RootOp::DeleteBucketBegin { name: name.clone(), bucket }).await? {
                    RootOutcome::Bucket(fenced) => fenced,
                    _ => return Err(Failure::other_answer("the deletion of a bucket")),
                }
            }
        };
        self.end_deletion(&fenced).await
    }

    /// The buckets whose deletion has begun and not ended.
    pub async fn buckets_being_deleted(&self) -> Result<Vec<Bucket>, Failure> {
        match self.root_query(RootQuery::BucketsBeingDeleted).await? {
            RootAnswer::Buckets(buckets) => Ok(buckets),
            _ => Err(Failure::other_answer("the buckets that are being deleted")),
        }
    }

    /// Goes on with the very deletion that `seen` shows, if it is still under way: no other one is begun.
    pub async fn finish_deletion(&self, seen: &Bucket) -> Result<(), Failure> {
        match self.0.fetch_bucket(&seen.name).await? {
            Some(now) if now.row == seen.row => match self.end_deletion(&now).await {
                // that is an end too: the bucket lives on
                Err(Failure::Refused(Refusal::BucketNotEmpty)) => Ok(()),
                other => other,
            },
            _ => Ok(()),
        }
    }

    /// From the fences to the end.
    async fn end_deletion(&self, fenced: &Bucket) -> Result<(), Failure> {
        let name = &fenced.name;
        let (bucket, epoch) = (fenced.row.bucket, fenced.row.epoch);
        let fence = RangeOp::FenceBucket { bucket, epoch };
        match self.for_every_range_of(bucket, &fence).await {
            Ok(()) => {
                let done = RootOp::DeleteBucketDone { name: name.clone(), bucket, epoch };
                self.0.root(done).await?;
                Ok(())
            }
            Err(Failure::Refused(Refusal::BucketNotEmpty)) => {
                self.roll_back_deletion(name, bucket, epoch).await?;
                Err(Failure::Refused(Refusal::BucketNotEmpty))
            }
            // the deletion has begun, and whoever deletes next goes on where it was
            Err(failure) => Err(Failure::unknown(format!("the deletion has begun: {failure}"))),
        }
    }

    async fn roll_back_deletion(
        &self,
        name: &BucketName,
        bucket: BucketId,
        epoch: Epoch,
    ) -> Result<(), Failure> {
        let roll_back = RootOp::DeleteBucketRollBack { name: name.clone(), bucket, epoch };
        let RootOutcome::Bucket(open) = self.0.root(roll_back).await? else {
            return Err(Failure::other_answer("taking back the deletion of a bucket"));
        };
        // the whole row: one that was not told of the bucket's versioning yet would go by its own for ever. A range that is
        // missed here is told by the next command that meets its old row
        self.for_every_range_of(bucket, &RangeOp::SetBucket(open.row)).await
    }

    /// Sends `op` to each range that may hold keys of `bucket`. The ranges' own answers say how far one reached, so
    /// that one which is split meanwhile leaves no gap.
    async fn for_every_range_of(&self, bucket: BucketId, op: &RangeOp) -> Result<(), Failure> {
        let mut at = KeyPoint::new(bucket, []);
        loop {
            let (applied, range) = self.0.execute_duty(&at, op.clone()).await?;
            let reached: Interval = match applied {
                Applied::Fenced(interval) => interval,
                Applied::Done
                | Applied::Written { .. }
                | Applied::WrittenVersion { .. }
                | Applied::Deleted { .. }
                | Applied::Marked { .. }
                | Applied::VersionDeleted { .. }
                | Applied::Stepped { .. } => range,
            };
            match reached.end {
                Some(end) if end.bucket == bucket => at = end,
                Some(_) | None => return Ok(()),
            }
        }
    }
}
