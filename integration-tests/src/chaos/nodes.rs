//! The cluster as a program sees it that knows all of its nodes: whoever answers will do.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use common::client::{Client, ClientError};
use common::random::{Random, below};

/// What nobody answers within this is a failure of the cluster, whatever was killed meanwhile.
pub const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(50);

/// Clients of all nodes. Of one thread, like them.
#[derive(Debug)]
pub struct Nodes {
    clients: Vec<Client>,
}

impl Nodes {
    pub fn new(addresses: &[String]) -> Result<Nodes> {
        let clients = addresses.iter().map(|address| Client::connect(address));
        Ok(Nodes {
            clients: clients.collect::<Result<_, _>>()?,
        })
    }

    /// Asks nodes, in a random order, until one answers; only what may pass is worth asking again.
    pub async fn ask<T>(
        &self,
        random: &mut Random,
        what: &str,
        question: impl AsyncFn(&Client) -> Result<T, ClientError>,
    ) -> Result<T> {
        let mut last = None;
        let asking = async {
            loop {
                match question(self.any(random)).await {
                    Ok(answer) => return Ok(answer),
                    Err(error) if may_pass(&error) => last = Some(error),
                    Err(error) => return Err(error).with_context(|| what.to_owned()),
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        if let Ok(answer) = tokio::time::timeout(PATIENCE, asking).await {
            return answer;
        }
        bail!("{what}: no answer within {PATIENCE:?}; the last refusal: {last:?}")
    }

    /// One question to one node.
    pub fn any(&self, random: &mut Random) -> &Client {
        let chosen = below(random, self.clients.len() as u64);
        &self.clients[usize::try_from(chosen).expect("there are few nodes")]
    }
}

/// Whether the same may succeed later, as it is when processes come and go.
pub fn may_pass(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } => true,
        ClientError::Refused(problem) | ClientError::Incomplete(problem) => {
            problem.code.is_retriable()
        }
        ClientError::Unexpected { .. } => false,
    }
}
