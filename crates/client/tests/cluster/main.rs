//! The client against fakes over the real wire: what it does when nodes are dead, slow, lying, or change their mind.

#![expect(clippy::unwrap_used, reason = "helpers of tests: where they fail, the test fails")]

mod fake;
mod recode;
mod sealing;

use ashlar_client::{ContentName, Failure, Ticket};
use ashlar_types::*;
use bytes::Bytes;
use fake::{BUCKET, FakeCluster, Fault, Trick, disk};
use futures::TryStreamExt;
use std::time::Duration;

const MIB: usize = 1 << 20;

fn content_of(length: usize) -> Bytes {
    (0..length).map(|at| u8::try_from((at * 31 + at / 251 + at / 65_537) % 256).unwrap()).collect()
}

async fn write(cluster: &FakeCluster, bytes: &Bytes) -> Result<(Content, Ticket), Failure> {
    let mut writer = cluster.client.writer(BUCKET, Some(bytes.len() as u64)).await?;
    let mut rest = bytes.clone();
    while !rest.is_empty() {
        let part = rest.split_to(rest.len().min(100_000));
        writer.write(part).await?;
    }
    writer.finish().await
}

fn pieces(content: &Content) -> Vec<Piece> {
    let mut offset = 0;
    let mut pieces = Vec::new();
    for extent in &content.extents {
        pieces.push(Piece::Extent { offset, extent: extent.clone() });
        offset += extent.length;
    }
    if !content.tail.is_empty() {
        pieces.push(Piece::Inline { offset, bytes: content.tail.clone() });
    }
    pieces
}

fn the_key() -> ContentName {
    ContentName { at: KeyPoint::new(BUCKET, *b"key"), object: ObjectId(1), version: None }
}

async fn read(
    cluster: &FakeCluster,
    content: &Content,
    from: usize,
    to: usize,
) -> Result<Vec<u8>, Failure> {
    let stream = cluster.client.reader(
        cluster.client.open_read(),
        the_key(),
        pieces(content),
        from as u64,
        to as u64,
    );
    let parts: Vec<Bytes> = stream.try_collect().await?;
    Ok(parts.concat())
}

fn put(content: Content) -> RangeOp {
    RangeOp::Put(Box::new(Put {
        at: KeyPoint::new(BUCKET, *b"key"),
        bucket_epoch: Epoch(1),
        condition: WriteCondition::Always,
        object: ObjectId(1),
        modified_ms: 5,
        etag: Etag { md5: [7; 16], parts: 0 },
        checksums: vec![],
        description: Description::default(),
        content,
        token: None,
    }))
}

async fn execute(
    cluster: &FakeCluster,
    ticket: Option<Ticket>,
    content: Content,
) -> Result<Applied, Failure> {
    cluster.client.execute(ticket, &KeyPoint::new(BUCKET, *b"key"), put(content)).await
}

fn missing(content: &Content) -> Vec<u32> {
    content.extents.iter().map(|extent| extent.missing.count()).collect()
}

#[tokio::test]
async fn the_length_decides_between_inline_copies_and_stripes() {
    let cluster = FakeCluster::start(&[]).await;
    for (length, profiles, tail) in [
        (0, vec![], 0),
        (INLINE_BYTES_MAX, vec![], INLINE_BYTES_MAX),
        (INLINE_BYTES_MAX + 1, vec![Profile::RS_1_2], 0),
        (64 * 1024 + 1, vec![Profile::RS_4_2], 0),
        (2 * MIB + 5, vec![Profile::RS_4_2], 0),
    ] {
        let bytes = content_of(length);
        let (content, ticket) = write(&cluster, &bytes).await.unwrap();
        let found: Vec<Profile> = content.extents.iter().map(|extent| extent.profile).collect();
        assert_eq!((found, content.tail.len(), content.length()), (profiles, tail, length as u64));
        assert_eq!(missing(&content).iter().sum::<u32>(), 0, "all homes live");
        assert_eq!(read(&cluster, &content, 0, length).await.unwrap(), bytes);
        execute(&cluster, Some(ticket), content).await.unwrap();
    }
}

