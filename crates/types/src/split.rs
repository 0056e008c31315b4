//! A range becomes two: where, what came of it, and how far it is (`docs/adr/0020`).

use crate::{KeyPoint, RangeDescriptor, RangeId};
use serde::{Deserialize, Serialize};

/// The first version of apply that splits: a range that applies by an earlier one refuses to.
pub const SPLIT_APPLY_VERSION: u32 = 2;

/// Where a range is split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitAt {
    /// What the right side will be called: an id that was never used.
    pub child: RangeId,
    /// The first key of the right side.
    pub at: KeyPoint,
}

/// Both sides of a split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitDone {
    /// What the range has kept.
    pub left: RangeDescriptor,
    /// What is a range of its own.
    pub right: RangeDescriptor,
}

/// How far the splits of a range are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SplitState {
    /// The split that is prepared.
    pub prepared: Option<SplitAt>,
    /// Whether steps are left: of the prepared split, or of the last one, which leaves rows to be removed.
    pub more_steps: bool,
    /// Splits of which the root's directory may not know yet, the oldest first.
    pub untold: Vec<SplitDone>,
    /// The objects of the range.
    pub objects: u64,
    /// By which version the range applies what is in its log.
    pub apply_version: u32,
}

impl SplitState {
    /// Whether the range knows splits at all.
    pub fn is_supported(&self) -> bool {
        self.apply_version >= SPLIT_APPLY_VERSION
    }
}
