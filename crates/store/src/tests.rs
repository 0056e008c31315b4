//! What the store promises, on real files: bytes, idempotence, refusals, damage, recycling, restarts, and failing disks.

mod compaction;
mod crash_states;
mod faults;
mod model;
mod power_cut;
mod scrub;
mod sim;
mod space;

use crate::format::{Class, PAGE, SegmentHeader};
use crate::{Owner, ShardKey, ShardMeta, Store, StoreConfig, StoreError};
use ashlar_host::{CutStyle, Disk, DiskUsage, File, Host, OpenMode, RealDisk, SimDisk};
use ashlar_types::{BucketId, ClusterId, Epoch, ExtentId, NodeId, PgId, Profile, SessionId, Slot};
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

const OWNER: Owner = Owner { cluster: ClusterId(7), node: NodeId(3) };

fn config(dir: &Path) -> StoreConfig {
    StoreConfig {
        dir: dir.to_owned(),
        small_segment_bytes: 512 * 1024,
        large_segment_bytes: 4 << 20,
        reserve_bytes: 1 << 20,
        expects: None,
        direct_io: true,
    }
}

fn key(counter: u64) -> ShardKey {
    ShardKey { extent: ExtentId { session: SessionId(5), counter }, slot: Slot(1) }
}

fn meta(counter: u64, length: usize) -> ShardMeta {
    ShardMeta {
        key: key(counter),
        profile: Profile::RS_4_2,
        pg: PgId(9),
        pg_epoch: Epoch(2),
        bucket: BucketId(11),
        length: length as u64,
        created_ms: 1,
    }
}

/// Bytes that differ at every place and between shards.
fn content(counter: u64, length: usize) -> Bytes {
    let mut state = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

async fn open_on(host: &Host, dir: &Path) -> Result<Store, StoreError> {
    let (host, config) = (host.clone(), config(dir));
    let tasks = host.tasks.clone();
    tasks.run_blocking(move || Store::open(&host, config, OWNER)).await
}

async fn open(dir: &Path) -> Store {
    open_on(&Host::real(), dir).await.expect("the disk opens")
}

async fn put(store: &Store, counter: u64, length: usize) -> Result<(), StoreError> {
    let bytes = content(counter, length);
    if length < 64 * 1024 {
        return store.put_small(meta(counter, length), bytes).await;
    }
    let mut writer = store.begin(meta(counter, length)).await?;
    for at in (0..length).step_by(100_000) {
        writer.write(bytes.slice(at..length.min(at + 100_000))).await?;
    }
    let committed = writer.commit().await?;
    assert_eq!(committed.crc, crc32c::crc32c(&bytes));
    Ok(())
}

async fn assert_reads(store: &Store, counter: u64, length: usize) {
    let bytes = store.read(key(counter), 0, length as u64).await;
    assert_eq!(bytes, Ok(content(counter, length)), "shard {counter} of {length}");
}

/// A copy of a disk as it lies there now: what a process that dies now leaves.
fn copy_dir(from: &Path, to: &Path) {
    let disk: &'static dyn Disk = &RealDisk;
    disk.create_dir_all(to).unwrap();
    for path in disk.list(from).unwrap() {
        let target = to.join(path.file_name().unwrap());
        match disk.list(&path) {
            Ok(_) => copy_dir(&path, &target),
            Err(_) => disk.replace(&target, &disk.read(&path).unwrap()).unwrap(),
        }
    }
}

fn segments(dir: &Path, class: &str) -> Vec<PathBuf> {
    let is_class = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(class);
    RealDisk.list(&dir.join("seg")).unwrap().into_iter().filter(is_class).collect()
}

/// Turns one byte of a file that holds `needle` at the place where it does.
fn damage(path: &Path, needle: &[u8], at: usize) {
    let disk: &'static dyn Disk = &RealDisk;
    let bytes = disk.read(path).unwrap();
    let found = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    let file = disk.open(path, OpenMode::ReadWrite).unwrap();
    file.write_at(&[bytes[found + at] ^ 1], (found + at) as u64).unwrap();
}

const LENGTHS: [usize; 12] =
    [0, 1, 4096, 60_000, 65_535, 65_536, 65_537, 262_144, 262_145, 700_001, 1 << 20, 3 << 20];

#[tokio::test]
async fn shards_of_all_lengths_survive_a_clean_and_an_unclean_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for (counter, length) in LENGTHS.into_iter().enumerate() {
        put(&store, counter as u64, length).await.unwrap();
        assert_reads(&store, counter as u64, length).await;
    }
    let crashed = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), crashed.path());
    store.close().await;
    for (path, is_clean) in [(dir.path(), true), (crashed.path(), false)] {
        let store = open(path).await;
        assert_eq!((store.recovered().clean, store.incarnation()), (is_clean, 2));
        assert_eq!(store.recovered().damaged + store.recovered().torn, 0);
        for (counter, length) in LENGTHS.into_iter().enumerate() {
            assert_reads(&store, counter as u64, length).await;
        }
        put(&store, 100, 5).await.unwrap();
        put(&store, 101, 100_000).await.unwrap();
        assert_eq!(store.list(Some(key(11)), 10).len(), 2);
        assert_eq!(store.list(None, 3).len(), 3);
    }
}

