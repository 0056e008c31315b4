//! One extent on its way: stripes are encoded as they fill and stream to all homes at once.
//!
//! All k+m acknowledgements are awaited. A slot is given up when its home is known down, refuses, or makes no progress
//! while enough others do; never below `acks_min` (D1). Each slot has a queue of two cells, so the slowest live home
//! sets the pace and memory stays bounded.

use crate::inner::Inner;
use crate::pool::PooledBuffer;
use crate::shard::{CellBody, Home, Progress, ShardError, whole};
use ashlar_erasure::{Codec, Geometry};
use ashlar_types::{BucketId, Extent, ExtentId, Ownership, PlacementGroup, Slot, SlotSet};
use ashlar_wire::shard::{ShardFacts, ShardPath};
use bytes::{Buf, Bytes};
use crc_fast::{CrcAlgorithm, Digest};
use futures::future::{AbortHandle, BoxFuture};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use http_body_util::BodyExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// Cells that wait for one connection. Two keep it busy while the next stripe is encoded.
const QUEUED_CELLS: usize = 2;
/// How often stalled slots are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Too few homes have taken the extent.
#[derive(Debug, thiserror::Error)]
#[error("{acked} of {needed} shards of extent {id} were stored: {why}")]
pub(crate) struct ExtentFailed {
    pub(crate) id: ExtentId,
    acked: usize,
    needed: usize,
    why: String,
}

/// An extent that is being written.
pub(crate) struct ExtentWriter {
    inner: Arc<Inner>,
    group: PlacementGroup,
    geometry: Geometry,
    codec: Codec,
    id: ExtentId,
    bucket: BucketId,
    slots: Vec<SlotWriter>,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    room: Arc<Notify>,
    crc64: Digest,
    stripe: u64,
    buffer: Option<PooledBuffer>,
    filled: usize,
    last_error: Option<String>,
}

/// Which slot, and what its home said.
type Answer = (usize, Result<u32, ShardError>);

struct SlotWriter {
    state: SlotState,
    cells: Option<mpsc::Sender<Bytes>>,
    crc: u32,
    progress: Arc<Progress>,
    abort: Option<AbortHandle>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SlotState {
    /// Its request is under way, or will be.
    Open,
    /// On stable storage, and what arrived is what was sent.
    Acked,
    /// Given up.
    Missing,
}

impl ExtentWriter {
    /// Opens a stream to each live home of `group`.
    pub(crate) fn new(
        inner: Arc<Inner>,
        group: PlacementGroup,
        id: ExtentId,
        bucket: BucketId,
        length: u64,
    ) -> Self {
        let geometry = Geometry::for_extent(group.profile, length);
        let mut writer = Self {
            codec: Codec::new(group.profile),
            geometry,
            id,
            bucket,
            slots: Vec::with_capacity(usize::from(group.profile.width())),
            answers: FuturesUnordered::new(),
            room: Arc::default(),
            crc64: Digest::new(CrcAlgorithm::Crc64Nvme),
            stripe: 0,
            buffer: None,
            filled: 0,
            last_error: None,
            group,
            inner,
        };
        writer.open_slots();
        writer
    }

    fn open_slots(&mut self) {
        let map = self.inner.map.load_full();
        for slot in self.group.profile.slots() {
            let index = usize::from(slot.0);
            // new shards of a slot that moves go to where it moves
            let target =
                self.group.moving.filter(|(moving, _)| *moving == slot).map(|(_, disk)| disk);
            let disk = target.or_else(|| self.group.homes.get(index).copied());
            let writable = disk.filter(|&disk| self.inner.health.is_writable(&map, disk));
            let home = writable.and_then(|disk| Home::of(&map, disk));
            let progress = Progress::new(self.inner.host.clock.clone(), self.room.clone());
            let mut writer = SlotWriter {
                state: SlotState::Missing,
                cells: None,
                crc: 0,
                progress,
                abort: None,
            };
            if let Some(home) = home {
                writer.state = SlotState::Open;
                // an extent of one stripe is sent whole, with its checksum in the head, once it is encoded
                if self.geometry.stripes() > 1 {
                    self.open_stream(slot, home, &mut writer);
                }
            }
            self.slots.push(writer);
        }
    }

