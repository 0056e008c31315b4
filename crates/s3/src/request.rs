//! A request after its parsing: target, query, headers. Everything a handler reads, it reads from here.

use crate::error::{Code, S3Error, S3Result};
use ashlar_types::{BadKey, BucketName, ObjectKey};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use percent_encoding::percent_decode_str;

/// The head of a request may have so many bytes: target, names and values.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// A decoded query: in the order in which it came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(pub(crate) Vec<(String, String)>);

impl Query {
    /// Decodes a query; `+` is a space.
    pub(crate) fn parse(query: &str) -> S3Result<Self> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(&name.replace('+', " "))?, decode(&value.replace('+', " "))?))
        });
        pairs.collect::<S3Result<Vec<_>>>().map(Self)
    }

    /// The value of a parameter.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|pair| pair.0 == name).map(|pair| pair.1.as_str())
    }

    /// Whether it is there, with or without a value.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A parameter that stands twice: which one would act?
    fn repeated(&self) -> Option<&str> {
        let is_repeated = |at: usize| self.0[..at].iter().any(|pair| pair.0 == self.0[at].0);
        (0..self.0.len()).find(|at| is_repeated(*at)).map(|at| self.0[at].0.as_str())
    }
}

fn decode(text: &str) -> S3Result<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(std::borrow::Cow::into_owned).map_err(|_| Code::InvalidURI.into())
}

/// A request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// As the client named it, for error documents.
    pub(crate) resource: String,
    pub(crate) host: String,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) bucket: Option<BucketName>,
    pub(crate) key: Option<ObjectKey>,
}

/// Refuses a head that is too large.
pub(crate) fn check_head(parts: &Parts) -> S3Result<()> {
    let headers: usize =
        parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let target = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if headers + target > HEAD_BYTES_MAX {
        return Err(Code::RequestHeaderSectionTooLarge.into());
    }
    Ok(())
}

/// The query of a target.
pub(crate) fn query_of(uri: &Uri) -> S3Result<Query> {
    let query = Query::parse(uri.query().unwrap_or_default())?;
    match query.repeated() {
        None => Ok(query),
        Some(name) => {
            Err(S3Error::new(Code::InvalidArgument, format!("the parameter '{name}' stands twice")))
        }
    }
}

/// Moves what a pre-signed URL carries for headers to where headers are read. A header that is also sent must agree.
fn hoist(query: &mut Query, headers: &mut HeaderMap) -> S3Result<()> {
    const SIGNATURE: [&str; 6] = [
        "X-Amz-Algorithm",
        "X-Amz-Credential",
        "X-Amz-Date",
        "X-Amz-Expires",
        "X-Amz-SignedHeaders",
        "X-Amz-Signature",
    ];
    query.0.retain(|pair| !SIGNATURE.contains(&pair.0.as_str()));
    let is_header = |pair: &(String, String)| pair.0.to_ascii_lowercase().starts_with("x-amz-");
    for (name, value) in query.0.extract_if(.., |pair| is_header(pair)) {
        let bad = || S3Error::new(Code::InvalidArgument, format!("'{name}' is not valid"));
        let header: HeaderName = name.to_ascii_lowercase().parse().map_err(|_| bad())?;
        let value = HeaderValue::from_str(&value).map_err(|_| bad())?;
        if headers.insert(header, value.clone()).is_some_and(|sent| sent != value) {
            return Err(bad());
        }
    }
    Ok(())
}

impl Request {
    /// Parses what was verified.
    pub(crate) fn parse(
        parts: Parts,
        mut query: Query,
        presigned: bool,
        domains: &[String],
    ) -> S3Result<Self> {
        let mut headers = parts.headers;
        if presigned {
            hoist(&mut query, &mut headers)?;
        }
        let host = host_of(&parts.uri, &headers);
        let path = decode(parts.uri.path())?;
        let path = path.strip_prefix('/').ok_or(Code::InvalidURI)?;
        let (bucket, key) = match bucket_in_host(&host, domains) {
            Some(bucket) => (bucket, path),
            None => path.split_once('/').unwrap_or((path, "")),
        };
        if bucket.is_empty() && !key.is_empty() {
            return Err(Code::InvalidBucketName.into());
        }
        let bucket = (!bucket.is_empty()).then(|| parse_bucket(bucket)).transpose()?;
        let key = (!key.is_empty()).then(|| parse_key(key)).transpose()?;
        let resource = parts.uri.path().to_owned();
        Ok(Self { method: parts.method, resource, host, query, headers, bucket, key })
    }

