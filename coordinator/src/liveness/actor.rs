//! Heartbeats and time → machine → probes, and commands to the controller.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use actix::{
    Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, MessageResult, StreamHandler,
    WrapFuture,
};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{broadcast, watch};
use tracing::{info, warn};

use common::error::{ErrorCode, Problem};
use common::ids::{MetadataVersion, NodeId, WorkerEpoch};
use common::protocol::node::{Heartbeat, HeartbeatReply};
use common::time::{Clock, Span, Tick};
use common::transport::client::{CallError, Forward, Transport};

use super::machine::{LivenessMachine, PROBE_SUSPECTS_EVERY};
use super::messages::{Describe, Described, Heard, LastHeard, Suspect};
use crate::controller::Controller;
use crate::controller::reconcile::{balance, move_replicas, reconcile};
use crate::metadata::command::Command;
use crate::metadata::nodes::WorkerStatus;
use crate::reign;

const MAILBOX: usize = 1_024;
const HEARTBEATS_KEPT: usize = 256;
/// How often sessions are looked at.
const LOOK_EVERY: Span = Span::from_millis(100);
const PROBE_DEADLINE: Span = Span::from_secs(1);
/// A worker that has come back leads again what it was placed to lead, but not at every blink of its.
const BALANCE_EVERY: Span = Span::from_secs(10);
/// Replicas on workers that are to be emptied are looked at so often.
const MOVE_EVERY: Span = Span::from_secs(1);

/// A handle on the actor; usable from any thread.
#[derive(Clone, Debug)]
pub struct Liveness {
    actor: Addr<LivenessActor>,
    heartbeats: broadcast::Sender<Arc<Heartbeat>>,
}

impl Liveness {
    /// Starts the actor on this arbiter.
    pub fn start(
        session_timeout: Span,
        controller: Controller,
        transport: Transport,
        clock: Arc<dyn Clock>,
    ) -> Liveness {
        let (heartbeats, _) = broadcast::channel(HEARTBEATS_KEPT);
        let actor = LivenessActor {
            machine: LivenessMachine::new(session_timeout),
            controller,
            transport,
            balances_at: clock.tick().plus(BALANCE_EVERY),
            moves_at: clock.tick(),
            clock,
            heartbeats: heartbeats.clone(),
            last: BTreeMap::new(),
            proposing: false,
        };
        Liveness {
            actor: actor.start(),
            heartbeats,
        }
    }

    pub async fn heard(&self, heartbeat: Heartbeat) -> Result<HeartbeatReply, Problem> {
        let answer = self.actor.send(Heard(heartbeat)).await;
        answer.unwrap_or_else(|_| Err(reign::ended()))
    }

    /// A connection of this worker's broke while it waited for an answer: it is looked at once whether it is there.
    pub fn suspect(&self, worker: NodeId) {
        // With too much to do, or none, it is missed when it is silent.
        self.actor.try_send(Suspect(worker)).ok();
    }

    /// What was last heard of each worker, and who is quarantined.
    pub async fn describe(&self) -> Described {
        // Without the actor nothing is heard of anyone.
        self.actor.send(Describe).await.unwrap_or_default()
    }

    /// Every heartbeat that counts from now on. Who falls far behind misses some; workers repeat
    /// what they report.
    pub fn heartbeats(&self) -> broadcast::Receiver<Arc<Heartbeat>> {
        self.heartbeats.subscribe()
    }
}

#[derive(Debug)]
pub struct LivenessActor {
    machine: LivenessMachine,
    controller: Controller,
    transport: Transport,
    clock: Arc<dyn Clock>,
    /// To everyone who wants to know what workers report.
    heartbeats: broadcast::Sender<Arc<Heartbeat>>,
    last: BTreeMap<NodeId, (Tick, Arc<Heartbeat>)>,
    /// Commands are on their way; what they change is looked at again afterwards.
    proposing: bool,
    /// When it is looked next whether leaders are where they should be.
    balances_at: Tick,
    /// The same for replicas.
    moves_at: Tick,
}

impl LivenessActor {
    fn look(&mut self, context: &mut Context<Self>) {
        let now = self.clock.tick();
        for (worker, epoch) in self.machine.due_probes(now) {
            self.probe(worker, epoch, context);
        }
        if self.proposing {
            return;
        }
        let balances = now >= self.balances_at;
        if balances {
            self.balances_at = now.plus(BALANCE_EVERY);
        }
        let moves = now >= self.moves_at;
        if moves {
            self.moves_at = now.plus(MOVE_EVERY);
        }
        let commands = self.controller.view().read(|metadata| {
            let mut commands = reconcile(metadata, &self.machine, now);
            commands.extend(balances.then(|| balance(metadata)).flatten());
            if moves {
                commands.extend(move_replicas(metadata, &self.machine.given_up(now)));
            }
            commands
        });
        if !commands.is_empty() {
            self.propose(commands, context);
        }
    }

    fn follow(&mut self) {
        let now = self.clock.tick();
        let (fenced, quarantined, epochs) = self.controller.view().read(|metadata| {
            let workers = metadata.workers();
            let fenced = workers.filter(|row| row.status == WorkerStatus::Fenced);
            let fenced: BTreeSet<NodeId> = fenced.map(|row| row.id).collect();
            let workers = metadata.workers();
            let living = workers.filter(|row| row.status != WorkerStatus::Fenced);
            let epochs: BTreeMap<NodeId, WorkerEpoch> =
                living.map(|row| (row.id, row.epoch)).collect();
            let workers = metadata.workers().filter(|row| row.quarantined);
            let quarantined: BTreeSet<NodeId> = workers.map(|row| row.id).collect();
            (fenced, quarantined, epochs)
        });
        self.machine.quarantine(now, &quarantined);
        self.machine.miss(now, &fenced);
        self.machine.follow(now, &epochs);
        self.last.retain(|worker, _| epochs.contains_key(worker));
    }

