//! Rows into a topic of this cluster, exactly once unless asked for less.
//!
//! Every row becomes a record in the sink's format. Its partition follows from its key, as Kafka clients
//! choose it; rows without a key go to the task's own partition, so that they keep their order.

use std::sync::Arc;

use common::error::{ErrorCode, Problem};
use common::ids::{CheckpointId, PartitionId, TopicName, TopicPartition};
use common::limits::DEPLOY_TIMEOUT;
use common::partitioner::partition_of_key;
use common::plan::connector::{Delivery, Partitioner, TopicSink as Spec};
use common::plan::edge::ChangelogMode;
use common::plan::task_graph::PlannedSink;
use common::protocol::metadata::TopicImage;
use futures_util::future::{FutureExt, LocalBoxFuture};

use super::transactional_writer::TransactionalWriter;
use super::{Committable, Sink, SinkContext, SinkError};
use crate::format::{EncodedRecords, Encoder};
use crate::log_client::LogClient;
use crate::task::message::Rows;

#[derive(Debug)]
pub(super) struct TopicSink {
    topic: TopicName,
    log: LogClient,
    writer: TransactionalWriter,
    encoder: Encoder,
    records: EncodedRecords,
    partitioner: Partitioner,
    task_index: u32,
}

impl TopicSink {
    pub(super) async fn open(
        spec: &Spec,
        planned: &PlannedSink,
        context: &SinkContext,
    ) -> Result<TopicSink, Problem> {
        if spec.topic == context.job_name.dead_letters() {
            return Err(Problem::new(
                ErrorCode::InvalidGraph,
                format!("\"{}\" is where the job's dead letters go", spec.topic),
            )
            .hint("Choose another topic for the sink."));
        }
        topic(&context.log, &spec.topic).await?;
        let key = match &planned.mode {
            _ if !spec.key.is_empty() => &spec.key[..],
            ChangelogMode::Append => &[],
            ChangelogMode::Upsert { key } | ChangelogMode::Retract { key } => key,
        };
        Ok(TopicSink {
            topic: spec.topic.clone(),
            log: context.log.clone(),
            writer: match spec.delivery {
                Delivery::ExactlyOnce => context.exactly_once_writer(),
                Delivery::AtLeastOnce => {
                    TransactionalWriter::at_least_once(context.log.clone(), context.clock.clone())
                }
            },
            encoder: Encoder::new(spec.format, &planned.columns, key)?,
            records: EncodedRecords::default(),
            partitioner: spec.partitioner,
            task_index: context.task_index,
        })
    }

    async fn write_rows(&mut self, rows: Rows) -> Result<(), SinkError> {
        let Some(topic) = self.log.topic(&self.topic) else {
            return Err(SinkError::Fatal(format!(
                "the topic \"{}\" no longer exists",
                self.topic
            )));
        };
        self.records.clear();
        self.encoder.encode(&rows, &mut self.records)?;
        let partitions = partitions_of(&topic);
        let own = PartitionId(self.task_index % partitions);
        for record in self.records.iter() {
            let partition = match (self.partitioner, record.key) {
                (Partitioner::Key, Some(key)) => partition_of_key(key, partitions),
                (Partitioner::Key, None) | (Partitioner::Task, _) => own,
            };
            let partition = TopicPartition {
                topic: topic.id,
                partition,
            };
            self.writer.push(partition, record.key, record.value)?;
        }
        self.writer.send().await
    }
}

impl Sink for TopicSink {
    fn write(&mut self, rows: Rows) -> LocalBoxFuture<'_, Result<(), SinkError>> {
        self.write_rows(rows).boxed_local()
    }

    fn flush(&mut self) -> LocalBoxFuture<'_, Result<(), SinkError>> {
        self.writer.drain().boxed_local()
    }

    fn prepare(
        &mut self,
        checkpoint: CheckpointId,
    ) -> LocalBoxFuture<'_, Result<Option<Committable>, SinkError>> {
        // The partitions' leaders commit: what they need is in the batches.
        let prepared = async move { self.writer.prepare(checkpoint).await.map(|()| None) };
        prepared.boxed_local()
    }

    fn commit(
        &mut self,
        checkpoint: CheckpointId,
        _prepared: Vec<Committable>,
    ) -> LocalBoxFuture<'_, Result<(), SinkError>> {
        self.writer.completed(checkpoint);
        std::future::ready(Ok(())).boxed_local()
    }

    fn shown(&mut self) -> LocalBoxFuture<'_, ()> {
        self.writer.shown().boxed_local()
    }
}

pub(super) fn partitions_of(topic: &TopicImage) -> u32 {
    u32::try_from(topic.partitions.len())
        .expect("a topic has at most 10,000 partitions")
        .max(1)
}

/// The topic, once this worker has heard of it: it may have been created a moment ago.
pub(super) async fn topic(log: &LogClient, name: &TopicName) -> Result<Arc<TopicImage>, Problem> {
    let unknown = || {
        Problem::new(
            ErrorCode::UnknownTopic,
            format!("the topic \"{name}\" does not exist"),
        )
    };
    let mut image = log.image();
    let known = image.wait_for(|image| image.topic(name).is_some());
    match tokio::time::timeout(DEPLOY_TIMEOUT.as_duration(), known).await {
        Ok(Ok(image)) => image.topic(name).cloned().ok_or_else(unknown),
        Ok(Err(_)) => Err(Problem::new(
            ErrorCode::ShuttingDown,
            "the node is stopping",
        )),
        Err(_) => Err(unknown()),
    }
}
