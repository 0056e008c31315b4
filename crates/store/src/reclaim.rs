//! Giving room back: what nobody refers to any more is punched out of its large segment; a segment in which nothing
//! lives is recycled (small) or removed (large).
//!
//! The order is always: the tombstone is durable, the index no longer shows the shard, the last reader that may have
//! seen it has left, then its bytes go, durably; and only then the copy is forgotten, so that its tombstone may go too.
//! A cut between any two of these leaves garbage, which the next open condemns again. The committer decides; the helper
//! thread does it, one batch at a time.

use crate::format::Class;
use crate::graves::{DeadCopy, Graves, Tombstone};
use crate::index::Entry;
use crate::segment::{FREE_DIR, SEGMENT_DIR, Segment};
use crate::small::Chore;
use crate::store::Core;
use crate::{ShardKey, StoreError};
use ashlar_host::{Disk, OpenMode};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// So many recycled small segments are kept; further ones are removed.
const RECYCLED_MAX: usize = 4;

/// A range of a large segment that nobody refers to any more.
#[derive(Debug)]
pub(crate) struct Condemned {
    pub(crate) segment: Arc<Segment>,
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// What is gone when the range is.
    pub(crate) copy: Option<DeadCopy>,
    /// The last one whose readers may see it.
    pub(crate) era: u64,
}

/// A file that the next small segment takes.
#[derive(Debug)]
pub(crate) struct Recycled {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
}

/// What the helper has made durable.
#[derive(Debug, Default)]
pub(crate) struct Reclaimed {
    punched: Vec<DeadCopy>,
    gone: Vec<u64>,
    bytes: u64,
}

/// Work for the helper.
#[derive(Debug, Default)]
struct Order {
    gone: Vec<Arc<Segment>>,
    punches: BTreeMap<u64, Vec<Condemned>>,
}

/// What is dead, and what is to be done about it. Owned by the committer.
#[derive(Debug, Default)]
pub(crate) struct Reclaimer {
    pub(crate) graves: Graves,
    condemned: Vec<Condemned>,
    /// Segments in which perhaps nothing lives any more, and the era in which that came to be.
    emptied: BTreeMap<u64, (Arc<Segment>, u64)>,
    /// The helper has an order.
    is_running: bool,
}

impl Reclaimer {
    pub(crate) fn new(graves: Graves, condemned: Vec<Condemned>) -> Self {
        Self { graves, condemned, ..Self::default() }
    }

    /// An entry is in the index no more, or no more as it was.
    pub(crate) fn add(&mut self, entry: &Entry, era: u64) {
        let copy = entry.dead_copy();
        self.graves.add(copy);
        let segment = entry.segment.clone();
        if segment.header.class == Class::Large {
            let (from, to) = (copy.offset, copy.offset + copy.span);
            self.condemn(Condemned { segment: segment.clone(), from, to, copy: Some(copy), era });
        }
        self.look_at(segment, era);
    }

    /// A tombstone is durable, and what it marks has been added.
    pub(crate) fn mark(&mut self, key: ShardKey, sequence: u64, segment: &Segment) {
        let generation = segment.header.generation;
        self.graves.add_unshown(sequence, key);
        self.graves.mark(key, Tombstone { sequence, generation });
    }

    /// A tombstone was moved.
    pub(crate) fn mark_again(&mut self, key: ShardKey, sequence: u64, segment: &Segment) {
        let generation = segment.header.generation;
        self.graves.mark(key, Tombstone { sequence, generation });
    }

    /// A range that no record needs any more.
    pub(crate) fn condemn(&mut self, condemned: Condemned) {
        self.condemned.push(condemned);
    }

    /// Perhaps nothing lives in this segment any more.
    pub(crate) fn look_at(&mut self, segment: Arc<Segment>, era: u64) {
        let (_, known) = self.emptied.entry(segment.header.generation).or_insert((segment, era));
        *known = era.max(*known);
    }

    /// How many bytes wait to be punched.
    pub(crate) fn waiting_bytes(&self) -> u64 {
        self.condemned.iter().map(|condemned| condemned.to - condemned.from).sum()
    }

    /// Takes what the helper has done.
    pub(crate) fn take_results(&mut self, core: &Core) {
        let done = core.reclaimed.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(done) = done else { return };
        self.is_running = false;
        for copy in &done.punched {
            self.graves.forget(copy);
        }
        let mut segments = core.segments.lock().unwrap_or_else(PoisonError::into_inner);
        for &generation in &done.gone {
            self.graves.forget_segment(generation);
            segments.remove(&generation);
        }
        drop(segments);
        core.figures().reclaimed_bytes += done.bytes;
    }

