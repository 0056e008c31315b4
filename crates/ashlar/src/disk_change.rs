//! Taking disks out of use, and back: what an operator asks for, what it would mean, and whether it may be.
//!
//! A disk that drains is read and written as before, while its slots leave it one after the other; so draining itself
//! endangers nothing. It is refused where it could not end well: slots without a place to go to, groups that would not
//! survive any more what they survive now, disks without room. Two operators who drain at once may both find no fault, so
//! it is judged once more when it has begun, and taken back if it was refused then (`carry_out`).

mod carry_out;

pub(crate) use carry_out::{OfNode, change_disks};

use crate::audit::AuditReport;
use crate::moves::{broken_group, is_remains};
use ashlar_client::ROOM_FOR_MOVES_PER_MILLE;
use ashlar_placement::{DrainForecast, Survival, drain_forecast};
use ashlar_types::{
    ClusterMap, DecodeError, Disk, DiskId, DiskState, PlacementGroup, Versioned, decode,
};
use ashlar_wire::proto::{DiskStatus, PingReply};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What is to be done with disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskStep {
    /// Empty them.
    Drain,
    /// Use them again: those that drain.
    Undrain,
    /// Strike them off for good: those that no group names.
    Remove,
    /// Declare them dead: those that are away and will not come back.
    Lose,
}

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeDisks {
    /// The disks.
    pub disks: Vec<DiskId>,
    /// What is to be done with them.
    pub step: DiskStep,
    /// Only says what it would mean.
    pub dry_run: bool,
}

/// What it came to, or would (C7): done to all, surely not done to some, or nobody knows of some.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DisksChange {
    /// Why not; empty: it may be.
    pub refusals: Vec<String>,
    /// What to know.
    pub remarks: Vec<String>,
    /// Slots that leave the disks.
    pub slots: u64,
    /// What the shards in them take; what a node that does not answer has is not in it.
    pub bytes: u64,
    /// How long that takes at least, at the limits that the disks have for what moves; 0: they have none.
    pub seconds: u64,
    /// Whether it has been done, to all of the disks.
    pub done: bool,
    /// Where it has not been done to all: the ids of those to which it has been.
    pub changed: Vec<String>,
    /// The ids of those of which nobody knows whether it has been done to them: the same is to be asked again.
    pub unknown: Vec<String>,
}

impl Versioned for ChangeDisks {
    const NAME: &'static str = "change disks";
    const VERSION: u8 = 1;
}

impl Versioned for DisksChange {
    const NAME: &'static str = "disks change";
    const VERSION: u8 = 2;

    fn decode_old(version: u8, body: &[u8]) -> Option<Result<Self, DecodeError>> {
        // format 1 ends before the two lists: what nobody knew was a refusal then, or an error
        (version == 1).then(|| decode(&[&[Self::VERSION], body, &NO_IDS, &NO_IDS].concat()))
    }
}

/// A list without entries, as it is encoded.
const NO_IDS: [u8; 1] = [0];

/// What the nodes have said.
#[derive(Debug, Default)]
struct Said {
    /// Of their disks: those that answer.
    answers: Vec<PingReply>,
    /// What the last audit has found, where it matters.
    report: Option<AuditReport>,
}

/// Judges by the map, and by what the nodes with disks say.
fn judge(map: &ClusterMap, said: &Said, change: &ChangeDisks) -> DisksChange {
    let disks: BTreeSet<DiskId> = change.disks.iter().copied().collect();
    let mut judged = DisksChange::default();
    for &disk in &disks {
        let state = map.disks.get(&disk).map(|disk| disk.state);
        judged.refusals.extend(refusal(map, disk, state, change.step));
    }
    let statuses = Statuses::of(&said.answers);
    match change.step {
        DiskStep::Drain if judged.refusals.is_empty() => {
            forecast(map, &statuses, &disks, &mut judged);
        }
        DiskStep::Lose => judged.refusals.extend(needed(map, said, &statuses, &disks)),
        DiskStep::Drain | DiskStep::Undrain | DiskStep::Remove => {}
    }
    if change.step == DiskStep::Drain && !judged.refusals.is_empty() {
        judged.remarks.extend(
            disks.iter().filter(|disk| drains(map, **disk)).map(|disk| {
                format!("disk {disk} drains already, and goes on (ashlar disk undrain)")
            }),
        );
    }
    judged
}

