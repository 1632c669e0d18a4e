//! Bytes other implementations wrote, round trips, and bytes nobody should have written.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::ids::{ProducerEpoch, ProducerId};
use crate::record::{Header, Record};
use crate::time::Timestamp;

/// One record as Kafka clients' own tests have it: key 1 2 3 4, value 5 6 7, one header, 5 ms after the
/// batch's first timestamp. `codec` and `crc` are the attributes and the checksum.
fn known_batch(codec: u8, crc: [u8; 4], records: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    bytes.extend_from_slice(&u32::try_from(49 + records.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0, 0, 2]);
    bytes.extend_from_slice(&crc);
    bytes.extend_from_slice(&[0, codec, 0, 0, 0, 0]);
    bytes.extend_from_slice(&[0, 0, 1, 88, 141, 205, 89, 56]);
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[0; 14]);
    bytes.extend_from_slice(&[0, 0, 0, 1]);
    bytes.extend_from_slice(records);
    bytes
}

const KNOWN_RECORD: [u8; 21] = [
    40, 0, 10, 0, 8, 1, 2, 3, 4, 6, 5, 6, 7, 2, 6, 8, 9, 10, 4, 11, 12,
];

#[test]
fn a_batch_written_by_a_kafka_client_is_read() {
    let bytes = known_batch(0, [84, 121, 97, 253], &KNOWN_RECORD);
    let batch = LogBatch::parse(Bytes::from(bytes)).unwrap();
    assert_eq!(batch.header().producer.unwrap().id, ProducerId(0));
    let records = batch.records().unwrap();
    let read: Vec<Record> = records
        .iter()
        .map(|record| records.to_record(&record.unwrap()))
        .collect();
    assert_eq!(
        read,
        [Record {
            key: Some(Bytes::from_static(&[1, 2, 3, 4])),
            value: Some(Bytes::from_static(&[5, 6, 7])),
            headers: vec![Header {
                key: "\u{8}\t\n".to_owned(),
                value: Some(Bytes::from_static(&[11, 12])),
            }],
            timestamp: Timestamp(1_479_847_795_000 + 5),
        }]
    );
}

#[test]
fn a_stamped_batch_of_a_transaction_has_these_bytes() {
    let mut builder = LogBatchBuilder::new().transactional(ProducerStamp {
        id: ProducerId(4660),
        epoch: ProducerEpoch(5),
        base_sequence: 9,
    });
    let first = Timestamp(1_700_000_000_000);
    let headers = [
        Header {
            key: "h".to_owned(),
            value: Some(Bytes::from_static(&[0xff])),
        },
        Header {
            key: "none".to_owned(),
            value: None,
        },
    ];
    builder.push(first, Some(b"key"), Some(br#"{"n":1}"#), &headers);
    builder.push(Timestamp(first.0 - 500), None, Some(b"second"), &[]);
    builder.push(Timestamp(first.0 + 70_000), Some(b"gone"), None, &[]);
    let mut batch = builder.build();
    batch.stamp(Offset(258), LeaderEpoch(7));
    let hex: String = batch
        .bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(
        hex,
        concat!(
            "0000000000000102000000670000000702bf5e392b0010000000020000018bcf",
            "e568000000018bcfe67970000000000000123400050000000900000003340000",
            "00066b65790e7b226e223a317d04026802ff086e6f6e65011a00e70702010c73",
            "65636f6e64001800e0c5080408676f6e650100",
        )
    );
}

#[test]
fn records_are_encoded_byte_for_byte_as_kafka_clients_do() {
    let mut builder = LogBatchBuilder::new();
    let header = Header {
        key: "\u{8}\t\n".to_owned(),
        value: Some(Bytes::from_static(&[11, 12])),
    };
    let first = Timestamp(1_479_847_795_000);
    builder.push(first, None, None, &[]);
    builder.push(
        Timestamp(first.0 + 5),
        Some(&[1, 2, 3, 4]),
        Some(&[5, 6, 7]),
        &[header],
    );
    let batch = builder.build();
    let mut second = KNOWN_RECORD;
    second[3] = 2; // the offset's distance from the first record's
    let empty = [12, 0, 0, 0, 1, 1, 0];
    assert_eq!(
        batch.bytes()[HEADER_BYTES..],
        [&empty[..], &second].concat()
    );
}

/// CRC32C bit by bit, from its definition.
fn slow_crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 * (crc & 1))
        })
    })
}

#[test]
fn the_checksum_covers_everything_from_the_attributes_on() {
    let mut builder = LogBatchBuilder::new();
    builder.push(Timestamp(1), None, Some(b"value"), &[]);
    let batch = builder.build();
    assert_eq!(batch.header().crc, slow_crc32c(&batch.bytes()[21..]));
    for at in 0..batch.bytes().len() {
        let mut bytes = batch.bytes().to_vec();
        bytes[at] ^= 0x10;
        let outside = at < 8 || (12..16).contains(&at);
        let parsed = LogBatch::parse(Bytes::from(bytes));
        assert_eq!(parsed.is_ok(), outside, "byte {at}");
    }
}

