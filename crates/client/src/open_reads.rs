//! The reads that are open here: what their range named for them must stay, even when a later write has freed it.
//!
//! Reads are numbered as they begin, before they ask their range. A collector that has read a gc queue asks each
//! gateway for the number that its next read will have, and waits until none below it is open: what begins later sees
//! a range that names the freed extents no more. No clock is compared, and no read waits for anybody.

use crate::Failure;
use ashlar_host::Monotonic;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A read that is open longer is cut, so that a collector need not wait for one for ever.
pub(crate) const READ_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// The numbers of the open reads of a client.
#[derive(Debug, Default)]
pub(crate) struct OpenReads(Mutex<Numbers>);

#[derive(Debug, Default)]
struct Numbers {
    next: u64,
    open: BTreeSet<u64>,
}

/// Which reads are open: all have numbers from `oldest` on, and below `next`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenReadNumbers {
    /// No read with a lesser number is open.
    pub oldest: u64,
    /// The number that the next read will have.
    pub next: u64,
}

/// A read that has begun. It is to be opened before the range is asked where the bytes lie, and kept until the last of
/// them was read.
#[derive(Debug)]
#[must_use = "a read that is not held open may lose its extents"]
pub struct OpenRead {
    reads: Arc<OpenReads>,
    number: u64,
    began: Monotonic,
}

impl OpenReads {
    fn numbers(&self) -> std::sync::MutexGuard<'_, Numbers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open(self: &Arc<Self>, now: Monotonic) -> OpenRead {
        let mut numbers = self.numbers();
        let number = numbers.next;
        numbers.next += 1;
        numbers.open.insert(number);
        OpenRead { reads: self.clone(), number, began: now }
    }

    pub(crate) fn which(&self) -> OpenReadNumbers {
        let numbers = self.numbers();
        let oldest = numbers.open.first().copied().unwrap_or(numbers.next);
        OpenReadNumbers { oldest, next: numbers.next }
    }
}

impl OpenRead {
    /// Refuses to go on with a read that is so old that its extents may be gone (C5: it is cut, never mixed).
    pub(crate) fn check_age(&self, now: Monotonic) -> Result<(), Failure> {
        if now - self.began < READ_AGE_MAX {
            return Ok(());
        }
        let hours = READ_AGE_MAX.as_secs() / 3600;
        Err(Failure::unavailable(format!(
            "the read was open for more than {hours} hours: begin it anew"
        )))
    }
}

impl Drop for OpenRead {
    fn drop(&mut self) {
        self.reads.numbers().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_open_read_holds_the_mark_back() {
        let reads = Arc::new(OpenReads::default());
        let which = || {
            let OpenReadNumbers { oldest, next } = reads.which();
            (oldest, next)
        };
        assert_eq!(which(), (0, 0));
        let (first, second) = (reads.open(Monotonic::default()), reads.open(Monotonic::default()));
        assert_eq!(which(), (0, 2));
        drop(second);
        assert_eq!(which(), (0, 2), "the first is still open");
        let third = reads.open(Monotonic::default());
        drop(first);
        assert_eq!(which(), (2, 3));
        drop(third);
        assert_eq!(which(), (3, 3));
    }

    #[test]
    fn a_read_grows_too_old() {
        let read = Arc::new(OpenReads::default()).open(Monotonic::default());
        let at = |span: Duration| Monotonic::default() + span;
        assert!(read.check_age(at(READ_AGE_MAX - Duration::from_nanos(1))).is_ok());
        assert!(read.check_age(at(READ_AGE_MAX)).is_err());
    }
}
