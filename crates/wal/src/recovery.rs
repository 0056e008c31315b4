//! From files to table, telling a torn tail from corruption.
//!
//! The newest file is the one of the highest generation that holds a sound batch. Its last sound batch says which
//! generations are live, and the first batch of each file says where the log ended before it: so the files form a chain,
//! each with a known end but for the newest. Damage before a known end, or before a sound batch, lies below what was
//! synced: corruption. Damage after the last sound batch of the newest file is a torn tail.
//!
//! Damage severs every group: what was lost may have been anybody's vote, or a truncation, so that what follows need not
//! continue what is there. A severed group keeps its entries from before the damage and takes no later ones, until the
//! state that begins a later file says again what it holds: then only the log that the state speaks of is kept. A group
//! that is severed in the end, or has a hole, is corrupt. So damage that an earlier recovery has dealt with, and that still
//! lies in a pinned file, is not held against entries that were refilled since.
//!
//! Nothing is written here, so that a cut during recovery changes nothing: the writer begins a new file, whose first batch
//! makes the outcome durable.

use crate::WalError;
use crate::files::{self, WalFile};
use crate::format::{
    ALIGNMENT, BATCH_HEADER_BYTES, BatchHeader, BodyRecord, FORMAT, Kind, NoHeader, Position,
    RecordHeader, StateBody, batch_bytes, decode_body, resembles_batch,
};
use crate::record::{GroupHealth, Note, WalConfig};
use crate::table::{Place, Slot, Table};
use crate::writer::End;
use ashlar_host::{File, Host, OpenMode};
use ashlar_types::{RangeId, bug};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Read at once when looking for a batch.
const SCAN_BYTES: u64 = 1 << 20;

/// What recovery found.
pub(crate) struct Recovered {
    pub(crate) table: Table,
    pub(crate) files: BTreeMap<u64, WalFile>,
    pub(crate) spares: Vec<WalFile>,
    /// Removed once the writer's first batch is on stable storage.
    pub(crate) surplus: Vec<WalFile>,
    pub(crate) next_file: u64,
    pub(crate) end: End,
}

/// A file, and what its first batch says.
struct Seen {
    file: WalFile,
    length: u64,
    generation: u64,
    /// `None`: the first header is damaged.
    first: Option<BatchHeader>,
}

/// A group while the log is read.
#[derive(Default)]
struct Replayed {
    state: StateBody,
    entries: BTreeMap<u64, Slot>,
    /// First and last index that the log says are there.
    claimed: Option<(u64, u64)>,
    /// Something before here was damaged.
    severed: bool,
}

/// The reading of the log.
struct Replay {
    log_id: u64,
    groups: BTreeMap<RangeId, Replayed>,
    /// The last of each key. Damage may have taken a later one: then it is the last that is known.
    notes: BTreeMap<u64, Note>,
    next_lsn: u64,
    corrupt: bool,
    torn: bool,
}

/// What was read of one file.
struct Read {
    end: u64,
    last: Option<BatchHeader>,
}

/// What was read, the files it was read from, those that are not part of the log, and where it ends.
type Chain = (Replay, BTreeMap<u64, WalFile>, Vec<Seen>, Position);

/// Reads the whole log.
pub(crate) fn recover(host: &Host, config: &WalConfig) -> Result<Recovered, WalError> {
    let mut seen = Vec::new();
    let mut spares = Vec::new();
    let mut next_file = 1;
    for path in host.disk.list(&config.dir).map_err(|error| failed(&config.dir, &error))? {
        if files::is_unfinished(&path) {
            host.disk.remove_file(&path).map_err(|error| failed(&path, &error))?;
        }
        let Some(number) = files::number(&path) else { continue };
        next_file = next_file.max(number + 1);
        let (file, length) = open(host, config, &path)?;
        match inspect(&file, length)? {
            Some((generation, first)) => seen.push(Seen { file, length, generation, first }),
            None => spares.push(file),
        }
    }
    seen.sort_by_key(|seen| seen.generation);
    let next_generation = seen.last().map_or(1, |newest| newest.generation + 1);
    let (mut replay, chain, unused, synced) = read_chain(host, seen)?;
    spares.extend(unused.into_iter().map(|seen| seen.file));
    let (spares, surplus) = part(config, spares);
    if replay.corrupt || replay.torn {
        tracing::warn!(corrupt = replay.corrupt, torn = replay.torn, dir = %config.dir.display(),
            "the log did not end cleanly");
    }
    let end =
        End { log_id: replay.log_id, next_generation, next_lsn: replay.next_lsn.max(1), synced };
    let table = replay.table();
    Ok(Recovered { table, files: chain, spares, surplus, next_file, end })
}

