//! Versions of objects: whether a bucket keeps them, how a request names one, what answers say of them, their list.
//!
//! A bucket that never kept versions says nothing of them, as S3 does. A delete marker is a version that cannot be read:
//! where it is the newest there is no such key, and whoever names it is told what it is.

use crate::backend::{Failure, ListVersions};
use crate::body::Upload;
use crate::error::{Code, S3Error, S3Result};
use crate::handler::Handler;
use crate::lists::{Asked, lossy};
use crate::response::{Answer, document, done, empty, refusal, set};
use crate::time::{http_date, iso};
use crate::xml::{self, Xml};
use ashlar_types::{Page, VersionEntry, VersionName, Versioning};
use http::StatusCode;

/// Which version an answer is about.
pub(crate) const VERSION_ID: &str = "x-amz-version-id";
/// That this is a delete marker.
pub(crate) const DELETE_MARKER: &str = "x-amz-delete-marker";

impl Handler<'_> {
    /// A bucket that never kept versions says neither Enabled nor Suspended.
    pub(crate) async fn bucket_versioning(&self) -> S3Result<Answer> {
        let bucket = done(self.backend.bucket(self.bucket()?).await)?;
        Ok(document("VersioningConfiguration", |xml| match bucket.row.versioning {
            Versioning::Off => {}
            Versioning::On => xml.text("Status", "Enabled"),
            Versioning::Suspended => xml.text("Status", "Suspended"),
        }))
    }

    pub(crate) async fn set_bucket_versioning(&self, body: Upload) -> S3Result<Answer> {
        let versioning = parse_versioning(&xml::parse(&body.xml().await?)?)?;
        done(self.backend.set_versioning(self.bucket()?, versioning).await)?;
        Ok(empty(StatusCode::OK))
    }

    /// The version that the request names; `None`: the newest.
    pub(crate) fn version(&self) -> S3Result<Option<VersionName>> {
        self.request.query.get("versionId").map(parse_version).transpose()
    }

    pub(crate) async fn list_versions(&self) -> S3Result<Answer> {
        let asked = self.asked("max-keys")?;
        let query = &self.request.query;
        let marker = query.get("key-marker").unwrap_or_default();
        let id_marker = query.get("version-id-marker").unwrap_or_default();
        let page = self.page_of_versions(&asked, marker, id_marker).await?;
        let mut head = Ok(());
        let answer = document("ListVersionsResult", |xml| {
            head = self.head(xml, &asked, page.more);
            asked.names.print(xml, "KeyMarker", marker);
            xml.text("VersionIdMarker", id_marker);
            if let (true, Some(last)) = (page.more, page.entries.last()) {
                next_markers(xml, &asked, last);
            }
            page.entries.iter().for_each(|entry| self.version_element(xml, &asked, entry));
            common_prefixes(xml, &asked, &page.entries);
        });
        head.map(|()| answer)
    }

    async fn page_of_versions(
        &self,
        asked: &Asked,
        marker: &str,
        id_marker: &str,
    ) -> S3Result<Page<VersionEntry>> {
        let after_version = match (marker, id_marker) {
            (_, "") => None,
            ("", _) => {
                let message = "a version-id-marker needs a key-marker";
                return Err(S3Error::new(Code::InvalidArgument, message));
            }
            (_, id) => Some(parse_id("version-id-marker", id)?),
        };
        if asked.limit == 0 {
            done(self.backend.bucket(self.bucket()?).await)?;
            return Ok(Page { entries: Vec::new(), more: false });
        }
        let list = self.list_behind(asked, marker.as_bytes())?;
        done(self.backend.list_versions(ListVersions { list, after_version }).await)
    }

    fn version_element(&self, xml: &mut Xml, asked: &Asked, entry: &VersionEntry) {
        match entry {
            VersionEntry::Object { key, version, latest, summary } => {
                xml.element("Version", |xml| {
                    name_version(xml, asked, key, *version, *latest);
                    self.summary(xml, summary, true);
                });
            }
            VersionEntry::Marker { key, version, latest, modified_ms } => {
                xml.element("DeleteMarker", |xml| {
                    name_version(xml, asked, key, *version, *latest);
                    xml.text("LastModified", iso(*modified_ms));
                    self.owner(xml, "Owner");
                });
            }
            VersionEntry::CommonPrefix(_) => {}
        }
    }
}

fn name_version(xml: &mut Xml, asked: &Asked, key: &[u8], version: VersionName, latest: bool) {
    asked.names.print(xml, "Key", &lossy(key));
    xml.value("VersionId", version);
    xml.value("IsLatest", latest);
}

