//! Who is at the disk now. Requests block threads that all disks of a node share: so at most some of them are at one disk,
//! and a disk that does not answer takes no others' threads. How long the oldest visit lasts says whether it answers.

use crate::StoreError;
use ashlar_host::{Host, Monotonic};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests at one disk: more than make a disk faster, and an eighth of the threads that tokio has for blocking.
const VISITORS_MAX: usize = 64;
/// A visit that takes longer is no slow disk any more, but one that does not answer. Disks retry by themselves for some
/// seconds, and a machine that is short of everything may hold a sync up for as long.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The visits of a disk.
pub(crate) struct Visits {
    permits: Arc<Semaphore>,
    running: Arc<Mutex<Running>>,
}

#[derive(Default)]
struct Running {
    next: u64,
    since: BTreeMap<u64, Monotonic>,
}

/// Somebody is at the disk until this is dropped.
pub(crate) struct Visit {
    running: Arc<Mutex<Running>>,
    number: u64,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Default for Visits {
    fn default() -> Self {
        Self { permits: Arc::new(Semaphore::new(VISITORS_MAX)), running: Arc::default() }
    }
}

impl Visits {
    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of the store's own threads goes to the disk.
    pub(crate) fn enter(&self, host: &Host) -> Visit {
        self.enter_with(host, None)
    }

    fn enter_with(&self, host: &Host, permit: Option<OwnedSemaphorePermit>) -> Visit {
        let now = host.clock.now();
        let mut running = self.running();
        let number = running.next;
        running.next += 1;
        running.since.insert(number, now);
        drop(running);
        Visit { running: self.running.clone(), number, _permit: permit }
    }

    /// How long the oldest visit has lasted.
    pub(crate) fn oldest(&self, host: &Host) -> Duration {
        let oldest = self.running().since.values().next().copied();
        oldest.map_or(Duration::ZERO, |since| host.clock.now() - since)
    }

    /// For how long the disk has not answered; `None`: it does.
    pub(crate) fn unanswered(&self, host: &Host) -> Option<Duration> {
        Some(self.oldest(host)).filter(|oldest| *oldest >= ANSWER_MAX)
    }

    /// A request goes to the disk. Where too many are there it waits, but not at a disk that does not answer.
    pub(crate) async fn request(&self, host: &Host) -> Result<Visit, StoreError> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Ok(self.enter_with(host, Some(permit)));
        }
        let permit = tokio::select! {
            biased;
            permit = self.permits.clone().acquire_owned() => permit,
            () = host.clock.sleep(ANSWER_MAX) => return Err(no_answer(ANSWER_MAX)),
        };
        let permit = permit.map_err(|_| StoreError::Closed)?;
        Ok(self.enter_with(host, Some(permit)))
    }

    /// Runs blocking work of a request.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        host: &Host,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let visit = self.request(host).await?;
        let work = move || {
            let made = work();
            drop(visit);
            made
        };
        Ok(host.tasks.run_blocking(work).await)
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.since.remove(&self.number);
    }
}

/// What is said of a disk that does not answer.
pub(crate) fn no_answer(since: Duration) -> StoreError {
    StoreError::Io(format!("the disk has not answered for {} s", since.as_secs()))
}
