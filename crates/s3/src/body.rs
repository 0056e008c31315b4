//! The bytes that a client sends, with everything that was said about them verified as they pass.
//!
//! An [`Upload`] is read to its end and then asked for its verdict. Length, payload hash, chunk signatures, trailers,
//! Content-MD5 and checksums are compared here; a backend only supplies the MD5, which it needs for the ETag anyway and
//! computes in its own lane. Nothing is buffered.

use crate::backend::{Content, Failure};
use crate::checksum::{self, Hasher};
use crate::chunked::Decoder;
use crate::error::{Code, S3Error, S3Result};
use crate::request::Request;
use crate::response::refusal;
use crate::signature::ChunkSigner;
use ashlar_types::{Checksum, ChecksumAlgorithm};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use md5::{Digest as _, Md5};
use sha2::Sha256;

/// An error of a body, of whatever type.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// A request's body.
pub type RequestBody = UnsyncBoxBody<Bytes, BodyError>;

/// The largest object of one request, and the largest part.
pub(crate) const OBJECT_BYTES_MAX: u64 = 5 * 1024 * 1024 * 1024;
/// The largest XML.
const XML_BYTES_MAX: u64 = 2 * 1024 * 1024;

enum Source {
    Plain(RequestBody),
    Chunked {
        body: RequestBody,
        decoder: Box<Decoder>,
        pending: Bytes,
    },
    /// A copy: the bytes come from an object of ours.
    Copied(Content),
}

/// What a checksum is compared with.
enum Expected {
    Value(Bytes),
    Trailer,
    Nothing,
}

/// See the module.
pub struct Upload {
    source: Source,
    length: u64,
    received: u64,
    ended: bool,
    payload_sha256: Option<(Box<Sha256>, [u8; 32])>,
    checksums: Vec<(Hasher, Expected)>,
    content_md5: Option<[u8; 16]>,
    trailers: Vec<(String, String)>,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("length", &self.length).finish_non_exhaustive()
    }
}

/// How the body of a request is framed and signed.
pub(crate) struct Framing {
    /// For signed chunks.
    pub(crate) signer: Option<ChunkSigner>,
}

impl Upload {
    /// The body of a request.
    pub(crate) fn of(request: &Request, body: RequestBody, framing: Framing) -> S3Result<Self> {
        let payload = request.header("x-amz-content-sha256")?.unwrap_or("UNSIGNED-PAYLOAD");
        let is_chunked = payload.starts_with("STREAMING-");
        let has_trailer = payload.ends_with("-TRAILER");
        let length = if is_chunked {
            declared(request, "x-amz-decoded-content-length")?
        } else {
            declared(request, "content-length")?
        };
        let source = if is_chunked {
            let decoder = Box::new(Decoder::new(framing.signer, has_trailer));
            Source::Chunked { body, decoder, pending: Bytes::new() }
        } else {
            Source::Plain(body)
        };
        let mut payload_sha256 = None;
        if !is_chunked && payload != "UNSIGNED-PAYLOAD" {
            let mut digest = [0; 32];
            hex::decode_to_slice(payload, &mut digest).map_err(|_| {
                S3Error::new(Code::InvalidArgument, "x-amz-content-sha256 is not valid")
            })?;
            payload_sha256 = Some((Box::default(), digest));
        }
        Ok(Self {
            source,
            length,
            received: 0,
            ended: false,
            payload_sha256,
            checksums: expected_checksums(request, has_trailer)?,
            content_md5: content_md5(request)?,
            trailers: Vec::new(),
        })
    }

    /// Bytes of an object of ours, or of a caller in this process: nothing was said about them that could be verified.
    pub fn copied(content: Content, length: u64) -> Self {
        Self {
            source: Source::Copied(content),
            length,
            received: 0,
            ended: false,
            payload_sha256: None,
            checksums: Vec::new(),
            content_md5: None,
            trailers: Vec::new(),
        }
    }

