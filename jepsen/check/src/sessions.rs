//! Reads of one client never go back in time, whatever gateway answers them (C8).
//!
//! What `register` judges for all clients together by one clock, this judges for each client alone, and names the
//! gateways: a client that has seen a value must not see one later that was surely replaced before that value was
//! written. Only the order of the client's own reads and that of the writes is used.

use crate::story::{Sight, Story};
use crate::verdict::{Findings, Sort};
use std::collections::{BTreeMap, HashMap};

const CHECKER: &str = "sessions";

/// Judges the reads of one object, client by client.
pub(crate) fn check(story: &Story<'_>, findings: &mut Findings) {
    if story.sights.len() < 2 {
        return;
    }
    let writes: HashMap<u64, (u64, u64)> =
        story.writes.iter().map(|write| (write.value, (write.span.from, write.span.to))).collect();
    let mut clients: BTreeMap<u64, Vec<&Sight>> = BTreeMap::new();
    for sight in story.sights.iter().filter(|sight| sight.value.is_some()) {
        clients.entry(sight.client).or_default().push(sight);
    }
    for sights in clients.values() {
        findings.answers += sights.len() as u64;
        check_client(story.key, sights, &writes, findings);
    }
}

fn check_client(
    key: &str,
    sights: &[&Sight],
    writes: &HashMap<u64, (u64, u64)>,
    findings: &mut Findings,
) {
    let write_of = |sight: &Sight| sight.value.and_then(|value| writes.get(&value)).copied();
    let (mut by_begin, mut by_end) = (sights.to_vec(), sights.to_vec());
    by_begin.sort_unstable_by_key(|sight| (sight.span.from, sight.span.number));
    by_end.sort_unstable_by_key(|sight| (sight.span.to, sight.span.number));
    let mut ended = by_end.iter().peekable();
    let mut newest: Option<(u64, &Sight)> = None;
    for sight in by_begin {
        while let Some(earlier) = ended.next_if(|earlier| earlier.span.to < sight.span.from) {
            let Some((written, _)) = write_of(earlier) else { continue };
            if newest.is_none_or(|(newest, _)| written > newest) {
                newest = Some((written, earlier));
            }
        }
        let (Some((newest_written, newer)), Some((_, written_by))) = (newest, write_of(sight))
        else {
            continue;
        };
        if written_by < newest_written {
            let what = format!(
                "{key}: client {} saw {} and then the older {}",
                sight.client,
                told(newer),
                told(sight)
            );
            findings.broken(CHECKER, &["C8"], Sort::Stale, what);
        }
    }
}

fn told(sight: &Sight) -> String {
    let value = sight.value.map_or_else(|| "nothing".to_owned(), |value| format!("value {value}"));
    let number = sight.span.number;
    sight.gateway.map_or_else(
        || format!("{value} (operation {number})"),
        |gateway| format!("{value} through gateway {gateway} (operation {number})"),
    )
}
