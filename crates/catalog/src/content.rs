//! Contents in rows: how extents and tails are stored, walked and freed.

use crate::row::{EXTENTS_PER_ROW, ExtentsRow, StoredContent};
use crate::step::Step;
use crate::txn::Txn;
use crate::{CatalogError, key};
use ashlar_types::{
    Content, Extent, ExtentOwner, INLINE_BYTES_MAX, KeyPoint, ObjectId, Ownership, Piece, Refusal,
};
use bytes::Bytes;

/// The length of a content; `None`: it is not one that format 1 can store.
pub(crate) fn length(content: &Content) -> Option<u64> {
    if content.tail.len() > INLINE_BYTES_MAX {
        return None;
    }
    let mut length = content.tail.len() as u64;
    for extent in &content.extents {
        if extent.ownership != Ownership::Owned {
            return None;
        }
        length = length.checked_add(extent.length)?;
    }
    Some(length)
}

impl Step<'_, '_> {
    /// Refuses a content that format 1 cannot store.
    pub(crate) fn measure(content: &Content) -> Result<u64, Refusal> {
        length(content).ok_or(Refusal::Unsupported)
    }

    /// Writes a content's rows; what misses a slot enters the repair index.
    pub(crate) fn store(
        &mut self,
        owner: &ExtentOwner,
        content: &Content,
    ) -> Result<StoredContent, CatalogError> {
        let (at, object) = (owner.at(), owner.object());
        let too_many = |_| CatalogError::Inconsistent("a content has more than 2^32 extents");
        let (near, apart) = content.extents.split_at(content.extents.len().min(EXTENTS_PER_ROW));
        let mut offset = near.iter().map(|extent| extent.length).sum::<u64>();
        for (count, chunk) in apart.chunks(EXTENTS_PER_ROW).enumerate() {
            let end = offset + chunk.iter().map(|extent| extent.length).sum::<u64>();
            let row = key::extents_row(at, object, end, u32::try_from(count).map_err(too_many)?);
            self.txn.put(row, &ExtentsRow { offset, extents: chunk.to_vec() });
            offset = end;
        }
        if !content.tail.is_empty() {
            self.txn.put_bytes(key::inline(at, object), inline_row(&content.tail));
        }
        content.extents.iter().for_each(|extent| self.note_missing(extent, owner));
        Ok(StoredContent {
            extents: near.to_vec(),
            extents_apart: u32::try_from(apart.len()).map_err(too_many)?,
            tail_bytes: u32::try_from(content.tail.len()).map_err(too_many)?,
        })
    }

    /// Removes a content's rows and queues its extents.
    pub(crate) fn free(
        &mut self,
        at: &KeyPoint,
        object: ObjectId,
        content: &StoredContent,
    ) -> Result<(), CatalogError> {
        content.extents.iter().for_each(|extent| self.discard(extent));
        if content.extents_apart > 0 {
            for (row, value) in self.txn.rows_under(&key::extents(at, object))? {
                let chunk: ExtentsRow = ashlar_types::decode(&value)?;
                chunk.extents.iter().for_each(|extent| self.discard(extent));
                self.txn.remove(row);
            }
        }
        if content.tail_bytes > 0 {
            self.txn.remove(key::inline(at, object));
        }
        Ok(())
    }
}

impl Txn<'_> {
    /// All extents of a content, in order.
    pub(crate) fn extents_of(
        &self,
        at: &KeyPoint,
        object: ObjectId,
        content: &StoredContent,
    ) -> Result<Vec<Extent>, CatalogError> {
        let mut extents = content.extents.clone();
        if content.extents_apart > 0 {
            for (_, value) in self.rows_under(&key::extents(at, object))? {
                extents.extend(ashlar_types::decode::<ExtentsRow>(&value)?.extents);
            }
        }
        Ok(extents)
    }
}

/// Collects the pieces of a span, at most `limit`.
pub(crate) struct Pieces {
    from: u64,
    to: u64,
    limit: usize,
    pub(crate) found: Vec<Piece>,
}

impl Pieces {
    pub(crate) fn new(from: u64, to: u64, limit: usize) -> Self {
        Self { from, to, limit, found: Vec::new() }
    }

    pub(crate) fn full(&self) -> bool {
        self.found.len() >= self.limit
    }

    pub(crate) fn wants(&self, offset: u64, length: u64) -> bool {
        offset < self.to && offset.saturating_add(length) > self.from
    }

    /// Adds the extents that lie in the span; gives the offset behind them.
    fn extents(&mut self, mut offset: u64, extents: &[Extent]) -> u64 {
        for extent in extents {
            if self.wants(offset, extent.length) && !self.full() {
                self.found.push(Piece::Extent { offset, extent: extent.clone() });
            }
            offset = offset.saturating_add(extent.length);
        }
        offset
    }

    /// Adds the pieces of a content of `length` bytes that begins at `base` in the object.
    pub(crate) fn content(
        &mut self,
        txn: &Txn<'_>,
        at: &KeyPoint,
        object: ObjectId,
        content: &StoredContent,
        base: u64,
        length: u64,
    ) -> Result<(), CatalogError> {
        self.extents(base, &content.extents);
        if content.extents_apart > 0 {
            self.extents_apart(txn, at, object, base)?;
        }
        let tail_bytes = u64::from(content.tail_bytes);
        let offset = base + (length - tail_bytes.min(length));
        if tail_bytes > 0 && self.wants(offset, tail_bytes) && !self.full() {
            let bytes = read_inline(txn, at, object)?;
            self.found.push(Piece::Inline { offset, bytes });
        }
        Ok(())
    }

    fn extents_apart(
        &mut self,
        txn: &Txn<'_>,
        at: &KeyPoint,
        object: ObjectId,
        base: u64,
    ) -> Result<(), CatalogError> {
        let rows = key::extents(at, object);
        let mut from = rows.clone();
        from.extend_from_slice(&self.from.saturating_sub(base).saturating_add(1).to_be_bytes());
        let end = key::successor(&rows);
        let rows_max = self.limit.div_ceil(EXTENTS_PER_ROW) + 1;
        for (_, value) in txn.rows(&from, end.as_deref(), rows_max)? {
            let chunk: ExtentsRow = ashlar_types::decode(&value)?;
            if base + chunk.offset >= self.to || self.full() {
                break;
            }
            self.extents(base + chunk.offset, &chunk.extents);
        }
        Ok(())
    }
}

/// An inline row: its version, then the bytes as they are.
fn inline_row(tail: &Bytes) -> Vec<u8> {
    let mut row = Vec::with_capacity(tail.len() + 1);
    row.push(1);
    row.extend_from_slice(tail);
    row
}

fn read_inline(txn: &Txn<'_>, at: &KeyPoint, object: ObjectId) -> Result<Bytes, CatalogError> {
    let row = txn.get_bytes(&key::inline(at, object))?;
    match row {
        Some(row) if row.first() == Some(&1) => Ok(Bytes::from(row).slice(1..)),
        Some(_) => Err(CatalogError::Inconsistent("an inline row is not of format 1")),
        None => Err(CatalogError::Inconsistent("a record's inline row is missing")),
    }
}
