//! Compaction of the small class: what still lives in segments that are mostly garbage is moved behind the newest
//! records; the emptied segments are then recycled like any other in which nothing lives.
//!
//! **When.** A segment is moved when so much of it is garbage that moving pays: 77 % keeps everything that is ever moved
//! below three tenths of what is put (a segment of which a part u lives costs u for each 1 - u that it frees; 0.23 / 0.77
//! is 0.3). Where room is short, that is where the garbage is worth half of what the file system has to spare, 30 % is
//! enough: then room is dearer than writes. Among several, cost and benefit choose: garbage, times age, by what must be
//! read and written; old segments have stopped changing, in young ones more may die by itself.
//!
//! **How.** In rounds of a few segments: a survey lists what lives in them, in pieces; then each batch of the committer
//! takes some moves with it, and its sync. So they yield to what is asked for, and a move is judged like a put, by the one
//! thread that changes the index: a shard that was deleted or replaced since the survey is passed over. A moved record
//! keeps its sequence. A tombstone is moved if it marks a copy elsewhere ([`crate::graves`]), and dies with its segment
//! if not.
//!
//! **Room.** Moves take from the reserve, but leave half of it to deletions.

use crate::committer::Act;
use crate::format::{Class, PAGE, small_span};
use crate::graves::Graves;
use crate::segment::Segment;
use crate::store::Core;
use crate::{ShardKey, StoreError};
use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError};

/// Garbage, in percent, from which a segment is moved where there is room enough.
const GARBAGE_PERCENT: u64 = 77;
/// Each byte that is put is in the end freed as garbage, so three tenths of them pay for all moves.
const _: () = assert!((100 - GARBAGE_PERCENT) * 10 <= 3 * GARBAGE_PERCENT);
/// Garbage from which it is moved where room is short.
const GARBAGE_PERCENT_SHORT: u64 = 30;
/// The segments of a round: one survey of the index serves them all.
const VICTIMS_MAX: usize = 8;
/// What one batch moves, at most: about what a disk reads and writes in a millisecond.
const MOVE_BYTES_MAX: u64 = 256 * 1024;
/// The entries that one step of a survey looks at: about a millisecond.
const SURVEY_ENTRIES: usize = 16 * 1024;

/// Something that lives in a victim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Resident {
    /// Of its segment.
    pub(crate) generation: u64,
    /// Tombstones have none, and come first.
    pub(crate) offset: Option<u64>,
    pub(crate) key: ShardKey,
}

#[derive(Debug)]
enum Stage {
    /// The shards behind this key are still to be looked at.
    Shards(Option<ShardKey>),
    /// Then the tombstones.
    Tombstones(Option<ShardKey>),
    /// Then all that was found is moved.
    Moving,
}

#[derive(Debug)]
struct Round {
    victims: BTreeSet<u64>,
    stage: Stage,
    residents: Vec<Resident>,
    queue: VecDeque<Resident>,
}

/// The compaction of a disk. Owned by the committer.
#[derive(Debug)]
pub(crate) struct Compactor {
    round: Option<Round>,
    /// Bytes that died or were written since segments were last chosen.
    changed_bytes: u64,
    /// Segments that could not be read.
    unreadable: BTreeSet<u64>,
    /// There is no room for moves; changes at the next turn, if at all.
    is_paused: bool,
}

/// A segment that may be chosen.
struct Candidate {
    generation: u64,
    room: u64,
    lives: u64,
}

impl Candidate {
    fn garbage(&self) -> u64 {
        self.room.saturating_sub(self.lives)
    }

    fn has_garbage(&self, percent: u64) -> bool {
        self.garbage() * 100 >= percent * self.room
    }

    /// What it gives for what it costs, times its age. Generations are numbers of the one counter of the disk.
    fn score(&self, now: u64) -> u128 {
        let age = u128::from(now.saturating_sub(self.generation)) + 1;
        u128::from(self.garbage()) * 1_024 * age / u128::from(self.room + self.lives)
    }
}

impl Compactor {
    pub(crate) fn new() -> Self {
        // what an earlier life left is looked at first
        let changed_bytes = u64::MAX / 2;
        Self { round: None, changed_bytes, unreadable: BTreeSet::new(), is_paused: false }
    }

