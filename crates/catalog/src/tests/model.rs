//! Random commands against a tiny model. Checked behind every entry, beside what `Replicas` checks: usage is the sum
//! (D7); every extent that an applied command named is in exactly one record or part, or in the gc queue (D2, D3); no
//! content row without its record; lists are those of the model (C4).

use super::support::*;
use crate::key::{self, family};
use crate::row::{ExtentRow, ExtentsRow, ObjectContent, ObjectRow, PartRow, UploadStateRow};
use ashlar_types::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const KEYS: [&str; 8] = ["a", "a/b", "a/b/c", "a/c", "b", "b/", "c\0d", "\u{e9}/x"];

#[derive(Debug, Clone)]
enum Act {
    Put { key: usize, extents: u64, condition: u8 },
    Delete { key: usize, condition: u8 },
    Create { key: usize },
    Part { key: usize, number: u16, extents: u64 },
    Complete { key: usize, condition: u8 },
    Abort { key: usize },
    Resend { back: usize },
    Abandon { key: usize, extents: u64 },
    Collect,
    Repair { at: usize, all: bool },
    Lose { at: usize, slot: u8 },
    Recode { at: usize, missing: bool },
    Split { key: usize },
    Step { range: usize },
}

/// Whatever happens to a range, and splits.
fn act_or_split() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => act(),
        1 => (0..KEYS.len()).prop_map(|key| Act::Split { key }),
        3 => (0..6_usize).prop_map(|range| Act::Step { range }),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let key = 0..KEYS.len();
    let extents = prop_oneof![6 => 0_u64..4, 1 => Just(70)];
    let few = 0..2_usize;
    prop_oneof![
        4 => (key.clone(), extents.clone(), 0..4_u8)
            .prop_map(|(key, extents, condition)| Act::Put { key, extents, condition }),
        2 => (key.clone(), 0..4_u8).prop_map(|(key, condition)| Act::Delete { key, condition }),
        2 => few.clone().prop_map(|key| Act::Create { key }),
        4 => (few.clone(), 1..4_u16, extents.clone())
            .prop_map(|(key, number, extents)| Act::Part { key, number, extents }),
        2 => (few.clone(), 0..4_u8).prop_map(|(key, condition)| Act::Complete { key, condition }),
        1 => few.prop_map(|key| Act::Abort { key }),
        2 => (0..6_usize).prop_map(|back| Act::Resend { back }),
        1 => (key, extents).prop_map(|(key, extents)| Act::Abandon { key, extents }),
        1 => Just(Act::Collect),
        2 => (0..4_usize, any::<bool>()).prop_map(|(at, all)| Act::Repair { at, all }),
        2 => (0..8_usize, 0..6_u8).prop_map(|(at, slot)| Act::Lose { at, slot }),
        2 => (0..8_usize, any::<bool>()).prop_map(|(at, missing)| Act::Recode { at, missing }),
    ]
}

/// Number -> length and content.
type Parts = BTreeMap<u16, (u64, u128)>;
/// What an operation does to the model, and whether it is applied at all.
type Change = Box<dyn FnOnce(&mut Model) -> bool>;

#[derive(Default)]
struct Model {
    objects: BTreeMap<&'static str, (Etag, u64)>,
    /// By key: the upload that is open, and its parts.
    uploads: BTreeMap<&'static str, (u128, Parts)>,
    named: BTreeSet<ExtentId>,
    collected: BTreeSet<ExtentId>,
    fresh: u64,
    sent: Vec<(Caller, RangeOp, Outcome)>,
}

impl Model {
    fn fresh(&mut self) -> u64 {
        self.fresh += 1;
        self.fresh
    }

    fn content(&mut self, count: u64) -> Content {
        let mut content =
            Content { tail: bytes::Bytes::from_static(b"tail"), ..Content::default() };
        for _ in 0..count {
            let counter = self.fresh();
            let missing: &[u8] = match counter % 6 {
                0 => &[1],
                3 => &[0, 4],
                _ => &[],
            };
            content.extents.push(extent(counter, counter % 5 + 1, missing));
        }
        self.named.extend(content.extents.iter().map(|extent| extent.id));
        content
    }

