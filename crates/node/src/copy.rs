//! Copying a slot that moves to a disk of this node (`docs/adr/0012-how-a-slot-moves.md`).
//!
//! What is copied is decided by the committed map alone: a group that has a slot moving to a disk of this node is this
//! node's work, whoever ran before, and however often it starts anew. A round:
//! 1. the home of the slot, unless it is lost, and at least m of the group's other disks acknowledge the epoch of the
//!    move and list what they have: no write under an older epoch can add anything from then on;
//! 2. every extent that any of them lists is brought here: the shard itself from the home, or computed from k others;
//! 3. what is here is listed again and compared, and only then the root is asked to switch.
//!
//! A shard that garbage collection deletes here meanwhile is noted, and is not left behind by a copy that was on its way.
//! An extent of which too few shards are left for certain can be brought by nobody, and stops nothing.

use crate::DataNode;
use crate::gate::SlotPlace;
use crate::lists::listed;
use crate::pace::Pace;
use crate::wanted::{Listing, Lists, NotListed, Wanted, count_missing, losses, wanted};
use ashlar_client::{Client, Column, ColumnFailure, Failure, ShardError};
use ashlar_host::{Clock, Host};
use ashlar_store::{SMALL_SHARD_BYTES_END, ShardKey, ShardMeta, Store, StoreError};
use ashlar_types::{
    ClusterMap, DiskId, ExtentId, LISTED_SHARDS_MAX, ListShards, ListedShard, PgId, PlacementGroup,
    ShardsListed, Slot, SlotMove, bug,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Shards of one move that are copied at once.
const COPIES_AT_ONCE: usize = 4;
/// So much of a long shard is read at once: what a data node verifies before it answers.
const BAND_BYTES: u64 = 256 << 10;
/// Between two attempts at a move. It doubles up to [`AGAIN_AFTER_MAX`].
const AGAIN_AFTER: Duration = Duration::from_millis(100);
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Where the shards of a moving slot come from, and who judges that it has moved.
#[async_trait]
pub trait MoveSource: Send + Sync + 'static {
    /// A page of a disk's list.
    async fn list_shards(&self, ask: ListShards) -> Result<ShardsListed, String>;

    /// The bytes of a shard at these offsets, from one disk.
    async fn shard_bytes(
        &self,
        disk: DiskId,
        extent: ExtentId,
        slot: Slot,
        span: Range<u64>,
    ) -> Result<Bytes, ShardError>;

    /// The same bytes, computed from others.
    async fn column(&self, column: Column, span: Range<u64>) -> Result<Bytes, ColumnFailure>;

    /// Tells the root that all of it is here.
    async fn switch(&self, step: SlotMove) -> Result<(), Failure>;
}

#[async_trait]
impl MoveSource for Client {
    async fn list_shards(&self, ask: ListShards) -> Result<ShardsListed, String> {
        Self::list_shards(self, ask).await
    }

    async fn shard_bytes(
        &self,
        disk: DiskId,
        extent: ExtentId,
        slot: Slot,
        span: Range<u64>,
    ) -> Result<Bytes, ShardError> {
        Self::shard_bytes(self, disk, extent, slot, span).await
    }

    async fn column(&self, column: Column, span: Range<u64>) -> Result<Bytes, ColumnFailure> {
        Self::column(self, column, span).await
    }

    async fn switch(&self, step: SlotMove) -> Result<(), Failure> {
        Self::switch(self, step).await
    }
}

/// Why a slot has not moved yet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error(transparent)]
    NotListed(#[from] NotListed),
    #[error("{left} shards could not be brought: {why}")]
    NotCopied { left: usize, why: String },
    #[error("{0} shards are not here, although each of them was brought")]
    Recount(usize),
    #[error("the root has not taken it: {0}")]
    NotSwitched(#[from] Failure),
}

/// What a round came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    /// The root has taken it.
    Switched,
    /// The map is not the one in which it was to be done, or the disk is not here.
    Overtaken,
}

/// How far a move to a disk of this node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IncomingMove {
    /// The move.
    pub step: SlotMove,
    /// Bytes that are to be here in the end; 0: not known yet.
    pub bytes: u64,
    /// Bytes that are here.
    pub done_bytes: u64,
}

/// The moves to this node's disks that are under way.
#[derive(Debug, Default)]
pub(crate) struct IncomingMoves {
    moves: Mutex<BTreeMap<SlotMove, Arc<Incoming>>>,
    /// What has been copied to each disk since the start.
    copied_bytes: Mutex<BTreeMap<DiskId, u64>>,
}

