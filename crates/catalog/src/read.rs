//! The reads of a range. Each is answered from one view that has applied the read index (R11).

use crate::content::Pieces;
use crate::key::{self, family};
use crate::list::{OBJECTS, Row, UPLOADS, VERSIONS, Walk, version_page};
use crate::merged::{Found, Versions};
use crate::range::{HEAD_FIELD, SPLIT_FIELD};
use crate::row::{
    ExtentRow, HeadRow, ManifestRow, MarkerRow, MissingRow, ObjectContent, ObjectRow, PartRow,
    SplitRow, UploadRow, UploadStateRow, UsageRow, VersionRow, summary,
};
use crate::txn::Txn;
use crate::{CatalogError, KeySpan, View, descriptor_in, inventory};
use ashlar_types::{
    BucketId, BucketRow, BucketState, COLLECT_SHARDS_MAX, Epoch, ExtentId, Generation, KeyPoint,
    ListEntry, ListObjects, ListVersions, MissingExtent, ObjectId, PAGE_ENTRIES_MAX, PIECES_MAX,
    PartSummary, Piece, QueryRefusal, RangeAnswer, RangeDescriptor, RangeId, RangeQuery, Span,
    SplitState, UploadEntry, UploadId, VersionName, bug, decode,
};
use std::ops::ControlFlow;

/// Margins of repair rows, to find one by its extent: no profile has more parity.
const MARGIN_MAX: u8 = 32;

/// Why a read has no answer.
enum Stop {
    Refused(QueryRefusal),
    Failed(CatalogError),
}

impl From<QueryRefusal> for Stop {
    fn from(refusal: QueryRefusal) -> Self {
        Self::Refused(refusal)
    }
}

impl<E: Into<CatalogError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// A range as one view has it. Whatever a read is judged by, the epoch and the interval too, is of the view that it reads
/// (R11): the head of the range that applies may be further by then.
pub struct RangeReader<'a> {
    descriptor: RangeDescriptor,
    view: &'a dyn View,
    txn: Txn<'a>,
}

impl<'a> RangeReader<'a> {
    /// The range in `view`; `None`: it has no rows there.
    pub fn open(view: &'a dyn View, id: RangeId) -> Result<Option<Self>, CatalogError> {
        let descriptor = descriptor_in(view, id)?;
        Ok(descriptor.map(|descriptor| Self { descriptor, view, txn: Txn::new(view) }))
    }

    /// Its epoch and interval in the view.
    pub fn descriptor(&self) -> &RangeDescriptor {
        &self.descriptor
    }

