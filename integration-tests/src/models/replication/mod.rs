//! Model: the replicas of one partition, with leaders elected and followers that come and go.
//!
//! Scope: two or three replicas, two records, one or two workers that crash or whose session ends while they
//! live, one call that fails and still arrives, two changes of who is in sync. Each replica has its machine,
//! the machine of its following, and a log of one record a batch; the metadata is the real one. Workers hear
//! of it late and may miss versions; calls and answers take as long as they like, or never come.

mod replica;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash};
use std::sync::Arc;

use common::ids::{LeaderEpoch, NodeId, PartitionEpoch, TopicName, WorkerEpoch};
use common::offset::Offset;
use common::protocol::metadata::PartitionImage;
use common::protocol::produce::Acks;
use common::protocol::replicate::{IsrChange, IsrVerdict, ReplicaPosition};
use common::protocol::topic::TopicConfig;
use common::time::Tick;
use coordinator::metadata::command::{Command, Outcome};
use coordinator::metadata::nodes::WorkerStatus;
use worker::partition::machine::{FollowerAnswer, FollowerFetch};
use worker::replication::follower_machine::FollowerMachine;

use self::replica::{
    Answer, Call, Following, Record, Replica, Told, Wish, length, offset, partition,
};
use super::explorer::{Model, Property, digest_all};
use super::facts::Facts;

/// What happens at the beginning of a reign; whenever a follower asks; and when whoever has not been heard
/// since the reign began, or nobody at all, is taken for in sync.
const BEGINNING: Tick = Tick(0);
const ASKED: Tick = Tick(15_000);
const UNHEARD: Tick = Tick(15_000);
const IMPATIENT: Tick = Tick(30_000);

/// How much may happen.
#[derive(Clone, Copy, Debug)]
pub struct Replication {
    pub replicas: usize,
    pub min_insync: u32,
    pub records: u8,
    /// Workers that crash, or whose session ends while they live.
    pub failures: u8,
    /// Calls and answers that are given up for lost.
    pub losses: u8,
    /// Wishes to change who is in sync.
    pub wishes: u8,
    /// Whoever writes syncs a while after that; otherwise at once.
    pub late_syncs: bool,
    pub mistake: Option<Mistake>,
}

/// A rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A follower says that it has what it has not synced.
    SayUnsynced,
    /// A leader counts what a follower has that is not what the leader has.
    CountDiverging,
    /// A leader commits by who is in sync, without those who may be by now.
    CommitByInSync,
    /// A wish that was not answered is taken for refused.
    ForgetWish,
    /// A leader tells its followers that all it has is committed.
    TellUncommitted,
}

#[derive(Clone, Debug)]
pub struct State {
    facts: Arc<Facts>,
    replicas: Vec<Arc<Replica>>,
    /// Calls whose callers have given them up, and wishes of processes that are gone.
    late: Vec<Call>,
    orphan: Option<(NodeId, WorkerEpoch, IsrChange)>,
    next_value: u8,
    left: Left,
    /// What was ever known to be committed, who led when, and the promise that was broken.
    committed: Vec<Record>,
    reigns: BTreeMap<LeaderEpoch, usize>,
    broken: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Left {
    records: u8,
    failures: u8,
    losses: u8,
    wishes: u8,
}

/// The numbers are those of replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It hears of the metadata as it is now.
    Hear(usize),
    Append(usize),
    Sync(usize),
    /// It asks its leader for more, which arrives: while a call is under way the log it speaks of does not
    /// change, so it might as well have been made later.
    Ask(usize),
    /// It asks, and gives the call up; what was asked may still arrive.
    AskInVain(usize),
    ArriveLate(usize),
    /// What the leader said is done.
    Apply(usize),
    /// What the leader said is lost.
    GiveUp(usize),
    /// It looks who is in sync: who was not heard in its reign is not, or nobody is.
    Look(usize, Patience),
    /// The wish is decided, and whether it hears that.
    Decide(usize, Heard),
    DecideOrphan,
    Verdict(usize),
    Crash(usize, Crash),
    /// A worker's session ends, whether its process lives or not.
    Fence(usize),
    /// A worker that was fenced, or crashed, is registered anew.
    Register(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    ForThoseHeard,
    ForNobody,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    Answer,
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    Kill,
    PowerLoss,
}

impl Model for Replication {
    type State = State;
    type Action = Action;

    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn initial(&self) -> State {
        let mut facts = Facts::new();
        let registered = (0..self.replicas).map(|index| facts.register(index, 0));
        let registered: Vec<(NodeId, WorkerEpoch)> = registered.collect();
        let created = facts.command(Command::CreateTopic {
            id: partition().topic,
            name: TopicName::new("topic").expect("it is a name"),
            config: self.config(),
            replicas: vec![registered.iter().map(|(node, _)| *node).collect()],
        });
        created.expect("there is no other topic");
        let replicas = registered.into_iter();
        let mut state = State {
            facts: Arc::new(facts),
            replicas: replicas
                .map(|(me, epoch)| Arc::new(Replica::new(me, epoch)))
                .collect(),
            late: Vec::new(),
            orphan: None,
            next_value: 0,
            left: Left {
                records: self.records,
                failures: self.failures,
                losses: self.losses,
                wishes: self.wishes,
            },
            committed: Vec::new(),
            reigns: BTreeMap::new(),
            broken: None,
        };
        for index in 0..self.replicas {
            self.hear(&mut state, index);
        }
        state.note();
        state
    }

