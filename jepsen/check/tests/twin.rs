//! The twin in EDN says what the history says: it is read back with a reader of EDN that knows nothing of histories.

#[allow(dead_code, reason = "each test file uses the words that it needs")]
mod model;
#[allow(dead_code, reason = "each test file uses the words that it needs")]
mod tale;

use ashlar_check::{Action, Kind, Operation, Why, edn};
use std::collections::{BTreeMap, BTreeSet};
use tale::*;

/// A value in EDN, as far as histories use it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Edn {
    Nil,
    Integer(i64),
    Text(String),
    Keyword(String),
    Vector(Vec<Edn>),
    Map(BTreeMap<Edn, Edn>),
}

struct Reader<'a> {
    left: &'a str,
}

impl Reader<'_> {
    fn read(&mut self) -> Edn {
        self.skip();
        match self.left.chars().next().expect("a value") {
            '{' => {
                let mut items = self.sequence('}').into_iter();
                let mut map = BTreeMap::new();
                while let Some(key) = items.next() {
                    map.insert(key, items.next().expect("a value for each key"));
                }
                Edn::Map(map)
            }
            '[' => Edn::Vector(self.sequence(']')),
            '"' => self.text(),
            _ => self.word(),
        }
    }

    /// Spaces and commas mean nothing in EDN.
    fn skip(&mut self) {
        self.left = self.left.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
    }

    fn sequence(&mut self, close: char) -> Vec<Edn> {
        self.left = &self.left[1..];
        let mut items = Vec::new();
        loop {
            self.skip();
            if let Some(left) = self.left.strip_prefix(close) {
                self.left = left;
                return items;
            }
            items.push(self.read());
        }
    }

    fn text(&mut self) -> Edn {
        let mut text = String::new();
        let mut letters = self.left.char_indices().skip(1);
        while let Some((at, letter)) = letters.next() {
            match letter {
                '"' => {
                    self.left = &self.left[at + 1..];
                    return Edn::Text(text);
                }
                '\\' => text.push(match letters.next().expect("a letter").1 {
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    plain @ ('"' | '\\') => plain,
                    other => panic!("no escape \\{other} in EDN"),
                }),
                plain => text.push(plain),
            }
        }
        panic!("a string without its end")
    }

    fn word(&mut self) -> Edn {
        let end = self.left.find(|c: char| c.is_whitespace() || ",]})".contains(c));
        let (word, left) = self.left.split_at(end.unwrap_or(self.left.len()));
        self.left = left;
        match word.strip_prefix(':') {
            Some(name) => Edn::Keyword(name.to_owned()),
            None if word == "nil" => Edn::Nil,
            None => Edn::Integer(word.parse().expect("an integer")),
        }
    }
}

impl Edn {
    fn field(&self, name: &str) -> &Self {
        let Self::Map(map) = self else { panic!("no map: {self:?}") };
        &map[&Self::Keyword(name.to_owned())]
    }

    fn keyword(&self) -> &str {
        let Self::Keyword(name) = self else { panic!("no keyword: {self:?}") };
        name
    }

    fn integer(&self) -> i64 {
        let Self::Integer(integer) = self else { panic!("no integer: {self:?}") };
        *integer
    }
}

/// One operation as the twin tells it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    f: String,
    from: i64,
    to: i64,
    end: String,
    value: Edn,
}

/// Reads a twin as Jepsen does: a map each, one thing after another in each process, none after `info`.
fn calls(text: &str) -> (Vec<Call>, Vec<Edn>) {
    let mut reader = Reader { left: text };
    let (mut calls, mut nemesis) = (Vec::new(), Vec::new());
    let mut open: BTreeMap<i64, Edn> = BTreeMap::new();
    let mut crashed = BTreeSet::new();
    let mut now = 0;
    for index in 0.. {
        reader.skip();
        if reader.left.is_empty() {
            break;
        }
        let line = reader.read();
        assert_eq!(line.field("index").integer(), index);
        let time = line.field("time").integer();
        assert!(time >= now, "time stands or goes on");
        now = time;
        if line.field("process") == &Edn::Keyword("nemesis".into()) {
            assert_eq!(line.field("type").keyword(), "info");
            nemesis.push(line);
            continue;
        }
        let process = line.field("process").integer();
        assert!(!crashed.contains(&process), "a crashed process does nothing more");
        let kind = line.field("type").keyword();
        if kind == "invoke" {
            assert!(open.insert(process, line).is_none(), "one thing after another");
            continue;
        }
        let invoked = open.remove(&process).expect("it was invoked");
        assert_eq!(invoked.field("f"), line.field("f"));
        if kind == "info" {
            crashed.insert(process);
        }
        calls.push(Call {
            f: line.field("f").keyword().to_owned(),
            from: invoked.field("time").integer() / 1_000,
            to: time / 1_000,
            end: kind.to_owned(),
            value: line.field("value").clone(),
        });
    }
    assert!(open.is_empty(), "everything has an end");
    calls.sort();
    (calls, nemesis)
}

fn integer(value: u64) -> Edn {
    Edn::Integer(value.try_into().expect("a small number"))
}

fn absent() -> Edn {
    Edn::Keyword("absent".into())
}

