//! What a test knows of the objects that it has written, and how it finds a loss.

#![expect(clippy::unwrap_used, reason = "helpers of tests: where they fail, the test fails")]
#![allow(dead_code, reason = "each file of tests takes what it needs")]

use ashlar::operator::Member;
use ashlar_host::Host;
use ashlar_load::{Call, Client, Content, Credentials, Outcome, Payload, Verifier};
use ashlar_testkit::{TestCluster, TestNode};
use ashlar_wire::Security;
use http::Method;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(crate) const BUCKET: &str = "objects";

/// A new client: its connections die with the gateways.
pub(crate) fn client_of(cluster: &TestCluster) -> Client {
    let key = cluster.root_key();
    let credentials = Credentials {
        access_key: key.access_key.clone(),
        secret_key: key.secret_key.clone(),
        region: cluster.region().to_owned(),
    };
    Client::new(&cluster.endpoints(), credentials)
}

/// What a key must be.
#[derive(Debug, Clone)]
enum Expected {
    /// Acknowledged: this content, under this ETag.
    Content(Content, String),
    /// Its deletion was acknowledged, or its write surely not applied.
    Gone,
    /// No answer came: the whole content, or nothing. Never written before, never again.
    Open(Content),
}

/// An upload that is open, with all of its parts.
#[derive(Debug)]
pub(crate) struct Begun {
    key: String,
    content: Content,
    upload: String,
    parts: String,
}

/// All that the cluster has answered.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    keys: BTreeMap<String, Expected>,
}

impl Ledger {
    /// Writes an object through one of the gateways, which must succeed.
    pub(crate) async fn put(
        &mut self,
        client: &Client,
        gateway: usize,
        key: &str,
        content: Content,
    ) {
        let call = Call::new(Method::PUT, BUCKET, key)
            // S3 wants it also where it is 0, and then the HTTP client leaves it out
            .header("content-length", content.len().to_string())
            .payload(Payload::Content(content))
            .through(gateway);
        let answer = client.expect(call).await.unwrap();
        let etag = answer.header("etag").unwrap().to_owned();
        self.keys.insert(key.to_owned(), Expected::Content(content, etag));
    }

    /// Deletes an object, which must succeed.
    pub(crate) async fn delete(&mut self, client: &Client, gateway: usize, key: &str) {
        let call = Call::new(Method::DELETE, BUCKET, key).through(gateway);
        client.expect(call).await.unwrap();
        self.keys.insert(key.to_owned(), Expected::Gone);
    }

    /// Writes an object in parts; `content` is cut at `cuts`. Each part goes through the other gateway.
    pub(crate) async fn multipart(
        &mut self,
        client: &Client,
        key: &str,
        content: Content,
        cuts: &[u64],
    ) {
        let begun = Self::begin(client, key, content, cuts).await;
        self.complete(client, begun).await;
    }

    /// Uploads the parts of an object, and leaves the upload open.
    pub(crate) async fn begin(client: &Client, key: &str, content: Content, cuts: &[u64]) -> Begun {
        let create = Call::new(Method::POST, BUCKET, key).query("uploads", "");
        let answer = client.expect(create).await.unwrap();
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        let (_, rest) = text.split_once("<UploadId>").unwrap();
        let (upload, _) = rest.split_once("</UploadId>").unwrap();
        let mut parts = String::new();
        let (mut from, whole) = (0, content.bytes());
        for (number, end) in (1..).zip(cuts.iter().copied().chain([content.len()])) {
            let range = usize::try_from(from).unwrap()..usize::try_from(end).unwrap();
            let name = number.to_string();
            let call = Call::new(Method::PUT, BUCKET, key)
                .query("partNumber", &name)
                .query("uploadId", upload)
                .payload(Payload::Bytes(whole.slice(range)))
                .through(number);
            let answer = client.expect(call).await.unwrap();
            let etag = answer.header("etag").unwrap();
            parts += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
            from = end;
        }
        Begun { key: key.to_owned(), content, upload: upload.to_owned(), parts }
    }

