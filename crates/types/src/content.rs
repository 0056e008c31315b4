//! Where an object's bytes lie: extents, and a small tail inside the catalog.

use crate::{ExtentId, Generation, KeyPoint, ObjectId, PgId, Profile, SlotSet, UploadId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The most bytes of content that ride inside a metadata command.
pub const INLINE_BYTES_MAX: usize = 8 * 1024;
/// Up to this length an extent is kept as RS(1+2), three copies through the same code.
pub const SMALL_EXTENT_BYTES_MAX: u64 = 64 * 1024;
/// The longest extent.
pub const EXTENT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The largest cell of a stripe.
pub const CELL_BYTES_MAX: u32 = 256 * 1024;
/// Stored bytes are checksummed in blocks of this size (D5).
pub const BLOCK_BYTES: u32 = 64 * 1024;

/// Whether an extent belongs to one record, or to several (which no operation of format 1 makes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ownership {
    /// One record names it.
    Owned,
    /// A set of referrers in the `e` family names it.
    Shared,
}

/// One extent as a record names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Its id, for ever.
    pub id: ExtentId,
    /// The placement group that it was written to.
    pub pg: PgId,
    /// Its code.
    pub profile: Profile,
    /// The cell size of its full stripes.
    pub cell_bytes: u32,
    /// Its content's length.
    pub length: u64,
    /// The slots that nobody had acknowledged at commit.
    pub missing: SlotSet,
    /// Whose it is.
    pub ownership: Ownership,
    /// CRC64-NVME of its content.
    pub crc64: u64,
}

/// Who names an extent: where its record is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExtentOwner {
    /// A plain object.
    Object {
        /// Its key.
        at: KeyPoint,
        /// Its content's id.
        object: ObjectId,
    },
    /// A part, of an open upload or of a completed object.
    Part {
        /// The key of the upload.
        at: KeyPoint,
        /// The upload.
        upload: UploadId,
        /// The part's number.
        number: u16,
        /// The part's content's id.
        object: ObjectId,
    },
    /// A plain object that is a version of its key: the newest or an older one.
    Version {
        /// Its key.
        at: KeyPoint,
        /// The generation at which it was committed.
        generation: Generation,
        /// Its content's id.
        object: ObjectId,
    },
}

impl ExtentOwner {
    /// The key.
    pub fn at(&self) -> &KeyPoint {
        match self {
            Self::Object { at, .. } | Self::Part { at, .. } | Self::Version { at, .. } => at,
        }
    }

    /// The id of the content that holds the extent.
    pub fn object(&self) -> ObjectId {
        match self {
            Self::Object { object, .. }
            | Self::Part { object, .. }
            | Self::Version { object, .. } => *object,
        }
    }
}

/// An extent that misses a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingExtent {
    /// The extent, as its owner names it.
    pub extent: Extent,
    /// Its owner.
    pub owner: ExtentOwner,
}

/// The content of an object or a part: its extents in order, then a tail that lies inline.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Content {
    /// Its extents, in order.
    pub extents: Vec<Extent>,
    /// The bytes behind the last extent: at most [`INLINE_BYTES_MAX`].
    pub tail: Bytes,
}

impl Content {
    /// Its length.
    pub fn length(&self) -> u64 {
        self.extents.iter().map(|extent| extent.length).sum::<u64>() + self.tail.len() as u64
    }
}

/// A run of an object's bytes, as an answer to a read names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Piece {
    /// The bytes of an extent.
    Extent {
        /// Where in the object the extent begins.
        offset: u64,
        /// The extent.
        extent: Extent,
    },
    /// Bytes that lay inline.
    Inline {
        /// Where in the object they begin.
        offset: u64,
        /// They themselves.
        bytes: Bytes,
    },
}

impl Piece {
    /// Where in the object it begins.
    pub fn offset(&self) -> u64 {
        match self {
            Self::Extent { offset, .. } | Self::Inline { offset, .. } => *offset,
        }
    }

    /// How many bytes it has.
    pub fn length(&self) -> u64 {
        match self {
            Self::Extent { extent, .. } => extent.length,
            Self::Inline { bytes, .. } => bytes.len() as u64,
        }
    }
}
