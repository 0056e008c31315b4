//! The bytes of the log, format 1 (`docs/formats/wal.md`): a batch is a header and its records, padded to 512 bytes.
//!
//! Every checksum is CRC32C seeded with the generation of the file, so that what a recycled file held before never
//! reads as new. A record has a checksum of its own: an entry is read back, and verified, without its batch.

use crate::WalError;
use crate::record::GroupHealth;
use ashlar_types::RangeId;
use bytes::Bytes;
use std::path::Path;

/// The format that this binary writes.
pub(crate) const FORMAT: u16 = 1;
const MAGIC: &[u8; 6] = b"ashwal";
/// Size of a batch header.
pub(crate) const BATCH_HEADER_BYTES: usize = 72;
/// Size of a record header.
pub(crate) const RECORD_HEADER_BYTES: usize = 48;
/// Batches begin at multiples of this: what a disk writes whole or not at all.
pub(crate) const ALIGNMENT: u64 = 512;

/// A place between two batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Position {
    /// Generation of the file; 0: before the first one.
    pub(crate) generation: u64,
    /// Offset in it.
    pub(crate) offset: u64,
}

/// What a batch begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    /// Random, the same in all files of a log: no payload of a client can imitate a batch.
    pub(crate) log_id: u64,
    /// Of the file; higher with each use of a file.
    pub(crate) generation: u64,
    /// Of its first record.
    pub(crate) lsn: u64,
    /// Everything up to here was on stable storage before this batch was written.
    pub(crate) synced: Position,
    /// Files of lower generations hold nothing live.
    pub(crate) oldest: u64,
    /// Bytes of the records.
    pub(crate) body_bytes: u32,
    /// Number of records.
    pub(crate) records: u32,
}

/// Why bytes are no batch header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoHeader {
    /// Zeroes, other data, or damage.
    Invalid,
    /// Sound, of a newer format.
    Newer(u16),
}

