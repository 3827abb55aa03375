//! The recorder behind `/metrics`: which histograms have which buckets.
//!
//! Only the binary installs it, once a process. Names and meanings of the series belong to whoever emits them; a
//! histogram that is not matched here becomes a summary.

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Upper bounds for every histogram in seconds: from a memory access with a sync (100 us) to a stalled disk or a slow
/// receiver (60 s), about three a decade.
const SECONDS: [f64; 18] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 60.0,
];

/// Upper bounds for the size of a commit group, which doubles with load.
const RECORDS_PER_SYNC: [f64; 13] =
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];

pub(super) fn builder() -> Result<PrometheusBuilder, BuildError> {
    let records = Matcher::Full("onceward_records_per_sync".to_owned());
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(records, &RECORDS_PER_SYNC)
}

/// Installs the recorder for the whole process; [`serve`](super::serve) does its upkeep.
///
/// # Errors
///
/// If the process has a recorder already.
pub(crate) fn install_recorder() -> Result<PrometheusHandle, BuildError> {
    builder()?.install_recorder()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_group_sizes_have_buckets() {
        let recorder = builder().expect("legal buckets").build_recorder();
        metrics::with_local_recorder(&recorder, || {
            metrics::histogram!("onceward_handler_seconds").record(0.000_2);
            metrics::histogram!("onceward_records_per_sync").record(200.0);
        });
        let handle = recorder.handle();
        handle.run_upkeep();
        let text = handle.render();
        for line in [
            "onceward_handler_seconds_bucket{le=\"0.0001\"} 0",
            "onceward_handler_seconds_bucket{le=\"0.00025\"} 1",
            "onceward_handler_seconds_bucket{le=\"60\"} 1",
            "onceward_records_per_sync_bucket{le=\"128\"} 0",
            "onceward_records_per_sync_bucket{le=\"256\"} 1",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
