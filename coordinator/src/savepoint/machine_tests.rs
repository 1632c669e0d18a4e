//! A savepoint from the request to its manifest, and everything that may come between.

use std::collections::BTreeMap;

use proptest::prelude::*;
use uuid::Uuid;

use common::error::ErrorCode;
use common::ids::{CheckpointId, Generation, NodeId, StageId, TaskId};
use common::protocol::savepoint::SavePosition;
use common::savepoint::{ObjectOf, SavedObject};
use common::time::{Span, Tick};

use super::machine::{Effect, Event, Facts, SavepointMachine, Settings, Standing, TRY_AGAIN};
use crate::metadata::savepoints::SavepointOutcome;

const PATIENCE: Span = Span::from_secs(60);
const ASKED: Uuid = Uuid::from_u128(1);

fn task(index: u32) -> TaskId {
    TaskId {
        stage: StageId(1),
        index,
    }
}

fn object(task: TaskId, number: u32) -> SavedObject {
    SavedObject {
        name: format!("{task}/deltas-{number}"),
        bytes: 1,
        crc32c: 0,
        of: ObjectOf::Deltas,
    }
}

fn complete(checkpoint: CheckpointId) -> SavepointOutcome {
    SavepointOutcome::Complete {
        place: "file:///there".parse().unwrap(),
        generation: Generation(1),
        checkpoint,
        bytes: 3,
    }
}

/// Two tasks on the first worker and one on the second.
struct World {
    now: Tick,
    facts: Facts,
    machine: SavepointMachine,
    effects: Vec<Effect>,
}

impl World {
    fn new(standing: Standing, completed: Option<u64>) -> World {
        let givers = [(0, 1), (1, 1), (2, 2)];
        let givers = givers.map(|(index, worker)| (task(index), Some(NodeId(worker))));
        World {
            now: Tick(1_000),
            facts: Facts {
                asked: None,
                generation: Generation(1),
                standing,
                completed: completed.map(CheckpointId),
                givers: givers.into(),
            },
            machine: SavepointMachine::new(Settings { patience: PATIENCE }),
            effects: Vec::new(),
        }
    }

    fn tell(&mut self, event: Event) {
        let effects = self.machine.handle(self.now, event);
        self.effects.extend(effects);
    }

    fn change(&mut self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts);
        self.tell(Event::MetadataChanged(self.facts.clone()));
    }

    fn pass(&mut self, span: Span) {
        self.now = self.now.plus(span);
        self.tell(Event::TimePassed);
    }

    fn ask(&mut self) {
        self.change(|facts| facts.asked = Some(ASKED));
    }

    fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// The saves that were asked for: cut, task, worker, checkpoint, position.
    fn saves(&mut self) -> Vec<(u32, TaskId, NodeId, CheckpointId, SavePosition)> {
        let saves = self.take().into_iter().filter_map(|effect| match effect {
            Effect::Save {
                cut,
                task,
                worker,
                checkpoint,
                position,
                ..
            } => Some((cut, task, worker, checkpoint, position)),
            Effect::Hurry { .. }
            | Effect::Cut { .. }
            | Effect::Write { .. }
            | Effect::End { .. } => None,
        });
        saves.collect()
    }

    fn saved(&mut self, cut: u32, of: TaskId, number: u32, next: Option<SavePosition>) {
        self.tell(Event::Saved {
            cut,
            task: of,
            object: object(of, number),
            next,
        });
    }

    /// The reason of the failure that is proposed.
    fn failed(&mut self) -> (ErrorCode, String) {
        match self.take().pop() {
            Some(Effect::End {
                outcome: SavepointOutcome::Failed { code, reason },
                ..
            }) => (code, reason),
            other => panic!("it has not failed: {other:?}"),
        }
    }
}

fn after(records: u32) -> SavePosition {
    SavePosition::Deltas {
        base: None,
        records,
        object: 1,
    }
}

