//! A task's state comes from an object store: everything is checked against the manifest before it is used.

use std::sync::Arc;

use bytes::Bytes;
use common::error::Problem;
use common::ids::{CheckpointId, TaskId};
use common::limits::MAX_MANIFEST_BYTES;
use common::objects::location::Location;
use common::objects::store::{ObjectError, Objects};
use common::protocol::savepoint::RestoredFrom;
use common::savepoint::{MANIFEST, Manifest, SavedObject};
use tokio::task::spawn_blocking;

use super::saving::Restoring;
use super::state_error::StateError;
use super::state_store::JobStateStore;

/// Why a task does not begin with the state of a savepoint.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DownloadError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error("the object \"{at}\" is not as it was written: its length or its checksum is wrong")]
    Damaged { at: Location },
    #[error("what \"{place}\" has of task {task} does not fit together: {source}")]
    Unfit {
        place: Location,
        task: TaskId,
        source: StateError,
    },
    #[error("{0}")]
    Manifest(Problem),
    #[error("the manifest of \"{place}\" is not the one that was there when the job was restored")]
    OtherManifest { place: Location },
}

impl DownloadError {
    /// Whether trying again gives the same.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            DownloadError::State(error) => error.is_loss(),
            DownloadError::Object(error) => !error.is_temporary(),
            DownloadError::Damaged { .. }
            | DownloadError::Unfit { .. }
            | DownloadError::Manifest(_)
            | DownloadError::OtherManifest { .. } => true,
        }
    }
}

/// The manifest that the coordinator has checked.
pub(crate) async fn manifest(
    objects: &Objects,
    from: &RestoredFrom,
) -> Result<Manifest, DownloadError> {
    let place = &from.place;
    let bytes = objects
        .get(&place.join(MANIFEST), MAX_MANIFEST_BYTES)
        .await?;
    if crc32c::crc32c(&bytes) != from.manifest_crc32c {
        let place = place.clone();
        return Err(DownloadError::OtherManifest { place });
    }
    let decoded = Manifest::decode(&bytes);
    decoded.map_err(|error| DownloadError::Manifest(error.into_problem(place)))
}

/// Brings the state of a task here, as that of the checkpoint `at`. Holds one object at a time.
pub(crate) async fn fetch(
    store: &Arc<JobStateStore>,
    objects: &Objects,
    from: &RestoredFrom,
    manifest: &Manifest,
    task: TaskId,
    at: CheckpointId,
) -> Result<(), DownloadError> {
    let saved = manifest.task(task);
    let saved: &[SavedObject] = saved.map_or(&[], |saved| &saved.objects);
    let checkpoint = manifest.checkpoint;
    let mut restoring = {
        let store = store.clone();
        blocking(move || store.begin_restore(task, checkpoint)).await?
    };
    // What was damaged on its way to the store has the right checksum and is no state.
    let unfit = |error: StateError| match error.is_loss() {
        true => DownloadError::Unfit {
            place: from.place.clone(),
            task,
            source: error,
        },
        false => DownloadError::State(error),
    };
    for object in saved {
        let place = from.place.join(&object.name);
        let bytes = objects.get(&place, object.bytes).await?;
        let (added, is_right) = add(restoring, object.clone(), bytes).await;
        if !is_right {
            return Err(DownloadError::Damaged { at: place });
        }
        restoring = added.map_err(unfit)?;
    }
    let store = store.clone();
    let finishing = blocking(move || store.finish_restore(restoring, at));
    finishing.await.map_err(unfit)
}

async fn add(
    mut restoring: Restoring,
    object: SavedObject,
    bytes: Bytes,
) -> (Result<Restoring, StateError>, bool) {
    let adding = spawn_blocking(move || {
        let is_right = object.is(&bytes);
        let added = match is_right {
            true => restoring.add(object.of, &bytes),
            false => Ok(()),
        };
        (added.map(|()| restoring), is_right)
    });
    adding.await.expect("writing a state does not panic")
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StateError> + Send + 'static,
) -> Result<T, StateError> {
    let done = spawn_blocking(work).await;
    done.expect("writing a state does not panic")
}
