//! A cluster whose nodes live in this process, and whose power can be cut.

use crate::layout::{self, Laid};
use crate::life::Life;
use crate::watched_disk::{Lie, Syncs, WatchedDisk};
use anyhow::{Context, Result};
use ashlar::config::NodeConfig;
use ashlar::identity::RootKey;
use ashlar::membership::issue_token;
use ashlar::node::RunningNode;
use ashlar_host::{CutStyle, Disk, Host, OpenMode};
use ashlar_types::Role;
use ashlar_wire::Security;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a cluster may take to serve, six nodes in a test's share of two cores.
const READY_PATIENCE: Duration = Duration::from_secs(30);

/// A node of a [`TestCluster`].
pub struct TestNode {
    config: NodeConfig,
    disk: WatchedDisk,
    life: Option<Life>,
}

impl std::fmt::Debug for TestNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TestNode({})", self.config.name())
    }
}

impl TestNode {
    fn new(laid: Laid) -> Self {
        Self { config: laid.config, disk: laid.disk, life: None }
    }

    /// Whether it has a role.
    pub fn has(&self, role: Role) -> bool {
        self.config.has(role)
    }

    /// What it runs with.
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// Its disk: all of its directories.
    pub fn disk(&self) -> &WatchedDisk {
        &self.disk
    }

    /// The node itself; `None`: it is without power.
    pub fn running(&self) -> Option<&RunningNode> {
        self.life.as_ref().map(Life::node)
    }
}

/// A cluster. Dropping it ends its nodes as a crash would.
#[derive(Debug)]
pub struct TestCluster {
    nodes: Vec<TestNode>,
    root_key: RootKey,
    /// What does not go through a node's disk: its history.
    place: TempDir,
}

impl TestCluster {
    /// The demo's six nodes: three zones of two, three voters, two gateways. Serves when it returns.
    pub async fn demo() -> Result<Self> {
        let place = tempfile::tempdir()?;
        let (laid, root_key) = layout::demo(&Host::real(), place.path()).await?;
        Self::of(laid, root_key, place).await
    }

    /// The same, with settings of the test's own. Serves when it returns.
    pub async fn demo_with(change: impl Fn(&mut NodeConfig)) -> Result<Self> {
        let place = tempfile::tempdir()?;
        let (mut laid, root_key) = layout::demo(&Host::real(), place.path()).await?;
        laid.iter_mut().for_each(|laid| change(&mut laid.config));
        Self::of(laid, root_key, place).await
    }

    /// One node with all roles. Serves when it returns.
    pub async fn single(disks: usize) -> Result<Self> {
        Self::single_with(disks, |_| ()).await
    }

    /// The same, with settings of the test's own. Serves when it returns.
    pub async fn single_with(disks: usize, change: impl Fn(&mut NodeConfig)) -> Result<Self> {
        let place = tempfile::tempdir()?;
        let (mut laid, root_key) = layout::single(&Host::real(), place.path(), disks)?;
        change(&mut laid.config);
        Self::of(vec![laid], root_key, place).await
    }

    async fn of(laid: Vec<Laid>, root_key: RootKey, place: TempDir) -> Result<Self> {
        for Laid { config, .. } in &laid {
            make_real_dir(&config.dir)?;
        }
        let nodes = laid.into_iter().map(TestNode::new).collect();
        let mut cluster = Self { nodes, root_key, place };
        cluster.start_all().await?;
        Ok(cluster)
    }

    /// Adds a node; it serves when this returns. Its index is that of the last one.
    pub async fn add_node(&mut self, wish: &NewNode) -> Result<usize> {
        let live = self.nodes.iter().filter(|node| node.life.is_some());
        let member = live.into_iter().find(|node| node.has(Role::Meta));
        let like = member.context("a member must live")?.config.clone();
        let seed = like.address();
        let valid = Duration::from_secs(600);
        let token = issue_token(&Host::real(), &seed, &Security::Plain, valid).await?;
        let laid = layout::joiner(self.place.path(), &like, wish, &seed, &token)?;
        make_real_dir(&laid.config.dir)?;
        self.nodes.push(TestNode::new(laid));
        self.start_all().await?;
        Ok(self.nodes.len() - 1)
    }

    /// Names one more directory in the configuration of a node without power: a disk that was just bought.
    pub fn buy_disk(&mut self, index: usize) -> Result<()> {
        let node = &mut self.nodes[index];
        anyhow::ensure!(node.life.is_none(), "a disk is built in while its node has no power");
        let disks = &mut node.config.data.disks;
        let beside = disks.last().and_then(|dir| dir.parent()).context("it has disks")?;
        let dir = beside.join(format!("bought-{}", disks.len()));
        disks.push(dir);
        Ok(())
    }

