//! The shell of what stands by here for one generation of a job: asks other workers, keeps what they answer,
//! tells the coordinator what is held.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message,
    ResponseActFuture, WrapFuture,
};
use bytes::Bytes;
use common::ids::{CheckpointId, NodeId, TaskId};
use common::protocol::standby::{AckStandby, FetchState, StandbyPosition, StatePiece};
use common::protocol::task::Deployment;
use common::time::Span;
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use super::copies::{Copies, Found, lock};
use super::machine::{Effect, Event, StandbyMachine};
use super::preparing_actor::Successors;
use crate::checkpoint::hot_tables::HotTables;
use crate::checkpoint::state_store::JobStateStore;
use crate::job::assembly::Left;
use crate::job::assignment::{stood_by, successors_here};
use crate::job::services::Services;

/// How long the worker that is asked may hold a call, and how long it may take altogether.
const HOLD: Span = Span::from_secs(1);
const DEADLINE: Span = Span::from_secs(10);
const ACK_DEADLINE: Span = Span::from_secs(3);
/// Large tables that are read at once: with all of them at once none would be there before all are.
const WARM_UP_AT_ONCE: usize = 2;
const ACK_AGAIN: Span = Span::from_millis(250);

#[derive(Debug)]
pub(crate) struct StandbyActor {
    pub(super) deployment: Arc<Deployment>,
    pub(super) services: Services,
    pub(super) store: Arc<JobStateStore>,
    /// The tables of those tasks that there is memory for.
    hot: Arc<Mutex<BTreeMap<TaskId, HotTables>>>,
    /// What the generation before has left.
    left: Left,
    machine: StandbyMachine,
    pub(super) successors: Successors,
    /// Tasks whose tables are to be brought into memory, and those whose tables are being brought there.
    cold: BTreeSet<TaskId>,
    warming_up: BTreeSet<TaskId>,
    /// Tasks that run here in the next generation, and who waits for their tables.
    ending: Option<(BTreeSet<TaskId>, oneshot::Sender<()>)>,
    /// What the coordinator has not been told yet.
    untold: BTreeMap<TaskId, CheckpointId>,
    telling: bool,
    timer: bool,
}

/// Who stands by has changed, or what is prepared, in the same generation.
#[derive(Debug)]
pub(crate) struct StandBy(pub(crate) Arc<Deployment>);

impl Message for StandBy {
    type Result = ();
}

/// Tasks that run here have sealed something, or a checkpoint has been completed.
#[derive(Debug)]
pub(crate) struct Grown;

impl Message for Grown {
    type Result = ();
}

/// The generation is over here, and these tasks run here in the next one. Answered with the tables that are in
/// memory, once those of such tasks are that can be: the next generation would read them from the view, which takes
/// longer.
#[derive(Debug)]
pub(crate) struct StopStandby(pub(crate) BTreeSet<TaskId>);

impl Message for StopStandby {
    type Result = Left;
}

impl StandbyActor {
    pub(crate) fn new(
        deployment: Arc<Deployment>,
        services: Services,
        store: Arc<JobStateStore>,
        left: Left,
    ) -> StandbyActor {
        StandbyActor {
            deployment,
            services,
            store,
            hot: Arc::default(),
            left,
            machine: StandbyMachine::default(),
            successors: Successors::default(),
            cold: BTreeSet::new(),
            warming_up: BTreeSet::new(),
            ending: None,
            untold: BTreeMap::new(),
            telling: false,
            timer: false,
        }
    }

    /// Finds out what is here of each task, and asks for the rest.
    fn follow(&mut self, context: &mut Context<Self>) {
        let copies = self.copies();
        let tasks = stood_by(&self.deployment, self.services.session.worker);
        info!(
            job = %self.deployment.name, generation = %self.deployment.generation,
            tasks = tasks.len(), "standing by",
        );
        let left = std::mem::take(&mut self.left);
        let successors = successors_here(&self.deployment, self.services.session.worker);
        let finding = tokio::task::spawn_blocking(move || copies.find(tasks, &successors, left));
        let found = finding.into_actor(self).map(|found, actor, context| {
            let Found { followed, cold } = found.expect("looking for copies does not panic");
            actor.prepare(context);
            actor.happen(Event::Follow(followed), context);
            actor.cold.clear();
            actor.note_cold(cold);
            actor.warm_up(context);
        });
        // What comes meanwhile would be about the tasks of before.
        context.wait(found);
    }

