//! Clients that record what they did and saw, for the harnesses that are cruel to real clusters meanwhile.
//!
//! `recorder` is a client whose every call enters a history; `pieces` says from which write bytes come; `workload` is
//! the mix that the checkers judge, and the probes that measure gaps.

mod pieces;
mod recorder;
mod workload;

pub use recorder::{BUCKET, Recorder, Strike};
pub use workload::Workload;
