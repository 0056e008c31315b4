//! Names that come from outside, parsed once at the door: [`BucketName`], [`ObjectKey`]. And where a key lies among
//! the ranges: [`KeyPoint`], [`Interval`].

use crate::BucketId;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The longest object key, in bytes of UTF-8.
pub const KEY_BYTES_MAX: usize = 1024;

/// A bucket's name, as S3 allows them: 3-63 characters, lower-case letters, digits, dots and hyphens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BucketName(String);

/// Why a text is not a bucket name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a valid bucket name")]
pub struct BadBucketName(pub String);

impl BucketName {
    /// Parses a name by the rules of S3 for general-purpose buckets.
    pub fn parse(text: &str) -> Result<Self, BadBucketName> {
        let bad = || BadBucketName(text.chars().take(80).collect());
        let bytes = text.as_bytes();
        let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let inner = |byte: u8| edge(byte) || byte == b'-' || byte == b'.';
        let well_formed = (3..=63).contains(&bytes.len())
            && edge(bytes[0])
            && edge(bytes[bytes.len() - 1])
            && bytes.iter().all(|&byte| inner(byte));
        let reserved = text.contains("..")
            || text.starts_with("xn--")
            || text.ends_with("-s3alias")
            || text.parse::<std::net::Ipv4Addr>().is_ok();
        if well_formed && !reserved { Ok(Self(text.to_owned())) } else { Err(bad()) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An object's key: 1 to [`KEY_BYTES_MAX`] bytes of UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey(String);

/// Why a text is not an object key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// A key has at least one byte.
    #[error("the key is empty")]
    Empty,
    /// A key has at most [`KEY_BYTES_MAX`] bytes.
    #[error("the key has {bytes} bytes, {KEY_BYTES_MAX} are allowed")]
    TooLong {
        /// How many it has.
        bytes: usize,
    },
}

impl ObjectKey {
    /// Parses a key.
    pub fn parse(text: &str) -> Result<Self, BadKey> {
        match text.len() {
            0 => Err(BadKey::Empty),
            1..=KEY_BYTES_MAX => Ok(Self(text.to_owned())),
            bytes => Err(BadKey::TooLong { bytes }),
        }
    }

    /// The key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A point of the catalog's key space: a bucket and a key in it. The empty key is the bucket's start.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyPoint {
    /// The bucket.
    pub bucket: BucketId,
    /// The key's bytes.
    pub key: Vec<u8>,
}

impl KeyPoint {
    /// The point of `key` in `bucket`.
    pub fn new(bucket: BucketId, key: impl Into<Vec<u8>>) -> Self {
        Self { bucket, key: key.into() }
    }

    /// The least point of all.
    pub fn least() -> Self {
        Self::new(BucketId(0), [])
    }
}

/// A contiguous slice of the key space: from `start`, up to and without `end` (`None`: to the end of all).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// The first point inside.
    pub start: KeyPoint,
    /// The first point behind.
    pub end: Option<KeyPoint>,
}

impl Interval {
    /// Whether `point` lies inside.
    pub fn contains(&self, point: &KeyPoint) -> bool {
        self.start <= *point && self.end.as_ref().is_none_or(|end| point < end)
    }

    /// Whether any key of `bucket` may lie inside.
    pub fn overlaps_bucket(&self, bucket: BucketId) -> bool {
        let begins_before_next =
            bucket.0 == u64::MAX || self.start < KeyPoint::new(BucketId(bucket.0 + 1), []);
        let ends_behind = self.end.as_ref().is_none_or(|end| *end > KeyPoint::new(bucket, []));
        begins_before_next && ends_behind
    }

    /// What of it lies outside of `other`: nothing, one part, or one on each side.
    pub fn without(&self, other: &Self) -> Vec<Self> {
        let behind =
            |start: &KeyPoint, end: &Option<KeyPoint>| end.as_ref().is_some_and(|end| end <= start);
        if behind(&self.start, &other.end) || behind(&other.start, &self.end) {
            return vec![self.clone()];
        }
        let left = Self { start: self.start.clone(), end: Some(other.start.clone()) };
        let right = other.end.clone().map(|start| Self { start, end: self.end.clone() });
        let parts = [left].into_iter().chain(right);
        parts.filter(|part| !behind(&part.start, &part.end)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_names_follow_s3() {
        for good in ["abc", "my-bucket", "a.b.c", "123"] {
            assert!(BucketName::parse(good).is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in [
            "ab",
            "Abc",
            "-abc",
            "abc-",
            "a..b",
            "192.168.1.1",
            "xn--abc",
            "a_b",
            "",
            &long,
            "ab\u{e9}c",
        ] {
            assert!(BucketName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_are_bounded_in_bytes() {
        assert_eq!(ObjectKey::parse(""), Err(BadKey::Empty));
        assert!(ObjectKey::parse(&"k".repeat(KEY_BYTES_MAX)).is_ok());
        assert_eq!(ObjectKey::parse(&"\u{e9}".repeat(513)), Err(BadKey::TooLong { bytes: 1026 }));
    }

    #[test]
    fn intervals_know_their_buckets() {
        let interval = Interval {
            start: KeyPoint::new(BucketId(5), *b"m"),
            end: Some(KeyPoint::new(BucketId(7), [])),
        };
        assert!(interval.contains(&KeyPoint::new(BucketId(5), *b"m")));
        assert!(!interval.contains(&KeyPoint::new(BucketId(5), *b"a")));
        assert!(!interval.contains(&KeyPoint::new(BucketId(7), [])));
        let overlaps: Vec<bool> =
            (4..=7).map(|id| interval.overlaps_bucket(BucketId(id))).collect();
        assert_eq!(overlaps, [false, true, true, false]);
    }

    #[test]
    fn what_lies_outside_of_another_interval_are_the_points_that_it_does_not_contain() {
        let point = |number: u64| KeyPoint::new(BucketId(number), []);
        let ends = || (1..7).map(Some).chain([None]);
        let all = || (0..6).flat_map(move |start| ends().map(move |end| (start, end)));
        let whole = |&(start, end): &(u64, Option<u64>)| end.is_none_or(|end| start < end);
        let interval = |(start, end): (u64, Option<u64>)| Interval {
            start: point(start),
            end: end.map(point),
        };
        for (one, other) in all().flat_map(|one| all().map(move |other| (one, other))) {
            if !whole(&one) || !whole(&other) {
                continue;
            }
            let (one, other) = (interval(one), interval(other));
            let left = one.without(&other);
            for at in (0..9).map(point) {
                let inside = left.iter().filter(|part| part.contains(&at)).count();
                let expected = one.contains(&at) && !other.contains(&at);
                assert_eq!(inside, usize::from(expected), "{one:?} without {other:?} at {at:?}");
            }
        }
    }
}
