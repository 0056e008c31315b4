//! What a range is asked to read, and how it answers. Every read sees one view that has applied the read index (R11).

use crate::{
    BucketId, Epoch, ExtentId, Generation, InventoryEntry, InventoryPosition, KeyPoint, ObjectId,
    ObjectRecord, PartRecord, Piece, SplitState, UploadId, UploadRecord, VersionName, Versioned,
};
use serde::{Deserialize, Serialize};

/// The most entries of a page.
pub const PAGE_ENTRIES_MAX: u32 = 1000;
/// The most extents that one answer names.
pub const PIECES_MAX: usize = 1024;

/// A read of a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RangeQuery {
    /// The current object of a key, and where the bytes of a span lie.
    Object {
        /// Where.
        at: KeyPoint,
        /// The bucket's configuration epoch as the gateway knows it.
        bucket_epoch: Epoch,
        /// Which bytes are wanted.
        span: Span,
    },
    /// More pieces of an object whose first answer did not hold all.
    Pieces {
        /// Where.
        at: KeyPoint,
        /// The content that the first answer named. If it is gone: [`QueryRefusal::NoSuchKey`].
        object: ObjectId,
        /// From this byte on.
        from: u64,
        /// Up to and without this one.
        to: u64,
    },
    /// A page of the keys of a bucket, in byte order.
    List(ListObjects),
    /// A page of the open uploads of a bucket: by key, then by age.
    ListUploads {
        /// The bucket.
        bucket: BucketId,
        /// The bucket's configuration epoch as the gateway knows it.
        bucket_epoch: Epoch,
        /// Only keys that begin so.
        prefix: Vec<u8>,
        /// Roll up what follows the prefix to this delimiter.
        delimiter: Option<Vec<u8>>,
        /// Only behind this key.
        after_key: Vec<u8>,
        /// And of that very key only behind this upload.
        after_upload: Option<UploadId>,
        /// At most so many.
        limit: u32,
    },
    /// An open upload, and a page of its parts.
    Upload {
        /// Where.
        at: KeyPoint,
        /// The upload.
        upload: UploadId,
        /// Only parts behind this number.
        after: u16,
        /// At most so many.
        limit: u32,
    },
    /// The gc queue, from its head.
    Collectable {
        /// Behind this extent.
        after: Option<ExtentId>,
        /// At most so many.
        limit: u32,
    },
    /// Which of these extents are in the gc queue: asked by whoever is to delete their shards (D2).
    AreCollectable {
        /// At most [`crate::COLLECT_SHARDS_MAX`].
        extents: Vec<ExtentId>,
    },
    /// What is missing a slot, worst first.
    Missing {
        /// Behind this extent.
        after: Option<ExtentId>,
        /// At most so many.
        limit: u32,
    },
    /// Objects and bytes of a bucket in this range.
    Usage {
        /// The bucket.
        bucket: BucketId,
    },
    /// What the range names, in the direction in which names move.
    Inventory {
        /// Behind this; `None`: from the start.
        after: Option<InventoryPosition>,
        /// At most about so many extents: an entry is given whole.
        limit: u32,
    },
    /// How far the splits of the range are.
    SplitState,
    /// The key of the object in the middle.
    Middle,
    /// A version of a key, and where the bytes of a span lie. Answered by [`RangeAnswer::Version`].
    Version {
        /// Where.
        at: KeyPoint,
        /// The bucket's configuration epoch as the gateway knows it.
        bucket_epoch: Epoch,
        /// Which; `None`: the newest.
        version: Option<VersionName>,
        /// Which bytes are wanted.
        span: Span,
    },
    /// More pieces of a version whose first answer did not hold all.
    VersionPieces {
        /// Where.
        at: KeyPoint,
        /// Which.
        version: VersionName,
        /// The content that the first answer named. If it is gone: [`QueryRefusal::NoSuchVersion`].
        object: ObjectId,
        /// From this byte on.
        from: u64,
        /// Up to and without this one.
        to: u64,
    },
    /// A page of the versions of the keys of a bucket: by key, then from the newest on.
    ListVersions(ListVersions),
}

/// Which bytes of an object a read wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Span {
    /// None: a HEAD.
    Nothing,
    /// All.
    All,
    /// `bytes=first-last`, both included; `last` may lie behind the end.
    Between {
        /// The first byte.
        first: u64,
        /// The last byte.
        last: u64,
    },
    /// `bytes=first-`
    From(u64),
    /// `bytes=-count`
    Last(u64),
    /// The bytes of a part.
    Part(u16),
}

/// See [`RangeQuery::List`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListObjects {
    /// The bucket.
    pub bucket: BucketId,
    /// The bucket's configuration epoch as the gateway knows it.
    pub bucket_epoch: Epoch,
    /// Only keys that begin so.
    pub prefix: Vec<u8>,
    /// Roll up what follows the prefix to this delimiter.
    pub delimiter: Option<Vec<u8>>,
    /// Only keys (and common prefixes) behind this.
    pub after: Vec<u8>,
    /// At most so many entries.
    pub limit: u32,
}

/// See [`RangeQuery::ListVersions`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListVersions {
    /// The bucket.
    pub bucket: BucketId,
    /// The bucket's configuration epoch as the gateway knows it.
    pub bucket_epoch: Epoch,
    /// Only keys that begin so.
    pub prefix: Vec<u8>,
    /// Roll up what follows the prefix to this delimiter.
    pub delimiter: Option<Vec<u8>>,
    /// Only keys (and common prefixes) behind this.
    pub after: Vec<u8>,
    /// And of that very key those behind this version.
    pub after_version: Option<VersionName>,
    /// At most so many entries.
    pub limit: u32,
}

