//! Of each kind of anomaly: a history that the contract allows, and the same with the anomaly planted in it.

#[allow(dead_code, reason = "each test file uses the words that it needs")]
mod tale;

use ashlar_check::{Action, Fault, History, Kind, Sort, Verdict, Version, Why, judge};
use tale::*;

fn written() -> Tale {
    Tale::default().ok(0, 10, put("a", 1)).ok(20, 30, put("a", 2))
}

#[test]
fn c1_c2_a_plain_story_passes() {
    written()
        .ok(22, 25, get("a", Some(1)))
        .ok(24, 40, get("a", Some(2)))
        .ok(50, 60, delete("a"))
        .ok(61, 62, get("a", None))
        .fail(70, 80, Why::Unavailable, put("b", 3))
        .ok(81, 82, get("b", None))
        .passes();
}

#[test]
fn c7_an_unknown_write_may_have_happened_or_not_or_late() {
    let unknown = Tale::default().ok(0, 5, put("a", 1)).info(6, put("a", 2));
    unknown.clone().ok(50, 51, get("a", Some(1))).passes();
    let late = unknown.ok(50, 51, get("a", Some(1))).ok(60, 61, get("a", Some(2)));
    late.passes();
    late.ok(70, 71, get("a", Some(1))).fails("register", "C2", Sort::Stale);
    let deleted = Tale::default().ok(0, 5, put("a", 1)).info(6, delete("a"));
    deleted.clone().ok(50, 51, get("a", Some(1))).ok(60, 61, get("a", None)).passes();
    let twice = deleted.ok(60, 61, get("a", None)).ok(70, 71, get("a", Some(1)));
    twice.fails("presence", "C6", Sort::Resurrected);
}

#[test]
fn c1_planted_a_lost_write() {
    Tale::default().ok(0, 5, put("a", 1)).ok(6, 7, get("a", None)).fails(
        "presence",
        "C1",
        Sort::Lost,
    );
    // The delete was long before: it does not explain the loss.
    Tale::default()
        .ok(0, 5, put("a", 1))
        .ok(6, 8, delete("a"))
        .ok(10, 15, put("a", 2))
        .ok(16, 17, get("a", None))
        .fails("presence", "C1", Sort::Lost);
}

#[test]
fn c2_planted_stale_reads() {
    written().ok(31, 32, get("a", Some(1))).fails("register", "C2", Sort::Stale);
    // Nobody acknowledged the second write yet, but somebody has seen it.
    let seen = Tale::default().ok(0, 5, put("a", 1)).ok(6, 100, put("a", 2));
    let seen = seen.ok(20, 21, get("a", Some(2)));
    seen.clone().ok(22, 23, get("a", Some(2))).passes();
    seen.ok(30, 31, get("a", Some(1))).fails("register", "C2", Sort::Stale);
}

#[test]
fn c5_c7_c2_planted_a_phantom_a_refused_and_a_future_value() {
    written().ok(40, 41, get("a", Some(9))).fails("register", "C5", Sort::Phantom);
    written().fail(32, 35, Why::Unavailable, put("a", 3)).ok(40, 41, get("a", Some(3))).fails(
        "register",
        "C7",
        Sort::RefusedButApplied,
    );
    written().ok(40, 41, get("a", Some(3))).ok(50, 51, put("a", 3)).fails(
        "register",
        "C2",
        Sort::Future,
    );
}

#[test]
fn c6_planted_resurrected_objects() {
    let deleted = written().ok(40, 50, delete("a"));
    deleted.clone().ok(60, 61, get("a", None)).passes();
    deleted.ok(60, 61, get("a", Some(2))).fails("register", "C6", Sort::Resurrected);
    // The delete is not known to have happened, but a read found nothing.
    written().info(40, delete("a")).ok(60, 61, get("a", None)).ok(70, 71, get("a", Some(2))).fails(
        "presence",
        "C6",
        Sort::Resurrected,
    );
}

