//! Idempotent producers: each sends its batches one after another, each until it is acknowledged.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use common::client::records::{Produced, ProducedPartition};
use common::random::seeded;
use tokio::task::LocalSet;

use super::jobs::EVENTS;
use super::nodes::Nodes;
use super::progress::Progress;
use super::stream::{AHEAD, BATCH, batch};

pub const PRODUCERS: u32 = 4;
const LOOK: Duration = Duration::from_millis(5);

/// An acknowledged batch, and where its events are.
#[derive(Clone, Debug)]
pub struct Acknowledged {
    pub producer: i64,
    pub batch: u64,
    pub partitions: Vec<ProducedPartition>,
}

/// What was acknowledged.
#[derive(Debug, Default)]
pub struct Sent {
    /// By producer: the batches it has sent, all acknowledged.
    pub batches: Vec<u64>,
    pub acknowledged: Vec<Acknowledged>,
    /// Batches that were acknowledged only when they were sent again.
    pub repeated: u64,
}

/// Sends until the input shall end. Blocks.
pub fn produce(
    seed: u64,
    events_per_second: u64,
    addresses: &[String],
    progress: &Arc<Progress>,
) -> Result<Sent> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let shared = Rc::new(RefCell::new(Sent {
        batches: vec![0; PRODUCERS as usize],
        ..Sent::default()
    }));
    let pause = Duration::from_micros(BATCH * u64::from(PRODUCERS) * 1_000_000 / events_per_second);
    let local = LocalSet::new();
    let tasks: Vec<_> = (0..PRODUCERS)
        .map(|number| {
            let producer = Producer {
                seed,
                number,
                pause,
                nodes: Nodes::new(addresses)?,
                progress: Arc::clone(progress),
                shared: Rc::clone(&shared),
            };
            Ok(local.spawn_local(producer.run()))
        })
        .collect::<Result<_>>()?;
    local.block_on(&runtime, async {
        for task in tasks {
            task.await??;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let sent = Rc::try_unwrap(shared).map_err(|_| anyhow!("a producer goes on"))?;
    Ok(sent.into_inner())
}

struct Producer {
    seed: u64,
    number: u32,
    /// Between two batches, if they are acknowledged as fast.
    pause: Duration,
    nodes: Nodes,
    progress: Arc<Progress>,
    shared: Rc<RefCell<Sent>>,
}

impl Producer {
    async fn run(self) -> Result<()> {
        let mut random = seeded(self.seed, 1_000 + u64::from(self.number));
        let mut pace = tokio::time::interval(self.pause);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        let producer = i64::from(self.number);
        for number in 0.. {
            pace.tick().await;
            while self.is_ahead(number) && !self.progress.input_ends() {
                tokio::time::sleep(LOOK).await;
            }
            if self.progress.input_ends() {
                return Ok(());
            }
            let lines = batch(self.seed, producer, number);
            let key = format!("{}-{producer}-{number}", self.seed);
            self.progress.sent(BATCH);
            let attempts = RefCell::new(0_u64);
            let produced = self
                .nodes
                .ask(&mut random, "producing", async |client| {
                    *attempts.borrow_mut() += 1;
                    client.produce_idempotent(EVENTS, lines.clone(), &key).await
                })
                .await?;
            self.progress.acknowledged(BATCH);
            self.note(producer, number, produced, attempts.into_inner())?;
        }
        Ok(())
    }

    /// Event time may not drift apart further than the watermark allows for.
    fn is_ahead(&self, batch: u64) -> bool {
        let slowest = self.shared.borrow().batches.iter().copied().min();
        batch >= slowest.unwrap_or(0) + AHEAD
    }

    fn note(&self, producer: i64, batch: u64, produced: Produced, attempts: u64) -> Result<()> {
        let count: u64 = produced.partitions.iter().map(|p| p.count).sum();
        ensure!(
            count == BATCH,
            "batch {batch} of producer {producer}: {count} of {BATCH} events were acknowledged"
        );
        let mut shared = self.shared.borrow_mut();
        shared.batches[self.number as usize] = batch + 1;
        shared.repeated += u64::from(attempts > 1);
        shared.acknowledged.push(Acknowledged {
            producer,
            batch,
            partitions: produced.partitions,
        });
        Ok(())
    }
}
