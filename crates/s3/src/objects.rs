//! Operations on objects: put, get, head, delete, delete many.

use crate::backend::{Deleted, Failure, Found, Place, PutObject};
use crate::body::{OBJECT_BYTES_MAX, Upload};
use crate::checksum;
use crate::condition;
use crate::description;
use crate::error::{Code, S3Error, S3Result};
use crate::handler::Handler;
use crate::operation::Operation;
use crate::request::parse_key;
use crate::response::{Answer, content, document, done, empty, refusal, set};
use crate::time::http_date;
use crate::versions::{DELETE_MARKER, not_read, parse_version, set_version};
use crate::xml::{self, Xml};
use ashlar_types::{
    Checksum, ObjectKey, ObjectRecord, RequestToken, Span, VersionName, WriteCondition,
};
use futures::StreamExt as _;
use http::StatusCode;

/// Most keys of one DeleteObjects.
const DELETES_MAX: usize = 1000;
/// How many of them are under way at once: enough to fill a batch of each range's log.
const DELETES_AT_ONCE: usize = 64;

/// A key or a version to be deleted, or why it cannot be.
struct Doomed {
    key: String,
    version: Option<String>,
    parsed: S3Result<(ObjectKey, Option<VersionName>)>,
    condition: WriteCondition,
}

