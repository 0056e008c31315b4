//! The shape of a history, as it is recorded and as it is judged.
//!
//! Times are microseconds of one monotonic clock: all clients of a history run in one process. An operation that was
//! invoked and never ended is unknown, as one that ended with `info` is: the interval in which it may happen is open.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Microseconds since the history began.
    pub at_us: u64,
    /// Names the operation: its invocation and its end carry the same number.
    pub operation: u64,
    /// Where in its life the operation is.
    pub kind: Kind,
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

/// What an operation does. Every written value is unique in its history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "do")]
pub enum Action {
    /// Write a value.
    Put {
        /// The object.
        key: String,
        /// Its new value.
        value: u64,
    },
    /// Write a value if there is no object (`If-None-Match: *`).
    Create {
        /// The object.
        key: String,
        /// Its value, should it win.
        value: u64,
    },
    /// Remove the object.
    Delete {
        /// The object.
        key: String,
    },
    /// Read the object; on `ok` what was there.
    Get {
        /// The object.
        key: String,
        /// The value that was read, none where no object was.
        #[serde(default)]
        value: Option<u64>,
    },
    /// List all keys below a prefix; on `ok` the keys in the order they came.
    List {
        /// The prefix.
        prefix: String,
        /// The keys.
        #[serde(default)]
        keys: Vec<String>,
    },
}

/// An operation with its whole life.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Its number.
    pub number: u64,
    /// What it did; with what it saw, where it is ok.
    pub action: Action,
    /// When it was invoked.
    pub invoked_us: u64,
    /// When its end was known: never, where it is unknown.
    pub ended_us: u64,
    /// How it ended.
    pub end: Kind,
}

/// What recorded clients did.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The events, in the order they were recorded.
    pub events: Vec<Event>,
}

impl History {
    /// Reads JSON lines.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        Ok(Self { events: lines.map(serde_json::from_str).collect::<Result<_, _>>()? })
    }

    /// Writes JSON lines.
    pub fn to_lines(&self) -> String {
        let line = |event| serde_json::to_string(event).expect("an event is plain data");
        self.events.iter().map(|event| line(event) + "\n").collect()
    }

    /// Joins events to operations, by number.
    pub fn operations(&self) -> Result<Vec<Operation>, String> {
        let mut operations = BTreeMap::new();
        for event in &self.events {
            let number = event.operation;
            if event.kind == Kind::Invoke {
                let open = Operation {
                    number,
                    action: event.action.clone(),
                    invoked_us: event.at_us,
                    ended_us: u64::MAX,
                    end: Kind::Info,
                };
                if operations.insert(number, open).is_some() {
                    return Err(format!("operation {number} is invoked twice"));
                }
                continue;
            }
            let Some(open) = operations.get_mut(&number) else {
                return Err(format!("operation {number} ends before it is invoked"));
            };
            open.end = event.kind;
            if event.kind != Kind::Info {
                open.ended_us = event.at_us;
                open.action = event.action.clone();
            }
        }
        Ok(operations.into_values().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_they_went() {
        let action = Action::Put { key: "a".into(), value: 7 };
        let invoked = Event { at_us: 1, operation: 0, kind: Kind::Invoke, action: action.clone() };
        let history = History {
            events: vec![invoked, Event { at_us: 5, operation: 0, kind: Kind::Ok, action }],
        };
        let again = History::parse(&history.to_lines()).unwrap();
        assert_eq!(again.events, history.events);
        let operation = &again.operations().unwrap()[0];
        assert_eq!((operation.invoked_us, operation.ended_us, operation.end), (1, 5, Kind::Ok));
    }

    #[test]
    fn what_never_ended_is_unknown() {
        let line =
            r#"{"at_us":1,"operation":3,"kind":"invoke","action":{"do":"delete","key":"a"}}"#;
        let operation = &History::parse(line).unwrap().operations().unwrap()[0];
        assert_eq!((operation.ended_us, operation.end), (u64::MAX, Kind::Info));
    }
}

/// Short words for the stories of the checkers' tests.
#[cfg(test)]
pub(crate) mod tests_support {
    use super::{Action, Kind, Operation};

    fn operation(action: Action, invoked_us: u64, ended_us: u64, end: Kind) -> Operation {
        let ended_us = if end == Kind::Info { u64::MAX } else { ended_us };
        Operation { number: 0, action, invoked_us, ended_us, end }
    }

    pub(crate) fn put(key: &str, value: u64, from: u64, to: u64, end: Kind) -> Operation {
        operation(Action::Put { key: key.into(), value }, from, to, end)
    }

    pub(crate) fn create(key: &str, value: u64, from: u64, to: u64, end: Kind) -> Operation {
        operation(Action::Create { key: key.into(), value }, from, to, end)
    }

    pub(crate) fn delete(key: &str, from: u64, to: u64, end: Kind) -> Operation {
        operation(Action::Delete { key: key.into() }, from, to, end)
    }

    pub(crate) fn get(key: &str, value: Option<u64>, from: u64, to: u64) -> Operation {
        operation(Action::Get { key: key.into(), value }, from, to, Kind::Ok)
    }

    pub(crate) fn list(prefix: &str, keys: &[&str], from: u64, to: u64) -> Operation {
        let keys = keys.iter().map(|&key| key.into()).collect();
        operation(Action::List { prefix: prefix.into(), keys }, from, to, Kind::Ok)
    }

    /// Numbers the operations in the order they are told.
    pub(crate) fn story(operations: &[Operation]) -> Vec<Operation> {
        (0..)
            .zip(operations)
            .map(|(number, operation)| Operation { number, ..operation.clone() })
            .collect()
    }
}
