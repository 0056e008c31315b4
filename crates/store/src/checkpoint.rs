//! Checkpoints: the index and the ends of all segments at one moment, so that recovery reads only what came later.

use crate::format::{get, get_u32, get_u64, put};
use crate::graves::{DeadCopy, Graves, Tombstone};
use crate::store::Core;
use crate::{ShardKey, ShardMeta, StoreError};
use ashlar_host::Disk;
use ashlar_types::{BucketId, DiskId, Epoch, ExtentId, PgId, Profile, Slot};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

/// Where checkpoints are.
pub(crate) const CHECKPOINT_DIR: &str = "idx";

const MAGIC: &[u8; 8] = b"ASHCKPT2";
const HEAD_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 24;
const ENTRY_BYTES: usize = 112;
const DEAD_BYTES: usize = 48;
const DEAD_COPY: u8 = 1;
const DEAD_TOMBSTONE: u8 = 2;

/// How far a segment is covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Covered {
    /// Everything before this is in the checkpoint.
    pub(crate) scan_from: u64,
    /// Where the next record goes, if nothing came after the checkpoint.
    pub(crate) end: u64,
}

/// An entry as it is stored: its segment by generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) meta: ShardMeta,
    pub(crate) generation: u64,
    pub(crate) offset: u64,
    pub(crate) reserved: u64,
    pub(crate) sequence: u64,
    pub(crate) crc: u32,
}

/// What a checkpoint says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Checkpoint {
    /// Records up to this sequence are reflected in it.
    pub(crate) sequence: u64,
    pub(crate) segments: BTreeMap<u64, Covered>,
    pub(crate) rows: Vec<Row>,
    /// Records that lie on the disk and count no more.
    pub(crate) copies: Vec<DeadCopy>,
    /// The tombstones over these.
    pub(crate) tombstones: Vec<(ShardKey, Tombstone)>,
}

/// A checkpoint of now, as bytes. Only the committer may take one, between two batches.
pub(crate) fn capture(core: &Core, graves: &Graves) -> Vec<u8> {
    let segments = core.segments.lock().unwrap_or_else(PoisonError::into_inner);
    let covered = segments.iter().map(|(&generation, segment)| {
        let taken = segment.taken();
        let scan_from = taken.open.first().copied().unwrap_or(taken.end);
        (generation, Covered { scan_from, end: taken.end })
    });
    let covered: BTreeMap<u64, Covered> = covered.collect();
    drop(segments);
    let index = core.index.read().unwrap_or_else(PoisonError::into_inner);
    let rows = index.values().map(|entry| Row {
        meta: entry.meta,
        generation: entry.segment.header.generation,
        offset: entry.offset,
        reserved: entry.reserved,
        sequence: entry.sequence,
        crc: entry.crc,
    });
    encode(core.disk, core.acked(), &covered, rows, graves)
}

fn encode(
    disk: DiskId,
    sequence: u64,
    segments: &BTreeMap<u64, Covered>,
    rows: impl ExactSizeIterator<Item = Row>,
    graves: &Graves,
) -> Vec<u8> {
    let tombstones: Vec<_> = graves.tombstones().collect();
    let dead = graves.copies().len() + tombstones.len();
    let length = HEAD_BYTES
        + SEGMENT_BYTES * segments.len()
        + ENTRY_BYTES * rows.len()
        + DEAD_BYTES * dead
        + 4;
    let mut bytes = vec![0; length];
    put(&mut bytes, 0, *MAGIC);
    put(&mut bytes, 8, crate::format::FORMAT.to_le_bytes());
    put(&mut bytes, 16, disk.0.to_le_bytes());
    put(&mut bytes, 32, sequence.to_le_bytes());
    put(&mut bytes, 40, (segments.len() as u64).to_le_bytes());
    put(&mut bytes, 48, (rows.len() as u64).to_le_bytes());
    put(&mut bytes, 56, (dead as u64).to_le_bytes());
    let mut at = HEAD_BYTES;
    for (generation, covered) in segments {
        put(&mut bytes, at, generation.to_le_bytes());
        put(&mut bytes, at + 8, covered.scan_from.to_le_bytes());
        put(&mut bytes, at + 16, covered.end.to_le_bytes());
        at += SEGMENT_BYTES;
    }
    for row in rows {
        encode_row(&mut bytes[at..at + ENTRY_BYTES], &row);
        at += ENTRY_BYTES;
    }
    let copies = graves.copies().map(|c| (c.key, DEAD_COPY, c.generation, c.offset, c.span));
    let tombstones =
        tombstones.into_iter().map(|(key, t)| (key, DEAD_TOMBSTONE, t.generation, t.sequence, 0));
    for (key, kind, generation, place, span) in copies.chain(tombstones) {
        put(&mut bytes, at, key.extent.to_bytes());
        put(&mut bytes, at + 16, [key.slot.0, kind]);
        put(&mut bytes, at + 24, generation.to_le_bytes());
        put(&mut bytes, at + 32, place.to_le_bytes());
        put(&mut bytes, at + 40, span.to_le_bytes());
        at += DEAD_BYTES;
    }
    let crc = crc32c::crc32c(&bytes[..at]);
    put(&mut bytes, at, crc.to_le_bytes());
    bytes
}

