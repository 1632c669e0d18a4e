//! What a worker serves, one line per endpoint.
//!
//! The server runs before the worker is composed; until then every request that needs it is told to come
//! again. What is the coordinator's to answer is forwarded to it, so that a client needs one address.

pub mod append;
pub mod exchange;
pub mod fetch_batches;
pub mod forward;
pub mod health;
pub mod inject_barrier;
pub mod list_offsets;
pub mod query_state;

use std::sync::{Arc, OnceLock};

use actix::Addr;
use actix_web::web::{self, ServiceConfig};
use common::error::{ErrorCode, Problem};
use common::ids::TopicPartition;
use common::time::Clock;
use common::transport::client::Transport;
use common::transport::server::register;

use crate::exchange::Exchange;
use crate::job::jobs_actor::JobsActor;
use crate::link::reports::TaskReports;
use crate::metadata_image::ImageWatch;
use crate::partition::actor::PartitionHandle;
use crate::partition::registry::Partitions;

/// What the endpoints work with.
#[derive(Clone)]
pub struct Routes {
    pub partitions: Partitions,
    pub jobs: Addr<JobsActor>,
    pub exchange: Exchange,
    pub image: ImageWatch,
    pub transport: Transport,
    pub coordinator: String,
    pub clock: Arc<dyn Clock>,
    pub reports: Arc<TaskReports>,
}

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routes").finish_non_exhaustive()
    }
}

/// The worker's parts, once it has them.
pub type Composed = Arc<OnceLock<Routes>>;

pub fn routes(server: &mut ServiceConfig, composed: &Composed) {
    register(server, with(composed, append::append));
    register(server, with(composed, fetch_batches::fetch_batches));
    register(server, with(composed, list_offsets::list_offsets));
    register(server, with(composed, exchange::exchange));
    register(server, with(composed, inject_barrier::inject_barrier));
    register(server, with(composed, query_state::query_state));
    server.app_data(web::Data::new(composed.clone()));
    server.route("/health/live", web::get().to(health::live));
    server.route("/health/ready", web::get().to(health::ready));
    // Last: everything else.
    server.service(web::resource("/{path:.*}").to(forward::to_coordinator));
}

/// A handler of calls that is given the worker's parts.
fn with<C, H, F, R>(
    composed: &Composed,
    handler: H,
) -> impl Fn(C) -> std::pin::Pin<Box<dyn Future<Output = Result<R, Problem>>>> + Clone + 'static
where
    H: Fn(Routes, C) -> F + Copy + 'static,
    F: Future<Output = Result<R, Problem>> + 'static,
    C: 'static,
    R: 'static,
{
    let composed = composed.clone();
    move |call| {
        let parts = parts(&composed);
        Box::pin(async move { handler(parts?, call).await })
    }
}

/// A partition this worker leads.
pub fn led(routes: &Routes, partition: TopicPartition) -> Result<PartitionHandle, Problem> {
    let elsewhere = || {
        Problem::new(
            ErrorCode::NotLeader,
            format!("partition {partition} is not led here"),
        )
        .hint("Look up its leader again.")
    };
    routes.partitions.get(partition).ok_or_else(elsewhere)
}

/// The worker's parts, or what to tell those who come too early.
pub fn parts(composed: &Composed) -> Result<Routes, Problem> {
    let starting = || {
        Problem::new(ErrorCode::MetadataStale, "the worker is starting")
            .hint("Ask again in a moment.")
    };
    composed.get().cloned().ok_or_else(starting)
}
