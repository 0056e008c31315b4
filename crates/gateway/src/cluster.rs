//! What the gateway asks of a cluster: the verbs of `ashlar-client` that it uses, as a trait, so that its pipelines are
//! tested against a cluster in memory.

use ashlar_client::{Client, ContentName, Failure, ListUploads, ObjectWriter, OpenRead, Ticket};
use ashlar_types::{
    Applied, Bucket, BucketId, BucketName, Content, KeyPoint, ListEntry, ListObjects, ListVersions,
    Page, Piece, RangeAnswer, RangeOp, RangeQuery, UploadEntry, VersionEntry, Versioning,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;

/// See `ashlar_client::Client` for the meaning of each verb.
#[async_trait]
pub(crate) trait Cluster: Send + Sync + 'static {
    /// Proof that the shards of a content are stored, and under which seq it is named.
    type Ticket: Send + 'static;
    /// A read that has begun.
    type Read: Send + 'static;
    /// Stores one content. Dropped before it has finished, it leaves nothing.
    type Writer: Writer<Ticket = Self::Ticket>;

    async fn create_bucket(&self, name: &BucketName, owner: &str) -> Result<Bucket, Failure>;
    async fn bucket(&self, name: &BucketName) -> Result<Option<Bucket>, Failure>;
    async fn bucket_now(&self, name: &BucketName) -> Result<Option<Bucket>, Failure>;
    async fn buckets(&self) -> Result<Vec<Bucket>, Failure>;
    async fn delete_bucket(&self, name: &BucketName) -> Result<(), Failure>;
    async fn set_versioning(
        &self,
        name: &BucketName,
        versioning: Versioning,
    ) -> Result<Bucket, Failure>;
    async fn query(&self, at: &KeyPoint, query: RangeQuery) -> Result<RangeAnswer, Failure>;
    async fn list(&self, list: ListObjects) -> Result<Page<ListEntry>, Failure>;
    async fn list_versions(&self, list: ListVersions) -> Result<Page<VersionEntry>, Failure>;
    async fn list_uploads(&self, list: ListUploads) -> Result<Page<UploadEntry>, Failure>;
    async fn execute(
        &self,
        ticket: Option<Self::Ticket>,
        at: &KeyPoint,
        op: RangeOp,
    ) -> Result<Applied, Failure>;
    async fn writer(&self, bucket: BucketId, length: u64) -> Result<Self::Writer, Failure>;
    fn open_read(&self) -> Self::Read;
    fn reader(
        &self,
        read: Self::Read,
        content: ContentName,
        pieces: Vec<Piece>,
        from: u64,
        to: u64,
    ) -> BoxStream<'static, Result<Bytes, Failure>>;
}

/// See [`Cluster::Writer`].
#[async_trait]
pub(crate) trait Writer: Send {
    type Ticket;
    async fn write(&mut self, bytes: Bytes) -> Result<(), Failure>;
    async fn finish(self) -> Result<(Content, Self::Ticket), Failure>;
}

#[async_trait]
impl Cluster for Client {
    type Ticket = Ticket;
    type Read = OpenRead;
    type Writer = ObjectWriter;

    async fn create_bucket(&self, name: &BucketName, owner: &str) -> Result<Bucket, Failure> {
        Self::create_bucket(self, name, owner).await
    }

    async fn bucket(&self, name: &BucketName) -> Result<Option<Bucket>, Failure> {
        Self::bucket(self, name).await
    }

    async fn bucket_now(&self, name: &BucketName) -> Result<Option<Bucket>, Failure> {
        Self::bucket_now(self, name).await
    }

    async fn buckets(&self) -> Result<Vec<Bucket>, Failure> {
        Self::buckets(self).await
    }

    async fn delete_bucket(&self, name: &BucketName) -> Result<(), Failure> {
        Self::delete_bucket(self, name).await
    }

    async fn set_versioning(
        &self,
        name: &BucketName,
        versioning: Versioning,
    ) -> Result<Bucket, Failure> {
        Self::set_versioning(self, name, versioning).await
    }

    async fn query(&self, at: &KeyPoint, query: RangeQuery) -> Result<RangeAnswer, Failure> {
        Self::query(self, at, query).await
    }

    async fn list(&self, list: ListObjects) -> Result<Page<ListEntry>, Failure> {
        Self::list(self, list).await
    }

    async fn list_versions(&self, list: ListVersions) -> Result<Page<VersionEntry>, Failure> {
        Self::list_versions(self, list).await
    }

    async fn list_uploads(&self, list: ListUploads) -> Result<Page<UploadEntry>, Failure> {
        Self::list_uploads(self, list).await
    }

    async fn execute(
        &self,
        ticket: Option<Ticket>,
        at: &KeyPoint,
        op: RangeOp,
    ) -> Result<Applied, Failure> {
        Self::execute(self, ticket, at, op).await
    }

    async fn writer(&self, bucket: BucketId, length: u64) -> Result<ObjectWriter, Failure> {
        Self::writer(self, bucket, Some(length)).await
    }

    fn open_read(&self) -> OpenRead {
        Self::open_read(self)
    }

    fn reader(
        &self,
        read: OpenRead,
        content: ContentName,
        pieces: Vec<Piece>,
        from: u64,
        to: u64,
    ) -> BoxStream<'static, Result<Bytes, Failure>> {
        Self::reader(self, read, content, pieces, from, to).boxed()
    }
}

#[async_trait]
impl Writer for ObjectWriter {
    type Ticket = Ticket;

    async fn write(&mut self, bytes: Bytes) -> Result<(), Failure> {
        Self::write(self, bytes).await
    }

    async fn finish(self) -> Result<(Content, Ticket), Failure> {
        Self::finish(self).await
    }
}
