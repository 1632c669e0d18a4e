//! Parked produces and fetches, and when each may be answered.
//!
//! An append waits until what it wrote is committed. A fetch waits until there is something for it to
//! read. Both give up at their deadline. Who waits is known here by a ticket only.

use std::collections::{BTreeMap, BTreeSet};

use common::offset::Offset;
use common::plan::connector::Isolation;
use common::time::Tick;

/// Who waits: given out by the caller, never twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Up to where each kind of reader may read now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Readable {
    pub committed: Offset,
    pub last_stable: Offset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Awaited {
    /// Everything before this offset is committed.
    Committed(Offset),
    /// Something at or after this offset may be read uncommitted, or committed.
    Uncommitted(Offset),
    Stable(Offset),
}

/// Everyone who waits at one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Waiting {
    parked: BTreeMap<Ticket, (Awaited, Tick)>,
    by_offset: BTreeSet<(Awaited, Ticket)>,
    by_deadline: BTreeSet<(Tick, Ticket)>,
}

impl Readable {
    pub fn end_for(&self, isolation: Isolation) -> Offset {
        match isolation {
            Isolation::ReadCommitted => self.last_stable,
            Isolation::ReadUncommitted => self.committed,
        }
    }
}

impl Waiting {
    /// An append that is to be answered once everything before `end` is committed.
    pub fn park_append(&mut self, ticket: Ticket, end: Offset, deadline: Tick) {
        self.park(ticket, Awaited::Committed(end), deadline);
    }

    /// A fetch that is to be answered once `offset` may be read.
    pub fn park_fetch(
        &mut self,
        ticket: Ticket,
        offset: Offset,
        isolation: Isolation,
        deadline: Tick,
    ) {
        let awaited = match isolation {
            Isolation::ReadCommitted => Awaited::Stable(offset),
            Isolation::ReadUncommitted => Awaited::Uncommitted(offset),
        };
        self.park(ticket, awaited, deadline);
    }

    /// Takes out everyone whose wait is over, in the order of what they waited for.
    pub fn satisfied(&mut self, readable: Readable) -> Vec<Ticket> {
        let Readable {
            committed,
            last_stable,
        } = readable;
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
        ];
        let tickets: Vec<Ticket> = over
            .into_iter()
            .flat_map(|(from, to)| {
                self.by_offset
                    .range((from, Ticket(0))..(to, Ticket(0)))
                    .map(|(_, ticket)| *ticket)
            })
            .collect();
        for ticket in &tickets {
            self.leave(*ticket);
        }
        tickets
    }

    /// Takes out everyone whose deadline has come.
    pub fn expired(&mut self, now: Tick) -> Vec<Ticket> {
        let mut tickets = Vec::new();
        while let Some((deadline, ticket)) = self.by_deadline.first().copied() {
            if deadline > now {
                break;
            }
            self.leave(ticket);
            tickets.push(ticket);
        }
        tickets
    }

    /// Takes out everyone: the partition can no longer answer them.
    pub fn drain(&mut self) -> Vec<Ticket> {
        let tickets = self.parked.keys().copied().collect();
        *self = Waiting::default();
        tickets
    }

    /// One who waited has gone.
    pub fn leave(&mut self, ticket: Ticket) {
        if let Some((awaited, deadline)) = self.parked.remove(&ticket) {
            self.by_offset.remove(&(awaited, ticket));
            self.by_deadline.remove(&(deadline, ticket));
        }
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

    fn park(&mut self, ticket: Ticket, awaited: Awaited, deadline: Tick) {
        let before = self.parked.insert(ticket, (awaited, deadline));
        assert!(before.is_none(), "{ticket:?} was given out twice");
        self.by_offset.insert((awaited, ticket));
        self.by_deadline.insert((deadline, ticket));
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
        Progress(i64, i64),
        Time(u64),
        Leave(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0_i64..30, 0_u64..30).prop_map(|(end, wait)| Step::Append(end, wait)),
            (0_i64..30, any::<bool>(), 0_u64..30)
                .prop_map(|(offset, committed, wait)| Step::Fetch(offset, committed, wait)),
            (0_i64..4, 0_i64..4).prop_map(|(committed, stable)| Step::Progress(committed, stable)),
            (0_u64..8).prop_map(Step::Time),
            any::<prop::sample::Index>().prop_map(Step::Leave),
        ]
    }

    proptest! {
        /// The reference keeps a plain list and asks everyone every time.
        #[test]
        fn each_is_answered_exactly_once_and_as_soon_as_possible(
            steps in proptest::collection::vec(step(), 1..80),
        ) {
            type Ready = Box<dyn Fn(Readable) -> bool>;
            let mut waiting = Waiting::default();
            let mut list: Vec<(Ticket, Ready, Tick)> = Vec::new();
            let mut readable = Readable::default();
            let mut now = Tick(0);
            for (number, step) in (0..).zip(steps) {
                let ticket = Ticket(number);
                match step {
                    Step::Append(end, wait) => {
                        let deadline = Tick(now.0 + wait);
                        waiting.park_append(ticket, Offset(end), deadline);
                        list.push((ticket, Box::new(move |r| r.committed.0 >= end), deadline));
                    }
                    Step::Fetch(offset, committed, wait) => {
                        let isolation = if committed {
                            Isolation::ReadCommitted
                        } else {
                            Isolation::ReadUncommitted
                        };
                        let deadline = Tick(now.0 + wait);
                        waiting.park_fetch(ticket, Offset(offset), isolation, deadline);
                        list.push((
                            ticket,
                            Box::new(move |r| r.end_for(isolation).0 > offset),
                            deadline,
                        ));
                    }
                    Step::Progress(committed, stable) => {
                        readable.committed.0 += committed;
                        readable.last_stable.0 =
                            (readable.last_stable.0 + stable).min(readable.committed.0);
                    }
                    Step::Time(passed) => now = Tick(now.0 + passed),
                    Step::Leave(who) => {
                        if !list.is_empty() {
                            let (ticket, ..) = list.remove(who.index(list.len()));
                            waiting.leave(ticket);
                        }
                    }
                }
                let mut satisfied = waiting.satisfied(readable);
                satisfied.sort_unstable();
                let expected: Vec<Ticket> =
                    list.iter().filter(|(_, ready, _)| ready(readable)).map(|(t, ..)| *t).collect();
                prop_assert_eq!(satisfied, expected);
                list.retain(|(_, ready, _)| !ready(readable));

                let mut expired = waiting.expired(now);
                expired.sort_unstable();
                let expected: Vec<Ticket> =
                    list.iter().filter(|(.., at)| *at <= now).map(|(t, ..)| *t).collect();
                prop_assert_eq!(expired, expected);
                list.retain(|(.., at)| *at > now);
                prop_assert_eq!(waiting.next_deadline(), list.iter().map(|(.., at)| *at).min());
                prop_assert_eq!(waiting.len(), list.len());
            }
        }
    }
}
