//! What strikes, and how it heals.
//!
//! The atlas: kills, cuts, pauses and everything about the network and the clocks lose nothing that is promised, so they
//! may strike together as they like. What destroys stored bytes (rot) stays on one machine for the whole run, which is
//! within every margin of the cluster.

use crate::client::bucket;
use crate::machines::Machine;
use crate::options::{DRAINS, Dice, Fault, Options};
use crate::record::Recorder;
use crate::world::World;
use ashlar_client::Client;
use ashlar_host::{CutStyle, Disk as _, DiskPace, Life, Passage, Weather};
use ashlar_types::{
    Disk, DiskId, DiskState, KeyPoint, Node, ReplicaMove, Role, RootAnswer, RootOp, RootQuery,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a cut may wait for its next write before it comes anyway.
const MID_WRITE_PATIENCE: Duration = Duration::from_secs(2);
/// What a full disk has left: the log's next file, and the reserve of the shards.
const SPARE_BYTES: u64 = 6 << 20;
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Strikes and heals, one fault after another.
pub(crate) struct Nemesis {
    world: World,
    recorder: Recorder,
    dice: Dice,
    options: Options,
    faults: Vec<Fault>,
}

/// What a fault works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    /// It takes machines out of the world.
    Machines,
    /// It goes on while others take machines out.
    Surroundings,
    /// It asks the cluster for something.
    Cluster,
}

fn field(fault: Fault) -> Field {
    match fault {
        Fault::Partition | Fault::Storm | Fault::ClockJump | Fault::SlowDisk | Fault::FullDisk => {
            Field::Surroundings
        }
        Fault::Drain | Fault::Split | Fault::MoveReplica => Field::Cluster,
        Fault::Kill
        | Fault::PowerOne
        | Fault::PowerSome
        | Fault::PowerAll
        | Fault::PowerMidWrite
        | Fault::Pause
        | Fault::FailedSync
        | Fault::LoseNode
        | Fault::Rot
        | Fault::RotLog => Field::Machines,
    }
}

fn pick<T>(from: &[T], drawn: u64) -> Option<&T> {
    from.get(usize::try_from(drawn % from.len().max(1) as u64).unwrap_or(0))
}

impl Nemesis {
    /// Four work at once: two on machines, one on what lies between them and on how they behave, one on the cluster.
    pub(crate) fn all(world: &World, recorder: &Recorder, options: &Options) -> [Self; 4] {
        let parts = [
            (Field::Machines, 0x5555),
            (Field::Machines, 0x3333),
            (Field::Surroundings, 0xaaaa),
            (Field::Cluster, DRAINS),
        ];
        parts.map(|(own, salt)| {
            let faults = options.faults.iter().copied();
            let faults = faults.filter(|&fault| field(fault) == own).collect();
            Self {
                world: world.clone(),
                recorder: recorder.clone(),
                dice: Dice::new(options.seed ^ salt),
                options: options.clone(),
                faults,
            }
        })
    }

    pub(crate) async fn work(self) {
        if self.faults.is_empty() {
            return;
        }
        while !self.world.is_safety_over() {
            tokio::time::sleep(self.dice.millis(200, 4_000)).await;
            if self.world.is_safety_over() {
                return;
            }
            let fault = self.dice.pick(&self.faults);
            self.strike(fault).await;
        }
    }

    async fn strike(&self, fault: Fault) {
        let index = self.dice.index(self.world.count());
        match fault {
            Fault::Drain => self.drain(index).await,
            Fault::Split => self.split(index).await,
            Fault::MoveReplica => self.move_replica(index).await,
            Fault::LoseNode => self.lose_node(index).await,
            Fault::Kill => self.kill(index).await,
            Fault::PowerOne => self.power_one(index).await,
            Fault::PowerSome => self.power_some().await,
            Fault::PowerAll => self.power_many(&(0..self.world.count()).collect::<Vec<_>>()).await,
            Fault::PowerMidWrite => self.power_mid_write(index).await,
            Fault::Pause => self.pause(index).await,
            Fault::Partition => self.partition().await,
            Fault::Storm => self.storm().await,
            Fault::SlowDisk => self.slow_disk(index).await,
            Fault::FailedSync => self.failed_sync(index).await,
            Fault::ClockJump => self.clock_jump(index).await,
            Fault::Rot => self.rot(Machine::segments).await,
            Fault::RotLog => self.rot(Machine::log_files).await,
            Fault::FullDisk => self.full_disk(index).await,
        }
    }

