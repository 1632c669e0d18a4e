//! The shell of a task: wake-ups → machine → the job's mailbox.
//!
//! Data comes in queues, not in the mailbox; a wake-up makes the actor give its machine a turn.

use std::fmt;
use std::sync::Arc;

use actix::dev::SendError;
use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, MessageResult,
    ResponseActFuture, StreamHandler, WrapFuture,
};
use common::error::{ErrorCode, Problem};
use common::protocol::state::StateEntries;
use common::time::{Clock, Span, Tick};
use tokio::sync::Notify;

use super::chain::Question;
use super::failure::Failure;
use super::machine::TaskMachine;
use super::messages::{Complete, Folded, Inject, Leaves, PrepareFold, Query, Stop};
use super::query::{Reading, Step};
use super::sink_pump::SinkPump;
use crate::checkpoint::view_reader::{ViewError, ViewReader};
use crate::job::actor::JobActor;
use crate::keyed_state::stored::Answer;

/// Barriers, completions and questions that may wait at once.
const MAILBOX: usize = 256;
/// How often the numbers shown to people are gathered.
const LOOK_EVERY: Span = Span::from_millis(200);
/// A reading of the state holds back what checkpoints would let go, but no longer than this.
const READ_DEADLINE: Span = Span::from_secs(10);

pub struct TaskActor {
    pub machine: TaskMachine,
    pub job: Addr<JobActor>,
    pub clock: Arc<dyn Clock>,
    pub wake: Arc<Notify>,
    /// Started with the actor.
    pub pump: Option<SinkPump>,
    /// Answers what is not in memory.
    pub reader: Option<ViewReader>,
}

/// A wake-up.
struct Woken;

/// Time to look around.
struct Look;

impl Actor for TaskActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        context.set_mailbox_capacity(MAILBOX);
        let outcome = self.machine.start();
        if let Some(pump) = self.pump.take() {
            context.spawn(pump.run().into_actor(self));
        }
        let wake = self.wake.clone();
        let woken = futures_util::stream::unfold(wake, |wake| async {
            wake.notified().await;
            Some((Woken, wake))
        });
        context.add_stream(woken);
        let look = futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(LOOK_EVERY.as_duration()).await;
            Some((Look, ()))
        });
        context.add_stream(look);
        self.ask(context);
        self.end_on_failure(outcome, context);
        self.wake.notify_one();
    }
}

impl StreamHandler<Woken> for TaskActor {
    fn handle(&mut self, _: Woken, context: &mut Context<Self>) {
        self.turn(context);
    }
}

impl StreamHandler<Look> for TaskActor {
    fn handle(&mut self, _: Look, context: &mut Context<Self>) {
        self.machine.look(self.clock.tick());
        // A wake-up that went astray costs no more than this.
        self.turn(context);
    }
}

impl Handler<Inject> for TaskActor {
    type Result = ();

    fn handle(&mut self, Inject { barrier, drain }: Inject, context: &mut Context<Self>) {
        let outcome = self.machine.inject(barrier, drain);
        self.ask(context);
        self.end_on_failure(outcome, context);
    }
}

impl Handler<Complete> for TaskActor {
    type Result = ();

    fn handle(&mut self, Complete(checkpoint): Complete, _: &mut Context<Self>) {
        self.machine.complete(checkpoint);
        // A source that waited for it reads on.
        self.wake.notify_one();
    }
}

impl Handler<PrepareFold> for TaskActor {
    type Result = MessageResult<PrepareFold>;

    fn handle(&mut self, prepare: PrepareFold, _: &mut Context<Self>) -> Self::Result {
        let PrepareFold(checkpoint) = prepare;
        let foldable = self.machine.prepare_fold(checkpoint);
        self.wake.notify_one();
        MessageResult(foldable)
    }
}

impl Handler<Folded> for TaskActor {
    type Result = ();

    fn handle(&mut self, folded: Folded, context: &mut Context<Self>) {
        let Folded { checkpoint, reader } = folded;
        let other = !self.reader.as_ref().is_some_and(|r| r.is_like(&reader));
        let outcome = self.machine.folded(checkpoint, other);
        self.reader = Some(reader);
        self.wake.notify_one();
        self.end_on_failure(outcome, context);
    }
}

impl Handler<Query> for TaskActor {
    type Result = ResponseActFuture<Self, Result<StateEntries, Problem>>;

