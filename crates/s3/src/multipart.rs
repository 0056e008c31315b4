//! Multipart uploads: create, parts, complete, abort, and their lists.
//!
//! Completion reads the parts, compares the client's list with them, computes ETag and checksums, and hands the backend
//! the parts that it saw; if they have changed by then, it reads them again. A repeated completion answers the same
//! (C10).

use crate::backend::{CompleteUpload, Failure, ListUploads, Parts, Written};
use crate::body::Upload;
use crate::checksum;
use crate::condition;
use crate::copy::checksum_elements;
use crate::description;
use crate::error::{Code, S3Error, S3Result};
use crate::handler::Handler;
use crate::lists::lossy;
use crate::objects::{check_size, part_number};
use crate::response::{Answer, document, done, empty, refusal, set};
use crate::time::iso;
use crate::versions::set_version;
use crate::xml::{self, Xml};
use ashlar_types::{
    Checksum, ChecksumAlgorithm, ChecksumType, Etag, Generation, ObjectId, ObjectRecord, Page,
    PartRecord, PartSummary, Span, UploadEntry, UploadId, UploadRecord, VersionId, VersionName,
};
use bytes::Bytes;
use http::StatusCode;
use md5::{Digest as _, Md5};

/// The least size of a part that is not the last.
const PART_BYTES_MIN: u64 = 5 * 1024 * 1024;
/// Most parts of an upload.
const PARTS_MAX: usize = 10_000;
/// Parts asked for at a time.
const PARTS_PAGE: u32 = 1000;
/// How often a completion is begun anew because parts changed in between.
const TRIES_MAX: usize = 4;

/// A part as the client's list names it.
struct Named {
    number: u16,
    etag: Option<Etag>,
    checksums: Vec<(ChecksumAlgorithm, Bytes)>,
}

/// What a completion will make.
struct Whole {
    parts: Vec<(PartSummary, ObjectId)>,
    etag: Etag,
    checksums: Vec<Checksum>,
    size: u64,
}

