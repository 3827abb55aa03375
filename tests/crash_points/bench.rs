//! One queue, one store and the workers that live on them one after the other.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use onceward::simulation::Bug;
use onceward::simulation::history::{Event, Recorded, Written};
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::Instant;

use crate::audit::{self, Ends};
use crate::book::{self, Book};
use crate::broker::{Producer, read};
use crate::support::ledger::Ledger;
use crate::support::process::{WorkerDir, WorkerProcess};
use crate::support::rabbitmq::Client;
use crate::traffic::{Kind, Model, Plan};
use crate::worker::Setup;

const SIGKILL: i32 = 9;

const LIFE_MAX: Duration = Duration::from_secs(60);

/// Longest drain.
const DRAIN_MAX: Duration = Duration::from_secs(45);

const POLL: Duration = Duration::from_millis(20);

/// The kinds of queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueKind {
    Classic,
    Quorum,
}

impl QueueKind {
    pub(crate) const ALL: [Self; 2] = [Self::Classic, Self::Quorum];
}

pub(crate) struct Bench {
    pub(crate) book: Book,
    pub(crate) directory: WorkerDir,
    pub(crate) model: Model,
    queue: String,
    setup: Setup,
    url: String,
    /// Longest time in which a worker reaches its point, or works off all that there is.
    limit: Duration,
    _ledger: Ledger,
    _readers: JoinSet<()>,
}

/// A worker that lives; killed when dropped.
pub(crate) struct Life {
    process: WorkerProcess,
    number: u32,
    reader: JoinHandle<()>,
}

impl Life {
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Asks it to drain.
    pub(crate) fn drain(&self, bench: &Bench) {
        bench.book.event(Event::Drain { life: self.number });
        self.process.signal("TERM");
    }

    pub(crate) fn strike(&self) {
        self.process.signal("KILL");
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Whether it has a queue.
    pub(crate) fn is_consuming(&self) -> bool {
        self.process.logged().contains("\"consuming\"")
    }
}

impl Bench {
    /// A queue of this name in the vhost at `url`, and a new store.
    pub(crate) async fn new(url: &str, client: &Client, queue: &str, kind: QueueKind) -> Self {
        match kind {
            QueueKind::Classic => client.declare_classic(queue).await,
            QueueKind::Quorum => client.declare_quorum(queue).await,
        }
        let (downstream, dead) = (format!("{queue}.out"), format!("{queue}.dead"));
        let book = Book::new(queue);
        let mut readers = JoinSet::new();
        for (name, is_dead) in [(&downstream, false), (&dead, true)] {
            client.declare_classic(name).await;
            readers.spawn(read(url.to_owned(), name.clone(), book.clone(), is_dead));
        }
        let calls = book.clone();
        let ledger = Ledger::start(Box::new(move |key, number| calls.called(key, number))).await;
        let directory = WorkerDir::new(url, "");
        let setup = Setup {
            url: url.to_owned(),
            store: directory.path().join("store").to_string_lossy().into_owned(),
            queue: queue.to_owned(),
            downstream,
            ledger: ledger.url().to_owned(),
            in_batches: false,
            attempts_max: 6,
            bug: None,
        };
        Self {
            book,
            directory,
            model: Model::default(),
            queue: queue.to_owned(),
            setup,
            url: url.to_owned(),
            limit: LIFE_MAX,
            _ledger: ledger,
            _readers: readers,
        }
    }

    /// Has the messages of a key run together from now on.
    pub(crate) fn in_batches(&mut self) {
        self.setup.in_batches = true;
    }

    /// Gives messages so many attempts that no number of crashes makes one die.
    pub(crate) fn with_attempts(&mut self, attempts_max: u32) {
        self.setup.attempts_max = attempts_max;
    }

    /// Plants a bug in the workers from now on, which is found soon or not at all.
    pub(crate) fn plant(&mut self, bug: Bug) {
        self.setup.bug = Bug::ALL.iter().position(|known| *known == bug);
        self.limit = LIFE_MAX / 6;
    }

