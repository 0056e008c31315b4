//! Reads of ranges: of one key, and pages over all the ranges that a prefix touches.

use crate::call::{Attempt, Target, Verb};
use crate::inner::Inner;
use crate::{Client, Failure};
use ashlar_types::{
    BucketId, Epoch, KeyPoint, ListEntry, ListObjects, ListVersions, Page, QueryRefusal,
    RangeAnswer, RangeDescriptor, RangeQuery, UploadEntry, UploadId, VersionEntry, decode, encode,
};
use bytes::Bytes;
use std::sync::Arc;

/// How often one read follows a change of its bucket's row.
const BUCKET_AGREEMENTS_MAX: u32 = 4;

/// A page of the open uploads of a bucket: what [`RangeQuery::ListUploads`] asks, over all ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListUploads {
    /// The bucket.
    pub bucket: BucketId,
    /// The bucket's configuration epoch as the caller knows it.
    pub bucket_epoch: Epoch,
    /// Only keys that begin so.
    pub prefix: Vec<u8>,
    /// Roll up what follows the prefix to this delimiter.
    pub delimiter: Option<Vec<u8>>,
    /// Only behind this key.
    pub after_key: Vec<u8>,
    /// And of that very key only behind this upload.
    pub after_upload: Option<UploadId>,
    /// At most so many entries.
    pub limit: u32,
}

impl Inner {
    /// A read of the range that holds `at`, and which range that was.
    pub(crate) async fn query(
        &self,
        at: &KeyPoint,
        mut query: RangeQuery,
    ) -> Result<(RangeAnswer, Arc<RangeDescriptor>), Failure> {
        let mut attempt = Attempt::new(self);
        let mut agreements = 0;
        loop {
            let sent = self.host.clock.now();
            let body = Bytes::from(encode(&query));
            let answered = self.call(Target::At(at), Verb::Query, body, &mut attempt).await;
            let answered =
                answered.map_err(|unanswered| Failure::unavailable(unanswered.to_string()))?;
            // a read has no effect that could be unknown
            attempt.maybe_received = false;
            let refusal = match decode::<RangeAnswer>(&answered.body)? {
                RangeAnswer::Refused(refusal) => refusal,
                answer => {
                    let range = answered.range.ok_or_else(|| Failure::other_answer("a read"))?;
                    return Ok((answer, range));
                }
            };
            match refusal {
                QueryRefusal::BucketEpoch { known } if agreements < BUCKET_AGREEMENTS_MAX => {
                    agreements += 1;
                    let agreed = self.agree_on_bucket(at, known).await;
                    match agreed.map_err(|failure| attempt.give_up(failure.to_string()))? {
                        Some(epoch) => set_bucket_epoch(&mut query, epoch),
                        None => return Err(Failure::Query(QueryRefusal::BucketFenced)),
                    }
                }
                QueryRefusal::OutsideRange => self.follow_range(sent, &mut attempt).await?,
                other => return Err(Failure::Query(other)),
            }
        }
    }
}

impl Client {
    /// A read of the range that holds `at`: it sees everything that was acknowledged before (C2).
    pub async fn query(&self, at: &KeyPoint, query: RangeQuery) -> Result<RangeAnswer, Failure> {
        self.0.query(at, query).await.map(|(answer, _)| answer)
    }

    /// A page of keys in byte order, over as many ranges as it takes (C4).
    pub async fn list(&self, list: ListObjects) -> Result<Page<ListEntry>, Failure> {
        let walk = Walk { bucket: list.bucket, prefix: &list.prefix, limit: list.limit };
        let mut after = list.after.clone();
        let mut start = list.prefix.clone().max(after.clone());
        let mut entries: Vec<ListEntry> = Vec::new();
        loop {
            let at = KeyPoint::new(list.bucket, start);
            let limit = walk.ask_for(entries.len());
            let query = ListObjects { after: after.clone(), limit, ..list.clone() };
            let (answer, range) = self.0.query(&at, RangeQuery::List(query)).await?;
            let RangeAnswer::Page(page) = answer else {
                return Err(Failure::other_answer("a page of keys"));
            };
            if let Some(more) = walk.take(&mut entries, page) {
                return Ok(Page { entries, more });
            }
            let Some(next) = walk.next_start(&range) else {
                return Ok(Page { entries, more: false });
            };
            if let Some(last) = entries.last() {
                after = match last {
                    ListEntry::Key { key, .. } => key.clone(),
                    ListEntry::CommonPrefix(prefix) => prefix.clone(),
                };
            }
            start = next;
        }
    }

