//! The scenarios: each is a short story with a judgement at its end.

use crate::cluster::{Cluster, Ground, growth_of};
use crate::example::the_example_cluster_starts;
use anyhow::{Context, Result, bail, ensure};
use ashlar_load::{Call, Client, Content, Outcome, Payload, Verifier};
use ashlar_record::{BUCKET, Recorder, Workload};
use futures::future::{BoxFuture, join_all};
use http::Method;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// A story about one kind of trouble.
pub(crate) struct Scenario {
    /// The claim, as a name.
    pub(crate) name: &'static str,
    /// Tells it; the facts it measured, or what went wrong.
    pub(crate) run: for<'a> fn(&'a Ground) -> BoxFuture<'a, Result<String>>,
}

/// All of them.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "the-example-cluster-starts",
        run: |ground| Box::pin(the_example_cluster_starts(ground)),
    },
    Scenario {
        name: "of-fifty-creators-one-wins",
        run: |ground| Box::pin(of_fifty_creators_one_wins(ground)),
    },
    Scenario {
        name: "every-node-talks-to-its-peers",
        run: |ground| Box::pin(every_node_talks_to_its_peers(ground)),
    },
    Scenario { name: "any-one-node-may-die", run: |ground| Box::pin(any_one_node_may_die(ground)) },
    Scenario { name: "a-zone-may-die", run: |ground| Box::pin(a_zone_may_die(ground)) },
    Scenario {
        name: "all-nodes-may-die-at-once",
        run: |ground| Box::pin(all_nodes_may_die_at_once(ground)),
    },
    Scenario {
        name: "a-paused-leader-serves-nothing-stale",
        run: |ground| Box::pin(a_paused_leader_serves_nothing_stale(ground)),
    },
    Scenario {
        name: "ranges-split-while-voters-die",
        run: |ground| Box::pin(ranges_split_while_voters_die(ground)),
    },
    Scenario {
        name: "two-nodes-down-and-everything-reads",
        run: |ground| Box::pin(two_nodes_down_and_everything_reads(ground)),
    },
    Scenario {
        name: "rotten-shards-are-decoded-around",
        run: |ground| Box::pin(rotten_shards_are_decoded_around(ground)),
    },
    Scenario {
        name: "a-gigabyte-costs-no-memory",
        run: |ground| Box::pin(a_gigabyte_costs_no_memory(ground)),
    },
];

/// How long clients work before, during and after a fault.
const A_WHILE: Duration = Duration::from_secs(2);
/// First goal of the contract for a write gap when the node led.
const GAP_MAX: Duration = Duration::from_secs(3);
/// After this, a fault has been noticed by everyone.
const SETTLED: Duration = Duration::from_secs(4);

async fn a_while() {
    tokio::time::sleep(A_WHILE).await;
}

/// Fifty writers through both gateways, twenty rounds: exactly one 200, and 412 for all others (C3).
async fn of_fifty_creators_one_wins(ground: &Ground) -> Result<String> {
    let cluster = Cluster::start(ground).await?;
    let client = cluster.client();
    let recorder = Recorder::begin(client.clone()).await?;
    recorder.plan(&[], 40);
    for round in 0..20 {
        let key = format!("race-{round}");
        let outcomes =
            join_all((0..50).map(|number| recorder.create(&key, Some(number % client.gateways()))))
                .await;
        let won = outcomes.iter().filter(|outcome| **outcome == Outcome::Applied).count();
        let lost = outcomes.iter().filter(|outcome| **outcome == Outcome::NotApplied).count();
        ensure!((won, lost) == (1, 49), "round {round}: {won} won and {lost} were refused, of 50");
        recorder.get(&key).await?;
    }
    recorder.judge(&ground.dir)?;
    Ok(format!(
        "20 races of 50, one winner each; cluster ready in {:.1} s",
        cluster.started_in.as_secs_f64()
    ))
}

