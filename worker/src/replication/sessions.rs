//! The leader's side of the conversations: the shell of the `SessionMachine`.
//!
//! What the machine wants to know is asked and read by futures of their own, which tell it what they found.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use common::error::{ErrorCode, Problem};
use common::ids::{NodeId, WorkerEpoch};
use common::offset::Offset;
use common::plan::connector::Isolation;
use common::protocol::replicate::{ReplicaPosition, Replicate, Replicated, Verdict};
use common::time::{Clock, Span, Tick};
use tokio::sync::oneshot;

use super::session_machine::{
    CallId, Effect, Look, REPLICA_BYTES, SessionMachine, ToRead, WatchId,
};
use crate::log::reader::LogReader;
use crate::partition::messages::Followed;
use crate::partition::problems;
use crate::partition::registry::Partitions;

/// A follower hears of what is committed without news of its log after so long.
const TELL_COMMITTED_EVERY: Span = Span::from_millis(500);

/// The sessions of all followers of this worker's partitions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sessions {
    clock: Arc<dyn Clock>,
    partitions: Partitions,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    machine: SessionMachine<LogReader>,
    answers: BTreeMap<CallId, oneshot::Sender<Replicated>>,
    /// When the machine will be told that time has passed.
    timer: Option<Tick>,
}

impl Sessions {
    pub fn new(clock: Arc<dyn Clock>, partitions: Partitions) -> Sessions {
        Sessions {
            clock,
            partitions,
            open: Arc::default(),
        }
    }

    /// Answers a follower's call.
    pub async fn answer(&self, call: Replicate) -> Result<Replicated, Problem> {
        let (sender, answered) = oneshot::channel();
        let now = self.clock.tick();
        let (call, effects) = {
            let mut open = self.open();
            let (call, effects) = open.machine.called(now, call)?;
            open.answers.insert(call, sender);
            (call, effects)
        };
        let _under_way = UnderWay {
            sessions: self,
            call,
        };
        self.go_on(effects);
        answered
            .await
            .map_err(|_| Problem::new(ErrorCode::Internal, "a call was given up"))
    }

    #[cfg(test)]
    pub(super) fn is_asked_by(&self, from: NodeId) -> bool {
        self.open().machine.is_asked_by(from)
    }

    fn go_on(&self, effects: Vec<Effect<LogReader>>) {
        for effect in effects {
            match effect {
                Effect::Look { watch, life, at } => {
                    tokio::spawn(self.clone().look(watch, life, at));
                }
                Effect::Read {
                    watch,
                    log,
                    from,
                    to,
                } => {
                    tokio::spawn(self.clone().read(watch, log, from, to));
                }
                Effect::Answer { call, reply } => {
                    let waiting = self.open().answers.remove(&call);
                    // Whoever asked may just have gone.
                    waiting.map(|waiting| waiting.send(reply));
                }
            }
        }
        self.set_timer();
    }

    async fn look(self, watch: WatchId, life: (NodeId, WorkerEpoch), at: ReplicaPosition) {
        let look = match self.partitions.get(at.partition) {
            Some(partition) => match partition.followed(life, at, TELL_COMMITTED_EVERY).await {
                Ok(Followed::Continues {
                    reader,
                    log_end,
                    committed,
                }) => Look::Continues(ToRead {
                    log: reader,
                    log_end,
                    committed,
                }),
                Ok(Followed::Diverges(end)) => Look::Tell(Verdict::Diverges {
                    epoch: end.epoch,
                    end: end.end,
                }),
                Ok(Followed::Removed { log_start }) => Look::Tell(Verdict::Removed { log_start }),
                Err(problem) => Look::Tell(Verdict::Refused { problem }),
            },
            None => {
                let detail = format!("partition {} is not here", at.partition);
                let problem = Problem::new(ErrorCode::NotLeader, detail);
                Look::Tell(Verdict::Refused { problem })
            }
        };
        let effects = self.open().machine.looked(self.clock.tick(), watch, look);
        self.go_on(effects);
    }

    async fn read(self, watch: WatchId, log: LogReader, from: Offset, to: Offset) {
        // Everything as it lies there: what is undecided, too, and what decides it.
        let reading = move || log.read(from, to, REPLICA_BYTES, Isolation::ReadUncommitted);
        let read: Result<Bytes, Problem> = match tokio::task::spawn_blocking(reading).await {
            Ok(Ok(read)) => Ok(read.bytes),
            Ok(Err(error)) => Err(problems::read_failed(&error)),
            Err(error) => {
                let detail = format!("reading a log failed: {error}");
                Err(Problem::new(ErrorCode::Internal, detail))
            }
        };
        let effects = self.open().machine.read(self.clock.tick(), watch, read);
        self.go_on(effects);
    }

    fn set_timer(&self) {
        let mut open = self.open();
        let Some(at) = open.machine.next_wake() else {
            return;
        };
        if open.timer.is_some_and(|set| set <= at) {
            return;
        }
        open.timer = Some(at);
        drop(open);
        // One millisecond more: a tick is over only when its millisecond is.
        let after = Span(at.since(self.clock.tick()).0 + 1);
        tokio::spawn(self.clone().time_passes(at, after));
    }

    async fn time_passes(self, timer: Tick, after: Span) {
        tokio::time::sleep(after.as_duration()).await;
        let effects = {
            let mut open = self.open();
            // An earlier one has been set since: that goes on.
            if open.timer != Some(timer) {
                return;
            }
            open.timer = None;
            open.machine.time_passed(self.clock.tick())
        };
        self.go_on(effects);
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that waits for news. It ends when it is answered, and also when whoever made it is gone.
struct UnderWay<'a> {
    sessions: &'a Sessions,
    call: CallId,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut open = self.sessions.open();
        open.answers.remove(&self.call);
        open.machine.gone(self.sessions.clock.tick(), self.call);
    }
}
