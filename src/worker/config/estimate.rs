//! How much memory and disk a configuration will need: rate × retention × bytes an id.
//!
//! Pure arithmetic over values that are passed in. An estimate of the plateau under a steady rate,
//! counting what every id costs, and for one more retention what is left of it to tell that it has
//! expired; state of handlers and outgoing messages come on top and are not known here.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use super::{Config, QueueConfig};
use crate::identity::Source;

/// What one retained id costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BytesPerId {
    /// Bytes of memory in the index.
    pub memory: u64,
    /// Bytes on disk in the journal.
    pub disk: u64,
    /// Bytes of memory once it has expired, for one more retention.
    pub expired_memory: u64,
    /// Bytes on disk once it has expired, for one more retention.
    pub expired_disk: u64,
}

/// Messages per second: of one queue, of one class of it, or of every queue without a rate of its
/// own.
///
/// A queue's rate is that of its messages whose class has no rate of its own, and is reckoned with
/// the longest retention that one of them can have.
#[derive(Clone, Debug, PartialEq)]
pub struct Rate {
    /// Name of the table, or that and the value of a class: `orders/billing`; `None` is every queue.
    pub queue: Option<String>,
    /// Messages per second, finite and not negative.
    pub per_s: f64,
}

impl FromStr for Rate {
    type Err = String;

    /// Reads `1000`, `orders=1000` or `orders/billing=10`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (queue, number) = match text.rsplit_once('=') {
            Some((queue, number)) => (Some(queue.to_owned()), number),
            None => (None, text),
        };
        match number.parse() {
            Ok(per_s) if f64::is_finite(per_s) && per_s >= 0.0 => Ok(Self { queue, per_s }),
            _ => Err("write messages per second, such as 1000 or orders=1000".to_owned()),
        }
    }
}

/// What one queue needs.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueEstimate {
    /// Name of the table.
    pub name: String,
    /// Messages per second that it is reckoned with, of all classes.
    pub per_s: f64,
    /// Ids that are retained at a time.
    pub ids: u64,
    /// Memory of the index.
    pub memory_bytes: u64,
    /// Journal on disk.
    pub disk_bytes: u64,
}

/// What all queues need.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// Queue by queue; queues without a rate are left out.
    pub queues: Vec<QueueEstimate>,
    /// Memory of the index.
    pub memory_bytes: u64,
    /// Journal on disk.
    pub disk_bytes: u64,
    /// Whether the journal will not fit into `store.max_size`: intake would stop.
    pub over_max_size: bool,
}

/// Reckons what `config` needs at these rates; a later rate for the same queue wins.
///
/// # Errors
///
/// If a rate names a queue, or a class of one, that is not configured.
pub fn estimate(config: &Config, rates: &[Rate], per_id: BytesPerId) -> Result<Estimate, String> {
    let rates = Rates::new(config, rates)?;
    let mut queues = Vec::new();
    for queue in &config.queues {
        let Some((per_s, ids)) = rates.of(queue) else {
            continue;
        };
        queues.push(QueueEstimate {
            name: queue.name.clone(),
            per_s,
            ids,
            memory_bytes: ids.saturating_mul(per_id.memory.saturating_add(per_id.expired_memory)),
            disk_bytes: ids.saturating_mul(per_id.disk.saturating_add(per_id.expired_disk)),
        });
    }
    let sum =
        |bytes: fn(&QueueEstimate) -> u64| queues.iter().map(bytes).fold(0, u64::saturating_add);
    let memory_bytes = sum(|queue| queue.memory_bytes);
    let disk_bytes = sum(|queue| queue.disk_bytes);
    Ok(Estimate {
        memory_bytes,
        disk_bytes,
        over_max_size: disk_bytes > config.store.size_bytes_max,
        queues,
    })
}

/// Which rate is of what.
#[derive(Default)]
struct Rates<'a> {
    every: Option<f64>,
    queues: BTreeMap<&'a str, f64>,
    classes: BTreeMap<(&'a str, &'a str), f64>,
}

impl<'a> Rates<'a> {
    fn new(config: &Config, rates: &'a [Rate]) -> Result<Self, String> {
        let mut sorted = Self::default();
        let known = |name: &str| config.queues.iter().find(|queue| queue.name == name);
        for rate in rates {
            let Some(name) = rate.queue.as_deref() else {
                sorted.every = Some(rate.per_s);
                continue;
            };
            // A queue's name can have a slash too.
            if known(name).is_some() {
                sorted.queues.insert(name, rate.per_s);
                continue;
            }
            let of_class = name.split_once('/').and_then(|(queue, class)| {
                Some((known(queue)?.options.retention_by.as_ref(), queue, class))
            });
            let Some((by, queue, class)) = of_class else {
                return Err(format!("there is no table [queues.{name}]"));
            };
            if !by.is_some_and(|by| by.values.contains_key(class)) {
                return Err(format!("queues.{queue}.retention_by has no value {class:?}"));
            }
            sorted.classes.insert((queue, class), rate.per_s);
        }
        Ok(sorted)
    }

