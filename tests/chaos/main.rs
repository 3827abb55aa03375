//! Goal: whatever happens to broker, net and worker, when it is over everything finishes: nothing is lost, doubled
//! downstream, out of order or left behind.
//!
//! Method: the binary as a child process, on a real RabbitMQ, behind a proxy of our own, with a publisher that never
//! stops. It consumes a classic queue, whose messages it hands to a ledger, and a quorum queue, whose messages it
//! publishes to a third. Each fault strikes once while messages flow; then the ledger, which counts every call, and
//! the queues downstream are judged (`scene.rs`). Faults of a whole broker have a node of this file's own.
//!
//! `scripts/chaos MINUTES` strikes at random for longer; it is said when that is not run.

#![expect(clippy::indexing_slicing, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep};

mod faults;
mod ledger;
mod scene;
#[path = "../support/mod.rs"]
mod support;
mod traffic;

use faults::{Fault, blocking};
use ledger::Runs;
use scene::{CALLS, MOVES, QUEUES, Scene};
use support::process::WorkerDir;
use support::rabbitmq::Node;
use traffic::Stream;

/// Calls before a fault, so that it meets messages in every state.
const FLOWING: usize = 60;

/// The private node, one test at a time.
async fn private_node() -> (&'static Node, MutexGuard<'static, ()>) {
    static TURN: Mutex<()> = Mutex::const_new(());
    let turn = TURN.lock().await;
    (blocking(Node::private), turn)
}

