//! What a user may ask of a job in which state.

use common::protocol::job::JobState;

use crate::metadata::jobs::Desired;

/// What a wish of the user means to a job in this state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wish {
    Granted,
    /// Things are as wished already.
    Fulfilled,
    /// The job's life is over.
    Refused,
}

pub fn wish(state: JobState, desired: Desired) -> Wish {
    use JobState::*;
    match (state, desired) {
        (Finished | Cancelled, Desired::Running | Desired::Paused) => Wish::Refused,
        (Stopped | Failed, Desired::Paused) => Wish::Refused,
        (
            Stopped | Failed | Finished | Cancelled,
            Desired::Stopped | Desired::Drained | Desired::Cancelled,
        ) => Wish::Fulfilled,
        (Stopped | Failed, Desired::Running) => Wish::Granted,
        (Created | Waiting | Deploying | Running | Recovering | Paused, _) => Wish::Granted,
    }
}
