//! `onceward quarantine`: takes the head of a queue out of it when no worker can read it.
//!
//! Saves the message before the broker is told that it was taken: a crash in between leaves it in both places, never in
//! none. Leaves a head that a worker can read where it is. The file has, numbers in big endian:
//!
//! ```text
//! "onceward message 1\n"
//! 1 byte   length of the exchange's name        its bytes
//! 1 byte   length of the routing key            its bytes
//! 4 bytes  length of the content header         its payload: class, weight, body size, property flags, properties
//! 8 bytes  length of the body                   its bytes
//! ```
//!
//! The JSON file beside it says the same for people, with all strings escaped, and where in the first the body begins.

use std::fs::{DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use serde_json::json;
use tokio::time::Instant;

use super::run::amqp_options;
use super::{ConfigArgs, Exit, complain, print};
use crate::broker::AmqpOptions;
use crate::broker::amqp::raw::{Contents, Head, RawConnection, RawError, RawMessage, contents};
use crate::clock::Clock;
use crate::message::escape;
use crate::worker::config::Config;
use crate::worker::config::units::parse_duration;

const MAGIC: &[u8] = b"onceward message 1\n";

/// How often a queue that somebody consumes is tried again: a blocked worker leaves it for seconds at a time.
const RETRY: Duration = Duration::from_millis(300);

/// Files of one queue in one millisecond before something is wrong.
const NAMES_MAX: u32 = 100;

/// Options of `onceward quarantine`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct QuarantineArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Queue: a name in the configuration, or else a queue of the broker
    #[arg(short, long)]
    queue: String,
    /// Directory that the message is saved in; made if missing
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Take the head even if a worker can read it
    #[arg(long)]
    force: bool,
    /// How long to wait for the queue while somebody consumes it
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "60s")]
    wait: Duration,
}

/// Takes: 0 when saved and acked, 1 if there is nothing to take, 69 without a broker, 78 with a wrong configuration.
pub(crate) fn run(args: &QuarantineArgs) -> ExitCode {
    let config = match args.config.load() {
        Ok(config) => config,
        Err(errors) => {
            complain(&errors);
            return Exit::Configuration.into();
        }
    };
    let Err(failed) = quarantine(args, &config) else {
        return Exit::Ok.into();
    };
    complain(&format_args!("{failed:#}"));
    match failed.downcast_ref::<RawError>() {
        Some(RawError::Unreachable { .. }) => Exit::Unreachable.into(),
        Some(_) | None => Exit::Failed.into(),
    }
}

fn quarantine(args: &QuarantineArgs, config: &Config) -> anyhow::Result<()> {
    if config.broker.is_memory() {
        bail!("broker.url is \"memory:\", which lives inside a worker: there is nothing to take");
    }
    let configured = config.queues.iter().find(|queue| queue.name == args.queue);
    let queue = configured.map_or(&args.queue, |queue| &queue.options.queue);
    let options = amqp_options(&config.broker)?;

    let (mut connection, message) = head(&options, queue, args.wait)?;
    let contents = contents(&message);
    if contents.defects.is_empty() && !args.force {
        connection.close()?;
        bail!(
            "the head of queue {queue:?} is readable; nothing to quarantine (--force takes it all the same)"
        );
    }
    let saved = save(&args.out, queue, &message, &contents)
        .with_context(|| format!("not taken: it cannot be saved in {}", args.out.display()))?;
    let shown = saved.display();
    connection.ack(&message).with_context(|| {
        format!(
            "saved as {shown}, but its ack may not have arrived: look whether it is still there"
        )
    })?;
    let why = match contents.defects.as_slice() {
        [] => "readable, taken by --force".to_owned(),
        defects => defects.join("; "),
    };
    print(&format_args!(
        "took the head of queue {queue:?}: {why}\nsaved as {shown}, described in {}",
        saved.with_extension("json").display()
    ));
    Ok(())
}

/// Waits for the queue and holds its head.
fn head(
    options: &AmqpOptions,
    queue: &str,
    wait: Duration,
) -> anyhow::Result<(RawConnection, RawMessage)> {
    let deadline = Instant::now() + wait;
    let mut said = false;
    loop {
        let mut connection = RawConnection::open(options)?;
        match connection.head(queue, deadline)? {
            Head::Held(message) => return Ok((connection, message)),
            Head::Empty => bail!("queue {queue:?} is empty; nothing to quarantine"),
            Head::InUse if Instant::now() >= deadline => bail!(
                "queue {queue:?} is being consumed: its worker can read it, or somebody else holds it; \
                 stop that consumer first"
            ),
            Head::InUse => {}
        }
        if !std::mem::replace(&mut said, true) {
            complain(&format_args!("queue {queue:?} is being consumed, waiting up to {wait:?}"));
        }
        std::thread::sleep(RETRY);
    }
}