fn drains(map: &ClusterMap, disk: DiskId) -> bool {
    map.disks.get(&disk).is_some_and(|disk| disk.state == DiskState::Draining)
}

/// Why disks should rather be brought back than declared dead.
fn needed(
    map: &ClusterMap,
    said: &Said,
    statuses: &Statuses,
    disks: &BTreeSet<DiskId>,
) -> Vec<String> {
    let is_served = |disk: &&DiskId| statuses.0.get(disk).is_some_and(|status| !status.out);
    let served = disks.iter().filter(is_served);
    let mut needed: Vec<String> =
        served.map(|disk| format!("the node of disk {disk} has it: drain it instead")).collect();
    let left = |group: &PlacementGroup| said.report.as_ref()?.left_in(group);
    if let Some(group) = broken_group(map, disks, &left) {
        needed.push(match (is_remains(group), left(group)) {
            (false, _) => "without them some groups could not be read any more, and a dead disk does not come back: bring one of them back first".to_owned(),
            (true, None) => format!(
                "{} takes nothing new and has no parity, and no audit has counted what is left in it: let one count (ashlar cluster audit), then say it again",
                group.id
            ),
            (true, Some(extents)) => format!(
                "{extents} extents are in {} alone, which has no parity: bring the disk back and wait until they are written again elsewhere (ashlar_recode_waiting_extents), or delete their objects; let an audit count (ashlar cluster audit), then say it again",
                group.id
            ),
        });
    }
    needed
}

/// What speaks against it for one disk alone.
fn refusal(
    map: &ClusterMap,
    disk: DiskId,
    state: Option<DiskState>,
    step: DiskStep,
) -> Option<String> {
    use DiskState::{Dead, Draining, Healthy, Removed, Suspect};
    let slots = slots_on(map, disk);
    match (step, state) {
        (_, None) => Some(format!("there is no disk {disk}")),
        (DiskStep::Drain, Some(Healthy | Suspect | Draining)) => None,
        (DiskStep::Drain, Some(Dead)) => Some(format!(
            "disk {disk} is dead: what it held is rebuilt elsewhere by itself ({slots} slots are left)"
        )),
        (DiskStep::Undrain, Some(Draining | Healthy)) => None,
        (DiskStep::Undrain, Some(Suspect | Dead)) => {
            Some(format!("disk {disk} does not drain: it has failed"))
        }
        (DiskStep::Drain | DiskStep::Undrain | DiskStep::Lose, Some(Removed)) => {
            Some(format!("disk {disk} has been removed"))
        }
        (DiskStep::Remove, Some(Dead)) if slots > 0 => Some(format!(
            "disk {disk} is dead and {slots} slots that it had are not rebuilt yet: wait for them (ashlar disk ls)"
        )),
        (DiskStep::Remove, Some(_)) if slots > 0 => {
            Some(format!("disk {disk} still has {slots} slots: drain it first"))
        }
        (DiskStep::Remove, Some(Healthy)) => {
            Some(format!("disk {disk} is in use, it may get slots at any moment: drain it first"))
        }
        (DiskStep::Remove, Some(Suspect | Draining | Dead | Removed))
        | (DiskStep::Lose, Some(Healthy | Suspect | Draining | Dead)) => None,
    }
}

/// Groups' slots whose home it is, or that move there.
pub fn slots_on(map: &ClusterMap, disk: DiskId) -> usize {
    let named = |group: &PlacementGroup| {
        let arriving = group.moving.filter(|(_, to)| *to == disk).map(|_| disk);
        group.homes.iter().copied().chain(arriving).filter(|home| *home == disk).count()
    };
    map.groups.values().map(named).sum()
}

/// What the nodes say of their disks.
struct Statuses(BTreeMap<DiskId, DiskStatus>);

impl Statuses {
    fn of(answers: &[PingReply]) -> Self {
        let all = answers.iter().flat_map(|answer| &answer.disks);
        let by_id = all.filter_map(|status| {
            let id: [u8; 16] = status.disk[..].try_into().ok()?;
            Some((DiskId(u128::from_be_bytes(id)), status.clone()))
        });
        Self(by_id.collect())
    }

    /// Whether slots may move to a disk.
    fn takes(&self, disk: DiskId) -> bool {
        self.0.get(&disk).is_some_and(|status| status.writable && room(status) > 0)
    }