    /// Answers a read.
    pub fn query(&self, query: &RangeQuery) -> Result<RangeAnswer, CatalogError> {
        match self.answer(query) {
            Ok(answer) => Ok(answer),
            Err(Stop::Refused(refusal)) => Ok(RangeAnswer::Refused(refusal)),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    fn answer(&self, query: &RangeQuery) -> Result<RangeAnswer, Stop> {
        match query {
            RangeQuery::Object { at, bucket_epoch, span } => {
                self.inside(at)?;
                self.admit(at.bucket, *bucket_epoch)?;
                self.object(at, *span)
            }
            RangeQuery::Pieces { at, object, from, to } => {
                self.more_pieces(at, *object, *from, *to)
            }
            RangeQuery::List(list) => self.list(list),
            RangeQuery::ListUploads {
                bucket,
                bucket_epoch,
                prefix,
                delimiter,
                after_key,
                after_upload,
                limit,
            } => {
                self.overlapping(*bucket)?;
                self.admit(*bucket, *bucket_epoch)?;
                let walk = self.walk(UPLOADS, *bucket, prefix, delimiter.as_deref(), *limit);
                self.uploads(&walk, after_key, *after_upload)
            }
            RangeQuery::Upload { at, upload, after, limit } => {
                self.inside(at)?;
                self.upload(at, *upload, *after, *limit)
            }
            RangeQuery::Collectable { after, limit } => {
                let behind = after.map(|extent| key::garbage(self.id(), extent));
                self.garbage(behind, *limit)
            }
            RangeQuery::AreCollectable { extents } => {
                let mut queued = Vec::with_capacity(extents.len().min(COLLECT_SHARDS_MAX));
                for &extent in extents.iter().take(COLLECT_SHARDS_MAX) {
                    let row = self.txn.get_bytes(&key::garbage(self.id(), extent))?;
                    queued.push(row.is_some());
                }
                Ok(RangeAnswer::AreCollectable(queued))
            }
            RangeQuery::Missing { after, limit } => {
                let behind = match after {
                    Some(extent) => self.repair_row(*extent)?,
                    None => None,
                };
                self.missing(behind, *limit)
            }
            RangeQuery::Usage { bucket } => {
                self.overlapping(*bucket)?;
                let row: Option<UsageRow> = self.txn.get(&key::usage(self.id(), *bucket))?;
                let UsageRow { objects, bytes } = row.unwrap_or_default();
                Ok(RangeAnswer::Usage { objects, bytes })
            }
            RangeQuery::Inventory { after, limit } => {
                let version = self.head()?.apply_version;
                let asked = (after.as_ref(), *limit);
                Ok(inventory::page(&self.txn, &self.descriptor, version, asked)?)
            }
            RangeQuery::SplitState => Ok(RangeAnswer::SplitState(self.split_state()?)),
            RangeQuery::Middle => Ok(RangeAnswer::Middle(self.middle()?)),
            RangeQuery::Version { at, bucket_epoch, version, span } => {
                self.inside(at)?;
                self.admit(at.bucket, *bucket_epoch)?;
                self.version(at, *version, *span)
            }
            RangeQuery::VersionPieces { at, version, object, from, to } => {
                self.inside(at)?;
                let row = self.version_row(at, Some(*version))?;
                if row.object != *object {
                    return Err(QueryRefusal::NoSuchVersion.into());
                }
                let parts = self.parts_of(at, &row)?;
                Ok(RangeAnswer::Pieces(self.pieces(at, &row, &parts, *from, *to)?))
            }
            RangeQuery::ListVersions(list) => self.list_versions(list),
        }
    }

    fn id(&self) -> RangeId {
        self.descriptor.id
    }

    /// As the view has it: what answers reads keeps no head of its own.
    fn head(&self) -> Result<HeadRow, CatalogError> {
        let head: Option<HeadRow> = self.txn.get(&key::state(self.id(), HEAD_FIELD))?;
        head.ok_or(CatalogError::Inconsistent("a row of a range's head is missing"))
    }

    fn inside(&self, at: &KeyPoint) -> Result<(), QueryRefusal> {
        let inside = self.descriptor.interval.contains(at) || bug!("read-behind-the-split");
        if inside { Ok(()) } else { Err(QueryRefusal::OutsideRange) }
    }

    fn overlapping(&self, bucket: BucketId) -> Result<(), QueryRefusal> {
        let overlaps = self.descriptor.interval.overlaps_bucket(bucket);
        if overlaps { Ok(()) } else { Err(QueryRefusal::OutsideRange) }
    }

    fn admit(&self, bucket: BucketId, epoch: Epoch) -> Result<(), Stop> {
        let row: Option<BucketRow> = self.txn.get(&key::bucket(self.id(), bucket))?;
        match row {
            None => Err(QueryRefusal::BucketEpoch { known: None }.into()),
            Some(row) if row.state == BucketState::Fenced && epoch <= row.epoch => {
                Err(QueryRefusal::BucketFenced.into())
            }
            Some(row) if row.epoch != epoch => {
                Err(QueryRefusal::BucketEpoch { known: Some(row.epoch) }.into())
            }
            Some(_) => Ok(()),
        }
    }

    fn object(&self, at: &KeyPoint, span: Span) -> Result<RangeAnswer, Stop> {
        let row = self.current(at)?;
        let parts = self.parts_of(at, &row)?;
        let (from, to) = resolve(span, row.size, &parts)?;
        let pieces = self.pieces(at, &row, &parts, from, to)?;
        Ok(RangeAnswer::Object { record: Box::new(row.into_record(parts)), from, to, pieces })
    }

    fn version(
        &self,
        at: &KeyPoint,
        version: Option<VersionName>,
        span: Span,
    ) -> Result<RangeAnswer, Stop> {
        let row = self.version_row(at, version)?;
        let parts = self.parts_of(at, &row)?;
        let (from, to) = resolve(span, row.size, &parts)?;
        let pieces = self.pieces(at, &row, &parts, from, to)?;
        let version = row.name();
        let record = Box::new(row.into_record(parts));
        Ok(RangeAnswer::Version { record, version, from, to, pieces })
    }

    /// A version that is an object; `None`: the newest.
    fn version_row(&self, at: &KeyPoint, version: Option<VersionName>) -> Result<ObjectRow, Stop> {
        let current = self.txn.current(at)?;
        let (found, absent) = match version {
            None => (current, QueryRefusal::NoSuchKey),
            Some(name) => (current.filter(|row| row.name() == name), QueryRefusal::NoSuchVersion),
        };
        if let Some(row) = found {
            return Ok(row);
        }
        let older = match version {
            None => self.txn.newest_older(at)?,
            Some(name) => self.txn.older(at, name)?,
        };
        match older {
            Some(VersionRow::Marker(MarkerRow { version, modified_ms, .. })) => {
                Err(QueryRefusal::DeleteMarker { version, modified_ms }.into())
            }
            Some(VersionRow::Object(row)) if version.is_some() => Ok(row),
            Some(VersionRow::Object(_)) => {
                let behind = "an older version is the newest, and not the current object";
                Err(Stop::Failed(CatalogError::Inconsistent(behind)))
            }
            None => Err(absent.into()),
        }
    }

    fn more_pieces(
        &self,
        at: &KeyPoint,
        object: ObjectId,
        from: u64,
        to: u64,
    ) -> Result<RangeAnswer, Stop> {
        self.inside(at)?;
        let row = self.current(at)?;
        if row.object != object {
            return Err(QueryRefusal::NoSuchKey.into());
        }
        let parts = self.parts_of(at, &row)?;
        Ok(RangeAnswer::Pieces(self.pieces(at, &row, &parts, from, to)?))
    }

    fn current(&self, at: &KeyPoint) -> Result<ObjectRow, Stop> {
        let row: Option<ObjectRow> = self.txn.get(&key::current(at))?;
        row.ok_or_else(|| QueryRefusal::NoSuchKey.into())
    }

    fn parts_of(&self, at: &KeyPoint, row: &ObjectRow) -> Result<Vec<PartSummary>, CatalogError> {
        match row.content {
            ObjectContent::Plain(_) => Ok(Vec::new()),
            ObjectContent::Parts(_) => {
                let manifest: Option<ManifestRow> = self.txn.get(&key::manifest(at, row.object))?;
                let manifest = manifest
                    .ok_or(CatalogError::Inconsistent("an object's manifest is missing"))?;
                Ok(manifest.parts)
            }
        }
    }

    fn pieces(
        &self,
        at: &KeyPoint,
        row: &ObjectRow,
        parts: &[PartSummary],
        from: u64,
        to: u64,
    ) -> Result<Vec<Piece>, CatalogError> {
        let mut pieces = Pieces::new(from, to, PIECES_MAX);
        match &row.content {
            ObjectContent::Plain(content) => {
                pieces.content(&self.txn, at, row.object, content, 0, row.size)?;
            }
            ObjectContent::Parts(upload) => {
                let mut base = 0;
                for part in parts {
                    if pieces.wants(base, part.size) && !pieces.full() {
                        let row: PartRow = self
                            .txn
                            .get(&key::part(at, *upload, part.number))?
                            .ok_or(CatalogError::Inconsistent("an object's part is missing"))?;
                        let object = row.record.object;
                        pieces.content(&self.txn, at, object, &row.content, base, part.size)?;
                    }
                    base += part.size;
                }
            }
        }
        Ok(pieces.found)
    }

    fn list(&self, list: &ListObjects) -> Result<RangeAnswer, Stop> {
        self.overlapping(list.bucket)?;
        self.admit(list.bucket, list.bucket_epoch)?;
        let delimiter = list.delimiter.as_deref();
        let walk = self.walk(OBJECTS, list.bucket, &list.prefix, delimiter, list.limit);
        let entry =
            |found: Row<'_>| Ok(ListEntry::Key { summary: summary(found.value)?, key: found.key });
        let start = walk.start_behind(&list.after);
        Ok(RangeAnswer::Page(walk.page(start, entry, ListEntry::CommonPrefix)?))
    }

    fn list_versions(&self, list: &ListVersions) -> Result<RangeAnswer, Stop> {
        self.overlapping(list.bucket)?;
        self.admit(list.bucket, list.bucket_epoch)?;
        let delimiter = list.delimiter.as_deref();
        let walk = |family| self.walk(family, list.bucket, &list.prefix, delimiter, list.limit);
        let (currents, olders) = (walk(OBJECTS), walk(VERSIONS));
        Ok(RangeAnswer::Versions(version_page(&self.txn, &currents, &olders, list)?))
    }

    /// An upload that has ended since cannot tell how old it was: then the uploads of its key are given again from the
    /// first, because repeating is better than skipping.
    fn uploads(
        &self,
        walk: &Walk<'_>,
        after_key: &[u8],
        after_upload: Option<UploadId>,
    ) -> Result<RangeAnswer, Stop> {
        let start = match after_upload {
            None => walk.start_behind(after_key),
            Some(upload) => {
                let at = KeyPoint::new(walk.bucket, after_key);
                let behind = match self.upload_generation(&at, upload)? {
                    Some(Generation(generation)) => {
                        key::upload(&at, Generation(generation.saturating_add(1)))
                    }
                    None => key::of_key(family::UPLOAD, &at),
                };
                walk.start_inside(after_key, behind)
            }
        };
        let entry = |found: Row<'_>| {
            let row: UploadRow = decode(found.value)?;
            Ok(UploadEntry::Upload { key: found.key, upload: row.upload, record: row.record })
        };
        Ok(RangeAnswer::Uploads(walk.page(start, entry, UploadEntry::CommonPrefix)?))
    }

    fn upload_generation(
        &self,
        at: &KeyPoint,
        upload: UploadId,
    ) -> Result<Option<Generation>, CatalogError> {
        let state: Option<UploadStateRow> = self.txn.get(&key::upload_state(at, upload))?;
        Ok(state.map(|state| match state {
            UploadStateRow::Open(generation) => generation,
            UploadStateRow::Completed(done) | UploadStateRow::CompletedVersion(done) => {
                done.upload.generation
            }
        }))
    }

    fn upload(
        &self,
        at: &KeyPoint,
        upload: UploadId,
        after: u16,
        limit: u32,
    ) -> Result<RangeAnswer, Stop> {
        let generation = match self.txn.get(&key::upload_state(at, upload))? {
            None => return Err(QueryRefusal::NoSuchUpload.into()),
            Some(UploadStateRow::Completed(done) | UploadStateRow::CompletedVersion(done)) => {
                let completed = Some(Box::new(done.object));
                let record = done.upload;
                return Ok(RangeAnswer::Upload {
                    record,
                    parts: Vec::new(),
                    more: false,
                    completed,
                });
            }
            Some(UploadStateRow::Open(generation)) => generation,
        };
        let UploadRow { record, .. } = self
            .txn
            .get(&key::upload(at, generation))?
            .ok_or(CatalogError::Inconsistent("an open upload has no row by age"))?;
        let limit = limit.min(PAGE_ENTRIES_MAX) as usize;
        let all = key::parts(at, upload);
        let from = after.checked_add(1).map(|number| key::part(at, upload, number));
        let mut rows = match from {
            Some(from) => self.txn.rows(&from, key::successor(&all).as_deref(), limit + 1)?,
            None => Vec::new(),
        };
        let more = rows.len() > limit;
        rows.truncate(limit);
        let part = |(_, value): &(Vec<u8>, Vec<u8>)| decode(value).map(|row: PartRow| row.record);
        let parts = rows.iter().map(part).collect::<Result<_, _>>()?;
        Ok(RangeAnswer::Upload { record, parts, more, completed: None })
    }

    fn garbage(&self, behind: Option<Vec<u8>>, limit: u32) -> Result<RangeAnswer, Stop> {
        let limit = limit.min(PAGE_ENTRIES_MAX) as usize;
        let (from, to) = self.span_behind(family::GARBAGE, behind);
        let mut rows = self.txn.rows(&from, to.as_deref(), limit + 1)?;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let mut extents = Vec::with_capacity(rows.len());
        for (_, value) in rows {
            let row: ExtentRow = decode(&value)?;
            extents.push((row.extent, row.generation));
        }
        Ok(RangeAnswer::Garbage { extents, generation: self.head()?.generation, more })
    }

    /// What is behind a split is here for a while yet, and the other's business: it is passed over, and does not count.
    /// So wherever there are more, there is a last entry to go on behind.
    fn missing(&self, behind: Option<Vec<u8>>, limit: u32) -> Result<RangeAnswer, Stop> {
        let limit = limit.clamp(1, PAGE_ENTRIES_MAX) as usize;
        let (from, to) = self.span_behind(family::REPAIR, behind);
        let (mut entries, mut more) = (Vec::new(), false);
        let mut unread = Ok(());
        self.view.scan(&from, to.as_deref(), &mut |_, value| {
            match decode(value) {
                Err(error) => unread = Err(error),
                Ok(MissingRow { owner, .. }) if !self.descriptor.interval.contains(owner.at()) => {
                    return ControlFlow::Continue(());
                }
                Ok(_) if entries.len() == limit => more = true,
                Ok(MissingRow { extent, owner }) => {
                    entries.push(MissingExtent { extent, owner });
                    return ControlFlow::Continue(());
                }
            }
            ControlFlow::Break(())
        })?;
        unread?;
        Ok(RangeAnswer::Missing { entries, more })
    }

    fn split_state(&self) -> Result<SplitState, CatalogError> {
        let row: Option<SplitRow> = self.txn.get(&key::state(self.id(), SPLIT_FIELD))?;
        let splits = row.unwrap_or_default();
        Ok(SplitState {
            more_steps: splits.has_more_steps(),
            prepared: splits.prepared.map(|prepared| prepared.split),
            untold: splits.untold,
            objects: self.count_objects()?,
            apply_version: self.head()?.apply_version,
        })
    }

    /// All objects of the range, as their buckets' usage says. It is asked often, and the buckets may be many: their rows
    /// are only visited.
    fn count_objects(&self) -> Result<u64, CatalogError> {
        let (from, to) = key::range_interval(family::USAGE, self.id());
        let (mut objects, mut unread) = (0, Ok(()));
        self.view.scan(&from, to.as_deref(), &mut |row, value| {
            match self.objects_of(row, value) {
                Ok(some) => objects += some,
                Err(error) => unread = Err(error),
            }
            if unread.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        unread.map(|()| objects)
    }

    /// What a row of usage counts, unless its bucket is the other side's of a split.
    fn objects_of(&self, row: &[u8], value: &[u8]) -> Result<u64, CatalogError> {
        let bucket = row.get(9..).and_then(key::read_u64).map(BucketId);
        let bucket = bucket.ok_or(CatalogError::Inconsistent("the key of a usage row"))?;
        let is_here = self.descriptor.interval.overlaps_bucket(bucket);
        if is_here { Ok(decode::<UsageRow>(value)?.objects) } else { Ok(0) }
    }

    /// Visits half of the versions of all keys. One key is never parted, so the first one is no place to split.
    fn middle(&self) -> Result<Option<KeyPoint>, CatalogError> {
        let half = self.count_objects()? / 2;
        let span = |family| key::object_interval(family, &self.descriptor.interval);
        let mut versions = Versions::new(&self.txn, span(family::CURRENT), span(family::VERSION));
        let Some(Found { at: first, .. }) = versions.next()? else { return Ok(None) };
        let behind = |family| {
            let from = key::successor(&key::of_key(family, &first));
            (from.unwrap_or_default(), span(family).1)
        };
        // asked again and again where there is nothing else
        let mut others = Versions::new(&self.txn, behind(family::CURRENT), behind(family::VERSION));
        if others.next()?.is_none() {
            return Ok(None);
        }
        let mut visited = 1;
        while let Some(Found { at, .. }) = versions.next()? {
            if visited >= half && at != first {
                return Ok(Some(at));
            }
            visited += 1;
        }
        Ok(None)
    }

    /// Where the rows of a family that is keyed by the range lie, from the first one behind `behind`.
    fn span_behind(&self, family: u8, behind: Option<Vec<u8>>) -> KeySpan {
        let (start, end) = key::range_interval(family, self.id());
        let from = behind.map_or(start, |mut row| {
            row.push(0);
            row
        });
        (from, end)
    }

    /// The repair row of an extent. If it is gone meanwhile, the walk begins again.
    fn repair_row(&self, extent: ExtentId) -> Result<Option<Vec<u8>>, CatalogError> {
        for margin in 0..=MARGIN_MAX {
            let row = key::repair(self.id(), margin, extent);
            if self.txn.get_bytes(&row)?.is_some() {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    fn walk<'w>(
        &'w self,
        family: u8,
        bucket: BucketId,
        prefix: &'w [u8],
        delimiter: Option<&'w [u8]>,
        limit: u32,
    ) -> Walk<'w> {
        let interval = &self.descriptor.interval;
        Walk { view: self.view, interval, family, bucket, prefix, delimiter, limit }
    }
}

/// The bytes of a span: first, and first behind.
fn resolve(span: Span, size: u64, parts: &[PartSummary]) -> Result<(u64, u64), QueryRefusal> {
    let outside = QueryRefusal::SpanOutside { size };
    match span {
        Span::Nothing => Ok((0, 0)),
        Span::All => Ok((0, size)),
        Span::Between { first, last } if first < size && first <= last => {
            Ok((first, last.saturating_add(1).min(size)))
        }
        Span::From(first) if first < size => Ok((first, size)),
        Span::Last(count) if count > 0 && size > 0 => Ok((size.saturating_sub(count), size)),
        Span::Between { .. } | Span::From(_) | Span::Last(_) => Err(outside),
        Span::Part(1) if parts.is_empty() => Ok((0, size)),
        Span::Part(number) => {
            let mut from = 0;
            for part in parts {
                if part.number == number {
                    return Ok((from, from + part.size));
                }
                from += part.size;
            }
            Err(QueryRefusal::NoSuchPart)
        }
    }
}
