//! A handle on the group this coordinator is a member of, and the life behind it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, VoteRequest,
};
use openraft::{Config, SnapshotPolicy as RaftSnapshots};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::error;

use common::data_dir::DataDir;
use common::error::{ErrorCode, Problem};
use common::ids::CoordinatorId;
use common::protocol::coordinator::{RaftAppend, RaftReply, RaftSnapshot, RaftVote};
use common::seglog::Position;
use common::time::{Clock, SystemClock, Tick};
use common::transport::client::Transport;

use super::confirmations::{self, NotConfirmed, confirm};
use super::election::watch_the_leader;
use super::leadership::{Leadership, watch_leadership};
use super::log_store::LogStore;
use super::network::{Network, is_for, read, replied};
use super::proposals::Proposals;
use super::records::Belongs;
use super::state_machine::StateMachine;
use super::types::{
    ELECTION_MS_MAX, ELECTION_MS_MIN, HEARTBEAT_MS, Member, SNAPSHOT_PIECE_BYTES,
    SNAPSHOT_PIECE_DEADLINE_MS,
};
use super::{Raft, SnapshotPolicy};
use crate::metadata_log::{MetadataView, Proposal};

/// Usable from any thread and any runtime.
#[derive(Clone)]
pub struct Group {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) log: LogStore,
    pub(super) view: MetadataView,
    pub(super) transport: Transport,
    pub(super) runtime: Handle,
    pub(super) clock: Arc<dyn Clock>,
    /// `None`: it belongs to no group yet.
    pub(super) raft: watch::Sender<Option<Raft>>,
    pub(super) leadership: watch::Sender<Leadership>,
    /// Questions whether this member still leads.
    questions: mpsc::Sender<confirmations::Waiting>,
    /// When something came of a leader last.
    pub(super) heard: Mutex<Tick>,
    /// Held while a vote is given or asked for, so that nobody asks for votes who has just given its own: with
    /// that it would depose the one it has elected.
    pub(super) voting: tokio::sync::Mutex<()>,
    pub(super) data_dir: Arc<DataDir>,
    /// One change of the members at a time.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// What keeps the group from being formed.
    pub(super) obstacle: Mutex<Option<String>>,
    /// What Raft is made of, until it is.
    unmade: Mutex<Option<StateMachine>>,
    policy: SnapshotPolicy,
    failures: mpsc::Sender<()>,
}

/// What a group is made of.
pub(super) struct Parts {
    pub(super) log: LogStore,
    pub(super) machine: StateMachine,
    pub(super) data_dir: Arc<DataDir>,
    pub(super) policy: SnapshotPolicy,
    pub(super) transport: Transport,
    pub(super) view: MetadataView,
    pub(super) waiting: mpsc::Receiver<Proposal>,
    pub(super) runtime: Handle,
    pub(super) on_failure: Box<dyn FnOnce() + Send>,
}

/// What runs on the group's thread.
pub(super) struct Life {
    group: Group,
    proposals: Proposals,
    waiting: mpsc::Receiver<Proposal>,
    questions: mpsc::Receiver<confirmations::Waiting>,
    failed: mpsc::Receiver<()>,
    on_failure: Box<dyn FnOnce() + Send>,
}

pub(super) fn group(parts: Parts) -> (Group, Life) {
    let clock = SystemClock::shared();
    let (failures, failed) = mpsc::channel(1);
    let (ask, questions) = mpsc::channel(confirmations::MAX_WAITING);
    let group = Group {
        shared: Arc::new(Shared {
            log: parts.log,
            view: parts.view,
            transport: parts.transport,
            runtime: parts.runtime,
            raft: watch::Sender::new(None),
            leadership: watch::Sender::new(Leadership::Follows { leader: None }),
            questions: ask,
            heard: Mutex::new(clock.tick()),
            voting: tokio::sync::Mutex::default(),
            data_dir: parts.data_dir,
            changing: tokio::sync::Mutex::default(),
            obstacle: Mutex::default(),
            clock,
            unmade: Mutex::new(Some(parts.machine)),
            policy: parts.policy,
            failures,
        }),
    };
    let proposals = Proposals {
        raft: group.shared.raft.subscribe(),
        leadership: group.shared.leadership.subscribe(),
        full: group.shared.log.full(),
    };
    let life = Life {
        group: group.clone(),
        proposals,
        waiting: parts.waiting,
        questions,
        failed,
        on_failure: parts.on_failure,
    };
    (group, life)
}

