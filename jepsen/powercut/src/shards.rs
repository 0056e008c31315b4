//! The victim that works with `ashlar-store`, and what the harness knows of its shards.
//!
//! The harness keeps a [`Shelf`]: for each shard whether it must be there, must be gone, or may be either. A victim is
//! given the shelf, opens the store, settles what was open and says what breaks a promise; then it works until the
//! power goes, and says of each step when it begins and when it is acknowledged.

use crate::dice::Dice;
use crate::victim::{Orders, say};
use anyhow::{Context, Result, bail};
use ashlar_host::{Host, TaskKind};
use ashlar_store::{
    Owner, SMALL_SHARD_BYTES_END, ShardKey, ShardMeta, Store, StoreConfig, StoreError,
};
use ashlar_types::{BucketId, ClusterId, Epoch, ExtentId, NodeId, PgId, Profile, SessionId, Slot};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;

/// Tasks that put and delete at the same time; each has the shards whose number it leaves as a remainder.
const WORKERS: u64 = 6;
/// A worker with more shards than this deletes.
const LIVE_MAX: usize = 30;
/// Numbers of one life; rounds do not share numbers.
const NUMBERS_A_ROUND: u64 = 1_000_000;

/// What is known of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Acknowledged, of this length.
    There(u64),
    /// Its deletion was acknowledged, or it was looked for and was not there.
    Gone,
    /// A put or a deletion of it was begun and not acknowledged; its length.
    Open(u64),
}

/// What is known of all shards.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shelf(BTreeMap<u64, Known>);

impl Shelf {
    /// Takes what a victim said; false where it is no line about shards.
    pub(crate) fn take(&mut self, line: &str) -> Result<bool> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| -> Result<u64> {
            words.get(at).context("a number is missing")?.parse().context("no number")
        };
        let known = match words[0] {
            "put" => Known::Open(number(2)?),
            "there" => Known::There(number(2)?),
            "gone" => Known::Gone,
            "del" => match self.0.get(&number(1)?) {
                Some(Known::There(length) | Known::Open(length)) => Known::Open(*length),
                other => bail!("{line}: it is {other:?}"),
            },
            _ => return Ok(false),
        };
        self.0.insert(number(1)?, known);
        Ok(true)
    }

    /// As lines that `take` understands; an open one comes as its put.
    pub(crate) fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(number, known)| match known {
            Known::There(length) => format!("there {number} {length}"),
            Known::Open(length) => format!("put {number} {length}"),
            Known::Gone => format!("gone {number}"),
        })
    }

    /// Shards of which it is not known whether they are there.
    pub(crate) fn open(&self) -> u64 {
        self.0.values().filter(|known| matches!(known, Known::Open(_))).count() as u64
    }
}

/// A life: judge what the last one left, then work until the power goes.
pub(crate) async fn live(orders: &Orders, dir: &Path, mut shelf: Shelf) -> Result<()> {
    let host = Host::real();
    let config = StoreConfig {
        dir: dir.to_owned(),
        small_segment_bytes: 1 << 20,
        large_segment_bytes: 8 << 20,
        reserve_bytes: 8 << 20,
        expects: None,
        // both ways of writing large shards are cut
        direct_io: orders.round.is_multiple_of(2),
    };
    let owner = Owner { cluster: ClusterId(1), node: NodeId(1) };
    let opener = host.clone();
    let opened = host.tasks.run_blocking(move || Store::open(&opener, config, owner)).await;
    let store = match opened {
        Ok(store) => store,
        Err(error) => return say(&format!("broken the store does not open: {error}")),
    };
    judge(&store, &mut shelf).await?;
    let space = store.space();
    say(&format!(
        "space {} small segments, {} tombstones, {} KiB recycled",
        space.small_segments,
        space.tombstones,
        space.recycled_bytes >> 10
    ))?;
    say("ready")?;
    for number in 0..WORKERS {
        let mine = |key: &u64| key % WORKERS == number;
        let there = shelf.0.iter().filter(|(key, known)| mine(key) && **known != Known::Gone);
        let worker = Worker {
            store: store.clone(),
            dice: Dice::new(orders.seed.wrapping_mul(WORKERS).wrapping_add(number)),
            live: there.map(|(key, _)| *key).collect(),
            next: orders.round * NUMBERS_A_ROUND + number,
            is_hasty: orders.hasty,
        };
        host.tasks.spawn(TaskKind::Background("victim"), Box::pin(worker.work()));
    }
    std::future::pending().await
}

