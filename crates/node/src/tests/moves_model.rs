//! Random interleavings of writes, moves, switches, drops, deletions and losses, each party with a map as old as it may
//! be, over the real nodes: after each step everything that was acknowledged has its shards (D1, D2, D4), and when all
//! have come to rest, it has them where the map says, and nowhere else.

use super::fleet::{Fleet, extent};
use ashlar_store::ShardKey;
use ashlar_types::*;
use http::StatusCode;
use proptest::prelude::*;

const NODES: usize = 6;
const LENGTH: usize = 80;

#[derive(Debug, Clone)]
enum Step {
    /// One of the writers begins an extent.
    Begin {
        writer: usize,
    },
    /// The next shard of an open extent is sent.
    Send {
        extent: usize,
    },
    WriterLearns {
        writer: usize,
    },
    NodeLearns {
        node: usize,
    },
    BeginMove {
        slot: u8,
        to: usize,
    },
    Copy,
    GiveUp {
        node: usize,
        slot: u8,
    },
    /// Nothing names an extent any more, and it is collected.
    Delete {
        extent: usize,
    },
    Lose {
        node: usize,
    },
    Away {
        node: usize,
    },
    Back {
        node: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..2_usize).prop_map(|writer| Step::Begin { writer }),
        12 => (0..8_usize).prop_map(|extent| Step::Send { extent }),
        2 => (0..2_usize).prop_map(|writer| Step::WriterLearns { writer }),
        6 => (0..NODES).prop_map(|node| Step::NodeLearns { node }),
        3 => (0..6_u8, 0..NODES).prop_map(|(slot, to)| Step::BeginMove { slot, to }),
        5 => Just(Step::Copy),
        3 => (0..NODES, 0..6_u8).prop_map(|(node, slot)| Step::GiveUp { node, slot }),
        1 => (0..8_usize).prop_map(|extent| Step::Delete { extent }),
        1 => (0..NODES).prop_map(|node| Step::Lose { node }),
        1 => (0..NODES).prop_map(|node| Step::Away { node }),
        2 => (0..NODES).prop_map(|node| Step::Back { node }),
    ];
    prop::collection::vec(step, 20..120)
}

/// What a writer knows of its extent.
struct Written {
    counter: u64,
    /// The group as the writer knew it when it began.
    group: PlacementGroup,
    pending: Vec<Slot>,
    acked: Vec<Slot>,
    state: State,
    /// Shards on disks that were no place of their slot any more when it was deleted, and had not given it up yet.
    left: Vec<(Slot, DiskId)>,
    /// The slot of one of these moved back there before it was given up.
    is_back: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Acknowledged,
    Failed,
    Deleted,
}

struct Model {
    fleet: Fleet,
    /// The target of the move was lost, and what only that had has not been computed anew yet.
    is_retargeted: bool,
    writers: Vec<PlacementGroup>,
    extents: Vec<Written>,
}

impl Model {
    async fn start(profile: Profile) -> Self {
        let fleet = Fleet::start(profile, NODES).await;
        let writers = vec![fleet.group(); 2];
        Self { fleet, is_retargeted: false, writers, extents: Vec::new() }
    }

    fn width(&self) -> u8 {
        self.fleet.group().profile.width()
    }

    async fn take(&mut self, step: &Step) {
        match *step {
            Step::Begin { writer } => self.begin(writer),
            Step::Send { extent } => self.send(extent).await,
            Step::WriterLearns { writer } => self.writers[writer] = self.fleet.group(),
            Step::NodeLearns { node } => self.fleet.learns(node),
            Step::BeginMove { slot, to } => self.begin_move(Slot(slot % self.width()), to),
            Step::Copy => self.copy().await,
            Step::GiveUp { node, slot } => {
                self.fleet.give_up(node, Slot(slot % self.width())).await;
            }
            Step::Delete { extent } => self.delete(extent).await,
            Step::Lose { node } => self.lose(node),
            Step::Away { node } => drop(self.fleet.away.lock().unwrap().insert(node)),
            Step::Back { node } => drop(self.fleet.away.lock().unwrap().remove(&node)),
        }
    }

