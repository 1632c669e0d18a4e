//! Requests that are the coordinators' to answer, passed on as they are.

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use common::error::{ErrorCode, Problem};
use common::limits::MAX_REQUEST_BYTES;
use common::time::Span;
use common::transport::client::CallError;
use common::transport::server::{self, Onward};

use super::{Composed, parts};

/// The head of an answer comes within this.
const DEADLINE: Span = Span::from_secs(45);

pub async fn to_coordinator(
    composed: Data<Composed>,
    request: HttpRequest,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let routes = parts(&composed)?;
    let coordinators = &routes.coordinators;
    let body = server::read_body(payload, MAX_REQUEST_BYTES).await?;
    let mut left = coordinators.count();
    loop {
        let address = coordinators.current();
        let onward = Onward {
            transport: &routes.transport,
            address: &address,
            deadline: DEADLINE,
            stopping: routes.stopping.clone(),
        };
        let answer = server::forward(onward, &request, body.clone()).await;
        left -= 1;
        let error = match answer {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        coordinators.pass_over(&address);
        // Only who certainly did not get it is followed by another one: it may not be done twice.
        let not_done = matches!(error, CallError::Unreachable { refused: true, .. });
        if left == 0 || !not_done {
            return Err(error.into_problem(ErrorCode::CoordinatorUnavailable));
        }
    }
}
