//! The victim that works with `ashlar-wal`, and what the harness knows of its log.
//!
//! Every record follows from the seed of its life and the state before it, so a [`Script`] needs no bytes: it names
//! for each life its seed and how many of its records are in the log. Of the last life only bounds are known: no fewer
//! than were acknowledged, no more than were submitted (R5). A victim finds the number that explains the log it opens;
//! if none does, a promise is broken.

use crate::dice::Dice;
use crate::victim::{Orders, say};
use anyhow::{Context, Result};
use ashlar_host::Host;
use ashlar_types::RangeId;
use ashlar_wal::{Entry, GroupHealth, Record, Wal, WalConfig};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::Semaphore;

const GROUPS: u64 = 3;
/// Records on their way at the same time.
const IN_FLIGHT: usize = 24;
const FILE_BYTES: u64 = 256 << 10;
const PAYLOAD_BYTES_MAX: u64 = 3_000;
/// A group with more entries than this is purged.
const ENTRIES_MAX: usize = 100;

/// One life of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Life {
    seed: u64,
    acknowledged: u64,
    submitted: u64,
}

/// All lives so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script(Vec<Life>);

impl Script {
    /// Takes what a victim said; false where it is no line about the log.
    pub(crate) fn take(&mut self, line: &str) -> Result<bool> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| -> Result<u64> {
            words.get(at).context("a number is missing")?.parse().context("no number")
        };
        match words[0] {
            "life" => {
                let life =
                    Life { seed: number(1)?, acknowledged: number(2)?, submitted: number(3)? };
                self.0.push(life);
                return Ok(true);
            }
            "survived" | "submit" | "done" => {}
            _ => return Ok(false),
        }
        let count = number(1)?;
        let life = self.0.last_mut().context("a life has begun")?;
        match words[0] {
            "survived" => (life.acknowledged, life.submitted) = (count, count),
            "submit" => life.submitted = life.submitted.max(count),
            _ => life.acknowledged = life.acknowledged.max(count),
        }
        Ok(true)
    }

    /// As lines that `take` understands.
    pub(crate) fn lines(&self) -> impl Iterator<Item = String> {
        self.0
            .iter()
            .map(|life| format!("life {} {} {}", life.seed, life.acknowledged, life.submitted))
    }

    /// Records of which it is not known whether they are there.
    pub(crate) fn open(&self) -> u64 {
        self.0.last().map_or(0, |life| life.submitted - life.acknowledged)
    }
}

/// What the log must say of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Group {
    vote: Option<Bytes>,
    committed: Option<Bytes>,
    purged: Option<(u64, Bytes)>,
    entries: BTreeMap<u64, Entry>,
}

type Groups = BTreeMap<u64, Group>;

impl Group {
    fn next_index(&self) -> u64 {
        let after_purge = self.purged.as_ref().map_or(1, |(upto, _)| upto + 1);
        self.entries.last_key_value().map_or(after_purge, |(last, _)| last + 1)
    }

    fn apply(&mut self, record: &Record) {
        match record {
            Record::Append(entries) => {
                self.entries.extend(entries.iter().map(|entry| (entry.index, entry.clone())));
            }
            Record::Vote(vote) => self.vote = Some(vote.clone()),
            Record::Committed(id) => self.committed = Some(id.clone()),
            Record::Truncate { after } => {
                self.entries.retain(|index, _| after.is_some_and(|after| *index <= after));
            }
            Record::Purge { upto, id } => {
                self.purged = Some((*upto, id.clone()));
                self.entries.retain(|index, _| index > upto);
            }
            Record::Created { .. }
            | Record::Dropped
            | Record::Installing(_)
            | Record::Installed
            | Record::CaughtUp => {}
        }
    }

    /// The record that comes next in a life.
    fn next_record(&self, dice: &mut Dice, count: u64) -> Record {
        let next = self.next_index();
        let tag = Bytes::from(format!("{count:08}"));
        if self.entries.len() > ENTRIES_MAX {
            return Record::Purge { upto: next - 1 - dice.roll(20), id: tag };
        }
        match dice.roll(20) {
            0..=12 => {
                let few = 1 + dice.roll(4);
                Record::Append((next..next + few).map(|index| entry(index, count, dice)).collect())
            }
            13..=15 => Record::Vote(tag),
            16 | 17 => Record::Committed(tag),
            _ => {
                let kept_from = self.purged.as_ref().map_or(0, |(upto, _)| *upto);
                Record::Truncate {
                    after: Some((next - 1).saturating_sub(dice.roll(5)).max(kept_from)),
                }
            }
        }
    }
}

fn entry(index: u64, term: u64, dice: &mut Dice) -> Entry {
    let bytes = usize::try_from(dice.roll(PAYLOAD_BYTES_MAX)).expect("small");
    let fill = u8::try_from((index * 31 + term) % 251).expect("below 251");
    Entry { index, term, payload: Bytes::from(vec![fill; bytes]) }
}

