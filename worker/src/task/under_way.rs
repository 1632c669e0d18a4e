//! What a task has taken from its inputs and not finished (pure).

use std::collections::VecDeque;

use common::time::Timestamp;

use super::chain::Question;
use super::message::{Barrier, Rows, Signal};

#[derive(Debug, Default)]
pub struct UnderWay {
    /// In this order.
    queue: VecDeque<Work>,
    /// What the chain is at.
    pub(super) doing: Option<Doing>,
    /// The chain stands still until its question is answered.
    pub(super) asking: Asking,
    /// Bytes that may still be taken while there is no memory left. Below zero what was too much is paid off.
    trickle: i64,
}

#[derive(Debug)]
pub(super) enum Work {
    Restore,
    Rows(u16, Rows),
    Signal(Signal),
    /// What the source's splits together say about time, if it is news.
    AdvanceTime,
    /// The source reads no further, as if it ended here.
    EndOfTime,
    /// Everything the source gave has been sent on.
    Exhausted,
}

/// What follows when the chain is done.
#[derive(Clone, Copy, Debug)]
pub(super) enum Doing {
    Restore,
    Rows,
    Watermark(Timestamp),
    Barrier(Barrier),
}

#[derive(Debug, Default)]
pub(super) enum Asking {
    #[default]
    Nothing,
    /// Whoever runs the task has not been told yet.
    Wanted(Question),
    Asked,
}

impl UnderWay {
    pub(super) fn put(&mut self, work: Work) {
        self.queue.push_back(work);
    }

    pub(super) fn next(&mut self) -> Option<Work> {
        self.queue.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.doing.is_none()
    }

    pub(super) fn is_asking(&self) -> bool {
        !matches!(self.asking, Asking::Nothing)
    }

    /// The question nobody has been told of yet.
    pub(super) fn question(&mut self) -> Option<Question> {
        if !matches!(self.asking, Asking::Wanted(_)) {
            return None;
        }
        match std::mem::replace(&mut self.asking, Asking::Asked) {
            Asking::Wanted(question) => Some(question),
            Asking::Nothing | Asking::Asked => None,
        }
    }

    pub(super) fn answered(&mut self) {
        assert!(
            matches!(self.asking, Asking::Asked),
            "nobody answers what was not asked"
        );
        self.asking = Asking::Nothing;
    }

    /// So many bytes more may be taken without memory for them; what was not used before is lost.
    pub(super) fn allow(&mut self, bytes: u64) {
        self.trickle = self.trickle.min(0).saturating_add_unsigned(bytes);
    }

    pub(super) fn may_trickle(&self) -> bool {
        self.trickle > 0
    }

    pub(super) fn took_crowded(&mut self, bytes: u64) {
        self.trickle = self.trickle.saturating_sub_unsigned(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Five a second let through what no memory had room for.
    #[test]
    fn one_large_message_uses_up_what_may_trickle_for_a_while() {
        let mut under_way = UnderWay::default();
        let taken = (0..100).filter(|_| {
            under_way.allow(10);
            let takes = under_way.may_trickle();
            if takes {
                under_way.took_crowded(95);
            }
            takes
        });
        // 95 bytes for 10 at a time: the next one every nine or ten looks.
        assert_eq!(taken.count(), 11);
    }
}
