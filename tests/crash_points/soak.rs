//! Kills at random points and times, and faults of the broker, for as long as asked: `scripts/soak`.
//!
//! Two workers, on a classic and on a quorum queue of one private node, work in rounds. In a round messages flow
//! while the workers are killed again and again and the broker loses its connections, stands still, or is killed
//! itself; then the faults stop, and all that the round published is judged as in the matrix. The stores grow old
//! with the rounds.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use onceward::simulation::Point;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep};

use crate::bench::{Bench, QueueKind};
use crate::support::rabbitmq::{Node, Vhost};
use crate::traffic::{Mix, Plan};
use crate::{alone, number};

/// Between two waves.
const WAVE_PAUSE: Duration = Duration::from_millis(30);

/// No number of kills makes a message die that is not meant to.
const ATTEMPTS_MAX: u32 = 60;

/// RabbitMQ 3.10.8 may lose a quorum queue that was declared a moment before it is killed.
const DECLARED: Duration = Duration::from_secs(3);

/// What was done and what it cost.
#[derive(Default)]
struct Report {
    /// By the point at which the worker killed itself; the others were killed at a random time.
    kills: BTreeMap<&'static str, u32>,
    faults: BTreeMap<&'static str, u32>,
    /// From the start of a worker until it consumes.
    restarts: Vec<Duration>,
    rss_kib_max: u64,
    disk_bytes_max: u64,
    published: usize,
    violations: Vec<String>,
}

impl Report {
    fn add(&mut self, other: Self) {
        other.kills.into_iter().for_each(|(at, kills)| *self.kills.entry(at).or_default() += kills);
        self.restarts.extend(other.restarts);
        self.rss_kib_max = self.rss_kib_max.max(other.rss_kib_max);
        self.disk_bytes_max = self.disk_bytes_max.max(other.disk_bytes_max);
        self.published += other.published;
        self.violations.extend(other.violations);
    }
}

#[test]
fn kills_and_faults_of_the_broker_at_random_cost_nothing() {
    let _alone = alone();
    soak();
}

#[tokio::main]
async fn soak() {
    let seed = number("ONCEWARD_SEED").unwrap_or_else(|| fastrand::u64(..));
    let lasts = Duration::from_secs(number("ONCEWARD_SOAK_SECONDS").unwrap_or(10));
    println!("scripts/soak --for {}s --seed {seed}", lasts.as_secs());
    let mut random = fastrand::Rng::with_seed(seed);
    let vhost = Vhost::on(Node::private());
    let client = vhost.client().await;
    let mut classic = Bench::new(&vhost.url(), &client, "classic", QueueKind::Classic).await;
    let mut quorum = Bench::new(&vhost.url(), &client, "quorum", QueueKind::Quorum).await;
    classic.with_attempts(ATTEMPTS_MAX);
    quorum.with_attempts(ATTEMPTS_MAX);
    sleep(DECLARED).await;
    drop(client);

    let started = Instant::now();
    let (mut report, mut first, mut rounds) = (Report::default(), 0, 0);
    while rounds == 0 || started.elapsed() < lasts {
        let mix = Mix { keys: 30, scale: 4, slow_ms: 50, slow_each: 1 };
        let plan = Plan::new(&mix, first, &mut random);
        first = plan.next();
        let flowing = AtomicBool::new(true);
        let seeds = [(); 3].map(|()| random.fork());
        let [of_classic, of_quorum, of_broker] = seeds;
        let both = async {
            let ended =
                tokio::join!(flow(&classic, &plan, of_classic), flow(&quorum, &plan, of_quorum));
            flowing.store(false, Ordering::Relaxed);
            ended
        };
        let strikes = strike_broker(&vhost, &flowing, of_broker, &mut report.faults);
        let ((of_classic, of_quorum), ()) = tokio::join!(both, strikes);
        report.add(of_classic);
        report.add(of_quorum);
        // On their old connections nobody may rely.
        let client = vhost.client().await;
        for bench in [&mut classic, &mut quorum] {
            let mut producer = bench.producer();
            let ended = Box::pin(bench.finish(&client, &mut producer, &plan)).await;
            let disk_bytes = disk_bytes(&bench.store());
            report.disk_bytes_max = report.disk_bytes_max.max(disk_bytes);
            report.violations.extend(ended.unwrap_or_else(|error| vec![error]));
            bench.book.turn();
        }
        rounds += 1;
        println!("round {rounds}, {} s: {}", started.elapsed().as_secs(), line(&mut report));
        if !report.violations.is_empty() {
            break;
        }
    }
    println!("kills by point: {:?}\nfaults of the broker: {:?}", report.kills, report.faults);
    let violations = report.violations.len();
    println!(
        "TIER soak: {rounds} rounds, {violations} violations, {} s",
        started.elapsed().as_secs()
    );
    assert!(report.violations.is_empty(), "{}", report.violations.join("\n"));
}

