//! How a range becomes two: what its right side will need is counted and copied beforehand, a few rows an entry, so that
//! the entry of the split itself writes a handful of rows (`docs/adr/0020`).
//!
//! A *cursor* walks once over the rows of the right side, in the order of their keys: rows of objects are counted (their
//! hashes, the usage of their buckets), rows that are keyed by the range are copied under the child's id. An entry that
//! writes a row before the cursor changes the sums, or the copy, by what it changes; one that writes behind it does
//! not, for the cursor will come there. So the sums are exact at every entry, on every replica alike, and nobody has to
//! count in a view of a certain moment.
//!
//! Rows of objects stay where they are. What the parent keeps of rows that are not its own any more is removed after
//! the split, a few an entry. Its gc queue is the parent's whole: it says whose extents it has freed, wherever their
//! keys lie now.

use crate::key::{self, family};
use crate::range::{DESCRIPTOR_FIELD, Range};
use crate::row::{DescriptorRow, MissingRow, Prepared, SplitRow, UsageRow, counted_bytes};
use crate::step::Stop;
use crate::txn::{Txn, row_hash};
use crate::{CatalogError, KeySpan, Writes};
use ashlar_types::{
    Applied, BucketId, Interval, KeyPoint, RangeDescriptor, RangeId, Refusal, SPLIT_APPLY_VERSION,
    SplitAt, SplitDone, decode,
};
use std::collections::BTreeMap;

/// Rows that one step looks at: around a millisecond of an entry. In this crate's tests few, so that there are many. It
/// says where the cursor stands after an entry, which is a part of the replicated state and of its hash: another number
/// takes a new version of apply.
const ROWS_PER_STEP: usize = if cfg!(test) { 3 } else { 512 };
/// What is keyed by the range, and copied for the right side.
const COPIED: [u8; 4] = [family::BUCKET, family::EXPIRY, family::REPAIR, family::RESULT];
/// What is keyed by the range, and of which the left side keeps only its own. All results stay: a resend finds its own
/// on the side where its key is now.
const TRIMMED: [u8; 4] = [family::BUCKET, family::EXPIRY, family::USAGE, family::REPAIR];
/// What the right side has under its own id before it is a range.
pub(crate) const BEFORE_BIRTH: [u8; 5] =
    [family::BUCKET, family::EXPIRY, family::USAGE, family::REPAIR, family::RESULT];

/// What the commands of an entry have asked of its end: there all that the entry writes is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct AtEnd {
    step: bool,
    /// The right side of a split.
    child: Option<RangeDescriptor>,
}

impl AtEnd {
    /// Whether the entry parts the range: what lies outside from then on is nobody's to touch here.
    pub(crate) fn parts(&self) -> bool {
        self.child.is_some()
    }
}

/// Which rows belong to the right side.
struct Side {
    parent: RangeId,
    child: RangeId,
    /// The right side's keys, and what follows them in the parent: nothing.
    right: Interval,
}

impl Side {
    fn of(parent: RangeId, split: &SplitAt) -> Self {
        let right = Interval { start: split.at.clone(), end: None };
        Self { parent, child: split.child, right }
    }

    /// Whether a row of objects of the parent does.
    fn has(&self, row: &[u8]) -> bool {
        is_of(&self.right, row)
    }

    /// Whether a row is keyed by the parent, and of a family that is copied.
    fn copies(&self, row: &[u8]) -> bool {
        COPIED.contains(&row[0]) && row.get(1..9) == Some(&self.parent.0.to_be_bytes()[..])
    }

    /// Whether the right side needs a copy of such a row.
    fn wants(&self, row: &[u8], value: &[u8]) -> Result<bool, CatalogError> {
        // a resend comes to the side where its key is now: both have all results
        if row[0] == family::RESULT {
            return Ok(true);
        }
        belongs(&self.right, row, value)
    }

    /// The same row under the child's id.
    fn copy_of(&self, row: &[u8]) -> Vec<u8> {
        let mut copy = key::of_range(row[0], self.child);
        copy.extend_from_slice(&row[9..]);
        copy
    }
}

