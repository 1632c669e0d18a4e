//! For tests: a job and a small model of the metadata around it.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{
    CheckpointId, Generation, MetadataVersion, NodeId, StageId, TaskId, WorkerEpoch,
};
use common::protocol::job::JobState::{self, *};
use common::protocol::task::TaskState;
use common::time::{Span, Tick};

use super::facts::*;
use super::machine::*;
use super::wishes::*;
use crate::metadata::division::Dividing;
use crate::metadata::jobs::Desired;
use crate::placement::tasks::{JobShape, StageShape};

/// A job of two stages, two instances, on workers 1 and 2 with two slots each; and the metadata around
/// it, which applies every proposal that is of the current generation.
pub(super) struct World {
    pub(super) now: Tick,
    pub(super) version: u64,
    pub(super) facts: Facts,
    pub(super) workers: Workers,
    pub(super) machine: JobMachine,
    pub(super) checkpointing: Checkpointing,
    /// What the machine proposed and the metadata has not seen yet.
    pub(super) proposal: Option<Proposal>,
    pub(super) transitions: Vec<(JobState, JobState)>,
    pub(super) failures: Vec<String>,
}

pub(super) const SESSION: Span = Span::from_secs(3);

pub(super) fn shape() -> JobShape {
    let stage = |id, has_source| StageShape {
        id: StageId(id),
        parallelism: 2,
        has_state: true,
        has_source,
        custom: BTreeSet::new(),
    };
    JobShape {
        stages: vec![stage(0, true), stage(1, false)],
    }
}

pub(super) fn room(epoch: u64, free_slots: u32) -> WorkerRoom {
    WorkerRoom {
        epoch: WorkerEpoch(epoch),
        draining: false,
        free_slots,
        operators: BTreeSet::new(),
        rack: None,
    }
}

impl World {
    pub(super) fn new() -> World {
        World::with_workers([(NodeId(1), room(1, 2)), (NodeId(2), room(2, 2))].into())
    }

    pub(super) fn with_workers(workers: Workers) -> World {
        let facts = Facts {
            shape: shape(),
            wanted: None,
            state: Created,
            reason: String::new(),
            desired: Desired::Running,
            generation: Generation(0),
            running: None,
            halting: false,
            cutting_over: false,
            completed: None,
            holders: BTreeMap::new(),
            restoring: false,
        };
        let machine = JobMachine::new(Tick(0), Settings::default(), facts.clone(), workers.clone());
        World {
            now: Tick(0),
            version: 10,
            facts,
            workers,
            machine,
            checkpointing: Checkpointing::Off,
            proposal: None,
            transitions: Vec::new(),
            failures: Vec::new(),
        }
    }

    pub(super) fn tell(&mut self, event: Event) {
        for effect in self.machine.handle(self.now, event) {
            match effect {
                Effect::Propose(proposal) => {
                    assert!(self.proposal.is_none(), "a second proposal is in flight");
                    self.proposal = Some(proposal);
                }
                Effect::Checkpoint(checkpointing) => self.checkpointing = checkpointing,
            }
        }
    }

    pub(super) fn metadata_changed(&mut self) {
        self.tell(Event::MetadataChanged {
            facts: self.facts.clone(),
            workers: self.workers.clone(),
        });
    }

    /// The metadata applies what is proposed, until nothing is.
    pub(super) fn settle(&mut self) {
        while let Some(proposal) = self.proposal.take() {
            self.apply(proposal);
            self.metadata_changed();
            self.tell(Event::ProposalApplied);
        }
    }

    pub(super) fn apply(&mut self, proposal: Proposal) {
        self.version += 1;
        match proposal {
            Proposal::Start {
                generation,
                dividing,
                tasks,
                standbys,
                state,
                reason,
                failure,
            } if generation == self.facts.generation => {
                self.enter(state, reason, failure);
                self.facts.generation = generation.next();
                self.facts.halting = false;
                self.facts.running = Some(RunningTasks {
                    version: MetadataVersion(self.version),
                    worker_of: tasks.iter().map(|a| (a.task, a.worker)).collect(),
                    standbys,
                    next: None,
                });
                self.facts.cutting_over = false;
                match dividing {
                    Dividing::AsBefore => {}
                    Dividing::GivenUp => self.facts.wanted = None,
                    Dividing::Anew => {
                        let wanted = self.facts.wanted.take();
                        self.facts.shape = wanted.expect("it is wanted").shape;
                    }
                }
            }
            Proposal::Halt {
                generation,
                state,
                reason,
                failure,
            } if generation == self.facts.generation => {
                self.enter(state, reason, failure);
                if self.facts.running.take().is_some() {
                    self.facts.generation = generation.next();
                }
                self.facts.halting = false;
                if state.is_terminal() {
                    self.facts.desired = Desired::Stopped;
                }
            }
            Proposal::Run { generation } if generation == self.facts.generation => {
                self.enter(Running, String::new(), None);
            }
            Proposal::StandBy {
                generation,
                standbys,
            } if generation == self.facts.generation => {
                let running = self.facts.running.as_mut().expect("something runs");
                running.standbys = standbys;
            }
            Proposal::Prepare {
                generation,
                next,
                standbys,
            } if generation == self.facts.generation => {
                let running = self.facts.running.as_mut().expect("something runs");
                running.standbys = standbys;
                running.next = Some(next);
            }
            Proposal::CutOver { generation } if generation == self.facts.generation => {
                self.facts.cutting_over = true;
            }
            Proposal::Start { .. }
            | Proposal::Halt { .. }
            | Proposal::Run { .. }
            | Proposal::StandBy { .. }
            | Proposal::Prepare { .. }
            | Proposal::CutOver { .. } => {}
        }
    }

