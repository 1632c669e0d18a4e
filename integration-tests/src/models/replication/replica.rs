//! One replica of the model: its log of one record a batch, its machine, and the machine of its following, with what
//! the product's actors do for them.

use std::hash::{DefaultHasher, Hash};

use bytes::Bytes;
use common::ids::{
    LeaderEpoch, NodeId, PartitionEpoch, PartitionId, TopicId, TopicPartition, WorkerEpoch,
};
use common::offset::Offset;
use common::protocol::replicate::{
    IsrChange, IsrVerdict, ReplicaNews, ReplicaPosition, Replicated, Verdict,
};
use uuid::Uuid;
use worker::log::leader_epochs::{EpochEnd, LeaderEpochs};
use worker::partition::machine::PartitionMachine;
use worker::partition::problems;
use worker::partition::replica_work::cut_at;
use worker::replication::follower_machine::{Effect, FollowerMachine};

use super::{BEGINNING, Crash};

/// Bytes of a record on its way.
const RECORD_BYTES: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Record {
    pub(super) value: u8,
    pub(super) epoch: LeaderEpoch,
}

#[derive(Clone, Debug)]
pub(super) struct Replica {
    pub(super) me: NodeId,
    /// Its process runs, which one it is, and under which epoch it is registered.
    pub(super) up: bool,
    pub(super) life: u64,
    pub(super) epoch: WorkerEpoch,
    pub(super) log: Vec<Record>,
    pub(super) durable: usize,
    pub(super) epochs: LeaderEpochs,
    pub(super) machine: PartitionMachine,
    /// What it has heard of the metadata: the partition's record, and who is not active.
    pub(super) heard: Option<(PartitionEpoch, Vec<NodeId>)>,
    pub(super) following: Option<Following>,
    pub(super) wish: Option<Wish>,
}

#[derive(Clone, Debug, Hash)]
pub(super) struct Following {
    pub(super) leader: NodeId,
    pub(super) leader_life: Option<WorkerEpoch>,
    pub(super) leader_epoch: LeaderEpoch,
    pub(super) machine: FollowerMachine,
    /// With what the leader has said to it.
    pub(super) under_way: Option<(Call, Answer)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Call {
    pub(super) from: NodeId,
    pub(super) life: WorkerEpoch,
    pub(super) to: NodeId,
    pub(super) at: ReplicaPosition,
}

/// `Err`: refused.
pub(super) type Answer = Result<Told, ()>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Told {
    Continues {
        records: Vec<Record>,
        committed: Offset,
    },
    Diverges(EpochEnd),
}

#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) change: IsrChange,
    pub(super) verdict: Option<IsrVerdict>,
}

pub(super) fn partition() -> TopicPartition {
    TopicPartition {
        topic: TopicId(Uuid::from_u128(1)),
        partition: PartitionId(0),
    }
}

pub(super) fn offset(length: usize) -> Offset {
    Offset(i64::try_from(length).expect("a few"))
}

pub(super) fn length(offset: Offset) -> usize {
    usize::try_from(offset.0).expect("it is not negative")
}

impl Replica {
    pub(super) fn new(me: NodeId, epoch: WorkerEpoch) -> Replica {
        Replica {
            me,
            up: true,
            life: 0,
            epoch,
            log: Vec::new(),
            durable: 0,
            epochs: LeaderEpochs::default(),
            machine: PartitionMachine::new(me, Offset::ZERO),
            heard: None,
            following: None,
            wish: None,
        }
    }

    pub(super) fn write(&mut self, record: Record) {
        let at = offset(self.log.len());
        let appended = self.epochs.append(record.epoch, at);
        appended.expect("epochs in a log rise");
        self.log.push(record);
    }

    pub(super) fn append(&mut self, value: u8) {
        let epoch = self.machine.leader_epoch();
        self.write(Record { value, epoch });
        self.machine.appended(offset(self.log.len()));
    }

    pub(super) fn sync(&mut self) {
        self.durable = self.log.len();
        self.machine.synced(offset(self.durable));
    }

    pub(super) fn here(&self) -> ReplicaPosition {
        ReplicaPosition {
            partition: partition(),
            leader_epoch: self.machine.leader_epoch(),
            log_end: self.machine.log_end(),
            last_epoch: self.epochs.latest(),
            durable: self.machine.durable(),
            committed: self.machine.committed().unwrap_or(Offset::ZERO),
        }
    }

