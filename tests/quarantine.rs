//! Goal: `onceward quarantine` takes out of a queue what no worker can read, and nothing else, and saves it first.
//!
//! Method: the binary against a real broker, with a plain client and a hand-written publisher beside it.

use std::process::Output;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio::time::{sleep, timeout};

mod support;

use support::process::WorkerDir;
use support::rabbitmq::{Client, Vhost, arguments};
use support::raw_amqp::{self, RawMessage};

/// A vhost, a plain client in it, and a directory with a configuration. The client goes first.
struct Scene {
    client: Client,
    vhost: Vhost,
    directory: WorkerDir,
}

impl Scene {
    async fn new() -> Self {
        let vhost = Vhost::new();
        Self {
            client: vhost.client().await,
            directory: WorkerDir::new(&vhost.url(), "[queues.in]\ndeliver = { type = \"log\" }\n"),
            vhost,
        }
    }

    fn quarantine(&self, arguments: &[&str]) -> Output {
        let arguments = [&["quarantine"][..], arguments].concat();
        let mut command = self.directory.command(&arguments);
        tokio::task::block_in_place(|| command.output()).expect("the binary starts")
    }

    /// Asserts the exit code and returns what was said on standard error.
    fn refused(&self, arguments: &[&str], code: i32) -> String {
        let output = self.quarantine(arguments);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        String::from_utf8(output.stderr).expect("text")
    }

    fn publish_bad(&self, queue: &str) {
        let bad = RawMessage {
            message_id: Some(b"\xff".to_vec()),
            body: b"bad".to_vec(),
            ..RawMessage::default()
        };
        raw_amqp::publish(&self.vhost.url(), queue, &[bad]);
    }