    fn begin(&mut self, writer: usize) {
        let group = self.writers[writer].clone();
        // ids do not come in the order of time
        let counter = u64::try_from(self.extents.len()).unwrap() * 37 % 101;
        let pending = group.profile.slots().rev().collect();
        let (acked, state, left, is_back) = (Vec::new(), State::Open, Vec::new(), false);
        self.extents.push(Written { counter, group, pending, acked, state, left, is_back });
    }

    /// A writer does not hear of losses: it sends to a lost disk as long as its map does not say so.
    async fn send(&mut self, number: usize) {
        let open = self.extents.iter_mut().filter(|written| written.state == State::Open);
        let Some(written) = open.into_iter().nth(number % 4) else { return };
        let slot = written.pending.pop().expect("it is open as long as something is pending");
        let status = self.fleet.put(&written.group, written.counter, slot, LENGTH).await;
        if status == StatusCode::OK {
            written.acked.push(slot);
        }
        if written.pending.is_empty() {
            let enough = written.acked.len() >= usize::from(written.group.profile.acks_min());
            written.state = if enough { State::Acknowledged } else { State::Failed };
        }
    }

    fn begin_move(&mut self, slot: Slot, to: usize) {
        let (group, target) = (self.fleet.group(), self.fleet.disks[to]);
        let may_begin =
            group.moving.is_none_or(|(moving, to)| moving == slot && self.fleet.is_lost(to));
        if may_begin && !group.names(target) && !self.fleet.is_lost(target) {
            self.is_retargeted |= group.moving.is_some();
            self.fleet.begin_move(slot, to);
            for written in self.extents.iter_mut().filter(|written| !written.is_back) {
                let key = ShardKey { extent: extent(written.counter), slot };
                let was_left = written.left.contains(&(slot, target));
                written.is_back = was_left && self.fleet.store(target).contains(key);
            }
        }
    }

    async fn copy(&mut self) {
        let group = self.fleet.group();
        let Some((slot, to)) = group.moving.filter(|(_, to)| !self.fleet.is_lost(*to)) else {
            return;
        };
        let step = SlotMove { group: group.id, epoch: group.epoch, slot, to };
        // what delays it is part of the game
        drop(self.fleet.copy(step).await);
        self.is_retargeted &= self.fleet.group().moving.is_some();
    }

    /// The collector knows the map as it is, and asks all places at once; what is away is asked when it is back.
    async fn delete(&mut self, number: usize) {
        let named = self.extents.iter_mut().filter(|written| written.state == State::Acknowledged);
        let Some(written) = named.into_iter().nth(number) else { return };
        let group = self.fleet.group();
        for slot in group.profile.slots() {
            let key = ShardKey { extent: extent(written.counter), slot };
            for &disk in self.fleet.disks.iter().filter(|disk| !self.fleet.is_lost(**disk)) {
                if group.places(slot).any(|place| place == disk) {
                    self.fleet.store(disk).delete(key).await.unwrap();
                } else if self.fleet.store(disk).contains(key) {
                    written.left.push((slot, disk));
                }
            }
        }
        written.state = State::Deleted;
    }

    /// What was acknowledged short survives one loss: a second one comes only when the first has been made good.
    fn lose(&mut self, node: usize) {
        let (map, group) = (self.fleet.map(), self.fleet.group());
        let disk = self.fleet.disks[node];
        let is_named = |disk: &Disk| !disk.state.is_read() && group.names(disk.id);
        let hurts = self.is_retargeted || map.disks.values().any(is_named);
        let lost = map.disks.values().filter(|disk| !disk.state.is_read()).count();
        // one disk more than the group has homes must be left, to move to
        if !hurts && !self.fleet.is_lost(disk) && lost + 1 + usize::from(self.width()) < NODES {
            self.fleet.lose(node);
        }
    }

