//! Builds a worker: takes its directory, registers, opens its partitions, starts its actors.
//!
//! A node owns its threads and shares nothing with another one in the same process. HTTP is served from
//! the start, because registering needs the address; until everything is there it answers "not yet".

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use actix::System;
use common::config::worker::WorkerConfig;
use common::data_dir::{DataDir, DataDirError, Identity};
use common::ids::{JobId, MetadataVersion};
use common::kv::{KvStore, SledOptions, SledStore};
use common::protocol::node::{RegisterWorker, Registered};
use common::time::{Clock, SystemClock};
use common::transport::client::{CallError, Transport};
use common::transport::server::HttpServer;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tracing::{info, warn};
use uuid::Uuid;

use crate::exchange::Exchange;
use crate::http::intake::Intake;
use crate::http::{self, Routes};
use crate::job::jobs_actor::Jobs;
use crate::job::services::Services;
use crate::keyed_state::base_file;
use crate::link::coordinators::Coordinators;
use crate::link::lease::Lease;
use crate::link::reports::TaskReports;
use crate::link::{self, Link, Session};
use crate::load::{SharedLoad, keep_measuring};
use crate::log_client::LogClient;
use crate::metadata_image::{ImageWatch, MetadataImage};
use crate::operator::custom::CustomOperators;
use crate::partition::actors::PartitionStarter;
use crate::partition::age_clock::AgeClock;
use crate::partition::registry::{DISK_PARALLELISM, Partitions, directories};
use crate::partition::settings::PartitionSettings;
use crate::quota::Quotas;
use crate::replication::follower_actor::FollowerSettings;
use crate::replication::followers::Followers;
use crate::replication::isr_proposals::{IsrProposals, isr_proposals};
use crate::replication::sessions::Sessions;
use crate::slots::Threads;
use crate::task::memory::{MemoryPlan, StateMemory};

