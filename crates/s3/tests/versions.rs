//! Versions: what is overwritten and deleted stays, by its id, in buckets that were told so.

#![allow(clippy::unwrap_used, reason = "a test says by failing what was not there")]

mod support;
use support::{Answer, Call, Client, call, with_bucket};

/// A well-formed id that no version has.
const OF_NOTHING: &str = "0000000000000abc00000000000000de";
/// MD5 of `one`, as an ETag.
const ONE: &str = "\"f97c5d29941bfb1b2fdab0874906ab82\"";

fn versioning(status: &str) -> Call {
    let xml =
        format!("<VersioningConfiguration><Status>{status}</Status></VersioningConfiguration>");
    call("PUT", "/bkt?versioning").body(xml)
}

async fn with_versions() -> Client {
    let client = with_bucket().await;
    client.send(versioning("Enabled")).await.is(200);
    client
}

fn id(answer: &Answer) -> String {
    answer.header("x-amz-version-id").unwrap().to_owned()
}

async fn put(client: &Client, key: &str, body: &str) -> String {
    id(client.put(key, body).await.is(200))
}

async fn delete(client: &Client, key: &str) -> String {
    let deleted = client.send(call("DELETE", &format!("/bkt/{key}"))).await;
    assert_eq!(deleted.is(204).header("x-amz-delete-marker"), Some("true"));
    id(&deleted)
}

#[tokio::test]
async fn a_bucket_says_whether_it_keeps_versions() {
    let client = with_bucket().await;
    assert!(client.get("/bkt?versioning").await.is(200).all("Status").is_empty());
    for status in ["Enabled", "Suspended", "Enabled"] {
        client.send(versioning(status)).await.is(200);
        assert_eq!(client.get("/bkt?versioning").await.is(200).one("Status"), status);
    }
    client.send(versioning("Off")).await.is_error(400, "MalformedXML");
    client.send(call("PUT", "/bkt?versioning")).await.is_error(400, "MalformedXML");
    let with_mfa = versioning("Enabled").header("x-amz-mfa", "serial 123456");
    client.send(with_mfa).await.is_error(501, "NotImplemented");
    client
        .send(versioning("Enabled").with(|call| call.target = "/none?versioning".into()))
        .await
        .is_error(404, "NoSuchBucket");
}

#[tokio::test]
async fn what_is_overwritten_is_read_by_its_id() {
    let client = with_versions().await;
    let (first, second) = (put(&client, "k", "one").await, put(&client, "k", "two").await);
    assert_ne!(first, second);
    for (target, body, version) in [
        ("/bkt/k".to_owned(), "two", &second),
        (format!("/bkt/k?versionId={first}"), "one", &first),
        (format!("/bkt/k?versionId={second}"), "two", &second),
    ] {
        let got = client.get(&target).await;
        assert_eq!((got.is(200).text(), &id(&got)), (body, version), "{target}");
        assert_eq!(&id(client.send(call("HEAD", &target)).await.is(200)), version, "{target}");
    }
    let range = call("GET", &format!("/bkt/k?versionId={first}")).header("range", "bytes=1-");
    assert_eq!(client.send(range).await.is(206).text(), "ne");
    let tags = client.get(&format!("/bkt/k?tagging&versionId={first}")).await;
    assert_eq!(id(tags.is(200)), first);
    client.get(&format!("/bkt/k?versionId={OF_NOTHING}")).await.is_error(404, "NoSuchVersion");
    client.get("/bkt/k?versionId=null").await.is_error(404, "NoSuchVersion");
    let bad = client.get("/bkt/k?versionId=x").await;
    assert_eq!(bad.is_error(400, "InvalidArgument").one("ArgumentValue"), "x");
    client.get("/bkt/k?versionId").await.is_error(400, "InvalidArgument");
}

#[tokio::test]
async fn a_delete_hides_a_key_and_deleting_the_marker_brings_it_back() {
    let client = with_versions().await;
    let object = put(&client, "k", "one").await;
    let marker = delete(&client, "k").await;
    for method in ["GET", "HEAD"] {
        let hidden = client.send(call(method, "/bkt/k")).await;
        assert_eq!(hidden.is(404).header("x-amz-delete-marker"), Some("true"));
        assert_eq!(id(&hidden), marker);
        let named = client.send(call(method, &format!("/bkt/k?versionId={marker}"))).await;
        assert_eq!(named.is(405).header("x-amz-delete-marker"), Some("true"));
        assert_eq!(named.header("allow"), Some("DELETE"));
        assert!(named.header("last-modified").is_some());
    }
    client.get("/bkt/k").await.is_error(404, "NoSuchKey");
    client.get(&format!("/bkt/k?acl&versionId={marker}")).await.is_error(405, "MethodNotAllowed");
    assert_eq!(client.get(&format!("/bkt/k?versionId={object}")).await.is(200).text(), "one");
    assert_eq!(client.get("/bkt?list-type=2").await.one("KeyCount"), "0");
    client.send(call("DELETE", "/bkt")).await.is_error(409, "BucketNotEmpty");

    let target = format!("/bkt/k?versionId={marker}");
    let removed = client.send(call("DELETE", &target)).await;
    assert_eq!(removed.is(204).header("x-amz-delete-marker"), Some("true"));
    assert_eq!(id(&removed), marker);
    assert_eq!(id(client.get("/bkt/k").await.is(200)), object);
    client.send(call("DELETE", &target)).await.is(204);

    let removed = client.send(call("DELETE", &format!("/bkt/k?versionId={object}"))).await;
    assert_eq!((removed.is(204).header("x-amz-delete-marker"), id(&removed)), (None, object));
    client.send(call("DELETE", "/bkt")).await.is(204);
}

