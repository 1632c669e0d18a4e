//! A job that counts and sums by key, what is sent to it, and what has to come out.

use std::collections::BTreeMap;

use common::client::Client;
use serde_json::Value;

use crate::steps::{LOOK, PATIENCE, all_values};

const KEYS: i64 = 997;

/// Every record changes one key's row, and none is ever forgotten.
pub(crate) const TOTALS: &str = "
    CREATE TABLE bids (auction BIGINT, price BIGINT)
    WITH (connector = 'topic', topic = 'bids', format = 'json');
    CREATE TABLE totals WITH (connector = 'topic', topic = 'totals', format = 'json');
    INSERT INTO totals
    SELECT auction, count(*) AS bids, sum(price) AS total FROM bids GROUP BY auction;";

fn expected(bids: i64) -> BTreeMap<i64, (i64, i64)> {
    let mut totals: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
    for price in 0..bids {
        let (count, total) = totals.entry(price % KEYS).or_default();
        (*count, *total) = (*count + 1, *total + price);
    }
    totals
}

/// The last row of every key.
async fn found(client: &Client) -> BTreeMap<i64, (i64, i64)> {
    let rows = all_values(client, "totals").await;
    let number = |row: &Value, name: &str| row[name].as_i64().unwrap();
    let row = |row: &Value| {
        let totals = (number(row, "bids"), number(row, "total"));
        (number(row, "auction"), totals)
    };
    rows.iter().map(row).collect()
}

/// Sends until it is acknowledged, once.
pub(crate) async fn send(client: &Client, range: std::ops::Range<i64>) {
    let key = format!("{}-{}", range.start, range.end);
    let line = |price: i64| format!("{{\"auction\": {}, \"price\": {price}}}\n", price % KEYS);
    let lines = range.map(line).collect::<String>().into_bytes();
    let sending = async {
        while let Err(error) = client.produce_idempotent("bids", lines.clone(), &key).await {
            let may_pass = error.code().is_none_or(|code| code.is_retriable());
            assert!(may_pass, "{error}");
            tokio::time::sleep(LOOK).await;
        }
    };
    let sent = tokio::time::timeout(PATIENCE, sending).await;
    sent.expect("it is never acknowledged");
}

pub(crate) async fn wait_until_counted(client: &Client, bids: i64) {
    let expected = expected(bids);
    let mut rows = BTreeMap::new();
    let waiting = async {
        while rows != expected {
            tokio::time::sleep(LOOK).await;
            rows = found(client).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    let wrong = || {
        let differs = expected
            .iter()
            .find(|(key, row)| rows.get(key) != Some(row));
        format!(
            "of {differs:?} there is {:?}",
            differs.and_then(|(key, _)| rows.get(key))
        )
    };
    waited.unwrap_or_else(|_| panic!("{}", wrong()));
}
