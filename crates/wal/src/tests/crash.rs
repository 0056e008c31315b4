//! Whatever was acknowledged is there after a cut, nothing is there that was not submitted, and the order holds:
//! the log after a cut is the log after some prefix of what was submitted, no shorter than what was acknowledged (R5, R7).

use super::*;
use crate::GroupHealth;
use ashlar_host::CutStyle;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// What the log must say of a group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Model {
    vote: Option<Bytes>,
    committed: Option<Bytes>,
    purged: Option<(u64, Bytes)>,
    installing: Option<Bytes>,
    pub(super) dropped: bool,
    entries: BTreeMap<u64, Entry>,
}

pub(super) type Models = BTreeMap<u64, Model>;

impl Model {
    pub(super) fn next_index(&self) -> u64 {
        let after_purge = self.purged.as_ref().map_or(1, |(upto, _)| upto + 1);
        self.entries.last_key_value().map_or(after_purge, |(last, _)| last + 1)
    }

    pub(super) fn apply(&mut self, record: &Record) {
        match record {
            Record::Append(entries) => {
                self.entries.extend(entries.iter().map(|entry| (entry.index, entry.clone())));
            }
            Record::Vote(vote) => self.vote = Some(vote.clone()),
            Record::Truncate { after } => {
                self.entries.retain(|index, _| after.is_some_and(|after| *index <= after));
            }
            Record::Purge { upto, id } => {
                if self.purged.as_ref().is_none_or(|(before, _)| before < upto) {
                    self.purged = Some((*upto, id.clone()));
                    self.entries.retain(|index, _| index > upto);
                }
            }
            Record::Committed(id) => self.committed = Some(id.clone()),
            Record::Dropped => *self = Self { dropped: true, ..Self::default() },
            Record::Created { .. } => self.dropped = false,
            Record::Installing(snapshot) => self.installing = Some(snapshot.clone()),
            Record::Installed => self.installing = None,
            Record::CaughtUp => {}
        }
    }
}

fn seen(wal: &Wal, group: u64) -> Model {
    let state = state(wal, group);
    let entries = entries(wal, group).into_iter().map(|entry| (entry.index, entry)).collect();
    Model {
        vote: state.vote,
        committed: state.committed,
        purged: state.purged,
        installing: state.installing,
        dropped: state.dropped,
        entries,
    }
}

pub(super) fn all_seen(wal: &Wal) -> Models {
    (0..3).map(|group| (group, seen(wal, group))).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Submit { group: u64, what: u8, size: u16 },
    Settle,
    Cut(u8, u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (0..3_u64, 0..20_u8, 0..1500_u16)
            .prop_map(|(group, what, size)| Step::Submit { group, what, size }),
        4 => Just(Step::Settle),
        2 => (0..3_u8, any::<u64>()).prop_map(|(style, seed)| Step::Cut(style, seed)),
        1 => Just(Step::Reopen),
    ]
}

/// The record that a step stands for, given where the group is.
fn record(model: &Model, what: u8, size: u16, count: u64) -> Record {
    let next = model.next_index();
    let tag = Bytes::from(format!("{count:08}"));
    if model.dropped {
        return Record::Created { first: tag };
    }
    match what {
        0..=9 => {
            let few = 1 + u64::from(what) % 3;
            let size = usize::from(size);
            Record::Append((next..next + few).map(|index| entry(index, count, size)).collect())
        }
        10..=12 => Record::Vote(tag),
        13 | 14 => Record::Committed(tag),
        15 | 16 => Record::Purge { upto: next.saturating_sub(1 + u64::from(size) % 5), id: tag },
        17 => Record::Truncate { after: next.checked_sub(1 + u64::from(size) % 4) },
        18 if size.is_multiple_of(2) => Record::Installing(tag),
        18 => Record::Installed,
        _ if size.is_multiple_of(8) => Record::Dropped,
        _ => Record::Truncate { after: Some(next) },
    }
}

