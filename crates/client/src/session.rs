//! A gateway session: who this client is in the log, and what makes each command happen at most once.
//!
//! The session's id is the root's log index that opened it, so it is never used twice, and neither is an extent id of
//! it (D8). A seq is *open* from when it is reserved until its answer has arrived or nothing will be sent under it any
//! more; `answered_below` is the least open one, and what lies below may be forgotten by the ranges.

use ashlar_host::Monotonic;
use ashlar_types::{ExtentId, SessionId};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A session that is open.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) opened: Monotonic,
    fenced: AtomicBool,
    extents: AtomicU64,
    seqs: Mutex<Seqs>,
}

#[derive(Debug)]
struct Seqs {
    next: u64,
    open: BTreeSet<u64>,
}

impl Session {
    pub(crate) fn new(id: SessionId, opened: Monotonic) -> Arc<Self> {
        let seqs = Mutex::new(Seqs { next: 1, open: BTreeSet::new() });
        let (fenced, extents) = (AtomicBool::new(false), AtomicU64::new(1));
        Arc::new(Self { id, opened, fenced, extents, seqs })
    }

    /// An extent id that nobody has had and nobody will have.
    pub(crate) fn next_extent(&self) -> ExtentId {
        ExtentId { session: self.id, counter: self.extents.fetch_add(1, Ordering::Relaxed) }
    }

    /// Reserves a seq.
    pub(crate) fn open_seq(self: &Arc<Self>) -> OpenSeq {
        let mut seqs = self.seqs.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = seqs.next;
        seqs.next += 1;
        seqs.open.insert(seq);
        OpenSeq { session: self.clone(), seq }
    }

    /// Every answer below has arrived.
    pub(crate) fn answered_below(&self) -> u64 {
        let seqs = self.seqs.lock().unwrap_or_else(PoisonError::into_inner);
        seqs.open.first().copied().unwrap_or(seqs.next)
    }

    /// A range has said that the session has ended: nothing more is sent under it.
    pub(crate) fn fence(&self) {
        self.fenced.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Relaxed)
    }
}

/// A seq that is reserved; closed when it is dropped.
#[derive(Debug)]
pub(crate) struct OpenSeq {
    pub(crate) session: Arc<Session>,
    pub(crate) seq: u64,
}

impl Drop for OpenSeq {
    fn drop(&mut self) {
        let mut seqs = self.session.seqs.lock().unwrap_or_else(PoisonError::into_inner);
        seqs.open.remove(&self.seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answered_below_is_the_least_open_seq() {
        let session = Session::new(SessionId(9), Monotonic::default());
        let (first, second, third) = (session.open_seq(), session.open_seq(), session.open_seq());
        assert_eq!((first.seq, session.answered_below()), (1, 1));
        drop(second);
        assert_eq!(session.answered_below(), 1, "the first is still open");
        drop(first);
        assert_eq!(session.answered_below(), 3, "the second was closed before");
        drop(third);
        assert_eq!(session.answered_below(), 4);
    }

    #[test]
    fn extent_ids_are_used_once() {
        let session = Session::new(SessionId(9), Monotonic::default());
        let ids: BTreeSet<ExtentId> = (0..100).map(|_| session.next_extent()).collect();
        assert_eq!(ids.len(), 100);
    }
}
