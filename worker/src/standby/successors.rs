//! Decides how the tasks of a job's next division are prepared here, of the state of those they take the place of.
//!
//! One step at a time is under way: what others have sealed goes to successors that have begun before another one
//! begins, so that they stay close behind.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{CheckpointId, TaskId};
use common::time::{Span, Tick};

/// After a step that failed.
const PAUSE: Span = Span::from_millis(250);

/// A task that is to be prepared, those whose state it needs, and up to where all of it is here from before.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Prepared {
    pub task: TaskId,
    pub predecessors: BTreeSet<TaskId>,
    pub held: Option<CheckpointId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// These are all.
    Prepare(Vec<Prepared>),
    /// What is here of predecessors, and the last completed checkpoint.
    Grown {
        held: BTreeMap<TaskId, CheckpointId>,
        completed: Option<CheckpointId>,
    },
    /// The step that was under way has brought these tasks so far, or not.
    Reached(BTreeMap<TaskId, Option<CheckpointId>>),
    TimePassed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    Take(Step),
    /// Everything up to these checkpoints is on the disk.
    Acknowledge(Vec<(TaskId, CheckpointId)>),
}

/// What gets tasks further.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Everything at a completed checkpoint.
    Begin { task: TaskId, at: CheckpointId },
    /// From what is here from before.
    GoOn { task: TaskId, at: CheckpointId },
    /// From one checkpoint to another, each, or as far as one step goes.
    Advance(Vec<(TaskId, CheckpointId, CheckpointId)>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SuccessorsMachine {
    tasks: BTreeMap<TaskId, Preparing>,
    held: BTreeMap<TaskId, CheckpointId>,
    completed: Option<CheckpointId>,
    /// What the step that is under way is about.
    under_way: BTreeSet<TaskId>,
    not_before: Tick,
    /// The time of the last event: what was due by then has been done, or waits for something else.
    asked: Tick,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Preparing {
    predecessors: BTreeSet<TaskId>,
    /// Here from before, and nothing was done with it yet.
    found: Option<CheckpointId>,
    held: Option<CheckpointId>,
    acknowledged: Option<CheckpointId>,
}

impl SuccessorsMachine {
    /// Applies one event. Deterministic: same machine, same event, same time, same effects.
    pub fn handle(&mut self, now: Tick, event: Event) -> Vec<Effect> {
        self.asked = now;
        match event {
            Event::Prepare(tasks) => self.prepare(tasks),
            Event::Grown { held, completed } => {
                self.held = held;
                self.completed = completed;
            }
            Event::Reached(reached) => self.reached(now, reached),
            Event::TimePassed => {}
        }
        let mut effects = Vec::new();
        self.acknowledge(&mut effects);
        self.next_step(now, &mut effects);
        effects
    }

    /// When the machine wants to be asked again, if nothing happens before.
    pub fn wake_at(&self) -> Option<Tick> {
        (self.not_before > self.asked).then_some(self.not_before)
    }

    fn prepare(&mut self, tasks: Vec<Prepared>) {
        let mut before = std::mem::take(&mut self.tasks);
        for Prepared {
            task,
            predecessors,
            held: found,
        } in tasks
        {
            let preparing = before.remove(&task).unwrap_or(Preparing {
                predecessors,
                found,
                held: None,
                acknowledged: None,
            });
            self.tasks.insert(task, preparing);
        }
    }

    fn reached(&mut self, now: Tick, reached: BTreeMap<TaskId, Option<CheckpointId>>) {
        let under_way = std::mem::take(&mut self.under_way);
        assert!(
            reached.keys().eq(&under_way),
            "{under_way:?} were under way, not {reached:?}"
        );
        for (task, held) in reached {
            // It may not be wanted any more.
            if let Some(preparing) = self.tasks.get_mut(&task) {
                if held.is_none() || held == preparing.held {
                    self.not_before = now.plus(PAUSE);
                }
                preparing.held = held;
                preparing.found = None;
            }
        }
    }

    fn acknowledge(&mut self, effects: &mut Vec<Effect>) {
        let news = self.tasks.iter_mut().filter_map(|(task, preparing)| {
            let held = preparing.held?;
            let is_new = preparing.acknowledged < Some(held);
            preparing.acknowledged = Some(held);
            is_new.then_some((*task, held))
        });
        let news: Vec<_> = news.collect();
        if !news.is_empty() {
            effects.push(Effect::Acknowledge(news));
        }
    }

    fn next_step(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        if !self.under_way.is_empty() || now < self.not_before {
            return;
        }
        let advances = self.tasks.iter().filter_map(|(task, preparing)| {
            let (from, to) = (preparing.held?, self.reach(preparing)?);
            (from < to).then_some((*task, from, to))
        });
        let advances: Vec<_> = advances.collect();
        if !advances.is_empty() {
            self.under_way = advances.iter().map(|(task, _, _)| *task).collect();
            effects.push(Effect::Take(Step::Advance(advances)));
            return;
        }
        let Some(at) = self.completed else { return };
        let mut waiting = self
            .tasks
            .iter()
            .filter(|(_, preparing)| preparing.held.is_none());
        let ready = waiting.find(|(_, preparing)| self.reach(preparing) >= Some(at));
        if let Some((task, preparing)) = ready {
            self.under_way.insert(*task);
            let task = *task;
            // What is older is of no use: of what came after it something may have gone.
            effects.push(Effect::Take(
                match preparing.found.filter(|found| *found >= at) {
                    Some(found) => Step::GoOn { task, at: found },
                    None => Step::Begin { task, at },
                },
            ));
        }
    }

    /// The checkpoint up to which everything of its predecessors is here.
    fn reach(&self, preparing: &Preparing) -> Option<CheckpointId> {
        let held = preparing.predecessors.iter().map(|of| self.held.get(of));
        held.min().flatten().copied()
    }
}

#[cfg(test)]
mod tests {
    use common::ids::StageId;

    use super::*;

    fn task(stage: u16, index: u32) -> TaskId {
        TaskId {
            stage: StageId(stage),
            index,
        }
    }

    fn prepared(index: u32, predecessors: &[u32]) -> Prepared {
        Prepared {
            task: task(9, index),
            predecessors: predecessors.iter().map(|of| task(1, *of)).collect(),
            held: None,
        }
    }

    fn found(index: u32, predecessors: &[u32], held: u64) -> Prepared {
        Prepared {
            held: Some(CheckpointId(held)),
            ..prepared(index, predecessors)
        }
    }

    fn grown(held: &[u64], completed: Option<u64>) -> Event {
        let held = (0..).zip(held);
        Event::Grown {
            held: held
                .map(|(of, at)| (task(1, of), CheckpointId(*at)))
                .collect(),
            completed: completed.map(CheckpointId),
        }
    }

    fn reached(tasks: &[(u32, Option<u64>)]) -> Event {
        let tasks = tasks.iter();
        Event::Reached(
            tasks
                .map(|(index, held)| (task(9, *index), held.map(CheckpointId)))
                .collect(),
        )
    }

    fn begin(index: u32, at: u64) -> Effect {
        Effect::Take(Step::Begin {
            task: task(9, index),
            at: CheckpointId(at),
        })
    }

    fn go_on(index: u32, at: u64) -> Effect {
        Effect::Take(Step::GoOn {
            task: task(9, index),
            at: CheckpointId(at),
        })
    }

    fn advance(tasks: &[(u32, u64, u64)]) -> Effect {
        let tasks = tasks.iter();
        let tasks = tasks
            .map(|(index, from, to)| (task(9, *index), CheckpointId(*from), CheckpointId(*to)));
        Effect::Take(Step::Advance(tasks.collect()))
    }

    fn acknowledge(tasks: &[(u32, u64)]) -> Effect {
        let tasks = tasks.iter();
        Effect::Acknowledge(
            tasks
                .map(|(index, held)| (task(9, *index), CheckpointId(*held)))
                .collect(),
        )
    }

    #[test]
    fn it_begins_once_all_of_its_predecessors_is_here_and_follows_them() {
        let mut machine = SuccessorsMachine::default();
        let mut handle = |event| machine.handle(Tick(0), event);
        let tasks = vec![prepared(0, &[0, 1]), prepared(1, &[1])];
        assert_eq!(handle(Event::Prepare(tasks)), []);
        // Of task 0 not everything is here up to the completed one.
        assert_eq!(handle(grown(&[3, 4], Some(4))), [begin(1, 4)]);
        assert_eq!(handle(grown(&[5, 5], Some(4))), []);
        let effects = handle(reached(&[(1, Some(4))]));
        assert_eq!(effects, [acknowledge(&[(1, 4)]), advance(&[(1, 4, 5)])]);
        let effects = handle(reached(&[(1, Some(5))]));
        assert_eq!(effects, [acknowledge(&[(1, 5)]), begin(0, 4)]);
        assert_eq!(handle(grown(&[6, 7], Some(5))), []);
        let effects = handle(reached(&[(0, Some(4))]));
        let both = advance(&[(0, 4, 6), (1, 5, 7)]);
        assert_eq!(effects, [acknowledge(&[(0, 4)]), both]);
    }

    #[test]
    fn what_is_here_from_before_goes_on_unless_it_is_too_old() {
        let mut machine = SuccessorsMachine::default();
        let mut handle = |event| machine.handle(Tick(0), event);
        handle(Event::Prepare(vec![found(0, &[0], 6), found(1, &[0], 4)]));
        assert_eq!(handle(grown(&[7], Some(5))), [go_on(0, 6)]);
        let effects = handle(reached(&[(0, Some(6))]));
        assert_eq!(effects, [acknowledge(&[(0, 6)]), advance(&[(0, 6, 7)])]);
        let effects = handle(reached(&[(0, Some(7))]));
        assert_eq!(effects, [acknowledge(&[(0, 7)]), begin(1, 5)]);
    }

    #[test]
    fn what_was_here_from_before_and_does_not_meet_what_followed_begins_anew() {
        let mut machine = SuccessorsMachine::default();
        machine.handle(Tick(0), Event::Prepare(vec![found(0, &[0], 6)]));
        let effects = machine.handle(Tick(0), grown(&[7], Some(5)));
        assert_eq!(effects, [go_on(0, 6)]);
        machine.handle(Tick(0), reached(&[(0, Some(6))]));
        assert_eq!(machine.handle(Tick(1), reached(&[(0, None)])), []);
        let at = machine.wake_at().unwrap();
        assert_eq!(machine.handle(at, Event::TimePassed), [begin(0, 5)]);
    }

    #[test]
    fn what_failed_begins_anew_after_a_while() {
        let mut machine = SuccessorsMachine::default();
        machine.handle(Tick(0), Event::Prepare(vec![prepared(0, &[0])]));
        let effects = machine.handle(Tick(0), grown(&[3], Some(2)));
        assert_eq!(effects, [begin(0, 2)]);
        let effects = machine.handle(Tick(1), reached(&[(0, Some(2))]));
        assert_eq!(effects, [acknowledge(&[(0, 2)]), advance(&[(0, 2, 3)])]);
        assert_eq!(machine.wake_at(), None);
        assert_eq!(machine.handle(Tick(5), reached(&[(0, None)])), []);
        let at = machine.wake_at().unwrap();
        assert_eq!(at, Tick(5).plus(PAUSE));
        assert_eq!(machine.handle(at, Event::TimePassed), [begin(0, 2)]);
    }

    #[test]
    fn what_is_not_wanted_any_more_is_forgotten_also_in_the_middle_of_a_step() {
        let mut machine = SuccessorsMachine::default();
        machine.handle(Tick(0), Event::Prepare(vec![prepared(0, &[0])]));
        let effects = machine.handle(Tick(0), grown(&[3], Some(3)));
        assert_eq!(effects, [begin(0, 3)]);
        machine.handle(Tick(0), Event::Prepare(Vec::new()));
        assert_eq!(machine.handle(Tick(1), reached(&[(0, Some(3))])), []);
        assert_eq!(machine.wake_at(), None);
    }
}
