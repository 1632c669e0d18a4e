//! The leader's side: what followers have told of their replicas, and the news there is for them.
//!
//! A position that was told is watched until there is news of it: more in the log, a different log, or
//! more that is committed. The news waits for a call of its session to take it along.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use common::error::{ErrorCode, Problem};
use common::ids::{NodeId, WorkerEpoch};
use common::limits::{MAX_BATCH_BYTES, MAX_CALL_BYTES};
use common::offset::Offset;
use common::plan::connector::Isolation;
use common::protocol::replicate::{ReplicaNews, ReplicaPosition, Replicate, Replicated, Verdict};
use common::time::{Clock, Span, Tick};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::partition::messages::Followed;
use crate::partition::problems;
use crate::partition::registry::Partitions;

/// A session whose last call has ended so long ago is over.
const SESSION_OVER: Span = Span::from_secs(3);
/// How long a call waits for news at most.
const MAX_WAIT: Span = Span::from_secs(2);
/// A follower hears of what is committed without news of its log after so long.
const TELL_COMMITTED_EVERY: Span = Span::from_millis(500);
/// Batches of one replica in one answer, and of all. One batch may come beyond either.
const REPLICA_BYTES: u32 = 4 << 20;
const ANSWER_BYTES: usize = 16 << 20;
const _: () = assert!(ANSWER_BYTES + REPLICA_BYTES as usize + MAX_BATCH_BYTES < MAX_CALL_BYTES);

/// The sessions of all followers of this worker's partitions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sessions {
    clock: Arc<dyn Clock>,
    partitions: Partitions,
    open: Arc<Mutex<BTreeMap<NodeId, Arc<Session>>>>,
}

#[derive(Debug)]
struct Session {
    from: NodeId,
    from_epoch: WorkerEpoch,
    number: u64,
    state: Mutex<State>,
    /// For batches that wait to be taken along.
    room: Arc<Semaphore>,
    /// There is news, or another call has come.
    stirred: Notify,
}

/// With the room they take.
type Batches = (Bytes, OwnedSemaphorePermit);

/// What there is for a position.
enum Look {
    Nothing {
        committed: Offset,
    },
    Batches {
        committed: Offset,
        batches: Bytes,
        room: OwnedSemaphorePermit,
    },
    /// It is to be looked at again.
    Later,
}

#[derive(Debug, Default)]
struct State {
    news: VecDeque<(ReplicaNews, Option<Batches>)>,
    /// The call that came last, counted from the session's first.
    last_call: u64,
    calls: usize,
    heard: Tick,
    replaced: bool,
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
        let session = self.session(&call)?;
        let under_way = UnderWay::begin(&session, &self.clock);
        for position in call.positions {
            let watching = self.clone().watch(session.clone(), position);
            tokio::spawn(watching);
        }
        let wait = call.wait.min(MAX_WAIT);
        let news = session.wait_for_news(under_way.number);
        // Nothing is an answer, too.
        let _elapsed = tokio::time::timeout(wait.as_duration(), news).await;
        Ok(session.take_along())
    }

    #[cfg(test)]
    pub(super) fn calls_under_way(&self, from: NodeId) -> usize {
        let session = lock(&self.open).get(&from).cloned();
        session.map_or(0, |session| lock(&session.state).calls)
    }

    fn session(&self, call: &Replicate) -> Result<Arc<Session>, Problem> {
        let mut open = lock(&self.open);
        let known = open.get(&call.from);
        if known.is_some_and(|known| known.from_epoch > call.from_epoch) {
            let detail = format!("worker {} has begun another life", call.from);
            return Err(Problem::new(ErrorCode::FencedWorkerEpoch, detail));
        }
        if call.begins {
            if let Some(known) = known {
                known.replace();
            }
            let session = Arc::new(Session {
                from: call.from,
                from_epoch: call.from_epoch,
                number: call.session,
                state: Mutex::default(),
                room: Arc::new(Semaphore::new(ANSWER_BYTES)),
                stirred: Notify::new(),
            });
            open.insert(call.from, session.clone());
            return Ok(session);
        }
        let known = known
            .filter(|known| (known.from_epoch, known.number) == (call.from_epoch, call.session));
        known.cloned().ok_or_else(|| {
            let detail = format!(
                "session {} of worker {} is not known",
                call.session, call.from
            );
            Problem::new(ErrorCode::Conflict, detail).hint("Begin another one.")
        })
    }

    /// Until there is news of this position, or nobody asks for it any more.
    async fn watch(self, session: Arc<Session>, at: ReplicaPosition) {
        while !session.is_over(self.clock.tick()) {
            match self.look(&session, at).await {
                Ok(Look::Nothing { committed }) => {
                    if committed <= at.committed {
                        continue;
                    }
                    let verdict = Verdict::Continues {
                        bytes: 0,
                        committed,
                    };
                    return session.push(at, verdict, None);
                }
                Ok(Look::Batches {
                    committed,
                    batches,
                    room,
                }) => {
                    let verdict = Verdict::Continues {
                        bytes: u32::try_from(batches.len()).expect("an answer is bounded"),
                        committed,
                    };
                    return session.push(at, verdict, Some((batches, room)));
                }
                Ok(Look::Later) => {}
                Err(verdict) => return session.push(at, verdict, None),
            }
        }
        session.forget_news();
    }

    async fn look(&self, session: &Session, at: ReplicaPosition) -> Result<Look, Verdict> {
        let refused = |problem| Verdict::Refused { problem };
        let partition = self.partitions.get(at.partition).ok_or_else(|| {
            let detail = format!("partition {} is not here", at.partition);
            refused(Problem::new(ErrorCode::NotLeader, detail))
        })?;
        let life = (session.from, session.from_epoch);
        let followed = partition.followed(life, at, TELL_COMMITTED_EVERY).await;
        match followed.map_err(refused)? {
            Followed::Diverges(end) => Err(Verdict::Diverges {
                epoch: end.epoch,
                end: end.end,
            }),
            Followed::Removed { log_start } => Err(Verdict::Removed { log_start }),
            Followed::Continues {
                reader,
                log_end,
                committed,
            } => {
                if at.log_end >= log_end {
                    return Ok(Look::Nothing { committed });
                }
                // Room first: many that are far behind would fill the memory.
                let room = session.room.clone().acquire_many_owned(REPLICA_BYTES);
                let waited = tokio::time::timeout(TELL_COMMITTED_EVERY.as_duration(), room).await;
                let Ok(Ok(mut room)) = waited else {
                    return Ok(Look::Later);
                };
                let from = at.log_end;
                // Everything as it lies there: what is undecided, too, and what decides it.
                let isolation = Isolation::ReadUncommitted;
                let reading = move || reader.read(from, log_end, REPLICA_BYTES as usize, isolation);
                match tokio::task::spawn_blocking(reading).await {
                    Ok(Ok(read)) => {
                        let batches = read.bytes;
                        room.split(batches.len().min(REPLICA_BYTES as usize))
                            .map_or(Ok(Look::Later), |room| {
                                Ok(Look::Batches {
                                    committed,
                                    batches,
                                    room,
                                })
                            })
                    }
                    Ok(Err(error)) => Err(refused(problems::read_failed(&error))),
                    Err(_) => Ok(Look::Later),
                }
            }
        }
    }
}

