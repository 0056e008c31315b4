//! How long the node that leads the root has watched the others.

use ashlar_host::Monotonic;
use std::time::Duration;

/// Who has not looked for so long was stopped itself: what it has not seen meanwhile says nothing about others.
const STANDSTILL: Duration = Duration::from_secs(10);

/// Since when this node leads the root and has watched all the time: what was away before is not known here, its time
/// begins anew.
#[derive(Debug)]
pub(crate) struct Watch {
    looked: Monotonic,
    since: Option<Monotonic>,
}

impl Watch {
    pub(crate) fn begin(now: Monotonic) -> Self {
        Self { looked: now, since: None }
    }

    /// Looks now. `None`: this node does not lead, or has stood still.
    pub(crate) fn look(&mut self, now: Monotonic, leads: bool) -> Option<Monotonic> {
        let has_stood_still = now - self.looked >= STANDSTILL;
        self.looked = now;
        self.since = match has_stood_still || !leads {
            true => None,
            false => Some(self.since.unwrap_or(now)),
        };
        self.since
    }
}