    fn actions(&self, state: &State) -> Vec<Action> {
        let mut actions = Vec::new();
        let Left {
            records,
            failures,
            losses,
            wishes,
        } = state.left;
        for (index, replica) in state.replicas.iter().enumerate() {
            let row = state.facts.metadata.worker(replica.me).expect("registered");
            if row.status == WorkerStatus::Active && (failures > 0 || !replica.up) {
                actions.push(Action::Fence(index));
            }
            if row.status == WorkerStatus::Fenced || !replica.up {
                actions.push(Action::Register(index));
            }
            if !replica.up {
                continue;
            }
            if failures > 0 {
                actions.push(Action::Crash(index, Crash::PowerLoss));
                if replica.durable < replica.log.len() {
                    actions.push(Action::Crash(index, Crash::Kill));
                }
            }
            if replica.heard != Some(state.news()) {
                actions.push(Action::Hear(index));
            }
            if replica.durable < replica.log.len() {
                actions.push(Action::Sync(index));
            }
            if records > 0 && replica.machine.admit_append(Acks::All, None).is_ok() {
                actions.push(Action::Append(index));
            }
            if replica.machine.is_leader() && replica.wish.is_none() && wishes > 0 {
                actions.push(Action::Look(index, Patience::ForThoseHeard));
                actions.push(Action::Look(index, Patience::ForNobody));
            }
            match &replica.wish {
                Some(Wish { verdict: None, .. }) => {
                    actions.push(Action::Decide(index, Heard::Answer));
                    if losses > 0 {
                        actions.push(Action::Decide(index, Heard::Nothing));
                    }
                }
                Some(_) => actions.push(Action::Verdict(index)),
                None => {}
            }
            let Some(following) = &replica.following else {
                continue;
            };
            if following.under_way.is_some() {
                actions.push(Action::Apply(index));
                if losses > 0 {
                    actions.push(Action::GiveUp(index));
                }
            } else if self.may_ask(state, replica) {
                actions.push(Action::Ask(index));
                if losses > 0 {
                    actions.push(Action::AskInVain(index));
                }
            }
        }
        for (index, call) in state.late.iter().enumerate() {
            if state.is_up(call.to) {
                actions.push(Action::ArriveLate(index));
            }
        }
        if state.orphan.is_some() {
            actions.push(Action::DecideOrphan);
        }
        actions
    }

    fn act(&self, state: &mut State, action: Action) {
        match action {
            Action::Hear(index) => self.hear(state, index),
            Action::Append(index) => {
                state.left.records -= 1;
                let value = state.next_value;
                state.next_value += 1;
                let replica = state.change(index);
                replica.append(value);
                if !self.late_syncs {
                    replica.sync();
                }
            }
            Action::Sync(index) => state.change(index).sync(),
            Action::Ask(index) => {
                if let Some(call) = self.ask(state.change(index)) {
                    let answer = self.arrive(state, call);
                    let following = state.change(index).following.as_mut();
                    following.expect("it asked").under_way = Some((call, answer));
                }
            }
            Action::AskInVain(index) => {
                state.left.losses -= 1;
                let call = self.ask(state.change(index));
                state.change(index).fail();
                state.late.extend(call);
            }
            Action::ArriveLate(index) => {
                let call = state.late.remove(index);
                // Nobody waits for what is answered.
                drop(self.arrive(state, call));
            }
            Action::Apply(index) => {
                let replica = state.change(index);
                replica.apply();
                if !self.late_syncs {
                    replica.sync();
                }
            }
            Action::GiveUp(index) => {
                state.left.losses -= 1;
                state.change(index).give_up();
            }
            Action::Look(index, patience) => self.look(state, index, patience),
            Action::Decide(index, heard) => self.decide(state, index, heard),
            Action::DecideOrphan => {
                if let Some((worker, epoch, change)) = state.orphan.take() {
                    // Nobody waits for the verdict.
                    let _ = state.alter_isr(worker, epoch, change);
                }
            }
            Action::Verdict(index) => {
                let replica = state.change(index);
                let verdict = replica.wish.take().and_then(|wish| wish.verdict);
                if let Some(IsrVerdict::Refused {
                    partition_epoch: Some(epoch),
                    ..
                }) = verdict
                {
                    replica.machine.isr_refused(epoch);
                }
            }
            Action::Crash(index, crash) => state.crash(index, crash),
            Action::Fence(index) => {
                if state.replicas[index].up {
                    state.left.failures -= 1;
                }
                let me = state.replicas[index].me;
                Arc::make_mut(&mut state.facts).fence(me);
            }
            Action::Register(index) => state.register(index),
        }
        state.note();
    }

