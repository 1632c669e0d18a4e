//! What a worker serves, one line per endpoint.
//!
//! The server runs before the worker is composed; until then every request that needs it is told to come
//! again. What is the coordinator's to answer is forwarded to it, so that a client needs one address.

pub mod json_text;
pub mod msgpack_text;
pub mod request_records;
mod answer_records;
pub mod intake;
mod throttle;
pub mod produce;
pub mod fetch;
pub mod stream;
pub mod append;
pub mod exchange;
pub mod fetch_batches;
pub mod forward;
pub mod health;
pub mod inject_barrier;
pub mod list_offsets;
pub mod metrics;
pub mod fetch_state;
pub mod query_state;
pub mod replicate;
pub mod save_state;

#[cfg(test)]
mod conformance_tests;
#[cfg(test)]
mod http_tests;
#[cfg(test)]
mod throttle_tests;

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, OnceLock};

use actix_web::HttpRequest;
use actix_web::http::header::{ACCEPT, HeaderName};
use actix_web::web::{self, ServiceConfig};
use common::error::{ErrorCode, Problem};
use common::ids::{PartitionId, TopicName, TopicPartition};
use common::protocol::metadata::TopicImage;
use common::protocol::node::{Identified, Identify};
use common::time::Clock;
use common::transport::client::Transport;
use common::transport::server::{register, resource};
use tokio::sync::watch;
use uuid::Uuid;

use crate::exchange::Exchange;
use crate::http::intake::Intake;
use crate::job::jobs_actor::Jobs;
use crate::link::Session;
use crate::link::coordinators::Coordinators;
use crate::link::lease::Lease;
use crate::link::reports::TaskReports;
use crate::load::SharedLoad;
use crate::log_client::LogClient;
use crate::metadata_image::ImageWatch;
use crate::metrics::Metrics;
use crate::partition::messages::PartitionHandle;
use crate::partition::registry::Partitions;
use crate::quota::Quotas;
use crate::replication::sessions::Sessions;

/// What the endpoints work with.
#[derive(Clone)]
pub struct Routes {
    /// The partitions of this worker, and the way to all others.
    pub partitions: Partitions,
    pub log: LogClient,
    /// What followers elsewhere have told.
    pub replication: Sessions,
    /// Where the next request's records without a key go.
    pub turn: Arc<AtomicU32>,
    /// For the bodies of clients.
    pub intake: Intake,
    /// Of each client.
    pub quotas: Quotas,
    pub jobs: Jobs,
    pub exchange: Exchange,
    pub image: ImageWatch,
    pub transport: Transport,
    pub coordinators: Coordinators,
    pub session: Arc<Session>,
    /// Whether it may be said what is newest.
    pub lease: Lease,
    pub clock: Arc<dyn Clock>,
    pub reports: Arc<TaskReports>,
    pub load: SharedLoad,
    pub metrics: Arc<Metrics>,
    /// Answers that go on and on end when this becomes true.
    pub stopping: watch::Receiver<bool>,
}

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routes").finish_non_exhaustive()
    }
}

/// The worker's parts, once it has them.
pub type Composed = Arc<OnceLock<Routes>>;

