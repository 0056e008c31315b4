//! The bytes of format 1: superblock, segment header, record header, trailer. See `docs/formats/store.md`.
//!
//! Integers are little-endian and fixed. Each checksum inside a segment is CRC-32C, XORed with a seed made of the disk's
//! id and the segment's generation: a record of a recycled segment or of another disk never reads as one of this.
//! A record names its own offset too, so that a misdirected write, or a segment's bytes stored as a shard, is no record.

use crate::{ShardKey, ShardMeta};
use ashlar_types::{
    BLOCK_BYTES, BucketId, ClusterId, DiskId, Epoch, ExtentId, NodeId, PgId, Profile, Slot,
};

/// The format that this binary writes, and the newest that it reads.
pub(crate) const FORMAT: u32 = 1;
/// Batches and large records start on multiples of this: no block with acknowledged data is ever written again.
pub(crate) const PAGE: u64 = 4096;
/// Shards shorter than this are of the small class.
pub const SMALL_SHARD_BYTES_END: u64 = 64 * 1024;
/// The length of a record header.
pub(crate) const HEADER_BYTES: usize = 128;
/// Records of small segments start on multiples of this.
pub(crate) const RECORD_ALIGN: u64 = 64;
/// The length of a trailer without its CRC array.
pub(crate) const TRAILER_HEAD_BYTES: usize = 64;

const PAGE_BYTES: usize = 4096;
const BLOCK: u64 = BLOCK_BYTES as u64;
const SUPER_MAGIC: &[u8; 8] = b"ASHSUPER";
const SEGMENT_MAGIC: &[u8; 8] = b"ASHSEGMT";
const RECORD_MAGIC: &[u8; 4] = b"ASHR";
const TRAILER_MAGIC: &[u8; 4] = b"ASHT";
const RECORD_VERSION: u8 = 1;

/// One page of bytes.
pub(crate) type Page = [u8; PAGE_BYTES];

/// A number of bytes as an index into memory.
pub(crate) fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("the machines this runs on have 64 bits")
}

/// The next multiple of `align`.
pub(crate) fn round_up(value: u64, align: u64) -> u64 {
    value.div_ceil(align) * align
}

pub(crate) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

pub(crate) fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes is an array of N bytes")
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(get(bytes, at))
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(get(bytes, at))
}

/// What a disk says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) cluster: ClusterId,
    pub(crate) disk: DiskId,
    pub(crate) node: NodeId,
    /// Raised by every open.
    pub(crate) incarnation: u64,
    /// Of the superblock: the valid copy with the higher one holds; it is written where the other one is.
    pub(crate) sequence: u64,
    /// The number of the newest checkpoint; 0: none.
    pub(crate) checkpoint: u64,
    /// The disk was closed, and the checkpoint has all.
    pub(crate) clean: bool,
}

/// What a page of the superblock turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SuperPage {
    Good(Superblock),
    Newer(u32),
    Damaged,
}

impl Superblock {
    pub(crate) fn encode(&self) -> Page {
        let mut page = [0; PAGE_BYTES];
        put(&mut page, 0, *SUPER_MAGIC);
        put(&mut page, 8, FORMAT.to_le_bytes());
        put(&mut page, 12, u32::from(self.clean).to_le_bytes());
        put(&mut page, 16, self.cluster.0.to_le_bytes());
        put(&mut page, 32, self.disk.0.to_le_bytes());
        put(&mut page, 48, self.node.0.to_le_bytes());
        put(&mut page, 56, self.incarnation.to_le_bytes());
        put(&mut page, 64, self.sequence.to_le_bytes());
        put(&mut page, 72, self.checkpoint.to_le_bytes());
        seal_page(&mut page);
        page
    }

