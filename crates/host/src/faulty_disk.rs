//! A disk that fails as real ones do: around any other disk, for tests.
//!
//! A [`Fault`] names what goes wrong, with which operations and how often. Faults are put in and taken out while the disk is
//! in use. What a power cut does is [`SimDisk`](crate::SimDisk)'s; the two go together.
//!
//! | fault | what happens |
//! |---|---|
//! | `Error` | the operation fails and has done nothing; after a failed sync the file fails for ever (in every handle) |
//! | `Short` | a write does its first half, then fails |
//! | `Lost` | a write or sync says that it is done, and is not: what is read there later is stale |
//! | `Misdirected` | a write goes to another place of the file |
//! | `Hang` | the operation waits until [`FaultyDisk::heal`], or the disk is removed |
//!
//! Removed and read-only disks are whole states, not faults of single operations: [`FaultyDisk::remove`],
//! [`FaultyDisk::remount_read_only`].

use crate::disk::{Disk, DiskUsage, File, OpenMode};
use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Reads bytes.
    Read,
    /// Writes bytes, changes a length, reserves or punches.
    Write,
    /// Syncs a file or a directory.
    Sync,
    /// Opens, lists, renames, removes, measures, locks.
    Name,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It fails with this kind and nothing is done.
    Error(io::ErrorKind),
    /// A write does half of it, and fails.
    Short,
    /// It says that it is done, and does nothing.
    Lost,
    /// A write goes so many bytes further.
    Misdirected(u64),
    /// It waits until [`FaultyDisk::heal`].
    Hang,
}

/// Something that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// With which operations.
    pub operation: Operation,
    /// Only with those whose path has this in it.
    pub path: String,
    /// So many go well before.
    pub after: u64,
    /// So many go wrong then; `None`: all.
    pub count: Option<u64>,
    /// How.
    pub trouble: Trouble,
}

impl Fault {
    /// All of these operations go wrong from now on.
    pub fn always(operation: Operation, trouble: Trouble) -> Self {
        Self { operation, path: String::new(), after: 0, count: None, trouble }
    }

    /// One of them goes wrong, after so many good ones.
    pub fn once(operation: Operation, trouble: Trouble, after: u64) -> Self {
        Self { after, count: Some(1), ..Self::always(operation, trouble) }
    }

    /// Only with paths that have this in them.
    #[must_use]
    pub fn on(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }
}

/// Another disk, with faults. A clone is the same one.
#[derive(Clone)]
pub struct FaultyDisk {
    disk: Arc<dyn Disk>,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    state: Mutex<State>,
    healed: Condvar,
}

#[derive(Default)]
struct State {
    faults: Vec<Fault>,
    is_removed: bool,
    is_read_only: bool,
    /// Files of which a sync failed.
    failed: BTreeSet<PathBuf>,
    done: [u64; 4],
    hanging: usize,
}

struct FaultyFile {
    file: Box<dyn File>,
    path: PathBuf,
    faults: Arc<Faults>,
}

impl std::fmt::Debug for FaultyDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FaultyDisk")
    }
}

impl FaultyDisk {
    /// Around another disk, still without a fault.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, faults: Arc::default() }
    }

    /// From now on this goes wrong too.
    pub fn add(&self, fault: Fault) {
        self.faults.state().faults.push(fault);
    }

    /// All operations fail from now on, as when the disk was pulled out.
    pub fn remove(&self) {
        let mut state = self.faults.state();
        state.is_removed = true;
        state.faults.retain(|fault| fault.trouble != Trouble::Hang);
        drop(state);
        self.faults.healed.notify_all();
    }

    /// All changes fail from now on.
    pub fn remount_read_only(&self) {
        self.faults.state().is_read_only = true;
    }

    /// Nothing goes wrong any more, and what hangs goes on. Files of which a sync failed stay so.
    pub fn heal(&self) {
        let mut state = self.faults.state();
        state.faults.clear();
        (state.is_removed, state.is_read_only) = (false, false);
        drop(state);
        self.faults.healed.notify_all();
    }

    /// How many operations of a kind have been asked for.
    pub fn asked(&self, operation: Operation) -> u64 {
        self.faults.state().done[operation as usize]
    }

    /// How many operations hang now.
    pub fn hanging(&self) -> usize {
        self.faults.state().hanging
    }
}

/// What is to be done with an operation that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Do,
    Skip,
    Half,
    Shift(u64),
}

