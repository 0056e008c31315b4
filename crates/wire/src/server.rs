//! The internal port: gRPC and shard bytes on one listener, told apart by HTTP version; members only.

use crate::Security;
use crate::stream::InternalStream;
use ashlar_host::{Connection, Host, Listener, TaskKind};
use axum::Router;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::future::Future;
use std::io;
use std::time::Duration;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

/// How long a handshake may take.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
/// How long open requests get when the node stops.
const DRAIN_PATIENCE: Duration = Duration::from_secs(3);
/// The path that a caller without a certificate may use: a one-time token stands for it.
const JOIN_PATH: &str = "/ashlar.v1.Membership/Join";
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const FRAME_BYTES: u32 = 1 << 20;

/// Serves `router` to members until shutdown is requested; then lets open requests finish for a moment.
pub async fn serve(host: Host, listener: Box<dyn Listener>, security: Security, router: Router) {
    let mut connections = Vec::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = host.shutdown.requested() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let serving =
                    serve_connection(host.clone(), stream, security.clone(), router.clone());
                connections.push(
                    host.tasks.spawn(TaskKind::Request("internal connection"), Box::pin(serving)),
                );
            }
            // out of file descriptors, or a connection that broke at once: the next one may be fine
            Err(error) => {
                tracing::warn!(%error, "the internal port could not accept a connection");
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
        tracing::info!("open internal connections were cut at the end of the drain");
    }
}

async fn serve_connection(
    host: Host,
    stream: Box<dyn Connection>,
    security: Security,
    router: Router,
) {
    let handshake = host.clock.timeout(HANDSHAKE_PATIENCE, accept(stream, security)).await;
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return refused(&error.to_string()),
        Err(late) => return refused(&late.to_string()),
    };
    let member = stream.peer_is_member();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let router = router.clone();
        async move {
            if !member && request.uri().path() != JOIN_PATH {
                metrics::counter!("ashlar_internal_refused_total", "reason" => "no certificate")
                    .increment(1);
                return Ok(forbidden());
            }
            router.oneshot(request).await
        }
    });
    let mut builder = auto::Builder::new(HostExecutor(host.clone()));
    builder.http1().timer(TokioTimer::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(4096);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
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
        tracing::debug!(%error, "an internal connection ended");
    }
}

async fn accept(stream: Box<dyn Connection>, security: Security) -> io::Result<InternalStream> {
    match security {
        Security::Plain => Ok(InternalStream::Plain(stream)),
        Security::Mutual { server, .. } => {
            let stream = TlsAcceptor::from(server).accept(stream).await?;
            Ok(InternalStream::Tls(Box::new(stream.into())))
        }
    }
}

fn refused(reason: &str) {
    metrics::counter!("ashlar_internal_refused_total", "reason" => "handshake").increment(1);
    tracing::warn!(reason, "an internal connection was refused");
}

fn forbidden() -> Response<axum::body::Body> {
    let mut response =
        Response::new(axum::body::Body::from("a certificate of this cluster is needed here\n"));
    *response.status_mut() = StatusCode::FORBIDDEN;
    response
}

/// Runs what HTTP/2 spawns as tasks of the host.
#[derive(Clone)]
struct HostExecutor(Host);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for HostExecutor {
    fn execute(&self, task: F) {
        let _stream = self.0.tasks.spawn(TaskKind::Request("internal stream"), Box::pin(task));
    }
}
