//! Versions: their order is the order of commits, none is lost, none comes back, none changes (C6, C9).
//!
//! Each list of an object's versions is judged alone (known ones only, none twice, the newest marked and first, an
//! order that time allows, complete, without removed ones) and against the list before (what both show stands in the
//! same order). A version that is read by its id has the value it was written with, for ever.
//!
//! Left out: lists of versions in pages and over several objects.

use crate::history::{Action, Kind, Operation, Version};
use crate::story::{Span, span_of};
use crate::verdict::{Findings, Sort};
use std::collections::{BTreeMap, HashMap, HashSet};

const CHECKER: &str = "versions";

/// An acknowledged version, of which a client was told the id; no value for a delete marker.
struct Written {
    span: Span,
    value: Option<u64>,
}

#[derive(Default)]
struct Object<'a> {
    by_id: BTreeMap<&'a str, Written>,
    /// Writes without a known id, by value.
    open: HashMap<u64, Span>,
    /// Delete markers whose id is not known.
    open_markers: u64,
    removals: HashMap<&'a str, Vec<&'a Operation>>,
    lists: Vec<&'a Operation>,
    reads: Vec<&'a Operation>,
}

/// Judges all objects of which versions were listed or read.
pub(crate) fn check(operations: &[Operation], findings: &mut Findings) {
    let of_versions = |operation: &Operation| {
        matches!(operation.action, Action::Versions { .. } | Action::GetVersion { .. })
    };
    if !operations.iter().any(of_versions) {
        return;
    }
    let mut objects: BTreeMap<&str, Object<'_>> = BTreeMap::new();
    for operation in operations {
        if let Some(key) = operation.action.key() {
            objects.entry(key).or_default().take(operation);
        }
    }
    for (key, object) in &objects {
        object.check(key, findings);
    }
}

impl<'a> Object<'a> {
    fn take(&mut self, operation: &'a Operation) {
        let (span, ok) = (span_of(operation), operation.end == Kind::Ok);
        match &operation.action {
            Action::Put { value, version: Some(id), .. } if ok => {
                let written = Written { span, value: Some(*value) };
                self.by_id.insert(id, written);
            }
            Action::Delete { version: Some(id), .. } if ok => {
                self.by_id.insert(id, Written { span, value: None });
            }
            Action::Delete { .. } if operation.end != Kind::Fail => self.open_markers += 1,
            Action::DeleteVersion { version, .. } if operation.end != Kind::Fail => {
                self.removals.entry(version).or_default().push(operation);
            }
            Action::Versions { .. } if ok => self.lists.push(operation),
            Action::GetVersion { .. } if ok => self.reads.push(operation),
            action if operation.end != Kind::Fail => {
                if let Some(value) = action.written() {
                    self.open.insert(value, span);
                }
            }
            _ => {}
        }
    }

    fn check(&self, key: &str, findings: &mut Findings) {
        let mut before: Option<&[Version]> = None;
        let mut lists = self.lists.clone();
        lists.sort_by_key(|list| list.invoked_us);
        for list in lists {
            let Action::Versions { versions, .. } = &list.action else { continue };
            findings.answers += 1;
            let number = list.number;
            for (contract, sort, what) in self.broken_list(list, versions) {
                let what = format!("{key}: list {number} {what}");
                findings.broken(CHECKER, contract, sort, what);
            }
            if let Some((one, two)) = before.and_then(|before| order_changed(before, versions)) {
                let what = format!(
                    "{key}: list {number} shows {one} behind {two}, an earlier one before it"
                );
                findings.broken(CHECKER, &["C9"], Sort::Disorder, what);
            }
            before = Some(versions);
        }
        for read in &self.reads {
            findings.answers += 1;
            if let Some((contract, sort, what)) = self.broken_read(read) {
                let what = format!("{key}: operation {} {what}", read.number);
                findings.broken(CHECKER, contract, sort, what);
            }
        }
    }

    fn broken_list(&self, list: &Operation, versions: &[Version]) -> Vec<Broken> {
        let mut broken = Vec::new();
        let mut ids = HashSet::new();
        for version in versions {
            if !ids.insert(version.id.as_str()) {
                let what = format!("shows version {} twice", version.id);
                broken.push((C9, Sort::Duplicated, what));
            }
        }
        let mut open_markers = self.open_markers;
        for version in versions {
            broken.extend(self.broken_version(list, version, &mut open_markers));
        }
        if versions.iter().enumerate().any(|(at, version)| version.latest != (at == 0)) {
            let what = "marks another version than the first as the latest".to_owned();
            broken.push((C9, Sort::Disorder, what));
        }
        broken.extend(self.against_time(versions));
        for (id, written) in &self.by_id {
            if written.span.to < list.invoked_us
                && !ids.contains(id)
                && !self.may_be_removed(id, list.ended_us)
            {
                let what = format!("lacks version {id}, which nobody removed");
                broken.push((C1_C9, Sort::Lost, what));
            }
        }
        broken
    }

