//! The example configurations of `cluster/dev/three-nodes`, started as they stand.

use crate::cluster::Ground;
use anyhow::{Context, Result, ensure};
use ashlar_load::{Call, Client, Content, Credentials, Payload, Verifier};
use futures::future::try_join_all;
use http::Method;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const READY_PATIENCE: Duration = Duration::from_secs(60);
const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
const ENDPOINTS: [&str; 3] =
    ["http://127.0.0.1:9511", "http://127.0.0.1:9512", "http://127.0.0.1:9513"];
/// Both halves of the root key: an example has no secret.
const KEY: &str = "example-key-example-key";

/// Three founders become one cluster, and each gateway reads what another one wrote.
pub(crate) async fn the_example_cluster_starts(ground: &Ground) -> Result<String> {
    let _unless_none = std::fs::remove_dir_all(&ground.dir);
    std::fs::create_dir_all(&ground.dir)?;
    let mut children = Vec::new();
    for node in NODES {
        children.push(start(ground, node)?);
    }
    try_join_all(children.iter_mut().map(ready)).await?;
    let credentials =
        Credentials { access_key: KEY.into(), secret_key: KEY.into(), region: "us-east-1".into() };
    let client = Client::new(&ENDPOINTS.map(str::to_owned), credentials);
    client.create_bucket("example").await?;
    for gateway in 0..NODES.len() {
        let key = format!("by-{gateway}");
        let content = Content::of_key(&key, 1, 300_000);
        client
            .expect(
                Call::new(Method::PUT, "example", &key)
                    .payload(Payload::Content(content))
                    .through(gateway),
            )
            .await?;
        let other = Call::new(Method::GET, "example", &key).through(gateway + 1);
        client.verify(other, Verifier::whole(content)).await?;
    }
    for mut child in children {
        child.kill().await?;
    }
    Ok("three founders, each gateway reads what another one wrote".into())
}

fn start(ground: &Ground, node: &str) -> Result<Child> {
    let example: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../cluster/dev/three-nodes")
        .join(format!("{node}.toml"));
    let config = ground.dir.join(format!("{node}.toml"));
    std::fs::copy(&example, &config).with_context(|| format!("copying {}", example.display()))?;
    // The examples name their directories relative to where the server is started.
    Command::new(&ground.binary)
        .args(["server", "--config", &format!("{node}.toml")])
        .current_dir(&ground.dir)
        .env("ASHLAR_ROOT_ACCESS_KEY", KEY)
        .env("ASHLAR_ROOT_SECRET_KEY", KEY)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::from(File::create(ground.dir.join(format!("{node}.log")))?))
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting {node}"))
}

/// Waits until the node has printed that it is ready.
async fn ready(child: &mut Child) -> Result<()> {
    let mut lines = BufReader::new(child.stdout.take().context("its output is piped")?).lines();
    let said = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains("ready") {
                return Ok::<bool, anyhow::Error>(true);
            }
        }
        Ok(false)
    };
    let is_ready = tokio::time::timeout(READY_PATIENCE, said)
        .await
        .context("a node is not ready in time")??;
    ensure!(is_ready, "a node ended before it was ready");
    Ok(())
}
