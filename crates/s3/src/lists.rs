//! Lists of keys: ListObjects in both its versions.
//!
//! The state of a list is the last entry shown, and nothing on the server: a token is that entry, packed so that
//! nobody builds on what is in it.

use crate::backend::List;
use crate::checksum;
use crate::error::{Code, S3Error, S3Result};
use crate::handler::Handler;
use crate::response::{Answer, document, done};
use crate::time::iso;
use crate::xml::Xml;
use ashlar_types::{ListEntry, PAGE_ENTRIES_MAX, Page, Summary};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What `encoding-type=url` leaves as it is.
const KEPT: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/').remove(b'*');
/// The first byte of a token: its format.
const TOKEN_FORMAT: u8 = 1;

/// How a list prints keys.
#[derive(Clone, Copy)]
pub(crate) struct Names {
    pub(crate) url: bool,
}

impl Names {
    pub(crate) fn print(self, xml: &mut Xml, element: &str, name: &str) {
        if self.url {
            xml.text(element, utf8_percent_encode(name, KEPT).to_string());
        } else {
            xml.text(element, name);
        }
    }

    pub(crate) fn print_common(self, xml: &mut Xml, prefix: &[u8]) {
        xml.element("CommonPrefixes", |xml| self.print(xml, "Prefix", &lossy(prefix)));
    }

    pub(crate) fn print_type(self, xml: &mut Xml) {
        if self.url {
            xml.text("EncodingType", "url");
        }
    }
}

/// What the requests of all lists have in common.
pub(crate) struct Asked {
    pub(crate) prefix: String,
    pub(crate) delimiter: Option<String>,
    pub(crate) limit: u32,
    pub(crate) names: Names,
}

