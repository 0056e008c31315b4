//! What was written under a narrow code gets the wide one, when all homes are there.

use crate::fake::{BUCKET, FakeCluster, Fault, Trick};
use crate::{content_of, execute, read, write};
use ashlar_client::Failure;
use ashlar_types::*;
use std::collections::BTreeSet;
use std::time::Duration;

fn owner() -> ExtentOwner {
    ExtentOwner::Object { at: KeyPoint::new(BUCKET, *b"key"), object: ObjectId(1) }
}

/// An object that was written as three copies because two nodes were away; they are back.
async fn narrow(cluster: &FakeCluster, length: usize) -> Extent {
    for node in [1, 2] {
        cluster.fault(node, Fault::Dead);
    }
    let bytes = content_of(length);
    let narrow = loop {
        let (content, ticket) = write(cluster, &bytes).await.unwrap();
        if content.extents[0].profile == Profile::RS_1_2 {
            execute(cluster, Some(ticket), content.clone()).await.unwrap();
            break content.extents[0].clone();
        }
        cluster.host.clock.sleep(Duration::from_millis(20)).await;
    };
    cluster.with(|shared| shared.faults.clear());
    narrow
}

/// Until the homes are believed to be back.
async fn recode(cluster: &FakeCluster, extent: &Extent) -> Result<bool, Failure> {
    let wanted = cluster.client.wanted_profile(extent.length).unwrap();
    loop {
        match cluster.client.recode(owner(), extent.clone(), wanted).await {
            Err(Failure::Unavailable { .. }) => {
                cluster.host.clock.sleep(Duration::from_millis(20)).await;
            }
            done => return done,
        }
    }
}

fn recoded(cluster: &FakeCluster) -> Vec<Recode> {
    cluster.with(|shared| {
        let ops = shared.arrived.iter().filter_map(|(_, command)| match &command.op {
            RangeOp::Recode(recode) => Some((**recode).clone()),
            _ => None,
        });
        ops.collect()
    })
}

/// The extents that were abandoned.
fn given_up(cluster: &FakeCluster) -> Vec<ExtentId> {
    cluster.with(|shared| {
        let abandons = shared.arrived.iter().filter_map(|(_, command)| match &command.op {
            RangeOp::Abandon(abandon) => Some(&abandon.content),
            _ => None,
        });
        abandons.flat_map(|content| content.extents.iter().map(|extent| extent.id)).collect()
    })
}

/// Waits until the range has heard of every extent that was begun: named or abandoned.
async fn all_is_told(cluster: &FakeCluster, narrow: &Extent) {
    loop {
        let copies = recoded(cluster).into_iter().map(|recode| recode.content.extents[0].id);
        let told: BTreeSet<ExtentId> = copies.chain(given_up(cluster)).chain([narrow.id]).collect();
        if cluster.with(|shared| shared.begun.is_subset(&told)) {
            return;
        }
        cluster.host.clock.sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn copies_become_stripes_of_full_width_with_the_same_bytes() {
    let cluster = FakeCluster::start(&[]).await;
    let extent = narrow(&cluster, 2_000_000).await;
    assert!(recode(&cluster, &extent).await.unwrap());
    let told = recoded(&cluster);
    assert_eq!((told.len(), &told[0].extent), (1, &extent));
    let [copy] = &told[0].content.extents[..] else { panic!("one extent") };
    assert_eq!((copy.profile, copy.missing), (Profile::RS_4_2, SlotSet::EMPTY));
    assert_eq!((copy.length, copy.crc64), (extent.length, extent.crc64));
    let bytes = read(&cluster, &told[0].content, 0, 2_000_000).await.unwrap();
    assert_eq!(bytes, content_of(2_000_000));
}

#[tokio::test]
async fn without_all_homes_nothing_is_told_and_the_copy_is_abandoned() {
    let cluster = FakeCluster::start(&[]).await;
    let extent = narrow(&cluster, 300_000).await;
    assert!(
        recode(&cluster, &extent).await.unwrap(),
        "from here on all homes are believed to live"
    );
    cluster.fault(4, Fault::RefusesWrites);
    let refused = cluster.client.recode(owner(), extent, Profile::RS_4_2).await;
    assert!(matches!(refused, Err(Failure::Unavailable { .. })), "{refused:?}");
    assert_eq!(recoded(&cluster).len(), 1, "only the first was told of");
    cluster.abandoned(1).await;
}

#[tokio::test]
async fn what_has_changed_meanwhile_stays_as_it_is() {
    let cluster = FakeCluster::start(&[]).await;
    let extent = narrow(&cluster, 300_000).await;
    assert!(
        recode(&cluster, &extent).await.unwrap(),
        "from here on all homes are believed to live"
    );
    all_is_told(&cluster, &extent).await;
    cluster.trick([Trick::Refuses(Refusal::ExtentChanged)]);
    assert!(!cluster.client.recode(owner(), extent, Profile::RS_4_2).await.unwrap());
    // what apply has refused it has queued itself: told of again, it would be told of twice
    let copy = recoded(&cluster)[1].content.extents[0].id;
    let given_up = given_up(&cluster);
    assert!(!given_up.contains(&copy), "{given_up:?}");
}

#[tokio::test]
async fn c5_a_source_that_cannot_be_read_whole_gives_no_copy() {
    let cluster = FakeCluster::start(&[]).await;
    let extent = narrow(&cluster, 300_000).await;
    let damaged = cluster.with(|shared| {
        let homes = shared.map.groups[&extent.pg].homes.clone();
        shared.faults.extend(homes.iter().map(|&home| (home, Fault::LiesQuietly)));
        homes.len()
    });
    assert_eq!(damaged, 3);
    let wanted = Profile::RS_4_2;
    let failure = loop {
        match cluster.client.recode(owner(), extent.clone(), wanted).await {
            Err(Failure::Unavailable { .. }) => {
                cluster.host.clock.sleep(Duration::from_millis(20)).await;
            }
            other => break other.unwrap_err(),
        }
    };
    assert!(matches!(failure, Failure::Corrupt { .. }), "{failure:?}");
    assert!(recoded(&cluster).is_empty());
}