    pub(crate) fn decode(page: &Page) -> SuperPage {
        if page[..8] != *SUPER_MAGIC || !page_is_whole(page) {
            return SuperPage::Damaged;
        }
        match get_u32(page, 8) {
            FORMAT => SuperPage::Good(Self {
                clean: get_u32(page, 12) != 0,
                cluster: ClusterId(u128::from_le_bytes(get(page, 16))),
                disk: DiskId(u128::from_le_bytes(get(page, 32))),
                node: NodeId(get_u64(page, 48)),
                incarnation: get_u64(page, 56),
                sequence: get_u64(page, 64),
                checkpoint: get_u64(page, 72),
            }),
            newer => SuperPage::Newer(newer),
        }
    }
}

/// Small or large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    Small,
    Large,
}

impl Class {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Small => 1,
            Self::Large => 2,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Small),
            2 => Some(Self::Large),
            _ => None,
        }
    }
}

/// The first page of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) class: Class,
    pub(crate) disk: DiskId,
    /// Never used twice on a disk.
    pub(crate) generation: u64,
    /// How far it may grow.
    pub(crate) bytes: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Page {
        let mut page = [0; PAGE_BYTES];
        put(&mut page, 0, *SEGMENT_MAGIC);
        put(&mut page, 8, FORMAT.to_le_bytes());
        put(&mut page, 12, [self.class.code()]);
        put(&mut page, 16, self.disk.0.to_le_bytes());
        put(&mut page, 32, self.generation.to_le_bytes());
        put(&mut page, 40, self.bytes.to_le_bytes());
        seal_page(&mut page);
        page
    }

    pub(crate) fn decode(page: &Page) -> Option<Self> {
        if page[..8] != *SEGMENT_MAGIC || !page_is_whole(page) || get_u32(page, 8) != FORMAT {
            return None;
        }
        Some(Self {
            class: Class::from_code(page[12])?,
            disk: DiskId(u128::from_le_bytes(get(page, 16))),
            generation: get_u64(page, 32),
            bytes: get_u64(page, 40),
        })
    }
}

/// In every format, the last four bytes of such a page are the CRC of all before them.
fn seal_page(page: &mut Page) {
    let crc = crc32c::crc32c(&page[..PAGE_BYTES - 4]);
    put(page, PAGE_BYTES - 4, crc.to_le_bytes());
}

fn page_is_whole(page: &Page) -> bool {
    get_u32(page, PAGE_BYTES - 4) == crc32c::crc32c(&page[..PAGE_BYTES - 4])
}

/// What is XORed into every checksum of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed(u32);

impl Seed {
    pub(crate) fn new(disk: DiskId, generation: u64) -> Self {
        let crc = crc32c::crc32c(&disk.0.to_le_bytes());
        Self(crc32c::crc32c_append(crc, &generation.to_le_bytes()))
    }

    /// A checksum as it is stored; and back.
    pub(crate) fn mask(self, crc: u32) -> u32 {
        crc ^ self.0
    }
}

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A shard; in a large segment it counts only with its trailer.
    Shard,
    /// The shard of this key is deleted.
    Tombstone,
    /// A reservation that was given up.
    Pad,
    /// A shard that compaction has moved; it keeps its sequence.
    Move,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Shard => 1,
            Self::Tombstone => 2,
            Self::Pad => 3,
            Self::Move => 4,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Shard),
            2 => Some(Self::Tombstone),
            3 => Some(Self::Pad),
            4 => Some(Self::Move),
            _ => None,
        }
    }
}

/// What stands before each record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) kind: Kind,
    /// Small: the shard's length. Large: what was announced; the true length is in the trailer.
    pub(crate) meta: ShardMeta,
    pub(crate) generation: u64,
    /// Small: orders the records of a disk. Large: names the reservation; the trailer has the order.
    pub(crate) sequence: u64,
    /// Where in the segment it stands.
    pub(crate) offset: u64,
    /// From here to the next record.
    pub(crate) span: u64,
    /// Everything up to this sequence was durable when this was written.
    pub(crate) acked: u64,
    /// Small: CRC-32C of the payload.
    pub(crate) crc: u32,
}