#[tokio::test]
async fn a_long_object_is_cut_into_extents_and_a_tail() {
    let cluster = FakeCluster::start(&[]).await;
    let bytes = content_of(64 * MIB + 100);
    let (content, ticket) = write(&cluster, &bytes).await.unwrap();
    assert_eq!(
        (content.extents.len(), content.extents[0].length, content.tail.len()),
        (1, 64 << 20, 100)
    );
    assert_eq!(
        read(&cluster, &content, 64 * MIB - 10, 64 * MIB + 50).await.unwrap(),
        bytes[64 * MIB - 10..64 * MIB + 50]
    );
    execute(&cluster, Some(ticket), content).await.unwrap();
}

#[tokio::test]
async fn a_dead_home_is_recorded_as_missing_and_never_asked() {
    let cluster = FakeCluster::start(&[3]).await;
    let bytes = content_of(3 * MIB + 777);
    let (content, _ticket) = write(&cluster, &bytes).await.unwrap();
    assert_eq!(missing(&content), [1]);
    assert!(content.extents[0].missing.contains(Slot(2)));
    assert_eq!(read(&cluster, &content, 0, bytes.len()).await.unwrap(), bytes);
}

#[tokio::test]
async fn with_too_few_wide_homes_the_copies_take_it() {
    let cluster = FakeCluster::start(&[1, 2]).await;
    // first the client has to learn that they are dead: by itself, from its pings
    let bytes = content_of(200_000);
    let (content, _ticket) = write(&cluster, &bytes).await.unwrap();
    assert_eq!(content.extents[0].profile, Profile::RS_1_2);
    assert_eq!(read(&cluster, &content, 0, bytes.len()).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_stalled_home_is_given_up_while_the_others_go_on() {
    let cluster = FakeCluster::start(&[]).await;
    cluster.fault(5, Fault::StallsWrites);
    for length in [200_000, 8 * MIB] {
        let bytes = content_of(length);
        let (content, _ticket) = write(&cluster, &bytes).await.unwrap();
        assert_eq!(missing(&content), [1], "length {length}");
        assert!(content.extents[0].missing.contains(Slot(4)));
        assert_eq!(read(&cluster, &content, 0, length).await.unwrap(), bytes);
    }
}

#[tokio::test]
async fn a_home_that_received_other_bytes_does_not_count() {
    let cluster = FakeCluster::start(&[]).await;
    cluster.fault(1, Fault::StoresOtherBytes);
    let bytes = content_of(5 * MIB);
    let (content, _ticket) = write(&cluster, &bytes).await.unwrap();
    assert!(content.extents[0].missing.contains(Slot(0)) && missing(&content) == [1]);
    assert_eq!(read(&cluster, &content, 0, bytes.len()).await.unwrap(), bytes);
}

#[tokio::test]
async fn an_extent_that_fails_is_written_to_another_group_and_the_first_abandoned() {
    let cluster = FakeCluster::start(&[]).await;
    cluster.fault(2, Fault::RefusesWrites);
    cluster.fault(6, Fault::RefusesWrites);
    let bytes = content_of(150_000);
    let (content, _ticket) = write(&cluster, &bytes).await.unwrap();
    assert_eq!(content.extents[0].profile, Profile::RS_1_2);
    assert_eq!(read(&cluster, &content, 0, bytes.len()).await.unwrap(), bytes);
    assert_ne!(cluster.abandoned(1).await[0], content.extents[0].id);
}

#[tokio::test]
async fn lost_damaged_and_silent_shards_are_decoded_up_to_the_parity() {
    let cluster = FakeCluster::start(&[]).await;
    let bytes = content_of(4 * MIB + 4321);
    let (content, _ticket) = write(&cluster, &bytes).await.unwrap();
    cluster.with(|shared| shared.shards.retain(|(home, ..), _| *home != disk(1)));
    cluster.fault(4, Fault::SaysCorrupt);
    assert_eq!(read(&cluster, &content, 0, bytes.len()).await.unwrap(), bytes);
    assert_eq!(read(&cluster, &content, 100, 101).await.unwrap(), bytes[100..101]);
    cluster.fault(2, Fault::SaysCorrupt);
    let lost = read(&cluster, &content, 0, bytes.len()).await;
    assert!(matches!(lost, Err(Failure::Lost { readable: 3, .. })), "{lost:?}");
}

#[tokio::test]
async fn a_slow_shard_is_hedged_by_parity() {
    let cluster = FakeCluster::start(&[]).await;
    let bytes = content_of(MIB);
    let (content, _ticket) = write(&cluster, &bytes).await.unwrap();
    cluster.fault(2, Fault::StallsReads);
    let reading = read(&cluster, &content, 0, bytes.len());
    let found = cluster.host.clock.timeout(Duration::from_secs(1), reading).await;
    assert_eq!(found.expect("nobody waits for the slow one").unwrap(), bytes);
}

#[tokio::test]
async fn bytes_that_nobody_noticed_to_be_wrong_are_not_handed_out_whole() {
    let cluster = FakeCluster::start(&[]).await;
    let bytes = content_of(100_000);
    let (content, _ticket) = write(&cluster, &bytes).await.unwrap();
    cluster.fault(1, Fault::LiesQuietly);
    let found = read(&cluster, &content, 0, bytes.len()).await;
    assert!(matches!(found, Err(Failure::Corrupt { .. })), "{found:?}");
}

#[tokio::test]
async fn random_ranges_read_what_was_written_with_two_shards_gone() {
    let cluster = FakeCluster::start(&[]).await;
    let bytes = content_of(3 * MIB + 12_345);
    let (content, _ticket) = write(&cluster, &bytes).await.unwrap();
    cluster.with(|shared| shared.shards.retain(|(home, ..), _| *home != disk(2)));
    cluster.with(|shared| shared.shards.retain(|(home, ..), _| *home != disk(3)));
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..60 {
        use proptest::strategy::{Strategy, ValueTree};
        let spans = (0..bytes.len(), 0..bytes.len());
        let (one, two) = spans.new_tree(&mut runner).unwrap().current();
        let (from, to) = (one.min(two), one.max(two) + 1);
        let found = read(&cluster, &content, from, to).await.unwrap();
        assert_eq!(found, bytes[from..to], "{from}..{to}");
    }
}

#[tokio::test]
async fn further_pieces_are_asked_for_when_they_are_needed() {
    let cluster = FakeCluster::start(&[]).await;
    let bytes = content_of(100_000);
    let (mut content, _ticket) = write(&cluster, &bytes).await.unwrap();
    content.tail = Bytes::from_static(b"tail");
    let mut all = pieces(&content);
    cluster.with(|shared| shared.more_pieces = vec![all.pop().unwrap()]);
    let stream = cluster.client.reader(cluster.client.open_read(), the_key(), all, 99_999, 100_003);
    let parts: Vec<Bytes> = stream.try_collect().await.unwrap();
    assert_eq!(parts.concat(), [&bytes[99_999..], b"tai"].concat());
}

#[tokio::test]
async fn a_redirect_is_followed_and_a_busy_range_asked_again() {
    let cluster = FakeCluster::start(&[]).await;
    cluster.trick([Trick::Redirect(12), Trick::Busy]);
    execute(&cluster, None, Content::default()).await.unwrap();
    let nodes: Vec<u64> =
        cluster.with(|shared| shared.arrived.iter().map(|(node, _)| *node).collect());
    assert_eq!(nodes[1..], [12, 12]);
    assert_eq!(cluster.callers(), [(1, 1); 3]);
}

#[tokio::test]
async fn an_unknown_outcome_is_asked_for_under_the_same_seq() {
    let cluster = FakeCluster::start(&[]).await;
    cluster.trick([Trick::LosesAnswer]);
    let applied = execute(&cluster, None, Content::default()).await.unwrap();
    assert!(matches!(applied, Applied::Written { .. }));
    assert_eq!(cluster.callers(), [(1, 1); 2]);
    assert_eq!(cluster.with(|shared| shared.applied.len()), 1);
    execute(&cluster, None, Content::default()).await.unwrap();
    let last = cluster.with(|shared| shared.arrived.last().unwrap().1.caller.unwrap());
    assert_eq!((last.seq, last.answered_below, last.base_index), (2, 2, 7));
}

#[tokio::test]
async fn silence_until_the_deadline_is_unknown_and_refusal_of_all_is_not() {
    let cluster = FakeCluster::start(&[]).await;
    execute(&cluster, None, Content::default()).await.unwrap();
    cluster.trick(vec![Trick::Hangs; 10]);
    let end = execute(&cluster, None, Content::default()).await;
    assert!(matches!(end, Err(Failure::Unknown { .. })), "{end:?}");
    cluster.with(|shared| shared.tricks = vec![Trick::Busy; 10_000].into());
    let end = execute(&cluster, None, Content::default()).await;
    assert!(matches!(end, Err(Failure::Unavailable { .. })), "{end:?}");
}

/// Waits until the others have named a leader so many times.
async fn leader_named(cluster: &FakeCluster, times: u64) {
    let named = async {
        while cluster.with(|shared| shared.named_leader) < times {
            cluster.host.clock.sleep(Duration::from_millis(1)).await;
        }
    };
    let named = cluster.host.clock.timeout(Duration::from_secs(10), named).await;
    named.expect("the others are asked while the leader is silent");
}

/// How often a node was sent each command, by seq.
fn sends_to(cluster: &FakeCluster, node: u64) -> Vec<(u64, usize)> {
    cluster.with(|shared| {
        let mut sends = std::collections::BTreeMap::new();
        for (to, command) in &shared.arrived {
            if let Some(caller) = command.caller.filter(|_| *to == node) {
                *sends.entry(caller.seq).or_default() += 1;
            }
        }
        sends.into_iter().collect()
    })
}

#[tokio::test]
async fn a_leader_that_stops_is_asked_by_no_call_twice_and_by_later_ones_not_at_all() {
    let cluster = FakeCluster::start(&[]).await;
    cluster.with(|shared| shared.leader = Some(11));
    // until another node has named it: else the early calls ask the others first, and hear of it before it is silent
    while cluster.with(|shared| shared.named_leader) == 0 {
        execute(&cluster, None, Content::default()).await.unwrap();
    }
    let before = cluster.with(|shared| shared.applied.len());
    cluster.with(|shared| (shared.named_leader, shared.stopped) = (0, [11].into()));
    let early = (0..5).map(|_| execute(&cluster, None, Content::default()));
    let late = async {
        // the early ones have found it silent: the others still name it, then elect
        leader_named(&cluster, 3).await;
        cluster.with(|shared| shared.arrived.clear());
        let later = execute(&cluster, None, Content::default());
        let electing = async {
            // soon: the belief that it is silent ends by itself
            leader_named(&cluster, 8).await;
            assert_eq!(sends_to(&cluster, 11), [], "once is enough");
            cluster.with(|shared| shared.leader = Some(12));
        };
        futures::join!(later, electing).0
    };
    let (early, late) = futures::join!(futures::future::join_all(early), late);
    assert!(early.into_iter().chain([late]).all(|end| end.is_ok()));
    assert_eq!(cluster.with(|shared| shared.applied.len()), before + 6, "each happened once");
}

#[tokio::test]
async fn a_leader_that_was_silent_and_still_leads_is_asked_again() {
    let cluster = FakeCluster::start(&[]).await;
    cluster.with(|shared| shared.leader = Some(11));
    execute(&cluster, None, Content::default()).await.unwrap();
    cluster.with(|shared| (shared.named_leader, shared.stopped) = (0, [11].into()));
    let going_on = async {
        leader_named(&cluster, 2).await;
        cluster.with(|shared| shared.stopped.clear());
    };
    let (end, ()) = futures::join!(execute(&cluster, None, Content::default()), going_on);
    assert!(matches!(end, Ok(Applied::Written { .. })), "{end:?}");
    assert_eq!(
        sends_to(&cluster, 11).last(),
        Some(&(2, 2)),
        "the same command, when all others name it"
    );
}

#[tokio::test]
async fn an_ended_session_is_replaced_only_where_nothing_is_in_doubt() {
    let cluster = FakeCluster::start(&[]).await;
    cluster.trick([Trick::Refuses(Refusal::SessionFenced)]);
    execute(&cluster, None, Content::default()).await.unwrap();
    assert_eq!(cluster.callers(), [(1, 1), (2, 1)]);
    cluster.trick([Trick::LosesAnswer, Trick::Refuses(Refusal::SessionFenced)]);
    let end = execute(&cluster, None, Content::default()).await;
    assert!(
        matches!(end, Err(Failure::Unknown { .. })),
        "a resend that is refused says nothing: {end:?}"
    );
    let (content, ticket) = write(&cluster, &content_of(100_000)).await.unwrap();
    cluster.trick([Trick::Refuses(Refusal::SessionFenced)]);
    let end = execute(&cluster, Some(ticket), content).await;
    assert!(
        matches!(end, Err(Failure::Unavailable { .. })),
        "its extents belong to the old session: {end:?}"
    );
}

#[tokio::test]
async fn a_range_that_never_heard_of_the_bucket_is_told() {
    let cluster = FakeCluster::start(&[]).await;
    let name = BucketName::parse("letters").unwrap();
    let bucket = cluster.client.create_bucket(&name, "me").await.unwrap();
    let again = cluster.client.create_bucket(&name, "you").await;
    assert!(matches!(again, Err(Failure::BucketExists(known)) if *known == bucket));
    cluster.trick([Trick::Refuses(Refusal::BucketEpoch { known: None })]);
    let at = KeyPoint::new(bucket.row.bucket, *b"key");
    cluster.client.execute(None, &at, put(Content::default())).await.unwrap();
    let ops: Vec<RangeOp> = cluster
        .with(|shared| shared.arrived.iter().map(|(_, command)| command.op.clone()).collect());
    assert!(
        matches!(&ops[..], [RangeOp::Put(_), RangeOp::SetBucket(row), RangeOp::Put(_)] if *row == bucket.row)
    );
}

#[tokio::test]
async fn a_bucket_that_changes_again_and_again_leaves_open_what_was_received() {
    let cluster = FakeCluster::start(&[]).await;
    let name = BucketName::parse("letters").unwrap();
    let bucket = cluster.client.create_bucket(&name, "me").await.unwrap();
    let at = KeyPoint::new(bucket.row.bucket, *b"key");
    let changes = || vec![Trick::Refuses(Refusal::BucketEpoch { known: None }); 5];
    cluster.trick([Trick::LosesAnswer]);
    cluster.trick(changes());
    let end = cluster.client.execute(None, &at, put(Content::default())).await;
    assert!(
        matches!(end, Err(Failure::Unknown { .. })),
        "C7: the first may have happened: {end:?}"
    );
    cluster.trick(changes());
    let (content, ticket) = write(&cluster, &content_of(100_000)).await.unwrap();
    let end = cluster.client.execute(Some(ticket), &at, put(content.clone())).await;
    assert!(matches!(end, Err(Failure::Unavailable { .. })), "all were answered: {end:?}");
    assert_eq!(cluster.abandoned(1).await, [content.extents[0].id]);
}

#[tokio::test]
async fn what_was_written_for_a_bucket_that_is_gone_is_abandoned() {
    let cluster = FakeCluster::start(&[]).await;
    let (content, ticket) = write(&cluster, &content_of(100_000)).await.unwrap();
    cluster.trick([Trick::Refuses(Refusal::BucketEpoch { known: None })]);
    let end = execute(&cluster, Some(ticket), content.clone()).await;
    assert!(matches!(end, Err(Failure::Refused(Refusal::BucketFenced))), "{end:?}");
    assert_eq!(cluster.abandoned(1).await, [content.extents[0].id]);
    let callers = cluster.callers();
    assert_eq!(callers, [callers[0]; 2], "under the same seq");
}

/// The `base_index` of the commands that have arrived.
fn bases(cluster: &FakeCluster) -> Vec<u64> {
    cluster.with(|shared| {
        let callers = shared.arrived.iter().filter_map(|(_, command)| command.caller);
        callers.map(|caller| caller.base_index).collect()
    })
}

#[tokio::test]
async fn an_abandon_follows_the_key_to_another_range_and_the_range_to_its_log() {
    let cluster = FakeCluster::start(&[]).await;
    let (_, unused) = write(&cluster, &content_of(100_000)).await.unwrap();
    cluster.trick([Refusal::OutsideRange, Refusal::Forgotten].map(Trick::Refuses));
    drop(unused);
    cluster.abandoned(3).await;
    assert_eq!(bases(&cluster), [0, 0, 7]);
    assert_eq!(cluster.callers(), [cluster.callers()[0]; 3]);
}

#[tokio::test]
async fn an_abandon_behind_a_command_that_was_sent_is_never_taken_for_new() {
    let cluster = FakeCluster::start(&[]).await;
    let (content, ticket) = write(&cluster, &content_of(100_000)).await.unwrap();
    // the range has forgotten what it was: it may have named the extent (D2)
    cluster.trick([
        Trick::LosesAnswer,
        Trick::Refuses(Refusal::Forgotten),
        Trick::Refuses(Refusal::Forgotten),
    ]);
    let unknown = execute(&cluster, Some(ticket), content).await;
    assert!(matches!(unknown, Err(Failure::Unknown { .. })), "{unknown:?}");
    cluster.abandoned(1).await;
    // whatever still went out would arrive before this
    execute(&cluster, None, Content::default()).await.unwrap();
    assert_eq!(bases(&cluster), [0, 0, 0, 7], "the command twice, its end once, another command");
}

#[tokio::test]
async fn a_bucket_is_deleted_when_empty_and_lives_on_when_not() {
    let cluster = FakeCluster::start(&[]).await;
    let name = BucketName::parse("letters").unwrap();
    cluster.client.create_bucket(&name, "me").await.unwrap();
    cluster.with(|shared| shared.keys.insert(b"a".to_vec()));
    let end = cluster.client.delete_bucket(&name).await;
    assert!(matches!(end, Err(Failure::Refused(Refusal::BucketNotEmpty))), "{end:?}");
    let known = cluster.client.bucket(&name).await.unwrap().unwrap();
    assert_eq!((known.row.state, known.row.epoch), (BucketState::Open, Epoch(3)));
    cluster.with(|shared| shared.keys.clear());
    cluster.client.delete_bucket(&name).await.unwrap();
    assert_eq!(cluster.client.bucket(&name).await.unwrap(), None);
}

#[tokio::test]
async fn what_is_dropped_is_abandoned_once_and_what_is_committed_never() {
    let cluster = FakeCluster::start(&[]).await;
    let bytes = content_of(100_000);
    let (kept, ticket) = write(&cluster, &bytes).await.unwrap();
    execute(&cluster, Some(ticket), kept.clone()).await.unwrap();
    let (unused, ticket) = write(&cluster, &bytes).await.unwrap();
    drop(ticket);
    let mut half = cluster.client.writer(BUCKET, Some(5 << 20)).await.unwrap();
    half.write(content_of(2 * MIB)).await.unwrap();
    drop(half);
    let abandoned = cluster.abandoned(2).await;
    assert!(abandoned.contains(&unused.extents[0].id) && !abandoned.contains(&kept.extents[0].id));
    assert_eq!(abandoned.len(), 2);
}

#[tokio::test]
async fn content_of_another_length_than_announced_is_refused() {
    let cluster = FakeCluster::start(&[]).await;
    assert!(matches!(cluster.client.writer(BUCKET, None).await, Err(Failure::LengthRequired)));
    let mut writer = cluster.client.writer(BUCKET, Some(10)).await.unwrap();
    let long = writer.write(content_of(11)).await;
    assert!(matches!(long, Err(Failure::LengthDiffers { announced: 10, found: 11 })));
    writer.write(content_of(9)).await.unwrap();
    let short = writer.finish().await;
    assert!(matches!(short, Err(Failure::LengthDiffers { announced: 10, found: 9 })));
}

#[tokio::test]
async fn a_page_goes_on_in_the_next_range_and_follows_a_moved_one() {
    let cluster = FakeCluster::start(&[]).await;
    let keys: Vec<Vec<u8>> =
        ["a", "b", "l", "m", "n", "z"].map(|key| key.as_bytes().to_vec()).into();
    cluster.with(|shared| shared.keys.extend(keys.clone()));
    let list = |after: &str, limit| ListObjects {
        bucket: BUCKET,
        bucket_epoch: Epoch(1),
        prefix: vec![],
        delimiter: None,
        after: after.as_bytes().to_vec(),
        limit,
    };
    let names = |page: Page<ListEntry>| {
        let name = |entry| match entry {
            ListEntry::CommonPrefix(name) => name,
            ListEntry::Key { key, .. } => key,
        };
        (page.entries.into_iter().map(name).collect::<Vec<_>>(), page.more)
    };
    let page = |after, limit| cluster.client.list(list(after, limit));
    assert_eq!(names(page("", 100).await.unwrap()), (keys.clone(), false));
    assert_eq!(
        names(page("", 3).await.unwrap()),
        (keys[..3].to_vec(), true),
        "the next range has more"
    );
    cluster.with(|shared| shared.ranges.iter_mut().for_each(|range| range.epoch = Epoch(2)));
    assert_eq!(names(page("b", 4).await.unwrap()), (keys[2..].to_vec(), false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_in_use_as_long_as_something_may_be_sent_under_it() {
    let cluster = FakeCluster::start_with(&[], Duration::from_millis(100)).await;
    assert_eq!(cluster.client.sessions_in_use(), (vec![], false));
    let (_, held) = write(&cluster, &content_of(MIB)).await.unwrap();
    cluster.host.clock.sleep(Duration::from_millis(150)).await;
    let (_, later) = write(&cluster, &content_of(MIB)).await.unwrap();
    assert!(cluster.with(|shared| shared.sessions) >= 2, "the first one has aged");
    let (used, _) = cluster.client.sessions_in_use();
    assert!(used.contains(&SessionId(1)), "a command may still go under it: {used:?}");
    assert!(cluster.with(|shared| !shared.ended.contains(&SessionId(1))));
    drop((held, later));
    // nobody asks for a session any more: the idle ones end by themselves
    let all_ended = async {
        loop {
            let ended = cluster.with(|shared| shared.ended.len() as u64 >= shared.sessions);
            if ended && cluster.client.sessions_in_use() == (vec![], false) {
                return;
            }
            cluster.host.clock.sleep(Duration::from_millis(10)).await;
        }
    };
    cluster.host.clock.timeout(Duration::from_secs(20), all_ended).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_told_an_epoch_and_does_not_answer_is_no_less_up() {
    let hour = Duration::from_secs(3600);
    let cluster = FakeCluster::start_as(&[], |config| config.ping_every = hour).await;
    let disk = disk(1);
    assert!(!cluster.client.is_readable(disk), "nothing is known of it yet");
    cluster.client.tell_epoch().await;
    assert!(cluster.client.is_readable(disk), "an answer counts");
    cluster.fault(1, Fault::Dead);
    for _ in 0..3 {
        cluster.client.tell_epoch().await;
    }
    assert!(cluster.client.is_readable(disk));

    let cluster = FakeCluster::start(&[]).await;
    let until = async |is: bool| {
        while cluster.client.is_readable(disk) != is {
            cluster.host.clock.sleep(Duration::from_millis(10)).await;
        }
    };
    until(true).await;
    cluster.fault(1, Fault::Dead);
    let lost = cluster.host.clock.timeout(Duration::from_secs(20), until(false)).await;
    assert!(lost.is_ok(), "the regular pings judge it");
}
