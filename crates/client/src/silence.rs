//! Which nodes answer no metadata calls: kept for all calls together, so that a node that was stopped costs them one
//! wait and not one each.
//!
//! A node is *silent* when a call has waited [`SILENCE_MAX`] for it and nothing was heard of it meanwhile: a single slow
//! answer among others makes no silence. Whoever waits for a node that turns out to be silent goes elsewhere at once.
//! The belief ends when something is heard, or after [`BELIEVED_FOR`]: a leader that all others name must be asked again
//! in the end. Like all beliefs it is advice for choosing whom to ask, never a fact.

use ashlar_host::Monotonic;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Shorter than the time after which the voters replace a leader (1.2 s), longer than a sync on a busy disk.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(1);
/// Longer than what an election then still takes.
const BELIEVED_FOR: Duration = Duration::from_millis(1500);

/// What was heard of nodes, by their addresses.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    nodes: Mutex<BTreeMap<String, Heard>>,
    /// Told whenever a node turns out to be silent.
    noticed: Notify,
}

#[derive(Debug, Clone, Copy, Default)]
struct Heard {
    last: Option<Monotonic>,
    silent_until: Option<Monotonic>,
}

impl Silence {
    fn get(&self, address: &str) -> Heard {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.get(address).copied().unwrap_or_default()
    }

    fn set(&self, address: &str, heard: Heard) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        match nodes.get_mut(address) {
            Some(known) => *known = heard,
            None => drop(nodes.insert(address.to_owned(), heard)),
        }
    }

    /// The node has answered something.
    pub(crate) fn heard(&self, address: &str, now: Monotonic) {
        self.set(address, Heard { last: Some(now), silent_until: None });
    }

    /// When a call that was sent at `sent` has waited for so long that the node is silent, if nothing is heard until then.
    pub(crate) fn silent_from(&self, address: &str, sent: Monotonic) -> Monotonic {
        self.get(address).last.map_or(sent, |last| last.max(sent)) + SILENCE_MAX
    }

    /// A call that was sent at `sent` still waits: whether the node is silent. All who wait for it are told.
    pub(crate) fn judge(&self, address: &str, sent: Monotonic, now: Monotonic) -> bool {
        if now < self.silent_from(address, sent) {
            return false;
        }
        metrics::counter!("ashlar_client_silent_nodes_total").increment(1);
        tracing::info!(address, "a node answers no metadata calls: others are asked");
        let heard = Heard { silent_until: Some(now + BELIEVED_FOR), ..self.get(address) };
        self.set(address, heard);
        self.noticed.notify_waiters();
        true
    }

    /// Whether nothing is expected of the node at `now`.
    pub(crate) fn is_silent(&self, address: &str, now: Monotonic) -> bool {
        self.get(address).silent_until.is_some_and(|until| now < until)
    }

    /// Waits until somebody finds that the node is silent.
    pub(crate) async fn noticed(&self, address: &str, sent: Monotonic) {
        loop {
            // whatever is noticed from here on wakes it
            let noticed = self.noticed.notified();
            if self.is_silent(address, sent) {
                return;
            }
            noticed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "n1:7000";

    fn at(ms: u64) -> Monotonic {
        Monotonic::default() + Duration::from_millis(ms)
    }

    #[test]
    fn a_node_is_silent_only_when_nothing_at_all_was_heard_while_a_call_waited() {
        let silence = Silence::default();
        silence.heard(NODE, at(700));
        assert!(!silence.judge(NODE, at(0), at(1600)), "another call was answered meanwhile");
        assert!(!silence.is_silent(NODE, at(1600)));
        assert!(silence.judge(NODE, at(0), at(1700)));
        assert!(silence.is_silent(NODE, at(1700)) && !silence.is_silent("n2:7000", at(1700)));
        assert!(!silence.judge(NODE, at(1700), at(2600)), "a later call has not waited yet");
    }

    #[test]
    fn the_belief_ends_with_an_answer_or_after_a_while() {
        let silence = Silence::default();
        assert!(silence.judge(NODE, at(0), at(1000)));
        assert!(silence.is_silent(NODE, at(2499)) && !silence.is_silent(NODE, at(2500)));
        assert!(silence.judge(NODE, at(2500), at(3500)), "it is asked again and found so again");
        silence.heard(NODE, at(3600));
        assert!(!silence.is_silent(NODE, at(3600)));
    }
}
