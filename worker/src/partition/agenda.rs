//! What is done next with a partition's log: work, a sync, or nothing.
//!
//! The log is with its actor, or away on a thread that may block. While it is away appends queue up, and all
//! of them go with the next work. Syncs run beside the work, one at a time, each for everything that was
//! written before it began; a sync begins only while the log is here. The replica's role changes only while
//! the log is not away: what is done to it depends on the role, and where it ends is what a new leader has.

use common::error::Problem;
use common::offset::Offset;
use common::plan::connector::Isolation;
use common::protocol::topic::Durability;
use common::time::Tick;

use super::lazy_sync::LazySync;
use super::waiting::Readable;

/// Bytes that may queue up for one partition while its disk is busy.
pub const MAX_QUEUED_BYTES: usize = 64 << 20;
/// Appends and fetches that may wait at one partition.
pub const MAX_WAITING: usize = 16 << 10;

/// The turns of one partition's log. `A` is an append that waits for its turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agenda<A> {
    log: Log,
    queue: Vec<A>,
    queued_bytes: usize,
    /// The offset a sync under way will make the log durable up to.
    syncing: Option<Offset>,
    unsynced: LazySync,
    reconcile: bool,
    follow: bool,
    retain: bool,
    closing: bool,
    /// The role is to change.
    assign: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Log {
    /// On its way here for the first time.
    Opening,
    Here,
    Away,
    /// What comes before the damage can be read, and nothing is written.
    Damaged(Problem),
    /// It cannot be used, and why.
    Failed(Problem),
}

/// Why an append is not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Busy {
    Closing,
    TooManyBytes,
    TooManyAppends,
}

/// What is said to one who wants to read from an offset on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// What there is.
    Now,
    /// What it wants is not there yet, and may come.
    Later,
    Refused(Problem),
}

/// The log goes away to have this done to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[must_use = "the log is waited for from now on"]
pub struct Turn<A> {
    pub appends: Vec<A>,
    /// Look for what is too old.
    pub retain: bool,
    /// The last turn there is.
    pub close: bool,
}

impl<A> Default for Agenda<A> {
    fn default() -> Agenda<A> {
        Agenda {
            log: Log::Opening,
            queue: Vec::new(),
            queued_bytes: 0,
            syncing: None,
            unsynced: LazySync::default(),
            reconcile: false,
            follow: false,
            retain: false,
            closing: false,
            assign: false,
        }
    }
}

impl<A> Agenda<A> {
    /// The log is here for the first time. What was left undecided in it may have been decided meanwhile.
    pub fn opened(&mut self) {
        self.log = Log::Here;
        self.reconcile = true;
    }

    /// The log is damaged: nothing is written. Returns the appends to refuse.
    pub fn damaged(&mut self, problem: Problem) -> Vec<A> {
        self.log = Log::Damaged(problem);
        self.empty_queue()
    }

    /// The log cannot be used any more. Returns the appends to refuse.
    pub fn failed(&mut self, problem: Problem) -> Vec<A> {
        self.log = Log::Failed(problem);
        self.empty_queue()
    }

    pub fn is_opening(&self) -> bool {
        self.log == Log::Opening
    }

    /// Why nothing can be written, now and from now on.
    pub fn unwritable(&self) -> Option<&Problem> {
        match &self.log {
            Log::Damaged(problem) | Log::Failed(problem) => Some(problem),
            Log::Opening | Log::Here | Log::Away => None,
        }
    }

    /// Why nothing of it can be read.
    pub fn failure(&self) -> Option<&Problem> {
        match &self.log {
            Log::Failed(problem) => Some(problem),
            Log::Opening | Log::Here | Log::Away | Log::Damaged(_) => None,
        }
    }

    /// What is said to one who wants to read from here, or wants to know what may be read (`None`).
    pub fn reading(
        &self,
        from: Option<(Offset, Isolation)>,
        readable: Readable,
        log_end: Offset,
    ) -> Reading {
        match (&self.log, from) {
            (Log::Failed(problem), _) | (Log::Damaged(problem), None) => {
                Reading::Refused(problem.clone())
            }
            // Where the log really ends is not known: whoever took the damage for the end would miss the rest.
            (Log::Damaged(problem), Some((offset, isolation))) => {
                match offset < readable.end_for(isolation) {
                    true => Reading::Now,
                    false => Reading::Refused(problem.clone()),
                }
            }
            (Log::Opening | Log::Here | Log::Away, Some((offset, isolation)))
                if readable.is_yet_to_come(offset, isolation, log_end) =>
            {
                Reading::Later
            }
            (Log::Opening | Log::Here | Log::Away, _) => Reading::Now,
        }
    }