    /// Does what the leader said, if the machine of its following lets it.
    pub(super) fn apply(&mut self) {
        let following = self.following.as_mut().expect("it follows");
        let (call, answer) = following.under_way.take().expect("it asked");
        let (verdict, batches) = encode(&answer);
        let reply = Replicated {
            news: vec![ReplicaNews {
                at: call.at,
                verdict,
            }],
            batches,
        };
        let session = following.machine.session();
        let effects = following.machine.answered(BEGINNING, session, reply);
        // Nothing is under way now. The count of calls, which says nothing to this model, begins anew.
        following.machine = FollowerMachine::new(session);
        let wanted = [(partition(), following.leader_epoch)].into();
        let _ = following.machine.follow(&wanted);
        for effect in effects {
            let Effect::Apply {
                at,
                verdict,
                batches,
            } = effect
            else {
                unreachable!("it was an answer");
            };
            self.obey(at, &verdict, &batches);
        }
    }

    /// What the actor's turn does to a log of its own.
    pub(super) fn obey(&mut self, at: ReplicaPosition, verdict: &Verdict, batches: &Bytes) {
        let moved_on = offset(self.log.len()) != at.log_end;
        if self.machine.follows() != Some(at.leader_epoch) || moved_on {
            return;
        }
        match verdict {
            Verdict::Continues { committed, .. } => {
                for record in decode(batches) {
                    self.write(record);
                }
                self.machine.appended(offset(self.log.len()));
                self.machine.leader_committed(*committed);
            }
            Verdict::Diverges { epoch, end } => {
                let theirs = EpochEnd {
                    epoch: *epoch,
                    end: *end,
                };
                let to = cut_at(self.epochs.end_of(*epoch, at.log_end), theirs);
                self.log.truncate(length(to));
                self.durable = self.durable.min(self.log.len());
                self.epochs.truncate(to);
                self.machine.truncated(to);
            }
            Verdict::Removed { .. } | Verdict::Refused { .. } => {
                unreachable!("nobody is told to do that")
            }
        }
    }

    /// Its call is given up, if there is one.
    pub(super) fn give_up(&mut self) {
        let following = self.following.as_ref();
        if following.is_some_and(|following| following.under_way.is_some()) {
            self.fail();
        }
    }

    pub(super) fn fail(&mut self) {
        let following = self.following.as_mut().expect("it follows");
        following.under_way = None;
        let session = following.machine.session();
        following.machine.failed(BEGINNING, session);
    }

    pub(super) fn crash(&mut self, crash: Crash) {
        self.up = false;
        self.following = None;
        self.heard = None;
        if crash == Crash::PowerLoss {
            self.log.truncate(self.durable);
            self.epochs.truncate(offset(self.durable));
        }
    }

    /// A log that is opened is synced.
    pub(super) fn start(&mut self) {
        self.up = true;
        self.durable = self.log.len();
        self.machine = PartitionMachine::new(self.me, offset(self.durable));
    }

    pub(super) fn digest(&self, hasher: &mut DefaultHasher) {
        (self.up, self.life, self.epoch, &self.log, self.durable).hash(hasher);
        if self.up {
            self.machine.hash(hasher);
        }
        (&self.heard, &self.following).hash(hasher);
        let wish = self.wish.as_ref();
        let wish = wish.map(|Wish { change, verdict }| {
            let refused = match verdict {
                Some(IsrVerdict::Refused {
                    partition_epoch, ..
                }) => Some(*partition_epoch),
                Some(IsrVerdict::Accepted) | None => None,
            };
            let at = (change.leader_epoch, change.partition_epoch);
            (at, &change.isr, verdict.is_some(), refused)
        });
        wish.hash(hasher);
    }
}

pub(super) fn encode(answer: &Answer) -> (Verdict, Bytes) {
    match answer {
        Err(()) => {
            let problem = problems::position_unknown(partition());
            (Verdict::Refused { problem }, Bytes::new())
        }
        Ok(Told::Diverges(EpochEnd { epoch, end })) => {
            let (epoch, end) = (*epoch, *end);
            (Verdict::Diverges { epoch, end }, Bytes::new())
        }
        Ok(Told::Continues { records, committed }) => {
            let bytes = records.iter().flat_map(|record| {
                let epoch = u8::try_from(record.epoch.0).expect("a few");
                [record.value, epoch]
            });
            let bytes: Vec<u8> = bytes.collect();
            let verdict = Verdict::Continues {
                bytes: u32::try_from(bytes.len()).expect("a few"),
                committed: *committed,
            };
            (verdict, bytes.into())
        }
    }
}

pub(super) fn decode(bytes: &[u8]) -> impl Iterator<Item = Record> {
    let records = bytes.chunks_exact(RECORD_BYTES);
    records.map(|bytes| Record {
        value: bytes[0],
        epoch: LeaderEpoch(i32::from(bytes[1])),
    })
}
