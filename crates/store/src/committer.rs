//! The committer of a disk: drains its queue, writes all of it, syncs each touched segment once, then answers and
//! publishes. It alone publishes, so what it finds in the index while it judges is the truth.
//!
//! There is no timer: while one batch syncs, the next one gathers, so batches grow with load.

use crate::checkpoint;
use crate::compaction::Compactor;
use crate::format::{
    HEADER_BYTES, Kind, PAGE, RecordHeader, Trailer, round_up, size, small_span, trailer_offset,
};
use crate::index::Entry;
use crate::large::Reservation;
use crate::reclaim::Reclaimer;
use crate::segment::Segment;
use crate::small::{Chore, SmallWriter};
use crate::store::Core;
use crate::{ShardKey, ShardMeta, StoreError};
use ashlar_types::bug;
use bytes::Bytes;
use metrics::{Counter, Histogram};
use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::sync::{Arc, PoisonError};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// The most records of a batch, and of the queue.
pub(crate) const BATCH_RECORDS_MAX: usize = 256;
/// The most payload of a batch, and of the queue.
pub(crate) const BATCH_BYTES_MAX: u64 = 4 << 20;
/// The most keys of one deletion: their tombstones are a quarter of a batch.
pub(crate) const DELETE_KEYS_MAX: usize = 8192;
/// A checkpoint is taken after so many records, or a quarter of the index: recovery reads no more than these.
const CHECKPOINT_RECORDS: usize = 64 * 1024;
/// Or after so many bytes in small segments: a scan reads all of these, which takes seconds.
const CHECKPOINT_BYTES: u64 = 2 << 30;
const ZEROES: [u8; 4096] = [0; 4096];

/// A large shard whose content is written.
pub(crate) struct Filled {
    pub(crate) reservation: Arc<Reservation>,
    /// With the true length.
    pub(crate) meta: ShardMeta,
    pub(crate) crc: u32,
    pub(crate) blocks: Vec<u32>,
    pub(crate) replaces: Option<u64>,
}

/// What the committer is asked.
pub(crate) enum Work {
    /// A small shard, replacing a damaged record of that sequence.
    Put { meta: ShardMeta, bytes: Bytes, crc: u32, replaces: Option<u64> },
    /// A large shard.
    Commit(Box<Filled>),
    /// A tombstone for each of these that is there.
    Delete(Vec<ShardKey>),
}

/// What became of it; of a deletion: which of its keys were there.
pub(crate) type Answer = Result<Vec<bool>, StoreError>;

/// Work, and who waits for it.
pub(crate) struct Job {
    pub(crate) work: Work,
    pub(crate) reply: oneshot::Sender<Answer>,
    /// Its share of the queue's bytes.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

/// What comes through the queue.
pub(crate) enum Message {
    Job(Job),
    /// Look around: something may be waiting.
    Wake,
    /// Write a checkpoint, mark the disk clean, end.
    Close(oneshot::Sender<()>),
}

/// What is written for a job that was found to change something.
pub(crate) enum Act {
    Put {
        meta: ShardMeta,
        bytes: Bytes,
        crc: u32,
    },
    Commit(Box<Filled>),
    /// A tombstone; of what is deleted only the length is left out.
    Bury(ShardMeta),
    /// A shard that compaction moves.
    Move {
        entry: Entry,
        bytes: Vec<u8>,
    },
    /// A tombstone that compaction moves.
    Keep {
        key: ShardKey,
        sequence: u64,
    },
}

/// What an item does to the index when it is durable.
enum Effect {
    Show(Entry),
    Hide(ShardKey),
    None,
}

/// A record, and its place in the order.
struct Item {
    act: Act,
    sequence: u64,
    /// Of its record header.
    offset: u64,
    segment: Option<Arc<Segment>>,
}

/// Who is answered when the items of a batch are durable, and what.
struct Waiter {
    reply: oneshot::Sender<Answer>,
    permit: Option<OwnedSemaphorePermit>,
    answer: Vec<bool>,
}

/// What one round makes durable.
#[derive(Default)]
struct Batch {
    items: Vec<Item>,
    waiters: Vec<Waiter>,
}

struct Measures {
    syncs: Counter,
    sync_seconds: Histogram,
    batch_records: Histogram,
    bytes: Counter,
    moved: Counter,
}

pub(crate) struct Committer {
    core: Arc<Core>,
    queue: mpsc::Receiver<Message>,
    small: SmallWriter,
    reclaimer: Reclaimer,
    compactor: Compactor,
    /// What came after a batch was full.
    held: Option<Job>,
    since_checkpoint: usize,
    /// Written to small segments since then.
    unshown_bytes: u64,
    /// Keys of torn records that no tombstone marks yet.
    torn: Vec<ShardKey>,
    measures: Measures,
}

impl Work {
    fn keys(&self) -> &[ShardKey] {
        match self {
            Self::Put { meta, .. } => std::slice::from_ref(&meta.key),
            Self::Commit(filled) => std::slice::from_ref(&filled.meta.key),
            Self::Delete(keys) => keys,
        }
    }