fn failed(path: &Path, error: &std::io::Error) -> WalError {
    WalError::Open { path: path.to_owned(), reason: error.to_string() }
}

fn open(host: &Host, config: &WalConfig, path: &Path) -> Result<(WalFile, u64), WalError> {
    let file: Arc<dyn File> =
        host.disk.open(path, OpenMode::ReadWrite).map_err(|error| failed(path, &error))?.into();
    let length = file.len().map_err(|error| failed(path, &error))?;
    let prepared = length >= config.file_bytes;
    let wal_file = WalFile { path: path.to_owned(), file, limit: config.file_bytes, prepared };
    Ok((wal_file, length))
}

/// Whose generation the file is. `None`: it was never used.
fn inspect(file: &WalFile, length: u64) -> Result<Option<(u64, Option<BatchHeader>)>, WalError> {
    if length < ALIGNMENT {
        return Ok(None);
    }
    let sector = read(file, 0, ALIGNMENT)?;
    if let Some(header) = header(file, &sector)? {
        return Ok(Some((header.generation, Some(header))));
    }
    if sector.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    // the first header is damaged: whatever is found behind it tells
    let found = scan(file, ALIGNMENT, length, |header, _| Ok(Some(*header)))?;
    Ok(found.map(|header| (header.generation, None)))
}

/// Finds the newest file, and from it back all that are live; reads them from the oldest on.
fn read_chain(host: &Host, mut seen: Vec<Seen>) -> Result<Chain, WalError> {
    let log_id = seen.iter().rev().find_map(|seen| seen.first.map(|first| first.log_id));
    let mut replay = Replay {
        log_id: log_id.unwrap_or_else(|| host.random.next_u64()),
        groups: BTreeMap::new(),
        notes: BTreeMap::new(),
        next_lsn: 0,
        corrupt: false,
        torn: false,
    };
    let mut unused = Vec::new();
    let Some(oldest) = newest_live(&mut seen, &mut unused, &mut replay)? else {
        return Ok((replay, BTreeMap::new(), unused, Position::default()));
    };
    let chain = link(seen, oldest, &mut unused);
    let mut synced = Position::default();
    let mut files = BTreeMap::new();
    for Link { seen, end, broken } in chain {
        if broken {
            replay.sever();
        }
        let result = replay.file(&seen, end, true)?;
        synced = Position { generation: seen.generation, offset: result.end };
        if end.is_none() {
            // after a kill without a power cut the tail lies in the page cache only, and others will build on it
            seen.file.file.sync_data().map_err(|error| failed(&seen.file.path, &error))?;
        }
        files.insert(seen.generation, seen.file);
    }
    Ok((replay, files, unused, synced))
}

/// Drops files above the newest one that holds a sound batch; the oldest live generation, as that one says.
fn newest_live(
    seen: &mut Vec<Seen>,
    unused: &mut Vec<Seen>,
    replay: &mut Replay,
) -> Result<Option<u64>, WalError> {
    while let Some(newest) = seen.last() {
        let mut probe = Replay { groups: BTreeMap::new(), notes: BTreeMap::new(), ..*replay };
        if let Some(last) = probe.file(newest, None, false)?.last {
            return Ok(Some(last.oldest));
        }
        replay.torn = true;
        unused.extend(seen.pop());
    }
    Ok(None)
}

/// A file of the chain.
struct Link {
    seen: Seen,
    /// Where the file behind it says that it ended; `None`: it is the newest.
    end: Option<u64>,
    /// The file that should lie before it is not there.
    broken: bool,
}

