//! The store of one disk: what others see of it.

use crate::buffer::FramePool;
use crate::committer::{
    Answer, BATCH_BYTES_MAX, BATCH_RECORDS_MAX, Committer, DELETE_KEYS_MAX, Job, Message, Work,
};
use crate::format::{Class, SMALL_SHARD_BYTES_END, Superblock, small_span};
use crate::index::{Entry, Index};
use crate::large::LargeAllocator;
use crate::readers::{Readers, Reading};
use crate::reclaim::{Condemned, Reclaimed, Reclaimer, Recycled};
use crate::recovery::{self, Recovered};
use crate::scrub::{Damage, Scrub, ScrubProgress, ScrubStep};
use crate::segment::{FREE_DIR, SEGMENT_DIR, Segment};
use crate::small::{Chore, run_chores};
use crate::superblock::{SUPER_NAME, SuperFile};
use crate::visits::{Visits, no_answer};
use crate::writer::{ShardWriter, Target};
use crate::{StoreError, checkpoint};
use ashlar_host::{Disk, DiskUsage, Host, OpenMode};
use ashlar_types::{BucketId, ClusterId, DiskId, Epoch, ExtentId, NodeId, PgId, Profile, Slot};
use bytes::Bytes;
use futures::FutureExt;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Taken while a disk is open.
const LOCK_NAME: &str = "ashlar.lock";
/// Sequences of an open start behind those of all opens before, whatever of them was lost: none is used twice.
const NUMBERS_PER_INCARNATION_BITS: u32 = 40;
/// Chores that may wait for the helper thread.
const CHORES_MAX: usize = 64;
/// Shards that are looked at in one go, so that writers do not wait long for the index.
const LOOKED_AT_ONCE: usize = 65_536;
/// A small segment holds at least two of the largest batches that its size allows.
const SMALL_SEGMENT_BYTES_MIN: u64 = 256 * 1024;

/// How a disk is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// Its directory: it must exist.
    pub dir: PathBuf,
    /// How long a small segment becomes.
    pub small_segment_bytes: u64,
    /// How much is reserved at once for large shards.
    pub large_segment_bytes: u64,
    /// What shards leave free, for tombstones and compaction.
    pub reserve_bytes: u64,
    /// The disk that was in the directory before: without it an empty one is not formatted.
    pub expects: Option<DiskId>,
    /// Whether large shards are written past the page cache, where the file system can.
    pub direct_io: bool,
}

impl StoreConfig {
    /// The defaults for a disk of its own.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            small_segment_bytes: 64 << 20,
            large_segment_bytes: 1 << 30,
            reserve_bytes: 256 << 20,
            expects: None,
            direct_io: true,
        }
    }
}

/// Whose a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
}

/// Names a shard on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardKey {
    /// The extent.
    pub extent: ExtentId,
    /// Its column.
    pub slot: Slot,
}

/// What is known of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ShardMeta {
    /// Its name.
    pub key: ShardKey,
    /// The code of its extent.
    pub profile: Profile,
    /// The placement group of its extent.
    pub pg: PgId,
    /// That group's epoch when it was written.
    pub pg_epoch: Epoch,
    /// The bucket for which it was written: for audits.
    pub bucket: BucketId,
    /// Its length.
    pub length: u64,
    /// The node's wall clock when it was written: shown, never compared.
    pub created_ms: u64,
}

impl ShardMeta {
    /// For a tombstone over something of which only the key is known.
    pub(crate) fn unknown(key: ShardKey) -> Self {
        Self {
            key,
            profile: Profile { data: 0, parity: 0 },
            pg: PgId(0),
            pg_epoch: Epoch(0),
            bucket: BucketId(0),
            length: 0,
            created_ms: 0,
        }
    }
}

/// How full a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// All of the file system.
    pub capacity: u64,
    /// What is left for shards, without the reserve.
    pub free: u64,
    /// How many shards there are.
    pub shards: u64,
    /// Whether writes are taken: no write has failed since the open, and it is not closed.
    pub writable: bool,
}

/// A large shard is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// CRC-32C of its content.
    pub crc: u32,
}

