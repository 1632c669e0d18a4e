//! What a delta log forgets, and what not.

use std::sync::Arc;

use common::ids::{CheckpointId, Generation, StageId, TaskId};
use common::seglog::memory::MemoryStorage;
use common::time::ManualClock;

use super::chunk::TaskChunk;
use super::delta_log::{ChunkRef, DeltaLog};

const TASK: TaskId = TaskId {
    stage: StageId(2),
    index: 1,
};
const GENERATION: Generation = Generation(1);

/// The chunks of checkpoints 4 to 7, of which the first follows 3.
fn log() -> DeltaLog {
    let disk = MemoryStorage::new(Arc::new(ManualClock::default()));
    let log = DeltaLog::open(disk.shared(), 1, 1 << 20).unwrap();
    log.restart(TASK, GENERATION, Some(CheckpointId(3)))
        .unwrap();
    for checkpoint in 4..=7 {
        let chunk = TaskChunk {
            task: TASK,
            checkpoint: CheckpointId(checkpoint),
            tables: Vec::new(),
        };
        log.append(GENERATION, &[chunk]).unwrap();
    }
    log
}

/// What is left if those up to 6 count, and somebody wants what comes after a checkpoint.
fn left(log: &DeltaLog, base_at: Option<u64>, wanted_after: u64) -> Vec<u64> {
    let counts = |_, checkpoint| checkpoint <= CheckpointId(6);
    let base_at = || base_at.map(CheckpointId);
    let wanted = |chunk: &ChunkRef| chunk.checkpoint > CheckpointId(wanted_after);
    log.forget_severed(TASK, &counts, &base_at, &wanted);
    let left = log.counted(TASK, &|_, _| true);
    left.iter().map(|chunk| chunk.checkpoint.0).collect()
}

/// A base file may have come, and somebody been told what is here with it, after a fold had found that it was lacking.
#[test]
fn what_leads_on_from_the_base_file_there_is_by_now_is_not_forgotten() {
    assert_eq!(left(&log(), Some(3), 9), [4, 5, 6, 7]);
    assert_eq!(left(&log(), Some(5), 9), [4, 5, 6, 7]);
}

#[test]
fn what_leads_nowhere_is_forgotten_but_for_what_is_wanted_and_for_what_may_come_to_count() {
    assert_eq!(left(&log(), None, 9), [7]);
    assert_eq!(left(&log(), Some(2), 9), [7]);
    assert_eq!(left(&log(), None, 5), [6, 7]);
}
