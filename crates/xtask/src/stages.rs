//! The stages of a run, and how long each took.

use anyhow::{Context, Result, ensure};
use std::process::Command;
use std::time::{Duration, Instant};

/// What has run so far.
#[derive(Default)]
pub(crate) struct Stages {
    done: Vec<(&'static str, Duration, bool)>,
}

impl Stages {
    /// Runs a stage and notes its time.
    pub(crate) fn run(
        &mut self,
        name: &'static str,
        stage: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let began = Instant::now();
        let outcome = stage();
        self.done.push((name, began.elapsed(), outcome.is_ok()));
        outcome.with_context(|| format!("stage {name}"))
    }

    /// Says what each stage took.
    pub(crate) fn print(&self) {
        for (name, took, good) in &self.done {
            eprintln!(
                "{:>8.1} s  {name}{}",
                took.as_secs_f64(),
                if *good { "" } else { "  FAILED" }
            );
        }
    }
}

/// Runs cargo with these arguments, warnings of rustdoc being errors.
pub(crate) fn cargo(args: &str) -> Result<()> {
    println!("$ cargo {args}");
    let status =
        Command::new("cargo").args(args.split(' ')).env("RUSTDOCFLAGS", "-D warnings").status()?;
    ensure!(status.success(), "cargo {args} failed");
    Ok(())
}