/// A run: the log, what it must say, and what it may say after a cut.
struct Run {
    disk: SimDisk,
    wal: Wal,
    /// The models after 0, 1, 2 … submits since the last settled moment, the settled one first.
    histories: Vec<Models>,
    answers: Vec<mpsc::Receiver<Result<(), WalError>>>,
    count: u64,
}

impl Run {
    fn new() -> Self {
        let disk = SimDisk::new();
        let wal = open(&disk);
        let empty: Models = (0..3).map(|group| (group, Model::default())).collect();
        Self { disk, wal, histories: vec![empty], answers: Vec::new(), count: 0 }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Submit { group, what, size } => self.submit(group, what, size),
            Step::Settle => self.settle(),
            Step::Reopen => {
                close(&self.wal);
                self.settle();
                self.wal = open(&self.disk);
                assert_eq!(Some(&all_seen(&self.wal)), self.histories.last());
            }
            Step::Cut(style, seed) => self.cut(style, seed),
        }
    }

    fn submit(&mut self, group: u64, what: u8, size: u16) {
        self.count += 1;
        let mut models = self.histories.last().unwrap().clone();
        let model = models.get_mut(&group).unwrap();
        let record = record(model, what, size, self.count);
        model.apply(&record);
        let (sender, receiver) = mpsc::sync_channel(1);
        let done = Box::new(move |result| drop(sender.send(result)));
        self.wal.submit(RangeId(group), record, done).unwrap();
        assert_eq!(&seen(&self.wal, group), models.get(&group).unwrap(), "readable at return");
        self.histories.push(models);
        self.answers.push(receiver);
    }

    fn settle(&mut self) {
        for answer in self.answers.drain(..) {
            answer.recv().unwrap().unwrap();
        }
        self.histories.drain(..self.histories.len() - 1);
    }

    fn cut(&mut self, style: u8, seed: u64) {
        // answers are in order: what was acknowledged before the cut is a prefix
        let acknowledged = self
            .answers
            .iter()
            .take_while(|answer| matches!(answer.try_recv(), Ok(Ok(()))))
            .count();
        self.disk.cut(match style {
            0 => CutStyle::DropAll,
            1 => CutStyle::KeepAll,
            _ => CutStyle::Torn { seed },
        });
        close(&self.wal);
        self.answers.clear();
        self.wal = open(&self.disk);
        let now = all_seen(&self.wal);
        let may_be = &self.histories[acknowledged..];
        assert!(may_be.contains(&now), "{now:?}\nis none of\n{may_be:?}");
        for group in self.wal.groups() {
            assert_ne!(self.wal.state(group).health, GroupHealth::Corrupt);
        }
        self.histories = vec![now];
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn after_any_cut_the_log_is_a_prefix_of_what_was_submitted(
        steps in prop::collection::vec(step(), 1..60)
    ) {
        let mut run = Run::new();
        for step in &steps {
            run.step(step);
        }
        run.step(&Step::Cut(0, 0));
        run.step(&Step::Reopen);
    }
}

#[test]
fn every_short_script_survives_a_cut_at_every_point_in_every_style() {
    let script =
        [(0, 3, 900), (0, 10, 0), (1, 5, 1400), (0, 17, 2), (0, 4, 1400), (0, 15, 1), (1, 19, 8)];
    for point in 0..=script.len() {
        for style in 0..3 {
            for seed in 0..4 {
                let mut run = Run::new();
                for (at, (group, what, size)) in script.into_iter().enumerate() {
                    if at == point {
                        run.step(&Step::Cut(style, seed));
                    }
                    run.step(&Step::Submit { group, what, size });
                    if seed % 2 == 0 {
                        run.step(&Step::Settle);
                    }
                }
                run.step(&Step::Cut(style, seed + 100));
                run.step(&Step::Cut(style, seed + 200));
            }
        }
    }
}
