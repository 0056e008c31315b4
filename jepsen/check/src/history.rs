//! The shape of a history, as it is recorded and as it is judged.
//!
//! A history is a list of events, one JSON object a line: a client invokes an operation, and later it is ok, it failed
//! (it did not happen) or its outcome is unknown (`info`). Times are microseconds of one monotonic clock: all clients
//! of a history run in one process. An operation that was invoked and never ended is unknown, as one that ended with
//! `info` is: the interval in which it may happen is open to the end of time (C7).
//!
//! Faults are operations of the harness itself: invoked when it strikes, ok when it has healed, with the evidence that
//! the fault bit. So one kind of line tells everything, as in Jepsen's histories.

use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::io::BufRead;

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Microseconds since the history began.
    pub at_us: u64,
    /// Names the operation: its invocation and its end carry the same number.
    pub operation: u64,
    /// Where in its life the operation is.
    pub kind: Kind,
    /// Who does it: a client does one thing after another.
    #[serde(default)]
    pub client: u64,
    /// The gateway that was asked, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<u64>,
    /// On `fail`: why it was not applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Why>,
    /// What it does; on `ok` of a read or list, what it saw.
    pub action: Action,
}

/// A moment in an operation's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The client sent it.
    Invoke,
    /// The client was told that it happened.
    Ok,
    /// The client was told that it did not happen.
    Fail,
    /// The client does not know.
    Info,
}

/// Why an operation was not applied. Some reasons claim something about the object, and are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// Its condition does not hold (412).
    Condition,
    /// What it names does not exist (404).
    Missing,
    /// Nobody could do it now (503, 507, no connection).
    Unavailable,
    /// Any other refusal.
    Refused,
}

/// What an operation does. Every written value is unique in its history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Action {
    /// Write a value.
    Put {
        /// The object.
        key: String,
        /// Its new value.
        value: u64,
        /// The length of the value, where ranges of it are read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
        /// On `ok` in a versioned bucket: the version's id.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<String>,
    },
    /// Write a value if there is no object (`If-None-Match: *`).
    Create {
        /// The object.
        key: String,
        /// Its value, should it win.
        value: u64,
        /// The length of the value, where ranges of it are read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
    },
    /// Write a value if the object still has the one that is expected (`If-Match`).
    Swap {
        /// The object.
        key: String,
        /// The value whose ETag is demanded.
        expect: u64,
        /// Its new value, should it win.
        value: u64,
        /// The length of the value, where ranges of it are read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
    },
    /// Remove the object.
    Delete {
        /// The object.
        key: String,
        /// On `ok` in a versioned bucket: the id of the delete marker.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<String>,
    },
    /// Read the whole object, or its ETag by HEAD; on `ok` what was there.
    Get {
        /// The object.
        key: String,
        /// The value that was read, none where no object was.
        #[serde(default)]
        value: Option<u64>,
    },
    /// Read a range, or a whole object whose bytes are not those of one value; on `ok` whose bytes came.
    Slice {
        /// The object.
        key: String,
        /// The first byte that was asked for.
        from: u64,
        /// How many bytes were asked for.
        length: u64,
        /// The value that the answer's ETag names; 0 where it surely is none of those written, none where that is not
        /// known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tag: Option<u64>,
        /// The bytes that came, in order. Empty where there was no object.
        #[serde(default)]
        pieces: Vec<Piece>,
    },
    /// List keys below a prefix; on `ok` the keys in the order they came.
    List {
        /// The prefix.
        prefix: String,
        /// Only keys behind this one: the last key of the page before.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        after: String,
        /// The keys.
        #[serde(default)]
        keys: Vec<String>,
        /// Whether the answer said that there is more behind the last key.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more: bool,
    },
    /// Begin a multipart upload.
    Begin {
        /// The object.
        key: String,
        /// The harness's own name of the upload, told before it has an id.
        upload: u64,
    },
    /// Upload a part.
    Part {
        /// The object.
        key: String,
        /// The upload.
        upload: u64,
        /// The part's number.
        number: u32,
    },
    /// Make the parts an object.
    Complete {
        /// The object.
        key: String,
        /// The upload.
        upload: u64,
        /// The numbers of the parts that it names.
        parts: Vec<u32>,
        /// The value that all parts together are.
        value: u64,
        /// The length of the value.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
        /// On `ok`: what was answered, the ETag and whatever else must not change.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answer: Option<String>,
    },
    /// Drop a multipart upload.
    Abort {
        /// The object.
        key: String,
        /// The upload.
        upload: u64,
    },
    /// List all versions of an object; on `ok` newest first.
    Versions {
        /// The object.
        key: String,
        /// The versions, in the order they came.
        #[serde(default)]
        versions: Vec<Version>,
    },
    /// Read one version by its id.
    GetVersion {
        /// The object.
        key: String,
        /// The version's id.
        version: String,
        /// The value that was read, none where there is no such version.
        #[serde(default)]
        value: Option<u64>,
    },
    /// Remove one version for good.
    DeleteVersion {
        /// The object.
        key: String,
        /// The version's id.
        version: String,
    },
    /// Strike with a fault; ok when it has healed.
    Fault(Fault),
    /// What the run set out to show. Without it, every fault that was recorded must have bitten.
    Plan {
        /// Names of the faults, each of which must bite at least once.
        faults: Vec<String>,
        /// As many client operations at least must succeed.
        operations: u64,
    },
}

