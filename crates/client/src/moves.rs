//! What the mover of a slot asks of others: the lists of its disks, the bytes of one shard, and the root's word that the
//! slot has moved.

use crate::shard::Home;
use crate::{Client, Failure, ShardError};
use ashlar_host::Monotonic;
use ashlar_types::{
    DiskId, Epoch, ExtentId, ListShards, RootOp, ShardsListed, Slot, SlotMove, decode, encode,
};
use ashlar_wire::Class;
use ashlar_wire::proto::ListShardsRequest;
use ashlar_wire::proto::data_client::DataClient;
use ashlar_wire::shard::ShardPath;
use bytes::Bytes;
use std::ops::Range;
use std::time::Duration;

/// A disk with less room gets no slots: what moves to it would soon have to leave again.
pub const ROOM_FOR_MOVES_PER_MILLE: u16 = 50;
/// How long a data node may take for a page: open writes may have to end first.
const LIST_PATIENCE: Duration = Duration::from_secs(15);

impl Client {
    /// Asks for the map soon.
    pub fn want_map(&self) {
        self.0.want_map();
    }

    /// Waits until the map is newer than this epoch, or for `patience`.
    pub async fn map_after(&self, epoch: Epoch, patience: Duration) {
        self.0.map_where(patience, |map| map.epoch > epoch).await;
    }

    /// Tells all data nodes that there is a newer map, by pinging them.
    pub async fn tell_epoch(&self) {
        crate::health::tell_all(&self.0).await;
    }

    /// When the node of a disk has last said that it has it; `None`: never since this client started.
    pub fn disk_seen(&self, disk: DiskId) -> Option<Monotonic> {
        self.0.health.seen(disk)
    }

    /// Whether shards on a disk may be asked for now.
    pub fn is_readable(&self, disk: DiskId) -> bool {
        self.0.health.is_readable(&self.map(), disk) && self.0.health.is_served(disk)
    }

    /// Whether the node of a disk says that it takes writes; `None`: it says nothing now.
    pub fn takes_writes(&self, disk: DiskId) -> Option<bool> {
        self.0.health.takes_writes(&self.map(), disk)
    }

    /// Whether a slot may move to a disk now: it takes shards, and is not nearly full.
    pub fn takes_moves(&self, disk: DiskId) -> bool {
        let (health, map) = (&self.0.health, self.map());
        health.is_writable(&map, disk) && health.free_per_mille(disk) >= ROOM_FOR_MOVES_PER_MILLE
    }

    /// A page of a slot's shards on a disk. The error says why nothing is known.
    pub async fn list_shards(&self, ask: ListShards) -> Result<ShardsListed, String> {
        let map = self.map();
        let home = Home::of(&map, ask.disk);
        let home = home.ok_or_else(|| format!("disk {} is not in the cluster map", ask.disk))?;
        let mut data = DataClient::new(self.0.dialer.channel(&home.address, Class::Bulk));
        let asked = data.list_shards(ListShardsRequest { body: encode(&ask).into() });
        let answer = self.0.host.clock.timeout(LIST_PATIENCE, asked).await;
        let reply =
            answer.map_err(|late| late.to_string())?.map_err(|status| status.to_string())?;
        decode(&reply.into_inner().body).map_err(|error| error.to_string())
    }

    /// The bytes of a shard at these offsets, from one disk; its node has verified them (D5).
    pub async fn shard_bytes(
        &self,
        disk: DiskId,
        extent: ExtentId,
        slot: Slot,
        span: Range<u64>,
    ) -> Result<Bytes, ShardError> {
        let map = self.map();
        let Some(home) = Home::of(&map, disk) else {
            return Err(ShardError::Unreachable(format!("disk {disk} is not in the cluster map")));
        };
        let path = ShardPath { disk, extent, slot };
        let mut frames = self.0.get_shard(&home, path, span.start, span.end).await?;
        if frames.len() == 1 {
            return Ok(frames.pop_front().unwrap_or_default());
        }
        Ok(frames.iter().flatten().copied().collect::<Vec<u8>>().into())
    }

    /// Tells the root that a slot has moved.
    pub async fn switch(&self, step: SlotMove) -> Result<(), Failure> {
        self.root(RootOp::Switch(step)).await.map(drop)
    }
}