/// Each read alone is possible; no order explains all of them: only the search finds it.
#[test]
fn c6_planted_one_delete_that_would_have_to_happen_twice() {
    let tale = Tale::default()
        .ok(0, 100, put("a", 1))
        .ok(0, 100, put("a", 2))
        .ok(0, 100, delete("a"))
        .ok(10, 11, get("a", Some(1)))
        .ok(20, 21, get("a", None));
    tale.clone().ok(30, 31, get("a", Some(2))).passes();
    tale.ok(30, 31, get("a", Some(2))).ok(40, 41, get("a", None)).fails(
        "conditional",
        "C6",
        Sort::NoOrder,
    );
}

#[test]
fn c3_one_winner_passes_and_an_unknown_one_may_be_it() {
    let race = |winner: Tale| winner.fail(0, 9, Why::Condition, create("a", 2));
    race(Tale::default().ok(0, 10, create("a", 1))).ok(11, 12, get("a", Some(1))).passes();
    race(Tale::default().info(0, create("a", 1))).ok(11, 12, get("a", Some(1))).passes();
    // Deleted in between: both may win.
    Tale::default()
        .ok(0, 5, create("a", 1))
        .ok(6, 7, delete("a"))
        .ok(8, 9, create("a", 2))
        .passes();
}

#[test]
fn c3_planted_two_winners_and_none() {
    Tale::default().ok(0, 10, create("a", 1)).ok(0, 10, create("a", 2)).fails(
        "conditional",
        "C3",
        Sort::TwoWinners,
    );
    Tale::default()
        .ok(0, 1, put("b", 9))
        .fail(0, 10, Why::Condition, create("a", 1))
        .fail(0, 10, Why::Condition, create("a", 2))
        .fails("conditional", "C3", Sort::WrongCondition);
    // Refused because nobody could serve it claims nothing about the object.
    Tale::default().ok(0, 1, put("b", 9)).fail(0, 10, Why::Unavailable, create("a", 1)).passes();
}

#[test]
fn c3_planted_swaps_that_were_wrongly_won_and_refused() {
    let swapped = written().ok(40, 50, swap("a", 2, 3));
    swapped.clone().ok(51, 52, get("a", Some(3))).passes();
    swapped.clone().fail(51, 52, Why::Condition, swap("a", 2, 4)).passes();
    // Two from the same value.
    swapped.ok(41, 51, swap("a", 2, 4)).fails("conditional", "C3", Sort::NoOrder);
    // Refused, although the value stood all the while.
    written().fail(40, 50, Why::Condition, swap("a", 2, 3)).fails(
        "conditional",
        "C3",
        Sort::NoOrder,
    );
    // Won against a value that had long been replaced: a read of something old.
    written().ok(40, 50, swap("a", 1, 3)).fails("register", "C2", Sort::Stale);
    // Missing, although an object was there.
    written().fail(40, 50, Why::Missing, swap("a", 2, 3)).fails("presence", "C1", Sort::Lost);
}

#[test]
fn c3_planted_a_create_over_an_object() {
    let there = Tale::default().ok(0, 5, put("a", 1)).ok(0, 50, delete("a"));
    there.clone().ok(20, 30, create("a", 2)).ok(60, 61, get("a", Some(2))).passes();
    there.ok(10, 12, get("a", None)).ok(20, 30, create("a", 2)).ok(60, 70, create("a", 3)).fails(
        "conditional",
        "C3",
        Sort::NoOrder,
    );
}

fn three() -> Tale {
    Tale::default().ok(0, 5, put("a", 1)).ok(0, 5, put("b", 2)).ok(0, 5, put("c", 3)).ok(
        6,
        8,
        delete("b"),
    )
}

#[test]
fn c4_what_overlaps_may_be_listed_or_not() {
    let tale = three().ok(0, 50, put("d", 4)).info(6, delete("c"));
    tale.clone().ok(10, 20, list("", &["a", "c"])).ok(10, 20, list("", &["a", "d"])).passes();
    tale.ok(10, 20, list("", &["a"])).ok(10, 20, list("", &["a", "c", "d"])).passes();
}