impl Handler<'_> {
    /// Reads the common parameters; `limit` is the name of the most entries.
    pub(crate) fn asked(&self, limit: &str) -> S3Result<Asked> {
        let query = &self.request.query;
        let url = match query.get("encoding-type") {
            None | Some("") => false,
            Some("url") => true,
            Some(_) => return Err(S3Error::new(Code::InvalidArgument, "encoding-type is 'url'")),
        };
        let most = u64::from(PAGE_ENTRIES_MAX);
        let limit = self.request.number(limit)?.unwrap_or(most).min(most);
        Ok(Asked {
            prefix: query.get("prefix").unwrap_or_default().to_owned(),
            delimiter: query.get("delimiter").filter(|text| !text.is_empty()).map(str::to_owned),
            limit: u32::try_from(limit).unwrap_or(PAGE_ENTRIES_MAX),
            names: Names { url },
        })
    }

    async fn page(&self, asked: &Asked, after: &[u8]) -> S3Result<Page<ListEntry>> {
        if asked.limit == 0 {
            done(self.backend.bucket(self.bucket()?).await)?;
            return Ok(Page { entries: Vec::new(), more: false });
        }
        done(self.backend.list(self.list_behind(asked, after)?).await)
    }

    /// What a backend is asked for.
    pub(crate) fn list_behind(&self, asked: &Asked, after: &[u8]) -> S3Result<List> {
        Ok(List {
            bucket: self.bucket()?.clone(),
            prefix: asked.prefix.clone(),
            delimiter: asked.delimiter.clone(),
            after: after.to_vec(),
            limit: asked.limit,
        })
    }

    /// What all lists of objects begin with.
    pub(crate) fn head(&self, xml: &mut Xml, asked: &Asked, more: bool) -> S3Result<()> {
        xml.text("Name", self.bucket()?.as_str());
        asked.names.print(xml, "Prefix", &asked.prefix);
        if let Some(delimiter) = &asked.delimiter {
            asked.names.print(xml, "Delimiter", delimiter);
        }
        asked.names.print_type(xml);
        xml.value("MaxKeys", asked.limit);
        xml.value("IsTruncated", more);
        Ok(())
    }

    pub(crate) async fn list_objects(&self) -> S3Result<Answer> {
        let asked = self.asked("max-keys")?;
        let marker = self.request.query.get("marker").unwrap_or_default();
        let page = self.page(&asked, marker.as_bytes()).await?;
        let mut head = Ok(());
        let answer = document("ListBucketResult", |xml| {
            head = self.head(xml, &asked, page.more);
            asked.names.print(xml, "Marker", marker);
            // without a delimiter the last key says the same
            if let (true, Some(last), Some(_)) = (page.more, page.entries.last(), &asked.delimiter)
            {
                asked.names.print(xml, "NextMarker", &name_of(last));
            }
            self.contents(xml, &asked, &page.entries, true);
        });
        head.map(|()| answer)
    }

    pub(crate) async fn list_objects_v2(&self) -> S3Result<Answer> {
        let asked = self.asked("max-keys")?;
        let query = &self.request.query;
        let token = query.get("continuation-token");
        let start = query.get("start-after").filter(|text| !text.is_empty());
        let after = match token {
            Some(token) => unpack(token)?,
            None => start.unwrap_or_default().as_bytes().to_vec(),
        };
        let with_owner = query.get("fetch-owner") == Some("true");
        let page = self.page(&asked, &after).await?;
        let mut head = Ok(());
        let answer = document("ListBucketResult", |xml| {
            head = self.head(xml, &asked, page.more);
            xml.value("KeyCount", page.entries.len());
            if let Some(token) = token {
                xml.text("ContinuationToken", token);
            }
            if let Some(start) = start {
                asked.names.print(xml, "StartAfter", start);
            }
            if let (true, Some(last)) = (page.more, page.entries.last()) {
                xml.text("NextContinuationToken", pack(name_bytes(last)));
            }
            self.contents(xml, &asked, &page.entries, with_owner);
        });
        head.map(|()| answer)
    }

    fn contents(&self, xml: &mut Xml, asked: &Asked, entries: &[ListEntry], with_owner: bool) {
        for (name, summary) in keys(entries) {
            xml.element("Contents", |xml| {
                asked.names.print(xml, "Key", &name);
                self.summary(xml, summary, with_owner);
            });
        }
        prefixes(xml, asked, entries);
    }

    pub(crate) fn summary(&self, xml: &mut Xml, summary: &Summary, with_owner: bool) {
        xml.text("LastModified", iso(summary.modified_ms));
        xml.text("ETag", format!("\"{}\"", summary.etag));
        for (algorithm, kind) in &summary.checksums {
            xml.text("ChecksumAlgorithm", checksum::name(*algorithm));
            xml.text("ChecksumType", checksum::kind_name(*kind));
        }
        xml.value("Size", summary.size);
        if with_owner {
            self.owner(xml, "Owner");
        }
        xml.text("StorageClass", "STANDARD");
    }
}

fn keys(entries: &[ListEntry]) -> impl Iterator<Item = (String, &Summary)> {
    entries.iter().filter_map(|entry| match entry {
        ListEntry::Key { key, summary } => Some((lossy(key), summary)),
        ListEntry::CommonPrefix(_) => None,
    })
}

fn prefixes(xml: &mut Xml, asked: &Asked, entries: &[ListEntry]) {
    for entry in entries {
        if let ListEntry::CommonPrefix(prefix) = entry {
            asked.names.print_common(xml, prefix);
        }
    }
}

/// Keys are UTF-8. A common prefix may end within a letter where the delimiter is only part of one: it never is.
pub(crate) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn name_bytes(entry: &ListEntry) -> &[u8] {
    match entry {
        ListEntry::Key { key, .. } => key,
        ListEntry::CommonPrefix(prefix) => prefix,
    }
}

fn name_of(entry: &ListEntry) -> String {
    lossy(name_bytes(entry))
}

fn pack(name: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode([&[TOKEN_FORMAT], name].concat())
}

fn unpack(token: &str) -> S3Result<Vec<u8>> {
    match URL_SAFE_NO_PAD.decode(token).as_deref() {
        Ok([TOKEN_FORMAT, name @ ..]) => Ok(name.to_vec()),
        _ => Err(S3Error::new(Code::InvalidArgument, "the continuation token is not valid")),
    }
}