#[test]
fn stamping_changes_offset_and_epoch_and_nothing_else() {
    let mut builder = LogBatchBuilder::new();
    for number in 0..10 {
        builder.push(Timestamp(number), None, Some(b"value"), &[]);
    }
    let original = builder.build();
    let mut stamped = original.clone();
    stamped.stamp(Offset(7_000_000_000), LeaderEpoch(42));
    assert_eq!(
        original.header().base_offset,
        Offset(0),
        "the other holder's bytes stay"
    );
    let reread = LogBatch::parse(stamped.bytes().clone()).unwrap();
    assert_eq!(reread, stamped);
    assert_eq!(reread.header().base_offset, Offset(7_000_000_000));
    assert_eq!(reread.header().end_offset(), Offset(7_000_000_010));
    assert_eq!(reread.header().leader_epoch, LeaderEpoch(42));
    assert_eq!(reread.bytes()[16..], original.bytes()[16..]);
    let start = original.stamped_start(Offset(7_000_000_000), LeaderEpoch(42));
    assert_eq!(reread.bytes()[..16], start);

    let mut alone = original.clone();
    drop(original);
    let address = alone.bytes().as_ptr();
    alone.stamp(Offset(1), LeaderEpoch(1));
    assert_eq!(
        alone.bytes().as_ptr(),
        address,
        "nothing is copied without need"
    );
}

#[test]
fn markers_are_the_bytes_kafka_writes() {
    for (outcome, kind) in [
        (TransactionOutcome::Abort, 0),
        (TransactionOutcome::Commit, 1),
    ] {
        let marker = end_transaction(ProducerId(9), ProducerEpoch(3), outcome, Timestamp(5));
        let batch = LogBatch::parse(marker.into_bytes()).unwrap();
        assert!(batch.header().control && batch.header().transactional);
        assert_eq!(batch.header().producer.unwrap().base_sequence, -1);
        assert_eq!(batch.outcome().unwrap(), Some(outcome));
        let records = batch.records().unwrap();
        let record = records.iter().next().unwrap().unwrap();
        assert_eq!(record.key, Some(&[0, 0, 0, kind][..]));
        assert_eq!(record.value, Some(&[0; 6][..]));
    }
}

#[test]
fn sequences_wrap_to_zero() {
    let stamp = |base_sequence| ProducerStamp {
        id: ProducerId(1),
        epoch: ProducerEpoch(0),
        base_sequence,
    };
    assert_eq!(stamp(0).last_sequence(1), 0);
    assert_eq!(stamp(i32::MAX).last_sequence(1), i32::MAX);
    assert_eq!(stamp(i32::MAX).last_sequence(2), 0);
    assert_eq!(stamp(i32::MAX - 2).last_sequence(10), 6);
}

/// Changes a sound batch, repairs its checksum, and parses it: the lie itself must be found.
fn parse_changed(change: impl FnOnce(&mut Vec<u8>)) -> Result<LogBatch, BatchError> {
    let mut builder = LogBatchBuilder::new();
    builder.push(Timestamp(1), Some(b"key"), Some(b"value"), &[]);
    let mut bytes = builder.build().into_bytes().to_vec();
    change(&mut bytes);
    let crc = crc32c::crc32c(&bytes[21..]).to_be_bytes();
    bytes[17..21].copy_from_slice(&crc);
    LogBatch::parse(Bytes::from(bytes))
}

#[test]
fn headers_that_lie_are_refused() {
    type Change = fn(&mut Vec<u8>);
    let lies: [(&str, Change); 16] = [
        ("magic 1", |b| b[16] = 1),
        ("negative offset", |b| b[0] = 0x80),
        ("offset overflow", |b| {
            b[0..8].copy_from_slice(&i64::MAX.to_be_bytes())
        }),
        ("negative length", |b| b[8] = 0x80),
        ("length within the header", |b| {
            b[8..12].copy_from_slice(&[0, 0, 0, 48])
        }),
        ("huge length", |b| b[8] = 0x7f),
        ("longer than there is", |b| b[11] += 1),
        ("shorter than there is", |b| b[11] -= 1),
        ("codec 7", |b| b[22] = 7),
        ("time of append", |b| b[22] = 8),
        ("unknown attribute", |b| b[22] = 0x40),
        ("count without offsets", |b| b[60] = 2),
        ("offsets without count", |b| b[26] = 1),
        ("no records", |b| b[57..61].copy_from_slice(&[0; 4])),
        ("producer id below -1", |b| b[50] = 0xfe),
        ("transactional without producer", |b| b[22] = 0x10),
    ];
    for (name, lie) in lies {
        assert!(parse_changed(lie).is_err(), "{name} was accepted");
    }
    assert!(parse_changed(|_| ()).is_ok());
}

