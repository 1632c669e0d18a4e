//! A standby's copy, with real stores at both ends: what is acknowledged is there, byte for byte, whatever was
//! lost, repeated or cut short before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use common::ids::{
    CheckpointId, Generation, JobId, JobName, MetadataVersion, NodeId, StageId, TaskId,
};
use common::plan::task_graph::{Stage, TaskGraph};
use common::protocol::metadata::JobImage;
use common::protocol::standby::{BasePosition, PieceOf, StandbyPosition, StatePiece};
use common::protocol::task::{Deployment, TaskAssignment};
use common::random::{Random, below, coin, seeded};
use common::time::{Span, Tick};
use proptest::prelude::*;

use super::copies::{Copies, Found, lock};
use super::machine::{Effect, Event, Followed, StandbyMachine};
use crate::checkpoint::folding::Purposes;
use crate::checkpoint::hot_tables::HotTables;
use crate::checkpoint::state_store::JobStateStore;
use crate::checkpoint::state_store_tests::{Disk, Job, contents, task};
use crate::job::assembly::Left;
use crate::task::memory::StateMemory;

const OWNER: NodeId = NodeId(1);
const STANDBY: NodeId = NodeId(2);
const TASKS: usize = 2;

/// A job of two tasks, and one standby for both.
struct Pair {
    job: Job,
    disk: Disk,
    copy: Option<Arc<JobStateStore>>,
    hot: Arc<Mutex<BTreeMap<TaskId, HotTables>>>,
    memory: Arc<StateMemory>,
    /// Not in memory, and may be brought there.
    cold: BTreeSet<TaskId>,
    machine: StandbyMachine,
    now: Tick,
    effects: VecDeque<Effect>,
    /// In this generation.
    acknowledged: BTreeMap<TaskId, CheckpointId>,
}

impl Pair {
    /// `memory`: for tables of the standby.
    fn new(memory: u64) -> Pair {
        let disk = Disk::new();
        let mut pair = Pair {
            job: Job::new(TASKS),
            copy: Some(Arc::new(disk.open())),
            disk,
            hot: Arc::default(),
            memory: StateMemory::new(memory),
            cold: BTreeSet::new(),
            machine: StandbyMachine::default(),
            now: Tick(0),
            effects: VecDeque::new(),
            acknowledged: BTreeMap::new(),
        };
        pair.follow(Left::new());
        pair
    }

    /// A new generation, or a new life of the standby. `left`: what there was in memory before.
    fn follow(&mut self, left: Left) {
        self.machine = StandbyMachine::default();
        self.effects.clear();
        self.acknowledged.clear();
        lock(&self.hot).clear();
        let tasks = (0..TASKS).map(|index| task(u32::try_from(index).unwrap()));
        let Found { followed, cold } = self.copies().find(tasks.collect(), &BTreeSet::new(), left);
        self.cold = cold.into_iter().collect();
        self.happen(Event::Follow(followed));
    }

    fn copies(&self) -> Copies {
        let stage = |id| Stage {
            id: StageId(id),
            parallelism: TASKS as u32,
            source: None,
            operators: Vec::new(),
            sink: None,
        };
        let graph = TaskGraph {
            stages: vec![stage(0), stage(1)],
            ..TaskGraph::default()
        };
        let (name, job) = (JobName::new("j").unwrap(), JobId(1));
        let assignments = graph.tasks().map(|task| TaskAssignment {
            task,
            worker: OWNER,
        });
        let deployment = Deployment {
            job,
            name: name.clone(),
            generation: self.job.generation,
            version: MetadataVersion(1),
            restore: self.job.finals[&Generation(self.job.generation.0 - 1)],
            savepoint: None,
            tasks: assignments.collect(),
            graph,
            standbys: BTreeMap::new(),
            next: None,
            still: false,
            checkpoint_interval: Span::from_secs(1),
        };
        let facts = JobImage {
            id: job,
            name,
            generation: self.job.generation,
            completed: self.job.completed,
            finals: self.job.finals.clone(),
            running: true,
            deleted: false,
        };
        Copies {
            me: STANDBY,
            deployment: Arc::new(deployment),
            facts: Some(facts),
            store: Arc::clone(self.copy()),
            hot: Arc::clone(&self.hot),
            custom: Arc::default(),
            memory: Arc::clone(&self.memory),
        }
    }

