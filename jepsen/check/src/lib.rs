//! Histories of what clients did and saw, and checkers that say whether the contract allows them.
//!
//! `history` is the format; `story` sorts a history by object. Each checker is a module and names the promises that
//! it judges: `register`, `presence`, `conditional` (with the search of `wgl`), `list`, `ranges`, `multipart`,
//! `versions`, `sessions`, `availability`, `coverage`. `verdict` is what they come to, `edn` the twin of a history
//! that Jepsen's own checkers read.

pub mod availability;
mod conditional;
mod coverage;
pub mod edn;
pub mod history;
mod list;
mod multipart;
mod presence;
mod ranges;
mod register;
mod sessions;
mod story;
pub mod verdict;
mod versions;
mod wgl;

use availability::Availability;
pub use history::{Action, Event, Fault, History, Kind, Operation, Piece, Version, Why};
use serde::Serialize;
use std::fmt;
use verdict::Findings;
pub use verdict::{Anomaly, Judged, Sort, Verdict};

/// Everything that is known about a history.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What it comes to.
    pub verdict: Verdict,
    /// Operations of clients.
    pub operations: u64,
    /// What each checker judged.
    pub judged: Vec<Judged>,
    /// Promises that were broken.
    pub anomalies: Vec<Anomaly>,
    /// What could not be judged or was not exercised.
    pub doubts: Vec<String>,
    /// What clients were told, over time.
    pub availability: Availability,
}

/// Judges a history that is in memory.
pub fn judge(history: &History) -> Report {
    match history.operations() {
        Ok(operations) => judge_operations(&operations),
        Err(why) => Report::unreadable(&why),
    }
}

/// Judges operations.
pub fn judge_operations(operations: &[Operation]) -> Report {
    judge_within(operations, wgl::STEPS_MAX)
}

/// Judges operations with a bound on the steps of each object's search.
pub fn judge_within(operations: &[Operation], steps_max: u64) -> Report {
    let mut bench = Bench::default();
    let stories = story::stories(operations);
    let listed =
        bench.run("list", &["C4", "C6"], |findings| list::check(operations, &stories, findings));
    bench.run("register", &["C1", "C2", "C5", "C6", "C7"], |findings| {
        judged(&stories).for_each(|story| register::check(story, findings));
    });
    bench.run("presence", &["C1", "C2", "C3", "C4", "C6"], |findings| {
        for (story, listed) in stories.iter().zip(&listed).filter(|(s, _)| !s.versions_removed) {
            findings.answers += story.answers() + listed.len() as u64;
            presence::check(story, listed, findings);
        }
    });
    bench.run("sessions", &["C8"], |findings| {
        judged(&stories).for_each(|story| sessions::check(story, findings));
    });
    let suspects = bench.suspects(&stories);
    bench.run("conditional", &["C2", "C3", "C6"], |findings| {
        for (story, _) in stories.iter().zip(&suspects).filter(|(_, is_suspect)| !**is_suspect) {
            check_conditions(story, steps_max, findings);
        }
    });
    bench.run("ranges", &["C5"], |findings| ranges::check(operations, findings));
    bench.run("multipart", &["C10"], |findings| multipart::check(operations, findings));
    bench.run("versions", &["C6", "C9"], |findings| versions::check(operations, findings));
    let availability =
        bench.run("availability", &["L1"], |findings| availability::check(operations, findings));
    bench.run("coverage", &[], |findings| coverage::check(operations, findings));
    let clients = operations.iter().filter(|operation| operation.action.is_of_client()).count();
    bench.report(clients as u64, availability)
}

/// The stories of objects that are registers.
fn judged<'a>(stories: &'a [story::Story<'a>]) -> impl Iterator<Item = &'a story::Story<'a>> {
    stories.iter().filter(|story| !story.versions_removed)
}

fn check_conditions(story: &story::Story<'_>, steps_max: u64, findings: &mut Findings) {
    if story.versions_removed || story.is_plain() {
        return;
    }
    let before = findings.anomalies.len();
    conditional::check_race(story, findings);
    if findings.anomalies.len() == before {
        conditional::check_order(story, steps_max, findings);
    }
}

/// Runs the checkers one after another.
#[derive(Default)]
struct Bench {
    judged: Vec<Judged>,
    anomalies: Vec<Anomaly>,
    doubts: Vec<String>,
}

impl Bench {
    fn run<T>(
        &mut self,
        checker: &'static str,
        contract: &'static [&'static str],
        work: impl FnOnce(&mut Findings) -> T,
    ) -> T {
        let mut findings = Findings::default();
        let made = work(&mut findings);
        self.judged.push(Judged { checker, contract, answers: findings.answers });
        self.anomalies.extend(findings.anomalies);
        self.doubts.extend(findings.doubts.into_iter().map(|doubt| format!("{checker}: {doubt}")));
        made
    }

    /// Of each story, whether an anomaly of its key is known: then a search for an order has nothing to add.
    fn suspects(&self, stories: &[story::Story<'_>]) -> Vec<bool> {
        let is_suspect = |story: &story::Story<'_>| {
            let start = format!("{}: ", story.key);
            self.anomalies.iter().any(|anomaly| anomaly.what.starts_with(&start))
        };
        stories.iter().map(is_suspect).collect()
    }

    fn report(self, operations: u64, availability: Availability) -> Report {
        let verdict = match (self.anomalies.is_empty(), self.doubts.is_empty()) {
            (false, _) => Verdict::Fail,
            (true, false) => Verdict::Inconclusive,
            (true, true) => Verdict::Pass,
        };
        let Self { judged, anomalies, doubts } = self;
        Report { verdict, operations, judged, anomalies, doubts, availability }
    }
}

impl Report {
    /// The report on something that is no history: nothing can be said.
    pub fn unreadable(why: &str) -> Self {
        Self {
            verdict: Verdict::Inconclusive,
            operations: 0,
            judged: Vec::new(),
            anomalies: Vec::new(),
            doubts: vec![format!("the history itself is broken: {why}")],
            availability: Availability::default(),
        }
    }

    /// The report as JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report is plain data")
    }
}

/// The verdict as a sentence.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verdict, operations, .. } = self;
        let first = match verdict {
            Verdict::Pass => None,
            Verdict::Fail => {
                self.anomalies.first().map(|first| (first.to_string(), self.anomalies.len()))
            }
            Verdict::Inconclusive => self.doubts.first().map(|d| (d.clone(), self.doubts.len())),
        };
        write!(f, "{verdict}: {operations} operations")?;
        match first {
            None => f.write_str(", nothing that the contract forbids"),
            Some((first, 1)) => write!(f, ", {first}"),
            Some((first, all)) => write!(f, ", {first}, and {} more", all - 1),
        }
    }
}
