//! The state of a group: entries applied to the map, snapshots taken of it and installed into it.
//!
//! The map is a view that all groups of the node share, each in its own rows; it is written without a sync. An entry's
//! writes, its log id and the membership go in one batch. Applying runs where it may block, one task a group, because
//! a map may stall for a tenth of a second.

use crate::agreement::{Mark, Marks};
use crate::birth::{Birth, Births, Born, Created, Parted};
use crate::codec::{
    batch_of, log_id_bytes, read_log_id, read_stored_membership, stored_membership_bytes,
};
use crate::ledger::{Effect, Ledger, Reader, Versions, recount, removable_spans, spans};
use crate::log::elapsed;
use crate::raft::{
    ApplyResponder, Entry, EntryPayload, EntryResponder, LogId, OptionalSend, RaftSnapshotBuilder,
    RaftStateMachine, Results, Snapshot, SnapshotMeta, StoredMembership, Types,
};
use crate::snapshot::{Contents, SnapshotError, SnapshotFile, Snapshots};
use ashlar_catalog::{CatalogError, OrderedMap, Recount, View, Writes};
use ashlar_host::{Host, Monotonic};
use ashlar_types::{RangeDescriptor, RangeId, bug};
use ashlar_wal::{Record, Wal};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use metrics::Histogram;
use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

/// The field of the system row that says how far a group has been applied.
const APPLIED_FIELD: u8 = b'a';
/// Entries that are applied in one visit to a blocking thread.
const APPLY_STEP: usize = 64;
/// How long after a snapshot that could not be written the next one is begun.
const BUILD_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How often the first snapshot of a range is tried: a disk that was full has room again by then, or the node is ended.
const BUILDS_MAX: u32 = 60;
/// Rows that are removed in one batch when a range is replaced.
const REMOVE_STEP: usize = 1000;

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

/// What the machine shares with those who read: a group's rows in the map.
pub(crate) struct State {
    pub(crate) host: Host,
    pub(crate) map: Arc<dyn OrderedMap>,
    pub(crate) snapshots: Snapshots,
    pub(crate) wal: Wal,
    pub(crate) range: RangeId,
    /// What the range begins with where nothing was applied.
    first: RangeDescriptor,
    versions: Versions,
    /// By which version the range applies, as far as it is applied.
    apply_version: AtomicU32,
    /// Why the range cannot be applied here any further: it was raised beyond what this binary knows.
    outgrown: OnceLock<String>,
    /// The range as the entries applied so far have made it. Set behind the rows that say the same.
    descriptor: Mutex<Arc<RangeDescriptor>>,
    newest: Mutex<Option<Arc<SnapshotFile>>>,
    /// Held while a file is built: there is one name for it.
    building: Mutex<()>,
    /// When a snapshot could not be written.
    unbuilt: Mutex<Option<Monotonic>>,
    /// The groups here that were parts of this range.
    children: Mutex<Vec<Weak<State>>>,
    /// Held from the comparison with the newest snapshot until the file has its name: one that was built slowly must
    /// not replace a newer one that was installed meanwhile (R8).
    publishing: Mutex<()>,
    /// Bytes of entries applied since the newest snapshot.
    pub(crate) log_bytes: AtomicU64,
    reader: Mutex<Option<Reader>>,
    /// The state hashes behind the entries applied last.
    marks: Mutex<Marks>,
    /// The state is another replica's, and all have not agreed since that it is theirs: it is no witness.
    copied: AtomicBool,
    /// A snapshot was built here, and its rows were not those of the state hash.
    spoilt: AtomicBool,
    apply_seconds: Histogram,
}

/// How far a group has been applied, as a row of the map says.
pub(crate) type Applied = (Option<LogId>, StoredMembership);

fn applied_key(range: RangeId) -> Vec<u8> {
    ashlar_catalog::system_key(range, APPLIED_FIELD)
}

fn applied_value(last: LogId, membership: &StoredMembership) -> Vec<u8> {
    let mut value = log_id_bytes(last).to_vec();
    value.extend(stored_membership_bytes(membership));
    value
}

/// The row that says how far `range` has been applied: the log id, and the bytes of the membership.
fn applied_row(view: &dyn View, range: RangeId) -> io::Result<Option<(LogId, Bytes)>> {
    let Some(value) = view.get(&applied_key(range)).map_err(failed)? else { return Ok(None) };
    let mut value = Bytes::from(value);
    if value.len() < 17 {
        return Err(io::Error::other("the applied row is cut"));
    }
    let last = read_log_id(value.split_to(17))?;
    Ok(Some((last, value)))
}

/// How far `range` has been applied in a view.
pub(crate) fn read_applied(view: &dyn View, range: RangeId) -> io::Result<Applied> {
    match applied_row(view, range)? {
        Some((last, membership)) => Ok((Some(last), read_stored_membership(membership)?)),
        None => Ok((None, StoredMembership::default())),
    }
}

/// Forgets how far `range` was applied: when it is opened next, its rows are removed.
fn forget_applied(map: &dyn OrderedMap, range: RangeId) -> io::Result<()> {
    let mut writes = Writes::default();
    writes.remove(applied_key(range));
    map.write(writes).map_err(failed)
}

/// Forgets what of a range lies in the map: how far it was applied, and its rows.
pub(crate) fn forget_rows(map: &dyn OrderedMap, first: &RangeDescriptor) -> io::Result<()> {
    forget_applied(map, first.id)?;
    remove_all_rows(map, first)
}

