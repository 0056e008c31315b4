//! The scrub: every block of every shard is read and compared with its CRC, in the order of the keys, at the pace of the
//! caller.
//!
//! What it has found, and how far it has come, is kept in a small file, which is written when something is found, every
//! now and then, and when the disk is closed: after a crash at most [`SAVE_BYTES`] are read twice. A damaged shard stays
//! listed until it is replaced or deleted, one that could not be read until it can. Header and trailer are looked at too:
//! a reader does not need them, but an index that has to be rebuilt does.

use crate::buffer::{FRAME_BYTES, FramePool};
use crate::format::{
    Class, FORMAT, HEADER_BYTES, Kind, RecordHeader, Trailer, blocks, get, get_u32, get_u64, put,
    size, trailer_bytes, trailer_offset,
};
use crate::index::Entry;
use crate::readers::Reading;
use crate::store::Core;
use crate::{ShardKey, StoreError};
use ashlar_host::Disk;
use ashlar_types::{BLOCK_BYTES, DiskId, ExtentId, Slot};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};

const FILE_NAME: &str = "ashlar.scrub";
const MAGIC: &[u8; 8] = b"ASHSCRUB";
const HEAD_BYTES: usize = 80;
const DAMAGED_BYTES: usize = 32;
/// So much is verified again after a crash, at most.
const SAVE_BYTES: u64 = 256 << 20;

/// What is damaged of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    /// Its content: reading it answers [`StoreError::Corrupt`].
    Content,
    /// Only its header: it is read as long as the index knows it, and would be lost with that.
    Header,
    /// Only its trailer; as the header.
    Trailer,
    /// The disk answers with an error.
    Unreadable,
}

/// What one step has done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScrubStep {
    /// What turned out to be damaged, and was not listed as that before.
    pub found: Vec<(ShardKey, Damage)>,
    /// Bytes that were read and compared.
    pub verified_bytes: u64,
    /// Shards of which the last byte was.
    pub verified_shards: u64,
    /// All shards have been looked at; the next step begins again.
    pub is_pass_end: bool,
}

/// How far the scrub of a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrubProgress {
    /// Passes over all shards that were finished, ever.
    pub passes: u64,
    /// The shard that this pass looked at last; `None`: it is at its beginning.
    pub position: Option<ShardKey>,
    /// Bytes that this pass has verified.
    pub pass_bytes: u64,
    /// Shards that are listed as damaged.
    pub damaged: u64,
}

/// Where the next step goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    key: ShardKey,
    /// The next block of this shard; `None`: behind it.
    block: Option<u64>,
}

/// A record that is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Damaged {
    sequence: u64,
    damage: Damage,
}

/// What the scrub of a disk knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Scrub {
    passes: u64,
    pass_bytes: u64,
    cursor: Option<Cursor>,
    damaged: BTreeMap<ShardKey, Damaged>,
    unsaved_bytes: u64,
}

impl Damage {
    fn code(self) -> u8 {
        match self {
            Self::Content => 1,
            Self::Header => 2,
            Self::Trailer => 3,
            Self::Unreadable => 4,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Content),
            2 => Some(Self::Header),
            3 => Some(Self::Trailer),
            4 => Some(Self::Unreadable),
            _ => None,
        }
    }
}

impl From<StoreError> for Damage {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Corrupt => Self::Content,
            _ => Self::Unreadable,
        }
    }
}

