//! `ashlar-sim`: a cluster's bad years in seconds. One seed is one process is one whole run: real nodes, gateways from
//! the S3 backend down, and clients, on virtual time, simulated disks and a simulated network.
//!
//! `ashlar-sim --seed N [--faults LIST] [--no-spares] [--trace FILE] [--lie wal|shards] [--bug ID]`; exit code 0: nothing was found, 3:
//! something was.

#![expect(clippy::print_stdout, reason = "a command-line tool reports to its terminal")]

mod client;
mod content;
mod invariants;
mod machines;
mod nemesis;
mod options;
mod record;
mod run;
mod world;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use options::{Fault, Options};
use run::{Lie, Outcome};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use tokio::runtime::{Builder, RngSeed};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// The exit code of a run that found something.
const FOUND: u8 = 3;

/// Simulates one cluster.
#[derive(Parser)]
struct Args {
    /// Decides everything.
    #[arg(long)]
    seed: u64,
    /// What may strike, instead of what the seed draws.
    #[arg(long, value_delimiter = ',')]
    faults: Vec<Fault>,
    /// Leaves out the nodes that join: what a seed meant before there were any.
    #[arg(long)]
    no_spares: bool,
    /// Where the trace goes: the same seed, the same bytes.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Prints what the nodes log, from this level on, with virtual time.
    #[arg(long)]
    log: Option<String>,
    /// A planted bug: the disks lie about these syncs.
    #[arg(long)]
    lie: Option<About>,
    /// A seeded bug, by its id in the catalogue (`jepsen/bugs`), in a build that has them.
    #[arg(long)]
    bug: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum About {
    /// The write-ahead log.
    Wal,
    /// The shards.
    Shards,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    exit_on_panic();
    if let Some(id) = &args.bug {
        switch_on(id)?;
    }
    let mut options = Options::of(args.seed);
    if !args.faults.is_empty() {
        options.under(&args.faults);
    }
    if args.no_spares {
        options.without_spares();
    }
    println!("{options}");
    let lie = args.lie.map(|about| match about {
        About::Wal => Lie("wal"),
        About::Shards => Lie("seg"),
    });
    if let Some(level) = &args.log {
        print_log(level);
    }
    let began = Instant::now();
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .rng_seed(RngSeed::from_bytes(&args.seed.to_le_bytes()))
        .build()?;
    let outcome = runtime.block_on(run::run(options, lie))?;
    if let Some(path) = &args.trace {
        std::fs::write(path, &outcome.trace).context("the trace cannot be written")?;
    }
    tell(&outcome, began);
    if outcome.is_good() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("again: {}", this_run());
    Ok(ExitCode::from(FOUND))
}

/// A panic anywhere is a finding, and nothing after it means anything.
fn exit_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        println!("found: a panic; again: {}", this_run());
        std::process::exit(FOUND.into());
    }));
}

/// The line that repeats it.
fn this_run() -> String {
    std::env::args().collect::<Vec<_>>().join(" ")
}

#[cfg(feature = "seeded-bugs")]
fn switch_on(id: &str) -> Result<()> {
    let bug = ashlar_bugs::find(id).with_context(|| format!("no seeded bug is called {id}"))?;
    ashlar_types::seeded::switch_on(bug.id);
    Ok(())
}

#[cfg(not(feature = "seeded-bugs"))]
fn switch_on(id: &str) -> Result<()> {
    anyhow::bail!("{id}: this build has no seeded bugs; `cargo xtask bugs` makes one that has")
}

/// Prints what the nodes log.
fn print_log(level: &str) {
    tracing_subscriber::fmt().with_env_filter(level).with_timer(VirtualTime).init();
}

struct VirtualTime;

impl FormatTime for VirtualTime {
    fn format_time(&self, line: &mut Writer<'_>) -> std::fmt::Result {
        thread_local! {
            static BEGIN: tokio::time::Instant = tokio::time::Instant::now();
        }
        write!(line, "{:>9.3} s", BEGIN.with(|begin| begin.elapsed().as_secs_f64()))
    }
}

fn tell(outcome: &Outcome, began: Instant) {
    for finding in &outcome.findings {
        println!("found {}: {}", finding.invariant, finding.what);
    }
    for anomaly in &outcome.report.anomalies {
        println!("found {anomaly}");
    }
    for doubt in &outcome.report.doubts {
        println!("doubt {doubt}");
    }
    let (real, simulated) = (began.elapsed().as_secs_f64(), outcome.virtual_time.as_secs_f64());
    println!("{}; {simulated:.1} simulated s in {real:.2} s", outcome.report);
}