impl RecordHeader {
    pub(crate) fn encode(&self, seed: Seed) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let ShardMeta { key, profile, pg, pg_epoch, bucket, length, created_ms } = self.meta;
        put(&mut bytes, 0, *RECORD_MAGIC);
        put(&mut bytes, 4, [RECORD_VERSION, self.kind.code(), key.slot.0, profile.data]);
        put(&mut bytes, 8, [profile.parity]);
        put(&mut bytes, 12, pg.0.to_le_bytes());
        put(&mut bytes, 16, self.generation.to_le_bytes());
        put(&mut bytes, 24, self.sequence.to_le_bytes());
        put(&mut bytes, 32, key.extent.to_bytes());
        put(&mut bytes, 48, pg_epoch.0.to_le_bytes());
        put(&mut bytes, 56, length.to_le_bytes());
        put(&mut bytes, 64, bucket.0.to_le_bytes());
        put(&mut bytes, 72, created_ms.to_le_bytes());
        put(&mut bytes, 80, self.offset.to_le_bytes());
        put(&mut bytes, 88, self.span.to_le_bytes());
        put(&mut bytes, 96, self.acked.to_le_bytes());
        put(&mut bytes, 104, seed.mask(self.crc).to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
        put(&mut bytes, HEADER_BYTES - 4, seed.mask(crc).to_le_bytes());
        bytes
    }

    /// The header in `bytes`, if it is one of the segment of `seed` and stands at `offset` of it.
    pub(crate) fn decode(bytes: &[u8], seed: Seed, offset: u64) -> Option<Self> {
        if bytes.len() < HEADER_BYTES || bytes[..4] != *RECORD_MAGIC || bytes[4] != RECORD_VERSION {
            return None;
        }
        let crc = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
        if get_u32(bytes, HEADER_BYTES - 4) != seed.mask(crc) || get_u64(bytes, 80) != offset {
            return None;
        }
        let key = ShardKey { extent: ExtentId::from_bytes(get(bytes, 32)), slot: Slot(bytes[6]) };
        Some(Self {
            kind: Kind::from_code(bytes[5])?,
            meta: ShardMeta {
                key,
                profile: Profile { data: bytes[7], parity: bytes[8] },
                pg: PgId(get_u32(bytes, 12)),
                pg_epoch: Epoch(get_u64(bytes, 48)),
                bucket: BucketId(get_u64(bytes, 64)),
                length: get_u64(bytes, 56),
                created_ms: get_u64(bytes, 72),
            },
            generation: get_u64(bytes, 16),
            sequence: get_u64(bytes, 24),
            offset,
            span: get_u64(bytes, 88),
            acked: get_u64(bytes, 96),
            crc: seed.mask(get_u32(bytes, 104)),
        })
    }
}

/// The room of a record of a small segment.
pub(crate) fn small_span(length: u64) -> u64 {
    round_up(HEADER_BYTES as u64 + length, RECORD_ALIGN)
}

/// How many checksummed blocks a shard has.
pub(crate) fn blocks(length: u64) -> u64 {
    length.div_ceil(BLOCK)
}

/// The room of the trailer of a reservation for `length` bytes.
pub(crate) fn trailer_bytes(length: u64) -> u64 {
    round_up(TRAILER_HEAD_BYTES as u64 + 4 * blocks(length), PAGE)
}

/// The room of a reservation for `length` bytes: header page, content, trailer.
pub(crate) fn large_span(length: u64) -> u64 {
    PAGE + round_up(length, PAGE) + trailer_bytes(length)
}

/// Where the trailer of the reservation at `offset` stands.
pub(crate) fn trailer_offset(offset: u64, reserved: u64) -> u64 {
    offset + large_span(reserved) - trailer_bytes(reserved)
}

