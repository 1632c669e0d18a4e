//! Each mistake made on purpose is found within a few seeds, and without it the same seeds keep every
//! promise: so what is found is the mistake.

use integration_tests::sim::run;
use integration_tests::sim::sabotage::Sabotage;

/// Seeds that each mistake may stay unnoticed for.
const SEEDS: u64 = 400;

/// `first`: where to begin, for the mistakes that few worlds give an occasion to.
fn is_found(sabotage: Sabotage, first: u64) {
    let mut seeds = first..first + SEEDS;
    let found = seeds.find_map(|seed| run(seed, Some(sabotage)).err());
    let failure = found.unwrap_or_else(|| panic!("{sabotage:?} stays unnoticed"));
    println!(
        "seed {} with {sabotage:?}: {}",
        failure.seed, failure.broken
    );
    if let Err(failure) = run(failure.seed, None) {
        panic!("{failure}");
    }
}

#[test]
fn acknowledge_before_sync_is_found() {
    is_found(Sabotage::AcknowledgeBeforeSync, 1);
}

#[test]
fn read_beyond_committed_is_found() {
    is_found(Sabotage::ReadBeyondCommitted, 1);
}

#[test]
fn commit_undecided_is_found() {
    is_found(Sabotage::CommitUndecided, 1);
}

#[test]
fn commit_by_checkpoint_alone_is_found() {
    is_found(Sabotage::CommitByCheckpointAlone, 138);
}

#[test]
fn take_repeated_frames_is_found() {
    is_found(Sabotage::TakeRepeatedFrames, 1);
}

#[test]
fn barrier_overtakes_rows_is_found() {
    is_found(Sabotage::BarrierOvertakesRows, 50);
}

#[test]
fn acknowledge_unwritten_is_found() {
    is_found(Sabotage::AcknowledgeUnwritten, 1);
}

#[test]
fn forget_sealed_before_is_found() {
    is_found(Sabotage::ForgetSealedBefore, 130);
}

#[test]
fn prepare_unstored_is_found() {
    is_found(Sabotage::PrepareUnstored, 1);
}

#[test]
fn skip_after_restore_is_found() {
    is_found(Sabotage::SkipAfterRestore, 1);
}

#[test]
fn complete_without_one_is_found() {
    is_found(Sabotage::CompleteWithoutOne, 1);
}

#[test]
fn decide_before_sync_is_found() {
    is_found(Sabotage::DecideBeforeSync, 50);
}

#[test]
fn fold_uncompleted_is_found() {
    is_found(Sabotage::FoldUncompleted, 1);
}

#[test]
fn evict_unfolded_is_found() {
    is_found(Sabotage::EvictUnfolded, 1);
}
