//! Reads state over HTTP at completed epochs while the jobs run, and compares it with an oracle.
//!
//! The offsets of an epoch say which prefix of the input its state is of. Epochs and their offsets may
//! only grow, whatever was killed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use common::client::{Client, ClientError};
use common::error::ErrorCode;
use common::random::seeded;
use serde_json::Value;

use super::jobs::{EVENT_PARTITIONS, EVENTS, Epochs, JOBS, Offsets, Operators, SUMS, offsets};
use super::nodes::{Nodes, may_pass};
use super::oracle::{Oracle, Sum, TimeAndAccount, difference};
use super::progress::Progress;
use super::reader::TopicReader;
use super::stream::Event;

const PAUSE: Duration = Duration::from_millis(100);
/// Small enough that every reading has several pages.
const PAGE: usize = 120;

/// What was seen of state and epochs.
#[derive(Debug, Default)]
pub struct Checked {
    /// Readings that were compared, of each operator.
    pub totals: u64,
    pub windows: u64,
    /// Readings that were not answered, because the job was recovering or had gone on.
    pub missed: u64,
    /// By job.
    pub epochs: BTreeMap<&'static str, Epochs>,
}

/// Compares until the run is over. Blocks.
pub fn check(seed: u64, addresses: &[String], progress: &Arc<Progress>) -> Result<Checked> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let nodes = Nodes::new(addresses)?;
        let mut random = seeded(seed, 3_000);
        let sums: Value = nodes
            .ask(&mut random, "describing the job", async |client| {
                client.job(SUMS).await
            })
            .await?;
        let operators = Operators::of(&sums)?;
        let mut input = TopicReader::new(EVENTS, EVENT_PARTITIONS);
        let mut oracle = Oracle::new(EVENT_PARTITIONS);
        let mut checked = Checked::default();
        let mut last = Offsets {
            epoch: 0,
            read: vec![0; EVENT_PARTITIONS as usize],
        };
        while !progress.is_over() {
            tokio::time::sleep(PAUSE).await;
            let client = nodes.any(&mut random);
            if let Err(error) = note_epochs(client, &mut checked.epochs).await? {
                ensure!(may_pass(&error), "listing checkpoints: {error}");
                continue;
            }
            let reading = match read(client, &operators, last.epoch).await {
                Ok(Some(reading)) => reading,
                Ok(None) => continue,
                Err(error) if is_of_the_moment(&error) => {
                    checked.missed += 1;
                    continue;
                }
                Err(error) => bail!("reading state: {error}"),
            };
            ensure!(
                reading.at.epoch > last.epoch,
                "epoch {} was complete, then the last complete one was {}",
                last.epoch,
                reading.at.epoch
            );
            let (before, after) = (&last.read, &reading.at.read);
            ensure!(
                before
                    .iter()
                    .zip(after)
                    .all(|(before, after)| before <= after),
                "the offsets went back, from {before:?} at epoch {} to {after:?} at epoch {}",
                last.epoch,
                reading.at.epoch
            );
            input
                .read_up_to(&nodes, &mut random, after, &mut |partition, record| {
                    oracle.add(partition, &event(record.value)?);
                    Ok(())
                })
                .await?;
            compare(&reading, &mut oracle, &mut checked)?;
            last = reading.at;
        }
        Ok(checked)
    })
}

/// The state of both operators at one epoch.
struct Reading {
    at: Offsets,
    totals: BTreeMap<i64, Sum>,
    slices: BTreeMap<TimeAndAccount, Sum>,
}

