//! What a run is: everything that its seed decides before it begins.

use ashlar_host::{Random, SeededRandom, Weather};
use clap::ValueEnum;
use std::fmt;
use std::time::Duration;

/// What may strike. A run knows some of them, and draws among these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// A process is killed: what it has written stays.
    Kill,
    /// One machine loses its power.
    PowerOne,
    /// Some machines do, at the same moment.
    PowerSome,
    /// All machines do.
    PowerAll,
    /// A machine loses its power in the middle of its next writes.
    PowerMidWrite,
    /// A process stands still.
    Pause,
    /// Machines do not hear some others.
    Partition,
    /// Messages are late, lost, or break their connections.
    Storm,
    /// A disk takes its time.
    SlowDisk,
    /// A sync fails; the process is restarted later.
    FailedSync,
    /// A wall clock jumps.
    ClockJump,
    /// Stored shards of one machine rot.
    Rot,
    /// The log of that machine rots.
    RotLog,
    /// A disk has no more room for a while.
    FullDisk,
    /// An operator lets a disk be emptied, and mostly uses it again later: slots move meanwhile.
    Drain,
    /// An operator lets a range be split.
    Split,
    /// An operator lets a replica of a range move to another node, or gives a move up.
    MoveReplica,
    /// A machine of the metadata is away for so long that others take over what it held; then it comes back.
    LoseNode,
}

impl Fault {
    fn needs_spares(&self) -> bool {
        matches!(self, Self::MoveReplica | Self::LoseNode)
    }
}

/// Makes the dice of drains other than all else.
pub(crate) const DRAINS: u64 = 0x00d2_a115;
/// And those of splits.
const SPLITS: u64 = 0x0051_7117;
/// And those of machines that may take over what others hold of the metadata.
const SPARES: u64 = 0x05ba_4e50;
/// And those of whether the bucket keeps versions.
const VERSIONS: u64 = 0x0e25_1055;

const FAULTS: [Fault; 14] = [
    Fault::Kill,
    Fault::PowerOne,
    Fault::PowerSome,
    Fault::PowerAll,
    Fault::PowerMidWrite,
    Fault::Pause,
    Fault::Partition,
    Fault::Storm,
    Fault::SlowDisk,
    Fault::FailedSync,
    Fault::ClockJump,
    Fault::Rot,
    Fault::RotLog,
    Fault::FullDisk,
];

/// The options of a run.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) nodes: u8,
    pub(crate) disks: usize,
    pub(crate) voters: u8,
    /// Nodes that join before anything strikes, with the role meta and no other.
    pub(crate) spares: u8,
    /// The bucket keeps versions: what a key has now must not show it.
    pub(crate) keeps_versions: bool,
    /// A node that is silent for so long is lost to the metadata.
    pub(crate) node_lost_after_seconds: u64,
    pub(crate) ranges: u64,
    pub(crate) gateways: u8,
    pub(crate) clients: u64,
    pub(crate) keys: u64,
    pub(crate) safety: Duration,
    pub(crate) think_ms_max: u64,
    pub(crate) snapshot_log_bytes: u64,
    pub(crate) small_segment_bytes: u64,
    pub(crate) scrub_cycle_seconds: u64,
    pub(crate) faults: Vec<Fault>,
    /// Before the audit the power of all machines is cut, and nothing un-synced survives.
    pub(crate) last_cut: bool,
    pub(crate) weather: Weather,
}

