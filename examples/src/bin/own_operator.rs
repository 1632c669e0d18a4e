//! A worker with an operator of its own: it hides all but the last four characters of a column.
//!
//! Start it in place of a `worker`, with the same options. A job names the operator in its graph; the coordinator
//! knows of it from the worker and gives such tasks only to workers that have it:
//!
//! ```json
//! {"id": "masked", "type": "custom", "name": "mask", "inputs": ["people"],
//!  "config": {"column": "credit_card"}, "schema": [{"name": "credit_card", "type": "VARCHAR"}]}
//! ```

use std::sync::Arc;

use anyhow::{Context as _, Result};
use arrow::array::{AsArray, RecordBatch, StringArray};
use common::config::worker::WorkerConfig;
use common::error::{ErrorCode, Problem};
use common::schema::{Column, to_arrow_schema};
use common::shutdown::{Signals, stop_within};
use common::time::SystemClock;
use worker::node::Node;
use worker::operator::custom::CustomOperators;
use worker::operator::{Operator, OperatorError};
use worker::task::context::Context;
use worker::task::message::Rows;

/// One instance, in one task. What an operator has to remember it keeps in the tables of its context, which
/// are part of every checkpoint; this one remembers nothing.
#[derive(Debug)]
struct Mask {
    column: usize,
    columns: Vec<Column>,
}

impl Operator for Mask {
    fn process(
        &mut self,
        _input: u16,
        rows: Rows,
        context: &mut Context<'_>,
    ) -> Result<(), OperatorError> {
        let mut arrays = rows.batch.columns().to_vec();
        let texts = arrays[self.column].as_string::<i32>();
        let masked: StringArray = texts.iter().map(|text| text.map(mask)).collect();
        arrays[self.column] = Arc::new(masked);
        let batch = RecordBatch::try_new(to_arrow_schema(&self.columns), arrays);
        // The same rows would do the same again.
        let batch = batch.map_err(|error| OperatorError {
            reason: error.to_string(),
            fatal: true,
        })?;
        context.emit(rows.with_batch(batch));
        Ok(())
    }
}

fn mask(text: &str) -> String {
    let hidden = text.chars().count().saturating_sub(4);
    let shown = text.chars().skip(hidden);
    std::iter::repeat_n('*', hidden).chain(shown).collect()
}

fn operators() -> CustomOperators {
    CustomOperators::default().with("mask", |custom, planned| {
        let columns = planned.inputs.concat();
        let name = custom.config["column"].as_str().unwrap_or_default();
        let found = columns.iter().position(|column| column.name == name);
        let column = found.ok_or_else(|| {
            let detail = format!("\"mask\" finds no column \"{name}\"");
            Problem::new(ErrorCode::InvalidGraph, detail).hint("Name it in \"config\".")
        })?;
        Ok(Box::new(Mask { column, columns }))
    })
}

fn main() -> Result<()> {
    let environment = |name: &str| std::env::var(name).ok();
    let config = match WorkerConfig::load(std::env::args_os(), environment) {
        Ok(config) => config,
        Err(error) => std::process::exit(i32::from(error.report())),
    };
    common::telemetry::start(&config.log, config.log_format).context("cannot log")?;
    let mut signals = Signals::new().context("cannot listen for signals")?;
    let patience = config.shutdown_timeout;
    let node = Node::start_with(config, SystemClock::shared(), operators())?;
    println!("worker ready at {}", node.address());
    signals.wait();
    stop_within(patience, || node.stop())?;
    Ok(())
}
