//! What a backend must do to be spoken to in S3, in the words of `ashlar-types`.
//!
//! The protocol's own rules (which header means what, how an ETag of parts is made, which pages a list has) stay in this
//! crate. A backend stores, finds, lists and judges write conditions where the write is ordered (C3); it never sees a
//! header, and nothing of the protocol library.

use crate::body::Upload;
use crate::error::S3Error;
use ashlar_types::{
    Bucket, BucketName, Checksum, Description, Etag, Generation, ListEntry, ObjectId, ObjectKey,
    ObjectRecord, Page, PartRecord, PartSummary, RequestToken, Span, UploadEntry, UploadId,
    UploadRecord, VersionEntry, VersionName, Versioning, WriteCondition,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

/// Bytes of an object, in order.
pub type Content = BoxStream<'static, Result<Bytes, Failure>>;

/// Why a backend did not do what was asked. Each variant says what is known about the effect (C7).
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// Nothing was applied.
    #[error("there is no such bucket")]
    NoSuchBucket,
    /// Nothing was applied.
    #[error("there is no object under this key")]
    NoSuchKey,
    /// Nothing was applied.
    #[error("there is no such version of this key")]
    NoSuchVersion,
    /// The version that was to be read, named or the newest, is a delete marker.
    #[error("the version is a delete marker")]
    DeleteMarker {
        /// Which.
        version: VersionName,
        /// Its time, in milliseconds since 1970.
        modified_ms: u64,
    },
    /// Nothing was applied.
    #[error("there is no such upload")]
    NoSuchUpload,
    /// The bucket that was to be created exists.
    #[error("the bucket exists")]
    BucketExists,
    /// The bucket that was to be deleted has objects.
    #[error("the bucket is not empty")]
    BucketNotEmpty,
    /// The bucket is being deleted.
    #[error("the bucket is being deleted")]
    BucketBusy,
    /// The condition of the write does not hold.
    #[error("the condition of the write is not met")]
    ConditionFailed,
    /// What was read before the write has changed since: read it again.
    #[error("the object or its parts have changed meanwhile")]
    Changed,
    /// The span lies outside the object.
    #[error("the range does not lie in the object, which has {size} bytes")]
    SpanOutside {
        /// The object's length.
        size: u64,
    },
    /// The object has no part of that number.
    #[error("the object has no such part")]
    NoSuchPart,
    /// The body that was to be stored was not what it said: nothing was stored.
    #[error("{0}")]
    Body(S3Error),
    /// Too much at once; nothing was applied.
    #[error("overloaded")]
    Overloaded,
    /// It cannot be done now; nothing was applied.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// No room; nothing was applied.
    #[error("no room is left")]
    NoSpace,
    /// It happened once or not at all.
    #[error("the outcome is not known: {0}")]
    Unknown(String),
    /// Something is wrong in here; nothing was applied.
    #[error("{0}")]
    Internal(String),
}

impl From<S3Error> for Failure {
    fn from(error: S3Error) -> Self {
        Self::Body(error)
    }
}

/// Where an object lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The bucket.
    pub bucket: BucketName,
    /// The key.
    pub key: ObjectKey,
}

/// An object to be written; its bytes come beside it.
#[derive(Debug, Clone)]
pub struct PutObject {
    /// Where.
    pub place: Place,
    /// Only if.
    pub condition: WriteCondition,
    /// What the client says of it.
    pub description: Description,
    /// The request.
    pub token: Option<RequestToken>,
}

/// What a write came to.
#[derive(Debug, Clone)]
pub struct Written {
    /// Its entity tag.
    pub etag: Etag,
    /// Its time, in milliseconds since 1970.
    pub modified_ms: u64,
    /// Its checksums.
    pub checksums: Vec<Checksum>,
    /// Which version it is; `None`: a part, or in a bucket that never kept versions.
    pub version: Option<VersionName>,
}

/// What a delete came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// The version that was removed, or the delete marker that was made; `None`: the bucket never kept versions.
    pub version: Option<VersionName>,
    /// Whether that is a delete marker.
    pub marker: bool,
}

/// An object that was found.
pub struct Found {
    /// Its record.
    pub record: ObjectRecord,
    /// Which version it is; `None`: the bucket never kept versions.
    pub version: Option<VersionName>,
    /// The first byte of the span.
    pub from: u64,
    /// The first byte behind it.
    pub to: u64,
    /// Its bytes. Nothing is fetched before they are polled.
    pub content: Content,
}

/// An open (or completed) upload and a page of its parts.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The upload.
    pub record: UploadRecord,
    /// Parts by number.
    pub parts: Vec<PartRecord>,
    /// Whether there are more.
    pub more: bool,
    /// What completing it came to, once it was completed.
    pub completed: Option<Box<ObjectRecord>>,
}