#[tokio::test]
async fn conditions_are_judged_on_the_newest_version() {
    let client = with_versions().await;
    put(&client, "k", "one").await;
    let absent = || call("PUT", "/bkt/k").header("if-none-match", "*").body("two");
    client.send(absent()).await.is_error(412, "PreconditionFailed");
    let matching = |target: &str| call("DELETE", target).header("if-match", ONE);
    let version = format!("/bkt/k?versionId={OF_NOTHING}");
    client.send(matching(&version)).await.is_error(501, "NotImplemented");
    client.send(matching("/bkt/k")).await.is(204);
    client.send(matching("/bkt/k")).await.is_error(404, "NoSuchKey");
    client.send(absent()).await.is(200);
}

#[tokio::test]
async fn what_was_written_without_versions_is_null() {
    let client = with_bucket().await;
    assert_eq!(client.put("k", "old").await.is(200).header("x-amz-version-id"), None);
    assert_eq!(client.get("/bkt/k").await.header("x-amz-version-id"), None);
    client.send(versioning("Enabled")).await.is(200);
    assert_eq!(id(&client.get("/bkt/k").await), "null");
    let kept = put(&client, "k", "kept").await;
    assert_eq!(client.get("/bkt/k?versionId=null").await.is(200).text(), "old");

    client.send(versioning("Suspended")).await.is(200);
    assert_eq!(put(&client, "k", "new").await, "null");
    assert_eq!(client.get("/bkt/k?versionId=null").await.is(200).text(), "new");
    assert_eq!(client.get(&format!("/bkt/k?versionId={kept}")).await.is(200).text(), "kept");
    assert_eq!(delete(&client, "k").await, "null");
    client.get("/bkt/k?versionId=null").await.is_error(405, "MethodNotAllowed");
    assert_eq!(client.get("/bkt?versions").await.all("VersionId"), ["null", kept.as_str()]);
}

#[tokio::test]
async fn a_copy_names_what_it_came_from_and_restores_what_was() {
    let client = with_versions().await;
    let (old, new) = (put(&client, "k", "one").await, put(&client, "k", "two").await);
    let copy = |key: &str, source: &str| {
        call("PUT", &format!("/bkt/{key}")).header("x-amz-copy-source", format!("/bkt/{source}"))
    };
    let from = |answer: &Answer| answer.header("x-amz-copy-source-version-id").map(str::to_owned);
    assert_eq!(from(client.send(copy("a", "k")).await.is(200)), Some(new));
    let named = format!("k?versionId={old}");
    assert_eq!(from(client.send(copy("b", &named)).await.is(200)), Some(old.clone()));
    assert_eq!(client.get("/bkt/b").await.text(), "one");

    let restored = client.send(copy("k", &named)).await;
    assert_eq!(from(restored.is(200)), Some(old));
    let got = client.get("/bkt/k").await;
    assert_eq!((got.text(), id(&got)), ("one", id(&restored)));
    client.send(copy("k", "k")).await.is_error(400, "InvalidRequest");
    let replaced = copy("k", "k")
        .header("x-amz-metadata-directive", "REPLACE")
        .header("x-amz-meta-colour", "red");
    client.send(replaced).await.is(200);
    assert_eq!(client.get("/bkt/k").await.header("x-amz-meta-colour"), Some("red"));
    assert_eq!(client.get("/bkt?versions&prefix=k").await.all("VersionId").len(), 4);

    let marker = delete(&client, "k").await;
    let hidden = client.send(copy("c", "k")).await;
    assert_eq!(hidden.is_error(404, "NoSuchKey").header("x-amz-delete-marker"), None);
    let named = format!("k?versionId={marker}");
    client.send(copy("c", &named)).await.is_error(400, "InvalidRequest");
    let none = format!("k?versionId={OF_NOTHING}");
    client.send(copy("c", &none)).await.is_error(404, "NoSuchVersion");
}

