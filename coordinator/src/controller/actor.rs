//! The only proposer: request → decision on the facts → command → log → answer.

use std::sync::Arc;

use actix::{Actor, Addr, Context, Handler, ResponseFuture};
use uuid::Uuid;

use common::error::{ErrorCode, Problem};
use common::ids::{ControlEpoch, TopicId, TopicName};
use common::limits::HEARTBEAT_INTERVAL;
use common::protocol::node::{RegisterWorker, Registered};
use common::protocol::topic::CreateTopic;
use common::time::{Clock, Span};

use super::messages::{Alter, Create, Delete, Propose, Reassign, Register};
use super::seen::Seen;
use super::topics::{self, AlterTopic, ReassignTopic};
use crate::metadata::ClusterMetadata;
use crate::metadata::command::{Command, Entry, Outcome, Registration};
use crate::metadata_log::{Committed, MetadataLog, MetadataView, ProposeError};
use crate::reign;

/// Requests that wait for the controller; more wait with their senders.
const MAILBOX: usize = 1_024;
/// How long a change waits for workers to hear of it before it is answered.
const PATIENCE: Span = Span::from_secs(2);

/// A handle on the controller; usable from any thread.
#[derive(Clone, Debug)]
pub struct Controller {
    actor: Addr<ControllerActor>,
    view: MetadataView,
}

impl Controller {
    /// Starts the actor on this arbiter.
    pub fn start(actor: ControllerActor) -> Controller {
        let view = actor.proposer.log.view().clone();
        Controller {
            actor: actor.start(),
            view,
        }
    }

    /// The facts.
    pub fn view(&self) -> &MetadataView {
        &self.view
    }

    /// Returns once the command is a fact.
    pub async fn propose(&self, command: Command) -> Result<Committed, ProposeError> {
        let answer = self.actor.send(Propose(command)).await;
        answer.unwrap_or_else(|_| Err(ProposeError::NotAccepted(reign::ended())))
    }

    pub async fn register(&self, request: RegisterWorker) -> Result<Registered, Problem> {
        let answer = self.actor.send(Register(request)).await;
        answer.unwrap_or_else(|_| Err(reign::ended()))
    }

    /// Returns once every active worker has heard of the topic, or has had its time to.
    pub async fn create_topic(&self, request: CreateTopic) -> Result<(), Problem> {
        let answer = self.actor.send(Create(request)).await;
        answer.unwrap_or_else(|_| Err(reign::ended()))
    }

    pub async fn alter_topic(&self, topic: TopicName, change: AlterTopic) -> Result<(), Problem> {
        let answer = self.actor.send(Alter { topic, change }).await;
        answer.unwrap_or_else(|_| Err(reign::ended()))
    }

    pub async fn reassign_topic(
        &self,
        topic: TopicName,
        request: ReassignTopic,
    ) -> Result<(), Problem> {
        let answer = self.actor.send(Reassign { topic, request }).await;
        answer.unwrap_or_else(|_| Err(reign::ended()))
    }

    pub async fn delete_topic(&self, topic: TopicName) -> Result<(), Problem> {
        let answer = self.actor.send(Delete(topic)).await;
        answer.unwrap_or_else(|_| Err(reign::ended()))
    }
}

#[derive(Debug)]
pub struct ControllerActor {
    proposer: Proposer,
    seen: Seen,
    session_timeout: Span,
}

/// Proposes commands of this reign.
#[derive(Clone, Debug)]
struct Proposer {
    log: MetadataLog,
    control_epoch: ControlEpoch,
    clock: Arc<dyn Clock>,
}

impl ControllerActor {
    pub fn new(
        log: MetadataLog,
        control_epoch: ControlEpoch,
        clock: Arc<dyn Clock>,
        seen: Seen,
        session_timeout: Span,
    ) -> ControllerActor {
        ControllerActor {
            proposer: Proposer {
                log,
                control_epoch,
                clock,
            },
            seen,
            session_timeout,
        }
    }

