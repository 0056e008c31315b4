//! Who votes in the groups that this node leads: made to be what the root's directory says.
//!
//! ```text
//! root                       leader of the range              node that is to hold it
//! BeginReplicaMove ───────▶  hears of it                 ───▶ hears of it: has no replica
//!                            answers that it is no member ◀── Refill{damaged}: as after a loss (`refill`)
//!                            adds it as a learner         ◀── Refill{emptied}
//!                            it has caught up: one joint change to the voters that are wanted
//! EndReplicaMove   ◀───────  a quorum has confirmed it
//! ```
//!
//! A change takes out and takes in at once, so that no majority on the way is larger than before. A leader that is to go
//! lets another one lead first. One change at a time; whoever leads next goes on with what the members and the directory
//! say. Why no step of it can make two majorities, or forget what was acknowledged: `docs/adr/0021`.

use crate::codec::RefillAnswer;
use crate::group::Group;
use crate::node::Inner;
use crate::raft::{
    ChangeMembers, Raft, ReadPolicy, StoredMembership, Vote, WatchReceiver, peer_node,
};
use ashlar_host::TaskKind;
use ashlar_types::{NodeId, ReplicaMove, bug};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How long a leader works on a change before it says that it is not done: a quorum answers within a few heartbeats.
pub(crate) const CHANGE_PATIENCE: Duration = Duration::from_secs(3);
/// A learner that lacks fewer entries than this has caught up: a busy range is never quite still.
const CAUGHT_UP_ENTRIES: u64 = 64;

pub(crate) fn members(raft: &Raft) -> StoredMembership {
    (*raft.metrics().borrow_watched().membership_config).clone()
}

/// Whether a node is the only voter, so that nobody could mend what it lacks.
pub(crate) fn is_alone(group: &Group, node: NodeId) -> bool {
    let members = members(&group.raft);
    let voters: BTreeSet<u64> = members.membership().voter_ids().collect();
    voters == BTreeSet::from([node.0])
}

/// The leader's side: changes the members as `from` asks, and answers what is committed.
pub(crate) async fn answer(
    inner: &Inner,
    group: &Group,
    from: NodeId,
    emptied: bool,
) -> RefillAnswer {
    if group.leader() != Some(inner.node) {
        return RefillAnswer::NotLeader(group.leader().map(|leader| leader.0));
    }
    if emptied && !is_wanted(inner, group, from) {
        return is_outside(inner, group, from).await;
    }
    let Ok(_one) = group.changing.try_lock() else {
        return RefillAnswer::NotYet("another change of the members is on its way".to_owned());
    };
    let changed = async {
        if emptied {
            take_in(&group.raft, from.0).await
        } else {
            take_out(&group.raft, from.0).await
        }
    };
    match inner.host.clock.timeout(CHANGE_PATIENCE, changed).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(why)) => RefillAnswer::NotYet(why),
        Err(_) => {
            RefillAnswer::NotYet("no quorum of the voters without it has agreed in time".to_owned())
        }
    }
}

/// Whether the members, as a quorum confirms, do not have `from`: it closes then, and may be needed no more.
async fn is_outside(inner: &Inner, group: &Group, from: NodeId) -> RefillAnswer {
    let asked = inner.host.clock.timeout(CHANGE_PATIENCE, confirmed(&group.raft)).await;
    let members = match asked {
        Ok(Ok(confirmed)) => confirmed.members,
        Ok(Err(why)) => return RefillAnswer::NotYet(why),
        Err(_) => return RefillAnswer::NotYet("no quorum confirms who the members are".to_owned()),
    };
    let is_member = members.membership().nodes().any(|(&id, _)| id == from.0);
    if is_member || is_joint(&members) {
        return RefillAnswer::NotYet(format!("{from} is a member, and is not to be one"));
    }
    RefillAnswer::Outside
}

async fn change(raft: &Raft, changes: ChangeMembers, what: &str) -> Result<(), String> {
    let changed = raft.change_membership(changes, false).await;
    changed.map(|_| ()).map_err(|error| format!("{what}: {error}"))
}