impl Life {
    pub(super) async fn run(mut self, stopped: oneshot::Receiver<()>) {
        let (stop, stop_proposals) = oneshot::channel();
        let proposing = tokio::spawn(self.proposals.run(self.waiting, stop_proposals));
        let raft = self.group.shared.raft.subscribe();
        let confirming = tokio::spawn(confirm(raft, self.questions));
        let mut on_failure = Some(self.on_failure);
        let mut stopped = stopped;
        loop {
            tokio::select! {
                // An error says that the owner was dropped: that ends it too.
                _ = &mut stopped => break,
                Some(()) = self.failed.recv() => {
                    if let Some(tell) = on_failure.take() {
                        tell();
                    }
                }
            }
        }
        drop(stop);
        confirming.abort();
        self.group.shared.log.stop();
        if proposing.await.is_err() {
            error!("the proposals panicked");
        }
        let raft = self.group.shared.raft.borrow().clone();
        if let Some(raft) = raft
            && raft.shutdown().await.is_err()
        {
            error!("raft panicked");
        }
        self.group.shared.leadership.send_replace(Leadership::Ended);
    }
}

impl Group {
    /// Whose the log is; `None`: nobody's yet.
    pub fn belongs(&self) -> Option<Belongs> {
        self.shared.log.belongs()
    }

    /// Whether nothing was ever written to the log.
    pub fn is_new(&self) -> bool {
        self.shared.log.is_new()
    }

    /// Who leads.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.shared.leadership.subscribe()
    }

    /// Whether the log waits for room on the disk.
    pub fn disk_full(&self) -> watch::Receiver<bool> {
        self.shared.log.full()
    }

    /// The facts as far as this member has them.
    pub fn view(&self) -> &MetadataView {
        &self.shared.view
    }

    /// Becomes this member, for ever, and takes part from now on. A group that does not exist yet has to be
    /// formed by one of its members.
    pub async fn begin(&self, me: Belongs) -> Result<(), Problem> {
        let group = self.clone();
        let begun = self
            .shared
            .runtime
            .spawn(async move { group.make(me).await });
        begun.await.unwrap_or_else(|_| Err(ended()))
    }

    async fn make(&self, me: Belongs) -> Result<(), Problem> {
        let Some(machine) = lock(&self.shared.unmade).take() else {
            return Ok(());
        };
        let shared = &self.shared;
        if shared.log.belongs() != Some(me) {
            let written = shared.log.belong(me).await;
            written.map_err(|error| Problem::new(ErrorCode::Internal, error.to_string()))?;
        }
        let snapshot_bytes = machine.snapshot_bytes();
        let config = Arc::new(config(shared.policy));
        let network = Network::new(shared.transport.clone(), me);
        let log = shared.log.clone();
        let raft = Raft::new(me.coordinator, config, network, log, machine).await;
        let raft = raft.map_err(|error| Problem::new(ErrorCode::Internal, error.to_string()))?;
        tokio::spawn(write_snapshots(
            raft.clone(),
            shared.policy,
            shared.log.start(),
            shared.log.ends(),
            snapshot_bytes,
        ));
        tokio::spawn(watch_the_leader(self.clone(), raft.clone()));
        let group = self.clone();
        let watched = raft.clone();
        tokio::spawn(async move {
            if watch_leadership(watched, &group.shared.leadership).await {
                // Told once is enough.
                group.shared.failures.try_send(()).ok();
            }
        });
        shared.raft.send_replace(Some(raft));
        Ok(())
    }

    /// Forms the group of these members, of which this is one. `false`: there is a group already.
    pub async fn form(&self, members: BTreeMap<CoordinatorId, Member>) -> Result<bool, Problem> {
        if self.is_formed().await {
            return Ok(false);
        }
        let formed = self.raft()?.initialize(members).await;
        formed.map_err(|error| Problem::new(ErrorCode::Internal, error.to_string()))?;
        Ok(true)
    }

    /// Whether there is a group, as far as this member knows.
    pub async fn is_formed(&self) -> bool {
        match self.raft() {
            Ok(raft) => raft.is_initialized().await.unwrap_or(false),
            Err(_) => false,
        }
    }

    /// Returns when this member leads.
    pub async fn leads(&self) -> Result<(), Problem> {
        let settled = |leadership: &Leadership| !matches!(leadership, Leadership::Follows { .. });
        match self.leadership().wait_for(settled).await.as_deref() {
            Ok(Leadership::Leads { .. }) => Ok(()),
            Ok(Leadership::Ended | Leadership::Follows { .. }) | Err(_) => Err(ended()),
        }
    }

    /// Returns once the group has said, since this was asked, that this member leads, and everything that was
    /// committed by then is in the view.
    pub async fn confirm(&self) -> Result<(), NotConfirmed> {
        let (answer, confirmed) = oneshot::channel();
        let asked = self.shared.questions.send(answer).await;
        asked.map_err(|_| NotConfirmed)?;
        confirmed.await.unwrap_or(Err(NotConfirmed))
    }

    /// Asks for votes at once, without waiting for the leader to be missed.
    pub async fn elect(&self) -> Result<(), Problem> {
        self.raft()?.trigger().elect().await.map_err(|_| ended())
    }

    /// Entries of the leader, or the word that it is there.
    pub async fn append(&self, request: RaftAppend) -> Result<RaftReply, Problem> {
        is_for(self.belongs(), &request.envelope)?;
        let entries: AppendEntriesRequest<_> = read(&request.body)?;
        let reply = self.raft()?.append_entries(entries).await;
        let reply = reply.map_err(|_| ended())?;
        // Any other answer says that whoever sent this does not lead any more.
        let of_the_leader = matches!(
            reply,
            AppendEntriesResponse::Success
                | AppendEntriesResponse::PartialSuccess(_)
                | AppendEntriesResponse::Conflict
        );
        if of_the_leader {
            *lock(&self.shared.heard) = self.shared.clock.tick();
        }
        Ok(replied(&reply))
    }

    /// A candidate's question.
    pub async fn vote(&self, request: RaftVote) -> Result<RaftReply, Problem> {
        is_for(self.belongs(), &request.envelope)?;
        let question: VoteRequest<_> = read(&request.body)?;
        let raft = self.raft()?;
        // The candidate may have noticed before this member did that the leader is gone.
        self.give_up_a_leader_that_is_gone(&raft).await;
        let _one_at_a_time = self.shared.voting.lock().await;
        let reply = raft.vote(question).await.map_err(|_| ended())?;
        if reply.vote_granted {
            // Who was voted for is given as much time to be heard as a leader.
            *lock(&self.shared.heard) = self.shared.clock.tick();
        }
        Ok(replied(&reply))
    }

    /// A piece of the leader's snapshot.
    pub async fn snapshot(&self, request: RaftSnapshot) -> Result<RaftReply, Problem> {
        is_for(self.belongs(), &request.envelope)?;
        let piece: InstallSnapshotRequest<_> = read(&request.body)?;
        match self.raft()?.install_snapshot(piece).await {
            Ok(reply) => Ok(replied(&Ok::<_, openraft::error::InstallSnapshotError>(
                reply,
            ))),
            Err(openraft::error::RaftError::APIError(error)) => {
                let refused: Result<openraft::raft::InstallSnapshotResponse<CoordinatorId>, _> =
                    Err(error);
                Ok(replied(&refused))
            }
            Err(openraft::error::RaftError::Fatal(_)) => Err(ended()),
        }
    }

    pub(super) fn raft(&self) -> Result<Raft, Problem> {
        self.shared.raft.borrow().clone().ok_or_else(|| {
            Problem::new(
                ErrorCode::CoordinatorUnavailable,
                "this coordinator belongs to no cluster yet",
            )
            .hint("Add it to one: POST /v1/coordinators at a coordinator of it.")
        })
    }
}

