//! Short words for histories: who did what from when to when, and how it ended.

use ashlar_check::{Action, Event, Fault, History, Kind, Piece, Report, Sort, Verdict, Why, judge};

/// A history as it is told.
#[derive(Clone, Default)]
pub(crate) struct Tale {
    pub(crate) history: History,
    operations: u64,
}

impl Tale {
    /// Tells one operation: its number.
    pub(crate) fn tell(
        &mut self,
        client: u64,
        from: u64,
        to: u64,
        kind: Kind,
        why: Option<Why>,
        action: Action,
    ) -> u64 {
        let operation = self.operations;
        self.operations += 1;
        let event = |at_us, kind, why, action| Event {
            at_us,
            operation,
            kind,
            client,
            gateway: Some(client % 2),
            why,
            action,
        };
        self.history.events.push(event(from, Kind::Invoke, None, action.clone()));
        self.history.events.push(event(to, kind, why, action));
        operation
    }

    /// With one more operation that succeeded, of a client of its own.
    pub(crate) fn ok(mut self, from: u64, to: u64, action: Action) -> Self {
        self.tell(100 + self.operations, from, to, Kind::Ok, None, action);
        self
    }

    /// With one more of a given client.
    pub(crate) fn by(mut self, client: u64, from: u64, to: u64, action: Action) -> Self {
        self.tell(client, from, to, Kind::Ok, None, action);
        self
    }

    /// With one more whose outcome is unknown.
    pub(crate) fn info(mut self, from: u64, action: Action) -> Self {
        self.tell(100 + self.operations, from, from + 1, Kind::Info, None, action);
        self
    }

    /// With one more that was refused.
    pub(crate) fn fail(mut self, from: u64, to: u64, why: Why, action: Action) -> Self {
        self.tell(100 + self.operations, from, to, Kind::Fail, Some(why), action);
        self
    }

    pub(crate) fn judge(&self) -> Report {
        judge(&self.history)
    }

    /// It must pass.
    #[track_caller]
    pub(crate) fn passes(&self) {
        let report = self.judge();
        assert_eq!(report.verdict, Verdict::Pass, "{report}\n{}", self.history.to_lines());
    }

    /// It must fail, with an anomaly of this sort, by this checker, against this promise.
    #[track_caller]
    pub(crate) fn fails(&self, checker: &str, contract: &str, sort: Sort) {
        let report = self.judge();
        assert_eq!(report.verdict, Verdict::Fail, "{report}\n{}", self.history.to_lines());
        let found = report.anomalies.iter().any(|anomaly| {
            (anomaly.checker, anomaly.sort) == (checker, sort)
                && anomaly.contract.contains(&contract)
        });
        assert!(found, "no {sort:?} of {contract} by {checker}: {:?}", report.anomalies);
    }

    /// It must be inconclusive, for a reason with these words.
    #[track_caller]
    pub(crate) fn is_inconclusive(&self, words: &str) {
        let report = self.judge();
        assert_eq!(report.verdict, Verdict::Inconclusive, "{report}");
        assert!(report.doubts.iter().any(|doubt| doubt.contains(words)), "{:?}", report.doubts);
    }
}

pub(crate) fn put(key: &str, value: u64) -> Action {
    Action::Put { key: key.into(), value, bytes: Some(100), version: None }
}

pub(crate) fn create(key: &str, value: u64) -> Action {
    Action::Create { key: key.into(), value, bytes: Some(100) }
}

pub(crate) fn swap(key: &str, expect: u64, value: u64) -> Action {
    Action::Swap { key: key.into(), expect, value, bytes: Some(100) }
}

pub(crate) fn delete(key: &str) -> Action {
    Action::Delete { key: key.into(), version: None }
}

pub(crate) fn get(key: &str, value: Option<u64>) -> Action {
    Action::Get { key: key.into(), value }
}

pub(crate) fn slice(
    key: &str,
    from: u64,
    length: u64,
    pieces: &[(u64, u64, Option<u64>)],
) -> Action {
    let piece = |&(at, length, value)| Piece { at, length, value };
    let pieces = pieces.iter().map(piece).collect();
    Action::Slice { key: key.into(), from, length, tag: None, pieces }
}

pub(crate) fn list(prefix: &str, keys: &[&str]) -> Action {
    page(prefix, "", keys, false)
}

pub(crate) fn page(prefix: &str, after: &str, keys: &[&str], more: bool) -> Action {
    let keys = keys.iter().map(|&key| key.into()).collect();
    Action::List { prefix: prefix.into(), after: after.into(), keys, more }
}

pub(crate) fn complete(key: &str, upload: u64, value: u64, answer: &str) -> Action {
    Action::Complete {
        key: key.into(),
        upload,
        parts: vec![1, 2],
        value,
        bytes: Some(100),
        answer: Some(answer.into()),
    }
}

pub(crate) fn fault(name: &str, bit_at_us: Option<u64>) -> Fault {
    Fault {
        fault: name.into(),
        target: "node-1".into(),
        under_load: true,
        bit_at_us,
        evidence: "process 77 is gone".into(),
        gap_us_max: None,
    }
}
