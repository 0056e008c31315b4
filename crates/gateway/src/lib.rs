//! The gateway: S3 over `ashlar-client`. It keeps nothing that a restart may lose.
//!
//! ```text
//! S3 port ─ server ─ S3Service (crate s3) ─ Store: Backend ─┬─ admission   memory for bodies, else 503
//!                                                           ├─ md5 lanes   beside the writer
//!                                                           └─ Cluster     the client's verbs
//! ```
//! What it leaves out: the protocol (crate `s3`), retries and routing (crate `client`), conditions (apply).

mod admission;
mod cluster;
mod failure;
mod md5_lanes;
mod paced_body;
mod server;
mod store;
#[cfg(test)]
mod tests;

pub use md5_lanes::{BodyMd5, Md5Lanes};
pub use server::{TlsConfig, TlsError, serve};

use ashlar_client::Client;
use ashlar_host::{Host, PaceLimits};
use ashlar_s3::{Backend, Credentials, S3Config, S3Service, SecretKey};
use std::sync::Arc;
use std::time::Duration;

/// The settings of a gateway.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// The region that signatures must name.
    pub region: String,
    /// Domains under which `bucket.domain` names a bucket; without port.
    pub domains: Vec<String>,
    /// Who owns all buckets.
    pub owner: String,
    /// The root key's public half.
    pub access_key: String,
    /// The root key's secret half. There is no default that works: an empty access key is given to nobody.
    pub secret_key: SecretKey,
    /// What the bodies of all requests may hold in memory together.
    pub memory_bytes: u64,
    /// How slow a client may be.
    pub slow: SlowClients,
}

/// How slow a client may be before it is cut off: what it has asked for holds memory that others need (S5).
#[derive(Debug, Clone, Copy)]
pub struct SlowClients {
    /// How long a head may take, and how long a connection may be idle between requests.
    pub head: Duration,
    /// How a body must come, and how an answer must be taken.
    pub pace: PaceLimits,
}

impl Default for SlowClients {
    fn default() -> Self {
        Self { head: Duration::from_secs(60), pace: PaceLimits::default() }
    }
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            region: "us-east-1".to_owned(),
            domains: Vec::new(),
            owner: "ashlar".to_owned(),
            access_key: String::new(),
            secret_key: SecretKey::new(""),
            // 32 streams at full speed, or thousands of small requests
            memory_bytes: 128 * 1024 * 1024,
            slow: SlowClients::default(),
        }
    }
}

/// A gateway. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    service: S3Service,
    backend: Arc<dyn Backend>,
    slow: SlowClients,
}

impl Gateway {
    /// A gateway over a client.
    pub fn new(host: &Host, client: Client, config: GatewayConfig) -> Self {
        Self::over(host, client, config)
    }

    fn over<C: cluster::Cluster>(host: &Host, cluster: C, config: GatewayConfig) -> Self {
        let random = Arc::clone(&host.random);
        let slow = config.slow;
        let credentials = if config.access_key.is_empty() {
            Credentials::default()
        } else {
            Credentials::single(config.access_key, config.secret_key)
        };
        let s3 = S3Config {
            region: config.region,
            domains: config.domains,
            owner: config.owner,
            credentials: Arc::new(credentials),
            random: Arc::new(move || random.next_u128()),
        };
        let store = store::Store {
            host: host.clone(),
            cluster,
            md5: Md5Lanes::new(host),
            admission: admission::Admission::new(Arc::clone(&host.clock), config.memory_bytes),
        };
        let backend: Arc<dyn Backend> = Arc::new(store);
        Self { service: ashlar_s3::service(Arc::clone(&backend), s3), backend, slow }
    }

    /// What stands behind the protocol: for those in this process who need no authentication, as a simulation does.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("slow", &self.slow).finish_non_exhaustive()
    }
}
