//! Jobs that are changed and keep their state.

use std::cell::Cell;
use std::collections::BTreeSet;

use common::client::Client;
use common::error::ErrorCode;
use integration_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::steps::{LOOK, PATIENCE, all_values, talk};
use crate::totals::{TOTALS, send, wait_until_counted};

const PORTION: i64 = 500;

async fn begin(client: &Client, definition: Value) {
    let topic = json!({"name": "bids", "partitions": 4, "replication_factor": 1});
    let _: Value = client.post("/v1/topics", &topic).await.unwrap();
    let _: Value = client.post("/v1/jobs", &definition).await.unwrap();
    send(client, 0..PORTION).await;
    wait_until_counted(client, PORTION).await;
}

fn job(sql: &str, parallelism: u32) -> Value {
    json!({
        "name": "totals", "sql": sql, "parallelism": parallelism, "checkpoint_interval_ms": 200,
        "config": {"restart_budget": 0},
    })
}

/// The same totals, and beside them what is above a price.
fn with_large(above: i64) -> String {
    format!(
        "{TOTALS}
        CREATE TABLE large WITH (connector = 'topic', topic = 'large', format = 'json');
        INSERT INTO large SELECT auction, price FROM bids WHERE price >= {above};"
    )
}

async fn plan(client: &Client, definition: &Value) -> Value {
    let path = "/v1/jobs/totals?plan=true";
    client.put(path, definition).await.unwrap()
}

/// What the plan says of a node.
fn fate<'p>(plan: &'p Value, operator: &str) -> &'p Value {
    let mut operators = plan["operators"].as_array().unwrap().iter();
    let found = operators.find(|of| of["operator"] == operator);
    found.unwrap_or_else(|| panic!("there is no {operator}: {plan:#}"))
}

async fn updated(client: &Client) -> Value {
    let mut seen = Value::Null;
    let waiting = async {
        loop {
            if let Ok(job) = client.job("totals").await {
                if job["state"] == "RUNNING" && job.get("updating").is_none() {
                    return job;
                }
                seen = job;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("it is not changed: {seen:#}"))
}

#[test]
fn a_changed_job_goes_on_with_its_state_while_records_come() {
    let cluster = Cluster::start(2).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        begin(&client, job(TOTALS, 2)).await;
        let changed = job(&with_large(0), 3);
        let planned = plan(&client, &changed).await;
        assert_eq!(planned["loses_state"], false, "{planned:#}");
        assert_eq!(fate(&planned, "bids")["state"], "migrated", "{planned:#}");
        let totals = fate(&planned, "totals-aggregate-auction");
        assert_eq!(totals["state"], "migrated", "{planned:#}");
        assert_eq!(fate(&planned, "large")["state"], "new", "{planned:#}");
        assert_eq!(planned["creates_topics"], json!({"large": 3}));
        let before = client.job("totals").await.unwrap();
        assert!(before.get("updating").is_none(), "a plan changes nothing");

        let stop = Cell::new(false);
        let sending = async {
            let mut sent = PORTION;
            while !stop.get() {
                send(&client, sent..sent + PORTION).await;
                sent += PORTION;
            }
            sent
        };
        let changing = async {
            let _: Value = client.put("/v1/jobs/totals", &changed).await.unwrap();
            let job = updated(&client).await;
            assert_eq!(job["parallelism"], 3, "{job:#}");
            stop.set(true);
        };
        let (sent, ()) = tokio::join!(sending, changing);
        send(&client, sent..sent + PORTION).await;
        let sent = sent + PORTION;
        wait_until_counted(&client, sent).await;
        let job = client.job("totals").await.unwrap();
        assert_eq!(job["restarts"], json!([]), "nothing has failed");
        assert_eq!(job["rows_in"], sent, "{job:#}");

        // The new query has everything from the change on, once.
        let large = all_values(&client, "large").await;
        let prices = large.iter().map(|row| row["price"].as_i64().unwrap());
        let once: BTreeSet<i64> = prices.collect();
        assert_eq!(once.len(), large.len(), "nothing came twice");
        assert!((sent - PORTION..sent).all(|price| once.contains(&price)));
        assert!((0..PORTION).all(|price| !once.contains(&price)));

        // And back: what is dropped has kept nothing.
        let back: Value = client
            .put("/v1/jobs/totals", &self::job(TOTALS, 2))
            .await
            .unwrap();
        assert_eq!(back["updating"]["parallelism"], 2, "{back:#}");
        updated(&client).await;
        send(&client, sent..sent + PORTION).await;
        wait_until_counted(&client, sent + PORTION).await;
    });
}

