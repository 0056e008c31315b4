//! Data nodes of one disk each and one placement group, without a network: what they ask of each other is answered by
//! calling them. Each node has the map that the test has given it, as old as that may be.

use super::config;
use crate::DataNode;
use crate::copy::{CopyError, MoveSource, Round};
use crate::gate::SlotPlace;
use ashlar_client::{Column, ColumnFailure, Failure, ShardError};
use ashlar_erasure::Codec;
use ashlar_host::{Host, SimDisk};
use ashlar_store::{ShardKey, Store, StoreError};
use ashlar_types::*;
use ashlar_wire::shard::{CRC_HEADER, ShardFacts, ShardPath, ShardRefusal, format_crc};
use async_trait::async_trait;
use axum::body::Body;
use bytes::Bytes;
use http::{Request, StatusCode};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tower::ServiceExt;

pub(super) const PG: PgId = PgId(1);
const DIR: &str = "/disk";

/// What a test does when a shard has been read for a copy.
pub(super) type OnRead = Box<dyn Fn(ExtentId) + Send>;

pub(super) struct Fleet {
    pub(super) nodes: Vec<Arc<DataNode>>,
    pub(super) disks: Vec<DiskId>,
    /// Under the files of each node.
    media: Vec<SimDisk>,
    /// As it is committed.
    map: Mutex<ClusterMap>,
    /// Nodes that answer nobody.
    pub(super) away: Mutex<BTreeSet<usize>>,
    /// All know of a switch before the copier has its answer.
    pub(super) hears_switches: AtomicBool,
    on_read: Mutex<Option<OnRead>>,
}

pub(super) fn extent(counter: u64) -> ExtentId {
    ExtentId { session: SessionId(5), counter }
}

impl Fleet {
    /// So many nodes; the first are the homes of the group. All know the map.
    pub(super) async fn start(profile: Profile, nodes: usize) -> Self {
        let (mut started, mut media) = (Vec::new(), Vec::new());
        for _ in 0..nodes {
            let disk = SimDisk::new();
            media.push(disk.clone());
            let host = Host::real().with_disk(Arc::new(disk));
            let dir = PathBuf::from(DIR);
            host.disk.create_dir_all(&dir).unwrap();
            started.push(DataNode::start(host, config(vec![dir])).await.unwrap());
        }
        let disks: Vec<DiskId> = started.iter().map(|node| node.disks()[0].id).collect();
        let mut map = ClusterMap { epoch: Epoch(1), ..ClusterMap::default() };
        for node in &started {
            let disk = node.disks().remove(0);
            map.disks.insert(disk.id, disk);
        }
        let homes = disks[..usize::from(profile.width())].to_vec();
        let (id, epoch, moving, open) = (PG, Epoch(1), None, true);
        map.groups.insert(PG, PlacementGroup { id, profile, epoch, homes, moving, open });
        let (map, away) = (Mutex::new(map), Mutex::default());
        let (hears_switches, on_read) = (AtomicBool::new(false), Mutex::default());
        let fleet = Self { nodes: started, disks, media, map, away, hears_switches, on_read };
        fleet.all_learn();
        fleet
    }

    pub(super) async fn stop(&self) {
        for node in &self.nodes {
            node.stop().await;
        }
    }

    pub(super) fn map(&self) -> ClusterMap {
        self.map.lock().unwrap().clone()
    }

    pub(super) fn group(&self) -> PlacementGroup {
        self.map().groups.remove(&PG).unwrap()
    }

    pub(super) fn learns(&self, node: usize) {
        self.nodes[node].set_map(Arc::new(self.map()));
    }

    pub(super) fn all_learn(&self) {
        (0..self.nodes.len()).for_each(|node| self.learns(node));
    }

    fn change(&self, change: impl FnOnce(&mut ClusterMap)) {
        let mut map = self.map.lock().unwrap();
        change(&mut map);
        map.epoch = map.epoch.next();
    }

    /// As the root does it.
    pub(super) fn begin_move(&self, slot: Slot, to: usize) -> SlotMove {
        let to = self.disks[to];
        self.change(|map| {
            let group = map.groups.get_mut(&PG).unwrap();
            assert!(!group.homes.contains(&to), "it is a home");
            group.moving = Some((slot, to));
            group.epoch = group.epoch.next();
        });
        SlotMove { group: PG, epoch: self.group().epoch, slot, to }
    }

