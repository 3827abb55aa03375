//! Frames of AMQP 0-9-1 over a socket, as bytes.
//!
//! Owns the limits: how long the broker may be silent, and how long a frame may be. A close by the broker, and anything
//! that is no frame, is an error; heartbeats are skipped. Knows the layout of frames, and no method but the closes.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use lapin::uri::AMQPScheme;

use super::content::Cursor;
use super::method::{CHANNEL_CLOSE, CONNECTION_CLOSE, Method};
use super::{AmqpOptions, RawError};

/// Longest wait for one answer, or for the next bytes of one.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Largest frame in bytes before anything is negotiated.
pub(super) const FRAME_BYTES_FIRST: u32 = 128 * 1024;

const FRAME_END: u8 = 0xce;
const FRAME_METHOD: u8 = 1;
const FRAME_HEARTBEAT: u8 = 8;

/// A socket that speaks in frames.
pub(super) struct Wire {
    stream: Box<dyn Stream>,
    address: String,
    /// For texts about its certificate.
    #[cfg(feature = "tls")]
    host: String,
    pub(super) frame_bytes_max: u32,
}

/// A socket, or TLS over one.
trait Stream: Read + Write + Send {
    /// Reads what the peer said before it hung up on what we wrote: the error that it is, if it is one.
    fn said_last(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for TcpStream {}

#[cfg(feature = "tls")]
impl Stream for rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    /// Past rustls' own reading, which first writes what could not be written.
    ///
    /// In TLS 1.3 a client has finished its handshake, and writes, before the server looks at its certificate.
    fn said_last(&mut self) -> io::Result<()> {
        while self.conn.read_tls(&mut self.sock)? > 0 {
            self.conn.process_new_packets().map_err(io::Error::other)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Wire({})", self.address)
    }
}

/// A frame that is no heartbeat.
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) payload: Vec<u8>,
}

impl Frame {
    /// Which method it is, with its arguments; `None` if it is part of a message.
    pub(super) fn method(&self, wire: &Wire) -> Result<Option<(Method, Vec<u8>)>, RawError> {
        if self.kind != FRAME_METHOD {
            return Ok(None);
        }
        let mut cursor = Cursor::new(&self.payload);
        let (Some(class), Some(method)) = (cursor.u16(), cursor.u16()) else {
            return Err(wire.protocol("it sent a method without a number".to_owned()));
        };
        let arguments = cursor.rest();
        if matches!((class, method), CONNECTION_CLOSE | CHANNEL_CLOSE) {
            let mut reason = Cursor::new(arguments);
            let (code, text) = (reason.u16(), reason.short());
            return Err(RawError::Refused {
                address: wire.address.clone(),
                code: code.unwrap_or_default(),
                text: crate::message::escape(text.unwrap_or_default()),
            });
        }
        Ok(Some(((class, method), arguments.to_vec())))
    }
}

impl Wire {
    /// Connects to where the options say, by TLS if they say so.
    pub(super) fn connect(options: &AmqpOptions) -> Result<Self, RawError> {
        let (uri, address) = (options.uri(), options.url().address());
        let host = uri.authority.host;
        let stream = connect((&host, uri.authority.port)).and_then(|stream| match uri.scheme {
            AMQPScheme::AMQP => Ok(Box::new(stream) as Box<dyn Stream>),
            AMQPScheme::AMQPS => secured(stream, &host, options),
        });
        match stream {
            Ok(stream) => Ok(Self {
                stream,
                address,
                #[cfg(feature = "tls")]
                host,
                frame_bytes_max: FRAME_BYTES_FIRST,
            }),
            Err(error) => Err(RawError::Unreachable { address, error }),
        }
    }

    pub(super) fn call(
        &mut self,
        channel: u16,
        method: Method,
        arguments: &[u8],
        answer: Method,
    ) -> Result<Vec<u8>, RawError> {
        self.send(channel, method, arguments)?;
        self.expect(answer)
    }

    pub(super) fn expect(&mut self, expected: Method) -> Result<Vec<u8>, RawError> {
        let (method, arguments) = self.method()?;
        if method == expected {
            return Ok(arguments);
        }
        Err(self.protocol(format!("it sent method {method:?} instead of {expected:?}")))
    }