/// What the room of a disk is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// Small segments.
    pub small_segments: u64,
    /// The length of their files.
    pub small_bytes: u64,
    /// What of it shards that are there take.
    pub small_live_bytes: u64,
    /// Large segments.
    pub large_segments: u64,
    /// What of them has been given out, with the holes in it.
    pub large_bytes: u64,
    /// What of it shards that are there take.
    pub large_live_bytes: u64,
    /// Files that the next small segments take.
    pub recycled_bytes: u64,
    /// Records that lie on the disk and count no more.
    pub dead_records: u64,
    /// Tombstones that are still needed: each marks a dead record.
    pub tombstones: u64,
    /// Room of large shards that is given back as soon as nobody reads it.
    pub waiting_bytes: u64,
    /// Given back since the open.
    pub reclaimed_bytes: u64,
    /// Moved by compaction since the open.
    pub moved_bytes: u64,
}

/// What only the committer knows of [`Space`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    pub(crate) dead_records: u64,
    pub(crate) tombstones: u64,
    pub(crate) waiting_bytes: u64,
    pub(crate) reclaimed_bytes: u64,
    pub(crate) moved_bytes: u64,
}

/// What all handles and threads of a store share.
pub(crate) struct Core {
    pub(crate) host: Host,
    pub(crate) config: StoreConfig,
    pub(crate) disk: DiskId,
    pub(crate) incarnation: u64,
    pub(crate) index: RwLock<Index>,
    pub(crate) segments: Mutex<BTreeMap<u64, Arc<Segment>>>,
    pub(crate) allocator: Mutex<LargeAllocator>,
    pub(crate) superblock: Mutex<SuperFile>,
    pub(crate) pool: Arc<FramePool>,
    pub(crate) readers: Readers,
    /// Recycled small segments, whose names are durable.
    pub(crate) recycled: Mutex<Vec<Recycled>>,
    /// Room of writers that gave up, for the committer.
    pub(crate) given_up: Mutex<Vec<Condemned>>,
    /// What the helper has done, for the committer.
    pub(crate) reclaimed: Mutex<Option<Reclaimed>>,
    /// Records up to this sequence are reflected in a checkpoint that is durable.
    pub(crate) checkpointed: AtomicU64,
    pub(crate) chores: mpsc::Sender<Chore>,
    pub(crate) scrub: Mutex<Scrub>,
    /// Held while the file of the scrub is written, so that an older state never replaces a newer one.
    pub(crate) scrub_file: Mutex<()>,
    pub(crate) visits: Visits,
    /// As the file system said last: nobody who asks how full the disk is waits for it.
    usage: Mutex<DiskUsage>,
    /// What of the large segment that is being filled is still free.
    pub(crate) reserved_room: AtomicU64,
    figures: Mutex<Figures>,
    waker: OnceLock<mpsc::WeakSender<Message>>,
    /// Sequences and generations.
    numbers: AtomicU64,
    acked: AtomicU64,
    writable: AtomicBool,
    /// Why the disk takes no more writes, once one has failed.
    failed: OnceLock<String>,
    lock: Mutex<Option<Box<dyn Send + Sync>>>,
    recovered: Recovered,
}

impl Core {
    /// A number that was never used on this disk, larger than all before.
    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Everything up to this sequence is durable.
    pub(crate) fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    pub(crate) fn set_acked(&self, sequence: u64) {
        self.acked.store(sequence, Ordering::Relaxed);
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }

    /// Whether a write that comes now is worth a try.
    fn takes_writes(&self) -> bool {
        self.is_writable() && self.visits.unanswered(&self.host).is_none()
    }

    /// A write or sync has failed: what the kernel still has of it is unknown, so nothing is written any more.
    pub(crate) fn poison(&self, what: &str, path: &Path, error: &dyn std::fmt::Display) {
        self.writable.store(false, Ordering::Relaxed);
        let why = format!("cannot {what} {}: {error}", path.display());
        if self.failed.set(why.clone()).is_err() {
            return;
        }
        metrics::counter!("ashlar_store_poisoned_total", "disk" => self.disk.to_string())
            .increment(1);
        tracing::error!(disk = %self.disk, why, "the disk takes no more writes");
    }

    /// A write of something that is not a batch has failed: as one of a batch, unless there was only no room.
    pub(crate) fn write_failed(&self, what: &str, path: &Path, error: &io::Error) -> StoreError {
        if !StoreError::is_harmless(error) {
            self.poison(what, path, error);
        }
        StoreError::io(what, path, error)
    }

