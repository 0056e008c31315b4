//! The metadata state machine: command and state in, result and writes out.
//!
//! Apply is pure (R9): it reads a [`View`] of the ordered map, an entry and the in-memory head, and gives results and the
//! rows to write. It knows no clock, no randomness and no unordered map; what must be the same everywhere is in the entry.
//!
//! - [`Range`]: one slice of the key space: objects, uploads, gc queue, repair index, usage, remembered results.
//! - [`Root`]: what all share: cluster map, bucket directory, range directory, sessions.
//! - [`OrderedMap`], [`View`], [`Writes`]: the map on which both stand; the engines are in crate `map`.
//!
//! What it leaves out: replication (crate `meta`), versioned buckets, merge.

mod bucket;
mod content;
mod inventory;
mod key;
mod list;
mod map;
mod merged;
mod object;
mod placed;
mod range;
mod read;
mod recode;
mod recount;
mod repair;
mod retry;
mod root;
mod row;
mod split;
mod step;
mod txn;
mod upload;
mod versions;

use ashlar_types::ApplyVersions;
pub use key::{KeySpan, system_key};
pub use map::{MapError, OrderedMap, View, Visit, Writes};
pub use range::{
    AppliedEntry, Range, descriptor_in, descriptor_row, export, leave_out, owned_intervals,
    removable_intervals,
};
pub use read::RangeReader;
pub use recount::{Recount, RowSum, recount, recount_root};
pub use root::{Root, root_export, root_owned_intervals};

/// The newest versions of apply that this binary knows.
pub const KNOWN_VERSIONS: ApplyVersions = ApplyVersions { root: 3, ranges: 3 };

/// The state could not be read or is not understood. Never the same on every replica: this replica stops, drops its view
/// and the [`Range`] or [`Root`] that failed, and rebuilds them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// The engine failed.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A row is damaged, or was written by a newer binary.
    #[error("a row of the catalog is not readable: {0}")]
    Row(#[from] ashlar_types::DecodeError),
    /// Rows contradict each other.
    #[error(
        "the catalog contradicts itself: {0}; rebuild this replica from a snapshot and the log"
    )]
    Inconsistent(&'static str),
    /// The log asks for a version of apply that this binary lacks.
    #[error("what it holds is applied by version {found}, this binary knows {known}: upgrade it")]
    ApplyVersion {
        /// The version asked for.
        found: u32,
        /// The newest one that is known here.
        known: u32,
    },
}

#[cfg(test)]
mod tests;
