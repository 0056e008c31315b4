//! Giving up slots that have moved away: the last step of a move, "then drop" (D4).
//!
//! What may go is decided by the committed map alone (D2): the slot's home is another disk, and nothing of its group
//! moves. That another disk became the home is the proof that it had all of the slot: it was copied, verified and counted
//! before the root switched. Nothing is asked of anybody, and nothing follows from what somebody does not have.
//!
//! What holds against a map that has grown old: the slot may have come back to this disk. Then whatever came here for it,
//! by a writer or by a copy, came under a later epoch than this node knows. So a shard goes only if its epoch is older
//! than the group's as known here, while no write is open and none has come under a later one (`gate.rs`).

use crate::DataNode;
use crate::gate::SlotPlace;
use ashlar_host::Monotonic;
use ashlar_store::{ShardKey, ShardMeta, Store, StoreError};
use ashlar_types::{ClusterMap, DiskId, Epoch};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a slot stays readable where it was: readers that have not heard of its move find it there, and need not
/// decode. Nothing is lost for those who are later still: they find out, and read elsewhere.
const GRACE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Shards dropped at once, while the slot takes no writes.
const DROPPED_AT_ONCE: usize = 1000;

impl DataNode {
    /// Gives up what has moved away, until it is dropped.
    pub async fn give_up_slots(&self) {
        let mut leaving: BTreeMap<SlotPlace, Monotonic> = BTreeMap::new();
        let mut seen = Epoch(0);
        loop {
            self.host.clock.sleep(LOOK_EVERY).await;
            let map = self.map();
            let now = self.host.clock.now();
            if map.epoch > seen {
                let gone = self.slots_gone(&map).await;
                leaving.retain(|at, _| gone.contains(at));
                gone.into_iter().for_each(|at| _ = leaving.entry(at).or_insert(now));
                seen = map.epoch;
            }
            let due = leaving.iter().filter(|(_, since)| now - **since >= GRACE);
            let due: Vec<SlotPlace> = due.map(|(at, _)| *at).collect();
            for at in due {
                match self.give_up(at).await {
                    Ok(true) => _ = leaving.remove(&at),
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(?at, %error, "a slot that has moved away cannot be dropped now");
                    }
                }
            }
        }
    }

    /// The slots of which a disk has shards and which have moved away from it.
    async fn slots_gone(&self, map: &ClusterMap) -> Vec<SlotPlace> {
        let mut gone = Vec::new();
        for (&disk, store) in &*self.stores() {
            let store = store.clone();
            let slots = self.host.tasks.run_blocking(move || store.slots()).await;
            let places = slots.into_iter().map(|(group, slot)| SlotPlace { disk, group, slot });
            gone.extend(places.filter(|at| gone_since(map, *at).is_some()));
        }
        gone
    }

    /// Drops what this disk has of a slot. `false`: not now.
    pub(crate) async fn give_up(&self, at: SlotPlace) -> Result<bool, StoreError> {
        let Some(store) = self.store(at.disk) else { return Ok(false) };
        loop {
            let Some(epoch) = gone_since(&self.map(), at) else { return Ok(true) };
            let Some(_closed) = self.gate.close(at, epoch) else { return Ok(false) };
            let keys = older(&store, at, epoch);
            if keys.is_empty() {
                return Ok(true);
            }
            for dropped in store.delete_many(&keys).await {
                dropped?;
            }
            metrics::counter!("ashlar_moved_shards_dropped_total").increment(keys.len() as u64);
        }
    }
}

/// The epoch of a group of which the slot has moved away from this disk. `None`: it has not, or the disk is lost and is
/// left as it is.
fn gone_since(map: &ClusterMap, at: SlotPlace) -> Option<Epoch> {
    let group = map.groups.get(&at.group)?;
    let home = *group.homes.get(usize::from(at.slot.0))?;
    let is_read = |disk: DiskId| map.disks.get(&disk).is_some_and(|disk| disk.state.is_read());
    let is_gone = home != at.disk && group.moving.is_none() && is_read(at.disk) && is_read(home);
    is_gone.then_some(group.epoch)
}

fn older(store: &Store, at: SlotPlace, epoch: Epoch) -> Vec<ShardKey> {
    let (mut keys, mut after) = (Vec::new(), None);
    loop {
        let (shards, next) = store.list_slot(at.group, at.slot, after, DROPPED_AT_ONCE);
        let is_older = |(meta, _): &&(ShardMeta, u32)| meta.pg_epoch < epoch;
        keys.extend(shards.iter().filter(is_older).map(|(meta, _)| meta.key));
        match next {
            Some(next) if keys.len() < DROPPED_AT_ONCE => after = Some(next),
            Some(_) | None => return keys,
        }
    }
}