    /// Asks the file system. Blocks.
    pub(crate) fn disk_usage(&self) -> Result<DiskUsage, StoreError> {
        let dir = &self.config.dir;
        let usage = self.host.disk.usage(dir).map_err(|e| StoreError::io("measure", dir, &e))?;
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner) = usage;
        Ok(usage)
    }

    /// What small segments may still take: of the file system, and of what was recycled.
    pub(crate) fn small_room(&self) -> Result<u64, StoreError> {
        Ok(self.disk_usage()?.free_bytes + self.recycled_bytes())
    }

    pub(crate) fn recycled_bytes(&self) -> u64 {
        let recycled = self.recycled.lock().unwrap_or_else(PoisonError::into_inner);
        recycled.iter().map(|recycled| recycled.bytes).sum()
    }

    /// The disk may be opened again.
    pub(crate) fn release(&self) {
        self.writable.store(false, Ordering::Relaxed);
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Has the committer look around: something has changed that it waits for.
    pub(crate) fn wake(&self) {
        // a queue that is full wakes it too
        if let Some(queue) = self.waker.get().and_then(mpsc::WeakSender::upgrade) {
            drop(queue.try_send(Message::Wake));
        }
    }

    pub(crate) fn figures(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn entry(&self, key: ShardKey) -> Option<Entry> {
        self.index.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }
}

/// The store of one disk. Cheap to clone. When all clones are gone without [`Store::close`], the next open recovers.
#[derive(Clone)]
pub struct Store {
    pub(crate) core: Arc<Core>,
    queue: mpsc::Sender<Message>,
    /// The bytes that may wait in the queue.
    budget: Arc<Semaphore>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.core.disk)
    }
}

impl Store {
    /// Opens a disk; formats it, if its directory has none of ours. Raises the incarnation durably. Blocks.
    pub fn open(host: &Host, config: StoreConfig, owner: Owner) -> Result<Self, StoreError> {
        let dir = config.dir.clone();
        let disk = host.disk.as_ref();
        if config.small_segment_bytes < SMALL_SEGMENT_BYTES_MIN {
            return Err(StoreError::BadConfig("a small segment must have at least 256 KiB"));
        }
        if !disk.exists(&dir) {
            return Err(StoreError::Missing(dir));
        }
        let lock = lock(disk, &dir)?;
        if !has_superblock(disk, &dir)? {
            match config.expects {
                Some(expected) => return Err(StoreError::NotMounted { dir, disk: expected }),
                None => format(host, &dir, owner)?,
            }
        }
        let mut superblock = SuperFile::open(disk, &dir)?;
        let before = superblock.now();
        check_owner(&dir, &before, owner)?;
        let pool = Arc::new(FramePool::default());
        let state = recovery::recover(disk, &config, &before, &pool)?;
        // a superblock whose last write was lost is older than what lies on the disk: no number is used twice all the same
        let used = state.highest >> NUMBERS_PER_INCARNATION_BITS;
        superblock.update(|now| {
            now.incarnation = now.incarnation.max(used) + 1;
            now.clean = false;
        })?;
        let incarnation = superblock.now().incarnation;
        let first = incarnation << NUMBERS_PER_INCARNATION_BITS;
        let small = last(&state.segments, Class::Small).filter(|_| state.found.clean);
        let active = last(&state.segments, Class::Large);
        let recycled = recycled(disk, &config.dir, before.disk, &state.segments)?;
        let usage = disk.usage(&dir).map_err(|e| StoreError::io("measure", &dir, &e))?;
        let reserved_room = active.as_ref().map_or(0, |segment: &Arc<Segment>| segment.room());
        let (chores, waiting) = mpsc::channel(CHORES_MAX);
        let scrub = Scrub::load(disk, &config.dir, before.disk);
        let core = Arc::new(Core {
            host: host.clone(),
            config,
            disk: before.disk,
            incarnation,
            index: RwLock::new(state.index),
            segments: Mutex::new(state.segments),
            allocator: Mutex::new(LargeAllocator { active }),
            superblock: Mutex::new(superblock),
            pool,
            readers: Readers::default(),
            recycled: Mutex::new(recycled),
            given_up: Mutex::default(),
            reclaimed: Mutex::default(),
            checkpointed: AtomicU64::new(0),
            chores,
            scrub: Mutex::new(scrub),
            scrub_file: Mutex::default(),
            visits: Visits::default(),
            usage: Mutex::new(usage),
            reserved_room: AtomicU64::new(reserved_room),
            figures: Mutex::default(),
            waker: OnceLock::new(),
            numbers: AtomicU64::new(first + 1),
            // not yet: nothing may claim that torn records were durable before a tombstone says that they were not
            acked: AtomicU64::new(if state.torn.is_empty() { first } else { state.acked }),
            writable: AtomicBool::new(true),
            failed: OnceLock::new(),
            lock: Mutex::new(Some(lock)),
            recovered: state.found,
        });
        for entry in state.damaged.into_iter().filter_map(|key| core.entry(key)) {
            core.note_damage(&entry, Damage::Content);
        }
        let mut reclaimer = Reclaimer::new(state.graves, state.condemned);
        for segment in core.segments.lock().unwrap_or_else(PoisonError::into_inner).values() {
            reclaimer.look_at(segment.clone(), 0);
        }
        Self::start(core, small, reclaimer, waiting, &state.torn)
    }

