//! What the log knows in memory: for each group its state and where each entry lies; for each file what is live in it.
//!
//! The table is changed when a record is submitted (it is readable from then on), and learns an entry's place when the
//! batch that holds it is on stable storage. An entry without a place always has its payload in memory; of the others the
//! newest stay in memory up to a bound for the whole node.

use crate::format::{RECORD_HEADER_BYTES, StateBody};
use crate::record::{Entry, GroupHealth, GroupState, Note, Record};
use crate::writer::Summary;
use crate::{WalError, limits::RECORD_BYTES_MAX};
use ashlar_types::RangeId;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) generation: u64,
    /// Of its header.
    pub(crate) offset: u64,
}

/// An entry.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) term: u64,
    /// Length of the payload.
    pub(crate) bytes: u32,
    /// Tells an entry from another that later took its index.
    pub(crate) sequence: u64,
    pub(crate) place: Option<Place>,
    pub(crate) payload: Option<Bytes>,
}

/// A group.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) state: StateBody,
    first: u64,
    slots: VecDeque<Slot>,
    live_bytes: u64,
}

/// What is live in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Live {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

/// All groups.
#[derive(Debug, Default)]
pub(crate) struct Table {
    groups: BTreeMap<RangeId, Group>,
    notes: BTreeMap<u64, Note>,
    live: BTreeMap<u64, Live>,
    next_sequence: u64,
    cached_bytes: u64,
    /// Entries whose payload may be in memory, oldest first; some are gone already.
    cached: VecDeque<(RangeId, u64, u64)>,
}

/// An entry as a reader finds it.
pub(crate) enum Found {
    InMemory(Entry),
    OnDisk { index: u64, term: u64, bytes: u32, place: Place },
}

impl Slot {
    /// Bytes of its record.
    pub(crate) fn record_bytes(&self) -> u64 {
        RECORD_HEADER_BYTES as u64 + u64::from(self.bytes)
    }
}

impl Group {
    fn last(&self) -> Option<(u64, u64)> {
        let slot = self.slots.back()?;
        Some((self.first + self.slots.len() as u64 - 1, slot.term))
    }

    /// The index that must come next; `None`: any may.
    fn next_index(&self) -> Option<u64> {
        self.last()
            .map(|(last, _)| last + 1)
            .or_else(|| self.state.purged.as_ref().map(|(upto, _)| upto + 1))
    }

    pub(crate) fn slot(&self, index: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    fn slot_mut(&mut self, index: u64) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    fn body(&self) -> StateBody {
        let entries = self.last().map(|(last, _)| (self.first, last));
        StateBody { entries, ..self.state.clone() }
    }
}

impl Table {
    pub(crate) fn groups(&self) -> Vec<RangeId> {
        self.groups.iter().filter(|(_, group)| !group.state.dropped).map(|(id, _)| *id).collect()
    }

    pub(crate) fn state(&self, group: RangeId) -> GroupState {
        let Some(group) = self.groups.get(&group) else {
            return GroupState::default();
        };
        let state = group.state.clone();
        GroupState {
            vote: state.vote,
            committed: state.committed,
            purged: state.purged,
            first_index: (!group.slots.is_empty()).then_some(group.first),
            last: group.last(),
            created: state.created,
            installing: state.installing,
            health: state.health,
            dropped: state.dropped,
        }
    }

    pub(crate) fn live_bytes(&self, group: RangeId) -> u64 {
        self.groups.get(&group).map_or(0, |group| group.live_bytes)
    }

    /// The states of all groups with the terms of their last entries, and the notes: for the first batch of a file.
    pub(crate) fn summary(&self) -> Summary {
        let state = |(id, group): (&RangeId, &Group)| {
            (*id, group.last().map_or(0, |(_, term)| term), group.body().encode())
        };
        Summary { groups: self.groups.iter().map(state).collect(), notes: self.notes.clone() }
    }

    pub(crate) fn notes(&self) -> &BTreeMap<u64, Note> {
        &self.notes
    }

    /// Takes a note in.
    pub(crate) fn note(&mut self, key: u64, note: Note) {
        self.notes.insert(key, note);
    }

    /// Whether these may be submitted, together. What follows the creation of a group that was dropped is for the new one.
    pub(crate) fn check_all(&self, id: RangeId, records: &[Record]) -> Result<(), WalError> {
        let mut is_created = false;
        for record in records {
            match self.check(id, record) {
                Err(WalError::Dropped { .. }) if is_created => {}
                checked => checked?,
            }
            is_created |= matches!(record, Record::Created { .. });
        }
        Ok(())
    }

