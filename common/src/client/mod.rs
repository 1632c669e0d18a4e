//! The public SDK: a program's way to a cluster, through any one of its nodes.
//!
//! ```no_run
//! # async fn example() -> Result<(), common::client::ClientError> {
//! use common::client::Client;
//! use serde_json::json;
//!
//! let cluster = Client::connect("http://127.0.0.1:7070")?;
//! cluster.create_topic("clicks", 4).await?;
//! cluster.produce("clicks", &[json!({"user": 7, "page": "/cart"})]).await?;
//! cluster.create_job("carts", "CREATE TABLE …").await?;
//! # Ok(()) }
//! ```

pub mod records;

use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::error::Problem;

/// A handle on a cluster. Cheap to clone; must be used on one tokio runtime.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    client_id: Option<String>,
    http: reqwest::Client,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The cluster refused, and said why.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// Some partitions took their records and others did not; the problem is that of the first which did
    /// not. Only a request with an idempotency key may be sent again.
    #[error("only some partitions took their records: {0}")]
    Incomplete(Box<Problem>),
    /// No node answered, or the connection was lost: the request may have been carried out.
    #[error("cannot reach {address}: {detail}")]
    Unreachable { address: String, detail: String },
    /// The answer is not one that this client understands.
    #[error("unexpected answer to {request}: {detail}")]
    Unexpected { request: String, detail: String },
}

/// Longer than any long poll.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

impl Client {
    /// A client of the cluster that the node at `address` (`http://host:port`) belongs to. Nothing is sent yet.
    pub fn connect(address: &str) -> Result<Client, ClientError> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(REQUEST_TIMEOUT)
            .tcp_nodelay(true)
            .build()
            .map_err(|error| unreachable(address, &error))?;
        Ok(Client {
            base: address.trim_end_matches('/').to_owned(),
            client_id: None,
            http,
        })
    }

    /// Whose quotas its requests count for, as Kafka's `client.id`; else it is the address they come from.
    pub fn with_client_id(mut self, client_id: &str) -> Client {
        self.client_id = Some(client_id.to_owned());
        self
    }

    pub fn address(&self) -> &str {
        &self.base
    }

    /// Creates a topic with default settings.
    pub async fn create_topic(&self, name: &str, partitions: u32) -> Result<Value, ClientError> {
        self.post(
            "/v1/topics",
            &json!({"name": name, "partitions": partitions}),
        )
        .await
    }

    /// Deploys a job from SQL.
    pub async fn create_job(&self, name: &str, sql: &str) -> Result<Value, ClientError> {
        self.post("/v1/jobs", &json!({"name": name, "sql": sql}))
            .await
    }

    pub async fn job(&self, name: &str) -> Result<Value, ClientError> {
        self.get(&format!("/v1/jobs/{name}")).await
    }

    /// The JSON answer to a GET of this path and query.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let request = self.request(Method::GET, path);
        self.decode(path, self.send(path, request).await?).await
    }

    /// The JSON answer to a POST of this body.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let request = self.request(Method::POST, path).json_body(path, body)?;
        self.decode(path, self.send(path, request).await?).await
    }

    /// The JSON answer to a PUT of this body.
    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let request = self.request(Method::PUT, path).json_body(path, body)?;
        self.decode(path, self.send(path, request).await?).await
    }

    /// The JSON answer to a PATCH of this body.
    pub async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let request = self.request(Method::PATCH, path).json_body(path, body)?;
        self.decode(path, self.send(path, request).await?).await
    }

    pub async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.send(path, self.request(Method::DELETE, path))
            .await
            .map(|_| ())
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.client_id {
            Some(client_id) => request.header("x-client-id", client_id),
            None => request,
        }
    }

    /// Sends a request; an answer that is a problem is an error.
    pub(crate) async fn send(
        &self,
        path: &str,
        request: RequestBuilder,
    ) -> Result<Response, ClientError> {
        let response = request
            .send()
            .await
            .map_err(|error| unreachable(&self.base, &error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response
            .bytes()
            .await
            .map_err(|error| unreachable(&self.base, &error))?;
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Err(ClientError::Refused(Box::new(problem))),
            Err(_) => Err(unexpected_status(path, status)),
        }
    }

    /// The JSON in an answer. A node that dies while it answers was as good as not reached.
    pub(crate) async fn decode<T: DeserializeOwned>(
        &self,
        path: &str,
        response: Response,
    ) -> Result<T, ClientError> {
        let body = response
            .bytes()
            .await
            .map_err(|error| unreachable(&self.base, &error))?;
        let body: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(body).map_err(|error| unexpected(path, error.to_string()))
    }
}

impl ClientError {
    /// The problem's code, if the cluster refused.
    pub fn code(&self) -> Option<crate::error::ErrorCode> {
        match self {
            ClientError::Refused(problem) | ClientError::Incomplete(problem) => Some(problem.code),
            ClientError::Unreachable { .. } | ClientError::Unexpected { .. } => None,
        }
    }
}

trait JsonBody: Sized {
    fn json_body(self, path: &str, body: &impl Serialize) -> Result<Self, ClientError>;
}

impl JsonBody for RequestBuilder {
    fn json_body(self, path: &str, body: &impl Serialize) -> Result<RequestBuilder, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| unexpected(path, error.to_string()))?;
        Ok(self.header("content-type", "application/json").body(body))
    }
}

fn unreachable(address: &str, error: &reqwest::Error) -> ClientError {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    ClientError::Unreachable {
        address: address.to_owned(),
        detail: innermost.to_string(),
    }
}

fn unexpected(request: &str, detail: String) -> ClientError {
    ClientError::Unexpected {
        request: request.to_owned(),
        detail,
    }
}

fn unexpected_status(request: &str, status: StatusCode) -> ClientError {
    unexpected(
        request,
        format!("status {status} without a problem document"),
    )
}