    fn start(
        core: Arc<Core>,
        small: Option<Arc<Segment>>,
        reclaimer: Reclaimer,
        waiting: mpsc::Receiver<Chore>,
        torn: &[ShardKey],
    ) -> Result<Self, StoreError> {
        let (queue, messages) = mpsc::channel(BATCH_RECORDS_MAX);
        core.waker.set(queue.downgrade()).expect("a store is started once");
        let tasks = core.host.tasks.clone();
        let host = core.host.clone();
        let mut committer = Committer::new(core.clone(), messages, small, reclaimer);
        if !core.recovered.clean && core.recovered.records > 0 {
            let settled = committer.settle_recovery(torn).now_or_never();
            settled.expect("nothing runs yet that it could wait for")?;
        }
        tasks.worker("store helper", Box::pin(run_chores(host, waiting)));
        tasks.worker("store commit", Box::pin(committer.run()));
        let budget = usize::try_from(BATCH_BYTES_MAX).expect("four MiB fit into memory");
        Ok(Self { core, queue, budget: Arc::new(Semaphore::new(budget)) })
    }

    /// The id in its superblock.
    pub fn disk_id(&self) -> DiskId {
        self.core.disk
    }

    /// How often it has been opened.
    pub fn incarnation(&self) -> u64 {
        self.core.incarnation
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.core.config.dir
    }

    /// What the open found.
    pub fn recovered(&self) -> Recovered {
        self.core.recovered
    }

    /// Why it takes no writes although it is open: one has failed, or the disk does not answer. `None`: it takes them.
    pub fn why_suspect(&self) -> Option<String> {
        let unanswered = || self.core.visits.unanswered(&self.core.host);
        let failed = self.core.failed.get().cloned();
        failed.or_else(|| unanswered().map(|since| no_answer(since).to_string()))
    }

    /// Asks the file system how full it is, for [`Store::usage`].
    pub async fn measure(&self) -> Result<(), StoreError> {
        let core = self.core.clone();
        let measured = self.core.visits.run(&self.core.host, move || core.disk_usage()).await;
        measured.flatten().map(drop)
    }

    /// How full it is, as far as that is known: never waits for the disk.
    pub fn usage(&self) -> Usage {
        let facts = *self.core.usage.lock().unwrap_or_else(PoisonError::into_inner);
        let reserved = self.core.reserved_room.load(Ordering::Relaxed);
        let index = self.core.index.read().unwrap_or_else(PoisonError::into_inner);
        Usage {
            capacity: facts.total_bytes,
            free: (facts.free_bytes + self.core.recycled_bytes())
                .saturating_sub(self.core.config.reserve_bytes)
                + reserved,
            shards: index.len() as u64,
            writable: self.core.takes_writes(),
        }
    }

    /// What the shards that are there take: never waits for the disk.
    pub fn live_bytes(&self) -> u64 {
        let segments = self.core.segments.lock().unwrap_or_else(PoisonError::into_inner);
        segments.values().map(|segment| segment.live_bytes()).sum()
    }

