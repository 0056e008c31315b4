//! A process that works with one engine until it is ended, and tells what it does line by line.
//!
//! A line is one write to the pipe, so a killed victim leaves no half of one but the last. What was said is true
//! whenever it is read: the harness lets the power go, then ends the victim, then reads to the end; an
//! acknowledgement that comes after the cut belongs to a sync that had returned before it.

use crate::log::{self, Script};
use crate::shards::{self, Shelf};
use anyhow::{Context, Result};
use std::io::{BufRead, Write};
use std::path::PathBuf;

/// What a victim works with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Engine {
    /// `ashlar-store`.
    Store,
    /// `ashlar-wal`.
    Wal,
}

/// What a victim is told.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Orders {
    /// With what to work.
    #[arg(long)]
    pub(crate) engine: Engine,
    /// The mount.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// From which all follows that it does.
    #[arg(long)]
    pub(crate) seed: u64,
    /// The number of this life.
    #[arg(long)]
    pub(crate) round: u64,
    /// Acknowledge before the sync: a lie that the harness must notice.
    #[arg(long)]
    pub(crate) hasty: bool,
}

/// Lives. What is known comes on standard input.
pub(crate) async fn live(orders: Orders) -> Result<()> {
    let (mut shelf, mut script) = (Shelf::default(), Script::default());
    for line in std::io::stdin().lock().lines() {
        let line = line.context("reading what is known")?;
        match orders.engine {
            Engine::Store => shelf.take(&line)?,
            Engine::Wal => script.take(&line)?,
        };
    }
    match orders.engine {
        Engine::Store => shards::live(&orders, &orders.dir.join("store"), shelf).await,
        Engine::Wal => log::live(&orders, &orders.dir.join("wal"), script).await,
    }
}

/// Tells the harness something, in one write.
pub(crate) fn say(line: &str) -> Result<()> {
    let line = format!("{line}\n");
    std::io::stdout().lock().write_all(line.as_bytes()).context("the harness is gone")
}
