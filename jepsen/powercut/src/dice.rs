//! A small generator: the same rolls for the same seed, in the harness and in its victims.

/// Rolls numbers.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// Dice of a seed; neighbouring seeds roll unlike numbers.
    pub(crate) fn new(seed: u64) -> Self {
        // SplitMix64's finalizer, and never the zero in which xorshift stays
        let mixed = (seed.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ (seed >> 30))
            .wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Self((mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) | 1)
    }

    /// A number below `sides`.
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }

    /// An index into something of this length.
    pub(crate) fn pick(&mut self, length: usize) -> usize {
        usize::try_from(self.roll(length as u64)).expect("below a length")
    }

    /// One time in so many.
    pub(crate) fn one_in(&mut self, times: u64) -> bool {
        self.roll(times) == 0
    }
}
