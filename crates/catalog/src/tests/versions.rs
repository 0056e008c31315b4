//! Buckets that keep versions (C9), against a small model: what a key has, from the oldest to the newest.

use super::support::*;
use crate::Range;
use ashlar_types::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const KEYS: [&str; 4] = ["a", "dir/b", "dir/c", "z"];

#[derive(Debug, Clone, PartialEq)]
struct Version {
    name: VersionName,
    generation: u64,
    /// Its content's extents; `None`: a delete marker.
    extents: Option<Vec<u64>>,
    bytes: u64,
}

struct Model {
    keys: BTreeMap<&'static str, Vec<Version>>,
    versioning: Versioning,
    epoch: Epoch,
    counter: u64,
    freed: BTreeSet<u64>,
}

#[derive(Debug, Clone)]
enum Act {
    Switch(bool),
    Put(usize, u64, bool),
    Absent(usize),
    Delete(usize),
    DeleteVersion(usize, usize),
    DeleteOther(usize),
    Multipart(usize),
    Split(usize),
    Lose(usize),
    Repair,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => any::<bool>().prop_map(Act::Switch),
        6 => (0..4_usize, 1..4_u64, any::<bool>()).prop_map(|(key, extents, short)| Act::Put(key, extents, short)),
        1 => (0..4_usize).prop_map(Act::Absent),
        3 => (0..4_usize).prop_map(Act::Delete),
        3 => (0..4_usize, 0..5_usize).prop_map(|(key, at)| Act::DeleteVersion(key, at)),
        1 => (0..4_usize).prop_map(Act::DeleteOther),
        1 => (0..4_usize).prop_map(Act::Multipart),
        1 => (1..4_usize).prop_map(Act::Split),
        1 => (0..8_usize).prop_map(Act::Lose),
        1 => Just(Act::Repair),
    ]
}

