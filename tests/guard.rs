//! Goal: what is downstream is protected, and an outage of it costs no message its attempts.
//!
//! Method: the real runtime on the in-process broker and a simulated disk, with paused time, and a downstream that dies
//! and comes back when it is told to.

use std::collections::{BTreeMap, HashMap};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onceward::{
    Batch, BatchHandler, Body, BreakerOptions, Clock, Context, Handler, HeaderValue, Health,
    MemoryBroker, Message, Options, Properties, QueueOptions, RateLimit, Retry, RunError, Scope,
    SimulatedDisk, Source, StoreOptions, Worker, reject, retry_after,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const QUEUE: &str = "orders";
const DEAD: &str = "orders.dead";
const SECOND: Duration = Duration::from_secs(1);

/// What the handler calls: it answers, or it does not.
#[derive(Clone, Default)]
struct Downstream {
    state: Arc<Calls>,
}

#[derive(Default)]
struct Calls {
    dead: AtomicBool,
    running: AtomicUsize,
    running_max: AtomicUsize,
    calls: Mutex<Vec<Call>>,
}

#[derive(Clone, Debug)]
struct Call {
    id: String,
    attempt: u32,
    at: Instant,
    worked: bool,
}

impl Downstream {
    fn set_dead(&self, dead: bool) {
        self.state.dead.store(dead, Ordering::SeqCst);
    }

    fn calls(&self) -> Vec<Call> {
        self.state.calls.lock().expect("not poisoned").clone()
    }

    fn forget_calls(&self) {
        self.state.calls.lock().expect("not poisoned").clear();
        self.state.running_max.store(0, Ordering::SeqCst);
    }

    fn worked(&self) -> Vec<String> {
        self.calls().into_iter().filter(|call| call.worked).map(|call| call.id).collect()
    }
}

impl Handler<Body> for Downstream {
    /// A body says what the downstream does with it: nothing, `slow MS`, `poison`, `reject`, `panic`, `after MS`.
    async fn handle(&self, cx: &mut Context, Body(body): Body) -> onceward::Result {
        let state = &self.state;
        let running = state.running.fetch_add(1, Ordering::SeqCst) + 1;
        state.running_max.fetch_max(running, Ordering::SeqCst);
        let _done = Done(state);
        let at = Instant::now();
        let body = String::from_utf8_lossy(&body).into_owned();
        let call = |worked| {
            let call = Call { id: cx.id().to_string(), attempt: cx.attempt(), at, worked };
            state.calls.lock().expect("not poisoned").push(call);
        };
        let ms = |text: &str| Duration::from_millis(text.parse().expect("a number"));
        let (what, number) = body.split_once(' ').unwrap_or((&body, ""));
        if what == "slow" {
            sleep(ms(number)).await;
        }
        if state.dead.load(Ordering::SeqCst) {
            call(false);
            if what == "after" {
                return Err(retry_after(ms(number), "busy"));
            }
            return Err(std::io::Error::other("nobody\nanswers").into());
        }
        match what {
            "poison" => {
                call(false);
                Err(std::io::Error::other("what is this").into())
            }
            "reject" => Err(reject("no")),
            "panic" => panic!("oh"),
            _ => {
                call(true);
                Ok(())
            }
        }
    }
}

struct Done<'a>(&'a Calls);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

struct World {
    broker: MemoryBroker,
    disk: SimulatedDisk,
    clock: Clock,
    downstream: Downstream,
    options: QueueOptions,
}

struct Running {
    health: Health,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), RunError>>,
}

impl Running {
    async fn drain(self) {
        let _ = self.stop.send(());
        let ended = self.ended.await.expect("the worker does not panic");
        ended.expect("a clean drain");
    }

    /// As kill -9 does.
    async fn kill(self, world: &World) {
        self.ended.abort();
        let _ = self.ended.await;
        world.disk.cut();
        sleep(Duration::from_millis(1)).await;
    }

