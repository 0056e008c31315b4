//! The audit: is everything there that is named, and is everything named that is there (D2, D3, D4)? And from what was
//! counted: what survives what.
//!
//! The root's leader does a pass from time to time; any node does one when it is asked to. Passes may overlap: all that
//! they change goes through the logs of ranges, which judge it again. A pass that meets a range without a leader, or one
//! that changes meanwhile, ends without a result; the last report stays, and says its age.

mod disks;
mod durability;
mod pass;
mod report;
mod stop;
mod walk;

pub use durability::{Count, DOMAINS, Domain, Durability, Histogram, Margins};
pub use report::{AuditReport, ObjectStanding, ShardCounts, SilentDisk};
pub use stop::CanStop;

use crate::leading::Leading;
use anyhow::{Context, Result};
use ashlar_client::Client;
use ashlar_host::{Host, Monotonic};
use ashlar_types::{NodeId, decode};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A new leader of the root waits so long for the cluster to settle; also the pause behind a pass without a result.
const SETTLE: Duration = Duration::from_secs(120);
/// Between two looks whether a pass is due.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Does passes, and keeps what the last one has found.
pub struct Auditor {
    host: Host,
    client: Client,
    node: NodeId,
    /// Held while a pass goes on.
    passing: tokio::sync::Mutex<()>,
    last: Mutex<Option<Ended>>,
}

impl std::fmt::Debug for Auditor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Auditor({})", self.node)
    }
}

/// A pass that has a result.
struct Ended {
    at: Monotonic,
    report: AuditReport,
}

impl Auditor {
    /// One that knows nothing yet.
    pub(crate) fn new(host: &Host, client: &Client, node: NodeId) -> Arc<Self> {
        let (host, client) = (host.clone(), client.clone());
        Arc::new(Self {
            host,
            client,
            node,
            passing: tokio::sync::Mutex::default(),
            last: Mutex::default(),
        })
    }

    /// Does a pass now, after one that goes on here.
    pub async fn pass(&self) -> Result<AuditReport> {
        let _alone = self.passing.lock().await;
        let report = pass::run(&self.host, &self.client, self.node).await;
        let report = report.context("the audit has no result")?;
        show(&report);
        let at = self.host.clock.now();
        *self.last() = Some(Ended { at, report: report.clone() });
        Ok(report)
    }

    /// What the last pass here has found, with its age.
    pub fn report(&self) -> Option<AuditReport> {
        let age = self.age()?;
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        self.last().as_ref().map(|ended| AuditReport { age_ms, ..ended.report.clone() })
    }

    /// The youngest report that any node has.
    pub(crate) async fn youngest(&self) -> Option<AuditReport> {
        let map = self.client.map();
        let others = map.nodes.values().filter(|node| node.id != self.node);
        let asked = others.map(|node| self.client.audit_report_of(&node.address));
        let told = futures::future::join_all(asked).await.into_iter();
        let told = told.filter_map(|answer| decode::<AuditReport>(&answer.ok()??).ok());
        told.chain(self.report()).min_by_key(|report| report.age_ms)
    }

    /// A report that is no older than `age_max`: the youngest that any node has, or that of a pass that is done now.
    pub(crate) async fn recent(&self, age_max: Duration) -> Result<AuditReport> {
        match self
            .youngest()
            .await
            .filter(|report| u128::from(report.age_ms) <= age_max.as_millis())
        {
            Some(report) => Ok(report),
            None => self.pass().await,
        }
    }

    /// Does passes while this node leads the root, each so long after the last. It goes on until it is dropped.
    pub(crate) async fn run(self: Arc<Self>, leading: Leading, cycle: Duration) {
        let mut led_since: Option<Monotonic> = None;
        let mut not_before = Monotonic::default();
        loop {
            self.host.clock.sleep(LOOK_EVERY.min(cycle)).await;
            if !leading.root() {
                led_since = None;
                continue;
            }
            let now = self.host.clock.now();
            let settled = now - *led_since.get_or_insert(now) >= SETTLE.min(cycle);
            if let Some(age) = self.age() {
                metrics::gauge!("ashlar_audit_age_seconds").set(age.as_secs_f64());
            }
            let due = self.age().is_none_or(|age| age >= cycle);
            if !settled || !due || now < not_before {
                continue;
            }
            if let Err(error) = self.pass().await {
                metrics::counter!("ashlar_audit_failed_total").increment(1);
                tracing::warn!(error = format!("{error:#}"), "an audit ended without a result");
                not_before = self.host.clock.now() + SETTLE.min(cycle);
            }
        }
    }

    fn age(&self) -> Option<Duration> {
        let now = self.host.clock.now();
        self.last().as_ref().map(|ended| now - ended.at)
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<Ended>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Metrics and a line of the log.
fn show(report: &AuditReport) {
    metrics::counter!("ashlar_audit_passes_total").increment(1);
    let gauge = |name, value: u64| metrics::gauge!(name).set(as_gauge(value));
    gauge("ashlar_audit_unknown_shards", report.shards.unknown);
    gauge("ashlar_audit_missing_shards", report.shards.missing);
    gauge("ashlar_audit_stray_shards", report.strays);
    gauge("ashlar_audit_unnamed_extents", report.unnamed);
    gauge("ashlar_durability_lost_objects", report.durability.lost.objects);
    for &node in report.durability.with_stopped.keys() {
        let unreadable = report.durability.unreadable_without(node).objects;
        metrics::gauge!("ashlar_node_stop_unreadable_objects", "node" => node.to_string())
            .set(as_gauge(unreadable));
    }
    for (domain, margins) in &report.durability.by_margin {
        let domain = format!("{domain:?}").to_lowercase();
        for margin in -1..=3 {
            let count = margins.get(&margin).copied().unwrap_or_default();
            let labels = [("domain", domain.clone()), ("margin", margin.to_string())];
            metrics::gauge!("ashlar_durability_objects", &labels).set(as_gauge(count.objects));
            metrics::gauge!("ashlar_durability_bytes", &labels).set(as_gauge(count.bytes));
        }
    }
    tracing::info!(
        extents = report.extents,
        found = report.shards.found,
        missing = report.shards.missing,
        lost = report.shards.lost,
        unknown = report.shards.unknown,
        orphans = report.orphans,
        lost_objects = report.durability.lost.objects,
        took_ms = report.took_ms,
        "an audit has ended"
    );
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is for people")]
fn as_gauge(value: u64) -> f64 {
    value as f64
}
