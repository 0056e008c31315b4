//! On small histories of one object, allowed or not, the verdict is that of the definition: some order of the
//! operations that respects time explains every answer. The definition is tried by brute force.

#[allow(dead_code, reason = "each test file uses the words that it needs")]
mod tale;

use ashlar_check::{Action, Kind, Why};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use tale::*;

#[derive(Clone, Debug)]
struct Step {
    from: u64,
    to: u64,
    kind: Kind,
    why: Option<Why>,
    action: Action,
}

/// What a step does to the state; none where it may not happen then.
fn apply(step: &Step, state: Option<u64>) -> Option<Option<u64>> {
    let holds = |holds: bool, after: Option<u64>| holds.then_some(after);
    let refused = step.kind == Kind::Fail;
    match &step.action {
        Action::Put { value, .. } => Some(Some(*value)),
        Action::Delete { .. } => Some(None),
        Action::Get { value, .. } => holds(*value == state, state),
        Action::Create { .. } if refused => holds(state.is_some(), state),
        Action::Create { value, .. } => holds(state.is_none(), Some(*value)),
        Action::Swap { .. } if step.why == Some(Why::Missing) => holds(state.is_none(), state),
        Action::Swap { expect, .. } if refused => holds(state != Some(*expect), state),
        Action::Swap { expect, value, .. } => holds(state == Some(*expect), Some(*value)),
        other => panic!("no {other:?} in these histories"),
    }
}

/// The definition.
fn some_order_explains(left: &[Step], state: Option<u64>) -> bool {
    let first_end = left.iter().filter(|s| s.kind != Kind::Info).map(|s| s.to).min();
    let Some(first_end) = first_end else { return true };
    (0..left.len()).filter(|at| left[*at].from <= first_end).any(|at| {
        let mut rest = left.to_vec();
        let next = rest.remove(at);
        apply(&next, state).is_some_and(|after| some_order_explains(&rest, after))
    })
}

/// A step on one object; `value` is unique, `guess` names any value.
fn step(value: u64, writes: u64) -> impl Strategy<Value = Step> {
    let guess = proptest::option::weighted(0.8, 1..=writes);
    (0_u64..30, 1_u64..14, 0..11, guess).prop_map(move |(from, long, what, guess)| {
        let (ok, info, fail) = (Kind::Ok, Kind::Info, Kind::Fail);
        let old = guess.unwrap_or(1);
        let condition = Some(Why::Condition);
        let (kind, why, action) = match what {
            0 | 1 => (ok, None, put("k", value)),
            2 => (info, None, put("k", value)),
            3 => (ok, None, delete("k")),
            4 => (info, None, delete("k")),
            5 => (ok, None, create("k", value)),
            6 => (fail, condition, create("k", value)),
            7 => (ok, None, swap("k", old, value)),
            8 => (fail, condition, swap("k", old, value)),
            9 => (info, None, swap("k", old, value)),
            _ => (ok, None, get("k", guess)),
        };
        Step { from, to: from + long, kind, why, action }
    })
}

fn reads(writes: u64) -> impl Strategy<Value = Vec<Step>> {
    let read = (0_u64..40, 1_u64..8, proptest::option::weighted(0.7, 1..=writes));
    let read = read.prop_map(|(from, long, seen)| Step {
        from,
        to: from + long,
        kind: Kind::Ok,
        why: None,
        action: get("k", seen),
    });
    proptest::collection::vec(read, 0..4)
}

fn histories() -> impl Strategy<Value = Vec<Step>> {
    (1_u64..=4).prop_flat_map(|writes| {
        let steps: Vec<_> = (1..=writes).map(|value| step(value, writes)).collect();
        (steps, reads(writes)).prop_map(|(mut steps, reads)| {
            steps.extend(reads);
            steps
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn c2_c3_the_verdict_on_one_object_is_that_of_the_definition(steps in histories()) {
        let mut tale = Tale::default();
        for (client, step) in (0..).zip(&steps) {
            tale.tell(client, step.from, step.to, step.kind, step.why, step.action.clone());
        }
        let report = tale.judge();
        let allowed = some_order_explains(&steps, None);
        prop_assert_eq!(
            report.anomalies.is_empty(), allowed, "{}\n{}", report, tale.history.to_lines()
        );
    }
}

/// The histories above are not all of one kind: else the property would say little.
#[test]
fn the_histories_are_of_both_kinds() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut allowed = 0;
    for _ in 0..1_000 {
        let steps = histories().new_tree(&mut runner).unwrap().current();
        allowed += usize::from(some_order_explains(&steps, None));
    }
    assert!((150..=850).contains(&allowed), "{allowed} of 1,000 are allowed");
}
