//! The metadata state machine: command and state in, result and writes out.

mod map;

pub use map::{MapError, OrderedMap, View, Writes};