    fn propose(&mut self, commands: Vec<Command>, context: &mut Context<Self>) {
        self.proposing = true;
        let controller = self.controller.clone();
        let proposals = async move {
            for command in commands {
                match &command {
                    Command::FenceWorker { worker, epoch } => {
                        warn!(%worker, %epoch, "lost a worker");
                    }
                    Command::UnfenceWorker { worker, epoch } => {
                        info!(%worker, %epoch, "a worker is ready for work");
                    }
                    Command::QuarantineWorker {
                        worker,
                        quarantined: true,
                    } => {
                        warn!(%worker, "its sessions end too often: it is given nothing new for a while");
                    }
                    other => info!(command = ?other, "proposing"),
                }
                // A rejection says that the facts have moved on; what is to be done now is seen then.
                if let Err(error) = controller.propose(command).await {
                    info!(%error, "not done");
                }
            }
        };
        context.spawn(proposals.into_actor(self).map(|(), actor, context| {
            actor.proposing = false;
            actor.follow();
            actor.look(context);
        }));
    }

    /// Asks a silent worker whether it is there. Only a refused connection is an answer.
    fn probe(&self, worker: NodeId, epoch: WorkerEpoch, context: &mut Context<Self>) {
        let address = self
            .controller
            .view()
            .read(|metadata| metadata.worker(worker).map(|row| row.address.clone()));
        let Some(address) = address else {
            return;
        };
        let transport = self.transport.clone();
        let probe = async move {
            let request = Forward {
                method: "GET".to_owned(),
                target: "/health/live".to_owned(),
                headers: Vec::new(),
                body: Bytes::new(),
            };
            let answer = transport.forward(&address, request, PROBE_DEADLINE).await;
            matches!(answer, Err(CallError::Unreachable { refused: true, .. }))
        };
        context.spawn(probe.into_actor(self).map(move |refused, actor, context| {
            if refused {
                actor.machine.refused(worker, epoch);
                actor.look(context);
            }
        }));
    }
}

impl Actor for LivenessActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX);
        self.follow();
        context.run_interval(LOOK_EVERY.as_duration(), LivenessActor::look);
        context.add_stream(versions(self.controller.view().changes()));
    }
}

/// One item for every time the facts have changed.
fn versions(
    changes: watch::Receiver<MetadataVersion>,
) -> impl futures_util::Stream<Item = MetadataVersion> {
    stream::unfold(changes, |mut changes| async move {
        changes.changed().await.ok()?;
        let version = *changes.borrow_and_update();
        Some((version, changes))
    })
}

impl StreamHandler<MetadataVersion> for LivenessActor {
    fn handle(&mut self, _: MetadataVersion, _: &mut Self::Context) {
        self.follow();
    }

    fn finished(&mut self, _: &mut Self::Context) {
        // The log has ended, and with it this reign; who is alive is no longer decided here.
    }
}

impl Handler<Heard> for LivenessActor {
    type Result = Result<HeartbeatReply, Problem>;

    fn handle(&mut self, message: Heard, context: &mut Self::Context) -> Self::Result {
        let heartbeat = Arc::new(message.0);
        let now = self.clock.tick();
        let (worker, epoch) = (heartbeat.worker, heartbeat.epoch);
        let reply = self.controller.view().read(|metadata| {
            if metadata.cluster() != Some(heartbeat.cluster) {
                let detail = "the worker belongs to another cluster";
                return Err(Problem::new(ErrorCode::WrongCluster, detail));
            }
            let living = metadata
                .worker(worker)
                .is_some_and(|row| row.epoch == epoch && row.status != WorkerStatus::Fenced);
            if !living {
                let detail = format!("epoch {epoch} of worker {worker} has ended");
                return Err(
                    Problem::new(ErrorCode::FencedWorkerEpoch, detail).hint("Register again.")
                );
            }
            Ok(HeartbeatReply {
                control_epoch: metadata.control_epoch(),
                metadata_version: metadata.version(),
            })
        })?;
        // The registration may be a fact before this actor has been told.
        self.follow();
        let fresh = self
            .machine
            .heard(now, worker, epoch, heartbeat.sequence, heartbeat.ready);
        if fresh {
            let was_ready = self.last.insert(worker, (now, Arc::clone(&heartbeat)));
            if heartbeat.ready && was_ready.is_none_or(|(_, last)| !last.ready) {
                self.look(context);
            }
            // Nobody may be listening.
            self.heartbeats.send(heartbeat).ok();
        }
        Ok(reply)
    }
}

impl Handler<Suspect> for LivenessActor {
    type Result = ();

    fn handle(&mut self, Suspect(worker): Suspect, context: &mut Self::Context) {
        self.machine.suspect(worker);
        self.look(context);
        // Its process may not have let go of where it listened yet.
        context.run_later(PROBE_SUSPECTS_EVERY.as_duration(), LivenessActor::look);
    }
}

impl Handler<Describe> for LivenessActor {
    type Result = MessageResult<Describe>;

    fn handle(&mut self, _: Describe, _: &mut Self::Context) -> Self::Result {
        let now = self.clock.tick();
        let described = self.last.iter().map(|(worker, (at, heartbeat))| {
            let last = LastHeard {
                epoch: heartbeat.epoch,
                ago: now.since(*at),
                load: heartbeat.load,
            };
            (*worker, last)
        });
        MessageResult(Described {
            heard: described.collect(),
            quarantined: self.machine.quarantined(now),
        })
    }
}