/// Ends a change that an earlier leader, or an earlier attempt, left in the middle.
async fn finish(raft: &Raft) -> Result<(), String> {
    if is_joint(&members(raft)) {
        change(
            raft,
            ChangeMembers::AddVoterIds(BTreeSet::new()),
            "an earlier change of the members waits for a quorum",
        )
        .await?;
    }
    Ok(())
}

pub(crate) fn is_joint(members: &StoredMembership) -> bool {
    members.membership().get_joint_config().len() > 1
}

async fn take_out(raft: &Raft, node: u64) -> Result<RefillAnswer, String> {
    if bug!("emptied-while-a-voter") {
        let vote = raft.metrics().borrow_watched().vote;
        return Ok(RefillAnswer::Removed { vote, confirmed: 0 });
    }
    finish(raft).await?;
    let now = members(raft);
    let one = BTreeSet::from([node]);
    if now.membership().voter_ids().any(|id| id == node) {
        change(raft, ChangeMembers::RemoveVoters(one), "its removal waits for a quorum without it")
            .await?;
    } else if now.membership().learner_ids().any(|id| id == node) {
        // a learner that was damaged again: the leader forgets how far it had come
        change(raft, ChangeMembers::RemoveNodes(one), "its removal waits for a quorum without it")
            .await?;
    }
    // whoever removed it, and in which term: what counts is that a quorum confirms now that it is committed
    let Confirmed { members, vote, index } = confirmed(raft).await?;
    if members.membership().nodes().any(|(&id, _)| id == node) || is_joint(&members) {
        return Err("its removal is not confirmed yet".to_owned());
    }
    Ok(RefillAnswer::Removed { vote, confirmed: index })
}

/// Members that are committed, as a quorum has confirmed to this leader.
struct Confirmed {
    members: StoredMembership,
    vote: Vote,
    index: u64,
}

async fn confirmed(raft: &Raft) -> Result<Confirmed, String> {
    let confirmed = raft.ensure_linearizable(ReadPolicy::ReadIndex).await;
    let confirmed = confirmed.map_err(|error| format!("no quorum confirms it: {error}"))?;
    let index = confirmed.log_id().index;
    let metrics = raft.metrics().borrow_watched().clone();
    let members = (*metrics.membership_config).clone();
    let committed = members.log_id().as_ref().is_some_and(|id| id.index <= index);
    let leads = metrics.vote.committed && metrics.vote.leader_id.voted_for == *raft.node_id();
    if !committed || !leads {
        return Err("the members are not confirmed yet".to_owned());
    }
    Ok(Confirmed { members, vote: metrics.vote, index })
}

async fn take_in(raft: &Raft, node: u64) -> Result<RefillAnswer, String> {
    finish(raft).await?;
    let now = members(raft);
    if now.membership().voter_ids().any(|id| id == node) {
        return Ok(RefillAnswer::Voter);
    }
    if now.membership().learner_ids().any(|id| id == node) {
        return Err("it is being caught up".to_owned());
    }
    let has_first_entry = raft.metrics().borrow_watched().purged.is_none();
    if has_first_entry && !bug!("anew-from-the-first-entry") {
        // before it is added: what a learner is being sent is not purged
        lose_first_entry(raft).await?;
        return Err("a snapshot is taken first: it may not begin with the first entry".to_owned());
    }
    let added = raft.add_learner(node, peer_node(), false).await;
    added.map_err(|error| format!("it was not added: {error}"))?;
    tracing::info!(node, "a replica begins anew, as a learner");
    Err("it was added, and is being caught up".to_owned())
}

/// Whether the directory gives a range to a node. Where the directory does not know the range, what the range began with counts.
fn is_wanted(inner: &Inner, group: &Group, node: NodeId) -> bool {
    let wanted = inner.directory.wanted(group.range);
    wanted.unwrap_or_else(|| group.descriptor().voters.clone()).contains(&node)
}

