//! The MD5 of uploads, computed for several at once.
//!
//! MD5 is the largest cost of a PUT, and streams that are hashed side by side cost a fraction of it (crate `md5`,
//! `docs/adr/0008`). One task owns the hashing of all long bodies of a gateway; each body sends it the pieces that it
//! writes. The task hashes what has come, of up to eight bodies at once, and never waits for a second one: before each
//! round it lets other tasks run once, and that is how long a piece waits for company. Short bodies are not worth the
//! hop and are hashed where they are read.
//!
//! | what | bound |
//! |---|---|
//! | bodies | admission: a body that is not short has a share of the budget |
//! | pieces of a body that wait | `WAITING_MAX`, then the body waits: back-pressure |
//! | a round | `ROUND_BYTES` of each of eight bodies: 0.1 ms |
//!
//! A body that is given up drops its end of the queue, which ends its place here. Where the CPU has no lanes, each body
//! has a task of its own.

use ashlar_host::{Host, TaskKind};
use ashlar_md5::{BLOCK_BYTES, Feed, LANES, Lanes, Stream};
use bytes::{Buf as _, Bytes};
use std::task::{Context, Poll};
use tokio::sync::{mpsc, oneshot};

/// Up to this length the digest is computed where the bytes are read (120 us at most).
const INLINE_BYTES_MAX: u64 = 64 * 1024;
/// Pieces of a body that wait; hyper reads pieces of up to 128 KiB, so this is about 1 MiB of a body's share.
const WAITING_MAX: usize = 8;
/// Bodies that wait to be known to the task.
const ARRIVALS_MAX: usize = 64;
/// What a round takes of a body at most.
const ROUND_BYTES: usize = 64 * 1024;
/// A rest shorter than this is hashed by itself: it would cut the round of its neighbours short.
const TOGETHER_BYTES_MIN: usize = 1024;

/// Computes the MD5 of many bodies; cheap to clone. The task ends with the last clone and the last body.
#[derive(Clone)]
pub struct Md5Lanes {
    host: Host,
    arrivals: Option<mpsc::Sender<Body>>,
}

impl std::fmt::Debug for Md5Lanes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Md5Lanes").field("together", &self.arrivals.is_some()).finish()
    }
}

/// The MD5 of one body.
#[derive(Debug)]
pub struct BodyMd5(Place);

#[derive(Debug)]
enum Place {
    Inline(Box<Stream>),
    Task { pieces: mpsc::Sender<Bytes>, digest: oneshot::Receiver<[u8; 16]> },
}

impl Md5Lanes {
    /// Begins. Must be called within a runtime.
    pub fn new(host: &Host) -> Self {
        let Some(lanes) = Lanes::find() else { return Self::each_alone(host) };
        let (arrivals, hasher) = hasher(lanes);
        // open requests of the drain need it: it does not watch the shutdown
        let _runs_on = host.tasks.spawn(TaskKind::Background("md5"), Box::pin(hasher.run()));
        Self { host: host.clone(), arrivals: Some(arrivals) }
    }

    /// Never hashes two bodies at once.
    pub fn each_alone(host: &Host) -> Self {
        Self { host: host.clone(), arrivals: None }
    }

    /// For a body of that length.
    pub async fn body(&self, length: u64) -> BodyMd5 {
        if length <= INLINE_BYTES_MAX {
            return BodyMd5(Place::Inline(Box::default()));
        }
        let (pieces, queue) = mpsc::channel(WAITING_MAX);
        let (done, digest) = oneshot::channel();
        let body = Body { stream: Stream::default(), piece: Bytes::new(), queue, done };
        let alone = match &self.arrivals {
            // the task has died: it said why
            Some(arrivals) => arrivals.send(body).await.err().map(|refused| refused.0),
            None => Some(body),
        };
        if let Some(body) = alone {
            let _runs_on =
                self.host.tasks.spawn(TaskKind::Request("md5"), Box::pin(body.run_alone()));
        }
        BodyMd5(Place::Task { pieces, digest })
    }
}

impl BodyMd5 {
    /// Takes more bytes; waits where too many wait already.
    pub async fn update(&mut self, bytes: &Bytes) {
        match &mut self.0 {
            Place::Inline(stream) => stream.update(bytes),
            // a task that has died says so at the end
            Place::Task { pieces, .. } => drop(pieces.send(bytes.clone()).await),
        }
    }

    /// The digest of all of them; `None`: the task has died.
    pub async fn finish(self) -> Option<[u8; 16]> {
        match self.0 {
            Place::Inline(stream) => Some(stream.finish()),
            Place::Task { pieces, digest } => {
                drop(pieces);
                digest.await.ok()
            }
        }
    }
}

