//! Who is in the group: members join one at a time, and vote when that makes their number odd.
//!
//! Two voters are worse than one, because both are needed: so the first coordinator that joins a single one
//! only listens, and with the second both begin to vote. In a group of three, one that joins listens until it
//! takes the place of one that is removed.

use std::collections::{BTreeMap, BTreeSet};

use openraft::ChangeMembers;
use tracing::{info, warn};

use common::error::{ErrorCode, Problem};
use common::ids::CoordinatorId;
use common::protocol::coordinator::JoinGroup;
use common::time::Span;
use common::transport::client::CallError;

use super::Raft;
use super::group::{Group, ended};
use super::types::{Member, Membership};

/// A group has so many voters at most.
const MAX_VOTERS: usize = 3;
const CALL_DEADLINE: Span = Span::from_secs(5);
/// A new member has so long to get all that the group knows.
const CATCH_UP_WITHIN: Span = Span::from_secs(60);

/// The members, each with where it is.
pub type Members = BTreeMap<CoordinatorId, Member>;

/// A member as people want to see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    pub coordinator: CoordinatorId,
    pub address: String,
    /// It votes; otherwise it listens.
    pub votes: bool,
    pub leads: bool,
}

/// The group as this member sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    pub me: Option<CoordinatorId>,
    pub term: u64,
    pub members: Vec<MemberStatus>,
}

impl GroupStatus {
    /// Where the members are, the one that leads first.
    pub fn addresses(&self) -> Vec<String> {
        let mut members: Vec<&MemberStatus> = self.members.iter().collect();
        members.sort_by_key(|member| !member.leads);
        let addresses = members.into_iter().map(|member| member.address.clone());
        addresses.filter(|address| !address.is_empty()).collect()
    }
}

impl Group {
    pub fn status(&self) -> GroupStatus {
        let me = self.belongs().map(|me| me.coordinator);
        let Ok(raft) = self.raft() else {
            return GroupStatus {
                me,
                term: 0,
                members: Vec::new(),
            };
        };
        let metrics = raft.metrics().borrow().clone();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<CoordinatorId> = membership.voter_ids().collect();
        let members = membership.nodes().map(|(coordinator, node)| MemberStatus {
            coordinator: *coordinator,
            address: node.address.clone(),
            votes: voters.contains(coordinator),
            leads: metrics.current_leader == Some(*coordinator),
        });
        GroupStatus {
            me,
            term: metrics.current_term,
            members: members.collect(),
        }
    }

    /// The members as the log has them; none if there is no group yet.
    pub async fn members(&self) -> Result<Members, Problem> {
        let raft = self.raft()?;
        let members = raft.with_raft_state(|state| {
            let membership = state.membership_state.effective().membership();
            membership
                .nodes()
                .map(|(id, member)| (*id, member.clone()))
                .collect()
        });
        members.await.map_err(|_| ended())
    }

    /// Takes the coordinator at this address into the group. Only the leader can. Returns once it has all
    /// that the group knows.
    pub async fn add(&self, address: String) -> Result<CoordinatorId, Problem> {
        let group = self.clone();
        let added = async move {
            let _one_at_a_time = group.shared.changing.lock().await;
            group.add_alone(address).await
        };
        self.undisturbed(added).await
    }

    async fn add_alone(&self, address: String) -> Result<CoordinatorId, Problem> {
        let raft = self.raft()?;
        let me = self.belongs().ok_or_else(ended)?;
        let membership = membership(&raft);
        let mine = membership
            .get_node(&me.coordinator)
            .map(|node| node.address.as_str());
        if mine.is_none_or(str::is_empty) {
            return Err(Problem::new(
                ErrorCode::CoordinatorUnavailable,
                "this coordinator does not know its own address yet",
            )
            .hint("Try again in a moment."));
        }
        let known = membership.nodes().find(|(_, node)| node.address == address);
        let joining = known.map(|(id, _)| *id);
        let coordinator = joining.unwrap_or_else(|| {
            self.shared
                .view
                .read(|metadata| metadata.next_coordinator())
        });
        let request = JoinGroup {
            cluster: me.cluster,
            coordinator,
            peers: Vec::new(),
        };
        let invited = self
            .shared
            .transport
            .call(&address, &request, CALL_DEADLINE)
            .await;
        invited.map_err(|error| refused(&address, error))?;
        info!(%coordinator, %address, "a coordinator joins");
        let caught_up = raft.add_learner(
            coordinator,
            Member {
                address: address.clone(),
            },
            true,
        );
        let caught_up = tokio::time::timeout(CATCH_UP_WITHIN.as_duration(), caught_up).await;
        match caught_up {
            Ok(added) => drop(added.map_err(|error| not_changed(&error))?),
            Err(_) => {
                return Err(Problem::new(
                    ErrorCode::Timeout,
                    format!(
                        "coordinator {coordinator} at {address} is in the group and has not caught up within \
                         {CATCH_UP_WITHIN}"
                    ),
                )
                .hint("Repeat the request once it can be reached; GET /v1/cluster shows it."));
            }
        }
        let voters = voters_with_those_who_listen(&self::membership(&raft));
        self.vote_by(&raft, voters).await?;
        Ok(coordinator)
    }

