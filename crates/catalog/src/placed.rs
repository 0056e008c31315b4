//! What a change of the placement groups makes of the cluster map, and whether it may be. What holds for every table is
//! judged by `ashlar_placement::validate`; here is what depends on the step: nothing is placed on a dead disk.
//!
//! A slot moves in two steps. It *begins*: the target is noted beside the home, new shards go there, and the old ones are
//! copied and verified; then it *switches*: the target is the home. Between the two nothing is dropped (D4). Each step
//! names the group's epoch that it was decided from, so that what is late, or decided by one who knew less, is refused.

use ashlar_types::{
    ClusterMap, DiskId, DiskState, PgId, PlacementDiff, PlacementGroup, RootRefusal, SlotMove,
};
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
    for &(id, slot, to) in &diff.moved {
        let epoch = group(map, id)?.epoch;
        let step = SlotMove { group: id, epoch, slot, to };
        begin_move(map, &step).map_err(|refusal| refusal.to_string())?;
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
        Some(DiskState::Healthy | DiskState::Suspect) => Ok(()),
        Some(state) => Err(format!("disk {id} is {state:?}")),
    }
}

/// A slot begins to move, or moves elsewhere because its target is lost: what only the lost one had is computed anew, as
/// what a lost home had. Or it stays where it is, for the same reason: a move to its own home takes the move back.
pub(crate) fn begin_move(
    map: &mut ClusterMap,
    step: &SlotMove,
) -> Result<PlacementGroup, RootRefusal> {
    let bad = RootRefusal::BadPlacement;
    match map.disks.get(&step.to).map(|disk| disk.state) {
        Some(DiskState::Healthy) => {}
        None => return Err(bad(format!("disk {} is not known", step.to))),
        Some(state) => return Err(bad(format!("disk {} is {state:?}", step.to))),
    }
    let known = judged_by_epoch(map, step)?;
    if is_taken_back(map, &known, step) {
        return Ok(change(map, known, |group| group.moving = None));
    }
    if known.homes.contains(&step.to) {
        return Err(bad(format!("disk {} is a home of {} already", step.to, step.group)));
    }
    if usize::from(step.slot.0) >= known.homes.len() {
        return Err(bad(format!("{} has no {}", step.group, step.slot)));
    }
    if let Some((moving, target)) = known.moving
        && (moving != step.slot || map.is_read(target))
    {
        return Err(RootRefusal::AlreadyMoving(step.group));
    }
    Ok(change(map, known, |group| group.moving = Some((step.slot, step.to))))
}

fn is_taken_back(map: &ClusterMap, group: &PlacementGroup, step: &SlotMove) -> bool {
    let home = group.homes.get(usize::from(step.slot.0));
    let is_moving = |(slot, target)| slot == step.slot && !map.is_read(target);
    home == Some(&step.to) && group.moving.is_some_and(is_moving)
}

/// The target of a move is the slot's home from now on.
pub(crate) fn switch(map: &mut ClusterMap, step: &SlotMove) -> Result<PlacementGroup, RootRefusal> {
    let known = judged_by_epoch(map, step)?;
    if known.moving != Some((step.slot, step.to)) {
        return Err(RootRefusal::AlreadyMoving(step.group));
    }
    if !map.is_read(step.to) {
        return Err(RootRefusal::BadPlacement(format!("disk {} is lost", step.to)));
    }
    Ok(change(map, known, |group| {
        group.homes[usize::from(step.slot.0)] = step.to;
        group.moving = None;
    }))
}

fn judged_by_epoch(map: &ClusterMap, step: &SlotMove) -> Result<PlacementGroup, RootRefusal> {
    let known = map.groups.get(&step.group);
    let stale =
        RootRefusal::StaleGroup { group: step.group, known: known.map(|group| group.epoch) };
    known.filter(|group| group.epoch == step.epoch).cloned().ok_or(stale)
}

fn change(
    map: &mut ClusterMap,
    mut group: PlacementGroup,
    change: impl FnOnce(&mut PlacementGroup),
) -> PlacementGroup {
    change(&mut group);
    group.epoch = group.epoch.next();
    map.groups.insert(group.id, group.clone());
    group
}
