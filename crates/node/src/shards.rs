//! Shards over HTTP: PUT, and GET with ranges. They are deleted by `collect.rs` alone.

use crate::DataNode;
use crate::gate::{OpenWrite, SlotPlace};
use ashlar_host::Clock;
use ashlar_store::{SMALL_SHARD_BYTES_END, ShardKey, ShardMeta, Store, StoreError};
use ashlar_types::{EXTENT_BYTES_MAX, Epoch};
use ashlar_wire::shard::{
    BadShardRequest, CRC_HEADER, ERROR_HEADER, LENGTH_HEADER, SHARD_ROUTE, ShardFacts, ShardPath,
    ShardRefusal, format_crc, parse_crc,
};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures::stream;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::BodyExt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// A long answer is read and sent in pieces of this size, on their multiples: whole blocks, each read once.
const PIECE_BYTES: u64 = 256 * 1024;

/// The routes of a data node.
pub(crate) fn router(node: Arc<DataNode>) -> Router {
    Router::new().route(SHARD_ROUTE, axum::routing::get(get).put(put)).with_state(node)
}

/// A refusal, and what it says to people.
#[derive(Debug)]
struct Refused(ShardRefusal, String);

impl From<BadShardRequest> for Refused {
    fn from(bad: BadShardRequest) -> Self {
        Self(ShardRefusal::Malformed, bad.to_string())
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        let refusal = match &error {
            StoreError::NotFound => ShardRefusal::NotFound,
            StoreError::Corrupt => ShardRefusal::Corrupt,
            StoreError::BadRange { .. } => ShardRefusal::BadRange,
            StoreError::Conflict => ShardRefusal::Conflict,
            StoreError::TooLong => ShardRefusal::BadBody,
            StoreError::Full => ShardRefusal::Full,
            StoreError::NotWritable | StoreError::Closed => ShardRefusal::NotWritable,
            _ => ShardRefusal::Io,
        };
        Self(refusal, error.to_string())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(refusal, text) = self;
        metrics::counter!("ashlar_shard_refused_total", "reason" => refusal.word()).increment(1);
        let word = [(ERROR_HEADER, HeaderValue::from_static(refusal.word()))];
        (refusal.status(), word, format!("{text}\n")).into_response()
    }
}

async fn put(
    State(node): State<Arc<DataNode>>,
    request: Request<Body>,
) -> Result<Response, Refused> {
    let (head, body) = request.into_parts();
    let path: ShardPath = head.uri.path().parse()?;
    let facts: ShardFacts = head.uri.query().unwrap_or_default().parse()?;
    let store = store(&node, &path)?;
    let at = SlotPlace { disk: path.disk, group: facts.pg, slot: path.slot };
    // from here until it has ended, whoever acknowledges a newer epoch waits for it
    let open = Arc::new(node.gate.enter(at, facts.pg_epoch).await);
    judge(&node, &facts, &head.headers)?;
    open.accept();
    let expected = crc_of(&head.headers)?;
    let meta = ShardMeta {
        key: ShardKey { extent: path.extent, slot: path.slot },
        profile: facts.profile,
        pg: facts.pg,
        pg_epoch: facts.pg_epoch,
        bucket: facts.bucket,
        length: facts.length,
        created_ms: node.host.clock.wall_ms(),
    };
    let incoming = Incoming::new(node.host.clock.clone(), body, expected, open);
    // the class goes by what was announced: a shard that ends early stays where its room is
    let (crc, length) = if facts.length < SMALL_SHARD_BYTES_END {
        put_small(&store, meta, incoming).await?
    } else {
        put_large(&store, meta, incoming).await?
    };
    metrics::counter!("ashlar_shard_requests_total", "operation" => "put").increment(1);
    metrics::counter!("ashlar_shard_bytes_total", "operation" => "put").increment(length);
    Ok((StatusCode::OK, [(CRC_HEADER, format_crc(crc))]).into_response())
}

/// What a disk that is out has is unknown: that is its failure, and no answer about the shard.
fn store(node: &DataNode, path: &ShardPath) -> Result<Store, Refused> {
    let disk = path.disk;
    node.store(disk).ok_or_else(|| match node.why_out(disk) {
        Some(why) => Refused(ShardRefusal::Io, format!("disk {disk} is out of service: {why}")),
        None => Refused(ShardRefusal::UnknownDisk, format!("disk {disk} is not in this node")),
    })
}

