//! One per job: asks workers for the state of its tasks, writes the manifest, and proposes what became of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tracing::{debug, info, warn};
use uuid::Uuid;

use common::error::{ErrorCode, Problem};
use common::ids::{CheckpointId, Generation, JobId, NodeId, TaskId};
use common::limits::JOB_MAILBOX;
use common::objects::location::Location;
use common::objects::store::{ObjectError, Objects};
use common::protocol::job::JobState;
use common::protocol::savepoint::SaveState;
use common::savepoint::{MANIFEST, Manifest, SavedObject, SavedTask, VERSION};
use common::time::{Clock, Span};
use common::transport::client::Transport;

use super::archive::{self, ArchiveMachine};
use super::machine::{Effect, Event, Facts, SavepointMachine, Settings, Standing};
use crate::checkpoint::actor::{CheckpointActor, HurryCheckpoint};
use crate::controller::Controller;
use crate::job::actor::changes;
use crate::job::messages::JobFacts;
use crate::metadata::command::Command;
use crate::metadata::jobs::JobRow;
use crate::metadata::savepoints::SavepointOutcome;

/// One object may be under way so long: longer than a worker gives its store.
const SAVE_DEADLINE: Span = Span::from_secs(90);
/// Besides what a checkpoint itself may take.
const PATIENCE: Span = Span::from_secs(60);

#[derive(Debug)]
pub(crate) struct SavepointActor {
    job: JobId,
    controller: Controller,
    transport: Transport,
    objects: Objects,
    clock: Arc<dyn Clock>,
    checkpoints: Addr<CheckpointActor>,
    facts: tokio::sync::watch::Receiver<JobFacts>,
    /// The job as it is, and as it was when what is being written was its last completed checkpoint.
    row: Arc<JobRow>,
    cut: Option<Cut>,
    machine: SavepointMachine,
    archives: ArchiveMachine,
    timer: Option<SpawnHandle>,
}

/// What a savepoint is made of, and where it goes.
#[derive(Clone, Debug)]
struct Cut {
    row: Arc<JobRow>,
    checkpoint: CheckpointId,
    generation: Generation,
    place: Location,
}

impl SavepointActor {
    pub(crate) fn new(
        controller: Controller,
        transport: Transport,
        clock: Arc<dyn Clock>,
        checkpoints: Addr<CheckpointActor>,
        facts: tokio::sync::watch::Receiver<JobFacts>,
    ) -> SavepointActor {
        let row = Arc::clone(&facts.borrow().row);
        let now = clock.tick();
        let patience = Span(PATIENCE.0 + row.spec.config.checkpoint_timeout.0);
        SavepointActor {
            job: row.id,
            controller,
            objects: Objects::new(transport.clone()),
            transport,
            clock,
            checkpoints,
            facts,
            row,
            cut: None,
            machine: SavepointMachine::new(Settings { patience }),
            archives: ArchiveMachine::new(now),
            timer: None,
        }
    }

    fn learn(&mut self, facts: JobFacts, ctx: &mut Context<SavepointActor>) {
        self.row = Arc::clone(&facts.row);
        self.happen(Event::MetadataChanged(facts_of(&facts)), ctx);
        let archives = archive::Facts::of(&facts.row);
        self.archive(archive::Event::MetadataChanged(archives), ctx);
    }

    fn happen(&mut self, event: Event, ctx: &mut Context<SavepointActor>) {
        let effects = self.machine.handle(self.clock.tick(), event);
        for effect in effects {
            match effect {
                Effect::Hurry { asked, generation } => self.hurry(asked, generation, ctx),
                Effect::Cut { asked, .. } => self.cut = self.cut_of(asked),
                Effect::Save {
                    cut,
                    task,
                    worker,
                    generation,
                    at_rest,
                    checkpoint,
                    position,
                    keep,
                } => {
                    let call = |place| SaveState {
                        job: self.job,
                        generation,
                        at_rest,
                        key_groups: self.row.graph.key_groups,
                        task,
                        checkpoint,
                        position,
                        keep,
                        place,
                    };
                    self.save(cut, worker, call, ctx);
                }
                Effect::Write { cut, objects } => self.write(cut, objects, ctx),
                Effect::End { asked, outcome } => self.end(asked, outcome, ctx),
            }
        }
        self.set_timer(ctx);
    }

