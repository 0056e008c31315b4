//! The bytes of a value: its number, then a stream that the number begins, so that a read names the write that it saw.

use bytes::{BufMut, Bytes, BytesMut};

/// Every value has at least its number.
pub(crate) const LENGTH_MIN: usize = 8;

/// The content of a value.
pub(crate) fn content_of(value: u64, length: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(length + 8);
    bytes.put_u64_le(value);
    let mut state = value.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.put_u64_le(state);
    }
    bytes.truncate(length);
    bytes.freeze()
}

/// The value that bytes claim to be.
pub(crate) fn claimed(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_names_its_value_and_no_two_are_alike() {
        for (value, length) in [(1, 8), (2, 9), (77, 70_000)] {
            let bytes = content_of(value, length);
            assert_eq!((bytes.len(), claimed(&bytes)), (length, Some(value)));
        }
        assert_ne!(content_of(1, 100)[8..], content_of(2, 100)[8..]);
    }
}
