//! Ranges and whole bodies: a slice of one version, never a mix or a part (C5).
//!
//! Each byte that came belongs to one value, the same for all; they are exactly the bytes that were asked for, as far
//! as the object has them; and the ETag names the value whose bytes came. Which value it may be is judged by
//! `register`, to which a slice of one value is a read of it.

use crate::history::{Action, Kind, Operation, Piece};
use crate::verdict::{Findings, Sort};
use std::collections::HashMap;

const CHECKER: &str = "ranges";

/// Judges the bytes of all slices.
pub(crate) fn check(operations: &[Operation], findings: &mut Findings) {
    let is_slice = |operation: &&Operation| {
        operation.end == Kind::Ok && matches!(operation.action, Action::Slice { .. })
    };
    if !operations.iter().any(|operation| is_slice(&operation)) {
        return;
    }
    let lengths: HashMap<u64, u64> = operations.iter().filter_map(length_written).collect();
    for operation in operations.iter().filter(is_slice) {
        let Action::Slice { key, from, length, tag, pieces } = &operation.action else { continue };
        findings.answers += 1;
        let asked = Asked { from: *from, length: *length, tag: *tag };
        if let Some(why) = asked.wrong(pieces, &lengths) {
            let what = format!("{key}: the slice of operation {} {why}", operation.number);
            findings.broken(CHECKER, &["C5"], Sort::Torn, what);
        }
    }
}

fn length_written(operation: &Operation) -> Option<(u64, u64)> {
    match &operation.action {
        Action::Put { value, bytes, .. }
        | Action::Create { value, bytes, .. }
        | Action::Swap { value, bytes, .. }
        | Action::Complete { value, bytes, .. } => bytes.map(|bytes| (*value, bytes)),
        _ => None,
    }
}

struct Asked {
    from: u64,
    length: u64,
    tag: Option<u64>,
}

impl Asked {
    /// What is wrong with the answer, if something is.
    fn wrong(&self, pieces: &[Piece], lengths: &HashMap<u64, u64>) -> Option<String> {
        let first = pieces.first()?;
        let mut at = self.from;
        for piece in pieces {
            let Some(value) = piece.value else {
                return Some(format!("has bytes of no write at {}", piece.at));
            };
            if first.value != Some(value) {
                let one = first.value.unwrap_or_default();
                return Some(format!("mixes bytes of the values {one} and {value}"));
            }
            if piece.at != at {
                return Some(format!("goes on with byte {} where {at} is next", piece.at));
            }
            at += piece.length;
        }
        let value = first.value?;
        if self.tag.is_some_and(|tag| tag != value) {
            let tag = self.tag.unwrap_or_default();
            return Some(format!("has bytes of value {value} under the ETag of value {tag}"));
        }
        let whole = lengths.get(&value)?;
        let due = whole.saturating_sub(self.from).min(self.length);
        let came = at - self.from;
        (came != due).then(|| format!("has {came} bytes of value {value}, {due} were due"))
    }
}
