//! A node, from configuration to running and back, in one column: what is started above is stopped below in the
//! opposite order.
//!
//! The binary, the demo and the tests call [`RunningNode::start`]; nothing here knows which of them it was.

use crate::audit::Auditor;
use crate::collect::Collector;
use crate::config::{Founder, Founding, NodeConfig, RANGES_DEFAULT};
use crate::deletions::Deletions;
use crate::duties;
use crate::identity::{Identity, NodeDir, RootKey};
use crate::leading::Leading;
use crate::membership::{self, MembershipService};
use crate::moves::Mover;
use crate::operator::OperatorService;
use crate::raise::Raiser;
use crate::reads::ReadsService;
use crate::recode::Recoder;
use crate::repair::Repairer;
use crate::replicas::Replicator;
use crate::sessions::SessionEnds;
use crate::splits::Splitter;
use anyhow::{Context, Result, bail};
use arc_swap::ArcSwap;
use ashlar_admin::{AdminState, Readiness};
use ashlar_client::{Client, ClientConfig};
use ashlar_gateway::Gateway;
use ashlar_host::{Host, Listener, TaskHandle, TaskKind};
use ashlar_meta::{Beginning, Formation, MetaConfig, MetaNode};
use ashlar_node::{DataConfig, DataNode};
use ashlar_placement::MoveLimits;
use ashlar_s3::Backend;
use ashlar_types::{ClusterId, ClusterMap, Node, NodeId, Role};
use ashlar_wire::proto::gateway_server::GatewayServer;
use ashlar_wire::proto::membership_server::MembershipServer;
use ashlar_wire::proto::operator_server::OperatorServer;
use ashlar_wire::{Authority, Dialer, Security};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How long a node may take to serve, before `server` says why it does not.
const READY_PATIENCE: Duration = Duration::from_secs(120);
const READY_POLL: Duration = Duration::from_millis(10);

/// Where nodes are dialled: what the founding list said, then what the cluster map says.
pub(crate) type AddressBook = Arc<ArcSwap<BTreeMap<NodeId, String>>>;

/// A node that runs.
pub struct RunningNode {
    host: Host,
    config: NodeConfig,
    identity: Identity,
    new_root_key: Option<RootKey>,
    readiness: Readiness,
    meta: Option<Arc<MetaNode>>,
    data: Option<Arc<DataNode>>,
    client: Client,
    backend: Option<Arc<dyn Backend>>,
    auditor: Arc<Auditor>,
    tasks: Vec<TaskHandle>,
    _dir: Arc<NodeDir>,
}

impl std::fmt::Debug for RunningNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RunningNode({})", self.identity.node())
    }
}

/// Who the node is in this term, and what it speaks with.
struct Enrolled {
    identity: Identity,
    founding: Option<Founding>,
    seeds: Vec<String>,
    security: Security,
    root_key: RootKey,
    new_root_key: bool,
    authority: Option<Authority>,
}

impl RunningNode {
    /// Starts everything that the configuration names. When it returns the ports are open; [`RunningNode::ready`]
    /// waits until a first PUT would succeed.
    pub async fn start(host: Host, config: NodeConfig) -> Result<Self> {
        config.check()?;
        let dir = Arc::new(NodeDir::open(&host, &config.dir)?);
        let internal = listen(&host, "internal", &config.internal.listen).await?;
        let address = dialled_address(&config, internal.as_ref())?;
        let enrolled = enroll(&host, &config, &dir, &address).await?;
        let identity = enrolled.identity.clone();
        let dialer = Dialer::new(host.clone(), &enrolled.security);
        let book = address_book(enrolled.founding.as_ref(), &dir)?;

        let data = start_data(&host, &config, &identity, &dir).await?;
        let meta = start_meta(&host, &config, &enrolled, &dialer, &book).await?;
        let client = Client::start(host.clone(), dialer, client_config(&enrolled)).await;

        let auditor = Auditor::new(&host, &client, identity.node());
        let membership = MembershipService {
            host: host.clone(),
            client: client.clone(),
            cluster: identity.cluster,
            authority: enrolled.authority,
            tls: config.internal.tls,
            root_key: enrolled.root_key.clone(),
            region: config.s3.region.clone(),
        };
        let reads = ReadsService { client: client.clone(), incarnation: identity.incarnation };
        let router =
            internal_router(meta.as_ref(), data.as_ref(), membership, reads, auditor.clone());
        let mut tasks = Vec::new();
        let mut background = |name, task: futures::future::BoxFuture<'static, ()>| {
            tasks.push(host.tasks.spawn(TaskKind::Background(name), task));
        };
        background(
            "internal port",
            Box::pin(ashlar_wire::serve(host.clone(), internal, enrolled.security, router)),
        );

