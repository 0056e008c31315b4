//! All versions of keys as one sequence: by key, then from the newest on. Rows of `c` and `v` are merged.
//!
//! The place of a version in it never changes, whether its row lies in one family or the other. Only an object of a bucket
//! that keeps no versions has a later one when its description is replaced.

use crate::row::{ObjectRow, VersionRow};
use crate::txn::{Rows, Txn};
use crate::{CatalogError, KeySpan, key};
use ashlar_types::{BucketId, Generation, KeyPoint, ObjectId, decode};
use std::collections::VecDeque;

/// Rows that are read at once: few at first, because a list with a delimiter goes on elsewhere soon.
const FIRST_ROWS: usize = 4;
const ROWS_MAX: usize = 256;

/// The rows of one family.
struct Cursor {
    /// Where those begin that were not read; `None`: there are none.
    next: Option<Vec<u8>>,
    end: Option<Vec<u8>>,
    read: VecDeque<(Vec<u8>, Vec<u8>)>,
    ask_for: usize,
}

impl Cursor {
    fn new((start, end): KeySpan) -> Self {
        Self { next: Some(start), end, read: VecDeque::new(), ask_for: FIRST_ROWS }
    }

    fn fill(&mut self, txn: &Txn<'_>) -> Result<(), CatalogError> {
        if !self.read.is_empty() {
            return Ok(());
        }
        let Some(from) = self.next.take() else { return Ok(()) };
        let rows: Rows = txn.rows(&from, self.end.as_deref(), self.ask_for)?;
        if rows.len() == self.ask_for {
            self.next = rows.last().map(|(row, _)| [&row[..], &[0]].concat());
        }
        self.ask_for = (self.ask_for * 2).min(ROWS_MAX);
        self.read = rows.into();
        Ok(())
    }

    /// Goes on at `from`, which lies behind what was given.
    fn seek(&mut self, from: Option<Vec<u8>>) {
        *self = match from {
            Some(from) => Self::new((from, self.end.take())),
            None => Self { next: None, ..Self::new((Vec::new(), None)) },
        };
    }

    /// What tells rows of the same key apart comes last.
    fn place(&self) -> Option<&[u8]> {
        self.read.front().map(|(row, _)| &row[1..])
    }
}

/// A version of a key.
pub(crate) struct Found {
    pub(crate) at: KeyPoint,
    /// Whether it lies in `c`.
    pub(crate) is_current: bool,
    pub(crate) row: VersionRow,
}

impl Found {
    pub(crate) fn generation(&self) -> Generation {
        self.row.generation()
    }

    fn has_content(&self, object: Option<ObjectId>) -> bool {
        matches!(&self.row, VersionRow::Object(row) if object == Some(row.object))
    }
}

/// See the module.
pub(crate) struct Versions<'a, 'v> {
    txn: &'a Txn<'v>,
    currents: Cursor,
    olders: Cursor,
    /// Of this key, in `c`, only what is older than that, or has this content.
    older_than: Option<(KeyPoint, Generation, Option<ObjectId>)>,
}

impl<'a, 'v> Versions<'a, 'v> {
    /// Those in these spans of `c` and `v`.
    pub(crate) fn new(txn: &'a Txn<'v>, currents: KeySpan, olders: KeySpan) -> Self {
        let (currents, olders) = (Cursor::new(currents), Cursor::new(olders));
        Self { txn, currents, olders, older_than: None }
    }

    /// Only what is older than this version of its key, which is the first one: `v` begins behind it already.
    pub(crate) fn behind(mut self, at: KeyPoint, generation: Generation) -> Self {
        self.older_than = Some((at, generation, None));
        self
    }

    /// From this version on, which is the first one, and has this content: `v` begins with it already.
    pub(crate) fn starting_at(
        mut self,
        at: KeyPoint,
        generation: Generation,
        object: ObjectId,
    ) -> Self {
        self.older_than = Some((at, Generation(generation.0.saturating_add(1)), Some(object)));
        self
    }

    /// Goes on behind all keys that begin so.
    pub(crate) fn skip_prefix(&mut self, bucket: BucketId, prefix: &[u8]) {
        let behind = |family| key::successor(&key::point(family, bucket, prefix));
        self.currents.seek(behind(key::family::CURRENT));
        self.olders.seek(behind(key::family::VERSION));
    }

    pub(crate) fn next(&mut self) -> Result<Option<Found>, CatalogError> {
        loop {
            self.currents.fill(self.txn)?;
            self.olders.fill(self.txn)?;
            let is_current = match (self.currents.place(), self.olders.place()) {
                (None, None) => return Ok(None),
                (Some(_), None) => true,
                (None, Some(_)) => false,
                // the key of a row in `c` is the beginning of those in `v`
                (Some(current), Some(older)) => current < older,
            };
            let cursor = if is_current { &mut self.currents } else { &mut self.olders };
            let Some((row, value)) = cursor.read.pop_front() else { return Ok(None) };
            if !is_current && key::is_null_pointer(&row) {
                continue;
            }
            let found = found(&row, &value, is_current)?;
            let is_passed = |(at, than, object): &(KeyPoint, Generation, Option<ObjectId>)| {
                let is_older = found.generation() < *than || found.has_content(*object);
                is_current && *at == found.at && !is_older
            };
            if !self.older_than.as_ref().is_some_and(is_passed) {
                return Ok(Some(found));
            }
        }
    }
}

fn found(row: &[u8], value: &[u8], is_current: bool) -> Result<Found, CatalogError> {
    let bucket = row.get(1..9).and_then(key::read_u64);
    let (Some(bucket), Some((name, _))) = (bucket, key::split(row)) else {
        return Err(CatalogError::Inconsistent("the key of an object's row"));
    };
    let row = match is_current {
        true => VersionRow::Object(decode::<ObjectRow>(value)?),
        false => VersionRow::read(value)?,
    };
    Ok(Found { at: KeyPoint::new(BucketId(bucket), name), is_current, row })
}
