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
    /// Since when its node has said so without a break, as the root's leader has heard it.
    pub(crate) since: Monotonic,
}

impl Judged {
    /// It is so from now on: a line of the log, and a metric.
    pub(crate) fn tell(&self, map: &ClusterMap, now: Monotonic, wall_ms: u64) {
        let Self { disk, to, since, .. } = *self;
        let state = format!("{to:?}").to_lowercase();
        metrics::counter!("ashlar_disks_judged_total", "state" => state.clone()).increment(1);
        let node = map.node_of(disk);
        let (node, name) = (node.map(|node| node.id), node.map_or("", |node| node.name.as_str()));
        let for_ms = u64::try_from((now - since).as_millis()).unwrap_or(u64::MAX);
        let since_ms = wall_ms.saturating_sub(for_ms);
        let why = match to == DiskState::Suspect {
            true => "its node says that it takes no writes",
            false => "its node says that it takes writes again",
        };
        let node = node.unwrap_or_default();
        tracing::warn!(%disk, %node, name, state, why, since_ms, for_ms, "whether a disk is suspect has changed");
    }
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
            (*takes == is && now - *since >= patience).then_some((disk.id, *since))
        };
        let of = |state| map.disks.values().filter(move |disk| disk.state == state);
        let well = of(DiskState::Suspect).filter_map(|disk| has_long(disk, true));
        let bad: Vec<_> = of(DiskState::Healthy).filter_map(|disk| has_long(disk, false)).collect();
        let judged = |from, to| move |(disk, since)| Judged { disk, from, to, since };
        let mut due: Vec<_> = well.map(judged(DiskState::Suspect, DiskState::Healthy)).collect();
        let suspects: BTreeSet<DiskId> = of(DiskState::Suspect)
            .map(|disk| disk.id)
            .chain(bad.iter().map(|(disk, _)| *disk))
            .collect();
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
    use std::io::Write;
    use std::sync::{Arc, Mutex, PoisonError};

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

    #[test]
    fn a_change_is_told_with_its_disk_its_node_its_reason_and_since_when() {
        let (map, mut writes) = (cluster(), Writes::default());
        let said = |disk: DiskId| Some(disk.0 != 20);
        assert_eq!(writes.due(&map, &said, at(100), PATIENCE), []);
        let due = writes.due(&map, &said, at(112), PATIENCE);
        assert_eq!(due.iter().map(|judged| judged.since).collect::<Vec<_>>(), [at(100)]);

        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let log = Log::default();
        let subscriber =
            tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
        tracing::subscriber::with_default(subscriber, || {
            metrics::with_local_recorder(&recorder, || due[0].tell(&map, at(112), 1_000_000));
        });
        let line = log.text();
        let disk = format!("disk={}", DiskId(20));
        let facts = [&disk, "node=node-2", "name=\"2\"", "state=\"suspect\"", "takes no writes"];
        for fact in facts.into_iter().chain(["since_ms=988000", "for_ms=12000"]) {
            assert!(line.contains(fact), "{fact} is not in {line}");
        }
        let page = recorder.handle().render();
        assert!(page.contains("ashlar_disks_judged_total{state=\"suspect\"} 1"), "{page}");
    }

    /// What was logged.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        fn text(&self) -> String {
            let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            String::from_utf8_lossy(&bytes).into_owned()
        }
    }

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl tracing_subscriber::fmt::MakeWriter<'_> for Log {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }
}
