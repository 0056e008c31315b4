//! Becoming a member: the service that admits nodes by one-time tokens, and the call with which a node asks.
//!
//! The token's secret is known to the operator alone; the root keeps its hash and forgets it when it is used. The
//! joining node makes its own key and sends only a signing request, so no private key travels.

use crate::config::NodeConfig;
use crate::identity::{Identity, NodeDir, RootKey};
use anyhow::{Context, Result, bail};
use ashlar_client::{Client, Failure};
use ashlar_host::Host;
use ashlar_types::{ApplyVersions, ClusterId, NodeId, Role, RootOp, RootOutcome};
use ashlar_wire::proto::membership_client::MembershipClient;
use ashlar_wire::proto::membership_server::Membership;
use ashlar_wire::proto::{IssueTokenReply, IssueTokenRequest, JoinReply, JoinRequest};
use ashlar_wire::{Authority, Class, Credentials, Dialer, JoinToken, Security, signing_request};
use std::time::Duration;
use tonic::{Request, Response, Status};

/// The longest that a token may be valid.
const TOKEN_SECONDS_MAX: u64 = 7 * 24 * 3600;
/// How long a join may take.
const JOIN_PATIENCE: Duration = Duration::from_secs(15);
/// The longest text that a joining node may give for a name, zone or address.
const TEXT_BYTES_MAX: usize = 255;

/// Admits nodes. Runs on every node; only one that has the authority's key can sign.
pub struct MembershipService {
    pub(crate) host: Host,
    pub(crate) client: Client,
    pub(crate) cluster: ClusterId,
    pub(crate) authority: Option<Authority>,
    pub(crate) tls: bool,
    pub(crate) root_key: RootKey,
    pub(crate) region: String,
}

impl std::fmt::Debug for MembershipService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MembershipService")
    }
}

#[tonic::async_trait]
impl Membership for MembershipService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let request = request.into_inner();
        let token = JoinToken::parse(&request.token)
            .map_err(|error| Status::unauthenticated(error.to_string()))?;
        for text in [&request.name, &request.zone, &request.address] {
            if text.is_empty() || text.len() > TEXT_BYTES_MAX {
                return Err(Status::invalid_argument(
                    "name, zone and address have 1 to 255 bytes each",
                ));
            }
        }
        let roles = parse_roles(&request.roles).map_err(Status::invalid_argument)?;
        if self.tls && self.authority.is_none() {
            return Err(Status::failed_precondition(
                "this member does not hold the authority's key: use a founder as the seed",
            ));
        }
        if roles.contains(&Role::Meta) {
            self.check_release(&request).await?;
        }
        let op = RootOp::Join {
            token: token.hash(),
            now_ms: self.host.clock.wall_ms(),
            name: request.name,
            zone: request.zone,
            address: request.address,
            roles,
        };
        let node = match self.client.root(op).await {
            Ok(RootOutcome::Joined(node)) => node,
            Err(Failure::Root(refusal)) => {
                return Err(Status::unauthenticated(refusal.to_string()));
            }
            Ok(other) => return Err(Status::internal(format!("the root answered {other:?}"))),
            Err(failure) => return Err(Status::unavailable(failure.to_string())),
        };
        self.welcome(node, &request.csr_pem).map(Response::new)
    }

    async fn issue_token(
        &self,
        request: Request<IssueTokenRequest>,
    ) -> Result<Response<IssueTokenReply>, Status> {
        let seconds = request.into_inner().valid_seconds.clamp(1, TOKEN_SECONDS_MAX);
        let fingerprint = match &self.authority {
            Some(authority) => {
                authority.fingerprint().map_err(|error| Status::internal(error.to_string()))?
            }
            None if self.tls => {
                return Err(Status::failed_precondition(
                    "this member does not hold the authority's key: ask a founder for the token",
                ));
            }
            None => [0; 32],
        };
        let mut secret = [0; 16];
        self.host.random.fill(&mut secret);
        let token = JoinToken { secret, fingerprint };
        let expires_ms = self.host.clock.wall_ms() + seconds * 1000;
        match self.client.root(RootOp::IssueToken { hash: token.hash(), expires_ms }).await {
            Ok(RootOutcome::Applied(_)) => {
                Ok(Response::new(IssueTokenReply { token: token.reveal() }))
            }
            Ok(other) => Err(Status::internal(format!("the root answered {other:?}"))),
            Err(failure) => Err(Status::unavailable(failure.to_string())),
        }
    }
}

