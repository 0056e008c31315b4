//! Pages of keys in byte order, rolled up to a delimiter.
//!
//! The cost of a page is that of its entries (C4): what lies under a common prefix is skipped by one seek. Nothing at or
//! before `after` is given: a common prefix that `after` equals or lies in was on an earlier page.

use crate::key::{self, family};
use crate::merged::{Found, Versions};
use crate::row::{MarkerRow, VersionRow};
use crate::txn::Txn;
use crate::{CatalogError, KeySpan, View};
use ashlar_types::{
    BucketId, Interval, KeyPoint, ListVersions, PAGE_ENTRIES_MAX, Page, VersionEntry, VersionName,
    bug,
};
use std::ops::ControlFlow;

/// What is to be walked.
pub(crate) struct Walk<'a> {
    pub(crate) view: &'a dyn View,
    pub(crate) interval: &'a Interval,
    pub(crate) family: u8,
    pub(crate) bucket: BucketId,
    pub(crate) prefix: &'a [u8],
    pub(crate) delimiter: Option<&'a [u8]>,
    pub(crate) limit: u32,
}

/// A row of the walk.
pub(crate) struct Row<'a> {
    pub(crate) key: Vec<u8>,
    pub(crate) value: &'a [u8],
}

impl Walk<'_> {
    /// Where a walk begins that has given everything up to `after`; `None`: nothing can follow.
    pub(crate) fn start_behind(&self, after: &[u8]) -> Option<Vec<u8>> {
        let prefix = key::point(self.family, self.bucket, self.prefix);
        if after.is_empty() {
            return Some(prefix);
        }
        let behind = match self.common_prefix(after) {
            Some(rolled) => key::successor(&key::point(self.family, self.bucket, rolled)),
            None => key::successor(&key::of_key(self.family, &KeyPoint::new(self.bucket, after))),
        };
        behind.map(|behind| behind.max(prefix))
    }

    /// Where a walk begins that stopped inside the rows of `after`, at `row`.
    pub(crate) fn start_inside(&self, after: &[u8], row: Vec<u8>) -> Option<Vec<u8>> {
        match self.common_prefix(after) {
            Some(_) => self.start_behind(after),
            None => Some(row.max(key::point(self.family, self.bucket, self.prefix))),
        }
    }

    /// The page that begins at `start`.
    pub(crate) fn page<T>(
        &self,
        start: Option<Vec<u8>>,
        mut entry: impl FnMut(Row<'_>) -> Result<T, CatalogError>,
        rolled_up: impl Fn(Vec<u8>) -> T,
    ) -> Result<Page<T>, CatalogError> {
        let mut page = Page { entries: Vec::new(), more: false };
        let limit = self.limit.min(PAGE_ENTRIES_MAX) as usize;
        let (least, end) = self.bounds();
        let mut next = start.filter(|_| limit > 0).map(|start| start.max(least));
        let mut failed = None;
        while let Some(from) = next.take() {
            if end.as_ref().is_some_and(|end| *end <= from) {
                break;
            }
            self.view.scan(&from, end.as_deref(), &mut |row, value| {
                if page.entries.len() == limit {
                    page.more = !bug!("page-without-more");
                    return ControlFlow::Break(());
                }
                let Some((key, _)) = key::split(row) else {
                    failed = Some(CatalogError::Inconsistent("a listed row's key"));
                    return ControlFlow::Break(());
                };
                if let Some(rolled) = self.common_prefix(&key) {
                    next = key::successor(&key::point(self.family, self.bucket, rolled));
                    page.entries.push(rolled_up(rolled.to_vec()));
                    return ControlFlow::Break(());
                }
                match entry(Row { key, value }) {
                    Ok(entry) => page.entries.push(entry),
                    Err(error) => failed = Some(error),
                }
                if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(page)
    }

    /// What is walked from `start` on.
    fn span(&self, start: Vec<u8>) -> KeySpan {
        let (least, end) = self.bounds();
        (start.max(least), end)
    }

    /// The rows of the prefix that this range owns.
    fn bounds(&self) -> (Vec<u8>, Option<Vec<u8>>) {
        let prefix = key::point(self.family, self.bucket, self.prefix);
        let prefix_end = key::successor(&prefix);
        let (start, end) = key::object_interval(self.family, self.interval);
        let end = match (prefix_end, end) {
            (Some(left), Some(right)) => Some(left.min(right)),
            (left, right) => left.or(right),
        };
        (start.max(prefix), end)
    }

    /// What a key is rolled up to: the prefix and what follows it up to and with the first delimiter.
    fn common_prefix<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        let delimiter = self.delimiter.filter(|delimiter| !delimiter.is_empty())?;
        let rest = key.strip_prefix(self.prefix)?;
        let at = rest.windows(delimiter.len()).position(|window| window == delimiter)?;
        Some(&key[..self.prefix.len() + at + delimiter.len()])
    }
}

/// The family in which objects are listed.
pub(crate) const OBJECTS: u8 = family::CURRENT;
/// The family in which uploads are listed.
pub(crate) const UPLOADS: u8 = family::UPLOAD;
/// The family in which older versions are listed.
pub(crate) const VERSIONS: u8 = family::VERSION;

/// A page of versions: what `currents` and `olders` walk over, merged.
pub(crate) fn version_page(
    txn: &Txn<'_>,
    currents: &Walk<'_>,
    olders: &Walk<'_>,
    list: &ListVersions,
) -> Result<Page<VersionEntry>, CatalogError> {
    let mut page = Page { entries: Vec::new(), more: false };
    let limit = list.limit.min(PAGE_ENTRIES_MAX) as usize;
    let Some(mut versions) = versions_behind(txn, currents, olders, list)?.filter(|_| limit > 0)
    else {
        return Ok(page);
    };
    let mut last_key: Option<KeyPoint> = None;
    while let Some(found) = versions.next()? {
        if page.entries.len() == limit {
            page.more = true;
            break;
        }
        if let Some(rolled) = currents.common_prefix(&found.at.key) {
            versions.skip_prefix(list.bucket, rolled);
            page.entries.push(VersionEntry::CommonPrefix(rolled.to_vec()));
            continue;
        }
        let is_first = last_key.as_ref() != Some(&found.at);
        let latest = is_first && is_latest(txn, &found, list)?;
        last_key = Some(found.at.clone());
        page.entries.push(version_entry(found, latest));
    }
    Ok(page)
}

/// Those that follow what was given. A version that is gone since cannot tell how old it was, if it was `null`: then those
/// of its key are given again from the first, because repeating is better than skipping.
fn versions_behind<'a, 'v>(
    txn: &'a Txn<'v>,
    currents: &Walk<'_>,
    olders: &Walk<'_>,
    list: &ListVersions,
) -> Result<Option<Versions<'a, 'v>>, CatalogError> {
    let at = KeyPoint::new(list.bucket, &list.after[..]);
    let inside = list.after_version.filter(|_| currents.common_prefix(&list.after).is_none());
    let Some(name) = inside else {
        let starts = (currents.start_behind(&list.after), olders.start_behind(&list.after));
        let (Some(current), Some(older)) = starts else { return Ok(None) };
        return Ok(Some(Versions::new(txn, currents.span(current), olders.span(older))));
    };
    let generation = match name {
        VersionName::Id(id) => Some(id.generation),
        VersionName::Null => txn.null_generation(&at)?,
    };
    let current = currents.span(key::current(&at));
    match generation {
        None => Ok(Some(Versions::new(txn, current, olders.span(key::versions(&at))))),
        Some(generation) => {
            let older = [&key::version(&at, generation)[..], &[0]].concat();
            Ok(Some(Versions::new(txn, current, olders.span(older)).behind(at, generation)))
        }
    }
}

/// Whether the first version of a key that a page meets is the newest: it may have begun in the middle of them.
fn is_latest(txn: &Txn<'_>, found: &Found, list: &ListVersions) -> Result<bool, CatalogError> {
    if list.after_version.is_none() || found.at.key != list.after || found.is_current {
        return Ok(true);
    }
    let newest = txn.newest_older(&found.at)?;
    let is_newest = newest.is_some_and(|row| row.generation() == found.generation());
    Ok(is_newest && txn.current(&found.at)?.is_none())
}

fn version_entry(found: Found, latest: bool) -> VersionEntry {
    let (key, version) = (found.at.key, found.row.name());
    match found.row {
        VersionRow::Marker(MarkerRow { modified_ms, .. }) => {
            VersionEntry::Marker { key, version, latest, modified_ms }
        }
        VersionRow::Object(row) => {
            let summary = row.summary();
            VersionEntry::Object { key, version, latest, summary }
        }
    }
}
