//! A history, sorted by object: who wrote what when, and who saw what when.
//!
//! Normalised, so that every checker means the same by "written" and "seen": completions of one upload are one write;
//! a success of a conditional write also saw what it demanded; a write of unknown outcome that somebody saw happened,
//! and before that sight ended. Whatever else has an unknown outcome stays open to the end of time (C7).

use crate::history::{Action, Kind, Operation, Why};
use std::collections::HashMap;

/// The interval in which an operation had its effect, if it had one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// The operation.
    pub(crate) number: u64,
    /// Invoked.
    pub(crate) from: u64,
    /// Ended, or open to the end of time.
    pub(crate) to: u64,
}

/// What a write demands of the state that it meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Nothing.
    Nothing,
    /// That there is no object.
    Absent,
    /// That this value is there.
    Value(u64),
}

/// A write of a value.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    /// When; its end is drawn in to the end of the first sight of its value.
    pub(crate) span: Span,
    /// What.
    pub(crate) value: u64,
    /// Its condition.
    pub(crate) demand: Demand,
    /// Whether it surely happened: acknowledged, or seen.
    pub(crate) happened: bool,
    /// Whether it surely did not.
    pub(crate) refused: bool,
}

/// A read that saw one value, or that there was no object.
#[derive(Clone, Debug)]
pub(crate) struct Sight {
    /// When.
    pub(crate) span: Span,
    /// What; none where there was no object.
    pub(crate) value: Option<u64>,
    /// Who.
    pub(crate) client: u64,
    /// Through which gateway.
    pub(crate) gateway: Option<u64>,
}

/// A conditional write that was refused because of its condition: it saw that the demand does not hold.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// When.
    pub(crate) span: Span,
    /// What does not hold: there is an object, or not this value.
    pub(crate) demand: Demand,
}

/// Everything that happened to one object.
#[derive(Clone, Debug, Default)]
pub(crate) struct Story<'a> {
    /// Its key.
    pub(crate) key: &'a str,
    /// Writes, refused ones too: reading the value of one is an anomaly of its own.
    pub(crate) writes: Vec<Write>,
    /// Deletes that happened.
    pub(crate) deletes: Vec<Span>,
    /// Deletes that may have happened.
    pub(crate) open_deletes: Vec<Span>,
    /// Reads.
    pub(crate) sights: Vec<Sight>,
    /// Conditional writes that saw why they must not.
    pub(crate) refusals: Vec<Refusal>,
    /// Whether versions were removed by id: then the current value may become an older one again, and the object is
    /// no register.
    pub(crate) versions_removed: bool,
}

/// The stories of all objects, by key in byte order.
pub(crate) fn stories(operations: &[Operation]) -> Vec<Story<'_>> {
    let mut index: HashMap<&str, usize> = HashMap::new();
    let mut stories: Vec<Story<'_>> = Vec::new();
    let mut completions: HashMap<(usize, u64), usize> = HashMap::new();
    for operation in operations {
        let Some(key) = operation.action.key() else { continue };
        let at = *index.entry(key).or_insert_with(|| {
            stories.push(Story { key, ..Story::default() });
            stories.len() - 1
        });
        let story = &mut stories[at];
        match &operation.action {
            Action::Complete { upload, .. } => {
                let write = completions.entry((at, *upload)).or_insert(usize::MAX);
                story.take_completion(operation, write);
            }
            _ => story.take(operation),
        }
    }
    stories.iter_mut().for_each(Story::settle);
    stories.sort_unstable_by_key(|story| story.key);
    stories
}

