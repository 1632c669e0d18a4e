//! The worker's line to the coordinator: it registers, says that it is alive, and hears what was decided.
//!
//! It runs on a thread of its own, with connections of its own: a worker that is busy with data must
//! never look dead.

pub mod choice;
pub mod coordinators;
pub mod lease;
pub mod reports;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use common::error::ErrorCode;
use common::ids::{ClusterId, MetadataVersion, NodeId, TopicPartition, WorkerEpoch};
use common::limits::MAX_WAIT;
use common::protocol::metadata::FetchMetadata;
use common::protocol::node::{Heartbeat, RegisterWorker, Registered};
use common::time::{Clock, Span, Tick};
use common::transport::client::{CallError, Transport};
use tokio::sync::{Notify, watch};
use tracing::{debug, info, warn};

use crate::load::SharedLoad;
use crate::metadata_image::MetadataImage;
use coordinators::Coordinators;
use reports::TaskReports;

/// Who this worker is to the cluster, from its first registration on.
#[derive(Debug)]
pub struct Session {
    pub cluster: ClusterId,
    pub worker: NodeId,
    epoch: AtomicU64,
    session_timeout: Span,
    /// When the last heartbeat that was answered had been sent, and what its answer said there was to know.
    heard: AtomicU64,
    latest: AtomicU64,
}

impl Session {
    pub fn epoch(&self) -> WorkerEpoch {
        WorkerEpoch(self.epoch.load(Ordering::Acquire))
    }

    /// It was fenced, and has begun anew.
    pub fn registered_again(&self, epoch: WorkerEpoch) {
        self.epoch.store(epoch.0, Ordering::Release);
    }

    /// A heartbeat that was sent then is answered: there are facts up to this version.
    pub fn hears(&self, sent: Tick, latest: MetadataVersion) {
        self.latest.fetch_max(latest.0, Ordering::AcqRel);
        self.heard.fetch_max(sent.0, Ordering::AcqRel);
    }

    /// Whether facts of this version are all there are, or were a moment ago: of what is not among them it can be
    /// said that it is not there. A worker that hears no coordinator cannot say that.
    pub fn is_up_to_date(&self, version: MetadataVersion, now: Tick) -> bool {
        let is_heard = self.is_heard(self.silence(now));
        is_heard && version.0 > 0 && version.0 >= self.latest.load(Ordering::Acquire)
    }

    /// Whether this worker leads a partition, as a coordinator has answered what it was asked after this moment;
    /// `None`: it has not yet, or there is more to know than these facts.
    pub fn leads_since(
        &self,
        then: Tick,
        facts: &MetadataImage,
        id: TopicPartition,
    ) -> Option<bool> {
        let heard = self.heard.load(Ordering::Acquire);
        let knows = heard > then.0 && facts.version.0 >= self.latest.load(Ordering::Acquire);
        let leader = facts.partition(id).and_then(|partition| partition.leader);
        knows.then_some(leader == Some(self.worker))
    }

    /// For how long no coordinator has answered.
    fn silence(&self, now: Tick) -> Span {
        now.since(Tick(self.heard.load(Ordering::Acquire)))
    }

    /// Whether nobody can have given up this worker after so long a silence: they do so a little later.
    fn is_heard(&self, silence: Span) -> bool {
        silence.0 * 5 < self.session_timeout.0 * 4
    }
}

/// What the link says about the worker, and what it is told.
#[derive(Debug)]
pub struct Link {
    pub coordinators: Coordinators,
    pub transport: Transport,
    pub image: watch::Sender<Arc<MetadataImage>>,
    pub reports: Arc<TaskReports>,
    pub load: SharedLoad,
    pub clock: Arc<dyn Clock>,
    /// The logs it leads are open: it may be given work.
    pub ready: watch::Receiver<bool>,
    /// Something changed that the coordinator should hear before the next heartbeat is due.
    pub urgent: Arc<Notify>,
}

