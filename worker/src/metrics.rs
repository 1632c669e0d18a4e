//! Every metric of a worker, its unit and its meaning.
//!
//! Counters are counted where things happen. What somebody else knows already (tasks, partitions, the load)
//! is asked when the metrics are read.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use common::protocol::node::NodeLoad;
use common::protocol::task::TaskMetrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

type Value = Gauge<f64, AtomicU64>;

/// Buckets of the time a produce request takes, in seconds.
const REQUEST_SECONDS: [f64; 12] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TopicLabels {
    pub topic: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PartitionLabels {
    pub topic: String,
    pub partition: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TaskLabels {
    pub job: String,
    pub task: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabels {
    pub kind: &'static str,
}

/// What a client is made to wait for that has used up its quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Throttled {
    Produce,
    Fetch,
    Stream,
}

/// The registry of one node. Several nodes may share a process, so none is global.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    produced_records: Family<TopicLabels, Counter>,
    produced_bytes: Family<TopicLabels, Counter>,
    produce_seconds: Histogram,
    produce_refused: Counter,
    throttled_requests: Family<KindLabels, Counter>,
    fetched_bytes: Family<TopicLabels, Counter>,
    asked: Mutex<Asked>,
}

/// Gauges that are set anew whenever they are read.
#[derive(Debug)]
struct Asked {
    resident_bytes: Value,
    state_bytes: Value,
    disk_used_bytes: Value,
    disk_free_bytes: Value,
    partitions: Value,
    tasks: Value,
    start_offset: Family<PartitionLabels, Value>,
    end_offset: Family<PartitionLabels, Value>,
    stable_offset: Family<PartitionLabels, Value>,
    task: Vec<OfTasks>,
}

/// A number of every task, and how it is got.
type OfTasks = (Family<TaskLabels, Value>, fn(&TaskMetrics) -> Option<f64>);

/// A partition led here, and where it starts, ends, and ends for those who read committed.
#[derive(Clone, Debug)]
pub struct PartitionNumbers {
    pub labels: PartitionLabels,
    pub start: i64,
    pub end: i64,
    pub stable: i64,
}

/// What a task gauge is called, what it means, and where it comes from.
type TaskGauge = (&'static str, &'static str, fn(&TaskMetrics) -> Option<f64>);

const TASK_GAUGES: [TaskGauge; 11] = [
    ("task_rows_in", "Rows taken since the task started", |m| {
        Some(m.rows_in as f64)
    }),
    ("task_rows_out", "Rows given since the task started", |m| {
        Some(m.rows_out as f64)
    }),
    ("task_bytes_in", "Bytes taken since the task started", |m| {
        Some(m.bytes_in as f64)
    }),
    (
        "task_dead_letters",
        "Records and rows given up since the task started",
        |m| Some(m.dead_letters as f64),
    ),
    (
        "task_late_rows",
        "Rows that came after their windows since the task started",
        |m| Some(m.late_rows as f64),
    ),
    (
        "task_lag_records",
        "Records its source has still to read",
        |m| Some(m.lag_records as f64),
    ),
    (
        "task_watermark_seconds",
        "Event time up to which it has come, since 1970",
        |m| m.watermark.map(|watermark| watermark.0 as f64 / 1e3),
    ),
    ("task_state_bytes", "Bytes of its state", |m| {
        Some(m.state_bytes as f64)
    }),
    (
        "task_state_memory_bytes",
        "Bytes of memory its state takes",
        |m| Some(m.state_memory_bytes as f64),
    ),
    (
        "task_busy_ratio",
        "Share of the last moment in which it worked",
        |m| Some(f64::from(m.busy_permille) / 1e3),
    ),
    (
        "task_blocked_ratio",
        "Share of the last moment in which it waited for what follows it",
        |m| Some(f64::from(m.blocked_permille) / 1e3),
    ),
];

impl Metrics {
    pub fn new() -> Metrics {
        let mut registry = Registry::with_prefix("millstream_worker");
        let (produced_records, produced_bytes, fetched_bytes) = <(
            Family<TopicLabels, Counter>,
            Family<TopicLabels, Counter>,
            Family<TopicLabels, Counter>,
        )>::default();
        let produce_seconds = Histogram::new(REQUEST_SECONDS);
        registry.register(
            "produced_records",
            "Records that clients sent here and that were acknowledged",
            produced_records.clone(),
        );
        registry.register_with_unit(
            "produced",
            "Bytes of the requests they came in",
            Unit::Bytes,
            produced_bytes.clone(),
        );
        registry.register_with_unit(
            "produce",
            "From a request's last byte to its acknowledgement",
            Unit::Seconds,
            produce_seconds.clone(),
        );
        let produce_refused = Counter::default();
        registry.register(
            "produce_refused",
            "Requests of clients that were told to come again because too much was under way",
            produce_refused.clone(),
        );
        let throttled_requests = Family::<KindLabels, Counter>::default();
        registry.register(
            "throttled_requests",
            "Requests of clients that were told to come again because of their quota, and pauses of streams",
            throttled_requests.clone(),
        );
        registry.register_with_unit(
            "fetched",
            "Bytes of records that clients read here",
            Unit::Bytes,
            fetched_bytes.clone(),
        );
        let asked = Asked::new(&mut registry);
        Metrics {
            registry,
            produced_records,
            produced_bytes,
            produce_seconds,
            produce_refused,
            throttled_requests,
            fetched_bytes,
            asked: Mutex::new(asked),
        }
    }

    pub fn produced(&self, topic: &str, records: u64, bytes: u64, seconds: f64) {
        let labels = TopicLabels {
            topic: topic.to_owned(),
        };
        self.produced_records.get_or_create(&labels).inc_by(records);
        self.produced_bytes.get_or_create(&labels).inc_by(bytes);
        self.produce_seconds.observe(seconds);
    }

    pub fn produce_refused(&self) {
        self.produce_refused.inc();
    }

    pub fn throttled(&self, what: Throttled) {
        let kind = match what {
            Throttled::Produce => "produce",
            Throttled::Fetch => "fetch",
            Throttled::Stream => "stream",
        };
        let labels = KindLabels { kind };
        self.throttled_requests.get_or_create(&labels).inc();
    }

    pub fn fetched(&self, topic: &str, bytes: u64) {
        let labels = TopicLabels {
            topic: topic.to_owned(),
        };
        self.fetched_bytes.get_or_create(&labels).inc_by(bytes);
    }

    /// The text that Prometheus reads.
    pub fn text(
        &self,
        load: &NodeLoad,
        partitions: &[PartitionNumbers],
        tasks: &[(TaskLabels, TaskMetrics)],
    ) -> String {
        // One reader at a time: between its setting and its reading nobody else sets.
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.set(load, partitions, tasks);
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

impl Asked {
    fn new(registry: &mut Registry) -> Asked {
        let mut gauge = |name: &str, help: &str| {
            let gauge = Value::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let [
            resident_bytes,
            state_bytes,
            disk_used_bytes,
            disk_free_bytes,
            partitions,
            tasks,
        ] = [
            ("resident_bytes", "Memory of the process"),
            ("state_bytes", "State of all tasks"),
            ("disk_used_bytes", "Files in the data directory"),
            ("disk_free_bytes", "What its disk has left"),
            ("partitions_led", "Partitions led here"),
            ("tasks", "Tasks of jobs that run here"),
        ]
        .map(|(name, help)| gauge(name, help));
        let mut family = |name: &str, help: &str| {
            let family = Family::<PartitionLabels, Value>::default();
            registry.register(name, help, family.clone());
            family
        };
        let start_offset = family("partition_start_offset", "The first record there is");
        let end_offset = family(
            "partition_end_offset",
            "One past the last record that counts",
        );
        let stable_offset = family(
            "partition_last_stable_offset",
            "One past the last record that readers of committed records see",
        );
        let task = TASK_GAUGES.map(|(name, help, value)| {
            let family = Family::<TaskLabels, Value>::default();
            registry.register(name, help, family.clone());
            (family, value)
        });
        Asked {
            resident_bytes,
            state_bytes,
            disk_used_bytes,
            disk_free_bytes,
            partitions,
            tasks,
            start_offset,
            end_offset,
            stable_offset,
            task: task.into(),
        }
    }

    fn set(
        &self,
        load: &NodeLoad,
        partitions: &[PartitionNumbers],
        tasks: &[(TaskLabels, TaskMetrics)],
    ) {
        self.resident_bytes.set(load.resident_bytes as f64);
        self.state_bytes.set(load.state_bytes as f64);
        self.disk_used_bytes.set(load.disk_used_bytes as f64);
        self.disk_free_bytes.set(load.disk_free_bytes as f64);
        self.partitions.set(partitions.len() as f64);
        self.tasks.set(tasks.len() as f64);
        // What has gone since must not be shown for ever.
        for family in [&self.start_offset, &self.end_offset, &self.stable_offset] {
            family.clear();
        }
        for partition in partitions {
            let set = |family: &Family<PartitionLabels, Value>, offset: i64| {
                family.get_or_create(&partition.labels).set(offset as f64);
            };
            set(&self.start_offset, partition.start);
            set(&self.end_offset, partition.end);
            set(&self.stable_offset, partition.stable);
        }
        for (family, value) in &self.task {
            family.clear();
            for (labels, metrics) in tasks {
                if let Some(value) = value(metrics) {
                    family.get_or_create(labels).set(value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_and_what_is_are_told_and_what_is_gone_is_not() {
        let metrics = Metrics::new();
        metrics.produced("bids", 3, 120, 0.004);
        metrics.fetched("bids", 60);
        metrics.throttled(Throttled::Stream);
        let partition = PartitionNumbers {
            labels: PartitionLabels {
                topic: "bids".to_owned(),
                partition: 1,
            },
            start: 0,
            end: 3,
            stable: 2,
        };
        let labels = TaskLabels {
            job: "counts".to_owned(),
            task: "0.1".to_owned(),
        };
        let task = TaskMetrics {
            rows_in: 7,
            ..TaskMetrics::default()
        };
        let text = metrics.text(&NodeLoad::default(), &[partition], &[(labels, task)]);
        for line in [
            "millstream_worker_produced_records_total{topic=\"bids\"} 3",
            "millstream_worker_produced_bytes_total{topic=\"bids\"} 120",
            "millstream_worker_produce_seconds_bucket{le=\"0.005\"} 1",
            "millstream_worker_fetched_bytes_total{topic=\"bids\"} 60",
            "millstream_worker_throttled_requests_total{kind=\"stream\"} 1",
            "millstream_worker_partition_end_offset{topic=\"bids\",partition=\"1\"} 3.0",
            "millstream_worker_task_rows_in{job=\"counts\",task=\"0.1\"} 7.0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(
            !text.contains("task_watermark_seconds{"),
            "nothing was said of time"
        );
        let later = metrics.text(&NodeLoad::default(), &[], &[]);
        assert!(!later.contains("counts"), "{later}");
    }
}
