//! A replica that has lost what it had acknowledged takes no part any more, and is refilled by the range's leader.
//!
//! ```text
//! damaged replica                          leader
//! opens nothing: no vote, no append
//! Refill{damaged}            ──────────▶   removes it from the members, by a commit of the others
//!                            ◀──────────   Removed{vote}, once a quorum has confirmed that
//! one batch of the WAL: dropped, created, vote
//! opens an empty group
//! Refill{emptied}            ──────────▶   adds it as a learner
//!                                          entries or snapshot; then makes it a voter again
//! ```
//!
//! Either side may stop at any step: the replica asks again from where its WAL says it is, and any leader goes on with
//! what the membership says. Why nothing that was acknowledged is lost, step by step: `docs/adr/0009`.
//!
//! What it leaves out: two damaged replicas of three. Their removal needs a quorum that is not there, so they stay as they
//! are and say so.

use crate::birth::{Created, Origin};
use crate::codec::RefillAnswer;
use crate::group::Group;
use crate::network::Peers;
use crate::node::Inner;
use crate::raft::{
    ChangeMembers, Raft, ReadPolicy, StoredMembership, Vote, WatchReceiver, peer_node,
};
use ashlar_host::TaskKind;
use ashlar_types::{NodeId, RangeDescriptor, RangeId, bug};
use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How often a replica asks.
const PERIOD: Duration = Duration::from_millis(500);
/// How long a leader works on a change before it says that it is not done: a quorum answers within a few heartbeats.
const CHANGE_PATIENCE: Duration = Duration::from_secs(3);
/// How long the answer may take.
const ASK_PATIENCE: Duration = Duration::from_secs(4);
const _: () = assert!(CHANGE_PATIENCE.as_secs() < ASK_PATIENCE.as_secs());
/// A replica that has heard no leader for so long may have been taken out without knowing it, by a wish of its own that
/// came late: it asks. Longer than an election takes.
const SILENCE: Duration = Duration::from_secs(5);
/// A learner that lacks fewer entries than this has caught up: a busy range is never quite still.
const CAUGHT_UP_ENTRIES: u64 = 64;

/// A replica that is not opened, because it lacks something that it had acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedRange {
    /// The range.
    pub range: RangeId,
    /// What is damaged.
    pub why: String,
    /// How far its refilling has come, or what it waits for.
    pub standing: String,
}

/// As the node keeps it.
#[derive(Clone)]
pub(crate) struct Damaged {
    pub(crate) descriptor: RangeDescriptor,
    pub(crate) origin: Option<Origin>,
    pub(crate) why: String,
    pub(crate) standing: String,
}

impl Damaged {
    /// One that the log still says is here.
    pub(crate) fn stored(created: &Created, why: impl Into<String>) -> Self {
        let origin = created.origin().cloned();
        Self { origin, ..Self::lost(created.descriptor().clone(), why) }
    }

    /// One of which the log says nothing.
    pub(crate) fn lost(descriptor: RangeDescriptor, why: impl Into<String>) -> Self {
        let why = why.into();
        tracing::error!(range = %descriptor.id, why, "the replica is damaged: it takes no part until it is refilled");
        Self { descriptor, origin: None, why, standing: "nobody was asked yet".to_owned() }
    }
}

/// That the others have taken this node's replica out of the members, as their leader has answered it here. Only what asks
/// makes one.
pub(crate) struct Removal {
    descriptor: RangeDescriptor,
    origin: Option<Origin>,
    vote: Vote,
    confirmed: u64,
}

impl Removal {
    pub(crate) fn descriptor(&self) -> &RangeDescriptor {
        &self.descriptor
    }

    /// What the replica began with, the vote under which its removal is committed, and an index at which it was.
    pub(crate) fn into_parts(self) -> (RangeDescriptor, Option<Origin>, Vote, u64) {
        (self.descriptor, self.origin, self.vote, self.confirmed)
    }

    #[cfg(test)]
    pub(crate) fn told(
        descriptor: RangeDescriptor,
        origin: Option<Origin>,
        vote: Vote,
        confirmed: u64,
    ) -> Self {
        Self { descriptor, origin, vote, confirmed }
    }
}

