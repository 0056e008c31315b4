//! Reading an object's content: pieces in order, cut into windows that are fetched a little ahead.
//!
//! Nothing leaves before its block's checksum was verified by the node that read it; where an extent is read from its
//! first byte to its last, its CRC64 is compared too, before its last window is handed out.

use crate::inner::Inner;
use crate::open_reads::OpenRead;
use crate::shard::Frames;
use crate::{Client, Failure};
use ashlar_types::{Extent, KeyPoint, ObjectId, Piece, RangeAnswer, RangeQuery, VersionName};
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use std::collections::VecDeque;
use std::sync::Arc;

/// Content of one window, at least a stripe: large enough to make a request worth its cost.
const WINDOW_BYTES: u64 = 1 << 20;
/// Windows that are fetched at once: with the one that is being sent, 3 MiB.
const WINDOWS_AHEAD: usize = 3;

/// A part of the content that is fetched at once.
#[derive(Debug, Clone)]
enum Window {
    Inline(Bytes),
    Stored { extent: Arc<Extent>, from: u64, to: u64 },
}

/// What came of a window.
struct Part {
    frames: Frames,
    extent: Option<(Arc<Extent>, u64, u64)>,
}

/// The content that a read has found.
#[derive(Debug, Clone)]
pub struct ContentName {
    /// Its key.
    pub at: KeyPoint,
    /// Its id.
    pub object: ObjectId,
    /// Which version of the key it is, where the bucket keeps them: it is read to its end also when it is overwritten.
    pub version: Option<VersionName>,
}

impl ContentName {
    /// A question for more of its pieces.
    fn pieces(&self, from: u64, to: u64) -> RangeQuery {
        let (at, object) = (self.at.clone(), self.object);
        match self.version {
            None => RangeQuery::Pieces { at, object, from, to },
            Some(version) => RangeQuery::VersionPieces { at, version, object, from, to },
        }
    }
}

impl Client {
    /// The bytes `from .. to` of an object, from the pieces that an answer named; more of them are asked for when they
    /// are needed. Nothing is fetched before the stream is polled. `read` was opened before that answer was asked for.
    pub fn reader(
        &self,
        read: OpenRead,
        content: ContentName,
        pieces: Vec<Piece>,
        from: u64,
        to: u64,
    ) -> impl Stream<Item = Result<Bytes, Failure>> + Send + 'static {
        let inner = self.0.clone();
        let memory = WINDOW_BYTES.saturating_mul(WINDOWS_AHEAD as u64).min(to.saturating_sub(from));
        let reading = async move {
            let permit = inner.reserve(memory).await?;
            let clock = inner.host.clock.clone();
            let plan =
                Plan { inner: inner.clone(), content, pieces: pieces.into(), next: from, to };
            let parts = plan
                .windows()
                .map(move |window| fetch(inner.clone(), window))
                .buffered(WINDOWS_AHEAD);
            let mut whole = WholeExtent::default();
            let checked = parts.map(move |part| {
                // both are held until the stream ends
                let _memory = &permit;
                read.check_age(clock.now())?;
                part.and_then(|part| whole.check(part))
            });
            let frames = |part: Frames| futures::stream::iter(part.into_iter().map(Ok));
            Ok::<_, Failure>(checked.map_ok(frames).try_flatten())
        };
        futures::stream::once(reading).try_flatten().fuse()
    }
}

async fn fetch(inner: Arc<Inner>, window: Result<Window, Failure>) -> Result<Part, Failure> {
    match window? {
        Window::Inline(bytes) => Ok(Part { frames: Frames::from([bytes]), extent: None }),
        Window::Stored { extent, from, to } => {
            let frames = inner.read_window(&extent, from, to).await?;
            Ok(Part { frames, extent: Some((extent, from, to)) })
        }
    }
}

/// Which windows follow.
struct Plan {
    inner: Arc<Inner>,
    content: ContentName,
    pieces: VecDeque<Piece>,
    next: u64,
    to: u64,
}

impl Plan {
    fn windows(self) -> BoxStream<'static, Result<Window, Failure>> {
        let step = |mut plan: Self| async move {
            let window = plan.next_window().await?;
            Ok::<_, Failure>(window.map(|window| (window, plan)))
        };
        futures::stream::try_unfold(self, step).boxed()
    }

    async fn next_window(&mut self) -> Result<Option<Window>, Failure> {
        while self.next < self.to {
            let Some(piece) = self.pieces.front() else {
                self.ask_for_more().await?;
                continue;
            };
            let (start, end) = (piece.offset(), piece.offset() + piece.length());
            if end <= self.next {
                self.pieces.pop_front();
                continue;
            }
            if start > self.next {
                return Err(Failure::protocol("the pieces of the object leave a gap"));
            }
            let end = end.min(self.to);
            let window = match piece {
                Piece::Inline { bytes, .. } => {
                    let within = |at: u64| usize::try_from(at - start).unwrap_or(usize::MAX);
                    let window = Window::Inline(bytes.slice(within(self.next)..within(end)));
                    self.next = end;
                    window
                }
                Piece::Extent { extent, .. } => {
                    let extent = Arc::new(extent.clone());
                    let from = self.next - start;
                    let to = window_end(&extent, from).min(end - start);
                    self.next = start + to;
                    Window::Stored { extent, from, to }
                }
            };
            return Ok(Some(window));
        }
        Ok(None)
    }

    async fn ask_for_more(&mut self) -> Result<(), Failure> {
        let (from, to) = (self.next, self.to);
        let query = self.content.pieces(from, to);
        let (answer, _) = self.inner.query(&self.content.at, query).await?;
        match answer {
            RangeAnswer::Pieces(pieces) if !pieces.is_empty() => {
                self.pieces = pieces.into();
                Ok(())
            }
            RangeAnswer::Pieces(_) => {
                Err(Failure::protocol("the object has fewer pieces than bytes"))
            }
            _ => Err(Failure::other_answer("a question for pieces")),
        }
    }
}

/// Windows end where stripes end, so that no cell is asked for twice.
fn window_end(extent: &Extent, from: u64) -> u64 {
    let stripe = u64::from(extent.cell_bytes) * u64::from(extent.profile.data);
    let window = (WINDOW_BYTES / stripe.max(1)).max(1) * stripe;
    (from / window + 1) * window
}

/// Follows an extent that is read from its first byte on.
#[derive(Default)]
struct WholeExtent {
    digest: Option<Digest>,
    next: u64,
}

impl WholeExtent {
    fn check(&mut self, part: Part) -> Result<Frames, Failure> {
        let Some((extent, from, to)) = part.extent else {
            return Ok(part.frames);
        };
        if from == 0 {
            (self.digest, self.next) = (Some(Digest::new(CrcAlgorithm::Crc64Nvme)), 0);
        } else if from != self.next {
            self.digest = None;
        }
        let Some(digest) = &mut self.digest else {
            return Ok(part.frames);
        };
        part.frames.iter().for_each(|frame| digest.update(frame));
        self.next = to;
        if to == extent.length && digest.finalize() != extent.crc64 {
            metrics::counter!("ashlar_client_corrupt_extents_total").increment(1);
            tracing::error!(extent = %extent.id, "an extent does not have the checksum of its record");
            return Err(Failure::Corrupt { extent: Box::new(Extent::clone(&extent)) });
        }
        Ok(part.frames)
    }
}