/// The live files from the oldest on.
fn link(mut seen: Vec<Seen>, oldest: u64, unused: &mut Vec<Seen>) -> Vec<Link> {
    let mut chain: Vec<Link> = Vec::new();
    let mut before: Option<Position> = None;
    while let Some(next) = seen.pop() {
        // dead, or begun in a life that ended before it was synced, and never part of the log
        let stray = before.is_some_and(|before| next.generation > before.generation);
        if next.generation < oldest || stray {
            unused.push(next);
            continue;
        }
        let reaches = before.is_some_and(|before| before.generation == next.generation);
        if let Some(newer) = chain.last_mut() {
            newer.broken = !reaches;
        }
        let end = before.map(|before| if reaches { before.offset } else { next.length });
        // with a damaged first header the link is unknown: take the next older file
        let lower = Position { generation: next.generation - 1, offset: 0 };
        before = Some(next.first.map_or(lower, |first| first.synced));
        chain.push(Link { seen: next, end, broken: false });
    }
    if let (Some(first), Some(before)) = (chain.last_mut(), before) {
        first.broken = before.generation >= oldest;
    }
    chain.reverse();
    chain
}

/// Parts unused files into spares and those that are too many. Neither is touched here: an unused file may be the only
/// evidence of a torn tail, until the writer's first batch has made the outcome durable.
fn part(config: &WalConfig, unused: Vec<WalFile>) -> (Vec<WalFile>, Vec<WalFile>) {
    let (mut spares, mut surplus): (Vec<_>, Vec<_>) =
        unused.into_iter().partition(|file| file.prepared);
    surplus.extend(spares.split_off(spares.len().min(config.spare_files)));
    (spares, surplus)
}

impl Replay {
    /// Reads one file up to `end`; `None`: up to where it stops being sound. `apply`: takes the records in.
    fn file(&mut self, seen: &Seen, end: Option<u64>, apply: bool) -> Result<Read, WalError> {
        let stop = end.unwrap_or(seen.length).min(seen.length);
        let mut read = Read { end: 0, last: None };
        let mut at = 0;
        while at < stop {
            if let Some((header, records)) = self.batch(&seen.file, at, stop, seen.generation)? {
                if apply {
                    self.apply(&header, at, records);
                }
                self.next_lsn = header.lsn + u64::from(header.records);
                at = header.end(at);
                read = Read { end: at, last: Some(header) };
                continue;
            }
            let next = self.sound_batch_after(&seen.file, at, stop, seen.generation)?;
            if let Some(next) = next {
                self.sever();
                at = next;
                continue;
            }
            if end.is_none() {
                let sector = self::read(&seen.file, at, ALIGNMENT.min(seen.length - at))?;
                let begun = header(&seen.file, &sector)?;
                let stale = begun.is_some_and(|begun| begun.generation < seen.generation);
                self.torn |= !stale && resembles_batch(&sector, seen.generation, self.next_lsn);
            }
            break;
        }
        if end.is_some_and(|end| read.end < end) {
            self.sever();
            read.end = end.unwrap_or(read.end);
        }
        Ok(read)
    }

    /// The whole batch at `at`, if it is sound and of this file's use.
    fn batch(
        &self,
        file: &WalFile,
        at: u64,
        stop: u64,
        generation: u64,
    ) -> Result<Option<(BatchHeader, Vec<BodyRecord>)>, WalError> {
        if stop - at < ALIGNMENT {
            return Ok(None);
        }
        let sector = read(file, at, ALIGNMENT)?;
        let Some(header) = header(file, &sector)? else { return Ok(None) };
        self.body(file, &header, at, stop, generation)
    }

    fn body(
        &self,
        file: &WalFile,
        header: &BatchHeader,
        at: u64,
        stop: u64,
        generation: u64,
    ) -> Result<Option<(BatchHeader, Vec<BodyRecord>)>, WalError> {
        let bytes = batch_bytes(u64::from(header.body_bytes));
        if header.generation != generation
            || header.log_id != self.log_id
            || header.lsn < self.next_lsn
            || at + bytes > stop
        {
            return Ok(None);
        }
        let body = read(file, at + BATCH_HEADER_BYTES as u64, u64::from(header.body_bytes))?;
        let records = decode_body(header, &Bytes::from(body), &file.path)?;
        Ok(records.map(|records| (*header, records)))
    }

