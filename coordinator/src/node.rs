//! Builds a coordinator: opens what it keeps, takes part in its group, and serves.
//!
//! A node owns its threads and shares nothing with another one in the same process. It is opened from the
//! disk outwards, so that nothing is said before it is known what was said before, and stops the other way
//! round. Whether it decides anything is the group's choice: see `reign.rs`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use tracing::{info, warn};
use uuid::Uuid;

use common::config::coordinator::CoordinatorConfig;
use common::data_dir::{DataDir, DataDirError};
use common::error::Problem;
use common::ids::{ClusterId, CoordinatorId};
use common::seglog::fs::FsStorage;
use common::time::{Clock, SystemClock};
use common::transport::client::Transport;
use common::transport::server::HttpServer;

use crate::http;
use crate::http::gate::Gate;
use crate::metrics::Metrics;
use crate::raft::formation::{Beginning, beginning, keep_identity};
use crate::raft::membership::Members;
use crate::raft::records::Belongs;
use crate::raft::types::Member;
use crate::raft::{Group, GroupThread, OpenError, SnapshotPolicy};
use crate::reign::{Reigns, Throne};

/// A running coordinator.
#[derive(Debug)]
pub struct Node {
    address: String,
    stopping: watch::Sender<bool>,
    // In the order in which they end, should the node be dropped.
    http: Option<HttpServer>,
    reigns: Option<Reigns>,
    log: Option<GroupThread>,
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
    #[error("could not listen on {address}")]
    Listen {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("could not start a thread")]
    Thread(#[from] io::Error),
    #[error("could not take part in the group of coordinators")]
    Group(#[from] Problem),
    #[error(
        "\"{}\" is that of coordinator {coordinator}, which the group knows at {known}, and this one is at {address}",
        directory.display()
    )]
    OtherMember {
        directory: PathBuf,
        coordinator: CoordinatorId,
        known: String,
        address: String,
        /// The member that is known at this address.
        here: Option<CoordinatorId>,
    },
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
            StartError::OtherMember {
                coordinator,
                here: Some(here),
                ..
            } => Some(format!(
                "Start coordinator {here} with its own data directory, not with that of coordinator {coordinator}."
            )),
            StartError::OtherMember {
                known, here: None, ..
            } => Some(format!(
                "Start it with --advertise {known}, or replace it: POST /v1/coordinators with the address of one \
                 that has an empty data directory, then DELETE this one."
            )),
            StartError::Metadata { .. }
            | StartError::DataDir(_)
            | StartError::Listen { .. }
            | StartError::Thread(_)
            | StartError::Group(_) => None,
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
    /// Starts a coordinator. Returns when it serves; one that is alone decides by then.
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
        let listen = || format!("http://{}", config.listen);
        let known_at = config.advertise.clone().unwrap_or_else(listen);
        let (log_thread, group, log) = GroupThread::open(
            storage,
            Arc::clone(&data_dir),
            SnapshotPolicy::default(),
            // Of its own: entries and votes must not wait behind what users ask.
            Transport::of_node("coordinator-group", &known_at)?,
            on_failure,
        )
        .map_err(|source| StartError::Metadata {
            directory: config.data_dir.clone(),
            source,
        })?;
        let kept = whose(&data_dir, &group)?;
        let transport = Transport::of_node("coordinator", &known_at)?;
        let (stopping, stopped) = watch::channel(false);
        let (reign_sender, reign) = watch::channel(None);
        let metrics = Arc::new(Metrics::new());
        let gate = Gate {
            group: group.clone(),
            reign: reign.clone(),
            transport: transport.clone(),
            metrics: Arc::clone(&metrics),
            peers: Arc::new(config.peers.clone()),
            stopping: stopped.clone(),
        };
        let http = HttpServer::start(
            "coordinator",
            config.listen,
            config.http_threads as usize,
            config.shutdown_timeout,
            move |routes| http::routes(routes, &gate),
        )
        .map_err(|source| StartError::Listen {
            address: config.listen.to_string(),
            source,
        })?;
        let address = config
            .advertise
            .unwrap_or_else(|| format!("http://{}", http.address()));
        let reigns = Reigns::start(
            Throne {
                group: group.clone(),
                log,
                clock,
                transport,
                metrics,
                address: address.clone(),
                session_timeout: config.session_timeout,
                savepoints: config.savepoints,
                rebalance: config.rebalance,
                stopping: stopped,
            },
            reign_sender,
        )?;
        let place = Place {
            data_dir: &data_dir,
            group: &group,
            address: &address,
            peers: &config.peers,
        };
        let alone = place.take(kept)?;
        if alone {
            let mut reign = reign;
            group.wait(async move {
                // An error says that the log has ended, which the next request is told.
                reign
                    .wait_for(Option::is_some)
                    .await
                    .map(drop)
                    .unwrap_or_default();
                Ok(())
            })?;
        }
        info!(%address, coordinator = ?group.belongs(), "serving");
        Ok(Node {
            address,
            stopping,
            http: Some(http),
            reigns: Some(reigns),
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
        if let Some(reigns) = self.reigns.take() {
            reigns.stop();
        }
        if let Some(log) = self.log.take() {
            log.stop();
        }
    }
}

/// Whose this data directory is; `None`: nobody's yet.
fn whose(data_dir: &DataDir, group: &Group) -> Result<Option<Belongs>, StartError> {
    let identity = data_dir.identity()?;
    let directory = || data_dir.path().to_owned();
    match (identity.cluster, group.belongs()) {
        (Some(kept), Some(found)) if kept != found.cluster => Err(StartError::OtherCluster {
            directory: directory(),
            kept,
            found: found.cluster,
        }),
        (Some(cluster), None) => Err(StartError::NoMetadata {
            directory: directory(),
            cluster,
        }),
        (_, found) => Ok(found),
    }
}

/// The number of the one that begins a cluster.
const FOUNDER: CoordinatorId = CoordinatorId(1);

/// Where a coordinator is to take its place, and what it was told.
struct Place<'a> {
    data_dir: &'a Arc<DataDir>,
    group: &'a Group,
    address: &'a str,
    peers: &'a [String],
}

