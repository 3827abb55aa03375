//! A publisher that writes AMQP frames by hand, to send what no client library would.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

/// A message as the bytes that go over the wire.
#[derive(Debug, Default)]
pub struct RawMessage {
    pub message_id: Option<Vec<u8>>,
    /// Exchange and routing key; the default exchange and the queue if there is none.
    pub target: Option<(Vec<u8>, Vec<u8>)>,
    /// The entries of the header table, encoded: see [`header`], [`nested_arrays`] and [`nested_tables`].
    pub headers: Option<Vec<u8>>,
    pub body: Vec<u8>,
}

/// One entry of a header table: a name of any bytes with a string of any bytes.
pub fn header(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut entry = short(name);
    entry.push(b'S');
    entry.extend(long(value));
    entry
}

/// One entry whose value is arrays in arrays: 5 bytes a level.
pub fn nested_arrays(name: &[u8], levels: u32) -> Vec<u8> {
    let mut entry = short(name);
    for level in (0..levels).rev() {
        entry.push(b'A');
        entry.extend((5 * level).to_be_bytes());
    }
    entry
}

/// One entry whose value is tables in tables, with empty names: 6 bytes a level.
pub fn nested_tables(name: &[u8], levels: u32) -> Vec<u8> {
    let mut entry = short(name);
    for level in (0..levels).rev() {
        entry.push(b'F');
        entry.extend((6 * level).to_be_bytes());
        if level > 0 {
            entry.push(0);
        }
    }
    entry
}

/// Publishes to a queue through the default exchange, or as a message says, and returns when the broker has taken it all.
///
/// The url is `amqp://user:password@host:port/vhost`, without anything percent-encoded but `%2f`.
pub fn publish(url: &str, queue: &str, messages: &[RawMessage]) {
    let mut connection = Connection::open(url);
    for message in messages {
        connection.publish(queue, message);
    }
    // The broker answers in order, so its answer comes after all of it is in the queue.
    connection.method(1, 20, 40, &[&[0, 200][..], &short(b"OK"), &[0; 4]].concat());
    connection.expect(20, 41);
    connection.method(0, 10, 50, &[&[0, 200][..], &short(b"OK"), &[0; 4]].concat());
    connection.expect(10, 51);
}

struct Connection(TcpStream);

impl Connection {
    fn open(url: &str) -> Self {
        let rest = url.strip_prefix("amqp://").expect("amqp://");
        let (login, rest) = rest.split_once('@').expect("user:password@");
        let (host, vhost) = rest.split_once('/').expect("/vhost");
        let (user, password) = login.split_once(':').expect("user:password");
        let stream = TcpStream::connect(host).expect("the broker accepts");
        let mut connection = Self(stream);
        connection.write(b"AMQP\x00\x00\x09\x01");
        connection.expect(10, 10);
        let response = format!("\0{user}\0{password}");
        let no_properties = [0; 4];
        let start =
            [&no_properties[..], &short(b"PLAIN"), &long(response.as_bytes()), &short(b"en_US")];
        connection.method(0, 10, 11, &start.concat());
        connection.expect(10, 30);
        // Channels, frames of 128 KiB, no heartbeats.
        connection.method(0, 10, 31, &[0, 16, 0, 2, 0, 0, 0, 0]);
        let vhost = vhost.replace("%2f", "/");
        connection.method(0, 10, 40, &[&short(vhost.as_bytes())[..], &[0, 0]].concat());
        connection.expect(10, 41);
        connection.method(1, 20, 10, &[0]);
        connection.expect(20, 11);
        connection
    }

    fn publish(&mut self, queue: &str, message: &RawMessage) {
        let own = (Vec::new(), queue.as_bytes().to_vec());
        let (exchange, routing_key) = message.target.as_ref().unwrap_or(&own);
        let target = [&[0, 0][..], &short(exchange), &short(routing_key), &[0]];
        self.method(1, 60, 40, &target.concat());
        let mut properties = Vec::new();
        let mut flags = 1_u16 << 12; // delivery mode
        if let Some(headers) = &message.headers {
            flags |= 1 << 13;
            properties.extend(long(headers));
        }
        properties.push(2);
        if let Some(id) = &message.message_id {
            flags |= 1 << 7;
            properties.extend(short(id));
        }
        let size = (message.body.len() as u64).to_be_bytes();
        let class_and_weight = [0, 60, 0, 0];
        let content = [&class_and_weight[..], &size, &flags.to_be_bytes(), &properties];
        self.frame(2, 1, &content.concat());
        if !message.body.is_empty() {
            self.frame(3, 1, &message.body);
        }
    }

    fn method(&mut self, channel: u16, class: u16, method: u16, arguments: &[u8]) {
        let ids = [class.to_be_bytes(), method.to_be_bytes()].concat();
        self.frame(1, channel, &[&ids[..], arguments].concat());
    }

    fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let size = (payload.len() as u32).to_be_bytes();
        let frame = [&[kind][..], &channel.to_be_bytes(), &size, payload, &[0xce]];
        self.write(&frame.concat());
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("the broker reads");
    }

    /// Reads the next method frame and checks which it is.
    fn expect(&mut self, class: u16, method: u16) {
        let (mut kind_and_channel, mut size, mut ids) = ([0; 3], [0; 4], [0; 4]);
        for part in [&mut kind_and_channel[..], &mut size, &mut ids] {
            self.0.read_exact(part).expect("the broker answers");
        }
        // The ids are read already, the end of the frame is not counted.
        let mut rest = vec![0; u32::from_be_bytes(size) as usize - ids.len() + 1];
        self.0.read_exact(&mut rest).expect("the broker answers");
        let [class_high, class_low, method_high, method_low] = ids;
        let got = (
            u16::from_be_bytes([class_high, class_low]),
            u16::from_be_bytes([method_high, method_low]),
        );
        let text = String::from_utf8_lossy(&rest);
        assert_eq!(got, (class, method), "the broker answered {text}");
    }
}

fn short(text: &[u8]) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("at most 255 bytes");
    [&[length][..], text].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}
