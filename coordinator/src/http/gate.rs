//! The way into a coordinator that leads or does not: what only the leader can answer goes on to it.
//!
//! Every coordinator takes every request. Who does not lead passes it on as it came; who is passed one and
//! does not lead either says so, so that no request runs in a circle. The leader answers people and
//! heartbeats only after the group has confirmed that it leads: a worker that goes on being answered by one that
//! was replaced would never be heard by the one that replaced it.

use std::ops::Deref;
use std::sync::Arc;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::web::{self, Data};
use actix_web::{Error, FromRequest, HttpRequest, HttpResponse};
use std::future::{Ready, ready};
use tokio::sync::watch;

use common::error::{ErrorCode, Problem};
use common::limits::{MAX_REQUEST_BYTES, MAX_WAIT};
use common::protocol::Call;
use common::protocol::metadata::FetchMetadata;
use common::protocol::node::Heartbeat;
use common::time::Span;
use common::transport::client::Transport;
use common::transport::server::{Onward, forward, read_body};

use super::State;
use crate::metrics::Metrics;
use crate::raft::Group;
use crate::raft::leadership::Leadership;

/// Says that a request was passed on once.
const FORWARDED: HeaderName = HeaderName::from_static("millstream-forwarded");
/// Where what people ask for begins.
const FOR_PEOPLE: &str = "/v1/";
/// For the head of the leader's answer: longer than it makes a long poll wait.
const DEADLINE: Span = Span(MAX_WAIT.0 + 10_000);

/// What every coordinator has, whether it leads or not.
#[derive(Clone, Debug)]
pub struct Gate {
    pub group: Group,
    /// What endpoints stand on while this coordinator leads.
    pub reign: watch::Receiver<Option<Arc<State>>>,
    pub transport: Transport,
    pub metrics: Arc<Metrics>,
    /// What this coordinator was started with.
    pub peers: Arc<Vec<String>>,
    /// Becomes true when the node begins to stop.
    pub stopping: watch::Receiver<bool>,
}

/// The reign of this coordinator, for the endpoints that need it.
#[derive(Clone, Debug)]
pub struct Reigning(Arc<State>);

impl Gate {
    /// What endpoints stand on, or who has to be asked instead.
    pub fn reigning(&self) -> Result<Reigning, Problem> {
        let reign = self.reign.borrow().clone();
        reign.map(Reigning).ok_or_else(|| self.nobody_leads())
    }

    fn nobody_leads(&self) -> Problem {
        if *self.stopping.borrow() {
            let detail = "the coordinator is shutting down";
            return Problem::new(ErrorCode::ShuttingDown, detail);
        }
        if let Some(obstacle) = self.group.obstacle() {
            let detail = format!("the group is not formed yet: {obstacle}");
            return Problem::new(ErrorCode::CoordinatorUnavailable, detail)
                .hint("It goes on trying. Start all coordinators with the same --peers.");
        }
        let members = self
            .group
            .view()
            .read(|metadata| metadata.coordinators().clone());
        let problem = |detail: String| Problem::new(ErrorCode::CoordinatorUnavailable, detail);
        match members.len() {
            0 if self.group.belongs().is_none() => {
                problem("this coordinator belongs to no cluster yet".to_owned())
                    .hint("Add it to one: POST /v1/coordinators at a coordinator of it.")
            }
            0 | 1 => problem("the coordinator does not lead yet".to_owned())
                .hint("Try again in a moment."),
            count => {
                let addresses: Vec<&str> = members.values().map(String::as_str).collect();
                problem(format!(
                    "no coordinator of {} leads: fewer than {} of them can be reached, or they are electing",
                    addresses.join(", "),
                    count / 2 + 1
                ))
                .hint("Try again in a moment; if it stays so, start the coordinators that are down.")
            }
        }
    }

