//! What a client is told when it starts, with the reasons of the defaults.

use ashlar_types::NodeId;
use std::time::Duration;

/// The settings of a client.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Addresses (host:port) of nodes that are asked until the cluster map is known, and again when nobody in it answers.
    pub seeds: Vec<String>,
    /// The node in which this client runs: sessions are opened in its name.
    pub node: NodeId,
    /// The incarnation of that node.
    pub incarnation: u64,
    /// All that streams of this client may hold in memory; a stream waits for its share.
    pub memory_bytes: u64,
    /// How long a verb tries before it gives up.
    pub patience: Duration,
    /// A shard read is doubled when it takes longer than the 95th percentile of its disk, but not before this.
    pub hedge_after_min: Duration,
    /// At most so many of a hundred shard reads are hedges, so that an overloaded cluster is not loaded further.
    pub hedge_percent_max: u32,
    /// A home that makes no progress for this long (and four times the 99th percentile), while enough others do, is
    /// given up by a write.
    pub stall_after_min: Duration,
    /// How often data nodes are asked how they are.
    pub ping_every: Duration,
    /// How often the cluster map is asked for, if nothing asks for it earlier.
    pub map_every: Duration,
    /// After this a new session is opened, so that the retry tables of the ranges can forget the old one.
    pub session_age_max: Duration,
}

impl ClientConfig {
    /// The defaults for a client in `node`.
    pub fn new(seeds: Vec<String>, node: NodeId, incarnation: u64) -> Self {
        Self {
            seeds,
            node,
            incarnation,
            memory_bytes: 256 << 20,
            patience: Duration::from_secs(10),
            hedge_after_min: Duration::from_millis(20),
            hedge_percent_max: 5,
            stall_after_min: Duration::from_millis(300),
            ping_every: Duration::from_millis(500),
            map_every: Duration::from_secs(1),
            session_age_max: Duration::from_secs(24 * 3600),
        }
    }
}
