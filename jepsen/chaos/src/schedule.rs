//! What happens on a bad day, one fault after another, while clients work.

use crate::cluster::{Cluster, Place};
use crate::fault::{Atlas, Kind};
use crate::report;
use crate::switch::Trouble;
use anyhow::{Context, Result, anyhow, bail, ensure};
use ashlar_check::Verdict;
use ashlar_load::Outcome;
use ashlar_record::{Recorder, Workload};
use std::fmt;
use std::time::{Duration, Instant};

/// How long clients work between faults.
const CALM: Duration = Duration::from_secs(2);
/// How long a fault lasts.
const HOLD: Duration = Duration::from_secs(4);
/// Objects of full width that are written first and read last.
const BULK: usize = 16;
/// Attempts at something that must succeed on a healed cluster.
const ATTEMPTS: usize = 40;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(500);
/// So much must succeed, or the run shows nothing.
const OPERATIONS_MIN: u64 = 500;

/// A kind of bad day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Schedule {
    /// Every fault once.
    Smoke,
    /// Any fault, as the seed says.
    Random,
    /// Any fault, on a network that is never quite well.
    Storm,
    /// Zones lose their power or their network, by turns.
    Zone,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Smoke => "smoke",
            Self::Random => "random",
            Self::Storm => "storm",
            Self::Zone => "zone",
        })
    }
}

impl Schedule {
    /// The fault of a turn; none when the day is over.
    fn fault(self, turn: usize, kinds: &[Kind], atlas: &Atlas) -> Option<Kind> {
        match self {
            Self::Smoke => kinds.get(turn).copied(),
            Self::Random | Self::Storm => Some(kinds[atlas.roll(kinds.len())]),
            Self::Zone => Some([Kind::PowerCutZone, Kind::IsolateZone][turn % 2]),
        }
    }
}

/// Plays a schedule on a cluster of its own; the facts, or what went wrong.
pub(crate) async fn play(
    schedule: Schedule,
    place: &Place,
    seed: u64,
    minutes: u64,
) -> Result<String> {
    let mut cluster = Cluster::start(place).await?;
    println!("{} nodes are ready", cluster.nodes.len());
    let mut kinds = Vec::new();
    for kind in Kind::ALL {
        match kind.cannot(&cluster) {
            None => kinds.push(kind),
            Some(why) => println!("SKIP {}: {why}", kind.name()),
        }
    }
    ensure!(
        schedule != Schedule::Zone || kinds.contains(&Kind::IsolateZone),
        "zones need network namespaces and disk images"
    );
    let recorder = Recorder::begin(cluster.client()).await?;
    if schedule == Schedule::Smoke {
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        recorder.plan(&names, OPERATIONS_MIN);
    } else {
        recorder.plan(&[], OPERATIONS_MIN);
    }
    fill(&recorder).await?;
    let workload = Workload::start(&recorder);
    let played =
        faults(schedule, &kinds, &mut cluster, &recorder, seed, Duration::from_secs(60 * minutes))
            .await;
    let gap = workload.stop().await?;
    if played.is_ok() {
        verify(&recorder).await?;
    }
    let (history, found) = recorder.report(&place.results)?;
    let operations = history.operations().map_err(|why| anyhow!("no history: {why}"))?;
    let page = report::page(&schedule.to_string(), seed, &operations, &found)?;
    std::fs::write(place.results.join("report.html"), page)?;
    let struck = played?;
    if found.verdict != Verdict::Pass {
        bail!("{found}");
    }
    Ok(format!(
        "{struck} faults, {} operations judged, longest wait of a probe {:.1} s",
        found.operations,
        gap.as_secs_f64()
    ))
}

/// One fault after another; how many.
async fn faults(
    schedule: Schedule,
    kinds: &[Kind],
    cluster: &mut Cluster,
    recorder: &Recorder,
    seed: u64,
    length: Duration,
) -> Result<usize> {
    let began = Instant::now();
    let mut atlas = Atlas::new(seed);
    let mut turn = 0;
    while schedule == Schedule::Smoke || began.elapsed() < length {
        let Some(kind) = schedule.fault(turn, kinds, &atlas) else { break };
        if schedule == Schedule::Storm {
            unsettle(cluster)?;
        }
        tokio::time::sleep(CALM).await;
        let nodes = atlas.aim(kind, cluster);
        let names: Vec<String> = nodes.iter().map(|node| cluster.nodes[*node].name()).collect();
        let target = names.join(" ");
        one(kind, &nodes, &target, &atlas, cluster, recorder)
            .await
            .with_context(|| format!("fault {} ({} of {target})", turn + 1, kind.name()))?;
        turn += 1;
    }
    if let Some(switch) = &cluster.switch {
        switch.heal();
    }
    tokio::time::sleep(CALM).await;
    Ok(turn)
}

async fn one(
    kind: Kind,
    nodes: &[usize],
    target: &str,
    atlas: &Atlas,
    cluster: &mut Cluster,
    recorder: &Recorder,
) -> Result<()> {
    let mut strike = recorder.strike(kind.name(), target, true);
    // when the last node is away nobody has anything in flight any more: it bites when it strikes
    strike.bites();
    let (struck, seen) = atlas.strike(kind, nodes, cluster).await?;
    tokio::time::sleep(HOLD).await;
    cluster.assert_all_run()?;
    let seen = struck.heal(cluster).await?.or(seen).context("nothing showed that it bit")?;
    let back = cluster.wait_ready().await?;
    println!("{:<16} {target}: {seen}; ready again after {:.1} s", kind.name(), back.as_secs_f64());
    strike.bit(seen);
    strike.healed();
    Ok(())
}

/// A network that is never quite well: all that happens to packets happens to a few.
fn unsettle(cluster: &Cluster) -> Result<()> {
    let hosts = cluster.nodes.len() + 1;
    let directions = (0..hosts).flat_map(|from| (0..hosts).map(move |to| (from, to)));
    let all: Vec<(usize, usize)> = directions.filter(|(from, to)| from != to).collect();
    let ms = Duration::from_millis;
    let trouble =
        Trouble { is_cut: false, loss: 5, double: 10, damage: 2, delay: ms(1), jitter: ms(4) };
    if let Some(switch) = &cluster.switch {
        switch.trouble(&all, trouble);
    }
    Ok(())
}

fn bulk_key(number: usize) -> String {
    format!("{}bulk-{number:03}", char::from(b'a' + u8::try_from(number % 26).unwrap_or_default()))
}

async fn fill(recorder: &Recorder) -> Result<()> {
    for number in 0..BULK {
        let mut attempts = 0;
        while recorder.put_large(&bulk_key(number)).await != Outcome::Applied {
            attempts += 1;
            ensure!(attempts < ATTEMPTS, "writing on a healthy cluster");
        }
    }
    Ok(())
}

/// Reads all that was written: the last word of the history. Attempts that fail are in it too.
async fn verify(recorder: &Recorder) -> Result<()> {
    let keys = (0..BULK).map(bulk_key).chain(Workload::keys());
    for key in keys {
        let mut attempts = 0;
        while let Err(trouble) = recorder.get(&key).await {
            attempts += 1;
            ensure!(attempts < ATTEMPTS, "reading {key} on a healed cluster: {trouble}");
            tokio::time::sleep(BETWEEN_ATTEMPTS).await;
        }
    }
    recorder.list("").await.context("listing on a healed cluster")
}
