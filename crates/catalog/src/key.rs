//! Where rows lie: the keys of the node-wide ordered map.
//!
//! Two kinds of families share one key space. *Object families* are keyed `family | bucket u64 BE | key | …`, so that a
//! range is the same interval in each of them. *Range families* are keyed `family | range u64 BE | …`: what a range
//! keeps for itself. An object key is escaped (0x00 becomes 0x00 0xFF) and ended by 0x00 0x00: rows sort as keys do, and
//! the rows of a key lie together. Integers in keys are big endian, because the map compares bytes.
//!
//! The tables are in `docs/formats/catalog.md`.

use ashlar_types::{
    BucketId, ExtentId, Generation, Interval, KeyPoint, ObjectId, RangeId, SessionId, UploadId,
};

/// The families of rows: the first byte of a key.
pub(crate) mod family {
    /// Range: the bucket as the range knows it.
    pub(crate) const BUCKET: u8 = b'b';
    /// Object: the live current object.
    pub(crate) const CURRENT: u8 = b'c';
    /// Object: inline payload.
    pub(crate) const INLINE: u8 = b'd';
    /// Object: reserved, the referrers of a shared extent.
    pub(crate) const REFERRERS: u8 = b'e';
    /// Range: extents to delete.
    pub(crate) const GARBAGE: u8 = b'g';
    /// Range: rows that expire, by time.
    pub(crate) const EXPIRY: u8 = b'l';
    /// Object: the parts of a completed object.
    pub(crate) const MANIFEST: u8 = b'm';
    /// Range: usage of a bucket.
    pub(crate) const USAGE: u8 = b'n';
    /// Object: a part.
    pub(crate) const PART: u8 = b'p';
    /// Range: extents that miss a slot.
    pub(crate) const REPAIR: u8 = b'r';
    /// Range: its head.
    pub(crate) const STATE: u8 = b's';
    /// Range: remembered results.
    pub(crate) const RESULT: u8 = b't';
    /// Object: an open upload, by age.
    pub(crate) const UPLOAD: u8 = b'u';
    /// Object: older versions and delete markers.
    pub(crate) const VERSION: u8 = b'v';
    /// Object: what became of an upload id.
    pub(crate) const UPLOAD_STATE: u8 = b'w';
    /// Object: extents beyond those in the record.
    pub(crate) const EXTENTS: u8 = b'x';
    /// Range: the replica itself; no part of the state.
    pub(crate) const SYSTEM: u8 = b'y';
    /// The root range's rows.
    pub(crate) const ROOT: u8 = b'z';

    /// Keyed by bucket and key, in byte order.
    pub(crate) const OF_OBJECTS: [u8; 9] =
        [CURRENT, INLINE, REFERRERS, MANIFEST, PART, UPLOAD, VERSION, UPLOAD_STATE, EXTENTS];
    /// Keyed by range, in byte order.
    pub(crate) const OF_RANGES: [u8; 7] = [BUCKET, GARBAGE, EXPIRY, USAGE, REPAIR, STATE, RESULT];
}

/// An interval of the map's keys: the first key inside, and the first behind.
pub type KeySpan = (Vec<u8>, Option<Vec<u8>>);

const KEY_END: [u8; 2] = [0, 0];

/// Rows of the replica itself (applied index, membership), which the caller writes beside the rows of an apply: they are
/// no part of the state hash, of [`crate::export`] or of [`crate::owned_intervals`].
pub fn system_key(range: RangeId, field: u8) -> Vec<u8> {
    let mut row = of_range(family::SYSTEM, range);
    row.push(field);
    row
}

/// The start of a range's rows in a range family.
pub(crate) fn of_range(family: u8, range: RangeId) -> Vec<u8> {
    let mut row = Vec::with_capacity(33);
    row.push(family);
    row.extend_from_slice(&range.0.to_be_bytes());
    row
}

/// All rows of a range in a range family.
pub(crate) fn range_interval(family: u8, range: RangeId) -> KeySpan {
    let start = of_range(family, range);
    let end = successor(&start);
    (start, end)
}

/// Where the rows of keys at and behind `at` begin: neither key end nor anything behind it.
pub(crate) fn point(family: u8, bucket: BucketId, key: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(key.len() + 45);
    row.push(family);
    row.extend_from_slice(&bucket.0.to_be_bytes());
    for &byte in key {
        row.push(byte);
        if byte == 0 {
            row.push(0xff);
        }
    }
    row
}

/// The row, or the start of the rows, of exactly this key.
pub(crate) fn of_key(family: u8, at: &KeyPoint) -> Vec<u8> {
    let mut row = point(family, at.bucket, &at.key);
    row.extend_from_slice(&KEY_END);
    row
}

fn behind_key(family: u8, at: &KeyPoint, rest: &[&[u8]]) -> Vec<u8> {
    let mut row = of_key(family, at);
    rest.iter().for_each(|part| row.extend_from_slice(part));
    row
}

pub(crate) fn current(at: &KeyPoint) -> Vec<u8> {
    of_key(family::CURRENT, at)
}

/// The start of a key's older versions and delete markers.
pub(crate) fn versions(at: &KeyPoint) -> Vec<u8> {
    of_key(family::VERSION, at)
}

/// The newest version comes first.
pub(crate) fn version(at: &KeyPoint, generation: Generation) -> Vec<u8> {
    behind_key(family::VERSION, at, &[&(!generation.0).to_be_bytes()])
}

/// Behind all versions of the key: no operation has generation 0.
pub(crate) fn null_pointer(at: &KeyPoint) -> Vec<u8> {
    version(at, Generation(0))
}

/// Whether a row of `v` is such a pointer.
pub(crate) fn is_null_pointer(row: &[u8]) -> bool {
    row.ends_with(&u64::MAX.to_be_bytes())
}

