//! What a refusal says on the wire: a code of S3, its status, a sentence, and the facts that S3 adds to it.
//!
//! Codes live here and nowhere else in the house. A refusal is a value until `response` writes it as XML; HEAD and 304
//! drop the body there, not here.

use http::StatusCode;
use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $status:literal, $message:literal;)*) => {
        /// A code of S3.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code {
            $(#[doc = $message] $name,)*
        }

        impl Code {
            /// As S3 writes it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// The HTTP status that goes with it.
            pub fn status(self) -> StatusCode {
                let status: u16 = match self { $(Self::$name => $status,)* };
                StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }

            /// The sentence that is said where nobody has a better one.
            pub fn message(self) -> &'static str {
                match self { $(Self::$name => $message,)* }
            }

            /// The code of that name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $(stringify!($name) => Some(Self::$name),)* _ => None }
            }
        }
    };
}

codes! {
    AccessDenied = 403, "access denied";
    AuthorizationHeaderMalformed = 400, "the authorization header is malformed";
    AuthorizationQueryParametersError = 400, "the query parameters of the signature are not valid";
    BadDigest = 400, "the digest or checksum that was given does not match the bytes that were received";
    BucketAlreadyOwnedByYou = 409, "the bucket exists already, and it is yours";
    BucketNotEmpty = 409, "the bucket is not empty";
    EntityTooLarge = 400, "the object is larger than the allowed maximum";
    EntityTooSmall = 400, "a part other than the last is smaller than 5 MiB";
    IncompleteBody = 400, "the body ended before the number of bytes that was declared";
    InsufficientStorage = 507, "there is no room left for this write";
    InternalError = 500, "an internal error occurred";
    InvalidAccessKeyId = 403, "the access key does not exist";
    InvalidArgument = 400, "an argument is not valid";
    InvalidBucketName = 400, "the bucket name is not valid";
    InvalidDigest = 400, "the Content-MD5 is not a base64 MD5";
    InvalidLocationConstraint = 400, "the location constraint is not this region";
    InvalidPart = 400, "a part was not found, or its ETag does not match";
    InvalidPartNumber = 416, "the object has no part of that number";
    InvalidPartOrder = 400, "the parts are not in ascending order of their numbers";
    InvalidRange = 416, "the range does not lie in the object";
    InvalidRequest = 400, "the request is not valid";
    InvalidStorageClass = 400, "the storage class is not valid";
    InvalidToken = 400, "the session token is not valid";
    InvalidURI = 400, "the URI could not be parsed";
    KeyTooLongError = 400, "the key is longer than 1024 bytes";
    MalformedXML = 400, "the XML is not well formed, or not as this operation expects it";
    MaxMessageLengthExceeded = 400, "the request's body is too large";
    MetadataTooLarge = 400, "the user metadata is larger than 2 KiB";
    MethodNotAllowed = 405, "the method is not allowed on this resource";
    MissingContentLength = 411, "a Content-Length is needed";
    MissingSecurityHeader = 400, "a header that the signature needs is missing";
    NoSuchBucket = 404, "the bucket does not exist";
    NoSuchKey = 404, "the key does not exist";
    NoSuchUpload = 404, "the upload does not exist: it may have been completed or aborted";
    NoSuchVersion = 404, "the version does not exist";
    NotImplemented = 501, "this is not implemented";
    NotModified = 304, "not modified";
    OperationAborted = 409, "a conflicting operation on this resource is in progress: try again";
    PreconditionFailed = 412, "a precondition does not hold";
    RequestHeaderSectionTooLarge = 400, "the headers are larger than 16 KiB";
    RequestTimeout = 400, "the body did not arrive in time";
    RequestTimeTooSkewed = 403, "the request's time is too far from the server's";
    ServiceUnavailable = 503, "the service cannot do this now: try again";
    SignatureDoesNotMatch = 403, "the signature does not match the one computed from the request and the secret key";
    SlowDown = 503, "too many requests at once: slow down";
    XAmzContentSHA256Mismatch = 400, "x-amz-content-sha256 does not match the bytes that were received";
}

/// A refusal as the client sees it.
#[derive(Debug, Clone)]
pub struct S3Error {
    /// Its code.
    pub code: Code,
    /// What happened, in a sentence.
    pub message: String,
    /// Elements beside code and message.
    pub facts: Vec<(&'static str, String)>,
    /// Headers beside those of every answer.
    pub headers: Vec<(&'static str, String)>,
}

/// What a handler gives back.
pub type S3Result<T> = Result<T, S3Error>;

impl S3Error {
    /// A refusal with a sentence of its own.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), facts: Vec::new(), headers: Vec::new() }
    }

    /// The same with one more element.
    #[must_use]
    pub fn fact(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.facts.push((name, value.into()));
        self
    }

    /// The same with one more header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// 501: something that would change the meaning of the request and is not supported.
    pub fn not_implemented(what: impl fmt::Display) -> Self {
        Self::new(Code::NotImplemented, format!("{what} is not implemented"))
    }
}

impl From<Code> for S3Error {
    fn from(code: Code) -> Self {
        Self::new(code, code.message())
    }
}

impl fmt::Display for S3Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.message)
    }
}

impl std::error::Error for S3Error {}