    /// Whether an append of so many bytes may be queued, while so many others wait for theirs to be
    /// committed. One may always: a large one must not wait for ever.
    pub fn admit(&self, bytes: usize, waiting: usize) -> Result<(), Busy> {
        if self.closing {
            Err(Busy::Closing)
        } else if self.queued_bytes + bytes > MAX_QUEUED_BYTES && !self.queue.is_empty() {
            Err(Busy::TooManyBytes)
        } else if self.queue.len() + waiting >= MAX_WAITING {
            Err(Busy::TooManyAppends)
        } else {
            Ok(())
        }
    }

    /// Queues an append that was admitted.
    pub fn queue(&mut self, append: A, bytes: usize) {
        self.queued_bytes += bytes;
        self.queue.push(append);
    }

    /// The cluster's facts may decide an open transaction.
    pub fn reconcile(&mut self) {
        self.reconcile = true;
    }

    /// The metadata says something new of the role.
    pub fn assign(&mut self) {
        self.assign = true;
    }

    /// Whether the role changes now, as it was to. Nobody need ask again before the log is back.
    pub fn takes_role(&mut self) -> bool {
        self.log != Log::Away && std::mem::take(&mut self.assign)
    }

    /// Whether the role is what the metadata says, as far as it is known, of a log that is.
    pub fn has_role(&self) -> bool {
        self.log != Log::Opening && !self.assign
    }

    /// There is news from the leader.
    pub fn follow(&mut self) {
        self.follow = true;
    }

    /// It is time to look for what is too old.
    pub fn retain(&mut self) {
        self.retain = true;
    }

    /// The next turn without a sync under way is the last.
    pub fn close(&mut self) {
        self.closing = true;
    }

    /// What is to be done now, if there is anything and the log is here. It is away until it comes back.
    pub fn next_turn(&mut self) -> Option<Turn<A>> {
        let close = self.closing && self.syncing.is_none();
        let wanted =
            close || !self.queue.is_empty() || self.reconcile || self.follow || self.retain;
        let held = self.syncing.is_some() && self.unsynced.is_too_much();
        if !wanted || held || self.log != Log::Here {
            return None;
        }
        self.log = Log::Away;
        self.reconcile = false;
        self.follow = false;
        Some(Turn {
            appends: self.empty_queue(),
            retain: std::mem::take(&mut self.retain),
            close,
        })
    }

    /// The log is back. A full disk is a reason to look for old segments at once, though not over and over:
    /// not if that was `retained` a moment ago. An error if it failed while it was away: it stays so.
    pub fn came_back(&mut self, disk_full: bool, retained: bool) -> Result<(), Problem> {
        if let Log::Failed(problem) = &self.log {
            return Err(problem.clone());
        }
        assert!(self.log == Log::Away, "a log comes back that was away");
        self.log = Log::Here;
        self.retain |= disk_full && !retained;
        Ok(())
    }

    /// So much of the log is not on the disk now.
    pub fn unsynced(&mut self, now: Tick, bytes: u64) {
        self.unsynced.unsynced(now, bytes);
    }

    /// Whether a sync may begin, should there be something to sync.
    pub fn may_sync(&self) -> bool {
        self.log == Log::Here && self.syncing.is_none()
    }

    /// Whether one begins that may, where records count as stored like this.
    pub fn begins_sync(&self, now: Tick, durability: Durability) -> bool {
        self.may_sync() && self.unsynced.is_due(now, durability)
    }

    /// When a sync that may begin and does not is due.
    pub fn sync_due_at(&self) -> Option<Tick> {
        self.unsynced.due_at().filter(|_| self.may_sync())
    }

    /// A sync has begun for everything before this offset.
    pub fn sync_began(&mut self, end: Offset) {
        assert!(self.may_sync(), "one sync runs at a time");
        self.syncing = Some(end);
        self.unsynced.began();
    }

    /// The log was cut off: a sync under way does not vouch for what comes there again.
    pub fn cut_off(&mut self) {
        if let Some(end) = &mut self.syncing {
            *end = Offset::ZERO;
        }
    }

    /// Whether nothing is done to the log now.
    pub fn is_here(&self) -> bool {
        self.log == Log::Here
    }

    /// The sync has run; returns up to where the log is durable by it.
    pub fn sync_ran(&mut self) -> Option<Offset> {
        self.syncing.take()
    }

    fn empty_queue(&mut self) -> Vec<A> {
        self.queued_bytes = 0;
        std::mem::take(&mut self.queue)
    }
}

#[cfg(test)]
mod tests {
    use common::error::ErrorCode;
    use proptest::prelude::*;

    use super::super::lazy_sync::MOST_UNSYNCED_BYTES;
    use super::*;

    fn open() -> Agenda<u32> {
        let mut agenda = Agenda::default();
        agenda.opened();
        let first = agenda.next_turn().unwrap();
        assert!(first.appends.is_empty() && !first.retain && !first.close);
        agenda.came_back(false, false).unwrap();
        agenda
    }