        let readiness = Readiness::default();
        let duty = duties::Duties {
            host: host.clone(),
            client: client.clone(),
            data: data.clone(),
            book,
            dir: dir.clone(),
            readiness: readiness.clone(),
            profile: config.profile()?,
            founders: enrolled
                .founding
                .as_ref()
                .map_or_else(Vec::new, |list| list.nodes.iter().map(Founder::id).collect()),
        };
        // a duty may be dropped at any await: it is idempotent, and its calls wait for a cluster that may be gone
        background("follow the map", until_stop(&host, duty.clone().follow_map()));
        background("register", until_stop(&host, duty.clone().register(identity.clone(), address)));
        if let Some(data) = &data {
            let (scrubbed, source) = (data.clone(), client.clone());
            let scrubbing = async move { scrubbed.scrub(&source).await };
            background("scrub", until_stop(&host, scrubbing));
            background("tell of the disks", until_stop(&host, duty.clone().tell_of_disks()));
            let (taker, source) = (data.clone(), client.clone());
            let taking_in = async move { taker.take_in(&source).await };
            background("take in slots", until_stop(&host, taking_in));
            let giver = data.clone();
            let giving_up = async move { giver.give_up_slots().await };
            background("give up slots", until_stop(&host, giving_up));
        }
        if let Some(meta) = &meta {
            background("place", until_stop(&host, duty.clone().place()));
            let leading =
                Leading { client: client.clone(), meta: meta.clone(), node: identity.node() };
            let collector = Collector::new(&host, &client, &leading);
            background("collect", until_stop(&host, collector.run()));
            let repairer =
                Repairer { host: host.clone(), client: client.clone(), leading: leading.clone() };
            background("repair", until_stop(&host, repairer.run()));
            let splitter = Splitter {
                host: host.clone(),
                client: client.clone(),
                leading: leading.clone(),
                objects_max: config.meta.range_objects_max,
            };
            background("split ranges", until_stop(&host, splitter.run()));
            let replicator = Replicator {
                host: host.clone(),
                client: client.clone(),
                leading: leading.clone(),
                count: config.meta.replicas,
                lost_after: Duration::from_secs(config.meta.node_lost_after_seconds),
            };
            background("move replicas", until_stop(&host, replicator.run()));
            let raiser =
                Raiser { host: host.clone(), client: client.clone(), leading: leading.clone() };
            background("raise versions", until_stop(&host, raiser.run()));
            let ends = SessionEnds {
                host: host.clone(),
                client: client.clone(),
                leading: leading.clone(),
                silent_max: Duration::from_secs(config.audit.session_silent_seconds),
            };
            background("session ends", until_stop(&host, ends.run()));
            let cycle = Duration::from_secs(config.audit.cycle_seconds);
            let auditing = auditor.clone().run(leading.clone(), cycle);
            background("audit", until_stop(&host, auditing));
            let recoder = Recoder {
                host: host.clone(),
                client: client.clone(),
                leading: leading.clone(),
                every: Duration::from_secs(config.data.recode_cycle_seconds.max(1)),
            };
            background("recode", until_stop(&host, recoder.run()));
            let mover = Mover {
                host: host.clone(),
                client: client.clone(),
                leading: leading.clone(),
                auditor: auditor.clone(),
                limits: MoveLimits::default(),
                suspect_after: Duration::from_secs(config.meta.disk_suspect_after_seconds),
                dead_after: Duration::from_secs(config.meta.disk_dead_after_seconds),
            };
            background("move slots", until_stop(&host, mover.run()));
            let deletions = Deletions { host: host.clone(), client: client.clone(), leading };
            background("deletions", until_stop(&host, deletions.run()));
            let telling = tell_outdated(meta.clone(), readiness.clone());
            background("tell that the node is an old image", until_stop(&host, telling));
            let telling = tell_failure(meta.clone(), readiness.clone());
            background("tell that the metadata has failed", until_stop(&host, telling));
        }

