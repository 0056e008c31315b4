//! One pass of the audit, over all ranges and all disks. In this order, and the order is the proof (ADR 14):
//!
//! 1. Sessions that nobody uses are ended, and every range refuses all that are not open.
//! 2. A walk over all ranges sums up what they name; then the disks say what they hold, by the same sums. What is named
//!    when the walk meets it was acknowledged before the disks are asked.
//! 3. A second walk looks at each extent: what its homes have of it, what that survives, and whether it is one of those
//!    of which shards exist in the cells that differ.
//! 4. Extents of refused sessions that the second walk has not met are named by nobody and never will be: they go to a
//!    gc queue. Shards that are surely gone are recorded as missing, while the walk goes on.

use super::disks::{Disks, Standing, Sums, add_named, settled_home};
use super::durability::{ObjectMargins, Places, RangeMargins, Shards};
use super::report::{AuditReport, ObjectStanding, SilentDisk};
use super::walk::{Walk, WalkedPage, extents, names};
use anyhow::Result;
use ashlar_client::{Client, Failure, LivingSessions};
use ashlar_host::Host;
use ashlar_types::{
    BucketId, ClusterMap, DiskId, Extent, ExtentId, ExtentOwner, HeldContent, InventoryEntry,
    KeyPoint, MarkLost, NodeId, ObjectId, Orphan, PgId, RangeDescriptor, RangeId, SessionId,
    SlotSet,
};
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};

/// A cell holds about so many extents of a session at most.
const CELL_EXTENTS: u64 = 1024;
/// Orphans that one entry queues.
const ORPHANS_AT_ONCE: usize = 500;
/// Objects that are named in a report.
const NAMED_MAX: usize = 1000;

/// A pass that goes on.
pub(super) struct Pass<'a> {
    client: &'a Client,
    map: &'a ClusterMap,
    places: Places<'a>,
    living: LivingSessions,
    alive: BTreeSet<NodeId>,
    disks: Disks<'a>,
    ranges: BTreeMap<RangeId, RangeMargins>,
    /// Extents of which shards exist, as far as they were asked for one by one, and that were not met yet.
    unmet: BTreeMap<ExtentId, (Orphan, BucketId)>,
    /// The object whose parts come page after page.
    composite: Option<(KeyPoint, ObjectId, ObjectMargins)>,
    names: BTreeMap<BucketId, String>,
    worst: BTreeSet<ObjectStanding>,
    report: AuditReport,
}

/// Does one pass.
pub(super) async fn run(host: &Host, client: &Client, by: NodeId) -> Result<AuditReport> {
    let began = host.clock.now();
    crate::sessions::end_unused(client).await?;
    let living = client.living_sessions().await?;
    client.fence_sessions(&living).await?;
    let map = client.map_now().await?;
    let shift = shift(&map);
    let mut named = Sums::new();
    let mut walk = Walk::new(client);
    while let Some(page) = walk.next().await? {
        let extents = page.entries.iter().flat_map(names);
        extents.for_each(|extent| add_named(&map, shift, &mut named, extent));
    }
    let disks = Disks::compare(client, &map, shift, &named).await;
    drop(named);
    let mut pass = Pass::new(client, &map, living, disks, by).await?;
    pass.judge_all().await?;
    pass.queue_orphans().await;
    let mut report = pass.end();
    let took = (host.clock.now() - began).as_millis();
    report.took_ms = u64::try_from(took).unwrap_or(u64::MAX);
    Ok(report)
}

/// Counters of a session are spread over all groups: the more there are, the wider its blocks may be.
fn shift(map: &ClusterMap) -> u8 {
    let block = CELL_EXTENTS * (map.groups.len().max(1) as u64);
    u8::try_from(block.ilog2()).unwrap_or(u8::MAX)
}

impl<'a> Pass<'a> {
    async fn new(
        client: &'a Client,
        map: &'a ClusterMap,
        living: LivingSessions,
        disks: Disks<'a>,
        by: NodeId,
    ) -> Result<Self, Failure> {
        let alive = alive(client, map).await;
        let names = client.buckets().await?.into_iter();
        let names = names.map(|bucket| (bucket.row.bucket, bucket.name.to_string())).collect();
        let places = Places::new(map);
        let report = AuditReport {
            by,
            map_epoch: map.epoch,
            floor: living.floor,
            strays: disks.strays,
            silent: silent(map, &disks),
            answered: alive.iter().copied().collect(),
            without_majority: without_majority(client, &places, &alive).await?,
            cells_left: disks.left.len() as u64,
            closed: closed(map),
            ..AuditReport::default()
        };
        let unmet = disks.held().map(|shard| {
            let orphan = Orphan { id: shard.extent, pg: shard.pg, profile: shard.profile };
            (shard.extent, (orphan, shard.bucket))
        });
        Ok(Self {
            unmet: unmet.collect(),
            places,
            ranges: BTreeMap::new(),
            composite: None,
            worst: BTreeSet::new(),
            client,
            map,
            living,
            alive,
            disks,
            names,
            report,
        })
    }

