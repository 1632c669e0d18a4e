//! Those who read a partition: what they may read now, or that they wait.

use actix::{Context, Handler, ResponseFuture};
use common::error::Problem;
use common::time::Span;
use tokio::sync::oneshot;

use super::actor::PartitionActor;
use super::agenda::{MAX_WAITING, Reading};
use super::messages::{Grant, Granted};
use super::problems;
use super::waiter::{GrantReply, Waiter};
use super::work::answer;

impl PartitionActor {
    pub(super) fn granted(&self) -> Result<Granted, Problem> {
        if let Some(problem) = self.agenda.failure() {
            return Err(problem.clone());
        }
        match &self.reader {
            Some(_) if self.machine.committed().is_none() => Err(problems::not_caught_up(self.id)),
            Some(reader) if self.machine.is_leader() => Ok(Granted {
                reader: reader.clone(),
                readable: self.readable(),
                log_end: self.machine.log_end(),
            }),
            Some(_) | None => Err(self.not_leader()),
        }
    }

    pub(super) fn grant(&mut self, asked: &Grant, reply: GrantReply, context: &mut Context<Self>) {
        let log_end = self.machine.log_end();
        let reading = self.agenda.reading(asked.from, self.readable(), log_end);
        match (reading, self.granted(), asked.from) {
            (Reading::Refused(problem), _, _) => answer(reply, Err(problem)),
            (Reading::Later, Ok(_), Some((offset, isolation))) if asked.wait > Span(0) => {
                let deadline = self.settings.clock.tick().plus(asked.wait);
                let waiter = Waiter::Fetch { reply };
                self.waiting.park_fetch(offset, isolation, deadline, waiter);
                self.set_timer(context);
            }
            (Reading::Now | Reading::Later, granted, _) => answer(reply, granted),
        }
    }
}

impl Handler<Grant> for PartitionActor {
    type Result = ResponseFuture<Result<Granted, Problem>>;

    fn handle(&mut self, message: Grant, context: &mut Context<Self>) -> Self::Result {
        if self.waiting.len() + self.early.len() >= MAX_WAITING {
            let problem = problems::overloaded(self.id, "fetches");
            return Box::pin(std::future::ready(Err(problem)));
        }
        let (reply, replied) = oneshot::channel();
        if self.agenda.is_opening() {
            self.early.push((message, reply));
        } else {
            self.grant(&message, reply, context);
        }
        let id = self.id;
        Box::pin(async move { replied.await.unwrap_or_else(|_| Err(problems::lost(id))) })
    }
}
