//! The metadata role: the Raft groups of this node, their snapshots, and the service that proposes and reads.
//!
//! Each range of the catalog is one group. All groups of a node share one WAL and one ordered map; the log is the
//! truth, a snapshot file is the truth below it, and the map is a view that may be lost. What it leaves out: what
//! commands mean (crate `catalog`), how bytes reach the disk (`wal`, `map`), how nodes are dialled (`wire`).

mod agreement;
mod birth;
mod boots;
mod codec;
mod directory;
mod group;
mod keeper;
mod ledger;
mod log;
mod machine;
mod members;
mod network;
mod node;
mod raft;
mod refill;
mod runtime;
mod service;
mod snapshot;
#[cfg(test)]
mod suite_tests;

pub use group::NotDone;
pub use ledger::Versions;
pub use network::Addresses;
pub use node::{Beginning, Formation, GroupStatus, MetaConfig, MetaError, MetaNode};
pub use raft::Timing;
pub use refill::DamagedRange;
