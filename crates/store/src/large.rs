//! Space in large segments: given out in order, each reservation's header written before the next one is given out.

use crate::format::{Class, HEADER_BYTES, Kind, PAGE, RecordHeader, SegmentHeader, large_span};
use crate::segment::Segment;
use crate::store::Core;
use crate::{ShardMeta, StoreError};
use std::sync::{Arc, PoisonError};

/// Large segments are sized in steps of this.
const SEGMENT_STEP: u64 = 1 << 20;

/// Room for one large shard.
#[derive(Debug)]
pub(crate) struct Reservation {
    pub(crate) segment: Arc<Segment>,
    pub(crate) header: RecordHeader,
}

/// Gives out space of large segments.
#[derive(Debug, Default)]
pub(crate) struct LargeAllocator {
    /// The segment that is being filled.
    pub(crate) active: Option<Arc<Segment>>,
}

impl Core {
    /// Takes room for a shard of at most `meta.length` bytes. Blocks.
    pub(crate) fn reserve(&self, meta: ShardMeta) -> Result<Reservation, StoreError> {
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
            self.poison("write", &segment, &error);
            return Err(StoreError::io("write", &segment.path, &error));
        }
        let mut taken = segment.taken();
        taken.open.insert(offset);
        taken.end = offset + span;
        drop(taken);
        Ok(Reservation { segment, header })
    }

    fn new_large_segment(&self, span: u64) -> Result<Arc<Segment>, StoreError> {
        let usage = self.disk_usage()?;
        let spare = usage.free_bytes.saturating_sub(self.config.reserve_bytes);
        let wanted = self.config.large_segment_bytes.min(spare / SEGMENT_STEP * SEGMENT_STEP);
        let bytes = wanted.max(PAGE + span);
        if bytes > spare {
            return Err(StoreError::Full);
        }
        self.new_segment(Class::Large, bytes)
    }

    /// Makes a segment and enters it.
    pub(crate) fn new_segment(&self, class: Class, bytes: u64) -> Result<Arc<Segment>, StoreError> {
        let header =
            SegmentHeader { class, disk: self.disk, generation: self.next_number(), bytes };
        let segment = Arc::new(Segment::create(self.host.disk.as_ref(), &self.config, header)?);
        let mut segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        segments.insert(header.generation, segment.clone());
        Ok(segment)
    }
}

impl Reservation {
    /// Says on the disk that the room is given up. It is advice to recovery; nothing depends on it. Blocks.
    pub(crate) fn write_pad(&self) {
        let header = RecordHeader { kind: Kind::Pad, ..self.header };
        let page = header_page(&header, &self.segment);
        if let Err(error) = self.segment.file.write_at(&page, header.offset) {
            tracing::warn!(segment = ?self.segment, %error, "a reservation could not be marked as given up");
        }
    }

    /// The room counts no longer as being written.
    pub(crate) fn settle(&self) {
        self.segment.taken().open.remove(&self.header.offset);
    }
}

fn header_page(header: &RecordHeader, segment: &Segment) -> Vec<u8> {
    let mut page = vec![0; 4096];
    page[..HEADER_BYTES].copy_from_slice(&header.encode(segment.seed));
    page
}
