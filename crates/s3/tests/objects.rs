//! Objects and buckets: what is stored comes back with all that was said of it; conditions, ranges, digests, copies.

#![allow(clippy::unwrap_used, reason = "a test says by failing what was not there")]

mod support;
use ashlar_s3::Failure;
use support::{Form, OWNER, REGION, call, encode, new_client, with_bucket};

/// MD5 of `abc`, as an ETag.
const ABC: &str = "\"900150983cd24fb0d6963f7d28e17f72\"";

#[tokio::test]
async fn buckets_are_made_found_and_deleted() {
    let client = new_client();
    client.send(call("HEAD", "/abc")).await.is(404);
    let with_location = |region: &str| {
        let xml = format!(
            "<CreateBucketConfiguration><LocationConstraint>{region}</LocationConstraint></CreateBucketConfiguration>"
        );
        call("PUT", "/abc").body(xml)
    };
    client.send(with_location("elsewhere")).await.is_error(400, "InvalidLocationConstraint");
    let made = client.send(with_location(REGION)).await;
    assert_eq!(made.is(200).header("location"), Some("/abc"));
    client.send(call("PUT", "/abc")).await.is_error(409, "BucketAlreadyOwnedByYou");
    assert_eq!(
        client.send(call("HEAD", "/abc")).await.is(200).header("x-amz-bucket-region"),
        Some(REGION)
    );
    client.send(call("PUT", "/abd")).await.is(200);
    assert_eq!(client.get("/").await.is(200).all("Name"), ["abc", "abd"]);
    assert_eq!(client.get("/?prefix=abd").await.all("Name"), ["abd"]);
    let page = client.get("/?max-buckets=1").await;
    let next = client
        .get(&format!("/?max-buckets=1&continuation-token={}", page.one("ContinuationToken")))
        .await;
    assert_eq!((page.all("Name"), next.all("Name")), (vec!["abc"], vec!["abd"]));
    client.send(call("PUT", "/abc/k").body("x")).await.is(200);
    client.send(call("DELETE", "/abc")).await.is_error(409, "BucketNotEmpty");
    client.send(call("DELETE", "/abc/k")).await.is(204);
    client.send(call("DELETE", "/abc")).await.is(204);
    client.send(call("DELETE", "/abc")).await.is_error(404, "NoSuchBucket");
    client.send(call("PUT", "/AB")).await.is_error(400, "InvalidBucketName");
    client.send(call("PUT", "/abe").body("<oops")).await.is_error(400, "MalformedXML");
}

#[tokio::test]
async fn what_is_true_of_every_bucket_and_object_is_said() {
    let client = with_bucket().await;
    client.put("k", "abc").await.is(200);
    assert!(client.get("/bkt?versioning").await.is(200).all("Status").is_empty());
    assert!(client.get("/bkt?location").await.is(200).text().contains(REGION));
    for target in ["/bkt?acl", "/bkt/k?acl"] {
        let acl = client.get(target).await;
        assert_eq!(
            (acl.is(200).all("ID"), acl.one("Permission")),
            (vec![OWNER, OWNER], "FULL_CONTROL")
        );
    }
    assert_eq!(client.get("/bkt/k?tagging").await.is(200).one("TagSet"), "");
    client.get("/bkt/none?tagging").await.is_error(404, "NoSuchKey");
    client.get("/none?versioning").await.is_error(404, "NoSuchBucket");
}

