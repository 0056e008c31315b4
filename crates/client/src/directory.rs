//! The range directory as this client knows it: which range holds a key, and who leads it.
//!
//! It is a cache that is judged by epochs: a range that has changed answers with its epoch, and the directory is read
//! again from the root. Leaders are hints, nothing more.

use ashlar_types::{KeyPoint, NodeId, RangeDescriptor, RangeId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Ranges by their start, and hints.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    ranges: Mutex<BTreeMap<KeyPoint, Arc<RangeDescriptor>>>,
    leaders: Mutex<BTreeMap<RangeId, NodeId>>,
    /// Where leaders are that the map does not have, as those who named them have said.
    addresses: Mutex<BTreeMap<NodeId, String>>,
    /// The highest log index of each range that an answer has named: `base_index` of the next command.
    indexes: Mutex<BTreeMap<RangeId, u64>>,
}

impl Directory {
    /// Replaces what is known.
    pub(crate) fn install(&self, ranges: Vec<RangeDescriptor>) {
        let by_start =
            ranges.into_iter().map(|range| (range.interval.start.clone(), Arc::new(range)));
        let fresh: BTreeMap<_, _> = by_start.collect();
        *self.ranges.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
    }

    /// The range that holds `point`, if it is known.
    pub(crate) fn find(&self, point: &KeyPoint) -> Option<Arc<RangeDescriptor>> {
        let ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, range) = ranges.range(..=point).next_back()?;
        range.interval.contains(point).then(|| range.clone())
    }

    pub(crate) fn leader(&self, range: RangeId) -> Option<NodeId> {
        self.leaders.lock().unwrap_or_else(PoisonError::into_inner).get(&range).copied()
    }

    pub(crate) fn set_leader(&self, range: RangeId, leader: Option<NodeId>) {
        let mut leaders = self.leaders.lock().unwrap_or_else(PoisonError::into_inner);
        match leader {
            Some(node) => leaders.insert(range, node),
            None => leaders.remove(&range),
        };
    }

    /// Where a leader is that the map does not have.
    pub(crate) fn address(&self, node: NodeId) -> Option<String> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }

    pub(crate) fn set_address(&self, node: NodeId, address: String) {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).insert(node, address);
    }

    pub(crate) fn index(&self, range: RangeId) -> u64 {
        let indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        indexes.get(&range).copied().unwrap_or(0)
    }

    pub(crate) fn saw_index(&self, range: RangeId, index: u64) {
        let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = indexes.entry(range).or_default();
        *known = index.max(*known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_types::{BucketId, Epoch, Interval};

    fn range(id: u64, start: u64, end: Option<u64>) -> RangeDescriptor {
        let point = |bucket| KeyPoint::new(BucketId(bucket), []);
        let interval = Interval { start: point(start), end: end.map(point) };
        RangeDescriptor { id: RangeId(id), epoch: Epoch(1), interval, voters: vec![] }
    }

    #[test]
    fn finds_the_range_that_contains_a_point_and_none_in_a_gap() {
        let directory = Directory::default();
        directory.install(vec![range(1, 0, Some(10)), range(2, 20, None)]);
        let find = |bucket| directory.find(&KeyPoint::new(BucketId(bucket), *b"k")).map(|r| r.id.0);
        assert_eq!(
            [find(0), find(9), find(15), find(20), find(u64::MAX)],
            [Some(1), Some(1), None, Some(2), Some(2)]
        );
    }

    #[test]
    fn the_index_of_a_range_never_goes_back() {
        let directory = Directory::default();
        directory.saw_index(RangeId(1), 7);
        directory.saw_index(RangeId(1), 5);
        assert_eq!((directory.index(RangeId(1)), directory.index(RangeId(2))), (7, 0));
    }
}
