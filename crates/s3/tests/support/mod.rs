//! A client for the tests: it signs as SigV4 says, in every form, and can be told to lie.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test says by failing what was not there"
)]

pub mod memory;

use ashlar_s3::{BodyError, Credentials, S3Config, S3Service, SecretKey, service};
use bytes::Bytes;
use futures::StreamExt as _;
use hmac::{Hmac, Mac};
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use memory::Memory;
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub const ACCESS: &str = "AKIATEST";
pub const SECRET: &str = "secret/with+signs=";
pub const REGION: &str = "eu-test-1";
pub const OWNER: &str = "owner-of-all";

/// How a request is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// By header, with the payload's hash.
    Hashed,
    /// By header, payload unsigned.
    Unsigned,
    /// By query, valid for so many seconds.
    Presigned(u32),
    /// Signed chunks.
    Chunks,
    /// Signed chunks and a signed trailer.
    ChunksTrailer,
    /// Unsigned chunks and a trailer.
    UnsignedTrailer,
    /// Not at all.
    Anonymous,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The texts of all elements of that name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        let pieces = self.text().split(open.as_str()).skip(1);
        pieces.filter_map(|piece| piece.split_once(close.as_str()).map(|pair| pair.0)).collect()
    }

    pub fn one(&self, name: &str) -> &str {
        let all = self.all(name);
        assert_eq!(all.len(), 1, "{name} in {}", self.text());
        all[0]
    }

    #[track_caller]
    pub fn is(&self, status: u16) -> &Self {
        assert_eq!(self.status.as_u16(), status, "{}", String::from_utf8_lossy(&self.body));
        self
    }

    #[track_caller]
    pub fn is_error(&self, status: u16, code: &str) -> &Self {
        self.is(status);
        assert_eq!(self.one("Code"), code, "{}", self.text());
        assert_eq!(self.one("RequestId"), self.header("x-amz-request-id").unwrap());
        self
    }
}

pub struct Client {
    pub service: S3Service,
    pub backend: Arc<Memory>,
}

/// One request to be made.
#[derive(Clone)]
pub struct Call {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub form: Form,
    pub access: String,
    pub secret: String,
    pub region: String,
    /// Seconds that the client's clock is ahead.
    pub skew: i64,
    pub host: String,
    pub trailer: Option<(String, String)>,
    /// What happens to the body after it was signed.
    pub tamper: fn(Vec<u8>) -> Vec<u8>,
    /// Headers that are added after the signature.
    pub unsigned: Vec<(String, String)>,
}

pub fn call(method: &str, target: &str) -> Call {
    Call {
        method: method.into(),
        target: target.into(),
        headers: Vec::new(),
        body: Vec::new(),
        form: Form::Hashed,
        access: ACCESS.into(),
        secret: SECRET.into(),
        region: REGION.into(),
        skew: 0,
        host: "localhost:9000".into(),
        trailer: None,
        tamper: |body| body,
        unsigned: Vec::new(),
    }
}

