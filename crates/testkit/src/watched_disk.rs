//! A disk of a node, with its syncs counted by what they are for, and a switch that turns them into lies.
//!
//! A lie is what a broken disk or a forgotten `fdatasync` does: the sync answers with success and nothing is durable.
//! Names ([`Disk::sync_dir`]) are never lied about: the tests ask what happens to content that was acknowledged.

use ashlar_host::{CutStyle, Disk, DiskUsage, File, OpenMode, SimDisk};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// About which files the disk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// The write-ahead log of the metadata.
    Log,
    /// The segments and checkpoints of the shard stores.
    Shards,
}

/// How many syncs of files have succeeded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Syncs {
    /// Of the write-ahead log.
    pub log: u64,
    /// Of the shard stores.
    pub shards: u64,
    /// Of everything else: identity, addresses, snapshots.
    pub other: u64,
}

impl Syncs {
    /// Those since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            log: self.log - earlier.log,
            shards: self.shards - earlier.shards,
            other: self.other - earlier.other,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Log,
    Shards,
    Other,
}

impl Purpose {
    /// The layout of a node's directories says what a file is for.
    fn of(path: &Path) -> Self {
        let mut parts = path.iter().filter_map(|part| part.to_str());
        let found = parts.find_map(|part| match part {
            "wal" => Some(Self::Log),
            part if part.starts_with("disk") => Some(Self::Shards),
            _ => None,
        });
        found.unwrap_or(Self::Other)
    }
}

/// What all handles on the disk share.
#[derive(Debug, Default)]
struct Watch {
    log: AtomicU64,
    shards: AtomicU64,
    other: AtomicU64,
    lies_about_log: AtomicBool,
    lies_about_shards: AtomicBool,
    /// Syncs of files below it fail.
    failing: Mutex<Option<PathBuf>>,
}

impl Watch {
    fn count(&self, purpose: Purpose) {
        let counter = match purpose {
            Purpose::Log => &self.log,
            Purpose::Shards => &self.shards,
            Purpose::Other => &self.other,
        };
        counter.fetch_add(1, Ordering::SeqCst);
    }

    fn failing(&self) -> MutexGuard<'_, Option<PathBuf>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fails(&self, path: &Path) -> bool {
        self.failing().as_ref().is_some_and(|dir| path.starts_with(dir))
    }

    fn lies_about(&self, purpose: Purpose) -> bool {
        match purpose {
            Purpose::Log => self.lies_about_log.load(Ordering::SeqCst),
            Purpose::Shards => self.lies_about_shards.load(Ordering::SeqCst),
            Purpose::Other => false,
        }
    }
}

/// A [`SimDisk`] that is watched. A clone is the same disk.
#[derive(Debug, Clone, Default)]
pub struct WatchedDisk {
    disk: SimDisk,
    watch: Arc<Watch>,
}

impl WatchedDisk {
    /// The same disk for one life of a node: see [`SimDisk::boot`].
    #[must_use]
    pub fn boot(&self) -> Self {
        Self { disk: self.disk.boot(), watch: Arc::clone(&self.watch) }
    }

    /// The power cut. What had been lied about is as un-synced as it is; from now on the disk is honest.
    pub fn cut(&self, style: CutStyle) {
        self.disk.cut(style);
        self.watch.lies_about_log.store(false, Ordering::SeqCst);
        self.watch.lies_about_shards.store(false, Ordering::SeqCst);
    }

    /// Turns one bit of a file, as rot does.
    pub fn flip(&self, path: &Path, offset: u64) -> io::Result<()> {
        self.disk.flip(path, offset)
    }

    /// From now until the next cut these syncs do nothing and answer with success.
    pub fn lie_about(&self, lie: Lie) {
        let switch = match lie {
            Lie::Log => &self.watch.lies_about_log,
            Lie::Shards => &self.watch.lies_about_shards,
        };
        switch.store(true, Ordering::SeqCst);
    }

    /// From now on syncs of files below `dir` fail; `None`: none does.
    pub fn fail_syncs(&self, dir: Option<&Path>) {
        *self.watch.failing() = dir.map(Path::to_owned);
    }

    /// The syncs so far, in all lives.
    pub fn syncs(&self) -> Syncs {
        Syncs {
            log: self.watch.log.load(Ordering::SeqCst),
            shards: self.watch.shards.load(Ordering::SeqCst),
            other: self.watch.other.load(Ordering::SeqCst),
        }
    }
}

impl Disk for WatchedDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>> {
        let file = self.disk.open(path, mode)?;
        let (purpose, path) = (Purpose::of(path), path.to_owned());
        Ok(Box::new(WatchedFile { file, path, purpose, watch: self.watch.clone() }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.disk.list(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_dir(path)
    }

    fn exists(&self, path: &Path) -> bool {
        self.disk.exists(path)
    }

    fn usage(&self, path: &Path) -> io::Result<DiskUsage> {
        self.disk.usage(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        self.disk.lock(path)
    }
}

struct WatchedFile {
    file: Box<dyn File>,
    path: PathBuf,
    purpose: Purpose,
    watch: Arc<Watch>,
}

impl File for WatchedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_vectored_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.file.write_vectored_at(slices, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.watch.fails(&self.path) {
            return Err(io::Error::other("the sync has failed, as a test wanted"));
        }
        if self.watch.lies_about(self.purpose) {
            // even a liar needs power to answer
            return self.file.len().map(drop);
        }
        self.file.sync_data()?;
        self.watch.count(self.purpose);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.file.allocate(offset, length)
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        self.file.punch_hole(offset, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_and_sync(disk: &WatchedDisk, path: &str) {
        let path = Path::new(path);
        disk.create_dir_all(path.parent().unwrap()).unwrap();
        let file = disk.open(path, OpenMode::CreateNew).unwrap();
        disk.sync_dir(path.parent().unwrap()).unwrap();
        file.write_at(b"content", 0).unwrap();
        file.sync_data().unwrap();
    }

    #[test]
    fn syncs_are_counted_by_what_they_are_for() {
        let disk = WatchedDisk::default();
        for path in ["/n/node/meta/wal/1", "/n/disk-2/seg/s-1.seg", "/n/disk-1/x", "/n/node/id"] {
            write_and_sync(&disk.boot(), path);
        }
        assert_eq!(disk.syncs(), Syncs { log: 1, shards: 2, other: 1 });
    }

    #[test]
    fn a_lie_loses_what_it_is_about_and_ends_with_the_cut() {
        let disk = WatchedDisk::default();
        disk.lie_about(Lie::Log);
        write_and_sync(&disk, "/n/wal/1");
        write_and_sync(&disk, "/n/disk-1/1");
        disk.cut(CutStyle::DropAll);
        let length = |path: &str| (&disk as &dyn Disk).read(Path::new(path)).unwrap().len();
        assert_eq!((length("/n/wal/1"), length("/n/disk-1/1")), (0, 7));
        write_and_sync(&disk, "/n/wal/2");
        disk.cut(CutStyle::DropAll);
        assert_eq!(length("/n/wal/2"), 7);
    }
}
