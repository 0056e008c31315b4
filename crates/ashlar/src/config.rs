//! The configuration of a node: one TOML file, each key with a default but for what only the operator knows.

use anyhow::{Context, Result, bail};
use ashlar_host::Disk;
use ashlar_meta::Versions;
use ashlar_types::{NodeId, Profile, Role};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Where identity, keys, log and catalog lie.
    pub dir: PathBuf,
    /// What people call it; by default the last part of `dir`.
    #[serde(default)]
    pub name: Option<String>,
    /// What fails together with it.
    #[serde(default = "defaults::zone")]
    pub zone: String,
    /// What it does.
    #[serde(default = "defaults::roles")]
    pub roles: Vec<Role>,
    /// The internal port.
    #[serde(default)]
    pub internal: InternalConfig,
    /// The S3 port.
    #[serde(default)]
    pub s3: S3Config,
    /// The admin port.
    #[serde(default)]
    pub admin: AdminConfig,
    /// The metadata plane.
    #[serde(default)]
    pub meta: MetaSection,
    /// The disks.
    #[serde(default)]
    pub data: DataSection,
    /// The audit, and what it goes by.
    #[serde(default)]
    pub audit: AuditSection,
    /// The members with which the cluster begins. Every founder has the same list; nobody else has one.
    #[serde(default)]
    pub founding: Option<Founding>,
    /// How to become a member of a cluster that exists.
    #[serde(default)]
    pub join: Option<JoinConfig>,
}

/// The internal port: Raft, metadata, shards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InternalConfig {
    /// Where it listens: host:port.
    pub listen: String,
    /// What others dial, where that differs.
    pub advertise: Option<String>,
    /// Mutual TLS. May be switched off on loopback only.
    pub tls: bool,
}

/// The S3 port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Config {
    /// Where it listens: host:port.
    pub listen: String,
    /// The region that signatures must name.
    pub region: String,
    /// Domains under which a bucket's name may be the first label of the host.
    pub domains: Vec<String>,
    /// A certificate chain in PEM.
    pub tls_cert: Option<PathBuf>,
    /// Its key in PEM.
    pub tls_key: Option<PathBuf>,
}

/// The admin port: health, metrics, history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Where it listens: host:port.
    pub listen: String,
    /// Whether there is one. Without it the node keeps no history either.
    pub serve: bool,
}

/// The metadata plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetaSection {
    /// The ordered map behind the catalog: fjall or sled.
    pub engine: String,
    /// The size of a file of the write-ahead log.
    pub wal_file_bytes: u64,
    /// Reads by leader lease instead of read index: only where clocks drift little and machines are not paused.
    pub lease_reads: bool,
    /// A range's snapshot is taken when its log has grown beyond the range's size, and beyond this.
    pub snapshot_log_bytes: u64,
    /// A range that has more objects is split in the middle; 0: none is.
    pub range_objects_max: u64,
    /// A disk that has taken no writes for so long is suspect, and what it holds moves elsewhere.
    pub disk_suspect_after_seconds: u64,
    /// A disk that its node has not had for so long is dead, and what it held is rebuilt elsewhere.
    pub disk_dead_after_seconds: u64,
    /// How many voters a range is to have, where there are nodes enough with the role meta: odd. One that has more keeps them.
    pub replicas: usize,
    /// A node that has not answered for so long is lost to the metadata: others hold what it held of the ranges.
    pub node_lost_after_seconds: u64,
    /// By which versions it applies: this release's, but where a test lets a node stand for another one.
    #[serde(skip)]
    #[doc(hidden)]
    pub versions: Versions,
}

