//! Where the coordinators are, and which one is asked.
//!
//! Any of them takes any request, so one that answers is enough; the one that leads saves a step. Those that
//! the worker was started with are kept for good, and those that it hears of are tried as well.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::error::ErrorCode;
use common::protocol::Call;
use common::time::Span;
use common::transport::client::{CallError, Transport};
use tokio::sync::watch;
use tracing::debug;

/// A handle that all of the worker shares.
#[derive(Clone, Debug)]
pub struct Coordinators {
    known: Arc<Mutex<Known>>,
    current: watch::Sender<String>,
}

#[derive(Debug)]
struct Known {
    configured: Vec<String>,
    /// As the leader told them.
    learned: Vec<String>,
}

impl Coordinators {
    /// `configured`: at least one.
    pub fn new(configured: Vec<String>) -> Coordinators {
        let current = configured.first().cloned();
        let current = current.expect("the configuration names a coordinator");
        Coordinators {
            known: Arc::new(Mutex::new(Known {
                configured,
                learned: Vec::new(),
            })),
            current: watch::Sender::new(current),
        }
    }

    /// How many there are to try.
    pub fn count(&self) -> usize {
        self.known().all().len()
    }

    /// The one to ask.
    pub fn current(&self) -> String {
        self.current.borrow().clone()
    }

    /// Returns when somebody has found that another one is to be asked. Who waits long for an answer of this
    /// one would not notice that it hangs.
    pub async fn moved_on_from(&self, address: &str) {
        let mut current = self.current.subscribe();
        // The sender is this handle's own.
        current
            .wait_for(|now| now != address)
            .await
            .map(drop)
            .unwrap_or_default();
    }

    /// The coordinators are these, the one that leads first.
    pub fn learn(&self, coordinators: Vec<String>) {
        if let Some(leader) = coordinators.first() {
            self.ask_from_now_on(leader);
        }
        self.known().learned = coordinators;
    }

    /// This one did not do. Somebody else may have gone on to the next one already.
    pub fn pass_over(&self, failed: &str) {
        let all = self.known().all();
        let at = all.iter().position(|address| *address == failed);
        let next = &all[at.map_or(0, |at| (at + 1) % all.len())];
        self.current.send_if_modified(|current| {
            let passes = *current == failed && next != failed;
            if passes {
                current.clone_from(next);
            }
            passes
        });
    }

    fn ask_from_now_on(&self, address: &str) {
        self.current.send_if_modified(|current| {
            let changes = *current != address;
            if changes {
                address.clone_into(current);
            }
            changes
        });
    }

    /// Puts a call to a coordinator, and to the next one if that one is not there or knows of no leader: each
    /// at most once. `deadline`: for each.
    pub async fn call<C: Call>(
        &self,
        transport: &Transport,
        request: &C,
        deadline: Span,
    ) -> Result<C::Reply, CallError> {
        let mut left = self.count();
        loop {
            let address = self.current();
            let error = match transport.call(&address, request, deadline).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            left -= 1;
            if is_answer(&error) {
                return Err(error);
            }
            self.pass_over(&address);
            // Who did not answer in time has used up what the caller has.
            if left == 0 || matches!(error, CallError::Timeout { .. }) {
                return Err(error);
            }
            debug!(%address, %error, "asking another coordinator");
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn all(&self) -> Vec<String> {
        let mut all = self.configured.clone();
        let new = self
            .learned
            .iter()
            .filter(|address| !self.configured.contains(address));
        all.extend(new.cloned());
        all
    }
}

/// Whether this is what the leader says, and no other coordinator would say anything else.
fn is_answer(error: &CallError) -> bool {
    match error {
        CallError::Problem(problem) => !matches!(
            problem.code,
            ErrorCode::CoordinatorUnavailable | ErrorCode::ShuttingDown
        ),
        CallError::Unreachable { .. } | CallError::Timeout { .. } | CallError::BadReply { .. } => {
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(addresses: &[&str]) -> Vec<String> {
        addresses
            .iter()
            .map(|address| (*address).to_owned())
            .collect()
    }

    #[test]
    fn each_is_tried_in_turn_and_the_leader_is_preferred() {
        let coordinators = Coordinators::new(list(&["a", "b"]));
        assert_eq!(coordinators.current(), "a");
        coordinators.pass_over("a");
        // The second to notice does not skip one.
        coordinators.pass_over("a");
        assert_eq!(coordinators.current(), "b");
        coordinators.pass_over("b");
        assert_eq!(coordinators.current(), "a");

        coordinators.learn(list(&["c", "a"]));
        assert_eq!(coordinators.current(), "c");
        coordinators.pass_over("c");
        assert_eq!(coordinators.current(), "a");
        coordinators.pass_over("a");
        assert_eq!(
            coordinators.current(),
            "b",
            "what it was told at the start stays"
        );
        coordinators.pass_over("b");
        assert_eq!(coordinators.current(), "c");
    }
}