#[derive(Debug, Default)]
struct Incoming {
    /// What garbage collection has deleted on this disk: what has been since the lists of this round were begun, and of
    /// what was before that, whatever a list still names.
    deleted: Mutex<BTreeSet<ExtentId>>,
    bytes: AtomicU64,
    done_bytes: AtomicU64,
}

impl IncomingMoves {
    fn moves(&self) -> MutexGuard<'_, BTreeMap<SlotMove, Arc<Incoming>>> {
        self.moves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copied(&self, disk: DiskId, bytes: u64) {
        let mut copied = self.copied_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *copied.entry(disk).or_default() += bytes;
    }

    /// What has been copied to a disk since the start.
    pub(crate) fn copied_bytes(&self, disk: DiskId) -> u64 {
        let copied = self.copied_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        copied.get(&disk).copied().unwrap_or(0)
    }

    pub(crate) fn begin(&self, step: SlotMove) {
        self.moves().insert(step, Arc::default());
    }

    pub(crate) fn end(&self, step: SlotMove) {
        self.moves().remove(&step);
    }

    /// To be called before the shards are deleted. A deletion does not say of which group its extent is: that is known
    /// of what is here, and what is not here is noted by every move of its slot.
    pub(crate) fn deleted(&self, store: &Store, keys: &[ShardKey]) {
        for (step, incoming) in &*self.moves() {
            if step.to != store.disk_id() {
                continue;
            }
            let is_its = |key: &&ShardKey| {
                step.slot == key.slot && store.meta(**key).is_none_or(|meta| meta.pg == step.group)
            };
            incoming.deleted().extend(keys.iter().filter(is_its).map(|key| key.extent));
        }
    }

    /// How many deletions a move has in mind.
    #[cfg(test)]
    pub(crate) fn noted(&self, step: SlotMove) -> usize {
        self.moves()[&step].deleted().len()
    }
}

impl Incoming {
    fn deleted(&self) -> MutexGuard<'_, BTreeSet<ExtentId>> {
        self.deleted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_deleted(&self, extent: ExtentId) -> bool {
        self.deleted().contains(&extent)
    }

    /// Forgets the deletions of what no list of this round names, so that a move that is stuck does not gather them. No
    /// later list names it either: the collector asks the target last. Where a home did not answer it, it comes again.
    fn forget_deleted(&self, is_named: impl Fn(&ExtentId) -> bool) {
        self.deleted().retain(is_named);
    }
}

/// What a move looks like from its target.
struct Moving<'a> {
    step: SlotMove,
    group: PlacementGroup,
    /// The home that it leaves; `None`: it is lost.
    home: Option<DiskId>,
    /// The disks of the other slots that are not lost.
    others: Vec<(Slot, DiskId)>,
    store: Store,
    /// The disk has said that it takes nothing more.
    is_refused: AtomicBool,
    incoming: Arc<Incoming>,
    source: &'a dyn MoveSource,
    pace: &'a Pace,
    clock: Arc<dyn Clock>,
}

/// How bringing a shard here ended.
enum Brought {
    Here,
    /// It is certain that nobody can bring it.
    Lost,
    Failed(String),
    /// The disk takes nothing more, so that nothing was read for it.
    Untried,
}

