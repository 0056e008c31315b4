//! The twin of a history in EDN, in the two forms that Jepsen's own checkers read.
//!
//! - `register`: operations `:read`, `:write` and `:cas`, for Knossos' `cas-register`. A value is `["key" value]`, the
//!   form of `jepsen.independent`; of one key alone it is the bare value, which Knossos' command line reads. No object
//!   is `:absent` (in Knossos, reading nil means "not known"); each key begins with a write of it. A delete writes
//!   `:absent`, a create is a `:cas` from it. Reads of unknown outcome are `:fail`: they changed nothing.
//! - `elle`: transactions of one `[:w key value]` or `[:r key value]`, for Elle's `rw-register`. Objects that were
//!   deleted or written under a condition are left out: Elle knows no such operations.
//!
//! Jepsen's processes do one thing after another, and one whose outcome is unknown never does anything again: so
//! processes are dealt out here, the lowest free number to each operation. Refused conditions are `:fail`, so Jepsen
//! does not judge them. Faults are operations of the process `:nemesis`. Lists, uploads and versions are left out.

use crate::history::{Action, Kind, Operation};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write;

/// The history for Knossos: of all keys, or of one with bare values.
pub fn register(operations: &[Operation], only: Option<&str>) -> String {
    let mut calls: Vec<Call> = Vec::new();
    let lives = merged(operations);
    let wanted = |key: &str| only.is_none_or(|only| only == key);
    let keys: BTreeSet<&str> = lives
        .iter()
        .filter(|life| register_call(&life.operation.action).is_some())
        .filter_map(|life| life.operation.action.key())
        .filter(|key| wanted(key))
        .collect();
    let wrap = |key: &str, value: &str| {
        if only.is_some() { value.to_owned() } else { format!("[{} {value}]", text(key)) }
    };
    for key in keys {
        let value = wrap(key, ABSENT);
        calls.push(Call {
            process: None,
            f: "write".into(),
            asked: value.clone(),
            answered: value,
            from: 0,
            to: Some(0),
            end: "ok",
        });
    }
    for life in &lives {
        let operation = life.operation;
        if let Action::Fault(fault) = &operation.action {
            let (f, asked) = (keyword(&fault.fault), text(&fault.target));
            let (from, to) = (operation.invoked_us, operation.told_us);
            let process = Some(":nemesis");
            let answered = asked.clone();
            calls.push(Call { process, f, asked, answered, from, to, end: "info" });
            continue;
        }
        let Some(key) = operation.action.key().filter(|key| wanted(key)) else { continue };
        let Some((f, asked, answered)) = register_call(&operation.action) else { continue };
        let (asked, answered) = (wrap(key, &asked), wrap(key, &answered));
        let end = life.end_for(f == "read");
        let (from, to) = (life.from, life.told);
        calls.push(Call { process: None, f: f.into(), asked, answered, from, to, end });
    }
    lines(&calls)
}

/// The history for Elle; and how many keys it leaves out.
pub fn elle(operations: &[Operation]) -> (String, usize) {
    let left_out: HashSet<&str> = operations
        .iter()
        .filter(|operation| {
            let action = &operation.action;
            matches!(action, Action::Create { .. } | Action::Swap { .. } | Action::Delete { .. })
        })
        .filter_map(|operation| operation.action.key())
        .collect();
    let mut calls = Vec::new();
    for life in merged(operations) {
        let action = &life.operation.action;
        let Some(key) = action.key().filter(|key| !left_out.contains(key)) else { continue };
        let Some((f, asked, answered)) = register_call(action) else { continue };
        let mark = if f == "read" { ":r" } else { ":w" };
        let micro = |value: &str| {
            let value = if value == ABSENT { "nil" } else { value };
            format!("[[{mark} {} {value}]]", text(key))
        };
        let end = life.end_for(f == "read");
        let (asked, answered) = (micro(&asked), micro(&answered));
        let (from, to) = (life.from, life.told);
        calls.push(Call { process: None, f: "txn".into(), asked, answered, from, to, end });
    }
    (lines(&calls), left_out.len())
}

const ABSENT: &str = ":absent";

/// The verb, the value when it is invoked and the value when it is ok.
fn register_call(action: &Action) -> Option<(&'static str, String, String)> {
    let write = |value: String| Some(("write", value.clone(), value));
    let cas = |old: &str, new: &u64| {
        let pair = format!("[{old} {new}]");
        Some(("cas", pair.clone(), pair))
    };
    let read = |value: Option<u64>| {
        let seen = value.map_or_else(|| ABSENT.to_owned(), |value| value.to_string());
        Some(("read", "nil".to_owned(), seen))
    };
    match action {
        Action::Put { value, .. } | Action::Complete { value, .. } => write(value.to_string()),
        Action::Delete { .. } => write(ABSENT.to_owned()),
        Action::Create { value, .. } => cas(ABSENT, value),
        Action::Swap { expect, value, .. } => cas(&expect.to_string(), value),
        Action::Get { value, .. } => read(*value),
        Action::Slice { pieces, .. } => read(pieces.first().and_then(|piece| piece.value)),
        Action::List { .. }
        | Action::Begin { .. }
        | Action::Part { .. }
        | Action::Abort { .. }
        | Action::Versions { .. }
        | Action::GetVersion { .. }
        | Action::DeleteVersion { .. }
        | Action::Fault(_)
        | Action::Plan { .. } => None,
    }
}