impl Handler<'_> {
    /// The upload that is spoken of. What is not an id of ours is an upload that does not exist.
    pub(crate) fn upload_id(&self) -> S3Result<UploadId> {
        let text = self.request.query.get("uploadId").unwrap_or_default();
        text.parse().map_err(|_| S3Error::from(Code::NoSuchUpload).fact("UploadId", text))
    }

    pub(crate) async fn create_upload(&self) -> S3Result<Answer> {
        let place = self.place()?;
        let checksum = self.upload_checksum()?;
        let record = UploadRecord {
            // both are given where the upload is stored
            generation: Generation(0),
            created_ms: 0,
            description: description::read(&self.request)?,
            checksum,
        };
        let upload = done(self.backend.create_upload(&place, record).await)?;
        let mut answer = document("InitiateMultipartUploadResult", |xml| {
            xml.text("Bucket", place.bucket.as_str());
            xml.text("Key", place.key.as_str());
            xml.value("UploadId", upload);
        });
        if let Some((algorithm, kind)) = checksum {
            set(&mut answer, "x-amz-checksum-algorithm", checksum::name(algorithm));
            set(&mut answer, "x-amz-checksum-type", checksum::kind_name(kind));
        }
        Ok(answer)
    }

    fn upload_checksum(&self) -> S3Result<Option<(ChecksumAlgorithm, ChecksumType)>> {
        let algorithm = self.request.header("x-amz-checksum-algorithm")?;
        let kind =
            self.request.header("x-amz-checksum-type")?.map(checksum::parse_kind).transpose()?;
        let Some(algorithm) = algorithm.map(checksum::parse_name).transpose()? else {
            return match kind {
                None => Ok(None),
                Some(_) => Err(S3Error::new(
                    Code::InvalidRequest,
                    "x-amz-checksum-type needs x-amz-checksum-algorithm",
                )),
            };
        };
        let only_full = algorithm == ChecksumAlgorithm::Crc64Nvme;
        let only_composite =
            matches!(algorithm, ChecksumAlgorithm::Sha1 | ChecksumAlgorithm::Sha256);
        let default = if only_full { ChecksumType::FullObject } else { ChecksumType::Composite };
        let kind = kind.unwrap_or(default);
        if (only_full || only_composite) && kind != default {
            let (kind, name) = (checksum::kind_name(kind), checksum::name(algorithm));
            let message = format!("the checksum type {kind} cannot be used with {name}");
            return Err(S3Error::new(Code::InvalidRequest, message));
        }
        Ok(Some((algorithm, kind)))
    }

    pub(crate) async fn upload_part(&self, mut body: Upload) -> S3Result<Answer> {
        let (place, upload) = (self.place()?, self.upload_id()?);
        let number = part_number(self.request.number("partNumber")?.unwrap_or_default())?;
        check_size(body.length())?;
        // before the body is sent: is the upload there, and which checksum do its parts carry?
        let open = done(self.backend.parts(&place, upload, 0, 1).await)?;
        if let Some((algorithm, _)) = open.record.checksum {
            if body.algorithm().is_some_and(|given| given != algorithm) {
                let name = checksum::name(algorithm);
                let message = format!("the parts of this upload carry {name} checksums");
                return Err(S3Error::new(Code::InvalidRequest, message));
            }
            body.compute(algorithm);
        }
        let written = done(self.backend.put_part(&place, upload, number, body).await)?;
        let mut answer = empty(StatusCode::OK);
        set(&mut answer, "etag", format!("\"{}\"", written.etag));
        for sum in &written.checksums {
            set(&mut answer, checksum::header(sum.algorithm), checksum::encode(sum, 0));
        }
        Ok(answer)
    }

    pub(crate) async fn abort_upload(&self) -> S3Result<Answer> {
        done(self.backend.abort_upload(&self.place()?, self.upload_id()?).await)?;
        Ok(empty(StatusCode::NO_CONTENT))
    }

    pub(crate) async fn complete_upload(&self, body: Upload) -> S3Result<Answer> {
        let (place, upload) = (self.place()?, self.upload_id()?);
        let named = parse_parts(&xml::parse(&body.xml().await?)?)?;
        let condition = condition::of_write(&self.request)?;
        for _ in 0..TRIES_MAX {
            let open = self.all_parts().await?;
            if let Some(done) = open.completed {
                let version = self.version_of(&done).await?;
                return Ok(self.completed(done.etag, &done.checksums, done.parts.len(), version));
            }
            let whole = choose(&named, &open)?;
            self.check_whole(&whole, open.record.checksum)?;
            let count = whole.parts.len();
            let complete = CompleteUpload {
                place: place.clone(),
                upload,
                condition: condition.clone(),
                parts: whole.parts,
                etag: whole.etag,
                checksums: whole.checksums,
                token: self.token(),
            };
            match self.backend.complete_upload(complete).await {
                Err(Failure::Changed) => {}
                other => {
                    let Written { etag, checksums, version, .. } = done(other)?;
                    return Ok(self.completed(etag, &checksums, count, version));
                }
            }
        }
        Err(refusal(&Failure::Changed))
    }

    /// The upload with all its parts.
    async fn all_parts(&self) -> S3Result<Parts> {
        let (place, upload) = (self.place()?, self.upload_id()?);
        let mut all = done(self.backend.parts(&place, upload, 0, PARTS_PAGE).await)?;
        while all.more {
            let after = all.parts.last().map_or(0, |part| part.number);
            let page = done(self.backend.parts(&place, upload, after, PARTS_PAGE).await)?;
            // an upload that is completed meanwhile has no parts any more
            all.more = page.more && !page.parts.is_empty();
            all.completed = page.completed;
            all.parts.extend(page.parts);
        }
        Ok(all)
    }

    /// Compares what the client says of the whole with what its parts make.
    fn check_whole(
        &self,
        whole: &Whole,
        declared: Option<(ChecksumAlgorithm, ChecksumType)>,
    ) -> S3Result<()> {
        if let Some(size) = self.request.header("x-amz-mp-object-size")?
            && size.parse() != Ok(whole.size)
        {
            let message = format!("the parts have {} bytes, not {size}", whole.size);
            return Err(S3Error::new(Code::InvalidRequest, message));
        }
        if let Some(kind) = self.request.header("x-amz-checksum-type")?
            && declared.map(|(_, kind)| kind) != Some(checksum::parse_kind(kind)?)
        {
            let message = "x-amz-checksum-type is not that of the upload";
            return Err(S3Error::new(Code::InvalidRequest, message));
        }
        for (algorithm, _, header, _) in checksum::ALL {
            let Some(text) = self.request.header(header)? else { continue };
            let Some(sum) = whole.checksums.iter().find(|sum| sum.algorithm == algorithm) else {
                let message = format!("{header} is not the checksum of this upload");
                return Err(S3Error::new(Code::InvalidRequest, message));
            };
            let bare = text.split_once('-').map_or(text, |(value, _)| value);
            if checksum::decode(algorithm, bare)? != sum.value {
                return Err(Code::BadDigest.into());
            }
        }
        Ok(())
    }

    /// The version that an earlier completion made. One that was `null`, or that is gone, is not named again.
    async fn version_of(&self, done: &ObjectRecord) -> S3Result<Option<VersionName>> {
        let name = VersionName::Id(VersionId::of_object(done.generation, done.object));
        let found = self.backend.get(&self.place()?, Some(name), Span::Nothing).await;
        Ok(found.ok().and_then(|found| found.version))
    }

    fn completed(
        &self,
        etag: Etag,
        checksums: &[Checksum],
        parts: usize,
        version: Option<VersionName>,
    ) -> Answer {
        let bucket = self.request.bucket.as_ref().map_or("", ashlar_types::BucketName::as_str);
        let key = self.request.key.as_ref().map_or("", ashlar_types::ObjectKey::as_str);
        let mut answer = document("CompleteMultipartUploadResult", |xml| {
            xml.text("Location", format!("http://{}{}", self.request.host, self.request.resource));
            xml.text("Bucket", bucket);
            xml.text("Key", key);
            xml.text("ETag", format!("\"{etag}\""));
            checksum_elements(xml, checksums, parts);
        });
        set_version(&mut answer, version);
        answer
    }

    pub(crate) async fn list_parts(&self) -> S3Result<Answer> {
        let (place, upload) = (self.place()?, self.upload_id()?);
        let asked = self.asked("max-parts")?;
        let marker = self.request.number("part-number-marker")?.unwrap_or(0);
        let after = u16::try_from(marker)
            .map_err(|_| S3Error::new(Code::InvalidArgument, "part-number-marker is too large"))?;
        let mut page = done(self.backend.parts(&place, upload, after, asked.limit.max(1)).await)?;
        if page.completed.is_some() {
            return Err(S3Error::from(Code::NoSuchUpload).fact("UploadId", upload.to_string()));
        }
        if asked.limit == 0 {
            page.parts.clear();
            page.more = false;
        }
        let next = page.parts.last().map_or(after, |part| part.number);
        Ok(document("ListPartsResult", |xml| {
            xml.text("Bucket", place.bucket.as_str());
            asked.names.print(xml, "Key", place.key.as_str());
            asked.names.print_type(xml);
            xml.value("UploadId", upload);
            self.owner(xml, "Initiator");
            self.owner(xml, "Owner");
            xml.text("StorageClass", "STANDARD");
            upload_checksum_elements(xml, page.record.checksum);
            xml.value("PartNumberMarker", after);
            xml.value("NextPartNumberMarker", next);
            xml.value("MaxParts", asked.limit);
            xml.value("IsTruncated", page.more);
            page.parts.iter().for_each(|part| part_element(xml, part));
        }))
    }

    pub(crate) async fn list_uploads(&self) -> S3Result<Answer> {
        let asked = self.asked("max-uploads")?;
        let query = &self.request.query;
        let key_marker = query.get("key-marker").unwrap_or_default();
        let id_marker = query.get("upload-id-marker").filter(|text| !text.is_empty());
        // without a key, S3 does not look at the id
        let after_upload = match id_marker.filter(|_| !key_marker.is_empty()) {
            None => None,
            Some(text) => Some(text.parse().map_err(|_| {
                S3Error::new(Code::InvalidArgument, "the upload-id-marker is not an upload's id")
            })?),
        };
        let list = self.list_behind(&asked, key_marker.as_bytes())?;
        let page = if asked.limit == 0 {
            done(self.backend.bucket(self.bucket()?).await)?;
            Page { entries: Vec::new(), more: false }
        } else {
            done(self.backend.list_uploads(ListUploads { list, after_upload }).await)?
        };
        let bucket = self.bucket()?.as_str();
        Ok(document("ListMultipartUploadsResult", |xml| {
            xml.text("Bucket", bucket);
            asked.names.print(xml, "KeyMarker", key_marker);
            xml.text("UploadIdMarker", id_marker.unwrap_or_default());
            if page.more {
                let (key, upload) = page.entries.last().map(next_upload).unwrap_or_default();
                asked.names.print(xml, "NextKeyMarker", &key);
                xml.text("NextUploadIdMarker", upload);
            }
            asked.names.print(xml, "Prefix", &asked.prefix);
            if let Some(delimiter) = &asked.delimiter {
                asked.names.print(xml, "Delimiter", delimiter);
            }
            asked.names.print_type(xml);
            xml.value("MaxUploads", asked.limit);
            xml.value("IsTruncated", page.more);
            for entry in &page.entries {
                match entry {
                    UploadEntry::Upload { key, upload, record } => xml.element("Upload", |xml| {
                        asked.names.print(xml, "Key", &lossy(key));
                        xml.value("UploadId", upload);
                        self.owner(xml, "Initiator");
                        self.owner(xml, "Owner");
                        xml.text("StorageClass", "STANDARD");
                        xml.text("Initiated", iso(record.created_ms));
                        upload_checksum_elements(xml, record.checksum);
                    }),
                    UploadEntry::CommonPrefix(prefix) => asked.names.print_common(xml, prefix),
                }
            }
        }))
    }
}