    /// What is in memory, as it is left to the next generation.
    fn leave(&mut self) -> Left {
        let hot = std::mem::take(&mut *lock(&self.hot)).into_iter();
        hot.map(|(task, copy)| (task, copy.into_left())).collect()
    }

    fn copy(&self) -> &Arc<JobStateStore> {
        self.copy.as_ref().expect("it is open")
    }

    fn happen(&mut self, event: Event) {
        for effect in self.machine.handle(self.now, event) {
            match effect {
                Effect::Acknowledge(held) => self.acknowledged.extend(held),
                effect => self.effects.push_back(effect),
            }
        }
    }

    /// One message, or one write; sometimes it goes wrong. Now and then a copy is brought into memory.
    fn go_on(&mut self, random: &mut Random, trouble: bool) {
        if coin(random)
            && let Some(task) = self.cold.pop_first()
        {
            self.copies().warm_up(task);
        }
        let goes_wrong = trouble && below(random, 4) == 0;
        let event = match self.effects.pop_front() {
            None => {
                self.now = self.now.plus(Span::from_secs(3));
                Event::TimePassed
            }
            Some(Effect::Ask { .. }) if goes_wrong => Event::Unanswered { by: OWNER },
            Some(Effect::Ask { positions, .. }) => Event::Answered {
                by: OWNER,
                pieces: self.lend(&positions, 1 + below(random, 300) as usize),
            },
            Some(Effect::Keep { pieces, .. }) => {
                let most = pieces.len() as u64 + 1;
                let enough = match goes_wrong {
                    true => below(random, most) as usize,
                    false => pieces.len(),
                };
                if enough > 0 {
                    let kept = self.copies().keep(pieces[..enough].to_vec());
                    self.cold.extend(kept.unwrap());
                }
                match enough == pieces.len() {
                    true => Event::Kept { of: OWNER },
                    false => Event::NotKept { of: OWNER },
                }
            }
            Some(Effect::Acknowledge(_)) => unreachable!("it is noted at once"),
        };
        self.happen(event);
    }

    fn lend(&self, positions: &[StandbyPosition], room: usize) -> Vec<(StatePiece, Bytes)> {
        let mut pieces = Vec::new();
        for position in positions {
            let (store, generation) = (self.job.store(), self.job.generation);
            let lent = store.lend(self.now, generation, *position, &self.job.history(), room);
            for (of, bytes) in lent.unwrap() {
                let piece = StatePiece {
                    task: position.task,
                    bytes: u32::try_from(bytes.len()).unwrap(),
                    of,
                };
                pieces.push((piece, bytes));
            }
        }
        pieces
    }

    fn fold_copy(&self) {
        if let Some(completed) = self.job.completed {
            let history = self.job.history();
            self.copy()
                .fold(completed, &Purposes::new(), &history)
                .unwrap();
        }
    }

    fn kill_standby(&mut self, power: Option<&mut Random>) {
        self.copy = None;
        if let Some(random) = power {
            self.disk.deltas.lose_power(random);
            self.disk.view.lose_unflushed(random);
        }
        self.copy = Some(Arc::new(self.disk.open()));
        self.follow(Left::new());
    }

    fn is_holder(&self) -> bool {
        let held = |index| self.acknowledged.get(&task(index)) >= self.job.completed.as_ref();
        self.job.completed.is_some() && (0..).take(TASKS).all(held)
    }

    /// The worker is lost, and the standby takes over. What is left of the worker stands by for it now.
    fn promote(&mut self) {
        let at = self.job.completed.expect("something is completed");
        // In memory, and then on the disk: every table as it was at the completed checkpoint.
        for (id, left) in self.leave() {
            let index = id.index as usize;
            let tables = left.back_at(at).expect("a holder has it").tables;
            assert_eq!(contents(&tables), self.job.at_completed[index], "task {id}");
        }
        self.job.store = None;
        self.copy = None;
        std::mem::swap(&mut self.job.disk, &mut self.disk);
        self.job.store = Some(self.job.disk.open());
        self.copy = Some(Arc::new(self.disk.open()));
        self.job.start();
        self.follow(Left::new());
    }

    /// A generation begins in which everything stays where it is.
    fn new_generation(&mut self) {
        let left = self.leave();
        self.job.start();
        self.follow(left);
    }