    /// There is memory for what goes on here; those that only serve to make others are read from the disk.
    fn note_cold(&mut self, tasks: impl IntoIterator<Item = TaskId>) {
        let made_of = self.successors.predecessors();
        let goes_on = |task: &TaskId| !made_of.contains(task);
        self.cold.extend(tasks.into_iter().filter(goes_on));
    }

    /// Others are kept, and a new generation may begin, while a large one is read.
    fn warm_up(&mut self, context: &mut Context<Self>) {
        while self.warming_up.len() < WARM_UP_AT_ONCE
            && let Some(task) = self.cold.pop_first()
        {
            self.warming_up.insert(task);
            let copies = self.copies();
            let warming = tokio::task::spawn_blocking(move || copies.warm_up(task));
            let warm = warming.into_actor(self).map(move |warmed, actor, context| {
                warmed.expect("reading a copy does not panic");
                actor.warming_up.remove(&task);
                actor.warm_up(context);
            });
            context.spawn(warm);
        }
        let needed = |next: &BTreeSet<TaskId>| {
            let mut not_warm = self.cold.union(&self.warming_up);
            not_warm.any(|task| next.contains(task))
        };
        if let Some((_, waiting)) = self.ending.take_if(|(next, _)| !needed(next)) {
            // Who asked has ended, too, if it does not wait any more.
            waiting.send(()).unwrap_or_default();
        }
    }

    pub(super) fn copies(&self) -> Copies {
        let image = self.services.image.borrow();
        Copies {
            me: self.services.session.worker,
            deployment: self.deployment.clone(),
            facts: image.jobs.get(&self.deployment.job).cloned(),
            store: self.store.clone(),
            hot: self.hot.clone(),
            custom: self.services.custom.clone(),
            memory: self.services.state_memory.clone(),
        }
    }

    fn happen(&mut self, event: Event, context: &mut Context<Self>) {
        let now = self.services.clock.tick();
        for effect in self.machine.handle(now, event) {
            match effect {
                Effect::Ask { worker, positions } => self.ask(worker, positions, context),
                Effect::Keep { of, pieces } => self.keep(of, pieces, context),
                Effect::Acknowledge(held) => self.acknowledge(held, context),
            }
        }
        self.set_timer(context);
    }

    fn ask(
        &mut self,
        worker: NodeId,
        positions: Vec<StandbyPosition>,
        context: &mut Context<Self>,
    ) {
        let workers = &self.services.image.borrow().workers;
        let address = workers.get(&worker).map(|worker| worker.address.clone());
        let call = FetchState {
            job: self.deployment.job,
            generation: self.deployment.generation,
            positions,
            wait: HOLD,
        };
        let transport = self.services.transport.clone();
        let asking = async move {
            let address = address?;
            let answer = transport.call(&address, &call, DEADLINE).await;
            answer
                .inspect_err(|error| debug!(%worker, %error, "a standby is not answered"))
                .ok()
        };
        let answered = asking.into_actor(self).map(move |answer, actor, context| {
            let event = match answer {
                Some(fetched) => Event::Answered {
                    by: worker,
                    pieces: fetched.into_each().collect(),
                },
                None => Event::Unanswered { by: worker },
            };
            actor.happen(event, context);
        });
        context.spawn(answered);
    }