    /// What health says of a part whose name ends like this.
    fn fault(&self, part: &str) -> Option<String> {
        let faults = self.health.readiness().faults;
        faults.into_iter().find(|(name, _)| name.ends_with(part)).map(|(_, reason)| reason)
    }
}

impl World {
    fn new() -> Self {
        let broker = MemoryBroker::new();
        broker.declare(QUEUE);
        let mut options = QueueOptions::new(QUEUE);
        options.identity.key = vec![Source::Header("key".to_owned())];
        Self {
            broker,
            disk: SimulatedDisk::new(),
            clock: Clock::manual(1_700_000_000_000),
            downstream: Downstream::default(),
            options,
        }
    }

    fn worker(&self) -> Worker {
        let mut store = StoreOptions::new("simulated");
        store.simulated = Some(self.disk.clone());
        store.clock = self.clock.clone();
        Worker::new(Options::with_broker(Arc::new(self.broker.clone()), store))
    }

    fn start(&self) -> Running {
        self.run(self.worker().queue_with(self.options.clone(), self.downstream.clone()))
    }

    fn run(&self, worker: Worker) -> Running {
        let health = worker.health();
        let (stop, stopped) = oneshot::channel();
        #[expect(clippy::disallowed_methods, reason = "the test owns and joins it")]
        let ended = tokio::spawn(worker.run_until(async { drop(stopped.await) }));
        Running { health, stop, ended }
    }

    fn publish(&self, id: &str, key: &str, body: &str) {
        self.publish_for("", id, key, body);
    }

    fn publish_for(&self, tenant: &str, id: &str, key: &str, body: &str) {
        let headers = [("key", key), ("tenant", tenant)];
        let headers = headers.map(|(name, value)| (name.to_owned(), HeaderValue::from(value)));
        let properties = Properties {
            message_id: Some(id.to_owned()),
            headers: BTreeMap::from(headers),
            ..Properties::default()
        };
        assert!(self.broker.publish(Message {
            routing_key: QUEUE.to_owned(),
            properties,
            body: body.as_bytes().to_vec().into(),
            ..Message::default()
        }));
    }

    async fn settled(&self) {
        let empty = async {
            while self.broker.depth(QUEUE) != (0, 0) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(3 * 3600), empty).await.expect("all is settled");
        assert_eq!(self.broker.stats().precondition_failed, 0);
    }

