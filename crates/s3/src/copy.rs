//! Copies: the source is read and written like any upload. Only a copy onto itself that replaces what is said of the
//! object moves no bytes; where versions are kept, that one too makes a new object beside the old one.

use crate::backend::{Failure, Found, Place, PutObject, Redescribe};
use crate::body::{OBJECT_BYTES_MAX, Upload};
use crate::checksum;
use crate::condition;
use crate::description;
use crate::error::{Code, S3Error, S3Result};
use crate::handler::Handler;
use crate::objects::{parse_range, part_number};
use crate::request::{Query, parse_bucket, parse_key};
use crate::response::{Answer, document, done, refusal, set};
use crate::time::iso;
use crate::versions::{not_copied, parse_version, set_version};
use crate::xml::Xml;
use ashlar_types::{Checksum, ChecksumAlgorithm, Description, ObjectRecord, Span, VersionName};
use percent_encoding::percent_decode_str;

/// How often a copy onto itself is begun anew because the object changed in between.
const TRIES_MAX: usize = 4;

/// Where a copy comes from: a version of a key, or its newest one.
struct Source {
    place: Place,
    version: Option<VersionName>,
}

impl Handler<'_> {
    fn source(&self) -> S3Result<Source> {
        let bad =
            |what: &str| S3Error::new(Code::InvalidArgument, format!("x-amz-copy-source {what}"));
        let text = self.request.header("x-amz-copy-source")?.ok_or_else(|| bad("is missing"))?;
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let path = percent_decode_str(path).decode_utf8().map_err(|_| bad("is not UTF-8"))?;
        let path = path.strip_prefix('/').unwrap_or(&path);
        let (bucket, key) = path.split_once('/').ok_or_else(|| bad("is not bucket/key"))?;
        let version = match Query::parse(query)?.0.as_slice() {
            [] => None,
            [(name, id)] if name == "versionId" => Some(parse_version(id)?),
            _ => return Err(S3Error::not_implemented(format!("'{query}' of a copy source"))),
        };
        let place = Place { bucket: parse_bucket(bucket)?, key: parse_key(key)? };
        Ok(Source { place, version })
    }

    async fn read_source(&self, source: &Source, span: Span) -> S3Result<Found> {
        let found = self.backend.get(&source.place, source.version, span).await;
        let found = found.map_err(|failure| not_copied(&failure, source.version))?;
        condition::check_copy_source(&self.request, &found.record)?;
        Ok(found)
    }

    pub(crate) async fn copy_object(&self) -> S3Result<Answer> {
        let (source, target) = (self.source()?, self.place()?);
        let described = description::read(&self.request)?;
        let replaces = self.replaces_description()?;
        self.check_tagging_directive()?;
        let asked = self.request.header("x-amz-checksum-algorithm")?;
        let asked = asked.map(checksum::parse_name).transpose()?;
        for _ in 0..TRIES_MAX {
            let found = self.read_source(&source, Span::All).await?;
            let (from, keeps_versions) = (found.version, found.version.is_some());
            let onto_itself = source.place == target;
            // a version that is named becomes the newest again: that is a change
            let restores = keeps_versions && source.version.is_some();
            if onto_itself && !replaces && !restores {
                return Err(useless_copy());
            }
            let keeps_bytes = asked.is_none_or(|algorithm| has_checksum(&found.record, algorithm));
            let written = if onto_itself && keeps_bytes && !keeps_versions {
                self.redescribe(&target, &found.record, &described).await
            } else {
                let described = if replaces { &described } else { &found.record.description };
                let described = described.clone();
                self.copy_bytes(target.clone(), found, described, asked).await
            };
            match written {
                Err(Failure::Changed) => {}
                other => {
                    let written = done(other)?;
                    let mut answer = copied("CopyObjectResult", &written, from);
                    set_version(&mut answer, written.version);
                    return Ok(answer);
                }
            }
        }
        Err(refusal(&Failure::Changed))
    }

    async fn redescribe(
        &self,
        place: &Place,
        record: &ObjectRecord,
        description: &Description,
    ) -> Result<crate::Written, Failure> {
        let condition = condition::of_write(&self.request)?;
        let redescribe = Redescribe {
            place: place.clone(),
            condition,
            generation: record.generation,
            description: description.clone(),
            checksums: record.checksums.clone(),
            token: self.token(),
        };
        self.backend.redescribe(redescribe).await
    }

    async fn copy_bytes(
        &self,
        place: Place,
        source: Found,
        description: Description,
        asked: Option<ChecksumAlgorithm>,
    ) -> Result<crate::Written, Failure> {
        if source.record.size > OBJECT_BYTES_MAX {
            let message = "the source is larger than the 5 GiB of one copy: copy it in parts";
            return Err(S3Error::new(Code::InvalidRequest, message).into());
        }
        let mut body = Upload::copied(source.content, source.record.size);
        let kept = source.record.checksums.first().map(|sum| sum.algorithm);
        if let Some(algorithm) = asked.or(kept) {
            body.compute(algorithm);
        }
        let condition = condition::of_write(&self.request)?;
        self.backend
            .put(PutObject { place, condition, description, token: self.token() }, body)
            .await
    }

    fn replaces_description(&self) -> S3Result<bool> {
        match self.request.header("x-amz-metadata-directive")? {
            None | Some("COPY") => Ok(false),
            Some("REPLACE") => Ok(true),
            Some(_) => {
                let message = "x-amz-metadata-directive is COPY or REPLACE";
                Err(S3Error::new(Code::InvalidArgument, message))
            }
        }
    }

    /// There are no tags, so copying and replacing them (by none) come to the same.
    fn check_tagging_directive(&self) -> S3Result<()> {
        match self.request.header("x-amz-tagging-directive")? {
            None | Some("COPY" | "REPLACE") => Ok(()),
            Some(_) => {
                let message = "x-amz-tagging-directive is COPY or REPLACE";
                Err(S3Error::new(Code::InvalidArgument, message))
            }
        }
    }

    pub(crate) async fn upload_part_copy(&self) -> S3Result<Answer> {
        let (source, target) = (self.source()?, self.place()?);
        let upload = self.upload_id()?;
        let number = part_number(self.request.number("partNumber")?.unwrap_or_default())?;
        let open = done(self.backend.parts(&target, upload, 0, 1).await)?;
        let span = match self.request.header("x-amz-copy-source-range")? {
            None => Span::All,
            Some(text) => match parse_range(text) {
                Some(span @ Span::Between { .. }) => span,
                _ => {
                    let message = "x-amz-copy-source-range is bytes=first-last";
                    return Err(S3Error::new(Code::InvalidArgument, message));
                }
            },
        };
        let found = self.read_source(&source, span).await?;
        let from = found.version;
        check_span(span, found.record.size)?;
        crate::objects::check_size(found.to - found.from)?;
        let mut body = Upload::copied(found.content, found.to - found.from);
        if let Some((algorithm, _)) = open.record.checksum {
            body.compute(algorithm);
        }
        let written = done(self.backend.put_part(&target, upload, number, body).await)?;
        Ok(copied("CopyPartResult", &written, from))
    }
}

