//! Time: monotonic for deadlines, wall for what people and S3 read. No decision of correctness reads the wall clock.

use futures::future::BoxFuture;
use std::future::Future;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A moment of the monotonic clock: time since the clock was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Monotonic(pub Duration);

impl Add<Duration> for Monotonic {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        Self(self.0 + span)
    }
}

impl Sub for Monotonic {
    type Output = Duration;
    /// Zero where `earlier` is in truth later.
    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// A deadline has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the deadline has passed")]
pub struct Elapsed;

/// A clock.
pub trait Clock: Send + Sync {
    /// Never goes back.
    fn now(&self) -> Monotonic;
    /// Milliseconds since 1970; may jump.
    fn wall_ms(&self) -> u64;
    /// Waits.
    fn sleep(&self, span: Duration) -> BoxFuture<'static, ()>;
}

impl dyn Clock {
    /// Runs `work`, but no longer than `span`; what is not finished by then is dropped.
    pub async fn timeout<F: Future>(&self, span: Duration, work: F) -> Result<F::Output, Elapsed> {
        let deadline = self.sleep(span);
        tokio::select! {
            biased;
            output = work => Ok(output),
            () = deadline => Err(Elapsed),
        }
    }
}

/// The machine's clock; under tokio's paused time, the paused one.
#[derive(Debug)]
pub struct RealClock {
    origin: tokio::time::Instant,
}

impl Default for RealClock {
    fn default() -> Self {
        Self { origin: tokio::time::Instant::now() }
    }
}

impl Clock for RealClock {
    fn now(&self) -> Monotonic {
        Monotonic(self.origin.elapsed())
    }

    fn wall_ms(&self) -> u64 {
        let since_1970 =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
    }

    fn sleep(&self, span: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(span))
    }
}
