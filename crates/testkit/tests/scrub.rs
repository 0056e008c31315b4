//! What rots on a disk is found by the scrub, not by a reader, and is computed anew from the other shards (D5).

#![expect(clippy::unwrap_used, reason = "helpers of tests: where they fail, the test fails")]

mod common;

use ashlar_host::Disk;
use ashlar_load::Content;
use ashlar_store::{ShardKey, Store, StoreError};
use ashlar_testkit::{TestCluster, TestNode};
use common::{BUCKET, Ledger, client_of};
use std::path::PathBuf;

/// The disk that has the most shards of a node, and its directory.
fn fullest(node: &TestNode) -> (Store, PathBuf) {
    let stores = node.running().unwrap().data().unwrap().stores();
    let store = stores.values().max_by_key(|store| store.usage().shards).unwrap();
    (store.clone(), store.dir().to_owned())
}

/// Turns a bit in every 16 KiB of all segments of a disk.
fn rot(node: &TestNode, dir: &std::path::Path) {
    let disk: &dyn Disk = node.disk();
    let segments = dir.join("seg");
    for path in disk.list(&segments).unwrap() {
        let length = disk.read(&path).unwrap().len() as u64;
        for offset in (8 << 10..length).step_by(16 << 10) {
            node.disk().flip(&path, offset).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d5_what_rots_is_found_and_healed() {
    let cluster = TestCluster::demo().await.unwrap();
    let client = client_of(&cluster);
    client.create_bucket(BUCKET).await.unwrap();
    let mut ledger = Ledger::default();
    for number in 0..6 {
        for len in [20 << 10, 300 << 10, 5 << 20] {
            let key = format!("{len}/{number}");
            ledger.put(&client, number, &key, Content::of_key(&key, 0, len)).await;
        }
    }
    let node = &cluster.nodes()[1];
    let (store, dir) = fullest(node);
    let held: Vec<ShardKey> = store.list(None, 1000).into_iter().map(|meta| meta.key).collect();
    assert!(!held.is_empty());
    rot(node, &dir);
    // one half of them shows that the rot has bitten, and leaves the other half to the scrub
    for key in held.iter().step_by(2) {
        let content = store.read(*key, 0, store.meta(*key).unwrap().length).await;
        assert_eq!(content, Err(StoreError::Corrupt), "{key:?}");
    }

    let running = node.running().unwrap();
    let before = store.scrub_progress();
    running.data().unwrap().scrub_once(running.client()).await;
    assert!(store.scrub_progress().passes > before.passes);
    assert_eq!(store.damaged_shards(), [], "all is healed");
    for key in held {
        let meta = store.meta(key).unwrap();
        let content = store.read(key, 0, meta.length).await;
        assert!(content.is_ok(), "{key:?}: {content:?}");
    }
    assert_eq!(ledger.losses(&client).await, Vec::<String>::new());
}