    /// Whether `record` may be submitted.
    pub(crate) fn check(&self, id: RangeId, record: &Record) -> Result<(), WalError> {
        let bytes = largest_payload(record);
        if bytes > RECORD_BYTES_MAX {
            return Err(WalError::TooLarge { group: id, bytes, max: RECORD_BYTES_MAX });
        }
        let group = self.groups.get(&id);
        let dropped = group.is_some_and(|group| group.state.dropped);
        if dropped && !matches!(record, Record::Created { .. } | Record::Dropped) {
            return Err(WalError::Dropped { group: id });
        }
        let Record::Append(entries) = record else {
            return Ok(());
        };
        let mut expected = group.and_then(Group::next_index);
        for entry in entries {
            if let Some(expected) = expected.filter(|expected| *expected != entry.index) {
                return Err(WalError::Gap { group: id, expected, found: entry.index });
            }
            expected = Some(entry.index + 1);
        }
        Ok(())
    }

    /// Takes in a record that was checked. For an append: the sequence of its first entry.
    pub(crate) fn submit(&mut self, id: RangeId, record: &Record) -> u64 {
        let first_sequence = self.next_sequence;
        match record {
            Record::Append(entries) => self.append(id, entries),
            Record::Vote(vote) => self.group(id).vote = Some(vote.clone()),
            Record::Truncate { after } => {
                let keep = after.map_or(0, |after| after + 1);
                self.remove_from(id, keep);
            }
            Record::Purge { upto, id: log_id } => self.purge(id, *upto, log_id),
            Record::Committed(committed) => self.group(id).committed = Some(committed.clone()),
            Record::Created { first } => {
                let group = self.group(id);
                group.dropped = false;
                group.created = Some(first.clone());
            }
            Record::Dropped => {
                self.remove_from(id, 0);
                *self.group(id) = StateBody { dropped: true, ..StateBody::default() };
            }
            Record::Installing(snapshot) => self.group(id).installing = Some(snapshot.clone()),
            Record::Installed => self.group(id).installing = None,
            Record::CaughtUp => self.group(id).health = GroupHealth::Sound,
        }
        first_sequence
    }

    /// Puts a recovered group in. `entries` follow one another.
    pub(crate) fn restore(&mut self, id: RangeId, state: StateBody, entries: Vec<(u64, Slot)>) {
        let mut group = Group { state, ..Group::default() };
        group.first = entries.first().map_or(0, |(index, _)| *index);
        for (_, mut slot) in entries {
            slot.sequence = self.next_sequence;
            self.next_sequence += 1;
            group.live_bytes += slot.record_bytes();
            if let Some(place) = slot.place {
                count_in(&mut self.live, place, &slot);
            }
            group.slots.push_back(slot);
        }
        self.groups.insert(id, group);
    }

    /// The entry that has this sequence is on stable storage at `place`; it may be gone by now.
    pub(crate) fn place(&mut self, id: RangeId, index: u64, sequence: u64, place: Place) {
        let Some(slot) = self.groups.get_mut(&id).and_then(|group| group.slot_mut(index)) else {
            return;
        };
        if slot.sequence != sequence {
            return;
        }
        if let Some(old) = slot.place.replace(place) {
            count_out(&mut self.live, old, slot);
        }
        count_in(&mut self.live, place, slot);
    }

    /// The lowest generation that holds a live entry.
    pub(crate) fn oldest_live(&self) -> Option<u64> {
        self.live.first_key_value().map(|(generation, _)| *generation)
    }

    /// What is live in a file.
    pub(crate) fn live(&self, generation: u64) -> Live {
        self.live.get(&generation).copied().unwrap_or_default()
    }

    /// Entries that lie in a file, up to `bytes_max` and at least one, in order.
    pub(crate) fn entries_in(&self, generation: u64, bytes_max: u64) -> Vec<(RangeId, u64, Slot)> {
        let mut found = Vec::new();
        let mut bytes = 0;
        for (id, group) in &self.groups {
            for (index, slot) in (group.first..).zip(&group.slots) {
                if slot.place.is_none_or(|place| place.generation != generation) {
                    continue;
                }
                if bytes >= bytes_max {
                    return found;
                }
                bytes += slot.record_bytes();
                found.push((*id, index, slot.clone()));
            }
        }
        found
    }

    /// The entries `from..to`. An error unless all are here.
    pub(crate) fn find(&self, id: RangeId, from: u64, to: u64) -> Result<Vec<Found>, WalError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let missing = || WalError::Missing { group: id, from, to };
        let group = self.groups.get(&id).ok_or_else(missing)?;
        if group.slot(from).is_none() || group.slot(to - 1).is_none() {
            return Err(missing());
        }
        (from..to)
            .map(|index| {
                let slot = group.slot(index).ok_or_else(missing)?;
                Ok(match (&slot.payload, slot.place) {
                    (Some(payload), _) => {
                        Found::InMemory(Entry { index, term: slot.term, payload: payload.clone() })
                    }
                    (None, Some(place)) => {
                        Found::OnDisk { index, term: slot.term, bytes: slot.bytes, place }
                    }
                    (None, None) => return Err(missing()),
                })
            })
            .collect()
    }