/// The cluster is one of processes that speak to each other: under load each node's calls to its peers rise.
async fn every_node_talks_to_its_peers(ground: &Ground) -> Result<String> {
    let cluster = Cluster::start(ground).await?;
    let recorder = Recorder::begin(cluster.client()).await?;
    let counter = "ashlar_rpc_sent_total";
    let before = cluster.counter_of_each(counter).await?;
    let workload = Workload::start(&recorder);
    a_while().await;
    workload.stop().await?;
    let after = cluster.counter_of_each(counter).await?;
    let mut facts = Vec::new();
    for ((node, before), after) in cluster.nodes().iter().zip(before).zip(after) {
        ensure!(
            after > before,
            "{} made no call to a peer: {counter} stayed at {after}",
            node.name
        );
        facts.push(format!("{} +{}", node.name, after - before));
    }
    recorder.judge(&ground.dir)?;
    Ok(facts.join(", "))
}

/// kill -9 of each node in turn under load, leaders among them; then it is restarted and serves.
async fn any_one_node_may_die(ground: &Ground) -> Result<String> {
    let mut cluster = Cluster::start(ground).await?;
    let recorder = Recorder::begin(cluster.client()).await?;
    recorder.plan(&["kill"], 1_000);
    let mut facts = Vec::new();
    for name in cluster.names(|_| true) {
        let workload = Workload::start(&recorder);
        a_while().await;
        let mut strike = recorder.strike("kill", &name, true);
        strike.bit(cluster.kill(&name).await?);
        tokio::time::sleep(SETTLED).await;
        let before = workload.succeeded();
        a_while().await;
        ensure!(workload.succeeded() > before, "with {name} down nothing succeeds");
        let restart = cluster.restart(&name).await?;
        strike.healed();
        a_while().await;
        let gap = workload.stop().await?;
        Workload::read_all(&recorder).await?;
        recorder.judge(&ground.dir).with_context(|| format!("after {name} was killed"))?;
        ensure!(gap <= GAP_MAX, "{name} killed: no write for {gap:.2?}, {GAP_MAX:?} are allowed");
        facts.push(format!(
            "{name} gap {:.2} s restart {:.2} s",
            gap.as_secs_f64(),
            restart.as_secs_f64()
        ));
    }
    Ok(facts.join(", "))
}

/// Both nodes of each zone at once: reads of all that was there, and writes, go on.
async fn a_zone_may_die(ground: &Ground) -> Result<String> {
    let mut cluster = Cluster::start(ground).await?;
    let recorder = Recorder::begin(cluster.client()).await?;
    recorder.plan(&["zone"], 500);
    let mut zones: Vec<String> = cluster.nodes().iter().map(|node| node.zone.clone()).collect();
    zones.dedup();
    let mut facts = Vec::new();
    for zone in zones {
        let workload = Workload::start(&recorder);
        a_while().await;
        let names = cluster.names(|node| node.zone == zone);
        let mut strike = recorder.strike("zone", &zone, true);
        let mut seen = Vec::new();
        for name in &names {
            seen.push(cluster.kill(name).await?);
        }
        strike.bit(seen.join(", "));
        tokio::time::sleep(SETTLED).await;
        for number in 0..10 {
            write_with_patience(&recorder, &format!("{zone}-{number}"))
                .await
                .with_context(|| format!("{zone} is down"))?;
        }
        let gap = workload.stop().await?;
        read_all_with_patience(&recorder).await.with_context(|| format!("{zone} is down"))?;
        for name in &names {
            cluster.restart(name).await?;
        }
        strike.healed();
        recorder.judge(&ground.dir).with_context(|| format!("after {zone} was killed"))?;
        // What was acknowledged short while nodes fell has a smaller margin, and nothing repairs it yet: the next
        // zone may only fall when everything has its full width again.
        a_while().await;
        for key in Workload::keys() {
            ensure!(
                recorder.put_large(&key).await == Outcome::Applied,
                "writing {key} after {zone} is back"
            );
        }
        facts.push(format!("{zone} gap {:.2} s", gap.as_secs_f64()));
    }
    Ok(facts.join(", "))
}

