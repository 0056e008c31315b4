//! Conditions: of reads and copy sources, judged here against a record; of writes, only parsed here and judged where
//! the write is ordered (C3).

use crate::error::{Code, S3Error, S3Result};
use crate::request::Request;
use crate::time::{http_date, parse_http_date};
use ashlar_types::{Etag, ObjectRecord, WriteCondition};

/// The four headers of a read's condition.
struct Headers<'a> {
    matches: Option<&'a str>,
    none_match: Option<&'a str>,
    modified_since: Option<i64>,
    unmodified_since: Option<i64>,
}

impl<'a> Headers<'a> {
    fn of(request: &'a Request, prefix: &str) -> S3Result<Self> {
        let header = |name: &str| request.header(&format!("{prefix}{name}"));
        let date = |name: &str| header(name).map(|text| text.and_then(parse_http_date));
        Ok(Self {
            matches: header("if-match")?,
            none_match: header("if-none-match")?,
            modified_since: date("if-modified-since")?,
            unmodified_since: date("if-unmodified-since")?,
        })
    }

    /// The order is that of RFC 9110, 13.2.2: an ETag, where there is one, stands in for the date.
    fn judge(&self, record: &ObjectRecord) -> Verdict {
        let etag = record.etag.to_string();
        let modified = i64::try_from(record.modified_ms / 1000).unwrap_or(i64::MAX);
        let held = match (self.matches, self.unmodified_since) {
            (Some(list), _) => names(list, &etag),
            (None, Some(date)) => modified <= date,
            (None, None) => true,
        };
        if !held {
            return Verdict::Failed;
        }
        let is_new = match (self.none_match, self.modified_since) {
            (Some(list), _) => !names(list, &etag),
            (None, Some(date)) => modified > date,
            (None, None) => true,
        };
        if is_new { Verdict::Holds } else { Verdict::NotModified }
    }
}

enum Verdict {
    Holds,
    Failed,
    NotModified,
}

/// Whether a list of ETags, with or without quotes, names this one.
fn names(list: &str, etag: &str) -> bool {
    list.split(',').map(bare).any(|name| name == "*" || name == etag)
}

fn bare(tag: &str) -> &str {
    let tag = tag.trim();
    let tag = tag.strip_prefix("W/").unwrap_or(tag);
    tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).unwrap_or(tag)
}

/// Whether a request has conditions of a read at all.
pub(crate) fn reads_conditionally(request: &Request) -> bool {
    ["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"]
        .iter()
        .any(|name| request.headers.contains_key(*name))
}

/// Judges the conditions of GET and HEAD.
pub(crate) fn check_read(request: &Request, record: &ObjectRecord) -> S3Result<()> {
    match Headers::of(request, "")?.judge(record) {
        Verdict::Holds => Ok(()),
        Verdict::Failed => Err(Code::PreconditionFailed.into()),
        Verdict::NotModified => Err(S3Error::from(Code::NotModified)
            .header("etag", format!("\"{}\"", record.etag))
            .header("last-modified", http_date(record.modified_ms))),
    }
}

/// Judges the conditions on the source of a copy.
pub(crate) fn check_copy_source(request: &Request, record: &ObjectRecord) -> S3Result<()> {
    match Headers::of(request, "x-amz-copy-source-")?.judge(record) {
        Verdict::Holds => Ok(()),
        Verdict::Failed | Verdict::NotModified => Err(Code::PreconditionFailed.into()),
    }
}

/// Whether `If-Range` (if it is there) names this content.
pub(crate) fn range_holds(request: &Request, record: &ObjectRecord) -> S3Result<bool> {
    let Some(text) = request.header("if-range")? else { return Ok(true) };
    let modified = i64::try_from(record.modified_ms / 1000).unwrap_or(i64::MAX);
    Ok(names(text, &record.etag.to_string()) || parse_http_date(text) == Some(modified))
}

/// The condition of a write.
pub(crate) fn of_write(request: &Request) -> S3Result<WriteCondition> {
    match (request.header("if-match")?, request.header("if-none-match")?) {
        (None, None) => Ok(WriteCondition::Always),
        (None, Some("*")) => Ok(WriteCondition::Absent),
        (None, Some(_)) => {
            Err(S3Error::not_implemented("If-None-Match with anything but '*' on a write"))
        }
        (Some(list), None) => Ok(matches(list)),
        (Some(_), Some(_)) => {
            Err(S3Error::not_implemented("If-Match together with If-None-Match on a write"))
        }
    }
}

/// What `If-Match` asks for.
pub(crate) fn matches(list: &str) -> WriteCondition {
    if list.split(',').any(|tag| bare(tag) == "*") {
        return WriteCondition::Present;
    }
    let etags: Vec<Etag> = list.split(',').filter_map(|tag| bare(tag).parse().ok()).collect();
    if etags.is_empty() { WriteCondition::MatchesNothing } else { WriteCondition::Matches(etags) }
}
