//! A file system in memory that forgets what was not synced.
//!
//! Each file is what is durable, and the writes since; each directory has the names that are durable, and those now.
//! [`SimDisk::cut`] is the power cut: it drops, keeps or tears the un-synced writes, and names likewise; whatever old
//! handles still try fails, and so does all that goes through a [`SimDisk::boot`] of before.
//!
//! It is stricter than any real file system where those differ: a synced file whose name was not synced is gone after
//! a cut. Directories themselves are durable when made. Reordering is covered by the torn style: each write, and each
//! name, has its own fate. All fates of a moment, one by one, are given by [`Moment`].

mod moment;

pub use moment::{Moment, sets_of_pieces};

use crate::disk::{Disk, DiskUsage, File, OpenMode};
use crate::random::{Random, SeededRandom};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;
/// What a file system gives and takes back.
const PAGE_BYTES: usize = 4096;

/// What a cut does to what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutStyle {
    /// All of it is gone.
    DropAll,
    /// All of it is there, as after `kill -9`.
    KeepAll,
    /// Each write is kept, dropped, or torn into sectors; each name is kept or dropped.
    Torn {
        /// Decides all of it.
        seed: u64,
    },
}

/// The disk. A clone is the same disk.
#[derive(Clone)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
    /// Only of this life; `None`: of every one.
    life: Option<u64>,
}

#[derive(Default)]
struct Inner {
    /// Counts the cuts.
    life: u64,
    next_file: u64,
    contents: BTreeMap<u64, Content>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    directories: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    capacity_bytes: Option<u64>,
    syncs: u64,
    bytes_written: u64,
    syncs_until_failure: Option<u64>,
    steps_until_cut: Option<(u64, CutStyle)>,
    /// The file that was changed last.
    changed: Option<u64>,
    /// How it was before each step, where somebody wants to know.
    moments: Option<Vec<Moment>>,
}

#[derive(Clone, Default)]
struct Content {
    durable: Image,
    now: Image,
    /// What was done since the last sync, in order.
    pending: Vec<Change>,
    /// A sync failed: it takes no more writes.
    failed: bool,
}

/// The bytes of a file, and the pages of it that take no room.
#[derive(Clone, Default)]
struct Image {
    /// Shared with the moments that were kept: copied when one of them changes.
    bytes: Arc<Vec<u8>>,
    holes: BTreeSet<usize>,
}

#[derive(Clone)]
enum Change {
    Write { offset: usize, bytes: Bytes },
    Length(usize),
    Punch { offset: usize, count: usize },
}

struct SimFile {
    disk: SimDisk,
    id: u64,
    life: u64,
    writable: bool,
}

struct SimLock {
    inner: Arc<Mutex<Inner>>,
    path: PathBuf,
    life: u64,
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimDisk")
    }
}

impl SimDisk {
    /// An empty disk without bounds.
    pub fn new() -> Self {
        let mut inner = Inner::default();
        inner.directories.insert(PathBuf::from("/"));
        Self { inner: Arc::new(Mutex::new(inner)), life: None }
    }

    /// The same disk as one life of a node sees it: after the next cut everything through this handle fails, so that a
    /// thread left over from before the cut changes nothing.
    #[must_use]
    pub fn boot(&self) -> Self {
        let life = self.state().life;
        Self { inner: Arc::clone(&self.inner), life: Some(life) }
    }

    /// The power cut.
    pub fn cut(&self, style: CutStyle) {
        self.state().cut(style);
    }

    /// The power is cut instead of the change or sync after the next `good` ones: so a test meets every moment.
    pub fn cut_after(&self, good: u64, style: CutStyle) {
        self.state().steps_until_cut = Some((good, style));
    }

    /// Of the syncs from now on, the one after `good` good ones fails, and its file takes no more writes.
    pub fn fail_sync_after(&self, good: u64) {
        self.state().syncs_until_failure = Some(good);
    }