/// Removes the rows of a range of which nothing counts as applied. How far they reach the map says itself, not what the
/// range began with: what it has lost since is its child's.
fn remove_all_rows(map: &dyn OrderedMap, first: &RangeDescriptor) -> io::Result<()> {
    for (from, to) in removable_spans(&*map.view(), first).map_err(failed)? {
        remove_rows(map, from, to.as_deref())?;
    }
    Ok(())
}

fn remove_rows(map: &dyn OrderedMap, mut from: Vec<u8>, to: Option<&[u8]>) -> io::Result<()> {
    loop {
        let mut writes = Writes::default();
        let view = map.view();
        let scanned = view.scan(&from, to, &mut |key, _| {
            writes.remove(key.to_vec());
            if writes.0.len() < REMOVE_STEP {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        scanned.map_err(failed)?;
        let Some(last) = writes.0.keys().next_back().cloned() else { return Ok(()) };
        map.write(writes).map_err(failed)?;
        from = last;
    }
}

impl State {
    /// The state of a group, with its newest snapshot.
    pub(crate) fn open(
        host: &Host,
        map: Arc<dyn OrderedMap>,
        first: RangeDescriptor,
        snapshots: Snapshots,
        wal: Wal,
        versions: Versions,
    ) -> Result<Self, SnapshotError> {
        snapshots.remove_leftovers()?;
        let newest = snapshots.newest()?.map(Arc::new);
        let spoilt = AtomicBool::new(newest.as_ref().is_some_and(|file| !file.is_right));
        let newest = Mutex::new(newest);
        let log_bytes = wal.live_bytes(first.id);
        let is_copy = snapshots.is_copy();
        Ok(Self {
            host: host.clone(),
            map,
            snapshots,
            wal,
            range: first.id,
            descriptor: Mutex::new(Arc::new(first.clone())),
            first,
            versions,
            apply_version: AtomicU32::new(0),
            outgrown: OnceLock::new(),
            newest,
            building: Mutex::default(),
            unbuilt: Mutex::default(),
            children: Mutex::default(),
            publishing: Mutex::default(),
            log_bytes: AtomicU64::new(log_bytes),
            reader: Mutex::default(),
            marks: Mutex::default(),
            copied: AtomicBool::new(is_copy),
            spoilt,
            apply_seconds: metrics::histogram!("ashlar_raft_apply_seconds"),
        })
    }

    /// Epoch, interval and replicas of the range, as far as it is applied here.
    pub(crate) fn descriptor(&self) -> Arc<RangeDescriptor> {
        self.descriptor.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// By which version it applies, as far as it is applied here.
    pub(crate) fn apply_version(&self) -> u32 {
        self.apply_version.load(Ordering::Relaxed)
    }

    /// Remembers whether the range was raised beyond what this binary knows.
    fn unless_outgrown<T>(&self, done: Result<T, CatalogError>) -> io::Result<T> {
        if let Err(newer @ CatalogError::ApplyVersion { .. }) = &done {
            // the first one counts
            let _known = self.outgrown.set(newer.to_string());
        }
        done.map_err(failed)
    }

    /// Why this binary cannot apply what comes next.
    pub(crate) fn outgrown(&self) -> Option<&str> {
        self.outgrown.get().map(String::as_str)
    }

    fn note_descriptor(&self, ledger: &Ledger) {
        self.apply_version.store(ledger.apply_version(), Ordering::Relaxed);
        let Some(applied) = ledger.descriptor() else { return };
        let mut known = self.descriptor.lock().unwrap_or_else(PoisonError::into_inner);
        if **known != *applied {
            *known = Arc::new(applied.clone());
        }
    }

    /// The newest verified snapshot.
    pub(crate) fn newest(&self) -> Option<Arc<SnapshotFile>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the next snapshot may be begun: not right after one that could not be written.
    pub(crate) fn may_build(&self) -> bool {
        let unbuilt = self.unbuilt.lock().unwrap_or_else(PoisonError::into_inner);
        unbuilt.is_none_or(|when| self.host.clock.now() - when >= BUILD_AGAIN_AFTER)
    }

    fn note_unbuilt(&self, error: &io::Error) {
        tracing::warn!(range = %self.range, %error, "no snapshot: it is tried again, and the log is kept until then");
        metrics::counter!("ashlar_raft_unbuilt_snapshots_total").increment(1);
        let now = self.host.clock.now();
        *self.unbuilt.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// A group here that was a part of this range.
    pub(crate) fn adopt(&self, child: &Arc<Self>) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children
            .retain(|known| known.strong_count() > 0 && !std::ptr::eq(known.as_ptr(), &**child));
        children.push(Arc::downgrade(child));
    }

    /// How far the range is applied here.
    pub(crate) fn applied(&self) -> io::Result<Option<LogId>> {
        Ok(read_applied(&*self.map.view(), self.range)?.0)
    }

    /// Sees to it that the range has a snapshot of its own, if it has begun in `view`.
    pub(crate) fn secure(&self, view: &dyn View) -> io::Result<()> {
        if self.newest().is_none() && read_applied(view, self.range)?.0.is_some() {
            self.build(view)?;
        }
        Ok(())
    }

    /// Before a newer snapshot of this range counts: the older one, and the log behind it, are the only copy of the
    /// beginning of a child that has no snapshot of its own (R8). It gets one of the same moment.
    fn secure_children(&self, view: &dyn View) -> io::Result<()> {
        let children = self.children.lock().unwrap_or_else(PoisonError::into_inner).clone();
        children.iter().filter_map(Weak::upgrade).try_for_each(|child| child.secure(view))
    }

    /// Makes a verified file the newest snapshot; `None`: the newest one holds as much, and stays.
    fn publish(&self, file: &SnapshotFile) -> io::Result<Option<Arc<SnapshotFile>>> {
        let _one = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.newest().is_some_and(|newest| newest.contents.last >= file.contents.last) {
            return Ok(None);
        }
        let published = Arc::new(self.snapshots.publish(file)?);
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(published.clone());
        Ok(Some(published))
    }

    /// As `publish`, for a file that was built here; one that came too late is removed, and the newest one given back.
    fn publish_built(&self, built: &SnapshotFile) -> io::Result<Arc<SnapshotFile>> {
        if let Some(published) = self.publish(built)? {
            return Ok(published);
        }
        self.snapshots.discard(built)?;
        self.newest().ok_or_else(|| io::Error::other("the newest snapshot is gone"))
    }

    /// Visits every row, in one view; gives the entry that it shows, too. `None`: the rows are being replaced, or nothing
    /// was applied yet.
    pub(crate) fn recount(&self) -> Result<Option<(u64, Recount)>, CatalogError> {
        let view = self.map.view();
        let Ok(Some((applied, _))) = applied_row(&*view, self.range) else { return Ok(None) };
        Ok(recount(&*view, self.range)?.map(|found| (applied.index, found)))
    }

    /// A view that holds everything up to `index`; `None`: the rows are being replaced by a snapshot's.
    pub(crate) fn view_at(&self, index: u64) -> io::Result<Option<Box<dyn View>>> {
        let view = self.map.view();
        let applied = applied_row(&*view, self.range)?;
        Ok(applied.filter(|(last, _)| last.index >= index).map(|_| view))
    }

    /// Whether this replica has the state that its log goes on from: `first` is applied, or is in a snapshot.
    pub(crate) fn reaches(&self, first: LogId) -> io::Result<bool> {
        let held = self.newest().and_then(|file| file.contents.last);
        Ok(self.applied()?.max(held).is_some_and(|has| has.index >= first.index))
    }

    /// The index applied last, and the state hash there (R4).
    pub(crate) fn hash(&self) -> Option<Mark> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).last()
    }

    /// Whether the state is another replica's, which all have not agreed on since.
    pub(crate) fn is_copy(&self) -> bool {
        self.copied.load(Ordering::Relaxed)
    }

    /// From now on nothing counts of what it said of its state before.
    fn mark_copy(&self) -> Result<(), SnapshotError> {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        self.snapshots.mark_copy()?;
        self.copied.store(true, Ordering::Relaxed);
        marks.begin(None);
        Ok(())
    }

    /// All have agreed on the state behind an entry; nothing if it has been replaced since.
    pub(crate) fn end_copy(&self, index: u64) -> Result<(), SnapshotError> {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_copy() && marks.at(index).is_some() {
            self.snapshots.end_copy()?;
            self.copied.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether a snapshot has shown that its rows are not those of its state hash.
    pub(crate) fn is_spoilt(&self) -> bool {
        self.spoilt.load(Ordering::Relaxed)
    }

    /// Entries, and the state hashes behind them, at which to compare with other replicas.
    pub(crate) fn samples(&self) -> Vec<Mark> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).samples()
    }

    /// The state hashes behind those of the entries that are remembered.
    pub(crate) fn hashes_at(&self, indices: &[u64]) -> Vec<Mark> {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        indices.iter().filter_map(|&index| Some((index, marks.at(index)?))).collect()
    }

    /// What answers reads; `None`: the group was never opened.
    pub(crate) fn reader(&self) -> Option<Reader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The state machine of the rows. Where nothing was applied, or an installation was cut short, it begins anew.
    fn load(&self) -> io::Result<Standing> {
        let (applied, membership) = read_applied(&*self.map.view(), self.range)?;
        if applied.is_none() {
            remove_all_rows(&*self.map, &self.first)?;
        }
        let loaded = Ledger::load(&*self.map.view(), &self.first, self.versions);
        let (ledger, writes) = self.unless_outgrown(loaded)?;
        self.map.write(writes).map_err(failed)?;
        self.note_descriptor(&ledger);
        let begins = applied.map(|applied| (applied.index, ledger.hash()));
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).begin(begins);
        *self.reader.lock().unwrap_or_else(PoisonError::into_inner) = Some(ledger.reader());
        Ok(Standing { ledger, membership })
    }

    /// Applies entries in order, each in one batch, and answers whoever waits for it: up to one that parts the range,
    /// which is judged and not written yet.
    fn apply_all(
        &self,
        at: &mut Standing,
        items: &mut VecDeque<EntryResponder<Types>>,
    ) -> io::Result<Option<Parting>> {
        while let Some((entry, waiting)) = items.pop_front() {
            let began = self.host.clock.now();
            let effect = self.judge(at, &entry)?;
            if let Some(child) = effect.child.clone() {
                return Ok(Some(Parting { entry: entry.log_id, child, effect, waiting, began }));
            }
            let results = self.write(at, entry.log_id, effect)?;
            self.answer(at, entry.log_id, began, waiting, results);
        }
        Ok(None)
    }

    fn judge(&self, at: &mut Standing, entry: &Entry) -> io::Result<Effect> {
        match &entry.payload {
            EntryPayload::Blank => Ok(Effect::default()),
            EntryPayload::Membership(fresh) => {
                at.membership = StoredMembership::new(Some(entry.log_id), fresh.clone());
                Ok(Effect::default())
            }
            EntryPayload::Normal(operation) => {
                let view = self.map.view();
                let batch = batch_of(operation);
                self.log_bytes.fetch_add(batch.len() as u64, Ordering::Relaxed);
                let is_joint = at.membership.membership().get_joint_config().len() > 1;
                let applied = at.ledger.apply(&*view, entry.log_id.index, is_joint, &batch);
                if applied.is_err() {
                    // half of the entry may be in what it reads
                    *self.reader.lock().unwrap_or_else(PoisonError::into_inner) = None;
                }
                self.unless_outgrown(applied)
            }
        }
    }

    fn write(&self, at: &Standing, entry: LogId, effect: Effect) -> io::Result<Results> {
        let Effect { results, mut writes, .. } = effect;
        if bug!("apply-loses-a-row") && self.host.random.next_u64().is_multiple_of(64) {
            writes.0.pop_last();
        }
        writes.put(applied_key(self.range), applied_value(entry, &at.membership));
        self.map.write(writes).map_err(failed)?;
        self.note_descriptor(&at.ledger);
        Ok(results)
    }

    fn answer(
        &self,
        at: &Standing,
        entry: LogId,
        began: Monotonic,
        waiting: Waiting,
        results: Results,
    ) {
        let mark = (entry.index, at.ledger.hash());
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).note(mark);
        self.apply_seconds.record(elapsed(&*self.host.clock, began));
        if let Some(waiting) = waiting {
            waiting.send(results);
        }
    }

    /// Writes the entry that parts the range, in one batch with the beginning of its child. A child that is here with less
    /// than that (it was refilled) begins with its own snapshot.
    fn part(&self, at: &Standing, parting: Parting, inherits: bool) -> io::Result<()> {
        let Parting { entry, child, mut effect, waiting, began } = parting;
        if applied_row(&*self.map.view(), child.id)?.is_some() {
            let before = "what was a part of it has rows here from before the split";
            return Err(io::Error::other(format!("{}: {before}", self.range)));
        }
        if inherits {
            effect.writes.put(applied_key(child.id), applied_value(entry, &at.membership));
        } else {
            ashlar_catalog::leave_out(&mut effect.writes, child.id);
        }
        let results = self.write(at, entry, effect)?;
        tracing::info!(range = %self.range, child = %child.id, "the range has split");
        self.answer(at, entry, began, waiting, results);
        Ok(())
    }

    /// The state of a range that was a part of this one, which nothing is stored of but that it exists.
    fn child(&self, child: &RangeDescriptor) -> io::Result<Arc<Self>> {
        let (map, wal) = (self.map.clone(), self.wal.clone());
        let snapshots = self.snapshots.of(child.id.0);
        let state = Self::open(&self.host, map, child.clone(), snapshots, wal, self.versions);
        let state = state.map_err(failed)?;
        if self.is_copy() {
            state.mark_copy()?;
        }
        Ok(Arc::new(state))
    }

    /// Writes a snapshot file of what `view` shows.
    fn build(&self, view: &dyn View) -> io::Result<Arc<SnapshotFile>> {
        let _one = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        self.secure_children(view)?;
        let log_bytes = self.log_bytes.load(Ordering::Relaxed);
        let (last, membership) = read_applied(view, self.range)?;
        let contents = Contents { range: self.range.0, last, membership };
        let mut writer = self.snapshots.begin(&contents)?;
        for (from, to) in spans(view, &self.first).map_err(failed)? {
            let mut written = Ok(());
            let scanned = view.scan(&from, to.as_deref(), &mut |key, value| {
                written = writer.row(key, value);
                if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            scanned.map_err(failed)?;
            written?;
        }
        writer.finish()?;
        let built = self.snapshots.built()?;
        self.note_spoilt(&built);
        let file = self.publish_built(&built)?;
        // an installation may have set it to zero meanwhile
        let subtract = |now: u64| Some(now.saturating_sub(log_bytes));
        let _before = self.log_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract);
        tracing::info!(range = %self.range, rows = file.sums.rows, bytes = file.length, "snapshot written");
        Ok(file)
    }

    /// Why a snapshot is not for this replica; `None`: it is. One that begins behind a split of the range may not get what
    /// the range had before: those keys are another's here, perhaps.
    pub(crate) fn refusal_of(&self, file: &SnapshotFile) -> Option<String> {
        let &RangeDescriptor { epoch, ref interval, .. } = file.descriptor.as_ref()?;
        let is_older = epoch < self.first.epoch;
        let is_wider = !interval.without(&self.first.interval).is_empty();
        (is_older || is_wider).then(|| {
            format!(
                "the snapshot is of {epoch}, of before a split behind which this replica begins ({})",
                self.first.epoch
            )
        })
    }

    /// It goes on by itself as well as its rows do; nobody else takes its snapshots.
    fn note_spoilt(&self, own: &SnapshotFile) {
        if !own.is_right && !self.spoilt.swap(true, Ordering::Relaxed) {
            tracing::error!(range = %self.range, "the rows of a snapshot are not those of its state hash");
        }
    }

    /// Whether the newest snapshot is of before a split: it is of no use to a replica that begins behind that.
    pub(crate) fn needs_snapshot(&self) -> bool {
        let newest = self.newest();
        let epoch = newest.and_then(|file| Some(file.descriptor.as_ref()?.epoch));
        epoch.is_some_and(|epoch| epoch < self.descriptor().epoch)
    }

    /// Replaces the range's rows by those of a verified snapshot. Until the last batch the map says that nothing was
    /// applied, so that a crash in between repeats it from the file.
    fn install(&self, file: &SnapshotFile) -> io::Result<()> {
        if let Some(refusal) = self.refusal_of(file) {
            return Err(io::Error::other(refusal));
        }
        self.secure_children(&*self.map.view())?;
        // one's own, which is installed again after a crash, is no copy
        if file.is_received() {
            self.mark_copy()?;
        }
        let published = self.publish(file)?;
        let from = published.as_deref().unwrap_or(file);
        let mut nothing = Writes::default();
        nothing.remove(applied_key(self.range));
        self.map.write(nothing).map_err(failed)?;
        remove_all_rows(&*self.map, &self.first)?;
        from.rows(&mut |rows| {
            let mut writes = Writes::default();
            rows.into_iter().for_each(|(key, value)| writes.put(key.to_vec(), value.to_vec()));
            self.map.write(writes).map_err(failed)
        })?;
        self.log_bytes.store(0, Ordering::Relaxed);
        let Some(last) = from.contents.last else { return Ok(()) };
        let mut done = Writes::default();
        done.put(applied_key(self.range), applied_value(last, &from.contents.membership));
        self.map.write(done).map_err(failed)
    }

    /// Forgets how far the range was applied: an installation was cut short.
    pub(crate) fn forget_applied(&self) -> io::Result<()> {
        forget_applied(&*self.map, self.range)
    }
}

/// What the entries applied so far have made of a range, and of its members.
struct Standing {
    ledger: Ledger,
    membership: StoredMembership,
}

/// Who waits for the results of an entry.
type Waiting = Option<ApplyResponder<Types>>;

/// An entry that parts the range: judged, and to be written once the child exists on stable storage.
struct Parting {
    entry: LogId,
    child: RangeDescriptor,
    effect: Effect,
    waiting: Waiting,
    began: Monotonic,
}

/// The consensus library's state machine of one group.
pub(crate) struct Machine {
    state: Arc<State>,
    births: Births,
    /// Up to which entry a former life of the replica may have been a member: it gives no birth to what they make.
    anew_at: Option<u64>,
    /// `None`: an apply failed in the middle, and the group is to be opened again.
    standing: Option<Standing>,
}

impl Machine {
    /// The machine of a state: the only one that writes its rows.
    pub(crate) fn new(state: Arc<State>, births: Births, anew_at: Option<u64>) -> io::Result<Self> {
        let standing = Some(state.load()?);
        Ok(Self { state, births, anew_at, standing })
    }

    /// The child of a split exists before any of its rows does. A replay over a reverted map finds it in the log, and
    /// leaves its vote and its entries alone (R5, R7). A replica that has begun anew makes no child of what a former
    /// life of it may have been a member of, and none makes one that has left this node: that comes by a refill, when its
    /// votes are forgotten by the others too.
    async fn part(&self, at: Standing, parting: Parting) -> io::Result<Standing> {
        let child = parting.child.id;
        let known = Created::stored(&self.state.wal, child)?;
        let known = known.filter(|_| !bug!("replay-begins-the-child-anew"));
        let may_have_been = self.anew_at.is_some_and(|anew_at| parting.entry.index <= anew_at);
        // one that has left this node has voted, and what it had voted is forgotten
        let has_left = self.state.wal.state(child).dropped;
        let inherits = match &known {
            Some(known) => known.first() == Some(parting.entry),
            None => !may_have_been && !has_left,
        };
        let born = match known {
            None if inherits => Some(self.give_birth(&at, &parting).await?),
            Some(_) | None => None,
        };
        let state = self.state.clone();
        let written = self.state.host.tasks.run_blocking(move || {
            state.part(&at, parting, inherits)?;
            Ok::<_, io::Error>(at)
        });
        let at = written.await?;
        if let Some(born) = born {
            self.births.nursery.bring(born);
        }
        Ok(at)
    }

    async fn give_birth(&self, at: &Standing, parting: &Parting) -> io::Result<Born> {
        let state = self.state.child(&parting.child)?;
        // before a snapshot of behind the split can count: the child has none (R8)
        self.state.adopt(&state);
        let parted = Parted {
            child: parting.child.clone(),
            parent: self.state.range,
            split: parting.entry,
            membership: at.membership.clone(),
        };
        let birth = Birth::parted(&self.births, parted).write(&self.state.wal).await;
        Ok(Born { created: birth.map_err(io::Error::other)?, state })
    }

    async fn record(&self, record: Record) -> io::Result<()> {
        self.state.wal.submit_durable(self.state.range, record).await.map_err(io::Error::other)
    }
}

/// Builds a snapshot of one moment, while applying goes on.
pub(crate) struct Builder {
    state: Arc<State>,
    view: Mutex<Option<Box<dyn View>>>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Arc<SnapshotFile>;

    async fn build_snapshot(&mut self) -> Result<Snapshot<Arc<SnapshotFile>>, io::Error> {
        let view = self.view.lock().unwrap_or_else(PoisonError::into_inner).take();
        let view = view.ok_or_else(|| io::Error::other("a builder builds one snapshot"))?;
        let clock = self.state.host.clock.clone();
        let (mut view, mut built) = self.build(view).await;
        for _ in 1..BUILDS_MAX {
            let error = match built {
                Ok(built) => return Ok(built.to_library()),
                Err(error) => error,
            };
            // where it gets an error the library stops the range here for ever; an older one changes nothing
            self.state.note_unbuilt(&error);
            if let Some(older) = self.state.newest() {
                return Ok(older.to_library());
            }
            clock.sleep(BUILD_AGAIN_AFTER).await;
            (view, built) = self.build(view).await;
        }
        built.map(|built| built.to_library())
    }
}

type BoxedView = Box<dyn View>;

impl Builder {
    /// Gives the view back, for another try.
    async fn build(&self, view: BoxedView) -> (BoxedView, io::Result<Arc<SnapshotFile>>) {
        let state = self.state.clone();
        let building = move || {
            let built = state.build(&*view);
            (view, built)
        };
        self.state.host.tasks.run_blocking(building).await
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Arc<SnapshotFile>;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        read_applied(&*self.state.map.view(), self.state.range)
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut steps = entries.ready_chunks(APPLY_STEP);
        while let Some(step) = steps.next().await {
            let mut items = step.into_iter().collect::<io::Result<VecDeque<_>>>()?;
            let at = self.standing.take();
            let mut at = at.ok_or_else(|| io::Error::other("the range is stopped"))?;
            while !items.is_empty() {
                let state = self.state.clone();
                let applied = self.state.host.tasks.run_blocking(move || {
                    let parting = state.apply_all(&mut at, &mut items)?;
                    Ok::<_, io::Error>((at, items, parting))
                });
                let parting;
                (at, items, parting) = applied.await?;
                if let Some(parting) = parting {
                    at = self.part(at, parting).await?;
                }
            }
            self.standing = Some(at);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { state: self.state.clone(), view: Mutex::new(Some(self.state.map.view())) }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Arc<SnapshotFile>,
    ) -> Result<(), io::Error> {
        let mark = meta.last_log_id.map(log_id_bytes).unwrap_or_default();
        self.record(Record::Installing(mark)).await?;
        let state = self.state.clone();
        let installed = self.state.host.tasks.run_blocking(move || {
            state.install(&snapshot)?;
            state.load()
        });
        self.standing = Some(installed.await?);
        self.record(Record::Installed).await?;
        tracing::info!(range = %self.state.range, "snapshot installed");
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<Snapshot<Arc<SnapshotFile>>>, io::Error> {
        Ok(self.state.newest().map(|file| file.to_library()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Unanswered;
    use crate::raft::log_id;
    use ashlar_map::MemMap;
    use ashlar_types::{BucketId, Epoch, Interval, KeyPoint};
    use ashlar_wal::WalConfig;
    use std::path::Path;

    /// A range of the buckets `from .. to`.
    fn descriptor(id: u64, epoch: u64, from: u64, to: u64) -> RangeDescriptor {
        let (start, end) = (KeyPoint::new(BucketId(from), []), KeyPoint::new(BucketId(to), []));
        let interval = Interval { start, end: Some(end) };
        RangeDescriptor { id: RangeId(id), epoch: Epoch(epoch), interval, voters: Vec::new() }
    }

    fn state(directory: &Path) -> State {
        let host = Host::real();
        let wal = WalConfig { file_bytes: 4 << 20, ..WalConfig::new(directory.join("wal")) };
        let wal = Wal::open(&host, wal).expect("an empty WAL");
        let snapshots = Snapshots::new(host.disk.clone(), directory.to_owned(), 3);
        let map = Arc::new(MemMap::default());
        let first = descriptor(3, 1, 0, 9);
        State::open(&host, map, first, snapshots, wal, Versions::default())
            .expect("no snapshot yet")
    }

    /// Range 4, which has the buckets from 5 on, beside its parent.
    fn child_of(parent: &State, directory: &Path) -> Arc<State> {
        let snapshots = Snapshots::new(parent.host.disk.clone(), directory.to_owned(), 4);
        let (map, wal) = (parent.map.clone(), parent.wal.clone());
        let child =
            State::open(&parent.host, map, descriptor(4, 2, 5, 9), snapshots, wal, parent.versions);
        let child = Arc::new(child.expect("no snapshot yet"));
        parent.adopt(&child);
        child
    }

    /// The row of an object.
    fn object(bucket: u64) -> Vec<u8> {
        [&b"c"[..], &bucket.to_be_bytes(), b"key\0\0"].concat()
    }

    fn put_objects(state: &State, buckets: std::ops::Range<u64>) {
        let mut writes = Writes::default();
        buckets.for_each(|bucket| writes.put(object(bucket), b"a record".to_vec()));
        state.map.write(writes).expect("written");
    }

    /// The buckets whose objects the map has.
    fn objects(state: &State) -> Vec<u64> {
        let view = state.map.view();
        (0..9).filter(|&bucket| view.get(&object(bucket)).expect("read").is_some()).collect()
    }

    fn put_head(state: &State, descriptor: &RangeDescriptor) {
        state.map.write(ashlar_catalog::Range::create(descriptor).1).expect("written");
    }

    fn put_applied(state: &State, index: u64) {
        let mut writes = Writes::default();
        let membership = StoredMembership::default();
        writes.put(applied_key(state.range), applied_value(log_id(1, index), &membership));
        state.map.write(writes).expect("written");
    }

    /// A finished file of a state at `index`, not published.
    fn built(state: &State, index: u64) -> SnapshotFile {
        let membership = StoredMembership::default();
        let contents = Contents { range: 3, last: Some(log_id(1, index)), membership };
        state.snapshots.begin(&contents).expect("begun").finish().expect("finished");
        state.snapshots.built().expect("whole")
    }

    #[tokio::test]
    async fn a_snapshot_that_was_built_too_late_does_not_replace_an_installed_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = state(directory.path());
        let first = state.publish_built(&built(&state, 10)).expect("published");
        assert_eq!(first.contents.last, Some(log_id(1, 10)));
        state.install(&built(&state, 30)).expect("installed");
        let late = built(&state, 20);
        let kept = state.publish_built(&late).expect("kept");
        assert_eq!(kept.contents.last, Some(log_id(1, 30)));
        assert!(!state.host.disk.exists(&late.path));
        let stored = state.snapshots.newest().expect("whole").expect("there");
        assert_eq!(stored.contents.last, Some(log_id(1, 30)));
        state.wal.close().await;
    }

    fn builder(state: &Arc<State>) -> Builder {
        Builder { state: state.clone(), view: Mutex::new(Some(state.map.view())) }
    }

    /// The library stops a range for ever whose snapshot is an error.
    #[tokio::test]
    async fn l1_a_snapshot_that_cannot_be_written_stops_no_range() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = Arc::new(state(directory.path()));
        put_head(&state, &descriptor(3, 1, 0, 9));
        put_applied(&state, 10);
        // a directory in its place stands for a disk without room
        let in_the_way = directory.path().join("range-3.building");
        std::fs::create_dir(&in_the_way).expect("made");
        let freed = async {
            while state.may_build() {
                tokio::task::yield_now().await;
            }
            std::fs::remove_dir(&in_the_way).expect("removed");
        };
        let mut first = builder(&state);
        let (first, ()) = tokio::join!(first.build_snapshot(), freed);
        let first = first.expect("built when there was room again");
        assert_eq!(first.meta.last_log_id, Some(log_id(1, 10)));

        put_applied(&state, 20);
        std::fs::create_dir(&in_the_way).expect("made");
        let kept = builder(&state).build_snapshot().await.expect("the older one");
        assert_eq!(kept.meta.last_log_id, Some(log_id(1, 10)));
        std::fs::remove_dir(&in_the_way).expect("removed");
        let built = builder(&state).build_snapshot().await.expect("built");
        assert_eq!(built.meta.last_log_id, Some(log_id(1, 20)));
        state.wal.close().await;
    }

    #[tokio::test]
    async fn a_view_in_the_middle_of_an_installation_is_not_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = state(directory.path());
        let is_read = |index: u64| state.view_at(index).expect("readable").is_some();
        assert!(!is_read(0));
        put_applied(&state, 7);
        assert!(is_read(7) && !is_read(8));
        state.forget_applied().expect("written");
        assert!(!is_read(7));
        state.wal.close().await;
    }

    #[tokio::test]
    async fn epoch_and_interval_are_those_of_the_rows_and_not_those_of_the_beginning() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = state(directory.path());
        assert_eq!(*state.descriptor(), descriptor(3, 1, 0, 9));
        put_head(&state, &descriptor(3, 2, 0, 5));
        put_objects(&state, 0..9);
        put_applied(&state, 7);
        state.load().expect("loaded");
        assert_eq!(*state.descriptor(), descriptor(3, 2, 0, 5));

        let reader = state.reader().expect("loaded");
        let query = ashlar_types::RangeQuery::Usage { bucket: BucketId(1) };
        let asked = |epoch| reader.range(&*state.map.view(), Epoch(epoch), &query);
        assert!(asked(2).is_ok());
        assert!(matches!(asked(1), Err(Unanswered::Epoch(Epoch(2)))), "it came before the split");

        let file = state.build(&*state.map.view()).expect("built");
        let mut held = Vec::new();
        let taken = file.rows(&mut |rows| {
            held.extend(rows.into_iter().filter(|(key, _)| key[0] == b'c').map(|(key, _)| key));
            Ok(())
        });
        taken.expect("read");
        assert_eq!(held, (0..5).map(object).collect::<Vec<_>>());
        state.wal.close().await;
    }

    #[tokio::test]
    async fn a_snapshot_of_behind_the_split_takes_away_what_the_range_has_lost_and_nobody_elses() {
        let directory = tempfile::tempdir().expect("a directory");
        let ahead = state(&directory.path().join("ahead"));
        put_head(&ahead, &descriptor(3, 2, 0, 5));
        put_objects(&ahead, 0..5);
        put_applied(&ahead, 30);
        let file = ahead.build(&*ahead.map.view()).expect("built");

        let behind = state(&directory.path().join("behind"));
        behind.load().expect("fresh");
        put_objects(&behind, 0..9);
        put_applied(&behind, 7);
        put_head(&behind, &descriptor(4, 2, 7, 9));
        behind.install(&file).expect("installed");
        behind.load().expect("loaded");
        assert_eq!(*behind.descriptor(), descriptor(3, 2, 0, 5));
        assert_eq!(objects(&behind), [0, 1, 2, 3, 4, 7, 8], "range 4 has the last two");

        forget_rows(&*behind.map, &behind.first).expect("forgotten");
        assert_eq!(objects(&behind), [7, 8]);
        ahead.wal.close().await;
        behind.wal.close().await;
    }

    #[tokio::test]
    async fn r8_no_newer_snapshot_of_a_range_counts_before_its_child_has_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let ahead = state(&directory.path().join("ahead"));
        put_head(&ahead, &descriptor(3, 2, 0, 5));
        put_applied(&ahead, 30);
        let newer = ahead.build(&*ahead.map.view()).expect("built");

        let here = directory.path().join("here");
        let parent = state(&here);
        let child = child_of(&parent, &here);
        put_head(&parent, &descriptor(3, 2, 0, 5));
        put_applied(&parent, 7);
        parent.build(&*parent.map.view()).expect("built");
        assert!(child.newest().is_none(), "it has not begun");

        put_head(&child, &descriptor(4, 2, 5, 9));
        put_objects(&child, 5..8);
        put_applied(&child, 9);
        put_applied(&parent, 8);
        parent.build(&*parent.map.view()).expect("built");
        let first = child.newest().expect("built with its parent's");
        assert_eq!(first.contents.last, Some(log_id(1, 9)));
        put_applied(&child, 12);
        parent.build(&*parent.map.view()).expect("built");
        assert!(Arc::ptr_eq(&first, &child.newest().expect("there")), "one is enough");

        // a new start, with a child that has none, and a snapshot that the parent's leader sends
        child.snapshots.remove_all().expect("removed");
        let child = child_of(&parent, &here);
        assert!(child.newest().is_none());
        parent.install(&newer).expect("installed");
        let second = child.newest().expect("built before it counted");
        assert_eq!(second.contents.last, Some(log_id(1, 12)));
        assert_eq!(objects(&parent), [5, 6, 7], "they are the child's");
        ahead.wal.close().await;
        parent.wal.close().await;
    }

    #[tokio::test]
    async fn r4_a_snapshot_whose_rows_are_not_those_of_the_state_hash_is_known_and_taken_by_nobody()
    {
        let directory = tempfile::tempdir().expect("a directory");
        let state = state(directory.path());
        put_head(&state, &descriptor(3, 1, 0, 9));
        put_applied(&state, 7);
        let file = state.build(&*state.map.view()).expect("built");
        assert!(file.is_right && !state.is_spoilt());
        // past the log
        put_objects(&state, 2..3);
        put_applied(&state, 8);
        let file = state.build(&*state.map.view()).expect("built");
        assert!(!file.is_right && state.is_spoilt());
        state.wal.close().await;
    }

    /// The file as if another replica had sent it.
    fn received(state: &State, file: &SnapshotFile) -> SnapshotFile {
        let incoming = state.snapshots.incoming().expect("begun");
        let bytes = state.host.disk.read(&file.path).expect("read");
        incoming.file.write_at(&bytes, 0).expect("written");
        state.snapshots.received(incoming).expect("whole")
    }

    #[tokio::test]
    async fn r4_what_another_has_sent_is_a_copy_until_all_agree_on_it_and_so_is_its_child() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = state(&directory.path().join("here"));
        put_head(&state, &descriptor(3, 1, 0, 9));
        put_applied(&state, 7);
        state.load().expect("loaded");
        let own = state.build(&*state.map.view()).expect("built");
        state.install(&own).expect("installed again, as after a crash");
        assert!(!state.is_copy());
        state.marks.lock().expect("whole").note((8, 1));

        let sent = received(&state, &own);
        state.install(&sent).expect("installed");
        assert!(state.is_copy() && state.snapshots.is_copy(), "also after a start");
        state.end_copy(8).expect("noted");
        assert!(state.is_copy(), "that all agreed there was before");
        let child = state.child(&descriptor(4, 2, 5, 9)).expect("opened");
        assert!(child.is_copy());
        state.load().expect("loaded");
        state.end_copy(7).expect("noted");
        assert!(!state.is_copy() && !state.snapshots.is_copy());
        state.wal.close().await;
    }

    #[tokio::test]
    async fn r5_a_snapshot_that_reaches_beyond_what_a_replica_begins_with_is_not_for_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let ahead = state(&directory.path().join("ahead"));
        put_head(&ahead, &descriptor(3, 1, 0, 9));
        put_applied(&ahead, 7);
        let wide = ahead.build(&*ahead.map.view()).expect("built");
        put_head(&ahead, &descriptor(3, 2, 0, 5));
        put_applied(&ahead, 8);
        let narrow = ahead.build(&*ahead.map.view()).expect("built");

        let behind = state(&directory.path().join("behind"));
        let begins = State { first: descriptor(3, 1, 0, 5), ..behind };
        assert!(
            begins.refusal_of(&wide).is_some(),
            "of the same epoch, and with what is another's"
        );
        assert_eq!(begins.refusal_of(&narrow), None);
        ahead.wal.close().await;
        begins.wal.close().await;
    }

    #[tokio::test]
    async fn a_log_goes_on_from_what_is_applied_or_in_a_snapshot() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = state(directory.path());
        let reaches = |index: u64| state.reaches(log_id(1, index)).expect("read");
        assert!(!reaches(7), "nothing is here");
        put_applied(&state, 6);
        assert!(!reaches(7));
        put_applied(&state, 7);
        assert!(reaches(7) && !reaches(8));
        state.publish_built(&built(&state, 8)).expect("published");
        assert!(reaches(8) && !reaches(9));
        state.wal.close().await;
    }

    #[tokio::test]
    async fn rows_that_an_installation_left_are_removed_as_far_as_the_range_began() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = state(directory.path());
        put_objects(&state, 0..9);
        put_head(&state, &descriptor(4, 2, 7, 9));
        state.load().expect("begun anew");
        assert_eq!(*state.descriptor(), descriptor(3, 1, 0, 9));
        assert_eq!(objects(&state), [7, 8]);
        state.wal.close().await;
    }
}