/// Whether a row of objects lies in an interval.
pub(crate) fn is_of(interval: &Interval, row: &[u8]) -> bool {
    let Some(&family) = row.first() else { return false };
    let (start, end) = key::object_interval(family, interval);
    *row >= *start && end.is_none_or(|end| *row < *end)
}

/// Whether a row that is keyed by a range says something of keys in an interval.
fn belongs(interval: &Interval, row: &[u8], value: &[u8]) -> Result<bool, CatalogError> {
    match row[0] {
        family::BUCKET | family::USAGE => Ok(interval.overlaps_bucket(bucket_of(row)?)),
        family::EXPIRY => Ok(row.get(17..).is_some_and(|expires| is_of(interval, expires))),
        family::REPAIR => Ok(interval.contains(decode::<MissingRow>(value)?.owner.at())),
        _ => Err(CatalogError::Inconsistent("a row that says nothing of keys")),
    }
}

fn bucket_of(row: &[u8]) -> Result<BucketId, CatalogError> {
    let bucket = row.get(9..17).and_then(key::read_u64);
    bucket.map(BucketId).ok_or(CatalogError::Inconsistent("the key of a bucket's row"))
}

/// What usage changes by: objects and bytes.
type Usages = BTreeMap<BucketId, (i128, i128)>;

fn count_object(
    usages: &mut Usages,
    row: &[u8],
    value: Option<&Vec<u8>>,
    sign: i128,
) -> Result<(), CatalogError> {
    if !matches!(row.first(), Some(&(family::CURRENT | family::VERSION))) {
        return Ok(());
    }
    let bucket = row.get(1..9).and_then(key::read_u64);
    let bucket = bucket.ok_or(CatalogError::Inconsistent("the key of an object's row"))?;
    let size = value.map(|value| counted_bytes(row, value)).transpose()?.flatten();
    if let Some(size) = size {
        let (objects, bytes) = usages.entry(BucketId(bucket)).or_default();
        *objects += sign;
        *bytes += sign * i128::from(size);
    }
    Ok(())
}

fn change_usage(txn: &mut Txn<'_>, row: Vec<u8>, by: (i128, i128)) -> Result<(), CatalogError> {
    let UsageRow { objects, bytes } = txn.get(&row)?.unwrap_or_default();
    let sum = |total: u64, by: i128| u64::try_from(i128::from(total) + by);
    let (Ok(objects), Ok(bytes)) = (sum(objects, by.0), sum(bytes, by.1)) else {
        return Err(CatalogError::Inconsistent("usage is not the sum of the objects"));
    };
    if objects == 0 {
        txn.remove(row);
    } else {
        txn.put(row, &UsageRow { objects, bytes });
    }
    Ok(())
}

impl Prepared {
    /// What the entry wrote before the cursor changes sums and copies.
    fn follow(&mut self, txn: &mut Txn<'_>, parent: RangeId) -> Result<(), CatalogError> {
        let side = Side::of(parent, &self.split);
        let mut usages = Usages::new();
        let mut copies = Writes::default();
        for (row, after) in &txn.written().0 {
            if self.cursor.as_ref().is_some_and(|cursor| row >= cursor) {
                break;
            }
            if family::OF_OBJECTS.contains(&row[0]) && side.has(row) {
                self.hash = self.hash.wrapping_add(txn.hash_change(row, after.as_ref())?);
                count_object(&mut usages, row, txn.before(row)?.as_ref(), -1)?;
                count_object(&mut usages, row, after.as_ref(), 1)?;
            } else if side.copies(row) {
                match after {
                    Some(value) if side.wants(row, value)? => {
                        copies.put(side.copy_of(row), value.clone());
                    }
                    Some(_) => {}
                    None => copies.remove(side.copy_of(row)),
                }
            }
        }
        self.enter(txn, copies, usages)
    }

