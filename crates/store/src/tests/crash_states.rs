//! Every crash state of short scripts: for each moment of a script, the disk as a power cut may leave it, with un-synced
//! sectors, holes, lengths and names kept or dropped in all ways where these are few, and in a sample of them where they
//! are many. Each distinct image is opened once; what it shows is compared with what a client knew at that moment: what
//! was acknowledged is there, nothing deleted is back, nothing never written appears, no byte is wrong, and the disk goes
//! on (C1, C6, D5, D9).
//!
//! Each test has a floor of distinct images, so that a script that shrinks is noticed: the floors of this file and of the
//! log's `crash_states` are together more than 100,000 (`docs/guarantees.md`).

use super::sim::{DIR, new_disk, until};
use super::{content, futures_join, key, meta};
use crate::{Owner, ShardKey, Space, Store, StoreConfig, StoreError};
use ashlar_host::{Host, Moment, SeededRandom, SimDisk, sets_of_pieces};
use ashlar_types::{ClusterId, NodeId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The least that is a large shard.
const LARGE: usize = 64 * 1024;
/// Together with what lies there, too little to prefill: so an image is as small as its records.
const CAPACITY: u64 = 3 << 20;
/// Images of this many end in a second cut, and are opened again.
const REOPENED: usize = 16;
/// A shard that every image takes, to show that it goes on.
const PROBE: u64 = 999_999;

/// What a cut may leave of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct May {
    be_absent: bool,
    be_damaged: bool,
    be_whole: Option<usize>,
}

const GONE: May = May { be_absent: true, be_damaged: false, be_whole: None };

fn there(length: usize) -> May {
    May { be_absent: false, be_damaged: false, be_whole: Some(length) }
}

impl May {
    /// Being written or deleted.
    fn or_absent(self) -> Self {
        Self { be_absent: true, ..self }
    }

    /// A byte of it was turned.
    fn or_damaged(self) -> Self {
        Self { be_damaged: true, ..self }
    }
}

/// What an image shows of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Whole(usize),
    Damaged,
}

/// What an image shows.
type Shown = BTreeMap<u64, Seen>;

type Knowledge = BTreeMap<u64, May>;

/// A script that runs: its disk, and what a client knows since which moment.
struct Script {
    disk: SimDisk,
    store: Store,
    now: Knowledge,
    since: Vec<(usize, Knowledge)>,
}

async fn open(disk: &SimDisk) -> Result<Store, StoreError> {
    let random = Arc::new(SeededRandom::new(7));
    let host = Host { random, ..Host::real() }.with_disk(Arc::new(disk.boot()));
    let config = StoreConfig {
        dir: DIR.into(),
        small_segment_bytes: 256 * 1024,
        large_segment_bytes: 160 * 1024,
        reserve_bytes: 0,
        expects: None,
        direct_io: false,
    };
    let owner = Owner { cluster: ClusterId(1), node: NodeId(1) };
    Store::open(&host, config, owner)
}

impl Script {
    /// Begins with a disk that is being opened for the first time.
    async fn on_a_new_disk() -> Self {
        let disk = new_disk();
        disk.set_capacity(Some(CAPACITY));
        disk.keep_moments();
        Self::on(disk, Knowledge::new()).await
    }

    /// Begins with a disk of which something is known; its moments are kept already.
    async fn on(disk: SimDisk, known: Knowledge) -> Self {
        let store = open(&disk).await.expect("the disk opens");
        Self { disk, store, since: vec![(0, known.clone())], now: known }
    }

    fn note(&mut self, known: impl IntoIterator<Item = (u64, May)>) {
        self.now.extend(known);
        self.since.push((self.disk.steps(), self.now.clone()));
    }

    /// Puts shards at the same time.
    async fn put(&mut self, shards: &[(u64, usize)]) {
        let known = |&(counter, length): &(u64, usize)| {
            let before = self.now.get(&counter).copied();
            let being_put = there(length).or_absent();
            (counter, before.filter(|before| before.be_whole.is_some()).unwrap_or(being_put))
        };
        let being_put: Vec<_> = shards.iter().map(known).collect();
        self.note(being_put);
        let puts = shards.iter().map(|&(counter, length)| super::put(&self.store, counter, length));
        for result in futures_join(puts).await {
            result.expect("it is put");
        }
        self.note(shards.iter().map(|&(counter, length)| (counter, there(length))));
    }