    /// Writes that would bring all files together beyond this fail with "no space left".
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity_bytes = bytes;
    }

    /// Syncs of files that succeeded.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// Bytes written into files.
    pub fn bytes_written(&self) -> u64 {
        self.state().bytes_written
    }

    /// Changes a stored byte, durable and current: bit rot.
    pub fn flip(&self, path: &Path, offset: u64) -> io::Result<()> {
        let mut inner = self.state();
        let content = inner.content(path)?;
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        for image in [&mut content.durable, &mut content.now] {
            if let Some(byte) = Arc::make_mut(&mut image.bytes).get_mut(at) {
                *byte ^= 0xff;
            }
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk, unless the power has been cut for this handle.
    fn powered(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let inner = self.state();
        match self.life {
            Some(life) if life != inner.life => Err(no_power()),
            _ => Ok(inner),
        }
    }
}

fn no_power() -> io::Error {
    io::Error::other("the power was cut")
}

fn end_of(offset: usize, count: u64) -> io::Result<usize> {
    let count = usize::try_from(count).map_err(io::Error::other)?;
    offset.checked_add(count).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Inner {
    fn content(&mut self, path: &Path) -> io::Result<&mut Content> {
        let id = *self.names.get(path).ok_or_else(not_found)?;
        self.contents.get_mut(&id).ok_or_else(not_found)
    }

    fn cut(&mut self, style: CutStyle) {
        self.life += 1;
        self.locks.clear();
        self.syncs_until_failure = None;
        self.steps_until_cut = None;
        self.settle(&mut Dice::new(style));
    }

    /// What was not synced meets its fate: contents first, so that what they are asked does not depend on the names.
    fn settle(&mut self, fate: &mut dyn Fate) {
        self.forget_nameless();
        for content in self.contents.values_mut() {
            content.settle(fate);
        }
        self.settle_names(fate);
        self.forget_nameless();
    }

    fn forget_nameless(&mut self) {
        let names = self.names.values().chain(self.durable_names.values());
        let named: BTreeSet<u64> = names.copied().collect();
        self.contents.retain(|id, _| named.contains(id));
    }

    /// Counts something that a cut may come before.
    fn step(&mut self) -> io::Result<()> {
        if self.moments.is_some() {
            let now = Moment::of(self);
            self.moments.get_or_insert_default().push(now);
        }
        match &mut self.steps_until_cut {
            None => Ok(()),
            Some((0, style)) => {
                let style = *style;
                self.cut(style);
                Err(no_power())
            }
            Some((good, _)) => {
                *good -= 1;
                Ok(())
            }
        }
    }

    fn used_bytes(&self) -> u64 {
        let named: BTreeSet<&u64> = self.names.values().collect();
        let sizes = named.into_iter().filter_map(|id| self.contents.get(id));
        sizes.map(|content| content.now.used_bytes()).sum()
    }

    /// Each name is as it was synced, or as it is now.
    fn settle_names(&mut self, fate: &mut dyn Fate) {
        let all: BTreeSet<PathBuf> =
            self.names.keys().chain(self.durable_names.keys()).cloned().collect();
        for path in all {
            let (now, durable) = (self.names.get(&path), self.durable_names.get(&path));
            if now != durable && fate.keeps() {
                match now.copied() {
                    Some(id) => self.durable_names.insert(path, id),
                    None => self.durable_names.remove(&path),
                };
            }
        }
        self.names = self.durable_names.clone();
    }
}

impl Image {
    fn used_bytes(&self) -> u64 {
        (self.bytes.len() - (self.holes.len() * PAGE_BYTES).min(self.bytes.len())) as u64
    }

    /// How much more room it takes once `offset..end` is filled.
    fn growth(&self, offset: usize, end: usize) -> u64 {
        let filled = self.holes.range(offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES)).count();
        (filled * PAGE_BYTES + end.saturating_sub(self.bytes.len())) as u64
    }

    /// Whether nothing but zeroes stands there; so it is behind the end.
    fn is_blank(&self, offset: usize, end: usize) -> bool {
        let length = self.bytes.len();
        self.bytes[offset.min(length)..end.min(length)].iter().all(|byte| *byte == 0)
    }

    fn fill(&mut self, offset: usize, end: usize) {
        for page in offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES) {
            self.holes.remove(&page);
        }
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { offset, bytes } => {
                let end = offset + bytes.len();
                let known = Arc::make_mut(&mut self.bytes);
                if known.len() < end {
                    known.resize(end, 0);
                }
                known[*offset..end].copy_from_slice(bytes);
                self.fill(*offset, end);
            }
            Change::Length(length) => {
                Arc::make_mut(&mut self.bytes).resize(*length, 0);
                self.holes.retain(|page| page * PAGE_BYTES < *length);
            }
            Change::Punch { offset, count } => {
                let end = (offset + count).min(self.bytes.len());
                if *offset < end {
                    Arc::make_mut(&mut self.bytes)[*offset..end].fill(0);
                    self.holes.extend(offset.div_ceil(PAGE_BYTES)..end / PAGE_BYTES);
                }
            }
        }
    }
}