    /// What its room is used for.
    pub fn space(&self) -> Space {
        let figures = *self.core.figures();
        let mut space = Space {
            dead_records: figures.dead_records,
            tombstones: figures.tombstones,
            waiting_bytes: figures.waiting_bytes,
            reclaimed_bytes: figures.reclaimed_bytes,
            moved_bytes: figures.moved_bytes,
            ..Space::default()
        };
        space.recycled_bytes = self.core.recycled_bytes();
        let segments = self.core.segments.lock().unwrap_or_else(PoisonError::into_inner);
        for segment in segments.values() {
            match segment.header.class {
                Class::Small => {
                    space.small_segments += 1;
                    space.small_bytes += segment.file.len().unwrap_or_default();
                    space.small_live_bytes += segment.live_bytes();
                }
                Class::Large => {
                    space.large_segments += 1;
                    space.large_bytes += segment.taken().end;
                    space.large_live_bytes += segment.live_bytes();
                }
            }
        }
        space
    }

    /// Stores a shard of the small class: durable when it returns. The same content again is a success.
    pub async fn put_small(&self, meta: ShardMeta, bytes: Bytes) -> Result<(), StoreError> {
        if bytes.len() as u64 >= SMALL_SHARD_BYTES_END {
            return Err(StoreError::TooLong);
        }
        let meta = ShardMeta { length: bytes.len() as u64, ..meta };
        let reading = Reading::enter(&self.core);
        let replaces = match self.core.entry(meta.key) {
            Some(known) => self.damaged(known, reading).await?,
            None => None,
        };
        let crc = crc32c::crc32c(&bytes);
        self.submit(Work::Put { meta, bytes, crc, replaces }).await.map(drop)
    }

    /// Starts a shard of at most `meta.length` bytes: takes room for it.
    pub async fn begin(&self, meta: ShardMeta) -> Result<ShardWriter, StoreError> {
        let reading = Reading::enter(&self.core);
        let replaces = match self.core.entry(meta.key) {
            Some(known) => match self.damaged(known.clone(), reading).await? {
                None => return Ok(ShardWriter::new(self.clone(), meta, Target::Compare(known))),
                damaged => damaged,
            },
            None => None,
        };
        if !self.core.takes_writes() {
            return Err(StoreError::NotWritable);
        }
        let core = self.core.clone();
        let visits = &self.core.visits;
        let reserved = visits.run(&self.core.host, move || core.reserve(meta)).await??;
        let target = Target::Fresh { reservation: Arc::new(reserved), replaces };
        Ok(ShardWriter::new(self.clone(), meta, target))
    }

    /// Whether a record is damaged, or cannot be read: then its sequence, as what a new one replaces.
    async fn damaged(&self, known: Entry, reading: Reading) -> Result<Option<u64>, StoreError> {
        let pool = self.core.pool.clone();
        let sequence = known.sequence;
        let core = self.core.clone();
        let is_damaged = move || {
            let verified = known.verify(&pool);
            drop(reading);
            verified.is_err() || core.is_listed(&known)
        };
        let is_damaged = self.core.visits.run(&self.core.host, is_damaged).await?;
        Ok(is_damaged.then_some(sequence))
    }

    /// Reads a part of a shard; every 64 KiB block that it touches is verified first.
    pub async fn read(&self, key: ShardKey, offset: u64, len: u64) -> Result<Bytes, StoreError> {
        let reading = Reading::enter(&self.core);
        let entry = self.core.entry(key).ok_or(StoreError::NotFound)?;
        let pool = self.core.pool.clone();
        let core = self.core.clone();
        let read = move || {
            let bytes = entry.read(&pool, offset, len);
            drop(reading);
            if let Err(error @ (StoreError::Corrupt | StoreError::Io(_))) = &bytes {
                let noted = core.note_damage(&entry, Damage::from(error.clone()));
                // whoever is told may do without this shard from now on: then it must not be taken for a good one later
                if noted.is_some_and(|(_, damage)| damage == Damage::Content) {
                    core.save_scrub();
                }
            }
            bytes
        };
        self.core.visits.run(&self.core.host, read).await?
    }

    /// Deletes a shard, durably. `false`: there was none.
    pub async fn delete(&self, key: ShardKey) -> Result<bool, StoreError> {
        let existed = self.submit(Work::Delete(vec![key])).await?;
        Ok(existed == [true])
    }

