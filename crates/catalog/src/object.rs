//! The operations on the current object of a key.

use crate::row::{ManifestRow, ObjectContent, ObjectRow, PartRow};
use crate::step::{Step, Stop};
use crate::{CatalogError, key};
use ashlar_types::{
    Applied, Delete, Etag, ExtentOwner, KeyPoint, Put, Redescribe, Refusal, RequestToken,
    Versioning, WriteCondition, bug,
};

/// Whether a condition lets a write pass.
pub(crate) fn judge(
    condition: &WriteCondition,
    current: Option<&ObjectRow>,
) -> Result<(), Refusal> {
    let met = match (condition, current) {
        (WriteCondition::Always, _)
        | (WriteCondition::Absent, None)
        | (WriteCondition::Present, Some(_)) => true,
        (WriteCondition::Absent, Some(_)) | (WriteCondition::MatchesNothing, Some(_)) => false,
        (WriteCondition::Matches(etags), Some(row)) => etags.contains(&row.etag),
        (
            WriteCondition::Present | WriteCondition::Matches(_) | WriteCondition::MatchesNothing,
            None,
        ) => return Err(Refusal::NoSuchKey),
    };
    if met || bug!("condition-without-effect") { Ok(()) } else { Err(Refusal::ConditionFailed) }
}

/// Whether the current object is this very request's earlier success (C7).
pub(crate) fn is_own_success(
    current: Option<&ObjectRow>,
    token: Option<RequestToken>,
    etag: Etag,
) -> bool {
    current.is_some_and(|row| token.is_some() && row.token == token && row.etag == etag)
}

/// What a write of this object answers.
pub(crate) fn written(row: &ObjectRow, versioning: Versioning) -> Applied {
    let (generation, etag, modified_ms) = (row.generation, row.etag, row.modified_ms);
    let checksums = row.checksums.clone();
    match versioning {
        Versioning::Off => Applied::Written { generation, etag, modified_ms, checksums },
        Versioning::On | Versioning::Suspended => {
            let version = row.name();
            Applied::WrittenVersion { generation, etag, modified_ms, checksums, version }
        }
    }
}

impl Step<'_, '_> {
    pub(crate) fn current(&self, at: &KeyPoint) -> Result<Option<ObjectRow>, CatalogError> {
        self.txn.current(at)
    }

    pub(crate) fn put(&mut self, op: &Put) -> Result<Applied, Stop> {
        let versioning = self.admit(&op.at, op.bucket_epoch)?;
        let size = Self::measure(&op.content)?;
        let current = self.current(&op.at)?;
        if let Err(refusal) = judge(&op.condition, current.as_ref()) {
            return match current {
                Some(row) if is_own_success(Some(&row), op.token, op.etag) => {
                    self.discard_all(&op.content);
                    Ok(written(&row, versioning))
                }
                _ => Err(refusal.into()),
            };
        }
        let generation = self.next_generation();
        self.make_way(&op.at, current, versioning)?;
        let (at, object) = (op.at.clone(), op.object);
        let owner = match versioning {
            Versioning::Off => ExtentOwner::Object { at, object },
            Versioning::On | Versioning::Suspended => {
                ExtentOwner::Version { at, generation, object }
            }
        };
        let content = self.store(&owner, &op.content)?;
        let row = ObjectRow {
            size,
            modified_ms: op.modified_ms,
            etag: op.etag,
            checksums: op.checksums.clone(),
            object: op.object,
            generation,
            token: op.token,
            description: op.description.clone(),
            content: ObjectContent::Plain(content),
            has_id: versioning == Versioning::On,
        };
        self.take_place(&op.at, &row)?;
        Ok(written(&row, versioning))
    }

    /// What the key has goes where it goes when something new takes its place.
    pub(crate) fn make_way(
        &mut self,
        at: &KeyPoint,
        current: Option<ObjectRow>,
        versioning: Versioning,
    ) -> Result<(), CatalogError> {
        match versioning {
            Versioning::Off => self.end(at, current.as_ref()),
            Versioning::On => self.keep(at, current),
            Versioning::Suspended => self.keep_all_but_null(at, current),
        }
    }

    /// A new object is the current one of its key: nothing is in its place any more.
    pub(crate) fn take_place(
        &mut self,
        at: &KeyPoint,
        row: &ObjectRow,
    ) -> Result<(), CatalogError> {
        self.count(at.bucket, None, Some(row.size))?;
        self.txn.put(key::current(at), row);
        Ok(())
    }

    pub(crate) fn delete(&mut self, op: &Delete) -> Result<Applied, Stop> {
        let versioning = self.admit(&op.at, op.bucket_epoch)?;
        let current = self.current(&op.at)?;
        judge(&op.condition, current.as_ref())?;
        if versioning != Versioning::Off {
            return self.mark_deleted(op, current, versioning);
        }
        let existed = current.is_some();
        if existed {
            self.next_generation();
            self.end(&op.at, current.as_ref())?;
            if !bug!("delete-without-effect") {
                self.txn.remove(key::current(&op.at));
            }
        }
        Ok(Applied::Deleted { existed })
    }

    pub(crate) fn redescribe(&mut self, op: &Redescribe) -> Result<Applied, Stop> {
        let versioning = self.admit(&op.at, op.bucket_epoch)?;
        let Some(mut row) = self.current(&op.at)? else { return Err(Refusal::NoSuchKey.into()) };
        // a version that is kept is never changed: whoever reads it again learns that, and copies it
        let unchanged = if row.generation == op.generation && versioning == Versioning::Off {
            judge(&op.condition, Some(&row))
        } else {
            judge(&op.condition, Some(&row)).and(Err(Refusal::ObjectChanged))
        };
        if let Err(refusal) = unchanged {
            let etag = row.etag;
            return match is_own_success(Some(&row), op.token, etag) {
                true => Ok(written(&row, versioning)),
                false => Err(refusal.into()),
            };
        }
        row.generation = self.next_generation();
        row.modified_ms = op.modified_ms;
        row.description = op.description.clone();
        row.checksums = op.checksums.clone();
        row.token = op.token;
        self.txn.put(key::current(&op.at), &row);
        Ok(written(&row, versioning))
    }

    /// Frees what an object holds, and counts it out. Its row is the caller's to remove, or to write over.
    pub(crate) fn end(
        &mut self,
        at: &KeyPoint,
        object: Option<&ObjectRow>,
    ) -> Result<(), CatalogError> {
        let Some(row) = object else { return Ok(()) };
        self.count(at.bucket, Some(row.size), None)?;
        match &row.content {
            ObjectContent::Plain(content) => self.free(at, row.object, content),
            ObjectContent::Parts(upload) => {
                let manifest = key::manifest(at, row.object);
                let parts: ManifestRow = self
                    .txn
                    .get(&manifest)?
                    .ok_or(CatalogError::Inconsistent("an object's manifest is missing"))?;
                self.txn.remove(manifest);
                for part in parts.parts {
                    self.free_part(at, key::part(at, *upload, part.number))?;
                }
                Ok(())
            }
        }
    }

    /// Frees a part and removes its row.
    pub(crate) fn free_part(&mut self, at: &KeyPoint, row: Vec<u8>) -> Result<(), CatalogError> {
        let part: PartRow =
            self.txn.get(&row)?.ok_or(CatalogError::Inconsistent("an object's part is missing"))?;
        self.free(at, part.record.object, &part.content)?;
        self.txn.remove(row);
        Ok(())
    }
}
