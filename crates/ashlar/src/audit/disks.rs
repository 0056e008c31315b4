//! What the disks hold, compared with what is named.
//!
//! First by the sums of cells: where they agree nothing more is asked. Of cells that differ the shards are asked for
//! one by one. A shard that is named and not among these may have come or gone since: before it is called lost, its
//! home is asked for exactly this shard.

use ashlar_client::Client;
use ashlar_types::{
    CellSum, ClusterMap, DiskAnswer, DiskId, DiskQuery, Extent, ExtentId, HeldShard, NodeId, PgId,
    ShardCell, Slot,
};
use futures::StreamExt;
use std::collections::{BTreeMap, BTreeSet};

/// Disks that are asked at once.
const DISKS_AT_ONCE: usize = 8;
/// From so many shards of differing cells on no more disks are looked at in this pass: they are held in memory.
const COMPARED_SHARDS_MAX: usize = 1 << 20;

/// Sums by cell.
pub(super) type Sums = BTreeMap<ShardCell, CellSum>;

/// What is known of one shard that an extent should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is there.
    Present(DiskId),
    /// Its record says that it is missing, or its disk is dead.
    Missing,
    /// It is there, and damaged.
    Damaged,
    /// Its home has answered that it is not there, and its record says that it is.
    Lost,
    /// Nobody can say.
    Unknown,
    /// Only its home can say.
    AskHome(DiskId),
}

/// The disk that surely is the home of a slot: it is not moving, and the map knows it.
pub(super) fn settled_home(map: &ClusterMap, pg: PgId, slot: Slot) -> Option<DiskId> {
    let group = map.groups.get(&pg)?;
    let moving = group.moving.is_some_and(|(moving, _)| moving == slot);
    group.homes.get(usize::from(slot.0)).copied().filter(|_| !moving)
}

/// Adds the shards of an extent.
pub(super) fn add_named(map: &ClusterMap, shift: u8, sums: &mut Sums, extent: &Extent) {
    for slot in extent.profile.slots().filter(|&slot| !extent.missing.contains(slot)) {
        if settled_home(map, extent.pg, slot).is_some() {
            let cell = ShardCell::of(extent.pg, slot, extent.id, shift);
            sums.entry(cell).or_default().add(extent.id);
        }
    }
}

/// All disks, as they have answered.
pub(super) struct Disks<'a> {
    map: &'a ClusterMap,
    shift: u8,
    answered: BTreeSet<DiskId>,
    /// Why the others have not.
    pub(super) silent: BTreeMap<DiskId, String>,
    /// Cells whose shards were asked for one by one.
    compared: BTreeSet<ShardCell>,
    /// Cells that differ and are not looked at in this pass.
    pub(super) left: BTreeSet<ShardCell>,
    /// The shards in the compared cells.
    held: BTreeMap<(ExtentId, Slot), HeldShard>,
    /// Shards on disks that are not their home.
    pub(super) strays: u64,
    /// What homes have said of single shards.
    said: BTreeMap<(ExtentId, Slot), Standing>,
}

impl<'a> Disks<'a> {
    /// Asks all disks, and compares their sums with these.
    pub(super) async fn compare(
        client: &Client,
        map: &'a ClusterMap,
        shift: u8,
        named: &Sums,
    ) -> Self {
        let mut disks = Self {
            map,
            shift,
            answered: BTreeSet::new(),
            silent: BTreeMap::new(),
            compared: BTreeSet::new(),
            left: BTreeSet::new(),
            held: BTreeMap::new(),
            strays: 0,
            said: BTreeMap::new(),
        };
        let found = disks.ask_sums(client).await;
        let differing = disks.differing(named, &found);
        disks.ask_shards(client, differing).await;
        disks
    }

    /// The sums of all cells at their homes.
    async fn ask_sums(&mut self, client: &Client) -> Sums {
        let (map, shift) = (self.map, self.shift);
        let disks = map.disks.values().filter(|disk| disk.state.is_read());
        let asked: Vec<_> =
            disks.map(|disk| ask_cells(client, map, disk.node, disk.id, shift)).collect();
        let mut answers = futures::stream::iter(asked).buffer_unordered(DISKS_AT_ONCE);
        let mut found = Sums::new();
        while let Some((disk, answer)) = answers.next().await {
            match answer {
                Ok(DiskAnswer::Cells(cells)) => {
                    self.answered.insert(disk);
                    self.sort_out(disk, cells, &mut found);
                }
                Ok(other) => drop(self.silent.insert(disk, format!("it answered {other:?}"))),
                Err(reason) => drop(self.silent.insert(disk, reason)),
            }
        }
        found
    }

    fn sort_out(&mut self, disk: DiskId, cells: Vec<(ShardCell, CellSum)>, found: &mut Sums) {
        for (cell, sum) in cells {
            let group = self.map.groups.get(&cell.pg);
            if settled_home(self.map, cell.pg, cell.slot) == Some(disk) {
                found.insert(cell, sum);
            } else if group.is_none_or(|group| group.moving.is_none()) {
                self.strays += sum.shards;
            }
        }
    }

