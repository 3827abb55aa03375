//! A real broker for tests: the node of `AMQP_URL`, or a private one that `scripts/rabbitmq start` runs.
//!
//! Each test gets a vhost of its own, gone when it ends; what it declares and publishes there is nobody else's. A
//! node that cannot be had is a panic with the command that installs it, never a silent pass.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

/// A node that tests run against.
#[derive(Debug)]
pub struct Node {
    /// With the default vhost, as `amqp://user:password@host:port/%2f`.
    url: String,
    /// How rabbitmqctl is called for it.
    ctl: Vec<String>,
    /// Where a private node lives; `None` for the one that tests share.
    directory: Option<PathBuf>,
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/rabbitmq");

impl Node {
    /// The node that tests share.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Node> = OnceLock::new();
        SHARED.get_or_init(|| {
            let url = std::env::var("AMQP_URL").unwrap_or_else(|_| Self::start(None));
            let command = std::env::var("ONCEWARD_RABBITMQCTL");
            let command = command.unwrap_or_else(|_| format!("{SCRIPT} ctl"));
            let ctl = command.split_whitespace().map(str::to_owned).collect();
            Self { url, ctl, directory: None }
        })
    }

    /// A node of this test binary's own, for faults that everybody on it would feel; gone when the binary ends.
    pub fn private() -> &'static Self {
        static PRIVATE: OnceLock<Node> = OnceLock::new();
        PRIVATE.get_or_init(|| {
            let directory =
                std::env::temp_dir().join(format!("onceward-node-{}", std::process::id()));
            let url = Self::start(Some(&directory));
            // A process that sees the end of this one, however it ends: nobody closes its input before.
            let stop = format!("cat >/dev/null; {SCRIPT} stop; rm -f {}.lock", directory.display());
            let reaper = Command::new("setsid")
                .args(["sh", "-c", &stop])
                .env("ONCEWARD_RABBITMQ_DIR", &directory)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            std::mem::forget(reaper.expect("setsid is there"));
            let ctl = vec![SCRIPT.to_owned(), "ctl".to_owned()];
            Self { url, ctl, directory: Some(directory) }
        })
    }

    fn start(directory: Option<&Path>) -> String {
        let mut command = Command::new(SCRIPT);
        command.arg("start").stdin(Stdio::null()).stderr(Stdio::inherit());
        if let Some(directory) = directory {
            command.env("ONCEWARD_RABBITMQ_DIR", directory);
        }
        let output = command.output();
        let output = output.unwrap_or_else(|error| panic!("{SCRIPT} start: {error}"));
        assert!(
            output.status.success(),
            "no RabbitMQ: run `apt-get install -y rabbitmq-server` and `{SCRIPT} start`, or set AMQP_URL"
        );
        String::from_utf8(output.stdout).expect("a url").trim().to_owned()
    }

    /// Runs rabbitmqctl against the node.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let (program, words) =
            self.ctl.split_first().expect("ONCEWARD_RABBITMQCTL names a command");
        let mut command = Command::new(program);
        command.args(words).arg("-q").args(arguments);
        if let Some(directory) = &self.directory {
            command.env("ONCEWARD_RABBITMQ_DIR", directory);
        }
        let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Sends a signal to the private node's process.
    pub fn signal(&self, name: &str) {
        let directory = self.directory.as_ref().expect("only a private node is struck");
        let id = std::fs::read_to_string(directory.join("pid")).expect("it runs");
        let sent = Command::new("kill").args([&format!("-{name}"), id.trim()]).status();
        assert!(sent.expect("kill is there").success(), "{name}");
    }

    /// Starts the private node again with the data that it had.
    pub fn start_again(&self) {
        let url = Self::start(self.directory.as_deref());
        assert_eq!(url, self.url, "the same port");
    }
}

/// The shared node's url with the default vhost.
pub fn url() -> &'static str {
    &Node::shared().url
}

/// Runs rabbitmqctl against the shared node; `ONCEWARD_RABBITMQCTL` names the command for the node of `AMQP_URL`.
pub fn ctl(arguments: &[&str]) -> String {
    Node::shared().ctl(arguments)
}

/// A vhost of a test's own, deleted with all that is in it when dropped.
#[derive(Debug)]
pub struct Vhost {
    node: &'static Node,
    name: String,
}

impl Vhost {
    /// Makes a vhost on the shared node.
    pub fn new() -> Self {
        Self::on(Node::shared())
    }

    /// Makes a vhost that the url's user may do everything in.
    pub fn on(node: &'static Node) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{next}", std::process::id());
        let user = node.url.split(['/', ':', '@']).nth(3).expect("a url with a user");
        // One call: each starts an Erlang node.
        node.ctl(&[
            "eval",
            &format!(
                "rabbit_vhost:add(<<\"{name}\">>, <<\"tests\">>), rabbit_auth_backend_internal:set_permissions(\
                 <<\"{user}\">>, <<\"{name}\">>, <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"tests\">>)."
            ),
        ]);
        Self { node, name }
    }

