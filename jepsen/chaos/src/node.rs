//! One node: a process of the program under test, in a network namespace and on a disk image of its own.
//!
//! With `--local` it has neither: a process on loopback with a directory.

use crate::switch::MTU;
use anyhow::{Context, Result, bail, ensure};
use ashlar::config::NodeConfig;
use ashlar_load::{Call, Client, Credentials};
use ashlar_powercut::machine::{attach, detach, run, shut_down, umount};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::process::Child;

const IMAGE_BYTES: u64 = 2 << 30;
/// A dev build that recovers on a busy machine is ready well before.
const READY_PATIENCE: Duration = Duration::from_secs(90);
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// What a node stands on.
pub(crate) struct Ground {
    /// Its network namespace.
    pub(crate) namespace: String,
    /// Its disk image, and the loop device of it.
    pub(crate) image: PathBuf,
    pub(crate) device: PathBuf,
    /// Sectors of the device.
    pub(crate) sector_bytes: usize,
    /// Its cgroup of the controller blkio, where this machine has it.
    pub(crate) cgroup: Option<PathBuf>,
}

/// A node.
pub(crate) struct Node {
    /// What it was told.
    pub(crate) config: NodeConfig,
    /// Where everything of it lies: the mount of its image.
    pub(crate) home: PathBuf,
    /// What it stands on; none with `--local`.
    pub(crate) ground: Option<Ground>,
    /// Its log.
    pub(crate) log: PathBuf,
    /// The file that says what time it is.
    pub(crate) clock: PathBuf,
    binary: PathBuf,
    credentials: Credentials,
    child: Option<Child>,
}

impl Node {
    /// A node that was laid out and does not run.
    pub(crate) fn new(
        config: NodeConfig,
        home: PathBuf,
        ground: Option<Ground>,
        results: &Path,
        binary: &Path,
        credentials: Credentials,
    ) -> Self {
        let name = config.name();
        Self {
            log: results.join(format!("{name}.log")),
            clock: results.join(format!("{name}.clock")),
            config,
            home,
            ground,
            binary: binary.to_owned(),
            credentials,
            child: None,
        }
    }

