//! Goal: a message that is in work for longer than the broker's `consumer_timeout` takes effect once, and stops nothing
//! but intake, in time and with a word of warning.
//!
//! Method: the limit is a setting of the whole node, so this test has a node of its own, with a limit of three seconds.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onceward::{
    Body, Context, Declare, Handler, HeaderValue, Health, Options, Properties, QueueOptions,
    Source, Worker,
};
use tokio::time::{Instant, sleep};

const QUEUE: &str = "slow";
const LIMIT: Duration = Duration::from_secs(3);

/// A node of this test's own, ended and removed when dropped.
struct Node {
    directory: PathBuf,
    url: String,
    _parent: tempfile::TempDir,
}

impl Node {
    fn start() -> Self {
        let parent = tempfile::tempdir().expect("a directory");
        let directory = parent.path().join("node");
        let mut node = Self { directory, url: String::new(), _parent: parent };
        node.url = node.script(&["start"]).trim().to_owned();
        let set = format!(
            "application:set_env(rabbit, consumer_timeout, {}), \
             application:set_env(rabbit, channel_tick_interval, 500).",
            LIMIT.as_millis()
        );
        node.script(&["ctl", "eval", &set]);
        node
    }

    fn script(&self, arguments: &[&str]) -> String {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/rabbitmq");
        let output = Command::new(script)
            .args(arguments)
            .env("ONCEWARD_RABBITMQ_DIR", &self.directory)
            .stdin(Stdio::null())
            .output();
        let output = output.unwrap_or_else(|error| panic!("{script}: {error}"));
        assert!(
            output.status.success(),
            "{script} {arguments:?}: run `apt-get install -y rabbitmq-server`?\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    }

    fn log(&self) -> String {
        let logs = std::fs::read_dir(self.directory.join("log")).expect("the node logs");
        let read = |entry: std::io::Result<std::fs::DirEntry>| {
            std::fs::read(entry.expect("an entry").path()).unwrap_or_default()
        };
        logs.map(|entry| String::from_utf8_lossy(&read(entry)).into_owned()).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.script(&["stop"]);
        } else {
            // A second panic would hide the first.
            let _ = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/rabbitmq"))
                .arg("stop")
                .env("ONCEWARD_RABBITMQ_DIR", &self.directory)
                .status();
        }
    }
}

/// Takes as long as a body says, and remembers when it began and ended.
#[derive(Clone, Default)]
struct Slow {
    begun: Arc<Mutex<Vec<String>>>,
    ended: Arc<Mutex<Vec<(String, Instant)>>>,
}

impl Handler<Body> for Slow {
    async fn handle(&self, cx: &mut Context, Body(body): Body) -> onceward::Result {
        let id = cx.id().to_string();
        self.begun.lock().expect("not poisoned").push(id.clone());
        let ms: u64 = std::str::from_utf8(&body)?.parse()?;
        sleep(Duration::from_millis(ms)).await;
        self.ended.lock().expect("not poisoned").push((id, Instant::now()));
        Ok(())
    }
}

impl Slow {
    fn ended(&self) -> Vec<String> {
        self.ended.lock().expect("not poisoned").iter().map(|(id, _)| id.clone()).collect()
    }
}

/// Whether a part whose name ends like this has a fault, and which.
fn fault(health: &Health, part: &str) -> Option<String> {
    let faults = health.readiness().faults;
    faults.into_iter().find(|(name, _)| name.ends_with(part)).map(|(_, reason)| reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_longer_than_the_consumer_timeout_has_one_effect_and_others_go_on() {
    for declare in [Declare::Classic, Declare::Quorum] {
        let node = Node::start();
        let store = tempfile::tempdir().expect("a directory");
        let options = Options::new(&node.url, store.path()).expect("a url");
        let queue = QueueOptions {
            declare,
            consumer_timeout: Some(LIMIT),
            timeout: Duration::from_secs(60),
            identity: onceward::IdentityRules {
                key: vec![Source::Header("key".to_owned())],
                ..onceward::IdentityRules::default()
            },
            ..QueueOptions::new(QUEUE)
        };
        let slow = Slow::default();
        let worker = Worker::new(options).queue_with(queue, slow.clone());
        let (publisher, health) = (worker.publisher(), worker.health());
        let scene = async {
            while fault(&health, QUEUE).is_some() {
                sleep(Duration::from_millis(50)).await;
            }
            let publish = async |id: &str, key: &str, ms: u64| {
                let key = ("key".to_owned(), HeaderValue::from(key));
                let properties = Properties {
                    message_id: Some(id.to_owned()),
                    headers: [key].into(),
                    ..Properties::default()
                };
                let message = onceward::Message {
                    routing_key: QUEUE.to_owned(),
                    properties,
                    body: ms.to_string().into(),
                    ..onceward::Message::default()
                };
                publisher.publish(message).await.expect("published");
            };
            let begun = Instant::now();
            publish("long", "a", 9_000).await;
            publish("behind", "a", 1).await;
            sleep(LIMIT * 3 / 4).await;
            let said = fault(&health, "slow deliveries").expect("said before the broker acts");
            assert!(said.contains("message long is unacknowledged for"), "{said}");
            publish("other", "b", 1).await;
            // The broker takes the channel, and the new one serves other keys while the long run goes on.
            while slow.ended() != ["other"] {
                assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", slow.ended());
                sleep(Duration::from_millis(50)).await;
            }
            while slow.ended().len() < 3 {
                assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", slow.ended());
                sleep(Duration::from_millis(50)).await;
            }
            // What is left to be delivered again would run now.
            sleep(LIMIT).await;
        };
        worker.run_until(scene).await.expect("a clean drain");
        assert_eq!(slow.ended(), ["other", "long", "behind"], "{declare:?}");
        assert_eq!(slow.begun.lock().expect("not poisoned").len(), 3, "each began once");
        let left = node.script(&["ctl", "-q", "list_queues", "name", "messages"]);
        assert!(left.contains(&format!("{QUEUE}\t0")), "{left}");
        let log = node.log();
        assert!(log.contains("timed out waiting for delivery ack"), "{log}");
        assert!(!log.contains("unknown delivery tag"), "{log}");
    }
}
