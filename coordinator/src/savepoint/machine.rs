//! Decides what is done next for the savepoint of a job that was asked for.
//!
//! WAITING until a checkpoint is complete that began after it was asked for, or the job is at rest; SAVING until every
//! task has given its state at exactly that checkpoint, object by object, one task of a worker at a time;
//! WRITING its manifest; ENDING until its outcome is a fact. Where a task has let go of that checkpoint, or the
//! job has moved on without it, all begins again with a newer one. Nothing here is durable: a new
//! coordinator begins anew with what was asked for, which is a fact.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use common::error::ErrorCode;
use common::ids::{CheckpointId, Generation, NodeId, TaskId};
use common::protocol::savepoint::SavePosition;
use common::savepoint::SavedObject;
use common::time::{Span, Tick};

use crate::metadata::savepoints::SavepointOutcome;

/// What went wrong is tried again after this.
pub const TRY_AGAIN: Span = Span::from_secs(1);
/// One object, and the manifest, are tried so often.
const ATTEMPTS: u32 = 10;
/// A store that cannot be used is told sooner: its user can do something about it.
const ATTEMPTS_AT_STORE: u32 = 3;
/// So many checkpoints are begun with.
const CUTS: u32 = 5;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// A checkpoint, or workers with the state, are waited for so long.
    pub patience: Span,
}

