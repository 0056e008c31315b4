//! The repair index: extents that miss a slot, the worst first, each with whoever names it; and what is told of a repair
//! and of a loss.

use crate::row::{ExtentsRow, MissingRow, ObjectContent, ObjectRow, PartRow, StoredContent};
use crate::step::{Step, Stop, margin};
use crate::{CatalogError, key};
use ashlar_types::{
    Applied, Extent, ExtentId, ExtentOwner, MarkLost, Refusal, Slot, SlotSet, decode,
};

impl Step<'_, '_> {
    /// Enters an extent that misses a slot.
    pub(crate) fn note_missing(&mut self, extent: &Extent, owner: &ExtentOwner) {
        if extent.missing.is_empty() {
            return;
        }
        let row = MissingRow { extent: extent.clone(), owner: owner.clone() };
        self.txn.put(key::repair(self.range, margin(extent), extent.id), &row);
    }

    /// The shards of `slots` are on stable storage at their homes: the record no longer calls them missing. It is
    /// refused unless the extent is still named, and misses what the repairer saw it miss (D1, D4).
    pub(crate) fn repaired(&mut self, seen: &Extent, slots: SlotSet) -> Result<Applied, Stop> {
        let row = key::repair(self.range, margin(seen), seen.id);
        let Some(MissingRow { extent, owner }) = self.txn.get(&row)? else {
            return Err(Refusal::NotMissing.into());
        };
        if extent != *seen
            || slots.is_empty()
            || !slots.iter().all(|slot| seen.missing.contains(slot))
        {
            return Err(Refusal::NotMissing.into());
        }
        // what a split has left here for a while says nothing of what is named behind it
        if !self.interval.contains(owner.at()) {
            return Err(Refusal::OutsideRange.into());
        }
        let mut mended = extent;
        slots.iter().for_each(|slot| mended.missing.remove(slot));
        self.rename(&owner, mended.id, &mended)?;
        self.txn.remove(row);
        self.note_missing(&mended, &owner);
        Ok(Applied::Done)
    }

    /// Shards are gone although the record names them: it calls them missing from now on, and they are repaired like
    /// any other. It is refused unless the extent is named as it was seen. A record never calls more slots missing than
    /// the code can do without: an extent that has lost more is not readable by the other shards either, and whatever of
    /// it returns must still be asked for.
    pub(crate) fn mark_lost(&mut self, op: &MarkLost) -> Result<Applied, Stop> {
        let seen = &op.extent;
        if !self.interval.contains(op.owner.at()) {
            return Err(Refusal::OutsideRange.into());
        }
        let new = |slot: Slot| slot.0 < seen.profile.width() && !seen.missing.contains(slot);
        if op.slots.is_empty() || !op.slots.iter().all(new) {
            return Err(Refusal::Unsupported.into());
        }
        if self.named(&op.owner, seen.id)?.as_ref() != Some(seen) {
            return Err(Refusal::ExtentChanged.into());
        }
        let mut marked = seen.clone();
        op.slots.iter().for_each(|slot| marked.missing.insert(slot));
        if marked.missing.count() > u32::from(seen.profile.parity) {
            return Err(Refusal::TooFewLeft.into());
        }
        self.rename(&op.owner, marked.id, &marked)?;
        if !seen.missing.is_empty() {
            self.txn.remove(key::repair(self.range, margin(seen), seen.id));
        }
        self.note_missing(&marked, &op.owner);
        Ok(Applied::Done)
    }

    /// An extent as its owner names it; `None`: it does not.
    pub(crate) fn named(
        &self,
        owner: &ExtentOwner,
        id: ExtentId,
    ) -> Result<Option<Extent>, CatalogError> {
        let near = match owner {
            ExtentOwner::Object { at, object } => match self.txn.get(&key::current(at))? {
                Some(ObjectRow {
                    object: current, content: ObjectContent::Plain(content), ..
                }) if current == *object => content,
                Some(_) | None => return Ok(None),
            },
            ExtentOwner::Version { at, generation, object } => {
                match self.txn.object_at(at, *generation)? {
                    Some(ObjectRow {
                        object: found,
                        content: ObjectContent::Plain(content),
                        ..
                    }) if found == *object => content,
                    Some(_) | None => return Ok(None),
                }
            }
            ExtentOwner::Part { at, upload, number, object } => {
                match self.txn.get(&key::part(at, *upload, *number))? {
                    Some(PartRow { record, content }) if record.object == *object => content,
                    Some(_) | None => return Ok(None),
                }
            }
        };
        let extents = self.txn.extents_of(owner.at(), owner.object(), &near)?;
        Ok(extents.into_iter().find(|extent| extent.id == id))
    }

    /// Writes `extent` where its owner names the one of this id.
    pub(crate) fn rename(
        &mut self,
        owner: &ExtentOwner,
        id: ExtentId,
        extent: &Extent,
    ) -> Result<(), CatalogError> {
        let lost = || CatalogError::Inconsistent("the owner of an extent does not name it");
        match owner {
            ExtentOwner::Object { at, object } => {
                let mut record = self.txn.current(at)?.ok_or_else(lost)?;
                if record.object != *object {
                    return Err(lost());
                }
                let ObjectContent::Plain(content) = &mut record.content else { return Err(lost()) };
                if replace(&mut content.extents, id, extent) {
                    self.txn.put(key::current(at), &record);
                    return Ok(());
                }
            }
            ExtentOwner::Version { at, generation, object } => {
                let mut record = self.txn.object_at(at, *generation)?.ok_or_else(lost)?;
                if record.object != *object {
                    return Err(lost());
                }
                let ObjectContent::Plain(content) = &mut record.content else { return Err(lost()) };
                if replace(&mut content.extents, id, extent) {
                    return self.txn.put_object_at(at, record);
                }
            }
            ExtentOwner::Part { at, upload, number, object } => {
                let row = key::part(at, *upload, *number);
                let mut part: PartRow = self.txn.get(&row)?.ok_or_else(lost)?;
                if part.record.object != *object {
                    return Err(lost());
                }
                let StoredContent { extents, .. } = &mut part.content;
                if replace(extents, id, extent) {
                    self.txn.put(row, &part);
                    return Ok(());
                }
            }
        }
        for (row, value) in self.txn.rows_under(&key::extents(owner.at(), owner.object()))? {
            let mut chunk: ExtentsRow = decode(&value)?;
            if replace(&mut chunk.extents, id, extent) {
                self.txn.put(row, &chunk);
                return Ok(());
            }
        }
        Err(lost())
    }
}

/// Puts `extent` in the place of the one that has this id. `false`: there is none.
fn replace(extents: &mut [Extent], id: ExtentId, extent: &Extent) -> bool {
    let found = extents.iter_mut().find(|other| other.id == id);
    found.is_some_and(|other| {
        other.clone_from(extent);
        true
    })
}
