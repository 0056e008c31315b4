//! The committer of a disk: drains its queue, writes all of it, syncs each touched segment once, then answers and
//! publishes. It alone publishes, so what it finds in the index while it judges is the truth.
//!
//! There is no timer: while one batch syncs, the next one gathers, so batches grow with load.

use crate::checkpoint;
use crate::format::{
    HEADER_BYTES, Kind, PAGE, RecordHeader, Trailer, round_up, size, small_span, trailer_offset,
};
use crate::index::Entry;
use crate::large::Reservation;
use crate::segment::Segment;
use crate::small::{Chore, SmallWriter};
use crate::store::Core;
use crate::{ShardKey, ShardMeta, StoreError};
use bytes::Bytes;
use metrics::{Counter, Histogram};
use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// The most records of a batch, and of the queue.
pub(crate) const BATCH_RECORDS_MAX: usize = 256;
/// The most payload of a batch, and of the queue.
pub(crate) const BATCH_BYTES_MAX: u64 = 4 << 20;
/// A checkpoint is taken after so many records, or a quarter of the index: recovery reads no more than these.
const CHECKPOINT_RECORDS: usize = 64 * 1024;
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
    /// A tombstone.
    Delete(ShardKey),
}

/// Work, and who waits for it. The answer says whether anything changed.
pub(crate) struct Job {
    pub(crate) work: Work,
    pub(crate) reply: oneshot::Sender<Result<bool, StoreError>>,
    /// Its share of the queue's bytes.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

/// What comes through the queue.
pub(crate) enum Message {
    Job(Job),
    /// Write a checkpoint, mark the disk clean, end.
    Close(oneshot::Sender<()>),
}

/// A job that was found to change something, and its place in the order.
struct Item {
    job: Job,
    sequence: u64,
    /// Of its record header.
    offset: u64,
    segment: Option<Arc<Segment>>,
}

struct Measures {
    syncs: Counter,
    sync_seconds: Histogram,
    batch_records: Histogram,
    bytes: Counter,
}

pub(crate) struct Committer {
    core: Arc<Core>,
    queue: mpsc::Receiver<Message>,
    small: SmallWriter,
    chores: SyncSender<Chore>,
    /// What came after a batch was full.
    held: Option<Job>,
    since_checkpoint: usize,
    measures: Measures,
}

impl Work {
    fn key(&self) -> ShardKey {
        match self {
            Self::Put { meta, .. } => meta.key,
            Self::Commit(filled) => filled.meta.key,
            Self::Delete(key) => *key,
        }
    }

    /// The room it takes in a small segment.
    fn small_bytes(&self) -> u64 {
        match self {
            Self::Put { meta, .. } => small_span(meta.length),
            Self::Delete(_) => small_span(0),
            Self::Commit(_) => 0,
        }
    }
}

impl Committer {
    pub(crate) fn new(
        core: Arc<Core>,
        queue: mpsc::Receiver<Message>,
        active: Option<Arc<Segment>>,
        chores: SyncSender<Chore>,
    ) -> Self {
        let disk = core.disk.to_string();
        let measures = Measures {
            syncs: metrics::counter!("ashlar_store_syncs_total", "disk" => disk.clone()),
            sync_seconds: metrics::histogram!("ashlar_store_sync_seconds", "disk" => disk.clone()),
            batch_records: metrics::histogram!("ashlar_store_batch_records", "disk" => disk.clone()),
            bytes: metrics::counter!("ashlar_store_written_bytes_total", "disk" => disk),
        };
        let small = SmallWriter::new(active, chores.clone());
        Self { core, queue, small, chores, held: None, since_checkpoint: 0, measures }
    }

    /// Runs until the store is closed, or forgotten.
    pub(crate) fn run(mut self) {
        loop {
            let first =
                match self.held.take().map(Message::Job).or_else(|| self.queue.blocking_recv()) {
                    Some(Message::Job(job)) => job,
                    Some(Message::Close(done)) => return self.close(done),
                    None => return,
                };
            let (batch, close) = self.gather(first);
            self.commit(batch);
            if let Some(done) = close {
                self.drain();
                return self.close(done);
            }
        }
    }

    /// One batch: as much as has come, up to its limits, and no key twice.
    fn gather(&mut self, first: Job) -> (Vec<Job>, Option<oneshot::Sender<()>>) {
        let room = BATCH_BYTES_MAX.min(self.core.config.small_segment_bytes / 2);
        let mut bytes = first.work.small_bytes();
        let mut keys = BTreeSet::from([first.work.key()]);
        let mut batch = vec![first];
        while batch.len() < BATCH_RECORDS_MAX {
            match self.queue.try_recv() {
                Ok(Message::Job(job)) => {
                    bytes += job.work.small_bytes();
                    if bytes > room || !keys.insert(job.work.key()) {
                        self.held = Some(job);
                        break;
                    }
                    batch.push(job);
                }
                Ok(Message::Close(done)) => return (batch, Some(done)),
                Err(_) => break,
            }
        }
        (batch, None)
    }