    /// Moves the cursor on by some rows.
    fn advance(
        &mut self,
        txn: &mut Txn<'_>,
        parent: RangeId,
        interval: &Interval,
    ) -> Result<(), CatalogError> {
        let Some(cursor) = self.cursor.take() else { return Ok(()) };
        let side = Side::of(parent, &self.split);
        let mut usages = Usages::new();
        let mut copies = Writes::default();
        let mut room = ROWS_PER_STEP;
        for (start, end) in right_spans(parent, interval, &self.split.at) {
            if end.as_ref().is_some_and(|end| *end <= cursor) {
                continue;
            }
            let rows = txn.rows(&start.max(cursor.clone()), end.as_deref(), room)?;
            room -= rows.len();
            for (row, value) in &rows {
                if side.copies(row) {
                    if side.wants(row, value)? {
                        copies.put(side.copy_of(row), value.clone());
                    }
                    continue;
                }
                self.hash = self.hash.wrapping_add(row_hash(row, value));
                count_object(&mut usages, row, Some(value), 1)?;
            }
            if room == 0 {
                self.cursor = rows.into_iter().next_back().map(|(row, _)| behind(row));
                break;
            }
        }
        self.enter(txn, copies, usages)
    }

    fn enter(&self, txn: &mut Txn<'_>, copies: Writes, usages: Usages) -> Result<(), CatalogError> {
        for (row, value) in copies.0 {
            match value {
                Some(value) => txn.put_bytes(row, value),
                None if txn.get_bytes(&row)?.is_some() => txn.remove(row),
                None => {}
            }
        }
        for (bucket, by) in usages {
            if by != (0, 0) {
                change_usage(txn, key::usage(self.split.child, bucket), by)?;
            }
        }
        Ok(())
    }

    /// Takes what the entry changes of the copies into the sum.
    fn sum_copies(&mut self, txn: &Txn<'_>) -> Result<(), CatalogError> {
        let child = self.split.child.0.to_be_bytes();
        for (row, after) in &txn.written().0 {
            if BEFORE_BIRTH.contains(&row[0]) && row.get(1..9) == Some(&child[..]) {
                self.hash = self.hash.wrapping_add(txn.hash_change(row, after.as_ref())?);
            }
        }
        Ok(())
    }
}

fn behind(mut row: Vec<u8>) -> Vec<u8> {
    row.push(0);
    row
}

/// Where rows of the right side, and rows of which it wants copies, lie: in the order of their keys.
fn right_spans(parent: RangeId, interval: &Interval, at: &KeyPoint) -> Vec<KeySpan> {
    let right = Interval { start: at.clone(), end: interval.end.clone() };
    let objects = family::OF_OBJECTS.map(|family| key::object_interval(family, &right));
    let copied = COPIED.map(|family| key::range_interval(family, parent));
    let mut spans: Vec<_> = objects.into_iter().chain(copied).collect();
    spans.sort();
    spans
}

impl SplitRow {
    /// Whether steps are left.
    pub(crate) fn has_more_steps(&self) -> bool {
        let is_walking = |prepared: &Prepared| prepared.cursor.is_some();
        self.prepared.as_ref().is_some_and(is_walking) || self.trimmed.is_some()
    }
}

impl Range {
    /// From this entry on the right side's sums and copies are kept up.
    pub(crate) fn prepare_split(&mut self, split: &SplitAt) -> Result<Applied, Stop> {
        if self.head.apply_version < SPLIT_APPLY_VERSION {
            return Err(Refusal::Unsupported.into());
        }
        let RangeDescriptor { id, interval, .. } = &self.descriptor;
        // it arrives again behind its split, of which this range is the right side
        if *id == split.child && interval.start == split.at {
            return Ok(Applied::Done);
        }
        if let Some(prepared) = &self.splits.prepared {
            let same = prepared.split == *split;
            return if same { Ok(Applied::Done) } else { Err(Refusal::Splitting.into()) };
        }
        if self.splits.trimmed.is_some() {
            return Err(Refusal::Splitting.into());
        }
        let is_new = split.child != *id && split.child != RangeId::ROOT;
        if !is_new || !interval.contains(&split.at) || interval.start == split.at {
            return Err(Refusal::BadSplitPoint.into());
        }
        self.splits.prepared =
            Some(Prepared { split: split.clone(), cursor: Some(Vec::new()), hash: 0 });
        Ok(Applied::Done)
    }

