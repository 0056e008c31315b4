//! S3 over a backend in memory, for trying real clients: `cargo run -p ashlar-s3 --example memory -- 127.0.0.1:9000`.
//!
//! Access key `AKIATEST`, secret `secret`, region `us-east-1`.

#[path = "../tests/support/memory.rs"]
mod memory;

use ashlar_host::{Host, TaskKind};
use ashlar_s3::{Credentials, S3Config, SecretKey, service};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::sync::Arc;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let host = Host::real();
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9000".into());
    let listener = host.network.listen(&address).await?;
    let random = host.random.clone();
    let config = S3Config {
        region: "us-east-1".into(),
        domains: vec!["localhost".into()],
        owner: "example".into(),
        credentials: Arc::new(Credentials::single("AKIATEST", SecretKey::new("secret"))),
        random: Arc::new(move || random.next_u128()),
    };
    let service = service(Arc::new(memory::Memory::default()), config);
    loop {
        let (stream, _) = listener.accept().await?;
        let service = service.clone();
        let answer = hyper::service::service_fn(move |request| {
            let service = service.clone();
            async move { Ok::<_, Infallible>(service.call(request).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), answer);
        let serving = Box::pin(async move { drop(connection.await) });
        let _task = host.tasks.spawn(TaskKind::Request("example"), serving);
    }
}
