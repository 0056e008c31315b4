//! Every way of feeding gives the digest of crate `md-5`.

use super::*;
use md5::{Digest as _, Md5};
use proptest::prelude::*;

fn other(bytes: &[u8]) -> [u8; 16] {
    Md5::digest(bytes).into()
}

/// Bytes that depend on every position.
fn content(length: usize, seed: u64) -> Vec<u8> {
    let byte = |at: u64| (at.wrapping_add(seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8;
    (0..length as u64).map(byte).collect()
}

#[test]
fn every_length_around_the_blocks_and_every_cut_of_it() {
    for length in 0..200 {
        let bytes = content(length, 1);
        for cut in 0..=length {
            let mut stream = Stream::default();
            stream.update(&bytes[..cut]);
            stream.update(&bytes[cut..]);
            assert_eq!(stream.finish(), other(&bytes), "{length} cut at {cut}");
        }
    }
}

#[test]
fn a_stream_knows_the_length_of_half_a_gibibyte_in_bits() {
    // beyond 2^32 bits
    let (mut stream, zeroes) = (Stream::default(), [0; 1 << 20]);
    for _ in 0..513 {
        stream.update(&zeroes);
    }
    // head -c 537919488 /dev/zero | md5sum
    let digest = u128::from_be_bytes(stream.finish());
    assert_eq!(digest, 0xf3a8_799d_6412_9a6f_d8a5_aa56_f199_ac54);
}

proptest! {
    /// Streams of any lengths, fed in turns of any size, by themselves or with any others.
    #[test]
    fn streams_that_are_fed_together_have_the_digests_they_have_alone(
        lengths in proptest::collection::vec(0_usize..5000, 1..12),
        turns in proptest::collection::vec((any::<u16>(), 0_usize..12, any::<bool>()), 0..60),
    ) {
        let Some(lanes) = Lanes::find() else { return Ok(()) };
        let contents: Vec<_> = (7..).zip(&lengths).map(|(seed, length)| content(*length, seed)).collect();
        let mut streams: Vec<_> = contents.iter().map(|bytes| (Stream::default(), &bytes[..])).collect();
        for (members, blocks, alone) in turns {
            let chosen = |at: usize| members >> at & 1 == 1;
            if alone {
                for (at, (stream, rest)) in streams.iter_mut().enumerate().filter(|(at, _)| chosen(*at)) {
                    let count = rest.len().min(blocks * 61 + at);
                    stream.update(&rest[..count]);
                    *rest = &rest[count..];
                }
                continue;
            }
            let fed = blocks * BLOCK_BYTES;
            let mut feeds: Vec<_> = streams
                .iter_mut()
                .enumerate()
                .filter(|(at, (stream, rest))| chosen(*at) && stream.missing() == 0 && rest.len() >= fed)
                .take(LANES)
                .map(|(_, (stream, rest))| {
                    let (bytes, after) = rest.split_at(fed);
                    *rest = after;
                    Feed { stream, bytes }
                })
                .collect();
            lanes.feed(&mut feeds);
        }
        for ((mut stream, rest), bytes) in streams.into_iter().zip(&contents) {
            stream.update(rest);
            prop_assert_eq!(stream.finish(), other(bytes));
        }
    }
}

#[test]
#[should_panic(expected = "misses nothing")]
fn a_stream_in_the_middle_of_a_block_is_not_fed_with_others() {
    let mut stream = Stream::default();
    stream.update(&[1]);
    // constructed here, so that the test is the same on a machine without AVX2
    Lanes(()).feed(&mut [Feed { stream: &mut stream, bytes: &[0; BLOCK_BYTES] }]);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn where_the_cpu_has_lanes_they_are_found_right() {
    assert_eq!(Lanes::find().is_some(), std::arch::is_x86_feature_detected!("avx2"));
}
