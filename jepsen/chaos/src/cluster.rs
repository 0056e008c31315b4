//! The cluster under test: six nodes in three zones, laid out like `ashlar demo`, with the network between them.

use crate::node::{Ground, Node, make_ground};
use crate::switch::Switch;
use anyhow::{Context, Result, ensure};
use ashlar::config::{
    AdminConfig, DataSection, Founder, Founding, InternalConfig, MetaSection, NodeConfig,
    RANGES_DEFAULT, S3Config,
};
use ashlar::identity::{NodeDir, RootKey};
use ashlar_host::Host;
use ashlar_load::{Client, Credentials};
use ashlar_powercut::machine::run;
use ashlar_types::{ClusterId, Role};
use ashlar_wire::Authority;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Two in each zone; the first of a zone votes, the second ones of the first two zones are gateways.
pub(crate) const NODES: usize = 6;
/// The client is a host too.
const CLIENT: usize = NODES;
const DISKS_A_NODE: usize = 2;
/// Ports of a node on loopback begin here, three apart.
const LOCAL_PORT: usize = 9_340;

/// Where a run happens.
pub(crate) struct Place {
    /// Images and mounts.
    pub(crate) dir: PathBuf,
    /// What stays.
    pub(crate) results: PathBuf,
    /// The program under test.
    pub(crate) binary: PathBuf,
    /// On loopback, without namespaces and images.
    pub(crate) is_local: bool,
    /// Of the network.
    pub(crate) seed: u64,
}

/// A running cluster.
pub(crate) struct Cluster {
    /// Its nodes.
    pub(crate) nodes: Vec<Node>,
    /// The network; none with `--local`.
    pub(crate) switch: Option<Switch>,
    credentials: Credentials,
}

impl Cluster {
    /// Makes hosts, lays the nodes out, starts them.
    pub(crate) async fn start(place: &Place) -> Result<Self> {
        let (switch, mut grounds) = if place.is_local { (None, Vec::new()) } else { hosts(place)? };
        grounds.reverse();
        let host = Host::real();
        let authority = Authority::create()?;
        let root_key = RootKey::generate(&host);
        let credentials = Credentials {
            access_key: root_key.access_key.clone(),
            secret_key: root_key.secret_key.clone(),
            region: S3Config::default().region,
        };
        let mut nodes = Vec::new();
        for config in configs(&host, place) {
            let home = config.dir.parent().context("a node lies below its home")?.to_owned();
            equip(&host, &config, &home, &authority, &root_key)?;
            let ground = grounds.pop();
            nodes.push(Node::new(
                config,
                home,
                ground,
                &place.results,
                &place.binary,
                credentials.clone(),
            ));
        }
        run(&mut Command::new("sync"))?;
        let mut cluster = Self { nodes, switch, credentials };
        for node in &mut cluster.nodes {
            node.start()?;
        }
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// A client of all gateways.
    pub(crate) fn client(&self) -> Client {
        let gateways = self.nodes.iter().filter(|node| node.config.has(Role::Gateway));
        let endpoints: Vec<String> =
            gateways.map(|node| format!("http://{}", node.config.s3.listen)).collect();
        Client::new(&endpoints, self.credentials.clone())
    }

    /// The network.
    pub(crate) fn network(&self) -> Result<&Switch> {
        self.switch.as_ref().context("there is no network of ours on loopback")
    }

    /// The nodes of one zone.
    pub(crate) fn of_zone(&self, zone: usize) -> Vec<usize> {
        vec![2 * zone, 2 * zone + 1]
    }

    /// Waits until every node is ready; how long that took.
    pub(crate) async fn wait_ready(&mut self) -> Result<Duration> {
        let began = Instant::now();
        for node in &mut self.nodes {
            node.wait_ready().await?;
        }
        Ok(began.elapsed())
    }

    /// No node may end but by our hand: a node that does is a finding.
    pub(crate) fn assert_all_run(&mut self) -> Result<()> {
        let ended: Vec<String> = self.nodes.iter_mut().filter_map(Node::ended).collect();
        ensure!(ended.is_empty(), "{}", ended.join("; "));
        Ok(())
    }
}

fn hosts(place: &Place) -> Result<(Option<Switch>, Vec<Ground>)> {
    let pid = std::process::id();
    let tuns: Vec<String> = (0..=CLIENT).map(|number| format!("ac{pid}-{number}")).collect();
    let switch = Switch::open(&tuns, place.seed)?;
    let grounds = (0..NODES)
        .map(|number| make_ground(&place.dir, &name(number), number, &tuns[number], pid))
        .collect::<Result<Vec<_>>>()?;
    // this process has a namespace of its own, which has no name: the client's device stays in it
    let ip = |words: &[&str]| run(Command::new("ip").args(words));
    ip(&["link", "set", "lo", "up"])?;
    ip(&["addr", "add", &format!("{}/24", crate::address(CLIENT)), "dev", &tuns[CLIENT]])?;
    ip(&["link", "set", &tuns[CLIENT], "mtu", &crate::switch::MTU.to_string(), "up"])?;
    Ok((Some(switch), grounds))
}

fn name(number: usize) -> String {
    format!("node-{}", number + 1)
}

fn roles(number: usize) -> Vec<Role> {
    match number {
        0 | 2 | 4 => vec![Role::Meta, Role::Data],
        1 | 3 => vec![Role::Data, Role::Gateway],
        _ => vec![Role::Data],
    }
}

fn configs(host: &Host, place: &Place) -> Vec<NodeConfig> {
    let port = |number: usize, which: usize| {
        if place.is_local {
            format!("127.0.0.1:{}", LOCAL_PORT + 3 * number + which)
        } else {
            format!("{}:{}", crate::address(number), [7_400, 7_401, 9_000][which])
        }
    };
    let founders = (0..NODES).map(|number| Founder {
        id: number as u64 + 1,
        name: name(number),
        zone: format!("zone-{}", number / 2 + 1),
        address: port(number, 0),
        roles: roles(number),
    });
    let founders: Vec<Founder> = founders.collect();
    let cluster = ClusterId(host.random.next_u128()).to_string();
    let founding = Founding { cluster, nodes: founders.clone(), ranges: RANGES_DEFAULT };
    let config = |(number, founder): (usize, Founder)| {
        let home = place.dir.join(&founder.name);
        NodeConfig {
            name: Some(founder.name),
            zone: founder.zone,
            roles: founder.roles,
            internal: InternalConfig { listen: founder.address, advertise: None, tls: true },
            s3: S3Config { listen: port(number, 2), ..S3Config::default() },
            admin: AdminConfig { listen: port(number, 1), ..AdminConfig::default() },
            meta: MetaSection { wal_file_bytes: 8 << 20, ..MetaSection::default() },
            data: DataSection {
                disks: (1..=DISKS_A_NODE).map(|disk| home.join(format!("disk-{disk}"))).collect(),
                small_segment_bytes: 16 << 20,
                large_segment_bytes: 128 << 20,
                reserve_bytes: 64 << 20,
                ..DataSection::default()
            },
            founding: Some(founding.clone()),
            dir: home.join("node"),
            ..NodeConfig::on_disks(&home, &[])
        }
    };
    founders.into_iter().enumerate().map(config).collect()
}

/// Gives a node its keys and its configuration, as an operator does.
fn equip(
    host: &Host,
    config: &NodeConfig,
    home: &Path,
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
    host.disk.replace(&home.join("node.toml"), toml::to_string_pretty(config)?.as_bytes())?;
    Ok(())
}