#[tokio::test]
async fn ranges_are_slices() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    put(&store, 1, 700_001).await.unwrap();
    put(&store, 2, 5_000).await.unwrap();
    for (counter, length, start, len) in [
        (1, 700_001, 0, 1),
        (1, 700_001, 65_535, 2),
        (1, 700_001, 700_000, 1),
        (1, 700_001, 131_072, 300_000),
        (1, 700_001, 5, 0),
        (2, 5_000, 4_999, 1),
        (2, 5_000, 17, 1_000),
    ] {
        let read = store.read(key(counter), start, len).await.unwrap();
        let end = usize::try_from(start + len).unwrap();
        assert_eq!(read, content(counter, length).slice(usize::try_from(start).unwrap()..end));
    }
    let beyond = store.read(key(2), 4_999, 2).await;
    assert_eq!(beyond, Err(StoreError::BadRange { length: 5_000 }));
    assert_eq!(store.read(key(3), 0, 1).await, Err(StoreError::NotFound));
}

#[tokio::test]
async fn the_same_again_is_a_success_and_another_content_a_conflict() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for length in [100, 100_000] {
        let counter = length as u64;
        put(&store, counter, length).await.unwrap();
        put(&store, counter, length).await.unwrap();
        let other = content(counter + 1, length);
        let meta = meta(counter, length);
        let verdict = if length < 65_536 {
            store.put_small(meta, other).await
        } else {
            let mut writer = store.begin(meta).await.unwrap();
            writer.write(other).await.unwrap();
            writer.commit().await.map(drop)
        };
        assert_eq!(verdict, Err(StoreError::Conflict));
        assert_reads(&store, counter, length).await;
    }
    assert_eq!(store.usage().shards, 2);
}

#[tokio::test]
async fn deleted_shards_stay_deleted_and_may_be_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for counter in 0..6 {
        put(&store, counter, if counter % 2 == 0 { 10 } else { 70_000 }).await.unwrap();
    }
    for counter in 0..4 {
        assert_eq!(store.delete(key(counter)).await, Ok(true));
        assert_eq!(store.delete(key(counter)).await, Ok(false));
    }
    put(&store, 0, 11).await.unwrap();
    let crashed = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), crashed.path());
    for round in 0..2 {
        let store = open(crashed.path()).await;
        let left: Vec<_> =
            store.list(None, 10).iter().map(|meta| meta.key.extent.counter).collect();
        assert_eq!(left, [0, 4, 5]);
        assert_reads(&store, 0, 11).await;
        assert_eq!(store.recovered().clean, round == 1);
        store.close().await;
    }
}

#[tokio::test]
async fn thousands_are_deleted_with_one_sync_and_an_answer_for_each() {
    let dir = tempfile::tempdir().unwrap();
    let Tricks { host, syncs, free_bytes, .. } = tricks();
    let store = open_on(&host, dir.path()).await.unwrap();
    for some in (0..3_000).collect::<Vec<u64>>().chunks(300) {
        for result in futures_join(some.iter().map(|&counter| put(&store, counter, 10))).await {
            result.unwrap();
        }
    }
    put(&store, 3_000, 100_000).await.unwrap();
    // no prefill and no new segment from here on
    free_bytes.store((1 << 20) + 100_000, Ordering::SeqCst);
    put(&store, 3_001, 10).await.unwrap();
    let before = settled(&host, &syncs).await;
    // some that are not there between those that are, and one twice
    let keys: Vec<ShardKey> = (0..6_002).map(|n| key(n / 2 + (n % 2) * 10_000)).collect();
    let keys = [keys, vec![key(0)]].concat();
    let answers = store.delete_many(&keys).await;
    let used = settled(&host, &syncs).await - before;
    // the batch, perhaps a new segment, a hole where the large one was, and segments that are used again
    assert!(used <= 10, "thousands were deleted with {used} syncs");
    let expected: Vec<_> = (0..6_003).map(|n| Ok(n % 2 == 0 && n < 6_002)).collect();
    assert_eq!(answers, expected);
    assert_eq!(store.delete_many(&[key(1), key(3_001)]).await, [Ok(false), Ok(true)]);
    assert_eq!(store.delete_many(&[]).await, []);
    let crashed = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), crashed.path());
    assert_eq!(open(crashed.path()).await.list(None, 10), []);
    store.close().await;
    assert_eq!(store.delete_many(&keys[..2]).await, [(); 2].map(|()| Err(StoreError::Closed)));
}

