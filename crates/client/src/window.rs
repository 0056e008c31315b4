//! One window of an extent: its bytes, from the data cells that hold them, or decoded from any k others.
//!
//! The code works byte by byte: the byte at some offset of one shard is computed from the bytes at the same offset of
//! k others. So whatever a window needs of a lost shard is decoded from the same *band* of offsets of other shards.
//!
//! A shard that is recorded as missing, or whose home is believed down, is never asked for: parity stands in from the
//! start. One that fails is replaced, one that is slow is doubled (hedged) once its disk's 95th percentile has passed.

use crate::Failure;
use crate::inner::Inner;
use crate::shard::{Frames, Home, ShardError};
use ashlar_erasure::{CellRange, Codec, Geometry};
use ashlar_types::{ClusterMap, DiskId, Extent, Slot, SlotSet};
use ashlar_wire::shard::{ShardPath, ShardRefusal};
use bytes::{Buf, Bytes};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// A shard that takes longer than this is replaced in any case.
const SLOW_MAX: Duration = Duration::from_secs(2);
/// Waits before all shards are tried again: a node may be starting, a map on its way.
const ROUNDS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(300),
    Duration::from_millis(1000),
];

impl Inner {
    /// The content bytes `from .. to` of an extent: a window, in order.
    pub(crate) async fn read_window(
        self: &Arc<Self>,
        extent: &Extent,
        from: u64,
        to: u64,
    ) -> Result<Frames, Failure> {
        let mut readable = 0;
        for pause in ROUNDS {
            if !pause.is_zero() {
                let epoch = self.map.load().epoch;
                self.map_where(pause, |map| map.epoch > epoch).await;
            }
            let mut window = Window::new(self.clone(), extent, from, to);
            match window.read(pause.is_zero()).await {
                Ok(frames) => return Ok(frames),
                Err(found) => readable = readable.max(found),
            }
        }
        metrics::counter!("ashlar_client_lost_reads_total").increment(1);
        Err(Failure::Lost { extent: Box::new(extent.clone()), readable })
    }
}

/// What came of one shard.
type Fetched = (Slot, Range<u64>, Result<Frames, ShardError>);

struct Window<'a> {
    inner: Arc<Inner>,
    extent: &'a Extent,
    geometry: Geometry,
    cells: Vec<CellRange>,
    /// What the window needs of each data slot, as offsets in the shard.
    wanted: BTreeMap<Slot, Range<u64>>,
    /// From the least to the greatest offset that any slot needs.
    band: Range<u64>,
    map: Arc<ClusterMap>,
    /// Slots that gave what they were asked for.
    answered: SlotSet,
    /// Slots that are not there, or did not give it.
    failed: SlotSet,
    /// Slots that were asked for the whole band.
    band_asked: SlotSet,
    /// Slots that had not answered when hedging began: nothing is expected of them any more.
    slow: SlotSet,
    direct: BTreeMap<Slot, Frames>,
    /// Bands that were asked for only to decode.
    banded: BTreeMap<Slot, Frames>,
    fetches: FuturesUnordered<BoxFuture<'static, Fetched>>,
}

impl<'a> Window<'a> {
    fn new(inner: Arc<Inner>, extent: &'a Extent, from: u64, to: u64) -> Self {
        let geometry = Geometry::new(extent.profile, extent.cell_bytes, extent.length);
        let cells: Vec<CellRange> = geometry.locate(from, to - from).collect();
        let mut wanted: BTreeMap<Slot, Range<u64>> = BTreeMap::new();
        let (mut band_start, mut band_end) = (u64::MAX, 0);
        for cell in &cells {
            let (start, end) = (cell.shard_offset, cell.shard_offset + cell.length);
            let run = wanted.entry(cell.slot).or_insert(start..end);
            // cells of consecutive stripes follow each other in the shard
            debug_assert!(
                run.end == end || run.end == start,
                "a slot's share of a window has no gap"
            );
            run.end = end;
            (band_start, band_end) = (band_start.min(start), band_end.max(end));
        }
        Self {
            map: inner.map.load_full(),
            inner,
            extent,
            geometry,
            cells,
            wanted,
            band: band_start..band_end,
            answered: SlotSet::EMPTY,
            failed: SlotSet::EMPTY,
            band_asked: SlotSet::EMPTY,
            slow: SlotSet::EMPTY,
            direct: BTreeMap::new(),
            banded: BTreeMap::new(),
            fetches: FuturesUnordered::new(),
        }
    }