    async fn refuse(&mut self, counter: u64, length: usize) {
        assert_eq!(super::put(&self.store, counter, length).await, Err(StoreError::Full));
        self.note([(counter, GONE)]);
    }

    async fn delete(&mut self, counters: &[u64]) {
        let dying: Vec<_> =
            counters.iter().map(|counter| (*counter, self.now[counter].or_absent())).collect();
        self.note(dying);
        let keys: Vec<ShardKey> = counters.iter().copied().map(key).collect();
        assert_eq!(self.store.delete_many(&keys).await, vec![Ok(true); keys.len()]);
        self.note(counters.iter().map(|&counter| (counter, GONE)));
    }

    /// Turns a byte of a shard's content.
    fn damage(&mut self, counter: u64) {
        let entry = self.store.core.entry(key(counter)).expect("it is there");
        let header = if entry.meta.length < LARGE as u64 { 128 } else { 4096 };
        let damaged = self.now[&counter].or_damaged();
        self.note([(counter, damaged)]);
        self.disk.flip(&entry.segment.path, entry.offset + header + 5).expect("it lies there");
    }

    async fn until(&self, what: &str, wanted: impl Fn(&Space) -> bool) {
        until(&self.store, what, wanted).await;
    }

    async fn reopen(&mut self) {
        self.store = open(&self.disk).await.expect("the disk opens again");
    }

    /// Ends, and judges every moment; each with about so many images.
    async fn judge(self, name: &str, images_a_moment: usize) -> Tally {
        let Self { disk, store, since, .. } = self;
        let moments = disk.take_moments();
        drop(store);
        let mut tally = Tally::new(name);
        let dice = SeededRandom::new(7);
        for (number, moment) in moments.iter().enumerate() {
            let known = known_at(&since, number);
            for set in sets_of_pieces(moment.pieces(), images_a_moment, &dice) {
                tally.judge(&moment.cut(|piece| set[piece]), known, number).await;
            }
        }
        tally
    }
}

/// The last that was noted before a moment. Until the disk is formatted there is nothing to know.
fn known_at(since: &[(usize, Knowledge)], moment: usize) -> &Knowledge {
    let later = since.partition_point(|(begun, _)| *begun <= moment);
    &since[later - 1].1
}

/// The images that were looked at.
struct Tally {
    name: String,
    tried: usize,
    seen: HashMap<u64, Shown>,
}

impl Tally {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), tried: 0, seen: HashMap::new() }
    }

    /// Opens an image, if it is new, and compares what it shows with what was known.
    async fn judge(&mut self, image: &SimDisk, known: &Knowledge, moment: usize) {
        self.tried += 1;
        let fingerprint = image.fingerprint();
        if !self.seen.contains_key(&fingerprint) {
            let shown = look_at(image, self.seen.len().is_multiple_of(REOPENED)).await;
            self.seen.insert(fingerprint, shown);
        }
        let when = format!("{} at moment {moment}, image {fingerprint:016x}", self.name);
        compare(&self.seen[&fingerprint], known, &when);
    }

    fn is_at_least(&self, floor: usize) {
        let Self { name, tried, seen } = self;
        println!("{name}: {} distinct images of {tried}", seen.len());
        assert!(seen.len() >= floor, "{name}: {} distinct images", seen.len());
    }
}

fn compare(shown: &Shown, known: &Knowledge, when: &str) {
    for (&counter, may) in known {
        let is_allowed = match shown.get(&counter) {
            None => may.be_absent,
            Some(Seen::Damaged) => may.be_damaged,
            Some(&Seen::Whole(length)) => may.be_whole == Some(length),
        };
        assert!(is_allowed, "{when}: {counter} may {may:?} and is {:?}", shown.get(&counter));
    }
    for counter in shown.keys() {
        assert!(known.contains_key(counter), "{when}: {counter} was never written");
    }
}