    /// The room it takes in a small segment, at most.
    pub(crate) fn small_bytes(&self) -> u64 {
        match self {
            Self::Put { meta, .. } => small_span(meta.length),
            Self::Delete(keys) => small_span(0) * keys.len() as u64,
            Self::Commit(_) => 0,
        }
    }
}

impl Act {
    /// The room it takes in a small segment.
    pub(crate) fn small_bytes(&self) -> u64 {
        match self {
            Self::Put { meta, .. } => small_span(meta.length),
            Self::Move { entry, .. } => small_span(entry.meta.length),
            Self::Bury(_) | Self::Keep { .. } => small_span(0),
            Self::Commit(_) => 0,
        }
    }

    /// What follows its header in a small segment.
    fn content(&self) -> &[u8] {
        match self {
            Self::Put { bytes, .. } => bytes,
            Self::Move { bytes, .. } => bytes,
            Self::Bury(_) | Self::Keep { .. } | Self::Commit(_) => &[],
        }
    }

    fn key(&self) -> ShardKey {
        match self {
            Self::Put { meta, .. } | Self::Bury(meta) => meta.key,
            Self::Commit(filled) => filled.meta.key,
            Self::Move { entry, .. } => entry.meta.key,
            Self::Keep { key, .. } => *key,
        }
    }

    /// Compaction's: it keeps its place in the order.
    fn kept_sequence(&self) -> Option<u64> {
        match self {
            Self::Move { entry, .. } => Some(entry.sequence),
            Self::Keep { sequence, .. } => Some(*sequence),
            Self::Put { .. } | Self::Commit(_) | Self::Bury(_) => None,
        }
    }
}

impl Committer {
    pub(crate) fn new(
        core: Arc<Core>,
        queue: mpsc::Receiver<Message>,
        active: Option<Arc<Segment>>,
        reclaimer: Reclaimer,
    ) -> Self {
        let disk = core.disk.to_string();
        let measures = Measures {
            syncs: metrics::counter!("ashlar_store_syncs_total", "disk" => disk.clone()),
            sync_seconds: metrics::histogram!("ashlar_store_sync_seconds", "disk" => disk.clone()),
            batch_records: metrics::histogram!("ashlar_store_batch_records", "disk" => disk.clone()),
            bytes: metrics::counter!("ashlar_store_written_bytes_total", "disk" => disk.clone()),
            moved: metrics::counter!("ashlar_store_moved_bytes_total", "disk" => disk),
        };
        let (small, compactor) = (SmallWriter::new(active), Compactor::new());
        Self {
            core,
            queue,
            small,
            reclaimer,
            compactor,
            held: None,
            since_checkpoint: 0,
            torn: Vec::new(),
            unshown_bytes: 0,
            measures,
        }
    }

