//! Jobs over rows that change, and what they make of changes that are none.

use integration_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::steps::{all_values, talk, wait_for};

/// PostgreSQL leaves out the row before an update unless it is told otherwise. Such an update counted a second
/// time in a running aggregate.
#[test]
fn an_update_without_the_row_before_is_a_dead_letter_and_does_not_count_twice() {
    let sql = "
        CREATE TABLE orders (id BIGINT, amount BIGINT) WITH (
            connector = 'topic', topic = 'orders', format = 'debezium_json', 'scan.bounded.mode' = 'latest'
        );
        CREATE TABLE totals (all_orders BIGINT, amount BIGINT)
        WITH (connector = 'topic', topic = 'totals', format = 'debezium_json');
        INSERT INTO totals SELECT count(*), sum(amount) FROM orders;";
    let order = |id: i64, amount: i64| json!({"id": id, "amount": amount});
    let changes = [
        json!({"op": "c", "after": order(1, 10)}),
        json!({"op": "c", "after": order(2, 20)}),
        json!({"op": "u", "before": order(1, 10), "after": order(1, 11)}),
        json!({"op": "u", "before": null, "after": order(2, 21)}),
        json!({"op": "d"}),
    ];
    let cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        client.create_topic("orders", 1).await.unwrap();
        client.produce("orders", &changes).await.unwrap();
        client.create_job("totals", sql).await.unwrap();
        let finished = wait_for(&client, "totals", "FINISHED").await;
        assert_eq!(finished["dead_letters"], 2);
        let totals = all_values(&client, "totals").await;
        let left: Vec<&Value> = totals.iter().map(|change| &change["after"]).collect();
        assert_eq!(
            left.last(),
            Some(&&json!({"all_orders": 2, "amount": 31})),
            "{left:?}"
        );
        let letters = all_values(&client, "totals.dead-letters").await;
        assert_eq!(letters.len(), 2);
        for letter in &letters {
            assert_eq!(letter["reason"], "bad_record", "{letter}");
            let detail = letter["detail"].as_str().unwrap();
            assert!(detail.contains("REPLICA IDENTITY FULL"), "{letter}");
        }
    });
}
