//! What a generation of a job leaves to the next one on the same worker: its open store, and its tables, which
//! only have to be taken back to the checkpoint that the next one begins with.

use std::sync::Arc;

use common::ids::Generation;
use common::protocol::metadata::JobImage;
use common::protocol::task::Deployment;

use super::assembly::Left;
use crate::checkpoint::state_store::JobStateStore;

#[derive(Debug)]
pub struct Handover {
    /// The one that is over.
    pub generation: Generation,
    pub store: Arc<JobStateStore>,
    /// Of the tasks that were well when they stopped, and of those that were stood by for.
    pub tasks: Left,
}

impl Handover {
    /// What the next generation may use of it. Tables are only good for it if it begins where this one ended:
    /// a generation between them, which ran elsewhere, may have got further.
    pub fn for_next(mut self, deployment: &Deployment, facts: Option<&JobImage>) -> Handover {
        let ended_at = facts.and_then(|facts| facts.finals.get(&self.generation));
        if ended_at != Some(&deployment.restore) {
            self.tasks.clear();
        }
        self
    }
}
