//! The S3 port: HTTP/1.1, and HTTP/2 where TLS agrees on it; time-outs on handshake, head, idle connection and slow
//! body; a stop that lets open requests finish.
//!
//! `Expect: 100-continue` is answered by hyper when the body is first read, which is after the head was accepted.

use crate::Gateway;
use ashlar_host::{Clock, Connection, Host, Listener, TaskKind};
use ashlar_s3::{BodyError, Code, S3Error, S3Service, Summary};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// How long a TLS handshake may take.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// How long a head may take, and how long a connection may be idle between requests: hyper counts both as one.
const HEAD_PATIENCE: Duration = Duration::from_secs(60);
/// How long a body may send nothing.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
/// How long open requests get when the node stops.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// More connections wait in the kernel's queue. With their buffers, these hold 256 MiB at the very most.
const CONNECTIONS_MAX: usize = 2048;
/// hyper's buffer of a connection. A head may have 16 KiB: that is judged by `s3`, and this leaves it room to answer.
const BUFFER_BYTES: usize = 128 * 1024;
/// Of HTTP/2.
const STREAMS_MAX: u32 = 256;

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
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
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
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = Vec::new();
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            biased;
            () = host.shutdown.requested() => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let serving =
                    serve_connection(host.clone(), stream, tls.clone(), gateway.service.clone());
                let task: BoxFuture<'static, ()> = Box::pin(async move {
                    let _place = place;
                    serving.await;
                });
                connections.push(host.tasks.spawn(TaskKind::Request("S3 connection"), task));
            }
            // out of file descriptors, or a connection that broke at once: the next one may be fine
            Err(error) => {
                tracing::warn!(%error, "the S3 port could not accept a connection");
                host.clock.sleep(Duration::from_millis(10)).await;
            }
        }
        if connections.len() % 64 == 0 {
            connections.retain(|connection| !connection.is_finished());
        }
    }
    let drained = async {
        for connection in connections {
            connection.join().await;
        }
    };
    if host.clock.timeout(DRAIN_PATIENCE, drained).await.is_err() {
        tracing::info!("open S3 connections were cut at the end of the drain");
    }
}

async fn serve_connection(
    host: Host,
    stream: Box<dyn Connection>,
    tls: Option<TlsAcceptor>,
    service: S3Service,
) {
    let Some(tls) = tls else { return serve_http(host, TokioIo::new(stream), service).await };
    match host.clock.timeout(HANDSHAKE_PATIENCE, tls.accept(stream)).await {
        Ok(Ok(stream)) => serve_http(host, TokioIo::new(stream), service).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(late) => tracing::debug!(%late, "a TLS handshake took too long"),
    }
}

async fn serve_http<I>(host: Host, io: I, service: S3Service)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let clock = Arc::clone(&host.clock);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (service, clock) = (service.clone(), Arc::clone(&clock));
        async move { Ok::<_, std::convert::Infallible>(answer(&service, clock, request).await) }
    });
    let mut builder = auto::Builder::new(HostExecutor(host.clone()));
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(HEAD_PATIENCE)
        .max_header_list_size(u32::try_from(BUFFER_BYTES).unwrap_or(u32::MAX));
    let connection = builder.serve_connection(io, service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = host.shutdown.requested() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an S3 connection ended");
    }
}

/// Answers one request, and counts it. The seconds are those until the head of the answer is ready.
async fn answer(
    service: &S3Service,
    clock: Arc<dyn Clock>,
    request: Request<Incoming>,
) -> Response<ashlar_s3::ResponseBody> {
    let begun = clock.now();
    let timed = request.map(|body| Timed { body, clock: Arc::clone(&clock), deadline: None });
    let response = service.call(timed).await;
    let operation = response.extensions().get::<Summary>().map_or("-", |summary| summary.operation);
    let seconds = (clock.now() - begun).as_secs_f64();
    let status = response.status().as_str().to_owned();
    metrics::counter!("ashlar_s3_requests_total", "operation" => operation, "status" => status)
        .increment(1);
    metrics::histogram!("ashlar_s3_request_seconds", "operation" => operation).record(seconds);
    response
}

/// A body that must go on sending. The clock runs only while the gateway waits for the client, never while the client
/// waits for the gateway.
struct Timed {
    body: Incoming,
    clock: Arc<dyn Clock>,
    deadline: Option<BoxFuture<'static, ()>>,
}

impl Body for Timed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.deadline = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let deadline = this.deadline.get_or_insert_with(|| this.clock.sleep(BODY_PATIENCE));
        match deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Some(Err(S3Error::from(Code::RequestTimeout).into()))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Runs what HTTP/2 spawns as tasks of the host.
#[derive(Clone)]
struct HostExecutor(Host);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for HostExecutor {
    fn execute(&self, task: F) {
        let _stream = self.0.tasks.spawn(TaskKind::Request("S3 stream"), Box::pin(task));
    }
}
