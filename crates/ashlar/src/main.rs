//! `ashlar server | demo | token | node | disk | range | meta | cluster`: the command line.
#![expect(clippy::print_stdout, reason = "a command-line tool answers on standard output")]

mod drain_command;
mod meta_command;
mod replica_command;
mod show;
mod show_audit;

use anyhow::{Context, Result, bail};
use ashlar::audit::{AuditReport, CanStop};
use ashlar::config::{JoinConfig, NodeConfig};
use ashlar::demo::{self, Demo, DemoFacts, DemoWish};
use ashlar::disk_change::DiskStep;
use ashlar::node::RunningNode;
use ashlar::operator::{self, Member, SplitRange};
use ashlar::replica_change::ChangeReplicas;
use ashlar::{membership, process};
use ashlar_host::Host;
use ashlar_types::{BucketName, NodeId, RangeId, ReplicaMove, Role};
use clap::{Args, Parser, Subcommand, ValueEnum};
use drain_command::How;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// An S3-compatible object store for people who run their own storage.
#[derive(Debug, Parser)]
#[command(name = "ashlar", version, about)]
struct Cli {
    /// How log lines look. What is logged: ASHLAR_LOG, by default warnings, and what the node itself says.
    #[arg(long, global = true, value_enum, default_value = "text", env = "ASHLAR_LOG_FORMAT")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a node: alone on the given directories, or as its configuration says.
    Server(ServerArgs),
    /// Runs a whole cluster on this machine: 3 zones, 6 nodes, 12 disks, 2 gateways.
    Demo(DemoArgs),
    /// Prints a one-time token with which another node may join.
    Token(TokenArgs),
    /// Looks at the nodes, empties them, strikes them off.
    Node(NodeArgs),
    /// Looks at the disks, empties them, strikes them off.
    Disk(DiskArgs),
    /// Looks at the ranges of the catalog, splits and moves them.
    Range(RangeArgs),
    /// Looks at the metadata plane itself: whether its replicas agree, and by which versions it applies.
    Meta(MetaArgs),
    /// Looks at what the cluster holds, and at what it survives.
    Cluster(ClusterArgs),
}

