//! The backend of the S3 side over a cluster: buckets by name, streams in and out, one command a write.
//!
//! A PUT reads the body, hands each piece to the writer (which encodes and sends it) and to the MD5 lanes, asks the body
//! for its verdict, and only then finishes the shards and proposes the one command that makes the object visible (C1,
//! C10). Whatever fails before drops the writer, and so nothing is left.
//!
//! A bucket that never kept versions is asked as it was before there were any: nodes of earlier releases know nothing else.
//! Of that, memory is no proof; where it would make a difference, the bucket is looked at again.

use crate::admission::Admission;
use crate::cluster::{Cluster, Writer as _};
use crate::failure::{is_stale_bucket, translate};
use crate::md5_lanes::Md5Lanes;
use ashlar_client::ContentName;
use ashlar_host::Host;
use ashlar_s3::{
    Backend, CompleteUpload, Deleted, Failure, Found, List, ListUploads, ListVersions, Parts,
    Place, PutObject, Redescribe, Upload, Written,
};
use ashlar_types::{
    AbortUpload, Applied, Bucket, BucketName, Checksum, Content, CreateUpload, Delete,
    DeleteVersion, Etag, KeyPoint, ListEntry, ListObjects, ObjectId, ObjectKey, Page, Piece, Put,
    PutPart, RangeAnswer, RangeOp, RangeQuery, RequestToken, Span, UploadEntry, UploadId,
    UploadRecord, VersionEntry, VersionName, Versioning, WriteCondition,
};
use async_trait::async_trait;
use futures::StreamExt as _;

/// How often an operation is begun anew because the bucket was not the one that was remembered.
const TRIES_MAX: usize = 3;

/// See the module.
pub(crate) struct Store<C> {
    pub(crate) host: Host,
    pub(crate) cluster: C,
    pub(crate) admission: Admission,
    pub(crate) md5: Md5Lanes,
}

/// A body whose shards are stored, and what is known of it.
struct Stored<T> {
    content: Content,
    ticket: T,
    etag: Etag,
    checksums: Vec<Checksum>,
}

fn point(bucket: &Bucket, key: &ObjectKey) -> KeyPoint {
    KeyPoint::new(bucket.row.bucket, key.as_str().as_bytes())
}

fn usable(found: Result<Option<Bucket>, ashlar_client::Failure>) -> Result<Bucket, Failure> {
    match found.map_err(translate)? {
        Some(bucket) if bucket.is_open() => Ok(bucket),
        Some(_) => Err(Failure::BucketBusy),
        None => Err(Failure::NoSuchBucket),
    }
}

fn read_query(
    bucket: &Bucket,
    at: KeyPoint,
    version: Option<VersionName>,
    span: Span,
) -> RangeQuery {
    let bucket_epoch = bucket.row.epoch;
    match (bucket.row.versioning, version) {
        (Versioning::Off, None | Some(VersionName::Null)) => {
            RangeQuery::Object { at, bucket_epoch, span }
        }
        (Versioning::Off, Some(VersionName::Id(_)))
        | (Versioning::On | Versioning::Suspended, _) => {
            RangeQuery::Version { at, bucket_epoch, version, span }
        }
    }
}

fn list_query(bucket: &Bucket, list: &List) -> ListObjects {
    ListObjects {
        bucket: bucket.row.bucket,
        bucket_epoch: bucket.row.epoch,
        prefix: list.prefix.clone().into_bytes(),
        delimiter: list.delimiter.clone().map(String::into_bytes),
        after: list.after.clone(),
        limit: list.limit,
    }
}

/// The one version of a key in a bucket that never kept any.
fn as_version(entry: ListEntry) -> VersionEntry {
    match entry {
        ListEntry::Key { key, summary } => {
            VersionEntry::Object { key, version: VersionName::Null, latest: true, summary }
        }
        ListEntry::CommonPrefix(prefix) => VersionEntry::CommonPrefix(prefix),
    }
}

fn unexpected(asked: &str) -> Failure {
    Failure::Internal(format!("the cluster answered {asked} with something else"))
}

impl<C: Cluster> Store<C> {
    fn object_id(&self) -> ObjectId {
        ObjectId(self.host.random.next_u128())
    }

    /// The bucket as it was seen lately. It is never trusted further than its id: ranges refuse one that was deleted.
    async fn bucket_seen(&self, name: &BucketName) -> Result<Bucket, Failure> {
        usable(self.cluster.bucket(name).await)
    }