    fn condition(&self, key: &str, choice: u8) -> WriteCondition {
        let current = self.objects.get(key).map_or_else(|| etag(0), |(etag, _)| *etag);
        [
            WriteCondition::Always,
            WriteCondition::Absent,
            WriteCondition::Present,
            WriteCondition::Matches(vec![current]),
        ][usize::from(choice)]
        .clone()
    }

    fn passes(&self, key: &str, choice: u8) -> bool {
        let present = self.objects.contains_key(key);
        choice == 0 || (choice == 1) != present
    }
}

fn wide_etag(number: u64) -> Etag {
    Etag { md5: u128::from(number).to_be_bytes(), parts: 0 }
}

fn run(range: &mut Replicas, model: &mut Model, act: &Act) {
    let key = |index: usize| KEYS[index];
    let (op, change): (RangeOp, Change) = match *act {
        Act::Put { key: index, extents, condition } => {
            let key = key(index);
            let mut op = put(key, 0, model.content(extents));
            let number = model.fresh();
            op.object = ObjectId(u128::from(number));
            op.etag = wide_etag(number);
            op.condition = model.condition(key, condition);
            let size = op.content.length();
            let change = move |model: &mut Model| {
                let passes = model.passes(key, condition);
                if passes {
                    model.objects.insert(key, (wide_etag(number), size));
                }
                passes
            };
            (RangeOp::Put(Box::new(op)), Box::new(change))
        }
        Act::Delete { key: index, condition } => {
            let key = key(index);
            let op = delete(key, model.condition(key, condition));
            let change = move |model: &mut Model| {
                let passes = model.passes(key, condition);
                if passes {
                    model.objects.remove(key);
                }
                passes
            };
            (op, Box::new(change))
        }
        Act::Create { key: index } => {
            let key = key(index);
            if model.uploads.contains_key(key) {
                return;
            }
            let upload = u128::from(model.fresh());
            let change = move |model: &mut Model| {
                model.uploads.insert(key, (upload, BTreeMap::new()));
                true
            };
            (create_upload(key, upload), Box::new(change))
        }
        Act::Part { key: index, number, extents } => {
            let key = key(index);
            let upload = model.uploads.get(key).map_or(0, |(upload, _)| *upload);
            let content = model.content(extents);
            let size = content.length();
            let object = u128::from(model.fresh());
            let change = move |model: &mut Model| match model.uploads.get_mut(key) {
                Some((_, parts)) => {
                    parts.insert(number, (size, object));
                    true
                }
                None => false,
            };
            (put_part(key, upload, number, object, content), Box::new(change))
        }
        Act::Complete { key: index, condition } => {
            let key = key(index);
            let Some((upload, parts)) = model.uploads.get(key).cloned() else { return };
            // All but the last of several: the one left out must become garbage.
            let count = if parts.len() > 1 { parts.len() - 1 } else { parts.len() };
            let chosen: Vec<_> = parts
                .iter()
                .take(count)
                .map(|(&number, &(size, object))| (number, size, object))
                .collect();
            let object = model.fresh();
            let mut op = complete(key, upload, u128::from(object), &chosen);
            op.etag = wide_etag(object);
            op.condition = model.condition(key, condition);
            let size = chosen.iter().map(|(_, size, _)| size).sum();
            let change = move |model: &mut Model| {
                let passes = model.passes(key, condition) && !chosen.is_empty();
                if passes {
                    model.uploads.remove(key);
                    model.objects.insert(key, (wide_etag(object), size));
                }
                passes
            };
            (RangeOp::CompleteUpload(Box::new(op)), Box::new(change))
        }
        Act::Abort { key: index } => {
            let key = key(index);
            let upload = model.uploads.get(key).map_or(0, |(upload, _)| *upload);
            let change = move |model: &mut Model| model.uploads.remove(key).is_some();
            (abort(key, upload), Box::new(change))
        }
        Act::Abandon { key: index, extents } => {
            let caller = range.caller();
            let content = model.content(extents);
            let op = RangeOp::Abandon(Abandon {
                at: at(key(index)),
                seq: caller.seq,
                content: content.clone(),
            });
            assert_eq!(range.send_as(caller, op), Outcome::Applied(Applied::Done));
            let late = put_op(key(index), 1, content);
            assert_eq!(range.send_as(caller, late), Outcome::Refused(Refusal::Abandoned));
            return;
        }
        Act::Resend { back } => {
            if let Some((caller, op, outcome)) = model.sent.iter().rev().nth(back).cloned() {
                assert_eq!(range.send_as(caller, op), outcome);
            }
            return;
        }
        Act::Repair { at, all } => {
            repair(range, at, all);
            return;
        }
        Act::Lose { at, slot } => {
            lose(range, at, Slot(slot));
            return;
        }
        Act::Recode { at, missing } => {
            recode_one(range, model, at, missing);
            return;
        }
        Act::Split { key: index } => {
            prepare(range, model, key(index));
            return;
        }
        Act::Step { range: number } => {
            step(range, number);
            return;
        }
        Act::Collect => {
            let ids: Vec<_> = range
                .garbage()
                .into_iter()
                .map(|counter| ExtentId { session: SESSION, counter })
                .collect();
            model.collected.extend(&ids);
            range.duty(RangeOp::CollectDone { extents: ids });
            return;
        }
    };
    let caller = range.caller();
    let outcome = range.send_as(caller, op.clone());
    assert_eq!(matches!(outcome, Outcome::Applied(_)), change(model), "{act:?}: {outcome:?}");
    model.sent.push((caller, op, outcome));
}