    /// Something that had been synced is damaged or missing here.
    fn sever(&mut self) {
        self.corrupt = true;
        for group in self.groups.values_mut() {
            group.severed = true;
        }
    }

    fn sound_batch_after(
        &self,
        file: &WalFile,
        at: u64,
        stop: u64,
        generation: u64,
    ) -> Result<Option<u64>, WalError> {
        scan(file, at + ALIGNMENT, stop, |header, at| {
            Ok(self.body(file, header, at, stop, generation)?.map(|_| at))
        })
    }

    fn apply(&mut self, header: &BatchHeader, at: u64, records: Vec<BodyRecord>) {
        for (record, offset, payload) in records {
            if record.kind == Kind::Note {
                self.note(record.index, &payload);
                continue;
            }
            let offset = at + BATCH_HEADER_BYTES as u64 + offset;
            let place = Place { generation: header.generation, offset };
            let severed = self.corrupt;
            let unknown = || Replayed { severed, ..Replayed::default() };
            let group = self.groups.entry(record.group).or_insert_with(unknown);
            group.apply(record, place, &payload);
        }
    }

    fn note(&mut self, key: u64, payload: &[u8]) {
        match Note::try_from(payload) {
            Ok(note) => drop(self.notes.insert(key, note)),
            Err(_) => self.sever(),
        }
    }

    /// The table, with the health of each group judged.
    fn table(&mut self) -> Table {
        let mut table = Table::default();
        for (key, note) in std::mem::take(&mut self.notes) {
            table.note(key, note);
        }
        for (id, mut group) in std::mem::take(&mut self.groups) {
            let complete = group.cut_at_hole();
            if !bug!("damage-is-a-torn-tail") && (group.severed || !complete) {
                group.state.health = GroupHealth::Corrupt;
            } else if self.torn && group.state.health == GroupHealth::Sound {
                group.state.health = GroupHealth::TornTail;
            }
            table.restore(id, group.state, group.entries.into_iter().collect());
        }
        table
    }
}

impl Replayed {
    fn apply(&mut self, record: RecordHeader, place: Place, payload: &Bytes) {
        // copied: a vote must not keep the batch that it was read with in memory
        let own = || Bytes::copy_from_slice(payload);
        match record.kind {
            Kind::Entry => self.append(&record, place, payload),
            Kind::Moved => self.take_moved(&record, place, payload),
            Kind::Vote => self.state.vote = Some(own()),
            Kind::TruncateAfter => self.truncate(record.index + 1),
            Kind::TruncateAll => self.truncate(0),
            Kind::Purge => self.purge(record.index, own()),
            Kind::Committed => self.state.committed = Some(own()),
            Kind::Created => {
                self.state.dropped = false;
                self.state.created = Some(own());
            }
            Kind::Dropped => {
                *self = Self::default();
                self.state.dropped = true;
            }
            Kind::Installing => self.state.installing = Some(own()),
            Kind::Installed => self.state.installing = None,
            Kind::CaughtUp => self.state.health = GroupHealth::Sound,
            // kept by the reading itself
            Kind::Note => {}
            Kind::State => match StateBody::decode(payload.clone()) {
                Some(state) => self.restate(state, record.term),
                None => self.severed = true,
            },
        }
    }

    fn append(&mut self, record: &RecordHeader, place: Place, payload: &Bytes) {
        // after damage the log may have begun before this entry
        let after_purge = self.state.purged.as_ref().map_or(0, |(upto, _)| upto + 1);
        let begin = if self.severed { after_purge.min(record.index) } else { record.index };
        let first = self.claimed.map_or(begin, |(first, _)| first);
        self.claimed = Some((first, record.index));
        if !self.severed {
            self.insert(record, place, payload);
        }
    }

