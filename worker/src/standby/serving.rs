//! Answers standbys of the tasks that run here: what they do not have, as soon as there is something.

use std::sync::Arc;

use bytes::BytesMut;
use common::error::{ErrorCode, Problem};
use common::limits::MAX_CALL_BYTES;
use common::protocol::standby::{FetchState, StateFetched, StatePiece};
use common::time::Span;
use tokio::sync::watch;
use tracing::warn;

use crate::checkpoint::state_error::StateError;
use crate::checkpoint::state_store::JobStateStore;
use crate::job::services::Services;

/// One answer; one piece may come beyond it.
const ANSWER_BYTES: usize = 8 << 20;
const _: () = assert!(ANSWER_BYTES * 4 < MAX_CALL_BYTES);
const MAX_WAIT: Span = Span::from_secs(5);

/// Waits until there is something for one of the positions. `sealed`: changes when there may be; ends with
/// the generation.
pub(crate) async fn answer(
    store: Arc<JobStateStore>,
    services: Services,
    mut sealed: watch::Receiver<()>,
    call: FetchState,
) -> Result<StateFetched, Problem> {
    let until = services.clock.tick().plus(call.wait.min(MAX_WAIT));
    let call = Arc::new(call);
    loop {
        // What comes from here on is not missed.
        sealed.mark_unchanged();
        let (store, services, asked) = (store.clone(), services.clone(), call.clone());
        let now = services.clock.tick();
        let looking = tokio::task::spawn_blocking(move || look(&store, &services, &asked));
        let fetched = looking.await.map_err(|error| {
            let detail = format!("reading a task's state panicked: {error}");
            Problem::new(ErrorCode::Internal, detail)
        })?;
        let fetched = fetched.map_err(|error| {
            let detail = format!("the state cannot be read: {error}");
            Problem::new(ErrorCode::Internal, detail)
        })?;
        if !fetched.pieces.is_empty() || now >= until {
            return Ok(fetched);
        }
        let wait = until.since(now).as_duration();
        let ended = matches!(
            tokio::time::timeout(wait, sealed.changed()).await,
            Ok(Err(_))
        );
        if ended {
            // Nothing is an answer, too.
            return Ok(fetched);
        }
    }
}

/// What there is now. Blocks.
fn look(
    store: &JobStateStore,
    services: &Services,
    call: &FetchState,
) -> Result<StateFetched, StateError> {
    let facts = services.image.borrow().jobs.get(&call.job).cloned();
    let history = |generation, checkpoint| facts.as_ref()?.counts(generation, checkpoint);
    let now = services.clock.tick();
    // A task that is far behind leaves room for those that are not.
    let share = ANSWER_BYTES / call.positions.len().max(1);
    let (mut pieces, mut bytes) = (Vec::new(), BytesMut::new());
    for position in &call.positions {
        let lent = store.lend(now, call.generation, *position, &history, share);
        let lent = match lent {
            // The others are not to wait for it.
            Err(error @ StateError::Lost { .. }) => {
                warn!(job = %call.job, %error, "a standby cannot be served");
                Vec::new()
            }
            lent => lent?,
        };
        for (of, own) in lent {
            pieces.push(StatePiece {
                task: position.task,
                bytes: u32::try_from(own.len()).expect("a piece fits into a call"),
                of,
            });
            bytes.extend_from_slice(&own);
        }
    }
    Ok(StateFetched {
        pieces,
        bytes: bytes.freeze(),
    })
}
