//! A demo cluster for the length of a stage.

use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A clean stop hands leaders over and flushes; it takes well below this.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// A running `ashlar demo`.
pub(crate) struct Demo {
    child: Child,
    /// The file that holds the line it printed.
    pub(crate) json: PathBuf,
    /// How long it took until it was ready.
    pub(crate) ready_in: Duration,
}

impl Demo {
    /// Starts a demo on an empty directory and waits until it says that it is ready, or ends.
    pub(crate) fn start(binary: &Path, dir: &Path, args: &[&str]) -> Result<Self> {
        ensure!(binary.exists(), "{} is missing: build it first", binary.display());
        let _unless_none = fs::remove_dir_all(dir);
        fs::create_dir_all(dir)?;
        let log = File::create(dir.join("demo.log"))?;
        let began = Instant::now();
        let mut child = Command::new(binary)
            .args(["demo", "--json", "--dir"])
            .arg(dir.join("data"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("its output is piped")?;
        BufReader::new(stdout).read_line(&mut line)?;
        if line.trim().is_empty() {
            let _ended = child.wait()?;
            bail!("the demo ended before it was ready: see {}", dir.join("demo.log").display());
        }
        let json = dir.join("demo.json");
        fs::write(&json, &line)?;
        Ok(Self { child, json, ready_in: began.elapsed() })
    }

    /// Stops it as Control-C does; anything but a clean end is an error.
    pub(crate) fn stop(mut self) -> Result<Duration> {
        let began = Instant::now();
        let status = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status()?;
        ensure!(status.success(), "cannot signal the demo");
        while began.elapsed() < STOP_PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "the demo ended with {status} after Control-C");
                return Ok(began.elapsed());
            }
            sleep(Duration::from_millis(20));
        }
        bail!("the demo did not stop within {STOP_PATIENCE:?} of Control-C")
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _unless_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