/// Asks for what the replicas of this node need, until the node is gone or stops.
pub(crate) async fn run(node: Weak<Inner>) {
    loop {
        let Some(inner) = node.upgrade() else { return };
        if inner.has_ended() {
            return;
        }
        let damaged = inner.damaged();
        alarm(&inner, &damaged);
        let refills = damaged.into_iter().map(|replica| refill(&inner, replica));
        let groups = inner.groups().into_iter();
        let joins =
            groups.filter(|group| may_be_outside(&inner, group)).map(|group| join(&inner, group));
        futures::future::join(futures::future::join_all(refills), futures::future::join_all(joins))
            .await;
        let clock = inner.host.clock.clone();
        drop(inner);
        clock.sleep(PERIOD).await;
    }
}

/// Whether the group runs here, and its members, as this node knows them, do not have this node as a voter.
fn is_outside(inner: &Inner, group: &Group) -> bool {
    let members = members(&group.raft);
    group.descriptor().voters.contains(&inner.node)
        && !members.membership().voter_ids().any(|id| id == inner.node.0)
}

/// Whether this node's replica may be no member, as far as it knows.
fn may_be_outside(inner: &Inner, group: &Group) -> bool {
    is_outside(inner, group) || (group.silence() > SILENCE && group.leader() != Some(inner.node))
}

fn members(raft: &Raft) -> StoredMembership {
    (*raft.metrics().borrow_watched().membership_config).clone()
}

fn alarm(inner: &Inner, damaged: &[Damaged]) {
    let gauge = |range: RangeId, is_alarm: bool| {
        metrics::gauge!("ashlar_raft_damaged", "range" => range.0.to_string())
            .set(f64::from(u8::from(is_alarm)));
    };
    inner.groups().iter().for_each(|group| gauge(group.range, is_outside(inner, group)));
    damaged.iter().for_each(|replica| gauge(replica.descriptor.id, true));
}

/// The way out of the group, and the beginning of an empty one.
async fn refill(inner: &Arc<Inner>, replica: Damaged) {
    let range = replica.descriptor.id;
    if !inner.may_open(replica.origin.as_ref()) {
        let waits = "what it was a part of is behind the split here, and goes first";
        return inner.note_standing(range, waits.to_owned());
    }
    let standing = match ask(inner, &replica.descriptor, false).await {
        Ok(RefillAnswer::Removed { vote, confirmed }) => {
            let Damaged { descriptor, origin, .. } = replica;
            match inner.begin_anew(Removal { descriptor, origin, vote, confirmed }).await {
                Ok(()) => return,
                Err(error) => error.to_string(),
            }
        }
        Ok(other) => format!("the leader's answer makes no sense: {other:?}"),
        Err(standing) => standing,
    };
    inner.note_standing(range, standing);
}

/// The way back into it. That it has ended shows in the members.
async fn join(inner: &Inner, group: Arc<Group>) {
    match ask(inner, &group.descriptor(), true).await {
        Ok(answer) => tracing::debug!(range = %group.range, ?answer, "the leader answers"),
        Err(standing) => {
            tracing::debug!(range = %group.range, standing, "not a member yet");
        }
    }
}