/// Says what breaks a promise, and settles what was open.
async fn judge(store: &Store, shelf: &mut Shelf) -> Result<()> {
    let damaged = store.recovered().damaged;
    if damaged > 0 {
        say(&format!("broken {damaged} records are damaged after a cut"))?;
    }
    let mut listed = BTreeMap::new();
    let mut after = None;
    loop {
        let page = store.list(after, 1_000);
        let Some(last) = page.last() else { break };
        after = Some(last.key);
        listed.extend(page.into_iter().map(|meta| (meta.key.extent.counter, meta.length)));
    }
    for (&number, known) in &mut shelf.0 {
        let found = listed.remove(&number);
        let right = match found {
            Some(length) => is_right(store, number, length).await?,
            None => false,
        };
        let (was, now) = (*known, found.map_or(Known::Gone, Known::There));
        let broken = match (was, found) {
            (Known::There(_), None) => Some("acknowledged, and lost"),
            (Known::Gone, Some(_)) => Some("deleted, and there again"),
            (Known::There(length) | Known::Open(length), Some(found)) if length != found => {
                Some("of another length than was written")
            }
            (_, Some(_)) if !right => Some("damaged"),
            _ => None,
        };
        if let Some(broken) = broken {
            say(&format!("broken shard {number} ({was:?}) is {broken}"))?;
        }
        if was != now {
            *known = now;
            say(&match now {
                Known::There(length) => format!("there {number} {length}"),
                Known::Gone | Known::Open(_) => format!("gone {number}"),
            })?;
        }
    }
    for number in listed.keys() {
        say(&format!("broken shard {number} is there, and nobody wrote it"))?;
    }
    Ok(())
}

/// Whether a shard's bytes are those that were written.
async fn is_right(store: &Store, number: u64, length: u64) -> Result<bool> {
    let bytes = store.read(key(number), 0, length).await;
    Ok(bytes == Ok(content(number, length)?))
}

/// Puts and deletes, one after another.
struct Worker {
    store: Store,
    dice: Dice,
    live: Vec<u64>,
    next: u64,
    is_hasty: bool,
}

impl Worker {
    async fn work(mut self) {
        loop {
            let is_full = self.live.len() > LIVE_MAX;
            let deletes = !self.live.is_empty() && (is_full || self.dice.one_in(4));
            let step = if deletes { self.delete().await } else { self.put().await };
            if let Err(error) = step {
                // after the cut everything fails: the harness is about to end this process
                drop(say(&format!("note a worker ends: {error:#}")));
                return;
            }
        }
    }

    async fn put(&mut self) -> Result<()> {
        let number = self.next;
        self.next += WORKERS;
        let length = if self.dice.one_in(6) {
            SMALL_SHARD_BYTES_END + self.dice.roll(400_000)
        } else {
            1 + self.dice.roll(20_000)
        };
        say(&format!("put {number} {length}"))?;
        if self.is_hasty {
            say(&format!("there {number} {length}"))?;
        }
        write(&self.store, number, length).await?;
        self.live.push(number);
        say(&format!("there {number} {length}"))
    }

    async fn delete(&mut self) -> Result<()> {
        let number = self.live.swap_remove(self.dice.pick(self.live.len()));
        say(&format!("del {number}"))?;
        self.store.delete(key(number)).await?;
        say(&format!("gone {number}"))
    }
}

async fn write(store: &Store, number: u64, length: u64) -> Result<(), StoreError> {
    let bytes = content(number, length).map_err(|_| StoreError::NotFound)?;
    if length < SMALL_SHARD_BYTES_END {
        return store.put_small(meta(number, length), bytes).await;
    }
    let mut writer = store.begin(meta(number, length)).await?;
    let mut rest = bytes;
    while !rest.is_empty() {
        writer.write(rest.split_to(rest.len().min(100_000))).await?;
    }
    writer.commit().await.map(drop)
}

fn key(number: u64) -> ShardKey {
    ShardKey { extent: ExtentId { session: SessionId(1), counter: number }, slot: Slot(1) }
}

fn meta(number: u64, length: u64) -> ShardMeta {
    ShardMeta {
        key: key(number),
        profile: Profile::RS_4_2,
        pg: PgId(1),
        pg_epoch: Epoch(1),
        bucket: BucketId(1),
        length,
        created_ms: 1,
    }
}

/// Bytes that differ at every place and between shards.
fn content(number: u64, length: u64) -> Result<Bytes> {
    let mut bytes = Vec::with_capacity(usize::try_from(length)? + 8);
    let mut dice = Dice::new(number);
    while (bytes.len() as u64) < length {
        bytes.extend(dice.roll(u64::MAX).to_le_bytes());
    }
    bytes.truncate(usize::try_from(length)?);
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_begun_is_open_until_it_is_acknowledged() {
        let mut shelf = Shelf::default();
        for line in [
            "put 1 10",
            "put 2 20",
            "there 1 10",
            "put 3 30",
            "there 3 30",
            "del 3",
            "there 4 4",
            "del 4",
            "gone 4",
        ] {
            assert!(shelf.take(line).unwrap());
        }
        assert!(!shelf.take("ready").unwrap());
        assert!(shelf.take("del 9").is_err(), "nobody may delete what was never there");
        let known: Vec<Known> = shelf.0.values().copied().collect();
        assert_eq!(known, [Known::There(10), Known::Open(20), Known::Open(30), Known::Gone]);
        assert_eq!(shelf.open(), 2);
        let mut again = Shelf::default();
        for line in shelf.lines() {
            again.take(&line).unwrap();
        }
        assert_eq!(again.0, shelf.0);
    }
}