    async fn bucket_now(&self, name: &BucketName) -> Result<Bucket, Failure> {
        usable(self.cluster.bucket_now(name).await)
    }

    /// Asks a range; where the bucket has changed meanwhile, of the bucket as it is now.
    async fn query(
        &self,
        name: &BucketName,
        key: &[u8],
        query: impl Fn(&Bucket, KeyPoint) -> RangeQuery,
    ) -> Result<(Bucket, RangeAnswer), Failure> {
        let mut bucket = self.bucket_seen(name).await?;
        for _ in 1..TRIES_MAX {
            let at = KeyPoint::new(bucket.row.bucket, key);
            match self.cluster.query(&at, query(&bucket, at.clone())).await {
                Err(failure) if is_stale_bucket(&failure) => bucket = self.bucket_now(name).await?,
                other => match self.turned_meanwhile(&bucket).await {
                    Some(turned) => bucket = turned,
                    None => return other.map(|answer| (bucket, answer)).map_err(translate),
                },
            }
        }
        Err(Failure::BucketBusy)
    }

    /// The bucket, where it began to keep versions after `asked` was remembered: the question was put as to one that does
    /// not. The client agrees with a range on a later row by itself, and remembers that one from then on.
    async fn turned_meanwhile(&self, asked: &Bucket) -> Option<Bucket> {
        if asked.row.versioning != Versioning::Off {
            return None;
        }
        let seen = self.bucket_seen(&asked.name).await.ok()?;
        (seen.row.bucket == asked.row.bucket && seen.row.versioning != Versioning::Off)
            .then_some(seen)
    }

    /// Removes a version of a bucket that keeps them, or did.
    async fn end_version(&self, place: &Place, version: VersionName) -> Result<Deleted, Failure> {
        let execute = self.execute(place, |bucket, at| {
            RangeOp::DeleteVersion(DeleteVersion { at, bucket_epoch: bucket.row.epoch, version })
        });
        match execute.await? {
            Applied::VersionDeleted { marker } => Ok(Deleted { version: Some(version), marker }),
            Applied::Done
            | Applied::Written { .. }
            | Applied::WrittenVersion { .. }
            | Applied::Deleted { .. }
            | Applied::Marked { .. }
            | Applied::Fenced(_)
            | Applied::Stepped { .. } => Err(unexpected("a delete of a version")),
        }
    }

    /// Whether a bucket never kept versions, as of now.
    async fn never_kept_versions(&self, name: &BucketName) -> Result<bool, Failure> {
        let is_off = |bucket: Bucket| bucket.row.versioning == Versioning::Off;
        Ok(is_off(self.bucket_seen(name).await?) && is_off(self.bucket_now(name).await?))
    }

    /// Does something that names no content: it can be begun anew.
    async fn execute(
        &self,
        place: &Place,
        op: impl Fn(&Bucket, KeyPoint) -> RangeOp,
    ) -> Result<Applied, Failure> {
        let mut bucket = self.bucket_seen(&place.bucket).await?;
        for _ in 1..TRIES_MAX {
            let at = point(&bucket, &place.key);
            match self.cluster.execute(None, &at, op(&bucket, at.clone())).await {
                Err(failure) if is_stale_bucket(&failure) => {
                    bucket = self.bucket_now(&place.bucket).await?;
                }
                other => return other.map_err(translate),
            }
        }
        Err(Failure::BucketBusy)
    }

    /// Stores a body and proposes the command that names it.
    async fn write(
        &self,
        place: &Place,
        body: Upload,
        op: impl Fn(&Bucket, KeyPoint, &Stored<()>) -> RangeOp,
    ) -> Result<(Applied, Stored<()>), Failure> {
        let _share = self.admission.admit(body.length()).await?;
        let mut bucket = self.bucket_seen(&place.bucket).await?;
        let Stored { content, mut ticket, etag, checksums } = self.store(&bucket, body).await?;
        let stored = Stored { content, ticket: (), etag, checksums };
        for _ in 1..TRIES_MAX {
            let at = point(&bucket, &place.key);
            let command = op(&bucket, at.clone(), &stored);
            match self.cluster.execute(Some(ticket), &at, command).await {
                Err(failure) if is_stale_bucket(&failure) => {
                    bucket = self.bucket_now(&place.bucket).await?;
                    // the extents belonged to the refused command; bytes that lie inline are still here
                    if !stored.content.extents.is_empty() {
                        return Err(Failure::Unavailable(
                            "the bucket was made anew meanwhile".into(),
                        ));
                    }
                    ticket = self.store_inline(&bucket, &stored.content).await?;
                }
                other => return other.map(|applied| (applied, stored)).map_err(translate),
            }
        }
        Err(Failure::BucketBusy)
    }