    /// The next method; a close by the broker is an error.
    pub(super) fn method(&mut self) -> Result<(Method, Vec<u8>), RawError> {
        let frame = self.frame()?;
        match frame.method(self)? {
            Some(method) => Ok(method),
            None => Err(self.protocol(format!("it sent a frame of type {} unasked", frame.kind))),
        }
    }

    /// The next frame that is no heartbeat.
    pub(super) fn frame(&mut self) -> Result<Frame, RawError> {
        loop {
            let mut head = [0; 7];
            self.read(&mut head)?;
            let [kind, _, _, size @ ..] = head;
            let size = u32::from_be_bytes(size);
            if size > self.frame_bytes_max {
                return Err(self.protocol(format!("it sent a frame of {size} bytes")));
            }
            let mut payload = vec![0; size as usize];
            self.read(&mut payload)?;
            let mut end = [0];
            self.read(&mut end)?;
            if end != [FRAME_END] {
                return Err(self.protocol("it sent a frame without an end".to_owned()));
            }
            if kind != FRAME_HEARTBEAT {
                return Ok(Frame { kind, payload });
            }
        }
    }

    pub(super) fn send(
        &mut self,
        channel: u16,
        method: Method,
        arguments: &[u8],
    ) -> Result<(), RawError> {
        let ids = [method.0.to_be_bytes(), method.1.to_be_bytes()].concat();
        let size = (ids.len() + arguments.len()) as u32;
        let channel = channel.to_be_bytes();
        let size = size.to_be_bytes();
        let frame = [&[FRAME_METHOD][..], &channel, &size, &ids, arguments, &[FRAME_END]];
        self.write(&frame.concat())
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), RawError> {
        let written = self.stream.write_all(bytes);
        written.map_err(|error| self.unreachable(error))
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), RawError> {
        let read = self.stream.read_exact(bytes);
        read.map_err(|error| self.unreachable(error))
    }

    fn unreachable(&mut self, error: io::Error) -> RawError {
        let error = match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                let said = self.stream.said_last().err();
                self.explained(said.unwrap_or(error))
            }
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                io::Error::other(format!("no answer within {ANSWER_MAX:?}"))
            }
            io::ErrorKind::UnexpectedEof => io::Error::other("it closed the connection"),
            _ => self.explained(error),
        };
        RawError::Unreachable { address: self.address.clone(), error }
    }

    #[cfg(feature = "tls")]
    fn explained(&self, error: io::Error) -> io::Error {
        let explained = super::super::tls::explained(&error, &self.host);
        explained.map_or(error, io::Error::other)
    }

    #[cfg(not(feature = "tls"))]
    #[expect(clippy::unused_self, reason = "with TLS it is used")]
    const fn explained(&self, error: io::Error) -> io::Error {
        error
    }

    pub(super) fn protocol(&self, problem: String) -> RawError {
        RawError::Protocol { address: self.address.clone(), problem }
    }
}

fn connect(host: (&str, u16)) -> io::Result<TcpStream> {
    let mut last = io::Error::other("its name has no address");
    for address in host.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, ANSWER_MAX) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(ANSWER_MAX))?;
                stream.set_write_timeout(Some(ANSWER_MAX))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// TLS over the socket; the handshake takes place with the first bytes.
#[cfg(feature = "tls")]
fn secured(stream: TcpStream, host: &str, options: &AmqpOptions) -> io::Result<Box<dyn Stream>> {
    let config = super::super::tls::config(&options.tls).map_err(io::Error::other)?;
    let name =
        rustls::pki_types::ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name);
    let connection = connection.map_err(io::Error::other)?;
    Ok(Box::new(rustls::StreamOwned::new(connection, stream)))
}

/// Such a url is refused when it is parsed.
#[cfg(not(feature = "tls"))]
fn secured(_: TcpStream, _: &str, _: &AmqpOptions) -> io::Result<Box<dyn Stream>> {
    Err(io::Error::other("built without TLS"))
}