    /// Reads it. The error is how many shards could be read. `first`: believed-down homes are not asked.
    async fn read(&mut self, first: bool) -> Result<Frames, u8> {
        self.start(first);
        let mut alarm = self.inner.host.clock.sleep(self.hedge_after());
        let mut alarms = 0;
        loop {
            if self.wanted.keys().all(|slot| self.direct.contains_key(slot)) {
                return Ok(self.assemble());
            }
            if self.bands() >= usize::from(self.extent.profile.data) {
                self.decode()?;
                continue;
            }
            // as long as something is lost or slow, enough bands must be on their way to decode it
            if !self.failed.is_empty() || !self.slow.is_empty() {
                self.fetch_bands(first);
            }
            if self.fetches.is_empty() {
                return Err(u8::try_from(self.answered.count()).unwrap_or(u8::MAX));
            }
            tokio::select! {
                biased;
                Some(fetched) = self.fetches.next() => self.take(fetched),
                () = &mut alarm => {
                    alarms += 1;
                    if alarms > 2 {
                        return Err(u8::try_from(self.answered.count()).unwrap_or(u8::MAX));
                    }
                    if alarms == 2 || self.inner.hedges.allow(self.inner.config.hedge_percent_max) {
                        metrics::counter!("ashlar_client_hedged_reads_total").increment(1);
                        self.slow = self.pending();
                    }
                    alarm = self.inner.host.clock.sleep(SLOW_MAX);
                }
            }
        }
    }

    /// Wanted slots that have neither answered nor failed.
    fn pending(&self) -> SlotSet {
        let has_not = |slot: &Slot| !self.direct.contains_key(slot) && !self.failed.contains(*slot);
        self.wanted.keys().copied().filter(has_not).collect()
    }

    /// Asks each slot that holds wanted bytes for exactly these.
    fn start(&mut self, first: bool) {
        for (slot, range) in self.wanted.clone() {
            let disk = self.disks(slot).next();
            // a disk that is known to be slow is replaced by parity from the start
            if first && disk.is_some_and(|disk| self.inner.health.is_slow(disk)) {
                self.slow.insert(slot);
            } else {
                self.fetch(slot, range, first);
            }
        }
    }

    /// The disks on which a shard may be, the likeliest first.
    fn disks(&self, slot: Slot) -> impl Iterator<Item = DiskId> + use<> {
        let group = self.map.groups.get(&self.extent.pg);
        group.map(|group| group.places(slot)).into_iter().flatten()
    }

    fn home(&self, slot: Slot, first: bool) -> Option<Vec<Home>> {
        if self.extent.missing.contains(slot) {
            return None;
        }
        let may_ask = |disk: &DiskId| !first || self.inner.health.is_readable(&self.map, *disk);
        let homes: Vec<Home> =
            self.disks(slot).filter(may_ask).filter_map(|disk| Home::of(&self.map, disk)).collect();
        (!homes.is_empty()).then_some(homes)
    }

    fn fetch(&mut self, slot: Slot, range: Range<u64>, first: bool) {
        let Some(homes) = self.home(slot, first) else {
            self.failed.insert(slot);
            return;
        };
        if range == self.band {
            self.band_asked.insert(slot);
        }
        self.inner.hedges.read();
        let (inner, id) = (self.inner.clone(), self.extent.id);
        let fetching = async move {
            let mut end = Err(ShardError::Refused(ShardRefusal::NotFound));
            for home in &homes {
                let path = ShardPath { disk: home.disk, extent: id, slot };
                end = inner.get_shard(home, path, range.start, range.end).await;
                // a slot that moves is in one of two places: where one fails, the other may have it
                if end.is_ok() {
                    break;
                }
            }
            (slot, range, end)
        };
        self.fetches.push(fetching.boxed());
    }

    /// Asks for the band of as many further slots as decoding still needs. Slow ones are asked last of all.
    fn fetch_bands(&mut self, first: bool) {
        let expected = |slot: &Slot| !self.failed.contains(*slot) && !self.slow.contains(*slot);
        let answered = self.slow.iter().filter(|slot| self.has_band(*slot)).count();
        let coming = self.band_asked.iter().filter(expected).count() + answered;
        let mut lacking = usize::from(self.extent.profile.data).saturating_sub(coming);
        let slow = self.slow;
        let (well, late): (Vec<Slot>, Vec<Slot>) =
            self.extent.profile.slots().partition(|slot| !slow.contains(*slot));
        for slot in well.into_iter().chain(late) {
            let useless = self.failed.contains(slot) || self.band_asked.contains(slot);
            if lacking == 0 || useless {
                continue;
            }
            self.fetch(slot, self.band.clone(), first);
            // now it is waited for like any other
            self.slow.remove(slot);
            if !self.failed.contains(slot) {
                lacking -= 1;
            }
        }
    }

