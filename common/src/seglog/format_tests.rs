//! The bytes of a log on disk, pinned: who changes them decides to leave every log that there is behind.

use std::sync::Arc;

use super::memory::MemoryStorage;
use super::{Options, Position, SegLog};
use crate::time::ManualClock;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn records_and_the_recovery_point_have_these_bytes() {
    let disk = MemoryStorage::new(Arc::new(ManualClock::default()));
    let (mut log, _) = SegLog::open(disk.shared(), Options::standard()).unwrap();
    log.append_framed(&[b"he", b"llo"]).unwrap();
    assert_eq!(log.sync().unwrap(), Position(13));
    let record = "05000000a1b1174e68656c6c6f";
    assert_eq!(hex(&disk.contents("00000000000000000000.log")), record);
    let note = "0d000000000000001a4932a6";
    assert_eq!(hex(&disk.contents("recovery-point")), note);

    log.roll().unwrap();
    log.append_framed(&[b""]).unwrap();
    assert_eq!(
        hex(&disk.contents("00000000000000000013.log")),
        "00000000c74b6748"
    );
}
