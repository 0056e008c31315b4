//! Lists: in byte order, without repetition, complete and without ghosts (C4).
//!
//! A page is no snapshot: each key is judged at some moment of the request. So a page observes, for every key that
//! it covers, that the key is there or is not, and `presence` judges these observations with all others of the key.
//! A page covers the keys below its prefix, behind the key it begins after, and up to its last key where it says that
//! there is more; that is how a skipped key is found, and a repeated one is one that is not behind the page before.
//!
//! Left out: sizes and ETags in lists, delimiters.

use crate::history::{Action, Kind, Operation};
use crate::presence::{Observation, Source};
use crate::story::{Story, span_of};
use crate::verdict::{Findings, Sort};

const CHECKER: &str = "list";

/// Judges the order of each page, and returns what the pages say about each of the stories.
pub(crate) fn check(
    operations: &[Operation],
    stories: &[Story<'_>],
    findings: &mut Findings,
) -> Vec<Vec<Observation>> {
    let mut observations = vec![Vec::new(); stories.len()];
    for operation in operations.iter().filter(|operation| operation.end == Kind::Ok) {
        let Action::List { prefix, after, keys, more } = &operation.action else { continue };
        let page = Page { operation, prefix, after, keys, more: *more };
        findings.answers += 1 + keys.len() as u64;
        page.judge_order(findings);
        page.observe(stories, &mut observations, findings);
    }
    observations
}

struct Page<'a> {
    operation: &'a Operation,
    prefix: &'a str,
    after: &'a str,
    keys: &'a [String],
    more: bool,
}

impl Page<'_> {
    fn judge_order(&self, findings: &mut Findings) {
        let number = self.operation.number;
        for pair in self.keys.windows(2) {
            if pair[0] == pair[1] {
                let what = format!("list {number} shows {:?} twice", pair[0]);
                findings.broken(CHECKER, &["C4"], Sort::Duplicated, what);
            } else if pair[0].as_bytes() > pair[1].as_bytes() {
                let what = format!("list {number} shows {:?} before {:?}", pair[0], pair[1]);
                findings.broken(CHECKER, &["C4"], Sort::Disorder, what);
            }
        }
        for key in self.keys {
            if !key.starts_with(self.prefix) {
                let what = format!("list {number} shows {key:?}, not below {:?}", self.prefix);
                findings.broken(CHECKER, &["C4"], Sort::Phantom, what);
            } else if !self.after.is_empty() && key.as_str() <= self.after {
                let what = format!("list {number} shows {key:?} again behind {:?}", self.after);
                findings.broken(CHECKER, &["C4"], Sort::Duplicated, what);
            }
        }
        if self.more && self.keys.is_empty() {
            let what = format!("list {number} is empty and says that there is more: it never ends");
            findings.broken(CHECKER, &["C4"], Sort::Disorder, what);
        }
    }

    fn observe(
        &self,
        stories: &[Story<'_>],
        observations: &mut [Vec<Observation>],
        findings: &mut Findings,
    ) {
        let span = span_of(self.operation);
        let mut shown: Vec<&str> = self.keys.iter().map(String::as_str).collect();
        shown.sort_unstable();
        for key in &shown {
            if stories.binary_search_by(|story| story.key.cmp(key)).is_err() {
                let what = format!("list {} shows {key:?}, which nobody wrote", span.number);
                findings.broken(CHECKER, &["C4"], Sort::Phantom, what);
            }
        }
        let first = stories.partition_point(|story| story.key < self.prefix);
        let below = stories[first..].iter().take_while(|story| story.key.starts_with(self.prefix));
        for (index, story) in (first..).zip(below).filter(|(_, story)| self.covers(story.key)) {
            let present = shown.binary_search(&story.key).is_ok();
            observations[index].push(Observation { span, present, source: Source::List });
        }
    }

    fn covers(&self, key: &str) -> bool {
        let behind = self.after.is_empty() || key > self.after;
        behind && (!self.more || self.keys.last().is_some_and(|last| key <= last.as_str()))
    }
}
