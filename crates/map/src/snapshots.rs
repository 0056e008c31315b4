//! An ordered map over any plain ordered store: atomic batches and views that do not change.
//!
//! A lock lets readers in together and a writer alone; a scan takes it for one chunk of rows at a time and calls its
//! visitor without it, so a visitor may write. Used by the in-memory twin and by sled.

use crate::overlay::Overlay;
use ashlar_catalog::{MapError, View, Writes};
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Rows that a scan reads under one lock.
const CHUNK_ROWS: usize = 128;

/// A key and its value.
pub(crate) type Row = (Vec<u8>, Vec<u8>);

/// A plain ordered store, used by one writer or many readers.
pub(crate) trait Rows: Send + Sync + 'static {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError>;
    /// The first rows of a stretch, at most `limit`.
    fn first(
        &self,
        stretch: (Bound<&[u8]>, Bound<&[u8]>),
        limit: usize,
    ) -> Result<Vec<Row>, MapError>;
    /// All or nothing.
    fn apply(&mut self, rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>) -> Result<(), MapError>;
}

/// The store and its replaced rows. Cheap to clone.
pub(crate) struct Snapshots<R>(Arc<RwLock<State<R>>>);

pub(crate) struct State<R> {
    pub(crate) rows: R,
    pub(crate) overlay: Overlay,
}

impl<R> Clone for Snapshots<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R: Rows> Snapshots<R> {
    pub(crate) fn new(rows: R) -> Self {
        Self(Arc::new(RwLock::new(State { rows, overlay: Overlay::default() })))
    }

    // a panic under the lock leaves no half batch: the engine applies it in one call
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State<R>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn alone(&self) -> RwLockWriteGuard<'_, State<R>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn view(&self) -> Box<dyn View> {
        let version = self.alone().overlay.hold();
        Box::new(Snapshot { map: self.clone(), version })
    }

    pub(crate) fn write(&self, writes: Writes) -> Result<(), MapError> {
        let mut state = self.alone();
        let State { rows, overlay } = &mut *state;
        let wanted: Vec<&Vec<u8>> = writes.0.keys().filter(|key| overlay.wants(key)).collect();
        let mut olds = Vec::with_capacity(wanted.len());
        for key in wanted {
            olds.push((key.clone(), rows.get(key)?));
        }
        rows.apply(writes.0)?;
        let version = overlay.begin_write();
        olds.into_iter().for_each(|(key, old)| overlay.keep(&key, version, old));
        Ok(())
    }
}

/// Rows of a scan, and where it goes on: `None`, that was all.
type Chunk = (BTreeMap<Vec<u8>, Vec<u8>>, Option<Bound<Vec<u8>>>);

struct Snapshot<R: Rows> {
    map: Snapshots<R>,
    version: u64,
}

impl<R: Rows> Drop for Snapshot<R> {
    fn drop(&mut self) {
        self.map.alone().overlay.release(self.version);
    }
}

impl<R: Rows> View for Snapshot<R> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let state = self.map.read();
        match state.overlay.at(key, self.version) {
            Some(old) => Ok(old.clone()),
            None => state.rows.get(key),
        }
    }

    fn scan(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), MapError> {
        if to.is_some_and(|to| to <= from) {
            return Ok(());
        }
        let end = to.map_or(Bound::Unbounded, Bound::Excluded);
        let mut next = Some(Bound::Included(from.to_vec()));
        while let Some(start) = next {
            let (rows, resume) = self.chunk(start.as_ref().map(Vec::as_slice), end)?;
            for (key, value) in &rows {
                if visit(key, value).is_break() {
                    return Ok(());
                }
            }
            next = resume;
        }
        Ok(())
    }
}

impl<R: Rows> Snapshot<R> {
    /// The rows up to where one chunk of the store ends.
    fn chunk(&self, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Result<Chunk, MapError> {
        let state = self.map.read();
        let stored = state.rows.first((start, end), CHUNK_ROWS)?;
        let last = stored.last().filter(|_| stored.len() == CHUNK_ROWS).map(|(key, _)| key.clone());
        let covered = last.as_deref().map_or(end, Bound::Included);
        let mut rows: BTreeMap<Vec<u8>, Vec<u8>> = stored.into_iter().collect();
        for (key, old) in state.overlay.differing((start, covered), self.version) {
            match old {
                Some(value) => drop(rows.insert(key.clone(), value.clone())),
                None => drop(rows.remove(key)),
            }
        }
        drop(state);
        let resume = last.filter(|last| end != Bound::Excluded(last.as_slice()));
        Ok((rows, resume.map(Bound::Excluded)))
    }
}