/// How a range answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RangeAnswer {
    /// The object.
    Object {
        /// Its record.
        record: Box<ObjectRecord>,
        /// The bytes of the span: first, and first behind. Equal where nothing was asked for.
        from: u64,
        /// First behind.
        to: u64,
        /// Where they lie: at most [`PIECES_MAX`]; the rest is asked for by [`RangeQuery::Pieces`].
        pieces: Vec<Piece>,
    },
    /// More pieces.
    Pieces(Vec<Piece>),
    /// A page of keys.
    Page(Page<ListEntry>),
    /// A page of uploads.
    Uploads(Page<UploadEntry>),
    /// An upload and a page of its parts.
    Upload {
        /// The upload.
        record: UploadRecord,
        /// Its parts, by number.
        parts: Vec<PartRecord>,
        /// Whether there are more.
        more: bool,
        /// What completing it came to, once it was completed.
        completed: Option<Box<ObjectRecord>>,
    },
    /// A page of the gc queue.
    Garbage {
        /// Extents, each with the range's generation when it came.
        extents: Vec<(crate::Extent, Generation)>,
        /// The range's generation at the moment of this read: what is freed later has a greater one.
        generation: Generation,
        /// Whether there are more.
        more: bool,
    },
    /// For each extent, whether it is in the gc queue.
    AreCollectable(Vec<bool>),
    /// A page of the repair index.
    Missing {
        /// The worst first.
        entries: Vec<crate::MissingExtent>,
        /// Whether there are more.
        more: bool,
    },
    /// Usage of a bucket.
    Usage {
        /// Current objects.
        objects: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// The read could not be done.
    Refused(QueryRefusal),
    /// What the range names.
    Inventory {
        /// Some of it.
        entries: Vec<InventoryEntry>,
        /// Where to go on; `None`: this was the end.
        next: Option<InventoryPosition>,
    },
    /// How far the splits of the range are.
    SplitState(SplitState),
    /// Where half of the objects lie before; `None`: there are fewer than two.
    Middle(Option<KeyPoint>),
    /// A version of an object.
    Version {
        /// Its record.
        record: Box<ObjectRecord>,
        /// Which version it is.
        version: VersionName,
        /// The bytes of the span: first, and first behind. Equal where nothing was asked for.
        from: u64,
        /// First behind.
        to: u64,
        /// Where they lie: at most [`PIECES_MAX`]; the rest is asked for by [`RangeQuery::VersionPieces`].
        pieces: Vec<Piece>,
    },
    /// A page of versions.
    Versions(Page<VersionEntry>),
}

/// A page, and where the next one begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The entries, in order.
    pub entries: Vec<T>,
    /// Whether this range has more behind them.
    pub more: bool,
}

/// An entry of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListEntry {
    /// A key.
    Key {
        /// The key's bytes.
        key: Vec<u8>,
        /// What a list shows of it.
        summary: Summary,
    },
    /// Keys rolled up.
    CommonPrefix(Vec<u8>),
}

/// An entry of a list of versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VersionEntry {
    /// An object.
    Object {
        /// The key's bytes.
        key: Vec<u8>,
        /// Which version of it.
        version: VersionName,
        /// Whether it is the newest.
        latest: bool,
        /// What a list shows of it.
        summary: Summary,
    },
    /// A delete marker.
    Marker {
        /// The key's bytes.
        key: Vec<u8>,
        /// Which version of it.
        version: VersionName,
        /// Whether it is the newest.
        latest: bool,
        /// When it was committed, in milliseconds since 1970.
        modified_ms: u64,
    },
    /// Keys rolled up.
    CommonPrefix(Vec<u8>),
}

/// What a list shows of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Its length.
    pub size: u64,
    /// When it was committed, in milliseconds since 1970.
    pub modified_ms: u64,
    /// Its entity tag.
    pub etag: crate::Etag,
    /// The algorithms of its checksums, and what they cover.
    pub checksums: Vec<(crate::ChecksumAlgorithm, crate::ChecksumType)>,
}

/// An entry of a list of uploads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UploadEntry {
    /// An upload.
    Upload {
        /// Its key's bytes.
        key: Vec<u8>,
        /// Its id.
        upload: UploadId,
        /// What it is.
        record: UploadRecord,
    },
    /// Keys rolled up.
    CommonPrefix(Vec<u8>),
}

/// Why a read could not be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum QueryRefusal {
    /// 404.
    #[error("there is no object under this key")]
    NoSuchKey,
    /// 404.
    #[error("there is no such upload")]
    NoSuchUpload,
    /// 416. The object's length.
    #[error("the range does not lie in the object, which has {size} bytes")]
    SpanOutside {
        /// The object's length.
        size: u64,
    },
    /// 416. The object has no part of that number.
    #[error("the object has no such part")]
    NoSuchPart,
    /// The bucket is being deleted, or is gone: ask the root.
    #[error("the bucket is being deleted")]
    BucketFenced,
    /// The range does not know this epoch of the bucket: fetch the row from the root, install it.
    #[error("the bucket's configuration is {known:?} here")]
    BucketEpoch {
        /// The epoch that the range knows; `None`: it has no row yet.
        known: Option<Epoch>,
    },
    /// Refresh the range directory.
    #[error("the key does not lie in this range")]
    OutsideRange,
    /// 404.
    #[error("there is no such version of this key")]
    NoSuchVersion,
    /// 404 of the newest version, 405 of one that was asked for.
    #[error("the version is a delete marker")]
    DeleteMarker {
        /// Which.
        version: VersionName,
        /// When it was committed, in milliseconds since 1970.
        modified_ms: u64,
    },
}

impl Versioned for RangeQuery {
    const NAME: &'static str = "range query";
    const VERSION: u8 = 1;
}

impl Versioned for RangeAnswer {
    const NAME: &'static str = "range answer";
    const VERSION: u8 = 1;
}
