//! The writer: takes everything that waits, writes it as one batch, syncs once, answers in order.
//!
//! Since a batch holds all that was submitted, the table at that moment is exactly what the log says after it. That is
//! why the first batch of a file can end with the state of every group (the very first one of a process begins with it), and why a file may be given up as soon as the
//! table has nothing live in it. At most one batch is un-synced at any time: a sound batch behind a damaged one
//! proves that the damaged one had been synced.
//!
//! After a failed write or sync nothing is written any more: what reached the disk is unknown, and a second sync would
//! report success for pages that the kernel has thrown away.

use crate::WalError;
use crate::files::{self, WalFile};
use crate::format::{
    ALIGNMENT, BATCH_HEADER_BYTES, BatchHeader, Kind, Position, RECORD_HEADER_BYTES, RecordHeader,
    batch_bytes, seed,
};
use crate::record::{Entry, Note, Record};
use crate::table::{Place, Slot};
use crate::wal::{Done, Item, Queued, Shared, State, read_back};
use ashlar_types::{RangeId, bug};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::Arc;

/// Payloads below this are copied next to their header: one slice of the kernel costs more than copying them.
const COPY_BYTES_MAX: usize = 16 << 10;
/// Slices of one write call.
const SLICES_MAX: usize = 1024;

/// Where the log ends, as recovery found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) log_id: u64,
    /// Higher than that of any file seen.
    pub(crate) next_generation: u64,
    pub(crate) next_lsn: u64,
    pub(crate) synced: Position,
}

/// The writer's own state.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    end: End,
    /// The file of generation `end.synced.generation`, once this process has begun one.
    current: Option<WalFile>,
    /// The states that recovery found, until they are written.
    recovered: Option<Summary>,
    metrics: Metrics,
}

struct Metrics {
    syncs: metrics::Counter,
    sync_seconds: metrics::Histogram,
    bytes: metrics::Counter,
    records: metrics::Histogram,
}

/// A group, the term of its last entry, its encoded state.
pub(crate) type GroupLine = (RangeId, u64, Bytes);

/// All that the log knows but entries.
pub(crate) struct Summary {
    pub(crate) groups: Vec<GroupLine>,
    pub(crate) notes: BTreeMap<u64, Note>,
}

/// The states that the first batch of a file holds.
enum States {
    /// Those that recovery found, before the batch's records: damage is judged by what this process went on from.
    Before(Summary),
    /// Those after the batch's records.
    After(Summary),
}

/// What was taken from the table at one moment.
struct Taken {
    queue: Vec<Queued>,
    /// A new file begins.
    states: Option<States>,
    moves: Vec<(RangeId, u64, Slot)>,
    oldest: u64,
}

/// What there is to do.
enum Work {
    Taken(Taken),
    None,
    Closed,
}

/// An entry that lies in the batch being written.
struct Placed {
    group: RangeId,
    index: u64,
    sequence: u64,
    /// From the beginning of the batch.
    offset: u64,
}

impl Writer {
    /// A writer that goes on behind `end`, in a new file.
    pub(crate) fn new(shared: Arc<Shared>, end: End) -> Self {
        let recovered = Some(shared.lock().table.summary());
        let metrics = Metrics {
            syncs: metrics::counter!("ashlar_wal_syncs_total"),
            sync_seconds: metrics::histogram!("ashlar_wal_sync_seconds"),
            bytes: metrics::counter!("ashlar_wal_written_bytes_total"),
            records: metrics::histogram!("ashlar_wal_batch_records"),
        };
        Self { shared, end, current: None, recovered, metrics }
    }

    /// Until the log is closed or has failed.
    pub(crate) async fn run(mut self) {
        while let Some(taken) = self.wait().await {
            let (dones, result) = self.write(taken);
            self.shared.host.disk_time().await;
            if let Err(error) = result {
                self.fail(dones, &error);
                break;
            }
            for done in dones {
                done(Ok(()));
            }
        }
        self.current = None;
        self.shared.lock().lock = None;
        self.shared.running.send_modify(|running| *running -= 1);
    }

    /// Waits for work, and takes all of it. `None`: closed.
    async fn wait(&mut self) -> Option<Taken> {
        loop {
            match self.take() {
                Work::Taken(taken) => return Some(taken),
                Work::Closed => return None,
                Work::None => self.shared.work.notified().await,
            }
        }
    }

