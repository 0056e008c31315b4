//! The atlas of faults: what each does, how it is seen to bite, how it heals, and what keeps it within the promise.
//!
//! At most f = 1 voter and m = 2 data nodes of six are away at once, but for faults that take the power of all and give
//! it back. Rot stays on one node, and counts as one node away for the rest of the run: [`Atlas`] remembers it.

use crate::cluster::{Cluster, NODES};
use crate::node::can_fake_time;
use crate::switch::{Counts, Trouble};
use anyhow::{Context, Result, ensure};
use ashlar_host::{Random, SeededRandom};
use ashlar_load::Call;
use ashlar_powercut::machine::run;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Bits that rot turns.
const ROTTEN_BITS: u64 = 200;
/// Headers lie before; a disk that has lost them is another fault.
const ROT_FROM: u64 = 64 << 10;
const FULL_LEAVES_BYTES: u64 = 256 << 10;
const THROTTLED_BYTES_A_SECOND: u64 = 1 << 20;
const CLOCK_JUMP_SECONDS: u64 = 3_600;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// SIGKILL of one node.
    Kill,
    /// SIGSTOP of one node.
    Pause,
    /// SIGKILL of all nodes at once.
    KillAll,
    /// Every node stopped and started, one after another.
    Rolling,
    /// The power of one node.
    PowerCut,
    /// The power of a zone.
    PowerCutZone,
    /// The power of all.
    PowerCutAll,
    /// One node reaches no other, and none reaches it.
    Isolate,
    /// A zone reaches no other.
    IsolateZone,
    /// What one node sends reaches no other node.
    OneWay,
    /// Two halves that only one node joins.
    Bridge,
    /// Each node reaches its two neighbours only.
    Ring,
    /// Packets are lost.
    Loss,
    /// Packets are late and overtake one another.
    Delay,
    /// Packets come twice.
    Double,
    /// Packets are damaged.
    Damage,
    /// A disk is full.
    Full,
    /// A disk stands still.
    Freeze,
    /// A disk is slow.
    Throttle,
    /// Bits of data files turn.
    Rot,
    /// A clock jumps.
    Clock,
}

impl Kind {
    /// Every fault once: what follows rot must allow for it, so it is the last.
    pub(crate) const ALL: [Self; 21] = [
        Self::Kill,
        Self::Pause,
        Self::Isolate,
        Self::OneWay,
        Self::Bridge,
        Self::Ring,
        Self::IsolateZone,
        Self::Loss,
        Self::Delay,
        Self::Double,
        Self::Damage,
        Self::PowerCut,
        Self::PowerCutZone,
        Self::PowerCutAll,
        Self::KillAll,
        Self::Rolling,
        Self::Full,
        Self::Freeze,
        Self::Throttle,
        Self::Clock,
        Self::Rot,
    ];

    /// What the history calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::KillAll => "kill-all",
            Self::Rolling => "rolling-restart",
            Self::PowerCut => "power-cut",
            Self::PowerCutZone => "power-cut-zone",
            Self::PowerCutAll => "power-cut-all",
            Self::Isolate => "isolate",
            Self::IsolateZone => "isolate-zone",
            Self::OneWay => "one-way",
            Self::Bridge => "bridge",
            Self::Ring => "ring",
            Self::Loss => "loss",
            Self::Delay => "delay",
            Self::Double => "double",
            Self::Damage => "damage",
            Self::Full => "full-disk",
            Self::Freeze => "frozen-disk",
            Self::Throttle => "slow-disk",
            Self::Rot => "rot",
            Self::Clock => "clock-jump",
        }
    }

    /// Why this machine cannot do it; none where it can.
    pub(crate) fn cannot(self, cluster: &Cluster) -> Option<&'static str> {
        let is_local = cluster.switch.is_none();
        let has_cgroup =
            cluster.nodes[0].ground.as_ref().is_some_and(|ground| ground.cgroup.is_some());
        match self {
            Self::Kill | Self::Pause | Self::KillAll | Self::Rolling | Self::Rot => None,
            Self::Clock if !can_fake_time() => Some("there is no libfaketime (Debian: faketime)"),
            Self::Clock => None,
            Self::Throttle if !is_local && !has_cgroup => {
                Some("there is no cgroup with a throttle for block devices")
            }
            _ if is_local => Some("it needs network namespaces and disk images"),
            _ => None,
        }
    }
}