    /// What people call it.
    pub(crate) fn name(&self) -> String {
        self.config.name()
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Result<u32> {
        let pid = self.child.as_ref().and_then(Child::id);
        pid.with_context(|| format!("{} does not run", self.name()))
    }

    /// Whether its process is there; what was seen of a process that ended by itself.
    pub(crate) fn ended(&mut self) -> Option<String> {
        let child = self.child.as_mut()?;
        let status = child.try_wait().ok().flatten()?;
        Some(format!("{} ended by itself with {status}", self.name()))
    }

    /// Starts its process.
    pub(crate) fn start(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = match &self.ground {
            Some(ground) => {
                let mut command = tokio::process::Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{}", ground.namespace)).arg(&self.binary);
                command
            }
            None => tokio::process::Command::new(&self.binary),
        };
        if can_fake_time() {
            std::fs::write(&self.clock, "+0")?;
            command
                .env("LD_PRELOAD", FAKETIME)
                .env("FAKETIME_TIMESTAMP_FILE", &self.clock)
                .env("FAKETIME_NO_CACHE", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let child = command
            .args(["server", "--config"])
            .arg(self.home.join("node.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", self.name()))?;
        if let (Some(pid), Some(cgroup)) =
            (child.id(), self.ground.as_ref().and_then(|ground| ground.cgroup.as_ref()))
        {
            std::fs::write(cgroup.join("cgroup.procs"), pid.to_string())?;
        }
        self.child = Some(child);
        Ok(())
    }

    /// Waits until it says that it is ready.
    pub(crate) async fn wait_ready(&mut self) -> Result<()> {
        let began = Instant::now();
        let client = self.admin();
        loop {
            if let Some(end) = self.ended() {
                bail!("{end}: see {}", self.log.display());
            }
            let call =
                Call::new(http::Method::GET, "health", "ready").within(Duration::from_secs(2));
            let said = match client.send(call).await {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => String::from_utf8_lossy(&answer.body).into_owned(),
                Err(trouble) => trouble.to_string(),
            };
            ensure!(began.elapsed() < READY_PATIENCE, "{} is not ready: {said}", self.name());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The client of its admin port.
    pub(crate) fn admin(&self) -> Client {
        let address = format!("http://{}", self.config.admin.listen);
        Client::new(&[address], self.credentials.clone())
    }

    /// SIGKILL; says what was seen.
    pub(crate) async fn kill(&mut self) -> Result<String> {
        let Some(mut child) = self.child.take() else { bail!("{} does not run", self.name()) };
        let pid = child.id().unwrap_or_default();
        child.start_kill()?;
        let status = child.wait().await?;
        Ok(format!("process {pid} of {} ended with {status}", self.name()))
    }

    /// SIGTERM, and waits until it has stopped.
    pub(crate) async fn stop(&mut self) -> Result<String> {
        self.signal(Signal::TERM)?;
        let Some(mut child) = self.child.take() else { bail!("{} does not run", self.name()) };
        let began = Instant::now();
        let status = tokio::time::timeout(READY_PATIENCE, child.wait())
            .await
            .with_context(|| format!("{} does not stop", self.name()))??;
        Ok(format!(
            "{} stopped with {status} after {:.1} s",
            self.name(),
            began.elapsed().as_secs_f64()
        ))
    }

    /// SIGSTOP; says what was seen.
    pub(crate) async fn pause(&self) -> Result<String> {
        self.signal(Signal::STOP)?;
        let pid = self.pid()?;
        let began = Instant::now();
        while !std::fs::read_to_string(format!("/proc/{pid}/stat"))?.contains(") T ") {
            ensure!(began.elapsed() < READY_PATIENCE, "process {pid} does not stop");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(format!("process {pid} is stopped"))
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()?).ok().and_then(Pid::from_raw).context("no process")?;
        kill_process(pid, signal).with_context(|| format!("signalling {}", self.name()))
    }

    /// The file system forgets what was not synced and fails from now on; says what was seen.
    pub(crate) fn lose_power(&self) -> Result<String> {
        ensure!(self.ground.is_some(), "a power cut needs a disk image");
        shut_down(&self.home)?;
        let refused = File::create(self.home.join("probe")).err();
        let refused = refused.context("the file system still takes writes after its shutdown")?;
        Ok(format!("the file system of {} says: {refused}", self.name()))
    }

    /// The power is back: the file system is mounted again. Its process must be gone.
    pub(crate) fn regain_power(&mut self) -> Result<()> {
        let ground = self.ground.as_mut().context("a power cut needs a disk image")?;
        umount(&self.home)?;
        detach(&ground.device)?;
        ground.device = attach(&ground.image, ground.sector_bytes)?;
        run(Command::new("mount").arg(&ground.device).arg(&self.home)).map(drop)
    }
}

/// Whether the clock of a process can be changed.
pub(crate) fn can_fake_time() -> bool {
    Path::new(FAKETIME).exists()
}

/// Makes a host: a namespace with a device of the switch in it, and a file system.
pub(crate) fn make_ground(
    dir: &Path,
    name: &str,
    number: usize,
    tun: &str,
    pid: u32,
) -> Result<Ground> {
    let namespace = format!("{}{pid}-{name}", crate::NAMESPACE_PREFIX);
    run(Command::new("ip").args(["netns", "add", &namespace]))?;
    run(Command::new("ip").args(["link", "set", tun, "netns", &namespace]))?;
    let inside = |words: &[&str]| run(Command::new("ip").args(["-n", &namespace]).args(words));
    inside(&["link", "set", "lo", "up"])?;
    inside(&["addr", "add", &format!("{}/24", crate::address(number)), "dev", tun])?;
    inside(&["link", "set", tun, "mtu", &MTU.to_string(), "up"])?;
    let (image, home) = (dir.join(format!("{name}.image")), dir.join(name));
    std::fs::create_dir_all(&home)?;
    File::create(&image)?.set_len(IMAGE_BYTES)?;
    let is_xfs = number % 2 == 1 && ashlar_powercut::machine::has("mkfs.xfs");
    let sector_bytes = if is_xfs { 4096 } else { 512 };
    let device = attach(&image, sector_bytes)?;
    if is_xfs {
        run(Command::new("mkfs.xfs").args(["-q", "-f"]).arg(&device))?;
    } else {
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&device))?;
    }
    run(Command::new("mount").arg(&device).arg(&home))?;
    let cgroup = Path::new("/sys/fs/cgroup/blkio").join(&namespace);
    let cgroup = std::fs::create_dir(&cgroup).is_ok().then_some(cgroup);
    Ok(Ground { namespace, image, device, sector_bytes, cgroup })
}