    /// So much has died or was written.
    pub(crate) fn note(&mut self, bytes: u64) {
        self.changed_bytes = self.changed_bytes.saturating_add(bytes);
        self.is_paused = false;
    }

    /// Something has been given back: there may be room again.
    pub(crate) fn resume(&mut self) {
        self.is_paused = false;
    }

    /// A batch with moves was not written: what it had is found by a later survey.
    pub(crate) fn give_up(&mut self) {
        self.round = None;
        self.is_paused = true;
    }

    /// Room is short: it is worth a look now.
    pub(crate) fn hurry(&mut self, core: &Core) {
        self.note(look_after(core));
    }

    /// Whether [`Compactor::step`] has something to do.
    pub(crate) fn has_work(&self, core: &Core) -> bool {
        let is_due = self.round.is_some() || self.changed_bytes >= look_after(core);
        is_due && !self.is_paused && core.is_writable()
    }

    /// The next moves, for the batch that is being made. `taken`: keys that are in it already. `active` is the small
    /// segment that is being filled.
    pub(crate) fn step(
        &mut self,
        core: &Core,
        graves: &Graves,
        active: Option<u64>,
        taken: &BTreeSet<ShardKey>,
    ) -> Vec<Act> {
        if !self.has_work(core) {
            return Vec::new();
        }
        if self.round.is_none() {
            self.changed_bytes = 0;
            self.round = choose(core, graves, active, &self.unreadable);
        }
        let Some(mut round) = self.round.take() else { return Vec::new() };
        if !round.survey(core, graves) {
            self.round = Some(round);
            return Vec::new();
        }
        let bytes_max = MOVE_BYTES_MAX.min(core.config.small_segment_bytes / 8);
        if !has_room(core, bytes_max) {
            self.is_paused = true;
            self.round = Some(round);
            return Vec::new();
        }
        let acts = self.moves(&mut round, core, graves, taken, bytes_max);
        if round.queue.is_empty() {
            // there may be more segments than one round takes
            self.hurry(core);
        } else {
            self.round = Some(round);
        }
        acts
    }

    fn moves(
        &mut self,
        round: &mut Round,
        core: &Core,
        graves: &Graves,
        taken: &BTreeSet<ShardKey>,
        bytes_max: u64,
    ) -> Vec<Act> {
        let (mut acts, mut bytes) = (Vec::new(), 0);
        let mut keys = BTreeSet::new();
        while let Some(&resident) = round.queue.front() {
            let key = resident.key;
            // its turn comes when the batch with its key is through
            if bytes >= bytes_max || taken.contains(&key) || !keys.insert(key) {
                break;
            }
            round.queue.pop_front();
            if self.unreadable.contains(&resident.generation) {
                continue;
            }
            match judge(core, graves, resident) {
                Ok(Some(act)) => {
                    bytes += act.small_bytes();
                    acts.push(act);
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(extent = %key.extent, %error, "a shard could not be moved: its segment stays as it is");
                    self.unreadable.insert(resident.generation);
                }
            }
        }
        acts
    }
}

impl Round {
    /// Looks at some more entries. `true`: all that lives in the victims is known.
    fn survey(&mut self, core: &Core, graves: &Graves) -> bool {
        match self.stage {
            Stage::Shards(after) => {
                let next = self.survey_shards(core, after);
                self.stage = match next {
                    Some(last) => Stage::Shards(Some(last)),
                    None => Stage::Tombstones(None),
                };
                false
            }
            Stage::Tombstones(after) => {
                let next = self.survey_tombstones(graves, after);
                self.stage = match next {
                    Some(last) => Stage::Tombstones(Some(last)),
                    None => {
                        self.residents.sort_unstable();
                        self.queue = std::mem::take(&mut self.residents).into();
                        Stage::Moving
                    }
                };
                false
            }
            Stage::Moving => true,
        }
    }

