//! A demo cluster of real processes: started, its plugs pulled and put back, ended by pid only.

use anyhow::{Context, Result, bail, ensure};
use ashlar_load::demo::{Demo, Node};
use ashlar_load::{Call, Client, process};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// A dev build on a busy machine starts well within this; the 2 s of the contract are measured, not enforced, here.
const READY_PATIENCE: Duration = Duration::from_secs(60);

/// Between two tries of a split.
const SPLIT_POLL: Duration = Duration::from_millis(200);

/// Where a scenario's cluster is laid out.
pub(crate) struct Ground {
    /// The program under test.
    pub(crate) binary: PathBuf,
    /// Everything the scenario leaves.
    pub(crate) dir: PathBuf,
    /// The first gateway's port.
    pub(crate) port: u16,
}

impl Ground {
    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Drops the cluster's directories; logs and histories stay.
    pub(crate) fn remove_data(&self) {
        let _unless_gone = std::fs::remove_dir_all(self.data());
    }
}

/// A running demo.
pub(crate) struct Cluster {
    demo: Demo,
    binary: PathBuf,
    dir: PathBuf,
    parent: Child,
    /// How long it took until it was ready.
    pub(crate) started_in: Duration,
}

impl Cluster {
    /// Starts an empty cluster.
    pub(crate) async fn start(ground: &Ground) -> Result<Self> {
        let _unless_none = std::fs::remove_dir_all(&ground.dir);
        std::fs::create_dir_all(&ground.dir)?;
        let dir = std::path::absolute(ground.data())?;
        let log = File::create(ground.dir.join("demo.log"))?;
        let began = Instant::now();
        let mut parent = Command::new(&ground.binary)
            .args(["demo", "--processes", "--json", "--dir"])
            .arg(&dir)
            .args(["--port", &ground.port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::from(log))
            .spawn()
            .context("cannot start the demo")?;
        let mut lines = BufReader::new(parent.stdout.take().expect("its output is piped")).lines();
        let line = tokio::time::timeout(READY_PATIENCE, lines.next_line())
            .await
            .context("the demo is not ready")??;
        let line = line.with_context(|| {
            format!("the demo ended at once: see {}/demo.log", ground.dir.display())
        })?;
        let demo = Demo::parse(&line).with_context(|| format!("the demo printed {line:?}"))?;
        Ok(Self { demo, binary: ground.binary.clone(), dir, parent, started_in: began.elapsed() })
    }

    /// A client of all gateways.
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.demo.endpoints, self.demo.credentials())
    }

    /// All nodes, as they were last known.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.demo.nodes
    }

    /// The names of the nodes for which a condition holds.
    pub(crate) fn names(&self, condition: impl Fn(&Node) -> bool) -> Vec<String> {
        self.demo
            .nodes
            .iter()
            .filter(|node| condition(node))
            .map(|node| node.name.clone())
            .collect()
    }

    /// Pulls a node's plug as a user would; says what was seen of its process then.
    pub(crate) async fn kill(&mut self, name: &str) -> Result<String> {
        let pid = self.node(name)?.pid;
        self.command(&["kill", name]).await?;
        self.refresh()?;
        gone(pid).await
    }

    /// Plugs a node in again and waits until it serves; says how long that took.
    pub(crate) async fn restart(&mut self, name: &str) -> Result<Duration> {
        let began = Instant::now();
        self.command(&["start", name, "--json"]).await?;
        self.refresh()?;
        Ok(began.elapsed())
    }

    /// Splits the range that has a key, before it; asked of a node that runs.
    pub(crate) async fn split(&self, bucket: &str, key: &str) -> Result<()> {
        let node = self.demo.nodes.iter().find(|node| node.pid != 0).context("no node runs")?;
        let began = Instant::now();
        loop {
            let asked = Command::new(&self.binary)
                .args(["range", "split", "--bucket", bucket, "--key", key, "--member"])
                .arg(&node.config)
                .stdin(Stdio::null())
                .output()
                .await?;
            let why = String::from_utf8_lossy(&asked.stderr);
            if asked.status.success() {
                return Ok(());
            }
            // the one before it leaves rows to be removed; and leaders change
            let passes = ["last split yet", "unavailable", "did not answer", "not known"];
            if !passes.iter().any(|reason| why.contains(reason)) {
                // of a first try whose answer was lost
                let is_there =
                    why.contains("cannot be split there") && began.elapsed() > SPLIT_POLL;
                ensure!(is_there, "{bucket} was not split before {key}: {why}");
                return Ok(());
            }
            ensure!(began.elapsed() < READY_PATIENCE, "no split before {key}: {why}");
            tokio::time::sleep(SPLIT_POLL).await;
        }
    }

    /// SIGKILL to every node, one right behind the other: which processes that were.
    pub(crate) fn kill_all(&self) -> Result<Vec<u32>> {
        let pids = self.demo.pids();
        pids.iter().try_for_each(|pid| signal(*pid, Signal::KILL))?;
        Ok(pids)
    }

    /// Waits until killed processes are gone; says what was seen of them.
    pub(crate) async fn all_gone(&self, pids: Vec<u32>) -> Result<String> {
        for pid in &pids {
            gone(*pid).await?;
        }
        Ok(format!("all {} processes are gone", pids.len()))
    }

    /// Plugs all nodes in again and waits until all serve. The next one is started as soon as the last one has its
    /// process, because none can serve before a quorum of them runs.
    pub(crate) async fn restart_all(&mut self) -> Result<Duration> {
        let began = Instant::now();
        let mut starting = Vec::new();
        for node in self.demo.nodes.clone() {
            starting.push((node.name.clone(), self.spawn(&["start", &node.name, "--json"])?));
            while self
                .reload()?
                .nodes
                .iter()
                .any(|now| now.name == node.name && now.pid == node.pid)
            {
                if began.elapsed() > READY_PATIENCE {
                    bail!("{} got no new process", node.name);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        for (name, child) in starting {
            let output = child.wait_with_output().await?;
            if !output.status.success() {
                bail!("starting {name}: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        self.refresh()?;
        Ok(began.elapsed())
    }

    /// Stops a node's process in its tracks (SIGSTOP); says what was seen of it then.
    pub(crate) async fn pause(&self, name: &str) -> Result<String> {
        let pid = self.node(name)?.pid;
        signal(pid, Signal::STOP)?;
        reached(pid, Some('T')).await?;
        Ok(format!("process {pid} is stopped"))
    }

    /// Lets it go on (SIGCONT).
    pub(crate) fn resume(&self, name: &str) -> Result<()> {
        signal(self.node(name)?.pid, Signal::CONT)
    }

    /// The sum of a counter over all nodes that answer, and all its labels.
    pub(crate) async fn counter(&self, name: &str) -> Result<f64> {
        let client = Client::new(&self.demo.admin, self.demo.credentials());
        let mut sum = 0.0;
        for node in 0..self.demo.admin.len() {
            let call = Call::new(http::Method::GET, "metrics", "")
                .through(node)
                .within(Duration::from_secs(5));
            if let Ok(answer) = client.send(call).await {
                sum += sum_of(&String::from_utf8_lossy(&answer.body), name);
            }
        }
        Ok(sum)
    }

    /// Every node's own sum of a counter, in the order of the nodes.
    pub(crate) async fn counter_of_each(&self, name: &str) -> Result<Vec<f64>> {
        let client = Client::new(&self.demo.admin, self.demo.credentials());
        let mut sums = Vec::new();
        for node in 0..self.demo.admin.len() {
            let answer =
                client.expect(Call::new(http::Method::GET, "metrics", "").through(node)).await?;
            sums.push(sum_of(&String::from_utf8_lossy(&answer.body), name));
        }
        Ok(sums)
    }

    /// A node by its name.
    pub(crate) fn node(&self, name: &str) -> Result<&Node> {
        self.demo
            .nodes
            .iter()
            .find(|node| node.name == name)
            .with_context(|| format!("no node {name}"))
    }

    fn refresh(&mut self) -> Result<()> {
        self.demo = self.reload()?;
        Ok(())
    }

    fn reload(&self) -> Result<Demo> {
        Demo::from_file(&self.dir.join("demo.json"))
    }

    fn spawn(&self, verb: &[&str]) -> Result<Child> {
        let child = Command::new(&self.binary)
            .arg("demo")
            .args(verb)
            .arg("--dir")
            .arg(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(child)
    }

    async fn command(&self, verb: &[&str]) -> Result<()> {
        let output = self.spawn(verb)?.wait_with_output().await?;
        if !output.status.success() {
            bail!("demo {}: {}", verb.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

impl Drop for Cluster {
    /// Ends all its processes, by pid: those it knows, and those that `demo start` has begun since.
    fn drop(&mut self) {
        let _unless_damaged = self.refresh();
        for pid in self.demo.pids().into_iter().filter(|pid| is_node_of(*pid, &self.dir)) {
            let _unless_ended = signal(pid, Signal::KILL);
        }
        let _unless_ended = self.parent.start_kill();
    }
}

/// Whether a process is a node of the cluster in this directory: a pid may have been reused since.
fn is_node_of(pid: u32, dir: &std::path::Path) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&command).contains(&*dir.to_string_lossy())
}

/// Waits until a process is dead: gone, or waiting only for its parent to take note.
async fn gone(pid: u32) -> Result<String> {
    reached(pid, None).await?;
    Ok(format!("process {pid} is gone"))
}

/// Waits until a process is in a state of `/proc`, or dead for none.
async fn reached(pid: u32, wanted: Option<char>) -> Result<()> {
    let began = Instant::now();
    while state_of(pid) != wanted {
        if began.elapsed() > READY_PATIENCE {
            bail!("process {pid} does not become {wanted:?}: it is {:?}", state_of(pid));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// A process's state as `/proc` shows it; none when it is dead.
fn state_of(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it is in parentheses and may contain anything.
    let state = stat.rsplit_once(") ")?.1.chars().next()?;
    (!matches!(state, 'Z' | 'X')).then_some(state)
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("0 is no process")?;
    kill_process(pid, signal)
        .with_context(|| format!("signalling process {}", pid.as_raw_nonzero()))
}

/// The sum of all series of a metric in Prometheus' text form.
fn sum_of(text: &str, name: &str) -> f64 {
    let series = text.lines().filter_map(|line| line.strip_prefix(name));
    let values = series
        .filter(|rest| rest.starts_with(['{', ' ']))
        .filter_map(|rest| rest.rsplit(' ').next());
    values.filter_map(|value| value.parse::<f64>().ok()).sum()
}

/// Follows a process's resident memory while something runs; says by how many bytes it grew at most.
pub(crate) async fn growth_of(
    pids: &[u32],
    work: impl Future<Output = Result<()>>,
) -> Result<Vec<u64>> {
    let resident = |pid: &u32| process::resident_bytes(*pid).unwrap_or(0);
    let before: Vec<u64> = pids.iter().map(resident).collect();
    let mut highest = before.clone();
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => break done?,
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
        for (high, pid) in highest.iter_mut().zip(pids) {
            *high = (*high).max(resident(pid));
        }
    }
    Ok(highest.iter().zip(&before).map(|(high, before)| high - before).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_summed_over_its_labels_and_not_over_longer_names() {
        let text = "# TYPE a_total counter\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3.5\na_total_other 7\nb 1\n";
        assert_eq!(sum_of(text, "a_total"), 5.5);
    }
}
