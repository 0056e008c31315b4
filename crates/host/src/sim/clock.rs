//! Virtual time, and a wall clock that may be wrong.

use crate::clock::{Clock, Monotonic};
use futures::future::BoxFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// What the wall clock of every simulation shows at its start, but for its skew: the 1st of January 2026.
const WALL_BEGIN_MS: i64 = 1_767_225_600_000;

/// How far a wall clock is ahead of the truth, in milliseconds; a clone is the same clock.
#[derive(Debug, Clone, Default)]
pub struct WallSkew(Arc<AtomicI64>);

impl WallSkew {
    /// The clock jumps.
    pub fn set_ms(&self, ahead: i64) {
        self.0.store(ahead, Ordering::Relaxed);
    }
}

/// The clock of one life.
pub(super) struct SimClock {
    origin: Instant,
    skew: WallSkew,
}

impl SimClock {
    pub(super) fn new(skew: WallSkew) -> Self {
        Self { origin: Instant::now(), skew }
    }
}

/// Virtual milliseconds since the first question of this thread: of all nodes of a simulation.
fn virtual_ms() -> i64 {
    thread_local! {
        static BEGIN: Instant = Instant::now();
    }
    let since = BEGIN.with(|begin| Instant::now().saturating_duration_since(*begin));
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl Clock for SimClock {
    fn now(&self) -> Monotonic {
        Monotonic(self.origin.elapsed())
    }

    fn wall_ms(&self) -> u64 {
        let shown = WALL_BEGIN_MS + virtual_ms() + self.skew.0.load(Ordering::Relaxed);
        u64::try_from(shown).unwrap_or_default()
    }

    fn sleep(&self, span: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(span))
    }
}