#[derive(Debug, Args)]
struct ServerArgs {
    /// One directory a disk. The node's own files go into the first one.
    #[arg(conflicts_with = "config")]
    dirs: Vec<PathBuf>,
    /// A configuration file instead.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The S3 port: host:port.
    #[arg(long)]
    listen: Option<String>,
    /// The internal port: host:port.
    #[arg(long)]
    internal_listen: Option<String>,
    /// What other nodes dial, where that is not the internal port's address.
    #[arg(long)]
    advertise: Option<String>,
    /// The admin port: host:port.
    #[arg(long)]
    admin_listen: Option<String>,
    /// What people call the node.
    #[arg(long)]
    name: Option<String>,
    /// What fails together with it.
    #[arg(long)]
    zone: Option<String>,
    /// The internal port of a member of the cluster to join.
    #[arg(long, requires = "token_file")]
    join: Option<String>,
    /// The file with the one-time token that a member gave (`ashlar token`).
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// A certificate chain in PEM for the S3 port.
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key in PEM.
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct DemoArgs {
    #[command(subcommand)]
    verb: Option<DemoVerb>,
    /// Keeps the data here. Without it the demo begins empty and leaves nothing behind.
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
    /// Every node a process of its own, so that `kill` pulls a real plug.
    #[arg(long)]
    processes: bool,
    /// Prints one line of JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    /// The first gateway's port; the second one's is the next.
    #[arg(long, default_value_t = 9000)]
    port: u16,
    /// Switches TLS between the nodes off (they speak over loopback only).
    #[arg(long)]
    no_internal_tls: bool,
    /// The ordered map behind the catalog: fjall or sled.
    #[arg(long, default_value = "fjall")]
    engine: String,
}

#[derive(Debug, Subcommand)]
enum DemoVerb {
    /// Shows the nodes.
    Ls,
    /// Pulls a node's plug (SIGKILL). Nothing restarts by itself.
    Kill {
        /// Its name, as `ls` shows it.
        node: String,
    },
    /// Plugs a node in again.
    Start {
        /// Its name, as `ls` shows it.
        node: String,
    },
}

#[derive(Debug, Args)]
struct TokenArgs {
    /// The member's configuration file, or its first directory.
    member: PathBuf,
    /// How many minutes it is valid.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
}

/// Which cluster is meant, and how it shall be answered.
#[derive(Debug, Args)]
struct AskArgs {
    /// A member's configuration file, or its first directory. Without it: the demo of this user.
    #[arg(long, global = true, env = "ASHLAR_MEMBER")]
    member: Option<PathBuf>,
    /// Prints JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Args)]
struct NodeArgs {
    #[command(flatten)]
    ask: AskArgs,
    #[command(subcommand)]
    verb: NodeVerb,
}

#[derive(Debug, Subcommand)]
enum NodeVerb {
    /// Shows all nodes, and whether they answer.
    Ls,
    /// Says whether a node can be stopped; if not, the exit code is 1.
    CanStop {
        /// The node: node-3, or its name.
        node: String,
        /// A count that is older is made anew.
        #[arg(long, default_value_t = 600)]
        age_seconds: u64,
    },
    /// Empties a node: its disks, and the ranges that it holds.
    Drain {
        /// The node: node-3, or its name.
        node: String,
        #[command(flatten)]
        how: DrainArgs,
    },
    /// Uses a node again that drains.
    Undrain {
        /// The node: node-3, or its name.
        node: String,
    },
    /// Strikes off a node that holds no range and has no disk that was not removed. It never comes back as itself.
    Remove {
        /// The node: node-3, or its name.
        node: String,
    },
}

#[derive(Debug, Args)]
struct DrainArgs {
    /// Only says what would move, and what would survive less than now.
    #[arg(long)]
    dry_run: bool,
    /// Shows how far it is, and ends when no data is left.
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
}

#[derive(Debug, Args)]
struct MetaArgs {
    #[command(flatten)]
    ask: AskArgs,
    #[command(subcommand)]
    verb: MetaVerb,
}

#[derive(Debug, Subcommand)]
enum MetaVerb {
    /// Has every replica visit all its rows, and compares them with the others. If something is found, the exit code is 1;
    /// a replica that is wrong begins anew by itself, where the others are enough without it.
    Verify {
        /// Only these ranges: their ids as `range ls` shows them, or root.
        ranges: Vec<String>,
    },
    /// Shows by which versions the cluster applies what is in its logs, and which of them each node knows. They are raised by
    /// themselves when all nodes know later ones.
    Versions,
}

#[derive(Debug, Args)]
struct ClusterArgs {
    #[command(flatten)]
    ask: AskArgs,
    #[command(subcommand)]
    verb: ClusterVerb,
}

#[derive(Debug, Subcommand)]
enum ClusterVerb {
    /// Compares all that is named with all that is there, now.
    Audit,
    /// Says how many more failures everything survives, and what is lost.
    Durability {
        /// Names so many objects that survive least.
        #[arg(long, default_value_t = 0)]
        worst: usize,
        /// A count that is older is made anew.
        #[arg(long, default_value_t = 86_400)]
        age_seconds: u64,
    },
}

#[derive(Debug, Args)]
struct DiskArgs {
    #[command(flatten)]
    ask: AskArgs,
    #[command(subcommand)]
    verb: DiskVerb,
}

#[derive(Debug, Subcommand)]
enum DiskVerb {
    /// Shows all disks, how full they are, what they hold and what moves.
    Ls,
    /// Empties a disk: its data moves to others. Refused where that would break a promise.
    Drain {
        /// The disk: its id as `ls` shows it, or its directory.
        disk: String,
        #[command(flatten)]
        how: DrainArgs,
    },
    /// Uses a disk again that drains.
    Undrain {
        /// The disk: its id as `ls` shows it, or its directory.
        disk: String,
    },
    /// Declares a disk dead that is away and will not come back: its shards are rebuilt elsewhere. It never comes back as
    /// itself. Refused where something could not be read any more without it.
    Lose {
        /// The disk's id, as `ls` shows it.
        disk: String,
        /// Only says whether it may be.
        #[arg(long)]
        dry_run: bool,
    },
    /// Strikes off a disk that is drained, or dead and left by all slots. It never comes back as itself.
    Remove {
        /// The disk: its id as `ls` shows it, or its directory.
        disk: String,
        /// Only says whether it may be.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
struct RangeArgs {
    #[command(flatten)]
    ask: AskArgs,
    #[command(subcommand)]
    verb: RangeVerb,
}

#[derive(Debug, Subcommand)]
enum RangeVerb {
    /// Shows all ranges: which keys each has, and which nodes hold it.
    Ls,
    /// Moves a replica of a range to another node, adds one, or takes one away. Its leader sees to it.
    Move {
        /// The range: its id as `ls` shows it, or root.
        range: String,
        /// The node that holds it and is not to any more: node-3, or its name.
        #[arg(long, required_unless_present_any = ["to", "cancel"])]
        from: Option<String>,
        /// The node that is to hold it.
        #[arg(long)]
        to: Option<String>,
        /// Gives up the move that has begun instead.
        #[arg(long, conflicts_with_all = ["from", "to", "wait"])]
        cancel: bool,
        /// Ends when it is done.
        #[arg(long)]
        wait: bool,
    },
    /// Makes two of a range, and waits until the directory has both. Ranges that have grown are split by themselves.
    Split {
        /// The range, which is split in the middle of its objects: its id as `ls` shows it.
        #[arg(required_unless_present = "bucket")]
        range: Option<String>,
        /// Instead of a range: the bucket of a key before which whichever range has it is split.
        #[arg(long, requires = "key", conflicts_with = "range")]
        bucket: Option<String>,
        /// The key, which becomes the first one of the new range.
        #[arg(long, requires = "bucket")]
        key: Option<String>,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(cli.log_format);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = runtime
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(run(cli.command)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "the reason of a failure belongs on standard error")]
fn complain(what: &str) {
    eprintln!("ashlar: {what}");
}

fn log_to_stderr(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("ASHLAR_LOG").unwrap_or_else(|_| {
        tracing_subscriber::EnvFilter::new("warn,ashlar=info,openraft=error,s3s=off")
    });
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
}

async fn run(command: Command) -> Result<()> {
    let host = Host::real();
    match command {
        Command::Server(args) => server(host, args).await,
        Command::Demo(args) => demo_command(host, args).await,
        Command::Token(args) => token(host, args).await,
        Command::Node(args) => node(host, args).await,
        Command::Disk(args) => disk(host, args).await,
        Command::Range(args) => range(host, args).await,
        Command::Meta(args) => meta(host, args).await,
        Command::Cluster(args) => cluster(host, args).await,
    }
}

async fn node(host: Host, args: NodeArgs) -> Result<()> {
    let member = member(&host, &args.ask)?;
    match args.verb {
        NodeVerb::Ls => print!("{}", show::nodes(&member.overview().await?, args.ask.json)?),
        NodeVerb::CanStop { node, age_seconds } => {
            let age_max = Duration::from_secs(age_seconds);
            let (verdict, report) = can_stop(&member, &node, age_max).await?;
            print!("{}", show_audit::can_stop(&verdict, &report, args.ask.json)?);
            if !verdict.can() {
                bail!("{} cannot be stopped: {}", verdict.node, verdict.refusals.join("; "));
            }
        }
        NodeVerb::Drain { node, how } => {
            drain_node(&host, &member, &node, how, args.ask.json).await?;
        }
        NodeVerb::Undrain { node } => undrain_node(&host, &member, &node, args.ask.json).await?,
        NodeVerb::Remove { node } => {
            let node = replica_command::node_named(&member.overview().await?, &node)?;
            member.change_replicas(&ChangeReplicas::RemoveNode(node)).await?;
            print!("{}", show::nodes(&member.overview().await?, args.ask.json)?);
        }
    }
    Ok(())
}

/// The disks are judged first: where they may not be emptied, nothing is begun.
async fn drain_node(
    host: &Host,
    member: &Member,
    name: &str,
    how: DrainArgs,
    json: bool,
) -> Result<()> {
    let overview = member.overview().await?;
    let node = replica_command::node_named(&overview, name)?;
    let disks = drain_command::disks_of_node(&overview, node);
    if how.dry_run {
        let held = replica_command::held(&member.replicas().await?, node);
        if !json {
            println!(
                "{node} holds {held} ranges, which would move to other nodes with the role meta"
            );
        }
    }
    if !disks.is_empty() {
        let step = How { dry_run: how.dry_run, wait: false, json };
        drain_command::change(host, member, disks.clone(), DiskStep::Drain, step).await?;
    }
    if how.dry_run {
        return Ok(());
    }
    member.change_replicas(&ChangeReplicas::Drain { node, drain: true }).await?;
    if how.wait {
        replica_command::await_empty(host, member, node, json).await?;
        let step = How { dry_run: false, wait: true, json };
        if !disks.is_empty() {
            drain_command::change(host, member, disks, DiskStep::Drain, step).await?;
        }
    }
    Ok(())
}

async fn undrain_node(host: &Host, member: &Member, name: &str, json: bool) -> Result<()> {
    let overview = member.overview().await?;
    let node = replica_command::node_named(&overview, name)?;
    member.change_replicas(&ChangeReplicas::Drain { node, drain: false }).await?;
    let disks = drain_command::draining_of_node(&overview, node);
    if !disks.is_empty() {
        let how = How { json, ..How::default() };
        drain_command::change(host, member, disks, DiskStep::Undrain, how).await?;
    }
    Ok(())
}

async fn can_stop(
    member: &Member,
    name: &str,
    age_max: Duration,
) -> Result<(CanStop, AuditReport)> {
    let overview = member.overview().await?;
    let mut nodes = overview.map.nodes.values();
    let node = nodes.find(|node| node.name == name || node.id.to_string() == name);
    let node = node.with_context(|| format!("there is no node '{name}'"))?.id;
    let mut report = member.audit(age_max).await?;
    // what was counted with other nodes than answer now says nothing of now
    let has_disks = |id: &NodeId| overview.map.disks.values().any(|disk| disk.node == *id);
    let now: BTreeSet<NodeId> = overview.nodes.iter().map(|answer| NodeId(answer.node)).collect();
    let then: BTreeSet<NodeId> = report.answered.iter().copied().filter(has_disks).collect();
    if now != then {
        report = member.audit(Duration::ZERO).await?;
    }
    let answering = report.answered.iter().copied().collect();
    Ok((CanStop::judge(&report, &overview.map, &answering, node), report))
}

async fn cluster(host: Host, args: ClusterArgs) -> Result<()> {
    let member = member(&host, &args.ask)?;
    match args.verb {
        ClusterVerb::Audit => {
            let report = member.audit(Duration::ZERO).await?;
            print!("{}", show_audit::audit(&report, args.ask.json)?);
        }
        ClusterVerb::Durability { worst, age_seconds } => {
            let report = member.audit(Duration::from_secs(age_seconds)).await?;
            print!("{}", show_audit::durability(&report, worst, args.ask.json)?);
        }
    }
    Ok(())
}

async fn disk(host: Host, args: DiskArgs) -> Result<()> {
    let member = member(&host, &args.ask)?;
    let json = args.ask.json;
    let (disk, step, how) = match args.verb {
        DiskVerb::Ls => {
            print!("{}", show::disks(&member.overview().await?, json)?);
            return Ok(());
        }
        DiskVerb::Drain { disk, how } => {
            (disk, DiskStep::Drain, How { dry_run: how.dry_run, wait: how.wait, json })
        }
        DiskVerb::Undrain { disk } => (disk, DiskStep::Undrain, How { json, ..How::default() }),
        DiskVerb::Remove { disk, dry_run } => {
            (disk, DiskStep::Remove, How { dry_run, json, ..How::default() })
        }
        DiskVerb::Lose { disk, dry_run } => {
            (disk, DiskStep::Lose, How { dry_run, json, ..How::default() })
        }
    };
    let disk = drain_command::disk_named(&member.overview().await?, &disk)?;
    drain_command::change(&host, &member, vec![disk], step, how).await
}

async fn range(host: Host, args: RangeArgs) -> Result<()> {
    let member = member(&host, &args.ask)?;
    match args.verb {
        RangeVerb::Ls => print!("{}", show::ranges(&member.replicas().await?, args.ask.json)?),
        RangeVerb::Move { range, cancel: true, .. } => {
            let range = replica_command::range_named(&range)?;
            member.change_replicas(&ChangeReplicas::Cancel(range)).await?;
            print!("{}", show::ranges(&member.replicas().await?, args.ask.json)?);
        }
        RangeVerb::Move { range, from, to, wait, .. } => {
            let range = replica_command::range_named(&range)?;
            let overview = member.overview().await?;
            let node = |name: Option<String>| -> Result<Vec<NodeId>> {
                name.iter().map(|name| replica_command::node_named(&overview, name)).collect()
            };
            let step = ReplicaMove { range, from: node(from)?, to: node(to)? };
            replica_command::move_replica(&host, &member, step, wait, args.ask.json).await?;
        }
        RangeVerb::Split { range, bucket, key } => {
            let split = split_asked(range.as_deref(), bucket.as_deref().zip(key))?;
            let child = member.split_range(&split).await?;
            await_range(&host, &member, child).await?;
            print!("{}", show::ranges(&member.replicas().await?, args.ask.json)?);
        }
    }
    Ok(())
}

async fn meta(host: Host, args: MetaArgs) -> Result<()> {
    let member = member(&host, &args.ask)?;
    match args.verb {
        MetaVerb::Verify { ranges } => meta_command::verify(&member, &ranges, args.ask.json).await,
        MetaVerb::Versions => meta_command::versions(&member, args.ask.json).await,
    }
}

fn split_asked(range: Option<&str>, key: Option<(&str, String)>) -> Result<SplitRange> {
    if let Some((bucket, key)) = key {
        return Ok(SplitRange::Before { bucket: BucketName::parse(bucket)?, key });
    }
    let range = range.context("name a range, or a bucket and a key")?;
    Ok(SplitRange::Middle(replica_command::range_named(range)?))
}

/// How long a split may take: steps of a millisecond for every few hundred rows.
const SPLIT_PATIENCE: Duration = Duration::from_secs(120);
const SPLIT_POLL: Duration = Duration::from_millis(200);

/// Waits until the directory has a range.
async fn await_range(host: &Host, member: &Member, range: RangeId) -> Result<()> {
    let began = host.clock.now();
    while !member.replicas().await?.ranges.iter().any(|known| known.range.id == range) {
        if host.clock.now() - began > SPLIT_PATIENCE {
            bail!(
                "the split is begun and not done after {} s: the leader of the range goes on with it; see range ls",
                SPLIT_PATIENCE.as_secs()
            );
        }
        host.clock.sleep(SPLIT_POLL).await;
    }
    Ok(())
}

/// The member that is asked: the named one, or a running node of the demo.
fn member(host: &Host, ask: &AskArgs) -> Result<Member> {
    if let Some(place) = &ask.member {
        return Member::of(host, place);
    }
    let dir = pointed_dir(host, &pointer_path())
        .context("name a member of the cluster with --member DIR or --member FILE")?;
    let facts = DemoFacts::load(host, &dir)?;
    let running = facts.nodes.iter().find(|node| process::runs(node.pid, &node.config));
    let running = running.with_context(|| format!("no node of the demo in {} runs", dir.display()));
    Member::of(host, &running?.config)
}

/// How long a node whose log has failed may take to end what can be ended.
const LAST_WORDS: Duration = Duration::from_secs(5);

async fn server(host: Host, args: ServerArgs) -> Result<()> {
    let (alone, clock) = (args.config.is_none(), host.clock.clone());
    let config = server_config(&host, args)?;
    let node = RunningNode::start(host, config).await?;
    if alone && let Some(key) = node.new_root_key() {
        println!(
            "The root access key of this new cluster. It is shown once and kept in root.json of the node's directory:"
        );
        println!(
            "export AWS_ACCESS_KEY_ID={}\nexport AWS_SECRET_ACCESS_KEY={}",
            key.access_key, key.secret_key
        );
    }
    node.ready().await?;
    println!("ashlar is ready: {}", node.describe());
    let failure = tokio::select! {
        stopped = stop_signal() => {
            stopped?;
            None
        }
        why = node.until_failed() => Some(why),
    };
    let Some(why) = failure else {
        node.stop().await;
        return Ok(());
    };
    // nothing can be handed over or flushed that the log would have to keep
    let _late = clock.timeout(LAST_WORDS, node.stop()).await;
    bail!("{why}")
}

fn server_config(host: &Host, args: ServerArgs) -> Result<NodeConfig> {
    let mut config = match (&args.config, args.dirs.first()) {
        (Some(path), _) => NodeConfig::load(&host.disk, path)?,
        (None, Some(first)) => NodeConfig::on_disks(first, &args.dirs),
        (None, None) => bail!("name at least one directory to keep data in, or a --config file"),
    };
    let set = |place: &mut String, value: Option<String>| {
        if let Some(value) = value {
            *place = value;
        }
    };
    set(&mut config.s3.listen, args.listen);
    set(&mut config.internal.listen, args.internal_listen);
    set(&mut config.admin.listen, args.admin_listen);
    set(&mut config.zone, args.zone);
    config.name = args.name.or(config.name);
    config.internal.advertise = args.advertise.or(config.internal.advertise);
    config.s3.tls_cert = args.tls_cert.or(config.s3.tls_cert);
    config.s3.tls_key = args.tls_key.or(config.s3.tls_key);
    if let (Some(seed), Some(token_file)) = (args.join, args.token_file) {
        config.join = Some(JoinConfig { seed, token_file });
    }
    config.check()?;
    Ok(config)
}

async fn token(host: Host, args: TokenArgs) -> Result<()> {
    let (address, security) = operator::door(&host, &args.member)?;
    let valid = Duration::from_secs(args.minutes.max(1) * 60);
    println!("{}", membership::issue_token(&host, &address, &security, valid).await?);
    Ok(())
}

async fn stop_signal() -> Result<()> {
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        biased;
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

async fn demo_command(host: Host, args: DemoArgs) -> Result<()> {
    let pointer = pointer_path();
    match &args.verb {
        None => demo_run(host, args, &pointer).await,
        Some(verb) => {
            let dir = match &args.dir {
                Some(dir) => std::path::absolute(dir)?,
                None => pointed_dir(&host, &pointer)?,
            };
            demo_verb(&host, verb, &dir, args.json).await
        }
    }
}

async fn demo_verb(host: &Host, verb: &DemoVerb, dir: &Path, json: bool) -> Result<()> {
    match verb {
        DemoVerb::Ls => {
            let mut facts = DemoFacts::load(host, dir)?;
            for node in &mut facts.nodes {
                if !process::runs(node.pid, &node.config) {
                    node.pid = 0;
                }
            }
            if json {
                println!("{}", serde_json::to_string(&facts)?);
                return Ok(());
            }
            for (node, admin) in facts.nodes.iter().zip(&facts.admin) {
                let state =
                    if node.pid == 0 { "down".to_owned() } else { format!("pid {}", node.pid) };
                println!(
                    "{:8} {:8} {:24} {state:12} {admin}",
                    node.name,
                    node.zone,
                    role_list(&node.roles)
                );
            }
        }
        DemoVerb::Kill { node } => demo::kill(host, dir, node)?,
        DemoVerb::Start { node } => {
            let node = demo::start_node(host, dir, node).await?;
            if json {
                println!("{}", serde_json::to_string(&node)?);
            } else {
                println!("{} serves again as process {}", node.name, node.pid);
            }
        }
    }
    Ok(())
}

fn role_list(roles: &[Role]) -> String {
    roles.iter().map(|role| format!("{role:?}").to_lowercase()).collect::<Vec<_>>().join(",")
}

/// Where the newest demo of this user is remembered, so that `demo ls` finds it.
fn pointer_path() -> PathBuf {
    let user = rustix::process::getuid().as_raw();
    std::env::temp_dir().join(format!("ashlar-demo-{user}.path"))
}

fn pointed_dir(host: &Host, pointer: &Path) -> Result<PathBuf> {
    let bytes =
        host.disk.read(pointer).context("no demo is known: start one, or name its --dir")?;
    Ok(PathBuf::from(String::from_utf8(bytes)?))
}

async fn demo_run(host: Host, args: DemoArgs, pointer: &Path) -> Result<()> {
    let keep = args.dir.is_some();
    let dir = match &args.dir {
        Some(dir) => std::path::absolute(dir)?,
        None => std::env::temp_dir().join(format!("ashlar-demo-{}", std::process::id())),
    };
    let wish = DemoWish {
        dir: dir.clone(),
        port: args.port,
        processes: args.processes,
        internal_tls: !args.no_internal_tls,
        engine: args.engine.clone(),
    };
    let mut facts = demo::lay_out(&host, &wish).await?;
    host.disk.replace(pointer, dir.as_os_str().as_encoded_bytes())?;
    let demo = tokio::select! {
        biased;
        started = Demo::start(&host, &wish, &mut facts) => started?,
        stopped = stop_signal() => return stopped,
    };
    announce(&facts, &dir, &args)?;
    stop_signal().await?;
    demo.stop(&host, &dir).await?;
    if !keep {
        host.disk.remove_dir_all(&dir)?;
    }
    Ok(())
}

fn announce(facts: &DemoFacts, dir: &Path, args: &DemoArgs) -> Result<()> {
    if args.json {
        println!("{}", serde_json::to_string(facts)?);
        return Ok(());
    }
    let endpoint = facts.endpoints.first().context("a demo has gateways")?;
    println!(
        "ashlar demo is ready: 3 zones, 6 nodes, 12 disks, 3 voters, 2 gateways; data in {}",
        dir.display()
    );
    println!("  S3     {}", facts.endpoints.join("  "));
    println!(
        "  admin  {}  (/metrics, /health/ready)",
        facts.admin.first().context("a demo has nodes")?
    );
    println!("\nexport AWS_ACCESS_KEY_ID={}", facts.access_key);
    println!("export AWS_SECRET_ACCESS_KEY={}", facts.secret_key);
    println!("export AWS_DEFAULT_REGION={}", facts.region);
    println!("\naws --endpoint-url {endpoint} s3 mb s3://first");
    println!("aws --endpoint-url {endpoint} s3 cp README.md s3://first/");
    println!("\nControl-C stops it.");
    Ok(())
}
