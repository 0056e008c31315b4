//! What belongs to where a slot moves, from the lists of the disks that have the group's shards; pure, so that the model
//! of the tests judges by it too.
//!
//! An extent that was acknowledged has k + 1 shards at least, so k on other slots than the one that moves. Any m of the
//! k + m - 1 others leave k - 1 that are not asked: it is in one of the lists (`docs/adr/0012-how-a-slot-moves.md`).
//! Where fewer than m others are left, all of them are asked: what has k shards left is on one of them.

use ashlar_types::{ExtentId, ListedShard, PlacementGroup, Slot};
use std::collections::{BTreeMap, BTreeSet};

/// What one disk lists, or why it does not.
pub(crate) type Listing = Result<Vec<ListedShard>, String>;

/// The lists of all disks of a group that are not lost, by slot.
pub(crate) type Lists = BTreeMap<Slot, Listing>;

/// A shard that belongs to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) shard: ListedShard,
    pub(crate) is_at_home: bool,
    /// All disks of the group that are not lost have acknowledged: nothing more of it can come under an older epoch.
    pub(crate) is_settled: bool,
}

/// Too few disks have listed what they have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{missing} lists are missing: {why}")]
pub(crate) struct NotListed {
    missing: usize,
    why: String,
}

/// What belongs to the target of `slot`. `has_home`: the slot's home is not lost, so that its list is needed.
pub(crate) fn wanted(
    group: &PlacementGroup,
    slot: Slot,
    has_home: bool,
    lists: &Lists,
) -> Result<BTreeMap<ExtentId, Wanted>, NotListed> {
    let (home, others): (Vec<_>, Vec<_>) = lists
        .iter()
        .filter_map(|(of, list)| Some((*of, list.as_ref().ok()?)))
        .partition(|(of, _)| *of == slot);
    let left = lists.keys().filter(|of| **of != slot).count();
    let enough = usize::from(group.profile.parity).min(left);
    // without the home, and without k others, nobody can say or compute anything: the lost disk alone has it
    let hopeless = if has_home { 0 } else { usize::from(group.profile.data).saturating_sub(left) };
    let missing =
        hopeless + enough.saturating_sub(others.len()) + usize::from(has_home && home.is_empty());
    if missing > 0 {
        let why = lists.values().find_map(|list| list.as_ref().err().cloned());
        let why = why.unwrap_or_else(|| "too few disks are left".to_owned());
        return Err(NotListed { missing, why });
    }
    let is_settled = lists.values().all(Result::is_ok);
    let mut wanted = BTreeMap::new();
    // the home's word comes last, and stands
    for (lists, is_at_home) in [(&others, false), (&home, true)] {
        for &shard in lists.iter().flat_map(|(_, list)| *list) {
            wanted.insert(shard.extent, Wanted { shard, is_at_home, is_settled });
        }
    }
    Ok(wanted)
}

/// How much of it is not `here`, but for what nobody can bring or what was let go. What the home has must be the same.
pub(crate) fn count_missing(
    wanted: &BTreeMap<ExtentId, Wanted>,
    here: &BTreeMap<ExtentId, ListedShard>,
    is_gone: impl Fn(ExtentId) -> bool,
) -> usize {
    let is_whole = |wanted: &Wanted| match here.get(&wanted.shard.extent) {
        Some(found) => !wanted.is_at_home || found.crc == wanted.shard.crc,
        None => is_gone(wanted.shard.extent),
    };
    wanted.values().filter(|wanted| !is_whole(wanted)).count()
}

