//! The Sink trait: where rows go, and the rule that makes writing exactly-once.
//!
//! Rows before a barrier belong to its checkpoint. `prepare` makes them durable but not yet visible;
//! `commit`, after the checkpoint is completed, makes them visible and may be repeated. What `prepare`
//! returns is kept in the checkpoint, so that `commit` can be done again after any crash. Sinks that
//! cannot hide rows say that they deliver at least once.

use common::ids::CheckpointId;
use futures_util::future::LocalBoxFuture;

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
