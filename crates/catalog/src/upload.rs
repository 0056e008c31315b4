//! Multipart uploads. An upload has a row by age (`u`, for lists), a row by id (`w`, what became of it) and its parts.
//! Completing it moves no part: the object's manifest lists their numbers, their rows stay where they are. The row by id
//! then keeps the result for a while, so that a repeated Complete answers the same (C10).

use crate::object::{is_own_success, judge, written};
use crate::row::{
    Completed, ManifestRow, ObjectContent, ObjectRow, PartRow, UploadRow, UploadStateRow,
};
use crate::step::{Step, Stop};
use crate::{CatalogError, key};
use ashlar_types::{
    AbortUpload, Applied, CompleteUpload, CreateUpload, ExtentOwner, Generation, KeyPoint,
    ObjectId, ObjectRecord, PartRecord, PartSummary, PutPart, Refusal, UploadId, UploadRecord,
    Versioning, decode,
};
use xxhash_rust::xxh3::xxh3_128;

/// How long the result of a completed upload is kept: S3 clients give up long before.
const COMPLETED_KEPT_MS: u64 = 7 * 24 * 3600 * 1000;
const PART_NUMBER_MAX: u16 = 10_000;

impl Step<'_, '_> {
    pub(crate) fn create_upload(&mut self, op: &CreateUpload) -> Result<Applied, Stop> {
        self.admit(&op.at, op.bucket_epoch)?;
        let state = key::upload_state(&op.at, op.upload);
        if self.txn.get_bytes(&state)?.is_some() {
            return Ok(Applied::Done);
        }
        let generation = self.next_generation();
        let record = UploadRecord { generation, ..op.record.clone() };
        self.txn.put(state, &UploadStateRow::Open(generation));
        self.txn.put(key::upload(&op.at, generation), &UploadRow { upload: op.upload, record });
        Ok(Applied::Done)
    }

    pub(crate) fn put_part(&mut self, op: &PutPart) -> Result<Applied, Stop> {
        self.admit(&op.at, op.bucket_epoch)?;
        let size = Self::measure(&op.content)?;
        if !(1..=PART_NUMBER_MAX).contains(&op.number) {
            return Err(Refusal::Unsupported.into());
        }
        self.open_upload(&op.at, op.upload)?;
        let row = key::part(&op.at, op.upload, op.number);
        let generation = self.next_generation();
        if self.txn.get_bytes(&row)?.is_some() {
            self.free_part(&op.at, row.clone())?;
        }
        let owner = ExtentOwner::Part {
            at: op.at.clone(),
            upload: op.upload,
            number: op.number,
            object: op.object,
        };
        let content = self.store(&owner, &op.content)?;
        let record = PartRecord {
            number: op.number,
            object: op.object,
            size,
            modified_ms: op.modified_ms,
            etag: op.etag,
            checksums: op.checksums.clone(),
        };
        self.txn.put(row, &PartRow { record, content });
        Ok(Applied::Written {
            generation,
            etag: op.etag,
            modified_ms: op.modified_ms,
            checksums: op.checksums.clone(),
        })
    }

    pub(crate) fn complete_upload(&mut self, op: &CompleteUpload) -> Result<Applied, Stop> {
        let versioning = self.admit(&op.at, op.bucket_epoch)?;
        let generation = match self.txn.get(&key::upload_state(&op.at, op.upload))? {
            Some(UploadStateRow::Open(generation)) => generation,
            Some(UploadStateRow::Completed(done)) => return repeated(op, &done, false, versioning),
            Some(UploadStateRow::CompletedVersion(done)) => {
                return repeated(op, &done, true, versioning);
            }
            None => return Err(Refusal::NoSuchUpload.into()),
        };
        let current = self.current(&op.at)?;
        if let Err(refusal) = judge(&op.condition, current.as_ref()) {
            return match current {
                Some(row) if is_own_success(Some(&row), op.token, op.etag) => {
                    Ok(written(&row, versioning))
                }
                _ => Err(refusal.into()),
            };
        }
        let unused = self.match_parts(op)?;
        let upload: UploadRow = self.upload_row(&op.at, generation)?;
        let row = self.completed_object(op, &upload.record, versioning)?;
        self.make_way(&op.at, current, versioning)?;
        for part in unused {
            self.free_part(&op.at, part)?;
        }
        let parts: Vec<PartSummary> = op.parts.iter().map(|(part, _)| part.clone()).collect();
        self.txn.put(key::manifest(&op.at, op.object), &ManifestRow { parts });
        self.take_place(&op.at, &row)?;
        self.txn.remove(key::upload(&op.at, generation));
        let answer = written(&row, versioning);
        self.keep_completed(op, upload.record, row);
        Ok(answer)
    }

