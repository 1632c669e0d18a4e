//! Records in and out of topics, and the state of operators, through REST.

use reqwest::{Method, RequestBuilder};
use serde::Deserialize;
use serde_json::Value;

use super::{Client, ClientError};
use crate::error::Problem;

/// What became of a request's records.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Produced {
    pub count: u64,
    pub partitions: Vec<ProducedPartition>,
}

/// One partition's share of what was produced.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ProducedPartition {
    pub partition: u32,
    pub base_offset: i64,
    pub count: u64,
    /// The same request was here before, and this is what became of it.
    #[serde(default)]
    pub duplicate: bool,
}

/// The answer as it is sent: a partition that took nothing says why.
#[derive(Debug, Deserialize)]
struct Answer {
    count: u64,
    partitions: Vec<PartitionAnswer>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum PartitionAnswer {
    Refused { error: Box<Problem> },
    Taken(ProducedPartition),
}

/// Records of one partition, and where to go on.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Fetched {
    pub records: Vec<FetchedRecord>,
    pub next_offset: i64,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct FetchedRecord {
    pub offset: i64,
    #[serde(default)]
    pub key: Option<Value>,
    #[serde(default)]
    pub value: Option<Value>,
}

impl Client {
    /// Appends one record per value; answered once they are on disk.
    pub async fn produce(&self, topic: &str, values: &[Value]) -> Result<Produced, ClientError> {
        let mut body = Vec::new();
        for value in values {
            serde_json::to_writer(&mut body, value).expect("a JSON value can be written");
            body.push(b'\n');
        }
        self.produce_ndjson(topic, body, None).await
    }

    /// Appends one record per line. `key`: the JSON pointer of the record key.
    pub async fn produce_ndjson(
        &self,
        topic: &str,
        lines: Vec<u8>,
        key: Option<&str>,
    ) -> Result<Produced, ClientError> {
        let query = key.map(|key| format!("?key={key}")).unwrap_or_default();
        let path = format!("/v1/topics/{topic}/records{query}");
        let request = self
            .request(Method::POST, &path)
            .header("content-type", "application/x-ndjson")
            .body(lines);
        self.produced(&path, request).await
    }

    /// Appends one record per line, once: a request with the same key as one that was acknowledged is
    /// answered as that one was, and changes nothing.
    pub async fn produce_idempotent(
        &self,
        topic: &str,
        lines: Vec<u8>,
        key: &str,
    ) -> Result<Produced, ClientError> {
        let path = format!("/v1/topics/{topic}/records");
        let request = self
            .request(Method::POST, &path)
            .header("content-type", "application/x-ndjson")
            .header("idempotency-key", key)
            .body(lines);
        self.produced(&path, request).await
    }

    async fn produced(&self, path: &str, request: RequestBuilder) -> Result<Produced, ClientError> {
        let answer = self.send(path, request).await?;
        self.decode::<Answer>(path, answer).await?.complete()
    }

    /// Committed records of a partition from an offset on; waits up to `wait_ms` for the first.
    pub async fn fetch(
        &self,
        topic: &str,
        partition: u32,
        offset: i64,
        max_records: usize,
        wait_ms: u64,
    ) -> Result<Fetched, ClientError> {
        self.get(&format!(
            "/v1/topics/{topic}/partitions/{partition}/records\
             ?offset={offset}&max_records={max_records}&wait_ms={wait_ms}"
        ))
        .await
    }

    /// The state an operator keeps for a key, at the last completed checkpoint.
    pub async fn state(
        &self,
        job: &str,
        operator: &str,
        key: &Value,
    ) -> Result<Value, ClientError> {
        let key = percent_encoded(&key.to_string());
        self.get(&format!(
            "/v1/jobs/{job}/operators/{operator}/state?key={key}"
        ))
        .await
    }
}

impl Answer {
    fn complete(self) -> Result<Produced, ClientError> {
        let partitions = self
            .partitions
            .into_iter()
            .map(|partition| match partition {
                PartitionAnswer::Taken(taken) => Ok(taken),
                PartitionAnswer::Refused { error } => Err(ClientError::Incomplete(error)),
            });
        Ok(Produced {
            count: self.count,
            partitions: partitions.collect::<Result<_, _>>()?,
        })
    }
}

/// A text as it may stand in a query.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(answer: &str) -> Result<Produced, ClientError> {
        serde_json::from_str::<Answer>(answer).unwrap().complete()
    }

    #[test]
    fn an_answer_in_which_one_partition_took_nothing_is_no_success() {
        let taken = r#"{"partition": 1, "base_offset": 7, "count": 2}"#;
        let produced = complete(&format!(r#"{{"count": 2, "partitions": [{taken}]}}"#)).unwrap();
        assert_eq!(produced.partitions[0].base_offset, 7);

        let problem = Problem::new(crate::error::ErrorCode::NotLeader, "moved");
        let refused = serde_json::json!({"partition": 2, "count": 0, "error": problem});
        let error = complete(&format!(
            r#"{{"count": 2, "partitions": [{taken}, {refused}]}}"#
        ))
        .unwrap_err();
        assert_eq!(error.code(), Some(crate::error::ErrorCode::NotLeader));
    }

    #[test]
    fn a_key_of_any_kind_survives_a_query() {
        assert_eq!(percent_encoded("\"a b&c\""), "%22a%20b%26c%22");
        assert_eq!(percent_encoded("ü"), "%C3%BC");
    }
}
