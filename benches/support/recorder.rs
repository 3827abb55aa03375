//! A recorder of the runtime's own metrics: counts, and histograms of which any quantile can be asked.
//!
//! Recording is two or three atomic additions, about what an exporter costs. Series are told apart by name and by all
//! label values but the queue's.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{
    Counter, CounterFn, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, SharedString, Unit,
};

/// Buckets per doubling: a quantile is off by 3 % at most.
const STEPS_BITS: u32 = 5;
/// Smallest and largest power of two that is told apart: 60 ns and 1 M.
const MIN_EXPONENT: i64 = -24;
const MAX_EXPONENT: i64 = 20;
const BUCKETS: usize = ((MAX_EXPONENT - MIN_EXPONENT) as usize) << STEPS_BITS;

/// Everything that was recorded since the last [`Recorder::reset`]; clones show the same.
#[derive(Clone, Default)]
pub(crate) struct Recorder {
    series: Arc<Mutex<Series>>,
}

#[derive(Default)]
struct Series {
    counters: HashMap<String, Arc<Count>>,
    histograms: HashMap<String, Arc<Distribution>>,
}

impl Recorder {
    /// The one of this process, installed.
    pub(crate) fn install() -> anyhow::Result<Self> {
        let recorder = Self::default();
        metrics::set_global_recorder(recorder.clone())?;
        Ok(recorder)
    }

    /// Starts afresh: the next worker registers its series anew.
    pub(crate) fn reset(&self) {
        *self.lock() = Series::default();
    }

    /// A counter by its name, and its label if it has another than the queue: `settled_total acked`.
    pub(crate) fn count(&self, name: &str) -> u64 {
        let series = self.lock();
        let counter = series.counters.get(name);
        counter.map_or(0, |counter| counter.0.load(Ordering::Relaxed))
    }

    /// What a histogram has taken in so far; empty if nothing has registered it.
    pub(crate) fn histogram(&self, name: &str) -> Arc<Distribution> {
        let mut series = self.lock();
        Arc::clone(series.histograms.entry(name.to_owned()).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, Series> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(key: &Key) -> String {
    let labels = key.labels().filter(|label| label.key() != "queue");
    let labels = labels.map(|label| label.value().to_owned());
    let name = key.name().trim_start_matches("onceward_").to_owned();
    std::iter::once(name).chain(labels).collect::<Vec<_>>().join(" ")
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let mut series = self.lock();
        Counter::from_arc(Arc::clone(series.counters.entry(name(key)).or_default()))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.histogram(&name(key)))
    }
}

#[derive(Default)]
struct Count(AtomicU64);

impl CounterFn for Count {
    fn increment(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

/// How many values of which size.
pub(crate) struct Distribution {
    buckets: Vec<AtomicU64>,
}

impl Default for Distribution {
    fn default() -> Self {
        let buckets = std::iter::repeat_with(AtomicU64::default);
        Self { buckets: buckets.take(BUCKETS).collect() }
    }
}

impl HistogramFn for Distribution {
    fn record(&self, value: f64) {
        // The upper bits of a positive float are its exponent and first digits: a logarithmic scale.
        let step = (value.max(0.0).to_bits() >> (52 - STEPS_BITS)) as i64;
        let first = (1023 + MIN_EXPONENT) << STEPS_BITS;
        let index = (step - first).clamp(0, BUCKETS as i64 - 1) as usize;
        if let Some(bucket) = self.buckets.get(index) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Distribution {
    /// As it is now.
    pub(crate) fn snapshot(&self) -> Self {
        self.since(&Self::default())
    }

    /// What came after an earlier snapshot of it.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let count = |bucket: &AtomicU64| bucket.load(Ordering::Relaxed);
        let pairs = self.buckets.iter().zip(&earlier.buckets);
        let buckets = pairs.map(|(now, then)| (count(now) - count(then)).into()).collect();
        Self { buckets }
    }

    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// The value that this part of all values does not exceed; 0 if there are none.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        let rank = (self.count() as f64 * part).ceil() as u64;
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket.load(Ordering::Relaxed);
            if seen >= rank && seen > 0 {
                let first = (1023 + MIN_EXPONENT) as u64;
                let upper_bits = ((first << STEPS_BITS) + index as u64 + 1) << (52 - STEPS_BITS);
                return f64::from_bits(upper_bits);
            }
        }
        0.0
    }
}
