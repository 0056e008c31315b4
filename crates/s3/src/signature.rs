//! What a request says of its own signature, and the chain of signatures over the chunks of a streaming upload.
//!
//! The signature itself is judged by the library (`library`). Here its claims are read first, so that a wrong region is
//! answered with the right one, and so that no `x-amz-*` header acts that was not signed.

use crate::config::SecretKey;
use crate::error::{Code, S3Error, S3Result};
use crate::request::Query;
use hmac::{Hmac, Mac};
use http::HeaderMap;
use sha2::{Digest as _, Sha256};

/// The longest life of a pre-signed URL: 7 days.
const PRESIGN_SECONDS_MAX: u32 = 7 * 24 * 3600;
/// SHA-256 of nothing.
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// The claims of a signature.
#[derive(Debug, Clone)]
pub(crate) struct Claims {
    pub(crate) access_key: String,
    pub(crate) date: String,
    pub(crate) region: String,
    pub(crate) service: String,
    pub(crate) signed_headers: Vec<String>,
    pub(crate) signature: String,
    pub(crate) presigned: bool,
}

/// Reads the claims. `None`: the request is anonymous.
pub(crate) fn claims(headers: &HeaderMap, query: &Query) -> S3Result<Option<Claims>> {
    refuse_version_2(headers, query)?;
    let in_query = query.has("X-Amz-Signature") || query.has("X-Amz-Algorithm");
    let in_header = headers.contains_key(http::header::AUTHORIZATION);
    match (in_header, in_query) {
        (false, false) => Ok(None),
        (true, true) => Err(S3Error::new(
            Code::InvalidArgument,
            "only one way of signing is allowed: the Authorization header or X-Amz-* in the query",
        )),
        (true, false) => header_claims(headers).map(Some),
        (false, true) => query_claims(query).map(Some),
    }
}

fn refuse_version_2(headers: &HeaderMap, query: &Query) -> S3Result<()> {
    let header = headers.get(http::header::AUTHORIZATION);
    let is_old = header.is_some_and(|value| value.as_bytes().starts_with(b"AWS "));
    if is_old || query.has("AWSAccessKeyId") || query.has("Signature") {
        let message = "this way of signing is not supported: use AWS4-HMAC-SHA256";
        return Err(S3Error::new(Code::InvalidRequest, message));
    }
    Ok(())
}

fn header_claims(headers: &HeaderMap) -> S3Result<Claims> {
    let bad = |what: &str| {
        S3Error::new(
            Code::AuthorizationHeaderMalformed,
            format!("the authorization header is malformed: {what}"),
        )
    };
    let mut values = headers.get_all(http::header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(bad("one is expected"));
    };
    let text = value.to_str().map_err(|_| bad("it is not ASCII"))?;
    let Some(fields) = text.strip_prefix("AWS4-HMAC-SHA256") else {
        return Err(bad("AWS4-HMAC-SHA256 is expected"));
    };
    let field =
        |name: &str| fields.split(',').map(str::trim).find_map(|field| field.strip_prefix(name));
    let credential = field("Credential=").ok_or_else(|| bad("Credential is missing"))?;
    let signed = field("SignedHeaders=").ok_or_else(|| bad("SignedHeaders is missing"))?;
    let signature = field("Signature=").ok_or_else(|| bad("Signature is missing"))?;
    scope(credential, signed, signature, false).ok_or_else(|| bad("Credential is not a scope"))
}

fn query_claims(query: &Query) -> S3Result<Claims> {
    let bad = |what: String| S3Error::new(Code::AuthorizationQueryParametersError, what);
    let one = |name: &str| query.get(name).ok_or_else(|| bad(format!("{name} is missing")));
    if one("X-Amz-Algorithm")? != "AWS4-HMAC-SHA256" {
        return Err(bad("X-Amz-Algorithm only supports AWS4-HMAC-SHA256".into()));
    }
    one("X-Amz-Date")?;
    let expires = one("X-Amz-Expires")?.parse::<u32>();
    if !expires.is_ok_and(|seconds| (1..=PRESIGN_SECONDS_MAX).contains(&seconds)) {
        return Err(bad(format!("X-Amz-Expires is a number from 1 to {PRESIGN_SECONDS_MAX}")));
    }
    let signature = one("X-Amz-Signature")?;
    scope(one("X-Amz-Credential")?, one("X-Amz-SignedHeaders")?, signature, true)
        .ok_or_else(|| bad("X-Amz-Credential is not a scope".into()))
}

