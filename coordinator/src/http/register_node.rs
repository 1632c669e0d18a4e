//! A worker arrives.

use common::error::Problem;
use common::protocol::node::{RegisterWorker, Registered};

use crate::controller::Controller;

pub async fn handle(
    controller: Controller,
    request: RegisterWorker,
) -> Result<Registered, Problem> {
    controller.register(request).await
}