    fn has_band(&self, slot: Slot) -> bool {
        let whole = self.wanted.get(&slot) == Some(&self.band) && self.direct.contains_key(&slot);
        whole || self.banded.contains_key(&slot)
    }

    /// How many slots have given the whole band.
    fn bands(&self) -> usize {
        self.extent.profile.slots().filter(|&slot| self.has_band(slot)).count()
    }

    fn take(&mut self, (slot, range, end): Fetched) {
        match end {
            Ok(frames) => {
                self.answered.insert(slot);
                if self.wanted.get(&slot) == Some(&range) && !self.direct.contains_key(&slot) {
                    self.direct.insert(slot, frames);
                } else {
                    self.banded.insert(slot, frames);
                }
            }
            Err(error) => {
                tracing::debug!(extent = %self.extent.id, %slot, %error, "a shard could not be read");
                let reason = match error {
                    ShardError::Refused(refusal) => refusal.word(),
                    ShardError::Unreachable(_) => "unreachable",
                    ShardError::Broken(_) => "broken",
                };
                metrics::counter!("ashlar_client_failed_shard_reads_total", "reason" => reason)
                    .increment(1);
                self.failed.insert(slot);
            }
        }
    }

    /// After the 95th percentile of a usual disk: that of a slow one would wait for just what is to be avoided.
    fn hedge_after(&self) -> Duration {
        let usual = self.inner.health.usual_read_p95();
        usual.max(self.inner.config.hedge_after_min).min(SLOW_MAX)
    }

    /// Computes what is not there from k bands.
    fn decode(&mut self) -> Result<(), u8> {
        let lost: Vec<Slot> =
            self.wanted.keys().copied().filter(|slot| !self.direct.contains_key(slot)).collect();
        let length = usize::try_from(self.band.end - self.band.start).unwrap_or(usize::MAX);
        let mut bands: BTreeMap<Slot, Bytes> = BTreeMap::new();
        for slot in self.extent.profile.slots() {
            if !self.has_band(slot) {
                continue;
            }
            let frames = self.banded.remove(&slot).or_else(|| self.direct.get(&slot).cloned());
            bands.insert(slot, self.joined(frames.unwrap_or_default(), length));
        }
        let cells: Vec<Option<&[u8]>> = self
            .extent
            .profile
            .slots()
            .map(|slot| bands.get(&slot).map(|band| &band[..]))
            .collect();
        let mut buffers: Vec<_> = lost.iter().map(|_| self.inner.pool.take(length)).collect();
        let mut out: Vec<&mut [u8]> = buffers.iter_mut().map(|buffer| &mut buffer[..]).collect();
        let codec = Codec::new(self.extent.profile);
        if let Err(error) = codec.rebuild(&cells, &lost, &mut out) {
            tracing::error!(extent = %self.extent.id, %error, "cells could not be decoded");
            return Err(u8::try_from(bands.len()).unwrap_or(u8::MAX));
        }
        drop(out);
        metrics::counter!("ashlar_client_decoded_cells_total").increment(lost.len() as u64);
        for (slot, buffer) in lost.into_iter().zip(buffers) {
            let run = &self.wanted[&slot];
            let within =
                |offset: u64| usize::try_from(offset - self.band.start).unwrap_or(usize::MAX);
            let bytes = buffer.freeze().slice(within(run.start)..within(run.end));
            self.direct.insert(slot, Frames::from([bytes]));
        }
        Ok(())
    }

    fn joined(&self, mut frames: Frames, length: usize) -> Bytes {
        if frames.len() == 1 {
            return frames.pop_front().unwrap_or_default();
        }
        let mut buffer = self.inner.pool.take(length);
        let mut at = 0;
        for frame in frames {
            buffer[at..at + frame.len()].copy_from_slice(&frame);
            at += frame.len();
        }
        buffer.freeze()
    }

    /// The window's bytes in the order of the content, without copying any.
    fn assemble(&mut self) -> Frames {
        let mut content = Frames::new();
        for cell in &self.cells {
            let frames = self.direct.get_mut(&cell.slot).expect("every wanted slot is there");
            let mut left = usize::try_from(cell.length).unwrap_or(usize::MAX);
            while left > 0 {
                let frame =
                    frames.front_mut().expect("a shard gave as many bytes as were asked for");
                let part = frame.split_to(left.min(frame.len()));
                if !frame.has_remaining() {
                    frames.pop_front();
                }
                left -= part.len();
                if !part.is_empty() {
                    content.push_back(part);
                }
            }
        }
        debug_assert_eq!(self.geometry.profile(), self.extent.profile);
        content
    }
}
