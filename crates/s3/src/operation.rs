//! Which operation a request asks for, and what each may carry: the allow-list.
//!
//! Nothing is silently ignored: a query parameter, an `x-amz-*` header, or a header that sets a condition or a range,
//! which the operation does not read, is answered 501. A new feature begins with its names in this table.

use crate::checksum;
use crate::error::{Code, S3Error, S3Result};
use crate::request::Request;
use http::Method;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    ListBuckets,
    CreateBucket,
    HeadBucket,
    DeleteBucket,
    GetBucketLocation,
    GetBucketVersioning,
    PutBucketVersioning,
    GetBucketAcl,
    ListObjects,
    ListObjectsV2,
    ListObjectVersions,
    ListMultipartUploads,
    DeleteObjects,
    PutObject,
    CopyObject,
    GetObject,
    HeadObject,
    DeleteObject,
    GetObjectTagging,
    GetObjectAcl,
    CreateMultipartUpload,
    UploadPart,
    UploadPartCopy,
    CompleteMultipartUpload,
    AbortMultipartUpload,
    ListParts,
}

/// What an operation reads.
struct Allowed {
    query: &'static [&'static str],
    headers: &'static [&'static [&'static str]],
    /// `x-amz-meta-*`
    metadata: bool,
    /// `x-amz-checksum-<algorithm>`
    checksums: bool,
}

/// Headers that every operation reads, or that mean nothing once the signature has been judged.
const COMMON: &[&str] =
    &["x-amz-content-sha256", "x-amz-date", "x-amz-expected-bucket-owner", "x-amz-user-agent"];
const BODY: &[&str] =
    &["x-amz-decoded-content-length", "x-amz-trailer", "x-amz-sdk-checksum-algorithm"];
const CREATE: &[&str] = &["x-amz-acl", "x-amz-storage-class", "x-amz-website-redirect-location"];
const READ: &[&str] = &[
    "x-amz-checksum-mode",
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
    "range",
    "if-range",
];
const WRITE_IF: &[&str] = &["if-match", "if-none-match"];
const COPY: &[&str] = &[
    "x-amz-copy-source",
    "x-amz-copy-source-if-match",
    "x-amz-copy-source-if-none-match",
    "x-amz-copy-source-if-modified-since",
    "x-amz-copy-source-if-unmodified-since",
    "x-amz-source-expected-bucket-owner",
];
/// Headers without `x-amz-` that would change the meaning of a request.
const GUARDED: &[&str] = &[
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
    "if-range",
    "range",
    "content-range",
];
const OVERRIDES_AND_VERSION: &[&str] = &[
    "response-content-type",
    "response-content-language",
    "response-expires",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "partNumber",
    "versionId",
];
const LIST: [&str; 4] = ["prefix", "delimiter", "max-keys", "encoding-type"];

