//! Connections to other nodes: one gRPC channel a node and class, and a pool of HTTP/1.1 connections for shard bytes.
//!
//! A gRPC channel connects when it is first used, and again when it breaks. A pooled HTTP/1.1 connection is reused
//! only after its answer was read to the end. Deadlines are the caller's; only connecting has one here.

use crate::stream::InternalStream;
use crate::{INTERNAL_NAME, Security};
use ashlar_host::{Host, TaskKind};
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// How long making a connection may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// A channel whose peer does not answer a ping for this long is broken: an old one must not outlive a healed partition.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(2);
const KEEP_ALIVE_PATIENCE: Duration = Duration::from_secs(2);
/// Measured to be worth it for large frames.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Idle HTTP/1.1 connections that are kept for one address.
const IDLE_MAX: usize = 64;

/// What a channel carries: each class has a connection of its own, so that bulk never delays a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Raft of all groups.
    Raft,
    /// Commands and reads.
    Metadata,
    /// Pings, small shards, repair orders.
    Bulk,
}

/// The body of a shard request.
pub type ShardBody = BoxBody<Bytes, io::Error>;

/// Why a shard request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No connection: the request was surely not received.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The node.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The connection broke: the request may have been received.
    #[error("the connection to {address} broke: {source}")]
    Broken {
        /// The node.
        address: String,
        /// Why.
        source: hyper::Error,
    },
}

/// Runs what a channel spawns as tasks of the host.
struct ChannelExecutor(Host);

impl Executor<BoxFuture<'static, ()>> for ChannelExecutor {
    fn execute(&self, task: BoxFuture<'static, ()>) {
        let _runs_on = self.0.tasks.spawn(TaskKind::Background("channel"), task);
    }
}

/// Makes connections. Cheap to clone.
#[derive(Clone)]
pub struct Dialer(Arc<Inner>);

struct Inner {
    host: Host,
    tls: Option<Arc<ClientConfig>>,
    channels: Mutex<BTreeMap<(String, Class), Channel>>,
    idle: Mutex<BTreeMap<String, Vec<SendRequest<ShardBody>>>>,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dialer")
    }
}

impl Dialer {
    /// A dialer of a member.
    pub fn new(host: Host, security: &Security) -> Self {
        let tls = match security {
            Security::Plain => None,
            Security::Mutual { client, .. } => Some(client.clone()),
        };
        Self::with_tls(host, tls)
    }

    /// A dialer with another TLS configuration: that of a joining node.
    pub fn with_tls(host: Host, tls: Option<Arc<ClientConfig>>) -> Self {
        Self(Arc::new(Inner { host, tls, channels: Mutex::default(), idle: Mutex::default() }))
    }

    /// The gRPC channel of a class to `address` (host:port). It connects when it is first used.
    pub fn channel(&self, address: &str, class: Class) -> Channel {
        let mut channels = self.0.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels
            .entry((address.to_owned(), class))
            .or_insert_with(|| self.new_channel(address))
            .clone()
    }

    fn new_channel(&self, address: &str) -> Channel {
        let endpoint = Endpoint::from_static("http://ashlar.internal")
            .connect_timeout(CONNECT_PATIENCE)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
            .keep_alive_timeout(KEEP_ALIVE_PATIENCE)
            .keep_alive_while_idle(true)
            .executor(ChannelExecutor(self.0.host.clone()));
        let (dialer, address) = (self.clone(), address.to_owned());
        endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
            let (dialer, address) = (dialer.clone(), address.clone());
            async move { dialer.connect(&address).await.map(TokioIo::new) }
        }))
    }

    /// Sends one HTTP/1.1 request over a pooled connection.
    pub async fn http1(
        &self,
        address: &str,
        request: http::Request<ShardBody>,
    ) -> Result<http::Response<Incoming>, DialError> {
        let mut sender = match self.pooled(address) {
            Some(sender) => sender,
            None => self.new_sender(address).await?,
        };
        let broken = |source| DialError::Broken { address: address.to_owned(), source };
        let response = sender.send_request(request).await.map_err(broken)?;
        self.keep(address.to_owned(), sender);
        Ok(response)
    }

    fn pooled(&self, address: &str) -> Option<SendRequest<ShardBody>> {
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let senders = idle.get_mut(address)?;
        senders.retain(|sender| !sender.is_closed());
        // one whose answer is still being read is not ready: it stays until it is
        let ready = senders.iter().rposition(SendRequest::is_ready)?;
        Some(senders.swap_remove(ready))
    }

    fn keep(&self, address: String, sender: SendRequest<ShardBody>) {
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let senders = idle.entry(address).or_default();
        if senders.len() < IDLE_MAX {
            senders.push(sender);
        }
    }

    async fn new_sender(&self, address: &str) -> Result<SendRequest<ShardBody>, DialError> {
        let refused = |source| DialError::Connect { address: address.to_owned(), source };
        let deadline = self.0.host.clock.timeout(CONNECT_PATIENCE, self.connect(address)).await;
        let stream =
            deadline.map_err(|late| refused(io::Error::new(io::ErrorKind::TimedOut, late)))?;
        let stream = stream.map_err(refused)?;
        let handshake = http1::Builder::new().handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake
            .map_err(|source| DialError::Broken { address: address.to_owned(), source })?;
        let pump = Box::pin(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a shard connection ended");
            }
        });
        // the pump lives as long as its connection; whoever waits on the sender sees it end
        let _pump = self.0.host.tasks.spawn(TaskKind::Background("shard connection"), pump);
        Ok(sender)
    }

    async fn connect(&self, address: &str) -> io::Result<InternalStream> {
        let stream = self.0.host.network.connect(address).await?;
        let Some(tls) = &self.0.tls else {
            return Ok(InternalStream::Plain(stream));
        };
        let name = ServerName::try_from(INTERNAL_NAME).expect("a constant that is a DNS name");
        let stream = TlsConnector::from(tls.clone()).connect(name, stream).await?;
        Ok(InternalStream::Tls(Box::new(stream.into())))
    }
}
