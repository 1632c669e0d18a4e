//! What deploying or changing a job means to the metadata: its plan, the topics it needs, one command for all of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use common::error::{ErrorCode, Problem};
use common::ids::{JobName, TopicId, TopicName};
use common::limits::{
    DEFAULT_CHECKPOINT_INTERVAL, MAX_ARCHIVES, MAX_KEY_GROUPS, MAX_STANDBYS, MIN_ARCHIVE_INTERVAL,
    MIN_CHECKPOINT_INTERVAL,
};
use common::objects::location::Location;
use common::protocol::job::CreateJob;
use common::protocol::topic::{CreateTopic, TopicConfig};
use common::time::Span;

use super::numbering::numbered_from;
use crate::controller::topics;
use crate::metadata::ClusterMetadata;
use crate::metadata::command::Command;
use crate::metadata::division::{JobUpdate, PlannedDivision};
use crate::metadata::jobs::JobRow;
use crate::metadata::savepoints::Restored;
use crate::planner::{PlanContext, PlannedJob, plan_graph, plan_sql};

/// What of the cluster a plan depends on.
/// `job`: its name, if it has one.
pub fn plan_context(metadata: &ClusterMetadata, job: Option<&JobName>) -> PlanContext {
    PlanContext {
        topics: metadata
            .topics_by_name()
            .map(|topic| {
                let partitions = u32::try_from(topic.partitions.len());
                (
                    topic.name.clone(),
                    partitions.expect("a topic has at most 10,000 partitions"),
                )
            })
            .collect(),
        worker_cores: metadata.open_workers().map(|worker| worker.cores).sum(),
        custom_operators: metadata
            .open_workers()
            .flat_map(|worker| worker.operators.iter().cloned())
            .collect(),
        dead_letters: job.map(JobName::dead_letters),
    }
}

/// Says where archives go, if the job wants some and does not say so. `default`: where the coordinator puts savepoints.
pub fn place_archives(spec: &mut CreateJob, default: Option<&Location>) -> Result<(), Problem> {
    let Some(archive) = &mut spec.config.archive else {
        return Ok(());
    };
    archive.location = archive.location.take().or(default.cloned());
    match archive.location {
        Some(_) => Ok(()),
        None => Err(Problem::new(
            ErrorCode::InvalidRequest,
            "neither the job nor the coordinator says where archives go",
        )
        .at("/config/archive/location")
        .hint("Give a \"location\", file:///directory or s3://bucket/prefix, or start the coordinator with --savepoints.")),
    }
}

/// Checks and plans what a user wants to deploy. Takes long for a large query: not for an arbiter.
pub fn plan(spec: &CreateJob, context: &PlanContext) -> Result<PlannedJob, Problem> {
    check(spec)?;
    let key_groups = spec.config.key_groups;
    match (&spec.sql, &spec.graph) {
        (Some(sql), None) => plan_sql(sql, spec.parallelism, key_groups, context),
        (None, Some(graph)) => plan_graph(graph, spec.parallelism, key_groups, context)
            .map_err(|problem| point_into(problem, "/graph")),
        (Some(_), Some(_)) | (None, None) => Err(Problem::new(
            ErrorCode::InvalidRequest,
            "a job is defined by exactly one of \"sql\" and \"graph\"",
        )
        .hint("Give its query as \"sql\", or its nodes as \"graph\".")),
    }
}

/// The topics a planned job needs and the cluster does not have: those it writes, and the one for its
/// dead letters.
pub fn missing_topics(
    spec: &CreateJob,
    planned: &PlannedJob,
    context: &PlanContext,
) -> BTreeMap<TopicName, u32> {
    let mut missing: BTreeMap<TopicName, u32> = planned.sink_topics.iter().cloned().collect();
    let dead_letters = spec.name.dead_letters();
    if !context.topics.contains_key(&dead_letters) {
        missing.entry(dead_letters).or_insert(1);
    }
    missing
}

/// Creates the job with the topics it needs, or nothing. `ids`: one for each of `missing`.
pub fn command(
    metadata: &ClusterMetadata,
    spec: CreateJob,
    planned: PlannedJob,
    missing: &BTreeMap<TopicName, u32>,
    ids: impl IntoIterator<Item = TopicId>,
    restored: Option<Restored>,
) -> Result<Command, Problem> {
    let mut commands = creations(metadata, &planned, missing, ids)?;
    commands.push(Command::CreateJob {
        checkpoint_interval: checkpoint_interval(&spec),
        spec: Arc::new(spec),
        job_graph: Arc::new(planned.graph),
        graph: Arc::new(planned.tasks),
        restored: restored.map(Arc::new),
    });
    Ok(Command::Batch(commands))
}