impl Faults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what becomes of an operation. Waits, where it is to hang.
    fn judge(&self, operation: Operation, path: &Path) -> io::Result<Verdict> {
        let mut state = self.state();
        state.done[operation as usize] += 1;
        let mut trouble = state.trouble(operation, path);
        if trouble == Some(Trouble::Hang) {
            state.hanging += 1;
            while state.faults.iter().any(|fault| fault.trouble == Trouble::Hang) {
                state = self.healed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.hanging -= 1;
            trouble = None;
        }
        state.whole_disk(operation)?;
        if matches!(operation, Operation::Write | Operation::Sync) && state.failed.contains(path) {
            return Err(io::Error::other("an earlier sync of this file failed"));
        }
        match trouble {
            None | Some(Trouble::Hang) => Ok(Verdict::Do),
            Some(Trouble::Error(kind)) => {
                if operation == Operation::Sync {
                    state.failed.insert(path.to_owned());
                }
                Err(io::Error::new(kind, "the disk fails as it was told"))
            }
            Some(Trouble::Short) => Ok(Verdict::Half),
            Some(Trouble::Lost) => Ok(Verdict::Skip),
            Some(Trouble::Misdirected(bytes)) => Ok(Verdict::Shift(bytes)),
        }
    }

    /// As [`Faults::judge`], for operations that can only be done or fail.
    fn pass(&self, operation: Operation, path: &Path) -> io::Result<()> {
        self.judge(operation, path).map(drop)
    }
}

impl State {
    fn whole_disk(&self, operation: Operation) -> io::Result<()> {
        if self.is_removed {
            return Err(io::Error::other("the disk was removed"));
        }
        if self.is_read_only && operation == Operation::Write {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        Ok(())
    }

    fn trouble(&mut self, operation: Operation, path: &Path) -> Option<Trouble> {
        let name = path.to_string_lossy();
        let fitting =
            |fault: &&mut Fault| fault.operation == operation && name.contains(&fault.path);
        for fault in self.faults.iter_mut().filter(fitting) {
            if fault.after > 0 {
                fault.after -= 1;
                continue;
            }
            match &mut fault.count {
                None => return Some(fault.trouble),
                Some(0) => {}
                Some(left) => {
                    *left -= 1;
                    return Some(fault.trouble);
                }
            }
        }
        None
    }
}

impl FaultyDisk {
    fn pass(&self, operation: Operation, path: &Path) -> io::Result<()> {
        self.faults.pass(operation, path)
    }