/// A fault that has struck.
pub(crate) struct Struck {
    kind: Kind,
    nodes: Vec<usize>,
    before: Counts,
}

/// Chooses targets within the promise, and remembers what does not heal at once.
pub(crate) struct Atlas {
    random: SeededRandom,
    rotten: Option<usize>,
}

impl Atlas {
    /// Of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: SeededRandom::new(seed), rotten: None }
    }

    /// A number below.
    pub(crate) fn roll(&self, sides: usize) -> usize {
        usize::try_from(self.random.next_u64() % sides as u64).unwrap_or_default()
    }

    /// Which nodes a fault is to strike.
    pub(crate) fn aim(&mut self, kind: Kind, cluster: &Cluster) -> Vec<usize> {
        match kind {
            Kind::KillAll | Kind::Rolling | Kind::PowerCutAll | Kind::Ring => (0..NODES).collect(),
            Kind::Loss | Kind::Delay | Kind::Double | Kind::Damage => (0..NODES).collect(),
            Kind::PowerCutZone | Kind::IsolateZone => {
                // beside a rotten node a whole zone may only be the one that it stands in
                cluster.of_zone(self.rotten.map_or_else(|| self.roll(3), |node| node / 2))
            }
            Kind::Rot => vec![*self.rotten.get_or_insert(NODES - 1)],
            Kind::Kill
            | Kind::Pause
            | Kind::PowerCut
            | Kind::Isolate
            | Kind::OneWay
            | Kind::Bridge
            | Kind::Full
            | Kind::Freeze
            | Kind::Throttle
            | Kind::Clock => vec![self.roll(NODES)],
        }
    }

    /// Strikes. What shows that it bit, where that is known at once.
    pub(crate) async fn strike(
        &self,
        kind: Kind,
        nodes: &[usize],
        cluster: &mut Cluster,
    ) -> Result<(Struck, Option<String>)> {
        let before = cluster.switch.as_ref().map(|switch| switch.counts()).unwrap_or_default();
        let evidence = match kind {
            Kind::Kill | Kind::KillAll => Some(kill(cluster, nodes).await?),
            Kind::Pause => Some(cluster.nodes[nodes[0]].pause().await?),
            Kind::Rolling => None,
            Kind::PowerCut | Kind::PowerCutZone | Kind::PowerCutAll => {
                Some(cut_power(cluster, nodes).await?)
            }
            Kind::Isolate
            | Kind::IsolateZone
            | Kind::OneWay
            | Kind::Bridge
            | Kind::Ring
            | Kind::Loss
            | Kind::Delay
            | Kind::Double
            | Kind::Damage => {
                trouble(kind, nodes, cluster)?;
                None
            }
            Kind::Full => Some(fill(&cluster.nodes[nodes[0]].home)?),
            Kind::Freeze => {
                freeze(&cluster.nodes[nodes[0]].home, true)?;
                Some("the file system is frozen".to_owned())
            }
            Kind::Throttle => Some(throttle(cluster, nodes[0], Some(THROTTLED_BYTES_A_SECOND))?),
            Kind::Rot => Some(self.rot(&cluster.nodes[nodes[0]].config.data.disks)?),
            Kind::Clock => Some(jump(cluster, nodes[0], CLOCK_JUMP_SECONDS).await?),
        };
        Ok((Struck { kind, nodes: nodes.to_vec(), before }, evidence))
    }

    /// Turns bits in the segments of a node's disks, and reads back that they have turned.
    fn rot(&self, disks: &[PathBuf]) -> Result<String> {
        let mut files = Vec::new();
        for disk in disks {
            segments(disk, &mut files)?;
        }
        ensure!(!files.is_empty(), "there is no segment in which a bit could turn");
        for _ in 0..ROTTEN_BITS {
            let path = &files[self.roll(files.len())];
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            // what has been written lies at the beginning
            let room = (file.metadata()?.len() - ROT_FROM).min(8 << 20);
            let at = ROT_FROM + self.random.next_u64() % room;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at)?;
            let turned = byte[0] ^ 1 << self.roll(8);
            file.write_all_at(&[turned], at)?;
            file.read_exact_at(&mut byte, at)?;
            ensure!(byte[0] == turned, "a bit did not turn");
        }
        Ok(format!("{ROTTEN_BITS} bits turned in {} files", files.len()))
    }
}

