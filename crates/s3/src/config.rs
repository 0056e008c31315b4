//! What the S3 service is told at its start: region, domains, owner, keys.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A secret key. Nothing prints it (S3).
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey(String);

impl SecretKey {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself: for signing only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey")
    }
}

/// The keys that may sign.
#[derive(Debug, Clone, Default)]
pub struct Credentials(BTreeMap<String, SecretKey>);

impl Credentials {
    /// One key.
    pub fn single(access_key: impl Into<String>, secret: SecretKey) -> Self {
        Self(BTreeMap::from([(access_key.into(), secret)]))
    }

    /// The secret of an access key.
    pub fn secret(&self, access_key: &str) -> Option<&SecretKey> {
        self.0.get(access_key)
    }
}

/// Gives random numbers for request ids.
pub type RandomSource = Arc<dyn Fn() -> u128 + Send + Sync>;

/// What the service is told.
#[derive(Clone)]
pub struct S3Config {
    /// The one region that signatures may name.
    pub region: String,
    /// Domains under which `bucket.domain` names a bucket; without port.
    pub domains: Vec<String>,
    /// Who owns all buckets: what `x-amz-expected-bucket-owner` is compared with.
    pub owner: String,
    /// Who may sign.
    pub credentials: Arc<Credentials>,
    /// For request ids.
    pub random: RandomSource,
}

impl fmt::Debug for S3Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Config")
            .field("region", &self.region)
            .field("domains", &self.domains)
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}
