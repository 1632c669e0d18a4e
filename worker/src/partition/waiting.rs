//! Parked produces and fetches, and when each may be answered.
//!
//! An append waits until what it wrote is committed. A fetch waits until there is something for it to
//! read. A follower waits until its leader's log goes on, and at home until what it was given is safe. All
//! give up at their deadline.

use std::collections::{BTreeMap, BTreeSet};

use common::offset::Offset;
use common::plan::connector::Isolation;
use common::time::{Span, Tick};

use super::machine::PartitionMachine;
use super::transactions::Undecided;

/// An append that is not committed by then is answered with "unknown".
pub const APPEND_TIMEOUT: Span = Span::from_secs(30);

/// One who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Ticket(u64);

/// Up to where each kind of reader may read now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Readable {
    pub committed: Offset,
    pub last_stable: Offset,
}

/// How far a replica is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reached {
    pub readable: Readable,
    /// Where its log ends, and up to where it has what counts for being committed.
    pub written: Offset,
    pub safe: Offset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Awaited {
    /// Everything before this offset is committed.
    Committed(Offset),
    /// Something at or after this offset may be read uncommitted, or committed.
    Uncommitted(Offset),
    Stable(Offset),
    /// Something at or after this offset is in the log.
    Written(Offset),
    /// Everything before this offset is safe here.
    Safe(Offset),
}

/// Everyone who waits at one partition, and how each is answered (`W`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Waiting<W> {
    parked: BTreeMap<Ticket, (Awaited, Tick, W)>,
    by_offset: BTreeSet<(Awaited, Ticket)>,
    by_deadline: BTreeSet<(Tick, Ticket)>,
    next_ticket: u64,
}

impl Readable {
    pub fn of(machine: &PartitionMachine, undecided: &Undecided) -> Readable {
        let committed = machine.committed().unwrap_or(Offset::ZERO);
        Readable {
            committed,
            last_stable: undecided.last_stable_offset(committed),
        }
    }

    /// Whether a reader may wait for this offset: it is not to be read yet, and not beyond what will be.
    pub fn is_yet_to_come(&self, offset: Offset, isolation: Isolation, log_end: Offset) -> bool {
        offset >= self.end_for(isolation) && offset <= log_end
    }

    pub fn end_for(&self, isolation: Isolation) -> Offset {
        match isolation {
            Isolation::ReadCommitted => self.last_stable,
            Isolation::ReadUncommitted => self.committed,
        }
    }
}

impl<W> Default for Waiting<W> {
    fn default() -> Waiting<W> {
        Waiting {
            parked: BTreeMap::new(),
            by_offset: BTreeSet::new(),
            by_deadline: BTreeSet::new(),
            next_ticket: 0,
        }
    }
}

impl<W> Waiting<W> {
    /// An append that is to be answered once everything before `end` is committed.
    pub fn park_append(&mut self, end: Offset, deadline: Tick, who: W) {
        self.park(Awaited::Committed(end), deadline, who);
    }

    /// A fetch that is to be answered once `offset` may be read.
    pub fn park_fetch(&mut self, offset: Offset, isolation: Isolation, deadline: Tick, who: W) {
        let awaited = match isolation {
            Isolation::ReadCommitted => Awaited::Stable(offset),
            Isolation::ReadUncommitted => Awaited::Uncommitted(offset),
        };
        self.park(awaited, deadline, who);
    }

    /// A follower that is to be answered once the log goes on from `offset`.
    pub fn park_follower(&mut self, offset: Offset, deadline: Tick, who: W) {
        self.park(Awaited::Written(offset), deadline, who);
    }

    /// One who is to be answered once everything before `end` is safe here.
    pub fn park_until_safe(&mut self, end: Offset, deadline: Tick, who: W) {
        self.park(Awaited::Safe(end), deadline, who);
    }

    /// Takes out everyone whose wait is over, in the order of what they waited for.
    pub fn satisfied(&mut self, reached: Reached) -> Vec<W> {
        let Reached {
            readable:
                Readable {
                    committed,
                    last_stable,
                },
            written,
            safe,
        } = reached;
        // The offset itself is the next one to be written: it can be read once the end lies beyond.
        let over = [
            (
                Awaited::Committed(Offset::ZERO),
                Awaited::Committed(committed.next()),
            ),
            (
                Awaited::Uncommitted(Offset::ZERO),
                Awaited::Uncommitted(committed),
            ),
            (Awaited::Stable(Offset::ZERO), Awaited::Stable(last_stable)),
            (Awaited::Written(Offset::ZERO), Awaited::Written(written)),
            (Awaited::Safe(Offset::ZERO), Awaited::Safe(safe.next())),
        ];
        let tickets: Vec<Ticket> = over
            .into_iter()
            .flat_map(|(from, to)| {
                self.by_offset
                    .range((from, Ticket(0))..(to, Ticket(0)))
                    .map(|(_, ticket)| *ticket)
            })
            .collect();
        tickets
            .into_iter()
            .filter_map(|ticket| self.leave(ticket))
            .collect()
    }

    /// Takes out everyone whose deadline has come.
    pub fn expired(&mut self, now: Tick) -> Vec<W> {
        let mut expired = Vec::new();
        while let Some((deadline, ticket)) = self.by_deadline.first().copied() {
            if deadline > now {
                break;
            }
            expired.extend(self.leave(ticket));
        }
        expired
    }