    pub(super) fn enter(&mut self, state: JobState, reason: String, failure: Option<String>) {
        self.transitions.push((self.facts.state, state));
        self.facts.state = state;
        self.facts.reason = reason;
        self.failures.extend(failure);
    }

    pub(super) fn want(&mut self, desired: Desired) {
        if wish(self.facts.state, desired) != Wish::Granted {
            return;
        }
        let was_told = self.facts.desired != Desired::Running && self.facts.desired != desired;
        self.facts.halting |= self.facts.running.is_some() && was_told;
        self.facts.desired = desired;
        self.metadata_changed();
    }

    pub(super) fn report_from(&mut self, worker: NodeId, state: &TaskState) {
        let (Some(running), Some(room)) = (&self.facts.running, self.workers.get(&worker)) else {
            return;
        };
        // A process that was registered after the generation began runs none of its tasks.
        let lives = room.epoch.0 < running.version.0;
        let epoch = room.epoch;
        let here = running.worker_of.iter();
        let here = here.filter(|(_, assigned)| lives && **assigned == worker);
        let tasks = here.map(|(task, _)| (self.facts.generation, *task, state.clone()));
        let tasks = tasks.collect();
        self.tell(Event::TasksReported {
            worker,
            epoch,
            tasks,
        });
    }

    pub(super) fn report(&mut self, state: TaskState) {
        for worker in self.workers.clone().into_keys() {
            self.report_from(worker, &state);
        }
    }

    pub(super) fn fail_task(&mut self, reason: &str, fatal: bool) {
        let failed = TaskState::Failed {
            reason: reason.to_owned(),
            fatal,
        };
        self.report_from(NodeId(1), &failed);
    }

    pub(super) fn complete_checkpoint(&mut self, checkpoint: u64) {
        let running = self.facts.running.as_ref().expect("a generation runs");
        self.facts.completed = Some(CheckpointId(checkpoint));
        let own = running.worker_of.iter();
        let alone = own.map(|(task, worker)| (*task, vec![*worker]));
        self.facts.holders = alone.collect();
        self.metadata_changed();
    }

    pub(super) fn runs_on(&self) -> BTreeMap<TaskId, NodeId> {
        let running = self.facts.running.as_ref().expect("a generation runs");
        running.worker_of.clone()
    }

    pub(super) fn complete_final_checkpoint(&mut self, checkpoint: u64) {
        let generation = self.facts.generation;
        assert!(self.wants_a_last_checkpoint());
        self.complete_checkpoint(checkpoint);
        self.tell(Event::FinalCheckpointCompleted { generation });
        self.settle();
        assert!(self.facts.running.is_some(), "sinks may not be done");
        self.report(TaskState::Finished);
        self.settle();
    }

    pub(super) fn wants_a_last_checkpoint(&self) -> bool {
        let generation = self.facts.generation;
        self.checkpointing == Checkpointing::Final { generation }
            || self.checkpointing == Checkpointing::Drain { generation }
    }

    pub(super) fn lose(&mut self, worker: NodeId) {
        self.workers.remove(&worker);
        self.metadata_changed();
    }

    pub(super) fn register(&mut self, worker: NodeId) {
        self.version += 1;
        self.workers.insert(worker, room(self.version, 2));
        self.metadata_changed();
    }

    pub(super) fn pass(&mut self, span: Span) {
        self.now = self.now.plus(span);
        self.tell(Event::TimePassed);
    }

    pub(super) fn run(mut self) -> World {
        self.metadata_changed();
        self.settle();
        self.report(TaskState::Running);
        self.settle();
        self.expect(Running, "");
        self
    }

    pub(super) fn expect(&self, state: JobState, reason: &str) {
        assert_eq!(
            (self.facts.state, self.facts.reason.as_str()),
            (state, reason)
        );
    }
}

/// Who has each task's state: the worker it runs on and its standbys.
pub(super) fn hold_all(world: &mut World) {
    let running = world.facts.running.clone().unwrap();
    let held = running.worker_of.iter().map(|(task, worker)| {
        let standbys = running.standbys.get(task).into_iter().flatten();
        (
            *task,
            std::iter::once(worker).chain(standbys).copied().collect(),
        )
    });
    world.facts.holders = held.collect();
    world.metadata_changed();
}

/// The last checkpoint is complete, all have it, and what belongs to it is visible.
pub(super) fn cut_over(world: &mut World, checkpoint: u64) {
    let generation = world.facts.generation;
    world.complete_checkpoint(checkpoint);
    hold_all(world);
    world.tell(Event::FinalCheckpointCompleted { generation });
    world.settle();
    world.report(TaskState::Finished);
    world.settle();
}
