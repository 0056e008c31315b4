//! Reads and writes a cluster: routing by epoch, quorum, hedging, retries, outcome unknown.
//!
//! It is the only door through which a role uses the others. A [`Client`] keeps what may be kept (the cluster map and
//! the range directory by epoch, leaders and latencies as hints, a session of its own) and nothing that a restart may
//! lose. Content goes to data nodes before any metadata is asked: [`ObjectWriter`] makes extents, [`Client::execute`]
//! names them in one command, and the [`Ticket`] between the two makes it happen at most once, or be abandoned.
//!
//! It leaves out: what an S3 request means (crate `gateway`), where shards belong (`placement`), how they are coded
//! (`erasure`).

mod audit;
mod buckets;
mod call;
mod choose;
mod collect;
mod column;
mod config;
mod directory;
mod execute;
mod extent;
mod failure;
mod health;
mod inner;
mod moves;
mod open_reads;
mod pool;
mod query;
mod reader;
mod rebuild;
mod recode;
mod replicas;
mod session;
mod shard;
mod silence;
mod splits;
mod stripe;
mod versions;
mod window;
mod writer;

pub use audit::{InventoryPage, LivingSessions, SessionsInUse};
pub use collect::{GarbagePage, GatewayReads};
pub use column::{Column, ColumnFailure};
pub use config::ClientConfig;
pub use execute::Ticket;
pub use failure::Failure;
pub use moves::ROOM_FOR_MOVES_PER_MILLE;
pub use open_reads::{OpenRead, OpenReadNumbers};
pub use query::ListUploads;
pub use reader::ContentName;
pub use shard::ShardError;
pub use writer::ObjectWriter;

use ashlar_host::Host;
use ashlar_types::{ClusterMap, RootAnswer, RootCommand, RootOp, RootOutcome, RootQuery};
use ashlar_wire::Dialer;
use inner::Inner;
use std::sync::Arc;

/// A handle on a cluster. Cheap to clone; the work in the background ends with the last handle, or with the node.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("node", &self.0.config.node).finish_non_exhaustive()
    }
}

impl Client {
    /// Starts a client. It returns at once: what needs the cluster waits for it when it is used.
    #[expect(
        clippy::unused_async,
        reason = "starting belongs to the runtime in which the tasks will live"
    )]
    pub async fn start(host: Host, dialer: Dialer, config: ClientConfig) -> Self {
        let inner = Inner::new(host, dialer, config);
        inner.start();
        Self(inner)
    }

    /// The cluster map as it is known now; empty until a node has answered.
    pub fn map(&self) -> Arc<ClusterMap> {
        self.0.map.load_full()
    }

    /// A command to the root range. A refusal is [`Failure::Root`].
    pub async fn root(&self, op: RootOp) -> Result<RootOutcome, Failure> {
        self.0.root(op).await
    }

    /// A command to the root range that can be sent again, as the same one, when its outcome is not known.
    pub fn root_command(&self, op: RootOp) -> RootCommand {
        self.0.root_command(op)
    }

    /// Sends it, for the first time or again: it is applied once. A refusal is [`Failure::Root`].
    pub async fn send_root(&self, command: &RootCommand) -> Result<RootOutcome, Failure> {
        self.0.send_root(command).await
    }

    /// A read of the root range.
    pub async fn root_query(&self, query: RootQuery) -> Result<RootAnswer, Failure> {
        self.0.root_query(query).await
    }
}