    /// Makes the parts of an upload an object.
    pub(crate) async fn complete(&mut self, client: &Client, begun: Begun) {
        let Begun { key, content, upload, parts } = begun;
        let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
        let call = Call::new(Method::POST, BUCKET, &key)
            .query("uploadId", &upload)
            .payload(Payload::Bytes(body.into()));
        let text = String::from_utf8(client.expect(call).await.unwrap().body.to_vec()).unwrap();
        self.keys.insert(key, Expected::Content(content, etag_in(&text)));
    }

    /// Takes over what another one knows: the keys of both differ.
    pub(crate) fn join(&mut self, other: Self) {
        self.keys.extend(other.keys);
    }

    /// How many objects were acknowledged and must be there.
    pub(crate) fn acknowledged(&self) -> usize {
        self.keys.values().filter(|known| matches!(known, Expected::Content(..))).count()
    }

    /// Writes new keys under `prefix`, one after another, until no gateway answers.
    pub(crate) async fn put_until_the_end(
        client: Client,
        prefix: String,
        lengths: Vec<u64>,
    ) -> Self {
        let mut ledger = Self::default();
        for (number, len) in lengths.iter().copied().cycle().enumerate() {
            let key = format!("{prefix}/{number:06}");
            let content = Content::of_key(&key, 1, len);
            let call = Call::new(Method::PUT, BUCKET, &key).payload(Payload::Content(content));
            let (expected, goes_on) = match client.send(call).await {
                Ok(answer) if answer.status.is_success() => {
                    let etag = answer.header("etag").unwrap().to_owned();
                    (Expected::Content(content, etag), true)
                }
                Ok(answer) if answer.outcome() == Outcome::NotApplied => (Expected::Gone, true),
                Ok(_) => (Expected::Open(content), true),
                Err(trouble) if trouble.outcome() == Outcome::NotApplied => (Expected::Gone, false),
                Err(_) => (Expected::Open(content), false),
            };
            ledger.keys.insert(key, expected);
            if !goes_on {
                break;
            }
        }
        ledger
    }

    /// Compares all with what the cluster says now; each sentence is a loss.
    pub(crate) async fn losses(&self, client: &Client) -> Vec<String> {
        let mut losses = self.losses_of_reads(client).await;
        losses.extend(self.list_losses(client).await);
        losses
    }

    /// The same without the list: others write too.
    pub(crate) async fn losses_of_reads(&self, client: &Client) -> Vec<String> {
        let mut losses = Vec::new();
        for (gateway, (key, expected)) in self.keys.iter().enumerate() {
            if let Err(loss) = check(client, gateway, key, expected).await {
                losses.push(format!("{key}: {loss}"));
            }
        }
        losses
    }

    /// The same of the `last` keys only, without the list.
    pub(crate) async fn losses_of(&self, client: &Client, last: usize) -> Vec<String> {
        let mut losses = Vec::new();
        for (gateway, (key, expected)) in self.keys.iter().rev().take(last).enumerate() {
            if let Err(loss) = check(client, gateway, key, expected).await {
                losses.push(format!("{key}: {loss}"));
            }
        }
        losses
    }

    /// The list must agree, whatever the reads say.
    async fn list_losses(&self, client: &Client) -> Vec<String> {
        let (mut listed, mut after) = (BTreeSet::new(), String::new());
        loop {
            match client.list_page(BUCKET, "", &after, 1000).await {
                Ok(page) => match page.last() {
                    Some(last) => {
                        after.clone_from(last);
                        listed.extend(page);
                    }
                    None => break,
                },
                Err(trouble) => return vec![format!("no list: {trouble}")],
            }
        }
        let wrong = self.keys.iter().filter_map(|(key, expected)| match expected {
            Expected::Content(..) if !listed.contains(key) => Some(format!("{key}: not listed")),
            Expected::Gone if listed.contains(key) => Some(format!("{key}: listed again")),
            Expected::Content(..) | Expected::Gone | Expected::Open(_) => None,
        });
        wrong.collect()
    }
}

/// The ETag in an answer of XML.
fn etag_in(text: &str) -> String {
    let (_, rest) = text.split_once("<ETag>").unwrap();
    let (etag, _) = rest.split_once("</ETag>").unwrap();
    etag.replace("&quot;", "\"")
}

