//! Model: a job that comes to be divided into other tasks while it runs, or does not after all.
//!
//! The tasks of the next division have other ids, and go to the worker that has none of this one. Its user maybe
//! thinks again. Workers make the tasks of the next division of what those of this one seal, and say so late, again,
//! or never.

use std::collections::BTreeSet;
use std::sync::Arc;

use common::ids::{CheckpointId, Generation, NodeId, StageId, TaskId, WorkerEpoch};
use common::limits::CUT_OVER_TIMEOUT;
use common::protocol::checkpoint::CheckpointKind;
use common::protocol::job::JobState;
use common::protocol::task::TaskState;
use coordinator::checkpoint::machine::Event as CheckpointEvent;
use coordinator::job::facts::Proposal;
use coordinator::job::machine::{Event, JobMachine};
use coordinator::metadata::command::Command;
use coordinator::metadata::division::{Dividing, PlannedDivision};
use coordinator::metadata::jobs::JobRow;
use coordinator::placement::tasks::JobShape;
use worker::job::assignment::successors_here;

use super::{Ack, Action, Begins, Generations, Left, Settled, State, Wish, Worker};
use crate::models::explorer::{Model, Property, digest};
use crate::models::facts::graph;
use crate::sim::tally::renumbered;

/// What is known of divisions that no machine knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Divisions {
    /// After these sources read nothing, and those of them that are cut-overs.
    last: BTreeSet<CheckpointId>,
    cut_overs: BTreeSet<CheckpointId>,
    /// What workers have of tasks of a next division, and may say at any time.
    held: BTreeSet<Hold>,
    taken: Vec<Taken>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hold {
    worker: usize,
    epoch: WorkerEpoch,
    generation: Generation,
    task: TaskId,
    checkpoint: CheckpointId,
}

/// A generation that began with another division.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Taken {
    generation: Generation,
    at: Option<CheckpointId>,
    was_cut_over: bool,
    /// Everything of it was where it is to run.
    was_held: bool,
}

impl Divisions {
    pub(super) fn injected(&mut self, checkpoint: CheckpointId, kind: CheckpointKind) {
        if kind.is_last() {
            self.last.insert(checkpoint);
        }
        if kind == CheckpointKind::CutOver {
            self.cut_overs.insert(checkpoint);
        }
    }
}

pub(super) fn properties(scope: &Generations) -> Vec<Property<State>> {
    let mut properties: Vec<Property<State>> = vec![
        Property::always(
            "another division begins at the last checkpoint of the one before",
            |state| {
                let mut taken = state.divisions.taken.iter();
                taken.all(|taken| taken.at.is_none() || taken.was_cut_over)
            },
        ),
        Property::always(
            "another division begins with everything of it where it is to run",
            |state| {
                let mut taken = state.divisions.taken.iter();
                taken.all(|taken| taken.at.is_none() || taken.was_held)
            },
        ),
        Property::always(
            "nothing of a division is completed after its end",
            |state| {
                state.divisions.taken.iter().all(|taken| {
                    let mut completed = state.completed.iter();
                    completed.all(|(generation, checkpoint, _)| {
                        (*generation < taken.generation) == (Some(*checkpoint) <= taken.at)
                    })
                })
            },
        ),
        Property::always("a generation has the tasks of one division", |state| {
            let row = state.row();
            let shape = JobShape::of(&row.graph);
            let deployment = row.deployment.as_ref();
            let deployed = deployment.is_none_or(|deployment| {
                let tasks = deployment.tasks.iter().map(|assigned| assigned.task);
                tasks.eq(shape.tasks()) && state.shapes[&row.generation] == shape
            });
            let mut runs = state.workers.iter().filter_map(|of| of.runs.as_ref());
            deployed
                && runs.all(|(generation, tasks)| {
                    let of_generation: BTreeSet<TaskId> =
                        state.shapes[generation].tasks().collect();
                    tasks.is_subset(&of_generation)
                })
        }),
        Property::always("it is known that sources have stopped", |state| {
            let facts = state.machine.facts();
            let runs = facts.running.is_some() && state.have_stopped(facts.generation);
            !runs || facts.halting || facts.cutting_over
        }),
        Property::sometimes("another division runs", |state| {
            let mut taken = state.divisions.taken.iter();
            let row = state.row();
            row.state == JobState::Running
                && taken.any(|taken| taken.generation == row.generation && taken.at.is_some())
        }),
    ];
    let withdrawn = scope.wishes > u8::from(scope.begins == Begins::Checkpointed);
    if withdrawn {
        properties.push(Property::sometimes(
            "it is not wanted any more when sources have stopped",
            |state| state.row().halting && state.have_stopped(state.row().generation),
        ));
    }
    if withdrawn || scope.failures + scope.delays > 0 {
        properties.push(Property::sometimes(
            "the division stays what it was after a last checkpoint",
            |state| {
                let row = state.row();
                row.state == JobState::Running
                    && state.divisions.taken.is_empty()
                    && !state.have_stopped(row.generation)
                    && state.generations().any(|before| state.have_stopped(before))
            },
        ));
    }
    if scope.delays > 0 {
        properties.push(Property::sometimes("it is given up", |state| {
            let row = state.row();
            row.division.is_none() && state.divisions.taken.is_empty() && row.stages_used > 0
        }));
    }
    properties
}

