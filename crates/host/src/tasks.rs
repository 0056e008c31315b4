//! Tasks and workers, each of a named kind, and the signal that stops them.
//!
//! | kind | on cancel | on panic |
//! |---|---|---|
//! | `Request` | dropped at its next await | the caller sees a cut connection |
//! | `Background` | watches [`Shutdown`] and returns | logged, counted; its owner's handle reports it |
//! | worker | its queue closes | the process ends: it owned a disk or a log |
//!
//! A worker is one who blocks: it waits for its queue by an await, and calls the disk without one. In production it has
//! a thread of its own, so that nobody else waits with it; a simulation runs it as one task among the others.

use futures::future::BoxFuture;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::thread::Thread;
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
    pub(crate) fn new(task: tokio::task::JoinHandle<()>) -> Self {
        Self(task)
    }

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
    /// Starts a worker, for as long as the node lives. Its awaits must not be those of a runtime (timers, sockets), but
    /// for [`crate::Host::disk_time`], which waits in simulations only.
    fn worker(&self, name: &str, work: BoxFuture<'static, ()>);
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

    fn worker(&self, name: &str, work: BoxFuture<'static, ()>) {
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || drive(work))
            .expect("the system starts a thread");
    }

    fn blocking(&self, work: Box<dyn FnOnce() + Send>) {
        drop(tokio::task::spawn_blocking(work));
    }
}

/// Polls a worker on this thread until it has ended; sleeps while it waits.
fn drive(mut work: BoxFuture<'static, ()>) {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    while work.as_mut().poll(&mut context).is_pending() {
        std::thread::park();
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
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
