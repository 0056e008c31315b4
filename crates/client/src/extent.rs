//! One extent on its way: stripes are encoded as they fill and stream to all homes at once.
//!
//! All k+m acknowledgements are awaited. A slot is given up when its home is known down, refuses, or makes no progress
//! while enough others do. Each slot has a queue of two cells, so the slowest live home sets the pace and memory stays
//! bounded.
//!
//! Where fewer than `acks_min` slots are left, the extent has failed (D1). That is noticed behind a stripe, when all
//! slots that are left have it: there the extent can be sealed, shorter than it was announced.

use crate::inner::Inner;
use crate::pool::PooledBuffer;
use crate::shard::{CellBody, Home, Progress, ShardEnd, ShardError, whole};
use crate::stripe;
use ashlar_erasure::{Codec, Geometry};
use ashlar_types::{
    BucketId, DiskId, Extent, ExtentId, Ownership, PgId, PlacementGroup, Slot, SlotSet,
};
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
    id: ExtentId,
    pub(crate) group: PgId,
    acked: usize,
    needed: usize,
    why: String,
}

/// An extent that has ended behind some stripe.
pub(crate) enum Sealed {
    /// Enough homes have it: it may be named.
    Safe(Extent),
    /// It can be read, but too few homes have it: its content must be written elsewhere, and it is named by nobody.
    Short(Extent, ExtentFailed),
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
    disk: Option<DiskId>,
    cells: Option<mpsc::Sender<Bytes>>,
    /// Of what was sent so far.
    crc: u32,
    end: ShardEnd,
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

impl SlotWriter {
    /// All has been sent: what was queued is the whole shard. A slot that was given up never ends so, or its home would
    /// keep a part of the shard for the whole.
    fn end(&mut self) {
        if self.state == SlotState::Open {
            self.end.get_or_init(|| self.crc);
        }
        self.cells = None;
    }
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
            let disk = self.group.written(slot);
            let writable = disk.filter(|&disk| self.inner.health.is_writable(&map, disk));
            let home = writable.and_then(|disk| Home::of(&map, disk));
            let progress = Progress::new(self.inner.host.clock.clone(), self.room.clone());
            let mut writer = SlotWriter {
                state: SlotState::Missing,
                disk,
                cells: None,
                crc: 0,
                end: ShardEnd::default(),
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
        let body = CellBody::new(queue, writer.end.clone(), writer.progress.clone());
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

    /// The length that it was announced with.
    pub(crate) fn length(&self) -> u64 {
        self.geometry.length()
    }

    /// The bytes that are still to come.
    pub(crate) fn left(&self) -> u64 {
        let done = self.stripe * self.geometry.stripe_bytes() + self.filled as u64;
        self.geometry.length().saturating_sub(done)
    }

    /// Takes content, as much of `bytes` as it has room for. It waits while the homes are busy. After an error it has
    /// taken whole stripes only, and what is left of `bytes` is not its.
    pub(crate) async fn write(&mut self, bytes: &mut Bytes) -> Result<(), ExtentFailed> {
        while bytes.has_remaining() && self.left() > 0 {
            let content = in_memory(self.geometry.content_len(self.stripe));
            let cell = in_memory(self.geometry.cell_len(self.stripe));
            let length = stripe::buffer_bytes(self.geometry.profile(), cell);
            let buffer = self.buffer.get_or_insert_with(|| self.inner.pool.take(length));
            let count = bytes.len().min(content - self.filled);
            bytes.copy_to_slice(&mut buffer[self.filled..self.filled + count]);
            self.filled += count;
            if self.filled == content {
                self.flush_stripe(content, cell).await;
                self.check_left(self.needed())?;
            }
        }
        Ok(())
    }

    async fn flush_stripe(&mut self, content: usize, cell: usize) {
        let Some(buffer) = self.buffer.take() else {
            return;
        };
        self.crc64.update(&buffer[..content]);
        let cells = stripe::cells(&self.codec, buffer, content, cell);
        self.stripe += 1;
        self.filled = 0;
        if self.geometry.stripes() == 1 {
            self.send_whole(&cells);
            self.take_answers();
        } else {
            self.send_cells(cells).await;
        }
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
            let Some(home) = self.slots[index].disk.and_then(|disk| Home::of(&map, disk)) else {
                self.slots[index].state = SlotState::Missing;
                continue;
            };
            let crc = crc32c::crc32c(cell);
            let path = ShardPath { disk: home.disk, extent: self.id, slot };
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
            let slot = &mut self.slots[index];
            slot.crc = crc;
            slot.end();
            slot.abort = Some(abort);
            slot.progress.moved();
        }
    }

