//! The gateway over a cluster in memory: what reaches the cluster, and what does not.

mod slow_clients;
#[path = "../../s3/tests/support/mod.rs"]
mod support;

use crate::cluster::{Cluster, Writer};
use crate::{Gateway, GatewayConfig, TlsConfig, serve};
use ashlar_client::{ContentName, Failure, ListUploads};
use ashlar_host::Host;
use ashlar_s3::SecretKey;
use ashlar_types::{
    Applied, Bucket, BucketId, BucketName, BucketRow, BucketState, Content, Epoch, Generation,
    INLINE_BYTES_MAX, KeyPoint, ListEntry, ListObjects, ListVersions, ObjectRecord, Page, Piece,
    Put, QueryRefusal, RangeAnswer, RangeOp, RangeQuery, Refusal, Span, Summary, UploadEntry,
    VersionEntry, VersionId, VersionName, Versioning,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use support::{ACCESS, Client, Form, OWNER, REGION, SECRET, call, client_of};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[derive(Default)]
struct State {
    bucket: Option<Bucket>,
    /// What `bucket` answers while it still remembers.
    remembered: Option<Bucket>,
    objects: BTreeMap<KeyPoint, (ObjectRecord, Content)>,
    /// Bytes of extents, by object length: one extent an object here.
    extents: BTreeMap<u64, Bytes>,
    begun: u32,
    finished: u32,
    dropped: u32,
    executed: u32,
    asked_now: u32,
    /// Questions and commands that only nodes know which know of versions.
    of_versions: u32,
    failure: Option<Failure>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<State>>);

struct FakeWriter {
    cluster: Fake,
    bytes: Vec<u8>,
    finished: bool,
}

impl Drop for FakeWriter {
    fn drop(&mut self) {
        if !self.finished {
            self.cluster.state().dropped += 1;
        }
    }
}

fn bucket(id: u64) -> Bucket {
    let row = BucketRow {
        bucket: BucketId(id),
        epoch: Epoch(1),
        state: BucketState::Open,
        versioning: Versioning::Off,
    };
    Bucket { name: BucketName::parse("bkt").unwrap(), owner: OWNER.into(), created_ms: 0, row }
}

impl Fake {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// What the client does where a range knows a later row of a bucket: it fetches that, and goes on.
    fn agree(&self, epoch: Epoch) {
        let mut state = self.state();
        if state.bucket.as_ref().is_some_and(|bucket| bucket.row.epoch != epoch) {
            state.remembered = None;
        }
    }

    fn is_gone(&self, at: &KeyPoint) -> bool {
        self.state().bucket.as_ref().map(|bucket| bucket.row.bucket) != Some(at.bucket)
    }
}

fn id_of(record: &ObjectRecord) -> VersionName {
    VersionName::Id(VersionId::of_object(record.generation, record.object))
}

fn summary(record: &ObjectRecord) -> Summary {
    let ObjectRecord { size, modified_ms, etag, .. } = *record;
    Summary { size, modified_ms, etag, checksums: Vec::new() }
}

fn pieces(content: &Content) -> Vec<Piece> {
    let extents = content.extents.iter();
    let extents = extents.map(|extent| Piece::Extent { offset: 0, extent: extent.clone() });
    let inline = Piece::Inline { offset: 0, bytes: content.tail.clone() };
    if content.extents.is_empty() { vec![inline] } else { extents.collect() }
}

#[async_trait]
impl Writer for FakeWriter {
    type Ticket = ();

    async fn write(&mut self, bytes: Bytes) -> Result<(), Failure> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(mut self) -> Result<(Content, ()), Failure> {
        self.finished = true;
        let bytes = Bytes::from(std::mem::take(&mut self.bytes));
        let mut state = self.cluster.state();
        state.finished += 1;
        if bytes.len() <= INLINE_BYTES_MAX {
            return Ok((Content { extents: Vec::new(), tail: bytes }, ()));
        }
        let length = bytes.len() as u64;
        let extent = ashlar_types::Extent {
            id: ashlar_types::ExtentId::default(),
            pg: ashlar_types::PgId(1),
            profile: ashlar_types::Profile { data: 1, parity: 0 },
            cell_bytes: 1,
            length,
            missing: ashlar_types::SlotSet::default(),
            ownership: ashlar_types::Ownership::Owned,
            crc64: 0,
        };
        state.extents.insert(length, bytes);
        Ok((Content { extents: vec![extent], tail: Bytes::new() }, ()))
    }
}

#[async_trait]
impl Cluster for Fake {
    type Ticket = ();
    type Read = ();
    type Writer = FakeWriter;

    async fn create_bucket(&self, _: &BucketName, _: &str) -> Result<Bucket, Failure> {
        self.state().bucket = Some(bucket(7));
        Ok(bucket(7))
    }

    async fn bucket(&self, _: &BucketName) -> Result<Option<Bucket>, Failure> {
        let state = self.state();
        Ok(state.remembered.clone().or_else(|| state.bucket.clone()))
    }

    async fn bucket_now(&self, _: &BucketName) -> Result<Option<Bucket>, Failure> {
        let mut state = self.state();
        state.asked_now += 1;
        state.remembered = None;
        Ok(state.bucket.clone())
    }

    async fn buckets(&self) -> Result<Vec<Bucket>, Failure> {
        Ok(self.state().bucket.clone().into_iter().collect())
    }

    async fn delete_bucket(&self, _: &BucketName) -> Result<(), Failure> {
        Err(Failure::Refused(Refusal::BucketNotEmpty))
    }

    async fn set_versioning(
        &self,
        _: &BucketName,
        versioning: Versioning,
    ) -> Result<Bucket, Failure> {
        let mut state = self.state();
        let bucket = state.bucket.as_mut().expect("made before");
        bucket.row.versioning = versioning;
        bucket.row.epoch = Epoch(bucket.row.epoch.0 + 1);
        Ok(bucket.clone())
    }

    async fn query(&self, at: &KeyPoint, query: RangeQuery) -> Result<RangeAnswer, Failure> {
        if self.is_gone(at) {
            return Err(Failure::Query(QueryRefusal::BucketFenced));
        }
        let (epoch, span, version) = match query {
            RangeQuery::Object { bucket_epoch, span, .. } => (bucket_epoch, span, None),
            RangeQuery::Version { bucket_epoch, span, version, .. } => {
                (bucket_epoch, span, Some(version))
            }
            _ => return Err(Failure::Unavailable { reason: "not asked in these tests".into() }),
        };
        self.agree(epoch);
        let mut state = self.state();
        state.of_versions += u32::from(version.is_some());
        let Some((record, content)) = state.objects.get(at) else {
            return Err(Failure::Query(QueryRefusal::NoSuchKey));
        };
        let (from, to) = (0, if span == Span::Nothing { 0 } else { record.size });
        let (record, pieces) = (Box::new(record.clone()), pieces(content));
        let id = id_of(&record);
        match version {
            None => Ok(RangeAnswer::Object { record, from, to, pieces }),
            Some(named) if named.is_none_or(|name| name == id) => {
                Ok(RangeAnswer::Version { record, version: id, from, to, pieces })
            }
            Some(_) => Err(Failure::Query(QueryRefusal::NoSuchVersion)),
        }
    }

    async fn list(&self, list: ListObjects) -> Result<Page<ListEntry>, Failure> {
        self.agree(list.bucket_epoch);
        let state = self.state();
        let entry = |(at, (record, _)): (&KeyPoint, &(ObjectRecord, Content))| ListEntry::Key {
            key: at.key.to_vec(),
            summary: summary(record),
        };
        Ok(Page { entries: state.objects.iter().map(entry).collect(), more: false })
    }

    async fn list_versions(&self, _: ListVersions) -> Result<Page<VersionEntry>, Failure> {
        let mut state = self.state();
        state.of_versions += 1;
        let entry = |(at, (record, _)): (&KeyPoint, &(ObjectRecord, Content))| {
            let (version, summary) = (id_of(record), summary(record));
            VersionEntry::Object { key: at.key.to_vec(), version, latest: true, summary }
        };
        Ok(Page { entries: state.objects.iter().map(entry).collect(), more: false })
    }

    async fn list_uploads(&self, _: ListUploads) -> Result<Page<UploadEntry>, Failure> {
        Ok(Page { entries: Vec::new(), more: false })
    }

    async fn execute(&self, _: Option<()>, at: &KeyPoint, op: RangeOp) -> Result<Applied, Failure> {
        if self.is_gone(at) {
            return Err(Failure::Refused(Refusal::BucketFenced));
        }
        let mut state = self.state();
        state.executed += 1;
        if let Some(failure) = state.failure.take() {
            return Err(failure);
        }
        let put = match op {
            RangeOp::Put(put) => put,
            RangeOp::DeleteVersion(delete) => {
                state.of_versions += 1;
                state.objects.remove(&delete.at);
                return Ok(Applied::VersionDeleted { marker: false });
            }
            _ => {
                state.objects.remove(at);
                return Ok(Applied::Deleted { existed: true });
            }
        };
        let Put { at, object, modified_ms, etag, checksums, description, content, token, .. } =
            *put;
        let written = Applied::Written {
            generation: Generation(1),
            etag,
            modified_ms,
            checksums: checksums.clone(),
        };
        let record = ObjectRecord {
            object,
            generation: Generation(1),
            size: content.length(),
            modified_ms,
            etag,
            checksums,
            description,
            parts: Vec::new(),
            token,
        };
        state.objects.insert(at, (record, content));
        Ok(written)
    }

    async fn writer(&self, _: BucketId, _: u64) -> Result<FakeWriter, Failure> {
        self.state().begun += 1;
        Ok(FakeWriter { cluster: self.clone(), bytes: Vec::new(), finished: false })
    }

    fn open_read(&self) {}

    fn reader(
        &self,
        (): (),
        _: ContentName,
        pieces: Vec<Piece>,
        _: u64,
        _: u64,
    ) -> BoxStream<'static, Result<Bytes, Failure>> {
        let bytes = |piece| match piece {
            Piece::Inline { bytes, .. } => bytes,
            Piece::Extent { extent, .. } => self.state().extents[&extent.length].clone(),
        };
        let pieces: Vec<_> = pieces.into_iter().map(|piece| Ok(bytes(piece))).collect();
        futures::stream::iter(pieces).boxed()
    }
}

