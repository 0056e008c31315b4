//! `ashlar-kill`: real processes, real kills, and every byte compared.
//!
//! Each scenario starts `ashlar demo --processes` in a directory of its own, does something cruel to it while clients
//! read and write, and then judges what the clients were told against what they can read. Scenarios share nothing.
//!
//! `ashlar-kill --ashlar target/debug/ashlar [SCENARIO…]`; the last line is `N passed, N failed`.

#![expect(clippy::print_stdout, reason = "a command-line tool reports to its terminal")]

mod cluster;
mod example;
mod scenarios;

use anyhow::{Context, Result, bail};
use clap::Parser;
use cluster::Ground;
use scenarios::SCENARIOS;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// No scenario may take longer: a cluster that hangs is a finding, not a reason to wait.
const PATIENCE: Duration = Duration::from_secs(180);

/// Kills nodes of real clusters and judges what clients saw.
#[derive(Parser)]
struct Args {
    /// The binary under test.
    #[arg(long, default_value = "target/debug/ashlar")]
    ashlar: PathBuf,
    /// Where clusters, logs and histories lie; those of failed scenarios stay.
    #[arg(long, default_value = "target/jepsen")]
    dir: PathBuf,
    /// The first of two ports for the gateways.
    #[arg(long, default_value_t = 9300)]
    port: u16,
    /// Only these scenarios.
    scenario: Vec<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let unknown =
        args.scenario.iter().find(|name| !SCENARIOS.iter().any(|scenario| scenario.name == *name));
    if let Some(name) = unknown {
        let names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        bail!("no scenario {name:?}; there are {}", names.join(", "));
    }
    let binary = args
        .ashlar
        .canonicalize()
        .with_context(|| format!("no binary {}: build it first", args.ashlar.display()))?;
    let (mut passed, mut failed) = (0, 0);
    for scenario in SCENARIOS
        .iter()
        .filter(|s| args.scenario.is_empty() || args.scenario.iter().any(|name| name == s.name))
    {
        let ground =
            Ground { binary: binary.clone(), dir: args.dir.join(scenario.name), port: args.port };
        let began = Instant::now();
        let outcome = match tokio::time::timeout(PATIENCE, (scenario.run)(&ground)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!("not done after {PATIENCE:?}")),
        };
        let seconds = began.elapsed().as_secs_f64();
        match outcome {
            Ok(facts) => {
                passed += 1;
                ground.remove_data();
                println!("PASS {} in {seconds:.1} s: {facts}", scenario.name);
            }
            Err(error) => {
                failed += 1;
                println!(
                    "FAIL {} in {seconds:.1} s: {error:#}\n     see {}",
                    scenario.name,
                    ground.dir.display()
                );
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed > 0 { Err(anyhow::anyhow!("{failed} scenarios failed")) } else { Ok(()) }
}
