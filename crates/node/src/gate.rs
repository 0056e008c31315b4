//! Which writes are open in each slot of a group on each disk, and under which epoch they came: what lets a node
//! acknowledge an epoch, and give up a slot, without a write in between (R12, D2).
//!
//! A write *enters* before its epoch is judged, and leaves when it is durable or has failed. So whoever has a newer map
//! first and looks for open writes then, sees every write that was judged by the older one. What it names is believed
//! only once it is *accepted*: of a write that is refused nothing is kept.

use ashlar_host::Clock;
use ashlar_types::{DiskId, Epoch, PgId, Slot};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// A slot of a group on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SlotPlace {
    pub(crate) disk: DiskId,
    pub(crate) group: PgId,
    pub(crate) slot: Slot,
}

#[derive(Debug, Default)]
struct Writes {
    /// How many are open, by epoch.
    open: BTreeMap<Epoch, u32>,
    /// The newest epoch under which one was accepted.
    newest: Epoch,
    /// Writes under older epochs break off.
    broken_below: Epoch,
    /// Its shards are being dropped: writes wait.
    closed: bool,
}

impl Writes {
    /// Whether a slot of which nothing is known would be judged the same.
    fn says_nothing(&self) -> bool {
        self.open.is_empty() && self.newest == Epoch(0) && !self.closed
    }
}

/// The writes of a node.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    slots: Mutex<BTreeMap<SlotPlace, Writes>>,
    /// A write has ended, or a slot is not closed any more.
    changed: Notify,
    /// Writes are to break off. Apart from the other, because every long write listens to it.
    broken: Notify,
}

/// A write that is open until this is dropped.
#[derive(Debug)]
pub(crate) struct OpenWrite {
    gate: Arc<Gate>,
    at: SlotPlace,
    epoch: Epoch,
}

/// A slot that takes no writes until this is dropped.
#[derive(Debug)]
pub(crate) struct Closed<'a> {
    gate: &'a Gate,
    at: SlotPlace,
}

impl Gate {
    fn slots(&self) -> MutexGuard<'_, BTreeMap<SlotPlace, Writes>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a write under the epoch that its sender names; its epoch is to be judged after that.
    pub(crate) async fn enter(self: &Arc<Self>, at: SlotPlace, epoch: Epoch) -> OpenWrite {
        let enter = || {
            let mut slots = self.slots();
            let writes = slots.entry(at).or_default();
            if !writes.closed {
                *writes.open.entry(epoch).or_default() += 1;
            }
            !writes.closed
        };
        until(&self.changed, enter).await;
        OpenWrite { gate: self.clone(), at, epoch }
    }

    /// Waits until no write under an older epoch is open. Those that do not end within `patience` are broken off. The
    /// node must know this epoch already, so that none enters.
    pub(crate) async fn settle(
        &self,
        clock: &(dyn Clock + 'static),
        at: SlotPlace,
        epoch: Epoch,
        patience: Duration,
    ) {
        let is_settled = || self.oldest(at).is_none_or(|oldest| oldest >= epoch);
        if clock.timeout(patience, until(&self.changed, is_settled)).await.is_err() {
            self.change(at, |writes| writes.broken_below = writes.broken_below.max(epoch));
            self.broken.notify_waiters();
            until(&self.changed, is_settled).await;
        }
    }

    fn oldest(&self, at: SlotPlace) -> Option<Epoch> {
        self.slots().get(&at)?.open.keys().next().copied()
    }

    /// Closes a slot whose group is known at `known`. `None`: a write is open, or one was accepted under a newer epoch, so
    /// that the slot may be this disk's again.
    pub(crate) fn close(&self, at: SlotPlace, known: Epoch) -> Option<Closed<'_>> {
        let mut slots = self.slots();
        let writes = slots.entry(at).or_default();
        if !writes.open.is_empty() || writes.newest > known || writes.closed {
            return None;
        }
        writes.closed = true;
        Some(Closed { gate: self, at })
    }

    /// Whether no write is open.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        self.slots().values().all(|writes| writes.open.is_empty())
    }

    fn change(&self, at: SlotPlace, change: impl FnOnce(&mut Writes)) {
        let mut slots = self.slots();
        if let Some(writes) = slots.get_mut(&at) {
            change(writes);
            if writes.says_nothing() {
                slots.remove(&at);
            }
        }
        drop(slots);
        self.changed.notify_waiters();
    }
}

