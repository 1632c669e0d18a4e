//! What the tasks of a generation are made of: restored tables, channels, chains, routers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::error::Problem;
use common::ids::{CheckpointId, NodeId, TaskId};
use common::key_group::KeyGroupRange;
use common::plan::task_graph::{PlannedSource, Stage, TaskGraph};
use common::protocol::checkpoint::TaskSnapshot;
use common::protocol::task::Deployment;
use common::time::Timestamp;
use tokio::sync::Notify;

use super::assignment::stood_by;
use super::wiring::connections;
use crate::checkpoint::chunk::TaskChunk;
use crate::checkpoint::folding::{Purpose, Purposes};
use crate::checkpoint::participant::Persist;
use crate::checkpoint::state_error::StateError;
use crate::checkpoint::state_store::{
    History, JobStateStore, LeftTask, RestoredTask, StoreOptions, TaskTables,
};
use crate::exchange::lanes::Lanes;
use crate::operator;
use crate::operator::custom::CustomOperators;
use crate::source::watermark::Watermarks;
use crate::task::chain::Chain;
use crate::task::channel::channel;
use crate::task::channel_input::InputChannel;
use crate::task::context::OperatorState;
use crate::task::machine::SourceSide;
use crate::task::memory::StateMemory;
use crate::task::messages::Snapshot;
use crate::task::output::{Output, Writer};
use crate::task::router::Router;
use crate::task::source_gate::SourceGate;
use crate::task::source_input::SourceInput;
use crate::task::task_state::{SINK, TASK, TaskState};

/// A fold that is worth its while, at most and at least: of more, fewer checkpoints are folded together.
const FOLD_BYTES_MAX: u64 = 8 << 20;
const FOLD_BYTES_MIN: u64 = 256 << 10;

/// What each task starts from.
pub type Restored = BTreeMap<TaskId, RestoredTask>;

/// What the generation before has left of tasks that were here.
pub type Left = BTreeMap<TaskId, LeftTask>;

/// The ends of the channels of a worker's tasks.
#[derive(Debug, Default)]
pub struct Ends {
    pub inputs: BTreeMap<TaskId, Vec<InputChannel>>,
    /// By task: the writers of each outgoing edge.
    pub outputs: BTreeMap<TaskId, Vec<(usize, Vec<Writer>)>>,
}

/// A task's own part, between its inputs and its sink.
#[derive(Debug)]
pub struct Assembled {
    pub chain: Chain,
    pub state: TaskState,
    pub outputs: Vec<Output>,
    /// What it had last said about event time.
    pub watermark: Timestamp,
    /// No barrier up to this one is of interest any more.
    pub sealed: CheckpointId,
}

/// The operators of a stage whose state need not be in memory.
pub fn spilling(stage: &Stage, custom: &CustomOperators) -> BTreeSet<String> {
    let planned = stage.operators.iter().map(|planned| &planned.spec);
    let spilling = planned.filter(|spec| operator::spills(spec, custom));
    spilling.map(|spec| spec.id().to_owned()).collect()
}

/// Bytes of memory that each of these tasks has if its state need not be in memory.
pub fn share_of_each(
    graph: &TaskGraph,
    tasks: &BTreeSet<TaskId>,
    custom: &CustomOperators,
    memory: &StateMemory,
) -> u64 {
    let spills = |task: &&TaskId| !spilling(graph.stage(task.stage), custom).is_empty();
    memory.bytes_for(tasks.iter().filter(spills).count())
}

/// How the job's store works, where each task has such a share of memory. `view_cache_bytes`: for the pages
/// of its view.
pub fn store_options(graph: &TaskGraph, share: u64, view_cache_bytes: u64) -> StoreOptions {
    StoreOptions {
        view_cache_bytes,
        resident_bytes: share / 2,
        fold_bytes: (share / 8).clamp(FOLD_BYTES_MIN, FOLD_BYTES_MAX),
        ..StoreOptions::new(graph.key_groups)
    }
}

/// What this worker has the state of each task for. State is read from a view only where a task runs, or may come to
/// run and is not in memory then.
pub fn purposes(
    deployment: &Deployment,
    me: NodeId,
    local: &BTreeSet<TaskId>,
    custom: &CustomOperators,
) -> Purposes {
    let stood_by = stood_by(deployment, me);
    let spills = |task: TaskId| !spilling(deployment.stage_of(task), custom).is_empty();
    let purpose = |task: TaskId| match local.contains(&task) {
        true => Purpose::Runs,
        false if stood_by.contains(&task) && spills(task) => Purpose::StandsBy,
        false => Purpose::IsCopied,
    };
    let all = deployment.all_tasks();
    all.map(|task| (task, purpose(task))).collect()
}