    fn archive(&mut self, event: archive::Event, ctx: &mut Context<SavepointActor>) {
        for effect in self.archives.handle(self.clock.tick(), event) {
            let (job, controller) = (self.job, self.controller.clone());
            let objects = self.objects.clone();
            let below = match &effect {
                archive::Effect::Remove { id, .. } => self.attempts_of(*id),
                archive::Effect::Begin { .. } => None,
            };
            let doing = async move {
                let command = match effect {
                    archive::Effect::Begin { location } => Command::BeginSavepoint {
                        job,
                        id: Uuid::new_v4(),
                        location,
                        archive: true,
                    },
                    archive::Effect::Remove { id, place } => {
                        if let Some(place) = place {
                            objects.remove_below(&place, MANIFEST).await?;
                        }
                        if let Some(below) = below {
                            remove_attempts(&objects, &below, id, None).await?;
                        }
                        Command::ForgetSavepoint { job, id }
                    }
                };
                let proposed = controller.propose(command).await;
                proposed.map(drop).map_err(Problem::from)
            };
            ctx.spawn(doing.into_actor(self).map(|done, actor, ctx| {
                let event = match done {
                    Ok(()) => archive::Event::Done,
                    Err(problem) => {
                        debug!(job = %actor.row.name, %problem, "an archive waits");
                        archive::Event::NotDone
                    }
                };
                actor.archive(event, ctx);
            }));
        }
        self.set_timer(ctx);
    }

    fn hurry(&self, asked: Uuid, generation: Generation, ctx: &mut Context<SavepointActor>) {
        let told = self.checkpoints.send(HurryCheckpoint(generation));
        ctx.spawn(told.into_actor(self).map(move |last, actor, ctx| {
            // One that has ended, ended with its job.
            if let Ok(last) = last {
                actor.happen(Event::Hurried { asked, last }, ctx);
            }
        }));
    }

    /// The savepoint of the last completed checkpoint, as the metadata says it is now.
    fn cut_of(&self, asked: Uuid) -> Option<Cut> {
        let row = &self.row;
        let asked = row
            .savepoints
            .iter()
            .find(|savepoint| savepoint.id == asked)?;
        let completed = row.checkpoints.back()?;
        let (checkpoint, generation) = (completed.checkpoint, completed.generation);
        // Nothing is ever written over: a name says of what it is, and of which attempt.
        let name = format!("g{generation}-e{checkpoint}-{}", asked.id.simple());
        Some(Cut {
            row: Arc::clone(row),
            checkpoint,
            generation,
            place: asked.location.join(row.name.as_str()).join(&name),
        })
    }

    fn save(
        &self,
        cut: u32,
        worker: NodeId,
        call: impl FnOnce(Location) -> SaveState,
        ctx: &mut Context<SavepointActor>,
    ) {
        let address = self.controller.view().read(|metadata| {
            let row = metadata.worker(worker);
            row.map(|row| row.address.clone())
        });
        let known = self.cut.as_ref();
        let known = known.expect("nothing is saved before it is known of what");
        let call = call(known.place.clone());
        let task = call.task;
        let transport = self.transport.clone();
        let asking = async move {
            let gone = || {
                let detail = format!("worker {worker} is gone");
                Problem::new(ErrorCode::MetadataStale, detail)
            };
            let address = address.ok_or_else(gone)?;
            let answer = transport.call(&address, &call, SAVE_DEADLINE).await;
            answer.map_err(|error| error.into_problem(ErrorCode::MetadataStale))
        };
        ctx.spawn(asking.into_actor(self).map(move |answer, actor, ctx| {
            let event = match answer {
                Ok(saved) => Event::Saved {
                    cut,
                    task,
                    object: saved.object,
                    next: saved.next,
                },
                Err(problem) => {
                    debug!(job = %actor.row.name, %task, %worker, %problem, "nothing was saved");
                    Event::NotSaved {
                        cut,
                        task,
                        code: problem.code,
                        reason: problem.detail,
                    }
                }
            };
            actor.happen(event, ctx);
        }));
    }

