//! What of a rebalancing is under way, and why nothing is.

use serde::Serialize;
use utoipa::ToSchema;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub state: State,
    /// Why nothing, or no more, moves now; empty if there is nothing to say.
    pub reason: String,
    pub moves: Vec<UnderWay>,
    /// How many have begun since this coordinator leads.
    pub begun: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing moves without being asked.
    Manual,
    Moving,
    Waiting,
    /// Nothing would be more even after a move.
    Balanced,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum UnderWay {
    /// Workers whose replica of a partition goes, and who gets one.
    Replica {
        topic: String,
        partition: u32,
        from: Vec<u32>,
        to: Vec<u32>,
    },
    /// So many tasks of a job, and where they go.
    Tasks {
        job: String,
        tasks: usize,
        to: Vec<u32>,
    },
    /// Of so many tasks of a job those who stand by are replaced, and who is to stand by.
    Standbys {
        job: String,
        tasks: usize,
        to: Vec<u32>,
    },
}

impl Status {
    pub fn manual() -> Status {
        Status {
            state: State::Manual,
            reason: "this coordinator was started with --rebalance manual".to_owned(),
            moves: Vec::new(),
            begun: 0,
        }
    }
}
