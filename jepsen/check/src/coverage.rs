//! Did the run try what it set out to try? A run in which a fault did not really bite is no pass.
//!
//! A fault bit when the harness saw it bite and says what it saw; under load, some client's operation must have been
//! in flight then: between the moment at which it struck, or not much before it saw the bite, and that one. At the very
//! microsecond at which it looks, all clients of a loaded machine may be between two operations. The plan names faults that must bite and how many operations must succeed. What is
//! missing makes the verdict inconclusive: nothing is known to be broken, and nothing was shown.

use crate::history::{Action, Fault, Kind, Operation};
use crate::verdict::Findings;
use std::collections::BTreeSet;

/// How long it may take to see that a fault has bitten.
const SEEN_WITHIN_US: u64 = 100_000;

/// Judges faults and plans.
pub(crate) fn check(operations: &[Operation], findings: &mut Findings) {
    let mut bitten: BTreeSet<&str> = BTreeSet::new();
    for operation in operations {
        let Action::Fault(fault) = &operation.action else { continue };
        findings.answers += 1;
        match missing(operation, fault, operations) {
            None => {
                bitten.insert(&fault.fault);
            }
            Some(why) => {
                findings.doubts.push(format!("{} {} {why}", fault.fault, fault.target));
            }
        }
    }
    let of_client = operations.iter().filter(|operation| operation.action.is_of_client());
    let succeeded = of_client.filter(|operation| operation.end == Kind::Ok).count() as u64;
    if succeeded == 0 {
        findings.doubts.push("no operation succeeded: there is nothing to judge".to_owned());
    }
    for operation in operations {
        let Action::Plan { faults, operations: least } = &operation.action else { continue };
        for fault in faults.iter().filter(|fault| !bitten.contains(fault.as_str())) {
            findings.doubts.push(format!("the planned {fault} never bit"));
        }
        if succeeded < *least {
            findings.doubts.push(format!("{succeeded} operations succeeded, {least} were planned"));
        }
    }
}

/// Why a fault is not known to have bitten.
fn missing(operation: &Operation, fault: &Fault, all: &[Operation]) -> Option<String> {
    if operation.end != Kind::Ok {
        return Some("has no known end".to_owned());
    }
    let Some(bit_at) = fault.bit_at_us else { return Some("did not bite".to_owned()) };
    if fault.evidence.is_empty() {
        return Some("is said to have bitten, without evidence".to_owned());
    }
    if bit_at < operation.invoked_us || operation.ended_us < bit_at {
        return Some("is said to have bitten when it did not last".to_owned());
    }
    let from = operation.invoked_us.max(bit_at.saturating_sub(SEEN_WITHIN_US));
    let in_flight = |operation: &&Operation| {
        operation.action.is_of_client()
            && operation.invoked_us <= bit_at
            && operation.told_us.is_none_or(|told| from <= told)
    };
    let idle = fault.under_load && !all.iter().any(|operation| in_flight(&operation));
    idle.then(|| "bit while no operation was in flight".to_owned())
}
