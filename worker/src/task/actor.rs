//! The shell of a task: wake-ups → machine → the job's mailbox.
//!
//! Data comes in queues, not in the mailbox; a wake-up makes the actor give its machine a turn.

use std::fmt;
use std::sync::Arc;

use actix::dev::SendError;
use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, StreamHandler, WrapFuture};
use common::error::Problem;
use common::protocol::state::StateEntries;
use common::protocol::task::TaskState as Standing;
use common::time::{Clock, Span};
use tokio::sync::Notify;

use super::machine::{Failure, TaskMachine};
use super::messages::{Complete, Inject, Query, Stop};
use super::sink_pump::SinkPump;
use crate::job::actor::JobActor;

/// Barriers, completions and questions that may wait at once.
const MAILBOX: usize = 256;
/// How often the numbers shown to people are gathered.
const LOOK_EVERY: Span = Span::from_millis(200);

pub struct TaskActor {
    pub machine: TaskMachine,
    pub job: Addr<JobActor>,
    pub clock: Arc<dyn Clock>,
    pub wake: Arc<Notify>,
    /// Started with the actor.
    pub pump: Option<SinkPump>,
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
        // A wake-up that went astray costs no more than this.
        self.turn(context);
        self.machine.measure(self.clock.tick());
    }
}

impl Handler<Inject> for TaskActor {
    type Result = ();

    fn handle(&mut self, Inject { barrier, drain }: Inject, context: &mut Context<Self>) {
        let outcome = self.machine.inject(barrier, drain);
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

impl Handler<Query> for TaskActor {
    type Result = Result<StateEntries, Problem>;

    fn handle(&mut self, Query(query): Query, _: &mut Context<Self>) -> Self::Result {
        self.machine.query(&query)
    }
}

impl Handler<Stop> for TaskActor {
    type Result = ();

    fn handle(&mut self, _: Stop, context: &mut Context<Self>) {
        context.stop();
    }
}

impl TaskActor {
    fn turn(&mut self, context: &mut Context<Self>) {
        let outcome = self.machine.turn();
        if let Ok(true) = outcome {
            self.wake.notify_one();
        }
        self.deliver();
        self.end_on_failure(outcome.map(drop), context);
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
        if let Err(Failure { reason, fatal }) = outcome {
            let machine = &self.machine;
            tracing::warn!(task = %machine.task, %reason, fatal, "a task has failed");
            machine.status.set_state(Standing::Failed { reason, fatal });
            context.stop();
        }
    }
}

impl fmt::Debug for TaskActor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskActor")
            .field("task", &self.machine.task)
            .finish_non_exhaustive()
    }
}
