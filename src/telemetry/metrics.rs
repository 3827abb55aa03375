//! All metrics in one table, and handles to them that cost no look-up per message.
//!
//! Labels come from closed sets and the configured queues, never from ids or keys. Every series exists from the start
//! with 0, so that a rate over it is right from the first scrape.

use metrics::{Counter, Gauge, Histogram, Unit, counter, gauge, histogram};

use crate::store::Reason;

/// What a metric counts or measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricKind {
    /// Rises only.
    Counter,
    /// A current value.
    Gauge,
    /// A distribution.
    Histogram,
}

/// One row of the table of metrics.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Metric {
    /// Its name, with unit and, for counters, `_total`.
    pub name: &'static str,
    /// What it is.
    pub kind: MetricKind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
}

const fn metric(
    name: &'static str,
    kind: MetricKind,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind, labels, help }
}

use MetricKind::{Counter as C, Gauge as G, Histogram as H};

/// Every metric that the runtime emits.
#[rustfmt::skip]
pub const METRICS: &[Metric] = &[
    metric("onceward_received_total", C, &["queue"], "deliveries from the broker"),
    metric("onceward_done_total", C, &["queue"], "messages whose handler finished and whose outcome is durable"),
    metric("onceward_duplicates_total", C, &["queue"], "deliveries of a message that was known, being worked on or done"),
    metric("onceward_conflicts_total", C, &["queue"], "deliveries of a known id with another body"),
    metric("onceward_replayed_total", C, &["queue"], "duplicates that were answered with the stored result"),
    metric("onceward_expired_total", C, &["queue"], "messages whose record had expired, run again or dead-lettered"),
    metric("onceward_unsure_total", C, &["queue"], "numbered messages too old to tell whether they were done, dead-lettered"),
    metric("onceward_steps_replayed_total", C, &["queue"], "steps that were not run again because their result is stored"),
    metric("onceward_retries_total", C, &["queue"], "attempts that failed and will be repeated"),
    metric("onceward_dead_total", C, &["queue", "reason"], "messages confirmed in the dead-letter queue"),
    metric("onceward_outgoing_total", C, &["queue", "kind"], "messages and dead letters that the broker has confirmed"),
    metric("onceward_outgoing_unroutable_total", C, &["queue", "kind"], "messages that no queue took or that cannot be sent: held, dead-lettered or dropped"),
    metric("onceward_outgoing_held", G, &["queue", "kind"], "keys whose messages wait behind one that cannot be published now"),
    metric("onceward_returned_total", C, &["queue"], "deliveries left to the broker by a lost connection or a drain"),
    metric("onceward_settled_total", C, &["queue", "result"], "acknowledgements: acked, stale (of a lost connection) or failed"),
    metric("onceward_reconnects_total", C, &["queue"], "consuming connections that were lost"),
    metric("onceward_in_flight", G, &["queue"], "handlers running now"),
    metric("onceward_waiting", G, &["queue"], "deliveries waiting for their key, a free handler or a retry"),
    metric("onceward_in_flight_bytes", G, &["queue"], "memory of the messages in work, about"),
    metric("onceward_oldest_unacked_seconds", G, &["queue"], "age of the oldest delivery that is not acknowledged"),
    metric("onceward_blocked", G, &["queue"], "1 while a message that cannot be parsed blocks the queue"),
    metric("onceward_breaker_open", G, &["queue"], "1 while attempts run one at a time because message after message failed"),
    metric("onceward_breaker_opened_total", C, &["queue"], "times that the breaker opened"),
    metric("onceward_handler_seconds", H, &["queue"], "time of one attempt"),
    metric("onceward_delivery_to_ack_seconds", H, &["queue"], "time from delivery to acknowledgement"),
    metric("onceward_commit_seconds", H, &[], "time from handing in a commit to its durability"),
    metric("onceward_sync_seconds", H, &[], "time of writing and syncing one group"),
    metric("onceward_records_per_sync", H, &[], "commits that one sync made durable"),
    metric("onceward_index_ids", G, &[], "retained ids in memory"),
    metric("onceward_producers", G, &[], "producers that number their messages, in memory: none is ever removed"),
    metric("onceward_store_bytes", G, &[], "size of the store's files"),
    metric("onceward_store_full", G, &[], "1 while the store is over its size limit and intake is stopped"),
    metric("onceward_collected_total", C, &[], "records removed after their retention"),
    metric("onceward_gaps_given_up_total", C, &[], "numbers of producers that were given up because there were too many gaps"),
];

/// Tells the installed recorder what every metric means.
pub(crate) fn describe_all() {
    for metric in METRICS {
        let unit = if metric.name.ends_with("_seconds") {
            Unit::Seconds
        } else if metric.name.ends_with("_bytes") {
            Unit::Bytes
        } else {
            Unit::Count
        };
        match metric.kind {
            MetricKind::Counter => metrics::describe_counter!(metric.name, unit, metric.help),
            MetricKind::Gauge => metrics::describe_gauge!(metric.name, unit, metric.help),
            MetricKind::Histogram => metrics::describe_histogram!(metric.name, unit, metric.help),
        }
    }
}

