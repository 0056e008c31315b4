//! The ordered map on which a catalog stands: the trait that each engine implements (crate `map`).
//!
//! The map is a volatile view: a batch is atomic, but it may be lost with a crash unless [`OrderedMap::sync`] returned
//! after it; what is lost is rebuilt from a snapshot file and the log.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// An engine failed: the view is dropped and rebuilt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the ordered map failed: {0}")]
pub struct MapError(pub String);

/// What a scan calls with each row's key and value.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// One state of the map: it does not change while it is held.
pub trait View: Send {
    /// The value under `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError>;

    /// Visits the rows from `from` up to and without `to` (`None`: to the end), in byte order, until the visitor breaks.
    fn scan(&self, from: &[u8], to: Option<&[u8]>, visit: Visit<'_>) -> Result<(), MapError>;
}

/// Rows to write (`Some`) or remove (`None`), each key once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Writes(pub BTreeMap<Vec<u8>, Option<Vec<u8>>>);

impl Writes {
    /// Writes a row.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.0.insert(key, Some(value));
    }

    /// Removes a row.
    pub fn remove(&mut self, key: Vec<u8>) {
        self.0.insert(key, None);
    }
}

/// An ordered map: many readers, one writer at a time.
pub trait OrderedMap: Send + Sync {
    /// The state now. Cheap; writers go on.
    fn view(&self) -> Box<dyn View>;
    /// Applies all of `writes` or nothing. Not durable by itself.
    fn write(&self, writes: Writes) -> Result<(), MapError>;
    /// Waits until all written so far is on stable storage.
    fn sync(&self) -> Result<(), MapError>;
}
