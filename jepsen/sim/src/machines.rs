//! The machines of a run, and the nodes that live on them.

use crate::options::Options;
use anyhow::{Context, Result};
use ashlar::config::{
    AdminConfig, AuditSection, DataSection, Founder, Founding, InternalConfig, JoinConfig,
    MetaSection, NodeConfig, S3Config,
};
use ashlar::identity::{NodeDir, RootKey};
use ashlar::membership::issue_token;
use ashlar::node::RunningNode;
use ashlar_host::{CutStyle, Disk, Fabric, Host, Life, SimDisk, SimHost};
use ashlar_s3::Backend;
use ashlar_types::{ClusterId, Role};
use ashlar_wire::Security;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Three of the largest entries fit.
const WAL_FILE_BYTES: u64 = 4 << 20;
const LARGE_SEGMENT_BYTES: u64 = 8 << 20;
const RESERVE_BYTES: u64 = 1 << 20;
/// Where a node that joins finds its token.
const TOKEN: &str = "/token";
/// How long a token is valid: no run takes so long.
const TOKEN_VALID: Duration = Duration::from_secs(24 * 3600);

/// A machine, and the node on it while it lives.
pub(crate) struct Machine {
    pub(crate) host: SimHost,
    config: NodeConfig,
    /// The process, from the beginning of its start.
    life: Option<(Host, Life)>,
    /// The node, once it has started.
    node: Option<RunningNode>,
}

/// All of them.
pub(crate) struct Machines {
    pub(crate) fabric: Fabric,
    pub(crate) all: Vec<Machine>,
}

/// What a client needs of a gateway.
pub(crate) struct Door {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) life: Life,
}

fn address(id: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, id).into()
}

impl Machines {
    /// Machines with empty disks but for the root key that all nodes share.
    pub(crate) fn lay_out(options: &Options) -> Result<Self> {
        let fabric = Fabric::new(options.seed, options.weather);
        let founding = founding(options);
        let root_key = RootKey {
            access_key: "ASHLSIMULATION".to_owned(),
            secret_key: "only in a simulation".to_owned(),
        };
        let mut all = Vec::new();
        for founder in &founding.nodes {
            let id = u8::try_from(founder.id).context("a simulation has few nodes")?;
            let seed = options.seed.wrapping_mul(64).wrapping_add(founder.id);
            let host = SimHost::new(&fabric, address(id), seed);
            let config = config(options, founder, &founding);
            let (booted, life) = host.boot();
            NodeDir::open(&booted, &config.dir)?.set_root_key(&root_key)?;
            drop((booted, life));
            all.push(Machine { host, config, life: None, node: None });
        }
        for id in options.nodes + 1..=options.nodes + options.spares {
            let seed = options.seed.wrapping_mul(64).wrapping_add(id.into());
            let host = SimHost::new(&fabric, address(id), seed);
            let config = spare(options, id, &founding);
            all.push(Machine { host, config, life: None, node: None });
        }
        Ok(Self { fabric, all })
    }
}

/// A node that joins the cluster of the founders, and holds metadata only.
fn spare(options: &Options, id: u8, founding: &Founding) -> NodeConfig {
    let founder = Founder { roles: vec![Role::Meta], ..founder(options, id) };
    let config = config(options, &founder, founding);
    let seed = founding.nodes.first().map_or_else(String::new, |first| first.address.clone());
    let join = JoinConfig { seed, token_file: PathBuf::from(TOKEN) };
    let data = DataSection { disks: Vec::new(), ..config.data };
    NodeConfig { data, founding: None, join: Some(join), ..config }
}

fn roles(options: &Options, id: u8) -> Vec<Role> {
    let mut roles = vec![Role::Data];
    if id <= options.voters {
        roles.push(Role::Meta);
    }
    if id <= options.gateways {
        roles.push(Role::Gateway);
    }
    roles
}

fn founder(options: &Options, id: u8) -> Founder {
    Founder {
        id: id.into(),
        name: format!("node-{id}"),
        zone: format!("zone-{}", id % 3 + 1),
        address: format!("{}:7400", address(id)),
        roles: roles(options, id),
    }
}

fn founding(options: &Options) -> Founding {
    Founding {
        cluster: ClusterId(u128::from(options.seed) | 1 << 64).to_string(),
        nodes: (1..=options.nodes).map(|id| founder(options, id)).collect(),
        ranges: options.ranges,
    }
}

