//! The bytes of a delta log, pinned: who changes them decides to leave the state of every job behind.

use std::sync::Arc;

use common::ids::{CheckpointId, Generation, StageId, TaskId};
use common::seglog::memory::MemoryStorage;
use common::time::ManualClock;

use super::chunk::TaskChunk;
use super::delta_log::DeltaLog;
use crate::keyed_state::overlay::Overlay;
use crate::keyed_state::section::TableId;

#[test]
fn a_chunk_has_these_bytes() {
    let disk = MemoryStorage::new(Arc::new(ManualClock::default()));
    let log = DeltaLog::open(disk.shared(), 1, 1 << 20).unwrap();
    let task = TaskId {
        stage: StageId(2),
        index: 1,
    };
    let mut overlay = Overlay::default();
    overlay.clear_namespace(-5);
    overlay.clear_namespace(9);
    overlay.delete(7, b"bc");
    overlay.put(-1, b"a", b"one");
    let table = TableId {
        operator: "count".to_owned(),
        table: "groups".to_owned(),
    };
    let chunk = TaskChunk {
        task,
        checkpoint: CheckpointId(300),
        tables: vec![(table, Arc::new(overlay))],
    };
    log.restart(task, Generation(3), Some(CheckpointId(299)))
        .unwrap();
    log.append(Generation(3), &[chunk]).unwrap();
    let bytes = disk.contents("00000000000000000000.log");
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        concat!(
            "d3000000424894a7a900000088a776657273696f6e01aa67656e65726174696f",
            "6e03aa636865636b706f696e74cd012ca47461736b82a5737461676502a5696e",
            "64657801a870726576696f7573cd012ba47061727400a46c617374c3a6746162",
            "6c65739183a57461626c6582a86f70657261746f72a5636f756e74a57461626c",
            "65a667726f757073a7636c656172656492fb09a873656374696f6e739183a567",
            "726f757000a5627974657326a3637263ce85c0a753ffffffffffffffff010000",
            "0003000000616f6e65070000000000000002000000ffffffff6263",
        )
    );
}
