//! A range counted anew. Its sums, the state hash and the usage of buckets, are kept up by difference on the way of apply;
//! a row that was changed past it, or never, shows only where every row is visited (R4, D7).

use crate::key::{self, family};
use crate::range::HASH_FIELD;
use crate::root::root_hash_key;
use crate::row::{HashRow, UsageRow, counted_bytes};
use crate::txn::row_hash;
use crate::{CatalogError, View, descriptor_in, export, root_export};
use ashlar_types::{BucketId, RangeId, WrongUsage, decode};
use std::collections::BTreeMap;

/// What a visit of every row of a range has found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recount {
    /// How many rows there are.
    pub rows: u64,
    /// The state hash, as it is kept up.
    pub told: u128,
    /// The sum over the rows.
    pub counted: u128,
    /// Where usage is not the sum of the objects.
    pub usage: Vec<WrongUsage>,
}

/// Objects and bytes of buckets.
type Sums = BTreeMap<BucketId, (u64, u64)>;

impl Recount {
    /// Whether all sums are those of the rows.
    pub fn is_right(&self) -> bool {
        self.told == self.counted && self.usage.is_empty()
    }
}

/// Visits every row of a range in a view. `None`: it has none there.
pub fn recount(view: &dyn View, id: RangeId) -> Result<Option<Recount>, CatalogError> {
    let Some(descriptor) = descriptor_in(view, id)? else { return Ok(None) };
    let missing = || CatalogError::Inconsistent("a row of a range's head is missing");
    let (told, counted) = (Sums::new(), Sums::new());
    let mut rows = Rows { id, rows: 0, sum: RowSum::of(id), told, counted };
    let mut failed = None;
    export(view, &descriptor, &mut |row, value| {
        if let Err(error) = rows.take(row, value) {
            failed.get_or_insert(error);
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    // rows of buckets that a split has given away stay for a while, and say nothing
    rows.told.retain(|bucket, _| descriptor.interval.overlaps_bucket(*bucket));
    let buckets = rows.told.keys().chain(rows.counted.keys()).copied();
    let differs = |bucket: BucketId| {
        let of = |sums: &Sums| sums.get(&bucket).copied().unwrap_or_default();
        let (told, counted) = (of(&rows.told), of(&rows.counted));
        (told != counted).then_some((bucket, WrongUsage { bucket, told, counted }))
    };
    let usage: BTreeMap<_, _> = buckets.filter_map(differs).collect();
    Ok(Some(Recount {
        rows: rows.rows,
        told: rows.sum.told.ok_or_else(missing)?,
        counted: rows.sum.counted,
        usage: usage.into_values().collect(),
    }))
}

/// Visits every row of the root in a view. `None`: it has none there.
pub fn recount_root(view: &dyn View) -> Result<Option<Recount>, CatalogError> {
    let mut sum = RowSum::of(RangeId::ROOT);
    let (mut rows, mut failed) = (0, None);
    root_export(view, &mut |row, value| {
        rows += 1;
        if let Err(error) = sum.take(row, value) {
            failed.get_or_insert(error);
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let usage = Vec::new();
    Ok(sum.told.map(|told| Recount { rows, told, counted: sum.counted, usage }))
}

/// The sum over the rows of a range, and what its row of the state hash says, whichever way they come.
#[derive(Debug)]
pub struct RowSum {
    /// The key of the row that is not under the sum.
    own: Vec<u8>,
    told: Option<u128>,
    counted: u128,
}

impl RowSum {
    /// Of no rows yet.
    pub fn of(range: RangeId) -> Self {
        let own = match range {
            RangeId::ROOT => root_hash_key(),
            range => key::state(range, HASH_FIELD),
        };
        Self { own, told: None, counted: 0 }
    }

    /// Adds a row.
    pub fn take(&mut self, row: &[u8], value: &[u8]) -> Result<(), CatalogError> {
        if row == self.own {
            self.told = Some(decode::<HashRow>(value)?.0);
        } else {
            self.counted = self.counted.wrapping_add(row_hash(row, value));
        }
        Ok(())
    }

    /// Whether the rows are those of the state hash. Where nothing was applied there is neither.
    pub fn is_right(&self) -> bool {
        self.told.unwrap_or_default() == self.counted
    }
}

/// The sums over the rows that were visited.
struct Rows {
    id: RangeId,
    rows: u64,
    sum: RowSum,
    /// As usage rows say.
    told: Sums,
    /// Of the objects themselves.
    counted: Sums,
}

impl Rows {
    fn take(&mut self, row: &[u8], value: &[u8]) -> Result<(), CatalogError> {
        self.rows += 1;
        self.sum.take(row, value)?;
        let malformed = || CatalogError::Inconsistent("the key of a row");
        let number = |from: usize| row.get(from..from + 8).and_then(key::read_u64).map(BucketId);
        if let Some(size) = counted_bytes(row, value)? {
            let bucket = number(1).ok_or_else(malformed)?;
            let (objects, bytes) = self.counted.entry(bucket).or_default();
            *objects += 1;
            *bytes += size;
        } else if row.starts_with(&key::of_range(family::USAGE, self.id)) {
            let UsageRow { objects, bytes } = decode(value)?;
            self.told.insert(number(9).ok_or_else(malformed)?, (objects, bytes));
        }
        Ok(())
    }
}
