//! A node alone with all roles keeps what it has acknowledged over power cuts: C1, C6, D1, D9, and R5 where the quorum is
//! one. It also begins as nobody: identity, founding list and metadata are made durable at its first start.

mod common;

use ashlar_host::CutStyle;
use ashlar_load::Content;
use ashlar_testkit::TestCluster;
use common::{BUCKET, Ledger, client_of};

const LENGTHS: [u64; 4] = [0, 4 << 10, 40 << 10, 300 << 10];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_alone_keeps_what_it_has_acknowledged() {
    let mut cluster = TestCluster::single(3).await.unwrap();
    client_of(&cluster).create_bucket(BUCKET).await.unwrap();
    let mut ledger = Ledger::default();
    for style in [CutStyle::DropAll, CutStyle::Torn { seed: 3 }, CutStyle::KeepAll] {
        let client = client_of(&cluster);
        for len in LENGTHS {
            for kind in ["kept", "deleted"] {
                let key = format!("{style:?}/{len}/{kind}");
                ledger.put(&client, 0, &key, Content::of_key(&key, 0, len)).await;
            }
            ledger.delete(&client, 0, &format!("{style:?}/{len}/deleted")).await;
        }
        cluster.cut_all(style).await.unwrap();
        let losses = ledger.losses(&client_of(&cluster)).await;
        assert!(losses.is_empty(), "after {style:?}: {losses:#?}");
    }
    assert_eq!(ledger.acknowledged(), 3 * LENGTHS.len());
}