/// Waits until nothing syncs any more; how many syncs there were.
async fn settled(host: &Host, syncs: &AtomicU64) -> u64 {
    let mut before = syncs.load(Ordering::SeqCst);
    loop {
        host.clock.sleep(std::time::Duration::from_millis(20)).await;
        let now = syncs.load(Ordering::SeqCst);
        if now == before {
            return now;
        }
        before = now;
    }
}

#[tokio::test]
async fn a_writer_that_is_dropped_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let mut writer = store.begin(meta(1, 500_000)).await.unwrap();
    writer.write(content(1, 400_000)).await.unwrap();
    drop(writer);
    let mut short = store.begin(meta(2, 500_000)).await.unwrap();
    short.write(content(2, 200_000)).await.unwrap();
    assert_eq!(short.write(content(2, 400_000)).await, Err(StoreError::TooLong));
    short.commit().await.unwrap();
    let crashed = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), crashed.path());
    for store in [store, open(crashed.path()).await] {
        assert!(!store.contains(key(1)));
        assert_eq!(store.meta(key(2)).map(|meta| meta.length), Some(200_000));
        assert_reads(&store, 2, 200_000).await;
    }
}

#[tokio::test]
async fn a_damaged_block_is_never_served_and_can_be_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    put(&store, 1, 300_000).await.unwrap();
    put(&store, 2, 3_000).await.unwrap();
    store.close().await;
    damage(&segments(dir.path(), "l-")[0], &content(1, 300_000)[..64], 70_000);
    damage(&segments(dir.path(), "s-")[0], &content(2, 3_000)[..64], 2_999);
    let store = open(dir.path()).await;
    assert_eq!(store.read(key(1), 65_536, 1).await, Err(StoreError::Corrupt));
    assert_eq!(store.read(key(2), 0, 1).await, Err(StoreError::Corrupt));
    assert_eq!(store.read(key(1), 0, 65_536).await, Ok(content(1, 300_000).slice(..65_536)));
    for (counter, length) in [(1, 300_000), (2, 3_000)] {
        put(&store, counter, length).await.unwrap();
        assert_reads(&store, counter, length).await;
    }
}

#[tokio::test]
async fn the_slots_of_a_disk_are_found_a_part_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    assert!(store.slots().is_empty());
    for counter in 0..10 {
        let slot = Slot(u8::try_from(counter % 3).unwrap());
        let pg = PgId(u32::try_from(counter % 2).unwrap());
        let key = ShardKey { slot, ..key(counter) };
        let meta = ShardMeta { key, pg, ..meta(counter, 10) };
        store.put_small(meta, content(counter, 10)).await.unwrap();
    }
    let all: BTreeSet<(PgId, Slot)> =
        (0..2).flat_map(|pg| (0..3).map(move |slot| (PgId(pg), Slot(slot)))).collect();
    for looked_at_once in [1, 3, 10, 11] {
        assert_eq!(store.slots_by(looked_at_once), all, "{looked_at_once}");
    }
}

#[tokio::test]
async fn records_of_a_recycled_segment_never_appear() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for counter in 0..20 {
        put(&store, counter, 1_000).await.unwrap();
    }
    store.close().await;
    let old = &segments(dir.path(), "s-")[0];
    RealDisk.rename(old, &dir.path().join("free/recycled")).unwrap();
    let disk: &'static dyn Disk = &RealDisk;
    for checkpoint in disk.list(&dir.path().join("idx")).unwrap() {
        disk.remove_file(&checkpoint).unwrap();
    }
    let store = open(dir.path()).await;
    assert_eq!(store.list(None, 100), []);
    put(&store, 50, 10).await.unwrap();
    assert_eq!(disk.list(&dir.path().join("free")).unwrap(), Vec::<PathBuf>::new());
    let crashed = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), crashed.path());
    let store = open(crashed.path()).await;
    let left: Vec<_> = store.list(None, 100).iter().map(|meta| meta.key).collect();
    assert_eq!(left, [key(50)]);
}