    pub(super) fn lose(&self, node: usize) {
        let disk = self.disks[node];
        self.change(|map| map.disks.get_mut(&disk).unwrap().state = DiskState::Dead);
    }

    pub(super) fn is_lost(&self, disk: DiskId) -> bool {
        !self.map().disks[&disk].state.is_read()
    }

    pub(super) fn node_of(&self, disk: DiskId) -> usize {
        self.disks.iter().position(|known| *known == disk).unwrap()
    }

    pub(super) fn store(&self, disk: DiskId) -> Store {
        self.nodes[self.node_of(disk)].store(disk).unwrap()
    }

    /// The shards of an extent whose content is made from its number.
    pub(super) fn cells(profile: Profile, counter: u64, length: usize) -> Vec<Bytes> {
        let seed = usize::try_from(counter).unwrap() * 31;
        let byte = |cell: usize, at: usize| u8::try_from((seed + cell * 7 + at) % 251).unwrap();
        let make = |cell| (0..length).map(|at| byte(cell, at)).collect::<Vec<u8>>();
        let data: Vec<Vec<u8>> = (0..usize::from(profile.data)).map(make).collect();
        let mut parity = vec![vec![0; length]; usize::from(profile.parity)];
        let given: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let mut out: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
        Codec::new(profile).encode(&given, &mut out).unwrap();
        data.into_iter().chain(parity).map(Bytes::from).collect()
    }

    pub(super) fn request(
        &self,
        group: &PlacementGroup,
        counter: u64,
        slot: Slot,
        length: usize,
    ) -> (DiskId, String) {
        let disk = group.written(slot).unwrap();
        let facts = ShardFacts {
            pg: PG,
            pg_epoch: group.epoch,
            profile: group.profile,
            bucket: BucketId(42),
            length: length as u64,
        };
        let path = ShardPath { disk, extent: extent(counter), slot };
        (disk, format!("{path}?{facts}"))
    }

    /// Writes one shard as a writer does that knows the group so.
    pub(super) async fn put(
        &self,
        group: &PlacementGroup,
        counter: u64,
        slot: Slot,
        length: usize,
    ) -> StatusCode {
        let content = Self::cells(group.profile, counter, length).remove(usize::from(slot.0));
        let (disk, uri) = self.request(group, counter, slot, length);
        let request = Request::put(uri)
            .header("content-length", content.len())
            .header(CRC_HEADER, format_crc(crc32c::crc32c(&content)));
        let request = request.body(Body::from(content)).unwrap();
        self.nodes[self.node_of(disk)].router().oneshot(request).await.unwrap().status()
    }

    /// Writes a whole extent under the map as it is.
    pub(super) async fn put_extent(&self, counter: u64, length: usize) {
        let group = self.group();
        for slot in group.profile.slots() {
            assert_eq!(self.put(&group, counter, slot, length).await, StatusCode::OK);
        }
    }

    /// Whether a disk has a shard with the content that it must have.
    pub(super) async fn has(&self, disk: DiskId, counter: u64, slot: Slot) -> bool {
        let (store, key) = (self.store(disk), ShardKey { extent: extent(counter), slot });
        let Some(meta) = store.meta(key) else { return false };
        let profile = meta.profile;
        let length = usize::try_from(meta.length).unwrap();
        let content = store.read(key, 0, meta.length).await.unwrap();
        assert_eq!(content, Self::cells(profile, counter, length)[usize::from(slot.0)]);
        true
    }

    /// Turns a byte of a node's shard, the first one there with this content, and has a reader find it.
    pub(super) async fn rot(&self, node: usize, counter: u64, slot: Slot, at: usize) {
        let (disk, key) = (self.disks[node], ShardKey { extent: extent(counter), slot });
        let meta = self.store(disk).meta(key).unwrap();
        let length = usize::try_from(meta.length).unwrap();
        let content = Self::cells(meta.profile, counter, length).remove(usize::from(slot.0));
        let files = &self.nodes[node].host.disk;
        let found = files.list(&Path::new(DIR).join("seg")).unwrap().into_iter().find_map(|path| {
            let bytes = files.read(&path).unwrap();
            let from = bytes.windows(length).position(|window| window == &content[..])?;
            Some((path, from))
        });
        let (path, from) = found.unwrap();
        self.media[node].flip(&path, (from + at) as u64).unwrap();
        let read = self.store(disk).read(key, at as u64, 1).await;
        assert_eq!(read, Err(StoreError::Corrupt));
    }

