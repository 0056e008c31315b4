//! Who may act: every form of signature is taken, every lie is refused with its code, and nothing of it is stored.

#![allow(clippy::unwrap_used, reason = "a test says by failing what was not there")]

mod support;
use support::{Form, OWNER, REGION, call, client_in, with_bucket};

/// CRC32 of `body`, as a trailer.
fn crc32(body: &[u8]) -> (String, String) {
    use base64::Engine as _;
    let sum =
        u32::try_from(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, body)).unwrap();
    (
        "x-amz-checksum-crc32".into(),
        base64::engine::general_purpose::STANDARD.encode(sum.to_be_bytes()),
    )
}

fn body() -> Vec<u8> {
    (0..17_321_u32).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[tokio::test]
async fn every_form_of_signature_stores_the_same_bytes() {
    let client = with_bucket().await;
    for form in [
        Form::Hashed,
        Form::Unsigned,
        Form::Presigned(60),
        Form::Chunks,
        Form::ChunksTrailer,
        Form::UnsignedTrailer,
    ] {
        let trailing = matches!(form, Form::ChunksTrailer | Form::UnsignedTrailer);
        let target = format!("/bkt/k%20{form:?}%2B/a//b").replace(['(', ')'], "_");
        let put = call("PUT", &target).body(body()).form(form).with(|call| {
            call.trailer = trailing.then(|| crc32(&body()));
        });
        client.send(put).await.is(200);
        let got = client.send(call("GET", &target).form(Form::Presigned(5))).await;
        assert_eq!(got.is(200).body, body(), "{form:?}");
        assert_eq!(got.header("content-encoding"), None, "aws-chunked is not what the object is");
    }
}

#[tokio::test]
async fn lies_about_the_body_store_nothing() {
    let client = with_bucket().await;
    let flip = |mut body: Vec<u8>| {
        body[9000] ^= 1;
        body
    };
    let cut = |mut body: Vec<u8>| {
        body.truncate(9000);
        body
    };
    let cut_before_the_end = |mut body: Vec<u8>| {
        let end = body.windows(4).rposition(|at| at == b"\r\n0;").unwrap();
        body.truncate(end + 2);
        body
    };
    type Tamper = fn(Vec<u8>) -> Vec<u8>;
    let cases: [(Form, Tamper, u16, &str); 8] = [
        (Form::Hashed, flip, 400, "XAmzContentSHA256Mismatch"),
        (Form::Hashed, cut, 400, "IncompleteBody"),
        (Form::Unsigned, cut, 400, "IncompleteBody"),
        (Form::Chunks, flip, 403, "SignatureDoesNotMatch"),
        (Form::Chunks, cut, 400, "IncompleteBody"),
        (Form::Chunks, cut_before_the_end, 400, "IncompleteBody"),
        (Form::ChunksTrailer, flip, 403, "SignatureDoesNotMatch"),
        (Form::UnsignedTrailer, flip, 400, "BadDigest"),
    ];
    for (form, tamper, status, code) in cases {
        let put = call("PUT", "/bkt/lie").body(body()).form(form).with(|call| {
            call.tamper = tamper;
            let trailing = matches!(form, Form::ChunksTrailer | Form::UnsignedTrailer);
            call.trailer = trailing.then(|| crc32(&body()));
        });
        client.send(put).await.is_error(status, code);
        client.get("/bkt/lie").await.is_error(404, "NoSuchKey");
    }
}

#[tokio::test]
async fn a_trailer_that_was_announced_must_come_and_be_signed() {
    let client = with_bucket().await;
    let without = call("PUT", "/bkt/k")
        .body("abc")
        .form(Form::UnsignedTrailer)
        .header("x-amz-trailer", "x-amz-checksum-crc32");
    client.send(without).await.is_error(400, "InvalidRequest");
    let forged = call("PUT", "/bkt/k").body("abc").form(Form::ChunksTrailer).with(|call| {
        call.trailer = Some(crc32(b"abc"));
        call.tamper = |body| {
            let text = String::from_utf8(body).unwrap();
            text.replace("x-amz-checksum-crc32:N", "x-amz-checksum-crc32:M").into_bytes()
        };
    });
    client.send(forged).await.is_error(403, "SignatureDoesNotMatch");
    client.get("/bkt/k").await.is_error(404, "NoSuchKey");
}

#[tokio::test]
async fn wrong_keys_dates_and_regions_have_their_codes() {
    let client = with_bucket().await;
    let get = || call("GET", "/bkt?list-type=2");
    client.send(get().form(Form::Anonymous)).await.is_error(403, "AccessDenied");
    client
        .send(get().with(|c| c.access = "AKIANOBODY".into()))
        .await
        .is_error(403, "InvalidAccessKeyId");
    client
        .send(get().with(|c| c.secret = "wrong".into()))
        .await
        .is_error(403, "SignatureDoesNotMatch");
    for skew in [-16 * 60, 16 * 60] {
        client.send(get().with(|c| c.skew = skew)).await.is_error(403, "RequestTimeTooSkewed");
    }
    client.send(get().with(|c| c.skew = -14 * 60)).await.is(200);
    let elsewhere = client.send(get().with(|c| c.region = "mars-1".into())).await;
    assert_eq!(elsewhere.is_error(400, "AuthorizationHeaderMalformed").one("Region"), REGION);
    let presigned =
        |seconds, skew| get().form(Form::Presigned(seconds)).with(move |c| c.skew = skew);
    client.send(presigned(60, -50)).await.is(200);
    client.send(presigned(60, -70)).await.is_error(403, "AccessDenied");
    client.send(presigned(604_800, -100_000)).await.is(200);
    client.send(presigned(604_801, 0)).await.is_error(400, "AuthorizationQueryParametersError");
    client.send(presigned(60, 3600)).await.is_error(403, "RequestTimeTooSkewed");
    client
        .send(presigned(60, 0).with(|c| c.secret = "wrong".into()))
        .await
        .is_error(403, "SignatureDoesNotMatch");
}

#[tokio::test]
async fn other_ways_of_signing_are_refused() {
    let client = with_bucket().await;
    let with = |name: &str, value: &str| {
        let (name, value) = (name.to_owned(), value.to_owned());
        call("GET", "/bkt").form(Form::Anonymous).with(|c| c.unsigned = vec![(name, value)])
    };
    client.send(with("authorization", "AWS AKIATEST:c2ln")).await.is_error(400, "InvalidRequest");
    client
        .send(with("authorization", "Bearer x"))
        .await
        .is_error(400, "AuthorizationHeaderMalformed");
    client
        .send(call("GET", "/bkt?AWSAccessKeyId=a&Signature=b&Expires=1").form(Form::Anonymous))
        .await
        .is_error(400, "InvalidRequest");
    let twice = call("GET", "/bkt").form(Form::Presigned(60)).with(|c| {
        c.unsigned = vec![("authorization".into(), "AWS4-HMAC-SHA256 Credential=x".into())];
    });
    client.send(twice).await.is_error(400, "InvalidArgument");
    let form = call("POST", "/bkt")
        .header("content-type", "multipart/form-data; boundary=x")
        .body("--x--");
    client.send(form).await.is_error(501, "NotImplemented");
    let token = call("GET", "/bkt").header("x-amz-security-token", "t");
    client.send(token).await.is_error(400, "InvalidToken");
}

#[tokio::test]
async fn headers_that_act_must_be_signed() {
    let client = with_bucket().await;
    let slipped_in = call("PUT", "/bkt/k").body("abc").with(|c| {
        c.unsigned = vec![("x-amz-meta-colour".into(), "red".into())];
    });
    client.send(slipped_in).await.is_error(403, "AccessDenied");
    client.get("/bkt/k").await.is_error(404, "NoSuchKey");
}

#[tokio::test]
async fn a_presigned_url_may_carry_headers_in_its_query() {
    let client = with_bucket().await;
    let put = call("PUT", "/bkt/k?x-amz-meta-colour=red&x-id=PutObject")
        .body("abc")
        .form(Form::Presigned(60));
    client.send(put).await.is(200);
    assert_eq!(client.get("/bkt/k").await.header("x-amz-meta-colour"), Some("red"));
    let unknown = call("PUT", "/bkt/k?x-amz-tagging=a%3Db").body("abc").form(Form::Presigned(60));
    client.send(unknown).await.is_error(501, "NotImplemented");
}

#[tokio::test]
async fn the_expected_owner_is_compared() {
    let client = with_bucket().await;
    let expecting = |owner: &str| call("GET", "/bkt").header("x-amz-expected-bucket-owner", owner);
    client.send(expecting(OWNER)).await.is(200);
    client.send(expecting("somebody")).await.is_error(403, "AccessDenied");
}

#[tokio::test]
async fn a_bucket_may_stand_in_the_host() {
    let client = with_bucket().await;
    let at = |method: &str, target: &str, host: &str| {
        let host = host.to_owned();
        call(method, target).with(|c| c.host = host)
    };
    client.send(at("PUT", "/a/b", "bkt.s3.test:9000").body("abc")).await.is(200);
    assert_eq!(client.get("/bkt/a/b").await.is(200).text(), "abc");
    assert_eq!(client.send(at("GET", "/bkt/a/b", "s3.test")).await.is(200).text(), "abc");
    let listed = client.send(at("GET", "/?list-type=2", "bkt.s3.test")).await;
    assert_eq!(listed.is(200).one("Key"), "a/b");
}

#[tokio::test]
async fn the_classic_region_has_its_ways() {
    let client = client_in("us-east-1");
    let classic =
        |method: &str, target: &str| call(method, target).with(|c| c.region = "us-east-1".into());
    client.send(classic("PUT", "/abc")).await.is(200);
    client.send(classic("PUT", "/abc")).await.is(200);
    let location = client.send(classic("GET", "/abc?location")).await;
    assert!(location.is(200).text().ends_with("/\"></LocationConstraint>"), "{}", location.text());
}
