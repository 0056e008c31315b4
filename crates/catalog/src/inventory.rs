//! The walk over what a range names, page by page, for audits.
//!
//! Each page is one view; between two pages the range goes on. So the walk goes in the direction in which an extent
//! can move between families: a current object or a part may be freed into the gc queue, and nothing ever leaves the
//! gc queue for a record. Objects are walked by key, each key from its newest version on, whether that is the current
//! object or an older one: a version's place never changes. Other families are walked in the order of their keys. A part stays
//! in its row when its upload becomes an object; therefore *every* part row is met in the second stage, also those that
//! the manifest of an object has listed in the first.

use crate::CatalogError;
use crate::key::{self, family};
use crate::merged::Versions;
use crate::row::{
    ExtentRow, ManifestRow, ObjectContent, ObjectRow, PartRow, UploadStateRow, VersionRow,
};
use crate::txn::Txn;
use ashlar_types::{
    BucketId, ExtentId, ExtentOwner, Generation, HeldContent, InventoryEntry, InventoryPosition,
    KeyPoint, OBJECT_VERSIONS, ObjectId, PAGE_ENTRIES_MAX, RangeAnswer, RangeDescriptor, UploadId,
    decode,
};

type Row = (Vec<u8>, Vec<u8>);

/// A page of what a range names, behind a position, of about so many extents. `version`: by which the range applies.
pub(crate) fn page(
    txn: &Txn<'_>,
    range: &RangeDescriptor,
    version: u32,
    (after, limit): (Option<&InventoryPosition>, u32),
) -> Result<RangeAnswer, CatalogError> {
    let room = limit.clamp(1, PAGE_ENTRIES_MAX) as usize;
    let has_versions = version >= OBJECT_VERSIONS.ranges;
    let mut page = Page { txn, range, has_versions, room, entries: Vec::new() };
    let next = match after {
        None
        | Some(
            InventoryPosition::Object(_)
            | InventoryPosition::ObjectPart { .. }
            | InventoryPosition::Version { .. }
            | InventoryPosition::VersionPart { .. },
        ) => Some(page.objects(after)?.unwrap_or(InventoryPosition::Objects)),
        Some(InventoryPosition::Objects | InventoryPosition::Part { .. }) => {
            Some(page.parts(after)?.unwrap_or(InventoryPosition::Parts))
        }
        Some(InventoryPosition::Parts) => page.garbage(None)?,
        Some(InventoryPosition::Garbage(extent)) => page.garbage(Some(*extent))?,
    };
    Ok(RangeAnswer::Inventory { entries: page.entries, next })
}

struct Page<'a, 'v> {
    txn: &'a Txn<'v>,
    range: &'a RangeDescriptor,
    /// Whether places are told by version, so that an object that becomes an older one is not met twice. Releases of
    /// before that do not know such a place.
    has_versions: bool,
    /// How much more is to be given: an entry counts as one, and one for each extent.
    room: usize,
    entries: Vec<InventoryEntry>,
}

impl<'a, 'v> Page<'a, 'v> {
    fn push(&mut self, entry: InventoryEntry, extents: usize) {
        self.room = self.room.saturating_sub(1 + extents);
        self.entries.push(entry);
    }

    /// Rows of a family at and behind `from`: one more than may be given.
    fn rows_from(&self, family: u8, from: Option<Vec<u8>>) -> Result<Vec<Row>, CatalogError> {
        let (start, end) = key::object_interval(family, &self.range.interval);
        let from = from.unwrap_or_default().max(start);
        self.txn.rows(&from, end.as_deref(), self.room + 1)
    }

    /// The versions behind a position, or from it on where it lies inside of one.
    fn versions(&self, after: Option<&InventoryPosition>) -> Versions<'a, 'v> {
        let (currents, olders) = (family::CURRENT, family::VERSION);
        let span = |family: u8, from: Vec<u8>| {
            let (start, end) = key::object_interval(family, &self.range.interval);
            (from.max(start), end)
        };
        let both =
            |current, older| Versions::new(self.txn, span(currents, current), span(olders, older));
        match after {
            Some(InventoryPosition::Object(at)) => {
                both(behind(key::current(at)), key::versions(at))
            }
            Some(InventoryPosition::ObjectPart { at, .. }) => {
                both(key::current(at), key::versions(at))
            }
            Some(InventoryPosition::Version { at, generation }) => {
                let older = behind(key::version(at, *generation));
                both(key::current(at), older).behind(at.clone(), *generation)
            }
            Some(InventoryPosition::VersionPart { at, generation, object, .. }) => {
                let versions = both(key::current(at), key::version(at, *generation));
                versions.starting_at(at.clone(), *generation, *object)
            }
            _ => both(Vec::new(), Vec::new()),
        }
    }

    /// Where to go on, if not all was given.
    fn objects(
        &mut self,
        after: Option<&InventoryPosition>,
    ) -> Result<Option<InventoryPosition>, CatalogError> {
        let mut versions = self.versions(after);
        let mut last = None;
        while let Some(found) = versions.next()? {
            if self.room == 0 {
                return Ok(last);
            }
            let (at, generation) = (found.at.clone(), found.generation());
            match found.row {
                VersionRow::Object(object) => {
                    if let Some(inside) = self.object(&at, object, found.is_current, after)? {
                        return Ok(Some(inside));
                    }
                }
                // it names nothing, and takes its time
                VersionRow::Marker(_) => self.room -= 1,
            }
            last = Some(match self.has_versions {
                true => InventoryPosition::Version { at, generation },
                false => InventoryPosition::Object(at),
            });
        }
        Ok(None)
    }

