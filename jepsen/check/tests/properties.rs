//! What a right store tells its clients passes; with one answer changed into a wrong one, it fails.

#[allow(dead_code, reason = "each test file uses the words that it needs")]
mod model;
#[allow(dead_code, reason = "each test file uses the words that it needs")]
mod tale;

use ashlar_check::{Action, History, Kind, Operation, Verdict, Why, judge};
use model::{Dice, history};
use proptest::prelude::*;
use tale::Tale;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn c1_to_c10_what_a_right_store_tells_passes(seed: u64, operations in 5_u64..120) {
        let tale = history(seed, operations);
        let report = tale.judge();
        prop_assert_eq!(report.verdict, Verdict::Pass, "{}\n{}", report, tale.history.to_lines());
    }
}

/// Changes one answer of a history into one that no order allows; false where it has no place for it.
type Mutation = fn(&[Operation], &mut Dice) -> Option<(u64, Kind, Option<Why>, Action)>;

const MUTATIONS: [(&str, Mutation); 17] = [
    ("an older value is read", stale),
    ("a written object is not found", lost),
    ("a value that nobody wrote is read", phantom),
    ("a deleted object is read", resurrected),
    ("a refused create succeeds", create_over_an_object),
    ("a create whose object was read is refused", refused_but_applied),
    ("a swap from a replaced value succeeds", late_swap),
    ("a page lacks a key", page_skips),
    ("a page shows a key twice", page_repeats),
    ("a page is out of order", page_disorder),
    ("a page shows an unknown key", page_phantom),
    ("a slice mixes two values", slice_mix),
    ("a slice is short", slice_short),
    ("a repeated completion answers differently", other_answer),
    ("a repeated completion is refused", refused_repetition),
    ("two versions change places", versions_disorder),
    ("a version is not listed", version_lost),
];

#[test]
fn each_wrong_answer_fails() {
    let mut planted = [0; MUTATIONS.len()];
    for seed in 0..150 {
        let tale = history(seed, 60);
        let operations = tale.history.operations().unwrap();
        for (index, (name, mutate)) in MUTATIONS.iter().enumerate() {
            let mut dice = Dice::new(seed + 1);
            let Some(answer) = mutate(&operations, &mut dice) else { continue };
            let wrong = with(&tale, answer);
            let report = judge(&wrong);
            assert_eq!(report.verdict, Verdict::Fail, "{name}: {report}\n{}", wrong.to_lines());
            planted[index] += 1;
        }
    }
    for ((name, _), planted) in MUTATIONS.iter().zip(planted) {
        assert!(planted >= 10, "{name}: planted only {planted} times");
    }
}

fn with(tale: &Tale, answer: (u64, Kind, Option<Why>, Action)) -> History {
    let (number, kind, why, action) = answer;
    let mut history = tale.history.clone();
    let end = history
        .events
        .iter_mut()
        .find(|event| event.operation == number && event.kind != Kind::Invoke)
        .expect("every operation has an end");
    (end.kind, end.why, end.action) = (kind, why, action);
    history
}

/// One of the operations for which there is a wrong answer.
fn one_of<'a>(
    operations: &'a [Operation],
    dice: &mut Dice,
    wrong: impl Fn(&'a Operation) -> Option<Action>,
) -> Option<(u64, Kind, Option<Why>, Action)> {
    let ok = operations.iter().filter(|operation| operation.end == Kind::Ok);
    let places: Vec<_> = ok
        .filter_map(|operation| wrong(operation).map(|action| (operation.number, action)))
        .collect();
    let (number, action) = (!places.is_empty()).then(|| dice.pick(&places).clone())?;
    Some((number, Kind::Ok, None, action))
}

