//! Content that is a function of a seed, so that a reader can verify every byte without keeping any.
//!
//! Word `i` of a content is a hash of `(seed, i)`; word 0 is the seed itself, so that a reader who knows nothing
//! can name the write whose bytes it sees and then verify the rest. A block moved, repeated or mixed with another
//! write's differs in its first word: an offset is part of each word's hash.

use bytes::Bytes;

/// Bytes of one word.
const WORD_BYTES: u64 = 8;

/// An object's bytes, as a seed and a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    seed: u64,
    len: u64,
}

impl Content {
    /// The content of `len` bytes that belongs to `seed`.
    pub fn new(seed: u64, len: u64) -> Self {
        Self { seed, len }
    }

    /// The content of `len` bytes of the object `key` in the run `seed`.
    pub fn of_key(key: &str, seed: u64, len: u64) -> Self {
        let hash = key.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self { seed: mix(hash), len }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Number of bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes `[offset, offset + len)`, cut at the end of the content.
    pub fn slice(&self, offset: u64, len: usize) -> Bytes {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut block = vec![0; len.min(left)];
        self.fill(offset, &mut block);
        Bytes::from(block)
    }

    /// All bytes at once: for small contents.
    pub fn bytes(&self) -> Bytes {
        self.slice(0, usize::try_from(self.len).expect("small enough for memory"))
    }

    /// Writes the bytes from `offset` on into `block`.
    fn fill(&self, offset: u64, block: &mut [u8]) {
        let skew = usize::try_from(offset % WORD_BYTES).expect("below eight");
        let head = if skew == 0 { 0 } else { (8 - skew).min(block.len()) };
        let (first, rest) = block.split_at_mut(head);
        if head > 0 {
            first.copy_from_slice(&self.word(offset / WORD_BYTES)[skew..skew + head]);
        }
        let mut index = offset.div_ceil(WORD_BYTES);
        let mut words = rest.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.word(index));
            index += 1;
        }
        let tail = words.into_remainder();
        let last = self.word(index);
        tail.copy_from_slice(&last[..tail.len()]);
    }

    fn word(&self, index: u64) -> [u8; 8] {
        if index == 0 {
            return self.seed.to_le_bytes();
        }
        mix(self.seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes()
    }
}

/// The finalizer of splitmix64: each bit of the input moves half of the output's.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Compares a stream of blocks with a content, or a range of one.
#[derive(Debug)]
pub struct Verifier {
    content: Content,
    at: u64,
    end: u64,
    scratch: Vec<u8>,
}

impl Verifier {
    /// Expects the whole content.
    pub fn whole(content: Content) -> Self {
        Self::range(content, 0, content.len)
    }

    /// Expects the bytes `[from, end)`.
    pub fn range(content: Content, from: u64, end: u64) -> Self {
        Self { content, at: from, end, scratch: Vec::new() }
    }

    /// Takes the next block; an error names the first offset of the block that differs.
    pub fn take(&mut self, block: &[u8]) -> Result<(), String> {
        if block.len() as u64 > self.end - self.at {
            return Err(format!("more bytes than the {} expected", self.end));
        }
        self.scratch.resize(block.len(), 0);
        self.content.fill(self.at, &mut self.scratch);
        if self.scratch != block {
            let differs = self.scratch.iter().zip(block).take_while(|(a, b)| a == b).count();
            return Err(format!("wrong byte at offset {}", self.at + differs as u64));
        }
        self.at += block.len() as u64;
        Ok(())
    }

    /// Says whether everything came.
    pub fn finish(&self) -> Result<(), String> {
        if self.at == self.end {
            return Ok(());
        }
        Err(format!("ends at offset {} instead of {}", self.at, self.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_slice_is_a_slice_of_the_whole() {
        let content = Content::new(7, 1000);
        let whole = content.bytes();
        for (offset, len) in [(0, 1000), (1, 5), (3, 13), (8, 8), (997, 100), (999, 1), (15, 17)] {
            let end = (offset + len).min(1000);
            assert_eq!(content.slice(offset as u64, len), whole[offset..end], "{offset}+{len}");
        }
        assert_eq!(whole[..8], 7u64.to_le_bytes());
    }

    #[test]
    fn a_wrong_moved_missing_or_extra_byte_is_noticed() {
        let content = Content::new(9, 5000);
        let mut good = content.bytes().to_vec();
        let judge = |bytes: &[u8]| {
            let mut verifier = Verifier::whole(content);
            bytes
                .chunks(777)
                .try_for_each(|block| verifier.take(block))
                .and_then(|()| verifier.finish())
        };
        assert_eq!(judge(&good), Ok(()));
        assert!(judge(&good[..4999]).is_err());
        good.push(0);
        assert!(judge(&good).is_err());
        good.pop();
        good.swap(4000, 4001);
        assert_eq!(judge(&good), Err("wrong byte at offset 4000".into()));
        assert!(judge(&Content::new(8, 5000).bytes()).is_err());
    }
}