    /// Queues one cell for each open slot, and waits until all have room.
    async fn send_cells(&mut self, cells: Vec<Bytes>) {
        let mut waiting: Vec<(usize, Bytes)> = Vec::with_capacity(cells.len());
        for (index, cell) in cells.into_iter().enumerate() {
            let slot = &mut self.slots[index];
            if slot.state == SlotState::Open {
                slot.crc = crc32c::crc32c_append(slot.crc, &cell);
                waiting.push((index, cell));
            }
        }
        loop {
            self.take_answers();
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
                return;
            }
            self.wait_a_moment().await;
            let suspects: Vec<usize> = waiting.iter().map(|(index, _)| *index).collect();
            self.give_up_stalled(&suspects);
        }
    }

    /// Waits until the connections have taken all that is queued: then the memory of one more stripe is free.
    pub(crate) async fn drained(&mut self) {
        loop {
            self.take_answers();
            let is_queued = |slot: &SlotWriter| {
                let queue = slot.cells.as_ref().filter(|_| slot.state == SlotState::Open);
                queue.is_some_and(|queue| queue.capacity() < queue.max_capacity())
            };
            let suspects: Vec<usize> =
                (0..self.slots.len()).filter(|&index| is_queued(&self.slots[index])).collect();
            if suspects.is_empty() {
                return;
            }
            self.wait_a_moment().await;
            self.give_up_stalled(&suspects);
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
    fn take_answers(&mut self) {
        while let Some(Some(answer)) = self.answers.next().now_or_never() {
            self.take_answer(answer);
        }
    }

    /// The slots that are not given up.
    fn hopeful(&self) -> usize {
        self.slots.iter().filter(|slot| slot.state != SlotState::Missing).count()
    }

    fn acked(&self) -> usize {
        self.slots.iter().filter(|slot| slot.state == SlotState::Acked).count()
    }

    fn check_left(&self, floor: usize) -> Result<(), ExtentFailed> {
        if self.hopeful() < floor { Err(self.failed()) } else { Ok(()) }
    }

    fn take_answer(&mut self, (index, answer): Answer) {
        let slot = &mut self.slots[index];
        let acked = match answer {
            Ok(crc) if slot.end.get() == Some(&crc) => true,
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

    /// So many acknowledgements make it safe (D1).
    fn needed(&self) -> usize {
        usize::from(self.group.profile.acks_min())
    }

    /// So many shards make it readable.
    fn readable(&self) -> usize {
        usize::from(self.group.profile.data)
    }

    fn failed(&self) -> ExtentFailed {
        let why = self.last_error.clone().unwrap_or_else(|| "too few homes live".to_owned());
        ExtentFailed {
            id: self.id,
            group: self.group.id,
            acked: self.acked(),
            needed: self.needed(),
            why,
        }
    }

    /// Gives up those of `suspects` that have not moved for longer than patience, while enough others have. Where too
    /// few move, it may be this node that is slow: then only those whose nodes answer no pings, or that have not moved
    /// for very long.
    fn give_up_stalled(&mut self, suspects: &[usize]) {
        let patience = self.patience();
        let idle = |index: usize| self.slots[index].progress.idle();
        let is_stalled =
            |&index: &usize| self.slots[index].state == SlotState::Open && idle(index) > patience;
        let stalled: Vec<usize> = suspects.iter().copied().filter(is_stalled).collect();
        // what can no longer be named has only to be readable
        let hopeful = self.hopeful();
        let enough = if hopeful >= self.needed() { self.needed() } else { self.readable() };
        let map = self.inner.map.load_full();
        let is_down = |index: usize| {
            let disk = self.slots[index].disk;
            disk.is_none_or(|disk| !self.inner.health.is_readable(&map, disk))
        };
        let is_hopeless = |&index: &usize| {
            hopeful - stalled.len() >= enough
                || is_down(index)
                || idle(index) > self.inner.config.patience
        };
        let hopeless: Vec<usize> = stalled.iter().copied().filter(is_hopeless).collect();
        hopeless.into_iter().for_each(|index| self.give_up(index));
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
        self.last_error.get_or_insert_with(|| "a home makes no progress".to_owned());
    }

    /// Four times what the slowest of the homes usually takes: a disk that is busy for all is no stall.
    fn patience(&self) -> Duration {
        let slowest =
            self.group.homes.iter().filter_map(|&disk| self.inner.health.write_p99(disk)).max();
        self.inner.config.stall_after_min.max(slowest.unwrap_or_default() * 4)
    }

    /// Ends all streams, and waits for all acknowledgements while `floor` of them can still be had.
    async fn await_acks(&mut self, floor: usize) -> Result<(), ExtentFailed> {
        self.slots.iter_mut().for_each(SlotWriter::end);
        loop {
            self.take_answers();
            self.check_left(floor)?;
            let open: Vec<usize> = (0..self.slots.len())
                .filter(|&index| self.slots[index].state == SlotState::Open)
                .collect();
            if open.is_empty() {
                return Ok(());
            }
            self.wait_a_moment().await;
            self.give_up_stalled(&open);
        }
    }

    /// Waits until the extent, all of which was written, is safe (D1). It fails as soon as it cannot be.
    pub(crate) async fn finish(mut self) -> Result<Extent, ExtentFailed> {
        assert_eq!(self.left(), 0, "an extent is finished when all of it was written");
        self.await_acks(self.needed()).await?;
        Ok(self.stored())
    }

    /// Ends the extent behind the last stripe that was written, and waits for what of it can be had. It fails only if
    /// that cannot be read back.
    pub(crate) async fn seal(mut self) -> Result<Sealed, ExtentFailed> {
        assert_eq!(self.filled, 0, "an extent is sealed between stripes");
        let sealed = self.geometry.ended_after(self.stripe);
        if sealed != self.geometry {
            metrics::counter!("ashlar_client_sealed_extents_total").increment(1);
        }
        self.geometry = sealed;
        self.await_acks(self.readable()).await?;
        if self.acked() < self.needed() {
            return Ok(Sealed::Short(self.named(self.unacked()), self.failed()));
        }
        Ok(Sealed::Safe(self.stored()))
    }

    fn unacked(&self) -> SlotSet {
        let is_missing = |slot: &Slot| self.slots[usize::from(slot.0)].state != SlotState::Acked;
        self.group.profile.slots().filter(is_missing).collect()
    }

    /// What the record is to name.
    fn stored(&self) -> Extent {
        assert!(self.acked() >= self.needed(), "D1: {} is not safe", self.id);
        let missing = self.unacked();
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

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_host::Host;

    fn slot(state: SlotState) -> (SlotWriter, CellBody) {
        let (cells, queue) = mpsc::channel(QUEUED_CELLS);
        let progress = Progress::new(Host::real().clock, Arc::default());
        let end = ShardEnd::default();
        let body = CellBody::new(queue, end.clone(), progress.clone());
        cells.try_send(Bytes::from_static(b"cell")).expect("there is room");
        let (disk, abort) = (None, None);
        (SlotWriter { state, disk, cells: Some(cells), crc: 7, end, progress, abort }, body)
    }

    #[tokio::test]
    async fn only_a_slot_that_is_not_given_up_ends_with_a_checksum() {
        let (mut open, body) = slot(SlotState::Open);
        open.end();
        let body = body.collect().await.expect("it is whole");
        assert_eq!(
            body.trailers().map(|trailers| trailers["x-ashlar-crc"].as_bytes()),
            Some(&b"00000007"[..])
        );
        assert_eq!(body.to_bytes(), "cell");

        let (mut given_up, body) = slot(SlotState::Missing);
        given_up.end();
        assert!(body.collect().await.is_err(), "its home keeps no part of the shard");
        let (dropped, body) = slot(SlotState::Open);
        drop(dropped);
        assert!(body.collect().await.is_err());
    }
}
