//! fjall as an ordered map: its batches are atomic, its snapshots are views, one fdatasync makes all of it durable.
//!
//! Sizes are set small: a node holds one map beside everything else, and the log, not the map, is the truth.

use ashlar_catalog::{MapError, OrderedMap, View, Writes};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};
use std::ops::{Bound, ControlFlow};
use std::path::Path;

/// Blocks that are kept in memory.
const CACHE_BYTES: u64 = 32 << 20;
/// Rows in memory before they are written as a table.
const MEMTABLE_BYTES: u64 = 8 << 20;
/// The least that fjall allows.
const JOURNAL_BYTES_MAX: u64 = 64 << 20;
/// Flushes and compactions take turns: the cores are the requests'.
const WORKERS: usize = 1;

pub(crate) struct FjallMap {
    rows: Keyspace,
    db: Database,
}

struct FjallView {
    rows: Keyspace,
    snapshot: Snapshot,
}

fn failed(error: &fjall::Error) -> MapError {
    MapError(format!("fjall: {error}"))
}

impl FjallMap {
    pub(crate) fn open(dir: &Path) -> Result<Self, MapError> {
        let open = || -> Result<Self, fjall::Error> {
            let db = Database::builder(dir)
                .cache_size(CACHE_BYTES)
                .max_journaling_size(JOURNAL_BYTES_MAX)
                .worker_threads(WORKERS)
                .manual_journal_persist(true)
                .open()?;
            let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
            Ok(Self { rows: db.keyspace("rows", options)?, db })
        };
        open().map_err(|error| failed(&error))
    }
}

impl OrderedMap for FjallMap {
    fn view(&self) -> Box<dyn View> {
        Box::new(FjallView { rows: self.rows.clone(), snapshot: self.db.snapshot() })
    }

    fn write(&self, writes: Writes) -> Result<(), MapError> {
        let mut batch = self.db.batch();
        for (key, value) in writes.0 {
            match value {
                Some(value) => batch.insert(&self.rows, key, value),
                None => batch.remove(&self.rows, key),
            }
        }
        batch.commit().map_err(|error| failed(&error))
    }

    fn sync(&self) -> Result<(), MapError> {
        self.db.persist(PersistMode::SyncData).map_err(|error| failed(&error))
    }
}

impl View for FjallView {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let value = self.snapshot.get(&self.rows, key).map_err(|error| failed(&error))?;
        Ok(value.map(|value| value.to_vec()))
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
        let stretch = (Bound::Included(from), to.map_or(Bound::Unbounded, Bound::Excluded));
        for row in self.snapshot.range::<&[u8], _>(&self.rows, stretch) {
            let (key, value) = row.into_inner().map_err(|error| failed(&error))?;
            if visit(&key, &value).is_break() {
                return Ok(());
            }
        }
        Ok(())
    }
}