/// A life's records, one after another.
struct Author {
    dice: Dice,
    count: u64,
}

impl Author {
    fn new(seed: u64) -> Self {
        Self { dice: Dice::new(seed), count: 0 }
    }

    /// The next record and its group; the model has it then.
    fn write(&mut self, groups: &mut Groups) -> (u64, Record) {
        self.count += 1;
        let number = self.dice.roll(GROUPS);
        let group = groups.entry(number).or_default();
        let record = group.next_record(&mut self.dice, self.count);
        group.apply(&record);
        (number, record)
    }
}

/// A life: judge what the last one left, then work until the power goes.
pub(crate) async fn live(orders: &Orders, dir: &Path, script: Script) -> Result<()> {
    let host = Host::real();
    let config = WalConfig { dir: dir.to_owned(), file_bytes: FILE_BYTES, spare_files: 1 };
    let wal = match Wal::open(&host, config) {
        Ok(wal) => wal,
        Err(error) => return say(&format!("broken the log does not open: {error}")),
    };
    let mut groups = judge(&wal, &script)?;
    say(&format!("life {} 0 0", orders.seed))?;
    say("ready")?;
    let mut author = Author::new(orders.seed);
    let room = Arc::new(Semaphore::new(IN_FLIGHT));
    loop {
        let permit = room.clone().acquire_owned().await?;
        let (group, record) = author.write(&mut groups);
        let count = author.count;
        say(&format!("submit {count}"))?;
        if orders.hasty {
            say(&format!("done {count}"))?;
        }
        let submitted = wal.submit(
            RangeId(group),
            record,
            Box::new(move |result| {
                // after the cut everything fails: the harness is about to end this process
                if result.is_ok() {
                    drop(say(&format!("done {count}")));
                    drop(permit);
                } else {
                    permit.forget();
                }
            }),
        );
        if let Err(error) = submitted {
            say(&format!("note the log ends: {error}"))?;
            return std::future::pending().await;
        }
    }
}

/// Says how many records of the last life explain the log, or that none does; the state with which the next begins.
fn judge(wal: &Wal, script: &Script) -> Result<Groups> {
    for group in wal.groups() {
        if wal.state(group).health == GroupHealth::Corrupt {
            say(&format!("broken {group} is corrupt after a cut"))?;
        }
    }
    let mut groups = Groups::new();
    let Some((last, before)) = script.0.split_last() else { return Ok(groups) };
    for life in before {
        let mut author = Author::new(life.seed);
        while author.count < life.submitted {
            author.write(&mut groups);
        }
    }
    let seen = seen(wal)?;
    let mut author = Author::new(last.seed);
    loop {
        if author.count >= last.acknowledged && is_same(&groups, &seen) {
            say(&format!("survived {}", author.count))?;
            return Ok(groups);
        }
        if author.count == last.submitted {
            break;
        }
        author.write(&mut groups);
    }
    let sizes: Vec<usize> = seen.values().map(|group| group.entries.len()).collect();
    say(&format!(
        "broken the log is none of what it may be after {}..={} records ({sizes:?} entries)",
        last.acknowledged, last.submitted
    ))?;
    Ok(seen)
}

fn is_same(groups: &Groups, seen: &Groups) -> bool {
    let nothing = Group::default();
    (0..GROUPS).all(|number| {
        groups.get(&number).unwrap_or(&nothing) == seen.get(&number).unwrap_or(&nothing)
    })
}

fn seen(wal: &Wal) -> Result<Groups> {
    let group = |number: u64| -> Result<(u64, Group)> {
        let state = wal.state(RangeId(number));
        let entries = match (state.first_index, state.last) {
            (Some(first), Some((last, _))) => wal.read(RangeId(number), first, last + 1)?,
            _ => Vec::new(),
        };
        let entries = entries.into_iter().map(|entry| (entry.index, entry)).collect();
        let group =
            Group { vote: state.vote, committed: state.committed, purged: state.purged, entries };
        Ok((number, group))
    };
    (0..GROUPS).map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_told_again_by_its_seed() {
        let tell = |count: u64| {
            let mut groups = Groups::new();
            let mut author = Author::new(7);
            while author.count < count {
                author.write(&mut groups);
            }
            groups
        };
        assert!(is_same(&tell(500), &tell(500)));
        assert!(!is_same(&tell(500), &tell(499)));
        assert!(is_same(&Groups::new(), &BTreeMap::from([(1, Group::default())])));
    }

    #[test]
    fn a_script_knows_what_is_open() {
        let mut script = Script::default();
        for line in ["life 5 0 0", "submit 1", "submit 2", "done 1", "submit 3"] {
            assert!(script.take(line).unwrap());
        }
        assert_eq!(script.open(), 2);
        let lines: Vec<String> = script.lines().collect();
        assert_eq!(lines, ["life 5 1 3"]);
        script.take("survived 2").unwrap();
        assert_eq!(script.open(), 0);
    }
}
