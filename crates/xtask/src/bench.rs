//! Measures a release build and writes it down: a line in `benches/history.jsonl`, and `docs/benchmarks.md` from the
//! newest lines of that file. The page is made from the JSON alone, so it says nothing that was not measured.

use crate::demo::Demo;
use crate::stages::cargo;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

const HISTORY: &str = "benches/history.jsonl";
const PAGE: &str = "docs/benchmarks.md";

/// A measurement and the first goal of its figure.
struct Bench {
    name: &'static str,
    args: &'static str,
    /// The field of the report that has a goal, and its unit on the page.
    figure: &'static str,
    unit: &'static str,
    /// At most this, where there is a goal.
    goal: Option<f64>,
}

const CPU_GIB: &str = "server_cpu_seconds_per_gib";
const CPU_OP: &str = "server_cpu_us_per_operation";

const BENCHES: &[Bench] = &[
    bench(
        "PUT 64 MiB, 8 streams",
        "put --size 64MiB --concurrency 8 --count 64",
        CPU_GIB,
        "cpu-s/GiB",
        Some(3.4),
    ),
    bench(
        "GET 64 MiB, 8 streams",
        "get --size 64MiB --concurrency 8 --objects 24 --count 96 --verify",
        CPU_GIB,
        "cpu-s/GiB",
        Some(1.1),
    ),
    bench(
        "PUT 1 MiB at 16",
        "put --size 1MiB --concurrency 16 --seconds 10",
        CPU_GIB,
        "cpu-s/GiB",
        Some(5.0),
    ),
    bench(
        "GET 1 MiB at 16",
        "get --size 1MiB --concurrency 16 --objects 500 --seconds 10 --verify",
        CPU_GIB,
        "cpu-s/GiB",
        Some(1.5),
    ),
    bench(
        "PUT 64 KiB at 32",
        "put --size 64KiB --concurrency 32 --seconds 10",
        CPU_OP,
        "us/op",
        Some(900.0),
    ),
    bench(
        "GET 64 KiB at 32",
        "get --size 64KiB --concurrency 32 --objects 2000 --seconds 10 --verify",
        CPU_OP,
        "us/op",
        Some(350.0),
    ),
    bench(
        "PUT 4 KiB at 32",
        "put --size 4KiB --concurrency 32 --seconds 10",
        CPU_OP,
        "us/op",
        Some(300.0),
    ),
    bench(
        "GET 4 KiB at 32",
        "get --size 4KiB --concurrency 32 --objects 5000 --seconds 10 --verify",
        CPU_OP,
        "us/op",
        Some(150.0),
    ),
    bench(
        "PUT 4 KiB, one client",
        "put --size 4KiB --concurrency 1 --seconds 10",
        "p50_ms",
        "ms p50",
        Some(1.2),
    ),
    bench(
        "GET 4 KiB, one client",
        "get --size 4KiB --concurrency 1 --objects 1000 --seconds 10 --verify",
        "p50_ms",
        "ms p50",
        Some(0.5),
    ),
    bench(
        "HEAD at 32",
        "stat --size 4KiB --concurrency 32 --objects 5000 --seconds 10",
        CPU_OP,
        "us/op",
        None,
    ),
    bench(
        "LIST of 1,000 keys, one client",
        "list --size 1 --concurrency 1 --objects 5000 --seconds 10",
        "p50_ms",
        "ms p50",
        Some(8.0),
    ),
    bench(
        "DELETE 4 KiB at 32",
        "delete --size 4KiB --concurrency 32 --objects 5000 --count 5000",
        CPU_OP,
        "us/op",
        None,
    ),
    bench(
        "mixed 64 KiB at 32",
        "mixed --size 64KiB --concurrency 32 --objects 2000 --seconds 10 --verify",
        CPU_OP,
        "us/op",
        None,
    ),
];

const fn bench(
    name: &'static str,
    args: &'static str,
    figure: &'static str,
    unit: &'static str,
    goal: Option<f64>,
) -> Bench {
    Bench { name, args, figure, unit, goal }
}

/// Measures with internal TLS off and on, and writes both files.
pub(crate) fn run() -> Result<()> {
    cargo("build --release -p ashlar -p ashlar-load")?;
    for (internal_tls, args) in
        [(false, &["--port", "9400", "--no-internal-tls"][..]), (true, &["--port", "9400"][..])]
    {
        let demo =
            Demo::start(Path::new("target/release/ashlar"), Path::new("target/bench/demo"), args)?;
        let line = json!({
            "date": output("date", &["-u", "+%Y-%m-%d %H:%M"])?,
            "commit": output("git", &["rev-parse", "--short", "HEAD"])?,
            "cpu": cpu_name(),
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
            "rustc": output("rustc", &["--version"])?,
            "internal_tls": internal_tls,
            "ready_ms": demo.ready_in.as_millis().to_string(),
            "benches": measure(&demo)?,
        });
        demo.stop()?;
        append(&line)?;
    }
    fs::remove_dir_all("target/bench/demo")?;
    let page = page(&fs::read_to_string(HISTORY)?)?;
    fs::write(PAGE, page).context("writing the page")
}

