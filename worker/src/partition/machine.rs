//! A replica's role, who is in sync, what is committed, and who is fenced.
//!
//! A record is committed once it is durable on every replica that could become leader: every member of
//! the *maximal* in-sync set, which includes members whose joining or leaving is not confirmed. The set
//! in the metadata never shrinks below `min_insync_replicas`; a member that is away keeps its place and
//! holds the committed offset back. Hence whoever is elected has every committed record.
//!
//! A suspect may have lost what it had acknowledged: what it said before does not count, and once it has
//! fetched everything again its leader says so. Where a leader had to begin that may lack committed records,
//! nothing counts as committed that was so before.
//!
//! The machine knows replicas, epochs and offsets, not sockets or files.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{LeaderEpoch, NodeId, PartitionEpoch, WorkerEpoch};
use common::offset::Offset;
use common::protocol::metadata::PartitionImage;
use common::protocol::produce::Acks;
use common::protocol::topic::{Durability, TopicConfig};
use common::time::{Span, Tick};

use crate::log::leader_epochs::{EpochEnd, LeaderEpochs};

/// A follower that has not caught up for so long is proposed to leave the in-sync set.
pub const REPLICA_LAG_MAX: Span = Span::from_secs(10);

/// One replica of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PartitionMachine {
    me: NodeId,
    durability: Durability,
    min_insync: usize,
    leader_epoch: LeaderEpoch,
    partition_epoch: PartitionEpoch,
    role: Role,
    log_end: Offset,
    durable: Offset,
    committed: Offset,
    /// The last reign that began without what was committed before, perhaps.
    unclean: Option<LeaderEpoch>,
    /// The coordinator waits to hear where this log ends.
    asked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Role {
    /// Serves nobody: the metadata has not said anything yet, or the leader is elsewhere.
    Follower {
        leader: Option<NodeId>,
    },
    Leader(Leadership),
}

/// What a leader knows beyond its own log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Leadership {
    /// Where the log ended when this reign began. What lies before it may have been committed under an
    /// earlier leader without this one knowing.
    start: Offset,
    isr: BTreeSet<NodeId>,
    /// Those of them that may lack records.
    suspect: BTreeSet<NodeId>,
    /// Everyone who may be in the in-sync set by now: the set, and what was proposed.
    maximal_isr: BTreeSet<NodeId>,
    proposed: Option<PartitionEpoch>,
    /// Replicas that are known not to be running.
    offline: BTreeSet<NodeId>,
    followers: BTreeMap<NodeId, Follower>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Follower {
    worker_epoch: WorkerEpoch,
    log_end: Offset,
    durable: Offset,
    /// It has fetched in this reign, from a log that agrees with ours. Progress of before says nothing.
    fetched: bool,
    /// When it asked last, and where our log ended then.
    asked_at: Tick,
    asked_end: Offset,
    /// When it last had all there was.
    caught_up_at: Tick,
}

/// Why an append is refused before anything is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum AppendRefusal {
    #[error("the partition is led by another node")]
    NotLeader { leader: Option<NodeId> },
    #[error("the partition's leader epoch is {current}, the request has {found}")]
    Fenced {
        current: LeaderEpoch,
        found: LeaderEpoch,
    },
    #[error("the request has leader epoch {found}, this node has heard of {current} only")]
    NotHeardOf {
        current: LeaderEpoch,
        found: LeaderEpoch,
    },
    #[error("{online} replicas are in sync, {needed} are needed")]
    NotEnoughReplicas { online: usize, needed: usize },
}

/// A follower asks for what comes after its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FollowerFetch {
    pub from: NodeId,
    pub worker_epoch: WorkerEpoch,
    pub leader_epoch: LeaderEpoch,
    /// Where its log ends, the epoch of its last batch, and up to where its log is durable.
    pub log_end: Offset,
    pub last_epoch: Option<LeaderEpoch>,
    pub durable: Offset,
}

/// What a follower is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FollowerAnswer {
    /// Its log is a prefix of ours: it may go on from its end.
    Continue,
    /// Its log went another way: it must cut it off here or earlier, and ask again.
    Diverging(EpochEnd),
    /// What would come next was removed long ago: it must begin anew where our log begins.
    Removed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum FollowerRefusal {
    #[error("this node does not lead the partition")]
    NotLeader,
    #[error("the partition's leader epoch is {current}, the follower has {found}")]
    WrongEpoch {
        current: LeaderEpoch,
        found: LeaderEpoch,
    },
    #[error("node {0} has no replica of the partition")]
    NotReplica(NodeId),
    #[error("the request comes from an earlier life of node {0}")]
    EarlierLife(NodeId),
}