fn next_markers(xml: &mut Xml, asked: &Asked, last: &VersionEntry) {
    match last {
        VersionEntry::Object { key, version, .. } | VersionEntry::Marker { key, version, .. } => {
            asked.names.print(xml, "NextKeyMarker", &lossy(key));
            xml.value("NextVersionIdMarker", version);
        }
        VersionEntry::CommonPrefix(prefix) => {
            asked.names.print(xml, "NextKeyMarker", &lossy(prefix));
        }
    }
}

fn common_prefixes(xml: &mut Xml, asked: &Asked, entries: &[VersionEntry]) {
    for entry in entries {
        if let VersionEntry::CommonPrefix(prefix) = entry {
            asked.names.print_common(xml, prefix);
        }
    }
}

fn parse_versioning(root: &xml::Element) -> S3Result<Versioning> {
    let malformed = || S3Error::from(Code::MalformedXML);
    let is_known = |child: &xml::Element| matches!(child.name.as_str(), "Status" | "MfaDelete");
    if root.name != "VersioningConfiguration" || !root.children.iter().all(is_known) {
        return Err(malformed());
    }
    match root.text("MfaDelete").as_deref() {
        None | Some("Disabled") => {}
        Some("Enabled") => return Err(S3Error::not_implemented("MFA delete")),
        Some(_) => return Err(malformed()),
    }
    match root.text("Status").as_deref() {
        Some("Enabled") => Ok(Versioning::On),
        Some("Suspended") => Ok(Versioning::Suspended),
        _ => Err(malformed()),
    }
}

/// Reads a version id.
pub(crate) fn parse_version(text: &str) -> S3Result<VersionName> {
    parse_id("versionId", text)
}

fn parse_id(argument: &str, text: &str) -> S3Result<VersionName> {
    text.parse().map_err(|_| {
        S3Error::new(Code::InvalidArgument, "Invalid version id specified")
            .fact("ArgumentName", argument)
            .fact("ArgumentValue", text)
    })
}

/// Says which version an answer is about, in buckets that keep versions, or did.
pub(crate) fn set_version(answer: &mut Answer, version: Option<VersionName>) {
    if let Some(version) = version {
        set(answer, VERSION_ID, version.to_string());
    }
}

/// Why a version was not read. A delete marker that was named is there, and can only be deleted.
pub(crate) fn not_read(failure: &Failure, named: Option<VersionName>) -> S3Error {
    match (failure, named) {
        (Failure::DeleteMarker { version, modified_ms }, Some(_)) => {
            S3Error::new(Code::MethodNotAllowed, "a delete marker cannot be read")
                .header(DELETE_MARKER, "true")
                .header(VERSION_ID, version.to_string())
                .header("allow", "DELETE")
                .header("last-modified", http_date(*modified_ms))
        }
        (other, _) => refusal(other),
    }
}

/// Why the source of a copy was not read. The headers of a delete marker would speak of the copy's target.
pub(crate) fn not_copied(failure: &Failure, named: Option<VersionName>) -> S3Error {
    match (failure, named) {
        (Failure::DeleteMarker { .. }, None) => Code::NoSuchKey.into(),
        (Failure::DeleteMarker { .. }, Some(_)) => {
            S3Error::new(Code::InvalidRequest, "a delete marker cannot be the source of a copy")
        }
        (other, _) => refusal(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(inner: &str) -> Result<Versioning, Code> {
        let text = format!("<VersioningConfiguration>{inner}</VersioningConfiguration>");
        let root = xml::parse(text.as_bytes()).expect("well formed");
        parse_versioning(&root).map_err(|error| error.code)
    }

    #[test]
    fn a_bucket_is_told_to_keep_versions_or_to_stop_and_nothing_else() {
        assert_eq!(parsed("<Status>Enabled</Status>"), Ok(Versioning::On));
        assert_eq!(parsed("<Status>Suspended</Status>"), Ok(Versioning::Suspended));
        let without_mfa = "<MfaDelete>Disabled</MfaDelete><Status>Enabled</Status>";
        assert_eq!(parsed(without_mfa), Ok(Versioning::On));
        let with_mfa = "<Status>Enabled</Status><MfaDelete>Enabled</MfaDelete>";
        assert_eq!(parsed(with_mfa), Err(Code::NotImplemented));
        for bad in [
            "",
            "<Status>enabled</Status>",
            "<Status/>",
            "<Status>Enabled</Status><MfaDelete>x</MfaDelete>",
            "<Status>Enabled</Status><Other/>",
        ] {
            assert_eq!(parsed(bad), Err(Code::MalformedXML), "{bad}");
        }
    }
}