/// The running job becomes another one, with the topics that it needs. `ids`: one for each of `missing`.
pub fn update_command(
    metadata: &ClusterMetadata,
    row: &JobRow,
    spec: CreateJob,
    planned: PlannedJob,
    missing: &BTreeMap<TopicName, u32>,
    ids: impl IntoIterator<Item = TopicId>,
) -> Result<Command, Problem> {
    let mut commands = creations(metadata, &planned, missing, ids)?;
    let first_stage = row.next_stage();
    commands.push(Command::Divide {
        job: row.id,
        first_stage,
        division: Some(PlannedDivision {
            parallelism: planned.parallelism,
            graph: Arc::new(numbered_from(first_stage, planned.tasks)?),
            places: BTreeMap::new(),
            update: Some(Arc::new(JobUpdate {
                of: row.first_stage(),
                checkpoint_interval: checkpoint_interval(&spec),
                spec,
                job_graph: planned.graph,
            })),
        }),
    });
    Ok(Command::Batch(commands))
}

fn checkpoint_interval(spec: &CreateJob) -> Span {
    let interval = spec.checkpoint_interval_ms.map(Span);
    interval.unwrap_or(DEFAULT_CHECKPOINT_INTERVAL)
}

fn creations(
    metadata: &ClusterMetadata,
    planned: &PlannedJob,
    missing: &BTreeMap<TopicName, u32>,
    ids: impl IntoIterator<Item = TopicId>,
) -> Result<Vec<Command>, Problem> {
    let mut commands = Vec::new();
    let replication_factor = replication_factor(metadata, planned);
    for ((name, partitions), id) in missing.iter().zip(ids) {
        // It may have come about since the job was planned.
        if metadata.topic_named(name).is_some() {
            continue;
        }
        let request = CreateTopic {
            name: name.clone(),
            partitions: *partitions,
            replication_factor,
            config: TopicConfig {
                min_insync_replicas: replication_factor.div_ceil(2),
                ..TopicConfig::default()
            },
        };
        commands.push(topics::create(metadata, id, &request)?);
    }
    Ok(commands)
}

/// A job's own topics are as safe as those it reads, as far as there are workers for it.
fn replication_factor(metadata: &ClusterMetadata, planned: &PlannedJob) -> u32 {
    let read = planned.source_topics.iter();
    let factors = read.filter_map(|name| Some(metadata.topic_named(name)?.replication_factor()));
    let workers = metadata.open_workers().count();
    let factor = factors.max().unwrap_or(1).min(workers).max(1);
    u32::try_from(factor).expect("a factor is bounded")
}

fn check(spec: &CreateJob) -> Result<(), Problem> {
    let refuse =
        |at: &str, detail: String| Err(Problem::new(ErrorCode::InvalidRequest, detail).at(at));
    if let Some(interval) = spec.checkpoint_interval_ms
        && interval < MIN_CHECKPOINT_INTERVAL.0
    {
        let detail = format!(
            "the checkpoint interval is {interval} ms; it is at least {} ms",
            MIN_CHECKPOINT_INTERVAL.0
        );
        return refuse("/checkpoint_interval_ms", detail);
    }
    let timeout = spec.config.checkpoint_timeout;
    if timeout < checkpoint_interval(spec) {
        let detail = format!("the checkpoint timeout, {timeout}, is shorter than the interval");
        return refuse("/config/checkpoint_timeout", detail);
    }
    let key_groups = spec.config.key_groups;
    if key_groups == 0 || key_groups > MAX_KEY_GROUPS {
        let detail = format!("a job has 1 to {MAX_KEY_GROUPS} key groups, not {key_groups}");
        return refuse("/config/key_groups", detail);
    }
    if let Some(archive) = &spec.config.archive {
        if archive.interval < MIN_ARCHIVE_INTERVAL {
            let detail = format!(
                "archives are at least {MIN_ARCHIVE_INTERVAL} apart, not {}",
                archive.interval
            );
            return refuse("/config/archive/interval", detail);
        }
        if !(1..=MAX_ARCHIVES).contains(&archive.keep) {
            let detail = format!(
                "1 to {MAX_ARCHIVES} archives are kept, not {}",
                archive.keep
            );
            return refuse("/config/archive/keep", detail);
        }
    }
    let standbys = spec.config.standbys;
    if standbys > MAX_STANDBYS {
        let detail = format!("a job has at most {MAX_STANDBYS} standbys, not {standbys}");
        return refuse("/config/standbys", detail);
    }
    Ok(())
}

/// The planner points into the graph; its user sent a document around it.
pub fn point_into(mut problem: Problem, prefix: &str) -> Problem {
    problem.at = problem.at.map(|at| match at.starts_with('/') {
        true if at != "/parallelism" => format!("{prefix}{at}"),
        _ => at,
    });
    problem
}
