//! A TCP proxy between a worker and its broker that misbehaves as networks do, when it is told to.
//!
//! What it holds back it does not lose: when it lets bytes through again they arrive in order, as TCP has it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What becomes of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// All go through at once.
    Sound,
    /// Connections are accepted and nothing is said on any.
    Stalled,
    /// Only what the broker says arrives.
    FromBrokerOnly,
    /// Only what the worker says arrives.
    ToBrokerOnly,
    /// All go through, this much later.
    Slow(Duration),
    /// No connection lives or can be made.
    Cut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    ToBroker,
    FromBroker,
}

impl Net {
    fn lets_through(self, way: Way) -> bool {
        match self {
            Self::Sound | Self::Slow(_) => true,
            Self::Stalled | Self::Cut => false,
            Self::FromBrokerOnly => way == Way::FromBroker,
            Self::ToBrokerOnly => way == Way::ToBroker,
        }
    }
}

/// A running proxy; ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    net: watch::Sender<Net>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Before the broker at `host:port`.
    pub async fn before(broker: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (net, seen) = watch::channel(Net::Sound);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, broker.to_owned(), seen));
        Self { address, net, _tasks: tasks }
    }

    /// The broker's url, by way of this proxy.
    pub fn url(&self, url: &str) -> String {
        let (login, rest) = url.split_once('@').expect("user:password@");
        let (_, vhost) = rest.split_once('/').expect("/vhost");
        format!("{login}@{}/{vhost}", self.address)
    }

    /// From now on the net is like this.
    pub fn set(&self, net: Net) {
        self.net.send_replace(net);
    }
}

async fn serve(listener: TcpListener, broker: String, mut net: watch::Receiver<Net>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.expect("a connection");
                if *net.borrow() == Net::Cut {
                    continue;
                }
                // Either side may go at any time: that is what it is for.
                let (broker, net) = (broker.clone(), net.clone());
                connections.spawn(async move { drop(carry(stream, &broker, net).await) });
            }
            Some(_) = connections.join_next() => {}
            changed = net.changed() => {
                if changed.is_err() {
                    return;
                }
                if *net.borrow() == Net::Cut {
                    connections.shutdown().await;
                }
            }
        }
    }
}

async fn carry(worker: TcpStream, broker: &str, net: watch::Receiver<Net>) -> std::io::Result<()> {
    let broker = TcpStream::connect(broker).await?;
    worker.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    let (from_worker, to_worker) = worker.into_split();
    let (from_broker, to_broker) = broker.into_split();
    // The end of one way is the end of both.
    tokio::select! {
        ended = copy(from_worker, to_broker, Way::ToBroker, net.clone()) => ended,
        ended = copy(from_broker, to_worker, Way::FromBroker, net) => ended,
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: Way,
    mut net: watch::Receiver<Net>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let now = *net.borrow_and_update();
        if let Net::Slow(delay) = now {
            tokio::time::sleep(delay).await;
        }
        if net.wait_for(|net| net.lets_through(way)).await.is_err() {
            return Ok(());
        }
        to.write_all(buffer.get(..length).unwrap_or_default()).await?;
    }
}
