//! The way out of a node: one thread with a runtime of its own holds every connection, and any number of
//! handles put requests to it, from any thread and any runtime.
//!
//! Pooled connections belong to the runtime that opened them, so no arbiter may own them. A request is
//! encoded and its reply decoded by the caller; the transport thread moves bytes only. A call that is
//! dropped before its answer is given up, which says nothing about whether the receiver acted on it.

use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use super::{MSGPACK, PROBLEM_JSON, PROBLEM_MSGPACK, msgpack};
use crate::error::{ErrorCode, Problem};
use crate::limits::{MAX_CALL_BYTES, MAX_CALLS_IN_FLIGHT};
use crate::protocol::Call;
use crate::time::Span;

/// A handle on a node's transport thread. The thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
}

struct Shared {
    runtime: tokio::runtime::Handle,
    http: reqwest::Client,
    in_flight: Arc<Semaphore>,
    /// Dropped with the last handle, which ends the thread.
    _alive: oneshot::Sender<()>,
}

/// Why a call has no reply.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The receiver answered, with a problem.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// `refused`: nobody listens at the address, so the request was certainly not acted on. Otherwise
    /// the connection was lost, and it may have been.
    #[error("cannot reach {address}: {detail}")]
    Unreachable {
        address: String,
        refused: bool,
        detail: String,
    },
    /// The outcome is unknown.
    #[error("{address} did not answer within {deadline}")]
    Timeout { address: String, deadline: Span },
    /// The answer is not one of this call, or larger than any may be.
    #[error("{address} answered something else: {detail}")]
    BadReply { address: String, detail: String },
}

/// A request of a user, to be answered by another node as if it had been sent there.
#[derive(Clone, Debug)]
pub struct Forward {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Bytes,
}

/// The other node's answer. The body streams, so a live tail can be forwarded too.
#[derive(Debug)]
pub struct Forwarded {
    pub status: u16,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: ForwardedBody,
}

/// The rest of a forwarded answer; dropping it gives the request up.
#[derive(Debug)]
pub struct ForwardedBody {
    chunks: mpsc::Receiver<Result<Bytes, CallError>>,
    _running: JoinSet<()>,
}

/// How many chunks of a forwarded answer may wait for a slow reader.
const FORWARDED_CHUNKS: usize = 8;

impl Transport {
    /// Starts a transport thread. `address`: where the node is that asks, as others know it; each request says so,
    /// so that whoever sees it on the way knows whose it is.
    pub fn of_node(thread: &str, address: &str) -> io::Result<Transport> {
        let version = env!("CARGO_PKG_VERSION");
        Transport::start_as(thread, &format!("millstream/{version} ({address})"))
    }

    /// The transport of who is no node.
    pub fn start(thread: &str) -> io::Result<Transport> {
        Transport::start_as(thread, concat!("millstream/", env!("CARGO_PKG_VERSION")))
    }