    /// How many bytes were declared.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The algorithm of the checksum that the client gives.
    pub(crate) fn algorithm(&self) -> Option<ChecksumAlgorithm> {
        self.checksums.first().map(|(hasher, _)| hasher.algorithm())
    }

    /// Computes this one too, where the client did not give it.
    pub(crate) fn compute(&mut self, algorithm: ChecksumAlgorithm) {
        if self.algorithm() != Some(algorithm) {
            self.checksums.push((Hasher::new(algorithm), Expected::Nothing));
        }
    }

    /// The next bytes; `None` at the end, when all that was declared has come. An error: nothing may be stored.
    pub async fn next(&mut self) -> S3Result<Option<Bytes>> {
        while !self.ended {
            match self.pull().await? {
                Some(bytes) if bytes.is_empty() => {}
                Some(bytes) => {
                    self.pass(&bytes)?;
                    return Ok(Some(bytes));
                }
                None => self.end()?,
            }
        }
        Ok(None)
    }

    fn pass(&mut self, bytes: &[u8]) -> S3Result<()> {
        self.received += bytes.len() as u64;
        if self.received > self.length {
            return Err(S3Error::new(
                Code::IncompleteBody,
                "the body is longer than it was declared",
            ));
        }
        if let Some((digest, _)) = &mut self.payload_sha256 {
            digest.update(bytes);
        }
        self.checksums.iter_mut().for_each(|(hasher, _)| hasher.update(bytes));
        Ok(())
    }

    fn end(&mut self) -> S3Result<()> {
        self.ended = true;
        if let Source::Chunked { decoder, .. } = &mut self.source {
            let decoder = std::mem::replace(decoder, Box::new(Decoder::new(None, false)));
            self.trailers = decoder.finish()?;
        }
        if self.received < self.length {
            return Err(Code::IncompleteBody.into());
        }
        Ok(())
    }

    async fn pull(&mut self) -> S3Result<Option<Bytes>> {
        match &mut self.source {
            Source::Plain(body) => data(body).await,
            Source::Copied(content) => {
                content.next().await.transpose().map_err(|failure| refusal(&failure))
            }
            Source::Chunked { body, decoder, pending } => loop {
                if let Some(bytes) = decoder.take(pending)? {
                    return Ok(Some(bytes));
                }
                match data(body).await? {
                    Some(bytes) => *pending = bytes,
                    None => return Ok(None),
                }
            },
        }
    }

    /// The verdict over all the bytes, given their MD5: the checksums to be stored with them.
    pub fn finish(self, md5: [u8; 16]) -> Result<Vec<Checksum>, Failure> {
        if !self.ended {
            return Err(Failure::Internal("a body was judged before its end".into()));
        }
        if self.content_md5.is_some_and(|given| given != md5) {
            let message = "the Content-MD5 does not match the bytes that were received";
            return Err(S3Error::new(Code::BadDigest, message).into());
        }
        if let Some((digest, given)) = self.payload_sha256
            && digest.finalize()[..] != given
        {
            return Err(S3Error::from(Code::XAmzContentSHA256Mismatch).into());
        }
        let mut checksums = Vec::with_capacity(self.checksums.len());
        for (hasher, expected) in self.checksums {
            let computed = hasher.finish();
            compare(&computed, &expected, &self.trailers)?;
            checksums.push(computed);
        }
        Ok(checksums)
    }

    /// All of a small body, verified.
    pub(crate) async fn xml(mut self) -> S3Result<Bytes> {
        if self.length > XML_BYTES_MAX {
            let message = format!("the XML has {} bytes, {XML_BYTES_MAX} are allowed", self.length);
            return Err(S3Error::new(Code::MaxMessageLengthExceeded, message));
        }
        let mut all = BytesMut::new();
        while let Some(bytes) = self.next().await? {
            all.extend_from_slice(&bytes);
        }
        let md5 = Md5::digest(&all).into();
        self.finish(md5).map_err(|failure| refusal(&failure))?;
        Ok(all.freeze())
    }
}

