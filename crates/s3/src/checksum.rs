//! The checksums of S3: their names on the wire, computing them while bytes pass, and combining those of parts.

use crate::error::{Code, S3Error, S3Result};
use ashlar_types::{Checksum, ChecksumAlgorithm, ChecksumType};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use sha2::Digest as _;

/// All algorithms, each with its name in headers and in elements.
pub(crate) const ALL: [(ChecksumAlgorithm, &str, &str, &str); 5] = [
    (ChecksumAlgorithm::Crc32, "CRC32", "x-amz-checksum-crc32", "ChecksumCRC32"),
    (ChecksumAlgorithm::Crc32c, "CRC32C", "x-amz-checksum-crc32c", "ChecksumCRC32C"),
    (ChecksumAlgorithm::Crc64Nvme, "CRC64NVME", "x-amz-checksum-crc64nvme", "ChecksumCRC64NVME"),
    (ChecksumAlgorithm::Sha1, "SHA1", "x-amz-checksum-sha1", "ChecksumSHA1"),
    (ChecksumAlgorithm::Sha256, "SHA256", "x-amz-checksum-sha256", "ChecksumSHA256"),
];

fn row(
    algorithm: ChecksumAlgorithm,
) -> &'static (ChecksumAlgorithm, &'static str, &'static str, &'static str) {
    // the table has a row for each variant, in the order of the variants
    &ALL[algorithm as usize]
}

/// `CRC32`
pub(crate) fn name(algorithm: ChecksumAlgorithm) -> &'static str {
    row(algorithm).1
}

/// `x-amz-checksum-crc32`
pub(crate) fn header(algorithm: ChecksumAlgorithm) -> &'static str {
    row(algorithm).2
}

/// `ChecksumCRC32`
pub(crate) fn element(algorithm: ChecksumAlgorithm) -> &'static str {
    row(algorithm).3
}

/// The algorithm that a header or element value names.
pub(crate) fn parse_name(text: &str) -> S3Result<ChecksumAlgorithm> {
    ALL.iter().find(|row| row.1.eq_ignore_ascii_case(text)).map(|row| row.0).ok_or_else(|| {
        S3Error::new(Code::InvalidRequest, format!("'{text}' is not a checksum algorithm"))
    })
}

/// The algorithm whose header this is.
pub(crate) fn of_header(header: &str) -> Option<ChecksumAlgorithm> {
    ALL.iter().find(|row| row.2 == header).map(|row| row.0)
}

/// How many bytes a value has.
pub(crate) fn length(algorithm: ChecksumAlgorithm) -> usize {
    match algorithm {
        ChecksumAlgorithm::Crc32 | ChecksumAlgorithm::Crc32c => 4,
        ChecksumAlgorithm::Crc64Nvme => 8,
        ChecksumAlgorithm::Sha1 => 20,
        ChecksumAlgorithm::Sha256 => 32,
    }
}

/// `FULL_OBJECT`
pub(crate) fn kind_name(kind: ChecksumType) -> &'static str {
    match kind {
        ChecksumType::FullObject => "FULL_OBJECT",
        ChecksumType::Composite => "COMPOSITE",
    }
}

/// The type that a header or element value names.
pub(crate) fn parse_kind(text: &str) -> S3Result<ChecksumType> {
    match text {
        "FULL_OBJECT" => Ok(ChecksumType::FullObject),
        "COMPOSITE" => Ok(ChecksumType::Composite),
        other => Err(S3Error::new(
            Code::InvalidRequest,
            format!("'{other}' is not a checksum type: FULL_OBJECT or COMPOSITE is expected"),
        )),
    }
}

/// The value as it is written; the checksum of parts ends in their number.
pub(crate) fn encode(checksum: &Checksum, parts: usize) -> String {
    let text = STANDARD.encode(&checksum.value);
    match checksum.kind {
        ChecksumType::Composite if parts > 0 => format!("{text}-{parts}"),
        ChecksumType::Composite | ChecksumType::FullObject => text,
    }
}

/// The bytes of a value that a client gave.
pub(crate) fn decode(algorithm: ChecksumAlgorithm, text: &str) -> S3Result<Bytes> {
    let bad = || {
        let header = header(algorithm);
        S3Error::new(Code::InvalidRequest, format!("the value of {header} is not valid"))
    };
    let bytes = STANDARD.decode(text).map_err(|_| bad())?;
    if bytes.len() == length(algorithm) { Ok(bytes.into()) } else { Err(bad()) }
}

/// Computes a checksum while the bytes pass.
pub(crate) enum Hasher {
    Crc(ChecksumAlgorithm, Box<crc_fast::Digest>),
    Sha1(Box<sha1::Sha1>),
    Sha256(Box<sha2::Sha256>),
}