/// `incarnation`: of this process.
pub fn routes(server: &mut ServiceConfig, composed: &Composed, incarnation: Uuid) {
    register(server, move |_: Identify| async move {
        Ok(Identified { incarnation })
    });
    register(server, with(composed, append::append));
    register(server, with(composed, fetch_batches::fetch_batches));
    register(server, with(composed, list_offsets::list_offsets));
    register(server, with(composed, replicate::replicate));
    register(server, with(composed, exchange::exchange));
    register(server, with(composed, inject_barrier::inject_barrier));
    register(server, with(composed, fetch_state::fetch_state));
    register(server, with(composed, save_state::save_state));
    register(server, with(composed, query_state::query_state));
    register(server, with(composed, query_state::query_state_at_rest));
    server.app_data(web::Data::new(composed.clone()));
    let records = "/v1/topics/{topic}/records";
    server.service(resource(records).route(web::post().to(produce::produce)));
    let partition = "/v1/topics/{topic}/partitions/{partition}/records";
    server.service(resource(partition).route(web::get().to(fetch::fetch)));
    let stream = "/v1/topics/{topic}/stream";
    server.service(resource(stream).route(web::get().to(stream::stream)));
    server.route("/health/live", web::get().to(health::live));
    server.route("/health/ready", web::get().to(health::ready));
    server.route("/metrics", web::get().to(metrics::metrics));
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

impl Routes {
    async fn topic(&self, name: &str) -> Result<Arc<TopicImage>, Problem> {
        let name = TopicName::new(name)?;
        if let Some(topic) = self.log.known_topic(&name).await {
            return Ok(topic);
        }
        let version = self.log.image().borrow().version;
        if !self.session.is_up_to_date(version, self.clock.tick()) {
            let detail = format!(
                "this worker does not hear a coordinator, and cannot say whether there is a topic \"{name}\""
            );
            return Err(Problem::new(ErrorCode::MetadataStale, detail)
                .hint("Ask another node, or again in a moment."));
        }
        let detail = format!("there is no topic \"{name}\"");
        Err(Problem::new(ErrorCode::UnknownTopic, detail)
            .hint("Create it with POST /v1/topics, or look at GET /v1/topics."))
    }
}

/// The partition of a topic, if there is one of this number.
fn partition_of(topic: &TopicImage, number: u32) -> Result<TopicPartition, Problem> {
    let partitions = topic.partitions.len();
    if usize::try_from(number).is_ok_and(|index| index < partitions) {
        Ok(TopicPartition {
            topic: topic.id,
            partition: PartitionId(number),
        })
    } else {
        Err(Problem::new(
            ErrorCode::UnknownPartition,
            format!(
                "topic \"{}\" has no partition {number}, it has {partitions}",
                topic.name
            ),
        )
        .hint("Partitions are numbered from 0."))
    }
}

/// How records are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AnswerFormat {
    Json,
    Ndjson,
    Msgpack,
}

impl AnswerFormat {
    /// The first of what the request accepts that there is; JSON if it does not say.
    fn of(request: &HttpRequest) -> Result<AnswerFormat, Problem> {
        let Some(accept) = header(request, &ACCEPT) else {
            return Ok(AnswerFormat::Json);
        };
        let mut accepted: Vec<(AnswerFormat, f32)> = accept
            .split(',')
            .filter_map(|choice| {
                let mut parts = choice.split(';').map(str::trim);
                let format = match parts.next()?.to_ascii_lowercase().as_str() {
                    "*/*" | "application/*" | "application/json" => AnswerFormat::Json,
                    "application/x-ndjson" | "application/ndjson" => AnswerFormat::Ndjson,
                    "application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack" => {
                        AnswerFormat::Msgpack
                    }
                    _ => return None,
                };
                let weight = parts
                    .find_map(|part| part.strip_prefix("q="))
                    .map_or(Some(1.0), |weight| weight.parse().ok())?;
                (weight > 0.0).then_some((format, weight))
            })
            .collect();
        accepted.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        accepted.first().map(|(format, _)| *format).ok_or_else(|| {
            Problem::new(
                ErrorCode::UnsupportedMediaType,
                format!("records are not answered as \"{accept}\""),
            )
            .hint("Accept application/json, application/x-ndjson or application/msgpack.")
        })
    }

    fn content_type(self) -> &'static str {
        match self {
            AnswerFormat::Json => "application/json",
            AnswerFormat::Ndjson => "application/x-ndjson",
            AnswerFormat::Msgpack => common::transport::MSGPACK,
        }
    }
}

fn header<'a>(request: &'a HttpRequest, name: &HeaderName) -> Option<&'a str> {
    request.headers().get(name)?.to_str().ok()
}

fn invalid(detail: impl Into<String>) -> Problem {
    Problem::new(ErrorCode::InvalidRequest, detail)
}
