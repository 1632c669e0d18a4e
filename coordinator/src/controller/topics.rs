//! What a request for a topic means, and what is wrong with it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use common::error::{ErrorCode, Problem};
use common::ids::{NodeId, TopicId, TopicName};
use common::limits::{MAX_MESSAGE_BYTES, MAX_PARTITIONS_PER_TOPIC, MAX_REPLICATION_FACTOR};
use common::protocol::topic::{
    CleanupPolicy, CreateTopic, Durability, FEWEST_MEMORIES, TopicConfig,
};

use crate::metadata::ClusterMetadata;
use crate::metadata::command::Command;
use crate::metadata::topics::TopicRow;
use crate::placement::racks::Racks;
use crate::placement::replicas::{Held, fill, place};

/// `PATCH /v1/topics/{topic}`.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AlterTopic {
    /// More than there are; records stay where they are, and keys may go elsewhere from then on.
    #[serde(default)]
    pub partitions: Option<u32>,
    /// The options to change; the others stay. `null` takes a bound away.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub config: Map<String, Value>,
}

/// `POST /v1/topics/{topic}/reassign`.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReassignTopic {
    /// How many replicas each partition is to have; absent: as many as it has. Those on active workers stay.
    #[serde(default)]
    pub replication_factor: Option<u32>,
    /// The workers of each partition's replicas, the preferred leader first; absent: they are chosen.
    #[serde(default)]
    pub replicas: Option<Vec<Vec<u32>>>,
}

const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = (1 << 20)..=(4 << 30);
/// How far a wrong name may be from an existing one for that to be suggested.
const NEAR: f64 = 0.75;

/// The command that creates the topic, with its partitions placed.
pub fn create(
    metadata: &ClusterMetadata,
    id: TopicId,
    request: &CreateTopic,
) -> Result<Command, Problem> {
    check_partitions(request.partitions)?;
    check_replication_factor(request.replication_factor)?;
    let config = request.config.clone().complete(request.replication_factor);
    check_config(&config, request.replication_factor)?;
    // Also checked when the command is applied; here it spares a full disk and a placement.
    if metadata.topic_named(&request.name).is_some() {
        return Err(crate::metadata::command::Rejection::TopicExists(request.name.clone()).into());
    }
    Ok(Command::CreateTopic {
        id,
        name: request.name.clone(),
        config,
        replicas: placed(metadata, request.partitions, request.replication_factor)?,
    })
}

pub fn alter(
    metadata: &ClusterMetadata,
    name: &TopicName,
    change: &AlterTopic,
) -> Result<Command, Problem> {
    let row = find(metadata, name)?;
    let config = changed(&row.config, &change.config)?;
    let replication_factor = u32::try_from(row.replication_factor()).unwrap_or(u32::MAX);
    check_config(&config, replication_factor)?;
    if config.durability != row.config.durability {
        // What was acknowledged until then may be in memories only, whatever the topic promises afterwards.
        let detail = format!("the durability of topic \"{name}\" cannot be changed");
        return Err(invalid("durability", detail)
            .hint("Create another topic with it, and have its producers write there."));
    }
    let before = u32::try_from(row.partitions.len()).unwrap_or(u32::MAX);
    let after = change.partitions.unwrap_or(before);
    check_partitions(after)?;
    if after < before {
        let detail =
            format!("topic \"{name}\" has {before} partitions, which cannot become {after}");
        return Err(Problem::new(ErrorCode::InvalidConfig, detail)
            .at("/partitions")
            .hint("Partitions can only be added: records would be lost otherwise."));
    }
    Ok(Command::AlterTopic {
        id: row.id,
        config,
        partitions: before,
        added: match after - before {
            0 => Vec::new(),
            added => placed(metadata, added, replication_factor)?,
        },
    })
}

