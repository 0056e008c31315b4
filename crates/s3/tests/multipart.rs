//! Multipart uploads: whole or not at all, with the ETag and the checksums that their parts make.

#![allow(clippy::unwrap_used, reason = "a test says by failing what was not there")]

mod support;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest as _, Md5};
use support::{Answer, Call, Client, call, with_bucket};

const PART: usize = 5 * 1024 * 1024;

fn bytes(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at % 241).unwrap() ^ seed).collect()
}

async fn begin(client: &Client, headers: &[(&str, &str)]) -> String {
    let create = headers
        .iter()
        .fold(call("POST", "/bkt/k?uploads"), |call, (name, value)| call.header(name, *value));
    client.send(create).await.is(200).one("UploadId").to_owned()
}

async fn part(client: &Client, upload: &str, number: u16, body: Vec<u8>) -> String {
    let put = call("PUT", &format!("/bkt/k?partNumber={number}&uploadId={upload}")).body(body);
    client.send(put).await.is(200).header("etag").unwrap().to_owned()
}

fn complete(upload: &str, parts: &[(u16, &str)]) -> Call {
    let parts = parts.iter().map(|(number, etag)| {
        format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>")
    });
    let xml =
        format!("<CompleteMultipartUpload>{}</CompleteMultipartUpload>", parts.collect::<String>());
    call("POST", &format!("/bkt/k?uploadId={upload}")).body(xml)
}

fn etag_of(parts: &[&[u8]]) -> String {
    let mut all = Md5::new();
    parts.iter().for_each(|part| all.update(Md5::digest(part)));
    format!("{}-{}", hex::encode(all.finalize()), parts.len())
}

#[tokio::test]
async fn parts_become_one_object_and_a_repeated_completion_says_the_same() {
    let client = with_bucket().await;
    let upload = begin(&client, &[("x-amz-meta-colour", "red")]).await;
    let (first, second) = (bytes(1, PART), bytes(2, 100));
    let one = part(&client, &upload, 3, first.clone()).await;
    part(&client, &upload, 7, bytes(9, 50)).await;
    let two = part(&client, &upload, 7, second.clone()).await;
    client.get("/bkt/k").await.is_error(404, "NoSuchKey");
    let listed = client.get(&format!("/bkt/k?uploadId={upload}&max-parts=1")).await;
    assert_eq!((listed.is(200).all("PartNumber"), listed.one("IsTruncated")), (vec!["3"], "true"));
    let rest = client.get(&format!("/bkt/k?uploadId={upload}&part-number-marker=3")).await;
    assert_eq!((rest.all("PartNumber"), rest.one("Size")), (vec!["7"], "100"));
    let etag = etag_of(&[&first, &second]);
    let done =
        |answer: &Answer| assert_eq!(answer.is(200).one("ETag"), format!("&quot;{etag}&quot;"));
    done(&client.send(complete(&upload, &[(3, &one), (7, &two)])).await);
    done(&client.send(complete(&upload, &[(3, &one), (7, &two)])).await);
    let whole = client.get("/bkt/k").await;
    assert!(whole.is(200).body == [first, second.clone()].concat(), "the bytes of both parts");
    assert_eq!(
        (whole.header("etag"), whole.header("x-amz-meta-colour")),
        (Some(format!("\"{etag}\"").as_str()), Some("red"))
    );
    let last = client.get("/bkt/k?partNumber=7").await;
    assert!(last.is(206).body == second, "the bytes of one part");
    assert_eq!(last.header("x-amz-mp-parts-count"), Some("2"));
    client.get(&format!("/bkt/k?uploadId={upload}")).await.is_error(404, "NoSuchUpload");
}

#[tokio::test]
async fn bad_completions_change_nothing() {
    let client = with_bucket().await;
    let upload = begin(&client, &[]).await;
    let small = part(&client, &upload, 1, bytes(1, 100)).await;
    let last = part(&client, &upload, 2, bytes(2, 100)).await;
    let wrong = "\"00000000000000000000000000000000\"";
    for (parts, code) in [
        (vec![], "MalformedXML"),
        (vec![(1, wrong)], "InvalidPart"),
        (vec![(1, small.as_str()), (3, wrong)], "InvalidPart"),
        (vec![(2, last.as_str()), (1, small.as_str())], "InvalidPartOrder"),
        (vec![(1, small.as_str()), (1, small.as_str())], "InvalidPartOrder"),
        (vec![(1, small.as_str()), (2, last.as_str())], "EntityTooSmall"),
    ] {
        client.send(complete(&upload, &parts)).await.is_error(400, code);
    }
    client
        .send(call("POST", &format!("/bkt/k?uploadId={upload}")))
        .await
        .is_error(400, "MalformedXML");
    let size = complete(&upload, &[(1, &small)]).header("x-amz-mp-object-size", "101");
    client.send(size).await.is_error(400, "InvalidRequest");
    let put = |query: &str| call("PUT", &format!("/bkt/k?{query}")).body("x");
    client
        .send(put(&format!("partNumber=0&uploadId={upload}")))
        .await
        .is_error(400, "InvalidArgument");
    client
        .send(put(&format!("partNumber=10001&uploadId={upload}")))
        .await
        .is_error(400, "InvalidArgument");
    client
        .send(put("partNumber=1&uploadId=00000000000000000000000000000abc"))
        .await
        .is_error(404, "NoSuchUpload");
    client.send(put("partNumber=1&uploadId=nonsense")).await.is_error(404, "NoSuchUpload");
    client.put("k", "old").await.is(200);
    let racing = complete(&upload, &[(1, &small)]).header("if-none-match", "*");
    client.send(racing).await.is_error(412, "PreconditionFailed");
    client.send(call("DELETE", &format!("/bkt/k?uploadId={upload}"))).await.is(204);
    client
        .send(call("DELETE", &format!("/bkt/k?uploadId={upload}")))
        .await
        .is_error(404, "NoSuchUpload");
    client.send(complete(&upload, &[(1, &small)])).await.is_error(404, "NoSuchUpload");
    assert_eq!(client.get("/bkt/k").await.text(), "old");
}

