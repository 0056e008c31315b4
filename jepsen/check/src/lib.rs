//! Histories of what clients did and saw, and checkers that say whether the contract allows them.
//!
//! A history is a list of events as JSON lines: a client invokes an operation, and later it is ok, it failed (it did
//! not happen) or its outcome is unknown (`info`). `register` judges each key as a linearizable register (C1, C2, C5,
//! C6, C8), `conditional` judges races of conditional puts (C3), `list` judges pages (C4).
//!
//! Left out: a search over orders (WGL). With unique values, intervals decide reads and writes exactly and in
//! n log n, and a search gives up on long histories with unknown outcomes.

pub mod conditional;
pub mod history;
pub mod list;
pub mod register;

pub use history::{Action, Event, History, Kind, Operation};

/// Every violation of every checker, each in one sentence.
pub fn check(history: &History) -> Vec<String> {
    let operations = match history.operations() {
        Ok(operations) => operations,
        Err(malformed) => return vec![format!("the history itself is broken: {malformed}")],
    };
    let mut violations = register::check(&operations);
    violations.extend(conditional::check(&operations));
    violations.extend(list::check(&operations));
    violations
}
