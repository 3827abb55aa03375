//! The figures of the drains: by subject over the rounds, and of two subjects by the rounds that both were in.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};

use crate::subjects::Subject;
use crate::support::machine;
use crate::support::rounds::{Rounds, rounded};
use crate::watch::Drained;

/// Of each drain; all cost is a message's.
#[derive(Clone, Copy)]
struct Figure {
    messages_per_s: f64,
    worker_cpu_us: f64,
    broker_cpu_us: Option<f64>,
    redis_cpu_us: Option<f64>,
    syncs_per_s: Option<f64>,
    peak_rss_mib: f64,
}

#[derive(Default)]
pub(crate) struct Figures {
    /// In the order of the rounds.
    of: BTreeMap<Subject, Vec<Figure>>,
}

/// What is divided by what: rates, and CPU of the worker.
const RATE_RATIOS: [(Subject, Subject); 9] = [
    (Subject::Onceward, Subject::LapinEach),
    (Subject::Onceward, Subject::LapinMultiple),
    (Subject::Onceward, Subject::LapinConcurrent),
    (Subject::Onceward, Subject::LapinRedisLoopAlways),
    (Subject::Onceward, Subject::LapinRedisLoopEverysec),
    (Subject::Onceward, Subject::LapinRedisAlways),
    (Subject::Onceward, Subject::LapinRedisEverysec),
    (Subject::OncewardSend, Subject::LapinSendLoop),
    (Subject::OncewardSend, Subject::LapinSend),
];
const CPU_RATIOS: [(Subject, Subject); 1] = [(Subject::Onceward, Subject::LapinMultiple)];

impl Figures {
    /// Of a drain of so many messages.
    pub(crate) fn push(&mut self, subject: Subject, messages: u64, drained: Drained) {
        let each = |us: u64| us as f64 / messages as f64;
        let figure = Figure {
            messages_per_s: messages as f64 / drained.elapsed_s,
            worker_cpu_us: each(drained.worker_cpu_us),
            broker_cpu_us: drained.broker_cpu_us.map(each),
            redis_cpu_us: drained.redis_cpu_us.map(each),
            syncs_per_s: drained.syncs.map(|syncs| syncs as f64 / drained.elapsed_s),
            peak_rss_mib: drained.rss_peak_bytes as f64 / f64::from(1 << 20),
        };
        eprintln!(
            "{:<25} {:>8.0} messages/s, {:>6.1} us CPU",
            subject.name(),
            figure.messages_per_s,
            figure.worker_cpu_us,
        );
        self.of.entry(subject).or_default().push(figure);
    }

    /// Messages a second of the subject, the median.
    pub(crate) fn rate(&self, subject: Subject) -> Option<f64> {
        self.rounds(subject, |figure| Some(figure.messages_per_s)).map(|rounds| rounds.median())
    }

    /// JSON lines, and a table for people.
    pub(crate) fn report(&self) -> Result<()> {
        if self.of.is_empty() {
            return Ok(());
        }
        for subject in self.of.keys() {
            println!("{}", self.json(*subject));
        }
        let mut ratios = serde_json::Map::new();
        for (over, under) in RATE_RATIOS {
            if let Some(ratio) = self.ratio(over, under, |figure| figure.messages_per_s) {
                ratios.insert(format!("{}/{}", over.name(), under.name()), ratio.json(2));
            }
        }
        for (over, under) in CPU_RATIOS {
            if let Some(ratio) = self.ratio(over, under, |figure| figure.worker_cpu_us) {
                let name = format!("worker_cpu {}/{}", over.name(), under.name());
                ratios.insert(name, ratio.json(2));
            }
        }
        self.print_table(&ratios);
        println!("{}", json!({ "ratios": ratios, "load_1m": machine::load_1m()? }));
        Ok(())
    }

    fn json(&self, subject: Subject) -> Value {
        let json = |figure: fn(&Figure) -> Option<f64>, decimals| {
            self.rounds(subject, figure).map(|rounds| rounds.json(decimals))
        };
        json!({
            "subject": subject.name(),
            "messages_per_s": json(|figure| Some(figure.messages_per_s), 0),
            "worker_cpu_us_per_message": json(|figure| Some(figure.worker_cpu_us), 1),
            "broker_cpu_us_per_message": json(|figure| figure.broker_cpu_us, 1),
            "redis_cpu_us_per_message": json(|figure| figure.redis_cpu_us, 1),
            "syncs_per_s": json(|figure| figure.syncs_per_s, 0),
            "worker_peak_rss_mib": json(|figure| Some(figure.peak_rss_mib), 0),
        })
    }

    fn print_table(&self, ratios: &serde_json::Map<String, Value>) {
        eprintln!(
            "\n{:<25} {:>10} {:>15} {:>9} {:>9} {:>8} {:>8} {:>8}",
            "", "messages/s", "min-max", "worker us", "broker us", "redis us", "syncs/s", "RSS MiB"
        );
        for subject in self.of.keys() {
            let cell = |figure: fn(&Figure) -> Option<f64>, decimals: usize| {
                let rounds = self.rounds(*subject, figure);
                rounds.map_or_else(
                    || "-".to_owned(),
                    |rounds| format!("{:.decimals$}", rounds.median()),
                )
            };
            let rates = self.rounds(*subject, |figure| Some(figure.messages_per_s));
            let rates = rates.unwrap_or_default();
            eprintln!(
                "{:<25} {:>10.0} {:>15} {:>9} {:>9} {:>8} {:>8} {:>8}",
                subject.name(),
                rates.median(),
                format!("{:.0}-{:.0}", rates.min(), rates.max()),
                cell(|figure| Some(figure.worker_cpu_us), 1),
                cell(|figure| figure.broker_cpu_us, 1),
                cell(|figure| figure.redis_cpu_us, 1),
                cell(|figure| figure.syncs_per_s, 0),
                cell(|figure| Some(figure.peak_rss_mib), 0),
            );
        }
        for (name, ratio) in ratios {
            eprintln!("{name} {}", ratio.get("median").unwrap_or(&Value::Null));
        }
        eprintln!();
    }

    /// The figure in all rounds that have it, if any has.
    fn rounds(&self, subject: Subject, figure: fn(&Figure) -> Option<f64>) -> Option<Rounds> {
        let figures: Vec<f64> = self.of.get(&subject)?.iter().filter_map(figure).collect();
        (!figures.is_empty()).then(|| figures.into_iter().collect())
    }

    /// Round by round: what drifts between rounds is in both.
    fn ratio(&self, over: Subject, under: Subject, of: fn(&Figure) -> f64) -> Option<Rounds> {
        let pairs = self.of.get(&over)?.iter().zip(self.of.get(&under)?);
        Some(pairs.map(|(over, under)| rounded(of(over) / of(under), 4)).collect())
    }
}
