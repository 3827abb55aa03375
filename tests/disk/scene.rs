//! A worker that publishes what it gets from one queue to another, on a store whose disk the test has in its hands.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::support::process::{WorkerDir, WorkerProcess};
use super::support::rabbitmq::{Client, Vhost};

/// Longer than anything takes on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) struct Scene {
    /// Goes first: a vhost is deleted under nobody.
    pub(crate) client: Client,
    vhost: Vhost,
    pub(crate) directory: WorkerDir,
    mount: Option<Mount>,
}

/// A file system that is mounted on the store's directory.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        // In a drop that may be part of a panic there is nobody left to tell.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}

impl Scene {
    pub(crate) async fn new() -> Self {
        let vhost = Vhost::new();
        let client = vhost.client().await;
        client.declare_classic("in").await;
        client.declare_classic("out").await;
        let tables = "[http]\nlisten = \"\"\n[queues.in]\n\
                      deliver = { type = \"exchange\", exchange = \"\", routing_key = \"out\" }\n";
        let directory = WorkerDir::new(&vhost.url(), tables);
        Self { client, vhost, directory, mount: None }
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    /// Mounts a file system where the store is; `arguments` are those of mount, but for the directory.
    pub(crate) fn mount(&mut self, arguments: &[&str]) {
        let store = self.store();
        std::fs::create_dir_all(&store).expect("made");
        sh(Command::new("mount").args(arguments).arg(&store));
        self.mount = Some(Mount(store));
    }

    pub(crate) fn unmount(&mut self) {
        let path = self.store();
        // A process that has just ended may hold a file for a moment.
        for _ in 0..100 {
            let unmounted = Command::new("umount").arg(&path).output().expect("umount is there");
            if unmounted.status.success() {
                self.mount = None;
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{} stays in use", path.display());
    }

    /// The block device that is mounted, such as `loop0`.
    pub(crate) fn device(&self) -> String {
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("it is always there");
        let store = self.store();
        let mut lines = mounts.lines().filter_map(|line| {
            let mut words = line.split(' ');
            let device = words.next()?.strip_prefix("/dev/")?;
            (words.next()? == store.to_string_lossy()).then(|| device.to_owned())
        });
        lines.next().expect("it is mounted")
    }

    pub(crate) fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        sh(Command::new("mount").args(["-o", &options]).arg(self.store()));
    }

    /// Publishes messages of this many bytes, numbered from `first`.
    pub(crate) async fn publish(&self, numbers: std::ops::Range<usize>, bytes: usize) {
        let bodies = numbers.map(|number| (format!("m{number}"), vec![b'x'; bytes]));
        self.client.publish_all("in", bodies).await;
    }

    pub(crate) fn onceward(&self, arguments: &[&str]) -> Output {
        self.directory.command(arguments).output().expect("the binary starts")
    }

    /// Runs a worker with a fault that strace injects; the trace is in [`Self::trace`].
    pub(crate) fn start_injected(&self, inject: &str) -> WorkerProcess {
        let strace = Command::new("strace").arg("-V").output();
        assert!(strace.is_ok(), "strace is missing: run `apt-get install -y strace`");
        let mut command = Command::new("strace");
        command.args(["-f", "-y", "-xx", "-s", "32", "-e"]);
        command.arg("trace=pwrite64,pread64,fdatasync,sync_file_range,sendto,write,writev");
        command.args(["-e", inject]);
        command.arg("-o").arg(self.trace_path()).args([env!("CARGO_BIN_EXE_onceward"), "run"]);
        command.current_dir(self.directory.path());
        self.directory.start_as(command)
    }

    fn trace_path(&self) -> PathBuf {
        self.directory.path().join("trace")
    }

    pub(crate) fn trace(&self) -> String {
        std::fs::read_to_string(self.trace_path()).expect("a trace")
    }

    /// The worker ends by itself, because of its store: it says so in plain words.
    pub(crate) fn fails_stop(&self, worker: WorkerProcess, why: &str) {
        let status = self.ended(worker);
        assert_eq!(status.code(), Some(74), "{}", self.tail());
        let logged = self.directory.logged();
        let store = self.store();
        let named = format!("the store {}", store.display());
        let told = logged.lines().any(|line| line.contains(&named) && line.contains(why));
        assert!(told, "{why:?} is not told of {named}:\n{}", self.tail());
        self.has_not_panicked();
    }

    pub(crate) fn ended(&self, worker: WorkerProcess) -> ExitStatus {
        tokio::task::block_in_place(|| worker.wait(PATIENCE))
    }

    pub(crate) fn has_not_panicked(&self) {
        let logged = self.directory.logged();
        for bad in ["panicked", "PRECONDITION_FAILED", "please report"] {
            assert!(!logged.contains(bad), "{bad}: {}", self.tail());
        }
    }

    /// A sound worker does what is left, and in the end each of the messages is downstream under one id.
    pub(crate) async fn all_is_done(&self, messages: usize) {
        let worker = self.directory.start();
        worker.wait_for_log("\"consuming\"", PATIENCE);
        self.until("all is moved", async || self.client.depth("out").await as usize >= messages)
            .await;
        self.all_is_acked().await;
        self.stops_well(worker).await;
        let ids = self.downstream().await;
        assert_eq!(ids.len(), messages, "each message is downstream");
        let verified = self.onceward(&["store", "verify"]);
        assert!(verified.status.success(), "{verified:?}");
    }

    pub(crate) async fn all_is_acked(&self) {
        self.until("all is acked", async || {
            // Asked seldom: each question starts an Erlang node.
            sleep(Duration::from_millis(300)).await;
            tokio::task::block_in_place(|| self.vhost.messages("in")) == 0
        })
        .await;
    }

    /// The drain acks what is done, and nothing is left.
    pub(crate) async fn stops_well(&self, worker: WorkerProcess) {
        worker.signal("TERM");
        let status = self.ended(worker);
        assert!(status.success(), "{status}: {}", self.tail());
        assert_eq!(self.client.depth("in").await, 0, "nothing is returned");
    }

    /// Takes all out of the queue downstream; gives the one outgoing id of each message.
    pub(crate) async fn downstream(&self) -> BTreeMap<String, String> {
        let mut ids: BTreeMap<String, String> = BTreeMap::new();
        for delivery in self.client.take_all("out").await {
            let outgoing = delivery.properties.message_id().clone().expect("an id").to_string();
            let headers = delivery.properties.headers().clone().unwrap_or_default();
            let origin = headers.inner().get("x-onceward-origin-id").cloned();
            let origin = format!("{:?}", origin.expect("who it was"));
            let known = ids.entry(origin.clone()).or_insert_with(|| outgoing.clone());
            assert_eq!(*known, outgoing, "{origin} is sent under two ids");
        }
        ids
    }

    pub(crate) async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds().await {
            assert!(Instant::now() < deadline, "never {what}:\n{}", self.tail());
            sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) fn tail(&self) -> String {
        let logged = self.directory.logged();
        let lines: Vec<&str> = logged.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

pub(crate) fn sh(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A copy of a directory, as it is, in the place of what is there.
pub(crate) fn copy(from: &Path, to: &Path) {
    if to.exists() {
        std::fs::remove_dir_all(to).expect("removed");
    }
    sh(Command::new("cp").arg("-a").args([from, to]));
}