    /// Messages per second and ids of a queue; `None` if it has no rate.
    fn of(&self, queue: &QueueConfig) -> Option<(f64, u64)> {
        let mut longest = queue.options.retention;
        let mut parts = Vec::new();
        for (class, retention) in queue.options.retention_by.iter().flat_map(|by| &by.values) {
            match self.classes.get(&(queue.name.as_str(), class.as_str())) {
                Some(per_s) => parts.push((*per_s, *retention)),
                None => longest = longest.max(*retention),
            }
        }
        let rest = self.queues.get(queue.name.as_str()).copied().or(self.every);
        parts.extend(rest.map(|per_s| (per_s, longest)));
        if parts.is_empty() {
            return None;
        }
        let numbered = |source: &Source| matches!(source, Source::Sequence { .. });
        let rules = &queue.options.identity;
        let keeps_ids = rules.id.is_empty() || !rules.id.iter().all(numbered);
        // Saturates: a float beyond u64 becomes its largest value.
        let ids =
            |(per_s, retention): &(f64, Duration)| (per_s * retention.as_secs_f64()).ceil() as u64;
        let ids = parts.iter().map(ids).fold(0, u64::saturating_add);
        Some((parts.iter().map(|(per_s, _)| per_s).sum(), if keeps_ids { ids } else { 0 }))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const PER_ID: BytesPerId =
        BytesPerId { memory: 40, disk: 120, expired_memory: 8, expired_disk: 10 };

    fn config() -> Config {
        let text = "store.max_size = '1 GiB'\n\
            [queues.orders]\nretention = '1d'\ndeliver = { type = 'log' }\n\
            [queues.bills]\nretention = '1h'\ndeliver = { type = 'log' }\n";
        Config::load(Some((Path::new("c.toml"), text)), [], &[]).unwrap()
    }

    fn rates(texts: &[&str]) -> Vec<Rate> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn ids_are_rate_times_retention() {
        let estimate = estimate(&config(), &rates(&["2", "orders=1000"]), PER_ID).unwrap();
        let ids: Vec<_> = estimate.queues.iter().map(|queue| (&*queue.name, queue.ids)).collect();
        assert_eq!(ids, [("orders", 86_400_000), ("bills", 7_200)]);
        assert_eq!(estimate.memory_bytes, 86_407_200 * 48);
        assert_eq!(estimate.disk_bytes, 86_407_200 * 130);
        assert!(estimate.over_max_size);
    }

    #[test]
    fn a_queue_without_a_rate_is_left_out() {
        let estimate = estimate(&config(), &rates(&["bills=0.5"]), PER_ID).unwrap();
        assert_eq!(estimate.queues.len(), 1);
        assert_eq!(estimate.queues[0].ids, 1_800);
        assert!(!estimate.over_max_size);
    }

    #[test]
    fn classes_are_reckoned_by_their_rates_and_the_rest_by_the_longest_retention() {
        let text = "[queues.orders]\nretention = '1d'\ndeliver = { type = 'log' }\n\
            retention_by = { header = 't', values = { short = '1h', long = '2d' } }\n";
        let config = Config::load(Some((Path::new("c.toml"), text)), [], &[]).unwrap();
        let found = |texts: &[&str]| {
            estimate(&config, &rates(texts), PER_ID).map(|found| {
                let queue = found.queues.first().expect("a rate");
                (queue.per_s, queue.ids)
            })
        };
        assert_eq!(found(&["1"]), Ok((1.0, 2 * 86_400)));
        assert_eq!(found(&["1", "orders/long=0.5"]), Ok((1.5, 2 * 86_400)));
        assert_eq!(found(&["orders/short=2"]), Ok((2.0, 7_200)));
        assert_eq!(
            found(&["orders/middle=2"]),
            Err("queues.orders.retention_by has no value \"middle\"".to_owned())
        );
    }

    #[test]
    fn numbered_messages_leave_no_ids() {
        let text = "[queues.orders]\ndeliver = { type = 'log' }\n\
            id = [{ producer = 'header:p', sequence = 'header:n' }]\n";
        let config = Config::load(Some((Path::new("c.toml"), text)), [], &[]).unwrap();
        let found = estimate(&config, &rates(&["1000"]), PER_ID).unwrap();
        assert_eq!((found.queues[0].ids, found.disk_bytes), (0, 0));
    }

    #[test]
    fn a_rate_for_an_unknown_queue_is_an_error() {
        let error = estimate(&config(), &rates(&["order=1"]), PER_ID).unwrap_err();
        assert_eq!(error, "there is no table [queues.order]");
    }

    #[test]
    fn huge_rates_saturate() {
        let estimate = estimate(&config(), &rates(&["1e300"]), PER_ID).unwrap();
        assert_eq!(estimate.disk_bytes, u64::MAX);
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for wrong in ["", "x", "-1", "inf", "nan", "orders=", "orders=x"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong:?}");
        }
    }
}
