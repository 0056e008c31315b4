//! Background duties of a node's groups: snapshots when the log has grown, votes after a torn tail, members that are to be
//! changed, metrics.

use crate::group::Group;
use crate::members;
use crate::node::Inner;
use ashlar_wal::GroupHealth;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How often the duties are looked at.
const PERIOD: Duration = Duration::from_millis(250);
/// How long a node whose tail was torn waits for a leader's appends. All nodes lose power together: then every tail may be torn,
/// none of them was acknowledged, and somebody has to vote.
const TORN_TAIL_PATIENCE: Duration = Duration::from_secs(4);

/// Runs until the node is gone or stops.
pub(crate) async fn run(node: Weak<Inner>) {
    loop {
        let Some(inner) = node.upgrade() else { return };
        if inner.has_ended() {
            return;
        }
        for group in inner.groups() {
            look_after(&inner, &group).await;
        }
        inner.open_due_soon();
        let clock = inner.host.clock.clone();
        drop(inner);
        clock.sleep(PERIOD).await;
    }
}

async fn look_after(inner: &Inner, group: &Arc<Group>) {
    show_leader(group, group.leader() == Some(inner.node));
    if let Some(why) = group.state.outgrown() {
        inner.note_outgrown(group.range, why);
    }
    if waits_in_vain(group.health, group.silence(), members::is_alone(group, inner.node)) {
        group.allow_votes();
    }
    members::tend_members(inner, group);
    let size = group.state.newest().map_or(0, |file| file.length);
    let grown = group.state.log_bytes.load(Ordering::Relaxed);
    let is_due =
        grown > size.max(inner.snapshot_log_bytes) || members::waits_for_newer(inner, group);
    if is_due
        && group.state.may_build()
        && let Err(error) = group.raft.trigger().snapshot().await
    {
        tracing::warn!(range = %group.range, %error, "no snapshot: the range is stopped on this node");
    }
}

/// Says whether this node leads a group.
pub(crate) fn show_leader(group: &Group, leads: bool) {
    let range = group.range.0.to_string();
    metrics::gauge!("ashlar_raft_leader", "range" => range).set(f64::from(u8::from(leads)));
}

/// Whether nobody will mend a torn tail: there is nobody else, or nobody leads. Only appends that arrive say that somebody
/// does: the stored vote still names the leader of before the power cut.
fn waits_in_vain(health: GroupHealth, silence: Duration, is_alone: bool) -> bool {
    health == GroupHealth::TornTail && (is_alone || silence > TORN_TAIL_PATIENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_torn_tail_that_no_leader_mends_gives_up_waiting() {
        let longer = TORN_TAIL_PATIENCE + PERIOD;
        assert!(waits_in_vain(GroupHealth::TornTail, longer, false));
        assert!(!waits_in_vain(GroupHealth::TornTail, TORN_TAIL_PATIENCE, false));
        assert!(!waits_in_vain(GroupHealth::Corrupt, longer, true));
        assert!(waits_in_vain(GroupHealth::TornTail, Duration::ZERO, true));
    }
}
