//! The bytes of format 1 (`docs/formats/catalog.md`): they must stay readable for ever.

use super::support::*;
use crate::key;
use crate::row::{
    DescriptorRow, ExtentRow, ObjectContent, ObjectRow, Prepared, SplitRow, UsageRow, summary,
};
use ashlar_types::*;

#[test]
fn keys_of_format_1() {
    let at = KeyPoint::new(BucketId(0x0102), *b"a\0b");
    let bucket = "0000000000000102";
    assert_eq!(hex(&key::current(&at)), format!("63{bucket}6100ff620000"));
    let upload = "00000000000000000000000000000005";
    assert_eq!(hex(&key::part(&at, UploadId(5), 3)), format!("70{bucket}6100ff620000{upload}0003"));
    assert_eq!(
        hex(&key::extents_row(&at, ObjectId(5), 9, 1)),
        format!("78{bucket}6100ff620000{upload}000000000000000900000001")
    );
    let extent = ExtentId { session: SessionId(1), counter: 2 };
    assert_eq!(
        hex(&key::repair(RangeId(3), 1, extent)),
        "7200000000000000030100000000000000010000000000000002"
    );
    assert_eq!(
        hex(&key::result(RangeId(3), SessionId(4), 5)),
        "74000000000000000300000000000000040000000000000005"
    );
    assert_eq!(hex(&key::system_key(RangeId(3), 7)), "79000000000000000307");
}

#[test]
fn rows_of_format_1() {
    let row = ObjectRow {
        size: 5,
        modified_ms: 10,
        etag: Etag { md5: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], parts: 0 },
        checksums: Vec::new(),
        object: ObjectId(7),
        generation: Generation(3),
        token: None,
        description: Description::default(),
        content: ObjectContent::Parts(UploadId(1)),
        has_id: false,
    };
    let bytes = unhex("01050a0102030405060708090a0b0c0d0e0f10000007030000000101");
    assert_eq!(hex(&encode(&row)), hex(&bytes));
    assert_eq!(decode::<ObjectRow>(&bytes), Ok(row));
    assert_eq!(summary(&bytes).unwrap().size, 5);
    assert_eq!(hex(&encode(&UsageRow { objects: 2, bytes: 300 })), "0102ac02");
    let extent = ExtentRow { extent: extent(2, 9, &[5]), generation: Generation(4) };
    assert_eq!(hex(&encode(&extent)), "0164020104028080040920000204");
    let interval = Interval { start: KeyPoint::new(BucketId(2), *b"k"), end: None };
    let descriptor =
        RangeDescriptor { id: RangeId(3), epoch: Epoch(4), interval, voters: vec![NodeId(5)] };
    assert_eq!(hex(&encode(&DescriptorRow(descriptor))), "01030402016b000105");
}

#[test]
fn the_split_row_of_format_1() {
    let split = SplitAt { child: RangeId(300), at: KeyPoint::new(BucketId(2), *b"k") };
    let side = |id, start: &[u8], end: Option<&[u8]>| RangeDescriptor {
        id: RangeId(id),
        epoch: Epoch(4),
        interval: Interval {
            start: KeyPoint::new(BucketId(2), start),
            end: end.map(|end| KeyPoint::new(BucketId(2), end)),
        },
        voters: vec![NodeId(5)],
    };
    let row = SplitRow {
        prepared: Some(Prepared { split, cursor: Some(b"c".to_vec()), hash: 9 }),
        untold: vec![SplitDone { left: side(3, b"a", Some(b"b")), right: side(4, b"b", None) }],
        trimmed: Some(b"n".to_vec()),
    };
    // the child, its first key, the cursor, the sum; both descriptors; how far others' rows are removed
    let bytes = "0101ac0202016b01016309010304020161010201620105040402016200010501016e";
    assert_eq!(hex(&encode(&row)), bytes);
    assert_eq!(decode::<SplitRow>(&unhex(bytes)), Ok(row));
}

#[test]
fn range_commands_of_splits_of_format_1() {
    let split = || SplitAt { child: RangeId(300), at: KeyPoint::new(BucketId(2), *b"k") };
    for (op, bytes) in [
        (RangeOp::PrepareSplit(split()), "010013ac0202016b"),
        (RangeOp::StepSplit, "010014"),
        (RangeOp::Split(split()), "010015ac0202016b"),
        (RangeOp::SplitTold { child: RangeId(300) }, "010016ac02"),
    ] {
        let command = Command { caller: None, op };
        assert_eq!(hex(&encode(&command)), bytes, "{command:?}");
        assert_eq!(decode(&encode(&command)), Ok(command));
    }
}

#[test]
fn root_commands_of_format_1() {
    let (disk, base) = (DiskId(5), Epoch(6));
    for (op, bytes) in [
        (RootOp::SetDiskState { disk, state: DiskState::Draining }, "0107040503"),
        (RootOp::LoseDisks { base, disks: vec![disk] }, "010710060105"),
        (
            RootOp::JudgeDisk { disk, from: DiskState::Healthy, to: DiskState::Suspect },
            "010711050001",
        ),
    ] {
        let command = RootCommand { nonce: 7, op };
        assert_eq!(hex(&encode(&command)), bytes, "{command:?}");
        assert_eq!(decode(&encode(&command)), Ok(command));
    }
}

#[test]
fn the_state_hash_of_format_1() {
    assert_eq!(
        format!("{:032x}", crate::txn::row_hash(b"key", b"value")),
        "e84582f5c8fe2c1351ad8f295ea71283"
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}