/// Writes both files, and returns the path of the message's when all is on stable storage.
fn save(
    directory: &Path,
    queue: &str,
    message: &RawMessage,
    contents: &Contents,
) -> io::Result<PathBuf> {
    let mut making = DirBuilder::new();
    making.recursive(true).mode(0o700).create(directory)?;
    let taken_at_ms = Clock::default().now_ms();
    let (path, mut file) = create(directory, queue, &time(taken_at_ms))?;
    let (front, body_bytes) = (front(message), message.body.len() as u64);
    file.write_all(&front)?;
    file.write_all(&message.body)?;
    file.sync_all()?;
    let description = json!({
        "queue": queue,
        "taken_at": time(taken_at_ms),
        "unreadable": contents.defects,
        "redelivered": message.redelivered,
        "exchange": escape(&message.exchange),
        "routing_key": escape(&message.routing_key),
        "properties": contents.properties,
        "body_offset": front.len(),
        "body_bytes": body_bytes,
    });
    let mut file = open_new(&path.with_extension("json"))?;
    writeln!(file, "{description:#}")?;
    file.sync_all()?;
    for directory in [Some(directory), directory.parent()].into_iter().flatten() {
        if !directory.as_os_str().is_empty() {
            File::open(directory)?.sync_all()?;
        }
    }
    Ok(path)
}

/// All of the file but the body.
fn front(message: &RawMessage) -> Vec<u8> {
    let mut front = MAGIC.to_vec();
    for text in [&message.exchange, &message.routing_key] {
        // Both came as short strings.
        front.push(text.len() as u8);
        front.extend_from_slice(text);
    }
    front.extend_from_slice(&(message.header.len() as u32).to_be_bytes());
    front.extend_from_slice(&message.header);
    front.extend_from_slice(&(message.body.len() as u64).to_be_bytes());
    front
}

/// A new file of a name that no other message has, also without its extension.
fn create(directory: &Path, queue: &str, time: &str) -> io::Result<(PathBuf, File)> {
    let harmless = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let queue: String = queue.chars().map(|c| if harmless(c) { c } else { '_' }).collect();
    let mut number = 0;
    loop {
        let path = directory.join(match number {
            0 => format!("{queue}-{time}.amqp"),
            _ => format!("{queue}-{time}-{number}.amqp"),
        });
        match open_new(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < NAMES_MAX => {
                number += 1;
            }
            opened => return Ok((path, opened?)),
        }
    }
}

fn open_new(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600).open(path)
}

fn time(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn every_message_is_saved_whole_in_files_of_its_own_for_the_owner_alone() {
        let parent = tempfile::tempdir().expect("a directory");
        let directory = parent.path().join("new");
        let message = RawMessage {
            routing_key: b"\xff/".to_vec(),
            header: vec![1; 14],
            body: b"body".to_vec(),
            ..RawMessage::default()
        };
        let contents = contents(&message);
        let paths = ["../a b", "../a b", "../a b"]
            .map(|queue| save(&directory, queue, &message, &contents).expect("saved"));
        for path in &paths {
            assert_eq!(path.parent(), Some(directory.as_path()));
            for path in [path.clone(), path.with_extension("json")] {
                let mode = path.metadata().expect("it is there").permissions().mode();
                assert_eq!(mode & 0o777, 0o600, "{}", path.display());
            }
            let bytes = std::fs::read(path).expect("it is there");
            let expected = [
                b"onceward message 1\n\x00\x02\xff/\x00\x00\x00\x0e".as_slice(),
                &[1; 14],
                b"\x00\x00\x00\x00\x00\x00\x00\x04body",
            ];
            assert_eq!(bytes, expected.concat());
            let json = std::fs::read(path.with_extension("json")).expect("it is there");
            let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
            assert_eq!(json["routing_key"], "\\xff/");
            let offset = json["body_offset"].as_u64().expect("a number") as usize;
            assert_eq!(&bytes[offset..], b"body");
        }
        assert_eq!(std::fs::read_dir(&directory).expect("there").count(), 6);
    }
}
