//! Listing a slot, and with it acknowledging an epoch of its group: what a move asks of the disks that have the group's
//! shards (`docs/adr/0012-how-a-slot-moves.md`).

use crate::DataNode;
use crate::gate::SlotPlace;
use ashlar_store::{ShardMeta, Store};
use ashlar_types::{LISTED_SHARDS_MAX, ListShards, ListedShard, ShardsListed};
use std::time::Duration;

/// How long an answer waits for the map, or for open writes to end.
const ACKNOWLEDGE_PATIENCE: Duration = Duration::from_secs(10);
/// How long writes under an older epoch may take to finish by themselves: longer ones are broken off.
const OPEN_WRITES_PATIENCE: Duration = Duration::from_secs(5);

impl DataNode {
    pub(crate) async fn list_shards(&self, ask: &ListShards) -> ShardsListed {
        let Some(store) = self.store(ask.disk) else {
            return ShardsListed::UnknownDisk;
        };
        // behind the first page nothing older can come any more
        if ask.after.is_none() {
            let acknowledged = self.acknowledge(ask);
            if self.host.clock.timeout(ACKNOWLEDGE_PATIENCE, acknowledged).await.is_err() {
                return ShardsListed::NotYet;
            }
        } else if self.pg_epoch(ask.group).is_none_or(|known| known < ask.epoch) {
            // it has started anew since the first page
            return ShardsListed::NotYet;
        }
        page(&store, ask)
    }

    async fn acknowledge(&self, ask: &ListShards) {
        self.until_epoch(ask.group, ask.epoch).await;
        let at = SlotPlace { disk: ask.disk, group: ask.group, slot: ask.slot };
        self.gate.settle(&*self.host.clock, at, ask.epoch, OPEN_WRITES_PATIENCE).await;
    }
}

fn page(store: &Store, ask: &ListShards) -> ShardsListed {
    let limit = usize::try_from(ask.limit.clamp(1, LISTED_SHARDS_MAX)).unwrap_or(1);
    let (shards, next) = store.list_slot(ask.group, ask.slot, ask.after, limit);
    ShardsListed::Page { shards: shards.iter().map(listed).collect(), next }
}

pub(crate) fn listed((meta, crc): &(ShardMeta, u32)) -> ListedShard {
    ListedShard {
        extent: meta.key.extent,
        profile: meta.profile,
        bucket: meta.bucket,
        length: meta.length,
        crc: *crc,
    }
}
