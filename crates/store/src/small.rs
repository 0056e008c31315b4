//! Appending batches to small segments: prefilled ahead of the writer, so that a batch changes no file system metadata.
//!
//! Who owns what: the writer writes before `prefilled`, the running prefill behind it. Where the writer has outrun it,
//! it waits for the prefill, and then writes into fresh space itself: slower, never wrong.

use crate::StoreError;
use crate::format::{Class, PAGE};
use crate::segment::Segment;
use crate::store::Core;
use ashlar_host::{Disk, Host, OpenMode};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Prefilled at once: long enough to be worth a sync, short enough to be done in some milliseconds.
const PREFILL_BYTES: u64 = 4 << 20;
/// Prefilling starts when less than this is left: about one full batch.
const PREFILL_BELOW: u64 = 4 << 20;
const ZEROES_BYTES: usize = 1 << 20;

/// What the helper of a disk does, so that the committer does not wait for it.
pub(crate) enum Chore {
    /// Writes zeroes.
    Prefill { path: PathBuf, from: u64, to: u64, done: oneshot::Sender<io::Result<()>> },
    /// Anything else.
    Other(Box<dyn FnOnce() + Send>),
}

/// Runs chores until nobody can send any.
pub(crate) async fn run_chores(host: Host, mut chores: mpsc::Receiver<Chore>) {
    while let Some(chore) = chores.recv().await {
        match chore {
            Chore::Prefill { path, from, to, done } => {
                let written = prefill(host.disk.as_ref(), &path, from, to);
                host.disk_time().await;
                // the writer may be gone, and then does not care
                drop(done.send(written));
            }
            Chore::Other(work) => {
                work();
                host.disk_time().await;
            }
        }
    }
}

/// Through a file handle of its own: an error of this sync is then not taken away from a batch's sync.
fn prefill(disk: &dyn Disk, path: &Path, from: u64, to: u64) -> io::Result<()> {
    let file = disk.open(path, OpenMode::ReadWrite)?;
    let zeroes = vec![0; ZEROES_BYTES];
    let mut at = from;
    while at < to {
        let step = (to - at).min(ZEROES_BYTES as u64);
        file.write_at(&zeroes[..crate::format::size(step)], at)?;
        at += step;
    }
    file.sync_data()
}

/// The small segment that is being filled. Owned by the committer.
pub(crate) struct SmallWriter {
    active: Option<Arc<Segment>>,
    prefilled: u64,
    running: Option<(u64, oneshot::Receiver<io::Result<()>>)>,
}

impl SmallWriter {
    /// Goes on in `active`, all of which is allocated already.
    pub(crate) fn new(active: Option<Arc<Segment>>) -> Self {
        let length = active.as_ref().and_then(|segment| segment.file.len().ok());
        Self { active, prefilled: length.unwrap_or_default(), running: None }
    }

    /// The generation of the segment that is being filled.
    pub(crate) fn active(&self) -> Option<u64> {
        self.active.as_ref().map(|segment| segment.header.generation)
    }

    /// The room that it has taken from the file system already.
    pub(crate) fn prefilled_room(&self) -> u64 {
        let end = self.active.as_ref().map_or(0, |segment| segment.taken().end);
        self.prefilled.saturating_sub(end)
    }

    /// The segment and offset at which the next `bytes` go.
    pub(crate) async fn place(
        &mut self,
        core: &Core,
        bytes: u64,
    ) -> Result<(Arc<Segment>, u64), StoreError> {
        if let Some(segment) = self.active.as_ref().filter(|segment| segment.room() >= bytes) {
            let end = segment.taken().end;
            return Ok((segment.clone(), end));
        }
        self.await_prefill(core).await?;
        let size = core.config.small_segment_bytes.max(PAGE + bytes);
        let segment = core.new_segment(Class::Small, size)?;
        let length = segment.file.len();
        self.prefilled = length.map_err(|e| StoreError::io("measure", &segment.path, &e))?;
        self.active = Some(segment.clone());
        Ok((segment, PAGE))
    }

    /// Writes a batch where [`SmallWriter::place`] said. Not durable by itself.
    pub(crate) async fn write(
        &mut self,
        core: &Core,
        segment: &Arc<Segment>,
        slices: &[IoSlice<'_>],
        offset: u64,
        end: u64,
    ) -> Result<(), StoreError> {
        if end > self.prefilled {
            self.await_prefill(core).await?;
        }
        if let Err(error) = segment.file.write_vectored_at(slices, offset) {
            if error.kind() == io::ErrorKind::StorageFull && self.take_back(segment, offset).is_ok()
            {
                return Err(StoreError::Full);
            }
            core.poison("write", &segment.path, &error);
            return Err(StoreError::io("write", &segment.path, &error));
        }
        self.prefilled = self.prefilled.max(end);
        segment.taken().end = end;
        Ok(())
    }

    /// Cuts off a batch for which the file system had no room, durably: it is then certain that nothing of it was
    /// written, and the disk goes on.
    fn take_back(&mut self, segment: &Segment, offset: u64) -> io::Result<()> {
        segment.file.set_len(offset)?;
        segment.file.sync_data()?;
        self.prefilled = offset;
        Ok(())
    }

    /// Starts prefilling where little is left. To be called when a batch has been answered.
    pub(crate) fn prefill_ahead(&mut self, core: &Core) {
        let Some(segment) = &self.active else { return };
        let end = segment.taken().end;
        let to = (self.prefilled + PREFILL_BYTES).min(segment.header.bytes);
        if self.running.is_some() || self.prefilled - end >= PREFILL_BELOW || to <= self.prefilled {
            return;
        }
        let spare = core.disk_usage().map_or(0, |usage| usage.free_bytes);
        if spare < core.config.reserve_bytes + PREFILL_BYTES {
            return;
        }
        let (done, running) = oneshot::channel();
        let chore = Chore::Prefill { path: segment.path.clone(), from: self.prefilled, to, done };
        if core.chores.try_send(chore).is_ok() {
            self.running = Some((to, running));
        }
    }

    /// Takes the end of a prefill, if it has come.
    pub(crate) fn poll_prefill(&mut self, core: &Core) -> Result<(), StoreError> {
        let Some((to, running)) = &mut self.running else { return Ok(()) };
        let Ok(result) = running.try_recv() else { return Ok(()) };
        let to = *to;
        self.running = None;
        self.prefill_ended(core, to, result)
    }

    /// Waits for the prefill that runs.
    pub(crate) async fn await_prefill(&mut self, core: &Core) -> Result<(), StoreError> {
        let Some((to, running)) = self.running.take() else { return Ok(()) };
        let result = running.await.unwrap_or_else(|_| Err(io::Error::other("it was given up")));
        self.prefill_ended(core, to, result)
    }

    fn prefill_ended(
        &mut self,
        core: &Core,
        to: u64,
        result: io::Result<()>,
    ) -> Result<(), StoreError> {
        match (result, &self.active) {
            (Ok(()), _) => {
                self.prefilled = to;
                Ok(())
            }
            // another writer of the file system was faster: the batch meets that itself, if it must
            (Err(error), _) if error.kind() == io::ErrorKind::StorageFull => Ok(()),
            (Err(error), Some(segment)) => {
                core.poison("prefill", &segment.path, &error);
                Err(StoreError::io("prefill", &segment.path, &error))
            }
            (Err(_), None) => Ok(()),
        }
    }
}
