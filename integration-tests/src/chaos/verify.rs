//! The end of a run: everything is drained, and what came out is compared with what had to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use common::client::records::FetchedRecord;
use common::random::{Random, seeded};
use serde_json::{Value, json};

use super::follower::{Followed, FollowedOutputs};
use super::jobs::{
    EVENT_PARTITIONS, EVENTS, JOBS, LARGE, OUTPUT_PARTITIONS, OUTPUTS, TOTALS, WINDOWS, offsets,
};
use super::nodes::{Nodes, PATIENCE};
use super::oracle::{Oracle, Sum, TimeAndAccount, difference};
use super::producers::Sent;
use super::reader::TopicReader;
use super::state_check::{event, sum_of};
use super::stream::{BATCH, Event};

const PAUSE: Duration = Duration::from_millis(100);

/// What was found at the end.
#[derive(Clone, Debug)]
pub struct Verified {
    pub events_in: u64,
    /// Committed records of all output topics.
    pub records_out: u64,
}

/// Ends the stream, waits until the jobs have read all of it, and stops them. Every process runs.
pub async fn drain(seed: u64, addresses: &[String]) -> Result<()> {
    let nodes = Nodes::new(addresses)?;
    let mut random = seeded(seed, 5_000);
    let end: Value = serde_json::from_str(&Event::end().to_json())?;
    for partition in 0..EVENT_PARTITIONS {
        // Sent again if nobody answers: one more of these changes nothing.
        let records = json!({"records": [{"value": end, "partition": partition}]});
        let path = format!("/v1/topics/{EVENTS}/records");
        let _: Value = nodes
            .ask(&mut random, "ending the stream", async |client| {
                client.post(&path, &records).await
            })
            .await?;
    }
    let mut input = TopicReader::new(EVENTS, EVENT_PARTITIONS);
    for partition in 0..EVENT_PARTITIONS {
        input
            .read_on(&nodes, &mut random, partition, &mut |_| Ok(()))
            .await?;
    }
    for job in JOBS {
        wait_until_read(&nodes, &mut random, job, input.next()).await?;
        let stop = format!("/v1/jobs/{job}/stop");
        let _: Value = nodes
            .ask(&mut random, "stopping a job", async |client| {
                client.post(&stop, &json!({})).await
            })
            .await?;
        wait_until_stopped(&nodes, &mut random, job).await?;
    }
    Ok(())
}

