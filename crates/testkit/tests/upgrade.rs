//! A rolling upgrade: what only the new release knows is used when the last node has it, by itself, and no request fails
//! meanwhile (C2-C4, R4); an older release takes no part from then on.

#![expect(clippy::unwrap_used, reason = "helpers of tests: where they fail, the test fails")]

mod common;

use ashlar::meta_check::VersionsReport;
use ashlar_host::{CutStyle, Host};
use ashlar_testkit::TestCluster;
use ashlar_types::{ApplyVersions, RangeId, Role};
use ashlar_wire::proto::JoinRequest;
use ashlar_wire::proto::membership_client::MembershipClient;
use ashlar_wire::{Class, Dialer, Security};
use common::{BUCKET, audit_finds_nothing, client_of, member, small_objects};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const NOW: ApplyVersions = ApplyVersions { root: 3, ranges: 3 };
/// A later release, which knows one version more of each.
const LATER: ApplyVersions = ApplyVersions { root: 4, ranges: 4 };

async fn versions(cluster: &TestCluster) -> VersionsReport {
    member(cluster).apply_versions().await.unwrap()
}

/// Waits until the cluster applies by these, the root and every range.
async fn raised(cluster: &TestCluster, to: ApplyVersions) {
    let raising = async {
        loop {
            let now = versions(cluster).await;
            if now.used == to && now.behind.is_empty() {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    if tokio::time::timeout(PATIENCE, raising).await.is_err() {
        panic!("not raised: {:?}", versions(cluster).await);
    }
}

/// What a member says to a node that wants to hold metadata, of a release that knows these.
async fn join(cluster: &TestCluster, known: ApplyVersions) -> String {
    let config = cluster.nodes()[0].config();
    let dialer = Dialer::new(Host::real(), &Security::Plain);
    let mut member = MembershipClient::new(dialer.channel(&config.address(), Class::Metadata));
    let request = JoinRequest {
        // of the right form, and of nobody
        token: ashlar_wire::JoinToken { secret: [1; 16], fingerprint: [0; 32] }.reveal(),
        name: "new".to_owned(),
        zone: "zone-1".to_owned(),
        address: "127.0.0.1:1".to_owned(),
        roles: vec!["meta".to_owned()],
        root_version: known.root,
        ranges_version: known.ranges,
        ..JoinRequest::default()
    };
    let refused = member.join(request).await.expect_err("nobody is admitted without a token");
    refused.message().to_owned()
}

/// Why a node does not start, or ends as soon as it has found in its logs what it does not know.
async fn refusal(cluster: &mut TestCluster, index: usize) -> String {
    if let Err(error) = cluster.start_all().await {
        let why = format!("{error:#}");
        if cluster.nodes()[index].running().is_none() {
            return why;
        }
    }
    let until_failed = cluster.nodes()[index].running().unwrap().until_failed();
    let why = tokio::time::timeout(PATIENCE, until_failed).await.unwrap();
    cluster.power_off_one(index, CutStyle::DropAll).await.unwrap();
    why
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_node_of_a_rolling_upgrade_raises_the_versions_and_no_request_fails() {
    let mut cluster = TestCluster::demo().await.unwrap();
    client_of(&cluster).create_bucket(BUCKET).await.unwrap();
    raised(&cluster, NOW).await;
    let load = small_objects(&cluster, "upgraded");
    let voters: Vec<usize> =
        (0..cluster.nodes().len()).filter(|&at| cluster.nodes()[at].has(Role::Meta)).collect();
    for &index in &voters {
        let before = versions(&cluster).await;
        assert_eq!(before.used, NOW, "not all know more: {before:?}");
        cluster.power_off_one(index, CutStyle::DropAll).await.unwrap();
        cluster.configure(index, |config| config.meta.versions.known = LATER).unwrap();
        cluster.start_all().await.unwrap();
    }
    raised(&cluster, LATER).await;
    let ledger = load.end().await;
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());
    let all = member(&cluster).replicas().await.unwrap().ranges;
    for range in all.into_iter().map(|one| one.range.id) {
        let report = member(&cluster).verify_range(range).await.unwrap();
        assert!(report.is_right(), "{report:?}");
        let by = |replica: &ashlar_types::ReplicaReport| replica.apply_version;
        let by: Vec<u32> =
            report.replicas.iter().map(|(_, said)| by(said.as_ref().unwrap())).collect();
        assert_eq!(by, vec![LATER.ranges; voters.len()], "{range}");
    }
    assert!(member(&cluster).verify_range(RangeId(999)).await.is_err());

    // back to the old release: it does not open what was raised beyond it
    let index = voters[1];
    cluster.power_off_one(index, CutStyle::DropAll).await.unwrap();
    cluster.configure(index, |config| config.meta.versions.known = NOW).unwrap();
    let refused = refusal(&mut cluster, index).await;
    assert!(refused.contains("this release is too old for the cluster"), "{refused}");
    let told = join(&cluster, NOW).await;
    let applies_by = format!("this cluster applies by version {}", LATER.root);
    assert!(told.contains(&applies_by), "{told}");
    assert!(join(&cluster, LATER).await.contains("token"), "it may ask");
    cluster.configure(index, |config| config.meta.versions.known = LATER).unwrap();
    cluster.start_all().await.unwrap();
    assert_eq!(ledger.losses(&client_of(&cluster)).await, Vec::<String>::new());
    audit_finds_nothing(&cluster).await;
}