    /// Whether requests are answered here, by this coordinator or by the leader it knows.
    pub(super) fn is_ready(&self) -> Result<(), Problem> {
        let ready = self.reign.borrow().is_some() || self.leader().is_some();
        if ready && !*self.stopping.borrow() {
            Ok(())
        } else {
            Err(self.nobody_leads())
        }
    }

    /// Where the leader is, if it is another one.
    fn leader(&self) -> Option<String> {
        match &*self.group.leadership().borrow() {
            Leadership::Follows {
                leader: Some(leader),
            } => Some(leader.address.clone()),
            Leadership::Leads { .. } | Leadership::Follows { leader: None } | Leadership::Ended => {
                None
            }
        }
    }
}

impl Deref for Reigning {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

impl FromRequest for Reigning {
    type Error = Problem;
    type Future = Ready<Result<Reigning, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(gate_of(request).reigning())
    }
}

fn gate_of(request: &HttpRequest) -> &Gate {
    let gate = request.app_data::<Data<Gate>>();
    gate.expect("every route is given the gate")
}

/// Passes a request on to the leader, unless that is this coordinator.
pub(super) async fn to_the_leader(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let gate = gate_of(request.request()).clone();
    if gate.reign.borrow().is_some() {
        let path = request.path();
        let confirmed = path.starts_with(FOR_PEOPLE) || path == Heartbeat::PATH;
        if confirmed && gate.group.confirm().await.is_err() {
            let answer = actix_web::ResponseError::error_response(&gate.nobody_leads());
            return Ok(request.into_response(answer).map_into_boxed_body());
        }
        let answered = next.call(request).await?;
        return Ok(answered.map_into_boxed_body());
    }
    let passed_on = request.headers().contains_key(FORWARDED);
    let answer = match gate.leader() {
        Some(leader) if !passed_on => {
            let yes = HeaderValue::from_static("1");
            request.headers_mut().insert(FORWARDED, yes);
            let mut stopping = gate.stopping.clone();
            // A long poll ends when the node does; everything else is answered first.
            let polls = request.path() == FetchMetadata::PATH;
            let mut leadership = gate.group.leadership();
            let replaced = leadership.wait_for(|now| !is_led_by(now, &leader));
            tokio::select! {
                answer = pass_on(&gate, &leader, &mut request) => answer,
                _ = stopping.wait_for(|stopping| *stopping), if polls => Err(gate.nobody_leads()),
                // One that hangs would keep whoever asks for as long as it hangs.
                _ = replaced => Err(replaced_meanwhile(&leader)),
            }
        }
        Some(_) | None => Err(gate.nobody_leads()),
    };
    let answer =
        answer.unwrap_or_else(|problem| actix_web::ResponseError::error_response(&problem));
    Ok(request.into_response(answer).map_into_boxed_body())
}

fn is_led_by(leadership: &Leadership, address: &str) -> bool {
    match leadership {
        Leadership::Follows {
            leader: Some(leader),
        } => leader.address == address,
        Leadership::Leads { .. } | Leadership::Follows { leader: None } | Leadership::Ended => {
            false
        }
    }
}

fn replaced_meanwhile(leader: &str) -> Problem {
    let detail = format!("the coordinator at {leader} lost the lead while it had the request");
    Problem::new(ErrorCode::Unknown, detail).hint("Look whether it happened before you repeat it.")
}

async fn pass_on(
    gate: &Gate,
    leader: &str,
    request: &mut ServiceRequest,
) -> Result<HttpResponse, Problem> {
    let payload = request.extract::<web::Payload>().await.map_err(|error| {
        let detail = format!("the body cannot be read: {error}");
        Problem::new(ErrorCode::InvalidRequest, detail)
    })?;
    let body = read_body(payload, MAX_REQUEST_BYTES).await?;
    let onward = Onward {
        transport: &gate.transport,
        address: leader,
        deadline: DEADLINE,
        stopping: gate.stopping.clone(),
    };
    let answer = forward(onward, request.request(), body).await;
    answer.map_err(|error| error.into_problem(ErrorCode::CoordinatorUnavailable))
}
