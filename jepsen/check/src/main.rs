//! `ashlar-check HISTORY.jsonl`: judges a recorded history and says so in a sentence and as JSON.
//!
//! Exit code 0 is pass, 1 is fail, 2 is inconclusive; a file that cannot be read or is no history is inconclusive.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool reports to its terminal"
)]

use anyhow::{Context, Result, bail};
use ashlar_check::history::read_operations;
use ashlar_check::{Report, Verdict, edn, judge_operations};
use std::fs::File;
use std::io::BufReader;
use std::process::ExitCode;

const USAGE: &str = "usage: ashlar-check HISTORY.jsonl [--edn OUT [--key KEY]] [--elle OUT]
  --edn OUT    also write the history for Knossos (cas-register); with --key that of one object alone
  --elle OUT   also write the history for Elle (rw-register)";

#[derive(Default)]
struct Args {
    history: String,
    edn: Option<String>,
    key: Option<String>,
    elle: Option<String>,
}

fn main() -> ExitCode {
    match run() {
        Ok(verdict) => ExitCode::from(verdict.exit_code()),
        Err(error) => {
            eprintln!("ashlar-check: {error:#}");
            ExitCode::from(Verdict::Inconclusive.exit_code())
        }
    }
}

fn run() -> Result<Verdict> {
    let args = parse(std::env::args().skip(1))?;
    let file = File::open(&args.history).with_context(|| format!("opening {}", args.history))?;
    let report = match read_operations(BufReader::new(file)) {
        Err(why) => Report::unreadable(&why),
        Ok((operations, _)) => {
            if let Some(out) = &args.edn {
                let twin = edn::register(&operations, args.key.as_deref());
                std::fs::write(out, twin).with_context(|| format!("writing {out}"))?;
            }
            if let Some(out) = &args.elle {
                let (twin, left_out) = edn::elle(&operations);
                std::fs::write(out, twin).with_context(|| format!("writing {out}"))?;
                eprintln!("{out}: {left_out} keys with deletes or conditions are left out");
            }
            judge_operations(&operations)
        }
    };
    println!("{report}");
    println!("{}", report.to_json());
    Ok(report.verdict)
}

fn parse(words: impl Iterator<Item = String>) -> Result<Args> {
    let mut args = Args::default();
    let mut words = words;
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value\n{USAGE}"));
        match word.as_str() {
            "--edn" => args.edn = Some(value()?),
            "--key" => args.key = Some(value()?),
            "--elle" => args.elle = Some(value()?),
            _ if word.starts_with('-') || !args.history.is_empty() => bail!("{USAGE}"),
            _ => args.history = word,
        }
    }
    if args.history.is_empty() || (args.key.is_some() && args.edn.is_none()) {
        bail!("{USAGE}");
    }
    Ok(args)
}