/// What can be said before the body comes.
fn judge(node: &DataNode, facts: &ShardFacts, headers: &HeaderMap) -> Result<(), Refused> {
    if node.map_epoch() == Epoch(0) {
        // what it acknowledged before it was started anew is in a map that it does not have yet
        let text = "this node does not know the cluster map yet".to_owned();
        return Err(Refused(ShardRefusal::StaleEpoch, text));
    }
    if let Some(known) = node.pg_epoch(facts.pg).filter(|&known| facts.pg_epoch < known) {
        let text = format!("{} is at {known}, not at {}", facts.pg, facts.pg_epoch);
        return Err(Refused(ShardRefusal::StaleEpoch, text));
    }
    if facts.length > EXTENT_BYTES_MAX {
        let text = format!("a shard has at most {EXTENT_BYTES_MAX} bytes");
        return Err(Refused(ShardRefusal::Malformed, text));
    }
    let Some(announced) = headers.get(CONTENT_LENGTH) else { return Ok(()) };
    let announced: Option<u64> = announced.to_str().ok().and_then(|text| text.parse().ok());
    if announced == Some(facts.length) {
        return Ok(());
    }
    let text = "content-length and length do not agree".to_owned();
    Err(Refused(ShardRefusal::Malformed, text))
}

fn crc_of(headers: &HeaderMap) -> Result<Option<u32>, Refused> {
    let Some(value) = headers.get(CRC_HEADER) else { return Ok(None) };
    let text = value.to_str().map_err(|_| BadShardRequest { what: CRC_HEADER })?;
    Ok(Some(parse_crc(text)?))
}

/// The checksum and the length of what was stored.
type Stored = (u32, u64);

async fn put_small(
    store: &Store,
    meta: ShardMeta,
    mut incoming: Incoming,
) -> Result<Stored, Refused> {
    let mut content = Bytes::new();
    while let Some(piece) = incoming.next().await? {
        content = if content.is_empty() { piece } else { joined(&content, &piece) };
        if content.len() as u64 > meta.length {
            return Err(StoreError::TooLong.into());
        }
    }
    let (crc, length) = (crc32c::crc32c(&content), content.len() as u64);
    incoming.check(meta.length, length, crc)?;
    store.put_small(meta, content).await?;
    Ok((crc, length))
}

fn joined(first: &Bytes, second: &Bytes) -> Bytes {
    let mut both = BytesMut::with_capacity(first.len() + second.len());
    both.extend_from_slice(first);
    both.extend_from_slice(second);
    both.freeze()
}

async fn put_large(
    store: &Store,
    meta: ShardMeta,
    mut incoming: Incoming,
) -> Result<Stored, Refused> {
    let mut writer = store.begin(meta).await?;
    while let Some(piece) = incoming.next().await? {
        writer.write(piece).await?;
    }
    let (crc, length) = (writer.finish().await?, writer.received());
    incoming.check(meta.length, length, crc)?;
    Ok((writer.commit().await?.crc, length))
}

/// How long a body may send nothing: its gateway may have lost its power without a word, and a reservation is held.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// The body of a PUT, and the checksum it came with.
struct Incoming {
    clock: Arc<dyn Clock>,
    body: Body,
    expected: Option<u32>,
    in_trailer: bool,
    open: Arc<OpenWrite>,
}

impl Incoming {
    fn new(clock: Arc<dyn Clock>, body: Body, expected: Option<u32>, open: Arc<OpenWrite>) -> Self {
        Self { clock, body, expected, in_trailer: false, open }
    }