    /// The manifest is written last: what has none is no savepoint.
    fn write(
        &self,
        cut: u32,
        objects: BTreeMap<TaskId, Vec<SavedObject>>,
        ctx: &mut Context<SavepointActor>,
    ) {
        let Some(Cut {
            row,
            checkpoint,
            generation,
            place,
        }) = self.cut.clone()
        else {
            return;
        };
        let cluster = self.controller.view().read(|metadata| metadata.cluster());
        let manifest = Manifest {
            version: VERSION,
            cluster: cluster.expect("a cluster that has jobs has a name"),
            job: row.id,
            name: row.name.clone(),
            generation,
            checkpoint,
            created_at: self.clock.wall(),
            spec: {
                let mut spec = row.spec.as_ref().clone();
                spec.restore = None;
                spec
            },
            graph: row.graph.as_ref().clone(),
            tasks: saved_tasks(&row, objects),
        };
        let outcome = SavepointOutcome::Complete {
            place: place.clone(),
            generation,
            checkpoint,
            bytes: manifest.bytes(),
        };
        let store = self.objects.clone();
        let writing = async move {
            let bytes = manifest.encode().into();
            store.put(&place.join(MANIFEST), bytes).await
        };
        ctx.spawn(writing.into_actor(self).map(move |written, actor, ctx| {
            let event = match written {
                Ok(()) => Event::Written { cut, outcome },
                Err(error) => {
                    let problem = Problem::from(error);
                    Event::NotWritten {
                        cut,
                        code: problem.code,
                        reason: problem.detail,
                    }
                }
            };
            actor.happen(event, ctx);
        }));
    }

    fn end(&self, asked: Uuid, outcome: SavepointOutcome, ctx: &mut Context<SavepointActor>) {
        let job = &self.row.name;
        let complete = match &outcome {
            SavepointOutcome::Complete { place, bytes, .. } => {
                info!(%job, %place, bytes, "savepoint complete");
                Some(place.clone())
            }
            SavepointOutcome::Failed { reason, .. } => {
                warn!(%job, reason, "savepoint failed");
                None
            }
        };
        let controller = self.controller.clone();
        let command = Command::EndSavepoint {
            job: self.job,
            id: asked,
            outcome,
        };
        let proposed = async move { controller.propose(command).await };
        ctx.spawn(
            proposed
                .into_actor(self)
                .map(move |result, actor, ctx| match result {
                    // Not before: somebody who decides in its place may complete another attempt.
                    Ok(_) => actor.clear_away(asked, complete, ctx),
                    Err(error) => {
                        debug!(job = %actor.row.name, %error, "the outcome of a savepoint is no fact yet");
                        actor.happen(Event::NotEnded, ctx);
                    }
                }),
        );
    }

    /// Where attempts at a savepoint are, among those of others.
    fn attempts_of(&self, id: Uuid) -> Option<Location> {
        let mut savepoints = self.row.savepoints.iter();
        let savepoint = savepoints.find(|savepoint| savepoint.id == id)?;
        Some(savepoint.location.join(self.row.name.as_str()))
    }

    /// What attempts at a savepoint have left in its store goes, if the store can be used. `complete`: the one that stays.
    fn clear_away(
        &self,
        asked: Uuid,
        complete: Option<Location>,
        ctx: &mut Context<SavepointActor>,
    ) {
        let Some(below) = self.attempts_of(asked) else {
            return;
        };
        let objects = self.objects.clone();
        let removing =
            async move { remove_attempts(&objects, &below, asked, complete.as_ref()).await };
        ctx.spawn(removing.into_actor(self).map(|removed, actor, _| {
            if let Err(error) = removed {
                let job = &actor.row.name;
                warn!(%job, %error, "what attempts at a savepoint have left stays in its store");
            }
        }));
    }

