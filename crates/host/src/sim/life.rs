//! All that runs of one process, so that it can be ended, or held, in the middle of anything.
//!
//! While a task of a life is polled or dropped, [`Life::current`] is that life: so code that can only call a function
//! without a context (a library's runtime) still spawns into the process that it belongs to.

use crate::disk::Disk;
use crate::random::{Random, SeededRandom};
use crate::tasks::{TaskHandle, TaskKind, Tasks};
use futures::future::BoxFuture;
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::task::{AbortHandle, JoinHandle};

thread_local! {
    static CURRENT: RefCell<Option<Life>> = const { RefCell::new(None) };
}

/// Below so many remembered tasks nobody looks for those that have ended.
const TASKS_MIN: usize = 256;

/// The life of a process. A clone is the same life.
#[derive(Clone)]
pub struct Life(Arc<Inner>);

struct Inner {
    random: SeededRandom,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tasks: Vec<AbortHandle>,
    /// Look for ended tasks when there are more than this.
    prune_at: usize,
    has_ended: bool,
    /// While it is paused: who wants to go on.
    paused: Option<Vec<Waker>>,
}

impl std::fmt::Debug for Life {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Life")
    }
}

impl Life {
    pub(super) fn new(seed: u64) -> Self {
        let state = Mutex::new(State { prune_at: TASKS_MIN, ..State::default() });
        Self(Arc::new(Inner { random: SeededRandom::new(seed), state }))
    }

    /// The life of the task that runs; `None`: this is no simulation, or its driver.
    pub fn current() -> Option<Self> {
        CURRENT.with(|current| current.borrow().clone())
    }

    /// Draws for code that has no [`Random`] at hand.
    pub fn next_u64(&self) -> u64 {
        self.0.random.next_u64()
    }

    /// Starts a task of this life. In one that has ended it does not run.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let handle = tokio::spawn(Within { life: self.clone(), future: Some(Box::pin(future)) });
        let mut state = self.state();
        if state.has_ended {
            handle.abort();
        }
        state.tasks.push(handle.abort_handle());
        if state.tasks.len() > state.prune_at {
            state.tasks.retain(|task| !task.is_finished());
            state.prune_at = (2 * state.tasks.len()).max(TASKS_MIN);
        }
        handle
    }

    /// Nothing of it runs until [`Life::resume`], while time goes on: SIGSTOP.
    pub fn pause(&self) {
        self.state().paused.get_or_insert_default();
    }

    /// It goes on.
    pub fn resume(&self) {
        let waiting = self.state().paused.take();
        waiting.into_iter().flatten().for_each(Waker::wake);
    }

    /// Drops all its tasks, wherever they wait. To be awaited outside of it.
    pub(super) async fn end(&self) {
        let tasks = {
            let mut state = self.state();
            state.has_ended = true;
            std::mem::take(&mut state.tasks)
        };
        self.resume();
        tasks.iter().for_each(AbortHandle::abort);
        // dropping one may start another, which ends at once
        while !tasks.iter().all(AbortHandle::is_finished) {
            tokio::task::yield_now().await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a task must wait, because the process is paused.
    fn holds(&self, waker: &Waker) -> bool {
        let mut state = self.state();
        let waiting = state.paused.as_mut();
        waiting.map(|waiting| waiting.push(waker.clone())).is_some()
    }

    fn enter(&self) -> Entered {
        Entered(CURRENT.with(|current| current.replace(Some(self.clone()))))
    }
}

/// Gives the place back to who had it.
struct Entered(Option<Life>);

impl Drop for Entered {
    fn drop(&mut self) {
        let before = self.0.take();
        // fails only while the thread itself ends
        drop(CURRENT.try_with(|current| current.replace(before)));
    }
}

/// A task of a life.
struct Within<F> {
    life: Life,
    future: Option<Pin<Box<F>>>,
}

impl<F: Future> Future for Within<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let task = self.get_mut();
        if task.life.holds(cx.waker()) {
            return Poll::Pending;
        }
        let _inside = task.life.enter();
        task.future.as_mut().expect("it is there until it is dropped").as_mut().poll(cx)
    }
}

impl<F> Drop for Within<F> {
    fn drop(&mut self) {
        let _inside = self.life.enter();
        drop(self.future.take());
    }
}

/// Starts the tasks of one life.
pub(super) struct SimTasks {
    pub(super) life: Life,
    pub(super) disk: Arc<dyn Disk>,
}

impl Tasks for SimTasks {
    fn spawn(&self, _kind: TaskKind, task: BoxFuture<'static, ()>) -> TaskHandle {
        TaskHandle::new(self.life.spawn(task))
    }

    fn worker(&self, _name: &str, work: BoxFuture<'static, ()>) {
        drop(self.life.spawn(work));
    }

    fn blocking(&self, work: Box<dyn FnOnce() + Send>) {
        let disk = Arc::clone(&self.disk);
        drop(self.life.spawn(async move {
            // what the disk still has to do is done first
            let lag = disk.lag();
            if !lag.is_zero() {
                tokio::time::sleep(lag).await;
            }
            work();
        }));
    }
}
