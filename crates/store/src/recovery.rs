//! Rebuilding the index: checkpoint, then every record of the segments behind it (D9).
//!
//! A record whose header is whole but whose content is not: behind the last sequence that is known to have been
//! acknowledged it is a torn tail, and nobody was promised it; before, it is damage: it stays in the index, so that a
//! reader is told `Corrupt` and not `NotFound`, and repair sees it. Where no header is found the scan goes on behind it:
//! a lost header must not hide what follows. What a scan found is synced before it counts: it may have been read from
//! the page cache only, and a retry must not be promised what a power cut would take.

use crate::buffer::FramePool;
use crate::checkpoint::{self, Checkpoint};
use crate::format::{
    Class, HEADER_BYTES, Kind, PAGE, RECORD_ALIGN, RecordHeader, Superblock, Trailer, large_span,
    round_up, size, trailer_bytes, trailer_offset,
};
use crate::index::{Entry, Index};
use crate::segment::{SEGMENT_DIR, Segment};
use crate::store::StoreConfig;
use crate::{ShardKey, StoreError};
use ashlar_host::Disk;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Large segments are searched for lost headers in pieces of this size.
const SEARCH_BYTES: u64 = 1 << 20;

/// What an open found beside the shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovered {
    /// The disk had been closed cleanly: nothing was scanned.
    pub clean: bool,
    /// Records that were read from segments.
    pub records: u64,
    /// Records that were written but never acknowledged, and are not whole.
    pub torn: u64,
    /// Acknowledged records that are damaged: for repair.
    pub damaged: u64,
}

/// The state of a disk after recovery.
pub(crate) struct State {
    pub(crate) index: Index,
    pub(crate) segments: BTreeMap<u64, Arc<Segment>>,
    pub(crate) found: Recovered,
}

/// A record as the scan met it.
struct Found {
    kind: Kind,
    entry: Entry,
    is_whole: bool,
}

struct Scan<'a> {
    pool: &'a Arc<FramePool>,
    records: Vec<Found>,
    acked: u64,
    abandoned: u64,
}

