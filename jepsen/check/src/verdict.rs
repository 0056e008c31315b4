//! The verdict on a history: pass, fail, or inconclusive, which is no pass.

use serde::Serialize;
use std::fmt;

/// What a history shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything was judged, and the contract allows it.
    Pass,
    /// The contract forbids it.
    Fail,
    /// No anomaly was found, but something could not be judged or was not exercised.
    Inconclusive,
}

impl Verdict {
    /// The exit code of a program that judged: 0, 1, 2.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Fail => 1,
            Self::Inconclusive => 2,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Inconclusive => "inconclusive",
        })
    }
}

/// What kind of promise was broken, in the field's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sort {
    /// Something acknowledged is not there.
    Lost,
    /// An old value was read after a newer one.
    Stale,
    /// Something deleted is there again.
    Resurrected,
    /// Something that nobody wrote is there.
    Phantom,
    /// Something whose write was refused is there.
    RefusedButApplied,
    /// Something was read before it was written.
    Future,
    /// Bytes of several writes, of none, or too few of them.
    Torn,
    /// A bad order in a list.
    Disorder,
    /// A key came twice in a list.
    Duplicated,
    /// More than one of those that raced won.
    TwoWinners,
    /// A condition was judged against a state that never was.
    WrongCondition,
    /// No order of the operations explains all answers.
    NoOrder,
    /// An answer that must be repeated was not.
    OtherAnswer,
    /// No write was acknowledged for longer than is promised.
    Gap,
}

/// A broken promise.
#[derive(Clone, Debug, Serialize)]
pub struct Anomaly {
    /// The checker that found it.
    pub checker: &'static str,
    /// The promises that it breaks.
    pub contract: &'static [&'static str],
    /// What kind it is.
    pub sort: Sort,
    /// What happened, in a sentence.
    pub what: String,
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.checker, self.contract.join(" "), self.what)
    }
}

/// What one checker did.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    /// Its name.
    pub checker: &'static str,
    /// The promises that it judges.
    pub contract: &'static [&'static str],
    /// How many answers it judged; 0 where the history has none of its kind.
    pub answers: u64,
}

/// What a checker found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Answers judged.
    pub answers: u64,
    /// Promises broken.
    pub anomalies: Vec<Anomaly>,
    /// What could not be judged, in sentences.
    pub doubts: Vec<String>,
}

impl Findings {
    /// Adds an anomaly.
    pub(crate) fn broken(
        &mut self,
        checker: &'static str,
        contract: &'static [&'static str],
        sort: Sort,
        what: String,
    ) {
        self.anomalies.push(Anomaly { checker, contract, sort, what });
    }
}