/// Acknowledged plain writes of a key that ended before a moment.
fn writes_before<'a>(
    operations: &'a [Operation],
    key: &'a str,
    moment: u64,
) -> impl Iterator<Item = (&'a Operation, u64)> {
    operations.iter().filter_map(move |write| match &write.action {
        Action::Put { key: other, value, .. }
            if other == key && write.end == Kind::Ok && write.ended_us < moment =>
        {
            Some((write, *value))
        }
        _ => None,
    })
}

fn deletes_of<'a>(
    operations: &'a [Operation],
    key: &'a str,
) -> impl Iterator<Item = &'a Operation> {
    operations.iter().filter(move |delete| {
        delete.end != Kind::Fail
            && matches!(&delete.action, Action::Delete { key: other, .. } if other == key)
    })
}

/// Whether an acknowledged write precedes this interval and no delete may lie between.
fn surely_there(operations: &[Operation], key: &str, from: u64, to: u64) -> bool {
    writes_before(operations, key, from).any(|(write, _)| {
        !deletes_of(operations, key).any(|d| d.invoked_us <= to && d.ended_us >= write.invoked_us)
    })
}

/// A value that was surely replaced before a moment.
fn replaced_before(operations: &[Operation], key: &str, moment: u64) -> Option<u64> {
    writes_before(operations, key, moment)
        .find(|(old, _)| {
            writes_before(operations, key, moment).any(|(new, _)| old.ended_us < new.invoked_us)
        })
        .map(|(_, value)| value)
}

fn stale(operations: &[Operation], dice: &mut Dice) -> Option<(u64, Kind, Option<Why>, Action)> {
    one_of(operations, dice, |read| match &read.action {
        Action::Get { key, value: Some(_) } if key != "v" => {
            let value = Some(replaced_before(operations, key, read.invoked_us)?);
            Some(Action::Get { key: key.clone(), value })
        }
        _ => None,
    })
}

fn lost(operations: &[Operation], dice: &mut Dice) -> Option<(u64, Kind, Option<Why>, Action)> {
    one_of(operations, dice, |read| match &read.action {
        Action::Get { key, value: Some(_) }
            if surely_there(operations, key, read.invoked_us, read.ended_us) =>
        {
            Some(Action::Get { key: key.clone(), value: None })
        }
        _ => None,
    })
}

fn phantom(operations: &[Operation], dice: &mut Dice) -> Option<(u64, Kind, Option<Why>, Action)> {
    one_of(operations, dice, |read| match &read.action {
        Action::Get { key, .. } if key != "v" => {
            Some(Action::Get { key: key.clone(), value: Some(77_777) })
        }
        _ => None,
    })
}

fn resurrected(
    operations: &[Operation],
    dice: &mut Dice,
) -> Option<(u64, Kind, Option<Why>, Action)> {
    one_of(operations, dice, |read| match &read.action {
        Action::Get { key, value: None } => {
            let deleted = deletes_of(operations, key)
                .filter(|delete| delete.end == Kind::Ok && delete.ended_us < read.invoked_us);
            let value = deleted
                .filter_map(|d| writes_before(operations, key, d.invoked_us).next())
                .next()?
                .1;
            Some(Action::Get { key: key.clone(), value: Some(value) })
        }
        _ => None,
    })
}

fn create_over_an_object(
    operations: &[Operation],
    dice: &mut Dice,
) -> Option<(u64, Kind, Option<Why>, Action)> {
    let places: Vec<_> = operations
        .iter()
        .filter(|create| match &create.action {
            Action::Create { key, .. } => {
                create.why == Some(Why::Condition)
                    && surely_there(operations, key, create.invoked_us, create.ended_us)
            }
            _ => false,
        })
        .collect();
    let create = (!places.is_empty()).then(|| *dice.pick(&places))?;
    Some((create.number, Kind::Ok, None, create.action.clone()))
}

