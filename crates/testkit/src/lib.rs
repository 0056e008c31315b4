//! Whole clusters inside a test: real nodes on real loopback sockets, over disks in memory that can lose their power.
//!
//! [`TestCluster`] starts nodes exactly as the binary does, each on a runtime and a disk of its own, so that one of them
//! can be ended as a power cut ends it: nothing is flushed, handed over or told. [`WatchedDisk`] counts the syncs of a
//! node by what they are for, and can stop doing them: with it a test shows that it would notice.
//!
//! It leaves out: what a client says to the cluster (`benches/load`), and faults of the network.

mod cluster;
mod layout;
mod life;
mod watched_disk;

pub use cluster::{NewNode, TestCluster, TestNode};
pub use watched_disk::{Lie, Syncs, WatchedDisk};