fn next_upload(entry: &UploadEntry) -> (String, String) {
    match entry {
        UploadEntry::Upload { key, upload, .. } => (lossy(key), upload.to_string()),
        UploadEntry::CommonPrefix(prefix) => (lossy(prefix), String::new()),
    }
}

fn upload_checksum_elements(xml: &mut Xml, checksum: Option<(ChecksumAlgorithm, ChecksumType)>) {
    if let Some((algorithm, kind)) = checksum {
        xml.text("ChecksumAlgorithm", checksum::name(algorithm));
        xml.text("ChecksumType", checksum::kind_name(kind));
    }
}

fn part_element(xml: &mut Xml, part: &PartRecord) {
    xml.element("Part", |xml| {
        xml.value("PartNumber", part.number);
        xml.text("LastModified", iso(part.modified_ms));
        xml.text("ETag", format!("\"{}\"", part.etag));
        xml.value("Size", part.size);
        for sum in &part.checksums {
            xml.text(checksum::element(sum.algorithm), checksum::encode(sum, 0));
        }
    });
}

/// The client's list: not empty, in ascending order.
fn parse_parts(root: &xml::Element) -> S3Result<Vec<Named>> {
    let named = root.children.iter().map(|child| match child.name.as_str() {
        "Part" => parse_part(child),
        _ => Err(Code::MalformedXML.into()),
    });
    let named = named.collect::<S3Result<Vec<_>>>()?;
    if root.name != "CompleteMultipartUpload" || named.is_empty() || named.len() > PARTS_MAX {
        return Err(Code::MalformedXML.into());
    }
    if named.windows(2).any(|pair| pair[0].number >= pair[1].number) {
        return Err(Code::InvalidPartOrder.into());
    }
    Ok(named)
}