    fn start_as(thread: &str, user_agent: &str) -> io::Result<Transport> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .user_agent(user_agent)
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_secs(3))
            // Below the servers' keep-alive, so that the client is the one to close an idle connection.
            .pool_idle_timeout(Duration::from_secs(20))
            .build()
            .map_err(io::Error::other)?;
        let handle = runtime.handle().clone();
        let (alive, ended) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name(format!("{thread}-transport"))
            .spawn(move || {
                // An error says that the last handle was dropped; nothing is ever sent.
                runtime.block_on(ended).unwrap_or_default();
            })?;
        Ok(Transport {
            shared: Arc::new(Shared {
                runtime: handle,
                http,
                in_flight: Arc::new(Semaphore::new(MAX_CALLS_IN_FLIGHT)),
                _alive: alive,
            }),
        })
    }

    /// Puts a call to the node at `address` (`http://host:port`) and waits for its reply, at most for
    /// `deadline` in all.
    pub fn call<C: Call>(
        &self,
        address: &str,
        request: &C,
        deadline: Span,
    ) -> impl Future<Output = Result<C::Reply, CallError>> + Send + use<C> {
        let body = msgpack::encode(request);
        let transport = self.clone();
        let address = address.to_owned();
        async move {
            let body = body.map_err(|error| bad_reply(&address, format!("the request {error}")))?;
            let request = transport
                .shared
                .http
                .post(format!("{address}{}", C::PATH))
                .header(CONTENT_TYPE, MSGPACK)
                .body(body);
            let exchange = {
                let address = address.clone();
                async move { whole_reply(&address, request).await }
            };
            let (status, content_type, body) =
                transport.run(address.clone(), deadline, exchange).await?;
            if status == 200 {
                C::read_reply(body)
                    .map_err(|error| bad_reply(&address, format!("the reply {error}")))
            } else {
                Err(refusal(&address, status, &content_type, &body))
            }
        }
    }

    /// Puts a user's request to another node. `deadline` is for the head of the answer; its body may
    /// take as long as the user listens.
    pub async fn forward(
        &self,
        address: &str,
        request: Forward,
        deadline: Span,
    ) -> Result<Forwarded, CallError> {
        let method = reqwest::Method::from_bytes(request.method.as_bytes())
            .map_err(|error| bad_reply(address, error.to_string()))?;
        let outgoing = self
            .shared
            .http
            .request(method, format!("{address}{}", request.target))
            .headers(to_header_map(request.headers))
            .body(request.body);
        let (head_sender, head) = oneshot::channel();
        let (chunk_sender, chunks) = mpsc::channel(FORWARDED_CHUNKS);
        let mut running = JoinSet::new();
        let in_flight = self.shared.in_flight.clone();
        let place = address.to_owned();
        running.spawn_on(
            async move {
                let _permit = in_flight.acquire_owned().await;
                pump(place, outgoing, head_sender, chunk_sender).await;
            },
            &self.shared.runtime,
        );
        let head = within(address, deadline, async {
            head.await.unwrap_or_else(|_| Err(stopped(address)))
        })
        .await?;
        Ok(Forwarded {
            status: head.0,
            headers: head.1,
            body: ForwardedBody {
                chunks,
                _running: running,
            },
        })
    }

    /// Runs what holds connections of its own on the transport thread. `None`: the node is stopping.
    #[cfg(feature = "objects")]
    pub(crate) async fn apart<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let mut running = JoinSet::new();
        running.spawn_on(work, &self.shared.runtime);
        // The set gives the work up when this future is dropped.
        running.join_next().await?.ok()
    }

    /// Runs an exchange on the transport thread, at most `MAX_CALLS_IN_FLIGHT` of them at a time.
    async fn run<T: Send + 'static>(
        &self,
        address: String,
        deadline: Span,
        exchange: impl Future<Output = Result<T, CallError>> + Send + 'static,
    ) -> Result<T, CallError> {
        let mut running = JoinSet::new();
        let in_flight = self.shared.in_flight.clone();
        let place = address.clone();
        running.spawn_on(
            async move {
                within(&place, deadline, async {
                    let _permit = in_flight.acquire_owned().await;
                    exchange.await
                })
                .await
            },
            &self.shared.runtime,
        );
        // The set gives the exchange up when this future is dropped.
        match running.join_next().await {
            Some(Ok(result)) => result,
            Some(Err(_)) | None => Err(stopped(&address)),
        }
    }
}

impl CallError {
    /// The code the receiver answered with, if it answered.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            CallError::Problem(problem) => Some(problem.code),
            CallError::Unreachable { .. }
            | CallError::Timeout { .. }
            | CallError::BadReply { .. } => None,
        }
    }

    /// Whether the same call may succeed later, unchanged.
    pub fn is_retriable(&self) -> bool {
        match self {
            CallError::Problem(problem) => problem.code.is_retriable(),
            CallError::Unreachable { .. } | CallError::Timeout { .. } => true,
            CallError::BadReply { .. } => false,
        }
    }

    /// What to tell a user who waits for this call; `unreachable` says what the lost node is to them.
    pub fn into_problem(self, unreachable: ErrorCode) -> Problem {
        let detail = self.to_string();
        match self {
            CallError::Problem(problem) => *problem,
            CallError::Unreachable { .. } => Problem::new(unreachable, detail)
                .hint("Try again; the cluster notices lost nodes within seconds."),
            CallError::Timeout { .. } => Problem::new(ErrorCode::Timeout, detail),
            CallError::BadReply { .. } => Problem::new(ErrorCode::Internal, detail),
        }
    }
}

impl Stream for ForwardedBody {
    type Item = Result<Bytes, CallError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.chunks.poll_recv(context)
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").finish_non_exhaustive()
    }
}

type Headers = Vec<(String, Vec<u8>)>;