impl Content {
    fn change(&mut self, change: Change) {
        self.now.apply(&change);
        self.pending.push(change);
    }

    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            self.durable.apply(&change);
        }
    }

    fn settle(&mut self, fate: &mut dyn Fate) {
        let mut kept = Vec::new();
        for change in self.pending.drain(..) {
            match change {
                Change::Write { offset, bytes } => {
                    tear(&self.durable, offset, &bytes, fate, &mut kept);
                }
                Change::Punch { offset, count } => tear_punch(offset, count, fate, &mut kept),
                length @ Change::Length(_) if fate.keeps() => kept.push(length),
                Change::Length(_) => {}
            }
        }
        for change in kept {
            self.durable.apply(&change);
        }
        self.now.clone_from(&self.durable);
        self.failed = false;
    }
}

/// Decides what survives.
trait Fate {
    /// Whether the next thing, or piece of one, is kept.
    fn keeps(&mut self) -> bool;
    /// Whether the next write, or hole, is kept or dropped piece by piece.
    fn splits(&mut self) -> bool;
}

/// The fate that a style throws.
struct Dice {
    style: CutStyle,
    random: SeededRandom,
}

impl Dice {
    fn new(style: CutStyle) -> Self {
        let seed = match style {
            CutStyle::Torn { seed } => seed,
            CutStyle::DropAll | CutStyle::KeepAll => 0,
        };
        Self { style, random: SeededRandom::new(seed) }
    }
}

impl Fate for Dice {
    fn keeps(&mut self) -> bool {
        match self.style {
            CutStyle::DropAll => false,
            CutStyle::KeepAll => true,
            CutStyle::Torn { .. } => self.random.next_u64().is_multiple_of(2),
        }
    }

    fn splits(&mut self) -> bool {
        matches!(self.style, CutStyle::Torn { .. }) && self.random.next_u64().is_multiple_of(3)
    }
}

/// Kept, dropped, or page by page one or the other.
fn tear_punch(offset: usize, count: usize, fate: &mut dyn Fate, kept: &mut Vec<Change>) {
    if !fate.splits() {
        if fate.keeps() {
            kept.push(Change::Punch { offset, count });
        }
        return;
    }
    let (mut from, end) = (offset, offset + count);
    while from < end {
        let until = ((from / PAGE_BYTES + 1) * PAGE_BYTES).min(end);
        if fate.keeps() {
            kept.push(Change::Punch { offset: from, count: until - from });
        }
        from = until;
    }
}

/// Kept, dropped, or sector by sector one or the other.
fn tear(before: &Image, offset: usize, bytes: &Bytes, fate: &mut dyn Fate, kept: &mut Vec<Change>) {
    if !fate.splits() {
        if fate.keeps() {
            kept.push(Change::Write { offset, bytes: bytes.clone() });
        }
        return;
    }
    for piece in pieces(before, offset, bytes) {
        if fate.keeps() {
            let offset = offset + piece.start;
            kept.push(Change::Write { offset, bytes: bytes.slice(piece) });
        }
    }
}

