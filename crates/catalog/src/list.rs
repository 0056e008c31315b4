//! Pages of keys in byte order, rolled up to a delimiter.
//!
//! The cost of a page is that of its entries (C4): what lies under a common prefix is skipped by one seek. Nothing at or
//! before `after` is given: a common prefix that `after` equals or lies in was on an earlier page.

use crate::key::{self, family};
use crate::{CatalogError, View};
use ashlar_types::{BucketId, Interval, KeyPoint, PAGE_ENTRIES_MAX, Page, bug};
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
pub(crate) struct Found<'a> {
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
        mut entry: impl FnMut(Found<'_>) -> Result<T, CatalogError>,
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
                match entry(Found { key, value }) {
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