    /// Makes durable what recovery has decided: torn records are none, and the rest is in a checkpoint. On a disk that is
    /// too full for that the tombstones go with the first batch that finds room, and the next start takes as long.
    pub(crate) async fn settle_recovery(&mut self, torn: &[ShardKey]) -> Result<(), StoreError> {
        self.torn = torn.to_vec();
        let mut batch = Batch::default();
        self.bury_torn(&mut batch);
        let buried =
            if batch.items.is_empty() { Ok(()) } else { self.write(&mut batch.items).await };
        let stored = buried.and_then(|()| {
            self.torn.clear();
            self.publish(batch);
            let image = checkpoint::capture(&self.core, &self.reclaimer.graves);
            checkpoint::store(&self.core, image, false)
        });
        match stored {
            Err(StoreError::Full) => {
                tracing::warn!(
                    "the disk is too full for a checkpoint: the next start takes as long"
                );
                Ok(())
            }
            settled => settled,
        }
    }

    /// Adds a tombstone for each torn record that has none yet, and whose key is neither there nor in the batch.
    fn bury_torn(&self, batch: &mut Batch) {
        if self.torn.is_empty() {
            return;
        }
        let taken: BTreeSet<ShardKey> = batch.items.iter().map(|item| item.act.key()).collect();
        let index = self.core.index.read().unwrap_or_else(PoisonError::into_inner);
        let absent: BTreeSet<ShardKey> = self
            .torn
            .iter()
            .filter(|key| !index.contains_key(key) && !taken.contains(key))
            .copied()
            .collect();
        drop(index);
        let acts = absent.into_iter().map(|key| Act::Bury(ShardMeta::unknown(key))).collect();
        batch.add(acts, &self.core);
    }

    /// Runs until the store is closed, or forgotten.
    pub(crate) async fn run(mut self) {
        loop {
            self.reclaim();
            let first = match self.next().await {
                Ok(Message::Job(job)) => job,
                Ok(Message::Wake) => {
                    self.compactor.resume();
                    continue;
                }
                Ok(Message::Close(done)) => return self.close(done).await,
                Err(TryRecvError::Empty) => {
                    self.commit(Vec::new()).await;
                    continue;
                }
                Err(TryRecvError::Disconnected) => return,
            };
            let (batch, close) = self.gather(first);
            self.commit(batch).await;
            if let Some(done) = close {
                self.drain().await;
                return self.close(done).await;
            }
        }
    }

    /// What comes next. Waits, but where compaction can use the time.
    async fn next(&mut self) -> Result<Message, TryRecvError> {
        if let Some(job) = self.held.take() {
            return Ok(Message::Job(job));
        }
        if self.compactor.has_work(&self.core) {
            return self.queue.try_recv();
        }
        self.queue.recv().await.ok_or(TryRecvError::Disconnected)
    }

    /// One batch: as much as has come, up to its limits, and no key twice.
    fn gather(&mut self, first: Job) -> (Vec<Job>, Option<oneshot::Sender<()>>) {
        let room = BATCH_BYTES_MAX.min(self.core.config.small_segment_bytes / 2);
        let mut bytes = first.work.small_bytes();
        let mut keys: BTreeSet<ShardKey> = first.work.keys().iter().copied().collect();
        let mut batch = vec![first];
        while batch.len() < BATCH_RECORDS_MAX {
            match self.queue.try_recv() {
                Ok(Message::Job(job)) => {
                    bytes += job.work.small_bytes();
                    if bytes > room || job.work.keys().iter().any(|key| keys.contains(key)) {
                        self.held = Some(job);
                        break;
                    }
                    keys.extend(job.work.keys());
                    batch.push(job);
                }
                Ok(Message::Wake) => {}
                Ok(Message::Close(done)) => return (batch, Some(done)),
                Err(_) => break,
            }
        }
        (batch, None)
    }

