//! Every crash state of short scripts: for each moment of a script, the log as a power cut may leave it, with the un-synced
//! sectors, lengths and names kept or dropped in all ways where these are few, and in a sample of them where they are many.
//! Each distinct image is opened once: it says what the log said after some prefix of what was submitted, no shorter than
//! what was acknowledged; nothing is called corrupt; and the log goes on (R5, R6, R7).
//!
//! Each test has a floor of distinct images: together with those of the store's `crash_states` more than 100,000
//! (`docs/guarantees.md`).

use super::crash::{Model, Models, all_seen};
use super::*;
use crate::GroupHealth;
use crate::record::Note;
use ashlar_host::{CutStyle, Moment, sets_of_pieces};
use std::collections::{BTreeMap, HashMap};

/// Two or three batches of these scripts fill a file.
const FILE_BYTES: u64 = 16 << 10;
/// Images of this many end in a second cut, and are opened again.
const REOPENED: usize = 16;

/// All that a log says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Said {
    models: Models,
    notes: BTreeMap<u64, Note>,
}

type Answer = mpsc::Receiver<Result<(), WalError>>;

/// How many submits were acknowledged and how many begun, since a moment.
struct Known {
    since: usize,
    acknowledged: usize,
    submitted: usize,
}

/// A script that runs.
struct Script {
    disk: SimDisk,
    wal: Wal,
    /// What the log says after none, one, two … submits.
    said: Vec<Said>,
    known: Vec<Known>,
    answers: Vec<Answer>,
    count: u64,
}

fn open_on(disk: &SimDisk) -> Wal {
    Wal::open_with(&host(disk), config(FILE_BYTES), SMALL).expect("the log opens after a cut")
}

impl Script {
    fn new() -> Self {
        let disk = SimDisk::new();
        disk.keep_moments();
        let models = (0..3).map(|group| (group, Model::default())).collect();
        let said = vec![Said { models, notes: BTreeMap::new() }];
        let known = vec![Known { since: 0, acknowledged: 0, submitted: 0 }];
        let wal = open_on(&disk);
        Self { disk, wal, said, known, answers: Vec::new(), count: 0 }
    }

    fn know(&mut self) {
        let submitted = self.said.len() - 1;
        let acknowledged = submitted - self.answers.len();
        self.known.push(Known { since: self.disk.steps(), acknowledged, submitted });
    }

    /// Submits, and does not wait.
    fn submit(&mut self, group: u64, records: Vec<Record>) {
        self.submit_and(group, records, || ());
    }

    /// What `work` submits lies in one batch: the answer to a vote before it holds the writer until all of it waits.
    fn together(&mut self, work: impl FnOnce(&mut Self)) {
        self.settle();
        let (release, released) = mpsc::sync_channel::<()>(0);
        let (holding, is_held) = mpsc::sync_channel::<()>(0);
        let vote = Record::Vote(self.tag());
        self.submit_and(0, vec![vote], move || {
            holding.send(()).expect("the script waits for it");
            released.recv().expect("the script goes on");
        });
        is_held.recv().expect("the vote is durable");
        self.settle();
        work(self);
        release.send(()).expect("the writer waits");
        self.settle();
    }

    fn submit_and(
        &mut self,
        group: u64,
        records: Vec<Record>,
        then: impl FnOnce() + Send + 'static,
    ) {
        let mut said = self.said.last().expect("there is a first").clone();
        let model = said.models.get_mut(&group).expect("a script has three groups");
        records.iter().for_each(|record| model.apply(record));
        self.said.push(said);
        let (sender, answer) = mpsc::sync_channel(1);
        self.answers.push(answer);
        self.know();
        let done = move |result| {
            drop(sender.send(result));
            then();
        };
        self.wal.submit_all(RangeId(group), records, Box::new(done)).expect("it is taken in");
    }

    fn append(&mut self, group: u64, sizes: &[usize]) {
        self.count += 1;
        let (first, term) = (self.said.last().expect("there is a first"), self.count);
        let next = first.models[&group].next_index();
        let entries = (next..).zip(sizes).map(|(index, &size)| entry(index, term, size)).collect();
        self.submit(group, vec![Record::Append(entries)]);
    }

    fn vote(&mut self, group: u64) {
        let record = Record::Vote(self.tag());
        self.submit(group, vec![record]);
    }

    fn tag(&mut self) -> Bytes {
        self.count += 1;
        Bytes::from(format!("{:08}", self.count))
    }

