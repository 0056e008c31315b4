//! `ashlar-powercut`: the engines of one disk on real file systems whose power is cut.
//!
//! A victim process drives `ashlar-store` or `ashlar-wal` on ext4 or XFS and says over a pipe what it was acknowledged.
//! Then the power goes, by the file system's own shutdown or by a device that loses what was not flushed; the file
//! system is mounted again, and the next victim compares. Two liars prove that losses are seen.
//! The last line is `N passed, N failed`. Where the machine cannot do it, the reason is printed instead.

#![expect(clippy::print_stdout, reason = "a command-line tool reports to its terminal")]

mod bed;
mod dice;
mod fuse;
mod log;
mod round;
mod shards;
mod victim;
mod write_log;

use anyhow::{Context, Result, ensure};
use ashlar_powercut::machine;
use bed::{Bed, Kind, Means};
use clap::{Parser, Subcommand};
use round::Lives;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use victim::{Engine, Orders};
use write_log::Fate;

/// Begins the name of every directory of a run.
const PREFIX: &str = "ashlar-powercut-";
/// A liar that is not caught after so many cuts will not be.
const LIAR_CUTS_MAX: u64 = 12;

/// Cuts the power under the engines of one disk.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Cuts, shared among all file systems and both means.
    #[arg(long, default_value_t = 400)]
    cuts: u64,
    /// Where the images lie while it runs.
    #[arg(long, default_value = "target/powercut")]
    dir: PathBuf,
    /// From which everything follows but the timing; by default the time.
    #[arg(long)]
    seed: Option<u64>,
    /// No new cut after so many seconds; by default there is no limit.
    #[arg(long)]
    seconds: Option<u64>,
}

#[derive(Subcommand)]
enum Verb {
    /// The process whose power is cut; the harness starts it.
    #[command(hide = true)]
    Victim(Orders),
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if let Some(Verb::Victim(orders)) = args.verb {
        victim::live(orders).await?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(why) = machine::cannot() {
        println!("SKIP powercut: {why}");
        println!("0 passed, 0 failed");
        return Ok(ExitCode::SUCCESS);
    }
    for dir in machine::leftovers(&args.dir, PREFIX)? {
        machine::tear_down(&dir)?;
    }
    let dir = std::path::absolute(args.dir.join(format!("{}{}", PREFIX, std::process::id())))?;
    std::fs::create_dir_all(&dir)?;
    let home = dir.clone();
    let run = tokio::task::spawn_blocking(move || run(&args, &home));
    let failed = tokio::select! {
        failed = run => failed?,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("stopped by Control-C")),
    };
    let torn_down = machine::tear_down(&dir);
    let failed = failed?;
    torn_down?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All beds and all liars; how many failed.
fn run(args: &Args, dir: &Path) -> Result<u64> {
    let seed = args.seed.map_or_else(clock_seed, Ok)?;
    let deadline = args.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    println!("powercut: seed {seed}, {} cuts", args.cuts);
    let mut kinds = vec![Kind::Ext4];
    if machine::has("mkfs.xfs") {
        kinds.push(Kind::Xfs);
    } else {
        println!("SKIP XFS: there is no mkfs.xfs (Debian: xfsprogs)");
    }
    let (mut passed, mut failed) = (0, 0);
    let mut tell = |name: &str, story: Result<String>| match story {
        Ok(facts) => {
            passed += 1;
            println!("PASS {name}: {facts}");
        }
        Err(error) => {
            failed += 1;
            println!("FAIL {name}: {error:#}");
        }
    };
    for liar in [Liar::Disk, Liar::Store, Liar::Log] {
        tell(liar.claim(), catch(liar, dir, seed));
    }
    let mut beds = Vec::new();
    for kind in kinds {
        for means in [Means::WriteLog, Means::Shutdown] {
            beds.push(make(dir, kind, means, seed)?);
        }
    }
    cut_all(&mut beds, args.cuts, deadline)?;
    for lives in &mut beds {
        tell(&lives.bed().name(), verdict(lives));
    }
    println!("{passed} passed, {failed} failed");
    Ok(failed)
}

fn clock_seed() -> Result<u64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(now.as_secs())
}