    /// What is left in the queue when it closes.
    async fn drain(&mut self) {
        self.queue.close();
        loop {
            let next =
                self.held.take().map_or_else(|| self.queue.try_recv(), |j| Ok(Message::Job(j)));
            match next {
                Ok(Message::Job(job)) => {
                    let (batch, _) = self.gather(job);
                    self.commit(batch).await;
                }
                Ok(Message::Wake | Message::Close(_)) => {}
                Err(_) => return,
            }
        }
    }

    async fn commit(&mut self, jobs: Vec<Job>) {
        let _visit = self.core.visits.enter(&self.core.host);
        let mut batch = self.judge(jobs);
        self.add_moves(&mut batch);
        if batch.items.is_empty() {
            return;
        }
        self.bury_torn(&mut batch);
        let written = match self.small.poll_prefill(&self.core) {
            Ok(()) => self.write(&mut batch.items).await,
            Err(error) => Err(error),
        };
        self.core.host.disk_time().await;
        match written {
            Ok(()) => {
                self.torn.clear();
                self.publish(batch);
            }
            Err(error) => {
                batch.give_up(&error);
                self.compactor.give_up();
            }
        }
        self.small.prefill_ahead(&self.core);
        self.checkpoint_if_due();
    }

    /// Lets compaction use the batch: its moves need no sync of their own.
    fn add_moves(&mut self, batch: &mut Batch) {
        if !self.compactor.has_work(&self.core) {
            return;
        }
        let taken = batch.items.iter().map(|item| item.act.key()).collect();
        let (graves, active) = (&self.reclaimer.graves, self.small.active());
        for act in self.compactor.step(&self.core, graves, active, &taken) {
            let sequence = act.kept_sequence().expect("compaction writes nothing new");
            batch.items.push(Item { act, sequence, offset: 0, segment: None });
        }
    }

    /// Answers what changes nothing, and gives the others their sequences.
    fn judge(&mut self, jobs: Vec<Job>) -> Batch {
        let is_full = self.is_full(&jobs);
        if is_full {
            self.compactor.hurry(&self.core);
        }
        let mut batch = Batch::default();
        for Job { work, reply, permit } in jobs {
            match self.judge_one(work, is_full) {
                Ok((acts, answer)) if !acts.is_empty() => {
                    batch.add(acts, &self.core);
                    batch.waiters.push(Waiter { reply, permit, answer });
                }
                verdict => Waiter { reply, permit, answer: Vec::new() }
                    .answer(verdict.map(|(_, answer)| answer)),
            }
        }
        batch
    }

    /// What is to be done for a piece of work, and its answer then.
    fn judge_one(&self, work: Work, is_full: bool) -> Result<(Vec<Act>, Vec<bool>), StoreError> {
        let verdict = match &work {
            _ if !self.core.is_writable() => Err(StoreError::NotWritable),
            Work::Put { meta, crc, replaces, .. } => self.judge_shard(meta, *crc, *replaces),
            Work::Commit(filled) => self.judge_shard(&filled.meta, filled.crc, filled.replaces),
            Work::Delete(_) => Ok(true),
        };
        match (verdict, work) {
            (Ok(true), Work::Put { .. }) if is_full => Err(StoreError::Full),
            (Ok(true), Work::Put { meta, bytes, crc, .. }) => {
                Ok((vec![Act::Put { meta, bytes, crc }], Vec::new()))
            }
            // room for large shards was taken when they began
            (Ok(true), Work::Commit(filled)) => Ok((vec![Act::Commit(filled)], Vec::new())),
            (Ok(_), Work::Delete(keys)) => Ok(self.judge_delete(&keys)),
            // a reservation that is dropped here gives its room up
            (verdict, _) => verdict.map(|_| (Vec::new(), Vec::new())),
        }
    }

    /// Whether a shard is to be written; `false`: the same is there.
    fn judge_shard(
        &self,
        meta: &ShardMeta,
        crc: u32,
        replaces: Option<u64>,
    ) -> Result<bool, StoreError> {
        let index = self.core.index.read().unwrap_or_else(PoisonError::into_inner);
        match index.get(&meta.key) {
            Some(known) if replaces != Some(known.sequence) => {
                let is_same = known.meta.length == meta.length && known.crc == crc;
                if is_same { Ok(false) } else { Err(StoreError::Conflict) }
            }
            Some(_) | None => Ok(true),
        }
    }

