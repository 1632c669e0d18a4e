//! Who a client is to quotas: the name it gives itself, as Kafka's `client.id`, or else its address.

use std::net::IpAddr;

use common::error::{ErrorCode, Problem};
use common::limits::MAX_CLIENT_ID_BYTES;

/// A name that looks like an address is another client than the one there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientId {
    Named(Box<str>),
    At(IpAddr),
    /// Its connection does not say where it comes from.
    Unknown,
}

impl ClientId {
    pub fn named(name: &str) -> Result<ClientId, Problem> {
        let name = name.trim();
        match name.is_empty() || name.len() > MAX_CLIENT_ID_BYTES {
            true => Err(not_a_name()),
            false => Ok(ClientId::Named(name.into())),
        }
    }
}

pub fn not_a_name() -> Problem {
    let detail = format!("a client's id has 1 to {MAX_CLIENT_ID_BYTES} printable characters");
    Problem::new(ErrorCode::InvalidRequest, detail)
        .hint("Correct the header X-Client-Id, or leave it out.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_a_length_and_is_no_address() {
        let named = ClientId::named(" 127.0.0.1 ").unwrap();
        assert_eq!(named, ClientId::Named("127.0.0.1".into()));
        assert_ne!(named, ClientId::At("127.0.0.1".parse().unwrap()));
        assert!(ClientId::named(&"x".repeat(MAX_CLIENT_ID_BYTES)).is_ok());
        for wrong in ["", "  ", &"x".repeat(MAX_CLIENT_ID_BYTES + 1)] {
            let refused = ClientId::named(wrong).unwrap_err();
            assert_eq!(refused.code, ErrorCode::InvalidRequest);
        }
    }
}