fn refused_but_applied(
    operations: &[Operation],
    dice: &mut Dice,
) -> Option<(u64, Kind, Option<Why>, Action)> {
    let was_read = |value: u64| {
        operations.iter().any(|read| {
            read.end == Kind::Ok
                && matches!(read.action, Action::Get { value: Some(seen), .. } if seen == value)
        })
    };
    let (number, _, _, action) = one_of(operations, dice, |create| match &create.action {
        Action::Create { value, .. } if was_read(*value) => Some(create.action.clone()),
        _ => None,
    })?;
    Some((number, Kind::Fail, Some(Why::Condition), action))
}

fn late_swap(
    operations: &[Operation],
    dice: &mut Dice,
) -> Option<(u64, Kind, Option<Why>, Action)> {
    let places: Vec<_> = operations
        .iter()
        .filter_map(|swap| match &swap.action {
            Action::Swap { key, value, bytes, .. } if swap.why == Some(Why::Condition) => {
                let expect = replaced_before(operations, key, swap.invoked_us)?;
                let action =
                    Action::Swap { key: key.clone(), expect, value: *value, bytes: *bytes };
                Some((swap.number, Kind::Ok, None, action))
            }
            _ => None,
        })
        .collect();
    (!places.is_empty()).then(|| dice.pick(&places).clone())
}

/// A page with other keys.
fn wrong_page(
    operations: &[Operation],
    dice: &mut Dice,
    wrong: impl Fn(&Operation, &[String]) -> Option<Vec<String>>,
) -> Option<(u64, Kind, Option<Why>, Action)> {
    one_of(operations, dice, |list| match &list.action {
        Action::List { prefix, after, keys, more } => Some(Action::List {
            prefix: prefix.clone(),
            after: after.clone(),
            keys: wrong(list, keys)?,
            more: *more,
        }),
        _ => None,
    })
}

fn page_skips(
    operations: &[Operation],
    dice: &mut Dice,
) -> Option<(u64, Kind, Option<Why>, Action)> {
    wrong_page(operations, dice, |list, keys| {
        // Not the last one: a page that says that there is more ends with its last key.
        let shown = &keys[..keys.len().saturating_sub(1)];
        let (from, to) = (list.invoked_us, list.ended_us);
        let at = shown.iter().position(|key| surely_there(operations, key, from, to))?;
        let mut keys = keys.to_vec();
        keys.remove(at);
        Some(keys)
    })
}

fn page_repeats(
    operations: &[Operation],
    dice: &mut Dice,
) -> Option<(u64, Kind, Option<Why>, Action)> {
    wrong_page(operations, dice, |_, keys| {
        let first = keys.first()?.clone();
        Some([vec![first], keys.to_vec()].concat())
    })
}

fn page_disorder(
    operations: &[Operation],
    dice: &mut Dice,
) -> Option<(u64, Kind, Option<Why>, Action)> {
    wrong_page(operations, dice, |_, keys| {
        (keys.len() > 1).then(|| keys.iter().rev().cloned().collect())
    })
}

fn page_phantom(
    operations: &[Operation],
    dice: &mut Dice,
) -> Option<(u64, Kind, Option<Why>, Action)> {
    wrong_page(operations, dice, |_, keys| Some([keys.to_vec(), vec!["zz".into()]].concat()))
}

/// A slice of other pieces.
fn wrong_slice(
    operations: &[Operation],
    dice: &mut Dice,
    wrong: fn(&mut Vec<ashlar_check::Piece>),
) -> Option<(u64, Kind, Option<Why>, Action)> {
    one_of(operations, dice, |read| match &read.action {
        Action::Slice { key, from, length, pieces, .. }
            if pieces.first().is_some_and(|piece| piece.length > 8) =>
        {
            let mut pieces = pieces.clone();
            wrong(&mut pieces);
            let (key, from, length, tag) = (key.clone(), *from, *length, None);
            Some(Action::Slice { key, from, length, tag, pieces })
        }
        _ => None,
    })
}