/// All processes killed in the middle of writing: what was acknowledged is there, byte for byte (C1, D1, R5).
async fn all_nodes_may_die_at_once(ground: &Ground) -> Result<String> {
    let mut cluster = Cluster::start(ground).await?;
    let recorder = Recorder::begin(cluster.client()).await?;
    recorder.plan(&["kill-all"], 500);
    let mut facts = Vec::new();
    for _ in 0..2 {
        let workload = Workload::start(&recorder);
        a_while().await;
        let mut strike = recorder.strike("kill-all", "every node", true);
        // before the signals: when the last process is gone, nobody has anything in flight any more
        strike.bites();
        let killed = cluster.kill_all()?;
        strike.bit(cluster.all_gone(killed).await?);
        let before = workload.succeeded();
        let restart = cluster.restart_all().await?;
        strike.healed();
        a_while().await;
        ensure!(workload.succeeded() > before, "after all came back nothing succeeds");
        workload.stop().await?;
        Workload::read_all(&recorder).await?;
        let operations = recorder.judge(&ground.dir)?;
        facts.push(format!(
            "all serve again after {:.1} s, {operations} operations judged",
            restart.as_secs_f64()
        ));
    }
    Ok(facts.join("; "))
}

/// SIGSTOP of each voter in turn, so of every leader: after SIGCONT nothing old is read and nothing is lost (C2, C8, R11).
async fn a_paused_leader_serves_nothing_stale(ground: &Ground) -> Result<String> {
    let cluster = Cluster::start(ground).await?;
    let recorder = Recorder::begin(cluster.client()).await?;
    recorder.plan(&["pause"], 500);
    let mut facts = Vec::new();
    for name in cluster.names(|node| node.roles.iter().any(|role| role == "meta")) {
        let workload = Workload::start(&recorder);
        a_while().await;
        let mut strike = recorder.strike("pause", &name, true);
        strike.bit(cluster.pause(&name).await?);
        tokio::time::sleep(SETTLED).await;
        cluster.resume(&name)?;
        strike.healed();
        a_while().await;
        let gap = workload.stop().await?;
        Workload::read_all(&recorder).await?;
        let operations =
            recorder.judge(&ground.dir).with_context(|| format!("after {name} was paused"))?;
        facts
            .push(format!("{name} gap {:.2} s, {operations} operations judged", gap.as_secs_f64()));
    }
    Ok(facts.join("; "))
}

/// Twenty splits of the ranges that are written, twelve of them while a voter is down, so while leaders change (C1-C4, C7,
/// R1-R8); the gap of splits alone is stated beside that of the kills.
async fn ranges_split_while_voters_die(ground: &Ground) -> Result<String> {
    let mut cluster = Cluster::start(ground).await?;
    let recorder = Recorder::begin(cluster.client()).await?;
    recorder.plan(&["kill"], 1_000);
    let mut letters = "bdfhjlnprtvxcegikmoq".chars().map(String::from);
    let workload = Workload::start(&recorder);
    a_while().await;
    for letter in letters.by_ref().take(8) {
        cluster.split(BUCKET, &letter).await?;
    }
    a_while().await;
    let alone = workload.stop().await?;
    let mut facts = vec![format!("8 splits alone: gap {:.2} s", alone.as_secs_f64())];
    for name in cluster.names(|node| node.roles.iter().any(|role| role == "meta")) {
        let workload = Workload::start(&recorder);
        a_while().await;
        let mut strike = recorder.strike("kill", &name, true);
        strike.bit(cluster.kill(&name).await?);
        for letter in letters.by_ref().take(4) {
            cluster.split(BUCKET, &letter).await?;
        }
        cluster.restart(&name).await?;
        strike.healed();
        a_while().await;
        let gap = workload.stop().await?;
        Workload::read_all(&recorder).await?;
        let operations =
            recorder.judge(&ground.dir).with_context(|| format!("after {name} was killed"))?;
        ensure!(gap <= GAP_MAX, "{name} killed: no write for {gap:.2?}, {GAP_MAX:?} are allowed");
        facts
            .push(format!("{name} gap {:.2} s, {operations} operations judged", gap.as_secs_f64()));
    }
    let splits = cluster.counter("ashlar_range_splits_total").await?;
    facts.push(format!("{splits} splits counted by those that still run"));
    Ok(facts.join("; "))
}

