//! Is each key a linearizable register? (C1, C2, C5, C6, C7)
//!
//! Every value is written once, so a write and the reads that saw it form a cluster. A cluster has a zone: from the
//! first end in it to the last invocation in it, if that is forward in time, the value was surely there all that
//! while; otherwise the cluster fits into any one moment of the (backward) zone. The history of a key is
//! linearizable if and only if no read precedes its write, no two forward zones overlap, and no forward zone contains
//! a backward one. Source: Gibbons and Korach, "Testing Shared Memories", 1997, section 4. Sorting the zones is the
//! whole cost: n log n.
//!
//! A failed write is no write. A write of unknown outcome that somebody read happened; one that nobody read may be
//! left out. An acknowledged delete is a write that nobody can read by name. Reads that found nothing cannot name
//! their delete: `presence` judges them, which with the zones is exact where nothing was deleted; objects that were
//! deleted are judged by the search of `wgl` as well.

use crate::story::{Span, Story};
use crate::verdict::{Findings, Sort};
use std::collections::HashMap;

const CHECKER: &str = "register";

/// A value and all who saw it.
#[derive(Clone, Debug)]
struct Cluster {
    /// The value; none for a delete.
    value: Option<u64>,
    /// Earliest end.
    first_end: u64,
    /// Latest invocation.
    last_invoke: u64,
}

/// Judges one object's reads of values.
pub(crate) fn check(story: &Story<'_>, findings: &mut Findings) {
    findings.answers += story.answers();
    let clusters = clusters(story, findings);
    zones(story.key, &clusters, findings);
}

/// The clusters of the writes that happened; reads that fit to none are anomalies.
fn clusters(story: &Story<'_>, findings: &mut Findings) -> Vec<Cluster> {
    let mut clusters: Vec<Cluster> = story
        .writes
        .iter()
        .map(|write| Cluster {
            value: Some(write.value),
            first_end: write.span.to,
            last_invoke: write.span.from,
        })
        .collect();
    let mut by_value: HashMap<u64, usize> = HashMap::with_capacity(clusters.len());
    by_value.extend(story.writes.iter().enumerate().map(|(at, write)| (write.value, at)));
    for sight in &story.sights {
        let Some(value) = sight.value else { continue };
        let (key, number) = (story.key, sight.span.number);
        let Some(&at) = by_value.get(&value) else {
            let what = format!("{key}: operation {number} saw value {value}, which nobody wrote");
            findings.broken(CHECKER, &["C1", "C5"], Sort::Phantom, what);
            continue;
        };
        let write = &story.writes[at];
        if write.refused {
            let what =
                format!("{key}: operation {number} saw value {value}, whose write was refused");
            findings.broken(CHECKER, &["C7"], Sort::RefusedButApplied, what);
        } else if sight.span.to < write.span.from {
            let what = format!("{key}: operation {number} saw value {value} before it was written");
            findings.broken(CHECKER, &["C2"], Sort::Future, what);
        } else {
            clusters[at].last_invoke = clusters[at].last_invoke.max(sight.span.from);
        }
    }
    let mut happened = story.writes.iter().map(|write| write.happened);
    clusters.retain(|_| happened.next().unwrap_or(false));
    clusters.extend(story.deletes.iter().map(Cluster::of_delete));
    clusters
}

/// Overlaps of zones that no order allows. Forward zones are sorted; each is compared with its neighbours only.
fn zones(key: &str, clusters: &[Cluster], findings: &mut Findings) {
    let mut forward: Vec<&Cluster> =
        clusters.iter().filter(|cluster| cluster.is_forward()).collect();
    forward.sort_unstable_by_key(|cluster| cluster.low());
    for pair in forward.windows(2).filter(|pair| pair[1].low() < pair[0].high()) {
        let (one, two) = (pair[0].name(), pair[1].name());
        let what = format!("{key}: {one} and {two} were each seen after the other had replaced it");
        findings.broken(CHECKER, &["C2"], Sort::Stale, what);
    }
    for inner in clusters.iter().filter(|cluster| !cluster.is_forward()) {
        let before = forward.partition_point(|outer| outer.low() < inner.low());
        let Some(outer) = forward[..before].last().filter(|outer| inner.high() < outer.high())
        else {
            continue;
        };
        let (old, new) = (outer.name(), inner.name());
        if inner.value.is_none() {
            let what = format!("{key}: {old} was there before {new} and is there after it");
            findings.broken(CHECKER, &["C2", "C6"], Sort::Resurrected, what);
        } else {
            let what = format!("{key}: {old} was seen again after {new} had replaced it");
            findings.broken(CHECKER, &["C2"], Sort::Stale, what);
        }
    }
}

impl Cluster {
    fn of_delete(delete: &Span) -> Self {
        Self { value: None, first_end: delete.to, last_invoke: delete.from }
    }

    fn is_forward(&self) -> bool {
        self.first_end < self.last_invoke
    }

    fn low(&self) -> u64 {
        self.first_end.min(self.last_invoke)
    }

    fn high(&self) -> u64 {
        self.first_end.max(self.last_invoke)
    }

    fn name(&self) -> String {
        self.value.map_or_else(|| "a delete".to_owned(), |value| format!("value {value}"))
    }
}
