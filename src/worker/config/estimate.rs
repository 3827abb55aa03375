//! How much memory and disk a configuration will need: rate × retention × bytes an id.
//!
//! Pure arithmetic over values that are passed in. An estimate of the plateau under a steady rate,
//! counting what every id costs; state of handlers and outgoing messages come on top and are not
//! known here.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::Config;

/// What one retained id costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BytesPerId {
    /// Bytes of memory in the index.
    pub memory: u64,
    /// Bytes on disk in the journal.
    pub disk: u64,
}

/// Messages per second: of one queue, by the name of its table, or of every queue without a rate of
/// its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Rate {
    /// Name of the table, or every queue.
    pub queue: Option<String>,
    /// Messages per second, finite and not negative.
    pub per_s: f64,
}

impl FromStr for Rate {
    type Err = String;

    /// Reads `1000` or `orders=1000`.
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
    /// Messages per second that it is reckoned with.
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
/// If a rate names a queue that is not configured.
pub fn estimate(config: &Config, rates: &[Rate], per_id: BytesPerId) -> Result<Estimate, String> {
    let mut every = None;
    let mut named = BTreeMap::new();
    for rate in rates {
        match &rate.queue {
            None => every = Some(rate.per_s),
            Some(queue) if config.queues.iter().any(|known| known.name == *queue) => {
                named.insert(queue.as_str(), rate.per_s);
            }
            Some(queue) => return Err(format!("there is no table [queues.{queue}]")),
        }
    }
    let mut queues = Vec::new();
    for queue in &config.queues {
        let Some(per_s) = named.get(queue.name.as_str()).copied().or(every) else {
            continue;
        };
        // Saturates: a float beyond u64 becomes its largest value.
        let ids = (per_s * queue.options.retention.as_secs_f64()).ceil() as u64;
        queues.push(QueueEstimate {
            name: queue.name.clone(),
            per_s,
            ids,
            memory_bytes: ids.saturating_mul(per_id.memory),
            disk_bytes: ids.saturating_mul(per_id.disk),
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const PER_ID: BytesPerId = BytesPerId { memory: 40, disk: 120 };

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
        assert_eq!(estimate.memory_bytes, 86_407_200 * 40);
        assert_eq!(estimate.disk_bytes, 86_407_200 * 120);
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
