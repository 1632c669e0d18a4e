//! Raft's messages over our own transport, and what arrives of them.
//!
//! Members are told apart by number, not by address: a process that was started in the place of another one
//! refuses what is not for it.

use std::time::Duration;

use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{RaftNetwork, RaftNetworkFactory};
use serde::Serialize;
use serde::de::DeserializeOwned;

use bytes::Bytes;
use common::error::{ErrorCode, Problem};
use common::ids::CoordinatorId;
use common::protocol::Call;
use common::protocol::coordinator::{Envelope, RaftAppend, RaftReply, RaftSnapshot, RaftVote};
use common::time::Span;
use common::transport::client::{CallError, Transport};
use common::transport::msgpack;

use super::records::Belongs;
use super::types::{HEARTBEAT_MS, Member, TypeConfig};

/// A member that could not be reached is tried again after this.
const RETRY_AFTER: Duration = Duration::from_millis(HEARTBEAT_MS);

type RpcError<E> = RPCError<CoordinatorId, Member, RaftError<CoordinatorId, E>>;
type NoError = openraft::error::Infallible;

/// Makes the ways to the other members.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    transport: Transport,
    me: Belongs,
}

/// The way to one member.
#[derive(Debug)]
pub(crate) struct Peer {
    transport: Transport,
    envelope: Envelope,
    address: String,
}

impl Network {
    pub(crate) fn new(transport: Transport, me: Belongs) -> Network {
        Network { transport, me }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: CoordinatorId, node: &Member) -> Peer {
        Peer {
            transport: self.transport.clone(),
            envelope: Envelope {
                cluster: self.me.cluster,
                from: self.me.coordinator,
                to: target,
            },
            address: node.address.clone(),
        }
    }
}

impl Peer {
    async fn call<C, R, E>(&self, request: &C, option: &RPCOption) -> Result<R, RpcError<E>>
    where
        C: Call<Reply = RaftReply>,
        R: DeserializeOwned,
        E: std::error::Error,
    {
        let milliseconds = option.hard_ttl().as_millis();
        let deadline = Span(u64::try_from(milliseconds).unwrap_or(u64::MAX));
        let reply = self.transport.call(&self.address, request, deadline).await;
        match reply {
            Ok(reply) => msgpack::decode(&reply.body)
                .map_err(|error| RPCError::Network(NetworkError::new(&error))),
            // Somebody is there and does not do it: it is asked again, but not at once.
            Err(error @ (CallError::Unreachable { .. } | CallError::Problem(_))) => {
                Err(RPCError::Unreachable(Unreachable::new(&error)))
            }
            Err(error @ (CallError::Timeout { .. } | CallError::BadReply { .. })) => {
                Err(RPCError::Network(NetworkError::new(&error)))
            }
        }
    }
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<CoordinatorId>, RpcError<NoError>> {
        let request = RaftAppend {
            envelope: self.envelope,
            body: written(&rpc),
        };
        self.call(&request, &option).await
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<CoordinatorId>, RpcError<InstallSnapshotError>> {
        let request = RaftSnapshot {
            envelope: self.envelope,
            body: written(&rpc),
        };
        // A receiver that has lost its place says so, and the sender begins again.
        let answer: Result<InstallSnapshotResponse<CoordinatorId>, InstallSnapshotError> =
            self.call(&request, &option).await?;
        answer.map_err(|error| {
            let remote = RaftError::APIError(error);
            RPCError::RemoteError(openraft::error::RemoteError::new(self.envelope.to, remote))
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<CoordinatorId>,
        option: RPCOption,
    ) -> Result<VoteResponse<CoordinatorId>, RpcError<NoError>> {
        let request = RaftVote {
            envelope: self.envelope,
            body: written(&rpc),
        };
        self.call(&request, &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY_AFTER))
    }
}

/// Refuses what is not for this member of this cluster.
pub(super) fn is_for(me: Option<Belongs>, envelope: &Envelope) -> Result<(), Problem> {
    let Some(me) = me else {
        return Err(Problem::new(
            ErrorCode::CoordinatorUnavailable,
            "this coordinator belongs to no cluster yet",
        ));
    };
    if envelope.cluster != me.cluster {
        return Err(Problem::new(
            ErrorCode::WrongCluster,
            format!(
                "this is a coordinator of cluster {}, not of {}",
                me.cluster, envelope.cluster
            ),
        ));
    }
    if envelope.to != me.coordinator {
        return Err(Problem::new(
            ErrorCode::Conflict,
            format!(
                "this is coordinator {}, not coordinator {}",
                me.coordinator, envelope.to
            ),
        )
        .hint("One of the two was started with the other's data directory or address."));
    }
    Ok(())
}

/// What another member's Raft says.
pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    msgpack::decode(body).map_err(|error| {
        let detail = format!("a message of another coordinator {error}");
        Problem::new(ErrorCode::InvalidRequest, detail)
    })
}

pub(super) fn replied<T: Serialize>(reply: &T) -> RaftReply {
    RaftReply {
        body: written(reply),
    }
}

fn written<T: Serialize>(message: &T) -> Bytes {
    msgpack::encode(message).expect("Raft's messages are plain data")
}