/// A call that takes longer is repeated.
const CALL_DEADLINE: Span = Span::from_secs(3);
/// A heartbeat that is not answered so soon is sent to another coordinator as well: the one that was asked may hang.
pub const DOUBT_AFTER: Span = Span::from_secs(1);
const RETRY_EVERY: Span = Span::from_millis(250);
/// When another coordinator is to be asked; all of them may be gone.
const MOVE_AFTER: Span = Span::from_millis(50);

/// Registers, and goes on trying while no coordinator answers. Fails only when registering can never succeed.
pub async fn register(
    coordinators: &Coordinators,
    transport: &Transport,
    request: &RegisterWorker,
) -> Result<Registered, CallError> {
    let mut told = false;
    loop {
        match coordinators.call(transport, request, CALL_DEADLINE).await {
            Ok(registered) => return Ok(registered),
            Err(error) if error.is_retriable() => {
                if !std::mem::replace(&mut told, true) {
                    warn!(%error, "cannot register yet; trying on");
                }
                tokio::time::sleep(RETRY_EVERY.as_duration()).await;
            }
            Err(error) => return Err(error),
        }
    }
}

impl Session {
    pub fn of(registered: &Registered) -> Arc<Session> {
        Arc::new(Session {
            cluster: registered.cluster,
            worker: registered.worker,
            epoch: AtomicU64::new(registered.epoch.0),
            session_timeout: registered.session_timeout,
            heard: AtomicU64::new(0),
            latest: AtomicU64::new(0),
        })
    }
}

