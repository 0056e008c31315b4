//! One direction of a connection: bytes that arrive later than they were sent.

use bytes::Bytes;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use tokio::time::Instant;

/// What is on its way or unread; who sends more waits. The socket buffers of a machine, made small.
pub(super) const PIPE_BYTES_MAX: usize = 256 << 10;

/// See the module.
pub(super) struct Pipe {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    state: Mutex<PipeState>,
}

pub(super) struct PipeState {
    /// With the time at which it arrives; in order.
    pub(super) chunks: VecDeque<(Instant, Bytes)>,
    pub(super) queued_bytes: usize,
    /// When the last byte arrives.
    pub(super) last_arrival: Instant,
    /// The sender is done: the end arrives then.
    pub(super) end: Option<Instant>,
    /// The receiver is gone.
    pub(super) deaf: bool,
    /// The connection is broken, for both.
    pub(super) is_reset: bool,
    /// Nothing arrives: the link is held, or the sender has no power.
    pub(super) is_held: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

impl Pipe {
    pub(super) fn new(from: IpAddr, to: IpAddr) -> Self {
        let state = PipeState {
            chunks: VecDeque::new(),
            queued_bytes: 0,
            last_arrival: Instant::now(),
            end: None,
            deaf: false,
            is_reset: false,
            is_held: false,
            reader: None,
            writer: None,
        };
        Self { from, to, state: Mutex::new(state) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, PipeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn touches(&self, address: IpAddr) -> bool {
        self.from == address || self.to == address
    }
}

impl PipeState {
    pub(super) fn wake_both(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }

    /// Both ends see a broken connection.
    pub(super) fn reset(&mut self) {
        self.is_reset = true;
        self.chunks.clear();
        self.wake_both();
    }

    /// What was held arrives from now on, not before `at`.
    pub(super) fn release(&mut self, at: Instant) {
        self.is_held = false;
        for (arrival, _) in &mut self.chunks {
            *arrival = at.max(*arrival);
        }
        self.end = self.end.map(|end| end.max(at));
        self.last_arrival = self.last_arrival.max(at);
        self.wake_both();
    }
}