    fn take(&mut self) -> Work {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        if state.queue.is_empty() {
            return if state.closing { Work::Closed } else { Work::None };
        }
        let bytes = std::mem::take(&mut state.queue_bytes);
        let queue: Vec<Queued> = state.queue.drain(..).collect();
        let moves = self.choose_moves(&state);
        let moved: u64 = moves.iter().map(|(_, _, slot)| slot.record_bytes()).sum();
        let states = (!self.fits(bytes + moved)).then(|| match self.recovered.take() {
            Some(recovered) => States::Before(recovered),
            None => States::After(state.table.summary()),
        });
        let current = self.end.synced.generation;
        let own = if states.is_some() { self.end.next_generation } else { current };
        let oldest = state.table.oldest_live().map_or(own, |oldest| oldest.min(own));
        drop(state);
        shared.room.notify_waiters();
        Work::Taken(Taken { queue, states, moves, oldest })
    }

    fn fits(&self, bytes: u64) -> bool {
        self.current
            .as_ref()
            .is_some_and(|file| self.end.synced.offset + batch_bytes(bytes) <= file.limit)
    }

    /// Entries of the oldest file that go into this batch: where too many files are pinned, and little is live there.
    fn choose_moves(&self, state: &State) -> Vec<(RangeId, u64, Slot)> {
        let Some(oldest) = state.table.oldest_live() else { return Vec::new() };
        let pinned = state.files.range(oldest..).count();
        let few = state.table.live(oldest).bytes <= self.shared.config.file_bytes / 4;
        if pinned <= self.shared.limits.pinned_files || !few {
            return Vec::new();
        }
        state.table.entries_in(oldest, self.shared.limits.move_bytes)
    }

    /// Writes and syncs one batch, and tells the table.
    fn write(&mut self, taken: Taken) -> (Vec<Done>, io::Result<()>) {
        let Taken { queue, states, moves, oldest } = taken;
        let mut dones = Vec::with_capacity(queue.len());
        let mut items = Vec::with_capacity(queue.len());
        for queued in queue {
            items.extend(queued.items);
            dones.push(queued.done);
        }
        let result = self.write_items(&items, states.as_ref(), &moves, oldest);
        (dones, result)
    }

    fn write_items(
        &mut self,
        items: &[Item],
        states: Option<&States>,
        moves: &[(RangeId, u64, Slot)],
        oldest: u64,
    ) -> io::Result<()> {
        let fresh = states.is_some();
        if fresh {
            self.current = Some(self.take_file()?);
        }
        let (generation, offset) = if fresh {
            (self.end.next_generation, 0)
        } else {
            (self.end.synced.generation, self.end.synced.offset)
        };
        let mut batch = Batch::new(generation, self.end.next_lsn);
        if let Some(States::Before(states)) = states {
            batch.states(states);
        }
        for item in items {
            match item {
                Item::Record { group, record, first_sequence } => {
                    batch.record(*group, record, *first_sequence);
                }
                Item::Note { key, note } => batch.note(*key, *note),
            }
        }
        for (group, index, slot) in moves {
            let payload = self.payload_of(*group, *index, slot)?;
            batch.entry(Kind::Moved, *group, *index, slot.term, &payload, slot.sequence);
        }
        if let Some(States::After(states)) = states {
            batch.states(states);
        }
        let header = BatchHeader {
            log_id: self.end.log_id,
            generation,
            lsn: self.end.next_lsn,
            synced: self.end.synced,
            oldest,
            body_bytes: u32::try_from(batch.bytes - BATCH_HEADER_BYTES as u64)
                .map_err(io::Error::other)?,
            records: batch.records,
        };
        batch.finish(&header);
        let file = self.current.as_ref().expect("the first batch takes a file");
        let file = Arc::clone(&file.file);
        batch.write(&*file, offset)?;
        self.sync(&*file)?;
        self.metrics.bytes.increment(header.end(offset) - offset);
        self.metrics.records.record(f64::from(header.records));
        self.end.next_lsn += u64::from(header.records);
        self.end.synced = Position { generation, offset: header.end(offset) };
        if fresh {
            self.end.next_generation = generation + 1;
        }
        self.tell(&batch.placed, offset, oldest);
        Ok(())
    }

    fn sync(&self, file: &dyn ashlar_host::File) -> io::Result<()> {
        let begin = self.shared.host.clock.now();
        if !bug!("log-without-sync") {
            file.sync_data()?;
        }
        self.metrics.syncs.increment(1);
        self.metrics.sync_seconds.record((self.shared.host.clock.now() - begin).as_secs_f64());
        Ok(())
    }

    fn payload_of(&self, group: RangeId, index: u64, slot: &Slot) -> io::Result<Bytes> {
        if let Some(payload) = &slot.payload {
            return Ok(payload.clone());
        }
        let place = slot.place.expect("an entry without payload in memory has a place");
        let file = self.shared.lock().files.get(&place.generation).cloned();
        let file = file.ok_or_else(|| io::Error::other("the file of a live entry is gone"))?;
        read_back(&file, group, index, slot.term, slot.bytes, place).map_err(io::Error::other)
    }

