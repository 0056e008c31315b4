//! Which write do these bytes come from?
//!
//! A value is a number whose remainder says its size; its bytes are the content of that seed. The first word of an
//! object names its value. Bytes from its middle do not: they are compared with the values that the object may have.

use ashlar_check::Piece;
use ashlar_load::{Content, Verifier};

/// Sizes of single puts, by the value modulo the number of all sizes: inline, three copies, one stripe, several.
pub(crate) const SIZES: [u64; 5] = [100, 5_000, 50_000, 400_000, 2_500_000];
/// The size behind them: of a value in two parts.
const SIZE_IN_PARTS: u64 = (5 << 20) + 1_000;
const TURNS: u64 = SIZES.len() as u64 + 1;
/// Bytes of which it is said at once that they are of no write: a word each would take too long.
const STRANGE_BYTES: usize = 4096;
const WORD_BYTES: usize = 8;

/// The value of a number and a turn.
pub(crate) fn value(number: u64, turn: u64) -> u64 {
    number * TURNS + turn
}

/// How long a value is.
pub(crate) fn size_of(value: u64) -> u64 {
    let turn = usize::try_from(value % TURNS).expect("below the number of sizes");
    SIZES.get(turn).copied().unwrap_or(SIZE_IN_PARTS)
}

/// The bytes of a value.
pub(crate) fn content_of(value: u64) -> Content {
    Content::new(value, size_of(value))
}

/// The value of which a body has all bytes and no other.
pub(crate) fn whole(body: &[u8]) -> Option<u64> {
    let value = u64::from_le_bytes(*body.first_chunk::<WORD_BYTES>()?);
    let mut verifier = Verifier::whole(content_of(value));
    verifier.take(body).and_then(|()| verifier.finish()).is_ok().then_some(value)
}

/// Whose bytes these are, which lie in their object from `from` on; of equal candidates the first.
pub(crate) fn of(body: &[u8], from: u64, candidates: &[u64]) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut at = 0;
    while at < body.len() {
        let word = &body[at..body.len().min(at + WORD_BYTES)];
        let owner = owner_of(word, from + at as u64, candidates);
        let length = match owner {
            Some(value) => common(&body[at..], from + at as u64, value),
            None => STRANGE_BYTES.min(body.len() - at),
        };
        match pieces.last_mut().filter(|last| last.value == owner) {
            Some(last) => last.length += length as u64,
            None => {
                let (at, length) = (from + at as u64, length as u64);
                pieces.push(Piece { at, length, value: owner });
            }
        }
        at += length;
    }
    pieces
}

fn owner_of(word: &[u8], at: u64, candidates: &[u64]) -> Option<u64> {
    candidates.iter().copied().find(|value| content_of(*value).slice(at, word.len()) == word)
}

/// How many bytes agree with a value, in whole words.
fn common(bytes: &[u8], at: u64, value: u64) -> usize {
    let due = content_of(value).slice(at, bytes.len());
    let equal = due.iter().zip(bytes).take_while(|(a, b)| a == b).count();
    if equal == bytes.len() {
        equal
    } else {
        (equal - equal % WORD_BYTES).max(WORD_BYTES).min(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_names_its_value_and_a_mix_of_two_is_noticed() {
        let (one, two) = (content_of(value(1, 1)).bytes(), content_of(value(2, 1)).bytes());
        assert_eq!(one.len(), 5_000);
        assert_eq!(whole(&one), Some(value(1, 1)));
        assert_eq!(whole(&[&one[..2_000], &two[2_000..]].concat()), None);
        assert_eq!(whole(&one[..4_992]), None);
        assert_eq!(whole(&one[..4]), None);
    }

    #[test]
    fn c5_each_byte_of_a_range_finds_its_write() {
        let (a, b) = (value(1, 1), value(2, 1));
        let (one, two) = (content_of(a).bytes(), content_of(b).bytes());
        let piece = |at, length, value| Piece { at, length, value };
        assert_eq!(of(&one[64..1_000], 64, &[b, a]), [piece(64, 936, Some(a))]);
        let mixed = [&one[64..2_000], &two[2_000..5_000]].concat();
        assert_eq!(
            of(&mixed, 64, &[b, a]),
            [piece(64, 1_936, Some(a)), piece(2_000, 3_000, Some(b))]
        );
        let zeros = [&one[..800], &[0; 200], &one[1_000..]].concat();
        let found = of(&zeros, 0, &[a]);
        assert_eq!(found[0], piece(0, 800, Some(a)));
        assert_eq!(found[1].value, None);
        // The right bytes at the wrong place are of no write.
        assert_eq!(of(&one[64..1_000], 72, &[b, a])[0].value, None);
        // Longer than any value may be.
        let long = [&one[..], &[7; 16]].concat();
        assert_eq!(of(&long, 0, &[a]), [piece(0, 5_000, Some(a)), piece(5_000, 16, None)]);
    }
}
