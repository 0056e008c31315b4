//! What an audit has found, and what it means, for people.

use crate::show::{bytes, table};
use anyhow::Result;
use ashlar::audit::{AuditReport, CanStop, DOMAINS, Domain, ObjectStanding};

/// What survives what, and the objects that survive least.
pub(crate) fn durability(report: &AuditReport, worst: usize, json: bool) -> Result<String> {
    if json {
        return Ok(format!("{}\n", serde_json::to_string_pretty(report)?));
    }
    let all = report.durability.all;
    let mut text = format!(
        "{} objects, {}; counted {} ago by {}\n\n",
        all.objects,
        bytes(all.bytes),
        age(report.age_ms),
        report.by
    );
    text.push_str(&margins(report));
    text.push('\n');
    for sentence in troubles(report) {
        text.push_str(&sentence);
        text.push('\n');
    }
    if !report.lost.is_empty() {
        text.push_str("\nLost for good:\n");
        text.push_str(&objects(&report.lost, report.lost.len()));
    }
    if worst > 0 && !report.worst.is_empty() {
        text.push_str("\nThose that survive least:\n");
        text.push_str(&objects(&report.worst, worst));
    }
    Ok(text)
}

/// What a pass has found.
pub(crate) fn audit(report: &AuditReport, json: bool) -> Result<String> {
    if json {
        return Ok(format!("{}\n", serde_json::to_string_pretty(report)?));
    }
    let shards = report.shards;
    let mut text = format!(
        "{} ranges walked in {} ms: {} extents named, {} waiting to be deleted\n\
         shards: {} there, {} missing, {} found lost, {} damaged, {} unknown\n\
         orphans: {} queued, {} unnamed of open sessions, {} shards away from home\n\
         groups that take nothing new: {}, with {} extents that wait to be written again elsewhere\n",
        report.ranges,
        report.took_ms,
        report.extents,
        report.garbage,
        shards.found,
        shards.missing,
        shards.lost,
        shards.damaged,
        shards.unknown,
        report.orphans,
        report.unnamed,
        report.strays,
        report.closed.len(),
        report.closed.values().sum::<u64>(),
    );
    for sentence in troubles(report) {
        text.push_str(&sentence);
        text.push('\n');
    }
    Ok(text)
}

/// Whether a node can be stopped, and what to know.
pub(crate) fn can_stop(verdict: &CanStop, report: &AuditReport, json: bool) -> Result<String> {
    if json {
        return Ok(format!("{}\n", serde_json::to_string_pretty(verdict)?));
    }
    let word = if verdict.can() { "can be stopped" } else { "cannot be stopped" };
    let mut text = format!("{} {word} (counted {} ago)\n", verdict.node, age(report.age_ms));
    for line in verdict.refusals.iter().chain(&verdict.remarks) {
        text.push_str(&format!("- {line}\n"));
    }
    Ok(text)
}

fn margins(report: &AuditReport) -> String {
    let by_margin = &report.durability.by_margin;
    let of = |domain: Domain, margin: i16| {
        by_margin.get(&domain).and_then(|margins| margins.get(&margin)).copied().unwrap_or_default()
    };
    let keys = by_margin.values().flat_map(|margins| margins.keys().copied());
    let keys: std::collections::BTreeSet<i16> = keys.collect();
    let rows = keys.into_iter().map(|margin| {
        let mut row = vec![match margin {
            -1 => "unreadable now".to_owned(),
            0 => "no more".to_owned(),
            more => format!("{more} more"),
        }];
        for domain in DOMAINS {
            let count = of(domain, margin);
            row.extend([count.objects.to_string(), bytes(count.bytes)]);
        }
        row
    });
    table(&["SURVIVES", "DISKS", "", "NODES", "", "ZONES", ""], rows)
}

fn troubles(report: &AuditReport) -> Vec<String> {
    let mut sentences = Vec::new();
    let lost = report.durability.lost;
    if lost.objects > 0 {
        sentences.push(format!("{} objects ({}) are lost", lost.objects, bytes(lost.bytes)));
    }
    if report.lost_parts.objects > 0 {
        let count = report.lost_parts.objects;
        sentences.push(format!("{count} parts of open uploads are lost"));
    }
    for silent in &report.silent {
        sentences.push(format!(
            "disk {} of {} did not answer: {}",
            silent.disk, silent.node, silent.reason
        ));
    }
    if report.cells_left > 0 {
        sentences.push(format!(
            "{} cells differ and were left to the next audit: their shards count as unknown",
            report.cells_left
        ));
    }
    sentences
}

fn objects(objects: &[ObjectStanding], limit: usize) -> String {
    let word = |margin: i16| if margin < 0 { "-".to_owned() } else { margin.to_string() };
    let rows = objects.iter().take(limit).map(|object| {
        vec![
            word(object.margins.disk),
            word(object.margins.node),
            word(object.margins.zone),
            bytes(object.bytes),
            format!("{}/{}", object.bucket, object.key),
        ]
    });
    table(&["DISKS", "NODES", "ZONES", "SIZE", "OBJECT"], rows)
}

fn age(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar::audit::{Count, Margins};

    fn report() -> AuditReport {
        let mut report = AuditReport { age_ms: 61_000, ..AuditReport::default() };
        let count = Count { objects: 2, bytes: 2048 };
        report.durability.all = count;
        for domain in DOMAINS {
            report.durability.by_margin.entry(domain).or_default().insert(1, count);
        }
        report.worst.push(ObjectStanding {
            margins: Margins { node: 1, zone: -1, disk: 1 },
            bucket: "b".to_owned(),
            key: "k".to_owned(),
            bytes: 5,
        });
        report
    }

    #[test]
    fn what_survives_what_is_a_table_and_json_has_the_same() {
        let text = durability(&report(), 1, false).unwrap();
        assert!(text.starts_with("2 objects, 2.0 KiB; counted 00:01:01 ago by node-0\n"), "{text}");
        assert!(
            text.contains("1 more    2      2.0 KiB  2      2.0 KiB  2      2.0 KiB"),
            "{text}"
        );
        assert!(text.contains("1      1      -      5 B   b/k"), "{text}");
        let value: serde_json::Value =
            serde_json::from_str(&durability(&report(), 0, true).unwrap()).unwrap();
        assert_eq!(value["durability"]["by_margin"]["node"]["1"]["objects"], 2);
    }
}