/// What makes a large shard one: written last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) generation: u64,
    /// The sequence in the reservation's header.
    pub(crate) reservation: u64,
    /// Orders the records of a disk.
    pub(crate) sequence: u64,
    /// The true length.
    pub(crate) length: u64,
    /// Where the reservation's header stands.
    pub(crate) offset: u64,
    /// As in the record header.
    pub(crate) acked: u64,
    /// CRC-32C of the whole content.
    pub(crate) crc: u32,
    /// CRC-32C of each 64 KiB block of the content.
    pub(crate) blocks: Vec<u32>,
}

impl Trailer {
    pub(crate) fn encode(&self, seed: Seed) -> Vec<u8> {
        let mut bytes = vec![0; TRAILER_HEAD_BYTES + 4 * self.blocks.len()];
        put(&mut bytes, 0, *TRAILER_MAGIC);
        put(&mut bytes, 4, [RECORD_VERSION]);
        put(&mut bytes, 8, self.generation.to_le_bytes());
        put(&mut bytes, 16, self.reservation.to_le_bytes());
        put(&mut bytes, 24, self.sequence.to_le_bytes());
        put(&mut bytes, 32, self.length.to_le_bytes());
        put(&mut bytes, 40, self.offset.to_le_bytes());
        put(&mut bytes, 48, self.acked.to_le_bytes());
        put(&mut bytes, 56, seed.mask(self.crc).to_le_bytes());
        for (index, &crc) in self.blocks.iter().enumerate() {
            put(&mut bytes, TRAILER_HEAD_BYTES + 4 * index, seed.mask(crc).to_le_bytes());
        }
        let crc = trailer_crc(&bytes);
        put(&mut bytes, 60, seed.mask(crc).to_le_bytes());
        bytes
    }

    /// The trailer of the reservation that `header` opened, if `bytes` have it whole.
    pub(crate) fn decode(bytes: &[u8], seed: Seed, header: &RecordHeader) -> Option<Self> {
        if bytes.len() < TRAILER_HEAD_BYTES
            || bytes[..4] != *TRAILER_MAGIC
            || bytes[4] != RECORD_VERSION
        {
            return None;
        }
        let length = get_u64(bytes, 32);
        if length > header.meta.length {
            return None;
        }
        let end = TRAILER_HEAD_BYTES + 4 * size(blocks(length));
        let bytes = bytes.get(..end)?;
        let trailer = Self {
            generation: get_u64(bytes, 8),
            reservation: get_u64(bytes, 16),
            sequence: get_u64(bytes, 24),
            length,
            offset: get_u64(bytes, 40),
            acked: get_u64(bytes, 48),
            crc: seed.mask(get_u32(bytes, 56)),
            blocks: (TRAILER_HEAD_BYTES..end)
                .step_by(4)
                .map(|at| seed.mask(get_u32(bytes, at)))
                .collect(),
        };
        let is_whole = get_u32(bytes, 60) == seed.mask(trailer_crc(bytes));
        let is_its_own = trailer.reservation == header.sequence && trailer.offset == header.offset;
        (is_whole && is_its_own).then_some(trailer)
    }
}

/// Over all of the trailer but the field that holds it.
fn trailer_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..60]), &bytes[TRAILER_HEAD_BYTES..])
}

#[cfg(test)]
mod tests {
    //! The bytes of format 1: these tests change only if the format does, and then the old bytes stay.

    use super::*;
    use ashlar_types::SessionId;

