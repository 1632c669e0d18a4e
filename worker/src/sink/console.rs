//! Prints rows on the worker's standard output, one JSON object per line. At least once.
//!
//! A change that is no insert is printed with `before`, `after` and `op`, as Debezium writes it.

use std::io::Write;

use common::error::Problem;
use common::ids::CheckpointId;
use common::plan::task_graph::PlannedSink;
use futures_util::future::{FutureExt, LocalBoxFuture, ready};

use super::{Committable, Sink, SinkError, json_or_changes};
use crate::format::{EncodedRecords, Encoder};
use crate::task::message::Rows;

#[derive(Debug)]
pub(super) struct ConsoleSink {
    encoder: Encoder,
    records: EncodedRecords,
}

impl ConsoleSink {
    pub(super) fn open(planned: &PlannedSink) -> Result<ConsoleSink, Problem> {
        Ok(ConsoleSink {
            encoder: Encoder::new(json_or_changes(&planned.mode), &planned.columns, &[])?,
            records: EncodedRecords::default(),
        })
    }

    async fn print(&mut self, rows: Rows) -> Result<(), SinkError> {
        self.records.clear();
        self.encoder.encode(&rows, &mut self.records)?;
        let mut lines = Vec::with_capacity(self.records.bytes() + self.records.len());
        for value in self.records.iter().filter_map(|record| record.value) {
            lines.extend_from_slice(value);
            lines.push(b'\n');
        }
        // A terminal or a pipe may be slow: not on the thread that others share.
        let printed = tokio::task::spawn_blocking(move || {
            let mut out = std::io::stdout().lock();
            out.write_all(&lines)?;
            out.flush()
        });
        match printed.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(SinkError::Broken(format!("standard output: {error}"))),
            Err(error) => Err(SinkError::Broken(format!("printing was lost: {error}"))),
        }
    }
}

impl Sink for ConsoleSink {
    fn write(&mut self, rows: Rows) -> LocalBoxFuture<'_, Result<(), SinkError>> {
        self.print(rows).boxed_local()
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
