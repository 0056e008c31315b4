//! `ashlar demo`: a real cluster on one machine in one command.
//!
//! Three zones of two nodes of two disks; the first node of each zone is a voter, the second nodes of the first two
//! zones are gateways. Every node has its own directory, configuration and certificate, exactly as on six machines;
//! `--processes` makes each a process of its own, so that pulling its plug is real. `<dir>/demo.json` tells other shells
//! what runs.

use crate::config::{
    AdminConfig, AuditSection, DataSection, Founder, Founding, InternalConfig, MetaSection,
    NodeConfig, RANGES_DEFAULT, S3Config,
};
use crate::identity::{NodeDir, RootKey};
use crate::node::RunningNode;
use crate::process;
use anyhow::{Context, Result, bail};
use ashlar_host::Host;
use ashlar_types::{ClusterId, Role};
use ashlar_wire::Authority;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

const ZONES: u64 = 3;
const NODES_A_ZONE: u64 = 2;
const DISKS_A_NODE: u64 = 2;
const GATEWAYS: u16 = 2;
/// Small files, so that an empty demo costs little room.
const WAL_FILE_BYTES: u64 = 8 << 20;
const SMALL_SEGMENT_BYTES: u64 = 16 << 20;
const LARGE_SEGMENT_BYTES: u64 = 128 << 20;
const RESERVE_BYTES: u64 = 64 << 20;
/// How long all nodes may take to be ready.
const READY_PATIENCE: Duration = Duration::from_secs(60);

/// What is asked for on the command line.
#[derive(Debug, Clone)]
pub struct DemoWish {
    /// Where everything lies.
    pub dir: PathBuf,
    /// The first gateway's port; the second one's is the next.
    pub port: u16,
    /// Every node a process of its own.
    pub processes: bool,
    /// Mutual TLS between nodes.
    pub internal_tls: bool,
    /// The ordered map: fjall or sled.
    pub engine: String,
}

/// What `<dir>/demo.json` tells.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DemoFacts {
    /// The S3 ports of all gateways.
    pub endpoints: Vec<String>,
    /// The admin ports of all nodes, in their order.
    pub admin: Vec<String>,
    /// The root access key.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// The region.
    pub region: String,
    /// The nodes.
    pub nodes: Vec<DemoNode>,
    /// Whether each node is a process of its own.
    pub processes: bool,
}

/// A node of the demo.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DemoNode {
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Its roles.
    pub roles: Vec<Role>,
    /// Its process; 0: it does not run.
    pub pid: u32,
    /// Its directories: its own, then its disks.
    pub dirs: Vec<PathBuf>,
    /// Its configuration.
    pub config: PathBuf,
}

impl DemoFacts {
    fn path(dir: &Path) -> PathBuf {
        dir.join("demo.json")
    }

