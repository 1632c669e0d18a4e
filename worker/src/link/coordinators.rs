//! Asks the coordinators: any of them takes any request, so one that answers is enough.

use common::error::ErrorCode;
use common::protocol::Call;
use common::time::Span;
use common::transport::client::{CallError, Transport};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::choice::{Choice, Heard};

/// Others than the one that hangs are asked so often: they may be electing.
const ASK_AGAIN: Span = Span::from_millis(50);

/// A handle that all of the worker shares.
#[derive(Clone, Debug)]
pub struct Coordinators {
    /// Who waits is told when another one is to be asked.
    choice: watch::Sender<Choice<String>>,
}

impl Coordinators {
    /// `configured`: at least one.
    pub fn new(configured: Vec<String>) -> Coordinators {
        Coordinators {
            choice: watch::Sender::new(Choice::new(configured)),
        }
    }

    /// How many there are to try.
    pub fn count(&self) -> usize {
        self.choice.borrow().count()
    }

    /// The one to ask.
    pub fn current(&self) -> String {
        self.choice.borrow().current().clone()
    }

    /// Returns when somebody has found that another one is to be asked. Who waits long for an answer of this
    /// one would not notice that it hangs.
    pub async fn moved_on_from(&self, address: &str) {
        let mut choice = self.choice.subscribe();
        // The sender is this handle's own.
        choice
            .wait_for(|choice| choice.current() != address)
            .await
            .map(drop)
            .unwrap_or_default();
    }

    /// The coordinators are these, the one that leads first.
    pub fn learn(&self, coordinators: Vec<String>) {
        self.change(|choice| choice.learn(coordinators));
    }

    /// This one did not do. Somebody else may have gone on to the next one already.
    pub fn pass_over(&self, failed: &String) {
        self.change(|choice| choice.pass_over(failed));
    }

    fn change(&self, change: impl FnOnce(&mut Choice<String>)) {
        self.choice.send_if_modified(|choice| {
            let before = choice.current().clone();
            change(choice);
            *choice.current() != before
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
            let answer = transport.call(&address, request, deadline).await;
            let heard = heard(&answer);
            if heard == Heard::Stranger && !self.choice.borrow().is_stranger(&address) {
                warn!(%address, "this coordinator is of another cluster");
            }
            self.change(|choice| choice.hear(&address, heard));
            left -= 1;
            match answer {
                // Who did not answer in time has used up what the caller has.
                Err(error)
                    if heard != Heard::Answer
                        && left > 0
                        && !matches!(error, CallError::Timeout { .. }) =>
                {
                    debug!(%address, %error, "asking another coordinator");
                }
                answer => return answer,
            }
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
            self.change(|choice| choice.doubt(&asked));
            loop {
                let answer = self.call(transport, request, deadline).await;
                // It may also have been passed on to one that hangs.
                let unknown = |error: &CallError| error.code() == Some(ErrorCode::Unknown);
                if heard(&answer) == Heard::Answer && !answer.as_ref().is_err_and(unknown) {
                    return answer;
                }
                debug!("no other coordinator answers");
                tokio::time::sleep(ASK_AGAIN.as_duration()).await;
            }
        };
        tokio::select! {
            answer = self.call(transport, request, deadline) => answer,
            answer = others, if self.count() > 1 => answer,
        }
    }
}

fn heard<T>(answer: &Result<T, CallError>) -> Heard {
    match answer {
        Ok(_) => Heard::Answer,
        Err(CallError::Problem(problem)) => Heard::of(problem.code),
        Err(
            CallError::Unreachable { .. } | CallError::Timeout { .. } | CallError::BadReply { .. },
        ) => Heard::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use common::error::Problem;
    use common::ids::{ClusterId, ControlEpoch, MetadataVersion, NodeId, WorkerEpoch};
    use common::protocol::node::{Heartbeat, HeartbeatReply, NodeLoad};
    use common::transport::server::{self, HttpServer};
    use uuid::Uuid;

    use super::*;

    const DEADLINE: Span = Span::from_secs(60);

    /// Answers a heartbeat with this version once so many have been told that nobody leads.
    fn coordinator(version: u64, electing: usize) -> HttpServer {
        refusing(version, electing, ErrorCode::CoordinatorUnavailable)
    }

    fn refusing(version: u64, times: usize, code: ErrorCode) -> HttpServer {
        let port = "127.0.0.1:0".parse().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        HttpServer::start("test", port, 1, Span::from_secs(20), move |config| {
            let asked = asked.clone();
            server::register(config, move |_: Heartbeat| {
                let answers = asked.fetch_add(1, Ordering::SeqCst) >= times;
                let reply = HeartbeatReply {
                    control_epoch: ControlEpoch(1),
                    metadata_version: MetadataVersion(version),
                };
                let refusal = || Problem::new(code, "not now");
                let answer = answers.then_some(reply).ok_or_else(refusal);
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
        let transport = Transport::start("test").unwrap();
        let (heartbeat, doubt_after) = (heartbeat(), Span::from_millis(1));
        let call = coordinators.call_doubting(&transport, &heartbeat, DEADLINE, doubt_after);
        let answer = wait_for(call).unwrap();
        (addresses, coordinators, answer.metadata_version.0)
    }

    fn heartbeat() -> Heartbeat {
        Heartbeat {
            cluster: ClusterId(Uuid::from_u128(1)),
            worker: NodeId(1),
            epoch: WorkerEpoch(1),
            sequence: 1,
            metadata_version: MetadataVersion(6),
            ready: true,
            tasks: Vec::new(),
            load: NodeLoad::default(),
        }
    }

    fn wait_for<T>(answer: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(answer)
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

    /// It was the one to ask from then on, since what it said counted as an answer.
    #[test]
    fn a_coordinator_of_another_cluster_is_passed_over() {
        let stranger = refusing(1, usize::MAX, ErrorCode::WrongCluster);
        let servers = [stranger, coordinator(7, 0)];
        let addresses = servers.iter().map(HttpServer::address);
        let addresses: Vec<String> = addresses
            .map(|address| format!("http://{address}"))
            .collect();
        let coordinators = Coordinators::new(addresses.clone());
        let transport = Transport::start("test").unwrap();
        let answer = wait_for(coordinators.call(&transport, &heartbeat(), DEADLINE));
        assert_eq!(answer.unwrap().metadata_version, MetadataVersion(7));
        assert_eq!(coordinators.current(), addresses[1]);
        servers.into_iter().for_each(HttpServer::stop);
    }
}
