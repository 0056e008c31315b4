//! What a client says of an object beside its bytes, from headers and back to headers.

use crate::error::{Code, S3Error, S3Result};
use crate::request::Request;
use ashlar_types::{ContentHeader, Description};

/// User metadata: names and values together.
const METADATA_BYTES_MAX: usize = 2 * 1024;

const HEADERS: [(ContentHeader, &str); 7] = [
    (ContentHeader::Type, "content-type"),
    (ContentHeader::Encoding, "content-encoding"),
    (ContentHeader::Language, "content-language"),
    (ContentHeader::Disposition, "content-disposition"),
    (ContentHeader::CacheControl, "cache-control"),
    (ContentHeader::Expires, "expires"),
    (ContentHeader::WebsiteRedirect, "x-amz-website-redirect-location"),
];
const META: &str = "x-amz-meta-";

/// Reads it.
pub(crate) fn read(request: &Request) -> S3Result<Description> {
    let mut description = Description::default();
    for (header, name) in HEADERS {
        let Some(text) = request.header(name)? else { continue };
        let text =
            if header == ContentHeader::Encoding { without_framing(text) } else { text.to_owned() };
        if !text.is_empty() {
            description.headers.push((header, text));
        }
    }
    description.metadata = metadata(request)?;
    check_values(request)?;
    Ok(description)
}

/// `aws-chunked` is how the body travelled, not what the object is.
fn without_framing(encoding: &str) -> String {
    let kept = encoding.split(',').map(str::trim).filter(|part| *part != "aws-chunked");
    kept.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

fn metadata(request: &Request) -> S3Result<Vec<(String, String)>> {
    let mut metadata: Vec<(String, String)> = Vec::new();
    for name in request.headers.keys() {
        let Some(short) = name.as_str().strip_prefix(META) else { continue };
        let values = request.headers.get_all(name).iter().map(|value| {
            std::str::from_utf8(value.as_bytes()).map(str::trim).map_err(|_| {
                S3Error::new(Code::InvalidArgument, format!("the value of {name} is not UTF-8"))
            })
        });
        metadata.push((short.to_owned(), values.collect::<S3Result<Vec<_>>>()?.join(",")));
    }
    metadata.sort();
    let bytes: usize = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > METADATA_BYTES_MAX {
        let message =
            format!("the user metadata has {bytes} bytes, {METADATA_BYTES_MAX} are allowed");
        return Err(S3Error::new(Code::MetadataTooLarge, message)
            .fact("Size", bytes.to_string())
            .fact("MaxSizeAllowed", METADATA_BYTES_MAX.to_string()));
    }
    Ok(metadata)
}

/// Refuses values that ask for something else than what holds anyway.
pub(crate) fn check_values(request: &Request) -> S3Result<()> {
    // all buckets have one owner, so his full control is private too
    if let Some(acl) = request.header("x-amz-acl")?
        && !matches!(acl, "private" | "bucket-owner-full-control")
    {
        return Err(S3Error::not_implemented(format!("the ACL '{acl}'")));
    }
    match request.header("x-amz-storage-class")? {
        None | Some("STANDARD") => Ok(()),
        Some(class) if class.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') => {
            Err(S3Error::not_implemented(format!("the storage class '{class}'")))
        }
        Some(_) => Err(Code::InvalidStorageClass.into()),
    }
}

/// The headers that an answer carries.
pub(crate) fn headers(description: &Description) -> Vec<(String, String)> {
    let name_of = |header| HEADERS.iter().find(|row| row.0 == header).map(|row| row.1);
    let content = description.headers.iter().filter_map(|(header, value)| {
        name_of(*header).map(|name| (name.to_owned(), value.clone()))
    });
    let metadata =
        description.metadata.iter().map(|(name, value)| (format!("{META}{name}"), value.clone()));
    let mut headers: Vec<_> = content.chain(metadata).collect();
    if !headers.iter().any(|(name, _)| name == "content-type") {
        headers.push(("content-type".to_owned(), "binary/octet-stream".to_owned()));
    }
    headers
}
