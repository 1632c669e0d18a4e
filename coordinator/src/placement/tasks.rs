//! Which worker each task of a job runs on.
//!
//! Goals, in this order:
//! 1. A task with state goes to a worker that holds it, since no other can give it back: to where it ran
//!    last, if it may, else to its first standby that has room.
//! 2. A task with custom operators goes to a worker that carries them all: no other can run it.
//! 3. No worker is given more than its free slots. A slot runs one parallel instance of the whole job,
//!    so a job uses as many slots of a worker as it has tasks of one stage there, at the most.
//! 4. Tasks of one instance run side by side, so that rows need not travel.
//! 5. What ran somewhere before runs there again.
//! 6. Instances spread over the workers: fewest instances of this job first, then most free slots.
//!
//! The same problem always has the same solution.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{NodeId, StageId, TaskId};
use common::plan::operator::OperatorSpec;
use common::plan::task_graph::TaskGraph;
use common::protocol::task::TaskAssignment;

/// What placement needs to know of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct JobShape {
    /// In the order of the task graph.
    pub stages: Vec<StageShape>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StageShape {
    pub id: StageId,
    pub parallelism: u32,
    pub has_state: bool,
    pub has_source: bool,
    /// The custom operators its workers must carry.
    pub custom: BTreeSet<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Problem {
    pub shape: JobShape,
    /// The active workers, and the slots this job may use on each: its own included.
    pub free_slots: BTreeMap<NodeId, u32>,
    /// The custom operators that workers carry; one that is not named carries none.
    pub carried: BTreeMap<NodeId, BTreeSet<String>>,
    /// Who has the state of the last completed checkpoint, where it ran first; empty before the first one.
    pub holders: BTreeMap<TaskId, Vec<NodeId>>,
    /// Where tasks ran last.
    pub previous: BTreeMap<TaskId, NodeId>,
}

/// Why a job cannot be placed now.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Unplaceable {
    #[error("needs {needed} slots, {free} are free: {} more must come", needed - free)]
    Slots { needed: u32, free: u32 },
    #[error(
        "needs {needed} slots on worker {worker}, which holds its state and has {free} free: {} more must come",
        needed - free
    )]
    SlotsOfHolder {
        worker: NodeId,
        needed: u32,
        free: u32,
    },
    #[error("waits for {}", describe_missing(missing))]
    Holders {
        /// And of how many tasks each group of workers is needed.
        missing: BTreeMap<Vec<NodeId>, u32>,
    },
    #[error(
        "needs {needed} slots on workers that carry {}, {free} are free there: {} more must come",
        describe_operators(operators),
        needed - free
    )]
    SlotsOfCarriers {
        operators: BTreeSet<String>,
        needed: u32,
        free: u32,
    },
    #[error(
        "worker {worker}, which holds its state, does not carry {}",
        describe_operators(operators)
    )]
    HolderCarriesNot {
        worker: NodeId,
        operators: BTreeSet<String>,
    },
}

/// Places every task, in the order of the task graph.
pub fn place(problem: &Problem) -> Result<Vec<TaskAssignment>, Unplaceable> {
    let mut placement = Placement::new(problem);
    placement.pin_to_holders()?;
    placement.settle_where_it_was();
    placement.spread_the_rest();
    placement.place_what_is_left()?;
    Ok(problem
        .shape
        .tasks()
        .map(|task| TaskAssignment {
            task,
            worker: placement.worker_of[&task],
        })
        .collect())
}

/// How many slots these tasks use on each worker.
pub fn slots_used(
    tasks: impl IntoIterator<Item = (TaskId, NodeId)>,
) -> impl Iterator<Item = (NodeId, u32)> {
    let mut of_stage: BTreeMap<(NodeId, StageId), u32> = BTreeMap::new();
    for (task, worker) in tasks {
        *of_stage.entry((worker, task.stage)).or_default() += 1;
    }
    let mut used: BTreeMap<NodeId, u32> = BTreeMap::new();
    for ((worker, _), tasks) in of_stage {
        let slots = used.entry(worker).or_default();
        *slots = (*slots).max(tasks);
    }
    used.into_iter()
}