/// An operation's life; the completions of one upload have one.
struct Life<'a> {
    operation: &'a Operation,
    from: u64,
    told: Option<u64>,
    end: Kind,
}

impl Life<'_> {
    fn end_for(&self, is_read: bool) -> &'static str {
        match self.end {
            Kind::Ok => "ok",
            Kind::Fail => "fail",
            Kind::Info | Kind::Invoke if is_read => "fail",
            Kind::Info | Kind::Invoke => "info",
        }
    }
}

fn merged(operations: &[Operation]) -> Vec<Life<'_>> {
    let mut lives: Vec<Life<'_>> = Vec::with_capacity(operations.len());
    let mut completions: HashMap<(&str, u64), usize> = HashMap::new();
    for operation in operations {
        let (from, told, end) = (operation.invoked_us, operation.told_us, operation.end);
        let life = Life { operation, from, told, end };
        let Action::Complete { key, upload, .. } = &operation.action else {
            lives.push(life);
            continue;
        };
        let at = *completions.entry((key, *upload)).or_insert(lives.len());
        match lives.get_mut(at) {
            None => lives.push(life),
            Some(known) => known.join(&life),
        }
    }
    lives
}

impl Life<'_> {
    /// Takes in another completion of the same upload: ok where one is, unknown where one may be.
    fn join(&mut self, other: &Self) {
        let rank = |end: Kind| match end {
            Kind::Ok => 2,
            Kind::Info | Kind::Invoke => 1,
            Kind::Fail => 0,
        };
        if self.end == Kind::Fail && other.end != Kind::Fail {
            self.from = other.from;
        }
        self.told = match (rank(self.end), rank(other.end)) {
            (2, 2) => self.told.min(other.told),
            (own, new) if own >= new => self.told,
            _ => other.told,
        };
        if rank(other.end) > rank(self.end) {
            self.end = other.end;
        }
    }
}

/// One operation as Jepsen sees it: two lines.
struct Call {
    process: Option<&'static str>,
    f: String,
    asked: String,
    answered: String,
    from: u64,
    to: Option<u64>,
    end: &'static str,
}

fn lines(calls: &[Call]) -> String {
    let mut moments: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * calls.len());
    for (index, call) in calls.iter().enumerate() {
        moments.push((call.from, false, index));
        moments.push((call.to.unwrap_or(u64::MAX), true, index));
    }
    moments.sort_unstable();
    let last = calls.iter().map(|call| call.to.unwrap_or(call.from)).max().unwrap_or(0);
    let mut processes = Processes::default();
    let mut text = String::new();
    for (index, (at, is_end, call)) in moments.into_iter().enumerate() {
        let call_index = call;
        let call = &calls[call_index];
        let process = match (call.process, is_end) {
            (Some(process), _) => process.to_owned(),
            (None, false) => processes.take(call_index).to_string(),
            (None, true) => processes.give_back(call_index, call.end != "info").to_string(),
        };
        let (kind, value) = match (is_end, call.end) {
            (false, _) if call.process.is_some() => ("info", &call.asked),
            (false, _) => ("invoke", &call.asked),
            (true, "ok") => ("ok", &call.answered),
            (true, end) => (end, &call.asked),
        };
        let time = at.min(last).saturating_mul(1_000);
        let f = &call.f;
        writeln!(
            text,
            "{{:index {index}, :type :{kind}, :process {process}, :time {time}, :f :{f}, :value {value}}}"
        )
        .expect("a string takes everything");
    }
    text
}

/// Processes that are free, and who has which.
#[derive(Default)]
struct Processes {
    free: BTreeSet<u64>,
    next: u64,
    taken: BTreeMap<usize, u64>,
}

impl Processes {
    fn take(&mut self, call: usize) -> u64 {
        let process = self.free.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.taken.insert(call, process);
        process
    }

    fn give_back(&mut self, call: usize, is_free: bool) -> u64 {
        let process = self.taken.remove(&call).unwrap_or_default();
        if is_free {
            self.free.insert(process);
        }
        process
    }
}

/// A string in EDN.
fn text(plain: &str) -> String {
    let mut quoted = String::with_capacity(plain.len() + 2);
    quoted.push('"');
    for letter in plain.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            _ => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

/// A word as the name of a keyword.
fn keyword(plain: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
    plain.chars().map(|letter| if is_plain(letter) { letter } else { '-' }).collect()
}
