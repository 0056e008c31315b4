//! What a small request costs in this crate: from a parsed head to an answer, over a backend in memory, in CPU time.
//!
//! `cargo bench -p ashlar-s3 --bench request`

#![expect(clippy::print_stdout, reason = "a bench reports to its terminal")]
#![expect(clippy::disallowed_methods, reason = "a bench reads the CPU time of its thread")]

#[path = "../tests/support/mod.rs"]
mod support;

use http_body_util::BodyExt as _;
use support::{Call, Client, Form, call, new_client, sign};

const REQUESTS: u32 = 4000;
const ROUNDS: usize = 5;

/// Nanoseconds that this thread has run.
fn cpu_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells it");
    stat.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a number of nanoseconds")
}

/// The best of some rounds, in microseconds a request.
async fn measure(client: &Client, name: &str, call: impl Fn(u32) -> Call) {
    let mut best = u64::MAX;
    for _ in 0..ROUNDS {
        let requests: Vec<_> = (0..REQUESTS).map(|at| sign(&call(at))).collect();
        let begun = cpu_ns();
        for request in requests {
            let answer = Box::pin(client.service.call(request)).await;
            assert!(answer.status().is_success(), "{name}: {}", answer.status());
            let body = answer.into_body().collect().await;
            assert!(body.is_ok(), "{name}: the body broke off");
        }
        best = best.min(cpu_ns() - begun);
    }
    println!("{name:28} {:6.1} us", best as f64 / f64::from(REQUESTS) / 1000.0);
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("the system gives a runtime").block_on(async {
        let client = new_client();
        client.send(call("PUT", "/bkt")).await.is(200);
        let put = |at: u32| call("PUT", &format!("/bkt/key-{at}")).body(vec![7; 4096]);
        measure(&client, "put 4 KiB, unsigned payload", |at| put(at).form(Form::Unsigned)).await;
        measure(&client, "put 4 KiB, hashed payload", put).await;
        let get = |at| call("GET", &format!("/bkt/key-{at}")).form(Form::Unsigned);
        measure(&client, "get 4 KiB", get).await;
        measure(&client, "head", |at| get(at).with(|call| call.method = "HEAD".into())).await;
    });
}
