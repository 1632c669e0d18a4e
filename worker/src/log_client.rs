//! How tasks reach partitions: directly where this worker leads, over the transport elsewhere.

use bytes::Bytes;
use common::error::{ErrorCode, Problem};
use common::ids::{TopicName, TopicPartition};
use common::log_batch::LogBatch;
use common::protocol::Call;
use common::protocol::fetch::{FetchBatches, FetchedBatches, ListOffsets, PartitionOffsets};
use common::protocol::metadata::TopicImage;
use common::protocol::produce::{Acks, Append, AppendedBatch, PartitionAppend};
use common::time::Span;
use common::transport::client::Transport;
use std::sync::Arc;

use crate::metadata_image::ImageWatch;
use crate::partition::actor::PartitionHandle;
use crate::partition::registry::Partitions;

/// An answer that takes longer is given up; its outcome is unknown.
const DEADLINE: Span = Span::from_secs(10);

#[derive(Clone, Debug)]
pub struct LogClient {
    image: ImageWatch,
    transport: Transport,
    /// The partitions of this worker; `None` where there are none.
    local: Option<Partitions>,
}

impl LogClient {
    pub fn new(image: ImageWatch, transport: Transport) -> LogClient {
        LogClient {
            image,
            transport,
            local: None,
        }
    }

    /// Goes to these partitions directly where this worker leads them.
    pub fn with_local(self, partitions: Partitions) -> LogClient {
        LogClient {
            local: Some(partitions),
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

    /// Appends one record batch; answered once it is committed.
    pub async fn append(
        &self,
        partition: TopicPartition,
        batch: Bytes,
    ) -> Result<AppendedBatch, Problem> {
        if let Some(local) = self.local(partition) {
            return local.append(LogBatch::parse(batch)?, Acks::All, None).await;
        }
        let batches = vec![PartitionAppend {
            partition,
            leader_epoch: None,
            batch,
        }];
        let request = Append {
            acks: Acks::All,
            batches,
        };
        let reply = self.call(partition, &request, DEADLINE).await?;
        let internal = || Problem::new(ErrorCode::Internal, "an append has no result");
        reply.results.into_iter().next().ok_or_else(internal)?
    }

    /// Batches from an offset on; waits for some as long as the request says.
    pub async fn fetch(&self, request: FetchBatches) -> Result<FetchedBatches, Problem> {
        if let Some(local) = self.local(request.partition) {
            return local.fetch(&request).await;
        }
        let deadline = Span(request.wait.0 + DEADLINE.0);
        self.call(request.partition, &request, deadline).await
    }

    pub async fn offsets(&self, request: ListOffsets) -> Result<PartitionOffsets, Problem> {
        if let Some(local) = self.local(request.partition) {
            return local.offsets(request.at).await;
        }
        self.call(request.partition, &request, DEADLINE).await
    }

    fn local(&self, partition: TopicPartition) -> Option<PartitionHandle> {
        self.local.as_ref()?.get(partition)
    }

    async fn call<C: Call>(
        &self,
        partition: TopicPartition,
        request: &C,
        deadline: Span,
    ) -> Result<C::Reply, Problem> {
        let leader = self
            .image
            .borrow()
            .leader(partition)
            .map(|leader| leader.address.clone());
        let Some(address) = leader else {
            let detail = format!("partition {partition} has no live leader");
            return Err(Problem::new(ErrorCode::LeaderUnavailable, detail)
                .hint("It comes back with the worker that has its data."));
        };
        let reply = self.transport.call(&address, request, deadline).await;
        reply.map_err(|error| error.into_problem(ErrorCode::LeaderUnavailable))
    }
}
