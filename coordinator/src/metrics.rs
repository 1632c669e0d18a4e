//! Every metric of the coordinator, its unit and its meaning.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::metadata::ClusterMetadata;
use crate::metadata::nodes::WorkerStatus;
use crate::raft::membership::GroupStatus;
use crate::rebalance::status::Status;

type Count = Gauge<u64, AtomicU64>;

/// The registry of one node, and the gauges that are set when it is read.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    metadata_version: Count,
    workers_active: Count,
    workers_fenced: Count,
    topics: Count,
    partitions: Count,
    partitions_without_leader: Count,
    partitions_data_loss_possible: Count,
    replicas_suspect: Count,
    jobs: Count,
    jobs_running: Count,
    raft_term: Count,
    leads: Count,
    coordinators: Count,
    rebalance_moves: Count,
    rebalance_moves_begun: Count,
}

impl Metrics {
    pub fn new() -> Metrics {
        let mut registry = Registry::with_prefix("millstream_coordinator");
        let mut gauge = |name: &str, help: &str| {
            let gauge = Count::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        Metrics {
            metadata_version: gauge("metadata_version", "Commands applied to the metadata"),
            workers_active: gauge("workers_active", "Workers that may be given work"),
            workers_fenced: gauge("workers_fenced", "Known workers that are gone"),
            topics: gauge("topics", "Topics"),
            partitions: gauge("partitions", "Partitions of all topics"),
            partitions_without_leader: gauge(
                "partitions_without_leader",
                "Partitions that can be neither written nor read",
            ),
            partitions_data_loss_possible: gauge(
                "partitions_data_loss_possible",
                "Partitions that went on although acknowledged records may have been lost",
            ),
            replicas_suspect: gauge(
                "replicas_suspect",
                "Replicas in sync that may lack records and do not lead before they have them again",
            ),
            jobs: gauge("jobs", "Jobs that are not deleted"),
            jobs_running: gauge("jobs_running", "Jobs with tasks that should run"),
            raft_term: gauge(
                "raft_term",
                "Grows with every election of the coordinators' group",
            ),
            leads: gauge("leads", "1 if this coordinator leads"),
            coordinators: gauge(
                "coordinators",
                "Coordinators of the group, as this one knows it",
            ),
            rebalance_moves: gauge(
                "rebalance_moves",
                "Moves of replicas, standbys and jobs that are under way",
            ),
            rebalance_moves_begun: gauge(
                "rebalance_moves_begun",
                "Moves that were begun without being asked since this coordinator leads",
            ),
            registry,
        }
    }

    /// The text that Prometheus reads.
    pub fn text(
        &self,
        metadata: &ClusterMetadata,
        group: &GroupStatus,
        rebalance: Option<&Status>,
    ) -> String {
        let count = |n: usize| n as u64;
        let workers = |status| count(metadata.workers().filter(|w| w.status == status).count());
        let partitions = || metadata.topics_by_name().flat_map(|row| &row.partitions);
        let leaderless = partitions().filter(|p| p.leader.is_none());
        let running = metadata.jobs_by_name().filter(|j| j.deployment.is_some());
        self.metadata_version.set(metadata.version().0);
        self.workers_active.set(workers(WorkerStatus::Active));
        self.workers_fenced.set(workers(WorkerStatus::Fenced));
        self.topics.set(count(metadata.topics_by_name().count()));
        self.partitions.set(count(partitions().count()));
        self.partitions_without_leader
            .set(count(leaderless.count()));
        let lossy = partitions().filter(|p| p.unclean.is_some());
        self.partitions_data_loss_possible.set(count(lossy.count()));
        let suspects = partitions().map(|p| p.suspect.len()).sum();
        self.replicas_suspect.set(count(suspects));
        self.jobs.set(count(metadata.jobs_by_name().count()));
        self.jobs_running.set(count(running.count()));
        let leads = group
            .members
            .iter()
            .any(|m| m.leads && Some(m.coordinator) == group.me);
        self.raft_term.set(group.term);
        self.leads.set(u64::from(leads));
        self.coordinators.set(count(group.members.len()));
        let moves = rebalance.map_or(0, |status| status.moves.len());
        self.rebalance_moves.set(count(moves));
        let begun = rebalance.map_or(0, |status| status.begun);
        self.rebalance_moves_begun.set(begun);
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a text takes whatever is written to it");
        text
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}
