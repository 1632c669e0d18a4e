//! A savepoint is looked at before a job begins with it: all of it is there, and is of that job.

use futures_util::stream::{self, StreamExt};

use common::error::{ErrorCode, Problem};
use common::ids::TaskId;
use common::limits::MAX_MANIFEST_BYTES;
use common::objects::location::Location;
use common::objects::store::{ObjectError, Objects};
use common::plan::task_graph::TaskGraph;
use common::protocol::savepoint::RestoredFrom;
use common::savepoint::{MANIFEST, Manifest, SavedObject};

use super::fit;
use crate::metadata::savepoints::Restored;

/// Objects that are looked for at once.
const LOOKUPS: usize = 16;

/// A savepoint that was found whole.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) manifest: Manifest,
    from: RestoredFrom,
}

/// Reads what a savepoint says of itself and looks for its objects. What is in them is checked by who fetches
/// them.
pub(crate) async fn find(objects: &Objects, place: &Location) -> Result<Found, Problem> {
    let bytes = objects.get(&place.join(MANIFEST), MAX_MANIFEST_BYTES).await;
    let bytes = bytes.map_err(|error| match error {
        ObjectError::Missing { .. } => Problem::new(
            ErrorCode::UnknownSavepoint,
            format!("there is no savepoint \"{place}\": it has no {MANIFEST}"),
        ),
        error => error.into(),
    })?;
    let decoded = Manifest::decode(&bytes);
    let manifest = decoded.map_err(|error| error.into_problem(place))?;
    let all = manifest.tasks.iter().flat_map(|task| &task.objects);
    let all: Vec<SavedObject> = all.cloned().collect();
    let mut looking = stream::iter(all)
        .map(|object| async move {
            let at = place.join(&object.name);
            match objects.length(&at).await {
                Ok(bytes) if bytes == object.bytes => Ok(()),
                Ok(bytes) => Err(damaged(
                    place,
                    format!("\"{at}\" has {bytes} bytes instead of {}", object.bytes),
                )),
                Err(ObjectError::Missing { .. }) => {
                    Err(damaged(place, format!("\"{at}\" is missing")))
                }
                Err(error) => Err(error.into()),
            }
        })
        .buffer_unordered(LOOKUPS);
    while let Some(looked) = looking.next().await {
        looked?;
    }
    drop(looking);
    let from = RestoredFrom {
        place: place.clone(),
        checkpoint: manifest.checkpoint,
        manifest_crc32c: crc32c::crc32c(&bytes),
    };
    Ok(Found { manifest, from })
}

fn damaged(place: &Location, what: String) -> Problem {
    Problem::new(
        ErrorCode::CorruptSavepoint,
        format!("the savepoint \"{place}\" is not whole: {what}"),
    )
}

impl Found {
    /// What a job planned like this begins with.
    pub(crate) fn for_job(self, planned: &TaskGraph) -> Result<Restored, Problem> {
        fit::check(&self.manifest.graph, planned)?;
        let Found { manifest, from } = self;
        let bytes = manifest.bytes();
        let tasks = manifest.tasks.iter();
        let sources = tasks.clone().filter(|saved| !saved.positions.is_empty());
        let positions = sources.map(|saved| (saved.task, saved.positions.clone()));
        let counts = tasks.map(|saved| (saved.task, saved.counts));
        Ok(Restored {
            from,
            positions: positions.collect::<std::collections::BTreeMap<TaskId, _>>(),
            counts: counts.collect(),
            bytes,
        })
    }
}