impl Story<'_> {
    /// Whether its writes are all unconditional and nothing was deleted: then intervals alone decide it.
    pub(crate) fn is_plain(&self) -> bool {
        self.deletes.is_empty()
            && self.open_deletes.is_empty()
            && self.refusals.is_empty()
            && self.writes.iter().all(|write| write.demand == Demand::Nothing)
    }

    /// Whether some write of it was conditional.
    pub(crate) fn is_conditional(&self) -> bool {
        !self.refusals.is_empty() || self.writes.iter().any(|write| write.demand != Demand::Nothing)
    }

    /// Answers that can be judged.
    pub(crate) fn answers(&self) -> u64 {
        let acknowledged = self.writes.iter().filter(|write| write.happened).count();
        (self.sights.len() + self.refusals.len() + self.deletes.len() + acknowledged) as u64
    }

    fn take(&mut self, operation: &Operation) {
        let span = span_of(operation);
        match &operation.action {
            Action::Put { value, .. } => self.write(operation, *value, Demand::Nothing),
            Action::Create { value, .. } => self.write(operation, *value, Demand::Absent),
            Action::Swap { expect, value, .. } => {
                self.write(operation, *value, Demand::Value(*expect));
            }
            Action::Delete { .. } => match operation.end {
                Kind::Ok => self.deletes.push(span),
                Kind::Info | Kind::Invoke => self.open_deletes.push(span),
                Kind::Fail => {}
            },
            Action::Get { value, .. } if operation.end == Kind::Ok => {
                self.see(operation, *value);
            }
            Action::Slice { pieces, .. } if operation.end == Kind::Ok => {
                // A mix is judged by `ranges`; here it is no sight of any value.
                let whole = pieces.iter().all(|piece| piece.value == pieces[0].value);
                let value = pieces.first().and_then(|piece| piece.value);
                if whole && (pieces.is_empty() || value.is_some()) {
                    self.see(operation, value);
                }
            }
            Action::DeleteVersion { .. } if operation.end != Kind::Fail => {
                self.versions_removed = true;
            }
            Action::Get { .. }
            | Action::Slice { .. }
            | Action::DeleteVersion { .. }
            | Action::List { .. }
            | Action::Begin { .. }
            | Action::Part { .. }
            | Action::Complete { .. }
            | Action::Abort { .. }
            | Action::Versions { .. }
            | Action::GetVersion { .. }
            | Action::Fault(_)
            | Action::Plan { .. } => {}
        }
    }

    fn see(&mut self, operation: &Operation, value: Option<u64>) {
        let (client, gateway) = (operation.client, operation.gateway);
        self.sights.push(Sight { span: span_of(operation), value, client, gateway });
    }

    fn write(&mut self, operation: &Operation, value: u64, demand: Demand) {
        let span = span_of(operation);
        let (happened, refused) = (operation.end == Kind::Ok, operation.end == Kind::Fail);
        self.writes.push(Write { span, value, demand, happened, refused });
        match (operation.end, operation.why, demand) {
            (Kind::Ok, _, Demand::Value(old)) => self.see(operation, Some(old)),
            (Kind::Fail, Some(Why::Condition), Demand::Absent | Demand::Value(_)) => {
                self.refusals.push(Refusal { span, demand });
            }
            (Kind::Fail, Some(Why::Missing), Demand::Value(_)) => self.see(operation, None),
            _ => {}
        }
    }

    /// Joins the completions of one upload: it happened once, between its first invocation and its first success, if
    /// any completion of it may have happened.
    fn take_completion(&mut self, operation: &Operation, index: &mut usize) {
        let Some(write) = self.writes.get_mut(*index) else {
            *index = self.writes.len();
            if let Some(value) = operation.action.written() {
                self.write(operation, value, Demand::Nothing);
            }
            return;
        };
        let refused = operation.end == Kind::Fail;
        if write.refused && !refused {
            let (value, happened) = (write.value, operation.end == Kind::Ok);
            let demand = Demand::Nothing;
            *write = Write { span: span_of(operation), value, demand, happened, refused };
        } else if !refused {
            write.span.from = write.span.from.min(operation.invoked_us);
            write.span.to = write.span.to.min(operation.ended_us);
            write.happened |= operation.end == Kind::Ok;
        }
    }

    /// Draws in the end of each write that somebody saw.
    fn settle(&mut self) {
        let mut by_value: HashMap<u64, usize> = HashMap::with_capacity(self.writes.len());
        by_value.extend(self.writes.iter().enumerate().map(|(at, write)| (write.value, at)));
        for sight in &self.sights {
            let Some(at) = sight.value.and_then(|value| by_value.get(&value)) else { continue };
            let write = &mut self.writes[*at];
            if !write.refused && sight.span.to >= write.span.from {
                write.happened = true;
                write.span.to = write.span.to.min(sight.span.to);
            }
        }
    }
}

pub(crate) fn span_of(operation: &Operation) -> Span {
    Span { number: operation.number, from: operation.invoked_us, to: operation.ended_us }
}
