//! What changed in the facts: a long poll that is answered as soon as there is something new.

use common::error::{ErrorCode, Problem};
use common::ids::NodeId;
use common::limits::MAX_WAIT;
use common::protocol::metadata::{FetchMetadata, MetadataDelta};

use super::gate::Reigning;
use crate::liveness::Liveness;

/// A worker that waits for news. If it is dropped before there is an answer, the worker has hung up, perhaps for good.
struct Waits {
    worker: Option<NodeId>,
    liveness: Liveness,
}

pub async fn handle(state: Reigning, request: FetchMetadata) -> Result<MetadataDelta, Problem> {
    let mut stopping = state.stopping.clone();
    let view = state.controller.view();
    if view.read(|metadata| metadata.cluster()) != Some(request.cluster) {
        return Err(Problem::new(
            ErrorCode::WrongCluster,
            "the node belongs to another cluster",
        ));
    }
    if let Some(worker) = request.worker {
        state.seen.note(worker, request.since);
    }
    let mut waits = Waits {
        worker: request.worker,
        liveness: state.liveness.clone(),
    };
    let mut changes = view.changes();
    let news = async {
        tokio::select! {
            // An error says that the log or the node has ended: then what there is is all there will be.
            _ = changes.wait_for(|version| *version != request.since) => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
    };
    let wait = request.wait.min(MAX_WAIT).as_duration();
    // Whether something came or time is up, the answer says how things are.
    drop(tokio::time::timeout(wait, news).await);
    waits.worker = None;
    let mut delta = view.read(|metadata| metadata.delta_since(request.since));
    delta.coordinators = state.group.status().addresses();
    Ok(delta)
}

impl Drop for Waits {
    fn drop(&mut self) {
        if let Some(worker) = self.worker {
            self.liveness.suspect(worker);
        }
    }
}