async fn check(
    client: &Client,
    gateway: usize,
    key: &str,
    expected: &Expected,
) -> Result<(), String> {
    let get = || Call::new(Method::GET, BUCKET, key).through(gateway);
    match expected {
        Expected::Content(content, etag) => {
            let read = client.verify(get(), Verifier::whole(*content)).await;
            let headers = read.map_err(|trouble| trouble.to_string())?;
            let found = headers.get("etag").and_then(|value| value.to_str().ok());
            (found == Some(etag)).then_some(()).ok_or_else(|| format!("ETag {found:?}, not {etag}"))
        }
        Expected::Gone => is_absent(client, get()).await,
        Expected::Open(content) => match is_absent(client, get()).await {
            Ok(()) => Ok(()),
            Err(_) => client
                .verify(get(), Verifier::whole(*content))
                .await
                .map(drop)
                .map_err(|trouble| format!("neither whole nor absent: {trouble}")),
        },
    }
}

async fn is_absent(client: &Client, call: Call<'_>) -> Result<(), String> {
    match client.send(call).await {
        Ok(answer) if answer.status == http::StatusCode::NOT_FOUND => Ok(()),
        Ok(answer) => Err(format!("is there: {}", answer.status)),
        Err(trouble) => Err(trouble.to_string()),
    }
}

/// Users that go on until they are told to stop.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    users: Vec<tokio::task::JoinHandle<Ledger>>,
}

impl Load {
    /// So many users, each with its number and what tells it to stop.
    pub(crate) fn start<U>(users: usize, user: impl Fn(usize, Arc<AtomicBool>) -> U) -> Self
    where
        U: Future<Output = Ledger> + Send + 'static,
    {
        let stop = Arc::new(AtomicBool::new(false));
        let users = (0..users).map(|number| tokio::spawn(user(number, stop.clone()))).collect();
        Self { stop, users }
    }

    /// What all of them know.
    pub(crate) async fn end(self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Ledger::default();
        for user in self.users {
            all.join(user.await.unwrap());
        }
        all
    }
}

/// Four users of small objects.
pub(crate) fn small_objects(cluster: &TestCluster, name: &str) -> Load {
    Load::start(4, |number, stop| use_small(client_of(cluster), format!("{name}{number}"), stop))
}

/// Small objects, overwritten, deleted and read. Every request must succeed.
async fn use_small(client: Client, prefix: String, stop: Arc<AtomicBool>) -> Ledger {
    let mut ledger = Ledger::default();
    for number in 0..usize::MAX {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let gateway = number % 2;
        // they fall into all parts of the key space
        let key = format!("{:02}/{prefix}/{number:05}", number * 37 % 100);
        ledger.put(&client, gateway, &key, Content::of_key(&key, 0, 900)).await;
        if number % 3 == 0 {
            ledger.put(&client, gateway, &key, Content::of_key(&key, 1, 30_000)).await;
        }
        if number % 7 == 6 {
            ledger.delete(&client, gateway, &key).await;
        }
        if number % 16 == 15 {
            assert_eq!(ledger.losses_of(&client, 4).await, Vec::<String>::new());
        }
    }
    ledger
}

/// A member that answers operators.
pub(crate) fn member(cluster: &TestCluster) -> Member {
    let mut live = cluster.nodes().iter().filter(|node| node.running().is_some());
    let address = live.next().unwrap().config().address();
    Member::at(&Host::real(), &address, &Security::Plain)
}

/// The ranges name exactly what the disks hold, and every session is known to all of them (D2, D3).
pub(crate) async fn audit_finds_nothing(cluster: &TestCluster) {
    let report = member(cluster).audit(Duration::ZERO).await.unwrap();
    assert_eq!((report.shards.lost, report.shards.missing), (0, 0), "{report:?}");
    assert_eq!(report.durability.lost.objects, 0, "{report:?}");
    let metas = cluster.nodes().iter().filter_map(TestNode::running).filter_map(|node| node.meta());
    for (range, recount) in metas.flat_map(|meta| meta.recount().unwrap()) {
        assert!(recount.is_right(), "{range}: {recount:?}");
    }
}