impl JobShape {
    pub fn of(graph: &TaskGraph) -> JobShape {
        JobShape {
            stages: graph
                .stages
                .iter()
                .map(|stage| StageShape {
                    id: stage.id,
                    parallelism: stage.parallelism,
                    has_state: stage.has_state(),
                    has_source: stage.source.is_some(),
                    custom: stage
                        .operators
                        .iter()
                        .filter_map(|operator| match &operator.spec {
                            OperatorSpec::Custom(custom) => Some(custom.name.clone()),
                            _ => None,
                        })
                        .collect(),
                })
                .collect(),
        }
    }

    /// Whether a task keeps state.
    pub fn has_state(&self, task: TaskId) -> bool {
        let mut stages = self.stages.iter();
        stages.any(|stage| stage.id == task.stage && stage.has_state)
    }

    /// The slots the job needs.
    pub fn parallelism(&self) -> u32 {
        self.stages
            .iter()
            .map(|stage| stage.parallelism)
            .max()
            .unwrap_or(0)
    }

    pub fn tasks(&self) -> impl Iterator<Item = TaskId> {
        self.stages.iter().flat_map(StageShape::tasks)
    }

    pub fn sources(&self) -> impl Iterator<Item = TaskId> {
        self.stages
            .iter()
            .filter(|stage| stage.has_source)
            .flat_map(StageShape::tasks)
    }
}

impl Problem {
    fn carries(&self, worker: NodeId, operators: &BTreeSet<String>) -> bool {
        carries(&self.carried, worker, operators)
    }
}

/// Whether a worker carries these custom operators.
pub(super) fn carries(
    carried: &BTreeMap<NodeId, BTreeSet<String>>,
    worker: NodeId,
    operators: &BTreeSet<String>,
) -> bool {
    let of_worker = || carried.get(&worker);
    operators.is_empty() || of_worker().is_some_and(|carried| operators.is_subset(carried))
}

impl StageShape {
    pub(super) fn tasks(&self) -> impl Iterator<Item = TaskId> + use<> {
        let stage = self.id;
        (0..self.parallelism).map(move |index| TaskId { stage, index })
    }
}

/// A solution as it is built. An instance's home is where its tasks go that no state pins elsewhere.
struct Placement<'a> {
    problem: &'a Problem,
    worker_of: BTreeMap<TaskId, NodeId>,
    tasks_on: BTreeMap<(NodeId, StageId), u32>,
    home_of: BTreeMap<u32, NodeId>,
    /// The custom operators of the stages that have some.
    custom: BTreeMap<StageId, &'a BTreeSet<String>>,
}

