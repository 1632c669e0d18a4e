//! Recorded streams through topics and windows, against counts kept without them. Skipped where they are absent.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use chrono::NaiveDateTime;
use common::client::Client;
use integration_tests::cluster::Cluster;
use integration_tests::data::data_set;
use serde_json::{Value, json};

use crate::steps::{all_values, talk, wait_for};

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;
/// Records in one request.
const REQUEST: usize = 20_000;

/// A flight that left.
#[derive(Debug)]
struct Departure {
    carrier: String,
    /// Milliseconds since 1970.
    departed: i64,
    /// Minutes.
    delay: i64,
    /// Month and day.
    scheduled: (u8, u8),
}

/// The departures of 2013 from New York, day by day. Within a day they are not in the order of their times: a
/// flight that left after midnight is recorded with the day before.
fn departures(folder: &Path) -> Vec<Departure> {
    let compressed = std::fs::File::open(folder.join("flights.csv.zst")).unwrap();
    let text = zstd::Decoder::new(compressed).unwrap();
    let mut rows = csv::Reader::from_reader(text);
    let headers = rows.headers().unwrap().clone();
    let column = |name: &str| headers.iter().position(|header| header == name).unwrap();
    let [carrier, month, day, minute, delay, hour] = [
        "carrier",
        "month",
        "day",
        "minute",
        "dep_delay",
        "time_hour",
    ]
    .map(column);
    let mut departures = Vec::new();
    for row in rows.records() {
        let row = row.unwrap();
        // A flight that was cancelled has none.
        let Ok(delay) = row[delay].parse::<i64>() else {
            continue;
        };
        let hour = milliseconds(row[hour].trim_end_matches('Z'));
        let minute: i64 = row[minute].parse().unwrap();
        departures.push(Departure {
            carrier: row[carrier].to_owned(),
            departed: hour + (minute + delay) * 60_000,
            delay,
            scheduled: (row[month].parse().unwrap(), row[day].parse().unwrap()),
        });
    }
    // The file has October after January.
    departures.sort_by_key(|departure| departure.scheduled);
    departures
}

async fn produce_flights(client: &Client, departures: &[Departure]) {
    client.create_topic("departures", 4).await.unwrap();
    for part in departures.chunks(REQUEST) {
        let values: Vec<Value> = part
            .iter()
            .map(|d| json!({"carrier": d.carrier, "departed": d.departed, "delay": d.delay}))
            .collect();
        client.produce("departures", &values).await.unwrap();
    }
}

fn per_hour(watermark_delay: &str) -> String {
    format!(
        "CREATE TABLE departures (carrier VARCHAR, departed TIMESTAMP(3), delay BIGINT,
                                  WATERMARK FOR departed AS departed - INTERVAL {watermark_delay})
         WITH (connector = 'topic', topic = 'departures', 'scan.bounded.mode' = 'latest');
         CREATE TABLE hours WITH (connector = 'topic', topic = 'hours');
         INSERT INTO hours
         SELECT window_start, carrier, count(*) AS flights, avg(delay) AS mean_delay
         FROM TUMBLE(departures, departed, INTERVAL '1' HOUR)
         GROUP BY window_start, window_end, carrier;"
    )
}

/// Hour and carrier → flights and the sum of their delays.
type Hours = BTreeMap<(i64, String), (i64, i64)>;

fn hours(departures: &[Departure]) -> Hours {
    let mut hours = Hours::new();
    for departure in departures {
        let hour = departure.departed.div_euclid(HOUR) * HOUR;
        let slot = hours.entry((hour, departure.carrier.clone())).or_default();
        *slot = (slot.0 + 1, slot.1 + departure.delay);
    }
    hours
}

fn time(value: &Value) -> i64 {
    milliseconds(value.as_str().unwrap())
}

/// Since 1970, of an ISO 8601 time without a zone.
fn milliseconds(text: &str) -> i64 {
    let time: NaiveDateTime = text.parse().unwrap();
    time.and_utc().timestamp_millis()
}

#[test]
fn departures_per_carrier_and_hour_are_those_of_the_recording() {
    let Some(folder) = data_set("nycflights13") else {
        return;
    };
    let departures = departures(&folder);
    assert_eq!(departures.len(), 336_776 - 8_255);
    let cluster = Cluster::start(2).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        produce_flights(&client, &departures).await;
        let job = json!({"name": "hours", "sql": per_hour("'2' DAY"), "parallelism": 2});
        let _: Value = client.post("/v1/jobs", &job).await.unwrap();
        let finished = wait_for(&client, "hours", "FINISHED").await;
        assert_eq!(finished["rows_in"], departures.len());
        assert_eq!(finished["late_rows"], 0);
        let expected = hours(&departures);
        let found = all_values(&client, "hours").await;
        assert_eq!(found.len(), expected.len());
        for row in found {
            let key = (
                time(&row["window_start"]),
                row["carrier"].as_str().unwrap().to_owned(),
            );
            let (flights, delay) = expected[&key];
            assert_eq!(row["flights"], flights, "{key:?}");
            let mean = delay as f64 / flights as f64;
            // The last digit of a number is lost in reading JSON.
            let difference = (row["mean_delay"].as_f64().unwrap() - mean).abs();
            assert!(difference < 1e-9, "{key:?}: {mean}, {row}");
        }
    });
}

