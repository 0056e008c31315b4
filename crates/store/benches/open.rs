//! How long a disk takes to open: after a clean stop, and after a crash at the worst moment, just before a checkpoint.
//!
//! `cargo bench -p ashlar-store -- [SHARDS] [BYTES] [DIR]`; a million shards of 1 KiB by default, in a temporary
//! directory. The page cache is warm: on a disk that is slower than memory, add what the scan reads by its throughput.

#![expect(clippy::print_stdout, reason = "a bench tells its figures")]

use ashlar_host::Host;
use ashlar_store::{Owner, ShardKey, ShardMeta, Store, StoreConfig};
use ashlar_types::{BucketId, ClusterId, Epoch, ExtentId, NodeId, PgId, Profile, SessionId, Slot};
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use std::ops::Range;
use std::path::Path;

/// As many as a busy node has under way.
const WRITERS: usize = 512;

async fn open(host: &Host, dir: &Path) -> Store {
    let config = StoreConfig::new(dir);
    let owner = Owner { cluster: ClusterId(1), node: NodeId(1) };
    let (opening, began) = (host.clone(), host.clock.now());
    let open = move || Store::open(&opening, config, owner);
    let store = host.tasks.run_blocking(open).await.expect("the disk opens");
    println!("opened in {:?}: {:?}", host.clock.now() - began, store.recovered());
    store
}

async fn put(store: &Store, counters: Range<u64>, content: &Bytes) {
    let puts = counters.map(|counter| {
        let meta = ShardMeta {
            key: ShardKey { extent: ExtentId { session: SessionId(1), counter }, slot: Slot(0) },
            profile: Profile::RS_4_2,
            pg: PgId(1),
            pg_epoch: Epoch(1),
            bucket: BucketId(1),
            length: content.len() as u64,
            created_ms: 0,
        };
        store.put_small(meta, content.clone())
    });
    let results: Vec<_> = stream::iter(puts).buffer_unordered(WRITERS).collect().await;
    results.into_iter().for_each(|result| result.expect("the disk takes it"));
}

async fn run(shards: u64, length: usize, dir: &Path) {
    let host = Host::real();
    let content = Bytes::from(vec![7; length]);
    let store = open(&host, dir).await;
    let began = host.clock.now();
    put(&store, 0..shards, &content).await;
    println!("{shards} shards of {length} bytes in {:?}", host.clock.now() - began);
    let began = host.clock.now();
    store.close().await;
    drop(store);
    println!("closed in {:?}", host.clock.now() - began);
    let store = open(&host, dir).await;
    // a checkpoint would be taken a little later
    put(&store, shards..shards + shards / 4 * 9 / 10, &content).await;
    drop(store);
    open(&host, dir).await.close().await;
}

fn main() {
    let (flags, words): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|word| word.starts_with("--"));
    // cargo starts benches as tests too, where nobody wants to wait for one
    if !flags.iter().any(|flag| flag == "--bench") {
        return;
    }
    let number = |at: usize, default| match words.get(at) {
        Some(word) => word.parse().expect("SHARDS and BYTES are numbers"),
        None => default,
    };
    let length = usize::try_from(number(1, 1_024)).expect("a shard fits into memory");
    let temporary = tempfile::tempdir().expect("a directory for the disk");
    let dir = words.get(2).map_or_else(|| temporary.path(), Path::new);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(run(number(0, 1_000_000), length, dir));
}