/// A body at its task.
struct Body {
    stream: Stream,
    /// What of the oldest piece has not been hashed. Between rounds: empty, or [`TOGETHER_BYTES_MIN`] and more, and then
    /// the stream stands between blocks.
    piece: Bytes,
    queue: mpsc::Receiver<Bytes>,
    done: oneshot::Sender<[u8; 16]>,
}

impl Body {
    async fn run_alone(mut self) {
        while let Some(bytes) = self.queue.recv().await {
            self.stream.update(&bytes);
        }
        self.end();
    }

    /// Nobody waits any more when the upload was given up.
    fn end(self) {
        let _sent = self.done.send(self.stream.finish());
    }

    fn is_ready(&self) -> bool {
        !self.piece.is_empty()
    }

    /// Takes pieces until there is something to be hashed with others. Ready with `false`: the body has ended.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        while !self.is_ready() {
            if self.done.is_closed() {
                return Poll::Ready(false);
            }
            match self.queue.poll_recv(cx) {
                Poll::Ready(Some(bytes)) => self.piece = bytes,
                Poll::Ready(None) => return Poll::Ready(false),
                Poll::Pending => return Poll::Pending,
            }
            self.settle();
        }
        Poll::Ready(true)
    }

    fn feed(&mut self, length: usize) -> Feed<'_> {
        Feed { stream: &mut self.stream, bytes: &self.piece[..length] }
    }

    /// Hashes by itself what cannot be hashed with others.
    fn settle(&mut self) {
        let mut alone = self.stream.missing().min(self.piece.len());
        if self.piece.len() - alone < TOGETHER_BYTES_MIN {
            alone = self.piece.len();
        }
        self.stream.update(&self.piece[..alone]);
        self.piece.advance(alone);
    }
}

/// The task that hashes: its bodies, and from which on the next round takes.
struct Hasher {
    lanes: Lanes,
    /// `None`: there will be no more.
    arrivals: Option<mpsc::Receiver<Body>>,
    bodies: Vec<Body>,
    first: usize,
}

fn hasher(lanes: Lanes) -> (mpsc::Sender<Body>, Hasher) {
    let (arrivals, queue) = mpsc::channel(ARRIVALS_MAX);
    (arrivals, Hasher { lanes, arrivals: Some(queue), bodies: Vec::new(), first: 0 })
}

impl Hasher {
    async fn run(mut self) {
        while std::future::poll_fn(|cx| self.poll_ready(cx)).await {
            // whoever is about to bring a piece brings it now
            tokio::task::yield_now().await;
            // coop may have kept pieces back: they are there next time
            let ready = std::future::poll_fn(|cx| Poll::Ready(self.poll_ready(cx))).await;
            if ready.is_ready() {
                self.round();
            }
        }
    }

