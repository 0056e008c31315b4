//! A bucket whose deletion was cut off does not stay half deleted (C11): the root's leader goes on with it.

#![expect(clippy::unwrap_used, reason = "helpers of tests: where they fail, the test fails")]

mod common;

use ashlar_load::{Call, Content};
use ashlar_testkit::TestCluster;
use ashlar_types::{BucketName, RootOp, RootOutcome};
use common::{BUCKET, Ledger, client_of};
use http::{Method, StatusCode};
use std::time::Duration;

/// Two looks of the root's leader, ten seconds apart, on two cores for all.
const ENDED_WITHIN: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Begins the deletion of a bucket as a gateway does that dies right then.
async fn begin_deletion(cluster: &TestCluster, name: &str) {
    let client = cluster.nodes()[0].running().unwrap().client();
    let name = BucketName::parse(name).unwrap();
    let bucket = client.bucket_now(&name).await.unwrap().unwrap();
    let op = RootOp::DeleteBucketBegin { name, bucket: bucket.row.bucket };
    assert!(matches!(client.root(op).await, Ok(RootOutcome::Bucket(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c11_a_deletion_whose_driver_died_is_brought_to_its_end() {
    let cluster = TestCluster::demo().await.unwrap();
    let client = client_of(&cluster);
    client.create_bucket(BUCKET).await.unwrap();
    client.create_bucket("empty").await.unwrap();
    let mut ledger = Ledger::default();
    ledger.put(&client, 0, "kept", Content::of_key("kept", 0, 100)).await;
    begin_deletion(&cluster, BUCKET).await;
    begin_deletion(&cluster, "empty").await;
    let head = |bucket| {
        let call = Call::new(Method::HEAD, bucket, "");
        let client = &client;
        async move { client.send(call).await.unwrap().status }
    };
    assert_eq!(head("empty").await, StatusCode::CONFLICT);

    let ended = async {
        while head("empty").await != StatusCode::NOT_FOUND || head(BUCKET).await != StatusCode::OK {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let ended = tokio::time::timeout(ENDED_WITHIN, ended).await;
    assert!(ended.is_ok(), "{} and {}", head("empty").await, head(BUCKET).await);
    assert_eq!(ledger.losses(&client).await, Vec::<String>::new());
    client.create_bucket("empty").await.unwrap();
}