    /// Reads what a demo has left in its directory.
    pub fn load(host: &Host, dir: &Path) -> Result<Self> {
        let path = Self::path(dir);
        let bytes = host.disk.read(&path);
        let bytes = bytes.with_context(|| {
            format!("there is no demo in {}: start one, or name its --dir", dir.display())
        })?;
        serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Tells other shells.
    pub fn save(&self, host: &Host, dir: &Path) -> Result<()> {
        host.disk.replace_private(&Self::path(dir), &serde_json::to_vec_pretty(self)?)?;
        Ok(())
    }

    /// The node of a name.
    pub fn node_mut(&mut self, name: &str) -> Result<&mut DemoNode> {
        let names: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
        let found = self.nodes.iter_mut().find(|node| node.name == name);
        found.with_context(|| format!("there is no node '{name}': there are {}", names.join(", ")))
    }
}

/// Lays the demo out in its directory, or finds it there.
pub async fn lay_out(host: &Host, wish: &DemoWish) -> Result<DemoFacts> {
    if host.disk.exists(&DemoFacts::path(&wish.dir)) {
        let mut facts = DemoFacts::load(host, &wish.dir)?;
        if let Some(node) = facts.nodes.iter().find(|node| process::runs(node.pid, &node.config)) {
            bail!(
                "a demo runs in {} already ({} is process {}): stop it first",
                wish.dir.display(),
                node.name,
                node.pid
            );
        }
        facts.nodes.iter_mut().for_each(|node| node.pid = 0);
        facts.processes = wish.processes;
        return Ok(facts);
    }
    host.disk
        .create_dir_all(&wish.dir)
        .with_context(|| format!("cannot make the directory {}", wish.dir.display()))?;
    let configs = configurations(host, wish).await?;
    let authority = Authority::create()?;
    let root_key = root_key(host);
    for config in &configs {
        equip(host, config, &authority, &root_key)?;
    }
    let facts = facts_of(&configs, &root_key, wish);
    facts.save(host, &wish.dir)?;
    Ok(facts)
}

/// The root key from the environment, or a random one.
pub fn root_key(host: &Host) -> RootKey {
    match (std::env::var("ASHLAR_ROOT_ACCESS_KEY"), std::env::var("ASHLAR_ROOT_SECRET_KEY")) {
        (Ok(access_key), Ok(secret_key)) => RootKey { access_key, secret_key },
        _ => RootKey::generate(host),
    }
}

async fn configurations(host: &Host, wish: &DemoWish) -> Result<Vec<NodeConfig>> {
    let count = usize::try_from(ZONES * NODES_A_ZONE)?;
    let ports = free_ports(host, 2 * count).await?;
    let (internal, admin) = ports.split_at(count);
    let mut founders = Vec::new();
    for (index, port) in (0..).zip(internal) {
        let (zone, place) = (index / NODES_A_ZONE, index % NODES_A_ZONE);
        let mut roles = vec![Role::Data];
        if place == 0 {
            roles.insert(0, Role::Meta);
        } else if zone < u64::from(GATEWAYS) {
            roles.push(Role::Gateway);
        }
        founders.push(Founder {
            id: index + 1,
            name: format!("node-{}", index + 1),
            zone: format!("zone-{}", zone + 1),
            address: format!("127.0.0.1:{port}"),
            roles,
        });
    }
    let cluster = ClusterId(host.random.next_u128()).to_string();
    let founding = Founding { cluster, nodes: founders.clone(), ranges: RANGES_DEFAULT };
    let mut gateway_ports = wish.port..;
    let configs = founders.into_iter().zip(admin).map(|(founder, admin)| {
        let s3_port = if founder.roles.contains(&Role::Gateway) {
            gateway_ports.next().unwrap_or(0)
        } else {
            0
        };
        node_config(wish, founder, *admin, s3_port, founding.clone())
    });
    Ok(configs.collect())
}

fn node_config(
    wish: &DemoWish,
    founder: Founder,
    admin: u16,
    s3_port: u16,
    founding: Founding,
) -> NodeConfig {
    let dir = wish.dir.join(&founder.name);
    NodeConfig {
        name: Some(founder.name),
        zone: founder.zone,
        roles: founder.roles,
        internal: InternalConfig {
            listen: founder.address,
            advertise: None,
            tls: wish.internal_tls,
        },
        s3: S3Config {
            listen: format!("127.0.0.1:{s3_port}"),
            domains: vec!["localhost".to_owned()],
            ..S3Config::default()
        },
        admin: AdminConfig { listen: format!("127.0.0.1:{admin}"), ..AdminConfig::default() },
        meta: MetaSection {
            engine: wish.engine.clone(),
            wal_file_bytes: WAL_FILE_BYTES,
            ..MetaSection::default()
        },
        data: DataSection {
            disks: (1..=DISKS_A_NODE).map(|number| dir.join(format!("disk-{number}"))).collect(),
            small_segment_bytes: SMALL_SEGMENT_BYTES,
            large_segment_bytes: LARGE_SEGMENT_BYTES,
            reserve_bytes: RESERVE_BYTES,
            direct_io: true,
            profile: None,
            ..DataSection::default()
        },
        audit: AuditSection::default(),
        founding: Some(founding),
        join: None,
        dir: dir.join("node"),
    }
}

fn equip(
    host: &Host,
    config: &NodeConfig,
    authority: &Authority,
    root_key: &RootKey,
) -> Result<()> {
    let dir = NodeDir::open(host, &config.dir)?;
    for disk in &config.data.disks {
        host.disk.create_dir_all(disk)?;
    }
    if config.has(Role::Meta) {
        dir.set_authority(authority)?;
    }
    dir.set_credentials(&authority.issue(&config.name())?)?;
    dir.set_root_key(root_key)?;
    host.disk.replace(&config_path(config), toml::to_string_pretty(config)?.as_bytes())?;
    Ok(())
}

fn config_path(config: &NodeConfig) -> PathBuf {
    config.dir.with_file_name("node.toml")
}

fn facts_of(configs: &[NodeConfig], root_key: &RootKey, wish: &DemoWish) -> DemoFacts {
    let gateways = configs.iter().filter(|config| config.has(Role::Gateway));
    let nodes = configs.iter().map(|config| DemoNode {
        name: config.name(),
        zone: config.zone.clone(),
        roles: config.roles.clone(),
        pid: 0,
        dirs: std::iter::once(config.dir.clone())
            .chain(config.data.disks.iter().cloned())
            .collect(),
        config: config_path(config),
    });
    DemoFacts {
        endpoints: gateways.map(|config| format!("http://{}", config.s3.listen)).collect(),
        admin: configs.iter().map(|config| format!("http://{}", config.admin.listen)).collect(),
        access_key: root_key.access_key.clone(),
        secret_key: root_key.secret_key.clone(),
        region: S3Config::default().region,
        nodes: nodes.collect(),
        processes: wish.processes,
    }
}

/// Ports that are free now. Held together while they are chosen, so that all differ.
async fn free_ports(host: &Host, count: usize) -> Result<Vec<u16>> {
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(host.network.listen("127.0.0.1:0").await.context("no free port on loopback")?);
    }
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// A demo that runs.
#[derive(Debug)]
pub enum Demo {
    /// All nodes in this process.
    Inside(Vec<RunningNode>),
    /// Each node a process.
    Processes(Vec<tokio::process::Child>),
}

impl Demo {
    /// Starts every node and waits until a first PUT would succeed.
    pub async fn start(host: &Host, wish: &DemoWish, facts: &mut DemoFacts) -> Result<Self> {
        if wish.processes {
            let mut children = Vec::new();
            for node in &mut facts.nodes {
                let child = process::spawn(&node.config)?;
                node.pid = child.id().context("the node ended at once")?;
                children.push(child);
            }
            facts.save(host, &wish.dir)?;
            if let Err(error) = wait_ready(host, facts).await {
                Self::Processes(children).stop(host, &wish.dir).await?;
                return Err(error);
            }
            return Ok(Self::Processes(children));
        }
        facts.nodes.iter_mut().for_each(|node| node.pid = std::process::id());
        facts.save(host, &wish.dir)?;
        let nodes = start_inside(host, facts).await?;
        wait_ready(host, facts).await?;
        Ok(Self::Inside(nodes))
    }