#[tokio::test]
async fn an_object_comes_back_with_all_that_was_said_of_it() {
    let client = with_bucket().await;
    let put = call("PUT", "/bkt/k")
        .header("content-type", "text/x")
        .header("content-encoding", "aws-chunked, gzip")
        .header("cache-control", "no-cache")
        .header("content-disposition", "attachment")
        .header("content-language", "de")
        .header("expires", "Thu, 01 Dec 1994 16:00:00 GMT")
        .header("x-amz-meta-colour", "r\u{f6}t")
        .header("x-amz-acl", "private")
        .header("x-amz-storage-class", "STANDARD")
        .body("abc");
    assert_eq!(client.send(put).await.is(200).header("etag"), Some(ABC));
    for method in ["GET", "HEAD"] {
        let got = client.send(call(method, "/bkt/k")).await;
        got.is(200);
        for (name, value) in [
            ("etag", ABC),
            ("content-type", "text/x"),
            ("content-encoding", "gzip"),
            ("cache-control", "no-cache"),
            ("content-disposition", "attachment"),
            ("content-language", "de"),
            ("expires", "Thu, 01 Dec 1994 16:00:00 GMT"),
            ("content-length", "3"),
            ("accept-ranges", "bytes"),
            ("last-modified", "Mon, 23 Nov 2026 12:41:28 GMT"),
        ] {
            assert_eq!(got.header(name), Some(value), "{method} {name}");
        }
        assert_eq!(got.headers["x-amz-meta-colour"].as_bytes(), "r\u{f6}t".as_bytes());
    }
    let overridden = client.get("/bkt/k?response-content-type=a%2Fb&response-cache-control=x&response-content-disposition=inline").await;
    assert_eq!(overridden.header("content-type"), Some("a/b"));
    assert_eq!(overridden.header("cache-control"), Some("x"));
    client.put("plain", "").await.is(200);
    let plain = client.get("/bkt/plain").await;
    assert_eq!(
        (plain.header("content-type"), plain.header("content-length")),
        (Some("binary/octet-stream"), Some("0"))
    );
}

#[tokio::test]
async fn ranges_are_slices_and_what_is_no_range_is_the_whole() {
    let client = with_bucket().await;
    client.put("k", "0123456789").await.is(200);
    let get = |range: &str| call("GET", "/bkt/k").header("range", range);
    for (range, body, shown) in [
        ("bytes=2-4", "234", "bytes 2-4/10"),
        ("bytes=7-", "789", "bytes 7-9/10"),
        ("bytes=-3", "789", "bytes 7-9/10"),
        ("bytes=5-99", "56789", "bytes 5-9/10"),
        ("bytes=-99", "0123456789", "bytes 0-9/10"),
    ] {
        let got = client.send(get(range)).await;
        assert_eq!(
            (got.is(206).text(), got.header("content-range")),
            (body, Some(shown)),
            "{range}"
        );
        let head = client.send(call("HEAD", "/bkt/k").header("range", range)).await;
        assert_eq!(head.is(206).header("content-length"), Some(body.len().to_string().as_str()));
    }
    for whole in ["bytes=0-1,3-4", "bytes=4-2", "items=0-1"] {
        assert_eq!(client.send(get(whole)).await.is(200).text(), "0123456789", "{whole}");
    }
    let outside = client.send(get("bytes=10-")).await;
    assert_eq!(outside.is_error(416, "InvalidRange").header("content-range"), Some("bytes */10"));
    client
        .send(get("bytes=10-").header("if-match", "\"no\""))
        .await
        .is_error(412, "PreconditionFailed");
    let other = get("bytes=0-1").header("if-range", "\"00000000000000000000000000000000\"");
    assert_eq!(client.send(other).await.is(200).text(), "0123456789");
    client
        .send(call("GET", "/bkt/k?partNumber=1").header("range", "bytes=0-1"))
        .await
        .is_error(400, "InvalidRequest");
    client.get("/bkt/k?partNumber=2").await.is_error(416, "InvalidPartNumber");
}

#[tokio::test]
async fn reads_are_conditional() {
    let client = with_bucket().await;
    client.put("k", "abc").await.is(200);
    let (before, at) = ("Mon, 23 Nov 2026 12:41:27 GMT", "Mon, 23 Nov 2026 12:41:28 GMT");
    for (headers, status) in [
        (vec![("if-match", ABC)], 200),
        (vec![("if-match", "900150983cd24fb0d6963f7d28e17f72")], 200),
        (vec![("if-match", "\"x\", *")], 200),
        (vec![("if-match", "\"x\"")], 412),
        (vec![("if-none-match", ABC)], 304),
        (vec![("if-none-match", "*")], 304),
        (vec![("if-none-match", "\"x\"")], 200),
        (vec![("if-modified-since", at)], 304),
        (vec![("if-modified-since", before)], 200),
        (vec![("if-unmodified-since", before)], 412),
        (vec![("if-unmodified-since", at)], 200),
        (vec![("if-modified-since", "yesterday")], 200),
        // an ETag stands in for the date
        (vec![("if-match", ABC), ("if-unmodified-since", before)], 200),
        (vec![("if-none-match", "\"x\""), ("if-modified-since", at)], 200),
    ] {
        for method in ["GET", "HEAD"] {
            let request = headers
                .iter()
                .fold(call(method, "/bkt/k"), |call, (name, value)| call.header(name, *value));
            let got = client.send(request).await;
            assert_eq!(got.status.as_u16(), status, "{method} {headers:?}");
            if status == 304 {
                assert_eq!(got.header("etag"), Some(ABC));
            }
        }
    }
}

