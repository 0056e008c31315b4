//! Buffers that come back: the first touch of fresh memory costs more than erasure coding it.
//!
//! A buffer becomes `Bytes` without a copy; when the last slice of those is dropped, it returns to the pool.

use bytes::Bytes;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers smaller than this are not worth keeping.
const KEPT_BYTES_MIN: usize = 64 * 1024;

/// Idle buffers.
#[derive(Debug)]
pub(crate) struct Pool {
    idle: Mutex<Idle>,
    kept_bytes_max: usize,
}

#[derive(Debug, Default)]
struct Idle {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

impl Pool {
    pub(crate) fn new(kept_bytes_max: u64) -> Arc<Self> {
        let kept_bytes_max = usize::try_from(kept_bytes_max).unwrap_or(usize::MAX);
        Arc::new(Self { idle: Mutex::default(), kept_bytes_max })
    }

    /// A buffer of `length` bytes. What is in it is left over from its last use.
    pub(crate) fn take(self: &Arc<Self>, length: usize) -> PooledBuffer {
        let kept = (length >= KEPT_BYTES_MIN).then(|| self.take_idle(length)).flatten();
        let mut bytes = kept.unwrap_or_else(|| Vec::with_capacity(length));
        bytes.resize(length, 0);
        PooledBuffer { bytes, pool: self.clone() }
    }

    fn take_idle(&self, length: usize) -> Option<Vec<u8>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // the last ones are warm; a buffer of twice the size would be wasted
        let fits = |buffer: &Vec<u8>| (length..=length * 2).contains(&buffer.capacity());
        let found = idle.buffers.iter().rposition(fits)?;
        let buffer = idle.buffers.swap_remove(found);
        idle.bytes -= buffer.capacity();
        Some(buffer)
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let room = self.kept_bytes_max.saturating_sub(idle.bytes);
        if (KEPT_BYTES_MIN..=room).contains(&buffer.capacity()) {
            idle.bytes += buffer.capacity();
            idle.buffers.push(buffer);
        }
    }
}

/// A buffer of the pool.
#[derive(Debug)]
pub(crate) struct PooledBuffer {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl PooledBuffer {
    /// Its bytes, to be shared; the buffer returns when the last of them is dropped.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for PooledBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for PooledBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for PooledBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_returns_when_its_last_slice_is_dropped() {
        let pool = Pool::new(1 << 20);
        let buffer = pool.take(KEPT_BYTES_MIN);
        let address = buffer.as_ptr();
        let bytes = buffer.freeze();
        let slice = bytes.slice(10..20);
        drop(bytes);
        assert_ne!(pool.take(KEPT_BYTES_MIN).as_ptr(), address, "a slice still holds it");
        drop(slice);
        assert_eq!(pool.idle.lock().unwrap().buffers.len(), 2);
    }

    #[test]
    fn the_pool_keeps_no_more_than_it_may() {
        let pool = Pool::new(KEPT_BYTES_MIN as u64);
        let (one, two) = (pool.take(KEPT_BYTES_MIN), pool.take(KEPT_BYTES_MIN));
        drop((one, two));
        assert_eq!(pool.idle.lock().unwrap().buffers.len(), 1);
    }
}