    /// Takes out everyone: the partition can no longer answer them.
    pub fn drain(&mut self) -> Vec<W> {
        self.by_offset.clear();
        self.by_deadline.clear();
        let parked = std::mem::take(&mut self.parked);
        parked.into_values().map(|(_, _, who)| who).collect()
    }

    pub fn next_deadline(&self) -> Option<Tick> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }

    pub fn len(&self) -> usize {
        self.parked.len()
    }

    pub fn is_empty(&self) -> bool {
        self.parked.is_empty()
    }

    fn park(&mut self, awaited: Awaited, deadline: Tick, who: W) {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.parked.insert(ticket, (awaited, deadline, who));
        self.by_offset.insert((awaited, ticket));
        self.by_deadline.insert((deadline, ticket));
    }

    fn leave(&mut self, ticket: Ticket) -> Option<W> {
        let (awaited, deadline, who) = self.parked.remove(&ticket)?;
        self.by_offset.remove(&(awaited, ticket));
        self.by_deadline.remove(&(deadline, ticket));
        Some(who)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Append(i64, u64),
        Fetch(i64, bool, u64),
        Follow(i64, u64),
        Safe(i64, u64),
        Progress(i64, i64),
        Grow(i64, i64),
        Time(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0_i64..30, 0_u64..30).prop_map(|(end, wait)| Step::Append(end, wait)),
            (0_i64..30, any::<bool>(), 0_u64..30)
                .prop_map(|(offset, committed, wait)| Step::Fetch(offset, committed, wait)),
            (0_i64..30, 0_u64..30).prop_map(|(offset, wait)| Step::Follow(offset, wait)),
            (0_i64..30, 0_u64..30).prop_map(|(end, wait)| Step::Safe(end, wait)),
            (0_i64..4, 0_i64..4).prop_map(|(committed, stable)| Step::Progress(committed, stable)),
            (0_i64..4, 0_i64..4).prop_map(|(written, safe)| Step::Grow(written, safe)),
            (0_u64..8).prop_map(Step::Time),
        ]
    }

    proptest! {
        /// The reference keeps a plain list and asks everyone every time.
        #[test]
        fn each_is_answered_exactly_once_and_as_soon_as_possible(
            steps in proptest::collection::vec(step(), 1..80),
        ) {
            type Ready = Box<dyn Fn(Reached) -> bool>;
            let mut waiting: Waiting<u32> = Waiting::default();
            let mut list: Vec<(u32, Ready, Tick)> = Vec::new();
            let mut reached = Reached::default();
            let mut now = Tick(0);
            for (who, step) in (0..).zip(steps) {
                match step {
                    Step::Append(end, wait) => {
                        let deadline = Tick(now.0 + wait);
                        waiting.park_append(Offset(end), deadline, who);
                        list.push((who, Box::new(move |r| r.readable.committed.0 >= end), deadline));
                    }
                    Step::Fetch(offset, committed, wait) => {
                        let isolation = if committed {
                            Isolation::ReadCommitted
                        } else {
                            Isolation::ReadUncommitted
                        };
                        let deadline = Tick(now.0 + wait);
                        waiting.park_fetch(Offset(offset), isolation, deadline, who);
                        list.push((
                            who,
                            Box::new(move |r| r.readable.end_for(isolation).0 > offset),
                            deadline,
                        ));
                    }
                    Step::Follow(offset, wait) => {
                        let deadline = Tick(now.0 + wait);
                        waiting.park_follower(Offset(offset), deadline, who);
                        list.push((who, Box::new(move |r| r.written.0 > offset), deadline));
                    }
                    Step::Safe(end, wait) => {
                        let deadline = Tick(now.0 + wait);
                        waiting.park_until_safe(Offset(end), deadline, who);
                        list.push((who, Box::new(move |r| r.safe.0 >= end), deadline));
                    }
                    Step::Grow(written, safe) => {
                        reached.written.0 += written;
                        reached.safe.0 = (reached.safe.0 + safe).min(reached.written.0);
                    }
                    Step::Progress(committed, stable) => {
                        let readable = &mut reached.readable;
                        readable.committed.0 += committed;
                        readable.last_stable.0 =
                            (readable.last_stable.0 + stable).min(readable.committed.0);
                    }
                    Step::Time(passed) => now = Tick(now.0 + passed),
                }
                let mut satisfied = waiting.satisfied(reached);
                satisfied.sort_unstable();
                let expected: Vec<u32> =
                    list.iter().filter(|(_, ready, _)| ready(reached)).map(|(w, ..)| *w).collect();
                prop_assert_eq!(satisfied, expected);
                list.retain(|(_, ready, _)| !ready(reached));

                let mut expired = waiting.expired(now);
                expired.sort_unstable();
                let expected: Vec<u32> =
                    list.iter().filter(|(.., at)| *at <= now).map(|(w, ..)| *w).collect();
                prop_assert_eq!(expired, expected);
                list.retain(|(.., at)| *at > now);
                prop_assert_eq!(waiting.next_deadline(), list.iter().map(|(.., at)| *at).min());
                prop_assert_eq!(waiting.len(), list.len());
            }
            let mut left = waiting.drain();
            left.sort_unstable();
            prop_assert_eq!(left, list.iter().map(|(w, ..)| *w).collect::<Vec<u32>>());
            prop_assert!(waiting.is_empty() && waiting.next_deadline().is_none());
        }
    }
}
