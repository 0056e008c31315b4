//! What the root promises. Every entry is applied on two replicas, one of them loaded anew.

use super::support::Rows;
use crate::{Root, root_export};
use ashlar_types::*;

struct Roots {
    root: Root,
    rows: Rows,
    index: u64,
    nonce: u128,
}

impl Roots {
    fn new() -> Self {
        let (root, writes) = Root::create();
        let mut rows = Rows::default();
        rows.write(&writes);
        Self { root, rows, index: 0, nonce: 0 }
    }

    fn bootstrapped() -> Self {
        let mut roots = Self::new();
        assert_eq!(roots.send(bootstrap()), done());
        roots
    }

    fn send(&mut self, op: RootOp) -> RootOutcome {
        self.nonce += 1;
        self.send_as(self.nonce, op)
    }

    fn send_as(&mut self, nonce: u128, op: RootOp) -> RootOutcome {
        self.apply(vec![RootCommand { nonce, op }]).remove(0)
    }

    fn apply(&mut self, commands: Vec<RootCommand>) -> Vec<RootOutcome> {
        self.index += 1;
        let batch = RootBatch { proposed_ms: 0, commands };
        let mut other = Root::load(&self.rows).unwrap().unwrap();
        assert_eq!(other, self.root, "the rows say what memory says");
        let theirs = other.apply(&self.rows, self.index, &batch).unwrap();
        let ours = self.root.apply(&self.rows, self.index, &batch).unwrap();
        assert_eq!(ours, theirs);
        self.rows.write(&ours.1);
        let mut sum = 0_u128;
        root_export(&self.rows, &mut |key, value| {
            if key != [b'z', 255] {
                sum = sum.wrapping_add(crate::txn::row_hash(key, value));
            }
        })
        .unwrap();
        assert_eq!(sum, self.root.state_hash());
        ours.0
    }
}

fn done() -> RootOutcome {
    RootOutcome::Applied(Applied::Done)
}

fn refused(refusal: RootRefusal) -> RootOutcome {
    RootOutcome::Refused(refusal)
}

fn range(id: u64, start: u64, end: Option<u64>) -> RangeDescriptor {
    let point = |bucket| KeyPoint::new(BucketId(bucket), []);
    let interval = Interval { start: point(start), end: end.map(point) };
    RangeDescriptor { id: RangeId(id), epoch: Epoch(1), interval, voters: vec![NodeId(1)] }
}

fn bootstrap() -> RootOp {
    let node = Node {
        id: NodeId(1),
        name: "one".into(),
        zone: "z".into(),
        address: "a:1".into(),
        roles: vec![Role::Meta],
        incarnation: 0,
    };
    RootOp::Bootstrap {
        cluster: ClusterId(5),
        nodes: vec![node],
        ranges: vec![range(2, 100, None), range(1, 0, Some(100))],
        region: "here".into(),
    }
}

fn disk(id: u128, incarnation: u64) -> Disk {
    Disk {
        id: DiskId(id),
        node: NodeId(1),
        capacity_bytes: 1,
        incarnation,
        state: DiskState::Healthy,
    }
}

fn boot(incarnation: u64, disks: Vec<Disk>) -> RootOp {
    RootOp::Boot { node: NodeId(1), incarnation, address: "b:2".into(), disks }
}

#[test]
fn nothing_happens_before_bootstrap_and_bootstrap_happens_once() {
    let mut root = Roots::new();
    assert_eq!(root.root.query(&RootQuery::Ranges), RootAnswer::NotBootstrapped);
    assert_eq!(root.send(RootOp::AdvanceTime { now_ms: 1 }), refused(RootRefusal::NotBootstrapped));
    let RootOp::Bootstrap { cluster, nodes, region, .. } = bootstrap() else { panic!() };
    let gap = RootOp::Bootstrap { cluster, nodes, ranges: vec![range(1, 1, None)], region };
    assert_eq!(root.send(gap), refused(RootRefusal::NoSuchRange));
    assert_eq!(root.send(bootstrap()), done());
    assert_eq!(root.send(bootstrap()), refused(RootRefusal::Bootstrapped));
    assert_eq!(root.send_as(3, bootstrap()), done(), "a resend is answered as the first time");
}