    /// A tombstone for each key that is there, once. One that is not there needs none: what a scan may still find of it
    /// lies under a tombstone that stays as long as that. (So does a torn record: recovery puts one over it.)
    fn judge_delete(&self, keys: &[ShardKey]) -> (Vec<Act>, Vec<bool>) {
        let index = self.core.index.read().unwrap_or_else(PoisonError::into_inner);
        let mut buried = BTreeSet::new();
        let (mut acts, mut existed) = (Vec::new(), Vec::with_capacity(keys.len()));
        for key in keys {
            let is_first = buried.insert(*key);
            let known = index.get(key).filter(|_| is_first).map(|entry| entry.meta);
            existed.push(known.is_some());
            acts.extend(known.map(Act::Bury));
        }
        (acts, existed)
    }

    /// Whether small shards would eat into what is kept for tombstones and compaction.
    fn is_full(&self, batch: &[Job]) -> bool {
        let puts = batch.iter().filter(|job| matches!(job.work, Work::Put { .. }));
        let wanted: u64 = puts.map(|job| job.work.small_bytes()).sum();
        let free =
            self.core.small_room().unwrap_or(u64::MAX).saturating_add(self.small.prefilled_room());
        wanted > 0 && free < self.core.config.reserve_bytes.saturating_add(wanted)
    }

    async fn write(&mut self, items: &mut [Item]) -> Result<(), StoreError> {
        let mut touched = BTreeMap::new();
        if let Some(segment) = self.write_small(items).await? {
            touched.insert(segment.header.generation, segment);
        }
        for item in items.iter_mut() {
            if let Act::Commit(filled) = &item.act {
                let segment = filled.reservation.segment.clone();
                self.write_trailer(filled, item.sequence)?;
                item.offset = filled.reservation.header.offset;
                item.segment = Some(segment.clone());
                touched.insert(segment.header.generation, segment);
            }
        }
        for segment in touched.values() {
            self.sync(segment)?;
        }
        let last = items.iter().map(|item| item.sequence).max().unwrap_or_default();
        self.core.set_acked(last.max(self.core.acked()));
        self.measures
            .batch_records
            .record(f64::from(u32::try_from(items.len()).unwrap_or(u32::MAX)));
        Ok(())
    }

    /// Writes the records of the small class with one call.
    async fn write_small(
        &mut self,
        items: &mut [Item],
    ) -> Result<Option<Arc<Segment>>, StoreError> {
        let used: u64 = items.iter().map(|item| item.act.small_bytes()).sum();
        if used == 0 {
            return Ok(None);
        }
        let bytes = round_up(used, PAGE);
        let (segment, start) = self.small.place(&self.core, bytes).await?;
        let mut at = start;
        let mut headers = Vec::with_capacity(items.len());
        for item in items.iter_mut().filter(|item| item.act.small_bytes() > 0) {
            headers.push(self.small_header(item, &segment, at).encode(segment.seed));
            item.offset = at;
            item.segment = Some(segment.clone());
            at += item.act.small_bytes();
        }
        let mut slices = Vec::with_capacity(3 * headers.len() + 1);
        let small = items.iter().filter(|item| item.act.small_bytes() > 0);
        for (item, header) in small.zip(&headers) {
            let content = item.act.content();
            let pad = size(item.act.small_bytes()) - HEADER_BYTES - content.len();
            slices.extend([
                IoSlice::new(header),
                IoSlice::new(content),
                IoSlice::new(&ZEROES[..pad]),
            ]);
        }
        slices.push(IoSlice::new(&ZEROES[..size(bytes - used)]));
        slices.retain(|slice| !slice.is_empty());
        self.small.write(&self.core, &segment, &slices, start, start + bytes).await?;
        self.measures.bytes.increment(bytes);
        self.unshown_bytes += bytes;
        Ok(Some(segment))
    }

