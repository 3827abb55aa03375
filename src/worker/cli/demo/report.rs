//! The end of the demo: what was counted, by whom, and what that proves.
//!
//! The names in JSON are stable: people script against them. Doubled, lost and out of order are the ledger's; what is
//! done, duplicates and syncs are what the runtime's own metrics say.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::ledger::Verdict;
use super::samples;

/// What the demo found.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Report {
    /// Whether every promise was kept.
    pub(super) ok: bool,
    pub(super) seed: u64,
    pub(super) broker: String,
    pub(super) orders: u64,
    pub(super) keys: u64,
    pub(super) published: u64,
    pub(super) delivered: u64,
    pub(super) redelivered: u64,
    pub(super) connection_losses: u32,
    pub(super) teardowns: u32,
    pub(super) done: u64,
    pub(super) duplicates: u64,
    pub(super) retries: u64,
    pub(super) dead: u64,
    pub(super) effects: u64,
    pub(super) repeated_runs: u64,
    pub(super) effects_doubled: u64,
    pub(super) lost: u64,
    pub(super) order_violations: u64,
    pub(super) wrongly_dead: u64,
    pub(super) left_in_queue: u64,
    pub(super) delivery_to_ack_p50_ms: f64,
    pub(super) delivery_to_ack_p99_ms: f64,
    pub(super) syncs: u64,
    pub(super) records_per_sync: f64,
    pub(super) seconds: f64,
    /// Why the demo ended before its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stopped: Option<String>,
    /// Ids of the first orders with a fault or without an end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) ids: Vec<String>,
}

impl Report {
    /// Takes over what the ledger judged.
    pub(super) fn judged(mut self, verdict: &Verdict) -> Self {
        self.published = verdict.published;
        self.effects = verdict.effects as u64;
        self.repeated_runs = verdict.repeated_runs;
        self.effects_doubled = verdict.doubled.len() as u64;
        self.lost = verdict.lost.len() as u64;
        self.order_violations = verdict.out_of_order.len() as u64;
        self.wrongly_dead = verdict.wrongly_dead.len() as u64;
        self
    }

    /// Takes over what the runtime says of itself, from the text of its metrics.
    pub(super) fn measured(mut self, metrics: &str) -> Self {
        self.done = samples::count(metrics, "onceward_done_total");
        self.duplicates = samples::count(metrics, "onceward_duplicates_total");
        self.retries = samples::count(metrics, "onceward_retries_total");
        self.syncs = samples::count(metrics, "onceward_records_per_sync_count");
        let records = samples::sum(metrics, "onceward_records_per_sync_sum");
        self.records_per_sync = rounded(records / self.syncs.max(1) as f64);
        self
    }

    /// One JSON object on one line.
    pub(super) fn to_json(&self) -> String {
        // Numbers and texts under fixed names: nothing here that JSON has no form for.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What is wrong; nothing if every promise was kept.
    pub(super) fn faults(&self) -> Vec<String> {
        let counted = [
            (self.effects_doubled, "orders had their effect twice"),
            (self.lost, "orders are lost"),
            (self.order_violations, "orders were out of order"),
            (self.wrongly_dead, "good orders were dead-lettered"),
            (self.left_in_queue, "messages were left in the queue"),
        ];
        let counted = counted.iter().filter(|(count, _)| *count > 0);
        let counted = counted.map(|(count, what)| format!("{} {what}", thousands(*count)));
        self.stopped.iter().cloned().chain(counted).collect()
    }

    fn rows(&self) -> [(&'static str, String, &'static str); 17] {
        let times = |n: u32, what: &str| format!("{n} {what}");
        [
            ("orders", thousands(self.orders), ""),
            ("published", thousands(self.published), "with the twins"),
            ("delivered", thousands(self.delivered), "by the broker"),
            ("redelivered", thousands(self.redelivered), "of these"),
            ("broken", times(self.connection_losses, ""), "connections lost"),
            ("torn down", times(self.teardowns, ""), "runtimes, without drain"),
            (
                "done",
                thousands(self.done),
                "by the runtime's metrics, without what a teardown left uncounted",
            ),
            ("duplicates", thousands(self.duplicates), "recognized"),
            ("dead", thousands(self.dead), "in the dead-letter queue"),
            ("effects", thousands(self.effects), "by the ledger"),
            (
                "repeated runs",
                thousands(self.repeated_runs),
                "cut off before the ack, same effect key",
            ),
            ("effects doubled", thousands(self.effects_doubled), ""),
            ("lost", thousands(self.lost), ""),
            ("order violations", thousands(self.order_violations), ""),
            ("p50", ms(self.delivery_to_ack_p50_ms), "from delivery to ack"),
            ("p99", ms(self.delivery_to_ack_p99_ms), "from delivery to ack"),
            ("syncs", thousands(self.syncs), ""),
        ]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, number, remark) in self.rows() {
            writeln!(f, "{}", format!("{name:<18}{number:>10}  {remark}").trim_end())?;
        }
        let (per_sync, seconds) = (self.records_per_sync, self.seconds);
        writeln!(f, "{:<18}{per_sync:>10.1}", "records per sync")?;
        writeln!(f, "{:<18}{:>10}", "time", format!("{seconds:.1} s"))?;
        writeln!(f)?;
        let faults = self.faults();
        if faults.is_empty() {
            return f
                .write_str("every order had its effect once: 0 doubled, 0 lost, 0 out of order");
        }
        write!(f, "FAILED: {}", faults.join(", "))?;
        for id in &self.ids {
            write!(f, "\n  {id}")?;
        }
        Ok(())
    }
}

/// Milliseconds with two places, for people and for JSON.
pub(super) fn milliseconds(duration: Duration) -> f64 {
    rounded(duration.as_secs_f64() * 1000.0)
}

/// Two places after the point.
pub(super) fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

fn ms(milliseconds: f64) -> String {
    format!("{milliseconds:.1} ms")
}

/// The number with a comma between each three digits.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_in_threes() {
        let numbers = [0, 999, 1_000, 26_000, 1_234_567];
        let texts = ["0", "999", "1,000", "26,000", "1,234,567"];
        assert_eq!(numbers.map(thousands), texts);
    }

    #[test]
    fn the_last_line_says_what_was_proven() {
        let last = |report: &Report| report.to_string().lines().last().map(str::to_owned);
        let report = Report::default();
        let proven = "every order had its effect once: 0 doubled, 0 lost, 0 out of order";
        assert_eq!(last(&report).as_deref(), Some(proven));
        let report =
            report.judged(&Verdict { doubled: vec![3], lost: vec![1, 2], ..Verdict::default() });
        let failed = "FAILED: 1 orders had their effect twice, 2 orders are lost";
        assert_eq!(last(&report).as_deref(), Some(failed));
    }

    #[test]
    fn json_keeps_its_names_in_their_order() {
        let json = Report::default().to_json();
        assert!(json.starts_with(r#"{"ok":false,"seed":0,"broker":"","orders":0,"#));
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let names = ["published", "effects_doubled", "lost", "order_violations"];
        assert!(names.iter().all(|name| value[name] == 0), "{json}");
    }

    #[test]
    fn the_runtime_is_quoted() {
        let metrics = "onceward_done_total{queue=\"q\"} 7\nonceward_records_per_sync_sum 30\n\
            onceward_records_per_sync_count 4\n";
        let report = Report::default().measured(metrics);
        assert_eq!((report.done, report.syncs), (7, 4));
        assert_eq!(report.records_per_sync, 7.5);
    }
}
