//! Reads the state of a job of which nothing runs, from this worker's disk.

use std::collections::BTreeSet;

use common::error::{ErrorCode, Problem};
use common::protocol::state::{QueryStateAtRest, StateEntries};

use super::assembly::{self, Left};
use super::services::Services;
use crate::checkpoint::state_error::StateError;
use crate::checkpoint::state_store::{JobStateStore, RestoredTask};
use crate::task::query::{Reading, Step};

/// Answers what a task would have answered at its last completed checkpoint. Blocks.
pub(super) fn read(services: &Services, call: QueryStateAtRest) -> Result<StateEntries, Problem> {
    let QueryStateAtRest { deployment, query } = call;
    let (job, task) = (deployment.job, query.task);
    let custom = &services.custom;
    let tasks = BTreeSet::from([task]);
    let graph = &deployment.graph;
    let share = assembly::share_of_each(graph, &tasks, custom, &services.state_memory);
    let options = assembly::store_options(graph, share, services.memory.view_cache_bytes);
    let facts = services.image.borrow().jobs.get(&job).cloned();
    let history = |generation, checkpoint| facts.as_ref()?.counts(generation, checkpoint);
    let directory = services.jobs_directory.join(job.to_string());
    let restored = JobStateStore::open(&directory, options).and_then(|store| {
        let mut restored = assembly::restore(
            &store,
            &deployment,
            &tasks,
            &mut Left::new(),
            custom,
            &history,
        )?;
        // The store stays open until everything is read.
        Ok((store, restored.remove(&task).unwrap_or_default()))
    });
    let (_store, RestoredTask { tables, reader }) = restored.map_err(cannot_be_read)?;
    let assembled = assembly::assemble(&deployment, task, tables, Vec::new(), custom, share)?;
    let mut reading = Reading::begin(query, &assembled.chain, None)?;
    let mut answer = None;
    loop {
        let question = match reading.step(&assembled.chain, answer.take())? {
            Step::Done(entries) => return Ok(entries),
            Step::Ask(question) => question,
        };
        let reader = reader.as_ref().expect("what is not in memory is in a view");
        let answered = reader.answer(&question.table, question.ask);
        answer = Some(answered.map_err(|error| cannot_be_read(StateError::Reading(error)))?);
    }
}

fn cannot_be_read(error: StateError) -> Problem {
    if error.is_fatal() {
        // As when a checkpoint cannot be written: this process can vouch for nothing on its disk.
        tracing::error!(%error, "the state of a job at rest cannot be read; the worker ends");
        std::process::abort();
    }
    let code = match error.is_loss() {
        true => ErrorCode::UnknownCheckpoint,
        false => ErrorCode::Internal,
    };
    Problem::new(code, format!("the state cannot be read: {error}"))
}