pub fn reassign(
    metadata: &ClusterMetadata,
    name: &TopicName,
    request: &ReassignTopic,
) -> Result<Command, Problem> {
    let row = find(metadata, name)?;
    let targets = match (&request.replicas, request.replication_factor) {
        (Some(_), Some(_)) => {
            let detail =
                "\"replicas\" say how many there are, \"replication_factor\" may not say it again";
            return Err(Problem::new(ErrorCode::InvalidRequest, detail).at("/replication_factor"));
        }
        (Some(replicas), None) => given(metadata, row, replicas)?,
        (None, factor) => {
            if let Some(factor) = factor {
                check_replication_factor(factor)?;
            }
            chosen(metadata, row, factor)?
        }
    };
    let fewest = row.config.min_insync_replicas as usize;
    if let Some(number) = targets.iter().position(|target| target.len() < fewest) {
        let detail = format!(
            "partition {number} would have {} replicas, and min_insync_replicas is {fewest}",
            targets[number].len()
        );
        return Err(Problem::new(ErrorCode::InvalidConfig, detail)
            .hint("Lower min_insync_replicas first: PATCH /v1/topics/{topic}."));
    }
    Ok(Command::Reassign {
        id: row.id,
        targets,
    })
}

/// The replicas that somebody has chosen.
fn given(
    metadata: &ClusterMetadata,
    row: &TopicRow,
    replicas: &[Vec<u32>],
) -> Result<Vec<Vec<NodeId>>, Problem> {
    if replicas.len() != row.partitions.len() {
        let detail = format!(
            "topic \"{}\" has {} partitions, replicas are given for {}",
            row.name,
            row.partitions.len(),
            replicas.len()
        );
        return Err(Problem::new(ErrorCode::InvalidRequest, detail).at("/replicas"));
    }
    for (partition, workers) in replicas.iter().enumerate() {
        let refuse =
            |code, detail| Err(Problem::new(code, detail).at(format!("/replicas/{partition}")));
        if workers.is_empty() || workers.len() > MAX_REPLICATION_FACTOR as usize {
            let detail = format!("a partition has 1 to {MAX_REPLICATION_FACTOR} replicas");
            return refuse(ErrorCode::InvalidRequest, detail);
        }
        for (place, worker) in workers.iter().enumerate() {
            if workers[..place].contains(worker) {
                let detail = format!("worker {worker} cannot have two replicas of a partition");
                return refuse(ErrorCode::InvalidRequest, detail);
            }
            // One that has a replica may keep it while it is away.
            let has = row.partitions[partition]
                .replicas
                .contains(&NodeId(*worker));
            if !has && !metadata.is_active(NodeId(*worker)) {
                let detail = format!("worker {worker} is not active");
                return refuse(ErrorCode::UnknownWorker, detail);
            }
        }
    }
    let nodes = |workers: &Vec<u32>| workers.iter().copied().map(NodeId).collect();
    Ok(replicas.iter().map(nodes).collect())
}

/// As many replicas as are wanted: those on active workers stay, others take the place of the rest.
pub(super) fn chosen(
    metadata: &ClusterMetadata,
    row: &TopicRow,
    factor: Option<u32>,
) -> Result<Vec<Vec<NodeId>>, Problem> {
    let mut all = held(metadata)?;
    let mut preferred = not_avoided(metadata, &all);
    let racks = racks(metadata);
    let mut targets = Vec::with_capacity(row.partitions.len());
    for (number, partition) in (0..).zip(&row.partitions) {
        // While it moves it has more replicas than it is to have.
        let previous = row.moving.get(&number).unwrap_or(&partition.replicas);
        let factor = factor.unwrap_or(u32::try_from(previous.len()).unwrap_or(u32::MAX));
        // What is on one that is avoided stays there, and nothing is added.
        let mut known = preferred.clone();
        let here = previous
            .iter()
            .filter_map(|node| Some((*node, *all.get(node)?)));
        known.extend(here);
        let target = fill(previous, factor, &mut known, &racks);
        let target = match target {
            Some(target) => {
                for (node, held) in &mut preferred {
                    *held = known[node];
                }
                target
            }
            None => fill(previous, factor, &mut all, &racks)
                .ok_or_else(|| too_few_workers(factor, all.len()))?,
        };
        targets.push(target);
    }
    Ok(targets)
}

pub fn delete(metadata: &ClusterMetadata, name: &TopicName) -> Result<Command, Problem> {
    Ok(Command::DeleteTopic {
        id: find(metadata, name)?.id,
    })
}