    /// `Some`: there was no room for all of its parts.
    fn object(
        &mut self,
        at: &KeyPoint,
        row: ObjectRow,
        is_current: bool,
        after: Option<&InventoryPosition>,
    ) -> Result<Option<InventoryPosition>, CatalogError> {
        let (object, size, generation) = (row.object, row.size, row.generation);
        match row.content {
            ObjectContent::Plain(content) => {
                let at = at.clone();
                let owner = match is_current {
                    true => ExtentOwner::Object { at, object },
                    false => ExtentOwner::Version { at, generation, object },
                };
                let extents = self.txn.extents_of(owner.at(), object, &content)?;
                let count = extents.len();
                let content = HeldContent { owner, extents };
                self.push(InventoryEntry::Plain { size, content }, count);
                Ok(None)
            }
            ObjectContent::Parts(upload) => {
                let begun = match after {
                    Some(InventoryPosition::ObjectPart { at: last_at, object: last, number })
                        if last_at == at && *last == object =>
                    {
                        *number
                    }
                    Some(InventoryPosition::VersionPart {
                        at: last_at,
                        object: last,
                        number,
                        ..
                    }) if last_at == at && *last == object => *number,
                    _ => 0,
                };
                let place = (object, generation);
                self.composite(at, place, size, upload, begun)
            }
        }
    }

    fn composite(
        &mut self,
        at: &KeyPoint,
        (object, generation): (ObjectId, Generation),
        size: u64,
        upload: UploadId,
        begun: u16,
    ) -> Result<Option<InventoryPosition>, CatalogError> {
        let missing = |what| move || CatalogError::Inconsistent(what);
        let manifest: ManifestRow = self
            .txn
            .get(&key::manifest(at, object))?
            .ok_or_else(missing("an object's manifest is missing"))?;
        let (mut parts, mut weight, mut given) = (Vec::new(), 0, begun);
        for part in manifest.parts.iter().filter(|part| part.number > begun) {
            if weight >= self.room {
                break;
            }
            given = part.number;
            let part: PartRow = self
                .txn
                .get(&key::part(at, upload, given))?
                .ok_or_else(missing("an object's part is missing"))?;
            let content = self.part_content(at, upload, &part)?;
            weight += 1 + content.extents.len();
            parts.push(content);
        }
        let last = manifest.parts.iter().all(|part| part.number <= given);
        let entry = InventoryEntry::Composite { at: at.clone(), object, size, parts, last };
        self.push(entry, weight);
        let (at, number) = (at.clone(), given);
        let inside = match self.has_versions {
            true => InventoryPosition::VersionPart { at, generation, object, number },
            false => InventoryPosition::ObjectPart { at, object, number },
        };
        Ok((!last).then_some(inside))
    }

    fn parts(
        &mut self,
        after: Option<&InventoryPosition>,
    ) -> Result<Option<InventoryPosition>, CatalogError> {
        let from = match after {
            Some(InventoryPosition::Part { at, upload, number }) => {
                Some(behind(key::part(at, *upload, *number)))
            }
            _ => None,
        };
        let mut last = None;
        for (row, value) in self.rows_from(family::PART, from)? {
            if self.room == 0 {
                return Ok(last);
            }
            let (at, behind) = split(&row)?;
            let (upload, number) = part_name(behind)?;
            let part: PartRow = decode(&value)?;
            let content = self.part_content(&at, upload, &part)?;
            let state = self.txn.get(&key::upload_state(&at, upload))?;
            let open = matches!(state, Some(UploadStateRow::Open(_)));
            let count = content.extents.len();
            self.push(InventoryEntry::Part { size: part.record.size, content, open }, count);
            last = Some(InventoryPosition::Part { at, upload, number });
        }
        Ok(None)
    }

    fn part_content(
        &self,
        at: &KeyPoint,
        upload: UploadId,
        part: &PartRow,
    ) -> Result<HeldContent, CatalogError> {
        let (number, object) = (part.record.number, part.record.object);
        let owner = ExtentOwner::Part { at: at.clone(), upload, number, object };
        Ok(HeldContent { owner, extents: self.txn.extents_of(at, object, &part.content)? })
    }

    fn garbage(
        &mut self,
        after: Option<ExtentId>,
    ) -> Result<Option<InventoryPosition>, CatalogError> {
        let (start, end) = key::range_interval(family::GARBAGE, self.range.id);
        let from = after.map_or(start, |extent| behind(key::garbage(self.range.id, extent)));
        let mut last = None;
        for (_, value) in self.txn.rows(&from, end.as_deref(), self.room + 1)? {
            if self.room == 0 {
                return Ok(last);
            }
            let ExtentRow { extent, .. } = decode(&value)?;
            last = Some(InventoryPosition::Garbage(extent.id));
            self.push(InventoryEntry::Garbage(extent), 0);
        }
        Ok(None)
    }
}

/// The first row that can follow.
fn behind(mut row: Vec<u8>) -> Vec<u8> {
    row.push(0);
    row
}

/// The key of a row of an object family, and what stands behind it.
fn split(row: &[u8]) -> Result<(KeyPoint, &[u8]), CatalogError> {
    let bucket = row.get(1..9).and_then(key::read_u64);
    match (bucket, key::split(row)) {
        (Some(bucket), Some((key, behind))) => Ok((KeyPoint::new(BucketId(bucket), key), behind)),
        _ => Err(CatalogError::Inconsistent("the key of an object's row")),
    }
}

fn part_name(behind: &[u8]) -> Result<(UploadId, u16), CatalogError> {
    let bad = || CatalogError::Inconsistent("the key of a part's row");
    let (upload, number) = behind.split_at_checked(16).ok_or_else(bad)?;
    let upload = u128::from_be_bytes(upload.try_into().map_err(|_| bad())?);
    let number = u16::from_be_bytes(number.try_into().map_err(|_| bad())?);
    Ok((UploadId(upload), number))
}
