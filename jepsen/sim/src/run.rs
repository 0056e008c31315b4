//! One run, from empty disks to the verdict: safety under faults, healing, liveness, audit, an orderly end.

use crate::client::{Client, Etags, bucket};
use crate::invariants::{d1, d4, d7, l1, r4};
use crate::machines::Machines;
use crate::nemesis::Nemesis;
use crate::options::Options;
use crate::record::{Finding, Recorder};
use crate::world::World;
use anyhow::{Result, bail};
use ashlar_check::{Report, Verdict, judge};
use ashlar_host::{CutStyle, DiskPace};
use ashlar_s3::{Backend, Failure};
use ashlar_types::Versioning;
use std::time::Duration;
use tokio::time::Instant;

/// How long a new cluster may take to serve.
const FOUNDING_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a read may fail when all nodes serve again.
const READ_MAX: Duration = Duration::from_secs(30);
/// How long the orderly end of a node may take.
const STOP_MAX: Duration = Duration::from_secs(60);

/// What a run came to.
pub(crate) struct Outcome {
    pub(crate) report: Report,
    pub(crate) findings: Vec<Finding>,
    pub(crate) trace: String,
    pub(crate) virtual_time: Duration,
}

impl Outcome {
    /// Whether nothing was found. An availability that cannot be judged is no finding of a simulation.
    pub(crate) fn is_good(&self) -> bool {
        self.findings.is_empty() && self.report.verdict == Verdict::Pass
    }
}

/// A lie that the disks tell during the whole run: a planted bug, to prove that its kind is found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lie(pub(crate) &'static str);

/// Runs.
pub(crate) async fn run(options: Options, lie: Option<Lie>) -> Result<Outcome> {
    let began = Instant::now();
    let recorder = Recorder::begin();
    let world = World::new(Machines::lay_out(&options)?, &recorder);
    found(&world, options.nodes.into()).await?;
    for spare in usize::from(options.nodes)..world.count() {
        world.join(spare).await?;
    }
    create_bucket(&world, options.keeps_versions).await?;
    if let Some(Lie(directory)) = lie {
        for index in 0..world.count() {
            world.hardware(index).conduct.lie_about(Some(directory));
        }
    }
    let etags = Etags::default();
    safety(&world, &recorder, &etags, &options).await;
    heal(&world, &options).await;
    let mut auditor = Client::new(100, &world, &recorder, &etags, options.seed);
    l1::check(&world, &recorder, &mut auditor, &options).await;
    audit(&recorder, &mut auditor, &options).await;
    d1::check(&world, &recorder).await;
    d4::check(&world, &recorder, &options).await;
    r4::check(&world, &recorder, &options).await;
    d7::check(&world, &recorder);
    end(&world, &recorder).await;
    recorder.note(&format!("{} sends", world.fabric().sends()));
    Ok(Outcome {
        report: judge(&recorder.history()),
        findings: recorder.findings(),
        trace: recorder.trace(),
        virtual_time: began.elapsed(),
    })
}

async fn found(world: &World, nodes: usize) -> Result<()> {
    let began = Instant::now();
    world.start_first(nodes).await;
    while let Err(why) = world.first_ready(nodes).await {
        if began.elapsed() > FOUNDING_MAX {
            bail!("a new cluster does not serve after {FOUNDING_MAX:?}: {why}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

async fn create_bucket(world: &World, keeps_versions: bool) -> Result<()> {
    let Some(door) = world.door(0) else { bail!("the first gateway does not serve") };
    let backend = door.backend;
    let made = door.life.spawn(async move {
        backend.create_bucket(&bucket(), "ashlar").await?;
        if keeps_versions { keep_versions(&*backend).await } else { Ok(()) }
    });
    made.await??;
    Ok(())
}

/// Not before all nodes have told what they know.
async fn keep_versions(backend: &dyn Backend) -> Result<(), Failure> {
    let began = Instant::now();
    loop {
        match backend.set_versioning(&bucket(), Versioning::On).await {
            Err(Failure::Unavailable(_) | Failure::Unknown(_))
                if began.elapsed() < FOUNDING_MAX =>
            {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            other => return other,
        }
    }
}

/// Clients work while the nemeses strike.
async fn safety(world: &World, recorder: &Recorder, etags: &Etags, options: &Options) {
    let clients = (1..=options.clients).map(|number| {
        let client = Client::new(number, world, recorder, etags, options.seed);
        tokio::spawn(client.work(options.clone()))
    });
    let nemeses = Nemesis::all(world, recorder, options);
    let mut tasks: Vec<_> = clients.collect();
    tasks.extend(nemeses.map(|nemesis| tokio::spawn(nemesis.work())));
    tasks.push(tokio::spawn(r4::watch(world.clone(), recorder.clone())));
    tokio::time::sleep(options.safety).await;
    world.end_safety();
    for task in tasks {
        // a panic ends the process
        drop(task.await);
    }
}

async fn heal(world: &World, options: &Options) {
    world.fabric().heal();
    for index in 0..world.count() {
        let hardware = world.hardware(index);
        hardware.disk.set_capacity(None);
        hardware.conduct.set_pace(DiskPace::default());
        world.restart_failed(index).await;
    }
    if options.last_cut {
        for index in 0..world.count() {
            world.cut(index, CutStyle::DropAll).await;
        }
    }
    world.start_all().await;
}

/// Every key, through every gateway, and the list of all.
async fn audit(recorder: &Recorder, auditor: &mut Client, options: &Options) {
    for gateway in 0..usize::from(options.gateways) {
        let mut keys: Vec<String> = (0..options.keys).map(|at| format!("key-{at:02}")).collect();
        keys.extend(auditor.list(gateway).await.unwrap_or_default());
        keys.sort();
        keys.dedup();
        for key in keys {
            if !read(auditor, gateway, &key).await {
                let what = format!("{key} cannot be read through node-{}", gateway + 1);
                recorder.find("C1", what);
            }
        }
    }
}

/// Whether an object is readable within the time that redundancy may need to be whole again.
async fn read(auditor: &mut Client, gateway: usize, key: &str) -> bool {
    let began = Instant::now();
    while !auditor.get(gateway, key).await {
        if began.elapsed() > READ_MAX {
            return false;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    true
}

async fn end(world: &World, recorder: &Recorder) {
    for index in 0..world.count() {
        let began = Instant::now();
        if tokio::time::timeout(STOP_MAX, world.stop(index)).await.is_err() {
            recorder.find("L1", format!("node-{} does not stop within {STOP_MAX:?}", index + 1));
        }
        recorder.note(&format!("node-{} stopped in {:?}", index + 1, began.elapsed()));
    }
}