/// A generation begins with a store: nothing of tasks that are not its own, or of its next division, is kept.
pub fn begin(store: &JobStateStore, options: StoreOptions, deployment: &Deployment) {
    store.go_on_with(options);
    store.await_no_successors();
    store.keep_only(&deployment.all_tasks().collect());
}

/// Brings the tables of these tasks back: those that the generation before has left are taken from there and
/// back to the checkpoint, the others are read from disk. Blocks.
pub fn restore(
    store: &JobStateStore,
    deployment: &Deployment,
    tasks: &BTreeSet<TaskId>,
    left: &mut Left,
    custom: &CustomOperators,
    history: History<'_>,
) -> Result<Restored, StateError> {
    let mut restored = Restored::new();
    for task in tasks {
        // A task without state of its own may have run elsewhere before, and needs nothing.
        let stage = deployment.graph.stage(task.stage);
        let at = match stage.has_state() {
            true => deployment.restore,
            false => None,
        };
        let left = at.zip(left.remove(task));
        if let Some((at, begins)) = left.and_then(|(at, left)| Some((at, left.back_at(at)?))) {
            store.take_over(deployment.generation, *task, at)?;
            restored.insert(*task, begins);
            continue;
        }
        let spilling = spilling(stage, custom);
        let begins = store.restore(deployment.generation, *task, at, history, &spilling)?;
        restored.insert(*task, begins);
    }
    Ok(restored)
}

/// Opens the channels that begin or end in these tasks. `wakes`: what wakes each of them.
pub fn connect(
    deployment: &Deployment,
    wakes: &BTreeMap<TaskId, Arc<Notify>>,
    lanes: &Lanes,
) -> Ends {
    let mut ends = Ends::default();
    for index in 0..deployment.graph.edges.len() {
        for connection in connections(deployment, index) {
            let (from, to) = (wakes.get(&connection.from), wakes.get(&connection.to));
            let (writer, reader) = match (from, to) {
                (None, None) => continue,
                (Some(from), Some(to)) => {
                    let (writer, reader) = channel(to.clone(), from.clone());
                    (Some(Writer::Local(writer)), Some(reader))
                }
                (Some(from), None) => {
                    let writer =
                        lanes.writer(connection.channel, connection.to_worker, from.clone());
                    (Some(Writer::Remote(writer)), None)
                }
                (None, Some(to)) => {
                    let reader =
                        lanes.reader(connection.channel, connection.from_worker, to.clone());
                    (None, Some(reader))
                }
            };
            if let Some(reader) = reader {
                let input = InputChannel {
                    reader,
                    input: connection.input,
                };
                ends.inputs.entry(connection.to).or_default().push(input);
            }
            if let Some(writer) = writer {
                let edges = ends.outputs.entry(connection.from).or_default();
                match edges.last_mut() {
                    Some((edge, writers)) if *edge == index => writers.push(writer),
                    _ => edges.push((index, vec![writer])),
                }
            }
        }
    }
    ends
}

/// Puts a task together from its plan, its tables and its way to others. `share`: of memory, in bytes, if its
/// state need not be there.
pub fn assemble(
    deployment: &Deployment,
    task: TaskId,
    tables: TaskTables,
    outputs: Vec<(usize, Vec<Writer>)>,
    custom: &CustomOperators,
    share: u64,
) -> Result<Assembled, Problem> {
    let stage = deployment.graph.stage(task.stage);
    let key_groups = deployment.graph.key_groups;
    let mut states: BTreeMap<String, OperatorState> = BTreeMap::new();
    for (id, table) in tables {
        states
            .entry(id.operator)
            .or_default()
            .tables
            .insert(id.table, table);
    }
    let mut own = |id: &str| states.remove(id).unwrap_or_default();
    let mut state = TaskState::new(own(TASK), own(SINK));
    let watermark = state.watermark();
    let mut operators = Vec::new();
    for planned in &stage.operators {
        let id = planned.spec.id();
        let built = operator::build(planned, custom)?;
        let mut state = own(id);
        if operator::spills(&planned.spec, custom) {
            state.spills = true;
            state.may_hold = usize::try_from(share / 8).unwrap_or(usize::MAX);
        }
        operators.push((id.to_owned(), built, state));
    }
    let key_range = KeyGroupRange::of_task(task.index, key_groups, stage.parallelism);
    let mut routed = Vec::new();
    for (index, writers) in outputs {
        let edge = &deployment.graph.edges[index];
        let router = Router::new(&edge.route, &edge.columns, writers.len(), key_groups)?;
        routed.push(Output::new(router, writers));
    }
    Ok(Assembled {
        chain: Chain::new(operators, watermark, key_range, key_groups),
        state,
        outputs: routed,
        watermark,
        sealed: deployment.restore.unwrap_or_default(),
    })
}