    fn purge_but(&mut self, group: u64, kept: u64) {
        let next = self.said.last().expect("there is a first").models[&group].next_index();
        let record = Record::Purge { upto: next - 1 - kept, id: self.tag() };
        self.submit(group, vec![record]);
    }

    fn note(&mut self, key: u64, byte: u8) {
        self.settle();
        let mut said = self.said.last().expect("there is a first").clone();
        said.notes.insert(key, [byte; 16]);
        self.said.push(said);
        let (sender, answer) = mpsc::sync_channel(1);
        self.answers.push(answer);
        self.know();
        futures_block(async { drop(sender.send(self.wal.note_durable(key, [byte; 16]).await)) });
        self.settle();
    }

    /// Waits until all is acknowledged.
    fn settle(&mut self) {
        for answer in self.answers.drain(..) {
            answer.recv().expect("it is answered").expect("it is durable");
        }
        self.know();
    }

    fn reopen(&mut self, cut: Option<CutStyle>) {
        self.settle();
        match cut {
            Some(style) => self.disk.cut(style),
            None => close(&self.wal),
        }
        self.wal = open_on(&self.disk);
    }

    /// Ends, and judges every moment; each with about so many images.
    fn judge(mut self, name: &str, images_a_moment: usize) -> Tally {
        self.settle();
        close(&self.wal);
        let moments = self.disk.take_moments();
        let mut tally = Tally::new(name);
        let dice = SeededRandom::new(5);
        for (number, moment) in moments.iter().enumerate() {
            let allowed = self.allowed(number);
            for set in sets_of_pieces(moment.pieces(), images_a_moment, &dice) {
                tally.judge(&moment.cut(|piece| set[piece]), allowed, number);
            }
        }
        tally
    }

    /// What the log may say after a cut at this moment.
    fn allowed(&self, moment: usize) -> &[Said] {
        let later = self.known.partition_point(|known| known.since <= moment);
        let known = &self.known[later - 1];
        &self.said[known.acknowledged..=known.submitted]
    }
}

/// The images that were looked at.
struct Tally {
    name: String,
    tried: usize,
    seen: HashMap<u64, Said>,
}

impl Tally {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), tried: 0, seen: HashMap::new() }
    }

    /// Opens an image, if it is new, and looks whether it says what it may.
    fn judge(&mut self, image: &SimDisk, allowed: &[Said], moment: usize) {
        self.tried += 1;
        let fingerprint = image.fingerprint();
        let is_opened_again = self.seen.len().is_multiple_of(REOPENED);
        let said = self.seen.entry(fingerprint).or_insert_with(|| look_at(image, is_opened_again));
        assert!(
            allowed.contains(said),
            "{} at moment {moment}, image {fingerprint:016x}: {said:?}\nis none of\n{allowed:?}",
            self.name
        );
    }

    fn is_at_least(&self, floor: usize) {
        let Self { name, tried, seen } = self;
        println!("{name}: {} distinct images of {tried}", seen.len());
        assert!(seen.len() >= floor, "{name}: {} distinct images", seen.len());
    }
}

/// What an image says; and it goes on.
fn look_at(image: &SimDisk, is_opened_again: bool) -> Said {
    let wal = open_on(image);
    let said = says(&wal);
    if said.models[&2].dropped {
        put(&wal, 2, Record::Created { first: Bytes::new() }).expect("the log goes on");
    }
    let probe = Bytes::from_static(b"probe");
    put(&wal, 2, Record::Vote(probe.clone())).expect("the log goes on");
    if !is_opened_again {
        close(&wal);
        return said;
    }
    let expected = says(&wal);
    image.cut(CutStyle::DropAll);
    close(&wal);
    let wal = open_on(image);
    assert_eq!(says(&wal), expected, "what it has shown, it shows again");
    assert_eq!(state(&wal, 2).vote, Some(probe));
    close(&wal);
    said
}

fn says(wal: &Wal) -> Said {
    for group in wal.groups() {
        assert_ne!(wal.state(group).health, GroupHealth::Corrupt, "{group}");
    }
    Said { models: all_seen(wal), notes: wal.notes() }
}

#[test]
fn a_cut_while_groups_vote_append_and_truncate() {
    let mut script = Script::new();
    script.together(|script| {
        script.append(0, &[10, 700]);
        script.append(1, &[1_400, 1_400, 900]);
        script.vote(1);
    });
    script.together(|script| {
        script.submit(0, vec![Record::Truncate { after: Some(1) }]);
        script.append(0, &[300, 600, 1_000]);
        let committed = Record::Committed(script.tag());
        script.submit(1, vec![committed]);
        script.append(1, &[900; 4]);
    });
    script.vote(0);
    script.append(0, &[1_500, 20]);
    script.settle();
    script.together(|script| {
        script.submit(1, vec![Record::Truncate { after: None }]);
        script.append(1, &[50; 3]);
        script.append(2, &[1_200; 4]);
    });
    script.judge("votes and appends", 4_096).is_at_least(8_000);
}

