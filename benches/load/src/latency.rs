//! Latencies of a run: all of them are kept, four bytes each, so percentiles are exact.

use std::time::Duration;

/// The latencies of one worker or of all.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    micros: Vec<u32>,
}

impl Latencies {
    /// Records one; anything beyond 71 minutes counts as that.
    pub fn record(&mut self, took: Duration) {
        self.micros.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    }

    /// Joins another worker's.
    pub fn absorb(&mut self, other: Self) {
        self.micros.extend(other.micros);
    }

    /// How many were recorded.
    pub fn count(&self) -> usize {
        self.micros.len()
    }

    /// The given percentiles in milliseconds: the smallest latency that at least that share did not exceed.
    pub fn percentiles_ms<const N: usize>(&mut self, percents: [f64; N]) -> [f64; N] {
        self.micros.sort_unstable();
        percents.map(|percent| self.rank(percent))
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank is between 0 and the count of latencies, which fits both ways"
    )]
    fn rank(&self, percent: f64) -> f64 {
        let rank = (percent / 100.0 * self.micros.len() as f64).ceil() as usize;
        let micros = self.micros.get(rank.saturating_sub(1)).copied().unwrap_or(0);
        f64::from(micros) / 1000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_ranks() {
        let mut latencies = Latencies::default();
        for millis in (1..=100).rev() {
            latencies.record(Duration::from_millis(millis));
        }
        assert_eq!(latencies.percentiles_ms([50.0, 99.0, 100.0]), [50.0, 99.0, 100.0]);
        assert_eq!(Latencies::default().percentiles_ms([50.0]), [0.0]);
    }
}