    fn keep(&mut self, of: NodeId, pieces: Vec<(StatePiece, Bytes)>, context: &mut Context<Self>) {
        let copies = self.copies();
        let keeping = tokio::task::spawn_blocking(move || copies.keep(pieces));
        let kept = keeping
            .into_actor(self)
            .map(move |outcome, actor, context| {
                let event = match outcome.expect("keeping a copy does not panic") {
                    Ok(cold) => {
                        actor.note_cold(cold);
                        actor.warm_up(context);
                        actor.grow(context);
                        Event::Kept { of }
                    }
                    Err(error) if error.is_fatal() => {
                        // As when a checkpoint cannot be written: nothing here can be relied upon any more.
                        error!(%error, "a standby's copy cannot be written; the worker ends");
                        std::process::abort();
                    }
                    Err(error) => {
                        warn!(job = %actor.deployment.name, %error, "a standby's copy is not kept");
                        Event::NotKept { of }
                    }
                };
                actor.happen(event, context);
            });
        context.spawn(kept);
    }

    pub(super) fn acknowledge(
        &mut self,
        held: Vec<(TaskId, CheckpointId)>,
        context: &mut Context<Self>,
    ) {
        self.untold.extend(held);
        self.tell(context);
    }

    /// One call at a time, with all that is to be told by then.
    fn tell(&mut self, context: &mut Context<Self>) {
        if self.telling || self.untold.is_empty() {
            return;
        }
        self.telling = true;
        let told = std::mem::take(&mut self.untold);
        let ack = AckStandby {
            worker: self.services.session.worker,
            worker_epoch: self.services.session.epoch(),
            job: self.deployment.job,
            generation: self.deployment.generation,
            held: told.clone().into_iter().collect(),
        };
        let services = self.services.clone();
        let telling = async move {
            let transport = &services.transport;
            let answer = services
                .coordinators
                .call(transport, &ack, ACK_DEADLINE)
                .await;
            let again = matches!(&answer, Err(error) if error.is_retriable());
            if again {
                tokio::time::sleep(ACK_AGAIN.as_duration()).await;
            }
            again
        };
        let done = telling.into_actor(self).map(|again, actor, context| {
            actor.telling = false;
            if again {
                for (task, checkpoint) in told {
                    actor.untold.entry(task).or_insert(checkpoint);
                }
            }
            actor.tell(context);
        });
        context.spawn(done);
    }

    fn set_timer(&mut self, context: &mut Context<Self>) {
        let Some(at) = self.machine.wake_at().filter(|_| !self.timer) else {
            return;
        };
        self.timer = true;
        let pause = at.since(self.services.clock.tick());
        context.run_later(pause.as_duration(), |actor, context| {
            actor.timer = false;
            actor.happen(Event::TimePassed, context);
        });
    }
}

impl Actor for StandbyActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        self.follow(context);
    }
}

impl Handler<StandBy> for StandbyActor {
    type Result = ();

    fn handle(&mut self, StandBy(deployment): StandBy, context: &mut Context<Self>) {
        let same = deployment.standbys == self.deployment.standbys;
        if !same || deployment.next != self.deployment.next {
            self.deployment = deployment;
            self.follow(context);
        }
    }
}

impl Handler<Grown> for StandbyActor {
    type Result = ();

    fn handle(&mut self, _: Grown, context: &mut Context<Self>) {
        self.grow(context);
    }
}

impl Handler<StopStandby> for StandbyActor {
    type Result = ResponseActFuture<Self, Left>;

    fn handle(
        &mut self,
        StopStandby(next): StopStandby,
        context: &mut Context<Self>,
    ) -> Self::Result {
        self.cold.retain(|task| next.contains(task));
        // Who works on one lets go of the store, which may be wanted by nobody else: the job may have been deleted.
        self.store.await_no_successors();
        let (ended, wait) = oneshot::channel();
        self.ending = Some((next, ended));
        self.warm_up(context);
        Box::pin(wait.into_actor(self).map(|_, actor, context| {
            context.stop();
            let hot = std::mem::take(&mut *lock(&actor.hot)).into_iter();
            hot.map(|(task, copy)| (task, copy.into_left())).collect()
        }))
    }
}
