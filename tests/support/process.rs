//! The binary as a process: started with a configuration in a directory of its own, watched, signalled, killed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::time::Instant;

/// A directory with a configuration, a store and logs, for one worker after the other.
#[derive(Debug)]
pub struct WorkerDir {
    directory: tempfile::TempDir,
}

/// A running worker; killed when dropped.
#[derive(Debug)]
pub struct WorkerProcess {
    child: Child,
    log: PathBuf,
    /// Where the log of this one begins.
    log_start: usize,
}

impl WorkerDir {
    /// A worker on the broker at `url`, with these tables beside `[broker]` and `[store]`.
    pub fn new(url: &str, tables: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("store");
        let config = format!(
            "[broker]\nurl = \"{url}\"\n[store]\npath = \"{}\"\n[log]\nformat = \"json\"\n{tables}",
            path.display()
        );
        std::fs::write(directory.path().join("config.toml"), config).expect("a configuration");
        Self { directory }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The command line `onceward ARGUMENTS` in this directory.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_onceward"));
        command.args(arguments).current_dir(self.path()).stdin(Stdio::null());
        command
    }

    /// Starts `onceward run`; its log is appended to the directory's.
    pub fn start(&self) -> WorkerProcess {
        self.start_as(self.command(&["run"]))
    }

    /// Starts this command as the worker.
    pub fn start_as(&self, mut command: Command) -> WorkerProcess {
        let log = self.log();
        let file = File::options().create(true).append(true).open(&log).expect("a log");
        let log_start = self.logged().len();
        let child = command.stderr(file).spawn().expect("the binary starts");
        WorkerProcess { child, log, log_start }
    }

    /// Where all workers of this directory log to.
    pub fn log(&self) -> PathBuf {
        self.path().join("worker.log")
    }

    /// All that was logged.
    pub fn logged(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }
}

impl WorkerProcess {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: nothing is finished and nothing is said.
    pub fn kill(mut self) {
        self.child.kill().expect("it was running");
        self.child.wait().expect("it ends");
    }

    /// Sends a signal by name, such as TERM.
    pub fn signal(&self, name: &str) {
        let sent =
            Command::new("kill").args([&format!("-{name}"), &self.id().to_string()]).status();
        assert!(sent.expect("kill is there").success(), "{name}");
    }

    /// Waits for its end.
    pub fn wait(mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "it runs on after {limit:?}:\n{}", self.logged());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// As [`wait`](Self::wait), for tests in which more goes on meanwhile.
    pub async fn ended(mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        while self.is_running() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.wait(Duration::ZERO)
    }

    /// What it says, if its command had that piped.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it can be waited for").is_none()
    }

    /// What this worker logged.
    pub fn logged(&self) -> String {
        let mut log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.split_off(self.log_start.min(log.len()))
    }

    /// Waits until this worker has logged a text.
    pub fn wait_for_log(&self, text: &str, limit: Duration) {
        let deadline = Instant::now() + limit;
        while !self.logged().contains(text) {
            assert!(
                Instant::now() < deadline,
                "{text:?} is not logged after {limit:?}:\n{}",
                self.logged()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
