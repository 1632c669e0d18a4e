//! Ports on loopback that stay a node's own, also while it is down.
//!
//! A node that comes back listens where it was. Meanwhile the system would give its port to whoever asks for any:
//! with tests beside each other a killed node's port was taken now and then, and the node could not start again.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use tokio::net::TcpSocket;

#[derive(Debug)]
pub struct ReservedPort {
    address: SocketAddr,
    /// It is bound and never listens. On Linux another socket may then be bound there if both allow that
    /// (`SO_REUSEADDR`) and it names the port; the system gives it to nobody. Elsewhere it would be in the way.
    _held: Option<TcpSocket>,
}

impl ReservedPort {
    /// A free one, chosen by the system.
    pub fn any() -> Result<ReservedPort> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        Ok(ReservedPort {
            address: socket.local_addr()?,
            _held: cfg!(target_os = "linux").then_some(socket),
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn whoever_knows_a_reserved_port_listens_there_again_and_again() {
        let reserved = ReservedPort::any().unwrap();
        for _ in 0..3 {
            assert!(TcpStream::connect(reserved.address()).is_err());
            let listener = TcpListener::bind(reserved.address()).unwrap();
            let mut connection = TcpStream::connect(reserved.address()).unwrap();
            drop(listener.accept().unwrap());
            drop(listener);
            let mut rest = Vec::new();
            std::io::Read::read_to_end(&mut connection, &mut rest).unwrap();
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_reserved_port_is_not_free() {
        let reserved = ReservedPort::any().unwrap();
        let other = TcpSocket::new_v4().unwrap();
        assert!(other.bind(reserved.address()).is_err());
    }
}