fn gateway(cluster: &Fake) -> Gateway {
    gateway_on(&Host::real(), cluster)
}

fn gateway_on(host: &Host, cluster: &Fake) -> Gateway {
    let config = GatewayConfig {
        region: REGION.into(),
        owner: OWNER.into(),
        access_key: ACCESS.into(),
        secret_key: SecretKey::new(SECRET),
        ..GatewayConfig::default()
    };
    Gateway::over(host, cluster.clone(), config)
}

async fn with_bucket() -> (Fake, Client) {
    let cluster = Fake::default();
    let client = client_of(gateway(&cluster).service);
    client.send(call("PUT", "/bkt")).await.is(200);
    (cluster, client)
}

#[tokio::test]
async fn what_is_put_is_got_with_the_md5_of_its_bytes() {
    let (cluster, client) = with_bucket().await;
    for length in [0, 1, 8192, 64 * 1024, 64 * 1024 + 1, 3 << 20] {
        let body: Vec<u8> = (0..length).map(|at: usize| u8::try_from(at % 239).unwrap()).collect();
        let etag = {
            use md5::Digest as _;
            format!("\"{}\"", hex::encode(md5::Md5::digest(&body)))
        };
        let put = client.send(call("PUT", "/bkt/k").body(body.clone())).await;
        assert_eq!(put.is(200).header("etag"), Some(etag.as_str()), "{length} bytes");
        let got = client.get("/bkt/k").await;
        assert!(got.is(200).body == body, "{length} bytes");
    }
    assert_eq!(cluster.state().dropped, 0);
}