#[test]
fn a_running_jobs_savepoint_is_of_a_checkpoint_that_began_after_it_was_asked_for() {
    let mut world = World::new(Standing::Running, Some(5));
    world.ask();
    let hurry = Effect::Hurry {
        asked: ASKED,
        generation: Generation(1),
    };
    assert_eq!(world.take(), [hurry]);
    // Checkpoint 6 was under way when it was asked for.
    world.tell(Event::Hurried {
        asked: ASKED,
        last: CheckpointId(6),
    });
    world.change(|facts| facts.completed = Some(CheckpointId(6)));
    assert_eq!(world.take(), []);
    world.change(|facts| facts.completed = Some(CheckpointId(7)));
    let saves = world.saves();
    // One task of a worker at a time.
    let asked: Vec<(TaskId, NodeId)> = saves.iter().map(|save| (save.1, save.2)).collect();
    assert_eq!(asked, [(task(0), NodeId(1)), (task(2), NodeId(2))]);
    assert!(saves.iter().all(|save| save.3 == CheckpointId(7)));
    // That the job goes on changes nothing.
    world.change(|facts| facts.completed = Some(CheckpointId(8)));
    let cut = saves[0].0;
    world.saved(cut, task(2), 0, None);
    world.saved(cut, task(0), 0, Some(after(4)));
    assert_eq!(
        world.saves(),
        [(cut, task(0), NodeId(1), CheckpointId(7), after(4))]
    );
    world.saved(cut, task(0), 1, None);
    let saves = world.saves();
    assert_eq!(saves.len(), 1);
    assert_eq!((saves[0].1, saves[0].4), (task(1), SavePosition::Start));
    world.saved(cut, task(1), 0, None);
    let objects = [
        (task(0), vec![object(task(0), 0), object(task(0), 1)]),
        (task(1), vec![object(task(1), 0)]),
        (task(2), vec![object(task(2), 0)]),
    ];
    let write = Effect::Write {
        cut,
        objects: objects.into(),
    };
    assert_eq!(world.take(), [write]);
    let outcome = complete(CheckpointId(7));
    world.tell(Event::Written {
        cut,
        outcome: outcome.clone(),
    });
    let end = || Effect::End {
        asked: ASKED,
        outcome: outcome.clone(),
    };
    assert_eq!(world.take(), [end()]);
    world.tell(Event::NotEnded);
    world.pass(TRY_AGAIN);
    assert_eq!(world.take(), [end()], "until it is a fact");
    world.change(|facts| facts.asked = None);
    world.pass(PATIENCE);
    assert_eq!(world.take(), []);
}

#[test]
fn a_job_at_rest_gives_its_last_checkpoint_at_once() {
    let mut world = World::new(Standing::AtRest, Some(5));
    world.ask();
    // What has to wait for its turn is kept until then.
    let kept = world.effects.iter().filter_map(|effect| match effect {
        Effect::Save { task, keep, .. } => Some((*task, keep.clone())),
        Effect::Hurry { .. } | Effect::Cut { .. } | Effect::Write { .. } | Effect::End { .. } => {
            None
        }
    });
    let kept: Vec<(TaskId, Vec<TaskId>)> = kept.collect();
    assert_eq!(kept, [(task(0), vec![task(1)]), (task(2), vec![])]);
    let saves = world.saves();
    assert!(saves.iter().all(|save| save.3 == CheckpointId(5)));
}

#[test]
fn a_job_without_state_of_its_own_is_told_at_once() {
    for (standing, completed) in [(Standing::AtRest, None), (Standing::Restored, Some(5))] {
        let mut world = World::new(standing, completed);
        world.ask();
        assert_eq!(world.failed().0, ErrorCode::Conflict);
    }
}

#[test]
fn what_is_gone_makes_it_begin_again_with_a_newer_checkpoint_and_late_answers_are_ignored() {
    let mut world = World::new(Standing::AtRest, Some(5));
    world.ask();
    let cut = world.saves()[0].0;
    world.facts.completed = Some(CheckpointId(6));
    world.tell(Event::MetadataChanged(world.facts.clone()));
    world.tell(Event::NotSaved {
        cut,
        task: task(0),
        code: ErrorCode::EpochGone,
        reason: "folded".to_owned(),
    });
    let saves = world.saves();
    assert_eq!(saves.len(), 2);
    assert!(
        saves
            .iter()
            .all(|save| save.0 != cut && save.3 == CheckpointId(6))
    );
    world.saved(cut, task(2), 0, None);
    assert_eq!(world.saves(), [], "it is of what was given up");
}

#[test]
fn a_job_that_always_runs_ahead_fails_its_savepoint_in_the_end() {
    let mut world = World::new(Standing::AtRest, Some(5));
    world.ask();
    for _ in 0..4 {
        let cut = world.saves()[0].0;
        let (code, reason) = (ErrorCode::EpochGone, "folded".to_owned());
        world.tell(Event::NotSaved {
            cut,
            task: task(0),
            code,
            reason,
        });
    }
    let cut = world.saves()[0].0;
    let (code, reason) = (ErrorCode::EpochGone, "folded".to_owned());
    world.tell(Event::NotSaved {
        cut,
        task: task(0),
        code,
        reason,
    });
    assert_eq!(
        world.failed(),
        (ErrorCode::EpochGone, "task 1.0: folded".to_owned())
    );
}

#[test]
fn a_generation_that_ends_takes_what_it_gave_with_it() {
    let mut world = World::new(Standing::AtRest, Some(5));
    world.ask();
    let cut = world.saves()[0].0;
    world.change(|facts| {
        facts.standing = Standing::Between;
        facts.generation = Generation(2);
    });
    assert_eq!(world.take(), []);
    world.change(|facts| facts.standing = Standing::Running);
    let hurry = Effect::Hurry {
        asked: ASKED,
        generation: Generation(2),
    };
    assert_eq!(world.take(), [hurry]);
    world.tell(Event::Hurried {
        asked: ASKED,
        last: CheckpointId(5),
    });
    world.saved(cut, task(0), 0, None);
    world.change(|facts| facts.completed = Some(CheckpointId(6)));
    assert_eq!(world.saves().len(), 2);
}

