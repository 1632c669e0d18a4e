//! A network between the processes of a cluster whose links can be cut and slowed.
//!
//! Each node is reached through a proxy on loopback, whose address is the one the node advertises; while the node
//! is down, connecting to it is refused. Who connects says so with its first request, as all nodes do (User-Agent):
//! whoever is none of them is a client, whose link is always sound. A link that is cut holds back what is sent, as a
//! network does that drops packets which are sent again; each direction is a link of its own.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::port::ReservedPort;

/// What is carried at once, and what a slow link delays as one.
const CHUNK_BYTES: usize = 64 << 10;
/// Room was none for a connection: the next one is tried after this.
const ACCEPT_AGAIN: Duration = Duration::from_millis(10);

/// A node, in the order they were added.
pub type NodeIndex = usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing gets through until it ends.
    Cut,
    /// Everything takes so much longer.
    Slow(Duration),
}

/// The links that are not sound, by who sends and who receives.
pub type Faults = BTreeMap<(NodeIndex, NodeIndex), Fault>;

/// All links of a node, in both directions, with a fault.
pub fn links_of(node: NodeIndex, nodes: usize, fault: Fault) -> Faults {
    let others = (0..nodes).filter(|other| *other != node);
    others
        .flat_map(|other| [((node, other), fault), ((other, node), fault)])
        .collect()
}

#[derive(Debug)]
pub struct Network {
    runtime: Runtime,
    faults: watch::Sender<Faults>,
    nodes: Mutex<Vec<Node>>,
    /// What each node says with its requests.
    names: Arc<Mutex<Vec<String>>>,
}

#[derive(Debug)]
struct Node {
    /// Where others find it.
    proxy: ReservedPort,
    /// Where it listens.
    target: SocketAddr,
    /// While the node is up.
    carrying: Option<JoinHandle<()>>,
}

/// What a connection needs.
#[derive(Clone, Debug)]
struct Carrier {
    to: NodeIndex,
    target: SocketAddr,
    faults: watch::Receiver<Faults>,
    names: Arc<Mutex<Vec<String>>>,
}

impl Network {
    pub fn start() -> Result<Arc<Network>> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("network")
            .enable_all()
            .build()?;
        Ok(Arc::new(Network {
            runtime,
            faults: watch::Sender::default(),
            nodes: Mutex::default(),
            names: Arc::default(),
        }))
    }

    /// A node that will listen at `target`; answers who it is, and the address it is to advertise.
    pub fn add(&self, target: SocketAddr) -> Result<(NodeIndex, String)> {
        let proxy = ReservedPort::any()?;
        let address = format!("http://{}", proxy.address());
        let mut nodes = lock(&self.nodes);
        nodes.push(Node {
            proxy,
            target,
            carrying: None,
        });
        lock(&self.names).push(format!("({address})"));
        Ok((nodes.len() - 1, address))
    }

    /// Its process has been started: it can be reached.
    pub fn up(&self, node: NodeIndex) -> Result<()> {
        let mut nodes = lock(&self.nodes);
        let known = &mut nodes[node];
        let proxy = known.proxy.address();
        let listener =
            TcpListener::bind(proxy).with_context(|| format!("cannot listen at {proxy} again"))?;
        listener.set_nonblocking(true)?;
        let _inside = self.runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let carrier = Carrier {
            to: node,
            target: known.target,
            faults: self.faults.subscribe(),
            names: Arc::clone(&self.names),
        };
        known.carrying = Some(self.runtime.spawn(carrier.accept(listener)));
        Ok(())
    }

    /// Its process is gone: connecting to it is refused, and what was connected is closed. Blocks for a moment.
    pub fn down(&self, node: NodeIndex) -> Result<()> {
        let carrying = lock(&self.nodes)[node].carrying.take();
        if let Some(carrying) = carrying {
            carrying.abort();
            let (ended, wait) = std::sync::mpsc::sync_channel(1);
            self.runtime.spawn(async move {
                // It ends with being cancelled; whoever waits is there until then.
                drop(carrying.await);
                ended.send(()).unwrap_or_default();
            });
            // Nothing listens there when the task has ended.
            wait.recv().context("the network has ended")?;
        }
        Ok(())
    }

    /// From now on these links are not sound, and all others are.
    pub fn set(&self, faults: Faults) {
        self.faults.send_replace(faults);
    }
}