#[test]
fn a_token_admits_one_node_under_an_id_that_is_never_used_again() {
    let mut root = Roots::bootstrapped();
    let join = |hash: u8, now_ms| RootOp::Join {
        token: [hash; 32],
        now_ms,
        name: "n".into(),
        zone: "z".into(),
        address: "a".into(),
        roles: vec![Role::Data],
    };
    for hash in 1..=3 {
        root.send(RootOp::IssueToken { hash: [hash; 32], expires_ms: 100 });
    }
    let commands = [(100, join(1, 50)), (101, join(2, 50))];
    let joined = root.apply(commands.map(|(nonce, op)| RootCommand { nonce, op }).to_vec());
    let first = root.index * 4096;
    assert_eq!(
        joined,
        [RootOutcome::Joined(NodeId(first)), RootOutcome::Joined(NodeId(first + 1))]
    );
    assert_eq!(root.send(join(1, 50)), refused(RootRefusal::BadToken), "used");
    assert_eq!(root.send(join(3, 101)), refused(RootRefusal::BadToken), "expired");
    assert_eq!(root.root.map().nodes.len(), 3);
}

#[test]
fn incarnations_grow_or_it_is_an_old_image() {
    let mut root = Roots::bootstrapped();
    assert_eq!(root.send(boot(1, vec![disk(1, 1)])), done());
    let stale = RootRefusal::StaleIncarnation { node: NodeId(1), found: 1, known: 1 };
    assert_eq!(root.send(boot(1, vec![])), refused(stale));
    assert_eq!(root.send(boot(2, vec![disk(1, 1)])), refused(RootRefusal::StaleDisk(DiskId(1))));
    root.send(RootOp::SetDiskState { disk: DiskId(1), state: DiskState::Dead });
    assert_eq!(root.send(boot(2, vec![disk(1, 2), disk(2, 1)])), done());
    assert_eq!(root.root.map().disks[&DiskId(1)].state, DiskState::Dead, "a boot revives no disk");
    let open = |incarnation| RootOp::OpenSession { node: NodeId(1), incarnation };
    assert!(matches!(
        root.send(open(1)),
        RootOutcome::Refused(RootRefusal::StaleIncarnation { .. })
    ));
    let RootOutcome::Session(session) = root.send(open(2)) else { panic!() };
    assert_eq!(
        root.root.query(&RootQuery::Sessions),
        RootAnswer::Sessions(vec![(session, NodeId(1))])
    );
    root.send(RootOp::EndSession { session });
    assert_eq!(root.root.query(&RootQuery::Sessions), RootAnswer::Sessions(vec![]));
}

