//! The machines as clients, nemeses and the run share them.
//!
//! The mutex is held for moments only: a fault takes its machine out, works on it, and puts it back, so that nobody
//! else does anything to it meanwhile.

use crate::machines::{Door, Machine, Machines};
use crate::record::Recorder;
use anyhow::{Context, Result, bail};
use ashlar::node::RunningNode;
use ashlar_client::Client;
use ashlar_host::{CutStyle, DiskConduct, Fabric, SimDisk, WallSkew};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

/// How long a node may take from its boot to the end of its start: no node waits for another one there.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// A clone is the same world.
#[derive(Clone)]
pub(crate) struct World(Arc<Inner>);

struct Inner {
    fabric: Fabric,
    addresses: Vec<IpAddr>,
    machines: Vec<Mutex<Option<Machine>>>,
    hardware: Vec<Hardware>,
    recorder: Recorder,
    safety_is_over: AtomicBool,
}

/// What of a machine behaves in one way or another whoever works on it: a fault that begins or ends while its node
/// starts is not lost.
pub(crate) struct Hardware {
    pub(crate) disk: SimDisk,
    pub(crate) conduct: DiskConduct,
    pub(crate) skew: WallSkew,
}

impl Hardware {
    fn of(machine: &Machine) -> Self {
        let host = &machine.host;
        let (disk, conduct) = (host.disk().clone(), host.conduct().clone());
        Self { disk, conduct, skew: host.skew().clone() }
    }
}

impl World {
    pub(crate) fn new(machines: Machines, recorder: &Recorder) -> Self {
        let Machines { fabric, all } = machines;
        Self(Arc::new(Inner {
            fabric,
            addresses: all.iter().map(Machine::address).collect(),
            hardware: all.iter().map(Hardware::of).collect(),
            machines: all.into_iter().map(|machine| Mutex::new(Some(machine))).collect(),
            recorder: recorder.clone(),
            safety_is_over: AtomicBool::new(false),
        }))
    }

    pub(crate) fn fabric(&self) -> &Fabric {
        &self.0.fabric
    }

    pub(crate) fn addresses(&self) -> &[IpAddr] {
        &self.0.addresses
    }

    pub(crate) fn count(&self) -> usize {
        self.0.machines.len()
    }

