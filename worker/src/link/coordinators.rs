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

/// Others than the one that hangs are asked so often: they may be electing.
const ASK_AGAIN: Span = Span::from_millis(50);

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

    /// The same for what may be said twice. One that has not answered after some time may hang: others are asked beside
    /// it, until one of them all has an answer.
    pub async fn call_doubting<C: Call>(
        &self,
        transport: &Transport,
        request: &C,
        deadline: Span,
        doubt_after: Span,
    ) -> Result<C::Reply, CallError> {
        let asked = self.current();
        let others = async {
            tokio::time::sleep(doubt_after.as_duration()).await;
            self.pass_over(&asked);
            loop {
                match self.call(transport, request, deadline).await {
                    // Also if it was passed on to one that hangs.
                    Err(error)
                        if !is_answer(&error) || error.code() == Some(ErrorCode::Unknown) =>
                    {
                        debug!(%error, "no other coordinator answers");
                    }
                    answer => return answer,
                }
                tokio::time::sleep(ASK_AGAIN.as_duration()).await;
            }
        };
        tokio::select! {
            answer = self.call(transport, request, deadline) => answer,
            answer = others, if self.count() > 1 => answer,
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
    use std::net::TcpListener;

    use common::ids::{ClusterId, ControlEpoch, MetadataVersion, NodeId, WorkerEpoch};
    use common::protocol::node::{Heartbeat, HeartbeatReply, NodeLoad};
    use common::transport::server::{self, HttpServer};
    use uuid::Uuid;

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

    /// It took a heartbeat's whole deadline, and the group had long had another leader.
    #[test]
    fn a_coordinator_that_hangs_is_not_waited_for_where_another_answers() {
        // Connections are taken by the kernel, and nobody reads.
        let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = "127.0.0.1:0".parse().unwrap();
        let answers = HttpServer::start("test", port, 1, Span::from_secs(20), |config| {
            server::register(config, |_: Heartbeat| async {
                Ok(HeartbeatReply {
                    control_epoch: ControlEpoch(1),
                    metadata_version: MetadataVersion(7),
                })
            });
        })
        .unwrap();
        let addresses = [hangs.local_addr().unwrap(), answers.address()];
        let addresses = addresses.map(|address| format!("http://{address}"));
        let coordinators = Coordinators::new(addresses.to_vec());
        let heartbeat = Heartbeat {
            cluster: ClusterId(Uuid::from_u128(1)),
            worker: NodeId(1),
            epoch: WorkerEpoch(1),
            sequence: 1,
            metadata_version: MetadataVersion(6),
            ready: true,
            tasks: Vec::new(),
            load: NodeLoad::default(),
        };
        let transport = Transport::start("test").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let call = coordinators.call_doubting(
            &transport,
            &heartbeat,
            Span::from_secs(60),
            Span::from_millis(1),
        );
        let answer = runtime.block_on(call).unwrap();
        assert_eq!(answer.metadata_version, MetadataVersion(7));
        // Others wait for what this one says, too.
        assert_eq!(coordinators.current(), addresses[1]);
        answers.stop();
    }
}