#[test]
fn c4_planted_in_lists() {
    let with = |keys: &[&str]| three().ok(10, 20, list("", keys));
    with(&["a", "c"]).passes();
    with(&["a"]).fails("list", "C4", Sort::Lost);
    with(&["a", "b", "c"]).fails("list", "C6", Sort::Resurrected);
    with(&["a", "c", "x"]).fails("list", "C4", Sort::Phantom);
    with(&["a", "a", "c"]).fails("list", "C4", Sort::Duplicated);
    with(&["c", "a"]).fails("list", "C4", Sort::Disorder);
    let early = three().ok(30, 40, put("e", 5));
    early.ok(10, 20, list("", &["a", "c", "e"])).fails("list", "C4", Sort::Phantom);
    three().ok(10, 20, list("b", &["c"])).fails("list", "C4", Sort::Phantom);
}

/// Nobody knows whether it was written; but a list has shown it, so it stays.
#[test]
fn c4_planted_stale_lists() {
    let seen = three().info(6, put("d", 4)).ok(10, 20, list("", &["a", "c", "d"]));
    seen.clone().ok(30, 40, list("", &["a", "c", "d"])).passes();
    seen.clone().ok(30, 40, list("", &["a", "c"])).fails("list", "C4", Sort::Lost);
    seen.ok(30, 40, get("d", None)).fails("presence", "C1", Sort::Lost);
    let gone = three().info(6, delete("c")).ok(10, 20, list("", &["a"]));
    gone.clone().ok(30, 40, list("", &["a"])).passes();
    gone.ok(30, 40, list("", &["a", "c"])).fails("list", "C6", Sort::Resurrected);
}

#[test]
fn c4_planted_pages_that_skip_or_repeat() {
    let first = three().ok(0, 5, put("d", 4)).ok(10, 12, page("", "", &["a", "c"], true));
    first.clone().ok(13, 15, page("", "c", &["d"], false)).passes();
    first.clone().ok(13, 15, page("", "c", &["c", "d"], false)).fails(
        "list",
        "C4",
        Sort::Duplicated,
    );
    first.clone().ok(13, 15, page("", "c", &[], false)).fails("list", "C4", Sort::Lost);
    first.ok(13, 15, page("", "c", &[], true)).fails("list", "C4", Sort::Disorder);
    three().ok(10, 12, page("", "", &["c"], true)).fails("list", "C4", Sort::Lost);
}

#[test]
fn c5_planted_slices() {
    let with =
        |pieces: &[(u64, u64, Option<u64>)]| written().ok(40, 50, slice("a", 90, 20, pieces));
    with(&[(90, 10, Some(2))]).passes();
    with(&[(90, 5, Some(2)), (95, 5, Some(2))]).passes();
    with(&[(90, 5, Some(1)), (95, 5, Some(2))]).fails("ranges", "C5", Sort::Torn);
    with(&[(90, 5, Some(2)), (95, 5, None)]).fails("ranges", "C5", Sort::Torn);
    with(&[(90, 5, Some(2))]).fails("ranges", "C5", Sort::Torn);
    with(&[(90, 11, Some(2))]).fails("ranges", "C5", Sort::Torn);
    with(&[(80, 10, Some(2))]).fails("ranges", "C5", Sort::Torn);
    with(&[(90, 10, Some(1))]).fails("register", "C2", Sort::Stale);
    with(&[]).fails("presence", "C1", Sort::Lost);
    let tagged = |tag| {
        let mut action = slice("a", 0, 10, &[(0, 10, Some(2))]);
        if let Action::Slice { tag: slot, .. } = &mut action {
            *slot = Some(tag);
        }
        written().ok(40, 50, action)
    };
    tagged(2).passes();
    tagged(1).fails("ranges", "C5", Sort::Torn);
}

fn uploaded() -> Tale {
    let part = |number| Action::Part { key: "m".into(), upload: 7, number };
    Tale::default().ok(0, 1, Action::Begin { key: "m".into(), upload: 7 }).ok(2, 3, part(1)).ok(
        2,
        3,
        part(2),
    )
}

#[test]
fn c10_a_completion_may_be_repeated_and_is_one_write() {
    let completed = uploaded().info(10, complete("m", 7, 1, "x"));
    completed.clone().ok(20, 30, complete("m", 7, 1, "x")).ok(31, 32, get("m", Some(1))).passes();
    let replaced = completed.ok(20, 30, complete("m", 7, 1, "x")).ok(40, 50, put("m", 2)).ok(
        60,
        70,
        complete("m", 7, 1, "x"),
    );
    replaced.clone().ok(80, 81, get("m", Some(2))).passes();
    // The repetition wrote the object again.
    replaced.ok(80, 81, get("m", Some(1))).fails("register", "C2", Sort::Stale);
}

