//! Rows that grow record by record: all columns of a row, or none of it.

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use common::schema::{Column, to_arrow_schema};

use super::BadRecord;
use super::columns::ColumnBuilder;
use super::value::Misfit;

/// A batch under construction.
#[derive(Debug)]
pub(crate) struct RowBuilder {
    schema: SchemaRef,
    columns: Vec<ColumnBuilder>,
    rows: usize,
}

impl RowBuilder {
    pub(crate) fn new(columns: &[Column]) -> RowBuilder {
        RowBuilder {
            schema: to_arrow_schema(columns),
            columns: columns.iter().map(ColumnBuilder::new).collect(),
            rows: 0,
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Appends one row: `fill` appends one value to each column, or fails and leaves nothing.
    #[inline]
    pub(crate) fn push_row(
        &mut self,
        fill: impl FnOnce(&mut [ColumnBuilder]) -> Result<(), Misfit>,
    ) -> Result<(), BadRecord> {
        match fill(&mut self.columns) {
            Ok(()) => {
                self.rows += 1;
                Ok(())
            }
            Err(Misfit(detail)) => {
                self.truncate(self.rows);
                Err(BadRecord::new(detail))
            }
        }
    }

    /// Takes back everything after the first `rows` rows.
    pub(crate) fn truncate(&mut self, rows: usize) {
        for column in &mut self.columns {
            column.truncate(rows);
        }
        self.rows = rows;
    }

    /// The rows so far; empty afterwards.
    pub(crate) fn finish(&mut self) -> RecordBatch {
        let arrays: Vec<ArrayRef> = self.columns.iter_mut().map(ColumnBuilder::finish).collect();
        let rows = std::mem::take(&mut self.rows);
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        match RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options) {
            Ok(batch) => batch,
            Err(error) => unreachable!("rows were built column by column: {error}"),
        }
    }
}
