//! A shard from others of its extent, without the extent's record: the code works byte by byte, so the bytes of one
//! column at some offset are computed from those of any k others at the same offset.

use crate::inner::Inner;
use crate::shard::{Frames, Home, ShardError};
use crate::{Client, Failure};
use ashlar_erasure::Codec;
use ashlar_types::{ClusterMap, ExtentId, PgId, PlacementGroup, Profile, Slot};
use ashlar_wire::shard::ShardPath;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::ops::Range;

/// Which column is wanted, as the disk knows it that has lost it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// The extent.
    pub extent: ExtentId,
    /// The column.
    pub slot: Slot,
    /// The placement group that the extent was written to.
    pub pg: PgId,
    /// Its code.
    pub profile: Profile,
}

impl Client {
    /// The bytes of a column at these offsets, from the same offsets of k others; each of them is verified by the node
    /// that reads it (D5).
    pub async fn column(&self, column: Column, span: Range<u64>) -> Result<Bytes, Failure> {
        let inner = &self.0;
        let map = inner.map.load_full();
        let Some(group) = map.groups.get(&column.pg) else {
            inner.want_map();
            return Err(Failure::unavailable(format!("{} is not in the cluster map", column.pg)));
        };
        let length = span.end.saturating_sub(span.start);
        let needed = usize::from(column.profile.data);
        let _memory = inner.reserve(length * (needed as u64 + 1)).await?;
        let cells = inner.others(column, group, &map, &span, needed).await?;
        let cells: Vec<Option<&[u8]>> = cells.iter().map(Option::as_deref).collect();
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        let codec = Codec::new(column.profile);
        let rebuilt = codec.rebuild(&cells, &[column.slot], &mut [&mut bytes]);
        rebuilt.map_err(|error| Failure::unavailable(error.to_string()))?;
        Ok(bytes.into())
    }
}

impl Inner {
    /// The same span of as many other columns as are needed, by slot.
    async fn others(
        &self,
        column: Column,
        group: &PlacementGroup,
        map: &ClusterMap,
        span: &Range<u64>,
        needed: usize,
    ) -> Result<Vec<Option<Vec<u8>>>, Failure> {
        let other = |slot: Slot| {
            let disk = *group.homes.get(usize::from(slot.0))?;
            let home = Home::of(map, disk).filter(|_| self.health.is_readable(map, disk))?;
            (slot != column.slot).then_some((slot, home))
        };
        let mut candidates = column.profile.slots().filter_map(other);
        let ask = |(slot, home): (Slot, Home)| async move {
            let path = ShardPath { disk: home.disk, extent: column.extent, slot };
            (slot, self.get_shard(&home, path, span.start, span.end).await)
        };
        let mut asked: FuturesUnordered<_> = candidates.by_ref().take(needed).map(ask).collect();
        let mut cells = vec![None; usize::from(column.profile.width())];
        let mut why = String::from("too few homes live");
        let mut found = 0;
        while let Some((slot, answer)) = asked.next().await {
            match answer {
                Ok(frames) => {
                    cells[usize::from(slot.0)] = Some(joined(&frames));
                    found += 1;
                }
                Err(error) => {
                    why = error_of(slot, &error);
                    asked.extend(candidates.next().map(ask));
                }
            }
        }
        if found >= needed {
            return Ok(cells);
        }
        let extent = column.extent;
        Err(Failure::unavailable(format!(
            "{found} of {needed} shards of {extent} could be read: {why}"
        )))
    }
}

fn error_of(slot: Slot, error: &ShardError) -> String {
    format!("slot {}: {error}", slot.0)
}

fn joined(frames: &Frames) -> Vec<u8> {
    frames.iter().flatten().copied().collect()
}