/// The seed of all checksums of a file.
pub(crate) fn seed(generation: u64) -> u32 {
    crc32c::crc32c(&generation.to_le_bytes())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

impl BatchHeader {
    pub(crate) fn encode(&self) -> [u8; BATCH_HEADER_BYTES] {
        let mut bytes = [0; BATCH_HEADER_BYTES];
        bytes[..6].copy_from_slice(MAGIC);
        bytes[6..8].copy_from_slice(&FORMAT.to_le_bytes());
        let Position { generation, offset } = self.synced;
        let words = [self.log_id, self.generation, self.lsn, generation, offset, self.oldest];
        for (word, place) in words.iter().zip(bytes[8..56].chunks_exact_mut(8)) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes[56..60].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[60..64].copy_from_slice(&self.records.to_le_bytes());
        let checksum = crc32c::crc32c_append(seed(self.generation), &bytes[..68]);
        bytes[68..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, NoHeader> {
        if bytes.len() < BATCH_HEADER_BYTES || &bytes[..6] != MAGIC {
            return Err(NoHeader::Invalid);
        }
        let generation = u64_at(bytes, 16);
        if crc32c::crc32c_append(seed(generation), &bytes[..68]) != u32_at(bytes, 68) {
            return Err(NoHeader::Invalid);
        }
        let format = u16::from_le_bytes([bytes[6], bytes[7]]);
        if format != FORMAT {
            return Err(NoHeader::Newer(format));
        }
        Ok(Self {
            log_id: u64_at(bytes, 8),
            generation,
            lsn: u64_at(bytes, 24),
            synced: Position { generation: u64_at(bytes, 32), offset: u64_at(bytes, 40) },
            oldest: u64_at(bytes, 48),
            body_bytes: u32_at(bytes, 56),
            records: u32_at(bytes, 60),
        })
    }

    /// Where the next batch begins, if this one begins at `offset`.
    pub(crate) fn end(&self, offset: u64) -> u64 {
        offset + batch_bytes(u64::from(self.body_bytes))
    }
}

/// Bytes of a batch on disk.
pub(crate) fn batch_bytes(body: u64) -> u64 {
    (BATCH_HEADER_BYTES as u64 + body).next_multiple_of(ALIGNMENT)
}

/// Whether damaged bytes look as if a batch of this generation, or with this lsn, had been begun here. Either field
/// alone is enough, so that damage to one of them does not hide the batch; what a recycled file held before has neither.
pub(crate) fn resembles_batch(bytes: &[u8], generation: u64, lsn: u64) -> bool {
    bytes.len() >= BATCH_HEADER_BYTES
        && (u64_at(bytes, 16) == generation || (lsn != 0 && u64_at(bytes, 24) == lsn))
}

/// What a record is. The numbers are the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Entry = 1,
    Vote = 2,
    TruncateAfter = 3,
    TruncateAll = 4,
    Purge = 5,
    Committed = 6,
    Created = 7,
    Dropped = 8,
    Installing = 9,
    Installed = 10,
    CaughtUp = 11,
    /// All that is known of a group but its entries; in the first batch of each file.
    State = 12,
    /// An entry that moved here out of an old file.
    Moved = 13,
    /// Of the node, not of a group: its key is in the place of the index.
    Note = 14,
}

const KINDS: [Kind; 14] = [
    Kind::Entry,
    Kind::Vote,
    Kind::TruncateAfter,
    Kind::TruncateAll,
    Kind::Purge,
    Kind::Committed,
    Kind::Created,
    Kind::Dropped,
    Kind::Installing,
    Kind::Installed,
    Kind::CaughtUp,
    Kind::State,
    Kind::Moved,
    Kind::Note,
];

/// What a record begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) kind: Kind,
    pub(crate) group: RangeId,
    pub(crate) lsn: u64,
    /// Of an entry, or the bound of a truncation or purge, or the key of a note; else 0.
    pub(crate) index: u64,
    /// Of an entry; of the last entry in a `State`; else 0.
    pub(crate) term: u64,
}

/// A sound record of an unknown kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UnknownKind(pub(crate) u8);

impl RecordHeader {
    pub(crate) fn encode(&self, seed: u32, payload: &[u8]) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        let length = u32::try_from(payload.len()).expect("submit refuses records over 1 GiB");
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        bytes[8] = self.kind as u8;
        let words = [self.group.0, self.lsn, self.index, self.term];
        for (word, place) in words.iter().zip(bytes[16..].chunks_exact_mut(8)) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let checksum = crc32c::crc32c_append(crc32c::crc32c_append(seed, &bytes[4..]), payload);
        bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The record at the beginning of `bytes`, and its length with header. `None`: damaged.
    pub(crate) fn decode(seed: u32, bytes: &[u8]) -> Option<(Result<Self, UnknownKind>, usize)> {
        if bytes.len() < RECORD_HEADER_BYTES {
            return None;
        }
        let length = RECORD_HEADER_BYTES.checked_add(usize::try_from(u32_at(bytes, 4)).ok()?)?;
        let whole = bytes.get(..length)?;
        if crc32c::crc32c_append(seed, &whole[4..]) != u32_at(bytes, 0) {
            return None;
        }
        let header = KINDS.into_iter().find(|kind| *kind as u8 == bytes[8]).map(|kind| Self {
            kind,
            group: RangeId(u64_at(bytes, 16)),
            lsn: u64_at(bytes, 24),
            index: u64_at(bytes, 32),
            term: u64_at(bytes, 40),
        });
        Some((header.ok_or(UnknownKind(bytes[8])), length))
    }
}

/// A record of a batch: its header, its offset in the body, its payload.
pub(crate) type BodyRecord = (RecordHeader, u64, Bytes);

/// The records of a batch body. `None`: damaged, or not as many as the header says.
pub(crate) fn decode_body(
    header: &BatchHeader,
    body: &Bytes,
    path: &Path,
) -> Result<Option<Vec<BodyRecord>>, WalError> {
    let seed = seed(header.generation);
    let mut records = Vec::new();
    let mut at = 0;
    while at < body.len() {
        let Some((record, length)) = RecordHeader::decode(seed, &body[at..]) else {
            return Ok(None);
        };
        let record = record.map_err(|UnknownKind(found)| WalError::Newer {
            path: path.to_owned(),
            found: u16::from(found),
            known: Kind::Note as u16,
        })?;
        if record.lsn != header.lsn + records.len() as u64 {
            return Ok(None);
        }
        records.push((record, at as u64, body.slice(at + RECORD_HEADER_BYTES..at + length)));
        at += length;
    }
    Ok((records.len() as u64 == u64::from(header.records)).then_some(records))
}

/// What a `State` record holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct StateBody {
    pub(crate) health: GroupHealth,
    pub(crate) dropped: bool,
    pub(crate) vote: Option<Bytes>,
    pub(crate) committed: Option<Bytes>,
    pub(crate) created: Option<Bytes>,
    pub(crate) installing: Option<Bytes>,
    pub(crate) purged: Option<(u64, Bytes)>,
    /// First and last index of the entries.
    pub(crate) entries: Option<(u64, u64)>,
}

