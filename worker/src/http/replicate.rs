//! A follower asks for what comes after its logs.

use common::error::Problem;
use common::protocol::replicate::{Replicate, Replicated};

use super::Routes;

pub async fn replicate(routes: Routes, call: Replicate) -> Result<Replicated, Problem> {
    routes.replication.answer(call).await
}
