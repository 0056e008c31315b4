//! Snapshots over an engine that has none: the values that writes replaced, for as long as a view may ask for them.
//!
//! A version counts the writes. A view is a version, and each row that a later write replaced is kept here with the
//! version that replaced it; what is not here is as the engine has it. Nothing is kept while nobody looks back.

use std::collections::BTreeMap;
use std::ops::Bound;

/// A row as it was: `None`, there was none.
type Old = Option<Vec<u8>>;

/// The replaced rows, and who may still ask for them.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    version: u64,
    /// The versions that are held, and how often.
    held: BTreeMap<u64, usize>,
    /// By key: the version that replaced the row, ascending, and the row before it.
    replaced: BTreeMap<Vec<u8>, Vec<(u64, Old)>>,
}

impl Overlay {
    /// Holds the state as it is now.
    pub(crate) fn hold(&mut self) -> u64 {
        *self.held.entry(self.version).or_default() += 1;
        self.version
    }

    /// Lets a held state go, and forgets what nobody can ask for any more.
    pub(crate) fn release(&mut self, version: u64) {
        let Some(count) = self.held.get_mut(&version) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        let was_oldest = self.held.first_key_value().is_some_and(|(&oldest, _)| oldest == version);
        self.held.remove(&version);
        if was_oldest {
            self.forget();
        }
    }

    fn forget(&mut self) {
        let Some((&oldest, _)) = self.held.first_key_value() else {
            self.replaced.clear();
            return;
        };
        self.replaced.retain(|_, rows| {
            rows.retain(|&(replaced_by, _)| replaced_by > oldest);
            !rows.is_empty()
        });
    }

    /// A write begins: the version that its rows replace others by.
    pub(crate) fn begin_write(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// Whether the row that is about to be replaced can still be asked for.
    pub(crate) fn wants(&self, key: &[u8]) -> bool {
        let since = self.replaced.get(key).and_then(|rows| rows.last()).map_or(0, |&(by, _)| by);
        self.held.last_key_value().is_some_and(|(&newest, _)| newest >= since)
    }

    /// Keeps a row that the write `version` replaces.
    pub(crate) fn keep(&mut self, key: &[u8], version: u64, old: Old) {
        self.replaced.entry(key.to_vec()).or_default().push((version, old));
    }

    /// The row as a view of `version` sees it, where that differs from the engine: `None`, ask the engine.
    pub(crate) fn at(&self, key: &[u8], version: u64) -> Option<&Old> {
        self.replaced.get(key).and_then(|rows| before(rows, version))
    }

    /// The rows of a stretch that a view of `version` sees differently from the engine.
    pub(crate) fn differing<'a>(
        &'a self,
        stretch: (Bound<&'a [u8]>, Bound<&'a [u8]>),
        version: u64,
    ) -> impl Iterator<Item = (&'a Vec<u8>, &'a Old)> {
        self.replaced
            .range::<[u8], _>(stretch)
            .filter_map(move |(key, rows)| before(rows, version).map(|old| (key, old)))
    }

    /// All rows that a view of `version` sees differently: writing them makes the engine as it was then.
    pub(crate) fn back_to(&self, version: u64) -> BTreeMap<Vec<u8>, Old> {
        let all = (Bound::Unbounded, Bound::Unbounded);
        self.differing(all, version).map(|(key, old)| (key.clone(), old.clone())).collect()
    }
}

/// The row before the first write that came after `version`.
fn before(rows: &[(u64, Old)], version: u64) -> Option<&Old> {
    let first = rows.partition_point(|&(replaced_by, _)| replaced_by <= version);
    rows.get(first).map(|(_, old)| old)
}
