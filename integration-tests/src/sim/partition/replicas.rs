//! A partition's replicas in the world: what followers are told, what a follower is told, who is in sync; and
//! what the checkers are told of all of them.

use bytes::Bytes;
use common::ids::{LeaderEpoch, NodeId, WorkerEpoch};
use common::log_batch::LogBatches;
use common::offset::Offset;
use common::plan::connector::Isolation;
use common::protocol::metadata::LogEnd;
use common::protocol::replicate::{IsrChange, IsrVerdict, LogEndReport, ReplicaPosition, Verdict};
use common::protocol::topic::Durability;
use common::time::Span;
use tokio::sync::oneshot;
use worker::log::reader::LogReader;
use worker::metadata_image::MetadataImage;
use worker::partition::machine::{FollowerAnswer, FollowerFetch, IsrProposal};
use worker::partition::problems;
use worker::partition::replica_work::{PositionReply, QueuedNews};
use worker::partition::waiting::{APPEND_TIMEOUT, Readable};
use worker::replication::session_machine::{Look, ToRead, WatchId};

use super::{Partition, Waiter};
use crate::sim::env::Env;
use crate::sim::replication::{looked, positioned, refused};
use crate::sim::sabotage::Sabotage;
use crate::sim::worker::Who;

/// How long a follower's position waits for news at its leader.
const TELL_COMMITTED_EVERY: Span = Span::from_millis(500);
/// What the checkers are told at once, at most.
const CHECKED_BYTES: usize = 1 << 20;

impl Partition {
    /// A follower is at a position.
    pub fn followed(
        &mut self,
        env: &mut Env,
        who: Who,
        watch: WatchId,
        (from, worker_epoch): (NodeId, WorkerEpoch),
        at: ReplicaPosition,
    ) {
        let log = self.log.as_ref().filter(|_| self.agenda.has_role());
        let Some(log_start) = log.map(|log| log.reader().start()) else {
            let problem = problems::position_unknown(self.id);
            return looked(env, who, watch, refused(problem));
        };
        let fetch = FollowerFetch {
            from,
            worker_epoch,
            leader_epoch: at.leader_epoch,
            log_end: at.log_end,
            last_epoch: at.last_epoch,
            durable: at.durable,
        };
        let machine = &mut self.machine;
        let answered = machine.follower_fetched(env.now, fetch, &self.epochs, log_start);
        let told = match answered {
            Err(refusal) => {
                env.trace(|| format!("{who:?} refuses {at:?}: {refusal}"));
                refused(problems::follower_refused(refusal))
            }
            Ok(FollowerAnswer::Removed) => Look::Tell(Verdict::Removed { log_start }),
            Ok(FollowerAnswer::Diverging(end)) => {
                if env.sabotaged(Sabotage::CountDiverging) {
                    let fetch = FollowerFetch {
                        last_epoch: self.epochs.latest(),
                        log_end: fetch.log_end.min(machine.log_end()),
                        ..fetch
                    };
                    if machine
                        .follower_fetched(env.now, fetch, &self.epochs, log_start)
                        .is_ok()
                    {
                        self.go_on(env, who);
                    }
                }
                Look::Tell(Verdict::Diverges {
                    epoch: end.epoch,
                    end: end.end,
                })
            }
            Ok(FollowerAnswer::Continue) => {
                if at.log_end < self.machine.log_end() {
                    let look = self.continues(env);
                    looked(env, who, watch, look);
                } else {
                    let deadline = env.now.plus(TELL_COMMITTED_EVERY);
                    let waiter = Waiter::Follower(watch);
                    self.waiting.park_follower(at.log_end, deadline, waiter);
                }
                // What it said may have committed something.
                return self.go_on(env, who);
            }
        };
        looked(env, who, watch, told);
    }

    /// Says where this follower's log is.
    pub fn position(&mut self, env: &mut Env, who: Who, leader: NodeId, epoch: LeaderEpoch) {
        let quiet = self.agenda.is_here() && self.agenda.has_role() && self.news.is_none();
        if !quiet || self.machine.follows() != Some(epoch) {
            return positioned(env, who, leader, (self.id, epoch), None);
        }
        let (reply, applied) = oneshot::channel();
        self.applying.push((applied, leader, epoch));
        self.park_until_safe(env, reply);
        self.go_on(env, who);
    }

    /// What is said before it is safe here would not be said again when it is.
    pub(super) fn park_until_safe(&mut self, env: &Env, reply: PositionReply) {
        let (end, deadline) = (self.machine.log_end(), env.now.plus(APPEND_TIMEOUT));
        if env.sabotaged(Sabotage::SayUnsynced) {
            let position = ReplicaPosition {
                durable: end,
                ..self.here()
            };
            return drop(reply.send(Ok(position)));
        }
        let waiter = Waiter::Position(reply);
        self.waiting.park_until_safe(end, deadline, waiter);
    }