    /// What is left in the queue when it closes.
    fn drain(&mut self) {
        self.queue.close();
        while let Some(job) = self.held.take().or_else(|| match self.queue.try_recv() {
            Ok(Message::Job(job)) => Some(job),
            Ok(Message::Close(_)) | Err(_) => None,
        }) {
            let (batch, _) = self.gather(job);
            self.commit(batch);
        }
    }

    fn commit(&mut self, batch: Vec<Job>) {
        let mut items = self.judge(batch);
        if items.is_empty() {
            return;
        }
        let written = self.small.poll_prefill(&self.core).and_then(|()| self.write(&mut items));
        match written {
            Ok(()) => self.publish(items),
            Err(error) => {
                for Item { job, .. } in items {
                    if let Work::Commit(filled) = &job.work {
                        filled.reservation.settle();
                    }
                    answer(job, Err(error.clone()));
                }
            }
        }
        self.small.prefill_ahead(&self.core);
        self.checkpoint_if_due();
    }

    /// Answers what changes nothing, and gives the others their sequences.
    fn judge(&self, batch: Vec<Job>) -> Vec<Item> {
        let is_full = self.is_full(&batch);
        let mut items = Vec::with_capacity(batch.len());
        for job in batch {
            match self.judge_one(&job.work, is_full) {
                None => {
                    let sequence = self.core.next_number();
                    items.push(Item { job, sequence, offset: 0, segment: None });
                }
                Some(verdict) => {
                    if let Work::Commit(filled) = &job.work {
                        filled.reservation.settle();
                    }
                    answer(job, verdict);
                }
            }
        }
        items
    }

    /// `None`: to be done.
    fn judge_one(&self, work: &Work, is_full: bool) -> Option<Result<bool, StoreError>> {
        if !self.core.is_writable() {
            return Some(Err(StoreError::NotWritable));
        }
        let index = self.core.index.read().unwrap_or_else(PoisonError::into_inner);
        let known = index.get(&work.key());
        let (length, crc, replaces) = match work {
            Work::Delete(_) => return if known.is_some() { None } else { Some(Ok(false)) },
            Work::Put { meta, crc, replaces, .. } => (meta.length, *crc, *replaces),
            Work::Commit(filled) => (filled.meta.length, filled.crc, filled.replaces),
        };
        match known {
            Some(entry) if replaces != Some(entry.sequence) => {
                let is_same = entry.meta.length == length && entry.crc == crc;
                Some(if is_same { Ok(false) } else { Err(StoreError::Conflict) })
            }
            // room for large shards was taken when they began
            Some(_) | None if is_full && matches!(work, Work::Put { .. }) => {
                Some(Err(StoreError::Full))
            }
            Some(_) | None => None,
        }
    }

    /// Whether small shards would eat into what is kept for tombstones and compaction.
    fn is_full(&self, batch: &[Job]) -> bool {
        let puts = batch.iter().filter(|job| matches!(job.work, Work::Put { .. }));
        let wanted: u64 = puts.map(|job| job.work.small_bytes()).sum();
        let free = self.core.disk_usage().map_or(u64::MAX, |usage| usage.free_bytes);
        wanted > 0 && free < self.core.config.reserve_bytes.saturating_add(wanted)
    }