    /// Cells of disks that have answered, whose sums are not what they should be.
    fn differing(&self, named: &Sums, found: &Sums) -> BTreeMap<DiskId, Vec<ShardCell>> {
        let mut differing: BTreeMap<DiskId, Vec<ShardCell>> = BTreeMap::new();
        let cells: BTreeSet<&ShardCell> = named.keys().chain(found.keys()).collect();
        for cell in cells {
            let home = settled_home(self.map, cell.pg, cell.slot);
            let home = home.filter(|home| self.answered.contains(home));
            if let Some(home) = home.filter(|_| named.get(cell) != found.get(cell)) {
                differing.entry(home).or_default().push(*cell);
            }
        }
        differing
    }

    async fn ask_shards(&mut self, client: &Client, differing: BTreeMap<DiskId, Vec<ShardCell>>) {
        for (disk, cells) in differing {
            if self.held.len() >= COMPARED_SHARDS_MAX {
                self.left.extend(cells);
                continue;
            }
            let Some(node) = self.map.disks.get(&disk).map(|disk| disk.node) else { continue };
            let query = DiskQuery::Shards { disk, shift: self.shift, cells: cells.clone() };
            match client.ask_disk(self.map, node, &query).await {
                Ok(DiskAnswer::Shards(shards)) => {
                    self.compared.extend(cells);
                    let named = |shard: HeldShard| ((shard.extent, shard.slot), shard);
                    self.held.extend(shards.into_iter().map(named));
                }
                Ok(_) | Err(_) => self.left.extend(cells),
            }
        }
    }

    /// The shards in the cells that differ.
    pub(super) fn held(&self) -> impl Iterator<Item = &HeldShard> {
        self.held.values()
    }

    /// Asks the homes of shards that should be there and were not seen. What they say holds for this page alone.
    pub(super) async fn ask_homes(&mut self, client: &Client, extents: &[&Extent]) {
        self.said.clear();
        let mut asked: BTreeMap<(DiskId, PgId), BTreeSet<(ExtentId, Slot)>> = BTreeMap::new();
        for extent in extents {
            for slot in extent.profile.slots() {
                if let Standing::AskHome(disk) = self.standing(extent, slot) {
                    asked.entry((disk, extent.pg)).or_default().insert((extent.id, slot));
                }
            }
        }
        for ((disk, pg), shards) in asked {
            let shards: Vec<(ExtentId, Slot)> = shards.into_iter().collect();
            let answers = self.ask_home(client, disk, pg, &shards).await;
            self.said.extend(shards.into_iter().zip(answers));
        }
    }

    async fn ask_home(
        &self,
        client: &Client,
        disk: DiskId,
        pg: PgId,
        shards: &[(ExtentId, Slot)],
    ) -> Vec<Standing> {
        let (Some(home), Some(group)) = (self.map.disks.get(&disk), self.map.groups.get(&pg))
        else {
            return vec![Standing::Unknown; shards.len()];
        };
        let query = DiskQuery::Holds { disk, pg, pg_epoch: group.epoch, shards: shards.to_vec() };
        match client.ask_disk(self.map, home.node, &query).await {
            Ok(DiskAnswer::Holds(holds)) if holds.len() == shards.len() => {
                let standing = |there| if there { Standing::Present(disk) } else { Standing::Lost };
                holds.into_iter().map(standing).collect()
            }
            Ok(_) | Err(_) => vec![Standing::Unknown; shards.len()],
        }
    }

    /// What is known of the shard of an extent in a slot.
    pub(super) fn standing(&self, extent: &Extent, slot: Slot) -> Standing {
        if extent.missing.contains(slot) {
            return Standing::Missing;
        }
        let group = self.map.groups.get(&extent.pg);
        let home = group.and_then(|group| group.homes.get(usize::from(slot.0)).copied());
        let Some(home) = home else { return Standing::Unknown };
        if !self.map.is_read(home) {
            return Standing::Missing;
        }
        if !self.answered.contains(&home) {
            return Standing::Unknown;
        }
        if settled_home(self.map, extent.pg, slot).is_none() {
            // whoever moves it keeps it where it was until it is where it goes
            return Standing::Present(home);
        }
        let cell = ShardCell::of(extent.pg, slot, extent.id, self.shift);
        if self.left.contains(&cell) {
            return Standing::Unknown;
        }
        match self.held.get(&(extent.id, slot)) {
            Some(shard) if shard.damaged => Standing::Damaged,
            Some(_) => Standing::Present(home),
            None if !self.compared.contains(&cell) => Standing::Present(home),
            None => {
                let said = self.said.get(&(extent.id, slot)).copied();
                said.unwrap_or(Standing::AskHome(home))
            }
        }
    }
}

async fn ask_cells(
    client: &Client,
    map: &ClusterMap,
    node: NodeId,
    disk: DiskId,
    shift: u8,
) -> (DiskId, Result<DiskAnswer, String>) {
    (disk, client.ask_disk(map, node, &DiskQuery::Cells { disk, shift }).await)
}