    /// A change of names is a write too.
    fn change(&self, path: &Path) -> io::Result<()> {
        self.pass(Operation::Name, path)?;
        self.faults.state().whole_disk(Operation::Write)
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>> {
        match mode {
            OpenMode::Read => self.pass(Operation::Name, path)?,
            OpenMode::ReadWrite | OpenMode::CreateNew | OpenMode::Direct => self.change(path)?,
        }
        let file = self.disk.open(path, mode)?;
        Ok(Box::new(FaultyFile { file, path: path.to_owned(), faults: Arc::clone(&self.faults) }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.change(path)?;
        self.disk.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.pass(Operation::Name, path)?;
        self.disk.list(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(from)?;
        self.disk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.change(path)?;
        self.disk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.change(path)?;
        self.disk.remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        match self.faults.judge(Operation::Sync, path)? {
            Verdict::Skip => Ok(()),
            Verdict::Do | Verdict::Half | Verdict::Shift(_) => self.disk.sync_dir(path),
        }
    }

    fn exists(&self, path: &Path) -> bool {
        self.pass(Operation::Name, path).is_ok() && self.disk.exists(path)
    }

    fn usage(&self, path: &Path) -> io::Result<DiskUsage> {
        self.pass(Operation::Name, path)?;
        self.disk.usage(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        self.change(path)?;
        self.disk.lock(path)
    }
}

impl FaultyFile {
    fn pass(&self, operation: Operation) -> io::Result<()> {
        self.faults.pass(operation, &self.path)
    }
}

impl File for FaultyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.pass(Operation::Read)?;
        self.file.read_at(buffer, offset)
    }

    fn write_vectored_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        match self.faults.judge(Operation::Write, &self.path)? {
            Verdict::Do => self.file.write_vectored_at(slices, offset),
            Verdict::Skip => Ok(()),
            Verdict::Shift(bytes) => self.file.write_vectored_at(slices, offset + bytes),
            Verdict::Half => {
                let bytes = slices.iter().flat_map(|slice| slice.to_vec()).collect::<Vec<u8>>();
                self.file.write_at(&bytes[..bytes.len() / 2], offset)?;
                Err(io::Error::other("the disk wrote half of it"))
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.faults.judge(Operation::Sync, &self.path)? {
            Verdict::Skip => Ok(()),
            Verdict::Do | Verdict::Half | Verdict::Shift(_) => self.file.sync_data(),
        }
    }

    fn len(&self) -> io::Result<u64> {
        self.pass(Operation::Name)?;
        self.file.len()
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.pass(Operation::Write)?;
        self.file.set_len(length)
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.pass(Operation::Write)?;
        self.file.allocate(offset, length)
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        self.pass(Operation::Write)?;
        self.file.punch_hole(offset, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SimDisk;

    fn path() -> &'static Path {
        Path::new("/d/file")
    }

    fn disk_with_file() -> (FaultyDisk, Box<dyn File>) {
        let disk = FaultyDisk::new(Arc::new(SimDisk::new()));
        disk.create_dir_all(Path::new("/d")).expect("makes");
        let file = disk.open(path(), OpenMode::CreateNew).expect("makes");
        (disk, file)
    }

    fn content(disk: &FaultyDisk) -> Vec<u8> {
        (disk as &dyn Disk).read(path()).expect("reads")
    }

    #[test]
    fn an_error_comes_when_it_was_told_to_and_only_there() {
        let (disk, file) = disk_with_file();
        let error = Trouble::Error(io::ErrorKind::Other);
        disk.add(Fault::once(Operation::Write, error, 1));
        disk.add(Fault::always(Operation::Read, error).on("elsewhere"));
        file.write_at(b"a", 0).expect("the first is good");
        file.write_at(b"b", 1).expect_err("the second is not");
        file.write_at(b"c", 1).expect("the third is good again");
        assert_eq!(content(&disk), b"ac");
    }

    #[test]
    fn a_file_whose_sync_failed_takes_no_more_through_any_handle() {
        let (disk, file) = disk_with_file();
        disk.add(Fault::once(Operation::Sync, Trouble::Error(io::ErrorKind::Other), 0));
        file.write_at(b"a", 0).expect("writes");
        file.sync_data().expect_err("it was told to fail");
        file.sync_data().expect_err("no retry succeeds");
        disk.heal();
        let other = disk.open(path(), OpenMode::ReadWrite).expect("opens");
        other.write_at(b"b", 0).expect_err("it takes no more");
        assert_eq!(content(&disk), b"a");
    }

    #[test]
    fn short_lost_and_misdirected_writes_do_what_they_are_called() {
        for (trouble, is_told, left) in [
            (Trouble::Short, true, b"newold".as_slice()),
            (Trouble::Lost, false, b"oldold"),
            (Trouble::Misdirected(2), false, b"olnewnew"),
        ] {
            let (disk, file) = disk_with_file();
            file.write_at(b"oldold", 0).expect("writes");
            disk.add(Fault::once(Operation::Write, trouble, 0));
            assert_eq!(file.write_at(b"newnew", 0).is_err(), is_told, "{trouble:?}");
            assert_eq!(content(&disk), left, "{trouble:?}");
        }
    }

    #[test]
    fn what_hangs_goes_on_when_the_disk_is_healed_and_fails_when_it_is_removed() {
        for is_removed in [false, true] {
            let (disk, file) = disk_with_file();
            disk.add(Fault::always(Operation::Write, Trouble::Hang));
            let written = std::thread::scope(|scope| {
                let writing = scope.spawn(|| file.write_at(b"a", 0));
                while disk.hanging() == 0 {
                    std::thread::yield_now();
                }
                if is_removed {
                    disk.remove();
                } else {
                    disk.heal();
                }
                writing.join().expect("nobody panics")
            });
            assert_eq!(written.is_err(), is_removed);
        }
    }

    #[test]
    fn a_removed_disk_fails_everything_and_a_read_only_one_every_change() {
        let (disk, file) = disk_with_file();
        file.write_at(b"a", 0).expect("writes");
        disk.remount_read_only();
        let refused = file.write_at(b"b", 0).expect_err("it is read-only");
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
        disk.open(path(), OpenMode::ReadWrite).map(drop).expect_err("nor is it opened");
        assert_eq!(content(&disk), b"a");
        disk.remove();
        disk.open(path(), OpenMode::Read).map(drop).expect_err("it is not there");
        file.read_at(&mut [0], 0).expect_err("it is not there");
        assert!(!disk.exists(path()) && disk.usage(path()).is_err());
    }
}
