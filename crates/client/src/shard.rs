//! Shards on the wire: HTTP/1.1 bodies to and from data nodes. The only file that knows how they are asked for.

use crate::inner::Inner;
use ashlar_host::Clock;
use ashlar_types::{ClusterMap, DiskId, NodeId};
use ashlar_wire::shard::{
    CRC_HEADER, ERROR_HEADER, ShardFacts, ShardPath, ShardRefusal, format_crc, parse_crc,
};
use ashlar_wire::{DialError, ShardBody};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// Where a shard lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Home {
    pub(crate) disk: DiskId,
    pub(crate) node: NodeId,
    pub(crate) address: String,
}

impl Home {
    pub(crate) fn of(map: &ClusterMap, disk: DiskId) -> Option<Self> {
        let node = map.node_of(disk)?;
        Some(Self { disk, node: node.id, address: node.address.clone() })
    }
}

/// Why a shard was not stored, or not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// The data node says why.
    #[error("refused: {}", .0.word())]
    Refused(ShardRefusal),
    /// No connection could be made.
    #[error("{0}")]
    Unreachable(String),
    /// The answer broke off, or is not what was asked for.
    #[error("{0}")]
    Broken(String),
}

impl ShardError {
    /// Whether it is certain that the shard is not there, or cannot be read there any more.
    pub fn is_certain(&self) -> bool {
        match self {
            Self::Refused(refusal) => matches!(
                refusal,
                ShardRefusal::NotFound | ShardRefusal::Corrupt | ShardRefusal::BadRange
            ),
            Self::Unreachable(_) | Self::Broken(_) => false,
        }
    }
}

/// Bytes as they came, in order.
pub(crate) type Frames = VecDeque<Bytes>;

/// When a stream last moved, for those who judge whether it has stalled.
pub(crate) struct Progress {
    clock: Arc<dyn Clock>,
    moved_us: AtomicU64,
    /// Told whenever there is room for another cell.
    room: Arc<Notify>,
}

impl Progress {
    pub(crate) fn new(clock: Arc<dyn Clock>, room: Arc<Notify>) -> Arc<Self> {
        let progress = Self { clock, moved_us: AtomicU64::new(0), room };
        progress.moved();
        Arc::new(progress)
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.clock.now().0.as_micros()).unwrap_or(u64::MAX)
    }

    pub(crate) fn moved(&self) {
        self.moved_us.store(self.now_us(), Ordering::Relaxed);
        self.room.notify_one();
    }

    /// How long it has not moved.
    pub(crate) fn idle(&self) -> Duration {
        let moved = self.moved_us.load(Ordering::Relaxed);
        Duration::from_micros(self.now_us().saturating_sub(moved))
    }
}

/// The checksum with which a shard ends, once it is known where that is.
pub(crate) type ShardEnd = Arc<OnceLock<u32>>;

/// The body of a shard that is still being encoded: cells come through a bounded queue, and each one that the
/// connection takes is progress. Where the queue closes, the shard ends, with its checksum in the trailer: that may be
/// earlier than its length said.
pub(crate) struct CellBody {
    cells: mpsc::Receiver<Bytes>,
    end: ShardEnd,
    progress: Arc<Progress>,
    has_ended: bool,
}

impl CellBody {
    pub(crate) fn new(
        cells: mpsc::Receiver<Bytes>,
        end: ShardEnd,
        progress: Arc<Progress>,
    ) -> Self {
        Self { cells, end, progress, has_ended: false }
    }
}

impl Body for CellBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let Poll::Ready(cell) = self.cells.poll_recv(cx) else {
            return Poll::Pending;
        };
        let frame = match (cell, self.end.get().copied()) {
            (Some(cell), _) => Ok(Frame::data(cell)),
            (None, Some(crc)) => {
                self.has_ended = true;
                Ok(Frame::trailers(crc_trailer(crc)))
            }
            // broken off: the connection is cut, so that the data node cannot take the part for the whole
            (None, None) => Err(io::ErrorKind::ConnectionAborted.into()),
        };
        self.progress.moved();
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }
}

fn crc_trailer(crc: u32) -> HeaderMap {
    let value = HeaderValue::try_from(format_crc(crc)).expect("digits are a header value");
    HeaderMap::from_iter([(HeaderName::from_static(CRC_HEADER), value)])
}

