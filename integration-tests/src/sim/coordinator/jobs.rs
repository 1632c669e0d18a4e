//! The coordinator's jobs in the world: what their machines are told, and what they want done.

use std::collections::BTreeMap;
use std::sync::Arc;

use common::error::{ErrorCode, Problem};
use common::ids::{CheckpointId, Generation, JobId, MetadataVersion, NodeId, WorkerEpoch};
use common::limits::DEFAULT_SESSION_TIMEOUT;
use common::plan::task_graph::TaskGraph;
use common::protocol::checkpoint::{
    AckCheckpoint, CheckpointKind, InjectBarrier, TaskCounts, TaskSnapshot,
};
use common::protocol::standby::AckStandby;
use common::protocol::task::Standbys;
use common::time::Tick;
use coordinator::checkpoint::machine::{
    CheckpointMachine, Effect as CheckpointEffect, Event as CheckpointEvent, Fence, INJECT_AGAIN,
    Pace, Settings as CheckpointSettings, Team,
};
use coordinator::job::facts::{Facts, Workers, slots_by_job, workers_for};
use coordinator::job::machine::{Effect, Event, JobMachine, Settings};
use coordinator::metadata::command::Command;
use coordinator::metadata::division::PlannedDivision;
use coordinator::metadata::jobs::JobRow;

use super::{MAILBOX_MS, Proposer, Purpose, Reign, Timer};
use crate::sim::env::Env;
use crate::sim::network::Request;
use crate::sim::sabotage::Sabotage;
use crate::sim::tally::{self, Shape};

#[derive(Debug)]
pub(super) struct Job {
    pub(super) machine: JobMachine,
    pub(super) checkpoints: CheckpointMachine,
    /// The facts it was told, and whether it is about to be told newer ones.
    pub(super) version: MetadataVersion,
    pub(super) telling: bool,
    pub(super) job_wake: Option<Tick>,
    pub(super) checkpoint_wake: Option<Tick>,
}

impl Reign {
    pub(super) fn start_job(&mut self, env: &mut Env, job: JobId) {
        let row = self.metadata.job(job).expect("it was listed").clone();
        let settings = Settings {
            restart_budget: row.spec.config.restart_budget as usize,
            standbys: row.spec.config.standbys as usize,
            ..Settings::default()
        };
        let (facts, workers) = self.facts_of(&row);
        let machine = JobMachine::new(env.now, settings, facts, workers);
        let settings = CheckpointSettings {
            pace: Pace {
                interval: row.checkpoint_interval,
                timeout: row.spec.config.checkpoint_timeout,
            },
            session_timeout: DEFAULT_SESSION_TIMEOUT,
        };
        let started = Job {
            machine,
            checkpoints: CheckpointMachine::new(
                settings,
                row.reserved,
                row.completed,
                &row.holders,
            ),
            version: self.metadata.version(),
            telling: true,
            job_wake: None,
            checkpoint_wake: None,
        };
        self.jobs.insert(job, started);
        let delay = env.some_ms(MAILBOX_MS);
        self.after(env, delay, Timer::Facts(job));
    }

    fn facts_of(&self, row: &JobRow) -> (Facts, Workers) {
        let slots = slots_by_job(&self.metadata);
        (Facts::of(row), workers_for(&self.metadata, &slots, row.id))
    }

    pub(super) fn tell_facts(&mut self, env: &mut Env, job: JobId) {
        let Some(row) = self.metadata.job(job).cloned() else {
            return;
        };
        let version = self.metadata.version();
        match self.jobs.get_mut(&job) {
            Some(told) if told.version <= version => told.version = version,
            Some(_) | None => return,
        }
        let (facts, workers) = self.facts_of(&row);
        self.job_event(env, job, Event::MetadataChanged { facts, workers });
    }