    async fn store(&self, bucket: &Bucket, mut body: Upload) -> Result<Stored<C::Ticket>, Failure> {
        let length = body.length();
        let mut writer = self.cluster.writer(bucket.row.bucket, length).await.map_err(translate)?;
        let mut lane = self.md5.body(length).await;
        while let Some(bytes) = body.next().await? {
            lane.update(&bytes).await;
            writer.write(bytes).await.map_err(translate)?;
        }
        let md5 =
            lane.finish().await.ok_or_else(|| Failure::Internal("the MD5 task has died".into()))?;
        let checksums = body.finish(md5)?;
        let (content, ticket) = writer.finish().await.map_err(translate)?;
        Ok(Stored { content, ticket, etag: Etag { md5, parts: 0 }, checksums })
    }

    /// A ticket for bytes that lie inline.
    async fn store_inline(&self, bucket: &Bucket, content: &Content) -> Result<C::Ticket, Failure> {
        let writing = async {
            let mut writer = self.cluster.writer(bucket.row.bucket, content.length()).await?;
            writer.write(content.tail.clone()).await?;
            writer.finish().await
        };
        writing.await.map(|(_, ticket)| ticket).map_err(translate)
    }

    /// A page of versions of the bucket as it is thought to be.
    async fn page_of_versions(
        &self,
        bucket: &Bucket,
        list: &ListVersions,
    ) -> Result<Page<VersionEntry>, ashlar_client::Failure> {
        let keys = list_query(bucket, &list.list);
        if bucket.row.versioning == Versioning::Off {
            let page = self.cluster.list(keys).await?;
            let entries = page.entries.into_iter().map(as_version).collect();
            return Ok(Page { entries, more: page.more });
        }
        let ListObjects { bucket, bucket_epoch, prefix, delimiter, after, limit } = keys;
        let query = ashlar_types::ListVersions {
            bucket,
            bucket_epoch,
            prefix,
            delimiter,
            after,
            after_version: list.after_version,
            limit,
        };
        self.cluster.list_versions(query).await
    }

    fn now_ms(&self) -> u64 {
        self.host.clock.wall_ms()
    }

    fn written(&self, applied: Applied) -> Result<Written, Failure> {
        match applied {
            Applied::Written { etag, modified_ms, checksums, .. } => {
                Ok(Written { etag, modified_ms, checksums, version: None })
            }
            Applied::WrittenVersion { etag, modified_ms, checksums, version, .. } => {
                Ok(Written { etag, modified_ms, checksums, version: Some(version) })
            }
            Applied::Done
            | Applied::Deleted { .. }
            | Applied::Marked { .. }
            | Applied::VersionDeleted { .. }
            | Applied::Fenced(_)
            | Applied::Stepped { .. } => Err(unexpected("a write")),
        }
    }

    /// The bytes of an answer. Their share of memory is held until the last one has gone out.
    async fn bytes(
        &self,
        read: C::Read,
        content: ContentName,
        pieces: Vec<Piece>,
        from: u64,
        to: u64,
    ) -> Result<ashlar_s3::Content, Failure> {
        if from == to {
            return Ok(futures::stream::empty().boxed());
        }
        let share = self.admission.admit(to - from).await?;
        let bytes = self.cluster.reader(read, content, pieces, from, to);
        let held = bytes.map(move |piece| {
            let _held = &share;
            piece.map_err(translate)
        });
        Ok(held.boxed())
    }
}

#[async_trait]
impl<C: Cluster> Backend for Store<C> {
    async fn create_bucket(&self, name: &BucketName, owner: &str) -> Result<(), Failure> {
        self.cluster.create_bucket(name, owner).await.map(|_| ()).map_err(translate)
    }

    async fn bucket(&self, name: &BucketName) -> Result<Bucket, Failure> {
        self.bucket_now(name).await
    }

    async fn buckets(&self) -> Result<Vec<Bucket>, Failure> {
        self.cluster.buckets().await.map_err(translate)
    }

    async fn delete_bucket(&self, name: &BucketName) -> Result<(), Failure> {
        self.cluster.delete_bucket(name).await.map_err(translate)
    }

