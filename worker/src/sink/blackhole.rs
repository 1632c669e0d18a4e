//! Forgets every row: for measuring everything before it.

use common::ids::CheckpointId;
use futures_util::future::{FutureExt, LocalBoxFuture, ready};

use super::{Committable, Sink, SinkError};
use crate::task::message::Rows;

#[derive(Debug, Default)]
pub(super) struct BlackholeSink {}

impl Sink for BlackholeSink {
    fn write(&mut self, _rows: Rows) -> LocalBoxFuture<'_, Result<(), SinkError>> {
        ready(Ok(())).boxed_local()
    }

    fn flush(&mut self) -> LocalBoxFuture<'_, Result<(), SinkError>> {
        ready(Ok(())).boxed_local()
    }

    fn prepare(
        &mut self,
        _checkpoint: CheckpointId,
    ) -> LocalBoxFuture<'_, Result<Option<Committable>, SinkError>> {
        ready(Ok(None)).boxed_local()
    }

    fn commit(
        &mut self,
        _checkpoint: CheckpointId,
        _prepared: Vec<Committable>,
    ) -> LocalBoxFuture<'_, Result<(), SinkError>> {
        ready(Ok(())).boxed_local()
    }
}