    pub(super) fn job_event(&mut self, env: &mut Env, id: JobId, event: Event) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        for effect in job.machine.handle(env.now, event) {
            match effect {
                Effect::Propose(proposal) => {
                    env.trace(|| format!("coordinator: {proposal:?}"));
                    let completed = self.jobs[&id].machine.facts().completed;
                    let row = self.metadata.job(id);
                    let division = row.and_then(|row| row.division.clone());
                    let command = proposal.into_command(id, completed, division.as_ref());
                    self.propose(env, command, Proposer::Job(id));
                }
                Effect::Checkpoint(checkpointing) => {
                    let team = self.jobs[&id].machine.team();
                    let completed = self.jobs[&id].machine.facts().completed;
                    let run = |(generation, kind)| CheckpointEvent::Run {
                        generation,
                        team,
                        kind,
                        completed,
                    };
                    let event = checkpointing.of().map_or(CheckpointEvent::Halt, run);
                    self.checkpoint_event(env, id, event);
                }
            }
        }
        let job = self.jobs.get_mut(&id).expect("it was there a moment ago");
        let wake = job.machine.wake_at();
        if wake != job.job_wake {
            job.job_wake = wake;
            if let Some(at) = wake {
                self.after(env, at.since(env.now), Timer::JobWake(id));
            }
        }
    }

    pub(super) fn checkpoint_event(&mut self, env: &mut Env, id: JobId, event: CheckpointEvent) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        for effect in job.checkpoints.handle(env.now, event) {
            match effect {
                CheckpointEffect::Reserve { generation } => {
                    let job = id;
                    let command = Command::ReserveEpochs { job, generation };
                    self.propose(env, command, Proposer::Reservation(id));
                }
                CheckpointEffect::Inject {
                    worker,
                    generation,
                    checkpoint,
                    kind,
                } => self.inject(env, id, worker, generation, checkpoint, kind),
                CheckpointEffect::Complete(permit) => {
                    let checkpoint = permit.checkpoint();
                    let command = permit.into_command(id);
                    self.propose(env, command, Proposer::Completion(id, checkpoint));
                }
                CheckpointEffect::Completed {
                    generation, kind, ..
                } => {
                    if kind.is_last() {
                        let delay = env.some_ms(MAILBOX_MS);
                        self.after(env, delay, Timer::FinalCheckpoint(id, generation));
                    }
                }
                CheckpointEffect::Aborted { checkpoint, reason } => {
                    env.trace(|| format!("checkpoint {checkpoint} is given up: {reason}"));
                }
            }
        }
        let job = self.jobs.get_mut(&id).expect("it was there a moment ago");
        let wake = job.checkpoints.wake_at();
        if wake != job.checkpoint_wake {
            job.checkpoint_wake = wake;
            if let Some(at) = wake {
                self.after(env, at.since(env.now), Timer::CheckpointWake(id));
            }
        }
    }

    /// What is to be decided if a job shall have as many tasks as this.
    pub(super) fn rescaling(&self, shape: &Shape) -> Result<Command, Problem> {
        let row = self.metadata.jobs_by_name().next();
        let row = row.ok_or_else(|| Problem::new(ErrorCode::UnknownJob, "no such job"))?;
        let tasks = |graph: &TaskGraph| -> Vec<u32> {
            let stages = graph.stages.iter();
            stages.map(|stage| stage.parallelism).collect()
        };
        let graph = tally::task_graph(shape);
        let first_stage = row.next_stage();
        let division = (tasks(&graph) != tasks(&row.graph)).then(|| PlannedDivision {
            parallelism: shape.operators,
            graph: Arc::new(tally::renumbered(graph, first_stage)),
            places: BTreeMap::new(),
            update: None,
        });
        Ok(Command::Divide {
            job: row.id,
            first_stage,
            division,
        })
    }

    fn inject(
        &mut self,
        env: &mut Env,
        job: JobId,
        worker: NodeId,
        generation: Generation,
        checkpoint: CheckpointId,
        kind: CheckpointKind,
    ) {
        let Some(process) = self.process_of(worker) else {
            return;
        };
        let barrier = InjectBarrier {
            control_epoch: self.metadata.control_epoch(),
            worker,
            job,
            generation,
            checkpoint,
            kind,
        };
        let request = Request::Inject(barrier);
        let me = (self.me(), self.life);
        let call = env.call(me, process, request, INJECT_AGAIN);
        let purpose = Purpose::Inject {
            job,
            worker,
            generation,
            checkpoint,
        };
        self.calls.insert(call, purpose);
    }

    pub(super) fn check(
        &self,
        job: JobId,
        generation: Generation,
        worker: NodeId,
        epoch: WorkerEpoch,
    ) -> Result<(), Problem> {
        let Some(known) = self.jobs.get(&job) else {
            return Err(Problem::new(ErrorCode::UnknownJob, "no such job"));
        };
        let checked = known.checkpoints.check(generation, worker, epoch);
        checked.map_err(|fence| {
            let code = match fence {
                Fence::PastGeneration => ErrorCode::FencedGeneration,
                Fence::FutureGeneration => ErrorCode::MetadataStale,
                Fence::WorkerEpoch => ErrorCode::FencedWorkerEpoch,
            };
            Problem::new(code, format!("{fence:?}"))
        })
    }

    pub(super) fn acknowledge(&mut self, env: &mut Env, ack: AckCheckpoint) -> Result<(), Problem> {
        self.check(ack.job, ack.generation, ack.worker, ack.worker_epoch)?;
        if env.sabotaged(Sabotage::NameUnheard) {
            self.invent_holders(env, &ack, |team| team.standbys);
        }
        if env.sabotaged(Sabotage::CutOverUnheard) {
            self.invent_holders(env, &ack, |team| team.next);
        }
        let once = (ack.job, ack.generation, ack.checkpoint);
        let sabotaged = env.sabotaged(Sabotage::CompleteWithoutOne);
        let invented = match sabotaged && self.invented.insert(once) {
            true => self.invent_one(&ack),
            false => None,
        };
        let event = |worker, tasks| CheckpointEvent::Acknowledged {
            worker,
            generation: ack.generation,
            checkpoint: ack.checkpoint,
            tasks,
        };
        self.checkpoint_event(env, ack.job, event(ack.worker, ack.tasks));
        if let Some((worker, snapshot)) = invented {
            self.checkpoint_event(env, ack.job, event(worker, vec![snapshot]));
        }
        Ok(())
    }

    pub(super) fn hold(&mut self, env: &mut Env, ack: AckStandby) -> Result<(), Problem> {
        self.check(ack.job, ack.generation, ack.worker, ack.worker_epoch)?;
        let event = CheckpointEvent::Held {
            worker: ack.worker,
            generation: ack.generation,
            held: ack.held,
        };
        self.checkpoint_event(env, ack.job, event);
        Ok(())
    }

    /// Whoever is to be a holder says, it seems, that it has the checkpoint.
    fn invent_holders(
        &mut self,
        env: &mut Env,
        ack: &AckCheckpoint,
        holders: fn(Team) -> Standbys,
    ) {
        let Some(job) = self.jobs.get(&ack.job) else {
            return;
        };
        for (task, workers) in holders(job.machine.team()) {
            for worker in workers {
                let event = CheckpointEvent::Held {
                    worker,
                    generation: ack.generation,
                    held: vec![(task, ack.checkpoint)],
                };
                self.checkpoint_event(env, ack.job, event);
            }
        }
    }

    /// An acknowledgement, by the worker that runs it, of a task that this one does not speak of.
    fn invent_one(&self, ack: &AckCheckpoint) -> Option<(NodeId, TaskSnapshot)> {
        let team = self.jobs.get(&ack.job)?.machine.team();
        let spoken_of = |task| ack.tasks.iter().any(|snapshot| snapshot.task == task);
        let (task, worker) = team
            .worker_of
            .iter()
            .find(|(task, _)| !team.sources.contains(task) && !spoken_of(**task))?;
        let snapshot = TaskSnapshot {
            task: *task,
            delta_bytes: 0,
            state_bytes: 0,
            positions: BTreeMap::new(),
            counts: TaskCounts::default(),
        };
        Some((*worker, snapshot))
    }
}
