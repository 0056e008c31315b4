//! Nodes as processes: started, watched, signalled. A process id is believed only while its command line names the
//! node's configuration, so that a reused id is never signalled.

use crate::demo::{DemoFacts, DemoNode};
use anyhow::{Context, Result, bail};
use ashlar_host::Host;
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

const POLL_EVERY: Duration = Duration::from_millis(20);
const STOP_PATIENCE: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Starts a node in a process group of its own; its log goes beside its configuration.
pub fn spawn(config: &Path) -> Result<Child> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let log = open_log(&config.with_file_name("log.txt"))?;
    Command::new(program)
        .arg("server")
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::from(log.try_clone()?))
        .stderr(Stdio::from(log))
        .process_group(0)
        .spawn()
        .context("cannot start a process")
}

#[expect(
    clippy::disallowed_types,
    reason = "a child process writes its own log: it needs a file descriptor"
)]
fn open_log(path: &Path) -> Result<std::fs::File> {
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
    opened.with_context(|| format!("cannot write the log {}", path.display()))
}

/// Whether process `pid` is the node with this configuration, or a demo that has all its nodes inside.
#[expect(
    clippy::disallowed_methods,
    reason = "the process table of this machine, not a file of ours"
)]
pub fn runs(pid: u32, config: &Path) -> bool {
    if pid == std::process::id() {
        return true;
    }
    let Ok(command) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let config = config.as_os_str().as_encoded_bytes();
    pid != 0 && command.split(|&byte| byte == 0).any(|word| word == config || word == b"demo")
}

/// Pulls its plug.
pub fn kill(pid: u32) -> Result<()> {
    signal(pid, Signal::KILL)
}

/// Asks it to stop.
pub fn terminate(pid: u32) -> Result<()> {
    signal(pid, Signal::TERM)
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid)?).context("0 is no process")?;
    kill_process(pid, signal).context("cannot signal the process")
}

/// Waits until none of the nodes runs.
pub async fn wait_ended(host: &Host, facts: &DemoFacts) -> Result<()> {
    let deadline = host.clock.now() + STOP_PATIENCE;
    while facts.nodes.iter().any(|node| runs(node.pid, &node.config)) {
        if host.clock.now() > deadline {
            bail!("a node did not stop within {} s", STOP_PATIENCE.as_secs());
        }
        host.clock.sleep(POLL_EVERY).await;
    }
    Ok(())
}

/// Waits until the node's admin port says that it is ready.
pub async fn wait_ready(
    host: &Host,
    node: &DemoNode,
    admin: &str,
    patience: Duration,
) -> Result<()> {
    let address = admin.trim_start_matches("http://");
    let deadline = host.clock.now() + patience;
    let mut last = "it did not answer".to_owned();
    while host.clock.now() < deadline {
        if !runs(node.pid, &node.config) {
            bail!(
                "{} ended while it started: {} tells why",
                node.name,
                node.config.with_file_name("log.txt").display()
            );
        }
        match ask_ready(host, address).await {
            Ok((200, _)) => return Ok(()),
            Ok((_, reasons)) => last = reasons,
            Err(error) => last = error.to_string(),
        }
        host.clock.sleep(POLL_EVERY).await;
    }
    bail!("{} was not ready within {} s: {last}", node.name, patience.as_secs());
}

async fn ask_ready(host: &Host, address: &str) -> Result<(u16, String)> {
    let mut stream = host.network.connect(address).await?;
    let request =
        format!("GET /health/ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).await?;
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .context("not an HTTP answer")?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}