fn make(dir: &Path, kind: Kind, means: Means, seed: u64) -> Result<Lives> {
    let home = dir.join(format!("{kind:?}-{means:?}-{seed}").to_lowercase());
    std::fs::create_dir_all(&home)?;
    let bed =
        Bed::make(&home, kind, means).with_context(|| format!("making {}", home.display()))?;
    Ok(Lives::new(bed, seed ^ (kind as u64) << 8 ^ (means as u64) << 9, home.join("victims.log")))
}

/// One cut after another, the beds and the engines by turns.
fn cut_all(beds: &mut [Lives], cuts: u64, deadline: Option<Instant>) -> Result<()> {
    let count = beds.len() as u64;
    for cut in 0..cuts {
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            println!("no time for more than {cut} cuts");
            return Ok(());
        }
        let lives = &mut beds[usize::try_from(cut % count)?];
        let engine = if (cut / count).is_multiple_of(2) { Engine::Store } else { Engine::Wal };
        let fate = lives.any_fate();
        lives.cut(engine, fate)?;
        if !lives.count.broken.is_empty() {
            return Ok(());
        }
    }
    Ok(())
}

/// What a bed has shown: nothing broken, and the cuts really took something.
fn verdict(lives: &mut Lives) -> Result<String> {
    if lives.count.broken.is_empty() {
        lives.judge(Engine::Store)?;
        lives.judge(Engine::Wal)?;
    }
    let count = &lives.count;
    ensure!(count.broken.is_empty(), "{}", count.broken.join("; "));
    ensure!(
        count.cuts > 0 && count.acknowledged > 0 && count.open > 0,
        "nothing was cut, or nothing acknowledged, or nothing was in flight: {count:?}"
    );
    let taken = count.taken;
    let mut facts = format!(
        "{} cuts, {} steps acknowledged and kept, {} open, {}",
        count.cuts, count.acknowledged, count.open, count.space
    );
    if lives.bed().means() == Means::WriteLog {
        facts += &format!(
            "; writes without a flush: {} dropped, {} torn, {} kept",
            taken.dropped, taken.torn, taken.kept
        );
    }
    Ok(facts)
}

/// Who lies, to prove that lies are seen.
#[derive(Clone, Copy)]
enum Liar {
    /// A disk that answers flushes and forgets them.
    Disk,
    /// A victim that calls shards durable when their put begins.
    Store,
    /// A victim that calls records durable when they are submitted.
    Log,
}

impl Liar {
    fn claim(self) -> &'static str {
        match self {
            Self::Disk => "a disk that forgets flushes is caught",
            Self::Store => "a store that acknowledges before its sync is caught",
            Self::Log => "a log that acknowledges before its sync is caught",
        }
    }
}

/// Cuts until the liar is caught.
fn catch(liar: Liar, dir: &Path, seed: u64) -> Result<String> {
    let (means, engine) = match liar {
        Liar::Disk => (Means::WriteLog, Engine::Store),
        Liar::Store => (Means::Shutdown, Engine::Store),
        Liar::Log => (Means::Shutdown, Engine::Wal),
    };
    let home = dir.join(format!("liar-{}", liar as u64));
    std::fs::create_dir_all(&home)?;
    let mut lives = make(&home, Kind::Ext4, means, seed)?;
    match liar {
        Liar::Disk => lives.bed().forget_flushes()?,
        Liar::Store | Liar::Log => lives.hasty = true,
    }
    for _ in 0..LIAR_CUTS_MAX {
        lives.cut(engine, Fate::Dropped)?;
        lives.judge(engine)?;
        if let Some(what) = lives.count.broken.first() {
            return Ok(format!("after {} cuts, {what}", lives.count.cuts));
        }
    }
    anyhow::bail!("{LIAR_CUTS_MAX} cuts took nothing that was acknowledged too early")
}
