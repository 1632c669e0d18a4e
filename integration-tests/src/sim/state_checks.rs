//! The state of tasks in the world, compared with the input before a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::ids::{CheckpointId, Generation, TaskId};
use common::key_group::{key_group, owner};
use common::kv::MemoryStore;
use common::plan::task_graph::TaskGraph;
use common::protocol::metadata::JobImage;
use common::time::{Span, Timestamp};
use worker::checkpoint::state_error::StateError;
use worker::checkpoint::state_store::{JobStateStore, StoreOptions, TaskTables, ViewPlace};
use worker::keyed_state::codec::bigint_key;
use worker::keyed_state::table::At;
use worker::source::SplitState;

use super::disk::Disk;
use super::env::Env;
use super::tally::{self, CLICKS, Click, DELAY};
use crate::checkers::holders_can_go_on::Contents;

/// How often a task has counted each key, against the input before the checkpoint.
pub fn check_counts(
    env: &mut Env,
    graph: &TaskGraph,
    task: TaskId,
    at: CheckpointId,
    counts: &BTreeMap<i64, i64>,
) {
    let (groups, parallelism) = (graph.key_groups, graph.stage(task.stage).parallelism);
    let owns = |key| owner(key_group(&bigint_key(key), groups), groups, parallelism) == task.index;
    let checkers = &env.checkers;
    let input = checkers.committed.of_topic(CLICKS);
    let input = input.map(|(split, offset, value)| (split, offset, &value[..]));
    let verdict = checkers.outputs.state(at, counts, owns, input);
    env.check(verdict.map_err(|broken| format!("task {task}: {broken}")));
}

/// The splits of which something has been read: one of which there has never been anything is not waited for.
pub fn read_of<'s>(splits: impl Iterator<Item = &'s SplitState>) -> BTreeSet<Arc<str>> {
    let read = splits.filter(|split| split.position > 0);
    read.map(|split| split.split.clone()).collect()
}

/// A source says no more of event time than what it has read of each of its splits allows.
pub fn check_event_time<'s>(
    env: &mut Env,
    task: TaskId,
    splits: impl Iterator<Item = &'s SplitState>,
    watermark: Timestamp,
) {
    // Nothing will come any more.
    if watermark == Timestamp::MAX {
        return;
    }
    let mut behind = None;
    for split in splits {
        let input = env.checkers.committed.of_topic(CLICKS);
        let read = input.filter(|(number, offset, _)| {
            *split.split == *number.to_string() && offset.0 < split.position
        });
        let latest = read.map(|(_, _, value)| Click::decode(value).time).max();
        let allowed = latest.map(|latest| Timestamp(latest).minus(Span(DELAY)));
        if allowed.is_some_and(|allowed| watermark > allowed) {
            behind = Some((split.split.clone(), allowed));
        }
    }
    if let Some((split, allowed)) = behind {
        env.break_promise(format!(
            "task {task} says that time is {watermark:?}, and of its split {split} that is {allowed:?}"
        ));
    }
}

/// How often each key was counted, by tables that are in memory whole.
pub fn counts_of(tables: &TaskTables) -> BTreeMap<i64, i64> {
    let counting = tables.iter().find(|(id, _)| tally::counts_table(&id.table));
    let counts = counting.and_then(|(_, table)| tally::counts_in(table, At::Live, |_| None));
    counts.unwrap_or_default()
}

pub fn contents_of(tables: &TaskTables) -> Contents {
    let each = tables.iter().flat_map(|(id, table)| {
        let name = format!("{}/{}", id.operator, id.table);
        let entries = table.entries(At::Live).expect("all of it is in memory");
        let entry = move |(namespace, key, value): (i64, &[u8], &[u8])| {
            ((name.clone(), namespace, key.to_vec()), value.to_vec())
        };
        entries.into_iter().map(entry)
    });
    each.collect()
}

/// What a disk has of tasks at a completed checkpoint, without its view: that can be built again. It is a copy
/// of a disk, and is written to.
pub fn read_copy(
    disk: &mut Disk,
    facts: &JobImage,
    key_groups: u16,
    tasks: &[TaskId],
    at: CheckpointId,
) -> Vec<(TaskId, Result<TaskTables, StateError>)> {
    let name = format!("job-{}", facts.id);
    let place = ViewPlace {
        open: Box::new(|| Ok(Arc::new(MemoryStore::new()))),
        set_aside: Box::new(|| Ok(())),
    };
    let options = StoreOptions::new(key_groups);
    let directory = disk.directory(&name);
    let deltas = disk.log(&name).shared();
    let store = JobStateStore::assemble(&directory, options, deltas, place);
    let store = store.expect("a log is whole after any crash");
    let history = |generation: Generation, checkpoint| facts.counts(generation, checkpoint);
    let read = tasks.iter().map(|task| {
        let all = BTreeSet::new();
        let restored = store.restore(facts.generation, *task, Some(at), &history, &all);
        (*task, restored.map(|restored| restored.tables))
    });
    read.collect()
}