    /// A spare, or a new file that grows.
    fn take_file(&self) -> io::Result<WalFile> {
        let mut state = self.shared.lock();
        state.prepare = false;
        if let Some(spare) = state.spares.pop() {
            return Ok(spare);
        }
        let number = state.take_file_number();
        drop(state);
        files::create_growing(&*self.shared.host.disk, &self.shared.config, number)
    }

    /// The batch at `offset` is on stable storage: entries have places, files below `oldest` are free.
    fn tell(&self, placed: &[Placed], offset: u64, oldest: u64) {
        let current = self.current.clone().expect("a batch was just written to it");
        let generation = self.end.synced.generation;
        let mut state = self.shared.lock();
        for entry in placed {
            let place = Place { generation, offset: offset + entry.offset };
            state.table.place(entry.group, entry.index, entry.sequence, place);
        }
        state.table.evict(self.shared.limits.cache_bytes);
        if self.end.synced.offset > current.limit / 4 && !state.prepare {
            state.prepare = true;
            self.shared.spare_wanted.notify_one();
        }
        state.files.insert(generation, current);
        let live = state.files.split_off(&oldest);
        let free = std::mem::replace(&mut state.files, live);
        let mut surplus = std::mem::take(&mut state.surplus);
        for file in free.into_values() {
            if file.prepared && state.spares.len() < self.shared.config.spare_files {
                state.spares.push(WalFile { limit: self.shared.config.file_bytes, ..file });
            } else {
                surplus.push(file);
            }
        }
        drop(state);
        for file in surplus {
            if let Err(error) = self.shared.host.disk.remove_file(&file.path) {
                tracing::warn!(path = %file.path.display(), %error, "a free log file stays");
            }
        }
    }

    /// From now on everything fails; those that wait are told.
    fn fail(&self, dones: Vec<Done>, error: &io::Error) {
        tracing::error!(%error, "the write-ahead log has failed");
        metrics::counter!("ashlar_wal_failures_total").increment(1);
        let error = WalError::Failed { reason: error.to_string() };
        let mut state = self.shared.lock();
        state.failed = Some(error.clone());
        state.closing = true;
        let waiting: Vec<Queued> = state.queue.drain(..).collect();
        drop(state);
        self.shared.room.notify_waiters();
        self.shared.failing.notify_waiters();
        self.shared.spare_wanted.notify_one();
        for done in dones.into_iter().chain(waiting.into_iter().map(|queued| queued.done)) {
            done(Err(error.clone()));
        }
    }
}

/// The zeroing worker: keeps the spares complete, once the writer has used a part of its file.
pub(crate) async fn zero_spares(shared: Arc<Shared>) {
    let stop = || shared.lock().closing;
    while !stop() {
        let Some(number) = wanted_spare(&shared) else {
            shared.spare_wanted.notified().await;
            continue;
        };
        let made = files::create_zeroed(&*shared.host.disk, &shared.config, number, stop);
        shared.host.disk_time().await;
        match made {
            Ok(Some(file)) => shared.lock().spares.push(file),
            Ok(None) => break,
            Err(error) => {
                // no reason to stop: the writer goes on in growing files, and says so itself when it cannot
                tracing::warn!(%error, "no spare log file could be made ready");
                shared.lock().prepare = false;
            }
        }
    }
    shared.running.send_modify(|running| *running -= 1);
}

/// The number of the spare to be made, where one is wanted.
fn wanted_spare(shared: &Shared) -> Option<u64> {
    let mut state = shared.lock();
    let is_wanted = state.prepare && state.spares.len() < shared.config.spare_files;
    is_wanted.then(|| state.take_file_number())
}

/// What a note adds to the queue and to a batch.
pub(crate) const NOTE_BYTES: u64 = (RECORD_HEADER_BYTES + size_of::<Note>()) as u64;

/// What a record adds to the queue, and at most to a batch.
pub(crate) fn queued_bytes(record: &Record) -> u64 {
    let header = RECORD_HEADER_BYTES as u64;
    match record {
        Record::Append(entries) => {
            entries.iter().map(|entry| header + entry.payload.len() as u64).sum()
        }
        Record::Vote(bytes)
        | Record::Committed(bytes)
        | Record::Installing(bytes)
        | Record::Created { first: bytes }
        | Record::Purge { id: bytes, .. } => header + bytes.len() as u64,
        Record::Truncate { .. } | Record::Dropped | Record::Installed | Record::CaughtUp => header,
    }
}