    fn facts(&self) -> ShardFacts {
        ShardFacts {
            pg: self.group.id,
            pg_epoch: self.group.epoch,
            profile: self.group.profile,
            bucket: self.bucket,
            length: self.geometry.shard_bytes(),
        }
    }

    fn open_stream(&self, slot: Slot, home: Home, writer: &mut SlotWriter) {
        let (cells, queue) = mpsc::channel(QUEUED_CELLS);
        let body = CellBody {
            cells: queue,
            left: self.geometry.shard_bytes(),
            progress: writer.progress.clone(),
        };
        let (inner, id, facts) = (self.inner.clone(), self.id, self.facts());
        let progress = writer.progress.clone();
        let sending = async move {
            let path = ShardPath { disk: home.disk, extent: id, slot };
            let stored = inner.put_shard(&home, path, facts, None, body.boxed()).await;
            // what the disk took after the last byte had left: that is what the next patience is measured by
            if stored.is_ok() {
                inner.health.write_took(home.disk, progress.idle());
            }
            stored
        };
        writer.abort = Some(self.await_answer(slot, sending));
        writer.cells = Some(cells);
    }

    fn await_answer(
        &self,
        slot: Slot,
        sending: impl Future<Output = Result<u32, ShardError>> + Send + 'static,
    ) -> AbortHandle {
        let (sending, abort) = futures::future::abortable(sending);
        let index = usize::from(slot.0);
        let answer = sending.map(move |end| {
            let stalled =
                || Err(ShardError::Broken("it made no progress while others did".to_owned()));
            (index, end.unwrap_or_else(|_| stalled()))
        });
        self.answers.push(answer.boxed());
        abort
    }

    /// The bytes that are still to come.
    pub(crate) fn left(&self) -> u64 {
        let done = self.stripe * self.geometry.stripe_bytes() + self.filled as u64;
        self.geometry.length().saturating_sub(done)
    }

    /// Takes content: no more than [`ExtentWriter::left`]. It waits while the homes are busy.
    pub(crate) async fn write(&mut self, mut bytes: Bytes) -> Result<(), ExtentFailed> {
        while bytes.has_remaining() {
            let content = in_memory(self.geometry.content_len(self.stripe));
            let cell = in_memory(self.geometry.cell_len(self.stripe));
            let cells = match self.geometry.profile().data {
                // copies share one buffer
                1 => 1,
                _ => usize::from(self.geometry.profile().width()),
            };
            let buffer = self.buffer.get_or_insert_with(|| self.inner.pool.take(cell * cells));
            let count = bytes.len().min(content - self.filled);
            bytes.copy_to_slice(&mut buffer[self.filled..self.filled + count]);
            self.filled += count;
            if self.filled == content {
                self.flush_stripe(content, cell).await?;
            }
        }
        Ok(())
    }

    async fn flush_stripe(&mut self, content: usize, cell: usize) -> Result<(), ExtentFailed> {
        let Some(mut buffer) = self.buffer.take() else {
            return Ok(());
        };
        self.crc64.update(&buffer[..content]);
        let profile = self.geometry.profile();
        let data_bytes = cell * usize::from(profile.data);
        buffer[content..data_bytes].fill(0);
        if profile.data > 1 {
            let (data, parity) = buffer.split_at_mut(data_bytes);
            let data: Vec<&[u8]> = data.chunks_exact(cell).collect();
            let mut parity: Vec<&mut [u8]> = parity.chunks_exact_mut(cell).collect();
            let encoded = self.codec.encode(&data, &mut parity);
            encoded.map_err(|error| self.failed(error.to_string()))?;
        }
        let bytes = buffer.freeze();
        let cells: Vec<Bytes> = profile
            .slots()
            .map(|slot| match profile.data {
                1 => bytes.clone(),
                _ => bytes.slice(usize::from(slot.0) * cell..(usize::from(slot.0) + 1) * cell),
            })
            .collect();
        self.stripe += 1;
        self.filled = 0;
        if self.geometry.stripes() == 1 {
            self.send_whole(&cells);
            return self.take_answers();
        }
        self.send_cells(cells).await
    }