fn encode_row(bytes: &mut [u8], row: &Row) {
    let ShardMeta { key, profile, pg, pg_epoch, bucket, length, created_ms } = row.meta;
    put(bytes, 0, key.extent.to_bytes());
    put(bytes, 16, [key.slot.0, profile.data, profile.parity, 0]);
    put(bytes, 20, pg.0.to_le_bytes());
    put(bytes, 24, pg_epoch.0.to_le_bytes());
    put(bytes, 32, bucket.0.to_le_bytes());
    put(bytes, 40, length.to_le_bytes());
    put(bytes, 48, created_ms.to_le_bytes());
    put(bytes, 56, row.generation.to_le_bytes());
    put(bytes, 64, row.offset.to_le_bytes());
    put(bytes, 72, row.reserved.to_le_bytes());
    put(bytes, 80, row.sequence.to_le_bytes());
    put(bytes, 88, row.crc.to_le_bytes());
}

fn decode_row(bytes: &[u8]) -> Row {
    let [slot, data, parity, _] = get(bytes, 16);
    Row {
        meta: ShardMeta {
            key: ShardKey { extent: ExtentId::from_bytes(get(bytes, 0)), slot: Slot(slot) },
            profile: Profile { data, parity },
            pg: PgId(get_u32(bytes, 20)),
            pg_epoch: Epoch(get_u64(bytes, 24)),
            bucket: BucketId(get_u64(bytes, 32)),
            length: get_u64(bytes, 40),
            created_ms: get_u64(bytes, 48),
        },
        generation: get_u64(bytes, 56),
        offset: get_u64(bytes, 64),
        reserved: get_u64(bytes, 72),
        sequence: get_u64(bytes, 80),
        crc: get_u32(bytes, 88),
    }
}

/// The checkpoint in `bytes`; `None`: it is damaged, of another disk, or of another format.
pub(crate) fn decode(bytes: &[u8], disk: DiskId) -> Option<Checkpoint> {
    let body = bytes.len().checked_sub(4).filter(|&body| body >= HEAD_BYTES)?;
    let is_whole = get_u32(bytes, body) == crc32c::crc32c(&bytes[..body]);
    let is_ours = bytes[..8] == *MAGIC
        && get_u32(bytes, 8) == crate::format::FORMAT
        && u128::from_le_bytes(get(bytes, 16)) == disk.0;
    let length = |at, each| usize::try_from(get_u64(bytes, at)).ok()?.checked_mul(each);
    let segments = length(40, SEGMENT_BYTES)?;
    let rows = length(48, ENTRY_BYTES)?;
    let dead = length(56, DEAD_BYTES)?;
    let all = segments.checked_add(rows)?.checked_add(dead)?.checked_add(HEAD_BYTES)?;
    if !is_whole || !is_ours || all != body {
        return None;
    }
    let (segments, rest) = bytes[HEAD_BYTES..body].split_at(segments);
    let (rows, dead) = rest.split_at(rows);
    let covered = segments.chunks_exact(SEGMENT_BYTES).map(|bytes| {
        (get_u64(bytes, 0), Covered { scan_from: get_u64(bytes, 8), end: get_u64(bytes, 16) })
    });
    let mut checkpoint = Checkpoint {
        sequence: get_u64(bytes, 32),
        segments: covered.collect(),
        rows: rows.chunks_exact(ENTRY_BYTES).map(decode_row).collect(),
        ..Checkpoint::default()
    };
    for bytes in dead.chunks_exact(DEAD_BYTES) {
        let key = ShardKey { extent: ExtentId::from_bytes(get(bytes, 0)), slot: Slot(bytes[16]) };
        let (generation, place, span) =
            (get_u64(bytes, 24), get_u64(bytes, 32), get_u64(bytes, 40));
        match bytes[17] {
            DEAD_COPY => checkpoint.copies.push(DeadCopy { generation, key, offset: place, span }),
            DEAD_TOMBSTONE => {
                checkpoint.tombstones.push((key, Tombstone { sequence: place, generation }));
            }
            _ => return None,
        }
    }
    Some(checkpoint)
}

fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(CHECKPOINT_DIR).join(format!("ckpt-{number:016x}"))
}

/// Makes a checkpoint durable, then the superblock name it, then forgets the one before.
pub(crate) fn store(core: &Core, image: Vec<u8>, clean: bool) -> Result<(), StoreError> {
    let mut superblock = core.superblock.lock().unwrap_or_else(PoisonError::into_inner);
    let before = superblock.now().checkpoint;
    let next = path(&core.config.dir, before + 1);
    let disk = core.host.disk.as_ref();
    // one that took the last room would take it from deletions
    let reserve = core.config.reserve_bytes / 2;
    if core.disk_usage()?.free_bytes < reserve.saturating_add(image.len() as u64) {
        return Err(StoreError::Full);
    }
    let sequence = get_u64(&image, 32);
    disk.replace(&next, &image).map_err(|e| core.write_failed("write", &next, &e))?;
    drop(image);
    let updated = superblock.update(|now| {
        now.checkpoint = before + 1;
        now.clean = clean;
    });
    updated
        .inspect_err(|error| core.poison("change the superblock of", &core.config.dir, error))?;
    core.checkpointed.fetch_max(sequence, Ordering::Release);
    if before > 0 {
        // one that stays is garbage, and no more
        drop(disk.remove_file(&path(&core.config.dir, before)));
    }
    Ok(())
}

/// Reads the checkpoint that the superblock names.
pub(crate) fn load(
    disk: &(dyn Disk + 'static),
    dir: &Path,
    number: u64,
    owner: DiskId,
) -> Option<Checkpoint> {
    let found = disk.read(&path(dir, number)).ok().and_then(|bytes| decode(&bytes, owner));
    if found.is_none() {
        tracing::warn!(dir = %dir.display(), number, "the checkpoint is damaged: all segments are read");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_types::SessionId;

    fn key(counter: u64) -> ShardKey {
        ShardKey { extent: ExtentId { session: SessionId(1), counter }, slot: Slot(2) }
    }

    #[test]
    fn a_checkpoint_has_what_lives_and_what_lies_dead_and_a_damaged_one_is_none() {
        let row = Row {
            meta: ShardMeta { length: 5, created_ms: 6, ..ShardMeta::unknown(key(1)) },
            generation: 7,
            offset: 4096,
            reserved: 8,
            sequence: 9,
            crc: 10,
        };
        let copy = DeadCopy { generation: 7, key: key(2), offset: 8192, span: 128 };
        let tombstone = Tombstone { sequence: 11, generation: 12 };
        let mut graves = Graves::default();
        graves.add(copy);
        graves.add_unshown(11, key(2));
        graves.mark(key(2), tombstone);
        let covered = BTreeMap::from([(7, Covered { scan_from: 4096, end: 16_384 })]);
        let bytes = encode(DiskId(3), 13, &covered, [row].into_iter(), &graves);
        let expected = Checkpoint {
            sequence: 13,
            segments: covered,
            rows: vec![row],
            copies: vec![copy],
            tombstones: vec![(key(2), tombstone)],
        };
        assert_eq!(decode(&bytes, DiskId(3)), Some(expected));
        assert_eq!(decode(&bytes, DiskId(4)), None, "of another disk");
        for at in [0, 60, 100, bytes.len() - 1] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(decode(&damaged, DiskId(3)), None, "damaged at {at}");
        }
    }
}