fn parse_part(part: &xml::Element) -> S3Result<Named> {
    let number = part.text("PartNumber").and_then(|text| text.parse().ok());
    let number = part_number(number.ok_or(Code::MalformedXML)?)?;
    let etag = part.text("ETag").ok_or(Code::MalformedXML)?.parse().ok();
    let mut checksums = Vec::new();
    for field in &part.children {
        match checksum::ALL.iter().find(|row| row.3 == field.name) {
            Some((algorithm, ..)) => {
                let text = part.text(&field.name).unwrap_or_default();
                checksums.push((*algorithm, checksum::decode(*algorithm, &text)?));
            }
            None if matches!(field.name.as_str(), "PartNumber" | "ETag") => {}
            None => return Err(Code::MalformedXML.into()),
        }
    }
    Ok(Named { number, etag, checksums })
}

fn bad_part(number: u16) -> S3Error {
    S3Error::from(Code::InvalidPart).fact("PartNumber", number.to_string())
}

/// Finds the named parts among those that are there, and computes what they make.
fn choose(named: &[Named], open: &Parts) -> S3Result<Whole> {
    let mut chosen = Vec::with_capacity(named.len());
    for name in named {
        let part = open.parts.iter().find(|part| part.number == name.number);
        let part = part.filter(|part| is_named(part, name)).ok_or_else(|| bad_part(name.number))?;
        chosen.push(part);
    }
    let but_last = chosen.iter().take(chosen.len() - 1);
    if let Some(small) = but_last.into_iter().find(|part| part.size < PART_BYTES_MIN) {
        return Err(S3Error::from(Code::EntityTooSmall)
            .fact("ProposedSize", small.size.to_string())
            .fact("MinSizeAllowed", PART_BYTES_MIN.to_string())
            .fact("PartNumber", small.number.to_string()));
    }
    whole(&chosen, open.record.checksum)
}

