//! A producer that sends one request after another, as fast as it is told to, whatever it is answered.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use common::error::{ErrorCode, Problem};
use common::limits::MAX_REQUEST_BYTES;
use reqwest::header::RETRY_AFTER;
use reqwest::{Client, StatusCode};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::TOPIC;
use crate::measure::Stopwatch;

/// Of one record, with its line's end.
pub const RECORD_BYTES: usize = 100;
/// Numbers have as many digits, whatever they are: so they can be written over.
const FIRST_PRODUCER: u64 = 10_000;
const FIRST_NUMBER: u64 = 10_000_000_000;
const FIRST_TIME: u64 = 1_000_000_000_000;
/// After this an answer is not waited for. The job waits longer for what is late.
const DEADLINE: Duration = Duration::from_secs(20);
/// Requests of one producer that may fail for other reasons than that there is too much.
const MAX_TROUBLES: u64 = 100;

/// What each of some producers does.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    pub records_per_request: usize,
    /// Requests are offered so often; the next when one is answered, if that is later.
    pub every: Duration,
    pub lasts: Duration,
}

/// What producers were answered.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// Of each producer: so many records, from its first on.
    pub acknowledged: Vec<u64>,
    pub requests: u64,
    /// With 429, because too much was under way, and because of a quota.
    pub overloaded: u64,
    pub over_quota: u64,
    /// Without an answer.
    pub troubles: u64,
}

#[derive(Debug)]
pub struct Producer {
    http: Client,
    url: String,
    client_id: String,
    number: u64,
    body: Vec<u8>,
}

enum Answer {
    Acknowledged,
    Refused(ErrorCode),
    None(String),
}

/// Lets producers of these numbers send beside each other, each with a client id of its own or all with this one.
/// `clock`: what is event time to their records.
pub async fn produce(
    address: &str,
    clock: Stopwatch,
    numbers: std::ops::Range<u64>,
    client_id: Option<&'static str>,
    offer: Offer,
) -> Result<Answers> {
    let http = Client::builder().no_proxy().timeout(DEADLINE).build()?;
    let ends = clock.elapsed() + offer.lasts;
    let mut running = JoinSet::new();
    let first = numbers.start;
    for number in numbers.clone() {
        let producer = Producer {
            http: http.clone(),
            url: format!("{address}/v1/topics/{TOPIC}/records?key=/p"),
            client_id: client_id.map_or_else(|| format!("producer-{number}"), str::to_owned),
            number,
            body: template(number, offer.records_per_request),
        };
        running.spawn(producer.run(clock, ends, offer));
    }
    let producers = usize::try_from(numbers.end - first)?;
    let mut all = Answers {
        acknowledged: vec![0; producers],
        ..Answers::default()
    };
    while let Some(done) = running.join_next().await {
        let (number, answers) = done??;
        all.acknowledged[usize::try_from(number - first)?] = answers.acknowledged[0];
        all.requests += answers.requests;
        all.overloaded += answers.overloaded;
        all.over_quota += answers.over_quota;
        all.troubles += answers.troubles;
    }
    Ok(all)
}

impl Answers {
    pub fn records(&self) -> u64 {
        self.acknowledged.iter().sum()
    }
}

impl Producer {
    async fn run(
        mut self,
        clock: Stopwatch,
        ends: Duration,
        offer: Offer,
    ) -> Result<(u64, Answers)> {
        let count = offer.records_per_request as u64;
        let (mut answers, mut sent) = (Answers::default(), 0);
        let mut undecided = false;
        let mut turns = interval(offer.every);
        turns.set_missed_tick_behavior(MissedTickBehavior::Burst);
        loop {
            turns.tick().await;
            // Of the last request it must be known whether it was taken.
            if clock.elapsed() >= ends && !undecided {
                answers.acknowledged = vec![sent];
                return Ok((self.number, answers));
            }
            if !undecided {
                self.write_numbers(sent, clock.elapsed());
            }
            answers.requests += 1;
            match self.send(sent).await? {
                Answer::Acknowledged => {
                    sent += count;
                    undecided = false;
                }
                Answer::Refused(ErrorCode::QuotaExceeded) => answers.over_quota += 1,
                Answer::Refused(_) => answers.overloaded += 1,
                Answer::None(error) => {
                    answers.troubles += 1;
                    undecided = true;
                    ensure!(
                        answers.troubles < MAX_TROUBLES,
                        "producer {}: {error}",
                        self.number
                    );
                }
            }
        }
    }

