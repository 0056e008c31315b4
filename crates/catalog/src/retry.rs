//! Exactly once: the results that a range remembers for its callers, and the sessions that it refuses.
//!
//! A result is kept until its caller says that every answer up to it has arrived. A caller that never says so cannot
//! fill the range: beyond a limit the oldest result is dropped and the session's floor rises to the index at which it was
//! applied; a command that may have been sent before that index is then answered `Forgotten` (*unknown* to its client).
//! A session below the range's own floor is refused, unless it was listed as living.

use crate::row::{FloorRow, ResultRow};
use crate::txn::Txn;
use crate::{CatalogError, View, key};
use ashlar_types::{Caller, Outcome, RangeId, Refusal, SessionId, bug, decode};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// The most results kept for a session: four times what a gateway may have under way.
const RESULTS_PER_SESSION_MAX: usize = 16 * 1024;

/// What the table says of a command before it is applied.
pub(crate) enum Admission {
    /// It has not been here.
    Fresh,
    /// It was applied; this came of it.
    Remembered(Outcome),
    /// It is refused.
    Refused(Refusal),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Session {
    answered_below: u64,
    floor: u64,
    /// seq -> index.
    results: BTreeMap<u64, u64>,
}

/// The remembered results. Their outcomes are in rows; what finds them is in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RetryTable {
    range: RangeId,
    floor: FloorRow,
    sessions: BTreeMap<SessionId, Session>,
}

impl RetryTable {
    pub(crate) fn new(range: RangeId, floor: FloorRow) -> Self {
        Self { range, floor, sessions: BTreeMap::new() }
    }

    pub(crate) fn load(
        view: &dyn View,
        range: RangeId,
        floor: FloorRow,
    ) -> Result<Self, CatalogError> {
        let mut table = Self::new(range, floor);
        let mut failed = None;
        let (from, to) = key::range_interval(key::family::RESULT, range);
        view.scan(&from, to.as_deref(), &mut |row, value| match table.load_row(row, value) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        })?;
        failed.map_or(Ok(table), Err)
    }

    fn load_row(&mut self, row: &[u8], value: &[u8]) -> Result<(), CatalogError> {
        let ids = (row.get(9..17).and_then(key::read_u64), row.get(17..).and_then(key::read_u64));
        let (Some(session), Some(seq)) = ids else {
            return Err(CatalogError::Inconsistent("a result row's key"));
        };
        let row: ResultRow = decode(value)?;
        let session = self.sessions.entry(SessionId(session)).or_default();
        session.answered_below = session.answered_below.max(row.answered_below);
        session.floor = session.floor.max(row.floor);
        session.results.insert(seq, row.index);
        Ok(())
    }

    pub(crate) fn admit(&self, txn: &Txn<'_>, caller: &Caller) -> Result<Admission, CatalogError> {
        if self.is_fenced(caller.session) {
            return Ok(Admission::Refused(Refusal::SessionFenced));
        }
        let Some(session) = self.sessions.get(&caller.session) else {
            return Ok(Admission::Fresh);
        };
        if session.results.contains_key(&caller.seq) && !bug!("resend-is-new") {
            let row: ResultRow = txn
                .get(&key::result(self.range, caller.session, caller.seq))?
                .ok_or(CatalogError::Inconsistent("a remembered result has no row"))?;
            return Ok(Admission::Remembered(row.outcome));
        }
        if caller.seq < session.answered_below || caller.base_index < session.floor {
            return Ok(Admission::Refused(Refusal::Forgotten));
        }
        Ok(Admission::Fresh)
    }

    /// Remembers what a command came to, and drops what its caller needs no more.
    pub(crate) fn remember(
        &mut self,
        txn: &mut Txn<'_>,
        index: u64,
        caller: &Caller,
        outcome: &Outcome,
    ) {
        let session = self.sessions.entry(caller.session).or_default();
        let row = |seq| key::result(self.range, caller.session, seq);
        // No later than its own seq: this result has not arrived yet, whatever the caller says.
        session.answered_below = session.answered_below.max(caller.answered_below.min(caller.seq));
        while let Some(first) = session.results.first_entry() {
            if *first.key() >= session.answered_below {
                break;
            }
            txn.remove(row(first.remove_entry().0));
        }
        if session.results.len() >= RESULTS_PER_SESSION_MAX
            && let Some((seq, dropped)) = session.results.pop_first()
        {
            session.floor = session.floor.max(dropped);
            txn.remove(row(seq));
        }
        session.results.insert(caller.seq, index);
        let value = ResultRow {
            index,
            answered_below: session.answered_below,
            floor: session.floor,
            outcome: outcome.clone(),
        };
        txn.put(row(caller.seq), &value);
    }

    /// Which sessions are refused.
    pub(crate) fn floor(&self) -> &FloorRow {
        &self.floor
    }

    /// Raises the floor. What was refused once stays refused, whoever says that it lives.
    pub(crate) fn raise_floor(&mut self, floor: SessionId, living: &[SessionId]) -> &FloorRow {
        if floor >= self.floor.floor {
            let mut living: Vec<SessionId> = living
                .iter()
                .copied()
                .filter(|&session| session < floor && !self.is_fenced(session))
                .collect();
            living.sort_unstable();
            living.dedup();
            self.floor = FloorRow { floor, living };
        }
        &self.floor
    }

    /// Forgets the results of refused sessions.
    pub(crate) fn drop_fenced(&mut self, txn: &mut Txn<'_>) {
        let floor = &self.floor;
        let range = self.range;
        self.sessions.retain(|&session, state| {
            let fenced = refused(floor, session);
            if fenced {
                state.results.keys().for_each(|&seq| txn.remove(key::result(range, session, seq)));
            }
            !fenced
        });
    }

    /// Whether every command of a session is refused, from now on and for ever.
    pub(crate) fn is_fenced(&self, session: SessionId) -> bool {
        refused(&self.floor, session)
    }
}

fn refused(floor: &FloorRow, session: SessionId) -> bool {
    session < floor.floor && floor.living.binary_search(&session).is_err()
}
