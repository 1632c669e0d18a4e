//! What the tests do again and again with a cluster.

use std::time::Duration;

use common::client::Client;
use integration_tests::cluster::Cluster;
use integration_tests::topics;
use serde_json::Value;

/// How often something that is waited for is looked at.
pub(crate) const LOOK: Duration = Duration::from_millis(50);
/// What takes longer than this does not happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a test's conversation with a cluster.
pub(crate) fn talk(conversation: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(conversation);
}

/// Waits until a job is in this state.
pub(crate) async fn wait_for(cluster: &Client, job: &str, state: &str) -> Value {
    let mut seen = Value::Null;
    let waiting = async {
        loop {
            // A node that is down for a moment is part of many tests.
            if let Ok(description) = cluster.job(job).await {
                if description["state"] == state {
                    return description;
                }
                assert_ne!(description["state"], "FAILED", "{}", description["reason"]);
                seen = description;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("job {job} is not {state}: {seen:#}"))
}

/// Every committed value of a topic, partition by partition. A partition may be without a leader for a moment.
pub(crate) async fn all_values(cluster: &Client, topic: &str) -> Vec<Value> {
    let mut error = None;
    let reading = async {
        loop {
            match topics::all_values(cluster, topic).await {
                Ok(values) => return values,
                Err(failed) => error = Some(failed),
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let read = tokio::time::timeout(PATIENCE, reading).await;
    read.unwrap_or_else(|_| panic!("topic {topic} cannot be read: {error:?}"))
}

/// In which place, in the order they were started, a worker of this id was.
pub(crate) async fn index_of(cluster: &Cluster, client: &Client, worker: &Value) -> usize {
    let answer: Value = client.get("/v1/workers").await.unwrap();
    let workers = answer["workers"].as_array().unwrap();
    let row = workers.iter().find(|row| row["id"] == *worker).unwrap();
    let address = row["address"].as_str().unwrap();
    let mut indices = 0..cluster.workers();
    indices.find(|i| cluster.worker(*i) == address).unwrap()
}