    #[test]
    fn what_comes_before_the_log_is_open_goes_with_its_first_turn() {
        let mut agenda = Agenda::default();
        agenda.queue(1, 10);
        agenda.retain();
        assert_eq!(agenda.next_turn(), None);
        assert!(!agenda.may_sync());
        agenda.opened();
        let turn = agenda.next_turn().unwrap();
        assert_eq!(
            (turn.appends, turn.retain, turn.close),
            (vec![1], true, false)
        );
    }

    #[test]
    fn an_idle_log_stays_here() {
        assert_eq!(open().next_turn(), None);
    }

    #[test]
    fn a_log_is_closed_when_its_sync_has_run_and_takes_what_is_queued_along() {
        let mut agenda = open();
        agenda.sync_began(Offset(7));
        agenda.queue(1, 10);
        agenda.close();
        assert_eq!(agenda.admit(1, 0), Err(Busy::Closing));
        let turn = agenda.next_turn().unwrap();
        assert_eq!((turn.appends, turn.close), (vec![1], false));
        agenda.came_back(false, false).unwrap();
        assert_eq!(agenda.next_turn(), None);
        assert_eq!(agenda.sync_ran(), Some(Offset(7)));
        assert!(agenda.next_turn().unwrap().close);
    }

    #[test]
    fn nothing_is_written_while_a_disk_has_too_much_to_sync() {
        let mut agenda = open();
        agenda.unsynced(Tick(0), MOST_UNSYNCED_BYTES);
        agenda.queue(1, 10);
        assert!(agenda.begins_sync(Tick(0), Durability::Replicated));
        agenda.sync_began(Offset(7));
        assert_eq!(agenda.next_turn(), None);
        assert_eq!(agenda.sync_ran(), Some(Offset(7)));
        assert_eq!(agenda.next_turn().unwrap().appends, [1]);
    }

    #[test]
    fn a_full_disk_is_looked_through_once_for_old_segments() {
        let mut agenda = open();
        agenda.queue(1, 10);
        assert!(!agenda.next_turn().unwrap().retain);
        agenda.came_back(true, false).unwrap();
        assert!(agenda.next_turn().unwrap().retain);
        agenda.came_back(true, true).unwrap();
        assert_eq!(agenda.next_turn(), None);
    }

    #[test]
    fn appends_are_bounded_by_their_bytes_and_by_their_number_but_one_is_always_taken() {
        let mut agenda = open();
        assert_eq!(agenda.admit(MAX_QUEUED_BYTES + 1, 0), Ok(()));
        agenda.queue(1, MAX_QUEUED_BYTES - 5);
        assert_eq!(agenda.admit(5, 0), Ok(()));
        assert_eq!(agenda.admit(6, 0), Err(Busy::TooManyBytes));
        assert_eq!(agenda.admit(5, MAX_WAITING - 2), Ok(()));
        assert_eq!(agenda.admit(5, MAX_WAITING - 1), Err(Busy::TooManyAppends));
        assert!(agenda.next_turn().is_some());
        assert_eq!(agenda.admit(MAX_QUEUED_BYTES + 1, 0), Ok(()));
    }

    #[test]
    fn a_log_that_is_damaged_or_failed_gives_its_queue_back_and_takes_no_turn() {
        let problem = Problem::new(ErrorCode::CorruptLog, "damaged");
        for damaged in [true, false] {
            let mut agenda = Agenda::default();
            agenda.queue(1, 10);
            agenda.queue(2, 10);
            let refused = match damaged {
                true => agenda.damaged(problem.clone()),
                false => agenda.failed(problem.clone()),
            };
            assert_eq!(refused, [1, 2]);
            agenda.retain();
            agenda.close();
            assert_eq!(agenda.next_turn(), None);
            assert!(!agenda.may_sync());
            assert_eq!(agenda.unwritable(), Some(&problem));
            let reading = |offset| {
                let from = Some((Offset(offset), Isolation::ReadUncommitted));
                agenda.reading(from, READABLE, Offset(9))
            };
            let refused = Reading::Refused(problem.clone());
            assert_eq!(reading(6) == Reading::Now, damaged, "what is sound is read");
            assert_eq!(reading(7), refused);
            assert_eq!(agenda.reading(None, READABLE, Offset(9)), refused);
            assert_eq!(agenda.failure().is_some(), !damaged);
        }
    }

    const READABLE: Readable = Readable {
        committed: Offset(7),
        last_stable: Offset(4),
    };