#[test]
fn state_that_would_be_lost_is_named_and_has_to_be_accepted() {
    let cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        begin(&client, job(TOTALS, 1)).await;
        let changed = job(&TOTALS.replace("sum(price)", "max(price)"), 1);
        let planned = plan(&client, &changed).await;
        assert_eq!(planned["loses_state"], true);
        let totals = fate(&planned, "totals-aggregate-auction");
        assert_eq!(totals["state"], "rebuilt", "{planned:#}");
        assert_eq!(fate(&planned, "bids")["state"], "kept", "{planned:#}");

        let refused = client.put::<Value>("/v1/jobs/totals", &changed).await;
        let error = refused.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::StateWouldBeLost), "{error}");
        let detail = error.to_string();
        assert!(detail.contains("totals-aggregate-auction"), "{detail}");

        let path = "/v1/jobs/totals?accept=state_loss";
        let _: Value = client.put(path, &changed).await.unwrap();
        updated(&client).await;
        // Of auction 0, only this one is known.
        let line = b"{\"auction\": 0, \"price\": 7}\n".to_vec();
        client
            .produce_idempotent("bids", line, "seven")
            .await
            .unwrap();
        let expected = json!({"auction": 0, "bids": 1, "total": 7});
        let waiting = async {
            while !all_values(&client, "totals").await.contains(&expected) {
                tokio::time::sleep(LOOK).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.expect("it has not begun anew");
    });
}

/// The old query fails at the next record: while it is to be changed nothing is read with it.
#[test]
fn a_job_that_failed_of_its_query_is_mended_and_goes_on() {
    let cluster = Cluster::start(2).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        let fails = TOTALS.replacen("'json')", "'json', 'bad_records' = 'fail')", 1);
        begin(&client, job(&fails, 2)).await;
        let poison = b"{\"auction\": \"none\"}\n".to_vec();
        client
            .produce_idempotent("bids", poison, "poison")
            .await
            .unwrap();
        let failed = async {
            while client.job("totals").await.unwrap()["state"] != "FAILED" {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(PATIENCE, failed)
            .await
            .expect("it does not fail");

        let _: Value = client
            .put("/v1/jobs/totals", &job(TOTALS, 2))
            .await
            .unwrap();
        let resume = "/v1/jobs/totals/resume";
        let _: Value = client.post(resume, &json!({})).await.unwrap();
        let job = updated(&client).await;
        assert_eq!(job["restarts"].as_array().unwrap().len(), 1, "{job:#}");
        send(&client, PORTION..2 * PORTION).await;
        wait_until_counted(&client, 2 * PORTION).await;
        let job = client.job("totals").await.unwrap();
        assert_eq!(job["dead_letters"], 1, "{job:#}");
    });
}

#[test]
fn a_change_that_is_none_or_not_possible_is_answered_so() {
    let cluster = Cluster::start_with(1, &["--slots", "2"]).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        begin(&client, job(TOTALS, 1)).await;
        let put = async |body: &Value| client.put::<Value>("/v1/jobs/totals", body).await;
        let same = put(&job(TOTALS, 1)).await.unwrap();
        assert!(same.get("updating").is_none(), "{same:#}");

        let with = |field: &str, value: Value| {
            let mut body = job(TOTALS, 1);
            body[field] = value;
            body
        };
        for body in [
            with("name", json!("others")),
            with("config", json!({"key_groups": 7})),
            with("restore", json!({"from": "file:///tmp/a"})),
            with("parallelism", json!(0)),
        ] {
            let error = put(&body).await.unwrap_err();
            assert_eq!(
                error.code(),
                Some(ErrorCode::InvalidRequest),
                "{body}: {error}"
            );
        }
        let unknown = client
            .put::<Value>("/v1/jobs/others", &job(TOTALS, 1))
            .await;
        assert_eq!(unknown.unwrap_err().code(), Some(ErrorCode::UnknownJob));

        // It waits for slots, is not rescaled meanwhile, and is withdrawn by putting what the job is.
        put(&job(TOTALS, 3)).await.unwrap();
        let rescale = json!({"parallelism": 2});
        let refused = client
            .post::<Value>("/v1/jobs/totals/rescale", &rescale)
            .await;
        assert_eq!(refused.unwrap_err().code(), Some(ErrorCode::Conflict));
        let withdrawn = put(&job(TOTALS, 1)).await.unwrap();
        assert!(withdrawn.get("updating").is_none(), "{withdrawn:#}");
        send(&client, PORTION..2 * PORTION).await;
        wait_until_counted(&client, 2 * PORTION).await;
    });
}