    /// A header's text. Names that stand twice are refused: which one would act?
    pub(crate) fn header(&self, name: &str) -> S3Result<Option<&str>> {
        let mut values = self.headers.get_all(name).iter();
        let Some(value) = values.next() else { return Ok(None) };
        let bad = |what: &str| S3Error::new(Code::InvalidArgument, format!("{name}: {what}"));
        if values.next().is_some() {
            return Err(bad("stands twice"));
        }
        let text = std::str::from_utf8(value.as_bytes()).map_err(|_| bad("is not UTF-8"))?;
        Ok(Some(text.trim()))
    }

    /// A number in the query.
    pub(crate) fn number(&self, name: &str) -> S3Result<Option<u64>> {
        let parse = |text: &str| {
            let bad = || format!("'{name}' is not a number from 0 on");
            text.parse().map_err(|_| S3Error::new(Code::InvalidArgument, bad()))
        };
        self.query.get(name).filter(|text| !text.is_empty()).map(parse).transpose()
    }
}

/// Parses a bucket's name.
pub(crate) fn parse_bucket(text: &str) -> S3Result<BucketName> {
    BucketName::parse(text).map_err(|error| {
        S3Error::new(Code::InvalidBucketName, error.to_string()).fact("BucketName", text)
    })
}

/// Parses a key.
pub(crate) fn parse_key(text: &str) -> S3Result<ObjectKey> {
    ObjectKey::parse(text).map_err(|error| match error {
        BadKey::TooLong { .. } => S3Error::new(Code::KeyTooLongError, error.to_string()),
        BadKey::Empty => S3Error::new(Code::InvalidRequest, error.to_string()),
    })
}

fn host_of(uri: &Uri, headers: &HeaderMap) -> String {
    let header = headers.get(http::header::HOST).and_then(|value| value.to_str().ok());
    let authority = || uri.authority().map(http::uri::Authority::as_str);
    header.or_else(authority).unwrap_or_default().to_ascii_lowercase()
}

/// The bucket that stands before one of the domains.
fn bucket_in_host<'a>(host: &'a str, domains: &[String]) -> Option<&'a str> {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let name = host.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(host, |pair| pair.0);
    domains.iter().find_map(|domain| name.strip_suffix(domain.as_str())?.strip_suffix('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(uri: &str, host: &str) -> S3Result<Request> {
        let request =
            http::Request::builder().uri(uri).header("host", host).body(()).expect("valid");
        let query = query_of(request.uri())?;
        Request::parse(request.into_parts().0, query, false, &["s3.example".to_owned()])
    }

    #[test]
    fn buckets_are_found_in_path_and_host() {
        for (uri, host, bucket, key) in [
            ("/", "s3.example", None, None),
            ("/abc", "s3.example:9000", Some("abc"), None),
            ("/abc/", "127.0.0.1:9000", Some("abc"), None),
            ("/abc//x%2Fy+z%20", "other", Some("abc"), Some("/x/y+z ")),
            ("/", "abc.s3.example", Some("abc"), None),
            ("/k/l", "a.bc.s3.example:80", Some("a.bc"), Some("k/l")),
        ] {
            let request = parse(uri, host).expect("valid");
            assert_eq!(request.bucket.as_ref().map(BucketName::as_str), bucket, "{uri} {host}");
            assert_eq!(request.key.as_ref().map(ObjectKey::as_str), key, "{uri} {host}");
        }
    }

    #[test]
    fn bad_targets_are_refused() {
        let code = |uri: &str| parse(uri, "h").err().map(|error| error.code);
        assert_eq!(code("/AB/k"), Some(Code::InvalidBucketName));
        assert_eq!(code("//k"), Some(Code::InvalidBucketName));
        assert_eq!(code("/abc/%ff"), Some(Code::InvalidURI));
        assert_eq!(code(&format!("/abc/{}", "k".repeat(1025))), Some(Code::KeyTooLongError));
        assert_eq!(code("/abc?prefix=a&prefix=b"), Some(Code::InvalidArgument));
    }
}
