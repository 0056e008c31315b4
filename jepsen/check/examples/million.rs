//! What does it cost to judge a million operations?
//!
//! `cargo run --release -p ashlar-check --example million -- [OPERATIONS] [KEYS] [CLIENTS]` makes the history of a
//! right store, writes it as JSON lines, and measures CPU time and memory of reading and of judging it: once with puts
//! and gets alone, which intervals decide, and once with deletes and conditional writes, which need the search.

#![expect(clippy::print_stdout, reason = "a measurement is printed")]

use anyhow::{Context, Result, ensure};
use ashlar_check::history::read_operations;
use ashlar_check::{Action, Event, Kind, Verdict, Why, judge_operations};
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

/// One operation in so many has an unknown outcome.
const UNKNOWN_ONE_IN: u64 = 50;

fn main() -> Result<()> {
    let words: Vec<u64> =
        std::env::args().skip(1).map(|word| word.parse()).collect::<Result<_, _>>()?;
    let word = |at: usize, otherwise: u64| words.get(at).copied().unwrap_or(otherwise);
    let (operations, keys, clients) = (word(0, 1_000_000), word(1, 1_000), word(2, 32));
    for (name, mixed) in [("puts and gets", false), ("with deletes and conditions", true)] {
        let path = std::env::temp_dir().join(format!("million-{}.jsonl", std::process::id()));
        Store { keys, clients, mixed, ..Store::default() }.write(operations, &path)?;
        let bytes = path.metadata()?.len();
        let began = cpu_seconds()?;
        let read = read_operations(BufReader::new(File::open(&path)?));
        std::fs::remove_file(&path)?;
        let (history, _) = read.map_err(anyhow::Error::msg)?;
        let reading = cpu_seconds()? - began;
        let held = memory_mib("VmRSS")?;
        let began = cpu_seconds()?;
        let report = judge_operations(&history);
        let judging = cpu_seconds()? - began;
        ensure!(report.verdict == Verdict::Pass, "{report}");
        println!(
            "{name}: {operations} operations on {keys} keys by {clients} clients ({} MiB): \
             reading {reading:.2} cpu-s, judging {judging:.2} cpu-s, {held} MiB held, peak {} MiB",
            bytes >> 20,
            memory_mib("VmHWM")?
        );
    }
    Ok(())
}

/// A right store: each operation has its effect when it is written down, at a moment of its interval.
#[derive(Default)]
struct Store {
    keys: u64,
    clients: u64,
    mixed: bool,
    objects: Vec<Option<u64>>,
    dice: u64,
}

impl Store {
    fn write(mut self, operations: u64, path: &Path) -> Result<()> {
        let mut lines = BufWriter::new(File::create(path)?);
        self.objects = vec![None; usize::try_from(self.keys)?];
        self.dice = 1;
        for number in 0..operations {
            let (kind, why, action) = self.serve(number)?;
            // Its moment lies anywhere in its interval, which overlaps those of about as many others as there are
            // clients: the order of the ends says little about the order of the effects.
            let moment = 10 * (number + self.clients);
            let (before, behind) = (self.roll(10 * self.clients), self.roll(10 * self.clients));
            let mut event = Event {
                at_us: moment - before,
                operation: number,
                kind: Kind::Invoke,
                client: number % self.clients,
                gateway: Some(number % 2),
                why: None,
                action,
            };
            write_line(&mut lines, &event)?;
            (event.at_us, event.kind, event.why) = (moment + 1 + behind, kind, why);
            write_line(&mut lines, &event)?;
        }
        Ok(lines.flush()?)
    }

    fn serve(&mut self, number: u64) -> Result<(Kind, Option<Why>, Action)> {
        let index = self.roll(self.keys);
        let key = format!("bucket/key-{index:06}");
        let what = self.roll(if self.mixed { 20 } else { 16 });
        let is_unknown = self.roll(UNKNOWN_ONE_IN) == 0;
        let object = &mut self.objects[usize::try_from(index)?];
        let value = number + 1;
        let refused = (Kind::Fail, Some(Why::Condition));
        let ok = (Kind::Ok, None);
        let seen = *object;
        let ((kind, why), after, action) = match what {
            0..=7 => {
                let action = Action::Put { key, value, bytes: None, version: None };
                (ok, Some(value), action)
            }
            8..=15 => (ok, seen, Action::Get { key, value: seen }),
            16 => (ok, None, Action::Delete { key, version: None }),
            17 => {
                let end = if seen.is_none() { ok } else { refused };
                (end, seen.or(Some(value)), Action::Create { key, value, bytes: None })
            }
            _ => {
                let expect = seen.unwrap_or(0);
                let end = if seen.is_some() { ok } else { (Kind::Fail, Some(Why::Missing)) };
                (end, seen.map(|_| value), Action::Swap { key, expect, value, bytes: None })
            }
        };
        let is_write = !matches!(action, Action::Get { .. });
        let lost = is_unknown && is_write && number.is_multiple_of(2);
        if !lost {
            *object = after;
        }
        Ok(if is_unknown && is_write { (Kind::Info, None, action) } else { (kind, why, action) })
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice % sides
    }
}

fn write_line(lines: &mut impl Write, event: &Event) -> Result<()> {
    serde_json::to_writer(&mut *lines, event)?;
    Ok(lines.write_all(b"\n")?)
}

/// CPU time of this process, of which the kernel counts hundredths of a second.
fn cpu_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let rest = stat.rsplit_once(") ").context("a name in parentheses")?.1;
    let ticks: Vec<f64> =
        rest.split(' ').skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

fn memory_mib(name: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(name)).context("a line of memory")?;
    let kib: u64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kib >> 10)
}