/// `None`: no epoch after this one is complete.
async fn read(
    client: &Client,
    operators: &Operators,
    after: u64,
) -> Result<Option<Reading>, ClientError> {
    let Some(at) = offsets(client, SUMS).await? else {
        return Ok(None);
    };
    if at.epoch == after {
        return Ok(None);
    }
    let epoch = at.epoch;
    Ok(Some(Reading {
        totals: pages(client, &operators.totals, epoch, |entry| {
            entry["key"]["account"].as_i64()
        })
        .await?,
        slices: pages(client, &operators.windows, epoch, |entry| {
            let account = entry["key"]["account"].as_i64()?;
            Some((entry["window"][0].as_i64()?, account))
        })
        .await?,
        at,
    }))
}

/// All pages of an operator's state at an epoch.
async fn pages<K: Ord>(
    client: &Client,
    operator: &str,
    epoch: u64,
    key_of: impl Fn(&Value) -> Option<K>,
) -> Result<BTreeMap<K, Sum>, ClientError> {
    let unexpected = |detail: String| ClientError::Unexpected {
        request: format!("the state of {operator} at epoch {epoch}"),
        detail,
    };
    let mut entries = BTreeMap::new();
    let mut after = String::new();
    loop {
        let path =
            format!("/v1/jobs/{SUMS}/operators/{operator}/state?epoch={epoch}&limit={PAGE}{after}");
        let page: Value = client.get(&path).await?;
        if page["epoch"].as_u64() != Some(epoch) {
            return Err(unexpected(format!("answered for {}", page["epoch"])));
        }
        for entry in page["entries"].as_array().into_iter().flatten() {
            let (Some(key), Some(sum)) = (key_of(entry), sum_of(&entry["value"])) else {
                return Err(unexpected(format!("an entry of no account: {entry}")));
            };
            if entries.insert(key, sum).is_some() {
                return Err(unexpected(format!("an entry came twice: {entry}")));
            }
        }
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return Ok(entries),
        }
    }
}

fn compare(reading: &Reading, oracle: &mut Oracle, checked: &mut Checked) -> Result<()> {
    let Reading { at, totals, slices } = reading;
    let context = |what: &str, difference: String| {
        format!(
            "the state of {what} at epoch {}, offsets {:?}: {difference}",
            at.epoch, at.read
        )
    };
    if let Some(difference) = difference(oracle.totals(), totals) {
        bail!(context("totals", difference));
    }
    checked.totals += 1;
    // Before every partition has an event, those that have none are not waited for.
    if let Some(watermark) = oracle.watermark() {
        if let Some(difference) = difference(&oracle.open_slices(watermark), slices) {
            bail!(context(
                &format!("windows (watermark {watermark})"),
                difference
            ));
        }
        oracle.forget_before(watermark);
        checked.windows += 1;
    }
    Ok(())
}

/// Outer: what was listed is wrong. Inner: nothing was listed.
async fn note_epochs(
    client: &Client,
    epochs: &mut BTreeMap<&'static str, Epochs>,
) -> Result<Result<(), ClientError>> {
    for job in JOBS {
        let path = format!("/v1/jobs/{job}/checkpoints");
        match client.get(&path).await {
            Ok(listed) => epochs.entry(job).or_default().note(&listed)?,
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(()))
}

/// The job is recovering, or has gone on since the offsets were read.
fn is_of_the_moment(error: &ClientError) -> bool {
    let code = error.code();
    let of_the_moment = [
        ErrorCode::EpochGone,
        ErrorCode::StaleGeneration,
        ErrorCode::FencedGeneration,
        ErrorCode::Conflict,
    ];
    may_pass(error) || code.is_some_and(|code| of_the_moment.contains(&code))
}

/// The aggregates of an entry, or of a record that came out.
pub(super) fn sum_of(value: &Value) -> Option<Sum> {
    Some(Sum {
        events: value.get("events")?.as_u64()?,
        total: value.get("total")?.as_i64()?,
        highest: value.get("highest")?.as_u64()?,
    })
}

pub(super) fn event(value: Option<Value>) -> Result<Event> {
    let value = value.context("a record of the input has no value")?;
    Event::from_json(&value).with_context(|| format!("a record of the input is no event: {value}"))
}
