//! What a range knows of buckets: the rows that apply judges by, and the fence with which a bucket's deletion begins.
//!
//! A fence refuses every later operation, so what is left of the bucket, its open uploads, may be aborted piece by
//! piece: every entry sweeps a few.

use crate::row::UploadRow;
use crate::step::{Step, Stop};
use crate::{CatalogError, key};
use ashlar_types::{
    Applied, BucketId, BucketRow, BucketState, Epoch, KeyPoint, OBJECT_VERSIONS, Refusal,
    Versioning, decode,
};

/// How many uploads one entry aborts for fences: an entry stays in the milliseconds.
const SWEPT_PER_ENTRY_MAX: usize = 32;

impl Step<'_, '_> {
    pub(crate) fn set_bucket(&mut self, new: &BucketRow) -> Result<Applied, Stop> {
        self.overlapping(new.bucket)?;
        if new.versioning != Versioning::Off && !self.keeps_versions() {
            return Err(Refusal::Unsupported.into());
        }
        let known = self.bucket_row(new.bucket)?;
        if known.is_none_or(|known| known.epoch < new.epoch) {
            self.install_bucket(new);
        }
        Ok(Applied::Done)
    }

    pub(crate) fn fence_bucket(&mut self, bucket: BucketId, epoch: Epoch) -> Result<Applied, Stop> {
        self.overlapping(bucket)?;
        let known = self.bucket_row(bucket)?;
        if !self.must_change(known.as_ref(), epoch, BucketState::Fenced)? {
            return Ok(Applied::Fenced(self.interval.clone()));
        }
        if self.usage(bucket)?.objects > 0 {
            return Err(Refusal::BucketNotEmpty.into());
        }
        let versioning = known.map_or(Versioning::Off, |known| known.versioning);
        self.install_bucket(&BucketRow { bucket, epoch, state: BucketState::Fenced, versioning });
        Ok(Applied::Fenced(self.interval.clone()))
    }

    pub(crate) fn unfence_bucket(
        &mut self,
        bucket: BucketId,
        epoch: Epoch,
    ) -> Result<Applied, Stop> {
        self.overlapping(bucket)?;
        let known = self.bucket_row(bucket)?;
        if self.must_change(known.as_ref(), epoch, BucketState::Open)? {
            let versioning = known.map_or(Versioning::Off, |known| known.versioning);
            self.install_bucket(&BucketRow { bucket, epoch, state: BucketState::Open, versioning });
        }
        Ok(Applied::Done)
    }

    /// Whether the range's version of apply knows them.
    pub(crate) fn keeps_versions(&self) -> bool {
        self.head.apply_version >= OBJECT_VERSIONS.ranges
    }

    /// Aborts some of the open uploads of fenced buckets.
    pub(crate) fn sweep(&mut self) -> Result<(), CatalogError> {
        let mut left = SWEPT_PER_ENTRY_MAX;
        while let Some(&bucket) = self.head.sweeping.first() {
            let (from, to) = self.uploads_of(bucket);
            let rows = self.txn.rows(&from, to.as_deref(), left)?;
            let last = rows.len() < left;
            left -= rows.len();
            for (row, value) in rows {
                let upload: UploadRow = decode(&value)?;
                let (object_key, _) =
                    key::split(&row).ok_or(CatalogError::Inconsistent("an upload row's key"))?;
                let at = KeyPoint::new(bucket, object_key);
                self.end_upload(&at, upload.upload, upload.record.generation)?;
            }
            if !last {
                break;
            }
            self.head.sweeping.remove(0);
        }
        Ok(())
    }

    fn uploads_of(&self, bucket: BucketId) -> (Vec<u8>, Option<Vec<u8>>) {
        let (start, end) = key::object_interval(key::family::UPLOAD, self.interval);
        let from = key::point(key::family::UPLOAD, bucket, &[]);
        let to = key::successor(&from);
        let to = match (to, end) {
            (Some(to), Some(end)) => Some(to.min(end)),
            (to, end) => to.or(end),
        };
        (from.max(start), to)
    }

    fn bucket_row(&self, bucket: BucketId) -> Result<Option<BucketRow>, CatalogError> {
        self.txn.get(&key::bucket(self.range, bucket))
    }

    fn install_bucket(&mut self, row: &BucketRow) {
        self.txn.put(key::bucket(self.range, row.bucket), row);
        self.head.sweeping.retain(|&bucket| bucket != row.bucket);
        if row.state == BucketState::Fenced {
            self.head.sweeping.push(row.bucket);
        }
    }

    fn overlapping(&self, bucket: BucketId) -> Result<(), Refusal> {
        if self.interval.overlaps_bucket(bucket) { Ok(()) } else { Err(Refusal::OutsideRange) }
    }

    /// Whether the row has to change to be in `state` at `epoch`; an epoch that is past is refused.
    fn must_change(
        &self,
        known: Option<&BucketRow>,
        epoch: Epoch,
        state: BucketState,
    ) -> Result<bool, Refusal> {
        match known {
            Some(known) if known.epoch == epoch && known.state == state => Ok(false),
            Some(known) if known.epoch >= epoch => {
                Err(Refusal::BucketEpoch { known: Some(known.epoch) })
            }
            Some(_) | None => Ok(true),
        }
    }
}
