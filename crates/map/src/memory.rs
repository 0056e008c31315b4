//! The in-memory twin: what a simulation runs on, and what the other engines are compared with.
//!
//! It forgets at a cut what was written since the last sync, as the worst disk would.

use crate::snapshots::{Row, Rows, Snapshots};
use ashlar_catalog::{MapError, OrderedMap, View, Writes};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, PoisonError};

/// An ordered map in memory. The state of the last sync is held like a view, and so a cut can go back to it.
pub struct MemMap {
    map: Snapshots<Memory>,
    synced: Mutex<u64>,
}

#[derive(Default)]
struct Memory(BTreeMap<Vec<u8>, Vec<u8>>);

impl std::fmt::Debug for MemMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemMap")
    }
}

impl Default for MemMap {
    fn default() -> Self {
        let map = Snapshots::new(Memory::default());
        let synced = Mutex::new(map.alone().overlay.hold());
        Self { map, synced }
    }
}

impl MemMap {
    /// The power is cut: what was written since the last sync is gone. Views of before are void.
    pub fn cut(&self) {
        let synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        let back = Writes(self.map.alone().overlay.back_to(*synced));
        self.map.write(back).expect("memory takes every write");
    }
}

impl OrderedMap for MemMap {
    fn view(&self) -> Box<dyn View> {
        self.map.view()
    }

    fn write(&self, writes: Writes) -> Result<(), MapError> {
        self.map.write(writes)
    }

    fn sync(&self) -> Result<(), MapError> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        let overlay = &mut self.map.alone().overlay;
        let now = overlay.hold();
        overlay.release(std::mem::replace(&mut *synced, now));
        Ok(())
    }
}

impl Rows for Memory {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        Ok(self.0.get(key).cloned())
    }

    fn first(
        &self,
        stretch: (Bound<&[u8]>, Bound<&[u8]>),
        limit: usize,
    ) -> Result<Vec<Row>, MapError> {
        let rows = self.0.range::<[u8], _>(stretch).take(limit);
        Ok(rows.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn apply(&mut self, rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>) -> Result<(), MapError> {
        for (key, value) in rows {
            match value {
                Some(value) => drop(self.0.insert(key, value)),
                None => drop(self.0.remove(&key)),
            }
        }
        Ok(())
    }
}
