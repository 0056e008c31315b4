//! Versions of a key where its bucket keeps them, or did (`docs/adr/0023`).
//!
//! The current object lies in `c`, older versions and delete markers in `v`, the newest first. Where `c` has nothing, the
//! first row in `v` is a delete marker, or there is none. A key has at most one version `null`; where that lies in `v`, a
//! pointer says at which generation.

use crate::row::{MarkerRow, NullRow, ObjectContent, ObjectRow, VersionRow};
use crate::step::{Step, Stop};
use crate::txn::Txn;
use crate::{CatalogError, key};
use ashlar_types::{
    Applied, Delete, DeleteVersion, ExtentOwner, Generation, KeyPoint, Refusal, VersionId,
    VersionName, Versioning,
};
use xxhash_rust::xxh3::xxh3_64;

impl Txn<'_> {
    pub(crate) fn current(&self, at: &KeyPoint) -> Result<Option<ObjectRow>, CatalogError> {
        self.get(&key::current(at))
    }

    /// The row in `v` at a generation.
    fn older_at(
        &self,
        at: &KeyPoint,
        generation: Generation,
    ) -> Result<Option<VersionRow>, CatalogError> {
        // no version has it: what lies there is the pointer
        if generation == Generation(0) {
            return Ok(None);
        }
        let value = self.get_bytes(&key::version(at, generation))?;
        value.map(|value| VersionRow::read(&value)).transpose()
    }

    /// At which generation the version `null` of a key is, wherever that lies.
    pub(crate) fn null_generation(
        &self,
        at: &KeyPoint,
    ) -> Result<Option<Generation>, CatalogError> {
        match self.current(at)? {
            Some(row) if row.name() == VersionName::Null => Ok(Some(row.generation)),
            Some(_) | None => {
                Ok(self.get(&key::null_pointer(at))?.map(|NullRow(generation)| generation))
            }
        }
    }

    /// A version that is not the current object.
    pub(crate) fn older(
        &self,
        at: &KeyPoint,
        name: VersionName,
    ) -> Result<Option<VersionRow>, CatalogError> {
        let generation = match name {
            VersionName::Id(id) => Some(id.generation),
            VersionName::Null => self.get(&key::null_pointer(at))?.map(|NullRow(at)| at),
        };
        let Some(generation) = generation else { return Ok(None) };
        Ok(self.older_at(at, generation)?.filter(|row| row.name() == name))
    }

    /// The newest row in `v`.
    pub(crate) fn newest_older(&self, at: &KeyPoint) -> Result<Option<VersionRow>, CatalogError> {
        let all = key::versions(at);
        let first = self.rows(&all, Some(&key::null_pointer(at)), 1)?;
        first.first().map(|(_, value)| VersionRow::read(value)).transpose()
    }

    /// The object that was committed at a generation, current or older, and the key of its row.
    pub(crate) fn object_at(
        &self,
        at: &KeyPoint,
        generation: Generation,
    ) -> Result<Option<ObjectRow>, CatalogError> {
        match self.current(at)? {
            Some(row) if row.generation == generation => Ok(Some(row)),
            Some(_) | None => match self.older_at(at, generation)? {
                Some(VersionRow::Object(row)) => Ok(Some(row)),
                Some(VersionRow::Marker(_)) | None => Ok(None),
            },
        }
    }

    /// Writes an object anew where the one of its generation lies.
    pub(crate) fn put_object_at(
        &mut self,
        at: &KeyPoint,
        row: ObjectRow,
    ) -> Result<(), CatalogError> {
        match self.current(at)? {
            Some(current) if current.generation == row.generation => {
                self.put(key::current(at), &row);
            }
            Some(_) | None => {
                let older = key::version(at, row.generation);
                self.put_bytes(older, VersionRow::Object(row).write());
            }
        }
        Ok(())
    }
}

impl Step<'_, '_> {
    /// The current object becomes an older version; something else takes its place.
    pub(crate) fn keep(
        &mut self,
        at: &KeyPoint,
        current: Option<ObjectRow>,
    ) -> Result<(), CatalogError> {
        let Some(row) = current else { return Ok(()) };
        self.own_as_version(at, &row)?;
        if row.name() == VersionName::Null {
            self.txn.put(key::null_pointer(at), &NullRow(row.generation));
        }
        let older = key::version(at, row.generation);
        self.txn.put_bytes(older, VersionRow::Object(row).write());
        Ok(())
    }