/// Opens an image, reads all of it, and works on.
async fn look_at(image: &SimDisk, is_opened_again: bool) -> Shown {
    let store = open(image).await.expect("the disk opens after a cut");
    let shown = read_all(&store);
    let damaged = shown.values().filter(|seen| **seen == Seen::Damaged).count() as u64;
    assert!(store.recovered().damaged <= damaged, "{:?} of {damaged}", store.recovered());
    image.set_capacity(None);
    super::put(&store, PROBE, 40).await.expect("the disk takes more");
    if !is_opened_again {
        return shown;
    }
    for counter in shown.keys() {
        assert_eq!(store.delete(key(*counter)).await, Ok(true));
    }
    image.cut(ashlar_host::CutStyle::DropAll);
    let store = open(image).await.expect("the disk opens after a second cut");
    assert_eq!(read_all(&store), BTreeMap::from([(PROBE, Seen::Whole(40))]));
    store.close().await;
    shown
}

/// What the index has, and whether it reads; right bytes or none.
fn read_all(store: &Store) -> Shown {
    let index = store.core.index.read().expect("nobody panics under it");
    let read = |(key, entry): (&ShardKey, &crate::index::Entry)| {
        let counter = key.extent.counter;
        let length = usize::try_from(entry.meta.length).expect("shards fit into memory");
        let expected = crate::ShardMeta { length: entry.meta.length, ..meta(counter, 0) };
        assert_eq!(entry.meta, expected, "what is said of {counter}");
        let seen = match entry.read(&store.core.pool, 0, entry.meta.length) {
            Ok(bytes) => {
                assert_eq!(bytes, content(counter, length), "a wrong byte in {counter}");
                Seen::Whole(length)
            }
            Err(error) => {
                assert_eq!(error, StoreError::Corrupt, "{counter}");
                Seen::Damaged
            }
        };
        (counter, seen)
    };
    index.iter().map(read).collect()
}

#[tokio::test]
async fn a_cut_while_small_shards_are_put() {
    let mut script = Script::on_a_new_disk().await;
    script.put(&[(1, 300)]).await;
    script.put(&[(2, 0), (3, 1), (4, 700), (5, 3_000), (6, 60_000)]).await;
    script.put(&[(7, 5_000), (8, 400)]).await;
    script.put(&[(9, 65_535)]).await;
    script.judge("small puts", 3_000).await.is_at_least(7_000);
}

#[tokio::test]
async fn a_cut_while_large_shards_are_put() {
    let mut script = Script::on_a_new_disk().await;
    script.put(&[(1, LARGE)]).await;
    // one that is never ended, one that ends early, and two at once behind them
    let given_up = script.store.begin(meta(2, LARGE)).await.expect("begins");
    script.note([(3, there(10).or_absent())]);
    let mut short = script.store.begin(meta(3, LARGE)).await.expect("begins");
    short.write(content(3, 10)).await.expect("writes");
    short.commit().await.expect("commits");
    script.note([(3, there(10))]);
    drop(given_up);
    script.put(&[(4, LARGE), (5, LARGE + 700)]).await;
    script.judge("large puts", 1_500).await.is_at_least(8_000);
}

#[tokio::test]
async fn a_cut_while_shards_are_deleted() {
    let mut script = Script::on_a_new_disk().await;
    script.put(&[(1, 300), (2, 600), (3, 0), (4, 5_000)]).await;
    script.put(&[(5, LARGE), (6, LARGE)]).await;
    script.delete(&[1]).await;
    script.delete(&[2, 5]).await;
    script.put(&[(1, 400), (2, 600)]).await;
    script.delete(&[1, 2, 3, 4]).await;
    script.put(&[(5, 200)]).await;
    script.delete(&[6, 5]).await;
    script.until("all holes are punched", |space| space.waiting_bytes == 0).await;
    script.put(&[(7, 10)]).await;
    script.judge("deletions", 1_600).await.is_at_least(5_500);
}

