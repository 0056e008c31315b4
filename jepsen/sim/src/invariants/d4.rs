//! D2 and D4 (contract §2): in the end the cluster's own audit finds nothing gone that its records name.
//!
//! Where shards have rotted there may be some, of which the others make up for each: there only objects count that are
//! gone for good.

use crate::options::{Fault, Options};
use crate::record::Recorder;
use crate::world::World;
use ashlar::audit::AuditReport;
use ashlar::node::RunningNode;
use std::time::Duration;

/// A pass that meets a range without a leader has no result.
const PASSES_MAX: usize = 20;
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Lets a node do a pass, and judges what it has found.
pub(crate) async fn check(world: &World, recorder: &Recorder, options: &Options) {
    for pass in 0..PASSES_MAX {
        if let Some(report) = audited(world, pass % world.count()).await {
            return judge(recorder, options, &report);
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
    recorder.find("L1", format!("{PASSES_MAX} audits have no result"));
}

async fn audited(world: &World, index: usize) -> Option<AuditReport> {
    let auditor = |node: &RunningNode| node.auditor().clone();
    let parts = |machine: &crate::machines::Machine| {
        machine.node().map(auditor).zip(machine.life().cloned())
    };
    let (auditor, life) = world.look(index, parts).flatten()?;
    life.spawn(async move { auditor.pass().await.ok() }).await.ok().flatten()
}

fn judge(recorder: &Recorder, options: &Options, report: &AuditReport) {
    let shards = report.shards;
    recorder.note(&format!(
        "audit: {} extents, {shards:?}, {} orphans, {} strays",
        report.extents, report.orphans, report.strays
    ));
    for object in &report.lost {
        recorder.find("D2", format!("{} is gone for good", object.key));
    }
    if shards.lost > 0 && !options.faults.contains(&Fault::Rot) {
        let lost = shards.lost;
        recorder.find("D4", format!("{lost} shards are gone, although their records name them"));
    }
}
