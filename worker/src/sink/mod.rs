//! The Sink trait: where rows go, and the rule that makes writing exactly-once.
//!
//! Rows before a barrier belong to its checkpoint. `prepare` makes them durable but not yet visible;
//! `commit`, after the checkpoint is completed, makes them visible and may be repeated. What `prepare`
//! returns is kept in the checkpoint, so that `commit` can be done again after any crash. Sinks that
//! cannot hide rows say that they deliver at least once.

pub mod transactions;
pub mod write_queue;
pub mod transactional_writer;
pub mod dead_letters;
mod topic;
mod files;
mod webhook;
mod console;
mod blackhole;

#[cfg(test)]
mod sink_tests;

use std::sync::Arc;

use common::error::{ErrorCode, Problem};
use common::ids::{CheckpointId, Generation, JobId, JobName};
use common::plan::connector::{Format, SinkSpec};
use common::plan::edge::ChangelogMode;
use common::plan::task_graph::PlannedSink;
use common::time::Clock;
use common::transport::client::Transport;
use futures_util::future::LocalBoxFuture;

use crate::log_client::LogClient;
use crate::task::message::Rows;
use transactional_writer::TransactionalWriter;
use transactions::Writer;

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

    /// The job ends with what was just committed: waits, but not for ever, until others see it.
    fn shown(&mut self) -> LocalBoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
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

impl From<Problem> for SinkError {
    /// Opening or writing failed: what may pass, or is our own mistake, is worth another generation.
    fn from(problem: Problem) -> SinkError {
        if problem.code.is_retriable() || problem.code == ErrorCode::Internal {
            SinkError::Broken(problem.to_string())
        } else {
            SinkError::Fatal(problem.to_string())
        }
    }
}

/// What a sink is opened with.
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
    /// The checkpoint the task starts from.
    pub restored: Option<CheckpointId>,
    pub log: LogClient,
    pub transport: Transport,
    pub clock: Arc<dyn Clock>,
}

/// Opens a task's sink.
pub async fn open(planned: &PlannedSink, context: SinkContext) -> Result<Box<dyn Sink>, Problem> {
    Ok(match &planned.spec {
        SinkSpec::Topic(spec) => Box::new(topic::TopicSink::open(spec, planned, &context).await?),
        SinkSpec::Files(spec) => Box::new(files::FileSink::open(spec, planned, &context).await?),
        SinkSpec::Webhook(spec) => Box::new(webhook::WebhookSink::open(spec, planned, &context)?),
        SinkSpec::Console(_) => Box::new(console::ConsoleSink::open(planned)?),
        SinkSpec::Blackhole(_) => Box::new(blackhole::BlackholeSink::default()),
    })
}

impl SinkContext {
    fn exactly_once_writer(&self) -> TransactionalWriter {
        let writer = Writer {
            job: self.job,
            generation: self.generation,
            task: self.ordinal,
        };
        TransactionalWriter::exactly_once(
            self.log.clone(),
            self.clock.clone(),
            writer,
            self.restored,
        )
    }
}

/// How rows are written for people and endpoints: plainly if none ever changes.
fn json_or_changes(mode: &ChangelogMode) -> Format {
    match mode {
        ChangelogMode::Append => Format::Json,
        ChangelogMode::Upsert { .. } | ChangelogMode::Retract { .. } => Format::DebeziumJson,
    }
}