impl Scrub {
    /// What the last life left; a file that is not whole says nothing.
    pub(crate) fn load(disk: &(dyn Disk + 'static), dir: &Path, owner: DiskId) -> Self {
        let bytes = disk.read(&path(dir)).unwrap_or_default();
        Self::decode(&bytes, owner).unwrap_or_default()
    }

    fn encode(&self, disk: DiskId) -> Vec<u8> {
        let mut bytes = vec![0; HEAD_BYTES + DAMAGED_BYTES * self.damaged.len() + 4];
        put(&mut bytes, 0, *MAGIC);
        put(&mut bytes, 8, FORMAT.to_le_bytes());
        put(&mut bytes, 16, disk.0.to_le_bytes());
        put(&mut bytes, 32, self.passes.to_le_bytes());
        put(&mut bytes, 40, self.pass_bytes.to_le_bytes());
        if let Some(Cursor { key, block }) = self.cursor {
            put(&mut bytes, 12, [1]);
            put(&mut bytes, 48, key.extent.to_bytes());
            put(&mut bytes, 13, [key.slot.0, u8::from(block.is_some())]);
            put(&mut bytes, 64, block.unwrap_or_default().to_le_bytes());
        }
        put(&mut bytes, 72, (self.damaged.len() as u64).to_le_bytes());
        let mut at = HEAD_BYTES;
        for (key, Damaged { sequence, damage }) in &self.damaged {
            put(&mut bytes, at, key.extent.to_bytes());
            put(&mut bytes, at + 16, [key.slot.0, damage.code()]);
            put(&mut bytes, at + 24, sequence.to_le_bytes());
            at += DAMAGED_BYTES;
        }
        let crc = crc32c::crc32c(&bytes[..at]);
        put(&mut bytes, at, crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8], disk: DiskId) -> Option<Self> {
        let body = bytes.len().checked_sub(4).filter(|&body| body >= HEAD_BYTES)?;
        let is_ours = get_u32(bytes, body) == crc32c::crc32c(&bytes[..body])
            && bytes[..8] == *MAGIC
            && get_u32(bytes, 8) == FORMAT
            && u128::from_le_bytes(get(bytes, 16)) == disk.0;
        let count = usize::try_from(get_u64(bytes, 72)).ok()?.checked_mul(DAMAGED_BYTES)?;
        if !is_ours || count.checked_add(HEAD_BYTES)? != body {
            return None;
        }
        let key = |at, slot| ShardKey {
            extent: ExtentId::from_bytes(get(bytes, at)),
            slot: Slot(bytes[slot]),
        };
        let block = (bytes[14] == 1).then(|| get_u64(bytes, 64));
        let cursor = (bytes[12] == 1).then(|| Cursor { key: key(48, 13), block });
        let mut damaged = BTreeMap::new();
        for at in (HEAD_BYTES..body).step_by(DAMAGED_BYTES) {
            let damage = Damage::from_code(bytes[at + 17])?;
            let sequence = get_u64(bytes, at + 24);
            damaged.insert(key(at, at + 16), Damaged { sequence, damage });
        }
        let (passes, pass_bytes) = (get_u64(bytes, 32), get_u64(bytes, 40));
        Some(Self { passes, pass_bytes, cursor, damaged, unsaved_bytes: 0 })
    }
}

impl Core {
    fn scrub(&self) -> MutexGuard<'_, Scrub> {
        self.scrub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Verifies about `budget_bytes`, at least one piece. Blocks. Two steps at once verify the same, and no harm is done.
    pub(crate) fn scrub_step(self: &Arc<Self>, budget_bytes: u64) -> ScrubStep {
        let mut step = ScrubStep::default();
        while step.verified_bytes < budget_bytes.max(1) {
            let reading = Reading::enter(self);
            let cursor = self.scrub().cursor;
            let Some((entry, block)) = self.next_entry(cursor) else {
                step.is_pass_end = true;
                break;
            };
            let before = step.verified_bytes;
            let verdict = verify_piece(&entry, &self.pool, block, &mut step.verified_bytes);
            drop(reading);
            let next = match verdict {
                Ok(next) => {
                    step.verified_shards += u64::from(next.is_none());
                    if next.is_none() {
                        self.note_readable(&entry);
                    }
                    next
                }
                Err(damage) => {
                    step.found.extend(self.note_damage(&entry, damage));
                    None
                }
            };
            let mut scrub = self.scrub();
            scrub.cursor = Some(Cursor { key: entry.meta.key, block: next });
            scrub.pass_bytes += step.verified_bytes - before;
            scrub.unsaved_bytes += step.verified_bytes - before;
        }
        if step.is_pass_end {
            let mut scrub = self.scrub();
            scrub.passes += 1;
            scrub.pass_bytes = 0;
            scrub.cursor = None;
        }
        let disk = self.disk.to_string();
        metrics::counter!("ashlar_store_scrubbed_bytes_total", "disk" => disk.clone())
            .increment(step.verified_bytes);
        metrics::counter!("ashlar_store_damage_found_total", "disk" => disk)
            .increment(step.found.len() as u64);
        if step.is_pass_end || !step.found.is_empty() || self.scrub().unsaved_bytes >= SAVE_BYTES {
            self.save_scrub();
        }
        step
    }