    #[test]
    fn who_reads_waits_for_what_will_be_and_for_nothing_else() {
        let agenda = open();
        let mut said = Vec::new();
        for offset in 3..=10 {
            said.push(
                [Isolation::ReadCommitted, Isolation::ReadUncommitted].map(|isolation| {
                    let from = Some((Offset(offset), isolation));
                    agenda.reading(from, READABLE, Offset(9))
                }),
            );
        }
        // An offset beyond the end of the log is answered at once: it is a mistake.
        use Reading::{Later, Now};
        let expected = [
            [Now, Now],
            [Later, Now],
            [Later, Now],
            [Later, Now],
            [Later, Later],
            [Later, Later],
            [Later, Later],
            [Now, Now],
        ];
        assert_eq!(said, expected);
        assert_eq!(agenda.reading(None, READABLE, Offset(9)), Now);
    }

    #[test]
    fn a_log_that_fails_while_it_is_away_does_not_come_back() {
        let mut agenda = open();
        agenda.sync_began(Offset(1));
        agenda.queue(1, 10);
        assert!(agenda.next_turn().is_some());
        agenda.queue(2, 10);
        let problem = Problem::new(ErrorCode::Internal, "the sync failed");
        assert_eq!(agenda.failed(problem.clone()), [2]);
        assert_eq!(agenda.came_back(false, false), Err(problem));
        assert!(agenda.unwritable().is_some() && !agenda.may_sync());
    }

    #[test]
    fn the_role_changes_when_the_log_is_back() {
        let mut agenda = open();
        assert!(agenda.has_role() && !agenda.takes_role());
        agenda.assign();
        assert!(!agenda.has_role());
        assert!(agenda.takes_role() && agenda.has_role());
        agenda.queue(1, 10);
        assert!(agenda.next_turn().is_some());
        agenda.assign();
        agenda.assign();
        assert!(!agenda.takes_role() && !agenda.has_role());
        agenda.came_back(false, false).unwrap();
        assert!(agenda.takes_role() && !agenda.takes_role());
        assert!(agenda.has_role());
        // Of one that is being opened it is taken, and says nothing yet.
        let mut opening = Agenda::<u32>::default();
        opening.assign();
        assert!(opening.takes_role() && !opening.has_role());
    }

    /// What an actor does with the log, and what has become of the appends.
    #[derive(Debug, Default)]
    struct Disk {
        away: Option<Turn<u32>>,
        written: u32,
        durable: u32,
    }

    impl Disk {
        fn go_or_come_back(&mut self, agenda: &mut Agenda<u32>) {
            let Some(turn) = self.away.take() else {
                self.away = agenda.next_turn();
                return;
            };
            for append in turn.appends {
                assert_eq!(append, self.written, "written in order and once");
                self.written += 1;
            }
            agenda.came_back(false, turn.retain).unwrap();
        }

        fn begin_sync(&mut self, agenda: &mut Agenda<u32>) {
            if agenda.may_sync() {
                assert!(self.away.is_none());
                agenda.sync_began(Offset(i64::from(self.written)));
            }
        }

        fn end_sync(&mut self, agenda: &mut Agenda<u32>) {
            if let Some(end) = agenda.sync_ran() {
                self.durable = self.durable.max(u32::try_from(end.0).unwrap());
            }
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Append,
        Reconcile,
        Retain,
        Work,
        Sync,
        SyncRan,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Append),
            1 => Just(Step::Reconcile),
            1 => Just(Step::Retain),
            3 => Just(Step::Work),
            2 => Just(Step::Sync),
            2 => Just(Step::SyncRan),
        ]
    }

    proptest! {
        /// However turns and syncs fall: every append is written once and in order, is durable by a sync
        /// that began after it was written, and nothing waits for ever.
        #[test]
        fn every_append_is_written_in_order_and_then_synced(
            steps in proptest::collection::vec(step(), 1..200),
        ) {
            let mut agenda = open();
            let mut disk = Disk::default();
            let mut asked = 0;
            for step in steps {
                match step {
                    Step::Append => {
                        agenda.queue(asked, 1);
                        asked += 1;
                    }
                    Step::Reconcile => agenda.reconcile(),
                    Step::Retain => agenda.retain(),
                    Step::Work => disk.go_or_come_back(&mut agenda),
                    Step::Sync => disk.begin_sync(&mut agenda),
                    Step::SyncRan => disk.end_sync(&mut agenda),
                }
                prop_assert!(disk.durable <= disk.written && disk.written <= asked);
            }
            for _ in 0..2 {
                disk.go_or_come_back(&mut agenda);
            }
            if disk.away.is_some() {
                disk.go_or_come_back(&mut agenda);
            }
            for _ in 0..2 {
                disk.end_sync(&mut agenda);
                disk.begin_sync(&mut agenda);
            }
            disk.end_sync(&mut agenda);
            prop_assert_eq!((disk.written, disk.durable), (asked, asked));
        }
    }
}