impl<'a> Placement<'a> {
    fn new(problem: &'a Problem) -> Placement<'a> {
        Placement {
            problem,
            worker_of: BTreeMap::new(),
            tasks_on: BTreeMap::new(),
            home_of: BTreeMap::new(),
            custom: problem
                .shape
                .stages
                .iter()
                .filter(|stage| !stage.custom.is_empty())
                .map(|stage| (stage.id, &stage.custom))
                .collect(),
        }
    }

    fn pin_to_holders(&mut self) -> Result<(), Unplaceable> {
        let problem = self.problem;
        let stages = problem.shape.stages.iter();
        let with_state = stages.filter(|stage| stage.has_state);
        let held = with_state.flat_map(|stage| stage.tasks().map(move |task| (stage, task)));
        let held = held.filter_map(|(stage, task)| {
            let holders = problem.holders.get(&task)?;
            Some((stage, task, holders))
        });
        let held: Vec<(&StageShape, TaskId, &Vec<NodeId>)> = held.collect();
        let mut missing: BTreeMap<Vec<NodeId>, u32> = BTreeMap::new();
        for (_, _, holders) in &held {
            if !holders.iter().any(|holder| self.is_active(*holder)) {
                *missing.entry((*holders).clone()).or_default() += 1;
            }
        }
        if !missing.is_empty() {
            return Err(Unplaceable::Holders { missing });
        }
        for (stage, task, _) in held {
            if !self.pin(task, &mut BTreeSet::new()) {
                return Err(self.no_room_at_holders(stage, task));
            }
        }
        Ok(())
    }

    /// Puts a task where its state is. One that is there already makes room if it is held elsewhere, too:
    /// an augmenting path of a matching. `seen`: workers that cannot make room.
    fn pin(&mut self, task: TaskId, seen: &mut BTreeSet<NodeId>) -> bool {
        for holder in self.active_holders(task) {
            if !seen.insert(holder) || !self.runs_on(task, holder) {
                continue;
            }
            if self.fits(task, holder) {
                self.put(task, holder);
                return true;
            }
            let there = self.worker_of.iter();
            let there =
                there.filter(|(other, worker)| other.stage == task.stage && **worker == holder);
            let there: Vec<TaskId> = there.map(|(other, _)| *other).collect();
            for other in there {
                self.take(other);
                if self.pin(other, seen) {
                    self.put(task, holder);
                    return true;
                }
                self.put(other, holder);
            }
        }
        false
    }

    /// Those that may run it, the one where it ran last first.
    fn active_holders(&self, task: TaskId) -> Vec<NodeId> {
        let previous = self.problem.previous.get(&task);
        let holders = self.problem.holders.get(&task).into_iter().flatten();
        let mut active: Vec<NodeId> = holders.copied().filter(|h| self.is_active(*h)).collect();
        active.sort_by_key(|holder| Some(holder) != previous);
        active
    }

    fn is_active(&self, worker: NodeId) -> bool {
        self.problem.free_slots.contains_key(&worker)
    }

    /// Of a task that has active holders.
    fn no_room_at_holders(&self, stage: &StageShape, task: TaskId) -> Unplaceable {
        let holders = self.active_holders(task);
        let Some(worker) = holders.iter().find(|holder| self.runs_on(task, **holder)) else {
            return Unplaceable::HolderCarriesNot {
                worker: holders[0],
                operators: stage.custom.clone(),
            };
        };
        let only_there = |task: &TaskId| self.active_holders(*task) == [*worker];
        let here = self.tasks_on.get(&(*worker, stage.id)).copied();
        let waiting = stage
            .tasks()
            .filter(|task| !self.worker_of.contains_key(task))
            .filter(only_there);
        let waiting = u32::try_from(waiting.count()).expect("a job has at most 2^12 tasks");
        Unplaceable::SlotsOfHolder {
            worker: *worker,
            needed: here.unwrap_or(0) + waiting.max(1),
            free: self.problem.free_slots[worker],
        }
    }

    /// Instances with a pinned task, then those that ran before, take their homes first, so that none of
    /// the others takes their room.
    fn settle_where_it_was(&mut self) {
        for instance in 0..self.problem.shape.parallelism() {
            let pinned = self.first_of(&self.worker_of, instance);
            if let Some(home) = pinned {
                self.settle(instance, home);
            }
        }
        for instance in 0..self.problem.shape.parallelism() {
            let before = self.first_of(&self.problem.previous, instance);
            let Some(home) = before else { continue };
            if !self.home_of.contains_key(&instance) && self.fits_whole(instance, home) {
                self.settle(instance, home);
            }
        }
    }

    fn spread_the_rest(&mut self) {
        for instance in 0..self.problem.shape.parallelism() {
            if self.home_of.contains_key(&instance) {
                continue;
            }
            let workers = self.problem.free_slots.keys().copied();
            let home = workers
                .filter(|worker| self.fits_whole(instance, *worker))
                .min_by_key(|worker| self.crowding(*worker));
            if let Some(home) = home {
                self.settle(instance, home);
            }
        }
    }

    /// What did not fit where its instance lives goes wherever there is room. Stages do not compete for
    /// room, so this finds a place whenever there is one.
    fn place_what_is_left(&mut self) -> Result<(), Unplaceable> {
        let stages = self.problem.shape.stages.iter();
        for (stage, task) in stages.flat_map(|s| s.tasks().map(move |task| (s, task))) {
            if self.worker_of.contains_key(&task) {
                continue;
            }
            let workers = self.problem.free_slots.keys().copied();
            let worker = workers
                .filter(|worker| self.fits(task, *worker))
                .min_by_key(|worker| self.crowding(*worker))
                .ok_or_else(|| self.too_few_slots(stage))?;
            self.put(task, worker);
        }
        Ok(())
    }

    fn too_few_slots(&self, stage: &StageShape) -> Unplaceable {
        let (needed, slots) = (self.problem.shape.parallelism(), &self.problem.free_slots);
        let free: u32 = slots.values().sum();
        if free < needed || stage.custom.is_empty() {
            return Unplaceable::Slots { needed, free };
        }
        let carriers = slots
            .iter()
            .filter(|(worker, _)| self.problem.carries(**worker, &stage.custom));
        Unplaceable::SlotsOfCarriers {
            operators: stage.custom.clone(),
            needed: stage.parallelism,
            free: carriers.map(|(_, free)| free).sum(),
        }
    }

    fn settle(&mut self, instance: u32, home: NodeId) {
        self.home_of.insert(instance, home);
        for task in self.unplaced_of(instance) {
            if self.fits(task, home) {
                self.put(task, home);
            }
        }
    }

    fn put(&mut self, task: TaskId, worker: NodeId) {
        self.worker_of.insert(task, worker);
        *self.tasks_on.entry((worker, task.stage)).or_default() += 1;
    }

    fn take(&mut self, task: TaskId) {
        let worker = self.worker_of.remove(&task).expect("it was placed");
        let tasks = self.tasks_on.entry((worker, task.stage)).or_default();
        *tasks -= 1;
    }

    fn fits(&self, task: TaskId, worker: NodeId) -> bool {
        let tasks = self.tasks_on.get(&(worker, task.stage)).copied();
        let free = self.problem.free_slots.get(&worker).copied();
        self.runs_on(task, worker) && tasks.unwrap_or(0) < free.unwrap_or(0)
    }

    /// Whether a worker carries what a task consists of.
    fn runs_on(&self, task: TaskId, worker: NodeId) -> bool {
        match self.custom.get(&task.stage) {
            Some(custom) => self.problem.carries(worker, custom),
            None => true,
        }
    }

    fn fits_whole(&self, instance: u32, worker: NodeId) -> bool {
        self.unplaced_of(instance)
            .into_iter()
            .all(|task| self.fits(task, worker))
    }

    fn unplaced_of(&self, instance: u32) -> Vec<TaskId> {
        self.of_instance(instance)
            .filter(|task| !self.worker_of.contains_key(task))
            .collect()
    }

    fn of_instance(&self, instance: u32) -> impl Iterator<Item = TaskId> {
        let stages = self.problem.shape.stages.iter();
        stages
            .filter(move |stage| instance < stage.parallelism)
            .map(move |stage| TaskId {
                stage: stage.id,
                index: instance,
            })
    }

    fn first_of(&self, places: &BTreeMap<TaskId, NodeId>, instance: u32) -> Option<NodeId> {
        self.of_instance(instance)
            .find_map(|task| places.get(&task).copied())
    }

    /// Orders workers from the one that should have the next instance to the one that should not.
    fn crowding(&self, worker: NodeId) -> (usize, std::cmp::Reverse<u32>, NodeId) {
        let instances = self
            .home_of
            .values()
            .filter(|home| **home == worker)
            .count();
        let free = self.problem.free_slots[&worker];
        (instances, std::cmp::Reverse(free), worker)
    }
}

fn describe_operators(operators: &BTreeSet<String>) -> String {
    let names: Vec<String> = operators.iter().map(|name| format!("\"{name}\"")).collect();
    names.join(" and ")
}

fn describe_missing(missing: &BTreeMap<Vec<NodeId>, u32>) -> String {
    let groups: Vec<String> = missing
        .iter()
        .map(|(workers, tasks)| {
            let tasks = if *tasks == 1 {
                "1 task".to_owned()
            } else {
                format!("{tasks} tasks")
            };
            let names: Vec<String> = workers.iter().map(NodeId::to_string).collect();
            match workers.len() {
                1 => format!("worker {}, which holds the state of {tasks}", names[0]),
                _ => format!(
                    "one of workers {}, which hold the state of {tasks}",
                    names.join(" and ")
                ),
            }
        })
        .collect();
    groups.join(" and for ")
}