    fn handle(&mut self, Query(query): Query, _: &mut Context<Self>) -> Self::Result {
        match self.machine.begin_reading(query) {
            Ok(reading) => {
                let until = self.clock.tick().plus(READ_DEADLINE);
                self.read_on(reading, None, until)
            }
            Err(problem) => Box::pin(actix::fut::ready(Err(problem))),
        }
    }
}

impl Handler<Stop> for TaskActor {
    type Result = MessageResult<Stop>;

    fn handle(&mut self, _: Stop, context: &mut Context<Self>) -> Self::Result {
        context.stop();
        MessageResult(self.machine.leave(self.reader.take()))
    }
}

impl TaskActor {
    fn turn(&mut self, context: &mut Context<Self>) {
        let outcome = self.machine.turn();
        if let Ok(true) = outcome {
            self.wake.notify_one();
        }
        self.deliver();
        self.ask(context);
        self.end_on_failure(outcome.map(drop), context);
    }

    /// Has the machine's question answered on a thread that may wait for the disk. The inputs wait
    /// meanwhile, and barriers behind them.
    fn ask(&mut self, context: &mut Context<Self>) {
        let Some(question) = self.machine.question() else {
            return;
        };
        let reader = self.reader.clone();
        let asked = question.clone();
        let answering = tokio::task::spawn_blocking(move || read(reader, asked));
        let answered = answering
            .into_actor(self)
            .map(move |answer, actor, context| {
                match answer.expect("reading the view does not panic") {
                    Ok(answer) => {
                        actor.machine.answered(&question, answer);
                        actor.turn(context);
                    }
                    Err(error) => actor.end_on_failure(Err(error.into()), context),
                }
            });
        context.spawn(answered);
    }

    /// Answers a reader of the state, with as many looks into the view as it takes, until a time.
    fn read_on(
        &mut self,
        mut reading: Reading,
        answer: Option<Answer>,
        until: Tick,
    ) -> ResponseActFuture<Self, Result<StateEntries, Problem>> {
        let outcome = match self.machine.read_on(&mut reading, answer) {
            Ok(Step::Ask(_)) if self.clock.tick() > until => {
                let detail = format!("the state could not be read within {READ_DEADLINE}");
                Err(Problem::new(ErrorCode::Timeout, detail)
                    .hint("Ask for a single key, or for fewer entries with \"limit\"."))
            }
            Ok(Step::Ask(question)) => {
                let reader = self.reader.clone();
                let answering = tokio::task::spawn_blocking(move || read(reader, question));
                let answered =
                    answering.into_actor(self).then(move |answer, actor, _| {
                        match answer.expect("reading the view does not panic") {
                            Ok(answer) => actor.read_on(reading, Some(answer), until),
                            Err(error) => {
                                actor.machine.end_reading(&reading);
                                let problem = Problem::new(
                                    ErrorCode::StaleGeneration,
                                    error.to_string(),
                                )
                                .hint("Ask again; a new generation takes over within moments.");
                                Box::pin(actix::fut::ready(Err(problem)))
                            }
                        }
                    });
                return Box::pin(answered);
            }
            Ok(Step::Done(entries)) => Ok(entries),
            Err(problem) => Err(problem),
        };
        self.machine.end_reading(&reading);
        Box::pin(actix::fut::ready(outcome))
    }

    /// Gives the job the snapshots it has not taken yet, in order.
    fn deliver(&mut self) {
        while let Some(sealed) = self.machine.hand_over() {
            match self.job.try_send(sealed) {
                Ok(()) => {}
                Err(SendError::Full(sealed)) => {
                    self.machine.take_back(sealed);
                    return;
                }
                // The job is gone, and this task with it.
                Err(SendError::Closed(_)) => {}
            }
        }
    }

    fn end_on_failure(&mut self, outcome: Result<(), Failure>, context: &mut Context<Self>) {
        let Err(failure) = outcome else { return };
        let Failure { reason, fatal, .. } = &failure;
        let task = self.machine.task;
        tracing::warn!(%task, %reason, fatal, "a task has failed");
        if let Some(left) = self.machine.fail(failure, self.reader.take()) {
            // What does not fit is read from disk.
            drop(self.job.try_send(Leaves { task, left }));
        }
        context.stop();
    }
}

/// Answers a question from the view. Blocks.
fn read(reader: Option<ViewReader>, question: Question) -> Result<Answer, ViewError> {
    let reader = reader.ok_or(ViewError::BuiltAnew)?;
    reader.answer(&question.table, question.ask)
}

impl fmt::Debug for TaskActor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskActor")
            .field("task", &self.machine.task)
            .finish_non_exhaustive()
    }
}