    fn write(&mut self, items: &mut [Item]) -> Result<(), StoreError> {
        let mut touched = BTreeMap::new();
        if let Some(segment) = self.write_small(items)? {
            touched.insert(segment.header.generation, segment);
        }
        for item in items.iter_mut() {
            if let Work::Commit(filled) = &item.job.work {
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
        let last = items.last().expect("a batch has items").sequence;
        self.core.set_acked(last);
        self.measures
            .batch_records
            .record(f64::from(u32::try_from(items.len()).unwrap_or(u32::MAX)));
        Ok(())
    }

    /// Writes the records of the small class with one call.
    fn write_small(&mut self, items: &mut [Item]) -> Result<Option<Arc<Segment>>, StoreError> {
        let used: u64 = items.iter().map(|item| item.job.work.small_bytes()).sum();
        if used == 0 {
            return Ok(None);
        }
        let bytes = round_up(used, PAGE);
        let (segment, start) = self.small.place(&self.core, bytes)?;
        let mut at = start;
        let mut headers = Vec::with_capacity(items.len());
        for item in items.iter_mut().filter(|item| item.job.work.small_bytes() > 0) {
            headers.push(self.small_header(item, &segment, at).encode(segment.seed));
            item.offset = at;
            item.segment = Some(segment.clone());
            at += item.job.work.small_bytes();
        }
        let mut slices = Vec::with_capacity(3 * headers.len() + 1);
        let small = items.iter().filter(|item| item.job.work.small_bytes() > 0);
        for (item, header) in small.zip(&headers) {
            slices.push(IoSlice::new(header));
            let length = match &item.job.work {
                Work::Put { bytes, .. } => {
                    slices.push(IoSlice::new(bytes));
                    bytes.len()
                }
                Work::Delete(_) | Work::Commit(_) => 0,
            };
            let pad = size(item.job.work.small_bytes()) - HEADER_BYTES - length;
            slices.push(IoSlice::new(&ZEROES[..pad]));
        }
        slices.push(IoSlice::new(&ZEROES[..size(bytes - used)]));
        slices.retain(|slice| !slice.is_empty());
        self.small.write(&self.core, &segment, &slices, start, start + bytes)?;
        self.measures.bytes.increment(bytes);
        Ok(Some(segment))
    }

    fn small_header(&self, item: &Item, segment: &Segment, offset: u64) -> RecordHeader {
        let (kind, meta, crc) = match &item.job.work {
            Work::Put { meta, crc, .. } => (Kind::Shard, *meta, *crc),
            Work::Commit(filled) => (Kind::Shard, filled.meta, filled.crc),
            Work::Delete(key) => {
                let index = self.core.index.read().unwrap_or_else(PoisonError::into_inner);
                let entry =
                    index.get(key).expect("only the committer removes, and it found this one");
                (Kind::Tombstone, ShardMeta { length: 0, ..entry.meta }, 0)
            }
        };
        RecordHeader {
            kind,
            meta,
            generation: segment.header.generation,
            sequence: item.sequence,
            offset,
            span: item.job.work.small_bytes(),
            acked: self.core.acked(),
            crc,
        }
    }

    fn write_trailer(&self, filled: &Filled, sequence: u64) -> Result<(), StoreError> {
        let Reservation { segment, header } = filled.reservation.as_ref();
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
            self.core.poison("write", segment, &error);
            StoreError::io("write", &segment.path, &error)
        })
    }

    fn sync(&self, segment: &Segment) -> Result<(), StoreError> {
        let clock = &self.core.host.clock;
        let began = clock.now();
        let synced = segment.file.sync_data();
        self.measures.sync_seconds.record(clock.now() - began);
        self.measures.syncs.increment(1);
        synced.map_err(|error| {
            self.core.poison("sync", segment, &error);
            StoreError::io("sync", &segment.path, &error)
        })
    }

    /// Everything in `items` is durable: from now on it is seen.
    fn publish(&mut self, items: Vec<Item>) {
        self.since_checkpoint += items.len();
        let mut index = self.core.index.write().unwrap_or_else(PoisonError::into_inner);
        for item in &items {
            match entry_of(item) {
                Some(entry) => drop(index.insert(entry.meta.key, entry)),
                None => drop(index.remove(&item.job.work.key())),
            }
        }
        drop(index);
        for Item { job, .. } in items {
            if let Work::Commit(filled) = &job.work {
                filled.reservation.settle();
            }
            answer(job, Ok(true));
        }
    }

    fn checkpoint_if_due(&mut self) {
        if self.since_checkpoint < CHECKPOINT_RECORDS {
            return;
        }
        let shards = self.core.index.read().unwrap_or_else(PoisonError::into_inner).len();
        if self.since_checkpoint < shards / 4 {
            return;
        }
        let image = checkpoint::capture(&self.core);
        let core = self.core.clone();
        let chore = Chore::Other(Box::new(move || {
            if let Err(error) = checkpoint::store(&core, image, false) {
                tracing::warn!(%error, "a checkpoint could not be written: recovery will take longer");
            }
        }));
        if self.chores.try_send(chore).is_ok() {
            self.since_checkpoint = 0;
        }
    }

    /// Leaves the disk so that the next open reads the checkpoint only.
    fn close(mut self, done: oneshot::Sender<()>) {
        self.queue.close();
        let settled = self.small.await_prefill(&self.core);
        // a disk that has failed is not clean: the next open shall look at everything
        if settled.is_ok() && self.core.is_writable() {
            let image = checkpoint::capture(&self.core);
            if let Err(error) = checkpoint::store(&self.core, image, true) {
                tracing::warn!(%error, "the disk was not closed cleanly: the next start recovers it");
            }
        }
        self.core.release();
        if done.send(()).is_err() {
            tracing::debug!("nobody waits for the disk to close any more");
        }
    }
}

fn answer(job: Job, verdict: Result<bool, StoreError>) {
    drop(job.permit);
    // the caller may have gone: the work is done all the same
    drop(job.reply.send(verdict));
}

/// The index entry that an item makes; `None`: it takes one away.
fn entry_of(item: &Item) -> Option<Entry> {
    let (meta, crc, reserved) = match &item.job.work {
        Work::Put { meta, crc, .. } => (*meta, *crc, meta.length),
        Work::Commit(filled) => (filled.meta, filled.crc, filled.reservation.header.meta.length),
        Work::Delete(_) => return None,
    };
    let segment = item.segment.clone().expect("what was written is in a segment");
    Some(Entry { meta, segment, offset: item.offset, reserved, sequence: item.sequence, crc })
}