    fn style(&self) -> CutStyle {
        match self.dice.below(3) {
            0 => CutStyle::DropAll,
            1 => CutStyle::KeepAll,
            _ => CutStyle::Torn { seed: self.dice.u64() },
        }
    }

    fn name(index: usize) -> String {
        format!("node-{}", index + 1)
    }

    async fn rest(&self, first: u64, last: u64) {
        tokio::time::sleep(self.dice.millis(first, last)).await;
    }

    async fn kill(&self, index: usize) {
        let strike = self.recorder.strike("kill", Self::name(index));
        let at = self.recorder.now_us();
        self.world.kill(index).await;
        self.rest(0, 5_000).await;
        self.world.start(index).await;
        self.recorder.healed(strike, at, "its tasks are dropped");
    }

    async fn power_one(&self, index: usize) {
        let style = self.style();
        let strike = self.recorder.strike("power-one", format!("{} {style:?}", Self::name(index)));
        let at = self.recorder.now_us();
        self.world.cut(index, style).await;
        self.rest(0, 5_000).await;
        self.world.start(index).await;
        self.recorder.healed(strike, at, "its tasks are dropped");
    }

    async fn power_some(&self) {
        let all: Vec<usize> = (0..self.world.count()).collect();
        let some: Vec<usize> = all.into_iter().filter(|_| self.dice.percent(50)).collect();
        self.power_many(&some).await;
    }

    async fn power_many(&self, machines: &[usize]) {
        let style = self.style();
        let strike = self.recorder.strike("power-many", format!("{machines:?} {style:?}"));
        let at = self.recorder.now_us();
        for &index in machines {
            let style = match style {
                CutStyle::Torn { seed } => CutStyle::Torn { seed: seed ^ index as u64 },
                CutStyle::DropAll | CutStyle::KeepAll => style,
            };
            self.world.cut(index, style).await;
        }
        self.rest(0, 3_000).await;
        let starts = machines.iter().map(|&index| self.world.start(index));
        futures::future::join_all(starts).await;
        self.recorder.healed(strike, at, "their tasks are dropped");
    }

    async fn power_mid_write(&self, index: usize) {
        let (style, steps) = (self.style(), self.dice.below(30));
        let target = format!("{} {style:?} after {steps} steps", Self::name(index));
        let strike = self.recorder.strike("power-mid-write", target);
        self.world.look(index, |machine| machine.host.disk().cut_after(steps, style));
        let deadline = tokio::time::Instant::now() + MID_WRITE_PATIENCE;
        let is_dark = || self.world.look(index, |machine| machine.is_dark()).unwrap_or(true);
        while !is_dark() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let at = self.recorder.now_us();
        self.world.cut(index, style).await;
        self.rest(0, 3_000).await;
        self.world.start(index).await;
        self.recorder.healed(strike, at, "its tasks are dropped");
    }

    fn life(&self, index: usize) -> Option<Life> {
        self.world.look(index, |machine| machine.life().cloned()).flatten()
    }

    async fn pause(&self, index: usize) {
        let Some(life) = self.life(index) else { return };
        let strike = self.recorder.strike("pause", Self::name(index));
        let at = self.recorder.now_us();
        life.pause();
        self.rest(100, 12_000).await;
        life.resume();
        self.recorder.healed(strike, at, "its tasks are not polled");
    }

    async fn partition(&self) {
        let all = self.world.addresses().to_vec();
        let passage = if self.dice.percent(75) { Passage::Held } else { Passage::Refused };
        let alone = self.dice.index(all.len());
        let bridge = (alone + 1) % all.len();
        let kind = self.dice.below(4);
        let strike = self.recorder.strike("partition", format!("{kind} {alone} {passage:?}"));
        let at = self.recorder.now_us();
        let half = all.len() / 2;
        for (i, from) in all.iter().enumerate() {
            for (j, to) in all.iter().enumerate().filter(|(j, _)| *j != i) {
                let is_closed = match kind {
                    // one alone
                    0 => i == alone || j == alone,
                    // one hears nobody
                    1 => j == alone,
                    // two halves, and one that sees both
                    2 => i != bridge && j != bridge && (i < half) != (j < half),
                    // a ring: each sees its neighbours
                    _ => (i + 1) % all.len() != j && (j + 1) % all.len() != i,
                };
                if is_closed {
                    self.world.fabric().set_passage(*from, *to, passage);
                }
            }
        }
        self.rest(300, 10_000).await;
        self.world.fabric().heal();
        self.recorder.healed(strike, at, "passages are closed");
    }