/// Draws. The order of draws is part of what a seed means.
pub(crate) struct Dice(SeededRandom);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SeededRandom::new(seed))
    }

    /// Below `end`, which is not 0.
    pub(crate) fn below(&self, end: u64) -> u64 {
        self.0.next_u64() % end
    }

    pub(crate) fn between(&self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    pub(crate) fn percent(&self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub(crate) fn pick<T: Copy>(&self, from: &[T]) -> T {
        let at = self.below(from.len() as u64);
        from[usize::try_from(at).expect("an index of a slice")]
    }

    pub(crate) fn index(&self, count: usize) -> usize {
        usize::try_from(self.below(count as u64)).expect("an index of a slice")
    }

    pub(crate) fn u64(&self) -> u64 {
        self.0.next_u64()
    }

    pub(crate) fn millis(&self, first: u64, last: u64) -> Duration {
        Duration::from_millis(self.between(first, last))
    }
}

impl Options {
    /// What `seed` decides.
    pub(crate) fn of(seed: u64) -> Self {
        let dice = Dice::new(seed);
        let nodes = dice.pick(&[3, 3, 3, 4, 5, 6]);
        let voters = if nodes >= 5 && dice.percent(30) { 5 } else { 3 };
        let mut faults: Vec<Fault> = FAULTS.into_iter().filter(|_| dice.percent(30)).collect();
        if faults.is_empty() {
            faults.push(dice.pick(&FAULTS));
        }
        // drawn apart, so that nothing else of a seed depends on it
        if Dice::new(seed ^ DRAINS).percent(40) {
            faults.push(Fault::Drain);
        }
        if Dice::new(seed ^ SPLITS).percent(50) {
            faults.push(Fault::Split);
        }
        let spare_dice = Dice::new(seed ^ SPARES);
        let spares = spare_dice.pick(&[0, 0, 1, 1, 2]);
        let node_lost_after_seconds = spare_dice.pick(&[3, 8, 300]);
        if spares > 0 {
            let both = [Fault::MoveReplica, Fault::LoseNode];
            faults.extend(both.into_iter().filter(|_| spare_dice.percent(60)));
        }
        Self {
            seed,
            nodes,
            spares,
            keeps_versions: Dice::new(seed ^ VERSIONS).percent(40),
            node_lost_after_seconds,
            disks: dice.pick(&[1, 1, 2]),
            voters,
            ranges: dice.between(1, 3),
            gateways: nodes.min(3),
            clients: dice.between(3, 5),
            keys: dice.pick(&[1, 3, 6, 16]),
            safety: Duration::from_secs(dice.between(10, 30)),
            think_ms_max: dice.pick(&[20, 50, 200, 200]),
            snapshot_log_bytes: dice.pick(&[32 << 10, 256 << 10, 4 << 20]),
            small_segment_bytes: dice.pick(&[256 << 10, 512 << 10, 1 << 20]),
            scrub_cycle_seconds: dice.pick(&[10, 600]),
            faults,
            last_cut: dice.percent(50),
            weather: Weather {
                latency: Duration::from_micros(dice.pick(&[300, 1_000, 5_000])),
                jitter: Duration::from_micros(dice.pick(&[400, 3_000])),
                ..Weather::default()
            },
        }
    }
}

impl Options {
    /// Other faults than those that were drawn. Where they need no spare nodes there are none, so that the run is the one
    /// that the seed meant before there were any.
    pub(crate) fn under(&mut self, faults: &[Fault]) {
        self.faults = faults.to_vec();
        self.keeps_versions = false;
        if !faults.iter().any(Fault::needs_spares) {
            self.spares = 0;
        }
    }

    /// No more nodes than those that found the cluster, and no versions: what a seed meant before there were any.
    pub(crate) fn without_spares(&mut self) {
        self.faults.retain(|fault| !fault.needs_spares());
        self.spares = 0;
        self.keeps_versions = false;
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, nodes, disks, voters, spares, ranges, clients, keys, .. } = self;
        let versions = if self.keeps_versions { " with versions" } else { "" };
        let seconds = self.safety.as_secs();
        write!(
            f,
            "seed {seed}: {nodes} nodes with {disks} disks, {voters} voters, {spares} spares, {ranges} ranges, {clients} clients on {keys} keys{versions}, {seconds} s of {:?}{}",
            self.faults,
            if self.last_cut { ", a last cut" } else { "" }
        )
    }
}