impl StateBody {
    pub(crate) fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(128);
        bytes.push(match self.health {
            GroupHealth::Sound => 0,
            GroupHealth::TornTail => 1,
            GroupHealth::Corrupt => 2,
        });
        bytes.push(u8::from(self.dropped));
        for field in [&self.vote, &self.committed, &self.created, &self.installing] {
            put_bytes(&mut bytes, field.as_ref());
        }
        bytes.extend(self.purged.as_ref().map_or(0, |(upto, _)| *upto).to_le_bytes());
        put_bytes(&mut bytes, self.purged.as_ref().map(|(_, id)| id));
        let (present, (first, last)) = (self.entries.is_some(), self.entries.unwrap_or_default());
        bytes.push(u8::from(present));
        bytes.extend(first.to_le_bytes());
        bytes.extend(last.to_le_bytes());
        bytes.into()
    }

    /// `None`: not a state, although its checksum is right.
    pub(crate) fn decode(mut bytes: Bytes) -> Option<Self> {
        let health = match take(&mut bytes, 1)?[0] {
            0 => GroupHealth::Sound,
            1 => GroupHealth::TornTail,
            2 => GroupHealth::Corrupt,
            _ => return None,
        };
        let dropped = take(&mut bytes, 1)?[0] == 1;
        let vote = take_bytes(&mut bytes)?;
        let committed = take_bytes(&mut bytes)?;
        let created = take_bytes(&mut bytes)?;
        let installing = take_bytes(&mut bytes)?;
        let upto = u64_at(&take(&mut bytes, 8)?, 0);
        let purged = take_bytes(&mut bytes)?.map(|id| (upto, id));
        let present = take(&mut bytes, 1)?[0] == 1;
        let range = take(&mut bytes, 16)?;
        let entries = present.then(|| (u64_at(&range, 0), u64_at(&range, 8)));
        let state = Self { health, dropped, vote, committed, created, installing, purged, entries };
        bytes.is_empty().then_some(state)
    }
}

/// Length plus one, or 0 for nothing; then the bytes.
fn put_bytes(into: &mut Vec<u8>, field: Option<&Bytes>) {
    let mark = field.map_or(0, |bytes| {
        u32::try_from(bytes.len()).expect("submit refuses records over 1 GiB") + 1
    });
    into.extend(mark.to_le_bytes());
    into.extend_from_slice(field.map_or(&[], |bytes| bytes));
}

fn take(bytes: &mut Bytes, count: usize) -> Option<Bytes> {
    (bytes.len() >= count).then(|| bytes.split_to(count))
}

/// The field, or that there is none; the outer `None`: the bytes end too early.
#[expect(clippy::option_option, reason = "the outer one is damage, the inner one is the value")]
fn take_bytes(bytes: &mut Bytes) -> Option<Option<Bytes>> {
    let mark = u32_at(&take(bytes, 4)?, 0);
    let Some(length) = mark.checked_sub(1) else { return Some(None) };
    let field = take(bytes, usize::try_from(length).ok()?)?;
    // copied: a vote must not keep the batch that it was read with in memory
    Some(Some(Bytes::copy_from_slice(&field)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: BatchHeader = BatchHeader {
        log_id: 0x1122_3344_5566_7788,
        generation: 5,
        lsn: 9,
        synced: Position { generation: 4, offset: 1024 },
        oldest: 3,
        body_bytes: 51,
        records: 1,
    };

    #[test]
    fn bytes_of_format_1() {
        let bytes = HEADER.encode();
        assert_eq!(
            hex(&bytes),
            "61736877616c0100887766554433221105000000000000000900000000000000\
             0400000000000000000400000000000003000000000000003300000001000000\
             0000000098f788b2"
        );
        assert_eq!(BatchHeader::decode(&bytes), Ok(HEADER));
        let record =
            RecordHeader { kind: Kind::Entry, group: RangeId(7), lsn: 9, index: 12, term: 2 };
        let mut bytes = record.encode(seed(5), b"abc").to_vec();
        bytes.extend(b"abc");
        assert_eq!(
            hex(&bytes),
            "ca6976a903000000010000000000000007000000000000000900000000000000\
             0c000000000000000200000000000000616263"
        );
        assert_eq!(RecordHeader::decode(seed(5), &bytes), Some((Ok(record), 51)));
        assert_eq!(RecordHeader::decode(seed(6), &bytes), None, "another generation");
    }

    #[test]
    fn state_bytes_of_format_1() {
        let state = StateBody {
            health: GroupHealth::TornTail,
            vote: Some(Bytes::from_static(b"v")),
            purged: Some((8, Bytes::from_static(b"p"))),
            entries: Some((9, 12)),
            ..StateBody::default()
        };
        let bytes = state.encode();
        assert_eq!(
            hex(&bytes),
            "0100020000007600000000000000000000000008000000000000000200000070\
             0109000000000000000c00000000000000"
        );
        assert_eq!(StateBody::decode(bytes.clone()), Some(state));
        assert_eq!(StateBody::decode(bytes.slice(..bytes.len() - 1)), None);
    }

    #[test]
    fn a_flipped_bit_anywhere_in_a_header_is_seen() {
        let sound = HEADER.encode();
        for bit in 0..BATCH_HEADER_BYTES * 8 {
            let mut bytes = sound;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(BatchHeader::decode(&bytes), Err(NoHeader::Invalid), "bit {bit}");
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
