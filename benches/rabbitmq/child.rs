//! What a process of its own is told, in its environment.

use std::num::NonZeroU16;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::subjects::Subject;
use crate::support::ALLOCATOR_VARIABLE;
use crate::watch::Drained;

const TASK: &str = "ONCEWARD_BENCH_TASK";

#[derive(Serialize, Deserialize)]
pub(crate) enum Task {
    Drain(Drain),
    Serve(Serve),
}

/// Drain a queue, and say how that went in one line on the standard output.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Drain {
    pub(crate) subject: Subject,
    pub(crate) node: NodeTask,
    pub(crate) messages: u64,
    /// Messages that are no twin of an earlier one.
    pub(crate) distinct: u64,
    pub(crate) redis: Option<RedisTask>,
}

/// Run `onceward` on a queue until the standard input ends, and answer what is asked there.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Serve {
    pub(crate) node: NodeTask,
    pub(crate) retention_s: u64,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct NodeTask {
    pub(crate) url: String,
    pub(crate) queue: String,
    pub(crate) prefetch: NonZeroU16,
    /// Process id of the Erlang machine, if it runs here.
    pub(crate) pid: Option<String>,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct RedisTask {
    pub(crate) url: String,
    pub(crate) pid: String,
}

impl Task {
    /// The one that this process was started with, if it is not the first.
    pub(crate) fn of_this_process() -> Result<Option<Self>> {
        let task = std::env::var(TASK).ok();
        Ok(task.map(|task| serde_json::from_str(&task)).transpose()?)
    }

    pub(crate) fn command(&self) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.env(TASK, serde_json::to_string(self)?).envs([ALLOCATOR_VARIABLE]);
        command.stderr(Stdio::inherit());
        Ok(command)
    }
}

impl Drain {
    pub(crate) fn run(&self) -> Result<Drained> {
        let output = Task::Drain(self.clone()).command()?.output()?;
        ensure!(output.status.success(), "{} failed", self.subject.name());
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}
