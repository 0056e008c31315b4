//! A range: its head in memory, and how an entry is applied.
//!
//! Per command: is the session refused, is the result remembered, are the extents its own, then the operation; what it
//! came to is remembered. Refusals that a caller mends and sends again under the same seq (`BucketEpoch`,
//! `OutsideRange`) are not remembered, and their extents are not freed: the resend names them again.

use crate::key::{self, family};
use crate::retry::{Admission, RetryTable};
use crate::row::{DescriptorRow, FloorRow, HashRow, HeadRow, SplitRow};
use crate::split::{AtEnd, BEFORE_BIRTH, is_of};
use crate::step::{Step, Stop};
use crate::txn::Txn;
use crate::{CatalogError, KNOWN_VERSIONS, KeySpan, View, Writes};
use ashlar_types::{
    Abandon, Applied, ApplyVersions, Batch, Caller, Command, Content, Extent, ExtentId, Generation,
    Orphan, Outcome, Ownership, RangeDescriptor, RangeId, RangeOp, Refusal, SlotSet, bug, decode,
    encode,
};
use std::ops::ControlFlow;

pub(crate) const DESCRIPTOR_FIELD: u8 = 0;
pub(crate) const HEAD_FIELD: u8 = 1;
const FLOOR_FIELD: u8 = 2;
pub(crate) const HASH_FIELD: u8 = 3;
pub(crate) const SPLIT_FIELD: u8 = 4;
/// How many expired rows one entry removes.
const EXPIRED_PER_ENTRY_MAX: usize = 64;

/// One data range: its in-memory head (loaded from its rows) and pure apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    pub(crate) descriptor: RangeDescriptor,
    pub(crate) head: HeadRow,
    pub(crate) splits: SplitRow,
    /// Of the entry that is being applied.
    pub(crate) at_end: AtEnd,
    retry: RetryTable,
    hash: u128,
    /// The newest version of apply that is known here.
    known: u32,
}

/// What an entry came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedEntry {
    /// An outcome for each command.
    pub outcomes: Vec<Outcome>,
    /// The rows to write, in one batch with whatever the caller keeps under [`crate::system_key`].
    pub writes: Writes,
    /// A range that this entry has made of the right side. Its rows are among those to write; that it exists has to be
    /// on stable storage before them.
    pub child: Option<RangeDescriptor>,
}

impl Range {
    /// A new, empty range, and the rows that make it. It begins by the first version, for ever: who replays its log with a
    /// later binary begins with the same state.
    pub fn create(descriptor: &RangeDescriptor) -> (Self, Writes) {
        Self::create_by(descriptor, ApplyVersions::FIRST.ranges)
    }

    /// As `create`, by another version: where a test stands for a cluster of long ago.
    pub fn create_by(descriptor: &RangeDescriptor, apply_version: u32) -> (Self, Writes) {
        let head = HeadRow {
            generation: Generation(0),
            apply_version,
            time_ms: 0,
            next_expiry_ms: u64::MAX,
            sweeping: Vec::new(),
        };
        let floor = FloorRow::default();
        let (hash, writes) = head_rows(descriptor, &head, &floor, 0);
        let retry = RetryTable::new(descriptor.id, floor);
        let range = Self {
            descriptor: descriptor.clone(),
            head,
            splits: SplitRow::default(),
            at_end: AtEnd::default(),
            retry,
            hash,
            known: KNOWN_VERSIONS.ranges,
        };
        (range, writes)
    }

    /// The range as its rows in `view` say; `None`: it has none there.
    pub fn load(view: &dyn View, id: RangeId) -> Result<Option<Self>, CatalogError> {
        Self::load_knowing(view, id, KNOWN_VERSIONS.ranges)
    }

