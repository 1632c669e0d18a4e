//! Reads a topic's committed records on from where it stopped, whichever node answers.

use std::time::Duration;

use anyhow::{Result, ensure};
use common::client::records::FetchedRecord;
use common::random::Random;

use super::nodes::{Nodes, PATIENCE};

const RECORDS: usize = 5_000;
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub struct TopicReader {
    topic: &'static str,
    /// By partition: what is read next.
    next: Vec<i64>,
}

impl TopicReader {
    pub fn new(topic: &'static str, partitions: u32) -> TopicReader {
        TopicReader {
            topic,
            next: vec![0; partitions as usize],
        }
    }

    /// By partition: where it goes on.
    pub fn next(&self) -> &[i64] {
        &self.next
    }

    /// Reads what a partition has now.
    pub async fn read_on(
        &mut self,
        nodes: &Nodes,
        random: &mut Random,
        partition: u32,
        each: &mut impl FnMut(FetchedRecord) -> Result<()>,
    ) -> Result<()> {
        while self
            .read_some(nodes, random, partition, i64::MAX, each)
            .await?
        {}
        Ok(())
    }

    /// Reads every partition up to these offsets, which are known to be readable.
    pub async fn read_up_to(
        &mut self,
        nodes: &Nodes,
        random: &mut Random,
        ends: &[i64],
        each: &mut impl FnMut(u32, FetchedRecord) -> Result<()>,
    ) -> Result<()> {
        for (partition, end) in (0..).zip(ends) {
            let mut each = |record| each(partition, record);
            let reading = async {
                while self.next[partition as usize] < *end {
                    let more = self.read_some(nodes, random, partition, *end, &mut each);
                    if !more.await? {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                Ok::<_, anyhow::Error>(())
            };
            let read = tokio::time::timeout(PATIENCE, reading).await;
            ensure!(
                read.is_ok(),
                "topic {}, partition {partition}: nothing can be read from {} to {end}",
                self.topic,
                self.next[partition as usize]
            );
            read??;
        }
        Ok(())
    }

    /// One fetch. False: there was nothing.
    async fn read_some(
        &mut self,
        nodes: &Nodes,
        random: &mut Random,
        partition: u32,
        end: i64,
        each: &mut impl FnMut(FetchedRecord) -> Result<()>,
    ) -> Result<bool> {
        let from = self.next[partition as usize];
        let topic = self.topic;
        let what = format!("reading {topic}, partition {partition}, from {from}");
        let fetched = nodes
            .ask(random, &what, async |client| {
                client.fetch(topic, partition, from, RECORDS, 0).await
            })
            .await?;
        ensure!(
            fetched.next_offset >= from,
            "{what}: sent back to {}",
            fetched.next_offset
        );
        let mut expected = from;
        for record in fetched.records {
            ensure!(
                record.offset >= expected,
                "{what}: the record at {} comes after that at {}",
                record.offset,
                expected - 1
            );
            expected = record.offset + 1;
            if record.offset < end {
                each(record)?;
            }
        }
        ensure!(
            expected <= fetched.next_offset,
            "{what}: a record is behind the next offset"
        );
        self.next[partition as usize] = fetched.next_offset.min(end);
        Ok(fetched.next_offset > from)
    }
}
