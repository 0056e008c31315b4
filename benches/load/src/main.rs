//! `ashlar-load`: puts load on an S3 endpoint and says what it took.

#![expect(clippy::print_stdout, reason = "a command-line tool reports to its terminal")]

use anyhow::{Context, Result, bail};
use ashlar_load::demo::Demo;
use ashlar_load::workload::{self, Mode, Plan, Report};
use ashlar_load::{Client, Credentials};
use clap::Parser;
use std::path::PathBuf;

/// An S3 load generator whose every byte can be verified.
#[derive(Parser)]
struct Args {
    /// What to do.
    mode: Mode,
    /// The line that `ashlar demo --json` printed: endpoints, keys and server processes in one.
    #[arg(long)]
    demo_json: Option<PathBuf>,
    /// An endpoint, http://host:port; give several to spread requests over them in turn.
    #[arg(long)]
    endpoint: Vec<String>,
    /// Access key, when there is no --demo-json.
    #[arg(long, env = "AWS_ACCESS_KEY_ID")]
    access_key: Option<String>,
    /// Secret key, when there is no --demo-json.
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", hide_env_values = true)]
    secret_key: Option<String>,
    /// Region that signatures name, when there is no --demo-json.
    #[arg(long, env = "AWS_REGION", default_value = "us-east-1")]
    region: String,
    /// Server processes to measure, when there is no --demo-json.
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
    /// Bytes of an object: 4096, 64KiB, 1MiB …
    #[arg(long, default_value = "4KiB", value_parser = parse_size)]
    size: u64,
    /// Workers, each with one request in flight.
    #[arg(long, default_value_t = 1)]
    concurrency: u64,
    /// End after this many seconds.
    #[arg(long)]
    seconds: Option<f64>,
    /// End after this many operations.
    #[arg(long)]
    count: Option<u64>,
    /// Objects prepared for get, stat, list, delete and mixed.
    #[arg(long, default_value_t = 1000)]
    objects: u64,
    /// Compare every byte that is read.
    #[arg(long)]
    verify: bool,
    /// Bucket, created when missing.
    #[arg(long, default_value = "ashlar-load")]
    bucket: String,
    /// Seed of keys and content.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One line of JSON instead of text.
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let (client, pids) = target(&args)?;
    let plan = Plan {
        mode: args.mode,
        size: args.size,
        concurrency: args.concurrency.max(1),
        seconds: args.seconds,
        count: args.count,
        objects: args.objects,
        verify: args.verify,
        bucket: args.bucket.clone(),
        seed: args.seed,
        pids,
    };
    let report = workload::run(client, plan).await?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print_text(&report);
    }
    if report.errors > 0 {
        bail!(
            "{} operations failed, the first: {}",
            report.errors,
            report.first_error.unwrap_or_default()
        );
    }
    Ok(())
}

fn target(args: &Args) -> Result<(Client, Vec<u32>)> {
    if let Some(path) = &args.demo_json {
        let demo = Demo::from_file(path)?;
        return Ok((Client::new(&demo.endpoints, demo.credentials()), demo.pids()));
    }
    if args.endpoint.is_empty() {
        bail!("no target: give --demo-json FILE, or --endpoint with keys");
    }
    let credentials = Credentials {
        access_key: args
            .access_key
            .clone()
            .context("no access key: give --access-key or AWS_ACCESS_KEY_ID")?,
        secret_key: args
            .secret_key
            .clone()
            .context("no secret key: give --secret-key or AWS_SECRET_ACCESS_KEY")?,
        region: args.region.clone(),
    };
    Ok((Client::new(&args.endpoint, credentials), args.pids.clone()))
}

fn parse_size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(format!("unknown unit {unit:?}: use B, KiB, MiB or GiB")),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(factor))
        .ok_or_else(|| format!("no size: {text:?}"))
}

fn print_text(report: &Report) {
    println!(
        "{:?} of {} B at concurrency {}: {} operations in {:.2} s, {} errors{}",
        report.plan.mode,
        report.plan.size,
        report.plan.concurrency,
        report.operations,
        report.seconds,
        report.errors,
        if report.verified { ", every byte compared" } else { "" }
    );
    println!(
        "  {:.0} operations/s, {:.3} GiB/s",
        report.operations_per_second, report.gib_per_second
    );
    println!(
        "  latency ms: p50 {:.2}, p90 {:.2}, p99 {:.2}, max {:.2}",
        report.p50_ms, report.p90_ms, report.p99_ms, report.max_ms
    );
    if let Some(cpu) = report.server_cpu_us_per_operation {
        let gib = report
            .server_cpu_seconds_per_gib
            .map(|cpu| format!(", {cpu:.2} cpu-s/GiB"))
            .unwrap_or_default();
        println!("  server CPU: {cpu:.0} us/operation{gib}");
    }
}