    pub(crate) fn end_safety(&self) {
        self.0.safety_is_over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_safety_over(&self) -> bool {
        self.0.safety_is_over.load(Ordering::Relaxed)
    }

    fn place(&self, index: usize) -> MutexGuard<'_, Option<Machine>> {
        self.0.machines[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at a machine; `None`: somebody works on it.
    pub(crate) fn look<T>(&self, index: usize, look: impl FnOnce(&Machine) -> T) -> Option<T> {
        self.place(index).as_ref().map(look)
    }

    /// What of a machine is there whoever works on it.
    pub(crate) fn hardware(&self, index: usize) -> &Hardware {
        &self.0.hardware[index]
    }

    /// A gateway's door, where it serves.
    pub(crate) fn door(&self, index: usize) -> Option<Door> {
        self.look(index, Machine::door).flatten()
    }

    /// The client that a node's own duties use, where it serves.
    pub(crate) fn client(&self, index: usize) -> Option<Client> {
        let client = |node: &RunningNode| node.client().clone();
        self.look(index, |machine| machine.node().map(client)).flatten()
    }

    fn take(&self, index: usize) -> Option<Machine> {
        self.place(index).take()
    }

    fn give_back(&self, index: usize, machine: Machine) {
        *self.place(index) = Some(machine);
    }

    /// Boots a machine whose process is down, and waits until it has started. A node that cannot start is a finding,
    /// unless its power went meanwhile.
    pub(crate) async fn start(&self, index: usize) {
        let Some(mut machine) = self.take(index) else { return };
        if machine.is_up() {
            return self.give_back(index, machine);
        }
        let ended = self.until_started(index, machine.boot()).await;
        match ended.map(|joined| joined.map_err(anyhow::Error::from).flatten()) {
            Some(Ok(node)) => machine.started(node),
            Some(Err(error)) if machine.is_dark() => {
                self.0
                    .recorder
                    .note(&format!("{} went dark at its start: {error:#}", machine.name()));
                machine.cut(CutStyle::DropAll).await;
            }
            Some(Err(error)) => {
                let what = format!("{} does not start: {error:#}", machine.name());
                self.0.recorder.find("L1", what);
                machine.kill().await;
            }
            None => {
                let what = format!("{} does not start within {START_PATIENCE:?}", machine.name());
                self.0.recorder.find("L1", what);
                machine.kill().await;
            }
        }
        self.give_back(index, machine);
    }

    /// `None`: that takes too long. The time that its disk takes does not count: nobody promises a start on a slow one.
    async fn until_started<T>(
        &self,
        index: usize,
        mut starting: JoinHandle<T>,
    ) -> Option<Result<T, JoinError>> {
        let (began, conduct) = (Instant::now(), self.hardware(index).conduct.clone());
        let before = conduct.taken();
        loop {
            let patience = START_PATIENCE + conduct.taken().saturating_sub(before);
            let left = patience.saturating_sub(began.elapsed());
            match tokio::time::timeout(left, &mut starting).await {
                Ok(ended) => return Some(ended),
                Err(_late) if left.is_zero() => return None,
                Err(_late) => {}
            }
        }
    }

    /// Boots all that are down, at once.
    pub(crate) async fn start_all(&self) {
        self.start_first(self.count()).await;
    }

    /// Boots the first machines.
    pub(crate) async fn start_first(&self, count: usize) {
        futures::future::join_all((0..count).map(|index| self.start(index))).await;
    }

    /// Lets a machine's node become a member, admitted by that of the first one.
    pub(crate) async fn join(&self, index: usize) -> Result<()> {
        let Some(member) = self.take(0) else { bail!("somebody works on the first machine") };
        let token = member.token().await;
        self.give_back(0, member);
        let token = token?;
        let kept = self.look(index, |machine| machine.keep_token(&token));
        kept.context("somebody works on the machine")??;
        self.start(index).await;
        Ok(())
    }

    pub(crate) async fn kill(&self, index: usize) {
        let Some(mut machine) = self.take(index) else { return };
        machine.kill().await;
        self.give_back(index, machine);
    }

    pub(crate) async fn cut(&self, index: usize, style: CutStyle) {
        let Some(mut machine) = self.take(index) else { return };
        machine.cut(style).await;
        self.give_back(index, machine);
    }

    /// What a supervisor does: a node that has failed for good is ended and started anew.
    pub(crate) async fn restart_failed(&self, index: usize) {
        let has_failed =
            |machine: &Machine| machine.node().and_then(RunningNode::failure).is_some();
        if self.look(index, has_failed) == Some(true) {
            self.kill(index).await;
            self.start(index).await;
        }
    }

    /// Ends a node in order.
    pub(crate) async fn stop(&self, index: usize) {
        let Some(mut machine) = self.take(index) else { return };
        machine.stop().await;
        self.give_back(index, machine);
    }

    /// Whether all nodes say that they are ready.
    pub(crate) async fn all_ready(&self) -> Result<()> {
        self.first_ready(self.count()).await
    }

    /// Whether the first nodes do.
    pub(crate) async fn first_ready(&self, count: usize) -> Result<()> {
        for index in 0..count {
            let state = self.look(index, |machine| machine.node().map(RunningNode::not_ready));
            match state.flatten() {
                Some(reasons) if reasons.is_empty() => {}
                Some(reasons) => bail!("node-{}: {}", index + 1, reasons.join("; ")),
                None => bail!("node-{} does not run", index + 1),
            }
        }
        Ok(())
    }
}