impl DataNode {
    /// Copies what moves to this node's disks, until it is dropped.
    pub async fn take_in(&self, source: &dyn MoveSource) {
        let mut running = FuturesUnordered::new();
        let mut known: BTreeSet<SlotMove> = BTreeSet::new();
        loop {
            let map = self.map();
            for step in self.moves_to_here(&map) {
                if known.insert(step) {
                    running.push(self.take_in_slot(step, source).boxed());
                }
            }
            tokio::select! {
                biased;
                Some(ended) = running.next() => { known.remove(&ended); }
                () = self.map_changed(map.epoch) => {}
                // a disk that was out may be back under the same map
                () = self.host.clock.sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// How far the moves to this node's disks are.
    pub fn incoming_moves(&self) -> Vec<IncomingMove> {
        let moves = self.incoming.moves();
        let figure = |(step, incoming): (&SlotMove, &Arc<Incoming>)| IncomingMove {
            step: *step,
            bytes: incoming.bytes.load(Ordering::Relaxed),
            done_bytes: incoming.done_bytes.load(Ordering::Relaxed),
        };
        moves.iter().map(figure).collect()
    }

    fn moves_to_here(&self, map: &ClusterMap) -> Vec<SlotMove> {
        let step = |group: &PlacementGroup| {
            let (slot, to) = group.moving?;
            let is_here = self.stores().contains_key(&to) && map.is_read(to);
            is_here.then_some(SlotMove { group: group.id, epoch: group.epoch, slot, to })
        };
        map.groups.values().filter_map(step).collect()
    }

    /// Until it has moved, or the group has changed otherwise.
    async fn take_in_slot(&self, step: SlotMove, source: &dyn MoveSource) -> SlotMove {
        // before anything is listed: a deletion that is not in a list any more is noted, or was before
        self.incoming.begin(step);
        let mut pause = AGAIN_AFTER;
        while self.moves_to_here(&self.map()).contains(&step) {
            match self.copy_once(step, source).await {
                // the map or the disks are not as they were
                Ok(Round::Overtaken) => {}
                Ok(Round::Switched) => {
                    metrics::counter!("ashlar_moves_done_total").increment(1);
                    tracing::info!(group = %step.group, slot = step.slot.0, disk = %step.to, "a slot has moved here");
                    // the next map says so
                    self.until_epoch(step.group, step.epoch.next()).await;
                }
                Err(error) => {
                    metrics::counter!("ashlar_moves_delayed_total").increment(1);
                    tracing::debug!(group = %step.group, slot = step.slot.0, %error, "a slot cannot move now");
                    tokio::select! {
                        biased;
                        () = self.until_epoch(step.group, step.epoch.next()) => {}
                        () = self.host.clock.sleep(pause) => {}
                    }
                    pause = (pause * 2).min(AGAIN_AFTER_MAX);
                }
            }
        }
        self.incoming.end(step);
        step
    }

    /// One round.
    pub(crate) async fn copy_once(
        &self,
        step: SlotMove,
        source: &dyn MoveSource,
    ) -> Result<Round, CopyError> {
        // where the slot had left this disk before, the last of it may just be dropped: not while this looks at what is
        // here, and not afterwards by whoever does not know that it comes back
        let at = SlotPlace { disk: step.to, group: step.group, slot: step.slot };
        self.gate.enter(at, step.epoch).await.accept();
        let map = self.map();
        let Some(moving) = self.moving(&map, step, source) else { return Ok(Round::Overtaken) };
        let lists = self.list_sources(&moving).await;
        let wanted = wanted(&moving.group, step.slot, moving.home.is_some(), &lists);
        moving.incoming.forget_deleted(|extent| {
            wanted.as_ref().is_ok_and(|wanted| wanted.contains_key(extent))
        });
        let wanted = wanted?;
        let lost = if bug!("slot-moves-without-its-shards") {
            wanted.keys().copied().collect()
        } else {
            self.bring(&moving, &wanted).await?
        };
        let here = moving.here(&self.host).await;
        moving.recount(&wanted, &here, &lost)?;
        source.switch(step).await?;
        // not earlier: what a round that has to be done again passed over may be a write that is under way
        moving.tell_losses(&lost, &here);
        Ok(Round::Switched)
    }

    fn moving<'a>(
        &'a self,
        map: &ClusterMap,
        step: SlotMove,
        source: &'a dyn MoveSource,
    ) -> Option<Moving<'a>> {
        let group = map.groups.get(&step.group).filter(|group| group.epoch == step.epoch)?.clone();
        let store = self.store(step.to)?;
        let incoming = self.incoming.moves().get(&step)?.clone();
        let places = group.profile.slots().zip(group.homes.iter().copied());
        let (homes, others): (Vec<_>, Vec<_>) =
            places.filter(|(_, disk)| map.is_read(*disk)).partition(|(slot, _)| *slot == step.slot);
        let home = homes.first().map(|(_, disk)| *disk);
        let is_refused = AtomicBool::new(false);
        let (pace, clock) = (&self.pace, self.host.clock.clone());
        Some(Moving { step, group, home, others, store, is_refused, incoming, source, pace, clock })
    }

    async fn list_sources(&self, moving: &Moving<'_>) -> Lists {
        let home = moving.home.map(|disk| (moving.step.slot, disk));
        let places: Vec<(Slot, DiskId)> = home.into_iter().chain(moving.others.clone()).collect();
        let lists = places.iter().map(|&(slot, disk)| list(moving, slot, disk));
        let slots = places.iter().map(|(slot, _)| *slot);
        slots.zip(join_all(lists).await).collect()
    }

    /// Brings what is not here yet; gives what nobody can bring.
    async fn bring(
        &self,
        moving: &Moving<'_>,
        wanted: &BTreeMap<ExtentId, Wanted>,
    ) -> Result<BTreeSet<ExtentId>, CopyError> {
        let here = moving.here(&self.host).await;
        let incoming = &moving.incoming;
        let bytes = |some: &[Wanted]| some.iter().map(|wanted| wanted.shard.length).sum::<u64>();
        let (done, absent): (Vec<Wanted>, Vec<Wanted>) =
            wanted.values().partition(|wanted| here.contains_key(&wanted.shard.extent));
        incoming.bytes.store(bytes(&done) + bytes(&absent), Ordering::Relaxed);
        incoming.done_bytes.store(bytes(&done), Ordering::Relaxed);
        let mut left = absent.len();
        let copies = absent.into_iter().map(|wanted| self.bring_one(moving, wanted));
        let mut copies = futures::stream::iter(copies).buffer_unordered(COPIES_AT_ONCE);
        let (mut lost, mut why) = (BTreeSet::new(), String::new());
        while let Some((wanted, end)) = copies.next().await {
            match end {
                Brought::Here => {
                    left -= 1;
                    incoming.done_bytes.fetch_add(wanted.shard.length, Ordering::Relaxed);
                    self.incoming.copied(moving.step.to, wanted.shard.length);
                    metrics::counter!("ashlar_move_shards_total").increment(1);
                    metrics::counter!("ashlar_move_bytes_total").increment(wanted.shard.length);
                }
                Brought::Lost => {
                    left -= 1;
                    lost.insert(wanted.shard.extent);
                }
                Brought::Failed(reason) => why = reason,
                Brought::Untried => {}
            }
        }
        if left > 0 { Err(CopyError::NotCopied { left, why }) } else { Ok(lost) }
    }

    async fn bring_one(&self, moving: &Moving<'_>, wanted: Wanted) -> (Wanted, Brought) {
        (wanted, self.try_to_bring(moving, wanted).await)
    }

    async fn try_to_bring(&self, moving: &Moving<'_>, wanted: Wanted) -> Brought {
        let extent = wanted.shard.extent;
        if moving.incoming.is_deleted(extent) {
            return Brought::Lost;
        }
        if moving.is_refused.load(Ordering::Relaxed) {
            return Brought::Untried;
        }
        let meta = ShardMeta {
            key: ShardKey { extent, slot: moving.step.slot },
            profile: wanted.shard.profile,
            pg: moving.step.group,
            // a disk that gives up a slot drops nothing that came under a later epoch than it knows
            pg_epoch: moving.step.epoch,
            bucket: wanted.shard.bucket,
            length: wanted.shard.length,
            created_ms: self.host.clock.wall_ms(),
        };
        let end = match moving.store_shard(meta, wanted).await {
            Ok(()) => Brought::Here,
            Err(BringError::Gone { is_certain: true, .. }) => Brought::Lost,
            Err(error) => {
                moving.is_refused.fetch_or(error.is_refusal(), Ordering::Relaxed);
                Brought::Failed(format!("{extent}: {error}"))
            }
        };
        if moving.incoming.is_deleted(extent) {
            // the range has let it go while the copy was on its way: so it was not here to be deleted
            if let Err(error) = moving.store.delete(meta.key).await {
                return Brought::Failed(format!("{extent}: {error}"));
            }
            return Brought::Lost;
        }
        end
    }
}

/// All pages of one disk's list.
async fn list(moving: &Moving<'_>, slot: Slot, disk: DiskId) -> Listing {
    let SlotMove { group, epoch, .. } = moving.step;
    let (mut shards, mut after) = (Vec::new(), None);
    loop {
        let ask = ListShards { disk, group, slot, epoch, after, limit: LISTED_SHARDS_MAX };
        match moving.source.list_shards(ask).await? {
            ShardsListed::Page { shards: page, next } => {
                shards.extend(page);
                after = match next {
                    None => return Ok(shards),
                    Some(next) => Some(next),
                };
            }
            ShardsListed::NotYet => {
                return Err(format!("disk {disk} does not acknowledge {epoch}"));
            }
            ShardsListed::UnknownDisk => return Err(format!("disk {disk} is not in its node")),
        }
    }
}

/// Why a shard is not here.
#[derive(Debug, thiserror::Error)]
enum BringError {
    /// `is_certain`: nobody has it, and too few others are left.
    #[error("{why}")]
    Gone { is_certain: bool, why: String },
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("what came is not what its home has")]
    Differs,
}

