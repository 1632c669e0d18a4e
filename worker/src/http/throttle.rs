//! Whose quota a request counts for, and what one is told that has used it up.

use actix_web::HttpRequest;
use actix_web::http::header::HeaderName;
use common::error::Problem;
use common::transport::server::peer;

use super::Routes;
use crate::metrics::Throttled;
use crate::quota::client::{ClientId, not_a_name};
use crate::quota::exceeded;
use crate::quota::machine::Answer;

const CLIENT_ID: HeaderName = HeaderName::from_static("x-client-id");

/// The client that a request is of, whichever node it came to first.
pub(super) fn client_of(request: &HttpRequest) -> Result<ClientId, Problem> {
    match request.headers().get(CLIENT_ID) {
        Some(name) => ClientId::named(name.to_str().map_err(|_| not_a_name())?),
        None => Ok(peer(request).map_or(ClientId::Unknown, ClientId::At)),
    }
}

impl Routes {
    /// So many bytes that a client sends are taken, or it is told to come again. Zero: whether any are.
    pub fn take_from(&self, client: &ClientId, bytes: u64) -> Result<(), Problem> {
        match self.quotas.producers.ask(client, bytes) {
            Answer::Allowed => Ok(()),
            Answer::Wait(span) => {
                self.metrics.throttled(Throttled::Produce);
                Err(exceeded("sends", span))
            }
        }
    }

    /// Whether a client may read.
    pub fn may_read(&self, client: &ClientId) -> Result<(), Problem> {
        match self.quotas.consumers.ask(client, 0) {
            Answer::Allowed => Ok(()),
            Answer::Wait(span) => {
                self.metrics.throttled(Throttled::Fetch);
                Err(exceeded("reads", span))
            }
        }
    }
}
