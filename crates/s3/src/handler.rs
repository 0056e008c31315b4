//! One request on its way to the backend: what all handlers share, and which one is called.

use crate::backend::{Backend, Place};
use crate::body::{Framing, RequestBody, Upload};
use crate::config::S3Config;
use crate::error::{Code, S3Error, S3Result};
use crate::operation::Operation;
use crate::request::Request;
use crate::response::Answer;
use ashlar_types::{BucketName, RequestToken};
use sha2::{Digest as _, Sha256};

/// See the module.
pub(crate) struct Handler<'a> {
    pub(crate) backend: &'a dyn Backend,
    pub(crate) config: &'a S3Config,
    pub(crate) request: Request,
    pub(crate) principal: String,
    pub(crate) operation: Operation,
}

impl Handler<'_> {
    /// Does what is asked.
    pub(crate) async fn handle(self, body: RequestBody, framing: Framing) -> S3Result<Answer> {
        let upload = || Upload::of(&self.request, body, framing);
        match self.operation {
            Operation::ListBuckets => self.list_buckets().await,
            Operation::CreateBucket => self.create_bucket(upload()?).await,
            Operation::HeadBucket => self.head_bucket().await,
            Operation::DeleteBucket => self.delete_bucket().await,
            Operation::GetBucketLocation => self.bucket_location().await,
            Operation::GetBucketVersioning => self.bucket_versioning().await,
            Operation::PutBucketVersioning => self.set_bucket_versioning(upload()?).await,
            Operation::GetBucketAcl => self.bucket_acl().await,
            Operation::ListObjects => self.list_objects().await,
            Operation::ListObjectsV2 => self.list_objects_v2().await,
            Operation::ListObjectVersions => self.list_versions().await,
            Operation::ListMultipartUploads => self.list_uploads().await,
            Operation::DeleteObjects => self.delete_objects(upload()?).await,
            Operation::PutObject => self.put_object(upload()?).await,
            Operation::CopyObject => self.copy_object().await,
            Operation::GetObject | Operation::HeadObject => self.get_object().await,
            Operation::DeleteObject => self.delete_object().await,
            Operation::GetObjectTagging => self.object_tagging().await,
            Operation::GetObjectAcl => self.object_acl().await,
            Operation::CreateMultipartUpload => self.create_upload().await,
            Operation::UploadPart => self.upload_part(upload()?).await,
            Operation::UploadPartCopy => self.upload_part_copy().await,
            Operation::CompleteMultipartUpload => self.complete_upload(upload()?).await,
            Operation::AbortMultipartUpload => self.abort_upload().await,
            Operation::ListParts => self.list_parts().await,
        }
    }

    /// The bucket of an operation that has one.
    pub(crate) fn bucket(&self) -> S3Result<&BucketName> {
        self.request.bucket.as_ref().ok_or_else(|| Code::InvalidBucketName.into())
    }

    /// The object of an operation that has one.
    pub(crate) fn place(&self) -> S3Result<Place> {
        let key = self.request.key.clone();
        let key = key.ok_or_else(|| S3Error::new(Code::InvalidRequest, "a key is expected"))?;
        Ok(Place { bucket: self.bucket()?.clone(), key })
    }

    /// What makes a retry of this very call recognisable (C7): the SDK's invocation id, which its own retries keep.
    pub(crate) fn token(&self) -> Option<RequestToken> {
        let invocation = self.request.headers.get("amz-sdk-invocation-id")?;
        let mut hash = Sha256::new();
        let upload = self.request.query.get("uploadId").unwrap_or_default();
        let parts: [&[u8]; 5] = [
            self.principal.as_bytes(),
            invocation.as_bytes(),
            self.operation.name().as_bytes(),
            self.request.resource.as_bytes(),
            upload.as_bytes(),
        ];
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let digest = hash.finalize();
        Some(RequestToken(std::array::from_fn(|at| digest[at])))
    }
}
