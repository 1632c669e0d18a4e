//! Its partitions: it opens, follows and removes them as the cluster's facts say, and asks for them what they want.

use common::ids::{MetadataVersion, NodeId, PartitionId, TopicPartition};
use common::protocol::replicate::{AlterIsr, IsrChange, LogEndReport};
use common::time::Span;

use super::{CALL_DEADLINE, Life, OPEN_MS, Purpose, REPLICATE_DEADLINE, Timer};
use crate::sim::env::Env;
use crate::sim::network::Request;
use crate::sim::partition::Partition;
use crate::sim::replication::NextCall;
use crate::sim::sabotage::Sabotage;

impl Life {
    pub(super) fn follow_partitions(&mut self, env: &mut Env) {
        let Some(session) = self.session.clone() else {
            return;
        };
        // Work may come once the image knows of this life, and its partitions are open.
        if self.image.version < MetadataVersion(session.epoch().0)
            || !self.image.workers.contains_key(&session.worker)
        {
            return;
        }
        let image = self.image.clone();
        self.remove_partitions(env, session.worker);
        for topic in image.topics.values() {
            for (number, assigned) in (0..).zip(&topic.partitions) {
                if !assigned.replicas.contains(&session.worker) {
                    continue;
                }
                let id = TopicPartition {
                    topic: topic.id,
                    partition: PartitionId(number),
                };
                if self.removing.contains(&id) {
                    continue;
                }
                if let Some(partition) = self.partitions.get_mut(&id) {
                    partition.assign(env, self.who, assigned);
                    partition.facts_changed(env, self.who);
                } else {
                    let config = topic.config.clone();
                    let opened = Partition::new(env, id, session.worker, assigned.clone(), config);
                    self.partitions.insert(id, opened);
                    let delay = env.some_disk_ms(OPEN_MS);
                    self.who.after(env, delay, Timer::Open(id));
                }
            }
        }
        if !std::mem::replace(&mut self.ready, true) {
            self.urgent.notify_one();
        }
    }

    pub(super) fn remove_partitions(&mut self, env: &mut Env, me: NodeId) {
        let image = &self.image;
        let stays = |id: TopicPartition| {
            let partition = image.partition(id);
            partition.is_some_and(|partition| partition.replicas.contains(&me))
        };
        let gone = self.partitions.keys().copied().filter(|id| !stays(*id));
        for id in gone.collect::<Vec<_>>() {
            if let Some(mut partition) = self.partitions.remove(&id) {
                partition.close(env, self.who);
            }
            self.removing.insert(id);
            let delay = env.some_disk_ms(OPEN_MS);
            self.who.after(env, delay, Timer::Remove(id));
        }
    }

    pub(super) fn replicate(&mut self, env: &mut Env, calls: Vec<NextCall>) {
        for NextCall {
            leader,
            process,
            call,
        } in calls
        {
            let purpose = Purpose::Replicate(leader, call.session);
            let request = Request::Replicate(call);
            self.call(env, process, request, REPLICATE_DEADLINE, purpose);
        }
    }

    pub(super) fn alter_isr(&mut self, env: &mut Env, change: IsrChange) {
        let Some(session) = self.session.clone() else {
            return;
        };
        let request = Request::AlterIsr(AlterIsr {
            worker: session.worker,
            worker_epoch: session.epoch(),
            changes: vec![change.clone()],
            log_ends: Vec::new(),
        });
        // Too short for nearly every answer.
        let impatient = env.sabotaged(Sabotage::ForgetIsrWish);
        let deadline = if impatient { Span(5) } else { CALL_DEADLINE };
        let purpose = Purpose::AlterIsr(change);
        self.ask_coordinator(env, request, deadline, purpose);
    }

    pub(super) fn say_log_end(&mut self, env: &mut Env, report: LogEndReport) {
        let Some(session) = self.session.clone() else {
            return;
        };
        let request = Request::AlterIsr(AlterIsr {
            worker: session.worker,
            worker_epoch: session.epoch(),
            changes: Vec::new(),
            log_ends: vec![report],
        });
        let purpose = Purpose::LogEnd;
        self.ask_coordinator(env, request, CALL_DEADLINE, purpose);
    }
}
