//! Notices that the leader's process is gone, sooner than its silence alone would say.
//!
//! A leader that is silent for more than a heartbeat is asked whether it is there. If nobody listens at its
//! address its process has ended, and votes are asked for at once; anything else is no answer, and the
//! election timeout decides. Whoever asks for votes no longer counts on the old leader, and so grants the
//! vote of another one that does the same: that is why every follower looks for itself.

use bytes::Bytes;
use tracing::info;

use common::random::{below, seeded};
use common::time::{Span, Tick};
use common::transport::client::{CallError, Forward};

use super::Raft;
use super::group::{Group, lock};
use super::leadership::{Leader, Leadership};
use super::types::HEARTBEAT_MS;

const LOOK_EVERY: Span = Span::from_millis(50);
/// openraft looks whether a heartbeat is due every one and a half of them.
const SUSPECT_AFTER: Span = Span::from_millis(2 * HEARTBEAT_MS);
/// When somebody else misses it as well.
const DOUBT_AFTER: Span = Span::from_millis(HEARTBEAT_MS * 3 / 2);
/// A host that is there refuses at once, and the candidate that waits for a vote does not wait for long.
const PROBE_DEADLINE: Span = Span::from_millis(150);
/// An election that brought no leader is repeated after this, and up to as much again: two that ask at the
/// same time again and again would hinder each other.
const RETRY_AFTER_MS: u64 = HEARTBEAT_MS;
/// After so many the election timeout decides. One whose log is behind can never win, and with each attempt
/// of it the one who can win has to begin anew.
const ATTEMPTS_MAX: u64 = 3;

/// The leader that was heard of last, and what was done about its silence.
#[derive(Debug)]
struct Suspect {
    leader: Leader,
    attempts: u64,
    not_before: Tick,
}

pub(super) async fn watch_the_leader(group: Group, raft: Raft) {
    let leadership = group.leadership();
    let number = group.belongs().map_or(0, |me| me.coordinator.0);
    let mut random = seeded(number, 0);
    let mut suspect: Option<Suspect> = None;
    loop {
        tokio::time::sleep(LOOK_EVERY.as_duration()).await;
        let now = group.shared.clock.tick();
        let silent = group.is_leader_silent(SUSPECT_AFTER);
        match leadership.borrow().clone() {
            Leadership::Ended => return,
            Leadership::Leads { .. } => suspect = None,
            Leadership::Follows {
                leader: Some(leader),
            } => {
                let same = suspect
                    .as_ref()
                    .is_some_and(|suspect| suspect.leader == leader);
                if !same || !silent {
                    suspect = Some(Suspect {
                        leader,
                        attempts: 0,
                        not_before: now,
                    });
                }
            }
            Leadership::Follows { leader: None } => {}
        }
        let Some(suspect) = suspect.as_mut().filter(|_| silent) else {
            continue;
        };
        if now < suspect.not_before || suspect.attempts == ATTEMPTS_MAX {
            continue;
        }
        if !group.replace(&raft, &suspect.leader, SUSPECT_AFTER).await {
            continue;
        }
        suspect.attempts += 1;
        let pause = suspect.attempts * (RETRY_AFTER_MS + below(&mut random, RETRY_AFTER_MS));
        suspect.not_before = now.plus(Span::from_millis(pause));
    }
}

impl Group {
    /// Somebody asks for this member's vote: if the leader it still counts on is gone, it asks for votes itself,
    /// because it gives its own to nobody else before.
    pub(super) async fn give_up_a_leader_that_is_gone(&self, raft: &Raft) {
        let leader = match &*self.shared.leadership.borrow() {
            Leadership::Follows {
                leader: Some(leader),
            } => leader.clone(),
            Leadership::Leads { .. } | Leadership::Follows { leader: None } | Leadership::Ended => {
                return;
            }
        };
        // Whoever asks has waited for as long as that, or a little longer.
        if self.is_leader_silent(DOUBT_AFTER) {
            self.replace(raft, &leader, DOUBT_AFTER).await;
        }
    }

    /// Asks for votes, if this leader is gone and nobody else has been heard of or voted for. Says whether
    /// it did.
    async fn replace(&self, raft: &Raft, leader: &Leader, silent: Span) -> bool {
        if !is_gone(self, leader).await {
            return false;
        }
        let _one_at_a_time = self.shared.voting.lock().await;
        // Meanwhile another one may have been elected, or be about to.
        let still = is_still(&self.shared.leadership.borrow(), leader);
        if !still || !self.is_leader_silent(silent) {
            return false;
        }
        let Leader {
            coordinator,
            address,
        } = leader;
        info!(%coordinator, %address, "the leader is gone");
        raft.trigger().elect().await.is_ok()
    }

    /// Whether nothing came of a leader for so long.
    fn is_leader_silent(&self, silent: Span) -> bool {
        let heard = *lock(&self.shared.heard);
        self.shared.clock.tick().since(heard) >= silent
    }
}

/// Whether nobody but this leader is known.
fn is_still(leadership: &Leadership, leader: &Leader) -> bool {
    match leadership {
        Leadership::Follows { leader: None } => true,
        Leadership::Follows {
            leader: Some(known),
        } => known == leader,
        Leadership::Leads { .. } | Leadership::Ended => false,
    }
}

/// Whether nobody listens where the leader was.
async fn is_gone(group: &Group, leader: &Leader) -> bool {
    let request = Forward {
        method: "GET".to_owned(),
        target: "/health/live".to_owned(),
        headers: Vec::new(),
        body: Bytes::new(),
    };
    let transport = &group.shared.transport;
    let answer = transport
        .forward(&leader.address, request, PROBE_DEADLINE)
        .await;
    matches!(answer, Err(CallError::Unreachable { refused: true, .. }))
}