        if config.admin.serve {
            let admin = listen(&host, "admin", &config.admin.listen).await?;
            let facts = facts(&config, &identity);
            let history = config.dir.join("history");
            let state = AdminState::new(&host, &history, readiness.clone(), facts)?;
            background("admin port", Box::pin(ashlar_admin::serve(host.clone(), admin, state)));
        }
        let mut backend = None;
        if config.has(Role::Gateway) {
            let s3 = listen(&host, "S3", &config.s3.listen).await?;
            let tls = gateway_tls(&host, &config)?;
            let gateway =
                Gateway::new(&host, client.clone(), gateway_config(&config, &enrolled.root_key));
            backend = Some(Arc::clone(gateway.backend()));
            background("S3 port", Box::pin(ashlar_gateway::serve(host.clone(), s3, tls, gateway)));
        }
        let new_root_key = enrolled.new_root_key.then_some(enrolled.root_key);
        Ok(Self {
            host,
            config,
            identity,
            new_root_key,
            readiness,
            meta,
            data,
            client,
            backend,
            auditor,
            tasks,
            _dir: dir,
        })
    }

    /// Waits until a first PUT would succeed.
    pub async fn ready(&self) -> Result<()> {
        let deadline = self.host.clock.now() + READY_PATIENCE;
        while !self.readiness.is_ready() {
            if let Some(why) = self.failure() {
                bail!("the node must be ended: {why}");
            }
            if self.host.clock.now() > deadline {
                bail!(
                    "not ready after {} s: {}",
                    READY_PATIENCE.as_secs(),
                    self.readiness.reasons().join("; ")
                );
            }
            self.host.clock.sleep(READY_POLL).await;
        }
        Ok(())
    }

    /// Why a first PUT would not succeed now, as far as this node knows; empty: it would.
    pub fn not_ready(&self) -> Vec<String> {
        match self.readiness.is_ready() {
            true => Vec::new(),
            false => vec![self.readiness.reasons().join("; ")],
        }
    }

    /// Why this node must be ended and started anew; `None`: it need not.
    pub fn failure(&self) -> Option<String> {
        self.meta.as_ref().and_then(|meta| meta.failure())
    }

    /// Waits until this node must be ended and started anew; says why: its metadata log has failed, and takes nothing
    /// more, or cannot give what it has, until recovery has looked at what is on the disk; or its release is too old.
    pub async fn until_failed(&self) -> String {
        match &self.meta {
            Some(meta) => meta.until_failed().await,
            None => std::future::pending().await,
        }
    }

    /// The root key, where this start has made it.
    pub fn new_root_key(&self) -> Option<&RootKey> {
        self.new_root_key.as_ref()
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let mut parts = vec![format!("{} in {}", self.identity.node(), self.config.zone)];
        if self.config.has(Role::Gateway) {
            parts.push(format!("S3 on {}", self.config.s3.listen));
        }
        parts.push(format!("admin on {}", self.config.admin.listen));
        parts.join(", ")
    }

    /// Its id.
    pub fn node(&self) -> NodeId {
        self.identity.node()
    }

    /// The client that this node's own duties use.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What its gateway does for a request that has been authenticated, where it is one.
    pub fn backend(&self) -> Option<&Arc<dyn Backend>> {
        self.backend.as_ref()
    }

    /// Its metadata role, where it has one.
    pub fn meta(&self) -> Option<&Arc<MetaNode>> {
        self.meta.as_ref()
    }

    /// What compares all that is named with all that is there.
    pub fn auditor(&self) -> &Arc<Auditor> {
        &self.auditor
    }

    /// Its data role, where it has one.
    pub fn data(&self) -> Option<&Arc<DataNode>> {
        self.data.as_ref()
    }

    /// Stops: leaders are handed over while the ports still answer, then the ports close, then all is flushed.
    pub async fn stop(self) {
        if let Some(meta) = self.meta {
            meta.stop().await;
        }
        self.host.shutdown.request();
        for task in self.tasks {
            task.join().await;
        }
        if let Some(data) = self.data {
            data.stop().await;
        }
    }
}