fn line(report: &mut Report) -> String {
    report.restarts.sort_unstable();
    let restarts = &report.restarts;
    let median = restarts.get(restarts.len() / 2).copied().unwrap_or_default();
    let max = restarts.last().copied().unwrap_or_default();
    format!(
        "{} published, {} kills, {} faults of the broker, restart {median:?} (median) {max:?} (max), RSS max {} MiB, \
         disk max {} MiB, violations {}",
        report.published,
        report.kills.values().sum::<u32>(),
        report.faults.values().sum::<u32>(),
        report.rss_kib_max / 1024,
        report.disk_bytes_max >> 20,
        report.violations.len(),
    )
}

/// Publishes the plan while one worker after the other is killed.
async fn flow(bench: &Bench, plan: &Plan, mut random: fastrand::Rng) -> Report {
    let mut producer = bench.producer();
    let flowing = AtomicBool::new(true);
    let publishing = async {
        for wave in &plan.waves {
            producer.publish(wave).await;
            sleep(WAVE_PAUSE).await;
        }
        producer.publish(&plan.slow).await;
        flowing.store(false, Ordering::Relaxed);
    };
    let killing = async {
        let mut report = Report::default();
        while flowing.load(Ordering::Relaxed) {
            if let Err(error) = live(bench, &mut random, &mut report).await {
                report.violations.push(error);
                break;
            }
        }
        report
    };
    let ((), mut report) = tokio::join!(publishing, killing);
    report.published = plan.waves.iter().flatten().count() + plan.slow.len();
    report
}

/// One life: until it kills itself at a point, or until it is killed at some time.
async fn live(
    bench: &Bench,
    random: &mut fastrand::Rng,
    report: &mut Report,
) -> Result<(), String> {
    // No drain is asked for here.
    let points = Point::ALL.into_iter().filter(|point| *point != Point::Draining);
    let points: Vec<Point> = points.collect();
    let is_struck_at_point = random.u32(..10) < 7;
    let point = points[random.usize(..points.len())];
    let crash = format!("{}:{}", point.name(), random.u64(1..30));
    let started = Instant::now();
    let lives_ms = if is_struck_at_point { 6000 } else { random.u64(20..1500) };
    let lives = Duration::from_millis(lives_ms);
    let mut life = bench.start(is_struck_at_point.then_some(&*crash));
    let mut is_consuming = false;
    let by_itself = loop {
        if !life.is_running() {
            break true;
        }
        report.rss_kib_max = report.rss_kib_max.max(rss_kib_max(life.id()).unwrap_or(0));
        if !is_consuming && life.is_consuming() {
            is_consuming = true;
            report.restarts.push(started.elapsed());
        }
        if started.elapsed() >= lives {
            life.strike();
            break false;
        }
        sleep(Duration::from_millis(10)).await;
    };
    bench.dead(life).await?;
    let at = if by_itself { point.name() } else { "any time" };
    *report.kills.entry(at).or_default() += 1;
    Ok(())
}

/// Has the broker close all connections, stand still, or be killed, now and then.
async fn strike_broker(
    vhost: &Vhost,
    flowing: &AtomicBool,
    mut random: fastrand::Rng,
    faults: &mut BTreeMap<&'static str, u32>,
) {
    let node = vhost.node();
    while flowing.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(random.u64(1000..6000))).await;
        let fault = match random.u32(..10) {
            0..6 => {
                block_in_place(|| {
                    node.ctl(&["close_all_connections", "--vhost", vhost.name(), "soak"])
                });
                "connections closed"
            }
            6..8 => {
                node.signal("STOP");
                sleep(Duration::from_secs(3)).await;
                node.signal("CONT");
                "stopped"
            }
            _ => {
                node.signal("KILL");
                sleep(Duration::from_millis(500)).await;
                block_in_place(|| node.start_again());
                "killed"
            }
        };
        *faults.entry(fault).or_default() += 1;
    }
}

fn rss_kib_max(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

fn disk_bytes(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    });
    bytes.sum()
}