    /// Sends the only cells of a short extent.
    fn send_whole(&mut self, cells: &[Bytes]) {
        let map = self.inner.map.load_full();
        let facts = self.facts();
        for (index, cell) in cells.iter().enumerate() {
            if self.slots[index].state != SlotState::Open {
                continue;
            }
            let slot =
                Slot(u8::try_from(index).expect("a slot is less than the width, which is a u8"));
            let target =
                self.group.moving.filter(|(moving, _)| *moving == slot).map(|(_, disk)| disk);
            let disk = target.unwrap_or(self.group.homes[index]);
            let Some(home) = Home::of(&map, disk) else {
                self.slots[index].state = SlotState::Missing;
                continue;
            };
            let crc = crc32c::crc32c(cell);
            let path = ShardPath { disk, extent: self.id, slot };
            let (inner, cell) = (self.inner.clone(), cell.clone());
            let sending = async move {
                let sent = inner.host.clock.now();
                let put = |cell| inner.put_shard(&home, path, facts, Some(crc), whole(cell));
                let stored = match put(cell.clone()).await {
                    // a pooled connection may have been closed just now; the same shard again is the same shard
                    Err(ShardError::Broken(_)) => put(cell).await,
                    other => other,
                };
                if stored.is_ok() {
                    inner.health.write_took(home.disk, inner.host.clock.now() - sent);
                }
                stored
            };
            let abort = self.await_answer(slot, sending);
            self.slots[index].crc = crc;
            self.slots[index].abort = Some(abort);
            self.slots[index].progress.moved();
        }
    }

    /// Queues one cell for each open slot, and waits until all have room.
    async fn send_cells(&mut self, cells: Vec<Bytes>) -> Result<(), ExtentFailed> {
        let mut waiting: Vec<(usize, Bytes)> = Vec::with_capacity(cells.len());
        for (index, cell) in cells.into_iter().enumerate() {
            let slot = &mut self.slots[index];
            if slot.state == SlotState::Open {
                slot.crc = crc32c::crc32c_append(slot.crc, &cell);
                waiting.push((index, cell));
            }
        }
        loop {
            self.take_answers()?;
            waiting.retain(|(index, cell)| {
                let slot = &self.slots[*index];
                let queue = slot.cells.as_ref().filter(|_| slot.state == SlotState::Open);
                queue.is_some_and(|queue| match queue.try_send(cell.clone()) {
                    Err(mpsc::error::TrySendError::Full(_)) => true,
                    // closed: its answer says why
                    Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => false,
                })
            });
            if waiting.is_empty() {
                return Ok(());
            }
            self.wait_a_moment().await;
            let stalled: Vec<usize> = waiting.iter().map(|(index, _)| *index).collect();
            self.give_up_stalled(&stalled)?;
        }
    }

    /// Waits until a slot has room, an answer came, or it is time to look for stalled ones.
    async fn wait_a_moment(&mut self) {
        let room = self.room.clone();
        let tick = self.inner.host.clock.sleep(LOOK_EVERY);
        let answered = tokio::select! {
            biased;
            Some(answer) = self.answers.next() => Some(answer),
            () = room.notified() => None,
            () = tick => None,
        };
        if let Some(answer) = answered {
            self.take_answer(answer);
        }
    }

    /// Takes the answers that are there, and so also starts requests that are new.
    fn take_answers(&mut self) -> Result<(), ExtentFailed> {
        while let Some(Some(answer)) = self.answers.next().now_or_never() {
            self.take_answer(answer);
        }
        let hopeful = self.slots.iter().filter(|slot| slot.state != SlotState::Missing).count();
        if hopeful < self.needed() {
            let why = self.last_error.clone().unwrap_or_else(|| "too few homes live".to_owned());
            return Err(self.failed(why));
        }
        Ok(())
    }