impl Link {
    /// Starts the thread. It ends when the returned guard is dropped.
    pub fn start(
        self,
        session: Arc<Session>,
        registered: Registered,
        registration: RegisterWorker,
    ) -> std::io::Result<LinkGuard> {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread =
            std::thread::Builder::new().name("worker-link".to_owned()).spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = self.heartbeats(&session, registered.heartbeat_interval, &registration) => {}
                        () = self.metadata(&session) => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(LinkGuard {
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    async fn heartbeats(&self, session: &Session, interval: Span, registration: &RegisterWorker) {
        let mut sequence = 0;
        loop {
            sequence += 1;
            let heartbeat = Heartbeat {
                cluster: session.cluster,
                worker: session.worker,
                epoch: session.epoch(),
                sequence,
                metadata_version: self.image.borrow().version,
                ready: *self.ready.borrow(),
                tasks: self.reports.all(),
                load: *self.load.lock().unwrap_or_else(PoisonError::into_inner),
            };
            let sent = self.clock.tick();
            let answer = self.coordinators.call_doubting(
                &self.transport,
                &heartbeat,
                CALL_DEADLINE,
                DOUBT_AFTER,
            );
            match answer.await {
                Ok(reply) => session.hears(sent, reply.metadata_version),
                Err(error) if error.code() == Some(ErrorCode::FencedWorkerEpoch) => {
                    // Fenced while it was silent. What ran under the old epoch is the past already; a
                    // new epoch is a new beginning for this process, with its disk as it is.
                    warn!(worker = %session.worker, "fenced: registering again");
                    match register(&self.coordinators, &self.transport, registration).await {
                        Ok(registered) => {
                            session.registered_again(registered.epoch);
                            info!(worker = %session.worker, epoch = %registered.epoch, "registered again");
                            sequence = 0;
                            continue;
                        }
                        Err(error) => warn!(%error, "cannot register again"),
                    }
                }
                Err(error) => debug!(%error, "a heartbeat was not answered"),
            }
            let urgent = self.urgent.notified();
            // An elapsed interval and an urgent word are equally good reasons for the next heartbeat.
            tokio::time::timeout(interval.as_duration(), urgent)
                .await
                .unwrap_or_default();
        }
    }

    async fn metadata(&self, session: &Session) {
        loop {
            let since = self.image.borrow().version;
            let request = FetchMetadata {
                cluster: session.cluster,
                worker: Some(session.worker),
                since,
                wait: MAX_WAIT,
            };
            let deadline = Span(MAX_WAIT.0 + CALL_DEADLINE.0);
            let asked = self.coordinators.current();
            let answer = tokio::select! {
                answer = self.coordinators.call(&self.transport, &request, deadline) => answer,
                // A heartbeat has found that it hangs, or this call that it is gone.
                () = self.coordinators.moved_on_from(&asked) => {
                    tokio::time::sleep(MOVE_AFTER.as_duration()).await;
                    continue;
                }
            };
            match answer {
                Ok(mut delta) => {
                    self.coordinators
                        .learn(std::mem::take(&mut delta.coordinators));
                    let after = self.image.borrow().after(delta, self.clock.tick());
                    match after {
                        Some(image) if image.version > since => {
                            self.image.send_replace(Arc::new(image));
                        }
                        Some(_) | None => {}
                    }
                }
                Err(error) => {
                    debug!(%error, "no news from the coordinator");
                    tokio::time::sleep(RETRY_EVERY.as_duration()).await;
                }
            }
        }
    }

    /// The newest version, for tests and for readiness.
    pub fn version(&self) -> MetadataVersion {
        self.image.borrow().version
    }
}

/// Ends the link's thread when it is dropped.
#[derive(Debug)]
pub struct LinkGuard {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for LinkGuard {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the link's thread panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use common::ids::{ControlEpoch, PartitionId, TopicId};
    use common::protocol::metadata::MetadataDelta;
    use common::time::{ManualClock, Timestamp};
    use uuid::Uuid;

    use super::lease::Lease;
    use super::*;

    /// It answered that a topic did not exist which it had only not heard of yet.
    #[test]
    fn a_worker_that_hears_nothing_does_not_know_what_there_is_not() {
        let version = MetadataVersion;
        let session = Session::of(&Registered {
            cluster: ClusterId(Uuid::from_u128(1)),
            worker: NodeId(1),
            epoch: WorkerEpoch(1),
            control_epoch: ControlEpoch(1),
            heartbeat_interval: Span::from_millis(500),
            session_timeout: Span::from_secs(3),
        });
        assert!(!session.is_up_to_date(version(0), Tick(10_000)));
        session.hears(Tick(10_000), version(7));
        assert!(!session.is_up_to_date(version(0), Tick(10_001)));
        assert!(!session.is_up_to_date(version(6), Tick(10_001)));
        assert!(session.is_up_to_date(version(7), Tick(12_399)));
        assert!(!session.is_up_to_date(version(7), Tick(12_400)));
        // It says what is newest for as long, whatever version it knows.
        let clock = Arc::new(ManualClock::at(Timestamp(0)));
        let (_image, known) = watch::channel(Arc::new(MetadataImage::default()));
        let lease = Lease::new(session.clone(), known, clock.clone());
        clock.advance(Span(12_399));
        lease.check().unwrap();
        clock.advance(Span(1));
        assert_eq!(lease.check().unwrap_err().code, ErrorCode::MetadataStale);
        // What was asked before says nothing of what is now.
        let leads_since = |then, version| {
            let delta = MetadataDelta {
                version,
                ..MetadataDelta::default()
            };
            let facts = MetadataImage::default().after(delta, Tick(0)).unwrap();
            let id = TopicPartition {
                topic: TopicId(Uuid::from_u128(1)),
                partition: PartitionId(0),
            };
            session.leads_since(then, &facts, id)
        };
        assert_eq!(leads_since(Tick(9_999), version(7)), Some(false));
        assert_eq!(leads_since(Tick(10_000), version(7)), None);
        assert_eq!(leads_since(Tick(9_999), version(6)), None);
        // An answer that comes late says nothing new.
        session.hears(Tick(9_000), version(5));
        assert!(session.is_up_to_date(version(7), Tick(12_399)));
        assert!(!session.is_up_to_date(version(6), Tick(12_399)));
    }
}