pub(crate) fn inline(at: &KeyPoint, object: ObjectId) -> Vec<u8> {
    behind_key(family::INLINE, at, &[&object.0.to_be_bytes()])
}

pub(crate) fn manifest(at: &KeyPoint, object: ObjectId) -> Vec<u8> {
    behind_key(family::MANIFEST, at, &[&object.0.to_be_bytes()])
}

/// The start of the extent rows of a content.
pub(crate) fn extents(at: &KeyPoint, object: ObjectId) -> Vec<u8> {
    behind_key(family::EXTENTS, at, &[&object.0.to_be_bytes()])
}

/// An extent row is keyed by the offset behind its last byte: the map scans forward only, and the first row with an end
/// behind an offset is the one that holds it. `first` tells rows of empty extents apart.
pub(crate) fn extents_row(at: &KeyPoint, object: ObjectId, end: u64, first: u32) -> Vec<u8> {
    let mut row = extents(at, object);
    row.extend_from_slice(&end.to_be_bytes());
    row.extend_from_slice(&first.to_be_bytes());
    row
}

pub(crate) fn upload(at: &KeyPoint, generation: Generation) -> Vec<u8> {
    behind_key(family::UPLOAD, at, &[&generation.0.to_be_bytes()])
}

pub(crate) fn upload_state(at: &KeyPoint, upload: UploadId) -> Vec<u8> {
    behind_key(family::UPLOAD_STATE, at, &[&upload.0.to_be_bytes()])
}

/// The start of an upload's parts.
pub(crate) fn parts(at: &KeyPoint, upload: UploadId) -> Vec<u8> {
    behind_key(family::PART, at, &[&upload.0.to_be_bytes()])
}

pub(crate) fn part(at: &KeyPoint, upload: UploadId, number: u16) -> Vec<u8> {
    let mut row = parts(at, upload);
    row.extend_from_slice(&number.to_be_bytes());
    row
}

pub(crate) fn bucket(range: RangeId, bucket: BucketId) -> Vec<u8> {
    let mut row = of_range(family::BUCKET, range);
    row.extend_from_slice(&bucket.0.to_be_bytes());
    row
}

pub(crate) fn usage(range: RangeId, bucket: BucketId) -> Vec<u8> {
    let mut row = of_range(family::USAGE, range);
    row.extend_from_slice(&bucket.0.to_be_bytes());
    row
}

pub(crate) fn garbage(range: RangeId, extent: ExtentId) -> Vec<u8> {
    let mut row = of_range(family::GARBAGE, range);
    row.extend_from_slice(&extent.to_bytes());
    row
}

/// Repair rows sort by margin: the worst comes first.
pub(crate) fn repair(range: RangeId, margin: u8, extent: ExtentId) -> Vec<u8> {
    let mut row = of_range(family::REPAIR, range);
    row.push(margin);
    row.extend_from_slice(&extent.to_bytes());
    row
}

pub(crate) fn result(range: RangeId, session: SessionId, seq: u64) -> Vec<u8> {
    let mut row = of_range(family::RESULT, range);
    row.extend_from_slice(&session.0.to_be_bytes());
    row.extend_from_slice(&seq.to_be_bytes());
    row
}

pub(crate) fn state(range: RangeId, field: u8) -> Vec<u8> {
    let mut row = of_range(family::STATE, range);
    row.push(field);
    row
}

/// `expiry | time | the row that expires`.
pub(crate) fn expiry(range: RangeId, at_ms: u64, row: &[u8]) -> Vec<u8> {
    let mut key = of_range(family::EXPIRY, range);
    key.extend_from_slice(&at_ms.to_be_bytes());
    key.extend_from_slice(row);
    key
}

/// The first key behind all keys that begin with `prefix`; `None`: there is none.
pub(crate) fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut end = prefix[..=kept].to_vec();
    end[kept] += 1;
    Some(end)
}

/// The interval of a range in an object family.
pub(crate) fn object_interval(family: u8, interval: &Interval) -> KeySpan {
    let start = point(family, interval.start.bucket, &interval.start.key);
    let end = match &interval.end {
        Some(end) => Some(point(family, end.bucket, &end.key)),
        None => successor(&[family]),
    };
    (start, end)
}

/// Takes a row key of an object family apart: the object key, and what stands behind its end.
pub(crate) fn split(row: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut rest = row.get(9..)?;
    let mut key = Vec::with_capacity(rest.len());
    loop {
        match rest {
            [0, 0, behind @ ..] => return Some((key, behind)),
            [0, 0xff, behind @ ..] => {
                key.push(0);
                rest = behind;
            }
            [0, ..] | [] => return None,
            [byte, behind @ ..] => {
                key.push(*byte);
                rest = behind;
            }
        }
    }
}

/// The last eight bytes of a fixed-width row key, as the integer they are.
pub(crate) fn read_u64(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_sort_as_keys_do_and_come_apart_again(
            left in proptest::collection::vec(prop_oneof![Just(0u8), Just(255), any::<u8>()], 0..6),
            right in proptest::collection::vec(prop_oneof![Just(0u8), Just(255), any::<u8>()], 0..6),
        ) {
            let row = |key: &[u8]| current(&KeyPoint::new(BucketId(1), key));
            prop_assert_eq!(row(&left).cmp(&row(&right)), left.cmp(&right));
            let whole = row(&left);
            prop_assert_eq!(split(&whole), Some((left.clone(), &[][..])));
            let starts = point(family::CURRENT, BucketId(1), &right);
            prop_assert_eq!(row(&left) >= starts, left >= right);
            prop_assert_eq!(row(&left).starts_with(&starts), left.starts_with(&right));
        }
    }
}
