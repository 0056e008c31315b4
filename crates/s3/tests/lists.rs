//! Lists: every key once and in byte order, whatever the page size, the delimiter and the encoding.

#![allow(clippy::unwrap_used, reason = "a test says by failing what was not there")]

mod support;
use support::{Client, call, encode, with_bucket};

const KEYS: [&str; 8] =
    ["a", "foo+1/x", "foo/a b", "foo/bar/1", "foo/bar/2", "foo/\u{e4}", "fop", "z\u{1}<&"];

async fn filled() -> Client {
    let client = with_bucket().await;
    for key in KEYS {
        client.put(&encode(key).replace("%2F", "/"), "x").await.is(200);
    }
    client
}

fn unescape(text: &str) -> String {
    text.replace("&#x1;", "\u{1}").replace("&lt;", "<").replace("&amp;", "&")
}

#[tokio::test]
async fn pages_show_every_key_once_and_in_order() {
    let client = filled().await;
    for size in [1, 2, 3, 7, 8, 9] {
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let page = client.get(&format!("/bkt?list-type=2&max-keys={size}{token}")).await;
            page.is(200);
            seen.extend(page.all("Key").into_iter().map(unescape));
            if page.one("IsTruncated") == "false" {
                assert!(page.all("NextContinuationToken").is_empty());
                break;
            }
            token = format!("&continuation-token={}", encode(page.one("NextContinuationToken")));
        }
        assert_eq!(seen, KEYS, "pages of {size}");
    }
}

#[tokio::test]
async fn what_follows_a_delimiter_is_rolled_up_also_at_page_edges() {
    let client = filled().await;
    let (mut seen, mut marker) = (Vec::new(), String::new());
    loop {
        let page =
            client.get(&format!("/bkt?delimiter=%2F&max-keys=1&marker={}", encode(&marker))).await;
        let common: Vec<&str> = page.is(200).all("CommonPrefixes");
        let keys = page.all("Key").into_iter().map(unescape);
        seen.extend(
            common
                .iter()
                .map(|text| text.replace("<Prefix>", "").replace("</Prefix>", ""))
                .chain(keys),
        );
        let Some(next) = page.all("NextMarker").first().map(|text| unescape(text)) else { break };
        marker = next;
    }
    assert_eq!(seen, ["a", "foo+1/", "foo/", "fop", "z\u{1}<&"]);
    let within = client.get("/bkt?list-type=2&prefix=foo%2F&delimiter=%2F").await;
    assert_eq!(within.all("Key"), ["foo/a b", "foo/\u{e4}"]);
    assert_eq!(within.all("CommonPrefixes"), ["<Prefix>foo/bar/</Prefix>"]);
    assert_eq!(within.one("KeyCount"), "3");
}

#[tokio::test]
async fn the_parameters_of_lists_are_read() {
    let client = filled().await;
    let started = client
        .get("/bkt?list-type=2&start-after=foo%2Fbar%2F1&fetch-owner=true&encoding-type=url")
        .await;
    assert_eq!(started.is(200).all("Key"), ["foo/bar/2", "foo/%C3%A4", "fop", "z%01%3C%26"]);
    assert_eq!((started.all("ID").len(), started.one("EncodingType")), (4, "url"));
    assert_eq!(started.one("StartAfter"), "foo/bar/1");
    assert!(client.get("/bkt?list-type=2").await.all("ID").is_empty());
    let none = client.get("/bkt?list-type=2&max-keys=0").await;
    assert_eq!((none.is(200).one("IsTruncated"), none.one("KeyCount")), ("false", "0"));
    assert_eq!(client.get("/bkt?max-keys=5000").await.one("MaxKeys"), "1000");
    for bad in ["max-keys=-1", "max-keys=x", "encoding-type=x", "continuation-token=x&list-type=2"]
    {
        client.get(&format!("/bkt?{bad}")).await.is_error(400, "InvalidArgument");
    }
    client.get("/none?list-type=2").await.is_error(404, "NoSuchBucket");
    let versions = client.get("/bkt?versions&prefix=fo&max-keys=2").await;
    assert_eq!(versions.is(200).all("VersionId"), ["null", "null"]);
    assert_eq!(
        (versions.one("NextKeyMarker"), versions.all("IsLatest")),
        ("foo/a b", vec!["true", "true"])
    );
    let next =
        client.get("/bkt?versions&prefix=fo&key-marker=foo%2Fa%20b&version-id-marker=null").await;
    assert_eq!(next.all("Key"), ["foo/bar/1", "foo/bar/2", "foo/\u{e4}", "fop"]);
    client
        .send(call("GET", "/bkt?versions&version-id-marker=null"))
        .await
        .is_error(400, "InvalidArgument");
}
