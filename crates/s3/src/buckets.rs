//! Operations on buckets: make, find, delete, and what is true of every one of them (location, ACL, no tags).

use crate::backend::Failure;
use crate::body::Upload;
use crate::error::{Code, S3Error, S3Result};
use crate::handler::Handler;
use crate::response::{Answer, document, done, empty, set};
use crate::time::iso;
use crate::versions::{not_read, set_version};
use crate::xml::{self, Xml};
use ashlar_types::{Bucket, Span, VersionName};
use http::StatusCode;

/// The region whose buckets say nothing of their location, and whose owner may create a bucket again.
const CLASSIC_REGION: &str = "us-east-1";
/// Most buckets of a page.
const BUCKETS_MAX: u64 = 10_000;

impl Handler<'_> {
    pub(crate) async fn list_buckets(&self) -> S3Result<Answer> {
        let query = &self.request.query;
        let prefix = query.get("prefix").unwrap_or_default();
        let after = query.get("continuation-token").filter(|token| !token.is_empty());
        let limit = self.request.number("max-buckets")?.unwrap_or(BUCKETS_MAX);
        if !(1..=BUCKETS_MAX).contains(&limit) {
            return Err(S3Error::new(Code::InvalidArgument, "max-buckets is 1 to 10000"));
        }
        let mut buckets = done(self.backend.buckets().await)?;
        buckets.retain(|bucket| {
            let name = bucket.name.as_str();
            name.starts_with(prefix) && after.is_none_or(|after| name > after)
        });
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = buckets.len() > limit;
        buckets.truncate(limit);
        Ok(document("ListAllMyBucketsResult", |xml| {
            self.owner(xml, "Owner");
            xml.element("Buckets", |xml| {
                buckets.iter().for_each(|bucket| self.bucket_row(xml, bucket));
            });
            if !prefix.is_empty() {
                xml.text("Prefix", prefix);
            }
            if let Some(last) = buckets.last().filter(|_| more) {
                xml.text("ContinuationToken", last.name.as_str());
            }
        }))
    }

    fn bucket_row(&self, xml: &mut Xml, bucket: &Bucket) {
        xml.element("Bucket", |xml| {
            xml.text("Name", bucket.name.as_str());
            xml.text("CreationDate", iso(bucket.created_ms));
            xml.text("BucketRegion", &self.config.region);
        });
    }

    pub(crate) async fn create_bucket(&self, body: Upload) -> S3Result<Answer> {
        crate::description::check_values(&self.request)?;
        self.check_bucket_settings()?;
        let body = body.xml().await?;
        if !body.is_empty() {
            self.check_location(&xml::parse(&body)?)?;
        }
        let name = self.bucket()?;
        match self.backend.create_bucket(name, &self.config.owner).await {
            // S3 in its first region answers success to whoever owns the bucket already
            Err(Failure::BucketExists) if self.config.region == CLASSIC_REGION => {}
            other => done(other)?,
        }
        let mut answer = empty(StatusCode::OK);
        set(&mut answer, "location", format!("/{name}"));
        Ok(answer)
    }

    fn check_bucket_settings(&self) -> S3Result<()> {
        let lock = self.request.header("x-amz-bucket-object-lock-enabled")?;
        if lock.is_some_and(|value| !value.eq_ignore_ascii_case("false")) {
            return Err(S3Error::not_implemented("object lock"));
        }
        match self.request.header("x-amz-object-ownership")? {
            None | Some("BucketOwnerEnforced") => Ok(()),
            Some(other) => Err(S3Error::not_implemented(format!("the object ownership '{other}'"))),
        }
    }

    fn check_location(&self, root: &xml::Element) -> S3Result<()> {
        if root.name != "CreateBucketConfiguration" {
            return Err(Code::MalformedXML.into());
        }
        if let Some(other) = root.children.iter().find(|child| child.name != "LocationConstraint") {
            return Err(S3Error::not_implemented(format!("the element {}", other.name)));
        }
        match root.text("LocationConstraint") {
            Some(region) if !region.is_empty() && region != self.config.region => {
                let message =
                    format!("the buckets of this service are in '{}'", self.config.region);
                Err(S3Error::new(Code::InvalidLocationConstraint, message)
                    .fact("LocationConstraint", region))
            }
            _ => Ok(()),
        }
    }

    pub(crate) async fn head_bucket(&self) -> S3Result<Answer> {
        done(self.backend.bucket(self.bucket()?).await)?;
        let mut answer = empty(StatusCode::OK);
        set(&mut answer, "x-amz-bucket-region", &self.config.region);
        Ok(answer)
    }

    pub(crate) async fn delete_bucket(&self) -> S3Result<Answer> {
        done(self.backend.delete_bucket(self.bucket()?).await)?;
        Ok(empty(StatusCode::NO_CONTENT))
    }

    pub(crate) async fn bucket_location(&self) -> S3Result<Answer> {
        done(self.backend.bucket(self.bucket()?).await)?;
        let region = self.config.region.as_str();
        let shown = if region == CLASSIC_REGION { "" } else { region };
        Ok(document("LocationConstraint", |xml| xml.escaped(shown)))
    }

    pub(crate) async fn bucket_acl(&self) -> S3Result<Answer> {
        done(self.backend.bucket(self.bucket()?).await)?;
        Ok(self.acl())
    }

    pub(crate) async fn object_acl(&self) -> S3Result<Answer> {
        self.found_version().await?;
        Ok(self.acl())
    }

    pub(crate) async fn object_tagging(&self) -> S3Result<Answer> {
        let version = self.found_version().await?;
        let mut answer = document("Tagging", |xml| xml.element("TagSet", |_| {}));
        set_version(&mut answer, version);
        Ok(answer)
    }

    /// Which version a request speaks of: it is there, and an object.
    async fn found_version(&self) -> S3Result<Option<VersionName>> {
        let version = self.version()?;
        let found = self.backend.get(&self.place()?, version, Span::Nothing).await;
        found.map(|found| found.version).map_err(|failure| not_read(&failure, version))
    }

    /// The owner alone, with full control.
    fn acl(&self) -> Answer {
        document("AccessControlPolicy", |xml| {
            self.owner(xml, "Owner");
            xml.element("AccessControlList", |xml| {
                xml.element("Grant", |xml| {
                    xml.grantee(|xml| self.owner_fields(xml));
                    xml.text("Permission", "FULL_CONTROL");
                });
            });
        })
    }

    /// The owner as an element of this name.
    pub(crate) fn owner(&self, xml: &mut Xml, name: &str) {
        xml.element(name, |xml| self.owner_fields(xml));
    }

    fn owner_fields(&self, xml: &mut Xml) {
        xml.text("ID", &self.config.owner);
        xml.text("DisplayName", &self.config.owner);
    }
}