/// Reads a disk.
pub(crate) fn recover(
    disk: &(dyn Disk + 'static),
    config: &StoreConfig,
    superblock: &Superblock,
    pool: &Arc<FramePool>,
) -> Result<State, StoreError> {
    let checkpoint = (superblock.checkpoint > 0)
        .then(|| checkpoint::load(disk, &config.dir, superblock.checkpoint, superblock.disk))
        .flatten();
    let is_clean = superblock.clean && checkpoint.is_some();
    let checkpoint = checkpoint.unwrap_or_default();
    let segments = open_segments(disk, config, superblock, &checkpoint)?;
    let mut scan = Scan { pool, records: Vec::new(), acked: checkpoint.sequence, abandoned: 0 };
    for segment in segments.values() {
        let covered = checkpoint.segments.get(&segment.header.generation);
        match covered {
            Some(_) if is_clean => {}
            Some(covered) => scan.segment(segment, covered.scan_from)?,
            None => scan.segment(segment, PAGE)?,
        }
    }
    let mut found = Recovered { clean: is_clean, ..Recovered::default() };
    let index = build(&checkpoint, &segments, scan, &mut found);
    Ok(State { index, segments, found })
}

fn open_segments(
    disk: &(dyn Disk + 'static),
    config: &StoreConfig,
    superblock: &Superblock,
    checkpoint: &Checkpoint,
) -> Result<BTreeMap<u64, Arc<Segment>>, StoreError> {
    let dir = config.dir.join(SEGMENT_DIR);
    let mut segments = BTreeMap::new();
    let paths: Vec<PathBuf> = disk.list(&dir).map_err(|e| StoreError::io("list", &dir, &e))?;
    for path in paths {
        let Some(header) = Segment::read_header(disk, &path, superblock.disk)? else {
            tracing::warn!(path = %path.display(), "not a segment of this disk: passed over");
            continue;
        };
        let covered = checkpoint.segments.get(&header.generation);
        let end = covered.map_or(PAGE, |covered| covered.end);
        let segment = Segment::open(disk, config, path, header, end)?;
        segments.insert(header.generation, Arc::new(segment));
    }
    Ok(segments)
}

/// The newest record of each key, without what was deleted.
fn build(
    checkpoint: &Checkpoint,
    segments: &BTreeMap<u64, Arc<Segment>>,
    scan: Scan<'_>,
    found: &mut Recovered,
) -> Index {
    let mut index = Index::new();
    for row in &checkpoint.rows {
        let Some(segment) = segments.get(&row.generation) else {
            tracing::error!(extent = %row.meta.key.extent, "the segment of a shard is gone");
            found.damaged += 1;
            continue;
        };
        let (segment, meta) = (segment.clone(), row.meta);
        let (offset, reserved, sequence, crc) = (row.offset, row.reserved, row.sequence, row.crc);
        index.insert(meta.key, Entry { meta, segment, offset, reserved, sequence, crc });
    }
    let mut deleted: BTreeMap<ShardKey, u64> = BTreeMap::new();
    for Found { kind, entry, is_whole } in scan.records {
        found.records += 1;
        if entry.sequence <= checkpoint.sequence {
            continue;
        }
        if !is_whole && entry.sequence > scan.acked {
            found.torn += 1;
            continue;
        }
        found.damaged += u64::from(!is_whole);
        let (key, sequence) = (entry.meta.key, entry.sequence);
        let is_older = |known: Option<u64>| known.is_some_and(|known| known >= sequence);
        if is_older(index.get(&key).map(|entry| entry.sequence))
            || is_older(deleted.get(&key).copied())
        {
            continue;
        }
        if kind == Kind::Tombstone {
            deleted.insert(key, sequence);
            index.remove(&key);
        } else {
            index.insert(key, entry);
        }
    }
    if found.damaged > 0 || found.torn > 0 || scan.abandoned > 0 {
        let (damaged, torn, abandoned) = (found.damaged, found.torn, scan.abandoned);
        tracing::warn!(
            damaged,
            torn,
            abandoned,
            "the scan of a disk met records that are not whole"
        );
    }
    index
}

impl Scan<'_> {
    fn segment(&mut self, segment: &Arc<Segment>, from: u64) -> Result<(), StoreError> {
        let scanned = match segment.header.class {
            Class::Small => self.small(segment, from),
            Class::Large => self.large(segment, from),
        };
        scanned
            .and_then(|end| {
                let mut taken = segment.taken();
                taken.end = taken.end.max(end);
                drop(taken);
                segment.file.sync_data()
            })
            .map_err(|e| StoreError::io("read", &segment.path, &e))
    }

    /// The end of the last record.
    fn small(&mut self, segment: &Arc<Segment>, from: u64) -> io::Result<u64> {
        let length = segment.file.len()?.max(from);
        let mut bytes = vec![0; size(length - from)];
        segment.file.read_exact_at(&mut bytes, from)?;
        let (mut at, mut end) = (0, from);
        while at + HEADER_BYTES <= bytes.len() {
            let offset = from + at as u64;
            let header = RecordHeader::decode(&bytes[at..], segment.seed, offset);
            let Some(header) = header.filter(|header| header.span >= HEADER_BYTES as u64) else {
                at += size(RECORD_ALIGN);
                continue;
            };
            let content = at + HEADER_BYTES..at + HEADER_BYTES + size(header.meta.length);
            let is_whole = bytes.get(content).is_some_and(|b| crc32c::crc32c(b) == header.crc);
            self.acked = self.acked.max(header.acked);
            let entry = entry(segment, &header, header.meta.length, header.sequence, header.crc);
            self.records.push(Found { kind: header.kind, entry, is_whole });
            // behind content that is not whole the next header may be anywhere
            at += if is_whole { size(header.span) } else { size(RECORD_ALIGN) };
            end = from + at as u64;
        }
        Ok(round_up(end, PAGE))
    }

    /// The end of the last reservation.
    fn large(&mut self, segment: &Arc<Segment>, from: u64) -> io::Result<u64> {
        let length = segment.file.len()?;
        let (mut at, mut end) = (from, from);
        while at + PAGE <= length {
            let mut bytes = [0; HEADER_BYTES];
            segment.file.read_exact_at(&mut bytes, at)?;
            match RecordHeader::decode(&bytes, segment.seed, at) {
                Some(header) if header.span == large_span(header.meta.length) => {
                    self.reservation(segment, &header)?;
                    at += header.span;
                    end = at;
                }
                Some(_) | None => at = next_header(segment, at + PAGE, length)?,
            }
        }
        Ok(end)
    }

    fn reservation(&mut self, segment: &Arc<Segment>, header: &RecordHeader) -> io::Result<()> {
        self.acked = self.acked.max(header.acked);
        if header.kind == Kind::Pad {
            return Ok(());
        }
        let reserved = header.meta.length;
        let mut bytes = vec![0; size(trailer_bytes(reserved))];
        match segment.file.read_exact_at(&mut bytes, trailer_offset(header.offset, reserved)) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            _ => {}
        }
        let Some(trailer) = Trailer::decode(&bytes, segment.seed, header) else {
            self.abandoned += 1;
            return Ok(());
        };
        self.acked = self.acked.max(trailer.acked);
        let entry = entry(segment, header, trailer.length, trailer.sequence, trailer.crc);
        // what was acknowledged was synced before; the scrub looks at it. Only the tail may be torn.
        let is_whole = trailer.sequence <= self.acked || entry.verify(self.pool).is_ok();
        self.records.push(Found { kind: header.kind, entry, is_whole });
        Ok(())
    }
}

/// The next place at or behind `from` at which a header is.
fn next_header(segment: &Segment, from: u64, length: u64) -> io::Result<u64> {
    let mut at = from;
    let mut bytes = vec![0; size(SEARCH_BYTES)];
    while at < length {
        let step = (length - at).min(SEARCH_BYTES);
        segment.file.read_exact_at(&mut bytes[..size(step)], at)?;
        let pages = bytes[..size(step)].chunks_exact(size(PAGE));
        for (offset, page) in (at..).step_by(size(PAGE)).zip(pages) {
            if RecordHeader::decode(page, segment.seed, offset).is_some() {
                return Ok(offset);
            }
        }
        at += SEARCH_BYTES;
    }
    Ok(length)
}

fn entry(
    segment: &Arc<Segment>,
    header: &RecordHeader,
    length: u64,
    sequence: u64,
    crc: u32,
) -> Entry {
    let mut meta = header.meta;
    meta.length = length;
    let (segment, offset, reserved) = (segment.clone(), header.offset, header.meta.length);
    Entry { meta, segment, offset, reserved, sequence, crc }
}
