//! Two replicas over maps in memory. Every entry is applied on both, of which one is loaded anew from its rows before
//! each entry: results, writes and hashes must agree (R9), and the hash must be that of the rows (R4).
//!
//! They may split: a command then goes to the range that has its key, a duty without a key to all, and what is asked
//! is gathered from all, as clients do.

use crate::key::family;
use crate::txn::row_hash;
use crate::{MapError, Range, RangeReader, View, Visit, Writes, export};
use ashlar_types::*;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

pub(crate) const BUCKET: BucketId = BucketId(7);
pub(crate) const EPOCH: Epoch = Epoch(1);
pub(crate) const SESSION: SessionId = SessionId(100);

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Rows(pub(crate) BTreeMap<Vec<u8>, Vec<u8>>);

impl Rows {
    pub(crate) fn write(&mut self, writes: &Writes) {
        for (key, value) in &writes.0 {
            match value {
                Some(value) => drop(self.0.insert(key.clone(), value.clone())),
                None => drop(self.0.remove(key)),
            }
        }
    }

    pub(crate) fn of(&self, family: u8) -> impl DoubleEndedIterator<Item = (&Vec<u8>, &Vec<u8>)> {
        self.0.iter().filter(move |(key, _)| key[0] == family)
    }
}

impl View for Rows {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: Option<&[u8]>, visit: Visit<'_>) -> Result<(), MapError> {
        let to = to.map_or(Bound::Unbounded, Bound::Excluded);
        for (key, value) in self.0.range::<[u8], _>((Bound::Included(from), to)) {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

pub(crate) struct Replicas {
    pub(crate) range: Range,
    /// What were parts of it.
    pub(crate) children: Vec<Range>,
    pub(crate) rows: Rows,
    index: u64,
    seq: u64,
    pub(crate) now_ms: u64,
}

pub(crate) fn descriptor() -> RangeDescriptor {
    RangeDescriptor {
        id: RangeId(1),
        epoch: Epoch(1),
        interval: Interval { start: KeyPoint::least(), end: Some(KeyPoint::new(BucketId(9), [])) },
        voters: vec![NodeId(1)],
    }
}

impl Replicas {
    /// A range that knows one open bucket.
    pub(crate) fn with_bucket() -> Self {
        let (range, writes) = Range::create(&descriptor());
        let mut rows = Rows::default();
        rows.write(&writes);
        let children = Vec::new();
        let mut replicas = Self { range, children, rows, index: 0, seq: 0, now_ms: 1_000 };
        replicas.duty(RangeOp::SetBucket(bucket_row(EPOCH)));
        replicas
    }

    /// All ranges, by their keys.
    pub(crate) fn ranges(&self) -> Vec<RangeDescriptor> {
        let all = std::iter::once(&self.range).chain(&self.children);
        let mut ranges: Vec<_> = all.map(|range| range.descriptor().clone()).collect();
        ranges.sort_by(|left, right| left.interval.start.cmp(&right.interval.start));
        ranges
    }

    pub(crate) fn range_at(&self, at: &KeyPoint) -> RangeDescriptor {
        self.ranges().into_iter().find(|range| range.interval.contains(at)).unwrap()
    }

    pub(crate) fn apply(&mut self, command: &Command) -> Outcome {
        let mut ranges = self.ranges();
        // where none has the key, they all refuse it
        if let Some(at) = key_of(&command.op)
            && ranges.iter().any(|range| range.interval.contains(at))
        {
            ranges.retain(|range| range.interval.contains(at));
        }
        let answers: Vec<Outcome> = ranges
            .iter()
            .map(|range| self.apply_to(range.id, false, vec![command.clone()]).remove(0))
            .collect();
        let outside = Outcome::Refused(Refusal::OutsideRange);
        let applied = answers.iter().find(|outcome| matches!(outcome, Outcome::Applied(_)));
        let judged = applied.or_else(|| answers.iter().find(|outcome| **outcome != outside));
        judged.unwrap_or(&answers[0]).clone()
    }

    /// An entry of one range.
    pub(crate) fn apply_to(
        &mut self,
        id: RangeId,
        members_change: bool,
        commands: Vec<Command>,
    ) -> Vec<Outcome> {
        self.index += 1;
        let rows = &self.rows;
        let mut all = std::iter::once(&mut self.range).chain(&mut self.children);
        let range = all.find(|range| range.descriptor().id == id).unwrap();
        let batch = Batch { epoch: range.descriptor().epoch, proposed_ms: self.now_ms, commands };
        let mut other = Range::load(rows, id).unwrap().unwrap();
        assert_eq!(other, *range, "the rows say what memory says");
        let theirs = other.apply(rows, self.index, members_change, &batch).unwrap();
        let ours = range.apply(rows, self.index, members_change, &batch).unwrap();
        assert_eq!(ours, theirs, "apply is a function of state and entry");
        self.rows.write(&ours.writes);
        if let Some(child) = ours.child {
            self.children.push(Range::load(&self.rows, child.id).unwrap().unwrap());
        }
        self.check_hash();
        ours.outcomes
    }

    fn check_hash(&self) {
        let mut visited = 0;
        for range in std::iter::once(&self.range).chain(&self.children) {
            let mut sum = 0_u128;
            let id = range.descriptor().id;
            export(&self.rows, range.descriptor(), &mut |key, value| {
                visited += 1;
                if key != crate::key::state(id, 3) {
                    sum = sum.wrapping_add(row_hash(key, value));
                }
            })
            .unwrap();
            assert_eq!(range.state_hash(), sum, "{id}");
            let counted = crate::recount(&self.rows, id).unwrap().unwrap();
            assert!(counted.is_right(), "{id}: {counted:?}");
        }
        assert_eq!(visited, self.rows.0.len(), "the owned intervals hold every row, and each once");
    }

    /// A command under the next seq, and the caller to send it by again.
    pub(crate) fn send(&mut self, op: RangeOp) -> Outcome {
        let caller = self.caller();
        self.send_as(caller, op)
    }

    pub(crate) fn caller(&mut self) -> Caller {
        self.seq += 1;
        Caller { session: SESSION, seq: self.seq, answered_below: 0, base_index: 0 }
    }

    pub(crate) fn send_as(&mut self, caller: Caller, op: RangeOp) -> Outcome {
        self.apply(&Command { caller: Some(caller), op })
    }

    pub(crate) fn duty(&mut self, op: RangeOp) -> Outcome {
        self.apply(&Command { caller: None, op })
    }

    pub(crate) fn query(&self, query: &RangeQuery) -> RangeAnswer {
        self.query_of(self.range.descriptor().id, query)
    }

    pub(crate) fn query_of(&self, id: RangeId, query: &RangeQuery) -> RangeAnswer {
        // as in production: a read takes nothing from the head of the range that applies
        RangeReader::open(&self.rows, id).unwrap().unwrap().query(query).unwrap()
    }

    fn query_all(&self, query: &RangeQuery) -> Vec<RangeAnswer> {
        self.ranges().iter().map(|range| self.query_of(range.id, query)).collect()
    }

    pub(crate) fn object(&self, key: &str, span: Span) -> RangeAnswer {
        let query = RangeQuery::Object { at: at(key), bucket_epoch: EPOCH, span };
        self.query_of(self.range_at(&at(key)).id, &query)
    }

    pub(crate) fn usage(&self) -> (u64, u64) {
        let usages = self.query_all(&RangeQuery::Usage { bucket: BUCKET }).into_iter();
        usages.fold((0, 0), |sum, usage| match usage {
            RangeAnswer::Usage { objects, bytes } => (sum.0 + objects, sum.1 + bytes),
            RangeAnswer::Refused(QueryRefusal::OutsideRange) => sum,
            other => panic!("{other:?}"),
        })
    }

    pub(crate) fn garbage(&self) -> Vec<u64> {
        let pages = self.query_all(&RangeQuery::Collectable { after: None, limit: 1000 });
        let counters = pages.into_iter().flat_map(|page| match page {
            RangeAnswer::Garbage { extents, .. } => {
                extents.into_iter().map(|(extent, ..)| extent.id.counter)
            }
            other => panic!("{other:?}"),
        });
        counters.collect()
    }

    pub(crate) fn missing_entries(&self) -> Vec<MissingExtent> {
        let pages = self.query_all(&RangeQuery::Missing { after: None, limit: 1000 });
        let entries = pages.into_iter().flat_map(|page| match page {
            RangeAnswer::Missing { entries, .. } => entries,
            other => panic!("{other:?}"),
        });
        entries.collect()
    }

    pub(crate) fn missing(&self) -> Vec<u64> {
        self.missing_entries().iter().map(|entry| entry.extent.id.counter).collect()
    }

    /// A page of the inventory, and where it goes on.
    pub(crate) fn inventory(
        &self,
        after: Option<InventoryPosition>,
        limit: u32,
    ) -> (Vec<InventoryEntry>, Option<InventoryPosition>) {
        self.inventory_of(self.range.descriptor().id, after, limit)
    }

    pub(crate) fn inventory_of(
        &self,
        id: RangeId,
        after: Option<InventoryPosition>,
        limit: u32,
    ) -> (Vec<InventoryEntry>, Option<InventoryPosition>) {
        match self.query_of(id, &RangeQuery::Inventory { after, limit }) {
            RangeAnswer::Inventory { entries, next } => (entries, next),
            other => panic!("{other:?}"),
        }
    }

    /// Keys, and common prefixes with a star behind: from range to range, as a client asks.
    pub(crate) fn list(
        &self,
        prefix: &str,
        delimiter: &str,
        after: &str,
        limit: u32,
    ) -> (Vec<String>, bool) {
        let text = |key: &[u8]| String::from_utf8(key.to_vec()).unwrap();
        let mut after = after.as_bytes().to_vec();
        let mut listed: Vec<String> = Vec::new();
        for range in self.ranges() {
            let room = (limit as usize).saturating_sub(listed.len());
            let list = ListObjects {
                bucket: BUCKET,
                bucket_epoch: EPOCH,
                prefix: prefix.into(),
                delimiter: Some(delimiter.into()),
                after: after.clone(),
                // one more where the page is full, to know whether there are more
                limit: u32::try_from(room.max(usize::from(limit > 0))).unwrap(),
            };
            let RangeAnswer::Page(page) = self.query_of(range.id, &RangeQuery::List(list)) else {
                panic!("no page of {}", range.id)
            };
            if room == 0 {
                if page.entries.is_empty() {
                    continue;
                }
                return (listed, true);
            }
            for entry in &page.entries {
                let (ListEntry::Key { key, .. } | ListEntry::CommonPrefix(key)) = entry;
                after.clone_from(key);
                let star = if matches!(entry, ListEntry::Key { .. }) { "" } else { "*" };
                listed.push(text(key) + star);
            }
            if page.more {
                return (listed, true);
            }
        }
        (listed, false)
    }

    pub(crate) fn count(&self, family: u8) -> usize {
        self.rows.of(family).count()
    }

    pub(crate) fn rows_of_objects(&self) -> usize {
        family::OF_OBJECTS.iter().map(|&family| self.count(family)).sum()
    }
}

/// The key of a command that has one.
fn key_of(op: &RangeOp) -> Option<&KeyPoint> {
    match op {
        RangeOp::Put(op) => Some(&op.at),
        RangeOp::Delete(op) => Some(&op.at),
        RangeOp::DeleteVersion(op) => Some(&op.at),
        RangeOp::CreateUpload(op) => Some(&op.at),
        RangeOp::PutPart(op) => Some(&op.at),
        RangeOp::CompleteUpload(op) => Some(&op.at),
        RangeOp::AbortUpload(op) => Some(&op.at),
        RangeOp::Redescribe(op) => Some(&op.at),
        RangeOp::Abandon(op) => Some(&op.at),
        RangeOp::MarkLost(op) => Some(op.owner.at()),
        RangeOp::Recode(op) => Some(op.owner.at()),
        RangeOp::PrepareSplit(split) => Some(&split.at),
        _ => None,
    }
}

pub(crate) fn bucket_row(epoch: Epoch) -> BucketRow {
    BucketRow { bucket: BUCKET, epoch, state: BucketState::Open, versioning: Versioning::Off }
}

pub(crate) fn at(key: &str) -> KeyPoint {
    KeyPoint::new(BUCKET, key)
}

pub(crate) fn etag(mark: u8) -> Etag {
    Etag { md5: [mark; 16], parts: 0 }
}

pub(crate) fn token(mark: u8) -> Option<RequestToken> {
    Some(RequestToken([mark; 16]))
}

pub(crate) fn extent(counter: u64, length: u64, missing: &[u8]) -> Extent {
    Extent {
        id: ExtentId { session: SESSION, counter },
        pg: PgId(1),
        profile: Profile::RS_4_2,
        cell_bytes: 65_536,
        length,
        missing: missing.iter().map(|&slot| Slot(slot)).collect(),
        ownership: Ownership::Owned,
        crc64: counter,
    }
}

/// What the same content is under another code.
pub(crate) fn recoded(extent: &Extent, counter: u64, missing: &[u8]) -> Extent {
    Extent {
        id: ExtentId { session: SESSION, counter },
        pg: PgId(2),
        profile: Profile::RS_1_2,
        missing: missing.iter().map(|&slot| Slot(slot)).collect(),
        ..extent.clone()
    }
}

pub(crate) fn recode(owner: ExtentOwner, extent: Extent, copy: Extent) -> RangeOp {
    let content = Content { extents: vec![copy], tail: Bytes::new() };
    RangeOp::Recode(Box::new(Recode { owner, extent, content }))
}

/// The extents that an entry of the inventory names.
pub(crate) fn extents_in(entry: &InventoryEntry) -> Vec<Extent> {
    match entry {
        InventoryEntry::Plain { content, .. } | InventoryEntry::Part { content, .. } => {
            content.extents.clone()
        }
        InventoryEntry::Composite { parts, .. } => {
            parts.iter().flat_map(|part| part.extents.clone()).collect()
        }
        InventoryEntry::Garbage(extent) => vec![extent.clone()],
    }
}

pub(crate) fn inline(text: &str) -> Content {
    Content { extents: Vec::new(), tail: Bytes::copy_from_slice(text.as_bytes()) }
}

pub(crate) fn extents(counters: std::ops::Range<u64>, length: u64) -> Content {
    let extents = counters.map(|counter| extent(counter, length, &[])).collect();
    Content { extents, tail: Bytes::new() }
}

pub(crate) fn put(key: &str, mark: u8, content: Content) -> Put {
    Put {
        at: at(key),
        bucket_epoch: EPOCH,
        condition: WriteCondition::Always,
        object: ObjectId(u128::from(mark)),
        modified_ms: u64::from(mark),
        etag: etag(mark),
        checksums: Vec::new(),
        description: Description::default(),
        content,
        token: None,
    }
}

pub(crate) fn put_op(key: &str, mark: u8, content: Content) -> RangeOp {
    RangeOp::Put(Box::new(put(key, mark, content)))
}

pub(crate) fn delete(key: &str, condition: WriteCondition) -> RangeOp {
    RangeOp::Delete(Delete {
        at: at(key),
        bucket_epoch: EPOCH,
        condition,
        deleted_ms: 1,
        token: None,
    })
}

pub(crate) fn create_upload(key: &str, upload: u128) -> RangeOp {
    RangeOp::CreateUpload(CreateUpload {
        at: at(key),
        bucket_epoch: EPOCH,
        upload: UploadId(upload),
        record: UploadRecord {
            generation: Generation(0),
            created_ms: 5,
            description: Description::default(),
            checksum: None,
        },
    })
}

pub(crate) fn put_part(
    key: &str,
    upload: u128,
    number: u16,
    object: u128,
    content: Content,
) -> RangeOp {
    RangeOp::PutPart(Box::new(PutPart {
        at: at(key),
        bucket_epoch: EPOCH,
        upload: UploadId(upload),
        number,
        object: ObjectId(object),
        modified_ms: 6,
        etag: etag(9),
        checksums: Vec::new(),
        content,
    }))
}

pub(crate) fn complete(
    key: &str,
    upload: u128,
    object: u128,
    parts: &[(u16, u64, u128)],
) -> CompleteUpload {
    let part = |&(number, size, object): &(u16, u64, u128)| {
        (PartSummary { number, size, checksum: None }, ObjectId(object))
    };
    CompleteUpload {
        at: at(key),
        bucket_epoch: EPOCH,
        upload: UploadId(upload),
        condition: WriteCondition::Always,
        object: ObjectId(object),
        modified_ms: 7,
        parts: parts.iter().map(part).collect(),
        etag: Etag { md5: [3; 16], parts: 2 },
        checksums: Vec::new(),
        token: None,
    }
}

pub(crate) fn abort(key: &str, upload: u128) -> RangeOp {
    RangeOp::AbortUpload(AbortUpload { at: at(key), bucket_epoch: EPOCH, upload: UploadId(upload) })
}
