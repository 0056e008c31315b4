//! The write-ahead log that all Raft groups of a node share.
//!
//! Records of all groups wait in one queue; one writer thread takes everything that waits, writes it as one batch, syncs
//! once and then answers in order. So the number of syncs does not grow with the number of groups or writers.
//!
//! | file | subject |
//! |---|---|
//! | `wal` | the handle: submit, read, close |
//! | `table` | what is known in memory: states, entries and where they lie |
//! | `writer` | the thread: batches, file switch, moving of cold entries, freeing |
//! | `files` | the spare files and their zeroing ahead of the writer |
//! | `recovery` | from files to table, telling a torn tail from corruption |
//! | `format` | the bytes |
//!
//! It knows nothing of Raft but that entries have an index and a term: votes, log ids, descriptors are opaque.

mod error;
mod files;
mod format;
mod limits;
mod record;
mod recovery;
mod table;
mod wal;
mod writer;

#[cfg(test)]
mod tests;

pub use error::WalError;
pub use record::{Entry, GroupHealth, GroupState, Note, Record, WalConfig};
pub use wal::{Done, Wal};