/// The division that begins with this stage. `to`: where its tasks go.
pub(super) fn planned(first: StageId, to: Option<NodeId>) -> PlannedDivision {
    let graph = renumbered(graph(), first);
    let places = to
        .into_iter()
        .flat_map(|to| graph.tasks().map(move |task| (task, to)));
    PlannedDivision {
        parallelism: 1,
        places: places.collect(),
        graph: Arc::new(graph),
        update: None,
    }
}

pub(super) fn first_stage_wanted(row: &JobRow) -> Option<StageId> {
    let division = row.division.as_ref()?;
    division.graph.stages.first().map(|stage| stage.id)
}

/// What is prepared is taken where a cut-over was to begin.
pub(super) fn begin_at_once(machine: &JobMachine, proposal: Proposal) -> Proposal {
    let running = machine.facts().running.as_ref();
    let next = running.and_then(|running| running.next.clone());
    match (proposal, next) {
        (Proposal::CutOver { generation }, Some(next)) => Proposal::Start {
            generation,
            dividing: Dividing::Anew,
            tasks: next.tasks,
            standbys: next.standbys,
            state: JobState::Deploying,
            reason: String::new(),
            failure: None,
        },
        (proposal, _) => proposal,
    }
}

impl Generations {
    /// Goes on to where this scope begins, in one of the orders there are.
    pub(super) fn begin(&self, state: &mut State) {
        if self.begins > Begins::Deployed {
            self.go_on_until(state, |state| state.row().completed.is_some());
        }
        if self.begins > Begins::Checkpointed {
            self.wish(state, Wish::Divide);
            self.go_on_until(state, |state| state.row().cutting_over);
        }
    }

    fn go_on_until(&self, state: &mut State, is_there: impl Fn(&State) -> bool) {
        let left = std::mem::replace(
            &mut state.left,
            Left {
                ticks: u8::MAX,
                failures: 0,
                successors: 0,
                wishes: 0,
                delays: 0,
            },
        );
        while !is_there(state) || !state.proposed.is_empty() {
            let before = digest(self, state);
            let news = self.actions(state).into_iter().find_map(|action| {
                let mut next = state.clone();
                let waits = matches!(action, Action::TimePasses);
                self.act(&mut next, action);
                (!waits && digest(self, &next) != before).then_some(next)
            });
            match news {
                Some(next) => *state = next,
                None => self.act(state, Action::TimePasses),
            }
        }
        state.left = left;
    }

