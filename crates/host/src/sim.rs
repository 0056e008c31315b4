//! Machines that exist in one thread, on virtual time: what a simulation starts its nodes on.
//!
//! A [`SimHost`] is a machine with a disk and an address on a [`Fabric`]. Each [`SimHost::boot`] of it is a [`Life`]: the
//! tasks, the connections and the sight of the disk that one run of a process has, and that end together when it is
//! killed or its power is cut. Everything waits on tokio's paused clock, which jumps to the next timer as soon as
//! nobody can run: a quiet minute costs nothing. Everything that is drawn comes from one seed, so that the same seed
//! is the same run, on a current-thread runtime with `start_paused` and `rng_seed`, one run a process.
//!
//! It leaves out: processor time (work takes no virtual time but for its disk and network), and memory.

mod clock;
mod conduct;
mod fabric;
mod life;
mod pipe;

pub use clock::WallSkew;
pub use conduct::{DiskConduct, DiskPace};
pub use fabric::{Fabric, Passage, Weather};
pub use life::Life;

use crate::random::{Random, SeededRandom};
use crate::sim_disk::{CutStyle, SimDisk};
use crate::{Host, Shutdown};
use clock::SimClock;
use fabric::{Absence, SimNetwork};
use life::SimTasks;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A machine.
pub struct SimHost {
    address: IpAddr,
    fabric: Fabric,
    disk: SimDisk,
    conduct: DiskConduct,
    skew: WallSkew,
    seed: u64,
    boots: AtomicU64,
}

impl std::fmt::Debug for SimHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimHost({})", self.address)
    }
}

impl SimHost {
    /// A machine with an empty disk. What it draws comes from `seed`.
    pub fn new(fabric: &Fabric, address: IpAddr, seed: u64) -> Self {
        Self {
            address,
            fabric: fabric.clone(),
            disk: SimDisk::new(),
            conduct: DiskConduct::default(),
            skew: WallSkew::default(),
            seed,
            boots: AtomicU64::new(0),
        }
    }

    /// Its address on the fabric.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Its disk, whoever lives.
    pub fn disk(&self) -> &SimDisk {
        &self.disk
    }

    /// How its disk behaves.
    pub fn conduct(&self) -> &DiskConduct {
        &self.conduct
    }

    /// How wrong its wall clock is.
    pub fn skew(&self) -> &WallSkew {
        &self.skew
    }

    /// Starts a process on it.
    pub fn boot(&self) -> (Host, Life) {
        let boot = self.boots.fetch_add(1, Ordering::Relaxed);
        self.fabric.appear(self.address);
        let disk = self.conduct.of(Arc::new(self.disk.boot()));
        // neighbouring seeds of a ChaCha stream have nothing in common
        let random = Arc::new(SeededRandom::new(self.seed ^ (boot << 32)));
        let life = Life::new(random.next_u64());
        let host = Host {
            clock: Arc::new(SimClock::new(self.skew.clone())),
            random,
            tasks: Arc::new(SimTasks { life: life.clone(), disk: Arc::clone(&disk) }),
            disk,
            network: Arc::new(SimNetwork::new(self.fabric.clone(), self.address)),
            shutdown: Shutdown::default(),
        };
        (host, life)
    }

    /// The process is killed: what it has written stays, its peers see their connections break.
    pub async fn kill(&self, life: &Life) {
        self.disk.cut(CutStyle::KeepAll);
        self.fabric.vanish(self.address, Absence::Killed);
        life.end().await;
    }

    /// The power is cut: of what was not synced `style` decides, and its peers hear nothing more.
    pub async fn cut_power(&self, life: &Life, style: CutStyle) {
        self.disk.cut(style);
        self.fabric.vanish(self.address, Absence::Dark);
        life.end().await;
    }
}