#[test]
fn c10_planted_in_uploads() {
    let done = uploaded().ok(10, 20, complete("m", 7, 1, "x"));
    done.clone().ok(30, 40, complete("m", 7, 1, "y")).fails("multipart", "C10", Sort::OtherAnswer);
    for why in [Why::Missing, Why::Refused] {
        done.clone().fail(30, 40, why, complete("m", 7, 1, "x")).fails(
            "multipart",
            "C10",
            Sort::OtherAnswer,
        );
    }
    done.clone().fail(30, 40, Why::Unavailable, complete("m", 7, 1, "x")).passes();
    done.ok(30, 40, get("m", None)).fails("presence", "C1", Sort::Lost);
    // Parts alone are no object.
    uploaded().ok(30, 40, get("m", Some(1))).fails("register", "C5", Sort::Phantom);
    let lost = uploaded().fail(10, 20, Why::Missing, complete("m", 7, 1, "x"));
    lost.fails("multipart", "C10", Sort::Lost);
    let abort = || Action::Abort { key: "m".into(), upload: 7 };
    let aborted = uploaded().ok(10, 20, abort());
    aborted.clone().fail(30, 40, Why::Missing, complete("m", 7, 1, "x")).passes();
    aborted.ok(30, 40, complete("m", 7, 1, "x")).fails("multipart", "C10", Sort::Resurrected);
    uploaded().ok(10, 35, abort()).ok(30, 40, complete("m", 7, 1, "x")).passes();
    Tale::default()
        .ok(0, 1, Action::Begin { key: "m".into(), upload: 7 })
        .fail(2, 3, Why::Refused, Action::Part { key: "m".into(), upload: 7, number: 2 })
        .ok(10, 20, complete("m", 7, 1, "x"))
        .fails("multipart", "C10", Sort::Torn);
}

fn versioned(key: &str, value: u64, id: &str) -> Action {
    Action::Put { key: key.into(), value, bytes: None, version: Some(id.into()) }
}

fn versions(shown: &[(&str, Option<u64>)]) -> Action {
    let version = |(at, &(id, value)): (usize, &(&str, Option<u64>))| Version {
        id: id.into(),
        value,
        latest: at == 0,
    };
    Action::Versions { key: "v".into(), versions: shown.iter().enumerate().map(version).collect() }
}

fn two_versions_and_a_marker() -> Tale {
    Tale::default().ok(0, 5, versioned("v", 1, "one")).ok(10, 15, versioned("v", 2, "two")).ok(
        20,
        25,
        Action::Delete { key: "v".into(), version: Some("gone".into()) },
    )
}

#[test]
fn c9_versions_in_the_order_of_commits_pass() {
    let all = &[("gone", None), ("two", Some(2)), ("one", Some(1))];
    let tale = two_versions_and_a_marker().ok(30, 40, versions(all));
    tale.clone().ok(41, 42, get("v", None)).passes();
    let read = |value| Action::GetVersion { key: "v".into(), version: "one".into(), value };
    tale.clone().ok(50, 55, read(Some(1))).passes();
    let remove = Action::DeleteVersion { key: "v".into(), version: "one".into() };
    let removed = tale.ok(60, 65, remove);
    removed.clone().ok(70, 75, versions(&all[..2])).ok(70, 75, read(None)).passes();
    removed.clone().ok(70, 75, versions(all)).fails("versions", "C6", Sort::Resurrected);
    removed.ok(70, 75, read(Some(1))).fails("versions", "C6", Sort::Resurrected);
    // Of two that overlap either may be the newer, but always the same.
    let both =
        Tale::default().ok(0, 9, versioned("v", 1, "one")).ok(0, 9, versioned("v", 2, "two"));
    let (ab, ba) = (&all[1..], &[("one", Some(1)), ("two", Some(2))]);
    both.clone().ok(20, 21, versions(ba)).passes();
    both.clone().ok(20, 21, versions(ab)).ok(22, 23, versions(ab)).passes();
    both.ok(20, 21, versions(ab)).ok(22, 23, versions(ba)).fails("versions", "C9", Sort::Disorder);
}

