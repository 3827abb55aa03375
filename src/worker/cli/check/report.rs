//! What a good configuration would consume and cost: the report, as data and as text.
//!
//! Judges nothing, and asks nobody.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::clock::duration_ms;
use crate::identity::Scope;
use crate::worker::config::estimate::Estimate;
use crate::worker::config::units::{approximate_size, format_duration, format_size};
use crate::worker::config::{Config, QueueConfig, protect};

/// What only the broker knows, and this command does not ask.
const BROKER_NOTE: &str = "not asked here: with a message TTL (x-message-ttl or a policy) the broker drops what waits \
                           too long, handled or not; set none";

/// What a good configuration says.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) ok: bool,
    pub(super) broker: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) broker_note: Option<&'static str>,
    pub(super) store: StoreReport,
    pub(super) http: Option<String>,
    pub(super) queues: Vec<QueueReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) total: Option<Needs>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct StoreReport {
    pub(super) path: String,
    pub(super) cache_bytes: u64,
    pub(super) max_size_bytes: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct QueueReport {
    pub(super) name: String,
    pub(super) queue: String,
    pub(super) id: Vec<String>,
    pub(super) scope: String,
    pub(super) key: Vec<String>,
    pub(super) target: String,
    pub(super) prefetch: u16,
    pub(super) concurrency: usize,
    pub(super) retention_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retention_by: Option<ClassesReport>,
    pub(super) dead_letter: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) limits: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rate_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) needs: Option<Needs>,
}

/// Retentions of their own by the value of a header.
#[derive(Debug, Serialize)]
pub(super) struct ClassesReport {
    pub(super) header: String,
    pub(super) values_ms: BTreeMap<String, u64>,
}

/// Ids retained at a time, and what they take.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Needs {
    pub(super) ids: u64,
    pub(super) memory_bytes: u64,
    pub(super) disk_bytes: u64,
}

impl Report {
    pub(super) fn new(config: &Config, estimate: &Estimate) -> Self {
        let total = Needs {
            ids: estimate.queues.iter().map(|queue| queue.ids).fold(0, u64::saturating_add),
            memory_bytes: estimate.memory_bytes,
            disk_bytes: estimate.disk_bytes,
        };
        let max_size = config.store.size_bytes_max;
        let too_large = estimate.over_max_size.then(|| {
            format!(
                "{} of disk at these rates is over store.max_size = {:?}: intake would stop; \
                 shorten retention or raise max_size",
                approximate_size(total.disk_bytes),
                format_size(max_size),
            )
        });
        Self {
            ok: true,
            broker: config.broker.address(),
            broker_note: (!config.broker.is_memory()).then_some(BROKER_NOTE),
            store: StoreReport {
                path: config.store.path.display().to_string(),
                cache_bytes: config.store.cache_bytes,
                max_size_bytes: max_size,
            },
            http: config.http_listen.map(|address| address.to_string()),
            queues: config.queues.iter().map(|queue| QueueReport::new(queue, estimate)).collect(),
            total: (!estimate.queues.is_empty()).then_some(total),
            warnings: config.warnings().iter().cloned().chain(too_large).collect(),
        }
    }
}

impl QueueReport {
    pub(super) fn new(queue: &QueueConfig, estimate: &Estimate) -> Self {
        let options = &queue.options;
        let rules = &options.identity;
        let found = estimate.queues.iter().find(|found| found.name == queue.name);
        Self {
            name: queue.name.clone(),
            queue: options.queue.clone(),
            id: rules.id.iter().map(ToString::to_string).collect(),
            scope: match &rules.scope {
                Scope::Queue => "queue".to_owned(),
                Scope::Global => "global".to_owned(),
                Scope::Header(name) => format!("header:{name}"),
            },
            key: rules.key.iter().map(ToString::to_string).collect(),
            target: queue.deliver.to_string(),
            prefetch: options.prefetch.get(),
            concurrency: options.concurrency.get(),
            retention_ms: duration_ms(options.retention),
            retention_by: options.retention_by.as_ref().map(|by| ClassesReport {
                header: by.header.clone(),
                values_ms: by
                    .values
                    .iter()
                    .map(|(value, retention)| (value.clone(), duration_ms(*retention)))
                    .collect(),
            }),
            dead_letter: options.dead_letter.clone(),
            limits: protect::rates(options),
            warnings: protect::warnings(&queue.name, options),
            rate_per_s: found.map(|found| found.per_s),
            needs: found.map(|found| Needs {
                ids: found.ids,
                memory_bytes: found.memory_bytes,
                disk_bytes: found.disk_bytes,
            }),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "broker  {}", self.broker)?;
        if let Some(note) = self.broker_note {
            writeln!(f, "        {note}")?;
        }
        let max_size = format_size(self.store.max_size_bytes);
        let cache = format_size(self.store.cache_bytes);
        let path = &self.store.path;
        writeln!(
            f,
            "store   {path}, at most {max_size}, cache {cache} (takes up to 3 times that)"
        )?;
        writeln!(f, "http    {}", self.http.as_deref().unwrap_or("off"))?;
        for queue in &self.queues {
            write!(f, "\n{queue}")?;
        }
        if let Some(total) = &self.total {
            write!(f, "\ntotal   {total}")?;
        }
        Ok(())
    }
}

impl fmt::Display for QueueReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |sources: &[String], none: &str| match sources {
            [] => none.to_owned(),
            sources => sources.join(", "),
        };
        writeln!(f, "queues.{}", self.name)?;
        writeln!(f, "  queue        {}", self.queue)?;
        let id = or_none(&self.id, "fingerprint");
        writeln!(f, "  id           {id} (scope {})", self.scope)?;
        writeln!(f, "  key          {}", or_none(&self.key, "none: no ordering"))?;
        writeln!(f, "  target       {}", self.target)?;
        writeln!(f, "  prefetch     {}, {} handlers at once", self.prefetch, self.concurrency)?;
        let shown = |ms: u64| format_duration(Duration::from_millis(ms));
        writeln!(f, "  retention    {}", shown(self.retention_ms))?;
        if let Some(ClassesReport { header, values_ms }) = &self.retention_by {
            let values: Vec<String> =
                values_ms.iter().map(|(value, ms)| format!("{value} {}", shown(*ms))).collect();
            writeln!(f, "               by {header}: {}", values.join(", "))?;
        }
        writeln!(f, "  dead letters {}", self.dead_letter)?;
        if !self.limits.is_empty() {
            writeln!(f, "  rate         {}", self.limits.join(", "))?;
        }
        if let (Some(rate), Some(needs)) = (self.rate_per_s, &self.needs) {
            writeln!(f, "  {:<12} {needs}", format!("at {rate}/s"))?;
        }
        Ok(())
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ids == 0 {
            return f.write_str("no ids");
        }
        let memory = approximate_size(self.memory_bytes);
        let disk = approximate_size(self.disk_bytes);
        write!(f, "{} ids: {memory} of memory, {disk} of disk", self.ids)
    }
}
