//! A node's life, from its start to the moment at which its power fails.
//!
//! Each life has a runtime of its own. When that ends, every task of the node is dropped wherever it waits and its
//! sockets close, as when a process dies; threads that are left over find that the disk of their life is gone.

use anyhow::{Context, Result};
use ashlar::config::NodeConfig;
use ashlar::node::RunningNode;
use ashlar_host::Host;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

use crate::watched_disk::WatchedDisk;

/// How long work that blocks may take to notice: the next life needs its ports and its history.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// A node that lives.
pub(crate) struct Life {
    /// `None` while it is being dropped.
    parts: Option<(Runtime, RunningNode)>,
}

impl Life {
    /// Starts the node on what its disk has.
    pub(crate) async fn start(config: NodeConfig, disk: &WatchedDisk) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(config.name())
            .enable_all()
            .build()?;
        let host = {
            let _inside = runtime.enter();
            Host::real().with_disk(Arc::new(disk.boot()))
        };
        let name = config.name();
        let started = runtime.spawn(RunningNode::start(host, config)).await;
        match started.context("the start panicked").flatten() {
            Ok(node) => Ok(Self { parts: Some((runtime, node)) }),
            Err(error) => {
                // its ports are free when this returns
                let ending = move || runtime.shutdown_timeout(END_PATIENCE);
                tokio::task::spawn_blocking(ending).await.context("the end of a node panicked")?;
                Err(error.context(format!("{name} does not start")))
            }
        }
    }

    pub(crate) fn node(&self) -> &RunningNode {
        let (_, node) = self.parts.as_ref().expect("a life has its parts until it ends");
        node
    }

    /// Ends it without a word. The disk must have been cut before. Returns when its ports are free.
    pub(crate) async fn end(mut self) -> Result<()> {
        let Some((runtime, node)) = self.parts.take() else { return Ok(()) };
        let ending = tokio::task::spawn_blocking(move || {
            {
                let _inside = runtime.enter();
                drop(node);
            }
            runtime.shutdown_timeout(END_PATIENCE);
        });
        ending.await.context("the end of a node panicked")
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if let Some((runtime, node)) = self.parts.take() {
            {
                let _inside = runtime.enter();
                drop(node);
            }
            runtime.shutdown_background();
        }
    }
}