#[tokio::test]
async fn checksums_of_parts_make_that_of_the_whole() {
    let client = with_bucket().await;
    let (first, second) = (bytes(1, PART), bytes(2, 10));
    let crc64 = crc_fast::checksum(
        crc_fast::CrcAlgorithm::Crc64Nvme,
        &[first.clone(), second.clone()].concat(),
    );
    let crc64 = STANDARD.encode(crc64.to_be_bytes());
    let composite = {
        use sha2::{Digest as _, Sha256};
        let parts = [Sha256::digest(&first), Sha256::digest(&second)].concat();
        format!("{}-2", STANDARD.encode(Sha256::digest(parts)))
    };
    for (algorithm, kind, element, expected) in [
        ("CRC64NVME", "FULL_OBJECT", "ChecksumCRC64NVME", &crc64),
        ("SHA256", "COMPOSITE", "ChecksumSHA256", &composite),
    ] {
        let upload = begin(&client, &[("x-amz-checksum-algorithm", algorithm)]).await;
        let one = part(&client, &upload, 1, first.clone()).await;
        let two = part(&client, &upload, 2, second.clone()).await;
        let other = call("PUT", &format!("/bkt/k?partNumber=2&uploadId={upload}"))
            .header("x-amz-checksum-crc32", "NSRBwg==")
            .body("abc");
        client.send(other).await.is_error(400, "InvalidRequest");
        let header = format!("x-amz-checksum-{}", algorithm.to_lowercase());
        let parts = [(1, one.as_str()), (2, two.as_str())];
        let lie = if algorithm == "SHA256" {
            format!("{}-2", STANDARD.encode([0; 32]))
        } else {
            STANDARD.encode([0; 8])
        };
        client
            .send(complete(&upload, &parts).header(&header, lie))
            .await
            .is_error(400, "BadDigest");
        let done = client.send(complete(&upload, &parts).header(&header, expected.clone())).await;
        assert_eq!(
            (done.is(200).one(element), done.one("ChecksumType")),
            (expected.as_str(), kind)
        );
        let head =
            client.send(call("HEAD", "/bkt/k").header("x-amz-checksum-mode", "ENABLED")).await;
        assert_eq!(
            (head.header(&header), head.header("x-amz-checksum-type")),
            (Some(expected.as_str()), Some(kind))
        );
    }
    let bad = call("POST", "/bkt/k?uploads")
        .header("x-amz-checksum-algorithm", "SHA1")
        .header("x-amz-checksum-type", "FULL_OBJECT");
    client.send(bad).await.is_error(400, "InvalidRequest");
}

#[tokio::test]
async fn parts_are_copied_from_objects() {
    let client = with_bucket().await;
    client.put("source", "0123456789").await.is(200);
    let upload = begin(&client, &[("x-amz-checksum-algorithm", "CRC32")]).await;
    let copy = |range: &str| {
        call("PUT", &format!("/bkt/k?partNumber=1&uploadId={upload}"))
            .header("x-amz-copy-source", "/bkt/source")
            .header("x-amz-copy-source-range", range)
    };
    client.send(copy("bytes=5-10")).await.is_error(400, "InvalidArgument");
    client.send(copy("bytes=5-")).await.is_error(400, "InvalidArgument");
    let copied = client.send(copy("bytes=2-4")).await;
    assert_eq!(copied.is(200).all("ChecksumCRC32").len(), 1);
    let etag = copied.one("ETag").replace("&quot;", "\"");
    client.send(complete(&upload, &[(1, &etag)])).await.is(200);
    assert_eq!(client.get("/bkt/k").await.text(), "234");
}

#[tokio::test]
async fn open_uploads_are_listed_by_key_and_age() {
    let client = with_bucket().await;
    let mut ids = Vec::new();
    for key in ["b/1", "a", "b/1", "c"] {
        let made = client.send(call("POST", &format!("/bkt/{key}?uploads"))).await;
        ids.push(made.is(200).one("UploadId").to_owned());
    }
    let all = client.get("/bkt?uploads").await;
    assert_eq!(all.is(200).all("Key"), ["a", "b/1", "b/1", "c"]);
    assert_eq!(all.all("UploadId"), [&ids[1], &ids[0], &ids[2], &ids[3]]);
    let rolled = client.get("/bkt?uploads&delimiter=%2F&max-uploads=2").await;
    assert_eq!((rolled.all("Key"), rolled.one("NextKeyMarker")), (vec!["a"], "b/"));
}