#[test]
fn a_batch_that_claims_more_records_than_its_bytes_hold_is_refused_before_they_are_counted() {
    let batch = parse_changed(|bytes| {
        bytes[23..27].copy_from_slice(&(i32::MAX - 1).to_be_bytes());
        bytes[57..61].copy_from_slice(&i32::MAX.to_be_bytes());
    })
    .unwrap();
    assert!(batch.records().is_err());
}

#[test]
fn batches_are_split_and_a_torn_one_ends_them() {
    let batch = |value: &'static [u8]| {
        let mut builder = LogBatchBuilder::new();
        builder.push(Timestamp(1), None, Some(value), &[]);
        builder.build().into_bytes()
    };
    let all = [batch(b"first"), batch(b"second")].concat();
    let read = |bytes: &[u8]| -> Vec<bool> {
        LogBatches::new(Bytes::copy_from_slice(bytes))
            .map(|batch| batch.is_ok())
            .collect()
    };
    assert_eq!(read(&all), [true, true]);
    assert_eq!(read(&all[..all.len() - 1]), [true, false]);
    assert_eq!(read(&[]), [true; 0]);
}

fn any_record() -> impl Strategy<Value = Record> {
    let bytes = |max| proptest::option::of(proptest::collection::vec(any::<u8>(), 0..max));
    let header = ("[a-zé]{0,8}", bytes(10)).prop_map(|(key, value)| Header {
        key,
        value: value.map(Bytes::from),
    });
    (
        bytes(20),
        bytes(200),
        proptest::collection::vec(header, 0..4),
        prop_oneof![any::<i64>(), 1_700_000_000_000..1_700_000_100_000_i64],
    )
        .prop_map(|(key, value, headers, timestamp)| Record {
            key: key.map(Bytes::from),
            value: value.map(Bytes::from),
            headers,
            timestamp: Timestamp(timestamp),
        })
}

fn any_codec() -> impl Strategy<Value = Compression> {
    (0_u8..5).prop_map(|code| Compression::from_code(code).unwrap())
}

fn build(records: &[Record], codec: Compression) -> LogBatch {
    let mut builder = LogBatchBuilder::new().compression(codec);
    let mut bound = builder.encoded_bytes();
    for record in records {
        bound += LogBatchBuilder::bytes_of_record(record.payload_bytes(), record.headers.len());
        builder.push_record(record);
        assert!(builder.encoded_bytes() <= bound);
    }
    builder.build()
}

/// With the checksum that the first batch's bytes have now, so that changed bytes reach the decoder.
fn sealed_anew(mut bytes: Vec<u8>) -> Bytes {
    if let Ok(header) = BatchHeader::parse(&bytes)
        && let Some(checked) = bytes.get(21..header.total_bytes())
    {
        let crc = crc32c::crc32c(checked);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    }
    Bytes::from(bytes)
}

proptest! {
    #[test]
    fn records_read_back_as_they_were_written(
        records in proptest::collection::vec(any_record(), 1..40),
        codec in any_codec(),
        base in 0_i64..1 << 60,
    ) {
        let mut batch = build(&records, codec);
        batch.stamp(Offset(base), LeaderEpoch(1));
        let batch = LogBatch::parse(batch.into_bytes()).unwrap();
        prop_assert_eq!(
            batch.header().max_timestamp,
            records.iter().map(|record| record.timestamp).max().unwrap()
        );
        let decoded = batch.records().unwrap();
        let mut read = Vec::new();
        for (index, record) in (0..).zip(&decoded) {
            let record = record.unwrap();
            prop_assert_eq!(record.offset, Offset(base).plus(index));
            read.push(decoded.to_record(&record));
        }
        prop_assert_eq!(read, records);
        prop_assert_eq!(batch.validate_records(1 << 20), Ok(()));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = bytes;
        if bytes.len() > 16 { bytes[16] = 2; }
        for batch in LogBatches::new(sealed_anew(bytes)).flatten() {
            if let Ok(records) = batch.records() {
                for record in records.iter().flatten() {
                    prop_assert_eq!(record.headers.iter().count(), record.headers.len());
                }
            }
        }
    }

    #[test]
    fn mutated_batches_never_panic_and_never_give_more_than_they_hold(
        records in proptest::collection::vec(any_record(), 1..10),
        codec in any_codec(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = build(&records, codec).into_bytes().to_vec();
        for (at, byte) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        for batch in LogBatches::new(sealed_anew(bytes)).flatten() {
            if let Ok(records) = batch.records() {
                let held = records.plain().len();
                let given: usize = records
                    .iter()
                    .flatten()
                    .map(|record| record.payload_bytes())
                    .sum();
                prop_assert!(given <= held);
            }
        }
    }
}