/// A node that is an old image, or a copy, serves no metadata, and is not ready for anything else.
async fn tell_outdated(meta: Arc<MetaNode>, readiness: Readiness) {
    let why = meta.until_outdated().await;
    readiness.set("node", false, &why);
}

/// A node whose metadata has failed is ready for nothing: whoever runs it ends it ([`RunningNode::until_failed`]).
async fn tell_failure(meta: Arc<MetaNode>, readiness: Readiness) {
    let why = meta.until_failed().await;
    readiness.set("metadata", false, &why);
}

fn until_stop(
    host: &Host,
    duty: impl Future<Output = ()> + Send + 'static,
) -> futures::future::BoxFuture<'static, ()> {
    let stop = host.shutdown.requested();
    Box::pin(async move {
        tokio::select! {
            biased;
            () = stop => {}
            () = duty => {}
        }
    })
}

async fn listen(host: &Host, what: &str, address: &str) -> Result<Box<dyn Listener>> {
    host.network.listen(address).await.with_context(|| {
        format!("cannot listen on {address} for the {what} port: is another process using it? Choose another port")
    })
}

fn dialled_address(config: &NodeConfig, internal: &dyn Listener) -> Result<String> {
    match &config.internal.advertise {
        Some(address) => Ok(address.clone()),
        None => Ok(internal.local_addr()?.to_string()),
    }
}

async fn enroll(
    host: &Host,
    config: &NodeConfig,
    dir: &NodeDir,
    address: &str,
) -> Result<Enrolled> {
    let mut new_root_key = false;
    let known = dir.identity()?;
    let founding = match (&config.founding, dir.founding()?) {
        (Some(list), _) => Some(list.clone()),
        (None, Some(list)) => Some(list),
        (None, None) if known.is_none() && config.join.is_none() => {
            Some(found_alone(host, config, dir, address)?)
        }
        (None, None) => None,
    };
    let identity = match known {
        Some(identity) => {
            check_cluster(&identity, founding.as_ref(), config)?;
            identity
        }
        None => match &founding {
            Some(list) => founder_identity(list, config)?,
            None => {
                let joined = membership::join(host, config, dir, address).await?;
                dir.set_seeds(&joined.seeds)?;
                joined.identity
            }
        },
    };
    let identity = dir.boot(identity)?;
    dir.set_address(address)?;
    let root_key = match dir.root_key()? {
        Some(key) => key,
        None => {
            new_root_key = true;
            let key = crate::demo::root_key(host);
            dir.set_root_key(&key)?;
            key
        }
    };
    let founders = founding.as_ref().map_or(&[][..], |list| &list.nodes[..]);
    let founders = founders.iter().filter(|node| node.roles.contains(&Role::Meta));
    // the founders may all have been replaced since
    let mut seeds: BTreeSet<String> = founders.map(|node| node.address.clone()).collect();
    seeds.extend(dir.seeds()?);
    seeds.extend(dir.members()?.into_values());
    let seeds = seeds.into_iter().collect();
    let (security, authority) = (dir.security(config.internal.tls)?, dir.authority()?);
    Ok(Enrolled { identity, founding, seeds, security, root_key, new_root_key, authority })
}

