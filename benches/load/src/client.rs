//! An S3 client that says exactly what it knows: applied, not applied, or unknown.
//!
//! One request is one attempt at one gateway (C7): nothing is retried here. Connections are kept alive, one pool a
//! client. A call that names no gateway goes to the next one in turn.

use crate::content::{Content, Verifier};
use crate::sign::{self, Credentials, Signed};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

/// Blocks in which content is generated and sent.
const BLOCK_BYTES: usize = 256 * 1024;
/// A request that takes longer is given up, with its outcome unknown. Beyond any gap that the contract allows.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a request carries.
#[derive(Clone, Debug, Default)]
pub enum Payload {
    /// Nothing.
    #[default]
    Empty,
    /// These bytes.
    Bytes(Bytes),
    /// Generated while it is sent: memory stays small whatever the length.
    Content(Content),
}

/// One request, in the caller's words.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    method: Method,
    bucket: &'a str,
    key: &'a str,
    query: Vec<(&'a str, &'a str)>,
    headers: Vec<(&'static str, String)>,
    payload: Payload,
    gateway: Option<usize>,
    deadline: Duration,
}

impl<'a> Call<'a> {
    /// A call of a method on a bucket (empty key) or an object.
    pub fn new(method: Method, bucket: &'a str, key: &'a str) -> Self {
        Self {
            method,
            bucket,
            key,
            query: Vec::new(),
            headers: Vec::new(),
            payload: Payload::Empty,
            gateway: None,
            deadline: DEADLINE,
        }
    }

    /// With a query parameter.
    pub fn query(mut self, name: &'a str, value: &'a str) -> Self {
        self.query.push((name, value));
        self
    }

    /// With a header, which is sent but not signed.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// With a body.
    pub fn payload(mut self, payload: Payload) -> Self {
        self.payload = payload;
        self
    }

    /// Through the gateway of this number.
    pub fn through(mut self, gateway: usize) -> Self {
        self.gateway = Some(gateway);
        self
    }

    /// Given up after this long.
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}

/// What a write came to (C7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It happened.
    Applied,
    /// It did not, and never will.
    NotApplied,
    /// It happened once or not at all.
    Unknown,
}

/// An answer, with its body.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// A header's text, if it is there and readable.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What the status says about a write: contract C7.
    pub fn outcome(&self) -> Outcome {
        outcome_of(self.status)
    }
}

fn outcome_of(status: StatusCode) -> Outcome {
    match status.as_u16() {
        200..=299 => Outcome::Applied,
        300..=499 | 501 | 503 | 507 => Outcome::NotApplied,
        _ => Outcome::Unknown,
    }
}

/// No answer.
#[derive(Debug)]
pub enum Trouble {
    /// No connection: nothing was sent, so nothing was applied.
    Refused(String),
    /// The connection broke, or the deadline passed, after something may have been sent.
    Cut(String),
    /// The answer's bytes are not those that were expected.
    WrongBytes(String),
    /// An answer that is neither success nor what the caller can use.
    Status(StatusCode, String),
}

impl Trouble {
    /// What it says about a write.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Refused(_) => Outcome::NotApplied,
            Self::Cut(_) | Self::WrongBytes(_) => Outcome::Unknown,
            Self::Status(status, _) => outcome_of(*status),
        }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(why) => write!(f, "no connection: {why}"),
            Self::Cut(why) => write!(f, "connection cut, outcome unknown: {why}"),
            Self::WrongBytes(why) => write!(f, "wrong bytes: {why}"),
            Self::Status(status, body) => write!(f, "answered {status}: {body}"),
        }
    }
}

impl std::error::Error for Trouble {}

/// A client of all gateways of a cluster. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    hosts: Vec<String>,
    credentials: Credentials,
    http: legacy::Client<HttpConnector, Stream>,
    next: AtomicUsize,
}