    async fn storm(&self) {
        let strike = self.recorder.strike("storm", "all".to_owned());
        let at = self.recorder.now_us();
        let weather = Weather {
            latency: self.dice.millis(1, 60),
            jitter: self.dice.millis(1, 120),
            lost_per_million: u32::try_from(self.dice.below(100_000)).unwrap_or(0),
            broken_per_million: u32::try_from(self.dice.below(5_000)).unwrap_or(0),
            ..self.options.weather
        };
        self.world.fabric().set_weather(weather);
        self.rest(500, 8_000).await;
        self.world.fabric().set_weather(self.options.weather);
        self.recorder.healed(strike, at, "delays are drawn from it");
    }

    async fn slow_disk(&self, index: usize) {
        let strike = self.recorder.strike("slow-disk", Self::name(index));
        let at = self.recorder.now_us();
        let sync = self.dice.millis(10, 400);
        let pace = DiskPace { sync, call: self.dice.millis(1, 20), bytes_per_ms: 10_000 };
        let conduct = &self.world.hardware(index).conduct;
        conduct.set_pace(pace);
        self.rest(1_000, 8_000).await;
        conduct.set_pace(DiskPace::default());
        self.recorder.healed(strike, at, "calls take their time");
    }

    async fn failed_sync(&self, index: usize) {
        let good = self.dice.below(20);
        let arm = |machine: &Machine| {
            machine.node().map(|_| machine.host.disk().fail_sync_after(good)).is_some()
        };
        // a node that is down does not start on a disk that cannot sync, and nobody promises that it does
        if self.world.look(index, arm) != Some(true) {
            return;
        }
        let strike = self.recorder.strike("failed-sync", Self::name(index));
        let at = self.recorder.now_us();
        self.rest(500, 5_000).await;
        // a log that has failed ends its process
        self.world.kill(index).await;
        self.world.start(index).await;
        self.recorder.healed(strike, at, "a sync fails, or the process was killed before");
    }

    async fn clock_jump(&self, index: usize) {
        let strike = self.recorder.strike("clock-jump", Self::name(index));
        let at = self.recorder.now_us();
        let hours = self.dice.below(48);
        let ahead = i64::try_from(hours * 3_600_000).unwrap_or_default() - 24 * 3_600_000;
        let skew = &self.world.hardware(index).skew;
        skew.set_ms(ahead);
        self.rest(100, 5_000).await;
        if self.dice.percent(50) {
            skew.set_ms(0);
        }
        self.recorder.healed(strike, at, "its wall clock shows it");
    }

    async fn full_disk(&self, index: usize) {
        let strike = self.recorder.strike("full-disk", Self::name(index));
        let at = self.recorder.now_us();
        let disk = &self.world.hardware(index).disk;
        let used =
            disk.usage(Path::new("/")).map_or(0, |usage| usage.total_bytes - usage.free_bytes);
        disk.set_capacity(Some(used + SPARE_BYTES));
        self.rest(1_000, 8_000).await;
        disk.set_capacity(None);
        self.world.restart_failed(index).await;
        self.recorder.healed(strike, at, "its disk has hardly more room than its reserve");
    }

    /// One disk at a time: the next one begins when the last is used again, or for good instead of it.
    async fn drain(&self, index: usize) {
        let Some((client, _)) = self.asked(index) else { return };
        let map = client.map();
        let disks: Vec<&Disk> = map.disks.values().collect();
        if disks.is_empty() {
            return;
        }
        let disk = disks[self.dice.index(disks.len())].id;
        for other in disks.iter().filter(|other| other.state == DiskState::Draining) {
            self.set_state(other.id, DiskState::Healthy).await;
        }
        let strike = self.recorder.strike("drain", disk.to_string());
        let at = self.recorder.now_us();
        self.set_state(disk, DiskState::Draining).await;
        self.rest(2_000, 12_000).await;
        if self.dice.percent(70) {
            self.set_state(disk, DiskState::Healthy).await;
        }
        self.recorder.healed(strike, at, "its slots move, if there is another place for them");
    }