/// Every pair of nodes with at most one voter and one gateway: all objects of full width read without them.
async fn two_nodes_down_and_everything_reads(ground: &Ground) -> Result<String> {
    let mut cluster = Cluster::start(ground).await?;
    let recorder = Recorder::begin(cluster.client()).await?;
    let keys: Vec<String> =
        (0..12).map(|number| format!("{}wide", char::from(b'a' + number * 2))).collect();
    for key in &keys {
        ensure!(
            recorder.put_large(key).await == Outcome::Applied,
            "writing {key} on a healthy cluster"
        );
    }
    let pairs = pairs_within_tolerance(&cluster);
    for (one, two) in &pairs {
        let mut strike = recorder.strike("two-nodes", &format!("{one} {two}"), false);
        let seen = [cluster.kill(one).await?, cluster.kill(two).await?];
        strike.bit(seen.join(", "));
        for key in &keys {
            read_with_patience(&recorder, key)
                .await
                .with_context(|| format!("{one} and {two} are down"))?;
        }
        cluster.restart(one).await?;
        cluster.restart(two).await?;
        strike.healed();
        recorder.judge(&ground.dir).with_context(|| format!("{one} and {two} were down"))?;
    }
    Ok(format!("{} pairs, {} objects each", pairs.len(), keys.len()))
}

fn pairs_within_tolerance(cluster: &Cluster) -> Vec<(String, String)> {
    let nodes = cluster.nodes();
    let both = |one: usize, two: usize, role: &str| {
        [one, two].iter().all(|node| nodes[*node].roles.iter().any(|has| has == role))
    };
    let pairs = (0..nodes.len()).flat_map(|one| (one + 1..nodes.len()).map(move |two| (one, two)));
    pairs
        .filter(|&(one, two)| !both(one, two, "meta") && !both(one, two, "gateway"))
        .map(|(one, two)| (nodes[one].name.clone(), nodes[two].name.clone()))
        .collect()
}

/// The segments of two disks on two nodes are overwritten behind the cluster's back: no wrong byte comes out, and the
/// counter of decoded cells moves (D5).
async fn rotten_shards_are_decoded_around(ground: &Ground) -> Result<String> {
    let cluster = Cluster::start(ground).await?;
    let recorder = Recorder::begin(cluster.client()).await?;
    let keys: Vec<String> =
        (0..12).map(|number| format!("{}wide", char::from(b'a' + number * 2))).collect();
    for key in &keys {
        ensure!(
            recorder.put_large(key).await == Outcome::Applied,
            "writing {key} on a healthy cluster"
        );
    }
    let counter = "ashlar_client_decoded_cells_total";
    let before = cluster.counter(counter).await?;
    let mut strike = recorder.strike("rot", "two disks", false);
    let mut rotten = 0;
    for node in [&cluster.nodes()[0], &cluster.nodes()[3]] {
        let disk = node.dirs.last().context("a data node has disks")?;
        rotten += rot(disk)?;
    }
    ensure!(rotten > 0, "no segment was found to overwrite");
    for key in &keys {
        recorder.get(key).await.with_context(|| format!("reading {key} around rotten shards"))?;
    }
    let moved = cluster.counter(counter).await? - before;
    ensure!(moved > 0.0, "{counter} did not move although {rotten} files were overwritten");
    strike.bit(format!("{moved} cells were decoded"));
    strike.healed();
    recorder.judge(&ground.dir)?;
    Ok(format!("{rotten} files overwritten, {moved} cells decoded"))
}

