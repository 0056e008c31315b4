//! A torn tail, corruption below what was synced, and what a recycled file held before are told apart.

use super::*;
use crate::GroupHealth;
use ashlar_host::{CutStyle, Disk, OpenMode};

/// A log with ten synced entries and a vote, closed.
fn written() -> SimDisk {
    let disk = SimDisk::new();
    let wal = open(&disk);
    put(&wal, 1, Record::Vote(Bytes::from_static(b"vote"))).unwrap();
    for index in 1..=4 {
        put(&wal, 1, Record::Append(vec![entry(index, 1, 600)])).unwrap();
    }
    close(&wal);
    disk
}

#[test]
fn damage_below_what_was_synced_is_corruption_and_stays_it_until_caught_up() {
    let disk = written();
    // the second batch: the first is a sector of vote and state
    disk.flip(&files(&disk)[0], 512 + 300).unwrap();
    let wal = open(&disk);
    assert_eq!(state(&wal, 1).health, GroupHealth::Corrupt);
    assert_eq!(entries(&wal, 1), [], "entry 1 is damaged: nothing behind the hole is shown");
    put(&wal, 1, Record::Vote(Bytes::from_static(b"later"))).unwrap();
    close(&wal);
    let wal = open(&disk);
    assert_eq!(state(&wal, 1).health, GroupHealth::Corrupt, "it was made durable");
    put(&wal, 1, Record::Append(vec![entry(1, 1, 600)])).unwrap();
    put(&wal, 1, Record::CaughtUp).unwrap();
    close(&wal);
    let wal = open(&disk);
    assert_eq!(state(&wal, 1).health, GroupHealth::Sound);
    assert_eq!(entries(&wal, 1), [entry(1, 1, 600)]);
}

#[test]
fn damage_in_every_sector_but_the_last_batch_is_corruption() {
    let length = 512 + 4 * 1024;
    for sector in 0..length / 512 {
        let disk = written();
        disk.flip(&files(&disk)[0], sector * 512 + 20).unwrap();
        let wal = open(&disk);
        let expected =
            if sector * 512 < length - 1024 { GroupHealth::Corrupt } else { GroupHealth::TornTail };
        assert_eq!(state(&wal, 1).health, expected, "sector {sector}");
        close(&wal);
    }
}

#[test]
fn a_torn_tail_is_cut_and_reported_until_caught_up() {
    let disk = written();
    disk.flip(&files(&disk)[0], 512 + 3 * 1024 + 700).unwrap();
    for _ in 0..2 {
        let wal = open(&disk);
        assert_eq!(state(&wal, 1).health, GroupHealth::TornTail);
        assert_eq!(entries(&wal, 1).len(), 3);
        assert_eq!(state(&wal, 1).vote.as_deref(), Some(b"vote".as_slice()));
        close(&wal);
    }
    let wal = open(&disk);
    put(&wal, 1, Record::Append(vec![entry(4, 2, 600)])).unwrap();
    close(&wal);
    let wal = open(&disk);
    assert_eq!(state(&wal, 1).health, GroupHealth::TornTail, "although nothing is torn any more");
    put(&wal, 1, Record::CaughtUp).unwrap();
    assert_eq!(state(&wal, 1).health, GroupHealth::Sound);
}

#[test]
fn a_missing_file_is_corruption() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    for index in 1..=40 {
        put(&wal, 1, Record::Append(vec![entry(index, 1, 1400)])).unwrap();
    }
    close(&wal);
    disk.remove_file(&files(&disk)[1]).unwrap();
    let wal = open(&disk);
    assert_eq!(state(&wal, 1).health, GroupHealth::Corrupt);
}

#[test]
fn an_entry_damaged_on_disk_is_an_error_and_never_a_short_read() {
    let disk = written();
    let wal = open(&disk);
    disk.flip(&files(&disk)[0], 512 + 300).unwrap();
    let found = wal.read(RangeId(1), 1, 5);
    assert!(matches!(found, Err(WalError::Unreadable { index: 1, .. })), "{found:?}");
    assert!(
        matches!(wal.failure(), Some(WalError::Unreadable { .. })),
        "whoever runs it can see it"
    );
    assert_eq!(wal.read(RangeId(1), 2, 5).unwrap().len(), 3);
    assert!(matches!(wal.read(RangeId(1), 2, 6), Err(WalError::Missing { .. })));
}

