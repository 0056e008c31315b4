//! The end-to-end stage: AWS CLI, boto3 and the operator's commands against a demo, the kill tests, some power cuts. Its
//! last line sums all.

use crate::demo::Demo;
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Pinned: a new client must not turn a green commit red.
const PYTHON_PACKAGES: [&str; 2] = ["boto3==1.44.3", "awscli==1.46.3"];
const HOME: &str = "target/e2e";

/// Checks that passed and failed.
#[derive(Clone, Copy, Default)]
struct Sum {
    passed: u64,
    failed: u64,
}

/// Runs everything; fails when any check did.
pub(crate) fn run() -> Result<()> {
    let python = python()?;
    let mut sum = Sum::default();
    sum.add(clients(&python)?);
    sum.add(kills()?);
    sum.add(power_cuts()?);
    println!("{} passed, {} failed", sum.passed, sum.failed);
    ensure!(sum.failed == 0, "{} end-to-end checks failed", sum.failed);
    Ok(())
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// A Python environment with the pinned clients; one that has them already is used as it is.
fn python() -> Result<PathBuf> {
    let home = Path::new(HOME).join("venv");
    let python = std::path::absolute(home.join("bin/python"))?;
    let stamp = home.join("packages.txt");
    let wanted = PYTHON_PACKAGES.join("\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) && python.exists()
    {
        return Ok(python);
    }
    println!("$ python3 -m venv {}", home.display());
    std::fs::create_dir_all(HOME)?;
    let made = Command::new("python3")
        .args(["-m", "venv"])
        .arg(&home)
        .status()
        .context("python3 is needed for the tests with real clients")?;
    ensure!(made.success(), "python3 -m venv failed: is the venv module installed?");
    println!("$ pip install {}", PYTHON_PACKAGES.join(" "));
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    let installed = Command::new(&python).args(pip).args(PYTHON_PACKAGES).status()?;
    ensure!(installed.success(), "pip could not install {}", PYTHON_PACKAGES.join(" and "));
    std::fs::write(stamp, wanted)?;
    Ok(python)
}

fn clients(python: &Path) -> Result<Sum> {
    let demo = Demo::start(
        Path::new("target/debug/ashlar"),
        &Path::new(HOME).join("demo"),
        &["--port", "9200"],
    )?;
    println!("demo ready in {:.1} s", demo.ready_in.as_secs_f64());
    let mut sum = Sum::default();
    for script in ["boto.py", "versions.py", "cli.py", "commands.py"] {
        let script = Path::new("jepsen/clients").join(script);
        sum.add(checks(Command::new(python).arg("-u").arg(script).arg(&demo.json))?);
    }
    match demo.stop() {
        Ok(took) => {
            println!("PASS control-c stops cleanly in {:.1} s", took.as_secs_f64());
            sum.passed += 1;
        }
        Err(error) => {
            println!("FAIL control-c stops cleanly: {error:#}");
            sum.failed += 1;
        }
    }
    Ok(sum)
}

fn kills() -> Result<Sum> {
    checks(Command::new("target/debug/ashlar-kill").args(["--ashlar", "target/debug/ashlar"]))
}

/// A short run of what `cargo xtask powercut` does at length.
fn power_cuts() -> Result<Sum> {
    let arguments = ["--cuts", "48", "--seconds", "15"];
    checks(Command::new("target/debug/ashlar-powercut").args(arguments))
}

/// Runs a suite that ends with `N passed, N failed`. One that ends without it counts as one failure, so that a crash
/// of the suite itself is never read as success.
fn checks(command: &mut Command) -> Result<Sum> {
    println!("$ {command:?}");
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("starting {command:?}"))?;
    let stdout = child.stdout.take().context("its output is piped")?;
    let mut last = None;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        last = parse(&line);
        println!("{line}");
    }
    let status = child.wait()?;
    match last {
        Some(sum) if status.success() == (sum.failed == 0) => Ok(sum),
        _ => {
            println!("FAIL the suite ended with {status} and without its sum");
            Ok(Sum { passed: 0, failed: 1 })
        }
    }
}

fn parse(line: &str) -> Option<Sum> {
    let (passed, rest) = line.split_once(" passed, ")?;
    Some(Sum { passed: passed.parse().ok()?, failed: rest.strip_suffix(" failed")?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn only_a_sum_is_a_sum() {
        let sum = parse("12 passed, 3 failed").unwrap();
        assert_eq!((sum.passed, sum.failed), (12, 3));
        assert!(parse("PASS something passed, and 3 failed").is_none());
    }
}