impl Group {
    /// Does this on the group's thread and waits for it. Blocks, and must not be called on that thread.
    pub fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Problem>> + Send + 'static,
    ) -> Result<T, Problem> {
        // Not a channel of tokio's: a node may be started from inside a runtime.
        let (done, outcome) = std::sync::mpsc::sync_channel(1);
        self.shared.runtime.spawn(async move {
            // The one who waits is there until it has heard.
            done.send(work.await).ok();
        });
        outcome.recv().unwrap_or_else(|_| Err(ended()))
    }
}

impl Group {
    /// Does this on the group's thread, however long it takes.
    pub fn apart(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(self.shared.runtime.spawn(work));
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("belongs", &self.belongs())
            .finish_non_exhaustive()
    }
}

pub(super) fn ended() -> Problem {
    Problem::new(
        ErrorCode::ShuttingDown,
        "the coordinator's log has ended, and so does the coordinator",
    )
}

fn config(policy: SnapshotPolicy) -> Config {
    let config = Config {
        cluster_name: "millstream".to_owned(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MS_MIN,
        election_timeout_max: ELECTION_MS_MAX,
        install_snapshot_timeout: SNAPSHOT_PIECE_DEADLINE_MS,
        snapshot_max_chunk_size: SNAPSHOT_PIECE_BYTES,
        // Its size is what makes a log long, not how many entries it has: see `write_snapshots`.
        snapshot_policy: RaftSnapshots::Never,
        max_in_snapshot_log_to_keep: policy.entries_kept,
        // A member counts as up to date when it is at most so many entries behind.
        replication_lag_threshold: 16,
        ..Config::default()
    };
    config.validate().expect("these go together")
}

/// Has the metadata written as a whole when enough has been appended since the last time.
async fn write_snapshots(
    raft: Raft,
    policy: SnapshotPolicy,
    mut snapshot_at: Position,
    mut ends: watch::Receiver<Position>,
    snapshot_bytes: watch::Receiver<u64>,
) {
    loop {
        let due_after = policy.after_bytes.max(4 * *snapshot_bytes.borrow());
        let due = |end: &Position| end.since(snapshot_at) >= due_after;
        let Ok(end) = ends.wait_for(due).await.map(|end| *end) else {
            return;
        };
        snapshot_at = end;
        if raft.trigger().snapshot().await.is_err() {
            return;
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
