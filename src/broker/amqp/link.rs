//! One connection to the broker, and the certainty that it ends.
//!
//! Keeps a second handle of the socket: lapin's thread waits for ever for a peer that accepts and stays silent, also
//! when nobody waits for it any more, so whoever drops a link or gives up opening one shuts the socket down. No
//! recovery by lapin: it would hide that delivery tags are worthless.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::tcp::AsyncTcpStream;
use lapin::uri::AMQPScheme;
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind};
use tokio::time::timeout;

use super::url::{AmqpOptions, AmqpUrl};
use crate::broker::BrokerError;

/// Longest time from the first packet to an open connection, and for each question while a session is set up.
pub(super) const OPEN_MAX: Duration = Duration::from_secs(10);

/// Longest time that a channel or a connection may take to close in good order.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// An open connection.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) place: Place,
    _cut: Cut,
}

impl Link {
    pub(super) async fn open(options: &AmqpOptions) -> Result<Self, BrokerError> {
        let place = Place(options.url().clone());
        // Dropped on the way out, it ends what lapin has begun.
        let cut = Cut::default();
        let connecting = connect(options, Arc::clone(&cut.0));
        let connection = place.answer("connecting", connecting).await?;
        Ok(Self { connection, place, _cut: cut })
    }

    /// Another channel.
    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        let opening = self.connection.create_channel();
        self.place.answer("opening a channel", opening).await
    }

    /// Closes the channel first: the broker requeues what it had, in its place.
    pub(super) async fn close(self, channel: Channel) {
        // What does not close in good order is cut: the broker treats both alike.
        let _ = timeout(CLOSE_MAX, channel.close(200, "OK".into())).await;
        let _ = timeout(CLOSE_MAX, self.connection.close(200, "OK".into())).await;
    }
}

async fn connect(options: &AmqpOptions, socket: Arc<Mutex<Socket>>) -> lapin::Result<Connection> {
    let uri = options.uri();
    let host = (uri.authority.host.as_str(), uri.authority.port);
    let addresses: Vec<_> = tokio::net::lookup_host(host).await?.collect();
    let properties = ConnectionProperties::default()
        .with_connection_name(options.connection_name.as_str().into())
        .with_client_property("product".into(), env!("CARGO_PKG_NAME").into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
    let runtime = lapin::runtime::default_runtime()?;
    #[cfg(feature = "tls")]
    let connector = match uri.scheme {
        AMQPScheme::AMQP => None,
        AMQPScheme::AMQPS => Some(lapin::tcp::RustlsConnector::from(
            super::tls::config(&options.tls).map_err(io::Error::other)?,
        )),
    };
    Connection::connector(
        uri,
        runtime,
        async move |uri, runtime| {
            let stream = AsyncTcpStream::connect(&runtime, addresses.clone()).await?;
            if let AsyncTcpStream::Plain(plain) = &stream {
                plain.get_ref().set_nodelay(true)?;
                Cut::keep(&socket, second_handle(plain.get_ref())?);
            }
            match uri.scheme {
                AMQPScheme::AMQP => Ok(stream),
                #[cfg(feature = "tls")]
                AMQPScheme::AMQPS => match &connector {
                    Some(connector) => {
                        Ok(stream.into_rustls(connector, &uri.authority.host).await?)
                    }
                    None => Err(io::Error::other("TLS was not set up").into()),
                },
                // Such a url is refused when it is parsed.
                #[cfg(not(feature = "tls"))]
                AMQPScheme::AMQPS => Err(io::Error::other("built without TLS").into()),
            }
        },
        properties,
    )
    .await
}

fn second_handle(stream: &tokio::net::TcpStream) -> io::Result<TcpStream> {
    use std::os::fd::AsFd as _;
    Ok(stream.as_fd().try_clone_to_owned()?.into())
}

/// Shuts the socket below a connection down when it is dropped, also one that comes to be later.
#[derive(Default)]
struct Cut(Arc<Mutex<Socket>>);

#[derive(Default)]
enum Socket {
    #[default]
    Opening,
    Open(TcpStream),
    Abandoned,
}

impl Cut {
    fn keep(socket: &Mutex<Socket>, stream: TcpStream) {
        let mut socket = socket.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*socket, Socket::Abandoned) {
            shut_down(&stream);
        } else {
            *socket = Socket::Open(stream);
        }
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Socket::Open(stream) = std::mem::replace(&mut *socket, Socket::Abandoned) {
            shut_down(&stream);
        }
    }
}

fn shut_down(stream: &TcpStream) {
    // It fails only on a socket that is no longer connected, which is what we want.
    let _ = stream.shutdown(Shutdown::Both);
}

/// Where a connection leads, for error texts.
#[derive(Clone, Debug)]
pub(super) struct Place(AmqpUrl);

impl Place {
    pub(super) const fn url(&self) -> &AmqpUrl {
        &self.0
    }

    /// The error for what the broker or the system said while we were `doing` something.
    pub(super) fn lost(&self, doing: &str, error: &lapin::Error) -> BrokerError {
        #[cfg(feature = "tls")]
        if let Some(explained) = super::tls::explained(error, self.0.host()) {
            return self.lost_by(format!("{doing}: {explained}"));
        }
        self.lost_by(format!("{doing}: {error}"))
    }

    pub(super) fn lost_by(&self, reason: String) -> BrokerError {
        BrokerError::Lost { address: self.0.address(), reason: self.0.scrub(&reason) }
    }

    /// As [`Self::lost`], but bytes that cannot be parsed are the fault of a message in the queue.
    ///
    /// `ParsingError` is made by lapin's frame parser alone; on a connection that only consumes, what it reads of
    /// foreign origin are the messages of this queue.
    pub(super) fn lost_consuming(
        &self,
        queue: &str,
        doing: &str,
        error: &lapin::Error,
    ) -> BrokerError {
        match error.kind() {
            ErrorKind::ParsingError(reason) => BrokerError::Unreadable {
                queue: queue.to_owned(),
                reason: self.0.scrub(&reason.to_string()),
            },
            _ => self.lost(doing, error),
        }
    }

    /// Waits for the broker's answer, but not for ever.
    pub(super) async fn answer<T>(
        &self,
        doing: &str,
        asked: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, BrokerError> {
        self.reply(doing, asked).await?.map_err(|error| self.lost(doing, &error))
    }

    /// As [`Self::answer`], with a refusal as a value.
    pub(super) async fn reply<T>(
        &self,
        doing: &str,
        asked: impl Future<Output = lapin::Result<T>>,
    ) -> Result<lapin::Result<T>, BrokerError> {
        let silent = |_| {
            let seconds = OPEN_MAX.as_secs();
            self.lost_by(format!("{doing}: no answer within {seconds} s"))
        };
        timeout(OPEN_MAX, asked).await.map_err(silent)
    }
}
