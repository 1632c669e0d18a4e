//! Takes rows and forgets them.

use common::ids::CheckpointId;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, ready};

use super::{Committable, Sink, SinkError};
use crate::task::message::Rows;

/// The task counts the rows; there is nothing else to do with them.
#[derive(Debug)]
pub struct Blackhole;

impl Sink for Blackhole {
    fn write(&mut self, _: Rows) -> LocalBoxFuture<'_, Result<(), SinkError>> {
        ready(Ok(())).boxed_local()
    }

    fn flush(&mut self) -> LocalBoxFuture<'_, Result<(), SinkError>> {
        ready(Ok(())).boxed_local()
    }

    fn prepare(
        &mut self,
        _: CheckpointId,
    ) -> LocalBoxFuture<'_, Result<Option<Committable>, SinkError>> {
        ready(Ok(None)).boxed_local()
    }

    fn commit(
        &mut self,
        _: CheckpointId,
        _: Vec<Committable>,
    ) -> LocalBoxFuture<'_, Result<(), SinkError>> {
        ready(Ok(())).boxed_local()
    }
}
