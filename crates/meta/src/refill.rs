//! A replica that has lost what it had acknowledged takes no part any more, and is refilled by the range's leader. One that
//! the directory newly gives this node comes the same way, and one that it gives to others goes by the first half of it.
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
//! A replica that is to go is closed first, so that it acknowledges nothing any more, and is dropped after `Removed`.
//!
//! Either side may stop at any step: the replica asks again from where its WAL says it is, and any leader goes on with
//! what the membership says. Why nothing that was acknowledged is lost, step by step: `docs/adr/0009`.
//!
//! What it leaves out: two damaged replicas of three. Their removal needs a quorum that is not there, so they stay as they
//! are and say so.

use crate::birth::{Created, Origin};
use crate::codec::RefillAnswer;
use crate::group::Group;
use crate::members::{CHANGE_PATIENCE, is_alone, members};
use crate::network::Peers;
use crate::node::Inner;
use crate::raft::{Instant, Vote, WatchReceiver};
use ashlar_types::{NodeId, RangeDescriptor, RangeId};
use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How often a replica asks.
const PERIOD: Duration = Duration::from_millis(500);
/// How long the answer may take.
const ASK_PATIENCE: Duration = Duration::from_secs(4);
const _: () = assert!(CHANGE_PATIENCE.as_secs() < ASK_PATIENCE.as_secs());
/// A replica that has heard no leader for so long may have been taken out without knowing it, by a wish of its own that
/// came late, or because it is to be held elsewhere: it asks. Longer than an election takes.
const SILENCE: Duration = Duration::from_secs(5);
/// The same for one that the directory gives to others.
const SILENCE_OF_OTHERS: Duration = Duration::from_secs(2);

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

/// Why a replica is not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It lacks what it had acknowledged, or may lack it.
    Damaged,
    /// A move brings it here.
    Comes,
    /// The directory gives it to others.
    Leaves,
}

/// As the node keeps it.
#[derive(Clone)]
pub(crate) struct Damaged {
    pub(crate) reason: Reason,
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
        Self::new(Reason::Damaged, descriptor, why)
    }

    /// One that a move brings to this node.
    pub(crate) fn comes(descriptor: RangeDescriptor) -> Self {
        tracing::info!(range = %descriptor.id, "a replica is to come to this node");
        Self::new(Reason::Comes, descriptor, "a move brings it to this node".to_owned())
    }

    /// One that is held by others from now on.
    pub(crate) fn leaves(descriptor: RangeDescriptor) -> Self {
        tracing::info!(range = %descriptor.id, "the replica is held by others now: it leaves this node");
        Self::new(Reason::Leaves, descriptor, "it is held by others now".to_owned())
    }

    fn new(reason: Reason, descriptor: RangeDescriptor, why: String) -> Self {
        Self { reason, descriptor, origin: None, why, standing: "nobody was asked yet".to_owned() }
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
        // not while one of them is being opened
        if let Ok(_one) = inner.opening_due.try_lock()
            && let Err(error) = inner.note_leaving()
        {
            tracing::error!(%error, "what is to leave is not known");
        }
        let damaged = inner.damaged();
        alarm(&inner, &damaged);
        let refills = damaged.into_iter().map(|replica| refill(&inner, replica));
        let groups = inner.groups().into_iter();
        let (inside, outside): (Vec<_>, Vec<_>) =
            groups.partition(|group| !may_be_outside(&inner, group));
        drop(inside);
        let joins = outside.into_iter().map(|group| join_or_leave(&inner, group));
        futures::future::join(futures::future::join_all(refills), futures::future::join_all(joins))
            .await;
        let clock = inner.host.clock.clone();
        drop(inner);
        clock.sleep(PERIOD).await;
    }
}

/// Whether the group runs here, and its members, as this node knows them, do not have this node as a voter.
fn is_outside(inner: &Inner, group: &Group) -> bool {
    !members(&group.raft).membership().voter_ids().any(|id| id == inner.node.0)
}

/// Whether this node's replica may be no member, as far as it knows.
fn may_be_outside(inner: &Inner, group: &Group) -> bool {
    let patience = if is_others(inner, group.range) { SILENCE_OF_OTHERS } else { SILENCE };
    is_outside(inner, group) || silence(inner, group) > patience
}

