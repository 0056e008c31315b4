//! The one file that names the protocol library: it judges signatures, and nothing else reaches it.
//!
//! s3s sees the head of each request (method, target, headers) and answers who signed it, or why not: header and query
//! signatures, dates, skew, expiry, the seed signature of streaming uploads. Bodies are not shown to it: its decoder of
//! `aws-chunked` keeps a whole chunk in memory, and a chunk may be as long as the object; ours (`chunked`) streams (S5).
//! Operations are not routed by it either, because it lets unknown parameters and headers pass.

use crate::config::Credentials;
use crate::error::{Code, S3Error, S3Result};
use crate::xml;
use http::request::Parts;
use s3s::auth::{S3Auth, SecretKey};
use s3s::route::S3Route;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::validation::NameValidation;
use s3s::{Body, S3ErrorCode, S3Request, S3Response, S3Result as LibraryResult};
use std::sync::Arc;

/// Judges signatures.
#[derive(Clone)]
pub(crate) struct Verifier(S3Service);

/// Whose signature it was: the access key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Principal(pub(crate) String);

impl Verifier {
    pub(crate) fn new(credentials: Arc<Credentials>) -> Self {
        let mut builder = S3ServiceBuilder::new(NoOperations);
        builder.set_auth(Keys(credentials));
        builder.set_route(WhoSigned);
        builder.set_validation(AnyName);
        Self(builder.build())
    }

    /// Who signed this head.
    pub(crate) async fn verify(&self, head: &Parts) -> S3Result<Principal> {
        let mut request = http::Request::new(Body::empty());
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = head.uri.clone();
        *request.version_mut() = head.version;
        *request.headers_mut() = head.headers.clone();
        let answer = Box::pin(self.0.call(request)).await;
        let mut answer = answer
            .map_err(|_| S3Error::new(Code::InternalError, "the signature was not judged"))?;
        match answer.extensions_mut().remove::<Principal>() {
            Some(principal) if answer.status().is_success() => Ok(principal),
            _ => Err(refusal(answer.body())),
        }
    }
}

/// The library's refusal in our words.
fn refusal(body: &Body) -> S3Error {
    let bytes = body.bytes().unwrap_or_default();
    let Ok(error) = xml::parse(&bytes) else { return Code::AccessDenied.into() };
    let code = error.text("Code").and_then(|name| Code::from_name(&name));
    let code = code.unwrap_or(Code::AccessDenied);
    S3Error::new(code, error.text("Message").unwrap_or_else(|| code.message().to_owned()))
}

struct NoOperations;

impl s3s::S3 for NoOperations {}

struct Keys(Arc<Credentials>);

#[async_trait::async_trait]
impl S3Auth for Keys {
    async fn get_secret_key(&self, access_key: &str) -> LibraryResult<SecretKey> {
        match self.0.secret(access_key) {
            Some(secret) => Ok(SecretKey::from(secret.expose())),
            None => Err(S3ErrorCode::InvalidAccessKeyId.into()),
        }
    }
}

/// Takes every request that got past the signature. The default access check refuses anonymous ones.
struct WhoSigned;

#[async_trait::async_trait]
impl S3Route for WhoSigned {
    fn is_match(
        &self,
        _: &http::Method,
        _: &http::Uri,
        _: &http::HeaderMap,
        _: &mut http::Extensions,
    ) -> bool {
        true
    }

    async fn call(&self, request: S3Request<Body>) -> LibraryResult<S3Response<Body>> {
        let Some(credentials) = request.credentials else {
            return Err(S3ErrorCode::AccessDenied.into());
        };
        let mut answer = S3Response::new(Body::empty());
        answer.extensions.insert(Principal(credentials.access_key));
        Ok(answer)
    }
}

/// Names are parsed by `request`, which knows of virtual hosts.
struct AnyName;

impl NameValidation for AnyName {
    fn validate_bucket_name(&self, _: &str) -> bool {
        true
    }
}