    /// Deletes shards, durably, with one group commit for thousands of them. The answers stand in the order of the keys;
    /// `false`: there was none (and then nothing is written). A key that comes twice is deleted once.
    pub async fn delete_many(&self, keys: &[ShardKey]) -> Vec<Result<bool, StoreError>> {
        let mut answers = Vec::with_capacity(keys.len());
        for some in keys.chunks(DELETE_KEYS_MAX) {
            match self.submit(Work::Delete(some.to_vec())).await {
                Ok(existed) => answers.extend(existed.into_iter().map(Ok)),
                Err(error) => answers.extend(some.iter().map(|_| Err(error.clone()))),
            }
        }
        answers
    }

    /// Verifies the next shards, in the order of their keys: about `budget_bytes` of them, and at least one piece of one.
    /// Who calls it, how often, decides how long a pass takes. Its position survives a restart.
    pub async fn scrub_step(&self, budget_bytes: u64) -> ScrubStep {
        let core = self.core.clone();
        let step = self.core.visits.run(&self.core.host, move || core.scrub_step(budget_bytes));
        // a disk that does not answer is looked at when it does
        step.await.unwrap_or_default()
    }

    /// How far the scrub is.
    pub fn scrub_progress(&self) -> ScrubProgress {
        self.core.scrub_progress()
    }

    /// The shards that the scrub, a reader or recovery found damaged, and that were neither replaced nor deleted since.
    /// Putting one again replaces it.
    pub fn damaged_shards(&self) -> Vec<(ShardKey, Damage)> {
        self.core.damaged()
    }

    /// Whether a shard is here.
    pub fn contains(&self, key: ShardKey) -> bool {
        self.core.index.read().unwrap_or_else(PoisonError::into_inner).contains_key(&key)
    }

    /// What is known of a shard.
    pub fn meta(&self, key: ShardKey) -> Option<ShardMeta> {
        self.core.entry(key).map(|entry| entry.meta)
    }

    /// The shards behind `after`, in order of their keys, at most `limit`.
    pub fn list(&self, after: Option<ShardKey>, limit: usize) -> Vec<ShardMeta> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let index = self.core.index.read().unwrap_or_else(PoisonError::into_inner);
        index.range((from, Bound::Unbounded)).take(limit).map(|(_, entry)| entry.meta).collect()
    }

    /// The shards of one slot of a group, behind `after`, in the order of their extents, each with the CRC-32C of its
    /// content; and where the next page begins. A page may have fewer than `limit`, even none, and not be the last.
    pub fn list_slot(
        &self,
        pg: PgId,
        slot: Slot,
        after: Option<ExtentId>,
        limit: usize,
    ) -> (Vec<(ShardMeta, u32)>, Option<ExtentId>) {
        let behind = |extent| ShardKey { extent, slot: Slot(u8::MAX) };
        let from = after.map_or(Bound::Unbounded, |extent| Bound::Excluded(behind(extent)));
        let index = self.core.index.read().unwrap_or_else(PoisonError::into_inner);
        let (mut found, mut last) = (Vec::new(), None);
        for (looked, (key, entry)) in index.range((from, Bound::Unbounded)).enumerate() {
            let is_full = looked >= LOOKED_AT_ONCE || found.len() >= limit;
            if is_full && last.is_some_and(|last| last != key.extent) {
                return (found, last);
            }
            if entry.meta.pg == pg && key.slot == slot {
                found.push((entry.meta, entry.crc));
            }
            last = Some(key.extent);
        }
        (found, None)
    }

    /// The slots of groups of which this disk has shards. It looks at all of them, a part at a time. Blocks.
    pub fn slots(&self) -> BTreeSet<(PgId, Slot)> {
        self.slots_by(LOOKED_AT_ONCE)
    }

    pub(crate) fn slots_by(&self, looked_at_once: usize) -> BTreeSet<(PgId, Slot)> {
        let (mut found, mut from) = (BTreeSet::new(), Bound::<ShardKey>::Unbounded);
        loop {
            let index = self.core.index.read().unwrap_or_else(PoisonError::into_inner);
            let mut last = None;
            for (key, entry) in index.range((from, Bound::Unbounded)).take(looked_at_once) {
                found.insert((entry.meta.pg, key.slot));
                last = Some(*key);
            }
            match last {
                None => return found,
                Some(last) => from = Bound::Excluded(last),
            }
        }
    }

    /// Finishes what has come, writes a checkpoint and marks the disk clean. Later writes are refused.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.queue.send(Message::Close(done)).await.is_ok() {
            // an error is a committer that has closed already
            drop(closed.await);
        }
    }

    /// Hands work to the committer, waiting for room in its queue, and then for its answer.
    pub(crate) async fn submit(&self, work: Work) -> Answer {
        if self.core.visits.unanswered(&self.core.host).is_some() {
            return Err(StoreError::NotWritable);
        }
        let share = u32::try_from(work.small_bytes().max(small_span(0)));
        let share = share.expect("a piece of work is smaller than a batch");
        let permit = self.budget.clone().acquire_many_owned(share).await.ok();
        let (reply, answer) = oneshot::channel();
        let message = Message::Job(Job { work, reply, permit });
        self.queue.send(message).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

fn lock(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn Send + Sync>, StoreError> {
    let path = dir.join(LOCK_NAME);
    disk.lock(&path).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => StoreError::InUse(dir.to_owned()),
        _ => StoreError::writing("lock", &path, dir, &error),
    })
}