#[test]
fn recycled_files_never_show_what_they_held_before() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    let mut index = 1;
    for _ in 0..30 {
        for _ in 0..6 {
            put(&wal, 1, Record::Append(vec![entry(index, 1, 1000)])).unwrap();
            index += 1;
        }
        put(&wal, 1, Record::Purge { upto: index - 3, id: Bytes::new() }).unwrap();
        assert!(files(&disk).len() <= 6, "files are used again: {:?}", files(&disk));
    }
    for style in [CutStyle::DropAll, CutStyle::KeepAll, CutStyle::Torn { seed: 3 }] {
        disk.cut(style);
        let wal = open(&disk);
        assert_eq!(entries(&wal, 1), [entry(index - 2, 1, 1000), entry(index - 1, 1, 1000)]);
        assert_eq!(state(&wal, 1).health, GroupHealth::Sound);
    }
}

#[test]
fn a_cold_group_does_not_pin_files_for_ever() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    put(&wal, 2, Record::Append(vec![entry(1, 1, 100), entry(2, 1, 100)])).unwrap();
    for index in 1..=100 {
        put(&wal, 1, Record::Append(vec![entry(index, 1, 1000)])).unwrap();
        put(&wal, 1, Record::Purge { upto: index, id: Bytes::new() }).unwrap();
    }
    assert!(files(&disk).len() <= 6, "{:?}", files(&disk));
    disk.cut(CutStyle::DropAll);
    let wal = open(&disk);
    assert_eq!(entries(&wal, 2), [entry(1, 1, 100), entry(2, 1, 100)]);
    assert_eq!(state(&wal, 2).health, GroupHealth::Sound);
}

#[test]
fn a_failed_sync_fails_every_waiting_and_later_record() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    put(&wal, 1, Record::Vote(Bytes::from_static(b"a"))).unwrap();
    disk.fail_sync_after(0);
    let vote = || Record::Vote(Bytes::from_static(b"b"));
    assert!(wal.failure().is_none());
    assert!(matches!(put(&wal, 1, vote()), Err(WalError::Failed { .. })));
    assert!(matches!(put(&wal, 1, vote()), Err(WalError::Failed { .. })));
    assert!(matches!(wal.failure(), Some(WalError::Failed { .. })), "whoever runs it can see it");
}

#[test]
fn a_full_disk_fails_the_log_with_its_reason() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    disk.set_capacity(Some(4096));
    let result = put(&wal, 1, Record::Append(vec![entry(1, 1, 9000)]));
    assert!(result.unwrap_err().to_string().contains("no storage space"));
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new(DIR)).unwrap();
    let file = disk.open(&crate::files::path(Path::new(DIR), 1), OpenMode::CreateNew).unwrap();
    let mut sector = vec![0; 512];
    sector[..6].copy_from_slice(b"ashwal");
    sector[6] = 2;
    let seed = crate::format::seed(0);
    let checksum = crc32c::crc32c_append(seed, &sector[..68]);
    sector[68..72].copy_from_slice(&checksum.to_le_bytes());
    file.write_at(&sector, 0).unwrap();
    let error = Wal::open_with(&host(&disk), config(8192), SMALL).unwrap_err();
    assert!(matches!(error, WalError::Newer { found: 2, known: 1, .. }), "{error}");
}

#[test]
fn what_was_refilled_after_damage_stays_although_the_damaged_file_is_still_pinned() {
    let disk = written();
    disk.flip(&files(&disk)[0], 512 + 2 * 1024 + 300).unwrap();
    let wal = open(&disk);
    assert_eq!(state(&wal, 1).health, GroupHealth::Corrupt);
    assert_eq!(entries(&wal, 1), [entry(1, 1, 600), entry(2, 1, 600)], "those before the damage");
    put(&wal, 1, Record::Append(vec![entry(3, 2, 600), entry(4, 2, 600)])).unwrap();
    put(&wal, 1, Record::CaughtUp).unwrap();
    close(&wal);
    let wal = open(&disk);
    assert_eq!(state(&wal, 1).health, GroupHealth::Sound);
    let refilled = [entry(1, 1, 600), entry(2, 1, 600), entry(3, 2, 600), entry(4, 2, 600)];
    assert_eq!(entries(&wal, 1), refilled);
}

