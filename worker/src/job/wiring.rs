//! How the tasks of a generation are connected: which channels each has, and what leads where (pure).

use common::ids::{NodeId, TaskId};
use common::plan::edge::Route;
use common::plan::task_graph::Edge;
use common::protocol::exchange::ChannelId;
use common::protocol::task::Deployment;

/// One channel of a deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub channel: ChannelId,
    pub from: TaskId,
    pub from_worker: NodeId,
    pub to: TaskId,
    pub to_worker: NodeId,
    /// The numbered input of the receiving stage's first operator.
    pub input: u16,
}

/// The channels of an edge, by the sending task and then by the receiving one.
pub fn connections(deployment: &Deployment, index: usize) -> Vec<Connection> {
    let edge = &deployment.graph.edges[index];
    let senders = deployment.graph.stage(edge.from).parallelism;
    let connect = |from: u32| {
        targets(deployment, edge, from)
            .into_iter()
            .map(move |to| (from, to))
    };
    (0..senders)
        .flat_map(connect)
        .map(|(from, to)| {
            let from_task = TaskId {
                stage: edge.from,
                index: from,
            };
            let to_task = TaskId {
                stage: edge.to,
                index: to,
            };
            Connection {
                channel: ChannelId {
                    job: deployment.job,
                    generation: deployment.generation,
                    edge: u16::try_from(index).expect("a job has at most 500 nodes"),
                    from,
                    to,
                },
                from: from_task,
                from_worker: deployment.worker_of(from_task),
                to: to_task,
                to_worker: deployment.worker_of(to_task),
                input: edge.input,
            }
        })
        .collect()
}

/// The tasks that one task of the edge's first stage sends to, in the order its router numbers them.
fn targets(deployment: &Deployment, edge: &Edge, from: u32) -> Vec<u32> {
    match &edge.route {
        Route::Forward => vec![from],
        Route::Hash { .. } | Route::Rebalance => {
            (0..deployment.graph.stage(edge.to).parallelism).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use common::ids::{Generation, JobId, JobName, MetadataVersion, StageId};
    use common::plan::task_graph::{Stage, TaskGraph};
    use common::protocol::task::TaskAssignment;
    use common::time::Span;

    use super::*;

    fn deployment(from: u32, to: u32, route: Route) -> Deployment {
        let stage = |id, parallelism| Stage {
            id: StageId(id),
            parallelism,
            source: None,
            operators: Vec::new(),
            sink: None,
        };
        let edge = Edge {
            from: StageId(0),
            to: StageId(1),
            input: 0,
            route,
            columns: Vec::new(),
        };
        let graph = TaskGraph {
            stages: vec![stage(0, from), stage(1, to)],
            edges: vec![edge],
            key_groups: 256,
        };
        let tasks = graph
            .tasks()
            .map(|task| TaskAssignment {
                task,
                worker: NodeId(task.index % 2),
            })
            .collect();
        Deployment {
            job: JobId(1),
            name: JobName::new("j").unwrap(),
            generation: Generation(1),
            version: MetadataVersion(1),
            restore: None,
            savepoint: None,
            graph,
            tasks,
            standbys: std::collections::BTreeMap::new(),
            next: None,
            still: false,
            checkpoint_interval: Span::from_secs(1),
        }
    }

    #[test]
    fn forward_connects_equals_and_hash_connects_everyone() {
        let forward = connections(&deployment(2, 2, Route::Forward), 0);
        let pairs: Vec<_> = forward.iter().map(|c| (c.from.index, c.to.index)).collect();
        assert_eq!(pairs, [(0, 0), (1, 1)]);
        let hash = connections(&deployment(2, 3, Route::Hash { keys: Vec::new() }), 0);
        let pairs: Vec<_> = hash.iter().map(|c| (c.from.index, c.to.index)).collect();
        assert_eq!(pairs, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
        assert_eq!(hash[1].to_worker, NodeId(1));
    }
}