/// The answer of whoever leads the range; an error says why there is none.
async fn ask(
    inner: &Inner,
    descriptor: &RangeDescriptor,
    emptied: bool,
) -> Result<RefillAnswer, String> {
    let peers = Peers { sender: inner.sender.clone(), range: descriptor.id };
    let mut said = Vec::new();
    for &voter in descriptor.voters.iter().filter(|&&voter| voter != inner.node) {
        match peers.peer(voter.0).ask_refill(emptied, ASK_PATIENCE).await {
            Ok(RefillAnswer::NotLeader(_)) => said.push(format!("{voter} does not lead it")),
            Ok(RefillAnswer::NotYet(why)) => return Err(format!("{voter} leads it: {why}")),
            Ok(decided) => return Ok(decided),
            Err(error) => said.push(format!("{voter} does not answer: {error}")),
        }
    }
    if said.is_empty() {
        return Err("no other node has this range: restore this node's directory".to_owned());
    }
    Err(format!(
        "no leader refills it, which takes a quorum of its voters without this one: {}",
        said.join("; ")
    ))
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
    if !group.descriptor().voters.contains(&from) {
        return RefillAnswer::NotYet(format!("{from} is no replica of {}", group.range));
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

fn is_joint(members: &StoredMembership) -> bool {
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
    let confirmed = raft.ensure_linearizable(ReadPolicy::ReadIndex).await;
    let confirmed = confirmed.map_err(|error| format!("no quorum confirms it: {error}"))?;
    let metrics = raft.metrics().borrow_watched().clone();
    let members = &metrics.membership_config;
    let committed =
        members.log_id().as_ref().is_some_and(|id| id.index <= confirmed.log_id().index);
    let is_member = members.membership().nodes().any(|(&id, _)| id == node);
    let leads = metrics.vote.committed && metrics.vote.leader_id.voted_for == *raft.node_id();
    if !committed || is_member || is_joint(members) || !leads {
        return Err("its removal is not confirmed yet".to_owned());
    }
    Ok(RefillAnswer::Removed { vote: metrics.vote, confirmed: confirmed.log_id().index })
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
    let added = raft.add_learner(node, peer_node(), false).await;
    added.map_err(|error| format!("it was not added: {error}"))?;
    tracing::info!(node, "a replica begins anew, as a learner");
    Err("it was added, and is being caught up".to_owned())
}

/// The duty of every leader: a change that was left in the middle is ended, a learner that has caught up becomes a voter.
pub(crate) fn tend_members(inner: &Inner, group: &Arc<Group>) {
    if group.leader() != Some(inner.node) {
        return;
    }
    let Some(due) = due_change(group) else { return };
    let Ok(one) = group.changing.clone().try_lock_owned() else { return };
    let (group, clock) = (group.clone(), inner.host.clock.clone());
    let changing = async move {
        let _one = one;
        let range = group.range;
        let changed = change(&group.raft, ChangeMembers::AddVoterIds(due), "the members");
        match clock.timeout(CHANGE_PATIENCE, changed).await {
            Ok(Ok(())) => tracing::info!(%range, "the members were changed"),
            Ok(Err(why)) => tracing::debug!(%range, why, "the members were not changed"),
            Err(_) => tracing::debug!(%range, "the change of the members takes long"),
        }
    };
    let _changing =
        inner.host.tasks.spawn(TaskKind::Background("change members"), Box::pin(changing));
}

/// Whether this node leads a learner that may take no snapshot as old as the newest one, which is of before a split. Not
/// sooner: a snapshot lets the log be purged, and who is away for a moment would have to be refilled with the child.
pub(crate) fn waits_for_newer(inner: &Inner, group: &Group) -> bool {
    let has_learner = || members(&group.raft).membership().learner_ids().next().is_some();
    group.state.needs_snapshot() && group.leader() == Some(inner.node) && has_learner()
}

/// The learner that becomes a voter; nobody: a joint configuration is ended. One change at a time.
fn due_change(group: &Group) -> Option<BTreeSet<u64>> {
    let metrics = group.raft.metrics().borrow_watched().clone();
    if is_joint(&metrics.membership_config) {
        return Some(BTreeSet::new());
    }
    let progress = metrics.replication.as_ref()?;
    let committed = metrics.local_committed.map(|id| id.index)?;
    let caught_up = |id: &u64| {
        let has = progress.get(id).copied().flatten();
        has.is_some_and(|has| has.index + CAUGHT_UP_ENTRIES > committed)
    };
    let descriptor = group.descriptor();
    let belongs = |id: &u64| descriptor.voters.contains(&NodeId(*id));
    let mut learners = metrics.membership_config.membership().learner_ids();
    learners.find(|id| belongs(id) && caught_up(id)).map(|id| BTreeSet::from([id]))
}
