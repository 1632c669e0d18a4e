//! A worker arrives.

use common::error::{ErrorCode, Problem};
use common::protocol::node::{Identify, RegisterWorker, Registered};
use common::time::Span;

use super::gate::Reigning;

/// A process that has ended refuses at once; one that is stopped or cut off counts as gone.
const IDENTIFY_DEADLINE: Span = Span::from_secs(1);

pub async fn handle(reign: Reigning, request: RegisterWorker) -> Result<Registered, Problem> {
    refuse_a_copy(&reign, &request).await?;
    reign.controller.register(request).await
}

/// Asks the predecessor whether it is there.
async fn refuse_a_copy(reign: &Reigning, request: &RegisterWorker) -> Result<(), Problem> {
    let (storage, incarnation) = (request.storage, request.incarnation);
    let predecessor = reign.controller.view().read(|metadata| {
        let row = metadata.predecessor(storage, incarnation, &request.address);
        row.cloned()
    });
    let Some(row) = predecessor else {
        return Ok(());
    };
    let answer = reign
        .transport
        .call(&row.address, &Identify {}, IDENTIFY_DEADLINE)
        .await;
    match answer {
        Ok(identified) if identified.incarnation == row.incarnation => {
            let detail = format!(
                "worker {} runs at {} already: the data directory is a copy of its, or the other way round",
                row.id, row.address
            );
            let problem = Problem::new(ErrorCode::Conflict, detail);
            Err(problem
                .hint("Stop that one first, or start this one with an empty data directory."))
        }
        // Nobody, or another one that has its port.
        Ok(_) | Err(_) => Ok(()),
    }
}
