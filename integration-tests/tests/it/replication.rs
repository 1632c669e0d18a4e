//! Topics with several replicas: workers are killed, lose their disks, come back, and go different ways.

use std::time::Duration;

use common::client::Client;
use common::error::ErrorCode;
use integration_tests::cluster::Cluster;
use integration_tests::replica_logs::log_of;
use serde_json::{Value, json};

use crate::steps::{LOOK, PATIENCE, all_values, index_of, talk};

async fn create(client: &Client, name: &str, partitions: u32, replicas: u32, fewest: u32) {
    let topic = json!({
        "name": name,
        "partitions": partitions,
        "replication_factor": replicas,
        "config": {"min_insync_replicas": fewest},
    });
    let _: Value = client.post("/v1/topics", &topic).await.unwrap();
}

/// The topic's partitions, once all of them are as they should be.
pub(crate) async fn partitions_when(
    client: &Client,
    topic: &str,
    what: &str,
    is_so: impl Fn(&Value) -> bool,
) -> Vec<Value> {
    let mut seen = Value::Null;
    let waiting = async {
        loop {
            if let Ok(described) = client.get::<Value>(&format!("/v1/topics/{topic}")).await {
                let partitions = described["partitions"].as_array().unwrap();
                if partitions.iter().all(&is_so) {
                    return partitions.clone();
                }
                seen = described;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("{what}: {seen:#}"))
}

pub(crate) fn in_sync(partition: &Value) -> usize {
    partition["in_sync"].as_array().unwrap().len()
}

/// The index, in the order they were started, of the worker that leads a partition.
pub(crate) async fn leader(
    cluster: &Cluster,
    client: &Client,
    topic: &str,
    partition: usize,
) -> usize {
    let led = |partition: &Value| partition["leader"].is_u64();
    let partitions = partitions_when(client, topic, "nobody leads", led).await;
    index_of(cluster, client, &partitions[partition]["leader"]).await
}

/// The id of the worker that was started in this place.
async fn id_of(cluster: &Cluster, client: &Client, index: usize) -> Value {
    let answer: Value = client.get("/v1/workers").await.unwrap();
    let workers = answer["workers"].as_array().unwrap();
    let address = cluster.worker(index);
    let row = workers.iter().find(|row| row["address"] == address);
    row.unwrap()["id"].clone()
}

fn numbers(range: std::ops::Range<i64>) -> Vec<u8> {
    let lines: Vec<String> = range.map(|n| format!("{{\"n\": {n}}}\n")).collect();
    lines.concat().into_bytes()
}

/// Sends until it is acknowledged; what was appended before an answer got lost is not appended again.
pub(crate) async fn send(client: &Client, topic: &str, range: std::ops::Range<i64>) {
    let key = format!("{}-{}", range.start, range.end);
    let mut last = String::new();
    let sending = async {
        loop {
            let lines = numbers(range.clone());
            match client.produce_idempotent(topic, lines, &key).await {
                Ok(_) => return,
                Err(error) if error.code().is_none_or(ErrorCode::is_retriable) => {
                    last = error.to_string();
                    tokio::time::sleep(LOOK).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    let sent = tokio::time::timeout(PATIENCE, sending).await;
    sent.unwrap_or_else(|_| panic!("it is never acknowledged: {last}"));
}

pub(crate) async fn found(client: &Client, topic: &str) -> Vec<i64> {
    let values = all_values(client, topic).await;
    let mut numbers: Vec<i64> = values.iter().map(|v| v["n"].as_i64().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn what_was_acknowledged_survives_its_leader_and_the_leaders_disk() {
    let mut cluster = Cluster::start(3).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        create(&client, "events", 3, 3, 2).await;
        for batch in 0..20 {
            send(&client, "events", batch * 100..(batch + 1) * 100).await;
        }
        let lost = leader(&cluster, &client, "events", 0).await;
        cluster.kill_worker(lost).unwrap();
        std::fs::remove_dir_all(cluster.worker_directory(lost)).unwrap();
        for batch in 20..40 {
            send(&client, "events", batch * 100..(batch + 1) * 100).await;
        }
        let expected: Vec<i64> = (0..4_000).collect();
        let found = found(&client, "events").await;
        assert!(found == expected, "{} of {}", found.len(), expected.len());
        let others = |partition: &Value| in_sync(partition) == 2 && partition["leader"].is_u64();
        partitions_when(&client, "events", "the lost one is in sync", others).await;
    });
}

#[test]
fn a_follower_that_was_away_catches_up_and_may_lead_then() {
    let mut cluster = Cluster::start(2).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        create(&client, "events", 1, 2, 1).await;
        send(&client, "events", 0..500).await;
        let first = leader(&cluster, &client, "events", 0).await;
        let second = 1 - first;
        cluster.kill_worker(second).unwrap();
        let alone = |partition: &Value| in_sync(partition) == 1;
        partitions_when(&client, "events", "the other one is in sync", alone).await;
        send(&client, "events", 500..1_500).await;
        cluster.restart_worker(second).unwrap();
        let both = |partition: &Value| in_sync(partition) == 2;
        partitions_when(&client, "events", "the other one stays behind", both).await;

        cluster.kill_worker(first).unwrap();
        let expected = id_of(&cluster, &client, second).await;
        let leads = |partition: &Value| partition["leader"] == expected;
        partitions_when(&client, "events", "the other one does not lead", leads).await;
        send(&client, "events", 1_500..1_600).await;
        let found = found(&client, "events").await;
        assert!(found == (0..1_600).collect::<Vec<i64>>(), "{}", found.len());
    });
}

/// Who had asked it waited for ten seconds, when others had led for seven.
#[test]
fn a_leader_that_is_silent_is_not_waited_for_when_others_lead() {
    let mut cluster = Cluster::start(3).unwrap();
    talk(async {
        let through_coordinator = cluster.client().unwrap();
        create(&through_coordinator, "events", 1, 3, 2).await;
        send(&through_coordinator, "events", 0..100).await;
        let leader = leader(&cluster, &through_coordinator, "events", 0).await;
        let other = Client::connect(cluster.worker((leader + 1) % 3)).unwrap();
        let process = cluster.worker_process(leader).unwrap();
        process.signal("STOP").unwrap();
        // It is asked before anybody knows, and answers when it goes on, after this.
        let waits = Duration::from_secs(8);
        let read = |client: Client| async move {
            let path = "/v1/topics/events/partitions/0/records?offset=0";
            client.get::<Value>(path).await
        };
        let asked = async { tokio::join!(read(through_coordinator), read(other)) };
        let answered = tokio::time::timeout(waits, asked).await;
        process.signal("CONT").unwrap();
        let (refused, read) = answered.expect("they waited for it");
        assert_eq!(
            refused.unwrap_err().code(),
            Some(ErrorCode::LeaderUnavailable)
        );
        let records = read.unwrap()["records"].as_array().unwrap().len();
        assert_eq!(records, 100);
    });
}

/// It was answered that it is to be asked again.
#[test]
fn a_question_waits_until_a_new_leader_has_heard_from_its_followers() {
    let mut cluster = Cluster::start(3).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        create(&client, "events", 1, 3, 2).await;
        send(&client, "events", 0..100).await;
        let first = leader(&cluster, &client, "events", 0).await;
        let described: Value = client.get("/v1/topics/events").await.unwrap();
        let replicas = described["partitions"][0]["replicas"].clone();
        let next = index_of(&cluster, &client, &replicas[1]).await;
        let last = 3 - first - next;
        // It is in sync, and says nothing in the next reign.
        let follower = cluster.worker_process(last).unwrap();
        follower.signal("STOP").unwrap();
        cluster.kill_worker(first).unwrap();
        let leads = |partition: &Value| partition["leader"] == replicas[1];
        partitions_when(&client, "events", "the next one does not lead", leads).await;
        let asked = Client::connect(cluster.worker(next)).unwrap();
        let asked = tokio::spawn(async move {
            let path = "/v1/topics/events/partitions/0/records?offset=latest";
            asked.get::<Value>(path).await
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        let follower = cluster.worker_process(last).unwrap();
        follower.signal("CONT").unwrap();
        let answer = asked.await.unwrap().unwrap();
        assert_eq!(answer["end_offset"], 100);
    });
}

/// Chaos seed 933: what a reader had from the next leader was outside of the log of the one before, which did not know
/// yet that it leads no more. A job would have failed of that.
#[test]
fn a_leader_that_was_stopped_does_not_say_that_what_others_have_is_not_there() {
    let mut cluster = Cluster::start(3).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        create(&client, "events", 1, 3, 2).await;
        send(&client, "events", 0..100).await;
        let first = leader(&cluster, &client, "events", 0).await;
        let stopped = Client::connect(cluster.worker(first)).unwrap();
        let process = cluster.worker_process(first).unwrap();
        process.signal("STOP").unwrap();
        send(&client, "events", 100..200).await;
        // Many, so that one of them is answered before it hears of anything.
        let asked: Vec<_> = (0..20)
            .map(|_| {
                let stopped = stopped.clone();
                tokio::spawn(async move {
                    let path = "/v1/topics/events/partitions/0/records?offset=150";
                    stopped.get::<Value>(path).await
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(300)).await;
        process.signal("CONT").unwrap();
        for answer in asked {
            let records = answer.await.unwrap().unwrap()["records"].clone();
            assert_eq!(records.as_array().unwrap().len(), 50);
        }
    });
}

#[test]
fn a_lost_replica_is_replaced_and_a_topic_moves_to_the_workers_it_is_told() {
    let mut cluster = Cluster::start(3).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        create(&client, "events", 2, 2, 1).await;
        send(&client, "events", 0..500).await;
        let lost = leader(&cluster, &client, "events", 0).await;
        let lost_id = id_of(&cluster, &client, lost).await;
        cluster.kill_worker(lost).unwrap();
        std::fs::remove_dir_all(cluster.worker_directory(lost)).unwrap();
        let without = |partition: &Value| {
            !partition["in_sync"].as_array().unwrap().contains(&lost_id)
                && partition["leader"].is_u64()
        };
        partitions_when(&client, "events", "the lost one is in sync", without).await;
        let path = "/v1/topics/events/reassign";
        let _: Value = client.post(path, &json!({})).await.unwrap();
        let replaced = |partition: &Value| {
            in_sync(partition) == 2
                && partition["moving_to"].is_null()
                && !partition["replicas"].as_array().unwrap().contains(&lost_id)
        };
        partitions_when(&client, "events", "it is not replaced", replaced).await;
        send(&client, "events", 500..600).await;

        // All of it to one worker, and the other may go as well.
        let stays = (lost + 1) % 3;
        let goes = (lost + 2) % 3;
        let target = id_of(&cluster, &client, stays).await;
        let to_one = json!({"replicas": [[target], [target]]});
        let _: Value = client.post(path, &to_one).await.unwrap();
        let moved = |partition: &Value| {
            partition["leader"] == target && partition["replicas"] == json!([target])
        };
        partitions_when(&client, "events", "it is not moved", moved).await;
        cluster.kill_worker(goes).unwrap();
        send(&client, "events", 600..700).await;
        let found = found(&client, "events").await;
        assert!(found == (0..700).collect::<Vec<i64>>(), "{}", found.len());

        for (wrong, code) in [
            (json!({"replicas": [[target]]}), ErrorCode::InvalidRequest),
            (
                json!({"replicas": [[target, target], [target]]}),
                ErrorCode::InvalidRequest,
            ),
            (
                json!({"replicas": [[lost_id], [target]]}),
                ErrorCode::UnknownWorker,
            ),
            (
                json!({"replicas": [[target], [target]], "replication_factor": 1}),
                ErrorCode::InvalidRequest,
            ),
            (
                json!({"replication_factor": 3}),
                ErrorCode::NotEnoughReplicas,
            ),
            (
                json!({"replication_factor": 9}),
                ErrorCode::UnsupportedReplicationFactor,
            ),
        ] {
            let refused = client.post::<Value>(path, &wrong).await.unwrap_err();
            assert_eq!(refused.code(), Some(code), "{wrong}");
        }
    });
}

#[test]
fn half_of_the_replicas_are_enough_unless_told_otherwise_and_a_jobs_topics_have_as_many() {
    let cluster = Cluster::start(3).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        let topic = json!({"name": "events", "replication_factor": 3});
        let _: Value = client.post("/v1/topics", &topic).await.unwrap();
        let sql = "CREATE TABLE events (n BIGINT) WITH (connector = 'topic', topic = 'events');
                   CREATE TABLE twice WITH (connector = 'topic', topic = 'twice');
                   INSERT INTO twice SELECT n * 2 AS n FROM events;";
        client.create_job("twice", sql).await.unwrap();
        for name in ["events", "twice", "twice.dead-letters"] {
            let topic: Value = client.get(&format!("/v1/topics/{name}")).await.unwrap();
            assert_eq!(topic["replication_factor"], 3, "{topic}");
            assert_eq!(topic["config"]["min_insync_replicas"], 2, "{topic}");
        }
        let four = json!({"name": "more", "replication_factor": 4});
        let refused = client.post::<Value>("/v1/topics", &four).await.unwrap_err();
        assert_eq!(refused.code(), Some(ErrorCode::NotEnoughReplicas));
    });
}

#[test]
fn with_too_few_replicas_nothing_is_written_and_all_is_read() {
    let mut cluster = Cluster::start(2).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        create(&client, "events", 1, 2, 2).await;
        send(&client, "events", 0..100).await;
        let first = leader(&cluster, &client, "events", 0).await;
        cluster.kill_worker(1 - first).unwrap();
        let refused = async {
            loop {
                let sent = client
                    .produce_ndjson("events", numbers(100..101), None)
                    .await;
                match sent.map_err(|error| error.code()) {
                    Err(Some(ErrorCode::NotEnoughReplicas)) => return,
                    // The other one is not missed yet, and nobody can say whether it has the record.
                    Err(Some(ErrorCode::Timeout | ErrorCode::Unknown)) | Ok(_) => {}
                    Err(other) => panic!("{other:?}"),
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let refused = tokio::time::timeout(PATIENCE, refused).await;
        refused.expect("it is taken with one replica");
        assert_eq!(
            found(&client, "events").await[..100],
            (0..100).collect::<Vec<i64>>()
        );
        cluster.restart_worker(1 - first).unwrap();
        send(&client, "events", 1_000..1_100).await;
        assert!(found(&client, "events").await.ends_with(&[1_098, 1_099]));
    });
}

/// The old leader has records that no other has, and they are not the ones that came after them.
#[test]
fn a_log_that_went_another_way_is_cut_back_to_where_they_agree() {
    let mut cluster = Cluster::start(3).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        create(&client, "events", 1, 3, 2).await;
        send(&client, "events", 0..300).await;
        let topic: Value = client.get("/v1/topics/events").await.unwrap();
        let id = topic["id"].as_str().unwrap();
        let first = leader(&cluster, &client, "events", 0).await;
        let others: Vec<usize> = (0..3).filter(|worker| *worker != first).collect();
        for other in &others {
            cluster
                .worker_process(*other)
                .unwrap()
                .signal("STOP")
                .unwrap();
        }
        // Only on the leader's disk, which says so.
        let alone = Client::connect(cluster.worker(first)).unwrap();
        let path = "/v1/topics/events/records?acks=leader";
        for n in 1_000..1_050 {
            let record = json!({"records": [{"value": {"n": n}}]});
            let _: Value = alone.post(path, &record).await.unwrap();
        }
        cluster.kill_worker(first).unwrap();
        for other in &others {
            cluster
                .worker_process(*other)
                .unwrap()
                .signal("CONT")
                .unwrap();
        }
        send(&client, "events", 300..400).await;
        let before = found(&client, "events").await;
        // The first of them may have been on their way to the others.
        let arrived = before.iter().filter(|n| **n >= 1_000).count();
        assert!(arrived < 50, "all of them were");
        let expected: Vec<i64> = (0..400).chain((1_000..).take(arrived)).collect();
        assert_eq!(before, expected);

        cluster.restart_worker(first).unwrap();
        let all = |partition: &Value| in_sync(partition) == 3;
        partitions_when(&client, "events", "the old leader stays behind", all).await;
        send(&client, "events", 400..500).await;
        let same = async {
            loop {
                let log = |worker| log_of(&cluster.worker_directory(worker), id, 0).unwrap();
                let now: Vec<_> = (0..3).map(log).collect();
                if now[0] == now[1] && now[1] == now[2] {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let same = tokio::time::timeout(PATIENCE, same).await;
        same.expect("the logs stay different");
        let after = found(&client, "events").await;
        let expected: Vec<i64> = (0..500).chain((1_000..).take(arrived)).collect();
        assert_eq!(after, expected);
    });
}

#[test]
fn replicas_are_in_different_racks() {
    let mut cluster = Cluster::start(0).unwrap();
    for rack in ["a", "a", "a", "b"] {
        cluster.add_worker_with(&["--rack", rack]).unwrap();
    }
    let client = cluster.client().unwrap();
    talk(async {
        let workers: Value = client.get("/v1/workers").await.unwrap();
        let workers = workers["workers"].as_array().unwrap();
        let in_b = workers.iter().filter(|worker| worker["rack"] == "b");
        let in_b: Vec<&Value> = in_b.map(|worker| &worker["id"]).collect();
        assert_eq!((workers.len(), in_b.len()), (4, 1));
        create(&client, "events", 6, 2, 1).await;
        let partitions = partitions_when(&client, "events", "it is not there", |_| true).await;
        for partition in partitions {
            let replicas = partition["replicas"].as_array().unwrap();
            assert_eq!(replicas.len(), 2);
            assert!(replicas.contains(in_b[0]), "{partition}");
        }
    });
}
