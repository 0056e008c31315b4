//! Which version of a key is meant, where its bucket keeps versions, or did (`docs/adr/0023`).

use crate::{Generation, ObjectId};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Names one version of a key for ever: 32 hexadecimal digits.
///
/// The tag keeps an id of another key, or of a bucket that had the name before, from naming something else: generations
/// are only numbers of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VersionId {
    /// The generation at which the version was committed.
    pub generation: Generation,
    /// 64 bits that belong to this version.
    pub tag: u64,
}

impl VersionId {
    /// Of an object.
    pub fn of_object(generation: Generation, object: ObjectId) -> Self {
        let bytes = object.0.to_le_bytes();
        let tag = std::array::from_fn(|at| bytes[at]);
        Self { generation, tag: u64::from_le_bytes(tag) }
    }
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.generation.0, self.tag)
    }
}

/// A version of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum VersionName {
    /// The one that was written while the bucket kept none: a key has at most one.
    Null,
    /// One that was written while it did.
    Id(VersionId),
}

impl fmt::Display for VersionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Id(id) => id.fmt(f),
        }
    }
}

/// A text that names no version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a version id is 'null' or 32 hexadecimal digits")]
pub struct BadVersionName;

impl FromStr for VersionName {
    type Err = BadVersionName;

    fn from_str(text: &str) -> Result<Self, BadVersionName> {
        if text == "null" {
            return Ok(Self::Null);
        }
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| BadVersionName)?;
        let both = u128::from_be_bytes(bytes);
        let halves = (u64::try_from(both >> 64), u64::try_from(both & u128::from(u64::MAX)));
        let (Ok(generation), Ok(tag)) = halves else { return Err(BadVersionName) };
        Ok(Self::Id(VersionId { generation: Generation(generation), tag }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_as_it_was_written_and_nothing_else_is_one() {
        let id = VersionId::of_object(Generation(0xabc), ObjectId(0x1_0000_0000_0000_0007));
        let name = VersionName::Id(id);
        assert_eq!(name.to_string(), "0000000000000abc0000000000000007");
        assert_eq!(name.to_string().parse(), Ok(name));
        assert_eq!("null".parse(), Ok(VersionName::Null));
        for bad in ["", "NULL", "0abc", "0000000000000abc000000000000000g", &"0".repeat(34)] {
            assert_eq!(bad.parse::<VersionName>(), Err(BadVersionName), "{bad}");
        }
    }
}
