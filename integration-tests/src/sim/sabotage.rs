//! Mistakes that the world makes on purpose, one at a time, where it performs what the machines decide:
//! each must be noticed by a checker, or the checkers are worth nothing.

/// Each is a rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sabotage {
    /// A leader says that an append is stored before its sync has run.
    AcknowledgeBeforeSync,
    /// A leader lets its log be read to its end, committed or not.
    ReadBeyondCommitted,
    /// A leader commits what was written for a checkpoint that is not complete.
    CommitUndecided,
    /// A leader decides a transaction by its checkpoint alone, whichever generation wrote it.
    CommitByCheckpointAlone,
    /// A worker takes every frame it gets as the next one.
    TakeRepeatedFrames,
    /// A barrier goes ahead of the rows before it.
    BarrierOvertakesRows,
    /// A worker acknowledges a checkpoint without having written what was sealed for it.
    AcknowledgeUnwritten,
    /// A worker writes for a checkpoint only what was sealed for that one, and forgets what was sealed
    /// for those before it that were given up.
    ForgetSealedBefore,
    /// A sink says that it is prepared while its appends are under way.
    PrepareUnstored,
    /// A source goes on one batch further than where the checkpoint left it.
    SkipAfterRestore,
    /// A checkpoint counts as complete without the acknowledgement of one task.
    CompleteWithoutOne,
    /// A coordinator answers a command before it is on the disk.
    DecideBeforeSync,
    /// A worker brings a checkpoint into its base state before it is complete.
    FoldUncompleted,
    /// A task is told that the store has more of its state than it has.
    EvictUnfolded,
    /// A follower says that it has what it has written and not synced.
    SayUnsynced,
    /// A leader counts what a follower has that is not what the leader has.
    CountDiverging,
    /// A leader commits by who is in sync, without those who may be by now.
    CommitByInSync,
    /// A leader takes a change of who is in sync for refused that was not answered.
    ForgetIsrWish,
    /// A leader lets itself be read before its followers have what its reign began with.
    ServeBeforeCaughtUp,
    /// A worker says that an offset is not there without asking whether it leads.
    SayWhatIsNotThere,
    /// A leader tells its followers that all it has is committed.
    TellUncommitted,
    /// A coordinator takes a worker that comes back for one that has everything it had acknowledged.
    TrustUncleanRestart,
    /// A standby says that it has what it has not written yet.
    HoldUnkept,
    /// A checkpoint names standbys that have not said that they have it.
    NameUnheard,
    /// A standby loses a chunk, and keeps what comes after it as if it followed.
    KeepAcrossGap,
    /// A task of the next division gets nothing of what was sealed since it was begun.
    PrepareWithoutChanges,
    /// A job is divided anew before all of it is where it goes on.
    CutOverUnheard,
    /// What is old goes by a clock that somebody has set wrong.
    RetainBySetClock,
}

impl Sabotage {
    pub const ALL: [Sabotage; 28] = [
        Sabotage::AcknowledgeBeforeSync,
        Sabotage::ReadBeyondCommitted,
        Sabotage::CommitUndecided,
        Sabotage::CommitByCheckpointAlone,
        Sabotage::TakeRepeatedFrames,
        Sabotage::BarrierOvertakesRows,
        Sabotage::AcknowledgeUnwritten,
        Sabotage::ForgetSealedBefore,
        Sabotage::PrepareUnstored,
        Sabotage::SkipAfterRestore,
        Sabotage::CompleteWithoutOne,
        Sabotage::DecideBeforeSync,
        Sabotage::FoldUncompleted,
        Sabotage::EvictUnfolded,
        Sabotage::SayUnsynced,
        Sabotage::CountDiverging,
        Sabotage::CommitByInSync,
        Sabotage::ForgetIsrWish,
        Sabotage::ServeBeforeCaughtUp,
        Sabotage::SayWhatIsNotThere,
        Sabotage::TellUncommitted,
        Sabotage::TrustUncleanRestart,
        Sabotage::HoldUnkept,
        Sabotage::NameUnheard,
        Sabotage::KeepAcrossGap,
        Sabotage::PrepareWithoutChanges,
        Sabotage::CutOverUnheard,
        Sabotage::RetainBySetClock,
    ];
}