#[test]
fn c9_planted_in_versions() {
    let with =
        |shown: &[(&str, Option<u64>)]| two_versions_and_a_marker().ok(30, 40, versions(shown));
    let (gone, two, one) = (("gone", None), ("two", Some(2)), ("one", Some(1)));
    with(&[gone, one, two]).fails("versions", "C9", Sort::Disorder);
    with(&[gone, two]).fails("versions", "C9", Sort::Lost);
    with(&[two, one]).fails("versions", "C9", Sort::Lost);
    with(&[gone, two, two, one]).fails("versions", "C9", Sort::Duplicated);
    with(&[gone, two, ("x", Some(9)), one]).fails("versions", "C9", Sort::Phantom);
    with(&[gone, ("x", None), two, one]).fails("versions", "C9", Sort::Phantom);
    with(&[gone, ("two", Some(1)), one]).fails("versions", "C9", Sort::Torn);
    let read = |value| {
        let action = Action::GetVersion { key: "v".into(), version: "one".into(), value };
        two_versions_and_a_marker().ok(30, 40, action)
    };
    read(Some(2)).fails("versions", "C9", Sort::Torn);
    read(None).fails("versions", "C9", Sort::Lost);
}

#[test]
fn c8_planted_a_client_that_goes_back_in_time() {
    written().by(4, 22, 23, get("a", Some(1))).by(5, 40, 41, get("a", Some(2))).passes();
    let back = written().by(4, 40, 41, get("a", Some(2))).by(4, 42, 43, get("a", Some(1)));
    back.fails("sessions", "C8", Sort::Stale);
    let others = written().by(4, 40, 41, get("a", Some(2))).by(5, 42, 43, get("a", Some(1)));
    let by_session = others.judge().anomalies.iter().any(|anomaly| anomaly.checker == "sessions");
    assert!(!by_session, "two clients are no session; the register finds it");
}

#[test]
fn a_fault_that_bit_under_load_passes() {
    let tale =
        Tale::default().ok(0, 100, put("a", 1)).ok(10, 200, Action::Fault(fault("kill", Some(50))));
    tale.passes();
    let plan = |faults: &[&str], operations| Action::Plan {
        faults: faults.iter().map(|&fault| fault.into()).collect(),
        operations,
    };
    tale.clone().ok(0, 0, plan(&["kill"], 1)).passes();
    tale.clone().ok(0, 0, plan(&["kill", "pause"], 1)).is_inconclusive("planned pause never bit");
    tale.ok(0, 0, plan(&["kill"], 2)).is_inconclusive("2 were planned");
}

#[test]
fn planted_faults_that_did_not_bite() {
    let during =
        |fault: Fault| Tale::default().ok(0, 100, put("a", 1)).ok(10, 200, Action::Fault(fault));
    during(fault("kill", None)).is_inconclusive("did not bite");
    let idle = |bit_at| {
        let struck = Action::Fault(fault("kill", Some(bit_at)));
        Tale::default().ok(0, 100, put("a", 1)).ok(10, 300_000, struck)
    };
    idle(100_101).is_inconclusive("no operation was in flight");
    // seen a while after it bit
    idle(100_100).passes();
    let before = Action::Fault(fault("kill", Some(150)));
    let before = Tale::default().ok(0, 100, put("a", 1)).ok(110, 200, before);
    before.is_inconclusive("no operation was in flight");
    during(fault("kill", Some(5))).is_inconclusive("did not last");
    during(Fault { evidence: String::new(), ..fault("kill", Some(50)) })
        .is_inconclusive("evidence");
    during(Fault { under_load: false, ..fault("rot", Some(150)) }).passes();
    Tale::default()
        .ok(0, 100, put("a", 1))
        .info(10, Action::Fault(fault("kill", Some(50))))
        .is_inconclusive("no known end");
    Tale::default().info(10, put("a", 1)).is_inconclusive("nothing to judge");
}