    fn take_answer(&mut self, (index, answer): Answer) {
        let slot = &mut self.slots[index];
        let acked = match answer {
            Ok(crc) if crc == slot.crc && self.stripe == self.geometry.stripes() => true,
            Ok(_) => {
                self.last_error = Some("a home received other bytes than were sent".to_owned());
                false
            }
            Err(error) => {
                tracing::debug!(extent = %self.id, slot = index, %error, "a shard was not stored");
                self.last_error = Some(error.to_string());
                false
            }
        };
        slot.cells = None;
        slot.state = if acked { SlotState::Acked } else { SlotState::Missing };
    }

    fn needed(&self) -> usize {
        usize::from(self.group.profile.acks_min())
    }

    fn failed(&self, why: String) -> ExtentFailed {
        let acked = self.slots.iter().filter(|slot| slot.state == SlotState::Acked).count();
        ExtentFailed { id: self.id, acked, needed: self.needed(), why }
    }

    /// Gives up those of `suspects` that have not moved for longer than patience, while enough others have.
    fn give_up_stalled(&mut self, suspects: &[usize]) -> Result<(), ExtentFailed> {
        let patience = self.patience();
        let (mut moving, mut stalled) = (0, Vec::new());
        for (index, slot) in self.slots.iter().enumerate() {
            let idle = slot.state == SlotState::Open && suspects.contains(&index);
            match slot.state {
                SlotState::Open if idle && slot.progress.idle() > patience => stalled.push(index),
                SlotState::Open | SlotState::Acked => moving += 1,
                SlotState::Missing => {}
            }
        }
        if moving >= self.needed() {
            for index in stalled {
                self.give_up(index);
            }
            return Ok(());
        }
        let hopeless =
            |&index: &usize| self.slots[index].progress.idle() > self.inner.config.patience;
        if !stalled.is_empty() && stalled.iter().all(hopeless) {
            return Err(self.failed("the homes make no progress".to_owned()));
        }
        Ok(())
    }

    fn give_up(&mut self, index: usize) {
        metrics::counter!("ashlar_client_stalled_slots_total").increment(1);
        tracing::warn!(extent = %self.id, slot = index, "a stalled home was given up");
        let slot = &mut self.slots[index];
        if let Some(abort) = slot.abort.take() {
            abort.abort();
        }
        slot.cells = None;
        slot.state = SlotState::Missing;
    }

    /// Four times what the slowest of the homes usually takes: a disk that is busy for all is no stall.
    fn patience(&self) -> Duration {
        let slowest =
            self.group.homes.iter().filter_map(|&disk| self.inner.health.write_p99(disk)).max();
        self.inner.config.stall_after_min.max(slowest.unwrap_or_default() * 4)
    }

    /// Waits for all acknowledgements, and says what the record is to name.
    pub(crate) async fn finish(mut self) -> Result<Extent, ExtentFailed> {
        debug_assert_eq!(self.left(), 0, "an extent is finished when all of it was written");
        for slot in &mut self.slots {
            slot.cells = None;
        }
        loop {
            self.take_answers()?;
            let open: Vec<usize> = (0..self.slots.len())
                .filter(|&index| self.slots[index].state == SlotState::Open)
                .collect();
            if open.is_empty() {
                return Ok(self.sealed());
            }
            self.wait_a_moment().await;
            self.give_up_stalled(&open)?;
        }
    }

    fn sealed(&self) -> Extent {
        let is_missing = |slot: &Slot| self.slots[usize::from(slot.0)].state != SlotState::Acked;
        let missing: SlotSet = self.group.profile.slots().filter(is_missing).collect();
        if !missing.is_empty() {
            metrics::counter!("ashlar_client_short_extents_total").increment(1);
        }
        self.named(missing)
    }

    fn named(&self, missing: SlotSet) -> Extent {
        Extent {
            id: self.id,
            pg: self.group.id,
            profile: self.group.profile,
            cell_bytes: self.geometry.cell_bytes(),
            length: self.geometry.length(),
            missing,
            ownership: Ownership::Owned,
            crc64: self.crc64.finalize(),
        }
    }

    /// How the extent would be named, for abandoning it: nobody knows what of it was stored.
    pub(crate) fn as_abandoned(&self) -> Extent {
        self.named(SlotSet::EMPTY)
    }
}

fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a stripe fits into memory")
}