/// Repairs one of the extents that miss a slot, wholly or but for one slot; a second telling of it is refused.
fn repair(range: &mut Replicas, at: usize, all: bool) {
    let missing = range.missing_entries();
    let Some(MissingExtent { extent, .. }) = missing.into_iter().nth(at) else { return };
    let mut slots: Vec<Slot> = extent.missing.iter().collect();
    if !all && slots.len() > 1 {
        slots.pop();
    }
    let op = RangeOp::Repaired { extent, slots: slots.into_iter().collect() };
    assert_eq!(range.duty(op.clone()), Outcome::Applied(Applied::Done));
    assert_eq!(range.duty(op), Outcome::Refused(Refusal::NotMissing));
}

/// The extents that objects and parts name, with their owners; those of completed uploads once.
fn named_with_owners(range: &Replicas) -> Vec<(ExtentOwner, Extent)> {
    let page = |after: Option<InventoryPosition>| {
        let ranges = range.ranges().into_iter();
        ranges.flat_map(move |of| range.inventory_of(of.id, after.clone(), 1000).0)
    };
    let entries = page(Some(InventoryPosition::Objects)).chain(page(None));
    let named = entries.filter_map(|entry| match entry {
        InventoryEntry::Plain { content, .. } | InventoryEntry::Part { content, .. } => {
            Some(content)
        }
        InventoryEntry::Composite { .. } | InventoryEntry::Garbage(_) => None,
    });
    let each = named.flat_map(|content| {
        let owner = content.owner;
        content.extents.into_iter().map(move |extent| (owner.clone(), extent))
    });
    each.collect()
}

/// Loses a shard of one of the extents that are named. What the record missed before decides whether it may be told.
fn lose(range: &mut Replicas, at: usize, slot: Slot) {
    let Some((owner, extent)) = named_with_owners(range).into_iter().nth(at) else { return };
    let (missing, profile) = (extent.missing, extent.profile);
    let slots: SlotSet = [slot].into_iter().collect();
    let op = RangeOp::MarkLost(Box::new(MarkLost { owner, extent, slots }));
    let expected = if missing.contains(slot) || slot.0 >= profile.width() {
        Outcome::Refused(Refusal::Unsupported)
    } else if missing.count() == u32::from(profile.parity) {
        Outcome::Refused(Refusal::TooFewLeft)
    } else {
        Outcome::Applied(Applied::Done)
    };
    assert_eq!(range.duty(op.clone()), expected);
    if expected == Outcome::Applied(Applied::Done) {
        assert_eq!(range.duty(op), Outcome::Refused(Refusal::ExtentChanged), "as it was seen");
    }
}

