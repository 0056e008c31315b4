//! Simulated runs, one process a seed, two at a time: `cargo xtask sim [--seed N | --seeds N [--base B]]`.
//!
//! Each process has a bound of real time, because a run that hangs is a finding. Those that find something print what
//! and the line that replays it.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = "target/debug/ashlar-sim";
const DIR: &str = "target/jepsen/sim";
/// No seed takes a tenth of it on an idle machine.
const PATIENCE: Duration = Duration::from_secs(180);
const AT_ONCE: usize = 2;
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Seeds that found a bug once, and some that are only different: all of them run in every test.
const FIXED: [u64; 25] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 3033, 5012, 5023, 8283,
    88052,
];

/// They mean the runs that they were before nodes joined.
const AS_BEFORE: &str = "--no-spares";

/// What `cargo xtask sim` was asked.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let number = |name: &str| -> Result<Option<u64>> {
        let at = args.iter().position(|arg| arg == name);
        let text = at.map(|at| args.get(at + 1).with_context(|| format!("{name} needs a number")));
        text.transpose()?.map(|text| text.parse().with_context(|| name.to_owned())).transpose()
    };
    crate::stages::cargo("build -p ashlar-sim")?;
    if let Some(seed) = number("--seed")? {
        return all(&[seed], &[]);
    }
    let count = number("--seeds")?.unwrap_or(20);
    let base = number("--base")?.unwrap_or_else(fresh_base);
    all(&(base..base + count).collect::<Vec<_>>(), &[])
}

/// How many fresh seeds every test runs: two minutes of two cores.
const FRESH: u64 = 200;

/// What every test does: determinism, the fixed seeds, fresh ones, the lies.
pub(crate) fn test() -> Result<()> {
    repeats(FIXED[0])?;
    all(&FIXED, &[AS_BEFORE])?;
    under_other_faults()?;
    let base = base_of_the_tree()?;
    all(&(base..base + FRESH).collect::<Vec<_>>(), &[])?;
    finds_lies()
}

/// Runs that found a bug once, under faults that their seeds do not draw by themselves.
const UNDER: [(u64, &str); 2] = [
    (229, "power-one,power-mid-write,partition,failed-sync,rot-log"),
    (465_502_447_045, "power-one,power-some,partition,slow-disk,full-disk"),
];

fn under_other_faults() -> Result<()> {
    for (seed, faults) in UNDER {
        let end = start(seed, &["--faults", faults])?.wait()?;
        ensure!(end == End::Clean, "{}", fs::read_to_string(output(seed))?);
        println!("seed {seed} under {faults}: clean");
    }
    Ok(())
}

/// Seeds that differ from change to change, and are the same whenever the same tree is tested: nobody gets another verdict
/// by asking again. Printed, so that they can be repeated.
fn base_of_the_tree() -> Result<u64> {
    let tree = Command::new("git").args(["rev-parse", "HEAD^{tree}"]).output().context("git")?;
    if !tree.status.success() {
        println!("this is no git checkout: the seeds are the clock's");
        return Ok(fresh_base());
    }
    let tree = String::from_utf8(tree.stdout)?;
    let digits = tree.get(..8).context("the name of the tree is too short")?;
    let base = u64::from_str_radix(digits, 16).context("the name of the tree")? * 1_000;
    println!("fresh seeds of this tree from {base} on");
    Ok(base)
}

/// Seeds that differ from run to run.
fn fresh_base() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let base = since.unwrap_or_default().as_secs() * 1_000;
    println!("fresh seeds from {base} on");
    base
}

struct Running {
    seed: u64,
    child: Child,
    began: Instant,
}

fn output(seed: u64) -> String {
    format!("{DIR}/{seed}.txt")
}