impl BringError {
    /// Whether the disk will take none of the others either.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Store(StoreError::Full | StoreError::NotWritable | StoreError::Closed))
    }
}

/// The good shards that a disk has of a slot. What is known to be damaged is not one: putting it again replaces it.
/// Looks at the whole index, so that it is to be run where it may block.
fn good_shards(store: &Store, group: PgId, slot: Slot) -> BTreeMap<ExtentId, ListedShard> {
    let page = usize::try_from(LISTED_SHARDS_MAX).unwrap_or(1);
    let (mut good, mut after) = (BTreeMap::new(), None);
    loop {
        let (shards, next) = store.list_slot(group, slot, after, page);
        good.extend(shards.iter().map(listed).map(|shard| (shard.extent, shard)));
        match next {
            None => break,
            Some(next) => after = Some(next),
        }
    }
    for (key, _) in store.damaged_shards().into_iter().filter(|(key, _)| key.slot == slot) {
        good.remove(&key.extent);
    }
    good
}

impl Moving<'_> {
    /// What this disk has of the slot.
    async fn here(&self, host: &Host) -> BTreeMap<ExtentId, ListedShard> {
        let (store, group, slot) = (self.store.clone(), self.step.group, self.step.slot);
        host.tasks.run_blocking(move || good_shards(&store, group, slot)).await
    }

    /// "Done" is said only after what is here was counted again.
    fn recount(
        &self,
        wanted: &BTreeMap<ExtentId, Wanted>,
        here: &BTreeMap<ExtentId, ListedShard>,
        lost: &BTreeSet<ExtentId>,
    ) -> Result<(), CopyError> {
        let is_gone = |extent| lost.contains(&extent) || self.incoming.is_deleted(extent);
        match count_missing(wanted, here, is_gone) {
            0 => Ok(()),
            missing => Err(CopyError::Recount(missing)),
        }
    }

    /// Tells people what the slot has moved without.
    fn tell_losses(&self, lost: &BTreeSet<ExtentId>, here: &BTreeMap<ExtentId, ListedShard>) {
        for extent in losses(lost, here, |extent| self.incoming.is_deleted(extent)) {
            metrics::counter!("ashlar_move_lost_shards_total").increment(1);
            tracing::warn!(%extent, slot = self.step.slot.0, "an extent has too few shards left to compute one");
        }
    }

    async fn store_shard(&self, meta: ShardMeta, wanted: Wanted) -> Result<(), BringError> {
        let expected = wanted.is_at_home.then_some(wanted.shard.crc);
        let differs = |crc: u32| expected.is_some_and(|expected| expected != crc);
        if meta.length < SMALL_SHARD_BYTES_END {
            let bytes = self.span(&meta, wanted, 0..meta.length).await?;
            if differs(crc32c::crc32c(&bytes)) {
                return Err(BringError::Differs);
            }
            return Ok(self.store.put_small(meta, bytes).await?);
        }
        let mut writer = self.store.begin(meta).await?;
        let mut from = 0;
        while from < meta.length {
            let to = (from + BAND_BYTES).min(meta.length);
            writer.write(self.span(&meta, wanted, from..to).await?).await?;
            from = to;
        }
        if differs(writer.finish().await?) {
            return Err(BringError::Differs);
        }
        writer.commit().await?;
        Ok(())
    }

    /// A part of a shard: from its home, or computed from others.
    async fn span(
        &self,
        meta: &ShardMeta,
        wanted: Wanted,
        span: Range<u64>,
    ) -> Result<Bytes, BringError> {
        let ShardKey { extent, slot } = meta.key;
        let mut is_certain = wanted.is_settled;
        if span.is_empty() {
            return Ok(Bytes::new());
        }
        self.pace.take(&*self.clock, self.step.to, span.end - span.start).await;
        if let Some(home) = self.home.filter(|_| wanted.is_at_home) {
            match self.source.shard_bytes(home, extent, slot, span.clone()).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => is_certain &= error.is_certain(),
            }
        }
        let column = Column { extent, slot, pg: meta.pg, profile: meta.profile };
        let computed = self.source.column(column, span).await;
        computed.map_err(|failure| BringError::Gone {
            is_certain: is_certain && failure.unknown == 0,
            why: failure.to_string(),
        })
    }
}