/// The disks of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSection {
    /// A directory a disk.
    pub disks: Vec<PathBuf>,
    /// The size of a segment for shards below 64 KiB.
    pub small_segment_bytes: u64,
    /// The size of a segment for the others.
    pub large_segment_bytes: u64,
    /// Room on each disk that only deletions and moves may use.
    pub reserve_bytes: u64,
    /// Large shards past the page cache, where the file system allows it.
    pub direct_io: bool,
    /// Every block of a disk is verified within so many seconds.
    pub scrub_cycle_seconds: u64,
    /// The leader of a range looks so often whether all of it has the code that new content gets.
    pub recode_cycle_seconds: u64,
    /// What moves comes to each disk no faster, so that clients keep their part; 0: as fast as it goes.
    pub move_bytes_per_second: u64,
    /// The profile of extents that are not small, where the cluster's size shall not choose it.
    pub profile: Option<String>,
}

/// The audit, which the root's leader does for the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditSection {
    /// What is named is compared with what is there every so many seconds.
    pub cycle_seconds: u64,
    /// A gateway that has not answered for so many seconds is taken for dead: its sessions end. One that lives after all
    /// opens another, and loses the writes that it had under way.
    pub session_silent_seconds: u64,
}

/// The members with which a cluster begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Founding {
    /// 32 hexadecimal digits, the same at every founder.
    pub cluster: String,
    /// All founders.
    pub nodes: Vec<Founder>,
    /// Into how many ranges the keys are split at first.
    #[serde(default = "defaults::ranges")]
    pub ranges: u64,
}

/// Ranges of data from the first minute: one group alone would be a ceiling.
pub const RANGES_DEFAULT: u64 = 8;

/// One of the first members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Founder {
    /// 1, 2, 3 …
    pub id: u64,
    /// What people call it.
    pub name: String,
    /// What fails together with it.
    pub zone: String,
    /// Its internal port.
    pub address: String,
    /// What it does; those with `meta` are the voters.
    pub roles: Vec<Role>,
}

/// How to become a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinConfig {
    /// The internal port of a member.
    pub seed: String,
    /// The file that holds the one-time token (a secret does not belong into a configuration).
    pub token_file: PathBuf,
}

mod defaults {
    use ashlar_types::Role;

    pub(super) fn zone() -> String {
        "zone-1".to_owned()
    }

    pub(super) fn ranges() -> u64 {
        super::RANGES_DEFAULT
    }

    pub(super) fn roles() -> Vec<Role> {
        vec![Role::Meta, Role::Data, Role::Gateway]
    }
}

impl Default for InternalConfig {
    fn default() -> Self {
        Self { listen: "127.0.0.1:7400".to_owned(), advertise: None, tls: true }
    }
}

impl Default for S3Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:9000".to_owned(),
            region: "us-east-1".to_owned(),
            domains: Vec::new(),
            tls_cert: None,
            tls_key: None,
        }
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { listen: "127.0.0.1:7401".to_owned(), serve: true }
    }
}

impl Default for MetaSection {
    fn default() -> Self {
        Self {
            engine: "fjall".to_owned(),
            wal_file_bytes: 128 << 20,
            lease_reads: false,
            // as in `MetaConfig`, which says why
            snapshot_log_bytes: 64 << 20,
            // about 256 MiB of records: what a replica that was away is sent in some seconds
            range_objects_max: 500_000,
            disk_suspect_after_seconds: 60,
            disk_dead_after_seconds: 30 * 60,
            replicas: 3,
            // longer than a restart of a machine takes; until then a range of three survives no further loss
            node_lost_after_seconds: 5 * 60,
            versions: Versions::default(),
        }
    }
}

impl Default for AuditSection {
    fn default() -> Self {
        Self { cycle_seconds: 24 * 3600, session_silent_seconds: 3600 }
    }
}

impl Default for DataSection {
    fn default() -> Self {
        Self {
            disks: Vec::new(),
            small_segment_bytes: 64 << 20,
            large_segment_bytes: 1 << 30,
            reserve_bytes: 1 << 30,
            direct_io: true,
            scrub_cycle_seconds: 14 * 24 * 3600,
            recode_cycle_seconds: 600,
            move_bytes_per_second: 128 << 20,
            profile: None,
        }
    }
}

