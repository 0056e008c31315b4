//! Conditional writes and deletes: does one order explain every answer? (C2, C3, C6)
//!
//! Of all that try to create a key on which nothing else happened, at most one wins: that is judged by counting,
//! because it names the winners. Everything else is the search of `wgl`, on each object that was deleted or written
//! under a condition, where intervals alone do not decide. An object on which another checker found an anomaly is
//! not searched: the anomaly is known already.

use crate::story::{Demand, Story};
use crate::verdict::{Findings, Sort};
use crate::wgl::{Answer, search};

const CHECKER: &str = "conditional";

/// Judges the race of the creators of one object.
pub(crate) fn check_race(story: &Story<'_>, findings: &mut Findings) {
    let may_be_gone_again = !story.deletes.is_empty() || !story.open_deletes.is_empty();
    let won = story.writes.iter().filter(|write| write.happened && write.demand == Demand::Absent);
    let winners: Vec<String> = won.map(|write| write.span.number.to_string()).collect();
    if winners.len() > 1 && !may_be_gone_again {
        let what = format!("{}: the creates {} all won", story.key, winners.join(" and "));
        findings.broken(CHECKER, &["C3"], Sort::TwoWinners, what);
    }
}

/// Searches for an order.
pub(crate) fn check_order(story: &Story<'_>, steps_max: u64, findings: &mut Findings) {
    findings.answers += story.answers();
    let key = story.key;
    match search(story, steps_max) {
        Answer::Linearizable => {}
        Answer::NoOrder(number) => {
            let what = format!(
                "{key}: no order of the operations explains all answers; \
                 the longest attempt has no place for operation {number}"
            );
            let contract: &[&str] =
                if story.is_conditional() { &["C2", "C3"] } else { &["C2", "C6"] };
            findings.broken(CHECKER, contract, Sort::NoOrder, what);
        }
        Answer::GivenUp => findings.doubts.push(format!(
            "{key}: the search for an order was given up after {steps_max} steps: \
             fewer clients on one key help"
        )),
    }
}