/// What a source task needs besides its reader: what its splits say about time, from where they were. `still`: it
/// reads nothing.
pub fn source_side(
    planned: &PlannedSource,
    reader: SourceInput,
    state: &mut TaskState,
    watermark: Timestamp,
    still: bool,
) -> SourceSide {
    let event_time = planned.spec.watermark();
    let time_column = event_time.and_then(|event_time| {
        planned
            .columns
            .iter()
            .position(|column| column.name == event_time.column)
    });
    let delay = event_time.map(|event_time| event_time.delay);
    SourceSide {
        reader,
        watermarks: Watermarks::new(delay, planned.spec.idle_timeout(), watermark),
        time_column,
        clocks: state.clocks().into_iter().collect(),
        gate: SourceGate::new(still),
    }
}

/// What a worker writes for a checkpoint, and what it then says of its tasks.
///
/// A task without state of its own writes nothing: it begins from nothing in each generation, so what it
/// wrote in one would not follow what it wrote in another.
pub fn to_write(
    persist: Persist<Snapshot>,
    graph: &TaskGraph,
) -> (Vec<TaskChunk>, Vec<TaskSnapshot>) {
    let newest = persist
        .chunks
        .iter()
        .filter(|(checkpoint, _, _)| *checkpoint == persist.checkpoint);
    let snapshots = newest
        .map(|(_, task, snapshot)| TaskSnapshot {
            task: *task,
            delta_bytes: 0,
            state_bytes: snapshot.state_bytes,
            positions: snapshot.positions.clone(),
            counts: snapshot.counts,
        })
        .collect();
    let chunks = persist.chunks.into_iter();
    let chunks = chunks.filter(|(_, task, _)| graph.stage(task.stage).has_state());
    let chunks = chunks.map(|(checkpoint, task, snapshot)| TaskChunk {
        task,
        checkpoint,
        tables: snapshot.deltas,
    });
    (chunks.collect(), snapshots)
}

#[cfg(test)]
mod tests {
    use common::ids::StageId;
    use common::plan::connector::{BlackholeSink, SinkSpec};
    use common::plan::edge::ChangelogMode;
    use common::plan::task_graph::PlannedSink;
    use common::protocol::checkpoint::TaskCounts;

    use super::*;

    /// What it wrote could not be folded after the first recovery, and nothing else of the job either.
    #[test]
    fn a_task_without_state_acknowledges_and_writes_nothing() {
        let task = |stage| TaskId {
            stage: StageId(stage),
            index: 0,
        };
        let stage = |id, sink| Stage {
            id: StageId(id),
            parallelism: 1,
            source: None,
            operators: Vec::new(),
            sink,
        };
        let sink = PlannedSink {
            name: "out".to_owned(),
            spec: SinkSpec::Blackhole(BlackholeSink {
                input: "in".to_owned(),
            }),
            columns: Vec::new(),
            mode: ChangelogMode::Append,
        };
        let graph = TaskGraph {
            stages: vec![stage(0, None), stage(1, Some(sink))],
            ..TaskGraph::default()
        };
        let snapshot = Snapshot {
            deltas: Vec::new(),
            state_bytes: 0,
            positions: BTreeMap::new(),
            counts: TaskCounts::default(),
        };
        let checkpoint = CheckpointId(4);
        let sealed = |stage| (checkpoint, task(stage), snapshot.clone());
        let persist = Persist {
            checkpoint,
            chunks: vec![sealed(0), sealed(1)],
        };
        let (chunks, snapshots) = to_write(persist, &graph);
        let written: Vec<TaskId> = chunks.iter().map(|chunk| chunk.task).collect();
        let acknowledged: Vec<TaskId> = snapshots.iter().map(|s| s.task).collect();
        assert_eq!(written, [task(1)]);
        assert_eq!(acknowledged, [task(0), task(1)]);
    }
}
