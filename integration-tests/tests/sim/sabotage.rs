//! Each mistake made on purpose is found within a few seeds, and without it the same seeds keep every
//! promise: so what is found is the mistake.

use integration_tests::sim::plan::Plan;
use integration_tests::sim::run_plan;
use integration_tests::sim::sabotage::Sabotage;

/// Seeds that each mistake may stay unnoticed for.
const SEEDS: u64 = 400;

/// `first`: where to begin, for the mistakes that few worlds give an occasion to.
fn is_found(sabotage: Sabotage, first: u64) {
    is_found_in(sabotage, first, Plan::single);
}

fn is_found_in(sabotage: Sabotage, first: u64, plan: fn(u64) -> Plan) {
    let mut seeds = first..first + SEEDS;
    let found = seeds.find_map(|seed| run_plan(&plan(seed), Some(sabotage)).err());
    let failure = found.unwrap_or_else(|| panic!("{sabotage:?} stays unnoticed"));
    println!(
        "seed {} with {sabotage:?}: {}",
        failure.seed, failure.broken
    );
    if let Err(failure) = run_plan(&plan(failure.seed), None) {
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

#[test]
fn say_unsynced_is_found() {
    is_found_in(Sabotage::SayUnsynced, 1, Plan::alone);
}

#[test]
fn count_diverging_is_found() {
    is_found_in(Sabotage::CountDiverging, 1, Plan::alone);
}

#[test]
fn commit_by_in_sync_is_found() {
    is_found_in(Sabotage::CommitByInSync, 1, Plan::alone);
}

#[test]
fn forget_isr_wish_is_found() {
    is_found_in(Sabotage::ForgetIsrWish, 1, Plan::alone);
}

#[test]
fn serve_before_caught_up_is_found() {
    is_found_in(Sabotage::ServeBeforeCaughtUp, 1, Plan::alone);
}

#[test]
fn say_what_is_not_there_is_found() {
    is_found_in(Sabotage::SayWhatIsNotThere, 1, Plan::alone);
}

#[test]
fn tell_uncommitted_is_found() {
    is_found_in(Sabotage::TellUncommitted, 1, Plan::alone);
}

#[test]
fn trust_unclean_restart_is_found() {
    is_found_in(Sabotage::TrustUncleanRestart, 1, Plan::in_memory);
}

#[test]
fn hold_unkept_is_found() {
    is_found_in(Sabotage::HoldUnkept, 1, Plan::stood_by);
}

#[test]
fn name_unheard_is_found() {
    is_found_in(Sabotage::NameUnheard, 1, Plan::stood_by);
}

#[test]
fn keep_across_gap_is_found() {
    is_found_in(Sabotage::KeepAcrossGap, 1, Plan::stood_by);
}

#[test]
fn prepare_without_changes_is_found() {
    is_found_in(Sabotage::PrepareWithoutChanges, 1, Plan::rescaled);
}

#[test]
fn cut_over_unheard_is_found() {
    is_found_in(Sabotage::CutOverUnheard, 1, Plan::rescaled);
}

#[test]
fn retain_by_set_clock_is_found() {
    is_found_in(Sabotage::RetainBySetClock, 1, Plan::mistimed);
}
