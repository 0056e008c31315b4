//! Replicas that come to this node, go from it or begin anew while it runs.

use super::{Inner, MetaError, Waiting, shut};
use crate::birth::{Created, Origin};
use crate::group::Group;
use crate::keeper;
use crate::machine::{State, read_applied};
use crate::refill::{Damaged, Reason, Removal};
use ashlar_catalog::OrderedMap;
use ashlar_host::TaskKind;
use ashlar_types::{Interval, RangeDescriptor, RangeId, RangeReplicas};
use ashlar_wal::Record;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// How often it is looked whether the last user of a group that was ended has let go of it.
const ENDING_POLL: Duration = Duration::from_millis(20);
/// A range that did not open is tried again.
const OPEN_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// A range on this node: as it is now, or began, where it does not run.
struct Replica {
    now: RangeDescriptor,
    /// What it began with.
    first: Interval,
    /// It runs, and something is applied: its interval is that of a moment, and only shrinks.
    is_settled: bool,
}

impl Inner {
    /// Drops a damaged replica and opens an empty one. Only once it is committed that this node is no member: until then
    /// somebody may count on what the replica had acknowledged. A crash in between repeats all of it.
    pub(crate) async fn begin_anew(&self, removal: Removal) -> Result<(), MetaError> {
        let range = removal.descriptor().id;
        // nothing that was a part of it begins to run meanwhile
        let _one = self.opening_due.lock().await;
        let is_waiting =
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&range);
        if is_waiting || self.group(range).is_some() {
            return Err(MetaError::Group(range, "it is here".to_owned()));
        }
        self.check_ended(range)?;
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let map = map.ok_or(MetaError::Stopping)?;
        // those that wait, and those that run: a replica may be found out while they do
        let children = self.parts_of(range)?;
        self.forget_all_but_log(removal.descriptor(), children.clone(), map.clone()).await?;
        let created = self.opening.drop_log(self.cluster, removal).await?;
        self.opening.end_distrust(range)?;
        let state = Arc::new(self.opening.open_state(&map, created.descriptor())?);
        children.iter().for_each(|child| state.adopt(child));
        drop((children, map));
        let group = self.start_group(&created, state).await?;
        tracing::warn!(%range, "an empty replica waits for the range's leader");
        metrics::counter!("ashlar_raft_refills_total").increment(1);
        self.admit(group).await
    }

    /// A replica that others hold from now on takes no part any more. Closed before it asks to be out: whatever it had
    /// acknowledged later would be forgotten with it (R5, R7).
    pub(crate) async fn close_to_leave(&self, group: &Arc<Group>) {
        if let Some(closed) = self.withdraw(group) {
            self.end(closed).await;
            self.note_damaged(Damaged::leaves((*group.descriptor()).clone()));
        }
    }

    /// A replica whose state is not that of the others takes no part any more: it begins anew, as a damaged one does (R4).
    /// It goes on when whoever has found that out is gone.
    pub(crate) fn begin_to_distrust(self: &Arc<Self>, group: &Arc<Group>, why: &str) {
        let (inner, group, why) = (self.clone(), group.clone(), why.to_owned());
        let distrusting = Box::pin(async move { inner.distrust(group, why).await });
        let _distrusting =
            self.host.tasks.spawn(TaskKind::Background("distrust a replica"), distrusting);
    }

    /// A leader hands over first, so that it is missed no longer than at a planned stop. What is not trusted is the group that
    /// was judged, and not one that has begun anew since.
    async fn distrust(&self, group: Arc<Group>, why: String) {
        let range = group.range;
        self.hand_over(&group).await;
        let Some(closed) = self.withdraw(&group) else { return };
        drop(group);
        tracing::error!(%range, why, "the state of the replica is not to be trusted");
        metrics::counter!("ashlar_raft_distrusted_total").increment(1);
        self.distrusted.fetch_add(1, Ordering::Relaxed);
        let (opening, told) = (self.opening.clone(), why.clone());
        let marking = move || opening.distrust(range, &told);
        if let Err(error) = self.host.tasks.run_blocking(marking).await {
            tracing::warn!(%range, %error, "a crash makes this node forget that the replica is not to be trusted");
        }
        self.end(closed).await;
        // an entry that it was just applying may make a part of it
        while self.is_ending(range) && !self.has_ended() {
            self.host.clock.sleep(ENDING_POLL).await;
        }
        match self.present_beginning(range) {
            Ok(Some((descriptor, origin))) => {
                self.note_damaged(Damaged { origin, ..Damaged::lost(descriptor, why) });
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%range, %error, "the replica cannot begin anew before this node is started again");
            }
        }
    }

    /// Takes a group out of those that run, if it is still this one.
    fn withdraw(&self, group: &Arc<Group>) -> Option<Arc<Group>> {
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        let is_same = groups.get(&group.range).is_some_and(|known| Arc::ptr_eq(known, group));
        let taken = is_same.then(|| groups.remove(&group.range)).flatten();
        taken.inspect(|closed| keeper::show_leader(closed, false))
    }

    /// Ends a group that was taken out. Whatever of it still works on its rows keeps a new life from beginning.
    async fn end(&self, closed: Arc<Group>) {
        let (range, state) = (closed.range, Arc::downgrade(&closed.state));
        self.ending.lock().unwrap_or_else(PoisonError::into_inner).insert(range, state);
        closed.closed.request();
        shut(&closed).await;
    }

    fn check_ended(&self, range: RangeId) -> Result<(), MetaError> {
        match self.is_ending(range) {
            true => Err(MetaError::Group(range, "its former life is still ending".to_owned())),
            false => Ok(()),
        }
    }

    /// Whether something of a group that was ended may still write its rows.
    fn is_ending(&self, range: RangeId) -> bool {
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        ending.retain(|_, state| state.strong_count() > 0);
        ending.contains_key(&range)
    }

    /// With what a replica begins anew that has run: what the range is now, without what is other ranges' by then. They run
    /// here, and must not be met by the rows of before their splits: neither by a snapshot of before, nor by its removal (R5).
    fn present_beginning(
        &self,
        range: RangeId,
    ) -> Result<Option<(RangeDescriptor, Option<Origin>)>, MetaError> {
        let stored = self.opening.stored()?;
        let Some(created) = stored.iter().find(|created| created.range() == range).cloned() else {
            return Ok(None);
        };
        // the root's word, and not its own rows', which are not trusted
        let known = self.directory.find(range).map(|one| one.range);
        let began = created.descriptor().clone();
        let mut now = known.filter(|known| known.epoch > began.epoch).unwrap_or(began);
        // whatever lies in it was a part of it, or of one of its parts
        for other in stored.iter().filter(|other| other.range() != range) {
            let theirs = &other.descriptor().interval;
            if theirs.without(&now.interval).is_empty() {
                let left = now.interval.without(theirs).into_iter().next();
                now.interval = left.unwrap_or(now.interval);
            }
        }
        Ok(Some((now, created.origin().cloned())))
    }

    /// The end of a replica that the others have taken out of the members. A crash in between repeats all of it: until the
    /// last step the log has it.
    pub(crate) async fn drop_replica(&self, removal: Removal) -> Result<(), MetaError> {
        let range = removal.descriptor().id;
        // it does not begin to run meanwhile, and no more does what was a part of it
        let _one = self.opening_due.lock().await;
        if self.group(range).is_some() {
            return Err(MetaError::Group(range, "it is here".to_owned()));
        }
        self.check_ended(range)?;
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&range);
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let map = map.ok_or(MetaError::Stopping)?;
        let children = self.parts_of(range)?;
        self.forget_all_but_log(removal.descriptor(), children, map).await?;
        self.wal.submit_all_durable(range, vec![Record::Dropped]).await?;
        self.opening.end_distrust(range)?;
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).remove(&range);
        metrics::counter!("ashlar_raft_replicas_left_total").increment(1);
        tracing::info!(%range, "the replica has left this node");
        Ok(())
    }

    /// Rows and snapshots of a replica that is to begin anew or to go. What was a part of it here has a snapshot of its own
    /// first: its beginning may lie in them alone (R8).
    async fn forget_all_but_log(
        &self,
        of: &RangeDescriptor,
        children: Vec<Arc<State>>,
        map: Arc<dyn OrderedMap>,
    ) -> Result<(), MetaError> {
        let (opening, of) = (self.opening.clone(), of.clone());
        let forgotten = self.host.tasks.run_blocking(move || {
            let view = map.view();
            let secured = children.iter().try_for_each(|child| child.secure(&*view));
            secured.map_err(|error| MetaError::Group(of.id, error.to_string()))?;
            opening.forget(&*map, &of)
        });
        forgotten.await
    }

    /// Replicas that do not run and that others hold: they do not open, or wait for what they were a part of.
    pub(crate) fn note_leaving(&self) -> Result<(), MetaError> {
        for created in self.opening.stored()? {
            let range = created.range();
            let is_others = self.directory.names(range, self.node) == Some(false);
            // what is just being born is not what does not open: apply has not done with it
            let is_born = !self.may_open(created.origin());
            if !is_others || is_born || self.group(range).is_some() {
                continue;
            }
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&range);
            self.note_damaged(Damaged::leaves(created.descriptor().clone()));
        }
        Ok(())
    }

    fn is_leaving(&self, range: RangeId) -> bool {
        let damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        damaged.get(&range).is_some_and(|replica| replica.reason == Reason::Leaves)
    }

    /// Whether the log has a replica of a range.
    pub(crate) fn is_stored(&self, range: RangeId) -> bool {
        self.wal.state(range).created.is_some()
    }

    /// A range that is not here and need not be.
    pub(crate) fn forget_lacking(&self, range: RangeId) {
        tracing::info!(%range, "the range is held by others: nothing of it is missing here");
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).remove(&range);
    }

    /// A range of the directory that names this node. Where it is not here, this replica of its parent has got a snapshot of
    /// behind the split, or the node has lost it: whether it had voted in it is not known here. So it is out of the members
    /// first, like a damaged one, and begins anew (R5, R7). One after the other, in the order of keys: what a range was a
    /// part of is refilled, or has made it, before.
    pub(super) fn note_lacking(&self, one: &RangeReplicas) {
        if self.has_ended() {
            return;
        }
        let range = &one.range;
        let comes = !range.voters.contains(&self.node);
        let lacking = |origin: Option<Origin>| {
            let why = "the range directory gives it to this node, and it is not here";
            let lacking = match comes {
                true => Damaged::comes(range.clone()),
                false => Damaged::lost(range.clone(), why),
            };
            Damaged { origin, ..lacking }
        };
        if range.id == RangeId::ROOT {
            // no other range overlaps with it
            if !self.is_here(RangeId::ROOT) {
                self.note_damaged(lacking(None));
            }
            return;
        }
        let here = match self.here() {
            Ok(here) => here,
            Err(error) => return tracing::error!(%error, "what is not here is not known"),
        };
        let is_in_the_way = |other: &Replica| {
            let overlaps = range.interval.without(&other.now.interval) != [range.interval.clone()];
            let may_have_had_it = other.now.interval.start <= range.interval.start;
            other.now.id == range.id || overlaps || (may_have_had_it && !other.is_settled)
        };
        if here.iter().any(is_in_the_way) {
            return;
        }
        let is_stored = |other: &&Replica| self.is_stored(other.now.id);
        let began = here.iter().filter(is_stored);
        let began = began.filter(|other| other.first.contains(&range.interval.start));
        // the latest of those that had its keys: it is past the split, and will be when it has applied as much as now
        let parent = began.max_by_key(|other| (other.first.start.clone(), other.now.epoch));
        let origin = parent.map(|parent| self.present_origin(parent.now.id));
        let origin = match origin {
            Some(None) => return,
            origin => origin.flatten(),
        };
        self.note_damaged(lacking(origin));
    }

    fn note_damaged(&self, replica: Damaged) {
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        damaged.entry(replica.descriptor.id).or_insert(replica);
    }

    /// Whether this node's log, or its list of lost ones, says something of a range.
    fn is_here(&self, range: RangeId) -> bool {
        let damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        damaged.contains_key(&range) || self.is_stored(range)
    }

    /// All ranges of data of which this node's log, or its list of lost ones, says something.
    fn here(&self) -> Result<Vec<Replica>, MetaError> {
        let mut here = Vec::new();
        for created in self.opening.stored()? {
            let (range, began) = (created.range(), created.descriptor().clone());
            let first = began.interval.clone();
            let group = self.group(range);
            let is_applied = |group: &Arc<Group>| matches!(group.state.applied(), Ok(Some(_)));
            let is_settled = group.as_ref().is_some_and(is_applied);
            let now =
                group.filter(|_| is_settled).map_or(began, |group| (*group.descriptor()).clone());
            here.push(Replica { now, first, is_settled });
        }
        let lost = self.damaged().into_iter().map(|damaged| {
            // what is only to come has had no keys here, and begins with a snapshot of now
            let is_settled = damaged.reason == Reason::Comes;
            let now = damaged.descriptor;
            Replica { first: now.interval.clone(), now, is_settled }
        });
        here.extend(lost);
        here.retain(|replica| replica.now.id != RangeId::ROOT);
        Ok(here)
    }

    /// That a range was a part of this one, which has passed the split by now.
    fn present_origin(&self, parent: RangeId) -> Option<Origin> {
        let state = self.group(parent)?.state.clone();
        let (applied, membership) = read_applied(&*state.map.view(), parent).ok()?;
        Some(Origin { parent, split: applied?, membership, inherited: false })
    }

    /// The replicas here that were a part of `parent`, and are not damaged themselves.
    fn parts_of(&self, parent: RangeId) -> Result<Vec<Arc<State>>, MetaError> {
        let mut parts = self.waiting_for(parent);
        for created in self.opening.stored()? {
            if created.origin().is_some_and(|origin| origin.parent == parent) {
                parts.extend(self.group(created.range()).map(|group| group.state.clone()));
            }
        }
        Ok(parts)
    }

    /// The replicas that wait for `parent`.
    fn waiting_for(&self, parent: RangeId) -> Vec<Arc<State>> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let is_child =
            |created: &Created| created.origin().is_some_and(|origin| origin.parent == parent);
        let children = waiting.values().filter(|child| is_child(&child.created));
        children.map(|child| child.state.clone()).collect()
    }

    /// Whether a range may run here: it would not overlap with what it was a part of.
    pub(crate) fn may_open(&self, origin: Option<&Origin>) -> bool {
        let damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        if origin.is_some_and(|origin| damaged.contains_key(&origin.parent)) {
            return false;
        }
        drop(damaged);
        self.opening.may_open(origin, |id| self.group(id).map(|group| group.state.clone()))
    }

    async fn start_group(
        &self,
        created: &Created,
        state: Arc<State>,
    ) -> Result<Arc<Group>, MetaError> {
        let runs = |id: RangeId| self.group(id).is_some();
        let started = self.opening.start_group(&self.sender, created, state, &runs).await;
        if let Err(MetaError::OldRelease(range, why)) = &started {
            self.note_outgrown(*range, why);
        }
        started
    }

    /// Opens the replicas that need wait no longer.
    pub(crate) async fn open_due(self: &Arc<Self>) {
        let _one = self.opening_due.lock().await;
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (range, Waiting { created, state, tried }) in waiting {
            if self.is_leaving(range) || !self.is_stored(range) {
                self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&range);
                continue;
            }
            let is_soon = tried.is_some_and(|when| self.host.clock.now() - when < OPEN_AGAIN_AFTER);
            if is_soon || self.has_ended() || !self.may_open(created.origin()) {
                continue;
            }
            match self.start_group(&created, state).await {
                Ok(group) => match self.admit(group.clone()).await {
                    Ok(()) => self.elect_after_split(group, created.origin()),
                    Err(error) => tracing::debug!(%range, %error, "the node is stopping"),
                },
                Err(error @ MetaError::NoBeginning(_)) => {
                    let lacking = Damaged::stored(&created, error.to_string());
                    self.damaged
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(range, lacking);
                }
                // it stays here, so that nothing of its parent is purged that it may need (R8), and is tried again
                Err(error) => {
                    tracing::error!(%range, %error, "the range does not open yet: it is not served here");
                    let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(waiting) = waiting.get_mut(&range) {
                        waiting.tried = Some(self.host.clock.now());
                    }
                    continue;
                }
            }
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&range);
        }
    }

    /// As `open_due`, without waiting for it: a range opens when its first snapshot is written.
    pub(crate) fn open_due_soon(self: &Arc<Self>) {
        let is_waiting = !self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if !is_waiting || self.opening_due.try_lock().is_err() {
            return;
        }
        let inner = self.clone();
        let opening = Box::pin(async move { inner.open_due().await });
        let _opening = self.host.tasks.spawn(TaskKind::Background("open split ranges"), opening);
    }

    async fn admit(&self, group: Arc<Group>) -> Result<(), MetaError> {
        let range = group.range;
        let refused = {
            let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
            // under the lock: whoever stops the node takes all groups after it has said so
            if self.has_ended() { Some(group) } else { groups.insert(range, group) }
        };
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).remove(&range);
        if let Some(refused) = refused {
            shut(&refused).await;
        }
        Ok(())
    }
}