/// Overwrites the middle of every file that is large enough to hold shards; says of how many.
fn rot(dir: &Path) -> Result<usize> {
    let mut rotten = 0;
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_dir() {
            rotten += rot(&path)?;
        } else if path.metadata()?.len() > 1 << 20 {
            let file = OpenOptions::new().write(true).open(&path)?;
            // Behind the header; far enough to cover everything that this scenario has written.
            let rot = vec![0xa5; 1 << 20];
            let end = path.metadata()?.len().min(64 << 20);
            let mut at = 64 << 10;
            while at < end {
                let length = usize::try_from((end - at).min(rot.len() as u64))?;
                file.write_all_at(&rot[..length], at)?;
                at += rot.len() as u64;
            }
            rotten += 1;
        }
    }
    Ok(rotten)
}

/// One GiB in and out through each gateway: neither grows by more than 64 MiB (S5).
async fn a_gigabyte_costs_no_memory(ground: &Ground) -> Result<String> {
    const GIB: u64 = 1 << 30;
    const GROWTH_MAX: u64 = 64 << 20;
    let cluster = Cluster::start(ground).await?;
    let client = cluster.client();
    client.create_bucket(BUCKET).await?;
    let gateways = cluster.names(|node| node.roles.iter().any(|role| role == "gateway"));
    let pids: Vec<u32> = gateways
        .iter()
        .map(|name| cluster.node(name).map(|node| node.pid))
        .collect::<Result<_>>()?;
    let content = Content::of_key("gigabyte", 1, GIB);
    let growth = growth_of(&pids, async {
        for gateway in 0..pids.len() {
            put_and_get(&client, content, gateway, (gateway + 1) % pids.len()).await?;
        }
        Ok(())
    })
    .await?;
    let mib: Vec<String> = growth.iter().map(|bytes| format!("{} MiB", bytes >> 20)).collect();
    ensure!(
        growth.iter().all(|bytes| *bytes <= GROWTH_MAX),
        "the gateways grew by {}",
        mib.join(" and ")
    );
    Ok(format!("the gateways grew by {}", mib.join(" and ")))
}

async fn put_and_get(client: &Client, content: Content, into: usize, from: usize) -> Result<()> {
    let patience = Duration::from_secs(90);
    let put = Call::new(Method::PUT, BUCKET, "gigabyte")
        .payload(Payload::Content(content))
        .through(into)
        .within(patience);
    client.expect(put).await.context("writing a GiB")?;
    let get = Call::new(Method::GET, BUCKET, "gigabyte").through(from).within(patience);
    client.verify(get, Verifier::whole(content)).await.context("reading a GiB")?;
    Ok(())
}

/// Attempts of a client that knows two gateways, one of which may be down: as many as it takes to meet the other.
const ATTEMPTS: usize = 4;

async fn read_with_patience(recorder: &Recorder, key: &str) -> Result<()> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match recorder.get(key).await {
            Ok(_) => return Ok(()),
            Err(trouble) => last = Some(trouble),
        }
    }
    bail!("reading {key}: {}", last.map(|trouble| trouble.to_string()).unwrap_or_default())
}

async fn write_with_patience(recorder: &Recorder, key: &str) -> Result<()> {
    for _ in 0..ATTEMPTS {
        if recorder.put(key).await == Outcome::Applied {
            return Ok(());
        }
    }
    bail!("writing {key} was not acknowledged in {ATTEMPTS} attempts")
}

async fn read_all_with_patience(recorder: &Recorder) -> Result<()> {
    for key in Workload::keys() {
        read_with_patience(recorder, &key).await?;
    }
    Ok(())
}
