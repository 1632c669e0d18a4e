//! A worker arrives.

use common::error::Problem;
use common::protocol::node::{RegisterWorker, Registered};

use super::gate::Reigning;

pub async fn handle(reign: Reigning, request: RegisterWorker) -> Result<Registered, Problem> {
    reign.controller.register(request).await
}
