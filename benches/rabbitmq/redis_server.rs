//! The private Redis of `scripts/redis`, with its directory on the disk that onceward's store is on.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::child::RedisTask;

/// Stopped when it is dropped.
pub(crate) struct RedisServer {
    directory: PathBuf,
    url: String,
}

fn script(directory: &PathBuf, command: &str) -> Command {
    let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/redis"));
    script.arg(command).env("ONCEWARD_REDIS_DIR", directory).stderr(Stdio::inherit());
    script
}

impl RedisServer {
    pub(crate) fn start() -> Result<Self> {
        let name = format!("redis-{}", std::process::id());
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let output = script(&directory, "start").output().context("scripts/redis")?;
        let server = Self { directory, url: String::from_utf8(output.stdout)?.trim().to_owned() };
        ensure!(output.status.success(), "scripts/redis start failed: mend it");
        Ok(server)
    }

    /// Empties it and sets when it syncs.
    pub(crate) async fn fresh(&self, appendfsync: &str) -> Result<RedisTask> {
        let client = redis::Client::open(self.url.as_str())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("appendfsync").arg(appendfsync);
        let () = set.query_async(&mut connection).await?;
        let () = redis::cmd("FLUSHALL").query_async(&mut connection).await?;
        let pid = std::fs::read_to_string(self.directory.join("pid"))?;
        Ok(RedisTask { url: self.url.clone(), pid: pid.trim().to_owned() })
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        match script(&self.directory, "stop").status() {
            Ok(status) if status.success() => {
                let _ = std::fs::remove_file(self.directory.with_extension("lock"));
            }
            problem => eprintln!("scripts/redis stop: {problem:?}"),
        }
    }
}
