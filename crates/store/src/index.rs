//! Which shards a disk has, and where; and reading one, verified.

use crate::buffer::{FRAME_BYTES, FramePool};
use crate::format::{
    Class, HEADER_BYTES, PAGE, TRAILER_HEAD_BYTES, blocks, get_u32, large_span, round_up, size,
    small_span, trailer_offset,
};
use crate::graves::DeadCopy;
use crate::reclaim::Condemned;
use crate::segment::Segment;
use crate::{ShardKey, ShardMeta, StoreError};
use ashlar_types::BLOCK_BYTES;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Only what is durable is in here.
pub(crate) type Index = BTreeMap<ShardKey, Entry>;

/// Where a shard is.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) meta: ShardMeta,
    pub(crate) segment: Arc<Segment>,
    /// Of its record header.
    pub(crate) offset: u64,
    /// The length for which its record was laid out.
    pub(crate) reserved: u64,
    /// The newest one of a key holds.
    pub(crate) sequence: u64,
    /// CRC-32C of the whole content.
    pub(crate) crc: u32,
}

impl Entry {
    /// All of its room.
    pub(crate) fn span(&self) -> u64 {
        match self.segment.header.class {
            Class::Small => small_span(self.meta.length),
            Class::Large => large_span(self.reserved),
        }
    }

    /// Its record as one that counts no more.
    pub(crate) fn dead_copy(&self) -> DeadCopy {
        let generation = self.segment.header.generation;
        DeadCopy { generation, key: self.meta.key, offset: self.offset, span: self.span() }
    }

    /// The room between its content and its trailer: it was reserved and not filled.
    pub(crate) fn unfilled(&self, era: u64) -> Option<Condemned> {
        let from = self.offset + PAGE + round_up(self.meta.length, PAGE);
        let to = trailer_offset(self.offset, self.reserved);
        let is_short = self.segment.header.class == Class::Large && from < to;
        let segment = self.segment.clone();
        is_short.then_some(Condemned { segment, from, to, copy: None, era })
    }

    /// Reads a part; every block that it touches is verified first (D5). Blocks.
    pub(crate) fn read(
        &self,
        pool: &Arc<FramePool>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, StoreError> {
        let end = offset.checked_add(length).filter(|&end| end <= self.meta.length);
        let end = end.ok_or(StoreError::BadRange { length: self.meta.length })?;
        if length == 0 {
            return Ok(Bytes::new());
        }
        match self.segment.header.class {
            Class::Small => {
                let whole = self.read_small()?;
                Ok(whole.slice(size(offset)..size(end)))
            }
            Class::Large => {
                let from = offset / BLOCK;
                let covered = self.read_blocks(pool, from, end.div_ceil(BLOCK))?;
                let skip = size(offset - from * BLOCK);
                Ok(covered.slice(skip..skip + size(length)))
            }
        }
    }

    /// Verifies all of it. Blocks.
    pub(crate) fn verify(&self, pool: &Arc<FramePool>) -> Result<(), StoreError> {
        if self.segment.header.class == Class::Small {
            return self.read_small().map(drop);
        }
        let step = FRAME_BYTES as u64 / BLOCK;
        let (mut from, count) = (0, blocks(self.meta.length));
        while from < count {
            let to = (from + step).min(count);
            self.read_blocks(pool, from, to)?;
            from = to;
        }
        Ok(())
    }

    /// Verifies the blocks `from..to` of a large shard. Blocks.
    pub(crate) fn verify_blocks(
        &self,
        pool: &Arc<FramePool>,
        from: u64,
        to: u64,
    ) -> Result<(), StoreError> {
        self.read_blocks(pool, from, to).map(drop)
    }

    /// The content of a small shard as it lies there: a damaged one is moved as it is, and stays damaged. Blocks.
    pub(crate) fn read_unverified(&self) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; size(self.meta.length)];
        self.fill(&mut bytes, self.offset + HEADER_BYTES as u64)?;
        Ok(bytes)
    }

    fn read_small(&self) -> Result<Bytes, StoreError> {
        let bytes = self.read_unverified()?;
        if crc32c::crc32c(&bytes) != self.crc {
            return Err(self.corrupt(0));
        }
        Ok(Bytes::from(bytes))
    }

    /// The blocks `from..to` of a large shard.
    fn read_blocks(&self, pool: &Arc<FramePool>, from: u64, to: u64) -> Result<Bytes, StoreError> {
        let start = from * BLOCK;
        let length = size((to * BLOCK).min(self.meta.length) - start);
        let at = self.offset + PAGE + start;
        // small pieces come from the allocator, which has them warm; middle ones from the pool; nobody asks for larger
        // ones at once who cares about their cost
        if length > size(BLOCK) && length <= FRAME_BYTES {
            let mut frame = pool.take();
            self.fill(&mut frame[..length], at)?;
            self.check(&frame[..length], from)?;
            return Ok(frame.into_bytes(length));
        }
        let mut bytes = vec![0; length];
        self.fill(&mut bytes, at)?;
        self.check(&bytes, from)?;
        Ok(Bytes::from(bytes))
    }

    /// Compares blocks with the CRC array of the trailer.
    fn check(&self, bytes: &[u8], from: u64) -> Result<(), StoreError> {
        let count = bytes.len().div_ceil(size(BLOCK));
        let mut array = vec![0; 4 * count];
        let head = trailer_offset(self.offset, self.reserved) + TRAILER_HEAD_BYTES as u64;
        self.fill(&mut array, head + 4 * from)?;
        for (index, block) in bytes.chunks(size(BLOCK)).enumerate() {
            let stored = self.segment.seed.mask(get_u32(&array, 4 * index));
            if crc32c::crc32c(block) != stored {
                return Err(self.corrupt(from + index as u64));
            }
        }
        Ok(())
    }

    fn fill(&self, bytes: &mut [u8], at: u64) -> Result<(), StoreError> {
        match self.segment.file.read_exact_at(bytes, at) {
            Ok(()) => Ok(()),
            // the file has become shorter than what it held
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.corrupt(0)),
            Err(error) => Err(StoreError::io("read", &self.segment.path, &error)),
        }
    }

    fn corrupt(&self, block: u64) -> StoreError {
        let ShardKey { extent, slot } = self.meta.key;
        tracing::warn!(%extent, %slot, block, segment = ?self.segment, "a stored block is damaged");
        StoreError::Corrupt
    }
}
