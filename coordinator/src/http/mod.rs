//! The route table, one line per endpoint: decode, ask an actor or look at the facts, encode.

pub mod gate;
pub mod raft_append;
pub mod raft_vote;
pub mod raft_snapshot;
pub mod join_group;
pub mod register_node;
pub mod heartbeat_node;
pub mod alter_isr;
pub mod cluster_metadata;
pub mod create_topic;
pub mod list_topics;
pub mod describe_topic;
pub mod alter_topic;
pub mod reassign_topic;
pub mod recover_topic;
pub mod delete_topic;
pub mod forward_records;
mod records_api;
pub mod jobs;
pub mod create_job;
pub mod list_jobs;
pub mod describe_job;
pub mod change_job;
pub mod delete_job;
pub mod list_checkpoints;
pub mod create_savepoint;
pub mod list_savepoints;
pub mod restore_job;
pub mod rescale_job;
pub mod update_job;
pub mod job_offsets;
pub mod query_state;
pub mod dead_letters;
pub mod explain_query;
pub mod acknowledge_checkpoint;
pub mod acknowledge_standby;
pub mod decline_checkpoint;
pub mod describe_cluster;
pub mod change_membership;
pub mod drain_worker;
pub mod list_workers;
pub mod health;
pub mod metrics;
pub mod docs;
pub mod paging;
#[cfg(test)]
mod http_tests;
#[cfg(test)]
mod fake_worker;
#[cfg(test)]
mod jobs_tests;
#[cfg(test)]
mod docs_tests;

use std::pin::Pin;
use std::sync::Arc;

use actix_web::middleware::from_fn;
use actix_web::web::{self, Data, ServiceConfig, delete, get, patch, post, put};
use tokio::sync::watch;
use utoipa::OpenApi;

use common::error::Problem;
use common::objects::location::Location;
use common::objects::store::Objects;
use common::transport::client::Transport;
use common::transport::server::{register, resource};

use self::gate::{Gate, Reigning, to_the_leader};
use crate::controller::Controller;
use crate::controller::seen::Seen;
use crate::job::jobs_actor::Jobs;
use crate::liveness::Liveness;
use crate::metrics::Metrics;
use crate::raft::Group;
use crate::rebalance::actor::Rebalance;

/// What endpoints stand on while this coordinator leads.
#[derive(Clone, Debug)]
pub struct State {
    pub controller: Controller,
    pub liveness: Liveness,
    pub jobs: Jobs,
    pub rebalance: Rebalance,
    pub group: Group,
    pub transport: Transport,
    pub objects: Objects,
    /// Where savepoints go that do not say where.
    pub savepoints: Option<Location>,
    pub seen: Seen,
    pub metrics: Arc<Metrics>,
    /// Becomes true when the node begins to stop: what is parked is then answered.
    pub stopping: watch::Receiver<bool>,
}

/// The public endpoints, as `/openapi.json` describes them.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "Millstream",
        description = "Topics, jobs and their state. Errors are problem documents (RFC 9457) with a stable code."
    ),
    paths(
        create_topic::create_topic,
        list_topics::list_topics,
        describe_topic::describe_topic,
        alter_topic::alter_topic,
        reassign_topic::reassign_topic,
        recover_topic::recover_topic,
        delete_topic::delete_topic,
        records_api::produce,
        records_api::fetch,
        records_api::stream,
        create_job::create_job,
        list_jobs::list_jobs,
        describe_job::describe_job,
        change_job::pause,
        change_job::resume,
        change_job::stop,
        change_job::cancel,
        delete_job::delete_job,
        list_checkpoints::list_checkpoints,
        create_savepoint::create_savepoint,
        list_savepoints::list_savepoints,
        restore_job::restore_job,
        rescale_job::rescale_job,
        update_job::update_job,
        job_offsets::job_offsets,
        query_state::query_state,
        dead_letters::dead_letters,
        explain_query::explain_query,
        describe_cluster::describe_cluster,
        change_membership::add_coordinator,
        change_membership::remove_coordinator,
        list_workers::list_workers,
        drain_worker::drain_worker,
        drain_worker::end_drain,
        health::live,
        health::ready,
        metrics::metrics,
    ),
    components(schemas(Problem))
)]
pub struct Api;

/// Adds every endpoint. Called once per thread of the server.
pub fn routes(config: &mut ServiceConfig, gate: &Gate) {
    config.app_data(Data::new(gate.clone()));
    of_every_coordinator(config, gate);
    // Last, because it takes everything else.
    let leaders = web::scope("").wrap(from_fn(to_the_leader));
    config.service(leaders.configure(|config| of_the_leader(config, gate)));
}