    /// Removes a coordinator from the group; one that listens takes its place. Only the leader can.
    pub async fn remove(&self, coordinator: CoordinatorId) -> Result<(), Problem> {
        let group = self.clone();
        let removed = async move {
            let _one_at_a_time = group.shared.changing.lock().await;
            group.remove_alone(coordinator).await
        };
        self.undisturbed(removed).await
    }

    async fn remove_alone(&self, coordinator: CoordinatorId) -> Result<(), Problem> {
        let raft = self.raft()?;
        let membership = membership(&raft);
        let voters = voters_without(&membership, coordinator)?;
        self.vote_by(&raft, voters).await?;
        let still_there = self::membership(&raft).get_node(&coordinator).is_some();
        if still_there {
            let removed = ChangeMembers::RemoveNodes([coordinator].into());
            let removed = raft.change_membership(removed, false).await;
            removed.map_err(|error| not_changed(&error))?;
        }
        info!(%coordinator, "a coordinator was removed");
        Ok(())
    }

    /// What a new leader finds half done: a change of the members that the last one could not end, and its own
    /// address, because one that is alone may be started anywhere.
    pub async fn settle(&self, address: &str) {
        let (Ok(raft), Some(me)) = (self.raft(), self.belongs()) else {
            return;
        };
        let _one_at_a_time = self.shared.changing.lock().await;
        let before = membership(&raft);
        if let (true, Some(wanted)) = (
            before.get_joint_config().len() > 1,
            before.get_joint_config().last().cloned(),
        ) && let Err(error) = raft.change_membership(wanted, false).await
        {
            warn!(%error, "a change of the group is still half done");
        }
        let told = membership(&raft).get_node(&me.coordinator).cloned();
        if told.is_none_or(|member| member.address == address) {
            return;
        }
        let member = Member {
            address: address.to_owned(),
        };
        let nodes = ChangeMembers::SetNodes(BTreeMap::from([(me.coordinator, member)]));
        if let Err(error) = raft.change_membership(nodes, true).await {
            warn!(%error, "the group does not know this coordinator's new address yet");
        }
    }

    async fn vote_by(&self, raft: &Raft, voters: BTreeSet<CoordinatorId>) -> Result<(), Problem> {
        if membership(raft).voter_ids().collect::<BTreeSet<_>>() == voters {
            return Ok(());
        }
        let changed = raft.change_membership(voters, false).await;
        changed.map(drop).map_err(|error| not_changed(&error))
    }

    /// Runs to its end even if nobody waits for it any more: a change that stops half way needs a second one.
    async fn undisturbed<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Problem>> + Send + 'static,
    ) -> Result<T, Problem> {
        let done = self.shared.runtime.spawn(work).await;
        done.unwrap_or_else(|_| Err(ended()))
    }
}

fn membership(raft: &Raft) -> Membership {
    let metrics = raft.metrics();
    metrics.borrow().membership_config.membership().clone()
}

/// The voters, if those who listen can vote too without their number becoming even or too large.
fn voters_with_those_who_listen(membership: &Membership) -> BTreeSet<CoordinatorId> {
    let voters: BTreeSet<CoordinatorId> = membership.voter_ids().collect();
    let all: BTreeSet<CoordinatorId> = membership.nodes().map(|(id, _)| *id).collect();
    if !all.len().is_multiple_of(2) && all.len() <= MAX_VOTERS {
        all
    } else {
        voters
    }
}

