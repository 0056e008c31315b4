//! The handle: what the node's Raft groups call.

use crate::WalError;
use crate::files::WalFile;
use crate::format::{BATCH_HEADER_BYTES, RECORD_HEADER_BYTES, RecordHeader, seed};
use crate::limits::Limits;
use crate::record::{Entry, GroupState, Note, Record, WalConfig};
use crate::recovery;
use crate::table::{Found, Place, Table};
use crate::writer::{self, Writer};
use ashlar_host::Host;
use ashlar_types::RangeId;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, oneshot, watch};

/// Called once, in submission order, when the record is on stable storage or never will be. The writer calls it: it must
/// not block, and not submit.
pub type Done = Box<dyn FnOnce(Result<(), WalError>) + Send>;

/// The log; cheap to clone. When the last handle is dropped the writer writes what waits, and stops.
#[derive(Clone)]
pub struct Wal {
    shared: Arc<Shared>,
    /// Dropped with the last handle; the workers hold only `shared`.
    _handle: Arc<Handle>,
}

struct Handle(Arc<Shared>);

/// What handles, writer and zeroing worker share.
pub(crate) struct Shared {
    pub(crate) host: Host,
    pub(crate) config: WalConfig,
    pub(crate) limits: Limits,
    pub(crate) state: Mutex<State>,
    /// Something waits for the writer, or it shall stop.
    pub(crate) work: Notify,
    /// The queue was taken.
    pub(crate) room: Notify,
    /// A spare is wanted, or the zeroing worker shall stop.
    pub(crate) spare_wanted: Notify,
    /// The log has failed.
    pub(crate) failing: Notify,
    /// Workers that still run.
    pub(crate) running: watch::Sender<u8>,
}

/// What lies under the mutex.
pub(crate) struct State {
    pub(crate) table: Table,
    pub(crate) queue: VecDeque<Queued>,
    pub(crate) queue_bytes: u64,
    /// Files that hold something live, and the current one, by generation.
    pub(crate) files: BTreeMap<u64, WalFile>,
    pub(crate) spares: Vec<WalFile>,
    /// Files to be removed after the next batch.
    pub(crate) surplus: Vec<WalFile>,
    /// The writer has used enough of its file that the next one should be made ready.
    pub(crate) prepare: bool,
    pub(crate) next_file: u64,
    pub(crate) closing: bool,
    pub(crate) failed: Option<WalError>,
    /// An entry that could not be read back: what recovery does about its group is done at the next start.
    pub(crate) unreadable: Option<WalError>,
    /// Released when the writer has stopped.
    pub(crate) lock: Option<Box<dyn Send + Sync>>,
}

/// What one submit gave, until the writer takes it: always whole, so it lies in one batch.
pub(crate) struct Queued {
    pub(crate) items: Vec<Item>,
    pub(crate) done: Done,
}

/// One thing to write.
pub(crate) enum Item {
    /// Of a group; with the sequence of its first entry.
    Record { group: RangeId, record: Record, first_sequence: u64 },
    /// Of the node.
    Note { key: u64, note: Note },
}

/// Entries as the table finds them, and the files they lie in.
pub(crate) struct Located {
    found: Vec<Found>,
    files: BTreeMap<u64, WalFile>,
}

impl Wal {
    /// Opens the log, or makes it, and recovers. Blocks; the writer runs when it returns.
    pub fn open(host: &Host, config: WalConfig) -> Result<Self, WalError> {
        Self::open_with(host, config, Limits::default())
    }

    pub(crate) fn open_with(
        host: &Host,
        config: WalConfig,
        limits: Limits,
    ) -> Result<Self, WalError> {
        let failed = |error: std::io::Error| WalError::Open {
            path: config.dir.clone(),
            reason: error.to_string(),
        };
        host.disk.create_dir_all(&config.dir).map_err(failed)?;
        let lock = host.disk.lock(&config.dir.join("lock")).map_err(|error| WalError::Locked {
            path: config.dir.clone(),
            reason: error.to_string(),
        })?;
        let recovered = recovery::recover(host, &config)?;
        let state = State {
            table: recovered.table,
            queue: VecDeque::new(),
            queue_bytes: 0,
            files: recovered.files,
            spares: recovered.spares,
            surplus: recovered.surplus,
            prepare: false,
            next_file: recovered.next_file,
            closing: false,
            failed: None,
            unreadable: None,
            lock: Some(lock),
        };
        let shared = Arc::new(Shared {
            host: host.clone(),
            config,
            limits,
            state: Mutex::new(state),
            work: Notify::new(),
            room: Notify::new(),
            spare_wanted: Notify::new(),
            failing: Notify::new(),
            running: watch::channel(2).0,
        });
        let writer = Writer::new(Arc::clone(&shared), recovered.end);
        host.tasks.worker("wal-writer", Box::pin(writer.run()));
        host.tasks.worker("wal-zeroing", Box::pin(writer::zero_spares(Arc::clone(&shared))));
        Ok(Self { _handle: Arc::new(Handle(Arc::clone(&shared))), shared })
    }

