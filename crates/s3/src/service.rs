//! The way of a request: head checked, signature judged, target parsed, operation found and allowed, handler, answer.
//!
//! Authentication comes before routing, and there is one way through it (S1). Every answer carries the request's ids,
//! whatever happened.

use crate::backend::Backend;
use crate::body::{BodyError, Framing, RequestBody};
use crate::config::S3Config;
use crate::error::{Code, S3Error, S3Result};
use crate::handler::Handler;
use crate::library::Verifier;
use crate::operation::Operation;
use crate::request::{Query, Request, check_head, query_of};
use crate::response::{self, Answer, ResponseBody};
use crate::signature::{self, ChunkSigner, Claims};
use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response};
use http_body::Frame;
use http_body_util::BodyExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tracing::{Instrument as _, Span};

/// S3 over HTTP. Cheap to clone.
#[derive(Clone)]
pub struct S3Service(Arc<Inner>);

struct Inner {
    backend: Arc<dyn Backend>,
    config: S3Config,
    verifier: Verifier,
}

impl std::fmt::Debug for S3Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("S3Service").field(&self.0.config).finish()
    }
}

/// What an answer was about; each answer carries one in its extensions.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The operation, as S3 calls it; `"-"`: refused before it was known.
    pub operation: &'static str,
    /// The request's id.
    pub request_id: String,
    /// The code of a refusal.
    pub code: Option<&'static str>,
}

/// Makes the service.
pub fn service(backend: Arc<dyn Backend>, config: S3Config) -> S3Service {
    let verifier = Verifier::new(Arc::clone(&config.credentials));
    S3Service(Arc::new(Inner { backend, config, verifier }))
}

impl S3Service {
    /// Answers a request.
    pub async fn call<B>(&self, request: http::Request<B>) -> Response<ResponseBody>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        let random = (self.0.config.random)();
        let request_id = format!("{:016X}", random >> 64);
        let host_id = format!("{random:032x}");
        let (parts, body) = request.into_parts();
        let body = body.map_err(Into::into).boxed_unsync();
        let span = tracing::info_span!(
            "request",
            request_id,
            method = %parts.method,
            path = parts.uri.path(),
            operation = tracing::field::Empty
        );
        let is_head = parts.method == Method::HEAD;
        let resource = parts.uri.path().to_owned();
        let mut operation = "-";
        let result =
            Box::pin(self.answer(parts, body, &mut operation)).instrument(span.clone()).await;
        let code = result.as_ref().err().map(|error| error.code.as_str());
        let mut answer = result.unwrap_or_else(|error| {
            span.in_scope(|| tracing::debug!(%error, "refused"));
            response::refused(&error, &resource, &request_id, &host_id, !is_head)
        });
        response::set(&mut answer, "x-amz-request-id", &request_id);
        response::set(&mut answer, "x-amz-id-2", &host_id);
        response::set(&mut answer, "server", "ashlar");
        answer.extensions_mut().insert(Summary { operation, request_id, code });
        answer.map(|body| Spanned { body, span }.boxed_unsync())
    }

    async fn answer(
        &self,
        parts: Parts,
        body: RequestBody,
        operation: &mut &'static str,
    ) -> S3Result<Answer> {
        match self.authenticate(parts).await {
            Ok(authentic) => self.dispatch(authentic, body, operation).await,
            Err((error, length)) => {
                drain_small(body, length).await;
                Err(error)
            }
        }
    }

    /// Who sends this? On refusal also the declared length of the body.
    async fn authenticate(&self, parts: Parts) -> Result<Authentic, (S3Error, u64)> {
        let length = parts.headers.get(http::header::CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(u64::MAX);
        let judged: S3Result<(Query, Claims, String)> = async {
            check_head(&parts)?;
            refuse_forms(&parts)?;
            let query = query_of(&parts.uri)?;
            let claims = signature::claims(&parts.headers, &query)?.ok_or_else(|| {
                S3Error::new(
                    Code::AccessDenied,
                    "anonymous access is not allowed: sign the request",
                )
            })?;
            claims.check(&self.0.config.region, &parts.headers)?;
            let principal = self.0.verifier.verify(&parts).await?;
            Ok((query, claims, principal.0))
        }
        .await;
        match judged {
            Ok((query, claims, principal)) => Ok(Authentic { parts, query, claims, principal }),
            Err(error) => Err((error, length)),
        }
    }

    async fn dispatch(
        &self,
        authentic: Authentic,
        body: RequestBody,
        name: &mut &'static str,
    ) -> S3Result<Answer> {
        let Authentic { parts, query, claims, principal } = authentic;
        let config = &self.0.config;
        let request = Request::parse(parts, query, claims.presigned, &config.domains)?;
        let operation = Operation::of(&request)?;
        *name = operation.name();
        Span::current().record("operation", operation.name());
        check_owner(&request, "x-amz-expected-bucket-owner", &config.owner)?;
        check_owner(&request, "x-amz-source-expected-bucket-owner", &config.owner)?;
        let framing = Framing { signer: self.chunk_signer(&request, &claims)? };
        let backend = self.0.backend.as_ref();
        let handler = Handler { backend, config, request, principal, operation };
        handler.handle(body, framing).await
    }

    /// For a body whose chunks are signed.
    fn chunk_signer(&self, request: &Request, claims: &Claims) -> S3Result<Option<ChunkSigner>> {
        let payload = request.header("x-amz-content-sha256")?.unwrap_or_default();
        if !payload.starts_with("STREAMING-AWS4-HMAC-SHA256-PAYLOAD") {
            return Ok(None);
        }
        let date = request.header("x-amz-date")?.ok_or(Code::MissingSecurityHeader)?;
        let secret = self.0.config.credentials.secret(&claims.access_key);
        let secret = secret.ok_or(Code::InvalidAccessKeyId)?;
        Ok(Some(ChunkSigner::new(claims, date, secret)))
    }
}

/// A request whose signature is good.
struct Authentic {
    parts: Parts,
    query: Query,
    claims: Claims,
    principal: String,
}

/// Uploads by HTML form carry their signature in the body: not supported.
fn refuse_forms(parts: &Parts) -> S3Result<()> {
    let kind = parts.headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_form =
        kind.is_some_and(|kind| kind.to_ascii_lowercase().starts_with("multipart/form-data"));
    if parts.method == Method::POST && is_form {
        return Err(S3Error::not_implemented("an upload by form"));
    }
    Ok(())
}

fn check_owner(request: &Request, header: &str, owner: &str) -> S3Result<()> {
    match request.header(header)? {
        Some(expected) if expected != owner => {
            Err(S3Error::new(Code::AccessDenied, "the bucket has another owner than was expected"))
        }
        _ => Ok(()),
    }
}

/// Reads a small body that nobody wants: a client that is still sending would else see a reset instead of the answer.
async fn drain_small(mut body: RequestBody, length: u64) {
    const DRAINED_BYTES_MAX: u64 = 256 * 1024;
    if length <= DRAINED_BYTES_MAX {
        while let Some(Ok(_)) = body.frame().await {}
    }
}

/// The bytes of an answer are sent after the handler has returned, but their log lines belong to the request too.
struct Spanned {
    body: ResponseBody,
    span: Span,
}

impl http_body::Body for Spanned {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let _entered = this.span.enter();
        Pin::new(&mut this.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