/// What the metadata says of the job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Facts {
    /// The savepoint that is to be made.
    pub asked: Option<Uuid>,
    pub generation: Generation,
    pub standing: Standing,
    pub completed: Option<CheckpointId>,
    /// The tasks with state, and who can give it at `completed`; `None`: nobody who is there.
    pub givers: BTreeMap<TaskId, Option<NodeId>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Standing {
    Running,
    /// Nothing of it runs, and nothing will unless its user says so.
    AtRest,
    /// At rest with the state of a savepoint, which no worker has.
    Restored,
    /// Being started, or waiting for something.
    #[default]
    Between,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    MetadataChanged(Facts),
    /// No checkpoint up to this one began after `Effect::Hurry`.
    Hurried {
        asked: Uuid,
        last: CheckpointId,
    },
    Saved {
        cut: u32,
        task: TaskId,
        object: SavedObject,
        next: Option<SavePosition>,
    },
    NotSaved {
        cut: u32,
        task: TaskId,
        code: ErrorCode,
        reason: String,
    },
    /// The manifest is in the store.
    Written {
        cut: u32,
        outcome: SavepointOutcome,
    },
    NotWritten {
        cut: u32,
        code: ErrorCode,
        reason: String,
    },
    /// The outcome did not become a fact.
    NotEnded,
    TimePassed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Have a checkpoint begin soon, and say which ones had begun before.
    Hurry { asked: Uuid, generation: Generation },
    /// What the metadata says now of its last completed checkpoint is what will be written.
    Cut { asked: Uuid, cut: u32 },
    Save {
        cut: u32,
        task: TaskId,
        worker: NodeId,
        generation: Generation,
        at_rest: bool,
        checkpoint: CheckpointId,
        position: SavePosition,
        /// Tasks of the same worker whose turn is yet to come.
        keep: Vec<TaskId>,
    },
    Write {
        cut: u32,
        objects: BTreeMap<TaskId, Vec<SavedObject>>,
    },
    End {
        asked: Uuid,
        outcome: SavepointOutcome,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SavepointMachine {
    settings: Settings,
    facts: Facts,
    work: Option<Work>,
    /// When it was last asked.
    asked_at: Tick,
    /// How often something was begun with, since ever: answers to what was given up are told by it.
    cuts: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Work {
    asked: Uuid,
    since: Tick,
    /// The generation that was asked for a checkpoint, and which had begun before.
    hurried: Option<Generation>,
    floor: Option<CheckpointId>,
    cuts: u32,
    step: Step,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Step {
    Waiting,
    Saving(Saving),
    Writing {
        saving: Saving,
        failed: u32,
        /// When it is written again; `None`: it is being written.
        again: Option<Tick>,
    },
    Ending {
        outcome: SavepointOutcome,
        again: Option<Tick>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Saving {
    cut: u32,
    generation: Generation,
    at_rest: bool,
    checkpoint: CheckpointId,
    tasks: BTreeMap<TaskId, Given>,
}

/// What a task has given so far.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Given {
    worker: NodeId,
    objects: Vec<SavedObject>,
    /// `None`: that is all.
    position: Option<SavePosition>,
    /// Its worker has been asked and has not answered.
    asked: bool,
    failed: u32,
    not_before: Tick,
}

impl SavepointMachine {
    pub fn new(settings: Settings) -> SavepointMachine {
        SavepointMachine {
            settings,
            facts: Facts::default(),
            work: None,
            asked_at: Tick(0),
            cuts: 0,
        }
    }

    /// Applies one event. Deterministic: same machine, same event, same time, same effects.
    pub fn handle(&mut self, now: Tick, event: Event) -> Vec<Effect> {
        self.asked_at = now;
        match event {
            Event::MetadataChanged(facts) => self.learn(now, facts),
            Event::Hurried { asked, last } => {
                if let Some(work) = self.work.as_mut().filter(|work| work.asked == asked) {
                    // The first answer counts: what began after it is new enough.
                    work.floor.get_or_insert(last);
                }
            }
            Event::Saved {
                cut,
                task,
                object,
                next,
            } => self.take(cut, task, object, next),
            Event::NotSaved {
                cut,
                task,
                code,
                reason,
            } => self.miss(now, cut, task, code, reason),
            Event::Written { cut, outcome } => self.written(cut, outcome),
            Event::NotWritten { cut, code, reason } => self.not_written(now, cut, code, reason),
            Event::NotEnded => {
                if let Some(Step::Ending { again, .. }) = self.step_mut() {
                    *again = Some(now.plus(TRY_AGAIN));
                }
            }
            Event::TimePassed => {}
        }
        let mut effects = Vec::new();
        self.go_on(now, &mut effects);
        effects
    }

    /// When the machine wants to be asked again, if nothing happens before.
    pub fn wake_at(&self) -> Option<Tick> {
        let work = self.work.as_ref()?;
        match &work.step {
            Step::Waiting => Some(work.since.plus(self.settings.patience)),
            Step::Saving(saving) => {
                // Who waits for its worker goes on with that one's answer.
                let given = saving.tasks.values().map(|given| given.not_before);
                given.filter(|at| *at > self.asked_at).min()
            }
            Step::Writing { again, .. } | Step::Ending { again, .. } => *again,
        }
    }

    fn learn(&mut self, now: Tick, facts: Facts) {
        self.facts = facts;
        if self.work.as_ref().map(|work| work.asked) != self.facts.asked {
            self.work = self.facts.asked.map(|asked| Work {
                asked,
                since: now,
                hurried: None,
                floor: None,
                cuts: 0,
                step: Step::Waiting,
            });
        }
        // What is given now would be of a generation, or a rest, that is over.
        let Facts {
            generation,
            standing,
            ..
        } = self.facts;
        let over = |saving: &Saving| {
            saving.generation != generation || saving.at_rest != (standing == Standing::AtRest)
        };
        if let Some(work) = &mut self.work
            && matches!(&work.step, Step::Saving(saving) if over(saving))
        {
            work.wait_again(now);
        }
    }

    fn take(&mut self, cut: u32, task: TaskId, object: SavedObject, next: Option<SavePosition>) {
        if let Some(given) = self.given_mut(cut, task) {
            given.asked = false;
            given.failed = 0;
            given.objects.push(object);
            given.position = next;
        }
    }

    fn miss(&mut self, now: Tick, cut: u32, task: TaskId, code: ErrorCode, reason: String) {
        let Some(given) = self.given_mut(cut, task) else {
            return;
        };
        given.asked = false;
        given.failed += 1;
        given.not_before = now.plus(TRY_AGAIN);
        let given_up = is_given_up(given.failed, code);
        let work = self.work.as_mut().expect("it has given something");
        match code {
            ErrorCode::EpochGone if work.cuts < CUTS => work.wait_again(now),
            _ if given_up || code == ErrorCode::EpochGone => {
                work.fail(code, format!("task {task}: {reason}"));
            }
            _ => {}
        }
    }

    fn written(&mut self, cut: u32, outcome: SavepointOutcome) {
        if let Some(step @ Step::Writing { .. }) = self.step_mut()
            && matches!(step, Step::Writing { saving, .. } if saving.cut == cut)
        {
            *step = Step::Ending {
                outcome,
                again: Some(Tick(0)),
            };
        }
    }

    fn not_written(&mut self, now: Tick, cut: u32, code: ErrorCode, reason: String) {
        let Some(work) = &mut self.work else { return };
        let Step::Writing {
            saving,
            failed,
            again,
        } = &mut work.step
        else {
            return;
        };
        if saving.cut != cut {
            return;
        }
        *failed += 1;
        *again = Some(now.plus(TRY_AGAIN));
        if is_given_up(*failed, code) {
            work.fail(code, format!("the manifest: {reason}"));
        }
    }

    fn go_on(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        let Some(work) = &mut self.work else { return };
        if work.step == Step::Waiting {
            work.begin(now, &self.settings, &self.facts, &mut self.cuts, effects);
        }
        if let Step::Saving(saving) = &mut work.step {
            saving.ask(now, effects);
            if saving.tasks.values().all(|given| given.position.is_none()) {
                work.step = Step::Writing {
                    saving: saving.clone(),
                    failed: 0,
                    again: Some(now),
                };
            }
        }
        match &mut work.step {
            Step::Writing { saving, again, .. } if again.is_some_and(|at| at <= now) => {
                *again = None;
                let tasks = saving.tasks.iter();
                effects.push(Effect::Write {
                    cut: saving.cut,
                    objects: tasks
                        .map(|(t, given)| (*t, given.objects.clone()))
                        .collect(),
                });
            }
            Step::Ending { outcome, again } if again.is_some_and(|at| at <= now) => {
                *again = None;
                effects.push(Effect::End {
                    asked: work.asked,
                    outcome: outcome.clone(),
                });
            }
            Step::Waiting | Step::Saving(_) | Step::Writing { .. } | Step::Ending { .. } => {}
        }
    }

    fn step_mut(&mut self) -> Option<&mut Step> {
        self.work.as_mut().map(|work| &mut work.step)
    }

    fn given_mut(&mut self, cut: u32, task: TaskId) -> Option<&mut Given> {
        match self.step_mut()? {
            Step::Saving(saving) if saving.cut == cut => saving.tasks.get_mut(&task),
            Step::Waiting | Step::Saving(_) | Step::Writing { .. } | Step::Ending { .. } => None,
        }
    }
}

impl Work {
    fn begin(
        &mut self,
        now: Tick,
        settings: &Settings,
        facts: &Facts,
        cuts: &mut u32,
        effects: &mut Vec<Effect>,
    ) {
        let ready = match facts.standing {
            Standing::Running => facts.completed.filter(|completed| {
                let floor = self.floor;
                floor.is_some_and(|floor| *completed > floor)
            }),
            Standing::AtRest => facts.completed,
            Standing::Restored | Standing::Between => None,
        };
        match (facts.standing, facts.completed) {
            (Standing::AtRest, None) => {
                let reason = "the job has not completed a checkpoint".to_owned();
                return self.fail(ErrorCode::Conflict, reason);
            }
            (Standing::Restored, _) => {
                let reason =
                    "the job has nothing yet that the savepoint it was restored from has not"
                        .to_owned();
                return self.fail(ErrorCode::Conflict, reason);
            }
            (Standing::Running | Standing::AtRest | Standing::Between, _) => {}
        }
        if facts.standing == Standing::Running && self.hurried != Some(facts.generation) {
            self.hurried = Some(facts.generation);
            effects.push(Effect::Hurry {
                asked: self.asked,
                generation: facts.generation,
            });
        }
        let missing = facts.givers.iter().find(|(_, giver)| giver.is_none());
        if let (Some(checkpoint), None) = (ready, missing) {
            *cuts += 1;
            self.cuts += 1;
            effects.push(Effect::Cut {
                asked: self.asked,
                cut: *cuts,
            });
            let givers = facts.givers.iter();
            let tasks = givers.filter_map(|(task, giver)| Some((*task, Given::nothing((*giver)?))));
            self.step = Step::Saving(Saving {
                cut: *cuts,
                generation: facts.generation,
                at_rest: facts.standing == Standing::AtRest,
                checkpoint,
                tasks: tasks.collect(),
            });
            return;
        }
        if now >= self.since.plus(settings.patience) {
            let reason = match (ready, missing) {
                (Some(_), Some((task, _))) => {
                    format!("no worker with the state of task {task} is there")
                }
                _ => format!("no checkpoint was complete within {}", settings.patience),
            };
            self.fail(ErrorCode::Timeout, reason);
        }
    }

    /// A newer checkpoint has to do.
    fn wait_again(&mut self, now: Tick) {
        self.step = Step::Waiting;
        self.since = now;
        self.hurried = None;
    }

    fn fail(&mut self, code: ErrorCode, reason: String) {
        self.step = Step::Ending {
            outcome: SavepointOutcome::Failed { code, reason },
            again: Some(Tick(0)),
        };
    }
}

impl Saving {
    /// One task of a worker at a time: what it reads into memory is bounded by one object.
    fn ask(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        let busy = self.tasks.values().filter(|given| given.asked);
        let mut busy: BTreeSet<NodeId> = busy.map(|given| given.worker).collect();
        let unfinished = self
            .tasks
            .iter()
            .filter(|(_, given)| given.position.is_some());
        let unfinished: Vec<(TaskId, NodeId)> = unfinished
            .map(|(task, given)| (*task, given.worker))
            .collect();
        for (task, given) in &mut self.tasks {
            let Some(position) = given.position else {
                continue;
            };
            if given.asked || given.not_before > now || !busy.insert(given.worker) {
                continue;
            }
            given.asked = true;
            effects.push(Effect::Save {
                cut: self.cut,
                task: *task,
                worker: given.worker,
                generation: self.generation,
                at_rest: self.at_rest,
                checkpoint: self.checkpoint,
                position,
                keep: unfinished
                    .iter()
                    .filter(|(other, worker)| other != task && *worker == given.worker)
                    .map(|(other, _)| *other)
                    .collect(),
            });
        }
    }
}

impl Given {
    fn nothing(worker: NodeId) -> Given {
        Given {
            worker,
            objects: Vec::new(),
            position: Some(SavePosition::Start),
            asked: false,
            failed: 0,
            not_before: Tick(0),
        }
    }
}

fn is_given_up(failed: u32, code: ErrorCode) -> bool {
    let attempts = match code {
        ErrorCode::ObjectStoreUnavailable => ATTEMPTS_AT_STORE,
        _ => ATTEMPTS,
    };
    failed >= attempts
}
