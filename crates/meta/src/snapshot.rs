//! Snapshot files: the state of one range up to one log id, in a format of ours (`docs/formats/snapshot.md`).
//!
//! The log is purged only below such a file, and only after it was read back and verified (R8): the map is a view that
//! may be lost. A file is written beside its final name, synced, verified, renamed, and the directory is synced; a
//! crash leaves the old file or the new one. What it leaves out: where rows come from and go to (`machine`).

use crate::codec::{BadBytes, read_stored_membership, stored_membership_bytes};
use crate::raft::{LogId, Snapshot, SnapshotMeta, StoredMembership, log_id};
use ashlar_catalog::RowSum;
use ashlar_host::{Disk, File, OpenMode};
use ashlar_types::{RangeDescriptor, RangeId, bug};
use bytes::Bytes;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use xxhash_rust::xxh3::Xxh3;

const MAGIC: [u8; 8] = *b"ashlsnap";
const FORMAT: u16 = 1;
/// The fixed part of the header, before the membership.
const HEADER_BYTES: usize = 41;
const TRAILER_BYTES: usize = 32;
const CHUNK_HEAD_BYTES: usize = 8;
/// A chunk is closed when it has so many bytes: large enough that its frame costs nothing, small enough to hold.
const CHUNK_BYTES: usize = 256 * 1024;
/// No row is near this; a longer chunk is a damaged length.
const CHUNK_BYTES_MAX: u32 = 16 << 20;

/// Why a file is no snapshot to be trusted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error("the snapshot {0} is damaged ({1}): it is not used")]
    Damaged(PathBuf, String),
    #[error("the snapshot {0} has format {1}, {FORMAT} is known: upgrade this binary")]
    Newer(PathBuf, u16),
    #[error("the snapshot {0} belongs to range {1}")]
    Foreign(PathBuf, u64),
    #[error("the snapshot {0} could not be read or written: {1}")]
    Disk(PathBuf, io::Error),
}

impl From<SnapshotError> for io::Error {
    fn from(error: SnapshotError) -> Self {
        Self::other(error)
    }
}

/// What a snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) range: u64,
    pub(crate) last: Option<LogId>,
    pub(crate) membership: StoredMembership,
}

/// How much a snapshot holds; the hash is the sum over its rows, so it says nothing of their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sums {
    pub(crate) rows: u64,
    pub(crate) hash: u128,
}

impl Sums {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let mut hasher = Xxh3::new();
        hasher.update(&(key.len() as u64).to_le_bytes());
        hasher.update(key);
        hasher.update(value);
        self.rows += 1;
        self.hash = self.hash.wrapping_add(hasher.digest128());
    }
}

/// A verified file, open.
pub(crate) struct SnapshotFile {
    pub(crate) path: PathBuf,
    pub(crate) file: Box<dyn File>,
    pub(crate) length: u64,
    pub(crate) contents: Contents,
    pub(crate) sums: Sums,
    /// The range as it is in it; `None`: the root's.
    pub(crate) descriptor: Option<RangeDescriptor>,
    /// Whether the rows are those of the state hash among them.
    pub(crate) is_right: bool,
    /// Where the first chunk begins.
    body: u64,
    /// Set while it lies under the name it was received under.
    received: Option<ReceivedName>,
}

/// The name of one received file. It is used once: an installation that is still on its way when its sender gave up
/// can only ever publish its own file. What is not published is removed with its last user.
struct ReceivedName {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl Drop for ReceivedName {
    fn drop(&mut self) {
        if self.disk.exists(&self.path)
            && let Err(error) = self.disk.remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "a received file is left until the next start");
        }
    }
}

/// An empty file that takes what a leader sends.
pub(crate) struct Incoming {
    pub(crate) file: Arc<dyn File>,
    name: ReceivedName,
}

impl std::fmt::Debug for SnapshotFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SnapshotFile({}, {} bytes)", self.path.display(), self.length)
    }
}

impl SnapshotFile {
    /// As the consensus library wants it.
    pub(crate) fn to_library(self: &Arc<Self>) -> Snapshot<Arc<Self>> {
        let Contents { last, membership, .. } = self.contents.clone();
        let meta = SnapshotMeta { last_log_id: last, last_membership: membership };
        Snapshot { meta, snapshot: self.clone() }
    }

