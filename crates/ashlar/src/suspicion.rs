//! Which disks are suspect: their nodes have said for a while that they take no writes. What they hold is read, and moves
//! elsewhere. A disk that takes writes again for as long is used again.

use crate::moves::is_one_domain;
use ashlar_host::Monotonic;
use ashlar_types::{ClusterMap, Disk, DiskId, DiskState};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Whether each disk takes writes, and since when that is so.
#[derive(Debug, Default)]
pub(crate) struct Writes(BTreeMap<DiskId, (bool, Monotonic)>);

/// A disk that should be in another state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) disk: DiskId,
    /// In which it was judged: an operator may have put it into another one by the time that this arrives.
    pub(crate) from: DiskState,
    pub(crate) to: DiskState,
}

impl Writes {
    /// Notes what is said now (`None`: nothing), and gives the disks that should be in another state. Never more than
    /// one domain is suspect: if more disks fail at once, it is hardly the disks.
    pub(crate) fn due(
        &mut self,
        map: &ClusterMap,
        said: &dyn Fn(DiskId) -> Option<bool>,
        now: Monotonic,
        patience: Duration,
    ) -> Vec<Judged> {
        self.note(map, said, now);
        let has_long = |disk: &Disk, is: bool| {
            let (takes, since) = self.0.get(&disk.id)?;
            (*takes == is && now - *since >= patience).then_some(disk.id)
        };
        let of = |state| map.disks.values().filter(move |disk| disk.state == state);
        let well = of(DiskState::Suspect).filter_map(|disk| has_long(disk, true));
        let bad: Vec<DiskId> =
            of(DiskState::Healthy).filter_map(|disk| has_long(disk, false)).collect();
        let judged = |from, to| move |disk| Judged { disk, from, to };
        let mut due: Vec<_> = well.map(judged(DiskState::Suspect, DiskState::Healthy)).collect();
        let suspects: BTreeSet<DiskId> =
            of(DiskState::Suspect).map(|disk| disk.id).chain(bad.iter().copied()).collect();
        if !bad.is_empty() && is_one_domain(map, &suspects) {
            due.extend(bad.into_iter().map(judged(DiskState::Healthy, DiskState::Suspect)));
        }
        due
    }

    fn note(&mut self, map: &ClusterMap, said: &dyn Fn(DiskId) -> Option<bool>, now: Monotonic) {
        self.0.retain(|disk, _| map.disks.contains_key(disk) && said(*disk).is_some());
        for &disk in map.disks.keys() {
            let Some(takes) = said(disk) else { continue };
            let noted = self.0.entry(disk).or_insert((takes, now));
            if noted.0 != takes {
                *noted = (takes, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{set, two_disk_nodes};

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Three nodes of two disks each, each node a zone.
    fn cluster() -> ClusterMap {
        two_disk_nodes(&["1", "2", "3"])
    }

    fn at(seconds: u64) -> Monotonic {
        Monotonic(Duration::from_secs(seconds))
    }

    /// What is due when these disks take no writes and all others do.
    fn due(writes: &mut Writes, map: &ClusterMap, bad: &[u128], seconds: u64) -> Vec<u128> {
        let said = |disk: DiskId| Some(!bad.contains(&disk.0));
        let due = writes.due(map, &said, at(seconds), PATIENCE);
        let from = |judged: &Judged| map.disks[&judged.disk].state;
        assert!(due.iter().all(|judged| judged.from == from(judged) && judged.to != judged.from));
        due.into_iter().map(|judged| judged.disk.0).collect()
    }

    const NONE: [u128; 0] = [];

    #[test]
    fn a_disk_is_suspect_after_a_while_and_well_after_a_while() {
        let (mut map, mut writes) = (cluster(), Writes::default());
        assert_eq!(due(&mut writes, &map, &[10], 0), NONE);
        assert_eq!(due(&mut writes, &map, &[10], 9), NONE);
        assert_eq!(due(&mut writes, &map, &[], 10), NONE, "for a moment it took one");
        assert_eq!(due(&mut writes, &map, &[10], 11), NONE, "it begins anew");
        assert_eq!(due(&mut writes, &map, &[10], 21), [10]);
        set(&mut map, 10, DiskState::Suspect);
        assert_eq!(due(&mut writes, &map, &[10], 22), NONE);
        assert_eq!(due(&mut writes, &map, &[], 30), NONE);
        assert_eq!(due(&mut writes, &map, &[], 40), [10]);
    }

    #[test]
    fn of_a_silent_node_nothing_is_known() {
        let (map, mut writes) = (cluster(), Writes::default());
        assert_eq!(due(&mut writes, &map, &[10], 0), NONE);
        assert_eq!(writes.due(&map, &|_| None, at(5), PATIENCE), []);
        assert_eq!(due(&mut writes, &map, &[10], 10), NONE, "its time begins anew");
        assert_eq!(due(&mut writes, &map, &[10], 20), [10]);
    }

    #[test]
    fn what_fails_in_two_zones_at_once_is_not_the_disks() {
        let (mut map, mut writes) = (cluster(), Writes::default());
        assert_eq!(due(&mut writes, &map, &[10, 20], 0), NONE);
        assert_eq!(due(&mut writes, &map, &[10, 20], 60), NONE);
        assert_eq!(due(&mut writes, &map, &[10], 61), [10]);
        set(&mut map, 30, DiskState::Suspect);
        assert_eq!(due(&mut writes, &map, &[10, 30], 80), NONE, "one is suspect elsewhere");
    }

    #[test]
    fn what_an_operator_drains_is_left_to_him() {
        let (mut map, mut writes) = (cluster(), Writes::default());
        set(&mut map, 10, DiskState::Draining);
        assert_eq!(due(&mut writes, &map, &[10], 0), NONE);
        assert_eq!(due(&mut writes, &map, &[10], 60), NONE);
    }
}