/// Bytes of a range, as far as they belong to one value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Where in the object they lie.
    pub at: u64,
    /// How many they are.
    pub length: u64,
    /// Whose bytes they are; none where no write has such bytes there.
    pub value: Option<u64>,
}

/// A version as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Its id.
    pub id: String,
    /// Its value; none for a delete marker, or where the list does not tell.
    #[serde(default)]
    pub value: Option<u64>,
    /// Whether it is said to be the current one.
    #[serde(default)]
    pub latest: bool,
}

/// A fault, and the evidence that it bit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What kind, in one word: `kill`, `pause`, `partition`.
    pub fault: String,
    /// Whom it hit.
    pub target: String,
    /// Whether clients were to be at work when it struck. A fault that strikes idle clients shows nothing then.
    #[serde(default)]
    pub under_load: bool,
    /// The moment at which it was seen to bite, none until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bit_at_us: Option<u64>,
    /// What was seen: a process that is gone, a counter that moved.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub evidence: String,
    /// No key may be without an acknowledged write for longer while the fault lasts; none where nothing is promised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap_us_max: Option<u64>,
}

impl Action {
    /// The object that it concerns; none for lists, faults and plans.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Put { key, .. }
            | Self::Create { key, .. }
            | Self::Swap { key, .. }
            | Self::Delete { key, .. }
            | Self::Get { key, .. }
            | Self::Slice { key, .. }
            | Self::Begin { key, .. }
            | Self::Part { key, .. }
            | Self::Complete { key, .. }
            | Self::Abort { key, .. }
            | Self::Versions { key, .. }
            | Self::GetVersion { key, .. }
            | Self::DeleteVersion { key, .. } => Some(key),
            Self::List { .. } | Self::Fault(_) | Self::Plan { .. } => None,
        }
    }

    /// The value that it writes.
    pub fn written(&self) -> Option<u64> {
        match self {
            Self::Put { value, .. }
            | Self::Create { value, .. }
            | Self::Swap { value, .. }
            | Self::Complete { value, .. } => Some(*value),
            Self::Delete { .. }
            | Self::Get { .. }
            | Self::Slice { .. }
            | Self::List { .. }
            | Self::Begin { .. }
            | Self::Part { .. }
            | Self::Abort { .. }
            | Self::Versions { .. }
            | Self::GetVersion { .. }
            | Self::DeleteVersion { .. }
            | Self::Fault(_)
            | Self::Plan { .. } => None,
        }
    }

    /// Whether it changes what an object's readers see.
    pub fn is_write(&self) -> bool {
        self.written().is_some() || matches!(self, Self::Delete { .. })
    }

    /// Whether a client does it, not the harness.
    pub fn is_of_client(&self) -> bool {
        !matches!(self, Self::Fault(_) | Self::Plan { .. })
    }

    /// Whether the end of an operation tells of what was invoked: same verb, same object, same value.
    fn is_end_of(&self, invoked: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(invoked)
            && self.key() == invoked.key()
            && self.written() == invoked.written()
    }
}