/// The topic of this name, or a problem that names the one that may be meant.
pub fn find<'a>(
    metadata: &'a ClusterMetadata,
    name: &TopicName,
) -> Result<&'a std::sync::Arc<TopicRow>, Problem> {
    metadata
        .topic_named(name)
        .ok_or_else(|| unknown_topic(metadata, name))
}

fn unknown_topic(metadata: &ClusterMetadata, name: &TopicName) -> Problem {
    let names = metadata.topics_by_name().map(|row| row.name.as_str());
    let problem = Problem::new(
        ErrorCode::UnknownTopic,
        format!("there is no topic \"{name}\""),
    );
    match nearest(name.as_str(), names) {
        Some(near) => problem.hint(format!("Did you mean \"{near}\"?")),
        None => problem.hint("GET /v1/topics lists those there are."),
    }
}

/// The name that is most like this one, if one is like it at all.
pub fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|other| (strsim::jaro_winkler(name, other), other))
        .filter(|(likeness, _)| *likeness >= NEAR)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, other)| other)
}

fn placed(
    metadata: &ClusterMetadata,
    partitions: u32,
    replication_factor: u32,
) -> Result<Vec<Vec<NodeId>>, Problem> {
    let all = held(metadata)?;
    let racks = racks(metadata);
    let on =
        |workers: &BTreeMap<NodeId, Held>| place(partitions, replication_factor, workers, &racks);
    on(&not_avoided(metadata, &all))
        .or_else(|| on(&all))
        .ok_or_else(|| too_few_workers(replication_factor, all.len()))
}

/// Without those that nothing new is given to while there are enough others.
fn not_avoided(
    metadata: &ClusterMetadata,
    workers: &BTreeMap<NodeId, Held>,
) -> BTreeMap<NodeId, Held> {
    let quarantined = |node: &NodeId| metadata.worker(*node).is_some_and(|row| row.quarantined);
    let others = workers.iter().filter(|(node, _)| !quarantined(node));
    others.map(|(node, held)| (*node, *held)).collect()
}

fn too_few_workers(replication_factor: u32, workers: usize) -> Problem {
    let detail = format!(
        "{replication_factor} replicas need as many workers that may be given work, there are {workers}"
    );
    Problem::new(ErrorCode::NotEnoughReplicas, detail).hint("Start more workers.")
}

fn racks(metadata: &ClusterMetadata) -> Racks {
    let workers = metadata.workers();
    Racks::of(workers.map(|row| (row.id, row.rack.as_deref())))
}

/// What each worker has that may be given more.
fn held(metadata: &ClusterMetadata) -> Result<BTreeMap<NodeId, Held>, Problem> {
    let mut workers: BTreeMap<NodeId, Held> = metadata
        .open_workers()
        .map(|worker| (worker.id, Held::default()))
        .collect();
    if workers.is_empty() {
        return Err(Problem::new(
            ErrorCode::NoWorkers,
            "no worker may be given work, so there is nowhere to put partitions",
        )
        .hint("Start a worker; GET /v1/workers shows those the cluster knows."));
    }
    for partition in metadata.topics_by_name().flat_map(|row| &row.partitions) {
        for (rank, node) in partition.replicas.iter().enumerate() {
            if let Some(held) = workers.get_mut(node) {
                held.replicas += 1;
                held.preferred += u32::from(rank == 0);
            }
        }
    }
    Ok(workers)
}

fn changed(config: &TopicConfig, changes: &Map<String, Value>) -> Result<TopicConfig, Problem> {
    let Value::Object(mut options) =
        serde_json::to_value(config).expect("a topic's config is plain data")
    else {
        unreachable!("a topic's config is a struct");
    };
    for (option, value) in changes {
        if !options.contains_key(option) {
            let problem = invalid(option, format!("a topic has no option \"{option}\""));
            return Err(match nearest(option, options.keys().map(String::as_str)) {
                Some(near) => problem.hint(format!("Did you mean \"{near}\"?")),
                None => problem,
            });
        }
        let before = options.insert(option.clone(), value.clone());
        // One at a time, to say which one it is.
        if let Err(error) = serde_json::from_value::<TopicConfig>(Value::Object(options.clone())) {
            return Err(invalid(option, format!("\"{option}\": {error}")));
        }
        drop(before);
    }
    serde_json::from_value(Value::Object(options))
        .map_err(|error| Problem::new(ErrorCode::InvalidConfig, error.to_string()))
}

