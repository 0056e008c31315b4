//! What clients do while a scenario is cruel: a mix on shared keys, and probes that measure gaps.
//!
//! The mix has everything that the checkers judge: plain and conditional writes, deletes, whole reads and ranges,
//! uploads in parts, and lists in pages.

use crate::recorder::Recorder;
use anyhow::Result;
use ashlar_load::Outcome;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Clients of the mix.
const MIXERS: u64 = 4;
/// Keys they share: few, so that operations on one overlap; their first letters spread over the pre-split ranges.
const KEYS: u64 = 24;
/// Probes, each with a key of its own, spread over the ranges likewise.
const PROBES: u64 = 12;
/// Between two writes of a probe: it measures gaps, not throughput.
const PROBE_EVERY: Duration = Duration::from_millis(30);

/// Ranges that the mix reads: at the beginning, across a stripe's cells, at the end of a part, behind most objects.
const RANGES: [(u64, u64); 4] = [(0, 100), (64, 4_000), (40_000, 200_000), (2_400_000, 3_000_000)];

/// Clients at work, until they are told to stop.
pub struct Workload {
    stop: Arc<AtomicBool>,
    mixers: Vec<JoinHandle<()>>,
    probes: Vec<JoinHandle<Duration>>,
    succeeded: Arc<AtomicU64>,
}

impl Workload {
    /// Sends the clients to work.
    pub fn start(recorder: &Recorder) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let succeeded = Arc::new(AtomicU64::new(0));
        let mixers = (0..MIXERS)
            .map(|number| {
                tokio::spawn(mix(recorder.another(), number, stop.clone(), succeeded.clone()))
            })
            .collect();
        let probes = (0..PROBES)
            .map(|number| tokio::spawn(probe(recorder.another(), number, stop.clone())))
            .collect();
        Self { stop, mixers, probes, succeeded }
    }

    /// Operations of the mix that have succeeded so far.
    pub fn succeeded(&self) -> u64 {
        self.succeeded.load(Ordering::Relaxed)
    }

    /// Calls the clients back; says the longest time that any probe was without an acknowledged write.
    pub async fn stop(self) -> Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        for mixer in self.mixers {
            mixer.await?;
        }
        let mut longest = Duration::ZERO;
        for probe in self.probes {
            longest = longest.max(probe.await?);
        }
        Ok(longest)
    }

    /// Every key that a workload may write.
    pub fn keys() -> impl Iterator<Item = String> {
        (0..KEYS).map(mix_key).chain((0..PROBES).map(probe_key))
    }

    /// Reads every key that the workload may have written, and lists them: the last word of a history.
    pub async fn read_all(recorder: &Recorder) -> Result<()> {
        for key in Self::keys() {
            recorder.get(&key).await?;
        }
        recorder.list("").await?;
        Ok(())
    }
}

fn mix_key(number: u64) -> String {
    format!("{}mix-{number:03}", first_letter(number))
}

fn probe_key(number: u64) -> String {
    format!("{}probe-{number:03}", first_letter(number))
}

/// Spreads keys over the key space.
fn first_letter(number: u64) -> char {
    char::from(b'a' + u8::try_from(number * 7 % 26).expect("a letter's number"))
}

async fn mix(recorder: Recorder, number: u64, stop: Arc<AtomicBool>, succeeded: Arc<AtomicU64>) {
    let mut dice = Dice(number + 1);
    while !stop.load(Ordering::Relaxed) {
        let key = mix_key(dice.roll(KEYS));
        let done = match dice.roll(80) {
            0..=28 => recorder.put(&key).await == Outcome::Applied,
            29..=31 => recorder.create(&key, None).await == Outcome::Applied,
            32..=34 => recorder.swap(&key).await == Outcome::Applied,
            35..=38 => recorder.delete(&key).await == Outcome::Applied,
            39..=42 => recorder.list("").await.is_ok(),
            43 => recorder.put_in_parts(&key).await == Outcome::Applied,
            44..=51 => {
                let (from, length) = RANGES[dice.pick(RANGES.len())];
                recorder.get_range(&key, from, length).await.is_ok()
            }
            _ => recorder.get(&key).await.is_ok(),
        };
        if done {
            succeeded.fetch_add(1, Ordering::Relaxed);
        } else {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn probe(recorder: Recorder, number: u64, stop: Arc<AtomicBool>) -> Duration {
    let key = probe_key(number);
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        if recorder.put_small(&key).await == Outcome::Applied {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        tokio::time::sleep(PROBE_EVERY).await;
    }
    longest.max(last.elapsed())
}

/// A small generator: the same rolls in each run.
struct Dice(u64);

impl Dice {
    /// An index into something of this length.
    fn pick(&mut self, length: usize) -> usize {
        usize::try_from(self.roll(length as u64)).expect("below a length")
    }

    /// A number below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}