/// A copy under another code takes the place of one of the extents that are named; a second one comes too late, and is
/// garbage.
fn recode_one(range: &mut Replicas, model: &mut Model, at: usize, missing: bool) {
    let Some((owner, extent)) = named_with_owners(range).into_iter().nth(at) else { return };
    let mut copies = [model.fresh(), model.fresh()]
        .map(|counter| recoded(&extent, counter, if missing { &[2] } else { &[] }));
    model.named.extend(copies.iter().map(|copy| copy.id));
    let [first, second] =
        copies.each_mut().map(|copy| recode(owner.clone(), extent.clone(), copy.clone()));
    let caller = range.caller();
    assert_eq!(range.send_as(caller, first.clone()), Outcome::Applied(Applied::Done));
    assert_eq!(range.send_as(caller, first), Outcome::Applied(Applied::Done), "a resend");
    assert_eq!(range.send(second), Outcome::Refused(Refusal::ExtentChanged));
}

fn check(range: &Replicas, model: &Model) {
    let bytes = model.objects.values().map(|(_, size)| size).sum();
    assert_eq!(range.usage(), (model.objects.len() as u64, bytes), "D7");
    for (key, (etag, size)) in &model.objects {
        let RangeAnswer::Object { record, pieces, .. } = range.object(key, Span::All) else {
            panic!("{key} is missing")
        };
        assert_eq!((record.etag, record.size), (*etag, *size));
        let mut next = 0;
        for piece in pieces {
            assert_eq!(piece.offset(), next);
            next += piece.length();
        }
        assert_eq!(next, *size, "pieces cover the object");
    }
    check_extents(range, model);
}

fn check_extents(range: &Replicas, model: &Model) {
    let mut seen = BTreeSet::new();
    let mut short = BTreeSet::new();
    let mut contents = BTreeSet::new();
    let mut uploads = BTreeSet::new();
    let mut see = |extents: &[Extent], live: bool| {
        for extent in extents {
            assert!(seen.insert(extent.id), "{} is named twice", extent.id);
            if live && !extent.missing.is_empty() {
                short.insert(extent.id);
            }
        }
    };
    for (_, value) in range.rows.of(family::CURRENT) {
        let row: ObjectRow = decode(value).unwrap();
        match row.content {
            ObjectContent::Plain(content) => {
                see(&content.extents, true);
                contents.insert(row.object.0);
            }
            ObjectContent::Parts(upload) => drop(uploads.insert(upload.0)),
        }
    }
    for (row, value) in range.rows.of(family::UPLOAD_STATE) {
        if let UploadStateRow::Open(_) = decode(value).unwrap() {
            uploads.insert(id_behind(row));
        }
    }
    for (row, value) in range.rows.of(family::PART) {
        let part: PartRow = decode(value).unwrap();
        assert!(uploads.contains(&id_behind(row)), "a part without an upload or object");
        see(&part.content.extents, true);
        contents.insert(part.record.object.0);
    }
    for (row, value) in range.rows.of(family::EXTENTS) {
        assert!(contents.contains(&id_behind(row)), "extents without a record");
        see(&decode::<ExtentsRow>(value).unwrap().extents, true);
    }
    for (row, _) in range.rows.of(family::INLINE) {
        assert!(contents.contains(&id_behind(row)), "a tail without a record");
    }
    for (_, value) in range.rows.of(family::GARBAGE) {
        see(&[decode::<ExtentRow>(value).unwrap().extent], false);
    }
    let expected: BTreeSet<_> = model.named.difference(&model.collected).copied().collect();
    assert_eq!(seen, expected, "D2, D3");
    let repair: BTreeSet<_> =
        range.missing().into_iter().map(|counter| ExtentId { session: SESSION, counter }).collect();
    assert_eq!(repair, short);
    for limit in [3, 1000] {
        let (mut met, mut objects) = (BTreeSet::new(), 0);
        for of in range.ranges() {
            objects += walk(range, of.id, limit, &mut met);
        }
        assert_eq!(met, seen, "the inventory names what the rows name");
        assert_eq!(objects, model.objects.len());
    }
}