/// A call that waits for news. It ends when it is answered, and also when whoever made it is gone.
struct UnderWay<'a> {
    session: &'a Session,
    clock: &'a Arc<dyn Clock>,
    number: u64,
}

impl<'a> UnderWay<'a> {
    fn begin(session: &'a Session, clock: &'a Arc<dyn Clock>) -> UnderWay<'a> {
        let mut state = lock(&session.state);
        state.calls += 1;
        state.last_call += 1;
        state.heard = clock.tick();
        let number = state.last_call;
        drop(state);
        session.stirred.notify_waiters();
        UnderWay {
            session,
            clock,
            number,
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.session.state);
        state.calls -= 1;
        state.heard = self.clock.tick();
    }
}

impl Session {
    async fn wait_for_news(&self, call: u64) {
        loop {
            let stirred = self.stirred.notified();
            {
                let state = lock(&self.state);
                if !state.news.is_empty() || state.last_call > call || state.replaced {
                    return;
                }
            }
            stirred.await;
        }
    }

    fn take_along(&self) -> Replicated {
        let mut state = lock(&self.state);
        let mut news = Vec::new();
        let mut each = Vec::new();
        let mut bytes = 0;
        while bytes < ANSWER_BYTES
            && let Some((next, batches)) = state.news.pop_front()
        {
            news.push(next);
            if let Some((batches, _room)) = batches {
                bytes += batches.len();
                each.push(batches);
            }
        }
        drop(state);
        let batches = match each.len() {
            0 | 1 => each.pop().unwrap_or_default(),
            _ => {
                let mut all = BytesMut::with_capacity(bytes);
                each.iter()
                    .for_each(|batches| all.extend_from_slice(batches));
                all.freeze()
            }
        };
        Replicated { news, batches }
    }

    /// Nobody will take along what there is.
    fn forget_news(&self) {
        lock(&self.state).news.clear();
    }

    fn push(&self, at: ReplicaPosition, verdict: Verdict, batches: Option<Batches>) {
        let news = ReplicaNews { at, verdict };
        lock(&self.state).news.push_back((news, batches));
        self.stirred.notify_waiters();
    }

    fn replace(&self) {
        lock(&self.state).replaced = true;
        self.stirred.notify_waiters();
    }

    fn is_over(&self, now: Tick) -> bool {
        let state = lock(&self.state);
        state.replaced || (state.calls == 0 && now.since(state.heard) > SESSION_OVER)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
