//! `ashlar-check FILE…`: judges recorded histories; exit code 1 when the contract forbids one.

#![expect(clippy::print_stdout, reason = "a command-line tool reports to its terminal")]

use anyhow::{Context, Result, bail};
use ashlar_check::{History, check};

fn main() -> Result<()> {
    let mut violations = 0;
    let files: Vec<String> = std::env::args().skip(1).collect();
    if files.is_empty() {
        bail!("no history: give one or more files of JSON lines");
    }
    for file in &files {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
        let history = History::parse(&text).with_context(|| format!("{file} is not a history"))?;
        let found = check(&history);
        println!("{file}: {} events, {} violations", history.events.len(), found.len());
        found.iter().for_each(|violation| println!("  {violation}"));
        violations += found.len();
    }
    if violations > 0 {
        bail!("{violations} violations");
    }
    Ok(())
}