/// With a watermark that is only an hour behind, flights recorded with the day before come too late: each is
/// either in a result or a dead letter, and none is in both.
#[test]
fn a_departure_that_comes_too_late_is_a_dead_letter_and_in_no_result() {
    let Some(folder) = data_set("nycflights13") else {
        return;
    };
    let departures = departures(&folder);
    let cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        produce_flights(&client, &departures).await;
        let sql = per_hour("'1' HOUR");
        client.create_job("hours", &sql).await.unwrap();
        let finished = wait_for(&client, "hours", "FINISHED").await;
        let mut expected = hours(&departures);
        let letters = all_values(&client, "hours.dead-letters").await;
        assert!(!letters.is_empty(), "nothing came too late");
        assert_eq!(finished["late_rows"], letters.len());
        for letter in &letters {
            assert_eq!(letter["reason"], "late", "{letter}");
        }
        for row in all_values(&client, "hours").await {
            let key = (
                time(&row["window_start"]),
                row["carrier"].as_str().unwrap().to_owned(),
            );
            let slot = expected.get_mut(&key).unwrap();
            slot.0 -= row["flights"].as_i64().unwrap();
            assert!(slot.0 >= 0, "{key:?} has more flights than there were");
        }
        let left: i64 = expected.values().map(|(flights, _)| flights).sum();
        assert_eq!(left, i64::try_from(letters.len()).unwrap());
    });
}

/// A payment as its file has it.
#[derive(Debug)]
struct Payment {
    card: String,
    time: i64,
    category: String,
    amount: f64,
}

fn payments(csv: &[u8]) -> Vec<Payment> {
    let mut rows = csv::Reader::from_reader(csv);
    let headers = rows.headers().unwrap().clone();
    let column = |name: &str| headers.iter().position(|header| header == name).unwrap();
    let [card, time, category, amount] = ["cc_num", "unix_time", "category", "amt"].map(column);
    rows.records()
        .map(|row| {
            let row = row.unwrap();
            Payment {
                card: row[card].to_owned(),
                time: row[time].parse::<i64>().unwrap() * 1_000,
                category: row[category].to_owned(),
                amount: row[amount].parse().unwrap(),
            }
        })
        .collect()
}

/// From a CSV file into a topic by one job, and from there into sliding windows per card by another.
#[test]
fn payments_per_card_and_day_are_those_of_the_file() {
    let Some(folder) = data_set("sparkov-card-fraud") else {
        return;
    };
    let compressed = std::fs::read(folder.join("transactions.csv.zst")).unwrap();
    let text = zstd::decode_all(compressed.as_slice()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("payments.csv");
    std::fs::write(&file, &text).unwrap();
    let payments = payments(&text);
    assert_eq!(payments.len(), 44_813);
    let cluster = Cluster::start(2).unwrap();
    let client = cluster.client().unwrap();
    let load = format!(
        "CREATE TABLE file (trans_num VARCHAR, unix_time BIGINT, trans_date VARCHAR, trans_time VARCHAR,
                            cc_num VARCHAR, merchant VARCHAR, category VARCHAR, amt DOUBLE, gender VARCHAR,
                            city VARCHAR, state VARCHAR, zip VARCHAR, lat DOUBLE, long DOUBLE, city_pop BIGINT,
                            job VARCHAR, dob VARCHAR, merch_lat DOUBLE, merch_long DOUBLE, is_fraud INT)
         WITH (connector = 'files', path = '{}', format = 'csv');
         CREATE TABLE payments WITH (connector = 'topic', topic = 'payments', key = 'card');
         INSERT INTO payments
         SELECT cc_num AS card, unix_time * 1000 AS at, category, amt AS amount FROM file;",
        file.display()
    );
    let count = "
        CREATE TABLE payments (card VARCHAR, at TIMESTAMP(3), category VARCHAR, amount DOUBLE,
                               WATERMARK FOR at AS at - INTERVAL '1' MINUTE)
        WITH (connector = 'topic', topic = 'payments', 'scan.bounded.mode' = 'latest');
        CREATE TABLE days WITH (connector = 'topic', topic = 'days');
        INSERT INTO days
        SELECT window_start, card, count(*) AS payments, count(DISTINCT category) AS categories,
               sum(amount) AS spent, max(amount) AS largest
        FROM HOP(payments, at, INTERVAL '12' HOUR, INTERVAL '1' DAY)
        GROUP BY window_start, window_end, card;";
    talk(async {
        client.create_topic("payments", 4).await.unwrap();
        client.create_job("load", &load).await.unwrap();
        wait_for(&client, "load", "FINISHED").await;
        let job = json!({"name": "days", "sql": count, "parallelism": 2});
        let _: Value = client.post("/v1/jobs", &job).await.unwrap();
        wait_for(&client, "days", "FINISHED").await;
        let mut expected: BTreeMap<(i64, &str), Vec<&Payment>> = BTreeMap::new();
        for payment in &payments {
            let last = payment.time.div_euclid(DAY / 2) * (DAY / 2);
            for start in [last - DAY / 2, last] {
                expected
                    .entry((start, payment.card.as_str()))
                    .or_default()
                    .push(payment);
            }
        }
        let found = all_values(&client, "days").await;
        assert_eq!(found.len(), expected.len());
        for row in found {
            let card = row["card"].as_str().unwrap();
            let of_window = &expected[&(time(&row["window_start"]), card)];
            let categories: BTreeSet<&str> =
                of_window.iter().map(|p| p.category.as_str()).collect();
            let spent: f64 = of_window.iter().map(|p| p.amount).sum();
            let largest = of_window.iter().map(|p| p.amount).fold(0.0, f64::max);
            assert_eq!(row["payments"], of_window.len());
            assert_eq!(row["categories"], categories.len());
            // The order of a sum is nobody's to choose.
            for (column, expected) in [("spent", spent), ("largest", largest)] {
                let difference = (row[column].as_f64().unwrap() - expected).abs();
                assert!(difference < 1e-6, "{card} {column} {expected}: {row}");
            }
        }
    });
}
