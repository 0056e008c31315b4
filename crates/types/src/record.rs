//! What the catalog keeps of an object: its record, and the parts of an upload.

use crate::{DecodeError, Generation, ObjectId, RequestToken};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// An entity tag: the MD5 of the content, or of the parts' MD5s and their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Etag {
    /// The digest.
    pub md5: [u8; 16],
    /// How many parts a multipart upload had; 0 for a single PUT.
    pub parts: u32,
}

impl fmt::Display for Etag {
    /// Without the quotes in which HTTP carries it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", hex::encode(self.md5))?;
        if self.parts == 0 { Ok(()) } else { write!(f, "-{}", self.parts) }
    }
}

impl std::str::FromStr for Etag {
    type Err = DecodeError;
    /// Reads a tag with or without quotes.
    fn from_str(text: &str) -> Result<Self, DecodeError> {
        let bad = || DecodeError::Malformed {
            name: "etag",
            version: 0,
            detail: text.chars().take(80).collect(),
        };
        let bare = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
        let (digest, parts) = bare.split_once('-').unwrap_or((bare, "0"));
        let mut md5 = [0; 16];
        hex::decode_to_slice(digest, &mut md5).map_err(|_| bad())?;
        Ok(Self { md5, parts: parts.parse().map_err(|_| bad())? })
    }
}

/// A checksum algorithm of S3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ChecksumAlgorithm {
    /// CRC-32 (ISO-HDLC).
    Crc32,
    /// CRC-32C (Castagnoli).
    Crc32c,
    /// CRC-64/NVME.
    Crc64Nvme,
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
}

/// What a checksum covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ChecksumType {
    /// All the bytes of the object.
    FullObject,
    /// The checksums of the parts.
    Composite,
}

/// A checksum that the client gave or asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksum {
    /// How it was computed.
    pub algorithm: ChecksumAlgorithm,
    /// Over what.
    pub kind: ChecksumType,
    /// Its bytes, big endian.
    pub value: Bytes,
}

/// A header of the content that is given back as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ContentHeader {
    /// `Content-Type`
    Type,
    /// `Content-Encoding`, without `aws-chunked`
    Encoding,
    /// `Content-Language`
    Language,
    /// `Content-Disposition`
    Disposition,
    /// `Cache-Control`
    CacheControl,
    /// `Expires`
    Expires,
    /// `x-amz-website-redirect-location`
    WebsiteRedirect,
}

/// What the client said of an object beside its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Description {
    /// Content headers, each at most once.
    pub headers: Vec<(ContentHeader, String)>,
    /// User metadata: names without `x-amz-meta-`, in lower case.
    pub metadata: Vec<(String, String)>,
}

/// The record of an object, without its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRecord {
    /// This content's id.
    pub object: ObjectId,
    /// The generation that the range gave it when it was committed.
    pub generation: Generation,
    /// Its length.
    pub size: u64,
    /// When it was committed: the proposer's wall clock, in milliseconds since 1970. Shown, never compared.
    pub modified_ms: u64,
    /// Its entity tag.
    pub etag: Etag,
    /// Its checksums.
    pub checksums: Vec<Checksum>,
    /// What the client said of it.
    pub description: Description,
    /// Lengths of the parts, in order of their numbers; empty for a single PUT.
    pub parts: Vec<PartSummary>,
    /// The request that wrote it, so that its own retry is answered its success (C7).
    pub token: Option<RequestToken>,
}

/// A part of a completed upload, as `partNumber` reads and attributes need it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartSummary {
    /// 1 to 10,000.
    pub number: u16,
    /// Its length.
    pub size: u64,
    /// Its checksum, where the upload has one.
    pub checksum: Option<Checksum>,
}

/// A part of an open upload, without its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRecord {
    /// 1 to 10,000.
    pub number: u16,
    /// This content's id: a part that is uploaded again has another.
    pub object: ObjectId,
    /// Its length.
    pub size: u64,
    /// When it was committed: the proposer's wall clock, in milliseconds since 1970.
    pub modified_ms: u64,
    /// The MD5 of its bytes.
    pub etag: Etag,
    /// Its checksums.
    pub checksums: Vec<Checksum>,
}

/// An open multipart upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadRecord {
    /// The generation that the range gave it: uploads of a key are listed in this order.
    pub generation: Generation,
    /// When it was created: the proposer's wall clock, in milliseconds since 1970.
    pub created_ms: u64,
    /// What the client said of the object to be.
    pub description: Description,
    /// The checksum that its parts carry.
    pub checksum: Option<(ChecksumAlgorithm, ChecksumType)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_read_with_and_without_quotes() {
        let text = "d41d8cd98f00b204e9800998ecf8427e";
        let single: Etag = text.parse().expect("well formed");
        assert_eq!(format!("\"{text}\"").parse(), Ok(single));
        assert_eq!(single.to_string(), text);
        let many: Etag = format!("{text}-3").parse().expect("well formed");
        assert_eq!((many.parts, many.to_string()), (3, format!("{text}-3")));
        assert!("xyz".parse::<Etag>().is_err());
    }
}
