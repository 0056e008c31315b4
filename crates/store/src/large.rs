//! Space in large segments: given out in order, each reservation's header written before the next one is given out.

use crate::format::{Class, HEADER_BYTES, Kind, PAGE, RecordHeader, SegmentHeader, large_span};
use crate::reclaim::Condemned;
use crate::segment::Segment;
use crate::store::Core;
use crate::{ShardMeta, StoreError};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

/// Large segments are sized in steps of this.
const SEGMENT_STEP: u64 = 1 << 20;

/// Room for one large shard. When the last holder drops it before it was settled, the room is given up: a thread that
/// still writes into it is a holder.
pub(crate) struct Reservation {
    core: Arc<Core>,
    pub(crate) segment: Arc<Segment>,
    pub(crate) header: RecordHeader,
    is_settled: AtomicBool,
}

/// Gives out space of large segments.
#[derive(Debug, Default)]
pub(crate) struct LargeAllocator {
    /// The segment that is being filled.
    pub(crate) active: Option<Arc<Segment>>,
}

impl Core {
    /// Takes room for a shard of at most `meta.length` bytes. Blocks.
    pub(crate) fn reserve(self: &Arc<Self>, meta: ShardMeta) -> Result<Reservation, StoreError> {
        let span = large_span(meta.length);
        let mut allocator = self.allocator.lock().unwrap_or_else(PoisonError::into_inner);
        let segment = match allocator.active.take().filter(|segment| segment.room() >= span) {
            Some(segment) => segment,
            None => self.new_large_segment(span)?,
        };
        allocator.active = Some(segment.clone());
        let offset = segment.taken().end;
        let header = RecordHeader {
            kind: Kind::Shard,
            meta,
            generation: segment.header.generation,
            sequence: self.next_number(),
            offset,
            span,
            acked: self.acked(),
            crc: 0,
        };
        if let Err(error) = segment.file.write_at(&header_page(&header, &segment), offset) {
            self.poison("write", &segment.path, &error);
            return Err(StoreError::io("write", &segment.path, &error));
        }
        let mut taken = segment.taken();
        taken.open.insert(offset);
        taken.end = offset + span;
        drop(taken);
        self.reserved_room.store(segment.room(), Ordering::Relaxed);
        let (core, is_settled) = (self.clone(), AtomicBool::new(false));
        Ok(Reservation { core, segment, header, is_settled })
    }

    fn new_large_segment(&self, span: u64) -> Result<Arc<Segment>, StoreError> {
        let spare = self.spare_bytes()?;
        let spare = if spare < PAGE + span {
            self.remove_recycled()?;
            self.spare_bytes()?
        } else {
            spare
        };
        let wanted = self.config.large_segment_bytes.min(spare / SEGMENT_STEP * SEGMENT_STEP);
        let bytes = wanted.max(PAGE + span);
        if bytes > spare {
            return Err(StoreError::Full);
        }
        self.new_segment(Class::Large, bytes)
    }

    /// What the file system has beyond the reserve.
    fn spare_bytes(&self) -> Result<u64, StoreError> {
        Ok(self.disk_usage()?.free_bytes.saturating_sub(self.config.reserve_bytes))
    }

    /// Makes a segment and enters it.
    pub(crate) fn new_segment(&self, class: Class, bytes: u64) -> Result<Arc<Segment>, StoreError> {
        let header =
            SegmentHeader { class, disk: self.disk, generation: self.next_number(), bytes };
        let recycled = match class {
            Class::Small => self.recycled.lock().unwrap_or_else(PoisonError::into_inner).pop(),
            Class::Large => None,
        };
        let disk = self.host.disk.as_ref();
        let recycled = recycled.as_ref().map(|recycled| recycled.path.as_path());
        let made = Segment::create(disk, &self.config, header, recycled);
        let segment = Arc::new(made.inspect_err(|error| self.segment_failed(error))?);
        let mut segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        segments.insert(header.generation, segment.clone());
        Ok(segment)
    }
}

impl Core {
    fn segment_failed(&self, error: &StoreError) {
        if *error != StoreError::Full {
            self.poison("create a segment in", &self.config.dir, error);
        }
    }
}

impl Reservation {
    /// The shard is published: the room is its own.
    pub(crate) fn settle(&self) {
        self.is_settled.store(true, Ordering::Relaxed);
        self.segment.taken().open.remove(&self.header.offset);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.is_settled.load(Ordering::Relaxed) {
            return;
        }
        let (from, segment) = (self.header.offset, self.segment.clone());
        // nobody reads what was never published
        let condemned =
            Condemned { to: from + self.header.span, segment, from, copy: None, era: 0 };
        self.core.given_up.lock().unwrap_or_else(PoisonError::into_inner).push(condemned);
        self.segment.taken().open.remove(&from);
        self.core.wake();
    }
}

fn header_page(header: &RecordHeader, segment: &Segment) -> Vec<u8> {
    let mut page = vec![0; 4096];
    page[..HEADER_BYTES].copy_from_slice(&header.encode(segment.seed));
    page
}