/// An operation with its whole life.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Its number.
    pub number: u64,
    /// Who did it.
    pub client: u64,
    /// The gateway that was asked, where it is known.
    pub gateway: Option<u64>,
    /// What it did; with what it saw, where it is ok.
    pub action: Action,
    /// When it was invoked.
    pub invoked_us: u64,
    /// When it surely had ended: never, where its outcome is unknown.
    pub ended_us: u64,
    /// When its client stopped waiting, whatever it knew then; none where it never did.
    pub told_us: Option<u64>,
    /// How it ended.
    pub end: Kind,
    /// Why it failed, where it did.
    pub why: Option<Why>,
}

/// Joins events to operations, as they come.
#[derive(Default)]
pub struct Joiner {
    operations: Vec<Operation>,
    open: HashMap<u64, usize>,
    numbers: HashSet<u64>,
}

impl Joiner {
    /// Takes the next event; an error where it cannot follow those before.
    pub fn take(&mut self, event: Event) -> Result<(), String> {
        let number = event.operation;
        if event.kind == Kind::Invoke {
            if !self.numbers.insert(number) {
                return Err(format!("operation {number} is invoked twice"));
            }
            self.open.insert(number, self.operations.len());
            self.operations.push(Operation {
                number,
                client: event.client,
                gateway: event.gateway,
                action: event.action,
                invoked_us: event.at_us,
                ended_us: u64::MAX,
                told_us: None,
                end: Kind::Info,
                why: None,
            });
            return Ok(());
        }
        let Some(index) = self.open.remove(&number) else {
            return Err(format!("operation {number} ends before it is invoked, or twice"));
        };
        let open = &mut self.operations[index];
        if event.at_us < open.invoked_us {
            return Err(format!("operation {number} ends earlier than it is invoked"));
        }
        if !event.action.is_end_of(&open.action) {
            return Err(format!("operation {number} ends as another one than was invoked"));
        }
        open.end = event.kind;
        open.told_us = Some(event.at_us);
        open.gateway = open.gateway.or(event.gateway);
        if event.kind != Kind::Info {
            open.ended_us = event.at_us;
            open.action = event.action;
            open.why = event.why;
        }
        Ok(())
    }

    /// The operations in the order of their invocations; an error where no read could name its write.
    pub fn finish(self) -> Result<Vec<Operation>, String> {
        let mut writers: HashMap<u64, &Action> = HashMap::new();
        for operation in &self.operations {
            let Some(value) = operation.action.written() else { continue };
            let Some(other) = writers.insert(value, &operation.action) else { continue };
            if !is_repetition(other, &operation.action) {
                return Err(format!(
                    "value {value} is written twice: a read of it names no single write"
                ));
            }
        }
        drop(writers);
        Ok(self.operations)
    }
}

/// Completions of one upload may be repeated: they are one write.
fn is_repetition(one: &Action, two: &Action) -> bool {
    match (one, two) {
        (
            Action::Complete { key, upload, .. },
            Action::Complete { key: other_key, upload: other, .. },
        ) => upload == other && key == other_key,
        _ => false,
    }
}

/// What recorded clients did.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The events, in the order they were recorded.
    pub events: Vec<Event>,
}

impl History {
    /// Reads JSON lines.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut events = Vec::new();
        for_each_event(text.as_bytes(), |event| {
            events.push(event);
            Ok(())
        })?;
        Ok(Self { events })
    }

    /// Writes JSON lines.
    pub fn to_lines(&self) -> String {
        let line = |event| serde_json::to_string(event).expect("an event is plain data");
        self.events.iter().map(|event| line(event) + "\n").collect()
    }

    /// Joins events to operations, by number.
    pub fn operations(&self) -> Result<Vec<Operation>, String> {
        let mut joiner = Joiner::default();
        self.events.iter().cloned().try_for_each(|event| joiner.take(event))?;
        joiner.finish()
    }
}

/// Reads operations from JSON lines without keeping the events; says how many events there were.
pub fn read_operations(lines: impl BufRead) -> Result<(Vec<Operation>, u64), String> {
    let mut joiner = Joiner::default();
    let mut events = 0;
    for_each_event(lines, |event| {
        events += 1;
        joiner.take(event)
    })?;
    Ok((joiner.finish()?, events))
}

