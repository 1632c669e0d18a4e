//! Requests that are the coordinator's to answer, passed on as they are.

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use common::error::{ErrorCode, Problem};
use common::limits::MAX_REQUEST_BYTES;
use common::time::Span;
use common::transport::server::{self, Onward};

use super::{Composed, parts};

/// The head of an answer comes within this.
const DEADLINE: Span = Span::from_secs(35);

pub async fn to_coordinator(
    composed: Data<Composed>,
    request: HttpRequest,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let routes = parts(&composed)?;
    let body = server::read_body(payload, MAX_REQUEST_BYTES).await?;
    let onward = Onward {
        transport: &routes.transport,
        address: &routes.coordinator,
        deadline: DEADLINE,
        unreachable: ErrorCode::CoordinatorUnavailable,
        stopping: routes.stopping.clone(),
    };
    server::forward(onward, &request, body).await
}