impl Client {
    /// A client of these endpoints, each `http://host:port`.
    pub fn new(endpoints: &[String], credentials: Credentials) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(5)));
        // A request is one attempt: hyper's own retry of a request that a closed connection refused stays on, because
        // it happens only while nothing was sent.
        let http = legacy::Client::builder(TokioExecutor::new()).build(connector);
        let hosts = endpoints
            .iter()
            .map(|endpoint| endpoint.trim_start_matches("http://").trim_end_matches('/').to_owned())
            .collect();
        Self { inner: Arc::new(Inner { hosts, credentials, http, next: AtomicUsize::new(0) }) }
    }

    /// How many gateways it knows.
    pub fn gateways(&self) -> usize {
        self.inner.hosts.len()
    }

    /// Sends a call and collects the whole answer, whatever its status.
    pub async fn send(&self, call: Call<'_>) -> Result<Answer, Trouble> {
        let deadline = call.deadline;
        within(deadline, async {
            let response = self.open(call).await?;
            let (head, body) = response.into_parts();
            let body =
                body.collect().await.map_err(|error| Trouble::Cut(error.to_string()))?.to_bytes();
            Ok(Answer { status: head.status, headers: head.headers, body })
        })
        .await
    }

    /// Sends a call that must succeed.
    pub async fn expect(&self, call: Call<'_>) -> Result<Answer, Trouble> {
        let answer = self.send(call).await?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        Err(Trouble::Status(answer.status, String::from_utf8_lossy(&answer.body).into_owned()))
    }

    /// Reads an object and compares every byte while it streams; memory stays small.
    pub async fn verify(
        &self,
        call: Call<'_>,
        mut verifier: Verifier,
    ) -> Result<HeaderMap, Trouble> {
        let deadline = call.deadline;
        within(deadline, async {
            let response = self.open(call).await?;
            let (head, mut body) = response.into_parts();
            if !head.status.is_success() {
                return Err(Trouble::Status(head.status, first_bytes(body).await));
            }
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| Trouble::Cut(error.to_string()))?;
                if let Ok(block) = frame.into_data() {
                    verifier.take(&block).map_err(Trouble::WrongBytes)?;
                }
            }
            verifier.finish().map_err(Trouble::WrongBytes)?;
            Ok(head.headers)
        })
        .await
    }

    /// Reads an object and counts its bytes without looking at them.
    pub async fn drain(&self, call: Call<'_>) -> Result<u64, Trouble> {
        let deadline = call.deadline;
        within(deadline, async {
            let (head, mut body) = self.open(call).await?.into_parts();
            if !head.status.is_success() {
                return Err(Trouble::Status(head.status, first_bytes(body).await));
            }
            let mut bytes = 0;
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| Trouble::Cut(error.to_string()))?;
                bytes += frame.data_ref().map_or(0, |block| block.len() as u64);
            }
            Ok(bytes)
        })
        .await
    }

    async fn open(&self, call: Call<'_>) -> Result<Response<Incoming>, Trouble> {
        let turn = call.gateway.unwrap_or_else(|| self.inner.next.fetch_add(1, Ordering::Relaxed));
        let host = &self.inner.hosts[turn % self.inner.hosts.len()];
        let request = signed(host, &self.inner.credentials, call);
        self.inner.http.request(request).await.map_err(|error| trouble(&error))
    }

    /// Creates a bucket; one that is ours already is as good.
    pub async fn create_bucket(&self, bucket: &str) -> Result<(), Trouble> {
        let answer = self.send(Call::new(Method::PUT, bucket, "")).await?;
        if answer.status.is_success() || answer.status == StatusCode::CONFLICT {
            return Ok(());
        }
        Err(Trouble::Status(answer.status, String::from_utf8_lossy(&answer.body).into_owned()))
    }

    /// One page of ListObjectsV2 below a prefix, after a key: the keys in the order of the answer.
    pub async fn list_page(
        &self,
        bucket: &str,
        prefix: &str,
        after: &str,
        max: u32,
    ) -> Result<Vec<String>, Trouble> {
        let max = max.to_string();
        let mut call = Call::new(Method::GET, bucket, "")
            .query("list-type", "2")
            .query("prefix", prefix)
            .query("max-keys", &max);
        if !after.is_empty() {
            call = call.query("start-after", after);
        }
        let answer = self.expect(call).await?;
        Ok(keys_of(&String::from_utf8_lossy(&answer.body)))
    }
}

/// The `<Key>` elements of a list answer. Our workloads use keys without XML's special characters, so no entity
/// needs decoding.
fn keys_of(xml: &str) -> Vec<String> {
    xml.split("<Key>")
        .skip(1)
        .filter_map(|rest| rest.split_once("</Key>"))
        .map(|(key, _)| key.to_owned())
        .collect()
}

