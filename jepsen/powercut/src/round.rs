//! A life and its cut: a victim is started, judges the cut before, works, and loses its power.

use crate::bed::Bed;
use crate::dice::Dice;
use crate::log::Script;
use crate::shards::Shelf;
use crate::victim::Engine;
use crate::write_log::{Fate, Taken};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// A victim that opens its engine on a busy machine is ready well before.
const READY_PATIENCE: Duration = Duration::from_secs(90);
/// How long a victim works: any moment within a few batches, or some time after.
const WORK_MS_MAX: u64 = 250;
/// Lines that may wait for the harness; the victim waits behind them.
const LINES_MAX: usize = 4096;

/// What all lives on one bed have come to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Count {
    /// Power cuts.
    pub(crate) cuts: u64,
    /// Steps that were acknowledged before a cut.
    pub(crate) acknowledged: u64,
    /// Steps that were begun and not acknowledged at a cut.
    pub(crate) open: u64,
    /// What the write log lost.
    pub(crate) taken: Taken,
    /// What the store's room was used for when it was opened last.
    pub(crate) space: String,
    /// Promises that were broken, with their round.
    pub(crate) broken: Vec<String>,
}

/// The victims of one bed, one after another.
pub(crate) struct Lives {
    bed: Bed,
    dice: Dice,
    shelf: Shelf,
    script: Script,
    round: u64,
    log: PathBuf,
    /// Victims acknowledge before the sync.
    pub(crate) hasty: bool,
    /// The count so far.
    pub(crate) count: Count,
}

/// What ends a life.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Cut,
    /// Only judged.
    Peace,
}

impl Lives {
    /// On an empty bed.
    pub(crate) fn new(bed: Bed, seed: u64, log: PathBuf) -> Self {
        Self {
            bed,
            dice: Dice::new(seed),
            shelf: Shelf::default(),
            script: Script::default(),
            round: 0,
            log,
            hasty: false,
            count: Count::default(),
        }
    }

    /// Where they live.
    pub(crate) fn bed(&self) -> &Bed {
        &self.bed
    }

    /// One life, ended by a cut that loses what was not flushed as `fate` says.
    pub(crate) fn cut(&mut self, engine: Engine, fate: Fate) -> Result<()> {
        self.live(engine, fate, End::Cut)
    }

    /// A fate by the bed's own dice.
    pub(crate) fn any_fate(&mut self) -> Fate {
        [Fate::Dropped, Fate::Half, Fate::Torn][self.dice.pick(3)]
    }

    /// Judges what the last cut left.
    pub(crate) fn judge(&mut self, engine: Engine) -> Result<()> {
        self.live(engine, Fate::Dropped, End::Peace)
    }

    fn live(&mut self, engine: Engine, fate: Fate, end: End) -> Result<()> {
        self.round += 1;
        let work = Duration::from_millis(self.dice.roll(WORK_MS_MAX));
        let (mut child, lines) = self.start(engine)?;
        let is_ready = self.listen(&lines, READY_PATIENCE, true)?;
        if is_ready && end == End::Cut {
            if self.dice.one_in(2) {
                self.bed.lie_in_wait(fate, &mut self.dice);
            }
            self.listen(&lines, work, false)?;
            let taken = self.bed.cut(fate, &mut self.dice)?;
            self.count.cuts += 1;
            self.count.taken.dropped += taken.dropped;
            self.count.taken.torn += taken.torn;
            self.count.taken.kept += taken.kept;
        }
        child.kill()?;
        let status = child.wait()?;
        self.listen(&lines, READY_PATIENCE, false)?;
        if !is_ready {
            let log = self.log.display();
            self.count.broken.push(format!(
                "round {}: the victim ended with {status} and was not ready, see {log}",
                self.round
            ));
        }
        if end == End::Cut {
            self.count.open += match engine {
                Engine::Store => self.shelf.open(),
                Engine::Wal => self.script.open(),
            };
            self.bed
                .come_back()
                .with_context(|| format!("{} after cut {}", self.bed.name(), self.round))?;
        }
        Ok(())
    }

    fn start(&mut self, engine: Engine) -> Result<(Child, Receiver<String>)> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let engine_name = match engine {
            Engine::Store => "store",
            Engine::Wal => "wal",
        };
        let seed = self.dice.roll(1 << 40);
        let mut child = Command::new(std::env::current_exe()?)
            .args(["victim", "--engine", engine_name, "--seed", &seed.to_string()])
            .args(["--round", &self.round.to_string()])
            .args(self.hasty.then_some("--hasty"))
            .arg("--dir")
            .arg(self.bed.dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("starting a victim")?;
        let known: Vec<String> = match engine {
            Engine::Store => self.shelf.lines().collect(),
            Engine::Wal => self.script.lines().collect(),
        };
        let mut stdin = child.stdin.take().context("its input is piped")?;
        for line in known {
            writeln!(stdin, "{line}")?;
        }
        drop(stdin);
        let stdout = child.stdout.take().context("its output is piped")?;
        let (sender, lines) = sync_channel(LINES_MAX);
        std::thread::spawn(move || {
            // a last line that is not whole is none
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let Ok(line) = String::from_utf8(line) else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok((child, lines))
    }

    /// Takes what the victim says, for so long, or until it is ready; false where it ended before it was.
    fn listen(
        &mut self,
        lines: &Receiver<String>,
        patience: Duration,
        until_ready: bool,
    ) -> Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line == "ready" => {
                    if until_ready {
                        return Ok(true);
                    }
                }
                Ok(line) => self.take(&line, until_ready)?,
                Err(RecvTimeoutError::Timeout) => {
                    ensure!(
                        !until_ready,
                        "round {}: no victim is ready within {patience:?}",
                        self.round
                    );
                    return Ok(false);
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(false),
            }
        }
    }

    fn take(&mut self, line: &str, is_judging: bool) -> Result<()> {
        if let Some(what) = line.strip_prefix("broken ") {
            self.count.broken.push(format!("round {}: {what}", self.round));
        } else if let Some(space) = line.strip_prefix("space ") {
            self.count.space = space.to_owned();
        } else if !line.starts_with("note ") {
            let is_known = self.shelf.take(line)? || self.script.take(line)?;
            ensure!(is_known, "a victim said {line:?}");
            let is_acknowledgement =
                ["there ", "gone ", "done "].iter().any(|verb| line.starts_with(verb));
            self.count.acknowledged += u64::from(!is_judging && is_acknowledgement);
        }
        Ok(())
    }
}
