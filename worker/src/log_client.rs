//! How tasks reach partitions: directly where this worker leads, over the transport elsewhere.

use std::sync::Arc;

use bytes::Bytes;
use common::error::{ErrorCode, Problem};
use common::ids::{NodeId, TopicName, TopicPartition};
use common::limits::MAX_CALL_BYTES;
use common::log_batch::LogBatch;
use common::protocol::Call;
use common::protocol::fetch::{FetchBatches, FetchedBatches, ListOffsets, PartitionOffsets};
use common::protocol::metadata::TopicImage;
use common::protocol::produce::{Acks, Append, AppendedBatch, PartitionAppend};
use common::time::Span;
use common::transport::client::{CallError, Transport};

use crate::link::lease::Lease;
use crate::metadata_image::{ImageWatch, MetadataImage};
use crate::partition::messages::PartitionHandle;
use crate::partition::registry::Partitions;

/// An answer that takes longer is given up; its outcome is unknown.
const DEADLINE: Span = Span::from_secs(10);
/// A topic that this node has not heard of may have been created a moment ago.
const TOPIC_PATIENCE: Span = Span::from_millis(500);

/// What is asked right after a topic was created, or while a partition moves, waits this long until the
/// cluster's facts and the node that leads agree.
const PATIENCE: Span = Span::from_secs(3);
/// One that leads no more has answered by then, if it can.
const GIVE_UP_AFTER: Span = Span::from_millis(200);
/// How often somebody who waits for another node to hear of something asks again.
const ASK_AGAIN: Span = Span::from_millis(20);
/// What one call may bring, below what its receiver takes.
const MAX_APPEND_BYTES: usize = MAX_CALL_BYTES / 2;

#[derive(Clone, Debug)]
pub struct LogClient {
    image: ImageWatch,
    transport: Transport,
    local: Option<Local>,
}

/// Who this node is, its partitions, and whether it may say what is newest in them.
#[derive(Clone, Debug)]
struct Local {
    me: NodeId,
    partitions: Partitions,
    lease: Lease,
}

/// Why a partition was not reached or did not do what it was asked.
struct Failure {
    problem: Problem,
    /// It was certainly not done, or may be done twice, and may be once everybody has heard who leads.
    elsewhere: bool,
}

impl LogClient {
    pub fn new(image: ImageWatch, transport: Transport) -> LogClient {
        LogClient {
            image,
            transport,
            local: None,
        }
    }

    /// Reaches the partitions that this node leads directly.
    pub fn with_local(self, me: NodeId, partitions: Partitions, lease: Lease) -> LogClient {
        LogClient {
            local: Some(Local {
                me,
                partitions,
                lease,
            }),
            ..self
        }
    }

    /// The topic as this worker knows it now.
    pub fn topic(&self, name: &TopicName) -> Option<Arc<TopicImage>> {
        self.image.borrow().topic(name).cloned()
    }

    /// The newest facts, for those who wait for one.
    pub fn image(&self) -> ImageWatch {
        self.image.clone()
    }

    /// The topic, which may have been created a moment ago.
    pub async fn known_topic(&self, name: &TopicName) -> Option<Arc<TopicImage>> {
        let mut image = self.image.clone();
        let known = async {
            loop {
                let topic = image.borrow_and_update().topic(name).cloned();
                if topic.is_some() || image.changed().await.is_err() {
                    return topic;
                }
            }
        };
        let known = tokio::time::timeout(TOPIC_PATIENCE.as_duration(), known).await;
        known.ok().flatten()
    }

    /// Appends one record batch; answered once it is committed.
    pub async fn append(
        &self,
        partition: TopicPartition,
        batch: Bytes,
    ) -> Result<AppendedBatch, Problem> {
        let batch = LogBatch::parse(batch)
            .map_err(|error| Problem::new(ErrorCode::InvalidRecord, error.to_string()))?;
        let appended = self.append_all(partition, vec![batch], Acks::All).await?;
        appended.into_iter().next().ok_or_else(no_result)
    }

    /// Appends batches one after another. Their records must have been validated. An error may leave
    /// some of them appended.
    pub async fn append_all(
        &self,
        partition: TopicPartition,
        batches: Vec<LogBatch>,
        acks: Acks,
    ) -> Result<Vec<AppendedBatch>, Problem> {
        let mut appended = Vec::with_capacity(batches.len());
        let mut rest = batches.into_iter().peekable();
        while rest.peek().is_some() {
            let mut bytes = 0;
            let mut together = Vec::new();
            while let Some(batch) = rest.next_if(|batch| {
                together.is_empty() || bytes + batch.bytes().len() <= MAX_APPEND_BYTES
            }) {
                bytes += batch.bytes().len();
                together.push(batch);
            }
            let some = self
                .patiently(|| self.append_some(partition, together.clone(), acks))
                .await?;
            appended.extend(some);
        }
        Ok(appended)
    }

    /// Batches from an offset on; waits for some as long as the request says.
    pub async fn fetch(&self, request: FetchBatches) -> Result<FetchedBatches, Problem> {
        let deadline = Span(request.wait.0 + DEADLINE.0);
        self.patiently(|| async {
            match self.local(request.partition) {
                Some((partition, lease)) => {
                    let fetched = lease.fetch(&partition, &request).await;
                    fetched.map_err(Failure::asked)
                }
                None => self.call(request.partition, &request, deadline, true).await,
            }
        })
        .await
    }

