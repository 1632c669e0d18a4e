//! Reads what is committed as it comes out, while processes are killed, and remembers what it was.
//!
//! What was once read as committed must be the same for ever: at the end the topics are read again from
//! their beginnings, and up to where the follower had come they must say what they said then.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use common::client::records::FetchedRecord;
use common::random::seeded;

use super::jobs::{OUTPUT_PARTITIONS, OUTPUTS};
use super::nodes::Nodes;
use super::progress::Progress;
use super::reader::TopicReader;

const PAUSE: Duration = Duration::from_millis(50);

/// What was read of one partition.
#[derive(Clone, Debug, Default)]
pub struct Followed {
    pub next_offset: i64,
    pub records: u64,
    hasher: DefaultHasher,
}

impl Followed {
    pub fn add(&mut self, record: &FetchedRecord) {
        self.records += 1;
        self.next_offset = record.offset + 1;
        record.offset.hash(&mut self.hasher);
        for part in [&record.key, &record.value] {
            let text = part.as_ref().map(ToString::to_string);
            text.hash(&mut self.hasher);
        }
    }

    pub fn digest(&self) -> u64 {
        self.hasher.finish()
    }
}

/// By output topic and partition.
pub type FollowedOutputs = Vec<Vec<Followed>>;

/// Reads until the run is over. Blocks.
pub fn follow(
    seed: u64,
    addresses: &[String],
    progress: &Arc<Progress>,
) -> Result<FollowedOutputs> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let nodes = Nodes::new(addresses)?;
        let mut random = seeded(seed, 2_000);
        let mut readers = OUTPUTS.map(|topic| TopicReader::new(topic, OUTPUT_PARTITIONS));
        let partitions = OUTPUT_PARTITIONS as usize;
        let mut followed = vec![vec![Followed::default(); partitions]; OUTPUTS.len()];
        while !progress.is_over() {
            for (reader, followed) in readers.iter_mut().zip(&mut followed) {
                for (partition, followed) in (0..).zip(followed) {
                    let before = followed.records;
                    let mut add = |record: FetchedRecord| {
                        followed.add(&record);
                        Ok(())
                    };
                    reader
                        .read_on(&nodes, &mut random, partition, &mut add)
                        .await?;
                    progress.came_out(followed.records - before);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(followed)
    })
}