    fn digest(&self, state: &State, hasher: &mut DefaultHasher) {
        state.facts.digest_workers(hasher);
        let PartitionImage {
            replicas,
            isr,
            leader,
            leader_epoch,
            partition_epoch,
            // Of records that are acknowledged in memory, of which there are none here.
            suspect: _,
            log_ends: _,
            unclean: _,
        } = state.image();
        (replicas, isr, leader, leader_epoch, partition_epoch).hash(hasher);
        for replica in &state.replicas {
            replica.digest(hasher);
        }
        digest_all(&state.late, hasher);
        let orphan = state.orphan.as_ref();
        let orphan = orphan.map(|(worker, epoch, change)| (worker, epoch, &change.isr));
        orphan.hash(hasher);
        (state.left, &state.committed, state.broken).hash(hasher);
    }

    fn properties(&self) -> Vec<Property<State>> {
        let mut properties: Vec<Property<State>> = vec![
            Property::always(
                "what is committed stays, and is the same everywhere",
                |state| state.broken.is_none(),
            ),
            Property::always("whoever leads has all that is committed", |state| {
                let current = state.image().leader_epoch;
                let mut leaders = state.running().filter(|replica| {
                    replica.machine.is_leader() && replica.machine.leader_epoch() == current
                });
                leaders.all(|leader| leader.log.starts_with(&state.committed))
            }),
            Property::always(
                "who is in sync has all that is committed, also without power",
                |state| {
                    let in_sync = state.image().isr.iter();
                    let mut in_sync = in_sync.map(|node| state.replica(*node));
                    in_sync
                        .all(|replica| replica.log[..replica.durable].starts_with(&state.committed))
                },
            ),
            Property::sometimes("two lead at once", |state| {
                let leaders = state.running();
                leaders
                    .filter(|replica| replica.machine.is_leader())
                    .count()
                    > 1
            }),
            Property::sometimes("a log went another way", |state| {
                state.replicas.iter().any(|replica| {
                    let following = replica.following.as_ref();
                    let answer = following.and_then(|following| following.under_way.as_ref());
                    matches!(answer, Some((_, Ok(Told::Diverges(_)))))
                })
            }),
            Property::stays_open("all there is becomes committed", |state| {
                let image = state.image();
                let leader = image.leader.map(|leader| state.replica(leader));
                leader.is_some_and(|leader| {
                    leader.up
                        && leader.machine.is_leader()
                        && leader.machine.leader_epoch() == image.leader_epoch
                        && leader.machine.committed() == Some(offset(leader.log.len()))
                })
            }),
        ];
        if self.records > 1 {
            let name = "records are committed in two reigns";
            properties.push(Property::sometimes(name, |state| {
                let first = state.committed.first();
                let last = state.committed.last();
                first.map(|record| record.epoch) != last.map(|record| record.epoch)
            }));
        }
        if self.wishes > 0 {
            let name = "one that was not in sync is again";
            properties.push(Property::sometimes(name, |state| {
                let image = state.image();
                image.isr.len() == image.replicas.len() && image.partition_epoch.0 >= 2
            }));
        }
        properties
    }
}

impl Replication {
    fn config(&self) -> TopicConfig {
        TopicConfig {
            min_insync_replicas: self.min_insync,
            ..TopicConfig::default()
        }
    }

    fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    fn hear(&self, state: &mut State, index: usize) {
        let image = state.image().clone();
        let news = state.news();
        let offline = news.1.iter().copied().collect();
        let life_of = |node: NodeId| {
            let row = state.facts.metadata.worker(node)?;
            (row.status == WorkerStatus::Active).then_some(row.epoch)
        };
        let leader_life = image.leader.and_then(life_of);
        let config = self.config();
        let replica = state.change(index);
        replica.heard = Some(news);
        replica.machine.assign(BEGINNING, &image, &config);
        replica.machine.set_offline(offline);
        let Some(leader) = image.leader.filter(|leader| *leader != replica.me) else {
            replica.following = None;
            return;
        };
        let known = replica.following.as_ref();
        if known.is_none_or(|following| following.leader != leader) {
            replica.following = Some(Following {
                leader,
                leader_life,
                leader_epoch: image.leader_epoch,
                machine: FollowerMachine::new(0),
                under_way: None,
            });
        } else if known.is_some_and(|following| following.leader_life != leader_life) {
            replica.fail();
        }
        let following = replica.following.as_mut().expect("it was made");
        following.leader_life = leader_life;
        following.leader_epoch = image.leader_epoch;
        let wanted = [(partition(), image.leader_epoch)].into();
        // That positions are asked for is answered when the next call goes out.
        let _ = following.machine.follow(&wanted);
    }

    /// What a follower says of its log has to be safe.
    fn may_ask(&self, state: &State, replica: &Replica) -> bool {
        let Some(following) = &replica.following else {
            return false;
        };
        let safe = replica.machine.measure() == replica.machine.log_end();
        (safe || self.makes(Mistake::SayUnsynced))
            && replica.machine.follows() == Some(following.leader_epoch)
            && state.is_up(following.leader)
    }

    fn ask(&self, replica: &mut Replica) -> Option<Call> {
        let mut here = replica.here();
        if self.makes(Mistake::SayUnsynced) {
            here.durable = here.log_end;
        }
        let following = replica.following.as_mut().expect("it follows");
        // One that was refused has rested.
        let _ = following.machine.wake(ASKED);
        following.machine.positioned(here);
        let say = following.machine.next_call(ASKED);
        let positions = say.map(|say| say.positions).unwrap_or_default();
        positions.first().map(|at| Call {
            from: replica.me,
            life: replica.epoch,
            to: following.leader,
            at: *at,
        })
    }

    fn arrive(&self, state: &mut State, call: Call) -> Answer {
        let leader = state.replicas.iter();
        let leader = leader.into_iter().position(|replica| replica.me == call.to);
        let leader = state.change(leader.expect("it is a replica"));
        let fetch = FollowerFetch {
            from: call.from,
            worker_epoch: call.life,
            leader_epoch: call.at.leader_epoch,
            log_end: call.at.log_end,
            last_epoch: call.at.last_epoch,
            durable: call.at.durable,
        };
        let machine = &mut leader.machine;
        let answered = machine.follower_fetched(ASKED, fetch, &leader.epochs, Offset::ZERO);
        match answered.map_err(|_| ())? {
            FollowerAnswer::Removed => unreachable!("nothing is ever removed"),
            FollowerAnswer::Diverging(end) => {
                if self.makes(Mistake::CountDiverging) {
                    let fetch = FollowerFetch {
                        last_epoch: leader.epochs.latest(),
                        log_end: fetch.log_end.min(machine.log_end()),
                        ..fetch
                    };
                    let counted =
                        machine.follower_fetched(ASKED, fetch, &leader.epochs, Offset::ZERO);
                    counted.map_err(|_| ())?;
                }
                Ok(Told::Diverges(end))
            }
            FollowerAnswer::Continue => Ok(Told::Continues {
                records: leader.log[length(call.at.log_end)..].to_vec(),
                committed: match self.makes(Mistake::TellUncommitted) {
                    true => machine.log_end(),
                    false => machine.committed().unwrap_or(Offset::ZERO),
                },
            }),
        }
    }

    fn look(&self, state: &mut State, index: usize, patience: Patience) {
        let replica = state.change(index);
        let now = match patience {
            Patience::ForThoseHeard => UNHEARD,
            Patience::ForNobody => IMPATIENT,
        };
        let Some(proposal) = replica.machine.propose_isr(now) else {
            return;
        };
        if self.makes(Mistake::CommitByInSync) {
            replica.machine.isr_refused(proposal.partition_epoch);
        }
        replica.wish = Some(Wish {
            change: IsrChange {
                partition: partition(),
                leader_epoch: proposal.leader_epoch,
                partition_epoch: proposal.partition_epoch,
                isr: proposal.isr,
                recovered: proposal.recovered,
            },
            verdict: None,
        });
        state.left.wishes -= 1;
    }

