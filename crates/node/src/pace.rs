//! How fast what moves may come to each disk, so that clients keep their part of it.

use ashlar_host::{Clock, Monotonic};
use ashlar_types::DiskId;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Lets bytes through at a rate: whoever takes some waits until those before have had their time.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// 0: as fast as it goes.
    bytes_per_second: u64,
    /// When each disk is through with what was taken for it.
    through: Mutex<BTreeMap<DiskId, Monotonic>>,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, through: Mutex::default() }
    }

    /// Waits until bytes may be brought to a disk.
    pub(crate) async fn take(&self, clock: &dyn Clock, disk: DiskId, bytes: u64) {
        let now = clock.now();
        let from = self.book(disk, bytes, now);
        if from > now {
            clock.sleep(from - now).await;
        }
    }

    /// When it may begin. Time in which nothing was taken is not saved up.
    fn book(&self, disk: DiskId, bytes: u64, now: Monotonic) -> Monotonic {
        if self.bytes_per_second == 0 {
            return now;
        }
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut through = self.through.lock().unwrap_or_else(PoisonError::into_inner);
        let from = through.get(&disk).map_or(now, |through| (*through).max(now));
        through.insert(disk, from + takes);
        from
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISKS: [DiskId; 2] = [DiskId(1), DiskId(2)];

    fn at(millis: u64) -> Monotonic {
        Monotonic(Duration::from_millis(millis))
    }

    #[test]
    fn each_disk_has_the_rate_and_idle_time_is_not_saved() {
        let pace = Pace::new(1_000_000);
        let book = |disk: usize, bytes, millis| pace.book(DISKS[disk], bytes, at(millis));
        assert_eq!(book(0, 500_000, 0), at(0));
        assert_eq!(book(0, 250_000, 10), at(500));
        assert_eq!(book(1, 500_000, 10), at(10), "another disk");
        assert_eq!(book(0, 1_000, 5_000), at(5_000), "it was idle");
        assert_eq!(book(0, 1_000, 5_000), at(5_001));
    }

    #[test]
    fn without_a_rate_nobody_waits() {
        let pace = Pace::new(0);
        for _ in 0..3 {
            assert_eq!(pace.book(DISKS[0], u64::MAX, at(7)), at(7));
        }
    }
}
