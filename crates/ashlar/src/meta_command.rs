//! `ashlar meta verify | versions`.

use crate::replica_command::range_named;
use crate::show::table;
use anyhow::{Result, bail};
use ashlar::meta_check::{RangeReport, VersionsReport};
use ashlar::operator::Member;
use ashlar_types::{Agreement, NodeVersions, RangeId, ReplicaReport};
use serde::Serialize;

/// What is said of a replica.
#[derive(Debug, Serialize)]
struct ReplicaLine {
    range: String,
    node: String,
    /// `None`: it has not answered.
    rows: Option<u64>,
    /// The last entry that it had applied.
    applied: Option<u64>,
    apply_version: Option<u32>,
    is_right: bool,
    finding: String,
}

/// What is said of a node.
#[derive(Debug, Serialize)]
struct NodeLine {
    node: String,
    release: Option<String>,
    root: Option<u32>,
    ranges: Option<u32>,
    why_not: Option<String>,
}

/// By which versions the cluster applies.
#[derive(Debug, Serialize)]
struct Versions {
    root: u32,
    ranges: u32,
    nodes: Vec<NodeLine>,
    ranges_behind: Vec<String>,
}

/// Has all replicas of some ranges, or of all, visit their rows: a line a replica as each range is done. An error: something
/// was found, or a replica did not answer.
pub(crate) async fn verify(member: &Member, names: &[String], json: bool) -> Result<()> {
    let ranges = match names {
        [] => member.replicas().await?.ranges.iter().map(|one| one.range.id).collect(),
        names => names.iter().map(|name| range_named(name)).collect::<Result<Vec<_>>>()?,
    };
    let (mut lines, mut wrong) = (Vec::new(), 0_usize);
    for &range in &ranges {
        let report = member.verify_range(range).await?;
        wrong += usize::from(!report.is_right());
        let found = replica_lines(&report);
        if !json {
            print!("{}", range_text(&found, lines.is_empty()));
        }
        lines.extend(found);
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
    }
    match wrong {
        0 => Ok(()),
        wrong => bail!("of {} ranges, {wrong} are not right on every node", ranges.len()),
    }
}

fn replica_lines(report: &RangeReport) -> Vec<ReplicaLine> {
    let line = |(node, said): &(_, Result<ReplicaReport, String>)| {
        let told = said.as_ref().ok();
        ReplicaLine {
            range: range_name(report.range),
            node: format!("{node}"),
            rows: told.map(|told| told.rows),
            applied: told.map(|told| told.applied),
            apply_version: told.map(|told| told.apply_version),
            is_right: told.is_some_and(ReplicaReport::is_right),
            finding: said.as_ref().map_or_else(|why| format!("no answer: {why}"), finding),
        }
    };
    report.replicas.iter().map(line).collect()
}

fn range_name(range: RangeId) -> String {
    match range {
        RangeId::ROOT => "root".to_owned(),
        range => range.to_string(),
    }
}

/// The heads of the columns once, before the first range.
fn range_text(lines: &[ReplicaLine], is_first: bool) -> String {
    let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |it| it.to_string());
    let rows = lines.iter().map(|line| {
        let version = number(line.apply_version.map(u64::from));
        let (range, node) = (line.range.clone(), line.node.clone());
        vec![range, node, number(line.rows), number(line.applied), version, line.finding.clone()]
    });
    let text = table(&["RANGE", "NODE", "ROWS", "APPLIED", "VERSION", "FINDING"], rows);
    match text.split_once('\n') {
        Some((_, below)) if !is_first => below.to_owned(),
        _ => text,
    }
}

/// What a replica has found, as a sentence.
fn finding(report: &ReplicaReport) -> String {
    let mut found = Vec::new();
    if report.hash != report.counted {
        found.push("its rows are not those of its state hash".to_owned());
    }
    if !report.usage.is_empty() {
        found.push(format!("the usage of {} buckets is not what is there", report.usage.len()));
    }
    match report.agreement {
        Agreement::Differs => found.push("most voters have another state".to_owned()),
        Agreement::Divided => {
            found.push("replicas differ, and none has what most have: no writes".to_owned());
        }
        Agreement::OthersDiffer => found.push("most agree with it, others do not".to_owned()),
        Agreement::Unknown => found.push("not compared: too few answered".to_owned()),
        Agreement::Majority => found.push("most agree with it, not all answered".to_owned()),
        Agreement::All => {}
    }
    if report.begins_anew {
        found.push("it begins anew".to_owned());
    }
    match found.is_empty() {
        true => "right".to_owned(),
        false => found.join("; "),
    }
}

/// By which versions the cluster applies, and who knows which.
pub(crate) async fn versions(member: &Member, json: bool) -> Result<()> {
    let report = member.apply_versions().await?;
    let told = told(&report);
    if json {
        println!("{}", serde_json::to_string_pretty(&told)?);
    } else {
        print!("{}", versions_text(&told));
    }
    Ok(())
}

fn told(report: &VersionsReport) -> Versions {
    let line = |(node, said): &(_, Result<NodeVersions, String>)| {
        let known = said.as_ref().ok();
        NodeLine {
            node: format!("{node}"),
            release: known.map(|known| known.release.clone()).filter(|release| !release.is_empty()),
            root: known.map(|known| known.known.root),
            ranges: known.map(|known| known.known.ranges),
            why_not: said.as_ref().err().cloned(),
        }
    };
    let behind = |(range, version): &(RangeId, Result<u32, String>)| match version {
        Ok(version) => format!("{range} applies by {version} still"),
        Err(why) => format!("{range}: {why}"),
    };
    Versions {
        root: report.used.root,
        ranges: report.used.ranges,
        nodes: report.nodes.iter().map(line).collect(),
        ranges_behind: report.behind.iter().map(behind).collect(),
    }
}

fn versions_text(told: &Versions) -> String {
    let mut text = format!(
        "The cluster applies by version {} of the root and {} of the ranges.\n\n",
        told.root, told.ranges
    );
    let number = |it: Option<u32>| it.map_or_else(|| "-".to_owned(), |it| it.to_string());
    let rows = told.nodes.iter().map(|line| {
        let release = line.release.clone().unwrap_or_else(|| "-".to_owned());
        let why = line.why_not.clone().unwrap_or_default();
        vec![line.node.clone(), release, number(line.root), number(line.ranges), why]
    });
    text.push_str(&table(&["NODE", "RELEASE", "ROOT UP TO", "RANGES UP TO", ""], rows));
    for line in &told.ranges_behind {
        text.push_str(line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(agreement: Agreement) -> ReplicaReport {
        ReplicaReport {
            applied: 9,
            apply_version: 2,
            rows: 4,
            hash: 1,
            counted: 1,
            usage: Vec::new(),
            agreement,
            begins_anew: false,
        }
    }

    #[test]
    fn a_finding_says_what_was_found_and_what_becomes_of_it() {
        assert_eq!(finding(&report(Agreement::All)), "right");
        let spoilt = ReplicaReport { counted: 2, begins_anew: true, ..report(Agreement::All) };
        assert_eq!(finding(&spoilt), "its rows are not those of its state hash; it begins anew");
        let differs = ReplicaReport { begins_anew: true, ..report(Agreement::Differs) };
        assert_eq!(finding(&differs), "most voters have another state; it begins anew");
        assert!(!differs.is_right() && !spoilt.is_right());
        assert!(report(Agreement::Unknown).is_right(), "that too few answered is no finding");
    }
}