    fn set_timer(&mut self, ctx: &mut Context<SavepointActor>) {
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        let now = self.clock.tick();
        let wakes = [self.machine.wake_at(), self.archives.wake_at()];
        self.timer = wakes.into_iter().flatten().min().map(|at| {
            let pause = Duration::from_millis(at.since(now).0);
            ctx.run_later(pause, |actor, ctx| {
                actor.timer = None;
                actor.happen(Event::TimePassed, ctx);
                actor.archive(archive::Event::TimePassed, ctx);
            })
        });
    }
}

/// Every attempt at a savepoint has a name that ends with its id. `complete`: the one that stays.
async fn remove_attempts(
    objects: &Objects,
    below: &Location,
    id: Uuid,
    complete: Option<&Location>,
) -> Result<(), ObjectError> {
    let end = id.simple().to_string();
    for place in objects.places_below(below).await? {
        if place.path().ends_with(&end) && Some(&place) != complete {
            objects.remove_below(&place, MANIFEST).await?;
        }
    }
    Ok(())
}

/// The job's tasks with what they have given.
fn saved_tasks(row: &JobRow, mut objects: BTreeMap<TaskId, Vec<SavedObject>>) -> Vec<SavedTask> {
    let completed = row.checkpoints.back();
    let positions = completed.and_then(|completed| completed.positions.clone());
    let tasks = row.graph.tasks();
    let saved = tasks.map(|task| SavedTask {
        task,
        positions: positions
            .as_ref()
            .and_then(|positions| positions.get(&task).cloned())
            .unwrap_or_default(),
        counts: row.counts.get(&task).copied().unwrap_or_default(),
        objects: objects.remove(&task).unwrap_or_default(),
    });
    saved.collect()
}

fn facts_of(facts: &JobFacts) -> Facts {
    let row = &facts.row;
    let standing = match (&row.deployment, row.state) {
        (Some(_), JobState::Running) => Standing::Running,
        (None, JobState::Paused) if row.restored.is_some() => Standing::Restored,
        (None, state) if state.is_terminal() && row.restored.is_some() => Standing::Restored,
        (None, JobState::Paused) => Standing::AtRest,
        (None, state) if state.is_terminal() => Standing::AtRest,
        (Some(_) | None, _) => Standing::Between,
    };
    let giver = |task: TaskId| {
        let runs = row
            .deployment
            .as_ref()
            .map(|running| running.worker_of(task));
        let holders = row.holders.get(&task).into_iter().flatten().copied();
        let is_there = |worker: &NodeId| facts.workers.contains_key(worker);
        match runs {
            Some(worker) => Some(worker).filter(is_there),
            None => holders.into_iter().find(is_there),
        }
    };
    let stages = row.graph.stages.iter().filter(|stage| stage.has_state());
    let tasks = stages.flat_map(|stage| {
        let of_stage = |index| TaskId {
            stage: stage.id,
            index,
        };
        (0..stage.parallelism).map(of_stage)
    });
    Facts {
        asked: row.savepoint_under_way().map(|asked| asked.id),
        generation: row.generation,
        standing,
        completed: row.completed,
        givers: tasks.map(|task| (task, giver(task))).collect(),
    }
}

impl Actor for SavepointActor {
    type Context = Context<SavepointActor>;

    fn started(&mut self, ctx: &mut Context<SavepointActor>) {
        ctx.set_mailbox_capacity(JOB_MAILBOX);
        ctx.add_stream(changes(self.facts.clone()));
        let known = self.facts.borrow().clone();
        self.learn(known, ctx);
    }
}

impl StreamHandler<JobFacts> for SavepointActor {
    fn handle(&mut self, facts: JobFacts, ctx: &mut Context<SavepointActor>) {
        self.learn(facts, ctx);
    }

    /// The job is no longer in the metadata.
    fn finished(&mut self, ctx: &mut Context<SavepointActor>) {
        ctx.stop();
    }
}
