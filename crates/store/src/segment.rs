//! A segment: one append-only file, its header and what of it is taken.

use crate::StoreError;
use crate::format::{Class, PAGE, Page, Seed, SegmentHeader};
use crate::store::StoreConfig;
use ashlar_host::{Disk, File, OpenMode};
use ashlar_types::DiskId;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where segments are.
pub(crate) const SEGMENT_DIR: &str = "seg";
/// Where recycled small segments wait.
pub(crate) const FREE_DIR: &str = "free";

/// What of a segment is taken.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Where the next record goes.
    pub(crate) end: u64,
    /// Reservations that are neither published nor given up.
    pub(crate) open: BTreeSet<u64>,
}

/// An open segment.
pub(crate) struct Segment {
    pub(crate) header: SegmentHeader,
    pub(crate) seed: Seed,
    pub(crate) path: PathBuf,
    /// Through the page cache.
    pub(crate) file: Box<dyn File>,
    /// Past it, for frames of large shards, where the file system can.
    pub(crate) direct: Option<Box<dyn File>>,
    taken: Mutex<Taken>,
    live_records: AtomicU64,
    live_bytes: AtomicU64,
}

impl Segment {
    /// Makes a segment and its name durable.
    pub(crate) fn create(
        disk: &dyn Disk,
        config: &StoreConfig,
        header: SegmentHeader,
        recycled: Option<&Path>,
    ) -> Result<Self, StoreError> {
        let path = config.dir.join(SEGMENT_DIR).join(name(header.class, header.generation));
        let made = match header.class {
            Class::Small => Self::make_small(disk, config, &path, &header, recycled),
            Class::Large => Self::make_large(disk, &path, &header),
        };
        if let Err(error) = made {
            // nothing refers to it; what cannot be removed is found without a header by the next open, and passed over
            drop(disk.remove_file(&path));
            return Err(match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full,
                _ => StoreError::writing("create", &path, &config.dir, &error),
            });
        }
        Self::open(disk, config, path, header, PAGE)
    }

    fn make_large(disk: &dyn Disk, path: &Path, header: &SegmentHeader) -> io::Result<()> {
        let file = disk.open(path, OpenMode::CreateNew)?;
        let allocated = file.allocate(0, header.bytes).or_else(|error| match error.kind() {
            // then room is not certain, but the length is
            io::ErrorKind::Unsupported => file.set_len(header.bytes),
            _ => Err(error),
        });
        allocated?;
        write_header(file.as_ref(), header)?;
        disk.sync_dir(path.parent().expect("a segment lies in a directory"))
    }

    /// Takes a recycled file if there is one: its blocks are allocated, and all in it is of another generation.
    fn make_small(
        disk: &dyn Disk,
        config: &StoreConfig,
        path: &Path,
        header: &SegmentHeader,
        recycled: Option<&Path>,
    ) -> io::Result<()> {
        let segments = path.parent().expect("a segment lies in a directory");
        let Some(recycled) = recycled else {
            write_header(disk.open(path, OpenMode::CreateNew)?.as_ref(), header)?;
            return disk.sync_dir(segments);
        };
        write_header(disk.open(recycled, OpenMode::ReadWrite)?.as_ref(), header)?;
        disk.rename(recycled, path)?;
        disk.sync_dir(segments)?;
        disk.sync_dir(&config.dir.join(FREE_DIR))
    }

    /// Opens a segment of which everything before `end` is taken.
    pub(crate) fn open(
        disk: &dyn Disk,
        config: &StoreConfig,
        path: PathBuf,
        header: SegmentHeader,
        end: u64,
    ) -> Result<Self, StoreError> {
        let file = disk
            .open(&path, OpenMode::ReadWrite)
            .map_err(|e| StoreError::writing("open", &path, &config.dir, &e))?;
        let wants_direct = config.direct_io && header.class == Class::Large;
        // a file system that cannot says so here, and the page cache does the work
        let direct = wants_direct.then(|| disk.open(&path, OpenMode::Direct).ok()).flatten();
        let seed = Seed::new(header.disk, header.generation);
        let taken = Mutex::new(Taken { end, open: BTreeSet::new() });
        let (live_records, live_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { header, seed, path, file, direct, taken, live_records, live_bytes })
    }

    /// The header of the segment in a file; `None`: it has none of this disk.
    pub(crate) fn read_header(
        disk: &dyn Disk,
        path: &Path,
        owner: DiskId,
    ) -> Result<Option<SegmentHeader>, StoreError> {
        let mut page: Page = [0; 4096];
        let read =
            disk.open(path, OpenMode::Read).and_then(|file| file.read_exact_at(&mut page, 0));
        match read {
            Ok(()) => Ok(SegmentHeader::decode(&page).filter(|header| header.disk == owner)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(StoreError::io("read", path, &error)),
        }
    }

    /// What is taken now.
    pub(crate) fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A shard in it is shown by the index. Only the committer calls this, and [`Segment::lose`].
    pub(crate) fn gain(&self, bytes: u64) {
        self.live_records.fetch_add(1, Ordering::Relaxed);
        self.live_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A shard in it is shown no more.
    pub(crate) fn lose(&self, bytes: u64) {
        let records = self.live_records.fetch_sub(1, Ordering::Relaxed);
        let before = self.live_bytes.fetch_sub(bytes, Ordering::Relaxed);
        assert!(records > 0 && before >= bytes, "only what lives in a segment can leave it");
    }

    /// How many shards in it the index shows.
    pub(crate) fn live_records(&self) -> u64 {
        self.live_records.load(Ordering::Relaxed)
    }

    /// The room of these.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes.load(Ordering::Relaxed)
    }

    /// The room behind what is taken.
    pub(crate) fn room(&self) -> u64 {
        self.header.bytes.saturating_sub(self.taken().end)
    }
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

fn write_header(file: &dyn File, header: &SegmentHeader) -> io::Result<()> {
    file.write_at(&header.encode(), 0)?;
    file.sync_data()
}

fn name(class: Class, generation: u64) -> String {
    match class {
        Class::Small => format!("s-{generation:016x}.seg"),
        Class::Large => format!("l-{generation:016x}.seg"),
    }
}