fn for_each_event(
    mut lines: impl BufRead,
    mut take: impl FnMut(Event) -> Result<(), String>,
) -> Result<(), String> {
    let mut line = String::new();
    for number in 1_u64.. {
        line.clear();
        let read = lines.read_line(&mut line).map_err(|error| format!("line {number}: {error}"))?;
        if read == 0 {
            break;
        }
        if line.trim().is_empty() {
            continue;
        }
        let event =
            serde_json::from_str(&line).map_err(|error| format!("line {number}: {error}"))?;
        take(event).map_err(|error| format!("line {number}: {error}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(at_us: u64, operation: u64, kind: Kind, action: Action) -> Event {
        Event { at_us, operation, kind, client: 0, gateway: None, why: None, action }
    }

    fn put(key: &str, value: u64) -> Action {
        Action::Put { key: key.into(), value, bytes: None, version: None }
    }

    #[test]
    fn lines_come_back_as_they_went() {
        let history = History {
            events: vec![
                event(1, 0, Kind::Invoke, put("a", 7)),
                Event { gateway: Some(1), client: 4, ..event(5, 0, Kind::Ok, put("a", 7)) },
            ],
        };
        let again = History::parse(&history.to_lines()).unwrap();
        assert_eq!(again.events, history.events);
        let operation = &again.operations().unwrap()[0];
        assert_eq!((operation.invoked_us, operation.ended_us, operation.end), (1, 5, Kind::Ok));
        assert_eq!(operation.gateway, Some(1), "the gateway is known when it answers");
        let (read, events) = read_operations(history.to_lines().as_bytes()).unwrap();
        assert_eq!((read.len(), events), (1, 2));
    }

    #[test]
    fn the_lines_are_those_of_the_readme() {
        let readme = include_str!("../README.md");
        let example = readme.split("```json\n").nth(1).and_then(|rest| rest.split("```").next());
        let history = History::parse(example.expect("the README shows lines")).unwrap();
        assert!(history.operations().unwrap().len() > 10);
        assert_eq!(history.to_lines().trim(), example.unwrap().trim());
    }

    #[test]
    fn what_never_ended_is_unknown() {
        let line =
            r#"{"at_us":1,"operation":3,"kind":"invoke","action":{"do":"delete","key":"a"}}"#;
        let operation = &History::parse(line).unwrap().operations().unwrap()[0];
        assert_eq!((operation.ended_us, operation.end), (u64::MAX, Kind::Info));
    }

    #[test]
    fn a_history_that_contradicts_itself_is_refused() {
        let broken = |events: Vec<Event>| History { events }.operations().unwrap_err();
        let invoke = |number, value| event(5, number, Kind::Invoke, put("a", value));
        assert!(broken(vec![invoke(0, 1), invoke(0, 2)]).contains("invoked twice"));
        assert!(broken(vec![event(1, 0, Kind::Ok, put("a", 1))]).contains("before it is invoked"));
        let end = |at, value| event(at, 0, Kind::Ok, put("a", value));
        assert!(broken(vec![invoke(0, 1), end(6, 1), end(7, 1)]).contains("or twice"));
        assert!(broken(vec![invoke(0, 1), end(4, 1)]).contains("earlier"));
        assert!(broken(vec![invoke(0, 1), end(6, 2)]).contains("another one"));
        assert!(broken(vec![invoke(0, 1), invoke(1, 1)]).contains("written twice"));
    }

    #[test]
    fn completions_of_one_upload_are_one_write() {
        let complete = |operation, upload| {
            let action = Action::Complete {
                key: "a".into(),
                upload,
                parts: vec![1],
                value: 9,
                bytes: None,
                answer: None,
            };
            event(operation, operation, Kind::Invoke, action)
        };
        let repeated = History { events: vec![complete(0, 1), complete(1, 1)] };
        assert_eq!(repeated.operations().unwrap().len(), 2);
        let two = History { events: vec![complete(0, 1), complete(1, 2)] };
        assert!(two.operations().unwrap_err().contains("written twice"));
    }

    #[test]
    fn a_cut_line_is_named() {
        let line = r#"{"at_us":1,"operation":3,"kind":"inv"#;
        assert!(History::parse(&format!("\n{line}")).unwrap_err().starts_with("line 2"));
    }
}