#[test]
fn a_cut_while_files_are_changed_moved_out_of_and_used_again() {
    let mut script = Script::new();
    // cold: these are moved out of file after file
    script.append(1, &[700, 100]);
    script.note(3, 1);
    for round in 0..5 {
        script.together(|script| {
            script.append(0, &[1_400; 4]);
            script.vote(0);
        });
        script.append(0, &[700, 2_500, 10]);
        script.settle();
        script.together(|script| {
            script.purge_but(0, round % 3);
            script.append(2, &[400]);
            script.purge_but(2, 1);
        });
    }
    script.judge("files", 3_500).is_at_least(15_000);
}

#[test]
fn a_cut_while_groups_come_and_go() {
    let mut script = Script::new();
    let created = |script: &mut Script| Record::Created { first: script.tag() };
    script.together(|script| {
        let first = created(script);
        script.submit(0, vec![first]);
        script.append(0, &[600, 600, 1_500]);
    });
    script.note(1, 1);
    script.together(|script| {
        script.append(1, &[900, 1_200]);
        script.submit(0, vec![Record::Dropped]);
        script.append(1, &[2_000, 1_000]);
        let again = created(script);
        script.submit(0, vec![again]);
        script.append(0, &[100]);
    });
    script.note(1, 2);
    script.together(|script| {
        let installing = Record::Installing(script.tag());
        script.submit(1, vec![installing, Record::Truncate { after: None }]);
        script.append(2, &[1_300, 800, 1_500, 1_500]);
        script.vote(1);
    });
    script.together(|script| {
        script.submit(1, vec![Record::Installed]);
        script.append(1, &[1_000; 3]);
        script.submit(2, vec![Record::Dropped]);
        script.append(0, &[1_100, 1_100]);
    });
    script.note(1, 3);
    script.judge("groups", 4_096).is_at_least(7_000);
}

#[test]
fn a_cut_while_a_log_is_opened_again() {
    let mut script = Script::new();
    script.append(0, &[900, 900]);
    script.vote(1);
    script.reopen(None);
    script.append(0, &[1_500, 1_500, 10]);
    script.together(|script| {
        script.append(1, &[800, 1_200]);
        script.append(0, &[1_000, 1_000, 900]);
    });
    script.reopen(Some(CutStyle::DropAll));
    script.append(1, &[600, 1_000, 1_000]);
    script.purge_but(0, 1);
    script.reopen(Some(CutStyle::KeepAll));
    script.together(|script| {
        script.append(0, &[10, 2_000, 500]);
        script.vote(0);
        script.append(1, &[700, 1_900]);
    });
    script.reopen(None);
    script.append(2, &[1_300, 1_000, 1_400, 1_400]);
    script.judge("reopened", 4_096).is_at_least(9_000);
}

/// Of each write of a script, everything behind each of its bytes is lost.
#[test]
fn a_cut_behind_every_byte_of_every_batch() {
    let mut script = Script::new();
    script.vote(0);
    script.append(0, &[200, 90]);
    script.settle();
    script.note(1, 7);
    script.submit(0, vec![Record::Truncate { after: Some(1) }]);
    script.append(1, &[400]);
    script.settle();
    script.submit(1, vec![Record::Dropped]);
    let again = Record::Created { first: script.tag() };
    script.submit(1, vec![again]);
    script.purge_but(0, 0);
    script.reopen(None);
    script.append(0, &[300]);
    script.settle();
    close(&script.wal);
    let moments = script.disk.take_moments();
    let mut tally = Tally::new("every byte");
    for (number, moment) in moments.iter().enumerate() {
        for count in counts_of(moment) {
            tally.judge(&moment.cut_in_last_write(count), script.allowed(number), number);
        }
    }
    tally.is_at_least(1_200);
}

/// The lengths to which the last write is worth cutting: a zero that is kept or not is the same.
fn counts_of(moment: &Moment) -> Vec<usize> {
    let Some(bytes) = moment.last_write() else { return Vec::new() };
    (0..=bytes.len()).filter(|&at| at == 0 || bytes[at - 1] != 0).collect()
}
