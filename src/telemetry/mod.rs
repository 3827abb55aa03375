//! What an operator sees: health and metrics. Emits through facades and installs nothing.

mod health;
mod metrics;

pub use self::health::{Health, Readiness};
pub use self::metrics::{METRICS, Metric, MetricKind};
pub(crate) use self::metrics::{OutgoingMetrics, QueueMetrics, StoreMetrics, describe_all};
