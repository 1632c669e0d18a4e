//! Builds a coordinator: opens what it keeps, begins its reign, starts its actors and its HTTP server.
//!
//! A node owns its threads and shares nothing with another one in the same process. They start from the
//! disk outwards, so that nothing is served before the metadata is complete, and stop the other way round.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{oneshot, watch};
use tracing::{error, info};
use uuid::Uuid;

use common::config::coordinator::CoordinatorConfig;
use common::data_dir::{DataDir, DataDirError, Identity};
use common::ids::{ClusterId, ControlEpoch};
use common::seglog::fs::FsStorage;
use common::time::{Clock, SystemClock};
use common::transport::client::Transport;
use common::transport::server::HttpServer;

use crate::controller::Controller;
use crate::controller::actor::ControllerActor;
use crate::controller::seen::Seen;
use crate::http::{self, State};
use crate::job::jobs_actor::Jobs;
use crate::liveness::Liveness;
use crate::metadata::command::{Command, Entry, Outcome};
use crate::metadata_log::single::{OpenError, SingleNodeLog, SnapshotPolicy};
use crate::metadata_log::{MetadataLog, ProposeError};
use crate::metrics::Metrics;

/// A running coordinator.
#[derive(Debug)]
pub struct Node {
    address: String,
    stopping: watch::Sender<bool>,
    // In the order in which they end, should the node be dropped.
    http: Option<HttpServer>,
    control: Option<ControlThread>,
    log: Option<SingleNodeLog>,
    _data_dir: Arc<DataDir>,
}

/// Why a coordinator does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("the metadata in \"{}\" cannot be used", directory.display())]
    Metadata {
        directory: PathBuf,
        #[source]
        source: OpenError,
    },
    #[error("\"{}\" has none of the metadata of cluster {cluster}, which it belongs to", directory.display())]
    NoMetadata {
        directory: PathBuf,
        cluster: ClusterId,
    },
    #[error("could not listen on {address}: {source}")]
    Listen {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("could not start a thread: {0}")]
    Thread(#[from] io::Error),
    #[error("could not begin to reign: {0}")]
    Announce(#[from] ProposeError),
    #[error(
        "\"{}\" belongs to cluster {kept} by its identity.json, to {found} by its metadata",
        directory.display()
    )]
    OtherCluster {
        directory: PathBuf,
        kept: ClusterId,
        found: ClusterId,
    },
}

impl StartError {
    /// What an operator can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            StartError::Metadata { directory, source } if source.is_damage() => {
                Some(put_back(directory))
            }
            StartError::NoMetadata { directory, .. } => Some(put_back(directory)),
            StartError::OtherCluster { directory, .. } => Some(format!(
                "If no other cluster's files were copied into \"{0}\", its identity.json is damaged: delete \
                 it, and it is made again from the metadata.",
                directory.display()
            )),
            StartError::DataDir(DataDirError::Damaged { path, .. }) => Some(format!(
                "Delete \"{}\": it is made again from the metadata.",
                path.display()
            )),
            StartError::Metadata { .. }
            | StartError::DataDir(_)
            | StartError::Listen { .. }
            | StartError::Thread(_)
            | StartError::Announce(_) => None,
        }
    }
}

fn put_back(directory: &Path) -> String {
    format!(
        "Nothing was cut off or removed. Put back the whole of \"{}\" as it was when the coordinator last ran, \
         from a copy. Without one, an empty --data-dir begins a new cluster, without any topic or job of \
         this one.",
        directory.display()
    )
}

impl Node {
    /// Starts a coordinator. Returns when it serves.
    pub fn start(config: CoordinatorConfig) -> Result<Node, StartError> {
        Node::start_with(config, SystemClock::shared(), || ())
    }