#[test]
fn a_failure_outweighs_a_doubt() {
    let tale = Tale::default().ok(0, 5, put("a", 1)).ok(10, 20, Action::Fault(fault("kill", None)));
    tale.is_inconclusive("did not bite");
    tale.ok(30, 31, get("a", None)).fails("presence", "C1", Sort::Lost);
}

#[test]
fn l1_gaps_are_measured_and_judged() {
    let allowed = |gap_us_max| Fault { gap_us_max, ..fault("kill", Some(12)) };
    let tale = |gap| {
        Tale::default()
            .ok(0, 5, put("a", 1))
            .ok(10, 3_000_000, Action::Fault(allowed(gap)))
            .info(11, put("a", 2))
            .fail(100, 200, Why::Unavailable, put("a", 3))
            .ok(50_000, 2_000_011, put("a", 4))
            .ok(2_500_000, 2_500_100, put("b", 5))
    };
    let report = tale(None).judge();
    assert_eq!(report.verdict, Verdict::Pass, "{report}");
    let gap = &report.availability.gaps[0];
    assert_eq!((gap.longest_us, gap.key.as_str()), (2_000_000, "a"));
    let seconds = &report.availability.seconds;
    assert_eq!((seconds[0].ok, seconds[0].failed, seconds[0].unknown), (1, 1, 1));
    assert_eq!((seconds[1].ok, seconds[2].ok), (0, 2));
    tale(Some(2_000_000)).passes();
    tale(Some(1_999_999)).fails("availability", "L1", Sort::Gap);
    // Who gives up and goes away waits no longer; who tries again at once still does.
    let gave_up = |again| {
        Tale::default()
            .ok(0, 5, put("a", 1))
            .ok(10, 3_000_000, Action::Fault(allowed(Some(500_000))))
            .fail(11, 400_000, Why::Unavailable, put("a", 2))
            .ok(again, again + 200_000, put("a", 3))
    };
    gave_up(900_001).passes();
    gave_up(900_000).fails("availability", "L1", Sort::Gap);
    // One writer hangs while another one of the same key succeeds: the first still waits.
    Tale::default()
        .ok(0, 5, put("a", 1))
        .ok(10, 3_000_000, Action::Fault(allowed(Some(1_000_000))))
        .ok(11, 2_000_000, put("a", 2))
        .ok(100, 200, put("a", 3))
        .fails("availability", "L1", Sort::Gap);
    // Who does not want to write has no gap, and a write that never ends is one to the end.
    let idle = Tale::default()
        .ok(0, 5, put("a", 1))
        .ok(10, 9_000_000, Action::Fault(allowed(Some(1_000))))
        .ok(8_999_000, 8_999_900, put("a", 2))
        .ok(10, 15, get("a", Some(1)));
    idle.passes();
    let mut hangs = idle.info(20, put("c", 3));
    hangs.history.events.pop();
    hangs.fails("availability", "L1", Sort::Gap);
}

#[test]
fn a_broken_history_is_inconclusive() {
    let tale = Tale::default().ok(0, 5, put("a", 1)).ok(0, 5, put("b", 1));
    tale.is_inconclusive("written twice");
    assert_eq!(judge(&History::default()).verdict, Verdict::Inconclusive);
    let kinds = [Verdict::Pass, Verdict::Fail, Verdict::Inconclusive].map(Verdict::exit_code);
    assert_eq!(kinds, [0, 1, 2]);
    assert_eq!(Tale::default().ok(0, 5, put("a", 1)).history.events[1].kind, Kind::Ok);
}

/// Any order of the first writes is possible, and after none of them the create: to know it, all must be tried.
#[test]
fn a_search_beyond_its_steps_is_inconclusive() {
    let tale = |writes| {
        let free = |tale: Tale, value| {
            tale.ok(0, 1_000, put("a", value)).ok(0, 1_000, get("a", Some(value)))
        };
        (1..=writes).fold(Tale::default(), free).ok(1_100, 1_200, create("a", 99))
    };
    tale(6).fails("conditional", "C3", Sort::NoOrder);
    let operations = tale(24).history.operations().unwrap();
    let report = ashlar_check::judge_within(&operations, 10_000);
    assert_eq!(report.verdict, Verdict::Inconclusive, "{report}");
    assert!(report.doubts[0].contains("given up"), "{report}");
}