    pub(crate) fn step_split(&mut self) -> Applied {
        self.at_end.step = true;
        // whether that is so is known at the end of the entry
        Applied::Stepped { more: true }
    }

    /// The range ends before the split from here on; its right side is made at the end of the entry.
    pub(crate) fn split(&mut self, split: &SplitAt, members_change: bool) -> Result<Applied, Stop> {
        let is_ready = |prepared: &Prepared| prepared.split == *split && prepared.cursor.is_none();
        if !self.splits.prepared.as_ref().is_some_and(is_ready) {
            return Err(Refusal::NotPrepared.into());
        }
        if members_change {
            return Err(Refusal::MembersChanging.into());
        }
        let whole = &self.descriptor;
        let (start, end) = (whole.interval.start.clone(), whole.interval.end.clone());
        let side = |id, start: KeyPoint, end| RangeDescriptor {
            id,
            epoch: whole.epoch.next(),
            interval: Interval { start, end },
            voters: whole.voters.clone(),
        };
        let left = side(whole.id, start, Some(split.at.clone()));
        let right = side(split.child, split.at.clone(), end);
        self.descriptor = left.clone();
        self.at_end.child = Some(right.clone());
        self.splits.untold.push(SplitDone { left, right });
        Ok(Applied::Done)
    }

    /// The root's directory has both sides.
    pub(crate) fn split_told(&mut self, child: RangeId) -> Applied {
        self.splits.untold.retain(|done| done.right.id != child);
        Applied::Done
    }

    /// The end of an entry: sums and copies follow what it wrote, then a step is made.
    pub(crate) fn follow_split(&mut self, txn: &mut Txn<'_>) -> Result<(), CatalogError> {
        let step = std::mem::take(&mut self.at_end.step);
        let id = self.descriptor.id;
        if let Some(prepared) = &mut self.splits.prepared {
            prepared.follow(txn, id)?;
            if step {
                prepared.advance(txn, id, &self.descriptor.interval)?;
            }
            prepared.sum_copies(txn)?;
        } else if step {
            self.trim(txn)?;
        }
        Ok(())
    }

    /// Removes some rows that are not this range's any more.
    fn trim(&mut self, txn: &mut Txn<'_>) -> Result<(), CatalogError> {
        let Some(trimmed) = self.splits.trimmed.take() else { return Ok(()) };
        let mut room = ROWS_PER_STEP;
        for family in TRIMMED {
            let (start, end) = key::range_interval(family, self.descriptor.id);
            let rows = txn.rows(&start.max(trimmed.clone()), end.as_deref(), room)?;
            room -= rows.len();
            for (row, value) in &rows {
                if !belongs(&self.descriptor.interval, row, value)? {
                    txn.remove(row.clone());
                }
            }
            if room == 0 {
                self.splits.trimmed = rows.into_iter().next_back().map(|(row, _)| behind(row));
                break;
            }
        }
        Ok(())
    }

    /// Takes a split that the entry has made: the usage that it takes away, before the rows of this range's head are
    /// written.
    pub(crate) fn take_parted(
        &mut self,
        txn: &mut Txn<'_>,
    ) -> Result<Option<(RangeDescriptor, Prepared)>, CatalogError> {
        let Some(child) = self.at_end.child.take() else { return Ok(None) };
        let prepared = self.splits.prepared.take();
        let prepared = prepared.ok_or(CatalogError::Inconsistent("a split was not prepared"))?;
        // of all buckets only this one may have objects on both sides; the others' rows go by and by
        let bucket = child.interval.start.bucket;
        let taken: UsageRow = txn.get(&key::usage(child.id, bucket))?.unwrap_or_default();
        let by = (-i128::from(taken.objects), -i128::from(taken.bytes));
        if by != (0, 0) {
            change_usage(txn, key::usage(self.descriptor.id, bucket), by)?;
        }
        self.splits.trimmed = Some(Vec::new());
        txn.put(
            key::state(self.descriptor.id, DESCRIPTOR_FIELD),
            &DescriptorRow(self.descriptor.clone()),
        );
        Ok(Some((child, prepared)))
    }
}
