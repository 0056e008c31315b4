//! Availability: what succeeded in each second, and the longest gap of each fault (`contract.md` promises some).
//!
//! A gap belongs to a key: it begins when somebody wants to write the key and nobody has, and ends with the next
//! acknowledged write of it, or when all who wanted to have given up and none has tried again for a moment. Time in
//! which nobody wanted to write is no gap, and a key that goes on does not hide one that stalls. The gap of a fault is
//! the longest one that touches the time from its strike to its end.

use crate::history::{Action, Kind, Operation, Why};
use crate::verdict::{Findings, Sort};
use serde::Serialize;
use std::collections::BTreeMap;

const CHECKER: &str = "availability";
/// Who tries again within this time has not given up.
const RETRY_US: u64 = 500_000;

/// What clients were told, over time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Availability {
    /// Each second of the history, from its beginning.
    pub seconds: Vec<Second>,
    /// Each fault, in the order of their strikes.
    pub gaps: Vec<Gap>,
}

/// Answers within one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Second {
    /// Acknowledged.
    pub ok: u64,
    /// Not applied.
    pub failed: u64,
    /// Of unknown outcome.
    pub unknown: u64,
}

/// The longest time that somebody waited for an acknowledged write of one key while a fault lasted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The fault and its target.
    pub fault: String,
    /// When it struck.
    pub from_us: u64,
    /// When it had healed; none where that is not known.
    pub to_us: Option<u64>,
    /// How long; 0 where nobody wanted to write.
    pub longest_us: u64,
    /// Which key.
    pub key: String,
}

/// A time in which somebody wanted to write a key and nobody had.
struct Wait<'a> {
    key: &'a str,
    from: u64,
    to: u64,
}

/// Measures, and judges gaps against what is promised.
pub(crate) fn check(operations: &[Operation], findings: &mut Findings) -> Availability {
    let waits = waits(operations);
    let mut gaps = Vec::new();
    for operation in operations {
        let Action::Fault(fault) = &operation.action else { continue };
        let to = operation.told_us.unwrap_or(u64::MAX);
        let touching = waits.iter().filter(|w| w.from <= to && operation.invoked_us <= w.to);
        let longest = touching.max_by_key(|wait| wait.to - wait.from);
        let gap = Gap {
            fault: format!("{} {}", fault.fault, fault.target),
            from_us: operation.invoked_us,
            to_us: operation.told_us,
            longest_us: longest.map_or(0, |wait| wait.to - wait.from),
            key: longest.map(|wait| wait.key.to_owned()).unwrap_or_default(),
        };
        if let Some(allowed) = fault.gap_us_max {
            findings.answers += 1;
            if gap.longest_us > allowed {
                let (fault, key, longest) = (&gap.fault, &gap.key, gap.longest_us);
                let what = format!(
                    "{fault}: no acknowledged write of {key} for {longest} us, {allowed} are allowed"
                );
                findings.broken(CHECKER, &["L1"], Sort::Gap, what);
            }
        }
        gaps.push(gap);
    }
    Availability { seconds: seconds(operations), gaps }
}

fn seconds(operations: &[Operation]) -> Vec<Second> {
    let mut seconds: Vec<Second> = Vec::new();
    for operation in operations.iter().filter(|operation| operation.action.is_of_client()) {
        let Some(told) = operation.told_us else { continue };
        let Ok(index) = usize::try_from(told / 1_000_000) else { continue };
        if seconds.len() <= index {
            seconds.resize(index + 1, Second::default());
        }
        match operation.end {
            Kind::Ok => seconds[index].ok += 1,
            Kind::Fail => seconds[index].failed += 1,
            Kind::Info | Kind::Invoke => seconds[index].unknown += 1,
        }
    }
    seconds
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    Wanted,
    Acknowledged,
    GivenUp,
}

fn waits(operations: &[Operation]) -> Vec<Wait<'_>> {
    let last = operations.iter().map(|o| o.told_us.unwrap_or(o.invoked_us)).max().unwrap_or(0);
    let mut moments: BTreeMap<&str, Vec<(u64, Moment)>> = BTreeMap::new();
    for operation in operations.iter().filter(|operation| operation.action.is_write()) {
        let Some(key) = operation.action.key() else { continue };
        // A refusal that says why is an answer: nobody waits any longer for this write.
        if matches!(operation.why, Some(Why::Condition | Why::Missing | Why::Refused)) {
            continue;
        }
        let moments = moments.entry(key).or_default();
        moments.push((operation.invoked_us, Moment::Wanted));
        if let Some(told) = operation.told_us {
            let acknowledged = operation.end == Kind::Ok;
            let moment = if acknowledged { Moment::Acknowledged } else { Moment::GivenUp };
            moments.push((told, moment));
        }
    }
    let mut waits = Vec::new();
    for (key, mut moments) in moments {
        moments.sort_unstable();
        waits_of(key, &moments, last, &mut waits);
    }
    waits
}

fn waits_of<'a>(key: &'a str, moments: &[(u64, Moment)], last: u64, waits: &mut Vec<Wait<'a>>) {
    let mut waiting = 0_u64;
    let mut since = None;
    let mut given_up = None;
    for &(at, moment) in moments {
        match moment {
            Moment::Wanted => {
                if let Some(to) = given_up.take().filter(|to| at - to > RETRY_US) {
                    waits.extend(since.take().map(|from| Wait { key, from, to }));
                }
                waiting += 1;
                since = since.or(Some(at));
            }
            Moment::Acknowledged => {
                waiting -= 1;
                waits.extend(since.map(|from| Wait { key, from, to: at }));
                since = (waiting > 0).then_some(at);
            }
            Moment::GivenUp => {
                waiting -= 1;
                given_up = (waiting == 0).then_some(at);
            }
        }
    }
    let to = given_up.unwrap_or(last);
    waits.extend(since.map(|from| Wait { key, from, to: to.max(from) }));
}