fn slice_mix(
    operations: &[Operation],
    dice: &mut Dice,
) -> Option<(u64, Kind, Option<Why>, Action)> {
    wrong_slice(operations, dice, |pieces| {
        let mut second = pieces[0].clone();
        pieces[0].length -= 8;
        second.at += pieces[0].length;
        second.length = 8;
        second.value = second.value.map(|value| value + 1);
        pieces.push(second);
    })
}

fn slice_short(
    operations: &[Operation],
    dice: &mut Dice,
) -> Option<(u64, Kind, Option<Why>, Action)> {
    wrong_slice(operations, dice, |pieces| pieces[0].length -= 1)
}

/// A completion that succeeded wholly after another success of the same upload.
fn repetition<'a>(operations: &'a [Operation], dice: &mut Dice) -> Option<&'a Operation> {
    let places: Vec<&Operation> = operations
        .iter()
        .filter(|two| match &two.action {
            Action::Complete { upload, .. } if two.end == Kind::Ok => operations.iter().any(|one| {
                one.end == Kind::Ok
                    && one.ended_us < two.invoked_us
                    && matches!(&one.action, Action::Complete { upload: other, .. } if other == upload)
            }),
            _ => false,
        })
        .collect();
    (!places.is_empty()).then(|| *dice.pick(&places))
}

fn other_answer(
    operations: &[Operation],
    dice: &mut Dice,
) -> Option<(u64, Kind, Option<Why>, Action)> {
    let repeated = repetition(operations, dice)?;
    let mut action = repeated.action.clone();
    if let Action::Complete { answer, .. } = &mut action {
        *answer = Some("another".into());
    }
    Some((repeated.number, Kind::Ok, None, action))
}

fn refused_repetition(
    operations: &[Operation],
    dice: &mut Dice,
) -> Option<(u64, Kind, Option<Why>, Action)> {
    let repeated = repetition(operations, dice)?;
    Some((repeated.number, Kind::Fail, Some(Why::Missing), repeated.action.clone()))
}

/// When a version was written, where that is known.
fn written_at(operations: &[Operation], id: &str) -> Option<(u64, u64)> {
    let of_id = |operation: &&Operation| {
        operation.end == Kind::Ok
            && match &operation.action {
                Action::Put { version, .. } | Action::Delete { version, .. } => {
                    version.as_deref() == Some(id)
                }
                _ => false,
            }
    };
    operations.iter().find(of_id).map(|write| (write.invoked_us, write.ended_us))
}

fn versions_disorder(
    operations: &[Operation],
    dice: &mut Dice,
) -> Option<(u64, Kind, Option<Why>, Action)> {
    one_of(operations, dice, |list| {
        let Action::Versions { key, versions } = &list.action else { return None };
        let mut versions = versions.clone();
        let apart = |pair: &[ashlar_check::Version]| {
            let newer = written_at(operations, &pair[0].id);
            let older = written_at(operations, &pair[1].id);
            newer.zip(older).is_some_and(|(newer, older)| older.1 < newer.0)
        };
        let at = versions.windows(2).position(apart)?;
        versions.swap(at, at + 1);
        let (one, two) = (versions[at].latest, versions[at + 1].latest);
        (versions[at].latest, versions[at + 1].latest) = (two, one);
        Some(Action::Versions { key: key.clone(), versions })
    })
}

fn version_lost(
    operations: &[Operation],
    dice: &mut Dice,
) -> Option<(u64, Kind, Option<Why>, Action)> {
    let removed = |id: &str| {
        operations.iter().any(|operation| {
            matches!(&operation.action, Action::DeleteVersion { version, .. } if version == id)
        })
    };
    one_of(operations, dice, |list| {
        let Action::Versions { key, versions } = &list.action else { return None };
        let known =
            |id: &str| written_at(operations, id).is_some_and(|(_, ended)| ended < list.invoked_us);
        let mut versions = versions.clone();
        let at = versions.iter().position(|v| !v.latest && known(&v.id) && !removed(&v.id))?;
        versions.remove(at);
        Some(Action::Versions { key: key.clone(), versions })
    })
}