    async fn send(&self, first: u64) -> Result<Answer> {
        let request = self
            .http
            .post(&self.url)
            .header("content-type", "application/x-ndjson")
            .header("x-client-id", &self.client_id)
            .header("idempotency-key", format!("{}-{first}", self.number))
            .body(self.body.clone());
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return Ok(Answer::None(format!("{error:?}"))),
        };
        let status = answer.status();
        let wait = answer.headers().get(RETRY_AFTER).cloned();
        let text = match answer.text().await {
            Ok(text) => text,
            Err(error) => return Ok(Answer::None(format!("{error:?}"))),
        };
        match status {
            StatusCode::OK => Ok(Answer::Acknowledged),
            StatusCode::TOO_MANY_REQUESTS => {
                let problem: Problem = serde_json::from_str(&text)?;
                let wait = wait.context("429 without Retry-After")?;
                let seconds: u64 = wait.to_str()?.parse()?;
                ensure!(seconds > 0 && !problem.hint.is_empty(), "{text}");
                Ok(Answer::Refused(problem.code))
            }
            _ => bail!("producer {} at {first}: {status} {text}", self.number),
        }
    }

    fn write_numbers(&mut self, first: u64, elapsed: Duration) {
        let time = FIRST_TIME + u64::try_from(elapsed.as_millis()).unwrap_or(0);
        for (number, record) in (first..).zip(self.body.chunks_mut(RECORD_BYTES)) {
            put_digits(
                &mut record[NUMBER_AT..NUMBER_AT + NUMBER_DIGITS],
                FIRST_NUMBER + number,
            );
            put_digits(&mut record[TIME_AT..TIME_AT + TIME_DIGITS], time);
        }
    }
}

const NUMBER_AT: usize = r#"{"p":10000,"n":"#.len();
const NUMBER_DIGITS: usize = 11;
const TIME_AT: usize = NUMBER_AT + NUMBER_DIGITS + r#","ts":"#.len();
const TIME_DIGITS: usize = 13;

fn template(producer: u64, records: usize) -> Vec<u8> {
    assert!(records * RECORD_BYTES <= MAX_REQUEST_BYTES, "one request");
    let p = FIRST_PRODUCER + producer;
    let mut line = format!(r#"{{"p":{p},"n":{FIRST_NUMBER},"ts":{FIRST_TIME},"text":""#);
    while line.len() < RECORD_BYTES - 3 {
        line.push('x');
    }
    line.push_str("\"}\n");
    assert_eq!(line.len(), RECORD_BYTES, "{line}");
    line.repeat(records).into_bytes()
}

fn put_digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).expect("one digit");
        number /= 10;
    }
}

/// Whose record a stored one is, and which.
pub fn producer_and_number(value: &[u8]) -> Option<(u64, u64)> {
    let digits = |from: usize, to: usize| -> Option<u64> {
        std::str::from_utf8(value.get(from..to)?).ok()?.parse().ok()
    };
    let producer = digits(r#"{"p":"#.len(), r#"{"p":10000"#.len())?;
    let number = digits(NUMBER_AT, NUMBER_AT + NUMBER_DIGITS)?;
    Some((
        producer.checked_sub(FIRST_PRODUCER)?,
        number.checked_sub(FIRST_NUMBER)?,
    ))
}

/// The same of what the job says of a producer.
pub fn producer_of(p: u64) -> Option<u64> {
    p.checked_sub(FIRST_PRODUCER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_whose_it_is_and_which() {
        let mut producer = Producer {
            http: Client::new(),
            url: String::new(),
            client_id: String::new(),
            number: 7,
            body: template(7, 3),
        };
        producer.write_numbers(123_456, Duration::from_millis(5));
        let lines: Vec<&[u8]> = producer.body.split_inclusive(|b| *b == b'\n').collect();
        assert_eq!(lines.len(), 3);
        for (number, line) in (123_456..).zip(lines) {
            assert_eq!(producer_and_number(line), Some((7, number)));
            let value: serde_json::Value = serde_json::from_slice(line).unwrap();
            assert_eq!(value["ts"], FIRST_TIME + 5);
            assert_eq!(value["n"], FIRST_NUMBER + number);
        }
    }
}