    fn small_header(&self, item: &Item, segment: &Segment, offset: u64) -> RecordHeader {
        let (kind, meta, crc) = match &item.act {
            Act::Put { meta, crc, .. } => (Kind::Shard, *meta, *crc),
            Act::Commit(filled) => (Kind::Shard, filled.meta, filled.crc),
            Act::Bury(meta) => (Kind::Tombstone, ShardMeta { length: 0, ..*meta }, 0),
            Act::Move { entry, .. } => (Kind::Move, entry.meta, entry.crc),
            Act::Keep { key, .. } => (Kind::Tombstone, ShardMeta::unknown(*key), 0),
        };
        RecordHeader {
            kind,
            meta,
            generation: segment.header.generation,
            sequence: item.sequence,
            offset,
            span: item.act.small_bytes(),
            acked: self.core.acked(),
            crc,
        }
    }

    fn write_trailer(&self, filled: &Filled, sequence: u64) -> Result<(), StoreError> {
        let Reservation { segment, header, .. } = filled.reservation.as_ref();
        let trailer = Trailer {
            generation: header.generation,
            reservation: header.sequence,
            sequence,
            length: filled.meta.length,
            offset: header.offset,
            acked: self.core.acked(),
            crc: filled.crc,
            blocks: filled.blocks.clone(),
        };
        let bytes = trailer.encode(segment.seed);
        let at = trailer_offset(header.offset, header.meta.length);
        self.measures.bytes.increment(filled.meta.length + bytes.len() as u64);
        segment.file.write_at(&bytes, at).map_err(|error| {
            self.core.poison("write", &segment.path, &error);
            StoreError::io("write", &segment.path, &error)
        })
    }

    fn sync(&self, segment: &Segment) -> Result<(), StoreError> {
        let clock = &self.core.host.clock;
        let began = clock.now();
        let synced = if bug!("shard-without-sync") { Ok(()) } else { segment.file.sync_data() };
        self.measures.sync_seconds.record(clock.now() - began);
        self.measures.syncs.increment(1);
        synced.map_err(|error| {
            self.core.poison("sync", &segment.path, &error);
            StoreError::io("sync", &segment.path, &error)
        })
    }

    /// Everything in the batch is durable: from now on it is seen.
    fn publish(&mut self, batch: Batch) {
        self.since_checkpoint += batch.items.len();
        let mut index = self.core.index.write().unwrap_or_else(PoisonError::into_inner);
        let mut before = Vec::new();
        for item in &batch.items {
            before.extend(match item.effect() {
                Effect::Show(entry) => {
                    entry.segment.gain(entry.span());
                    index.insert(entry.meta.key, entry)
                }
                Effect::Hide(key) => index.remove(&key),
                Effect::None => None,
            });
        }
        drop(index);
        let era = self.core.readers.end_era();
        for entry in before {
            entry.segment.lose(entry.span());
            self.reclaimer.add(&entry, era);
            self.compactor.note(entry.span());
        }
        for item in batch.items {
            self.settle(item, era);
        }
        for mut waiter in batch.waiters {
            let answer = std::mem::take(&mut waiter.answer);
            waiter.answer(Ok(answer));
        }
    }

    /// What is left to do for an item that is seen.
    fn settle(&mut self, item: Item, era: u64) {
        if let Effect::Show(entry) = item.effect() {
            entry.unfilled(era).into_iter().for_each(|range| self.reclaimer.condemn(range));
        }
        let segment = item.segment.expect("what was written is in a segment");
        match item.act {
            Act::Put { meta, .. } => self.compactor.note(meta.length),
            Act::Commit(filled) => {
                self.compactor.note(filled.meta.length);
                filled.reservation.settle();
            }
            Act::Bury(meta) => self.reclaimer.mark(meta.key, item.sequence, &segment),
            Act::Keep { key, sequence } => self.reclaimer.mark_again(key, sequence, &segment),
            Act::Move { entry, .. } => {
                self.measures.moved.increment(entry.span());
                self.core.figures().moved_bytes += entry.span();
            }
        }
    }

