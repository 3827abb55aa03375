//! What is measured: the figures of one round, all rounds of one subject, and how many times one is the other.

use serde_json::{Value, json};

use crate::support::rounds::{Rounds, rounded};

/// One round of one subject.
pub(crate) struct Figures {
    pub(crate) messages_per_s: f64,
    pub(crate) cpu_us: f64,
    pub(crate) records: u64,
    pub(crate) syncs: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// All rounds of one subject.
#[derive(Default)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) prefetch: u16,
    messages: u64,
    /// By round, for ratios.
    rates: Vec<f64>,
    messages_per_s: Rounds,
    cpu_us: Rounds,
    syncs: Rounds,
    records_per_sync: Rounds,
    p50_ms: Rounds,
    p99_ms: Rounds,
}

impl Subject {
    pub(crate) fn new(name: &str, prefetch: u16, messages: u64) -> Self {
        Self { name: name.to_owned(), prefetch, messages, ..Self::default() }
    }

    pub(crate) fn push(&mut self, figures: &Figures) {
        let records_per_sync = figures.records as f64 / figures.syncs as f64;
        eprintln!(
            "{:<22} prefetch {:>4}: {:>9.0} messages/s, {:>5.1} us CPU, {:>6.1} records a sync",
            self.name, self.prefetch, figures.messages_per_s, figures.cpu_us, records_per_sync
        );
        self.rates.push(figures.messages_per_s);
        self.messages_per_s.push(figures.messages_per_s);
        self.cpu_us.push(figures.cpu_us);
        self.syncs.push(figures.syncs as f64);
        self.records_per_sync.push(records_per_sync);
        self.p50_ms.push(figures.p50_ms);
        self.p99_ms.push(figures.p99_ms);
    }

    pub(crate) const fn was_run(&self) -> bool {
        !self.rates.is_empty()
    }

    /// How many times the rate of the other this is, by round.
    pub(crate) fn ratio(&self, other: &Self) -> Rounds {
        self.rates.iter().zip(&other.rates).map(|(this, that)| this / that).collect()
    }

    pub(crate) fn json(&self) -> Value {
        let latency = |rounds: &Rounds| (!rounds.median().is_nan()).then(|| rounds.json(2));
        json!({
            "case": self.name,
            "prefetch": self.prefetch,
            "messages": self.messages,
            "messages_per_s": self.messages_per_s.json(0),
            "cpu_us_per_message": self.cpu_us.json(1),
            "syncs": rounded(self.syncs.median(), 0),
            "records_per_sync": rounded(self.records_per_sync.median(), 1),
            "p50_ms": latency(&self.p50_ms),
            "p99_ms": latency(&self.p99_ms),
        })
    }

    pub(crate) fn heading() -> String {
        format!(
            "{:<22} {:>8} {:>10} {:>10} {:>10} {:>8} {:>7} {:>8} {:>8} {:>8}",
            "case",
            "prefetch",
            "median/s",
            "min/s",
            "max/s",
            "cpu us",
            "syncs",
            "a sync",
            "p50 ms",
            "p99 ms"
        )
    }

    pub(crate) fn row(&self) -> String {
        format!(
            "{:<22} {:>8} {:>10.0} {:>10.0} {:>10.0} {:>8.1} {:>7.0} {:>8.1} {:>8.2} {:>8.2}",
            self.name,
            self.prefetch,
            self.messages_per_s.median(),
            self.messages_per_s.min(),
            self.messages_per_s.max(),
            self.cpu_us.median(),
            self.syncs.median(),
            self.records_per_sync.median(),
            self.p50_ms.median(),
            self.p99_ms.median(),
        )
    }
}