/// The series of one queue.
pub(crate) struct QueueMetrics {
    pub(crate) received: Counter,
    pub(crate) done: Counter,
    pub(crate) duplicates: Counter,
    pub(crate) conflicts: Counter,
    pub(crate) replayed: Counter,
    pub(crate) expired: Counter,
    pub(crate) unsure: Counter,
    pub(crate) steps_replayed: Counter,
    pub(crate) retries: Counter,
    dead: [Counter; Reason::ALL.len()],
    pub(crate) returned: Counter,
    pub(crate) acked: Counter,
    pub(crate) stale: Counter,
    pub(crate) failed: Counter,
    pub(crate) reconnects: Counter,
    pub(crate) in_flight: Gauge,
    pub(crate) waiting: Gauge,
    pub(crate) in_flight_bytes: Gauge,
    pub(crate) oldest_unacked_seconds: Gauge,
    pub(crate) blocked: Gauge,
    pub(crate) breaker_open: Gauge,
    pub(crate) breaker_opened: Counter,
    pub(crate) handler_seconds: Histogram,
    pub(crate) delivery_to_ack_seconds: Histogram,
}

impl QueueMetrics {
    pub(crate) fn new(queue: &str) -> Self {
        let count = |name| counted(counter!(name, "queue" => queue.to_owned()));
        let settled = |result| {
            counted(
                counter!("onceward_settled_total", "queue" => queue.to_owned(), "result" => result),
            )
        };
        let measure = |name| histogram!(name, "queue" => queue.to_owned());
        let show = |name| shown(gauge!(name, "queue" => queue.to_owned()));
        Self {
            received: count("onceward_received_total"),
            done: count("onceward_done_total"),
            duplicates: count("onceward_duplicates_total"),
            conflicts: count("onceward_conflicts_total"),
            replayed: count("onceward_replayed_total"),
            expired: count("onceward_expired_total"),
            unsure: count("onceward_unsure_total"),
            steps_replayed: count("onceward_steps_replayed_total"),
            retries: count("onceward_retries_total"),
            dead: Reason::ALL.map(|reason| {
                counted(counter!(
                    "onceward_dead_total", "queue" => queue.to_owned(), "reason" => reason.name()
                ))
            }),
            returned: count("onceward_returned_total"),
            acked: settled("acked"),
            stale: settled("stale"),
            failed: settled("failed"),
            reconnects: count("onceward_reconnects_total"),
            in_flight: show("onceward_in_flight"),
            waiting: show("onceward_waiting"),
            in_flight_bytes: show("onceward_in_flight_bytes"),
            oldest_unacked_seconds: show("onceward_oldest_unacked_seconds"),
            blocked: show("onceward_blocked"),
            breaker_open: show("onceward_breaker_open"),
            breaker_opened: count("onceward_breaker_opened_total"),
            handler_seconds: measure("onceward_handler_seconds"),
            delivery_to_ack_seconds: measure("onceward_delivery_to_ack_seconds"),
        }
    }

    pub(crate) fn count_dead(&self, reason: Reason) {
        let reasons = Reason::ALL.iter().zip(&self.dead);
        for (_, counter) in reasons.filter(|(known, _)| **known == reason) {
            counter.increment(1);
        }
    }
}

/// The series of what is sent for one queue: its handler's messages or its dead letters.
pub(crate) struct OutgoingMetrics {
    pub(crate) confirmed: Counter,
    pub(crate) unroutable: Counter,
    pub(crate) held: Gauge,
}

impl OutgoingMetrics {
    pub(crate) fn new(queue: &str, kind: &'static str) -> Self {
        let count = |name| counted(counter!(name, "queue" => queue.to_owned(), "kind" => kind));
        let held = gauge!("onceward_outgoing_held", "queue" => queue.to_owned(), "kind" => kind);
        Self {
            confirmed: count("onceward_outgoing_total"),
            unroutable: count("onceward_outgoing_unroutable_total"),
            held: shown(held),
        }
    }
}

/// The series of the store.
pub(crate) struct StoreMetrics {
    pub(crate) commit_seconds: Histogram,
    pub(crate) sync_seconds: Histogram,
    pub(crate) records_per_sync: Histogram,
    pub(crate) index_ids: Gauge,
    pub(crate) producers: Gauge,
    pub(crate) store_bytes: Gauge,
    pub(crate) store_full: Gauge,
    pub(crate) collected: Counter,
    pub(crate) gaps_given_up: Counter,
}

impl StoreMetrics {
    pub(crate) fn new() -> Self {
        Self {
            commit_seconds: histogram!("onceward_commit_seconds"),
            sync_seconds: histogram!("onceward_sync_seconds"),
            records_per_sync: histogram!("onceward_records_per_sync"),
            index_ids: shown(gauge!("onceward_index_ids")),
            producers: shown(gauge!("onceward_producers")),
            store_bytes: shown(gauge!("onceward_store_bytes")),
            store_full: shown(gauge!("onceward_store_full")),
            collected: counted(counter!("onceward_collected_total")),
            gaps_given_up: counted(counter!("onceward_gaps_given_up_total")),
        }
    }
}

fn counted(counter: Counter) -> Counter {
    counter.increment(0);
    counter
}

fn shown(gauge: Gauge) -> Gauge {
    gauge.set(0.0);
    gauge
}
