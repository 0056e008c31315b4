//! One stripe: content in a buffer becomes the cells of all slots.

use crate::pool::PooledBuffer;
use ashlar_erasure::Codec;
use ashlar_types::{Profile, bug};
use bytes::Bytes;

/// How many bytes the buffer of a stripe has: all cells of it, but copies share one.
pub(crate) fn buffer_bytes(profile: Profile, cell: usize) -> usize {
    match profile.data {
        1 => cell,
        _ => cell * usize::from(profile.width()),
    }
}

/// The cells of a stripe, one for each slot, from `content` bytes at the start of its buffer. The rest of the data cells
/// is filled with zeroes.
pub(crate) fn cells(
    codec: &Codec,
    mut buffer: PooledBuffer,
    content: usize,
    cell: usize,
) -> Vec<Bytes> {
    let profile = codec.profile();
    let data_bytes = cell * usize::from(profile.data);
    buffer[content..data_bytes].fill(0);
    if profile.data == 1 {
        let copy = buffer.freeze();
        return profile.slots().map(|_| copy.clone()).collect();
    }
    let (data, parity) = buffer.split_at_mut(data_bytes);
    let data: Vec<&[u8]> = data.chunks_exact(cell).collect();
    let mut parity: Vec<&mut [u8]> = parity.chunks_exact_mut(cell).collect();
    if !bug!("parity-is-not-computed") {
        codec.encode(&data, &mut parity).expect("the cells were cut as the profile says");
    }
    let bytes = buffer.freeze();
    let of_slot = |slot: usize| bytes.slice(slot * cell..(slot + 1) * cell);
    (0..usize::from(profile.width())).map(of_slot).collect()
}