    /// The good shards of what was acknowledged: all that were, but for what lay on a lost disk.
    async fn check(&self) {
        let group = self.fleet.group();
        for written in self.extents.iter().filter(|written| written.state == State::Acknowledged) {
            let mut good = 0;
            for slot in group.profile.slots() {
                let mut is_there = false;
                for disk in group.places(slot).filter(|disk| !self.fleet.is_lost(*disk)) {
                    is_there |= self.fleet.has(disk, written.counter, slot).await;
                }
                good += usize::from(is_there);
                let hurts = group.places(slot).any(|disk| self.fleet.is_lost(disk))
                    || (self.is_retargeted && group.target(slot).is_some());
                assert!(
                    is_there || hurts || !written.acked.contains(&slot),
                    "{slot} of {} is nowhere: {group:?}",
                    written.counter
                );
            }
            assert!(good >= usize::from(group.profile.data), "{} cannot be read", written.counter);
        }
    }

    /// Everybody hears of everything, and what moves arrives.
    async fn rest(&mut self) {
        self.fleet.away.lock().unwrap().clear();
        while let Some(written) =
            self.extents.iter().position(|written| written.state == State::Open)
        {
            let before = self.extents[..written].iter().filter(|other| other.state == State::Open);
            let number = before.count();
            self.send(number).await;
        }
        loop {
            self.fleet.all_learn();
            let group = self.fleet.group();
            let lost = group
                .profile
                .slots()
                .find(|slot| group.places(*slot).any(|disk| self.fleet.is_lost(disk)));
            match (group.moving, lost) {
                (Some((_, to)), _) if !self.fleet.is_lost(to) => {
                    let (slot, to) = group.moving.expect("it moves");
                    let step = SlotMove { group: group.id, epoch: group.epoch, slot, to };
                    self.fleet.copy(step).await.expect("nothing is in the way");
                    self.is_retargeted = false;
                }
                (_, Some(slot)) => {
                    let is_free = |node: &usize| {
                        let disk = self.fleet.disks[*node];
                        !group.names(disk) && !self.fleet.is_lost(disk)
                    };
                    let free = (0..NODES).find(is_free).expect("one disk more is left");
                    self.begin_move(slot, free);
                }
                (None, None) => break,
                (Some(_), None) => unreachable!("a lost target is a lost place"),
            }
            self.check().await;
        }
        for node in 0..NODES {
            for slot in self.fleet.group().profile.slots() {
                assert!(self.fleet.give_up(node, slot).await);
            }
        }
        self.check().await;
        self.check_that_nothing_is_left();
    }

    fn check_that_nothing_is_left(&self) {
        let group = self.fleet.group();
        for (node, &disk) in self.fleet.disks.iter().enumerate() {
            if self.fleet.is_lost(disk) {
                continue;
            }
            for meta in self.fleet.store(disk).list(None, usize::MAX) {
                let home = group.homes[usize::from(meta.key.slot.0)];
                let (extent, slot) = (meta.key.extent, meta.key.slot);
                assert_eq!(home, disk, "{extent} {slot} was left behind on node {node}");
                let of = self.extents.iter().find(|written| written.counter == extent.counter);
                // one that came back with its slot is left for the audit, and may have been copied from there
                let of = of.filter(|written| !written.is_back);
                assert_ne!(of.map(|written| written.state), Some(State::Deleted), "C6: {extent}");
            }
        }
    }
}

async fn play(profile: Profile, steps: Vec<Step>) {
    let mut model = Model::start(profile).await;
    for step in &steps {
        model.take(step).await;
        model.check().await;
    }
    model.rest().await;
    model.fleet.stop().await;
}

fn run(profile: Profile, steps: Vec<Step>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(play(profile, steps));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_interleaved_nothing_acknowledged_is_lost_in_2_1(steps in steps()) {
        run(Profile::RS_2_1, steps);
    }

    #[test]
    fn whatever_is_interleaved_nothing_acknowledged_is_lost_in_copies(steps in steps()) {
        run(Profile::RS_1_2, steps);
    }

    #[test]
    fn whatever_is_interleaved_nothing_acknowledged_is_lost_in_2_2(steps in steps()) {
        run(Profile { data: 2, parity: 2 }, steps);
    }
}