    /// The last key that it looked at; `None`: there are no more.
    fn survey_shards(&mut self, core: &Core, after: Option<ShardKey>) -> Option<ShardKey> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let index = core.index.read().unwrap_or_else(PoisonError::into_inner);
        let mut last = None;
        let entries = index.range((from, Bound::Unbounded)).take(SURVEY_ENTRIES).enumerate();
        for (count, (&key, entry)) in entries {
            last = (count + 1 == SURVEY_ENTRIES).then_some(key);
            let generation = entry.segment.header.generation;
            if self.victims.contains(&generation) {
                self.residents.push(Resident { generation, offset: Some(entry.offset), key });
            }
        }
        last
    }

    fn survey_tombstones(&mut self, graves: &Graves, after: Option<ShardKey>) -> Option<ShardKey> {
        let mut last = None;
        let tombstones = graves.tombstones_after(after).take(SURVEY_ENTRIES).enumerate();
        for (count, (key, tombstone)) in tombstones {
            last = (count + 1 == SURVEY_ENTRIES).then_some(key);
            let generation = tombstone.generation;
            if self.victims.contains(&generation) {
                self.residents.push(Resident { generation, offset: None, key });
            }
        }
        last
    }
}

/// Bytes that change before segments are chosen again.
fn look_after(core: &Core) -> u64 {
    core.config.small_segment_bytes / 4
}

/// Whether moves leave half of the reserve to deletions.
fn has_room(core: &Core, bytes: u64) -> bool {
    core.small_room().unwrap_or_default() >= core.config.reserve_bytes / 2 + bytes
}

/// The segments of the next round; `None`: none is worth it.
fn choose(
    core: &Core,
    graves: &Graves,
    active: Option<u64>,
    unreadable: &BTreeSet<u64>,
) -> Option<Round> {
    let segments = core.segments.lock().unwrap_or_else(PoisonError::into_inner);
    let now = segments.keys().next_back().copied().unwrap_or_default();
    let mut candidates: Vec<Candidate> = segments
        .values()
        .filter(|segment| segment.header.class == Class::Small)
        .filter(|segment| active != Some(segment.header.generation))
        .filter(|segment| !unreadable.contains(&segment.header.generation))
        .map(|segment| candidate(segment, graves))
        // one in which nothing lives goes by itself
        .filter(|candidate| candidate.lives > 0 && candidate.has_garbage(GARBAGE_PERCENT_SHORT))
        .collect();
    drop(segments);
    let garbage: u64 = candidates.iter().map(Candidate::garbage).sum();
    let spare = core.small_room().unwrap_or_default().saturating_sub(core.config.reserve_bytes);
    let is_short = spare < 2 * garbage;
    candidates.retain(|candidate| is_short || candidate.has_garbage(GARBAGE_PERCENT));
    candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.score(now)));
    let victims: BTreeSet<u64> =
        candidates.iter().take(VICTIMS_MAX).map(|candidate| candidate.generation).collect();
    let (residents, queue) = (Vec::new(), VecDeque::new());
    (!victims.is_empty()).then_some(Round { victims, stage: Stage::Shards(None), residents, queue })
}

fn candidate(segment: &Arc<Segment>, graves: &Graves) -> Candidate {
    let generation = segment.header.generation;
    let room = segment.file.len().unwrap_or_default().saturating_sub(PAGE).max(1);
    let lives = segment.live_bytes() + graves.needed_in(generation) * small_span(0);
    Candidate { generation, room, lives }
}

/// What is to be written for a resident; `None`: it lives there no more.
pub(crate) fn judge(
    core: &Core,
    graves: &Graves,
    resident: Resident,
) -> Result<Option<Act>, StoreError> {
    let Resident { generation, offset, key } = resident;
    let Some(offset) = offset else {
        let kept = graves.needed_tombstone(key).filter(|found| found.generation == generation);
        return Ok(kept.map(|tombstone| Act::Keep { key, sequence: tombstone.sequence }));
    };
    let entry = core.index.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
    let place = entry.as_ref().map(|entry| (entry.segment.header.generation, entry.offset));
    match entry.filter(|_| place == Some((generation, offset))) {
        Some(entry) => {
            let bytes = entry.read_unverified()?;
            Ok(Some(Act::Move { entry, bytes }))
        }
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_and_benefit_choose_garbage_and_age() {
        let candidate = |generation, lives| Candidate { generation, room: 1_000, lives };
        assert!(candidate(5, 100).score(10) > candidate(5, 200).score(10), "more garbage");
        assert!(candidate(1, 200).score(10) > candidate(9, 100).score(10), "older");
        assert!(candidate(1, 230).has_garbage(77) && !candidate(1, 231).has_garbage(77));
        assert_eq!((candidate(1, 2_000).garbage(), candidate(1, 0).garbage()), (0, 1_000));
    }
}