#[tokio::test]
async fn a_lost_header_hides_nothing_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for counter in 0..3 {
        put(&store, counter, 100_000).await.unwrap();
        put(&store, 10 + counter, 100).await.unwrap();
    }
    let crashed = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), crashed.path());
    let zeroes = [0; 4096];
    for class in ["s-", "l-"] {
        let file = RealDisk.open(&segments(crashed.path(), class)[0], OpenMode::ReadWrite).unwrap();
        file.write_at(&zeroes[..128], PAGE).unwrap();
    }
    let store = open(crashed.path()).await;
    for counter in 1..3 {
        assert_reads(&store, counter, 100_000).await;
        assert_reads(&store, 10 + counter, 100).await;
    }
    assert!(!store.contains(key(0)) && !store.contains(key(10)));
}

#[tokio::test]
async fn what_a_disk_refuses_it_refuses_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::real();
    let missing = open_on(&host, &dir.path().join("none")).await.unwrap_err();
    assert!(matches!(missing, StoreError::Missing(_)), "{missing}");
    let store = open(dir.path()).await;
    let twice = open_on(&host, dir.path()).await.unwrap_err();
    assert!(matches!(twice, StoreError::InUse(_)), "{twice}");
    store.close().await;
    let owner = Owner { cluster: ClusterId(8), ..OWNER };
    let foreign = Store::open(&host, config(dir.path()), owner).unwrap_err();
    assert!(matches!(foreign, StoreError::OtherCluster { found: ClusterId(7), .. }), "{foreign}");
    let owner = Owner { node: NodeId(4), ..OWNER };
    let moved = Store::open(&host, config(dir.path()), owner).unwrap_err();
    assert!(matches!(moved, StoreError::OtherNode { found: NodeId(3), .. }), "{moved}");

    let disk: &'static dyn Disk = &RealDisk;
    let superblock = dir.path().join("ashlar.super");
    let mut newer = disk.read(&superblock).unwrap();
    for page in newer.chunks_mut(4096) {
        page[8] = 2;
        let crc = crc32c::crc32c(&page[..4092]);
        page[4092..].copy_from_slice(&crc.to_le_bytes());
    }
    disk.replace(&superblock, &newer).unwrap();
    let newer = open_on(&host, dir.path()).await.unwrap_err();
    assert!(matches!(newer, StoreError::NewerFormat { found: 2, known: 1, .. }), "{newer}");
    disk.replace(&superblock, &[7; 8192]).unwrap();
    let damaged = open_on(&host, dir.path()).await.unwrap_err();
    assert!(matches!(damaged, StoreError::BadSuperblock(_)), "{damaged}");
    let header = SegmentHeader {
        class: Class::Small,
        disk: ashlar_types::DiskId(1),
        generation: 1,
        bytes: 1,
    };
    disk.replace(&dir.path().join("seg/s-1.seg"), &header.encode()).unwrap();
    disk.remove_file(&superblock).unwrap();
    let lost = open_on(&host, dir.path()).await.unwrap_err();
    assert!(matches!(lost, StoreError::NoSuperblock(_)), "{lost}");
}

/// The real disk, but it counts syncs, fails them when told, and may be small.
struct TrickyDisk {
    syncs: Arc<AtomicU64>,
    /// Syncs until they fail; negative: never.
    fail_after: Arc<AtomicI64>,
    free_bytes: Arc<AtomicU64>,
}

struct TrickyFile(Box<dyn File>, Arc<AtomicU64>, Arc<AtomicI64>);

impl File for TrickyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }
    fn write_vectored_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.0.write_vectored_at(slices, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.1.fetch_add(1, Ordering::SeqCst);
        match self.2.load(Ordering::SeqCst) {
            0 => Err(io::Error::other("the disk is broken")),
            left if left > 0 => {
                self.2.fetch_sub(1, Ordering::SeqCst);
                self.0.sync_data()
            }
            _ => self.0.sync_data(),
        }
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }
    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.0.allocate(offset, length)
    }
    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        self.0.punch_hole(offset, length)
    }
}

