//! onceward with a handler that does nothing, in a process of its own, while somebody publishes to its queue.
//!
//! The parent asks in lines on the child's standard input, the child answers in lines on its standard output.

use std::num::NonZeroU32;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use onceward::{AmqpBroker, AmqpOptions, Options, StoreOptions, Worker};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::child::{Serve, Task};
use crate::observed::{Acks, ObservedBroker};
use crate::subjects::{nothing, queue_options};
use crate::support::machine;
use crate::support::recorder::Recorder;

/// How many acks were written so far.
const ACKED: &str = "acked";
/// What happened since the last time: [`Taken`].
const TAKE: &str = "take";

/// Everything between two looks.
#[derive(Serialize, Deserialize)]
pub(crate) struct Taken {
    pub(crate) acked: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) worker_cpu_us: u64,
    pub(crate) broker_cpu_us: Option<u64>,
    pub(crate) syncs: u64,
    /// Now, as disk is.
    pub(crate) rss_bytes: u64,
    pub(crate) disk_bytes: u64,
}

/// The parent's side.
pub(crate) struct Served {
    child: Child,
    questions: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Served {
    pub(crate) fn start(task: Serve) -> Result<Self> {
        let mut command = tokio::process::Command::from(Task::Serve(task).command()?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let questions = child.stdin.take().context("no standard input")?;
        let answers = child.stdout.take().context("no standard output")?;
        Ok(Self { child, questions, answers: BufReader::new(answers).lines() })
    }

    pub(crate) async fn acked(&mut self) -> Result<u64> {
        self.ask(ACKED).await
    }

    pub(crate) async fn take(&mut self) -> Result<Taken> {
        self.ask(TAKE).await
    }

    async fn ask<T: DeserializeOwned>(&mut self, question: &str) -> Result<T> {
        self.questions.write_all(format!("{question}\n").as_bytes()).await?;
        let answer = self.answers.next_line().await?.context("the worker ended by itself")?;
        Ok(serde_json::from_str(&answer)?)
    }

    pub(crate) async fn end(mut self) -> Result<()> {
        drop(self.questions);
        let status = self.child.wait().await?;
        ensure!(status.success(), "the worker failed");
        Ok(())
    }
}

/// The child's side: what the next [`Taken`] is counted from.
struct Looks<'a> {
    task: &'a Serve,
    recorder: Recorder,
    acks: Arc<Acks>,
    directory: tempfile::TempDir,
    acked: u64,
    syncs: u64,
    worker_us: u64,
    broker_us: Option<u64>,
}

impl Looks<'_> {
    fn take(&mut self) -> Result<Taken> {
        let due_to_ack_s = self.acks.take_due_to_ack_s();
        let ms = |part| due_to_ack_s.quantile(part) * 1e3;
        let acked = self.acks.written();
        let syncs = self.recorder.histogram("sync_seconds").count();
        let worker_us = machine::own_cpu_us()?;
        let broker_us = self.task.node.pid.as_deref().and_then(|pid| machine::cpu_us(pid).ok());
        let taken = Taken {
            acked: acked - self.acked,
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
            p999_ms: ms(0.999),
            worker_cpu_us: worker_us - self.worker_us,
            broker_cpu_us: broker_us.zip(self.broker_us).map(|(now, before)| now - before),
            syncs: syncs - self.syncs,
            rss_bytes: machine::rss_bytes()?,
            disk_bytes: machine::disk_bytes(self.directory.path())?,
        };
        (self.acked, self.syncs) = (acked, syncs);
        (self.worker_us, self.broker_us) = (worker_us, broker_us);
        Ok(taken)
    }
}

pub(crate) async fn serve(task: &Serve) -> Result<()> {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let (recorder, acks) = (Recorder::install()?, Arc::new(Acks::default()));
    let broker = AmqpBroker::new(AmqpOptions::new(&task.node.url)?);
    let broker = ObservedBroker::new(broker, Arc::clone(&acks));
    let options = Options::with_broker(Arc::new(broker), StoreOptions::new(directory.path()));
    let mut queue = queue_options(&task.node);
    queue.retention = Duration::from_secs(task.retention_s);
    // A retention has to be longer than all attempts; the handler never fails.
    queue.retry.max_attempts = NonZeroU32::MIN;
    let worker = Worker::new(options).queue_with(queue, nothing);
    let (acked, syncs, worker_us, broker_us) = (0, 0, 0, None);
    let mut looks = Looks { task, recorder, acks, directory, acked, syncs, worker_us, broker_us };
    let mut answered = Ok(());
    worker.run_until(async { answered = answer(&mut looks).await }).await?;
    answered
}

async fn answer(looks: &mut Looks<'_>) -> Result<()> {
    let mut questions = BufReader::new(tokio::io::stdin()).lines();
    while let Some(question) = questions.next_line().await? {
        match question.as_str() {
            ACKED => println!("{}", looks.acks.written()),
            TAKE => println!("{}", serde_json::to_string(&looks.take()?)?),
            other => bail!("no question {other:?}"),
        }
    }
    Ok(())
}