    fn decide(&self, state: &mut State, index: usize, heard: Heard) {
        let replica = &state.replicas[index];
        let (me, epoch) = (replica.me, replica.epoch);
        let change = replica.wish.as_ref().map(|wish| wish.change.clone());
        let change = change.expect("it has a wish");
        let partition_epoch = Some(change.partition_epoch);
        let verdict = state.alter_isr(me, epoch, change);
        if heard == Heard::Nothing {
            state.left.losses -= 1;
        }
        let wish = state.change(index).wish.as_mut().expect("it has a wish");
        match heard {
            Heard::Answer => wish.verdict = verdict,
            Heard::Nothing => {
                if self.makes(Mistake::ForgetWish) {
                    let reason = String::new();
                    wish.verdict = Some(IsrVerdict::Refused {
                        partition_epoch,
                        reason,
                    });
                }
            }
        }
    }
}

impl State {
    fn image(&self) -> &PartitionImage {
        let topic = self.facts.metadata.topic(partition().topic);
        &topic.expect("it was created").partitions[0]
    }

    /// What there is to be heard.
    fn news(&self) -> (PartitionEpoch, Vec<NodeId>) {
        let image = self.image();
        let offline = image.replicas.iter().copied();
        let offline = offline.filter(|node| !self.facts.metadata.is_active(*node));
        (image.partition_epoch, offline.collect())
    }

    fn change(&mut self, index: usize) -> &mut Replica {
        Arc::make_mut(&mut self.replicas[index])
    }

    fn replica(&self, node: NodeId) -> &Replica {
        let found = self.replicas.iter().find(|replica| replica.me == node);
        found.expect("it is a replica")
    }

    fn running(&self) -> impl Iterator<Item = &Replica> {
        let replicas = self.replicas.iter().map(|replica| &**replica);
        replicas.filter(|replica| replica.up)
    }

    fn is_up(&self, node: NodeId) -> bool {
        self.replica(node).up
    }

    /// `None`: the worker's epoch is over, and it is told nothing of its wish.
    fn alter_isr(
        &mut self,
        worker: NodeId,
        epoch: WorkerEpoch,
        change: IsrChange,
    ) -> Option<IsrVerdict> {
        let outcome = Arc::make_mut(&mut self.facts).command(Command::AlterIsr {
            worker,
            epoch,
            changes: vec![change],
            log_ends: Vec::new(),
        });
        match outcome {
            Ok(Outcome::IsrAltered(mut verdicts)) => verdicts.pop(),
            Ok(_) | Err(_) => None,
        }
    }

    fn crash(&mut self, index: usize, crash: Crash) {
        self.left.failures -= 1;
        let replica = self.change(index);
        let (me, epoch) = (replica.me, replica.epoch);
        let wish = replica.wish.take();
        replica.crash(crash);
        if let Some(wish) = wish.filter(|wish| wish.verdict.is_none()) {
            self.orphan = Some((me, epoch, wish.change));
        }
        // Whoever called it notices.
        for other in &mut self.replicas {
            let following = other.following.as_ref();
            if following.is_some_and(|following| following.leader == me) {
                Arc::make_mut(other).give_up();
            }
        }
    }

    fn register(&mut self, index: usize) {
        let replica = &self.replicas[index];
        let process = match replica.up {
            true => replica.life,
            false => replica.life + 1,
        };
        let (_, epoch) = Arc::make_mut(&mut self.facts).register(index, process);
        let replica = self.change(index);
        replica.epoch = epoch;
        if !replica.up {
            replica.life = process;
            replica.start();
        }
    }

    /// What is known to be committed anywhere, and who leads.
    fn note(&mut self) {
        for (index, replica) in self.replicas.iter().enumerate() {
            if !replica.up {
                continue;
            }
            if replica.machine.is_leader() {
                let reign = replica.machine.leader_epoch();
                if *self.reigns.entry(reign).or_insert(index) != index {
                    self.broken.get_or_insert("two led in one epoch");
                }
            }
            let Some(committed) = replica.machine.committed() else {
                continue;
            };
            let has = &replica.log[..length(committed)];
            let both = has.len().min(self.committed.len());
            if has[..both] != self.committed[..both] {
                self.broken.get_or_insert("a committed record is another");
            }
            if has.len() > self.committed.len() {
                self.committed = has.to_vec();
            }
        }
        self.late.sort_by_key(|call| {
            let ReplicaPosition {
                leader_epoch,
                log_end,
                durable,
                ..
            } = call.at;
            (
                call.from,
                call.life,
                call.to,
                leader_epoch,
                log_end,
                durable,
            )
        });
    }
}
