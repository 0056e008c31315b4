//! Checkpoints: the index and the ends of all segments at one moment, so that recovery reads only what came later.

use crate::format::{get, get_u32, get_u64, put};
use crate::index::Index;
use crate::store::Core;
use crate::{ShardKey, ShardMeta, StoreError};
use ashlar_host::Disk;
use ashlar_types::{BucketId, DiskId, Epoch, ExtentId, PgId, Profile, Slot};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

/// Where checkpoints are.
pub(crate) const CHECKPOINT_DIR: &str = "idx";

const MAGIC: &[u8; 8] = b"ASHCKPT1";
const HEAD_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 24;
const ENTRY_BYTES: usize = 112;

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
}

/// A checkpoint of now, as bytes. Only the committer may take one, between two batches.
pub(crate) fn capture(core: &Core) -> Vec<u8> {
    let segments = core.segments.lock().unwrap_or_else(PoisonError::into_inner);
    let covered = segments.iter().map(|(&generation, segment)| {
        let taken = segment.taken();
        let scan_from = taken.open.first().copied().unwrap_or(taken.end);
        (generation, Covered { scan_from, end: taken.end })
    });
    let covered: BTreeMap<u64, Covered> = covered.collect();
    drop(segments);
    let index = core.index.read().unwrap_or_else(PoisonError::into_inner);
    encode(core.disk, core.acked(), &covered, &index)
}

fn encode(
    disk: DiskId,
    sequence: u64,
    segments: &BTreeMap<u64, Covered>,
    index: &Index,
) -> Vec<u8> {
    let rows = index.values().map(|entry| Row {
        meta: entry.meta,
        generation: entry.segment.header.generation,
        offset: entry.offset,
        reserved: entry.reserved,
        sequence: entry.sequence,
        crc: entry.crc,
    });
    encode_rows(disk, sequence, segments, rows)
}

pub(crate) fn encode_rows(
    disk: DiskId,
    sequence: u64,
    segments: &BTreeMap<u64, Covered>,
    rows: impl ExactSizeIterator<Item = Row>,
) -> Vec<u8> {
    let length = HEAD_BYTES + SEGMENT_BYTES * segments.len() + ENTRY_BYTES * rows.len() + 4;
    let mut bytes = vec![0; length];
    put(&mut bytes, 0, *MAGIC);
    put(&mut bytes, 8, crate::format::FORMAT.to_le_bytes());
    put(&mut bytes, 16, disk.0.to_le_bytes());
    put(&mut bytes, 32, sequence.to_le_bytes());
    put(&mut bytes, 40, (segments.len() as u64).to_le_bytes());
    put(&mut bytes, 48, (rows.len() as u64).to_le_bytes());
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
    let segments = usize::try_from(get_u64(bytes, 40)).ok()?.checked_mul(SEGMENT_BYTES)?;
    let rows = usize::try_from(get_u64(bytes, 48)).ok()?.checked_mul(ENTRY_BYTES)?;
    if !is_whole || !is_ours || segments.checked_add(rows)?.checked_add(HEAD_BYTES)? != body {
        return None;
    }
    let (segments, rows) = bytes[HEAD_BYTES..body].split_at(segments);
    let covered = segments.chunks_exact(SEGMENT_BYTES).map(|bytes| {
        (get_u64(bytes, 0), Covered { scan_from: get_u64(bytes, 8), end: get_u64(bytes, 16) })
    });
    Some(Checkpoint {
        sequence: get_u64(bytes, 32),
        segments: covered.collect(),
        rows: rows.chunks_exact(ENTRY_BYTES).map(decode_row).collect(),
    })
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
    disk.replace(&next, &image).map_err(|e| StoreError::io("write", &next, &e))?;
    drop(image);
    superblock.update(|now| {
        now.checkpoint = before + 1;
        now.clean = clean;
    })?;
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