/// Waits until `done` says so; it is asked after each word of `changed`.
async fn until(changed: &Notify, mut done: impl FnMut() -> bool) {
    loop {
        let changed = changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        if done() {
            return;
        }
        changed.await;
    }
}

impl OpenWrite {
    /// Its epoch was judged, and is good: whoever closes the slot is to know of it.
    pub(crate) fn accept(&self) {
        let mut slots = self.gate.slots();
        if let Some(writes) = slots.get_mut(&self.at) {
            writes.newest = writes.newest.max(self.epoch);
        }
    }

    /// Ends when the write is to break off.
    pub(crate) async fn broken_off(&self) {
        let is_broken = || {
            let slots = self.gate.slots();
            slots.get(&self.at).is_some_and(|writes| self.epoch < writes.broken_below)
        };
        until(&self.gate.broken, is_broken).await;
    }
}

impl Drop for OpenWrite {
    fn drop(&mut self) {
        self.gate.change(self.at, |writes| {
            let left = writes.open.get_mut(&self.epoch).map(|count| {
                *count -= 1;
                *count
            });
            if left == Some(0) {
                writes.open.remove(&self.epoch);
            }
        });
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.gate.change(self.at, |writes| writes.closed = false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_host::Host;
    use futures::FutureExt;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Wake, Waker};

    const AT: SlotPlace = SlotPlace { disk: DiskId(1), group: PgId(2), slot: Slot(3) };

    #[tokio::test]
    async fn an_epoch_is_settled_when_the_last_write_under_an_older_one_has_ended() {
        let (gate, clock) = (Arc::new(Gate::default()), Host::real().clock);
        let old = gate.enter(AT, Epoch(4)).await;
        let new = gate.enter(AT, Epoch(5)).await;
        let settled = gate.settle(&*clock, AT, Epoch(5), Duration::from_secs(60));
        tokio::pin!(settled);
        assert!(settled.as_mut().now_or_never().is_none());
        drop(old);
        settled.await;
        drop(new);
    }

    #[tokio::test]
    async fn a_write_that_does_not_end_is_broken_off() {
        let (gate, clock) = (Arc::new(Gate::default()), Host::real().clock);
        let old = gate.enter(AT, Epoch(4)).await;
        let new = gate.enter(AT, Epoch(5)).await;
        let breaking = async {
            old.broken_off().await;
            drop(old);
        };
        futures::join!(gate.settle(&*clock, AT, Epoch(5), Duration::ZERO), breaking);
        assert!(new.broken_off().now_or_never().is_none(), "it came under the epoch itself");
    }

    #[tokio::test]
    async fn a_slot_closes_only_when_nobody_writes_it_or_knows_more() {
        let gate = Arc::new(Gate::default());
        let write = gate.enter(AT, Epoch(4)).await;
        assert!(gate.close(AT, Epoch(9)).is_none(), "a write is open");
        write.accept();
        drop(write);
        assert!(gate.close(AT, Epoch(3)).is_none(), "the slot may be ours again");
        let closed = gate.close(AT, Epoch(4)).expect("nobody is in the way");
        assert!(gate.close(AT, Epoch(4)).is_none());
        let entering = gate.enter(AT, Epoch(6));
        tokio::pin!(entering);
        assert!(entering.as_mut().now_or_never().is_none(), "it waits");
        drop(closed);
        entering.await.accept();
        assert!(gate.close(AT, Epoch(4)).is_none());
    }

    #[tokio::test]
    async fn of_a_write_that_is_refused_nothing_is_kept() {
        let gate = Arc::new(Gate::default());
        let refused = gate.enter(AT, Epoch(u64::MAX)).await;
        assert!(gate.close(AT, Epoch(4)).is_none(), "it may still be accepted");
        drop(refused);
        assert!(gate.slots().is_empty());
        drop(gate.close(AT, Epoch(4)).expect("it held nothing up"));
        assert!(gate.slots().is_empty());
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn a_write_that_ends_wakes_no_other_write() {
        let gate = Arc::new(Gate::default());
        let long = gate.enter(AT, Epoch(4)).await;
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut broken_off = std::pin::pin!(long.broken_off());
        assert!(broken_off.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        drop(gate.enter(AT, Epoch(4)).await);
        assert!(!woken.0.load(Ordering::Relaxed), "nothing has changed for it");
        let clock = Host::real().clock;
        let settled = gate.settle(&*clock, AT, Epoch(5), Duration::ZERO);
        tokio::select! {
            biased;
            () = settled => panic!("it is open"),
            () = broken_off.as_mut() => {}
        }
    }
}
