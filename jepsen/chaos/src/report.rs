//! The report: one page without outside parts. Verdict, checkers, faults with latencies, a time line, and the lanes
//! around each anomaly.
//!
//! Everything is drawn from the history, so the page says nothing that `history.jsonl` does not.

use anyhow::Result;
use ashlar_check::{Action, Kind, Operation, Report, Verdict};
use std::fmt::Write;

const SECOND_US: u64 = 1_000_000;
/// Latency before and after a fault is taken over this long.
const AROUND_US: u64 = 4 * SECOND_US;
const PAGE_WIDTH: u64 = 1_200;
const LANE_HEIGHT: u64 = 16;
/// So much is drawn before and after the operations that an anomaly names.
const LANES_MAX: usize = 400;

const STYLE: &str = "body{font:14px/1.4 system-ui,sans-serif;max-width:1240px;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .7em;border-bottom:1px solid #ddd;text-align:left}\
td.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}.pass{color:#186a3b}.fail{color:#a93226}\
.inconclusive{color:#9a6700}svg{background:#fafafa;border:1px solid #ddd;display:block;max-width:100%}";

/// The page.
pub(crate) fn page(
    schedule: &str,
    seed: u64,
    operations: &[Operation],
    report: &Report,
) -> Result<String> {
    let mut page = String::new();
    let verdict = report.verdict;
    write!(
        page,
        "<!doctype html><html lang=en><meta charset=utf-8><title>ashlar chaos {schedule} {seed}: {verdict}</title>\
         <style>{STYLE}</style><h1>ashlar chaos, {schedule}: <span class={verdict}>{verdict}</span></h1>\
         <p>Seed {seed}; {} operations of clients; {} faults. The history is <a href=history.jsonl>history.jsonl</a>, \
         the verdict <a href=verdict.json>verdict.json</a>; logs of the nodes lie beside them.</p>",
        report.operations,
        faults(operations).count()
    )?;
    troubles(&mut page, report)?;
    checkers(&mut page, report)?;
    fault_table(&mut page, operations, report)?;
    time_line(&mut page, operations, report)?;
    for anomaly in &report.anomalies {
        lanes(&mut page, &anomaly.to_string(), operations)?;
    }
    Ok(page)
}

fn faults(operations: &[Operation]) -> impl Iterator<Item = &Operation> {
    operations.iter().filter(|operation| matches!(operation.action, Action::Fault(_)))
}

fn troubles(page: &mut String, report: &Report) -> Result<()> {
    if report.verdict == Verdict::Pass {
        return Ok(());
    }
    page.push_str("<h2>Why</h2><ul>");
    for anomaly in &report.anomalies {
        write!(page, "<li class=fail>{}", escaped(&anomaly.to_string()))?;
    }
    for doubt in &report.doubts {
        write!(page, "<li class=inconclusive>{}", escaped(doubt))?;
    }
    page.push_str("</ul>");
    Ok(())
}

fn checkers(page: &mut String, report: &Report) -> Result<()> {
    page.push_str(
        "<h2>What was judged</h2><table><tr><th>checker<th>promises<th>answers<th>anomalies",
    );
    for judged in &report.judged {
        let broken = report.anomalies.iter().filter(|a| a.checker == judged.checker).count();
        write!(
            page,
            "<tr><td>{}<td>{}<td class=n>{}<td class=n>{broken}",
            judged.checker,
            judged.contract.join(" "),
            judged.answers
        )?;
    }
    page.push_str("</table>");
    Ok(())
}

