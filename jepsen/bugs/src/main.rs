//! `ashlar-bugs`: looks for every seeded bug with a simulation that has them, two processes at a time.
//!
//! A bug is found if a run with it finds something and the same run without it does not. One that is not found within its
//! seeds is a hole in the harness, and fails.

#![expect(clippy::print_stdout, reason = "a command-line tool reports to its terminal")]

use anyhow::{Context, Result, ensure};
use ashlar_bugs::{Bug, CATALOGUE, find};
use clap::Parser;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DIR: &str = "target/jepsen/bugs";
/// No run takes a tenth of it on an idle machine.
const PATIENCE: Duration = Duration::from_secs(180);
const AT_ONCE: usize = 2;
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What `ashlar-sim` ends with when it has found something.
const FOUND: i32 = 3;

/// Looks for seeded bugs.
#[derive(Parser)]
struct Args {
    /// The simulation, built with the feature `seeded-bugs`.
    #[arg(long)]
    program: PathBuf,
    /// Only this bug.
    #[arg(long)]
    id: Option<String>,
    /// How many seeds each is looked for in, besides the known one.
    #[arg(long, default_value_t = 60)]
    seeds: u64,
}

/// The search for one bug.
struct Hunt {
    bug: &'static Bug,
    /// Still to be tried, the next one last.
    seeds: Vec<u64>,
    tried: u64,
    run: Option<Run>,
    end: Option<End>,
}

struct Run {
    seed: u64,
    /// Without it, whatever is found says nothing about the bug.
    with_bug: bool,
    child: Child,
    began: Instant,
}

#[derive(Clone, Copy)]
enum End {
    By(u64),
    NotFound,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let bugs: Vec<&'static Bug> = match &args.id {
        Some(id) => vec![find(id).with_context(|| format!("no bug is called {id}"))?],
        None => CATALOGUE.iter().collect(),
    };
    fs::create_dir_all(DIR)?;
    let mut hunts: Vec<Hunt> = bugs.into_iter().map(|bug| Hunt::new(bug, args.seeds)).collect();
    while hunts.iter().any(|hunt| hunt.end.is_none()) {
        for hunt in hunts.iter_mut().filter(|hunt| hunt.end.is_none()).take(AT_ONCE) {
            hunt.step(&args)?;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    tell(&hunts)
}

fn tell(hunts: &[Hunt]) -> Result<()> {
    let missed: Vec<&str> =
        hunts.iter().filter(|hunt| hunt.is_missed()).map(|hunt| hunt.bug.id).collect();
    println!("{} of {} seeded bugs were found", hunts.len() - missed.len(), hunts.len());
    ensure!(missed.is_empty(), "not found, which is a hole in the harness: {}", missed.join(", "));
    Ok(())
}

impl Hunt {
    fn new(bug: &'static Bug, count: u64) -> Self {
        let mut seeds: Vec<u64> = (1..=count).rev().filter(|&seed| seed != bug.seed).collect();
        seeds.push(bug.seed);
        Self { bug, seeds, tried: 0, run: None, end: None }
    }

    fn is_missed(&self) -> bool {
        matches!(self.end, Some(End::NotFound) | None)
    }

    /// Looks after the run, and begins the next one.
    fn step(&mut self, args: &Args) -> Result<()> {
        let Some(run) = &mut self.run else {
            match self.seeds.pop() {
                Some(seed) => self.run = Some(self.start(args, seed, true)?),
                None => self.end(End::NotFound),
            }
            return Ok(());
        };
        let Some(found) = run.poll()? else { return Ok(()) };
        let (seed, with_bug) = (run.seed, run.with_bug);
        self.run = None;
        self.tried += u64::from(with_bug);
        match (with_bug, found) {
            // the same run without it has to be clean
            (true, true) => self.run = Some(self.start(args, seed, false)?),
            (false, false) => self.end(End::By(seed)),
            (true, false) => {}
            (false, true) => println!("seed {seed} finds something without {} too", self.bug.id),
        }
        Ok(())
    }

    fn end(&mut self, end: End) {
        let Bug { id, breaks, faults, what, .. } = self.bug;
        match end {
            End::By(seed) => println!(
                "{id} ({breaks}): found by --seed {seed} --faults {faults} --bug {id}, the {}. try",
                self.tried
            ),
            End::NotFound => println!("{id} ({breaks}): NOT FOUND by {} seeds: {what}", self.tried),
        }
        self.end = Some(end);
    }

    fn start(&self, args: &Args, seed: u64, with_bug: bool) -> Result<Run> {
        let id = self.bug.id;
        let file = fs::File::create(format!("{DIR}/{id}-{seed}-{with_bug}.txt"))?;
        let mut command = Command::new(&args.program);
        command.args(["--seed", &seed.to_string(), "--faults", self.bug.faults]);
        if with_bug {
            command.args(["--bug", id]);
        }
        let child = command
            .stdout(Stdio::from(file.try_clone()?))
            .stderr(Stdio::from(file))
            .spawn()
            .with_context(|| format!("{}: build it first", args.program.display()))?;
        Ok(Run { seed, with_bug, child, began: Instant::now() })
    }
}

impl Run {
    /// Whether it has found something; `None`: it goes on. One that hangs has not.
    fn poll(&mut self) -> Result<Option<bool>> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(Some(status.code() == Some(FOUND)));
        }
        if self.began.elapsed() > PATIENCE {
            self.child.kill()?;
            self.child.wait()?;
            return Ok(Some(false));
        }
        Ok(None)
    }
}