#[tokio::test]
async fn an_upload_becomes_a_version_of_parts_of_versions() {
    let client = with_versions().await;
    let (old, _) = (put(&client, "source", "one").await, put(&client, "source", "two").await);
    let upload = client.send(call("POST", "/bkt/k?uploads")).await;
    let upload = upload.is(200).one("UploadId");
    let copy = call("PUT", &format!("/bkt/k?partNumber=1&uploadId={upload}"))
        .header("x-amz-copy-source", format!("/bkt/source?versionId={old}"));
    let copied = client.send(copy).await;
    assert_eq!(copied.is(200).header("x-amz-copy-source-version-id"), Some(old.as_str()));
    let part = format!("<PartNumber>1</PartNumber><ETag>{}</ETag>", copied.one("ETag"));
    let xml = format!("<CompleteMultipartUpload><Part>{part}</Part></CompleteMultipartUpload>");
    let complete = call("POST", &format!("/bkt/k?uploadId={upload}")).body(xml);
    let version = id(client.send(complete.clone()).await.is(200));
    assert_eq!(id(client.send(complete).await.is(200)), version, "a repeated completion");
    let got = client.get(&format!("/bkt/k?versionId={version}")).await;
    assert_eq!(got.is(200).text(), "one");
}

#[tokio::test]
async fn many_versions_are_deleted_at_once() {
    let client = with_versions().await;
    let (a, b) = (put(&client, "a", "x").await, put(&client, "b", "x").await);
    let marker = delete(&client, "a").await;
    let object = |key: &str, version: &str| {
        format!("<Object><Key>{key}</Key><VersionId>{version}</VersionId></Object>")
    };
    let objects = [
        object("a", &marker),
        object("a", &a),
        "<Object><Key>b</Key></Object>".into(),
        object("b", "x"),
        object("b", OF_NOTHING),
    ];
    let xml = format!("<Delete>{}</Delete>", objects.concat());
    let answer = client.send(call("POST", "/bkt?delete").body(xml)).await;
    let deleted = answer.is(200).all("Deleted");
    let marked = |id: &str| {
        format!(
            "<DeleteMarker>true</DeleteMarker><DeleteMarkerVersionId>{id}</DeleteMarkerVersionId>"
        )
    };
    let named = |key: &str, id: &str| format!("<Key>{key}</Key><VersionId>{id}</VersionId>");
    assert_eq!(deleted[0], named("a", &marker) + &marked(&marker));
    assert_eq!(deleted[1], named("a", &a));
    assert!(deleted[2].starts_with("<Key>b</Key><DeleteMarker>true</DeleteMarker>"), "{deleted:?}");
    assert_eq!(deleted[3], named("b", OF_NOTHING));
    assert_eq!(answer.one("Code"), "InvalidArgument");
    assert_eq!(client.get("/bkt?versions").await.all("VersionId")[1..], [b.as_str()]);
}

/// What a page shows: `key` of an object, `-key` of a delete marker, with `*` the newest; common prefixes.
fn shown(page: &Answer) -> Vec<String> {
    let mut all = Vec::new();
    for piece in page.text().split('<') {
        match piece.split_once('>') {
            Some(("DeleteMarker", _)) => all.push("-".into()),
            Some(("Version" | "CommonPrefixes", _)) => all.push(String::new()),
            Some(("Key", text)) => all.last_mut().unwrap().push_str(text),
            Some(("Prefix", text)) if !all.is_empty() => all.last_mut().unwrap().push_str(text),
            Some(("IsLatest", "true")) => all.last_mut().unwrap().push('*'),
            _ => {}
        }
    }
    all
}

#[tokio::test]
async fn pages_show_every_version_once_from_the_newest_on() {
    let client = with_versions().await;
    for key in ["a", "a", "dir/x", "dir/x", "dir/y", "b%20c"] {
        put(&client, key, "x").await;
    }
    delete(&client, "a").await;
    put(&client, "a", "again").await;
    delete(&client, "dir/y").await;
    let rolled = vec!["a*", "-a", "a", "a", "b c*", "dir/"];
    let flat = vec!["a*", "-a", "a", "a", "b c*", "dir/x*", "dir/x", "-dir/y*", "dir/y"];
    for (parameters, expected) in [("", flat), ("&delimiter=%2F", rolled)] {
        for size in [1, 2, 3, 100] {
            let (mut seen, mut marker) = (Vec::new(), String::new());
            loop {
                let target = format!("/bkt?versions&max-keys={size}{parameters}{marker}");
                let page = client.get(&target).await;
                seen.extend(shown(page.is(200)));
                if page.one("IsTruncated") == "false" {
                    break;
                }
                marker = format!("&key-marker={}", support::encode(page.one("NextKeyMarker")));
                if let Some(id) = page.all("NextVersionIdMarker").first() {
                    marker = format!("{marker}&version-id-marker={id}");
                }
            }
            assert_eq!(seen, expected, "pages of {size}{parameters}");
        }
    }
    let behind = client.get("/bkt?versions&prefix=dir&key-marker=dir%2Fx").await;
    assert_eq!(shown(behind.is(200)), ["-dir/y*", "dir/y"]);
    let url = client.get("/bkt?versions&prefix=b&encoding-type=url").await;
    assert_eq!(shown(url.is(200)), ["b%20c*"]);
    let none = client.get("/bkt?versions&max-keys=0").await;
    assert_eq!((none.is(200).one("IsTruncated"), shown(&none).len()), ("false", 0));
    let bad = client.get("/bkt?versions&key-marker=a&version-id-marker=x").await;
    assert_eq!(bad.is_error(400, "InvalidArgument").one("ArgumentName"), "version-id-marker");
}
