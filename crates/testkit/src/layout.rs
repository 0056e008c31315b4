//! Lays nodes out on disks of their own, with ports that they find free again after a cut.
//!
//! The nodes of the demo are laid out by the demo itself, on a disk that is then thrown away: each node gets a copy of
//! exactly what is its own. Files are as small as the stores allow, because all of it lies in memory.

use crate::cluster::NewNode;
use crate::watched_disk::WatchedDisk;
use anyhow::{Context, Result};
use ashlar::config::{JoinConfig, NodeConfig};
use ashlar::demo::{DemoWish, lay_out};
use ashlar::identity::{NodeDir, RootKey};
use ashlar_host::{Disk, Host, OpenMode, SimDisk};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the ports that systems give to outgoing connections: one that a cut has freed is not taken by a client's.
const FIRST_PORT: u16 = 12_000;
/// How far a process may begin from there.
const PORTS_SPREAD: u16 = 16_000;
/// Three of the largest entries fit.
const WAL_FILE_BYTES: u64 = 4 << 20;
const SMALL_SEGMENT_BYTES: u64 = 2 << 20;
const LARGE_SEGMENT_BYTES: u64 = 8 << 20;
/// The map in memory: it is empty after every cut, so that the log and its snapshots must hold everything.
const ENGINE: &str = "memory";

/// A node that has not been started.
pub(crate) struct Laid {
    pub(crate) config: NodeConfig,
    pub(crate) disk: WatchedDisk,
}

/// The six nodes of the demo, and their root key.
pub(crate) async fn demo(host: &Host, dir: &Path) -> Result<(Vec<Laid>, RootKey)> {
    let scratch: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let host = host.clone().with_disk(Arc::clone(&scratch));
    let wish = DemoWish {
        dir: dir.to_owned(),
        port: 0,
        processes: false,
        internal_tls: false,
        engine: ENGINE.to_owned(),
    };
    let facts = lay_out(&host, &wish).await?;
    let mut configs = Vec::new();
    for node in &facts.nodes {
        configs.push(NodeConfig::load(&scratch, &node.config)?);
    }
    settle_ports(&mut configs)?;
    let mut laid = Vec::new();
    for mut config in configs {
        let disk = WatchedDisk::default();
        let own = config.dir.parent().context("a node's directory lies in another one")?;
        copy(&*scratch, &disk, own).with_context(|| format!("copying {}", own.display()))?;
        shrink(&mut config);
        laid.push(Laid { config, disk });
    }
    let root_key = RootKey { access_key: facts.access_key, secret_key: facts.secret_key };
    Ok((laid, root_key))
}

/// One node with all roles on `disks` disks, and its root key.
pub(crate) fn single(host: &Host, dir: &Path, disks: usize) -> Result<(Laid, RootKey)> {
    let places: Vec<PathBuf> = (1..=disks).map(|number| dir.join(number.to_string())).collect();
    let mut config = NodeConfig::on_disks(&dir.join("1"), &places);
    config.internal.tls = false;
    config.internal.listen = format!("127.0.0.1:{}", free_port()?);
    config.s3.listen = format!("127.0.0.1:{}", free_port()?);
    config.admin.listen = format!("127.0.0.1:{}", free_port()?);
    shrink(&mut config);
    let disk = WatchedDisk::default();
    let host = host.clone().with_disk(Arc::new(disk.clone()));
    let root_key = RootKey::generate(&host);
    NodeDir::open(&host, &config.dir)?.set_root_key(&root_key)?;
    Ok((Laid { config, disk }, root_key))
}

/// A node that joins by a token.
pub(crate) fn joiner(
    dir: &Path,
    like: &NodeConfig,
    wish: &NewNode,
    seed: &str,
    token: &str,
) -> Result<Laid> {
    let own = dir.join(&wish.name);
    let mut config = like.clone();
    config.dir = own.join("node");
    config.name = Some(wish.name.clone());
    config.zone.clone_from(&wish.zone);
    config.roles.clone_from(&wish.roles);
    config.internal.listen = format!("127.0.0.1:{}", free_port()?);
    config.admin.listen = format!("127.0.0.1:{}", free_port()?);
    config.s3.listen = format!("127.0.0.1:{}", free_port()?);
    config.data.disks = (1..=wish.disks).map(|number| own.join(format!("disk-{number}"))).collect();
    config.founding = None;
    let token_file = own.join("token");
    config.join = Some(JoinConfig { seed: seed.to_owned(), token_file: token_file.clone() });
    let disk = WatchedDisk::default();
    let files: &dyn Disk = &disk;
    files.create_dir_all(&own)?;
    files.replace(&token_file, token.as_bytes())?;
    Ok(Laid { config, disk })
}

fn shrink(config: &mut NodeConfig) {
    config.data.recode_cycle_seconds = 1;
    ENGINE.clone_into(&mut config.meta.engine);
    config.meta.wal_file_bytes = WAL_FILE_BYTES;
    config.data.small_segment_bytes = SMALL_SEGMENT_BYTES;
    config.data.large_segment_bytes = LARGE_SEGMENT_BYTES;
}

/// New ports for all nodes, also in the list of founders that each of them has.
fn settle_ports(configs: &mut [NodeConfig]) -> Result<()> {
    let mut moved = Vec::new();
    for config in configs.iter_mut() {
        let fresh = format!("127.0.0.1:{}", free_port()?);
        moved.push((std::mem::replace(&mut config.internal.listen, fresh.clone()), fresh));
        config.admin.listen = format!("127.0.0.1:{}", free_port()?);
        config.s3.listen = format!("127.0.0.1:{}", free_port()?);
    }
    let founders =
        configs.iter_mut().filter_map(|config| config.founding.as_mut()).flat_map(|f| &mut f.nodes);
    for founder in founders {
        let fresh = moved.iter().find(|(old, _)| *old == founder.address);
        founder.address = fresh.context("each founder has a configuration")?.1.clone();
    }
    Ok(())
}

/// A port that is free now and that this process gives out once.
fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // two test processes at once begin at different places
    let own = u16::try_from(std::process::id().wrapping_mul(61) % u32::from(PORTS_SPREAD))?;
    for _ in 0..1000 {
        let port = FIRST_PORT + own + NEXT.fetch_add(1, Ordering::Relaxed) % 4000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no free port on loopback")
}

/// Copies a directory, durably.
fn copy(from: &(dyn Disk + 'static), to: &(dyn Disk + 'static), dir: &Path) -> Result<()> {
    to.create_dir_all(dir)?;
    for path in from.list(dir)? {
        if from.open(&path, OpenMode::Read).is_ok() {
            to.replace(&path, &from.read(&path)?)?;
        } else {
            copy(from, to, &path)?;
        }
    }
    Ok(())
}