    pub(crate) fn abort_upload(&mut self, op: &AbortUpload) -> Result<Applied, Stop> {
        self.admit(&op.at, op.bucket_epoch)?;
        let generation = self.open_upload(&op.at, op.upload)?;
        self.next_generation();
        self.end_upload(&op.at, op.upload, generation)?;
        Ok(Applied::Done)
    }

    /// Frees an open upload and all its parts.
    pub(crate) fn end_upload(
        &mut self,
        at: &KeyPoint,
        upload: UploadId,
        generation: Generation,
    ) -> Result<(), CatalogError> {
        for (row, _) in self.txn.rows_under(&key::parts(at, upload))? {
            self.free_part(at, row)?;
        }
        self.txn.remove(key::upload(at, generation));
        self.txn.remove(key::upload_state(at, upload));
        Ok(())
    }

    fn open_upload(&self, at: &KeyPoint, upload: UploadId) -> Result<Generation, Stop> {
        match self.txn.get(&key::upload_state(at, upload))? {
            Some(UploadStateRow::Open(generation)) => Ok(generation),
            Some(UploadStateRow::Completed(_) | UploadStateRow::CompletedVersion(_)) | None => {
                Err(Refusal::NoSuchUpload.into())
            }
        }
    }

    fn upload_row(&self, at: &KeyPoint, generation: Generation) -> Result<UploadRow, CatalogError> {
        self.txn
            .get(&key::upload(at, generation))?
            .ok_or(CatalogError::Inconsistent("an open upload has no row by age"))
    }

    /// Judges that the chosen parts are the ones that the gateway read; gives the rows of those not chosen.
    fn match_parts(&self, op: &CompleteUpload) -> Result<Vec<Vec<u8>>, Stop> {
        let mut chosen = op.parts.iter().peekable();
        let mut unused = Vec::new();
        for (row, value) in self.txn.rows_under(&key::parts(&op.at, op.upload))? {
            let part: PartRow = decode(&value)?;
            let matches = |(summary, object): &&(PartSummary, ObjectId)| {
                summary.number == part.record.number
                    && summary.size == part.record.size
                    && *object == part.record.object
            };
            if chosen.next_if(matches).is_none() {
                unused.push(row);
            }
        }
        if chosen.peek().is_some() || op.parts.is_empty() {
            return Err(Refusal::PartsChanged.into());
        }
        Ok(unused)
    }

    fn completed_object(
        &mut self,
        op: &CompleteUpload,
        upload: &UploadRecord,
        versioning: Versioning,
    ) -> Result<ObjectRow, Stop> {
        let size = op
            .parts
            .iter()
            .try_fold(0_u64, |size, (part, _)| size.checked_add(part.size))
            .ok_or(Refusal::Unsupported)?;
        Ok(ObjectRow {
            size,
            modified_ms: op.modified_ms,
            etag: op.etag,
            checksums: op.checksums.clone(),
            object: op.object,
            generation: self.next_generation(),
            token: op.token,
            description: upload.description.clone(),
            content: ObjectContent::Parts(op.upload),
            has_id: versioning == Versioning::On,
        })
    }

    fn keep_completed(&mut self, op: &CompleteUpload, upload: UploadRecord, row: ObjectRow) {
        let state = key::upload_state(&op.at, op.upload);
        let expires_ms = self.head.time_ms.saturating_add(COMPLETED_KEPT_MS);
        self.txn.put_bytes(key::expiry(self.range, expires_ms, &state), vec![1]);
        self.head.next_expiry_ms = self.head.next_expiry_ms.min(expires_ms);
        let (parts, has_id) = (parts_hash(op), row.has_id);
        let done = Box::new(Completed { upload, object: row.into_record(Vec::new()), parts });
        let done = match has_id {
            true => UploadStateRow::CompletedVersion(done),
            false => UploadStateRow::Completed(done),
        };
        self.txn.put(state, &done);
    }
}

/// A Complete of an upload that was completed before.
fn repeated(
    op: &CompleteUpload,
    done: &Completed,
    has_id: bool,
    versioning: Versioning,
) -> Result<Applied, Stop> {
    let same_request = op.token.is_some() && op.token == done.object.token;
    if !same_request && parts_hash(op) != done.parts {
        return Err(Refusal::NoSuchUpload.into());
    }
    let ObjectRecord { generation, etag, modified_ms, .. } = done.object;
    let checksums = done.object.checksums.clone();
    Ok(match versioning {
        Versioning::Off => Applied::Written { generation, etag, modified_ms, checksums },
        Versioning::On | Versioning::Suspended => {
            let version = done.name(has_id);
            Applied::WrittenVersion { generation, etag, modified_ms, checksums, version }
        }
    })
}

fn parts_hash(op: &CompleteUpload) -> u128 {
    let mut bytes = Vec::with_capacity(op.parts.len() * 18);
    for (part, object) in &op.parts {
        bytes.extend_from_slice(&part.number.to_le_bytes());
        bytes.extend_from_slice(&object.0.to_le_bytes());
    }
    xxh3_128(&bytes)
}