    async fn depth_becomes(&self, queue: &str, depth: u32) {
        let becoming = async {
            while self.client.depth(queue).await != depth {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(20), becoming)
            .await
            .unwrap_or_else(|_| panic!("{queue} never has {depth} messages"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_head_is_taken_alone_from_every_kind_of_queue() {
    let scene = Scene::new().await;
    scene.client.declare_classic("in").await;
    scene.client.declare_quorum("single").await;
    let quorum = arguments(&[("x-queue-type", AMQPValue::LongString("quorum".into()))]);
    scene.client.declare("quorum", QueueDeclareOptions::durable(), quorum).await;
    for queue in ["in", "single", "quorum"] {
        scene.publish_bad(queue);
        scene.publish_bad(queue);
        scene.client.publish(queue, ["good".to_owned()]).await;
        let taken = scene.quarantine(&["--queue", queue]);
        assert!(taken.status.success(), "{queue}: {taken:?}");
        scene.depth_becomes(queue, 2).await;
        let taken = scene.quarantine(&["--queue", queue]);
        assert!(taken.status.success(), "{queue}: {taken:?}");
        scene.depth_becomes(queue, 1).await;
        let channel = scene.client.channel().await;
        let options = BasicConsumeOptions::default();
        let consuming =
            channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
        let mut left = consuming.await.expect("a consumer");
        let left = left.next().await.expect("one").expect("a delivery");
        assert_eq!(left.data, b"good");
        assert!(!left.redelivered, "{queue}: it was not touched");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_readable_head_stays_unless_it_is_taken_by_force() {
    let scene = Scene::new().await;
    scene.client.declare_classic("in").await;
    scene.client.publish("in", ["good".to_owned()]).await;
    let said = scene.refused(&["--queue", "in"], 1);
    assert!(said.contains("the head of queue \"in\" is readable; nothing to quarantine"), "{said}");
    assert_eq!(scene.client.depth("in").await, 1);
    let taken = scene.quarantine(&["--queue", "in", "--force"]);
    assert!(taken.status.success(), "{taken:?}");
    let said = scene.refused(&["--queue", "in"], 1);
    assert!(said.contains("queue \"in\" is empty"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_cannot_be_saved_stays() {
    let scene = Scene::new().await;
    scene.client.declare_classic("in").await;
    scene.publish_bad("in");
    // A file where the directory should be.
    let said = scene.refused(&["--queue", "in", "--out", "config.toml"], 1);
    assert!(said.contains("not taken"), "{said}");
    scene.depth_becomes("in", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_consumed_is_left_alone_after_a_while() {
    let scene = Scene::new().await;
    scene.client.declare_classic("in").await;
    scene.client.declare_quorum("single").await;
    for (queue, exclusive) in [("in", true), ("single", false)] {
        scene.client.publish(queue, ["held".to_owned()]).await;
        let options = BasicConsumeOptions { exclusive, ..BasicConsumeOptions::default() };
        let channel = scene.client.channel().await;
        let consuming =
            channel.basic_consume(queue.into(), "holder".into(), options, FieldTable::default());
        let consumer = consuming.await.expect("a consumer");
        let said = scene.refused(&["--queue", queue, "--wait", "2s"], 1);
        assert!(said.contains("waiting up to 2s"), "{said}");
        assert!(said.contains("stop that consumer first"), "{said}");
        drop(consumer);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_reached_or_is_not_there_is_said() {
    let scene = Scene::new().await;
    let said = scene.refused(&["--queue", "nowhere"], 1);
    assert!(said.contains("no queue 'nowhere'"), "{said}");
    let url = scene.vhost.url();
    let set = |url: &str| format!("broker.url={url}");
    let wrong = set(&url.replace("guest:guest", "guest:wr0ng"));
    let said = scene.refused(&["--queue", "in", "--set", &wrong], 1);
    assert!(said.contains("403") && !said.contains("wr0ng"), "{said}");
    let nobody = set("amqp://guest:guest@127.0.0.1:1/%2f");
    scene.refused(&["--queue", "in", "--set", &nobody], 69);
    let memory = set("memory:");
    scene.refused(&["--queue", "in", "--set", &memory], 1);
    scene.refused(&["--queue", "in", "--set", "broker.ulr=x"], 78);
    assert_eq!(scene.quarantine(&["--quueue", "in"]).status.code(), Some(2));
}

/// What no worker can read, each in its own way, on both kinds of queue, with a worker that goes on afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_blocks_a_running_worker_is_taken_out_and_the_worker_goes_on() {
    let body = || b"bad".to_vec();
    let id = || Some(b"an id".to_vec());
    let hostile: [(&str, RawMessage); 3] = [
        (
            "message id",
            RawMessage {
                message_id: Some(b"\xff\xfe".to_vec()),
                body: body(),
                ..RawMessage::default()
            },
        ),
        (
            "header name",
            RawMessage {
                message_id: id(),
                headers: Some(raw_amqp::header(b"x-\xff", b"value")),
                body: body(),
                ..RawMessage::default()
            },
        ),
        (
            "routing key",
            RawMessage {
                message_id: id(),
                target: Some((b"all".to_vec(), b"\xff\xfe".to_vec())),
                body: body(),
                ..RawMessage::default()
            },
        ),
    ];
    let scene = Scene::new().await;
    let channel = scene.client.channel().await;
    let fanout = channel.exchange_declare(
        "all".into(),
        lapin::ExchangeKind::Fanout,
        lapin::options::ExchangeDeclareOptions::default(),
        FieldTable::default(),
    );
    fanout.await.expect("an exchange");
    for kind in ["classic", "quorum"] {
        match kind {
            "quorum" => scene.client.declare_quorum("in").await,
            _ => scene.client.declare_classic("in").await,
        }
        let bound = channel.queue_bind(
            "in".into(),
            "all".into(),
            "".into(),
            lapin::options::QueueBindOptions::default(),
            FieldTable::default(),
        );
        bound.await.expect("a binding");
        let worker =
            scene.directory.start_as(scene.directory.command(&["run", "--set", "http.listen="]));
        worker.wait_for_log("\"consuming\"", Duration::from_secs(40));
        for (what, message) in &hostile {
            let before = scene.directory.logged().len();
            raw_amqp::publish(&scene.vhost.url(), "in", std::slice::from_ref(message));
            scene.client.publish("in", [format!("{kind} {what}: healthy")]).await;
            let logs = async |text: &str| {
                let logging = async {
                    while !scene.directory.logged()[before..].contains(text) {
                        sleep(Duration::from_millis(50)).await;
                    }
                };
                timeout(Duration::from_secs(40), logging).await.unwrap_or_else(|_| {
                    let logged = scene.directory.logged();
                    panic!("{kind}, {what}: never {text:?}: {}", &logged[before..])
                });
            };
            logs("cannot be parsed and blocks it").await;
            let taken = scene.quarantine(&["--queue", "in", "--out", "kept"]);
            assert!(taken.status.success(), "{kind}, {what}: {taken:?}");
            logs(&format!("{kind} {what}: healthy")).await;
        }
        // The ack of the last one may have gone down with the connection on which it was read alone.
        let acked = async {
            while tokio::task::block_in_place(|| scene.vhost.messages("in")) > 0 {
                sleep(Duration::from_millis(200)).await;
            }
        };
        timeout(Duration::from_secs(40), acked)
            .await
            .unwrap_or_else(|_| panic!("{kind}, not acked: {}", scene.directory.logged()));
        worker.signal("TERM");
        assert!(worker.wait(Duration::from_secs(40)).success());
        scene.client.delete("in").await;
    }
    let kept = std::fs::read_dir(scene.directory.path().join("kept")).expect("there").count();
    assert_eq!(kept, 2 * 2 * hostile.len(), "a file of bytes and one for people each");
}

/// Deeper than any stack: the worker reads it, and so there is nothing to take out; by force there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_nested_beyond_all_depth_can_be_taken_out_of_every_kind_of_queue() {
    let scene = Scene::new().await;
    for kind in ["classic", "quorum"] {
        match kind {
            "quorum" => scene.client.declare_quorum("in").await,
            _ => scene.client.declare_classic("in").await,
        }
        for headers in
            [raw_amqp::nested_arrays(b"deep", 25_000), raw_amqp::nested_tables(b"deep", 20_000)]
        {
            let deep = RawMessage {
                message_id: Some(b"deep".to_vec()),
                headers: Some(headers),
                body: b"deep".to_vec(),
                ..RawMessage::default()
            };
            raw_amqp::publish(&scene.vhost.url(), "in", &[deep]);
        }
        scene.client.publish("in", ["good".to_owned()]).await;
        for left in [2, 1] {
            let taken = scene.quarantine(&["--queue", "in", "--out", "kept", "--force"]);
            assert!(taken.status.success(), "{kind}: {taken:?}");
            scene.depth_becomes("in", left).await;
        }
        let said = scene.refused(&["--queue", "in"], 1);
        assert!(said.contains("nothing to quarantine"), "{said}");
        let taken = scene.quarantine(&["--queue", "in", "--out", "kept", "--force"]);
        assert!(taken.status.success(), "{kind}: {taken:?}");
        let said = scene.refused(&["--queue", "in"], 1);
        assert!(said.contains("queue \"in\" is empty"), "{said}");
        scene.client.delete("in").await;
    }
}
