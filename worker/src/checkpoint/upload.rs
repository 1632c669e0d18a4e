//! A task's state goes to an object store, one object a call.

use std::sync::Arc;

use common::error::{ErrorCode, Problem};
use common::limits::SAVED_OBJECT_BYTES;
use common::objects::store::Objects;
use common::protocol::savepoint::{SaveState, StateSaved};
use common::savepoint::SavedObject;

use super::saving::SavedPiece;
use super::state_error::StateError;
use super::state_store::JobStateStore;
use crate::job::services::Services;

/// Writes the next object. Holds no more of the state than that.
pub(crate) async fn save(
    store: Arc<JobStateStore>,
    services: Services,
    call: SaveState,
) -> Result<StateSaved, Problem> {
    let facts = services.image.borrow().jobs.get(&call.job).cloned();
    let known = facts.as_ref().and_then(|facts| facts.completed);
    if known < Some(call.checkpoint) {
        let detail = format!("checkpoint {} is not known here yet", call.checkpoint);
        return Err(Problem::new(ErrorCode::MetadataStale, detail));
    }
    let now = services.clock.tick();
    let (task, checkpoint, position) = (call.task, call.checkpoint, call.position);
    let keep = call.keep;
    let reading = tokio::task::spawn_blocking(move || {
        let history = |generation, checkpoint| facts.as_ref()?.counts(generation, checkpoint);
        let room = SAVED_OBJECT_BYTES;
        for other in keep {
            store.keep(now, other, checkpoint);
        }
        let piece = store.save(now, task, checkpoint, position, &history, room)?;
        let crc32c = crc32c::crc32c(&piece.bytes);
        Ok::<_, StateError>((piece, crc32c))
    });
    let read = reading.await.map_err(|error| {
        let detail = format!("reading a task's state panicked: {error}");
        Problem::new(ErrorCode::Internal, detail)
    })?;
    let (piece, crc32c) = read.map_err(cannot_be_read)?;
    let SavedPiece {
        name,
        of,
        bytes,
        next,
    } = piece;
    let name = format!("{task}/{name}");
    let object = SavedObject {
        bytes: bytes.len() as u64,
        crc32c,
        of,
        name: name.clone(),
    };
    Objects::new(services.transport.clone())
        .put(&call.place.join(&name), bytes)
        .await?;
    Ok(StateSaved { object, next })
}

fn cannot_be_read(error: StateError) -> Problem {
    let code = match &error {
        // Something newer took its place: a newer checkpoint can be saved.
        StateError::Lost { .. } => ErrorCode::EpochGone,
        _ => ErrorCode::Internal,
    };
    Problem::new(code, format!("the state cannot be saved: {error}"))
}