    fn take_moved(&mut self, record: &RecordHeader, place: Place, payload: &Bytes) {
        let known = self.entries.get(&record.index).is_some_and(|slot| slot.term == record.term);
        let wanted = self.claimed.is_none_or(|(_, last)| record.index <= last);
        if known || (wanted && !self.severed) {
            self.insert(record, place, payload);
        }
    }

    fn insert(&mut self, record: &RecordHeader, place: Place, payload: &Bytes) {
        let bytes = u32::try_from(payload.len()).expect("its length came from a u32");
        let slot =
            Slot { term: record.term, bytes, sequence: 0, place: Some(place), payload: None };
        self.entries.insert(record.index, slot);
    }

    fn truncate(&mut self, keep_below: u64) {
        drop(self.entries.split_off(&keep_below));
        self.claimed = self
            .claimed
            .filter(|(first, _)| *first < keep_below)
            .map(|(first, last)| (first, last.min(keep_below - 1)));
    }

    fn purge(&mut self, upto: u64, id: Bytes) {
        if self.state.purged.as_ref().is_some_and(|(before, _)| *before >= upto) {
            return;
        }
        self.state.purged = Some((upto, id));
        self.entries = self.entries.split_off(&(upto + 1));
        self.claimed = self
            .claimed
            .filter(|(_, last)| *last > upto)
            .map(|(first, last)| (first.max(upto + 1), last));
    }

    /// The first batch of a file says all that is known of the group. Entries may be missing by now without damage: they
    /// were purged later, and their file is used for something else.
    fn restate(&mut self, state: StateBody, last_term: u64) {
        self.claimed = state.entries;
        self.state = StateBody { entries: None, ..state };
        let severed = std::mem::take(&mut self.severed);
        let Some((first, last)) = self.claimed else {
            return self.entries.clear();
        };
        self.entries.retain(|index, _| (first..=last).contains(index));
        // index and term of the last entry stand for all before it (R2)
        let same = self.entries.get(&last).is_some_and(|slot| slot.term == last_term);
        if severed && !same {
            self.entries.clear();
        }
    }

    /// Keeps the entries before the first hole. Whether there is none.
    fn cut_at_hole(&mut self) -> bool {
        let Some((first, last)) = self.claimed else {
            let none = self.entries.is_empty();
            self.entries.clear();
            return none;
        };
        let mut expected = first;
        while expected <= last && self.entries.contains_key(&expected) {
            expected += 1;
        }
        self.entries.retain(|index, _| (first..expected).contains(index));
        expected > last
    }
}

fn read(file: &WalFile, at: u64, length: u64) -> Result<Vec<u8>, WalError> {
    let length = usize::try_from(length)
        .map_err(|error| failed(&file.path, &std::io::Error::other(error)))?;
    let mut bytes = vec![0; length];
    file.file.read_exact_at(&mut bytes, at).map_err(|error| failed(&file.path, &error))?;
    Ok(bytes)
}

fn header(file: &WalFile, bytes: &[u8]) -> Result<Option<BatchHeader>, WalError> {
    match BatchHeader::decode(bytes) {
        Ok(header) => Ok(Some(header)),
        Err(NoHeader::Invalid) => Ok(None),
        Err(NoHeader::Newer(found)) => {
            Err(WalError::Newer { path: file.path.clone(), found, known: FORMAT })
        }
    }
}

/// The first header from `at` on of which `judge` makes something.
fn scan<T>(
    file: &WalFile,
    mut at: u64,
    stop: u64,
    mut judge: impl FnMut(&BatchHeader, u64) -> Result<Option<T>, WalError>,
) -> Result<Option<T>, WalError> {
    while at + ALIGNMENT <= stop {
        let length = (stop - at).min(SCAN_BYTES) / ALIGNMENT * ALIGNMENT;
        let bytes = read(file, at, length)?;
        for sector in bytes.chunks_exact(512) {
            if let Some(header) = header(file, sector)?
                && let Some(found) = judge(&header, at)?
            {
                return Ok(Some(found));
            }
            at += ALIGNMENT;
        }
    }
    Ok(None)
}
