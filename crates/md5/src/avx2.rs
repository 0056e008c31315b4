//! Eight messages at once with AVX2: a block of each is turned into sixteen words of eight lanes, then come the rounds.

#![expect(
    unsafe_code,
    reason = "loads of a vector have no safe form before the arrays are vectors"
)]

use crate::rounds::compress;
use crate::{BLOCK_BYTES, LANES};
use std::arch::x86_64::{
    __m256i, _mm256_loadu_si256, _mm256_permute2x128_si256, _mm256_setzero_si256,
    _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
};

/// Takes `blocks` blocks of each message into its state.
#[target_feature(enable = "avx2")]
pub(crate) fn compress_blocks(
    states: &mut [[u32; LANES]; 4],
    messages: &[&[u8]; LANES],
    blocks: usize,
) {
    for block in 0..blocks {
        let mut words = [_mm256_setzero_si256(); 16];
        for half in 0..2 {
            let from = block * BLOCK_BYTES + half * 32;
            let mut rows = [_mm256_setzero_si256(); LANES];
            // a loop, because a closure that loads would not be part of `map`, which knows nothing of AVX2
            for (row, message) in rows.iter_mut().zip(messages) {
                *row = load(&message[from..from + 32]);
            }
            words[half * 8..half * 8 + 8].copy_from_slice(&transpose(rows));
        }
        // SAFETY: both are 512 bytes without padding, and every bit pattern is a value of both.
        let words: [[u32; LANES]; 16] = unsafe { std::mem::transmute(words) };
        compress(states, &words);
    }
}

#[target_feature(enable = "avx2")]
fn load(bytes: &[u8]) -> __m256i {
    assert_eq!(bytes.len(), 32);
    // SAFETY: 32 bytes are there to be read, and the load asks for no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// Eight words of each of eight messages become the eight messages' first words, their second words, and so on.
#[target_feature(enable = "avx2")]
fn transpose(rows: [__m256i; 8]) -> [__m256i; 8] {
    let mut pairs = rows;
    for at in 0..4 {
        pairs[2 * at] = _mm256_unpacklo_epi32(rows[2 * at], rows[2 * at + 1]);
        pairs[2 * at + 1] = _mm256_unpackhi_epi32(rows[2 * at], rows[2 * at + 1]);
    }
    let mut fours = pairs;
    for half in [0, 4] {
        fours[half] = _mm256_unpacklo_epi64(pairs[half], pairs[half + 2]);
        fours[half + 1] = _mm256_unpackhi_epi64(pairs[half], pairs[half + 2]);
        fours[half + 2] = _mm256_unpacklo_epi64(pairs[half + 1], pairs[half + 3]);
        fours[half + 3] = _mm256_unpackhi_epi64(pairs[half + 1], pairs[half + 3]);
    }
    let mut eights = fours;
    for at in 0..4 {
        eights[at] = _mm256_permute2x128_si256::<0x20>(fours[at], fours[at + 4]);
        eights[at + 4] = _mm256_permute2x128_si256::<0x31>(fours[at], fours[at + 4]);
    }
    eights
}
