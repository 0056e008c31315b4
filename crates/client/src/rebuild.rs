//! Rebuilding the shards that an extent misses: its content is read as any reader reads it, encoded again, and the
//! missing columns go to their homes.
//!
//! A column ends with its checksum only when the content had that of the record, so that no shard of a wrong content is
//! ever whole (D5). The record is told by one command, which is refused where the extent has ended meanwhile (D4:
//! nothing that was there is touched before or after).

use crate::inner::Inner;
use crate::shard::{CellBody, Home, Progress, ShardEnd, ShardError};
use crate::stripe;
use crate::{Client, Failure};
use ashlar_erasure::{Codec, Geometry};
use ashlar_types::{
    ClusterMap, Extent, ExtentId, KeyPoint, MissingExtent, PlacementGroup, RangeAnswer, RangeOp,
    RangeQuery, Refusal, Slot, SlotSet, bug,
};
use ashlar_wire::shard::{ShardFacts, ShardPath};
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use futures::future::join_all;
use http_body_util::BodyExt;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc};

/// Cells that wait for one connection.
const QUEUED_CELLS: usize = 2;
/// What one rebuild holds: a stripe being read, one being encoded, and the queued cells.
const MEMORY_BYTES: u64 = 4 << 20;

/// A column on its way to its home.
struct Column {
    slot: Slot,
    cells: mpsc::Sender<Bytes>,
    crc: u32,
    /// Set when all of it was sent and is what it must be: before that its body breaks off.
    end: ShardEnd,
}

impl Client {
    /// A page of the repair index of the range that holds `at`, the worst first, and whether there are more.
    pub async fn missing(
        &self,
        at: &KeyPoint,
        after: Option<ExtentId>,
        limit: u32,
    ) -> Result<(Vec<MissingExtent>, bool), Failure> {
        match self.query(at, RangeQuery::Missing { after, limit }).await? {
            RangeAnswer::Missing { entries, more } => Ok((entries, more)),
            _ => Err(Failure::other_answer("a page of the repair index")),
        }
    }

    /// Rebuilds those missing shards of an extent whose homes take writes now; says which are on stable storage.
    pub async fn rebuild(&self, missing: &MissingExtent) -> Result<SlotSet, Failure> {
        let inner = &self.0;
        let map = inner.map.load_full();
        let extent = &missing.extent;
        let Some(group) = map.groups.get(&extent.pg) else {
            inner.want_map();
            return Err(Failure::unavailable(format!("{} is not in the cluster map", extent.pg)));
        };
        let homes = writable_homes(inner, &map, group, extent.missing);
        if homes.is_empty() {
            return Ok(SlotSet::EMPTY);
        }
        if bug!("repair-without-writing") {
            return Ok(homes.into_iter().map(|(slot, _)| slot).collect());
        }
        let _memory = inner.reserve(MEMORY_BYTES).await?;
        let geometry = Geometry::new(extent.profile, extent.cell_bytes, extent.length);
        let facts = ShardFacts {
            pg: group.id,
            pg_epoch: group.epoch,
            profile: extent.profile,
            bucket: missing.owner.at().bucket,
            length: geometry.shard_bytes(),
        };
        let (columns, puts): (Vec<_>, Vec<_>) =
            homes.into_iter().map(|(slot, home)| open(inner, extent, slot, home, facts)).unzip();
        let (sent, stored) =
            futures::join!(inner.send_columns(extent, &geometry, columns), join_all(puts));
        let sent = sent?;
        let stored = sent.into_iter().zip(stored).filter_map(|((slot, crc), stored)| match stored {
            Ok(found) if found == crc => Some(slot),
            Ok(_) => {
                tracing::warn!(extent = %extent.id, slot = slot.0, "a home received other bytes than were sent");
                None
            }
            Err(error) => {
                tracing::debug!(extent = %extent.id, slot = slot.0, %error, "a shard was not rebuilt");
                None
            }
        });
        Ok(stored.collect())
    }