/// Every extent that any row names.
fn named_by_rows(range: &Replicas) -> BTreeSet<ExtentId> {
    let mut named = BTreeSet::new();
    let mut see = |extents: &[Extent]| named.extend(extents.iter().map(|extent| extent.id));
    for (_, value) in range.rows.of(family::CURRENT) {
        if let ObjectContent::Plain(content) = decode::<ObjectRow>(value).unwrap().content {
            see(&content.extents);
        }
    }
    for (_, value) in range.rows.of(family::PART) {
        see(&decode::<PartRow>(value).unwrap().content.extents);
    }
    for (_, value) in range.rows.of(family::EXTENTS) {
        see(&decode::<ExtentsRow>(value).unwrap().extents);
    }
    for (_, value) in range.rows.of(family::GARBAGE) {
        see(&[decode::<ExtentRow>(value).unwrap().extent]);
    }
    named
}

/// What the inventory of a range names, and how many objects it has. Nothing is met twice while the range stands still.
pub(super) fn walk(
    range: &Replicas,
    of: RangeId,
    limit: u32,
    met: &mut BTreeSet<ExtentId>,
) -> usize {
    let (mut objects, mut after) = (0, None);
    loop {
        let (entries, next) = range.inventory_of(of, after, limit);
        for entry in &entries {
            match entry {
                InventoryEntry::Composite { last, .. } => {
                    objects += usize::from(*last);
                    continue;
                }
                InventoryEntry::Plain { .. } => objects += 1,
                InventoryEntry::Part { .. } | InventoryEntry::Garbage(_) => {}
            }
            for extent in extents_in(entry) {
                assert!(met.insert(extent.id), "{} is met twice", extent.id);
            }
        }
        let Some(next) = next else { return objects };
        after = Some(next);
    }
}

/// Prepares a split of the range that has this key, unless another is under way or one side would be empty.
fn prepare(range: &mut Replicas, model: &mut Model, key: &str) {
    let whole = range.range_at(&at(key));
    let state = split_state(range, whole.id);
    let split = SplitAt { child: RangeId(100 + model.fresh()), at: at(key) };
    let expected = if state.prepared.is_some() || state.more_steps {
        Outcome::Refused(Refusal::Splitting)
    } else if whole.interval.start == split.at {
        Outcome::Refused(Refusal::BadSplitPoint)
    } else {
        Outcome::Applied(Applied::Done)
    };
    assert_eq!(range.duty(RangeOp::PrepareSplit(split)), expected);
}

fn split_state(range: &Replicas, of: RangeId) -> SplitState {
    match range.query_of(of, &RangeQuery::SplitState) {
        RangeAnswer::SplitState(state) => state,
        other => panic!("{other:?}"),
    }
}

/// A step of whatever a range has under way; behind the last one of a preparation, the split.
fn step(range: &mut Replicas, number: usize) {
    let ranges = range.ranges();
    let whole = &ranges[number % ranges.len()];
    let mut duty =
        |op| range.apply_to(whole.id, false, vec![Command { caller: None, op }]).remove(0);
    let stepped = duty(RangeOp::StepSplit);
    let more = split_state(range, whole.id).more_steps;
    assert_eq!(stepped, Outcome::Applied(Applied::Stepped { more }));
    let Some(split) = split_state(range, whole.id).prepared.filter(|_| !more) else { return };
    let op = RangeOp::Split(split.clone());
    let outcome = range.apply_to(whole.id, false, vec![Command { caller: None, op }]).remove(0);
    assert_eq!(outcome, Outcome::Applied(Applied::Done));
    let (left, right) = (range.ranges(), range.range_at(&split.at));
    assert_eq!((right.id, right.epoch), (split.child, whole.epoch.next()));
    assert!(left.iter().any(|left| left.id == whole.id && left.epoch == whole.epoch.next()));
}