impl Call {
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn form(mut self, form: Form) -> Self {
        self.form = form;
        self
    }

    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

pub fn new_client() -> Client {
    client_in(REGION)
}

pub fn client_in(region: &str) -> Client {
    let backend = Arc::new(Memory::default());
    let ids = AtomicU64::new(1);
    let config = S3Config {
        region: region.into(),
        domains: vec!["s3.test".into()],
        owner: OWNER.into(),
        credentials: Arc::new(Credentials::single(ACCESS, SecretKey::new(SECRET))),
        random: Arc::new(move || u128::from(ids.fetch_add(1, Ordering::Relaxed)) << 64),
    };
    Client { service: service(backend.clone(), config), backend }
}

/// A client of another service.
pub fn client_of(service: S3Service) -> Client {
    Client { service, backend: Arc::default() }
}

/// A client and a bucket.
pub async fn with_bucket() -> Client {
    let client = new_client();
    client.send(call("PUT", "/bkt")).await.is(200);
    client
}

impl Client {
    pub async fn send(&self, call: Call) -> Answer {
        let request = sign(&call);
        let is_head = call.method == "HEAD";
        let response = Box::pin(self.service.call(request)).await;
        assert!(response.headers().contains_key("x-amz-request-id"), "every answer has its id");
        assert!(response.headers().contains_key("x-amz-id-2"), "every answer has its id");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        if is_head || parts.status == StatusCode::NOT_MODIFIED {
            assert!(body.is_empty(), "HEAD and 304 have no body");
        }
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub async fn put(&self, key: &str, body: &str) -> Answer {
        self.send(call("PUT", &format!("/bkt/{key}")).body(body)).await
    }

    pub async fn get(&self, target: &str) -> Answer {
        self.send(call("GET", target)).await
    }
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn sha(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

pub fn encode(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8().unwrap().into_owned()
}

/// The time that a request claims: now, and the skew.
fn amz_date(skew: i64) -> String {
    let now = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(skew);
    now.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// The request, signed.
pub fn sign(
    call: &Call,
) -> http::Request<impl http_body::Body<Data = Bytes, Error = BodyError> + Send + 'static + use<>> {
    let date = amz_date(call.skew);
    let scope = format!("{}/{}/s3/aws4_request", &date[..8], call.region);
    let key =
        ["", call.region.as_str(), "s3", "aws4_request"].iter().fold(Vec::new(), |key, part| {
            if part.is_empty() {
                hmac(format!("AWS4{}", call.secret).as_bytes(), &date[..8])
            } else {
                hmac(&key, part)
            }
        });
    let payload = match call.form {
        Form::Hashed => sha(&call.body),
        Form::Unsigned | Form::Presigned(_) | Form::Anonymous => "UNSIGNED-PAYLOAD".into(),
        Form::Chunks => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD".into(),
        Form::ChunksTrailer => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER".into(),
        Form::UnsignedTrailer => "STREAMING-UNSIGNED-PAYLOAD-TRAILER".to_owned(),
    };
    let chunked = matches!(call.form, Form::Chunks | Form::ChunksTrailer | Form::UnsignedTrailer);
    let mut headers = call.headers.clone();
    headers.push(("host".into(), call.host.clone()));
    if !matches!(call.form, Form::Presigned(_) | Form::Anonymous) {
        headers.push(("x-amz-date".into(), date.clone()));
        headers.push(("x-amz-content-sha256".into(), payload.clone()));
    }
    if chunked {
        headers.push(("content-encoding".into(), "aws-chunked".into()));
        headers.push(("x-amz-decoded-content-length".into(), call.body.len().to_string()));
    }
    if let Some((name, _)) = &call.trailer {
        headers.push(("x-amz-trailer".into(), name.clone()));
    }
    headers.sort();
    let (path, query) = call.target.split_once('?').unwrap_or((&call.target, ""));
    let mut query: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect();
    let signed = headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";");
    if let Form::Presigned(seconds) = call.form {
        query.push(("X-Amz-Algorithm".into(), "AWS4-HMAC-SHA256".into()));
        query.push(("X-Amz-Credential".into(), format!("{}/{scope}", call.access)));
        query.push(("X-Amz-Date".into(), date.clone()));
        query.push(("X-Amz-Expires".into(), seconds.to_string()));
        query.push(("X-Amz-SignedHeaders".into(), signed.clone()));
    }
    let mut canonical: Vec<(String, String)> =
        query.iter().map(|(name, value)| (encode(name), encode(value))).collect();
    canonical.sort();
    let join = |pairs: &[(String, String)]| {
        pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
    };
    let canonical_headers: String =
        headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let request = format!(
        "{}\n{path}\n{}\n{canonical_headers}\n{signed}\n{payload}",
        call.method,
        join(&canonical)
    );
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha(request.as_bytes()));
    let signature = hex::encode(hmac(&key, &to_sign));
    let mut target = path.to_owned();
    if matches!(call.form, Form::Presigned(_)) {
        canonical.push(("X-Amz-Signature".into(), signature.clone()));
    }
    if !canonical.is_empty() {
        target = format!("{target}?{}", join(&canonical));
    }
    let mut builder = http::Request::builder().method(call.method.as_str()).uri(target);
    for (name, value) in headers.iter().chain(&call.unsigned) {
        builder = builder.header(name, value);
    }
    if !matches!(call.form, Form::Presigned(_) | Form::Anonymous) {
        let credential = format!("{}/{scope}", call.access);
        let value = format!(
            "AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={signed}, Signature={signature}"
        );
        builder = builder.header("authorization", value);
    }
    let framed =
        if chunked { frame(call, &date, &scope, &key, &signature) } else { call.body.clone() };
    // a client that breaks off has declared what it meant to send
    let declared = framed.len();
    let framed = (call.tamper)(framed);
    if !call.headers.iter().any(|(name, _)| name == "content-length" || name == "transfer-encoding")
        && (declared > 0 || call.method == "PUT")
    {
        builder = builder.header("content-length", declared);
    }
    let pieces: Vec<Result<Frame<Bytes>, BodyError>> =
        framed.chunks(7000).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
    builder.body(StreamBody::new(futures::stream::iter(pieces).boxed())).unwrap()
}

/// The body in chunks of 5,000 bytes.
fn frame(call: &Call, date: &str, scope: &str, key: &[u8], seed: &str) -> Vec<u8> {
    let signs = call.form != Form::UnsignedTrailer;
    let mut previous = seed.to_owned();
    let mut framed = Vec::new();
    for chunk in call.body.chunks(5000).chain([&[][..]]) {
        let text = format!(
            "AWS4-HMAC-SHA256-PAYLOAD\n{date}\n{scope}\n{previous}\n{}\n{}",
            sha(b""),
            sha(chunk)
        );
        let mut head = format!("{:x}", chunk.len());
        if signs {
            previous = hex::encode(hmac(key, &text));
            head = format!("{head};chunk-signature={previous}");
        }
        framed.extend_from_slice(format!("{head}\r\n").as_bytes());
        if !chunk.is_empty() {
            framed.extend_from_slice(chunk);
            framed.extend_from_slice(b"\r\n");
        }
    }
    if let Some((name, value)) = &call.trailer {
        framed.extend_from_slice(format!("{name}:{value}\r\n").as_bytes());
        if signs {
            let canonical = sha(format!("{name}:{value}\n").as_bytes());
            let text =
                format!("AWS4-HMAC-SHA256-TRAILER\n{date}\n{scope}\n{previous}\n{canonical}");
            let signature = hex::encode(hmac(key, &text));
            framed.extend_from_slice(format!("x-amz-trailer-signature:{signature}\r\n").as_bytes());
        }
    }
    framed.extend_from_slice(b"\r\n");
    framed
}