/// What the twin has to say of an operation, told by other means than those of the writer.
fn expected(operation: &Operation) -> Option<Call> {
    let seen = |value: Option<u64>| value.map_or_else(absent, integer);
    let is_ok = operation.end == Kind::Ok;
    let (f, value) = match &operation.action {
        Action::Put { value, .. } => ("write", integer(*value)),
        Action::Delete { .. } => ("write", absent()),
        Action::Create { value, .. } => ("cas", Edn::Vector(vec![absent(), integer(*value)])),
        Action::Swap { expect, value, .. } => {
            ("cas", Edn::Vector(vec![integer(*expect), integer(*value)]))
        }
        Action::Get { .. } | Action::Slice { .. } if !is_ok => ("read", Edn::Nil),
        Action::Get { value, .. } => ("read", seen(*value)),
        Action::Slice { pieces, .. } => ("read", seen(pieces.first().and_then(|p| p.value))),
        _ => return None,
    };
    let end = match operation.end {
        Kind::Ok => "ok",
        Kind::Fail => "fail",
        _ if f == "read" => "fail",
        _ => "info",
    };
    let key = Edn::Text(operation.action.key()?.to_owned());
    Some(Call {
        f: f.into(),
        from: operation.invoked_us.try_into().expect("a small number"),
        to: operation.told_us?.try_into().expect("a small number"),
        end: end.into(),
        value: Edn::Vector(vec![key, value]),
    })
}

#[test]
fn the_twin_for_knossos_says_what_the_history_says() {
    for seed in 0..40 {
        let tale = model::history(seed, 60);
        let operations = tale.history.operations().unwrap();
        let uploads = |call: &Call| matches!(&call.value, Edn::Vector(pair) if pair[0] == Edn::Text("m".into()));
        let (mut read, _) = calls(&edn::register(&operations, None));
        // Completions are told apart; each key begins with a write of `:absent`.
        read.retain(|call| !uploads(call));
        let beginnings: Vec<Call> = read
            .iter()
            .filter(|call| call.f == "write" && (call.from, call.to) == (0, 0))
            .cloned()
            .collect();
        read.retain(|call| !beginnings.contains(call));
        let mut due: Vec<Call> =
            operations.iter().filter_map(expected).filter(|call| !uploads(call)).collect();
        due.sort();
        assert_eq!(read, due);
        let keys: BTreeSet<_> = due
            .iter()
            .map(|call| match &call.value {
                Edn::Vector(pair) => pair[0].clone(),
                other => panic!("no pair: {other:?}"),
            })
            .collect();
        assert_eq!(beginnings.len(), keys.len());
    }
}

#[test]
fn completions_of_one_upload_are_one_write_in_the_twin() {
    let tale = Tale::default()
        .info(10, complete("m", 7, 1, "x"))
        .ok(20, 30, complete("m", 7, 1, "x"))
        .ok(40, 50, complete("m", 7, 1, "x"))
        .fail(60, 70, Why::Missing, complete("m", 8, 2, "x"));
    let operations = tale.history.operations().unwrap();
    let (read, _) = calls(&edn::register(&operations, Some("m")));
    let due =
        |from, to, end: &str, value| Call { f: "write".into(), from, to, end: end.into(), value };
    assert_eq!(
        read,
        [due(0, 0, "ok", absent()), due(10, 30, "ok", integer(1)), due(60, 70, "fail", integer(2))]
    );
}

#[test]
fn one_key_has_bare_values_and_faults_are_the_nemesis() {
    let tale = Tale::default().ok(5, 9, put("a \"b\"\\", 1)).ok(5, 9, put("c", 2)).ok(
        6,
        8,
        Action::Fault(fault("kill", Some(7))),
    );
    let operations = tale.history.operations().unwrap();
    let (read, nemesis) = calls(&edn::register(&operations, Some("c")));
    let values: Vec<&Edn> = read.iter().map(|call| &call.value).collect();
    assert_eq!(values, [&absent(), &integer(2)]);
    assert_eq!(nemesis.len(), 2);
    assert_eq!(nemesis[0].field("f").keyword(), "kill");
    let (all, _) = calls(&edn::register(&operations, None));
    let quoted = Edn::Vector(vec![Edn::Text("a \"b\"\\".into()), integer(1)]);
    assert!(all.iter().any(|call| call.value == quoted));
}

#[test]
fn the_twin_for_elle_has_transactions_of_plain_keys() {
    let tale = Tale::default()
        .ok(0, 5, get("a", None))
        .ok(6, 9, put("a", 1))
        .info(10, put("a", 2))
        .ok(12, 15, get("a", Some(2)))
        .ok(6, 9, put("b", 3))
        .ok(20, 21, delete("b"));
    let (twin, left_out) = edn::elle(&tale.history.operations().unwrap());
    assert_eq!(left_out, 1);
    let (read, _) = calls(&twin);
    let micro = |mark: &str, value| {
        let operation = vec![Edn::Keyword(mark.into()), Edn::Text("a".into()), value];
        Edn::Vector(vec![Edn::Vector(operation)])
    };
    let values: Vec<(&str, &Edn)> =
        read.iter().map(|call| (call.end.as_str(), &call.value)).collect();
    assert_eq!(
        values,
        [
            ("ok", &micro("r", Edn::Nil)),
            ("ok", &micro("w", integer(1))),
            ("info", &micro("w", integer(2))),
            ("ok", &micro("r", integer(2))),
        ]
    );
    assert!(read.iter().all(|call| call.f == "txn"));
}