    async fn put(&self, put: PutObject, body: Upload) -> Result<Written, Failure> {
        let object = self.object_id();
        let write = self.write(&put.place, body, |bucket, at, stored| {
            RangeOp::Put(Box::new(Put {
                at,
                bucket_epoch: bucket.row.epoch,
                condition: put.condition.clone(),
                object,
                modified_ms: self.now_ms(),
                etag: stored.etag,
                checksums: stored.checksums.clone(),
                description: put.description.clone(),
                content: stored.content.clone(),
                token: put.token,
            }))
        });
        let (applied, _) = Box::pin(write).await?;
        self.written(applied)
    }

    async fn set_versioning(
        &self,
        name: &BucketName,
        versioning: Versioning,
    ) -> Result<(), Failure> {
        self.cluster.set_versioning(name, versioning).await.map(|_| ()).map_err(translate)
    }

    async fn get(
        &self,
        place: &Place,
        version: Option<VersionName>,
        span: Span,
    ) -> Result<Found, Failure> {
        if matches!(version, Some(VersionName::Id(_)))
            && self.never_kept_versions(&place.bucket).await?
        {
            return Err(Failure::NoSuchVersion);
        }
        let read = self.cluster.open_read();
        let query = self.query(&place.bucket, place.key.as_str().as_bytes(), |bucket, at| {
            read_query(bucket, at, version, span)
        });
        let (bucket, answer) = query.await?;
        let (record, version, pieces, from, to) = match answer {
            RangeAnswer::Object { record, from, to, pieces } => (record, None, pieces, from, to),
            RangeAnswer::Version { record, version, from, to, pieces } => {
                (record, Some(version), pieces, from, to)
            }
            _ => return Err(unexpected("a read of an object")),
        };
        let name = ContentName { at: point(&bucket, &place.key), object: record.object, version };
        let content = self.bytes(read, name, pieces, from, to).await?;
        Ok(Found { record: *record, version, from, to, content })
    }

    async fn delete(
        &self,
        place: &Place,
        condition: WriteCondition,
        token: Option<RequestToken>,
    ) -> Result<Deleted, Failure> {
        let execute = self.execute(place, |bucket, at| {
            RangeOp::Delete(Delete {
                at,
                bucket_epoch: bucket.row.epoch,
                condition: condition.clone(),
                deleted_ms: self.now_ms(),
                token,
            })
        });
        match execute.await? {
            Applied::Deleted { .. } => Ok(Deleted { version: None, marker: false }),
            Applied::Marked { version } => Ok(Deleted { version: Some(version), marker: true }),
            Applied::Done
            | Applied::Written { .. }
            | Applied::WrittenVersion { .. }
            | Applied::VersionDeleted { .. }
            | Applied::Fenced(_)
            | Applied::Stepped { .. } => Err(unexpected("a delete")),
        }
    }

    async fn delete_version(
        &self,
        place: &Place,
        version: VersionName,
    ) -> Result<Deleted, Failure> {
        if self.never_kept_versions(&place.bucket).await? {
            let gone = Deleted { version: Some(version), marker: false };
            if matches!(version, VersionName::Id(_)) {
                return Ok(gone);
            }
            let deleted = self.delete(place, WriteCondition::Always, None).await?;
            let Some(marker) = deleted.version.filter(|_| deleted.marker) else { return Ok(gone) };
            // versions were switched on in between: nobody has asked for this marker
            self.end_version(place, marker).await?;
        }
        self.end_version(place, version).await
    }

    async fn redescribe(&self, redescribe: Redescribe) -> Result<Written, Failure> {
        let Redescribe { place, condition, generation, description, checksums, token } = redescribe;
        let execute = self.execute(&place, |bucket, at| {
            RangeOp::Redescribe(Box::new(ashlar_types::Redescribe {
                at,
                bucket_epoch: bucket.row.epoch,
                condition: condition.clone(),
                generation,
                modified_ms: self.now_ms(),
                description: description.clone(),
                checksums: checksums.clone(),
                token,
            }))
        });
        self.written(execute.await?)
    }

    async fn list(&self, list: List) -> Result<Page<ListEntry>, Failure> {
        let mut bucket = self.bucket_seen(&list.bucket).await?;
        for _ in 1..TRIES_MAX {
            match self.cluster.list(list_query(&bucket, &list)).await {
                Err(failure) if is_stale_bucket(&failure) => {
                    bucket = self.bucket_now(&list.bucket).await?;
                }
                other => return other.map_err(translate),
            }
        }
        Err(Failure::BucketBusy)
    }