    /// The entry at which a step goes on, and its next block.
    fn next_entry(&self, cursor: Option<Cursor>) -> Option<(Entry, u64)> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let (from, block) = match cursor {
            None => (Bound::Unbounded, None),
            Some(Cursor { key, block: None }) => (Bound::Excluded(key), None),
            Some(Cursor { key, block }) => (Bound::Included(key), block.map(|block| (key, block))),
        };
        let (key, entry) = index.range((from, Bound::Unbounded)).next()?;
        // the shard may have gone since, or have become another one
        let block = block.filter(|(at, block)| at == key && *block < blocks(entry.meta.length));
        Some((entry.clone(), block.map_or(0, |(_, block)| block)))
    }

    /// Lists a record as damaged, if it is still the one that the index shows. What is new of it.
    pub(crate) fn note_damage(&self, entry: &Entry, damage: Damage) -> Option<(ShardKey, Damage)> {
        let (key, sequence) = (entry.meta.key, entry.sequence);
        if self.entry(key).is_none_or(|shown| shown.sequence != sequence) {
            return None;
        }
        let damaged = Damaged { sequence, damage };
        let before = self.scrub().damaged.insert(key, damaged);
        (before != Some(damaged)).then(|| {
            let (extent, slot) = (key.extent, key.slot);
            tracing::warn!(%extent, %slot, ?damage, segment = ?entry.segment, "a shard is damaged");
            (key, damage)
        })
    }

    /// The disk has read a shard to its end.
    fn note_readable(&self, entry: &Entry) {
        let mut scrub = self.scrub();
        let listed = scrub.damaged.get(&entry.meta.key);
        if listed.is_some_and(|listed| listed.damage == Damage::Unreadable) {
            scrub.damaged.remove(&entry.meta.key);
        }
    }

    /// Whether a record is listed as damaged.
    pub(crate) fn is_listed(&self, entry: &Entry) -> bool {
        let scrub = self.scrub();
        let listed = scrub.damaged.get(&entry.meta.key);
        listed.is_some_and(|listed| listed.sequence == entry.sequence)
    }

    /// The shards that are listed as damaged, and still there.
    pub(crate) fn damaged(&self) -> Vec<(ShardKey, Damage)> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let mut scrub = self.scrub();
        let is_shown = |key: &ShardKey, damaged: &mut Damaged| {
            index.get(key).is_some_and(|entry| entry.sequence == damaged.sequence)
        };
        scrub.damaged.retain(is_shown);
        scrub.damaged.iter().map(|(&key, damaged)| (key, damaged.damage)).collect()
    }

    pub(crate) fn scrub_progress(&self) -> ScrubProgress {
        let damaged = self.damaged().len() as u64;
        let scrub = self.scrub();
        let position = scrub.cursor.map(|cursor| cursor.key);
        ScrubProgress { passes: scrub.passes, position, pass_bytes: scrub.pass_bytes, damaged }
    }

    /// Keeps what the scrub knows. Where that fails, it is found again.
    pub(crate) fn save_scrub(&self) {
        if !self.is_writable() {
            return;
        }
        let file = self.scrub_file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scrub = self.scrub();
        scrub.unsaved_bytes = 0;
        let bytes = scrub.encode(self.disk);
        drop(scrub);
        let path = path(&self.config.dir);
        let saved = self.host.disk.replace(&path, &bytes);
        drop(file);
        if let Err(error) = saved.map_err(|error| self.write_failed("write", &path, &error)) {
            tracing::warn!(%error, "the position of the scrub could not be kept");
        }
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join(FILE_NAME)
}