    /// Why the log takes nothing more, or cannot give what it has; `None`: it has not failed.
    pub fn failure(&self) -> Option<WalError> {
        let state = self.shared.lock();
        state.failed.clone().or_else(|| state.unreadable.clone())
    }

    fn damaged(&self, error: WalError) -> WalError {
        tracing::error!(%error, "the write-ahead log is damaged");
        metrics::counter!("ashlar_wal_failures_total").increment(1);
        self.shared.lock().unreadable.get_or_insert_with(|| error.clone());
        self.shared.failing.notify_waiters();
        error
    }

    /// Waits until the log has failed. Only a new start mends that: whoever runs the node has to end it.
    pub async fn until_failed(&self) -> WalError {
        loop {
            let failing = self.shared.failing.notified();
            if let Some(error) = self.failure() {
                return error;
            }
            failing.await;
        }
    }

    /// The groups on this node, without those that were dropped.
    pub fn groups(&self) -> Vec<RangeId> {
        self.shared.lock().table.groups()
    }

    /// What is known of a group, with all that was submitted. Of an unknown one: nothing.
    pub fn state(&self, group: RangeId) -> GroupState {
        self.shared.lock().table.state(group)
    }

    /// Bytes of the log that a group holds: when to take a snapshot is judged by them.
    pub fn live_bytes(&self, group: RangeId) -> u64 {
        self.shared.lock().table.live_bytes(group)
    }

    /// The record is readable when this returns; `done` is called once it is on stable storage, or never will be.
    /// Where this returns an error nothing was taken in and `done` is not called. Who submits much awaits
    /// [`Wal::room`] before.
    pub fn submit(&self, group: RangeId, record: Record, done: Done) -> Result<(), WalError> {
        self.submit_all(group, vec![record], done)
    }

    /// As `submit`, for records that go into one batch, in this order: one sync makes all of them durable, and a cut
    /// keeps all of them or none. Each is judged by the log as it is before the first, so none may need another; but for
    /// what follows the creation of a group that was dropped.
    pub fn submit_all(
        &self,
        group: RangeId,
        records: Vec<Record>,
        done: Done,
    ) -> Result<(), WalError> {
        let bytes = records.iter().map(writer::queued_bytes).sum();
        self.enqueue(bytes, done, |table| {
            table.check_all(group, &records)?;
            let take_in = |record: Record| {
                let first_sequence = table.submit(group, &record);
                Item::Record { group, record, first_sequence }
            };
            Ok(records.into_iter().map(take_in).collect())
        })
    }

    fn enqueue(
        &self,
        bytes: u64,
        done: Done,
        take_in: impl FnOnce(&mut Table) -> Result<Vec<Item>, WalError>,
    ) -> Result<(), WalError> {
        let mut state = self.shared.lock();
        state.accepts()?;
        let items = take_in(&mut state.table)?;
        state.queue_bytes += bytes;
        state.queue.push_back(Queued { items, done });
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }

    /// Waits (milliseconds) while the queue is full. It then has room for one submission of each who waited: the queue
    /// is bounded by its limit and one submission a group.
    pub async fn room(&self) {
        loop {
            // listens before it looks, so that a queue that is taken in between is not missed
            let taken = self.shared.room.notified();
            if self.shared.has_room() {
                return;
            }
            taken.await;
        }
    }

    /// What the node has noted, by key; with what was submitted.
    pub fn notes(&self) -> BTreeMap<u64, Note> {
        self.shared.lock().table.notes().clone()
    }

    /// Notes something of the node under a key, in place of what was noted before; waits until it is on stable storage.
    pub async fn note_durable(&self, key: u64, note: Note) -> Result<(), WalError> {
        self.room().await;
        let (done, answer) = awaited();
        self.enqueue(writer::NOTE_BYTES, done, |table| {
            table.note(key, note);
            Ok(vec![Item::Note { key, note }])
        })?;
        answer.await.unwrap_or(Err(WalError::Closed))
    }

    /// Submits, and waits until it is on stable storage. Dropped before that, the record is written all the same.
    pub async fn submit_durable(&self, group: RangeId, record: Record) -> Result<(), WalError> {
        self.submit_all_durable(group, vec![record]).await
    }

