//! Three coordinators that are one: killed, replaced, cut down to a minority, and mixed up by their operators.

use std::collections::BTreeSet;
use std::time::Duration;

use common::client::Client;
use integration_tests::cluster::Cluster;
use integration_tests::measure::Stopwatch;
use integration_tests::network::{Fault, Faults, Network, links_of};
use integration_tests::process::{Process, binary};
use serde_json::{Value, json};

use crate::steps::{PATIENCE, talk, wait_for};

const LOOK: Duration = Duration::from_millis(20);

/// The coordinator's description of the cluster, once `is_so` says that it is as it should be.
async fn cluster_when(address: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let client = Client::connect(address).unwrap();
    let mut seen = Value::Null;
    let waiting = async {
        loop {
            match client.get("/v1/cluster").await {
                Ok(cluster) if is_so(&cluster) => return cluster,
                Ok(cluster) => seen = cluster,
                // Nobody leads for a moment.
                Err(error) => seen = json!(error.to_string()),
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("{what}: {seen:#}"))
}

fn leads(coordinator: &Value) -> bool {
    coordinator["leads"] == true
}

fn coordinators(cluster: &Value) -> &[Value] {
    cluster["coordinators"]
        .as_array()
        .map_or(&[], Vec::as_slice)
}

fn voters(cluster: &Value) -> BTreeSet<u64> {
    let voting = coordinators(cluster).iter().filter(|c| c["votes"] == true);
    voting.map(|c| c["id"].as_u64().unwrap()).collect()
}

/// The index, in the order they were started, of the one that leads, as this coordinator says.
async fn leader(cluster: &Cluster, asked: usize) -> usize {
    let addresses = cluster.coordinator_addresses();
    let described = cluster_when(&addresses[asked], "nobody leads", |cluster| {
        coordinators(cluster).iter().any(leads)
    })
    .await;
    let leader = coordinators(&described).iter().find(|c| leads(c)).unwrap();
    let address = leader["address"].as_str().unwrap();
    addresses.iter().position(|a| a == address).unwrap()
}

/// Creates a topic, and goes on trying while nobody leads; says how long it took.
async fn create(address: &str, topic: &str) -> Duration {
    let client = Client::connect(address).unwrap();
    let begun = Stopwatch::start();
    let mut last = None;
    let creating = async {
        loop {
            let body = json!({"name": topic, "partitions": 1});
            match client.post::<Value>("/v1/topics", &body).await {
                Ok(_) => return begun.elapsed(),
                // It was created by a request whose answer was lost.
                Err(error) if code(&error) == "ALREADY_EXISTS" => return begun.elapsed(),
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let created = tokio::time::timeout(PATIENCE, creating).await;
    created.unwrap_or_else(|_| panic!("topic {topic} cannot be created at {address}: {last:?}"))
}

fn code(error: &common::client::ClientError) -> String {
    match serde_json::to_value(error.code()) {
        Ok(Value::String(code)) => code,
        _ => String::new(),
    }
}

/// The newest completed checkpoint of a job, and the generation that runs.
async fn progress(client: &Client, job: &str) -> Option<(u64, u64)> {
    let listed: Value = client
        .get(&format!("/v1/jobs/{job}/checkpoints"))
        .await
        .ok()?;
    let completed = listed["checkpoints"].as_array()?.iter();
    let completed = completed.filter(|entry| entry["status"] == "completed");
    let newest = completed
        .filter_map(|entry| entry["epoch"].as_u64())
        .max()?;
    let job = client.job(job).await.ok()?;
    Some((newest, job["generation"].as_u64()?))
}

async fn completes_another_checkpoint(client: &Client, job: &str, after: u64) -> (u64, u64) {
    let waiting = async {
        loop {
            match progress(client, job).await {
                Some((newest, generation)) if newest > after => return (newest, generation),
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("job {job} completes no checkpoint after {after}"))
}

const COPY: &str = "
    CREATE TABLE bids (auction BIGINT, price BIGINT) WITH (connector = 'topic', topic = 'bids');
    CREATE TABLE copies WITH (connector = 'topic', topic = 'copies');
    INSERT INTO copies SELECT auction, price FROM bids;";

/// The leader is killed again and again: somebody else decides, any coordinator takes the request, and the job
/// that runs is not started anew.
#[test]
fn a_killed_leader_is_replaced_and_a_running_job_does_not_notice() {
    let mut cluster = Cluster::start_group(3, 1).unwrap();
    talk(async {
        let addresses = cluster.coordinator_addresses();
        let described = cluster_when(&addresses[2], "three that vote", |cluster| {
            voters(cluster).len() == 3
        })
        .await;
        assert_eq!(voters(&described), BTreeSet::from([1, 2, 3]));

        create(&addresses[1], "bids").await;
        let client = Client::connect(&addresses[0]).unwrap();
        client
            .produce("bids", &[json!({"auction": 1, "price": 2})])
            .await
            .unwrap();
        client.create_job("copy", COPY).await.unwrap();
        wait_for(&client, "copy", "RUNNING").await;
        let (mut newest, generation) = completes_another_checkpoint(&client, "copy", 0).await;

        for round in 0..3 {
            let killed = leader(&cluster, round % 3).await;
            cluster.kill_coordinator_at(killed).unwrap();
            let survivors = (0..3).filter(|index| *index != killed);
            for (number, survivor) in survivors.enumerate() {
                let took = create(&addresses[survivor], &format!("topic-{round}-{number}")).await;
                eprintln!(
                    "round {round}: topic {number} after {} ms",
                    took.as_millis()
                );
            }
            let survivor = (killed + 1) % 3;
            let asked = Client::connect(&addresses[survivor]).unwrap();
            let after = completes_another_checkpoint(&asked, "copy", newest).await;
            newest = after.0;
            assert_eq!(after.1, generation, "the job was started anew");

            // It comes back with its disk, and has caught up when it can lead: which the next round asks of it.
            cluster.restart_coordinator_at(killed).unwrap();
            let topics = Client::connect(&addresses[killed]).unwrap();
            cluster_when(&addresses[killed], "it follows", |cluster| {
                voters(cluster).len() == 3
            })
            .await;
            let listed: Value = topics.get("/v1/topics?limit=1000").await.unwrap();
            assert_eq!(
                listed["topics"].as_array().unwrap().len(),
                3 + 2 * (round + 1)
            );
        }
    });
}

/// Two of three are needed. One alone refuses, says why, and decides again once another one is back.
#[test]
fn a_minority_decides_nothing_and_recovers() {
    let mut cluster = Cluster::start_group(3, 1).unwrap();
    talk(async {
        let addresses = cluster.coordinator_addresses();
        create(&addresses[0], "before").await;
        let leading = leader(&cluster, 0).await;
        let (left, others) = (leading, [(leading + 1) % 3, (leading + 2) % 3]);
        for other in others {
            cluster.kill_coordinator_at(other).unwrap();
        }
        let client = Client::connect(&addresses[left]).unwrap();
        let refused = async {
            loop {
                match client.create_topic("alone", 1).await {
                    Ok(_) => panic!("one of three decided"),
                    Err(error) if code(&error) == "COORDINATOR_UNAVAILABLE" => return error,
                    // The one that was under way when the others died: nobody knows what becomes of it.
                    Err(_) => tokio::time::sleep(LOOK).await,
                }
            }
        };
        let error = tokio::time::timeout(PATIENCE, refused).await.unwrap();
        let said = error.to_string();
        assert!(said.contains(&addresses[others[0]]), "{said}");
        assert!(said.contains("fewer than 2"), "{said}");

        cluster.restart_coordinator_at(others[1]).unwrap();
        create(&addresses[left], "together").await;
        create(&addresses[others[1]], "again").await;
    });
}

/// One becomes three, one after the other; then one of them dies for good and is replaced.
#[test]
fn a_group_grows_and_replaces_a_member() {
    let mut cluster = Cluster::start(1).unwrap();
    talk(async {
        let first = cluster.coordinator().to_owned();
        create(&first, "before").await;
        let client = Client::connect(&first).unwrap();
        let last = client.delete("/v1/coordinators/1").await.unwrap_err();
        assert_eq!(code(&last), "CONFLICT", "{last}");
        let unknown = client.delete("/v1/coordinators/7").await.unwrap_err();
        assert_eq!(code(&unknown), "UNKNOWN_COORDINATOR", "{unknown}");

        for number in [2, 3] {
            cluster.add_coordinator().unwrap();
            let address = cluster.coordinator_addresses().pop().unwrap();
            let early = Client::connect(&address)
                .unwrap()
                .create_topic("early", 1)
                .await;
            assert_eq!(code(&early.unwrap_err()), "COORDINATOR_UNAVAILABLE");
            let body = json!({"address": address});
            let added: Value = client.post("/v1/coordinators", &body).await.unwrap();
            assert_eq!(added["id"], number);
            assert_eq!(added["votes"], number == 3, "{added}");
        }
        let described = cluster_when(&first, "three", |cluster| voters(cluster).len() == 3).await;
        assert_eq!(voters(&described), BTreeSet::from([1, 2, 3]));
        let shrunk = client.delete("/v1/coordinators/3").await.unwrap_err();
        assert_eq!(code(&shrunk), "CONFLICT", "{shrunk}");

        // The first one dies with its disk, and a fourth takes its place.
        cluster.kill_coordinator_at(0).unwrap();
        let addresses = cluster.coordinator_addresses();
        create(&addresses[1], "without-the-first").await;
        let peers = addresses[1].clone();
        cluster.add_coordinator_with(&peers).unwrap();
        let address = cluster.coordinator_addresses().pop().unwrap();
        let client = Client::connect(&addresses[2]).unwrap();
        let added: Value = client
            .post("/v1/coordinators", &json!({"address": address}))
            .await
            .unwrap();
        assert_eq!(added["id"], 4, "numbers are not given twice");
        client.delete("/v1/coordinators/1").await.unwrap();
        let described = cluster_when(&address, "three others", |cluster| {
            voters(cluster) == BTreeSet::from([2, 3, 4])
        })
        .await;
        assert_eq!(coordinators(&described).len(), 3);

        // Which the worker has heard of, though it was started with the first one's address only.
        for coordinator in [1, 2] {
            let leading = leader(&cluster, 3).await;
            let other = (1..4).find(|index| *index != leading).unwrap();
            cluster.kill_coordinator_at(leading).unwrap();
            create(
                &addresses_of(&cluster, other),
                &format!("after-{coordinator}"),
            )
            .await;
            let asked = Client::connect(&addresses_of(&cluster, other)).unwrap();
            let sent = json!({"still": "there"});
            asked
                .produce(&format!("after-{coordinator}"), &[sent])
                .await
                .unwrap();
            cluster.restart_coordinator_at(leading).unwrap();
        }
    });
}

fn addresses_of(cluster: &Cluster, index: usize) -> String {
    cluster.coordinator_addresses()[index].clone()
}

/// Somebody else's coordinator is not taken in, and a copied directory does not start in another's place.
#[test]
fn what_belongs_elsewhere_is_refused() {
    let ours = Cluster::start(0).unwrap();
    let theirs = Cluster::start(0).unwrap();
    talk(async {
        let client = ours.client().unwrap();
        let body = json!({"address": theirs.coordinator()});
        let refused = client
            .post::<Value>("/v1/coordinators", &body)
            .await
            .unwrap_err();
        assert_eq!(code(&refused), "WRONG_CLUSTER", "{refused}");
        let nobody = json!({"address": "http://127.0.0.1:9"});
        let refused = client
            .post::<Value>("/v1/coordinators", &nobody)
            .await
            .unwrap_err();
        assert_eq!(code(&refused), "COORDINATOR_UNAVAILABLE", "{refused}");
        let nonsense = json!({"address": "somewhere"});
        let refused = client
            .post::<Value>("/v1/coordinators", &nonsense)
            .await
            .unwrap_err();
        assert_eq!(code(&refused), "INVALID_REQUEST", "{refused}");
    });

    let mut group = Cluster::start_group(3, 0).unwrap();
    let addresses = group.coordinator_addresses();
    talk(async {
        leader(&group, 0).await;
    });
    group.kill_coordinator_at(1).unwrap();
    group.kill_coordinator_at(2).unwrap();
    let said = group.coordinator_directory(1).with_extension("stderr");
    let args = [
        "--listen",
        addresses[1].trim_start_matches("http://"),
        "--data-dir",
        &group.coordinator_directory(2).display().to_string(),
        "--peers",
        &addresses.join(","),
    ]
    .map(str::to_owned);
    let program = binary("coordinator").unwrap();
    let mut process =
        Process::start_logging("coordinator", &program, &args, &[], Some(&said)).unwrap();
    process.ready().unwrap_err();
    let said = std::fs::read_to_string(said).unwrap();
    assert!(said.contains("that of coordinator 3"), "{said}");
    assert!(
        said.contains("Start coordinator 2 with its own data directory"),
        "{said}"
    );
}

/// The list of peers must be the same everywhere, or there is no group; who founds it says so.
#[test]
fn coordinators_with_different_peers_form_no_group() {
    let mut cluster = Cluster::start_group_with(&[&[0, 1, 2], &[0, 1], &[0, 1, 2]]).unwrap();
    talk(async {
        let addresses = cluster.coordinator_addresses();
        let client = Client::connect(&addresses[0]).unwrap();
        let waiting = async {
            loop {
                let refused = client.create_topic("early", 1).await.unwrap_err();
                assert_eq!(code(&refused), "COORDINATOR_UNAVAILABLE", "{refused}");
                if refused.to_string().contains("same --peers")
                    && refused.to_string().contains("started with")
                {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    });
    cluster.kill_coordinator().unwrap();
}

/// The others go on without it, and it does not know.
#[test]
fn a_leader_that_is_cut_off_does_not_answer_what_it_cannot_know() {
    let network = Network::start().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start_in(directory.path(), 3, 1, &network).unwrap();
    talk(async {
        let addresses = cluster.coordinator_addresses();
        let old = leader(&cluster, 0).await;
        let cut_off = Client::connect(&addresses[old]).unwrap();
        create(&addresses[old], "before").await;
        network.set(links_of(old, 3, Fault::Cut));
        create(&addresses[(old + 1) % 3], "meanwhile").await;
        let refused = cut_off.get::<Value>("/v1/topics").await.unwrap_err();
        assert_eq!(code(&refused), "COORDINATOR_UNAVAILABLE", "{refused}");
        network.set(Faults::new());
        let answering = async {
            loop {
                if let Ok(answer) = cut_off.get::<Value>("/v1/topics").await {
                    return answer;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let answered = tokio::time::timeout(PATIENCE, answering).await;
        let answer = answered.expect("it goes on refusing");
        // The first thing that it says again is how things are now.
        let topics = answer["topics"].as_array().unwrap();
        let names: BTreeSet<&str> = topics.iter().filter_map(|t| t["name"].as_str()).collect();
        assert_eq!(names, ["before", "meanwhile"].into());
    });
}