    /// Stops every node: leaders handed over, everything flushed. Also those that another shell has started.
    pub async fn stop(self, host: &Host, dir: &Path) -> Result<()> {
        match self {
            Self::Inside(nodes) => {
                futures::future::join_all(nodes.into_iter().map(RunningNode::stop)).await;
            }
            Self::Processes(mut children) => {
                let facts = DemoFacts::load(host, dir)?;
                for node in facts.nodes.iter().filter(|node| process::runs(node.pid, &node.config))
                {
                    process::terminate(node.pid)?;
                }
                for child in &mut children {
                    child.wait().await?;
                }
                process::wait_ended(host, &facts).await?;
            }
        }
        let mut facts = DemoFacts::load(host, dir)?;
        facts.nodes.iter_mut().for_each(|node| node.pid = 0);
        facts.save(host, dir)
    }
}

async fn start_inside(host: &Host, facts: &DemoFacts) -> Result<Vec<RunningNode>> {
    let mut starts = Vec::new();
    for node in &facts.nodes {
        let config = NodeConfig::load(&host.disk, &node.config)?;
        starts.push(RunningNode::start(host.clone().with_own_shutdown(), config));
    }
    let mut nodes = Vec::new();
    for started in futures::future::join_all(starts).await {
        nodes.push(started?);
    }
    Ok(nodes)
}

async fn wait_ready(host: &Host, facts: &DemoFacts) -> Result<()> {
    for (node, admin) in facts.nodes.iter().zip(&facts.admin) {
        process::wait_ready(host, node, admin, READY_PATIENCE).await?;
    }
    Ok(())
}

/// Several shells may change `demo.json` at once: each holds this lock from reading to writing.
fn lock(host: &Host, dir: &Path) -> Result<Box<dyn Send + Sync>> {
    let locked = host.disk.lock(&dir.join("demo.lock"));
    locked.with_context(|| format!("cannot lock the demo in {}", dir.display()))
}

/// Pulls a node's plug: SIGKILL.
pub fn kill(host: &Host, dir: &Path, name: &str) -> Result<()> {
    let _lock = lock(host, dir)?;
    let mut facts = DemoFacts::load(host, dir)?;
    if !facts.processes {
        bail!(
            "all nodes of this demo share one process: start it with --processes to pull one's plug"
        );
    }
    let node = facts.node_mut(name)?;
    if !process::runs(node.pid, &node.config) {
        bail!("{name} does not run");
    }
    process::kill(node.pid)?;
    node.pid = 0;
    facts.save(host, dir)
}

/// Plugs a node in again, and waits until it serves.
pub async fn start_node(host: &Host, dir: &Path, name: &str) -> Result<DemoNode> {
    let lock = lock(host, dir)?;
    let mut facts = DemoFacts::load(host, dir)?;
    let position = facts.nodes.iter().position(|node| node.name == name);
    let admin = position.and_then(|at| facts.admin.get(at).cloned());
    let node = facts.node_mut(name)?;
    if process::runs(node.pid, &node.config) {
        bail!("{name} runs already, as process {}", node.pid);
    }
    let child = process::spawn(&node.config)?;
    node.pid = child.id().context("the node ended at once")?;
    let started = node.clone();
    facts.save(host, dir)?;
    drop(lock);
    let admin = admin.context("demo.json has no admin port for this node")?;
    process::wait_ready(host, &started, &admin, READY_PATIENCE).await?;
    Ok(started)
}