#[tokio::test]
async fn writes_are_conditional() {
    let client = with_bucket().await;
    let put = |name: &str, value: &str| call("PUT", "/bkt/k").header(name, value).body("abc");
    client.send(put("if-match", "*")).await.is_error(404, "NoSuchKey");
    client.send(put("if-none-match", "*")).await.is(200);
    client.send(put("if-none-match", "*")).await.is_error(412, "PreconditionFailed");
    client.send(put("if-match", ABC)).await.is(200);
    client.send(put("if-match", "\"not-an-md5\"")).await.is_error(412, "PreconditionFailed");
    client.send(put("if-none-match", ABC)).await.is_error(501, "NotImplemented");
    client.send(put("if-modified-since", "x")).await.is_error(501, "NotImplemented");
    let delete = |value: &str| call("DELETE", "/bkt/k").header("if-match", value);
    client
        .send(delete("\"00000000000000000000000000000000\""))
        .await
        .is_error(412, "PreconditionFailed");
    client.send(delete(ABC)).await.is(204);
    client.send(delete(ABC)).await.is_error(404, "NoSuchKey");
    client.send(call("DELETE", "/bkt/k")).await.is(204);
}

#[tokio::test]
async fn a_retry_of_the_same_call_is_the_same_request() {
    let client = with_bucket().await;
    let put = |id: &str| {
        call("PUT", "/bkt/k")
            .header("if-none-match", "*")
            .header("amz-sdk-invocation-id", id)
            .body("abc")
    };
    client.send(put("one")).await.is(200);
    client.send(put("one")).await.is(200);
    client.send(put("two")).await.is_error(412, "PreconditionFailed");
}

