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
    /// Has not answered for some time. It is passed over as long as others answer, if only that nobody leads: who asks
    /// it again waits again.
    hanging: Option<String>,
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
                hanging: None,
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
            self.has_answered(leader);
        }
        self.known().learned = coordinators;
    }

    /// This one did not do. Somebody else may have gone on to the next one already.
    pub fn pass_over(&self, failed: &str) {
        let next = self.known().after(failed);
        self.current.send_if_modified(|current| {
            let passes = *current == failed && next != failed;
            if passes {
                current.clone_from(&next);
            }
            passes
        });
    }

    fn has_answered(&self, address: &str) {
        self.known().hanging.take_if(|hanging| hanging == address);
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
                Ok(reply) => {
                    self.has_answered(&address);
                    return Ok(reply);
                }
                Err(error) => error,
            };
            left -= 1;
            if is_answer(&error) {
                return Err(error);
            }
            if !matches!(error, CallError::Problem(_)) {
                // Where this one is not there either, the one that hung may be back.
                self.known().hanging = None;
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
            self.known().hanging = Some(asked.clone());
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
    /// The one to ask when another one has failed; the same if there is no other.
    fn after(&self, failed: &str) -> String {
        let all = self.all();
        let at = all.iter().position(|address| address == failed);
        let first = at.map_or(0, |at| at + 1);
        let in_turn = all.iter().cycle().skip(first).take(all.len());
        let others = in_turn.filter(|address| *address != failed);
        let answers = |address: &&String| self.hanging.as_ref() != Some(*address);
        let next = others
            .clone()
            .find(answers)
            .or_else(|| others.clone().next());
        next.map_or(failed, String::as_str).to_owned()
    }

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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use common::error::Problem;
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

    #[test]
    fn one_that_hangs_is_passed_over_until_it_answers_or_another_one_is_not_there() {
        let coordinators = Coordinators::new(list(&["a", "b", "c"]));
        coordinators.known().hanging = Some("a".to_owned());
        coordinators.pass_over("a");
        for other in ["b", "c", "b"] {
            assert_eq!(coordinators.current(), other);
            coordinators.pass_over(other);
        }
        coordinators.has_answered("b");
        coordinators.pass_over("c");
        assert_eq!(coordinators.current(), "b");
        coordinators.has_answered("a");
        coordinators.pass_over("b");
        coordinators.pass_over("c");
        assert_eq!(coordinators.current(), "a");
        let pair = Coordinators::new(list(&["a", "b"]));
        pair.known().hanging = Some("a".to_owned());
        pair.pass_over("a");
        pair.pass_over("b");
        assert_eq!(pair.current(), "a", "there is no other");
    }

    /// Answers a heartbeat with this version once so many have been told that nobody leads.
    fn coordinator(version: u64, electing: usize) -> HttpServer {
        let port = "127.0.0.1:0".parse().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        HttpServer::start("test", port, 1, Span::from_secs(20), move |config| {
            let asked = asked.clone();
            server::register(config, move |_: Heartbeat| {
                let leads = asked.fetch_add(1, Ordering::SeqCst) >= electing;
                let reply = HeartbeatReply {
                    control_epoch: ControlEpoch(1),
                    metadata_version: MetadataVersion(version),
                };
                let nobody = || Problem::new(ErrorCode::CoordinatorUnavailable, "nobody leads");
                let answer = leads.then_some(reply).ok_or_else(nobody);
                async { answer }
            });
        })
        .unwrap()
    }

    /// Sends a heartbeat, of which the first coordinator takes the connection and no more.
    fn ask_beside_one_that_hangs(others: &[HttpServer]) -> (Vec<String>, Coordinators, u64) {
        // Connections are taken by the kernel, and nobody reads.
        let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
        let others = others.iter().map(HttpServer::address);
        let all = std::iter::once(hangs.local_addr().unwrap()).chain(others);
        let addresses: Vec<String> = all.map(|address| format!("http://{address}")).collect();
        let coordinators = Coordinators::new(addresses.clone());
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
        let (deadline, doubt_after) = (Span::from_secs(60), Span::from_millis(1));
        let call = coordinators.call_doubting(&transport, &heartbeat, deadline, doubt_after);
        let answer = runtime.block_on(call).unwrap();
        (addresses, coordinators, answer.metadata_version.0)
    }

    /// It took a heartbeat's whole deadline, and the group had long had another leader.
    #[test]
    fn a_coordinator_that_hangs_is_not_waited_for_where_another_answers() {
        let answers = [coordinator(7, 0)];
        let (addresses, coordinators, version) = ask_beside_one_that_hangs(&answers);
        assert_eq!(version, 7);
        // Others wait for what this one says, too.
        assert_eq!(coordinators.current(), addresses[1]);
        answers.into_iter().for_each(HttpServer::stop);
    }

    /// After those that knew of no leader it was the turn of the one that hung, for the whole deadline again.
    #[test]
    fn a_coordinator_that_hangs_is_not_asked_again_while_the_others_are_electing() {
        let elect = [coordinator(7, 3), coordinator(8, 2)];
        let (_, _, version) = ask_beside_one_that_hangs(&elect);
        assert_eq!(version, 8);
        elect.into_iter().for_each(HttpServer::stop);
    }
}
