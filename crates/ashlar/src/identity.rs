//! Who a node is: its file `identity.json`, its keys, the secrets of the cluster that it holds.
//!
//! ```text
//! <dir>/lock               held while the node runs
//! <dir>/identity.json      cluster, node, incarnation (raised durably by every boot, before anything is served)
//! <dir>/tls/ca.pem  node.pem  node.key  [ca.key: founders]
//! <dir>/root.json          the root access key
//! <dir>/disks.json         which disk was last in which directory
//! ```

use crate::config::Founding;
use anyhow::{Context, Result, bail};
use ashlar_host::{Disk, Host};
use ashlar_types::{ClusterId, DiskId, NodeId};
use ashlar_wire::{Authority, Credentials, KeyPem, Security};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The version of `identity.json` that this binary writes.
const FORMAT: u32 = 1;

/// Who a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    format: u32,
    /// The cluster that it belongs to.
    #[serde(with = "cluster_text")]
    pub cluster: ClusterId,
    /// Its id.
    pub node: u64,
    /// How often it was booted.
    pub incarnation: u64,
}

mod cluster_text {
    use ashlar_types::ClusterId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        cluster: &ClusterId,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(cluster)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<ClusterId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Identity {
    /// A node that was never booted.
    pub fn new(cluster: ClusterId, node: NodeId) -> Self {
        Self { format: FORMAT, cluster, node: node.0, incarnation: 0 }
    }

    /// Its id.
    pub fn node(&self) -> NodeId {
        NodeId(self.node)
    }
}

/// The access key that may do everything. The secret is never printed by accident.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootKey {
    /// The public half.
    pub access_key: String,
    /// The secret half.
    pub secret_key: String,
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootKey({}, …)", self.access_key)
    }
}

impl RootKey {
    /// A random one.
    pub fn generate(host: &Host) -> Self {
        let (mut access, mut secret) = ([0; 8], [0; 20]);
        host.random.fill(&mut access);
        host.random.fill(&mut secret);
        Self {
            access_key: format!("ASHL{}", hex::encode_upper(access)),
            secret_key: hex::encode(secret),
        }
    }
}

/// A node's own directory.
pub struct NodeDir {
    root: PathBuf,
    disk: std::sync::Arc<dyn Disk>,
    _lock: Box<dyn Send + Sync>,
}

impl fmt::Debug for NodeDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeDir({})", self.root.display())
    }
}