impl Model {
    fn fresh(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn of(&self, key: &str) -> &[Version] {
        self.keys.get(key).map_or(&[], Vec::as_slice)
    }

    fn is_there(&self, key: &str) -> bool {
        self.of(key).last().is_some_and(|newest| newest.extents.is_some())
    }

    fn free(&mut self, version: Version) {
        self.freed.extend(version.extents.into_iter().flatten());
    }

    /// What a new version does to those that are there.
    fn make_way(&mut self, key: &'static str) {
        let all = self.keys.entry(key).or_default();
        let gone = |version: &mut Version| version.name == VersionName::Null;
        let gone: Vec<Version> = match self.versioning {
            Versioning::Off => std::mem::take(all),
            Versioning::On => Vec::new(),
            Versioning::Suspended => all.extract_if(.., gone).collect(),
        };
        gone.into_iter().for_each(|version| self.free(version));
    }

    fn add(&mut self, key: &'static str, version: Version) {
        let is_null = self.versioning != Versioning::On;
        assert_eq!(version.name == VersionName::Null, is_null, "{version:?}");
        self.make_way(key);
        self.keys.entry(key).or_default().push(version);
    }
}

fn with_epoch(op: RangeOp, epoch: Epoch) -> RangeOp {
    match op {
        RangeOp::Put(op) => RangeOp::Put(Box::new(Put { bucket_epoch: epoch, ..*op })),
        RangeOp::Delete(op) => RangeOp::Delete(Delete { bucket_epoch: epoch, ..op }),
        RangeOp::CreateUpload(op) => {
            RangeOp::CreateUpload(CreateUpload { bucket_epoch: epoch, ..op })
        }
        RangeOp::PutPart(op) => RangeOp::PutPart(Box::new(PutPart { bucket_epoch: epoch, ..*op })),
        RangeOp::CompleteUpload(op) => {
            RangeOp::CompleteUpload(Box::new(CompleteUpload { bucket_epoch: epoch, ..*op }))
        }
        RangeOp::Redescribe(op) => {
            RangeOp::Redescribe(Box::new(Redescribe { bucket_epoch: epoch, ..*op }))
        }
        other => other,
    }
}

fn written(range: &Replicas, key: &str, outcome: Outcome) -> (VersionName, u64) {
    match outcome {
        Outcome::Applied(Applied::WrittenVersion { version, generation, .. }) => {
            (version, generation.0)
        }
        Outcome::Applied(Applied::Written { generation, .. }) => (VersionName::Null, generation.0),
        other => panic!("{key} in {:?}: {other:?}", range.ranges()),
    }
}

fn put_content(
    range: &mut Replicas,
    model: &mut Model,
    key: &'static str,
    count: u64,
    short: bool,
) {
    let counters: Vec<u64> = (0..count).map(|_| model.fresh()).collect();
    let missing: &[u8] = if short { &[1] } else { &[] };
    let all = counters.iter().map(|&counter| extent(counter, 100, missing)).collect();
    let content = Content { extents: all, tail: bytes::Bytes::from_static(b"tail") };
    let mark = model.fresh();
    let op = Put { object: ObjectId(u128::from(mark)), ..put(key, 1, content) };
    let outcome = range.send(with_epoch(RangeOp::Put(Box::new(op)), model.epoch));
    let (name, generation) = written(range, key, outcome);
    let bytes = 100 * count + 4;
    model.add(key, Version { name, generation, extents: Some(counters), bytes });
}

fn multipart(range: &mut Replicas, model: &mut Model, key: &'static str) {
    let [upload, object, one, two] = [(); 4].map(|()| u128::from(model.fresh()));
    let epoch = model.epoch;
    range.send(with_epoch(create_upload(key, upload), epoch));
    let parts = [(1, one), (2, two)].map(|(number, part)| {
        let counter = model.fresh();
        let content = extents(counter..counter + 1, 50);
        range.send(with_epoch(put_part(key, upload, number, part, content), epoch));
        counter
    });
    let op = complete(key, upload, object, &[(1, 50, one), (2, 50, two)]);
    let op = with_epoch(RangeOp::CompleteUpload(Box::new(op)), epoch);
    let outcome = range.send(op.clone());
    let again = range.send(op);
    assert_eq!(outcome, again, "a repeated Complete answers the same (C10)");
    let (name, generation) = written(range, key, outcome);
    model.add(key, Version { name, generation, extents: Some(parts.to_vec()), bytes: 100 });
}

fn delete_key(range: &mut Replicas, model: &mut Model, key: &'static str) {
    let before = model.is_there(key);
    let op = with_epoch(delete(key, WriteCondition::Always), model.epoch);
    match range.send(op) {
        Outcome::Applied(Applied::Deleted { existed }) => {
            assert_eq!((existed, model.versioning), (before, Versioning::Off));
            model.make_way(key);
        }
        Outcome::Applied(Applied::Marked { version }) => {
            let generation = match version {
                VersionName::Id(id) => id.generation.0,
                VersionName::Null => {
                    range.ranges().iter().map(|of| generation(range, of.id)).max().unwrap()
                }
            };
            model.add(key, Version { name: version, generation, extents: None, bytes: 0 });
        }
        other => panic!("{other:?}"),
    }
}

fn generation(range: &Replicas, of: RangeId) -> u64 {
    match range.query_of(of, &RangeQuery::Collectable { after: None, limit: 1 }) {
        RangeAnswer::Garbage { generation, .. } => generation.0,
        other => panic!("{other:?}"),
    }
}

fn delete_version(range: &mut Replicas, model: &mut Model, key: &'static str, number: usize) {
    let Some(version) = model.of(key).get(number).cloned() else { return };
    let op = DeleteVersion { at: at(key), bucket_epoch: model.epoch, version: version.name };
    let outcome = range.send(RangeOp::DeleteVersion(op.clone()));
    if model.versioning == Versioning::Off {
        assert_eq!(outcome, Outcome::Refused(Refusal::Unsupported));
        return;
    }
    let marker = version.extents.is_none();
    assert_eq!(outcome, Outcome::Applied(Applied::VersionDeleted { marker }));
    model.keys.get_mut(key).unwrap().remove(number);
    model.free(version);
    let again = range.send(RangeOp::DeleteVersion(op));
    assert_eq!(again, Outcome::Applied(Applied::VersionDeleted { marker: false }));
}

fn split_at(range: &mut Replicas, model: &mut Model, key: &str) {
    let whole = range.range_at(&at(key));
    let split = SplitAt { child: RangeId(100 + model.fresh()), at: at(key) };
    if whole.interval.start == split.at {
        return;
    }
    let mut duty =
        |op| range.apply_to(whole.id, false, vec![Command { caller: None, op }]).remove(0);
    if duty(RangeOp::PrepareSplit(split.clone())) != Outcome::Applied(Applied::Done) {
        return;
    }
    while duty(RangeOp::StepSplit) == Outcome::Applied(Applied::Stepped { more: true }) {}
    assert_eq!(duty(RangeOp::Split(split)), Outcome::Applied(Applied::Done));
    while duty(RangeOp::StepSplit) == Outcome::Applied(Applied::Stepped { more: true }) {}
}

/// A shard of one of the extents that are named is lost, as an audit finds it.
fn lose(range: &mut Replicas, number: usize) {
    let ranges = range.ranges();
    let entries = ranges.iter().flat_map(|of| range.inventory_of(of.id, None, 1000).0);
    let named = entries.filter_map(|entry| match entry {
        InventoryEntry::Plain { content, .. } => Some(content),
        _ => None,
    });
    let Some(content) = named.collect::<Vec<_>>().into_iter().nth(number) else { return };
    let Some(extent) = content.extents.into_iter().find(|one| one.missing.count() < 2) else {
        return;
    };
    let slot = Slot(u8::try_from(extent.missing.count()).unwrap() * 3);
    let slots: SlotSet = [slot].into_iter().collect();
    let op = MarkLost { owner: content.owner, extent, slots };
    assert_eq!(range.duty(RangeOp::MarkLost(Box::new(op))), Outcome::Applied(Applied::Done));
}

/// Whatever the repair index says is repaired: each extent is found by its owner, wherever its record has gone.
fn repair_all(range: &mut Replicas) {
    for MissingExtent { extent, owner } in range.missing_entries() {
        let slots = extent.missing;
        let id = range.range_at(owner.at()).id;
        let op = RangeOp::Repaired { extent, slots };
        let outcome = range.apply_to(id, false, vec![Command { caller: None, op }]).remove(0);
        assert_eq!(outcome, Outcome::Applied(Applied::Done), "{owner:?}");
    }
    assert_eq!(range.missing(), Vec::<u64>::new());
}

fn run(range: &mut Replicas, model: &mut Model, act: &Act) {
    match *act {
        Act::Switch(on) => {
            model.versioning = if on { Versioning::On } else { Versioning::Suspended };
            model.epoch = model.epoch.next();
            let row = BucketRow { versioning: model.versioning, ..bucket_row(model.epoch) };
            assert_eq!(range.duty(RangeOp::SetBucket(row)), Outcome::Applied(Applied::Done));
        }
        Act::Put(key, count, short) => put_content(range, model, KEYS[key], count, short),
        Act::Absent(key) => {
            let condition = WriteCondition::Absent;
            let op = Put { condition, ..put(KEYS[key], 1, Content::default()) };
            if model.is_there(KEYS[key]) {
                let outcome = range.send(with_epoch(RangeOp::Put(Box::new(op)), model.epoch));
                assert_eq!(outcome, Outcome::Refused(Refusal::ConditionFailed), "C3");
            }
        }
        Act::Delete(key) => delete_key(range, model, KEYS[key]),
        Act::DeleteVersion(key, number) => delete_version(range, model, KEYS[key], number),
        Act::DeleteOther(key) if model.versioning != Versioning::Off => {
            // of another key, or of nothing: not what has the same generation here
            let newest = model.of(KEYS[key]).last().map_or(1, |newest| newest.generation);
            let id = VersionId { generation: Generation(newest), tag: 0xdead };
            let version = VersionName::Id(id);
            let op = DeleteVersion { at: at(KEYS[key]), bucket_epoch: model.epoch, version };
            let outcome = range.send(RangeOp::DeleteVersion(op));
            assert_eq!(outcome, Outcome::Applied(Applied::VersionDeleted { marker: false }));
        }
        Act::DeleteOther(_) => {}
        Act::Multipart(key) => multipart(range, model, KEYS[key]),
        Act::Split(key) => split_at(range, model, KEYS[key]),
        Act::Lose(number) => lose(range, number),
        Act::Repair => repair_all(range),
    }
}

/// A page over all ranges, as a client gathers it.
fn listed(
    range: &Replicas,
    model: &Model,
    delimiter: Option<&str>,
    limit: u32,
) -> Vec<VersionEntry> {
    let mut entries: Vec<VersionEntry> = Vec::new();
    let (mut after, mut after_version) = (Vec::new(), None);
    for of in range.ranges() {
        loop {
            let list = ListVersions {
                bucket: BUCKET,
                bucket_epoch: model.epoch,
                prefix: Vec::new(),
                delimiter: delimiter.map(|text| text.as_bytes().to_vec()),
                after: after.clone(),
                after_version,
                limit,
            };
            let page = match range.query_of(of.id, &RangeQuery::ListVersions(list)) {
                RangeAnswer::Versions(page) => page,
                other => panic!("{other:?}"),
            };
            assert!(page.entries.len() <= limit as usize);
            if let Some(last) = page.entries.last() {
                (after, after_version) = match last {
                    VersionEntry::Object { key, version, .. }
                    | VersionEntry::Marker { key, version, .. } => (key.clone(), Some(*version)),
                    VersionEntry::CommonPrefix(prefix) => (prefix.clone(), None),
                };
            }
            entries.extend(page.entries);
            if !page.more {
                break;
            }
        }
    }
    entries
}

fn check_lists(range: &Replicas, model: &Model) {
    let mut expected = Vec::new();
    for (key, versions) in &model.keys {
        for (number, version) in versions.iter().rev().enumerate() {
            let is_object = version.extents.is_some();
            expected.push((key.as_bytes().to_vec(), version.name, number == 0, is_object));
        }
    }
    for limit in [1, 2, 3, 1000] {
        let listed = listed(range, model, None, limit).into_iter();
        let told: Vec<_> = listed
            .map(|entry| match entry {
                VersionEntry::Object { key, version, latest, .. } => (key, version, latest, true),
                VersionEntry::Marker { key, version, latest, .. } => (key, version, latest, false),
                VersionEntry::CommonPrefix(prefix) => panic!("{prefix:?}"),
            })
            .collect();
        assert_eq!(told, expected, "in pages of {limit}");
    }
    let is_in_dir = |key: &&&str| key.starts_with("dir/");
    let has_dir = model.keys.iter().any(|(key, all)| is_in_dir(&key) && !all.is_empty());
    for limit in [1, 1000] {
        let rolled = listed(range, model, Some("/"), limit).into_iter();
        let rolled: Vec<_> =
            rolled.filter(|entry| matches!(entry, VersionEntry::CommonPrefix(_))).collect();
        // a prefix that lies in two ranges is told by both, unless the first one's page said so
        assert_eq!(!rolled.is_empty(), has_dir, "{rolled:?}");
    }
}

fn ask(range: &Replicas, model: &Model, key: &str, version: Option<VersionName>) -> RangeAnswer {
    let (at, bucket_epoch, span) = (at(key), model.epoch, Span::All);
    let id = range.range_at(&at).id;
    range.query_of(id, &RangeQuery::Version { at, bucket_epoch, version, span })
}

fn check_reads(range: &Replicas, model: &Model) {
    for key in KEYS {
        let newest = model.of(key).last();
        let asked = model.of(key).iter().map(|version| (Some(version.name), Some(version)));
        for (name, version) in asked.chain([(None, newest)]) {
            match (ask(range, model, key, name), version) {
                (RangeAnswer::Version { record, version, pieces, .. }, Some(expected)) => {
                    assert_eq!((version, record.size), (expected.name, expected.bytes));
                    let stored = pieces.iter().filter_map(|piece| match piece {
                        Piece::Extent { extent, .. } => Some(extent.id.counter),
                        Piece::Inline { .. } => None,
                    });
                    assert_eq!(Some(stored.collect()), expected.extents);
                }
                (
                    RangeAnswer::Refused(QueryRefusal::DeleteMarker { version, .. }),
                    Some(expected),
                ) => {
                    assert_eq!((version, None), (expected.name, expected.extents.clone()));
                }
                (RangeAnswer::Refused(QueryRefusal::NoSuchKey), None) => {}
                (answer, expected) => panic!("{key} {name:?}: {answer:?}, not {expected:?}"),
            }
        }
        let id = VersionId { generation: Generation(1), tag: 0xdead };
        let answer = ask(range, model, key, Some(VersionName::Id(id)));
        assert_eq!(answer, RangeAnswer::Refused(QueryRefusal::NoSuchVersion));
    }
}

fn check(range: &Replicas, model: &Model) {
    let all = || model.keys.values().flatten();
    let bytes = all().map(|version| version.bytes).sum();
    assert_eq!(range.usage(), (all().count() as u64, bytes), "D7");
    check_lists(range, model);
    check_reads(range, model);
    let garbage: BTreeSet<u64> = range.garbage().into_iter().collect();
    assert_eq!(garbage, model.freed, "what nothing names is collected, and nothing else (D2, D3)");
    let named: BTreeSet<u64> =
        all().flat_map(|version| version.extents.clone()).flatten().collect();
    for limit in [1, 3, 1000] {
        let mut met = BTreeSet::new();
        for of in range.ranges() {
            super::model::walk(range, of.id, limit, &mut met);
        }
        let met: BTreeSet<u64> = met.into_iter().map(|id| id.counter).collect();
        assert_eq!(met, named.union(&garbage).copied().collect(), "in pages of {limit}");
    }
}

fn begin() -> (Replicas, Model) {
    let mut range = Replicas::with_bucket();
    let version = OBJECT_VERSIONS.ranges;
    range.duty(RangeOp::RaiseApplyVersion { version });
    let (keys, freed) = (BTreeMap::new(), BTreeSet::new());
    let versioning = Versioning::Off;
    (range, Model { keys, versioning, epoch: EPOCH, counter: 0, freed })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_bucket_that_keeps_versions_is_its_model(acts in proptest::collection::vec(act(), 1..40)) {
        let (mut range, mut model) = begin();
        for act in &acts {
            run(&mut range, &mut model, act);
            check(&range, &model);
        }
        repair_all(&mut range);
        check(&range, &model);
    }
}

fn switch(range: &mut Replicas, model: &mut Model, on: bool) {
    run(range, model, &Act::Switch(on));
}

#[test]
fn c9_before_all_know_them_no_bucket_keeps_versions() {
    let (range, writes) = Range::create(&descriptor());
    assert_eq!(range.apply_version(), ApplyVersions::FIRST.ranges);
    drop(writes);
    let mut range = Replicas::with_bucket();
    let row = BucketRow { versioning: Versioning::On, ..bucket_row(EPOCH.next()) };
    let outcome = range.duty(RangeOp::SetBucket(row.clone()));
    assert_eq!(outcome, Outcome::Refused(Refusal::Unsupported));
    let op = RangeOp::SetBucket(row);
    assert_eq!(op.apply_version(), OBJECT_VERSIONS.ranges, "nor is it proposed");
}

/// An audit meets a version at one place, although its row goes from `c` to `v` and back while it walks.
#[test]
fn d2_an_audit_meets_a_version_that_becomes_an_older_one_and_the_current_one_again() {
    let (mut range, mut model) = begin();
    switch(&mut range, &mut model, true);
    put_content(&mut range, &mut model, "a", 1, false);
    put_content(&mut range, &mut model, "a", 1, false);
    let named = model.of("a")[0].extents.clone().unwrap()[0];
    let id = range.range.descriptor().id;
    let (entries, next) = range.inventory_of(id, None, 1);
    assert_eq!(entries.len(), 1, "the newest one");
    // the version before it becomes the current object: a walk by families would have passed it
    delete_version(&mut range, &mut model, "a", 1);
    let (entries, _) = range.inventory_of(id, next, 1000);
    let met: Vec<u64> =
        entries.iter().flat_map(extents_in).map(|extent| extent.id.counter).collect();
    assert!(met.contains(&named), "{entries:?}");
}

#[test]
fn a_version_that_is_kept_is_not_described_anew_but_copied() {
    let (mut range, mut model) = begin();
    switch(&mut range, &mut model, true);
    put_content(&mut range, &mut model, "a", 1, false);
    let generation = Generation(model.of("a")[0].generation);
    let op = RangeOp::Redescribe(Box::new(Redescribe {
        at: at("a"),
        bucket_epoch: model.epoch,
        condition: WriteCondition::Always,
        generation,
        modified_ms: 9,
        description: Description::default(),
        checksums: Vec::new(),
        token: None,
    }));
    assert_eq!(range.send(op), Outcome::Refused(Refusal::ObjectChanged));
    check(&range, &model);
}

#[test]
fn a_range_with_many_versions_of_few_keys_is_split_between_keys() {
    let (mut range, mut model) = begin();
    switch(&mut range, &mut model, true);
    for _ in 0..20 {
        put_content(&mut range, &mut model, "a", 1, false);
    }
    let id = range.range.descriptor().id;
    let middle = |range: &Replicas| range.query_of(id, &RangeQuery::Middle);
    assert_eq!(middle(&range), RangeAnswer::Middle(None), "one key is never parted");
    put_content(&mut range, &mut model, "z", 1, false);
    assert_eq!(middle(&range), RangeAnswer::Middle(Some(at("z"))));
}

/// The gateway that takes a deletion back sends the row of the root: the range may not know that versions are kept.
#[test]
fn c9_a_range_that_was_fenced_before_it_was_told_keeps_versions_when_the_deletion_is_taken_back() {
    let (mut range, mut model) = begin();
    let fenced = EPOCH.next().next();
    range.duty(RangeOp::FenceBucket { bucket: BUCKET, epoch: fenced });
    model.epoch = fenced.next();
    model.versioning = Versioning::On;
    let row = BucketRow { versioning: Versioning::On, ..bucket_row(model.epoch) };
    assert_eq!(range.duty(RangeOp::SetBucket(row)), Outcome::Applied(Applied::Done));
    put_content(&mut range, &mut model, "a", 1, false);
    put_content(&mut range, &mut model, "a", 1, false);
    check(&range, &model);
}

#[test]
fn a_page_of_an_inventory_is_bounded_also_where_there_are_only_delete_markers() {
    let (mut range, mut model) = begin();
    switch(&mut range, &mut model, true);
    for _ in 0..10 {
        delete_key(&mut range, &mut model, "a");
    }
    let id = range.range.descriptor().id;
    let (mut pages, mut after) = (0, None);
    while let (_, Some(next)) = range.inventory_of(id, after, 3) {
        pages += 1;
        after = Some(next);
    }
    assert!(pages >= 4, "{pages} pages of three");
}

/// A description that is replaced gives an object a later generation: its parts are given to the end all the same.
#[test]
fn d4_an_audit_meets_all_parts_of_an_object_that_is_described_anew_meanwhile() {
    let (mut range, mut model) = begin();
    multipart(&mut range, &mut model, "a");
    let id = range.range.descriptor().id;
    let (entries, next) = range.inventory_of(id, None, 1);
    let is_last = |entries: &[InventoryEntry]| {
        entries.iter().any(|entry| matches!(entry, InventoryEntry::Composite { last: true, .. }))
    };
    assert!(!is_last(&entries), "{entries:?}");
    let op = RangeOp::Redescribe(Box::new(Redescribe {
        at: at("a"),
        bucket_epoch: model.epoch,
        condition: WriteCondition::Always,
        generation: Generation(model.of("a")[0].generation),
        modified_ms: 9,
        description: Description::default(),
        checksums: Vec::new(),
        token: None,
    }));
    assert!(matches!(range.send(op), Outcome::Applied(Applied::Written { .. })));
    let (entries, _) = range.inventory_of(id, next, 1000);
    assert!(is_last(&entries), "{entries:?}");
}
