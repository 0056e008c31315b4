//! One sync for all that wait, answers in order, and what submit refuses.

use super::*;
use std::sync::atomic::{AtomicU64, Ordering};

#[test]
fn many_that_wait_share_a_sync_and_are_answered_in_order() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    put(&wal, 0, Record::Vote(Bytes::new())).unwrap();
    let before = disk.syncs();
    // the writer is held in a callback, so that all of the others wait
    let (release, held) = mpsc::sync_channel::<()>(0);
    let hold = Box::new(move |_| held.recv().unwrap());
    wal.submit(RangeId(0), Record::Vote(Bytes::new()), hold).unwrap();
    let next = Arc::new(AtomicU64::new(1));
    let (sender, answers) = mpsc::sync_channel(100);
    for index in 1..=100 {
        let (next, sender) = (Arc::clone(&next), sender.clone());
        let done = Box::new(move |result: Result<(), WalError>| {
            result.unwrap();
            assert_eq!(next.fetch_add(1, Ordering::Relaxed), index);
            sender.send(()).unwrap();
        });
        let append = Record::Append(vec![entry(index, 1, 10)]);
        wal.submit(RangeId(1), append, done).unwrap();
    }
    release.send(()).unwrap();
    for _ in 0..100 {
        answers.recv().unwrap();
    }
    assert!(disk.syncs() - before <= 3, "{} syncs for 101 records", disk.syncs() - before);
    assert_eq!(entries(&wal, 1).len(), 100);
}

#[test]
fn a_gap_or_overlap_is_refused_and_changes_nothing() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    put(&wal, 1, Record::Append(vec![entry(5, 1, 1)])).unwrap();
    for index in [5, 7] {
        let error = put(&wal, 1, Record::Append(vec![entry(index, 1, 1)])).unwrap_err();
        assert_eq!(error, WalError::Gap { group: RangeId(1), expected: 6, found: index });
    }
    let torn = vec![entry(6, 1, 1), entry(8, 1, 1)];
    assert!(put(&wal, 1, Record::Append(torn)).is_err());
    assert_eq!(entries(&wal, 1).len(), 1);
    put(&wal, 1, Record::Purge { upto: 9, id: Bytes::new() }).unwrap();
    let error = put(&wal, 1, Record::Append(vec![entry(6, 1, 1)])).unwrap_err();
    assert_eq!(error, WalError::Gap { group: RangeId(1), expected: 10, found: 6 });
}

#[test]
fn a_dropped_group_takes_nothing_until_it_is_created_again() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    put(&wal, 1, Record::Append(vec![entry(5, 1, 1)])).unwrap();
    put(&wal, 1, Record::Dropped).unwrap();
    assert_eq!((wal.groups(), wal.live_bytes(RangeId(1))), (vec![], 0));
    let vote = Record::Vote(Bytes::new());
    assert_eq!(put(&wal, 1, vote), Err(WalError::Dropped { group: RangeId(1) }));
    close(&wal);
    let wal = open(&disk);
    assert!(state(&wal, 1).dropped, "that it was here is not forgotten");
    let created = || Record::Created { first: Bytes::from_static(b"x") };
    let vote = || Record::Vote(Bytes::from_static(b"v"));
    let together = |records| wal.submit_all(RangeId(1), records, Box::new(drop));
    let early = together(vec![vote(), created()]);
    assert_eq!(early, Err(WalError::Dropped { group: RangeId(1) }));
    together(vec![Record::Dropped, created(), vote()]).unwrap();
    assert_eq!(wal.groups(), [RangeId(1)]);
    assert_eq!(state(&wal, 1).vote, Some(Bytes::from_static(b"v")));
}

#[test]
fn closing_writes_what_waits_and_frees_the_directory() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    let again = Wal::open_with(&host(&disk), config(8192), SMALL);
    assert!(matches!(again, Err(WalError::Locked { .. })));
    wal.submit(RangeId(1), Record::Vote(Bytes::from_static(b"v")), Box::new(|_| ())).unwrap();
    close(&wal);
    assert_eq!(put(&wal, 1, Record::Installed), Err(WalError::Closed));
    let wal = open(&disk);
    assert_eq!(state(&wal, 1).vote.as_deref(), Some(b"v".as_slice()));
}

#[test]
fn the_real_disk_does_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(ashlar_host::RealDisk);
    let host = host(&SimDisk::new()).with_disk(disk);
    let config = WalConfig { dir: dir.path().join("wal"), file_bytes: 1 << 20, spare_files: 1 };
    for round in 0..3 {
        let wal = Wal::open_with(&host, config.clone(), SMALL).unwrap();
        assert_eq!(entries(&wal, 1).len(), 40 * round);
        for index in 0..40 {
            let index = 40 * round as u64 + index + 1;
            put(&wal, 1, Record::Append(vec![entry(index, 1, 30_000)])).unwrap();
        }
        assert_eq!(entries(&wal, 1).last(), Some(&entry(40 * (round as u64 + 1), 1, 30_000)));
        close(&wal);
    }
}

#[test]
fn records_submitted_together_cost_one_sync_and_are_refused_together() {
    let disk = SimDisk::new();
    // in a file so large that no spare is zeroed meanwhile
    let wal = Wal::open_with(&host(&disk), config(1 << 20), SMALL).unwrap();
    put(&wal, 1, Record::Append(vec![entry(1, 1, 10)])).unwrap();
    let both = |note: &'static [u8], index| {
        vec![Record::Committed(Bytes::from_static(note)), Record::Append(vec![entry(index, 1, 10)])]
    };
    for index in 2..30 {
        let before = disk.syncs();
        let (sender, receiver) = mpsc::sync_channel(1);
        let done = Box::new(move |result| drop(sender.send(result)));
        wal.submit_all(RangeId(1), both(b"one", index), done).unwrap();
        receiver.recv().unwrap().unwrap();
        assert_eq!(disk.syncs() - before, 1, "the writer never takes the first without the other");
    }
    let refused = wal.submit_all(RangeId(1), both(b"two", 77), Box::new(|_| panic!("not taken")));
    assert!(matches!(refused, Err(WalError::Gap { found: 77, .. })));
    assert_eq!(state(&wal, 1).committed.as_deref(), Some(b"one".as_slice()));
}