/// The next data of a body. A connection that breaks or stalls makes the body incomplete.
async fn data(body: &mut RequestBody) -> S3Result<Option<Bytes>> {
    loop {
        let frame = match body.frame().await {
            None => return Ok(None),
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Err(broken(&error)),
        };
        if let Ok(bytes) = frame.into_data() {
            return Ok(Some(bytes));
        }
    }
}

fn broken(error: &BodyError) -> S3Error {
    match error.downcast_ref::<S3Error>() {
        Some(error) => error.clone(),
        None => S3Error::new(Code::IncompleteBody, format!("the body broke off: {error}")),
    }
}

fn compare(
    computed: &Checksum,
    expected: &Expected,
    trailers: &[(String, String)],
) -> S3Result<()> {
    let header = checksum::header(computed.algorithm);
    let given = match expected {
        Expected::Nothing => return Ok(()),
        Expected::Value(value) => value.clone(),
        Expected::Trailer => {
            let value = trailers.iter().find(|(name, _)| name == header);
            let missing = || {
                let message = format!("the trailer {header} was announced and did not come");
                S3Error::new(Code::InvalidRequest, message)
            };
            checksum::decode(computed.algorithm, &value.ok_or_else(missing)?.1)?
        }
    };
    if given == computed.value {
        return Ok(());
    }
    let name = checksum::name(computed.algorithm);
    let message = format!("the {name} that was given does not match the bytes that were received");
    Err(S3Error::new(Code::BadDigest, message))
}

fn declared(request: &Request, header: &str) -> S3Result<u64> {
    let Some(text) = request.header(header)? else {
        // a POST or PUT without a body may say nothing
        let may_come = request.headers.contains_key(http::header::TRANSFER_ENCODING);
        let is_put = request.method == http::Method::PUT && request.key.is_some();
        return if may_come || is_put || header != "content-length" {
            Err(Code::MissingContentLength.into())
        } else {
            Ok(0)
        };
    };
    text.parse()
        .map_err(|_| S3Error::new(Code::InvalidArgument, format!("{header} is not a number")))
}

fn content_md5(request: &Request) -> S3Result<Option<[u8; 16]>> {
    let Some(text) = request.header("content-md5")? else { return Ok(None) };
    let bytes = STANDARD.decode(text).map_err(|_| Code::InvalidDigest)?;
    Ok(Some(bytes.try_into().map_err(|_| Code::InvalidDigest)?))
}

/// The checksum that the client gives by header or trailer, or asks for.
fn expected_checksums(request: &Request, has_trailer: bool) -> S3Result<Vec<(Hasher, Expected)>> {
    let mut found = Vec::new();
    // on completion, the header is about the parts together, not about the XML
    if !request.query.has("uploadId") || request.query.has("partNumber") {
        for (algorithm, _, header, _) in checksum::ALL {
            if let Some(text) = request.header(header)? {
                let value = checksum::decode(algorithm, text)?;
                found.push((Hasher::new(algorithm), Expected::Value(value)));
            }
        }
    }
    if let Some(text) = request.header("x-amz-trailer")? {
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let name = name.to_ascii_lowercase();
            let algorithm =
                checksum::of_header(&name).filter(|_| has_trailer).ok_or_else(|| {
                    S3Error::new(
                        Code::InvalidRequest,
                        format!("the trailer '{name}' is not supported"),
                    )
                })?;
            found.push((Hasher::new(algorithm), Expected::Trailer));
        }
    }
    if found.len() > 1 {
        return Err(S3Error::new(Code::InvalidRequest, "one x-amz-checksum- value is expected"));
    }
    if let Some(name) = request.header("x-amz-sdk-checksum-algorithm")? {
        let algorithm = checksum::parse_name(name)?;
        match found.first() {
            None => found.push((Hasher::new(algorithm), Expected::Nothing)),
            Some((hasher, _)) if hasher.algorithm() == algorithm => {}
            Some(_) => {
                let message =
                    "x-amz-sdk-checksum-algorithm names another algorithm than the checksum";
                return Err(S3Error::new(Code::InvalidRequest, message));
            }
        }
    }
    Ok(found)
}