    /// As `submit_all`, and waits as `submit_durable` does.
    pub async fn submit_all_durable(
        &self,
        group: RangeId,
        records: Vec<Record>,
    ) -> Result<(), WalError> {
        self.room().await;
        let (done, answer) = awaited();
        self.submit_all(group, records, done)?;
        answer.await.unwrap_or(Err(WalError::Closed))
    }

    /// The entries `from..to_exclusive`: all of them, or an error. Reads the disk for those that are not in memory.
    pub fn read(
        &self,
        group: RangeId,
        from: u64,
        to_exclusive: u64,
    ) -> Result<Vec<Entry>, WalError> {
        loop {
            let located = self.locate(group, from, to_exclusive)?;
            // an entry that was moved meanwhile is looked for again; each time a file was given up, so it ends
            if let Some(entries) = self.fetch(group, located)? {
                return Ok(entries);
            }
        }
    }

    /// Where the entries are now.
    pub(crate) fn locate(&self, group: RangeId, from: u64, to: u64) -> Result<Located, WalError> {
        let state = self.shared.lock();
        let found = state.table.find(group, from, to)?;
        let on_disk = found.iter().any(|entry| matches!(entry, Found::OnDisk { .. }));
        let files = if on_disk { state.files.clone() } else { BTreeMap::new() };
        Ok(Located { found, files })
    }

    /// The entries that were located; `None`: one of them is no longer there.
    pub(crate) fn fetch(
        &self,
        group: RangeId,
        located: Located,
    ) -> Result<Option<Vec<Entry>>, WalError> {
        let Located { found, files } = located;
        let mut entries = Vec::with_capacity(found.len());
        for entry in found {
            let (index, term, bytes, place) = match entry {
                Found::InMemory(entry) => {
                    entries.push(entry);
                    continue;
                }
                Found::OnDisk { index, term, bytes, place } => (index, term, bytes, place),
            };
            let file = files.get(&place.generation).ok_or_else(|| "its file is gone".to_owned());
            let read = file.and_then(|file| read_back(file, group, index, term, bytes, place));
            match read {
                Ok(payload) => entries.push(Entry { index, term, payload }),
                // purged, truncated or moved while this was reading: not damage
                Err(_) if !self.shared.lock().table.is_at(group, index, place) => return Ok(None),
                Err(reason) => {
                    return Err(self.damaged(WalError::Unreadable { group, index, reason }));
                }
            }
        }
        Ok(Some(entries))
    }

    /// Writes what waits, stops the workers and releases the directory. Later submits fail.
    pub async fn close(&self) {
        self.shared.begin_close();
        let mut running = self.shared.running.subscribe();
        // an error would mean that the sender is gone, and this holds it
        drop(running.wait_for(|running| *running == 0).await);
    }
}

/// A callback, and what waits for it. The waiter may be gone: then nobody wants the answer.
fn awaited() -> (Done, oneshot::Receiver<Result<(), WalError>>) {
    let (sender, receiver) = oneshot::channel();
    (Box::new(move |result| drop(sender.send(result))), receiver)
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal").field("dir", &self.shared.config.dir).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.begin_close();
    }
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a submission need not wait, be it because it will be refused.
    fn has_room(&self) -> bool {
        let state = self.lock();
        state.queue_bytes <= self.limits.queue_bytes || state.accepts().is_err()
    }

    fn begin_close(&self) {
        self.lock().closing = true;
        self.work.notify_one();
        self.room.notify_waiters();
        self.spare_wanted.notify_one();
    }
}

impl State {
    fn accepts(&self) -> Result<(), WalError> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None if self.closing => Err(WalError::Closed),
            None => Ok(()),
        }
    }

    /// A number for a new file.
    pub(crate) fn take_file_number(&mut self) -> u64 {
        self.next_file += 1;
        self.next_file - 1
    }
}

/// The payload of one entry, verified.
pub(crate) fn read_back(
    file: &WalFile,
    group: RangeId,
    index: u64,
    term: u64,
    bytes: u32,
    place: Place,
) -> Result<Bytes, String> {
    let length = usize::try_from(bytes).map_err(|error| error.to_string())?;
    let mut record = vec![0; RECORD_HEADER_BYTES + length];
    file.file.read_exact_at(&mut record, place.offset).map_err(|error| error.to_string())?;
    let damaged = || format!("{} is damaged at {}", file.path.display(), place.offset);
    let (header, whole) =
        RecordHeader::decode(seed(place.generation), &record).ok_or_else(damaged)?;
    let header = header.map_err(|_| damaged())?;
    if (header.group, header.index, header.term, whole) != (group, index, term, record.len()) {
        return Err(damaged());
    }
    Ok(Bytes::from(record).slice(RECORD_HEADER_BYTES..))
}

const _: () =
    assert!(BATCH_HEADER_BYTES + RECORD_HEADER_BYTES < 512, "a header lies in one sector");
