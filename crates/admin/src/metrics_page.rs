//! The Prometheus page, and the few series of it that the node's own history keeps.

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::sync::OnceLock;

/// From a group commit on a fast disk to a request that waits for a dead node.
const SECONDS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

/// The series that the history keeps: each the sum over its labels.
pub(crate) const MAIN_SERIES: [&str; 8] = [
    "ashlar_s3_requests_total",
    "ashlar_shard_bytes_total",
    "ashlar_store_written_bytes_total",
    "ashlar_wal_syncs_total",
    "ashlar_store_syncs_total",
    "ashlar_raft_proposals_total",
    "ashlar_client_decoded_cells_total",
    "ashlar_client_hedged_reads_total",
];

static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();

/// The recorder of this process, installed by the first caller. All nodes of a process share it.
pub fn install_recorder() -> PrometheusHandle {
    let install = || {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
            .expect("a constant list of buckets that is not empty");
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        // another recorder can only be there where a test has installed its own: then the page stays empty
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another metrics recorder was installed first: /metrics stays empty");
        }
        handle
    };
    HANDLE.get_or_init(install).clone()
}

/// The sum of a series over its labels; `None`: nothing was counted yet.
pub(crate) fn sum(page: &str, name: &str) -> Option<f64> {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        (rest.starts_with(' ') || rest.starts_with('{')).then_some(())?;
        rest.rsplit(' ').next()?.parse::<f64>().ok()
    };
    page.lines().filter_map(value).fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_summed_over_its_labels_and_not_over_its_neighbours() {
        let page = "# TYPE a counter\na{op=\"put\"} 2\na{op=\"get\"} 3.5\na_seconds 9\nab 1\n";
        assert_eq!(sum(page, "a"), Some(5.5));
        assert_eq!(sum(page, "missing"), None);
    }
}