    pub async fn offsets(&self, request: ListOffsets) -> Result<PartitionOffsets, Problem> {
        self.patiently(|| async {
            match self.local(request.partition) {
                Some((partition, lease)) => {
                    if request.newest {
                        lease.check().map_err(Failure::asked)?;
                    }
                    partition.offsets(request.at).await.map_err(Failure::asked)
                }
                None => self.call(request.partition, &request, DEADLINE, true).await,
            }
        })
        .await
    }

    async fn append_some(
        &self,
        partition: TopicPartition,
        batches: Vec<LogBatch>,
        acks: Acks,
    ) -> Result<Vec<AppendedBatch>, Failure> {
        if let Some((local, _)) = self.local(partition) {
            let appended = local.append_all(batches, acks, None).await;
            return appended.map_err(Failure::told);
        }
        let batches = batches
            .into_iter()
            .map(|batch| PartitionAppend {
                partition,
                leader_epoch: None,
                batch: batch.into_bytes(),
            })
            .collect();
        let request = Append { acks, batches };
        let reply = self.call(partition, &request, DEADLINE, false).await?;
        let results: Result<Vec<AppendedBatch>, Problem> = reply.results.into_iter().collect();
        results.map_err(Failure::told)
    }

    /// The partition, if this node leads it, and what it may say of it.
    fn local(&self, partition: TopicPartition) -> Option<(PartitionHandle, &Lease)> {
        let Local {
            me,
            partitions,
            lease,
        } = self.local.as_ref()?;
        let leads = |image: &MetadataImage| image.partition(partition)?.leader;
        if leads(&self.image.borrow()) != Some(*me) {
            return None;
        }
        Some((partitions.get(partition)?, lease))
    }

    /// `again`: who leads next may be asked the same, whatever this one has made of it.
    async fn call<C: Call>(
        &self,
        partition: TopicPartition,
        request: &C,
        deadline: Span,
        again: bool,
    ) -> Result<C::Reply, Failure> {
        let leader = self
            .image
            .borrow()
            .leader(partition)
            .map(|leader| leader.address.clone());
        let Some(address) = leader else {
            let detail = format!("partition {partition} has no live leader");
            let problem = Problem::new(ErrorCode::LeaderUnavailable, detail)
                .hint("It comes back with the worker that has its data.");
            return Err(Failure {
                problem,
                elsewhere: true,
            });
        };
        let reply = tokio::select! {
            reply = self.transport.call(&address, request, deadline) => reply,
            () = self.leads_no_more(partition, &address) => {
                let detail = format!(
                    "the leader of partition {partition} did not answer, and does not lead any more"
                );
                return Err(Failure {
                    problem: Problem::new(ErrorCode::LeaderUnavailable, detail),
                    elsewhere: again,
                });
            }
        };
        reply.map_err(|error| {
            let elsewhere = match error {
                CallError::Problem(problem) if again => return Failure::asked(*problem),
                CallError::Problem(problem) => return Failure::told(*problem),
                CallError::Unreachable { refused, .. } => refused || again,
                CallError::Timeout { .. } | CallError::BadReply { .. } => false,
            };
            Failure {
                problem: error.into_problem(ErrorCode::LeaderUnavailable),
                elsewhere,
            }
        })
    }

    /// Returns a while after the leader is not at this address any more.
    async fn leads_no_more(&self, partition: TopicPartition, address: &str) {
        let mut image = self.image.clone();
        let leads = |image: &MetadataImage| {
            let leader = image.leader(partition);
            leader.is_some_and(|leader| leader.address == address)
        };
        while leads(&image.borrow_and_update()) {
            if image.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
        tokio::time::sleep(GIVE_UP_AFTER.as_duration()).await;
    }

    /// Tries again while the cluster has yet to agree on who leads.
    async fn patiently<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, Problem> {
        // Not counting the first attempt: who did not answer may have taken all of that time.
        let mut give_up = None;
        let mut image = self.image.clone();
        loop {
            image.mark_unchanged();
            let failure = match attempt().await {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            let now = tokio::time::Instant::now();
            let give_up = *give_up.get_or_insert(now + PATIENCE.as_duration());
            if !failure.elsewhere || now >= give_up {
                return Err(failure.problem);
            }
            let again = tokio::time::sleep(ASK_AGAIN.as_duration());
            tokio::select! {
                () = again => {}
                changed = image.changed() => if changed.is_err() {
                    return Err(failure.problem);
                },
            }
        }
    }
}

impl Failure {
    /// What a partition itself has answered to what it was told to do.
    fn told(problem: Problem) -> Failure {
        Failure {
            elsewhere: problem.code == ErrorCode::NotLeader,
            problem,
        }
    }

    /// And to a question. One that has just begun to lead may have yet to learn the answer.
    fn asked(problem: Problem) -> Failure {
        let waits = problem.code == ErrorCode::LeaderUnavailable;
        Failure {
            elsewhere: waits || problem.code == ErrorCode::NotLeader,
            problem,
        }
    }
}

fn no_result() -> Problem {
    Problem::new(ErrorCode::Internal, "an append has no result")
}