    /// As `load`, by a binary that knows versions up to `known`.
    pub fn load_knowing(
        view: &dyn View,
        id: RangeId,
        known: u32,
    ) -> Result<Option<Self>, CatalogError> {
        let txn = Txn::new(view);
        let missing = || CatalogError::Inconsistent("a row of a range's head is missing");
        let Some(descriptor) = descriptor_in(view, id)? else { return Ok(None) };
        let head: HeadRow = txn.get(&key::state(id, HEAD_FIELD))?.ok_or_else(missing)?;
        let floor: FloorRow = txn.get(&key::state(id, FLOOR_FIELD))?.ok_or_else(missing)?;
        let HashRow(hash) = txn.get(&key::state(id, HASH_FIELD))?.ok_or_else(missing)?;
        let splits: SplitRow = txn.get(&key::state(id, SPLIT_FIELD))?.unwrap_or_default();
        let retry = RetryTable::load(view, id, floor)?;
        let at_end = AtEnd::default();
        Self { descriptor, head, splits, at_end, retry, hash, known }.knowing(known).map(Some)
    }

    /// The same, applied by a binary that knows versions up to `known`.
    pub fn knowing(mut self, known: u32) -> Result<Self, CatalogError> {
        self.known = known;
        match self.head.apply_version {
            found if found > known => Err(CatalogError::ApplyVersion { found, known }),
            _ => Ok(self),
        }
    }

    /// Applies one entry. `members_change`: the range's members are between two configurations, as every replica knows
    /// them at this entry. After an error this value is to be dropped.
    pub fn apply(
        &mut self,
        view: &dyn View,
        index: u64,
        members_change: bool,
        batch: &Batch,
    ) -> Result<AppliedEntry, CatalogError> {
        let mut txn = Txn::new(view);
        self.head.time_ms = self.head.time_ms.max(batch.proposed_ms);
        let mut outcomes = Vec::with_capacity(batch.commands.len());
        for command in &batch.commands {
            let is_old = batch.epoch < self.descriptor.epoch && !bug!("write-outside-of-the-range");
            let outcome = if is_old {
                Outcome::Refused(Refusal::OutsideRange)
            } else {
                self.command(&mut txn, index, members_change, command)?
            };
            outcomes.push(outcome);
        }
        if !self.at_end.parts() {
            self.expire(&mut txn)?;
            self.step(&mut txn).sweep()?;
        }
        self.follow_split(&mut txn)?;
        let parted = self.take_parted(&mut txn)?;
        self.answer_steps(&mut outcomes);
        self.put_head(&mut txn)?;
        let (mut writes, hash) = txn.finish(self.hash)?;
        self.hash = hash;
        let child = parted.map(|(child, prepared)| {
            self.hash = self.hash.wrapping_sub(prepared.hash);
            let rows = head_rows(&child, &self.head, self.retry.floor(), prepared.hash).1;
            writes.0.extend(rows.0);
            child
        });
        writes.put(key::state(self.descriptor.id, HASH_FIELD), encode(&HashRow(self.hash)));
        Ok(AppliedEntry { outcomes, writes, child })
    }

    fn put_head(&self, txn: &mut Txn<'_>) -> Result<(), CatalogError> {
        txn.put(key::state(self.descriptor.id, HEAD_FIELD), &self.head);
        let row = key::state(self.descriptor.id, SPLIT_FIELD);
        if self.splits != SplitRow::default() {
            txn.put(row, &self.splits);
        } else if txn.get_bytes(&row)?.is_some() {
            txn.remove(row);
        }
        Ok(())
    }

    fn answer_steps(&self, outcomes: &mut [Outcome]) {
        let left = self.splits.has_more_steps();
        for outcome in outcomes {
            if let Outcome::Applied(Applied::Stepped { more }) = outcome {
                *more = left;
            }
        }
    }

    /// The range as the entries applied so far have made it: what it was founded with says less.
    pub fn descriptor(&self) -> &RangeDescriptor {
        &self.descriptor
    }

    /// The sum over all rows of the state: equal on every replica at the same applied index (R4).
    pub fn state_hash(&self) -> u128 {
        self.hash
    }

    /// The generation of the latest operation.
    pub fn generation(&self) -> Generation {
        self.head.generation
    }

    /// The version by which it applies.
    pub fn apply_version(&self) -> u32 {
        self.head.apply_version
    }

    fn step<'s, 'v>(&'s mut self, txn: &'s mut Txn<'v>) -> Step<'s, 'v> {
        Step {
            txn,
            range: self.descriptor.id,
            interval: &self.descriptor.interval,
            head: &mut self.head,
        }
    }