    pub const fn node(&self) -> &'static Node {
        self.node
    }

    /// Its name, as rabbitmqctl takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Messages of the queue, those among them that a consumer holds; takes a second.
    ///
    /// Asks a quorum queue itself: what `list_queues` says of one is up to five seconds old.
    pub fn messages(&self, queue: &str) -> u64 {
        let count = self.node.ctl(&[
            "eval",
            &format!(
                "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"{}\">>, queue, <<\"{queue}\">>)), \
                 case amqqueue:get_type(Q) of \
                     rabbit_quorum_queue -> \
                         Count = fun rabbit_fifo:query_messages_total/1, \
                         {{ok, N, _}} = ra:consistent_query(amqqueue:get_pid(Q), Count), N; \
                     _ -> [{{messages, N}}] = rabbit_amqqueue:info(Q, [messages]), N \
                 end.",
                self.name
            ),
        ]);
        count.trim().parse().unwrap_or_else(|_| panic!("{queue}: {count:?}"))
    }

    /// The url with this vhost.
    pub fn url(&self) -> String {
        let (node, _) = self.node.url.rsplit_once('/').expect("a url with a vhost");
        format!("{node}/{}", self.name)
    }

    /// A client of the test's own, beside the one that is tested.
    pub async fn client(&self) -> Client {
        let url = self.url();
        let connecting = Connection::connect(&url, ConnectionProperties::default());
        let connection = connecting.await.expect("the node accepts the test's client");
        Client { connection }
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        // After a failed test too, where a second panic would hide the first.
        if !std::thread::panicking() {
            self.node.ctl(&["delete_vhost", &self.name]);
        }
    }
}

/// A plain client, each operation on a channel of its own.
#[derive(Debug)]
pub struct Client {
    pub connection: Connection,
}

/// Arguments of the kinds of queue that tests declare.
pub fn arguments(pairs: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in pairs {
        table.insert((*name).into(), value.clone());
    }
    table
}

impl Client {
    pub async fn channel(&self) -> Channel {
        self.connection.create_channel().await.expect("a channel")
    }

    /// A durable classic queue.
    pub async fn declare_classic(&self, queue: &str) {
        self.declare(queue, QueueDeclareOptions::durable(), FieldTable::default()).await;
    }

    /// A quorum queue with a single active consumer.
    pub async fn declare_quorum(&self, queue: &str) {
        let quorum = arguments(&[
            ("x-queue-type", AMQPValue::LongString("quorum".into())),
            ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ]);
        self.declare(queue, QueueDeclareOptions::durable(), quorum).await;
    }

    pub async fn declare(&self, queue: &str, options: QueueDeclareOptions, arguments: FieldTable) {
        let channel = self.channel().await;
        let declared = channel.queue_declare(queue.into(), options, arguments).await;
        declared.unwrap_or_else(|error| panic!("declaring {queue}: {error}"));
    }

    /// Publishes persistent messages and waits until all are confirmed; the bodies' text is the message id too.
    pub async fn publish(&self, queue: &str, bodies: impl IntoIterator<Item = String>) {
        let messages = bodies.into_iter().map(|body| (body.clone(), body.into_bytes()));
        self.publish_all(queue, messages).await;
    }

    /// As [`Self::publish`], of ids and bodies.
    pub async fn publish_all(
        &self,
        queue: &str,
        messages: impl IntoIterator<Item = (String, Vec<u8>)>,
    ) {
        let channel = self.channel().await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        let mut confirms = Vec::new();
        for (id, body) in messages {
            let properties =
                BasicProperties::default().with_delivery_mode(2).with_message_id(id.into());
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let sent =
                channel.basic_publish("".into(), queue.into(), options, &body, properties).await;
            confirms.push(sent.expect("published"));
        }
        for confirm in confirms {
            let confirmation = confirm.await.expect("a confirmation");
            assert!(confirmation.is_ack(), "{confirmation:?}");
        }
    }

    /// Takes everything out of the queue, oldest first.
    pub async fn take_all(&self, queue: &str) -> Vec<lapin::message::Delivery> {
        let channel = self.channel().await;
        let mut taken = Vec::new();
        while let Some(got) = channel
            .basic_get(queue.into(), BasicGetOptions::default())
            .await
            .expect("the queue exists")
        {
            let tag = got.delivery.delivery_tag;
            let acked = channel.basic_ack(tag, BasicAckOptions::default()).await;
            acked.expect("acked");
            taken.push(got.delivery);
        }
        channel.close(200, "OK".into()).await.expect("closed");
        taken
    }

    /// Messages that are ready, without those that a consumer holds.
    pub async fn depth(&self, queue: &str) -> u32 {
        let passive = QueueDeclareOptions::durable().passive();
        let channel = self.channel().await;
        let found = channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
        found.unwrap_or_else(|error| panic!("{queue}: {error}")).message_count()
    }

    pub async fn delete(&self, queue: &str) {
        let channel = self.channel().await;
        let deleted = channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await;
        deleted.unwrap_or_else(|error| panic!("deleting {queue}: {error}"));
    }
}
