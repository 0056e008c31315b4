//! Everything that a simulation must own: clock, randomness, disk, network, tasks.
//!
//! A node is started with one [`Host`] and asks nothing of the machine but through it. Production builds the real
//! one ([`Host::real`]); tests and simulations put in disks that forget un-synced writes, clocks that jump and networks
//! that cut. This crate is the only one of the product in which `std::time`, `std::fs`, sockets and `tokio::spawn` may
//! be named; the lint fence (`.clippy.toml`) keeps it so.

mod clock;
mod disk;
mod faulty_disk;
mod http_port;
mod memory_network;
mod network;
mod pace;
mod random;
mod sim;
mod sim_disk;
mod tasks;

pub use clock::{Clock, Elapsed, Monotonic, RealClock};
pub use disk::{Disk, DiskUsage, File, OpenMode, RealDisk};
pub use faulty_disk::{Fault, FaultyDisk, Operation, Trouble};
pub use http_port::{Greeted, Http2, HttpPort, count_too_slow, serve_http};
pub use memory_network::MemoryNetwork;
pub use network::{Connection, Listener, Network, RealNetwork};
pub use pace::{Pace, PaceLimits, TooSlow};
pub use random::{Random, RealRandom, SeededRandom};
pub use sim::{DiskConduct, DiskPace, Fabric, Life, Passage, SimHost, WallSkew, Weather};
pub use sim_disk::{CutStyle, Moment, SimDisk, sets_of_pieces};
pub use tasks::{RealTasks, Shutdown, TaskHandle, TaskKind, Tasks};

use std::sync::Arc;

/// What a node runs on. Cheap to clone.
#[derive(Clone)]
pub struct Host {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// Files.
    pub disk: Arc<dyn Disk>,
    /// Sockets.
    pub network: Arc<dyn Network>,
    /// Tasks and threads.
    pub tasks: Arc<dyn Tasks>,
    /// Says when to stop.
    pub shutdown: Shutdown,
}

impl Host {
    /// The machine itself. Must be called within a tokio runtime.
    pub fn real() -> Self {
        Self {
            clock: Arc::new(RealClock::default()),
            random: Arc::new(RealRandom),
            disk: Arc::new(RealDisk),
            network: Arc::new(RealNetwork),
            tasks: Arc::new(RealTasks),
            shutdown: Shutdown::default(),
        }
    }

    /// The same machine with another disk.
    #[must_use]
    pub fn with_disk(mut self, disk: Arc<dyn Disk>) -> Self {
        self.disk = disk;
        self
    }

    /// Waits as long as what was asked of the disk would have taken. Who calls the disk and then answers for it awaits
    /// this in between; with a real disk it is over at once.
    pub async fn disk_time(&self) {
        let lag = self.disk.lag();
        if !lag.is_zero() {
            self.clock.sleep(lag).await;
        }
    }

    /// The same machine with another network.
    #[must_use]
    pub fn with_network(mut self, network: Arc<dyn Network>) -> Self {
        self.network = network;
        self
    }

    /// The same machine, stopped by itself: each node of a process has its own.
    #[must_use]
    pub fn with_own_shutdown(mut self) -> Self {
        self.shutdown = Shutdown::default();
        self
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Host")
    }
}