    /// Whether an entry is still where a reader looked for it.
    pub(crate) fn is_at(&self, id: RangeId, index: u64, place: Place) -> bool {
        let slot = self.groups.get(&id).and_then(|group| group.slot(index));
        slot.is_some_and(|slot| slot.place == Some(place))
    }

    /// Forgets the oldest payloads that are on disk until no more than `bytes_max` are in memory.
    pub(crate) fn evict(&mut self, bytes_max: u64) {
        while self.cached_bytes > bytes_max {
            let Some(&(id, index, sequence)) = self.cached.front() else { return };
            if let Some(slot) = self.groups.get_mut(&id).and_then(|group| group.slot_mut(index))
                && slot.sequence == sequence
            {
                if slot.place.is_none() {
                    return;
                }
                if slot.payload.take().is_some() {
                    self.cached_bytes -= u64::from(slot.bytes);
                }
            }
            self.cached.pop_front();
        }
    }

    fn group(&mut self, id: RangeId) -> &mut StateBody {
        &mut self.groups.entry(id).or_default().state
    }

    fn append(&mut self, id: RangeId, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let group = self.groups.entry(id).or_default();
        if group.slots.is_empty() {
            group.first = first.index;
        }
        for entry in entries {
            let slot = Slot {
                term: entry.term,
                bytes: u32::try_from(entry.payload.len()).expect("records are at most 1 GiB"),
                sequence: self.next_sequence,
                place: None,
                payload: Some(entry.payload.clone()),
            };
            self.cached.push_back((id, entry.index, self.next_sequence));
            self.next_sequence += 1;
            self.cached_bytes += u64::from(slot.bytes);
            group.live_bytes += slot.record_bytes();
            group.slots.push_back(slot);
        }
    }

    fn purge(&mut self, id: RangeId, upto: u64, log_id: &Bytes) {
        let group = self.groups.entry(id).or_default();
        if group.state.purged.as_ref().is_some_and(|(before, _)| *before >= upto) {
            return;
        }
        group.state.purged = Some((upto, log_id.clone()));
        while group.first <= upto {
            let Some(slot) = group.slots.pop_front() else { break };
            group.first += 1;
            group.live_bytes -= slot.record_bytes();
            forget(&mut self.live, &mut self.cached_bytes, &slot);
        }
        self.trim_cached();
    }

    /// Removes the entries from `from` on.
    fn remove_from(&mut self, id: RangeId, from: u64) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        while group.last().is_some_and(|(last, _)| last >= from) {
            let Some(slot) = group.slots.pop_back() else { break };
            group.live_bytes -= slot.record_bytes();
            forget(&mut self.live, &mut self.cached_bytes, &slot);
        }
        self.trim_cached();
    }

    /// Keeps the queue of payloads in proportion: entries that were purged or truncated leave it here.
    fn trim_cached(&mut self) {
        let live: usize = self.groups.values().map(|group| group.slots.len()).sum();
        if self.cached.len() <= 2 * live + 1024 {
            return;
        }
        let groups = &self.groups;
        self.cached.retain(|(id, index, sequence)| {
            let slot = groups.get(id).and_then(|group| group.slot(*index));
            slot.is_some_and(|slot| slot.sequence == *sequence && slot.payload.is_some())
        });
    }
}

fn forget(live: &mut BTreeMap<u64, Live>, cached_bytes: &mut u64, slot: &Slot) {
    if let Some(place) = slot.place {
        count_out(live, place, slot);
    }
    if slot.payload.is_some() {
        *cached_bytes -= u64::from(slot.bytes);
    }
}

fn count_in(live: &mut BTreeMap<u64, Live>, place: Place, slot: &Slot) {
    let file = live.entry(place.generation).or_default();
    file.entries += 1;
    file.bytes += slot.record_bytes();
}

fn count_out(live: &mut BTreeMap<u64, Live>, place: Place, slot: &Slot) {
    let file = live.get_mut(&place.generation).expect("a placed entry is counted in its file");
    file.entries -= 1;
    file.bytes -= slot.record_bytes();
    if file.entries == 0 {
        live.remove(&place.generation);
    }
}

fn largest_payload(record: &Record) -> u64 {
    let largest = match record {
        Record::Append(entries) => {
            entries.iter().map(|entry| entry.payload.len()).max().unwrap_or(0)
        }
        Record::Vote(bytes)
        | Record::Committed(bytes)
        | Record::Installing(bytes)
        | Record::Created { first: bytes }
        | Record::Purge { id: bytes, .. } => bytes.len(),
        Record::Truncate { .. } | Record::Dropped | Record::Installed | Record::CaughtUp => 0,
    };
    largest as u64
}