    /// Makes the change that `decide` finds the facts to allow, and waits until workers know.
    fn change(
        &self,
        decide: impl FnOnce(&ClusterMetadata) -> Result<Command, Problem> + 'static,
    ) -> ResponseFuture<Result<(), Problem>> {
        let proposer = self.proposer.clone();
        let seen = self.seen.clone();
        Box::pin(async move {
            let view = proposer.log.view().clone();
            let command = view.read(decide)?;
            let committed = proposer.propose(command).await?;
            seen.everywhere(&view, committed.index, PATIENCE).await;
            Ok(())
        })
    }
}

impl Proposer {
    async fn propose(&self, command: Command) -> Result<Committed, ProposeError> {
        self.log
            .propose(Entry {
                control_epoch: self.control_epoch,
                at: self.clock.wall(),
                command,
            })
            .await
    }
}

impl Actor for ControllerActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<Propose> for ControllerActor {
    type Result = ResponseFuture<Result<Committed, ProposeError>>;

    fn handle(&mut self, message: Propose, _: &mut Self::Context) -> Self::Result {
        let proposer = self.proposer.clone();
        Box::pin(async move { proposer.propose(message.0).await })
    }
}

impl Handler<Register> for ControllerActor {
    type Result = ResponseFuture<Result<Registered, Problem>>;

    fn handle(&mut self, message: Register, _: &mut Self::Context) -> Self::Result {
        let proposer = self.proposer.clone();
        let session_timeout = self.session_timeout;
        Box::pin(async move {
            let command = Command::RegisterWorker(registration(message.0));
            let committed = proposer.propose(command).await?;
            let cluster = proposer.log.view().read(|metadata| metadata.cluster());
            match (committed.outcome, cluster) {
                (Outcome::Registered { worker, epoch }, Some(cluster)) => Ok(Registered {
                    cluster,
                    worker,
                    epoch,
                    control_epoch: proposer.control_epoch,
                    heartbeat_interval: HEARTBEAT_INTERVAL,
                    session_timeout,
                }),
                (other, _) => Err(Problem::new(
                    ErrorCode::Internal,
                    format!("a registration had the outcome {other:?}"),
                )),
            }
        })
    }
}

impl Handler<Create> for ControllerActor {
    type Result = ResponseFuture<Result<(), Problem>>;

    fn handle(&mut self, message: Create, _: &mut Self::Context) -> Self::Result {
        let id = TopicId(Uuid::new_v4());
        self.change(move |metadata| topics::create(metadata, id, &message.0))
    }
}

impl Handler<Alter> for ControllerActor {
    type Result = ResponseFuture<Result<(), Problem>>;

    fn handle(&mut self, message: Alter, _: &mut Self::Context) -> Self::Result {
        self.change(move |metadata| topics::alter(metadata, &message.topic, &message.change))
    }
}

impl Handler<Reassign> for ControllerActor {
    type Result = ResponseFuture<Result<(), Problem>>;

    fn handle(&mut self, message: Reassign, _: &mut Self::Context) -> Self::Result {
        self.change(move |metadata| topics::reassign(metadata, &message.topic, &message.request))
    }
}

impl Handler<Delete> for ControllerActor {
    type Result = ResponseFuture<Result<(), Problem>>;

    fn handle(&mut self, message: Delete, _: &mut Self::Context) -> Self::Result {
        self.change(move |metadata| topics::delete(metadata, &message.0))
    }
}

fn registration(request: RegisterWorker) -> Registration {
    Registration {
        cluster: request.cluster,
        worker: request.worker,
        storage: request.storage,
        incarnation: request.incarnation,
        address: request.address,
        version: request.version,
        cores: request.cores,
        slots: request.slots,
        memory_bytes: request.memory_bytes,
        operators: request.operators,
        rack: request.rack,
        clean: request.clean_shutdown,
    }
}
