//! The backend of the S3 side over a cluster: buckets by name, streams in and out, one command a write.
//!
//! A PUT reads the body, hands each piece to the writer (which encodes and sends it) and to the MD5 lanes, asks the body
//! for its verdict, and only then finishes the shards and proposes the one command that makes the object visible (C1,
//! C10). Whatever fails before drops the writer, and so nothing is left.

use crate::admission::Admission;
use crate::cluster::{Cluster, Writer as _};
use crate::failure::{is_stale_bucket, translate};
use crate::md5_lanes::Md5Lanes;
use ashlar_host::Host;
use ashlar_s3::{
    Backend, CompleteUpload, Failure, Found, List, ListUploads, Parts, Place, PutObject,
    Redescribe, Upload, Written,
};
use ashlar_types::{
    AbortUpload, Applied, Bucket, BucketName, Checksum, Content, CreateUpload, Delete, Etag,
    KeyPoint, ListEntry, ListObjects, ObjectId, ObjectKey, Page, Put, PutPart, RangeAnswer,
    RangeOp, RangeQuery, RequestToken, Span, UploadEntry, UploadId, UploadRecord, WriteCondition,
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
                other => return other.map(|answer| (bucket, answer)).map_err(translate),
            }
        }
        Err(Failure::BucketBusy)
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

    fn now_ms(&self) -> u64 {
        self.host.clock.wall_ms()
    }

    fn written(&self, applied: Applied) -> Result<Written, Failure> {
        match applied {
            Applied::Written { etag, modified_ms, checksums, .. } => {
                Ok(Written { etag, modified_ms, checksums })
            }
            Applied::Done
            | Applied::Deleted { .. }
            | Applied::Fenced(_)
            | Applied::Stepped { .. } => Err(unexpected("a write")),
        }
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

    async fn get(&self, place: &Place, span: Span) -> Result<Found, Failure> {
        let read = self.cluster.open_read();
        let query = self.query(&place.bucket, place.key.as_str().as_bytes(), |bucket, at| {
            RangeQuery::Object { at, bucket_epoch: bucket.row.epoch, span }
        });
        let (bucket, answer) = query.await?;
        let RangeAnswer::Object { record, from, to, pieces } = answer else {
            return Err(unexpected("a read of an object"));
        };
        if from == to {
            return Ok(Found {
                record: *record,
                from,
                to,
                content: futures::stream::empty().boxed(),
            });
        }
        let share = self.admission.admit(to - from).await?;
        let bytes =
            self.cluster.reader(read, point(&bucket, &place.key), record.object, pieces, from, to);
        let content = bytes.map(move |piece| {
            // held until the last byte has gone out
            let _held = &share;
            piece.map_err(translate)
        });
        Ok(Found { record: *record, from, to, content: content.boxed() })
    }

    async fn delete(
        &self,
        place: &Place,
        condition: WriteCondition,
        token: Option<RequestToken>,
    ) -> Result<bool, Failure> {
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
            Applied::Deleted { existed } => Ok(existed),
            Applied::Done
            | Applied::Written { .. }
            | Applied::Fenced(_)
            | Applied::Stepped { .. } => Err(unexpected("a delete")),
        }
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
            let query = ListObjects {
                bucket: bucket.row.bucket,
                bucket_epoch: bucket.row.epoch,
                prefix: list.prefix.clone().into_bytes(),
                delimiter: list.delimiter.clone().map(String::into_bytes),
                after: list.after.clone(),
                limit: list.limit,
            };
            match self.cluster.list(query).await {
                Err(failure) if is_stale_bucket(&failure) => {
                    bucket = self.bucket_now(&list.bucket).await?;
                }
                other => return other.map_err(translate),
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
        Ok(Written { etag: stored.etag, modified_ms, checksums: stored.checksums })
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
