//! The way into a node: what its HTTP server shares with every other one (feature `server`).
//!
//! `HttpServer` runs actix-web on threads of its own, so that several nodes can live in one process.
//! `register` adds a `Call`; `Query` and `JsonBody` read what a user sends. Everything a user's request can do wrong before a handler sees it is
//! answered with a problem document, as everything afterwards is.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, MessageBody};
use actix_web::dev::{self, ServerHandle};
use actix_web::error::{InternalError, PathError};
use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use actix_web::web::{self, Payload, ServiceConfig};
use actix_web::{App, FromRequest, HttpRequest, HttpResponse, Resource, ResponseError};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::client::{CallError, Forward, Transport};
use super::msgpack::{self, Encoded};
use super::{MSGPACK, PROBLEM_JSON, PROBLEM_MSGPACK};
use crate::error::{ErrorCode, Problem};
use crate::json::{self, Mistake};
use crate::limits::{MAX_CALL_BYTES, MAX_REQUEST_BYTES};
use crate::protocol::Call;
use crate::time::Span;

/// A running server. It goes on until it is stopped or dropped.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    handle: ServerHandle,
    thread: Option<std::thread::JoinHandle<io::Result<()>>>,
}

/// Longer than clients keep idle connections, so that they, who know what is under way, close them.
const KEEP_ALIVE_SECONDS: u64 = 75;
/// What may succeed later is worth another attempt after so long, where nobody knows better.
const RETRY_AFTER_SECONDS: u64 = 1;
/// What a connection is given of a reply at once. With less, sender and receiver wake each other for every
/// few kilobytes: at 32 KiB and 128 KiB half as much gets through. With more, its buffer is larger than caches.
const PIECE_BYTES: usize = 1 << 20;

/// How often a request was passed on. Nodes that each take another for the one to ask must not pass it
/// on for ever.
const HOPS: HeaderName = HeaderName::from_static("millstream-hops");
const MAX_HOPS: u32 = 3;
/// Where a request that was passed on came from.
const PEER: HeaderName = HeaderName::from_static("millstream-peer");

impl HttpServer {
    /// Listens on `listen` (port 0: any free one) and serves what `routes` sets up, on `threads` threads.
    /// `routes` is called once per thread.
    pub fn start(
        node: &str,
        listen: SocketAddr,
        threads: usize,
        drain: Span,
        routes: impl Fn(&mut ServiceConfig) + Clone + Send + 'static,
    ) -> io::Result<HttpServer> {
        let listener = TcpListener::bind(listen)?;
        let address = listener.local_addr()?;
        // Not a channel of tokio's: a node may be started from inside a runtime.
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("{node}-http"))
            .spawn(move || {
                let app = move || {
                    App::new()
                        .configure(defaults)
                        .configure(routes.clone())
                        .default_service(web::to(not_found))
                };
                actix_web::rt::System::new().block_on(async move {
                    let server = actix_web::HttpServer::new(app)
                        .workers(threads)
                        // The last piece of an answer would wait for the receiver's delayed acknowledgement of the
                        // one before it: 40 ms.
                        .tcp_nodelay(true)
                        // Who closes a connection does not wait for the answer, or is gone with its process.
                        .h1_allow_half_closed(false)
                        .keep_alive(std::time::Duration::from_secs(KEEP_ALIVE_SECONDS))
                        // A client may open a connection and then use another that became free: the new
                        // one waits in its pool like those that were used.
                        .client_request_timeout(std::time::Duration::from_secs(KEEP_ALIVE_SECONDS))
                        .shutdown_timeout(drain.0.div_ceil(1000))
                        .disable_signals()
                        .listen(listener);
                    match server {
                        Ok(server) => {
                            let server = server.run();
                            if started.send(Ok(server.handle())).is_err() {
                                return Ok(());
                            }
                            server.await
                        }
                        Err(error) => {
                            // The starter reports it; should it have gone, nobody needs to know.
                            started.send(Err(error)).unwrap_or_default();
                            Ok(())
                        }
                    }
                })
            })?;
        let handle = start
            .recv()
            .map_err(|_| io::Error::other("the server's thread ended before it started"))??;
        Ok(HttpServer {
            address,
            handle,
            thread: Some(thread),
        })
    }

    /// Where it listens, with the port that was chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no new connection, lets requests that are under way end (at most for the drain time it was
    /// started with), and returns when its threads have ended. Blocks.
    pub fn stop(mut self) {
        self.end(true);
    }

    fn end(&mut self, graceful: bool) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        // The command is on its way once `stop` was called; its future only tells when it was done,
        // which the end of the thread tells as well.
        drop(self.handle.stop(graceful));
        match thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the HTTP server ended with an error"),
            Err(_) => tracing::error!("the HTTP server's thread panicked"),
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.end(false);
    }
}