impl Inner {
    /// Sends a shard and waits until it is on stable storage. Gives back the CRC of what the node received. `crc`: that
    /// of a body that is there already; one that is still to come has its own in its trailer.
    pub(crate) async fn put_shard(
        &self,
        home: &Home,
        path: ShardPath,
        facts: ShardFacts,
        crc: Option<u32>,
        body: ShardBody,
    ) -> Result<u32, ShardError> {
        let request = Request::builder()
            .method(Method::PUT)
            .uri(format!("{path}?{facts}"))
            .header(header::HOST, &home.address);
        let request = match crc {
            Some(crc) => request
                .header(header::CONTENT_LENGTH, facts.length)
                .header(CRC_HEADER, format_crc(crc)),
            None => request.header(header::TRAILER, CRC_HEADER),
        };
        let request = request.body(body).map_err(|error| ShardError::Broken(error.to_string()))?;
        let response = self.ask(home, request).await?;
        let crc = response.headers().get(CRC_HEADER).and_then(|value| value.to_str().ok());
        let crc = crc.and_then(|text| parse_crc(text).ok());
        drain(response).await;
        crc.ok_or_else(|| ShardError::Broken("the answer names no checksum".to_owned()))
    }

    /// Reads the bytes `from .. to` of a shard. The node has verified them, and exactly these come back.
    pub(crate) async fn get_shard(
        &self,
        home: &Home,
        path: ShardPath,
        from: u64,
        to: u64,
    ) -> Result<Frames, ShardError> {
        let asked = self.host.clock.now();
        let frames = match self.get_once(home, path, from, to).await {
            // a pooled connection may have been closed by the node just now: a read may simply be repeated
            Err(ShardError::Broken(_)) => self.get_once(home, path, from, to).await?,
            other => other?,
        };
        self.health.read_took(home.disk, self.host.clock.now() - asked);
        Ok(frames)
    }

    async fn get_once(
        &self,
        home: &Home,
        path: ShardPath,
        from: u64,
        to: u64,
    ) -> Result<Frames, ShardError> {
        let request = Request::builder()
            .method(Method::GET)
            .uri(path.to_string())
            .header(header::HOST, &home.address)
            .header(header::RANGE, format!("bytes={from}-{}", to - 1))
            .body(empty())
            .map_err(|error| ShardError::Broken(error.to_string()))?;
        let mut body = self.ask(home, request).await?.into_body();
        let (mut frames, mut left) = (Frames::new(), to - from);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ShardError::Broken(error.to_string()))?;
            let Ok(bytes) = frame.into_data() else {
                continue;
            };
            left = left.checked_sub(bytes.len() as u64).ok_or_else(|| {
                ShardError::Broken("more bytes came than were asked for".to_owned())
            })?;
            frames.push_back(bytes);
        }
        if left > 0 {
            return Err(ShardError::Broken(format!("{left} bytes are missing at the end")));
        }
        Ok(frames)
    }

    /// Sends a request; an answer that is no success is the node's refusal.
    async fn ask(
        &self,
        home: &Home,
        request: Request<ShardBody>,
    ) -> Result<Response<Incoming>, ShardError> {
        let response = match self.dialer.http1(&home.address, request).await {
            Ok(response) => response,
            Err(DialError::Connect { source, .. }) => {
                self.health.refused(home.node);
                return Err(ShardError::Unreachable(source.to_string()));
            }
            Err(DialError::Broken { source, .. }) => {
                return Err(ShardError::Broken(source.to_string()));
            }
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let word = response.headers().get(ERROR_HEADER).and_then(|value| value.to_str().ok());
        let refusal = word.and_then(|word| word.parse::<ShardRefusal>().ok());
        let status = response.status();
        drain(response).await;
        let Some(refusal) = refusal else {
            return Err(ShardError::Broken(format!("answered by {status}")));
        };
        match refusal {
            ShardRefusal::StaleEpoch | ShardRefusal::UnknownDisk => self.want_map(),
            ShardRefusal::Full => self.health.filled(home.disk),
            ShardRefusal::NotWritable => self.health.unwritable(home.disk),
            ShardRefusal::Malformed
            | ShardRefusal::NotFound
            | ShardRefusal::Conflict
            | ShardRefusal::BadBody
            | ShardRefusal::Corrupt
            | ShardRefusal::BadRange
            | ShardRefusal::Io => {}
        }
        Err(ShardError::Refused(refusal))
    }
}

/// Reads an answer to its end, so that its connection can be used again.
async fn drain(response: Response<Incoming>) {
    let mut body = response.into_body();
    while let Some(Ok(_)) = body.frame().await {}
}

fn empty() -> ShardBody {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed()
}

/// A body that is there already.
pub(crate) fn whole(bytes: Bytes) -> ShardBody {
    http_body_util::Full::new(bytes).map_err(|never| match never {}).boxed()
}