    /// Why messages are in the dead-letter queue, and after how many attempts.
    fn deaths(&self) -> Vec<(String, u64)> {
        let letters = self.broker.take_all(DEAD);
        let deaths = letters.iter().map(|letter| {
            let headers = &letter.properties.headers;
            let reason = headers["x-onceward-reason"].as_str().expect("text").to_owned();
            let HeaderValue::Int(attempts) = headers["x-onceward-attempts"] else { panic!() };
            (reason, attempts as u64)
        });
        deaths.collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_downstream_that_is_dead_for_an_hour_costs_no_message_its_attempts() {
    let world = World::new();
    world.downstream.set_dead(true);
    for number in 0..2_000 {
        let key = if number % 2 == 0 { String::new() } else { format!("k{}", number % 50) };
        world.publish(&format!("m{number}"), &key, "");
    }
    let worker = world.start();
    sleep(Duration::from_secs(60)).await;
    let fault = worker.fault("orders breaker").expect("health says so");
    assert!(fault.contains("last error: nobody\\nanswers"), "{fault}");
    world.downstream.forget_calls();
    sleep(Duration::from_secs(3600)).await;
    let calls = world.downstream.calls();
    assert!((100..=122).contains(&calls.len()), "{} probes in an hour", calls.len());
    assert_eq!(world.downstream.state.running_max.load(Ordering::SeqCst), 1);
    let probed: std::collections::HashSet<_> = calls.iter().map(|call| &call.id).collect();
    assert!(probed.len() > 20, "each message has its turn: {}", probed.len());
    assert_eq!(world.broker.depth(QUEUE), (1_500, 500), "no more than the prefetch is taken in");

    world.downstream.set_dead(false);
    world.downstream.forget_calls();
    world.settled().await;
    sleep(SECOND).await;
    assert!(worker.health.readiness().is_ready());
    assert_eq!(world.downstream.worked().len(), 2_000);
    let most = world.downstream.calls().iter().map(|call| call.attempt).max();
    assert!(most <= Some(4), "attempts were not burnt: {most:?}");
    assert_eq!(world.deaths(), []);
    worker.drain().await;
}

#[tokio::test(start_paused = true)]
async fn with_the_breaker_off_an_outage_dead_letters_what_comes() {
    let mut world = World::new();
    world.options.breaker = None;
    world.downstream.set_dead(true);
    for number in 0..50 {
        world.publish(&format!("m{number}"), &format!("k{number}"), "");
    }
    let worker = world.start();
    world.settled().await;
    assert_eq!(world.deaths(), vec![("exhausted".to_owned(), 10); 50]);
    assert!(worker.health.readiness().is_ready());
    worker.drain().await;
}

#[tokio::test(start_paused = true)]
async fn attempts_of_redelivered_messages_never_fall_and_are_not_burnt_by_an_outage() {
    let mut world = World::new();
    world.options.retry.max_attempts = NonZeroU32::new(3).expect("not zero");
    world.options.breaker.as_mut().expect("on by default").failures = NonZeroU32::MIN;
    world.downstream.set_dead(true);
    for number in 0..5 {
        world.publish(&format!("m{number}"), &format!("k{number}"), "");
    }
    // Each life of the process ends in the outage, by a kill or by a drain.
    for life in 0..8 {
        let worker = world.start();
        sleep(Duration::from_secs(100)).await;
        assert!(worker.fault("breaker").is_some(), "life {life}");
        if life % 2 == 0 {
            worker.kill(&world).await;
        } else {
            worker.drain().await;
        }
    }
    world.downstream.set_dead(false);
    let worker = world.start();
    world.settled().await;
    worker.drain().await;
    assert_eq!(world.deaths(), []);
    let mut seen: HashMap<String, u32> = HashMap::new();
    for call in world.downstream.calls() {
        let before = seen.insert(call.id.clone(), call.attempt).unwrap_or(0);
        assert!(call.attempt >= before, "{call:?} after {before}");
        assert!(call.attempt <= 3, "{call:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_kills_the_process_ends_while_the_downstream_is_dead_too() {
    let mut world = World::new();
    world.options.retry.max_attempts = NonZeroU32::new(3).expect("not zero");
    world.options.breaker.as_mut().expect("on by default").failures = NonZeroU32::MIN;
    world.downstream.set_dead(true);
    world.publish("other", "b", "");
    // Killed while it runs, each time as a probe or before the breaker opens.
    world.publish("killer", "a", "slow 20000");
    for _ in 0..7 {
        let worker = world.start();
        sleep(Duration::from_secs(10)).await;
        worker.kill(&world).await;
    }
    world.downstream.set_dead(false);
    let worker = world.start();
    world.settled().await;
    assert_eq!(world.deaths(), [("crash-loop".to_owned(), 3)]);
    assert_eq!(world.downstream.worked(), ["other"]);
    worker.drain().await;
}

#[tokio::test(start_paused = true)]
async fn poison_among_good_messages_dies_as_ever_and_opens_nothing() {
    let world = World::new();
    for number in 0..400 {
        let body = if number % 10 == 0 { "poison" } else { "" };
        world.publish(&format!("m{number}"), &format!("k{number}"), body);
    }
    let worker = world.start();
    let flow = async {
        for number in 0..4_000 {
            world.publish(&format!("n{number}"), &format!("k{number}"), "slow 10");
            sleep(Duration::from_millis(100)).await;
        }
    };
    flow.await;
    world.settled().await;
    let deaths = world.deaths();
    assert_eq!(deaths, vec![("exhausted".to_owned(), 10); 40], "{deaths:?}");
    worker.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_queue_of_poison_alone_opens_it_and_a_good_message_closes_it() {
    let mut world = World::new();
    world.options.consumer_timeout = None;
    for number in 0..20 {
        world.publish(&format!("m{number}"), &format!("k{number}"), "poison");
    }
    let worker = world.start();
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.deaths(), []);
    assert!(worker.fault("breaker").is_some());
    world.publish("good", "good", "");
    // It takes its turn among those that wait.
    sleep(Duration::from_secs(30 * 25)).await;
    assert_eq!(world.downstream.worked(), ["good"]);
    worker.drain().await;
}

#[tokio::test(start_paused = true)]
async fn panics_rejections_and_retries_of_one_message_open_nothing() {
    let mut world = World::new();
    world.options.retry = Retry { jitter: false, ..Retry::default() };
    for number in 0..100 {
        let body = ["panic", "reject"][number % 2];
        world.publish(&format!("m{number}"), &format!("k{number}"), body);
    }
    world.publish("poison", "p", "poison");
    let worker = world.start();
    for _ in 0..400 {
        sleep(SECOND).await;
        assert_eq!(worker.fault("breaker"), None);
    }
    world.settled().await;
    assert_eq!(world.deaths().len(), 101);
    worker.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_waits_as_long_as_the_downstream_asks() {
    let world = World::new();
    world.downstream.set_dead(true);
    for number in 0..100 {
        world.publish(&format!("m{number}"), &format!("k{number}"), "after 600000");
    }
    let worker = world.start();
    sleep(Duration::from_secs(10)).await;
    assert!(worker.fault("breaker").is_some());
    world.downstream.forget_calls();
    sleep(Duration::from_secs(580)).await;
    assert_eq!(world.downstream.calls().len(), 0);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(world.downstream.calls().len(), 1);
    world.downstream.set_dead(false);
    world.settled().await;
    worker.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_no_probe() {
    let world = World::new();
    world.downstream.set_dead(true);
    for number in 0..100 {
        world.publish(&format!("m{number}"), &format!("k{number}"), "");
    }
    let worker = world.start();
    sleep(Duration::from_secs(300)).await;
    let begun = Instant::now();
    worker.drain().await;
    assert!(begun.elapsed() < SECOND, "{:?}", begun.elapsed());
    assert_eq!(world.broker.depth(QUEUE), (100, 0));
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_while_the_breaker_is_open_costs_nothing() {
    let world = World::new();
    world.downstream.set_dead(true);
    for number in 0..100 {
        world.publish(&format!("m{number}"), &format!("k{number}"), "");
    }
    let worker = world.start();
    for _ in 0..10 {
        sleep(Duration::from_secs(120)).await;
        world.broker.disconnect_all();
    }
    world.downstream.set_dead(false);
    world.settled().await;
    assert_eq!(world.downstream.worked().len(), 100, "each once");
    assert_eq!(world.deaths(), []);
    worker.drain().await;
}

/// A batch handler whose downstream is dead until it is told otherwise.
#[derive(Clone)]
struct Together(Downstream);

impl BatchHandler<Body> for Together {
    async fn handle(&self, batch: &mut Batch<Body>) -> onceward::Result {
        let worked = !self.0.state.dead.load(Ordering::SeqCst);
        for item in batch.iter() {
            let (id, attempt) = (item.cx.id().to_string(), item.cx.attempt());
            let call = Call { id, attempt, at: Instant::now(), worked };
            self.0.state.calls.lock().expect("not poisoned").push(call);
        }
        if worked { Ok(()) } else { Err(std::io::Error::other("dead").into()) }
    }
}

#[tokio::test(start_paused = true)]
async fn batches_keep_their_attempts_in_an_outage_too() {
    let mut world = World::new();
    world.options.breaker = Some(BreakerOptions {
        failures: NonZeroU32::new(3).expect("not zero"),
        ..BreakerOptions::default()
    });
    world.downstream.set_dead(true);
    for number in 0..300 {
        world.publish(&format!("m{number}"), &format!("k{}", number % 10), "");
    }
    let handler = Together(world.downstream.clone());
    let worker = world.run(world.worker().batch_queue_with(world.options.clone(), handler));
    sleep(Duration::from_secs(3600)).await;
    assert!(worker.fault("breaker").is_some());
    world.downstream.set_dead(false);
    world.settled().await;
    assert_eq!(world.downstream.worked().len(), 300);
    assert_eq!(world.deaths(), []);
    worker.drain().await;
}

fn rate(per_s: u32, burst: u32) -> Option<RateLimit> {
    let number = |number| NonZeroU32::new(number).expect("not zero");
    Some(RateLimit { burst: number(burst), ..RateLimit::per_second(number(per_s)) })
}

#[tokio::test(start_paused = true)]
async fn no_more_attempts_start_than_the_rate_allows() {
    let mut world = World::new();
    world.options.rate = rate(10, 5);
    for number in 0..100 {
        world.publish(&format!("m{number}"), &format!("k{}", number % 7), "");
    }
    let start = Instant::now();
    let worker = world.start();
    world.settled().await;
    let calls = world.downstream.calls();
    for (number, call) in calls.iter().enumerate() {
        let allowed = 5.0 + (call.at - start).as_secs_f64() * 10.0;
        assert!((number + 1) as f64 <= allowed + 0.01, "{number} at {:?}", call.at - start);
    }
    let took = calls[99].at - start;
    assert!((Duration::from_millis(9_400)..11 * SECOND).contains(&took), "{took:?}");
    worker.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_tenant_over_its_rate_holds_back_no_other_and_takes_no_permit() {
    let mut world = World::new();
    world.options.identity.scope = Scope::Header("tenant".to_owned());
    world.options.tenant_rate = rate(1, 1);
    world.options.concurrency = NonZeroUsize::new(2).expect("not zero");
    for number in 0..100 {
        world.publish_for("loud", &format!("m{number}"), &format!("loud{number}"), "");
    }
    for tenant in 0..50 {
        world.publish_for(&format!("t{tenant}"), "m", &format!("t{tenant}"), "");
    }
    let start = Instant::now();
    let worker = world.start();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(world.downstream.worked().len(), 51, "one of each tenant");
    sleep(Duration::from_secs(60)).await;
    let loud = world.downstream.worked().len() - 50;
    assert!((60..=62).contains(&loud), "{loud} in {:?}", start.elapsed());
    worker.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_that_waits_for_its_tenant_s_token_keeps_nobody_from_probing() {
    let mut world = World::new();
    world.options.identity.scope = Scope::Header("tenant".to_owned());
    world.options.tenant_rate =
        Some(RateLimit { per: 3600 * SECOND, ..rate(1, 1).expect("a rate") });
    world.downstream.set_dead(true);
    for number in 0..50 {
        world.publish_for("loud", &format!("m{number}"), &format!("loud{number}"), "");
    }
    for tenant in 0..20 {
        world.publish_for(&format!("t{tenant}"), "m", &format!("t{tenant}"), "");
    }
    let worker = world.start();
    sleep(Duration::from_secs(300)).await;
    assert!(worker.fault("breaker").is_some());
    world.downstream.set_dead(false);
    for tenant in 100..110 {
        world.publish_for(&format!("t{tenant}"), "m", &format!("t{tenant}"), "");
    }
    sleep(Duration::from_secs(60)).await;
    assert_eq!(worker.fault("breaker"), None);
    assert!(world.downstream.worked().len() >= 10);
    worker.drain().await;
}

#[tokio::test(start_paused = true)]
async fn limits_without_end_are_no_overflow() {
    let mut world = World::new();
    world.options.identity.scope = Scope::Header("tenant".to_owned());
    world.options.rate = Some(RateLimit { per: Duration::MAX, ..rate(1, 1_000).expect("a rate") });
    world.options.tenant_rate = world.options.rate;
    world.options.consumer_timeout = Some(Duration::MAX);
    world.options.in_flight_bytes_max = usize::MAX;
    world.options.retry.max_attempts = NonZeroU32::MIN;
    world.options.breaker = Some(BreakerOptions {
        failures: NonZeroU32::MIN,
        probe: Duration::MAX,
        max: Duration::MAX,
    });
    world.publish_for("t", "a", "a", "");
    let worker = world.start();
    world.settled().await;
    world.downstream.set_dead(true);
    world.publish_for("u", "b", "b", "after 1");
    sleep(Duration::from_secs(3600)).await;
    worker.drain().await;
    assert_eq!(world.broker.depth(QUEUE), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_no_token() {
    let mut world = World::new();
    world.options.identity.scope = Scope::Header("tenant".to_owned());
    world.options.rate = Some(RateLimit { per: 3600 * SECOND, ..rate(1, 1).expect("a rate") });
    world.options.tenant_rate = world.options.rate;
    for number in 0..10 {
        world.publish_for(&format!("t{}", number % 2), &format!("m{number}"), "", "");
    }
    let worker = world.start();
    sleep(SECOND).await;
    let begun = Instant::now();
    worker.drain().await;
    assert!(begun.elapsed() < SECOND);
    assert_eq!(world.broker.depth(QUEUE), (9, 0));
}

#[tokio::test(start_paused = true)]
async fn an_outage_saves_no_tokens_for_a_burst() {
    let mut world = World::new();
    world.options.rate = rate(10, 5);
    world.downstream.set_dead(true);
    for number in 0..200 {
        world.publish(&format!("m{number}"), &format!("k{number}"), "");
    }
    let worker = world.start();
    sleep(Duration::from_secs(600)).await;
    world.downstream.set_dead(false);
    world.downstream.forget_calls();
    world.settled().await;
    let calls = world.downstream.calls();
    let start = calls[0].at;
    for (number, call) in calls.iter().enumerate() {
        let allowed = 5.0 + (call.at - start).as_secs_f64() * 10.0;
        assert!((number + 1) as f64 <= allowed + 1.01, "{number} at {:?}", call.at - start);
    }
    worker.drain().await;
}

/// What the handler of a large message gets.
fn large(what: &str, bytes: usize) -> String {
    format!("{what} {}{}", "0".repeat(bytes), 1)
}

#[tokio::test(start_paused = true)]
async fn an_old_delivery_stops_intake_in_time_and_its_end_lets_it_go_on() {
    let mut world = World::new();
    world.options.consumer_timeout = Some(Duration::from_secs(600));
    world.options.timeout = Duration::from_secs(3600);
    world.publish("old", "a", "slow 590000");
    let worker = world.start();
    sleep(Duration::from_secs(295)).await;
    assert_eq!(worker.fault("deliveries"), None);
    sleep(Duration::from_secs(10)).await;
    let fault = worker.fault("orders deliveries").expect("health says so");
    assert!(fault.starts_with("message old is unacknowledged for 30"), "{fault}");
    world.publish("in time", "b", "");
    sleep(Duration::from_secs(230)).await;
    assert_eq!(world.downstream.worked(), ["in time"]);
    sleep(Duration::from_secs(10)).await;
    world.publish("late", "c", "");
    sleep(Duration::from_secs(40)).await;
    assert_eq!(world.downstream.worked(), ["in time"]);
    world.settled().await;
    sleep(SECOND).await;
    assert_eq!(world.downstream.worked(), ["in time", "old", "late"]);
    assert!(worker.health.readiness().is_ready());
    worker.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_broker_whose_limit_is_longer_than_said_stops_intake_for_a_while_only() {
    let mut world = World::new();
    world.options.consumer_timeout = Some(Duration::from_secs(600));
    world.options.timeout = Duration::from_secs(36_000);
    world.publish("old", "a", "slow 7200000");
    let worker = world.start();
    sleep(Duration::from_secs(545)).await;
    world.publish("late", "c", "");
    sleep(Duration::from_secs(100)).await;
    assert_eq!(world.downstream.worked(), Vec::<String>::new());
    sleep(Duration::from_secs(100)).await;
    assert_eq!(world.downstream.worked(), ["late"]);
    assert!(worker.fault("deliveries").is_some(), "it is said all the same");
    world.settled().await;
    worker.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_lost_while_intake_is_stopped_is_noticed_and_what_runs_is_joined() {
    let mut world = World::new();
    world.options.consumer_timeout = Some(Duration::from_secs(600));
    world.options.timeout = Duration::from_secs(3600);
    world.publish("old", "a", "slow 3000000");
    let worker = world.start();
    sleep(Duration::from_secs(550)).await;
    assert!(worker.fault("deliveries").is_some());
    world.publish("new", "b", "");
    // As the broker does at its limit.
    world.broker.disconnect_all();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.downstream.worked(), ["new"], "others go on");
    assert_eq!(worker.fault("deliveries"), None);
    world.settled().await;
    assert_eq!(world.downstream.worked(), ["new", "old"], "once");
    worker.drain().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_of_the_broker_no_delivery_is_too_old() {
    let mut world = World::new();
    world.options.consumer_timeout = None;
    world.options.timeout = Duration::from_secs(36_000);
    world.publish("old", "a", "slow 7200000");
    let worker = world.start();
    sleep(Duration::from_secs(7_000)).await;
    assert!(worker.health.readiness().is_ready());
    world.settled().await;
    worker.drain().await;
}

#[tokio::test(start_paused = true)]
async fn large_messages_lower_the_prefetch_and_small_ones_raise_it_again() {
    let mut world = World::new();
    world.options.in_flight_bytes_max = 1_000_000;
    let unacked = |world: &World| world.broker.depth(QUEUE).1;
    for number in 0..100 {
        world.publish(&format!("l{number}"), &format!("k{number}"), &large("slow", 100_000));
    }
    let worker = world.start();
    world.downstream.set_dead(true);
    sleep(Duration::from_secs(5)).await;
    let running = world.downstream.state.running_max.load(Ordering::SeqCst);
    assert!(unacked(&world) <= 10 && running <= 11, "{} are held, {running} ran", unacked(&world));
    world.downstream.set_dead(false);
    world.settled().await;
    assert_eq!(world.downstream.worked().len(), 100);
    for number in 0..3_000 {
        world.publish(&format!("s{number}"), &format!("k{number}"), "");
    }
    world.settled().await;
    for number in 0..600 {
        world.publish(&format!("t{number}"), &format!("k{number}"), "slow 10000");
    }
    sleep(SECOND).await;
    assert_eq!(unacked(&world), 500);
    world.settled().await;
    assert_eq!(world.downstream.worked().len(), 3_700, "each once");
    worker.drain().await;
}

#[tokio::test(start_paused = true)]
async fn one_message_over_the_limit_of_bytes_is_worked_on_all_the_same() {
    let mut world = World::new();
    world.options.in_flight_bytes_max = 1_000;
    for number in 0..10 {
        world.publish(&format!("l{number}"), &format!("k{number}"), &large("slow", 100_000));
    }
    let worker = world.start();
    world.settled().await;
    assert_eq!(world.downstream.worked().len(), 10);
    assert_eq!(world.downstream.state.running_max.load(Ordering::SeqCst), 1);
    worker.drain().await;
}