fn measure(demo: &Demo) -> Result<Vec<Value>> {
    let mut measured = Vec::new();
    for bench in BENCHES {
        println!("{}: {}", bench.name, bench.args);
        let output = Command::new("target/release/ashlar-load")
            .args(bench.args.split(' '))
            .args(["--json", "--demo-json"])
            .arg(&demo.json)
            .output()?;
        ensure!(
            output.status.success(),
            "{}: {}",
            bench.name,
            String::from_utf8_lossy(&output.stderr)
        );
        let report: Value = serde_json::from_slice(&output.stdout)?;
        println!("  {} {}", report[bench.figure], bench.unit);
        measured.push(json!({ "name": bench.name, "command": bench.args, "report": report }));
    }
    Ok(measured)
}

fn append(line: &Value) -> Result<()> {
    let mut history = fs::OpenOptions::new().create(true).append(true).open(HISTORY)?;
    writeln!(history, "{line}").context("writing the history")
}

fn output(program: &str, args: &[&str]) -> Result<String> {
    let output =
        Command::new(program).args(args).output().with_context(|| format!("running {program}"))?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn cpu_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(": "));
    line.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}

/// The page, from the newest line without and the newest with internal TLS.
fn page(history: &str) -> Result<String> {
    let lines: Vec<Value> = history.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let mut page = "# Benchmarks\n\nWritten by `cargo xtask bench` from `benches/history.jsonl`; do not edit. One machine runs the whole cluster (`ashlar demo`: 3 zones, 6 nodes, 12 disks,\n\
        RS(4+2), every write on stable storage before it is acknowledged) and the load generator; server CPU counts the cluster's process only.\n"
        .to_owned();
    for internal_tls in [false, true] {
        if let Some(run) = lines.iter().rev().find(|run| run["internal_tls"] == internal_tls) {
            section(&mut page, run, internal_tls)?;
        }
    }
    Ok(page)
}

fn section(page: &mut String, run: &Value, internal_tls: bool) -> Result<()> {
    let text = |field: &str| run[field].as_str().unwrap_or("unknown").to_owned();
    writeln!(page, "\n## Internal TLS {}\n", if internal_tls { "on" } else { "off" })?;
    writeln!(
        page,
        "{} cores of {}; {}; commit {}; {} UTC; ready in {} ms.\n",
        run["cores"],
        text("cpu"),
        text("rustc"),
        text("commit"),
        text("date"),
        text("ready_ms")
    )?;
    writeln!(
        page,
        "| | measured | first goal | | op/s | GiB/s | p50 / p99 ms | `ashlar-load` |\n|---|---|---|---|---|---|---|---|"
    )?;
    for entry in run["benches"].as_array().context("a run has benches")? {
        let Some(bench) = BENCHES.iter().find(|bench| entry["name"] == bench.name) else {
            continue;
        };
        row(page, bench, entry, internal_tls)?;
    }
    Ok(())
}

fn row(page: &mut String, bench: &Bench, entry: &Value, internal_tls: bool) -> Result<()> {
    let report = &entry["report"];
    let number = |field: &str| report[field].as_f64().unwrap_or(f64::NAN);
    let figure = number(bench.figure);
    // The goals are set for internal TLS off; with it on, the figure is reported beside them without a verdict.
    let (goal, verdict) = match bench.goal {
        None => (String::new(), String::new()),
        Some(goal) if internal_tls => (format!("{goal}"), String::new()),
        Some(goal) if figure <= goal => (format!("{goal}"), "met".to_owned()),
        Some(goal) => (format!("{goal}"), format!("missed, {:.1}x", figure / goal)),
    };
    let command = entry["command"].as_str().unwrap_or_default();
    writeln!(
        page,
        "| {} | {figure:.2} {} | {goal} | {verdict} | {:.0} | {:.3} | {:.2} / {:.2} | `{command}` |",
        bench.name,
        bench.unit,
        number("operations_per_second"),
        number("gib_per_second"),
        number("p50_ms"),
        number("p99_ms")
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::page;

    #[test]
    fn the_page_says_what_was_measured_beside_its_goal() {
        let old = r#"{"internal_tls":false,"cpu":"old","benches":[]}"#;
        let new = r#"{"internal_tls":false,"cpu":"fast one","cores":2,"commit":"abc","date":"d","rustc":"r","ready_ms":"900","benches":[
            {"name":"GET 4 KiB at 32","command":"get","report":{"server_cpu_us_per_operation":300.0,"operations_per_second":10,"gib_per_second":0.1,"p50_ms":1,"p99_ms":2}}]}"#;
        let page = page(&format!("{old}\n{}\n", new.replace('\n', ""))).unwrap();
        assert!(page.contains("2 cores of fast one"), "{page}");
        assert!(
            page.contains("| GET 4 KiB at 32 | 300.00 us/op | 150 | missed, 2.0x | 10 |"),
            "{page}"
        );
        assert!(!page.contains("old"));
    }
}
