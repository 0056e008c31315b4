//! Re-encoding: the content of an extent, written again under another code, takes the extent's place where it is named.
//!
//! It is a compare-and-set. The copy was read and verified before it was proposed, so its length and checksum are those
//! of the extent; what was written or deleted at that place meanwhile wins, and the copy becomes garbage like the
//! content of any refused command. Readers of the extent that leaves are waited for by the gc queue, as after an
//! overwrite; nothing that a client sees of the object changes (C1, C5, D4).

use crate::step::{Step, Stop};
use ashlar_types::{Applied, Extent, Ownership, Recode, Refusal};

impl Step<'_, '_> {
    pub(crate) fn recode(&mut self, op: &Recode) -> Result<Applied, Stop> {
        if !self.interval.contains(op.owner.at()) {
            return Err(Refusal::OutsideRange.into());
        }
        let copy = copy_of(op).ok_or(Refusal::Unsupported)?;
        if self.named(&op.owner, op.extent.id)?.as_ref() != Some(&op.extent) {
            return Err(Refusal::ExtentChanged.into());
        }
        // whoever reads has seen a lesser one: the gc queue goes by that
        self.next_generation();
        self.rename(&op.owner, op.extent.id, copy)?;
        self.discard(&op.extent);
        self.note_missing(copy, &op.owner);
        Ok(Applied::Done)
    }
}

/// The one extent that is to take the place, where it can be a copy of the other.
fn copy_of(op: &Recode) -> Option<&Extent> {
    let [copy] = &op.content.extents[..] else { return None };
    let same = (copy.length, copy.crc64) == (op.extent.length, op.extent.crc64);
    let fits = op.content.tail.is_empty()
        && copy.id != op.extent.id
        && copy.ownership == Ownership::Owned
        && op.extent.ownership == Ownership::Owned;
    (same && fits).then_some(copy)
}