    /// Opens a file and reads all of it: only what is whole is given back.
    pub(crate) fn open(disk: &dyn Disk, path: &Path, range: u64) -> Result<Self, SnapshotError> {
        let at = |error| SnapshotError::Disk(path.to_owned(), error);
        let file = disk.open(path, OpenMode::Read).map_err(at)?;
        let length = file.len().map_err(at)?;
        let (contents, body) = read_header(&*file, path)?;
        if contents.range != range {
            return Err(SnapshotError::Foreign(path.to_owned(), contents.range));
        }
        let (mut sums, mut described) = (Sums::default(), None);
        let path = path.to_owned();
        let mut rows = RowSum::of(RangeId(range));
        let mut opened = Self {
            path,
            file,
            length,
            contents,
            sums,
            descriptor: None,
            is_right: true,
            body,
            received: None,
        };
        let mut unread = None;
        opened.chunks(&mut |chunk| {
            rows_of(&chunk, &mut |key, value| {
                sums.add(&key, &value);
                unread = unread.take().or_else(|| rows.take(&key, &value).err());
                let says = ashlar_catalog::descriptor_row(RangeId(range), &key, &value);
                described = says.or_else(|| described.take());
            })
        })?;
        opened.check_trailer(sums)?;
        opened.sums = sums;
        let described = described.transpose().map_err(|error| opened.damaged(error.to_string()))?;
        opened.descriptor = described;
        opened.is_right = unread.is_none() && rows.is_right();
        Ok(opened)
    }

    /// Whether another replica has sent it.
    pub(crate) fn is_received(&self) -> bool {
        self.received.is_some()
    }