#[tokio::test]
async fn a_body_that_breaks_off_or_lies_reaches_no_command() {
    let (cluster, client) = with_bucket().await;
    let put = || call("PUT", "/bkt/k").body(vec![7; 200_000]);
    let cut = put().form(Form::Unsigned).with(|call| call.tamper = |body| body[..150_000].to_vec());
    client.send(cut).await.is_error(400, "IncompleteBody");
    client
        .send(put().header("content-md5", "AAAAAAAAAAAAAAAAAAAAAA=="))
        .await
        .is_error(400, "BadDigest");
    let state = cluster.state();
    assert_eq!((state.begun, state.finished, state.dropped, state.executed), (2, 0, 2, 0));
}

#[tokio::test]
async fn a_bucket_that_was_made_anew_elsewhere_is_found_again() {
    let (cluster, client) = with_bucket().await;
    let make_anew = |id| {
        let mut state = cluster.state();
        state.remembered = state.bucket.replace(bucket(id));
    };
    make_anew(8);
    client.put("small", "abc").await.is(200);
    make_anew(9);
    client.get("/bkt/small").await.is_error(404, "NoSuchKey");
    make_anew(10);
    // extents belong to the command that was refused: the client sends them again
    let large = call("PUT", "/bkt/large").body(vec![1; 100_000]);
    client.send(large.clone()).await.is_error(503, "ServiceUnavailable");
    client.send(large).await.is(200);
    assert_eq!(cluster.state().asked_now, 3);
    cluster.state().bucket = None;
    client.put("k", "abc").await.is_error(404, "NoSuchBucket");
}