fn check_partitions(partitions: u32) -> Result<(), Problem> {
    if (1..=MAX_PARTITIONS_PER_TOPIC).contains(&partitions) {
        return Ok(());
    }
    let detail =
        format!("a topic has 1 to {MAX_PARTITIONS_PER_TOPIC} partitions, not {partitions}");
    Err(Problem::new(ErrorCode::InvalidConfig, detail).at("/partitions"))
}

fn check_replication_factor(replication_factor: u32) -> Result<(), Problem> {
    match replication_factor {
        1..=MAX_REPLICATION_FACTOR => Ok(()),
        0 => Err(Problem::new(
            ErrorCode::InvalidConfig,
            "a partition has at least one replica",
        )
        .at("/replication_factor")),
        more => Err(Problem::new(
            ErrorCode::UnsupportedReplicationFactor,
            format!("a partition has at most {MAX_REPLICATION_FACTOR} replicas, not {more}"),
        )
        .at("/replication_factor")),
    }
}

fn check_config(config: &TopicConfig, replication_factor: u32) -> Result<(), Problem> {
    let in_memory = config.durability == Durability::Replicated;
    if in_memory && replication_factor < FEWEST_MEMORIES {
        return Err(Problem::new(
            ErrorCode::UnsupportedDurability,
            "with one replica, a record that is acknowledged in memory would be in one memory only",
        )
        .at("/config/durability")
        .hint("Set replication_factor to 2 or more, or durability to \"fsync\"."));
    }
    if config.cleanup_policy != CleanupPolicy::Delete {
        return Err(Problem::new(
            ErrorCode::UnsupportedCleanupPolicy,
            "topics are not compacted in this version",
        )
        .at("/config/cleanup_policy")
        .hint("Leave it out, or set it to \"delete\"."));
    }
    if !(1..=replication_factor).contains(&config.min_insync_replicas) {
        let detail = format!(
            "min_insync_replicas is from 1 to the replication factor {replication_factor}, not {}",
            config.min_insync_replicas
        );
        return Err(invalid("min_insync_replicas", detail));
    }
    if in_memory && config.min_insync_replicas < FEWEST_MEMORIES {
        let detail = format!(
            "with durability \"replicated\", min_insync_replicas is {FEWEST_MEMORIES} or more"
        );
        return Err(invalid("min_insync_replicas", detail)
            .hint("In one memory only, an acknowledged record would be lost with the power."));
    }
    if !(1..=MAX_MESSAGE_BYTES).contains(&config.max_message_bytes) {
        let detail = format!(
            "max_message_bytes is from 1 to {MAX_MESSAGE_BYTES}, not {}",
            config.max_message_bytes
        );
        return Err(invalid("max_message_bytes", detail));
    }
    if !SEGMENT_BYTES.contains(&config.segment_bytes) {
        let detail = format!(
            "segment_bytes is from {} to {}, not {}",
            SEGMENT_BYTES.start(),
            SEGMENT_BYTES.end(),
            config.segment_bytes
        );
        return Err(invalid("segment_bytes", detail));
    }
    for (option, value) in [
        ("retention_ms", config.retention_ms),
        ("retention_bytes", config.retention_bytes),
    ] {
        if value == Some(0) {
            let detail = format!("{option} is at least 1");
            return Err(invalid(option, detail).hint("Set it to null to keep records for ever."));
        }
    }
    Ok(())
}