/// A cluster of one: its authority, its certificate, its founding list. Each is durable before the next.
fn found_alone(host: &Host, config: &NodeConfig, dir: &NodeDir, address: &str) -> Result<Founding> {
    if !config.has(Role::Meta) {
        bail!(
            "this node has no cluster: give it the role meta to found one, or [join] to join one"
        );
    }
    let authority = Authority::create()?;
    dir.set_authority(&authority)?;
    dir.set_credentials(&authority.issue("node-1")?)?;
    let founding = Founding {
        cluster: ClusterId(host.random.next_u128()).to_string(),
        nodes: vec![Founder {
            id: 1,
            name: config.name(),
            zone: config.zone.clone(),
            address: address.to_owned(),
            roles: config.roles.clone(),
        }],
        ranges: RANGES_DEFAULT,
    };
    dir.set_founding(&founding)?;
    Ok(founding)
}

fn check_cluster(
    identity: &Identity,
    founding: Option<&Founding>,
    config: &NodeConfig,
) -> Result<()> {
    let Some(list) = founding else { return Ok(()) };
    if list.cluster != identity.cluster.to_string() {
        bail!(
            "{} belongs to cluster {}, and the configuration names cluster {}: give the node an empty directory, or the right configuration",
            config.dir.display(),
            identity.cluster,
            list.cluster
        );
    }
    Ok(())
}

fn founder_identity(list: &Founding, config: &NodeConfig) -> Result<Identity> {
    let cluster = list.cluster.parse().context("founding.cluster")?;
    let own = list.nodes.iter().find(|node| node.name == config.name());
    let own =
        own.with_context(|| format!("the founding list does not name '{}'", config.name()))?;
    Ok(Identity::new(cluster, own.id()))
}

/// Where the others were last, so that they find each other also when none of them has the map yet.
fn address_book(founding: Option<&Founding>, dir: &NodeDir) -> Result<AddressBook> {
    let founders = founding.map_or(&[][..], |list| &list.nodes[..]);
    let mut book: BTreeMap<NodeId, String> =
        founders.iter().map(|node| (node.id(), node.address.clone())).collect();
    book.extend(dir.members()?);
    Ok(Arc::new(ArcSwap::from_pointee(book)))
}

/// What the address book becomes when the map is known.
pub(crate) fn addresses_of(map: &ClusterMap) -> BTreeMap<NodeId, String> {
    map.nodes.values().map(|node| (node.id, node.address.clone())).collect()
}

async fn start_data(
    host: &Host,
    config: &NodeConfig,
    identity: &Identity,
    dir: &NodeDir,
) -> Result<Option<Arc<DataNode>>> {
    if !config.has(Role::Data) {
        return Ok(None);
    }
    let known = dir.known_disks()?;
    // where a disk was before, a directory that is missing is a disk that is missing
    for disk in config.data.disks.iter().filter(|disk| !known.contains_key(*disk)) {
        host.disk.create_dir_all(disk).with_context(|| {
            format!(
                "cannot make the disk's directory {}: choose one that this user may write",
                disk.display()
            )
        })?;
    }
    let data = DataConfig {
        node: identity.node(),
        incarnation: identity.incarnation,
        cluster: identity.cluster,
        disks: config.data.disks.clone(),
        known,
        small_segment_bytes: config.data.small_segment_bytes,
        large_segment_bytes: config.data.large_segment_bytes,
        reserve_bytes: config.data.reserve_bytes,
        direct_io: config.data.direct_io,
        scrub_cycle: Duration::from_secs(config.data.scrub_cycle_seconds),
        move_bytes_per_second: config.data.move_bytes_per_second,
    };
    Ok(Some(DataNode::start(host.clone(), data).await?))
}

