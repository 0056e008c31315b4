//! What an HTTP port does with peers that hold it up. Each port here has one place: who comes second is served once the
//! first has been let go. All of it runs in memory and under paused time.

#![allow(clippy::unwrap_used, reason = "a test says by failing what was not there")]

use ashlar_host::{
    Connection, Greeted, Host, HttpPort, MemoryNetwork, PaceLimits, TaskHandle, TaskKind,
    serve_http,
};
use futures::future::BoxFuture;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::{Request, Response};
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

const BODY_BYTES: usize = 1 << 20;
const PORT: HttpPort = HttpPort {
    name: "test",
    connections_max: 1,
    handshake: Duration::from_secs(5),
    head: Duration::from_secs(60),
    buffer_bytes: 16 * 1024,
    writes: Some(PaceLimits {
        stall: Duration::from_secs(30),
        grace: Duration::from_secs(60),
        rate_min: 1024,
    }),
    drain: Duration::from_secs(3),
    http2: None,
};

/// One piece of bytes.
struct Once(Option<Bytes>);

impl Body for Once {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.get_mut().0.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// `/hang` is never answered, everything else with a mebibyte.
async fn answer(request: Request<Incoming>) -> Result<Response<Once>, Infallible> {
    if request.uri().path() == "/hang" {
        std::future::pending::<()>().await;
    }
    Ok(Response::new(Once(Some(Bytes::from(vec![7; BODY_BYTES])))))
}

/// What comes of a handshake.
#[derive(Clone, Copy)]
enum Peer {
    Member,
    /// Known for so long.
    Stranger(Duration),
    /// It never ends.
    Mute,
}

/// A port, and the machine whose network leads to it.
async fn start(port: HttpPort, peer: Peer) -> (Host, TaskHandle) {
    let host = Host::real().with_network(Arc::new(MemoryNetwork::new(16 * 1024)));
    let listener = host.network.listen("port").await.unwrap();
    let greet = move |stream| {
        let greeting: BoxFuture<'static, io::Result<_>> = Box::pin(async move {
            let life = match peer {
                Peer::Member => None,
                Peer::Stranger(life) => Some(life),
                Peer::Mute => std::future::pending().await,
            };
            Ok(Greeted { stream, service: hyper::service::service_fn(answer), life })
        });
        greeting
    };
    let serving = serve_http(host.clone(), listener, port, greet);
    let serving = host.tasks.spawn(TaskKind::Background("port"), Box::pin(serving));
    (host, serving)
}

async fn send(host: &Host, text: &str) -> Box<dyn Connection> {
    let mut stream = host.network.connect("port").await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

async fn ask(host: &Host, path: &str) -> Box<dyn Connection> {
    send(host, &format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")).await
}

/// Reads `bytes` every `pause`, until nothing more comes.
async fn read_slowly(mut stream: Box<dyn Connection>, bytes: usize, pause: Duration) -> usize {
    let (mut buffer, mut count) = (vec![0; bytes], 0);
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        count += read;
        tokio::time::sleep(pause).await;
    }
    count
}

/// The seconds until a healthy peer has had its answer.
async fn served_after(host: &Host) -> u64 {
    let begun = Instant::now();
    assert!(read_slowly(ask(host, "/").await, 8192, Duration::ZERO).await > BODY_BYTES);
    begun.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn who_takes_nothing_of_its_answer_is_cut() {
    let (host, _serving) = start(PORT, Peer::Member).await;
    let _stalled = ask(&host, "/").await;
    assert_eq!(served_after(&host).await, 30);
}

#[tokio::test(start_paused = true)]
async fn who_takes_its_answer_in_drops_is_cut() {
    let (host, _serving) = start(PORT, Peer::Member).await;
    // 500 bytes a second, never silent for long
    let dripping = read_slowly(ask(&host, "/").await, 10_000, Duration::from_secs(20));
    let (read, seconds) = tokio::join!(dripping, served_after(&host));
    assert!(read < BODY_BYTES / 2, "{read}");
    assert!((60..=180).contains(&seconds), "{seconds}");
}

#[tokio::test(start_paused = true)]
async fn who_is_slow_but_alive_gets_all_of_its_answer() {
    let (host, _serving) = start(PORT, Peer::Member).await;
    // 1.2 KiB a second for a quarter of an hour
    let slow = read_slowly(ask(&host, "/").await, 12_288, Duration::from_secs(10));
    assert!(slow.await > BODY_BYTES);
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_or_half_a_head_is_let_go() {
    for text in ["", "PRI", "GET / HTTP/1.1\r\nhost: h\r\n"] {
        let (host, _serving) = start(PORT, Peer::Member).await;
        let _silent = send(&host, text).await;
        assert_eq!(served_after(&host).await, 60, "{text:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_end_its_handshake_is_let_go() {
    let (host, _serving) = start(PORT, Peer::Mute).await;
    let mut first = send(&host, "").await;
    let begun = Instant::now();
    assert_eq!(first.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(begun.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_stranger_keeps_no_place() {
    let (host, _serving) = start(PORT, Peer::Stranger(Duration::from_secs(7))).await;
    let _busy = ask(&host, "/hang").await;
    assert_eq!(served_after(&host).await, 7);
}

#[test]
fn each_cut_is_counted_with_its_reason() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let cuts = async {
        let (host, _serving) = start(PORT, Peer::Member).await;
        let _stalled = ask(&host, "/").await;
        served_after(&host).await;
        let _silent = send(&host, "").await;
        served_after(&host).await;
    };
    metrics::with_local_recorder(&recorder, || runtime.unwrap().block_on(cuts));
    let page = recorder.handle().render();
    for reason in ["stalled answer", "head"] {
        let line = format!("ashlar_port_cut_total{{port=\"test\",reason=\"{reason}\"}} 1");
        assert!(page.contains(&line), "{page}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_open_requests_and_not_for_ever() {
    let (host, serving) = start(HttpPort { connections_max: 2, ..PORT }, Peer::Member).await;
    let mut hanging = ask(&host, "/hang").await;
    // this one takes its answer while the port stops
    let slow = read_slowly(ask(&host, "/").await, 8192, Duration::from_millis(10));
    let stop = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        host.shutdown.request();
        let begun = Instant::now();
        assert!(serving.join().await);
        begun.elapsed().as_secs()
    };
    let (read, seconds) = tokio::join!(slow, stop);
    assert!(read > BODY_BYTES, "an open request is finished: {read}");
    assert_eq!(seconds, 3);
    assert_eq!(hanging.read(&mut [0]).await.unwrap(), 0, "what is left is cut");
}