    /// The next bytes; `None`: that was all.
    async fn next(&mut self) -> Result<Option<Bytes>, Refused> {
        let late = |_| {
            let seconds = BODY_PATIENCE.as_secs();
            Refused(ShardRefusal::BadBody, format!("the body sent nothing for {seconds} s"))
        };
        loop {
            let came = tokio::select! {
                biased;
                came = self.clock.timeout(BODY_PATIENCE, self.body.frame()) => came,
                () = self.open.broken_off() => {
                    let text = "the group is at a newer epoch by now".to_owned();
                    return Err(Refused(ShardRefusal::StaleEpoch, text));
                }
            };
            let Some(frame) = came.map_err(late)? else { return Ok(None) };
            let frame = frame.map_err(|error| {
                Refused(ShardRefusal::BadBody, format!("the body broke off: {error}"))
            })?;
            match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Ok(Some(data)),
                Err(frame) => {
                    if let Some(crc) = frame.trailers_ref().map(crc_of).transpose()?.flatten() {
                        self.expected = Some(crc);
                        self.in_trailer = true;
                    }
                }
            }
        }
    }

    /// Whether what came is what was sent. It may be shorter than announced only if a trailer says what it is: so ends
    /// an extent that was sealed early.
    fn check(&self, announced: u64, came: u64, crc: u32) -> Result<(), Refused> {
        if came != announced && !self.in_trailer {
            let text = format!("{came} bytes came instead of {announced}");
            return Err(Refused(ShardRefusal::BadBody, text));
        }
        match self.expected {
            Some(expected) if expected != crc => {
                let (expected, crc) = (format_crc(expected), format_crc(crc));
                let text = format!("the body has crc {crc} instead of {expected}");
                Err(Refused(ShardRefusal::BadBody, text))
            }
            Some(_) | None => Ok(()),
        }
    }
}

async fn get(
    State(node): State<Arc<DataNode>>,
    request: Request<Body>,
) -> Result<Response, Refused> {
    let path: ShardPath = request.uri().path().parse()?;
    let store = store(&node, &path)?;
    let key = ShardKey { extent: path.extent, slot: path.slot };
    let length = store.meta(key).ok_or(StoreError::NotFound)?.length;
    let range = match request.headers().get(RANGE) {
        Some(range) => Some(parse_range(range, length)?),
        None => None,
    };
    let wanted = range.clone().unwrap_or(0..length);
    // the first piece is verified before the head goes out, so that damage is an answer and not a cut connection
    let first_end = piece_end(&wanted);
    let first = store.read(key, wanted.start, first_end - wanted.start).await?;
    metrics::counter!("ashlar_shard_requests_total", "operation" => "get").increment(1);
    metrics::counter!("ashlar_shard_bytes_total", "operation" => "get")
        .increment(wanted.end - wanted.start);
    let body = match first_end == wanted.end {
        true => Body::from(first),
        false => pieces(store, key, first, first_end..wanted.end),
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(LENGTH_HEADER, HeaderValue::from(length));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(wanted.end - wanted.start));
    if range.is_some() {
        let text = format!("bytes {}-{}/{length}", wanted.start, wanted.end - 1);
        let value = HeaderValue::try_from(text).expect("numbers are a header value");
        headers.insert(CONTENT_RANGE, value);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// The end of the first piece of a range.
fn piece_end(range: &Range<u64>) -> u64 {
    ((range.start / PIECE_BYTES + 1) * PIECE_BYTES).min(range.end)
}

/// `first`, then the rest, piece by piece as the receiver takes it. Damage in the rest cuts the connection.
fn pieces(store: Store, key: ShardKey, first: Bytes, rest: Range<u64>) -> Body {
    let start = (store, Some(first), rest);
    let stream = stream::try_unfold(start, move |(store, first, rest)| async move {
        if let Some(first) = first {
            return Ok(Some((first, (store, None, rest))));
        }
        if rest.is_empty() {
            return Ok(None);
        }
        let end = piece_end(&rest);
        let piece =
            store.read(key, rest.start, end - rest.start).await.map_err(io::Error::other)?;
        Ok::<_, io::Error>(Some((piece, (store, None, end..rest.end))))
    });
    Body::from_stream(stream)
}

/// `bytes=a-b` or `bytes=a-`; the end is cut to the shard's.
fn parse_range(value: &HeaderValue, length: u64) -> Result<Range<u64>, Refused> {
    let bad = || Refused::from(BadShardRequest { what: "range" });
    let text = value.to_str().ok().and_then(|text| text.strip_prefix("bytes=")).ok_or_else(bad)?;
    let (start, last) = text.split_once('-').ok_or_else(bad)?;
    let start: u64 = start.parse().map_err(|_| bad())?;
    let end = match last {
        "" => length,
        last => last.parse::<u64>().map_err(|_| bad())?.saturating_add(1).min(length),
    };
    if start >= end {
        return Err(StoreError::BadRange { length }.into());
    }
    Ok(start..end)
}
