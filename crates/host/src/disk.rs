//! Files: synchronous, because those who use them are threads of their own (or simulated steps).
//!
//! What a caller may rely on: a write is on stable storage once [`File::sync_data`] has returned after it; a created,
//! renamed or removed name once [`Disk::sync_dir`] has returned. Nothing else is promised, and `SimDisk` takes
//! everything else away at a cut.

use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// It must exist.
    Read,
    /// It must exist; read and written in place.
    ReadWrite,
    /// It must not exist; read and written.
    CreateNew,
    /// As `ReadWrite`, past the page cache: buffers, offsets and lengths are multiples of 4 KiB.
    Direct,
}

/// Room on the file system of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUsage {
    /// All of it.
    pub total_bytes: u64,
    /// What is free for us.
    pub free_bytes: u64,
}

/// A file.
pub trait File: Send + Sync {
    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `slices`, one after another, at `offset`.
    fn write_vectored_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Waits until the content and the length are on stable storage. After an error the file takes no more writes.
    fn sync_data(&self) -> io::Result<()>;
    /// Its length.
    fn len(&self) -> io::Result<u64>;
    /// Whether it is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends it, with zeroes.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Reserves blocks, and extends it.
    fn allocate(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Gives blocks back; they read as zeroes.
    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_vectored_at(&[IoSlice::new(bytes)], offset)
    }

    /// Reads exactly `buffer.len()` bytes at `offset`.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read_at(&mut buffer[done..], offset + done as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => done += count,
            }
        }
        Ok(())
    }
}

/// A file system.
pub trait Disk: Send + Sync {
    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>>;
    /// Creates a file that nobody but its owner may read.
    fn create_private(&self, path: &Path) -> io::Result<Box<dyn File>> {
        self.open(path, OpenMode::CreateNew)
    }
    /// Makes a directory and those above it, durably.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// The paths in a directory, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
    /// Gives a file another name, replacing what is there. Durable after [`Disk::sync_dir`] on both directories.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Durable after [`Disk::sync_dir`].
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and all in it. Not durable by itself.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Waits until the names in a directory are on stable storage.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Whether something has this path.
    fn exists(&self, path: &Path) -> bool;
    /// Room on the file system of `path`.
    fn usage(&self, path: &Path) -> io::Result<DiskUsage>;
    /// How much longer the calls since the last such question would have taken: of a real disk, no longer than they have.
    fn lag(&self) -> Duration {
        Duration::ZERO
    }
    /// Takes an exclusive lock that dies with the process; held until the value is dropped. May block for two seconds: a
    /// process that was killed a moment ago holds its locks until the kernel has taken it down.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>>;
}

impl dyn Disk {
    /// The whole content of a small file.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open(path, OpenMode::Read)?;
        let length = usize::try_from(file.len()?).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Replaces a small file: after a power cut it has the old content or the new one. Durable when it returns.
    pub fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.replace_with(path, bytes, |fresh| self.open(fresh, OpenMode::CreateNew))
    }

    /// As `replace`, for what nobody but the owner may read.
    pub fn replace_private(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.replace_with(path, bytes, |fresh| self.create_private(fresh))
    }

    fn replace_with(
        &self,
        path: &Path,
        bytes: &[u8],
        create: impl FnOnce(&Path) -> io::Result<Box<dyn File>>,
    ) -> io::Result<()> {
        let fresh = path.with_extension("new");
        if self.exists(&fresh) {
            self.remove_file(&fresh)?;
        }
        let file = create(&fresh)?;
        if let Err(error) = file.write_at(bytes, 0).and_then(|()| file.sync_data()) {
            // a half file keeps no room; one that cannot be removed is removed by the next replacement
            drop(self.remove_file(&fresh));
            return Err(error);
        }
        self.rename(&fresh, path)?;
        self.sync_dir(path.parent().unwrap_or_else(|| Path::new("/")))
    }
}

/// So many slices one call of the system takes.
const SLICES_MAX: usize = 1024;
/// Together the two seconds that [`Disk::lock`] waits.
const LOCK_TRIES_MAX: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The machine's file systems.
#[derive(Debug, Clone, Copy)]
pub struct RealDisk;

struct RealFile(std::fs::File);

impl Disk for RealDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>> {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(mode != OpenMode::Read).create_new(mode == OpenMode::CreateNew);
        if mode == OpenMode::Direct {
            options.custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed());
        }
        Ok(Box::new(RealFile(options.open(path)?)))
    }

    fn create_private(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let mut options = std::fs::OpenOptions::new();
        Ok(Box::new(RealFile(
            options.read(true).write(true).create_new(true).mode(0o600).open(path)?,
        )))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            self.create_dir_all(parent)?;
        }
        match std::fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => self.sync_dir(
                path.parent()
                    .filter(|p| !p.as_os_str().is_empty())
                    .unwrap_or_else(|| Path::new(".")),
            ),
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut paths = std::fs::read_dir(path)?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<Vec<PathBuf>>>()?;
        paths.sort();
        Ok(paths)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::File::open(path)?.sync_all()
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn usage(&self, path: &Path) -> io::Result<DiskUsage> {
        let facts = rustix::fs::statvfs(path)?;
        Ok(DiskUsage {
            total_bytes: facts.f_blocks * facts.f_frsize,
            free_bytes: facts.f_bavail * facts.f_frsize,
        })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let file =
            std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        let mut tries = 0;
        while let Err(error) =
            rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        {
            if error != rustix::io::Errno::WOULDBLOCK || tries == LOCK_TRIES_MAX {
                return Err(error.into());
            }
            tries += 1;
            std::thread::sleep(LOCK_PAUSE);
        }
        Ok(Box::new(file))
    }
}

impl RealFile {
    /// Writes what one call takes, and how many bytes that were.
    fn write_group(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<u64> {
        let expected: u64 = slices.iter().map(|slice| slice.len() as u64).sum();
        let written = rustix::io::pwritev(&self.0, slices, offset)? as u64;
        // a short write: the rest goes piece by piece
        let (mut skip, mut at) = (written, offset + written);
        for slice in slices.iter().filter(|_| written < expected) {
            let length = slice.len() as u64;
            if skip >= length {
                skip -= length;
                continue;
            }
            let start = usize::try_from(skip).map_err(io::Error::other)?;
            self.0.write_all_at(&slice[start..], at)?;
            at += length - skip;
            skip = 0;
        }
        Ok(expected)
    }
}

impl File for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn write_vectored_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for group in slices.chunks(SLICES_MAX) {
            at += self.write_group(group, at)?;
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), offset, length)?)
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.0, flags, offset, length)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_waited_for_while_its_holder_is_taken_down_and_refused_while_it_lives() {
        let dir = tempfile::tempdir().expect("makes");
        let path = dir.path().join("lock");
        let held = RealDisk.lock(&path).expect("is free");
        let refused = RealDisk.lock(&path).err().map(|error| error.kind());
        assert_eq!(refused, Some(io::ErrorKind::WouldBlock));
        let (dying, waiting) = (std::sync::Mutex::new(Some(held)), std::sync::Barrier::new(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                waiting.wait();
                drop(dying.lock().expect("nobody panics").take());
            });
            waiting.wait();
            RealDisk.lock(&path).expect("is free in a moment");
        });
    }
}