impl NodeDir {
    /// Makes it where it is not there, and locks it.
    pub fn open(host: &Host, root: &Path) -> Result<Self> {
        let said = |what: &str| {
            format!(
                "cannot {what} the directory {}: choose one that this user may write",
                root.display()
            )
        };
        host.disk.create_dir_all(&root.join("tls")).with_context(|| said("make"))?;
        let lock = match host.disk.lock(&root.join("lock")) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                bail!("{} is in use by another process: stop that one first", root.display());
            }
            Err(error) => return Err(error).with_context(|| said("lock")),
        };
        Ok(Self { root: root.to_owned(), disk: host.disk.clone(), _lock: lock })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn read_text(&self, name: &str) -> Result<Option<String>> {
        let path = self.path(name);
        if !self.disk.exists(&path) {
            return Ok(None);
        }
        let bytes =
            self.disk.read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Some(
            String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", path.display()))?,
        ))
    }

    fn write_private(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path(name);
        self.disk
            .replace_private(&path, text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Who the node is; `None`: it is nobody yet.
    pub fn identity(&self) -> Result<Option<Identity>> {
        let Some(text) = self.read_text("identity.json")? else { return Ok(None) };
        let path = self.path("identity.json");
        let identity: Identity = serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged", path.display()))?;
        if identity.format > FORMAT {
            bail!(
                "{} has format {}, this binary knows {FORMAT}: upgrade it",
                path.display(),
                identity.format
            );
        }
        Ok(Some(identity))
    }

    /// Makes the node somebody. Durable when it returns.
    pub fn set_identity(&self, identity: &Identity) -> Result<()> {
        self.write_private("identity.json", &serde_json::to_string_pretty(identity)?)
    }

    /// Raises the incarnation (R10, R12). Durable when it returns; nothing is served before.
    pub fn boot(&self, mut identity: Identity) -> Result<Identity> {
        identity.incarnation += 1;
        self.set_identity(&identity)?;
        Ok(identity)
    }

    /// The root access key.
    pub fn root_key(&self) -> Result<Option<RootKey>> {
        let text = self.read_text("root.json")?;
        text.map(|text| serde_json::from_str(&text)).transpose().context("root.json is damaged")
    }

    /// Keeps the root access key.
    pub fn set_root_key(&self, key: &RootKey) -> Result<()> {
        self.write_private("root.json", &serde_json::to_string(key)?)
    }

    /// The cluster's authority, where this node has its key.
    pub fn authority(&self) -> Result<Option<Authority>> {
        let (Some(certificate), Some(key)) =
            (self.read_text("tls/ca.pem")?, self.read_text("tls/ca.key")?)
        else {
            return Ok(None);
        };
        Ok(Some(Authority::load(certificate, KeyPem::new(key))?))
    }

    /// Keeps the authority's key: of founders only.
    pub fn set_authority(&self, authority: &Authority) -> Result<()> {
        self.write_private("tls/ca.pem", authority.certificate_pem())?;
        self.write_private("tls/ca.key", authority.key().reveal())
    }

    /// What the node proves itself with.
    pub fn credentials(&self) -> Result<Option<Credentials>> {
        let (Some(authority_pem), Some(certificate_pem), Some(key)) = (
            self.read_text("tls/ca.pem")?,
            self.read_text("tls/node.pem")?,
            self.read_text("tls/node.key")?,
        ) else {
            return Ok(None);
        };
        Ok(Some(Credentials { authority_pem, certificate_pem, key: KeyPem::new(key) }))
    }

    /// Keeps what the node proves itself with.
    pub fn set_credentials(&self, credentials: &Credentials) -> Result<()> {
        self.write_private("tls/ca.pem", &credentials.authority_pem)?;
        self.write_private("tls/node.key", credentials.key.reveal())?;
        self.write_private("tls/node.pem", &credentials.certificate_pem)
    }

    /// What the member in `root` proves itself with, read beside its lock: for commands that speak to it.
    pub fn security_of(host: &Host, root: &Path, tls: bool) -> Result<Security> {
        Self::beside(host, root).security(tls)
    }

    /// Where the member in `root` is dialled.
    pub fn address_of(host: &Host, root: &Path) -> Result<Option<String>> {
        Self::beside(host, root).read_text("address")
    }

    fn beside(host: &Host, root: &Path) -> Self {
        Self { root: root.to_owned(), disk: host.disk.clone(), _lock: Box::new(()) }
    }

    /// Keeps where the node is dialled.
    pub fn set_address(&self, address: &str) -> Result<()> {
        self.write_private("address", address)
    }

    /// Where each member was last, as the cluster map said.
    pub fn members(&self) -> Result<BTreeMap<NodeId, String>> {
        let Some(text) = self.read_text("members.json")? else { return Ok(BTreeMap::new()) };
        let members: BTreeMap<u64, String> =
            serde_json::from_str(&text).context("members.json is damaged")?;
        Ok(members.into_iter().map(|(id, address)| (NodeId(id), address)).collect())
    }

    /// Keeps where the members are.
    pub fn set_members(&self, members: &BTreeMap<NodeId, String>) -> Result<()> {
        let members: BTreeMap<u64, &String> =
            members.iter().map(|(id, address)| (id.0, address)).collect();
        self.write_private("members.json", &serde_json::to_string(&members)?)
    }

    /// The members that were named when this node joined.
    pub fn seeds(&self) -> Result<Vec<String>> {
        let text = self.read_text("seeds.json")?;
        Ok(text
            .map(|text| serde_json::from_str(&text))
            .transpose()
            .context("seeds.json is damaged")?
            .unwrap_or_default())
    }

    /// Keeps the members that are known.
    pub fn set_seeds(&self, seeds: &[String]) -> Result<()> {
        self.write_private("seeds.json", &serde_json::to_string(seeds)?)
    }

    /// Which disk was in a directory when it was last served.
    pub fn known_disks(&self) -> Result<BTreeMap<PathBuf, DiskId>> {
        let Some(text) = self.read_text("disks.json")? else { return Ok(BTreeMap::new()) };
        let known: BTreeMap<PathBuf, String> =
            serde_json::from_str(&text).context("disks.json is damaged")?;
        let parsed = known.into_iter().map(|(dir, disk)| Ok((dir, disk.parse()?)));
        parsed.collect::<Result<_>>().context("disks.json is damaged")
    }

    /// Keeps which disks are where.
    pub fn set_known_disks(&self, known: &BTreeMap<PathBuf, DiskId>) -> Result<()> {
        let known: BTreeMap<&PathBuf, String> =
            known.iter().map(|(dir, disk)| (dir, disk.to_string())).collect();
        self.write_private("disks.json", &serde_json::to_string(&known)?)
    }

    /// The founding list of a node that founded a cluster by itself.
    pub fn founding(&self) -> Result<Option<Founding>> {
        let text = self.read_text("founding.toml")?;
        text.map(|text| toml::from_str(&text)).transpose().context("founding.toml is damaged")
    }

    /// Keeps the founding list.
    pub fn set_founding(&self, founding: &Founding) -> Result<()> {
        self.write_private("founding.toml", &toml::to_string(founding)?)
    }

    /// How the internal port is protected.
    pub fn security(&self, tls: bool) -> Result<Security> {
        if !tls {
            return Ok(Security::Plain);
        }
        let credentials = self.credentials()?.with_context(|| {
            format!(
                "{} has no certificate: let the node join with a token, or found a cluster",
                self.root.display()
            )
        })?;
        Ok(Security::mutual(&credentials)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incarnation_grows_with_every_boot_and_a_directory_has_one_owner() {
        let runtime = tokio::runtime::Runtime::new().expect("starts");
        let _inside = runtime.enter();
        let (host, place) = (Host::real(), tempfile::tempdir().expect("makes"));
        let dir = NodeDir::open(&host, place.path()).expect("opens");
        assert!(dir.identity().expect("reads").is_none());
        dir.set_identity(&Identity::new(ClusterId(7), NodeId(3))).expect("writes");
        for expected in 1..=2 {
            let identity = dir.identity().expect("reads").expect("is there");
            assert_eq!(dir.boot(identity).expect("writes").incarnation, expected);
        }
        let second = NodeDir::open(&host, place.path()).expect_err("is locked");
        assert!(second.to_string().contains("in use by another process"));
    }

    #[test]
    fn a_newer_identity_is_refused() {
        let runtime = tokio::runtime::Runtime::new().expect("starts");
        let _inside = runtime.enter();
        let (host, place) = (Host::real(), tempfile::tempdir().expect("makes"));
        let dir = NodeDir::open(&host, place.path()).expect("opens");
        let newer = Identity { format: FORMAT + 1, ..Identity::new(ClusterId(7), NodeId(3)) };
        dir.set_identity(&newer).expect("writes");
        assert!(dir.identity().expect_err("is refused").to_string().contains("upgrade"));
    }
}