    /// Ready when something can be hashed; with `false` when there is nothing and never will be.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        while let Some(arrivals) = &mut self.arrivals {
            match arrivals.poll_recv(cx) {
                Poll::Ready(Some(body)) => self.bodies.push(body),
                Poll::Ready(None) => self.arrivals = None,
                Poll::Pending => break,
            }
        }
        let mut at = 0;
        while at < self.bodies.len() {
            match self.bodies[at].poll_fill(cx) {
                Poll::Ready(false) => self.bodies.swap_remove(at).end(),
                Poll::Ready(true) | Poll::Pending => at += 1,
            }
        }
        if self.bodies.iter().any(Body::is_ready) {
            return Poll::Ready(true);
        }
        if self.arrivals.is_none() && self.bodies.is_empty() {
            Poll::Ready(false)
        } else {
            Poll::Pending
        }
    }

    /// Hashes as much as all that take part have; who has more takes part again.
    fn round(&mut self) {
        let first = self.first.checked_rem(self.bodies.len()).unwrap_or(0);
        let (before, after) = self.bodies.split_at_mut(first);
        let in_turn = after.iter_mut().chain(before);
        let mut bodies: Vec<_> = in_turn.filter(|body| body.is_ready()).take(LANES).collect();
        let Some(shortest) = bodies.iter().map(|body| body.piece.len()).min() else { return };
        let length = shortest.min(ROUND_BYTES) / BLOCK_BYTES * BLOCK_BYTES;
        match &mut bodies[..] {
            [alone] => alone.stream.update(&alone.piece[..length]),
            together => {
                let feeds = together.iter_mut().map(|body| body.feed(length));
                self.lanes.feed(&mut feeds.collect::<Vec<_>>());
            }
        }
        for body in bodies {
            body.piece.advance(length);
            body.settle();
        }
        // with more bodies than lanes, everybody has his turn
        self.first = first.wrapping_add(LANES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use futures::StreamExt as _;
    use md5::{Digest as _, Md5};
    use proptest::prelude::*;
    use std::sync::Arc;

    fn content(length: usize, seed: usize) -> Bytes {
        (0..length).map(|at| u8::try_from(((at * (seed + 3)) ^ (at >> 9)) % 253).unwrap()).collect()
    }

    /// Sends `content` cut into pieces of these lengths, over and over.
    async fn digest(lanes: &Md5Lanes, mut content: Bytes, pieces: &[usize]) -> Option<[u8; 16]> {
        let mut body = lanes.body(content.len() as u64).await;
        for length in pieces.iter().cycle() {
            if content.is_empty() {
                break;
            }
            body.update(&content.split_to(content.len().min(*length))).await;
        }
        body.finish().await
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn bodies_at_once_have_the_digests_of_md5(
            bodies in proptest::collection::vec(
                (0_usize..400_000, proptest::collection::vec(1_usize..70_000, 1..5)),
                1..20,
            ),
            at_once in 1_usize..20,
        ) {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
            runtime.block_on(async {
                let lanes = &Md5Lanes::new(&Host::real());
                let digests = futures::stream::iter(bodies.iter().enumerate())
                    .map(|(seed, (length, pieces))| digest(lanes, content(*length, seed), pieces))
                    .buffered(at_once)
                    .collect::<Vec<_>>()
                    .await;
                for (seed, (digest, (length, _))) in digests.into_iter().zip(&bodies).enumerate() {
                    let expected: [u8; 16] = Md5::digest(content(*length, seed)).into();
                    prop_assert_eq!(digest, Some(expected), "body {} of {}", seed, length);
                }
                Ok(())
            })?;
        }
    }

    #[tokio::test]
    async fn a_body_that_runs_ahead_waits() {
        let lanes = Md5Lanes::new(&Host::real());
        let mut body = lanes.body(1 << 20).await;
        let piece = content(100_000, 1);
        // on one thread, the task does not run before this test waits
        for _ in 0..WAITING_MAX {
            assert!(body.update(&piece).now_or_never().is_some());
        }
        assert!(body.update(&piece).now_or_never().is_none());
        body.update(&piece).await;
        let mut expected = Md5::new();
        (0..=WAITING_MAX).for_each(|_| expected.update(&piece));
        assert_eq!(body.finish().await, Some(expected.finalize().into()));
    }

    /// A piece of a body, and a witness of its memory.
    fn witnessed() -> (Bytes, Arc<()>) {
        struct Owned(Vec<u8>, #[expect(dead_code, reason = "held")] Arc<()>);
        impl AsRef<[u8]> for Owned {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        let witness = Arc::new(());
        (Bytes::from_owner(Owned(vec![7; 100_000], Arc::clone(&witness))), witness)
    }

    #[tokio::test]
    async fn a_body_that_is_given_up_leaves_nothing_and_nobody_waits_for_it() {
        let lanes = Md5Lanes::new(&Host::real());
        let (piece, witness) = witnessed();
        let mut given_up = lanes.body(1 << 20).await;
        given_up.update(&piece).await;
        drop(piece);
        // it never sends more, and holds nobody up
        let other = content(300_000, 2);
        let expected: [u8; 16] = Md5::digest(&other).into();
        assert_eq!(digest(&lanes, other, &[10_000]).await, Some(expected));
        drop(given_up);
        while Arc::strong_count(&witness) > 1 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn the_task_ends_with_its_last_body_and_not_before() {
        let Some(lanes) = Lanes::find() else { return };
        let host = Host::real();
        let (arrivals, hasher) = hasher(lanes);
        let lanes = Md5Lanes { host, arrivals: Some(arrivals) };
        let content = content(100_000, 3);
        let expected: [u8; 16] = Md5::digest(&content).into();
        let using = async {
            let mut body = lanes.body(100_000).await;
            drop(lanes);
            body.update(&content).await;
            body.finish().await
        };
        let ((), digest) = tokio::join!(hasher.run(), using);
        assert_eq!(digest, Some(expected));
    }

    #[tokio::test]
    async fn without_lanes_each_body_has_a_task() {
        let lanes = Md5Lanes::each_alone(&Host::real());
        let content = content(100_001, 4);
        let expected: [u8; 16] = Md5::digest(&content).into();
        assert_eq!(digest(&lanes, content, &[7000]).await, Some(expected));
    }
}