impl Carrier {
    async fn accept(self, listener: tokio::net::TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            match listener.accept().await {
                Ok((connection, _)) => {
                    connections.spawn(self.clone().carry(connection));
                }
                Err(_) => tokio::time::sleep(ACCEPT_AGAIN).await,
            }
            while connections.try_join_next().is_some() {}
        }
    }

    /// Carries a connection until either side closes it.
    async fn carry(self, mut connection: TcpStream) {
        let mut first = vec![0; CHUNK_BYTES];
        let Ok(length @ 1..) = connection.read(&mut first).await else {
            return;
        };
        first.truncate(length);
        let from = self.who(&first);
        let Ok(target) = TcpStream::connect(self.target).await else {
            return;
        };
        // Delays are what the faults say, and nothing else.
        if connection
            .set_nodelay(true)
            .and(target.set_nodelay(true))
            .is_err()
        {
            return;
        }
        let (from_reader, from_writer) = connection.into_split();
        let (to_reader, to_writer) = target.into_split();
        let link = |from: Option<NodeIndex>, to: Option<NodeIndex>| from.zip(to);
        let there = pump(
            Cursor::new(first).chain(from_reader),
            to_writer,
            link(from, Some(self.to)),
            self.faults.clone(),
        );
        let back = pump(
            to_reader,
            from_writer,
            link(Some(self.to), from),
            self.faults,
        );
        // A side that is gone takes the other with it.
        tokio::select! {
            () = there => {}
            () = back => {}
        }
    }

    /// `first`: what comes over a connection before anything else, with the head of a request.
    fn who(&self, first: &[u8]) -> Option<NodeIndex> {
        let head = String::from_utf8_lossy(first);
        let line = head.lines().find(|line| {
            let name = line.split(':').next();
            name.is_some_and(|name| name.eq_ignore_ascii_case("user-agent"))
        })?;
        let names = lock(&self.names);
        let node = names.iter().position(|name| line.ends_with(name))?;
        // What a node sends to itself crosses no network.
        (node != self.to).then_some(node)
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: OwnedWriteHalf,
    link: Option<(NodeIndex, NodeIndex)>,
    mut faults: watch::Receiver<Faults>,
) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let Ok(length @ 1..) = from.read(&mut chunk).await else {
            return;
        };
        loop {
            let fault = link.and_then(|link| faults.borrow_and_update().get(&link).copied());
            match fault {
                None => break,
                Some(Fault::Slow(delay)) => {
                    tokio::time::sleep(delay).await;
                    break;
                }
                Some(Fault::Cut) => {
                    if faults.changed().await.is_err() {
                        return;
                    }
                }
            }
        }
        if to.write_all(&chunk[..length]).await.is_err() {
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// A node that answers every byte with the same, in this process.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                std::thread::spawn(move || {
                    let mut byte = [0];
                    while connection.read_exact(&mut byte).is_ok() {
                        connection.write_all(&byte).unwrap();
                    }
                });
            }
        });
        address
    }

    fn connect(address: &str) -> std::net::TcpStream {
        let address = address.trim_start_matches("http://");
        let connection = std::net::TcpStream::connect(address).unwrap();
        let soon = Some(Duration::from_millis(200));
        connection.set_read_timeout(soon).unwrap();
        connection
    }

    fn answers(connection: &mut std::net::TcpStream) -> bool {
        connection.write_all(&[7]).unwrap();
        connection.read_exact(&mut [0]).is_ok()
    }

    #[test]
    fn a_link_that_is_cut_holds_back_what_is_sent_until_it_is_sound_again() {
        let network = Network::start().unwrap();
        let (other, its_address) = network.add(echo()).unwrap();
        let (node, address) = network.add(echo()).unwrap();
        network.up(node).unwrap();
        let mut connection = connect(&address);
        let head = format!("GET / HTTP/1.1\r\nUser-Agent: millstream/1 ({its_address})\r\n\r\n");
        connection.write_all(head.as_bytes()).unwrap();
        connection.read_exact(&mut vec![0; head.len()]).unwrap();
        assert!(answers(&mut connection));
        network.set([((other, node), Fault::Cut)].into());
        assert!(!answers(&mut connection));
        network.set(Faults::new());
        assert!(
            connection.read_exact(&mut [0]).is_ok(),
            "it was held back, not lost"
        );
        // The other direction is a link of its own; links of others are none of its business.
        network.set([((node, other), Fault::Cut)].into());
        assert!(!answers(&mut connection));
        network.set([((node, node), Fault::Cut)].into());
        assert!(connection.read_exact(&mut [0]).is_ok());
        assert!(answers(&mut connection));
    }

    #[test]
    fn a_node_that_is_down_refuses_and_comes_back_where_it_was() {
        let network = Network::start().unwrap();
        let (node, address) = network.add(echo()).unwrap();
        network.up(node).unwrap();
        let mut connection = connect(&address);
        assert!(answers(&mut connection));
        network.down(node).unwrap();
        assert!(matches!(connection.read(&mut [0]), Ok(0) | Err(_)));
        assert!(std::net::TcpStream::connect(address.trim_start_matches("http://")).is_err());
        network.up(node).unwrap();
        assert!(answers(&mut connect(&address)));
    }
}