fn config(options: &Options, founder: &Founder, founding: &Founding) -> NodeConfig {
    let address = &founder.address;
    let host = address.split(':').next().unwrap_or_default();
    NodeConfig {
        dir: PathBuf::from("/node"),
        name: Some(founder.name.clone()),
        zone: founder.zone.clone(),
        roles: founder.roles.clone(),
        internal: InternalConfig { listen: address.clone(), advertise: None, tls: false },
        s3: S3Config { listen: format!("{host}:9000"), ..S3Config::default() },
        admin: AdminConfig { serve: false, ..AdminConfig::default() },
        meta: MetaSection {
            engine: "memory".to_owned(),
            wal_file_bytes: WAL_FILE_BYTES,
            snapshot_log_bytes: options.snapshot_log_bytes,
            node_lost_after_seconds: options.node_lost_after_seconds,
            ..MetaSection::default()
        },
        data: DataSection {
            disks: (1..=options.disks).map(|n| PathBuf::from(format!("/disk-{n}"))).collect(),
            small_segment_bytes: options.small_segment_bytes,
            large_segment_bytes: LARGE_SEGMENT_BYTES,
            reserve_bytes: RESERVE_BYTES,
            direct_io: false,
            scrub_cycle_seconds: options.scrub_cycle_seconds,
            profile: None,
            ..DataSection::default()
        },
        audit: AuditSection::default(),
        founding: Some(founding.clone()),
        join: None,
    }
}

impl Machine {
    pub(crate) fn name(&self) -> String {
        self.config.name()
    }

    pub(crate) fn address(&self) -> IpAddr {
        self.host.address()
    }

    /// Whether a process is there, be it only starting.
    pub(crate) fn is_up(&self) -> bool {
        self.life.is_some()
    }

    /// The node, where it has started.
    pub(crate) fn node(&self) -> Option<&RunningNode> {
        self.node.as_ref()
    }

    pub(crate) fn life(&self) -> Option<&Life> {
        self.life.as_ref().map(|(_, life)| life)
    }

    /// Whether the disk has lost its power under the process that runs.
    pub(crate) fn is_dark(&self) -> bool {
        let usage = |host: &Host| host.disk.usage(Path::new("/"));
        self.life.as_ref().is_some_and(|(host, _)| usage(host).is_err())
    }

    /// Its gateway, where it serves.
    pub(crate) fn door(&self) -> Option<Door> {
        let (_, life) = self.life.as_ref()?;
        let backend = self.node.as_ref()?.backend()?;
        Some(Door { backend: Arc::clone(backend), life: life.clone() })
    }

    /// A token from this machine's node, with which another one may join.
    pub(crate) async fn token(&self) -> Result<String> {
        let (host, life) = self.life.as_ref().context("the node is down")?;
        let (host, address) = (host.clone(), self.config.address());
        let asking =
            async move { issue_token(&host, &address, &Security::Plain, TOKEN_VALID).await };
        life.spawn(asking).await?
    }

    /// Lays a token where this machine's node looks for it.
    pub(crate) fn keep_token(&self, token: &str) -> Result<()> {
        let disk: &dyn Disk = self.host.disk();
        Ok(disk.replace(Path::new(TOKEN), token.as_bytes())?)
    }

    /// Starts the process; the node is there when [`Machine::started`] was told its end.
    pub(crate) fn boot(&mut self) -> tokio::task::JoinHandle<Result<RunningNode>> {
        let (host, life) = self.host.boot();
        let starting = life.spawn(RunningNode::start(host.clone(), self.config.clone()));
        self.life = Some((host, life));
        starting
    }

    pub(crate) fn started(&mut self, node: RunningNode) {
        self.node = Some(node);
    }

    /// The process dies; what it has written stays.
    pub(crate) async fn kill(&mut self) {
        if let Some((_host, life)) = self.life.take() {
            self.host.kill(&life).await;
        }
        self.node = None;
    }

    /// The power goes.
    pub(crate) async fn cut(&mut self, style: CutStyle) {
        if let Some((_host, life)) = self.life.take() {
            self.host.cut_power(&life, style).await;
        }
        self.node = None;
    }

    /// Ends the node in order.
    pub(crate) async fn stop(&mut self) {
        let (Some(node), Some((_host, life))) = (self.node.take(), self.life.take()) else {
            return;
        };
        // an error is a task that was dropped, which nobody does here
        drop(life.spawn(node.stop()).await);
        self.host.kill(&life).await;
    }

    /// The files of its log, in order.
    pub(crate) fn log_files(&self) -> Vec<PathBuf> {
        self.host.disk().list(&self.config.dir.join("meta/wal")).unwrap_or_default()
    }

    /// The files of its shards, in order.
    pub(crate) fn segments(&self) -> Vec<PathBuf> {
        let disk: &SimDisk = self.host.disk();
        let list = |dir: PathBuf| disk.list(&dir).unwrap_or_default();
        self.config.data.disks.iter().flat_map(|dir| list(dir.join("seg"))).collect()
    }
}