#[tokio::test]
async fn a_cut_while_damaged_shards_are_replaced() {
    let mut script = Script::on_a_new_disk().await;
    script.put(&[(1, 300), (2, LARGE), (3, 700)]).await;
    // it says that those before it were durable: else damage in the last batch is a torn tail
    script.put(&[(4, 100)]).await;
    script.damage(1);
    script.damage(2);
    script.put(&[(1, 300)]).await;
    script.put(&[(2, LARGE)]).await;
    script.damage(3);
    script.delete(&[3]).await;
    script.put(&[(3, 900)]).await;
    script.judge("replacements", 1_500).await.is_at_least(4_500);
}

#[tokio::test]
async fn a_cut_while_checkpoints_are_written() {
    let mut script = Script::on_a_new_disk().await;
    script.put(&[(1, 300), (2, 600), (3, LARGE)]).await;
    script.delete(&[2]).await;
    script.store.close().await;
    script.reopen().await;
    script.put(&[(4, 1_000), (5, LARGE)]).await;
    script.delete(&[1, 3]).await;
    // recovery writes one too
    script.disk.cut(ashlar_host::CutStyle::KeepAll);
    script.reopen().await;
    script.put(&[(6, 200), (1, 100)]).await;
    script.delete(&[4]).await;
    script.store.close().await;
    script.reopen().await;
    script.put(&[(7, 100)]).await;
    script.judge("checkpoints", 1_200).await.is_at_least(4_500);
}

#[tokio::test]
async fn a_cut_while_a_segment_is_compacted_and_used_again() {
    let mut script = Script::on_a_new_disk().await;
    script.put(&[(1, 100), (2, 900), (3, 60_000)]).await;
    script.put(&[(4, 60_000), (5, 60_000)]).await;
    script.delete(&[1]).await;
    script.put(&[(6, 60_000)]).await;
    // the first segment is full: 2 is moved out of it, with the tombstone over 1 or without
    script.put(&[(7, 60_000)]).await;
    script.delete(&[3, 4, 5, 6]).await;
    script.until("it may be used again", |space| space.recycled_bytes > 0).await;
    script.put(&[(8, 60_000), (9, 60_000)]).await;
    script.put(&[(10, 60_000), (11, 60_000)]).await;
    script.delete(&[2, 7]).await;
    script.judge("compaction", 1_500).await.is_at_least(7_000);
}

#[tokio::test]
async fn a_cut_while_holes_are_punched_and_a_segment_goes() {
    let mut script = Script::on_a_new_disk().await;
    for counter in 1..=5 {
        script.put(&[(counter, LARGE + 100)]).await;
    }
    script.delete(&[1, 3]).await;
    script.until("two are punched", |space| space.waiting_bytes == 0).await;
    script.delete(&[2]).await;
    script.until("a segment is removed", |space| space.large_segments <= 2).await;
    script.put(&[(6, 100)]).await;
    script.delete(&[5, 4]).await;
    script.until("the last ones are punched", |space| space.waiting_bytes == 0).await;
    script.judge("holes", 900).await.is_at_least(8_000);
}

#[tokio::test]
async fn a_cut_while_a_disk_is_full() {
    let mut script = Script::on_a_new_disk().await;
    script.put(&[(1, 3_000), (2, 30_000)]).await;
    let used = super::sim::used(&script.disk);
    // enough for the record, and not for its page: the batch is taken back
    script.disk.set_capacity(Some(used + 3_500));
    script.note([(3, there(3_000).or_absent())]);
    script.refuse(3, 3_000).await;
    script.disk.set_capacity(Some(used + 4_200));
    script.refuse(4, 60_000).await;
    script.refuse(5, LARGE).await;
    script.delete(&[1]).await;
    script.disk.set_capacity(Some(CAPACITY));
    script.put(&[(3, 3_000), (4, 60_000)]).await;
    script.put(&[(5, LARGE)]).await;
    script.judge("full disk", 2_000).await.is_at_least(6_500);
}

#[tokio::test]
async fn a_cut_while_segments_are_prefilled() {
    let mut script = Script::on_a_new_disk().await;
    script.disk.set_capacity(None);
    script.put(&[(1, 300)]).await;
    script.until("it is prefilled", |space| space.small_bytes == 256 * 1024).await;
    script.put(&[(2, 900), (3, 30_000)]).await;
    script.delete(&[1]).await;
    script.put(&[(4, 60_000), (5, 60_000)]).await;
    script.store.close().await;
    script.reopen().await;
    // goes on in the same segment, and then in the next one
    script.put(&[(6, 60_000)]).await;
    script.put(&[(7, 60_000), (8, 30_000)]).await;
    script.judge("prefilled segments", 1_200).await.is_at_least(4_000);
}