/// For how long nobody has led this replica; one that takes itself for the leader: for how long no quorum has answered it.
fn silence(inner: &Inner, group: &Group) -> Duration {
    if group.leader() != Some(inner.node) {
        return group.silence();
    }
    if is_alone(group, inner.node) {
        return Duration::ZERO;
    }
    let acked = group.raft.metrics().borrow_watched().last_quorum_acked;
    acked.map_or(Duration::ZERO, |when| when.elapsed())
}

/// Whether the directory gives a range to others. One that it does not know may be new.
fn is_others(inner: &Inner, range: RangeId) -> bool {
    inner.directory.names(range, inner.node) == Some(false)
}

fn alarm(inner: &Inner, damaged: &[Damaged]) {
    let gauge = |range: RangeId, is_alarm: bool| {
        metrics::gauge!("ashlar_raft_damaged", "range" => range.0.to_string())
            .set(f64::from(u8::from(is_alarm)));
    };
    inner.groups().iter().for_each(|group| gauge(group.range, is_outside(inner, group)));
    let is_alarm = |replica: &Damaged| replica.reason == Reason::Damaged;
    damaged.iter().for_each(|replica| gauge(replica.descriptor.id, is_alarm(replica)));
}

/// The way out of the group, and the beginning of an empty one, where this node is to hold one.
async fn refill(inner: &Arc<Inner>, replica: Damaged) {
    let range = replica.descriptor.id;
    let leaves = is_others(inner, range) || replica.reason == Reason::Leaves;
    if leaves && !inner.is_stored(range) {
        return inner.forget_lacking(range);
    }
    if !leaves && !inner.may_open(replica.origin.as_ref()) {
        let waits = "what it was a part of is behind the split here, and goes first";
        return inner.note_standing(range, waits.to_owned());
    }
    let standing = match ask(inner, &replica.descriptor, false).await {
        Ok(RefillAnswer::Removed { vote, confirmed }) => {
            let Damaged { descriptor, origin, .. } = replica;
            let removal = Removal { descriptor, origin, vote, confirmed };
            let done = match leaves {
                true => inner.drop_replica(removal).await,
                false => inner.begin_anew(removal).await,
            };
            match done {
                Ok(()) => return,
                Err(error) => error.to_string(),
            }
        }
        Ok(other) => format!("the leader's answer makes no sense: {other:?}"),
        Err(standing) => standing,
    };
    inner.note_standing(range, standing);
}

/// The way back into the members; or out of this node, where others are to hold the range. That it has ended shows in the
/// members.
async fn join_or_leave(inner: &Inner, group: Arc<Group>) {
    let is_others = is_others(inner, group.range);
    if is_others && is_outside(inner, &group) {
        return inner.close_to_leave(&group).await;
    }
    match ask(inner, &group.descriptor(), true).await {
        // not for silence alone: where nobody leads, it may be one of those who are needed for an election
        Ok(RefillAnswer::Outside) if is_others => inner.close_to_leave(&group).await,
        Ok(answer) => tracing::debug!(range = %group.range, ?answer, "the leader answers"),
        Err(standing) => {
            tracing::debug!(range = %group.range, standing, "not a member yet");
        }
    }
}

/// The answer of whoever leads the range; an error says why there is none. Asked are those who hold it, and whoever they say
/// leads it.
async fn ask(
    inner: &Inner,
    descriptor: &RangeDescriptor,
    emptied: bool,
) -> Result<RefillAnswer, String> {
    let range = descriptor.id;
    let peers = Peers { sender: inner.sender.clone(), range };
    let holders = inner.directory.holders(range).unwrap_or_else(|| descriptor.voters.clone());
    let (mut said, mut asked) = (Vec::new(), vec![inner.node]);
    let mut next: VecDeque<NodeId> = holders.into();
    while let Some(voter) = next.pop_front() {
        if asked.contains(&voter) {
            continue;
        }
        asked.push(voter);
        match peers.peer(voter.0).ask_refill(emptied, ASK_PATIENCE).await {
            Ok(RefillAnswer::NotLeader(leader)) => {
                said.push(format!("{voter} does not lead it"));
                leader.into_iter().for_each(|leader| next.push_front(NodeId(leader)));
            }
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