    /// Tells the range that holds an extent's owner that shards of it are no longer missing. `false`: the extent has
    /// ended or changed since it was seen so.
    pub async fn repaired(&self, missing: MissingExtent, slots: SlotSet) -> Result<bool, Failure> {
        // not to where it was seen: a split may lie between the two since, and that range would refuse it for ever
        let MissingExtent { extent, owner } = missing;
        match self.0.execute_duty(owner.at(), RangeOp::Repaired { extent, slots }).await {
            Ok(_) => Ok(true),
            Err(Failure::Refused(Refusal::NotMissing)) => Ok(false),
            Err(failure) => Err(failure),
        }
    }
}

/// Where the missing slots belong, as far as something can be written there.
fn writable_homes(
    inner: &Inner,
    map: &ClusterMap,
    group: &PlacementGroup,
    missing: SlotSet,
) -> Vec<(Slot, Home)> {
    let home = |slot: Slot| {
        let disk = group.written(slot)?;
        let home = Home::of(map, disk).filter(|_| inner.health.is_writable(map, disk))?;
        Some((slot, home))
    };
    missing.iter().filter_map(home).collect()
}

/// Opens the stream of one column. What it comes to is awaited beside the sending.
fn open(
    inner: &Arc<Inner>,
    extent: &Extent,
    slot: Slot,
    home: Home,
    facts: ShardFacts,
) -> (Column, impl Future<Output = Result<u32, ShardError>> + use<>) {
    let (cells, queue) = mpsc::channel(QUEUED_CELLS);
    let progress = Progress::new(inner.host.clock.clone(), Arc::new(Notify::new()));
    let end = ShardEnd::default();
    let body = CellBody::new(queue, end.clone(), progress);
    let (inner, path) = (inner.clone(), ShardPath { disk: home.disk, extent: extent.id, slot });
    let put = async move { inner.put_shard(&home, path, facts, None, body.boxed()).await };
    (Column { slot, cells, crc: 0, end }, put)
}

impl Inner {
    /// Reads the extent and feeds the columns; gives the checksum that each must have. Where it fails, the columns
    /// break off, and nothing of them is stored.
    async fn send_columns(
        self: &Arc<Self>,
        extent: &Extent,
        geometry: &Geometry,
        mut columns: Vec<Column>,
    ) -> Result<Vec<(Slot, u32)>, Failure> {
        let codec = Codec::new(extent.profile);
        let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
        for stripe in 0..geometry.stripes() {
            let content = in_memory(geometry.content_len(stripe));
            let cell = in_memory(geometry.cell_len(stripe));
            let mut buffer = self.pool.take(stripe::buffer_bytes(extent.profile, cell));
            let from = stripe * geometry.stripe_bytes();
            let mut filled = 0;
            for frame in self.read_window(extent, from, from + content as u64).await? {
                buffer[filled..filled + frame.len()].copy_from_slice(&frame);
                filled += frame.len();
            }
            digest.update(&buffer[..content]);
            let cells = stripe::cells(&codec, buffer, content, cell);
            self.feed(&mut columns, &cells).await?;
        }
        if digest.finalize() != extent.crc64 {
            metrics::counter!("ashlar_client_corrupt_extents_total").increment(1);
            tracing::error!(extent = %extent.id, "an extent does not have the checksum of its record");
            return Err(Failure::Corrupt { extent: Box::new(extent.clone()) });
        }
        let ended = columns.into_iter().map(|column| {
            column.end.get_or_init(|| column.crc);
            (column.slot, column.crc)
        });
        Ok(ended.collect())
    }

    async fn feed(&self, columns: &mut [Column], cells: &[Bytes]) -> Result<(), Failure> {
        let mut open = false;
        for column in columns {
            let cell = &cells[usize::from(column.slot.0)];
            column.crc = crc32c::crc32c_append(column.crc, cell);
            let sending = column.cells.send(cell.clone());
            let sent = self.host.clock.timeout(self.config.patience, sending).await;
            let sent = sent.map_err(|_| Failure::unavailable("a home takes no more of a shard"))?;
            // closed: its home has refused, and its answer says why
            open |= sent.is_ok();
        }
        if open { Ok(()) } else { Err(Failure::unavailable("no home takes the missing shards")) }
    }
}

fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a stripe fits into memory")
}