impl Handler<'_> {
    pub(crate) async fn put_object(&self, body: Upload) -> S3Result<Answer> {
        check_size(body.length())?;
        let put = PutObject {
            place: self.place()?,
            condition: condition::of_write(&self.request)?,
            description: description::read(&self.request)?,
            token: self.token(),
        };
        let written = done(self.backend.put(put, body).await)?;
        let mut answer = empty(StatusCode::OK);
        set(&mut answer, "etag", format!("\"{}\"", written.etag));
        set_checksums(&mut answer, &written.checksums, 0);
        set_version(&mut answer, written.version);
        Ok(answer)
    }

    pub(crate) async fn get_object(&self) -> S3Result<Answer> {
        let version = self.version()?;
        let place = self.place()?;
        let is_head = self.operation == Operation::HeadObject;
        let wanted = self.span()?;
        let span = match wanted {
            Span::All if is_head => Span::Nothing,
            other => other,
        };
        let mut found = match self.backend.get(&place, version, span).await {
            Err(failure @ (Failure::SpanOutside { .. } | Failure::NoSuchPart)) => {
                // conditions come before the range: RFC 9110, 13.2.2
                self.check_before_range(&place, version).await?;
                return Err(refusal(&failure));
            }
            other => other.map_err(|failure| not_read(&failure, version))?,
        };
        condition::check_read(&self.request, &found.record)?;
        let mut is_part = !matches!(wanted, Span::All);
        if is_part && !condition::range_holds(&self.request, &found.record)? {
            let span = if is_head { Span::Nothing } else { Span::All };
            found = done(self.backend.get(&place, version, span).await)?;
            is_part = false;
        }
        self.object_answer(found, wanted, is_part, is_head)
    }

    async fn check_before_range(
        &self,
        place: &Place,
        version: Option<VersionName>,
    ) -> S3Result<()> {
        if condition::reads_conditionally(&self.request) {
            let whole = done(self.backend.get(place, version, Span::Nothing).await)?;
            condition::check_read(&self.request, &whole.record)?;
        }
        Ok(())
    }

    /// Which bytes are wanted. What is not one well-formed range is no range (RFC 9110, 14.2): the whole is answered.
    fn span(&self) -> S3Result<Span> {
        let range = self.request.header("range")?;
        let Some(part) = self.request.number("partNumber")? else {
            return Ok(range.and_then(parse_range).unwrap_or(Span::All));
        };
        if range.is_some() {
            let message = "Range and partNumber cannot be asked for together";
            return Err(S3Error::new(Code::InvalidRequest, message));
        }
        Ok(Span::Part(part_number(part)?))
    }

    fn object_answer(
        &self,
        found: Found,
        wanted: Span,
        is_part: bool,
        is_head: bool,
    ) -> S3Result<Answer> {
        let Found { record, version, from, to, content: bytes } = found;
        let (from, to) = if is_part { (from, to) } else { (0, record.size) };
        let status = if is_part { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        let mut answer = if is_head { empty(status) } else { content(status, bytes) };
        describe(&mut answer, &record);
        set_version(&mut answer, version);
        set(&mut answer, "accept-ranges", "bytes");
        set(&mut answer, "content-length", (to - from).to_string());
        if is_part && to > from {
            set(&mut answer, "content-range", format!("bytes {from}-{}/{}", to - 1, record.size));
        }
        if matches!(wanted, Span::Part(_)) && !record.parts.is_empty() {
            set(&mut answer, "x-amz-mp-parts-count", record.parts.len().to_string());
        }
        self.set_read_checksums(&mut answer, &record, if is_part { wanted } else { Span::All })?;
        for (name, value) in &self.request.query.0 {
            if let Some(header) = name.strip_prefix("response-") {
                set(&mut answer, header, value);
            }
        }
        Ok(answer)
    }

    /// Never a whole object's checksum on a range: clients compare it with what they got.
    fn set_read_checksums(
        &self,
        answer: &mut Answer,
        record: &ObjectRecord,
        span: Span,
    ) -> S3Result<()> {
        match self.request.header("x-amz-checksum-mode")? {
            None => return Ok(()),
            Some("ENABLED") => {}
            Some(other) => {
                let message = format!("x-amz-checksum-mode is ENABLED or absent, not '{other}'");
                return Err(S3Error::new(Code::InvalidArgument, message));
            }
        }
        match span {
            Span::All | Span::Nothing => {
                set_checksums(answer, &record.checksums, record.parts.len());
            }
            Span::Part(number) => {
                let part = record.parts.iter().find(|part| part.number == number);
                if let Some(sum) = part.and_then(|part| part.checksum.as_ref()) {
                    let value = checksum::encode(
                        &Checksum { kind: ashlar_types::ChecksumType::FullObject, ..sum.clone() },
                        0,
                    );
                    set(answer, checksum::header(sum.algorithm), value);
                }
            }
            Span::Between { .. } | Span::From(_) | Span::Last(_) => {}
        }
        Ok(())
    }

    pub(crate) async fn delete_object(&self) -> S3Result<Answer> {
        let condition = condition::of_write(&self.request)?;
        let (place, version) = (self.place()?, self.version()?);
        let deleted = self.delete(&place, version, condition, self.token()).await?;
        let mut answer = empty(StatusCode::NO_CONTENT);
        set_version(&mut answer, deleted.version);
        if deleted.marker {
            set(&mut answer, DELETE_MARKER, "true");
        }
        Ok(answer)
    }

    /// Deletes the object of a key, or the version that is named.
    async fn delete(
        &self,
        place: &Place,
        version: Option<VersionName>,
        condition: WriteCondition,
        token: Option<RequestToken>,
    ) -> S3Result<Deleted> {
        let Some(version) = version else {
            return done(self.backend.delete(place, condition, token).await);
        };
        if condition != WriteCondition::Always {
            return Err(S3Error::not_implemented("a condition on deleting a named version"));
        }
        done(self.backend.delete_version(place, version).await)
    }

    pub(crate) async fn delete_objects(&self, body: Upload) -> S3Result<Answer> {
        let root = xml::parse(&body.xml().await?)?;
        let (doomed, quiet) = parse_deletes(&root)?;
        // a bucket that is not there is one error, not a thousand
        done(self.backend.bucket(self.bucket()?).await)?;
        let outcomes: Vec<(Doomed, S3Result<Deleted>)> = futures::stream::iter(doomed)
            .map(|doomed| async {
                let outcome = self.delete_one(&doomed).await;
                (doomed, outcome)
            })
            .buffered(DELETES_AT_ONCE)
            .collect()
            .await;
        Ok(document("DeleteResult", |xml| {
            for (doomed, outcome) in &outcomes {
                match outcome {
                    Ok(_) if quiet => {}
                    Ok(deleted) => xml.element("Deleted", |xml| {
                        name_deleted(xml, doomed);
                        name_marker(xml, deleted);
                    }),
                    Err(error) => xml.element("Error", |xml| {
                        name_deleted(xml, doomed);
                        xml.text("Code", error.code.as_str());
                        xml.text("Message", &error.message);
                    }),
                }
            }
        }))
    }

    async fn delete_one(&self, doomed: &Doomed) -> S3Result<Deleted> {
        let (key, version) = doomed.parsed.clone()?;
        let place = Place { bucket: self.bucket()?.clone(), key };
        self.delete(&place, version, doomed.condition.clone(), None).await
    }
}