    /// How long a disk takes for so many bytes at the limit that it has for moves.
    fn seconds(&self, disk: DiskId, bytes: u64) -> u64 {
        let rate = self.0.get(&disk).map_or(0, |status| status.move_bytes_per_second);
        if rate == 0 { 0 } else { bytes.div_ceil(rate) }
    }

    fn shard_bytes(&self, disk: DiskId) -> u64 {
        self.0.get(&disk).map_or(0, |status| status.shard_bytes)
    }
}

fn forecast(
    map: &ClusterMap,
    statuses: &Statuses,
    disks: &BTreeSet<DiskId>,
    judged: &mut DisksChange,
) {
    // what is being emptied already counts with it
    let draining = map.disks.values().filter(|disk| disk.state == DiskState::Draining);
    let together: BTreeSet<DiskId> =
        draining.map(|disk| disk.id).chain(disks.iter().copied()).collect();
    let takes = |disk| statuses.takes(disk);
    let found = drain_forecast(map, &together, &takes);
    judged.slots = disks.iter().map(|&disk| slots_on(map, disk) as u64).sum();
    judged.bytes = disks.iter().map(|&disk| statuses.shard_bytes(disk)).sum();
    judged.refusals.extend(dangers(&found));
    let taken = taken(statuses, &together, &found);
    judged.refusals.extend(narrow(map, statuses, &taken));
    judged.seconds =
        taken.iter().map(|(to, bytes)| statuses.seconds(*to, *bytes)).max().unwrap_or(0);
    let is_used = |disk: &&Disk| disk.state == DiskState::Healthy && !together.contains(&disk.id);
    for disk in map.disks.values().filter(is_used).filter(|disk| !takes(disk.id)) {
        judged.remarks.push(format!(
            "disk {} of {} gets nothing: it does not answer, takes no writes or is nearly full",
            disk.id, disk.node
        ));
    }
    judged.remarks.extend(margins("node", &found.nodes));
    judged.remarks.extend(margins("zone", &found.zones));
    for disk in disks.iter().filter(|disk| !statuses.0.contains_key(disk)) {
        judged.remarks.push(format!(
            "the node of disk {disk} does not answer: its bytes are not counted, and its slots wait for it"
        ));
    }
}

fn dangers(found: &DrainForecast) -> Vec<String> {
    let mut dangers = Vec::new();
    if !found.stuck.is_empty() {
        dangers.push(format!(
            "{} slots would have no disk to go to that has none of their group: add disks first",
            found.stuck.len()
        ));
    }
    for (risks, domain) in [(found.node_risks, "node"), (found.zone_risks, "zone")] {
        if risks > 0 {
            dangers.push(format!(
                "{risks} groups survive the loss of any {domain} now, and would not afterwards: add disks first"
            ));
        }
    }
    dangers
}

/// What a disk may take before it is nearly full: then nothing moves to it ([`Client::takes_moves`]).
fn room(status: &DiskStatus) -> u64 {
    let kept = status.capacity_bytes / 1000 * u64::from(ROOM_FOR_MOVES_PER_MILLE);
    status.free_bytes.saturating_sub(kept)
}

/// The bytes that each disk would get, by the average of the slots that leave.
fn taken(
    statuses: &Statuses,
    leaving: &BTreeSet<DiskId>,
    found: &DrainForecast,
) -> BTreeMap<DiskId, u64> {
    let bytes: u64 = leaving.iter().map(|&disk| statuses.shard_bytes(disk)).sum();
    let a_slot = bytes / found.leaving.len().max(1) as u64;
    let mut taken: BTreeMap<DiskId, u64> = BTreeMap::new();
    for (_, _, to) in &found.leaving {
        *taken.entry(*to).or_default() += a_slot;
    }
    taken
}

/// Disks that would have to take more than they have room for.
fn narrow(map: &ClusterMap, statuses: &Statuses, taken: &BTreeMap<DiskId, u64>) -> Vec<String> {
    let is_narrow = |(&to, &needed): (&DiskId, &u64)| {
        let node = map.disks.get(&to)?.node;
        let free = room(statuses.0.get(&to)?);
        (needed > free).then(|| {
            format!(
                "disk {to} of {node} would get {needed} bytes and has room for {free}: add disks first"
            )
        })
    };
    taken.iter().filter_map(is_narrow).collect()
}