    pub(crate) fn producer(&self) -> Producer {
        Producer::new(&self.url, &self.queue, &self.book)
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    /// Starts a worker, that kills itself at a point if `crash` says so.
    pub(crate) fn start(&self, crash: Option<&str>) -> Life {
        let number = self.book.begin_life();
        let mut process = self.directory.start_as(self.setup.command(crash));
        let stdout = process.take_stdout().expect("it is piped");
        let book = self.book.clone();
        let reader = spawn_blocking(move || {
            for line in BufReader::new(stdout).lines() {
                // A process that is killed may leave half a line.
                let Ok(line) = line else { return };
                book.reported(number, &line);
            }
        });
        Life { process, number, reader }
    }

    /// Waits until it is dead by SIGKILL.
    pub(crate) async fn dead(&self, life: Life) -> Result<(), String> {
        let (number, status) = self.end(life, self.limit).await;
        self.book.event(Event::Crashed { life: number });
        if status.signal() == Some(SIGKILL) {
            return Ok(());
        }
        Err(format!("life {number} ended with {status}, and was not killed:\n{}", self.tail()))
    }

    /// Asks it to drain, and waits until it has.
    pub(crate) async fn drained(&self, life: Life) -> Result<(), String> {
        life.drain(self);
        let (number, status) = self.end(life, DRAIN_MAX).await;
        let error = (!status.success()).then(|| format!("life {number}: {status}"));
        let told = error.as_deref().map(Into::into);
        self.book.event(Event::Exited { life: number, error: told });
        error.map_or(Ok(()), |error| Err(format!("{error}:\n{}", self.tail())))
    }

    async fn end(&self, life: Life, limit: Duration) -> (u32, ExitStatus) {
        let Life { process, number, reader } = life;
        let status = process.ended(limit).await;
        reader.await.expect("reading does not panic");
        (number, status)
    }

    /// Waits until this is so of what was seen.
    pub(crate) async fn until(
        &self,
        what: &str,
        is_so: impl Fn(&book::Pages) -> bool,
    ) -> Result<(), String> {
        let deadline = Instant::now() + self.limit;
        while !is_so(&self.book.pages()) {
            if Instant::now() >= deadline {
                return Err(format!("not {what} in {:?}:\n{}", self.limit, self.tail()));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Has a worker work off all that is published, and drain; then judges what is there.
    ///
    /// The fences are published last: when they have ended, every twin before them has been judged.
    pub(crate) async fn finish(
        &mut self,
        client: &Client,
        producer: &mut Producer,
        plan: &Plan,
    ) -> Result<Vec<String>, String> {
        let ends = self.model.ends(plan);
        let life = self.start(None);
        let is_fence = |number: &u64| ends.get(number).is_some_and(|end| end.0.kind == Kind::Fence);
        let (fences, others): (Vec<u64>, Vec<u64>) = ends.keys().copied().partition(is_fence);
        let have_ended = |numbers: &[u64], pages: &book::Pages| {
            numbers.iter().all(|number| pages.ended.contains(number))
        };
        self.until("all ended", |pages| have_ended(&others, pages)).await?;
        producer.publish(&plan.fences).await;
        self.until("at the fences", |pages| have_ended(&fences, pages)).await?;
        self.drained(life).await?;
        let mut wrong = Vec::new();
        let left = client.depth(&self.queue).await;
        if left > 0 {
            wrong.push(format!("{left} messages are left in the queue"));
        }
        for queue in [self.setup.downstream.as_str(), &format!("{}.dead", self.queue)] {
            while client.depth(queue).await > 0 {
                tokio::time::sleep(POLL).await;
            }
        }
        // What was read is on its way into the book.
        tokio::time::sleep(POLL * 3).await;
        wrong.extend(audit::outside(&self.book, &ends, self.setup.attempts_max));
        wrong.extend(self.audit_store(&ends).await);
        wrong.extend(self.audit_log());
        Ok(wrong)
    }

    async fn audit_store(&self, ends: &Ends) -> Vec<String> {
        let (kept, mut wrong) = audit::store(&self.store(), &self.queue, ends).await;
        let records = kept.into_iter().filter_map(|kept| {
            let (order, _) = ends.get(&kept.order)?;
            Some(Recorded {
                name: format!("{}/{}", self.queue, order.name()).into(),
                fingerprint: book::fingerprint(&order.body()),
                ended: book::ended(kept.reason.as_deref()),
                attempts: kept.attempts,
                is_conflict: matches!(order.kind, Kind::Conflict { .. }),
            })
        });
        let life = self.book.pages().life;
        for (number, record) in (1..).zip(records) {
            let written = Written { records: vec![record], ..Written::default() };
            self.book.event(Event::Commit { life, number, clock_ms: 0, written: written.into() });
            self.book.event(Event::Synced { number });
        }
        self.book.event(Event::AtRest);
        wrong.extend(audit::checked(
            &self.book.pages().history,
            &self.queue,
            self.setup.attempts_max,
        ));
        wrong
    }

    /// Nothing that a crash of the worker explains.
    fn audit_log(&self) -> Vec<String> {
        let logged = self.directory.logged();
        // The broker's 406 by its name: the number alone occurs in times.
        let is_bad = |line: &&str| {
            ["PRECONDITION_FAILED", "panicked", "\"ERROR\""].iter().any(|bad| line.contains(bad))
        };
        logged.lines().filter(is_bad).map(|line| format!("logged: {line}")).collect()
    }

    fn tail(&self) -> String {
        let logged = self.directory.logged();
        let lines: Vec<&str> = logged.lines().collect();
        let from = lines.len().saturating_sub(12);
        lines.get(from..).unwrap_or_default().join("\n")
    }
}