fn is_named(part: &PartRecord, name: &Named) -> bool {
    let same_sum = |(algorithm, value): &(ChecksumAlgorithm, Bytes)| {
        let stored = part.checksums.iter().find(|sum| sum.algorithm == *algorithm);
        stored.is_none_or(|sum| sum.value == *value)
    };
    name.etag == Some(part.etag) && name.checksums.iter().all(same_sum)
}

fn whole(
    chosen: &[&PartRecord],
    declared: Option<(ChecksumAlgorithm, ChecksumType)>,
) -> S3Result<Whole> {
    let mut md5 = Md5::new();
    chosen.iter().for_each(|part| md5.update(part.etag.md5));
    let parts = u32::try_from(chosen.len()).map_err(|_| Code::MalformedXML)?;
    let sum_of = |part: &PartRecord, algorithm| {
        part.checksums.iter().find(|sum| sum.algorithm == algorithm).cloned()
    };
    let mut checksums = Vec::new();
    if let Some((algorithm, kind)) = declared {
        let mut sums = Vec::with_capacity(chosen.len());
        for part in chosen {
            let sum = sum_of(part, algorithm).ok_or_else(|| bad_part(part.number))?;
            sums.push((sum.value, part.size));
        }
        checksums.extend(checksum::of_parts(algorithm, kind, &sums));
    }
    let summary = |part: &&PartRecord| PartSummary {
        number: part.number,
        size: part.size,
        checksum: declared.and_then(|(algorithm, _)| sum_of(part, algorithm)),
    };
    Ok(Whole {
        parts: chosen.iter().map(|part| (summary(part), part.object)).collect(),
        etag: Etag { md5: md5.finalize().into(), parts },
        checksums,
        size: chosen.iter().map(|part| part.size).sum(),
    })
}