fn start(seed: u64, more: &[&str]) -> Result<Running> {
    fs::create_dir_all(DIR)?;
    let file = fs::File::create(output(seed))?;
    let child = Command::new(PROGRAM)
        .args(["--seed", &seed.to_string()])
        .args(more)
        .stdout(Stdio::from(file.try_clone()?))
        .stderr(Stdio::from(file))
        .spawn()
        .with_context(|| format!("{PROGRAM}: build it first"))?;
    Ok(Running { seed, child, began: Instant::now() })
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Clean,
    Found,
    /// It was ended from here: of a lie that is no proof that it was found.
    Hung,
}

impl Running {
    /// How it ended; `None`: it goes on.
    fn poll(&mut self) -> Result<Option<End>> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(Some(if status.success() { End::Clean } else { End::Found }));
        }
        if self.began.elapsed() > PATIENCE {
            self.child.kill()?;
            self.child.wait()?;
            println!("seed {} hangs: ended after {PATIENCE:?}", self.seed);
            return Ok(Some(End::Hung));
        }
        Ok(None)
    }

    fn wait(mut self) -> Result<End> {
        loop {
            if let Some(end) = self.poll()? {
                return Ok(end);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// Runs all seeds; fails if one of them found something.
fn all(seeds: &[u64], more: &[&str]) -> Result<()> {
    let began = Instant::now();
    let (mut waiting, mut running, mut bad) = (seeds.to_vec(), Vec::<Running>::new(), Vec::new());
    waiting.reverse();
    while !waiting.is_empty() || !running.is_empty() {
        while running.len() < AT_ONCE
            && let Some(seed) = waiting.pop()
        {
            running.push(start(seed, more)?);
        }
        let mut going = Vec::new();
        for mut run in running {
            match run.poll()? {
                None => going.push(run),
                Some(End::Clean) => {}
                Some(End::Found | End::Hung) => {
                    println!("{}", fs::read_to_string(output(run.seed))?);
                    bad.push(run.seed);
                }
            }
        }
        running = going;
        std::thread::sleep(LOOK_EVERY);
    }
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    let simulated = seeds.iter().map(|&seed| simulated_seconds(seed)).sum::<f64>();
    println!(
        "{} seeds, {} found something; {:.0} seeds a minute, {:.0} simulated s a real second",
        seeds.len(),
        bad.len(),
        seeds.len() as f64 / minutes,
        simulated / (60.0 * minutes)
    );
    ensure!(bad.is_empty(), "the simulation found something at the seeds {bad:?}");
    Ok(())
}

/// What the last line of a run says.
fn simulated_seconds(seed: u64) -> f64 {
    let text = fs::read_to_string(output(seed)).unwrap_or_default();
    let before = text.split(" simulated s").next().unwrap_or_default();
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0.0)
}

/// The same seed in two processes leaves the same trace, byte for byte.
fn repeats(seed: u64) -> Result<()> {
    let traces = ["first", "second"].map(|name| format!("{DIR}/{seed}-{name}.trace"));
    for trace in &traces {
        start(seed, &["--trace", trace])?.wait()?;
    }
    let [first, second] = traces.map(fs::read);
    let (first, second) = (first?, second?);
    ensure!(!first.is_empty() && first == second, "seed {seed} is not the same run twice");
    println!("seed {seed} twice: the same {} bytes", first.len());
    Ok(())
}

/// Disks that lie about their syncs lose acknowledged writes: a simulation that does not find that finds nothing.
fn finds_lies() -> Result<()> {
    for lie in ["wal", "shards"] {
        let mut found = None;
        for seed in LIE_SEEDS {
            if start(seed, &["--lie", lie, AS_BEFORE])?.wait()? == End::Found {
                found = Some(seed);
                break;
            }
        }
        match found {
            Some(seed) => println!("a lie about syncs of {lie} is found by seed {seed}"),
            None => bail!("no seed finds that the disks lie about {lie}"),
        }
    }
    Ok(())
}

/// Runs in which the power of all machines is cut, the likeliest first.
const LIE_SEEDS: [u64; 5] = [9, 16, 7, 5, 2];