/// What of the members is to change next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Due {
    /// A change that an earlier leader left in the middle is to be ended.
    End,
    /// These come, none goes.
    Come(BTreeSet<u64>),
    /// These vote, and no others.
    Vote(BTreeSet<u64>),
    /// A learner that is not to be a voter; or one that has nothing, and asks again.
    Forget(u64),
    /// This node leads and is to go: one of these leads first.
    HandOver(BTreeSet<u64>),
}

/// The duty of every leader: a change that was left in the middle is ended, and the next one that is due is made.
pub(crate) fn tend_members(inner: &Inner, group: &Arc<Group>) {
    if group.leader() != Some(inner.node) {
        return;
    }
    let Some(due) = due_change(inner, group) else { return };
    let Ok(one) = group.changing.clone().try_lock_owned() else { return };
    let (group, clock) = (group.clone(), inner.host.clock.clone());
    let changing = async move {
        let _one = one;
        let range = group.range;
        match clock.timeout(CHANGE_PATIENCE, make(&group.raft, due.clone())).await {
            Ok(Ok(())) => tracing::info!(%range, ?due, "the members were changed"),
            Ok(Err(why)) => tracing::debug!(%range, ?due, why, "the members were not changed"),
            Err(_) => tracing::debug!(%range, ?due, "the change of the members takes long"),
        }
    };
    let _changing =
        inner.host.tasks.spawn(TaskKind::Background("change members"), Box::pin(changing));
}

async fn make(raft: &Raft, due: Due) -> Result<(), String> {
    let changes = match due {
        Due::End => ChangeMembers::AddVoterIds(BTreeSet::new()),
        Due::Come(nodes) => ChangeMembers::AddVoterIds(nodes),
        Due::Vote(voters) => ChangeMembers::ReplaceAllVoters(voters),
        Due::Forget(learner) => ChangeMembers::RemoveNodes(BTreeSet::from([learner])),
        Due::HandOver(heirs) => return hand_over(raft, &heirs).await,
    };
    change(raft, changes, "the members").await
}

/// Without the first entry, whoever has nothing gets a snapshot. The others go on with the log that is left.
async fn lose_first_entry(raft: &Raft) -> Result<(), String> {
    let has_snapshot = raft.metrics().borrow_watched().snapshot.is_some();
    let triggered = match has_snapshot {
        true => raft.trigger().purge_log(0).await,
        false => raft.trigger().snapshot().await,
    };
    triggered.map_err(|error| error.to_string())
}

/// To whoever of them has most of the log. One that lacks the newest entry refuses, and is asked again at the next turn.
async fn hand_over(raft: &Raft, heirs: &BTreeSet<u64>) -> Result<(), String> {
    let metrics = raft.metrics().borrow_watched().clone();
    let progress = metrics.replication.unwrap_or_default();
    let has = |id: &&u64| progress.get(id).copied().flatten();
    let heir = heirs.iter().max_by_key(has).ok_or("nobody could lead instead")?;
    raft.trigger().transfer_leader(*heir).await.map_err(|error| error.to_string())
}

/// Whether this node leads a learner that may take no snapshot as old as the newest one, which is of before a split. Not
/// sooner: a snapshot lets the log be purged, and who is away for a moment would have to be refilled with the child.
pub(crate) fn waits_for_newer(inner: &Inner, group: &Group) -> bool {
    let has_learner = || members(&group.raft).membership().learner_ids().next().is_some();
    group.state.needs_snapshot() && group.leader() == Some(inner.node) && has_learner()
}

