//! Was the object there, or not? (C1, C4, C6)
//!
//! Whatever says so is an observation: a read, a list that shows the key or does not, a create that was refused
//! because there is an object. Two rules, each the other's mirror, judge observations that cannot name a write:
//!
//! - It was not there: then after everything that saw it there, and had ended before, some delete may lie.
//! - It was there: then after everything that saw it gone, and had ended before, some write may lie. In the beginning
//!   nothing is there.
//!
//! Both are necessary, for any history. For one object without deletes the first is, together with the zones of
//! `register`, sufficient. A binary search over running maxima answers each: n log n.

use crate::story::{Demand, Span, Story};
use crate::verdict::{Findings, Sort};

/// What made the observation: it decides which promise an anomaly breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A read of the object.
    Read,
    /// A list.
    List,
    /// A refused create.
    Refusal,
}

/// An observation of an object's presence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observation {
    /// When.
    pub(crate) span: Span,
    /// Whether the object was there.
    pub(crate) present: bool,
    /// How it is known.
    pub(crate) source: Source,
}

/// Judges all observations of one object; `listed` are those of the lists.
pub(crate) fn check(story: &Story<'_>, listed: &[Observation], findings: &mut Findings) {
    let own = own_observations(story);
    let observations = || own.iter().chain(listed);
    let seen = |present: bool| {
        observations().filter(move |seen| seen.present == present).map(|seen| seen.span)
    };
    let writes = || story.writes.iter().filter(|write| !write.refused);
    let happened = writes().filter(|write| write.happened).map(|write| write.span);
    let there = Witnesses::new(happened.chain(seen(true)));
    let gone = Witnesses::new(story.deletes.iter().copied().chain(seen(false)));
    let written = Actors::new(writes().map(|write| write.span));
    let deleted = Actors::new(story.deletes.iter().chain(&story.open_deletes).copied());
    for seen in observations() {
        if seen.present {
            // In the beginning nothing is there: a witness before everything else.
            let since = gone.latest_before(seen.span.from);
            if !written.any_may_lie_between(since, seen.span.to) {
                report_present(story, seen, since.is_some(), findings);
            }
        } else if let Some(since) = there.latest_before(seen.span.from)
            && !deleted.any_may_lie_between(Some(since), seen.span.to)
        {
            report_absent(story, seen, findings);
        }
    }
}

/// What reads and refused creates say. Which value a read saw, `register` judges; here it only testifies.
fn own_observations(story: &Story<'_>) -> Vec<Observation> {
    let reads = story.sights.iter().map(|sight| (sight.span, sight.value.is_some(), Source::Read));
    let refusals = story
        .refusals
        .iter()
        .filter(|refusal| refusal.demand == Demand::Absent)
        .map(|refusal| (refusal.span, true, Source::Refusal));
    reads
        .chain(refusals)
        .map(|(span, present, source)| Observation { span, present, source })
        .collect()
}

fn report_present(story: &Story<'_>, seen: &Observation, was_gone: bool, findings: &mut Findings) {
    let (key, number) = (story.key, seen.span.number);
    let (sort, why) = if was_gone {
        (Sort::Resurrected, "after it was gone and nobody wrote it again")
    } else {
        (Sort::Phantom, "before anybody had begun to write it")
    };
    match seen.source {
        Source::Read => {
            let what = format!("{key}: operation {number} read the object {why}");
            findings.broken("presence", &["C2", "C6"], sort, what);
        }
        Source::List => {
            let what = format!("{key}: list {number} shows the key {why}");
            findings.broken("list", &["C4", "C6"], sort, what);
        }
        Source::Refusal => {
            let what = format!("{key}: create {number} was refused {why}");
            findings.broken("conditional", &["C3"], Sort::WrongCondition, what);
        }
    }
}

fn report_absent(story: &Story<'_>, seen: &Observation, findings: &mut Findings) {
    let (key, number) = (story.key, seen.span.number);
    let why = "after it was there and nobody deleted it";
    match seen.source {
        Source::Read | Source::Refusal => {
            let what = format!("{key}: operation {number} found nothing {why}");
            findings.broken("presence", &["C1", "C2"], Sort::Lost, what);
        }
        Source::List => {
            let what = format!("{key}: list {number} lacks the key {why}");
            findings.broken("list", &["C1", "C4"], Sort::Lost, what);
        }
    }
}

/// Moments at which something was surely so, by their ends, with the latest beginning so far.
struct Witnesses {
    latest: Vec<(u64, u64)>,
}

impl Witnesses {
    fn new(spans: impl Iterator<Item = Span>) -> Self {
        let mut latest: Vec<_> = spans.map(|span| (span.to, span.from)).collect();
        make_running_maximum(&mut latest);
        Self { latest }
    }

    /// The latest beginning of all that ended before this moment.
    fn latest_before(&self, moment: u64) -> Option<u64> {
        let ended = self.latest.partition_point(|(to, _)| *to < moment);
        self.latest[..ended].last().map(|(_, from)| *from)
    }
}

/// Operations that could have changed it, by their beginnings, with the latest end so far.
struct Actors {
    latest: Vec<(u64, u64)>,
}

impl Actors {
    fn new(spans: impl Iterator<Item = Span>) -> Self {
        let mut latest: Vec<_> = spans.map(|span| (span.from, span.to)).collect();
        make_running_maximum(&mut latest);
        Self { latest }
    }

    /// Whether one of them may have had its effect after a moment, or ever, and before another.
    fn any_may_lie_between(&self, after: Option<u64>, before: u64) -> bool {
        let begun = self.latest.partition_point(|(from, _)| *from <= before);
        self.latest[..begun].last().is_some_and(|(_, to)| after.is_none_or(|after| *to >= after))
    }
}

/// Sorts pairs, and makes each second the largest second so far.
fn make_running_maximum(pairs: &mut [(u64, u64)]) {
    pairs.sort_unstable();
    let mut largest = 0;
    for (_, second) in pairs {
        largest = largest.max(*second);
        *second = largest;
    }
}