    const DISK: DiskId = DiskId(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100);
    const META: ShardMeta = ShardMeta {
        key: ShardKey {
            extent: ExtentId { session: SessionId(0x0102), counter: 0x0304 },
            slot: Slot(5),
        },
        profile: Profile::RS_4_2,
        pg: PgId(0x0607),
        pg_epoch: Epoch(0x0809),
        bucket: BucketId(0x0a0b),
        length: 100_000,
        created_ms: 0x0c0d,
    };
    const HEADER: RecordHeader = RecordHeader {
        kind: Kind::Shard,
        meta: META,
        generation: 0x11,
        sequence: 0x12,
        offset: 0x1000,
        span: 0x1b000,
        acked: 0x10,
        crc: 0xdead_beef,
    };

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn superblock_bytes() {
        let superblock = Superblock {
            cluster: ClusterId(1),
            disk: DISK,
            node: NodeId(3),
            incarnation: 4,
            sequence: 5,
            checkpoint: 6,
            clean: true,
        };
        let page = superblock.encode();
        let expected = concat!(
            "4153485355504552",
            "01000000",
            "01000000",
            "01000000000000000000000000000000",
            "000102030405060708090a0b0c0d0e0f",
            "0300000000000000",
            "0400000000000000",
            "0500000000000000",
            "0600000000000000",
        );
        assert_eq!(hex(&page[..80]), expected);
        assert!(page[80..4092].iter().all(|&byte| byte == 0));
        assert_eq!(hex(&page[4092..]), "9803b498");
        assert_eq!(Superblock::decode(&page), SuperPage::Good(superblock));
        let mut torn = page;
        torn[100] = 1;
        assert_eq!(Superblock::decode(&torn), SuperPage::Damaged);
    }

    #[test]
    fn segment_header_bytes() {
        let header =
            SegmentHeader { class: Class::Large, disk: DISK, generation: 0x11, bytes: 0x10_0000 };
        let page = header.encode();
        let expected = concat!(
            "4153485345474d54",
            "01000000",
            "02000000",
            "000102030405060708090a0b0c0d0e0f",
            "1100000000000000",
            "0000100000000000",
        );
        assert_eq!(hex(&page[..48]), expected);
        assert_eq!(hex(&page[4092..]), "c4523712");
        assert_eq!(SegmentHeader::decode(&page), Some(header));
    }

    #[test]
    fn record_header_bytes() {
        let seed = Seed::new(DISK, 0x11);
        let bytes = HEADER.encode(seed);
        let expected = concat!(
            "4153485201010504020000000706000011000000000000001200000000000000",
            "000000000000010200000000000003040908000000000000a086010000000000",
            "0b0a0000000000000d0c000000000000001000000000000000b0010000000000",
            "1000000000000000fe1b01dd00000000000000000000000000000000673d5145",
        );
        assert_eq!(hex(&bytes), expected);
        assert_eq!(RecordHeader::decode(&bytes, seed, 0x1000), Some(HEADER));
        assert_eq!(RecordHeader::decode(&bytes, seed, 0x2000), None, "misdirected");
        assert_eq!(RecordHeader::decode(&bytes, Seed::new(DISK, 0x12), 0x1000), None, "recycled");
        assert_eq!(
            RecordHeader::decode(&bytes, Seed::new(DiskId(1), 0x11), 0x1000),
            None,
            "foreign"
        );
    }

    #[test]
    fn trailer_bytes_and_layout() {
        let seed = Seed::new(DISK, 0x11);
        let trailer = Trailer {
            generation: 0x11,
            reservation: 0x12,
            sequence: 0x13,
            length: 70_000,
            offset: 0x1000,
            acked: 0x10,
            crc: 0x0102_0304,
            blocks: vec![0x0506_0708, 0x090a_0b0c],
        };
        let bytes = trailer.encode(seed);
        let expected = concat!(
            "4153485401000000110000000000000012000000000000001300000000000000",
            "70110100000000000010000000000000100000000000000015a6ae02bc0b5278",
            "19a2aa061daea60a",
        );
        assert_eq!(hex(&bytes), expected);
        assert_eq!(Trailer::decode(&bytes, seed, &HEADER), Some(trailer));
        let other = RecordHeader { sequence: 0x14, ..HEADER };
        assert_eq!(Trailer::decode(&bytes, seed, &other), None, "of another reservation");
        assert_eq!((large_span(100_000), small_span(100)), (4096 + 102_400 + 4096, 256));
        assert_eq!(trailer_offset(4096, 100_000), 4096 + 4096 + 102_400);
    }
}
