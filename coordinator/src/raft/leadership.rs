//! Who leads, as this member knows it.
//!
//! A leader that a majority no longer answers does not know whether it still leads: it counts as one that
//! does not, so that it promises nothing. Nothing depends on it but how soon somebody is told.

use openraft::{RaftMetrics, ServerState};
use tokio::sync::watch;
use tracing::{error, info};

use common::ids::CoordinatorId;
use common::time::Span;

use super::Raft;
use super::types::{ELECTION_MS_MAX, LEASE_MS, Member};

/// A majority that has not answered for so long may have elected another leader.
const QUORUM_SILENT_MS_MAX: u64 = LEASE_MS + ELECTION_MS_MAX;
/// How often it is looked at when nothing happens.
const LOOK_EVERY: Span = Span::from_millis(250);

/// This member's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leadership {
    Leads {
        term: u64,
    },
    /// `None`: nobody is known to lead.
    Follows {
        leader: Option<Leader>,
    },
    /// Its log has failed or was stopped.
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    pub coordinator: CoordinatorId,
    pub address: String,
}

/// Keeps `leadership` up to date until Raft ends; says whether it ended by a failure.
pub(super) async fn watch_leadership(raft: Raft, leadership: &watch::Sender<Leadership>) -> bool {
    let mut metrics = raft.metrics();
    loop {
        let now = metrics.borrow_and_update().clone();
        if let Err(fatal) = &now.running_state {
            let stopped = matches!(fatal, openraft::error::Fatal::Stopped);
            if !stopped {
                error!(error = %fatal, "the metadata log failed: nothing more can be decided");
            }
            leadership.send_replace(Leadership::Ended);
            return !stopped;
        }
        let seen = leadership_of(&now);
        leadership.send_if_modified(|said| {
            let changed = *said != seen;
            if changed {
                info!(leadership = ?seen, term = now.current_term, "leadership has changed");
                *said = seen;
            }
            changed
        });
        let changed = tokio::time::timeout(LOOK_EVERY.as_duration(), metrics.changed()).await;
        if matches!(changed, Ok(Err(_))) {
            // Raft says how it ended before it is gone; without a word it was dropped.
            leadership.send_replace(Leadership::Ended);
            return metrics.borrow().running_state.is_err();
        }
    }
}

fn leadership_of(metrics: &RaftMetrics<CoordinatorId, Member>) -> Leadership {
    let membership = metrics.membership_config.membership();
    let me = metrics.id;
    if metrics.state == ServerState::Leader && metrics.current_leader == Some(me) {
        let alone = membership.voter_ids().all(|voter| voter == me);
        let silent = metrics.millis_since_quorum_ack;
        if alone || silent.is_some_and(|silent| silent <= QUORUM_SILENT_MS_MAX) {
            return Leadership::Leads {
                term: metrics.current_term,
            };
        }
        return Leadership::Follows { leader: None };
    }
    let leader = metrics.current_leader.filter(|leader| *leader != me);
    let leader = leader.and_then(|coordinator| {
        let address = membership.get_node(&coordinator)?.address.clone();
        Some(Leader {
            coordinator,
            address,
        })
    });
    Leadership::Follows { leader }
}