    pub(super) fn dividing(
        &self,
        state: &State,
        (wishes, delays): (u8, u8),
        actions: &mut Vec<Action>,
    ) {
        let row = state.row();
        if wishes > 0 {
            actions.push(Action::Wish(match row.division {
                None => Wish::Divide,
                Some(_) => Wish::Withdraw,
            }));
        }
        if delays > 0 && row.cutting_over {
            actions.push(Action::CutOverTakesLong);
        }
        for (index, worker) in state.workers.iter().enumerate() {
            let to_prepare = state.to_prepare(index, worker);
            actions.extend(to_prepare.map(|(task, at)| Action::Hold(index, task, at)));
        }
        // In its own life it would say nothing new.
        let late = state.divisions.held.iter().filter(|hold| {
            let worker = &state.workers[hold.worker];
            let checked = state
                .checkpoints
                .check(hold.generation, worker.node, hold.epoch);
            hold.epoch != worker.epoch && checked.is_ok()
        });
        actions.extend(late.map(|hold| Action::HoldLate(*hold)));
    }

    pub(super) fn wish(&self, state: &mut State, wish: Wish) {
        let (job, row) = (state.job, state.row());
        let first_stage = row.next_stage();
        let runs_nothing = |worker: &&Worker| {
            let deployment = row.deployment.as_ref();
            let mut tasks = deployment.into_iter().flat_map(|of| &of.tasks);
            !tasks.any(|task| task.worker == worker.node)
        };
        let to = state.workers.iter().find(runs_nothing);
        let division = match wish {
            Wish::Divide => Some(planned(first_stage, to.map(|worker| worker.node))),
            Wish::Withdraw => None,
        };
        let wanted = Arc::make_mut(&mut state.facts).command(Command::Divide {
            job,
            first_stage,
            division,
        });
        wanted.expect("the job is not over");
        self.tell_facts(state);
    }

    /// A worker has made all of a task up to a checkpoint, and says so.
    pub(super) fn prepared(
        &self,
        state: &mut State,
        worker: usize,
        task: TaskId,
        checkpoint: CheckpointId,
    ) {
        let hold = Hold {
            worker,
            epoch: state.workers[worker].epoch,
            generation: state.row().generation,
            task,
            checkpoint,
        };
        state.divisions.held.insert(hold);
        self.hold(state, hold);
    }

    pub(super) fn hold(&self, state: &mut State, hold: Hold) {
        let worker = state.workers[hold.worker].node;
        let checked = state.checkpoints.check(hold.generation, worker, hold.epoch);
        if checked.is_ok() {
            let event = CheckpointEvent::Held {
                worker,
                generation: hold.generation,
                held: vec![(hold.task, hold.checkpoint)],
            };
            self.tell_checkpoints(state, event);
        }
    }

    /// Whoever prepares a task says, it seems, that all of it is there.
    pub(super) fn invent_holds(&self, state: &mut State, ack: Ack) {
        for (task, workers) in state.machine.team().next {
            for worker in workers {
                let event = CheckpointEvent::Held {
                    worker,
                    generation: ack.generation,
                    held: vec![(task, ack.checkpoint)],
                };
                self.tell_checkpoints(state, event);
            }
        }
    }

    pub(super) fn cut_over_takes_long(&self, state: &mut State) {
        state.now = state.now.plus(CUT_OVER_TIMEOUT);
        self.tell_job(state, Event::TimePassed);
        self.tell_checkpoints(state, CheckpointEvent::TimePassed);
    }

