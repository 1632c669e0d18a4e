//! What the tests do again and again with a cluster.

use std::time::Duration;

use common::client::Client;
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

/// Every committed value of a topic, partition by partition.
pub(crate) async fn all_values(cluster: &Client, topic: &str) -> Vec<Value> {
    topics::all_values(cluster, topic).await.unwrap()
}
