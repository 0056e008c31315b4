//! AWS Signature Version 4 by header and by query, with `UNSIGNED-PAYLOAD`.
//!
//! The payload is left out of the signature because its hash would cost the client as much as the server does; the
//! tests check bytes by content instead.
//!
//! Source: "Authenticating Requests (AWS Signature Version 4)" in the Amazon S3 API reference; the test below is
//! its published example.

use hmac::{Hmac, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

/// What the signature encodes: everything but letters, digits, `-`, `.`, `_` and `~`.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// In a path the slash stays.
const PATH: &AsciiSet = &QUERY.remove(b'/');

/// A key pair and the region that it signs for.
#[derive(Clone)]
pub struct Credentials {
    /// The access key id.
    pub access_key: String,
    /// The secret key.
    pub secret_key: String,
    /// The region in the scope of each signature.
    pub region: String,
}

/// The parts of a request that the signature covers.
pub struct Signed<'a> {
    /// The HTTP method.
    pub method: &'a str,
    /// `host:port`.
    pub host: &'a str,
    /// The path, already encoded by [`path`].
    pub path: &'a str,
    /// The query, sorted and encoded by [`query`].
    pub query: &'a str,
    /// The moment, as `20130524T000000Z`.
    pub amz_date: &'a str,
    /// The value of `x-amz-content-sha256`.
    pub payload: &'a str,
}

/// The path of a bucket and key, encoded once as S3 wants it.
pub fn path(bucket: &str, key: &str) -> String {
    match (bucket, key) {
        ("", _) => "/".to_owned(),
        (bucket, "") => format!("/{bucket}"),
        (bucket, key) => format!("/{bucket}/{}", utf8_percent_encode(key, PATH)),
    }
}

/// A query string in canonical form: encoded and sorted.
pub fn query(pairs: &[(&str, &str)]) -> String {
    let encode = |text: &str| utf8_percent_encode(text, QUERY).to_string();
    let mut encoded: Vec<_> =
        pairs.iter().map(|(name, value)| (encode(name), encode(value))).collect();
    encoded.sort();
    encoded.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

/// The `Authorization` header of a request. Signed are `host`, `x-amz-content-sha256` and `x-amz-date`: the other
/// headers of our calls carry nothing that an attacker on a test's loopback could turn.
pub fn authorization(credentials: &Credentials, request: &Signed<'_>) -> String {
    let names = "host;x-amz-content-sha256;x-amz-date";
    let headers = format!(
        "host:{}\nx-amz-content-sha256:{}\nx-amz-date:{}\n",
        request.host, request.payload, request.amz_date
    );
    let scope = scope(credentials, request.amz_date);
    let signature = signature(credentials, request, &headers, names, &scope);
    format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
        credentials.access_key
    )
}

fn scope(credentials: &Credentials, amz_date: &str) -> String {
    format!("{}/{}/s3/aws4_request", &amz_date[..8], credentials.region)
}

fn signature(
    credentials: &Credentials,
    request: &Signed<'_>,
    headers: &str,
    names: &str,
    scope: &str,
) -> String {
    let canonical = format!(
        "{}\n{}\n{}\n{headers}\n{names}\n{}",
        request.method, request.path, request.query, request.payload
    );
    let digest = hex::encode(Sha256::digest(canonical));
    let to_sign = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{digest}", request.amz_date);
    let first = hmac(format!("AWS4{}", credentials.secret_key).as_bytes(), &request.amz_date[..8]);
    let region = hmac(&first, &credentials.region);
    let service = hmac(&region, "s3");
    hex::encode(hmac(&hmac(&service, "aws4_request"), &to_sign))
}

fn hmac(key: &[u8], text: &str) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn example() -> Credentials {
        Credentials {
            access_key: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            region: "us-east-1".into(),
        }
    }

    /// "Example: Get Bucket (List Objects)" of the S3 API reference.
    #[test]
    fn the_published_example_has_the_published_signature() {
        let request = Signed {
            method: "GET",
            host: "examplebucket.s3.amazonaws.com",
            path: "/",
            query: &query(&[("prefix", "J"), ("max-keys", "2")]),
            amz_date: "20130524T000000Z",
            payload: EMPTY,
        };
        let header = authorization(&example(), &request);
        let (_, signature) = header.rsplit_once('=').unwrap();
        assert_eq!(signature, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
    }

    #[test]
    fn paths_keep_slashes_and_queries_do_not() {
        assert_eq!(path("b", "a/ä +%"), "/b/a/%C3%A4%20%2B%25");
        assert_eq!(query(&[("prefix", "a/b"), ("list-type", "2")]), "list-type=2&prefix=a%2Fb");
    }
}