#[test]
fn a_lost_truncation_never_joins_entries_of_two_logs() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    put(&wal, 1, Record::Append(vec![entry(1, 1, 10), entry(2, 1, 10)])).unwrap();
    put(&wal, 1, Record::Truncate { after: Some(1) }).unwrap();
    put(&wal, 1, Record::Append(vec![entry(2, 2, 10)])).unwrap();
    put(&wal, 1, Record::Append(vec![entry(3, 2, 10)])).unwrap();
    close(&wal);
    for sector in [1, 2] {
        // truncation, or the entry that replaced another
        disk.flip(&files(&disk)[0], sector * 512).unwrap();
        let wal = open(&disk);
        assert_eq!(state(&wal, 1).health, GroupHealth::Corrupt);
        assert!(
            !entries(&wal, 1).contains(&entry(3, 2, 10)),
            "3 of term 2 does not follow on 2 of term 1"
        );
        close(&wal);
        disk.flip(&files(&disk)[0], sector * 512).unwrap();
    }
}

#[test]
fn notes_outlive_their_files_and_the_last_one_counts() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    let note =
        |key, byte| futures_block(async { wal.note_durable(key, [byte; 16]).await.unwrap() });
    note(7, 1);
    note(8, 2);
    note(7, 3);
    for index in 1..=60 {
        put(&wal, 1, Record::Append(vec![entry(index, 1, 1000)])).unwrap();
        put(&wal, 1, Record::Purge { upto: index, id: Bytes::new() }).unwrap();
    }
    let noted = std::collections::BTreeMap::from([(7, [3; 16]), (8, [2; 16])]);
    for style in [CutStyle::DropAll, CutStyle::Torn { seed: 3 }, CutStyle::DropAll] {
        disk.cut(style);
        let wal = open(&disk);
        assert_eq!(wal.notes(), noted);
        put(&wal, 1, Record::Vote(Bytes::from_static(b"v"))).unwrap();
    }
}

#[test]
fn a_note_that_was_not_synced_is_gone_or_whole() {
    for style in [CutStyle::DropAll, CutStyle::KeepAll, CutStyle::Torn { seed: 1 }] {
        let disk = SimDisk::new();
        let wal = open(&disk);
        futures_block(async { wal.note_durable(7, [1; 16]).await.unwrap() });
        disk.fail_sync_after(0);
        let lost = std::cell::Cell::new(false);
        futures_block(async { lost.set(wal.note_durable(7, [2; 16]).await.is_err()) });
        assert!(lost.get(), "it is not called durable");
        disk.cut(style);
        let note = open(&disk).notes()[&7];
        assert!(note == [1; 16] || note == [2; 16], "{note:?}");
    }
}

#[test]
fn entries_that_are_moved_while_they_are_read_are_found_again() {
    let disk = SimDisk::new();
    let wal = open(&disk);
    let cold = [entry(1, 1, 700), entry(2, 1, 700)];
    put(&wal, 2, Record::Append(cold.to_vec())).unwrap();
    let mut misses = 0;
    for index in 1..=300 {
        let before = wal.locate(RangeId(2), 1, 3).unwrap();
        for step in 0..20 {
            let index = 20 * index + step;
            put(&wal, 1, Record::Append(vec![entry(index, 1, 1000)])).unwrap();
            put(&wal, 1, Record::Purge { upto: index, id: Bytes::new() }).unwrap();
        }
        // what was located then is either still readable, or known to be elsewhere
        match wal.fetch(RangeId(2), before).unwrap() {
            Some(found) => assert_eq!(found, cold),
            None => misses += 1,
        }
        assert_eq!(wal.read(RangeId(2), 1, 3).unwrap(), cold);
    }
    assert!(misses > 0, "the entries moved, and their file was used again");
    assert!(matches!(wal.read(RangeId(2), 1, 4), Err(WalError::Missing { .. })));
}
