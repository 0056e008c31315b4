//! How a machine's disk behaves: how long it takes, and whether it lies about its syncs.

use crate::disk::{Disk, DiskUsage, File, OpenMode};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a disk takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskPace {
    /// A read or a write.
    pub call: Duration,
    /// A sync.
    pub sync: Duration,
    /// Read or written.
    pub bytes_per_ms: u64,
}

impl Default for DiskPace {
    /// A good SSD.
    fn default() -> Self {
        Self {
            call: Duration::from_micros(20),
            sync: Duration::from_micros(300),
            bytes_per_ms: 500_000,
        }
    }
}

/// The behaviour of one disk, for as long as the machine exists. A clone is the same.
#[derive(Debug, Clone, Default)]
pub struct DiskConduct(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    pace: DiskPace,
    owed: Duration,
    /// What was owed, and has been waited for or still is.
    told: Duration,
    lies_about: Option<&'static str>,
    lies: u64,
}

impl DiskConduct {
    /// From now on it takes so long.
    pub fn set_pace(&self, pace: DiskPace) {
        self.state().pace = pace;
    }

    /// From now on syncs of files below a directory whose name begins like this do nothing, and answer with success.
    pub fn lie_about(&self, directory: Option<&'static str>) {
        self.state().lies_about = directory;
    }

    /// How long all calls together have taken. One that has begun on a slow disk ends late, however fast that is by then.
    pub fn taken(&self) -> Duration {
        self.state().told
    }

    /// How many lies were told.
    pub fn lies(&self) -> u64 {
        self.state().lies
    }

    /// The disk `inner`, behaving like this.
    pub(super) fn of(&self, inner: Arc<dyn Disk>) -> Arc<dyn Disk> {
        Arc::new(ConductedDisk { inner, conduct: self.clone() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owe_call(&self, bytes: usize) {
        let mut state = self.state();
        let span = Duration::from_micros(bytes as u64 * 1_000 / state.pace.bytes_per_ms.max(1));
        let owed = state.pace.call + span;
        state.owed += owed;
    }

    /// Whether a sync of `path` is a lie.
    fn is_lie(&self, path: &Path) -> bool {
        let mut state = self.state();
        let owed = state.pace.sync;
        state.owed += owed;
        let Some(about) = state.lies_about else { return false };
        let is_lie = path.iter().filter_map(|part| part.to_str()).any(|p| p.starts_with(about));
        state.lies += u64::from(is_lie);
        is_lie
    }
}

struct ConductedDisk {
    inner: Arc<dyn Disk>,
    conduct: DiskConduct,
}

impl Disk for ConductedDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>> {
        let inner = self.inner.open(path, mode)?;
        let (path, conduct) = (path.to_owned(), self.conduct.clone());
        Ok(Box::new(ConductedFile { inner, path, conduct }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.inner.list(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.sync_dir(path)
    }

    fn exists(&self, path: &Path) -> bool {
        self.inner.exists(path)
    }

    fn usage(&self, path: &Path) -> io::Result<DiskUsage> {
        self.inner.usage(path)
    }

    fn lag(&self) -> Duration {
        let mut state = self.conduct.state();
        let owed = std::mem::take(&mut state.owed);
        state.told += owed;
        owed
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        self.inner.lock(path)
    }
}

struct ConductedFile {
    inner: Box<dyn File>,
    path: PathBuf,
    conduct: DiskConduct,
}

impl File for ConductedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.conduct.owe_call(buffer.len());
        self.inner.read_at(buffer, offset)
    }

    fn write_vectored_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.conduct.owe_call(slices.iter().map(|slice| slice.len()).sum());
        self.inner.write_vectored_at(slices, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.conduct.is_lie(&self.path) {
            // even a liar needs power to answer
            return self.inner.len().map(drop);
        }
        self.inner.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.inner.set_len(length)
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.inner.allocate(offset, length)
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        self.inner.punch_hole(offset, length)
    }
}
