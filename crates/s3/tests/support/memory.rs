//! A backend in memory: the smallest thing that behaves as `Backend` says.

use ashlar_s3::{
    Backend, CompleteUpload, Deleted, Failure, Found, List, ListUploads, ListVersions, Parts,
    Place, PutObject, Redescribe, Upload, Written,
};
use ashlar_types::{
    Bucket, BucketId, BucketName, BucketRow, BucketState, Epoch, Etag, Generation, ListEntry,
    ObjectId, ObjectRecord, Page, PartRecord, RequestToken, Span, Summary, UploadEntry, UploadId,
    UploadRecord, VersionEntry, VersionId, VersionName, Versioning, WriteCondition,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use md5::{Digest as _, Md5};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// 2026-11-23T12:41:26Z, and one second more with every write.
const BEGINNING_MS: u64 = 1_795_437_686_000;

type Key = (BucketName, String);

struct OpenUpload {
    key: Key,
    record: UploadRecord,
    parts: BTreeMap<u16, (PartRecord, Bytes)>,
    completed: Option<ObjectRecord>,
}

type Object = (ObjectRecord, Bytes);

/// A version of a key.
struct Version {
    name: VersionName,
    modified_ms: u64,
    /// `None`: a delete marker.
    object: Option<Object>,
}

#[derive(Default)]
struct State {
    count: u64,
    buckets: BTreeMap<BucketName, Bucket>,
    /// The versions of each key, from the newest on: never none. A bucket without versions has the one that is `null`.
    versions: BTreeMap<Key, Vec<Version>>,
    uploads: BTreeMap<UploadId, OpenUpload>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Memory {
    state: Mutex<State>,
    /// The next call fails so.
    pub(crate) failure: Mutex<Option<Failure>>,
}

fn key(place: &Place) -> Key {
    (place.bucket.clone(), place.key.as_str().to_owned())
}

impl State {
    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn now_ms(&self) -> u64 {
        BEGINNING_MS + self.count * 1000
    }

    fn check(
        &self,
        key: &Key,
        condition: &WriteCondition,
        token: Option<RequestToken>,
    ) -> Result<(), Failure> {
        if !self.buckets.contains_key(&key.0) {
            return Err(Failure::NoSuchBucket);
        }
        let current = self.current(key).map(|(record, _)| record);
        if token.is_some() && current.is_some_and(|record| record.token == token) {
            return Ok(());
        }
        let met = match (condition, current) {
            (WriteCondition::Always, _) | (WriteCondition::Absent, None) => true,
            (WriteCondition::Absent, Some(_)) => false,
            (_, None) => return Err(Failure::NoSuchKey),
            (WriteCondition::Present, Some(_)) => true,
            (WriteCondition::Matches(etags), Some(record)) => etags.contains(&record.etag),
            (WriteCondition::MatchesNothing, Some(_)) => false,
        };
        if met { Ok(()) } else { Err(Failure::ConditionFailed) }
    }

    fn current(&self, key: &Key) -> Option<&Object> {
        self.versions.get(key)?.first()?.object.as_ref()
    }

    fn versioning(&self, bucket: &BucketName) -> Versioning {
        self.buckets.get(bucket).map_or(Versioning::Off, |bucket| bucket.row.versioning)
    }

    /// What is said of a version: nothing in a bucket that never kept any.
    fn shown(&self, bucket: &BucketName, name: VersionName) -> Option<VersionName> {
        (self.versioning(bucket) != Versioning::Off).then_some(name)
    }

    fn install(&mut self, key: Key, record: ObjectRecord, bytes: Bytes) -> Written {
        let id = VersionId::of_object(record.generation, record.object);
        let (etag, modified_ms, checksums) =
            (record.etag, record.modified_ms, record.checksums.clone());
        let bucket = key.0.clone();
        let name = self.push(key, id, modified_ms, Some((record, bytes)));
        Written { etag, modified_ms, checksums, version: self.shown(&bucket, name) }
    }

    /// Puts a version above all others. While none are kept it is `null`, and takes the place of an earlier one.
    fn push(
        &mut self,
        key: Key,
        id: VersionId,
        modified_ms: u64,
        object: Option<Object>,
    ) -> VersionName {
        let name = match self.versioning(&key.0) {
            Versioning::On => VersionName::Id(id),
            Versioning::Off | Versioning::Suspended => VersionName::Null,
        };
        let versions = self.versions.entry(key).or_default();
        versions.retain(|version| version.name != name);
        versions.insert(0, Version { name, modified_ms, object });
        name
    }

    /// Removes a version. Whether it was a delete marker.
    fn remove(&mut self, key: &Key, name: VersionName) -> bool {
        let Some(versions) = self.versions.get_mut(key) else { return false };
        let removed = versions.extract_if(.., |version| version.name == name).next();
        if versions.is_empty() {
            self.versions.remove(key);
        }
        removed.is_some_and(|version| version.object.is_none())
    }

    fn find(&self, key: &Key, name: Option<VersionName>) -> Result<&Version, Failure> {
        let none = match name {
            None => Failure::NoSuchKey,
            Some(VersionName::Null) if self.versioning(&key.0) == Versioning::Off => {
                Failure::NoSuchKey
            }
            Some(_) => Failure::NoSuchVersion,
        };
        let is_named = |version: &&Version| name.is_none_or(|name| version.name == name);
        self.versions.get(key).and_then(|all| all.iter().find(is_named)).ok_or(none)
    }
}

async fn read(mut body: Upload) -> Result<(Bytes, [u8; 16], Vec<ashlar_types::Checksum>), Failure> {
    let mut all = Vec::new();
    while let Some(bytes) = body.next().await? {
        all.extend_from_slice(&bytes);
    }
    let md5 = Md5::digest(&all).into();
    let checksums = body.finish(md5)?;
    Ok((all.into(), md5, checksums))
}

impl Memory {
    fn state(&self) -> Result<MutexGuard<'_, State>, Failure> {
        match self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(failure) => Err(failure),
            None => Ok(self.state.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

fn span_of(span: Span, record: &ObjectRecord) -> Result<(u64, u64), Failure> {
    let size = record.size;
    let outside = Err(Failure::SpanOutside { size });
    match span {
        Span::Nothing => Ok((0, 0)),
        Span::All => Ok((0, size)),
        Span::From(first) | Span::Between { first, .. } if first >= size => outside,
        Span::Last(0) => outside,
        Span::Last(_) if size == 0 => outside,
        Span::Between { first, last } => Ok((first, last.saturating_add(1).min(size))),
        Span::From(first) => Ok((first, size)),
        Span::Last(count) => Ok((size.saturating_sub(count), size)),
        Span::Part(1) if record.parts.is_empty() => Ok((0, size)),
        Span::Part(number) => {
            let mut from = 0;
            for part in &record.parts {
                if part.number == number {
                    return Ok((from, from + part.size));
                }
                from += part.size;
            }
            Err(Failure::NoSuchPart)
        }
    }
}

fn summary(record: &ObjectRecord) -> Summary {
    Summary {
        size: record.size,
        modified_ms: record.modified_ms,
        etag: record.etag,
        checksums: record.checksums.iter().map(|sum| (sum.algorithm, sum.kind)).collect(),
    }
}

fn version_entry(key: &[u8], version: &Version, latest: bool) -> VersionEntry {
    let (key, name) = (key.to_vec(), version.name);
    match &version.object {
        Some((record, _)) => {
            VersionEntry::Object { key, version: name, latest, summary: summary(record) }
        }
        None => {
            let modified_ms = version.modified_ms;
            VersionEntry::Marker { key, version: name, latest, modified_ms }
        }
    }
}

/// A page over names in order, all behind where it begins, rolled up as S3 does.
fn page<T, E>(
    names: impl Iterator<Item = (Vec<u8>, T)>,
    list: &List,
    key: impl Fn(Vec<u8>, T) -> E,
    prefix: impl Fn(Vec<u8>) -> E,
) -> Page<E> {
    let mut entries = Vec::new();
    let mut rolled: Option<Vec<u8>> = None;
    for (name, value) in names.filter(|(name, _)| name.starts_with(list.prefix.as_bytes())) {
        let rest = &name[list.prefix.len()..];
        let cut = list.delimiter.as_ref().and_then(|delimiter| {
            let delimiter = delimiter.as_bytes();
            rest.windows(delimiter.len())
                .position(|at| at == delimiter)
                .map(|at| list.prefix.len() + at + delimiter.len())
        });
        let shown = cut.map_or(&name[..], |end| &name[..end]).to_vec();
        if cut.is_some() && shown <= list.after || rolled.as_ref() == Some(&shown) {
            continue;
        }
        if entries.len() >= list.limit as usize {
            return Page { entries, more: true };
        }
        if cut.is_some() {
            rolled = Some(shown.clone());
            entries.push(prefix(shown));
        } else {
            entries.push(key(shown, value));
        }
    }
    Page { entries, more: false }
}

#[async_trait]
impl Backend for Memory {
    async fn create_bucket(&self, name: &BucketName, owner: &str) -> Result<(), Failure> {
        let mut state = self.state()?;
        if state.buckets.contains_key(name) {
            return Err(Failure::BucketExists);
        }
        let row = BucketRow {
            bucket: BucketId(state.next()),
            epoch: Epoch(1),
            state: BucketState::Open,
            versioning: Versioning::Off,
        };
        let bucket =
            Bucket { name: name.clone(), owner: owner.to_owned(), created_ms: BEGINNING_MS, row };
        state.buckets.insert(name.clone(), bucket);
        Ok(())
    }

    async fn bucket(&self, name: &BucketName) -> Result<Bucket, Failure> {
        self.state()?.buckets.get(name).cloned().ok_or(Failure::NoSuchBucket)
    }

    async fn buckets(&self) -> Result<Vec<Bucket>, Failure> {
        Ok(self.state()?.buckets.values().cloned().collect())
    }

    async fn delete_bucket(&self, name: &BucketName) -> Result<(), Failure> {
        let mut state = self.state()?;
        if state.versions.keys().any(|key| key.0 == *name) {
            return Err(Failure::BucketNotEmpty);
        }
        state.buckets.remove(name).map(|_| ()).ok_or(Failure::NoSuchBucket)
    }

    async fn set_versioning(
        &self,
        name: &BucketName,
        versioning: Versioning,
    ) -> Result<(), Failure> {
        let mut state = self.state()?;
        let bucket = state.buckets.get_mut(name).ok_or(Failure::NoSuchBucket)?;
        bucket.row.versioning = versioning;
        Ok(())
    }

    async fn put(&self, put: PutObject, body: Upload) -> Result<Written, Failure> {
        let (bytes, md5, checksums) = read(body).await?;
        let mut state = self.state()?;
        let key = key(&put.place);
        state.check(&key, &put.condition, put.token)?;
        let count = state.next();
        let record = ObjectRecord {
            object: ObjectId(u128::from(count)),
            generation: Generation(count),
            size: bytes.len() as u64,
            modified_ms: state.now_ms(),
            etag: Etag { md5, parts: 0 },
            checksums,
            description: put.description,
            parts: Vec::new(),
            token: put.token,
        };
        Ok(state.install(key, record, bytes))
    }

    async fn get(
        &self,
        place: &Place,
        version: Option<VersionName>,
        span: Span,
    ) -> Result<Found, Failure> {
        let state = self.state()?;
        if !state.buckets.contains_key(&place.bucket) {
            return Err(Failure::NoSuchBucket);
        }
        let found = state.find(&key(place), version)?;
        let (name, modified_ms) = (found.name, found.modified_ms);
        let marker = Failure::DeleteMarker { version: name, modified_ms };
        let (record, bytes) = found.object.as_ref().ok_or(marker)?;
        let (from, to) = span_of(span, record)?;
        let index = |at: u64| usize::try_from(at).expect("small");
        let slice = bytes.slice(index(from)..index(to));
        let content = futures::stream::iter([Ok(slice)]).boxed();
        let version = state.shown(&place.bucket, name);
        Ok(Found { record: record.clone(), version, from, to, content })
    }

    async fn delete(
        &self,
        place: &Place,
        condition: WriteCondition,
        token: Option<RequestToken>,
    ) -> Result<Deleted, Failure> {
        let mut state = self.state()?;
        let key = key(place);
        state.check(&key, &condition, token)?;
        if state.versioning(&place.bucket) == Versioning::Off {
            state.remove(&key, VersionName::Null);
            return Ok(Deleted { version: None, marker: false });
        }
        let id = VersionId { generation: Generation(state.next()), tag: 0 };
        let modified_ms = state.now_ms();
        let name = state.push(key, id, modified_ms, None);
        Ok(Deleted { version: Some(name), marker: true })
    }

    async fn delete_version(
        &self,
        place: &Place,
        version: VersionName,
    ) -> Result<Deleted, Failure> {
        let mut state = self.state()?;
        let key = key(place);
        state.check(&key, &WriteCondition::Always, None)?;
        let marker = state.remove(&key, version);
        Ok(Deleted { version: Some(version), marker })
    }

    async fn redescribe(&self, redescribe: Redescribe) -> Result<Written, Failure> {
        let mut state = self.state()?;
        let key = key(&redescribe.place);
        state.check(&key, &redescribe.condition, redescribe.token)?;
        let (mut record, bytes) = state.current(&key).cloned().ok_or(Failure::NoSuchKey)?;
        let keeps_versions = state.versioning(&key.0) != Versioning::Off;
        if record.generation != redescribe.generation || keeps_versions {
            return Err(Failure::Changed);
        }
        record.generation = Generation(state.next());
        record.modified_ms = state.now_ms();
        record.description = redescribe.description;
        Ok(state.install(key, record, bytes))
    }

    async fn list(&self, list: List) -> Result<Page<ListEntry>, Failure> {
        let state = self.state()?;
        if !state.buckets.contains_key(&list.bucket) {
            return Err(Failure::NoSuchBucket);
        }
        let is_behind = |key: &&Key| key.0 == list.bucket && key.1.as_bytes() > &list.after[..];
        let names = state.versions.keys().filter(is_behind);
        let names = names.filter_map(|key| {
            state.current(key).map(|object| (key.1.clone().into_bytes(), summary(&object.0)))
        });
        let entry = |key, summary| ListEntry::Key { key, summary };
        Ok(page(names, &list, entry, ListEntry::CommonPrefix))
    }

    async fn list_versions(&self, versions: ListVersions) -> Result<Page<VersionEntry>, Failure> {
        let ListVersions { list, after_version } = versions;
        let state = self.state()?;
        if !state.buckets.contains_key(&list.bucket) {
            return Err(Failure::NoSuchBucket);
        }
        let of_bucket = state.versions.iter().filter(|(key, _)| key.0 == list.bucket);
        let mut entries = Vec::new();
        for (key, versions) in of_bucket {
            let key = key.1.as_bytes();
            let from = match after_version {
                // a page begins within the key at which the one before ended
                Some(after) if key == list.after => {
                    let at = versions.iter().position(|version| version.name == after);
                    at.map_or(versions.len(), |at| at + 1)
                }
                _ if key <= &list.after[..] => versions.len(),
                _ => 0,
            };
            for (at, version) in versions.iter().enumerate().skip(from) {
                entries.push((key.to_vec(), version_entry(key, version, at == 0)));
            }
        }
        Ok(page(entries.into_iter(), &list, |_, entry| entry, VersionEntry::CommonPrefix))
    }

    async fn create_upload(
        &self,
        place: &Place,
        record: UploadRecord,
    ) -> Result<UploadId, Failure> {
        let mut state = self.state()?;
        let key = key(place);
        state.check(&key, &WriteCondition::Always, None)?;
        let upload = UploadId(u128::from(state.next()));
        let record = UploadRecord { created_ms: state.now_ms(), ..record };
        state
            .uploads
            .insert(upload, OpenUpload { key, record, parts: BTreeMap::new(), completed: None });
        Ok(upload)
    }

    async fn put_part(
        &self,
        place: &Place,
        upload: UploadId,
        number: u16,
        body: Upload,
    ) -> Result<Written, Failure> {
        let (bytes, md5, checksums) = read(body).await?;
        let mut state = self.state()?;
        let count = state.next();
        let modified_ms = state.now_ms();
        let open = state
            .uploads
            .get_mut(&upload)
            .filter(|open| open.key == key(place) && open.completed.is_none());
        let open = open.ok_or(Failure::NoSuchUpload)?;
        let record = PartRecord {
            number,
            object: ObjectId(u128::from(count)),
            size: bytes.len() as u64,
            modified_ms,
            etag: Etag { md5, parts: 0 },
            checksums: checksums.clone(),
        };
        let written = Written { etag: record.etag, modified_ms, checksums, version: None };
        open.parts.insert(number, (record, bytes));
        Ok(written)
    }

    async fn parts(
        &self,
        place: &Place,
        upload: UploadId,
        after: u16,
        limit: u32,
    ) -> Result<Parts, Failure> {
        let state = self.state()?;
        let open = state
            .uploads
            .get(&upload)
            .filter(|open| open.key == key(place))
            .ok_or(Failure::NoSuchUpload)?;
        let mut parts: Vec<_> =
            open.parts.range(after + 1..).map(|(_, part)| part.0.clone()).collect();
        let more = parts.len() > limit as usize;
        parts.truncate(limit as usize);
        let completed = open.completed.clone().map(Box::new);
        Ok(Parts { record: open.record.clone(), parts, more, completed })
    }

    async fn complete_upload(&self, complete: CompleteUpload) -> Result<Written, Failure> {
        let mut state = self.state()?;
        let key = key(&complete.place);
        state.check(&key, &complete.condition, complete.token)?;
        let count = state.next();
        let modified_ms = state.now_ms();
        let open = state.uploads.get_mut(&complete.upload).ok_or(Failure::NoSuchUpload)?;
        let mut all = Vec::new();
        for (part, object) in &complete.parts {
            let stored = open.parts.get(&part.number).filter(|stored| stored.0.object == *object);
            all.extend_from_slice(&stored.ok_or(Failure::Changed)?.1);
        }
        let record = ObjectRecord {
            object: ObjectId(u128::from(count)),
            generation: Generation(count),
            size: all.len() as u64,
            modified_ms,
            etag: complete.etag,
            checksums: complete.checksums,
            description: open.record.description.clone(),
            parts: complete.parts.into_iter().map(|(part, _)| part).collect(),
            token: complete.token,
        };
        open.completed = Some(record.clone());
        open.parts.clear();
        Ok(state.install(key, record, all.into()))
    }

    async fn abort_upload(&self, place: &Place, upload: UploadId) -> Result<(), Failure> {
        let mut state = self.state()?;
        let open = state
            .uploads
            .get(&upload)
            .filter(|open| open.key == key(place) && open.completed.is_none());
        open.ok_or(Failure::NoSuchUpload)?;
        state.uploads.remove(&upload);
        Ok(())
    }

    async fn list_uploads(&self, uploads: ListUploads) -> Result<Page<UploadEntry>, Failure> {
        let state = self.state()?;
        let mut names: Vec<_> = state
            .uploads
            .iter()
            .filter(|(_, open)| open.key.0 == uploads.list.bucket && open.completed.is_none())
            .filter(|(_, open)| open.key.1.as_bytes() > &uploads.list.after[..])
            .map(|(id, open)| (open.key.1.clone().into_bytes(), (*id, open.record.clone())))
            .collect();
        names.sort_by(|a, b| (&a.0, a.1.0).cmp(&(&b.0, b.1.0)));
        let entry = |key, (upload, record)| UploadEntry::Upload { key, upload, record };
        Ok(page(names.into_iter(), &uploads.list, entry, UploadEntry::CommonPrefix))
    }
}
