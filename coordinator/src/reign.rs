//! While this coordinator leads, and no longer, it decides: a reign is a set of actors with its epoch.
//!
//! A reign begins when the group has elected this coordinator and its announcement is a fact, which proves
//! that it knows everything that was decided before. It ends when the coordinator leads no more. What it
//! proposed and was not decided by then is rejected when it is applied, because its epoch has ended. Each
//! reign has a thread of its own: at its end all of its actors are gone with it.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{oneshot, watch};
use tracing::{error, info, warn};

use common::config::coordinator::Rebalance as RebalanceMode;
use common::error::{ErrorCode, Problem};
use common::ids::{ClusterId, ControlEpoch};
use common::objects::location::Location;
use common::objects::store::Objects;
use common::time::{Clock, Span};
use common::transport::client::Transport;

use crate::controller::Controller;
use crate::controller::actor::ControllerActor;
use crate::controller::seen::Seen;
use crate::http::State;
use crate::job::jobs_actor::Jobs;
use crate::liveness::Liveness;
use crate::metadata::command::{Command, Entry, Outcome};
use crate::metadata_log::{MetadataLog, ProposeError};
use crate::metrics::Metrics;
use crate::raft::Group;
use crate::raft::leadership::Leadership;
use crate::rebalance::actor::Rebalance;

/// An announcement that did not become a fact is made again after this.
const RETRY_AFTER: Span = Span::from_millis(100);

/// What is said to who has asked an actor that is gone with its reign.
pub(crate) fn ended() -> Problem {
    Problem::new(
        ErrorCode::CoordinatorUnavailable,
        "this coordinator has ceased to lead, or is shutting down",
    )
    .hint("Repeat the request in a moment: any coordinator that is there takes it to the one that leads.")
}

/// What every reign of this coordinator is made of.
#[derive(Clone, Debug)]
pub(crate) struct Throne {
    pub(crate) group: Group,
    pub(crate) log: MetadataLog,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) transport: Transport,
    pub(crate) metrics: Arc<Metrics>,
    /// Its own.
    pub(crate) address: String,
    pub(crate) session_timeout: Span,
    /// Where savepoints go that do not say where.
    pub(crate) savepoints: Option<Location>,
    pub(crate) rebalance: RebalanceMode,
    pub(crate) stopping: watch::Receiver<bool>,
}

/// The thread that begins reigns and ends them. It ends when it is stopped, or with the log.
#[derive(Debug)]
pub(crate) struct Reigns {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Reigns {
    /// `reign`: what endpoints stand on while there is one.
    pub(crate) fn start(
        throne: Throne,
        reign: watch::Sender<Option<Arc<State>>>,
    ) -> io::Result<Reigns> {
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = std::thread::Builder::new()
            .name("coordinator-reigns".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        // An error says that the node was dropped: that ends it too.
                        _ = stopped => {}
                        () = follow(&throne, &reign) => {}
                    }
                });
                reign.send_replace(None);
            })?;
        Ok(Reigns {
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Ends the reign, if there is one. Blocks.
    pub(crate) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the thread of the reigns panicked");
        }
    }
}

impl Drop for Reigns {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reigns whenever the coordinator leads, until its log ends.
async fn follow(throne: &Throne, reign: &watch::Sender<Option<Arc<State>>>) {
    let mut leadership = throne.group.leadership();
    loop {
        let settled = |seen: &Leadership| !matches!(seen, Leadership::Follows { .. });
        if leadership.wait_for(settled).await.is_err() {
            return;
        }
        let led = leadership.borrow_and_update().clone();
        let term = match led {
            Leadership::Leads { term } => term,
            // It was over before it began.
            Leadership::Follows { .. } => continue,
            Leadership::Ended => return,
        };
        match ControlThread::start(throne.clone()).await {
            Ok((control, state)) => {
                info!(term, epoch = %control.epoch, "coordinating");
                let (group, address) = (throne.group.clone(), throne.address.clone());
                throne
                    .group
                    .apart(async move { group.settle(&address).await });
                reign.send_replace(Some(Arc::new(state)));
                let over = leadership.wait_for(|now| *now != led).await.is_ok();
                // First nobody is sent to it any more, then it ends.
                reign.send_replace(None);
                drop(control);
                if !over {
                    return;
                }
                info!(term, "coordinating no longer");
            }
            Err(error) => {
                warn!(%error, term, "could not begin to coordinate");
                tokio::time::sleep(RETRY_AFTER.as_duration()).await;
            }
        }
    }
}

/// Why a reign does not begin.
#[derive(Debug, thiserror::Error)]
enum ReignError {
    #[error("the announcement is no fact: {0}")]
    Announce(#[from] ProposeError),
    #[error("this coordinator belongs to no cluster")]
    NoCluster,
    #[error("could not start a thread: {0}")]
    Thread(#[from] io::Error),
    #[error("the thread ended before it had begun")]
    Ended,
}

/// The thread whose arbiter runs everything that decides. Ends, and waits for its end, when it is dropped.
#[derive(Debug)]
struct ControlThread {
    epoch: ControlEpoch,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ControlThread {
    async fn start(throne: Throne) -> Result<(ControlThread, State), ReignError> {
        let me = throne.group.belongs().ok_or(ReignError::NoCluster)?;
        let epoch = announce(&throne, me.cluster).await?;
        let (stop, stopped) = oneshot::channel();
        let (report, started) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("coordinator-control".to_owned())
            .spawn(move || {
                actix_rt::System::new().block_on(async move {
                    if report.send(begin(throne, epoch)).is_ok() {
                        // An error says that the reign is over: that ends it too.
                        stopped.await.unwrap_or_default();
                    }
                });
            })?;
        let state = started.await.map_err(|_| ReignError::Ended)?;
        let control = ControlThread {
            epoch,
            stop: Some(stop),
            thread: Some(thread),
        };
        Ok((control, state))
    }
}

impl Drop for ControlThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the control thread panicked");
        }
    }
}

/// Makes the beginning of the reign a fact.
async fn announce(throne: &Throne, cluster: ClusterId) -> Result<ControlEpoch, ReignError> {
    let announcement = Entry {
        control_epoch: ControlEpoch(0),
        at: throne.clock.wall(),
        command: Command::LeaderAnnounce { cluster },
    };
    let Outcome::Announced(epoch) = throne.log.propose(announcement).await?.outcome else {
        unreachable!("the outcome of an announcement is that it was announced");
    };
    Ok(epoch)
}

/// Starts the actors, which act in the name of this reign. Every worker's session is new to them, so each has
/// its full time to be heard.
fn begin(throne: Throne, epoch: ControlEpoch) -> State {
    let Throne {
        group,
        log,
        clock,
        transport,
        metrics,
        address: _,
        session_timeout,
        savepoints,
        rebalance,
        stopping,
    } = throne;
    let seen = Seen::default();
    let controller = Controller::start(ControllerActor::new(
        log,
        epoch,
        Arc::clone(&clock),
        seen.clone(),
        session_timeout,
    ));
    let liveness = Liveness::start(
        session_timeout,
        controller.clone(),
        transport.clone(),
        Arc::clone(&clock),
    );
    let heartbeats = liveness.heartbeats();
    let jobs = Jobs::start(
        controller.clone(),
        transport.clone(),
        Arc::clone(&clock),
        session_timeout,
        heartbeats,
    );
    let rebalance = Rebalance::start(rebalance, controller.clone(), clock);
    State {
        controller,
        liveness,
        jobs,
        rebalance,
        group,
        objects: Objects::new(transport.clone()),
        savepoints,
        transport,
        seen,
        metrics,
        stopping,
    }
}