#[tokio::test]
async fn a_cut_while_a_cut_is_recovered() {
    let mut script = Script::on_a_new_disk().await;
    script.put(&[(1, 300), (2, LARGE)]).await;
    script.delete(&[1]).await;
    script.put(&[(3, 2_000), (4, 700), (5, LARGE)]).await;
    script.delete(&[3]).await;
    let Script { disk, store, since, .. } = script;
    let moments = disk.take_moments();
    drop(store);
    let mut tally = Tally::new("recovery");
    let dice = SeededRandom::new(3);
    for (number, moment) in moments.iter().enumerate() {
        for set in sets_of_pieces(moment.pieces(), 24, &dice) {
            let image = moment.cut(|piece| set[piece]);
            recover_and_cut(&mut tally, &image, known_at(&since, number), &dice, number).await;
        }
    }
    tally.is_at_least(1_500);
}

/// Cuts the recovery of an image at every moment. What it shows once, it shows for ever.
async fn recover_and_cut(
    tally: &mut Tally,
    image: &SimDisk,
    known: &Knowledge,
    dice: &SeededRandom,
    number: usize,
) {
    image.keep_moments();
    let store = open(image).await.expect("the disk opens after a cut");
    let settled: Knowledge =
        known.iter().map(|(&counter, may)| (counter, settle(*may, &store, counter))).collect();
    let recovered = image.take_moments();
    drop(store);
    let last = recovered.len() - 1;
    for (at, moment) in recovered.iter().enumerate() {
        let known = if at == last { &settled } else { known };
        for set in sets_of_pieces(moment.pieces(), 40, dice) {
            tally.judge(&moment.cut(|piece| set[piece]), known, number).await;
        }
    }
}

/// What may be seen of a shard once a disk has shown it so.
fn settle(may: May, store: &Store, counter: u64) -> May {
    match store.core.entry(key(counter)) {
        Some(_) => May { be_absent: false, ..may },
        None => GONE,
    }
}

/// Every write of a script that has all structures is cut behind each of its bytes: superblock, segment header, record,
/// tombstone, move, reservation, trailer, checkpoint, position of the scrub.
#[tokio::test]
async fn a_cut_behind_every_byte_of_every_structure() {
    let mut script = Script::on_a_new_disk().await;
    script.put(&[(1, 40), (2, 500)]).await;
    script.put(&[(3, LARGE)]).await;
    script.delete(&[1]).await;
    script.put(&[(4, 65_000), (5, 65_000), (6, 65_000)]).await;
    // begins the next segment, whether or not it shares a batch with 8: the first one keeps too little to stay
    script.put(&[(7, 65_000), (8, 20_000)]).await;
    script.delete(&[4, 5, 6]).await;
    script.delete(&[8]).await;
    script.until("2 is moved", |space| space.recycled_bytes > 0).await;
    script.store.scrub_step(1).await;
    script.store.close().await;
    script.reopen().await;
    script.put(&[(9, 30)]).await;
    let Script { disk, store, since, .. } = script;
    let moments = disk.take_moments();
    drop(store);
    let mut tally = Tally::new("every byte");
    for (number, moment) in moments.iter().enumerate() {
        for count in counts_of(moment) {
            let image = moment.cut_in_last_write(count);
            tally.judge(&image, known_at(&since, number), number).await;
        }
    }
    tally.is_at_least(4_000);
}

/// The lengths to which the last write is worth cutting: a zero that is kept or not is the same. Of long contents only the
/// first and the last bytes.
fn counts_of(moment: &Moment) -> Vec<usize> {
    let Some(bytes) = moment.last_write() else { return Vec::new() };
    let ends = |at: usize| at < 1_200 || at + 300 > bytes.len();
    (0..=bytes.len()).filter(|&at| ends(at) && (at == 0 || bytes[at - 1] != 0)).collect()
}
