//! What a node says of its disks: which are out or suspect, under `/health/ready`; and it keeps which disk was in which
//! directory, so that a disk that is not mounted at the next start is missed instead of being made anew in its mount point.

use crate::duties::Duties;
use ashlar_node::DiskReport;
use ashlar_types::DiskId;
use std::collections::BTreeMap;
use std::path::PathBuf;

impl Duties {
    /// Looks at the disks, and tells of each change.
    pub(crate) async fn tell_of_disks(self) {
        let Some(data) = self.data.clone() else { return };
        let mut reports = data.follow_disks();
        let telling = async {
            loop {
                let now = reports.borrow_and_update().clone();
                self.readiness.remark("disks", remark(&now));
                self.keep_known(&now);
                if reports.changed().await.is_err() {
                    return;
                }
            }
        };
        futures::future::join(data.watch_disks(), telling).await;
    }

    fn keep_known(&self, reports: &[DiskReport]) {
        let known = |report: &DiskReport| Some((report.dir.clone(), report.disk?));
        let known: BTreeMap<PathBuf, DiskId> = reports.iter().filter_map(known).collect();
        let kept = self.dir.known_disks().and_then(|before| match before == known {
            true => Ok(()),
            false => self.dir.set_known_disks(&known),
        });
        if let Err(error) = kept {
            tracing::warn!(%error, "which disk is in which directory could not be kept");
        }
    }
}

/// What is wrong with the disks, in one line; `None`: nothing.
fn remark(reports: &[DiskReport]) -> Option<String> {
    let bad = |report: &DiskReport| {
        let (dir, condition) = (report.dir.display(), &report.condition);
        condition.reason().map(|why| format!("{dir} is {}: {why}", condition.word()))
    };
    let bad: Vec<String> = reports.iter().filter_map(bad).collect();
    (!bad.is_empty()).then(|| bad.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_node::DiskCondition;

    #[test]
    fn only_what_is_bad_is_remarked() {
        let report = |dir: &str, condition| DiskReport { dir: dir.into(), disk: None, condition };
        let good = [report("/a", DiskCondition::Serving), report("/b", DiskCondition::Opening)];
        assert_eq!(remark(&good), None);
        let bad = [
            report("/a", DiskCondition::Out("it is gone".to_owned())),
            report("/b", DiskCondition::Serving),
            report("/c", DiskCondition::Suspect("a sync failed".to_owned())),
        ];
        let told = "/a is out: it is gone; /c is suspect: a sync failed";
        assert_eq!(remark(&bad).as_deref(), Some(told));
    }
}