    fn catch_up(&mut self, random: &mut Random) {
        for _ in 0..2_000 {
            if self.is_holder() {
                return;
            }
            self.go_on(random, false);
        }
        panic!("the standby does not catch up: {:?}", self.machine);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(usize, u8, u8, usize),
    Delete(usize, u8, u8),
    Persist,
    Checkpoint,
    Fold,
    FoldCopy,
    GoOn(usize),
    NewGeneration,
    KillOwner,
    KillStandby,
    StandbyLosesPower,
    CatchUpAndPromote,
    PromoteIfHolder,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..TASKS, 0_u8..2, 0_u8..8, 0_usize..60).prop_map(|(i, t, k, v)| Step::Put(i, t, k, v)),
        2 => (0..TASKS, 0_u8..2, 0_u8..8).prop_map(|(i, t, k)| Step::Delete(i, t, k)),
        1 => Just(Step::Persist),
        5 => Just(Step::Checkpoint),
        3 => Just(Step::Fold),
        2 => Just(Step::FoldCopy),
        10 => (1_usize..8).prop_map(Step::GoOn),
        1 => Just(Step::NewGeneration),
        1 => Just(Step::KillOwner),
        1 => Just(Step::KillStandby),
        1 => Just(Step::StandbyLosesPower),
        1 => Just(Step::CatchUpAndPromote),
        2 => Just(Step::PromoteIfHolder),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_holder_can_take_over_at_any_moment(
        steps in prop::collection::vec(step(), 1..120),
        memory in prop_oneof![Just(0), 500..4_000_u64, Just(u64::MAX)],
        seed in any::<u64>(),
    ) {
        let mut random = seeded(seed, 0);
        let mut pair = Pair::new(memory);
        for step in steps {
            match step {
                Step::Put(index, table, key, size) => {
                    pair.job.put(index, table, 0, &[key], &vec![key; size]);
                }
                Step::Delete(index, table, key) => pair.job.delete(index, table, 0, &[key]),
                Step::Persist => drop(pair.job.persist()),
                Step::Checkpoint => pair.job.checkpoint(),
                Step::Fold => pair.job.fold().unwrap(),
                Step::FoldCopy => pair.fold_copy(),
                Step::GoOn(times) => (0..times).for_each(|_| pair.go_on(&mut random, true)),
                Step::NewGeneration => pair.new_generation(),
                Step::KillOwner => {
                    let left = pair.leave();
                    pair.job.restart();
                    pair.follow(left);
                }
                Step::KillStandby => pair.kill_standby(None),
                Step::StandbyLosesPower => pair.kill_standby(Some(&mut random)),
                Step::CatchUpAndPromote if pair.job.completed.is_some() => {
                    pair.catch_up(&mut random);
                    pair.promote();
                }
                Step::PromoteIfHolder if pair.is_holder() => pair.promote(),
                Step::CatchUpAndPromote | Step::PromoteIfHolder => {}
            }
        }
        pair.job.checkpoint();
        pair.catch_up(&mut random);
        pair.promote();
    }
}

#[test]
fn a_standby_that_comes_late_fetches_the_base_file_piece_by_piece() {
    let mut random = seeded(1, 0);
    let mut pair = Pair::new(u64::MAX);
    for round in 0..40_u8 {
        pair.job.put(0, 0, 0, &[round], &[round; 50]);
        pair.job.put(1, 0, 0, &[round], &[round; 50]);
        pair.job.checkpoint();
        pair.job.fold().unwrap();
    }
    let position = StandbyPosition {
        task: task(0),
        after: None,
        records: 0,
        base: None,
    };
    let pieces = pair.lend(&[position], 100);
    let [(piece, _)] = &pieces[..] else {
        panic!("one piece of the base file: {pieces:?}");
    };
    let PieceOf::Base { at, length } = piece.of else {
        panic!("the first chunks are gone: {piece:?}");
    };
    assert!(at.offset == 0 && length > 200);
    // While it is being fetched, it stays, and what follows it.
    for round in 40..80_u8 {
        pair.job.put(0, 0, 0, &[round], &[round; 50]);
        pair.job.checkpoint();
        pair.job.fold().unwrap();
    }
    let next = StandbyPosition {
        base: Some(BasePosition { offset: 100, ..at }),
        ..position
    };
    let (piece, _) = &pair.lend(&[next], 100)[0];
    let expected = PieceOf::Base {
        at: BasePosition { offset: 100, ..at },
        length,
    };
    assert_eq!(piece.of, expected);
    let after = StandbyPosition {
        after: Some(at.checkpoint),
        ..position
    };
    let (piece, _) = &pair.lend(&[after], 100)[0];
    assert!(matches!(piece.of, PieceOf::Chunk { .. }), "{piece:?}");
    pair.catch_up(&mut random);
    pair.promote();
}

