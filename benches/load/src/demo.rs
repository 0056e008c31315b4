//! The line of JSON that `ashlar demo --json` prints when it is ready.

use crate::sign::Credentials;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// A running demo cluster: where it listens, who may enter, what it consists of.
#[derive(Clone, Debug, Deserialize)]
pub struct Demo {
    /// The S3 endpoints of all gateways.
    pub endpoints: Vec<String>,
    /// The admin endpoints of all nodes, in their order; they serve `/metrics` and `/health`.
    #[serde(default)]
    pub admin: Vec<String>,
    /// The root access key.
    pub access_key: String,
    /// The root secret key.
    pub secret_key: String,
    /// The region that signatures must name.
    pub region: String,
    /// Every node.
    #[serde(default)]
    pub nodes: Vec<Node>,
}

/// One node of the demo.
#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    /// Its name, as `ashlar demo kill NAME` takes it.
    pub name: String,
    /// The zone it stands in.
    #[serde(default)]
    pub zone: String,
    /// What it does: meta, data, gateway.
    #[serde(default)]
    pub roles: Vec<String>,
    /// The process that runs it; 0 while it is down.
    #[serde(default)]
    pub pid: u32,
    /// Its directories.
    #[serde(default)]
    pub dirs: Vec<PathBuf>,
    /// Its configuration file, as `--member` takes it.
    #[serde(default)]
    pub config: PathBuf,
}

impl Demo {
    /// Reads the line from a file.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text)
            .with_context(|| format!("{} is not what `ashlar demo --json` prints", path.display()))
    }

    /// Reads the line itself.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(serde_json::from_str(text.trim())?)
    }

    /// The keys in the signer's form.
    pub fn credentials(&self) -> Credentials {
        Credentials {
            access_key: self.access_key.clone(),
            secret_key: self.secret_key.clone(),
            region: self.region.clone(),
        }
    }

    /// Every process of the cluster once: without `--processes` all nodes share one.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids: Vec<u32> =
            self.nodes.iter().map(|node| node.pid).filter(|pid| *pid != 0).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }
}