fn name_deleted(xml: &mut Xml, doomed: &Doomed) {
    xml.text("Key", &doomed.key);
    if let Some(version) = &doomed.version {
        xml.text("VersionId", version);
    }
}

/// The delete marker that was made or removed.
fn name_marker(xml: &mut Xml, deleted: &Deleted) {
    if let (true, Some(marker)) = (deleted.marker, deleted.version) {
        xml.value("DeleteMarker", true);
        xml.value("DeleteMarkerVersionId", marker);
    }
}

fn parse_deletes(root: &xml::Element) -> S3Result<(Vec<Doomed>, bool)> {
    let malformed = || S3Error::from(Code::MalformedXML);
    if root.name != "Delete" {
        return Err(malformed());
    }
    let mut doomed = Vec::new();
    let mut quiet = false;
    for child in &root.children {
        match child.name.as_str() {
            "Object" => doomed.push(parse_delete(child)?),
            "Quiet" => quiet = root.text("Quiet").as_deref() == Some("true"),
            _ => return Err(malformed()),
        }
    }
    if doomed.is_empty() || doomed.len() > DELETES_MAX {
        return Err(malformed());
    }
    Ok((doomed, quiet))
}

fn parse_delete(object: &xml::Element) -> S3Result<Doomed> {
    let mut condition = WriteCondition::Always;
    for field in &object.children {
        match field.name.as_str() {
            "Key" | "VersionId" => {}
            "ETag" => {
                condition = condition::matches(&object.text("ETag").unwrap_or_default());
            }
            other => return Err(S3Error::not_implemented(format!("the element {other}"))),
        }
    }
    let key = object.raw_text("Key").ok_or(Code::MalformedXML)?.to_owned();
    let version = object.text("VersionId");
    let named = version.as_deref().map(parse_version).transpose();
    let parsed = parse_key(&key).and_then(|key| named.map(|version| (key, version)));
    Ok(Doomed { key, version, parsed, condition })
}

/// Headers that every answer about an object has.
fn describe(answer: &mut Answer, record: &ObjectRecord) {
    for (name, value) in description::headers(&record.description) {
        set(answer, &name, value);
    }
    set(answer, "etag", format!("\"{}\"", record.etag));
    set(answer, "last-modified", http_date(record.modified_ms));
}

/// Sets the checksums and what they cover; `parts` of a multipart object.
pub(crate) fn set_checksums(answer: &mut Answer, checksums: &[Checksum], parts: usize) {
    for sum in checksums {
        set(answer, checksum::header(sum.algorithm), checksum::encode(sum, parts));
        set(answer, "x-amz-checksum-type", checksum::kind_name(sum.kind));
    }
}

pub(crate) fn check_size(bytes: u64) -> S3Result<()> {
    if bytes <= OBJECT_BYTES_MAX {
        return Ok(());
    }
    let message = format!("{bytes} bytes are more than the {OBJECT_BYTES_MAX} of one request");
    Err(S3Error::new(Code::EntityTooLarge, message)
        .fact("ProposedSize", bytes.to_string())
        .fact("MaxSizeAllowed", OBJECT_BYTES_MAX.to_string()))
}

/// A part's number: 1 to 10,000.
pub(crate) fn part_number(number: u64) -> S3Result<u16> {
    let number = u16::try_from(number).ok().filter(|number| (1..=10_000).contains(number));
    number.ok_or_else(|| S3Error::new(Code::InvalidArgument, "a part number is 1 to 10000"))
}

/// One range of bytes, or nothing that is one.
pub(crate) fn parse_range(text: &str) -> Option<Span> {
    let (first, last) = text.strip_prefix("bytes=")?.trim().split_once('-')?;
    let number = |text: &str| {
        let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // beyond any object, so no more than its end
        is_digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    match (first, last) {
        ("", last) => Some(Span::Last(number(last)?)),
        (first, "") => Some(Span::From(number(first)?)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Span::Between { first, last })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_one_range_is_none() {
        assert_eq!(parse_range("bytes=0-9"), Some(Span::Between { first: 0, last: 9 }));
        assert_eq!(parse_range("bytes=5-"), Some(Span::From(5)));
        assert_eq!(parse_range("bytes=-5"), Some(Span::Last(5)));
        for none in
            ["bytes=0-1,3-4", "bytes=9-0", "bytes=-", "bytes=a-b", "lines=0-1", "bytes=+1-2", ""]
        {
            assert_eq!(parse_range(none), None, "{none}");
        }
    }
}