    fn broken_version(
        &self,
        list: &Operation,
        version: &Version,
        open_markers: &mut u64,
    ) -> Option<Broken> {
        let id = &version.id;
        if let Some(removal) = self.removed_before(id, list.invoked_us) {
            let what =
                format!("shows version {id}, which operation {} had removed", removal.number);
            return Some((C6_C9, Sort::Resurrected, what));
        }
        if let Some(written) = self.by_id.get(id.as_str()) {
            if written.span.from > list.ended_us {
                return Some((C9, Sort::Future, format!("shows version {id} before its write")));
            }
            let same = version.value.is_none() || version.value == written.value;
            return (!same).then(|| {
                let what = format!("shows version {id} with another value than was written");
                (C9, Sort::Torn, what)
            });
        }
        let Some(value) = version.value else {
            // A marker whose delete has an unknown outcome: each of those may stand for one.
            let stands = *open_markers > 0;
            *open_markers = open_markers.saturating_sub(1);
            return (!stands)
                .then(|| (C9, Sort::Phantom, format!("shows version {id}, which nobody wrote")));
        };
        self.open.get(&value).is_none_or(|span| span.from > list.ended_us).then(|| {
            let what = format!("shows version {id} of value {value}, which nobody wrote");
            (C9, Sort::Phantom, what)
        })
    }

    /// Newest first: nothing stands before a version that was written wholly after it.
    fn against_time(&self, versions: &[Version]) -> Option<Broken> {
        let mut earliest: Option<(u64, &str)> = None;
        for version in versions {
            let by_value = || version.value.and_then(|value| self.open.get(&value));
            let known = self.by_id.get(version.id.as_str()).map(|written| &written.span);
            let Some(span) = known.or_else(by_value) else { continue };
            if let Some((_, newer)) = earliest.filter(|(end, _)| *end < span.from) {
                let what =
                    format!("shows {newer} as newer than {}, which was written later", version.id);
                return Some((C9, Sort::Disorder, what));
            }
            if earliest.is_none_or(|(end, _)| span.to < end) {
                earliest = Some((span.to, &version.id));
            }
        }
        None
    }

    fn broken_read(&self, read: &Operation) -> Option<Broken> {
        let Action::GetVersion { version: id, value, .. } = &read.action else { return None };
        let written = self.by_id.get(id.as_str())?;
        match value {
            None if written.value.is_some() && !self.may_be_removed(id, read.ended_us) => {
                let what = format!("does not find version {id}, which nobody removed");
                Some((C1_C9, Sort::Lost, what))
            }
            Some(_) if self.removed_before(id, read.invoked_us).is_some() => {
                let what = format!("reads version {id} after it was removed");
                Some((C6_C9, Sort::Resurrected, what))
            }
            Some(seen) if written.value != Some(*seen) => {
                let what = format!("reads value {seen} as version {id}, which has another");
                Some((C9, Sort::Torn, what))
            }
            _ => None,
        }
    }

    fn removed_before(&self, id: &str, moment: u64) -> Option<&&'a Operation> {
        let removals = self.removals.get(id)?;
        removals.iter().find(|removal| removal.end == Kind::Ok && removal.ended_us < moment)
    }

    fn may_be_removed(&self, id: &str, moment: u64) -> bool {
        let removals = self.removals.get(id);
        removals.is_some_and(|all| all.iter().any(|removal| removal.invoked_us <= moment))
    }
}

type Broken = (&'static [&'static str], Sort, String);
const C9: &[&str] = &["C9"];
const C1_C9: &[&str] = &["C1", "C9"];
const C6_C9: &[&str] = &["C6", "C9"];

/// Two versions that both lists show, in different orders.
fn order_changed(before: &[Version], now: &[Version]) -> Option<(String, String)> {
    let places: HashMap<&str, usize> =
        before.iter().enumerate().map(|(at, version)| (version.id.as_str(), at)).collect();
    let mut common = now
        .iter()
        .filter_map(|version| places.get(version.id.as_str()).map(|at| (*at, version.id.as_str())));
    let mut last = common.next()?;
    for next in common {
        if next.0 < last.0 {
            return Some((next.1.to_owned(), last.1.to_owned()));
        }
        last = next;
    }
    None
}