    /// The rows, chunk by chunk.
    pub(crate) fn rows(
        &self,
        take: &mut dyn FnMut(Vec<(Bytes, Bytes)>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut failed = Ok(());
        self.chunks(&mut |chunk| {
            let mut rows = Vec::new();
            rows_of(&chunk, &mut |key, value| rows.push((key, value)))?;
            if bug!("snapshot-loses-a-row") {
                rows.pop();
            }
            failed = take(rows);
            if failed.is_err() { Err("the taker failed".to_owned()) } else { Ok(()) }
        })
        .or_else(|error| failed.and_then(|()| Err(error.into())))
    }

    fn damaged(&self, detail: impl Into<String>) -> SnapshotError {
        SnapshotError::Damaged(self.path.clone(), detail.into())
    }

    /// Visits the bodies of the chunks, and returns at the trailer.
    fn chunks(
        &self,
        visit: &mut dyn FnMut(Bytes) -> Result<(), String>,
    ) -> Result<(), SnapshotError> {
        let trailer_at = self.trailer_at()?;
        let (mut at, mut number) = (self.body, 0_u32);
        while at < trailer_at {
            let chunk = self.chunk(at, number)?;
            at += (CHUNK_HEAD_BYTES + chunk.len() + 4) as u64;
            number += 1;
            visit(chunk).map_err(|detail| self.damaged(detail))?;
        }
        if at == trailer_at {
            Ok(())
        } else {
            Err(self.damaged("a chunk reaches into the trailer"))
        }
    }

    fn chunk(&self, at: u64, number: u32) -> Result<Bytes, SnapshotError> {
        let read = |buffer: &mut [u8], at| {
            self.file
                .read_exact_at(buffer, at)
                .map_err(|error| SnapshotError::Disk(self.path.clone(), error))
        };
        let mut head = [0; CHUNK_HEAD_BYTES];
        read(&mut head, at)?;
        let length = u32_at(&head, 0);
        if length == 0 || length > CHUNK_BYTES_MAX || u32_at(&head, 4) != number {
            return Err(self.damaged(format!("the head of chunk {number}")));
        }
        let mut body = vec![0; length as usize + 4];
        read(&mut body, at + CHUNK_HEAD_BYTES as u64)?;
        let sum = u32_at(&body, length as usize);
        body.truncate(length as usize);
        if crc32c::crc32c_append(crc32c::crc32c(&head), &body) != sum {
            return Err(self.damaged(format!("the checksum of chunk {number}")));
        }
        Ok(Bytes::from(body))
    }

    fn trailer_at(&self) -> Result<u64, SnapshotError> {
        let at = self.length.checked_sub(TRAILER_BYTES as u64).filter(|&at| at >= self.body);
        at.ok_or_else(|| self.damaged("it has no trailer"))
    }

    fn check_trailer(&self, sums: Sums) -> Result<(), SnapshotError> {
        let mut found = [0; TRAILER_BYTES];
        let read = self.file.read_exact_at(&mut found, self.trailer_at()?);
        read.map_err(|error| SnapshotError::Disk(self.path.clone(), error))?;
        if found == trailer_bytes(sums) { Ok(()) } else { Err(self.damaged("the trailer")) }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn rows_of(chunk: &Bytes, take: &mut dyn FnMut(Bytes, Bytes)) -> Result<(), String> {
    let mut at = 0;
    while at < chunk.len() {
        if chunk.len() - at < 8 {
            return Err("a row's lengths are cut".to_owned());
        }
        let (key, value) = (u32_at(chunk, at) as usize, u32_at(chunk, at + 4) as usize);
        at += 8;
        if chunk.len() - at < key + value {
            return Err("a row is cut".to_owned());
        }
        take(chunk.slice(at..at + key), chunk.slice(at + key..at + key + value));
        at += key + value;
    }
    Ok(())
}

fn header_bytes(contents: &Contents) -> Vec<u8> {
    let membership = stored_membership_bytes(&contents.membership);
    let (term, index) = contents.last.map_or((0, 0), |id| (id.leader_id.term, id.index));
    let mut to = Vec::with_capacity(HEADER_BYTES + membership.len() + 4);
    to.extend(MAGIC);
    to.extend(FORMAT.to_le_bytes());
    to.extend([0; 2]);
    to.extend(contents.range.to_le_bytes());
    to.push(u8::from(contents.last.is_some()));
    to.extend(term.to_le_bytes());
    to.extend(index.to_le_bytes());
    to.extend(length_of(&membership).to_le_bytes());
    to.extend(&membership);
    to.extend(crc32c::crc32c(&to).to_le_bytes());
    to
}

fn length_of(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("keys, values and memberships are far below 4 GiB")
}

fn read_header(file: &dyn File, path: &Path) -> Result<(Contents, u64), SnapshotError> {
    let damaged = |detail: String| SnapshotError::Damaged(path.to_owned(), detail);
    let short = |_| damaged("the header is cut".to_owned());
    let mut fixed = [0; HEADER_BYTES];
    file.read_exact_at(&mut fixed, 0).map_err(short)?;
    if fixed[..8] != MAGIC {
        return Err(damaged("it does not begin as one".to_owned()));
    }
    let format = u16::from_le_bytes([fixed[8], fixed[9]]);
    if format != FORMAT {
        return Err(SnapshotError::Newer(path.to_owned(), format));
    }
    let length = u32_at(&fixed, 37);
    if length > CHUNK_BYTES_MAX {
        return Err(damaged("the length of the membership".to_owned()));
    }
    let mut rest = vec![0; length as usize + 4];
    file.read_exact_at(&mut rest, HEADER_BYTES as u64).map_err(short)?;
    let sum = u32_at(&rest, length as usize);
    rest.truncate(length as usize);
    if crc32c::crc32c_append(crc32c::crc32c(&fixed), &rest) != sum {
        return Err(damaged("the checksum of the header".to_owned()));
    }
    let membership = read_stored_membership(Bytes::from(rest));
    let membership = membership.map_err(|error: BadBytes| damaged(error.to_string()))?;
    let last = (fixed[20] != 0).then(|| log_id(u64_at(&fixed, 21), u64_at(&fixed, 29)));
    let body = (HEADER_BYTES + 4) as u64 + u64::from(length);
    Ok((Contents { range: u64_at(&fixed, 12), last, membership }, body))
}

fn trailer_bytes(sums: Sums) -> [u8; TRAILER_BYTES] {
    let mut to = [0; TRAILER_BYTES];
    to[4..12].copy_from_slice(&sums.rows.to_le_bytes());
    to[12..28].copy_from_slice(&sums.hash.to_le_bytes());
    let sum = crc32c::crc32c(&to[..28]);
    to[28..].copy_from_slice(&sum.to_le_bytes());
    to
}

/// Writes a snapshot row by row.
pub(crate) struct SnapshotWriter {
    file: Box<dyn File>,
    path: PathBuf,
    at: u64,
    chunk: Vec<u8>,
    number: u32,
    sums: Sums,
}

impl SnapshotWriter {
    /// Begins a file; one that an earlier crash left under this name is replaced.
    pub(crate) fn create(
        disk: &dyn Disk,
        path: &Path,
        contents: &Contents,
    ) -> Result<Self, SnapshotError> {
        let file =
            create(disk, path).map_err(|error| SnapshotError::Disk(path.to_owned(), error))?;
        let mut writer = Self {
            file,
            path: path.to_owned(),
            at: 0,
            chunk: Vec::new(),
            number: 0,
            sums: Sums::default(),
        };
        writer.put(&header_bytes(contents))?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let written = self.file.write_at(bytes, self.at);
        written.map_err(|error| SnapshotError::Disk(self.path.clone(), error))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), SnapshotError> {
        if self.chunk.is_empty() {
            // the head's place: its numbers are known when the chunk is full
            self.chunk.resize(CHUNK_HEAD_BYTES, 0);
        }
        self.chunk.extend(length_of(key).to_le_bytes());
        self.chunk.extend(length_of(value).to_le_bytes());
        self.chunk.extend(key);
        self.chunk.extend(value);
        self.sums.add(key, value);
        if self.chunk.len() >= CHUNK_BYTES { self.close_chunk() } else { Ok(()) }
    }

    fn close_chunk(&mut self) -> Result<(), SnapshotError> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let mut chunk = std::mem::take(&mut self.chunk);
        let length = length_of(&chunk[CHUNK_HEAD_BYTES..]);
        chunk[..4].copy_from_slice(&length.to_le_bytes());
        chunk[4..8].copy_from_slice(&self.number.to_le_bytes());
        chunk.extend(crc32c::crc32c(&chunk).to_le_bytes());
        self.number += 1;
        self.put(&chunk)?;
        chunk.clear();
        self.chunk = chunk;
        Ok(())
    }

    /// Ends the file and waits until it is on stable storage.
    pub(crate) fn finish(mut self) -> Result<(), SnapshotError> {
        self.close_chunk()?;
        self.put(&trailer_bytes(self.sums))?;
        if bug!("snapshot-without-sync") {
            return Ok(());
        }
        self.file.sync_data().map_err(|error| SnapshotError::Disk(self.path.clone(), error))
    }
}

fn create(disk: &dyn Disk, path: &Path) -> io::Result<Box<dyn File>> {
    if disk.exists(path) {
        disk.remove_file(path)?;
    }
    disk.open(path, OpenMode::CreateNew)
}

/// The snapshots of one range in one directory.
pub(crate) struct Snapshots {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    range: u64,
    /// Files that were received since the start.
    received: AtomicU64,
}

impl Snapshots {
    pub(crate) fn new(disk: Arc<dyn Disk>, directory: PathBuf, range: u64) -> Self {
        Self { disk, directory, range, received: AtomicU64::new(0) }
    }

    /// Those of another range of the node.
    pub(crate) fn of(&self, range: u64) -> Self {
        Self::new(self.disk.clone(), self.directory.clone(), range)
    }

    fn path(&self, kind: &str) -> PathBuf {
        self.directory.join(format!("range-{}.{kind}", self.range))
    }

    /// The newest snapshot, verified; `None`: there is none.
    pub(crate) fn newest(&self) -> Result<Option<SnapshotFile>, SnapshotError> {
        let path = self.path("snapshot");
        if self.disk.exists(&path) {
            SnapshotFile::open(&*self.disk, &path, self.range).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Removes what a crash left half received.
    pub(crate) fn remove_leftovers(&self) -> Result<(), SnapshotError> {
        let at = |error| SnapshotError::Disk(self.directory.clone(), error);
        let half = format!("range-{}.incoming", self.range);
        for path in self.disk.list(&self.directory).map_err(at)? {
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.starts_with(&half)) {
                self.disk.remove_file(&path).map_err(at)?;
            }
        }
        Ok(())
    }

    /// Removes all files of the range: its replica here begins anew.
    pub(crate) fn remove_all(&self) -> Result<(), SnapshotError> {
        self.remove_leftovers()?;
        for path in [self.path("snapshot"), self.path("building"), self.path("copied")] {
            if self.disk.exists(&path) {
                let removed = self.disk.remove_file(&path);
                removed.map_err(|error| SnapshotError::Disk(path, error))?;
            }
        }
        let synced = self.disk.sync_dir(&self.directory);
        synced.map_err(|error| SnapshotError::Disk(self.directory.clone(), error))
    }

    /// Whether the state is another replica's, and all have not agreed since that it is theirs.
    pub(crate) fn is_copy(&self) -> bool {
        self.disk.exists(&self.path("copied"))
    }

    /// What is installed next is another replica's state.
    pub(crate) fn mark_copy(&self) -> Result<(), SnapshotError> {
        let path = self.path("copied");
        if self.disk.exists(&path) {
            return Ok(());
        }
        self.disk.replace(&path, b"").map_err(|error| SnapshotError::Disk(path, error))
    }

    /// All have agreed.
    pub(crate) fn end_copy(&self) -> Result<(), SnapshotError> {
        let path = self.path("copied");
        if !self.disk.exists(&path) {
            return Ok(());
        }
        self.disk.remove_file(&path).map_err(|error| SnapshotError::Disk(path, error))
    }

    /// Begins one of our own state.
    pub(crate) fn begin(&self, contents: &Contents) -> Result<SnapshotWriter, SnapshotError> {
        SnapshotWriter::create(&*self.disk, &self.path("building"), contents)
    }

    /// The one that was begun has been finished: verifies it.
    pub(crate) fn built(&self) -> Result<SnapshotFile, SnapshotError> {
        SnapshotFile::open(&*self.disk, &self.path("building"), self.range)
    }

    /// Removes a file that is not published.
    pub(crate) fn discard(&self, file: &SnapshotFile) -> Result<(), SnapshotError> {
        let removed = self.disk.remove_file(&file.path);
        removed.map_err(|error| SnapshotError::Disk(file.path.clone(), error))
    }

    /// Makes a verified file the newest snapshot.
    pub(crate) fn publish(&self, verified: &SnapshotFile) -> Result<SnapshotFile, SnapshotError> {
        let path = self.path("snapshot");
        let at = |error| SnapshotError::Disk(path.clone(), error);
        if verified.path != path {
            self.disk.rename(&verified.path, &path).map_err(at)?;
            self.disk.sync_dir(&self.directory).map_err(at)?;
        }
        let file = self.disk.open(&path, OpenMode::Read).map_err(at)?;
        let SnapshotFile { length, sums, is_right, body, .. } = *verified;
        let (contents, descriptor) = (verified.contents.clone(), verified.descriptor.clone());
        let received = None;
        Ok(SnapshotFile {
            path,
            file,
            length,
            contents,
            sums,
            descriptor,
            is_right,
            body,
            received,
        })
    }

    /// An empty file for what a leader sends, under a name of its own.
    pub(crate) fn incoming(&self) -> Result<Incoming, SnapshotError> {
        let number = self.received.fetch_add(1, Ordering::Relaxed);
        let path = self.path(&format!("incoming-{number}"));
        let file =
            create(&*self.disk, &path).map_err(|error| SnapshotError::Disk(path.clone(), error))?;
        let name = ReceivedName { disk: self.disk.clone(), path };
        Ok(Incoming { file: Arc::from(file), name })
    }

    /// What a leader sent is all there: syncs it, and verifies it.
    pub(crate) fn received(&self, incoming: Incoming) -> Result<SnapshotFile, SnapshotError> {
        let Incoming { file, name } = incoming;
        file.sync_data().map_err(|error| SnapshotError::Disk(name.path.clone(), error))?;
        let mut verified = SnapshotFile::open(&*self.disk, &name.path, self.range)?;
        verified.received = Some(name);
        Ok(verified)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_host::RealDisk;

    fn contents() -> Contents {
        Contents { range: 3, last: Some(log_id(2, 9)), membership: StoredMembership::default() }
    }

    fn store(directory: &Path) -> Snapshots {
        Snapshots::new(Arc::new(RealDisk), directory.to_owned(), 3)
    }

    fn written(directory: &Path, rows: &[(&[u8], &[u8])]) -> SnapshotFile {
        let snapshots = store(directory);
        let mut writer = snapshots.begin(&contents()).expect("begun");
        for (key, value) in rows {
            writer.row(key, value).expect("written");
        }
        writer.finish().expect("finished");
        snapshots.publish(&snapshots.built().expect("verified")).expect("published")
    }

    #[test]
    fn format_1_is_these_bytes() {
        let directory = tempfile::tempdir().expect("a directory");
        let snapshot = written(directory.path(), &[(b"k", b"vv")]);
        let found = RealDisk.open(&snapshot.path, OpenMode::Read).expect("there");
        let mut bytes = vec![0; usize::try_from(snapshot.length).expect("small")];
        found.read_exact_at(&mut bytes, 0).expect("read");
        let mut expected = Vec::new();
        expected.extend(b"ashlsnap\x01\x00\x00\x00\x03\0\0\0\0\0\0\0");
        expected.extend(b"\x01\x02\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0");
        // the membership: version 1, no log id, no configuration, no node
        expected.extend(b"\x0a\0\0\0\x01\0\0\0\0\0\0\0\0\0");
        expected.extend(HEADER_SUM);
        expected.extend(b"\x0b\0\0\0\0\0\0\0\x01\0\0\0\x02\0\0\0kvv");
        expected.extend(CHUNK_SUM);
        expected.extend(b"\0\0\0\0\x01\0\0\0\0\0\0\0");
        expected.extend(ROW_HASH);
        expected.extend(TRAILER_SUM);
        assert_eq!(bytes, expected);
    }

    const HEADER_SUM: [u8; 4] = [60, 77, 44, 189];
    const CHUNK_SUM: [u8; 4] = [242, 27, 51, 146];
    const ROW_HASH: [u8; 16] =
        [37, 44, 78, 241, 29, 69, 57, 26, 229, 186, 78, 91, 226, 77, 115, 242];
    const TRAILER_SUM: [u8; 4] = [216, 197, 81, 159];

    #[test]
    fn rows_of_many_chunks_come_back_in_order() {
        let directory = tempfile::tempdir().expect("a directory");
        let value = vec![7; 100_000];
        let keys: Vec<[u8; 1]> = (0..9).map(|key| [key]).collect();
        let rows: Vec<(&[u8], &[u8])> = keys.iter().map(|key| (&key[..], &value[..])).collect();
        written(directory.path(), &rows);
        let snapshot = store(directory.path()).newest().expect("whole").expect("there");
        assert_eq!((snapshot.sums.rows, &snapshot.contents), (9, &contents()));
        let mut found = Vec::new();
        let mut chunks = 0;
        snapshot
            .rows(&mut |rows| {
                chunks += 1;
                found.extend(rows.into_iter().map(|(key, _)| key[0]));
                Ok(())
            })
            .expect("read");
        assert_eq!(found, (0..9).collect::<Vec<u8>>());
        assert!(chunks > 1);
        let refused = snapshot.rows(&mut |_| Err(io::Error::other("full")));
        assert_eq!(refused.expect_err("the taker failed").to_string(), "full");
    }

    #[test]
    fn a_received_file_is_only_ever_published_as_itself() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = written(directory.path(), &[(b"key", b"value")]).path;
        let bytes = <dyn Disk>::read(&RealDisk, &path).expect("read");
        let left = directory.path().join("range-3.incoming-9");
        RealDisk.open(&left, OpenMode::CreateNew).expect("created");
        let snapshots = store(directory.path());
        snapshots.remove_leftovers().expect("removed");
        let names = || RealDisk.list(directory.path()).expect("listed");
        assert_eq!(names(), std::slice::from_ref(&path));

        let first = snapshots.incoming().expect("created");
        first.file.write_at(&bytes, 0).expect("written");
        let first = snapshots.received(first).expect("whole");
        let second = snapshots.incoming().expect("created");
        second.file.write_at(b"half", 0).expect("written");
        let published = snapshots.publish(&first).expect("published");
        assert_eq!(<dyn Disk>::read(&RealDisk, &published.path).expect("read"), bytes);
        drop(first);
        assert!(snapshots.received(second).is_err());
        assert_eq!(names(), [path]);
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_noticed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = written(directory.path(), &[(b"key", b"value"), (b"kez", b"")]).path;
        let file = RealDisk.open(&path, OpenMode::ReadWrite).expect("there");
        let length = file.len().expect("known");
        for at in 0..length {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("read");
            file.write_at(&[byte[0] ^ 1], at).expect("written");
            assert!(SnapshotFile::open(&RealDisk, &path, 3).is_err(), "byte {at}");
            file.write_at(&byte, at).expect("written");
        }
        assert!(SnapshotFile::open(&RealDisk, &path, 4).is_err());
        for cut in (0..length).rev() {
            file.set_len(cut).expect("cut");
            assert!(SnapshotFile::open(&RealDisk, &path, 3).is_err(), "cut at {cut}");
        }
    }
}
