//! MD5 of up to eight streams at once.
//!
//! The steps of one MD5 wait for each other, so one stream leaves most of a core idle: 1.8 cpu-s per GiB. Streams do not
//! wait for each other: eight side by side take 0.22 cpu-s per GiB with AVX2, two take 0.9 (`docs/adr/0008`). A
//! [`Stream`] is fed by itself or, whole blocks at a time, together with others ([`Lanes::feed`]); which, changes
//! nothing in its digest.
//!
//! It leaves out who is fed with whom: the gateway's `md5_lanes`. MD5 is the ETag of S3, and proves nothing.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod rounds;
#[cfg(test)]
mod tests;

use rounds::{BEGINNING, compress};

/// How many streams are fed at once.
pub const LANES: usize = 8;

/// Streams are fed together in whole blocks of so many bytes.
pub const BLOCK_BYTES: usize = 64;

/// An MD5 that is being computed.
#[derive(Debug, Clone)]
pub struct Stream {
    state: [u32; 4],
    /// The beginning of a block whose rest has not come.
    part: [u8; BLOCK_BYTES],
    /// All bytes so far.
    length: u64,
}

impl Default for Stream {
    fn default() -> Self {
        Self { state: BEGINNING, part: [0; BLOCK_BYTES], length: 0 }
    }
}

impl Stream {
    /// How many bytes are missing until whole blocks can be fed; 0: none.
    pub fn missing(&self) -> usize {
        (BLOCK_BYTES - self.part_bytes()) % BLOCK_BYTES
    }

    fn part_bytes(&self) -> usize {
        usize::try_from(self.length % BLOCK_BYTES as u64).expect("less than a block")
    }

    /// Takes bytes by itself.
    pub fn update(&mut self, mut bytes: &[u8]) {
        if self.part_bytes() > 0 {
            let (head, rest) = bytes.split_at(self.missing().min(bytes.len()));
            self.keep(head);
            bytes = rest;
        }
        let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
        for block in blocks {
            self.compress(block);
        }
        self.length += (blocks.len() * BLOCK_BYTES) as u64;
        self.keep(rest);
    }

    /// Keeps the part of a block, and takes the block once it is whole.
    fn keep(&mut self, bytes: &[u8]) {
        let from = self.part_bytes();
        self.part[from..from + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len() as u64;
        if from + bytes.len() == BLOCK_BYTES {
            let block = self.part;
            self.compress(&block);
        }
    }

    fn compress(&mut self, block: &[u8; BLOCK_BYTES]) {
        let mut words = [[0]; 16];
        for (word, bytes) in words.iter_mut().zip(block.as_chunks::<4>().0) {
            *word = [u32::from_le_bytes(*bytes)];
        }
        let mut states = self.state.map(|word| [word]);
        compress(&mut states, &words);
        self.state = states.map(|[word]| word);
    }

    /// The digest of all of it.
    #[must_use]
    pub fn finish(mut self) -> [u8; 16] {
        let bits = self.length.wrapping_mul(8);
        let mut end = [0; 2 * BLOCK_BYTES];
        end[0] = 0x80;
        // a one, zeroes, and the length in the last eight bytes of a block
        let zeroes = (2 * BLOCK_BYTES - 8 - 1 - self.part_bytes()) % BLOCK_BYTES;
        end[1 + zeroes..1 + zeroes + 8].copy_from_slice(&bits.to_le_bytes());
        self.update(&end[..1 + zeroes + 8]);
        assert_eq!(self.missing(), 0, "the end fills a block");
        let mut digest = [0; 16];
        for (bytes, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(self.state) {
            *bytes = word.to_le_bytes();
        }
        digest
    }
}

/// Bytes for one of the streams that are fed together.
#[derive(Debug)]
pub struct Feed<'a> {
    /// A stream that misses nothing.
    pub stream: &'a mut Stream,
    /// Whole blocks.
    pub bytes: &'a [u8],
}

/// Proof that this machine feeds streams together, and does it right.
#[derive(Debug, Clone, Copy)]
pub struct Lanes(());

impl Lanes {
    /// `None`: each stream has to be fed by itself. Looks at the CPU, and compares a sample with another implementation:
    /// a wrong ETag is never worth its speed.
    pub fn find() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            return Some(Self(())).filter(|lanes| lanes.agrees());
        }
        None
    }

    #[cfg(target_arch = "x86_64")]
    fn agrees(self) -> bool {
        use md5::Digest as _;
        let sample: [u8; 1024 + LANES] =
            std::array::from_fn(|at| u8::try_from(at * at % 251).expect("below 251"));
        let mut streams: [Stream; LANES] = Default::default();
        let parts = std::array::from_fn(|lane| &sample[lane..lane + 1024]);
        let mut feeds: Vec<_> = streams
            .iter_mut()
            .zip::<[&[u8]; LANES]>(parts)
            .map(|(stream, bytes)| Feed { stream, bytes })
            .collect();
        self.feed(&mut feeds);
        let digests = streams.map(Stream::finish);
        digests.iter().zip(parts).all(|(digest, part)| digest[..] == md5::Md5::digest(part)[..])
    }

    /// Feeds at most [`LANES`] streams, each the same number of whole blocks. Eight cost no more than one.
    ///
    /// # Panics
    /// Where a stream misses bytes, or the lengths are not equal or not of whole blocks.
    pub fn feed(self, feeds: &mut [Feed<'_>]) {
        let Some(length) = feeds.first().map(|feed| feed.bytes.len()) else { return };
        assert!(feeds.len() <= LANES, "at most {LANES} streams are fed at once");
        assert!(length.is_multiple_of(BLOCK_BYTES), "streams are fed whole blocks");
        for feed in feeds.iter() {
            assert_eq!(feed.stream.missing(), 0, "a stream that is fed with others misses nothing");
            assert_eq!(feed.bytes.len(), length, "streams that are fed together get the same");
        }
        let mut states = [[0; LANES]; 4];
        for (lane, feed) in feeds.iter().enumerate() {
            for (states, word) in states.iter_mut().zip(feed.stream.state) {
                states[lane] = word;
            }
        }
        // a lane without a stream computes the first one's once more, for nobody
        let messages = std::array::from_fn(|lane| feeds.get(lane).unwrap_or(&feeds[0]).bytes);
        compress_blocks(&mut states, &messages, length / BLOCK_BYTES);
        for (lane, feed) in feeds.iter_mut().enumerate() {
            feed.stream.state = states.map(|word| word[lane]);
            feed.stream.length += length as u64;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "the one door to the instructions of AVX2")]
fn compress_blocks(states: &mut [[u32; LANES]; 4], messages: &[&[u8]; LANES], blocks: usize) {
    // SAFETY: only `Lanes::find` makes a `Lanes`, and only where the CPU has AVX2.
    unsafe { avx2::compress_blocks(states, messages, blocks) }
}

#[cfg(not(target_arch = "x86_64"))]
fn compress_blocks(_: &mut [[u32; LANES]; 4], _: &[&[u8]; LANES], _: usize) {
    unreachable!("only `Lanes::find` makes a `Lanes`, and not on this CPU");
}