/// Each fault: how long, how it was seen, what it did to latency and writes.
fn fault_table(page: &mut String, operations: &[Operation], report: &Report) -> Result<()> {
    page.push_str(
        "<h2>Faults</h2><p>Latency: median and 99th percentile of acknowledged operations in milliseconds.</p>\
         <table><tr><th>at<th>fault<th>lasted<th>before<th>during<th>after<th>longest write gap<th>seen",
    );
    for (fault, gap) in faults(operations).zip(&report.availability.gaps) {
        let Action::Fault(seen) = &fault.action else { continue };
        let (from, to) = (fault.invoked_us, fault.told_us.unwrap_or(fault.invoked_us));
        write!(
            page,
            "<tr><td class=n>{:.1} s<td>{}<td class=n>{:.1} s<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{:.2} s<td>{}",
            seconds(from),
            escaped(&gap.fault),
            seconds(to - from),
            latency(operations, from.saturating_sub(AROUND_US), from),
            latency(operations, from, to),
            latency(operations, to, to + AROUND_US),
            seconds(gap.longest_us),
            escaped(&seen.evidence)
        )?;
    }
    page.push_str("</table>");
    Ok(())
}

/// Of what was acknowledged within a time.
fn latency(operations: &[Operation], from: u64, to: u64) -> String {
    let within = operations.iter().filter(|o| o.action.is_of_client() && o.end == Kind::Ok);
    let mut took: Vec<u64> = within
        .filter_map(|o| o.told_us.map(|told| (told, told - o.invoked_us)))
        .filter(|(told, _)| (from..to).contains(told))
        .map(|(_, took)| took)
        .collect();
    took.sort_unstable();
    let part = |hundredths: usize| took.get(took.len() * hundredths / 100).copied();
    match part(50).zip(part(99)) {
        Some((median, late)) => format!("{:.0} / {:.0}", ms(median), ms(late)),
        None => "-".to_owned(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn ms(us: u64) -> f64 {
    seconds(us) * 1_000.0
}

/// Answers of each second as bars, faults as bands behind them.
fn time_line(page: &mut String, operations: &[Operation], report: &Report) -> Result<()> {
    const HEIGHT: u64 = 160;
    let bars = &report.availability.seconds;
    let most = bars.iter().map(|s| s.ok + s.failed + s.unknown).max().unwrap_or(0).max(1);
    let length = bars.len().max(1) as u64;
    let x = |us: u64| us * PAGE_WIDTH / (length * SECOND_US);
    write!(
        page,
        "<h2>Time line</h2><p>Answers of each second: acknowledged green, refused grey, unknown red; at most {most}. \
         Bands are faults.</p><svg viewBox='0 0 {PAGE_WIDTH} {}' width={PAGE_WIDTH}>",
        HEIGHT + 20
    )?;
    for (number, fault) in faults(operations).enumerate() {
        let Action::Fault(seen) = &fault.action else { continue };
        let (from, to) = (x(fault.invoked_us), x(fault.told_us.unwrap_or(length * SECOND_US)));
        write!(
            page,
            "<g><title>{} {}</title><rect x={from} y=0 width={} height={HEIGHT} fill='#f6c667' opacity=.5 />\
             <text x={from} y={} font-size=9>{}</text></g>",
            escaped(&seen.fault),
            escaped(&seen.target),
            (to - from).max(1),
            HEIGHT + 9 + 9 * (number as u64 % 2),
            escaped(&seen.fault)
        )?;
    }
    let width = (PAGE_WIDTH / length).max(1);
    for (second, answers) in (0..).zip(bars) {
        let mut top = HEIGHT;
        for (count, color) in
            [(answers.ok, "#2e8b57"), (answers.failed, "#888"), (answers.unknown, "#c0392b")]
        {
            let height = count * HEIGHT / most;
            top -= height.min(top);
            let left = x(second * SECOND_US);
            write!(page, "<rect x={left} y={top} width={width} height={height} fill='{color}' />")?;
        }
    }
    page.push_str("</svg>");
    Ok(())
}

/// What each client did with the key that an anomaly names.
fn lanes(page: &mut String, what: &str, operations: &[Operation]) -> Result<()> {
    let keys = operations.iter().filter_map(|operation| operation.action.key());
    let named = |key: &&str| {
        what.split(|c: char| !c.is_alphanumeric() && c != '-').any(|word| word == *key)
    };
    let Some(key) = keys.into_iter().find(named) else { return Ok(()) };
    let mut of_key: Vec<&Operation> =
        operations.iter().filter(|operation| operation.action.key() == Some(key)).collect();
    of_key.sort_by_key(|operation| operation.invoked_us);
    // what matters is mostly near the end, where it was noticed
    let drawn = &of_key[of_key.len().saturating_sub(LANES_MAX)..];
    let Some(from) = drawn.first().map(|operation| operation.invoked_us) else { return Ok(()) };
    let to = drawn.iter().map(|o| o.told_us.unwrap_or(o.invoked_us)).max().unwrap_or(from) + 1;
    let mut clients: Vec<u64> = drawn.iter().map(|operation| operation.client).collect();
    clients.sort_unstable();
    clients.dedup();
    let height = clients.len() as u64 * LANE_HEIGHT;
    write!(
        page,
        "<h2>Lanes of {}</h2><p class=fail>{}</p><svg viewBox='0 0 {PAGE_WIDTH} {height}' width={PAGE_WIDTH}>",
        escaped(key),
        escaped(what)
    )?;
    let x = |us: u64| (us - from) * PAGE_WIDTH / (to - from);
    for operation in drawn {
        let lane = clients.iter().position(|client| *client == operation.client).unwrap_or(0);
        let color = match operation.end {
            Kind::Ok => "#2e8b57",
            Kind::Fail => "#888",
            Kind::Info | Kind::Invoke => "#c0392b",
        };
        let left = x(operation.invoked_us);
        let right = x(operation.told_us.unwrap_or(to));
        write!(
            page,
            "<g><title>{} at {} us: {}</title><rect x={left} y={} width={} height={} fill='{color}' /></g>",
            operation.number,
            operation.invoked_us,
            escaped(&format!("{:?}", operation.action)),
            lane as u64 * LANE_HEIGHT + 2,
            (right - left).max(2),
            LANE_HEIGHT - 4
        )?;
    }
    page.push_str("</svg>");
    Ok(())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_check::history::read_operations;
    use ashlar_check::judge_operations;

    /// A write that was acknowledged and is gone while a fault lasts.
    const LOST: &str = r#"{"at_us":0,"operation":0,"kind":"invoke","client":0,"action":{"do":"fault","fault":"kill","target":"<node-1>","under_load":true}}
{"at_us":100,"operation":1,"kind":"invoke","client":1,"gateway":0,"action":{"do":"put","key":"akey-1","value":7}}
{"at_us":900,"operation":1,"kind":"ok","client":1,"gateway":0,"action":{"do":"put","key":"akey-1","value":7}}
{"at_us":910,"operation":2,"kind":"invoke","client":2,"gateway":1,"action":{"do":"get","key":"akey-1","value":null}}
{"at_us":990,"operation":2,"kind":"ok","client":2,"gateway":1,"action":{"do":"get","key":"akey-1","value":null}}
{"at_us":2000,"operation":0,"kind":"ok","client":0,"action":{"do":"fault","fault":"kill","target":"<node-1>","under_load":true,"bit_at_us":500,"evidence":"gone"}}
"#;

    #[test]
    fn the_page_shows_verdict_fault_and_the_lanes_of_an_anomaly_and_escapes() {
        let (operations, _) = read_operations(LOST.as_bytes()).unwrap();
        let report = judge_operations(&operations);
        assert_eq!(report.verdict, Verdict::Fail);
        let page = page("smoke", 7, &operations, &report).unwrap();
        for part in
            ["<span class=fail>fail</span>", "kill &lt;node-1&gt;", "Lanes of akey-1", "gone"]
        {
            assert!(page.contains(part), "{part} is missing in {page}");
        }
        assert!(!page.contains("<node-1>"));
        assert!(!page.contains("http"), "nothing from outside");
    }
}
