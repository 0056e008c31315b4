//! Frames: page-aligned buffers of one size, which are reused and never given back: touching fresh memory costs more
//! than erasure coding.

use bytes::Bytes;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// The length of a frame: large shards are written and read in such pieces. Four 64 KiB blocks: with fewer, the hop to a
/// blocking thread is felt; with more, a slow writer holds memory for nothing.
pub(crate) const FRAME_BYTES: usize = 256 * 1024;
const ALIGN: usize = 4096;

/// The frames of a store that nobody uses.
#[derive(Default)]
pub(crate) struct FramePool(Mutex<Vec<Vec<u8>>>);

impl FramePool {
    /// A frame, of unspecified content.
    pub(crate) fn take(self: &Arc<Self>) -> Frame {
        let idle = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let memory = idle.unwrap_or_else(|| vec![0; FRAME_BYTES + ALIGN]);
        let start = memory.as_ptr().align_offset(ALIGN);
        assert!(start < ALIGN, "bytes can be aligned to a page");
        Frame { memory, start, pool: self.clone() }
    }
}

/// A buffer of [`FRAME_BYTES`], aligned for direct I/O. Dropping it gives it back to its pool.
pub(crate) struct Frame {
    memory: Vec<u8>,
    start: usize,
    pool: Arc<FramePool>,
}

impl Frame {
    /// Its first `length` bytes, as bytes that give the frame back when they are dropped.
    pub(crate) fn into_bytes(self, length: usize) -> Bytes {
        Bytes::from_owner(self).slice(..length)
    }
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Deref for Frame {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + FRAME_BYTES]
    }
}

impl DerefMut for Frame {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + FRAME_BYTES]
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        self.pool.0.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
    }
}
