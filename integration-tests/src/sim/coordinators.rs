//! Which of the coordinators somebody asks, as workers choose it, and what each call to one came to.

use std::collections::BTreeMap;

use worker::link::choice::{Choice, Heard};

use super::network::{CallFailed, CallId, Process, Reply};

#[derive(Debug)]
pub struct Coordinators {
    choice: Choice<Process>,
    /// Calls without an answer, and who was asked.
    asked: BTreeMap<CallId, Process>,
}

impl Coordinators {
    pub fn new(all: usize) -> Coordinators {
        Coordinators {
            choice: Choice::new((0..all).map(Process::Coordinator).collect()),
            asked: BTreeMap::new(),
        }
    }

    pub fn current(&self) -> Process {
        *self.choice.current()
    }

    pub fn asks(&mut self, call: CallId, callee: Process) {
        if matches!(callee, Process::Coordinator(_)) {
            self.asked.insert(call, callee);
        }
    }

    /// Whether another one is to be asked from now on.
    pub fn hear(&mut self, call: CallId, answer: &Result<Reply, CallFailed>) -> bool {
        let heard = match answer {
            Ok(_) => Heard::Answer,
            Err(CallFailed::Problem(problem)) => Heard::of(problem.code),
            Err(CallFailed::Refused | CallFailed::Broken | CallFailed::Timeout) => Heard::Nothing,
        };
        let Some(asked) = self.asked.remove(&call) else {
            return false;
        };
        let before = self.current();
        self.choice.hear(&asked, heard);
        self.current() != before
    }

    /// There was no answer for some time. Says whether another one is to be asked.
    pub fn doubt(&mut self, call: CallId) -> bool {
        let Some(asked) = self.asked.get(&call) else {
            return false;
        };
        let before = self.current();
        self.choice.doubt(asked);
        self.current() != before
    }

    /// Nobody waits for these calls' answers any more. Says whether somebody did.
    pub fn give_up<P>(
        &mut self,
        calls: &mut BTreeMap<CallId, P>,
        which: impl Fn(&P) -> bool,
    ) -> bool {
        let given_up = calls.extract_if(.., |_, purpose| which(purpose));
        let given_up = given_up.map(|(call, _)| self.asked.remove(&call));
        given_up.count() > 0
    }
}
