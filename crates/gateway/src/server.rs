//! The S3 port: HTTP/1.1, over TLS where it is given a certificate. Nothing that a client does or leaves undone holds
//! memory for ever: head, idle connection, body and answer have their deadlines (S5).
//!
//! HTTP/2 is not spoken: `docs/adr/0007`. `Expect: 100-continue` is answered by hyper when the body is first read, which
//! is after the head was accepted.

use crate::paced_body::PacedBody;
use crate::{Gateway, SlowClients};
use ashlar_host::{Clock, Connection, Greeted, Host, HttpPort, Listener, serve_http};
use ashlar_s3::{ResponseBody, S3Service, Summary};
use futures::future::BoxFuture;
use http::header::{CONNECTION, EXPECT};
use http::{HeaderValue, Request, Response};
use hyper::body::{Body, Incoming};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::TlsAcceptor;

/// In logs and metrics.
const NAME: &str = "S3";
/// With their buffers, these hold 256 MiB at the very most.
const CONNECTIONS_MAX: u32 = 2048;
/// hyper's buffer of a connection. A head may have 16 KiB: that is judged by `s3`, and this leaves it room to answer.
const BUFFER_BYTES: usize = 128 * 1024;

fn port(slow: SlowClients) -> HttpPort {
    HttpPort {
        name: NAME,
        connections_max: CONNECTIONS_MAX,
        handshake: Duration::from_secs(10),
        head: slow.head,
        buffer_bytes: BUFFER_BYTES,
        writes: Some(slow.pace),
        drain: Duration::from_secs(10),
        http2: None,
    }
}

/// Certificate chain and key of the S3 port, in PEM.
#[derive(Clone)]
pub struct TlsConfig {
    /// The certificate, then those that signed it.
    pub cert_pem: String,
    /// Its private key.
    pub key_pem: String,
}

impl std::fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsConfig")
    }
}

/// Why TLS cannot be served with this certificate and key.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not PEM, or without a certificate or key.
    #[error("the certificate or key of the S3 port is not PEM: {0}")]
    Pem(#[from] rustls_pki_types::pem::Error),
    /// They do not belong together, or are of a kind that is not supported.
    #[error("the certificate and key of the S3 port cannot be used together: {0}")]
    Unusable(#[from] rustls::Error),
}

impl TlsConfig {
    /// Whether TLS can be served with it: to be called before the port is promised to anybody.
    pub fn check(&self) -> Result<(), TlsError> {
        self.acceptor().map(|_| ())
    }

    fn acceptor(&self) -> Result<TlsAcceptor, TlsError> {
        let chain = CertificateDer::pem_slice_iter(self.cert_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// Serves S3 until shutdown is requested; then lets open requests finish for a moment.
pub async fn serve(
    host: Host,
    listener: Box<dyn Listener>,
    tls: Option<TlsConfig>,
    gateway: Gateway,
) {
    let tls = match tls.map(|tls| tls.acceptor()).transpose() {
        Ok(tls) => tls,
        Err(error) => {
            tracing::error!(%error, "the S3 port is not served");
            return;
        }
    };
    let Gateway { service, slow, backend: _ } = gateway;
    let clock = Arc::clone(&host.clock);
    let greet = move |stream| {
        let (service, clock, tls) = (service.clone(), Arc::clone(&clock), tls.clone());
        let greeting: BoxFuture<'static, _> = Box::pin(async move {
            let stream = decrypt(stream, tls).await?;
            let service = hyper::service::service_fn(move |request| {
                answer(service.clone(), Arc::clone(&clock), slow, request)
            });
            Ok(Greeted { stream, service, life: None })
        });
        greeting
    };
    serve_http(host, listener, port(slow), greet).await;
}

async fn decrypt(
    stream: Box<dyn Connection>,
    tls: Option<TlsAcceptor>,
) -> io::Result<Box<dyn Connection>> {
    match tls {
        None => Ok(stream),
        Some(tls) => Ok(Box::new(tls.accept(stream).await?)),
    }
}

/// Answers one request, and counts it. The seconds are those until the head of the answer is ready.
async fn answer(
    service: S3Service,
    clock: Arc<dyn Clock>,
    slow: SlowClients,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let begun = clock.now();
    let is_last = expects_what_never_comes(&request);
    let paced = request.map(|body| PacedBody::new(body, Arc::clone(&clock), slow.pace, NAME));
    let mut response = service.call(paced).await;
    if is_last {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let operation = response.extensions().get::<Summary>().map_or("-", |summary| summary.operation);
    let seconds = (clock.now() - begun).as_secs_f64();
    let status = response.status().as_str().to_owned();
    metrics::counter!("ashlar_s3_requests_total", "operation" => operation, "status" => status)
        .increment(1);
    metrics::histogram!("ashlar_s3_request_seconds", "operation" => operation).record(seconds);
    Ok(response)
}

/// Whether a client waits for `100 Continue` with a body of no bytes. None is sent, because nothing is read; botocore
/// then takes the status of this answer for that of the next one on the same connection, and waits a minute for its
/// rest. So it is the last one.
fn expects_what_never_comes<B: Body>(request: &Request<B>) -> bool {
    request.headers().contains_key(EXPECT) && request.body().is_end_stream()
}