/// Whether there is a superblock: a disk that does not say so has none that could be missed.
fn has_superblock(disk: &dyn Disk, dir: &Path) -> Result<bool, StoreError> {
    let path = dir.join(SUPER_NAME);
    match disk.open(&path, OpenMode::Read) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StoreError::writing("open", &path, dir, &error)),
    }
}

/// Makes an empty directory a disk. The superblock comes last: an interrupted format is begun again.
fn format(host: &Host, dir: &Path, owner: Owner) -> Result<(), StoreError> {
    let disk = host.disk.as_ref();
    for name in [SEGMENT_DIR, FREE_DIR, checkpoint::CHECKPOINT_DIR] {
        let path = dir.join(name);
        let made = disk.create_dir_all(&path).and_then(|()| disk.list(&path));
        let found = made.map_err(|e| StoreError::writing("create", &path, dir, &e))?;
        if !found.is_empty() {
            return Err(StoreError::NoSuperblock(dir.to_owned()));
        }
    }
    let first = Superblock {
        cluster: owner.cluster,
        disk: DiskId(host.random.next_u128()),
        node: owner.node,
        incarnation: 0,
        sequence: 0,
        checkpoint: 0,
        clean: false,
    };
    SuperFile::format(disk, dir, &first)
}

/// The files that wait to be small segments again. One that a cut left under both its names is that segment, still.
fn recycled(
    disk: &dyn Disk,
    dir: &Path,
    owner: DiskId,
    segments: &BTreeMap<u64, Arc<Segment>>,
) -> Result<Vec<Recycled>, StoreError> {
    let free = dir.join(FREE_DIR);
    let mut recycled = Vec::new();
    for path in disk.list(&free).map_err(|e| StoreError::io("list", &free, &e))? {
        let header = Segment::read_header(disk, &path, owner)?;
        if header.is_some_and(|header| segments.contains_key(&header.generation)) {
            let removed = disk.remove_file(&path).and_then(|()| disk.sync_dir(&free));
            removed.map_err(|e| StoreError::io("remove", &path, &e))?;
        } else {
            let length = disk.open(&path, OpenMode::Read).and_then(|file| file.len());
            let bytes = length.map_err(|e| StoreError::io("measure", &path, &e))?;
            recycled.push(Recycled { path, bytes });
        }
    }
    Ok(recycled)
}

fn check_owner(dir: &Path, found: &Superblock, owner: Owner) -> Result<(), StoreError> {
    let dir = dir.to_owned();
    if found.cluster != owner.cluster {
        return Err(StoreError::OtherCluster {
            dir,
            found: found.cluster,
            expected: owner.cluster,
        });
    }
    if found.node != owner.node {
        return Err(StoreError::OtherNode { dir, found: found.node, expected: owner.node });
    }
    Ok(())
}

fn last(segments: &BTreeMap<u64, Arc<Segment>>, class: Class) -> Option<Arc<Segment>> {
    segments.values().rev().find(|segment| segment.header.class == class).cloned()
}