async fn start_meta(
    host: &Host,
    config: &NodeConfig,
    enrolled: &Enrolled,
    dialer: &Dialer,
    book: &AddressBook,
) -> Result<Option<Arc<MetaNode>>> {
    if !config.has(Role::Meta) {
        return Ok(None);
    }
    let cluster = enrolled.identity.cluster;
    let beginning = match &enrolled.founding {
        Some(list) => Beginning::Founder(formation(list, cluster, &config.s3.region)),
        None => Beginning::Joined(cluster),
    };
    let meta = MetaConfig {
        node: enrolled.identity.node(),
        incarnation: enrolled.identity.incarnation,
        dir: config.dir.join("meta"),
        engine: config.meta.engine.parse()?,
        wal_file_bytes: config.meta.wal_file_bytes,
        lease_reads: config.meta.lease_reads,
        snapshot_log_bytes: config.meta.snapshot_log_bytes,
        versions: config.meta.versions,
        ..MetaConfig::default()
    };
    let book = book.clone();
    let addresses = Arc::new(move |node: NodeId| book.load().get(&node).cloned());
    Ok(Some(MetaNode::start(host.clone(), dialer.clone(), meta, addresses, beginning).await?))
}

fn formation(list: &Founding, cluster: ClusterId, region: &str) -> Formation {
    let voters = list.nodes.iter().filter(|node| node.roles.contains(&Role::Meta));
    Formation {
        cluster,
        voters: voters.map(Founder::id).collect(),
        nodes: list.nodes.iter().map(member).collect(),
        region: region.to_owned(),
        ranges: list.ranges,
    }
}

fn member(founder: &Founder) -> Node {
    Node {
        id: founder.id(),
        name: founder.name.clone(),
        zone: founder.zone.clone(),
        address: founder.address.clone(),
        roles: founder.roles.clone(),
        incarnation: 0,
    }
}

fn client_config(enrolled: &Enrolled) -> ClientConfig {
    ClientConfig::new(
        enrolled.seeds.clone(),
        enrolled.identity.node(),
        enrolled.identity.incarnation,
    )
}

fn internal_router(
    meta: Option<&Arc<MetaNode>>,
    data: Option<&Arc<DataNode>>,
    membership: MembershipService,
    reads: ReadsService,
    auditor: Arc<Auditor>,
) -> axum::Router {
    let judge = Arc::new(membership.client.clone());
    let operator = OperatorService { client: membership.client.clone(), auditor };
    let mut routes = tonic::service::Routes::new(MembershipServer::new(membership))
        .add_service(GatewayServer::new(reads))
        .add_service(OperatorServer::new(operator));
    if let Some(meta) = meta {
        routes = meta.add_routes(routes);
    }
    let mut shards = None;
    if let Some(data) = data {
        routes = routes.add_service(data.data_service(judge));
        shards = Some(data.router());
    }
    let router = routes.into_axum_router();
    match shards {
        Some(shards) => router.merge(shards),
        None => router,
    }
}

fn facts(config: &NodeConfig, identity: &Identity) -> ashlar_admin::NodeFacts {
    ashlar_admin::NodeFacts {
        cluster: identity.cluster,
        node: identity.node(),
        name: config.name(),
        zone: config.zone.clone(),
        roles: config.roles.clone(),
        incarnation: identity.incarnation,
    }
}

fn gateway_config(config: &NodeConfig, root_key: &RootKey) -> ashlar_gateway::GatewayConfig {
    ashlar_gateway::GatewayConfig {
        region: config.s3.region.clone(),
        domains: config.s3.domains.clone(),
        access_key: root_key.access_key.clone(),
        secret_key: ashlar_s3::SecretKey::new(root_key.secret_key.clone()),
        ..ashlar_gateway::GatewayConfig::default()
    }
}

fn gateway_tls(host: &Host, config: &NodeConfig) -> Result<Option<ashlar_gateway::TlsConfig>> {
    let (Some(cert), Some(key)) = (&config.s3.tls_cert, &config.s3.tls_key) else {
        return Ok(None);
    };
    let read = |path: &std::path::Path| {
        let bytes =
            host.disk.read(path).with_context(|| format!("cannot read {}", path.display()))?;
        String::from_utf8(bytes).with_context(|| format!("{} is not PEM", path.display()))
    };
    let tls = ashlar_gateway::TlsConfig { cert_pem: read(cert)?, key_pem: read(key)? };
    tls.check()?;
    Ok(Some(tls))
}