    /// What the job machine has proposed becomes a fact, or not.
    pub(super) fn decide(&self, state: &mut State, command: Command) -> Settled {
        let anew = matches!(
            command,
            Command::StartGeneration {
                dividing: Dividing::Anew,
                ..
            }
        );
        let before = state.row().clone();
        let outcome = Arc::make_mut(&mut state.facts).command(command);
        let row = state.row();
        if row.generation > before.generation {
            let (generation, shape) = (row.generation, JobShape::of(&row.graph));
            if anew {
                let taken = state.taken(&before);
                state.divisions.taken.push(taken);
            }
            state.shapes.insert(generation, shape);
        }
        Settled::Job(outcome)
    }
}

impl State {
    /// Whether sources of a generation read nothing any more.
    pub(super) fn have_stopped(&self, generation: Generation) -> bool {
        let mut sealed = self.sealed.iter();
        sealed.any(|ack| {
            let mut sources = self.shapes[&ack.generation].sources();
            ack.generation == generation
                && self.divisions.last.contains(&ack.checkpoint)
                && sources.any(|source| source == ack.task)
        })
    }

    /// How a task says that it is: finished once a last checkpoint that it has sealed is complete.
    pub(super) fn standing(&self, generation: Generation, task: TaskId) -> TaskState {
        let mut completed = self.completed.iter();
        let finished = completed.any(|(of, checkpoint, _)| {
            *of == generation && self.divisions.last.contains(checkpoint)
        });
        match finished && self.shapes[&generation].tasks().any(|of| of == task) {
            true => TaskState::Finished,
            false => TaskState::Running,
        }
    }

    fn generations(&self) -> impl Iterator<Item = Generation> + '_ {
        self.shapes.keys().copied()
    }

    /// Tasks that are prepared on a worker, and up to where all that they are made of is sealed now.
    fn to_prepare(
        &self,
        index: usize,
        worker: &Worker,
    ) -> impl Iterator<Item = (TaskId, CheckpointId)> {
        let (row, facts) = (self.row(), self.machine.facts());
        let deployment = row.deployment.as_ref().filter(|_| worker.up);
        let here = deployment.map(|deployment| successors_here(deployment, worker.node));
        let predecessors = facts.wanted.as_ref().map(|wanted| &wanted.predecessors);
        let reach = move |task: &TaskId| {
            let of = predecessors?.get(task)?.iter();
            let sealed = of.map(|of| self.sealed_last(row.generation, *of).max(row.completed));
            sealed.min().flatten()
        };
        let held = move |task: TaskId| {
            let held = self.divisions.held.iter().filter(move |hold| {
                (hold.worker, hold.epoch) == (index, worker.epoch)
                    && (hold.generation, hold.task) == (row.generation, task)
            });
            held.map(|hold| hold.checkpoint).max()
        };
        let here = here.into_iter().flatten();
        here.filter_map(move |task| {
            let reach = reach(&task)?;
            (held(task) < Some(reach)).then_some((task, reach))
        })
    }

    fn sealed_last(&self, generation: Generation, task: TaskId) -> Option<CheckpointId> {
        let sealed = self.sealed.iter();
        let sealed = sealed.filter(|ack| (ack.generation, ack.task) == (generation, task));
        sealed.map(|ack| ack.checkpoint).max()
    }

    /// What has just begun, and what is true of it.
    fn taken(&self, before: &JobRow) -> Taken {
        let row = self.row();
        let deployment = row.deployment.as_ref().expect("it has just begun");
        let held = |task: TaskId| {
            let worker = deployment.worker_of(task);
            self.divisions.held.iter().any(|hold| {
                self.workers[hold.worker].node == worker
                    && hold.generation == before.generation
                    && (hold.task, Some(hold.checkpoint)) == (task, before.completed)
            })
        };
        let shape = JobShape::of(&row.graph);
        let mut with_state = shape.tasks().filter(|task| shape.has_state(*task));
        let cut_overs = &self.divisions.cut_overs;
        let completed = before.completed;
        Taken {
            generation: row.generation,
            at: deployment.restore,
            was_cut_over: completed.is_some_and(|last| cut_overs.contains(&last)),
            was_held: with_state.all(held),
        }
    }
}