/// The sectors of a write. Zeroes over zeroes are one piece, however many sectors: each part of it reads the same.
fn pieces(before: &Image, offset: usize, bytes: &[u8]) -> Vec<Range<usize>> {
    let mut pieces: Vec<Range<usize>> = Vec::new();
    let (mut from, mut was_blank) = (0, false);
    while from < bytes.len() {
        let to_boundary = SECTOR_BYTES - (offset + from) % SECTOR_BYTES;
        let until = (from + to_boundary).min(bytes.len());
        let is_blank = bytes[from..until].iter().all(|byte| *byte == 0)
            && before.is_blank(offset + from, offset + until);
        match pieces.last_mut().filter(|_| is_blank && was_blank) {
            Some(last) => last.end = until,
            None => pieces.push(from..until),
        }
        (from, was_blank) = (until, is_blank);
    }
    pieces
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>> {
        let mut inner = self.powered()?;
        let found = inner.names.get(path).copied();
        let id = match (found, mode) {
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(id), _) => id,
            (None, OpenMode::CreateNew) => {
                inner.step()?;
                if !path.parent().is_some_and(|parent| inner.directories.contains(parent)) {
                    return Err(not_found());
                }
                inner.next_file += 1;
                let id = inner.next_file;
                inner.contents.insert(id, Content::default());
                inner.names.insert(path.to_owned(), id);
                id
            }
            (None, _) => return Err(not_found()),
        };
        let (life, writable) = (inner.life, mode != OpenMode::Read);
        drop(inner);
        Ok(Box::new(SimFile { disk: self.clone(), id, life, writable }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.powered()?;
        inner.directories.extend(path.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let inner = self.powered()?;
        if !inner.directories.contains(path) {
            return Err(not_found());
        }
        let inside = |name: &&PathBuf| name.parent() == Some(path);
        let names: BTreeSet<PathBuf> =
            inner.names.keys().chain(&inner.directories).filter(inside).cloned().collect();
        Ok(names.into_iter().collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.powered()?;
        inner.step()?;
        let id = inner.names.remove(from).ok_or_else(not_found)?;
        inner.names.insert(to.to_owned(), id);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.powered()?;
        inner.step()?;
        inner.names.remove(path).map(drop).ok_or_else(not_found)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.powered()?;
        inner.names.retain(|name, _| !name.starts_with(path));
        inner.directories.retain(|name| !name.starts_with(path));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.powered()?;
        inner.step()?;
        let inside = |name: &Path| name.parent() == Some(path);
        inner.durable_names.retain(|name, _| !inside(name));
        let now: Vec<_> = inner
            .names
            .iter()
            .filter(|(name, _)| inside(name))
            .map(|(name, id)| (name.clone(), *id))
            .collect();
        inner.durable_names.extend(now);
        Ok(())
    }

    fn exists(&self, path: &Path) -> bool {
        self.powered()
            .is_ok_and(|inner| inner.names.contains_key(path) || inner.directories.contains(path))
    }

    fn usage(&self, _path: &Path) -> io::Result<DiskUsage> {
        let inner = self.powered()?;
        let total_bytes = inner.capacity_bytes.unwrap_or(1 << 40);
        Ok(DiskUsage { total_bytes, free_bytes: total_bytes.saturating_sub(inner.used_bytes()) })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let mut inner = self.powered()?;
        if !inner.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let life = inner.life;
        drop(inner);
        Ok(Box::new(SimLock { inner: Arc::clone(&self.inner), path: path.to_owned(), life }))
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.life == self.life {
            inner.locks.remove(&self.path);
        }
    }
}

impl SimFile {
    /// Does `work` on the content, unless the power has been cut since it was opened.
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.disk.state();
        if inner.life != self.life {
            return Err(no_power());
        }
        work(&mut inner)
    }

    /// Changes the content, after which `offset..end` takes room.
    fn change(
        &self,
        offset: usize,
        end: usize,
        change: impl FnOnce(&mut Content),
    ) -> io::Result<()> {
        self.with(|inner| {
            if !self.writable {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            inner.step()?;
            let used = inner.used_bytes();
            let capacity = inner.capacity_bytes.unwrap_or(u64::MAX);
            let content = inner.contents.get_mut(&self.id).ok_or_else(not_found)?;
            if content.failed {
                return Err(io::Error::other("an earlier sync of this file failed"));
            }
            let growth = content.now.growth(offset, end);
            if growth > 0 && used + growth > capacity {
                return Err(io::ErrorKind::StorageFull.into());
            }
            change(content);
            inner.changed = Some(self.id);
            Ok(())
        })
    }
}

impl File for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|inner| {
            let content = inner.contents.get(&self.id).ok_or_else(not_found)?;
            let bytes = &content.now.bytes;
            let from = usize::try_from(offset).map_err(io::Error::other)?.min(bytes.len());
            let count = buffer.len().min(bytes.len() - from);
            buffer[..count].copy_from_slice(&bytes[from..from + count]);
            Ok(count)
        })
    }

    fn write_vectored_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        let count = bytes.len() as u64;
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let change = Change::Write { offset, bytes: bytes.into() };
        self.change(offset, end_of(offset, count)?, |content| content.change(change))?;
        self.with(|inner| {
            inner.bytes_written += count;
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|inner| {
            inner.step()?;
            let fails = inner.syncs_until_failure == Some(0);
            inner.syncs_until_failure =
                inner.syncs_until_failure.and_then(|good| good.checked_sub(1));
            let content = inner.contents.get_mut(&self.id).ok_or_else(not_found)?;
            if fails || content.failed {
                content.failed = true;
                return Err(io::Error::other("the disk could not sync"));
            }
            content.sync();
            inner.syncs += 1;
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|inner| {
            Ok(inner.contents.get(&self.id).ok_or_else(not_found)?.now.bytes.len() as u64)
        })
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let count = usize::try_from(length).map_err(io::Error::other)?;
        self.change(count, count, |content| content.change(Change::Length(count)))
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let end = end_of(offset, length)?;
        self.change(offset, end, |content| {
            if content.now.bytes.len() < end {
                content.change(Change::Length(end));
            }
            content.now.fill(offset, end);
        })
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let count = usize::try_from(length).map_err(io::Error::other)?;
        self.change(0, 0, |content| content.change(Change::Punch { offset, count }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path() -> &'static Path {
        Path::new("/d/file")
    }

    fn disk_with_file() -> (SimDisk, Box<dyn File>) {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/d")).unwrap();
        let file = disk.open(path(), OpenMode::CreateNew).unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        (disk, file)
    }

    fn content(disk: &SimDisk) -> Vec<u8> {
        (disk as &dyn Disk).read(path()).unwrap()
    }

    #[test]
    fn a_cut_keeps_what_was_synced_and_treats_the_rest_by_its_style() {
        for (style, expected) in
            [(CutStyle::DropAll, b"old".as_slice()), (CutStyle::KeepAll, b"oldnew")]
        {
            let (disk, file) = disk_with_file();
            file.write_at(b"old", 0).unwrap();
            file.sync_data().unwrap();
            file.write_at(b"new", 3).unwrap();
            assert_eq!(content(&disk), b"oldnew");
            disk.cut(style);
            assert_eq!(content(&disk), expected);
            assert!(file.write_at(b"x", 0).is_err(), "the handle died with the power");
            let again = disk.open(path(), OpenMode::ReadWrite).unwrap();
            again.write_at(b"x", 0).unwrap();
        }
    }

    #[test]
    fn a_torn_write_keeps_whole_sectors_and_all_three_fates_occur() {
        let mut fates = BTreeSet::new();
        for seed in 0..64 {
            let (disk, file) = disk_with_file();
            file.write_at(&[1; 4096], 0).unwrap();
            file.sync_data().unwrap();
            file.write_at(&[2; 4096], 0).unwrap();
            disk.cut(CutStyle::Torn { seed });
            let bytes = content(&disk);
            for sector in bytes.chunks(SECTOR_BYTES) {
                assert!(sector.iter().all(|byte| *byte == sector[0]));
            }
            let kept = bytes.iter().filter(|byte| **byte == 2).count();
            fates.insert(match kept {
                0 => "dropped",
                4096 => "kept",
                _ => "torn",
            });
        }
        assert_eq!(fates.len(), 3);
    }

    #[test]
    fn a_name_is_durable_after_sync_dir_and_not_before() {
        let (disk, _file) = disk_with_file();
        let second = Path::new("/d/second");
        disk.open(second, OpenMode::CreateNew).unwrap().sync_data().unwrap();
        disk.remove_file(path()).unwrap();
        disk.cut(CutStyle::DropAll);
        assert!(disk.exists(path()), "its removal was not synced");
        assert!(!disk.exists(second), "its name was not synced");
        disk.rename(path(), second).unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        disk.cut(CutStyle::DropAll);
        assert_eq!(disk.list(Path::new("/d")).unwrap(), [second]);
    }

    #[test]
    fn a_replaced_file_has_the_old_or_the_new_content_after_any_cut() {
        for seed in 0..64 {
            let disk = SimDisk::new();
            disk.create_dir_all(Path::new("/d")).unwrap();
            (&disk as &dyn Disk).replace(path(), b"old").unwrap();
            let fresh = path().with_extension("new");
            let file = disk.open(&fresh, OpenMode::CreateNew).unwrap();
            file.write_at(b"new", 0).unwrap();
            file.sync_data().unwrap();
            disk.rename(&fresh, path()).unwrap();
            disk.cut(CutStyle::Torn { seed });
            assert!([b"old", b"new"].contains(&content(&disk).as_slice().try_into().unwrap()));
        }
    }

    #[test]
    fn locks_exclude_and_are_released_by_drop_and_by_a_cut() {
        let disk = SimDisk::new();
        let lock = disk.lock(path()).unwrap();
        assert!(disk.lock(path()).is_err());
        drop(lock);
        let before_cut = disk.lock(path()).unwrap();
        disk.cut(CutStyle::KeepAll);
        let after_cut = disk.lock(path()).unwrap();
        drop(before_cut);
        assert!(disk.lock(path()).is_err(), "a dead lock's drop does not release the new one");
        drop(after_cut);
    }

    #[test]
    fn a_booted_handle_ends_with_its_life() {
        let disk = SimDisk::new();
        let life = disk.boot();
        life.create_dir_all(Path::new("/d")).unwrap();
        disk.cut(CutStyle::KeepAll);
        assert!(life.open(path(), OpenMode::CreateNew).is_err());
        assert!(disk.boot().open(path(), OpenMode::CreateNew).is_ok());
    }

    #[test]
    fn a_cut_comes_before_the_step_it_was_set_for() {
        let (disk, file) = disk_with_file();
        disk.cut_after(2, CutStyle::DropAll);
        file.write_at(b"a", 0).unwrap();
        file.sync_data().unwrap();
        assert!(file.write_at(b"b", 1).is_err() && file.sync_data().is_err());
        assert_eq!(content(&disk), b"a");
        let again = disk.open(path(), OpenMode::ReadWrite).unwrap();
        again.write_at(b"b", 1).unwrap();
    }

    #[test]
    fn syncs_fail_when_told_and_the_file_takes_no_more() {
        let (disk, file) = disk_with_file();
        disk.fail_sync_after(1);
        file.sync_data().unwrap();
        file.write_at(b"a", 0).unwrap();
        assert!(file.sync_data().is_err());
        assert!(file.write_at(b"b", 0).is_err());
        assert!(file.sync_data().is_err(), "no retry succeeds");
        assert_eq!((disk.syncs(), disk.bytes_written()), (1, 1));
    }

    #[test]
    fn a_punched_hole_gives_room_back_reads_as_zeroes_and_may_be_torn_by_a_cut() {
        let mut fates = BTreeSet::new();
        for seed in 0..64 {
            let (disk, file) = disk_with_file();
            disk.set_capacity(Some(100_000));
            file.write_at(&[1; 40_960], 0).unwrap();
            file.sync_data().unwrap();
            // whole pages are given back, and the edges are zero all the same
            file.punch_hole(100, 4096 * 8).unwrap();
            assert_eq!(disk.usage(path()).unwrap().free_bytes, 100_000 - 40_960 + 4096 * 7);
            let bytes = content(&disk);
            assert!(bytes[100..100 + 4096 * 8].iter().all(|byte| *byte == 0));
            assert_eq!((bytes.len(), bytes[99], bytes[100 + 4096 * 8]), (40_960, 1, 1));
            disk.cut(CutStyle::Torn { seed });
            let pages = content(&disk)[4096..4096 * 8].chunks(4096).map(|page| page[5]).sum::<u8>();
            let free = disk.usage(path()).unwrap().free_bytes;
            assert_eq!(free, 100_000 - 40_960 + 4096 * (7 - u64::from(pages)));
            fates.insert(match pages {
                0 => "punched",
                7 => "whole",
                _ => "torn",
            });
        }
        assert_eq!(fates.len(), 3);
    }

    #[test]
    fn a_hole_takes_room_again_when_it_is_written() {
        let (disk, file) = disk_with_file();
        disk.set_capacity(Some(8192));
        file.write_at(&[1; 8192], 0).unwrap();
        file.punch_hole(0, 4096).unwrap();
        let other = disk.open(Path::new("/d/other"), OpenMode::CreateNew).unwrap();
        other.write_at(&[1; 100], 0).unwrap();
        let error = file.write_at(b"x", 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        disk.remove_file(Path::new("/d/other")).unwrap();
        file.allocate(0, 4096).unwrap();
        assert_eq!(disk.usage(path()).unwrap().free_bytes, 0);
    }

    #[test]
    fn a_full_disk_refuses_growth_and_takes_overwrites() {
        let (disk, file) = disk_with_file();
        disk.set_capacity(Some(4));
        file.write_at(b"four", 0).unwrap();
        let error = file.write_at(b"x", 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        file.write_at(b"FOUR", 0).unwrap();
        assert_eq!(disk.usage(path()).unwrap().free_bytes, 0);
    }
}