impl Struck {
    /// Heals it. What showed that it bit, where that is known only now.
    pub(crate) async fn heal(self, cluster: &mut Cluster) -> Result<Option<String>> {
        let first = self.nodes[0];
        match self.kind {
            Kind::Kill | Kind::KillAll => start(cluster, &self.nodes)?,
            Kind::Pause => cluster.nodes[first].resume()?,
            Kind::Rolling => return roll(cluster).await.map(Some),
            Kind::PowerCut | Kind::PowerCutZone | Kind::PowerCutAll => {
                for node in &self.nodes {
                    cluster.nodes[*node].regain_power()?;
                }
                start(cluster, &self.nodes)?;
            }
            Kind::Isolate
            | Kind::IsolateZone
            | Kind::OneWay
            | Kind::Bridge
            | Kind::Ring
            | Kind::Loss
            | Kind::Delay
            | Kind::Double
            | Kind::Damage => return self.calm(cluster).map(Some),
            Kind::Full => std::fs::remove_file(cluster.nodes[first].home.join(FILLER))?,
            Kind::Freeze => freeze(&cluster.nodes[first].home, false)?,
            Kind::Throttle => {
                throttle(cluster, first, None)?;
            }
            Kind::Rot => {}
            Kind::Clock => {
                jump(cluster, first, 0).await?;
            }
        }
        Ok(None)
    }

    /// The network is well again; which packets it had troubled.
    fn calm(&self, cluster: &Cluster) -> Result<String> {
        let switch = cluster.network()?;
        let (before, now) = (self.before, switch.counts());
        switch.heal();
        let (count, what) = match self.kind {
            Kind::Loss => (now.lost - before.lost, "lost"),
            Kind::Delay => (now.delayed - before.delayed, "late"),
            Kind::Double => (now.doubled - before.doubled, "doubled"),
            Kind::Damage => (now.damaged - before.damaged, "damaged"),
            _ => (now.cut - before.cut, "held back"),
        };
        ensure!(count > 0, "no packet was {what}");
        Ok(format!("{count} packets were {what}"))
    }
}

async fn kill(cluster: &mut Cluster, nodes: &[usize]) -> Result<String> {
    let mut seen = Vec::new();
    for node in nodes {
        seen.push(cluster.nodes[*node].kill().await?);
    }
    Ok(seen.join(", "))
}

fn start(cluster: &mut Cluster, nodes: &[usize]) -> Result<()> {
    nodes.iter().try_for_each(|node| cluster.nodes[*node].start())
}

/// First the power of all, then their processes: what these still do cannot become durable.
async fn cut_power(cluster: &mut Cluster, nodes: &[usize]) -> Result<String> {
    let mut seen = Vec::new();
    for node in nodes {
        seen.push(cluster.nodes[*node].lose_power()?);
    }
    kill(cluster, nodes).await?;
    Ok(seen.join(", "))
}

async fn roll(cluster: &mut Cluster) -> Result<String> {
    let mut seen = Vec::new();
    for node in &mut cluster.nodes {
        seen.push(node.stop().await?);
        node.start()?;
        node.wait_ready().await?;
    }
    Ok(seen.join(", "))
}

