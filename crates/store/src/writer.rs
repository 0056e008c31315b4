//! Writing a large shard: bytes gather in a frame, a full frame is summed and written by a blocking thread while the
//! next one fills. At most two frames a writer: whoever sends faster than the disk takes, waits.

use crate::buffer::{FRAME_BYTES, Frame};
use crate::committer::{Filled, Work};
use crate::format::{PAGE, round_up, size};
use crate::index::Entry;
use crate::large::Reservation;
use crate::store::{Committed, Store};
use crate::{ShardMeta, StoreError};
use ashlar_types::BLOCK_BYTES;
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Where the bytes go.
pub(crate) enum Target {
    /// Into a reservation, replacing a damaged record of this sequence.
    Fresh { reservation: Arc<Reservation>, replaces: Option<u64> },
    /// Nowhere: the shard is there already, and only compared.
    Compare(Entry),
}

/// A large shard that is being written. Dropping it gives the room up.
pub struct ShardWriter {
    store: Store,
    meta: ShardMeta,
    target: Option<Target>,
    frame: Option<Frame>,
    filled: usize,
    /// Bytes handed to blocking threads so far.
    flushed: u64,
    /// CRC-32C of these.
    crc: u32,
    blocks: Vec<u32>,
    running: Option<oneshot::Receiver<FrameDone>>,
}

struct FrameDone {
    frame: Frame,
    crc: u32,
    blocks: Vec<u32>,
    written: Result<(), StoreError>,
}

impl ShardWriter {
    pub(crate) fn new(store: Store, meta: ShardMeta, target: Target) -> Self {
        Self {
            store,
            meta,
            target: Some(target),
            frame: None,
            filled: 0,
            flushed: 0,
            crc: 0,
            blocks: Vec::new(),
            running: None,
        }
    }

    /// How many bytes have come.
    pub fn received(&self) -> u64 {
        self.flushed + self.filled as u64
    }

    /// Takes the next bytes. Waits while the disk is behind.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), StoreError> {
        if self.received() + bytes.len() as u64 > self.meta.length {
            return Err(StoreError::TooLong);
        }
        while !bytes.is_empty() {
            let pool = &self.store.core.pool;
            let frame = self.frame.get_or_insert_with(|| pool.take());
            let piece = bytes.split_to(bytes.len().min(FRAME_BYTES - self.filled));
            frame[self.filled..self.filled + piece.len()].copy_from_slice(&piece);
            self.filled += piece.len();
            if self.filled == FRAME_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// CRC-32C of all that has come, once it is written: to be compared before [`ShardWriter::commit`].
    pub async fn finish(&mut self) -> Result<u32, StoreError> {
        if self.filled > 0 {
            self.flush().await?;
        }
        if let Some(spare) = self.settle_frame().await? {
            drop(spare);
        }
        Ok(self.crc)
    }

    /// Makes the shard durable and visible, at the length that has come: it may be shorter than announced.
    pub async fn commit(mut self) -> Result<Committed, StoreError> {
        let crc = self.finish().await?;
        let meta = ShardMeta { length: self.flushed, ..self.meta };
        match self.target.take().expect("a writer has a target until it is committed") {
            Target::Compare(entry) => {
                let is_same = entry.meta.length == meta.length && entry.crc == crc;
                if is_same { Ok(Committed { crc }) } else { Err(StoreError::Conflict) }
            }
            Target::Fresh { reservation, replaces } => {
                let blocks = std::mem::take(&mut self.blocks);
                let filled = Filled { reservation, meta, crc, blocks, replaces };
                self.store.submit(Work::Commit(Box::new(filled))).await?;
                Ok(Committed { crc })
            }
        }
    }

    async fn flush(&mut self) -> Result<(), StoreError> {
        let spare = self.settle_frame().await?;
        let Some(mut frame) = std::mem::replace(&mut self.frame, spare) else { return Ok(()) };
        let (length, at, crc) = (std::mem::take(&mut self.filled), self.flushed, self.crc);
        self.flushed += length as u64;
        let reservation = match &self.target {
            Some(Target::Fresh { reservation, .. }) => Some(reservation.clone()),
            Some(Target::Compare(_)) | None => None,
        };
        let core = self.store.core.clone();
        let visit = match reservation {
            Some(_) => Some(core.visits.request(&core.host).await?),
            None => None,
        };
        let (done, running) = oneshot::channel();
        self.store.core.host.tasks.blocking(Box::new(move || {
            let (crc, blocks) = sum(&frame[..length], crc);
            let written = match &reservation {
                Some(reservation) => core.write_frame(reservation, &mut frame, length, at),
                None => Ok(()),
            };
            drop(visit);
            // the writer may have been dropped
            drop(done.send(FrameDone { frame, crc, blocks, written }));
        }));
        self.running = Some(running);
        Ok(())
    }

    /// Waits for the frame that is being written, and takes it back.
    async fn settle_frame(&mut self) -> Result<Option<Frame>, StoreError> {
        let Some(running) = self.running.take() else { return Ok(None) };
        let done = running.await.map_err(|_| StoreError::Io("a disk thread died".to_owned()))?;
        done.written?;
        self.crc = done.crc;
        self.blocks.extend_from_slice(&done.blocks);
        Ok(Some(done.frame))
    }
}

impl std::fmt::Debug for ShardWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ShardWriter({:?})", self.meta.key)
    }
}

impl crate::store::Core {
    /// Writes a frame of a large shard. Blocks.
    fn write_frame(
        &self,
        reservation: &Reservation,
        frame: &mut Frame,
        length: usize,
        at: u64,
    ) -> Result<(), StoreError> {
        let segment = &reservation.segment;
        let offset = reservation.header.offset + PAGE + at;
        let written = match &segment.direct {
            Some(direct) => {
                let whole = size(round_up(length as u64, PAGE));
                frame[length..whole].fill(0);
                direct.write_at(&frame[..whole], offset)
            }
            None => segment.file.write_at(&frame[..length], offset),
        };
        written.map_err(|error| {
            self.poison("write", &segment.path, &error);
            StoreError::io("write", &segment.path, &error)
        })
    }
}

/// The CRC of all so far, and that of each block of this frame.
fn sum(bytes: &[u8], crc: u32) -> (u32, Vec<u32>) {
    let blocks = bytes.chunks(BLOCK_BYTES as usize).map(crc32c::crc32c).collect();
    (crc32c::crc32c_append(crc, bytes), blocks)
}
