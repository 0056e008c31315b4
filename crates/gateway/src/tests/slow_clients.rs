//! S5: clients that hold what they have asked for do not hold the gateway. In memory, under paused time.

use super::support::{Call, call, sign};
use super::{Client, Fake, client_of, gateway_on, talk};
use crate::serve;
use ashlar_host::{Connection, Host, MemoryNetwork, TaskKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

const MIB: usize = 1 << 20;

/// A gateway with a port and a bucket.
async fn start() -> (Host, Fake, Client) {
    let host = Host::real().with_network(Arc::new(MemoryNetwork::new(64 * 1024)));
    let listener = host.network.listen("s3").await.unwrap();
    let cluster = Fake::default();
    let gateway = gateway_on(&host, &cluster);
    let client = client_of(gateway.service.clone());
    client.send(call("PUT", "/bkt")).await.is(200);
    let serving = serve(host.clone(), listener, None, gateway);
    let _serving = host.tasks.spawn(TaskKind::Background("port"), Box::pin(serving));
    (host, cluster, client)
}

/// Sends the head of a request.
async fn send_head(host: &Host, call: &Call) -> Box<dyn Connection> {
    let request = sign(call);
    let mut text = format!("{} {} HTTP/1.1\r\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        text.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
    }
    let mut stream = host.network.connect("s3").await.unwrap();
    stream.write_all(format!("{text}\r\n").as_bytes()).await.unwrap();
    stream
}

/// Sends `body` in pieces, one every `pause`; ends where the gateway takes no more.
async fn send_slowly(
    host: &Host,
    stream: &mut (impl AsyncWrite + Unpin),
    body: &[u8],
    piece: usize,
    pause: Duration,
) {
    for piece in body.chunks(piece) {
        host.clock.sleep(pause).await;
        if stream.write_all(piece).await.is_err() {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn readers_that_stop_are_cut_and_their_memory_serves_others() {
    let (host, _cluster, client) = start().await;
    client.send(call("PUT", "/bkt/large").body(vec![7; 5 * MIB])).await.is(200);
    let mut stalled = Vec::new();
    // as many as the admission has room for
    for _ in 0..32 {
        let mut stream = send_head(&host, &call("GET", "/bkt/large")).await;
        assert_eq!(stream.read_u8().await.unwrap(), b'H', "it is being answered");
        stalled.push(stream);
    }
    let begun = host.clock.now();
    client.get("/bkt/large").await.is_error(503, "SlowDown");
    while client.get("/bkt/large").await.status == 503 {
        assert!(
            (host.clock.now() - begun) < Duration::from_secs(60),
            "the memory never comes back"
        );
    }
    assert_eq!((host.clock.now() - begun).as_secs(), 30);
    assert_eq!(client.get("/bkt/large").await.is(200).body.len(), 5 * MIB);
    let mut rest = Vec::new();
    stalled[0].read_to_end(&mut rest).await.unwrap();
    assert!(rest.len() < MIB, "the connection was cut");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_or_trickles_is_refused_and_nothing_is_stored() {
    let put = call("PUT", "/bkt/k").body(vec![7; MIB]);
    // silent; and 200 bytes a second
    for (pause, seconds) in [(1000, 30..31), (10, 60..91)] {
        let (host, cluster, _client) = start().await;
        let begun = host.clock.now();
        let mut stream = send_head(&host, &put).await;
        let (mut reader, mut writer) = tokio::io::split(&mut stream);
        let sending = send_slowly(&host, &mut writer, &put.body, 2000, Duration::from_secs(pause));
        let answered = async {
            let mut text = String::new();
            let _reset = reader.read_to_string(&mut text).await;
            text
        };
        let text = tokio::select! {
            text = answered => text,
            () = sending => panic!("all of the body was taken"),
        };
        assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
        assert!(text.contains("<Code>RequestTimeout</Code>"), "{text}");
        assert!(
            seconds.contains(&(host.clock.now() - begun).as_secs()),
            "{:?}",
            (host.clock.now() - begun)
        );
        let state = cluster.state();
        assert_eq!((state.begun, state.finished, state.dropped, state.executed), (1, 0, 1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_comes_slowly_but_above_the_rate_is_stored() {
    let (host, cluster, client) = start().await;
    let put = call("PUT", "/bkt/k").body(vec![7; MIB]).header("connection", "close");
    let mut stream = send_head(&host, &put).await;
    let begun = host.clock.now();
    // 1.2 KiB a second
    send_slowly(&host, &mut stream, &put.body, 12_288, Duration::from_secs(10)).await;
    let text = talk(&mut stream, "", "\r\n\r\n").await;
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    assert!((host.clock.now() - begun) > Duration::from_secs(800));
    assert_eq!(client.get("/bkt/k").await.is(200).body.len(), MIB);
    assert_eq!(cluster.state().dropped, 0);
}

/// botocore takes the status of an answer that came instead of `100 Continue` for that of the next one, too.
#[tokio::test(start_paused = true)]
async fn a_connection_ends_where_a_client_expects_to_send_nothing() {
    let (host, _cluster, _client) = start().await;
    let expecting = |key: &str, body: &[u8]| {
        call("PUT", &format!("/bkt/{key}")).body(body).header("expect", "100-continue")
    };
    let mut stream = send_head(&host, &expecting("nothing", b"")).await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");

    let mut stream = send_head(&host, &expecting("something", b"x")).await;
    let mut head = [0; 25];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"x").await.unwrap();
    let mut status = [0; 15];
    stream.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200 OK");
}