/// A batch that is being put together.
struct Batch {
    seed: u32,
    lsn: u64,
    records: u32,
    bytes: u64,
    /// Headers and small payloads; begins with the batch header.
    copied: Vec<u8>,
    /// Large payloads, each with the length of `copied` when it was put in.
    large: Vec<(usize, Bytes)>,
    placed: Vec<Placed>,
}

impl Batch {
    fn new(generation: u64, lsn: u64) -> Self {
        Self {
            seed: seed(generation),
            lsn,
            records: 0,
            bytes: BATCH_HEADER_BYTES as u64,
            copied: vec![0; BATCH_HEADER_BYTES],
            large: Vec::new(),
            placed: Vec::new(),
        }
    }

    fn record(&mut self, group: RangeId, record: &Record, first_sequence: u64) {
        match record {
            Record::Append(entries) => {
                for (sequence, entry) in (first_sequence..).zip(entries) {
                    let Entry { index, term, payload } = entry;
                    self.entry(Kind::Entry, group, *index, *term, payload, sequence);
                }
            }
            Record::Vote(vote) => self.put(Kind::Vote, group, 0, 0, vote),
            Record::Truncate { after: Some(after) } => {
                self.put(Kind::TruncateAfter, group, *after, 0, &Bytes::new());
            }
            Record::Truncate { after: None } => {
                self.put(Kind::TruncateAll, group, 0, 0, &Bytes::new());
            }
            Record::Purge { upto, id } => self.put(Kind::Purge, group, *upto, 0, id),
            Record::Committed(committed) => self.put(Kind::Committed, group, 0, 0, committed),
            Record::Created { first } => self.put(Kind::Created, group, 0, 0, first),
            Record::Dropped => self.put(Kind::Dropped, group, 0, 0, &Bytes::new()),
            Record::Installing(snapshot) => self.put(Kind::Installing, group, 0, 0, snapshot),
            Record::Installed => self.put(Kind::Installed, group, 0, 0, &Bytes::new()),
            Record::CaughtUp => self.put(Kind::CaughtUp, group, 0, 0, &Bytes::new()),
        }
    }

    fn note(&mut self, key: u64, note: Note) {
        self.put(Kind::Note, RangeId(0), key, 0, &Bytes::copy_from_slice(&note));
    }

    fn states(&mut self, states: &Summary) {
        for (key, note) in &states.notes {
            self.note(*key, *note);
        }
        for (group, last_term, state) in &states.groups {
            self.put(Kind::State, *group, 0, *last_term, state);
        }
    }

    fn entry(
        &mut self,
        kind: Kind,
        group: RangeId,
        index: u64,
        term: u64,
        payload: &Bytes,
        sequence: u64,
    ) {
        self.placed.push(Placed { group, index, sequence, offset: self.bytes });
        self.put(kind, group, index, term, payload);
    }

    fn put(&mut self, kind: Kind, group: RangeId, index: u64, term: u64, payload: &Bytes) {
        let lsn = self.lsn + u64::from(self.records);
        let header = RecordHeader { kind, group, lsn, index, term }.encode(self.seed, payload);
        self.copied.extend_from_slice(&header);
        if payload.len() < COPY_BYTES_MAX {
            self.copied.extend_from_slice(payload);
        } else {
            self.large.push((self.copied.len(), payload.clone()));
        }
        self.bytes += (header.len() + payload.len()) as u64;
        self.records += 1;
    }

    /// Puts the header in, and pads.
    fn finish(&mut self, header: &BatchHeader) {
        self.copied[..BATCH_HEADER_BYTES].copy_from_slice(&header.encode());
        let padding = self.bytes.next_multiple_of(ALIGNMENT) - self.bytes;
        let padding = usize::try_from(padding).expect("less than 512");
        self.copied.resize(self.copied.len() + padding, 0);
    }

    /// One call of the kernel, unless there are very many large payloads.
    fn write(&self, file: &dyn ashlar_host::File, mut offset: u64) -> io::Result<()> {
        let mut slices = Vec::with_capacity(2 * self.large.len() + 1);
        let mut from = 0;
        for (until, payload) in &self.large {
            slices.push(IoSlice::new(&self.copied[from..*until]));
            slices.push(IoSlice::new(payload));
            from = *until;
        }
        slices.push(IoSlice::new(&self.copied[from..]));
        for part in slices.chunks(SLICES_MAX) {
            file.write_vectored_at(part, offset)?;
            offset += part.iter().map(|slice| slice.len() as u64).sum::<u64>();
        }
        Ok(())
    }
}