/// Nodes of earlier releases know no questions about versions.
#[tokio::test]
async fn a_bucket_without_versions_is_asked_nothing_about_them() {
    let (cluster, client) = with_bucket().await;
    let id = VersionId { generation: Generation(1), tag: 2 };
    client.put("k", "abc").await.is(200);
    assert_eq!(client.get("/bkt/k?versionId=null").await.is(200).text(), "abc");
    client.get(&format!("/bkt/k?versionId={id}")).await.is_error(404, "NoSuchVersion");
    assert_eq!(client.get("/bkt?versions").await.is(200).all("VersionId"), ["null"]);
    let delete = |version: String| call("DELETE", &format!("/bkt/k?versionId={version}"));
    client.send(delete(id.to_string())).await.is(204);
    client.get("/bkt/k").await.is(200);
    client.send(delete("null".into())).await.is(204);
    client.get("/bkt/k").await.is_error(404, "NoSuchKey");
    assert_eq!(cluster.state().of_versions, 0);
}

/// The client agrees with ranges on a later row of a bucket by itself: the question is then still the wrong one.
#[tokio::test]
async fn a_bucket_that_began_to_keep_versions_elsewhere_is_asked_anew() {
    let (cluster, client) = with_bucket().await;
    let old = cluster.state().bucket.clone();
    client.put("k", "abc").await.is(200);
    let enabled = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    client.send(call("PUT", "/bkt?versioning").body(enabled)).await.is(200);
    let forget = || cluster.state().remembered = old.clone();
    forget();
    let got = client.get("/bkt/k").await;
    let id = got.is(200).header("x-amz-version-id").unwrap();
    forget();
    client.get("/bkt/k?versionId=null").await.is_error(404, "NoSuchVersion");
    forget();
    assert_eq!(client.get(&format!("/bkt/k?versionId={id}")).await.is(200).text(), "abc");
    forget();
    assert_eq!(client.get("/bkt?versions").await.is(200).all("VersionId"), [id]);
    forget();
    client.send(call("DELETE", &format!("/bkt/k?versionId={id}"))).await.is(204);
    client.get("/bkt/k").await.is_error(404, "NoSuchKey");
}

#[tokio::test]
async fn what_may_have_happened_is_said_to_be_unknown() {
    let (cluster, client) = with_bucket().await;
    let fail = |failure| cluster.state().failure = Some(failure);
    fail(Failure::Unknown { reason: "no answer".into() });
    let unknown = client.put("k", "abc").await;
    assert_eq!(unknown.is_error(500, "InternalError").header("x-ashlar-outcome"), Some("unknown"));
    fail(Failure::Unavailable { reason: "no leader".into() });
    let unavailable = client.put("k", "abc").await;
    assert_eq!(unavailable.is_error(503, "ServiceUnavailable").header("x-ashlar-outcome"), None);
    fail(Failure::Refused(Refusal::ConditionFailed));
    client.put("k", "abc").await.is_error(412, "PreconditionFailed");
    client.send(call("DELETE", "/bkt")).await.is_error(409, "BucketNotEmpty");
}