async fn whole_reply(
    address: &str,
    request: reqwest::RequestBuilder,
) -> Result<(u16, String, Bytes), CallError> {
    let mut response = request
        .send()
        .await
        .map_err(|error| lost(address, &error))?;
    let status = response.status().as_u16();
    let content_type = response
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let too_large = || bad_reply(address, format!("more than {MAX_CALL_BYTES} bytes"));
    let announced = response.content_length().unwrap_or(0);
    if announced > MAX_CALL_BYTES as u64 {
        return Err(too_large());
    }
    let Some(first) = next_chunk(address, &mut response).await? else {
        return Ok((status, content_type, Bytes::new()));
    };
    if first.len() as u64 == announced {
        return Ok((status, content_type, first));
    }
    let mut body =
        BytesMut::with_capacity(usize::try_from(announced).unwrap_or(0).max(first.len()));
    body.extend_from_slice(&first);
    while let Some(chunk) = next_chunk(address, &mut response).await? {
        if body.len() + chunk.len() > MAX_CALL_BYTES {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok((status, content_type, body.freeze()))
}

async fn next_chunk(
    address: &str,
    response: &mut reqwest::Response,
) -> Result<Option<Bytes>, CallError> {
    response
        .chunk()
        .await
        .map_err(|error| lost(address, &error))
}

async fn pump(
    address: String,
    request: reqwest::RequestBuilder,
    head: oneshot::Sender<Result<(u16, Headers), CallError>>,
    chunks: mpsc::Sender<Result<Bytes, CallError>>,
) {
    let mut response = match request.send().await {
        Ok(response) => response,
        Err(error) => {
            // The asker may have gone; then nobody wants to know.
            head.send(Err(lost(&address, &error))).unwrap_or_default();
            return;
        }
    };
    let headers = response
        .headers()
        .iter()
        .filter(|(name, _)| !is_hop_by_hop(name.as_str()))
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect();
    if head
        .send(Ok((response.status().as_u16(), headers)))
        .is_err()
    {
        return;
    }
    loop {
        let (chunk, last) = match response.chunk().await {
            Ok(Some(chunk)) => (Ok(chunk), false),
            Ok(None) => return,
            Err(error) => (Err(lost(&address, &error)), true),
        };
        if chunks.send(chunk).await.is_err() || last {
            return;
        }
    }
}

/// Headers that concern one connection, not the message.
fn is_hop_by_hop(name: &str) -> bool {
    [
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
    .iter()
    .any(|hop| name.eq_ignore_ascii_case(hop))
}

fn to_header_map(headers: Headers) -> HeaderMap {
    headers
        .into_iter()
        .filter(|(name, _)| !is_hop_by_hop(name))
        // Who passes a request on asks in its own name.
        .filter(|(name, _)| !name.eq_ignore_ascii_case(USER_AGENT.as_str()))
        .filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            Some((name, HeaderValue::from_bytes(&value).ok()?))
        })
        .collect()
}

async fn within<T>(
    address: &str,
    deadline: Span,
    exchange: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    tokio::time::timeout(deadline.as_duration(), exchange)
        .await
        .unwrap_or_else(|_| {
            Err(CallError::Timeout {
                address: address.to_owned(),
                deadline,
            })
        })
}

fn lost(address: &str, error: &reqwest::Error) -> CallError {
    let mut refused = false;
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
        refused |= source
            .downcast_ref::<io::Error>()
            .is_some_and(|io| io.kind() == io::ErrorKind::ConnectionRefused);
    }
    let detail = if error.source().is_some() {
        innermost.to_string()
    } else {
        error.to_string()
    };
    CallError::Unreachable {
        address: address.to_owned(),
        refused,
        detail,
    }
}

fn refusal(address: &str, status: u16, content_type: &str, body: &[u8]) -> CallError {
    let problem = if content_type.starts_with(PROBLEM_MSGPACK) {
        msgpack::decode::<Problem>(body).ok()
    } else if content_type.starts_with(PROBLEM_JSON) {
        serde_json::from_slice(body).ok()
    } else {
        None
    };
    match problem {
        Some(problem) => CallError::Problem(Box::new(problem)),
        None => bad_reply(address, format!("status {status} without a problem")),
    }
}

fn bad_reply(address: &str, detail: String) -> CallError {
    CallError::BadReply {
        address: address.to_owned(),
        detail,
    }
}

fn stopped(address: &str) -> CallError {
    CallError::Unreachable {
        address: address.to_owned(),
        refused: false,
        detail: "this node's transport has stopped".to_owned(),
    }
}
