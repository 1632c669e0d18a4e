//! The Sink trait: where rows go, and the rule that makes writing exactly-once.
//!
//! Rows before a barrier belong to its checkpoint. `prepare` makes them durable but not yet visible;
//! `commit`, after the checkpoint is completed, makes them visible and may be repeated. What `prepare`
//! returns is kept in the checkpoint, so that `commit` can be done again after any crash. Sinks that
//! cannot hide rows say that they deliver at least once.

pub mod blackhole;
pub mod dead_letters;

use std::sync::Arc;

use common::error::{ErrorCode, Problem};
use common::ids::{CheckpointId, Generation, JobId, JobName};
use common::plan::connector::SinkSpec;
use common::plan::task_graph::PlannedSink;
use common::time::Clock;
use common::transport::client::Transport;
use futures_util::future::LocalBoxFuture;

use crate::log_client::LogClient;

use crate::task::message::Rows;

/// One task's writer.
pub trait Sink: std::fmt::Debug {
    /// Takes rows. Waits while too much is on its way.
    fn write(&mut self, rows: Rows) -> LocalBoxFuture<'_, Result<(), SinkError>>;

    /// Called when nothing came for a moment: what is held back to fill a batch should go now.
    fn flush(&mut self) -> LocalBoxFuture<'_, Result<(), SinkError>>;

    /// Makes everything written so far durable. Returns what a later `commit` needs, after a crash too.
    fn prepare(
        &mut self,
        checkpoint: CheckpointId,
    ) -> LocalBoxFuture<'_, Result<Option<Committable>, SinkError>>;

    /// The checkpoint is completed: makes visible what was prepared up to it. Idempotent. After a
    /// restore it is called once with what the restored checkpoint holds, before any `write`.
    fn commit(
        &mut self,
        checkpoint: CheckpointId,
        prepared: Vec<Committable>,
    ) -> LocalBoxFuture<'_, Result<(), SinkError>>;
}

/// What a sink needs to make a checkpoint's rows visible, in its own encoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committable(pub Vec<u8>);

/// Why a sink cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// A person must decide: the same would happen again.
    #[error("{0}")]
    Fatal(String),
    /// The job starts again from its last checkpoint.
    #[error("{0}")]
    Broken(String),
}

/// What a task's sink and its dead letters are opened with.
#[derive(Clone, Debug)]
pub struct SinkContext {
    pub job: JobId,
    pub job_name: JobName,
    pub generation: Generation,
    /// The task's number in its job, which its transactions are labelled with.
    pub ordinal: u16,
    /// Which task of its stage this is, of how many.
    pub task_index: u32,
    pub parallelism: u32,
    /// The checkpoint the task starts from: the last one sealed before its first transaction.
    pub restored: Option<CheckpointId>,
    pub log: LogClient,
    pub transport: Transport,
    pub clock: Arc<dyn Clock>,
}

/// Opens a task's sink.
pub async fn open(planned: &PlannedSink, context: SinkContext) -> Result<Box<dyn Sink>, Problem> {
    match &planned.spec {
        SinkSpec::Blackhole(_) => Ok(Box::new(blackhole::Blackhole)),
        SinkSpec::Topic(_) | SinkSpec::Files(_) | SinkSpec::Webhook(_) | SinkSpec::Console(_) => {
            let detail = format!("job {} has a sink this worker lacks", context.job_name);
            Err(Problem::new(ErrorCode::UnsupportedFeature, detail))
        }
    }
}

impl From<Problem> for SinkError {
    fn from(problem: Problem) -> SinkError {
        match problem.code.is_retriable() {
            true => SinkError::Broken(problem.to_string()),
            false => SinkError::Fatal(problem.to_string()),
        }
    }
}