fn id_behind(row: &[u8]) -> u128 {
    let (_, behind) = key::split(row).unwrap();
    u128::from_be_bytes(behind[..16].try_into().unwrap())
}

/// A list as its definition says: all keys, rolled up, then cut.
fn listed(
    model: &Model,
    prefix: &str,
    delimiter: &str,
    after: &str,
    limit: usize,
) -> (Vec<String>, bool) {
    let mut entries = BTreeSet::new();
    for key in model.objects.keys() {
        let Some(rest) = key.strip_prefix(prefix) else { continue };
        let rolled = rest.find(delimiter).filter(|_| !delimiter.is_empty());
        entries.insert(match rolled {
            Some(at) => (key[..prefix.len() + at + delimiter.len()].to_owned(), true),
            None => ((*key).to_owned(), false),
        });
    }
    let behind: Vec<_> = entries
        .into_iter()
        .filter(|(entry, _)| entry.as_str() > after)
        .filter(|(entry, rolled)| !(*rolled && after.starts_with(entry.as_str())))
        .collect();
    let more = limit > 0 && behind.len() > limit;
    let show = |(entry, rolled)| if rolled { entry + "*" } else { entry };
    (behind.into_iter().take(limit).map(show).collect(), more)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_range_is_its_model(
        acts in proptest::collection::vec(act_or_split(), 1..80),
        lists in proptest::collection::vec(
            (
                proptest::sample::select(vec!["", "a", "a/", "b", "b/", "\u{e9}", "z"]),
                proptest::sample::select(vec!["", "/", "b", "\0"]),
                proptest::sample::select(vec!["", "a", "a/", "a/b", "a/b/", "a/bb", "b", "b/", "c\0", "zz"]),
                0..5_u32,
            ),
            1..12,
        ),
    ) {
        let mut range = Replicas::with_bucket();
        let mut model = Model::default();
        for act in &acts {
            run(&mut range, &mut model, act);
            check(&range, &model);
        }
        for (prefix, delimiter, after, limit) in lists {
            let expected = listed(&model, prefix, delimiter, after, limit as usize);
            prop_assert_eq!(range.list(prefix, delimiter, after, limit), expected,
                "prefix {:?} delimiter {:?} after {:?} limit {}", prefix, delimiter, after, limit);
        }
    }

    /// The trap of every audit: what is named moves while the walk goes on.
    #[test]
    fn an_inventory_meets_whatever_stays_named_while_the_range_goes_on(
        before in proptest::collection::vec(act(), 1..40),
        during in proptest::collection::vec(act(), 1..40),
        limit in 1..4_u32,
    ) {
        let mut range = Replicas::with_bucket();
        let mut model = Model::default();
        before.iter().for_each(|act| run(&mut range, &mut model, act));
        let begun = named_by_rows(&range);
        let (mut met, mut after, mut acts) = (BTreeSet::new(), None, during.iter());
        loop {
            let (entries, next) = range.inventory(after, limit);
            // what an object's list of parts names counts for nothing here: each part is to be met by itself
            let named = entries.iter().filter(|entry| !matches!(entry, InventoryEntry::Composite { .. }));
            met.extend(named.flat_map(extents_in).map(|extent| extent.id));
            let Some(next) = next else { break };
            after = Some(next);
            if let Some(act) = acts.next() {
                run(&mut range, &mut model, act);
            }
        }
        let still: BTreeSet<ExtentId> = named_by_rows(&range).intersection(&begun).copied().collect();
        prop_assert!(still.is_subset(&met), "not met: {:?}", still.difference(&met));
    }
}
