//! What lies dead on a disk: copies of records that count no more, and the tombstones over them.
//!
//! A scan without a checkpoint sees every record that still lies somewhere. So a tombstone has to stay as long as an
//! older record of its key may be found, wherever that is: what a deletion left, what a move left behind, a damaged
//! record that was replaced, a torn one that was never acknowledged. A checkpoint that was taken before the deletion
//! shows the shard too. Each such copy is noted here when it comes to be, and forgotten only when it is durably gone. One record of a few dozen bytes a dead copy: as long as
//! compaction and punching keep up, that is less than the index.

use crate::ShardKey;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// A record that lies on the disk and counts no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DeadCopy {
    /// Of its segment.
    pub(crate) generation: u64,
    pub(crate) key: ShardKey,
    /// Of its header.
    pub(crate) offset: u64,
    /// All of its room.
    pub(crate) span: u64,
}

/// The newest tombstone of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tombstone {
    pub(crate) sequence: u64,
    /// Of the segment in which it lies.
    pub(crate) generation: u64,
}

#[derive(Debug, Default)]
struct Grave {
    copies: usize,
    tombstone: Option<Tombstone>,
}

/// All of them. A grave without copies is closed: its tombstone is needed no more.
#[derive(Debug, Default)]
pub(crate) struct Graves {
    copies: BTreeSet<DeadCopy>,
    /// Deletions by sequence that no checkpoint shows yet: the last one still has the shard, which is one more copy.
    unshown: BTreeMap<u64, ShardKey>,
    by_key: BTreeMap<ShardKey, Grave>,
    /// How many tombstones a segment has of which a copy lies in another one: these keep it.
    needed: BTreeMap<u64, u64>,
}

impl Graves {
    /// A record counts no more.
    pub(crate) fn add(&mut self, copy: DeadCopy) {
        self.change(copy.key, |graves| {
            if graves.copies.insert(copy) {
                graves.by_key.entry(copy.key).or_default().copies += 1;
            }
        });
    }

    /// The copy is durably gone.
    pub(crate) fn forget(&mut self, copy: &DeadCopy) {
        self.change(copy.key, |graves| {
            if graves.copies.remove(copy) {
                graves.leave(copy.key);
            }
        });
    }

    /// A shard was deleted with this sequence.
    pub(crate) fn add_unshown(&mut self, sequence: u64, key: ShardKey) {
        self.change(key, |graves| {
            graves.unshown.insert(sequence, key);
            graves.by_key.entry(key).or_default().copies += 1;
        });
    }

    /// A checkpoint is durable that shows all up to this sequence.
    pub(crate) fn show(&mut self, sequence: u64) {
        while let Some(first) = self.unshown.first_entry().filter(|e| *e.key() <= sequence) {
            let key = first.remove();
            self.change(key, |graves| graves.leave(key));
        }
    }

    fn leave(&mut self, key: ShardKey) {
        let grave = self.by_key.get_mut(&key).expect("a copy lies in a grave");
        grave.copies -= 1;
        if grave.copies == 0 {
            self.by_key.remove(&key);
        }
    }

    /// A segment is durably gone, and all in it.
    pub(crate) fn forget_segment(&mut self, generation: u64) {
        let inside: Vec<DeadCopy> = self.of_segment(generation).copied().collect();
        for copy in &inside {
            self.forget(copy);
        }
    }

    /// A tombstone was written, or moved. Where no copy lies there is nothing for it to mark.
    pub(crate) fn mark(&mut self, key: ShardKey, tombstone: Tombstone) {
        self.change(key, |graves| {
            if let Some(grave) = graves.by_key.get_mut(&key) {
                let known = grave.tombstone.map(|known| known.sequence);
                if known <= Some(tombstone.sequence) {
                    grave.tombstone = Some(tombstone);
                }
            }
        });
    }

    /// The tombstone of a key, if one is still needed for copies anywhere.
    pub(crate) fn tombstone(&self, key: ShardKey) -> Option<Tombstone> {
        self.by_key.get(&key).and_then(|grave| grave.tombstone)
    }

    /// The tombstone of a key, if it marks a copy outside of its own segment.
    pub(crate) fn needed_tombstone(&self, key: ShardKey) -> Option<Tombstone> {
        self.keeps(key).and_then(|_| self.tombstone(key))
    }

    /// How many tombstones keep a segment.
    pub(crate) fn needed_in(&self, generation: u64) -> u64 {
        self.needed.get(&generation).copied().unwrap_or_default()
    }

    /// How many tombstones keep a segment at all.
    pub(crate) fn needed(&self) -> u64 {
        self.needed.values().sum()
    }

    /// The dead copies in a segment.
    pub(crate) fn of_segment(&self, generation: u64) -> impl Iterator<Item = &DeadCopy> {
        self.copies.range(first_of(generation)..).take_while(move |c| c.generation == generation)
    }

    /// All dead copies.
    pub(crate) fn copies(&self) -> impl ExactSizeIterator<Item = &DeadCopy> {
        self.copies.iter()
    }

