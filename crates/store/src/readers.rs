//! Who reads: room is used again only when everybody has left who may have looked it up before it was given up.
//!
//! Time is cut into eras. A reader enters the present one *before* it looks into the index. The committer takes an
//! entry out of the index and *then* ends the era: whoever still may see the entry has entered that era or an older one.

use crate::store::Core;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The readers of a store.
#[derive(Debug, Default)]
pub(crate) struct Readers(Mutex<Eras>);

#[derive(Debug, Default)]
struct Eras {
    now: u64,
    /// How many readers each era still has.
    readers: BTreeMap<u64, usize>,
    /// The committer waits for one of them.
    is_awaited: bool,
}

impl Readers {
    /// Ends the era, and names it: it is the last one whose readers may see what was given up before this call.
    pub(crate) fn end_era(&self) -> u64 {
        let mut eras = self.lock();
        eras.now += 1;
        eras.now - 1
    }

    /// Whether no reader of this era or an older one is left. If one is, the committer is woken when it leaves.
    pub(crate) fn have_left(&self, era: u64) -> bool {
        let mut eras = self.lock();
        let have_left = eras.readers.keys().next().is_none_or(|&oldest| oldest > era);
        eras.is_awaited |= !have_left;
        have_left
    }

    fn lock(&self) -> MutexGuard<'_, Eras> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As long as it lives, nothing that the index shows is overwritten or punched.
pub(crate) struct Reading {
    core: Arc<Core>,
    era: u64,
}

impl Reading {
    /// To be called before the index is looked into.
    pub(crate) fn enter(core: &Arc<Core>) -> Self {
        let mut eras = core.readers.lock();
        let era = eras.now;
        *eras.readers.entry(era).or_default() += 1;
        drop(eras);
        Self { core: core.clone(), era }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut eras = self.core.readers.lock();
        let left = eras.readers.get_mut(&self.era).expect("a reader is counted until it leaves");
        *left -= 1;
        let is_last = *left == 0;
        if is_last {
            eras.readers.remove(&self.era);
        }
        let wakes = is_last && std::mem::take(&mut eras.is_awaited);
        drop(eras);
        if wakes {
            self.core.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(readers: &Readers) -> u64 {
        let mut eras = readers.lock();
        let era = eras.now;
        *eras.readers.entry(era).or_default() += 1;
        era
    }

    fn leave(readers: &Readers, era: u64) {
        readers.lock().readers.remove(&era);
    }

    #[test]
    fn room_waits_for_those_who_came_before_it_was_given_up_and_for_no_others() {
        let readers = Readers::default();
        let early = enter(&readers);
        let first = readers.end_era();
        let late = enter(&readers);
        assert!(!readers.have_left(first));
        leave(&readers, early);
        assert!(readers.have_left(first), "who came later does not see it");
        let second = readers.end_era();
        assert!(!readers.have_left(second));
        leave(&readers, late);
        assert!(readers.have_left(second));
    }
}
