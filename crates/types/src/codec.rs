//! How a value becomes bytes: one version byte, then postcard.
//!
//! postcard is compact and not self-describing, so the rules of change are strict: fields and enum variants are only
//! ever appended under a new version, and `decode_old` keeps reading what earlier versions wrote. Operations, queries and
//! their answers are the exception: variants are appended under the same version, so that releases run mixed. What not
//! all of them know gets into no log (`ApplyVersions`), and a query that a node does not know is refused.

use serde::{Serialize, de::DeserializeOwned};

/// A type that is stored or sent, and so carries its version.
pub trait Versioned: Serialize + DeserializeOwned {
    /// What an error calls it.
    const NAME: &'static str;
    /// The newest version that this binary writes.
    const VERSION: u8;

    /// The version under which this value is written: an earlier one where that can say it.
    fn version(&self) -> u8 {
        Self::VERSION
    }

    /// Reads the body of an earlier version. `None`: this binary never knew that version.
    fn decode_old(_version: u8, _body: &[u8]) -> Option<Result<Self, DecodeError>> {
        None
    }
}

/// Why bytes are not a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// There was not even a version byte.
    #[error("{name}: empty")]
    Empty {
        /// The type that was expected.
        name: &'static str,
    },
    /// Written by a newer binary: do not guess, upgrade this one.
    #[error("{name}: format {found} is newer than {known}, which this binary knows: upgrade it")]
    Newer {
        /// The type that was expected.
        name: &'static str,
        /// The version found.
        found: u8,
        /// The newest version that this binary reads.
        known: u8,
    },
    /// The bytes are damaged, or not of this type.
    #[error("{name}: format {version}: {detail}")]
    Malformed {
        /// The type that was expected.
        name: &'static str,
        /// The version found.
        version: u8,
        /// What the decoder met.
        detail: String,
    },
}

/// The bytes of `value`, under its current version.
pub fn encode<T: Versioned>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![value.version()])
        .expect("serialising into memory fails for no type of ours")
}

/// The value in `bytes`, whichever known version wrote it. Trailing bytes are an error: they would be lost silently.
pub fn decode<T: Versioned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let Some((&version, body)) = bytes.split_first() else {
        return Err(DecodeError::Empty { name: T::NAME });
    };
    if version != T::VERSION {
        let newer = || Err(DecodeError::Newer { name: T::NAME, found: version, known: T::VERSION });
        return T::decode_old(version, body).unwrap_or_else(newer);
    }
    let malformed = |detail: String| DecodeError::Malformed { name: T::NAME, version, detail };
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(malformed(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(malformed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample(u32);

    impl Versioned for Sample {
        const NAME: &'static str = "sample";
        const VERSION: u8 = 3;
    }

    #[test]
    fn round_trip() {
        assert_eq!(decode::<Sample>(&encode(&Sample(7))), Ok(Sample(7)));
    }

    #[test]
    fn newer_short_and_long_bytes_are_refused() {
        let mut bytes = encode(&Sample(7));
        bytes.push(0);
        assert!(matches!(decode::<Sample>(&bytes), Err(DecodeError::Malformed { .. })));
        assert!(matches!(decode::<Sample>(&[3]), Err(DecodeError::Malformed { .. })));
        assert!(matches!(decode::<Sample>(&[4, 0]), Err(DecodeError::Newer { found: 4, .. })));
        assert!(matches!(decode::<Sample>(&[]), Err(DecodeError::Empty { .. })));
    }
}