/// Adds the handler of a call at its path.
///
/// ```text
/// register(config, move |request: Heartbeat| { let liveness = liveness.clone(); async move { … } });
/// ```
pub fn register<C, H, F>(config: &mut ServiceConfig, handler: H)
where
    C: Call,
    H: Fn(C) -> F + Clone + 'static,
    F: Future<Output = Result<C::Reply, Problem>> + 'static,
{
    let answer = move |payload: Payload| {
        let handler = handler.clone();
        async move {
            let answer = match read_call(payload).await {
                Ok(request) => handler(request).await,
                Err(problem) => Err(problem),
            };
            match answer.and_then(encoded::<C>) {
                Ok(reply) => HttpResponse::Ok().content_type(MSGPACK).body(reply),
                Err(problem) => msgpack_problem(&problem),
            }
        }
    };
    config.service(resource(C::PATH).route(web::post().to(answer)));
}

/// A public path: methods it does not have are answered with a problem.
pub fn resource(path: &str) -> Resource {
    web::resource(path).default_service(web::to(method_not_allowed))
}

/// The whole body of a request, if it is not larger than `limit`.
pub async fn read_body(payload: Payload, limit: usize) -> Result<Bytes, Problem> {
    match payload.to_bytes_limited(limit).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) => Err(Problem::new(
            ErrorCode::InvalidRequest,
            format!("the body cannot be read: {error}"),
        )),
        Err(_) => Err(Problem::new(
            ErrorCode::RequestTooLarge,
            format!("the body has more than {limit} bytes"),
        )
        .hint("Send less at a time.")),
    }
}

/// A JSON body that was read as a whole.
pub fn read_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    json::read_object(body).map_err(|mistake| {
        let Mistake {
            pointer,
            detail,
            place: (line, column),
        } = mistake;
        match pointer.is_empty() {
            true => Problem::new(ErrorCode::InvalidRequest, format!("the body: {detail}"))
                .at(format!("line {line}, column {column}")),
            false => Problem::new(
                ErrorCode::InvalidRequest,
                format!("{pointer} in the body: {detail}"),
            )
            .at(pointer),
        }
    })
}

/// The parameters of a request's address. What cannot be read is named.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequest for Query<T> {
    type Error = Problem;
    type Future = Ready<Result<Query<T>, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut dev::Payload) -> Self::Future {
        ready(read_query(request.query_string()).map(Query))
    }
}

/// A JSON body. What curl sends for `-d` without a header: JSON it is, or the reader says what is wrong.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned + 'static> FromRequest for JsonBody<T> {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<JsonBody<T>, Problem>>>>;

    fn from_request(request: &HttpRequest, payload: &mut dev::Payload) -> Self::Future {
        let payload = Payload::from_request(request, payload);
        Box::pin(async move {
            let payload = payload.await.expect("a payload is only taken over");
            let body = read_body(payload, MAX_REQUEST_BYTES).await?;
            read_json(&body).map(JsonBody)
        })
    }
}

fn read_query<T: DeserializeOwned>(text: &str) -> Result<T, Problem> {
    let pairs = || form_urlencoded::parse(text.as_bytes());
    serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(pairs())).map_err(
        |error| {
            let name = error.path().to_string();
            let given = pairs().find(|(given, _)| *given == *name);
            let detail = match given {
                Some((name, value)) => format!("\"{name}\" is \"{value}\": {}", error.inner()),
                None => error.inner().to_string(),
            };
            Problem::new(
                ErrorCode::InvalidRequest,
                format!("the query string: {detail}"),
            )
            .hint("See /docs for the parameters this call takes.")
        },
    )
}

/// Where a user's request goes on to, and how.
#[derive(Debug)]
pub struct Onward<'a> {
    pub transport: &'a Transport,
    pub address: &'a str,
    /// For the head of the answer.
    pub deadline: Span,
    /// An answer that goes on and on ends when this becomes true.
    pub stopping: watch::Receiver<bool>,
}

