//! The rows of one entry: reads see what the entry has written so far, and what it wrote becomes one batch.
//!
//! The state hash is the sum, modulo 2^128, of a hash of every row. It is kept up by difference: what a batch replaces
//! is taken out, what it writes is put in.

use crate::{CatalogError, View, Writes};
use ashlar_types::{Versioned, decode, encode};
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

/// Rows with their keys, in order.
pub(crate) type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// A view, and what has been written over it.
pub(crate) struct Txn<'a> {
    view: &'a dyn View,
    writes: Writes,
}

impl<'a> Txn<'a> {
    pub(crate) fn new(view: &'a dyn View) -> Self {
        Self { view, writes: Writes::default() }
    }

    pub(crate) fn get_bytes(&self, key: &[u8]) -> Result<Option<Vec<u8>>, CatalogError> {
        match self.writes.0.get(key) {
            Some(written) => Ok(written.clone()),
            None => Ok(self.view.get(key)?),
        }
    }

    pub(crate) fn get<T: Versioned>(&self, key: &[u8]) -> Result<Option<T>, CatalogError> {
        let Some(bytes) = self.get_bytes(key)? else { return Ok(None) };
        Ok(Some(decode(&bytes)?))
    }

    pub(crate) fn put<T: Versioned>(&mut self, key: Vec<u8>, value: &T) {
        self.writes.put(key, encode(value));
    }

    pub(crate) fn put_bytes(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.writes.put(key, value);
    }

    pub(crate) fn remove(&mut self, key: Vec<u8>) {
        self.writes.remove(key);
    }

    /// The first `limit` rows from `from` up to and without `to`.
    pub(crate) fn rows(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Rows, CatalogError> {
        if to.is_some_and(|to| to <= from) {
            return Ok(Vec::new());
        }
        let upper = to.map_or(Bound::Unbounded, Bound::Excluded);
        let written = || self.writes.0.range::<[u8], _>((Bound::Included(from), upper));
        let hidden = written().count();
        let mut rows = BTreeMap::new();
        self.view.scan(from, to, &mut |key, value| {
            rows.insert(key.to_vec(), value.to_vec());
            if rows.len() < limit.saturating_add(hidden) {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        for (key, value) in written() {
            match value {
                Some(value) => drop(rows.insert(key.clone(), value.clone())),
                None => drop(rows.remove(key)),
            }
        }
        Ok(rows.into_iter().take(limit).collect())
    }

    /// All rows whose keys begin with `prefix`.
    pub(crate) fn rows_under(&self, prefix: &[u8]) -> Result<Rows, CatalogError> {
        self.rows(prefix, crate::key::successor(prefix).as_deref(), usize::MAX)
    }

    /// What has been written so far.
    pub(crate) fn written(&self) -> &Writes {
        &self.writes
    }

    /// A row as it was before anything was written.
    pub(crate) fn before(&self, key: &[u8]) -> Result<Option<Vec<u8>>, CatalogError> {
        Ok(self.view.get(key)?)
    }

    /// By how much what was written of a row changes the sum over the rows.
    pub(crate) fn hash_change(
        &self,
        key: &[u8],
        written: Option<&Vec<u8>>,
    ) -> Result<u128, CatalogError> {
        let added = written.map_or(0, |new| row_hash(key, new));
        let taken = self.view.get(key)?.map_or(0, |old| row_hash(key, &old));
        Ok(added.wrapping_sub(taken))
    }

    /// What was written, and the state hash behind it.
    pub(crate) fn finish(self, hash: u128) -> Result<(Writes, u128), CatalogError> {
        let mut hash = hash;
        for (key, value) in &self.writes.0 {
            hash = hash.wrapping_add(self.hash_change(key, value.as_ref())?);
        }
        Ok((self.writes, hash))
    }
}

/// The hash of a row: XXH3-128 of its value, seeded with XXH3-64 of its key.
pub(crate) fn row_hash(key: &[u8], value: &[u8]) -> u128 {
    xxh3_128_with_seed(value, xxh3_64(key))
}
