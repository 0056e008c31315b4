//! How slow a peer may be: a deadline on silence, and a least rate in the time that it is waited for.
//!
//! The clock of a [`Pace`] runs only while this side waits for the peer, never while the peer waits for this side: a slow
//! disk makes no client slow. The rate is judged over pieces of waiting time, each `grace` long, so that a quick
//! beginning buys no endless trickle afterwards.

use crate::{Clock, Connection, Monotonic};
use futures::future::BoxFuture;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is asked of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaceLimits {
    /// How long it may move no byte.
    pub stall: Duration,
    /// How much waiting is judged at a time: its rate is not looked at before.
    pub grace: Duration,
    /// Bytes that it must move in a second of waiting for it.
    pub rate_min: u64,
}

impl Default for PaceLimits {
    /// A modem of the last century passes.
    fn default() -> Self {
        Self { stall: Duration::from_secs(30), grace: Duration::from_secs(60), rate_min: 1024 }
    }
}

/// Why a peer is not waited for any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooSlow {
    /// It moved nothing.
    #[error("the peer has stalled")]
    Stalled,
    /// It moved something, and too little.
    #[error("the peer is below the least rate")]
    BelowRate,
}

/// Watches one direction of one peer.
pub struct Pace {
    limits: PaceLimits,
    clock: Arc<dyn Clock>,
    waiting_since: Option<Monotonic>,
    /// Of the piece of time that is being judged.
    waited: Duration,
    moved: u64,
    /// May have been set for an earlier wait: it is asked for its meaning when it rings. So a wait costs no timer.
    alarm: Option<BoxFuture<'static, ()>>,
}

impl Pace {
    /// Begins.
    pub fn new(clock: Arc<dyn Clock>, limits: PaceLimits) -> Self {
        let (waited, moved) = (Duration::ZERO, 0);
        Self { limits, clock, waiting_since: None, waited, moved, alarm: None }
    }

    /// The peer has moved so many bytes.
    pub fn moved(&mut self, bytes: usize) -> Result<(), TooSlow> {
        self.moved = self.moved.saturating_add(bytes as u64);
        let Some(since) = self.waiting_since.take() else { return Ok(()) };
        self.waited += self.clock.now() - since;
        if self.waited < self.limits.grace {
            return Ok(());
        }
        let due = u128::from(self.limits.rate_min) * self.waited.as_millis() / 1000;
        let is_due = u128::from(self.moved) >= due;
        (self.waited, self.moved) = (Duration::ZERO, 0);
        if is_due { Ok(()) } else { Err(TooSlow::BelowRate) }
    }

    /// The peer is waited for: ready when that has lasted too long.
    pub fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<TooSlow> {
        let now = self.clock.now();
        let until = *self.waiting_since.get_or_insert(now) + self.limits.stall;
        loop {
            let now = self.clock.now();
            let alarm = self.alarm.get_or_insert_with(|| self.clock.sleep(until - now));
            ready!(alarm.as_mut().poll(cx));
            self.alarm = None;
            if self.clock.now() >= until {
                return Poll::Ready(TooSlow::Stalled);
            }
        }
    }
}

impl std::fmt::Debug for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pace").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// A connection whose peer must go on taking what is written to it (S5): what it does not take is held in memory here,
/// with all that waits behind it.
pub(crate) struct PacedWrites<F> {
    pub(crate) stream: Box<dyn Connection>,
    pub(crate) pace: Pace,
    /// Told why, once the peer was too slow.
    pub(crate) cut: F,
}

impl<F: FnMut(TooSlow)> PacedWrites<F> {
    fn judge<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        let too_slow = match &written {
            Poll::Ready(Ok(taken)) => self.pace.moved(bytes(taken)).err(),
            Poll::Ready(Err(_)) => None,
            Poll::Pending => match self.pace.poll_wait(cx) {
                Poll::Ready(too_slow) => Some(too_slow),
                Poll::Pending => None,
            },
        };
        let Some(too_slow) = too_slow else { return written };
        (self.cut)(too_slow);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, too_slow)))
    }
}

impl<F: Unpin> AsyncRead for PacedWrites<F> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<F: FnMut(TooSlow) + Unpin> AsyncWrite for PacedWrites<F> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.judge(cx, written, |bytes| *bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.judge(cx, written, |bytes| *bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        this.judge(cx, flushed, |()| 0)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let closed = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.judge(cx, closed, |()| 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RealClock;

    const LIMITS: PaceLimits = PaceLimits {
        stall: Duration::from_secs(10),
        grace: Duration::from_secs(20),
        rate_min: 100,
    };

    fn pace() -> Pace {
        Pace::new(Arc::new(RealClock::default()), LIMITS)
    }

    /// Waits for the peer, but no longer than `span`: what the peer then moves, it moves.
    async fn wait(pace: &mut Pace, span: Duration) -> Option<TooSlow> {
        let waiting = std::future::poll_fn(|cx| pace.poll_wait(cx));
        tokio::time::timeout(span, waiting).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn silence_has_a_deadline_that_each_byte_renews() {
        let mut pace = pace();
        for _ in 0..2 {
            assert_eq!(wait(&mut pace, Duration::from_secs(9)).await, None);
            assert_eq!(pace.moved(1000), Ok(()));
        }
        let begun = tokio::time::Instant::now();
        assert_eq!(wait(&mut pace, Duration::from_secs(60)).await, Some(TooSlow::Stalled));
        assert_eq!(begun.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quick_beginning_buys_no_endless_trickle() {
        let mut pace = pace();
        assert_eq!(pace.moved(1 << 30), Ok(()));
        let mut verdicts = Vec::new();
        for _ in 0..9 {
            assert_eq!(wait(&mut pace, Duration::from_secs(5)).await, None);
            verdicts.push(pace.moved(499));
        }
        // the first 20 s of waiting have the gigabyte, the second do not
        let slow = Err(TooSlow::BelowRate);
        assert_eq!(
            verdicts,
            [Ok(()), Ok(()), Ok(()), Ok(()), Ok(()), Ok(()), Ok(()), slow, Ok(())]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_keeps_the_rate_is_waited_for_however_long() {
        let mut pace = pace();
        for _ in 0..100 {
            assert_eq!(wait(&mut pace, Duration::from_secs(9)).await, None);
            assert_eq!(pace.moved(901), Ok(()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nobody_waits_for_the_peer_is_not_counted() {
        let mut pace = pace();
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(100)).await;
            assert_eq!(pace.moved(1), Ok(()));
        }
        assert_eq!(wait(&mut pace, Duration::from_secs(9)).await, None);
        assert_eq!(pace.moved(1), Ok(()));
    }
}
