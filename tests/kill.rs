//! Twenty kill -9 at random moments of a worker that forwards 50,000 messages from a real queue to an exchange.
//!
//! The ledger is the downstream queue: it says which ids arrived, under which outgoing ids, in which order. The seed
//! of the moments is printed; `ONCEWARD_SEED=… cargo test --test kill` takes it again.

#![expect(clippy::indexing_slicing, reason = "a panic is how a test fails")]

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use tokio::time::Instant;

mod support;

use support::process::WorkerDir;
use support::rabbitmq::{Client, Vhost};

const KEYS: usize = 200;
const MESSAGES: usize = 50_000;
/// Of all messages, those that repeat an earlier one.
const TWINS: usize = MESSAGES * 30 / 100;
const KILLS: usize = 20;

/// What is published: message `number` is the `sequence`th of its key.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Order {
    number: usize,
    key: usize,
    sequence: usize,
}

impl Order {
    fn body(self) -> String {
        format!("{} {} {}", self.number, self.key, self.sequence)
    }

    fn parse(body: &[u8]) -> Self {
        let text = std::str::from_utf8(body).expect("text");
        let mut numbers = text.split(' ').map(|number| number.parse().expect("a number"));
        let mut next = || numbers.next().expect("three numbers");
        Self { number: next(), key: next(), sequence: next() }
    }
}

/// Distinct orders with twins up to 300 places behind them.
fn orders(random: &mut fastrand::Rng) -> Vec<Order> {
    let mut sequences = vec![0; KEYS];
    let mut orders = Vec::with_capacity(MESSAGES);
    let mut recent = std::collections::VecDeque::new();
    let mut number = 0;
    while orders.len() < MESSAGES {
        if !recent.is_empty() && random.usize(..MESSAGES) < TWINS {
            orders.push(recent[random.usize(..recent.len())]);
            continue;
        }
        let key = random.usize(..KEYS);
        sequences[key] += 1;
        let order = Order { number, key, sequence: sequences[key] };
        number += 1;
        orders.push(order);
        recent.push_back(order);
        if recent.len() == 300 {
            recent.pop_front();
        }
    }
    orders
}

async fn publish(channel: &Channel, orders: &[Order]) {
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    for orders in orders.chunks(2_000) {
        let mut confirms = Vec::with_capacity(orders.len());
        for order in orders {
            let mut headers = FieldTable::default();
            headers.insert("x-key".into(), AMQPValue::LongString(order.key.to_string().into()));
            let properties = BasicProperties::default()
                .with_delivery_mode(2)
                .with_message_id(format!("m{}", order.number).into())
                .with_headers(headers);
            let options = BasicPublishOptions::default();
            let body = order.body();
            let sent = channel
                .basic_publish("".into(), "in".into(), options, body.as_bytes(), properties)
                .await;
            confirms.push(sent.expect("published"));
        }
        for confirm in confirms {
            assert!(confirm.await.expect("a confirmation").is_ack());
        }
    }
}

/// Takes everything out of the downstream queue: (outgoing id, order), oldest first.
async fn arrivals(client: &Client) -> Vec<(String, Order)> {
    let expected = client.depth("out").await as usize;
    let channel = client.channel().await;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut consumer = channel
        .basic_consume("out".into(), "ledger".into(), options, FieldTable::default())
        .await
        .expect("the queue exists");
    let mut arrivals = Vec::with_capacity(expected);
    while arrivals.len() < expected {
        let delivery = consumer.next().await.expect("more").expect("a delivery");
        let id = delivery.properties.message_id().clone().expect("an outgoing id");
        arrivals.push((id.to_string(), Order::parse(&delivery.data)));
    }
    arrivals
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_kills_lose_nothing_double_nothing_and_keep_the_order_of_keys() {
    let seed = std::env::var("ONCEWARD_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("ONCEWARD_SEED={seed} cargo test --features testkit --test kill");
    let mut random = fastrand::Rng::with_seed(seed);
    let vhost = Vhost::new();
    let client = vhost.client().await;
    client.declare_classic("in").await;
    client.declare_classic("out").await;
    let orders = orders(&mut random);
    publish(&client.channel().await, &orders).await;

    let directory = WorkerDir::new(
        &vhost.url(),
        "[http]\nlisten = \"\"\n[queues.in]\nkey = [\"header:x-key\"]\nconcurrency = 200\n\
         deliver = { type = \"exchange\", exchange = \"\", routing_key = \"out\" }\n",
    );
    let started = Instant::now();
    let distinct: HashSet<usize> = orders.iter().map(|order| order.number).collect();
    let mut at = Vec::new();
    for kill in 0..KILLS {
        let worker = directory.start();
        // One in five at any moment, opening and connecting included; the others while messages flow.
        if kill % 5 != 0 {
            worker.wait_for_log("\"consuming\"", Duration::from_secs(30));
        }
        tokio::time::sleep(Duration::from_millis(random.u64(20..700))).await;
        worker.kill();
        at.push(client.depth("out").await);
    }
    println!("downstream after each kill: {at:?}");
    let worker = directory.start();
    worker.wait_for_log("\"consuming\"", Duration::from_secs(30));
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(started.elapsed() < Duration::from_secs(240), "{}", directory.logged());
        let (ready, downstream) = (client.depth("in").await, client.depth("out").await);
        if ready == 0 && downstream as usize >= distinct.len() {
            break;
        }
    }
    // The drain acks what is finished and returns the rest: then the queue shows whether anything was left.
    worker.signal("TERM");
    let status = worker.wait(Duration::from_secs(40));
    assert!(status.success(), "{status}: {}", directory.logged());
    assert_eq!(client.depth("in").await, 0, "the input queue is empty");

    let arrivals = arrivals(&client).await;
    let mut outgoing_ids: HashMap<usize, (String, Order)> = HashMap::new();
    let mut last_of_key = vec![0; KEYS];
    for (outgoing_id, order) in &arrivals {
        let first = outgoing_ids.entry(order.number).or_insert_with(|| {
            assert_eq!(order.sequence, last_of_key[order.key] + 1, "key {} in order", order.key);
            last_of_key[order.key] = order.sequence;
            (outgoing_id.clone(), *order)
        });
        assert_eq!(first, &(outgoing_id.clone(), *order), "a duplicate has the same id and body");
    }
    assert_eq!(outgoing_ids.len(), distinct.len(), "every id is downstream");
    let ids: HashSet<_> = outgoing_ids.values().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), distinct.len(), "no two messages share an outgoing id");
    let logged = directory.logged();
    // The broker's 406 by its name: the number alone occurs in times.
    assert!(!logged.contains("PRECONDITION_FAILED"), "{logged}");
    println!(
        "{MESSAGES} messages, {} ids, {} downstream ({} repeated under their id), {KILLS} kills, {:?}",
        distinct.len(),
        arrivals.len(),
        arrivals.len() - distinct.len(),
        started.elapsed()
    );
}
