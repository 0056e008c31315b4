//! Tasks and threads, each of a named kind, and the signal that stops them.
//!
//! | kind | on cancel | on panic |
//! |---|---|---|
//! | `Request` | dropped at its next await | the caller sees a cut connection |
//! | `Background` | watches [`Shutdown`] and returns | logged, counted; its owner's handle reports it |
//! | `Thread` | its queue closes | the process ends: it owned a disk or a log |

use futures::future::BoxFuture;
use std::future::Future;
use tokio_util::sync::CancellationToken;

/// What a task is for; also its label in logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskKind {
    /// Serves one request or connection.
    Request(&'static str),
    /// Runs as long as the node.
    Background(&'static str),
}

impl TaskKind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Request(name) | Self::Background(name) => name,
        }
    }
}

/// A running task. Dropping the handle lets it run on.
#[derive(Debug)]
pub struct TaskHandle(tokio::task::JoinHandle<()>);

impl TaskHandle {
    /// Drops the task at its next await.
    pub fn abort(&self) {
        self.0.abort();
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits for its end. `false`: it panicked or was aborted.
    pub async fn join(self) -> bool {
        self.0.await.is_ok()
    }
}

/// Starts tasks.
pub trait Tasks: Send + Sync {
    /// Starts a task.
    fn spawn(&self, kind: TaskKind, task: BoxFuture<'static, ()>) -> TaskHandle;
    /// Starts a thread of its own, for work that blocks for as long as the node lives.
    fn thread(&self, name: &str, work: Box<dyn FnOnce() + Send>);
    /// Starts work that blocks for a moment.
    fn blocking(&self, work: Box<dyn FnOnce() + Send>);
}

impl dyn Tasks {
    /// Runs `work` where it may block, and gives back what it made.
    pub async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let (done, made) = tokio::sync::oneshot::channel();
        self.blocking(Box::new(move || {
            // the receiver is gone only where the caller was dropped, who then wants nothing
            drop(done.send(work()));
        }));
        made.await.expect("blocking work sends its result unless it panicked")
    }
}

/// Tasks on the tokio runtime of the caller.
#[derive(Debug, Clone, Copy)]
pub struct RealTasks;

impl Tasks for RealTasks {
    fn spawn(&self, _kind: TaskKind, task: BoxFuture<'static, ()>) -> TaskHandle {
        TaskHandle(tokio::spawn(task))
    }

    fn thread(&self, name: &str, work: Box<dyn FnOnce() + Send>) {
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(work)
            .expect("the system starts a thread");
    }

    fn blocking(&self, work: Box<dyn FnOnce() + Send>) {
        drop(tokio::task::spawn_blocking(work));
    }
}

/// Tells everything of a node to stop; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// From now on [`Shutdown::requested`] returns.
    pub fn request(&self) {
        self.0.cancel();
    }

    /// Whether it was requested.
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until it is requested.
    pub fn requested(&self) -> impl Future<Output = ()> + Send + 'static {
        self.0.clone().cancelled_owned()
    }
}
