//! After the demo: what is left at the broker, what the ledger judges, what the metrics say, in one report.
//!
//! Looks when the runtime has ended, so nothing changes under its eyes; empties the demo's queues on the way.

use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;

use super::collect;
use super::drive::{DEAD_LETTERS, Driven, QUEUE};
use super::ledger::Ledger;
use super::observe::ObservedBroker;
use super::orders::Plan;
use super::report::{Report, milliseconds, rounded};
use crate::Broker;

/// How many ids are named after a failure.
const IDS_MAX: usize = 10;

/// What is looked at when the runtime has ended.
pub(super) struct Scene {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) observed: Arc<ObservedBroker>,
    pub(super) plan: Arc<Plan>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) metrics: PrometheusHandle,
}

impl Scene {
    /// Completes the report, whatever stopped the demo.
    pub(super) async fn inspect(
        self,
        driven: Driven,
        report: Report,
        stopped: Option<String>,
    ) -> Report {
        let letters = collect::take_all(&*self.broker, DEAD_LETTERS).await;
        let left = collect::take_all(&*self.broker, QUEUE).await;
        let (letters, left, stopped) = match (letters, left) {
            (Ok(letters), Ok(left)) => (letters, left, stopped),
            (Err(error), _) | (_, Err(error)) => {
                let unread = format!("the queues cannot be read at the end: {error}");
                (Vec::new(), Vec::new(), Some(stopped.unwrap_or(unread)))
            }
        };
        let dead = collect::dead_orders(&self.plan, &letters);
        let verdict = self.ledger.judge(&dead);
        let left = left.iter();
        let left = left.filter(|message| collect::number(&self.plan, message).is_some());
        let traffic = self.observed.traffic();
        let faulty = [&verdict.doubled, &verdict.lost, &verdict.out_of_order];
        let faulty = faulty.into_iter().chain([&verdict.wrongly_dead]).flatten();
        let ids = faulty.map(|number| self.plan.id(*number));
        let mut report = Report {
            delivered: traffic.delivered,
            redelivered: traffic.redelivered,
            connection_losses: driven.losses,
            teardowns: driven.teardowns,
            dead: dead.len() as u64,
            left_in_queue: left.count() as u64,
            delivery_to_ack_p50_ms: milliseconds(self.observed.delivery_to_ack(50)),
            delivery_to_ack_p99_ms: milliseconds(self.observed.delivery_to_ack(99)),
            seconds: rounded(driven.elapsed.as_secs_f64()),
            ids: ids.take(IDS_MAX).collect(),
            stopped,
            ..report
        }
        .judged(&verdict)
        .measured(&self.metrics.render());
        if report.stopped.is_some() {
            report.ids = self.ledger.missing();
        }
        report.ok = report.faults().is_empty();
        report
    }
}
