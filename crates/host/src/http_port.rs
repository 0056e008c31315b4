//! A port that speaks HTTP: one accept loop for all ports of a node, with the limits of each.
//!
//! ```text
//! accept ─ a place ─ paced writes ─ greet (TLS, who is it) ─ HTTP until the peer ends it, is too slow, or the node stops
//! ```
//! A port says in [`HttpPort`] what it allows, and in its `greet` who speaks and what serves him. hyper is named here and
//! in what is served. Its timers are the host's clock and its tasks the host's tasks.
//!
//! When the node stops, nothing more is accepted, open requests get [`HttpPort::drain`], and what is left is cut: when
//! [`serve_http`] returns, no connection of the port is served any more.

use crate::pace::{Pace, PaceLimits, PacedWrites, TooSlow};
use crate::{Clock, Connection, Host, Listener, Monotonic, Shutdown, TaskKind};
use futures::future::BoxFuture;
use hyper::body::{Body, Incoming};
use hyper::rt::{Executor, Sleep, Timer};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

type Cause = Box<dyn Error + Send + Sync>;

/// How long the port rests when accepting has failed: out of file descriptors, most likely.
const REST: Duration = Duration::from_millis(10);

/// What a port allows.
#[derive(Debug, Clone, Copy)]
pub struct HttpPort {
    /// What it is called in logs and metrics.
    pub name: &'static str,
    /// Connections that are served at once; more wait in the kernel's queue.
    pub connections_max: u32,
    /// How long `greet` may take.
    pub handshake: Duration,
    /// How long an HTTP/1.1 head may take, and how long a connection may be idle between requests: both are one.
    pub head: Duration,
    /// The buffer of a connection: no head is longer, and no more of an answer is held for a slow reader.
    pub buffer_bytes: usize,
    /// How slowly answers may be taken.
    pub writes: Option<PaceLimits>,
    /// How long open requests get when the node stops.
    pub drain: Duration,
    /// HTTP/2 beside HTTP/1.1.
    pub http2: Option<Http2>,
}

/// What HTTP/2 allows.
#[derive(Debug, Clone, Copy)]
pub struct Http2 {
    /// Bytes that a stream may have under way.
    pub stream_window_bytes: u32,
    /// Bytes that all streams of a connection may have under way.
    pub connection_window_bytes: u32,
    /// The longest frame.
    pub frame_bytes: u32,
    /// Streams of a connection.
    pub streams_max: u32,
}

/// A peer after its handshake.
#[derive(Debug)]
pub struct Greeted<I, S> {
    /// The connection, decrypted.
    pub stream: I,
    /// What answers its requests.
    pub service: S,
    /// How long the whole connection may last; for a stranger.
    pub life: Option<Duration>,
}

/// Serves until shutdown is requested; then lets open requests finish for a moment.
pub async fn serve_http<G, I, S, B>(
    host: Host,
    listener: Box<dyn Listener>,
    port: HttpPort,
    greet: G,
) where
    G: Fn(Box<dyn Connection>) -> BoxFuture<'static, io::Result<Greeted<I, S>>>,
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Future: Send, Error: Into<Cause>> + Send,
    S: 'static,
    S::Future: 'static,
    B: Body<Data: Send, Error: Into<Cause>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(port.connections_max as usize));
    let cut = Shutdown::default();
    while let Some((place, stream)) = next(&host, &*listener, &places, &port).await {
        let greeting = greet(paced(&host, &port, stream));
        let serving = connection(host.clone(), port, greeting);
        let cut = cut.requested();
        let task = async move {
            tokio::select! {
                biased;
                () = serving => {}
                () = cut => count_cut(port.name, "drain"),
            }
            drop(place);
        };
        let _runs_on = host.tasks.spawn(TaskKind::Request(port.name), Box::pin(task));
    }
    if host.clock.timeout(port.drain, places.acquire_many(port.connections_max)).await.is_err() {
        tracing::info!(port = port.name, "open connections are cut at the end of the drain");
        cut.request();
        drop(places.acquire_many(port.connections_max).await);
    }
}

/// Counts a peer that was cut off, or not let in.
fn count_cut(port: &'static str, reason: &'static str) {
    metrics::counter!("ashlar_port_cut_total", "port" => port, "reason" => reason).increment(1);
}

/// Counts a peer that was too slow in sending (`"body"`) or taking (`"answer"`) what it had asked to send or take.
pub fn count_too_slow(port: &'static str, what: &'static str, why: TooSlow) {
    let reason = match (what, why) {
        ("body", TooSlow::Stalled) => "stalled body",
        ("body", TooSlow::BelowRate) => "slow body",
        (_, TooSlow::Stalled) => "stalled answer",
        (_, TooSlow::BelowRate) => "slow answer",
    };
    count_cut(port, reason);
}