    /// The second walk.
    async fn judge_all(&mut self) -> Result<()> {
        let mut walk = Walk::new(self.client);
        while let Some(page) = walk.next().await? {
            self.page(&page).await;
        }
        self.report.ranges = walk.ranges;
        Ok(())
    }

    async fn page(&mut self, page: &WalkedPage) {
        for extent in page.entries.iter().flat_map(names) {
            self.unmet.remove(&extent.id);
        }
        let of_page: Vec<&Extent> = page.entries.iter().flat_map(extents).collect();
        self.disks.ask_homes(self.client, &of_page).await;
        for entry in &page.entries {
            match entry {
                InventoryEntry::Plain { size, content } => {
                    let margins = self.content(content).await;
                    self.object(&page.range, content.owner.at(), &margins, *size);
                }
                InventoryEntry::Composite { at, object, size, parts, last } => {
                    self.parts_of(&page.range, (at, *object), *size, parts, *last);
                }
                InventoryEntry::Part { size, content, open } => {
                    let margins = self.content(content).await;
                    self.part(&margins, *size, *open);
                }
                InventoryEntry::Garbage(_) => self.report.garbage += 1,
            }
        }
    }

    /// Looks at a content whose extents are named by it alone: counts its shards, and tells what is lost.
    async fn content(&mut self, content: &HeldContent) -> ObjectMargins {
        let mut margins = ObjectMargins::new();
        for extent in &content.extents {
            self.report.extents += 1;
            self.report.closed.entry(extent.pg).and_modify(|left| *left += 1);
            let (shards, lost) = self.count_shards(extent);
            margins.add(&self.places, &shards);
            if !lost.is_empty() {
                self.mark_lost(&content.owner, extent, lost).await;
            }
        }
        margins
    }

    /// Counts the shards of an extent; gives those that are gone.
    fn count_shards(&mut self, extent: &Extent) -> (Shards, SlotSet) {
        let (counts, mut lost) = (&mut self.report.shards, SlotSet::EMPTY);
        for slot in extent.profile.slots() {
            match self.disks.standing(extent, slot) {
                Standing::Present(_) => counts.found += 1,
                Standing::Missing => counts.missing += 1,
                Standing::Damaged => counts.damaged += 1,
                Standing::Unknown | Standing::AskHome(_) => counts.unknown += 1,
                Standing::Lost => {
                    counts.lost += 1;
                    lost.insert(slot);
                }
            }
        }
        (shards_of(&self.disks, extent), lost)
    }

    async fn mark_lost(&self, owner: &ExtentOwner, extent: &Extent, slots: SlotSet) {
        // while a slot moves the map is older than what its homes know
        let settled = |slot| settled_home(self.map, extent.pg, slot).is_some();
        let slots: SlotSet = slots.iter().filter(|&slot| settled(slot)).collect();
        if slots.is_empty() {
            return;
        }
        let lost = MarkLost { owner: owner.clone(), extent: extent.clone(), slots };
        match self.client.mark_lost(lost).await {
            Ok(true) => {
                metrics::counter!("ashlar_audit_lost_shards_total")
                    .increment(u64::from(slots.count()));
                tracing::warn!(extent = %extent.id, pg = %extent.pg, shards = slots.count(),
                    "shards are gone from their homes; they will be rebuilt");
            }
            Ok(false) => {
                tracing::debug!(extent = %extent.id, "an extent is named otherwise by now, or has too few shards left");
            }
            Err(failure) => {
                tracing::warn!(extent = %extent.id, %failure, "a loss could not be recorded now");
            }
        }
    }

    fn parts_of(
        &mut self,
        range: &RangeDescriptor,
        (at, object): (&KeyPoint, ObjectId),
        size: u64,
        parts: &[HeldContent],
        last: bool,
    ) {
        let begun = self.composite.take().filter(|(key, id, _)| key == at && *id == object);
        let mut margins = begun.map_or_else(ObjectMargins::new, |(.., margins)| margins);
        for extent in parts.iter().flat_map(|part| &part.extents) {
            margins.add(&self.places, &shards_of(&self.disks, extent));
        }
        if last {
            self.object(range, at, &margins, size);
        } else {
            self.composite = Some((at.clone(), object, margins));
        }
    }

    fn part(&mut self, margins: &ObjectMargins, size: u64, open: bool) {
        if !open {
            return;
        }
        self.report.open_parts.add(size);
        if margins.is_lost() {
            self.report.lost_parts.add(size);
        }
    }