#[test]
fn a_store_that_cannot_be_used_is_told_after_a_few_attempts() {
    let mut world = World::new(Standing::AtRest, Some(5));
    world.ask();
    let mut attempts = 0;
    let (code, reason) = loop {
        let saves = world.saves();
        let Some(save) = saves.iter().find(|save| save.1 == task(0)).cloned() else {
            world.pass(TRY_AGAIN);
            continue;
        };
        attempts += 1;
        world.tell(Event::NotSaved {
            cut: save.0,
            task: task(0),
            code: ErrorCode::ObjectStoreUnavailable,
            reason: "no room".to_owned(),
        });
        if let Some(Effect::End { .. }) = world.effects.last() {
            break world.failed();
        }
        // Another task of its worker goes first meanwhile.
        let other = world.saves();
        for save in other {
            world.saved(save.0, save.1, 0, None);
        }
    };
    assert_eq!(attempts, 3);
    assert_eq!(code, ErrorCode::ObjectStoreUnavailable);
    assert_eq!(reason, "task 1.0: no room");
}

#[test]
fn without_a_checkpoint_or_who_has_it_nobody_waits_for_ever() {
    let mut world = World::new(Standing::Running, Some(5));
    world.ask();
    world.take();
    assert_eq!(world.machine.wake_at(), Some(world.now.plus(PATIENCE)));
    world.pass(PATIENCE);
    let (code, reason) = world.failed();
    assert_eq!(code, ErrorCode::Timeout);
    assert!(reason.contains("no checkpoint"), "{reason}");

    let mut world = World::new(Standing::AtRest, Some(5));
    world.facts.givers.insert(task(1), None);
    world.ask();
    assert_eq!(world.take(), []);
    world.pass(PATIENCE);
    let (_, reason) = world.failed();
    assert!(reason.contains("task 1.1"), "{reason}");
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Answer { which: usize, how: u8 },
    Complete,
    Restart,
    Rest,
    Pass,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..4_usize, 0..10_u8).prop_map(|(which, how)| Step::Answer { which, how }),
        2 => Just(Step::Complete),
        1 => Just(Step::Restart),
        1 => Just(Step::Rest),
        3 => Just(Step::Pass),
    ]
}

proptest! {
    /// Whatever happens, a manifest names every task once, with all of what it gave of one checkpoint.
    #[test]
    fn a_manifest_is_only_written_of_what_every_task_gave_of_one_checkpoint(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new(Standing::Running, Some(5));
        world.ask();
        // What is under way: cut, task, checkpoint. And of which checkpoint each cut is.
        let mut under_way: Vec<(u32, TaskId, CheckpointId)> = Vec::new();
        let mut given: BTreeMap<(u32, TaskId), (CheckpointId, u32)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Answer { which, how } if !under_way.is_empty() => {
                    let (cut, task, checkpoint) = under_way.remove(which % under_way.len());
                    match how {
                        0 => world.tell(Event::NotSaved {
                            cut,
                            task,
                            code: ErrorCode::EpochGone,
                            reason: String::new(),
                        }),
                        1 => world.tell(Event::NotSaved {
                            cut,
                            task,
                            code: ErrorCode::MetadataStale,
                            reason: String::new(),
                        }),
                        _ => {
                            let entry = given.entry((cut, task)).or_insert((checkpoint, 0));
                            prop_assert_eq!(entry.0, checkpoint);
                            let number = entry.1;
                            entry.1 += 1;
                            let next = (how < 4).then(|| after(number + 1));
                            world.saved(cut, task, number, next);
                        }
                    }
                }
                Step::Answer { .. } | Step::Pass => world.pass(TRY_AGAIN),
                Step::Complete => {
                    let next = world.facts.completed.unwrap().next();
                    world.change(|facts| facts.completed = Some(next));
                }
                Step::Restart => world.change(|facts| {
                    facts.generation = facts.generation.next();
                    facts.standing = Standing::Running;
                }),
                Step::Rest => world.change(|facts| {
                    facts.generation = facts.generation.next();
                    facts.standing = Standing::AtRest;
                }),
            }
            for effect in world.take() {
                match effect {
                    Effect::Hurry { asked, .. } => {
                        let last = world.facts.completed.unwrap();
                        world.tell(Event::Hurried { asked, last });
                    }
                    Effect::Save { cut, task, checkpoint, .. } => {
                        let busy = under_way.iter().any(|save| (save.0, save.1) == (cut, task));
                        prop_assert!(!busy, "one call of a task at a time");
                        under_way.push((cut, task, checkpoint));
                    }
                    Effect::Write { cut, objects } => {
                        prop_assert_eq!(objects.len(), 3);
                        let of = given[&(cut, task(0))].0;
                        for (task, objects) in objects {
                            let (checkpoint, count) = given[&(cut, task)];
                            prop_assert_eq!(checkpoint, of);
                            prop_assert_eq!(objects.len() as u32, count);
                        }
                    }
                    Effect::Cut { .. } | Effect::End { .. } => {}
                }
            }
        }
    }
}