/// Which margins change, in one sentence.
fn margins(domain: &str, [before, after]: &[Survival; 2]) -> Option<String> {
    let said = |survival: &Survival| {
        let parts = survival
            .iter()
            .rev()
            .map(|(lost, groups)| format!("{groups} groups survive {lost} {domain}s"));
        parts.collect::<Vec<_>>().join(", ")
    };
    (before != after).then(|| format!("now {}; afterwards {}", said(before), said(after)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{set, two_disk_nodes};
    use ashlar_placement::{Settings, extend};
    use ashlar_types::{Epoch, PgId, Profile};

    /// Nodes of two disks each, and groups over them.
    pub(super) fn cluster(zones: &[&str]) -> ClusterMap {
        let mut map = two_disk_nodes(zones);
        let diff = extend(&map, &Settings::default()).expect("there are disks");
        map.wide = diff.wide;
        map.groups = diff.added.into_iter().map(|group| (group.id, group)).collect();
        map
    }

    fn asked(
        map: &ClusterMap,
        answers: &[PingReply],
        disks: &[u128],
        step: DiskStep,
    ) -> Vec<String> {
        let disks = disks.iter().map(|&id| DiskId(id)).collect();
        let said = Said { answers: answers.to_vec(), report: None };
        judge(map, &said, &ChangeDisks { disks, step, dry_run: true }).refusals
    }

    /// What nodes say whose disks hold so much and have so much room.
    pub(super) fn answers(map: &ClusterMap, shard_bytes: u64, free_bytes: u64) -> Vec<PingReply> {
        let status = |disk: &Disk| DiskStatus {
            disk: disk.id.0.to_be_bytes().to_vec().into(),
            writable: true,
            shard_bytes,
            free_bytes,
            capacity_bytes: 1 << 40,
            ..DiskStatus::default()
        };
        vec![PingReply { disks: map.disks.values().map(status).collect(), ..PingReply::default() }]
    }

    #[test]
    fn changes_of_format_1_stay_readable() {
        let bytes = [1, 1, 1, b'r', 1, 1, b'm', 2, 3, 4, 1];
        let change = DisksChange {
            refusals: vec!["r".to_owned()],
            remarks: vec!["m".to_owned()],
            slots: 2,
            bytes: 3,
            seconds: 4,
            done: true,
            ..DisksChange::default()
        };
        assert_eq!(decode::<DisksChange>(&bytes), Ok(change));
    }

    #[test]
    fn a_disk_or_a_node_of_six_may_be_drained() {
        let map = cluster(&["a", "a", "b", "b", "c", "c"]);
        let all_well = answers(&map, 0, 1 << 40);
        for disks in [vec![10], vec![10, 11]] {
            assert_eq!(asked(&map, &all_well, &disks, DiskStep::Drain), Vec::<String>::new());
        }
    }

    #[test]
    fn what_would_break_a_promise_is_refused() {
        let map = cluster(&["a", "a", "b", "b", "c", "c"]);
        let zone = asked(&map, &answers(&map, 0, 1 << 40), &[10, 11, 20, 21], DiskStep::Drain);
        assert!(zone.iter().any(|why| why.contains("any zone")), "{zone:?}");
        let small = cluster(&["a", "b", "c"]);
        let all_well = answers(&small, 0, 1 << 40);
        let node = asked(&small, &all_well, &[10, 11], DiskStep::Drain);
        assert!(node.iter().any(|why| why.contains("any node")), "{node:?}");
        let most = asked(&small, &all_well, &[10, 11, 20, 21], DiskStep::Drain);
        assert!(most.iter().any(|why| why.contains("no disk to go to")), "{most:?}");
    }

    #[test]
    fn disks_that_drain_already_count() {
        let mut map = cluster(&["a", "a", "b", "b", "c", "c"]);
        for disk in [10, 11] {
            set(&mut map, disk, DiskState::Draining);
        }
        let rest = asked(&map, &answers(&map, 0, 1 << 40), &[20, 21], DiskStep::Drain);
        assert!(rest.iter().any(|why| why.contains("any zone")), "{rest:?}");
    }

    #[test]
    fn there_must_be_room() {
        let map = cluster(&["a", "a", "b", "b", "c", "c"]);
        let wide = answers(&map, 1 << 30, 1 << 39);
        assert_eq!(asked(&map, &wide, &[10], DiskStep::Drain), Vec::<String>::new());
        let narrow = asked(&map, &answers(&map, 1 << 39, 1 << 36), &[10], DiskStep::Drain);
        assert!(narrow.iter().all(|why| why.contains("and has room for")), "{narrow:?}");
        assert!(!narrow.is_empty());
    }

    #[test]
    fn what_is_away_or_full_gets_nothing_and_is_said() {
        let map = cluster(&["a", "a", "b", "b", "c", "c"]);
        let mut some = answers(&map, 1 << 30, 1 << 40);
        some[0].disks.pop();
        let last = some[0].disks.last_mut().expect("there are disks");
        last.free_bytes = last.capacity_bytes / 100;
        for status in &mut some[0].disks {
            status.move_bytes_per_second = 1 << 20;
        }
        let change = ChangeDisks { disks: vec![DiskId(10)], step: DiskStep::Drain, dry_run: true };
        let judged = judge(&map, &Said { answers: some, report: None }, &change);
        // 1 GiB over the nine disks that take slots, of which one gets more than the others
        assert!((1024 / 9..1024).contains(&judged.seconds), "{}", judged.seconds);
        assert_eq!(judged.refusals, Vec::<String>::new(), "the others have room");
        let said = judged.remarks.iter().filter(|remark| remark.contains("gets nothing")).count();
        assert_eq!(said, 2, "{:?}", judged.remarks);
    }

    #[test]
    fn only_what_is_away_and_not_needed_is_declared_dead() {
        let map = cluster(&["a", "a", "b", "b", "c", "c"]);
        let mut some = answers(&map, 0, 1 << 40);
        let served = asked(&map, &some, &[10, 30], DiskStep::Lose);
        assert_eq!(served.len(), 2);
        assert!(served.iter().all(|why| why.contains("drain it instead")), "{served:?}");
        let is_away = |status: &DiskStatus| {
            [10_u128, 30].map(|id| id.to_be_bytes().to_vec()).contains(&status.disk.to_vec())
        };
        some[0].disks.retain(|status| !is_away(status));
        assert_eq!(
            asked(&map, &some, &[10, 30], DiskStep::Lose),
            Vec::<String>::new(),
            "two zones"
        );
        let most = asked(&map, &[], &[10, 11, 20, 21, 30, 31], DiskStep::Lose);
        assert!(most.len() == 1 && most[0].contains("bring one of them back"), "{most:?}");
    }

    #[test]
    fn d2_what_is_left_in_a_group_without_parity_is_not_declared_dead() {
        let mut map = cluster(&["a", "a", "b", "b", "c", "c"]);
        let (id, epoch, profile) = (PgId(9999), Epoch(1), Profile::RS_1_0);
        let homes = vec![DiskId(10)];
        let remains = PlacementGroup { id, profile, epoch, homes, moving: None, open: false };
        map.groups.insert(id, remains);
        let disks = vec![DiskId(10)];
        let change = ChangeDisks { disks, step: DiskStep::Lose, dry_run: true };
        let refusals = |report| judge(&map, &Said { answers: vec![], report }, &change).refusals;
        let counted = |closed: &[(PgId, u64)]| {
            Some(AuditReport { closed: closed.iter().copied().collect(), ..AuditReport::default() })
        };
        for unknown in [None, counted(&[])] {
            let why = refusals(unknown);
            assert!(why.len() == 1 && why[0].contains("no audit has counted"), "{why:?}");
        }
        let why = refusals(counted(&[(id, 3)]));
        assert!(why.len() == 1 && why[0].starts_with("3 extents are in"), "{why:?}");
        assert_eq!(refusals(counted(&[(id, 0)])), Vec::<String>::new());
    }

    #[test]
    fn only_an_empty_disk_is_removed() {
        let mut map = cluster(&["a", "a", "b", "b", "c", "c"]);
        assert!(asked(&map, &[], &[10], DiskStep::Remove)[0].contains("drain it first"));
        map.groups.clear();
        assert!(asked(&map, &[], &[10], DiskStep::Remove)[0].contains("in use"));
        set(&mut map, 10, DiskState::Draining);
        assert_eq!(asked(&map, &[], &[10], DiskStep::Remove), Vec::<String>::new());
        assert_eq!(asked(&map, &[], &[99], DiskStep::Remove).len(), 1, "there is none");
    }
}
