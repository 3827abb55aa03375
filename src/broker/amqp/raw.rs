//! Takes the head of a queue as the bytes that it is: the way out for a message that the client library cannot parse.
//!
//! A minimal AMQP 0-9-1 client: one connection, one channel, one consumer that holds one message. It consumes rather
//! than gets, because RabbitMQ refuses `basic.get` on a quorum queue with a single active consumer, and lets it reach
//! behind a message that a worker holds on every other queue. Blocking, with a limit on every wait and on every length
//! that the other side names: for a command, not for the runtime. The message stays the broker's until
//! [`RawConnection::ack`]; dropping the connection returns it.

mod content;
mod method;
mod wire;

use std::io;
use std::time::Duration;

use lapin::uri::SASLMechanism;
use tokio::time::Instant;

use self::content::Cursor;
pub(crate) use self::content::{Contents, contents};
use self::method::{
    BASIC_ACK, BASIC_CANCEL, BASIC_CONSUME, BASIC_CONSUME_OK, BASIC_DELIVER, BASIC_QOS,
    BASIC_QOS_OK, CHANNEL_OPEN, CHANNEL_OPEN_OK, CONNECTION_CLOSE, CONNECTION_CLOSE_OK,
    CONNECTION_OPEN, CONNECTION_OPEN_OK, CONNECTION_START, CONNECTION_START_OK, CONNECTION_TUNE,
    CONNECTION_TUNE_OK, QUEUE_DECLARE, QUEUE_DECLARE_OK, long, short,
};
use self::wire::{FRAME_BYTES_FIRST, Wire};
use super::AmqpOptions;

/// How often an owned queue is asked whether there is anything in it.
const POLL: Duration = Duration::from_millis(250);

/// Answers "empty" in a row that are believed: a message may be on its way to us.
const EMPTY_POLLS: u32 = 4;

/// Largest frame in bytes, whatever the broker offers; RabbitMQ's default is 128 KiB.
const FRAME_BYTES_MAX: u32 = 16 * 1024 * 1024;

/// Largest body in bytes: RabbitMQ takes no larger one, whatever its configuration says.
const BODY_BYTES_MAX: u64 = 512 * 1024 * 1024;

const FRAME_HEADER: u8 = 2;
const FRAME_BODY: u8 = 3;

const ACCESS_REFUSED: u16 = 403;

/// Our consumer's tag.
const CONSUMER: &[u8] = b"quarantine";

/// Reply code 200 and text "OK", of no method: how a connection is closed in good order.
const GOODBYE: &[u8] = b"\x00\xc8\x02OK\x00\x00\x00\x00";

/// A message as it came over the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RawMessage {
    pub(crate) tag: u64,
    pub(crate) redelivered: bool,
    pub(crate) exchange: Vec<u8>,
    pub(crate) routing_key: Vec<u8>,
    /// Payload of the content header frame: class, weight, body size, property flags and properties.
    pub(crate) header: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

/// What was found at the head of the queue.
#[derive(Debug)]
pub(crate) enum Head {
    /// Ours until it is acked or the connection ends.
    Held(RawMessage),
    Empty,
    /// Somebody else consumes the queue.
    InUse,
}

/// Why there is no head, by what is to be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RawError {
    /// The broker is not there, or went away.
    #[error("broker {address}: {error}")]
    Unreachable { address: String, error: io::Error },
    /// The broker said no.
    #[error("broker {address}: {code} {text}")]
    Refused { address: String, code: u16, text: String },
    /// The broker, or whatever is at its address, said what it must not.
    #[error("broker {address}: {problem}")]
    Protocol { address: String, problem: String },
}

/// One connection with one channel.
#[derive(Debug)]
pub(crate) struct RawConnection {
    wire: Wire,
}

impl RawConnection {
    /// Connects, logs in by PLAIN, or by our certificate if the url says so, and opens a channel.
    pub(crate) fn open(options: &AmqpOptions) -> Result<Self, RawError> {
        let uri = options.uri();
        let mut connection = Self { wire: Wire::connect(options)? };
        let login = uri.authority.userinfo;
        let response = format!("\0{}\0{}", login.username, login.password);
        let login = match uri.query.auth_mechanism {
            Some(SASLMechanism::External) => (&b"EXTERNAL"[..], &b""[..]),
            _ => (&b"PLAIN"[..], response.as_bytes()),
        };
        connection.log_in(login, uri.vhost.as_bytes())?;
        Ok(connection)
    }

