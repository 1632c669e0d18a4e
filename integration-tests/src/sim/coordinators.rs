//! Which of the coordinators somebody asks: any of them takes any request, and the next one is asked when one does not
//! answer or knows of nobody who leads.

use common::error::ErrorCode;

use super::network::{CallFailed, Process, Reply};

#[derive(Clone, Copy, Debug)]
pub struct Coordinators {
    all: usize,
    current: usize,
}

impl Coordinators {
    pub fn new(all: usize) -> Coordinators {
        Coordinators { all, current: 0 }
    }

    pub fn current(&self) -> Process {
        Process::Coordinator(self.current)
    }

    /// Goes on to the next one if this is no answer of one that leads; says whether it is another one.
    pub fn pass_over(&mut self, answer: &Result<Reply, CallFailed>) -> bool {
        let is_answer = match answer {
            Ok(_) => true,
            Err(CallFailed::Problem(problem)) => problem.code != ErrorCode::CoordinatorUnavailable,
            Err(CallFailed::Refused | CallFailed::Broken | CallFailed::Timeout) => false,
        };
        if !is_answer {
            self.current = (self.current + 1) % self.all;
        }
        !is_answer && self.all > 1
    }
}
