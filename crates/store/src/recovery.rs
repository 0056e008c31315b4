//! Rebuilding the index: checkpoint, then every record of the segments behind it (D9).
//!
//! A record whose header is whole but whose content is not: behind the last sequence that is known to have been
//! acknowledged it is a torn tail, and nobody was promised it (a tombstone says so before the disk serves, lest a later
//! scan takes it for damage); before, it is damage: it stays in the index, so that a
//! reader is told `Corrupt` and not `NotFound`, and repair sees it. Where no header is found the scan goes on behind it:
//! a lost header must not hide what follows. What a scan found is synced before it counts: it may have been read from
//! the page cache only, and a retry must not be promised what a power cut would take.

use crate::buffer::FramePool;
use crate::checkpoint::{self, Checkpoint};
use crate::format::{
    Class, HEADER_BYTES, Kind, PAGE, RECORD_ALIGN, RecordHeader, Superblock, Trailer, large_span,
    round_up, size, trailer_bytes, trailer_offset,
};
use crate::graves::{Graves, Tombstone};
use crate::index::{Entry, Index};
use crate::reclaim::Condemned;
use crate::segment::{SEGMENT_DIR, Segment};
use crate::store::StoreConfig;
use crate::{ShardKey, StoreError};
use ashlar_host::Disk;
use std::collections::{BTreeMap, BTreeSet};
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
    pub(crate) graves: Graves,
    /// What a cut kept from being punched.
    pub(crate) condemned: Vec<Condemned>,
    /// Keys of records that were never acknowledged and are not whole.
    pub(crate) torn: Vec<ShardKey>,
    /// Everything up to this sequence is known to have been durable.
    pub(crate) acked: u64,
    /// The highest number that anything on the disk has.
    pub(crate) highest: u64,
    /// Shards that are not whole.
    pub(crate) damaged: BTreeSet<ShardKey>,
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
    /// The highest number that was met.
    highest: u64,
    /// Reservations that never became shards.
    abandoned: Vec<(ShardKey, Condemned)>,
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
    let (records, abandoned) = (Vec::new(), Vec::new());
    let highest = segments.keys().next_back().copied().unwrap_or_default();
    let highest = highest.max(checkpoint.sequence);
    let mut scan = Scan { pool, records, acked: checkpoint.sequence, highest, abandoned };
    for segment in segments.values() {
        let covered = checkpoint.segments.get(&segment.header.generation);
        match covered {
            Some(_) if is_clean => {}
            Some(covered) => scan.segment(segment, covered.scan_from)?,
            None => scan.segment(segment, PAGE)?,
        }
    }
    Ok(build(&checkpoint, segments, scan, is_clean))
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

/// What becomes of the records of a disk, taken in their order.
struct Builder<'a> {
    segments: &'a BTreeMap<u64, Arc<Segment>>,
    index: Index,
    graves: Graves,
    condemned: Vec<Condemned>,
    /// Entries of the checkpoint whose segment is gone, by key: they must have been moved or deleted since.
    lost: BTreeMap<ShardKey, u64>,
    /// Entries that are not whole.
    damaged: BTreeSet<ShardKey>,
}

impl<'a> Builder<'a> {
    fn new(segments: &'a BTreeMap<u64, Arc<Segment>>, checkpoint: &Checkpoint) -> Self {
        let mut builder = Self {
            segments,
            index: Index::new(),
            graves: Graves::default(),
            condemned: Vec::new(),
            lost: BTreeMap::new(),
            damaged: BTreeSet::new(),
        };
        for row in &checkpoint.rows {
            let Some(segment) = segments.get(&row.generation) else {
                builder.lost.insert(row.meta.key, row.sequence);
                continue;
            };
            let (segment, meta) = (segment.clone(), row.meta);
            let (offset, reserved, sequence, crc) =
                (row.offset, row.reserved, row.sequence, row.crc);
            let entry = Entry { meta, segment, offset, reserved, sequence, crc };
            builder.index.insert(meta.key, entry);
        }
        let here = checkpoint.copies.iter().filter(|copy| segments.contains_key(&copy.generation));
        here.for_each(|copy| builder.graves.add(*copy));
        for &(key, tombstone) in &checkpoint.tombstones {
            builder.graves.mark(key, tombstone);
        }
        builder
    }

    /// The next record that the checkpoint does not show.
    fn take(&mut self, Found { kind, entry, is_whole }: Found) {
        let (key, sequence) = (entry.meta.key, entry.sequence);
        let known = self.index.get(&key).map(|known| known.sequence);
        let newest = known.max(self.lost.get(&key).copied());
        let deleted = self.graves.tombstone(key).map(|tombstone| tombstone.sequence);
        if kind == Kind::Tombstone {
            if newest < Some(sequence) {
                self.lost.remove(&key);
                self.damaged.remove(&key);
                let before = self.index.remove(&key);
                before.into_iter().for_each(|before| self.graves.add(before.dead_copy()));
            }
            let generation = entry.segment.header.generation;
            self.graves.mark(key, Tombstone { sequence, generation });
        } else if kind == Kind::Move && newest == Some(sequence) && deleted < newest {
            self.relocate(entry, is_whole);
        } else if newest.max(deleted) < Some(sequence) {
            self.show(entry, is_whole);
        } else {
            self.graves.add(entry.dead_copy());
        }
    }