fn invalid(option: &str, detail: String) -> Problem {
    Problem::new(ErrorCode::InvalidConfig, detail).at(format!("/config/{option}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_this_version_keeps_its_word_on_is_accepted() {
        for (request, code, place) in [
            (
                json!({"replication_factor": 9}),
                "UNSUPPORTED_REPLICATION_FACTOR",
                "/replication_factor",
            ),
            (
                json!({"replication_factor": 0}),
                "INVALID_CONFIG",
                "/replication_factor",
            ),
            (json!({"partitions": 0}), "INVALID_CONFIG", "/partitions"),
            (
                json!({"partitions": 10_001}),
                "INVALID_CONFIG",
                "/partitions",
            ),
            (
                json!({"config": {"durability": "replicated"}}),
                "UNSUPPORTED_DURABILITY",
                "/config/durability",
            ),
            (
                json!({
                    "replication_factor": 3,
                    "config": {"durability": "replicated", "min_insync_replicas": 1},
                }),
                "INVALID_CONFIG",
                "/config/min_insync_replicas",
            ),
            (
                json!({"config": {"cleanup_policy": "compact"}}),
                "UNSUPPORTED_CLEANUP_POLICY",
                "/config/cleanup_policy",
            ),
            (
                json!({"replication_factor": 2, "config": {"min_insync_replicas": 3}}),
                "INVALID_CONFIG",
                "/config/min_insync_replicas",
            ),
            (
                json!({"config": {"max_message_bytes": 0}}),
                "INVALID_CONFIG",
                "/config/max_message_bytes",
            ),
            (
                json!({"config": {"segment_bytes": 5}}),
                "INVALID_CONFIG",
                "/config/segment_bytes",
            ),
            (
                json!({"config": {"retention_ms": 0}}),
                "INVALID_CONFIG",
                "/config/retention_ms",
            ),
            (json!({}), "NO_WORKERS", ""),
        ] {
            let mut all = json!({"name": "t"});
            all.as_object_mut()
                .unwrap()
                .extend(request.as_object().unwrap().clone());
            let request: CreateTopic = serde_json::from_value(all).unwrap();
            let metadata = ClusterMetadata::default();
            let problem = create(&metadata, TopicId(uuid::Uuid::nil()), &request).unwrap_err();
            assert_eq!(
                serde_json::to_value(problem.code).unwrap(),
                code,
                "{request:?}"
            );
            assert_eq!(
                problem.at.as_deref().unwrap_or_default(),
                place,
                "{request:?}"
            );
        }
    }

    #[test]
    fn a_change_of_options_leaves_the_others_and_says_which_one_is_wrong() {
        let before = TopicConfig::default();
        let change = |options: Value| changed(&before, options.as_object().unwrap());
        let after = change(json!({"retention_ms": null, "segment_bytes": 1 << 20})).unwrap();
        assert_eq!(after.retention_ms, None);
        assert_eq!(after.segment_bytes, 1 << 20);
        assert_eq!(after.max_message_bytes, before.max_message_bytes);
        assert_eq!(change(json!({})).unwrap(), before);

        let wrong = change(json!({"max_message_bytes": "many"})).unwrap_err();
        assert_eq!(wrong.at.as_deref(), Some("/config/max_message_bytes"));
        let unknown = change(json!({"retention": 5})).unwrap_err();
        assert!(unknown.hint.contains("retention_"), "{unknown:?}");
    }

    #[test]
    fn in_memory_a_record_is_in_two_of_them_at_least() {
        for (durability, replicas, fewest) in [
            (Durability::Fsync, 1, 1),
            (Durability::Fsync, 2, 1),
            (Durability::Fsync, 3, 2),
            (Durability::Replicated, 2, 2),
            (Durability::Replicated, 3, 2),
            (Durability::Replicated, 5, 3),
        ] {
            let request = json!({"name": "t", "config": {"durability": durability}});
            let request: CreateTopic = serde_json::from_value(request).unwrap();
            let config = request.config.complete(replicas);
            assert_eq!(config.min_insync_replicas, fewest, "{durability:?}");
            check_config(&config, replicas).unwrap();
        }
    }

    #[test]
    fn the_nearest_name_is_suggested_and_a_far_one_is_not() {
        let names = ["orders", "payments", "clicks"];
        let near = |name| nearest(name, names.into_iter());
        assert_eq!(near("order"), Some("orders"));
        assert_eq!(near("paymnets"), Some("payments"));
        assert_eq!(near("zzz"), None);
    }
}