    fn command(
        &mut self,
        txn: &mut Txn<'_>,
        index: u64,
        members_change: bool,
        command: &Command,
    ) -> Result<Outcome, CatalogError> {
        let caller = command.caller.as_ref();
        if let Some(caller) = caller {
            match self.retry.admit(txn, caller)? {
                Admission::Fresh => {}
                Admission::Refused(refusal) => return Ok(Outcome::Refused(refusal)),
                Admission::Remembered(outcome) => return Ok(recalled(&command.op, outcome)),
            }
        }
        let outcome = self.judged(txn, members_change, caller, &command.op)?;
        if let Outcome::Refused(refusal) = &outcome
            && let Some(content) = named_content(&command.op)
            && frees_extents(refusal)
        {
            self.step(txn).discard_all(content);
        }
        if let Some(caller) = caller
            && is_final(&outcome)
        {
            let kept = match (&command.op, &outcome) {
                (RangeOp::Abandon(_), Outcome::Applied(_)) => Outcome::Refused(Refusal::Abandoned),
                _ => outcome.clone(),
            };
            self.retry.remember(txn, index, caller, &kept);
        }
        Ok(outcome)
    }

    /// Applies an operation that has not been here before.
    fn judged(
        &mut self,
        txn: &mut Txn<'_>,
        members_change: bool,
        caller: Option<&Caller>,
        op: &RangeOp,
    ) -> Result<Outcome, CatalogError> {
        let own = |content: &Content| {
            content
                .extents
                .iter()
                .all(|extent| caller.is_some_and(|caller| caller.session == extent.id.session))
        };
        if named_content(op).is_some_and(|content| !own(content)) {
            return Ok(Outcome::Refused(Refusal::ForeignExtent));
        }
        match self.operation(txn, members_change, caller, op) {
            Ok(applied) => Ok(Outcome::Applied(applied)),
            Err(Stop::Refused(refusal)) => Ok(Outcome::Refused(refusal)),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    fn operation(
        &mut self,
        txn: &mut Txn<'_>,
        members_change: bool,
        caller: Option<&Caller>,
        op: &RangeOp,
    ) -> Result<Applied, Stop> {
        match op {
            RangeOp::Put(op) => self.step(txn).put(op),
            RangeOp::Delete(op) => self.step(txn).delete(op),
            RangeOp::DeleteVersion(op) => self.step(txn).delete_version(op),
            RangeOp::CreateUpload(op) => self.step(txn).create_upload(op),
            RangeOp::PutPart(op) => self.step(txn).put_part(op),
            RangeOp::CompleteUpload(op) => self.step(txn).complete_upload(op),
            RangeOp::AbortUpload(op) => self.step(txn).abort_upload(op),
            RangeOp::Redescribe(op) => self.step(txn).redescribe(op),
            RangeOp::Abandon(op) => self.abandon(txn, caller, op),
            RangeOp::SetBucket(row) => self.step(txn).set_bucket(row),
            RangeOp::FenceBucket { bucket, epoch } => self.step(txn).fence_bucket(*bucket, *epoch),
            RangeOp::UnfenceBucket { bucket, epoch } => {
                self.step(txn).unfence_bucket(*bucket, *epoch)
            }
            RangeOp::RaiseSessionFloor { floor, living } => {
                let row = self.retry.raise_floor(*floor, living);
                txn.put(key::state(self.descriptor.id, FLOOR_FIELD), row);
                self.retry.drop_fenced(txn);
                Ok(Applied::Done)
            }
            RangeOp::CollectDone { extents } => {
                self.collect_done(txn, extents);
                Ok(Applied::Done)
            }
            RangeOp::RaiseApplyVersion { version } => self.raise_apply_version(*version),
            RangeOp::ReportHash => Ok(Applied::Done),
            RangeOp::Repaired { extent, slots } => self.step(txn).repaired(extent, *slots),
            RangeOp::MarkLost(op) => self.step(txn).mark_lost(op),
            RangeOp::QueueOrphans { orphans } => self.queue_orphans(txn, orphans),
            RangeOp::Recode(op) => self.step(txn).recode(op),
            RangeOp::PrepareSplit(split) => self.prepare_split(split),
            RangeOp::StepSplit => Ok(self.step_split()),
            RangeOp::Split(split) => self.split(split, members_change),
            RangeOp::SplitTold { child } => Ok(self.split_told(*child)),
        }
    }

    /// That nothing names them is what the audit has seen, in every range, after each had refused their sessions for
    /// ever. That refusal is judged here again; so is the one way of being named that is found by an extent's id.
    fn queue_orphans(&mut self, txn: &mut Txn<'_>, orphans: &[Orphan]) -> Result<Applied, Stop> {
        let (range, retry) = (self.descriptor.id, &self.retry);
        if !orphans.iter().all(|orphan| retry.is_fenced(orphan.id.session)) {
            return Err(Refusal::SessionLives.into());
        }
        let mut step = self.step(txn);
        for orphan in orphans {
            for margin in 0..=orphan.profile.parity {
                if step.txn.get_bytes(&key::repair(range, margin, orphan.id))?.is_some() {
                    return Err(Refusal::ExtentNamed.into());
                }
            }
        }
        for orphan in orphans {
            if step.txn.get_bytes(&key::garbage(range, orphan.id))?.is_none() {
                step.discard(&as_extent(orphan));
            }
        }
        Ok(Applied::Done)
    }

    /// That this runs at all means that the log has not seen the abandoned command: it shares its seq.
    fn abandon(
        &mut self,
        txn: &mut Txn<'_>,
        caller: Option<&Caller>,
        op: &Abandon,
    ) -> Result<Applied, Stop> {
        if caller.is_none_or(|caller| caller.seq != op.seq) {
            return Err(Refusal::Unsupported.into());
        }
        if !self.descriptor.interval.contains(&op.at) {
            return Err(Refusal::OutsideRange.into());
        }
        self.step(txn).discard_all(&op.content);
        Ok(Applied::Done)
    }

    fn collect_done(&self, txn: &mut Txn<'_>, extents: &[ExtentId]) {
        for &extent in extents {
            txn.remove(key::garbage(self.descriptor.id, extent));
        }
    }

    /// A version that this binary lacks stops the replica: others will apply by it.
    fn raise_apply_version(&mut self, version: u32) -> Result<Applied, Stop> {
        if version > self.known {
            let (found, known) = (version, self.known);
            return Err(Stop::Failed(CatalogError::ApplyVersion { found, known }));
        }
        self.head.apply_version = self.head.apply_version.max(version);
        Ok(Applied::Done)
    }

    /// Removes rows whose time has come.
    fn expire(&mut self, txn: &mut Txn<'_>) -> Result<(), CatalogError> {
        if self.head.time_ms < self.head.next_expiry_ms {
            return Ok(());
        }
        let (from, to) = key::range_interval(family::EXPIRY, self.descriptor.id);
        self.head.next_expiry_ms = u64::MAX;
        for (row, _) in txn.rows(&from, to.as_deref(), EXPIRED_PER_ENTRY_MAX + 1)? {
            let (Some(at_ms), Some(expired)) =
                (row.get(9..17).and_then(key::read_u64), row.get(17..))
            else {
                return Err(CatalogError::Inconsistent("an expiry row's key"));
            };
            if at_ms > self.head.time_ms {
                self.head.next_expiry_ms = at_ms;
                break;
            }
            self.head.next_expiry_ms = at_ms;
            // behind a split this may be another range's row, which has a copy of this one
            if is_of(&self.descriptor.interval, expired) {
                txn.remove(expired.to_vec());
            }
            txn.remove(row);
        }
        Ok(())
    }
}

/// What a resend is answered. An abandoned command is refused; abandoning it again is done already.
fn recalled(op: &RangeOp, outcome: Outcome) -> Outcome {
    match (op, &outcome) {
        (RangeOp::Abandon(_), Outcome::Refused(Refusal::Abandoned)) => {
            Outcome::Applied(Applied::Done)
        }
        _ => outcome,
    }
}

fn named_content(op: &RangeOp) -> Option<&Content> {
    match op {
        RangeOp::Put(op) => Some(&op.content),
        RangeOp::PutPart(op) => Some(&op.content),
        RangeOp::Abandon(op) => Some(&op.content),
        RangeOp::Recode(op) => Some(&op.content),
        RangeOp::Delete(_)
        | RangeOp::DeleteVersion(_)
        | RangeOp::CreateUpload(_)
        | RangeOp::CompleteUpload(_)
        | RangeOp::AbortUpload(_)
        | RangeOp::Redescribe(_)
        | RangeOp::SetBucket(_)
        | RangeOp::FenceBucket { .. }
        | RangeOp::UnfenceBucket { .. }
        | RangeOp::RaiseSessionFloor { .. }
        | RangeOp::CollectDone { .. }
        | RangeOp::RaiseApplyVersion { .. }
        | RangeOp::ReportHash
        | RangeOp::Repaired { .. }
        | RangeOp::MarkLost(_)
        | RangeOp::QueueOrphans { .. }
        | RangeOp::PrepareSplit(_)
        | RangeOp::StepSplit
        | RangeOp::Split(_)
        | RangeOp::SplitTold { .. } => None,
    }
}

/// Whether a caller gets no second chance under this seq.
fn is_final(outcome: &Outcome) -> bool {
    !matches!(outcome, Outcome::Refused(Refusal::BucketEpoch { .. } | Refusal::OutsideRange))
}

/// Whether the extents of a refused command are garbage: surely its own, and never to be named again.
fn frees_extents(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::BucketEpoch { .. }
        | Refusal::OutsideRange
        | Refusal::ForeignExtent
        | Refusal::SessionFenced
        | Refusal::Forgotten
        | Refusal::Abandoned => false,
        Refusal::ConditionFailed
        | Refusal::NoSuchKey
        | Refusal::NoSuchUpload
        | Refusal::PartsChanged
        | Refusal::ObjectChanged
        | Refusal::BucketFenced
        | Refusal::BucketNotEmpty
        | Refusal::Unsupported
        | Refusal::NotMissing
        | Refusal::ExtentChanged
        | Refusal::TooFewLeft
        | Refusal::SessionLives
        | Refusal::ExtentNamed
        | Refusal::Splitting
        | Refusal::NotPrepared
        | Refusal::BadSplitPoint
        | Refusal::MembersChanging => true,
    }
}

/// What is known of an extent without a record: enough to find its shards.
fn as_extent(orphan: &Orphan) -> Extent {
    Extent {
        id: orphan.id,
        pg: orphan.pg,
        profile: orphan.profile,
        cell_bytes: 0,
        length: 0,
        missing: SlotSet::EMPTY,
        ownership: Ownership::Owned,
        crc64: 0,
    }
}

/// Takes the rows of a range's head out of those that are to be written: it begins with others.
pub fn leave_out(writes: &mut Writes, id: RangeId) {
    let head = key::of_range(family::STATE, id);
    writes.0.retain(|row, _| !row.starts_with(&head));
}

/// What a row says that a range is; `None`: it is another row.
pub fn descriptor_row(
    id: RangeId,
    row: &[u8],
    value: &[u8],
) -> Option<Result<RangeDescriptor, CatalogError>> {
    if row.first() != Some(&family::STATE) || row != key::state(id, DESCRIPTOR_FIELD) {
        return None;
    }
    Some(decode(value).map(|DescriptorRow(descriptor)| descriptor).map_err(CatalogError::from))
}

/// The range as the rows of a view say: its epoch and its interval at that moment. `None`: it has no rows there.
pub fn descriptor_in(
    view: &dyn View,
    id: RangeId,
) -> Result<Option<RangeDescriptor>, CatalogError> {
    let row: Option<DescriptorRow> = Txn::new(view).get(&key::state(id, DESCRIPTOR_FIELD))?;
    Ok(row.map(|DescriptorRow(descriptor)| descriptor))
}

/// The rows of a head, and the state hash with them; `others`: the sum over all other rows.
fn head_rows(
    descriptor: &RangeDescriptor,
    head: &HeadRow,
    floor: &FloorRow,
    others: u128,
) -> (u128, Writes) {
    let id = descriptor.id;
    let rows = [
        (key::state(id, DESCRIPTOR_FIELD), encode(&DescriptorRow(descriptor.clone()))),
        (key::state(id, HEAD_FIELD), encode(head)),
        (key::state(id, FLOOR_FIELD), encode(floor)),
    ];
    let mut writes = Writes::default();
    let mut hash = others;
    for (row, value) in rows {
        hash = hash.wrapping_add(crate::txn::row_hash(&row, &value));
        writes.put(row, value);
    }
    writes.put(key::state(id, HASH_FIELD), encode(&HashRow(hash)));
    (hash, writes)
}

/// The intervals of the node-wide map that a range owns in a view, in key order: what a snapshot holds. The replica's own
/// rows ([`crate::system_key`]) are not among them.
pub fn owned_intervals(
    view: &dyn View,
    descriptor: &RangeDescriptor,
) -> Result<Vec<KeySpan>, CatalogError> {
    let objects =
        family::OF_OBJECTS.map(|family| key::object_interval(family, &descriptor.interval));
    let own = family::OF_RANGES.map(|family| key::range_interval(family, descriptor.id));
    let mut intervals: Vec<_> = objects.into_iter().chain(own).collect();
    intervals.extend(unborn_intervals(view, descriptor.id)?);
    intervals.sort();
    Ok(intervals)
}

/// Where what a range keeps for the right side of a prepared split lies: it is the range's own until the split.
fn unborn_intervals(view: &dyn View, id: RangeId) -> Result<Vec<KeySpan>, CatalogError> {
    let splits: Option<SplitRow> = Txn::new(view).get(&key::state(id, SPLIT_FIELD))?;
    let Some(prepared) = splits.and_then(|splits| splits.prepared) else { return Ok(Vec::new()) };
    let child = prepared.split.child;
    let is_born = descriptor_in(view, child)?.is_some();
    let families = BEFORE_BIRTH.iter().filter(|_| !is_born);
    Ok(families.map(|&family| key::range_interval(family, child)).collect())
}

/// What is to be removed of a range whose rows are replaced: where its rows may lie, without the objects that the view
/// gives to a range of a later epoch. One that is behind its split still claims what is its child's by now; of two claims
/// the later one counts.
///
/// In the order of removal: the row that says the interval goes last, so that a removal that was cut short is repeated.
pub fn removable_intervals(
    view: &dyn View,
    descriptor: &RangeDescriptor,
) -> Result<Vec<KeySpan>, CatalogError> {
    let mut own = vec![descriptor.interval.clone()];
    for other in descriptors_in(view)?.iter().filter(|other| other.epoch > descriptor.epoch) {
        own = own.iter().flat_map(|part| part.without(&other.interval)).collect();
    }
    let objects = family::OF_OBJECTS
        .iter()
        .flat_map(|&family| own.iter().map(move |part| key::object_interval(family, part)));
    let others = family::OF_RANGES.into_iter().filter(|&family| family != family::STATE);
    let last =
        others.chain([family::STATE]).map(|family| key::range_interval(family, descriptor.id));
    Ok(objects.chain(unborn_intervals(view, descriptor.id)?).chain(last).collect())
}

/// All ranges that have rows in a view.
fn descriptors_in(view: &dyn View) -> Result<Vec<RangeDescriptor>, CatalogError> {
    let heads = Txn::new(view).rows_under(&[family::STATE])?;
    let is_descriptor = |key: &[u8]| key.get(9..) == Some(&[DESCRIPTOR_FIELD]);
    let rows = heads.iter().filter(|(key, _)| is_descriptor(key));
    rows.map(|(_, value)| {
        let DescriptorRow(descriptor) = decode(value)?;
        Ok(descriptor)
    })
    .collect()
}

/// Visits every row of a range in key order: what a snapshot file holds.
pub fn export(
    view: &dyn View,
    descriptor: &RangeDescriptor,
    visit: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<(), CatalogError> {
    export_intervals(view, &owned_intervals(view, descriptor)?, visit)
}

pub(crate) fn export_intervals(
    view: &dyn View,
    intervals: &[KeySpan],
    visit: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<(), CatalogError> {
    for (from, to) in intervals {
        view.scan(from, to.as_deref(), &mut |row, value| {
            visit(row, value);
            ControlFlow::Continue(())
        })?;
    }
    Ok(())
}