impl NodeConfig {
    /// Reads and checks a file.
    pub fn load(disk: &Arc<dyn Disk>, path: &Path) -> Result<Self> {
        let bytes = disk
            .read(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        let text =
            String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", path.display()))?;
        let config: Self =
            toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        config.check().with_context(|| format!("in {}", path.display()))?;
        Ok(config)
    }

    /// A node alone on these disks: its own files go beside the first one's shards.
    pub fn on_disks(first: &Path, disks: &[PathBuf]) -> Self {
        Self {
            dir: first.join("node"),
            name: first.file_name().map(|name| name.to_string_lossy().into_owned()),
            zone: defaults::zone(),
            roles: defaults::roles(),
            internal: InternalConfig::default(),
            s3: S3Config::default(),
            admin: AdminConfig::default(),
            meta: MetaSection::default(),
            data: DataSection {
                disks: disks.iter().map(|disk| disk.join("disk")).collect(),
                ..DataSection::default()
            },
            audit: AuditSection::default(),
            founding: None,
            join: None,
        }
    }

    /// What others dial.
    pub fn address(&self) -> String {
        self.internal.advertise.clone().unwrap_or_else(|| self.internal.listen.clone())
    }

    /// What cannot work is said before anything is touched.
    pub fn check(&self) -> Result<()> {
        if self.roles.is_empty() {
            bail!("roles is empty: give the node at least one of meta, data, gateway");
        }
        if self.has(Role::Data) && self.data.disks.is_empty() {
            bail!("data.disks is empty: give a node with the role data at least one directory");
        }
        if self.founding.is_some() && self.join.is_some() {
            bail!("a node either founds a cluster or joins one: remove founding or join");
        }
        if !self.internal.tls && !is_loopback(&self.internal.listen) {
            bail!(
                "internal.tls may be switched off on loopback only, and {} is not",
                self.internal.listen
            );
        }
        if self.founding.as_ref().is_some_and(|founding| founding.ranges == 0) {
            bail!("founding.ranges is 0: the keys need at least one range");
        }
        if self.meta.replicas.is_multiple_of(2) {
            bail!(
                "meta.replicas is {}: give it an odd number, one more voter than an odd number survives no more",
                self.meta.replicas
            );
        }
        if self.s3.tls_cert.is_some() != self.s3.tls_key.is_some() {
            bail!("s3.tls_cert and s3.tls_key go together");
        }
        self.profile()?;
        Ok(())
    }

    /// Whether it has a role.
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// What people call it.
    pub fn name(&self) -> String {
        let last = || {
            self.dir
                .file_name()
                .map_or_else(|| "node".to_owned(), |name| name.to_string_lossy().into_owned())
        };
        self.name.clone().unwrap_or_else(last)
    }

    /// The profile that was asked for.
    pub fn profile(&self) -> Result<Option<Profile>> {
        self.data.profile.as_deref().map(str::parse).transpose().map_err(anyhow::Error::new)
    }
}

impl Founder {
    /// Its id.
    pub fn id(&self) -> NodeId {
        NodeId(self.id)
    }
}

fn is_loopback(address: &str) -> bool {
    address.starts_with("127.") || address.starts_with("[::1]") || address.starts_with("localhost:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NodeConfig> {
        let config: NodeConfig = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    #[test]
    fn a_short_file_suffices() {
        let config = parse("dir = '/d/one'\n[data]\ndisks = ['/d/disk-1']\n").expect("is complete");
        assert_eq!((config.name().as_str(), config.internal.tls), ("one", true));
    }

    #[test]
    fn what_cannot_work_is_said() {
        let message = |text| parse(text).expect_err("is refused").to_string();
        assert!(message("dir = 'd'\n").contains("data.disks is empty"));
        assert!(
            message(
                "dir = 'd'\nroles = ['gateway']\n[internal]\nlisten = '0.0.0.0:7400'\ntls = false\n"
            )
            .contains("loopback")
        );
        assert!(
            message("dir = 'd'\nroles = ['gateway']\n[data]\nprofile = '0+2'\n")
                .contains("not a profile")
        );
        assert!(message("dir = 'd'\nroles = ['gateway']\nsise = 3\n").contains("sise"));
    }
}