    /// Gives the helper its next order, if it has none. `active` is the small segment that is being filled.
    pub(crate) fn step(&mut self, core: &Arc<Core>, active: Option<u64>) {
        self.take_results(core);
        self.graves.show(core.checkpointed.load(Ordering::Acquire));
        let mut given_up = core.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        let given_up = std::mem::take(&mut *given_up);
        for condemned in given_up {
            self.look_at(condemned.segment.clone(), condemned.era);
            self.condemn(condemned);
        }
        if self.is_running || !core.is_writable() {
            return;
        }
        let gone = self.take_dead_segments(core, active);
        let punches = self.take_ready_punches(core, &gone);
        if gone.is_empty() && punches.is_empty() {
            return;
        }
        let (order, core) = (Order { gone, punches }, core.clone());
        let helper = core.clone();
        let chore = Chore::Other(Box::new(move || helper.carry_out(order)));
        // only a helper that has died takes nothing: then all of this is found again by the next open
        self.is_running = core.chores.try_send(chore).is_ok();
    }

    fn take_dead_segments(&mut self, core: &Core, active: Option<u64>) -> Vec<Arc<Segment>> {
        let allocator = core.allocator.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = [active, allocator.active.as_ref().map(|segment| segment.header.generation)];
        drop(allocator);
        let mut dead = Vec::new();
        self.emptied.retain(|&generation, (segment, era)| {
            let lives = segment.live_records() > 0 || self.graves.needed_in(generation) > 0;
            let is_used = filled.contains(&Some(generation)) || !segment.taken().open.is_empty();
            if !lives && !is_used && core.readers.have_left(*era) {
                dead.push(segment.clone());
                return false;
            }
            // what keeps a tombstone may go at any time; a shard that goes is told of again
            segment.live_records() == 0
        });
        dead
    }

    fn take_ready_punches(
        &mut self,
        core: &Core,
        gone: &[Arc<Segment>],
    ) -> BTreeMap<u64, Vec<Condemned>> {
        let mut punches: BTreeMap<u64, Vec<Condemned>> = BTreeMap::new();
        for condemned in std::mem::take(&mut self.condemned) {
            let generation = condemned.segment.header.generation;
            if gone.iter().any(|segment| segment.header.generation == generation) {
                continue;
            }
            if core.readers.have_left(condemned.era) {
                punches.entry(generation).or_default().push(condemned);
            } else {
                self.condemned.push(condemned);
            }
        }
        punches
    }
}

impl Core {
    /// What the helper does. Blocks.
    fn carry_out(&self, order: Order) {
        let mut done = Reclaimed::default();
        for segment in order.gone {
            match self.remove(&segment) {
                Ok(bytes) => {
                    done.gone.push(segment.header.generation);
                    done.bytes += bytes;
                }
                Err(error) => {
                    self.write_failed("remove", &segment.path, &error);
                    tracing::warn!(?segment, %error, "an empty segment could not be removed: the next start tries again");
                }
            }
        }
        for ranges in order.punches.into_values() {
            let segment = &ranges[0].segment;
            match punch(self.host.disk.as_ref(), &segment.path, &ranges) {
                Ok(()) => {
                    done.bytes += ranges.iter().map(|range| range.to - range.from).sum::<u64>();
                    done.punched.extend(ranges.iter().filter_map(|range| range.copy));
                }
                Err(error) => {
                    self.write_failed("punch", &segment.path, &error);
                    tracing::warn!(?segment, %error, "deleted shards could not be punched out: the next start tries again");
                }
            }
        }
        metrics::counter!("ashlar_store_reclaimed_bytes_total", "disk" => self.disk.to_string())
            .increment(done.bytes);
        *self.reclaimed.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
        self.wake();
    }

    /// Takes the file of a segment away, durably; how long it was.
    fn remove(&self, segment: &Segment) -> io::Result<u64> {
        let (disk, dir) = (self.host.disk.as_ref(), &self.config.dir);
        let bytes = segment.file.len()?;
        let recycled = self.recycled.lock().unwrap_or_else(PoisonError::into_inner).len();
        if segment.header.class == Class::Small && recycled < RECYCLED_MAX {
            let name = segment.path.file_name().expect("a segment has a name");
            let path = dir.join(FREE_DIR).join(name);
            disk.rename(&segment.path, &path)?;
            disk.sync_dir(&dir.join(FREE_DIR))?;
            disk.sync_dir(&dir.join(SEGMENT_DIR))?;
            let mut recycled = self.recycled.lock().unwrap_or_else(PoisonError::into_inner);
            recycled.push(Recycled { path, bytes });
            return Ok(bytes);
        }
        disk.remove_file(&segment.path)?;
        disk.sync_dir(&dir.join(SEGMENT_DIR))?;
        Ok(bytes)
    }

    /// Gives the recycled segments back to the file system.
    pub(crate) fn remove_recycled(&self) -> Result<(), StoreError> {
        let mut recycled = self.recycled.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(Recycled { path, .. }) = recycled.pop() {
            let removed = self.host.disk.remove_file(&path);
            removed.map_err(|e| self.write_failed("remove", &path, &e))?;
        }
        Ok(())
    }
}

/// Through a file handle of its own: an error of this sync is then not taken away from a batch's sync.
fn punch(disk: &dyn Disk, path: &Path, ranges: &[Condemned]) -> io::Result<()> {
    let file = disk.open(path, OpenMode::ReadWrite)?;
    for range in ranges {
        file.punch_hole(range.from, range.to - range.from)?;
    }
    file.sync_data()
}