/// A wish to change the in-sync set, as a compare-and-set on the partition's record in the metadata.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IsrProposal {
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    /// With the life of each that the proposal is about.
    pub isr: BTreeMap<NodeId, WorkerEpoch>,
    /// Suspects that have fetched everything again.
    pub recovered: BTreeSet<NodeId>,
}

impl PartitionMachine {
    /// The replica on node `me` whose log, durable as far as it goes, ends at `log_end`. It leads and
    /// follows nobody until it is assigned.
    pub fn new(me: NodeId, log_end: Offset) -> PartitionMachine {
        PartitionMachine {
            me,
            durability: Durability::Fsync,
            min_insync: 1,
            leader_epoch: LeaderEpoch(-1),
            partition_epoch: PartitionEpoch(0),
            role: Role::Follower { leader: None },
            log_end,
            durable: log_end,
            committed: Offset::ZERO,
            unclean: None,
            asked: false,
        }
    }

    /// The metadata says this of the partition. What is older than what is known is ignored.
    pub fn assign(&mut self, now: Tick, image: &PartitionImage, config: &TopicConfig) {
        let known = (self.leader_epoch, self.partition_epoch);
        if (image.leader_epoch, image.partition_epoch) < known {
            return;
        }
        // With a single replica, "in the memory of every replica" would mean in one memory only.
        self.durability = if image.replicas.len() == 1 {
            Durability::Fsync
        } else {
            config.durability
        };
        self.min_insync = usize::try_from(config.min_insync_replicas)
            .unwrap_or(usize::MAX)
            .min(image.replicas.len());
        let new_reign = image.leader_epoch > self.leader_epoch;
        let confirmed = image.partition_epoch > self.partition_epoch || new_reign;
        self.leader_epoch = image.leader_epoch;
        self.partition_epoch = image.partition_epoch;
        let unclean = image.unclean.map(|unclean| unclean.since);
        if self.unclean != unclean {
            self.unclean = unclean;
            self.committed = Offset::ZERO;
        }
        self.asked = image.leader.is_none()
            && !image.suspect.is_empty()
            && !image.log_ends.contains_key(&self.me);
        if image.leader != Some(self.me) {
            self.role = Role::Follower {
                leader: image.leader,
            };
            return;
        }
        match &mut self.role {
            Role::Leader(leadership) if !new_reign => {
                if confirmed {
                    leadership.isr = image.isr.iter().copied().collect();
                    leadership.doubt(image.suspect.iter().copied().collect());
                    leadership.maximal_isr = leadership.isr.clone();
                    leadership.proposed = None;
                }
                leadership.follow_only(self.me, &image.replicas, now);
            }
            Role::Leader(_) | Role::Follower { .. } => {
                let isr: BTreeSet<NodeId> = image.isr.iter().copied().collect();
                let mut leadership = Leadership {
                    start: self.log_end,
                    maximal_isr: isr.clone(),
                    isr,
                    suspect: image.suspect.iter().copied().collect(),
                    proposed: None,
                    offline: BTreeSet::new(),
                    followers: BTreeMap::new(),
                };
                leadership.follow_only(self.me, &image.replicas, now);
                self.role = Role::Leader(leadership);
            }
        }
        self.advance();
    }

    /// These nodes are known not to be running.
    pub fn set_offline(&mut self, offline: BTreeSet<NodeId>) {
        if let Role::Leader(leadership) = &mut self.role {
            leadership.offline = offline;
        }
    }

    /// Whether a batch may be appended; the epoch to stamp it with.
    pub fn admit_append(
        &self,
        acks: Acks,
        expected: Option<LeaderEpoch>,
    ) -> Result<LeaderEpoch, AppendRefusal> {
        let current = self.leader_epoch;
        match expected {
            Some(found) if found < current => {
                return Err(AppendRefusal::Fenced { current, found });
            }
            Some(found) if found > current => {
                return Err(AppendRefusal::NotHeardOf { current, found });
            }
            Some(_) | None => {}
        }
        let leadership = match &self.role {
            Role::Leader(leadership) => leadership,
            Role::Follower { leader } => return Err(AppendRefusal::NotLeader { leader: *leader }),
        };
        let online = leadership.isr.difference(&leadership.offline).count();
        if acks == Acks::All && online < self.min_insync {
            return Err(AppendRefusal::NotEnoughReplicas {
                online,
                needed: self.min_insync,
            });
        }
        Ok(current)
    }

    /// The log now ends here; what was added is not durable yet.
    pub fn appended(&mut self, log_end: Offset) {
        assert!(self.log_end <= log_end, "appending never shortens a log");
        self.log_end = log_end;
        self.advance();
    }

