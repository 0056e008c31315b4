//! What a replica of a range has found of itself (R4, D7).

use crate::{BucketId, Versioned};
use serde::{Deserialize, Serialize};

/// A bucket whose usage is not the sum of its objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrongUsage {
    /// The bucket.
    pub bucket: BucketId,
    /// Objects and bytes, as the range says.
    pub told: (u64, u64),
    /// Objects and bytes that are there.
    pub counted: (u64, u64),
}

/// How the state of a replica stands to that of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Agreement {
    /// Too few are at an entry that they have in common.
    Unknown,
    /// All voters have the same.
    All,
    /// A majority of the voters has the same; of the others nothing is known.
    Majority,
    /// A majority has the same, and others have another one.
    OthersDiffer,
    /// A majority has another one: the replica begins anew.
    Differs,
    /// Some differ, and none has what a majority has: the range takes no writes.
    Divided,
}

/// A visit of every row of a replica, and a comparison with the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// Up to which entry it had applied.
    pub applied: u64,
    /// By which version it applies.
    pub apply_version: u32,
    /// How many rows it has.
    pub rows: u64,
    /// The state hash there, as it is kept.
    pub hash: u128,
    /// The sum over the rows: the same, unless a row has changed past the log.
    pub counted: u128,
    /// Buckets whose usage is wrong.
    pub usage: Vec<WrongUsage>,
    /// What the others have.
    pub agreement: Agreement,
    /// Whether it takes no part any more for what was found, and begins anew.
    pub begins_anew: bool,
}

impl ReplicaReport {
    /// Whether nothing was found.
    pub fn is_right(&self) -> bool {
        let agrees = !matches!(self.agreement, Agreement::Differs | Agreement::Divided);
        self.hash == self.counted && self.usage.is_empty() && agrees
    }
}

impl Versioned for ReplicaReport {
    const NAME: &'static str = "report of a replica";
    const VERSION: u8 = 1;
}
