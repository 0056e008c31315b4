//! What a change of the placement groups makes of the cluster map, and whether it may be. What holds for every table is
//! judged by `ashlar_placement::validate`; here is what depends on the step: nothing is placed on a dead disk.
//!
//! A slot that is moved keeps its old home until the move is named a second time: the first time it is noted as moving,
//! so that the shard is copied, verified and committed before anything is dropped (D4).

use ashlar_types::{ClusterMap, DiskId, DiskState, PgId, PlacementDiff, PlacementGroup, Slot};
use std::collections::BTreeSet;

/// Changes `map`, except for its epoch; gives the groups that changed, or why the change breaks an invariant.
pub(crate) fn place(
    map: &mut ClusterMap,
    diff: &PlacementDiff,
) -> Result<Vec<PlacementGroup>, String> {
    let mut changed = BTreeSet::new();
    for group in &diff.added {
        check_new(map, group)?;
        map.groups.insert(group.id, group.clone());
        changed.insert(group.id);
    }
    for &(id, slot, disk) in &diff.moved {
        check_home(map, disk)?;
        move_slot(group(map, id)?, slot, disk)?;
        changed.insert(id);
    }
    for &id in &diff.closed {
        let group = group(map, id)?;
        group.open = false;
        group.epoch = group.epoch.next();
        changed.insert(id);
    }
    map.wide = diff.wide.or(map.wide);
    ashlar_placement::validate(map).map_err(|bad| bad.to_string())?;
    Ok(changed.iter().filter_map(|id| map.groups.get(id).cloned()).collect())
}

fn group(map: &mut ClusterMap, id: PgId) -> Result<&mut PlacementGroup, String> {
    map.groups.get_mut(&id).ok_or_else(|| format!("{id} is not known"))
}

fn check_new(map: &ClusterMap, group: &PlacementGroup) -> Result<(), String> {
    let id = group.id;
    if map.groups.contains_key(&id) {
        return Err(format!("{id} exists"));
    }
    if group.moving.is_some() {
        return Err(format!("{id} is new, it has nothing to move"));
    }
    group.homes.iter().try_for_each(|&disk| check_home(map, disk))
}

fn check_home(map: &ClusterMap, id: DiskId) -> Result<(), String> {
    match map.disks.get(&id).map(|disk| disk.state) {
        None => Err(format!("disk {id} is not known")),
        Some(DiskState::Dead) => Err(format!("disk {id} is dead")),
        Some(DiskState::Healthy | DiskState::Suspect) => Ok(()),
    }
}

fn move_slot(group: &mut PlacementGroup, slot: Slot, disk: DiskId) -> Result<(), String> {
    let id = group.id;
    if group.homes.contains(&disk) {
        return Err(format!("disk {disk} is a home of {id} already"));
    }
    let Some(home) = group.homes.get_mut(usize::from(slot.0)) else {
        return Err(format!("{id} has no {slot}"));
    };
    match group.moving {
        None => group.moving = Some((slot, disk)),
        Some(moving) if moving == (slot, disk) => {
            *home = disk;
            group.moving = None;
        }
        Some((moving, _)) => return Err(format!("{id} is moving {moving}: one at a time")),
    }
    group.epoch = group.epoch.next();
    Ok(())
}