#[tokio::test]
async fn digests_and_checksums_are_compared_kept_and_shown() {
    let client = with_bucket().await;
    let put = |name: &str, value: &str| call("PUT", "/bkt/k").header(name, value).body("123456789");
    client.send(put("content-md5", "!")).await.is_error(400, "InvalidDigest");
    client.send(put("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==")).await.is_error(400, "BadDigest");
    client.send(put("content-md5", "JfnnlDI7RTiF9RgfG2JNCw==")).await.is(200);
    for (name, right, wrong) in [
        ("crc32", "y/Q5Jg==", "AAAAAA=="),
        ("crc32c", "4waSgw==", "AAAAAA=="),
        ("crc64nvme", "rosUhgp5mIg=", "AAAAAAAAAAA="),
        ("sha1", "98O8HYCOBHMq32eZZczDTKeuNEE=", "AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        (
            "sha256",
            "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        ),
    ] {
        let header = format!("x-amz-checksum-{name}");
        client.send(put(&header, wrong)).await.is_error(400, "BadDigest");
        client.send(put(&header, "AA==")).await.is_error(400, "InvalidRequest");
        let stored = client.send(put(&header, right)).await;
        assert_eq!(
            (stored.is(200).header(&header), stored.header("x-amz-checksum-type")),
            (Some(right), Some("FULL_OBJECT"))
        );
        let enabled = |call: support::Call| call.header("x-amz-checksum-mode", "ENABLED");
        let whole = client.send(enabled(call("GET", "/bkt/k"))).await;
        assert_eq!(whole.header(&header), Some(right));
        assert_eq!(client.get("/bkt/k").await.header(&header), None);
        let part = client.send(enabled(call("GET", "/bkt/k").header("range", "bytes=0-8"))).await;
        assert_eq!(
            part.is(206).header(&header),
            None,
            "never a whole object's checksum on a range"
        );
    }
    let two = put("x-amz-checksum-crc32", "y/Q5Jg==").header("x-amz-checksum-crc32c", "4waSgw==");
    client.send(two).await.is_error(400, "InvalidRequest");
    let asked = client.send(put("x-amz-sdk-checksum-algorithm", "CRC32C")).await;
    assert_eq!(asked.is(200).header("x-amz-checksum-crc32c"), Some("4waSgw=="));
}

#[tokio::test]
async fn limits_are_kept() {
    let client = with_bucket().await;
    let long = call("PUT", &format!("/bkt/{}", "k".repeat(1025))).body("x");
    client.send(long).await.is_error(400, "KeyTooLongError");
    client.put(&"k".repeat(1024), "x").await.is(200);
    let meta = |bytes: usize| {
        call("PUT", "/bkt/m").header("x-amz-meta-n", "v".repeat(bytes - 1)).body("x")
    };
    client.send(meta(2048)).await.is(200);
    client.send(meta(2049)).await.is_error(400, "MetadataTooLarge");
    let head = call("GET", "/bkt").header("x-amz-user-agent", "x".repeat(16 * 1024));
    client.send(head).await.is_error(400, "RequestHeaderSectionTooLarge");
    let no_length = call("PUT", "/bkt/k")
        .form(Form::Unsigned)
        .header("transfer-encoding", "chunked")
        .body("abc");
    client.send(no_length).await.is_error(411, "MissingContentLength");
    let big = call("PUT", "/bkt/k")
        .form(Form::Unsigned)
        .header("content-length", (5_u64 * 1024 * 1024 * 1024 + 1).to_string());
    client.send(big).await.is_error(400, "EntityTooLarge");
    let xml = call("POST", "/bkt?delete").body(vec![b' '; 2 * 1024 * 1024 + 1]);
    client.send(xml).await.is_error(400, "MaxMessageLengthExceeded");
}

#[tokio::test]
async fn nothing_is_silently_ignored() {
    let client = with_bucket().await;
    client.put("k", "abc").await.is(200);
    for (method, target) in [
        ("PUT", "/bkt/k?foo"),
        ("PUT", "/bkt/k?tagging"),
        ("PUT", "/bkt/k?acl"),
        ("GET", "/bkt/k?attributes"),
        ("GET", "/bkt/k?torrent"),
        ("GET", "/bkt?policy"),
        ("GET", "/bkt?list-type=3&foo"),
        ("GET", "/bkt?lifecycle"),
        ("DELETE", "/bkt?cors"),
        ("POST", "/bkt/k?restore"),
        ("POST", "/bkt/k?select&select-type=2"),
        ("POST", "/bkt"),
        ("PUT", "/"),
    ] {
        client.send(call(method, target)).await.is_error(501, "NotImplemented");
    }
    for (name, value) in [
        ("x-amz-server-side-encryption", "AES256"),
        ("x-amz-tagging", "a=b"),
        ("x-amz-object-lock-mode", "GOVERNANCE"),
        ("x-amz-acl", "public-read"),
        ("x-amz-storage-class", "GLACIER"),
        ("x-amz-grant-read", "id=x"),
        ("x-amz-new-thing", "1"),
        ("x-amz-write-offset-bytes", "3"),
        ("content-range", "bytes 0-2/3"),
        ("range", "bytes=0-1"),
    ] {
        client
            .send(call("PUT", "/bkt/k").header(name, value).body("new"))
            .await
            .is_error(501, "NotImplemented");
    }
    client.send(call("PATCH", "/bkt/k")).await.is_error(405, "MethodNotAllowed");
    client.send(call("DELETE", "/bkt/k?versionId=abc")).await.is_error(400, "InvalidArgument");
    assert_eq!(client.get("/bkt/k?versionId=null&x-id=GetObject").await.is(200).text(), "abc");
}

#[tokio::test]
async fn copies_keep_or_replace_what_is_said() {
    let client = with_bucket().await;
    let put = call("PUT", "/bkt/a%20b%2Bc")
        .header("x-amz-meta-colour", "red")
        .header("content-type", "text/x")
        .header("x-amz-checksum-crc32", "NSRBwg==");
    client.send(put.body("abc")).await.is(200);
    let source = format!("/bkt/{}", encode("a b+c"));
    let copy =
        |key: &str| call("PUT", &format!("/bkt/{key}")).header("x-amz-copy-source", source.clone());
    let copied = client.send(copy("kept")).await;
    assert_eq!(copied.is(200).one("ETag"), "&quot;900150983cd24fb0d6963f7d28e17f72&quot;");
    assert_eq!(copied.one("ChecksumCRC32"), "NSRBwg==");
    let kept = client.get("/bkt/kept").await;
    assert_eq!(
        (kept.is(200).text(), kept.header("x-amz-meta-colour"), kept.header("content-type")),
        ("abc", Some("red"), Some("text/x"))
    );
    let replace = |key: &str| {
        copy(key).header("x-amz-metadata-directive", "REPLACE").header("x-amz-meta-size", "big")
    };
    client.send(replace("new")).await.is(200);
    let new = client.get("/bkt/new").await;
    assert_eq!(
        (new.header("x-amz-meta-colour"), new.header("x-amz-meta-size")),
        (None, Some("big"))
    );
    let itself = &encode("a b+c");
    client.send(copy(itself)).await.is_error(400, "InvalidRequest");
    client.send(replace(itself)).await.is(200);
    let itself = client.get(&source).await;
    assert_eq!((itself.is(200).text(), itself.header("x-amz-meta-size")), ("abc", Some("big")));
    client.send(copy("x").header("x-amz-copy-source-if-match", ABC)).await.is(200);
    client
        .send(copy("x").header("x-amz-copy-source-if-none-match", ABC))
        .await
        .is_error(412, "PreconditionFailed");
    client.send(copy("x").header("if-none-match", "*")).await.is_error(412, "PreconditionFailed");
    let other = client.send(copy("sha").header("x-amz-checksum-algorithm", "SHA256")).await;
    assert_eq!(other.is(200).one("ChecksumSHA256"), "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
    let from = |text: &str| call("PUT", "/bkt/y").header("x-amz-copy-source", text);
    client.send(from("bkt/none")).await.is_error(404, "NoSuchKey");
    client.send(from("none/k")).await.is_error(404, "NoSuchBucket");
    client.send(from("bkt")).await.is_error(400, "InvalidArgument");
    client.send(from("bkt/kept?versionId=x")).await.is_error(400, "InvalidArgument");
}

#[tokio::test]
async fn many_are_deleted_at_once() {
    let client = with_bucket().await;
    for key in ["a", "b", "c&d"] {
        client.put(&encode(key), "x").await.is(200);
    }
    let xml = |objects: &str, quiet: bool| {
        call("POST", "/bkt?delete")
            .body(format!("<Delete>{objects}<Quiet>{quiet}</Quiet></Delete>"))
    };
    let object = |key: &str| format!("<Object><Key>{key}</Key></Object>");
    let deleted =
        client.send(xml(&(object("a") + &object("c&amp;d") + &object("none")), false)).await;
    assert_eq!(deleted.is(200).all("Key"), ["a", "c&amp;d", "none"]);
    client.get("/bkt/a").await.is_error(404, "NoSuchKey");
    let bad = object(&"k".repeat(1025)) + &object("b");
    let quiet = client.send(xml(&bad, true)).await;
    assert_eq!((quiet.is(200).all("Deleted").len(), quiet.one("Code")), (0, "KeyTooLongError"));
    let many: String = (0..1001).map(|at| object(&at.to_string())).collect();
    client.send(xml(&many, true)).await.is_error(400, "MalformedXML");
    client.send(xml("", true)).await.is_error(400, "MalformedXML");
    client
        .send(xml(&object("a"), true).header("content-md5", "AAAAAAAAAAAAAAAAAAAAAA=="))
        .await
        .is_error(400, "BadDigest");
    assert_eq!(client.get("/bkt?list-type=2").await.one("KeyCount"), "0");
}

#[tokio::test]
async fn trouble_says_what_is_known_of_the_outcome() {
    let client = with_bucket().await;
    for (failure, status, code, retry, outcome) in [
        (Failure::Overloaded, 503, "SlowDown", Some("1"), None),
        (Failure::Unavailable("x".into()), 503, "ServiceUnavailable", Some("1"), None),
        (Failure::Unknown("x".into()), 500, "InternalError", None, Some("unknown")),
        (Failure::NoSpace, 507, "InsufficientStorage", None, None),
        (Failure::BucketBusy, 409, "OperationAborted", None, None),
        (Failure::Internal("secret detail".into()), 500, "InternalError", None, None),
    ] {
        *client.backend.failure.lock().unwrap() = Some(failure);
        let answer = client.put("k", "abc").await;
        answer.is_error(status, code);
        assert_eq!(
            (answer.header("retry-after"), answer.header("x-ashlar-outcome")),
            (retry, outcome)
        );
        assert!(!answer.text().contains("secret"));
    }
}
