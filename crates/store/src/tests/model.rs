//! A disk is a map: random puts, deletions, reads, scrubs, races, shortness of room, restarts and power cuts, while room
//! is given back and segments are compacted all the time, against a map that does the same (C1, C6, D5, D9).

use super::sim::*;
use super::{content, key};
use crate::{ShardKey, Store, StoreError};
use ashlar_host::{CutStyle, SimDisk};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Debug, Clone)]
enum Step {
    /// These, of this length.
    Put {
        first: u64,
        count: u64,
        length: usize,
    },
    /// Every so manieth of these.
    Delete {
        first: u64,
        count: u64,
        every: usize,
    },
    /// These are put, with this length, and deleted at the same time.
    Race {
        first: u64,
        count: u64,
        length: usize,
    },
    Read(u64),
    Scrub(u64),
    /// From now on so much is free; `None`: plenty.
    Squeeze(Option<u64>),
    Close,
    Cut(CutStyle),
    /// A cut, and the checkpoint is damaged too.
    CutAndScan(CutStyle),
}

const KEYS: u64 = 200;

fn cut_style() -> impl Strategy<Value = CutStyle> {
    prop_oneof![
        Just(CutStyle::DropAll),
        Just(CutStyle::KeepAll),
        any::<u64>().prop_map(|seed| CutStyle::Torn { seed }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![4 => 1_000..9_000usize, 1 => 60_000..70_000usize, 1 => 0..100usize];
    let few = prop_oneof![3 => 20..60u64, 1 => 1..5u64];
    prop_oneof![
        10 => (0..KEYS, few.clone(), length.clone())
            .prop_map(|(first, count, length)| Step::Put { first, count, length }),
        2 => (0..KEYS, 1..4u64, 100_000..500_000usize)
            .prop_map(|(first, count, length)| Step::Put { first, count, length }),
        10 => (0..KEYS, 20..120u64, 1..4usize)
            .prop_map(|(first, count, every)| Step::Delete { first, count, every }),
        3 => (0..KEYS, few, length)
            .prop_map(|(first, count, length)| Step::Race { first, count, length }),
        2 => (0..KEYS).prop_map(Step::Read),
        1 => (1..2_000_000u64).prop_map(Step::Scrub),
        1 => prop_oneof![Just(None), (500_000..3_000_000u64).prop_map(Some)].prop_map(Step::Squeeze),
        1 => Just(Step::Close),
        2 => cut_style().prop_map(Step::Cut),
        1 => cut_style().prop_map(Step::CutAndScan),
    ]
}

struct World {
    disk: SimDisk,
    store: Store,
    model: BTreeMap<u64, usize>,
}

impl World {
    async fn put(&mut self, counters: impl Iterator<Item = u64>, length: usize) {
        let counters: Vec<u64> = counters.collect();
        let all = counters.iter().map(|&counter| put(&self.store, counter, length));
        for (counter, result) in counters.iter().zip(super::futures_join(all).await) {
            match self.model.get(counter) {
                Some(&known) if known != length => assert_eq!(result, Err(StoreError::Conflict)),
                Some(_) => assert_eq!(result, Ok(())),
                None if result == Err(StoreError::Full) => {}
                None => {
                    assert_eq!(result, Ok(()), "{counter}");
                    self.model.insert(*counter, length);
                }
            }
        }
    }

    async fn delete(&mut self, counters: impl Iterator<Item = u64>) {
        let counters: Vec<u64> = counters.collect();
        let keys: Vec<ShardKey> = counters.iter().copied().map(key).collect();
        let answers = self.store.delete_many(&keys).await;
        for (counter, answer) in counters.iter().zip(answers) {
            assert_eq!(answer, Ok(self.model.remove(counter).is_some()), "{counter}");
        }
    }

    /// Either order is right, and the store says which one it was.
    async fn race(&mut self, counters: impl Iterator<Item = u64>, length: usize) {
        let counters: Vec<u64> = counters.collect();
        let keys: Vec<ShardKey> = counters.iter().copied().map(key).collect();
        let puts = super::futures_join(counters.iter().map(|&n| put(&self.store, n, length)));
        let (_, answers) = futures::join!(puts, self.store.delete_many(&keys));
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        for counter in counters {
            match self.store.meta(key(counter)) {
                Some(meta) => {
                    assert_eq!(meta.length, length as u64, "what was there before is deleted");
                    self.model.insert(counter, length);
                }
                None => drop(self.model.remove(&counter)),
            }
        }
    }

    async fn reopen(&mut self, is_clean: bool) {
        self.disk.set_capacity(None);
        self.store = open_with(&self.disk, RESERVE).await;
        let recovered = self.store.recovered();
        assert_eq!((recovered.clean, recovered.damaged), (is_clean, 0), "{recovered:?}");
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Put { first, count, length } => self.put(first..first + count, length).await,
            Step::Delete { first, count, every } => {
                self.delete((first..first + count).step_by(every)).await;
            }
            Step::Race { first, count, length } => self.race(first..first + count, length).await,
            Step::Read(counter) => {
                let length = self.model.get(&counter).copied();
                let read = self.store.read(key(counter), 0, length.unwrap_or(1) as u64).await;
                let expected = length.map(|length| content(counter, length));
                assert_eq!(read, expected.ok_or(StoreError::NotFound));
            }
            Step::Scrub(budget) => assert_eq!(self.store.scrub_step(budget).await.found, []),
            Step::Squeeze(free) => {
                let used = used(&self.disk);
                self.disk.set_capacity(free.map(|free| used + free));
            }
            Step::Close => {
                self.disk.set_capacity(None);
                self.store.close().await;
                self.reopen(true).await;
            }
            Step::Cut(style) => {
                self.disk.cut(style);
                self.reopen(false).await;
            }
            Step::CutAndScan(style) => {
                self.disk.cut(style);
                lose_checkpoints(&self.disk);
                self.reopen(false).await;
            }
        }
    }

    fn assert_lists_the_model(&self) {
        let listed: BTreeMap<u64, usize> = self
            .store
            .list(None, 10_000)
            .iter()
            .map(|meta| (meta.key.extent.counter, usize::try_from(meta.length).unwrap()))
            .collect();
        assert_eq!(listed, self.model);
    }

    async fn assert_is_the_model(&self) {
        self.assert_lists_the_model();
        for (&counter, &length) in &self.model {
            super::assert_reads(&self.store, counter, length).await;
        }
        assert_eq!(self.store.scrub_step(u64::MAX).await.found, []);
        assert_eq!(self.store.damaged_shards(), []);
    }
}

const RESERVE: u64 = 1 << 20;

async fn follow(steps: Vec<Step>) {
    let disk = new_disk();
    let store = open_with(&disk, RESERVE).await;
    let mut world = World { disk, store, model: BTreeMap::new() };
    for step in steps {
        world.take(step).await;
        world.assert_lists_the_model();
    }
    world.assert_is_the_model().await;
    for last in [Step::Cut(CutStyle::DropAll), Step::CutAndScan(CutStyle::KeepAll), Step::Close] {
        world.take(last).await;
        world.assert_is_the_model().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_is_a_map_while_room_comes_back(steps in prop::collection::vec(step(), 20..60)) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(follow(steps));
    }
}