/// The next connection, and its place. `None`: the node stops.
async fn next(
    host: &Host,
    listener: &dyn Listener,
    places: &Arc<Semaphore>,
    port: &HttpPort,
) -> Option<(OwnedSemaphorePermit, Box<dyn Connection>)> {
    loop {
        let next = async {
            let place = Arc::clone(places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            biased;
            () = host.shutdown.requested() => return None,
            next = next => next,
        };
        match (place, accepted) {
            (Ok(place), Ok((stream, _))) => return Some((place, stream)),
            (Err(_closed), _) => return None,
            // out of file descriptors, or a connection that broke at once: the next one may be fine
            (Ok(_), Err(error)) => {
                tracing::warn!(port = port.name, %error, "a connection could not be accepted");
                host.clock.sleep(REST).await;
            }
        }
    }
}

fn paced(host: &Host, port: &HttpPort, stream: Box<dyn Connection>) -> Box<dyn Connection> {
    let Some(limits) = port.writes else { return stream };
    let pace = Pace::new(Arc::clone(&host.clock), limits);
    let name = port.name;
    let cut = move |why| {
        tracing::debug!(port = name, %why, "an answer was not taken");
        count_too_slow(name, "answer", why);
    };
    Box::new(PacedWrites { stream, pace, cut })
}

async fn connection<I, S, B>(
    host: Host,
    port: HttpPort,
    greeting: BoxFuture<'static, io::Result<Greeted<I, S>>>,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Future: Send, Error: Into<Cause>> + Send,
    S: 'static,
    S::Future: 'static,
    B: Body<Data: Send, Error: Into<Cause>> + Send + 'static,
{
    let Greeted { stream, service, life } = match host.clock.timeout(port.handshake, greeting).await
    {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(error)) => return not_greeted(&port, &error),
        Err(late) => return not_greeted(&port, &late),
    };
    let http = http(&host, &port, TokioIo::new(stream), service);
    match life {
        None => http.await,
        Some(life) => {
            if host.clock.timeout(life, http).await.is_err() {
                count_cut(port.name, "life");
            }
        }
    }
}

fn not_greeted(port: &HttpPort, why: &dyn std::fmt::Display) {
    count_cut(port.name, "handshake");
    tracing::debug!(port = port.name, %why, "a handshake failed");
}

async fn http<I, S, B>(host: &Host, port: &HttpPort, io: TokioIo<I>, service: S)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Future: Send, Error: Into<Cause>> + Send,
    S: 'static,
    S::Future: 'static,
    B: Body<Data: Send, Error: Into<Cause>> + Send + 'static,
{
    let builder = builder(host, port);
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
        let is_late = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_timeout);
        if is_late {
            count_cut(port.name, "head");
        }
        tracing::debug!(port = port.name, %error, "a connection ended");
    }
}

fn builder(host: &Host, port: &HttpPort) -> auto::Builder<HostExecutor> {
    let timer = HostTimer::new(Arc::clone(&host.clock));
    let mut builder = auto::Builder::new(HostExecutor { host: host.clone(), port: port.name });
    builder
        .http1()
        .timer(timer.clone())
        .header_read_timeout(port.head)
        .max_buf_size(port.buffer_bytes);
    let Some(http2) = port.http2 else { return builder.http1_only() };
    builder
        .http2()
        .timer(timer)
        .initial_stream_window_size(http2.stream_window_bytes)
        .initial_connection_window_size(http2.connection_window_bytes)
        .max_frame_size(http2.frame_bytes)
        .max_concurrent_streams(http2.streams_max);
    builder
}

/// Runs what HTTP/2 spawns as tasks of the host.
#[derive(Clone)]
struct HostExecutor {
    host: Host,
    port: &'static str,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for HostExecutor {
    fn execute(&self, task: F) {
        let _stream = self.host.tasks.spawn(TaskKind::Request(self.port), Box::pin(task));
    }
}

/// The host's clock for hyper, whose moments are those of the standard library.
#[derive(Clone)]
struct HostTimer {
    clock: Arc<dyn Clock>,
    /// The same moment on both clocks.
    origin: (Instant, Monotonic),
}

impl HostTimer {
    fn new(clock: Arc<dyn Clock>) -> Self {
        let origin = (Instant::now(), clock.now());
        Self { clock, origin }
    }
}

impl Timer for HostTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(HostSleep(Mutex::new(self.clock.sleep(duration))))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        self.sleep(deadline.saturating_duration_since(self.now()))
    }

    fn now(&self) -> Instant {
        self.origin.0 + (self.clock.now() - self.origin.1)
    }
}

/// hyper asks for what may be shared; nobody locks.
struct HostSleep(Mutex<BoxFuture<'static, ()>>);

impl Future for HostSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.get_mut().0.get_mut();
        sleep.unwrap_or_else(std::sync::PoisonError::into_inner).as_mut().poll(cx)
    }
}

impl Sleep for HostSleep {}
