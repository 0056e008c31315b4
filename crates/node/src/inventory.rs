//! What a disk holds, told to an audit: sums of cells, the shards in some of them, and whether certain ones are there.
//!
//! All of it comes from the index in memory. `false` is certain: what was acknowledged is in the index (D9). Nothing
//! here changes anything.

use crate::DataNode;
use ashlar_store::{ShardKey, ShardMeta, Store};
use ashlar_types::{
    CellSum, DiskAnswer, DiskQuery, Epoch, ExtentId, HeldShard, PgId, ShardCell, Slot,
};
use std::collections::{BTreeMap, BTreeSet};

/// Shards that are listed under one lock of the index.
const PAGE_SHARDS: usize = 4096;

impl DataNode {
    /// Answers an audit. Blocks for as long as a walk over the index takes.
    pub(crate) fn inventory(&self, query: &DiskQuery) -> DiskAnswer {
        let Some(store) = &self.store(query.disk()) else {
            return DiskAnswer::UnknownDisk;
        };
        match query {
            DiskQuery::Cells { shift, .. } => DiskAnswer::Cells(cells(store, *shift)),
            DiskQuery::Shards { shift, cells, .. } => {
                DiskAnswer::Shards(shards_in(store, *shift, cells))
            }
            DiskQuery::Holds { pg, pg_epoch, shards, .. } => {
                self.holds(store, *pg, *pg_epoch, shards)
            }
        }
    }

    fn holds(
        &self,
        store: &Store,
        pg: PgId,
        pg_epoch: Epoch,
        shards: &[(ExtentId, Slot)],
    ) -> DiskAnswer {
        if self.pg_epoch(pg) != Some(pg_epoch) {
            return DiskAnswer::OtherEpoch;
        }
        let is_there =
            |&(extent, slot): &(ExtentId, Slot)| store.contains(ShardKey { extent, slot });
        DiskAnswer::Holds(shards.iter().map(is_there).collect())
    }
}

fn cells(store: &Store, shift: u8) -> Vec<(ShardCell, CellSum)> {
    let damaged = damaged(store);
    let mut sums: BTreeMap<ShardCell, CellSum> = BTreeMap::new();
    for_each(store, |shard| {
        if !damaged.contains(&shard.key) {
            sums.entry(cell(shard, shift)).or_default().add(shard.key.extent);
        }
    });
    sums.into_iter().collect()
}

fn shards_in(store: &Store, shift: u8, cells: &[ShardCell]) -> Vec<HeldShard> {
    let (wanted, damaged) = (cells.iter().collect::<BTreeSet<_>>(), damaged(store));
    let mut found = Vec::new();
    for_each(store, |shard| {
        if wanted.contains(&cell(shard, shift)) {
            let ShardMeta { key, profile, pg, bucket, .. } = *shard;
            let ShardKey { extent, slot } = key;
            let damaged = damaged.contains(&key);
            found.push(HeldShard { extent, slot, pg, profile, bucket, damaged });
        }
    });
    found
}

fn cell(shard: &ShardMeta, shift: u8) -> ShardCell {
    ShardCell::of(shard.pg, shard.key.slot, shard.key.extent, shift)
}

fn damaged(store: &Store) -> BTreeSet<ShardKey> {
    store.damaged_shards().into_iter().map(|(key, _)| key).collect()
}

fn for_each(store: &Store, mut visit: impl FnMut(&ShardMeta)) {
    let mut after = None;
    loop {
        let page = store.list(after, PAGE_SHARDS);
        page.iter().for_each(&mut visit);
        match page.last() {
            Some(last) => after = Some(last.key),
            None => return,
        }
    }
}