impl Operation {
    /// Its name, as S3 calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ListBuckets => "ListBuckets",
            Self::CreateBucket => "CreateBucket",
            Self::HeadBucket => "HeadBucket",
            Self::DeleteBucket => "DeleteBucket",
            Self::GetBucketLocation => "GetBucketLocation",
            Self::GetBucketVersioning => "GetBucketVersioning",
            Self::PutBucketVersioning => "PutBucketVersioning",
            Self::GetBucketAcl => "GetBucketAcl",
            Self::ListObjects => "ListObjects",
            Self::ListObjectsV2 => "ListObjectsV2",
            Self::ListObjectVersions => "ListObjectVersions",
            Self::ListMultipartUploads => "ListMultipartUploads",
            Self::DeleteObjects => "DeleteObjects",
            Self::PutObject => "PutObject",
            Self::CopyObject => "CopyObject",
            Self::GetObject => "GetObject",
            Self::HeadObject => "HeadObject",
            Self::DeleteObject => "DeleteObject",
            Self::GetObjectTagging => "GetObjectTagging",
            Self::GetObjectAcl => "GetObjectAcl",
            Self::CreateMultipartUpload => "CreateMultipartUpload",
            Self::UploadPart => "UploadPart",
            Self::UploadPartCopy => "UploadPartCopy",
            Self::CompleteMultipartUpload => "CompleteMultipartUpload",
            Self::AbortMultipartUpload => "AbortMultipartUpload",
            Self::ListParts => "ListParts",
        }
    }

    /// Finds the operation, and refuses what it does not read.
    pub(crate) fn of(request: &Request) -> S3Result<Self> {
        let operation = match (&request.bucket, &request.key) {
            (None, _) => of_service(request),
            (Some(_), None) => of_bucket(request),
            (Some(_), Some(_)) => of_object(request),
        }
        .ok_or_else(|| unknown(request))?;
        operation.check(request)?;
        Ok(operation)
    }

    fn allowed(self) -> Allowed {
        let allowed =
            |query, headers| Allowed { query, headers, metadata: false, checksums: false };
        let body = |query, headers| Allowed { query, headers, metadata: false, checksums: true };
        let object = |query, headers| Allowed { query, headers, metadata: true, checksums: true };
        match self {
            Self::ListBuckets => allowed(&["prefix", "max-buckets", "continuation-token"], &[]),
            Self::CreateBucket => body(
                &[],
                &[
                    BODY,
                    &["x-amz-acl", "x-amz-bucket-object-lock-enabled", "x-amz-object-ownership"],
                ],
            ),
            Self::HeadBucket | Self::DeleteBucket => allowed(&[], &[]),
            Self::GetBucketLocation => allowed(&["location"], &[]),
            Self::GetBucketVersioning => allowed(&["versioning"], &[]),
            Self::PutBucketVersioning => body(&["versioning"], &[BODY]),
            Self::GetBucketAcl => allowed(&["acl"], &[]),
            Self::ListObjects => allowed(&[LIST[0], LIST[1], LIST[2], LIST[3], "marker"], &[]),
            Self::ListObjectsV2 => allowed(
                &[
                    LIST[0],
                    LIST[1],
                    LIST[2],
                    LIST[3],
                    "list-type",
                    "start-after",
                    "continuation-token",
                    "fetch-owner",
                ],
                &[],
            ),
            Self::ListObjectVersions => allowed(
                &[
                    LIST[0],
                    LIST[1],
                    LIST[2],
                    LIST[3],
                    "versions",
                    "key-marker",
                    "version-id-marker",
                ],
                &[],
            ),
            Self::ListMultipartUploads => allowed(
                &[
                    "uploads",
                    "prefix",
                    "delimiter",
                    "encoding-type",
                    "max-uploads",
                    "key-marker",
                    "upload-id-marker",
                ],
                &[],
            ),
            Self::DeleteObjects => body(&["delete"], &[BODY]),
            Self::PutObject => object(&[], &[BODY, CREATE, WRITE_IF]),
            Self::CopyObject => Allowed {
                query: &[],
                headers: &[
                    CREATE,
                    COPY,
                    WRITE_IF,
                    &[
                        "x-amz-metadata-directive",
                        "x-amz-tagging-directive",
                        "x-amz-checksum-algorithm",
                    ],
                ],
                metadata: true,
                checksums: false,
            },
            Self::GetObject | Self::HeadObject => allowed(OVERRIDES_AND_VERSION, &[READ]),
            Self::DeleteObject => allowed(&["versionId"], &[&["if-match"]]),
            Self::GetObjectTagging => allowed(&["tagging", "versionId"], &[]),
            Self::GetObjectAcl => allowed(&["acl", "versionId"], &[]),
            Self::CreateMultipartUpload => Allowed {
                query: &["uploads"],
                headers: &[CREATE, &["x-amz-checksum-algorithm", "x-amz-checksum-type"]],
                metadata: true,
                checksums: false,
            },
            Self::UploadPart => body(&["partNumber", "uploadId"], &[BODY]),
            Self::UploadPartCopy => {
                allowed(&["partNumber", "uploadId"], &[COPY, &["x-amz-copy-source-range"]])
            }
            Self::CompleteMultipartUpload => body(
                &["uploadId"],
                &[BODY, WRITE_IF, &["x-amz-checksum-type", "x-amz-mp-object-size"]],
            ),
            Self::AbortMultipartUpload => allowed(&["uploadId"], &[]),
            Self::ListParts => {
                allowed(&["uploadId", "max-parts", "part-number-marker", "encoding-type"], &[])
            }
        }
    }

    fn check(self, request: &Request) -> S3Result<()> {
        let allowed = self.allowed();
        for (name, _) in &request.query.0 {
            // the SDKs say in x-id which operation they mean
            if name != "x-id" && !allowed.query.contains(&name.as_str()) {
                return Err(S3Error::not_implemented(format!(
                    "the parameter '{name}' of {}",
                    self.name()
                )));
            }
        }
        for name in request.headers.keys().map(http::HeaderName::as_str) {
            if !allowed.has_header(name) {
                return Err(refused_header(self, name));
            }
        }
        Ok(())
    }
}