impl Disk for TrickyDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn File>> {
        let file = RealDisk.open(path, mode)?;
        Ok(Box::new(TrickyFile(file, self.syncs.clone(), self.fail_after.clone())))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir_all(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        RealDisk.list(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_file(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_dir_all(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_dir(path)
    }
    fn exists(&self, path: &Path) -> bool {
        RealDisk.exists(path)
    }
    fn usage(&self, _: &Path) -> io::Result<DiskUsage> {
        Ok(DiskUsage { total_bytes: 1 << 30, free_bytes: self.free_bytes.load(Ordering::SeqCst) })
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        RealDisk.lock(path)
    }
}

struct Tricks {
    host: Host,
    syncs: Arc<AtomicU64>,
    fail_after: Arc<AtomicI64>,
    free_bytes: Arc<AtomicU64>,
}

fn tricks() -> Tricks {
    let syncs = Arc::new(AtomicU64::new(0));
    let fail_after = Arc::new(AtomicI64::new(-1));
    let free_bytes = Arc::new(AtomicU64::new(1 << 30));
    let disk = TrickyDisk {
        syncs: syncs.clone(),
        fail_after: fail_after.clone(),
        free_bytes: free_bytes.clone(),
    };
    Tricks { host: Host::real().with_disk(Arc::new(disk)), syncs, fail_after, free_bytes }
}

#[tokio::test]
async fn a_batch_costs_one_sync() {
    let dir = tempfile::tempdir().unwrap();
    let Tricks { host, syncs, free_bytes, .. } = tricks();
    let store = open_on(&host, dir.path()).await.unwrap();
    put(&store, 0, 100).await.unwrap();
    // no prefill and no new segment from here on: each sync that is counted is a batch's
    free_bytes.store((1 << 20) + 100_000, Ordering::SeqCst);
    let before = settled(&host, &syncs).await;
    put(&store, 1, 100).await.unwrap();
    assert_eq!(settled(&host, &syncs).await - before, 1);
    let many = (100..200).map(|counter| put(&store, counter, 100));
    for result in futures_join(many).await {
        result.unwrap();
    }
    let used = settled(&host, &syncs).await - before - 1;
    assert!((1..=20).contains(&used), "100 concurrent shards took {used} syncs");
}

/// Runs futures at the same time, in one task.
async fn futures_join<T, F: Future<Output = T>>(work: impl Iterator<Item = F>) -> Vec<T> {
    let mut work: Vec<_> = work.map(|one| (Box::pin(one), None)).collect();
    std::future::poll_fn(|cx| {
        for (one, done) in work.iter_mut().filter(|(_, done)| done.is_none()) {
            if let std::task::Poll::Ready(output) = one.as_mut().poll(cx) {
                *done = Some(output);
            }
        }
        if work.iter().all(|(_, done)| done.is_some()) {
            let taken = std::mem::take(&mut work);
            return std::task::Poll::Ready(
                taken.into_iter().filter_map(|(_, done)| done).collect(),
            );
        }
        std::task::Poll::Pending
    })
    .await
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_written_and_all_is_read() {
    for length in [1_000, 100_000] {
        let dir = tempfile::tempdir().unwrap();
        let Tricks { host, fail_after, .. } = tricks();
        let store = open_on(&host, dir.path()).await.unwrap();
        put(&store, 1, 1_000).await.unwrap();
        put(&store, 2, 100_000).await.unwrap();
        fail_after.store(0, Ordering::SeqCst);
        assert!(matches!(put(&store, 3, length).await, Err(StoreError::Io(_))));
        fail_after.store(-1, Ordering::SeqCst);
        assert_eq!(put(&store, 4, 1_000).await, Err(StoreError::NotWritable));
        assert_eq!(put(&store, 5, 100_000).await, Err(StoreError::NotWritable));
        assert_eq!(store.delete(key(1)).await, Err(StoreError::NotWritable));
        assert!(!store.usage().writable && !store.contains(key(3)));
        assert_reads(&store, 1, 1_000).await;
        assert_reads(&store, 2, 100_000).await;
        store.close().await;
        let store = open_on(&host, dir.path()).await.unwrap();
        assert!(!store.recovered().clean);
        assert_reads(&store, 1, 1_000).await;
        assert_reads(&store, 2, 100_000).await;
        put(&store, 3, length).await.unwrap();
        assert_reads(&store, 3, length).await;
    }
}

#[tokio::test]
async fn a_full_disk_takes_tombstones_but_no_shards() {
    let dir = tempfile::tempdir().unwrap();
    let Tricks { host, free_bytes, .. } = tricks();
    let store = open_on(&host, dir.path()).await.unwrap();
    put(&store, 1, 1_000).await.unwrap();
    free_bytes.store(1 << 20, Ordering::SeqCst);
    assert_eq!(put(&store, 2, 1_000).await, Err(StoreError::Full));
    assert_eq!(put(&store, 3, 100_000).await, Err(StoreError::Full));
    assert_eq!(store.usage().free, 0);
    assert_eq!(store.delete(key(1)).await, Ok(true));
    free_bytes.store(1 << 30, Ordering::SeqCst);
    put(&store, 2, 1_000).await.unwrap();
    put(&store, 3, 100_000).await.unwrap();
}

#[tokio::test]
async fn a_disk_that_is_full_to_the_last_byte_goes_on_when_there_is_room_again() {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new("/disk")).unwrap();
    let host = Host::real().with_disk(Arc::new(disk.clone()));
    let store = open_on(&host, Path::new("/disk")).await.unwrap();
    disk.set_capacity(Some(6 << 20));
    let mut written = 0;
    while put(&store, written, 30_000).await != Err(StoreError::Full) {
        written += 1;
    }
    let free = disk.usage(Path::new("/disk")).unwrap().free_bytes;
    assert!(free < (1 << 20) + 40_000, "shards fill the disk up to the reserve, not to {free}");
    assert!(written > 50 && free + 8192 > 1 << 20, "and leave that alone: {free}");
    // somebody else takes all of it: a deletion is refused, and surely not done
    disk.set_capacity(Some((6 << 20) - free));
    let mut keys: Vec<ShardKey> = (0..written).map(key).collect();
    while store.delete(keys[0]).await == Ok(true) {
        keys.remove(0);
    }
    assert_eq!(store.delete(keys[0]).await, Err(StoreError::Full));
    let left: Vec<ShardKey> = store.list(None, 1_000).iter().map(|meta| meta.key).collect();
    assert_eq!(left, keys);
    disk.set_capacity(Some(6 << 20));
    assert_eq!(store.delete_many(&keys).await, vec![Ok(true); keys.len()]);
    disk.cut(CutStyle::DropAll);
    let store = open_on(&host.with_disk(Arc::new(disk.boot())), Path::new("/disk")).await.unwrap();
    assert_eq!((store.list(None, 10), store.recovered().damaged), (vec![], 0));
}

#[derive(Debug, Clone)]
enum Step {
    Put(u64, usize),
    Delete(u64),
    Abandon(u64),
    Crash,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![0..2_000usize, 60_000..70_000usize, 200_000..400_000usize];
    prop_oneof![
        8 => (0..12u64, length).prop_map(|(counter, length)| Step::Put(counter, length)),
        4 => (0..12u64).prop_map(Step::Delete),
        1 => (0..12u64).prop_map(Step::Abandon),
        1 => Just(Step::Crash),
        1 => Just(Step::Restart),
    ]
}

async fn follow_the_model(steps: Vec<Step>) {
    let mut dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).await;
    let mut model: BTreeMap<u64, usize> = BTreeMap::new();
    for step in steps {
        match step {
            Step::Put(counter, length) => {
                let expected = match model.get(&counter) {
                    Some(&known) if known != length => Err(StoreError::Conflict),
                    _ => Ok(()),
                };
                let result = put(&store, counter, length).await;
                assert_eq!(result, expected);
                model.entry(counter).or_insert(length);
            }
            Step::Delete(counter) => {
                let existed = model.remove(&counter).is_some();
                assert_eq!(store.delete(key(counter)).await, Ok(existed));
            }
            Step::Abandon(counter) => {
                let mut writer = store.begin(meta(counter, 300_000)).await.unwrap();
                writer.write(content(99, 270_000)).await.unwrap();
            }
            Step::Crash => {
                let image = tempfile::tempdir().unwrap();
                copy_dir(dir.path(), image.path());
                store = open(image.path()).await;
                dir = image;
            }
            Step::Restart => {
                store.close().await;
                store = open(dir.path()).await;
                assert!(store.recovered().clean);
            }
        }
        let listed: BTreeMap<u64, usize> = store
            .list(None, 100)
            .iter()
            .map(|meta| (meta.key.extent.counter, usize::try_from(meta.length).unwrap()))
            .collect();
        assert_eq!(listed, model);
    }
    for (&counter, &length) in &model {
        assert_reads(&store, counter, length).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_is_a_map_through_crashes_and_restarts(steps in prop::collection::vec(step(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(follow_the_model(steps));
    }
}