/// What of that which nobody could bring is a loss. Not one is what was let go, nor what came by itself meanwhile: its
/// writer had only begun to send it.
pub(crate) fn losses(
    lost: &BTreeSet<ExtentId>,
    here: &BTreeMap<ExtentId, ListedShard>,
    is_deleted: impl Fn(ExtentId) -> bool,
) -> Vec<ExtentId> {
    let is_loss = |extent: &ExtentId| !here.contains_key(extent) && !is_deleted(*extent);
    lost.iter().copied().filter(is_loss).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_types::{BucketId, DiskId, Epoch, PgId, Profile, SessionId};

    fn group(profile: Profile) -> PlacementGroup {
        PlacementGroup {
            id: PgId(1),
            profile,
            epoch: Epoch(2),
            homes: (1..=u128::from(profile.width())).map(DiskId).collect(),
            moving: Some((Slot(0), DiskId(99))),
            open: true,
        }
    }

    fn shard(counter: u64, crc: u32) -> ListedShard {
        let extent = ExtentId { session: SessionId(1), counter };
        ListedShard { extent, profile: Profile::RS_4_2, bucket: BucketId(1), length: 64, crc }
    }

    fn list(shards: &[u64]) -> Listing {
        Ok(shards.iter().map(|&counter| shard(counter, 7)).collect())
    }

    fn away() -> Listing {
        Err("its node is away".to_owned())
    }

    fn names(wanted: &BTreeMap<ExtentId, Wanted>) -> Vec<u64> {
        wanted.keys().map(|extent| extent.counter).collect()
    }

    #[test]
    fn any_m_other_lists_name_whatever_was_acknowledged() {
        for profile in [Profile::RS_4_2, Profile::RS_2_1, Profile::RS_1_2, Profile::RS_1_1] {
            let (width, parity) = (usize::from(profile.width()), usize::from(profile.parity));
            let needed = usize::from(profile.acks_min());
            // every way to acknowledge an extent with the moving slot, and every choice of lists
            for acked in (0_u32..1 << width).filter(|acked| acked & 1 == 1) {
                if usize::try_from(acked.count_ones()).unwrap() < needed {
                    continue;
                }
                for asked in (0_u32..1 << width).filter(|asked| asked & 1 == 0) {
                    let mut lists = Lists::new();
                    for slot in profile.slots().skip(1) {
                        let has = acked & (1 << slot.0) != 0;
                        let asked = asked & (1 << slot.0) != 0;
                        lists.insert(
                            slot,
                            if asked { list(if has { &[5] } else { &[] }) } else { away() },
                        );
                    }
                    let found = wanted(&group(profile), Slot(0), false, &lists);
                    if usize::try_from(asked.count_ones()).unwrap() < parity {
                        assert!(found.is_err(), "{profile}: too few lists");
                    } else {
                        assert_eq!(names(&found.unwrap()), [5], "{profile}: {acked:b} {asked:b}");
                    }
                }
            }
        }
    }

    #[test]
    fn where_few_others_are_left_all_of_them_must_list() {
        // three copies: one is lost, another one moves
        let group = group(Profile::RS_1_2);
        let mut lists = Lists::from([(Slot(0), list(&[1])), (Slot(1), away())]);
        assert!(wanted(&group, Slot(0), true, &lists).is_err());
        lists.insert(Slot(1), list(&[2]));
        assert_eq!(names(&wanted(&group, Slot(0), true, &lists).unwrap()), [1, 2]);
    }

    #[test]
    fn what_only_a_lost_disk_has_moves_nowhere() {
        for profile in [Profile::RS_1_0, Profile::RS_1_1, Profile::RS_2_1] {
            let few: Lists = (1..profile.data).map(|slot| (Slot(slot), list(&[]))).collect();
            assert!(wanted(&group(profile), Slot(0), false, &few).is_err(), "{profile}");
        }
    }

    #[test]
    fn a_home_that_is_not_lost_must_say_what_it_has() {
        let group = group(Profile::RS_2_1);
        let mut lists =
            Lists::from([(Slot(0), away()), (Slot(1), list(&[1])), (Slot(2), list(&[2]))]);
        assert!(wanted(&group, Slot(0), true, &lists).is_err());
        lists.insert(Slot(0), list(&[2, 3]));
        let found = wanted(&group, Slot(0), true, &lists).unwrap();
        let at_home: Vec<bool> = found.values().map(|wanted| wanted.is_at_home).collect();
        assert_eq!((names(&found), at_home), (vec![1, 2, 3], vec![false, true, true]));
        assert!(found.values().all(|wanted| wanted.is_settled));
        lists.insert(Slot(1), away());
        let found = wanted(&group, Slot(0), true, &lists).unwrap();
        assert!(found.values().all(|wanted| !wanted.is_settled), "a write may be open there");
    }

    #[test]
    fn what_is_here_is_counted_and_compared() {
        let lists =
            Lists::from([(Slot(0), list(&[1, 2])), (Slot(1), list(&[3])), (Slot(2), list(&[]))]);
        let wanted = wanted(&group(Profile::RS_2_1), Slot(0), true, &lists).unwrap();
        let here = |shards: &[ListedShard]| -> BTreeMap<ExtentId, ListedShard> {
            shards.iter().map(|shard| (shard.extent, *shard)).collect()
        };
        let none_gone = |_| false;
        assert_eq!(count_missing(&wanted, &here(&[]), none_gone), 3);
        let all = here(&[shard(1, 7), shard(2, 7), shard(3, 8)]);
        assert_eq!(count_missing(&wanted, &all, none_gone), 0, "a computed one has no twin");
        let wrong = here(&[shard(1, 7), shard(2, 8), shard(3, 7)]);
        assert_eq!(count_missing(&wanted, &wrong, none_gone), 1, "not what the home has");
        let one_gone = here(&[shard(1, 7), shard(3, 7)]);
        assert_eq!(count_missing(&wanted, &one_gone, |extent| extent.counter == 2), 0);
    }

    #[test]
    fn what_was_let_go_or_has_come_meanwhile_is_no_loss() {
        let extent = |counter| shard(counter, 7).extent;
        let lost = BTreeSet::from([1, 2, 3].map(extent));
        let here = BTreeMap::from([(extent(2), shard(2, 7))]);
        assert_eq!(losses(&lost, &here, |gone| gone == extent(3)), [extent(1)]);
    }
}