    /// A record that the checkpoint may show, at another place or at this one.
    fn take_again(&mut self, found: Found) {
        let (key, sequence) = (found.entry.meta.key, found.entry.sequence);
        match found.kind {
            Kind::Move => self.take(found),
            Kind::Tombstone => {
                let known = self.graves.tombstone(key);
                if known.is_some_and(|known| known.sequence == sequence) {
                    let generation = found.entry.segment.header.generation;
                    self.graves.mark(key, Tombstone { sequence, generation });
                }
            }
            Kind::Shard | Kind::Pad => {}
        }
    }

    /// The same record at a later place. One that a cut tore is none: then it is still where it was.
    fn relocate(&mut self, entry: Entry, is_whole: bool) {
        let key = entry.meta.key;
        let is_known = self.index.contains_key(&key) && !self.damaged.contains(&key);
        if is_whole || !is_known {
            self.show(entry, is_whole);
        } else {
            self.graves.add(entry.dead_copy());
        }
    }

    fn show(&mut self, entry: Entry, is_whole: bool) {
        let key = entry.meta.key;
        self.lost.remove(&key);
        if is_whole {
            self.damaged.remove(&key);
        } else {
            self.damaged.insert(key);
        }
        self.condemned.extend(entry.unfilled(0));
        let before = self.index.insert(key, entry);
        before.into_iter().for_each(|before| self.graves.add(before.dead_copy()));
    }

    /// What a cut left to be punched, and who lives where.
    fn finish(&mut self) {
        for copy in self.graves.copies() {
            let segment = self.segments.get(&copy.generation).expect("a copy lies in a segment");
            if segment.header.class == Class::Large {
                let (from, to, segment) = (copy.offset, copy.offset + copy.span, segment.clone());
                let copy = Some(*copy);
                self.condemned.push(Condemned { segment, from, to, copy, era: 0 });
            }
        }
        for entry in self.index.values() {
            entry.segment.gain(entry.span());
        }
        for key in self.lost.keys() {
            tracing::error!(extent = %key.extent, "the segment of a shard is gone");
        }
    }
}

/// The newest record of each key, without what was deleted.
fn build(
    checkpoint: &Checkpoint,
    segments: BTreeMap<u64, Arc<Segment>>,
    mut scan: Scan<'_>,
    is_clean: bool,
) -> State {
    let mut found = Recovered { clean: is_clean, ..Recovered::default() };
    let mut builder = Builder::new(&segments, checkpoint);
    let abandoned = scan.abandoned.len();
    for (key, condemned) in scan.abandoned {
        // one that the checkpoint shows has lost its trailer since: that is damage, and not ours to punch
        let shown =
            builder.index.get(&key).map(|entry| (entry.segment.header.generation, entry.offset));
        if shown != Some((condemned.segment.header.generation, condemned.from)) {
            builder.condemned.push(condemned);
        }
    }
    scan.records
        .sort_by_key(|record| (record.entry.sequence, record.entry.segment.header.generation));
    let (mut torn, acked, highest) = (Vec::new(), scan.acked, scan.highest);
    for record in scan.records {
        found.records += 1;
        if record.entry.sequence <= checkpoint.sequence {
            builder.take_again(record);
            continue;
        }
        if !record.is_whole && record.entry.sequence > acked {
            found.torn += 1;
            torn.push(record.entry.meta.key);
            // nobody was promised it; a later scan must not take it for what was promised
            builder.graves.add(record.entry.dead_copy());
            continue;
        }
        builder.take(record);
    }
    builder.finish();
    let Builder { index, graves, condemned, lost, damaged, .. } = builder;
    found.damaged = (damaged.len() + lost.len()) as u64;
    if found.damaged > 0 || found.torn > 0 || abandoned > 0 {
        let Recovered { damaged, torn, .. } = found;
        tracing::warn!(
            damaged,
            torn,
            abandoned,
            "the scan of a disk met records that are not whole"
        );
    }
    State { index, segments, graves, condemned, torn, acked, highest, damaged, found }
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
            self.highest = self.highest.max(header.sequence);
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
        self.highest = self.highest.max(header.sequence);
        let (from, to) = (header.offset, header.offset + header.span);
        let abandoned = Condemned { segment: segment.clone(), from, to, copy: None, era: 0 };
        let abandoned = (header.meta.key, abandoned);
        if header.kind == Kind::Pad {
            self.abandoned.push(abandoned);
            return Ok(());
        }
        let reserved = header.meta.length;
        let mut bytes = vec![0; size(trailer_bytes(reserved))];
        match segment.file.read_exact_at(&mut bytes, trailer_offset(header.offset, reserved)) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            _ => {}
        }
        let Some(trailer) = Trailer::decode(&bytes, segment.seed, header) else {
            self.abandoned.push(abandoned);
            return Ok(());
        };
        self.acked = self.acked.max(trailer.acked);
        self.highest = self.highest.max(trailer.sequence);
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