    /// All tombstones that mark a copy, in the order of their keys.
    pub(crate) fn tombstones(&self) -> impl Iterator<Item = (ShardKey, Tombstone)> {
        self.tombstones_after(None)
    }

    /// As [`Graves::tombstones`], behind a key.
    pub(crate) fn tombstones_after(
        &self,
        after: Option<ShardKey>,
    ) -> impl Iterator<Item = (ShardKey, Tombstone)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let graves = self.by_key.range((from, Bound::Unbounded));
        graves.filter_map(|(&key, grave)| grave.tombstone.map(|found| (key, found)))
    }

    /// Changes one grave, and keeps the count of needed tombstones.
    fn change(&mut self, key: ShardKey, change: impl FnOnce(&mut Self)) {
        let before = self.keeps(key);
        change(self);
        let after = self.keeps(key);
        if before == after {
            return;
        }
        if let Some(generation) = before {
            let left = self.needed.get_mut(&generation).expect("what is kept was counted");
            *left -= 1;
            if *left == 0 {
                self.needed.remove(&generation);
            }
        }
        if let Some(generation) = after {
            *self.needed.entry(generation).or_default() += 1;
        }
    }

    /// The segment that the tombstone of a key keeps: it marks a copy that lies elsewhere.
    fn keeps(&self, key: ShardKey) -> Option<u64> {
        let grave = self.by_key.get(&key)?;
        let Tombstone { generation, .. } = grave.tombstone?;
        let inside = self.copies.range(DeadCopy { key, ..first_of(generation) }..);
        let inside = inside.take_while(|copy| copy.generation == generation && copy.key == key);
        (grave.copies > inside.count()).then_some(generation)
    }
}

fn first_of(generation: u64) -> DeadCopy {
    let extent = ashlar_types::ExtentId::from_bytes([0; 16]);
    let key = ShardKey { extent, slot: ashlar_types::Slot(0) };
    DeadCopy { generation, key, offset: 0, span: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_types::{ExtentId, SessionId, Slot};

    fn key(counter: u64) -> ShardKey {
        ShardKey { extent: ExtentId { session: SessionId(1), counter }, slot: Slot(0) }
    }

    fn copy(counter: u64, generation: u64, offset: u64) -> DeadCopy {
        DeadCopy { generation, key: key(counter), offset, span: 128 }
    }

    #[test]
    fn a_tombstone_is_needed_while_a_copy_lies_in_another_segment() {
        let mut graves = Graves::default();
        graves.add(copy(1, 10, 0));
        graves.add(copy(1, 11, 0));
        graves.mark(key(1), Tombstone { sequence: 5, generation: 11 });
        assert_eq!((graves.needed_in(10), graves.needed_in(11)), (0, 1));
        graves.mark(key(1), Tombstone { sequence: 5, generation: 12 });
        assert_eq!((graves.needed_in(11), graves.needed_in(12)), (0, 1));
        graves.forget_segment(10);
        assert_eq!(graves.needed_in(12), 1, "the other copy still lies there");
        graves.forget(&copy(1, 11, 0));
        assert_eq!((graves.needed_in(12), graves.tombstone(key(1))), (0, None));
    }

    #[test]
    fn a_tombstone_in_the_segment_of_its_only_copy_goes_with_it() {
        let mut graves = Graves::default();
        graves.add(copy(2, 10, 0));
        graves.add(copy(2, 10, 128));
        graves.mark(key(2), Tombstone { sequence: 5, generation: 10 });
        assert_eq!(graves.needed_in(10), 0);
        graves.add(copy(2, 9, 0));
        assert_eq!(graves.needed_in(10), 1);
        graves.forget_segment(9);
        graves.forget_segment(10);
        assert_eq!((graves.copies().len(), graves.tombstones().count()), (0, 0));
    }

    #[test]
    fn a_tombstone_is_needed_until_a_checkpoint_shows_the_deletion() {
        let mut graves = Graves::default();
        graves.add(copy(1, 10, 0));
        graves.add_unshown(5, key(1));
        graves.mark(key(1), Tombstone { sequence: 5, generation: 10 });
        graves.forget_segment(10);
        graves.show(4);
        assert_eq!(graves.needed_in(10), 1);
        graves.show(5);
        assert_eq!((graves.needed(), graves.tombstone(key(1))), (0, None));
    }

    #[test]
    fn the_newest_tombstone_of_a_key_holds_and_one_over_nothing_is_not_kept() {
        let mut graves = Graves::default();
        graves.mark(key(3), Tombstone { sequence: 1, generation: 1 });
        assert_eq!(graves.tombstone(key(3)), None);
        graves.add(copy(3, 1, 0));
        graves.mark(key(3), Tombstone { sequence: 7, generation: 2 });
        graves.mark(key(3), Tombstone { sequence: 6, generation: 3 });
        assert_eq!(graves.tombstone(key(3)), Some(Tombstone { sequence: 7, generation: 2 }));
    }
}
