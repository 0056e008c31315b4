//! The operations on the current object of a key.

use crate::row::{ManifestRow, ObjectContent, ObjectRow, PartRow};
use crate::step::{Step, Stop};
use crate::{CatalogError, key};
use ashlar_types::{
    Applied, Delete, Etag, ExtentOwner, KeyPoint, Put, Redescribe, Refusal, RequestToken,
    WriteCondition, bug,
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
pub(crate) fn written(row: &ObjectRow) -> Applied {
    Applied::Written {
        generation: row.generation,
        etag: row.etag,
        modified_ms: row.modified_ms,
        checksums: row.checksums.clone(),
    }
}

impl Step<'_, '_> {
    pub(crate) fn current(&self, at: &KeyPoint) -> Result<Option<ObjectRow>, CatalogError> {
        self.txn.get(&key::current(at))
    }

    pub(crate) fn put(&mut self, op: &Put) -> Result<Applied, Stop> {
        self.admit(&op.at, op.bucket_epoch)?;
        let size = Self::measure(&op.content)?;
        let current = self.current(&op.at)?;
        if let Err(refusal) = judge(&op.condition, current.as_ref()) {
            return match current {
                Some(row) if is_own_success(Some(&row), op.token, op.etag) => {
                    self.discard_all(&op.content);
                    Ok(written(&row))
                }
                _ => Err(refusal.into()),
            };
        }
        let generation = self.next_generation();
        self.replace(&op.at, current.as_ref(), Some(size))?;
        let owner = ExtentOwner::Object { at: op.at.clone(), object: op.object };
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
        };
        self.txn.put(key::current(&op.at), &row);
        Ok(written(&row))
    }

    pub(crate) fn delete(&mut self, op: &Delete) -> Result<Applied, Stop> {
        self.admit(&op.at, op.bucket_epoch)?;
        let current = self.current(&op.at)?;
        judge(&op.condition, current.as_ref())?;
        if current.is_some() {
            self.next_generation();
            self.replace(&op.at, current.as_ref(), None)?;
            if !bug!("delete-without-effect") {
                self.txn.remove(key::current(&op.at));
            }
        }
        Ok(Applied::Deleted { existed: current.is_some() })
    }

    pub(crate) fn redescribe(&mut self, op: &Redescribe) -> Result<Applied, Stop> {
        self.admit(&op.at, op.bucket_epoch)?;
        let Some(mut row) = self.current(&op.at)? else { return Err(Refusal::NoSuchKey.into()) };
        let unchanged = if row.generation == op.generation {
            judge(&op.condition, Some(&row))
        } else {
            judge(&op.condition, Some(&row)).and(Err(Refusal::ObjectChanged))
        };
        if let Err(refusal) = unchanged {
            let etag = row.etag;
            return match is_own_success(Some(&row), op.token, etag) {
                true => Ok(written(&row)),
                false => Err(refusal.into()),
            };
        }
        row.generation = self.next_generation();
        row.modified_ms = op.modified_ms;
        row.description = op.description.clone();
        row.checksums = op.checksums.clone();
        row.token = op.token;
        self.txn.put(key::current(&op.at), &row);
        Ok(written(&row))
    }

    /// Frees what the current object holds, and counts the change. Its row is the caller's to write or remove.
    pub(crate) fn replace(
        &mut self,
        at: &KeyPoint,
        current: Option<&ObjectRow>,
        size: Option<u64>,
    ) -> Result<(), CatalogError> {
        self.count(at.bucket, current.map(|row| row.size), size)?;
        match current.map(|row| (row.object, &row.content)) {
            None => Ok(()),
            Some((object, ObjectContent::Plain(content))) => self.free(at, object, content),
            Some((object, ObjectContent::Parts(upload))) => {
                let manifest = key::manifest(at, object);
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
