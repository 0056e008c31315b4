//! What clients did and saw, what struck, and what was found: the history of a run, which is also its trace.

use ashlar_check::{Action, Event, Fault, History, Kind, Why};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// A promise that was broken in a way that no history shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The name of the promise.
    pub(crate) invariant: &'static str,
    pub(crate) what: String,
}

/// Keeps it all. A clone is the same one.
#[derive(Clone)]
pub(crate) struct Recorder(Arc<Inner>);

struct Inner {
    began: Instant,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    events: Vec<Event>,
    operations: u64,
    findings: Vec<Finding>,
    /// Lengths of the values that were written.
    lengths: BTreeMap<u64, usize>,
    next_value: u64,
    /// Facts beside the history that must repeat too.
    notes: Vec<String>,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub(crate) kind: Kind,
    pub(crate) why: Option<Why>,
}

impl End {
    pub(crate) const OK: Self = Self { kind: Kind::Ok, why: None };
    pub(crate) const UNKNOWN: Self = Self { kind: Kind::Info, why: None };

    pub(crate) fn failed(why: Why) -> Self {
        Self { kind: Kind::Fail, why: Some(why) }
    }
}

impl Recorder {
    pub(crate) fn begin() -> Self {
        Self(Arc::new(Inner { began: Instant::now(), told: Mutex::default() }))
    }

    /// Microseconds since the run began.
    pub(crate) fn now_us(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A value that was never written, of this length.
    pub(crate) fn new_value(&self, length: usize) -> u64 {
        let mut told = self.told();
        told.next_value += 1;
        let value = told.next_value;
        told.lengths.insert(value, length);
        value
    }

    pub(crate) fn length(&self, value: u64) -> Option<usize> {
        self.told().lengths.get(&value).copied()
    }

    /// The newest value; all from 1 on were given out.
    pub(crate) fn values(&self) -> u64 {
        self.told().next_value
    }

    pub(crate) fn invoke(&self, client: u64, gateway: Option<u64>, action: &Action) -> u64 {
        let mut told = self.told();
        told.operations += 1;
        let operation = told.operations;
        let (kind, action) = (Kind::Invoke, action.clone());
        let at_us = self.now_us();
        told.events.push(Event { at_us, operation, kind, client, gateway, why: None, action });
        operation
    }

    pub(crate) fn end(
        &self,
        operation: u64,
        client: u64,
        gateway: Option<u64>,
        action: Action,
        end: End,
    ) {
        let End { kind, why } = end;
        let at_us = self.now_us();
        self.told().events.push(Event { at_us, operation, kind, client, gateway, why, action });
    }

    /// A fault strikes now.
    pub(crate) fn strike(&self, fault: &str, target: String) -> (u64, Fault) {
        let fault = Fault { fault: fault.to_owned(), target, ..Fault::default() };
        (self.invoke(0, None, &Action::Fault(fault.clone())), fault)
    }

    /// It is over; it bit when it struck, as `evidence` says.
    pub(crate) fn healed(&self, (operation, fault): (u64, Fault), bit_at_us: u64, evidence: &str) {
        let evidence = evidence.to_owned();
        let fault = Fault { bit_at_us: Some(bit_at_us), evidence, ..fault };
        self.end(operation, 0, None, Action::Fault(fault), End::OK);
    }

    /// Found again and again, it is one finding.
    pub(crate) fn find(&self, invariant: &'static str, what: String) {
        let (mut told, finding) = (self.told(), Finding { invariant, what });
        if !told.findings.contains(&finding) {
            told.findings.push(finding);
        }
    }

    /// A fact that is no operation, for the trace.
    pub(crate) fn note(&self, what: &str) {
        let line = format!("{} {what}", self.now_us());
        self.told().notes.push(line);
    }

    pub(crate) fn findings(&self) -> Vec<Finding> {
        self.told().findings.clone()
    }

    pub(crate) fn history(&self) -> History {
        History { events: self.told().events.clone() }
    }

    /// Every event and note, a line each.
    pub(crate) fn trace(&self) -> String {
        let told = self.told();
        let mut text = String::new();
        for event in &told.events {
            let line = serde_json::to_string(event).expect("an event is plain data");
            text.push_str(&line);
            text.push('\n');
        }
        for note in &told.notes {
            writeln!(text, "{note}").expect("a string takes all");
        }
        text
    }
}