fn scope(credential: &str, signed: &str, signature: &str, presigned: bool) -> Option<Claims> {
    // an access key may have slashes, the rest of a scope has none
    let mut parts = credential.rsplitn(5, '/');
    let ("aws4_request", service, region, date, access_key) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()?)
    else {
        return None;
    };
    Some(Claims {
        access_key: access_key.to_owned(),
        date: date.to_owned(),
        region: region.to_owned(),
        service: service.to_owned(),
        signed_headers: signed.split(';').map(str::to_ascii_lowercase).collect(),
        signature: signature.to_owned(),
        presigned,
    })
}

impl Claims {
    /// Refuses another region, another service, and headers that act without being signed.
    pub(crate) fn check(&self, region: &str, headers: &HeaderMap) -> S3Result<()> {
        if self.region != region {
            let code = if self.presigned {
                Code::AuthorizationQueryParametersError
            } else {
                Code::AuthorizationHeaderMalformed
            };
            let message = format!("the region '{}' is wrong; expecting '{region}'", self.region);
            return Err(S3Error::new(code, message).fact("Region", region));
        }
        if self.service != "s3" {
            let message = format!("the service '{}' is wrong; expecting 's3'", self.service);
            return Err(S3Error::new(Code::AuthorizationHeaderMalformed, message));
        }
        let is_signed = |name: &str| self.signed_headers.iter().any(|signed| signed == name);
        let unsigned = headers
            .keys()
            .map(http::HeaderName::as_str)
            .filter(|name| name.starts_with("x-amz-"))
            // the payload's hash is part of what is signed in any case, or means nothing in a pre-signed URL
            .find(|name| *name != "x-amz-content-sha256" && !is_signed(name));
        match unsigned {
            None if is_signed("host") => Ok(()),
            None => Err(S3Error::new(Code::AccessDenied, "the Host header was not signed")),
            Some(name) => Err(S3Error::new(
                Code::AccessDenied,
                format!("there were headers present in the request which were not signed: {name}"),
            )
            .fact("HeadersNotSigned", name)),
        }
    }
}

/// Verifies the signatures of chunks, each over the one before it.
pub(crate) struct ChunkSigner {
    key: [u8; 32],
    prefix: String,
    previous: String,
}

impl ChunkSigner {
    /// Begins with the verified signature of the request's head.
    pub(crate) fn new(claims: &Claims, amz_date: &str, secret: &SecretKey) -> Self {
        let Claims { date, region, service, .. } = claims;
        let mut key = sign(format!("AWS4{}", secret.expose()).as_bytes(), date.as_bytes());
        for part in [region.as_str(), service.as_str(), "aws4_request"] {
            key = sign(&key, part.as_bytes());
        }
        let prefix = format!("{amz_date}\n{date}/{region}/{service}/aws4_request");
        Self { key, prefix, previous: claims.signature.clone() }
    }

    /// Whether `signature` is that of a chunk with this SHA-256.
    pub(crate) fn chunk(&mut self, sha256: &[u8], signature: &str) -> bool {
        let text = format!(
            "AWS4-HMAC-SHA256-PAYLOAD\n{}\n{}\n{EMPTY_SHA256}\n{}",
            self.prefix,
            self.previous,
            hex::encode(sha256)
        );
        self.judge(&text, signature)
    }

    /// Whether `signature` is that of these trailing headers in canonical form.
    pub(crate) fn trailer(&mut self, canonical: &str, signature: &str) -> bool {
        let sha256 = hex::encode(Sha256::digest(canonical));
        let text =
            format!("AWS4-HMAC-SHA256-TRAILER\n{}\n{}\n{sha256}", self.prefix, self.previous);
        self.judge(&text, signature)
    }

    fn judge(&mut self, text: &str, signature: &str) -> bool {
        let Ok(given) = hex::decode(signature) else { return false };
        let genuine = mac(&self.key, text.as_bytes()).verify_slice(&given).is_ok();
        signature.clone_into(&mut self.previous);
        genuine
    }
}

fn mac(key: &[u8], text: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text);
    mac
}

fn sign(key: &[u8], text: &[u8]) -> [u8; 32] {
    mac(key, text).finalize().into_bytes().into()
}
