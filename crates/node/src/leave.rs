//! Giving up slots that have moved away: the last step of a move, "then drop" (D4).
//!
//! What may go is decided by the committed map alone (D2): the slot's home is another disk, and nothing of its group
//! moves. That another disk became the home is the proof that it had all of the slot: it was copied, verified and counted
//! before the root switched. Nothing is asked of anybody, and nothing follows from what somebody does not have.
//!
//! What holds against a map that has grown old: the slot may have come back to this disk. Then whatever came here for it,
//! by a writer or by a copy, came under a later epoch than this node knows. So a shard goes only if its epoch is older
//! than the group's as known here, while no write is open and none has come under a later one (`gate.rs`).
//!
//! What is known to be damaged stays: the slot may have moved without it, because too few others are left to compute it,
//! and all but one block of it may still be read here.

use crate::DataNode;
use crate::gate::SlotPlace;
use ashlar_host::Monotonic;
use ashlar_store::{ShardKey, ShardMeta, Store, StoreError};
use ashlar_types::{ClusterMap, Epoch, ExtentId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a slot stays readable where it was: readers that have not heard of its move find it there, and need not
/// decode. Nothing is lost for those who are later still: they find out, and read elsewhere.
const GRACE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two attempts at a slot that cannot be given up now. It doubles up to [`AGAIN_AFTER_MAX`].
const AGAIN_AFTER: Duration = Duration::from_secs(1);
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(60);
/// Shards dropped at once, while the slot takes no writes.
const DROPPED_AT_ONCE: usize = 1000;

/// When a slot is to be given up.
struct Leaving {
    due: Monotonic,
    pause: Duration,
}

impl Leaving {
    fn since(now: Monotonic) -> Self {
        Self { due: now + GRACE, pause: AGAIN_AFTER }
    }

    fn put_off(&mut self, now: Monotonic) {
        self.due = now + self.pause;
        self.pause = (self.pause * 2).min(AGAIN_AFTER_MAX);
    }
}

impl DataNode {
    /// Gives up what has moved away, until it is dropped.
    pub async fn give_up_slots(&self) {
        let mut leaving: BTreeMap<SlotPlace, Leaving> = BTreeMap::new();
        let mut seen = Epoch(0);
        loop {
            self.host.clock.sleep(LOOK_EVERY).await;
            let map = self.map();
            let now = self.host.clock.now();
            if map.epoch > seen {
                let gone = self.slots_gone(&map).await;
                leaving.retain(|at, _| gone.contains(at));
                for at in gone {
                    leaving.entry(at).or_insert_with(|| Leaving::since(now));
                }
                seen = map.epoch;
            }
            let due = leaving.iter().filter(|(_, leaving)| now >= leaving.due);
            let due: Vec<SlotPlace> = due.map(|(at, _)| *at).collect();
            for at in due {
                let is_given_up = self.give_up(at).await.unwrap_or_else(|error| {
                    tracing::warn!(?at, %error, "a slot that has moved away cannot be dropped now");
                    false
                });
                if is_given_up {
                    leaving.remove(&at);
                } else if let Some(leaving) = leaving.get_mut(&at) {
                    leaving.put_off(self.host.clock.now());
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
        let (mut known, mut after) = (Epoch(0), None);
        loop {
            let Some(epoch) = gone_since(&self.map(), at) else { return Ok(true) };
            // one that takes no writes deletes nothing, and need not look for what it would
            let store = self.store(at.disk).filter(|store| store.usage().writable);
            let Some(store) = store else { return Ok(false) };
            if epoch != known {
                // what was not older before may be now
                (known, after) = (epoch, None);
            }
            let Some(_closed) = self.gate.close(at, epoch) else { return Ok(false) };
            let looked = store.clone();
            let look = move || older(&looked, at, epoch, after);
            let (keys, next) = self.host.tasks.run_blocking(look).await;
            for dropped in store.delete_many(&keys).await {
                dropped?;
            }
            metrics::counter!("ashlar_moved_shards_dropped_total").increment(keys.len() as u64);
            if next.is_none() {
                return Ok(true);
            }
            after = next;
        }
    }
}

/// The epoch of a group of which the slot has moved away from this disk. `None`: it has not, or the disk is lost and is
/// left as it is.
fn gone_since(map: &ClusterMap, at: SlotPlace) -> Option<Epoch> {
    let group = map.groups.get(&at.group)?;
    let home = *group.homes.get(usize::from(at.slot.0))?;
    let is_gone =
        home != at.disk && group.moving.is_none() && map.is_read(at.disk) && map.is_read(home);
    is_gone.then_some(group.epoch)
}

/// The shards of a page that are to be dropped, and where the next page begins.
fn older(
    store: &Store,
    at: SlotPlace,
    epoch: Epoch,
    after: Option<ExtentId>,
) -> (Vec<ShardKey>, Option<ExtentId>) {
    let (shards, next) = store.list_slot(at.group, at.slot, after, DROPPED_AT_ONCE);
    let damaged = store.damaged_shards().into_iter().map(|(key, _)| key);
    let damaged: BTreeSet<ShardKey> = damaged.collect();
    let may_go =
        |(meta, _): &&(ShardMeta, u32)| meta.pg_epoch < epoch && !damaged.contains(&meta.key);
    (shards.iter().filter(may_go).map(|(meta, _)| meta.key).collect(), next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_cannot_be_given_up_is_tried_ever_more_seldom() {
        let mut now = Monotonic(Duration::from_secs(100));
        let mut leaving = Leaving::since(now);
        assert_eq!(leaving.due - now, GRACE);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            now = leaving.due;
            leaving.put_off(now);
            pauses.push((leaving.due - now).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
