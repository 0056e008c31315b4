//! One command at work: the rows of its entry, the range's head, and what every operation needs of them.

use crate::row::{ExtentRow, HeadRow, UsageRow};
use crate::txn::Txn;
use crate::{CatalogError, key};
use ashlar_types::{
    BucketId, BucketRow, BucketState, Content, Epoch, Extent, Generation, Interval, KeyPoint,
    RangeId, Refusal, Versioning, bug,
};

/// Why an operation gave no result: the log refuses it, or this replica failed.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The same on every replica.
    Refused(Refusal),
    /// This replica's own trouble.
    Failed(CatalogError),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl<E: Into<CatalogError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// What an operation works with.
pub(crate) struct Step<'s, 'v> {
    pub(crate) txn: &'s mut Txn<'v>,
    pub(crate) range: RangeId,
    pub(crate) interval: &'s Interval,
    pub(crate) head: &'s mut HeadRow,
}

impl Step<'_, '_> {
    /// The generation of the operation that is about to be done.
    pub(crate) fn next_generation(&mut self) -> Generation {
        self.head.generation.0 += 1;
        self.head.generation
    }

    /// Judges what comes before every operation on a key: the interval, the bucket, its epoch. Gives whether versions are
    /// kept.
    pub(crate) fn admit(&self, at: &KeyPoint, epoch: Epoch) -> Result<Versioning, Stop> {
        if !self.interval.contains(at) && !bug!("write-outside-of-the-range") {
            return Err(Refusal::OutsideRange.into());
        }
        let row: Option<BucketRow> = self.txn.get(&key::bucket(self.range, at.bucket))?;
        let Some(row) = row else { return Err(Refusal::BucketEpoch { known: None }.into()) };
        if row.state == BucketState::Fenced && epoch <= row.epoch {
            return Err(Refusal::BucketFenced.into());
        }
        if row.epoch != epoch {
            return Err(Refusal::BucketEpoch { known: Some(row.epoch) }.into());
        }
        Ok(row.versioning)
    }

    /// Queues an extent for deletion; it needs no repair any more.
    pub(crate) fn discard(&mut self, extent: &Extent) {
        if !extent.missing.is_empty() {
            self.txn.remove(key::repair(self.range, margin(extent), extent.id));
        }
        let row = ExtentRow { extent: extent.clone(), generation: self.head.generation };
        self.txn.put(key::garbage(self.range, extent.id), &row);
    }

    /// Queues the extents of a content that no record will name.
    pub(crate) fn discard_all(&mut self, content: &Content) {
        content.extents.iter().for_each(|extent| self.discard(extent));
    }

    pub(crate) fn usage(&self, bucket: BucketId) -> Result<UsageRow, CatalogError> {
        Ok(self.txn.get(&key::usage(self.range, bucket))?.unwrap_or_default())
    }

    /// Counts an object of `old` bytes out and one of `new` bytes in.
    pub(crate) fn count(
        &mut self,
        bucket: BucketId,
        old: Option<u64>,
        new: Option<u64>,
    ) -> Result<(), CatalogError> {
        let before = self.usage(bucket)?;
        let changed = |total: u64, out: Option<u64>, add: Option<u64>| {
            total.checked_sub(out.unwrap_or(0))?.checked_add(add.unwrap_or(0))
        };
        let objects = changed(before.objects, old.map(|_| 1), new.map(|_| 1));
        let bytes = changed(before.bytes, old, new);
        let (Some(objects), Some(bytes)) = (objects, bytes) else {
            return Err(CatalogError::Inconsistent("usage is not the sum of the objects"));
        };
        let row = key::usage(self.range, bucket);
        if objects == 0 {
            self.txn.remove(row);
        } else {
            self.txn.put(row, &UsageRow { objects, bytes });
        }
        Ok(())
    }
}

/// How many more shards an extent may lose.
pub(crate) fn margin(extent: &Extent) -> u8 {
    let missing = u8::try_from(extent.missing.count()).unwrap_or(u8::MAX);
    extent.profile.parity.saturating_sub(missing)
}