/// See [`Backend::complete_upload`].
#[derive(Debug, Clone)]
pub struct CompleteUpload {
    /// Where.
    pub place: Place,
    /// The upload.
    pub upload: UploadId,
    /// Only if.
    pub condition: WriteCondition,
    /// The chosen parts in ascending order, each with the content id that was read.
    pub parts: Vec<(PartSummary, ObjectId)>,
    /// The object's entity tag.
    pub etag: Etag,
    /// The object's checksums.
    pub checksums: Vec<Checksum>,
    /// The request.
    pub token: Option<RequestToken>,
}

/// See [`Backend::redescribe`].
#[derive(Debug, Clone)]
pub struct Redescribe {
    /// Where.
    pub place: Place,
    /// Only if.
    pub condition: WriteCondition,
    /// Only if the object still has this generation, else [`Failure::Changed`].
    pub generation: Generation,
    /// What is said of it from now on.
    pub description: Description,
    /// Its checksums from now on.
    pub checksums: Vec<Checksum>,
    /// The request.
    pub token: Option<RequestToken>,
}

/// See [`Backend::list`].
#[derive(Debug, Clone)]
pub struct List {
    /// The bucket.
    pub bucket: BucketName,
    /// Only keys that begin so.
    pub prefix: String,
    /// Roll up what follows the prefix to this delimiter.
    pub delimiter: Option<String>,
    /// Only keys and common prefixes behind this.
    pub after: Vec<u8>,
    /// At most so many entries; never 0.
    pub limit: u32,
}

/// See [`Backend::list_versions`].
#[derive(Debug, Clone)]
pub struct ListVersions {
    /// Which keys.
    pub list: List,
    /// And of the very key `after` only what is behind this version.
    pub after_version: Option<VersionName>,
}

/// See [`Backend::list_uploads`].
#[derive(Debug, Clone)]
pub struct ListUploads {
    /// Which keys; `after` is a key.
    pub list: List,
    /// And of that very key only behind this upload.
    pub after_upload: Option<UploadId>,
}

/// A store.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Makes a bucket.
    async fn create_bucket(&self, name: &BucketName, owner: &str) -> Result<(), Failure>;
    /// The bucket, if it is there and takes operations.
    async fn bucket(&self, name: &BucketName) -> Result<Bucket, Failure>;
    /// All buckets by name.
    async fn buckets(&self) -> Result<Vec<Bucket>, Failure>;
    /// Deletes an empty bucket.
    async fn delete_bucket(&self, name: &BucketName) -> Result<(), Failure>;
    /// From the answer on, what is written to a bucket is kept as versions, or not any more.
    async fn set_versioning(
        &self,
        name: &BucketName,
        versioning: Versioning,
    ) -> Result<(), Failure>;

    /// Stores an object: reads `body` to its end, asks it for its verdict ([`Upload::finish`]), and only then writes.
    async fn put(&self, put: PutObject, body: Upload) -> Result<Written, Failure>;
    /// A version of a key; `None`: the newest. Without versions, the object of a key is its version `null`.
    async fn get(
        &self,
        place: &Place,
        version: Option<VersionName>,
        span: Span,
    ) -> Result<Found, Failure>;
    /// Removes the object of a key; where versions are kept, puts a delete marker above it.
    async fn delete(
        &self,
        place: &Place,
        condition: WriteCondition,
        token: Option<RequestToken>,
    ) -> Result<Deleted, Failure>;
    /// Removes one version of a key for good. Success, too, where there is none of that name.
    async fn delete_version(&self, place: &Place, version: VersionName)
    -> Result<Deleted, Failure>;
    /// Replaces what is said of an object, keeping its bytes. Where versions are kept: [`Failure::Changed`].
    async fn redescribe(&self, redescribe: Redescribe) -> Result<Written, Failure>;
    /// A page of keys in byte order.
    async fn list(&self, list: List) -> Result<Page<ListEntry>, Failure>;
    /// A page of versions: by key in byte order, then from the newest on.
    async fn list_versions(&self, list: ListVersions) -> Result<Page<VersionEntry>, Failure>;

    /// Opens an upload.
    async fn create_upload(&self, place: &Place, record: UploadRecord)
    -> Result<UploadId, Failure>;
    /// Stores a part, as [`Backend::put`] does.
    async fn put_part(
        &self,
        place: &Place,
        upload: UploadId,
        number: u16,
        body: Upload,
    ) -> Result<Written, Failure>;
    /// The upload and a page of its parts behind `after`.
    async fn parts(
        &self,
        place: &Place,
        upload: UploadId,
        after: u16,
        limit: u32,
    ) -> Result<Parts, Failure>;
    /// Makes parts an object. A part that is not the one that was read: [`Failure::Changed`].
    async fn complete_upload(&self, complete: CompleteUpload) -> Result<Written, Failure>;
    /// Ends an upload without an object.
    async fn abort_upload(&self, place: &Place, upload: UploadId) -> Result<(), Failure>;
    /// A page of open uploads: by key, then by age.
    async fn list_uploads(&self, list: ListUploads) -> Result<Page<UploadEntry>, Failure>;
}