    /// What the repair index says of its extents is found by the version from now on, wherever that goes.
    fn own_as_version(&mut self, at: &KeyPoint, row: &ObjectRow) -> Result<(), CatalogError> {
        let ObjectContent::Plain(content) = &row.content else { return Ok(()) };
        let (at, generation, object) = (at.clone(), row.generation, row.object);
        let extents = self.txn.extents_of(&at, object, content)?;
        let owner = ExtentOwner::Version { at, generation, object };
        extents.iter().for_each(|extent| self.note_missing(extent, &owner));
        Ok(())
    }

    /// As `keep`, where the version `null` is replaced.
    pub(crate) fn keep_all_but_null(
        &mut self,
        at: &KeyPoint,
        current: Option<ObjectRow>,
    ) -> Result<(), CatalogError> {
        match current {
            Some(row) if row.name() == VersionName::Null => self.end(at, Some(&row)),
            current => {
                self.keep(at, current)?;
                match self.txn.older(at, VersionName::Null)? {
                    Some(null) => self.end_older(at, &null),
                    None => Ok(()),
                }
            }
        }
    }

    /// Frees an older version, and removes its row.
    fn end_older(&mut self, at: &KeyPoint, row: &VersionRow) -> Result<(), CatalogError> {
        match row {
            VersionRow::Object(object) => self.end(at, Some(object))?,
            VersionRow::Marker(_) => self.count(at.bucket, Some(0), None)?,
        }
        self.remove_older(at, row);
        Ok(())
    }

    fn remove_older(&mut self, at: &KeyPoint, row: &VersionRow) {
        if row.name() == VersionName::Null {
            self.txn.remove(key::null_pointer(at));
        }
        self.txn.remove(key::version(at, row.generation()));
    }

    /// A delete marker becomes the newest version.
    pub(crate) fn mark_deleted(
        &mut self,
        op: &Delete,
        current: Option<ObjectRow>,
        versioning: Versioning,
    ) -> Result<Applied, Stop> {
        let (at, modified_ms) = (&op.at, op.deleted_ms);
        let generation = self.next_generation();
        if current.is_some() {
            self.make_way(at, current, versioning)?;
            self.txn.remove(key::current(at));
        } else {
            self.make_way(at, None, versioning)?;
        }
        let version = match versioning {
            Versioning::On => {
                VersionName::Id(VersionId { generation, tag: marker_tag(op, generation) })
            }
            Versioning::Off | Versioning::Suspended => VersionName::Null,
        };
        if version == VersionName::Null {
            self.txn.put(key::null_pointer(at), &NullRow(generation));
        }
        let marker = VersionRow::Marker(MarkerRow { generation, modified_ms, version });
        self.txn.put_bytes(key::version(at, generation), marker.write());
        self.count(at.bucket, None, Some(0))?;
        Ok(Applied::Marked { version })
    }

    pub(crate) fn delete_version(&mut self, op: &DeleteVersion) -> Result<Applied, Stop> {
        let at = &op.at;
        if self.admit(at, op.bucket_epoch)? == Versioning::Off {
            return Err(Refusal::Unsupported.into());
        }
        let current = self.txn.current(at)?;
        if let Some(row) = current.as_ref().filter(|row| row.name() == op.version) {
            self.next_generation();
            self.end(at, Some(row))?;
            self.txn.remove(key::current(at));
            self.promote(at)?;
            return Ok(Applied::VersionDeleted { marker: false });
        }
        let Some(older) = self.txn.older(at, op.version)? else {
            return Ok(Applied::VersionDeleted { marker: false });
        };
        self.next_generation();
        self.end_older(at, &older)?;
        if current.is_none() {
            self.promote(at)?;
        }
        Ok(Applied::VersionDeleted { marker: matches!(older, VersionRow::Marker(_)) })
    }

    /// The newest version left becomes the current object, if it is one.
    fn promote(&mut self, at: &KeyPoint) -> Result<(), CatalogError> {
        let Some(VersionRow::Object(row)) = self.txn.newest_older(at)? else { return Ok(()) };
        self.txn.put(key::current(at), &row);
        self.remove_older(at, &VersionRow::Object(row));
        Ok(())
    }
}

/// A marker has no content whose id could tell it from others.
fn marker_tag(op: &Delete, generation: Generation) -> u64 {
    let numbers = [op.at.bucket.0, generation.0, op.deleted_ms].map(u64::to_be_bytes);
    xxh3_64(&[&numbers.concat()[..], &op.at.key[..]].concat())
}