/// A running worker.
#[derive(Debug)]
pub struct Node {
    address: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Why a worker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("could not listen on {address}")]
    Listen {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("could not start a thread")]
    Thread(#[from] io::Error),
    #[error("the coordinator does not take this worker")]
    Refused(#[source] CallError),
    #[error("the worker ended while it was starting")]
    Ended,
}

/// Everything the node is composed of, once it is.
struct Parts {
    config: WorkerConfig,
    clock: Arc<dyn Clock>,
    custom: Arc<CustomOperators>,
    data_dir: DataDir,
    registration: RegisterWorker,
    registered: Registered,
    coordinators: Coordinators,
    transport: Transport,
    control: Transport,
    routes: Arc<OnceLock<Routes>>,
    http: HttpServer,
}

impl Node {
    /// Starts a worker with the operators that come with it. Returns when it is active.
    pub fn start(config: WorkerConfig) -> Result<Node, StartError> {
        Node::start_with(config, SystemClock::shared(), CustomOperators::default())
    }

    /// `custom`: operators of its own, which jobs can name.
    pub fn start_with(
        config: WorkerConfig,
        clock: Arc<dyn Clock>,
        custom: CustomOperators,
    ) -> Result<Node, StartError> {
        let data_dir = DataDir::open(&config.data_dir)?;
        let identity = data_dir.identity()?;
        let clean_shutdown = data_dir.ended_in_order()?;
        let routes: Arc<OnceLock<Routes>> = Arc::default();
        let serving = routes.clone();
        let incarnation = Uuid::new_v4();
        let http = HttpServer::start(
            "worker",
            config.listen,
            config.http_threads as usize,
            config.shutdown_timeout,
            move |server| http::routes(server, &serving, incarnation),
        )
        .map_err(|source| StartError::Listen {
            address: config.listen.to_string(),
            source,
        })?;
        let address = config
            .advertise
            .clone()
            .unwrap_or_else(|| format!("http://{}", http.address()));
        let transport = Transport::of_node("worker", &address)?;
        let control = Transport::of_node("worker-control", &address)?;
        let registration = RegisterWorker {
            cluster: identity.cluster,
            worker: identity.worker,
            storage: identity.storage,
            incarnation,
            address: address.clone(),
            clean_shutdown,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cores: config.data_threads,
            slots: config.slots,
            memory_bytes: config.memory_bytes,
            rack: config.rack.clone(),
            operators: custom.names().map(str::to_owned).collect(),
        };
        let coordinators = Coordinators::new(config.coordinators.clone());
        let registering = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let registered = registering
            .block_on(link::register(&coordinators, &control, &registration))
            .map_err(StartError::Refused)?;
        data_dir.begin_life()?;
        data_dir.keep_identity(&Identity {
            cluster: Some(registered.cluster),
            worker: Some(registered.worker),
            ..identity
        })?;
        info!(worker = %registered.worker, epoch = %registered.epoch, %address, "registered");
        let parts = Parts {
            config,
            clock,
            custom: Arc::new(custom),
            data_dir,
            registration,
            registered,
            coordinators,
            transport,
            control,
            routes,
            http,
        };
        let (stop, stopped) = oneshot::channel();
        let (report, started) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("worker".to_owned())
            .spawn(move || {
                System::new().block_on(run(parts, report, stopped));
            })?;
        started.recv().map_err(|_| StartError::Ended)??;
        Ok(Node {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Its URL.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Stops in order: tasks, then partitions, then what serves them. Blocks.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the worker's thread panicked");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
    }
}

/// The worker's life, on the thread its system belongs to.
async fn run(
    parts: Parts,
    report: std::sync::mpsc::SyncSender<Result<(), StartError>>,
    stopped: oneshot::Receiver<()>,
) {
    let Parts {
        config,
        clock,
        custom,
        data_dir,
        registration,
        registered,
        ..
    } = parts;
    let session = Session::of(&registered);
    let threads = match Threads::start(config.data_threads) {
        Ok(threads) => Arc::new(threads),
        Err(error) => {
            // The starter is there as long as nothing was reported.
            report
                .send(Err(StartError::Thread(error)))
                .unwrap_or_default();
            return;
        }
    };
    let (image_sender, image) = watch::channel(Arc::new(MetadataImage::default()));
    let (ready_sender, ready) = watch::channel(false);
    let (stop, stopping) = watch::channel(false);
    let reports: Arc<TaskReports> = Arc::default();
    let urgent: Arc<Notify> = Arc::default();
    let load = SharedLoad::default();

    let (isr, messenger) = isr_proposals();
    let partitions = match open_partitions(&config, &clock, &image, isr, &threads) {
        Ok(partitions) => partitions,
        Err(error) => {
            report
                .send(Err(StartError::Thread(error)))
                .unwrap_or_default();
            return;
        }
    };
    let lease = Lease::new(session.clone(), image.clone(), clock.clone());
    let log = LogClient::new(image.clone(), parts.transport.clone()).with_local(
        session.worker,
        partitions.clone(),
        lease.clone(),
    );
    let exchange = Exchange::new(
        session.worker,
        session.epoch(),
        config.data_threads,
        image.clone(),
        parts.transport.clone(),
        threads.control(),
    );
    let jobs_directory = config.data_dir.join("jobs");
    let memory = MemoryPlan::of(config.memory_bytes);
    let services = Services {
        session: session.clone(),
        coordinators: parts.coordinators.clone(),
        transport: parts.transport.clone(),
        image: image.clone(),
        log: log.clone(),
        exchange: exchange.clone(),
        clock: clock.clone(),
        reports: reports.clone(),
        urgent: urgent.clone(),
        threads: threads.clone(),
        custom,
        memory,
        state_memory: StateMemory::new(memory.state_bytes),
        jobs_directory: jobs_directory.clone(),
    };
    let kept = kept_jobs(&jobs_directory);
    let jobs = Jobs::start(services, kept);
    let routes = Routes {
        partitions: partitions.clone(),
        log,
        replication: Sessions::new(clock.clone(), partitions.clone()),
        turn: Arc::default(),
        intake: Intake::new(memory.intake_bytes),
        quotas: Quotas::of(&config, &clock),
        jobs: jobs.clone(),
        exchange,
        image: image.clone(),
        transport: parts.transport.clone(),
        coordinators: parts.coordinators.clone(),
        session: session.clone(),
        lease,
        clock: clock.clone(),
        reports: reports.clone(),
        load: load.clone(),
        metrics: Arc::default(),
        stopping,
    };
    let measuring = actix::spawn(keep_measuring(
        load.clone(),
        config.data_dir.clone(),
        partitions.clone(),
        reports.clone(),
    ));
    assert!(parts.routes.set(routes).is_ok(), "routes are set once");
    let link = Link {
        coordinators: parts.coordinators.clone(),
        transport: parts.control,
        image: image_sender,
        reports,
        load,
        clock: clock.clone(),
        ready,
        urgent: urgent.clone(),
    };
    let link = match link.start(session.clone(), registered, registration) {
        Ok(link) => link,
        Err(error) => {
            report
                .send(Err(StartError::Thread(error)))
                .unwrap_or_default();
            return;
        }
    };

    let me = session.worker;
    let proposing = actix::spawn(messenger.run(
        session.clone(),
        parts.coordinators.clone(),
        parts.transport.clone(),
    ));
    let followers = Followers::new(FollowerSettings {
        session: session.clone(),
        partitions: partitions.clone(),
        transport: parts.transport.clone(),
        clock,
        arbiter: threads.log(),
    });
    let following = {
        let (partitions, mut image, session) = (partitions.clone(), image.clone(), session.clone());
        actix::spawn(async move {
            // Work may come once the image knows of this life, and its partitions are open.
            let knows =
                |image: &Arc<MetadataImage>| image.version >= MetadataVersion(session.epoch().0);
            if image.wait_for(knows).await.is_err() {
                return;
            }
            let newest = image.borrow().clone();
            partitions.apply(me, &newest).await;
            ready_sender.send_replace(true);
            urgent.notify_one();
            followers.run(image).await;
        })
    };
    let mut active = image.clone();
    let is_active = |image: &Arc<MetadataImage>| image.active(me).is_some();
    let mut stopped = stopped;
    tokio::select! {
        outcome = active.wait_for(is_active) => {
            let outcome = outcome.map(drop).map_err(|_| StartError::Ended);
            report.send(outcome).unwrap_or_default();
        }
        _ = &mut stopped => return,
    }
    // Dropping the sender is the word to stop as well.
    stopped.await.unwrap_or_default();

    stop.send_replace(true);
    jobs.stop().await;
    following.abort();
    proposing.abort();
    measuring.abort();
    partitions.close().await;
    drop(link);
    // Parked requests answer by themselves once their partitions are closed.
    if tokio::task::spawn_blocking(move || parts.http.stop())
        .await
        .is_err()
    {
        warn!("the HTTP server did not stop in order");
    }
    match Arc::try_unwrap(threads) {
        Ok(threads) => {
            let stopping = tokio::task::spawn_blocking(move || threads.stop());
            stopping.await.expect("stopping threads does not panic");
        }
        Err(_) => warn!("a task outlived its job"),
    }
    if let Err(error) = data_dir.end_life() {
        warn!(%error, "the next start will look like one after a crash");
    }
}

fn open_partitions(
    config: &WorkerConfig,
    clock: &Arc<dyn Clock>,
    image: &ImageWatch,
    isr: IsrProposals,
    threads: &Threads,
) -> io::Result<Partitions> {
    let directory = config.data_dir.join("partitions");
    let saved = config.data_dir.join("log.sled");
    // Everything in it can be made again from the logs, so a damaged one is set aside.
    let open = || {
        SledStore::open(
            &saved,
            SledOptions {
                cache_capacity: LOG_CACHE_BYTES,
            },
        )
    };
    let store = match open() {
        Ok(store) => Some(store),
        Err(error) => {
            warn!(%error, "the saved positions of partitions are damaged; they are made anew");
            base_file::set_aside(&saved).map_err(io::Error::other)?;
            open().ok()
        }
    };
    let store = store.map(|store| Arc::new(store) as Arc<dyn KvStore>);
    let settings = PartitionSettings {
        clock: clock.clone(),
        ages: Arc::new(AgeClock::open(clock.clone(), store.clone())),
        image: image.clone(),
        isr,
        store,
        storage: directories(directory.clone()),
        disk: Arc::new(Semaphore::new(DISK_PARALLELISM)),
        on_disk_failure: Arc::new(|reason| {
            tracing::error!(%reason, "the disk cannot be trusted; the worker ends");
            std::process::abort();
        }),
    };
    Partitions::new(
        directory,
        PartitionStarter::new(vec![threads.log()], settings),
    )
}

/// Memory for the pages of what partitions save.
const LOG_CACHE_BYTES: u64 = 8 << 20;

fn kept_jobs(directory: &std::path::Path) -> BTreeSet<JobId> {
    let names = base_file::subdirectories(directory).unwrap_or_default();
    names
        .iter()
        .filter_map(|name| name.parse().ok().map(JobId))
        .collect()
}
