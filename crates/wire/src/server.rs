//! The internal port: gRPC and shard bytes on one listener, told apart by HTTP version; members only.

use crate::Security;
use crate::stream::InternalStream;
use ashlar_host::{Connection, Greeted, Host, Http2, HttpPort, Listener, serve_http};
use axum::Router;
use axum::body::Body;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use std::convert::Infallible;
use std::io;
use std::time::Duration;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

const PORT: HttpPort = HttpPort {
    name: "internal",
    // every gateway and node of a large cluster, with pools for shard bytes
    connections_max: 16 * 1024,
    handshake: Duration::from_secs(5),
    head: Duration::from_secs(30),
    buffer_bytes: 400 * 1024,
    // a member that reads slowly has a slow client itself, which its own port watches
    writes: None,
    drain: Duration::from_secs(3),
    http2: Some(Http2 {
        stream_window_bytes: 4 << 20,
        connection_window_bytes: 16 << 20,
        frame_bytes: 1 << 20,
        streams_max: 4096,
    }),
};
/// The path that a caller without a certificate may use: a one-time token stands for it.
const JOIN_PATH: &str = "/ashlar.v1.Membership/Join";
/// How long a connection without a certificate may last: it holds a place that a member may need.
const STRANGER_LIFE: Duration = Duration::from_secs(30);

/// Serves `router` to members until shutdown is requested; then lets open requests finish for a moment.
pub async fn serve(host: Host, listener: Box<dyn Listener>, security: Security, router: Router) {
    let greet = move |stream| {
        let (security, router) = (security.clone(), router.clone());
        let greeting: BoxFuture<'static, _> = Box::pin(async move {
            let stream = accept(stream, security).await.inspect_err(refused)?;
            let member = stream.peer_is_member();
            let service =
                hyper::service::service_fn(move |request| answer(router.clone(), member, request));
            Ok(Greeted { stream, service, life: (!member).then_some(STRANGER_LIFE) })
        });
        greeting
    };
    serve_http(host, listener, PORT, greet).await;
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

async fn answer(
    router: Router,
    member: bool,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    if !member && request.uri().path() != JOIN_PATH {
        metrics::counter!("ashlar_internal_refused_total", "reason" => "no certificate")
            .increment(1);
        return Ok(forbidden());
    }
    router.oneshot(request).await
}

fn refused(error: &io::Error) {
    metrics::counter!("ashlar_internal_refused_total", "reason" => "handshake").increment(1);
    tracing::warn!(%error, "an internal connection was refused");
}

fn forbidden() -> Response<Body> {
    let mut response = Response::new(Body::from("a certificate of this cluster is needed here\n"));
    *response.status_mut() = StatusCode::FORBIDDEN;
    response
}