    fn checkpoint_if_due(&mut self) {
        let shards = self.core.index.read().unwrap_or_else(PoisonError::into_inner).len();
        let has_many = self.since_checkpoint >= CHECKPOINT_RECORDS.max(shards / 4);
        if !has_many && self.unshown_bytes < CHECKPOINT_BYTES {
            return;
        }
        let image = checkpoint::capture(&self.core, &self.reclaimer.graves);
        let core = self.core.clone();
        let chore = Chore::Other(Box::new(move || {
            if let Err(error) = checkpoint::store(&core, image, false) {
                tracing::warn!(%error, "a checkpoint could not be written: recovery will take longer");
            }
        }));
        if self.core.chores.try_send(chore).is_ok() {
            self.since_checkpoint = 0;
            self.unshown_bytes = 0;
        }
    }

    /// Has the helper give back what nobody needs any more.
    fn reclaim(&mut self) {
        self.reclaimer.step(&self.core, self.small.active());
        let graves = &self.reclaimer.graves;
        let mut figures = self.core.figures();
        figures.dead_records = graves.copies().len() as u64;
        figures.tombstones = graves.needed();
        figures.waiting_bytes = self.reclaimer.waiting_bytes();
    }

    /// Waits until the helper has done all that it was given.
    async fn await_helper(&mut self) {
        let (done, all) = oneshot::channel();
        let last = Chore::Other(Box::new(move || done.send(()).unwrap_or_default()));
        if self.core.chores.send(last).await.is_ok() {
            // an error is a helper that has died: it does nothing more either
            all.await.unwrap_or_default();
        }
        self.reclaimer.take_results(&self.core);
    }

    /// Leaves the disk so that the next open reads the checkpoint only.
    async fn close(mut self, done: oneshot::Sender<()>) {
        self.queue.close();
        let settled = self.small.await_prefill(&self.core).await;
        self.await_helper().await;
        // a disk that has failed is not clean: the next open shall look at everything
        if settled.is_ok() && self.core.is_writable() {
            let image = checkpoint::capture(&self.core, &self.reclaimer.graves);
            if let Err(error) = checkpoint::store(&self.core, image, true) {
                tracing::warn!(%error, "the disk was not closed cleanly: the next start recovers it");
            }
        }
        self.core.save_scrub();
        self.core.release();
        if done.send(()).is_err() {
            tracing::debug!("nobody waits for the disk to close any more");
        }
    }
}

impl Batch {
    /// Gives these their sequences.
    fn add(&mut self, acts: Vec<Act>, core: &Core) {
        self.items.extend(acts.into_iter().map(|act| {
            let sequence = core.next_number();
            Item { act, sequence, offset: 0, segment: None }
        }));
    }

    /// None of it is known to be durable.
    fn give_up(self, error: &StoreError) {
        for waiter in self.waiters {
            waiter.answer(Err(error.clone()));
        }
    }
}

impl Waiter {
    fn answer(self, answer: Answer) {
        drop(self.permit);
        // the caller may have gone: the work is done all the same
        drop(self.reply.send(answer));
    }
}

impl Item {
    fn effect(&self) -> Effect {
        let (meta, crc, reserved) = match &self.act {
            Act::Put { meta, crc, .. } => (*meta, *crc, meta.length),
            Act::Move { entry, .. } => (entry.meta, entry.crc, entry.reserved),
            Act::Commit(filled) => (filled.meta, filled.crc, filled.reservation.header.meta.length),
            Act::Bury(meta) => return Effect::Hide(meta.key),
            Act::Keep { .. } => return Effect::None,
        };
        let segment = self.segment.clone().expect("what was written is in a segment");
        let (offset, sequence) = (self.offset, self.sequence);
        Effect::Show(Entry { meta, segment, offset, reserved, sequence, crc })
    }
}