    fn log_in(
        &mut self,
        (mechanism, response): (&[u8], &[u8]),
        vhost: &[u8],
    ) -> Result<(), RawError> {
        self.wire.write(b"AMQP\x00\x00\x09\x01")?;
        self.wire.expect(CONNECTION_START)?;
        // Without the first a wrong password is a closed socket, without the second a deleted queue is silence.
        let abilities = [
            &short(b"authentication_failure_close")[..],
            b"t\x01",
            &short(b"consumer_cancel_notify"),
            b"t\x01",
        ];
        let properties = [&short(b"capabilities")[..], b"F", &long(&abilities.concat())];
        let start =
            [&long(&properties.concat())[..], &short(mechanism), &long(response), &short(b"en_US")];
        self.wire.send(0, CONNECTION_START_OK, &start.concat())?;
        let tune = self.wire.expect(CONNECTION_TUNE)?;
        let mut tune = Cursor::new(&tune);
        let (Some(_channels), Some(offered)) = (tune.u16(), tune.u32()) else {
            return Err(self.wire.protocol("its tuning has no limits".to_owned()));
        };
        let offered = if offered == 0 { u32::MAX } else { offered };
        self.wire.frame_bytes_max = offered.clamp(FRAME_BYTES_FIRST.min(offered), FRAME_BYTES_MAX);
        // One channel, no heartbeats: nothing here lasts longer than its own limits.
        let frame_bytes_max = self.wire.frame_bytes_max.to_be_bytes();
        let tuned = [&[0, 1][..], &frame_bytes_max, &[0, 0]];
        self.wire.send(0, CONNECTION_TUNE_OK, &tuned.concat())?;
        let open = [&short(vhost)[..], &[0, 0]].concat();
        self.wire.call(0, CONNECTION_OPEN, &open, CONNECTION_OPEN_OK)?;
        self.wire.call(1, CHANNEL_OPEN, &[0], CHANNEL_OPEN_OK)?;
        Ok(())
    }

    /// Becomes the queue's consumer and waits until `deadline` for its head.
    pub(crate) fn head(&mut self, queue: &str, deadline: Instant) -> Result<Head, RawError> {
        let queue = short(queue.as_bytes());
        let passive = [&[0, 0][..], &queue, &[1], &[0; 4]].concat();
        let declared = self.wire.call(1, QUEUE_DECLARE, &passive, QUEUE_DECLARE_OK)?;
        // Asked before: of a queue with a single active consumer only that one is counted, also when we stand by.
        if !matches!(counts(&declared), Some((_, 0))) {
            return Ok(Head::InUse);
        }
        let one = [0, 0, 0, 0, 0, 1, 0];
        self.wire.call(1, BASIC_QOS, &one, BASIC_QOS_OK)?;
        // Exclusive, with acks; quorum queues ignore the first and have a single active consumer instead.
        let consume = [&[0, 0][..], &queue, &short(CONSUMER), &[4], &[0; 4]].concat();
        match self.wire.call(1, BASIC_CONSUME, &consume, BASIC_CONSUME_OK) {
            Ok(_) => {}
            Err(RawError::Refused { code: ACCESS_REFUSED, text, .. })
                if text.contains("in exclusive use") =>
            {
                return Ok(Head::InUse);
            }
            Err(error) => return Err(error),
        }
        let mut empty = 0;
        loop {
            self.wire.send(1, QUEUE_DECLARE, &passive)?;
            let declared = match self.wire.method()? {
                (BASIC_DELIVER, deliver) => return Ok(Head::Held(self.message(&deliver)?)),
                (QUEUE_DECLARE_OK, declared) => declared,
                (BASIC_CANCEL, _) => {
                    return Err(self.wire.protocol("it deleted the queue".to_owned()));
                }
                (other, _) => {
                    return Err(self.wire.protocol(format!("it sent method {other:?}")));
                }
            };
            empty = match counts(&declared) {
                Some((0, 0 | 1)) => empty + 1,
                _ => 0,
            };
            if empty == EMPTY_POLLS {
                return Ok(Head::Empty);
            }
            if Instant::now() >= deadline {
                return Ok(Head::InUse);
            }
            std::thread::sleep(POLL);
        }
    }