#[test]
fn a_boot_ends_the_sessions_of_earlier_lives_and_the_floor_stays_above_all() {
    let mut root = Roots::bootstrapped();
    root.send(boot(1, vec![]));
    root.send(RootOp::IssueToken { hash: [1; 32], expires_ms: 100 });
    let RootOutcome::Joined(joined) = root.send(RootOp::Join {
        token: [1; 32],
        now_ms: 1,
        name: "two".into(),
        zone: "z".into(),
        address: "a:2".into(),
        roles: vec![Role::Gateway],
    }) else {
        panic!("a token admits once")
    };
    let open = |root: &mut Roots, node: NodeId, incarnation: u64| match root
        .send(RootOp::OpenSession { node, incarnation })
    {
        RootOutcome::Session(session) => session,
        other => panic!("{other:?}"),
    };
    let living = |root: &Roots| match root.root.query(&RootQuery::LivingSessions) {
        RootAnswer::LivingSessions { floor, sessions } => {
            (floor, sessions.into_iter().map(|session| session.id).collect::<Vec<_>>())
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(living(&root), (SessionId(0), vec![]));
    let other = open(&mut root, joined, 0);
    let first = open(&mut root, NodeId(1), 1);
    let last = open(&mut root, NodeId(1), 1);
    root.send(RootOp::EndSession { session: first });
    assert_eq!(living(&root), (SessionId(last.0 + 1), vec![other, last]));
    root.send(boot(2, vec![]));
    assert_eq!(living(&root), (SessionId(last.0 + 1), vec![other]), "the floor never goes back");
    let next = open(&mut root, NodeId(1), 2);
    assert!(next > last);
    assert_eq!(living(&root), (SessionId(next.0 + 1), vec![other, next]));
}

#[test]
fn placement_is_checked_against_the_map_it_changes() {
    let mut root = Roots::bootstrapped();
    root.send(boot(1, (1..=4).map(|id| disk(id, 1)).collect()));
    let group = |homes: &[u128]| PlacementGroup {
        id: PgId(1),
        profile: Profile::RS_2_1,
        epoch: Epoch(1),
        homes: homes.iter().map(|&id| DiskId(id)).collect(),
        moving: None,
        open: true,
    };
    let place = |root: &mut Roots, homes: &[u128], moved: &[u128]| {
        let base = root.root.map().epoch;
        let added = if homes.is_empty() { vec![] } else { vec![group(homes)] };
        let moved = moved.iter().map(|&id| (PgId(1), Slot(0), DiskId(id))).collect();
        root.send(RootOp::Place(PlacementDiff { base, added, moved, ..PlacementDiff::default() }))
    };
    let bad = |outcome: RootOutcome| {
        matches!(outcome, RootOutcome::Refused(RootRefusal::BadPlacement(_)))
    };
    assert!(bad(place(&mut root, &[1, 2], &[])), "too few homes");
    assert!(bad(place(&mut root, &[1, 2, 2], &[])), "two on one disk");
    assert!(bad(place(&mut root, &[1, 2, 9], &[])), "an unknown disk");
    assert_eq!(place(&mut root, &[1, 2, 3], &[]), done());
    let stale = PlacementDiff { base: Epoch(1), ..PlacementDiff::default() };
    assert!(matches!(
        root.send(RootOp::Place(stale)),
        RootOutcome::Refused(RootRefusal::StaleMap { .. })
    ));
    assert_eq!(place(&mut root, &[], &[4]), done());
    assert!(bad(place(&mut root, &[], &[4])), "to begin twice is no switch");
}

/// Disks 1 to 6 in one node; disks 1, 2 and 3 are the homes of group 1.
fn placed() -> Roots {
    let mut root = Roots::bootstrapped();
    root.send(boot(1, (1..=6).map(|id| disk(id, 1)).collect()));
    let group = PlacementGroup {
        id: PgId(1),
        profile: Profile::RS_2_1,
        epoch: Epoch(1),
        homes: [1, 2, 3].map(DiskId).to_vec(),
        moving: None,
        open: true,
    };
    let (base, added) = (root.root.map().epoch, vec![group]);
    root.send(RootOp::Place(PlacementDiff { base, added, ..PlacementDiff::default() }));
    root
}

fn step(epoch: u64, slot: u8, to: u128) -> SlotMove {
    SlotMove { group: PgId(1), epoch: Epoch(epoch), slot: Slot(slot), to: DiskId(to) }
}

fn group_of(root: &Roots) -> PlacementGroup {
    root.root.map().groups[&PgId(1)].clone()
}

fn stale(known: u64) -> RootOutcome {
    refused(RootRefusal::StaleGroup { group: PgId(1), known: Some(Epoch(known)) })
}

fn state(root: &mut Roots, disk: u128, state: DiskState) -> RootOutcome {
    root.send(RootOp::SetDiskState { disk: DiskId(disk), state })
}

#[test]
fn d4_a_slot_begins_to_move_and_switches_by_two_entries() {
    let mut root = placed();
    let before = root.root.map().epoch;
    assert_eq!(
        root.send(RootOp::Switch(step(1, 0, 4))),
        refused(RootRefusal::AlreadyMoving(PgId(1)))
    );
    assert_eq!(root.send(RootOp::BeginMove(step(1, 0, 4))), done());
    let moving = group_of(&root);
    assert_eq!((moving.homes[0], moving.moving), (DiskId(1), Some((Slot(0), DiskId(4)))), "D4");
    assert_eq!(moving.epoch, Epoch(2));
    assert!(root.root.map().epoch > before, "R12");
    assert_eq!(moving.written(Slot(0)), Some(DiskId(4)), "new shards go to the target");
    assert_eq!(moving.places(Slot(0)).collect::<Vec<_>>(), [DiskId(4), DiskId(1)]);

    assert_eq!(root.send(RootOp::BeginMove(step(1, 0, 4))), stale(2), "late, or twice");
    let busy = refused(RootRefusal::AlreadyMoving(PgId(1)));
    assert_eq!(root.send(RootOp::BeginMove(step(2, 1, 5))), busy, "one slot of a group");
    assert_eq!(root.send(RootOp::BeginMove(step(2, 0, 5))), busy, "its target is well");
    assert_eq!(root.send(RootOp::Switch(step(1, 0, 4))), stale(2), "of an earlier move");
    assert_eq!(root.send(RootOp::Switch(step(2, 0, 5))), busy, "another target");
    assert_eq!(root.send(RootOp::Switch(step(2, 1, 4))), busy, "another slot");

    assert_eq!(root.send(RootOp::Switch(step(2, 0, 4))), done());
    let switched = group_of(&root);
    assert_eq!((switched.homes[0], switched.moving), (DiskId(4), None));
    assert_eq!(root.send(RootOp::Switch(step(2, 0, 4))), stale(3));
}

#[test]
fn nothing_moves_to_where_it_cannot_be() {
    let mut root = placed();
    let bad = |outcome: RootOutcome| {
        matches!(outcome, RootOutcome::Refused(RootRefusal::BadPlacement(_)))
    };
    assert!(bad(root.send(RootOp::BeginMove(step(1, 0, 2)))), "a home of the group");
    assert!(bad(root.send(RootOp::BeginMove(step(1, 0, 1)))), "where it is");
    assert!(bad(root.send(RootOp::BeginMove(step(1, 3, 4)))), "no such slot");
    assert!(bad(root.send(RootOp::BeginMove(step(1, 0, 9)))), "no such disk");
    let unknown = SlotMove { group: PgId(7), ..step(1, 0, 4) };
    let none = RootRefusal::StaleGroup { group: PgId(7), known: None };
    assert_eq!(root.send(RootOp::BeginMove(unknown)), refused(none));
    for other in [DiskState::Suspect, DiskState::Draining, DiskState::Dead, DiskState::Removed] {
        state(&mut root, 4, other);
        assert!(bad(root.send(RootOp::BeginMove(step(1, 0, 4)))), "{other:?}");
    }
}

#[test]
fn a_move_whose_target_is_lost_goes_elsewhere_and_never_to_the_lost_one() {
    let mut root = placed();
    assert_eq!(root.send(RootOp::BeginMove(step(1, 0, 4))), done());
    assert_eq!(state(&mut root, 4, DiskState::Dead), done());
    let to_the_lost = root.send(RootOp::Switch(step(2, 0, 4)));
    assert!(matches!(to_the_lost, RootOutcome::Refused(RootRefusal::BadPlacement(_))));
    let other_slot = root.send(RootOp::BeginMove(step(2, 1, 5)));
    assert_eq!(other_slot, refused(RootRefusal::AlreadyMoving(PgId(1))), "this slot first");
    assert_eq!(root.send(RootOp::BeginMove(step(2, 0, 5))), done());
    assert_eq!(root.send(RootOp::Switch(step(3, 0, 5))), done());
    assert_eq!(group_of(&root).homes, [5, 2, 3].map(DiskId));
}

#[test]
fn a_move_whose_target_is_lost_may_be_taken_back() {
    let mut root = placed();
    assert_eq!(root.send(RootOp::BeginMove(step(1, 0, 4))), done());
    let back =
        |root: &mut Roots, epoch, slot, to| root.send(RootOp::BeginMove(step(epoch, slot, to)));
    let bad = |outcome| matches!(outcome, RootOutcome::Refused(RootRefusal::BadPlacement(_)));
    assert!(bad(back(&mut root, 2, 0, 1)), "its target is well");
    assert_eq!(state(&mut root, 4, DiskState::Dead), done());
    assert!(bad(back(&mut root, 2, 0, 2)), "the home of another slot");
    assert!(bad(back(&mut root, 2, 1, 2)), "a slot that does not move");
    assert_eq!(back(&mut root, 2, 0, 1), done());
    let group = group_of(&root);
    assert_eq!((group.homes[0], group.moving, group.epoch), (DiskId(1), None, Epoch(3)), "R12");
    assert_eq!(back(&mut root, 2, 0, 1), stale(3), "twice");
    assert_eq!(state(&mut root, 4, DiskState::Removed), done(), "no group names it");
}

#[test]
fn c6_a_disk_that_was_dead_or_removed_never_comes_back_as_itself() {
    let mut root = placed();
    for (from, to) in [
        (DiskState::Draining, DiskState::Healthy),
        (DiskState::Suspect, DiskState::Draining),
        (DiskState::Healthy, DiskState::Dead),
    ] {
        assert_eq!(state(&mut root, 1, from), done());
        assert_eq!(state(&mut root, 1, to), done());
    }
    for to in [DiskState::Healthy, DiskState::Suspect, DiskState::Draining] {
        let never = RootRefusal::BadDiskState { disk: DiskId(1), from: DiskState::Dead, to };
        assert_eq!(state(&mut root, 1, to), refused(never));
    }
    let in_use = refused(RootRefusal::DiskInUse(DiskId(1)));
    assert_eq!(state(&mut root, 1, DiskState::Removed), in_use, "a group names it");
    assert_eq!(root.send(RootOp::BeginMove(step(1, 0, 4))), done());
    let in_use = refused(RootRefusal::DiskInUse(DiskId(4)));
    assert_eq!(state(&mut root, 4, DiskState::Removed), in_use, "a slot moves there");
    assert_eq!(root.send(RootOp::Switch(step(2, 0, 4))), done());
    assert_eq!(state(&mut root, 1, DiskState::Removed), done());
    let never = RootRefusal::BadDiskState {
        disk: DiskId(1),
        from: DiskState::Removed,
        to: DiskState::Dead,
    };
    assert_eq!(state(&mut root, 1, DiskState::Dead), refused(never));
    assert_eq!(root.send(boot(2, vec![disk(1, 2)])), done());
    assert_eq!(
        root.root.map().disks[&DiskId(1)].state,
        DiskState::Removed,
        "a boot changes nothing"
    );
}

#[test]
fn a_late_judgement_of_a_disk_does_not_undo_what_an_operator_has_said() {
    use DiskState::{Draining, Healthy, Suspect};
    let mut root = placed();
    let judge =
        |root: &mut Roots, from, to| root.send(RootOp::JudgeDisk { disk: DiskId(1), from, to });
    let late = |from, to| refused(RootRefusal::BadDiskState { disk: DiskId(1), from, to });
    assert_eq!(judge(&mut root, Healthy, Suspect), done());
    assert_eq!(state(&mut root, 1, Draining), done());
    let before = root.root.map().clone();
    assert_eq!(judge(&mut root, Suspect, Healthy), late(Draining, Healthy), "it would be refilled");
    assert_eq!(judge(&mut root, Healthy, Suspect), late(Draining, Suspect));
    assert_eq!(*root.root.map(), before, "not even its epoch has changed");
    assert_eq!(state(&mut root, 1, Healthy), done());
    assert_eq!(
        judge(&mut root, Suspect, Healthy),
        late(Healthy, Healthy),
        "nor is it its own doing"
    );
    assert_eq!(state(&mut root, 1, DiskState::Dead), done());
    assert_eq!(judge(&mut root, Healthy, Suspect), late(DiskState::Dead, Suspect), "C6");
    let unknown = RootOp::JudgeDisk { disk: DiskId(9), from: Healthy, to: Suspect };
    assert_eq!(root.send(unknown), refused(RootRefusal::NoSuchDisk(DiskId(9))));
}

#[test]
fn a_suspect_disk_without_slots_is_removed() {
    let mut root = placed();
    assert_eq!(state(&mut root, 4, DiskState::Suspect), done());
    assert_eq!(state(&mut root, 4, DiskState::Removed), done());
    assert_eq!(root.root.map().disks[&DiskId(4)].state, DiskState::Removed);
}

#[test]
fn disks_are_lost_together_and_from_the_map_that_was_judged() {
    let mut root = placed();
    let base = root.root.map().epoch;
    let lose = |base, disks: &[u128]| RootOp::LoseDisks {
        base,
        disks: disks.iter().map(|&id| DiskId(id)).collect(),
    };
    let states = |root: &Roots| {
        let states = root.root.map().disks.values().map(|disk| disk.state);
        states.filter(|state| *state == DiskState::Dead).count()
    };
    assert_eq!(root.send(lose(base, &[1, 9])), refused(RootRefusal::NoSuchDisk(DiskId(9))));
    assert_eq!(states(&root), 0, "all or none");
    assert_eq!(root.send(lose(base, &[1, 2])), done());
    assert_eq!(states(&root), 2);
    let known = root.root.map().epoch;
    assert_eq!(root.send(lose(base, &[3])), refused(RootRefusal::StaleMap { known }));
    assert_eq!(states(&root), 2);
}

#[test]
fn c11_a_bucket_name_has_one_owner_until_its_deletion_is_done() {
    let mut root = Roots::bootstrapped();
    let name = BucketName::parse("photos").unwrap();
    let create = |id| RootOp::CreateBucket {
        name: name.clone(),
        bucket: BucketId(id),
        owner: "me".into(),
        created_ms: 1,
    };
    let bucket = BucketId(1);
    let RootOutcome::Bucket(first) = root.send(create(1)) else { panic!() };
    assert_eq!(root.send(create(2)), refused(RootRefusal::BucketExists(Box::new(first))));
    let begin = || RootOp::DeleteBucketBegin { name: name.clone(), bucket };
    let finish =
        |epoch| RootOp::DeleteBucketDone { name: name.clone(), bucket, epoch: Epoch(epoch) };
    let back =
        |epoch| RootOp::DeleteBucketRollBack { name: name.clone(), bucket, epoch: Epoch(epoch) };
    assert!(matches!(root.send(finish(1)), RootOutcome::Refused(RootRefusal::BucketExists(_))));
    let RootOutcome::Bucket(fenced) = root.send(begin()) else { panic!() };
    assert_eq!((fenced.row.epoch, fenced.is_open()), (Epoch(2), false));
    assert_eq!(root.send(begin()), refused(RootRefusal::BucketBusy));
    assert_eq!(root.send(create(3)), refused(RootRefusal::BucketBusy));
    let RootOutcome::Bucket(open) = root.send(back(2)) else { panic!() };
    assert_eq!((open.row.epoch, open.is_open()), (Epoch(3), true));
    root.send(begin());
    assert_eq!(
        root.send(finish(2)),
        refused(RootRefusal::BucketBusy),
        "a late end of the first deletion"
    );
    assert_eq!(root.send(back(2)), refused(RootRefusal::BucketBusy));
    assert_eq!(root.send(finish(4)), done());
    assert_eq!(root.send(finish(4)), refused(RootRefusal::NoSuchBucket));
    assert!(matches!(root.send(create(4)), RootOutcome::Bucket(_)));
}

#[test]
fn time_never_goes_back() {
    let mut root = Roots::bootstrapped();
    root.send(RootOp::AdvanceTime { now_ms: 9 });
    root.send(RootOp::AdvanceTime { now_ms: 3 });
    assert_eq!(root.root.time_ms(), 9);
}

#[test]
fn remembered_answers_are_bounded() {
    let mut root = Roots::bootstrapped();
    let commands = |from: u128| {
        (from..from + 2500)
            .map(|nonce| RootCommand { nonce, op: RootOp::AdvanceTime { now_ms: 1 } })
    };
    root.apply(commands(10_000).collect());
    root.apply(commands(20_000).collect());
    assert_eq!(root.rows.0.keys().filter(|key| key[..2] == [b'z', 8]).count(), 4096);
    assert_eq!(root.send_as(1, bootstrap()), refused(RootRefusal::Bootstrapped), "long forgotten");
}

#[test]
fn both_sides_of_a_split_take_the_place_of_the_range_once_and_in_order() {
    let mut root = Roots::bootstrapped();
    let RootOutcome::Range(child) = root.send(RootOp::ReserveRange) else { panic!("no id") };
    let RootOutcome::Range(next) = root.send(RootOp::ReserveRange) else { panic!("no id") };
    assert!(child.0 > 2 && next > child, "never used before");
    let at = |key: &str| KeyPoint::new(BucketId(50), key);
    let side = |id, epoch, start: &KeyPoint, end: &KeyPoint| RangeDescriptor {
        id,
        epoch: Epoch(epoch),
        interval: Interval { start: start.clone(), end: Some(end.clone()) },
        voters: vec![NodeId(1)],
    };
    let (least, most) = (KeyPoint::least(), KeyPoint::new(BucketId(100), []));
    let first = SplitDone {
        left: side(RangeId(1), 2, &least, &at("m")),
        right: side(child, 2, &at("m"), &most),
    };
    // of the right side, of which the root has not heard yet
    let second = SplitDone {
        left: side(child, 3, &at("m"), &at("t")),
        right: side(next, 3, &at("t"), &most),
    };
    let unknown = refused(RootRefusal::NoSuchRange);
    assert_eq!(root.send(RootOp::Split(second.clone())), unknown);
    let ends_early = SplitDone { right: side(child, 2, &at("m"), &at("z")), ..first.clone() };
    let has_gap = SplitDone { right: side(child, 2, &at("n"), &most), ..first.clone() };
    let is_taken = SplitDone { right: side(RangeId(2), 2, &at("m"), &most), ..first.clone() };
    for bad in [ends_early, has_gap, is_taken] {
        assert_eq!(root.send(RootOp::Split(bad)), unknown);
    }
    for told in [&first, &second, &first] {
        assert_eq!(root.send(RootOp::Split(told.clone())), done());
    }
    let RootAnswer::Ranges(ranges) = root.root.query(&RootQuery::Ranges) else { panic!() };
    let SplitDone { left, right } = second;
    assert_eq!(ranges, [first.left, left, right, range(2, 100, None)]);
}

/// One founder, and nodes of these roles that join: their ids.
fn with_members(roles: &[Role]) -> (Roots, Vec<NodeId>) {
    let mut root = Roots::bootstrapped();
    let joined = roles.iter().map(|&role| {
        let token = [7; 32];
        root.send(RootOp::IssueToken { hash: token, expires_ms: 9 });
        let (name, zone, address) = ("n".into(), "z".into(), "a:2".into());
        let join = RootOp::Join { token, now_ms: 0, name, zone, address, roles: vec![role] };
        let RootOutcome::Joined(id) = root.send(join) else { panic!("not admitted") };
        id
    });
    let joined = joined.collect();
    (root, joined)
}

fn replicas(root: &Roots) -> Vec<(u64, Vec<NodeId>, Option<ReplicaMove>)> {
    let RootAnswer::Replicas(all) = root.root.query(&RootQuery::Replicas) else { panic!() };
    all.ranges.into_iter().map(|one| (one.range.id.0, one.range.voters, one.moving)).collect()
}

fn begin(step: ReplicaMove, voters: &[NodeId]) -> RootOp {
    RootOp::BeginReplicaMove { voters: voters.to_vec(), step }
}

#[test]
fn the_voters_of_a_range_change_when_its_move_has_ended() {
    let (mut root, joined) = with_members(&[Role::Meta, Role::Meta]);
    let (first, one) = (NodeId(1), joined[0]);
    let step = ReplicaMove { range: RangeId(2), from: vec![first], to: vec![one] };
    for _ in 0..2 {
        assert_eq!(root.send(begin(step.clone(), &[first])), done(), "told twice");
    }
    let moving = Some(step.clone());
    assert_eq!(
        replicas(&root),
        [(0, vec![first], None), (1, vec![first], None), (2, vec![first], moving.clone())]
    );
    let other = ReplicaMove { to: vec![joined[1]], ..step.clone() };
    let stale = |voters: &[NodeId], moving| {
        refused(RootRefusal::StaleReplicaMove {
            range: RangeId(2),
            voters: voters.to_vec(),
            moving,
        })
    };
    assert_eq!(
        root.send(begin(other.clone(), &[first])),
        stale(&[first], moving.clone()),
        "one at a time"
    );
    assert_eq!(root.send(RootOp::EndReplicaMove(other.clone())), stale(&[first], moving));
    for _ in 0..2 {
        assert_eq!(root.send(RootOp::EndReplicaMove(step.clone())), done(), "told twice");
    }
    assert_eq!(
        replicas(&root),
        [(0, vec![first], None), (1, vec![first], None), (2, vec![one], None)]
    );
    assert_eq!(root.send(begin(other, &[first])), stale(&[one], None), "decided from before");
    assert_eq!(root.send(RootOp::CancelReplicaMove(step)), stale(&[one], None), "too late");
}

#[test]
fn a_move_that_is_given_up_leaves_the_voters() {
    let (mut root, joined) = with_members(&[Role::Meta]);
    let step = ReplicaMove { range: RangeId::ROOT, from: vec![], to: vec![joined[0]] };
    assert_eq!(root.send(begin(step.clone(), &[NodeId(1)])), done());
    assert_eq!(root.send(RootOp::CancelReplicaMove(step.clone())), done());
    assert!(replicas(&root).iter().all(|one| one.1 == [NodeId(1)] && one.2.is_none()));
    let late = root.send(RootOp::EndReplicaMove(step.clone()));
    assert!(matches!(late, RootOutcome::Refused(RootRefusal::StaleReplicaMove { .. })));
    assert_eq!(root.send(begin(step.clone(), &[NodeId(1)])), done());
    assert_eq!(root.send(RootOp::EndReplicaMove(step)), done());
    let voters: Vec<usize> = replicas(&root).iter().map(|one| one.1.len()).collect();
    assert_eq!(voters, [2, 1, 1], "those of the root are its own from the first move on");
}

#[test]
fn a_range_gets_no_replicas_that_it_cannot_have() {
    let (mut root, joined) = with_members(&[Role::Meta, Role::Gateway]);
    let (first, range) = (NodeId(1), RangeId(1));
    let mut why = |from: &[NodeId], to: &[NodeId]| {
        let step = ReplicaMove { range, from: from.to_vec(), to: to.to_vec() };
        match root.send(begin(step, &[first])) {
            RootOutcome::Refused(refusal) => refusal.to_string(),
            other => format!("{other:?}"),
        }
    };
    assert!(why(&[], &[]).contains("nothing was to move"));
    assert!(why(&[first], &[]).contains("none would be left"));
    assert!(why(&[], &[joined[0], joined[0]]).contains("named twice"));
    assert!(why(&[joined[0]], &[]).contains("holds none of it"));
    assert!(why(&[], &[first]).contains("holds it already"));
    assert!(why(&[], &[joined[1]]).contains("has not the role meta"));
    assert!(why(&[], &[NodeId(77)]).contains("not a member"));
    let unknown = ReplicaMove { range: RangeId(9), from: vec![], to: vec![joined[0]] };
    assert_eq!(root.send(begin(unknown, &[first])), refused(RootRefusal::NoSuchRange));
}

#[test]
fn both_sides_of_a_split_have_the_voters_of_the_directory_and_the_move_that_has_begun() {
    let (mut root, joined) = with_members(&[Role::Meta, Role::Meta]);
    let (first, one, two) = (NodeId(1), joined[0], joined[1]);
    let RootOutcome::Range(child) = root.send(RootOp::ReserveRange) else { panic!("no id") };
    let step = |to| ReplicaMove { range: RangeId(2), from: vec![], to: vec![to] };
    root.send(begin(step(one), &[first]));
    root.send(RootOp::EndReplicaMove(step(one)));
    root.send(begin(step(two), &[first, one]));
    let whole = range(2, 100, None);
    let at = KeyPoint::new(BucketId(150), []);
    let (start, end) = (whole.interval.start.clone(), Some(at.clone()));
    let (left, right) = (Interval { start, end }, Interval { start: at, end: None });
    let side = |id, interval| RangeDescriptor { id, epoch: Epoch(2), interval, ..whole.clone() };
    let told = SplitDone { left: side(RangeId(2), left), right: side(child, right) };
    assert_eq!(root.send(RootOp::Split(told)), done());
    let sides = [(2, RangeId(2)), (child.0, child)].map(|(id, range)| {
        let moving = Some(ReplicaMove { range, ..step(two) });
        (id, vec![first, one], moving)
    });
    assert_eq!(replicas(&root)[2..], sides);
}

#[test]
fn a_node_is_struck_off_when_nothing_of_it_would_be_missed() {
    let (mut root, joined) = with_members(&[Role::Meta]);
    let (first, new) = (NodeId(1), joined[0]);
    let step = ReplicaMove { range: RangeId(1), from: vec![], to: vec![new] };
    root.send(begin(step.clone(), &[first]));
    let in_use = |what: &str| refused(RootRefusal::NodeInUse { node: new, what: what.into() });
    let comes = in_use("a replica of range-1");
    assert_eq!(root.send(RootOp::RemoveNode(new)), comes, "one that is on its way counts");
    root.send(RootOp::CancelReplicaMove(step.clone()));
    let own = Disk { node: new, ..disk(9, 1) };
    let (address, disks) = ("a:2".to_owned(), vec![own.clone()]);
    root.send(RootOp::Boot { node: new, incarnation: 1, address: address.clone(), disks });
    assert_eq!(root.send(RootOp::RemoveNode(new)), in_use(&format!("the disk {}", own.id)));
    root.send(RootOp::SetDiskState { disk: own.id, state: DiskState::Removed });
    let drain = |drain| RootOp::DrainReplicas { node: new, drain };
    assert_eq!(root.send(drain(true)), done());
    let late = root.send(begin(step, &[first]));
    assert!(matches!(late, RootOutcome::Refused(RootRefusal::BadReplicas { .. })), "{late:?}");
    assert_eq!(root.send(RootOp::RemoveNode(new)), done());
    let unknown = refused(RootRefusal::NoSuchNode(new));
    let back = RootOp::Boot { node: new, incarnation: 2, address, disks: Vec::new() };
    for gone in [RootOp::RemoveNode(new), drain(true), back] {
        assert_eq!(root.send(gone), unknown);
    }
}
