//! Who may begin: a budget of memory that all requests with a body share (S5).
//!
//! A request holds its share until its last byte has passed. One that does not get its share soon is told to slow down
//! (503), before anything has been proposed.

use ashlar_host::Clock;
use ashlar_s3::Failure;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The unit of the budget.
const UNIT_BYTES: u64 = 4 * 1024;
/// What a stream holds at most, however long it is: read-ahead and queues of one request.
const STREAM_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// How long a request waits for its share: long enough for a burst, short enough for a retry.
const PATIENCE: Duration = Duration::from_millis(500);

/// See the module.
pub(crate) struct Admission {
    units: Arc<Semaphore>,
    clock: Arc<dyn Clock>,
}

/// A share of the budget.
pub(crate) type Permit = OwnedSemaphorePermit;

impl Admission {
    pub(crate) fn new(clock: Arc<dyn Clock>, memory_bytes: u64) -> Self {
        // never less than one stream
        let units = memory_bytes.max(STREAM_BYTES_MAX) / UNIT_BYTES;
        let units = usize::try_from(units).unwrap_or(Semaphore::MAX_PERMITS);
        Self { units: Arc::new(Semaphore::new(units)), clock }
    }

    /// The share of a stream of that length.
    pub(crate) async fn admit(&self, length: u64) -> Result<Permit, Failure> {
        let units = length.min(STREAM_BYTES_MAX).div_ceil(UNIT_BYTES).max(1);
        let units = u32::try_from(units).map_err(|_| Failure::Overloaded)?;
        let share = Arc::clone(&self.units).acquire_many_owned(units);
        match self.clock.timeout(PATIENCE, share).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => {
                metrics::counter!("ashlar_s3_shed_total").increment(1);
                Err(Failure::Overloaded)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_host::RealClock;

    #[tokio::test(start_paused = true)]
    async fn what_finds_no_room_is_told_to_slow_down_and_room_comes_back() {
        let admission = Admission::new(Arc::new(RealClock::default()), 2 * STREAM_BYTES_MAX);
        let first = admission.admit(u64::MAX).await.expect("room");
        let _second = admission.admit(STREAM_BYTES_MAX).await.expect("room");
        assert!(matches!(admission.admit(1).await, Err(Failure::Overloaded)));
        drop(first);
        assert!(admission.admit(1).await.is_ok());
    }
}