/// Sends text and reads what comes until `ends`, or until the connection closes.
async fn talk(stream: &mut Box<dyn ashlar_host::Connection>, text: &str, ends: &str) -> String {
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&seen).ends_with(ends) {
        match stream.read(&mut buffer).await.unwrap() {
            0 => break,
            count => seen.extend_from_slice(&buffer[..count]),
        }
    }
    String::from_utf8(seen).unwrap()
}

#[tokio::test]
async fn the_port_answers_keeps_connections_and_stops() {
    let host = Host::real();
    let listener = host.network.listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let port = serve(host.clone(), listener, None, gateway(&Fake::default()));
    let client = async {
        let mut stream = host.network.connect(&address).await.unwrap();
        // a refused upload is told so before it sends its body
        let expecting = "PUT /bkt/k HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000\r\nExpect: 100-continue\r\n\r\n";
        let refused = talk(&mut stream, expecting, "</Error>").await;
        assert!(refused.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{refused}");
        assert!(
            refused.contains("x-amz-request-id: ") && refused.contains("<Code>AccessDenied</Code>"),
            "{refused}"
        );
        let mut stream = host.network.connect(&address).await.unwrap();
        for _ in 0..2 {
            let answer = talk(&mut stream, "GET / HTTP/1.1\r\nHost: h\r\n\r\n", "</Error>").await;
            assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
        }
        host.shutdown.request();
        assert_eq!(talk(&mut stream, "", "never").await, "", "an idle connection is closed");
    };
    Box::pin(async { tokio::join!(port, client) }).await;
}

/// Speaks TLS with a port, offering these protocols; what was agreed on, and the answer to a request.
async fn talk_tls(
    host: &Host,
    certificate: &rustls_pki_types::CertificateDer<'static>,
    offered: &[&str],
) -> std::io::Result<(Option<Vec<u8>>, String)> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = host.network.connect("s3").await?;
    let name = "localhost".try_into().unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await?;
    let agreed = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    let mut stream: Box<dyn ashlar_host::Connection> = Box::new(stream);
    let answer = talk(&mut stream, "GET / HTTP/1.1\r\nHost: h\r\n\r\n", "</Error>").await;
    Ok((agreed, answer))
}

#[tokio::test]
async fn over_tls_http_1_1_is_agreed_on_and_nothing_else() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let tls = TlsConfig { cert_pem: made.cert.pem(), key_pem: made.signing_key.serialize_pem() };
    let host = Host::real().with_network(Arc::new(ashlar_host::MemoryNetwork::new(64 * 1024)));
    let listener = host.network.listen("s3").await.unwrap();
    let port = serve(host.clone(), listener, Some(tls), gateway(&Fake::default()));
    let _port = host.tasks.spawn(ashlar_host::TaskKind::Background("port"), Box::pin(port));
    for (offered, expected) in [(&["h2", "http/1.1"][..], Some(b"http/1.1".to_vec())), (&[], None)]
    {
        let (agreed, answer) = talk_tls(&host, made.cert.der(), offered).await.unwrap();
        assert_eq!(agreed, expected);
        assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
    }
    assert!(talk_tls(&host, made.cert.der(), &["h2"]).await.is_err());
}

#[test]
fn certificates_are_checked_before_the_port_is_promised() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let good = TlsConfig { cert_pem: made.cert.pem(), key_pem: made.signing_key.serialize_pem() };
    assert!(good.check().is_ok());
    let other = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let mixed = TlsConfig { key_pem: other.signing_key.serialize_pem(), ..good.clone() };
    assert!(mixed.check().is_err());
    assert!(TlsConfig { cert_pem: "x".into(), ..good }.check().is_err());
}
