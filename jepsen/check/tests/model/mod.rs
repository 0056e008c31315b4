//! A store that is right by construction: one map, one operation after another, each at a moment within its interval.
//! What concurrent clients of it are told is a history that the contract allows, whatever overlaps and is unknown.

use crate::tale::{Tale, complete, create, delete, get, page, put, slice, swap};
use ashlar_check::{Action, Kind, Version, Why};
use std::collections::{BTreeMap, BTreeSet};

const KEYS: [&str; 5] = ["a", "ab", "b", "c/1", "d"];
const BYTES: u64 = 100;
const CLIENTS: u64 = 6;

/// A small generator: the same rolls from the same seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let at = self.roll(from.len() as u64);
        &from[usize::try_from(at).expect("below a length")]
    }
}

/// What a client means to do.
#[derive(Clone, Debug)]
enum Wish {
    Put(&'static str),
    Create(&'static str),
    Swap(&'static str),
    Delete(&'static str),
    Get(&'static str),
    Slice(&'static str, u64, u64),
    Page(&'static str, &'static str, usize),
    Upload(u64, Step),
    PutVersion,
    DeleteMarker,
    Versions,
    GetVersion,
    DeleteVersion,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Begin,
    Part(u32),
    Complete,
    Abort,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Served,
    Unavailable,
    Unknown { happens: bool },
}

struct Planned {
    client: u64,
    from: u64,
    told: u64,
    moment: u64,
    fate: Fate,
    wish: Wish,
}

/// The store.
#[derive(Default)]
struct Store {
    objects: BTreeMap<&'static str, u64>,
    written: BTreeMap<&'static str, Vec<u64>>,
    completed: BTreeSet<u64>,
    aborted: BTreeSet<u64>,
    /// Oldest first.
    versions: Vec<(String, Option<u64>)>,
    all_versions: Vec<(String, Option<u64>)>,
    values: u64,
}

/// A history of so many operations of each client.
pub(crate) fn history(seed: u64, operations: u64) -> Tale {
    let mut dice = Dice::new(seed);
    let mut plans = Vec::new();
    for client in 0..CLIENTS {
        plan(client, operations, &mut dice, &mut plans);
    }
    plans.sort_by_key(|planned| planned.moment);
    let mut store = Store::default();
    let mut tale = Tale::default();
    for planned in &plans {
        let applied = match planned.fate {
            Fate::Served => true,
            Fate::Unavailable => false,
            Fate::Unknown { happens } => happens,
        };
        let (mut kind, mut why, action) = store.serve(&planned.wish, applied, &mut dice);
        match planned.fate {
            Fate::Served => {}
            Fate::Unavailable => (kind, why) = (Kind::Fail, Some(Why::Unavailable)),
            Fate::Unknown { .. } => (kind, why) = (Kind::Info, None),
        }
        tale.tell(planned.client, planned.from, planned.told, kind, why, action);
    }
    tale
}

fn plan(client: u64, operations: u64, dice: &mut Dice, plans: &mut Vec<Planned>) {
    let mut now = dice.roll(20);
    let mut uploads = 0;
    let mut steps: Vec<Wish> = Vec::new();
    for _ in 0..operations {
        let wish = steps.pop().unwrap_or_else(|| {
            let wish = wish(dice);
            let Wish::Upload(..) = wish else { return wish };
            uploads += 1;
            let upload = client * 1_000 + uploads;
            let last = if dice.roll(4) == 0 { Step::Abort } else { Step::Complete };
            let rest = [Step::Complete, last, Step::Part(2), Step::Part(1)];
            steps.extend(rest.map(|step| Wish::Upload(upload, step)));
            Wish::Upload(upload, Step::Begin)
        });
        let long = 1 + dice.roll(40);
        let is_preparation = matches!(wish, Wish::Upload(_, Step::Begin | Step::Part(_)));
        let fate = match dice.roll(20) {
            0 if !is_preparation => Fate::Unavailable,
            1 | 2 if !is_preparation => Fate::Unknown { happens: dice.roll(2) == 0 },
            _ => Fate::Served,
        };
        // What is unknown may also happen long after its client has gone on.
        let late = if matches!(fate, Fate::Unknown { .. }) { dice.roll(200) } else { 0 };
        let moment = now + dice.roll(long + 1) + late;
        plans.push(Planned { client, from: now, told: now + long, moment, fate, wish });
        now += long + dice.roll(15);
    }
}

fn wish(dice: &mut Dice) -> Wish {
    let key = *dice.pick(&KEYS);
    match dice.roll(28) {
        0..=5 => Wish::Put(key),
        6 | 7 => Wish::Create(key),
        8 | 9 => Wish::Swap(key),
        10 | 11 => Wish::Delete(key),
        12..=16 => Wish::Get(key),
        17 | 18 => Wish::Slice(key, 8 * dice.roll(12), 1 + dice.roll(60)),
        19 | 20 => {
            let after = *dice.pick(&["", "", "a", "b", "c"]);
            let prefix = if dice.roll(3) == 0 { "a" } else { "" };
            Wish::Page(prefix, after, 1 + usize::from(dice.roll(2) == 0) * 99)
        }
        21 | 22 => Wish::Upload(0, Step::Begin),
        23 => Wish::PutVersion,
        24 => Wish::DeleteMarker,
        25 => Wish::Versions,
        26 => Wish::GetVersion,
        _ => Wish::DeleteVersion,
    }
}

impl Store {
    fn serve(
        &mut self,
        wish: &Wish,
        applied: bool,
        dice: &mut Dice,
    ) -> (Kind, Option<Why>, Action) {
        let refused = |why| (Kind::Fail, Some(why));
        let ok = (Kind::Ok, None);
        let ((kind, why), action) = match *wish {
            Wish::Put(key) => {
                let value = self.next_value(key);
                self.set(applied, key, value);
                (ok, put(key, value))
            }
            Wish::Create(key) => {
                let value = self.next_value(key);
                let holds = !self.objects.contains_key(key);
                self.set(applied && holds, key, value);
                (if holds { ok } else { refused(Why::Condition) }, create(key, value))
            }
            Wish::Swap(key) => {
                let current = self.objects.get(key).copied();
                let known = self.written.get(key).cloned().unwrap_or_else(|| vec![0]);
                let any = *dice.pick(&known);
                let expect = current.filter(|_| dice.roll(3) > 0).unwrap_or(any);
                let value = self.next_value(key);
                let end = match current {
                    None => refused(Why::Missing),
                    Some(current) if current != expect => refused(Why::Condition),
                    Some(_) => ok,
                };
                self.set(applied && end == ok, key, value);
                (end, swap(key, expect, value))
            }
            Wish::Delete(key) => {
                if applied {
                    self.objects.remove(key);
                }
                (ok, delete(key))
            }
            Wish::Get(key) => (ok, get(key, self.objects.get(key).copied())),
            Wish::Slice(key, from, length) => {
                let due = (BYTES - from).min(length);
                let seen = self.objects.get(key).map(|value| (from, due, Some(*value)));
                (ok, slice(key, from, length, seen.as_slice()))
            }
            Wish::Page(prefix, after, most) => (ok, self.page(prefix, after, most)),
            Wish::Upload(upload, step) => self.upload(upload, step, applied),
            Wish::PutVersion | Wish::DeleteMarker => {
                let value = matches!(wish, Wish::PutVersion).then(|| self.next_value("v"));
                let id = format!("id-{}", self.all_versions.len());
                if applied {
                    self.versions.push((id.clone(), value));
                }
                self.all_versions.push((id.clone(), value));
                let (key, version) = ("v".to_owned(), Some(id));
                let action = match value {
                    Some(value) => Action::Put { key, value, bytes: None, version },
                    None => Action::Delete { key, version },
                };
                (ok, action)
            }
            Wish::Versions => {
                let shown = self.versions.iter().rev().enumerate();
                let version = |(at, (id, value)): (usize, &(String, Option<u64>))| Version {
                    id: id.clone(),
                    value: *value,
                    latest: at == 0,
                };
                let versions = shown.map(version).collect();
                (ok, Action::Versions { key: "v".into(), versions })
            }
            Wish::GetVersion | Wish::DeleteVersion if self.all_versions.is_empty() => {
                (ok, get("v", None))
            }
            Wish::GetVersion => {
                let (version, _) = dice.pick(&self.all_versions).clone();
                let value = self.versions.iter().find(|known| known.0 == version);
                let value = value.and_then(|known| known.1);
                (ok, Action::GetVersion { key: "v".into(), version, value })
            }
            Wish::DeleteVersion => {
                let (version, _) = dice.pick(&self.all_versions).clone();
                if applied {
                    self.versions.retain(|known| known.0 != version);
                }
                (ok, Action::DeleteVersion { key: "v".into(), version })
            }
        };
        (kind, why, action)
    }

    fn upload(&mut self, upload: u64, step: Step, applied: bool) -> ((Kind, Option<Why>), Action) {
        let key = || "m".to_owned();
        let ok = (Kind::Ok, None);
        match step {
            Step::Begin => (ok, Action::Begin { key: key(), upload }),
            Step::Part(number) => (ok, Action::Part { key: key(), upload, number }),
            Step::Abort => {
                if applied && !self.completed.contains(&upload) {
                    self.aborted.insert(upload);
                }
                (ok, Action::Abort { key: key(), upload })
            }
            Step::Complete => {
                let value = 1_000_000 + upload;
                let action = complete("m", upload, value, &format!("etag of {upload}"));
                if self.aborted.contains(&upload) {
                    return ((Kind::Fail, Some(Why::Missing)), action);
                }
                // A repeated completion answers the same and does nothing.
                if applied && self.completed.insert(upload) {
                    self.objects.insert("m", value);
                }
                (ok, action)
            }
        }
    }

    fn page(&self, prefix: &str, after: &str, most: usize) -> Action {
        let below = |key: &&&str| key.starts_with(prefix) && (after.is_empty() || **key > after);
        let versioned = self.versions.last().filter(|newest| newest.1.is_some()).map(|_| &"v");
        let keys: Vec<&str> = self.objects.keys().chain(versioned).filter(below).copied().collect();
        let shown = &keys[..keys.len().min(most)];
        page(prefix, after, shown, shown.len() < keys.len())
    }

    fn set(&mut self, applied: bool, key: &'static str, value: u64) {
        if applied {
            self.objects.insert(key, value);
        }
    }

    fn next_value(&mut self, key: &'static str) -> u64 {
        self.values += 1;
        self.written.entry(key).or_default().push(self.values);
        self.values
    }
}