fn due_change(inner: &Inner, group: &Group) -> Option<Due> {
    let metrics = group.raft.metrics().borrow_watched().clone();
    let progress = metrics.replication.as_ref()?;
    let committed = metrics.local_committed.map(|id| id.index)?;
    let members = metrics.membership_config.membership();
    let caught_up = |id: &u64| {
        let has = progress.get(id).copied().flatten();
        has.is_some_and(|has| has.index + CAUGHT_UP_ENTRIES > committed)
    };
    let fresh = inner.directory.wanted_now(group.range, inner.host.clock.now());
    let known = fresh.clone().or_else(|| inner.directory.wanted(group.range));
    let wanted = known.unwrap_or_else(|| group.descriptor().voters.clone());
    Standing {
        own: inner.node.0,
        is_joint: is_joint(&metrics.membership_config),
        voters: members.voter_ids().collect(),
        learners: members.learner_ids().collect(),
        caught_up: members.learner_ids().filter(caught_up).collect(),
        has_first_entry: metrics.purged.is_none() && !bug!("anew-from-the-first-entry"),
        empty: members
            .learner_ids()
            .filter(|id| progress.get(id).copied().flatten().is_none())
            .collect(),
        wanted: wanted.iter().map(|id| id.0).collect(),
        is_fresh: fresh.is_some(),
    }
    .due()
}

/// What decides what is due in a group that this node leads.
struct Standing {
    own: u64,
    is_joint: bool,
    voters: BTreeSet<u64>,
    learners: BTreeSet<u64>,
    /// Of the learners.
    caught_up: BTreeSet<u64>,
    wanted: BTreeSet<u64>,
    /// Whether the log goes back to the first entry of the range.
    has_first_entry: bool,
    /// Learners that have, as far as is known, nothing.
    empty: BTreeSet<u64>,
    /// Whether the wish is new enough that others may go.
    is_fresh: bool,
}

impl Standing {
    /// Nobody goes before all have come that are to come: a move whose target is away takes nothing from the range.
    fn due(&self) -> Option<Due> {
        if self.is_joint {
            return Some(Due::End);
        }
        let come: BTreeSet<u64> = self.caught_up.intersection(&self.wanted).copied().collect();
        let has_all = self.wanted.difference(&self.voters).all(|id| come.contains(id));
        let goes = |id: &u64| !self.wanted.contains(id);
        if self.is_fresh && has_all && self.voters.iter().any(goes) && !self.wanted.is_empty() {
            let heirs: BTreeSet<u64> = self.voters.intersection(&self.wanted).copied().collect();
            // where nobody could lead instead, the new ones come first
            return match (goes(&self.own), heirs.is_empty()) {
                (true, false) => Some(Due::HandOver(heirs)),
                (true, true) => Some(Due::Come(come)),
                (false, _) => Some(Due::Vote(self.wanted.clone())),
            };
        }
        // two of which one is missing survive less than the one did alone, and four no more than three
        let then = self.voters.len() + come.len();
        let is_odd = then % 2 == 1;
        // by a wish of long ago it would be one more than there ever were
        let fits = self.is_fresh || then <= self.wanted.len();
        if !come.is_empty() && fits && (has_all || is_odd) {
            return Some(Due::Come(come));
        }
        // it was added by a leader that had not the first entry; this one would begin with that, and be refused for ever
        let is_stuck = |id: &u64| self.has_first_entry && self.empty.contains(id);
        let is_over = |id: &&u64| (self.is_fresh && goes(id)) || is_stuck(id);
        self.learners.iter().find(is_over).map(|&learner| Due::Forget(learner))
    }
}

