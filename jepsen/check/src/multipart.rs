//! Multipart uploads: whole or not at all, and a repeated Complete answers the same (C10).
//!
//! That a completed object appears whole is judged by `ranges` (its bytes) and `register` (its one write, however
//! often Complete was sent). Here the answers of Complete and Abort are judged against each other:
//! - all successes of one upload say the same;
//! - once a success is known, a later Complete is not refused as if the upload were unknown or bad;
//! - an upload whose Begin succeeded and that nobody aborted is not missing;
//! - what was aborted is not completed afterwards;
//! - a Complete that names a part which was refused does not succeed.

use crate::history::{Action, Kind, Operation, Why};
use crate::verdict::{Findings, Sort};
use std::collections::BTreeMap;

const CHECKER: &str = "multipart";

#[derive(Default)]
struct Upload<'a> {
    begun: Vec<&'a Operation>,
    parts: BTreeMap<u32, Vec<&'a Operation>>,
    completions: Vec<&'a Operation>,
    aborts: Vec<&'a Operation>,
}

/// Judges all uploads.
pub(crate) fn check(operations: &[Operation], findings: &mut Findings) {
    let mut uploads: BTreeMap<(&str, u64), Upload<'_>> = BTreeMap::new();
    for operation in operations {
        match &operation.action {
            Action::Begin { key, upload } => {
                uploads.entry((key, *upload)).or_default().begun.push(operation);
            }
            Action::Part { key, upload, number } => {
                let parts = &mut uploads.entry((key, *upload)).or_default().parts;
                parts.entry(*number).or_default().push(operation);
            }
            Action::Complete { key, upload, .. } => {
                uploads.entry((key, *upload)).or_default().completions.push(operation);
            }
            Action::Abort { key, upload } => {
                uploads.entry((key, *upload)).or_default().aborts.push(operation);
            }
            _ => {}
        }
    }
    for ((key, number), upload) in &uploads {
        findings.answers +=
            upload.completions.iter().filter(|c| c.end != Kind::Info).count() as u64;
        for (sort, what) in upload.broken() {
            let what = format!("{key}: upload {number}: {what}");
            findings.broken(CHECKER, &["C10"], sort, what);
        }
    }
}

impl Upload<'_> {
    fn broken(&self) -> Vec<(Sort, String)> {
        let mut broken = Vec::new();
        broken.extend(self.different_answers());
        broken.extend(self.completions.iter().filter_map(|completion| match completion.end {
            Kind::Ok => self.wrong_success(completion),
            Kind::Fail => self.wrong_refusal(completion),
            Kind::Info | Kind::Invoke => None,
        }));
        broken
    }

    fn different_answers(&self) -> Option<(Sort, String)> {
        let mut answers = self.successes().filter_map(|completion| match &completion.action {
            Action::Complete { answer, .. } => {
                answer.as_ref().map(|answer| (completion.number, answer))
            }
            _ => None,
        });
        let (first, answer) = answers.next()?;
        let (other, different) = answers.find(|(_, other)| *other != answer)?;
        let what = format!(
            "Complete answered {answer:?} (operation {first}) and {different:?} (operation {other})"
        );
        Some((Sort::OtherAnswer, what))
    }

    fn wrong_success(&self, completion: &Operation) -> Option<(Sort, String)> {
        let number = completion.number;
        let earlier_success = self.successes().any(|one| one.ended_us < completion.ended_us);
        let open = self.completions.iter().any(|one| one.end == Kind::Info);
        let aborted = self
            .aborts
            .iter()
            .find(|abort| abort.end == Kind::Ok && abort.ended_us < completion.invoked_us);
        if let Some(abort) = aborted
            && !earlier_success
            && !open
        {
            let what =
                format!("Complete (operation {number}) succeeded after abort {}", abort.number);
            return Some((Sort::Resurrected, what));
        }
        let Action::Complete { parts, .. } = &completion.action else { return None };
        let missing = parts.iter().find(|part| self.was_refused(**part))?;
        let what = format!(
            "Complete (operation {number}) made an object with part {missing}, which was refused"
        );
        Some((Sort::Torn, what))
    }

    /// Whether every attempt to upload a part was refused.
    fn was_refused(&self, part: u32) -> bool {
        self.parts
            .get(&part)
            .is_some_and(|attempts| attempts.iter().all(|attempt| attempt.end == Kind::Fail))
    }

    fn wrong_refusal(&self, completion: &Operation) -> Option<(Sort, String)> {
        let number = completion.number;
        let why = completion.why?;
        if why == Why::Unavailable {
            return None;
        }
        if let Some(before) = self.successes().find(|one| one.ended_us < completion.invoked_us) {
            let what = format!(
                "Complete (operation {number}) was refused after operation {} had succeeded",
                before.number
            );
            return Some((Sort::OtherAnswer, what));
        }
        let begun = self
            .begun
            .iter()
            .any(|begin| begin.end == Kind::Ok && begin.ended_us < completion.invoked_us);
        let may_be_aborted = self
            .aborts
            .iter()
            .any(|abort| abort.end != Kind::Fail && abort.invoked_us <= completion.ended_us);
        (why == Why::Missing && begun && !may_be_aborted).then(|| {
            let what = format!("Complete (operation {number}) does not find it; nobody aborted it");
            (Sort::Lost, what)
        })
    }

    fn successes(&self) -> impl Iterator<Item = &&Operation> {
        self.completions.iter().filter(|completion| completion.end == Kind::Ok)
    }
}