/// The voters once this one is gone.
fn voters_without(
    membership: &Membership,
    coordinator: CoordinatorId,
) -> Result<BTreeSet<CoordinatorId>, Problem> {
    let mut voters: BTreeSet<CoordinatorId> = membership.voter_ids().collect();
    let mut listeners = membership.learner_ids().collect::<BTreeSet<_>>();
    if listeners.remove(&coordinator) {
        return Ok(voters);
    }
    if !voters.contains(&coordinator) {
        let detail = format!("there is no coordinator {coordinator}");
        return Err(Problem::new(ErrorCode::UnknownCoordinator, detail)
            .hint("GET /v1/cluster shows the coordinators there are."));
    }
    if voters.len() == 1 && listeners.is_empty() {
        let detail = format!("coordinator {coordinator} is the only one");
        return Err(Problem::new(ErrorCode::Conflict, detail)
            .hint("Add another one first: POST /v1/coordinators."));
    }
    voters.remove(&coordinator);
    // Who joined first takes the place.
    voters.extend(listeners.pop_first());
    if voters.len().is_multiple_of(2) {
        let detail = format!(
            "without coordinator {coordinator} there would be {} coordinators that vote, which all are needed \
             for a majority",
            voters.len()
        );
        return Err(Problem::new(ErrorCode::Conflict, detail)
            .hint("Add the one that takes its place first: POST /v1/coordinators."));
    }
    Ok(voters)
}

fn refused(address: &str, error: CallError) -> Problem {
    match error {
        CallError::Problem(problem) => *problem,
        CallError::Unreachable { .. } | CallError::Timeout { .. } | CallError::BadReply { .. } => {
            Problem::new(ErrorCode::CoordinatorUnavailable, error.to_string()).hint(format!(
                "Start a coordinator with --advertise {address} and --peers with the address of one of this \
                 cluster's."
            ))
        }
    }
}

fn not_changed(error: &impl std::fmt::Display) -> Problem {
    let detail = format!("the group was not changed: {error}");
    Problem::new(ErrorCode::CoordinatorUnavailable, detail)
        .hint("GET /v1/cluster shows the group as it is; repeat the request.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(voters: &[u64], listeners: &[u64]) -> Membership {
        let ids = |ids: &[u64]| {
            ids.iter()
                .copied()
                .map(CoordinatorId)
                .collect::<BTreeSet<_>>()
        };
        let nodes: BTreeMap<_, _> = ids(voters)
            .union(&ids(listeners))
            .map(|id| (*id, Member::default()))
            .collect();
        Membership::new(vec![ids(voters)], nodes)
    }

    fn numbers(voters: BTreeSet<CoordinatorId>) -> Vec<u64> {
        voters.into_iter().map(|id| id.0).collect()
    }

    #[test]
    fn who_listens_votes_once_that_makes_an_odd_number() {
        for (voters, listeners, expected) in [
            (&[1][..], &[][..], &[1][..]),
            (&[1], &[2], &[1]),
            (&[1], &[2, 3], &[1, 2, 3]),
            (&[1, 2, 3], &[4], &[1, 2, 3]),
            (&[1, 2, 3], &[4, 5], &[1, 2, 3]),
        ] {
            let after = voters_with_those_who_listen(&group(voters, listeners));
            assert_eq!(numbers(after), expected, "{voters:?} {listeners:?}");
        }
    }

    #[test]
    fn nobody_is_removed_whose_place_nobody_takes() {
        for (voters, listeners, gone, expected) in [
            (&[1, 2, 3][..], &[4][..], 2, Ok(&[1, 3, 4][..])),
            (&[1, 2, 3], &[4], 4, Ok(&[1, 2, 3])),
            (&[1], &[2], 2, Ok(&[1])),
            (&[1], &[2], 1, Ok(&[2])),
            (&[1], &[], 1, Err(ErrorCode::Conflict)),
            (&[1, 2, 3], &[], 3, Err(ErrorCode::Conflict)),
            (&[1, 2, 3], &[], 9, Err(ErrorCode::UnknownCoordinator)),
        ] {
            let after = voters_without(&group(voters, listeners), CoordinatorId(gone));
            let after = after.map(numbers).map_err(|problem| problem.code);
            let expected = expected.map(<[u64]>::to_vec);
            assert_eq!(after, expected, "{voters:?} {listeners:?} without {gone}");
        }
    }
}
