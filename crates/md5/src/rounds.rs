//! The 64 steps of RFC 1321, for any number of messages side by side: lane `l` of each word belongs to message `l`.
//!
//! Written over arrays, so that one text serves one message and eight: where the caller has AVX2, the compiler makes an
//! instruction of each loop over eight lanes.

/// The state before the first block.
pub(crate) const BEGINNING: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// The integer part of 2^32 x |sin(i + 1)|.
const SINES: [u32; 64] = [
    0xd76a_a478,
    0xe8c7_b756,
    0x2420_70db,
    0xc1bd_ceee,
    0xf57c_0faf,
    0x4787_c62a,
    0xa830_4613,
    0xfd46_9501,
    0x6980_98d8,
    0x8b44_f7af,
    0xffff_5bb1,
    0x895c_d7be,
    0x6b90_1122,
    0xfd98_7193,
    0xa679_438e,
    0x49b4_0821,
    0xf61e_2562,
    0xc040_b340,
    0x265e_5a51,
    0xe9b6_c7aa,
    0xd62f_105d,
    0x0244_1453,
    0xd8a1_e681,
    0xe7d3_fbc8,
    0x21e1_cde6,
    0xc337_07d6,
    0xf4d5_0d87,
    0x455a_14ed,
    0xa9e3_e905,
    0xfcef_a3f8,
    0x676f_02d9,
    0x8d2a_4c8a,
    0xfffa_3942,
    0x8771_f681,
    0x6d9d_6122,
    0xfde5_380c,
    0xa4be_ea44,
    0x4bde_cfa9,
    0xf6bb_4b60,
    0xbebf_bc70,
    0x289b_7ec6,
    0xeaa1_27fa,
    0xd4ef_3085,
    0x0488_1d05,
    0xd9d4_d039,
    0xe6db_99e5,
    0x1fa2_7cf8,
    0xc4ac_5665,
    0xf429_2244,
    0x432a_ff97,
    0xab94_23a7,
    0xfc93_a039,
    0x655b_59c3,
    0x8f0c_cc92,
    0xffef_f47d,
    0x8584_5dd1,
    0x6fa8_7e4f,
    0xfe2c_e6e0,
    0xa301_4314,
    0x4e08_11a1,
    0xf753_7e82,
    0xbd3a_f235,
    0x2ad7_d2bb,
    0xeb86_d391,
];

/// Sixteen steps, each with constants of its own: a loop over them is not unrolled, and costs twice as much.
macro_rules! round {
    ($state:ident, $words:ident, $first:literal, $shifts:expr, $order:expr, $mix:expr) => {
        round!(@ $state, $words, $first, $shifts, $order, $mix; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $state:ident, $words:ident, $first:literal, $shifts:expr, $order:expr, $mix:expr; $($step:literal)*) => {
        $({
            const SHIFT: u32 = { const SHIFTS: [u32; 4] = $shifts; SHIFTS[$step % 4] };
            const WORD: usize = { const ORDER: [usize; 2] = $order; (ORDER[0] * $step + ORDER[1]) % 16 };
            let [a, b, c, d] = $state;
            let mut turned = [0_u32; N];
            for lane in 0..N {
                let mixed: u32 = $mix(b[lane], c[lane], d[lane]);
                let sum = a[lane].wrapping_add(mixed).wrapping_add(SINES[$first + $step]);
                let sum = sum.wrapping_add($words[WORD][lane]);
                turned[lane] = b[lane].wrapping_add(sum.rotate_left(SHIFT));
            }
            $state = [d, turned, b, c];
        })*
    };
}

/// Takes one block of each message into its state.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it takes on the instruction set of its caller")]
pub(crate) fn compress<const N: usize>(states: &mut [[u32; N]; 4], words: &[[u32; N]; 16]) {
    let mut state = *states;
    round!(state, words, 0, [7, 12, 17, 22], [1, 0], |b: u32, c: u32, d: u32| d ^ (b & (c ^ d)));
    round!(state, words, 16, [5, 9, 14, 20], [5, 1], |b: u32, c: u32, d: u32| c ^ (d & (b ^ c)));
    round!(state, words, 32, [4, 11, 16, 23], [3, 5], |b: u32, c: u32, d: u32| b ^ c ^ d);
    round!(state, words, 48, [6, 10, 15, 21], [7, 0], |b: u32, c: u32, d: u32| c ^ (b | !d));
    for (before, after) in states.iter_mut().zip(state) {
        for (before, after) in before.iter_mut().zip(after) {
            *before = before.wrapping_add(after);
        }
    }
}