    /// The log is durable up to here.
    pub fn synced(&mut self, durable: Offset) {
        assert!(
            durable <= self.log_end,
            "a log cannot be durable beyond its end"
        );
        self.durable = self.durable.max(durable);
        self.advance();
    }

    /// A follower asks for more, and thereby says what it has. Our log begins at `log_start`.
    pub fn follower_fetched(
        &mut self,
        now: Tick,
        fetch: FollowerFetch,
        epochs: &LeaderEpochs,
        log_start: Offset,
    ) -> Result<FollowerAnswer, FollowerRefusal> {
        let current = self.leader_epoch;
        let log_end = self.log_end;
        let Role::Leader(leadership) = &mut self.role else {
            return Err(FollowerRefusal::NotLeader);
        };
        if fetch.leader_epoch != current {
            return Err(FollowerRefusal::WrongEpoch {
                current,
                found: fetch.leader_epoch,
            });
        }
        let follower = leadership
            .followers
            .get_mut(&fetch.from)
            .ok_or(FollowerRefusal::NotReplica(fetch.from))?;
        if fetch.worker_epoch < follower.worker_epoch {
            return Err(FollowerRefusal::EarlierLife(fetch.from));
        }
        // What was removed was committed, and its epochs are forgotten: nothing tells where they end.
        if fetch.log_end < log_start {
            return Ok(FollowerAnswer::Removed);
        }
        let nothing = EpochEnd {
            epoch: LeaderEpoch(-1),
            end: Offset::ZERO,
        };
        if let Some(last_epoch) = fetch.last_epoch {
            let ours = epochs.end_of(last_epoch, log_end).unwrap_or(nothing);
            if ours.epoch < last_epoch || ours.end < fetch.log_end {
                // Its log holds batches that ours does not: its progress in them is no progress.
                return Ok(FollowerAnswer::Diverging(ours));
            }
        } else if fetch.log_end > log_end {
            return Ok(FollowerAnswer::Diverging(nothing));
        }
        // Under load it never has all there is, but what there was when it asked before.
        let caught_up_at = if fetch.log_end >= log_end {
            now
        } else if follower.fetched && fetch.log_end >= follower.asked_end {
            follower.caught_up_at.max(follower.asked_at)
        } else {
            follower.caught_up_at
        };
        *follower = Follower {
            worker_epoch: fetch.worker_epoch,
            log_end: fetch.log_end,
            durable: fetch.durable.min(fetch.log_end),
            fetched: true,
            asked_at: now,
            asked_end: log_end,
            caught_up_at,
        };
        self.advance();
        Ok(FollowerAnswer::Continue)
    }

    /// A change of the in-sync set to ask for, if there is one and none is under way. From now on the
    /// change may have happened, whatever becomes of the request.
    pub fn propose_isr(&mut self, now: Tick) -> Option<IsrProposal> {
        let (durability, committed, me) = (self.durability, self.committed, self.me);
        let Role::Leader(leadership) = &mut self.role else {
            return None;
        };
        if leadership.proposed.is_some() {
            return None;
        }
        let mut wanted: BTreeMap<NodeId, WorkerEpoch> = BTreeMap::new();
        let mut recovered: BTreeSet<NodeId> = BTreeSet::new();
        wanted.insert(me, WorkerEpoch::default());
        for (id, follower) in &leadership.followers {
            // Joining is judged by the same measure as committing, or a record could be committed on
            // the strength of bytes that one loss of power takes away.
            let has = follower.measure(durability);
            let behind = now.since(follower.caught_up_at) > REPLICA_LAG_MAX;
            let member = leadership.isr.contains(id);
            let complete = follower.fetched
                && has >= committed
                && has >= leadership.start
                && !leadership.offline.contains(id);
            if (member || complete) && !behind {
                wanted.insert(*id, follower.worker_epoch);
                if complete && leadership.suspect.contains(id) {
                    recovered.insert(*id);
                }
            }
        }
        // Members may only leave while enough stay that have everything.
        let trusted = wanted
            .keys()
            .filter(|id| !leadership.suspect.contains(id) || recovered.contains(id));
        if trusted.count() < self.min_insync {
            for id in &leadership.isr {
                let life = leadership
                    .followers
                    .get(id)
                    .map_or_else(WorkerEpoch::default, |follower| follower.worker_epoch);
                wanted.entry(*id).or_insert(life);
            }
        }
        if wanted.keys().eq(leadership.isr.iter()) && recovered.is_empty() {
            return None;
        }
        leadership.maximal_isr = leadership
            .isr
            .union(&wanted.keys().copied().collect())
            .copied()
            .collect();
        leadership.proposed = Some(self.partition_epoch);
        Some(IsrProposal {
            leader_epoch: self.leader_epoch,
            partition_epoch: self.partition_epoch,
            isr: wanted,
            recovered,
        })
    }