    /// Changes the settings of a node without power: it starts with them next, as another release would, for instance.
    pub fn configure(&mut self, index: usize, change: impl FnOnce(&mut NodeConfig)) -> Result<()> {
        let node = &mut self.nodes[index];
        anyhow::ensure!(node.life.is_none(), "a node reads its settings when it starts");
        change(&mut node.config);
        Ok(())
    }

    /// Takes away all that a disk of a node without power has: its directory is as when it was bought.
    pub fn wipe_disk(&mut self, index: usize, number: usize) -> Result<()> {
        let node = &self.nodes[index];
        anyhow::ensure!(node.life.is_none(), "a disk is wiped while its node has no power");
        let dir = node.config.data.disks.get(number).context("there is no such disk")?;
        remove_all(&node.disk, dir)
    }

    /// The nodes, in the order of their ids.
    pub fn nodes(&self) -> &[TestNode] {
        &self.nodes
    }

    /// Where the gateways that have power serve S3.
    pub fn endpoints(&self) -> Vec<String> {
        let live = self.nodes.iter().filter(|node| node.life.is_some());
        let gateways = live.filter(|node| node.has(Role::Gateway));
        gateways.map(|node| format!("http://{}", node.config.s3.listen)).collect()
    }

    /// The access key that may do everything.
    pub fn root_key(&self) -> &RootKey {
        &self.root_key
    }

    /// The region that signatures name.
    pub fn region(&self) -> &str {
        &self.nodes[0].config.s3.region
    }

    /// The syncs of each node so far.
    pub fn syncs(&self) -> Vec<Syncs> {
        self.nodes.iter().map(|node| node.disk.syncs()).collect()
    }

    /// From now until the next cut the disks of all nodes do not do these syncs, and say that they did.
    pub fn lie_about(&self, lie: Lie) {
        self.nodes.iter().for_each(|node| node.disk.lie_about(lie));
    }

    /// Cuts the power of all nodes. Nothing of them runs any more when it returns.
    pub async fn power_off(&mut self, style: CutStyle) -> Result<()> {
        // every disk before any node: from here on nothing reaches what the cut has left
        for (number, node) in (0..).zip(&self.nodes) {
            node.disk.cut(of_node(style, number));
        }
        let lives = self.nodes.iter_mut().filter_map(|node| node.life.take());
        for ended in futures::future::join_all(lives.map(Life::end)).await {
            ended?;
        }
        Ok(())
    }

    /// Cuts the power of one node.
    pub async fn power_off_one(&mut self, index: usize, style: CutStyle) -> Result<()> {
        let node = &mut self.nodes[index];
        node.disk.cut(style);
        match node.life.take() {
            Some(life) => life.end().await,
            None => Ok(()),
        }
    }

    /// Starts all nodes that have no power; tells how long it took until all of them served.
    pub async fn start_all(&mut self) -> Result<Duration> {
        let began = Instant::now();
        let starts = self.nodes.iter_mut().filter(|node| node.life.is_none()).map(|node| async {
            node.life = Some(Life::start(node.config.clone(), &node.disk).await?);
            anyhow::Ok(())
        });
        for started in futures::future::join_all(starts).await {
            started?;
        }
        let ready = self.nodes.iter().filter_map(TestNode::running).map(RunningNode::ready);
        let ready = futures::future::try_join_all(ready);
        tokio::time::timeout(READY_PATIENCE, ready)
            .await
            .with_context(|| format!("the nodes do not serve after {READY_PATIENCE:?}"))??;
        Ok(began.elapsed())
    }

    /// A power cut of all nodes, and their start on what it left.
    pub async fn cut_all(&mut self, style: CutStyle) -> Result<Duration> {
        self.power_off(style).await?;
        self.start_all().await
    }
}

/// A node that is to join.
#[derive(Debug, Clone)]
pub struct NewNode {
    /// What it is called.
    pub name: String,
    /// Where it stands.
    pub zone: String,
    /// How many disks it has.
    pub disks: usize,
    /// What it does.
    pub roles: Vec<Role>,
}

fn remove_all(disk: &WatchedDisk, dir: &Path) -> Result<()> {
    for path in disk.list(dir)? {
        if disk.open(&path, OpenMode::Read).is_ok() {
            disk.remove_file(&path)?;
        } else {
            remove_all(disk, &path)?;
        }
    }
    Ok(disk.sync_dir(dir)?)
}

/// Each node's writes have their own fate.
fn of_node(style: CutStyle, number: u64) -> CutStyle {
    match style {
        CutStyle::Torn { seed } => CutStyle::Torn { seed: seed.wrapping_mul(64) + number },
        CutStyle::DropAll | CutStyle::KeepAll => style,
    }
}

/// The history of a node lies in the real file system.
fn make_real_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))
}