fn crc(algorithm: ChecksumAlgorithm) -> Option<CrcAlgorithm> {
    match algorithm {
        ChecksumAlgorithm::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
        ChecksumAlgorithm::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
        ChecksumAlgorithm::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
        ChecksumAlgorithm::Sha1 | ChecksumAlgorithm::Sha256 => None,
    }
}

impl Hasher {
    pub(crate) fn new(algorithm: ChecksumAlgorithm) -> Self {
        match (crc(algorithm), algorithm) {
            (Some(crc), _) => Self::Crc(algorithm, Box::new(crc_fast::Digest::new(crc))),
            (None, ChecksumAlgorithm::Sha1) => Self::Sha1(Box::default()),
            (None, _) => Self::Sha256(Box::default()),
        }
    }

    pub(crate) fn algorithm(&self) -> ChecksumAlgorithm {
        match self {
            Self::Crc(algorithm, _) => *algorithm,
            Self::Sha1(_) => ChecksumAlgorithm::Sha1,
            Self::Sha256(_) => ChecksumAlgorithm::Sha256,
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Crc(_, digest) => digest.update(bytes),
            Self::Sha1(digest) => digest.update(bytes),
            Self::Sha256(digest) => digest.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Checksum {
        let (algorithm, value) = match self {
            Self::Crc(algorithm, digest) => (algorithm, crc_bytes(algorithm, digest.finalize())),
            Self::Sha1(digest) => {
                (ChecksumAlgorithm::Sha1, Bytes::copy_from_slice(&digest.finalize()))
            }
            Self::Sha256(digest) => {
                (ChecksumAlgorithm::Sha256, Bytes::copy_from_slice(&digest.finalize()))
            }
        };
        Checksum { algorithm, kind: ChecksumType::FullObject, value }
    }
}

/// The last bytes of a CRC, big endian.
fn crc_bytes(algorithm: ChecksumAlgorithm, value: u64) -> Bytes {
    let bytes = value.to_be_bytes();
    Bytes::copy_from_slice(&bytes[bytes.len() - length(algorithm)..])
}

fn crc_value(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

/// The checksum of an object from those of its parts (value and length), or `None` where the kind has no such rule.
pub(crate) fn of_parts(
    algorithm: ChecksumAlgorithm,
    kind: ChecksumType,
    parts: &[(Bytes, u64)],
) -> Option<Checksum> {
    let value = match (kind, crc(algorithm)) {
        (ChecksumType::Composite, _) => {
            let mut hasher = Hasher::new(algorithm);
            parts.iter().for_each(|(value, _)| hasher.update(value));
            hasher.finish().value
        }
        (ChecksumType::FullObject, Some(crc)) => {
            let empty = crc_fast::checksum(crc, b"");
            let combine = |sum, part: &(Bytes, u64)| {
                crc_fast::checksum_combine(crc, sum, crc_value(&part.0), part.1)
            };
            crc_bytes(algorithm, parts.iter().fold(empty, combine))
        }
        (ChecksumType::FullObject, None) => return None,
    };
    Some(Checksum { algorithm, kind, value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(algorithm: ChecksumAlgorithm, bytes: &[u8]) -> Checksum {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    #[test]
    fn the_check_values_of_the_catalogues() {
        let expect = [
            (ChecksumAlgorithm::Crc32, "y/Q5Jg=="),
            (ChecksumAlgorithm::Crc32c, "4waSgw=="),
            (ChecksumAlgorithm::Crc64Nvme, "rosUhgp5mIg="),
            (ChecksumAlgorithm::Sha1, "98O8HYCOBHMq32eZZczDTKeuNEE="),
            (ChecksumAlgorithm::Sha256, "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU="),
        ];
        for (algorithm, text) in expect {
            assert_eq!(row(algorithm).0, algorithm);
            assert_eq!(encode(&whole(algorithm, b"123456789"), 0), text, "{algorithm:?}");
        }
    }

    proptest! {
        #[test]
        fn full_object_crcs_of_parts_are_those_of_the_whole(
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..6),
        ) {
            for algorithm in [ChecksumAlgorithm::Crc32, ChecksumAlgorithm::Crc32c, ChecksumAlgorithm::Crc64Nvme] {
                let sums: Vec<_> =
                    parts.iter().map(|part| (whole(algorithm, part).value, part.len() as u64)).collect();
                let combined = of_parts(algorithm, ChecksumType::FullObject, &sums);
                prop_assert_eq!(combined, Some(whole(algorithm, &parts.concat())));
            }
        }
    }
}