impl MembershipService {
    /// A node that knows less than the cluster uses could not open a replica.
    async fn check_release(&self, request: &JoinRequest) -> Result<(), Status> {
        let first = ApplyVersions::FIRST;
        let known = ApplyVersions {
            root: request.root_version.max(first.root),
            ranges: request.ranges_version.max(first.ranges),
        };
        let used = self.client.apply_versions().await;
        let used = used.map_err(|failure| {
            Status::unavailable(format!(
                "by which versions the cluster applies is not known now ({failure}): if it is being upgraded, join when all \
                 members run the same release"
            ))
        })?;
        if known.include(&used) {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "this cluster applies by {used}, and the release of the new node knows no later ones \
             than {known}: install the release that the members run"
        )))
    }

    fn welcome(&self, node: NodeId, csr_pem: &str) -> Result<JoinReply, Status> {
        let mut reply = JoinReply {
            cluster: self.cluster.0.to_be_bytes().to_vec().into(),
            node: node.0,
            seeds: self.client.map().nodes.values().map(|member| member.address.clone()).collect(),
            root_access_key: self.root_key.access_key.clone(),
            root_secret_key: self.root_key.secret_key.clone(),
            region: self.region.clone(),
            ..JoinReply::default()
        };
        if let Some(authority) = &self.authority {
            let signed = authority.sign(csr_pem, &node.to_string());
            reply.certificate_pem =
                signed.map_err(|error| Status::invalid_argument(error.to_string()))?;
            authority.certificate_pem().clone_into(&mut reply.ca_pem);
        }
        Ok(reply)
    }
}

fn parse_roles(texts: &[String]) -> Result<Vec<Role>, String> {
    let role = |text: &String| match text.as_str() {
        "meta" => Ok(Role::Meta),
        "data" => Ok(Role::Data),
        "gateway" => Ok(Role::Gateway),
        other => Err(format!("'{other}' is not a role: meta, data and gateway are")),
    };
    texts.iter().map(role).collect()
}

fn role_text(role: Role) -> String {
    match role {
        Role::Meta => "meta",
        Role::Data => "data",
        Role::Gateway => "gateway",
    }
    .to_owned()
}

/// What a join gives beside the identity.
pub(crate) struct Joined {
    pub(crate) identity: Identity,
    pub(crate) seeds: Vec<String>,
}

/// Asks a member to admit this node, and keeps what it answers.
pub(crate) async fn join(
    host: &Host,
    config: &NodeConfig,
    dir: &NodeDir,
    address: &str,
) -> Result<Joined> {
    let wish = config.join.as_ref().context("there is no [join] section")?;
    let text = host.disk.read(&wish.token_file);
    let text =
        text.with_context(|| format!("cannot read the join token {}", wish.token_file.display()))?;
    let token = JoinToken::parse(&String::from_utf8_lossy(&text))?;
    let dialer = if config.internal.tls {
        Dialer::with_tls(host.clone(), Some(Security::joining(token.fingerprint)?))
    } else {
        Dialer::new(host.clone(), &Security::Plain)
    };
    let (key, csr_pem) = signing_request()?;
    let request = JoinRequest {
        token: token.reveal(),
        csr_pem,
        name: config.name(),
        zone: config.zone.clone(),
        address: address.to_owned(),
        roles: config.roles.iter().copied().map(role_text).collect(),
        root_version: config.meta.versions.known.root,
        ranges_version: config.meta.versions.known.ranges,
    };
    let mut member = MembershipClient::new(dialer.channel(&wish.seed, Class::Metadata));
    let reply = host.clock.timeout(JOIN_PATIENCE, member.join(request)).await;
    let reply = match reply {
        Ok(Ok(reply)) => reply.into_inner(),
        Ok(Err(status)) => {
            bail!("the member at {} did not admit this node: {}", wish.seed, status.message())
        }
        Err(_) => bail!(
            "the member at {} did not answer: is the address right, and does it run?",
            wish.seed
        ),
    };
    let cluster: [u8; 16] =
        reply.cluster.as_ref().try_into().context("the member's answer has no cluster id")?;
    if config.internal.tls {
        let (authority_pem, certificate_pem) = (reply.ca_pem, reply.certificate_pem);
        dir.set_credentials(&Credentials { authority_pem, certificate_pem, key })?;
    }
    dir.set_root_key(&RootKey {
        access_key: reply.root_access_key,
        secret_key: reply.root_secret_key,
    })?;
    let identity = Identity::new(ClusterId(u128::from_be_bytes(cluster)), NodeId(reply.node));
    Ok(Joined { identity, seeds: reply.seeds })
}

/// Asks the member whose directory this is for a token.
pub async fn issue_token(
    host: &Host,
    address: &str,
    security: &Security,
    valid: Duration,
) -> Result<String> {
    let dialer = Dialer::new(host.clone(), security);
    let mut member = MembershipClient::new(dialer.channel(address, Class::Metadata));
    let call = member.issue_token(IssueTokenRequest { valid_seconds: valid.as_secs() });
    match host.clock.timeout(JOIN_PATIENCE, call).await {
        Ok(Ok(reply)) => Ok(reply.into_inner().token),
        Ok(Err(status)) => bail!("the member at {address} gave no token: {}", status.message()),
        Err(_) => bail!("the member at {address} did not answer: does it run?"),
    }
}