    async fn list_versions(&self, list: ListVersions) -> Result<Page<VersionEntry>, Failure> {
        let name = &list.list.bucket;
        let mut bucket = self.bucket_seen(name).await?;
        for _ in 1..TRIES_MAX {
            match self.page_of_versions(&bucket, &list).await {
                Err(failure) if is_stale_bucket(&failure) => bucket = self.bucket_now(name).await?,
                other => match self.turned_meanwhile(&bucket).await {
                    Some(turned) => bucket = turned,
                    None => return other.map_err(translate),
                },
            }
        }
        Err(Failure::BucketBusy)
    }

    async fn create_upload(
        &self,
        place: &Place,
        record: UploadRecord,
    ) -> Result<UploadId, Failure> {
        let upload = UploadId(self.host.random.next_u128());
        let execute = self.execute(place, |bucket, at| {
            let created_ms = self.now_ms();
            RangeOp::CreateUpload(CreateUpload {
                at,
                bucket_epoch: bucket.row.epoch,
                upload,
                record: UploadRecord { created_ms, ..record.clone() },
            })
        });
        execute.await.map(|_| upload)
    }

    async fn put_part(
        &self,
        place: &Place,
        upload: UploadId,
        number: u16,
        body: Upload,
    ) -> Result<Written, Failure> {
        let object = self.object_id();
        let modified_ms = self.now_ms();
        let write = self.write(place, body, |bucket, at, stored| {
            RangeOp::PutPart(Box::new(PutPart {
                at,
                bucket_epoch: bucket.row.epoch,
                upload,
                number,
                object,
                modified_ms,
                etag: stored.etag,
                checksums: stored.checksums.clone(),
                content: stored.content.clone(),
            }))
        });
        let (_, stored) = Box::pin(write).await?;
        Ok(Written { etag: stored.etag, modified_ms, checksums: stored.checksums, version: None })
    }

    async fn parts(
        &self,
        place: &Place,
        upload: UploadId,
        after: u16,
        limit: u32,
    ) -> Result<Parts, Failure> {
        let query = self.query(&place.bucket, place.key.as_str().as_bytes(), |_, at| {
            RangeQuery::Upload { at, upload, after, limit }
        });
        match query.await?.1 {
            RangeAnswer::Upload { record, parts, more, completed } => {
                Ok(Parts { record, parts, more, completed })
            }
            _ => Err(unexpected("a read of an upload")),
        }
    }

    async fn complete_upload(&self, complete: CompleteUpload) -> Result<Written, Failure> {
        let object = self.object_id();
        let execute = self.execute(&complete.place, |bucket, at| {
            RangeOp::CompleteUpload(Box::new(ashlar_types::CompleteUpload {
                at,
                bucket_epoch: bucket.row.epoch,
                upload: complete.upload,
                condition: complete.condition.clone(),
                object,
                modified_ms: self.now_ms(),
                parts: complete.parts.clone(),
                etag: complete.etag,
                checksums: complete.checksums.clone(),
                token: complete.token,
            }))
        });
        self.written(execute.await?)
    }

    async fn abort_upload(&self, place: &Place, upload: UploadId) -> Result<(), Failure> {
        let execute = self.execute(place, |bucket, at| {
            RangeOp::AbortUpload(AbortUpload { at, bucket_epoch: bucket.row.epoch, upload })
        });
        execute.await.map(|_| ())
    }

    async fn list_uploads(&self, uploads: ListUploads) -> Result<Page<UploadEntry>, Failure> {
        let ListUploads { list, after_upload } = uploads;
        let mut bucket = self.bucket_seen(&list.bucket).await?;
        for _ in 1..TRIES_MAX {
            let query = ashlar_client::ListUploads {
                bucket: bucket.row.bucket,
                bucket_epoch: bucket.row.epoch,
                prefix: list.prefix.clone().into_bytes(),
                delimiter: list.delimiter.clone().map(String::into_bytes),
                after_key: list.after.clone(),
                after_upload,
                limit: list.limit,
            };
            match self.cluster.list_uploads(query).await {
                Err(failure) if is_stale_bucket(&failure) => {
                    bucket = self.bucket_now(&list.bucket).await?;
                }
                other => return other.map_err(translate),
            }
        }
        Err(Failure::BucketBusy)
    }
}