    /// Any key that is in use may become the first one of a range.
    async fn split(&self, index: usize) {
        let Some((client, life)) = self.asked(index) else { return };
        let key = format!("key-{:02}", self.dice.below(self.options.keys));
        let strike = self.recorder.strike("split", key.clone());
        let at = self.recorder.now_us();
        let asking = life.spawn(async move {
            let found = client.root_query(RootQuery::Bucket(bucket())).await;
            let Ok(RootAnswer::Bucket(Some(found))) = found else { return None };
            client.begin_split(&KeyPoint::new(found.row.bucket, key)).await.ok()
        });
        let begun = asking.await.ok().flatten();
        self.rest(0, 2_000).await;
        let came =
            begun.map_or_else(|| "not begun".to_owned(), |child| format!("{child} is to be"));
        self.recorder.healed(strike, at, &came);
    }

    /// Any replica, to any node that has none of the range; sometimes a move is given up instead.
    async fn move_replica(&self, index: usize) {
        let Some((client, life)) = self.asked(index) else { return };
        let (range, from, to) = (self.dice.u64(), self.dice.u64(), self.dice.u64());
        let strike = self.recorder.strike("move-replica", Self::name(index));
        let at = self.recorder.now_us();
        let asking = life.spawn(async move {
            let directory = client.replicas_now().await.ok()?;
            let one = pick(&directory.ranges, range)?;
            if let Some(step) = one.moving.clone() {
                let given_up = client.root(RootOp::CancelReplicaMove(step.clone())).await;
                return given_up.ok().map(|_| format!("given up: {step}"));
            }
            let map = client.map();
            let is_free = |node: &&Node| {
                node.roles.contains(&Role::Meta) && !one.range.voters.contains(&node.id)
            };
            let free: Vec<&Node> = map.nodes.values().filter(is_free).collect();
            let step = ReplicaMove {
                range: one.range.id,
                from: vec![*pick(&one.range.voters, from)?],
                to: vec![pick(&free, to)?.id],
            };
            let begun = client.begin_replica_move(one.range.voters.clone(), step.clone()).await;
            begun.ok().map(|()| format!("begun: {step}"))
        });
        let came = asking.await.ok().flatten();
        self.rest(0, 3_000).await;
        self.recorder.healed(strike, at, &came.unwrap_or_else(|| "nothing".to_owned()));
    }

    /// Away for longer than it takes to be lost, where that is not very long. A machine without metadata may be drawn: then
    /// it is only away.
    async fn lose_node(&self, index: usize) {
        let lost_after = self.options.node_lost_after_seconds.min(10);
        let strike = self.recorder.strike("lose-node", Self::name(index));
        let at = self.recorder.now_us();
        self.world.kill(index).await;
        self.rest(lost_after * 1_000, lost_after * 1_000 + 8_000).await;
        self.world.start(index).await;
        self.recorder.healed(strike, at, "its tasks are dropped");
    }

    /// Asks whichever node serves, until one of them says yes or the faults are over.
    async fn set_state(&self, disk: DiskId, state: DiskState) {
        while !self.world.is_safety_over() {
            let index = self.dice.index(self.world.count());
            if let Some((client, life)) = self.asked(index) {
                let op = RootOp::SetDiskState { disk, state };
                let asking = life.spawn(async move { client.root(op).await.is_ok() });
                if asking.await.unwrap_or(false) {
                    return;
                }
            }
            self.rest(100, 500).await;
        }
    }

    fn asked(&self, index: usize) -> Option<(Client, Life)> {
        self.world.client(index).zip(self.life(index))
    }

    /// Flips bytes of files. Always of the same machine.
    async fn rot(&self, files: fn(&Machine) -> Vec<PathBuf>) {
        let index = usize::try_from(self.options.seed).unwrap_or_default() % self.world.count();
        let strike = self.recorder.strike("rot", Self::name(index));
        let at = self.recorder.now_us();
        let flips = self.dice.between(1, 8);
        for _ in 0..flips {
            let place = self.dice.u64();
            self.world.look(index, |machine| {
                let files = files(machine);
                let count = files.len().max(1) as u64;
                let Some(path) = files.get(usize::try_from(place % count).unwrap_or(0)) else {
                    return;
                };
                // behind the header page, where records lie; a byte beyond the end is none
                let offset = 4096 + (place >> 32) % (256 << 10);
                drop(machine.host.disk().flip(path, offset));
            });
        }
        self.rest(100, 2_000).await;
        self.world.restart_failed(index).await;
        self.recorder.healed(strike, at, &format!("{flips} bytes were flipped"));
    }
}
