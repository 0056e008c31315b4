//! The shard engine of one disk: segments, index, group commit, recovery.
//!
//! A disk is a directory. Shards shorter than 64 KiB are appended in batches to prefilled *small segments*; longer ones
//! stream into space reserved in *large segments*. One committer a disk writes what has come in since its last round,
//! syncs each touched segment once, and only then answers and publishes (D1). All bytes are under CRC-32C and are
//! verified before a reader sees them (D5). The index is in memory; after a crash it is rebuilt from a checkpoint and
//! the segments (D9). The byte tables are in `docs/formats/store.md`.
//!
//! The store knows shards, not objects.

mod buffer;
mod checkpoint;
mod committer;
mod compaction;
mod error;
mod format;
mod graves;
mod index;
mod large;
mod readers;
mod reclaim;
mod recovery;
mod scrub;
mod segment;
mod small;
mod store;
mod superblock;
mod visits;
mod writer;

pub use error::StoreError;
pub use format::SMALL_SHARD_BYTES_END;
pub use recovery::Recovered;
pub use scrub::{Damage, ScrubProgress, ScrubStep};
pub use store::{Committed, Owner, ShardKey, ShardMeta, Space, Store, StoreConfig, Usage};
pub use writer::ShardWriter;

#[cfg(test)]
mod tests;