/// One fault in the middle of the traffic.
async fn survives(node: &'static Node, fault: Fault) {
    let mut scene = Scene::new(node).await;
    let publishing = scene.publishing();
    scene.flowing(FLOWING).await;
    fault.strike(&mut scene).await;
    scene.flowing(FLOWING).await;
    assert_eq!(scene.has_reconnected(), fault.ends_connections(), "{}", scene.tail());
    scene.ends_well(publishing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_and_started_again_costs_nothing() {
    let (node, _turn) = private_node().await;
    survives(node, Fault::BrokerKilled).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_stands_still_for_longer_than_two_heartbeats_costs_nothing() {
    let (node, _turn) = private_node().await;
    survives(node, Fault::BrokerStopped).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alarms_of_memory_and_disk_hold_back_what_is_sent_and_lose_nothing() {
    let (node, _turn) = private_node().await;
    let mut scene = Scene::new(node).await;
    let publishing = scene.publishing();
    scene.flowing(FLOWING).await;
    Fault::MemoryAlarm.strike(&mut scene).await;
    scene.flowing(FLOWING).await;
    Fault::DiskAlarm.strike(&mut scene).await;
    scene.flowing(FLOWING).await;
    scene.ends_well(publishing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_connections_cost_nothing() {
    survives(Node::shared(), Fault::ConnectionsClosed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_stands_still_goes_on_where_it_was() {
    survives(Node::shared(), Fault::WorkerStopped).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_net_that_is_cut_costs_nothing() {
    survives(Node::shared(), Fault::NetCut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_net_that_says_nothing_is_given_up_and_costs_nothing() {
    survives(Node::shared(), Fault::NetStalled).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_net_that_carries_one_way_only_is_given_up_and_costs_nothing() {
    let mut scene = Scene::new(Node::shared()).await;
    let publishing = scene.publishing();
    for fault in [Fault::OnlyFromBroker, Fault::OnlyToBroker] {
        scene.flowing(FLOWING).await;
        fault.strike(&mut scene).await;
        scene.flowing(FLOWING).await;
        assert!(scene.has_reconnected(), "{fault:?}: {}", scene.tail());
        scene.forget_log();
    }
    scene.ends_well(publishing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_net_costs_time_only() {
    survives(Node::shared(), Fault::NetSlow).await;
}

/// What the producers send again is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_that_are_deleted_and_made_again_are_consumed_again_and_nothing_is_doubled() {
    let mut scene = Scene::new(Node::shared()).await;
    let mut stream = Stream::new(fastrand::u64(..));
    let orders = stream.next(600);
    scene.publish(&orders).await;
    scene.flowing(FLOWING).await;
    let client = scene.vhost.client().await;
    for queue in QUEUES {
        client.delete(queue).await;
    }
    // What is running ends; nobody has a queue meanwhile.
    sleep(Duration::from_secs(1)).await;
    client.declare_classic(CALLS).await;
    client.declare_quorum(MOVES).await;
    let mut orders = stream.all();
    orders.extend(stream.last());
    scene.publish(&orders).await;
    scene.all_is_finished(stream.len()).await;
    scene.stops_well().await;
    scene.check(&(0..stream.len()).collect()).await;
}

/// What an operator throws away is gone, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_that_are_purged_lose_what_was_purged_and_nothing_else() {
    let mut scene = Scene::new(Node::shared()).await;
    let mut stream = Stream::new(fastrand::u64(..));
    let thrown_away: BTreeSet<usize> = {
        scene.publish(&stream.next(300)).await;
        scene.all_is_finished(stream.len()).await;
        scene.worker().signal("STOP");
        // The worker gets at most its prefetch of these; the others wait in the queues.
        let first = stream.len();
        let orders = stream.next(1000);
        scene.publish(&orders).await;
        let client = scene.vhost.client().await;
        let channel = client.channel().await;
        let mut purged = 0;
        for queue in QUEUES {
            let options = lapin::options::QueuePurgeOptions::default();
            let count = channel.queue_purge((*queue).into(), options).await.expect("purged");
            purged += count;
        }
        assert!(purged > 400, "{purged} messages were purged");
        scene.worker().signal("CONT");
        (first..stream.len()).collect()
    };
    let last = stream.last();
    scene.publish(&last).await;
    let last: BTreeSet<usize> = last.iter().map(|order| order.number).collect();
    scene.until("the last are called", async || scene.ledger.finished().is_superset(&last)).await;
    let client = scene.vhost.client().await;
    scene
        .until("all is acked", async || client.depth(CALLS).await + client.depth(MOVES).await == 0)
        .await;
    scene.stops_well().await;
    scene.ledger.check(Runs::Once);
    let finished = scene.ledger.finished();
    let lost: BTreeSet<usize> =
        (0..stream.len()).filter(|number| !finished.contains(number)).collect();
    assert!(!lost.is_empty() && lost.is_subset(&thrown_away), "{lost:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_worker_on_the_same_store_is_refused_and_the_first_goes_on() {
    let scene = Scene::new(Node::shared()).await;
    let publishing = scene.publishing();
    scene.flowing(FLOWING).await;
    let second = scene.directory.start_as(scene::command(&scene.directory));
    let status = blocking(|| second.wait(Duration::from_secs(60)));
    assert_eq!(status.code(), Some(74), "{}", scene.tail());
    let logged = scene.directory.logged();
    let store = scene.directory.path().join("store");
    let refusal = format!("the store {} is in use by another process", store.display());
    assert!(logged.contains(&refusal), "{logged}");
    scene.flowing(FLOWING).await;
    scene.ends_well(publishing).await;
}

/// The second has a store of its own; it consumes neither queue while the first lives. What it does again, it sends
/// under the same ids.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_worker_on_the_same_queues_waits_until_the_first_is_gone() {
    let mut scene = Scene::new(Node::shared()).await;
    let mut stream = Stream::new(fastrand::u64(..));
    scene.publish(&stream.next(400)).await;
    scene.flowing(FLOWING).await;
    let other = WorkerDir::new(&scene.vhost.url(), &scene::tables(scene.ledger.url()));
    let standby = other.start_as(scene::command(&other));
    // The classic queue refuses it; on the quorum queue it is a consumer that is not active.
    standby.wait_for_log("ACCESS_REFUSED", Duration::from_secs(60));
    let orders = stream.next(400);
    scene.publish(&orders).await;
    scene.publish(&stream.last()).await;
    scene.all_is_finished(stream.len()).await;
    scene.ledger.check(Runs::Once);
    let called = scene.ledger.len();
    assert!(!standby.logged().contains("\"queue\":\"calls\",\"broker\""), "{}", standby.logged());

    // Nothing is under way, so the other memory is not missed.
    sleep(Duration::from_secs(1)).await;
    scene.kill_worker();
    let before = stream.len();
    let bad: Vec<_> = stream.all().into_iter().filter(|order| order.is_bad()).collect();
    scene.publish(&bad).await;
    scene.publish(&stream.next(400)).await;
    scene.publish(&stream.last()).await;
    scene.all_is_finished(stream.len()).await;
    assert!(scene.ledger.len() - called >= stream.len() - before, "the standby took over");
    standby.signal("TERM");
    let status = blocking(|| standby.wait(Duration::from_secs(60)));
    assert!(status.success(), "{status}: {}", other.logged());

    // The first again, on its own store: it knows what it has done.
    scene.start();
    let known: Vec<_> = stream.all().into_iter().take(before).collect();
    scene.publish(&known).await;
    let last = stream.last();
    scene.publish(&last).await;
    scene.all_is_finished(stream.len()).await;
    scene.stops_well().await;
    scene.check(&(0..stream.len()).collect()).await;
}

/// The long one: faults at random, one after the other, on one worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_sequence_of_faults_costs_nothing() {
    let minutes: Option<u64> =
        std::env::var("ONCEWARD_CHAOS_MINUTES").ok().and_then(|text| text.parse().ok());
    let Some(minutes) = minutes else {
        return say("NOT RUN: any_sequence_of_faults_costs_nothing; `scripts/chaos MINUTES` does");
    };
    let (node, _turn) = private_node().await;
    let seed = std::env::var("ONCEWARD_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    say(&format!("ONCEWARD_SEED={seed} scripts/chaos {minutes}"));
    let mut random = fastrand::Rng::with_seed(seed);
    let started = Instant::now();
    let mut struck = 0;
    while started.elapsed() < Duration::from_secs(60 * minutes) {
        // A queue downstream can be read once, and a history of hours would not fit: so a scene has ten faults.
        let mut scene = Scene::new(node).await;
        let publishing = scene.publishing_on(Stream::new(random.u64(..)));
        for _ in 0..10 {
            scene.flowing(FLOWING).await;
            sleep(Duration::from_millis(random.u64(..1000))).await;
            let fault = random.choice(Fault::ALL).expect("there are some");
            say(&format!("{fault:?}"));
            fault.strike(&mut scene).await;
            struck += 1;
        }
        scene.flowing(FLOWING).await;
        scene.ends_well(publishing).await;
    }
    let seconds = started.elapsed().as_secs();
    say(&format!("TIER chaos-at-random: {struck} faults, 0 violations, {seconds} s"));
}

/// Written past the capture of test output: what was not run must be seen.
fn say(line: &str) {
    writeln!(std::io::stderr(), "chaos: {line}").expect("stderr is there");
}