    /// `on_failure`: nothing can be decided any more, because nothing can be stored. A process that is
    /// nothing but this node should end.
    pub fn start_with(
        config: CoordinatorConfig,
        clock: Arc<dyn Clock>,
        on_failure: impl FnOnce() + Send + 'static,
    ) -> Result<Node, StartError> {
        let data_dir = Arc::new(DataDir::open(&config.data_dir)?);
        let storage = FsStorage::create(config.data_dir.join("metadata"))?;
        let (log_thread, log) = SingleNodeLog::open(
            storage,
            Arc::clone(&data_dir),
            SnapshotPolicy::default(),
            |_| on_failure(),
        )
        .map_err(|source| StartError::Metadata {
            directory: config.data_dir.clone(),
            source,
        })?;
        let (cluster, identity) = cluster_of(&data_dir, &log)?;
        let transport = Transport::start("coordinator")?;
        let seen = Seen::default();
        let (control, started) = ControlThread::start(Parts {
            log,
            cluster,
            clock,
            transport: transport.clone(),
            seen: seen.clone(),
            config: config.clone(),
        })?;
        // Not before the metadata names the cluster: a directory that is somebody's has metadata.
        if identity.cluster.is_none() {
            data_dir.keep_identity(&Identity {
                cluster: Some(cluster),
                ..identity
            })?;
        }
        let (stopping, stopped) = watch::channel(false);
        let state = State {
            controller: started.controller,
            liveness: started.liveness,
            jobs: started.jobs,
            transport,
            seen,
            metrics: Arc::new(Metrics::new()),
            stopping: stopped,
        };
        let http = HttpServer::start(
            "coordinator",
            config.listen,
            config.http_threads as usize,
            config.shutdown_timeout,
            move |routes| http::routes(routes, &state),
        )
        .map_err(|source| StartError::Listen {
            address: config.listen.to_string(),
            source,
        })?;
        let address = config
            .advertise
            .unwrap_or_else(|| format!("http://{}", http.address()));
        info!(%address, %cluster, epoch = %started.epoch, "coordinating");
        Ok(Node {
            address,
            stopping,
            http: Some(http),
            control: Some(control),
            log: Some(log_thread),
            _data_dir: data_dir,
        })
    }

    /// Its URL.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Stops in order: parked requests are answered, those under way end, then what decides, then what
    /// stores. Blocks.
    pub fn stop(mut self) {
        self.stopping.send_replace(true);
        if let Some(http) = self.http.take() {
            http.stop();
        }
        if let Some(control) = self.control.take() {
            control.stop();
        }
        if let Some(log) = self.log.take() {
            log.stop();
        }
    }
}

/// The cluster this data directory belongs to: a new one if it is empty.
fn cluster_of(data_dir: &DataDir, log: &MetadataLog) -> Result<(ClusterId, Identity), StartError> {
    let identity = data_dir.identity()?;
    let directory = || data_dir.path().to_owned();
    let named = log.view().read(|metadata| metadata.cluster());
    let cluster = match (identity.cluster, named) {
        (Some(kept), Some(found)) if kept != found => {
            return Err(StartError::OtherCluster {
                directory: directory(),
                kept,
                found,
            });
        }
        (Some(cluster), None) => {
            return Err(StartError::NoMetadata {
                directory: directory(),
                cluster,
            });
        }
        (_, Some(cluster)) => cluster,
        (None, None) => ClusterId(Uuid::new_v4()),
    };
    Ok((cluster, identity))
}

/// The thread whose arbiter runs everything that decides.
#[derive(Debug)]
struct ControlThread {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

struct Parts {
    log: MetadataLog,
    cluster: ClusterId,
    clock: Arc<dyn Clock>,
    transport: Transport,
    seen: Seen,
    config: CoordinatorConfig,
}

struct Started {
    epoch: ControlEpoch,
    controller: Controller,
    liveness: Liveness,
    jobs: Jobs,
}

impl ControlThread {
    fn start(parts: Parts) -> Result<(ControlThread, Started), StartError> {
        let (stop, stopped) = oneshot::channel();
        let (report, outcome) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("coordinator-control".to_owned())
            .spawn(move || {
                actix_rt::System::new().block_on(async move {
                    let started = reign(parts).await;
                    let failed = started.is_err();
                    if report.send(started).is_err() || failed {
                        return;
                    }
                    // An error says that the node was dropped: that ends it too.
                    stopped.await.unwrap_or_default();
                });
            })?;
        let started = outcome
            .recv()
            .map_err(|_| io::Error::other("the control thread ended before it started"))??;
        Ok((ControlThread { stop, thread }, started))
    }

    fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            error!("the control thread panicked");
        }
    }
}

/// Announces the new reign and starts the actors, which act in its name.
async fn reign(parts: Parts) -> Result<Started, StartError> {
    let Parts {
        log,
        cluster,
        clock,
        transport,
        seen,
        config,
    } = parts;
    let announcement = Entry {
        control_epoch: ControlEpoch(0),
        at: clock.wall(),
        command: Command::LeaderAnnounce { cluster },
    };
    let Outcome::Announced(epoch) = log.propose(announcement).await?.outcome else {
        unreachable!("the outcome of an announcement is that it was announced");
    };
    let controller = Controller::start(ControllerActor::new(
        log,
        epoch,
        Arc::clone(&clock),
        seen,
        config.session_timeout,
    ));
    let liveness = Liveness::start(
        config.session_timeout,
        controller.clone(),
        transport.clone(),
        Arc::clone(&clock),
    );
    let jobs = Jobs::start(controller.clone(), transport, clock, liveness.heartbeats());
    Ok(Started {
        epoch,
        controller,
        liveness,
        jobs,
    })
}