async fn wait_until_read(
    nodes: &Nodes,
    random: &mut Random,
    job: &str,
    ends: &[i64],
) -> Result<()> {
    let mut seen = None;
    let waiting = async {
        loop {
            seen = nodes
                .ask(random, "asking for offsets", async |client| {
                    offsets(client, job).await
                })
                .await?;
            if seen.as_ref().is_some_and(|offsets| offsets.read == ends) {
                return Ok::<_, anyhow::Error>(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(read) => read,
        Err(_) => bail!("job {job} does not read to the end at {ends:?}: {seen:?}"),
    }
}

async fn wait_until_stopped(nodes: &Nodes, random: &mut Random, job: &str) -> Result<()> {
    let mut seen = Value::Null;
    let waiting = async {
        loop {
            seen = nodes
                .ask(random, "describing a job", async |client| {
                    client.job(job).await
                })
                .await?;
            if seen["state"] == "STOPPED" {
                return Ok::<_, anyhow::Error>(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(stopped) => stopped,
        Err(_) => bail!("job {job} does not stop: {seen:#}"),
    }
}

/// Compares everything that was sent, is in the topics, and was read before.
pub async fn verify(
    seed: u64,
    addresses: &[String],
    sent: &Sent,
    followed: &FollowedOutputs,
) -> Result<Verified> {
    let mut world = World {
        nodes: Nodes::new(addresses)?,
        random: seeded(seed, 6_000),
    };
    let (oracle, events_in) = world.input(seed, sent).await?;
    world.no_dead_letters().await?;
    let mut records_out = 0;
    for (topic, followed) in OUTPUTS.into_iter().zip(followed) {
        world.wait_until_decided(topic).await?;
        let mut output = Output::default();
        let read = world.read_again(topic, followed, &mut output).await?;
        output
            .check(topic, &oracle, seed, sent)
            .with_context(|| format!("the topic {topic}"))?;
        records_out += read;
    }
    Ok(Verified {
        events_in,
        records_out,
    })
}

struct World {
    nodes: Nodes,
    random: Random,
}

impl World {
    /// Every acknowledged event is there once, where it was said to be, and each producer's are in order.
    async fn input(&mut self, seed: u64, sent: &Sent) -> Result<(Oracle, u64)> {
        let mut oracle = Oracle::new(EVENT_PARTITIONS);
        let mut reader = TopicReader::new(EVENTS, EVENT_PARTITIONS);
        let mut found: Vec<Found> = sent.batches.iter().map(|n| Found::new(*n)).collect();
        let mut count = 0;
        for partition in 0..EVENT_PARTITIONS {
            let claims = Claims::of(sent, partition);
            let mut last: BTreeMap<i64, u64> = BTreeMap::new();
            let mut check = |record: FetchedRecord| {
                let offset = record.offset;
                let place = || format!("{EVENTS}, partition {partition}, offset {offset}");
                let event = event(record.value).with_context(place)?;
                oracle.add(partition, &event);
                if event.is_end() {
                    return Ok(());
                }
                count += 1;
                let Event {
                    producer, serial, ..
                } = event;
                ensure!(
                    event == Event::of(seed, producer, serial),
                    "{}: {event:?} was never sent",
                    place()
                );
                if let Some(before) = last.insert(producer, serial) {
                    ensure!(
                        before < serial,
                        "{}: event {serial} of producer {producer} comes after event {before}",
                        place()
                    );
                }
                let found = usize::try_from(producer)
                    .ok()
                    .and_then(|p| found.get_mut(p));
                let found = found.with_context(|| format!("{}: {event:?}", place()))?;
                found.note(serial).with_context(place)?;
                claims.check(offset, &event).with_context(place)
            };
            reader
                .read_on(&self.nodes, &mut self.random, partition, &mut check)
                .await?;
        }
        for (producer, found) in found.iter().enumerate() {
            found
                .check_nothing_is_missing()
                .with_context(|| format!("producer {producer}"))?;
        }
        Ok((oracle, count))
    }

    async fn no_dead_letters(&mut self) -> Result<()> {
        let topics: Value = self
            .nodes
            .ask(&mut self.random, "listing topics", async |client| {
                client.get("/v1/topics").await
            })
            .await?;
        for job in JOBS {
            let name = format!("{job}.dead-letters");
            let listed = topics["topics"].as_array().into_iter().flatten();
            if !listed.into_iter().any(|topic| topic["name"] == *name) {
                continue;
            }
            let fetched = self
                .nodes
                .ask(&mut self.random, "reading dead letters", async |client| {
                    client.fetch(&name, 0, 0, 1, 0).await
                })
                .await?;
            let first = fetched.records.first();
            ensure!(first.is_none(), "{name} is not empty: {first:?}");
        }
        Ok(())
    }

    /// The jobs have stopped, so what is readable uncommitted becomes readable committed.
    async fn wait_until_decided(&mut self, topic: &str) -> Result<()> {
        for partition in 0..OUTPUT_PARTITIONS {
            let mut ends = (0, 0);
            let waiting = async {
                loop {
                    let path = format!(
                        "/v1/topics/{topic}/partitions/{partition}/records\
                         ?offset=latest&max_records=1&isolation="
                    );
                    let committed: Value = self.end(&path, "read_committed").await?;
                    let all: Value = self.end(&path, "read_uncommitted").await?;
                    let offset = |answer: &Value| answer["next_offset"].as_i64().unwrap_or(-1);
                    ends = (offset(&committed), offset(&all));
                    if ends.0 == ends.1 {
                        return Ok::<_, anyhow::Error>(());
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            };
            match tokio::time::timeout(PATIENCE, waiting).await {
                Ok(decided) => decided?,
                Err(_) => bail!(
                    "{topic}, partition {partition}: the records from {} to {} stay undecided",
                    ends.0,
                    ends.1
                ),
            }
        }
        Ok(())
    }

    async fn end(&mut self, path: &str, isolation: &str) -> Result<Value> {
        let path = format!("{path}{isolation}");
        self.nodes
            .ask(&mut self.random, "asking for an end", async |client| {
                client.get(&path).await
            })
            .await
    }

    /// Reads a topic from its beginning, and compares it with what was read of it before.
    async fn read_again(
        &mut self,
        topic: &'static str,
        followed: &[Followed],
        output: &mut Output,
    ) -> Result<u64> {
        let mut reader = TopicReader::new(topic, OUTPUT_PARTITIONS);
        let mut records = 0;
        for (partition, before) in (0..).zip(followed) {
            let mut again = Followed::default();
            let mut take = |record: FetchedRecord| {
                if record.offset < before.next_offset {
                    again.add(&record);
                }
                records += 1;
                output.records.push((partition, record));
                Ok(())
            };
            reader
                .read_on(&self.nodes, &mut self.random, partition, &mut take)
                .await?;
            ensure!(
                (again.records, again.digest()) == (before.records, before.digest()),
                "{topic}, partition {partition}: up to offset {}, {} committed records were read \
                 while it ran, and now {} records that are not the same",
                before.next_offset,
                before.records,
                again.records
            );
        }
        Ok(records)
    }
}

/// Which events of a producer were found.
struct Found {
    batches: u64,
    serials: Vec<bool>,
}

impl Found {
    fn new(batches: u64) -> Found {
        let events = usize::try_from(batches * BATCH).expect("a run has few events");
        Found {
            batches,
            serials: vec![false; events],
        }
    }

    fn note(&mut self, serial: u64) -> Result<()> {
        let batches = self.batches;
        let index = usize::try_from(serial)?;
        let slot = self
            .serials
            .get_mut(index)
            .with_context(|| format!("event {serial} of {batches} batches"))?;
        ensure!(!*slot, "event {serial} is there twice");
        *slot = true;
        Ok(())
    }

    fn check_nothing_is_missing(&self) -> Result<()> {
        let missing: Vec<usize> = (0..self.serials.len())
            .filter(|n| !self.serials[*n])
            .collect();
        ensure!(
            missing.is_empty(),
            "{} acknowledged events are missing, the first ones: {:?}",
            missing.len(),
            &missing[..missing.len().min(5)]
        );
        Ok(())
    }
}

/// What producers were told about a partition: base offset → end, producer, batch.
struct Claims(BTreeMap<i64, (i64, i64, u64)>);

impl Claims {
    fn of(sent: &Sent, partition: u32) -> Claims {
        let mut claims = BTreeMap::new();
        for batch in &sent.acknowledged {
            for part in batch.partitions.iter().filter(|p| p.partition == partition) {
                let end = part.base_offset.saturating_add_unsigned(part.count);
                claims.insert(part.base_offset, (end, batch.producer, batch.batch));
            }
        }
        Claims(claims)
    }

    fn check(&self, offset: i64, event: &Event) -> Result<()> {
        let claim = self.0.range(..=offset).next_back();
        let claim = claim.filter(|(_, (end, _, _))| offset < *end);
        let Some((_, (_, producer, batch))) = claim else {
            bail!("{event:?} was not acknowledged there");
        };
        ensure!(
            (*producer, *batch) == (event.producer, event.serial / BATCH),
            "batch {batch} of producer {producer} was acknowledged there, and {event:?} is"
        );
        Ok(())
    }
}

/// The committed records of an output topic.
#[derive(Default)]
struct Output {
    records: Vec<(u32, FetchedRecord)>,
}

impl Output {
    fn check(&self, topic: &str, oracle: &Oracle, seed: u64, sent: &Sent) -> Result<()> {
        match topic {
            LARGE => self.check_large(seed, sent),
            WINDOWS => self.check_windows(oracle),
            TOTALS => self.check_totals(oracle),
            other => bail!("nothing is known of {other}"),
        }
    }

    /// Every event that passes the filter, once, as the projection makes it.
    fn check_large(&self, seed: u64, sent: &Sent) -> Result<()> {
        let mut found: BTreeSet<(i64, u64)> = BTreeSet::new();
        for (partition, record) in &self.records {
            let place = || format!("partition {partition}, offset {}", record.offset);
            let value = record.value.as_ref().with_context(place)?;
            let key = value["producer"].as_i64().zip(value["serial"].as_u64());
            let (producer, serial) = key.with_context(|| format!("{}: {value}", place()))?;
            let event = Event::of(seed, producer, serial);
            let expected = json!({
                "producer": producer, "serial": serial,
                "twice": event.account * 2 + 1, "amount": event.amount,
            });
            ensure!(
                *value == expected && event.amount >= 0,
                "{}: {value}, it should be {expected}",
                place()
            );
            ensure!(
                found.insert((producer, serial)),
                "{}: {value} came out twice",
                place()
            );
        }
        for (producer, batches) in (0..).zip(&sent.batches) {
            for serial in 0..batches * BATCH {
                let passes = Event::of(seed, producer, serial).amount >= 0;
                ensure!(
                    found.contains(&(producer, serial)) == passes,
                    "event {serial} of producer {producer} did not come out"
                );
            }
        }
        Ok(())
    }

    /// Every window once.
    fn check_windows(&self, oracle: &Oracle) -> Result<()> {
        let mut found: BTreeMap<TimeAndAccount, Sum> = BTreeMap::new();
        for (partition, record) in &self.records {
            let place = || format!("partition {partition}, offset {}", record.offset);
            let value = record.value.as_ref().with_context(place)?;
            let start = value["window_start"].as_str().and_then(milliseconds);
            let key = start.zip(value["account"].as_i64());
            let (key, sum) = key
                .zip(sum_of(value))
                .with_context(|| format!("{}: {value}", place()))?;
            ensure!(
                found.insert(key, sum).is_none(),
                "{}: {value} came out twice",
                place()
            );
        }
        match difference(&oracle.windows(), &found) {
            None => Ok(()),
            Some(difference) => bail!("{difference}"),
        }
    }

    /// The last record of every account is its total, and those before it led there.
    fn check_totals(&self, oracle: &Oracle) -> Result<()> {
        let mut last: BTreeMap<i64, Sum> = BTreeMap::new();
        let mut partition_of: BTreeMap<i64, u32> = BTreeMap::new();
        for (partition, record) in &self.records {
            let place = || format!("partition {partition}, offset {}", record.offset);
            let value = record.value.as_ref().with_context(place)?;
            let read = value["account"].as_i64().zip(sum_of(value));
            let (account, sum) = read.with_context(|| format!("{}: {value}", place()))?;
            let home = *partition_of.entry(account).or_insert(*partition);
            ensure!(
                home == *partition,
                "{}: {value} is also in partition {home}",
                place()
            );
            if let Some(before) = last.insert(account, sum) {
                ensure!(
                    before.events < sum.events,
                    "{}: {value} follows {before:?}",
                    place()
                );
            }
        }
        match difference(oracle.totals(), &last) {
            None => Ok(()),
            Some(difference) => bail!("{difference}"),
        }
    }
}

/// Milliseconds since 1970 of a time as JSON records have it, without a zone.
fn milliseconds(text: &str) -> Option<i64> {
    let field = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (field(0, 4)?, field(5, 7)?, field(8, 10)?);
    let seconds = field(11, 13)? * 3_600 + field(14, 16)? * 60 + field(17, 19)?;
    let millis = match text.get(19..) {
        Some("") => 0,
        Some(_) => field(20, 23)?,
        None => return None,
    };
    // Days since 1970 of a date: years begin in March, so that the leap day is the last one.
    let (year, month) = if month <= 2 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let days =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 719_469;
    Some((days * 86_400 + seconds) * 1_000 + millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        assert_eq!(milliseconds("1970-01-01T00:00:00"), Some(0));
        assert_eq!(milliseconds("2023-11-14T22:13:20"), Some(1_700_000_000_000));
        assert_eq!(
            milliseconds("2024-02-29T12:00:00.250"),
            Some(1_709_208_000_250)
        );
        assert_eq!(milliseconds("soon"), None);
    }

    #[test]
    fn an_event_that_is_missing_or_doubled_is_found() {
        let mut found = Found::new(1);
        for serial in 0..BATCH - 1 {
            found.note(serial).unwrap();
        }
        assert!(found.check_nothing_is_missing().is_err());
        found.note(BATCH - 1).unwrap();
        found.check_nothing_is_missing().unwrap();
        assert!(found.note(3).is_err());
        assert!(found.note(BATCH).is_err());
    }
}