    pub(super) fn on_read(&self, then: impl Fn(ExtentId) + Send + 'static) {
        *self.on_read.lock().unwrap() = Some(Box::new(then));
    }

    pub(super) async fn copy(&self, step: SlotMove) -> Result<Round, CopyError> {
        let node = &self.nodes[self.node_of(step.to)];
        node.incoming.begin(step);
        let end = node.copy_once(step, self).await;
        node.incoming.end(step);
        end
    }

    pub(super) async fn give_up(&self, node: usize, slot: Slot) -> bool {
        let at = SlotPlace { disk: self.disks[node], group: PG, slot };
        self.nodes[node].give_up(at).await.unwrap()
    }

    fn is_away(&self, disk: DiskId) -> bool {
        self.away.lock().unwrap().contains(&self.node_of(disk))
    }
}

fn read_failed(error: StoreError) -> ShardError {
    match error {
        StoreError::NotFound => ShardError::Refused(ShardRefusal::NotFound),
        StoreError::Corrupt => ShardError::Refused(ShardRefusal::Corrupt),
        other => ShardError::Broken(other.to_string()),
    }
}

#[async_trait]
impl MoveSource for Fleet {
    async fn list_shards(&self, ask: ListShards) -> Result<ShardsListed, String> {
        let node = &self.nodes[self.node_of(ask.disk)];
        if self.is_away(ask.disk) {
            return Err("it is away".to_owned());
        }
        // it would wait for the map
        if node.pg_epoch(ask.group).is_none_or(|known| known < ask.epoch) {
            return Ok(ShardsListed::NotYet);
        }
        Ok(node.list_shards(&ask).await)
    }

    async fn shard_bytes(
        &self,
        disk: DiskId,
        extent: ExtentId,
        slot: Slot,
        span: Range<u64>,
    ) -> Result<Bytes, ShardError> {
        if self.is_away(disk) {
            return Err(ShardError::Unreachable("it is away".to_owned()));
        }
        let key = ShardKey { extent, slot };
        let read = self.store(disk).read(key, span.start, span.end - span.start).await;
        if let Some(then) = &*self.on_read.lock().unwrap() {
            then(extent);
        }
        read.map_err(read_failed)
    }

    async fn column(&self, column: Column, span: Range<u64>) -> Result<Bytes, ColumnFailure> {
        let group = self.group();
        let (mut cells, mut unknown) = (Vec::new(), 0);
        for slot in group.profile.slots() {
            let home = group.homes[usize::from(slot.0)];
            let asked = slot != column.slot && !self.is_lost(home);
            let read = match asked {
                true => self.shard_bytes(home, column.extent, slot, span.clone()).await,
                false => Err(ShardError::Refused(ShardRefusal::NotFound)),
            };
            unknown += usize::from(read.as_ref().is_err_and(|error| !error.is_certain()));
            cells.push(read.ok());
        }
        let found = cells.iter().flatten().count();
        let needed = usize::from(column.profile.data);
        let failed =
            |why: String| ColumnFailure { extent: column.extent, found, needed, unknown, why };
        let cells: Vec<Option<&[u8]>> = cells.iter().map(Option::as_deref).collect();
        let mut out = vec![0; usize::try_from(span.end - span.start).unwrap()];
        let rebuilt = Codec::new(column.profile).rebuild(&cells, &[column.slot], &mut [&mut out]);
        rebuilt.map_err(|error| failed(error.to_string()))?;
        Ok(out.into())
    }

    async fn switch(&self, step: SlotMove) -> Result<(), Failure> {
        let group = self.group();
        if group.epoch != step.epoch || group.moving != Some((step.slot, step.to)) {
            let (group, known) = (PG, Some(group.epoch));
            return Err(Failure::Root(RootRefusal::StaleGroup { group, known }));
        }
        self.change(|map| {
            let group = map.groups.get_mut(&PG).unwrap();
            group.homes[usize::from(step.slot.0)] = step.to;
            group.moving = None;
            group.epoch = group.epoch.next();
        });
        if self.hears_switches.load(Ordering::Relaxed) {
            self.all_learn();
        }
        Ok(())
    }
}