/// A successor that was made at its standby in other steps than where it runs: neither is wrong, and what comes next
/// there does not follow here.
#[test]
fn a_standby_that_came_to_where_it_is_in_other_steps_goes_back_to_a_base_file() {
    let mut random = seeded(1, 0);
    let mut pair = Pair::new(u64::MAX);
    let mut there = Job::new(TASKS);
    for job in [&mut pair.job, &mut there] {
        for key in 0..20 {
            job.put(0, 0, 0, &[key], &[key; 50]);
        }
        job.checkpoint();
    }
    pair.job.fold().unwrap();
    pair.catch_up(&mut random);
    // Here there is the state of 2, which the worker that runs the task never had.
    there.put(0, 0, 0, &[3], b"at 2");
    let second = there.persist();
    let after = Some(CheckpointId(1));
    let store = there.store();
    let records = store.records_after(task(0), after, there.generation, &there.history());
    pair.copy().keep_records(&records.unwrap()).unwrap();
    pair.job.next = second.next();
    for (key, value) in [(3, b"at 2"), (4, b"at 3")] {
        pair.job.put(0, 0, 0, &[key], value);
    }
    pair.job.checkpoint();
    let left = pair.leave();
    pair.follow(left);
    pair.catch_up(&mut random);
    pair.kill_standby(None);
    pair.catch_up(&mut random);
    pair.promote();
}

/// The copy of a base file that replaced itself was removed as the former one.
#[test]
fn a_base_file_that_is_fetched_twice_stays() {
    let mut pair = Pair::new(0);
    for round in 0..40_u8 {
        pair.job.put(0, 0, 0, &[round], &[round; 50]);
        pair.job.checkpoint();
        pair.job.fold().unwrap();
    }
    let position = StandbyPosition {
        task: task(0),
        after: None,
        records: 0,
        base: None,
    };
    let whole = pair.lend(&[position], usize::MAX);
    let (piece, _) = &whole[0];
    let PieceOf::Base { at, .. } = piece.of else {
        panic!("the first chunks are gone: {piece:?}");
    };
    for _ in 0..2 {
        pair.copies().keep(whole.clone()).unwrap();
    }
    pair.kill_standby(None);
    assert_eq!(pair.copy().base_at(task(0)), Some(at.checkpoint));
}

#[test]
fn what_does_not_follow_is_not_kept() {
    let mut machine = StandbyMachine::default();
    let followed = Followed {
        task: task(0),
        runs_on: OWNER,
        held: Some(CheckpointId(5)),
    };
    let effects = machine.handle(Tick(0), Event::Follow(vec![followed]));
    assert_eq!(
        effects.len(),
        2,
        "it says what it has, and asks: {effects:?}"
    );
    let chunk = |previous, checkpoint, bytes| StatePiece {
        task: task(0),
        bytes,
        of: PieceOf::Chunk {
            previous: Some(CheckpointId(previous)),
            checkpoint: CheckpointId(checkpoint),
            last: true,
        },
    };
    let bytes = Bytes::from_static(b"chunk");
    let pieces = vec![
        (chunk(4, 5, 5), bytes.clone()),
        (chunk(6, 8, 5), bytes.clone()),
        (chunk(5, 6, 4), bytes.clone()),
        (chunk(5, 7, 5), bytes.clone()),
    ];
    let effects = machine.handle(Tick(1), Event::Answered { by: OWNER, pieces });
    let kept = vec![(chunk(5, 7, 5), bytes)];
    assert_eq!(
        effects,
        [Effect::Keep {
            of: OWNER,
            pieces: kept
        }]
    );
    let effects = machine.handle(Tick(2), Event::Kept { of: OWNER });
    let acknowledged = Effect::Acknowledge(vec![(task(0), CheckpointId(7))]);
    assert_eq!(effects[0], acknowledged);
}
