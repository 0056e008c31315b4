//! The data node: serves the shards of its disks over the internal port, and says how its disks are.
//!
//! Shard bytes travel as HTTP bodies ([`ashlar_wire::shard`] says how requests are written); everything else is gRPC.
//! A PUT is answered when the shard is durable and what came is what was sent (D1); a GET sends only verified bytes
//! (D5); a write under an older epoch of its placement group is refused (R12). A shard is deleted
//! only when the range that has its extent in the gc queue says so (D2). Every block is verified within
//! a cycle, and what is damaged is healed from other shards. A bad disk is out, or suspect, and the others are served;
//! disks come and go while the node runs. A slot that moves here is copied by this node, and one that has moved away is
//! given up by it.

mod collect;
mod copy;
mod disks;
mod gate;
mod inventory;
mod leave;
mod lists;
mod node;
mod pace;
mod scrub;
mod service;
mod shards;
mod wanted;

pub use collect::GarbageJudge;
pub use copy::{IncomingMove, MoveSource};
pub use disks::{DiskCondition, DiskReport, Stores};
pub use node::{DataConfig, DataNode, DataNodeError};
pub use scrub::ColumnSource;
pub use service::DataService;

#[cfg(test)]
mod tests;