/// Verifies a small shard, or some blocks of a large one; the next block then, or `None`: that was all.
fn verify_piece(
    entry: &Entry,
    pool: &Arc<FramePool>,
    block: u64,
    bytes: &mut u64,
) -> Result<Option<u64>, Damage> {
    let count = blocks(entry.meta.length);
    let step = FRAME_BYTES as u64 / u64::from(BLOCK_BYTES);
    let end = (block + step).min(count);
    *bytes +=
        (end * u64::from(BLOCK_BYTES)).min(entry.meta.length) - block * u64::from(BLOCK_BYTES);
    if entry.segment.header.class == Class::Small {
        entry.verify(pool)?;
    } else if block < end {
        entry.verify_blocks(pool, block, end)?;
    }
    if end < count {
        return Ok(Some(end));
    }
    // last, so that damaged content is called that
    *bytes += HEADER_BYTES as u64;
    verify_record(entry)?;
    Ok(None)
}

/// Verifies what an index that is rebuilt needs.
fn verify_record(entry: &Entry) -> Result<(), Damage> {
    let (seed, file) = (entry.segment.seed, &entry.segment.file);
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, entry.offset).map_err(|_| Damage::Unreadable)?;
    let header = RecordHeader::decode(&bytes, seed, entry.offset).ok_or(Damage::Header)?;
    let is_shard = matches!(header.kind, Kind::Shard | Kind::Move);
    if header.meta.key != entry.meta.key || !is_shard {
        return Err(Damage::Header);
    }
    if entry.segment.header.class == Class::Small {
        let is_its_own = header.sequence == entry.sequence && header.crc == entry.crc;
        return if is_its_own { Ok(()) } else { Err(Damage::Header) };
    }
    let mut bytes = vec![0; size(trailer_bytes(entry.reserved))];
    let at = trailer_offset(entry.offset, entry.reserved);
    file.read_exact_at(&mut bytes, at).map_err(|_| Damage::Unreadable)?;
    let trailer = Trailer::decode(&bytes, seed, &header).ok_or(Damage::Trailer)?;
    let is_its_own = trailer.sequence == entry.sequence && trailer.length == entry.meta.length;
    if is_its_own { Ok(()) } else { Err(Damage::Trailer) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_types::SessionId;

    #[test]
    fn the_file_keeps_all_and_a_damaged_one_says_nothing() {
        let key = |counter| ShardKey {
            extent: ExtentId { session: SessionId(1), counter },
            slot: Slot(2),
        };
        let damaged = Damaged { sequence: 9, damage: Damage::Header };
        for cursor in [
            None,
            Some(Cursor { key: key(5), block: None }),
            Some(Cursor { key: key(5), block: Some(0) }),
            Some(Cursor { key: key(5), block: Some(77) }),
        ] {
            let scrub = Scrub {
                passes: 3,
                pass_bytes: 4,
                cursor,
                damaged: BTreeMap::from([(key(6), damaged)]),
                unsaved_bytes: 0,
            };
            let bytes = scrub.encode(DiskId(1));
            assert_eq!(Scrub::decode(&bytes, DiskId(1)), Some(scrub));
            assert_eq!(Scrub::decode(&bytes, DiskId(2)), None);
            for at in [0, 40, bytes.len() - 1] {
                let mut rotten = bytes.clone();
                rotten[at] ^= 1;
                assert_eq!(Scrub::decode(&rotten, DiskId(1)), None, "{at}");
            }
        }
        assert_eq!(Scrub::decode(&[], DiskId(1)), None);
    }
}