    fn object(
        &mut self,
        range: &RangeDescriptor,
        at: &KeyPoint,
        margins: &ObjectMargins,
        bytes: u64,
    ) {
        let (places, alive) = (&self.places, &self.alive);
        let of_range =
            self.ranges.entry(range.id).or_insert_with(|| RangeMargins::new(places, range, alive));
        let (now, lost) = self.report.durability.count(of_range, margins, bytes);
        let is_worse = self.worst.last().is_none_or(|last| now <= last.margins);
        let full = self.worst.len() >= NAMED_MAX;
        if !lost && full && !is_worse {
            return;
        }
        let bucket = self.names.get(&at.bucket).cloned();
        let standing = ObjectStanding {
            margins: now,
            bucket: bucket.unwrap_or_else(|| at.bucket.to_string()),
            key: String::from_utf8_lossy(&at.key).into_owned(),
            bytes,
        };
        if lost && self.report.lost.len() < NAMED_MAX {
            self.report.lost.push(standing.clone());
        }
        self.worst.insert(standing);
        if self.worst.len() > NAMED_MAX {
            self.worst.pop_last();
        }
    }

    /// Whether no range takes anything from this session any more, since before the walks.
    fn is_refused(&self, session: SessionId) -> bool {
        let living = &self.living.sessions;
        session < self.living.floor && living.iter().all(|open| open.id != session)
    }

    async fn queue_orphans(&mut self) {
        let mut by_bucket: BTreeMap<BucketId, Vec<Orphan>> = BTreeMap::new();
        for (orphan, bucket) in std::mem::take(&mut self.unmet).into_values() {
            if self.is_refused(orphan.id.session) {
                by_bucket.entry(bucket).or_default().push(orphan);
            } else {
                self.report.unnamed += 1;
            }
        }
        for (bucket, orphans) in by_bucket {
            // any range can take them: its log decides that they go, and data nodes ask it. That of their bucket's first
            // key takes also what is abandoned before it was sent.
            let at = KeyPoint::new(bucket, []);
            for some in orphans.chunks(ORPHANS_AT_ONCE) {
                match self.client.queue_orphans(&at, some.to_vec()).await {
                    Ok(()) => {
                        let count = some.len() as u64;
                        self.report.orphans += count;
                        metrics::counter!("ashlar_audit_orphans_total").increment(count);
                        tracing::info!(%bucket, extents = count, "extents that nothing names were queued for deletion");
                    }
                    Err(failure) => {
                        tracing::warn!(%bucket, %failure, "orphans could not be queued now");
                    }
                }
            }
        }
    }

    fn end(self) -> AuditReport {
        AuditReport { worst: self.worst.into_iter().collect(), ..self.report }
    }
}

fn shards_of(disks: &Disks<'_>, extent: &Extent) -> Shards {
    let mut shards = Shards { needed: usize::from(extent.profile.data), ..Shards::default() };
    for slot in extent.profile.slots() {
        match disks.standing(extent, slot) {
            Standing::Present(disk) => shards.present.push(disk),
            Standing::Unknown | Standing::AskHome(_) => shards.unknown += 1,
            Standing::Missing | Standing::Damaged | Standing::Lost => {}
        }
    }
    shards
}

fn silent(map: &ClusterMap, disks: &Disks<'_>) -> Vec<SilentDisk> {
    let node_of = |disk: DiskId| map.disks.get(&disk).map(|disk| disk.node).unwrap_or_default();
    let silent = disks.silent.iter();
    silent
        .map(|(&disk, reason)| SilentDisk {
            disk: disk.to_string(),
            node: node_of(disk),
            reason: reason.clone(),
        })
        .collect()
}

/// The groups that take nothing new, before anything was counted in them.
fn closed(map: &ClusterMap) -> BTreeMap<PgId, u64> {
    let closed = map.groups.values().filter(|group| !group.open);
    closed.map(|group| (group.id, 0)).collect()
}

/// The nodes that answer at all.
async fn alive(client: &Client, map: &ClusterMap) -> BTreeSet<NodeId> {
    let asked = map
        .nodes
        .values()
        .map(|node| async move { client.sessions_of(&node.address).await.ok().map(|_| node.id) });
    join_all(asked).await.into_iter().flatten().collect()
}

async fn without_majority(
    client: &Client,
    places: &Places<'_>,
    alive: &BTreeSet<NodeId>,
) -> Result<Vec<NodeId>, Failure> {
    let ranges = client.ranges_now().await?;
    let needed = ranges.iter().flat_map(|range| RangeMargins::new(places, range, alive).needed());
    Ok(needed.collect::<BTreeSet<NodeId>>().into_iter().collect())
}