/// Unlike a GET's, the range of a copied part must lie in the source.
fn check_span(span: Span, size: u64) -> S3Result<()> {
    match span {
        Span::Between { last, .. } if last >= size => {
            let message = format!("the range does not lie in the source, which has {size} bytes");
            Err(S3Error::new(Code::InvalidArgument, message))
        }
        _ => Ok(()),
    }
}

fn has_checksum(record: &ObjectRecord, algorithm: ChecksumAlgorithm) -> bool {
    record.checksums.iter().any(|sum| sum.algorithm == algorithm)
}

fn useless_copy() -> S3Error {
    let message = "a copy of an object onto itself must change something: \
                   use x-amz-metadata-directive: REPLACE";
    S3Error::new(Code::InvalidRequest, message)
}

/// `from` is the version that was copied.
fn copied(root: &str, written: &crate::Written, from: Option<VersionName>) -> Answer {
    let mut answer = document(root, |xml| {
        xml.text("LastModified", iso(written.modified_ms));
        xml.text("ETag", format!("\"{}\"", written.etag));
        checksum_elements(xml, &written.checksums, 0);
    });
    if let Some(version) = from {
        set(&mut answer, "x-amz-copy-source-version-id", version.to_string());
    }
    answer
}

/// Checksums as elements.
pub(crate) fn checksum_elements(xml: &mut Xml, checksums: &[Checksum], parts: usize) {
    for sum in checksums {
        xml.text(checksum::element(sum.algorithm), checksum::encode(sum, parts));
        xml.text("ChecksumType", checksum::kind_name(sum.kind));
    }
}