/// What each coordinator answers for itself.
fn of_every_coordinator(config: &mut ServiceConfig, gate: &Gate) {
    let group = gate.group.clone();
    register(config, move |request| {
        raft_append::handle(group.clone(), request)
    });
    let group = gate.group.clone();
    register(config, move |request| {
        raft_vote::handle(group.clone(), request)
    });
    let group = gate.group.clone();
    register(config, move |request| {
        raft_snapshot::handle(group.clone(), request)
    });
    let joining = gate.clone();
    register(config, move |request| {
        join_group::handle(joining.clone(), request)
    });
    config
        .service(resource("/health/live").route(get().to(health::live)))
        .service(resource("/health/ready").route(get().to(health::ready)))
        .service(resource("/metrics").route(get().to(metrics::metrics)))
        .service(resource("/openapi.json").route(get().to(docs::openapi)))
        .service(resource("/docs").route(get().to(docs::docs)));
}

/// What only the leader answers; the others pass it on.
fn of_the_leader(config: &mut ServiceConfig, gate: &Gate) {
    register(config, reigning(gate, register_node::handle));
    register(config, reigning(gate, heartbeat_node::handle));
    register(config, reigning(gate, acknowledge_checkpoint::handle));
    register(config, reigning(gate, acknowledge_standby::handle));
    register(config, reigning(gate, decline_checkpoint::handle));
    register(config, reigning(gate, alter_isr::handle));
    register(config, reigning(gate, cluster_metadata::handle));

    config
        .service(
            resource("/v1/topics")
                .route(post().to(create_topic::create_topic))
                .route(get().to(list_topics::list_topics)),
        )
        .service(
            resource("/v1/topics/{topic}")
                .route(get().to(describe_topic::describe_topic))
                .route(patch().to(alter_topic::alter_topic))
                .route(delete().to(delete_topic::delete_topic)),
        )
        .service(
            resource("/v1/topics/{topic}/reassign")
                .route(post().to(reassign_topic::reassign_topic)),
        )
        .service(
            resource("/v1/topics/{topic}/recover").route(post().to(recover_topic::recover_topic)),
        )
        // Only what workers answer: they pass on everything else, and it would come back.
        .service(
            resource("/v1/topics/{topic}/records")
                .route(post().to(forward_records::forward_records)),
        )
        .service(
            resource("/v1/topics/{topic}/partitions/{partition}/records")
                .route(get().to(forward_records::forward_records)),
        )
        .service(
            resource("/v1/topics/{topic}/stream").route(get().to(forward_records::forward_records)),
        )
        .service(
            resource("/v1/jobs")
                .route(post().to(create_job::create_job))
                .route(get().to(list_jobs::list_jobs)),
        )
        .service(
            resource("/v1/jobs/{job}")
                .route(get().to(describe_job::describe_job))
                .route(put().to(update_job::update_job))
                .route(delete().to(delete_job::delete_job)),
        )
        .service(resource("/v1/jobs/{job}/pause").route(post().to(change_job::pause)))
        .service(resource("/v1/jobs/{job}/resume").route(post().to(change_job::resume)))
        .service(resource("/v1/jobs/{job}/stop").route(post().to(change_job::stop)))
        .service(resource("/v1/jobs/{job}/cancel").route(post().to(change_job::cancel)))
        .service(
            resource("/v1/jobs/{job}/checkpoints")
                .route(get().to(list_checkpoints::list_checkpoints)),
        )
        .service(
            resource("/v1/jobs/{job}/savepoints")
                .route(post().to(create_savepoint::create_savepoint))
                .route(get().to(list_savepoints::list_savepoints)),
        )
        .service(resource("/v1/jobs/{job}/restore").route(post().to(restore_job::restore_job)))
        .service(resource("/v1/jobs/{job}/rescale").route(post().to(rescale_job::rescale_job)))
        .service(resource("/v1/jobs/{job}/offsets").route(get().to(job_offsets::job_offsets)))
        .service(
            resource("/v1/jobs/{job}/operators/{operator}/state")
                .route(get().to(query_state::query_state)),
        )
        .service(
            resource("/v1/jobs/{job}/dead-letters").route(get().to(dead_letters::dead_letters)),
        )
        .service(resource("/v1/sql/explain").route(post().to(explain_query::explain_query)))
        .service(resource("/v1/cluster").route(get().to(describe_cluster::describe_cluster)))
        .service(resource("/v1/workers").route(get().to(list_workers::list_workers)))
        .service(
            resource("/v1/workers/{id}/drain")
                .route(post().to(drain_worker::drain_worker))
                .route(delete().to(drain_worker::end_drain)),
        )
        .service(resource("/v1/coordinators").route(post().to(change_membership::add_coordinator)))
        .service(
            resource("/v1/coordinators/{coordinator}")
                .route(delete().to(change_membership::remove_coordinator)),
        );
}

/// A handler of calls that is given the reign.
fn reigning<C, H, F, R>(
    gate: &Gate,
    handler: H,
) -> impl Fn(C) -> Pin<Box<dyn Future<Output = Result<R, Problem>>>> + Clone + 'static
where
    H: Fn(Reigning, C) -> F + Copy + 'static,
    F: Future<Output = Result<R, Problem>> + 'static,
    C: 'static,
    R: 'static,
{
    let gate = gate.clone();
    move |call| {
        let reign = gate.reigning();
        Box::pin(async move { handler(reign?, call).await })
    }
}
