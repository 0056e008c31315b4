//! A shard from others of its extent, without the extent's record: the code works byte by byte, so the bytes of one
//! column at some offset are computed from those of any k others at the same offset.

use crate::inner::Inner;
use crate::shard::{Frames, Home};
use crate::{Client, Failure};
use ashlar_erasure::Codec;
use ashlar_types::{ClusterMap, DiskId, ExtentId, PgId, PlacementGroup, Profile, Slot};
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

/// A column could not be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found} of {needed} other shards of extent {extent} could be read: {why}")]
pub struct ColumnFailure {
    /// The extent.
    pub extent: ExtentId,
    /// Other shards that could be read.
    pub found: usize,
    /// How many are needed.
    pub needed: usize,
    /// Other shards that may be there, although they could not be read now. 0: it is certain that too few are left.
    pub unknown: usize,
    /// What came of the last one that was asked.
    pub why: String,
}

impl From<ColumnFailure> for Failure {
    fn from(failure: ColumnFailure) -> Self {
        Self::unavailable(failure.to_string())
    }
}

impl Client {
    /// The bytes of a column at these offsets, from the same offsets of k others; each of them is verified by the node
    /// that reads it (D5).
    pub async fn column(&self, column: Column, span: Range<u64>) -> Result<Bytes, ColumnFailure> {
        let inner = &self.0;
        let needed = usize::from(column.profile.data);
        let failed = |unknown, why: String| ColumnFailure {
            extent: column.extent,
            found: 0,
            needed,
            unknown,
            why,
        };
        let map = inner.map.load_full();
        let Some(group) = map.groups.get(&column.pg) else {
            inner.want_map();
            let why = format!("{} is not in the cluster map", column.pg);
            return Err(failed(usize::from(column.profile.width()), why));
        };
        let length = span.end.saturating_sub(span.start);
        let memory = inner.reserve(length * (needed as u64 + 1)).await;
        let _memory = memory.map_err(|busy| failed(needed, busy.to_string()))?;
        let cells = inner.others(column, group, &map, &span, needed).await?;
        let cells: Vec<Option<&[u8]>> = cells.iter().map(Option::as_deref).collect();
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        let codec = Codec::new(column.profile);
        let rebuilt = codec.rebuild(&cells, &[column.slot], &mut [&mut bytes]);
        rebuilt.map_err(|error| failed(needed, error.to_string()))?;
        Ok(bytes.into())
    }
}

/// One other slot, and where its shard may be.
struct Other {
    slot: Slot,
    homes: Vec<Home>,
    /// Whether it may also be where nobody can ask now.
    is_partly_away: bool,
}

impl Other {
    /// `None`: all of its places are lost for good.
    fn of(inner: &Inner, map: &ClusterMap, group: &PlacementGroup, slot: Slot) -> Option<Self> {
        let places: Vec<DiskId> = group.places(slot).filter(|&disk| map.is_read(disk)).collect();
        let readable = places.iter().filter(|disk| inner.health.is_readable(map, **disk));
        let homes: Vec<Home> = readable.filter_map(|&disk| Home::of(map, disk)).collect();
        let is_partly_away = homes.len() < places.len();
        (!places.is_empty()).then_some(Self { slot, homes, is_partly_away })
    }

    /// Its bytes; the error says whether it is certain that there are none, and why there are not.
    async fn read(
        self,
        inner: &Inner,
        extent: ExtentId,
        span: &Range<u64>,
    ) -> Result<(Slot, Vec<u8>), (bool, String)> {
        let (mut is_certain, mut why) = (!self.is_partly_away, "its node is away".to_owned());
        for home in &self.homes {
            let path = ShardPath { disk: home.disk, extent, slot: self.slot };
            match inner.get_shard(home, path, span.start, span.end).await {
                Ok(frames) => return Ok((self.slot, joined(&frames))),
                Err(error) => {
                    is_certain &= error.is_certain();
                    why = format!("slot {}: {error}", self.slot.0);
                }
            }
        }
        Err((is_certain, why))
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
    ) -> Result<Vec<Option<Vec<u8>>>, ColumnFailure> {
        let slots = column.profile.slots().filter(|slot| *slot != column.slot);
        let mut others = slots.filter_map(|slot| Other::of(self, map, group, slot));
        let ask = |other: Other| other.read(self, column.extent, span);
        let mut asked: FuturesUnordered<_> = others.by_ref().take(needed).map(ask).collect();
        let mut cells = vec![None; usize::from(column.profile.width())];
        let (mut found, mut unknown, mut why) = (0, 0, String::from("too few homes are left"));
        while let Some(answer) = asked.next().await {
            match answer {
                Ok((slot, bytes)) => {
                    cells[usize::from(slot.0)] = Some(bytes);
                    found += 1;
                }
                Err((is_certain, reason)) => {
                    unknown += usize::from(!is_certain);
                    why = reason;
                    asked.extend(others.next().map(ask));
                }
            }
        }
        if found >= needed {
            return Ok(cells);
        }
        Err(ColumnFailure { extent: column.extent, found, needed, unknown, why })
    }
}

fn joined(frames: &Frames) -> Vec<u8> {
    frames.iter().flatten().copied().collect()
}
