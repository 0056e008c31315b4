//! D1 (contract §2): the shards of an extent are what its code makes of each other, on every disk.
//!
//! Every shard that a disk lists is read, and computed from others of its extent: the two are the same bytes. So parity
//! that is wrong, or was never computed, is found before a disk is lost that it would have to stand for. What cannot be
//! read, or has too few others, is somebody else's finding.

use crate::machines::Door;
use crate::record::Recorder;
use crate::world::World;
use ashlar_client::{Client, Column};
use ashlar_types::{DiskId, ExtentId, ListShards, ListedShard, PlacementGroup, ShardsListed, Slot};
use std::collections::BTreeMap;

const PAGE: u32 = 1_000;

/// What a check has met.
#[derive(Debug, Default)]
struct Met {
    /// Shards that are what the others make of them.
    fitting: u64,
    /// Shards that could not be compared.
    unknown: u64,
    /// Those that are something else.
    other: Vec<String>,
}

/// Compares all shards of all groups.
pub(crate) async fn check(world: &World, recorder: &Recorder) {
    let Some((client, Door { life, .. })) = world.client(0).zip(world.door(0)) else {
        return recorder.note("shards are not compared: the first node does not serve");
    };
    let met = life.spawn(async move { compare_all(&client).await }).await;
    let Ok(met) = met else { return recorder.note("shards are not compared: the first node died") };
    recorder.note(&format!("{} shards fit, {} unknown", met.fitting, met.unknown));
    for what in met.other {
        recorder.find("D1", what);
    }
}

async fn compare_all(client: &Client) -> Met {
    let (map, mut met) = (client.map(), Met::default());
    for group in map.groups.values() {
        let mut extents: BTreeMap<ExtentId, Vec<(Slot, DiskId, ListedShard)>> = BTreeMap::new();
        for (slot, &disk) in group.profile.slots().zip(&group.homes) {
            for shard in list(client, group, slot, disk).await {
                extents.entry(shard.extent).or_default().push((slot, disk, shard));
            }
        }
        for (slot, disk, shard) in extents.into_values().flatten() {
            compare(client, group, slot, disk, &shard, &mut met).await;
        }
    }
    met
}

async fn list(
    client: &Client,
    group: &PlacementGroup,
    slot: Slot,
    disk: DiskId,
) -> Vec<ListedShard> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let (group, epoch, limit) = (group.id, group.epoch, PAGE);
        let ask = ListShards { disk, group, slot, epoch, after, limit };
        let Ok(ShardsListed::Page { shards, next }) = client.list_shards(ask).await else {
            return all;
        };
        all.extend(shards);
        after = next;
        if after.is_none() {
            return all;
        }
    }
}

async fn compare(
    client: &Client,
    group: &PlacementGroup,
    slot: Slot,
    disk: DiskId,
    shard: &ListedShard,
    met: &mut Met,
) {
    let (extent, profile, pg) = (shard.extent, shard.profile, group.id);
    let column = Column { extent, slot, pg, profile };
    let stored = client.shard_bytes(disk, extent, slot, 0..shard.length).await;
    let computed = client.column(column, 0..shard.length).await;
    let (Ok(stored), Ok(computed)) = (stored, computed) else {
        met.unknown += 1;
        return;
    };
    if stored == computed {
        met.fitting += 1;
    } else {
        met.other.push(format!("{extent}, slot {}: not what its others make of it", slot.0));
    }
}