    /// A page of versions by key, then from the newest on, over as many ranges as it takes (C9).
    pub async fn list_versions(&self, list: ListVersions) -> Result<Page<VersionEntry>, Failure> {
        let walk = Walk { bucket: list.bucket, prefix: &list.prefix, limit: list.limit };
        let (mut after, mut after_version) = (list.after.clone(), list.after_version);
        let mut start = list.prefix.clone().max(after.clone());
        let mut entries: Vec<VersionEntry> = Vec::new();
        loop {
            let at = KeyPoint::new(list.bucket, start);
            let limit = walk.ask_for(entries.len());
            let query = ListVersions { after: after.clone(), after_version, limit, ..list.clone() };
            let (answer, range) = self.0.query(&at, RangeQuery::ListVersions(query)).await?;
            let RangeAnswer::Versions(page) = answer else {
                return Err(Failure::other_answer("a page of versions"));
            };
            if let Some(more) = walk.take(&mut entries, page) {
                return Ok(Page { entries, more });
            }
            let Some(next) = walk.next_start(&range) else {
                return Ok(Page { entries, more: false });
            };
            if let Some(last) = entries.last() {
                (after, after_version) = match last {
                    VersionEntry::Object { key, version, .. }
                    | VersionEntry::Marker { key, version, .. } => (key.clone(), Some(*version)),
                    VersionEntry::CommonPrefix(prefix) => (prefix.clone(), None),
                };
            }
            start = next;
        }
    }

    /// A page of open uploads by key, then by age, over as many ranges as it takes.
    pub async fn list_uploads(&self, list: ListUploads) -> Result<Page<UploadEntry>, Failure> {
        let walk = Walk { bucket: list.bucket, prefix: &list.prefix, limit: list.limit };
        let (mut after_key, mut after_upload) = (list.after_key.clone(), list.after_upload);
        let mut start = list.prefix.clone().max(after_key.clone());
        let mut entries: Vec<UploadEntry> = Vec::new();
        loop {
            let at = KeyPoint::new(list.bucket, start);
            let query = RangeQuery::ListUploads {
                bucket: list.bucket,
                bucket_epoch: list.bucket_epoch,
                prefix: list.prefix.clone(),
                delimiter: list.delimiter.clone(),
                after_key: after_key.clone(),
                after_upload,
                limit: walk.ask_for(entries.len()),
            };
            let (answer, range) = self.0.query(&at, query).await?;
            let RangeAnswer::Uploads(page) = answer else {
                return Err(Failure::other_answer("a page of uploads"));
            };
            if let Some(more) = walk.take(&mut entries, page) {
                return Ok(Page { entries, more });
            }
            let Some(next) = walk.next_start(&range) else {
                return Ok(Page { entries, more: false });
            };
            if let Some(last) = entries.last() {
                (after_key, after_upload) = match last {
                    UploadEntry::Upload { key, upload, .. } => (key.clone(), Some(*upload)),
                    UploadEntry::CommonPrefix(prefix) => (prefix.clone(), None),
                };
            }
            start = next;
        }
    }
}

/// A page that is gathered from range after range.
struct Walk<'a> {
    bucket: BucketId,
    prefix: &'a [u8],
    limit: u32,
}

impl Walk<'_> {
    /// How many entries the next range is asked for: one more when the page is full, to know whether there are more.
    fn ask_for(&self, have: usize) -> u32 {
        let have = u32::try_from(have).unwrap_or(u32::MAX);
        self.limit.saturating_sub(have).max(1)
    }

    /// Adds a range's page. `Some`: the whole page is complete, and whether more follows it.
    fn take<T>(&self, entries: &mut Vec<T>, page: Page<T>) -> Option<bool> {
        let room = (self.limit as usize).saturating_sub(entries.len());
        if room == 0 && !page.entries.is_empty() {
            return Some(true);
        }
        entries.extend(page.entries);
        page.more.then_some(true)
    }

    /// Where the next range begins, if a key of the prefix may lie there.
    fn next_start(&self, range: &RangeDescriptor) -> Option<Vec<u8>> {
        let end = range.interval.end.as_ref()?;
        let inside = end.bucket == self.bucket
            && (end.key[..] <= *self.prefix || end.key.starts_with(self.prefix));
        inside.then(|| end.key.clone())
    }
}

fn set_bucket_epoch(query: &mut RangeQuery, epoch: Epoch) {
    match query {
        RangeQuery::Object { bucket_epoch, .. }
        | RangeQuery::Version { bucket_epoch, .. }
        | RangeQuery::ListUploads { bucket_epoch, .. } => *bucket_epoch = epoch,
        RangeQuery::List(list) => list.bucket_epoch = epoch,
        RangeQuery::ListVersions(list) => list.bucket_epoch = epoch,
        RangeQuery::Pieces { .. }
        | RangeQuery::VersionPieces { .. }
        | RangeQuery::Upload { .. }
        | RangeQuery::Collectable { .. }
        | RangeQuery::AreCollectable { .. }
        | RangeQuery::Missing { .. }
        | RangeQuery::Usage { .. }
        | RangeQuery::SplitState
        | RangeQuery::Middle
        | RangeQuery::Inventory { .. } => {}
    }
}