/// The moves of the ranges that this node leads whose members are as wanted, confirmed by a quorum: what the root may be told.
pub(crate) async fn settled(inner: &Inner) -> Vec<ReplicaMove> {
    let mut settled = Vec::new();
    for group in inner.groups() {
        let Some(known) = inner.directory.find(group.range) else { continue };
        let wanted: BTreeSet<u64> = known.wanted().iter().map(|id| id.0).collect();
        let Some(step) = known.moving.filter(|_| group.leader() == Some(inner.node)) else {
            continue;
        };
        let is_wanted = |members: &StoredMembership| {
            !is_joint(members)
                && members.membership().voter_ids().collect::<BTreeSet<_>>() == wanted
        };
        // most of the time it is not, and nobody need be asked
        if !is_wanted(&members(&group.raft)) {
            continue;
        }
        let asked = inner.host.clock.timeout(CHANGE_PATIENCE, confirmed(&group.raft)).await;
        if let Ok(Ok(confirmed)) = asked
            && is_wanted(&confirmed.members)
        {
            settled.push(step);
        }
    }
    settled
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Node 1 leads.
    fn standing(voters: &[u64], caught_up: &[u64], wanted: &[u64]) -> Standing {
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        Standing {
            own: 1,
            is_joint: false,
            voters: set(voters),
            learners: set(caught_up),
            caught_up: set(caught_up),
            wanted: set(wanted),
            has_first_entry: false,
            empty: set(&[]),
            is_fresh: true,
        }
    }

    fn set(ids: impl IntoIterator<Item = u64>) -> BTreeSet<u64> {
        ids.into_iter().collect()
    }

    #[test]
    fn one_takes_the_place_of_another_in_one_change_once_it_has_caught_up() {
        let mut late = standing(&[1, 2, 3], &[], &[1, 2, 4]);
        late.learners.insert(4);
        assert_eq!(late.due(), None);
        (late.has_first_entry, late.empty) = (true, set([4]));
        assert_eq!(late.due(), Some(Due::Forget(4)), "it may not begin with the first entry");
        assert_eq!(standing(&[1, 2, 3], &[4], &[1, 2, 4]).due(), Some(Due::Vote(set([1, 2, 4]))));
        assert_eq!(standing(&[1, 2, 4], &[], &[1, 2, 4]).due(), None);
    }

    #[test]
    fn nobody_goes_before_all_have_come_nor_by_a_directory_of_long_ago() {
        // 3 begins anew after a loss while 2 moves to 4
        assert_eq!(standing(&[1, 2], &[4], &[1, 3, 4]).due(), Some(Due::Come(set([4]))));
        assert_eq!(standing(&[1, 2], &[], &[1, 3, 4]).due(), None);
        assert_eq!(standing(&[1, 2, 4], &[3], &[1, 3, 4]).due(), Some(Due::Vote(set([1, 3, 4]))));
        let old = Standing { is_fresh: false, ..standing(&[1, 2, 3], &[5], &[1, 2]) };
        assert_eq!(old.due(), None);
        let old = Standing { is_fresh: false, ..standing(&[1, 2, 4], &[3], &[1, 2, 3]) };
        assert_eq!(old.due(), None, "four of three");
        assert_eq!(standing(&[1, 2], &[], &[]).due(), None, "a range that nobody holds is none");
    }

    #[test]
    fn one_becomes_three_and_is_never_two() {
        let mut one = standing(&[1], &[2], &[1, 2, 3]);
        one.learners.insert(3);
        assert_eq!(one.due(), None);
        assert_eq!(standing(&[1], &[2, 3], &[1, 2, 3]).due(), Some(Due::Come(set([2, 3]))));
        assert_eq!(
            standing(&[1], &[2], &[1, 2]).due(),
            Some(Due::Come(set([2]))),
            "as it was said"
        );
    }

    #[test]
    fn who_leads_and_is_to_go_lets_another_lead_first() {
        let moved = standing(&[1, 2, 3], &[4], &[2, 3, 4]);
        assert_eq!(moved.due(), Some(Due::HandOver(set([2, 3]))));
        assert_eq!(standing(&[1], &[2], &[2]).due(), Some(Due::Come(set([2]))), "no heir yet");
        assert_eq!(standing(&[1, 2], &[], &[2]).due(), Some(Due::HandOver(set([2]))));
    }

    #[test]
    fn a_joint_change_is_ended_first_and_a_learner_of_no_use_goes_last() {
        let joint = Standing { is_joint: true, ..standing(&[1, 2, 3], &[4], &[1, 2, 4]) };
        assert_eq!(joint.due(), Some(Due::End));
        assert_eq!(standing(&[1, 2], &[4, 3], &[1, 2, 3]).due(), Some(Due::Come(set([3]))));
        assert_eq!(standing(&[1, 2, 3], &[4], &[1, 2, 3]).due(), Some(Due::Forget(4)));
    }
}
