//! How a group comes to be, out of what its members were started with.
//!
//! Three coordinators with empty directories and the same `--peers` become a group without anybody's help:
//! the first of the list names the cluster, takes the others in, and forms the group once all of them have
//! agreed. Whoever is not in the list waits to be added to a group that there is. A directory that belongs
//! to a cluster decides alone: it never begins anew, whatever the options say.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::{info, warn};

use common::data_dir::{DataDir, DataDirError, Identity};
use common::error::{ErrorCode, Problem};
use common::ids::CoordinatorId;
use common::protocol::coordinator::{JoinGroup, JoinedGroup};
use common::time::Span;

use super::group::{Group, lock};
use super::records::Belongs;
use super::types::Member;

const CALL_DEADLINE: Span = Span::from_secs(3);
const RETRY_AFTER: Span = Span::from_millis(250);

/// What a coordinator does whose directory belongs to nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// It begins a cluster of its own.
    Alone,
    /// It forms the group of its peers.
    Founds,
    /// Somebody takes it into a group.
    Waits,
}

/// What follows from its own address and the addresses it was started with.
pub fn beginning(address: &str, peers: &[String]) -> Beginning {
    match peers.iter().position(|peer| peer == address) {
        _ if peers.is_empty() => Beginning::Alone,
        Some(0) if peers.len() == 1 => Beginning::Alone,
        Some(0) => Beginning::Founds,
        Some(_) | None => Beginning::Waits,
    }
}

/// The members of the group that these addresses form: numbered as they are listed.
fn members_of(peers: &[String]) -> BTreeMap<CoordinatorId, Member> {
    let numbers = (1..).map(CoordinatorId);
    let members = peers.iter().map(|address| Member {
        address: address.clone(),
    });
    numbers.zip(members).collect()
}

impl Group {
    /// Takes the peers in and forms the group with them. Goes on until they all have agreed.
    pub(crate) async fn found(&self, me: Belongs, peers: &[String]) {
        let members = members_of(peers);
        for (coordinator, member) in &members {
            if *coordinator == me.coordinator {
                continue;
            }
            let request = JoinGroup {
                cluster: me.cluster,
                coordinator: *coordinator,
                peers: peers.to_vec(),
            };
            let mut told = String::new();
            loop {
                let transport = &self.shared.transport;
                let answer = transport
                    .call(&member.address, &request, CALL_DEADLINE)
                    .await;
                let Err(error) = answer else {
                    info!(address = %member.address, %coordinator, "a peer has agreed");
                    break;
                };
                let obstacle = error.to_string();
                if obstacle != told {
                    warn!(%error, "the group cannot be formed yet; trying on");
                }
                *lock(&self.shared.obstacle) = Some(obstacle.clone());
                told = obstacle;
                tokio::time::sleep(RETRY_AFTER.as_duration()).await;
            }
        }
        *lock(&self.shared.obstacle) = None;
        if let Err(problem) = self.form(members).await {
            warn!(%problem, "the group was not formed");
        }
    }

    /// Why the group that this member founds is not there yet.
    pub fn obstacle(&self) -> Option<String> {
        lock(&self.shared.obstacle).clone()
    }

    /// Somebody takes this coordinator into a group. `peers`: what it was started with itself.
    pub(crate) async fn join(
        &self,
        request: JoinGroup,
        peers: &[String],
    ) -> Result<JoinedGroup, Problem> {
        let asked = Belongs {
            cluster: request.cluster,
            coordinator: request.coordinator,
        };
        match self.belongs() {
            Some(me) if me == asked => {}
            Some(me) if me.cluster == asked.cluster => {
                return Err(Problem::new(
                    ErrorCode::Conflict,
                    format!(
                        "this is coordinator {} of the cluster, not {}",
                        me.coordinator, asked.coordinator
                    ),
                )
                .hint("Start it with an empty data directory: numbers are not given twice."));
            }
            Some(me) => {
                return Err(Problem::new(
                    ErrorCode::WrongCluster,
                    format!(
                        "this coordinator belongs to cluster {} already, not to {}",
                        me.cluster, asked.cluster
                    ),
                )
                .hint("Only a coordinator with an empty data directory can join a cluster."));
            }
            None if !request.peers.is_empty() && request.peers != peers => {
                return Err(Problem::new(
                    ErrorCode::Conflict,
                    format!(
                        "this coordinator was started with --peers \"{}\", the first of the group with \"{}\"",
                        peers.join(","),
                        request.peers.join(",")
                    ),
                )
                .hint("Start all of them with the same --peers."));
            }
            None => {
                info!(cluster = %asked.cluster, coordinator = %asked.coordinator, "joining a group")
            }
        }
        self.begin(asked).await?;
        let group = self.clone();
        let keeping = self
            .shared
            .runtime
            .spawn_blocking(move || keep_identity(&group.shared.data_dir, asked));
        let kept = keeping.await.map_err(|_| super::group::ended())?;
        kept.map_err(|error| Problem::new(ErrorCode::Internal, error.to_string()))?;
        Ok(JoinedGroup {
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }
}

/// Notes in the directory whose it is. Not before the log says so: a directory that is somebody's has
/// metadata. Blocks.
pub(crate) fn keep_identity(data_dir: &Arc<DataDir>, me: Belongs) -> Result<(), DataDirError> {
    let identity = data_dir.identity()?;
    let ours = Identity {
        cluster: Some(me.cluster),
        coordinator: Some(me.coordinator),
        ..identity
    };
    if identity == ours {
        return Ok(());
    }
    data_dir.keep_identity(&ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_peer_founds_and_who_is_not_in_the_list_waits() {
        let list = |peers: &[&str]| {
            peers
                .iter()
                .map(|peer| (*peer).to_owned())
                .collect::<Vec<_>>()
        };
        for (address, peers, expected) in [
            ("a", &[][..], Beginning::Alone),
            ("a", &["a"], Beginning::Alone),
            ("a", &["a", "b", "c"], Beginning::Founds),
            ("b", &["a", "b", "c"], Beginning::Waits),
            ("d", &["a"], Beginning::Waits),
            ("d", &["a", "b", "c"], Beginning::Waits),
        ] {
            assert_eq!(
                beginning(address, &list(peers)),
                expected,
                "{address} {peers:?}"
            );
        }
    }
}