    /// Reads the header and the body that follow a `basic.deliver`.
    fn message(&mut self, deliver: &[u8]) -> Result<RawMessage, RawError> {
        let mut message = parse_deliver(deliver)
            .ok_or_else(|| self.wire.protocol("its basic.deliver is cut off".to_owned()))?;
        let header = self.content_frame(FRAME_HEADER)?;
        let body_bytes = Cursor::new(header.get(4..).unwrap_or_default()).u64();
        let body_bytes = match body_bytes {
            Some(bytes) if bytes <= BODY_BYTES_MAX => bytes as usize,
            _ => {
                return Err(self
                    .wire
                    .protocol("it announced a body without a legal size".to_owned()));
            }
        };
        message.header = header;
        while message.body.len() < body_bytes {
            let part = self.content_frame(FRAME_BODY)?;
            if part.is_empty() || part.len() > body_bytes - message.body.len() {
                return Err(self.wire.protocol("it sent a body of another size".to_owned()));
            }
            message.body.extend_from_slice(&part);
        }
        Ok(message)
    }

    fn content_frame(&mut self, kind: u8) -> Result<Vec<u8>, RawError> {
        let frame = self.wire.frame()?;
        if frame.kind == kind {
            return Ok(frame.payload);
        }
        let problem = format!("it sent a frame of type {} inside a message", frame.kind);
        Err(self.wire.protocol(problem))
    }

    /// Acks the message and waits until the broker has read that; the connection is of no use afterwards.
    pub(crate) fn ack(&mut self, message: &RawMessage) -> Result<(), RawError> {
        // The consumer goes first, without an answer: the ack would bring the next message, for nothing.
        let cancel = [&short(CONSUMER)[..], &[1]].concat();
        self.wire.send(1, BASIC_CANCEL, &cancel)?;
        let ack = [&message.tag.to_be_bytes()[..], &[0]].concat();
        self.wire.send(1, BASIC_ACK, &ack)?;
        self.close()
    }

    /// Closes the connection: a message that is not acked is back in its place then.
    pub(crate) fn close(&mut self) -> Result<(), RawError> {
        self.wire.send(0, CONNECTION_CLOSE, GOODBYE)?;
        // What was on its way before is read and forgotten; an ack that is wrong would be told of before the end.
        loop {
            let method = self.wire.frame()?.method(&self.wire)?;
            if let Some((CONNECTION_CLOSE_OK, _)) = method {
                return Ok(());
            }
        }
    }
}

fn parse_deliver(arguments: &[u8]) -> Option<RawMessage> {
    let mut cursor = Cursor::new(arguments);
    cursor.short()?;
    Some(RawMessage {
        tag: cursor.u64()?,
        redelivered: cursor.u8()? & 1 == 1,
        exchange: cursor.short()?.to_vec(),
        routing_key: cursor.short()?.to_vec(),
        ..RawMessage::default()
    })
}

/// Messages that are ready and consumers, of a `queue.declare-ok`.
fn counts(declared: &[u8]) -> Option<(u32, u32)> {
    let mut cursor = Cursor::new(declared);
    cursor.short()?;
    cursor.u32().zip(cursor.u32())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use proptest::prelude::*;

    use super::*;

    /// What a peer that says these bytes, whatever it is told, is taken for.
    fn met(bytes: &[u8]) -> RawError {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let options = AmqpOptions::new(&format!("amqp://u:s3cret@{address}/%2f"));
        let options = options.expect("a good url");
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().expect("connected");
                // The other side may be gone before it has heard and said all.
                let _ = stream.read(&mut [0; 8]);
                let _ = stream.write_all(bytes);
            });
            RawConnection::open(&options).expect_err("no broker")
        })
    }

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        [&[kind, 0, 0][..], &long(payload), &[0xce]].concat()
    }

    #[test]
    fn a_peer_that_is_no_broker_is_an_error_that_says_so() {
        let close = [&[0, 10, 0, 50, 1, 0x93][..], &short(b"no \x1b"), &[0; 4]].concat();
        for (bytes, said) in [
            (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "frame of"),
            (vec![1, 0, 0, 0xff, 0xff, 0xff, 0xff], "frame of 4294967295"),
            (vec![1, 0, 0, 0, 0, 0, 0, 0], "without an end"),
            (frame(1, &[0]), "without a number"),
            (frame(1, &[0, 10, 0, 30]), "(10, 30) instead of (10, 10)"),
            (frame(3, b"body"), "type 3 unasked"),
            (frame(1, &close), "403 no \\u{1b}"),
            (Vec::new(), "closed the connection"),
        ] {
            let text = met(&bytes).to_string();
            assert!(text.contains(said), "{said} is not in {text}");
            assert!(!text.contains("s3cret"), "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_peer_may_say_any_bytes(bytes: Vec<u8>, tune: Vec<u8>) {
            met(&bytes);
            met(&[frame(8, &[]), frame(1, &[0, 10, 0, 10]), frame(1, &[&[0, 10, 0, 30], &tune[..]].concat())].concat());
        }
    }
}
