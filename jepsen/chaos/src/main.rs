//! `ashlar-chaos SCHEDULE`: bad days of a real cluster, and a verdict about them.
//!
//! Six processes of the program under test, each in a network namespace and on a disk image of its own, behind a switch
//! of ours; clients that record; faults of a schedule, each seen to bite; and the checkers of `jepsen/check`. What stays
//! is a history, a verdict, a report and the logs. See the README for schedules and what they need.

#![expect(clippy::print_stdout, reason = "a command-line tool reports to its terminal")]

mod cluster;
mod fault;
mod node;
mod report;
mod schedule;
mod switch;

use anyhow::{Context, Result};
use ashlar_powercut::machine;
use clap::Parser;
use cluster::Place;
use schedule::Schedule;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const PREFIX: &str = "ashlar-chaos-";
const NAMESPACE_PREFIX: &str = "ashch-";

/// Bad days for a real cluster.
#[derive(Parser)]
struct Args {
    /// What happens.
    #[arg(value_enum)]
    schedule: Schedule,
    /// The program under test.
    #[arg(long, default_value = "target/debug/ashlar")]
    ashlar: PathBuf,
    /// Where images and mounts lie while it runs.
    #[arg(long, default_value = "target/chaos")]
    dir: PathBuf,
    /// Where history, verdict, report and logs stay.
    #[arg(long, default_value = "target/jepsen")]
    results: PathBuf,
    /// From which faults and the network's chances follow; by default the time.
    #[arg(long)]
    seed: Option<u64>,
    /// No new fault after so many minutes.
    #[arg(long, default_value_t = 4)]
    minutes: u64,
    /// Processes on loopback, without root: kills, stops and rot only.
    #[arg(long)]
    local: bool,
    /// Set by the harness itself once it stands in a namespace of its own.
    #[arg(long, hide = true)]
    inside: bool,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if !args.local && !args.inside {
        if let Some(why) = cannot() {
            println!("SKIP chaos: {why} (--local does some of it without)");
            println!("0 passed, 0 failed");
            return Ok(ExitCode::SUCCESS);
        }
        // the client is a host of its own: this process moves into a namespace that ends with it
        let mut again = Command::new("unshare");
        again.arg("--net").arg(std::env::current_exe()?).args(std::env::args_os().skip(1));
        return Err(again.arg("--inside").exec()).context("moving into a namespace");
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(&args))
}

fn cannot() -> Option<String> {
    let programs = ["ip", "unshare", "nsenter", "fsfreeze"];
    let missing = programs.into_iter().find(|name| !machine::has(name));
    machine::cannot().or_else(|| missing.map(|name| format!("there is no {name}"))).or_else(|| {
        (!Path::new("/dev/net/tun").exists()).then(|| "there is no /dev/net/tun".to_owned())
    })
}

async fn run(args: &Args) -> Result<ExitCode> {
    for dir in machine::leftovers(&args.dir, PREFIX)? {
        tear_down(&dir)?;
    }
    let seed = args.seed.map_or_else(clock_seed, Ok)?;
    let pid = std::process::id();
    let dir = std::path::absolute(args.dir.join(format!("{PREFIX}{pid}")))?;
    std::fs::create_dir_all(&dir)?;
    let results =
        std::path::absolute(args.results.join(format!("chaos-{}-{seed}", args.schedule)))?;
    let _unless_none = std::fs::remove_dir_all(&results);
    std::fs::create_dir_all(&results)?;
    let binary = args
        .ashlar
        .canonicalize()
        .with_context(|| format!("no program {}: build it first", args.ashlar.display()))?;
    println!(
        "chaos {}: seed {seed}, {} minutes, {}",
        args.schedule,
        args.minutes,
        results.display()
    );
    let place = Place { dir: dir.clone(), results, binary, is_local: args.local, seed };
    let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let outcome = tokio::select! {
        outcome = schedule::play(args.schedule, &place, seed, args.minutes) => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("stopped by Control-C")),
        _ = end.recv() => Err(anyhow::anyhow!("stopped by SIGTERM")),
    };
    let torn_down = tear_down(&dir);
    let (passed, failed) = match &outcome {
        Ok(facts) => {
            println!("PASS chaos {}: {facts}", args.schedule);
            (1, 0)
        }
        Err(error) => {
            println!(
                "FAIL chaos {}: {error:#}\n     see {}",
                args.schedule,
                place.results.display()
            );
            (0, 1)
        }
    };
    torn_down?;
    println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn clock_seed() -> Result<u64> {
    Ok(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs())
}

/// The address of a host of the switch.
pub(crate) fn address(number: usize) -> String {
    format!("10.77.0.{}", number + 1)
}

/// Ends what a run left: processes whose command line names its directory, file systems, namespaces, cgroups.
fn tear_down(dir: &Path) -> Result<()> {
    let dir = std::path::absolute(dir)?;
    end_processes(&dir)?;
    for mount in mounts(&dir)? {
        // a frozen file system cannot be unmounted; one that is not frozen refuses, and that is well
        let _unless_frozen = machine::run(Command::new("fsfreeze").arg("--unfreeze").arg(mount));
    }
    machine::tear_down(&dir)?;
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let pid = name.strip_prefix(PREFIX).context("the directory of a run names its process")?;
    let ours = format!("{NAMESPACE_PREFIX}{pid}-");
    for name in names(Path::new("/run/netns"), &ours) {
        machine::run(Command::new("ip").args(["netns", "delete", &name]))?;
    }
    let cgroups = Path::new("/sys/fs/cgroup/blkio");
    for name in names(cgroups, &ours) {
        std::fs::remove_dir(cgroups.join(&name)).with_context(|| format!("removing {name}"))?;
    }
    Ok(())
}

fn mounts(dir: &Path) -> Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mounts")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(dir)).collect())
}

fn names(dir: &Path, prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// SIGKILL to every process that was started in the run's directory, and waits until they are gone.
fn end_processes(dir: &Path) -> Result<()> {
    let needle = format!("{}/", dir.display());
    let is_ours = |pid: &i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(&needle)
    };
    for _ in 0..500 {
        let pids = names(Path::new("/proc"), "").into_iter().filter_map(|name| name.parse().ok());
        let left: Vec<i32> = pids.filter(is_ours).collect();
        if left.is_empty() {
            return Ok(());
        }
        for pid in left.into_iter().filter_map(rustix::process::Pid::from_raw) {
            let _unless_gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    anyhow::bail!("processes of {} do not end", dir.display())
}