fn refused_header(operation: Operation, name: &str) -> S3Error {
    if name == "x-amz-security-token" {
        return Code::InvalidToken.into();
    }
    S3Error::not_implemented(format!("the header '{name}' of {}", operation.name()))
        .fact("Header", name)
}

impl Allowed {
    fn has_header(&self, name: &str) -> bool {
        let acts = name.starts_with("x-amz-") || GUARDED.contains(&name);
        !acts
            || COMMON.contains(&name)
            || self.headers.iter().any(|group| group.contains(&name))
            || self.metadata && name.starts_with("x-amz-meta-")
            || self.checksums && checksum::of_header(name).is_some()
    }
}

fn unknown(request: &Request) -> S3Error {
    match request.method {
        Method::GET | Method::HEAD | Method::PUT | Method::POST | Method::DELETE => {
            S3Error::not_implemented("this operation")
        }
        _ => Code::MethodNotAllowed.into(),
    }
}

fn of_service(request: &Request) -> Option<Operation> {
    (request.method == Method::GET).then_some(Operation::ListBuckets)
}

fn of_bucket(request: &Request) -> Option<Operation> {
    let has = |name| request.query.has(name);
    match request.method {
        Method::PUT if has("versioning") => Some(Operation::PutBucketVersioning),
        Method::PUT => Some(Operation::CreateBucket),
        Method::HEAD => Some(Operation::HeadBucket),
        Method::DELETE => Some(Operation::DeleteBucket),
        Method::POST if has("delete") => Some(Operation::DeleteObjects),
        Method::GET if has("location") => Some(Operation::GetBucketLocation),
        Method::GET if has("versioning") => Some(Operation::GetBucketVersioning),
        Method::GET if has("acl") => Some(Operation::GetBucketAcl),
        Method::GET if has("versions") => Some(Operation::ListObjectVersions),
        Method::GET if has("uploads") => Some(Operation::ListMultipartUploads),
        Method::GET => match request.query.get("list-type") {
            Some("2") => Some(Operation::ListObjectsV2),
            // any other version of the list is refused by the allow-list
            _ => Some(Operation::ListObjects),
        },
        _ => None,
    }
}

fn of_object(request: &Request) -> Option<Operation> {
    let has = |name| request.query.has(name);
    let copies = request.headers.contains_key("x-amz-copy-source");
    match request.method {
        Method::PUT if has("partNumber") || has("uploadId") => {
            Some(if copies { Operation::UploadPartCopy } else { Operation::UploadPart })
        }
        Method::PUT => Some(if copies { Operation::CopyObject } else { Operation::PutObject }),
        Method::GET if has("uploadId") => Some(Operation::ListParts),
        Method::GET if has("tagging") => Some(Operation::GetObjectTagging),
        Method::GET if has("acl") => Some(Operation::GetObjectAcl),
        Method::GET => Some(Operation::GetObject),
        Method::HEAD => Some(Operation::HeadObject),
        Method::POST if has("uploads") => Some(Operation::CreateMultipartUpload),
        Method::POST if has("uploadId") => Some(Operation::CompleteMultipartUpload),
        Method::DELETE if has("uploadId") => Some(Operation::AbortMultipartUpload),
        Method::DELETE => Some(Operation::DeleteObject),
        _ => None,
    }
}