fn trouble(kind: Kind, nodes: &[usize], cluster: &Cluster) -> Result<()> {
    let ms = Duration::from_millis;
    let calm = Trouble::default();
    let trouble = match kind {
        Kind::Loss => Trouble { loss: 50, ..calm },
        Kind::Delay => Trouble { delay: ms(5), jitter: ms(20), ..calm },
        Kind::Double => Trouble { double: 100, ..calm },
        Kind::Damage => Trouble { damage: 30, ..calm },
        _ => Trouble { is_cut: true, ..calm },
    };
    let struck = |from: usize, to: usize| match kind {
        Kind::Isolate | Kind::IsolateZone => nodes.contains(&from) != nodes.contains(&to),
        Kind::OneWay => from == nodes[0],
        // the halves are the three nodes behind the bridge and the two before it
        Kind::Bridge => {
            let side = |node: usize| match (node + NODES - nodes[0]) % NODES {
                0 => None,
                place => Some(place <= 3),
            };
            side(from).zip(side(to)).is_some_and(|(from, to)| from != to)
        }
        Kind::Ring => !matches!((from + NODES - to) % NODES, 1 | 5),
        _ => true,
    };
    // all directions between nodes; what lies between them and the client is troubled by chances only
    let with_client = matches!(kind, Kind::Loss | Kind::Delay | Kind::Double | Kind::Damage);
    let hosts = if with_client { NODES + 1 } else { NODES };
    let directions = (0..hosts).flat_map(|from| (0..hosts).map(move |to| (from, to)));
    let directions: Vec<(usize, usize)> =
        directions.filter(|&(from, to)| from != to && struck(from, to)).collect();
    cluster.network()?.trouble(&directions, trouble);
    Ok(())
}

const FILLER: &str = "filler";

/// Takes all room but a little.
fn fill(home: &Path) -> Result<String> {
    let free = || -> Result<u64> {
        let facts = rustix::fs::statvfs(home)?;
        Ok(facts.f_bavail * facts.f_frsize)
    };
    let file = OpenOptions::new().create_new(true).write(true).open(home.join(FILLER))?;
    let mut length = 0;
    // a file system keeps some room for itself: in steps, down to small ones
    for step in [64 << 20, 4 << 20, 256 << 10] {
        while free()? > step.max(FULL_LEAVES_BYTES) {
            let flags = rustix::fs::FallocateFlags::empty();
            if rustix::fs::fallocate(&file, flags, length, step).is_err() {
                break;
            }
            length += step;
        }
    }
    let left = free()?;
    ensure!(left < 16 << 20, "{left} bytes are still free");
    Ok(format!("{} MiB taken, {} KiB free", length >> 20, left >> 10))
}

fn freeze(home: &Path, is_frozen: bool) -> Result<()> {
    let flag = if is_frozen { "--freeze" } else { "--unfreeze" };
    run(Command::new("fsfreeze").arg(flag).arg(home)).map(drop)
}

/// Bounds what a node may write a second, or lifts the bound; a write within the bound shows that it holds.
fn throttle(cluster: &Cluster, node: usize, bytes: Option<u64>) -> Result<String> {
    let node = &cluster.nodes[node];
    let ground = node.ground.as_ref().context("a slow disk needs a disk image")?;
    let cgroup = ground.cgroup.as_ref().context("there is no cgroup")?;
    let numbers = std::fs::metadata(&ground.device)?;
    let device = std::os::unix::fs::MetadataExt::rdev(&numbers);
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let bound = bytes.unwrap_or_default();
    let file = cgroup.join("blkio.throttle.write_bps_device");
    std::fs::write(file, format!("{major}:{minor} {bound}"))?;
    if bytes.is_none() {
        return Ok("as fast as before".to_owned());
    }
    let began = Instant::now();
    let probe = node.home.join("probe");
    let write = "echo $$ > $0/cgroup.procs && dd if=/dev/zero of=$1 bs=1M count=2 oflag=direct";
    run(Command::new("sh").args(["-c", write]).arg(cgroup).arg(&probe))?;
    std::fs::remove_file(probe)?;
    let took = began.elapsed();
    ensure!(took > Duration::from_millis(900), "2 MiB were written in {took:?}");
    Ok(format!("2 MiB take {:.1} s", took.as_secs_f64()))
}

/// Sets a node's clock to so many seconds ahead; the date of an answer shows it.
async fn jump(cluster: &Cluster, node: usize, seconds: u64) -> Result<String> {
    let node = &cluster.nodes[node];
    std::fs::write(&node.clock, format!("+{seconds}"))?;
    let call = Call::new(http::Method::GET, "health", "live").within(Duration::from_secs(5));
    match node.admin().send(call).await {
        Ok(answer) => {
            Ok(format!("its answers are of {}", answer.header("date").unwrap_or("no date")))
        }
        Err(trouble) => Ok(format!("its clock file says +{seconds}; it answers: {trouble}")),
    }
}

fn segments(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            segments(&path, files)?;
        } else if path.metadata()?.len() > 1 << 20 {
            files.push(path);
        }
    }
    Ok(())
}