impl Place<'_> {
    /// Takes it. Says whether it is the only coordinator, and so leads as soon as it can.
    fn take(&self, kept: Option<Belongs>) -> Result<bool, StartError> {
        let begins = beginning(self.address, self.peers);
        let me = match (kept, begins) {
            (Some(me), _) => me,
            (None, Beginning::Alone | Beginning::Founds) => Belongs {
                cluster: ClusterId(Uuid::new_v4()),
                coordinator: FOUNDER,
            },
            (None, Beginning::Waits) => {
                if !self.peers.iter().any(|peer| peer == self.address) {
                    let peers = self.peers.join(",");
                    warn!(address = self.address, %peers, "not among its peers: waiting to be added");
                }
                return Ok(false);
            }
        };
        let group = self.group.clone();
        self.group.wait(async move { group.begin(me).await })?;
        keep_identity(self.data_dir, me)?;
        let group = self.group.clone();
        let members = self.group.wait(async move { group.members().await })?;
        if members.is_empty() {
            return self.form(me, kept.is_some(), begins);
        }
        if members.len() == 1 && members.contains_key(&me.coordinator) {
            // Nobody else can lead: there is nothing to wait for.
            let group = self.group.clone();
            self.group.wait(async move { group.elect().await })?;
            return Ok(true);
        }
        self.is_mine(me, &members)?;
        Ok(false)
    }

    /// There is no group yet that it is a member of.
    fn form(&self, me: Belongs, again: bool, begins: Beginning) -> Result<bool, StartError> {
        let group = self.group.clone();
        // Only who named the cluster may form its group: whoever was taken in waits for the others, or there
        // would be two groups of one cluster.
        let begins = match me.coordinator {
            FOUNDER => begins,
            _ => Beginning::Waits,
        };
        match begins {
            Beginning::Alone => {
                let myself = Member {
                    address: self.address.to_owned(),
                };
                let members = [(me.coordinator, myself)].into();
                self.group.wait(async move { group.form(members).await })?;
                Ok(true)
            }
            Beginning::Founds => {
                if again {
                    info!("forming the group that was not formed in the last life");
                }
                let peers = self.peers.to_vec();
                self.group
                    .apart(async move { group.found(me, &peers).await });
                Ok(false)
            }
            Beginning::Waits => Ok(false),
        }
    }

    /// The group must know this member at this address: a directory that was copied is another member's.
    fn is_mine(&self, me: Belongs, members: &Members) -> Result<(), StartError> {
        match members.get(&me.coordinator) {
            Some(known) if known.address != self.address => {
                let mut others = members.iter();
                let here = others.find(|(_, member)| member.address == self.address);
                Err(StartError::OtherMember {
                    directory: self.data_dir.path().to_owned(),
                    coordinator: me.coordinator,
                    known: known.address.clone(),
                    address: self.address.to_owned(),
                    here: here.map(|(id, _)| *id),
                })
            }
            Some(_) | None => Ok(()),
        }
    }
}