async fn within<T>(
    deadline: Duration,
    work: impl Future<Output = Result<T, Trouble>>,
) -> Result<T, Trouble> {
    tokio::time::timeout(deadline, work)
        .await
        .unwrap_or_else(|_| Err(Trouble::Cut(format!("no answer within {deadline:?}"))))
}

async fn first_bytes(mut body: Incoming) -> String {
    match body.frame().await {
        Some(Ok(frame)) => frame
            .into_data()
            .map(|block| String::from_utf8_lossy(&block).into_owned())
            .unwrap_or_default(),
        _ => String::new(),
    }
}

fn trouble(error: &legacy::Error) -> Trouble {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    if error.is_connect() { Trouble::Refused(text) } else { Trouble::Cut(text) }
}

fn signed(host: &str, credentials: &Credentials, call: Call<'_>) -> Request<Stream> {
    let amz_date = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let path = sign::path(call.bucket, call.key);
    let query = sign::query(&call.query);
    let payload = "UNSIGNED-PAYLOAD";
    let covered = Signed {
        method: call.method.as_str(),
        host,
        path: &path,
        query: &query,
        amz_date: &amz_date,
        payload,
    };
    let authorization = sign::authorization(credentials, &covered);
    let uri = if query.is_empty() {
        format!("http://{host}{path}")
    } else {
        format!("http://{host}{path}?{query}")
    };
    let mut request = Request::builder()
        .method(call.method)
        .uri(uri)
        .header("host", host)
        .header("x-amz-date", amz_date)
        .header("x-amz-content-sha256", payload)
        .header("authorization", authorization);
    for (name, value) in call.headers {
        request = request.header(name, value);
    }
    request
        .body(Stream::new(call.payload))
        .expect("every part was encoded for a header or an address")
}

/// A request's body with a known length.
struct Stream {
    ready: Option<Bytes>,
    generated: Option<Content>,
    at: u64,
}

impl Stream {
    fn new(payload: Payload) -> Self {
        match payload {
            Payload::Empty => Self { ready: None, generated: None, at: 0 },
            Payload::Bytes(bytes) => Self { ready: Some(bytes), generated: None, at: 0 },
            Payload::Content(content) => Self { ready: None, generated: Some(content), at: 0 },
        }
    }

    fn left(&self) -> u64 {
        let ready = self.ready.as_ref().map_or(0, |bytes| bytes.len() as u64);
        ready + self.generated.map_or(0, |content| content.len() - self.at)
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(bytes) = self.ready.take().filter(|bytes| !bytes.is_empty()) {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if self.left() == 0 {
            return Poll::Ready(None);
        }
        let block = self.generated.map_or_else(
            || BytesMut::new().freeze(),
            |content| content.slice(self.at, BLOCK_BYTES),
        );
        self.at += block.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(block))))
    }

    fn is_end_stream(&self) -> bool {
        self.left() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_sorted_as_the_contract_says() {
        let outcome = |code| outcome_of(StatusCode::from_u16(code).unwrap());
        assert_eq!(outcome(200), Outcome::Applied);
        for code in [400, 403, 404, 409, 412, 501, 503, 507] {
            assert_eq!(outcome(code), Outcome::NotApplied, "{code}");
        }
        for code in [500, 502, 504] {
            assert_eq!(outcome(code), Outcome::Unknown, "{code}");
        }
    }

    #[test]
    fn keys_come_in_the_order_of_the_answer() {
        assert_eq!(keys_of("<A><Key>b</Key></A><Key>a/1</Key>"), ["b", "a/1"]);
    }

    #[tokio::test]
    async fn a_generated_body_has_its_length_and_bytes() {
        let content = Content::new(3, 600_000);
        let stream = Stream::new(Payload::Content(content));
        assert_eq!(stream.size_hint().exact(), Some(600_000));
        assert_eq!(stream.collect().await.unwrap().to_bytes(), content.bytes());
    }

    #[tokio::test]
    async fn a_closed_port_is_refused_not_unknown() {
        let credentials =
            Credentials { access_key: "a".into(), secret_key: "s".into(), region: "r".into() };
        let client = Client::new(&["http://127.0.0.1:1".into()], credentials);
        let trouble = client.send(Call::new(Method::GET, "b", "k")).await.unwrap_err();
        assert_eq!(trouble.outcome(), Outcome::NotApplied);
    }
}