    /// The proposal was refused, and the partition's record still is what it was based on. An answer
    /// that never came is not a refusal: then the set stays as large as it may be.
    pub fn isr_refused(&mut self, partition_epoch: PartitionEpoch) {
        if let Role::Leader(leadership) = &mut self.role
            && leadership.proposed == Some(partition_epoch)
            && self.partition_epoch == partition_epoch
        {
            leadership.proposed = None;
            leadership.maximal_isr = leadership.isr.clone();
            self.advance();
        }
    }

    /// The leader says what is committed; of that, what this log has.
    pub fn leader_committed(&mut self, committed: Offset) {
        if matches!(self.role, Role::Follower { .. }) {
            self.committed = self.committed.max(committed.min(self.log_end));
        }
    }

    /// A follower's log was cut off here, because the leader's goes another way. Cutting off what is
    /// committed would mean that the rules were broken: then nothing may be done.
    pub fn truncated(&mut self, log_end: Offset) {
        assert!(
            log_end >= self.committed,
            "a log was cut off at {log_end}, below its committed offset {}",
            self.committed
        );
        self.log_end = self.log_end.min(log_end);
        self.durable = self.durable.min(log_end);
    }

    /// Up to where readers may read. `None`: this reign has yet to learn what was committed before it.
    pub fn committed(&self) -> Option<Offset> {
        match &self.role {
            Role::Leader(leadership) if self.committed < leadership.start => None,
            Role::Leader(_) | Role::Follower { .. } => Some(self.committed),
        }
    }

    pub fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    pub fn leader(&self) -> Option<NodeId> {
        match &self.role {
            Role::Leader(_) => Some(self.me),
            Role::Follower { leader } => *leader,
        }
    }

    /// Whether the coordinator waits to hear where this log ends, and for which of its records. Until there is
    /// another record the log stays as it is, because nobody leads.
    pub fn asked(&self) -> Option<PartitionEpoch> {
        self.asked.then_some(self.partition_epoch)
    }

    /// The reign began without some of what was committed before, perhaps.
    pub fn leads_uncleanly(&self) -> bool {
        self.is_leader() && self.unclean == Some(self.leader_epoch)
    }

    /// When this replica's records count as stored.
    pub fn durability(&self) -> Durability {
        self.durability
    }

    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.leader_epoch
    }

    pub fn log_end(&self) -> Offset {
        self.log_end
    }

    pub fn durable(&self) -> Offset {
        self.durable
    }

    /// Up to where this replica has what counts for being committed.
    pub fn measure(&self) -> Offset {
        match self.durability {
            Durability::Fsync => self.durable,
            Durability::Replicated => self.log_end,
        }
    }

    /// The reign it follows, if another node leads.
    pub fn follows(&self) -> Option<LeaderEpoch> {
        match &self.role {
            Role::Follower { leader: Some(_) } => Some(self.leader_epoch),
            Role::Follower { leader: None } | Role::Leader(_) => None,
        }
    }

    /// Moves the committed offset up to what every replica has that could become leader.
    fn advance(&mut self) {
        let Role::Leader(leadership) = &self.role else {
            return;
        };
        let own = self.measure();
        let least = leadership
            .maximal_isr
            .iter()
            .map(|id| {
                if *id == self.me {
                    own
                } else {
                    leadership
                        .followers
                        .get(id)
                        .filter(|follower| follower.fetched)
                        .map_or(Offset::ZERO, |follower| follower.measure(self.durability))
                }
            })
            .min()
            .unwrap_or(own)
            .min(own);
        self.committed = self.committed.max(least);
    }
}

impl Leadership {
    /// These may lack records. What one of them said that was not among them before may be of the time before.
    fn doubt(&mut self, suspect: BTreeSet<NodeId>) {
        for id in suspect.difference(&self.suspect) {
            if let Some(follower) = self.followers.get_mut(id) {
                follower.fetched = false;
            }
        }
        self.suspect = suspect;
    }

    fn follow_only(&mut self, me: NodeId, replicas: &[NodeId], now: Tick) {
        self.followers
            .retain(|id, _| *id != me && replicas.contains(id));
        for id in replicas.iter().filter(|id| **id != me) {
            self.followers.entry(*id).or_insert(Follower {
                caught_up_at: now,
                ..Follower::default()
            });
        }
    }
}

impl Follower {
    fn measure(&self, durability: Durability) -> Offset {
        match durability {
            Durability::Fsync => self.durable,
            Durability::Replicated => self.log_end,
        }
    }
}