/// Answers a user's request with what another node says to it.
pub async fn forward(
    to: Onward<'_>,
    request: &HttpRequest,
    body: Bytes,
) -> Result<HttpResponse, CallError> {
    let Onward {
        transport,
        address,
        deadline,
        mut stopping,
    } = to;
    let target = request.uri().path_and_query().map_or("/", |t| t.as_str());
    let mut headers: Vec<(String, Vec<u8>)> = request
        .headers()
        .iter()
        .filter(|(name, _)| *name != HOPS && *name != PEER)
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect();
    let hops = hops(request);
    if hops >= MAX_HOPS {
        let problem = Problem::new(
            ErrorCode::Internal,
            format!("\"{target}\" was passed on {hops} times, and nobody answers it"),
        )
        .hint("Nodes disagree about who answers this: ask the one it is about.");
        return Err(CallError::Problem(Box::new(problem)));
    }
    headers.push((HOPS.to_string(), (hops + 1).to_string().into_bytes()));
    if let Some(peer) = peer(request) {
        headers.push((PEER.to_string(), peer.to_string().into_bytes()));
    }
    let outgoing = Forward {
        method: request.method().as_str().to_owned(),
        target: target.to_owned(),
        headers,
        body,
    };
    let answer = transport.forward(address, outgoing, deadline).await?;
    let status = StatusCode::from_u16(answer.status).map_err(|error| CallError::BadReply {
        address: address.to_owned(),
        detail: error.to_string(),
    })?;
    let mut response = HttpResponse::build(status);
    for (name, value) in &answer.headers {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            response.append_header((name, value));
        }
    }
    let stopped = async move { stopping.wait_for(|stopping| *stopping).await.map(drop) };
    Ok(response.streaming(answer.body.take_until(Box::pin(stopped))))
}

/// How often a request was passed on before it came here.
fn hops(request: &HttpRequest) -> u32 {
    let hops = request.headers().get(HOPS);
    hops.and_then(|hops| hops.to_str().ok()?.parse().ok())
        .unwrap_or(0)
}

/// The address of the client that a request comes from, also if it was passed on. It is as good as its word: a client
/// can say that it was passed on.
pub fn peer(request: &HttpRequest) -> Option<IpAddr> {
    let told = || request.headers().get(PEER)?.to_str().ok()?.parse().ok();
    match hops(request) {
        0 => request.peer_addr().map(|address| address.ip()),
        _ => told(),
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let body = serde_json::to_string(self).expect("a problem is plain text and numbers");
        let mut answer = HttpResponse::build(self.status_code());
        if self.code.is_retriable() {
            let seconds = self.retry_after.unwrap_or(RETRY_AFTER_SECONDS);
            answer.insert_header((RETRY_AFTER, seconds));
        }
        answer.content_type(PROBLEM_JSON).body(body)
    }
}

/// How requests are read, and what is said about those that cannot be.
fn defaults(config: &mut ServiceConfig) {
    config.app_data(
        web::PathConfig::default().error_handler(|error, _| answered(path_problem(&error))),
    );
}

fn answered(problem: Problem) -> actix_web::Error {
    let response = problem.error_response();
    InternalError::from_response(problem, response).into()
}

fn path_problem(error: &PathError) -> Problem {
    Problem::new(ErrorCode::InvalidRequest, format!("the path: {error}"))
}

async fn not_found(request: HttpRequest) -> HttpResponse {
    Problem::new(
        ErrorCode::NotFound,
        format!("there is nothing at \"{}\"", request.path()),
    )
    .hint("See /docs for everything there is.")
    .error_response()
}

async fn method_not_allowed(request: HttpRequest) -> HttpResponse {
    Problem::new(
        ErrorCode::MethodNotAllowed,
        format!("\"{}\" has no {}", request.path(), request.method()),
    )
    .hint("See /docs for the methods it has.")
    .error_response()
}

async fn read_call<C: Call>(payload: Payload) -> Result<C, Problem> {
    let body = read_body(payload, MAX_CALL_BYTES).await?;
    msgpack::decode(&body).map_err(|error| {
        Problem::new(
            ErrorCode::InvalidRequest,
            format!("the body of {} {error}", C::PATH),
        )
    })
}

fn encoded<C: Call>(reply: C::Reply) -> Result<ReplyBody, Problem> {
    let Encoded { head, tail } = C::write_reply(reply)
        .map_err(|error| Problem::new(ErrorCode::Internal, format!("the reply {error}")))?;
    Ok(ReplyBody {
        bytes: (head.len() + tail.len()) as u64,
        parts: [head, tail],
    })
}

/// A reply on its way. A connection copies what it is given into a buffer of its own before it sends it:
/// given a piece at a time, that buffer has a bound, whatever the reply is.
#[derive(Debug)]
struct ReplyBody {
    bytes: u64,
    parts: [Bytes; 2],
}

impl MessageBody for ReplyBody {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.bytes)
    }

    fn poll_next(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Infallible>>> {
        let mut parts = self.get_mut().parts.iter_mut();
        let piece = parts.find(|part| !part.is_empty()).map(|part| {
            let bytes = part.len().min(PIECE_BYTES);
            Ok(part.split_to(bytes))
        });
        Poll::Ready(piece)
    }
}

fn msgpack_problem(problem: &Problem) -> HttpResponse {
    match msgpack::encode(problem) {
        Ok(body) => HttpResponse::build(problem.status_code())
            .insert_header((CONTENT_TYPE, PROBLEM_MSGPACK))
            .body(body),
        Err(_) => problem.error_response(),
    }
}