    /// Does what the leader says to a position, and says where the log is once that is safe.
    pub fn apply(
        &mut self,
        env: &mut Env,
        who: Who,
        leader: NodeId,
        (at, verdict, batches): (ReplicaPosition, Verdict, Bytes),
    ) {
        if self.news.is_some() {
            return positioned(env, who, leader, (self.id, at.leader_epoch), None);
        }
        let (reply, applied) = oneshot::channel();
        self.applying.push((applied, leader, at.leader_epoch));
        self.news = Some(QueuedNews {
            at,
            verdict,
            batches,
            reply,
        });
        self.agenda.follow();
        self.start_work(env, who);
    }

    /// What a leader knows of who is not running.
    pub fn note_offline(&mut self, image: &MetadataImage) {
        if self.image.replicas.len() > 1 {
            let replicas = self.image.replicas.iter().copied();
            let offline = replicas.filter(|node| image.active(*node).is_none());
            self.machine.set_offline(offline.collect());
        }
    }

    /// While it leads and others follow: asks for those to be in sync who are.
    pub fn look_at_isr(&mut self, env: &mut Env, who: Who) -> Option<IsrChange> {
        self.looks_at_isr = false;
        let proposal = self.machine.propose_isr(env.now);
        self.go_on(env, who);
        let IsrProposal {
            leader_epoch,
            partition_epoch,
            isr,
            recovered,
        } = proposal?;
        if env.sabotaged(Sabotage::CommitByInSync) {
            self.machine.isr_refused(partition_epoch);
            self.go_on(env, who);
        }
        Some(IsrChange {
            partition: self.id,
            leader_epoch,
            partition_epoch,
            isr,
            recovered,
        })
    }

    /// Where this log ends, if the coordinator waits to hear of it.
    pub fn log_end_report(&self) -> Option<LogEndReport> {
        let partition_epoch = self.machine.asked()?;
        let known = self.agenda.is_here() && self.agenda.has_role();
        known.then(|| LogEndReport {
            partition: self.id,
            partition_epoch,
            log_end: LogEnd {
                last_epoch: self.epochs.latest(),
                log_end: self.machine.log_end(),
            },
        })
    }

    /// What became of a wish.
    pub fn isr_answered(&mut self, env: &mut Env, who: Who, verdict: &IsrVerdict) {
        if let IsrVerdict::Refused {
            partition_epoch: Some(epoch),
            ..
        } = verdict
        {
            self.machine.isr_refused(*epoch);
            self.go_on(env, who);
        }
    }

    /// What a follower is told whose log is a prefix of this one.
    pub(super) fn continues(&self, env: &Env) -> Look<LogReader> {
        let Some(log) = &self.log else {
            return refused(self.not_leader());
        };
        let mut committed = self.readable().committed;
        if env.sabotaged(Sabotage::TellUncommitted) {
            committed = self.machine.log_end();
        }
        Look::Continues(ToRead {
            log: log.reader(),
            log_end: self.machine.log_end(),
            committed,
        })
    }

    /// Where this replica's log is.
    pub(super) fn here(&self) -> ReplicaPosition {
        ReplicaPosition {
            partition: self.id,
            leader_epoch: self.machine.leader_epoch(),
            log_end: self.machine.log_end(),
            last_epoch: self.epochs.latest(),
            durable: self.machine.durable(),
            committed: self.machine.committed().unwrap_or(Offset::ZERO),
        }
    }

    /// Tells the checkers what is committed here.
    pub(super) fn check(&mut self, env: &mut Env, readable: Readable) {
        // Of a topic that has one replica left the machine counts what is synced, whatever was enough before.
        let has = match self.config.durability {
            Durability::Fsync => self.machine.durable(),
            Durability::Replicated => self.machine.log_end(),
        };
        let in_sync = &mut env.checkers.in_sync;
        let verdict = in_sync.has(self.id, self.me, has, &self.epochs);
        env.check(verdict);
        let Some(committed) = self.machine.committed() else {
            return;
        };
        if self.machine.is_leader() {
            let (reign, end) = (self.machine.leader_epoch(), readable.last_stable);
            env.checkers.reigns.committed(self.id, reign, committed);
            let verdict = env.checkers.committed.readable(self.id, reign, end);
            env.check(verdict);
        }
        let Some(log) = self.log.as_ref().filter(|_| committed > self.checked) else {
            return;
        };
        let reader = log.reader();
        let from = self.checked.max(reader.start());
        let read = reader.read(from, committed, CHECKED_BYTES, Isolation::ReadUncommitted);
        let read = match read {
            Ok(read) => read,
            Err(error) => {
                return env.break_promise(format!("what is committed cannot be read: {error}"));
            }
        };
        for batch in LogBatches::new(read.bytes) {
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => return env.break_promise(format!("a batch is damaged: {error}")),
            };
            let (base, epoch) = (batch.header().base_offset, batch.header().leader_epoch);
            let replicas = &mut env.checkers.replicas;
            let verdict = replicas.committed(self.id, self.me, base, batch.bytes());
            env.check(verdict);
            let end = base.plus(u64::from(batch.header().record_count));
            let verdict = env.checkers.in_sync.committed(self.id, end, epoch);
            env.check(verdict);
        }
        self.checked = read.next_offset;
    }
}
